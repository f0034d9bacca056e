// The tree behind an Expr.
#pragma once

#include <cstddef>
#include <vector>

#include <ssmjit/expression.h>

namespace ssmjit {

// A function that expressions may call. `cuda_name` is its twin in templates/maths.cuh.
struct ExprFunction {
  const char* name;
  const char* cuda_name;
  std::size_t arity;
  double (*evaluate)(const double* arguments);
};

struct ExprNode {
  enum class Kind { leaf, constant, negate, add, subtract, multiply, divide, call };

  Kind kind = Kind::constant;
  Leaf leaf = Leaf::x;                     // of a leaf
  double value = 0;                        // of a constant; a negated constant is folded into a negative one
  const ExprFunction* function = nullptr;  // of a call
  std::vector<Expr> operands;              // never empty ones
  int depth = 1;                           // levels, this one included
};

// What an expression may be at most, so that recursion over it is bounded and its text stays readable.
inline constexpr int kMaxExprDepth = 64;
inline constexpr std::size_t kMaxExprText = 4096;

// All constants of the tree, in the order of the text.
std::vector<double> constants_of(const Expr& expr);

}  // namespace ssmjit
