#include "autotune/plan_between.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>

namespace ssmjit {
namespace {

constexpr double kNotTimed = 1;

// What a plan costs more than the best of the size, as a fraction.
double loss(const std::string& plan, const Cell& cell, double best_us) {
  const auto at = cell.find(plan);
  if (at == cell.end() || !has_time(at->second)) return kNotTimed;
  return std::max(at->second.us / best_us - 1, 0.0);
}

// A sweep checks the outputs of whatever it races, so of what was timed more often than at first.
bool was_checked(const Measurement& m) {
  return m.outcome == Outcome::ok || (m.outcome == Outcome::dropped && m.us_max > m.us_min);
}

}  // namespace

std::optional<Plan> plan_between(const TableRow& low, const TableRow& high, const std::map<std::int64_t, Cell>& sizes,
                                 double room) {
  const auto at_low = sizes.find(low.total_heads), at_high = sizes.find(high.total_heads);
  if (at_low == sizes.end() || at_high == sizes.end()) return std::nullopt;
  const Measurement *best_low = fastest(at_low->second), *best_high = fastest(at_high->second);
  if (best_low == nullptr || best_high == nullptr) return std::nullopt;
  const auto lost = [&](const std::string& plan) {
    return std::hypot(loss(plan, at_low->second, best_low->us), loss(plan, at_high->second, best_high->us)) /
           std::sqrt(2.0);
  };
  std::set<std::string> checked;
  for (const auto& [total_heads, cell] : sizes)
    for (const auto& [plan, m] : cell)
      if (was_checked(m)) checked.insert(plan);

  double least = std::numeric_limits<double>::infinity();
  const Plan* best = nullptr;
  for (const auto* cell : {&at_low->second, &at_high->second})
    for (const auto& [plan, m] : *cell)
      if (const double l = lost(plan); l < least && checked.contains(plan)) {
        least = l;
        best = &m.plan;
      }
  if (best == nullptr) return std::nullopt;
  for (const TableRow* row : {&low, &high})
    if (lost(row->plan.text()) <= least + room) return low.plan == high.plan ? std::nullopt : std::optional(row->plan);
  return *best;
}

}  // namespace ssmjit
