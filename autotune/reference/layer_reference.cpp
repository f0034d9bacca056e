#include "autotune/reference/layer_reference.h"

#include <algorithm>
#include <cmath>

#include "autotune/host_numbers.h"

namespace ssmjit {
namespace {

// Of fp32 sums of a few products, relative to the root of the sum of their squares: more than their roundings and an
// activation's.
constexpr double kSumError = 1.4e-6;

double applied(const Expr& expr, Leaf leaf, double v) {
  LeafValues values{};
  values[static_cast<std::size_t>(leaf)] = v;
  return expr.evaluate(values);
}

// Whether a value that is off by up to `error` may be rounded to another one.
bool may_round_elsewhere(DType dtype, double v, double error) {
  return rounded(dtype, v - error) != rounded(dtype, v + error);
}

// The norm of one group of one token, channels from `first` on, in place of its input; `spread`, by how much each input
// may be off, becomes that of the outputs. `z` where the norm has a gate.
void apply_norm(const Description& d, const LayerArgs& args, std::int64_t first, const std::vector<double>& z,
                std::vector<double>& u, std::vector<double>& spread, const Reader& read) {
  const Norm& norm = *d.norm;
  const auto gate = [&](std::size_t i) {
    const double v = applied(norm.gate_expr, Leaf::z, z[i]);
    u[i] *= v;
    spread[i] *= std::abs(v);
  };
  const bool gated = !norm.gate_expr.empty();
  double squares = 0;
  for (std::size_t i = 0; i < u.size(); ++i) {
    if (gated && !norm.before_gate) gate(i);
    squares += u[i] * u[i];
  }
  const double scale = 1.0 / std::sqrt(squares / static_cast<double>(u.size()) + norm.eps);
  const int rows = static_cast<int>(u.size());
  const std::vector<double> weight = stored_values(args.norm_weight, first, rows, read);
  std::vector<double> bias;
  if (norm.has_bias) bias = stored_values(args.norm_bias, first, rows, read);
  for (std::size_t i = 0; i < u.size(); ++i) {
    u[i] *= scale * weight[i];
    spread[i] *= std::abs(scale * weight[i]);
    if (norm.has_bias) u[i] += bias[i];
    if (gated && norm.before_gate) gate(i);
  }
}

}  // namespace

RowSlots row_slots(const LayerArgs& args, std::int64_t row, const Reader& read) {
  RowSlots r;
  r.source = args.state_batch_indices.data != nullptr ? stored_index(args.state_batch_indices, row, read) : row;
  r.target = r.source;
  r.live = r.store = r.source >= 0 && r.source < args.state.shape[0] && r.source != args.pad_slot_id;
  return r;
}

Conv1dArgs layer_conv1d_args(const Description& d, const LayerArgs& args) {
  Conv1dArgs a;
  a.conv_state = args.conv_state;
  a.x = args.x;
  if (a.x.rank == 2)
    a.x = strided(args.x.data, args.x.dtype, {args.x.shape[0], 1, d.conv_channels()},
                  {args.x.stride[0], d.conv_channels(), 1});
  a.w = args.conv_weight;
  a.bias = args.conv_bias;
  a.state_batch_indices = args.state_batch_indices;
  a.output_state_indices = args.output_state_indices;
  a.intermediate_states = args.intermediate_states;
  a.intermediate_state_indices = args.intermediate_state_indices;
  a.cache_seqlens = args.cache_seqlens;
  a.num_accepted_tokens = args.num_accepted_tokens;
  a.pad_slot_id = args.pad_slot_id;
  return a;
}

RingArgs layer_ring_args(const Description& d, const LayerArgs& args) {
  RingArgs a;
  a.state = args.state;
  a.state_scale = args.state_scale;
  a.x_ring = args.x_ring;
  a.B_ring = args.B_ring;
  a.dt_ring = args.dt_ring;
  a.ring_start = args.ring_start;
  a.ring_count = args.ring_count;
  a.dt = args.dt;
  a.A = args.A;
  a.D = args.D;
  a.dt_bias = args.dt_bias;
  if (d.has_z()) a.z = args.z;
  a.state_batch_indices = args.state_batch_indices;
  a.rand_seed = args.rand_seed;
  a.pad_slot_id = args.pad_slot_id;
  return a;
}

std::int64_t layer_token_at(const Description& d, const Tensor& tensor, std::int64_t row, int t) {
  return row * tensor.stride[0] + (d.ring_window() != 0 || d.token_count > 1 ? t * tensor.stride[1] : 0);
}

LayerChannels layer_channels(const Description& d, const LayerArgs& args, std::int64_t row, std::int64_t first,
                             std::int64_t count, const Reader& read) {
  const std::int64_t inner = std::int64_t{d.nheads} * d.head_dim, state = std::int64_t{d.ngroups} * d.dstate;
  const int T = d.token_count, n = static_cast<int>(count);
  LayerChannels out;
  out.unsure.assign(static_cast<std::size_t>(T * count), false);
  out.error.assign(static_cast<std::size_t>(T * count), 0.0);
  if (!d.conv) {
    const Tensor& from = first < inner ? args.x : first < inner + state ? args.B : args.C;
    const std::int64_t at = first < inner ? first : first < inner + state ? first - inner : first - inner - state;
    for (int t = 0; t < T; ++t) {
      const std::vector<double> of_token = stored_values(from, layer_token_at(d, from, row, t) + at, n, read);
      out.value.insert(out.value.end(), of_token.begin(), of_token.end());
    }
    return out;
  }
  const Description conv = layer_parts(d).front();
  const Conv1dArgs a = layer_conv1d_args(d, args);
  const ConvRequest request = conv_request(conv, a, row, read);
  const int width = d.conv->width, length = d.conv_state_len();
  HeldMemory held(read);
  for (int t = 0; t < T; ++t) held.hold(a.x, conv_token_at(a.x, row, t, first), count);
  held.hold(a.w, first * width, count * width);
  if (d.conv->has_bias) held.hold(a.bias, first, count);
  if (request.live && d.conv->channels_last)
    for (int k = 0; k < length; ++k) held.hold(a.conv_state, conv_state_at(conv, a, request.slot, first, k), count);
  else if (request.live)
    held.hold(a.conv_state, conv_state_at(conv, a, request.slot, first, 0), count * length);
  const Reader near = held.reader();
  out.value.resize(static_cast<std::size_t>(T * count));
  for (int c = 0; c < n; ++c) {
    const ConvChannel channel = conv1d_reference(conv, a, row, first + c, request, near);
    for (int t = 0; t < T; ++t) {
      const auto i = static_cast<std::size_t>(t * n + c);
      const double y = channel.y[static_cast<std::size_t>(t)], terms = channel.y_terms[static_cast<std::size_t>(t)];
      out.value[i] = rounded(d.input_dtype, y);
      if (d.input_dtype == DType::f32) out.error[i] = kSumError * terms;
      out.unsure[i] = d.input_dtype != DType::f32 && may_round_elsewhere(d.input_dtype, y, kSumError * terms);
    }
  }
  return out;
}

int layer_group_heads(const Description& d) { return d.norm ? d.norm_group_size() / d.head_dim : d.heads_per_group(); }

LayerGroup layer_reference(const Description& d, const LayerArgs& args, std::int64_t row, int group,
                           const RowSlots& slots, const Reader& read) {
  const std::int64_t P = d.head_dim, N = d.dstate;
  const int heads = layer_group_heads(d), T = d.token_count;
  const std::int64_t inner = std::int64_t{d.nheads} * P;
  const std::int64_t first = std::int64_t{group} * heads * P, rows = heads * P;
  LayerGroup result;
  const auto channels = [&](std::int64_t at, std::int64_t count) {
    return layer_channels(d, args, row, at, count, read);
  };
  const bool has_z = d.has_z() || (d.norm && !d.norm->gate_expr.empty());
  std::vector<std::vector<double>> z(static_cast<std::size_t>(T));
  for (int t = 0; has_z && t < T; ++t)
    z[static_cast<std::size_t>(t)] =
        stored_values(args.z, layer_token_at(d, args.z, row, t) + first, static_cast<int>(rows), read);

  const LayerChannels of_x = channels(first, rows);
  const std::vector<double>& x = of_x.value;
  LayerChannels B;  // [tokens, dstate]
  std::vector<double> C;
  bool unsure_B = false;
  for (int i = 0; i < heads; ++i) {
    const int head = group * heads + i;
    if (i % d.heads_per_group() == 0) {
      const std::int64_t at = std::int64_t{head / d.heads_per_group()} * N;
      B = channels(inner + at, N);
      unsure_B = std::find(B.unsure.begin(), B.unsure.end(), true) != B.unsure.end();
      C = channels(inner + d.ngroups * N + at, N).value;
    }
    LeafValues leaf{};
    const auto set = [&](Leaf l, double v) { leaf[static_cast<std::size_t>(l)] = v; };
    set(Leaf::A, stored_value(args.A, head, read));
    if (d.has_dt_bias()) set(Leaf::dt_bias, stored_value(args.dt_bias, head, read));
    if (d.has_D()) set(Leaf::D, stored_value(args.D, head, read));

    HeadResult h;
    h.state.assign(static_cast<std::size_t>(P * N), 0.0);
    h.state_slack.assign(h.state.size(), 0.0);
    if (slots.live)
      h.state =
          stored_values(args.state, slots.source * args.state.stride[0] + head * P * N, static_cast<int>(P * N), read);
    for (std::int64_t p = 0; p < P; ++p) {
      bool unsure = unsure_B;
      for (int t = 0; t < T; ++t) unsure |= of_x.unsure[static_cast<std::size_t>(t * rows + i * P + p)];
      result.unsure.push_back(unsure);
    }
    for (int t = 0; t < T; ++t) {
      set(Leaf::dt, stored_value(args.dt, layer_token_at(d, args.dt, row, t) + head, read));
      const double delta = d.delta_expr.evaluate(leaf);
      set(Leaf::delta, delta);
      const double decay = d.decay_expr.evaluate(leaf);
      for (std::int64_t p = 0; p < P; ++p) {
        const double x_p = x[static_cast<std::size_t>(t * rows + i * P + p)];
        const double x_error = of_x.error[static_cast<std::size_t>(t * rows + i * P + p)];
        double y = 0, terms = 0;
        for (std::int64_t n = 0; n < N; ++n) {
          double& s = h.state[static_cast<std::size_t>(p * N + n)];
          const double B_n = B.value[static_cast<std::size_t>(t * N + n)];
          s = s * decay + delta * x_p * B_n;
          double& slack = h.state_slack[static_cast<std::size_t>(p * N + n)];
          slack = slack * decay + std::abs(delta) * (x_error * std::abs(B_n) +
                                                     std::abs(x_p) * B.error[static_cast<std::size_t>(t * N + n)]);
          const double term = s * C[static_cast<std::size_t>(t * N + n)];
          y += term;
          terms += term * term;
        }
        terms = std::sqrt(terms);
        set(Leaf::x, x_p);
        if (!d.skip_expr.empty()) y += d.skip_expr.evaluate(leaf);
        if (d.has_z()) {
          const double gate =
              applied(d.gate_expr, Leaf::z, z[static_cast<std::size_t>(t)][static_cast<std::size_t>(i * P + p)]);
          y *= gate;
          terms *= std::abs(gate);
        }
        h.y.push_back(d.norm ? rounded(d.input_dtype, y) : y);
        h.y_terms.push_back(terms);
      }
    }
    result.heads.push_back(std::move(h));
  }

  for (int t = 0; t < T; ++t) {
    std::vector<double> out, terms;
    for (const HeadResult& h : result.heads) {
      out.insert(out.end(), h.y.begin() + t * P, h.y.begin() + (t + 1) * P);
      terms.insert(terms.end(), h.y_terms.begin() + t * P, h.y_terms.begin() + (t + 1) * P);
    }
    if (d.norm) apply_norm(d, args, first, z[static_cast<std::size_t>(t)], out, terms, read);
    result.out.insert(result.out.end(), out.begin(), out.end());
    result.terms.insert(result.terms.end(), terms.begin(), terms.end());
  }
  return result;
}

RingLayerGroup ring_layer_reference(const Description& d, const LayerArgs& args, std::int64_t row, int group,
                                    const RingRequest& of, const Reader& read) {
  const std::int64_t P = d.head_dim, N = d.dstate, inner = std::int64_t{d.nheads} * P, state = d.ngroups * N;
  const int heads = layer_group_heads(d), T = d.token_count;
  const std::int64_t first = std::int64_t{group} * heads * P, rows = heads * P;
  const int first_group = group * heads / d.heads_per_group();
  const int end_group = (group * heads + heads - 1) / d.heads_per_group() + 1;
  const std::int64_t columns = (end_group - first_group) * N;
  RingLayerGroup result;
  result.x = layer_channels(d, args, row, first, rows, read);
  result.B = layer_channels(d, args, row, inner + first_group * N, columns, read);
  const LayerChannels C = layer_channels(d, args, row, inner + state + first_group * N, columns, read);

  // x, B and C of the row's tokens as the ring finds them, those of other groups left out.
  const std::int64_t channels = inner + 2 * state;
  std::vector<std::byte> passed_on(static_cast<std::size_t>(T * channels * size_bytes(d.input_dtype)));
  const auto pass_on = [&](const LayerChannels& from, std::int64_t at, std::int64_t count) {
    for (int t = 0; t < T; ++t)
      for (std::int64_t c = 0; c < count; ++c)
        encode(d.input_dtype, passed_on.data(), t * channels + at + c,
               from.value[static_cast<std::size_t>(t * count + c)]);
  };
  pass_on(result.x, first, rows);
  pass_on(result.B, inner + first_group * N, columns);
  pass_on(C, inner + state + first_group * N, columns);
  HeldMemory held(read);
  held.hold_host(passed_on.data(), passed_on.size());
  const Reader near = held.reader();
  RingArgs ring = layer_ring_args(d, args);
  const auto of_tokens = [&](std::int64_t at, std::int64_t outer, std::int64_t width) {
    return strided(passed_on.data() + at * size_bytes(d.input_dtype), d.input_dtype, {1, T, outer, width},
                   {0, channels, width, 1});
  };
  ring.x = of_tokens(0, d.nheads, P);
  ring.B = of_tokens(inner, d.ngroups, N);
  ring.C = of_tokens(inner + state, d.ngroups, N);
  for (int i = 0; i < heads; ++i)
    result.heads.push_back(ring_reference(d, ring, row, of, group * heads + i, ring_operands(d), near));

  const bool norm_gate = d.norm && !d.norm->gate_expr.empty();
  for (int t = 0; t < T; ++t) {
    std::vector<double> y, operands, slack, z;
    if (norm_gate) z = stored_values(args.z, layer_token_at(d, args.z, row, t) + first, static_cast<int>(rows), read);
    for (const RingHead& head : result.heads)
      for (std::int64_t p = 0; p < P; ++p) {
        const auto i = static_cast<std::size_t>(t * P + p);
        const auto passed = [&](double v) { return d.norm ? rounded(d.input_dtype, v) : v; };
        const double v = head.y_operands[i], off = head.y_slack[i];
        y.push_back(passed(head.y[i]));
        operands.push_back(passed(v));
        slack.push_back(std::max(std::abs(passed(v + off) - passed(v)), std::abs(passed(v - off) - passed(v))));
      }
    if (d.norm) {
      std::vector<double> none(y.size(), 0.0);
      apply_norm(d, args, first, z, y, none, read);
      apply_norm(d, args, first, z, operands, slack, read);
    }
    result.out.insert(result.out.end(), y.begin(), y.end());
    result.out_operands.insert(result.out_operands.end(), operands.begin(), operands.end());
    result.out_slack.insert(result.out_slack.end(), slack.begin(), slack.end());
  }
  return result;
}

}  // namespace ssmjit
