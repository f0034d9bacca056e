// One test of an update of several tokens: snapshots, slots, accepted counts, trees and packed requests, as far as the
// description has them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "autotune/kernel_case.h"
#include "autotune/reference/tokens_reference.h"
#include "autotune/state_meter.h"

namespace ssmjit {

// How near outputs and stored states of a launch come to the reference's, head by head.
class TokensMeter {
 public:
  explicit TokensMeter(const Description& description);
  // What the launch left of one head of a request with tokens.
  void add_head(const TokensHead& want, std::int64_t request, const TokensRequest& of, int head, const UpdateArgs& got,
                std::uint64_t seed, const Reader& read);
  Nearness y() const { return y_.result(); }
  Nearness state() const;
  // Sentences about what was passed; empty when all is well.
  std::vector<std::string> failures() const;

 private:
  // One stored state [head_dim, dstate] of a slot of a pool of states, after token `token` as random bits count it.
  void add_state(const std::vector<double>& want, const std::vector<double>& slack, const Tensor& states,
                 const Tensor& scales, std::int64_t slot, int head, std::uint32_t token, std::uint64_t seed,
                 const Reader& read);

  Description description_;
  NearnessMeter y_, state_;  // the latter of fp32
  // Of all other states, to half a unit: one that is rounded between tokens is no further off than two.
  StateMeter rounded_;
};

// Calls visit(states, scales, slot, token) for every state that a request stores: `states` and `scales` of rank 4 and
// 3, of the pool or of one step of the snapshots, `token` as random bits count it, and the token after which.
struct StoredState {
  Tensor states, scales;
  std::int64_t slot = 0;
  std::uint32_t counted_token = 0;
  int token = 0;
};
std::vector<StoredState> stored_states(const Description& description, const UpdateArgs& args, const TokensRequest& of);

class TokensCase : public KernelCase {
 public:
  TokensCase(const Description& description, const CaseLayout& layout, std::uint64_t seed);

  UpdateArgs args(const std::vector<std::byte*>& base) const;
  CaseArgs launch_args(const std::vector<std::byte*>& base) const override { return args(base); }
  const std::vector<TokensRequest>& requests() const { return requests_; }

 private:
  void judge(const std::vector<std::byte*>& want, const std::vector<std::byte*>& got,
             CaseResult& result) const override;
  void add_tokens();
  void add_slots();

  UpdateArgs host_;  // pointers into blocks()
  std::vector<TokensRequest> requests_;
  std::vector<std::vector<TokensHead>> expected_;  // [request][head]; of a tree none, which needs what was stored
};

}  // namespace ssmjit
