#include "autotune/crossover.h"

#include <map>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <ssmjit/measurement.h>
#include <ssmjit/tune.h>

#include "autotune/cells.h"
#include "tests/autotune/sample_measurements.h"

namespace ssmjit {
namespace {

// Where the row of 16 heads ends, with plan 0, whose next one is that of 256 heads, with plan `of_high`.
std::int64_t end_of(const std::vector<Measurement>& measurements, std::size_t of_high = 1) {
  const Cells cells = cells_of(measurements);
  TableRow low, high;
  low.total_heads = 16;
  low.plan = timed_plan(0);
  high.total_heads = 256;
  high.plan = timed_plan(of_high);
  return crossover(low, high, cells.begin()->second);
}

// Times of plans 0 and 1 at 16 heads and at 256; 0: none.
std::vector<Measurement> times(double low_0, double low_1, double high_0, double high_1) {
  std::vector<Measurement> all;
  for (const Measurement& m : {timed(1, 0, low_0), timed(1, 1, low_1), timed(16, 0, high_0), timed(16, 1, high_1)})
    if (m.us > 0) all.push_back(m);
  return all;
}

TEST(Crossover, ARowEndsWhereBothPlansLoseTheSameOnALineInTheLogarithmOfTheSize) {
  EXPECT_EQ(end_of(times(10, 12, 12, 10)), 64) << "20% and 20%: half way";
  EXPECT_EQ(end_of(times(10, 11, 13, 10)), 32) << "10% and 30%: a quarter of four octaves";
  EXPECT_EQ(end_of(times(10, 13, 11, 10)), 128);
  EXPECT_EQ(end_of(times(10, 11, 12, 10)), 40) << "40.3";
}

TEST(Crossover, APlanWithoutATimeAtTheOtherSizeLosesAllThere) {
  EXPECT_EQ(end_of(times(10, 0, 12.5, 10)), 147) << "four fifths of four octaves";
  EXPECT_EQ(end_of(times(10, 11, 0, 10)), 20) << "an eleventh";
  EXPECT_EQ(end_of(times(10, 0, 0, 10)), 64) << "neither has: half way, which is the smaller size's";
  std::vector<Measurement> failed = times(10, 11, 0, 10);
  failed.push_back(timed(16, 0, 0));
  failed.back().outcome = Outcome::launch_failed;
  EXPECT_EQ(end_of(failed), 20);
}

TEST(Crossover, ATimeOfFewReplaysCountsButNotAsTheBest) {
  std::vector<Measurement> all = times(10, 11, 13, 10);
  for (const std::size_t i : {1u, 2u}) all[i].outcome = Outcome::dropped;
  EXPECT_EQ(end_of(all), 32);
  all.push_back(timed(1, 2, 5));
  all.back().outcome = Outcome::dropped;
  EXPECT_EQ(end_of(all), 32);
}

TEST(Crossover, LossesAreAgainstTheBestOfTheSizeWhoeverHasIt) {
  std::vector<Measurement> all = times(10, 11, 13, 10);
  all.push_back(timed(1, 2, 5));  // plan 1 now loses 120%
  EXPECT_EQ(end_of(all), 147);
}

TEST(Crossover, ARowEndsBetweenItsOwnSizeAndTheNextOnes) {
  EXPECT_EQ(end_of(times(10, 10, 12, 10)), 16) << "the larger size's plan is as good at the smaller one";
  EXPECT_EQ(end_of(times(10, 12, 10, 10)), 255);
}

TEST(Crossover, WhatTellsNoPlanFromTheOtherLeavesTheMiddle) {
  EXPECT_EQ(end_of(times(10, 10, 10, 10)), 0);
  EXPECT_EQ(end_of(times(10, 12, 12, 10), 0), 0) << "one plan";
  EXPECT_EQ(end_of({timed(1, 0, 10), timed(1, 1, 11)}), 0) << "the larger size was not timed";
}

}  // namespace
}  // namespace ssmjit
