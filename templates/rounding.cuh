#pragma once
#include "device/convert.cuh"
#include "device/fp8.cuh"
#include "device/math.cuh"
#include "device/memory.cuh"
#include "device/scalar.cuh"
#include "device/stochastic.cuh"
#include "random.cuh"
// Narrow storage beside fp16 and bf16 (fp8, int8, int16), and stochastic rounding to all of them. Where hardware has a
// conversion it is used; the software beside it gives the same bits.

struct e4m3 {
  unsigned char bits;
};
struct e5m2 {
  unsigned char bits;
};
using i8 = signed char;
using i16 = short;

// ---- one element, in software ----

// fp8 with kMantissa mantissa bits, exponent bias kBias and largest finite pattern kLargest, to nearest even. Past the
// largest and infinities give the largest, NaN gives 0x7f.
template <int kMantissa, int kBias, u32 kLargest>
SSMJIT_DEVICE u32 nearest_fp8(float v) {
  constexpr int kDropped = 23 - kMantissa;
  constexpr u32 kSmallestNormal = static_cast<u32>(128 - kBias) << 23;
  constexpr u32 kRebias = static_cast<u32>(127 - kBias) << 23;
  // A number whose last place is the last place of fp8's subnormals: adding it rounds.
  constexpr u32 kSubnormalRounder = static_cast<u32>(127 + 1 - kBias - kMantissa + 23) << 23;
  const u32 bits = float_bits(v), magnitude = bits & 0x7fffffffu, sign = (bits >> 24) & 0x80u;
  if (magnitude > 0x7f800000u) return 0x7fu;
  u32 r;
  if (magnitude >= kSmallestNormal)
    r = (magnitude - kRebias + ((1u << (kDropped - 1)) - 1u) + ((magnitude >> kDropped) & 1u)) >> kDropped;
  else
    r = float_bits(bits_float(magnitude) + bits_float(kSubnormalRounder)) - kSubnormalRounder;
  return sign | (r < kLargest ? r : kLargest);
}
SSMJIT_DEVICE u32 nearest_e4m3(float v) { return nearest_fp8<3, 7, 0x7e>(v); }
SSMJIT_DEVICE u32 nearest_e5m2(float v) { return nearest_fp8<2, 15, 0x7b>(v); }

// Magnitudes, each from so many random bits added below the last kept bit; a carry rounds up, so a value that the
// format holds never changes. Bits of the value below the random ones are cut off. NaN gives 0x7fff (fp16, bf16) or
// 0x7f (e4m3). fp16: 13 random bits; 2^16 and more is infinity, as is what rounds up to it.
SSMJIT_DEVICE u32 stochastic_f16(float v, u32 random) {
  const u32 bits = float_bits(v), magnitude = bits & 0x7fffffffu, sign = (bits >> 16) & 0x8000u;
  // Below 2^-14 in units of 2^-37, 2^-13 of the last place. Selected, not branched to: one of a warp's lanes often has
  // such an element.
  const u32 subnormal = floor_below_2_23(bits_float(magnitude) * 0x1p37f);
  const u32 units = magnitude >= 0x38800000u ? magnitude - 0x38000000u : subnormal;
  const u32 finite = (units + (random & 0x1fffu)) >> 13;
  return magnitude > 0x7f800000u ? 0x7fffu : sign | (magnitude < 0x47800000u ? finite : 0x7c00u);
}
// bf16: 16 random bits; what rounds up past the largest is infinity.
SSMJIT_DEVICE u32 stochastic_bf16(float v, u32 random) {
  const u32 bits = float_bits(v);
  return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (bits + (random & 0xffffu)) >> 16;
}
// e4m3: 16 random bits; saturates at 448, infinities too.
SSMJIT_DEVICE u32 stochastic_e4m3(float v, u32 random) {
  const u32 bits = float_bits(v), magnitude = bits & 0x7fffffffu, sign = (bits >> 24) & 0x80u;
  random &= 0xffffu;
  if (magnitude > 0x7f800000u) return 0x7fu;
  u32 r;
  if (magnitude >= 0x3c800000u)  // 2^-6
    r = (magnitude - 0x3c000000u + (random << 4)) >> 20;
  else  // in units of 2^-25, 2^-16 of the last place
    r = (static_cast<u32>(floor_to_int(bits_float(magnitude) * 0x1p25f)) + random) >> 16;
  return sign | (r < 0x7eu ? r : 0x7eu);
}

