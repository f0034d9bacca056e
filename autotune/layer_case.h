// One test of a fused layer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "autotune/kernel_case.h"
#include "autotune/reference/layer_reference.h"

namespace ssmjit {

class LayerCase : public KernelCase {
 public:
  LayerCase(const Description& description, const CaseLayout& layout, std::uint64_t seed);

  LayerArgs args(const std::vector<std::byte*>& base) const;
  CaseArgs launch_args(const std::vector<std::byte*>& base) const override { return args(base); }

 private:
  void judge(const std::vector<std::byte*>& want, const std::vector<std::byte*>& got,
             CaseResult& result) const override;
  void add_inputs();
  void add_layer_weights();

  LayerArgs host_;  // pointers into blocks()
  std::vector<RowSlots> rows_;
  std::vector<std::vector<LayerGroup>> expected_;  // [row][group]
};

}  // namespace ssmjit
