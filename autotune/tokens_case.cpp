#include "autotune/tokens_case.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "autotune/host_numbers.h"
#include "autotune/reference/stored_state.h"

namespace ssmjit {
namespace {

// Columns of an index tensor, by row.
Tensor with_columns(Tensor flat, std::int64_t columns) {
  flat.rank = 2;
  flat.shape = {flat.shape[0] / columns, columns};
  flat.stride = {columns, 1};
  return flat;
}

}  // namespace

std::vector<StoredState> stored_states(const Description& d, const UpdateArgs& args, const TokensRequest& of) {
  std::vector<StoredState> out;
  if (!of.live) return out;
  const std::int64_t rows = std::int64_t{d.nheads} * d.head_dim;
  for (int t = 0; t < of.tokens; ++t) {
    const auto counted = static_cast<std::uint32_t>(t);
    if (of.snapshot >= 0) {
      // Step t of every slot, as a pool.
      const std::int64_t steps = args.intermediate_states.shape[1];
      const auto step = [&](const Tensor& all, std::int64_t each) {
        if (all.data == nullptr) return all;
        Tensor one = all;
        one.data = static_cast<const std::byte*>(all.data) + t * each * size_bytes(all.dtype);
        one.rank = all.rank - 1;
        for (int i = 1; i < one.rank; ++i) {
          one.shape[static_cast<std::size_t>(i)] = all.shape[static_cast<std::size_t>(i) + 1];
          one.stride[static_cast<std::size_t>(i)] = all.stride[static_cast<std::size_t>(i) + 1];
        }
        one.stride[0] = steps * each;
        return one;
      };
      out.push_back({step(args.intermediate_states, rows * d.dstate), step(args.intermediate_state_scales, rows),
                     of.snapshot, counted, t});
    }
    if (!of.targets.empty() && of.targets[static_cast<std::size_t>(t)] >= 0)
      out.push_back({args.state, args.state_scale, of.targets[static_cast<std::size_t>(t)], counted, t});
  }
  if (of.final_target >= 0)
    out.push_back({args.state, args.state_scale, of.final_target,
                   d.stores_every_token() ? static_cast<std::uint32_t>(of.tokens - 1) : 0, of.tokens - 1});
  return out;
}

TokensMeter::TokensMeter(const Description& description)
    : description_(description),
      y_(description.input_dtype, description.dstate),
      state_(description.state_dtype, description.dstate),
      rounded_(description) {}

void TokensMeter::add_state(const std::vector<double>& want, const std::vector<double>& slack, const Tensor& states,
                            const Tensor& scales, std::int64_t slot, int head, std::uint32_t token, std::uint64_t seed,
                            const Reader& read) {
  const Description& d = description_;
  const int P = d.head_dim, N = d.dstate;
  if (d.state_dtype == DType::f32) {
    const std::vector<double> got =
        stored_values(states, slot * states.stride[0] + std::int64_t{head} * P * N, P * N, read);
    for (int p = 0; p < P; ++p) {
      const std::ptrdiff_t first = std::ptrdiff_t{p} * N;
      state_.add_row(want.data() + first, {got.begin() + first, got.begin() + first + N});
    }
    return;
  }
  std::vector<double> with_scale = slack;
  const std::vector<double> scale = row_scales(d, want, with_scale);
  rounded_.add_head({.state = want, .slack = with_scale, .scale = scale}, states, scales, slot, head, seed, read,
                    token);
}

void TokensMeter::add_head(const TokensHead& want, std::int64_t request, const TokensRequest& of, int head,
                           const UpdateArgs& got, std::uint64_t seed, const Reader& read) {
  const Description& d = description_;
  const int P = d.head_dim;
  if (of.live || d.pad_output_kind == PadOutput::as_if_zero_state)
    for (int t = 0; t < of.tokens; ++t)
      y_.add_row(want.y.data() + std::ptrdiff_t{t} * P,
                 stored_values(got.out, tokens_offset(d, got.out, 2, request, of, t) + std::int64_t{head} * P, P, read),
                 want.y_terms.data() + std::ptrdiff_t{t} * P);
  for (const StoredState& stored : stored_states(d, got, of)) {
    const auto t = static_cast<std::size_t>(stored.token);
    add_state(want.states[t], want.slacks[t], stored.states, stored.scales, stored.slot, head, stored.counted_token,
              seed, read);
  }
}

Nearness TokensMeter::state() const {
  return description_.state_dtype == DType::f32 ? state_.result() : rounded_.result();
}

std::vector<std::string> TokensMeter::failures() const {
  const Description& d = description_;
  std::vector<std::string> found;
  const auto add = [&](std::string sentence) {
    if (!sentence.empty()) found.push_back(std::move(sentence));
  };
  add(judge(y(), d.input_dtype, d.dstate, "out"));
  add(d.state_dtype == DType::f32 ? judge(state_.result(), d.state_dtype, d.dstate, "state") : rounded_.failure());
  return found;
}

TokensCase::TokensCase(const Description& description, const CaseLayout& layout, std::uint64_t seed)
    : KernelCase(description, layout, seed) {
  const Description& d = description;
  host_.state = add_pool("state", d.state_dtype, {d.nheads, d.head_dim, d.dstate});
  if (d.has_state_scale()) host_.state_scale = add_pool("state_scale", DType::f32, {d.nheads, d.head_dim});
  add_tokens();
  const Weights weights = add_weights({-2, -1}, {-4, -3});
  host_.A = weights.A;
  host_.D = weights.D;
  host_.dt_bias = weights.dt_bias;
  host_.pad_slot_id = pad_slot_id();
  add_slots();

  // States of slots that are read; every other byte of the pool stays NaN and must stay untouched.
  const std::int64_t rows = std::int64_t{d.nheads} * d.head_dim;
  for (std::int64_t b = 0; b < layout.batch; ++b) {
    requests_.push_back(tokens_request(d, host_, b, read_host));
    const TokensRequest& request = requests_.back();
    expected_.emplace_back();
    if (request.live) {
      double magnitude = layout.strong_decay ? 30.0 : 1.0;
      if (d.has_state_scale()) {
        const double largest = largest_stored(d.state_dtype);
        for (std::int64_t i = 0; i < rows; ++i)
          put(host_.state_scale, request.source * host_.state_scale.stride[0] + i,
              magnitude * uniform({2.5, 5}) / largest);
        magnitude = largest / 4;  // in units of the scale
      }
      for (std::int64_t i = 0; i < rows * d.dstate; ++i)
        put(host_.state, request.source * host_.state.stride[0] + i, magnitude * normal());
    }
    if (d.has_tree) continue;
    for (int h = 0; h < d.nheads; ++h) expected_.back().push_back(tokens_reference(d, host_, b, request, h, read_host));
  }
}

// x, B, C, z, dt and out: a request's tokens one after the other, between requests a gap where rows are packed; with
// varlen from 0 to all tokens a request, without gaps.
void TokensCase::add_tokens() {
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
    if (d.is_varlen || T > 1) dimension(d.is_varlen ? rows : T, row_stride);
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
        put(host_.dt, row * dt_stride + h, exact_in_sums(layout().strong_decay ? uniform({-12, 24}) : normal()));
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

// Which slots are read and written, as the description has it.
void TokensCase::add_slots() {
  const Description& d = description();
  const CaseLayout& l = layout();
  const std::int64_t batch = l.batch, T = d.token_count;
  const bool slots = std::holds_alternative<Slots>(d.store_kind);
  const std::vector<std::int64_t> order = slot_order();
  const auto own = [&](std::int64_t b) { return order[static_cast<std::size_t>(b)]; };
  // Slots that no row starts from, T of them a row where there are so many.
  const auto other = [&](std::int64_t b, std::int64_t t) {
    return order[static_cast<std::size_t>(batch + b * (slots || d.has_accepted ? T : 1) + t)];
  };
  std::vector<std::int64_t> source;
  for (std::int64_t b = 0; b < batch; ++b) source.push_back(own(b));
  mark_pads(source);
  if (d.has_accepted) {
    // A row's columns are its own slots, or nobody's, as the one behind those of its tokens; the one that its count
    // chooses is the one that it reads. Counts go out of range.
    const std::int64_t columns = T + (l.indexed ? 1 : 0);
    std::vector<std::int64_t> counts, all;
    for (std::int64_t b = 0; b < batch; ++b) {
      const std::int64_t kinds[] = {(T + 1) / 2, T, 0, 1, T + 3, -2};
      counts.push_back(kinds[b % 6]);
      const std::int64_t chosen = std::clamp<std::int64_t>(counts.back(), 1, T) - 1;
      for (std::int64_t t = 0; t < columns; ++t)
        all.push_back(t == chosen ? source[static_cast<std::size_t>(b)] : t < T ? other(b, t) : -1);
    }
    host_.num_accepted_tokens = add_indices("num_accepted_tokens", counts, l.index_dtype);
    host_.state_batch_indices = with_columns(add_indices("state_batch_indices", all, l.index_dtype), columns);
  } else if (l.indexed) {
    host_.state_batch_indices = add_indices("state_batch_indices", source, l.index_dtype);
  }
  if (slots) {
    std::vector<std::int64_t> targets;
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t t = 0; t < T; ++t) {
        // A request's own slot is one of its targets at times; some tokens' states are dropped.
        const std::int64_t pads[] = {-1, kNullSlot, pool_slots()};
        std::int64_t to = other(b, t);
        if (b % 2 == 0 && t == b / 2 % T) to = own(b);
        if (l.pads && b % 2 == 0 && t == (b + 1) % T) to = pads[b / 2 % 3];
        targets.push_back(to);
      }
    host_.dst_state_batch_indices = with_columns(add_indices("dst_state_batch_indices", targets, l.index_dtype), T);
  } else if (d.has_destination && l.indexed) {
    // A new state goes to a slot that nobody reads; every third row keeps its own.
    std::vector<std::int64_t> target;
    for (std::int64_t b = 0; b < batch; ++b) target.push_back(b % 3 != 0 ? other(b, 0) : own(b));
    if (l.pads && batch > 4) target[4] = -1;  // computed, not stored
    host_.dst_state_batch_indices = add_indices("dst_state_batch_indices", target, l.index_dtype);
  }
  if (std::holds_alternative<Snapshots>(d.store_kind)) {
    // Steps to spare, and slots of its own, where rows are pads; the slots that are read elsewhere.
    const bool named = l.indexed && l.pads;
    const std::int64_t steps = T + (named ? 1 : 0), count = named ? batch + 2 : pool_slots();
    const std::int64_t rows = std::int64_t{d.nheads} * d.head_dim;
    const auto buffer = [&](const char* name, std::int64_t elements, DType dtype) {
      return at(add(name, count * steps * elements * size_bytes(dtype), Use::updated));
    };
    host_.intermediate_states = contiguous(buffer("intermediate_states", rows * d.dstate, d.state_dtype), d.state_dtype,
                                           {count, steps, d.nheads, d.head_dim, d.dstate});
    if (d.has_state_scale())
      host_.intermediate_state_scales = contiguous(buffer("intermediate_state_scales", rows, DType::f32), DType::f32,
                                                   {count, steps, d.nheads, d.head_dim});
    if (named) {
      std::vector<std::int64_t> to;
      for (std::int64_t b = 0; b < batch; ++b) to.push_back(b % 4 == 2 ? -1 : b + 2);
      std::reverse(to.begin(), to.end());
      host_.intermediate_state_indices = add_indices("intermediate_state_indices", to, l.index_dtype);
    }
    host_.disable_state_update = batch % 4 == 3;
  }
  if (d.has_tree) {
    std::vector<std::int64_t> parents;
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t t = 0; t < T; ++t)
        parents.push_back(t == 0 || (b + t) % 5 == 4
                              ? (b % 2 == 0 ? -1 : T + 1)
                              : static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(t)));
    host_.retrieve_parent_token = with_columns(add_indices("retrieve_parent_token", parents, l.index_dtype), T);
  }
  if (!std::holds_alternative<Nearest>(d.rounding_kind)) {
    std::vector<std::int64_t> seeds;
    for (std::int64_t i = 0; i < (l.packed_rows ? pool_slots() : 1); ++i)
      seeds.push_back(static_cast<std::int64_t>(random_() | std::uint64_t{1} << 63));
    host_.rand_seed = add_indices("rand_seed", seeds, DType::i64);
  }
}

