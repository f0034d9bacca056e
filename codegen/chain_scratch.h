// What the parts of a layer's chain pass on in device memory.
#pragma once

#include <cstdint>

#include <ssmjit/description.h>

namespace ssmjit {

inline constexpr std::int64_t kScratchAlign = 256;  // bytes; of the caller's base, too

// Offsets in bytes, of tensors without gaps in the input's dtype.
struct ChainScratch {
  std::int64_t channels = 0;  // [batch, tokens, conv_channels()]: x, B and C, of a layer with a convolution
  std::int64_t y = 0;         // [batch, tokens, nheads, head_dim], of a layer with a norm
  std::int64_t bytes = 0;     // of both
};
ChainScratch chain_scratch(const Description& description, std::int64_t batch);

}  // namespace ssmjit
