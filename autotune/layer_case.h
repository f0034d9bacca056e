// One test of a layer, in one launch or as a chain.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
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
  void judge_in_place(const LayerArgs& want, const LayerArgs& got, CaseResult& result) const;
  void judge_ring(const LayerArgs& want, const LayerArgs& got, CaseResult& result) const;
  static void want_zeros(const LayerArgs& want, const LayerArgs& got, std::int64_t at, std::int64_t count);
  void add_inputs();
  void add_layer_weights();
  void make_sums_sure(std::int64_t row, const std::function<void()>& refill_window);

  LayerArgs host_;  // pointers into blocks()
  std::vector<ConvRequest> windows_;
  std::vector<RowSlots> rows_;                                 // of a layer in place
  std::vector<std::vector<LayerGroup>> expected_;              // [row][group]
  std::vector<RingRequest> requests_;                          // of one with a ring
  std::vector<std::vector<RingLayerGroup>> expected_of_ring_;  // [request][group], none of a pad
};

}  // namespace ssmjit
