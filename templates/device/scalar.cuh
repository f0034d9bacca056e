#pragma once
#include "basic.cuh"
// Bit patterns of fp32, and fp32 to integer. The conversions saturate; NaN gives 0.

SSMJIT_DEVICE u32 float_bits(float v) { return __float_as_uint(v); }
SSMJIT_DEVICE float bits_float(u32 bits) { return __uint_as_float(bits); }
// Bit i becomes bit 31 - i.
SSMJIT_DEVICE u32 reverse_bits(u32 bits) { return __brev(bits); }
// To the nearest integer, ties to even.
SSMJIT_DEVICE int round_to_int(float v) { return __float2int_rn(v); }
// To the integer below.
SSMJIT_DEVICE int floor_to_int(float v) { return __float2int_rd(v); }
// The same of 0 up to 2^23 (anything of others), by an addition, which costs a quarter of a conversion.
SSMJIT_DEVICE unsigned floor_below_2_23(float v) { return __float_as_uint(__fadd_rz(v, 0x1p23f)) - 0x4b000000u; }
