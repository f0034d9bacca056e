#include "autotune/replay_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include <fmt/format.h>

#include "autotune/host_numbers.h"
#include "autotune/reference/stored_state.h"
#include "autotune/ring_case.h"
#include "codegen/chain_scratch.h"

namespace ssmjit {
namespace {

constexpr double kSum = 2e-6;  // relative error of a sum: of its deltas, and of the sums in fp32
constexpr int kKinds = 7;

}  // namespace

ReplayCase::ReplayCase(const Description& description, const CaseLayout& layout, std::uint64_t seed)
    : KernelCase(description, layout, seed) {
  const Description& d = description;
  add_pools();
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
    requests_.push_back(replay_request(d, host_, b, read_host));
    expected_.emplace_back();
    if (!requests_.back().rows.live) continue;
    fill_slot(requests_.back().rows.slot, kind++ % kKinds);
    requests_.back() = replay_request(d, host_, b, read_host);
    fill_rows(requests_.back());
    for (int h = 0; h < d.nheads; ++h)
      expected_.back().push_back(replay_reference(d, host_, b, requests_.back(), h, read_host));
  }
}

void ReplayCase::add_pools() {
  const Description& d = description();
  const std::int64_t H = d.nheads, P = d.head_dim, N = d.dstate, T = d.token_count;
  host_.state = add_pool("state", d.state_dtype, {H, P, N});
  host_.old_x = add_pool("old_x", d.input_dtype, {T, H, P});
  host_.old_B = add_pool("old_B", d.input_dtype, {2, T, d.ngroups, N});
  host_.old_dt = add_pool("old_dt", DType::f32, {2, H, T});
  host_.old_cumAdt = add_pool("old_cumAdt", DType::f32, {2, H, T});
  if (std::holds_alternative<Stochastic>(d.rounding_kind)) {
    // One for all; with indices one a slot.
    std::vector<std::int64_t> seeds(static_cast<std::size_t>(layout().indexed ? pool_slots() : 1));
    for (std::int64_t& s : seeds) s = static_cast<std::int64_t>(random_() | std::uint64_t{1} << 63);
    host_.rand_seed = add_indices("rand_seed", seeds, DType::i64);
  }
  const std::int64_t scratch = replay_scratch_bytes(d, layout().batch);
  host_.scratch = contiguous(at(add("scratch", scratch, Use::output)), DType::i8, {scratch});
  // Those of slots that no request uses stay what they are: nothing.
  const std::vector<std::int64_t> nothing(static_cast<std::size_t>(pool_slots()), -1);
  host_.cache_buf_idx = add_indices("cache_buf_idx", nothing, DType::i32);
  host_.prev_num_accepted_tokens = add_indices("prev_num_accepted_tokens", nothing, DType::i32);
}

void ReplayCase::fill_slot(std::int64_t slot, int kind) {
  const Description& d = description();
  const int T = d.token_count;
  const auto below = [&](int limit) { return static_cast<int>(random_() % static_cast<std::uint64_t>(limit)); };
  const int counts[kKinds] = {T, (T + 1) / 2, std::max(0, T - 1), 0, below(T + 1), T + 3, -5};
  int buffer = below(2);
  if (kind == 5) buffer = 4;
  if (kind == 6) buffer = -3;
  const auto put_cursor = [&](const Tensor& t, int value) { std::memcpy(bytes_of(t) + slot * 4, &value, 4); };
  put_cursor(host_.cache_buf_idx, buffer);
  put_cursor(host_.prev_num_accepted_tokens, counts[kind]);
  const double magnitude = layout().strong_decay ? 30.0 : 1.0;
  for (std::int64_t i = 0; i < std::int64_t{d.nheads} * d.head_dim * d.dstate; ++i)
    put(host_.state, slot * host_.state.stride[0] + i, magnitude * normal());
}

// Rows that were not accepted, and all of the other buffer, stay NaN.
void ReplayCase::fill_rows(const ReplayRequest& request) {
  const Description& d = description();
  const std::int64_t slot = request.rows.slot;
  std::vector<double> sums(static_cast<std::size_t>(d.nheads), 0.0);
  for (int t = 0; t < request.rows.count; ++t) {
    for (int h = 0; h < d.nheads; ++h) {
      for (std::int64_t p = 0; p < d.head_dim; ++p) put(host_.old_x, old_x_at(host_, slot, t, h) + p, normal());
      const std::int64_t at_delta = old_sum_at(host_.old_dt, slot, request.buffer, h, t);
      put(host_.old_dt, at_delta, std::log1p(std::exp(layout().strong_decay ? uniform({-12, 8}) : uniform({-3, 0.5}))));
      double& sum = sums[static_cast<std::size_t>(h)];
      sum += stored_value(host_.A, h, read_host) * stored_value(host_.old_dt, at_delta, read_host);
      put(host_.old_cumAdt, old_sum_at(host_.old_cumAdt, slot, request.buffer, h, t), sum);
    }
    for (int g = 0; g < d.ngroups; ++g)
      for (std::int64_t n = 0; n < d.dstate; ++n)
        put(host_.old_B, old_B_at(host_, slot, request.buffer, t, g) + n, normal());
  }
}

