#include "autotune/layer_case.h"

#include <algorithm>

#include "codegen/chain_scratch.h"

namespace ssmjit {

LayerCase::LayerCase(const Description& description, const CaseLayout& layout, std::uint64_t seed)
    : KernelCase(description, layout, seed) {
  const Description& d = description;
  const std::int64_t batch = layout.batch;
  const std::int64_t H = d.nheads, P = d.head_dim, N = d.dstate;

  host_.state = add_pool("state", d.state_dtype, {H, P, N});
  if (d.conv) {
    const std::int64_t channels = d.conv_channels(), length = d.conv_state_len();
    host_.conv_state = d.conv->channels_last ? add_pool("conv_state", d.input_dtype, {length, channels})
                                             : add_pool("conv_state", d.input_dtype, {channels, length});
  }
  add_inputs();
  add_layer_weights();
  const std::int64_t out_stride = H * P + (layout.packed_rows ? 8 : 0);
  host_.out = strided(at(add("out", batch * out_stride * size_bytes(d.input_dtype), Use::output)), d.input_dtype,
                      {batch, H, P}, {out_stride, P, 1});

  // Its base is as aligned as the caller's memory.
  const std::int64_t scratch = chain_scratch(d, batch).bytes;
  host_.scratch = contiguous(at(add("scratch", scratch, Use::output)), DType::i8, {scratch});

  host_.pad_slot_id = pad_slot_id();
  const std::vector<std::int64_t> order = slot_order();
  std::vector<std::int64_t> slots(order.begin(), order.begin() + batch);
  mark_pads(slots);
  if (layout.indexed) host_.state_batch_indices = add_indices("state_batch_indices", slots, layout.index_dtype);

  // States and windows of live slots; every other byte of the pools stays NaN and must stay untouched.
  for (std::int64_t b = 0; b < batch; ++b) {
    rows_.push_back(row_slots(host_, b, read_host));
    const RowSlots& row = rows_.back();
    if (row.live) {
      const double scale = layout.strong_decay ? 30.0 : 1.0;
      for (std::int64_t i = 0; i < H * P * N; ++i)
        put(host_.state, row.source * host_.state.stride[0] + i, scale * normal());
      if (d.conv)
        for (std::int64_t i = 0; i < std::int64_t{d.conv_channels()} * d.conv_state_len(); ++i)
          put(host_.conv_state, row.source * host_.conv_state.stride[0] + i, normal());
    }
    // No sum of a convolution next to halfway between two values of the input's dtype.
    if (d.conv)
      for (std::int64_t c = 0; c < d.conv_channels(); ++c)
        while (layer_channels(d, host_, b, row, c, 1, read_host).unsure[0])
          put(host_.x, b * host_.x.stride[0] + c, normal());
    expected_.emplace_back();
    for (int group = 0; group < d.nheads / layer_group_heads(d); ++group)
      expected_.back().push_back(layer_reference(d, host_, b, group, row, read_host));
  }
}

// x, B and C as the description takes them, z and dt: tensors of their own, or slices of one row, z first.
void LayerCase::add_inputs() {
  const Description& d = description();
  const CaseLayout& layout = this->layout();
  const std::int64_t batch = layout.batch, H = d.nheads, P = d.head_dim, N = d.dstate, G = d.ngroups;
  const bool has_z = d.has_z() || (d.norm && !d.norm->gate_expr.empty());
  struct Slice {
    const char* name;
    Tensor* tensor;
    std::int64_t count, width;  // count 0: one dimension
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
  std::byte* all = layout.packed_rows ? at(add("x, B, C, z", batch * packed * bytes, Use::produced)) : nullptr;
  std::int64_t offset = 0;
  for (const Slice& s : slices) {
    const std::int64_t width = std::max<std::int64_t>(s.count, 1) * s.width;
    const std::int64_t stride = layout.packed_rows ? packed : width;
    std::byte* first =
        layout.packed_rows ? all + offset * bytes : at(add(s.name, batch * width * bytes, Use::produced));
    *s.tensor = s.count == 0 ? strided(first, d.input_dtype, {batch, width}, {stride, 1})
                             : strided(first, d.input_dtype, {batch, s.count, s.width}, {stride, s.width, 1});
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t i = 0; i < width; ++i) put(*s.tensor, b * stride + i, normal());
    offset += width;
  }
  const std::int64_t dt_stride = layout.packed_rows ? H + 1 : H;
  host_.dt = strided(at(add("dt", batch * dt_stride * size_bytes(d.dt_dtype), Use::produced)), d.dt_dtype, {batch, H},
                     {dt_stride, 1});
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t h = 0; h < H; ++h)
      put(host_.dt, b * dt_stride + h, exact_in_sums(layout.strong_decay ? uniform({-12, 24}) : normal()));
}

