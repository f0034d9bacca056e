// The verifier rejects wrong replay kernels: emitted sources with one place of their text changed, each for its reason.
#include <ostream>
#include <string>
#include <utility>
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
  return mamba2({.nheads = 4, .head_dim = 16, .dstate = 32, .ngroups = 2})
      .tokens(3)
      .state(DType::bf16)
      .gate(silu(dsl::z))
      .store(Replay{});
}
Description in_fp32() { return step().state(DType::f32); }
Description in_fp16() { return step().state(DType::f16); }
Description by_chance() { return in_fp16().rounding(Stochastic{}); }
Description of_12_tokens() { return step().tokens(12); }

constexpr const char* kAll = "ring_rows=all";
constexpr const char* kLive = "ring_rows=live";
constexpr const char* kBulk = "state_path=bulk,ring_rows=live,heads_per_block=2,stages=2,block_m=16,warps=1";
constexpr const char* kEarly = "ring_rows=live,early_state=true";
constexpr const char* kTwo = "ring_rows=live,precompute_warps=1,precompute_heads=2";
constexpr const char* kTwoEarly = "ring_rows=live,early_state=true,precompute_warps=2,precompute_heads=2";
constexpr const char* kTwoBulk =
    "state_path=bulk,ring_rows=live,heads_per_block=2,stages=2,block_m=16,warps=1,precompute_warps=1,precompute_heads="
    "1";
constexpr const char* kBlocks = "ring_rows=live,block_m=8";

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
  const std::string out = ": out: ", state = ": state: ", stay = "memory that must stay as it was";
  return {
      {"TheLastAcceptedTokenIsLost", step(), kAll, "- start < count;", "- start < count - 1;", state},
      {"TheLastAcceptedTokenIsLostOfLiveOnes", step(), kLive, "      return j < count;", "      return j < count - 1;",
       state},
      {"TheOtherBufferIsRead", step(), kLive, "const int buffer = Cfg::kReplay && start_word > 0 ? 1 : 0;",
       "const int buffer = Cfg::kReplay && start_word > 0 ? 0 : 1;", ""},
      {"TheOtherBufferIsTakenOfBoth", step(), kAll, "return buffer != 0 ? second : first;",
       "return buffer != 0 ? first : second;", state},
      {"BGoesToTheBufferThatIsRead", step(), kLive, "at.place_of_new(t), 1 - buffer));",
       "at.place_of_new(t), buffer));", "", Outcome::nondeterministic},
      {"DeltasGoToTheBufferThatIsRead", step(), kLive,
       "step.ring_delta(slot, head, 1 - buffer) :", "step.ring_delta(slot, head, buffer) :", "old_dt"},
      {"SumsGoToTheBufferThatIsRead", step(), kLive, "step.ring_sum(slot, head + head_mine(k), 1 - buffer)[t]",
       "step.ring_sum(slot, head + head_mine(k), buffer)[t]", "old_cumAdt"},
      {"SumsGoOnFromTheOldOnes", step(), kAll, "scan_lanes(lane < S::kFirstNew ? 0.0f : delta * A);",
       "scan_lanes(delta * A);", "old_cumAdt"},
      {"TheSumIsThatOfTheTokenBefore", step(), kAll, "at.count > 0 ? at.count - 1 : 0);",
       "at.count > 1 ? at.count - 2 : 0);", state},
      {"SumsPastTheCountAreNotMasked", step(), kAll, "used ? old_sum * 1.442695041f : 0.0f", "old_sum * 1.442695041f",
       state},
      {"CountsAreNotClamped", step(), kLive, "count_word < Cfg::kWindow ? count_word : Cfg::kWindow", "count_word",
       state},
      {"AStateThatIsReadyEarlyIsNotStored", step(), kEarly, "if constexpr (S::kReplaysEarly) state.store();", ";",
       state},
      {"AStateThatIsReadyEarlyDoesNotWait", step(), kEarly,
       "grid_dependency_wait();\n    if constexpr (kIsLayer) around.copy_tokens(step);",
       "if constexpr (kIsLayer) around.copy_tokens(step);", "", Outcome::faulty},
      {"AnOldXPastTheCountIsNotMasked", step(), kAll, "(old_in_use >> k & 1u) != 0 ? v[k] : Vec16{}", "v[k]", state},
      {"AnOldBPastTheCountIsNotMasked", step(), kAll, "= used ? word : 0u;", "= word;", state},
      {"XIsWrittenBeforeItIsRead", step(), kAll, "streams.load_old(old_x);",
       "{\n"
       "    for (int k = 0; k < Streams::kNewLoads; ++k)\n"
       "      if (streams.j0 + k * Streams::kRowStep < tokens) store_global<false>(streams.kept_x[k], Vec16{});\n"
       "    streams.load_old(old_x);\n"
       "  }",
       state},
      {"XOfTheNextHead", step(), kBulk, "return pool + ((place * args.nheads + head) *",
       "return pool + ((place * args.nheads + (head + 2) % args.nheads) *", ""},
      {"BIsOfTheFirstGroup", step(), kAll, "* groups + group()) * Cfg::kDstate", "* groups) * Cfg::kDstate", ""},
      {"CIsOfTheFirstGroup", step(), kAll,
       "args.C_stride, args.C_token_stride, last(t),\n                 group() * Cfg::kDstate",
       "args.C_stride, args.C_token_stride, last(t),\n                 0", out},
      {"DecayIsThatOfTheTokenBefore", step(), kLive, "s[n] = shared.row[place][S::kFirstNew + g + 8 * n][0];",
       "s[n] = shared.row[place][S::kFirstNew + g + 8 * n - 1][0];", out},
      {"TheOutputDecaysByTheOldSumToo", step(), kAll, "const float base = at.flush && !Cfg::kReplay ? all_old : 0.0f;",
       "const float base = all_old;", out},
      {"TokensFrom8OnHaveNoWeights", of_12_tokens(), kAll, "!S::kPrecomputed && i < S::kWeighedTiles;", "i < 1;", out},
      {"OutputComesFromTheStateAsStored", in_fp16(), kAll, "if constexpr (Cfg::kReplay && !is_same<State, Operand>) {",
       "if constexpr (false) {", out},
      {"OutputComesFromTheStateBefore", step(), kAll, "step.flush(y, scale,",
       "for (int c = 0; c < S::kChunks; ++c)\n"
       "        for (int m = 0; m < S::kSteps; ++m)\n"
       "          for (int p = 0; p < S::kTiles; ++p) {\n"
       "            RingSpan<Cfg> h;\n"
       "            h.raw = state.get(p, c);\n"
       "            C_state.contract(y[p], c * S::kSteps + m, h.operand(2 * m), h.operand(2 * m + 1));\n"
       "          }\n"
       "      RingSums<Cfg> unused[S::kTiles] = {};\n"
       "      step.flush(unused, scale,",
       out},
      {"BOfTwoLaunchesGoesToTheBufferThatIsRead", step(), kTwo, "step.ring_B_row(slot, 8 * j + g, 1 - buffer)",
       "step.ring_B_row(slot, 8 * j + g, buffer)", "old_B"},
      {"SumsOfTwoLaunchesGoToTheBufferThatIsRead", step(), kTwo, "step.ring_sum(slot, head + k, 1 - buffer)[lane]",
       "step.ring_sum(slot, head + k, buffer)[lane]", "old_cumAdt"},
      {"LaterTokensWeighInTwoLaunches", step(), kTwo, "of <= t && of < Cfg::kTokens", "of < Cfg::kTokens", out},
      {"WeightsOfTheNextHead", step(), kTwo, "Weights::record(args, row, head + k)",
       "Weights::record(args, row, head + (k ^ 1))", out},
      {"WeightsOfTheFirstHeadForAll", step(), kTwoBulk, "record(args, row, head + i + 1)", "record(args, row, head)",
       out},
      {"TokensFrom8OnDecayAsThoseBefore", of_12_tokens(), kTwo, "lane / 4 + 8 * n] = float_bits(decay[n])",
       "lane / 4 + 8 * n] = float_bits(decay[0])", out},
      {"TheFirstOfTwoLaunchesDoesNotWait", step(), kTwoEarly,
       "if constexpr (Cfg::kEarlyState) grid_dependency_wait();\n\n  Dt dt[kHeads];", "Dt dt[kHeads];", "",
       Outcome::faulty},
      {"TheFirstOfTwoLaunchesReadsBeforeItIsToWait", step(), kTwoEarly,
       "if (args.pdl != kPdlOff && (!Cfg::kEarlyState || args.pdl == kPdlWaitFirst))",
       "if (args.pdl != kPdlOff && !Cfg::kEarlyState)", "before the wait", Outcome::faulty},
      {"TheSecondOfTwoLaunchesDoesNotWait", step(), kTwo,
       "grid_dependency_wait();\n    if constexpr (kIsLayer) around.copy_tokens(step);",
       "if constexpr (kIsLayer) around.copy_tokens(step);", "", Outcome::faulty},
      {"TheSeedOfTheFirstSlotForAll", by_chance(), kAll, "wide(slot, args.rand_seed_stride)", "0",
       "not what their random bits round them to"},
  };
}

