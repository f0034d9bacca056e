#include "autotune/reference/layer_reference.h"

#include <algorithm>
#include <cmath>

#include "autotune/host_numbers.h"

namespace ssmjit {
namespace {

// Of fp32 sums of a few products, relative to the products: more than their roundings and an activation's.
constexpr double kSumError = 6e-7;

double applied(const Expr& expr, Leaf leaf, double v) {
  LeafValues values{};
  values[static_cast<std::size_t>(leaf)] = v;
  return expr.evaluate(values);
}

// Whether a value that is off by up to `error` may be rounded to another one.
bool may_round_elsewhere(DType dtype, double v, double error) {
  return rounded(dtype, v - error) != rounded(dtype, v + error);
}

}  // namespace

RowSlots row_slots(const LayerArgs& args, std::int64_t row, const Reader& read) {
  RowSlots r;
  r.source = args.state_batch_indices.data != nullptr ? stored_index(args.state_batch_indices, row, read) : row;
  r.target = r.source;
  r.live = r.store = r.source >= 0 && r.source < args.state.shape[0] && r.source != args.pad_slot_id;
  return r;
}

std::int64_t window_offset(const Description& d, std::int64_t channel, int k) {
  return d.conv->channels_last ? k * d.conv_channels() + channel : channel * d.conv_state_len() + k;
}

LayerChannels layer_channels(const Description& d, const LayerArgs& args, std::int64_t row, const RowSlots& slots,
                             std::int64_t first, std::int64_t count, const Reader& read) {
  const std::int64_t inner = std::int64_t{d.nheads} * d.head_dim, state = std::int64_t{d.ngroups} * d.dstate;
  LayerChannels out;
  out.unsure.assign(static_cast<std::size_t>(count), false);
  if (!d.conv) {
    const Tensor& from = first < inner ? args.x : first < inner + state ? args.B : args.C;
    const std::int64_t at = first < inner ? first : first < inner + state ? first - inner : first - inner - state;
    out.value = stored_values(from, row * from.stride[0] + at, static_cast<int>(count), read);
    return out;
  }
  const int width = d.conv->width, length = d.conv_state_len(), n = static_cast<int>(count);
  const std::vector<double> x = stored_values(args.x, row * args.x.stride[0] + first, n, read);
  const std::vector<double> weight = stored_values(args.conv_weight, first * width, n * width, read);
  std::vector<double> bias;
  if (d.conv->has_bias) bias = stored_values(args.conv_bias, first, n, read);
  std::vector<std::vector<double>> window(static_cast<std::size_t>(length));  // by age
  for (int k = 0; slots.live && k < length; ++k) {
    const std::int64_t slot = slots.source * args.conv_state.stride[0];
    if (d.conv->channels_last) {
      window[static_cast<std::size_t>(k)] = stored_values(args.conv_state, slot + window_offset(d, first, k), n, read);
      continue;
    }
    if (k > 0) continue;
    const std::vector<double> all = stored_values(args.conv_state, slot + window_offset(d, first, 0), n * length, read);
    for (std::size_t i = 0; i < all.size(); ++i) window[i % static_cast<std::size_t>(length)].push_back(all[i]);
  }
  for (std::int64_t c = first; c < first + count; ++c) {
    double sum = 0, terms = 0;
    const auto add = [&](double v) {
      sum += v;
      terms += std::abs(v);
    };
    const auto i = static_cast<std::size_t>(c - first);
    if (d.conv->has_bias) add(bias[i]);
    for (int k = 0; k < width; ++k) {
      double v = 0;
      if (k + 1 == width)
        v = x[i];
      else if (slots.live)
        v = window[static_cast<std::size_t>(length - width + 1 + k)][i];
      add(weight[i * static_cast<std::size_t>(width) + static_cast<std::size_t>(k)] * v);
    }
    if (!d.conv->activation_expr.empty()) sum = applied(d.conv->activation_expr, Leaf::x, sum);
    out.value.push_back(rounded(d.input_dtype, sum));
    out.unsure[i] = d.input_dtype != DType::f32 && may_round_elsewhere(d.input_dtype, sum, kSumError * terms);
  }
  return out;
}

int layer_group_heads(const Description& d) { return d.norm ? d.norm_group_size() / d.head_dim : d.heads_per_group(); }

LayerGroup layer_reference(const Description& d, const LayerArgs& args, std::int64_t row, int group,
                           const RowSlots& slots, const Reader& read) {
  const std::int64_t P = d.head_dim, N = d.dstate;
  const int heads = layer_group_heads(d);
  const std::int64_t inner = std::int64_t{d.nheads} * P;
  const std::int64_t first = std::int64_t{group} * heads * P, rows = heads * P;
  LayerGroup result;
  const auto channels = [&](std::int64_t at, std::int64_t count) {
    return layer_channels(d, args, row, slots, at, count, read);
  };
  const bool has_z = d.has_z() || (d.norm && !d.norm->gate_expr.empty());
  std::vector<double> z;
  if (has_z) z = stored_values(args.z, row * args.z.stride[0] + first, static_cast<int>(rows), read);

  const LayerChannels of_x = channels(first, rows);
  const std::vector<double>& x = of_x.value;
  std::vector<double> B, C;
  bool unsure_B = false;
  for (int i = 0; i < heads; ++i) {
    const int head = group * heads + i;
    if (i % d.heads_per_group() == 0) {
      const std::int64_t at = std::int64_t{head / d.heads_per_group()} * N;
      const LayerChannels of_B = channels(inner + at, N);
      B = of_B.value;
      unsure_B = std::find(of_B.unsure.begin(), of_B.unsure.end(), true) != of_B.unsure.end();
      C = channels(inner + d.ngroups * N + at, N).value;
    }
    LeafValues leaf{};
    const auto set = [&](Leaf l, double v) { leaf[static_cast<std::size_t>(l)] = v; };
    set(Leaf::dt, stored_value(args.dt, row * args.dt.stride[0] + head, read));
    set(Leaf::A, stored_value(args.A, head, read));
    if (d.has_dt_bias()) set(Leaf::dt_bias, stored_value(args.dt_bias, head, read));
    if (d.has_D()) set(Leaf::D, stored_value(args.D, head, read));
    const double delta = d.delta_expr.evaluate(leaf);
    set(Leaf::delta, delta);
    const double decay = d.decay_expr.evaluate(leaf);

    HeadResult h;
    h.state.assign(static_cast<std::size_t>(P * N), 0.0);
    if (slots.live)
      h.state =
          stored_values(args.state, slots.source * args.state.stride[0] + head * P * N, static_cast<int>(P * N), read);
    for (std::int64_t p = 0; p < P; ++p) {
      const double x_p = x[static_cast<std::size_t>(i * P + p)];
      result.unsure.push_back(unsure_B || of_x.unsure[static_cast<std::size_t>(i * P + p)]);
      double y = 0, terms = 0;
      for (std::int64_t n = 0; n < N; ++n) {
        double& s = h.state[static_cast<std::size_t>(p * N + n)];
        s = s * decay + delta * x_p * B[static_cast<std::size_t>(n)];
        const double term = s * C[static_cast<std::size_t>(n)];
        y += term;
        terms += term * term;
      }
      terms = std::sqrt(terms);
      set(Leaf::x, x_p);
      if (!d.skip_expr.empty()) y += d.skip_expr.evaluate(leaf);
      if (d.has_z()) {
        const double gate = applied(d.gate_expr, Leaf::z, z[static_cast<std::size_t>(i * P + p)]);
        y *= gate;
        terms *= std::abs(gate);
      }
      h.y.push_back(d.norm ? rounded(d.input_dtype, y) : y);
      h.y_terms.push_back(terms);
    }
    result.heads.push_back(std::move(h));
  }

  // The norm.
  double squares = 0;
  for (int i = 0; i < heads; ++i)
    for (std::int64_t p = 0; p < P; ++p) {
      const HeadResult& h = result.heads[static_cast<std::size_t>(i)];
      double u = h.y[static_cast<std::size_t>(p)], terms = h.y_terms[static_cast<std::size_t>(p)];
      if (d.norm && !d.norm->gate_expr.empty() && !d.norm->before_gate) {
        const double gate = applied(d.norm->gate_expr, Leaf::z, z[static_cast<std::size_t>(i * P + p)]);
        u *= gate;
        terms *= std::abs(gate);
      }
      squares += u * u;
      result.out.push_back(u);
      result.terms.push_back(terms);
    }
  if (!d.norm) return result;
  const double scale = 1.0 / std::sqrt(squares / static_cast<double>(rows) + d.norm->eps);
  for (std::int64_t i = 0; i < rows; ++i) {
    double& u = result.out[static_cast<std::size_t>(i)];
    double& terms = result.terms[static_cast<std::size_t>(i)];
    const double weight = stored_value(args.norm_weight, first + i, read);
    u *= scale * weight;
    terms *= std::abs(scale * weight);
    if (d.norm->has_bias) u += stored_value(args.norm_bias, first + i, read);
    if (!d.norm->gate_expr.empty() && d.norm->before_gate) {
      const double gate = applied(d.norm->gate_expr, Leaf::z, z[static_cast<std::size_t>(i)]);
      u *= gate;
      terms *= std::abs(gate);
    }
  }
  return result;
}

}  // namespace ssmjit