void LayerCase::add_layer_weights() {
  const Description& d = description();
  const Weights weights = add_weights({-2, -1}, {-4, -3});
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
  for (Tensor* t : {&args.state, &args.conv_state, &args.x, &args.B, &args.C, &args.dt, &args.z, &args.conv_weight,
                    &args.conv_bias, &args.A, &args.D, &args.dt_bias, &args.norm_weight, &args.norm_bias, &args.out,
                    &args.state_batch_indices, &args.scratch})
    move(*t, base);
  return args;
}

void LayerCase::judge(const std::vector<std::byte*>& want_base, const std::vector<std::byte*>& got_base,
                      CaseResult& result) const {
  const Description& d = description();
  NearnessMeter y_meter(d.input_dtype, d.dstate), state_meter(d.state_dtype, d.dstate);
  const LayerArgs want = args(want_base), got = args(got_base);
  take(want.scratch, got.scratch, 0, want.scratch.shape[0]);  // nobody's but a chain's own
  const int heads = layer_group_heads(d);
  const std::int64_t P = d.head_dim, N = d.dstate;
  for (std::size_t b = 0; b < rows_.size(); ++b) {
    const RowSlots& row = rows_[b];
    const auto bb = static_cast<std::int64_t>(b);
    for (std::size_t g = 0; g < expected_[b].size(); ++g) {
      const LayerGroup& group = expected_[b][g];
      for (int i = 0; i < heads; ++i) {
        const std::int64_t head = static_cast<std::int64_t>(g) * heads + i;
        const std::int64_t out_at = bb * got.out.stride[0] + head * P;
        if (row.live || d.pad_output_kind == PadOutput::as_if_zero_state) {
          y_meter.add_row(group.out.data() + i * P, stored_values(got.out, out_at, d.head_dim, read_host),
                          group.terms.data() + i * P);
          take(want.out, got.out, out_at, P);
        } else if (d.pad_output_kind == PadOutput::zeros) {
          // Either zero: a chain's norm makes one of the update's zeros and any gate.
          const std::vector<double> zeros = stored_values(got.out, out_at, d.head_dim, read_host);
          for (std::int64_t p = 0; p < P; ++p)
            put(want.out, out_at + p, zeros[static_cast<std::size_t>(p)] == 0 ? zeros[static_cast<std::size_t>(p)] : 0);
        }
        if (!row.store) continue;
        const std::vector<double>& state = group.heads[static_cast<std::size_t>(i)].state;
        const std::int64_t state_at = row.target * got.state.stride[0] + head * P * N;
        for (std::int64_t p = 0; p < P; ++p)
          state_meter.add_row(state.data() + p * N, stored_values(got.state, state_at + p * N, d.dstate, read_host));
        take(want.state, got.state, state_at, P * N);
      }
    }
    // Windows, bit for bit: the oldest entry gone, the input behind the others.
    if (!d.conv || !row.store) continue;
    const auto size = static_cast<std::int64_t>(size_bytes(d.input_dtype));
    const int last = d.conv_state_len() - 1;
    for (std::int64_t c = 0; c < d.conv_channels(); ++c) {
      const auto entry = [&](int k) {
        return bytes_of(want.conv_state) + (row.target * want.conv_state.stride[0] + window_offset(d, c, k)) * size;
      };
      for (int k = 0; k < last; ++k) std::copy_n(entry(k + 1), size, entry(k));
      std::copy_n(bytes_of(host_.x) + (bb * host_.x.stride[0] + c) * size, size, entry(last));
    }
  }
  result.y = y_meter.result();
  result.state = state_meter.result();
  if (const std::string s = ssmjit::judge(result.y, d.input_dtype, d.dstate, "out"); !s.empty()) failed(result, s);
  if (const std::string s = ssmjit::judge(result.state, d.state_dtype, d.dstate, "state"); !s.empty())
    failed(result, s);
}

}  // namespace ssmjit
