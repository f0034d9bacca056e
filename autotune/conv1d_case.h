// One test of a conv1d kernel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "autotune/kernel_case.h"
#include "autotune/reference/conv1d_reference.h"

namespace ssmjit {

// Products and sums of a convolution, as the limits of fp32 outputs count them.
inline constexpr int kConvTerms = 8;

class Conv1dCase : public KernelCase {
 public:
  Conv1dCase(const Description& description, const CaseLayout& layout, std::uint64_t seed);

  Conv1dArgs args(const std::vector<std::byte*>& base) const;
  CaseArgs launch_args(const std::vector<std::byte*>& base) const override { return args(base); }

 private:
  void judge(const std::vector<std::byte*>& want, const std::vector<std::byte*>& got,
             CaseResult& result) const override;
  void add_tokens();

  Conv1dArgs host_;  // pointers into blocks()
  std::vector<ConvRequest> requests_;
  std::vector<std::vector<ConvChannel>> expected_;  // [row][channel]
};

}  // namespace ssmjit
