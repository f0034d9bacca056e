// The single-token update in double precision, by plain loops: what kernels are judged against.
// Maths: include/ssmjit/description.h; the state is rounded only where it is stored, y comes from the unrounded state.
#pragma once

#include <cstdint>
#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/kernel.h>

#include "autotune/reference/stored_values.h"

namespace ssmjit {

// Where a row's state comes from and goes to, by the contract's pad rule.
struct RowSlots {
  bool live = false;   // else a pad row: nothing of it is read
  bool store = false;  // whether a new state is written
  std::int64_t source = 0;
  std::int64_t target = 0;
};
RowSlots row_slots(const Description& description, const UpdateArgs& args, std::int64_t row, const Reader& read);

// One head of one row: its new state [head_dim, dstate], before rounding, and its output [head_dim].
struct HeadResult {
  std::vector<double> state;
  std::vector<double> y;
  std::vector<double> y_terms;  // root of the sum of squares of what each y is summed from: what cancelled in it
  // Of a state that is stored by chance or in units of a factor (codegen/rounded.h), else empty: by how much a right
  // kernel may be off before it rounds, and the factor of each row [head_dim].
  std::vector<double> state_slack;
  std::vector<double> scale;
};
// A pad row is computed as if its state were zero.
HeadResult update_reference(const Description& description, const UpdateArgs& args, std::int64_t row, int head,
                            const RowSlots& slots, const Reader& read);

}  // namespace ssmjit
