// One test of a ring kernel: requests that flush beside others that do not, rings that wrap, cursors out of range.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "autotune/kernel_case.h"
#include "autotune/reference/ring_reference.h"
#include "autotune/state_meter.h"

namespace ssmjit {

class RingCase : public KernelCase {
 public:
  RingCase(const Description& description, const CaseLayout& layout, std::uint64_t seed);

  RingArgs args(const std::vector<std::byte*>& base) const;
  CaseArgs launch_args(const std::vector<std::byte*>& base) const override { return args(base); }
  const std::vector<RingRequest>& requests() const { return requests_; }

 private:
  void judge(const std::vector<std::byte*>& want, const std::vector<std::byte*>& got,
             CaseResult& result) const override;

  RingArgs host_;  // pointers into blocks()
  std::vector<RingRequest> requests_;
  std::vector<std::vector<RingHead>> expected_;  // [request][head], empty for a request that is a pad or has no tokens
};

// Relative error of a delta in the ring, infinite where it is not finite; and what is wrong with the worst one.
double delta_error(double got, double want);
std::string judge_delta(double worst, const char* tensor = "dt_ring");

// How near the states come that flushes of a ring stored.
class FlushMeter {
 public:
  FlushMeter(const Description& description, std::uint64_t seed) : meter_(description), seed_(seed) {}
  // Of the requests that are added next.
  void use_seed(std::uint64_t seed) { seed_ = seed; }
  // One head of a request, where it lies in state and scales of a launch.
  void add_head(const RingHead& want, const RingRequest& of, int head, const RingArgs& got, const Reader& read) {
    add_head(want, of, head, got, read, seed_, 0);
  }
  // The same with the random bits of another seed, of the state after a token.
  void add_head(const RingHead& want, const RingRequest& of, int head, const RingArgs& got, const Reader& read,
                std::uint64_t seed, std::uint32_t token) {
    meter_.add_head({want.state, want.state_slack, want.scale}, got.state, got.state_scale, of.slot, head, seed, read,
                    token);
  }
  Nearness result() const { return meter_.result(); }
  std::string failure() const { return meter_.failure(); }

 private:
  StateMeter meter_;
  std::uint64_t seed_;
};

}  // namespace ssmjit
