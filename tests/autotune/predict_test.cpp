#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/error.h>
#include <ssmjit/tune.h>

#include "heuristics/predict.h"
#include "tests/autotune/sample_measurements.h"

namespace ssmjit {
namespace {

using testing::HasSubstr;

Description described(const std::string& digest) {
  for (const char* spec : {"nemotron3-nano", "nemotron3-super-tp8"})
    for (const auto& [kernel, description] : load_model(spec).kernels) {
      Description d = description;
      d.state(DType::bf16);
      if (d.kernel_digest() == digest) return d;
    }
  ADD_FAILURE() << digest << " is of no shipped model";
  return timed_step();
}

double predicted_us(const Description& d, const Measurement& m) {
  const GpuFacts gpu = gpu_facts("h200");
  if (m.op != Op::ring) return predict_us(d, m.plan, gpu, m.batch, m.pdl);
  Measurement guess = m;
  for (PhaseMeasurement& p : guess.phases) p.us = predict_us(d, m.plan, gpu, m.batch, m.pdl, p.phase, p.ring_count);
  guess.weigh();
  return guess.us;
}

std::vector<double> ranks(const std::vector<double>& of) {
  std::vector<std::size_t> order(of.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return of[a] < of[b]; });
  std::vector<double> rank(of.size());
  for (std::size_t i = 0; i < order.size(); ++i) rank[order[i]] = static_cast<double>(i);
  return rank;
}

struct Score {
  double first_choice_regret = 0, error = 0, rank_correlation = 0;
  std::size_t plans = 0;
};
// By total heads.
std::map<std::int64_t, Score> scores(const std::string& journal) {
  struct Both {
    std::vector<double> guess, us;
  };
  std::map<std::int64_t, Both> sizes;
  for (const Measurement& m : recorded_journal(journal)) {
    if (m.us <= 0) continue;
    const Description d = described(m.kernel_digest);
    EXPECT_EQ(d.nheads, m.nheads);
    sizes[m.total_heads()].guess.push_back(predicted_us(d, m));
    sizes[m.total_heads()].us.push_back(m.us);
  }
  std::map<std::int64_t, Score> scores;
  for (const auto& [size, both] : sizes) {
    Score& score = scores[size];
    score.plans = both.us.size();
    const auto first =
        static_cast<std::size_t>(std::min_element(both.guess.begin(), both.guess.end()) - both.guess.begin());
    score.first_choice_regret = both.us[first] / *std::min_element(both.us.begin(), both.us.end()) - 1;
    score.error = std::abs(both.guess[first] / both.us[first] - 1);
    const std::vector<double> a = ranks(both.guess), b = ranks(both.us);
    double squares = 0;
    for (std::size_t i = 0; i < a.size(); ++i) squares += (a[i] - b[i]) * (a[i] - b[i]);
    const auto n = static_cast<double>(a.size());
    score.rank_correlation = 1 - 6 * squares / (n * (n * n - 1));
  }
  return scores;
}

TEST(Predict, OnTheGpuItWasFittedToItsFirstChoiceIsNearTheBestAndItsTimeNearTheMeasured) {
  for (const char* journal : kRecorded)
    for (const auto& [size, score] : scores(journal)) {
      EXPECT_LT(score.first_choice_regret, 0.1) << journal << ", " << size << " heads";
      EXPECT_LT(score.error, 0.15) << journal << ", " << size << " heads";
    }
}

TEST(Predict, ItOrdersThePlansOfASize) {
  for (const char* journal : kRecorded) {
    int wide = 0;
    for (const auto& [size, score] : scores(journal)) {
      if (score.plans < 50) continue;  // those near the best alone
      ++wide;
      EXPECT_GT(score.rank_correlation, 0.6) << journal << ", " << size << " heads";
    }
    EXPECT_EQ(wide, 2) << journal;
  }
}

TEST(Predict, EveryLegalPlanHasATimeOnEveryKnownGpu) {
  for (const GpuFacts& listed : known_gpus()) {
    if (listed.sms == 0) continue;
    const GpuFacts gpu = gpu_facts(listed.key);
    for (const Description& d : {timed_step(), timed_ring()})
      for (const Plan& plan : plan_space(d, gpu.arch))
        for (const int batch : {1, 1024}) {
          const Phase phase = d.op() == Op::ring ? Phase::flush : Phase::no_flush;
          const double us = predict_us(d, plan, gpu, batch, PdlMode::chain, phase);
          ASSERT_TRUE(std::isfinite(us) && us > 1 && us < 1e5) << gpu.key << " " << plan.text() << ": " << us;
        }
  }
}

TEST(Predict, LargeBatchesGoByTheMemoryOfTheGpuAndSmallOnesByItsLaunch) {
  const Plan plan = default_plan(timed_step(), Arch{}, 16384);
  const auto us = [&](const char* gpu, int batch) { return predict_us(timed_step(), plan, gpu_facts(gpu), batch); };
  EXPECT_NEAR(us("h100", 4096) / us("h200", 4096), 4800.0 / 3350, 0.1);
  EXPECT_NEAR(us("h100", 1) / us("h200", 1), 1, 0.05);
  EXPECT_LT(us("b200", 1024), us("h200", 1024));
}

TEST(Predict, AGpuThatIsNotListedIsTakenForTheNearestOfItsKind) {
  DeviceFacts device;
  device.key = "rtx-pro-6000";
  device.major = 12;
  device.sms = 188;
  const GpuFacts gpu = gpu_facts(device);
  EXPECT_EQ(gpu.key, "rtx-5090");
  EXPECT_EQ(gpu.sms, 188);
  device.key = "h100";
  device.major = 9;
  device.sms = 114;
  EXPECT_EQ(gpu_facts(device).memory_gb_s, gpu_facts("h100").memory_gb_s);
}

TEST(Predict, ATableForAGpuThatIsNotHereIsMarkedInEveryRowAndLookupSaysSo) {
  const Table table = predict_table(timed_ring(), "b200", {1, 8, 64}, {PdlMode::off, PdlMode::chain});
  ASSERT_EQ(table.rows.size(), 6u);
  for (const TableRow& row : table.rows) {
    EXPECT_TRUE(row.predicted);
    EXPECT_EQ(row.device, "b200");
    EXPECT_EQ(row.plan.early_state, row.pdl == PdlMode::chain);
    EXPECT_GT(row.flush.us, row.no_flush.us);
    EXPECT_TRUE(plan_problems(row.plan, timed_ring(), arch_of_device_key("b200")).empty());
  }
  EXPECT_EQ(Table::from_json(table.json()).rows, table.rows);
  const Choice choice = lookup(table, timed_ring(), "b200", arch_of_device_key("b200"), 8);
  EXPECT_EQ(choice.why, Why::predicted);
  EXPECT_THAT(choice.reason, HasSubstr("predicted from facts of the GPU, not measured"));
  EXPECT_GT(choice.expected_us, 0);
}

TEST(Predict, AGpuWithoutDependentLaunchesHasAnOrdinaryPlanInBothModes) {
  for (const TableRow& row : predict_table(timed_step(), "a100", {8}, {PdlMode::off, PdlMode::chain}).rows)
    EXPECT_FALSE(row.plan.early_state);
}

TEST(Predict, ADeviceOfUnknownFactsIsRefusedWithThoseThatAreKnown) {
  for (const char* device : {"moon", "gb10", ""}) {
    try {
      predict_table(timed_step(), device, {1}, {PdlMode::off});
      ADD_FAILURE() << device;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::invalid);
      EXPECT_THAT(error.what(), testing::AllOf(HasSubstr("facts to predict from are known of"), HasSubstr("h200")));
    }
  }
}

