#pragma once
#include "basic.cuh"
#include "convert.cuh"
// CPU stands for hardware without cvt.rs: the software of rounding.cuh is used, and these are never called.

constexpr bool kStochasticInHardware = false;
SSMJIT_DEVICE u32 stochastic_pack_f16(float, float, u32) { return 0; }
SSMJIT_DEVICE u32 stochastic_pack_bf16(float, float, u32) { return 0; }
SSMJIT_DEVICE u32 stochastic_pack_e4m3(const float (&)[4], u32) { return 0; }
SSMJIT_DEVICE unsigned floor_below_2_23(float v) { return v < 0x1p23f ? static_cast<unsigned>(v) : 0; }
// Without the places that fp16 has not, they are fp16's.
SSMJIT_DEVICE float ssmjit_cpu_cut(float v) {
  return __builtin_bit_cast(float, __builtin_bit_cast(u32, v) & 0xffffe000u);
}
SSMJIT_DEVICE u32 pack_cut_f16(float low, float high) {
  return pack_word({ssmjit_cpu_cut(low), ssmjit_cpu_cut(high)}, f16{});
}
SSMJIT_DEVICE u32 upper_halves(u32 low, u32 high) { return low >> 16 | (high & 0xffff0000u); }
