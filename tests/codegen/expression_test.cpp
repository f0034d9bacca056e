#include <ssmjit/expression.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <ssmjit/error.h>

#include "codegen/expression_node.h"

namespace ssmjit {
namespace {

namespace d = dsl;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

LeafValues values_with(Leaf leaf, double value) {
  LeafValues values{};
  values[static_cast<std::size_t>(leaf)] = value;
  return values;
}

double at_x(const Expr& expr, double x) { return expr.evaluate(values_with(Leaf::x, x)); }

// The sentence of the Error that parse() throws.
std::string refusal(const std::string& text) {
  try {
    Expr::parse(text);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::invalid);
    return error.what();
  }
  ADD_FAILURE() << "parsed: " << text;
  return "";
}

// Equal node by node, where == compares the text only.
bool same_tree(const Expr& a, const Expr& b) {
  if (a.empty() || b.empty()) return a.empty() == b.empty();
  const ExprNode& left = *a.node();
  const ExprNode& right = *b.node();
  if (left.kind != right.kind || left.operands.size() != right.operands.size()) return false;
  if (left.kind == ExprNode::Kind::leaf && left.leaf != right.leaf) return false;
  if (left.kind == ExprNode::Kind::constant &&
      (left.value != right.value || std::signbit(left.value) != std::signbit(right.value))) {
    return false;
  }
  if (left.function != right.function) return false;
  for (std::size_t i = 0; i < left.operands.size(); ++i) {
    if (!same_tree(left.operands[i], right.operands[i])) return false;
  }
  return true;
}

// --- Values. Each twin is written from the definition, not from the library.

struct Twin {
  const char* text;
  double (*value)(double x);
};

const Twin kTwins[] = {
    {"exp(x)", [](double x) { return std::pow(2.718281828459045235360287, x); }},
    {"log(abs(x) + 1)", [](double x) { return std::log2((x < 0 ? -x : x) + 1) * 0.693147180559945309417232; }},
    {"tanh(x)", [](double x) { return 1 - 2 / (std::exp(2 * x) + 1); }},
    {"sqrt(abs(x))", [](double x) { return std::pow(x < 0 ? -x : x, 0.5); }},
    {"abs(x)", [](double x) { return x < 0 ? -x : x; }},
    {"relu(x)", [](double x) { return x > 0 ? x : 0; }},
    {"sigmoid(x)", [](double x) { return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x)); }},
    {"silu(x)", [](double x) { return x / (1 + std::exp(-x)); }},
    {"softplus(x)", [](double x) { return x > 20 ? x : std::log(1 + std::exp(x)); }},
    {"min(x, 0.5)", [](double x) { return x < 0.5 ? x : 0.5; }},
    {"max(x, 0.5)", [](double x) { return x > 0.5 ? x : 0.5; }},
    {"clamp(x, -0.25, 3)", [](double x) { return x < -0.25 ? -0.25
                                                 : x > 3   ? 3
                                                           : x; }},
};

TEST(Expression, EveryFunctionHasTheValueOfItsDefinition) {
  for (const Twin& twin : kTwins) {
    const Expr expr = Expr::parse(twin.text);
    for (double x : {-21.0, -5.0, -1.0, -0.25, -1e-3, 0.0, 1e-3, 0.5, 1.0, 3.0, 5.0, 19.9, 20.0, 20.1, 30.0}) {
      const double wanted = twin.value(x);
      // Near 0, log(1 + exp(v)) and its like lose digits in the twin, not in the library.
      EXPECT_NEAR(at_x(expr, x), wanted, 1e-12 * std::fabs(wanted) + 1e-15) << twin.text << " at " << x;
    }
  }
}

TEST(Expression, SoftplusIsItsArgumentJustAboveTheThresholdAndNotAtIt) {
  const Expr expr = softplus(d::x);
  EXPECT_EQ(at_x(expr, 20.000001), 20.000001);
  EXPECT_GT(at_x(expr, 20.0), 20.0);
  EXPECT_EQ(at_x(expr, 1e6), 1e6);
}

TEST(Expression, OperatorsHaveTheUsualPrecedence) {
  LeafValues values{};
  values[static_cast<std::size_t>(Leaf::x)] = 3;
  values[static_cast<std::size_t>(Leaf::z)] = 5;
  EXPECT_EQ(Expr::parse("x + z * 2").evaluate(values), 13);
  EXPECT_EQ(Expr::parse("x - z - 2").evaluate(values), -4);
  EXPECT_EQ(Expr::parse("x - (z - 2)").evaluate(values), 0);
  EXPECT_EQ(Expr::parse("30 / x / z").evaluate(values), 2);
  EXPECT_EQ(Expr::parse("-x * z").evaluate(values), -15);
  EXPECT_EQ(Expr::parse("--x").evaluate(values), 3);
  EXPECT_EQ(Expr::parse("2 - -x").evaluate(values), 5);
}

