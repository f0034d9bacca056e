#include "autotune/crossover.h"

#include <algorithm>
#include <cmath>

namespace ssmjit {
namespace {

constexpr double kNotTimed = 1;

// What a plan costs more than the best of the size, as a fraction.
double loss(const Plan& plan, const Cell& cell) {
  const Measurement* best = fastest(cell);
  const auto at = cell.find(plan.text());
  if (best == nullptr || at == cell.end() || !has_time(at->second)) return kNotTimed;
  return std::max(at->second.us / best->us - 1, 0.0);
}

}  // namespace

std::int64_t crossover(const TableRow& low, const TableRow& high, const std::map<std::int64_t, Cell>& sizes) {
  const auto at_low = sizes.find(low.total_heads), at_high = sizes.find(high.total_heads);
  if (low.plan == high.plan || at_low == sizes.end() || at_high == sizes.end()) return 0;
  const double down = loss(high.plan, at_low->second), up = loss(low.plan, at_high->second);
  if (up + down <= 0) return 0;
  const double octaves = std::log2(static_cast<double>(high.total_heads) / static_cast<double>(low.total_heads));
  const double size = static_cast<double>(low.total_heads) * std::exp2(octaves * down / (up + down));
  // A size that is met to rounding counts as met.
  const auto last = static_cast<std::int64_t>(size * (1 + 1e-12));
  return std::clamp(last, low.total_heads, high.total_heads - 1);
}

}  // namespace ssmjit
