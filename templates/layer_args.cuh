#pragma once
// What a launch of the fused layer is given, by value, in one struct (also read by the host, so plain C++). A kernel
// fetches its arguments by lines of 64 bytes (the first has 48 of them) and waits for each: they fill four lines, of
// which each has one that is asked for while the slot index is on its way. Strides count elements; a row is one
// request. Pointers that the description has no use for are null. Channels of the convolution stand in the order x, B,
// C: nheads * head_dim, then twice ngroups * dstate.

struct LayerArgs {
  const void* state_batch_indices;  // [batch], null: row b uses slot b
  long long index_stride;
  long long pad_slot_id;  // a row with this index, or a negative one, is a pad row
  int nheads;
  int wide_indices;  // 1: indices are int64, 0: int32
  int pdl;           // 0: no wait; 1: wait, then read; 2: a kernel with kEarlyState reads the index, the states and the
                     // weights, waits, then reads the rest; any other does as for 1
  const void* A;     // [nheads] fp32, negative

  long long slots;   // a slot index outside [0, slots) makes its row a pad row
  void* conv_state;  // [slots, channels, kConvState], or [slots, kConvState, channels] where channels come last;
                     // inner two contiguous, slots 16-byte aligned; updated
  long long conv_state_stride;
  void* state;             // [slots, nheads, head_dim, dstate], inner three contiguous, 16-byte aligned rows; updated
  long long state_stride;  // between slots
  const void* x;           // [batch, nheads, head_dim], before the convolution where there is one; B and C as well
  long long x_stride;
  const void* conv_weight;  // [channels, kConvWidth], 16-byte aligned

  const void* conv_bias;  // [channels], 16-byte aligned
  const void* dt;         // [batch, nheads]
  long long dt_stride;
  const void* dt_bias;  // [nheads]
  const void* D;        // [nheads]
  const void* z;        // [batch, nheads, head_dim], gate
  long long z_stride;
  const void* norm_weight;  // [nheads, head_dim]

  void* out;  // [batch, nheads, head_dim]
  long long out_stride;
  const void* norm_bias;  // [nheads, head_dim]
  const void* B;          // [batch, ngroups, dstate]
  long long B_stride;
  const void* C;  // [batch, ngroups, dstate]
  long long C_stride;
};
