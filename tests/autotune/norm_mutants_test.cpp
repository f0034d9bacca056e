// The verifier rejects wrong norm kernels: emitted sources with one place of their text changed, each for its reason.
#include <ostream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/cpu.h>
#include <ssmjit/source.h>
#include <ssmjit/tune.h>

namespace ssmjit {
namespace {

using testing::AnyOf;
using testing::Contains;
using testing::HasSubstr;

Description step() {
  return gated_norm({.channels = 1536, .group_size = 512, .gate_expr = silu(dsl::z), .has_bias = true}).tokens(2);
}
Description gate_last() {
  Description d = step();
  d.norm->before_gate = true;
  return d;
}
Description in_fp32() { return step().input(DType::f32).weights(DType::f32); }
Description anywhere() { return step().unaligned_rows(); }

constexpr const char* kOneWarp = "warps=1,heads_per_block=1";
constexpr const char* kTwoWarps = "warps=2,heads_per_block=1";
constexpr const char* kTwoGroups = "warps=4,heads_per_block=2";

struct Wrong {
  std::string name;
  Description description;
  const char* plan;          // changes of the default one
  std::string right, wrong;  // text of the emitted source, and what stands in its place
  std::string reason;        // part of a sentence of the verdict
  Outcome outcome = Outcome::wrong;
};
void PrintTo(const Wrong& w, std::ostream* out) { *out << w.name; }

std::vector<Wrong> every_mutant() {
  const std::string out = ": out: ";
  return {
      {"MissedGate", step(), kOneWarp, "if constexpr (!Cfg::kBeforeGate) u[v][e] *= gate[v][e];", ";", out},
      {"TheGateIsAppliedAfterTheNorm", step(), kOneWarp, "kBeforeGate = false;", "kBeforeGate = true;", out},
      {"TheGateIsAppliedBeforeTheNorm", gate_last(), kOneWarp, "kBeforeGate = true;", "kBeforeGate = false;", out},
      {"SigmoidInPlaceOfSilu", step(), kOneWarp, "return v * reciprocal_fast_f32", "return reciprocal_fast_f32", out},
      {"MissedWeight", step(), kOneWarp, "u[v][e] * scale * w[e]", "u[v][e] * scale", out},
      {"WeightOfTheFirstGroup", step(), kOneWarp, "static_cast<const Weight*>(args.weight) + channel + element(v)",
       "static_cast<const Weight*>(args.weight) + lane * S::kWidth + element(v)", out},
      {"MissedBias", step(), kOneWarp, "if constexpr (Cfg::kHasBias) y[e] += b[e];", ";", out},
      {"BiasAfterTheGate", gate_last(), kOneWarp,
       "if constexpr (Cfg::kHasBias) y[e] += b[e];\n"
       "      if constexpr (Cfg::kHasGate && Cfg::kBeforeGate) y[e] *= gate[v][e];",
       "if constexpr (Cfg::kHasGate && Cfg::kBeforeGate) y[e] *= gate[v][e];\n"
       "      if constexpr (Cfg::kHasBias) y[e] += b[e];",
       out},
      {"MissedEps", step(), kOneWarp, "+ Cfg::kEps)", ")", out},
      {"AnotherEps", in_fp32(), kTwoWarps, "kEps = 1e-05f", "kEps = 1e-06f", out},
      {"TheMeanIsOfOneMore", in_fp32(), kTwoWarps, "1.0f / static_cast<float>(Cfg::kGroupSize)",
       "1.0f / static_cast<float>(Cfg::kGroupSize + 1)", out},
      {"TheSumIsNotDivided", step(), kOneWarp, "sum * (1.0f / static_cast<float>(Cfg::kGroupSize))", "sum", out},
      {"TheMeanIsSubtractedToo", step(), kOneWarp, "const float scale = ",
       "float total = 0.0f;\n"
       "  for (int v = 0; v < S::kVectors; ++v)\n"
       "    for (int e = 0; e < S::kWidth; ++e) total += u[v][e];\n"
       "  total = sum_lanes(total) / Cfg::kGroupSize;\n"
       "  for (int v = 0; v < S::kVectors; ++v)\n"
       "    for (int e = 0; e < S::kWidth; ++e) u[v][e] -= total;\n"
       "  const float scale = ",
       out},
      {"ASumOfTheFirstWarpAlone", step(), kTwoWarps, "sums[w % 4] += of_warps[place][w];",
       "sums[w % 4] += w == 0 ? of_warps[place][w] : 0.0f;", out},
      {"TheSumsOfTheFirstGroupForBoth", step(), kTwoGroups, "sums[w % 4] += of_warps[place][w];",
       "sums[w % 4] += of_warps[0][w];", out},
      {"TheSumsAreReadBeforeAllHaveWritten", step(), kTwoWarps, "sync_block();", ";", "", Outcome::faulty},
      {"ALaneSumsItsFirstVectorAlone", step(), kOneWarp, "squares[part] = fma_f32(u[v][e], u[v][e], squares[part]);",
       "if (v == 0) squares[part] = fma_f32(u[v][e], u[v][e], squares[part]);", out},
      {"ZIsOfTheFirstToken", step(), kOneWarp, "args.z_stride, args.z_token_stride", "args.z_stride, 0", out},
      {"RequestsAreOneTokenApart", step(), kOneWarp, "args.x_stride, args.x_token_stride",
       "args.x_token_stride, args.x_token_stride", ""},
      {"TheLastGroupOfAnOddRowIsLost", step(), kTwoGroups, "group * Cfg::kGroupSize < args.channels",
       "(group + 1) * Cfg::kGroupSize < args.channels", out},
      {"AGroupThatThereIsNotIsWritten", step(), kTwoGroups, "|| group * Cfg::kGroupSize < args.channels", "|| true", "",
       Outcome::faulty},
      {"ElementsPastTheGroupAreWritten", anywhere(), "warps=10,heads_per_block=1", "(!S::kRagged || ", "(true || ", "",
       Outcome::faulty},
      {"XIsReadBeforeTheWait", step(), kOneWarp, "if (!Cfg::kEarlyState || args.pdl == kPdlWaitFirst) ",
       "if (args.pdl == 7) ", "before the wait", Outcome::faulty},
      {"RoundedToTheInputBeforeTheWeight", step(), kOneWarp, "u[v][e] * scale * w[e]",
       "widen([&] { Input r; narrow(u[v][e] * scale, r); return r; }()) * w[e]", "rounded once"},
  };
}

class NormVerifierRejects : public testing::TestWithParam<Wrong> {};

TEST_P(NormVerifierRejects, WithItsReason) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Wrong& wrong = GetParam();
  const Description& d = wrong.description;
  VerifyOptions options;
  options.on = VerifyOn::cpu;
  const Plan plan = Plan::parse(wrong.plan, default_plan(d, options.cpu.arch, 8));
  options.source = emit(d, plan, options.cpu.arch).text;
  options.source_name = "mine.cu";
  const std::size_t at = options.source.find(wrong.right);
  ASSERT_NE(at, std::string::npos) << wrong.right;
  options.source.replace(at, wrong.right.size(), wrong.wrong);
  const Verdict verdict = verify(d, {plan}, options).front();
  EXPECT_THAT(verdict.outcome, AnyOf(wrong.outcome, Outcome::faulty)) << name(verdict.outcome);
  EXPECT_THAT(verdict.failures, Contains(HasSubstr(wrong.reason)));
}

INSTANTIATE_TEST_SUITE_P(Norm, NormVerifierRejects, testing::ValuesIn(every_mutant()),
                         [](const auto& info) { return info.param.name; });

TEST(NormVerifier, PassesTheKernelsThatTheMutantsAreMadeFrom) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  VerifyOptions options;
  options.on = VerifyOn::cpu;
  for (const Description& d : {step(), gate_last(), in_fp32(), anywhere()})
    for (const char* changes : {kOneWarp, kTwoWarps, kTwoGroups}) {
      const Plan plan = Plan::parse(changes, default_plan(d, options.cpu.arch, 8));
      const Verdict verdict = verify(d, {plan}, options).front();
      EXPECT_EQ(verdict.outcome, Outcome::ok) << d.summary() << testing::PrintToString(verdict.failures);
      EXPECT_GT(verdict.y_error, 0);
    }
}

}  // namespace
}  // namespace ssmjit
