#include "autotune/update_case.h"

#include <variant>

#include "autotune/host_numbers.h"
#include "autotune/reference/stored_state.h"
#include "autotune/state_meter.h"
#include "codegen/rounded.h"

namespace ssmjit {

UpdateCase::UpdateCase(const Description& description, const CaseLayout& layout, std::uint64_t seed)
    : KernelCase(description, layout, seed) {
  const Description& d = description;
  const std::int64_t batch = layout.batch;
  const std::int64_t H = d.nheads, P = d.head_dim, N = d.dstate, G = d.ngroups;

  host_.state = add_pool("state", d.state_dtype, {H, P, N});
  if (d.has_state_scale()) host_.state_scale = add_pool("state_scale", DType::f32, {H, P});
  if (std::holds_alternative<Stochastic>(d.rounding_kind)) {
    // One seed, or one a slot.
    std::vector<std::int64_t> seeds(static_cast<std::size_t>(layout.padded_state ? pool_slots() : 1));
    for (std::int64_t& v : seeds) v = static_cast<std::int64_t>(random_() | std::uint64_t{1} << 63);
    host_.rand_seed = add_indices("rand_seed", seeds, DType::i64);
  }
  const InputRows rows = add_input_rows(batch);
  const auto rows_of = [&](const Rows& r, std::int64_t count, std::int64_t width) {
    return r.first == nullptr ? Tensor{} : strided(r.first, d.input_dtype, {batch, count, width}, {r.stride, width, 1});
  };
  host_.x = rows_of(rows.x, H, P);
  host_.B = rows_of(rows.B, G, N);
  host_.C = rows_of(rows.C, G, N);
  host_.z = rows_of(rows.z, H, P);
  const std::int64_t dt_stride = layout.packed_rows ? H + 1 : H;
  host_.dt = strided(at(add("dt", batch * dt_stride * size_bytes(d.dt_dtype), Use::produced)), d.dt_dtype, {batch, H},
                     {dt_stride, 1});
  const Weights weights = add_weights({-2, -1}, {-4, -3});
  host_.A = weights.A;
  host_.D = weights.D;
  host_.dt_bias = weights.dt_bias;
  const std::int64_t out_stride = H * P + (layout.packed_rows ? 8 : 0);
  host_.out = strided(at(add("out", batch * out_stride * size_bytes(d.input_dtype), Use::output)), d.input_dtype,
                      {batch, H, P}, {out_stride, P, 1});

  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t h = 0; h < H; ++h)
      put(host_.dt, b * dt_stride + h, exact_in_sums(layout.strong_decay ? uniform({-12, 24}) : normal()));
    for (const Tensor* t : {&host_.x, &host_.B, &host_.C, &host_.z}) {
      if (t->data == nullptr) continue;
      for (std::int64_t i = 0; i < t->shape[1] * t->shape[2]; ++i) put(*t, b * t->stride[0] + i, normal());
    }
  }

  host_.pad_slot_id = pad_slot_id();
  const std::vector<std::int64_t> order = slot_order();
  std::vector<std::int64_t> source(order.begin(), order.begin() + batch), target = source;
  // A new state goes to a slot that nobody reads; every third row keeps its own.
  if (layout.indexed)
    for (std::size_t b = 0; b < target.size(); ++b)
      if (b % 3 != 0) target[b] = order[target.size() + b];
  mark_pads(source);
  if (layout.pads && batch > 4) target[4] = -1;  // computed, not stored
  if (layout.indexed) {
    host_.state_batch_indices = add_indices("state_batch_indices", source, layout.index_dtype);
    if (d.has_destination)
      host_.dst_state_batch_indices = add_indices("dst_state_batch_indices", target, layout.index_dtype);
  }

  // States of live slots; every other byte of the pool stays NaN and must stay untouched.
  for (std::int64_t b = 0; b < batch; ++b) {
    rows_.push_back(row_slots(d, host_, b, read_host));
    if (rows_.back().live) {
      double magnitude = layout.strong_decay ? 30.0 : 1.0;
      if (d.has_state_scale()) {
        const double largest = largest_stored(d.state_dtype);
        for (std::int64_t i = 0; i < H * P; ++i)
          put(host_.state_scale, rows_.back().source * host_.state_scale.stride[0] + i,
              magnitude * uniform({2.5, 5}) / largest);
        magnitude = largest / 4;  // in units of the scale
      }
      for (std::int64_t i = 0; i < H * P * N; ++i)
        put(host_.state, rows_.back().source * host_.state.stride[0] + i, magnitude * normal());
    }
    expected_.emplace_back();
    for (int h = 0; h < d.nheads; ++h)
      expected_.back().push_back(update_reference(d, host_, b, h, rows_.back(), read_host));
  }
}

