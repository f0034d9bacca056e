// A replay slot's cursor between steps.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/kernel.h>

#include "tests/jit/launch_test.h"

namespace ssmjit {
namespace {

using testing::HasSubstr;

Description replay() {
  return mamba2({.nheads = 4, .head_dim = 64, .dstate = 128, .ngroups = 1}).tokens(6).store(Replay{});
}

TEST(ReplayCursors, AStepTurnsTheBuffersRoundAndKeepsWhatWasAccepted) {
  EXPECT_EQ(advance_replay(replay(), {}, 4), (ReplayCursor{.buffer = 1, .accepted = 4}));
  EXPECT_EQ(advance_replay(replay(), {.buffer = 1, .accepted = 4}, 0), (ReplayCursor{.buffer = 0, .accepted = 0}));
  EXPECT_EQ(advance_replay(replay(), {.buffer = 0, .accepted = 6}, 6), (ReplayCursor{.buffer = 1, .accepted = 6}));
}

TEST(ReplayCursors, FaultRow6_ACursorOrACountOutOfRangeIsNamed) {
  const auto refusal = [](ReplayCursor cursor, int accepted) {
    return std::string(error_of([&] { advance_replay(replay(), cursor, accepted); }).what());
  };
  EXPECT_EQ(refusal({.buffer = 2, .accepted = 7}, -1),
            "cursor buffer: got 2; wants 0 to 1\ncursor accepted: got 7; wants 0 to 6\naccepted: got -1; wants 0 to 6");
  EXPECT_EQ(refusal({}, 7), "accepted: got 7; wants 0 to 6");
}

TEST(ReplayCursors, AnotherStoreHasNone) {
  Description ring = replay();
  ring.store(Ring{.window = 16});
  const Error error = error_of([&] { advance_replay(ring, {}, 1); });
  EXPECT_EQ(error.kind(), ErrorKind::invalid);
  EXPECT_THAT(error.what(), HasSubstr("wants a replay (store=replay)"));
}

}  // namespace
}  // namespace ssmjit