// Integers are clamped to -kLargest..kLargest; NaN gives 0. The caller has divided by the scale.
template <int kLargest>
SSMJIT_DEVICE int nearest_int(float v) {
  const int r = round_to_int(v);
  return r < -kLargest ? -kLargest : r > kLargest ? kLargest : r;
}
// floor(v + random / 2^16), exactly, in the upper half of the word: what v drops below 2^-16 never adds up to a carry.
template <int kLargest>
SSMJIT_DEVICE int stochastic_units(float v, u32 random) {
  constexpr int kBound = kLargest * 65536;
  const int r = floor_to_int(v * 65536.0f);
  return (r < -kBound ? -kBound : r > kBound ? kBound : r) + static_cast<int>(random & 0xffffu);
}
template <int kLargest>
SSMJIT_DEVICE int stochastic_int(float v, u32 random) {
  return stochastic_units<kLargest>(v, random) >> 16;
}

// ---- words of packed storage, to nearest even; exactly back ----

SSMJIT_DEVICE u32 pack_word(const float (&v)[4], e4m3) {
  if constexpr (kFp8InHardware)
    return fp8_pack_e4m3(v[0], v[1]) | fp8_pack_e4m3(v[2], v[3]) << 16;
  else
    return nearest_e4m3(v[0]) | nearest_e4m3(v[1]) << 8 | nearest_e4m3(v[2]) << 16 | nearest_e4m3(v[3]) << 24;
}
SSMJIT_DEVICE u32 pack_word(const float (&v)[4], e5m2) {
  if constexpr (kFp8InHardware)
    return fp8_pack_e5m2(v[0], v[1]) | fp8_pack_e5m2(v[2], v[3]) << 16;
  else
    return nearest_e5m2(v[0]) | nearest_e5m2(v[1]) << 8 | nearest_e5m2(v[2]) << 16 | nearest_e5m2(v[3]) << 24;
}
SSMJIT_DEVICE u32 pack_bytes(int b0, int b1, int b2, int b3) {
  return (static_cast<u32>(b0) & 0xffu) | (static_cast<u32>(b1) & 0xffu) << 8 | (static_cast<u32>(b2) & 0xffu) << 16 |
         static_cast<u32>(b3) << 24;
}
SSMJIT_DEVICE u32 pack_word(const float (&v)[4], i8) {
  return pack_bytes(nearest_int<127>(v[0]), nearest_int<127>(v[1]), nearest_int<127>(v[2]), nearest_int<127>(v[3]));
}
SSMJIT_DEVICE u32 pack_word(const float (&v)[2], i16) {
  return (static_cast<u32>(nearest_int<32767>(v[0])) & 0xffffu) | static_cast<u32>(nearest_int<32767>(v[1])) << 16;
}

SSMJIT_DEVICE void unpack_word(u32 word, float (&v)[4], e4m3) {
  if constexpr (kFp8InHardware) {
    float low[2], high[2];
    unpack_word(fp8_unpack_e4m3(word & 0xffffu), low, f16{});
    unpack_word(fp8_unpack_e4m3(word >> 16), high, f16{});
    v[0] = low[0], v[1] = low[1], v[2] = high[0], v[3] = high[1];
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 byte = word >> (8 * i), magnitude = byte & 0x7fu, sign = (byte & 0x80u) << 24;
      // The pattern as an fp32 of the same fraction, whose exponent the product sets right, subnormals too.
      const float exact = bits_float(magnitude << 20) * 0x1p120f;
      v[i] = magnitude == 0x7fu ? bits_float(0x7fffffffu) : bits_float(float_bits(exact) | sign);
    }
  }
}
// The upper half of an fp16 is an e5m2.
SSMJIT_DEVICE void unpack_word(u32 word, float (&v)[4], e5m2) {
  float even[2], odd[2];
  unpack_word((word & 0x00ff00ffu) << 8, even, f16{});
  unpack_word(word & 0xff00ff00u, odd, f16{});
  v[0] = even[0], v[1] = odd[0], v[2] = even[1], v[3] = odd[1];
}
SSMJIT_DEVICE void unpack_word(u32 word, float (&v)[4], i8) {
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = static_cast<float>(static_cast<i8>(word >> (8 * i)));
}
// Elements 2 half and 2 half + 1 of the four.
SSMJIT_DEVICE void unpack_half_word(u32 word, int half, float (&v)[2], i8) {
  // v + 128 as the last byte of 2^23 + v + 128: no conversion, which is slow.
  const u32 biased = (word ^ 0x80808080u) >> (16 * half);
  v[0] = bits_float(0x4b000000u | (biased & 0xffu)) - 8388736.0f;
  v[1] = bits_float(0x4b000000u | (biased >> 8 & 0xffu)) - 8388736.0f;
}
SSMJIT_DEVICE void unpack_half_word(u32 word, int half, float (&v)[2], e4m3) {
  if constexpr (kFp8InHardware) {
    unpack_word(fp8_unpack_e4m3(word >> (16 * half) & 0xffffu), v, f16{});
  } else {
    float four[4];
    unpack_word(word, four, e4m3{});
    v[0] = half == 0 ? four[0] : four[2];
    v[1] = half == 0 ? four[1] : four[3];
  }
}
SSMJIT_DEVICE void unpack_word(u32 word, float (&v)[2], i16) {
  v[0] = static_cast<float>(static_cast<i16>(word));
  v[1] = static_cast<float>(static_cast<i16>(word >> 16));
}

