#include "autotune/conv1d_case.h"

#include "autotune/host_numbers.h"

namespace ssmjit {

Conv1dCase::Conv1dCase(const Description& description, const CaseLayout& layout, std::uint64_t seed)
    : KernelCase(description, layout, seed) {
  const Description& d = description;
  const Conv& conv = *d.conv;
  const std::int64_t C = d.conv_channels(), L = d.conv_state_len(), batch = layout.batch;

  host_.conv_state = add_pool("conv_state", d.state_dtype,
                              conv.channels_last ? std::vector<std::int64_t>{L, C} : std::vector<std::int64_t>{C, L});
  add_tokens();
  const auto weights = [&](const char* name, std::int64_t count) {
    std::byte* const data = at(add(name, count * size_bytes(d.weight_dtype), Use::constant));
    const Tensor flat = contiguous(data, d.weight_dtype, {count});
    for (std::int64_t i = 0; i < count; ++i) put(flat, i, (layout.strong_decay ? 4.0 : 0.5) * normal());
    return data;
  };
  host_.w = contiguous(weights("w", C * conv.width), d.weight_dtype, {C, conv.width});
  if (conv.has_bias) host_.bias = contiguous(weights("bias", C), d.weight_dtype, {C});

  host_.pad_slot_id = pad_slot_id();
  const std::vector<std::int64_t> order = slot_order();
  std::vector<std::int64_t> slots(order.begin(), order.begin() + batch);
  mark_pads(slots);
  if (layout.indexed) host_.state_batch_indices = add_indices("state_batch_indices", slots, layout.index_dtype);
  add_conv_slots(d, host_, order);

  for (std::int64_t b = 0; b < batch; ++b) {
    requests_.push_back(conv_request(d, host_, b, read_host));
    fill_window(d, host_, requests_.back(), layout.strong_decay ? 30 : 1);
    expected_.emplace_back();
    if (!requests_.back().live) continue;
    for (std::int64_t c = 0; c < C; ++c)
      expected_.back().push_back(conv1d_reference(d, host_, b, c, requests_.back(), read_host));
  }
}

// x and out: tokens one after the other, or slices of packed rows with the tokens of all requests side by side.
void Conv1dCase::add_tokens() {
  const Description& d = description();
  const std::int64_t C = d.conv_channels(), T = d.token_count, batch = layout().batch;
  const bool packed = layout().packed_rows;
  const std::int64_t vector = d.aligned_rows ? 16 : 1;
  const auto tensor = [&](const char* name, std::int64_t gap, std::int64_t first, bool by_token, Use use) {
    const std::int64_t row = C + gap;
    std::byte* const data = at(add(name, batch * T * row * size_bytes(d.input_dtype), use));
    const std::int64_t request = by_token ? row : T * row, token = by_token ? batch * row : row;
    return strided(data + first * size_bytes(d.input_dtype), d.input_dtype, {batch, T, C}, {request, token, 1});
  };
  // Of unaligned rows a row is an odd count of elements.
  const std::int64_t odd = d.aligned_rows ? 0 : 1 + C % 2;
  host_.x = tensor("x", odd + (packed ? 3 * vector : 0), packed ? vector : 0, packed, Use::produced);
  host_.out = tensor("out", odd + (packed ? vector : 0), 0, false, Use::output);
  const double scale = layout().strong_decay ? 30 : 1;
  for (std::int64_t b = 0; b < batch; ++b)
    for (int t = 0; t < T; ++t)
      for (std::int64_t c = 0; c < C; ++c) put(host_.x, conv_token_at(host_.x, b, t, c), scale * normal());
}

Conv1dArgs Conv1dCase::args(const std::vector<std::byte*>& base) const {
  Conv1dArgs args = host_;
  for (Tensor* t : {&args.conv_state, &args.x, &args.w, &args.bias, &args.out, &args.state_batch_indices,
                    &args.output_state_indices, &args.intermediate_states, &args.intermediate_state_indices,
                    &args.cache_seqlens, &args.num_accepted_tokens})
    move(*t, base);
  return args;
}

void Conv1dCase::judge(const std::vector<std::byte*>& want_base, const std::vector<std::byte*>& got_base,
                       CaseResult& result) const {
  const Description& d = description();
  const std::int64_t C = d.conv_channels();
  NearnessMeter y_meter(d.input_dtype, kConvTerms);
  Windows windows;
  const Conv1dArgs want = args(want_base), got = args(got_base);
  for (std::size_t b = 0; b < requests_.size(); ++b) {
    const ConvRequest& request = requests_[b];
    const auto row = static_cast<std::int64_t>(b);
    for (int t = 0; t < d.token_count; ++t) {
      const std::int64_t out_at = conv_token_at(got.out, row, t, 0);
      if (!request.live) {
        if (d.pad_output_kind == PadOutput::zeros)
          for (std::int64_t c = 0; c < C; ++c) put(want.out, out_at + c, 0.0);
        continue;
      }
      std::vector<double> y, terms;
      for (const ConvChannel& channel : expected_[b]) {
        y.push_back(channel.y[static_cast<std::size_t>(t)]);
        terms.push_back(channel.y_terms[static_cast<std::size_t>(t)]);
      }
      y_meter.add_row(y.data(), stored_values(got.out, out_at, static_cast<int>(C), read_host), terms.data());
      take(want.out, got.out, out_at, C);
    }
    judge_windows(d, host_, want, got, row, request, windows);
  }
  result.y = y_meter.result();
  if (const std::string s = ssmjit::judge(result.y, d.input_dtype, kConvTerms, "out"); !s.empty()) failed(result, s);
  KernelCase::judge(windows, result);
}

}  // namespace ssmjit
