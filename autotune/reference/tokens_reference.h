// The update of several tokens in double precision, by plain loops: what kernels are judged against. The recurrence is
// carried in double from token to token and rounded only where it is stored; y comes from the unrounded state.
// Maths: include/ssmjit/description.h.
#pragma once

#include <cstdint>
#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/kernel.h>

#include "autotune/reference/stored_values.h"

namespace ssmjit {

// What a request's indices, counts and lengths say, by the contract's rules for pads and values out of range.
struct TokensRequest {
  bool live = false;                  // else a pad: nothing is read of it but its tokens, nothing stored
  int tokens = 0;                     // 0: an empty sequence, of which nothing is written
  std::int64_t first_packed = 0;      // varlen: the place of its first token
  std::int64_t source = 0;            // the slot that is read
  std::int64_t snapshot = -1;         // where the state after each token goes; -1: nowhere
  std::vector<std::int64_t> targets;  // of slots, by token; -1: not stored
  std::int64_t final_target = -1;     // where the last state goes besides; -1: nowhere
  std::vector<int> parents;           // of a tree, by token: whose snapshot it goes on from; -1: the token before it
};
TokensRequest tokens_request(const Description& description, const UpdateArgs& args, std::int64_t request,
                             const Reader& read);

// Where the request's token `t` begins in a tensor of [batch, tokens, ...], [batch, ...] of one token, [total, ...] or
// [1, total, ...], with `inner` dimensions behind; elements.
std::int64_t tokens_offset(const Description& description, const Tensor& tensor, int inner, std::int64_t request,
                           const TokensRequest& of, int t);

// One head of a request with tokens; a pad is computed as if its state were zero.
struct TokensHead {
  std::vector<double> y;        // [tokens, head_dim]
  std::vector<double> y_terms;  // root of the sum of squares of what each y is summed from: what cancelled in it
  std::vector<std::vector<double>> states;  // after each token [head_dim, dstate], before rounding
  std::vector<std::vector<double>> slacks;  // by how much a right kernel's fp32 may be off there
};
// A tree's tokens go on from what `args.intermediate_states` holds after the launch.
TokensHead tokens_reference(const Description& description, const UpdateArgs& args, std::int64_t request,
                            const TokensRequest& of, int head, const Reader& read);

// The seed of a live request's rounding: one; or one a slot, that of the slot that an update in place writes, with
// snapshots and slots of the one that is read.
std::uint64_t tokens_seed(const UpdateArgs& args, const TokensRequest& of, const Reader& read);

}  // namespace ssmjit
