#include "autotune/search/between.h"

#include <vector>

#include <gmock/gmock.h>

#include <ssmjit/tune.h>

#include "tests/autotune/sample_measurements.h"

namespace ssmjit {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(Between, HalfWayIsInTheLogarithmAndARoundNumber) {
  EXPECT_EQ(half_way(16, 32), 24);
  EXPECT_EQ(half_way(512, 1024), 768);
  EXPECT_EQ(half_way(24, 32), 28);
  EXPECT_EQ(half_way(1, 1024), 32);
  EXPECT_EQ(half_way(2, 4), 3);
  for (const auto& [low, high] : {std::pair(1, 2), {3, 4}, {7, 7}, {0, 8}}) EXPECT_EQ(half_way(low, high), 0);
  for (int low = 1; low < 70; ++low)
    for (int high = low + 2; high < 200; ++high) {
      EXPECT_GT(half_way(low, high), low) << high;
      EXPECT_LT(half_way(low, high), high) << low;
    }
}

std::vector<int> next(const std::vector<int>& batches, const std::vector<Measurement>& lines, double most_loss = 0.05) {
  return batches_between(timed_step(), "h200", PdlMode::off, batches, lines, most_loss);
}

// Plan 0 is the best of the small batches, plan 1 of the large ones; at 8 both lose 20% to plan 2.
std::vector<Measurement> one_bad_size() {
  std::vector<Measurement> all;
  for (const int batch : {2, 4, 8, 16, 32}) {
    all.push_back(timed(batch, 0, batch < 8 ? 10 : 12));
    all.push_back(timed(batch, 1, batch > 8 ? 10 : 12));
    all.push_back(timed(batch, 2, batch == 8 ? 10 : 15));
  }
  return all;
}

TEST(Between, AreTheMiddlesOnEitherSideOfASizeThatLosesMuchWithoutItsRow) {
  EXPECT_THAT(next({2, 4, 8, 16, 32}, one_bad_size()), ElementsAre(6, 12));
  EXPECT_THAT(next({2, 4, 8, 16, 32}, one_bad_size(), 0.25), IsEmpty());
}

TEST(Between, TheWorstComesFirst) {
  std::vector<Measurement> all = one_bad_size();
  for (const int batch : {64, 128, 256}) {
    all.push_back(timed(batch, 1, batch == 128 ? 15 : 10));
    all.push_back(timed(batch, 3, batch == 128 ? 10 : 20));
  }
  EXPECT_THAT(next({2, 4, 8, 16, 32, 64, 128, 256}, all), ElementsAre(192, 96, 6, 12))
      << "100% at 256 by the plan of 128, 50% at 128 by that of 256, 20% at 8";
}

TEST(Between, ASizeThatCannotSayWhatItLosesIsTakenForABadOne) {
  std::vector<Measurement> all = {timed(2, 0, 10), timed(4, 1, 10), timed(8, 0, 10)};
  EXPECT_THAT(next({2, 4, 8}, all), ElementsAre(3, 6));
}

TEST(Between, ABatchThatWasAskedForIsNotAskedForAgain) {
  EXPECT_THAT(next({2, 4, 6, 8, 16, 32}, one_bad_size()), ElementsAre(12)) << "6 gave no time";
}

TEST(Between, LinesOfOtherBatchesModesKernelsAndGpusDoNotCount) {
  const std::vector<Measurement> all = one_bad_size();
  std::vector<Measurement> more = all;
  for (const Measurement& line : all) {
    Measurement other = line;
    other.pdl = PdlMode::chain;
    more.push_back(other);
    other = line;
    other.device = "h100";
    more.push_back(other);
    other = line;
    other.batch = 6;
    more.push_back(other);
  }
  EXPECT_EQ(next({2, 4, 8, 16, 32}, more), next({2, 4, 8, 16, 32}, all));
  EXPECT_THAT(next({2, 4, 16, 32}, all), ElementsAre(8, 24)) << "8 is asked for as if it had no lines";
}

}  // namespace
}  // namespace ssmjit
