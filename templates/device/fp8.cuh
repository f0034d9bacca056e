#pragma once
#include "basic.cuh"
// Conversions of fp8 in hardware (sm_89 and later). Elsewhere they give 0 and kFp8InHardware is false.

#if __CUDA_ARCH__ >= 890
constexpr bool kFp8InHardware = true;
#else
constexpr bool kFp8InHardware = false;
#endif

// Two elements, the first in the low byte, rounded to nearest even; past the largest and infinities give the largest,
// NaN gives 0x7f.
SSMJIT_DEVICE u32 fp8_pack_e4m3(float low, float high) {
  u16 r = 0;
#if __CUDA_ARCH__ >= 890
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(high), "f"(low));
#endif
  return r;
}
SSMJIT_DEVICE u32 fp8_pack_e5m2(float low, float high) {
  u16 r = 0;
#if __CUDA_ARCH__ >= 890
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(r) : "f"(high), "f"(low));
#endif
  return r;
}
// Two e4m3 elements to two fp16, exactly; the first in the low half.
SSMJIT_DEVICE u32 fp8_unpack_e4m3(u32 pair) {
  u32 r = 0;
#if __CUDA_ARCH__ >= 890
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"(static_cast<u16>(pair)));
#endif
  return r;
}
