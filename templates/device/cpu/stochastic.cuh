#pragma once
#include "basic.cuh"
#include "convert.cuh"
// CPU stands for hardware without cvt.rs: the software of rounding.cuh is used, and these are never called.

constexpr bool kStochasticInHardware = false;
SSMJIT_DEVICE u32 stochastic_pack_f16(float, float, u32) { return 0; }
SSMJIT_DEVICE u32 stochastic_pack_bf16(float, float, u32) { return 0; }
SSMJIT_DEVICE u32 stochastic_pack_e4m3(const float (&)[4], u32) { return 0; }
SSMJIT_DEVICE unsigned floor_below_2_23(float v) { return v < 0x1p23f ? static_cast<unsigned>(v) : 0; }
SSMJIT_DEVICE u32 add_low_half(u32 v, u32 halves) { return v + (halves & 0xffffu); }
SSMJIT_DEVICE u32 add_high_half(u32 v, u32 halves) { return v + (halves >> 16); }
SSMJIT_DEVICE float add_towards_zero(float a, float b) {
  const double exact = static_cast<double>(a) + static_cast<double>(b);  // of magnitudes that are no 2^29 apart
  const float nearest = static_cast<float>(exact);
  const bool past = exact < 0 ? static_cast<double>(nearest) < exact : static_cast<double>(nearest) > exact;
  return past ? __builtin_bit_cast(float, __builtin_bit_cast(u32, nearest) - 1) : nearest;
}
SSMJIT_DEVICE bool are_amid_f16(const u32 (&word)[4]) {
  for (int i = 0; i < 8; ++i) {
    const u32 size = word[i / 2] >> (16 * (i & 1)) & 0x7fffu;
    if (size < 0x0400u || size >= 0x7bffu) return false;
  }
  return true;
}
SSMJIT_DEVICE u32 ssmjit_cpu_cut_f16(float v) {
  const u32 bits = __builtin_bit_cast(u32, v), size = bits & 0x7fffffffu, sign = bits >> 16 & 0x8000u;
  if (size > 0x7f800000u) return 0x7fffu;
  if (size == 0x7f800000u) return sign | 0x7c00u;
  if (size >= 0x47800000u) return sign | 0x7bffu;
  if (size >= 0x38800000u) return sign | (size - 0x38000000u) >> 13;
  return sign | static_cast<u32>(__builtin_bit_cast(float, size) * 0x1p24f);
}
SSMJIT_DEVICE u32 pack_cut_f16(float low, float high) {
  return ssmjit_cpu_cut_f16(low) | ssmjit_cpu_cut_f16(high) << 16;
}
SSMJIT_DEVICE u32 upper_halves(u32 low, u32 high) { return low >> 16 | (high & 0xffff0000u); }
