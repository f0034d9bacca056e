#include "autotune/ring_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include <fmt/format.h>

#include "autotune/host_numbers.h"

namespace ssmjit {
namespace {

constexpr double kDelta = 1e-6;  // relative error of a delta

}  // namespace

RingCase::RingCase(const Description& description, const CaseLayout& layout, std::uint64_t seed)
    : KernelCase(description, layout, seed) {
  const Description& d = description;
  add_ring_pools(host_);
  add_tokens();
  const Weights weights = add_weights({-0.6, -0.1}, {-2, 0});
  host_.A = weights.A;
  host_.D = weights.D;
  host_.dt_bias = weights.dt_bias;
  host_.pad_slot_id = pad_slot_id();
  const std::vector<std::int64_t> order = slot_order();
  std::vector<std::int64_t> slots(order.begin(), order.begin() + layout.batch);
  mark_pads(slots);
  if (layout.indexed) host_.state_batch_indices = add_indices("state_batch_indices", slots, layout.index_dtype);

  int kind = layout.batch / 2;  // so that the standard layouts have every kind
  for (std::int64_t b = 0; b < layout.batch; ++b) {
    requests_.push_back(ring_request(d, host_, b, read_host));
    if (requests_.back().live) fill_ring_slot(host_, requests_.back().slot, kind++ % kCursorKinds);
    requests_.back() = ring_request(d, host_, b, read_host);
    const RingRequest& request = requests_.back();
    expected_.emplace_back();
    if (!request.live) continue;
    fill_ring_rows(host_, request);
    if (request.tokens == 0) continue;
    for (int h = 0; h < d.nheads; ++h)
      expected_.back().push_back(ring_reference(d, host_, b, request, h, ring_operands(d), read_host));
  }
}

// x, B, C, z, dt and out: a request's tokens one after the other, between requests a gap where rows are packed; with
// varlen from 0 to all tokens a request, without gaps.
void RingCase::add_tokens() {
  const Description& d = description();
  const std::int64_t H = d.nheads, P = d.head_dim, N = d.dstate, G = d.ngroups, T = d.token_count;
  const std::int64_t batch = layout().batch, gap = layout().packed_rows && !d.is_varlen ? 1 : 0;
  std::vector<std::int64_t> first = {0};
  for (std::int64_t b = 0; b < batch; ++b) {
    std::int64_t tokens = T;
    if (d.is_varlen && b % 4 != 0)
      tokens = 1 + static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(T));
    else if (d.is_varlen && b % 8 == 4)
      tokens = 0;
    first.push_back(first.back() + tokens + gap);
  }
  if (d.is_varlen) host_.cu_seqlens = add_indices("cu_seqlens", first, DType::i32);
  const std::int64_t rows = first.back();
  // [batch, tokens, ...], [total, ...] or [1, total, ...].
  const auto tensor = [&](std::byte* data, DType dtype, std::int64_t row_stride,
                          std::initializer_list<std::int64_t> inner) {
    Tensor t;
    t.data = data;
    t.dtype = dtype;
    const auto dimension = [&](std::int64_t shape, std::int64_t stride) {
      t.shape[static_cast<std::size_t>(t.rank)] = shape;
      t.stride[static_cast<std::size_t>(t.rank++)] = stride;
    };
    if (!d.is_varlen) dimension(batch, (T + gap) * row_stride);
    if (d.is_varlen && layout().packed_rows) dimension(1, rows * row_stride);
    dimension(d.is_varlen ? rows : T, row_stride);
    std::int64_t stride = 1;
    for (std::int64_t i : inner) stride *= i;
    for (std::int64_t i : inner) {
      stride /= i;
      dimension(i, stride);
    }
    return t;
  };
  const InputRows input = add_input_rows(rows);
  const auto of_rows = [&](const Rows& r, std::int64_t count, std::int64_t width) {
    return r.first == nullptr ? Tensor{} : tensor(r.first, d.input_dtype, r.stride, {count, width});
  };
  host_.x = of_rows(input.x, H, P);
  host_.B = of_rows(input.B, G, N);
  host_.C = of_rows(input.C, G, N);
  host_.z = of_rows(input.z, H, P);
  const std::int64_t dt_stride = layout().packed_rows ? H + 1 : H;
  host_.dt =
      tensor(at(add("dt", rows * dt_stride * size_bytes(d.dt_dtype), Use::produced)), d.dt_dtype, dt_stride, {H});
  const std::int64_t out_stride = H * P + (layout().packed_rows ? 8 : 0);
  host_.out = tensor(at(add("out", rows * out_stride * size_bytes(d.input_dtype), Use::output)), d.input_dtype,
                     out_stride, {H, P});
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t row = first[static_cast<std::size_t>(b)]; row < first[static_cast<std::size_t>(b + 1)] - gap;
         ++row) {
      for (std::int64_t h = 0; h < H; ++h)
        put(host_.dt, row * dt_stride + h, exact_in_sums(layout().strong_decay ? uniform({-12, 8}) : normal()));
      const auto fill = [&](const Tensor& t, const Rows& r, std::int64_t width) {
        if (r.first == nullptr) return;
        for (std::int64_t i = 0; i < width; ++i) put(t, row * r.stride + i, normal());
      };
      fill(host_.x, input.x, H * P);
      fill(host_.B, input.B, G * N);
      fill(host_.C, input.C, G * N);
      fill(host_.z, input.z, H * P);
    }
  }
}

