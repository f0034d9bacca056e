// What a description with a replay may be, and what one moves.
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/description.h>
#include <ssmjit/error.h>

namespace ssmjit {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

Description usual() { return mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1}); }
Description replay() { return usual().tokens(6).state(DType::bf16).store(Replay{}); }

TEST(Replay, ADescriptionWithAReplayIsAnotherOp) {
  EXPECT_THAT(replay().problems(), IsEmpty());
  EXPECT_EQ(replay().op(), Op::replay);
  EXPECT_EQ(replay().ring_window(), 0);
  EXPECT_THAT(replay().summary(), HasSubstr(", two steps back"));
  EXPECT_NE(replay().kernel_digest(), usual().kernel_digest());
  EXPECT_NE(replay().kernel_digest(), replay().store(Ring{.window = 6}).kernel_digest());
  EXPECT_NE(replay().cost_digest(), replay().store(Ring{.window = 6}).cost_digest());
  EXPECT_EQ(replay().decay(exp(dsl::delta * dsl::A)).kernel_digest(), replay().kernel_digest())
      << "a kernel that holds no decay, however it is written";
}

TEST(Replay, JsonReadsBackAndNamesTheOp) {
  const Description d = replay().gate(silu(dsl::z)).rounding(Stochastic{.philox_rounds = 7});
  EXPECT_EQ(Description::from_json(d.json()), d);
  EXPECT_THAT(d.json(), HasSubstr("\"op\":\"replay\""));
  Description set = usual();
  set.set("store=replay,tokens=6,state=bf16");
  EXPECT_EQ(set, replay());
  try {
    Description::from_json(R"({"schema": 1, "op": "ring", "nheads": 16, "head_dim": 64, "dstate": 128,
                               "store": "replay"})");
    FAIL() << "not refused";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("the store makes it replay"));
  }
}

TEST(Replay, TheLimitsThemselvesAreAllowed) {
  EXPECT_THAT(replay().tokens(1).problems(), IsEmpty());
  EXPECT_THAT(replay().tokens(16).problems(), IsEmpty());
  for (const DType state : {DType::f32, DType::bf16, DType::f16})
    EXPECT_THAT(replay().state(state).problems(), IsEmpty());
  EXPECT_THAT(replay().input(DType::f16).pad_output(PadOutput::untouched).problems(), IsEmpty());
  EXPECT_THAT(replay().state(DType::f16).rounding(Stochastic{}).problems(), IsEmpty());
}

TEST(Faults, Row7_MoreTokensThanAReplayTakesAreRefused) {
  EXPECT_THAT(replay().tokens(17).problems(), ElementsAre("tokens: got 17; a replay takes 1 to 16 a step"));
  EXPECT_THAT(replay().tokens(0).problems(), ElementsAre("tokens: got 0; a replay takes 1 to 16 a step"));
}

TEST(Replay, WhatItHasNotIsRefusedByName) {
  const auto problem = [](const Description& d) {
    const std::vector<std::string> all = d.problems();
    EXPECT_EQ(all.size(), 1u) << d.summary();
    return all.empty() ? std::string() : all.front();
  };
  EXPECT_THAT(problem(replay().state(DType::i8)), HasSubstr("state: got int8; wants fp32, bf16 or fp16"));
  EXPECT_THAT(problem(replay().input(DType::f32)), HasSubstr("input: got fp32"));
  EXPECT_THAT(problem(replay().varlen()), HasSubstr("varlen: got true; a replay"));
  EXPECT_THAT(problem(replay().accepted_counts()), HasSubstr("accepted: got true; a replay has its own counts"));
  EXPECT_THAT(problem(replay().tree()), HasSubstr("tree: got true"));
  EXPECT_THAT(problem(replay().destination_slots()), HasSubstr("destination_slots: got true; a replay"));
  EXPECT_THAT(problem(replay().unaligned_rows()), HasSubstr("aligned_rows: got false; a replay"));
  EXPECT_THAT(problem(replay().pad_output(PadOutput::as_if_zero_state)),
              HasSubstr("a replay wants zeros or untouched"));
  EXPECT_THAT(problem(replay().decay(exp(dsl::A * dsl::dt))), HasSubstr("a replay wants exp(A * delta)"));
  EXPECT_THAT(problem(replay().state(DType::f32).rounding(Stochastic{})), HasSubstr("fp32, which is not rounded"));
  EXPECT_THAT(problem(replay().with_conv({.activation_expr = silu(dsl::x)})),
              HasSubstr("store: got replay in a layer; wants in_place or ring:16"));
  Description odd = replay();
  odd.dstate = 80;
  EXPECT_THAT(problem(odd), HasSubstr("dstate: got 80; a replay with a state of bf16 wants a multiple of 32"));
}

TEST(Replay, BytesAreTheStateBothWaysTheLastStepsRowsAndThisSteps) {
  const std::int64_t state = 16 * 64 * 128 * 2, x = 16 * 64 * 2, B = 128 * 2, sums = 2 * 16 * 4, dt = 16 * 4;
  const Bytes bytes = bytes_moved(replay(), 3);
  EXPECT_EQ(bytes.read, 3 * (state + 6 * (x + B + sums) + 6 * (x + 2 * B + dt)));
  EXPECT_EQ(bytes.written_back, 3 * (state + 6 * x)) << "the state and x in place";
  EXPECT_EQ(bytes.written_new, 3 * 6 * (x + B + sums)) << "y; B, deltas and sums into the other buffer";
  EXPECT_EQ(bytes.warm, 16 * 3 * 4 + 3 * 8 + 3 * 8);
  EXPECT_EQ(bytes_moved(replay(), 0), Bytes{});
  EXPECT_EQ(bytes_moved(replay().gate(silu(dsl::z)), 1).read - bytes_moved(replay(), 1).read, 6 * x);
  try {
    bytes_moved(replay(), 1, Phase::flush);
    FAIL() << "not refused";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("a replay has no_flush only"));
  }
}

}  // namespace
}  // namespace ssmjit
