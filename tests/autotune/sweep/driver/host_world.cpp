#include "tests/autotune/sweep/driver/host_world.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <variant>

#include "autotune/host_numbers.h"
#include "autotune/reference/conv1d_reference.h"
#include "autotune/reference/norm_reference.h"
#include "autotune/reference/replay_reference.h"
#include "autotune/reference/ring_reference.h"
#include "autotune/reference/update_reference.h"
#include "autotune/tokens_case.h"
#include "codegen/update_form.h"
#include "jit/kernel_args.h"

namespace ssmjit {

World* world = nullptr;

namespace {

// The parameter structs of templates/bench.cuh.
struct PassArgs {
  std::byte* data;
  std::byte* elsewhere;
  std::byte* rows;
  std::uint64_t read, written_back, written_new, appended;
  std::uint32_t key;
  int dependent;
};
struct ProduceArgs {
  const void* source;
  void* target;
  std::uint64_t vectors;
};
struct FillArgs {
  std::byte* data;
  std::uint64_t count, seed;
  float mean, deviation;
  int dtype;
};
struct HashArgs {
  const std::uint32_t* data;
  std::uint64_t words;
  std::uint64_t* result;
};

RingArgs of_device(const Description& d, const device_args::RingArgs& a, std::int64_t batch) {
  const std::int64_t S = a.slots, H = d.nheads, P = d.head_dim, N = d.dstate, G = d.ngroups, L = d.ring_length();
  RingArgs r;
  r.state = strided(a.state, d.state_dtype, {S, H, P, N}, {a.state_stride, P * N, N, 1});
  r.state_scale = strided(a.state_scale, DType::f32, {S, H, P}, {a.state_scale_stride, P, 1});
  r.x_ring = strided(a.x_ring, d.input_dtype, {S, H, L, P}, {a.x_ring_stride, L * P, P, 1});
  r.B_ring = strided(a.B_ring, d.input_dtype, {S, G, L, N}, {a.B_ring_stride, L * N, N, 1});
  r.dt_ring = strided(a.dt_ring, DType::f32, {S, H, L}, {a.dt_ring_stride, L, 1});
  r.ring_start = contiguous(a.ring_start, DType::i32, {S});
  r.ring_count = contiguous(a.ring_count, DType::i32, {S});
  r.cu_seqlens = contiguous(a.cu_seqlens, DType::i32, {batch + 1});
  const std::int64_t T = d.is_varlen ? a.total_tokens : d.token_count;  // of all requests, or of each
  const auto rows = [&](const void* data, int stride, int token_stride, std::int64_t inner, std::int64_t width) {
    return strided(data, d.input_dtype, {batch, T, inner, width}, {stride, token_stride, width, 1});
  };
  r.x = rows(a.x, a.x_stride, a.x_token_stride, H, P);
  r.z = rows(a.z, a.z_stride, a.z_token_stride, H, P);
  r.B = rows(a.B, a.B_stride, a.B_token_stride, G, N);
  r.C = rows(a.C, a.C_stride, a.C_token_stride, G, N);
  r.out = rows(a.out, a.out_stride, a.out_token_stride, H, P);
  r.dt = strided(a.dt, d.dt_dtype, {batch, T, H}, {a.dt_stride, a.dt_token_stride, 1});
  r.A = contiguous(a.A, DType::f32, {H});
  r.D = contiguous(a.D, d.weight_dtype, {H});
  r.dt_bias = contiguous(a.dt_bias, d.weight_dtype, {H});
  const bool wide = a.wide_indices != 0;
  if (a.indexed != 0)
    r.state_batch_indices =
        strided(a.state_batch_indices, wide ? DType::i64 : DType::i32, {batch}, {a.index_stride / (wide ? 2 : 1)});
  r.rand_seed = contiguous(a.rand_seed, DType::i64, {a.rand_seed_stride == 0 ? 1 : S});
  r.pad_slot_id = a.pad_slot_id;
  return r;
}

// Share of the requests that flush.
double ring_step(const Description& d, const RingArgs& a, std::int64_t batch) {
  const int P = d.head_dim, N = d.dstate;
  const auto write = [&](const Tensor& t, std::int64_t at, double v) { encode(t.dtype, bytes_of(t), at, v); };
  const auto copy = [&](const Tensor& to, std::int64_t to_at, const Tensor& from, std::int64_t from_at, int count) {
    const std::int64_t size = size_bytes(to.dtype);
    std::memcpy(bytes_of(to) + to_at * size, bytes_of(from) + from_at * size, static_cast<std::size_t>(count * size));
  };
  double flushes = 0;
  for (std::int64_t b = 0; b < batch; ++b) {
    const RingRequest of = ring_request(d, a, b, read_host);
    const auto row = [&](const Tensor& t, int token) { return token_offset(d, t, 2, b, of, token); };
    if (!of.live) {
      for (int t = 0; t < of.tokens; ++t)
        for (int i = 0; i < d.nheads * P; ++i) write(a.out, row(a.out, t) + i, 0);
      continue;
    }
    flushes += of.flush ? 1 : 0;
    for (int h = 0; h < d.nheads; ++h) {
      const RingHead head = ring_reference(d, a, b, of, h, ring_operands(d), read_host);
      for (int t = 0; t < of.tokens; ++t) {
        for (int p = 0; p < P; ++p)
          write(a.out, row(a.out, t) + h * P + p, head.y_operands[static_cast<std::size_t>(t * P + p)]);
        copy(a.x_ring, ring_offset(a.x_ring, of, h, of.count + t), a.x, row(a.x, t) + h * P, P);
        write(a.dt_ring, ring_offset(a.dt_ring, of, h, of.count + t), head.delta[static_cast<std::size_t>(t)]);
      }
      for (int p = 0; of.flush && p < P; ++p) {
        const double scale = head.scale.empty() ? 1 : head.scale[static_cast<std::size_t>(p)];
        if (!head.scale.empty()) write(a.state_scale, of.slot * a.state_scale.stride[0] + h * P + p, scale);
        for (int n = 0; n < N; ++n) {
          double v = head.state[static_cast<std::size_t>(p * N + n)] / scale;
          if (std::holds_alternative<Stochastic>(d.rounding_kind))
            v = stored_stochastically(d, v, seed_of_slot(a.rand_seed, of.slot, read_host), of.slot, h, p, n);
          write(a.state, of.slot * a.state.stride[0] + (std::int64_t{h} * P + p) * N + n, v);
        }
      }
    }
    for (int g = 0; g < d.ngroups; ++g)
      for (int t = 0; t < of.tokens; ++t)
        copy(a.B_ring, ring_offset(a.B_ring, of, g, of.count + t), a.B, row(a.B, t) + g * N, N);
  }
  return flushes / static_cast<double>(batch);
}

// One head's new state to where it lies.
void write_state(const Description& d, const Tensor& state, std::uint64_t seed, std::int64_t slot, int h,
                 const std::vector<double>& values) {
  const int P = d.head_dim, N = d.dstate;
  for (int p = 0; p < P; ++p)
    for (int n = 0; n < N; ++n) {
      double v = values[static_cast<std::size_t>(p * N + n)];
      if (std::holds_alternative<Stochastic>(d.rounding_kind)) v = stored_stochastically(d, v, seed, slot, h, p, n);
      encode(d.state_dtype, bytes_of(state), slot * state.stride[0] + (std::int64_t{h} * P + p) * N + n, v);
    }
}

void replay_step(const Description& d, const device_args::RingArgs& a, std::int64_t batch) {
  const std::int64_t S = a.slots, H = d.nheads, P = d.head_dim, N = d.dstate, G = d.ngroups, T = d.token_count;
  const RingArgs common = of_device(d, a, batch);
  ReplayArgs r;
  r.state = common.state;
  r.old_x = strided(a.x_ring, d.input_dtype, {S, T, H, P}, {a.x_ring_stride, H * P, P, 1});
  r.old_B = strided(a.B_ring, d.input_dtype, {S, 2, T, G, N}, {a.B_ring_stride, T * G * N, G * N, N, 1});
  r.old_dt = strided(a.dt_ring, DType::f32, {S, 2, H, T}, {a.dt_ring_stride, H * T, T, 1});
  r.old_cumAdt = strided(a.sum_ring, DType::f32, {S, 2, H, T}, {a.sum_ring_stride, H * T, T, 1});
  r.cache_buf_idx = common.ring_start;
  r.prev_num_accepted_tokens = common.ring_count;
  r.x = common.x;
  r.z = common.z;
  r.B = common.B;
  r.C = common.C;
  r.dt = common.dt;
  r.A = common.A;
  r.D = common.D;
  r.dt_bias = common.dt_bias;
  r.out = common.out;
  r.state_batch_indices = common.state_batch_indices;
  r.pad_slot_id = common.pad_slot_id;
  for (std::int64_t b = 0; b < batch; ++b) {
    const ReplayRequest of = replay_request(d, r, b, read_host);
    const std::int64_t slot = of.rows.slot;
    const int other = 1 - of.buffer;
    const auto row = [&](const Tensor& t, int token) { return token_offset(d, t, 2, b, of.rows, token); };
    const auto copy = [&](const Tensor& to, std::int64_t to_at, const Tensor& from, std::int64_t from_at,
                          std::int64_t count) {
      const std::int64_t size = size_bytes(to.dtype);
      std::memcpy(bytes_of(to) + to_at * size, bytes_of(from) + from_at * size, static_cast<std::size_t>(count * size));
    };
    for (int h = 0; h < H; ++h) {
      const RingHead head = of.rows.live ? replay_reference(d, r, b, of, h, read_host) : RingHead{};
      double sum = 0;
      for (int t = 0; t < T; ++t) {
        for (int p = 0; p < P; ++p)
          encode(d.input_dtype, bytes_of(r.out), row(r.out, t) + h * P + p,
                 of.rows.live ? head.y_operands[static_cast<std::size_t>(t * P + p)] : 0.0);
        if (!of.rows.live) continue;
        copy(r.old_x, old_x_at(r, slot, t, h), r.x, row(r.x, t) + h * P, P);
        const double delta = head.delta[static_cast<std::size_t>(t)];
        sum += stored_value(r.A, h, read_host) * delta;
        encode(DType::f32, bytes_of(r.old_dt), old_sum_at(r.old_dt, slot, other, h, t), delta);
        encode(DType::f32, bytes_of(r.old_cumAdt), old_sum_at(r.old_cumAdt, slot, other, h, t), sum);
      }
      if (!of.rows.live) continue;
      const std::uint64_t seed =
          a.rand_seed == nullptr ? 0 : static_cast<std::uint64_t>(a.rand_seed[slot * a.rand_seed_stride]);
      write_state(d, r.state, seed, slot, h, head.state);
    }
    for (int g = 0; of.rows.live && g < G; ++g)
      for (int t = 0; t < T; ++t) copy(r.old_B, old_B_at(r, slot, other, t, g), r.B, row(r.B, t) + g * N, N);
  }
}

// `rounding`: of an update whose state is stored by chance or with factors; else null.
void update_step(const Description& d, const device_args::UpdateArgs& a, const device_args::UpdateRoundedArgs* rounding,
                 std::int64_t batch) {
  const std::int64_t S = a.slots, H = d.nheads, P = d.head_dim, N = d.dstate, G = d.ngroups;
  UpdateArgs r;
  r.state = strided(a.state, d.state_dtype, {S, H, P, N}, {a.state_stride, P * N, N, 1});
  r.x = strided(a.x, d.input_dtype, {batch, H, P}, {a.x_stride, P, 1});
  r.dt = strided(a.dt, d.dt_dtype, {batch, H}, {a.dt_stride, 1});
  r.B = strided(a.B, d.input_dtype, {batch, G, N}, {a.B_stride, N, 1});
  r.C = strided(a.C, d.input_dtype, {batch, G, N}, {a.C_stride, N, 1});
  r.A = contiguous(a.A, DType::f32, {H});
  r.D = contiguous(a.D, d.weight_dtype, {H});
  r.dt_bias = contiguous(a.dt_bias, d.weight_dtype, {H});
  const DType index = a.wide_indices != 0 ? DType::i64 : DType::i32;
  r.state_batch_indices = strided(a.state_batch_indices, index, {batch}, {a.index_stride});
  if (a.dst_state_batch_indices != nullptr)
    r.dst_state_batch_indices = strided(a.dst_state_batch_indices, index, {batch}, {a.dst_index_stride});
  r.pad_slot_id = a.pad_slot_id;
  if (rounding != nullptr) {
    r.state_scale = strided(rounding->state_scale, DType::f32, {S, H, P}, {rounding->state_scale_stride, P, 1});
    if (rounding->rand_seed != nullptr)
      r.rand_seed = contiguous(rounding->rand_seed, DType::i64, {rounding->seed_stride == 0 ? 1 : S});
  }
  for (std::int64_t b = 0; b < batch; ++b) {
    const RowSlots slots = row_slots(d, r, b, read_host);
    for (int h = 0; h < d.nheads; ++h) {
      const HeadResult head = slots.live ? update_reference(d, r, b, h, slots, read_host) : HeadResult{};
      for (int p = 0; p < d.head_dim; ++p)
        encode(d.input_dtype, static_cast<std::byte*>(a.out), b * a.out_stride + h * P + p,
               slots.live ? head.y[static_cast<std::size_t>(p)] : 0.0);
      for (std::int64_t p = 0; slots.store && p < P; ++p) {
        const double scale = head.scale.empty() ? 1.0 : head.scale[static_cast<std::size_t>(p)];
        if (!head.scale.empty())
          encode(DType::f32, bytes_of(r.state_scale), slots.target * r.state_scale.stride[0] + h * P + p, scale);
        for (std::int64_t n = 0; n < N; ++n) {
          double v = head.state[static_cast<std::size_t>(p * N + n)] / scale;
          if (r.rand_seed.data != nullptr)
            v = stored_stochastically(d, v, seed_of_slot(r.rand_seed, slots.target, read_host), slots.target, h,
                                      static_cast<int>(p), static_cast<int>(n));
          encode(d.state_dtype, bytes_of(r.state), slots.target * a.state_stride + (h * P + p) * N + n, v);
        }
      }
    }
  }
}

void tokens_step(const Description& d, const device_args::UpdateTokensArgs& a, std::int64_t batch) {
  const std::int64_t S = a.slots, H = d.nheads, P = d.head_dim, N = d.dstate, G = d.ngroups, T = d.token_count;
  const DType index = a.wide_indices != 0 ? DType::i64 : DType::i32;
  const auto indices = [&](const void* data, std::int64_t columns, std::int64_t stride, std::int64_t column) {
    return data == nullptr ? Tensor{} : strided(data, index, {batch, columns}, {stride, column});
  };
  const auto tokens = [&](const void* data, DType dtype, std::int64_t stride, std::int64_t token, std::int64_t outer,
                          std::int64_t inner) {
    if (data == nullptr) return Tensor{};
    return d.is_varlen ? strided(data, dtype, {a.total, outer, inner}, {token, inner, 1})
           : T == 1    ? strided(data, dtype, {batch, outer, inner}, {stride, inner, 1})
                       : strided(data, dtype, {batch, T, outer, inner}, {stride, token, inner, 1});
  };
  UpdateArgs r;
  r.state = strided(a.state, d.state_dtype, {S, H, P, N}, {a.state_stride, P * N, N, 1});
  r.state_scale = strided(a.state_scale, DType::f32, {S, H, P}, {a.state_scale_stride, P, 1});
  r.x = tokens(a.x, d.input_dtype, a.x_stride, a.x_token_stride, H, P);
  r.z = tokens(a.z, d.input_dtype, a.z_stride, a.z_token_stride, H, P);
  r.B = tokens(a.B, d.input_dtype, a.B_stride, a.B_token_stride, G, N);
  r.C = tokens(a.C, d.input_dtype, a.C_stride, a.C_token_stride, G, N);
  r.out = tokens(a.out, d.input_dtype, a.out_stride, a.out_token_stride, H, P);
  r.dt = d.is_varlen ? strided(a.dt, d.dt_dtype, {a.total, H}, {a.dt_token_stride, 1})
         : T == 1    ? strided(a.dt, d.dt_dtype, {batch, H}, {a.dt_stride, 1})
                     : strided(a.dt, d.dt_dtype, {batch, T, H}, {a.dt_stride, a.dt_token_stride, 1});
  r.A = contiguous(a.A, DType::f32, {H});
  r.D = contiguous(a.D, d.weight_dtype, {H});
  r.dt_bias = contiguous(a.dt_bias, d.weight_dtype, {H});
  r.state_batch_indices = indices(a.state_batch_indices, a.index_columns, a.index_stride, a.index_column_stride);
  r.dst_state_batch_indices = indices(a.dst_state_batch_indices, std::holds_alternative<Slots>(d.store_kind) ? T : 1,
                                      a.dst_index_stride, a.dst_index_token_stride);
  r.num_accepted_tokens = indices(a.num_accepted_tokens, 1, a.accepted_stride, 1);
  r.intermediate_states =
      contiguous(a.intermediate_states, d.state_dtype, {a.snapshot_slots, a.snapshot_steps, H, P, N});
  r.intermediate_state_scales =
      contiguous(a.intermediate_state_scales, DType::f32, {a.snapshot_slots, a.snapshot_steps, H, P});
  r.intermediate_state_indices = indices(a.intermediate_state_indices, 1, a.snapshot_index_stride, 1);
  r.retrieve_parent_token = indices(a.retrieve_parent_token, T, a.parent_stride, a.parent_token_stride);
  if (a.cu_seqlens != nullptr) r.cu_seqlens = contiguous(a.cu_seqlens, DType::i32, {batch + 1});
  if (a.rand_seed != nullptr) r.rand_seed = contiguous(a.rand_seed, DType::i64, {a.seed_stride == 0 ? 1 : S});
  r.disable_state_update = a.disable_state_update != 0;
  r.pad_slot_id = a.pad_slot_id;
  for (std::int64_t b = 0; b < batch; ++b) {
    const TokensRequest of = tokens_request(d, r, b, read_host);
    const std::uint64_t seed = of.live ? tokens_seed(r, of, read_host) : 0;
    for (int h = 0; h < d.nheads; ++h) {
      // Of a tree all tokens but the first again and again, until those that others go back to are there.
      for (int pass = 0; pass < (d.has_tree ? of.tokens : 1); ++pass) {
        const TokensHead head = tokens_reference(d, r, b, of, h, read_host);
        for (int t = 0; t < of.tokens; ++t)
          for (std::int64_t p = 0; p < P; ++p)
            encode(d.input_dtype, bytes_of(r.out), tokens_offset(d, r.out, 2, b, of, t) + h * P + p,
                   of.live ? head.y[static_cast<std::size_t>(t * P + p)] : 0.0);
        for (const StoredState& to : stored_states(d, r, of)) {
          if (d.has_tree && pass + 1 < of.tokens && to.states.data == r.state.data) continue;
          const std::vector<double>& state = head.states[static_cast<std::size_t>(to.token)];
          for (std::int64_t p = 0; p < P; ++p) {
            double scale = 1;
            if (d.has_state_scale()) {
              double most = 0;
              for (std::int64_t n = 0; n < N; ++n)
                most = std::max(most, std::abs(state[static_cast<std::size_t>(p * N + n)]));
              scale = rounded(DType::f32, most / largest_stored(d.state_dtype));
              encode(DType::f32, bytes_of(to.scales), to.slot * to.scales.stride[0] + h * P + p, scale);
            }
            for (std::int64_t n = 0; n < N; ++n) {
              double v = state[static_cast<std::size_t>(p * N + n)] / scale;
              if (!std::holds_alternative<Nearest>(d.rounding_kind))
                v = stored_stochastically(d, v, seed, to.slot, h, static_cast<int>(p), static_cast<int>(n),
                                          to.counted_token);
              encode(d.state_dtype, bytes_of(to.states), to.slot * to.states.stride[0] + (h * P + p) * N + n, v);
            }
          }
        }
      }
    }
  }
}

void conv1d_step(Description d, const device_args::Conv1dArgs& a, std::int64_t batch) {
  d.conv->channels = a.channels;  // verification takes a few of the description's
  const std::int64_t C = d.conv_channels(), L = d.conv_state_len(), K = d.conv_snapshot_len(), T = d.token_count;
  const bool last = d.conv->channels_last;
  const DType index = a.wide_indices != 0 ? DType::i64 : DType::i32;
  const auto indices = [&](const void* data, std::int64_t stride) {
    return data == nullptr ? Tensor{} : strided(data, index, {batch}, {stride});
  };
  Conv1dArgs r;
  r.conv_state =
      strided(a.conv_state, d.state_dtype, {a.slots, last ? L : C, last ? C : L}, {a.state_stride, last ? C : L, 1});
  r.x = strided(a.x, d.input_dtype, {batch, T, C}, {a.x_stride, a.x_token_stride, 1});
  r.out = strided(a.out, d.input_dtype, {batch, T, C}, {a.out_stride, a.out_token_stride, 1});
  r.w = contiguous(a.w, d.weight_dtype, {C, d.conv->width});
  r.bias = contiguous(a.bias, d.weight_dtype, {C});
  r.state_batch_indices = indices(a.state_batch_indices, a.index_stride);
  if (a.output_state_indices != nullptr)
    r.output_state_indices =
        strided(a.output_state_indices, index, {batch, T}, {a.output_index_stride, a.output_index_token_stride});
  if (a.intermediate_states != nullptr)
    r.intermediate_states =
        strided(a.intermediate_states, d.state_dtype, {a.snapshot_slots, T, last ? K : C, last ? C : K},
                {a.snapshot_stride, a.snapshot_token_stride, last ? C : K, 1});
  r.intermediate_state_indices = indices(a.intermediate_state_indices, a.snapshot_index_stride);
  r.cache_seqlens = indices(a.cache_seqlens, a.seqlen_stride);
  r.num_accepted_tokens = indices(a.num_accepted_tokens, a.accepted_stride);
  r.pad_slot_id = a.pad_slot_id;
  for (std::int64_t b = 0; b < batch; ++b) {
    const ConvRequest of = conv_request(d, r, b, read_host);
    for (std::int64_t c = 0; c < C; ++c) {
      const ConvChannel channel = conv1d_reference(d, r, b, c, of, read_host);
      for (int t = 0; t < d.token_count; ++t)
        encode(d.input_dtype, bytes_of(r.out), conv_token_at(r.out, b, t, c),
               of.live ? channel.y[static_cast<std::size_t>(t)] : 0.0);
      const std::vector<ConvWrite> writes = conv_writes(d, r, c, of);
      std::vector<double> values;
      for (const ConvWrite& w : writes)
        values.push_back(w.from_token ? stored_value(r.x, conv_token_at(r.x, b, w.from, c), read_host)
                                      : stored_value(r.conv_state, conv_state_at(d, r, of.slot, c, w.from), read_host));
      for (std::size_t i = 0; i < writes.size(); ++i)
        encode(d.state_dtype, bytes_of(writes[i].snapshot ? r.intermediate_states : r.conv_state), writes[i].at,
               values[i]);
    }
  }
}

// `rows`: batch * tokens.
void norm_step(Description d, const device_args::NormArgs& a, std::int64_t rows) {
  // Verification takes a few of the description's groups.
  d.norm->group_size = d.norm_group_size();
  d.norm->channels = a.channels;
  const std::int64_t batch = rows / d.token_count, T = d.token_count, N = a.channels;
  const auto of_tokens = [&](const void* data, std::int64_t stride, std::int64_t token_stride) {
    return strided(data, d.input_dtype, {batch, T, N}, {stride, token_stride, 1});
  };
  NormArgs r;
  r.x = of_tokens(a.x, a.x_stride, a.x_token_stride);
  r.z = of_tokens(a.z, a.z_stride, a.z_token_stride);
  r.out = of_tokens(a.out, a.out_stride, a.out_token_stride);
  r.weight = contiguous(a.weight, d.weight_dtype, {N});
  r.bias = contiguous(a.bias, d.weight_dtype, {N});
  const int size = d.norm_group_size();
  for (std::int64_t b = 0; b < batch; ++b)
    for (int t = 0; t < T; ++t)
      for (int g = 0; g < N / size; ++g) {
        const std::vector<double> y = norm_reference(d, r, b, t, g, read_host);
        for (int i = 0; i < size; ++i)
          encode(d.input_dtype, bytes_of(r.out), norm_offset(d, r.out, b, t, g) + i, y[static_cast<std::size_t>(i)]);
      }
}

// As templates/slot_copies.cuh, of slots in int32; `pieces`, `requests`: the launch's grid.
void slot_copies(const device_args::SlotCopiesArgs& a, std::int64_t pieces, std::int64_t requests) {
  for (std::int64_t b = 0; b < requests; ++b) {
    const int from = static_cast<const int*>(a.src_slots)[b], to = static_cast<const int*>(a.dst_slots)[b];
    std::int64_t bytes = 0;
    for (std::int64_t i = 0; i < pieces; ++i) {
      const device_args::SlotPiece& piece = a.pieces[i];
      if (from < 0 || to < 0 || from >= piece.slots || to >= piece.slots) continue;
      std::memcpy(piece.first + to * piece.stride, piece.first + from * piece.stride,
                  static_cast<std::size_t>(piece.bytes));
      bytes += piece.bytes;
    }
    if (world->copied) world->copied(from, to, bytes);
  }
}

// "ring" of ssmjit_ring_1234 and of a chain's ssmjit_layer_ring_1234.
std::string_view op_of(std::string_view kernel) {
  for (const std::string_view before : {"ssmjit_", "layer_"})
    if (kernel.starts_with(before)) kernel.remove_prefix(before.size());
  return kernel.substr(0, kernel.find('_'));
}

// What the entry computes: of a layer's chain a part of it.
Description description_of(const std::string& kernel) {
  for (const Description& part : layer_parts(world->description))
    if (op_of(kernel) == name(part.op())) return part;
  return world->description;
}

std::uint64_t mixed(std::uint64_t v) {
  v = (v ^ (v >> 30)) * 0xbf58476d1ce4e5b9ull;
  v = (v ^ (v >> 27)) * 0x94d049bb133111ebull;
  return v ^ (v >> 31);
}

}  // namespace

std::size_t argument_bytes(const char* name) {
  const std::string_view kernel = name;
  if (kernel.starts_with("ssmjit_pass_")) return sizeof(PassArgs);
  if (kernel == "ssmjit_produce") return sizeof(ProduceArgs);
  if (kernel == "ssmjit_fill") return sizeof(FillArgs);
  if (kernel == "ssmjit_hash") return sizeof(HashArgs);
  if (kernel == "ssmjit_slot_copies") return sizeof(device_args::SlotCopiesArgs);
  if (op_of(kernel) == "conv1d") return sizeof(device_args::Conv1dArgs);
  if (op_of(kernel) == "norm") return sizeof(device_args::NormArgs);
  if (op_of(kernel) == "update" && has_token_kernel(world->description)) return sizeof(device_args::UpdateTokensArgs);
  if (op_of(kernel) == "update" && is_update_rounded(world->description)) return sizeof(device_args::UpdateRoundedArgs);
  return op_of(kernel) == "ring" || op_of(kernel) == "replay" ? sizeof(device_args::RingArgs)
                                                              : sizeof(device_args::UpdateArgs);
}

double launch(const char* name, const CUlaunchConfig& config, const void* argument) {
  const std::string kernel = name;
  if (kernel.starts_with("ssmjit_pass_")) {
    const auto a = read_argument<PassArgs>(argument);
    // Every byte that it says it touches must be there.
    std::uint64_t seen = 0;
    for (std::uint64_t i = 0; i < 16 * a.read; ++i) seen += static_cast<std::uint64_t>(a.data[i]);
    std::memset(a.data, static_cast<int>(seen & 0xff), 16 * a.written_back);
    std::memset(a.elsewhere, 0x5a, 16 * a.written_new);
    if (a.appended > 0) std::memset(a.rows, 0x5a, 16 * a.appended);
    // One that writes nothing displaces the L2.
    if (a.written_back + a.written_new + a.appended > 0)
      world->passed.push_back(16 * (a.read + a.written_back + a.written_new + a.appended));
    return 1;
  }
  if (kernel == "ssmjit_produce") {
    const auto a = read_argument<ProduceArgs>(argument);
    std::memcpy(a.target, a.source, 16 * a.vectors);
    return 0.5;
  }
  if (kernel == "ssmjit_fill") {
    const auto a = read_argument<FillArgs>(argument);
    const DType dtypes[] = {DType::f32, DType::bf16, DType::f16, DType::i8, DType::f8, DType::i16};
    for (std::uint64_t i = 0; i < a.count; ++i) {
      const double uniform = static_cast<double>(mixed(a.seed * 0x9e3779b97f4a7c15ull + i) >> 11) * 0x1p-53;
      encode(dtypes[a.dtype], a.data, static_cast<std::int64_t>(i), a.mean + a.deviation * (2 * uniform - 1) * 1.7);
    }
    return 1;
  }
  if (kernel == "ssmjit_hash") {
    const auto a = read_argument<HashArgs>(argument);
    for (std::uint64_t i = 0; i < a.words; ++i) *a.result += mixed(a.data[i] + (i << 32));
    return 1;
  }
  const Cost cost = world->cost[kernel];
  if (kernel == "ssmjit_slot_copies") {
    const auto a = read_argument<device_args::SlotCopiesArgs>(argument);
    slot_copies(a, config.gridDimX, config.gridDimY);
    return cost.no_flush;
  }
  const auto batch = static_cast<std::int64_t>(config.gridDimY);
  world->batches.push_back(static_cast<int>(batch));
  Description d = description_of(kernel);
  if (has_token_kernel(d)) {
    const auto device = read_argument<device_args::UpdateTokensArgs>(argument);
    d.ngroups = device.nheads / d.heads_per_group();  // verification takes a few of the description's
    d.nheads = device.nheads;
    tokens_step(d, device, batch);
    return cost.no_flush;
  }
  if (is_update_rounded(d)) {
    const auto device = read_argument<device_args::UpdateRoundedArgs>(argument);
    d.nheads = static_cast<int>(device.nheads);
    d.ngroups = d.nheads / world->description.heads_per_group();
    update_step(d, device.update, &device, batch);
    return cost.no_flush;
  }
  if (d.op() == Op::update) {
    update_step(d, read_argument<device_args::UpdateArgs>(argument), nullptr, batch);
    return cost.no_flush;
  }
  if (d.op() == Op::conv1d) {
    conv1d_step(d, read_argument<device_args::Conv1dArgs>(argument), batch);
    return cost.no_flush;
  }
  if (d.op() == Op::norm) {
    norm_step(d, read_argument<device_args::NormArgs>(argument), batch);
    return cost.no_flush;
  }
  // Verification takes a few of the description's heads.
  const auto device = read_argument<device_args::RingArgs>(argument);
  d.ngroups = device.nheads / d.heads_per_group();
  d.nheads = device.nheads;
  if (kernel.starts_with("ssmjit_replay_precompute_")) return cost.no_flush;  // the launch behind it does all
  if (d.op() == Op::replay) {
    replay_step(d, device, batch);
    if (world->spoil) world->spoil(of_device(d, device, batch), batch);
    return cost.no_flush;
  }
  const RingArgs args = of_device(d, device, batch);
  const double flushed = ring_step(d, args, batch);
  if (world->spoil) world->spoil(args, batch);
  return cost.no_flush + flushed * (cost.flush - cost.no_flush);
}

}  // namespace ssmjit
