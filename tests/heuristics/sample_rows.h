// A description and rows for it, made by hand.
#pragma once

#include <cstdint>
#include <string>

#include <ssmjit/description.h>
#include <ssmjit/plan.h>
#include <ssmjit/table.h>

namespace ssmjit {

inline const Arch kSm90{9, 0, 'a'};

inline Description sample_description(int nheads = 16) {
  return mamba2({.nheads = nheads, .head_dim = 64, .dstate = 128, .ngroups = 1}).state(DType::bf16);
}

// Legal plans that differ: the i-th of the space, around.
inline Plan sample_plan(std::size_t i) {
  static const std::vector<Plan> space = [] {
    std::vector<Plan> plans = plan_space(sample_description(), kSm90);
    std::erase_if(plans, [](const Plan& plan) { return plan.early_state; });
    return plans;
  }();
  return space.at(i * 7 % space.size());
}

inline TableRow sample_row(std::int64_t total_heads, double us, std::size_t plan, std::string device = "h200",
                           PdlMode mode = PdlMode::off) {
  TableRow row;
  row.device = std::move(device);
  row.kernel_digest = sample_description().kernel_digest();
  row.cost_digest = sample_description().cost_digest();
  row.pdl = mode;
  row.total_heads = total_heads;
  row.plan = sample_plan(plan);
  row.us = us;
  row.floor_us = us / 2;
  row.kernel = "a kernel";
  row.source_digest = "0123456789abcdef";
  row.driver = "13.0";
  row.nvrtc = "13.0";
  row.measured = "2026-01-01";
  return row;
}

// The row as another kernel's of the same cost, or not.
inline TableRow of_kernel(const Description& description, TableRow row) {
  row.kernel_digest = description.kernel_digest();
  row.cost_digest = description.cost_digest();
  row.kernel = description.summary();
  return row;
}

}  // namespace ssmjit
