// The launch of an update in place.
#include <map>
#include <utility>

#include "jit/kernel_args.h"
#include "jit/kernel_state.h"
#include "jit/launch_checks.h"

namespace ssmjit {

namespace {

constexpr const char* kScaleReader = "a state of int8, fp8 or int16 has a scale for each row";

template <class Report>
void check_launch(const Wants& wants, const UpdateArgs& args, Report&& report) {
  if (wants.op != Op::update) {
    report([&] { return wrong_args("UpdateArgs", wants.op); });
    return;
  }
  if (!check_version(args, report)) return;  // nothing behind it can be trusted
  constexpr const char* kNeeded = "every update needs it";
  std::int64_t batch = kAny;
  if (args.x.rank == 3 && args.x.shape[0] >= 0) batch = args.x.shape[0];
  if (batch > kMostRows)
    report([&] { return fmt::format("x: got {} rows; a launch takes up to {}: split the batch", batch, kMostRows); });

  const Align rows = wants.aligned_rows ? Align::vector_rows : Align::element;
  const auto needed = [&](const Tensor& tensor, const TensorWants& tensor_wants)
                          SSMJIT_INLINE_LAMBDA { check_given_tensor(tensor, tensor_wants, true, kNeeded, report); };
  const auto optional = [&](const Tensor& tensor, const TensorWants& tensor_wants, bool wanted) SSMJIT_INLINE_LAMBDA {
    check_given_tensor(tensor, tensor_wants, wanted, "the description's maths reads it", report);
  };
  // The state's rules are the kernel's own: whole 16-byte vectors, whatever aligned_rows says.
  needed(args.state, {.name = "state",
                      .dtype = wants.state,
                      .rank = 4,
                      .shape = {kAny, wants.nheads, wants.head_dim, wants.dstate},
                      .align = Align::vector_rows,
                      .rows_apart = true,
                      .rows = {"slot", ""}});
  const std::int64_t slots = args.state.rank == 4 && args.state.shape[0] >= 0 ? args.state.shape[0] : kAny;
  if (check_given("state_scale", is_given(args.state_scale), wants.has_state_scale, kScaleReader, report))
    check_tensor(args.state_scale,
                 {.name = "state_scale",
                  .dtype = DType::f32,
                  .rank = 3,
                  .shape = {slots, wants.nheads, wants.head_dim},
                  .align = Align::vector_rows,
                  .rows_apart = true,
                  .rows = {"slot", ""}},
                 report);
  check_seeds(args.rand_seed, slots, wants.is_stochastic, report);
  needed(args.x, {"x", wants.input, 3, {batch, wants.nheads, wants.head_dim}, rows, false, 1, {"row", ""}, true});
  needed(args.dt, {.name = "dt",
                   .dtype = wants.dt,
                   .rank = 2,
                   .shape = {batch, wants.nheads},
                   .or_expanded = kOrExpandedHeads,
                   .behind = {wants.head_dim}});
  needed(args.A, {.name = "A",
                  .dtype = DType::f32,
                  .rank = 1,
                  .shape = {wants.nheads},
                  .or_expanded = kOrExpandedA,
                  .behind = {wants.head_dim, wants.dstate}});
  needed(args.B, {"B", wants.input, 3, {batch, wants.ngroups, wants.dstate}, rows, false, 1, {"row", ""}, true});
  needed(args.C, {"C", wants.input, 3, {batch, wants.ngroups, wants.dstate}, rows, false, 1, {"row", ""}, true});
  const auto weight = [&](const Tensor& tensor, const char* name, bool wanted) SSMJIT_INLINE_LAMBDA {
    optional(tensor,
             {.name = name,
              .dtype = wants.weight,
              .rank = 1,
              .shape = {wants.nheads},
              .or_expanded = kOrExpandedHeads,
              .behind = {wants.head_dim}},
             wanted);
  };
  weight(args.D, "D", wants.has_D);
  weight(args.dt_bias, "dt_bias", wants.has_dt_bias);
  optional(args.z, {"z", wants.input, 3, {batch, wants.nheads, wants.head_dim}}, wants.has_z);
  needed(args.out, {"out", wants.input, 3, {batch, wants.nheads, wants.head_dim}, Align::element, true});

  const bool indexed = is_given(args.state_batch_indices);
  const bool redirected = is_given(args.dst_state_batch_indices);
  if (indexed)
    check_indices_shape("state_batch_indices", args.state_batch_indices, batch, report);
  else
    check_slot_of_each_row(args.state, batch, report);
  if (redirected && !wants.has_destination)
    report([] {
      return std::string(
          "dst_state_batch_indices: given, but the description has no destination slots; leave it out, or "
          "describe the kernel with destination_slots()");
    });
  else if (redirected)
    check_indices_shape("dst_state_batch_indices", args.dst_state_batch_indices, batch, report);
  if (indexed && redirected && args.state_batch_indices.dtype != args.dst_state_batch_indices.dtype)
    report([&] {
      return fmt::format("dst_state_batch_indices: got dtype {}; wants {}, as state_batch_indices",
                         name(args.dst_state_batch_indices.dtype), name(args.state_batch_indices.dtype));
    });
  for (const auto& [name_, tensor] : {std::pair("num_accepted_tokens", &args.num_accepted_tokens),
                                      {"intermediate_states", &args.intermediate_states},
                                      {"intermediate_state_scales", &args.intermediate_state_scales},
                                      {"intermediate_state_indices", &args.intermediate_state_indices},
                                      {"retrieve_parent_token", &args.retrieve_parent_token},
                                      {"cu_seqlens", &args.cu_seqlens}})
    if (tensor->data != nullptr)
      report([&, name_ = name_] {
        return fmt::format("{}: given, but the description is of one token in place; leave it out", name_);
      });
  if (args.disable_state_update && !redirected)
    report([] {
      return std::string(
          "disable_state_update: got true, but the new state goes nowhere else; wants false, or a description with "
          "snapshots or slots");
    });
  check_pdl(args.pdl, report);
}

std::vector<std::string> find_problems(const Wants& wants, const UpdateArgs& args) {
  if (wants.token_kernel) return token_problems(wants, args);
  std::vector<std::string> found;
  check_launch(wants, args, [&](auto&& sentence) { found.push_back(sentence()); });
  return found;
}

// Checked mode: what only the device's memory tells. Waits for all work on the stream.
void check_memory(const Driver& driver, const Wants& wants, const UpdateArgs& args, std::int64_t batch,
                  CUstream stream) {
  const bool redirected = is_given(args.dst_state_batch_indices);
  wait_to_check(driver, stream);
  if (wants.token_kernel) {
    const std::vector<std::string> found = token_memory_problems(driver, wants, args, batch);
    if (!found.empty()) fail(ErrorKind::invalid, "{}", lines_of(found));
    return;
  }
  const std::int64_t slots = args.state.shape[0];
  std::vector<std::string> wrong;
  const std::vector<std::int64_t> source =
      read_slots(driver, "state_batch_indices", args.state_batch_indices, batch, slots, args.pad_slot_id, wrong);
  const std::vector<std::int64_t> target =
      redirected ? read_slots(driver, "dst_state_batch_indices", args.dst_state_batch_indices, batch, slots,
                              args.pad_slot_id, wrong)
                 : source;

  const char* written_by = redirected ? "dst_state_batch_indices" : "state_batch_indices";
  std::map<std::int64_t, std::size_t> writer;  // slot -> row
  for (std::size_t row = 0; row < target.size(); ++row) {
    if (is_pad(source[row], args.pad_slot_id) || is_pad(target[row], args.pad_slot_id)) continue;
    const auto [first, is_first] = writer.emplace(target[row], row);
    if (!is_first) wrong.push_back(same_slot_twice(written_by, first->second, row, target[row]));
  }
  if (redirected)
    for (std::size_t row = 0; row < source.size(); ++row) {
      if (is_pad(source[row], args.pad_slot_id)) continue;
      const auto found = writer.find(source[row]);
      if (found != writer.end() && found->second != row)
        wrong.push_back(fmt::format("row {} reads slot {}, which row {} of the same launch writes", row, source[row],
                                    found->second));
    }
  if (!wrong.empty()) fail(ErrorKind::invalid, "{}", lines_of(wrong));
}

[[noreturn, gnu::cold, gnu::noinline]] void refuse(const Wants& wants, const UpdateArgs& args) {
  fail(ErrorKind::invalid, "{}", lines_of(find_problems(wants, args)));
}

}  // namespace

device_args::UpdateArgs to_device(const UpdateArgs& args, Pdl pdl) {
  const bool indexed = args.state_batch_indices.data != nullptr;
  const bool redirected = args.dst_state_batch_indices.data != nullptr;
  const Tensor& any_indices = indexed ? args.state_batch_indices : args.dst_state_batch_indices;
  device_args::UpdateArgs device{};
  device.state = const_cast<void*>(args.state.data);
  device.slots = args.state.shape[0];
  device.state_stride = stride_of(args.state, 0);
  device.x = args.x.data;
  device.x_stride = stride_of(args.x, 0);
  device.z = args.z.data;
  device.z_stride = stride_of(args.z, 0);
  device.dt = args.dt.data;
  device.dt_stride = stride_of(args.dt, 0);
  device.B = args.B.data;
  device.B_stride = stride_of(args.B, 0);
  device.C = args.C.data;
  device.C_stride = stride_of(args.C, 0);
  device.A = args.A.data;
  device.D = args.D.data;
  device.dt_bias = args.dt_bias.data;
  device.out = const_cast<void*>(args.out.data);
  device.out_stride = stride_of(args.out, 0);
  device.state_batch_indices = args.state_batch_indices.data;
  device.index_stride = stride_of(args.state_batch_indices, 0);
  device.dst_state_batch_indices = args.dst_state_batch_indices.data;
  device.dst_index_stride = stride_of(args.dst_state_batch_indices, 0);
  device.pad_slot_id = args.pad_slot_id;
  device.wide_indices = (indexed || redirected) && any_indices.dtype == DType::i64 ? 1 : 0;
  device.pdl = device_pdl(pdl);
  return device;
}

device_args::UpdateRoundedArgs rounded_to_device(const UpdateArgs& args, Pdl pdl) {
  device_args::UpdateRoundedArgs device{};
  device.update = to_device(args, pdl);
  device.state_scale = static_cast<float*>(const_cast<void*>(args.state_scale.data));
  device.state_scale_stride = stride_of(args.state_scale, 0);
  device.rand_seed = static_cast<const long long*>(args.rand_seed.data);
  device.seed_stride = stride_of(args.rand_seed, 0);
  device.nheads = args.x.shape[1];
  return device;
}

void Kernel::launch(const UpdateArgs& args, void* stream) const {
  if (state_ == nullptr) [[unlikely]]
    State::refuse_empty();
  const State& state = *state_;
  const bool tokens = state.wants.token_kernel;
  bool fits = true;
  if (tokens)
    fits = tokens_fit(state.wants, args);
  else
    check_launch(state.wants, args, [&](auto&&) { fits = false; });
  if (!fits) [[unlikely]]
    refuse(state.wants, args);
  const std::int64_t batch = tokens ? token_batch(state.wants, args) : args.x.shape[0];
  if (batch == 0) return;
  const auto cu_stream = static_cast<CUstream>(stream);
  if (args.checked) [[unlikely]]
    check_memory(state.module.driver(), state.wants, args, batch, cu_stream);
  const Pdl pdl = state.has_pdl ? args.pdl : Pdl::off;
  if (tokens) {
    device_args::UpdateTokensArgs device = tokens_to_device(state.description, args, pdl);
    state.launch(&device, batch, pdl, cu_stream);
    return;
  }
  if (state.wants.has_state_scale || state.wants.is_stochastic) {
    device_args::UpdateRoundedArgs device = rounded_to_device(args, pdl);
    state.launch(&device, batch, pdl, cu_stream);
    return;
  }
  device_args::UpdateArgs device = to_device(args, pdl);
  state.launch(&device, batch, pdl, cu_stream);
}

std::vector<std::string> Kernel::problems(const Description& description, const UpdateArgs& args) {
  return find_problems(Wants(description), args);
}

}  // namespace ssmjit
