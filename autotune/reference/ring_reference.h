// A ring step in double precision, by plain loops: what kernels are judged against. Twice: as the recurrence, token
// after token, and as sums of products whose operands are rounded as the contract says, so that a kernel that does the
// latter can be held to a unit or two of its output.
// Maths: include/ssmjit/description.h. The state is rounded only where a flush stores it: after the rows of the ring
// and before the new tokens, to nearest even; y then comes from the stored value, also where the store itself is
// stochastic.
#pragma once

#include <cstdint>
#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/kernel.h>

#include "autotune/reference/stored_state.h"
#include "autotune/reference/stored_values.h"

namespace ssmjit {

// What a request's indices, cursors and lengths say, by the contract's rules for pads and values out of range.
struct RingRequest {
  bool live = false;  // else a pad: only its tokens are known
  std::int64_t slot = 0;
  int start = 0;                  // 0 to length - 1
  int count = 0;                  // 0 to window
  int tokens = 0;                 // 0: an empty sequence, of which nothing is written
  std::int64_t first_packed = 0;  // varlen: the place of its first token
  bool flush = false;
};
RingRequest ring_request(const Description& description, const RingArgs& args, std::int64_t request,
                         const Reader& read);

// Where the request's token `t` begins in a tensor of [batch, tokens, ...] or [total, ...] with `inner` dimensions
// after the tokens'; elements.
std::int64_t token_offset(const Description& description, const Tensor& tensor, int inner, std::int64_t request,
                          const RingRequest& of, int t);
// Where row `age` (0: the oldest; from count on: the new ones) of a head or group lies in a ring; elements.
std::int64_t ring_offset(const Tensor& ring, const RingRequest& of, std::int64_t head, int age);

// What operands of products are rounded to: those with the state and C, and all others. An 8-bit state is exact in
// either, and its scale is applied to the sum.
struct RingOperands {
  DType state;
  DType input;
  bool stored_first = true;  // of a flush: whether y comes from the state as stored, or from that before it is rounded
};
RingOperands ring_operands(const Description& description);

// One head of a live request with tokens. `slack`: by how much a right kernel may be off before its result is rounded.
// It takes exponentials of fp32 sums of A * delta; a flush sums products of 16-bit operands, of which it keeps the
// digits that one has not in others; where an element of the new state lies that near to halfway between two stored
// values, either may be stored.
struct RingHead {
  std::vector<double> delta;        // [tokens], of the new ones
  std::vector<double> state;        // [head_dim, dstate]: in a flush after the ring's rows, before it is rounded
  std::vector<double> state_slack;  // of a flush
  std::vector<double> scale;        // [head_dim] of a flush with an 8-bit state: value = stored * scale; else empty
  std::vector<double> stored;       // the state as stored, to nearest, times scale: what y comes from
  std::vector<double> y;            // [tokens, head_dim], by the recurrence
  std::vector<double> y_operands;   // the same from rounded operands
  std::vector<double> y_slack;
};
RingHead ring_reference(const Description& description, const RingArgs& args, std::int64_t request,
                        const RingRequest& of, int head, const RingOperands& operands, const Reader& read);

}  // namespace ssmjit
