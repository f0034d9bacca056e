#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/measurement.h>

#include "tests/autotune/sample_measurements.h"

namespace ssmjit {
namespace {

using testing::DoubleNear;
using testing::SizeIs;

TEST(CheckTable, ATableOfEachSizesBestHasNoRegretOnItsJournal) {
  for (const char* journal : kRecorded) {
    const std::vector<Measurement> all = recorded_journal(journal);
    const Table table = fit_table(all, {.max_regret = 0});
    const TableCheck check = check_table(table, all);
    EXPECT_THAT(check.cells, SizeIs(table.rows.size())) << journal;
    EXPECT_EQ(check.compared, static_cast<int>(table.rows.size())) << journal;
    EXPECT_EQ(check.worst_regret, 0) << journal;
    for (const CellCheck& cell : check.cells) EXPECT_EQ(cell.answer->choice.why, Why::exact);
  }
}

TEST(CheckTable, ATableFittedWithABoundKeepsItOnItsJournal) {
  for (const char* journal : kRecorded) {
    const std::vector<Measurement> all = recorded_journal(journal);
    const TableCheck check = check_table(fit_table(all, {.max_regret = 0.01}), all);
    EXPECT_GT(check.worst_regret, 0) << journal;
    EXPECT_LE(check.worst_regret, 0.01 + 1e-9) << journal;
    EXPECT_EQ(check.not_timed + check.unanswered, 0) << journal;
  }
}

TEST(CheckTable, RegretIsOfTheTablesPlanAgainstTheBestOfTheSize) {
  const Table table = fit_table({timed(8, 0, 5), timed(16, 0, 6)});
  const TableCheck check = check_table(table, {timed(8, 0, 5.5), timed(8, 1, 5), timed(16, 0, 6), timed(16, 1, 7)});
  ASSERT_THAT(check.cells, SizeIs(2));
  EXPECT_EQ(check.cells[0].best, timed_plan(1));
  EXPECT_EQ(check.cells[0].best_us, 5);
  EXPECT_EQ(check.cells[0].answer->us, 5.5);
  EXPECT_THAT(check.cells[0].answer->regret, DoubleNear(0.1, 1e-9));
  EXPECT_EQ(check.cells[1].answer->regret, 0);
  EXPECT_THAT(check.worst_regret, DoubleNear(0.1, 1e-9));
  EXPECT_THAT(check.median_regret, DoubleNear(0.05, 1e-9));
}

TEST(CheckTable, ASizesRowIsLeftOutAndItsNeighboursPlanIsCharged) {
  const std::vector<Measurement> all = {timed(8, 0, 5),    timed(8, 1, 6),   timed(16, 0, 7),
                                        timed(16, 1, 8.4), timed(32, 0, 11), timed(32, 1, 10)};
  const TableCheck check = check_table(fit_table(all), all);
  ASSERT_EQ(check.compared_loo, 3);
  EXPECT_THAT(check.cells[0].left_out->regret, DoubleNear(0, 1e-9));
  EXPECT_EQ(check.cells[0].left_out->choice.why, Why::nearest);
  EXPECT_EQ(check.cells[1].left_out->choice.why, Why::interpolated);
  EXPECT_EQ(check.cells[1].left_out->regret, 0) << "20% lost at 8 by the plan of 32, 10% at 32 by that of 8";
  EXPECT_THAT(check.cells[2].left_out->regret, DoubleNear(0.1, 1e-9));
  EXPECT_THAT(check.worst_loo_regret, DoubleNear(0.1, 1e-9));
  EXPECT_EQ(check.median_loo_regret, 0);
  EXPECT_FALSE(check_table(fit_table({timed(8, 0, 5)}), {timed(8, 0, 5)}).cells.at(0).left_out)
      << "a kernel of one row has nothing left";
}

TEST(CheckTable, WithARowLeftOutTheSizesBesideItSayWhatStandsThereAndNotTheSizeItself) {
  // What 8 and 32 say of plan 2 puts it between them; at 16 it loses 20%.
  const std::vector<Measurement> all = {timed(8, 0, 10),  timed(8, 1, 20),  timed(8, 2, 10.2),
                                        timed(16, 0, 10), timed(16, 1, 10), timed(16, 2, 12),
                                        timed(32, 0, 20), timed(32, 1, 10), timed(32, 2, 10.2)};
  Table table = fit_table(all);
  ASSERT_THAT(table.rows, SizeIs(3));
  EXPECT_THAT(check_table(table, all).cells[1].left_out->regret, DoubleNear(0.2, 1e-9));
  table.rows[0].between = timed_plan(0);
  EXPECT_THAT(check_table(table, all).cells[1].left_out->regret, DoubleNear(0.2, 1e-9)) << "it stood between 8 and 16";
}

TEST(CheckTable, WithARowLeftOutPredictedRowsStayAsTheyAre) {
  const std::vector<Measurement> all = {timed(8, 0, 10),  timed(8, 1, 20),  timed(16, 0, 10),
                                        timed(16, 1, 12), timed(32, 0, 11), timed(32, 1, 10)};
  Table table = fit_table(all);
  for (TableRow& row : table.rows) row.predicted = true, row.between.reset();
  EXPECT_THAT(check_table(table, all).cells[1].left_out->regret, DoubleNear(0.2, 1e-9)) << "half way: the plan of 32";
}

TEST(CheckTable, ARecordedSizeLeftOutLosesAThirtiethWhereHalfWayByRatioWouldLoseAQuarter) {
  const std::vector<Measurement> all = recorded_journal("switch-super-ring-fp32-h200.jsonl");
  const Table table = fit_table(all);
  Table halves = table;  // predicted rows keep the middle
  for (TableRow& row : halves.rows) row.predicted = true, row.between.reset();
  const TableCheck half_way = check_table(halves, all), check = check_table(table, all);
  EXPECT_EQ(check.compared_loo, 11);
  EXPECT_EQ(half_way.compared_loo, 11);
  EXPECT_GT(half_way.worst_loo_regret, 0.25);
  EXPECT_LT(check.worst_loo_regret, 0.06);
}

TEST(CheckTable, APlanThatWasNotTimedIsCountedAndNamed) {
  const Table table = fit_table({timed(8, 0, 5), timed(16, 1, 6)});
  Measurement failed = timed(16, 1, 0);
  failed.outcome = Outcome::launch_failed;
  const TableCheck check = check_table(table, {timed(8, 2, 5), timed(16, 2, 6), failed});
  EXPECT_EQ(check.compared, 0);
  EXPECT_EQ(check.not_timed, 2);
  EXPECT_EQ(check.cells.at(0).answer->remark, "its plan was not timed");
  EXPECT_EQ(check.cells.at(1).answer->remark, "its plan has no time: launch_failed");
}

TEST(CheckTable, APlanThatWasDroppedEarlyHasItsFewReplaysTimeAndSaysSo) {
  Measurement dropped = timed(8, 0, 5.5);
  dropped.outcome = Outcome::dropped;
  const TableCheck check = check_table(fit_table({timed(8, 0, 5)}), {dropped, timed(8, 1, 5)});
  EXPECT_THAT(check.cells.at(0).answer->regret, DoubleNear(0.1, 1e-9));
  EXPECT_EQ(check.cells.at(0).answer->remark, "few replays");
}

TEST(CheckTable, AKernelWithoutARowIsUnanswered) {
  Measurement other = timed(8, 0, 5);
  other.kernel_digest = other.cost_digest = "0000000000000000";
  const TableCheck check = check_table(fit_table({timed(8, 0, 5)}), {other});
  EXPECT_EQ(check.unanswered, 1);
  EXPECT_FALSE(check.cells.at(0).answer);
}

TEST(Faults, Row28_ATableOfAnotherGpuAnswersForThisOneAndItsRegretIsMeasured) {
  const std::vector<Measurement> here = recorded_journal("tables_ring_h200.jsonl");
  Table elsewhere = fit_table(here);
  for (TableRow& row : elsewhere.rows) {
    row.device = "h100";
    row.plan = elsewhere.rows.front().plan;  // what is best at its smallest size
  }
  const TableCheck check = check_table(elsewhere, here);
  EXPECT_EQ(check.unanswered, 0);
  EXPECT_GT(check.worst_regret, 0.01);
  EXPECT_EQ(check.compared + check.not_timed, 11);
  EXPECT_EQ(check.compared_loo, 0) << "there is no row of this GPU to leave out";
  for (const CellCheck& cell : check.cells) {
    ASSERT_TRUE(cell.answer);
    EXPECT_EQ(cell.device, "h200");
    EXPECT_EQ(cell.answer->choice.why, Why::other_device);
    EXPECT_EQ(cell.answer->choice.expected_us, 0);
  }
}

}  // namespace
}  // namespace ssmjit
