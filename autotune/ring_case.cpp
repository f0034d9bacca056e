#include "autotune/ring_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include <fmt/format.h>

#include "autotune/host_numbers.h"
#include "autotune/reference/stored_state.h"

namespace ssmjit {
namespace {

constexpr double kDelta = 1e-6;  // relative error of a delta

}  // namespace

RingCase::RingCase(const Description& description, const CaseLayout& layout, std::uint64_t seed)
    : KernelCase(description, layout, seed) {
  const Description& d = description;
  add_ring_pools(host_);
  add_step_tokens(host_);
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

std::string judge_delta(double worst, const char* tensor) {
  if (worst <= kDelta) return {};
  return fmt::format("{}: a delta is off by {:.1e} of its size; limit {:.0e}", tensor, worst, kDelta);
}

void RingCase::judge(const std::vector<std::byte*>& want_base, const std::vector<std::byte*>& got_base,
                     CaseResult& result) const {
  const Description& d = description();
  const RingArgs want = args(want_base), got = args(got_base);
  const int P = d.head_dim, N = d.dstate;
  NearnessMeter recurrence(d.input_dtype, N), operands(d.input_dtype, N);
  FlushMeter flushed(d, 0);
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
    flushed.use_seed(seed_of_slot(want.rand_seed, request.slot, read_host));
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