// ---- eight neighbouring elements of one draw, stochastically ----

// fp16, bf16, int8 and int16: element i takes half-word i of the draw (fp16 its low 13 bits).
SSMJIT_DEVICE u32 random_half(const Draw& draw, int i) { return draw.word[i / 2] >> (16 * (i & 1)); }

// `probe` of the functions below: any number that is finite only where all elements are, as this one.
SSMJIT_DEVICE float probe_of(const float (&v)[8]) {
  float sum = abs_f32(v[0]);
#pragma unroll
  for (int i = 1; i < 8; ++i) sum += abs_f32(v[i]);
  return sum;
}
// Adding the bits and cutting is all that is to do where that gives what fp16 holds as a normal number below its
// largest; subnormals are done again in units of their last place, anything beyond one by one.
SSMJIT_DEVICE void round_stochastic(const float (&v)[8], const Draw& draw, u32 (&word)[4], f16, float) {
  if constexpr (kStochasticInHardware) {
#pragma unroll
    for (int i = 0; i < 4; ++i) word[i] = stochastic_pack_f16(v[2 * i], v[2 * i + 1], draw.word[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 random = draw.word[i] & 0x1fff1fffu;
      word[i] = pack_cut_f16(bits_float(add_low_half(float_bits(v[2 * i]), random)),
                             bits_float(add_high_half(float_bits(v[2 * i + 1]), random)));
    }
    if (are_amid_f16(word)) return;
    if (probe_of(v) < 65504.0f) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // The random bits as 2^-37 beside 2^-14: the sum is in these units, as fp16 in the subnormals' beside 2^-14.
        const u32 random = draw.word[i] & 0x1fff1fffu;
        const u32 small =
            pack_cut_f16(add_towards_zero(abs_f32(v[2 * i]), bits_float(add_low_half(0x38800000u, random))),
                         add_towards_zero(abs_f32(v[2 * i + 1]), bits_float(add_high_half(0x38800000u, random))));
        // All ones where the half has an exponent: it is above the subnormals before any bits or after them.
        const u32 normal = ((((word[i] & 0x7c007c00u) + 0x7c007c00u) >> 15) & 0x00010001u) * 0xffffu;
        word[i] = (word[i] & (normal | 0x80008000u)) | ((small - 0x04000400u) & ~normal);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        word[i] = stochastic_f16(v[2 * i], random_half(draw, 2 * i)) |
                  stochastic_f16(v[2 * i + 1], random_half(draw, 2 * i + 1)) << 16;
    }
  }
}
SSMJIT_DEVICE void round_stochastic(const float (&v)[8], const Draw& draw, u32 (&word)[4], bf16, float probe) {
  if constexpr (kStochasticInHardware) {
#pragma unroll
    for (int i = 0; i < 4; ++i) word[i] = stochastic_pack_bf16(v[2 * i], v[2 * i + 1], draw.word[i]);
  } else if (abs_f32(probe) <= 0x1.fffffep127f) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      word[i] = upper_halves(add_low_half(float_bits(v[2 * i]), draw.word[i]),
                             add_high_half(float_bits(v[2 * i + 1]), draw.word[i]));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      word[i] = stochastic_bf16(v[2 * i], random_half(draw, 2 * i)) |
                stochastic_bf16(v[2 * i + 1], random_half(draw, 2 * i + 1)) << 16;
  }
}
// e4m3 takes word i of the draw for elements 4i to 4i + 3, as the hardware does: the low 16 bits for the first, in
// reverse for the second, the high 16 likewise for the other two.
SSMJIT_DEVICE void round_stochastic(const float (&v)[8], const Draw& draw, u32 (&word)[2], e4m3, float) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const u32 bits = draw.word[i];
    const float four[4] = {v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]};
    if constexpr (kStochasticInHardware)
      word[i] = stochastic_pack_e4m3(four, bits);
    else
      word[i] = stochastic_e4m3(four[0], bits) | stochastic_e4m3(four[1], reverse_bits(bits) >> 16) << 8 |
                stochastic_e4m3(four[2], bits >> 16) << 16 | stochastic_e4m3(four[3], reverse_bits(bits)) << 24;
  }
}
SSMJIT_DEVICE void round_stochastic(const float (&v)[8], const Draw& draw, u32 (&word)[2], i8, float) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    int q[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) q[j] = stochastic_int<127>(v[4 * i + j], random_half(draw, 4 * i + j));
    word[i] = pack_bytes(q[0], q[1], q[2], q[3]);
  }
}
SSMJIT_DEVICE void round_stochastic(const float (&v)[8], const Draw& draw, u32 (&word)[4], i16, float) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    word[i] = upper_halves(static_cast<u32>(stochastic_units<32767>(v[2 * i], random_half(draw, 2 * i))),
                           static_cast<u32>(stochastic_units<32767>(v[2 * i + 1], random_half(draw, 2 * i + 1))));
}