UpdateArgs UpdateCase::args(const std::vector<std::byte*>& base) const {
  UpdateArgs args = host_;
  for (Tensor* t :
       {&args.state, &args.x, &args.dt, &args.A, &args.B, &args.C, &args.D, &args.dt_bias, &args.z, &args.out,
        &args.state_batch_indices, &args.dst_state_batch_indices, &args.state_scale, &args.rand_seed})
    move(*t, base);
  return args;
}

void UpdateCase::judge(const std::vector<std::byte*>& want_base, const std::vector<std::byte*>& got_base,
                       CaseResult& result) const {
  const Description& d = description();
  NearnessMeter y_meter(d.input_dtype, d.dstate), state_meter(d.state_dtype, d.dstate);
  StateMeter rounded_meter(d);
  const bool rounded = is_state_rounded(d);
  const UpdateArgs want = args(want_base), got = args(got_base);
  for (std::size_t b = 0; b < rows_.size(); ++b) {
    const RowSlots& row = rows_[b];
    for (int h = 0; h < d.nheads; ++h) {
      const HeadResult& head = expected_[b][static_cast<std::size_t>(h)];
      const std::int64_t out_at = static_cast<std::int64_t>(b) * got.out.stride[0] + std::int64_t{h} * d.head_dim;
      if (row.live || d.pad_output_kind == PadOutput::as_if_zero_state) {
        y_meter.add_row(head.y.data(), stored_values(got.out, out_at, d.head_dim, read_host), head.y_terms.data());
        take(want.out, got.out, out_at, d.head_dim);
      } else if (d.pad_output_kind == PadOutput::zeros) {
        for (int p = 0; p < d.head_dim; ++p) put(want.out, out_at + p, 0.0);
      }
      if (!row.store) continue;
      const std::int64_t state_at = row.target * got.state.stride[0] + std::int64_t{h} * d.head_dim * d.dstate;
      if (rounded)
        rounded_meter.add_head({head.state, head.state_slack, head.scale}, got.state, got.state_scale, row.target, h,
                               seed_of_slot(want.rand_seed, row.target, read_host), read_host);
      for (int p = 0; p < d.head_dim && !rounded; ++p)
        state_meter.add_row(head.state.data() + static_cast<std::size_t>(p) * static_cast<std::size_t>(d.dstate),
                            stored_values(got.state, state_at + std::int64_t{p} * d.dstate, d.dstate, read_host));
      take(want.state, got.state, state_at, std::int64_t{d.head_dim} * d.dstate);
      if (d.has_state_scale())
        take(want.state_scale, got.state_scale, row.target * got.state_scale.stride[0] + std::int64_t{h} * d.head_dim,
             d.head_dim);
    }
  }
  result.y = y_meter.result();
  result.state = rounded ? rounded_meter.result() : state_meter.result();
  if (const std::string s = ssmjit::judge(result.y, d.input_dtype, d.dstate, "out"); !s.empty()) failed(result, s);
  const std::string wrong =
      rounded ? rounded_meter.failure() : ssmjit::judge(result.state, d.state_dtype, d.dstate, "state");
  if (!wrong.empty()) failed(result, wrong);
}

}  // namespace ssmjit
