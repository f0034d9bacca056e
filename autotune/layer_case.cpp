#include "autotune/layer_case.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "autotune/reference/stored_state.h"
#include "autotune/ring_case.h"
#include "codegen/chain_scratch.h"

namespace ssmjit {

LayerCase::LayerCase(const Description& description, const CaseLayout& layout, std::uint64_t seed)
    : KernelCase(description, layout, seed) {
  const Description& d = description;
  const std::int64_t batch = layout.batch;
  const std::int64_t H = d.nheads, P = d.head_dim, N = d.dstate;
  const bool ring = d.ring_window() != 0;

  if (ring)
    add_ring_pools(host_);
  else
    host_.state = add_pool("state", d.state_dtype, {H, P, N});
  if (d.conv) {
    const std::int64_t channels = d.conv_channels(), length = d.conv_state_len();
    host_.conv_state = d.conv->channels_last ? add_pool("conv_state", d.input_dtype, {length, channels})
                                             : add_pool("conv_state", d.input_dtype, {channels, length});
  }
  add_inputs();
  add_layer_weights();

  // Its base is as aligned as the caller's memory.
  const std::int64_t scratch = chain_scratch(d, batch).bytes;
  host_.scratch = contiguous(at(add("scratch", scratch, Use::output)), DType::i8, {scratch});

  host_.pad_slot_id = pad_slot_id();
  const std::vector<std::int64_t> order = slot_order();
  std::vector<std::int64_t> slots(order.begin(), order.begin() + batch);
  mark_pads(slots);
  if (layout.indexed) host_.state_batch_indices = add_indices("state_batch_indices", slots, layout.index_dtype);
  Description conv;
  if (d.conv) {
    conv = layer_parts(d).front();
    Conv1dArgs args = layer_conv1d_args(d, host_);
    add_conv_slots(conv, args, order);
    host_.output_state_indices = args.output_state_indices;
    host_.intermediate_states = args.intermediate_states;
    host_.intermediate_state_indices = args.intermediate_state_indices;
    host_.cache_seqlens = args.cache_seqlens;
    host_.num_accepted_tokens = args.num_accepted_tokens;
  }

  // States, rings and windows of live slots; every other byte of the pools stays NaN and must stay untouched.
  int kind = layout.batch / 2;  // so that the standard layouts have every kind of cursor
  for (std::int64_t b = 0; b < batch; ++b) {
    if (d.conv) {
      const Conv1dArgs args = layer_conv1d_args(d, host_);
      windows_.push_back(conv_request(conv, args, b, read_host));
      fill_window(conv, args, windows_.back(), 1);
      if (windows_.back().live) make_sums_sure(b, [&] { fill_window(conv, args, windows_.back(), 1); });
    }
    const int groups = d.nheads / layer_group_heads(d);
    if (ring) {
      const RingArgs args = layer_ring_args(d, host_);
      RingRequest request = ring_request(d, args, b, read_host);
      if (request.live) fill_ring_slot(args, request.slot, kind++ % kCursorKinds);
      request = ring_request(d, args, b, read_host);
      fill_ring_rows(args, request);
      requests_.push_back(request);
      expected_of_ring_.emplace_back();
      for (int group = 0; request.live && group < groups; ++group)
        expected_of_ring_.back().push_back(ring_layer_reference(d, host_, b, group, request, read_host));
      continue;
    }
    rows_.push_back(row_slots(host_, b, read_host));
    const RowSlots& row = rows_.back();
    if (row.live) {
      const double scale = layout.strong_decay ? 30.0 : 1.0;
      for (std::int64_t i = 0; i < H * P * N; ++i)
        put(host_.state, row.source * host_.state.stride[0] + i, scale * normal());
    }
    expected_.emplace_back();
    for (int group = 0; group < groups; ++group)
      expected_.back().push_back(layer_reference(d, host_, b, group, row, read_host));
  }
}

// No sum of a convolution next to halfway between two values of the input's dtype: another x for the first token of a
// channel whose sum is; where its weight is so small that this changes nothing, another window.
void LayerCase::make_sums_sure(std::int64_t row, const std::function<void()>& refill_window) {
  const Description& d = description();
  const std::int64_t channels = d.conv_channels();
  constexpr int kTries = 8;
  for (auto [sure, tries] = std::pair(false, 1); !sure; ++tries) {
    sure = true;
    if (tries % kTries == 0) refill_window();
    const LayerChannels sums = layer_channels(d, host_, row, 0, channels, read_host);
    for (std::int64_t c = 0; c < channels; ++c)
      for (int t = 0; t < d.token_count; ++t)
        if (sums.unsure[static_cast<std::size_t>(t * channels + c)]) {
          put(host_.x, layer_token_at(d, host_.x, row, t) + c, normal());
          sure = false;
          break;
        }
  }
}

// x, B and C as the description takes them, z and dt: tensors of their own, or slices of one row, z first; and out.
// Of several tokens or with a ring, rows of tokens, a gap between requests where they are packed.
void LayerCase::add_inputs() {
  const Description& d = description();
  const CaseLayout& layout = this->layout();
  const bool ring = d.ring_window() != 0, several = ring || d.token_count > 1;
  const std::int64_t batch = layout.batch, H = d.nheads, P = d.head_dim, N = d.dstate, G = d.ngroups;
  const std::int64_t T = d.token_count, of_request = T + (several && layout.packed_rows ? 1 : 0),
                     rows = batch * of_request;
  const bool has_z = d.has_z() || (d.norm && !d.norm->gate_expr.empty());
  // A row of `stride` elements for each token; count 0: one dimension of `width`.
  const auto tensor = [&](std::byte* first, DType dtype, std::int64_t stride, std::int64_t count, std::int64_t width) {
    Tensor t;
    t.data = first;
    t.dtype = dtype;
    const auto dimension = [&](std::int64_t shape, std::int64_t apart) {
      t.shape[static_cast<std::size_t>(t.rank)] = shape;
      t.stride[static_cast<std::size_t>(t.rank++)] = apart;
    };
    dimension(batch, of_request * stride);
    if (several) dimension(T, stride);
    if (count > 0) dimension(count, width);
    dimension(width, 1);
    return t;
  };
  const auto fill = [&](const Tensor& t, std::int64_t width, auto&& value) {
    for (std::int64_t b = 0; b < batch; ++b)
      for (int token = 0; token < T; ++token)
        for (std::int64_t i = 0; i < width; ++i) put(t, layer_token_at(d, t, b, token) + i, value());
  };
  struct Slice {
    const char* name;
    Tensor* tensor;
    std::int64_t count, width;
  };
  std::vector<Slice> slices;
  if (has_z) slices.push_back({"z", &host_.z, H, P});
  if (d.conv) {
    slices.push_back({"x", &host_.x, 0, d.conv_channels()});
  } else {
    slices.push_back({"x", &host_.x, H, P});
    slices.push_back({"B", &host_.B, G, N});
    slices.push_back({"C", &host_.C, G, N});
  }
  const std::int64_t bytes = size_bytes(d.input_dtype);
  std::int64_t packed = 0;
  for (const Slice& s : slices) packed += std::max<std::int64_t>(s.count, 1) * s.width;
  packed = (packed + H + 15) / 16 * 16;
  std::byte* all = layout.packed_rows ? at(add("x, B, C, z", rows * packed * bytes, Use::produced)) : nullptr;
  std::int64_t offset = 0;
  for (const Slice& s : slices) {
    const std::int64_t width = std::max<std::int64_t>(s.count, 1) * s.width;
    const std::int64_t stride = layout.packed_rows ? packed : width;
    std::byte* first = layout.packed_rows ? all + offset * bytes : at(add(s.name, rows * width * bytes, Use::produced));
    *s.tensor = tensor(first, d.input_dtype, stride, s.count, s.width);
    fill(*s.tensor, width, [&] { return normal(); });
    offset += width;
  }
  const std::int64_t dt_stride = layout.packed_rows ? H + 1 : H;
  host_.dt =
      tensor(at(add("dt", rows * dt_stride * size_bytes(d.dt_dtype), Use::produced)), d.dt_dtype, dt_stride, 0, H);
  const Range far = ring ? Range{-12, 8} : Range{-12, 24};
  fill(host_.dt, H, [&] { return exact_in_sums(layout.strong_decay ? uniform(far) : normal()); });
  const std::int64_t out_stride = H * P + (layout.packed_rows ? 8 : 0);
  host_.out = tensor(at(add("out", rows * out_stride * bytes, Use::output)), d.input_dtype, out_stride, H, P);
}

void LayerCase::add_layer_weights() {
  const Description& d = description();
  const Weights weights = d.ring_window() != 0 ? add_weights({-0.6, -0.1}, {-2, 0}) : add_weights({-2, -1}, {-4, -3});
  host_.A = weights.A;
  host_.D = weights.D;
  host_.dt_bias = weights.dt_bias;
  const auto made = [&](const char* name, std::initializer_list<std::int64_t> shape, double mean, double deviation) {
    std::int64_t count = 1;
    for (std::int64_t n : shape) count *= n;
    const Tensor t = contiguous(at(add(name, count * size_bytes(d.input_dtype), Use::constant)), d.input_dtype, shape);
    for (std::int64_t i = 0; i < count; ++i) put(t, i, mean + deviation * normal());
    return t;
  };
  if (d.conv) {
    host_.conv_weight = made("conv_weight", {d.conv_channels(), d.conv->width}, 0, 0.5);
    if (d.conv->has_bias) host_.conv_bias = made("conv_bias", {d.conv_channels()}, 0, 0.3);
  }
  if (d.norm) {
    host_.norm_weight = made("norm_weight", {d.norm_channels()}, 1, 0.3);
    if (d.norm->has_bias) host_.norm_bias = made("norm_bias", {d.norm_channels()}, 0, 0.3);
  }
}

LayerArgs LayerCase::args(const std::vector<std::byte*>& base) const {
  LayerArgs args = host_;
  for (Tensor* t : {&args.state,
                    &args.conv_state,
                    &args.x,
                    &args.B,
                    &args.C,
                    &args.dt,
                    &args.z,
                    &args.conv_weight,
                    &args.conv_bias,
                    &args.A,
                    &args.D,
                    &args.dt_bias,
                    &args.norm_weight,
                    &args.norm_bias,
                    &args.out,
                    &args.state_batch_indices,
                    &args.scratch,
                    &args.state_scale,
                    &args.x_ring,
                    &args.B_ring,
                    &args.dt_ring,
                    &args.ring_start,
                    &args.ring_count,
                    &args.rand_seed,
                    &args.output_state_indices,
                    &args.intermediate_states,
                    &args.intermediate_state_indices,
                    &args.cache_seqlens,
                    &args.num_accepted_tokens})
    move(*t, base);
  return args;
}

void LayerCase::judge(const std::vector<std::byte*>& want_base, const std::vector<std::byte*>& got_base,
                      CaseResult& result) const {
  const Description& d = description();
  const LayerArgs want = args(want_base), got = args(got_base);
  take(want.scratch, got.scratch, 0, want.scratch.shape[0]);  // nobody's but a chain's own
  if (d.ring_window() != 0)
    judge_ring(want, got, result);
  else
    judge_in_place(want, got, result);
  if (!d.conv) return;
  const Description conv = layer_parts(d).front();
  Windows windows;
  for (std::size_t b = 0; b < windows_.size(); ++b)
    judge_windows(conv, layer_conv1d_args(d, host_), layer_conv1d_args(d, want), layer_conv1d_args(d, got),
                  static_cast<std::int64_t>(b), windows_[b], windows);
  KernelCase::judge(windows, result);
}

void LayerCase::judge_in_place(const LayerArgs& want, const LayerArgs& got, CaseResult& result) const {
  const Description& d = description();
  NearnessMeter y_meter(d.input_dtype, d.dstate), state_meter(d.state_dtype, d.dstate);
  const int heads = layer_group_heads(d);
  const std::int64_t P = d.head_dim, N = d.dstate;
  for (std::size_t b = 0; b < rows_.size(); ++b) {
    const RowSlots& row = rows_[b];
    const auto bb = static_cast<std::int64_t>(b);
    for (std::size_t g = 0; g < expected_[b].size(); ++g) {
      const LayerGroup& group = expected_[b][g];
      for (int i = 0; i < heads; ++i) {
        const std::int64_t head = static_cast<std::int64_t>(g) * heads + i;
        for (int t = 0; t < d.token_count; ++t) {
          const std::int64_t out_at = layer_token_at(d, got.out, bb, t) + head * P, first = (t * heads + i) * P;
          if (row.live || d.pad_output_kind == PadOutput::as_if_zero_state) {
            y_meter.add_row(group.out.data() + first, stored_values(got.out, out_at, d.head_dim, read_host),
                            group.terms.data() + first);
            take(want.out, got.out, out_at, P);
          } else if (d.pad_output_kind == PadOutput::zeros) {
            want_zeros(want, got, out_at, P);
          }
        }
        if (!row.store) continue;
        const std::vector<double>& state = group.heads[static_cast<std::size_t>(i)].state;
        const std::vector<double>& slack = group.heads[static_cast<std::size_t>(i)].state_slack;
        const std::int64_t state_at = row.target * got.state.stride[0] + head * P * N;
        for (std::int64_t p = 0; p < P; ++p)
          state_meter.add_row(state.data() + p * N, stored_values(got.state, state_at + p * N, d.dstate, read_host),
                              nullptr, slack.data() + p * N);
        take(want.state, got.state, state_at, P * N);
      }
    }
  }
  result.y = y_meter.result();
  result.state = state_meter.result();
  if (const std::string s = ssmjit::judge(result.y, d.input_dtype, d.dstate, "out"); !s.empty()) failed(result, s);
  if (const std::string s = ssmjit::judge(result.state, d.state_dtype, d.dstate, "state"); !s.empty())
    failed(result, s);
}

// Either zero: a chain's norm makes one of the update's zeros and any gate.
void LayerCase::want_zeros(const LayerArgs& want, const LayerArgs& got, std::int64_t at, std::int64_t count) {
  const std::vector<double> is = stored_values(got.out, at, static_cast<int>(count), read_host);
  for (std::int64_t i = 0; i < count; ++i) {
    const double v = is[static_cast<std::size_t>(i)];
    put(want.out, at + i, v == 0 ? v : 0);
  }
}

void LayerCase::judge_ring(const LayerArgs& want, const LayerArgs& got, CaseResult& result) const {
  const Description& d = description();
  const int heads = layer_group_heads(d), per_group = d.heads_per_group();
  const std::int64_t P = d.head_dim, N = d.dstate;
  const RingArgs ring = layer_ring_args(d, got);
  NearnessMeter recurrence(d.input_dtype, d.dstate), operands(d.input_dtype, d.dstate);
  FlushMeter flushed(d, 0);
  double worst_delta = 0;
  for (std::size_t b = 0; b < requests_.size(); ++b) {
    const RingRequest& request = requests_[b];
    for (int t = 0; t < d.token_count; ++t) {
      const std::int64_t out_at = layer_token_at(d, got.out, static_cast<std::int64_t>(b), t);
      if (!request.live && d.pad_output_kind == PadOutput::zeros) want_zeros(want, got, out_at, d.nheads * P);
      for (std::size_t g = 0; g < expected_of_ring_[b].size(); ++g) {
        const RingLayerGroup& group = expected_of_ring_[b][g];
        for (int i = 0; i < heads; ++i) {
          const int head = static_cast<int>(g) * heads + i;
          const auto first = static_cast<std::size_t>((t * heads + i) * P);
          const std::int64_t at = out_at + head * P;
          const std::vector<double> y = stored_values(got.out, at, d.head_dim, read_host);
          recurrence.add_row(group.out.data() + first, y);
          operands.add_row(group.out_operands.data() + first, y, nullptr, group.out_slack.data() + first);
          take(want.out, got.out, at, P);

          // The rows that the rings are given: x and B as the convolution leaves them.
          const int age = request.count + t;
          for (std::int64_t p = 0; p < P; ++p)
            put(want.x_ring, ring_offset(want.x_ring, request, head, age) + p,
                group.x.value[first + static_cast<std::size_t>(p)]);
          const std::int64_t delta_at = ring_offset(want.dt_ring, request, head, age);
          const double want_delta = group.heads[static_cast<std::size_t>(i)].delta[static_cast<std::size_t>(t)];
          worst_delta = std::max(worst_delta, delta_error(stored_value(got.dt_ring, delta_at, read_host), want_delta));
          take(want.dt_ring, got.dt_ring, delta_at, 1);
          if (head % per_group != 0 && i != 0) continue;
          const int of_norm = static_cast<int>(g) * heads / per_group;  // the first group of B of this one of the norm
          const std::int64_t columns = static_cast<std::int64_t>(group.B.value.size()) / d.token_count;
          for (std::int64_t n = 0; n < N; ++n)
            put(want.B_ring, ring_offset(want.B_ring, request, head / per_group, age) + n,
                group.B.value[static_cast<std::size_t>(t * columns + (head / per_group - of_norm) * N + n)]);
        }
      }
    }
    if (!request.flush) continue;
    if (request.live) flushed.use_seed(seed_of_slot(want.rand_seed, request.slot, read_host));
    for (int head = 0; request.live && head < d.nheads; ++head) {
      const RingLayerGroup& group = expected_of_ring_[b][static_cast<std::size_t>(head / heads)];
      flushed.add_head(group.heads[static_cast<std::size_t>(head % heads)], request, head, ring, read_host);
      take(want.state, got.state, request.slot * got.state.stride[0] + head * P * N, P * N);
      if (d.has_state_scale())
        take(want.state_scale, got.state_scale, request.slot * got.state_scale.stride[0] + head * P, P);
    }
  }
  result.y = operands.result();
  result.y.frobenius = recurrence.result().frobenius;
  result.state = flushed.result();
  if (const std::string s = ssmjit::judge(result.y, d.input_dtype, d.dstate, "out"); !s.empty()) failed(result, s);
  if (const std::string s = flushed.failure(); !s.empty()) failed(result, s);
  if (const std::string s = judge_delta(worst_delta); !s.empty()) failed(result, s);
}

}  // namespace ssmjit
