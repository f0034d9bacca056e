#include <ssmjit/expression.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <initializer_list>
#include <system_error>
#include <utility>

#include <fmt/core.h>

#include "codegen/expression_node.h"
#include "codegen/fail.h"

namespace ssmjit {
namespace {

using Kind = ExprNode::Kind;

double sigmoid_of(double v) { return 1.0 / (1.0 + std::exp(-v)); }

// Constant-initialised: the leaves of ssmjit::dsl are made before main, in any order.
constexpr ExprFunction kFunctions[] = {
    {"exp", "fn_exp", 1, [](const double* a) { return std::exp(a[0]); }},
    {"log", "fn_log", 1, [](const double* a) { return std::log(a[0]); }},
    {"tanh", "fn_tanh", 1, [](const double* a) { return std::tanh(a[0]); }},
    {"sqrt", "fn_sqrt", 1, [](const double* a) { return std::sqrt(a[0]); }},
    {"abs", "fn_abs", 1, [](const double* a) { return std::fabs(a[0]); }},
    {"relu", "fn_relu", 1, [](const double* a) { return std::fmax(a[0], 0.0); }},
    {"sigmoid", "fn_sigmoid", 1, [](const double* a) { return sigmoid_of(a[0]); }},
    {"silu", "fn_silu", 1, [](const double* a) { return a[0] * sigmoid_of(a[0]); }},
    {"softplus", "fn_softplus", 1, [](const double* a) { return a[0] <= 20.0 ? std::log1p(std::exp(a[0])) : a[0]; }},
    {"min", "fn_min", 2, [](const double* a) { return std::fmin(a[0], a[1]); }},
    {"max", "fn_max", 2, [](const double* a) { return std::fmax(a[0], a[1]); }},
    {"clamp", "fn_clamp", 3, [](const double* a) { return std::fmin(std::fmax(a[0], a[1]), a[2]); }},
};

constexpr const char* kLeafNames[kLeafCount] = {"x", "z", "dt", "A", "dt_bias", "D", "delta"};

const ExprFunction* find_function(std::string_view name) {
  for (const ExprFunction& function : kFunctions) {
    if (name == function.name) return &function;
  }
  return nullptr;
}

std::string known_functions() {
  std::string list;
  for (const ExprFunction& function : kFunctions) list += (list.empty() ? "" : ", ") + std::string(function.name);
  return list;
}

std::string known_leaves() {
  std::string list;
  for (const char* leaf : kLeafNames) list += (list.empty() ? "" : ", ") + std::string(leaf);
  return list;
}

// How tightly a node's text binds: what stands in a place that wants more gets parentheses.
int binding(const ExprNode& node) {
  switch (node.kind) {
    case Kind::add:
    case Kind::subtract:
      return 1;
    case Kind::multiply:
    case Kind::divide:
      return 2;
    case Kind::negate:
      return 3;
    case Kind::constant:
      return std::signbit(node.value) ? 3 : 4;
    case Kind::leaf:
    case Kind::call:
      return 4;
  }
  return 4;
}

enum class Language { text, cuda };

std::string constant_text(double value, Language language) {
  std::string text = fmt::format("{}", value);
  if (language == Language::text) return text;
  if (!std::isfinite(value)) fail(ErrorKind::invalid, "the constant {} has no CUDA C++ literal", value);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text + "f";
}

std::string print(const ExprNode& node, Language language) {
  const auto operand = [&](std::size_t i, int wanted) {
    const ExprNode& child = *node.operands[i].node();
    const std::string text = print(child, language);
    return binding(child) < wanted ? "(" + text + ")" : text;
  };
  // The right operand of a left-associative operator needs to bind tighter than the operator.
  const auto infix = [&](const char* sign) { return operand(0, binding(node)) + sign + operand(1, binding(node) + 1); };
  switch (node.kind) {
    case Kind::leaf:
      return name(node.leaf);
    case Kind::constant:
      return constant_text(node.value, language);
    case Kind::negate:
      return "-" + operand(0, 4);  // "--x" would be a decrement in C++
    case Kind::add:
      return infix(" + ");
    case Kind::subtract:
      return infix(" - ");
    case Kind::multiply:
      return infix(" * ");
    case Kind::divide:
      return infix(" / ");
    case Kind::call: {
      std::string text = language == Language::cuda ? node.function->cuda_name : node.function->name;
      for (std::size_t i = 0; i < node.operands.size(); ++i) text += (i == 0 ? "(" : ", ") + operand(i, 0);
      return text + ")";
    }
  }
  return "";
}

double evaluate_node(const ExprNode& node, const LeafValues& values) {
  double operand[3] = {};
  for (std::size_t i = 0; i < node.operands.size(); ++i) operand[i] = evaluate_node(*node.operands[i].node(), values);
  switch (node.kind) {
    case Kind::leaf:
      return values[static_cast<std::size_t>(node.leaf)];
    case Kind::constant:
      return node.value;
    case Kind::negate:
      return -operand[0];
    case Kind::add:
      return operand[0] + operand[1];
    case Kind::subtract:
      return operand[0] - operand[1];
    case Kind::multiply:
      return operand[0] * operand[1];
    case Kind::divide:
      return operand[0] / operand[1];
    case Kind::call:
      return node.function->evaluate(operand);
  }
  return 0;
}

bool node_uses(const ExprNode& node, Leaf leaf) {
  if (node.kind == Kind::leaf) return node.leaf == leaf;
  for (const Expr& operand : node.operands) {
    if (node_uses(*operand.node(), leaf)) return true;
  }
  return false;
}

void collect_constants(const ExprNode& node, std::vector<double>& out) {
  if (node.kind == Kind::constant) out.push_back(node.value);
  for (const Expr& operand : node.operands) collect_constants(*operand.node(), out);
}

}  // namespace

const char* name(Leaf leaf) {
  const auto i = static_cast<std::size_t>(leaf);
  return i < kLeafCount ? kLeafNames[i] : "unknown";
}

std::vector<double> constants_of(const Expr& expr) {
  std::vector<double> out;
  if (!expr.empty()) collect_constants(*expr.node(), out);
  return out;
}

// Makes nodes, and reads them from text by recursive descent.
class ExprParser {
 public:
  static Expr wrap(ExprNode node) {
    Expr expr;
    expr.node_ = std::make_shared<const ExprNode>(std::move(node));
    return expr;
  }

