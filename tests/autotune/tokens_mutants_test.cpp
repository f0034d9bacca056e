// The verifier rejects wrong update kernels of several tokens: emitted sources with one place of their text changed,
// each for its reason.
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

Description of(int tokens) {
  return mamba2({.nheads = 4, .head_dim = 16, .dstate = 64, .ngroups = 2}).state(DType::bf16).tokens(tokens);
}
Description snapshots() { return of(4).store(Snapshots{}); }
Description slots() { return of(4).store(Slots{}).gate(silu(dsl::z)); }
Description tree() { return of(4).store(Snapshots{}).tree(); }
Description accepted() { return of(3).accepted_counts(); }
Description by_chance() { return of(3).store(Slots{}).rounding(Stochastic{}); }
Description packed() { return of(18).varlen(); }
Description bytes() { return of(3).store(Slots{}).state(DType::i8); }

struct Wrong {
  std::string name;
  Description description;
  std::string right, wrong;  // of the source
  std::string reason;        // in a failure
  Outcome outcome = Outcome::wrong;
};
void PrintTo(const Wrong& w, std::ostream* out) { *out << w.name; }

std::vector<Wrong> every_mutant() {
  const char* out = "out";
  const char* state = "state";
  return {
      {"BAndCOfAnotherGroup", snapshots(), "head / Cfg::kHeadsPerGroup", "head % Cfg::kHeadsPerGroup", out},
      {"TheDecayOfTheTokenBefore", snapshots(), "decay = shuffle(of_decay, t)",
       "decay = shuffle(of_decay, t > 0 ? t - 1 : 0)", state},
      {"AStaleC", snapshots(), "token.C[v].load(stage.C[t]", "token.C[v].load(stage.C[t > 0 ? t - 1 : 0]", out},
      {"TheSkipIsForgotten", snapshots(), "v += Cfg::skip(D, ", "v += 0.0f * Cfg::skip(D, ", out},
      {"TheGateOfAnotherRow", slots(), "widen(stage.z[t][own + i])", "widen(stage.z[t][0])", out},
      {"TheStateIsRoundedBetweenTokens", snapshots(), "      token = ahead;",
       "      token = ahead;\n"
       "      for (auto& r : state.v)\n"
       "        for (auto& v : r)\n"
       "          for (float& e : v) {\n"
       "            bf16 n;\n"
       "            narrow(e, n);\n"
       "            e = widen(n);\n"
       "          }",
       state},
      {"TheSlotOfTheNextToken", slots(), "shuffle_index(target, t)", "shuffle_index(target, t ^ 1)", state},
      {"TheSlotThatIsReadIsWrittenToo", slots(), "if constexpr (Cfg::kStore != StateStore::slots) {\n    i64 to",
       "{\n    i64 to", state},
      {"APadOfTheTargetsIsASlot", slots(), "if (!live || !at.usable(target, args.slots)) target = -1;",
       "if (!live || target >= args.slots) target = -1;", state},
      {"TheSnapshotOfTheNextStep", snapshots(), "at.snapshot_at(snapshot, chunk + t)",
       "at.snapshot_at(snapshot, (chunk + t) ^ 1)", state},
      {"ADisabledStateIsWritten", snapshots(), "store = live && args.disable_state_update == 0", "store = live", state},
      {"TheParentOfAnotherToken", tree(), "shuffle(parent, t)", "shuffle(parent, t > 0 ? t - 1 : 0)", state},
      {"TheParentIsNotRounded", tree(), "at.widen_state(state, loaded);\n        }", "}", state},
      {"AcceptedCountsAreOffByOne", accepted(), "accepted : Cfg::kTokens) - 1", "accepted : Cfg::kTokens)", ""},
      {"AcceptedCountsBelowOneAreNotClamped", accepted(), "accepted < 1 ", "accepted < -9 ", ""},
      {"RandomBitsOfTheFirstToken", by_chance(), "place + 8 * d, token)", "place + 8 * d, 0)", state},
      {"RandomBitsOfTheSlotThatIsRead", by_chance(), "static_cast<u64>(slot) * static_cast<u64>(args.nheads)",
       "static_cast<u64>(0 * slot) * static_cast<u64>(args.nheads)", state},
      {"TokensOfTheRequestBefore", packed(), "first = start;", "first = start > 0 ? start - 1 : 0;", out},
      {"AFixedNumberOfTokens", packed(), "? stop - start : Cfg::kTokens;", "? Cfg::kTokens : Cfg::kTokens;", ""},
      {"TheScaleOfAnotherRow", bytes(), "scales + lane_row + r, loaded", "scales + first_row + r, loaded", out},
      {"LanesThatDoNotWaitForTheInputs", snapshots(), "    copy_async_wait<0>();\n    sync_block();\n\n",
       "    sync_block();\n\n", "", Outcome::faulty},
      {"TokensThatOvertakeThoseBefore", packed(), "sync_block();  // all have read the tokens before", "", "race",
       Outcome::faulty},
      {"TheStateIsAskedForAfterTheInputsWithoutTheWait", snapshots(),
       "    locate();\n    request_state();\n    grid_dependency_wait();", "    locate();\n    request_state();",
       "before the wait", Outcome::faulty},
  };
}

class TokensVerifierRejects : public testing::TestWithParam<Wrong> {};

Plan plan_of(const Description& d, const Arch& arch, bool early) {
  return Plan::parse(std::string("block_m=16,warps=2,lanes_per_row=") + (d.has_state_scale() ? "4" : "8") +
                         (early ? ",early_state=true" : ""),
                     default_plan(d, arch, 8));
}

TEST_P(TokensVerifierRejects, WithItsReason) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Wrong& wrong = GetParam();
  const Description& d = wrong.description;
  VerifyOptions options;
  options.on = VerifyOn::cpu;
  const Plan plan = plan_of(d, options.cpu.arch, wrong.right.find("grid_dependency_wait") != std::string::npos);
  options.source = emit(d, plan, options.cpu.arch).text;
  options.source_name = "mine.cu";
  const std::size_t at = options.source.find(wrong.right);
  ASSERT_NE(at, std::string::npos) << wrong.right;
  options.source.replace(at, wrong.right.size(), wrong.wrong);
  const Verdict verdict = verify(d, {plan}, options).front();
  EXPECT_THAT(verdict.outcome, AnyOf(wrong.outcome, Outcome::faulty)) << name(verdict.outcome);
  EXPECT_THAT(verdict.failures, Contains(HasSubstr(wrong.reason)));
}

INSTANTIATE_TEST_SUITE_P(Tokens, TokensVerifierRejects, testing::ValuesIn(every_mutant()),
                         [](const auto& info) { return info.param.name; });

TEST(TokensVerifier, PassesTheKernelsThatTheMutantsAreMadeFrom) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  VerifyOptions options;
  options.on = VerifyOn::cpu;
  for (const Description& d : {snapshots(), slots(), tree(), accepted(), by_chance(), packed(), bytes()})
    for (const bool early : {false, true}) {
      const Verdict verdict = verify(d, {plan_of(d, options.cpu.arch, early)}, options).front();
      EXPECT_EQ(verdict.outcome, Outcome::ok) << d.summary() << testing::PrintToString(verdict.failures);
      EXPECT_GT(verdict.y_error, 0);
    }
}

}  // namespace
}  // namespace ssmjit
