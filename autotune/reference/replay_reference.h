// A replay step in double precision: that of a ring (ring_reference.h) whose rows are the accepted tokens of the step
// before, and of which y comes from the new state before it is rounded to be stored.
#pragma once

#include <cstdint>

#include <ssmjit/description.h>
#include <ssmjit/kernel.h>

#include "autotune/reference/ring_reference.h"

namespace ssmjit {

// What a request's index, buffer and count say, by the contract's rules for pads and values out of range.
struct ReplayRequest {
  RingRequest rows;  // of the ring that replay_as_ring() makes
  int buffer = 0;    // that holds the last step; this step writes the other
};
ReplayRequest replay_request(const Description& description, const ReplayArgs& args, std::int64_t request,
                             const Reader& read);

// Where token `t` of a head or group begins in what is kept; elements.
std::int64_t old_x_at(const ReplayArgs& args, std::int64_t slot, int t, std::int64_t head);
std::int64_t old_B_at(const ReplayArgs& args, std::int64_t slot, int buffer, int t, std::int64_t group);
// Of old_dt and old_cumAdt.
std::int64_t old_sum_at(const Tensor& tensor, std::int64_t slot, int buffer, std::int64_t head, int t);

// The ring of a request's step, and its description: the same memory by other strides.
RingArgs replay_as_ring(const ReplayArgs& args, const ReplayRequest& of);
Description replay_as_ring(const Description& description);

RingHead replay_reference(const Description& description, const ReplayArgs& args, std::int64_t request,
                          const ReplayRequest& of, int head, const Reader& read);

}  // namespace ssmjit
