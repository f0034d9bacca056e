// Measurements made by hand, and recorded ones.
#pragma once

#include <cstddef>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <ssmjit/measurement.h>
#include <ssmjit/tune.h>

namespace ssmjit {

inline Description timed_step() { return mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1}); }
inline Description timed_ring() { return timed_step().tokens(6).state(DType::bf16).store(Ring{.window = 16}); }

// The i-th plan that is timed without PDL.
inline Plan timed_plan(std::size_t i, const Description& description = timed_step()) {
  std::vector<Plan> plans = plan_space(description, Arch{});
  std::erase_if(plans, [](const Plan& plan) { return plan.early_state; });
  return plans.at(i);
}

// `noise`: how far us_min and us_max are from us.
inline Measurement timed(int batch, std::size_t plan, double us, double noise = 0.001) {
  Measurement m;
  m.kernel_digest = timed_step().kernel_digest();
  m.cost_digest = timed_step().cost_digest();
  m.kernel = timed_step().summary();
  m.plan = timed_plan(plan);
  m.source_digest = "00000000000000" + std::to_string(10 + plan);
  m.batch = batch;
  m.nheads = 16;
  m.device = "h200";
  m.driver = "13.0";
  m.us = us;
  m.us_min = us - noise;
  m.us_max = us + noise;
  m.floor_us = us / 2;
  m.measured = "2026-08-01T10:00:00Z";
  return m;
}

inline Measurement timed_ring(int batch, std::size_t plan, double no_flush_us, double flush_us, double noise = 0.001,
                              double steps = 4) {
  Measurement m = timed(batch, 0, 0);
  m.op = Op::ring;
  m.kernel_digest = timed_ring().kernel_digest();
  m.cost_digest = timed_ring().cost_digest();
  m.kernel = timed_ring().summary();
  m.plan = timed_plan(plan, timed_ring());
  m.phase = "weighted";
  m.steps_per_flush = steps;
  for (const Phase phase : {Phase::no_flush, Phase::flush}) {
    const double us = phase == Phase::flush ? flush_us : no_flush_us;
    m.phases.push_back({.phase = phase, .us = us, .us_min = us - noise, .us_max = us + noise, .floor_us = us / 2});
  }
  m.weigh();
  return m;
}

// A journal of tests/vectors/journals.
inline std::vector<Measurement> recorded_journal(const std::string& name) {
  std::ifstream file(std::string(SSMJIT_SOURCE_DIR) + "/tests/vectors/journals/" + name, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  int skipped = -1;
  std::vector<Measurement> all = parse_journal(text.str(), &skipped);
  EXPECT_FALSE(all.empty()) << name;
  EXPECT_EQ(skipped, 0) << name;
  return all;
}
inline const char* const kRecorded[] = {"tables_ring_h200.jsonl", "tables_update_h200.jsonl"};

}  // namespace ssmjit
