// The verifier rejects wrong conv1d kernels: emitted sources with one place of their text changed, each for its reason.
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

Description of(Conv conv, int tokens) {
  conv.channels = 600;  // two blocks, the second with few
  conv.activation_expr = silu(dsl::x);
  return conv1d(conv).tokens(tokens);
}
Description shifted() { return of({}, 2); }
Description longer() { return of({.state_len = 6}, 2); }
Description circular() { return of({.state_len = 5, .store = ConvStore::circular}, 2); }
Description snapshots() { return of({.keep = ConvKeep::snapshots}, 3); }
Description slots() { return of({.channels_last = true, .keep = ConvKeep::slots}, 3); }
Description accepted() { return of({.state_len = 6, .channels_last = true, .has_accepted = true}, 4); }

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
  const char* state = "conv_state";
  return {
      {"TapsInReverse", shifted(), "w.element(c * Cfg::kWidth + k)", "w.element(c * Cfg::kWidth + Cfg::kWidth - 1 - k)",
       out},
      {"TheBiasIsForgotten", shifted(), "sum = widen(bias.element(c));", ";", out},
      {"TheActivationIsForgotten", shifted(), "y[c] = Cfg::activation(sum);", "y[c] = sum;", out},
      {"TheHistoryIsATokenOff", longer(), "S::kOld + t - Cfg::kWidth + 1 + k", "S::kOld + t - Cfg::kWidth + k", out},
      {"TheTokensOfTheFirstRequest", shifted(), "request * args.x_stride", "0 * args.x_stride", out},
      {"TheStateStays", shifted(), "(S::kOld + Cfg::kTokens, to);", "(S::kOld, to);", state},
      {"TheTailOfALongerStateStays", longer(), "all.set_bits(c * kLength + j, stream(end - kLength + j, c));",
       "all.set_bits(c * kLength + j, stream(j < kLength - 3 ? j : end - kLength + j, c));", state},
      {"ASnapshotIsOfTheTokenBefore", snapshots(),
       "store_window<Cfg::kSnapshotLen, Cfg::kSnapshotLen>(S::kOld + t + 1,",
       "store_window<Cfg::kSnapshotLen, Cfg::kSnapshotLen>(S::kOld + t,", "intermediate_states"},
      {"SlotsAreWrittenInPlaceToo", slots(),
       "      return;\n    }\n    if constexpr (Cfg::kKeep == ConvKeep::snapshots)",
       "    }\n    if constexpr (Cfg::kKeep == ConvKeep::snapshots)", state},
      {"APadOfTheTargetsIsASlot", slots(), "if (usable(target, args.slots))", "if (target >= 0 && target < args.slots)",
       state},
      {"AcceptedCountsAreIgnored", accepted(), "first = accepted < 1", "first = accepted < 100", out},
      {"AcceptedCountsAreNotClamped", accepted(), "accepted < Cfg::kTokens ? accepted : Cfg::kTokens", "accepted", ""},
      {"ATokenGoesToTheNextEntry", circular(), "(place + t) % Cfg::kStateLen", "(place + t + 1) % Cfg::kStateLen",
       state},
      {"TheHistoryDoesNotGoRound", circular(), "at = at < Cfg::kStateLen ? at : at - Cfg::kStateLen;",
       "at = at < Cfg::kStateLen ? at : 0;", out},
      {"TheNullSlotIsLive", shifted(), "live = usable(slot, args.slots);", "live = slot >= 0 && slot < args.slots;",
       ""},
      {"WideIndicesAreReadAsNarrowOnes", shifted(), "IndexEntry::load(indices, args.wide_indices,",
       "IndexEntry::load(indices, 0,", ""},
      {"AChannelPastTheLast", shifted(), "channel < args.channels}", "channel <= args.channels}", "out of bounds",
       Outcome::faulty},
      {"TokensAreReadBeforeTheWait", shifted(), "    grid_dependency_wait();\n    step.load_tokens();",
       "    step.load_tokens();\n    grid_dependency_wait();", "before the wait", Outcome::faulty},
      {"ThreadsWithoutAChannelDoNotWait", shifted(), "    step.load_weights();\n    grid_dependency_wait();",
       "    step.load_weights();\n    if (!step.inside) return;\n    grid_dependency_wait();", "before the wait",
       Outcome::faulty},
  };
}

class Conv1dVerifierRejects : public testing::TestWithParam<Wrong> {};

TEST_P(Conv1dVerifierRejects, WithItsReason) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Wrong& wrong = GetParam();
  const Description& d = wrong.description;
  VerifyOptions options;
  options.on = VerifyOn::cpu;
  const bool early = wrong.right.find("wait") != std::string::npos;
  const Plan plan = Plan::parse(early ? "early_state=true" : "", default_plan(d, options.cpu.arch, 8));
  options.source = emit(d, plan, options.cpu.arch).text;
  options.source_name = "mine.cu";
  const std::size_t at = options.source.find(wrong.right);
  ASSERT_NE(at, std::string::npos) << wrong.right;
  options.source.replace(at, wrong.right.size(), wrong.wrong);
  const Verdict verdict = verify(d, {plan}, options).front();
  EXPECT_THAT(verdict.outcome, AnyOf(wrong.outcome, Outcome::faulty)) << name(verdict.outcome);
  EXPECT_THAT(verdict.failures, Contains(HasSubstr(wrong.reason)));
}

INSTANTIATE_TEST_SUITE_P(Conv1d, Conv1dVerifierRejects, testing::ValuesIn(every_mutant()),
                         [](const auto& info) { return info.param.name; });

TEST(Conv1dVerifier, PassesTheKernelsThatTheMutantsAreMadeFrom) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  VerifyOptions options;
  options.on = VerifyOn::cpu;
  for (const Description& d : {shifted(), longer(), circular(), snapshots(), slots(), accepted()})
    for (const char* changes : {"", "early_state=true"}) {
      const Plan plan = Plan::parse(changes, default_plan(d, options.cpu.arch, 8));
      const Verdict verdict = verify(d, {plan}, options).front();
      EXPECT_EQ(verdict.outcome, Outcome::ok) << d.summary() << testing::PrintToString(verdict.failures);
      EXPECT_GT(verdict.y_error, 0);
    }
}

}  // namespace
}  // namespace ssmjit
