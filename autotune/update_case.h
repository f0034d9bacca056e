// One test of an update kernel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "autotune/kernel_case.h"
#include "autotune/reference/update_reference.h"

namespace ssmjit {

class UpdateCase : public KernelCase {
 public:
  UpdateCase(const Description& description, const CaseLayout& layout, std::uint64_t seed);

  UpdateArgs args(const std::vector<std::byte*>& base) const;
  CaseArgs launch_args(const std::vector<std::byte*>& base) const override { return args(base); }

 private:
  void judge(const std::vector<std::byte*>& want, const std::vector<std::byte*>& got,
             CaseResult& result) const override;

  UpdateArgs host_;  // pointers into blocks()
  std::vector<RowSlots> rows_;
  std::vector<std::vector<HeadResult>> expected_;  // [row][head]
};

}  // namespace ssmjit