UpdateArgs TokensCase::args(const std::vector<std::byte*>& base) const {
  UpdateArgs args = host_;
  for (Tensor* t : {&args.state,
                    &args.state_scale,
                    &args.x,
                    &args.dt,
                    &args.A,
                    &args.B,
                    &args.C,
                    &args.D,
                    &args.dt_bias,
                    &args.z,
                    &args.out,
                    &args.state_batch_indices,
                    &args.dst_state_batch_indices,
                    &args.num_accepted_tokens,
                    &args.intermediate_states,
                    &args.intermediate_state_scales,
                    &args.intermediate_state_indices,
                    &args.retrieve_parent_token,
                    &args.cu_seqlens,
                    &args.rand_seed})
    move(*t, base);
  return args;
}

void TokensCase::judge(const std::vector<std::byte*>& want_base, const std::vector<std::byte*>& got_base,
                       CaseResult& result) const {
  const Description& d = description();
  const std::int64_t P = d.head_dim, N = d.dstate;
  const UpdateArgs want = args(want_base), got = args(got_base);
  // What a tree's tokens go back to is what was stored, found right or not.
  UpdateArgs tree = host_;
  tree.intermediate_states = got.intermediate_states;
  tree.intermediate_state_scales = got.intermediate_state_scales;
  TokensMeter meter(d);
  for (std::size_t b = 0; b < requests_.size(); ++b) {
    const TokensRequest& request = requests_[b];
    const auto row = static_cast<std::int64_t>(b);
    const bool computed = request.live || d.pad_output_kind == PadOutput::as_if_zero_state;
    const std::uint64_t seed = request.live ? tokens_seed(host_, request, read_host) : 0;
    for (int h = 0; h < d.nheads; ++h) {
      if (computed) {
        if (d.has_tree)
          meter.add_head(tokens_reference(d, tree, row, request, h, read_host), row, request, h, got, seed, read_host);
        else
          meter.add_head(expected_[b][static_cast<std::size_t>(h)], row, request, h, got, seed, read_host);
      }
      for (int t = 0; t < request.tokens; ++t) {
        const std::int64_t out_at = tokens_offset(d, got.out, 2, row, request, t) + h * P;
        if (computed)
          take(want.out, got.out, out_at, P);
        else if (d.pad_output_kind == PadOutput::zeros)
          for (std::int64_t p = 0; p < P; ++p) put(want.out, out_at + p, 0.0);
      }
    }
    const std::vector<StoredState> to = stored_states(d, want, request), from = stored_states(d, got, request);
    for (std::size_t i = 0; i < to.size(); ++i) {
      take(to[i].states, from[i].states, to[i].slot * to[i].states.stride[0], d.nheads * P * N);
      if (d.has_state_scale()) take(to[i].scales, from[i].scales, to[i].slot * to[i].scales.stride[0], d.nheads * P);
    }
  }
  result.y = meter.y();
  result.state = meter.state();
  for (const std::string& sentence : meter.failures()) failed(result, sentence);
}

}  // namespace ssmjit
