// One test of a norm kernel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "autotune/kernel_case.h"

namespace ssmjit {

// As judge(): the limits, and that a 16-bit output was rounded once, from fp32.
std::string judge_norm(const Nearness& n, DType dtype);

class NormCase : public KernelCase {
 public:
  NormCase(const Description& description, const CaseLayout& layout, std::uint64_t seed);

  NormArgs args(const std::vector<std::byte*>& base) const;
  CaseArgs launch_args(const std::vector<std::byte*>& base) const override { return args(base); }

 private:
  void judge(const std::vector<std::byte*>& want, const std::vector<std::byte*>& got,
             CaseResult& result) const override;

  NormArgs host_;                              // pointers into blocks()
  std::vector<std::vector<double>> expected_;  // [(request, token, group)]
};

}  // namespace ssmjit
