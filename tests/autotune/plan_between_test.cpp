#include "autotune/plan_between.h"

#include <optional>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <ssmjit/measurement.h>
#include <ssmjit/tune.h>

#include "autotune/cells.h"
#include "tests/autotune/sample_measurements.h"

namespace ssmjit {
namespace {

// Which plan stands between 16 heads, with plan 0, and 256, with plan `of_high`; -1: none.
int between(const std::vector<Measurement>& measurements, std::size_t of_high = 1, std::int64_t low_fits = 0) {
  const Cells cells = cells_of(measurements);
  TableRow low, high;
  low.total_heads = 16;
  low.plan = timed_plan(0);
  low.fits_heads = low_fits;
  high.total_heads = 256;
  high.plan = timed_plan(of_high);
  const std::optional<Plan> plan = plan_between(low, high, cells.begin()->second);
  for (int i = 0; plan && i < 8; ++i)
    if (*plan == timed_plan(static_cast<std::size_t>(i))) return i;
  EXPECT_FALSE(plan);
  return -1;
}

// Times of plans 0, 1 and 2 at 16 heads and at 256; 0: none.
std::vector<Measurement> times(std::vector<double> low, std::vector<double> high) {
  std::vector<Measurement> all;
  for (std::size_t i = 0; i < low.size(); ++i)
    for (const auto& [batch, us] : {std::pair(1, low[i]), std::pair(16, high[i])})
      if (us > 0) all.push_back(timed(batch, i, us));
  return all;
}

TEST(PlanBetween, IsTheOneThatLosesLeastAtBothSizesThoughItIsTheBestOfNone) {
  EXPECT_EQ(between(times({10, 13, 10.4}, {13, 10, 10.4})), 2);
  EXPECT_EQ(between(times({10, 13, 10.4}, {13, 10, 14})), 0) << "30% at one size each: the smaller size's";
  EXPECT_EQ(between(times({10, 12, 11}, {13, 10, 13})), 1) << "20% at one size is less than 30%";
  EXPECT_EQ(between(times({10, 12, 11.5}, {12, 10, 11.5})), 0) << "15% at both is more than 20% at one";
}

TEST(PlanBetween, IsARowsOwnWhereAnotherIsNoBetterThanAThousandthInTheMean) {
  EXPECT_EQ(between(times({10, 10.1, 10.05}, {10.5, 10, 10.095})), 1)
      << "1% at one is 0.7% in the mean, 0.8% of the other";
  EXPECT_EQ(between(times({10, 10.01, 10}, {10.5, 10, 10.005})), 1);
  EXPECT_EQ(between(times({10, 10.1, 10.02}, {10.5, 10, 10.02})), 2);
}

TEST(PlanBetween, IsLeftOutWhereBothRowsHaveItOrASizeWasNotTimed) {
  EXPECT_EQ(between(times({10, 10.1, 10.02}, {10, 10.5, 10.02}), 0), -1);
  EXPECT_EQ(between({timed(1, 0, 10), timed(1, 1, 11)}), -1);
  EXPECT_EQ(between(times({10, 13, 10.4}, {10, 10, 10.2}), 0), -1) << "nothing is lost by the rows' own";
}

TEST(PlanBetween, WithoutATimeAtOneSizeLosesAllThere) {
  EXPECT_EQ(between(times({10, 11, 10.01}, {12, 10, 0})), 1);
  EXPECT_EQ(between(times({10, 0, 10.9}, {0, 10, 10.9})), 2);
  std::vector<Measurement> failed = times({10, 11}, {12, 10});
  failed.push_back(timed(1, 2, 0));
  failed.push_back(timed(16, 2, 10));
  failed[failed.size() - 2].outcome = Outcome::launch_failed;
  EXPECT_EQ(between(failed), 1);
}

TEST(PlanBetween, IsOneThatSomeSizeHasChecked) {
  std::vector<Measurement> all = times({10, 13}, {13, 10});
  for (const int batch : {1, 16}) {
    all.push_back(timed(batch, 2, 10.4, 0));
    all.back().outcome = Outcome::dropped;
  }
  EXPECT_EQ(between(all), 0) << "first replays are of what nobody has checked at a size";
  all.push_back(timed(64, 2, 40));
  EXPECT_EQ(between(all), 2) << "timed in full at another size";
  all.back() = timed(64, 2, 40, 0.01);
  all.back().outcome = Outcome::dropped;
  EXPECT_EQ(between(all), 2) << "dropped in a race";
}

TEST(PlanBetween, GoesByTheLargerSizeForAPlanWhoseClustersFilledTheGpuAtTheSmallerOne) {
  std::vector<Measurement> all = times({7, 8.8}, {10.6, 9.5});
  EXPECT_EQ(between(all), 0) << "26% at one size is more than 12% at the other";
  const auto with_waves = [&](double waves) {
    std::vector<Measurement> known = all;
    for (Measurement& m : known)
      if (m.plan == timed_plan(0)) m.waves = waves * m.batch;
    return between(known);
  };
  EXPECT_EQ(with_waves(1), 1) << "any size above takes another wave";
  EXPECT_EQ(with_waves(0.99), 1) << "all but the first ones";
  EXPECT_EQ(with_waves(0.2), 0) << "most of the sizes between fit";
  EXPECT_EQ(with_waves(0.05), 0) << "all of them do";
  for (Measurement& m : all)
    if (m.plan == timed_plan(1) && m.batch == 1) m.outcome = Outcome::dropped;
  EXPECT_EQ(with_waves(1), 1) << "though nothing else was timed in full at the smaller size";
}

TEST(PlanBetween, StandsForTheSizesBehindThoseThatTheSmallerRowsOwnPlanFits) {
  std::vector<Measurement> all = times({10, 11.5}, {11.5, 10});
  for (Measurement& m : all)
    if (m.plan == timed_plan(0)) m.waves = m.batch / 7.0;
  EXPECT_EQ(between(all), 0) << "seven tenths of the way, by ratio, it fits";
  EXPECT_EQ(between(all, 1, 112), 1) << "there the row's plan stands without it";
  EXPECT_EQ(between(all, 1, 256), 0) << "a row that fits the larger size says nothing";
  for (Measurement& m : all)
    if (m.plan == timed_plan(0)) m.waves = m.batch / 14.0;
  EXPECT_EQ(between(all, 1, 112), 0) << "of the sizes above 112 it fits four fifths";
}

}  // namespace
}  // namespace ssmjit
