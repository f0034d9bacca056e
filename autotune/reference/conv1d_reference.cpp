#include "autotune/reference/conv1d_reference.h"

#include <algorithm>
#include <cmath>

#include "autotune/host_numbers.h"

namespace ssmjit {

ConvRequest conv_request(const Description& d, const Conv1dArgs& args, std::int64_t row, const Reader& read) {
  const Conv& conv = *d.conv;
  const int length = d.conv_state_len();
  const auto usable = [&](std::int64_t i, std::int64_t slots) { return i >= 0 && i < slots && i != args.pad_slot_id; };
  const auto or_nowhere = [&](std::int64_t i, std::int64_t slots) { return usable(i, slots) ? i : -1; };
  ConvRequest r;
  r.slot = args.state_batch_indices.data != nullptr ? stored_index(args.state_batch_indices, row, read) : row;
  r.live = usable(r.slot, args.conv_state.shape[0]);
  r.first = length - (conv.width - 1);
  if (conv.has_accepted) {
    const std::int64_t accepted = stored_index(args.num_accepted_tokens, row, read);
    r.first = static_cast<int>(std::clamp<std::int64_t>(accepted, 1, d.token_count)) - 1;
  }
  if (conv.store == ConvStore::circular) {
    const std::int64_t next = ((stored_index(args.cache_seqlens, row, read) % length) + length) % length;
    r.first = static_cast<int>((next + length - (conv.width - 1)) % length);
  }
  if (conv.keep == ConvKeep::slots)
    for (int t = 0; t < d.token_count; ++t) {
      Tensor column = args.output_state_indices;
      if (column.rank == 2)
        column.data = static_cast<const std::byte*>(column.data) + t * column.stride[1] * size_bytes(column.dtype);
      r.targets.push_back(r.live ? or_nowhere(stored_index(column, row, read), args.conv_state.shape[0]) : -1);
    }
  if (conv.keep == ConvKeep::snapshots && r.live) {
    const bool given = args.intermediate_state_indices.data != nullptr;
    r.snapshot = or_nowhere(given ? stored_index(args.intermediate_state_indices, row, read) : r.slot,
                            args.intermediate_states.shape[0]);
  }
  return r;
}

std::int64_t conv_state_at(const Description& d, const Conv1dArgs& args, std::int64_t slot, std::int64_t channel,
                           int entry) {
  return slot * args.conv_state.stride[0] + (d.conv->channels_last ? entry * std::int64_t{d.conv_channels()} + channel
                                                                   : channel * d.conv_state_len() + entry);
}

std::int64_t conv_token_at(const Tensor& t, std::int64_t row, int token, std::int64_t channel) {
  return row * t.stride[0] + (t.rank == 3 ? token * t.stride[1] : 0) + channel;
}

ConvChannel conv1d_reference(const Description& d, const Conv1dArgs& args, std::int64_t row, std::int64_t channel,
                             const ConvRequest& request, const Reader& read) {
  const Conv& conv = *d.conv;
  const int length = d.conv_state_len(), before = conv.width - 1;
  ConvChannel result;
  for (int i = 0; i < before; ++i) {
    double v = 0;
    if (request.live) {
      const int entry = conv.store == ConvStore::circular ? (request.first + i) % length : request.first + i;
      v = stored_value(args.conv_state, conv_state_at(d, args, request.slot, channel, entry), read);
    }
    result.stream.push_back(v);
  }
  for (int t = 0; t < d.token_count; ++t)
    result.stream.push_back(rounded(d.state_dtype, stored_value(args.x, conv_token_at(args.x, row, t, channel), read)));

  const double bias = conv.has_bias ? stored_value(args.bias, channel, read) : 0;
  const std::vector<double> w = stored_values(args.w, channel * conv.width, conv.width, read);
  for (int t = 0; t < d.token_count; ++t) {
    double sum = bias, terms = bias * bias;
    for (int k = 0; k < conv.width; ++k) {
      const double product = w[static_cast<std::size_t>(k)] * result.stream[static_cast<std::size_t>(t + k)];
      sum += product;
      terms += product * product;
    }
    LeafValues leaf{};
    leaf[static_cast<std::size_t>(Leaf::x)] = sum;
    result.y.push_back(conv.activation_expr.empty() ? sum : conv.activation_expr.evaluate(leaf));
    result.y_terms.push_back(std::sqrt(terms));
  }
  return result;
}

std::vector<ConvWrite> conv_writes(const Description& d, const Conv1dArgs& args, std::int64_t channel,
                                   const ConvRequest& request) {
  const Conv& conv = *d.conv;
  const int length = d.conv_state_len(), T = d.token_count;
  std::vector<ConvWrite> writes;
  if (!request.live) return writes;
  if (conv.store == ConvStore::circular) {
    const int next = request.first + conv.width - 1;
    for (int t = std::max(0, T - length); t < T; ++t)
      writes.push_back({false, conv_state_at(d, args, request.slot, channel, (next + t) % length), true, t});
    return writes;
  }
  // Entries in front of the tokens: all of the state, or up to the history that was accepted.
  const int old = conv.has_accepted ? request.first + conv.width - 1 : length;
  const auto copy = [&](bool snapshot, std::int64_t at, int place) {
    writes.push_back({snapshot, at, place >= old, place >= old ? place - old : place});
  };
  const auto window = [&](std::int64_t slot, int entries, int end) {
    for (int j = 0; j < entries; ++j) copy(false, conv_state_at(d, args, slot, channel, j), end - entries + j);
  };
  if (conv.keep == ConvKeep::slots) {
    for (int t = 0; t < T; ++t)
      if (request.targets[static_cast<std::size_t>(t)] >= 0)
        window(request.targets[static_cast<std::size_t>(t)], length, old + t + 1);
    return writes;
  }
  window(request.slot, conv.has_accepted ? conv.width - 1 + T - 1 : length, old + T);
  if (conv.keep == ConvKeep::snapshots && request.snapshot >= 0) {
    const Tensor& to = args.intermediate_states;
    const int entries = d.conv_snapshot_len();
    for (int t = 0; t < T; ++t)
      for (int j = 0; j < entries; ++j)
        copy(true,
             request.snapshot * to.stride[0] + t * to.stride[1] +
                 (conv.channels_last ? j * std::int64_t{d.conv_channels()} + channel : channel * entries + j),
             old + t + 1 - entries + j);
  }
  return writes;
}

}  // namespace ssmjit