  static Expr make(Kind kind, std::vector<Expr> operands, const ExprFunction* function = nullptr) {
    ExprNode node;
    node.kind = kind;
    node.function = function;
    // A shared subtree counts once a use: the text holds it that often.
    std::size_t length = 0;
    for (const Expr& operand : operands) {
      if (operand.empty()) fail(ErrorKind::invalid, "an empty expression can't be part of another");
      node.depth = std::max(node.depth, operand.node()->depth + 1);
      length += operand.text().size();
    }
    if (node.depth > kMaxExprDepth) {
      fail(ErrorKind::invalid, "an expression of {} levels; at most {} are allowed", node.depth, kMaxExprDepth);
    }
    node.operands = std::move(operands);
    if (length < kMaxExprText) length = print(node, Language::text).size();
    if (length > kMaxExprText) {
      fail(ErrorKind::invalid, "an expression of {} characters; at most {} are allowed", length, kMaxExprText);
    }
    return wrap(std::move(node));
  }

  static Expr negate(const Expr& operand) {
    if (!operand.empty() && operand.node()->kind == Kind::constant) return Expr(-operand.node()->value);
    return make(Kind::negate, {operand});
  }

  static Expr call(const ExprFunction& function, std::vector<Expr> arguments) {
    return make(Kind::call, std::move(arguments), &function);
  }

  explicit ExprParser(std::string_view text) : text_(text) {}

