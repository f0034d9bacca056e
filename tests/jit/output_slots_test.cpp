// What an engine keeps of output slots on the host.
#include <ssmjit/slots.h>

#include <map>
#include <random>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/jit/launch_test.h"

namespace ssmjit {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr OutputPool kPool{.working = 10, .requests = 4, .tokens = 4};

std::vector<std::int32_t> row_of(const SlotRequest& request, const OutputPool& pool = kPool) {
  std::vector<std::int32_t> row(static_cast<std::size_t>(pool.tokens));
  output_row(pool, request, row);
  return row;
}

TEST(OutputPool, HasTheDraftSlotsOfEachRequestBehindTheWorkingSlots) {
  EXPECT_EQ(kPool.drafts_each(), 3);
  EXPECT_EQ(kPool.draft_base(), 10);
  EXPECT_EQ(kPool.total(), 22);
  const OutputPool plain{.working = 10, .requests = 4, .tokens = 1};
  EXPECT_EQ(plain.total(), 10) << "one token a step needs no drafts";
}

TEST(OutputPool, SizesBelowOneAndMoreSlotsThanInt32CountsAreRefused) {
  const auto refusal = [](OutputPool pool) { return std::string(error_of([&] { pool.validate(); }).what()); };
  EXPECT_THAT(refusal({.working = 0, .requests = 4, .tokens = 4}), HasSubstr("working: got 0; wants 1 or more"));
  EXPECT_THAT(refusal({.working = 1, .requests = 0, .tokens = 4}), HasSubstr("requests: got 0; wants 1 or more"));
  EXPECT_THAT(refusal({.working = 1, .requests = 4, .tokens = 0}), HasSubstr("tokens: got 0; wants 1 or more"));
  EXPECT_THAT(refusal({.working = 1, .requests = std::int64_t{1} << 62, .tokens = 9}), HasSubstr("2147483647 slots"));
  EXPECT_THAT(refusal({.working = (std::int64_t{1} << 31) - 4, .requests = 1, .tokens = 5}),
              HasSubstr("2147483647 slots at most in all"));
}

TEST(OutputSlots, AreTheWorkingSlotAndThenTheRequestsOwnDrafts) {
  EXPECT_THAT(row_of({.request = 0, .working = 7}), ElementsAre(7, 10, 11, 12));
  EXPECT_THAT(row_of({.request = 3, .working = 0}), ElementsAre(0, 19, 20, 21));
  std::int32_t two[2];
  output_row(kPool, {.request = 3, .working = 0}, two);
  EXPECT_THAT(two, ElementsAre(0, 19)) << "a shorter step";
}

TEST(OutputSlots, OfAPadAreAllMinusOne) {
  EXPECT_THAT(row_of({.request = -1, .working = 7}), Each(-1));
  EXPECT_THAT(row_of({.request = 2, .working = -1}), Each(-1));
  EXPECT_EQ(input_slot(kPool, {}, 5), -1);
  EXPECT_EQ(accepted_slot(kPool, {}, 2), -1);
  EXPECT_EQ(retract_copy(kPool, {}, 5), SlotCopy{});
}

TEST(OutputSlots, OfTwoRequestsNeverMeet) {
  std::map<std::int32_t, int> seen;
  for (std::int64_t r = 0; r < kPool.requests; ++r)
    for (std::int32_t slot : row_of({.request = r, .working = r})) {
      EXPECT_EQ(++seen[slot], 1) << slot;
      EXPECT_LT(slot, kPool.total());
    }
}

TEST(InputSlot, IsTheCurrentOneOrTheWorkingSlot) {
  const SlotRequest request{.request = 1, .working = 5};
  EXPECT_EQ(input_slot(kPool, request, kWorkingSlot), 5);
  EXPECT_EQ(input_slot(kPool, request, 5), 5);
  EXPECT_EQ(input_slot(kPool, request, 14), 14);
}

TEST(InputSlot, OfARequestThatStartsFromASharedSlotIsThatSlotButNeverInPlaceOfADraft) {
  const SlotRequest request{.request = 1, .working = 5, .shared = 9};
  EXPECT_EQ(input_slot(kPool, request, kWorkingSlot), 9);
  EXPECT_EQ(input_slot(kPool, request, 5), 9);
  EXPECT_EQ(input_slot(kPool, request, 14), 14);
  EXPECT_THAT(row_of(request), ElementsAre(5, 13, 14, 15)) << "the shared slot is not written";
}

TEST(AcceptedSlot, IsThatOfTheLastTokenKeptClampedAsTheKernelsClamp) {
  const SlotRequest request{.request = 1, .working = 5};
  const std::int32_t want[] = {5, 5, 13, 14, 15, 15};  // of 0 to 5 tokens
  for (int n = 0; n <= 5; ++n) EXPECT_EQ(accepted_slot(kPool, request, n), want[n]) << n;
  EXPECT_EQ(accepted_slot(kPool, request, -3), 5);
}

TEST(RetractCopy, BringsADraftHomeAndAsksForNothingElse) {
  const SlotRequest request{.request = 1, .working = 5};
  EXPECT_EQ(retract_copy(kPool, request, 14), (SlotCopy{14, 5}));
  EXPECT_EQ(retract_copy(kPool, request, 5), SlotCopy{});
  EXPECT_EQ(retract_copy(kPool, request, kWorkingSlot), SlotCopy{});
}

TEST(CheckpointCopy, TakesTheStateAtTheFirstBoundaryThatTheStepPassed) {
  const SlotRequest request{.request = 1, .working = 5};
  const auto copy = [&](std::int64_t length, int accepted) {
    return checkpoint_copy(kPool, request, length, accepted, 8, 9);
  };
  EXPECT_EQ(copy(6, 1), SlotCopy{}) << "seven tokens";
  EXPECT_EQ(copy(6, 2), (SlotCopy{13, 9})) << "the second token's";
  EXPECT_EQ(copy(6, 4), (SlotCopy{13, 9})) << "not the last one's";
  EXPECT_EQ(copy(7, 1), (SlotCopy{5, 9}));
  EXPECT_EQ(copy(8, 4), SlotCopy{}) << "the boundary was there before the step";
  EXPECT_EQ(checkpoint_copy(kPool, request, 7, 1, 8, -1), SlotCopy{}) << "no slot for it";
  EXPECT_EQ(checkpoint_copy(kPool, {}, 7, 1, 8, 9), SlotCopy{}) << "a pad";
  EXPECT_EQ(checkpoint_copy(kPool, request, 0, 4, 1, 9), (SlotCopy{5, 9})) << "every token a boundary: the first";
}

TEST(OutputSlots, ASlotOrARequestOutsideThePoolIsNamed) {
  const auto refusal = [](auto&& action) { return std::string(error_of(action).what()); };
  EXPECT_THAT(refusal([] { row_of({.request = 4, .working = 1}); }), HasSubstr("request: got 4; wants 0 to 3"));
  EXPECT_THAT(refusal([] { row_of({.request = 1, .working = 10}); }),
              HasSubstr("working slot of request 1: got 10; wants 0 to 9"));
  EXPECT_THAT(refusal([] { row_of({.request = 1, .working = 3, .shared = 21}); }),
              HasSubstr("shared slot of request 1: got 21; wants 0 to 9"));
  EXPECT_THAT(refusal([] { input_slot(kPool, {.request = 1, .working = 3}, 16); }),
              HasSubstr("current slot of request 1: got 16; wants its working slot 3 or its draft slots 13 to 15"));
  EXPECT_THAT(refusal([] { retract_copy(kPool, {.request = 1, .working = 3}, 4); }), HasSubstr("another's state"));
  EXPECT_THAT(refusal([] { output_slot(kPool, {.request = 1, .working = 3}, 4); }), HasSubstr("token: got 4"));
  std::vector<std::int32_t> row(5);
  EXPECT_THAT(refusal([&] { output_row(kPool, {.request = 1, .working = 3}, row); }), HasSubstr("got 5 entries"));
  EXPECT_THAT(refusal([] { checkpoint_copy(kPool, {.request = 1, .working = 3}, 7, 1, 0, 9); }),
              HasSubstr("page: got 0"));
  EXPECT_THAT(refusal([] { checkpoint_copy(kPool, {.request = 1, .working = 3}, 7, 1, 8, 10); }),
              HasSubstr("checkpoint of request 1: got slot 10"));
}

// An engine over thousands of steps, a state being the tokens that made it: whatever is accepted, retracted, resumed or
// shared, a step reads what its request has kept.
TEST(OutputSlots, AnEngineThatFollowsThemNeverReadsAnotherState) {
  constexpr OutputPool pool{.working = 12, .requests = 5, .tokens = 4};
  using History = std::vector<int>;
  std::vector<History> slots(static_cast<std::size_t>(pool.total()), History{-1});
  std::vector<History> kept(5, History{-1}), saved(5);  // as all slots
  std::vector<std::int32_t> current(5, kWorkingSlot);
  std::vector<std::int64_t> shared(5, -1);
  std::mt19937_64 random(3);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<std::uint64_t>(n)); };
  const auto at = [&](std::int64_t slot) -> History& { return slots[static_cast<std::size_t>(slot)]; };
  int token = 0, checkpoints = 0, retractions = 0, starts_from_shared = 0;
  for (int step = 0; step < 4000; ++step) {
    const auto r = static_cast<std::size_t>(below(5));
    SlotRequest request{.request = static_cast<std::int64_t>(r), .working = static_cast<std::int64_t>(r)};
    const int event = below(20);
    if (event == 0) {  // a new request: a prefill writes the working slot
      kept[r] = {++token};
      at(request.working) = kept[r];
      current[r] = kWorkingSlot;
      shared[r] = -1;
    } else if (event == 1) {  // a new request on a cached state
      shared[r] = 6 + below(3);
      kept[r] = at(shared[r]);
      current[r] = kWorkingSlot;
    } else if (event == 2 && shared[r] < 0) {  // away, its working slot saved, used by others, and back
      const SlotCopy copy = retract_copy(pool, request, current[r]);
      if (copy.from >= 0) at(copy.to) = at(copy.from), ++retractions;
      saved[r] = at(request.working);
      EXPECT_EQ(saved[r], kept[r]);
      at(request.working) = {-2};
      at(request.working) = saved[r];
      current[r] = kWorkingSlot;
    } else {
      request.shared = shared[r];
      starts_from_shared += shared[r] >= 0 ? 1 : 0;
      shared[r] = -1;
      const History start = at(input_slot(pool, request, current[r]));
      ASSERT_EQ(start, kept[r]) << "step " << step;
      std::vector<std::int32_t> row(4);
      output_row(pool, request, row);
      History now = start;
      for (std::int32_t slot : row) {
        now.push_back(++token);
        at(slot) = now;
      }
      const int accepted = 1 + below(4);
      const auto length = static_cast<std::int64_t>(kept[r].size());
      kept[r].assign(now.begin(), now.begin() + static_cast<std::ptrdiff_t>(length) + accepted);
      current[r] = accepted_slot(pool, request, accepted);
      const int checkpoint = 6 + below(6);
      if (const SlotCopy copy = checkpoint_copy(pool, request, length, accepted, 8, checkpoint); copy.from >= 0) {
        at(copy.to) = at(copy.from);
        EXPECT_EQ(at(checkpoint).size() % 8, 0u);
        EXPECT_EQ(at(checkpoint), History(kept[r].begin(), kept[r].begin() + (length / 8 + 1) * 8));
        // A request that was to start there starts from what is there now.
        for (std::size_t other = 0; other < 5; ++other)
          if (shared[other] == checkpoint) kept[other] = at(checkpoint);
        ++checkpoints;
      }
    }
  }
  EXPECT_GT(checkpoints, 100);
  EXPECT_GT(retractions, 50);
  EXPECT_GT(starts_from_shared, 50);
}

}  // namespace
}  // namespace ssmjit
