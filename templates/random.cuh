#pragma once
#include "device/basic.cuh"
// Random bits for stochastic rounding: Philox-4x32 (Salmon et al., SC 2011), a function of seed and counter, so that a
// value's bits depend on neither launch shape nor tiling.

// 128 random bits.
struct Draw {
  u32 word[4];
};

// kRounds rounds of the generator over `counter`; the key's low word first.
template <int kRounds>
SSMJIT_DEVICE Draw philox(const Draw& counter, u64 key) {
  static_assert(kRounds >= 1);
  u32 c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
  u32 k0 = static_cast<u32>(key), k1 = static_cast<u32>(key >> 32);
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const u64 p0 = u64{0xD2511F53u} * c0, p1 = u64{0xCD9E8D57u} * c2;
    c0 = static_cast<u32>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<u32>(p1);
    c2 = static_cast<u32>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<u32>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The bits of eight neighbouring state elements, draw `number` of a state. `token`: which of several stored states, 0
// where a launch stores one. Element i has half-word i (round_stochastic says which formats share bits instead).
template <int kRounds>
SSMJIT_DEVICE Draw numbered_draw(u64 seed, u64 number, u32 token) {
  return philox<kRounds>({{static_cast<u32>(number), static_cast<u32>(number >> 32), token, 0}}, seed);
}
// The same by the first element's place, a multiple of 8, counted in logical sizes, ((slot * nheads + head) * head_dim
// + p) * dstate + n.
template <int kRounds>
SSMJIT_DEVICE Draw state_draw(u64 seed, u64 element, u32 token) {
  return numbered_draw<kRounds>(seed, element / 8, token);
}