  Expr parse() {
    if (text_.size() > kMaxExprText) {
      fail(ErrorKind::invalid, "an expression of {} characters; at most {} are allowed", text_.size(), kMaxExprText);
    }
    const Expr expr = sum();
    skip_space();
    if (at_ < text_.size()) wants("an operator or the end");
    return expr;
  }

 private:
  Expr sum() {
    Expr left = product();
    for (;;) {
      if (take('+')) {
        left = make(Kind::add, {left, product()});
      } else if (take('-')) {
        left = make(Kind::subtract, {left, product()});
      } else {
        return left;
      }
    }
  }

  Expr product() {
    Expr left = unary();
    for (;;) {
      if (take('*')) {
        left = make(Kind::multiply, {left, unary()});
      } else if (take('/')) {
        left = make(Kind::divide, {left, unary()});
      } else {
        return left;
      }
    }
  }

  Expr unary() {
    if (++nesting_ > kMaxNesting) {
      fail(ErrorKind::invalid, "nested deeper than {} levels at column {} of {}", kMaxNesting, at_ + 1,
           in_quotes(text_));
    }
    const Expr expr = take('-') ? negate(unary()) : primary();
    --nesting_;
    return expr;
  }

  Expr primary() {
    skip_space();
    if (take('(')) {
      const Expr inside = sum();
      if (!take(')')) wants("\")\"");
      return inside;
    }
    if (at_ < text_.size() && (is_digit(text_[at_]) || text_[at_] == '.')) return number();
    if (at_ < text_.size() && is_letter(text_[at_])) return named();
    wants("a name, a number or \"(\"");
  }

  Expr number() {
    double value = 0;
    const char* const begin = text_.data() + at_;
    const auto [end, error] = std::from_chars(begin, text_.data() + text_.size(), value);
    if (error == std::errc::invalid_argument) wants("a name, a number or \"(\"");
    if (error != std::errc()) {
      fail(ErrorKind::invalid, "number out of range at column {} of {}", at_ + 1, in_quotes(text_));
    }
    at_ += static_cast<std::size_t>(end - begin);
    return Expr(value);
  }

  Expr named() {
    const std::size_t start = at_;
    while (at_ < text_.size() && (is_letter(text_[at_]) || is_digit(text_[at_]))) ++at_;
    const std::string_view word = text_.substr(start, at_ - start);
    const bool called = take('(');
    if (const ExprFunction* function = find_function(word)) {
      if (!called) {
        fail(ErrorKind::invalid, "{} is a function and wants \"(\" after it at column {} of {}", in_quotes(word),
             start + 1, in_quotes(text_));
      }
      return arguments(*function, start);
    }
    for (int i = 0; i < kLeafCount; ++i) {
      if (word != kLeafNames[i]) continue;
      if (!called) return Expr(static_cast<Leaf>(i));
      fail(ErrorKind::invalid, "{} is no function at column {} of {}; known functions are {}", in_quotes(word),
           start + 1, in_quotes(text_), known_functions());
    }
    fail(ErrorKind::invalid, "unknown name {} at column {} of {}; known {} are {}", in_quotes(word), start + 1,
         in_quotes(text_), called ? "functions" : "names", called ? known_functions() : known_leaves());
  }

  Expr arguments(const ExprFunction& function, std::size_t start) {
    std::vector<Expr> given;
    if (!take(')')) {
      do {
        given.push_back(sum());
      } while (take(','));
      if (!take(')')) wants("\",\" or \")\"");
    }
    if (given.size() != function.arity) {
      fail(ErrorKind::invalid, "{} takes {} argument{}, got {} at column {} of {}", function.name, function.arity,
           function.arity == 1 ? "" : "s", given.size(), start + 1, in_quotes(text_));
    }
    return call(function, std::move(given));
  }

