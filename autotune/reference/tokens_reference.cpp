#include "autotune/reference/tokens_reference.h"

#include <algorithm>
#include <cmath>

#include "autotune/reference/stored_state.h"

namespace ssmjit {
namespace {

std::size_t at(int i) { return static_cast<std::size_t>(i); }

// Of a term of a state that fp32 computes: delta and decay are functions of fp32 sums.
constexpr double kTerm = 0x1p-20;

std::int64_t index_at(const Tensor& indices, std::int64_t row, std::int64_t column, const Reader& read) {
  Tensor from = indices;
  if (indices.rank == 2)
    from.data = static_cast<const std::byte*>(indices.data) + column * indices.stride[1] * size_bytes(indices.dtype);
  return stored_index(from, row, read);
}

}  // namespace

TokensRequest tokens_request(const Description& d, const UpdateArgs& args, std::int64_t request, const Reader& read) {
  TokensRequest r;
  r.tokens = d.token_count;
  if (d.is_varlen) {
    r.first_packed = stored_index(args.cu_seqlens, request, read);
    const std::int64_t end = stored_index(args.cu_seqlens, request + 1, read);
    r.tokens = static_cast<int>(std::clamp<std::int64_t>(end - r.first_packed, 0, d.token_count));
  }
  const auto usable = [&](std::int64_t slot, std::int64_t slots) {
    return slot >= 0 && slot < slots && slot != args.pad_slot_id;
  };
  std::int64_t column = 0;
  if (d.has_accepted)
    column = std::clamp<std::int64_t>(stored_index(args.num_accepted_tokens, request, read), 1, d.token_count) - 1;
  const std::int64_t slots = args.state.shape[0];
  r.source =
      args.state_batch_indices.data != nullptr ? index_at(args.state_batch_indices, request, column, read) : request;
  r.live = usable(r.source, slots);
  const bool snapshots = std::holds_alternative<Snapshots>(d.store_kind);
  if (snapshots) {
    const std::int64_t to = args.intermediate_state_indices.data != nullptr
                                ? stored_index(args.intermediate_state_indices, request, read)
                                : r.source;
    if (r.live && usable(to, args.intermediate_states.shape[0])) r.snapshot = to;
    if (d.has_tree) r.live = r.snapshot >= 0;
  }
  for (int t = 0; t < r.tokens; ++t) {
    if (std::holds_alternative<Slots>(d.store_kind)) {
      const std::int64_t to = index_at(args.dst_state_batch_indices, request, t, read);
      r.targets.push_back(r.live && usable(to, slots) ? to : -1);
    }
    if (d.has_tree) {
      const std::int64_t parent = index_at(args.retrieve_parent_token, request, t, read);
      r.parents.push_back(parent >= 0 && parent < t ? static_cast<int>(parent) : -1);
    }
  }
  if (!r.live || r.tokens == 0) return r;
  if (std::holds_alternative<InPlace>(d.store_kind)) {
    r.final_target = r.source;
    if (d.has_destination && args.dst_state_batch_indices.data != nullptr)
      r.final_target = stored_index(args.dst_state_batch_indices, request, read);
    if (!usable(r.final_target, slots)) r.final_target = -1;
  } else if (snapshots && !args.disable_state_update) {
    r.final_target = r.source;
  }
  return r;
}

std::int64_t tokens_offset(const Description& d, const Tensor& tensor, int inner, std::int64_t request,
                           const TokensRequest& of, int t) {
  if (d.is_varlen) return (of.first_packed + t) * tensor.stride[tensor.rank == inner + 2 ? 1 : 0];
  return request * tensor.stride[0] + (d.token_count == 1 ? 0 : t * tensor.stride[1]);
}

TokensHead tokens_reference(const Description& d, const UpdateArgs& args, std::int64_t request, const TokensRequest& of,
                            int head, const Reader& read) {
  const int P = d.head_dim, N = d.dstate, group = head / d.heads_per_group();
  LeafValues leaf{};
  const auto set = [&](Leaf l, double v) { leaf[static_cast<std::size_t>(l)] = v; };
  set(Leaf::A, stored_value(args.A, head, read));
  if (d.has_dt_bias()) set(Leaf::dt_bias, stored_value(args.dt_bias, head, read));
  if (d.has_D()) set(Leaf::D, stored_value(args.D, head, read));

  std::vector<double> h(at(P * N), 0.0), slack(at(P * N), 0.0);
  if (of.live)
    h = decoded_state(d, args.state, of.source * args.state.stride[0] + std::int64_t{head} * P * N, args.state_scale,
                      of.source * args.state_scale.stride[0] + std::int64_t{head} * P, read);

  TokensHead result;
  for (int t = 0; t < of.tokens; ++t) {
    if (d.has_tree && of.live && of.parents[at(t)] >= 0) {
      const std::int64_t row =
          ((of.snapshot * args.intermediate_states.shape[1] + of.parents[at(t)]) * d.nheads + head) * P;
      h = decoded_state(d, args.intermediate_states, row * N, args.intermediate_state_scales, row, read);
      std::fill(slack.begin(), slack.end(), 0.0);
    }
    const auto of_token = [&](const Tensor& tensor, int part, int width) {
      return stored_values(tensor, tokens_offset(d, tensor, 2, request, of, t) + std::int64_t{part} * width, width,
                           read);
    };
    const std::vector<double> x = of_token(args.x, head, P), B = of_token(args.B, group, N),
                              C = of_token(args.C, group, N);
    std::vector<double> z;
    if (d.has_z()) z = of_token(args.z, head, P);
    set(Leaf::dt, stored_value(args.dt, tokens_offset(d, args.dt, 1, request, of, t) + head, read));
    const double delta = d.delta_expr.evaluate(leaf);
    set(Leaf::delta, delta);
    const double decay = d.decay_expr.evaluate(leaf);
    // The exponent of a decay is rounded by some units of its last place.
    const double decay_error = kTerm * (1 + (decay > 0 ? std::abs(std::log(decay)) : 128.0));
    for (int p = 0; p < P; ++p) {
      double y = 0, terms = 0;
      for (int n = 0; n < N; ++n) {
        const std::size_t i = at(p * N + n);
        const double kept = h[i] * decay, added = delta * x[at(p)] * B[at(n)];
        h[i] = kept + added;
        slack[i] = slack[i] * decay + std::abs(kept) * decay_error + std::abs(added) * kTerm + 0x1p-126;
        y += h[i] * C[at(n)];
        terms += h[i] * C[at(n)] * h[i] * C[at(n)];
      }
      set(Leaf::x, x[at(p)]);
      if (!d.skip_expr.empty()) y += d.skip_expr.evaluate(leaf);
      terms = std::sqrt(terms);
      if (d.has_z()) {
        set(Leaf::z, z[at(p)]);
        const double gate = d.gate_expr.evaluate(leaf);
        y *= gate;
        terms *= std::abs(gate);
      }
      result.y.push_back(y);
      result.y_terms.push_back(terms);
    }
    result.states.push_back(h);
    result.slacks.push_back(slack);
  }
  return result;
}

std::uint64_t tokens_seed(const UpdateArgs& args, const TokensRequest& of, const Reader& read) {
  const bool one = of.targets.empty() && of.snapshot < 0 && of.final_target >= 0;
  return seed_of_slot(args.rand_seed, one ? of.final_target : of.source, read);
}

}  // namespace ssmjit