RingArgs RingCase::args(const std::vector<std::byte*>& base) const {
  RingArgs args = host_;
  for (Tensor* t : {&args.state, &args.state_scale, &args.x_ring, &args.B_ring, &args.dt_ring, &args.ring_start,
                    &args.ring_count, &args.x, &args.dt, &args.A, &args.B, &args.C, &args.D, &args.dt_bias, &args.z,
                    &args.out, &args.state_batch_indices, &args.cu_seqlens, &args.rand_seed})
    move(*t, base);
  return args;
}

double delta_error(double got, double want) {
  const double apart = std::abs(got - want), off = apart == 0 ? 0.0 : apart / std::abs(want);
  return std::isfinite(off) ? off : std::numeric_limits<double>::infinity();
}

std::string judge_delta(double worst) {
  if (worst <= kDelta) return {};
  return fmt::format("dt_ring: a delta is off by {:.1e} of its size; limit {:.0e}", worst, kDelta);
}

void RingCase::judge(const std::vector<std::byte*>& want_base, const std::vector<std::byte*>& got_base,
                     CaseResult& result) const {
  const Description& d = description();
  const RingArgs want = args(want_base), got = args(got_base);
  const int P = d.head_dim, N = d.dstate;
  std::uint64_t seed = 0;
  if (want.rand_seed.data != nullptr) seed = static_cast<std::uint64_t>(stored_index(want.rand_seed, 0, read_host));
  NearnessMeter recurrence(d.input_dtype, N), operands(d.input_dtype, N);
  FlushMeter flushed(d, seed);
  double worst_delta = 0;
  const auto copy_row = [&](const Tensor& to, std::int64_t to_at, const Tensor& from, std::int64_t from_at, int count) {
    const std::int64_t size = size_bytes(to.dtype);
    std::memcpy(bytes_of(to) + to_at * size, bytes_of(from) + from_at * size, static_cast<std::size_t>(count * size));
  };
  for (std::size_t b = 0; b < requests_.size(); ++b) {
    const RingRequest& request = requests_[b];
    const auto row = static_cast<std::int64_t>(b);
    for (int t = 0; t < request.tokens; ++t) {
      const std::int64_t out_at = token_offset(d, want.out, 2, row, request, t);
      if (!request.live) {
        if (d.pad_output_kind == PadOutput::zeros)
          for (std::int64_t i = 0; i < std::int64_t{d.nheads} * P; ++i) put(want.out, out_at + i, 0.0);
        continue;
      }
      for (int h = 0; h < d.nheads; ++h) {
        const RingHead& head = expected_[b][static_cast<std::size_t>(h)];
        const std::size_t first = static_cast<std::size_t>(t) * static_cast<std::size_t>(P);
        const std::int64_t at = out_at + std::int64_t{h} * P;
        const std::vector<double> y = stored_values(got.out, at, P, read_host);
        recurrence.add_row(head.y.data() + first, y);
        operands.add_row(head.y_operands.data() + first, y, nullptr, head.y_slack.data() + first);
        take(want.out, got.out, at, P);

        const int age = request.count + t;
        copy_row(want.x_ring, ring_offset(want.x_ring, request, h, age), want.x,
                 token_offset(d, want.x, 2, row, request, t) + std::int64_t{h} * P, P);
        const std::int64_t delta_at = ring_offset(want.dt_ring, request, h, age);
        const double want_delta = head.delta[static_cast<std::size_t>(t)];
        worst_delta = std::max(worst_delta, delta_error(stored_value(got.dt_ring, delta_at, read_host), want_delta));
        take(want.dt_ring, got.dt_ring, delta_at, 1);
      }
      for (int g = 0; g < d.ngroups; ++g)
        copy_row(want.B_ring, ring_offset(want.B_ring, request, g, request.count + t), want.B,
                 token_offset(d, want.B, 2, row, request, t) + std::int64_t{g} * N, N);
    }
    if (!request.live || !request.flush) continue;
    for (int h = 0; h < d.nheads; ++h) {
      flushed.add_head(expected_[b][static_cast<std::size_t>(h)], request, h, got, read_host);
      take(want.state, got.state, request.slot * got.state.stride[0] + std::int64_t{h} * P * N, std::int64_t{P} * N);
      if (d.has_state_scale())
        take(want.state_scale, got.state_scale, request.slot * got.state_scale.stride[0] + std::int64_t{h} * P, P);
    }
  }
  result.y = operands.result();
  result.y.frobenius = recurrence.result().frobenius;
  result.state = flushed.result();
  if (const std::string s = ssmjit::judge(result.y, d.input_dtype, N, "out"); !s.empty()) failed(result, s);
  if (const std::string s = flushed.failure(); !s.empty()) failed(result, s);
  if (const std::string s = judge_delta(worst_delta); !s.empty()) failed(result, s);
}

}  // namespace ssmjit
