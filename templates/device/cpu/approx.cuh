#pragma once
#include "basic.cuh"
// CPU bodies of device/approx.cuh: to 1 ulp.

SSMJIT_DEVICE float reciprocal_fast_f32(float v) { return 1.0f / v; }
SSMJIT_DEVICE float rsqrt_fast_f32(float v) { return 1.0f / __builtin_sqrtf(v); }
