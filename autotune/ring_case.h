// One test of a ring kernel: requests that flush beside others that do not, rings that wrap, cursors out of range.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "autotune/kernel_case.h"
#include "autotune/reference/ring_reference.h"

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

// How near stored states come to a flush's double ones, element by element.
class FlushMeter {
 public:
  FlushMeter(const Description& description, std::uint64_t seed) : description_(description), seed_(seed) {}
  // Of the requests that are added next.
  void use_seed(std::uint64_t seed) { seed_ = seed; }
  // One head of a request, where it lies in state and scales of a launch.
  void add_head(const RingHead& want, const RingRequest& of, int head, const RingArgs& got, const Reader& read) {
    add_head(want, of, head, got, read, seed_, 0);
  }
  // The same with the random bits of another seed, of the state after a token.
  void add_head(const RingHead& want, const RingRequest& of, int head, const RingArgs& got, const Reader& read,
                std::uint64_t seed, std::uint32_t token);
  Nearness result() const;
  // Empty, or what was passed: an element may be off by half a unit of the dtype, of a stochastic flush it is the value
  // that its random bits give; both give way to RingHead's slack.
  std::string failure() const;

 private:
  Description description_;
  std::uint64_t seed_;
  double error2_ = 0, norm2_ = 0, worst_ = 0;
  std::int64_t count_ = 0, past_two_ = 0, not_by_chance_ = 0;
  double worst_scale_ = 0;
};

}  // namespace ssmjit
