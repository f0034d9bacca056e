#include "autotune/nearness.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "autotune/host_numbers.h"

namespace ssmjit {

void NearnessMeter::add_row(const double* want, const std::vector<double>& got, const double* terms,
                            const double* slack) {
  double rms = 0;
  std::int64_t finite = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double w = rounded(dtype_, want[i]);
    if (!std::isfinite(w)) continue;
    rms += want[i] * want[i];
    ++finite;
  }
  if (finite > 0) rms = std::sqrt(rms / static_cast<double>(finite));
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double w = rounded(dtype_, want[i]);
    ++count_;
    if (!std::isfinite(w) || !std::isfinite(got[i])) {
      // Infinity where IEEE gives infinity; a value just past the largest finite one may fall on either side of it.
      const bool near_largest = dtype_ == DType::f16 && std::abs(std::abs(want[i]) - 65520.0) < 0.005 * 65520.0 &&
                                std::abs(got[i]) > 0.99 * 65504.0 && std::signbit(got[i]) == std::signbit(want[i]);
      if (!(w == got[i]) && !near_largest) {
        worst_ = std::numeric_limits<double>::infinity();
        error2_ = std::numeric_limits<double>::infinity();
      }
      continue;
    }
    const double error = std::abs(got[i] - want[i]);
    const double magnitude = std::max(std::abs(want[i]), rms);
    // fp32 has no room above its own arithmetic: dstate products summed in another order differ by some sqrt(dstate)
    // roundings of the products, and exp(A * delta) by |A * delta| of them, up to some 10 before the state is gone.
    const double summed = terms != nullptr ? std::max(magnitude, terms[i]) : magnitude;
    const double unit = dtype_ == DType::f32 ? std::ldexp(summed, -24) * std::sqrt(std::max(128.0, 1.0 * dstate_))
                                             : ulp(dtype_, magnitude);
    const double counted = slack != nullptr ? std::max(0.0, error - slack[i]) : error;
    const double units = unit > 0 ? counted / unit : (counted > 0 ? std::numeric_limits<double>::infinity() : 0.0);
    worst_ = std::max(worst_, units);
    if (units > 2) ++past_two_;
    error2_ += error * error;
    norm2_ += want[i] * want[i];
  }
}

Nearness NearnessMeter::result() const {
  Nearness n;
  n.frobenius = norm2_ > 0 ? std::sqrt(error2_ / norm2_) : std::sqrt(error2_);
  n.worst_ulp = worst_;
  n.past_two = count_ > 0 ? static_cast<double>(past_two_) / static_cast<double>(count_) : 0;
  return n;
}

std::string judge(const Nearness& n, DType dtype, int dstate, const char* what) {
  const double limit = dtype == DType::f32 ? 2e-6 * std::sqrt(static_cast<double>(dstate)) : 5e-3;
  if (!(n.frobenius <= limit)) return fmt::format("{}: relative error {:.2e}; limit {:.2e}", what, n.frobenius, limit);
  if (!(n.worst_ulp <= 4)) return fmt::format("{}: an element is {:.1f} units off; limit 4", what, n.worst_ulp);
  if (!(n.past_two <= 1e-3))
    return fmt::format("{}: {:.2f}% of elements are more than 2 units off; limit 0.1%", what, 100 * n.past_two);
  return {};
}

}  // namespace ssmjit
