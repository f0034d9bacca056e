// The update on host memory, by another hand than the double reference: plain loops in fp32. And what it looks like
// when it is wrong: one Mutation each, so that the verifier can be tested.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/kernel.h>

#include "autotune/target.h"

namespace ssmjit {

enum class Mutation {
  none,
  wrong_group,             // group h % ngroups
  group_zero,              // the first group's B and C for all heads
  no_decay,                // 1 in place of exp(A * delta)
  decay_of_previous_head,  // A of head h, delta of head h - 1
  missed_skip,             // without D * x
  missed_gate,             // without silu(z)
  missed_dt_bias,          // softplus(dt)
  missed_softplus,         // dt + dt_bias
  stale_C,                 // C of row 0
  neighbour_slot,          // reads the state of the row before
  y_from_rounded_state,    // y of the stored state
  pad_row_written,         // a pad row's output is x
  pad_state_written,       // a pad row leaves its zero-state result in the null slot
  past_the_end,            // writes one element past `out`
  destination_ignored,     // always in place
  destination_and_source,  // to the destination, and in place too
  narrow_indices,          // int64 indices read as int32
  last_column_dropped,     // columns [0, dstate - 1)
  last_column_not_stored,  // in y, but not in the state
  differs_from_third_on,   // one bit, from the third launch on
  row_stride_ignored,      // x as if its rows were dense
  slot_stride_ignored,     // slots as if they were dense
  negative_zero,           // -0 in a pad row's zeros
  one_nan,                 // in one element of `out`
  head_not_stored,         // the state of the last head
  never_launched,          // throws, as a launch does that the driver refuses
};

class HostTarget : public Target {
 public:
  HostTarget(const Description& description, Mutation mutation) : description_(description), mutation_(mutation) {}

  std::byte* allocate(const KernelCase::Block& block) override;
  void restore(std::byte* address, const KernelCase::Block& block) override;
  void read(const std::byte* address, std::vector<std::byte>& contents) override;
  void release_all() override { memory_.clear(); }
  // The description's maths must be mamba2()'s, with or without silu(z).
  int launches() const override { return 5; }
  std::vector<std::string> launch(const KernelCase& test, const CaseArgs& args) override;

 private:
  void step(const UpdateArgs& args, std::int64_t row) const;
  bool is(Mutation m) const { return mutation_ == m; }

  Description description_;
  Mutation mutation_;
  int launches_ = 0;
  std::vector<std::unique_ptr<std::vector<std::byte>>> memory_;
};

}  // namespace ssmjit
