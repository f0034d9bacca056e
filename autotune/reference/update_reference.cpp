#include "autotune/reference/update_reference.h"

#include <cmath>

#include "autotune/reference/stored_state.h"
#include "codegen/rounded.h"

namespace ssmjit {
namespace {

// Relative errors in fp32: of a decay exp(v) by |v|, of which v has several roundings; and of delta * x * B.
constexpr double kExponent = 0x1p-21, kProducts = 0x1p-20;
constexpr double kSmallest = 0x1p-126;  // below it fp32 may flush to zero

}  // namespace

RowSlots row_slots(const Description& description, const UpdateArgs& args, std::int64_t row, const Reader& read) {
  const std::int64_t slots = args.state.shape[0];
  const auto usable = [&](std::int64_t i) { return i >= 0 && i < slots && i != args.pad_slot_id; };
  RowSlots r;
  r.source = args.state_batch_indices.data != nullptr ? stored_index(args.state_batch_indices, row, read) : row;
  r.target = description.has_destination && args.dst_state_batch_indices.data != nullptr
                 ? stored_index(args.dst_state_batch_indices, row, read)
                 : r.source;
  r.live = usable(r.source);
  r.store = r.live && usable(r.target);
  return r;
}

HeadResult update_reference(const Description& d, const UpdateArgs& args, std::int64_t row, int head,
                            const RowSlots& slots, const Reader& read) {
  const int P = d.head_dim;
  const int N = d.dstate;
  const int group = head / d.heads_per_group();
  const std::vector<double> x = stored_values(args.x, row * args.x.stride[0] + std::int64_t{head} * P, P, read);
  const std::vector<double> B = stored_values(args.B, row * args.B.stride[0] + std::int64_t{group} * N, N, read);
  const std::vector<double> C = stored_values(args.C, row * args.C.stride[0] + std::int64_t{group} * N, N, read);
  std::vector<double> z;
  if (d.has_z()) z = stored_values(args.z, row * args.z.stride[0] + std::int64_t{head} * P, P, read);

  LeafValues leaf{};
  const auto set = [&](Leaf l, double v) { leaf[static_cast<std::size_t>(l)] = v; };
  set(Leaf::dt, stored_value(args.dt, row * args.dt.stride[0] + head, read));
  set(Leaf::A, stored_value(args.A, head, read));
  if (d.has_dt_bias()) set(Leaf::dt_bias, stored_value(args.dt_bias, head, read));
  if (d.has_D()) set(Leaf::D, stored_value(args.D, head, read));
  const double delta = d.delta_expr.evaluate(leaf);
  set(Leaf::delta, delta);
  const double decay = d.decay_expr.evaluate(leaf);

  HeadResult result;
  result.state.assign(static_cast<std::size_t>(P) * static_cast<std::size_t>(N), 0.0);
  const std::int64_t scale_at = slots.source * args.state_scale.stride[0] + std::int64_t{head} * P;
  if (slots.live)
    result.state = decoded_state(d, args.state, slots.source * args.state.stride[0] + std::int64_t{head} * P * N,
                                 args.state_scale, scale_at, read);
  const bool rounded = is_state_rounded(d);
  if (rounded) result.state_slack.resize(result.state.size());
  const double decay_error = kProducts + (decay > 0 ? kExponent * std::abs(std::log(decay)) : 0.0);
  result.y.resize(static_cast<std::size_t>(P));
  result.y_terms.resize(static_cast<std::size_t>(P));
  for (int p = 0; p < P; ++p) {
    const auto pp = static_cast<std::size_t>(p);
    double y = 0;
    double terms = 0;
    for (int n = 0; n < N; ++n) {
      const auto nn = static_cast<std::size_t>(n);
      double& h = result.state[pp * static_cast<std::size_t>(N) + nn];
      if (rounded)
        result.state_slack[pp * static_cast<std::size_t>(N) + nn] =
            decay_error * std::abs(h * decay) + kProducts * std::abs(delta * x[pp] * B[nn]) + kSmallest;
      h = h * decay + delta * x[pp] * B[nn];
      y += h * C[nn];
      terms += h * C[nn] * h * C[nn];
    }
    set(Leaf::x, x[pp]);
    if (!d.skip_expr.empty()) y += d.skip_expr.evaluate(leaf);
    terms = std::sqrt(terms);
    if (d.has_z()) {
      set(Leaf::z, z[pp]);
      const double gate = d.gate_expr.evaluate(leaf);
      y *= gate;
      terms *= std::abs(gate);
    }
    result.y[pp] = y;
    result.y_terms[pp] = terms;
  }
  if (rounded) result.scale = row_scales(d, result.state, result.state_slack);
  return result;
}

}  // namespace ssmjit
