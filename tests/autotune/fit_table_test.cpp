#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/error.h>
#include <ssmjit/measurement.h>

#include "tests/autotune/sample_measurements.h"

namespace ssmjit {
namespace {

using testing::SizeIs;

// Plans by size, in their order.
std::vector<Plan> plans_of(const Table& table) {
  std::vector<Plan> plans;
  for (const TableRow& row : table.rows) plans.push_back(row.plan);
  return plans;
}

TEST(FitRegret, NeighbouringSizesShareAPlanWithinTheBound) {
  const std::vector<Measurement> all = {timed(1, 0, 10),   timed(1, 1, 10.04), timed(2, 1, 20),
                                        timed(2, 2, 20.1), timed(4, 1, 40.1),  timed(4, 2, 40)};
  const Table table = fit_table(all, {.max_regret = 0.005});
  EXPECT_EQ(plans_of(table), (std::vector<Plan>{timed_plan(1), timed_plan(1), timed_plan(1)}));
  EXPECT_EQ(table.plan_count(), 1u);
  EXPECT_EQ(table.rows[0].us, 10.04) << "the time of a row is that of its plan at its size";
  EXPECT_EQ(plans_of(fit_table(all, {.max_regret = 0})),
            (std::vector<Plan>{timed_plan(0), timed_plan(1), timed_plan(2)}))
      << "with no bound each size has its best";
}

TEST(FitRegret, ARunOfSizesTakesThePlanThatLosesLeastOverAllOfThem) {
  const Table table = fit_table({timed(1, 0, 10), timed(1, 1, 10.02), timed(1, 2, 10.04), timed(2, 1, 20.08),
                                 timed(2, 2, 20), timed(2, 3, 19.99)},
                                {.max_regret = 0.01});
  EXPECT_EQ(plans_of(table), (std::vector<Plan>{timed_plan(2), timed_plan(2)}));
}

TEST(FitRegret, TiesWithinTheNoiseGoToThePlanOfTheNeighbour) {
  // Plan 1 is 0.4% behind at batch 1, within the noise there, and the clear winner at batch 2; plan 0 the other way.
  const auto all = [](double noise) {
    return std::vector<Measurement>{timed(1, 0, 10, noise), timed(1, 1, 10.04, noise), timed(2, 0, 20.05),
                                    timed(2, 1, 20)};
  };
  EXPECT_EQ(plans_of(fit_table(all(0.1), {.max_regret = 0.005})), (std::vector<Plan>{timed_plan(1), timed_plan(1)}));
  EXPECT_EQ(plans_of(fit_table(all(0.001), {.max_regret = 0.005})), (std::vector<Plan>{timed_plan(0), timed_plan(0)}));
}

TEST(FitRegret, ATieOfARingGoesToThePlanWithTheBetterWorsePhase) {
  const Measurement one_sided = timed_ring(8, 0, 4, 8.2, 0.5), balanced = timed_ring(8, 1, 4.03, 8.12, 0.5);
  ASSERT_LT(one_sided.us, balanced.us);
  EXPECT_EQ(fit_table({one_sided, balanced, timed_ring(8, 2, 4.12, 7.9, 0.5)}).rows.at(0).plan, balanced.plan);
  const Measurement sharp = timed_ring(8, 0, 4, 8.2), behind = timed_ring(8, 1, 4.03, 8.12);
  EXPECT_EQ(fit_table({sharp, behind}).rows.at(0).plan, sharp.plan) << "no tie";
}

TEST(FitRegret, AnotherRunsPlanIsTakenWhereItServes) {
  const Table table =
      fit_table({timed(1, 0, 10), timed(2, 1, 20), timed(4, 2, 40), timed(4, 0, 40.1)}, {.max_regret = 0.005});
  EXPECT_EQ(plans_of(table), (std::vector<Plan>{timed_plan(0), timed_plan(1), timed_plan(0)}));
}

// Plans that sizes of their own have; those for sizes between come on top.
std::size_t row_plans(Table table) {
  for (TableRow& row : table.rows) row.between.reset();
  return table.plan_count();
}

TEST(FitRegret, RunsAreAsFewAsCanBe) {
  std::mt19937_64 random(5);
  for (int round = 0; round < 200; ++round) {
    const int sizes = 1 + static_cast<int>(random() % 7), plans = 2 + static_cast<int>(random() % 4);
    std::vector<Measurement> all;
    std::vector<std::set<std::size_t>> within(static_cast<std::size_t>(sizes));
    for (int i = 0; i < sizes; ++i)
      for (int plan = 0; plan < plans; ++plan) {
        const bool good = plan == i % plans || random() % 3 == 0;
        all.push_back(timed(1 << i, static_cast<std::size_t>(plan), good ? 10 + plan * 0.001 : 11));
        if (good) within[static_cast<std::size_t>(i)].insert(static_cast<std::size_t>(plan));
      }
    // Going on with what is left of the plans until none is, is the fewest that there can be.
    std::size_t fewest = 0;
    std::set<std::size_t> left;
    for (const std::set<std::size_t>& here : within) {
      std::set<std::size_t> both;
      std::set_intersection(left.begin(), left.end(), here.begin(), here.end(), std::inserter(both, both.end()));
      if (both.empty()) ++fewest, both = here;
      left = both;
    }
    const Table table = fit_table(all, {.max_regret = 0.01});
    ASSERT_THAT(table.rows, SizeIs(sizes));
    ASSERT_LE(row_plans(table), fewest) << "round " << round;
  }
}

TEST(FitRegret, NoRowOfARecordedJournalCostsMoreThanTheBoundAndMoreRoomNeedsNoMorePlans) {
  for (const char* journal : kRecorded) {
    const std::vector<Measurement> all = recorded_journal(journal);
    std::map<std::int64_t, double> best;
    for (const Measurement& m : all)
      if (m.outcome == Outcome::ok && (!best.contains(m.total_heads()) || m.us < best[m.total_heads()]))
        best[m.total_heads()] = m.us;
    std::size_t before = std::numeric_limits<std::size_t>::max();
    for (const double bound : {0.0, 0.0025, 0.005, 0.01, 0.03}) {
      const Table table = fit_table(all, {.max_regret = bound});
      ASSERT_THAT(table.rows, SizeIs(best.size())) << journal;
      for (const TableRow& row : table.rows)
        EXPECT_LE(row.us, best[row.total_heads] * (1 + bound) + 0.0011) << journal << ", " << row.total_heads;
      EXPECT_LE(row_plans(table), before) << journal << " at " << bound;
      before = row_plans(table);
    }
    EXPECT_LE(before, 4u) << journal << ": 3% need few plans";
  }
}

TEST(FitRegret, AnyOrderOfARecordedJournalGivesTheSameBytes) {
  for (const char* journal : kRecorded) {
    std::vector<Measurement> all = recorded_journal(journal);
    const std::string first = fit_table(all).json();
    std::mt19937_64 random(7);
    for (int i = 0; i < 5; ++i) {
      std::shuffle(all.begin(), all.end(), random);
      ASSERT_EQ(fit_table(all).json(), first) << journal;
    }
  }
}

TEST(Fit, BetweenTwoRowsStandsWhatLosesLeastAtBoth) {
  const std::vector<Measurement> all = {timed(1, 0, 10),  timed(1, 1, 13),    timed(1, 2, 10.4), timed(16, 0, 13),
                                        timed(16, 1, 10), timed(16, 2, 10.4), timed(32, 1, 20)};
  const Table table = fit_table(all);
  ASSERT_THAT(table.rows, SizeIs(3));
  EXPECT_EQ(table.rows[0].between, timed_plan(2));
  EXPECT_FALSE(table.rows[1].between) << "the next one has the same plan";
  EXPECT_FALSE(table.rows[2].between) << "there is no next one";
}

TEST(Fit, ARowSaysUpToHowManyHeadsTheClustersOfItsPlanFitAsAtItsSize) {
  const auto fits = [](int batch, double waves) {
    Measurement m = timed(batch, 0, 5);
    m.waves = waves;
    return fit_table({m}).rows.at(0).fits_heads;
  };
  // Seven at once, one a request; a journal has four digits.
  EXPECT_EQ(fits(1, 0.1429), 112);
  EXPECT_EQ(fits(1, 1 / 7.0), 112) << "a sweep's own lines as the journal's";
  EXPECT_EQ(fits(6, 0.8571), 112);
  EXPECT_EQ(fits(7, 1), 112);
  EXPECT_EQ(fits(8, 1.1429), 224);
  EXPECT_EQ(fits(1, 0.5333), 16) << "eight clusters a request, fifteen at once";
  EXPECT_EQ(fits(1, 0.0064), 156 * 16) << "one of 155.04 to 157.48: what surely fits";
  EXPECT_EQ(fits(1, 0), 0) << "no clusters, or a journal of before";
}

TEST(Fit, NothingStandsBetweenKernelsAndModes) {
  Measurement chain = timed(16, 1, 10), other = timed(16, 1, 10);
  chain.pdl = PdlMode::chain;
  other.kernel_digest = "another";
  for (const TableRow& row : fit_table({timed(1, 0, 10), timed(1, 1, 11), chain, other}).rows)
    EXPECT_FALSE(row.between) << row.kernel_digest << name(row.pdl);
}

TEST(Fit, OfLinesOfOnePlanTheNewestCounts) {
  Measurement old = timed(8, 0, 4), again = timed(8, 0, 6);
  old.source_digest = "older kernel";
  again.measured = "2026-08-02T10:00:00Z";
  for (const auto& all : {std::vector{old, again, timed(8, 1, 5)}, std::vector{timed(8, 1, 5), again, old}}) {
    EXPECT_EQ(fit_table(all).rows.at(0).us, 5);
  }
}

TEST(Faults, Row26_APlanThatFailedVerificationSinceWinsNoSize) {
  Measurement verdict = timed(8, 0, 0);
  verdict.batch = 0;
  verdict.phase = "verify";
  verdict.outcome = Outcome::wrong;
  EXPECT_EQ(fit_table({timed(8, 0, 4), timed(8, 1, 5), verdict}).rows.at(0).us, 5);
  Measurement mended = timed(8, 0, 4);
  mended.measured = "2026-08-02T10:00:00Z";
  mended.source_digest = "mended";
  EXPECT_EQ(fit_table({mended, timed(8, 1, 5), verdict}).rows.at(0).us, 4) << "another source, measured later";
}

TEST(Faults, Row26_APlanThatIsWrongAtOneSizeWinsNone) {
  for (const Outcome outcome : {Outcome::wrong, Outcome::nondeterministic, Outcome::faulty}) {
    Measurement wrong = timed(16, 0, 0);
    wrong.outcome = outcome;
    EXPECT_EQ(fit_table({timed(8, 0, 4), timed(8, 1, 5), wrong}).rows.at(0).us, 5) << name(outcome);
  }
}

TEST(Faults, Row30_RingsOfOneKernelAreWeighedByOneNumberOfSteps) {
  // Plan 1 flushes badly. With 8 steps from flush to flush it looks better than plan 0 with 2.
  Measurement rare = timed_ring(8, 1, 4, 12, 0.001, 8), often = timed_ring(8, 0, 5, 6, 0.001, 2);
  ASSERT_LT(rare.us, often.us);
  often.measured = "2026-08-02T10:00:00Z";
  const Table table = fit_table({rare, often});
  EXPECT_EQ(table.rows.at(0).plan, often.plan) << "both by the newer line's 2 steps";
  EXPECT_EQ(table.rows.at(0).steps_per_flush, 2);
}

TEST(FitRegret, RefusesABoundThatIsNoFraction) {
  for (const double bad : {-0.01, std::nan(""), std::numeric_limits<double>::infinity()}) {
    try {
      fit_table({timed(8, 0, 4)}, {.max_regret = bad});
      ADD_FAILURE() << bad;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::invalid);
      EXPECT_THAT(error.what(), testing::HasSubstr("wants a fraction from 0 up"));
    }
  }
}

}  // namespace
}  // namespace ssmjit
