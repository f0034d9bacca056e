// A convolution's step in double precision, by plain loops: what kernels are judged against.
// Maths: include/ssmjit/description.h, Conv; windows hold bit-exact copies of x, or x rounded to the state's dtype.
#pragma once

#include <cstdint>
#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/kernel.h>

#include "autotune/reference/stored_values.h"

namespace ssmjit {

// Where a request's window comes from and goes to, by the contract's pad rule; -1: nowhere.
struct ConvRequest {
  bool live = false;  // else a pad row: nothing of it is read
  std::int64_t slot = -1;
  int first = 0;                      // the entry that the oldest of the history is; circular: the others follow it
                                      // modulo state_len
  std::vector<std::int64_t> targets;  // keep = slots: of each token
  std::int64_t snapshot = -1;         // keep = snapshots
};
ConvRequest conv_request(const Description& description, const Conv1dArgs& args, std::int64_t row, const Reader& read);

// Offsets in elements.
std::int64_t conv_state_at(const Description& description, const Conv1dArgs& args, std::int64_t slot,
                           std::int64_t channel, int entry);
std::int64_t conv_token_at(const Tensor& x_or_out, std::int64_t row, int token, std::int64_t channel);

// One channel of a request: the width - 1 inputs before the step, then its tokens as a window holds them; the outputs.
// A pad row has none of the former and zeros in their place.
struct ConvChannel {
  std::vector<double> stream;
  std::vector<double> y;
  std::vector<double> y_terms;  // root of the sum of squares of what each y's argument is summed from
};
ConvChannel conv1d_reference(const Description& description, const Conv1dArgs& args, std::int64_t row,
                             std::int64_t channel, const ConvRequest& request, const Reader& read);

// An element that a step writes beside its output, and what it is a copy of.
struct ConvWrite {
  bool snapshot = false;    // in intermediate_states, else in conv_state
  std::int64_t at = 0;      // elements
  bool from_token = false;  // copied from token `from` of x, else from entry `from` of the slot that is read
  int from = 0;
};
std::vector<ConvWrite> conv_writes(const Description& description, const Conv1dArgs& args, std::int64_t channel,
                                   const ConvRequest& request);

}  // namespace ssmjit