ReplayArgs ReplayCase::args(const std::vector<std::byte*>& base) const {
  ReplayArgs args = host_;
  for (Tensor* t : {&args.state, &args.old_x, &args.old_B, &args.old_dt, &args.old_cumAdt, &args.cache_buf_idx,
                    &args.prev_num_accepted_tokens, &args.x, &args.dt, &args.A, &args.B, &args.C, &args.D,
                    &args.dt_bias, &args.z, &args.out, &args.state_batch_indices, &args.rand_seed, &args.scratch})
    move(*t, base);
  return args;
}

std::string judge_sum(double worst) {
  if (worst <= kSum) return {};
  return fmt::format("old_cumAdt: a sum of A * delta is off by {:.1e} of its size; limit {:.0e}", worst, kSum);
}

void ReplayCase::judge(const std::vector<std::byte*>& want_base, const std::vector<std::byte*>& got_base,
                       CaseResult& result) const {
  const Description& d = description();
  const ReplayArgs want = args(want_base), got = args(got_base);
  const int P = d.head_dim, N = d.dstate;
  NearnessMeter recurrence(d.input_dtype, N), operands(d.input_dtype, N);
  FlushMeter states(d, 0);
  take(want.scratch, got.scratch, 0, want.scratch.shape[0]);  // nobody's but what two launches pass on
  double worst_delta = 0, worst_sum = 0;
  const auto copy_row = [&](const Tensor& to, std::int64_t to_at, const Tensor& from, std::int64_t from_at, int count) {
    const std::int64_t size = size_bytes(to.dtype);
    std::memcpy(bytes_of(to) + to_at * size, bytes_of(from) + from_at * size, static_cast<std::size_t>(count * size));
  };
  for (std::size_t b = 0; b < requests_.size(); ++b) {
    const ReplayRequest& request = requests_[b];
    const RingRequest& rows = request.rows;
    const auto row = static_cast<std::int64_t>(b);
    const int other = 1 - request.buffer;
    if (rows.live) states.use_seed(seed_of_slot(want.rand_seed, rows.slot, read_host));
    std::vector<double> sums(static_cast<std::size_t>(d.nheads), 0.0);
    for (int t = 0; t < d.token_count; ++t) {
      const std::int64_t out_at = token_offset(d, want.out, 2, row, rows, t);
      if (!rows.live) {
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

        copy_row(want.old_x, old_x_at(want, rows.slot, t, h), want.x,
                 token_offset(d, want.x, 2, row, rows, t) + std::int64_t{h} * P, P);
        const double delta = head.delta[static_cast<std::size_t>(t)];
        double& sum = sums[static_cast<std::size_t>(h)];
        sum += stored_value(want.A, h, read_host) * delta;
        const std::int64_t delta_at = old_sum_at(want.old_dt, rows.slot, other, h, t);
        const std::int64_t sum_at = old_sum_at(want.old_cumAdt, rows.slot, other, h, t);
        worst_delta = std::max(worst_delta, delta_error(stored_value(got.old_dt, delta_at, read_host), delta));
        worst_sum = std::max(worst_sum, delta_error(stored_value(got.old_cumAdt, sum_at, read_host), sum));
        take(want.old_dt, got.old_dt, delta_at, 1);
        take(want.old_cumAdt, got.old_cumAdt, sum_at, 1);
      }
      for (int g = 0; g < d.ngroups; ++g)
        copy_row(want.old_B, old_B_at(want, rows.slot, other, t, g), want.B,
                 token_offset(d, want.B, 2, row, rows, t) + std::int64_t{g} * N, N);
    }
    if (!rows.live) continue;
    const RingArgs as_ring = replay_as_ring(got, request);
    for (int h = 0; h < d.nheads; ++h) {
      states.add_head(expected_[b][static_cast<std::size_t>(h)], rows, h, as_ring, read_host);
      take(want.state, got.state, rows.slot * got.state.stride[0] + std::int64_t{h} * P * N, std::int64_t{P} * N);
    }
  }
  result.y = operands.result();
  result.y.frobenius = recurrence.result().frobenius;
  result.state = states.result();
  if (const std::string s = ssmjit::judge(result.y, d.input_dtype, N, "out"); !s.empty()) failed(result, s);
  if (const std::string s = states.failure(); !s.empty()) failed(result, s);
  if (const std::string s = judge_delta(worst_delta, "old_dt"); !s.empty()) failed(result, s);
  if (const std::string s = judge_sum(worst_sum); !s.empty()) failed(result, s);
}

}  // namespace ssmjit
