#pragma once
#include "basic.cuh"
// CPU stands for hardware without fp8: the software of rounding.cuh is used, and these are never called.

constexpr bool kFp8InHardware = false;
SSMJIT_DEVICE u32 fp8_pack_e4m3(float, float) { return 0; }
SSMJIT_DEVICE u32 fp8_pack_e5m2(float, float) { return 0; }
SSMJIT_DEVICE u32 fp8_unpack_e4m3(u32) { return 0; }
