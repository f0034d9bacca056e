#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/error.h>
#include <ssmjit/table.h>

#include "tests/heuristics/sample_rows.h"

namespace ssmjit {
namespace {

using testing::HasSubstr;

const Table kTable{{sample_row(16, 2, 0), sample_row(256, 8, 1), sample_row(4096, 64, 2)}};

Choice look(std::int64_t batch, const Table& table = kTable, PdlMode mode = PdlMode::off) {
  return lookup(table, sample_description(), "h200", kSm90, batch, mode);
}

// As a launch behind a producer wants it.
Plan early(Plan plan) {
  plan.early_state = true;
  return plan;
}

TEST(Lookup, AMeasuredSizeIsExact) {
  const Choice choice = look(16);
  EXPECT_EQ(choice.why, Why::exact);
  EXPECT_EQ(choice.plan, sample_plan(1));
  EXPECT_DOUBLE_EQ(choice.expected_us, 8);
  EXPECT_DOUBLE_EQ(choice.floor_us, 4);
  EXPECT_THAT(choice.reason, HasSubstr("256 heads"));
}

TEST(Lookup, TensorParallelSizesShareRows) {
  Description whole = sample_description(64);
  whole.ngroups = 4;  // as many heads a group as one rank's 16 in one
  const Choice choice = lookup(kTable, whole, "h200", kSm90, 4);
  EXPECT_EQ(choice.why, Why::exact) << choice.reason;
  EXPECT_EQ(choice.plan, sample_plan(1));
}

TEST(Lookup, BetweenTwoRowsTheTimeIsOnTheLineInLogSpace) {
  const Choice choice = look(4);  // 64 heads: half way from 16 to 256
  EXPECT_EQ(choice.why, Why::interpolated);
  EXPECT_NEAR(choice.expected_us, 4, 1e-9);
  EXPECT_NEAR(choice.floor_us, 2, 1e-9);
  EXPECT_THAT(choice.reason, HasSubstr("between the rows of 16 and 256"));
}

TEST(Lookup, BetweenTwoRowsThePlanIsThatOfTheNearerInLogSpace) {
  EXPECT_EQ(look(3).plan, sample_plan(0));
  EXPECT_EQ(look(5).plan, sample_plan(1));  // 80 heads: nearer to 16 on a ruler, to 256 by ratio
}

TEST(Lookup, BetweenTwoRowsTheSmallerOnesPlanStaysForAsManyHeadsAsItsClustersFit) {
  Table table = kTable;
  table.rows[0].fits_heads = 112;
  table.rows[0].between = sample_plan(3);
  for (const std::int64_t batch : {2, 4, 7}) EXPECT_EQ(look(batch, table).plan, sample_plan(0)) << batch;
  for (const std::int64_t batch : {8, 15}) EXPECT_EQ(look(batch, table).plan, sample_plan(3)) << batch;
  EXPECT_EQ(look(7, table).why, Why::interpolated);
  EXPECT_EQ(look(7, table).expected_us, look(7).expected_us) << "the time is on the line all the same";
  EXPECT_THAT(look(7, table).reason, HasSubstr("the plan is that of 16, whose clusters fit up to 112"));
  EXPECT_THAT(look(8, table).reason, HasSubstr("the plan is the one for sizes between them"));

  table.rows[0].between.reset();
  EXPECT_EQ(look(7, table).plan, sample_plan(0)) << "though nearer to 256";
  EXPECT_EQ(look(8, table).plan, sample_plan(1));
  EXPECT_EQ(look(16, table).plan, sample_plan(1));
}

TEST(Lookup, WhatFitsTheNextRowsSizeTooSaysNothingOfTheSizesBetween) {
  Table table = kTable;
  table.rows[0].between = sample_plan(3);
  for (const std::int64_t fits : {256, 4096}) {
    table.rows[0].fits_heads = fits;
    EXPECT_EQ(look(4, table).plan, sample_plan(3)) << fits;
  }
  table.rows[2].fits_heads = 5000;
  EXPECT_EQ(look(300, table).plan, sample_plan(2));
  EXPECT_EQ(look(512, table).plan, sample_plan(2)) << "behind the last row";
}

TEST(Lookup, SizesAreToldInWhatTheWorkOfTheKernelCounts) {
  for (const auto& [kernel, unit] : {std::pair("conv1d", "blocks of 64 channels"), std::pair("norm", "groups")}) {
    const Description d = load_model("nemotron3-super-tp8").kernel(kernel);
    TableRow row = of_kernel(d, sample_row(work_items(d, 4), 2, 0));
    row.op = d.op();
    row.plan = default_plan(d, kSm90, row.total_heads);
    const Choice exact = lookup(Table{{row}}, d, "h200", kSm90, 4), near = lookup(Table{{row}}, d, "h200", kSm90, 8);
    EXPECT_THAT(exact.reason, HasSubstr(std::to_string(work_items(d, 4)) + " " + unit + " on h200"));
    EXPECT_THAT(near.reason, HasSubstr(std::to_string(work_items(d, 8)) + " " + unit + " lie above"));
  }
  EXPECT_THAT(look(16).reason, HasSubstr("256 heads on h200"));
}

TEST(Lookup, OutsideTheRowsTheNearestIsTaken) {
  const Choice above = look(512);  // 8192 heads
  EXPECT_EQ(above.why, Why::nearest);
  EXPECT_EQ(above.plan, sample_plan(2));
  EXPECT_DOUBLE_EQ(above.expected_us, 128);
  EXPECT_THAT(above.reason, HasSubstr("above every row"));

  const Table late{{sample_row(256, 8, 1), sample_row(4096, 64, 2)}};
  const Choice below = look(1, late);
  EXPECT_EQ(below.why, Why::nearest);
  EXPECT_EQ(below.plan, sample_plan(1));
  EXPECT_DOUBLE_EQ(below.expected_us, 8);
  EXPECT_THAT(below.reason, HasSubstr("below every row"));
}

TEST(Lookup, TheOrderOfTheRowsDoesNotMatter) {
  const Table shuffled{{kTable.rows[2], kTable.rows[0], kTable.rows[1]}};
  for (const std::int64_t batch : {1, 3, 5, 16, 100, 256, 1000}) {
    EXPECT_EQ(look(batch).plan, look(batch, shuffled).plan) << batch;
    EXPECT_EQ(look(batch).reason, look(batch, shuffled).reason) << batch;
  }
}

TEST(Lookup, AnEmptyOrAbsurdBatchHasAnAnswer) {
  for (const std::int64_t batch : {std::int64_t{0}, std::int64_t{-5}, std::numeric_limits<std::int64_t>::min(),
                                   std::numeric_limits<std::int64_t>::max()}) {
    const Choice choice = look(batch);
    EXPECT_TRUE(plan_problems(choice.plan, sample_description(), kSm90).empty()) << batch;
    EXPECT_TRUE(std::isfinite(choice.expected_us)) << batch;
    const Choice without = look(batch, {});
    EXPECT_EQ(without.why, Why::fallback);
    EXPECT_TRUE(plan_problems(without.plan, sample_description(), kSm90).empty()) << batch;
  }
}

TEST(Lookup, ARowWhosePlanIsNotLegalIsPassedOver) {
  Table table = kTable;
  table.rows[1].plan.block_m = 48;  // does not divide head_dim
  const Choice choice = look(16, table);
  EXPECT_EQ(choice.why, Why::interpolated);
  EXPECT_TRUE(plan_problems(choice.plan, sample_description(), kSm90).empty());
  EXPECT_THAT(choice.reason, HasSubstr("passed over a row with a plan that is not legal on sm_90a"));

  for (TableRow& row : table.rows) row.plan.block_m = 48;
  EXPECT_EQ(look(16, table).why, Why::fallback);
  EXPECT_THAT(look(16, table).reason, HasSubstr("passed over 3 rows"));
}

TEST(Lookup, AModeWithoutRowsTakesTheOtherModesAndSaysSo) {
  const Choice choice = look(16, kTable, PdlMode::chain);
  EXPECT_EQ(choice.plan, early(sample_plan(1)));
  EXPECT_EQ(choice.why, Why::nearest);
  EXPECT_THAT(choice.reason, HasSubstr("measured with PDL mode off, as there is no row for chain"));
}

TEST(Lookup, AMeasuredEarlyPlanServesAGpuWithoutDependentLaunchesAsAnOrdinaryOne) {
  Table table;
  table.rows.push_back(sample_row(256, 3, 3, "h200", PdlMode::chain));
  table.rows.back().plan.early_state = true;
  const Choice choice = lookup(table, sample_description(), "a100", Arch::parse("sm_80"), 16, PdlMode::chain);
  EXPECT_EQ(choice.why, Why::other_device);
  EXPECT_EQ(choice.plan, sample_plan(3));
}

TEST(Lookup, AModeWithRowsNeverMixesWithTheOther) {
  Table table = kTable;
  table.rows.push_back(sample_row(64, 3, 3, "h200", PdlMode::chain));
  const Choice chain = look(16, table, PdlMode::chain);
  EXPECT_EQ(chain.why, Why::nearest);
  EXPECT_EQ(chain.plan, sample_plan(3)) << "a row of the mode keeps what was measured";
  EXPECT_EQ(look(4, table).why, Why::interpolated);
}

TEST(Lookup, AKernelOfTheSameCostServesWhereThereIsNoRowOfThisOneAndItSaysSo) {
  const Description twin = sample_description().delta(softplus(dsl::dt));
  ASSERT_NE(twin.kernel_digest(), sample_description().kernel_digest());
  ASSERT_EQ(twin.cost_digest(), sample_description().cost_digest());
  const Choice choice = lookup(kTable, twin, "h200", kSm90, 16);
  EXPECT_EQ(choice.why, Why::similar);
  EXPECT_EQ(choice.plan, sample_plan(1));
  EXPECT_DOUBLE_EQ(choice.expected_us, 8);
  EXPECT_THAT(choice.reason, HasSubstr("measured with a kernel of the same cost, a kernel"));

  Table table = kTable;
  table.rows.push_back(of_kernel(twin, sample_row(16, 2, 3)));
  EXPECT_EQ(lookup(table, twin, "h200", kSm90, 16).plan, sample_plan(3)) << "its own rows win";
  EXPECT_EQ(look(16, table).plan, sample_plan(1));
}

TEST(Lookup, SeveralKernelsOfTheSameCostGiveOneAnswerInAnyOrder) {
  const Description twin = sample_description().delta(softplus(dsl::dt));
  const Description other = sample_description().no_skip();
  ASSERT_EQ(other.cost_digest(), twin.cost_digest());
  const TableRow a = sample_row(256, 8, 1), b = of_kernel(twin, sample_row(256, 9, 2));
  const Choice one = lookup(Table{{a, b}}, other, "h200", kSm90, 16);
  const Choice two = lookup(Table{{b, a}}, other, "h200", kSm90, 16);
  EXPECT_EQ(one.why, Why::similar);
  EXPECT_EQ(one.plan, two.plan);
  EXPECT_EQ(one.reason, two.reason);
}

TEST(Lookup, ThisGpuWithAKernelOfTheSameCostWinsOverAnotherGpu) {
  const Description twin = sample_description().delta(softplus(dsl::dt));
  Table table = kTable;
  table.rows.push_back(of_kernel(twin, sample_row(256, 2, 3, "b200")));
  EXPECT_EQ(lookup(table, twin, "h200", kSm90, 16).why, Why::similar);
  const Choice elsewhere = lookup(kTable, twin, "h100", kSm90, 16);
  EXPECT_EQ(elsewhere.why, Why::other_device);
  EXPECT_EQ(elsewhere.expected_us, 0);
  EXPECT_THAT(elsewhere.reason, HasSubstr("same cost"));
}

TEST(Lookup, UnknownTimesStayUnknown) {
  Table table = kTable;
  for (TableRow& row : table.rows) row.floor_us = 0;
  EXPECT_EQ(look(4, table).floor_us, 0);
  EXPECT_EQ(look(512, table).floor_us, 0);
}

TableRow predicted(TableRow row) {
  row.predicted = true;
  return row;
}

TEST(Lookup, APredictedRowAnswersAndSaysSo) {
  const Table table{{predicted(sample_row(256, 8, 1, "b200")), sample_row(256, 9, 2)}};
  const Choice choice = lookup(table, sample_description(), "b200", Arch::parse("sm_100a"), 16);
  EXPECT_EQ(choice.why, Why::predicted) << "rather than what another GPU measured";
  EXPECT_EQ(choice.plan, sample_plan(1));
  EXPECT_EQ(choice.expected_us, 8);
  EXPECT_THAT(choice.reason, HasSubstr("predicted at 256 heads on b200"));
  EXPECT_THAT(choice.reason, HasSubstr("not measured"));
}

TEST(Lookup, WhatWasMeasuredOnThisGpuWinsOverWhatWasPredicted) {
  const Description other = sample_description().delta(softplus(dsl::dt));
  const Table far{{predicted(sample_row(256, 8, 1)), sample_row(4096, 64, 2)}};
  EXPECT_EQ(look(16, far).why, Why::nearest);
  EXPECT_EQ(look(16, far).plan, sample_plan(2));
  const Table similar{{predicted(sample_row(256, 8, 1)), of_kernel(other, sample_row(256, 9, 2))}};
  EXPECT_EQ(look(16, similar).why, Why::similar);
}

TEST(Lookup, WhatWasPredictedForAnotherGpuAnswersNothing) {
  EXPECT_EQ(look(16, Table{{predicted(sample_row(256, 8, 1, "b200"))}}).why, Why::fallback);
}

TEST(Lookup, HalfWayByRatioGoesUpAndAHeadLessGoesDown) {
  for (const std::int64_t middle :
       {std::int64_t{64}, std::int64_t{3'000'000}, std::int64_t{4'611'686'018'427'387'902}}) {
    const Description one = sample_description(1);
    Table table{{of_kernel(one, sample_row(middle / 2, 2, 0)), of_kernel(one, sample_row(middle * 2, 8, 0))}};
    table.rows[1].plan.streaming = !table.rows[0].plan.streaming;
    EXPECT_EQ(lookup(table, one, "h200", kSm90, middle - 1).plan, table.rows[0].plan) << middle;
    EXPECT_EQ(lookup(table, one, "h200", kSm90, middle).plan, table.rows[1].plan) << middle;
  }
}

TEST(Lookup, SizesBetweenTwoRowsTakeThePlanThatIsForThem) {
  const Description one = sample_description(1);
  Table table{{of_kernel(one, sample_row(64, 2, 0)), of_kernel(one, sample_row(1024, 8, 1))}};
  const Plan low = table.rows[0].plan;
  Plan between = low, high = low;
  between.streaming = !low.streaming;
  high.min_blocks_per_sm = 1 - low.min_blocks_per_sm;
  table.rows[0].between = between;
  table.rows[1].plan = high;
  for (const std::int64_t heads : {65, 200, 256, 1023}) {
    const Choice choice = lookup(table, one, "h200", kSm90, heads);
    EXPECT_EQ(choice.plan, between) << heads;
    EXPECT_EQ(choice.why, Why::interpolated);
    EXPECT_NEAR(choice.expected_us, 2 * std::sqrt(static_cast<double>(heads) / 64.0), 1e-9)
        << "the time stays on the line";
  }
  EXPECT_EQ(lookup(table, one, "h200", kSm90, 64).plan, low);
  EXPECT_EQ(lookup(table, one, "h200", kSm90, 1024).plan, high);
  EXPECT_EQ(lookup(table, one, "h200", kSm90, 32).plan, low);
  EXPECT_EQ(lookup(table, one, "h200", kSm90, 4096).plan, high);
}

TEST(Lookup, APlanBetweenRowsIsTakenInTheKindOfTheLaunchAndLeftWhereItIsNotLegal) {
  Table table = kTable;
  table.rows[0].between = sample_plan(2);
  Choice choice = lookup(table, sample_description(), "h200", kSm90, 15, PdlMode::chain);
  EXPECT_TRUE(choice.plan.early_state);
  choice.plan.early_state = false;
  EXPECT_EQ(choice.plan, sample_plan(2));
  table.rows[0].between->block_m = 7;
  EXPECT_NE(look(15, table).plan.block_m, 7);
  EXPECT_EQ(look(15, table).why, Why::interpolated);
}

TEST(Lookup, APlanBetweenRowsOfAnotherGpuIsTakenToo) {
  Table table = kTable;
  table.rows[0].between = sample_plan(2);
  const Choice choice = lookup(table, sample_description(), "h100", kSm90, 15);
  EXPECT_EQ(choice.why, Why::other_device);
  EXPECT_EQ(choice.plan, sample_plan(2));
}

TEST(Faults, Row28_ATableOfAnotherGpuAnswersAndSaysSo) {
  const Table table{{sample_row(16, 2, 0, "b200"), sample_row(256, 8, 1, "h100")}};
  const Choice choice = look(16, table);
  EXPECT_EQ(choice.why, Why::other_device);
  EXPECT_EQ(choice.plan, sample_plan(1));
  EXPECT_EQ(choice.expected_us, 0) << "another device's time says nothing about this one";
  EXPECT_THAT(choice.reason, HasSubstr("no row of this kernel on h200"));
  EXPECT_THAT(choice.reason, HasSubstr("256 heads on h100"));
}

TEST(Faults, Row28_RowsOfThisGpuWinOverAnothers) {
  const Table table{{sample_row(256, 1, 0, "b200"), sample_row(4096, 64, 2)}};
  EXPECT_EQ(look(16, table).plan, sample_plan(2));
  EXPECT_EQ(look(16, table).why, Why::nearest);
}

TEST(Faults, Row28_ATableOfAnotherDescriptionOrKernelVersionGivesTheDefaultPlan) {
  const Description other = sample_description().state(DType::f32);
  const Choice choice = lookup(kTable, other, "h200", kSm90, 16);
  EXPECT_EQ(choice.why, Why::fallback);
  EXPECT_EQ(choice.plan, default_plan(other, kSm90, 256));
  EXPECT_EQ(choice.expected_us, 0);
  EXPECT_THAT(choice.reason, HasSubstr(other.kernel_digest()));
}

TEST(Faults, Row28_APlanOfABiggerGpuIsNeverGivenToASmallerOne) {
  Table table;
  for (std::size_t i = 0; i < 40; ++i) table.rows.push_back(sample_row(16 << i % 12, 2, i, i < 12 ? "h200" : "b200"));
  for (const Arch& arch : Arch::known()) {
    for (const std::int64_t batch : {1, 8, 300}) {
      const Choice choice = lookup(table, sample_description(), "some-gpu", arch, batch);
      EXPECT_TRUE(plan_problems(choice.plan, sample_description(), arch).empty()) << arch.text() << choice.reason;
    }
  }
}

TEST(Faults, Row28_AnEmptyTableGivesTheDefaultPlan) {
  EXPECT_EQ(look(8, {}).why, Why::fallback);
  EXPECT_THAT(look(8, {}).reason, HasSubstr("no row of this kernel"));
}

// ---- the chain of a layer ----

Description sample_layer() {
  return sample_description()
      .with_conv({.activation_expr = silu(dsl::x)})
      .with_norm({.group_size = 1024, .gate_expr = silu(dsl::z)});
}
// Legal plans of a description that differ, none of them the default one's.
std::vector<Plan> other_plans(const Description& description, bool early) {
  std::vector<Plan> plans = plan_space(description, kSm90);
  Plan usual = default_plan(description, kSm90, 16);
  usual.early_state = early;
  std::erase_if(plans, [&](const Plan& plan) { return plan.early_state != early || plan == usual; });
  return plans;
}
// Of each part of the layer a row in each mode at these batches; the plans of batch and mode differ where `vary`.
Table table_of_parts(const std::vector<int>& batches, bool vary = true) {
  Table table;
  for (const Description& part : layer_parts(sample_layer()))
    for (const PdlMode mode : {PdlMode::off, PdlMode::chain})
      for (std::size_t i = 0; i < batches.size(); ++i) {
        TableRow row = of_kernel(part, sample_row(work_items(part, batches[i]), 2, 0, "h200", mode));
        const std::vector<Plan> plans = other_plans(part, mode == PdlMode::chain);
        row.plan = plans.at(((vary ? i : 0) * 2 + (mode == PdlMode::chain ? 1 : 0)) % plans.size());
        table.rows.push_back(row);
      }
  return table;
}
Plan plan_in(const Table& table, const Description& part, int batch, PdlMode mode) {
  return lookup(table, part, "h200", kSm90, batch, mode).plan;
}

TEST(LookupChain, HasThePlanThatTheTableGivesEachPart) {
  const Table table = table_of_parts({8, 64});
  const std::vector<Description> parts = layer_parts(sample_layer());
  ASSERT_EQ(parts.size(), 3u);
  for (const int batch : {8, 64}) {
    const Plan chain = lookup_chain(table, PlanForm::chain, sample_layer(), "h200", kSm90, batch);
    EXPECT_EQ(chain.form, PlanForm::chain);
    const std::vector<PlanPart> of = plan_parts(chain, sample_layer());
    ASSERT_EQ(of.size(), 3u);
    for (std::size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(of[i].description, parts[i]);
      EXPECT_EQ(of[i].plan, plan_in(table, parts[i], batch, PdlMode::off)) << batch << " " << name(parts[i].op());
      EXPECT_NE(of[i].plan, default_plan(parts[i], kSm90, work_items(parts[i], batch)));
    }
    EXPECT_TRUE(plan_problems(chain, sample_layer(), kSm90).empty());
  }
  EXPECT_NE(lookup_chain(table, PlanForm::chain, sample_layer(), "h200", kSm90, 8),
            lookup_chain(table, PlanForm::chain, sample_layer(), "h200", kSm90, 64));
}

TEST(LookupChain, WithPdlAllPartsButTheFirstAreThoseOfLaunchesBehindAProducer) {
  const Table table = table_of_parts({8});
  const std::vector<Description> parts = layer_parts(sample_layer());
  for (const PdlMode in_front : {PdlMode::off, PdlMode::chain}) {
    const Plan chain = lookup_chain(table, PlanForm::chain_pdl, sample_layer(), "h200", kSm90, 8, in_front);
    const std::vector<PlanPart> of = plan_parts(chain, sample_layer());
    EXPECT_EQ(of[0].plan, plan_in(table, parts[0], 8, in_front));
    for (const std::size_t i : {1u, 2u}) {
      EXPECT_EQ(of[i].plan, plan_in(table, parts[i], 8, PdlMode::chain));
      EXPECT_TRUE(of[i].plan.early_state);
      EXPECT_NE(of[i].plan, early(plan_in(table, parts[i], 8, PdlMode::off))) << "rows of both modes are there";
    }
  }
  const Plan alone = lookup_chain(table, PlanForm::chain, sample_layer(), "h200", kSm90, 8, PdlMode::chain);
  const std::vector<PlanPart> of = plan_parts(alone, sample_layer());
  EXPECT_EQ(of[0].plan, plan_in(table, parts[0], 8, PdlMode::chain)) << "the launch in front is a producer";
  EXPECT_EQ(of[1].plan, plan_in(table, parts[1], 8, PdlMode::off)) << "inside the chain there is none";
}

TEST(LookupChain, TakesDefaultPlansWhereTheTableHasNone) {
  EXPECT_EQ(lookup_chain({}, PlanForm::chain, sample_layer(), "h200", kSm90, 8),
            default_chain(PlanForm::chain, sample_layer(), kSm90, 8 * 16));
  EXPECT_EQ(lookup_chain({}, PlanForm::chain_pdl, sample_layer(), "h200", kSm90, 8),
            default_chain(PlanForm::chain_pdl, sample_layer(), kSm90, 8 * 16));
  Description no_conv = sample_layer();
  no_conv.conv.reset();
  EXPECT_EQ(plan_parts(lookup_chain({}, PlanForm::chain, no_conv, "h200", kSm90, 8), no_conv).size(), 2u);
}

TEST(LookupChain, OfNoLayerIsRefused) {
  for (const auto& [form, description] :
       {std::pair(PlanForm::chain, sample_description()), {PlanForm::fused, sample_layer()}})
    try {
      lookup_chain({}, form, description, "h200", kSm90, 8);
      ADD_FAILURE() << "not refused";
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::invalid);
      EXPECT_THAT(e.what(), HasSubstr("wants a layer's"));
    }
}

std::vector<Plan> of_form(const std::vector<Plan>& plans, PlanForm form) {
  std::vector<Plan> found;
  for (const Plan& plan : plans)
    if (plan.form == form) found.push_back(plan);
  return found;
}

TEST(LayerPlans, AreThePlansOfOneKernelAndTheTablesChainsOfEachBatchOnce) {
  const std::vector<Plan> space = plan_space(sample_layer(), kSm90);
  const Table table = table_of_parts({8, 64});
  const std::vector<Plan> plans = layer_plans(table, sample_layer(), "h200", kSm90, {8, 64, 8});
  EXPECT_EQ(of_form(plans, PlanForm::fused), of_form(space, PlanForm::fused));
  EXPECT_FALSE(of_form(plans, PlanForm::fused).empty());
  for (const PlanForm form : {PlanForm::chain, PlanForm::chain_pdl}) {
    const std::vector<Plan> chains = of_form(plans, form);
    ASSERT_EQ(chains.size(), 2u) << name(form);
    EXPECT_EQ(chains[0], lookup_chain(table, form, sample_layer(), "h200", kSm90, 8));
    EXPECT_EQ(chains[1], lookup_chain(table, form, sample_layer(), "h200", kSm90, 64));
  }
  EXPECT_EQ(
      of_form(layer_plans(table_of_parts({8, 64}, false), sample_layer(), "h200", kSm90, {8, 64}), PlanForm::chain)
          .size(),
      1u)
      << "both batches have the same";
}

TEST(LayerPlans, HaveNoChainThatTheArchHasNot) {
  const std::vector<Plan> plans = layer_plans({}, sample_layer(), "a100", {8, 0, 0}, {8});
  EXPECT_EQ(of_form(plans, PlanForm::chain).size(), 1u);
  EXPECT_TRUE(of_form(plans, PlanForm::chain_pdl).empty()) << "dependent launches came with sm_90";
}

}  // namespace
}  // namespace ssmjit
