#pragma once
#include "update_args.cuh"
// What a launch of update_rounded.cuh is given, by value, in one struct (also read by the host, so plain C++): an
// update's, and how the state is stored. Strides count elements.

struct UpdateRoundedArgs {
  UpdateArgs update;
  float* state_scale;            // [slots, nheads, head_dim], inner two contiguous, 16-byte aligned slots; updated;
                                 // null: the state has none
  long long state_scale_stride;  // between slots
  const long long* rand_seed;    // [1] or [slots]; null: to nearest
  long long seed_stride;         // between slots; 0: one seed for all
  long long nheads;
};
