#include "autotune/plan_between.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>

namespace ssmjit {
namespace {

constexpr double kNotTimed = 1;
constexpr double kEven = 0.5;

// What a plan costs more than the best of the size, as a fraction.
double loss(const std::string& plan, const Cell& cell, double best_us) {
  const auto at = cell.find(plan);
  if (at == cell.end() || !has_time(at->second)) return kNotTimed;
  return std::max(at->second.us / best_us - 1, 0.0);
}

// Of the sizes above what the smaller row's own plan fits, by ratio, the part that a plan's time at the smaller size
// stands for: half, or, where its clusters go from so many waves to more, those before that.
double weight_of_low(const Measurement& at_low, const TableRow& low, const TableRow& high) {
  const std::int64_t fits = fits_heads(at_low);
  if (fits == 0 || fits >= high.total_heads) return kEven;
  const auto from = static_cast<double>(low.fits_heads < high.total_heads ? std::max(low.fits_heads, low.total_heads)
                                                                          : low.total_heads);
  return std::log(std::max(static_cast<double>(fits) / from, 1.0)) /
         std::log(static_cast<double>(high.total_heads) / from);
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
  const Measurement *best_low = nullptr, *best_high = fastest(at_high->second);
  // Of those in full, or else of those that were dropped, as all are beside a plan that is no measure of sizes above.
  for (const bool in_full : {true, false}) {
    if (best_low != nullptr) break;
    for (const auto& [plan, m] : at_low->second)
      if ((in_full ? m.outcome == Outcome::ok && m.us > 0 : has_time(m)) && weight_of_low(m, low, high) > kEven / 2 &&
          (best_low == nullptr || m.us < best_low->us))
        best_low = &m;
  }
  if (best_low == nullptr || best_high == nullptr) return std::nullopt;
  const auto lost = [&](const std::string& plan) {
    const auto here = at_low->second.find(plan);
    const double weight = here == at_low->second.end() ? kEven : weight_of_low(here->second, low, high);
    const double at_lower = loss(plan, at_low->second, best_low->us);
    const double at_higher = loss(plan, at_high->second, best_high->us);
    return std::sqrt(weight * at_lower * at_lower + (1 - weight) * at_higher * at_higher);
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
