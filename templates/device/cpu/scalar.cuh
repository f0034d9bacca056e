#pragma once
#include "basic.cuh"
// CPU bodies of device/scalar.cuh.

SSMJIT_DEVICE u32 float_bits(float v) { return __builtin_bit_cast(u32, v); }
SSMJIT_DEVICE float bits_float(u32 bits) { return __builtin_bit_cast(float, bits); }
SSMJIT_DEVICE u32 reverse_bits(u32 bits) { return __builtin_bitreverse32(bits); }

// `v` is a whole number, an infinity or NaN.
SSMJIT_DEVICE int ssmjit_cpu_saturated(float v) {
  if (!(v == v)) return 0;
  if (v >= 0x1p31f) return 0x7fffffff;
  if (v <= -0x1p31f) return -0x7fffffff - 1;
  return static_cast<int>(v);
}
SSMJIT_DEVICE int round_to_int(float v) {
  // From 2^23 on every number is whole; below, the addition rounds to even.
  constexpr float kRounder = 0x1p23f;
  if (!(v < kRounder && v > -kRounder)) return ssmjit_cpu_saturated(v);
  return static_cast<int>(v < 0 ? (v - kRounder) + kRounder : (v + kRounder) - kRounder);
}
SSMJIT_DEVICE int floor_to_int(float v) {
  if (!(v < 0x1p23f && v > -0x1p23f)) return ssmjit_cpu_saturated(v);
  const int toward_zero = static_cast<int>(v);
  return toward_zero - (static_cast<float>(toward_zero) > v ? 1 : 0);
}
