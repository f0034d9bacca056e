#include "autotune/reference/stored_state.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <variant>

#include "autotune/host_numbers.h"
#include "autotune/reference/philox.h"

namespace ssmjit {
namespace {

constexpr double kScaling = 0x1p-20;    // relative error of what is divided by a factor
constexpr double kLeastRow = 0x1p-110;  // a row below it is stored as zeros

std::size_t at(int i) { return static_cast<std::size_t>(i); }

std::uint32_t reversed_half(std::uint32_t bits) {
  std::uint32_t r = 0;
  for (int i = 0; i < 16; ++i) r |= ((bits >> i) & 1u) << (15 - i);
  return r;
}

}  // namespace

std::vector<double> decoded_state(const Description& d, const Tensor& state, std::int64_t offset,
                                  const Tensor& state_scale, std::int64_t scale_offset, const Reader& read) {
  std::vector<double> values = stored_values(state, offset, d.head_dim * d.dstate, read);
  if (!d.has_state_scale()) return values;
  const std::vector<double> scale = stored_values(state_scale, scale_offset, d.head_dim, read);
  for (int i = 0; i < d.head_dim * d.dstate; ++i) values[at(i)] *= scale[at(i / d.dstate)];
  return values;
}

std::vector<double> row_scales(const Description& d, const std::vector<double>& state, std::vector<double>& slack) {
  std::vector<double> scale;
  if (!d.has_state_scale()) return scale;
  for (int p = 0; p < d.head_dim; ++p) {
    std::size_t peak = at(p * d.dstate);
    for (int n = 1; n < d.dstate; ++n)
      if (std::abs(state[at(p * d.dstate + n)]) > std::abs(state[peak])) peak = at(p * d.dstate + n);
    const double amax = std::abs(state[peak]);
    scale.push_back(amax >= kLeastRow ? amax / largest_stored(d.state_dtype) : 1.0);
    if (amax < kLeastRow) continue;
    const double scaling = kScaling + slack[peak] / amax;
    for (int n = 0; n < d.dstate; ++n) slack[at(p * d.dstate + n)] += scaling * std::abs(state[at(p * d.dstate + n)]);
  }
  return scale;
}

double stored_stochastically(const Description& d, double value, std::uint64_t seed, std::int64_t slot, int head, int p,
                             int n, std::uint32_t token) {
  if (!std::isfinite(value)) return rounded(d.state_dtype, value);
  const auto element = static_cast<std::uint64_t>(
      ((slot * d.nheads + head) * std::int64_t{d.head_dim} + p) * std::int64_t{d.dstate} + n / 8 * 8);
  const std::array<std::uint32_t, 4> draw =
      host_state_draw(std::get<Stochastic>(d.rounding_kind).philox_rounds, seed, element, token);
  const auto i = static_cast<unsigned>(n % 8);
  const std::uint32_t own = (draw[i / 2] >> (16 * (i % 2))) & 0xffffu;
  if (d.state_dtype == DType::i8 || d.state_dtype == DType::i16) {
    const double most = largest_stored(d.state_dtype);
    return std::clamp(std::floor(value + own / 65536.0), -most, most);
  }
  double chance = own / 65536.0;
  if (d.state_dtype == DType::f16) chance = (own & 0x1fffu) / 8192.0;
  if (d.state_dtype == DType::f8) {
    const std::uint32_t half = (draw[i / 4] >> (16 * (i % 4 / 2))) & 0xffffu;
    chance = (i % 2 == 0 ? half : reversed_half(half)) / 65536.0;
  }
  const double magnitude = std::abs(value), unit = ulp(d.state_dtype, magnitude);
  // Down here an exact value, which rounded() only takes past the largest.
  return std::copysign(rounded(d.state_dtype, std::floor(magnitude / unit + chance) * unit), value);
}

std::uint64_t seed_of_slot(const Tensor& seeds, std::int64_t slot, const Reader& read) {
  if (seeds.data == nullptr) return 0;
  return static_cast<std::uint64_t>(stored_index(seeds, seeds.shape[0] == 1 ? 0 : slot, read));
}

}  // namespace ssmjit
