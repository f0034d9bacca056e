// One token of a fused layer in double precision, by plain loops: what kernels are judged against.
// Maths: templates/layer.cuh. What a chain of kernels would pass on in the input's dtype is rounded to it: x, B and C
// after the convolution, and y before the norm.
#pragma once

#include <cstdint>
#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/kernel.h>

#include "autotune/reference/stored_values.h"
#include "autotune/reference/update_reference.h"

namespace ssmjit {

// Where a row's states are. A pad row has none.
RowSlots row_slots(const LayerArgs& args, std::int64_t row, const Reader& read);

// Where entry k (0: the oldest) of a channel's window lies in the slot; elements.
std::int64_t window_offset(const Description& description, std::int64_t channel, int k);

// Channels [first, first + count) of x, B and C of a row, in that order, as the recurrence takes them.
struct LayerChannels {
  std::vector<double> value;
  // Whether fp32 could round the sum to another value than double: it lies next to halfway between two of the input's
  // dtype. All else of the layer follows from the values, so a check leaves such channels out.
  std::vector<bool> unsure;
};
LayerChannels layer_channels(const Description& description, const LayerArgs& args, std::int64_t row,
                             const RowSlots& slots, std::int64_t first, std::int64_t count, const Reader& read);

// The heads of one group of the norm (of one group of B and C, where there is no norm) of a row.
struct LayerGroup {
  std::vector<HeadResult> heads;  // state before it is rounded; y, rounded where a norm follows
  std::vector<double> out;        // [heads, head_dim]
  std::vector<double> terms;      // of out, as HeadResult::y_terms
  std::vector<bool> unsure;       // [heads, head_dim]: x there or B of the group, so that the new state may be another
};
int layer_group_heads(const Description& description);
// A pad row is computed as if its states were zero.
LayerGroup layer_reference(const Description& description, const LayerArgs& args, std::int64_t row, int group,
                           const RowSlots& slots, const Reader& read);

}  // namespace ssmjit
