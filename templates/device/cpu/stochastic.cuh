#pragma once
#include "basic.cuh"
// CPU stands for hardware without cvt.rs: the software of rounding.cuh is used, and these are never called.

constexpr bool kStochasticInHardware = false;
SSMJIT_DEVICE u32 stochastic_pack_f16(float, float, u32) { return 0; }
SSMJIT_DEVICE u32 stochastic_pack_bf16(float, float, u32) { return 0; }
SSMJIT_DEVICE u32 stochastic_pack_e4m3(const float (&)[4], u32) { return 0; }
