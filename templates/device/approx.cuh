#pragma once
#include "basic.cuh"
// Approximations of the special function unit, where a result is rounded to 16 bits next or is read once a row.

// 1 / v, to 1 ulp.
SSMJIT_DEVICE float reciprocal_fast_f32(float v) {
  float r;
  asm("rcp.approx.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
// 1 / sqrt(v), to 3 ulp.
SSMJIT_DEVICE float rsqrt_fast_f32(float v) {
  float r;
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