  [[noreturn]] void wants(std::string_view what) {
    if (text_.find_first_not_of(" \t\n\r") == std::string_view::npos) {
      fail(ErrorKind::invalid, "an empty text where an expression should stand");
    }
    skip_space();
    if (at_ >= text_.size()) fail(ErrorKind::invalid, "{} ends where {} should stand", in_quotes(text_), what);
    fail(ErrorKind::invalid, "{} at column {} of {} where {} should stand", in_quotes(text_.substr(at_, 1)), at_ + 1,
         in_quotes(text_), what);
  }

  bool take(char c) {
    skip_space();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void skip_space() {
    while (at_ < text_.size() && std::string_view(" \t\n\r").find(text_[at_]) != std::string_view::npos) ++at_;
  }
  static bool is_digit(char c) { return c >= '0' && c <= '9'; }
  static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

  // A level of the tree is printed with at most a minus and a parenthesis.
  static constexpr int kMaxNesting = 2 * kMaxExprDepth;

  std::string_view text_;
  std::size_t at_ = 0;
  int nesting_ = 0;
};

Expr::Expr(Leaf leaf) {
  ExprNode node;
  node.kind = Kind::leaf;
  node.leaf = leaf;
  *this = ExprParser::wrap(std::move(node));
}

Expr::Expr(double constant) {
  ExprNode node;
  node.value = constant;
  *this = ExprParser::wrap(std::move(node));
}

Expr Expr::parse(std::string_view text) { return ExprParser(text).parse(); }

std::string Expr::text() const { return empty() ? "" : print(*node_, Language::text); }
std::string Expr::cuda() const { return empty() ? "" : print(*node_, Language::cuda); }

double Expr::evaluate(const LeafValues& values) const {
  if (empty()) fail(ErrorKind::invalid, "an empty expression has no value");
  return evaluate_node(*node_, values);
}

bool Expr::uses(Leaf leaf) const { return !empty() && node_uses(*node_, leaf); }

Expr Expr::apply(std::string_view function, std::initializer_list<Expr> arguments) {
  const ExprFunction* const found = find_function(function);
  if (found == nullptr) {
    fail(ErrorKind::invalid, "unknown function {}; known functions are {}", in_quotes(function), known_functions());
  }
  if (arguments.size() != found->arity) {
    fail(ErrorKind::invalid, "{} takes {} argument{}, got {}", found->name, found->arity, found->arity == 1 ? "" : "s",
         arguments.size());
  }
  return ExprParser::call(*found, arguments);
}

Expr operator+(const Expr& a, const Expr& b) { return ExprParser::make(Kind::add, {a, b}); }
Expr operator-(const Expr& a, const Expr& b) { return ExprParser::make(Kind::subtract, {a, b}); }
Expr operator*(const Expr& a, const Expr& b) { return ExprParser::make(Kind::multiply, {a, b}); }
Expr operator/(const Expr& a, const Expr& b) { return ExprParser::make(Kind::divide, {a, b}); }
Expr operator-(const Expr& a) { return ExprParser::negate(a); }
Expr exp(const Expr& v) { return Expr::apply("exp", {v}); }
Expr log(const Expr& v) { return Expr::apply("log", {v}); }
Expr tanh(const Expr& v) { return Expr::apply("tanh", {v}); }
Expr sqrt(const Expr& v) { return Expr::apply("sqrt", {v}); }
Expr abs(const Expr& v) { return Expr::apply("abs", {v}); }
Expr relu(const Expr& v) { return Expr::apply("relu", {v}); }
Expr sigmoid(const Expr& v) { return Expr::apply("sigmoid", {v}); }
Expr silu(const Expr& v) { return Expr::apply("silu", {v}); }
Expr softplus(const Expr& v) { return Expr::apply("softplus", {v}); }
Expr min(const Expr& a, const Expr& b) { return Expr::apply("min", {a, b}); }
Expr max(const Expr& a, const Expr& b) { return Expr::apply("max", {a, b}); }
Expr clamp(const Expr& v, const Expr& low, const Expr& high) { return Expr::apply("clamp", {v, low, high}); }

}  // namespace ssmjit
