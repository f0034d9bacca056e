#pragma once
#include "basic.cuh"
// Stochastic rounding in hardware (PTX cvt.rs): sm_100a and sm_103a only. Elsewhere the operations give 0 and
// kStochasticInHardware is false. The random bits are added below the kept bits of the mantissa; the carry rounds up.

#if defined(__CUDA_ARCH_FEAT_SM100_ALL) || defined(__CUDA_ARCH_FEAT_SM103_ALL)
constexpr bool kStochasticInHardware = true;
#else
constexpr bool kStochasticInHardware = false;
#endif

// Two elements, the first in the low half. fp16 takes bits 0 to 12 for the first and 16 to 28 for the second, bf16 the
// halves of `bits`.
SSMJIT_DEVICE u32 stochastic_pack_f16(float low, float high, u32 bits) {
  u32 r = 0;
#if defined(__CUDA_ARCH_FEAT_SM100_ALL) || defined(__CUDA_ARCH_FEAT_SM103_ALL)
  asm("cvt.rs.f16x2.f32 %0, %1, %2, %3;" : "=r"(r) : "f"(high), "f"(low), "r"(bits));
#endif
  return r;
}
SSMJIT_DEVICE u32 stochastic_pack_bf16(float low, float high, u32 bits) {
  u32 r = 0;
#if defined(__CUDA_ARCH_FEAT_SM100_ALL) || defined(__CUDA_ARCH_FEAT_SM103_ALL)
  asm("cvt.rs.bf16x2.f32 %0, %1, %2, %3;" : "=r"(r) : "f"(high), "f"(low), "r"(bits));
#endif
  return r;
}
// Four elements, the first in the lowest byte; saturates at 448. Elements 0 and 1 share the low 16 bits, 2 and 3 the
// high ones, the odd ones reading them in reverse.
SSMJIT_DEVICE u32 stochastic_pack_e4m3(const float (&v)[4], u32 bits) {
  u32 r = 0;
#if defined(__CUDA_ARCH_FEAT_SM100_ALL) || defined(__CUDA_ARCH_FEAT_SM103_ALL)
  asm("cvt.rs.satfinite.e4m3x4.f32 %0, {%1, %2, %3, %4}, %5;"
      : "=r"(r)
      : "f"(v[3]), "f"(v[2]), "f"(v[1]), "f"(v[0]), "r"(bits));
#endif
  return r;
}
// The integer below a value from 0 up to 2^23 (anything of others), by an addition, which costs a quarter of a
// conversion.
SSMJIT_DEVICE unsigned floor_below_2_23(float v) { return __float_as_uint(__fadd_rz(v, 0x1p23f)) - 0x4b000000u; }
// v plus the low or the high half of a word, in one instruction of the multipliers' pipe.
SSMJIT_DEVICE u32 add_low_half(u32 v, u32 halves) {
  u32 r;
  asm("dp2a.lo.u32.u32 %0, %1, %2, %3;" : "=r"(r) : "r"(halves), "r"(0x0001), "r"(v));
  return r;
}
SSMJIT_DEVICE u32 add_high_half(u32 v, u32 halves) {
  u32 r;
  asm("dp2a.lo.u32.u32 %0, %1, %2, %3;" : "=r"(r) : "r"(halves), "r"(0x0100), "r"(v));
  return r;
}
// a + b towards zero.
SSMJIT_DEVICE float add_towards_zero(float a, float b) { return __fadd_rz(a, b); }
// Whether all of eight fp16 are of 2^-14 to less than 65504 in size.
SSMJIT_DEVICE bool are_amid_f16(const u32 (&word)[4]) {
  u32 least, most;
  asm("{.reg .b32 a, b, c, d, u, v;"
      "abs.f16x2 a, %2; abs.f16x2 b, %3; abs.f16x2 c, %4; abs.f16x2 d, %5;"
      "min.f16x2 u, a, b; min.f16x2 v, c, d; min.f16x2 %0, u, v;"
      "max.NaN.f16x2 u, a, b; max.NaN.f16x2 v, c, d; max.NaN.f16x2 %1, u, v;}"
      : "=r"(least), "=r"(most)
      : "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3]));
  // The signs of halves after these sums: set where the least is 0x0400 or more, the most 0x7bff or more.
  return ((~(least + 0x7c007c00u) | (most + 0x04010401u)) & 0x80008000u) == 0;
}
// Two fp32 cut to fp16 towards zero, the first in the low half; on any GPU. Past the largest finite it stays.
SSMJIT_DEVICE u32 pack_cut_f16(float low, float high) {
  u32 r;
  asm("cvt.rz.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
// The upper halves of two words, the first's in the low half.
SSMJIT_DEVICE u32 upper_halves(u32 low, u32 high) { return __byte_perm(low, high, 0x7632); }
