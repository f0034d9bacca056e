#include "autotune/host_numbers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace ssmjit {
namespace {

// A binary floating-point format: the gap above 1, the smallest normal, the largest finite value.
struct Format {
  double epsilon;
  double smallest_normal;
  double largest;
};
constexpr Format kFloat{0x1p-23, 0x1p-126, 0x1.fffffep127};
constexpr Format kBfloat{0x1p-7, 0x1p-126, 0x1.fep127};
constexpr Format kHalf{0x1p-10, 0x1p-14, 65504.0};
constexpr Format kE4m3{0x1p-3, 0x1p-6, 448.0};

// Of a whole-number dtype, which holds as many below zero; 0: none.
double largest_int(DType dtype) { return dtype == DType::i8 ? 127 : dtype == DType::i16 ? 32767 : 0; }

const Format& format(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return kBfloat;
    case DType::f16:
      return kHalf;
    case DType::f8:
      return kE4m3;
    default:
      return kFloat;
  }
}

// The largest power of two that is not above |magnitude|, by clearing the fraction; never below the smallest normal.
double power_below(double magnitude, double smallest_normal) {
  std::uint64_t bits;
  std::memcpy(&bits, &magnitude, 8);
  bits &= 0x7ff0000000000000ull;
  double power;
  std::memcpy(&power, &bits, 8);
  return std::max(power, smallest_normal);
}

double quantum(const Format& f, double magnitude) { return power_below(magnitude, f.smallest_normal) * f.epsilon; }

}  // namespace

double largest_stored(DType dtype) { return largest_int(dtype) > 0 ? largest_int(dtype) : format(dtype).largest; }

double ulp(DType dtype, double magnitude) {
  return largest_int(dtype) > 0 ? 1.0 : quantum(format(dtype), std::abs(magnitude));
}

double rounded(DType dtype, double value) {
  if (const double most = largest_int(dtype); most > 0)
    return std::isnan(value) ? 0.0 : std::clamp(std::nearbyint(value), -most, most);
  if (dtype == DType::f8 && std::isinf(value)) return std::copysign(kE4m3.largest, value);
  if (!std::isfinite(value) || value == 0) return value;
  const Format& f = format(dtype);
  const double q = quantum(f, std::abs(value));
  const double r = std::nearbyint(value / q) * q;
  if (std::abs(r) > f.largest)
    return std::copysign(dtype == DType::f8 ? f.largest : std::numeric_limits<double>::infinity(), value);
  return r;
}

double decode(DType dtype, const std::byte* data, std::int64_t index) {
  if (dtype == DType::f32) {
    float v;
    std::memcpy(&v, data + index * 4, 4);
    return v;
  }
  if (dtype == DType::i8) return static_cast<signed char>(data[index]);
  if (dtype == DType::f8) {
    const int byte = static_cast<int>(data[index]);
    const int exponent = (byte >> 3) & 15, fraction = byte & 7;
    double v = exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
    if ((byte & 0x7f) == 0x7f) v = std::numeric_limits<double>::quiet_NaN();
    return (byte & 0x80) != 0 ? -v : v;
  }
  std::uint16_t bits;
  std::memcpy(&bits, data + index * 2, 2);
  if (dtype == DType::i16) return static_cast<std::int16_t>(bits);
  if (dtype == DType::bf16) {
    const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
    float v;
    std::memcpy(&v, &wide, 4);
    return v;
  }
  const int exponent = (bits >> 10) & 31;
  const int fraction = bits & 1023;
  double v = 0;
  if (exponent == 31)
    v = fraction != 0 ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
  else
    v = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return (bits & 0x8000u) != 0 ? -v : v;
}

void encode(DType dtype, std::byte* data, std::int64_t index, double value) {
  const double r = rounded(dtype, value);
  if (dtype == DType::i8) {
    data[index] = static_cast<std::byte>(static_cast<int>(r));
    return;
  }
  if (dtype == DType::i16) {
    const auto whole = static_cast<std::int16_t>(r);
    std::memcpy(data + index * 2, &whole, 2);
    return;
  }
  if (dtype == DType::f8) {
    const double m = std::abs(r);
    int bits = 0x7f;
    if (m < kE4m3.smallest_normal)
      bits = static_cast<int>(std::ldexp(m, 9));
    else if (!std::isnan(r))
      bits = ((std::ilogb(m) + 7) << 3) + static_cast<int>(std::ldexp(m, 3 - std::ilogb(m))) - 8;
    data[index] = static_cast<std::byte>((std::signbit(r) ? 0x80 : 0) | bits);
    return;
  }
  if (dtype != DType::f16) {
    const float v = static_cast<float>(r);
    std::uint32_t bits;
    std::memcpy(&bits, &v, 4);
    if (dtype == DType::f32) {
      std::memcpy(data + index * 4, &bits, 4);
    } else {
      const auto high = static_cast<std::uint16_t>(std::isnan(r) ? 0x7fff : bits >> 16);
      std::memcpy(data + index * 2, &high, 2);
    }
    return;
  }
  std::uint16_t bits = std::signbit(r) ? 0x8000 : 0;
  const double m = std::abs(r);
  if (std::isnan(r)) {
    bits = 0x7fff;
  } else if (std::isinf(r)) {
    bits = static_cast<std::uint16_t>(bits | 0x7c00);
  } else if (m >= std::ldexp(1.0, -14)) {
    const int exponent = std::ilogb(m);
    const int fraction = static_cast<int>(std::ldexp(m, 10 - exponent)) - 1024;
    bits = static_cast<std::uint16_t>(bits | ((exponent + 15) << 10) | fraction);
  } else {
    bits = static_cast<std::uint16_t>(bits | static_cast<int>(std::ldexp(m, 24)));
  }
  std::memcpy(data + index * 2, &bits, 2);
}

}  // namespace ssmjit