// ---- a vector of neighbouring state elements ----

// Whether the rows of a state of T have a scale, and the largest number that T holds.
SSMJIT_DEVICE constexpr bool is_scaled(i8) { return true; }
SSMJIT_DEVICE constexpr bool is_scaled(e4m3) { return true; }
SSMJIT_DEVICE constexpr bool is_scaled(i16) { return true; }
template <class T>
SSMJIT_DEVICE constexpr bool is_scaled(T) {
  return false;
}
SSMJIT_DEVICE constexpr float largest_of(i8) { return 127.0f; }
SSMJIT_DEVICE constexpr float largest_of(e4m3) { return 448.0f; }
SSMJIT_DEVICE constexpr float largest_of(i16) { return 32767.0f; }

// What a row is multiplied by before it is rounded, from the size of its largest element; the inverse is its scale.
// A row of nothing, or of so little that fp32 has no such factor, is stored as zeros with a scale of 1.
template <class T>
SSMJIT_DEVICE float encode_of_row(float largest, T) {
  return largest >= 0x1p-110f ? largest_of(T{}) / largest : 1.0f;
}

// To nearest even.
template <int kCount, class T>
SSMJIT_DEVICE Vec16 round_vector(const float (&v)[kCount], T) {
  static_assert(kCount == 4 * kPerWord<T>);
  Vec16 rounded;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    float part[kPerWord<T>];
#pragma unroll
    for (int e = 0; e < kPerWord<T>; ++e) part[e] = v[w * kPerWord<T> + e];
    rounded.word[w] = pack_word(part, T{});
  }
  return rounded;
}
// By chance, from a draw for each eight elements. `probe`: of all of them.
template <int kCount, class T>
SSMJIT_DEVICE Vec16 round_vector_by(const float (&v)[kCount], const Draw* draw, T, float probe) {
  static_assert(kCount == 4 * kPerWord<T> && kCount % 8 == 0);
  constexpr int kWords = 8 / kPerWord<T>;  // of a draw
  Vec16 rounded;
#pragma unroll
  for (int d = 0; d < kCount / 8; ++d) {
    float eight[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) eight[e] = v[8 * d + e];
    u32 word[kWords];
    round_stochastic(eight, draw[d], word, T{}, probe);
#pragma unroll
    for (int w = 0; w < kWords; ++w) rounded.word[d * kWords + w] = word[w];
  }
  return rounded;
}
template <int kCount, class T>
SSMJIT_DEVICE Vec16 round_vector_by(const float (&v)[kCount], const Draw* draw, T) {
  float probe = abs_f32(v[0]);
#pragma unroll
  for (int e = 1; e < kCount; ++e) probe += abs_f32(v[e]);
  return round_vector_by(v, draw, T{}, probe);
}
// The same; `place`: of the first element, a multiple of 8, as state_draw counts it.
template <int kRounds, int kCount, class T>
SSMJIT_DEVICE Vec16 round_vector_stochastic(const float (&v)[kCount], u64 seed, u64 place, T) {
  Draw draw[kCount / 8];
#pragma unroll
  for (int d = 0; d < kCount / 8; ++d) draw[d] = state_draw<kRounds>(seed, place + 8 * d, 0);
  return round_vector_by(v, draw, T{});
}
