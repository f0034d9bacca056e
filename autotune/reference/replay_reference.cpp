#include "autotune/reference/replay_reference.h"

#include <algorithm>

#include "autotune/host_numbers.h"

namespace ssmjit {
namespace {

Tensor moved(const Tensor& tensor, std::int64_t elements) {
  Tensor out = tensor;
  out.data = static_cast<const std::byte*>(tensor.data) + elements * size_bytes(tensor.dtype);
  return out;
}

}  // namespace

std::int64_t old_x_at(const ReplayArgs& args, std::int64_t slot, int t, std::int64_t head) {
  return slot * args.old_x.stride[0] + t * args.old_x.stride[1] + head * args.old_x.stride[2];
}
std::int64_t old_B_at(const ReplayArgs& args, std::int64_t slot, int buffer, int t, std::int64_t group) {
  return slot * args.old_B.stride[0] + buffer * args.old_B.stride[1] + t * args.old_B.stride[2] +
         group * args.old_B.stride[3];
}
std::int64_t old_sum_at(const Tensor& tensor, std::int64_t slot, int buffer, std::int64_t head, int t) {
  return slot * tensor.stride[0] + buffer * tensor.stride[1] + head * tensor.stride[2] + t * tensor.stride[3];
}

ReplayRequest replay_request(const Description& d, const ReplayArgs& args, std::int64_t request, const Reader& read) {
  ReplayRequest r;
  RingRequest& rows = r.rows;
  rows.tokens = d.token_count;
  rows.slot =
      args.state_batch_indices.data != nullptr ? stored_index(args.state_batch_indices, request, read) : request;
  rows.live = rows.slot >= 0 && rows.slot < args.state.shape[0] && rows.slot != args.pad_slot_id;
  if (!rows.live) return r;
  const auto cursor = [&](const Tensor& t, int most) {
    return static_cast<int>(std::clamp<std::int64_t>(stored_index(t, rows.slot, read), 0, most));
  };
  r.buffer = cursor(args.cache_buf_idx, 1);
  rows.count = cursor(args.prev_num_accepted_tokens, d.token_count);
  rows.flush = true;
  return r;
}

RingArgs replay_as_ring(const ReplayArgs& a, const ReplayRequest& of) {
  RingArgs r;
  r.state = a.state;
  const auto transposed = [](const Tensor& tensor, const Tensor& from, std::size_t token, std::size_t head) {
    Tensor out = tensor;
    out.rank = 4;
    out.shape = {from.shape[0], from.shape[head], from.shape[token], from.shape[head + 1]};
    out.stride = {from.stride[0], from.stride[head], from.stride[token], 1};
    return out;
  };
  r.x_ring = transposed(a.old_x, a.old_x, 1, 2);
  r.B_ring = transposed(moved(a.old_B, of.buffer * a.old_B.stride[1]), a.old_B, 2, 3);
  r.dt_ring = moved(a.old_dt, of.buffer * a.old_dt.stride[1]);
  r.dt_ring.rank = 3;
  r.dt_ring.shape = {a.old_dt.shape[0], a.old_dt.shape[2], a.old_dt.shape[3]};
  r.dt_ring.stride = {a.old_dt.stride[0], a.old_dt.stride[2], 1};
  r.x = a.x;
  r.dt = a.dt;
  r.A = a.A;
  r.B = a.B;
  r.C = a.C;
  r.D = a.D;
  r.dt_bias = a.dt_bias;
  r.z = a.z;
  r.out = a.out;
  r.state_batch_indices = a.state_batch_indices;
  r.rand_seed = a.rand_seed;
  r.pad_slot_id = a.pad_slot_id;
  return r;
}

Description replay_as_ring(const Description& description) {
  Description ring = description;
  return ring.store(Ring{.window = description.token_count});
}

RingHead replay_reference(const Description& d, const ReplayArgs& args, std::int64_t request, const ReplayRequest& of,
                          int head, const Reader& read) {
  RingOperands operands = ring_operands(d);
  operands.stored_first = false;
  return ring_reference(replay_as_ring(d), replay_as_ring(args, of), request, of.rows, head, operands, read);
}

}  // namespace ssmjit
