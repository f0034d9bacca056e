// The launch of a replay step.
#include <map>

#include "codegen/chain_scratch.h"
#include "jit/kernel_args.h"
#include "jit/kernel_state.h"
#include "jit/launch_checks.h"

namespace ssmjit {

namespace {

constexpr const char* kNeeded = "every replay step needs it";

std::int64_t batch_of(const ReplayArgs& args) {
  return args.x.rank == 4 && args.x.shape[0] >= 0 ? args.x.shape[0] : kAny;
}

template <class Report>
void check_launch(const Wants& wants, const ReplayArgs& args, Report&& report) {
  if (wants.op != Op::replay) {
    report([&] { return wrong_args("ReplayArgs", wants.op); });
    return;
  }
  if (!check_version(args, report)) return;  // nothing behind it can be trusted
  const std::int64_t batch = batch_of(args);
  if (batch > kMostRows)
    report(
        [&] { return fmt::format("x: got {} requests; a launch takes up to {}: split the batch", batch, kMostRows); });
  const std::int64_t slots = args.state.rank == 4 && args.state.shape[0] >= 0 ? args.state.shape[0] : kAny;
  const std::int64_t T = wants.tokens;

  const auto check = [&](const Tensor& tensor, const TensorWants& tensor_wants, bool wanted = true,
                         const char* reader = kNeeded) {
    if (check_given(tensor_wants.name, is_given(tensor), wanted, reader, report))
      check_tensor(tensor, tensor_wants, report);
  };
  // What is kept from step to step, a slot apart.
  const auto pool = [&](const Tensor& tensor, const char* name, DType dtype, int rank,
                        const std::array<std::int64_t, kMostDimensions>& shape, Align align) {
    check(tensor, {.name = name,
                   .dtype = dtype,
                   .rank = rank,
                   .shape = shape,
                   .align = align,
                   .rows_apart = true,
                   .rows = {"slot", ""},
                   .most_stride = kMostIntStride});
  };
  pool(args.state, "state", wants.state, 4, {kAny, wants.nheads, wants.head_dim, wants.dstate}, Align::vector_rows);
  pool(args.old_x, "old_x", wants.input, 4, {slots, T, wants.nheads, wants.head_dim}, Align::vector_rows);
  pool(args.old_B, "old_B", wants.input, 5, {slots, 2, T, wants.ngroups, wants.dstate}, Align::vector_rows);
  pool(args.old_dt, "old_dt", DType::f32, 4, {slots, 2, wants.nheads, T}, Align::element);
  pool(args.old_cumAdt, "old_cumAdt", DType::f32, 4, {slots, 2, wants.nheads, T}, Align::element);
  check(args.cache_buf_idx, {"cache_buf_idx", DType::i32, 1, {slots}});
  check(args.prev_num_accepted_tokens, {"prev_num_accepted_tokens", DType::i32, 1, {slots}});

  constexpr const char* kRead = "the description's maths reads it";
  const auto tokens = [&](const Tensor& tensor, const char* name, DType dtype, int rank,
                          const std::array<std::int64_t, kMostDimensions>& shape, Align align, bool wanted = true,
                          const char* reader = kNeeded, bool written = false) {
    TensorWants tensor_wants{.name = name, .dtype = dtype, .rank = rank, .shape = shape, .align = align, .strided = 2};
    if (rank == 3) tensor_wants.or_expanded = kOrExpandedHeads;
    tensor_wants.rows_apart = written;
    tensor_wants.most_stride = kMostIntStride;
    check(tensor, tensor_wants, wanted, reader);
  };
  const std::array<std::int64_t, kMostDimensions> of_x = {batch, T, wants.nheads, wants.head_dim};
  const std::array<std::int64_t, kMostDimensions> of_B = {batch, T, wants.ngroups, wants.dstate};
  tokens(args.x, "x", wants.input, 4, of_x, Align::vector_rows);
  tokens(in_front_of({wants.head_dim}, args.dt), "dt", wants.dt, 3, {batch, T, wants.nheads}, Align::element);
  check(in_front_of({wants.head_dim, wants.dstate}, args.A),
        {.name = "A", .dtype = DType::f32, .rank = 1, .shape = {wants.nheads}, .or_expanded = kOrExpandedA});
  tokens(args.B, "B", wants.input, 4, of_B, Align::vector_rows);
  tokens(args.C, "C", wants.input, 4, of_B, Align::vector_rows);
  const auto weight = [&](const Tensor& tensor, const char* name, bool wanted) {
    check(in_front_of({wants.head_dim}, tensor),
          {.name = name, .dtype = wants.weight, .rank = 1, .shape = {wants.nheads}, .or_expanded = kOrExpandedHeads},
          wanted, kRead);
  };
  weight(args.D, "D", wants.has_D);
  weight(args.dt_bias, "dt_bias", wants.has_dt_bias);
  tokens(args.z, "z", wants.input, 4, of_x, Align::vector_rows, wants.has_z, kRead);
  tokens(args.out, "out", wants.input, 4, of_x, Align::vector_rows, true, kNeeded, true);
  check_seeds(args.rand_seed, slots, wants.is_stochastic, report);

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

std::vector<std::string> find_problems(const Wants& wants, const ReplayArgs& args) {
  std::vector<std::string> found;
  check_launch(wants, args, [&](auto&& sentence) { found.push_back(sentence()); });
  return found;
}

// Checked mode: what only the device's memory tells. Waits for all work on the stream.
void check_memory(const Driver& driver, const Wants& wants, const ReplayArgs& args, std::int64_t batch,
                  CUstream stream) {
  wait_to_check(driver, stream);
  const std::int64_t slots = args.state.shape[0];
  std::vector<std::string> wrong;
  const std::vector<std::int64_t> slot_of =
      read_slots(driver, "state_batch_indices", args.state_batch_indices, batch, slots, args.pad_slot_id, wrong);
  const std::vector<std::int64_t> buffer = read_integers(driver, args.cache_buf_idx, slots);
  const std::vector<std::int64_t> accepted = read_integers(driver, args.prev_num_accepted_tokens, slots);
  std::map<std::int64_t, std::size_t> writer;  // slot -> row
  for (std::size_t row = 0; row < slot_of.size(); ++row) {
    const std::int64_t slot = slot_of[row];
    if (is_pad(slot, args.pad_slot_id) || slot >= slots) continue;
    const auto [first, is_first] = writer.emplace(slot, row);
    if (!is_first) {
      wrong.push_back(same_slot_twice("state_batch_indices", first->second, row, slot));
      continue;
    }
    const auto in_range = [&](const char* name, std::int64_t value, std::int64_t most) {
      if (value < 0 || value > most)
        wrong.push_back(fmt::format("{}[{}] is {}, of row {}; wants 0 to {}", name, slot, value, row, most));
    };
    in_range("cache_buf_idx", buffer[static_cast<std::size_t>(slot)], 1);
    in_range("prev_num_accepted_tokens", accepted[static_cast<std::size_t>(slot)], wants.tokens);
  }
  if (!wrong.empty()) fail(ErrorKind::invalid, "{}", lines_of(wrong));
}

void check_scratch(const ReplayArgs& args, std::int64_t bytes, std::int64_t batch) {
  const Tensor& scratch = args.scratch;
  if (scratch.data == nullptr)
    fail(ErrorKind::invalid, "scratch: not given; a replay by two launches of {} rows wants {} bytes (scratch_bytes())",
         batch, bytes);
  if (scratch.rank != 1 || scratch.dtype != DType::i8 || scratch.shape[0] < bytes)
    fail(ErrorKind::invalid,
         "scratch: got {} of shape {}; a replay by two launches of {} rows wants int8 of shape [{}] "
         "or more",
         name(scratch.dtype), shape_text(scratch.shape, scratch.rank), batch, bytes);
  if (!is_aligned(scratch.data, kScratchAlign))
    fail(ErrorKind::invalid, "scratch: base address {} is not a multiple of {} bytes", fmt::ptr(scratch.data),
         kScratchAlign);
}

[[noreturn, gnu::cold, gnu::noinline]] void refuse(const Wants& wants, const ReplayArgs& args) {
  fail(ErrorKind::invalid, "{}", lines_of(find_problems(wants, args)));
}

}  // namespace

device_args::RingArgs to_device(const ReplayArgs& args, Pdl pdl) {
  RingArgs ring;
  ring.state = args.state;
  ring.x_ring = args.old_x;
  ring.B_ring = args.old_B;
  ring.dt_ring = args.old_dt;
  ring.ring_start = args.cache_buf_idx;
  ring.ring_count = args.prev_num_accepted_tokens;
  ring.x = args.x;
  ring.dt = args.dt;
  ring.A = args.A;
  ring.B = args.B;
  ring.C = args.C;
  ring.D = args.D;
  ring.dt_bias = args.dt_bias;
  ring.z = args.z;
  ring.out = args.out;
  ring.state_batch_indices = args.state_batch_indices;
  ring.rand_seed = args.rand_seed;
  ring.pad_slot_id = args.pad_slot_id;
  device_args::RingArgs device = to_device(ring, pdl);
  device.sum_ring = static_cast<float*>(const_cast<void*>(args.old_cumAdt.data));
  device.sum_ring_stride = static_cast<int>(stride_of(args.old_cumAdt, 0));
  device.weights = static_cast<unsigned char*>(const_cast<void*>(args.scratch.data));
  return device;
}

Pdl pdl_behind_precompute(const Plan& plan, const ReplayArgs& args, Pdl pdl) {
  if (!args.internal_pdl) return Pdl::off;
  // What is in front of the first launch may still write the state, unless it has ended or the caller says that it
  // does not.
  return pdl == Pdl::off || (pdl == Pdl::early_state && plan.early_state) ? Pdl::early_state : Pdl::wait_first;
}

void Kernel::launch(const ReplayArgs& args, void* stream) const {
  if (state_ == nullptr) [[unlikely]]
    State::refuse_empty();
  const State& state = *state_;
  bool fits = true;
  check_launch(state.wants, args, [&](auto&&) { fits = false; });
  if (!fits) [[unlikely]]
    refuse(state.wants, args);
  const std::int64_t batch = batch_of(args);
  if (batch == 0) return;
  const auto cu_stream = static_cast<CUstream>(stream);
  if (args.checked) [[unlikely]]
    check_memory(state.module.driver(), state.wants, args, batch, cu_stream);
  const Pdl pdl = state.has_pdl ? args.pdl : Pdl::off;
  device_args::RingArgs device = to_device(args, pdl);
  if (state.parts.size() > 1) check_scratch(args, replay_scratch_bytes(state.description, batch), batch);
  state.launch(&device, batch, pdl, cu_stream);
  if (state.parts.size() == 1) return;
  const Pdl behind = state.has_pdl ? pdl_behind_precompute(state.plan, args, pdl) : Pdl::off;
  device.pdl = device_pdl(behind);
  state.launch(&device, batch, behind, cu_stream, 1);
}

std::vector<std::string> Kernel::problems(const Description& description, const ReplayArgs& args) {
  return find_problems(Wants(description), args);
}

}  // namespace ssmjit