TEST(Expression, UsesSeesLeavesAnywhereInTheTree) {
  const Expr expr = clamp(softplus(d::dt + d::dt_bias), 0.001, 0.1);
  EXPECT_TRUE(expr.uses(Leaf::dt));
  EXPECT_TRUE(expr.uses(Leaf::dt_bias));
  EXPECT_FALSE(expr.uses(Leaf::x));
  EXPECT_FALSE(Expr().uses(Leaf::x));
}

// --- Text.

TEST(Expression, PrintsWhatAPersonWouldWrite) {
  EXPECT_EQ(clamp(softplus(d::dt + d::dt_bias), 0.001, 0.1).text(), "clamp(softplus(dt + dt_bias), 0.001, 0.1)");
  EXPECT_EQ(exp(d::A * d::delta).text(), "exp(A * delta)");
  EXPECT_EQ((d::D * d::x).text(), "D * x");
  EXPECT_EQ(((d::x + d::z) * 20).text(), "(x + z) * 20");
  EXPECT_EQ((d::x - (d::z - d::D)).text(), "x - (z - D)");
  EXPECT_EQ((d::x - d::z - d::D).text(), "x - z - D");
  EXPECT_EQ((d::x / (d::z * d::D)).text(), "x / (z * D)");
  EXPECT_EQ((-(d::x * d::z)).text(), "-(x * z)");
  EXPECT_EQ((-d::x * d::z).text(), "-x * z");
  EXPECT_EQ((-(-d::x)).text(), "-(-x)");
  EXPECT_EQ(Expr().text(), "");
}

TEST(Expression, NumbersAreShortAndReadBackExactly) {
  for (double value : {0.0, -0.0, 1.0, 20.0, 0.001, 0.1, 1.0 / 3, 1e-30, 6.02e23, 123456789.0, -2.5}) {
    const Expr back = Expr::parse(Expr(value).text());
    ASSERT_EQ(back.node()->kind, ExprNode::Kind::constant);
    EXPECT_EQ(back.node()->value, value);
    EXPECT_EQ(std::signbit(back.node()->value), std::signbit(value));
  }
  EXPECT_EQ(Expr(0.001).text(), "0.001");
  EXPECT_EQ(Expr(20).text(), "20");
}

TEST(Expression, AMinusBeforeANumberBelongsToIt) {
  EXPECT_TRUE(same_tree(Expr::parse("-1.5"), Expr(-1.5)));
  EXPECT_TRUE(same_tree(-Expr(1.5), Expr(-1.5)));
  EXPECT_TRUE(same_tree(Expr::parse((d::x - Expr(-1.5)).text()), d::x - Expr(-1.5)));
}

Expr random_tree(std::mt19937_64& random, int depth) {
  const auto below = [&](std::uint64_t n) { return random() % n; };
  const auto deeper = [&] { return random_tree(random, depth - 1); };
  if (depth == 0 || below(8) == 0) {
    if (below(3) == 0) return std::ldexp(static_cast<double>(below(2001)) - 1000, static_cast<int>(below(40)) - 20);
    return static_cast<Leaf>(below(kLeafCount));
  }
  switch (below(10)) {
    case 0:
      return deeper() + deeper();
    case 1:
      return deeper() - deeper();
    case 2:
      return deeper() * deeper();
    case 3:
      return deeper() / deeper();
    case 4:
      return -deeper();
    case 5:
      return clamp(deeper(), deeper(), deeper());
    case 6:
      return min(deeper(), deeper());
    case 7:
      return max(deeper(), deeper());
    default: {
      constexpr const char* kUnary[] = {"exp", "log", "tanh", "sqrt", "abs", "relu", "sigmoid", "silu", "softplus"};
      return Expr::apply(kUnary[below(std::size(kUnary))], {deeper()});
    }
  }
}

TEST(Expression, RandomTreesSurviveTheirTextAndKeepTheirValue) {
  std::mt19937_64 random(20240817);
  for (int i = 0; i < 2000; ++i) {
    const Expr expr = random_tree(random, 1 + i % 5);
    const Expr back = Expr::parse(expr.text());
    ASSERT_TRUE(same_tree(expr, back)) << expr.text() << "\n" << back.text();
    ASSERT_EQ(expr, back);
    LeafValues values{};
    for (double& value : values) value = static_cast<double>(random() % 4001) / 1000 - 2;
    const double wanted = expr.evaluate(values);
    const double got = back.evaluate(values);
    ASSERT_TRUE(got == wanted || (std::isnan(got) && std::isnan(wanted))) << expr.text();
  }
}

TEST(Expression, RandomBytesAreRefusedAndNeverCrash) {
  std::mt19937_64 random(7);
  constexpr std::string_view kAlphabet = "x z dt()+-*/,.0123456789e_expminclampA\n\xff";
  int parsed = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string text;
    for (std::uint64_t n = random() % 24; n > 0; --n) text += kAlphabet[random() % kAlphabet.size()];
    try {
      const Expr expr = Expr::parse(text);
      EXPECT_TRUE(same_tree(Expr::parse(expr.text()), expr)) << text;
      ++parsed;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::invalid);
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    }
  }
  EXPECT_GT(parsed, 20);
}

// --- CUDA.

