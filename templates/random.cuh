#pragma once
#include "device/basic.cuh"
// Random bits for stochastic rounding: Philox-4x32 (Salmon et al., SC 2011), a function of seed and counter, so that a
// value's bits depend on neither launch shape nor tiling.

// 128 random bits.
struct Draw {
  u32 word[4];
};

// The keys of all rounds, for many draws of one seed.
template <int kRounds>
struct RoundKeys {
  static_assert(kRounds >= 1);
  u32 low[kRounds], high[kRounds];

  SSMJIT_DEVICE explicit RoundKeys(u64 seed) {
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      low[i] = static_cast<u32>(seed) + static_cast<u32>(i) * 0x9E3779B9u;
      high[i] = static_cast<u32>(seed >> 32) + static_cast<u32>(i) * 0xBB67AE85u;
    }
  }
  // They are worked out by here, once.
  SSMJIT_DEVICE void keep_all() {
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      int bits[2] = {static_cast<int>(low[i]), static_cast<int>(high[i])};
      keep(bits[0]);
      keep(bits[1]);
      low[i] = static_cast<u32>(bits[0]);
      high[i] = static_cast<u32>(bits[1]);
    }
  }
};

// kRounds rounds of the generator over `counter`.
template <int kRounds>
SSMJIT_DEVICE Draw philox(const Draw& counter, const RoundKeys<kRounds>& key) {
  u32 c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const u64 p0 = u64{0xD2511F53u} * c0, p1 = u64{0xCD9E8D57u} * c2;
    c0 = static_cast<u32>(p1 >> 32) ^ c1 ^ key.low[i];
    c1 = static_cast<u32>(p1);
    c2 = static_cast<u32>(p0 >> 32) ^ c3 ^ key.high[i];
    c3 = static_cast<u32>(p0);
  }
  return {{c0, c1, c2, c3}};
}
template <int kRounds>
SSMJIT_DEVICE Draw philox(const Draw& counter, u64 seed) {
  return philox<kRounds>(counter, RoundKeys<kRounds>(seed));
}

// The bits of eight neighbouring state elements, draw `number` of a state. `token`: which of several stored states, 0
// where a launch stores one. Element i has half-word i (round_stochastic says which formats share bits instead).
template <int kRounds>
SSMJIT_DEVICE Draw numbered_draw(const RoundKeys<kRounds>& key, u64 number, u32 token) {
  return philox<kRounds>({{static_cast<u32>(number), static_cast<u32>(number >> 32), token, 0}}, key);
}
// The same by the first element's place, a multiple of 8, counted in logical sizes, ((slot * nheads + head) * head_dim
// + p) * dstate + n.
template <int kRounds>
SSMJIT_DEVICE Draw state_draw(u64 seed, u64 element, u32 token) {
  return numbered_draw<kRounds>(RoundKeys<kRounds>(seed), element / 8, token);
}
