#pragma once
// What a launch of the conv1d kernels is given, by value, in one struct (also read by the host, so plain C++).
// Strides count elements; channels lie side by side. Pointers that the description has no use for are null.

struct Conv1dArgs {
  // What the first load needs stands first: a kernel fetches its arguments line by line, and waits for each.
  const void* state_batch_indices;  // [batch], null: row b uses slot b
  long long index_stride;
  int wide_indices;        // 1: all of the index arrays are int64, 0: int32
  int pdl;                 // 0: no wait; 1: wait, then read; 2: a kernel with kEarlyState reads indices, weights and
                           // state, waits, then reads x; any other does as for 1
  const void* w;           // [channels, width]
  long long slots;         // a slot index outside [0, slots) makes its row a pad row
  long long pad_slot_id;   // a row with this index, or a negative one, is a pad row
  void* conv_state;        // [slots, channels, state_len] or, channels last, [slots, state_len, channels]; updated
  long long state_stride;  // between slots
  const void* x;           // [batch, tokens, channels]
  long long x_stride, x_token_stride;
  const void* bias;  // [channels]
  void* out;         // [batch, tokens, channels]
  long long out_stride, out_token_stride;
  int channels;
  const void* cache_seqlens;  // [batch], where the next token goes, modulo state_len (ConvStore::circular)
  long long seqlen_stride;
  const void* num_accepted_tokens;  // [batch], of the step before
  long long accepted_stride;
  const void* output_state_indices;  // [batch, tokens], where the window after each token goes (ConvKeep::slots)
  long long output_index_stride, output_index_token_stride;
  void* intermediate_states;  // [snapshot_slots, steps, one slot's window], the window after each token; written
  long long snapshot_slots, snapshot_stride, snapshot_token_stride;
  const void* intermediate_state_indices;  // [batch], null: as state_batch_indices
  long long snapshot_index_stride;
};
