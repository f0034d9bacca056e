#include "jit/layer_chain.h"

#include <cstddef>

#include "codegen/chain_scratch.h"

namespace ssmjit {
namespace {

// [batch, tokens, outer, inner] or, without tokens, [batch, outer, inner], of rows that lie `row` elements apart.
Tensor rows_of(const void* data, DType dtype, bool tokens, std::int64_t batch, std::int64_t T, std::int64_t row,
               std::int64_t outer, std::int64_t inner) {
  return tokens ? strided(data, dtype, {batch, T, outer, inner}, {T * row, row, inner, 1})
                : strided(data, dtype, {batch, outer, inner}, {row, inner, 1});
}

// [batch, (tokens,) nheads, head_dim] with heads and rows as one dimension of channels, and one of tokens.
Tensor with_channels(const Tensor& tensor, std::int64_t T) {
  Tensor t = tensor;
  if (t.data == nullptr) return t;
  const bool tokens = t.rank == 4;
  t.rank = 3;
  t.shape = {tensor.shape[0], T, tokens ? tensor.shape[2] * tensor.shape[3] : tensor.shape[1] * tensor.shape[2], 0};
  t.stride = {tensor.stride[0], tokens ? tensor.stride[1] : t.shape[2], 1, 0};
  return t;
}

}  // namespace

ChainArgs chain_args(const Description& description, PlanForm form, const LayerArgs& args) {
  const Description& d = description;
  const std::int64_t batch = args.x.shape[0], T = d.token_count;
  const std::int64_t H = d.nheads, P = d.head_dim, N = d.dstate, G = d.ngroups;
  const bool ring = d.ring_window() != 0, several = ring || T > 1;
  const auto* scratch = static_cast<const std::byte*>(args.scratch.data);
  const ChainScratch places = chain_scratch(d, batch);
  // A part behind the first may start while what is in front of the chain still runs, iff the first may: whoever asks
  // it to wait first asks all of them.
  Pdl behind = Pdl::off;
  if (form == PlanForm::chain_pdl) behind = args.pdl == Pdl::wait_first ? Pdl::wait_first : Pdl::early_state;
  Pdl next = args.pdl;

  ChainArgs chain;
  Tensor x = args.x, B = args.B, C = args.C;
  if (d.conv) {
    Conv1dArgs& a = chain.conv1d.emplace();
    const std::int64_t channels = d.conv_channels();
    const std::byte* out = scratch + places.channels;
    a.conv_state = args.conv_state;
    a.x = args.x;
    a.w = args.conv_weight;
    a.bias = args.conv_bias;
    a.out = contiguous(out, d.input_dtype, {batch, T, channels});
    a.state_batch_indices = args.state_batch_indices;
    a.output_state_indices = args.output_state_indices;
    a.intermediate_states = args.intermediate_states;
    a.intermediate_state_indices = args.intermediate_state_indices;
    a.cache_seqlens = args.cache_seqlens;
    a.num_accepted_tokens = args.num_accepted_tokens;
    a.pad_slot_id = args.pad_slot_id;
    a.pdl = next;
    next = behind;
    const std::int64_t bytes = size_bytes(d.input_dtype);
    x = rows_of(out, d.input_dtype, several, batch, T, channels, H, P);
    B = rows_of(out + H * P * bytes, d.input_dtype, several, batch, T, channels, G, N);
    C = rows_of(out + (H * P + G * N) * bytes, d.input_dtype, several, batch, T, channels, G, N);
  }
  const Tensor y = d.norm ? rows_of(scratch + places.y, d.input_dtype, several, batch, T, H * P, H, P) : args.out;
  const auto fill = [&](auto& a) {
    a.state = args.state;
    a.x = x;
    a.dt = args.dt;
    a.A = args.A;
    a.B = B;
    a.C = C;
    a.D = args.D;
    a.dt_bias = args.dt_bias;
    if (d.has_z()) a.z = args.z;
    a.out = y;
    a.state_batch_indices = args.state_batch_indices;
    a.pad_slot_id = args.pad_slot_id;
    a.pdl = next;
  };
  if (ring) {
    RingArgs& a = chain.ring.emplace();
    fill(a);
    a.state_scale = args.state_scale;
    a.x_ring = args.x_ring;
    a.B_ring = args.B_ring;
    a.dt_ring = args.dt_ring;
    a.ring_start = args.ring_start;
    a.ring_count = args.ring_count;
    a.rand_seed = args.rand_seed;
  } else {
    fill(chain.update.emplace());
  }
  next = behind;
  if (d.norm) {
    NormArgs& a = chain.norm.emplace();
    a.x = with_channels(y, T);
    if (!d.norm->gate_expr.empty()) a.z = with_channels(args.z, T);
    a.weight = args.norm_weight;
    a.bias = args.norm_bias;
    a.out = with_channels(args.out, T);
    a.pdl = next;
  }
  return chain;
}

}  // namespace ssmjit
