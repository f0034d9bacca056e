#pragma once
#include "basic.cuh"
// Approximate fp32 functions, for results that are rounded to 16 bits.

// 1 / v, to 1 ulp; subnormal v and results are zero.
SSMJIT_DEVICE float reciprocal_fast_f32(float v) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
