#include "autotune/state_meter.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <variant>

#include <fmt/format.h>

#include "autotune/host_numbers.h"
#include "autotune/reference/stored_state.h"

namespace ssmjit {
namespace {

constexpr double kScale = 0x1p-20;  // relative error of a factor

}  // namespace

void StateMeter::add_head(const StateWant& want, const Tensor& state, const Tensor& state_scale, std::int64_t slot,
                          int head, std::uint64_t seed, const Reader& read, std::uint32_t token) {
  const Description& d = description_;
  const bool stochastic = std::holds_alternative<Stochastic>(d.rounding_kind);
  const std::vector<double> stored = stored_values(
      state, slot * state.stride[0] + std::int64_t{head} * d.head_dim * d.dstate, d.head_dim * d.dstate, read);
  std::vector<double> scales(static_cast<std::size_t>(d.head_dim), 1.0);
  if (d.has_state_scale())
    scales =
        stored_values(state_scale, slot * state_scale.stride[0] + std::int64_t{head} * d.head_dim, d.head_dim, read);
  for (int p = 0; p < d.head_dim; ++p) {
    const double scale = scales[static_cast<std::size_t>(p)];
    const double want_scale = want.scale.empty() ? 1.0 : want.scale[static_cast<std::size_t>(p)];
    double row_slack = 0;
    for (int n = 0; n < d.dstate; ++n) {
      const auto i = static_cast<std::size_t>(p * d.dstate + n);
      row_slack = std::max(row_slack, want.slack[i]);
      const double value = want.state[i], is = stored[i] * scale;
      // In units of the scale.
      const double at_most = want.slack[i] / want_scale;
      const double exact = value / want_scale;
      // By chance that of the values that the slack reaches: just below a power of two a kernel's may round up from
      // above it, by a unit twice as large. To nearest it then rounds to that power.
      const double unit = ulp(d.state_dtype, stochastic ? std::abs(exact) + at_most : exact);
      double units = 0;
      if (rounded(d.state_dtype, exact) != stored[i])
        units = std::max(0.0, std::abs(stored[i] - exact) - at_most) / unit;
      const double nearest = rounded(d.state_dtype, exact);
      if (std::isnan(stored[i]) || (std::isinf(stored[i]) && std::isfinite(nearest)))
        units = std::numeric_limits<double>::infinity();
      worst_ = std::max(worst_, units);
      if (units > 2) ++past_two_;
      if (stochastic) {
        const auto by_chance = [&](double v) { return stored_stochastically(d, v, seed, slot, head, p, n, token); };
        if (!(stored[i] >= by_chance(exact - at_most) && stored[i] <= by_chance(exact + at_most))) ++not_by_chance_;
      }
      ++count_;
      error2_ += (is - value) * (is - value);
      norm2_ += value * value;
    }
    if (d.has_state_scale()) {
      const double largest = largest_stored(d.state_dtype);
      const double off = std::max(0.0, std::abs(scale - want_scale) - row_slack / largest) / want_scale;
      worst_scale_ = std::isfinite(scale) ? std::max(worst_scale_, off) : std::numeric_limits<double>::infinity();
    }
  }
}

Nearness StateMeter::result() const {
  Nearness n;
  n.frobenius = norm2_ > 0 ? std::sqrt(error2_ / norm2_) : std::sqrt(error2_);
  n.worst_ulp = worst_;
  n.past_two = count_ > 0 ? static_cast<double>(past_two_) / static_cast<double>(count_) : 0;
  return n;
}

std::string StateMeter::failure() const {
  if (!(worst_scale_ <= kScale))
    return fmt::format("state_scale: a scale is off by {:.1e} of its size; limit {:.1e}", worst_scale_, kScale);
  const bool stochastic = std::holds_alternative<Stochastic>(description_.rounding_kind);
  const double limit = stochastic ? 1.0 : 0.5;
  // A rounding more where a value lies just below a power of two.
  if (!(worst_ <= limit + 0x1p-10))
    return fmt::format("state: an element is {:.2f} units off; limit {}", worst_, limit);
  if (not_by_chance_ > 0)
    return fmt::format("state: {} of {} elements are not what their random bits round them to", not_by_chance_, count_);
  return {};
}

}  // namespace ssmjit
