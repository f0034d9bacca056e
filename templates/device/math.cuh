#pragma once
#include "basic.cuh"
// Scalar fp32 functions, at the accuracy of the CUDA maths library (exp and log1p: 2 ulp at most). They run once a head
// or once an output element, never once a state element, so the fast approximations would save nothing.

SSMJIT_DEVICE float exp_f32(float v) { return expf(v); }
SSMJIT_DEVICE float log_f32(float v) { return logf(v); }
SSMJIT_DEVICE float log1p_f32(float v) { return log1pf(v); }
SSMJIT_DEVICE float tanh_f32(float v) { return tanhf(v); }
SSMJIT_DEVICE float sqrt_f32(float v) { return sqrtf(v); }
SSMJIT_DEVICE float abs_f32(float v) { return fabsf(v); }
SSMJIT_DEVICE float min_f32(float a, float b) { return fminf(a, b); }
SSMJIT_DEVICE float max_f32(float a, float b) { return fmaxf(a, b); }
SSMJIT_DEVICE float fma_f32(float a, float b, float c) { return fmaf(a, b, c); }
// 2 to the power v, to 2 ulp of the result's fp32 (ex2.approx); results below 2^-126 may be zero.
SSMJIT_DEVICE float exp2_fast_f32(float v) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