TEST(Predict, OfAKernelWithoutARecurrenceIsTheDefaultPlanAndALaunchBesideItsBytes) {
  const Description conv = load_model("nemotron3-super-tp8").kernel("conv1d");
  const Description norm = load_model("nemotron3-super-tp8").kernel("norm");
  for (const Description& d : {conv, norm}) {
    const Table table = predict_table(d, "h200", {1, 1024}, {PdlMode::off});
    ASSERT_EQ(table.rows.size(), 2u);
    for (const TableRow& row : table.rows)
      EXPECT_EQ(row.plan, default_plan(d, Arch{}, row.total_heads)) << name(d.op()) << " " << row.total_heads;
    const double bytes_us = static_cast<double>(bytes_moved(d, 1024).total() - bytes_moved(d, 1).total()) / 4.45e6;
    EXPECT_NEAR(table.rows[1].us - table.rows[0].us, bytes_us, 0.01);
    EXPECT_GT(table.rows[0].us, 1.9);
    EXPECT_LT(table.rows[0].us, 2.0);
  }
}

TEST(Predict, OfALayerIsTheDefaultPlanAndATimeNearTheBestThatAnH200Measured) {
  int rows = 0;
  double sum = 0;
  for (const char* model : {"nemotron3-nano", "nemotron3-super-tp8"})
    for (const char* kernel : {"layer", "ring_layer"})
      for (const DType state : {DType::f32, DType::bf16}) {
        const Description d = Description(load_model(model).kernel(kernel)).state(state);
        for (const TableRow& measured : shipped_tables().rows) {
          if (measured.kernel_digest != d.kernel_digest() || measured.device != "h200" || measured.predicted ||
              measured.pdl != PdlMode::off)
            continue;
          const int batch = static_cast<int>(measured.total_heads / d.nheads);
          const Table table = predict_table(d, "h200", {batch}, {PdlMode::off});
          ASSERT_EQ(table.rows.size(), 1u);
          EXPECT_EQ(table.rows[0].plan, default_plan(d, Arch{}, measured.total_heads));
          EXPECT_TRUE(table.rows[0].predicted);
          EXPECT_EQ(table.rows[0].has_ring(), d.ring_window() != 0);
          const double off = table.rows[0].us / measured.us - 1;
          EXPECT_LT(std::abs(off), 0.2) << model << ":" << kernel << " " << name(state) << ", batch " << batch;
          sum += std::abs(off);
          ++rows;
        }
      }
  EXPECT_GE(rows, 40);
  EXPECT_LT(sum / rows, 0.1);
}

TEST(Predict, AChainOfDependentLaunchesIsPredictedBelowAChainAndThatBelowItsPartsOneByOne) {
  const Description d = load_model("nemotron3-nano").kernel("layer");
  const GpuFacts gpu = gpu_facts("h200");
  const Plan chain = default_chain(PlanForm::chain, d, Arch{}, 64),
             pdl = default_chain(PlanForm::chain_pdl, d, Arch{}, 64);
  double parts = 0;
  for (const PlanPart& part : plan_parts(chain, d)) parts += predict_us(part.description, part.plan, gpu, 1);
  EXPECT_LT(predict_us(d, pdl, gpu, 1), predict_us(d, chain, gpu, 1));
  EXPECT_LT(predict_us(d, chain, gpu, 1), parts);
}

}  // namespace
}  // namespace ssmjit