TEST(Expression, CudaNamesFunctionsAsTheTemplatesDoAndEndsNumbersInF) {
  EXPECT_EQ(clamp(softplus(d::dt + d::dt_bias), 0.001, 20).cuda(),
            "fn_clamp(fn_softplus(dt + dt_bias), 0.001f, 20.0f)");
  EXPECT_EQ(silu(d::z).cuda(), "fn_silu(z)");
  EXPECT_EQ((-(-d::x)).cuda(), "-(-x)");
  EXPECT_EQ((d::x - Expr(-2)).cuda(), "x - -2.0f");
  EXPECT_EQ(Expr(1e-30).cuda(), "1e-30f");
  EXPECT_EQ(Expr(1e20).cuda(), "1e+20f");
}

TEST(Expression, CudaHasNoLiteralForInfinity) { EXPECT_THROW(Expr(kInfinity).cuda(), Error); }

// --- Refusals.

TEST(Expression, AnUnknownFunctionIsNamedWithItsPlaceAndThoseThatAreKnown) {
  EXPECT_EQ(refusal("sofplus(dt)"),
            "unknown name \"sofplus\" at column 1 of \"sofplus(dt)\"; known functions are exp, log, tanh, sqrt, abs, "
            "relu, sigmoid, silu, softplus, min, max, clamp");
}

TEST(Expression, AnUnknownLeafIsNamedWithThoseThatAreKnown) {
  EXPECT_EQ(refusal("exp(a * delta)"),
            "unknown name \"a\" at column 5 of \"exp(a * delta)\"; known names are x, z, dt, A, dt_bias, D, delta");
}

TEST(Expression, EveryKindOfBadTextSaysWhatStoodWhere) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "an empty text"},
      {"   ", "an empty text"},
      {"x +", "ends where a name, a number or \"(\" should stand"},
      {"(x", "ends where \")\" should stand"},
      {"x)", "\")\" at column 2 of \"x)\" where an operator or the end should stand"},
      {"x z", "\"z\" at column 3"},
      {"2x", "\"x\" at column 2"},
      {"0.001f", "\"f\" at column 6"},
      {"min(x)", "min takes 2 arguments, got 1 at column 1"},
      {"exp()", "exp takes 1 argument, got 0"},
      {"exp(x, z)", "exp takes 1 argument, got 2"},
      {"clamp(x, 0", "ends where \",\" or \")\" should stand"},
      {"softplus + 1", "\"softplus\" is a function and wants \"(\" after it"},
      {"dt(3)", "\"dt\" is no function"},
      {"1e999", "number out of range"},
      {"x ** 2", "\"*\" at column 4"},
      {"x; y", "\";\" at column 2"},
      {".", "\".\" at column 1"},
      {"inf", "unknown name \"inf\""},
      {std::string("x\0y", 3), "at column 2"},
      {"\xc3\xa9", "\"?\" at column 1"},
  };
  for (const auto& [text, part] : cases) {
    EXPECT_NE(refusal(text).find(part), std::string::npos) << text << "\n" << refusal(text);
  }
}

TEST(Expression, DeepNestingIsRefusedBeforeItCostsTheStack) {
  EXPECT_NE(refusal(std::string(2000, '(') + "x" + std::string(2000, ')')).find("nested deeper"), std::string::npos);
  EXPECT_NE(refusal(std::string(2000, '-') + "x").find("nested deeper"), std::string::npos);
  Expr expr = d::x;
  EXPECT_THROW(
      {
        for (int i = 0; i < 100; ++i) expr = exp(expr);
      },
      Error);
}

TEST(Expression, TheDeepestTreeAllowedStillReadsBack) {
  Expr negated = d::x;
  Expr summed = d::x;
  for (int i = 1; i < kMaxExprDepth; ++i) {
    negated = -negated;
    summed = d::x - summed;
  }
  EXPECT_TRUE(same_tree(Expr::parse(negated.text()), negated));
  EXPECT_TRUE(same_tree(Expr::parse(summed.text()), summed));
}

TEST(Expression, AbsurdLengthIsRefused) {
  EXPECT_NE(refusal("x" + std::string(5000, ' ')).find("at most 4096"), std::string::npos);
  Expr doubled = d::x;  // a tree that shares its parts is small in memory, not as text
  EXPECT_THROW(
      {
        for (int i = 0; i < 60; ++i) doubled = doubled + doubled;
      },
      Error);
}

TEST(Expression, AnEmptyExpressionIsOnlyComparedAndTested) {
  EXPECT_TRUE(Expr().empty());
  EXPECT_EQ(Expr(), Expr());
  EXPECT_FALSE(Expr() == d::x);
  EXPECT_THROW(exp(Expr()), Error);
  EXPECT_THROW(-Expr(), Error);
  EXPECT_THROW(Expr().evaluate({}), Error);
}

TEST(Expression, ApplyRefusesUnknownFunctionsAndWrongCounts) {
  EXPECT_THROW(Expr::apply("erf", {d::x}), Error);
  EXPECT_THROW(Expr::apply("min", {d::x}), Error);
  EXPECT_EQ(Expr::apply("min", {d::x, 2}).text(), "min(x, 2)");
}

}  // namespace
}  // namespace ssmjit
