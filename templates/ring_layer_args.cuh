#pragma once
#include "ring_args.cuh"
// What a launch of the fused layer with a ring is given, by value, in one struct (also read by the host, so plain C++).
// Pointers that the description has no use for are null. Channels of the convolution stand in the order x, B, C: nheads
// * head_dim, then twice ngroups * dstate.

struct RingLayerArgs {
  // What is asked for first stands first: it is fetched line by line.
  void* conv_state;  // [slots, channels, kConvState], or [slots, kConvState, channels] where channels come last; inner
                     // two contiguous, slots 16-byte aligned; updated
  int conv_state_stride;
  int channels;             // of x, B and C of a token together
  RingArgs ring;            // its x: with a convolution [batch, tokens, channels], before it; B and C are null then
  const void* conv_weight;  // [channels, kConvWidth], 16-byte aligned
  const void* conv_bias;    // [channels], 16-byte aligned
  const void* norm_weight;  // [nheads, head_dim]
  const void* norm_bias;    // [nheads, head_dim]
};
