#pragma once
#include "ring_args.cuh"
// What a launch of the fused layer with a ring is given, by value, in one struct (also read by the host, so plain C++).
// Pointers that the description has no use for are null. Channels of the convolution stand in the order x, B, C: nheads
// * head_dim, then twice ngroups * dstate. The ring's stand first, so that their lines (RingArgs) are lines here too.

struct RingLayerArgs {
  RingArgs ring;     // its x: with a convolution [batch, tokens, channels], before it; B and C are null then
  void* conv_state;  // [slots, channels, kConvState], or [slots, kConvState, channels] where channels come last; inner
                     // two contiguous, slots 16-byte aligned; updated
  int conv_state_stride;
  int channels;             // of x, B and C of a token together
  const void* conv_weight;  // [channels, kConvWidth], 16-byte aligned
  const void* conv_bias;    // [channels], 16-byte aligned
  const void* norm_weight;  // [nheads, head_dim]
  const void* norm_bias;    // [nheads, head_dim]
  // Of windows that are read from a place that the run knows: counts of accepted tokens, or lengths of sequences.
  const int* window_places;       // [batch]
  long long window_place_stride;  // in words of 32 bits
  int wide_window_places;         // 1: they are int64, whose upper word follows; 0: int32
  // Of snapshots, the window after each token.
  void* intermediate_states;  // [snapshot_slots, tokens, channels, kConvSnapshot], or with channels last; inner two
                              // contiguous, slots and tokens 16-byte aligned; written
  long long snapshot_slots, snapshot_stride, snapshot_token_stride;
  const int* intermediate_state_indices;  // [batch], null: the slot that is read
  long long snapshot_index_stride;        // in words of 32 bits, as window_place_stride
  int wide_snapshot_indices;
};
