// Scalar expressions over the named inputs of a step: what delta, decay, gate and skip are made of.
//
// An expression is data. The emitter prints it as a device function, the double reference evaluates the same tree, the
// JSON form holds it as text:
//
//   using namespace ssmjit;
//   namespace d = ssmjit::dsl;
//   Expr delta = clamp(softplus(d::dt + d::dt_bias), 0.001, 0.1);
//   delta.text();                                        // "clamp(softplus(dt + dt_bias), 0.001, 0.1)"
//   Expr::parse("softplus(dt + dt_bias)") == softplus(d::dt + d::dt_bias);
#pragma once

#include <array>
#include <memory>
#include <string>
#include <string_view>

namespace ssmjit {

// The inputs that an expression may name. `delta` is the result of the description's delta expression.
enum class Leaf { x, z, dt, A, dt_bias, D, delta };
inline constexpr int kLeafCount = 7;

// "x", "z", "dt", "A", "dt_bias", "D", "delta".
const char* name(Leaf leaf);

// A value for each leaf, indexed by Leaf.
using LeafValues = std::array<double, kLeafCount>;

struct ExprNode;

// An immutable tree; copies share it. A default-made Expr is empty and may only be assigned, compared and tested.
class Expr {
 public:
  Expr() = default;
  Expr(Leaf leaf);
  Expr(double constant);

  // Reads `text`: leaves, numbers, + - * /, unary -, parentheses, and the functions exp, log, tanh, sqrt, abs, relu,
  // sigmoid, silu, softplus (v above 20), min, max (two arguments), clamp (value, low, high).
  // Fails: ErrorKind::invalid, naming what stood where.
  static Expr parse(std::string_view text);

  bool empty() const { return node_ == nullptr; }
  // The text that parse() reads back to an equal tree.
  std::string text() const;
  // The same as a CUDA C++ expression in fp32: leaves by name, functions as templates/maths.cuh names them.
  std::string cuda() const;
  // In double precision, each function by its definition.
  double evaluate(const LeafValues& values) const;
  bool uses(Leaf leaf) const;
  const ExprNode* node() const { return node_.get(); }

  friend bool operator==(const Expr& a, const Expr& b) { return a.text() == b.text(); }

  static Expr apply(std::string_view function, std::initializer_list<Expr> arguments);

 private:
  friend class ExprParser;
  std::shared_ptr<const ExprNode> node_;
};

Expr operator+(const Expr& a, const Expr& b);
Expr operator-(const Expr& a, const Expr& b);
Expr operator*(const Expr& a, const Expr& b);
Expr operator/(const Expr& a, const Expr& b);
Expr operator-(const Expr& a);
Expr exp(const Expr& v);
Expr log(const Expr& v);
Expr tanh(const Expr& v);
Expr sqrt(const Expr& v);
Expr abs(const Expr& v);
Expr relu(const Expr& v);      // max(v, 0)
Expr sigmoid(const Expr& v);   // 1 / (1 + exp(-v))
Expr silu(const Expr& v);      // v * sigmoid(v)
Expr softplus(const Expr& v);  // log(1 + exp(v)) for v <= 20, else v (the threshold that Triton and CUDA peers share)
Expr min(const Expr& a, const Expr& b);
Expr max(const Expr& a, const Expr& b);
Expr clamp(const Expr& v, const Expr& low, const Expr& high);

// The leaves, by the field's names.
namespace dsl {
inline const Expr x{Leaf::x};              // input, an element
inline const Expr z{Leaf::z};              // gate input, an element
inline const Expr dt{Leaf::dt};            // step size before bias and softplus, a head
inline const Expr A{Leaf::A};              // negative, a head
inline const Expr dt_bias{Leaf::dt_bias};  // a head
inline const Expr D{Leaf::D};              // a head
inline const Expr delta{Leaf::delta};      // what the delta expression gave, a head
}  // namespace dsl

}  // namespace ssmjit
