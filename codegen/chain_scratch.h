// What the parts of a layer's chain, and the launches of a replay, pass on in device memory.
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

// What the first of a replay's two launches passes on, [batch, nheads] records: a lane's words of weights, then the
// decays of the tokens in fp32, the tokens in eights (templates/replay.cuh).
std::int64_t replay_scratch_bytes(const Description& description, std::int64_t batch);

}  // namespace ssmjit
