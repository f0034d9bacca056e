// Philox-4x32 on the host, by a plain loop.
#pragma once

#include <array>
#include <cstdint>

namespace ssmjit {

inline std::array<std::uint32_t, 4> host_philox(int rounds, std::array<std::uint32_t, 4> c, std::uint64_t key) {
  for (int i = 0; i < rounds; ++i) {
    const auto k0 = static_cast<std::uint32_t>(key) + 0x9E3779B9u * static_cast<std::uint32_t>(i);
    const auto k1 = static_cast<std::uint32_t>(key >> 32) + 0xBB67AE85u * static_cast<std::uint32_t>(i);
    const std::uint64_t a = std::uint64_t{0xD2511F53} * c[0], b = std::uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<std::uint32_t>(b >> 32) ^ c[1] ^ k0, static_cast<std::uint32_t>(b),
         static_cast<std::uint32_t>(a >> 32) ^ c[3] ^ k1, static_cast<std::uint32_t>(a)};
  }
  return c;
}

// The contract's mapping: eight elements a draw, the token in the third counter word.
inline std::array<std::uint32_t, 4> host_state_draw(int rounds, std::uint64_t seed, std::uint64_t element,
                                                    std::uint32_t token) {
  const std::uint64_t draw = element / 8;
  return host_philox(rounds, {static_cast<std::uint32_t>(draw), static_cast<std::uint32_t>(draw >> 32), token, 0},
                     seed);
}

}  // namespace ssmjit
