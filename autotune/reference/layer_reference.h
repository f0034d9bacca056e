// A layer's step in double precision, by plain loops: what kernels are judged against.
// Maths: templates/layer.cuh. What a chain of kernels would pass on in the input's dtype is rounded to it: x, B and C
// after the convolution, and y before the norm.
#pragma once

#include <cstdint>
#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/kernel.h>

#include "autotune/reference/conv1d_reference.h"
#include "autotune/reference/ring_reference.h"
#include "autotune/reference/stored_values.h"
#include "autotune/reference/update_reference.h"

namespace ssmjit {

// Where a row's states are. A pad row has none.
RowSlots row_slots(const LayerArgs& args, std::int64_t row, const Reader& read);

// What the layer's convolution is given, without an output; x as [batch, tokens, channels].
Conv1dArgs layer_conv1d_args(const Description& description, const LayerArgs& args);
// What its ring is given, without x, B, C and an output.
RingArgs layer_ring_args(const Description& description, const LayerArgs& args);

// Where token `t` of a row begins in x, B, C, dt, z or out; elements.
std::int64_t layer_token_at(const Description& description, const Tensor& tensor, std::int64_t row, int t);

// Channels [first, first + count) of x, B and C of a row, in that order, as the recurrence takes them.
struct LayerChannels {
  std::vector<double> value;  // [tokens, count]
  // Whether fp32 could round the sum to another value than double: it lies next to halfway between two of the input's
  // dtype. All else of the layer follows from the values, so a check leaves such channels out.
  std::vector<bool> unsure;
  std::vector<double> error;  // by how much a sum in fp32 may be off; 0 where it is rounded to 16 bits
};
LayerChannels layer_channels(const Description& description, const LayerArgs& args, std::int64_t row,
                             std::int64_t first, std::int64_t count, const Reader& read);

// The heads of one group of the norm (of one group of B and C, where there is no norm) of a row, in place.
struct LayerGroup {
  std::vector<HeadResult> heads;  // state after the last token, before it is rounded, and by how much x and B may have
                                  // put it off; y and y_terms [tokens, head_dim], y rounded where a norm follows
  std::vector<double> out;        // [tokens, heads, head_dim]
  std::vector<double> terms;      // of out, as HeadResult::y_terms
  // [heads, head_dim]: whether x there or B of the group is unsure, of any token, so that the new state may be another.
  std::vector<bool> unsure;
};
int layer_group_heads(const Description& description);
// A pad row is computed as if its states were zero.
LayerGroup layer_reference(const Description& description, const LayerArgs& args, std::int64_t row, int group,
                           const RowSlots& slots, const Reader& read);

// The same of a live row of a layer with a ring.
struct RingLayerGroup {
  std::vector<RingHead> heads;       // of the ring's step, with x, B and C as the convolution leaves them
  LayerChannels x;                   // of the heads
  LayerChannels B;                   // of the groups that the heads are of
  std::vector<double> out;           // [tokens, heads, head_dim], from y by the recurrence
  std::vector<double> out_operands;  // from y of rounded operands
  std::vector<double> out_slack;     // of the latter: by how much a right kernel may be off before it is rounded
};
RingLayerGroup ring_layer_reference(const Description& description, const LayerArgs& args, std::int64_t row, int group,
                                    const RingRequest& of, const Reader& read);

}  // namespace ssmjit
