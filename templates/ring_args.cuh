#pragma once
// What a launch of the ring kernels is given, by value, in one struct (also read by the host, so plain C++). A kernel
// fetches its arguments by lines of 64 bytes (the first has 48 of them) and waits for each: the common ones fill four
// lines, and each line has one that is asked for while the slot index is on its way. Strides count elements, fewer than
// 2^31 of them; their products with indices are of 64 bits. A row is one request. Pointers that the description has no
// use for are null.

struct RingArgs {
  const int* state_batch_indices;  // [batch], as 32-bit words: row b's is word b * index_stride; a readable address,
                                   // and index_stride 0, where there are none
  int index_stride;                // words
  int wide_indices;                // 1: indices are int64, whose upper word follows; 0: int32
  int indexed;                     // 0: row b uses slot b
  int pdl;  // 0: no wait; 1: wait, then read; 2: a kernel with kEarlyState reads index, cu_seqlens, cursors, state,
            // rings, A, D and dt_bias, waits, then reads the rest; any other does as for 1
  long long slots;        // a slot index outside [0, slots) makes its row a pad row
  long long pad_slot_id;  // a row with this index, or a negative one, is a pad row
  const int* ring_start;  // [slots]: where the oldest row is

  const int* ring_count;  // [slots]: how many rows are in use, up to the window
  const void* A;          // [nheads] fp32, negative
  const void* D;          // [nheads]
  const void* dt_bias;    // [nheads]
  const void* B;          // [batch, tokens, ngroups, dstate]
  int B_stride;
  int B_token_stride;
  void* state;       // [slots, nheads, head_dim, dstate], inner three contiguous, 16-byte aligned rows
  int state_stride;  // between slots
  int nheads;

  const void* dt;  // [batch, tokens, nheads]
  int dt_stride;
  int dt_token_stride;
  void* B_ring;   // [slots, ngroups, ring, dstate]
  void* x_ring;   // [slots, nheads, ring, head_dim]
  void* dt_ring;  // [slots, nheads, ring] fp32: delta, not dt
  int B_ring_stride;
  int x_ring_stride;
  int dt_ring_stride;
  int rand_seed_stride;        // 0: one for all slots; 1: one each
  const long long* rand_seed;  // null: nothing is rounded by chance

  const void* C;  // [batch, tokens, ngroups, dstate]
  int C_stride;
  int C_token_stride;
  const void* x;  // [batch, tokens, nheads, head_dim]
  int x_stride;
  int x_token_stride;
  void* out;  // [batch, tokens, nheads, head_dim]
  int out_stride;
  int out_token_stride;
  const void* z;  // [batch, tokens, nheads, head_dim], gate
  int z_stride;
  int z_token_stride;

  const int* cu_seqlens;  // [batch + 1]: request b has tokens cu_seqlens[b] on, and row strides are 0; null: it has all
  float* state_scale;     // [slots, nheads, head_dim], inner two contiguous; null: the state has none
  int state_scale_stride;
  int total_tokens;  // with cu_seqlens: of all requests
  // Of a replay. Its other rows lie so: x_ring [slots, tokens, nheads, head_dim], B_ring [slots, 2, tokens, ngroups,
  // dstate], dt_ring [slots, 2, nheads, tokens]; ring_start is the buffer that holds the last step, ring_count its
  // accepted tokens.
  int sum_ring_stride;
  float* sum_ring;         // [slots, 2, nheads, tokens]: sums of A * delta up to and with each token
  unsigned char* weights;  // [batch, nheads] records (RingWeights) from a replay's first launch to its second
};
