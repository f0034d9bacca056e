#include "autotune/conv1d_case.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

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
  std::vector<std::int64_t> targets(order.begin() + batch, order.end());  // that no row reads
  const std::vector<std::int64_t> live = slots;
  mark_pads(slots);
  if (layout.indexed) host_.state_batch_indices = add_indices("state_batch_indices", slots, layout.index_dtype);
  if (conv.keep == ConvKeep::slots) {
    targets.resize(static_cast<std::size_t>(batch * d.token_count));
    for (std::int64_t b = 0; b < batch; ++b) {
      // A request's own slot is one of its targets at times; some tokens' windows are dropped.
      const auto target = [&](std::int64_t t) -> std::int64_t& {
        return targets[static_cast<std::size_t>(b * d.token_count + t)];
      };
      if (b % 2 == 0) target(b / 2 % d.token_count) = live[static_cast<std::size_t>(b)];
      const std::int64_t pads[] = {-1, kNullSlot, pool_slots()};
      if (layout.pads && b % 2 == 0) target((b + 1) % d.token_count) = pads[b / 2 % 3];
    }
    host_.output_state_indices = add_indices("output_state_indices", targets, layout.index_dtype);
    host_.output_state_indices.rank = 2;
    host_.output_state_indices.shape = {batch, d.token_count};
    host_.output_state_indices.stride = {d.token_count, 1};
  }
  if (conv.keep == ConvKeep::snapshots) add_snapshots();
  const auto counts = [&](const char* name, auto&& of_row) {
    std::vector<std::int64_t> values;
    for (std::int64_t b = 0; b < batch; ++b) values.push_back(of_row(b));
    return add_indices(name, values, layout.index_dtype);
  };
  if (conv.store == ConvStore::circular)
    host_.cache_seqlens = counts("cache_seqlens", [&](std::int64_t b) {
      const std::int64_t kinds[] = {L - 1, 0, 7, L, 1000003, 2 * L + 1};
      return kinds[b % 6];
    });
  if (conv.has_accepted)  // out of range too
    host_.num_accepted_tokens = counts("num_accepted_tokens", [&](std::int64_t b) -> std::int64_t {
      const std::int64_t T = d.token_count, kinds[] = {(T + 1) / 2, T, 0, 1, T + 3, -2};
      return kinds[b % 6];
    });

  for (std::int64_t b = 0; b < batch; ++b) {
    requests_.push_back(conv_request(d, host_, b, read_host));
    fill_window(b);
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

void Conv1dCase::add_snapshots() {
  const Description& d = description();
  const std::int64_t C = d.conv_channels(), K = d.conv_snapshot_len(), T = d.token_count;
  const bool last = d.conv->channels_last, indexed = layout().indexed;
  // Steps to spare, and slots of its own where there are indices.
  const std::int64_t steps = T + (indexed ? 1 : 0), slots = indexed ? layout().batch + 2 : pool_slots();
  const std::int64_t slot = steps * C * K + (layout().padded_state ? 64 : 0);
  std::byte* const data = at(add("intermediate_states", slots * slot * size_bytes(d.state_dtype), Use::updated));
  host_.intermediate_states =
      strided(data, d.state_dtype, {slots, steps, last ? K : C, last ? C : K}, {slot, C * K, last ? C : K, 1});
  if (!indexed) return;
  std::vector<std::int64_t> to;
  for (std::int64_t b = 0; b < layout().batch; ++b) to.push_back(layout().pads && b % 4 == 2 ? -1 : b + 2);
  std::reverse(to.begin(), to.end());
  host_.intermediate_state_indices = add_indices("intermediate_state_indices", to, layout().index_dtype);
}

// The entries that the contract says are read; all others stay NaN.
void Conv1dCase::fill_window(std::int64_t row) {
  const Description& d = description();
  const Conv& conv = *d.conv;
  const ConvRequest& request = requests_[static_cast<std::size_t>(row)];
  if (!request.live) return;
  const int length = d.conv_state_len(), history = conv.width - 1;
  const bool moves = conv.store == ConvStore::shift && !conv.has_accepted;
  const int dropped = conv.keep == ConvKeep::last ? d.token_count : 1;
  for (int j = 0; j < length; ++j) {
    const bool used = (j - request.first + length) % length < history;
    if (!used && !(moves && j >= dropped)) continue;
    for (std::int64_t c = 0; c < d.conv_channels(); ++c)
      put(host_.conv_state, conv_state_at(d, host_, request.slot, c, j), (layout().strong_decay ? 30 : 1) * normal());
  }
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
  const std::int64_t C = d.conv_channels(), element = size_bytes(d.state_dtype);
  NearnessMeter y_meter(d.input_dtype, kConvTerms);
  WindowMeter windows, snapshots;
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
    for (std::int64_t c = 0; c < C; ++c)
      for (const ConvWrite& write : conv_writes(d, host_, c, request)) {
        const Tensor& to = write.snapshot ? want.intermediate_states : want.conv_state;
        const Tensor& is = write.snapshot ? got.intermediate_states : got.conv_state;
        std::byte* const place = bytes_of(to) + write.at * element;
        if (!write.from_token)
          std::memcpy(place,
                      bytes_of(host_.conv_state) + conv_state_at(d, host_, request.slot, c, write.from) * element,
                      static_cast<std::size_t>(element));
        else if (d.state_dtype == d.input_dtype)
          std::memcpy(place, bytes_of(host_.x) + conv_token_at(host_.x, row, write.from, c) * element,
                      static_cast<std::size_t>(element));
        else
          put(to, write.at, stored_value(host_.x, conv_token_at(host_.x, row, write.from, c), read_host));
        (write.snapshot ? snapshots : windows)
            .add(std::memcmp(place, bytes_of(is) + write.at * element, static_cast<std::size_t>(element)) == 0);
      }
  }
  result.y = y_meter.result();
  if (const std::string s = ssmjit::judge(result.y, d.input_dtype, kConvTerms, "out"); !s.empty()) failed(result, s);
  for (const auto& [name, meter] : {std::pair("conv_state", windows), {"intermediate_states", snapshots}})
    if (meter.wrong > 0)
      failed(result, fmt::format("{}: {} of {} elements that the step writes are no copies of what they should be",
                                 name, meter.wrong, meter.count));
}

}  // namespace ssmjit
