#pragma once
// What launches that move whole slots of a ring's pools are given, by value, in one struct each (also read by the host,
// so plain C++). Strides count elements. A launch serves all layers of a model, which share their sizes.

// What a reset leaves in place of each delta of a slot's ring: a NaN of bits that no arithmetic gives. A checked ring
// step refuses cursors that have such rows in use.
constexpr unsigned kNeverStepped = 0xffffffffu;

// One layer: a row of the table that `layers` below points to, fifteen words of 64 bits.
struct RingLayer {
  void* state;             // [slots, nheads, head_dim, dstate], inner three contiguous, 16-byte aligned slots
  float* state_scale;      // [slots, nheads, head_dim], inner two contiguous; null: the state has none
  void* x_ring;            // [slots, nheads, ring, head_dim], 16-byte aligned slots
  void* B_ring;            // [slots, ngroups, ring, dstate], likewise
  float* dt_ring;          // [slots, nheads, ring]: delta, not dt
  const float* A;          // [nheads], negative
  long long state_stride;  // between slots, as are the next four
  long long state_scale_stride;
  long long x_ring_stride;
  long long B_ring_stride;
  long long dt_ring_stride;
  void* conv_state;             // a convolution's windows, 16-byte aligned slots; null: none
  long long conv_state_stride;  // between slots, in vectors of 16 bytes, as is the next
  long long conv_state_size;    // of a slot
  long long slots;              // of each pool; an index outside [0, slots) is a pad
};

// The state after a prefix of a slot's ring goes to another slot.
struct MaterialiseArgs {
  const RingLayer* layers;
  const void* src_slots;       // [batch] of every layer
  long long src_layer_stride;  // 0: the same for all layers
  const void* dst_slots;       // likewise
  long long dst_layer_stride;
  const int* ring_start;              // [batch]: where the request's oldest row is
  const int* ring_count;              // [batch]: its rows in use, which bound the prefix; null: only the window does
  const int* prefix_length;           // [batch]: rows that the state takes in, the oldest first
  const int* active_request_indices;  // the requests to serve, up to the first negative entry; null: all
  const long long* rand_seed;         // null: nothing is rounded by chance
  long long seed_stride;              // between layers, 0: one seed for all
  long long pad_slot_id;              // this index, and every negative one, is a pad
  int batch;
  int nheads;
  int wide_src;  // 1: indices are int64, 0: int32
  int wide_dst;
};

// A slot starts anew: its state and window zero, its ring empty.
struct ResetSlotsArgs {
  const RingLayer* layers;
  int* ring_start;    // [cursors]
  int* ring_count;    // [cursors]
  long long cursors;  // a slot past them is a pad
  const void* slots;
  long long pad_slot_id;
  int nheads;
  int wide;  // 1: indices are int64, 0: int32
};

// A slot becomes as another is: state, scales, rings, window and cursors.
struct CopySlotsArgs {
  const RingLayer* layers;
  int* ring_start;    // [cursors]
  int* ring_count;    // [cursors]
  long long cursors;  // a slot past them is a pad
  const void* src_slots;
  const void* dst_slots;
  long long pad_slot_id;
  int nheads;
  int wide_src;  // 1: indices are int64, 0: int32
  int wide_dst;
};
