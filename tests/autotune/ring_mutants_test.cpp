// The verifier rejects wrong ring kernels: emitted sources with one place of their text changed, each for its reason.
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
  return mamba2({.nheads = 4, .head_dim = 16, .dstate = 32, .ngroups = 2})
      .tokens(3)
      .state(DType::bf16)
      .gate(silu(dsl::z))
      .store(Ring{.window = 6});
}
Description in_fp32() { return step().state(DType::f32); }
Description by_chance() { return step().state(DType::f16).rounding(Stochastic{}); }
Description in_int8() {
  return mamba2({.nheads = 4, .head_dim = 16, .dstate = 64, .ngroups = 2})
      .tokens(3)
      .state(DType::i8)
      .store(Ring{.window = 6});
}
Description of_12_tokens() { return step().tokens(12).store(Ring{.window = 16}); }
Description ragged() { return step().varlen(); }

constexpr const char* kAll = "ring_rows=all";
constexpr const char* kLive = "ring_rows=live";
constexpr const char* kEarly = "ring_rows=live,early_state=true";
constexpr const char* kBulk = "state_path=bulk,ring_rows=live,heads_per_block=2,stages=2,block_m=16,warps=1";
constexpr const char* kOneStage = "state_path=bulk,ring_rows=live,heads_per_block=2,stages=1,block_m=16,warps=1";

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
      {"CIsOfTheFirstGroup", step(), kAll,
       "args.C_stride, args.C_token_stride, last(t),\n                 group() * Cfg::kDstate",
       "args.C_stride, args.C_token_stride, last(t),\n                 0", out},
      {"BIsOfTheFirstGroup", step(), kAll, "((group() * Cfg::kRing + place) * Cfg::kDstate", "(place * Cfg::kDstate",
       "B_ring"},
      {"COfTheFirstToken", step(), kAll, "C_rows[n].load(step.C_row(8 * n + g));", "C_rows[n].load(step.C_row(0));",
       out},
      {"TheNewestOldRowIsLost", step(), kAll, "- start < count;", "- start < count - 1;", out},
      {"TheNewestOldRowIsLostOfLiveOnes", step(), kLive, "      return j < count;", "      return j < count - 1;", out},
      {"ARowOutOfUseIsNotMasked", step(), kAll, "(old_in_use >> k & 1u) != 0 ? v[k] : Vec16{}", "v[k]", out},
      {"ARowOutOfUseIsNotMaskedOfLiveOnes", step(), kLive, "(old_in_use >> k & 1u) * 16u", "16u", out},
      {"TheDeltaOfARowOutOfUseIsNotMasked", step(), kAll,
       "delta[r] = at.in_use(j) ? (j < S::kFirstNew ? old_delta[0][k][r] : fresh[k][r]) : 0.0f;",
       "delta[r] = j < S::kFirstNew ? old_delta[0][k][r] : fresh[k][r];", out},
      {"DecayIsThatOfTheTokenBefore", step(), kLive, "s[n] = shared.row[place][S::kFirstNew + g + 8 * n][0];",
       "s[n] = shared.row[place][S::kFirstNew + g + 8 * n - 1][0];", out},
      {"TheStateDoesNotDecay", step(), kAll, "exp2_fast_f32(s[n] - base);", "1.0f;", out},
      {"LaterTokensWeigh", step(), kAll, "j - S::kFirstNew <= t && j - S::kFirstNew < tokens",
       "j - S::kFirstNew < tokens", out},
      {"OldRowsWeighInAFlushToo", step(), kAll, "old ? !at.flush && at.old_in_use(j)", "old ? at.old_in_use(j)", out},
      {"MissedSkip", step(), kAll, "v[0] += Cfg::skip(D_h, own[0]);", ";", out},
      {"MissedGate", step(), kAll, "v[1] *= Cfg::gate(z[1]);", ";", out},
      {"MissedDtBias", step(), kAll, "Cfg::delta(widen(dt[k][r]), bias)", "Cfg::delta(widen(dt[k][r]), 0.0f)",
       "dt_ring"},
      {"DeltaIsNotKept", step(), kAll, "at.place_of_new(t)] = fresh[k][r];", "at.place_of_new(t)] = 0.0f;", "dt_ring"},
      {"StateOfTheNextSlot", step(), kAll, "if constexpr (S::kDirect && S::kAll) state.load();",
       "if constexpr (S::kDirect && S::kAll) {\n"
       "    State* const right = state.memory;\n"
       "    state.memory += slot + 1 < args.slots ? args.state_stride : 0;\n"
       "    state.load();\n"
       "    state.memory = right;\n"
       "  }",
       out},
      {"FlushesOneTokenTooEarly", step(), kAll, "count + tokens > Cfg::kWindow,", "count + tokens >= Cfg::kWindow,",
       stay},
      {"FlushesOneTokenTooLate", step(), kAll, "count + tokens > Cfg::kWindow,", "count + tokens > Cfg::kWindow + 1,",
       state},
      {"NewRowsGoOnePlaceTooFar", step(), kAll, "return wrapped(wrapped(start + count) + t);",
       "return wrapped(wrapped(start + count) + t + 1);", stay, Outcome::nondeterministic},
      {"TheStateIsNotWritten", step(), kAll, "if constexpr (Cfg::kPhiloxRounds == 0) state.put(i, c, nearest.raw);",
       ";", state},
      {"OutputOfAFlushComesFromTheOldState", step(), kAll, "step.flush(y, scale,",
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
      {"HalfOfTheDstateIsLostInSums", step(), kAll, "d[0][e] + d[S::kHalves - 1][2 + e]", "d[0][e]", out},
      {"OnlyHalfOfASumDecays", step(), kAll, "if constexpr (S::kHalves == 2) d[1][2 + e] *= factor;", ";", out},
      {"TheHalvesOfASumTradeTheirWeights", step().store(Ring{.window = 16}), kAll,
       "{W[j][0], W[j + 2 < kRowTiles ? j + 2 : 0][0],", "{W[j + 2 < kRowTiles ? j + 2 : 0][0], W[j][0],", out},
      {"TokensFrom8OnAreThoseBefore", of_12_tokens(), kAll, "C[S::kHalves == 2 ? 0 : e % 2].word", "C[0].word", out},
      {"OutputOfAFlushHoldsTheOldStateToo", step(), kAll, "if ((at.flush || !S::kDirect) && ", "if (!S::kDirect && ",
       out},
      {"OutputOfAFlushLeavesTheNewStateOut", step(), kBulk,
       "C.contract(y, c * S::kSteps + m, operand(2 * m), operand(2 * m + 1));", ";", out},
      {"AFlushTakesBOfTheFirstChunkForAll", in_fp32(), kAll, "row_of_pair][4 * c * S::kSpan + 8 *", "row_of_pair][8 *",
       state},
      {"AFlushTakesTheStateOfTheFirstChunkForAll", in_fp32(), kAll, "piece.h[r].raw = state.get(i + r, c);",
       "piece.h[r].raw = state.get(i + r, 0);", state},
      {"AFlushStaysAtTheFirstChunk", in_fp32(), kBulk, "piece = next;", ";", state},
      {"AFlushDropsThePartsPastTheFirst", in_fp32(), kAll,
       "for (int k = 0; k < kParts; ++k)\n#pragma unroll\n            for",
       "for (int k = 0; k < 1; ++k)\n#pragma unroll\n            for", state},
      {"AFlushForgetsTheDeltas", step(), kAll, "exp2_fast_f32(all_old - r.s[e]) * r.delta[e] : 0.0f",
       "exp2_fast_f32(all_old - r.s[e]) : 0.0f", state},
      {"AFlushDoesNotDecay", step(), kAll, "const float decay = exp2_fast_f32(all_old);", "const float decay = 1.0f;",
       state},
      {"PadsAreNotWritten", step(), kAll, "if constexpr (Cfg::kPadOutput == PadOutput::zeros) step.write_zeros();", ";",
       "out: " + stay},
      {"CursorsAreNotClamped", step(), kAll, "count_word < Cfg::kWindow ? count_word : Cfg::kWindow",
       "count_word < 99 ? count_word : 99", ""},
      {"TheSeedOfAnotherSlot", by_chance(), kAll, "args.rand_seed[wide(slot, args.rand_seed_stride)]",
       "args.rand_seed[0]", state},
      {"TheWrongRandomBits", by_chance(), kAll, "place + 8 * d, 0)", "place + 8 * d, 1)",
       "not what their random bits round them to"},
      {"ToNearestInPlaceOfByChance", by_chance(), kAll, "state.put(i, c, chance);", "state.put(i, c, nearest.raw);",
       "not what their random bits round them to"},
      {"OutputOfAFlushComesFromWhatChanceStored", in_int8().rounding(Stochastic{}), kAll, "state.put(i, c, chance);",
       "state.put(i, c, chance);\n"
       "      RingSpan<Cfg> by_chance;\n"
       "      by_chance.raw = chance;\n"
       "      const auto add = [&](const RingSpan<Cfg>& h, RingSums<Cfg>& sums) {\n"
       "        for (int m = 0; m < S::kSteps; ++m)\n"
       "          C.contract(sums, c * S::kSteps + m, h.operand(2 * m), h.operand(2 * m + 1));\n"
       "      };\n"
       "      RingSums<Cfg> right = {};\n"
       "      add(nearest, right);\n"
       "      for (int h = 0; h < S::kHalves; ++h)\n"
       "        for (int e = 0; e < 4; ++e) y.d[h][e] -= right.d[h][e];\n"
       "      add(by_chance, y);",
       out},
      {"AScaleThatUsesPartOfTheRange", in_int8(), kAll, "return 127.0f;", "return 120.0f;", "state_scale"},
      {"TheScaleIsNotWritten", in_int8(), kAll, "if (q == 0)\n", "if (q == 4)\n", "state_scale"},
      {"TheOldScaleIsForgotten", in_int8(), kAll, "old_decay[r] *= scale_of_row(scale[i + r]);", ";", "state"},
      {"LengthsOfSequencesAreIgnored", ragged(), kAll, ": end - first_token < Cfg::kTokens ? end - first_token", "",
       ""},
      {"ALengthAboveTheTokensIsTaken", ragged(), kAll,
       ": end - first_token < Cfg::kTokens ? end - first_token : Cfg::kTokens", ": end - first_token", "",
       Outcome::nondeterministic},
      {"ADecreasingLengthIsTakenForAToken", ragged(), kAll, "tokens = end <= first_token ? 0",
       "tokens = end < first_token ? 1 : end == first_token ? 0", ""},
      {"ARequestWithoutTokensIsTaken", ragged(), kAll, "if (Cfg::kVarlen && tokens <= 0) {", "if (false) {", ""},
      {"SequencesAllBeginAtTheFirst", ragged(), kAll, "first_token = from < 0 ? 0 : from < args.total_tokens ? from",
       "first_token = true ? 0", ""},
      {"TheUpperWordOfAnIndexIsDropped", step(), kAll, "args.wide_indices != 0 ? wide_index : index_low", "index_low",
       stay},
      {"AnEarlyPlanThatIsToWaitFirstDoesNot", step(), kEarly,
       "if (!Cfg::kEarlyState || args.pdl == kPdlWaitFirst) grid_dependency_wait();",
       "if (!Cfg::kEarlyState) grid_dependency_wait();", "before grid_dependency_wait", Outcome::faulty},
      {"APadOfAnEarlyPlanDoesNotWait", step(), kEarly,
       "if constexpr (Cfg::kEarlyState) grid_dependency_wait();\n    if constexpr (kIsLayer) around.leave(step);",
       "if constexpr (kIsLayer) around.leave(step);", "before grid_dependency_wait", Outcome::faulty},
      {"ARequestWithoutTokensDoesNotWait", ragged(), kEarly,
       "if constexpr (Cfg::kEarlyState) grid_dependency_wait();\n    return;", "return;", "before grid_dependency_wait",
       Outcome::faulty},
      {"ABulkCopyIsNotWaitedFor", step(), kBulk, "barrier_wait(&shared.full[warp][stage], parity);", ";",
       "unwaited copy", Outcome::faulty},
      {"StateOfTheFirstHeadForAllOfTheBlock", step(), kBulk, "warp_state + i * S::kHeadSize, kBytes,",
       "warp_state, kBytes,", out},
      {"OldRowsOfTheFirstHeadForAllOfTheBlock", step(), kBulk, "old_x[k] + i * kRingHead,", "old_x[k],", out},
      {"AFlushGoesToTheFirstHeadOfTheBlock", step(), kBulk, "bulk_store(warp_state + i * S::kHeadSize,",
       "bulk_store(warp_state,", state},
      {"AStageIsStoredBeforeAllLanesHaveWrittenIt", step(), kBulk,
       "bulk_store_fence();\n    sync_warp();\n    if (lane != 0) return;\n    bulk_store(",
       "if (lane != 0) return;\n    bulk_store(", "", Outcome::faulty},
      {"AStageIsFilledWhileItIsStored", step(), kOneStage,
       "if (!S::kDirect && at.flush && lane == 0) bulk_store_wait_read<0>();\n        copy_state(", "copy_state(", "",
       Outcome::faulty},
  };
}

class RingVerifierRejects : public testing::TestWithParam<Wrong> {};

TEST_P(RingVerifierRejects, WithItsReason) {
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

INSTANTIATE_TEST_SUITE_P(Ring, RingVerifierRejects, testing::ValuesIn(every_mutant()),
                         [](const auto& info) { return info.param.name; });

TEST(RingVerifier, PassesTheKernelsThatTheMutantsAreMadeFrom) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  VerifyOptions options;
  options.on = VerifyOn::cpu;
  for (const Description& d : {step(), in_fp32(), by_chance(), in_int8(), of_12_tokens(), ragged()})
    for (const char* changes : {kAll, kLive, kEarly, kBulk}) {
      const Plan plan = Plan::parse(changes, default_plan(d, options.cpu.arch, 8));
      const Verdict verdict = verify(d, {plan}, options).front();
      EXPECT_EQ(verdict.outcome, Outcome::ok) << d.summary() << testing::PrintToString(verdict.failures);
      EXPECT_GT(verdict.y_error, 0);
      EXPECT_GT(verdict.state_error, 0);
    }
}

}  // namespace
}  // namespace ssmjit
