// The launch of a ring step.
#include <cstddef>
#include <map>

#include "jit/kernel_args.h"
#include "jit/kernel_state.h"
#include "jit/launch_checks.h"

namespace ssmjit {

namespace {

constexpr const char* kNeeded = kRingNeeds;

// Whether a varlen tensor is [1, total, ...] and not [total, ...]. `inner`: the dimensions behind the tokens.
bool has_leading_one(const Tensor& tensor, int inner) { return tensor.rank == inner + 2; }

std::int64_t batch_of(const Wants& wants, const RingArgs& args) {
  if (wants.is_varlen)
    return args.cu_seqlens.rank == 1 && args.cu_seqlens.shape[0] >= 1 ? args.cu_seqlens.shape[0] - 1 : kAny;
  return args.x.rank == 4 && args.x.shape[0] >= 0 ? args.x.shape[0] : kAny;
}

// Of all requests together.
std::int64_t total_tokens(const RingArgs& args) {
  if (args.x.rank != 3 && args.x.rank != 4) return kAny;
  const std::int64_t total = args.x.shape[has_leading_one(args.x, 2) ? 1 : 0];
  return total >= 0 ? total : kAny;
}

// Makes what is wanted of a tensor of requests' tokens what is wanted with varlen: all of them together.
void pack(const Tensor& tensor, std::int64_t total, TensorWants& wants) {
  const int inner = wants.rank - 2;
  if (has_leading_one(tensor, inner)) {
    wants.shape[0] = 1;
    wants.shape[1] = total;
    return;
  }
  wants.shape[0] = total;
  std::copy(wants.shape.begin() + 2, wants.shape.end(), wants.shape.begin() + 1);
  wants.rank = inner + 1;
  wants.strided = 1;
  wants.rows = {"token", ""};
}

template <class Report>
void check_launch(const Wants& wants, const RingArgs& args, Report&& report) {
  if (wants.op != Op::ring) {
    report([&] { return wrong_args("RingArgs", wants.op); });
    return;
  }
  if (!check_version(args, report)) return;  // nothing behind it can be trusted
  const std::int64_t batch = batch_of(wants, args), total = wants.is_varlen ? total_tokens(args) : kAny;
  if (batch > kMostRows)
    report([&] {
      return fmt::format("{}: got {} requests; a launch takes up to {}: split the batch",
                         wants.is_varlen ? "cu_seqlens" : "x", batch, kMostRows);
    });
  const std::int64_t slots = args.state.rank == 4 && args.state.shape[0] >= 0 ? args.state.shape[0] : kAny;

  const auto check = [&](const Tensor& tensor, const TensorWants& tensor_wants, bool wanted, const char* reader)
                         SSMJIT_INLINE_LAMBDA { check_given_tensor(tensor, tensor_wants, wanted, reader, report); };
  check_ring_pools(wants, args, check);
  check(args.ring_start, {"ring_start", DType::i32, 1, {slots}}, true, kNeeded);
  check(args.ring_count, {"ring_count", DType::i32, 1, {slots}}, true, kNeeded);

  constexpr const char* kRead = "the description's maths reads it";
  const auto packed = [&](const Tensor& tensor, TensorWants tensor_wants, bool wanted, const char* reader) {
    pack(tensor, total, tensor_wants);
    if (check_given(tensor_wants.name, is_given(tensor), wanted, reader, report))
      check_tensor(tensor, tensor_wants, report);
  };
  const auto tokens = [&](const Tensor& tensor, const char* name, std::int64_t rows, std::int64_t columns,
                          bool wanted = true, const char* reader = kNeeded, bool written = false) SSMJIT_INLINE_LAMBDA {
    const TensorWants dense{.name = name,
                            .dtype = wants.input,
                            .rank = 4,
                            .shape = {batch, wants.tokens, rows, columns},
                            .align = Align::vector_rows,
                            .rows_apart = written,
                            .strided = 2,
                            .most_stride = kMostIntStride};
    if (wants.is_varlen)
      packed(tensor, dense, wanted, reader);
    else
      check(tensor, dense, wanted, reader);
  };
  tokens(args.x, "x", wants.nheads, wants.head_dim);
  const TensorWants dt{.name = "dt",
                       .dtype = wants.dt,
                       .rank = 3,
                       .shape = {batch, wants.tokens, wants.nheads},
                       .strided = 2,
                       .most_stride = kMostIntStride,
                       .or_expanded = kOrExpandedHeads,
                       .behind = {wants.head_dim}};
  if (wants.is_varlen)
    packed(in_front_of({wants.head_dim}, args.dt), dt, true, kNeeded);
  else
    check(args.dt, dt, true, kNeeded);
  check(args.A,
        {.name = "A",
         .dtype = DType::f32,
         .rank = 1,
         .shape = {wants.nheads},
         .or_expanded = kOrExpandedA,
         .behind = {wants.head_dim, wants.dstate}},
        true, kNeeded);
  tokens(args.B, "B", wants.ngroups, wants.dstate);
  tokens(args.C, "C", wants.ngroups, wants.dstate);
  const auto weight = [&](const Tensor& tensor, const char* name, bool wanted) SSMJIT_INLINE_LAMBDA {
    check(tensor,
          {.name = name,
           .dtype = wants.weight,
           .rank = 1,
           .shape = {wants.nheads},
           .or_expanded = kOrExpandedHeads,
           .behind = {wants.head_dim}},
          wanted, kRead);
  };
  weight(args.D, "D", wants.has_D);
  weight(args.dt_bias, "dt_bias", wants.has_dt_bias);
  tokens(args.z, "z", wants.nheads, wants.head_dim, wants.has_z, kRead);
  tokens(args.out, "out", wants.nheads, wants.head_dim, true, kNeeded, true);
  check(args.cu_seqlens, {"cu_seqlens", DType::i32, 1, {batch == kAny ? kAny : batch + 1}}, wants.is_varlen,
        "the description has varlen");
  check_seeds(args.rand_seed, slots, wants.is_stochastic, report);
  if (wants.is_varlen && args.cu_seqlens.rank == 1 && args.cu_seqlens.shape[0] < 1)
    report([&] { return fmt::format("cu_seqlens: shape [{}]; wants [batch + 1]", args.cu_seqlens.shape[0]); });
  if (total > kMostIntStride)
    report([&] { return fmt::format("x: got {} tokens; a launch takes up to {}", total, kMostIntStride); });

  if (is_given(args.state_batch_indices)) {
    check_indices_shape("state_batch_indices", args.state_batch_indices, batch, report);
    if (stride_of(args.state_batch_indices, 0) > kMostIntStride / 2)
      report([&] {
        return fmt::format("state_batch_indices: stride {} elements; wants {} at most",
                           args.state_batch_indices.stride[0], kMostIntStride / 2);
      });
  } else {
    check_slot_of_each_row(args.state, batch, report);
  }
  check_pdl(args.pdl, report);
}

std::vector<std::string> find_problems(const Wants& wants, const RingArgs& args) {
  std::vector<std::string> found;
  check_launch(wants, args, [&](auto&& sentence) { found.push_back(sentence()); });
  return found;
}

// The first of a slot's rows in use, the oldest being 0, that no step has written since the slot was reset, by what
// reset leaves in the ring of deltas (device_args::kNeverStepped); -1: none. The first head stands for all.
int never_stepped(const Driver& driver, const Tensor& dt_ring, std::int64_t slot, std::int64_t start,
                  std::int64_t count) {
  std::vector<std::uint32_t> bits(static_cast<std::size_t>(dt_ring.shape[2]));
  const std::byte* row = static_cast<const std::byte*>(dt_ring.data) + slot * stride_of(dt_ring, 0) * 4;
  driver.check(driver.copy_to_host(bits.data(), reinterpret_cast<CUdeviceptr>(row), bits.size() * 4), "cuMemcpyDtoH");
  for (std::int64_t j = 0; j < count; ++j)
    if (bits[static_cast<std::size_t>((start + j) % dt_ring.shape[2])] == device_args::kNeverStepped)
      return static_cast<int>(j);
  return -1;
}

// Checked mode: what only the device's memory tells. Waits for all work on the stream.
void check_memory(const Driver& driver, const Wants& wants, const RingArgs& args, std::int64_t batch, CUstream stream) {
  wait_to_check(driver, stream);
  const std::vector<std::string> wrong = memory_problems(driver, wants, args, batch);
  if (!wrong.empty()) fail(ErrorKind::invalid, "{}", lines_of(wrong));
}

[[noreturn, gnu::cold, gnu::noinline]] void refuse(const Wants& wants, const RingArgs& args) {
  fail(ErrorKind::invalid, "{}", lines_of(find_problems(wants, args)));
}

}  // namespace

std::vector<std::string> memory_problems(const Driver& driver, const Wants& wants, const RingArgs& args,
                                         std::int64_t batch) {
  const std::int64_t slots = args.state.shape[0];
  std::vector<std::string> wrong;
  const std::vector<std::int64_t> slot_of =
      read_slots(driver, "state_batch_indices", args.state_batch_indices, batch, slots, args.pad_slot_id, wrong);
  const std::vector<std::int64_t> start = read_integers(driver, args.ring_start, slots);
  const std::vector<std::int64_t> count = read_integers(driver, args.ring_count, slots);
  // A request without tokens reads and writes nothing.
  std::vector<std::int64_t> first_of;
  if (wants.is_varlen) first_of = read_integers(driver, args.cu_seqlens, batch + 1);
  std::map<std::int64_t, std::size_t> writer;  // slot -> row
  for (std::size_t row = 0; row < slot_of.size(); ++row) {
    const std::int64_t slot = slot_of[row];
    if (is_pad(slot, args.pad_slot_id) || slot >= slots) continue;
    if (wants.is_varlen && first_of[row + 1] == first_of[row]) continue;
    const auto [first, is_first] = writer.emplace(slot, row);
    if (!is_first) {
      wrong.push_back(same_slot_twice("state_batch_indices", first->second, row, slot));
      continue;
    }
    const auto in_range = [&](const char* name, std::int64_t value, std::int64_t most) {
      if (value >= 0 && value <= most) return true;
      wrong.push_back(fmt::format("{}[{}] is {}, of row {}; wants 0 to {}", name, slot, value, row, most));
      return false;
    };
    const std::int64_t from = start[static_cast<std::size_t>(slot)], used = count[static_cast<std::size_t>(slot)];
    const bool has_start = in_range("ring_start", from, wants.length - 1);
    if (!in_range("ring_count", used, wants.window) || !has_start) continue;
    if (const int never = never_stepped(driver, args.dt_ring, slot, from, used); never >= 0)
      wrong.push_back(
          fmt::format("ring_count[{}] is {}, of row {}, but row {} in use was not written since the slot was reset; "
                      "wants the cursor of the slot's own request, which is {{0, 0}} after a reset",
                      slot, used, row, never));
  }
  if (wants.is_varlen) {
    const std::int64_t total = total_tokens(args);
    if (first_of.front() != 0) wrong.push_back(fmt::format("cu_seqlens[0] is {}; wants 0", first_of.front()));
    for (std::size_t i = 1; i < first_of.size(); ++i) {
      const std::int64_t tokens = first_of[i] - first_of[i - 1];
      if (tokens < 0)
        wrong.push_back(fmt::format("cu_seqlens[{}] is {}, below the {} in front of it; wants it never to decrease", i,
                                    first_of[i], first_of[i - 1]));
      else if (tokens > wants.tokens)
        wrong.push_back(
            fmt::format("cu_seqlens[{}] is {}, {} more than the entry in front of it; a request of this "
                        "kernel has up to {} tokens",
                        i, first_of[i], tokens, wants.tokens));
    }
    if (first_of.back() != total)
      wrong.push_back(
          fmt::format("cu_seqlens[{}] is {}; wants {}, the tokens of x", first_of.size() - 1, first_of.back(), total));
  }
  return wrong;
}

static_assert(offsetof(device_args::RingArgs, cu_seqlens) == 48 + 3 * 64, "common arguments fill four lines");

device_args::RingArgs to_device(const RingArgs& args, Pdl pdl) {
  const bool packed = args.cu_seqlens.rank != 0;
  // Between slots, between requests (0 where they are packed) and between tokens; all were found to fit an int.
  const auto slot = [](const Tensor& tensor) { return static_cast<int>(stride_of(tensor, 0)); };
  const auto request = [&](const Tensor& tensor) {
    return packed || tensor.rank == 0 ? 0 : static_cast<int>(stride_of(tensor, 0));
  };
  const auto token_of_rank = [&](const Tensor& tensor, int rank, int inner) {
    if (rank == 0) return 0;
    return static_cast<int>(stride_of(tensor, packed && rank != inner + 2 ? 0 : 1));
  };
  const auto token = [&](const Tensor& tensor, int inner) { return token_of_rank(tensor, tensor.rank, inner); };
  device_args::RingArgs device{};
  device.state = const_cast<void*>(args.state.data);
  device.slots = args.state.shape[0];
  device.state_stride = slot(args.state);
  device.state_scale = static_cast<float*>(const_cast<void*>(args.state_scale.data));
  device.state_scale_stride = slot(args.state_scale);
  device.x_ring = const_cast<void*>(args.x_ring.data);
  device.x_ring_stride = slot(args.x_ring);
  device.B_ring = const_cast<void*>(args.B_ring.data);
  device.B_ring_stride = slot(args.B_ring);
  device.dt_ring = const_cast<void*>(args.dt_ring.data);
  device.dt_ring_stride = slot(args.dt_ring);
  device.ring_start = static_cast<const int*>(args.ring_start.data);
  device.ring_count = static_cast<const int*>(args.ring_count.data);
  device.cu_seqlens = static_cast<const int*>(args.cu_seqlens.data);
  device.total_tokens = packed ? static_cast<int>(total_tokens(args)) : 0;
  device.x = args.x.data;
  device.x_stride = request(args.x);
  device.x_token_stride = token(args.x, 2);
  device.z = args.z.data;
  device.z_stride = request(args.z);
  device.z_token_stride = token(args.z, 2);
  device.dt = args.dt.data;
  device.dt_stride = request(args.dt);
  device.dt_token_stride = token_of_rank(args.dt, rank_in_front(args.dt), 1);
  device.B = args.B.data;
  device.B_stride = request(args.B);
  device.B_token_stride = token(args.B, 2);
  device.C = args.C.data;
  device.C_stride = request(args.C);
  device.C_token_stride = token(args.C, 2);
  device.A = args.A.data;
  device.D = args.D.data;
  device.dt_bias = args.dt_bias.data;
  device.out = const_cast<void*>(args.out.data);
  device.out_stride = request(args.out);
  device.out_token_stride = token(args.out, 2);
  const bool indexed = args.state_batch_indices.data != nullptr;
  const bool wide = indexed && args.state_batch_indices.dtype == DType::i64;
  device.state_batch_indices = static_cast<const int*>(indexed ? args.state_batch_indices.data : args.A.data);
  device.index_stride = indexed ? slot(args.state_batch_indices) * (wide ? 2 : 1) : 0;
  device.wide_indices = wide ? 1 : 0;
  device.indexed = indexed ? 1 : 0;
  device.pad_slot_id = args.pad_slot_id;
  device.rand_seed = static_cast<const long long*>(args.rand_seed.data);
  device.rand_seed_stride = args.rand_seed.rank == 1 && args.rand_seed.shape[0] > 1 ? 1 : 0;
  device.nheads = static_cast<int>(args.A.shape[0]);
  device.pdl = device_pdl(pdl);
  return device;
}

void Kernel::launch(const RingArgs& args, void* stream) const {
  if (state_ == nullptr) [[unlikely]]
    State::refuse_empty();
  const State& state = *state_;
  bool fits = true;
  check_launch(state.wants, args, [&](auto&&) { fits = false; });
  if (!fits) [[unlikely]]
    refuse(state.wants, args);
  const std::int64_t batch = batch_of(state.wants, args);
  if (batch == 0) return;
  const auto cu_stream = static_cast<CUstream>(stream);
  if (args.checked) [[unlikely]]
    check_memory(state.module.driver(), state.wants, args, batch, cu_stream);
  const Pdl pdl = state.has_pdl ? args.pdl : Pdl::off;
  device_args::RingArgs device = to_device(args, pdl);
  state.launch(&device, batch, pdl, cu_stream);
}

std::vector<std::string> Kernel::problems(const Description& description, const RingArgs& args) {
  return find_problems(Wants(description), args);
}

}  // namespace ssmjit
