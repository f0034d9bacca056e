// One test of a replay kernel: counts from none to all and out of range, either buffer, NaN in all that a step must not
// use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "autotune/kernel_case.h"
#include "autotune/reference/replay_reference.h"

namespace ssmjit {

class ReplayCase : public KernelCase {
 public:
  ReplayCase(const Description& description, const CaseLayout& layout, std::uint64_t seed);

  ReplayArgs args(const std::vector<std::byte*>& base) const;
  CaseArgs launch_args(const std::vector<std::byte*>& base) const override { return args(base); }
  const std::vector<ReplayRequest>& requests() const { return requests_; }

 private:
  void judge(const std::vector<std::byte*>& want, const std::vector<std::byte*>& got,
             CaseResult& result) const override;
  void add_pools();
  // State, buffer and count of a live slot, and the rows in use.
  void fill_slot(std::int64_t slot, int kind);
  void fill_rows(const ReplayRequest& request);

  ReplayArgs host_;  // pointers into blocks()
  std::vector<ReplayRequest> requests_;
  std::vector<std::vector<RingHead>> expected_;  // [request][head], empty for a pad
};

// What is wrong with the sum of A * delta that is worst by delta_error(); empty: nothing.
std::string judge_sum(double worst);

}  // namespace ssmjit