class ReplayVerifierRejects : public testing::TestWithParam<Wrong> {};

TEST_P(ReplayVerifierRejects, WithItsReason) {
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

INSTANTIATE_TEST_SUITE_P(Replay, ReplayVerifierRejects, testing::ValuesIn(every_mutant()),
                         [](const auto& info) { return info.param.name; });

TEST(ReplayVerifier, PassesTheKernelsThatTheMutantsAreMadeFrom) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  VerifyOptions options;
  options.on = VerifyOn::cpu;
  const std::pair<Description, const char*> kernels[] = {
      {step(), kAll},     {step(), kBulk},    {step(), kEarly},    {step(), kBlocks},
      {in_fp32(), kLive}, {in_fp16(), kAll},  {by_chance(), kAll}, {of_12_tokens(), kEarly},
      {step(), kTwo},     {step(), kTwoBulk}, {step(), kTwoEarly}, {of_12_tokens(), kTwo}};
  for (const auto& [d, changes] : kernels) {
    const Plan plan = Plan::parse(changes, default_plan(d, options.cpu.arch, 8));
    const Verdict verdict = verify(d, {plan}, options).front();
    EXPECT_EQ(verdict.outcome, Outcome::ok) << d.summary() << testing::PrintToString(verdict.failures);
    EXPECT_GT(verdict.y_error, 0);
    EXPECT_GT(verdict.state_error, 0);
  }
}

}  // namespace
}  // namespace ssmjit
