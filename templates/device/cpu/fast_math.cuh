#pragma once
#include "basic.cuh"
// CPU bodies of device/fast_math.cuh.

SSMJIT_DEVICE float reciprocal_fast_f32(float v) { return 1.0f / v; }
