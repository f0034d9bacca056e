#pragma once
// What a launch of the update kernels is given, by value, in one struct (also read by the host, so plain C++).
// Strides count elements; a row is one request. Pointers that the description has no use for are null.

struct UpdateArgs {
  // What the first load needs stands first: a kernel fetches its arguments line by line, and waits for each.
  const void* state_batch_indices;  // [batch], null: row b uses slot b
  long long index_stride;
  int wide_indices;       // 1: indices are int64, 0: int32
  int pdl;                // 0: no wait; 1: wait, then read; 2: a kernel with kEarlyState reads the index and the state,
                          // waits, then reads the rest; any other does as for 1
  const void* A;          // [nheads] fp32, negative
  long long slots;        // a slot index outside [0, slots) makes its row a pad row
  long long pad_slot_id;  // a row with this index, or a negative one, is a pad row
  void* state;            // [slots, nheads, head_dim, dstate], inner three contiguous, 16-byte aligned rows; updated
  long long state_stride;  // between slots
  const void* x;           // [batch, nheads, head_dim]
  long long x_stride;
  const void* dt;  // [batch, nheads]
  long long dt_stride;
  const void* B;  // [batch, ngroups, dstate]
  long long B_stride;
  const void* C;  // [batch, ngroups, dstate]
  long long C_stride;
  const void* dt_bias;  // [nheads]
  const void* D;        // [nheads]
  const void* z;        // [batch, nheads, head_dim], gate
  long long z_stride;
  void* out;  // [batch, nheads, head_dim]
  long long out_stride;
  const void* dst_state_batch_indices;  // [batch], where the new state goes; null: where it was read
  long long dst_index_stride;
};
