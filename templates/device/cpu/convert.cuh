#pragma once
#include "basic.cuh"
// CPU bodies of device/convert.cuh, in integer arithmetic. A NaN narrows to 0x7fff, as on the GPU.

struct bf16 {
  u16 bits;
};
struct f16 {
  u16 bits;
};

SSMJIT_DEVICE float widen(float v) { return v; }
SSMJIT_DEVICE float widen(bf16 v) { return __builtin_bit_cast(float, static_cast<u32>(v.bits) << 16); }
SSMJIT_DEVICE float widen(f16 v) {
  const u32 sign = static_cast<u32>(v.bits & 0x8000u) << 16;
  const u32 magnitude = v.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return __builtin_bit_cast(float, sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Subnormal: a multiple of 2^-24, exact in fp32. Normal: another exponent bias.
  const u32 bits = magnitude < 0x400u ? __builtin_bit_cast(u32, static_cast<float>(magnitude) * 0x1p-24f)
                                      : (magnitude << 13) + 0x38000000u;
  return __builtin_bit_cast(float, sign | bits);
}

SSMJIT_DEVICE void narrow(float v, float& out) { out = v; }
SSMJIT_DEVICE void narrow(float v, bf16& out) {
  const u32 bits = __builtin_bit_cast(u32, v);
  const u32 rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  out.bits = static_cast<u16>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : rounded);
}
SSMJIT_DEVICE void narrow(float v, f16& out) {
  const u32 bits = __builtin_bit_cast(u32, v);
  const u32 sign = bits >> 16 & 0x8000u;
  const u32 magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u)
    out.bits = 0x7fffu;
  else if (magnitude >= 0x477ff000u)  // rounds to 65536 or more
    out.bits = static_cast<u16>(sign | 0x7c00u);
  else if (magnitude < 0x38800000u)  // subnormal: the addition of 0.5 rounds to a multiple of 2^-24
    out.bits =
        static_cast<u16>(sign | (__builtin_bit_cast(u32, __builtin_bit_cast(float, magnitude) + 0.5f) - 0x3f000000u));
  else
    out.bits = static_cast<u16>(sign | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13);
}

template <class T>
constexpr int kPerWord = 4 / static_cast<int>(sizeof(T));

SSMJIT_DEVICE void unpack_word(u32 word, float (&v)[1], float) { v[0] = __builtin_bit_cast(float, word); }
template <class T>
SSMJIT_DEVICE void unpack_word(u32 word, float (&v)[2], T) {
  v[0] = widen(T{static_cast<u16>(word)});
  v[1] = widen(T{static_cast<u16>(word >> 16)});
}
SSMJIT_DEVICE u32 pack_word(const float (&v)[1], float) { return __builtin_bit_cast(u32, v[0]); }
template <class T>
SSMJIT_DEVICE u32 pack_word(const float (&v)[2], T) {
  T low, high;
  narrow(v[0], low);
  narrow(v[1], high);
  return low.bits | static_cast<u32>(high.bits) << 16;
}
