#pragma once
// What a launch of the update kernels of several tokens is given, by value, in one struct (also read by the host, so
// plain C++). Strides count elements. Pointers that the description has no use for are null. Index arrays are all int64
// or all int32, but cu_seqlens, which is int32.

struct UpdateTokensArgs {
  // What the first loads need stands first: a kernel fetches its arguments line by line, and waits for each.
  const void* state_batch_indices;  // [batch], null: row b uses slot b; with accepted counts [batch, columns]
  long long index_stride;
  long long index_column_stride;
  int wide_indices;                 // 1: indices are int64, 0: int32
  int pdl;                          // 0: no wait; 1: wait, then read; 2: a kernel with kEarlyState reads indices and
                                    // the state, waits, then reads the rest; any other does as for 1
  const void* A;                    // [nheads] fp32, negative
  const void* num_accepted_tokens;  // [batch], of the step before
  long long accepted_stride;
  const int* cu_seqlens;   // [batch + 1], varlen: where a request's tokens begin and end
  int total;               // varlen: tokens of all requests
  int index_columns;       // of state_batch_indices; at least one a token
  long long slots;         // a slot index outside [0, slots) makes its row a pad row
  long long pad_slot_id;   // a row with this index, or a negative one, is a pad row
  void* state;             // [slots, nheads, head_dim, dstate], inner three contiguous, 16-byte aligned rows; updated
  long long state_stride;  // between slots
  float* state_scale;      // [slots, nheads, head_dim], inner two contiguous
  long long state_scale_stride;
  const void* B;  // [batch, tokens, ngroups, dstate]; varlen, as all of these: [total, ...], request strides 0
  long long B_stride, B_token_stride;
  const void* C;  // [batch, tokens, ngroups, dstate]
  long long C_stride, C_token_stride;
  const void* x;  // [batch, tokens, nheads, head_dim]
  long long x_stride, x_token_stride;
  const void* z;  // [batch, tokens, nheads, head_dim], gate
  long long z_stride, z_token_stride;
  const void* dt;  // [batch, tokens, nheads]
  long long dt_stride, dt_token_stride;
  const void* dt_bias;  // [nheads]
  const void* D;        // [nheads]
  void* out;            // [batch, tokens, nheads, head_dim]
  long long out_stride, out_token_stride;
  const void* dst_state_batch_indices;  // [batch, tokens] of slots by token; else [batch] or null: where it was read
  long long dst_index_stride, dst_index_token_stride;
  void* intermediate_states;  // [snapshot_slots, steps, nheads, head_dim, dstate], the state after each token; written
  float* intermediate_state_scales;
  long long snapshot_slots;
  int snapshot_steps;
  int nheads;
  const void* intermediate_state_indices;  // [batch], null: the slot that is read
  long long snapshot_index_stride;
  const void* retrieve_parent_token;  // [batch, tokens], a tree's
  long long parent_stride, parent_token_stride;
  const long long* rand_seed;  // rounding by chance: one, or one a slot of the state
  long long seed_stride;
  int disable_state_update;  // 1: of snapshots, the state that was read stays as it was
};
