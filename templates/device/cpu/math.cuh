#pragma once
#include "basic.cuh"
// CPU bodies of device/math.cuh: the host's C library, 1 ulp.

SSMJIT_DEVICE float exp_f32(float v) { return expf(v); }
SSMJIT_DEVICE float log_f32(float v) { return logf(v); }
SSMJIT_DEVICE float log1p_f32(float v) { return log1pf(v); }
SSMJIT_DEVICE float tanh_f32(float v) { return tanhf(v); }
SSMJIT_DEVICE float sqrt_f32(float v) { return __builtin_sqrtf(v); }
SSMJIT_DEVICE float abs_f32(float v) { return __builtin_fabsf(v); }
SSMJIT_DEVICE float min_f32(float a, float b) { return __builtin_fminf(a, b); }
SSMJIT_DEVICE float max_f32(float a, float b) { return __builtin_fmaxf(a, b); }
SSMJIT_DEVICE float fma_f32(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
SSMJIT_DEVICE float exp2_fast_f32(float v) { return expf(v * 0.69314718056f); }
