// The launch of a convolution's step.
#include <limits>
#include <map>
#include <utility>

#include "jit/kernel_args.h"
#include "jit/kernel_state.h"
#include "jit/launch_checks.h"

namespace ssmjit {

namespace {

constexpr const char* kNeeded = "every conv1d step needs it";

constexpr std::int64_t kAnyCount = std::numeric_limits<std::int64_t>::max();

// Who writes a pool's slots.
using Writers = std::map<std::int64_t, std::size_t>;  // slot -> row

// Whether x and out have no dimension of tokens.
bool is_flat(const Wants& wants, const Tensor& tensor) { return wants.tokens == 1 && tensor.rank == 2; }

template <class Report>
void check_counts(const char* name_, const Tensor& counts, std::int64_t batch, bool wanted, const char* reader,
                  Report& report) {
  if (check_given(name_, is_given(counts), wanted, reader, report)) check_indices_shape(name_, counts, batch, report);
}

// Destinations by token: [batch, tokens], or [batch] of one token.
template <class Report>
void check_targets(const Wants& wants, const Tensor& targets, std::int64_t batch, Report& report) {
  constexpr const char* kName = "output_state_indices";
  if (wants.tokens == 1) return check_indices_shape(kName, targets, batch, report);
  if (targets.dtype != DType::i32 && targets.dtype != DType::i64) {
    report([&] { return fmt::format("{}: got dtype {}; wants int32 or int64", kName, name(targets.dtype)); });
    return;
  }
  if (targets.rank != 2 || (batch != kAny && targets.shape[0] != batch) || targets.shape[1] != wants.tokens) {
    report([&] {
      return fmt::format("{}: got shape {}; wants [{}, {}]", kName, shape_text(targets.shape, targets.rank),
                         batch == kAny ? "batch" : std::to_string(batch), wants.tokens);
    });
    return;
  }
  for (const std::size_t i : {0, 1})
    if (targets.shape[i] > 1 && targets.stride[i] < 0)
      report([&] { return fmt::format("{}: stride {}; wants 0 or more", kName, targets.stride[i]); });
  if (!is_aligned(targets.data, element_bytes(targets.dtype)))
    report([&] {
      return fmt::format("{}: base address {} is not a multiple of {} bytes", kName, fmt::ptr(targets.data),
                         size_bytes(targets.dtype));
    });
}

template <class Report>
void check_launch(const Wants& wants, const Conv1dArgs& args, Report&& report) {
  if (wants.op != Op::conv1d) {
    report([&] { return wrong_args("Conv1dArgs", wants.op); });
    return;
  }
  if (!check_version(args, report)) return;  // nothing behind it can be trusted
  const Conv& conv = wants.conv;
  const std::int64_t channels = wants.conv_channels, length = wants.conv_state_len;
  std::int64_t batch = kAny;
  if ((args.x.rank == 3 || is_flat(wants, args.x)) && args.x.shape[0] >= 0) batch = args.x.shape[0];
  if (batch > kMostRows)
    report([&] { return fmt::format("x: got {} rows; a launch takes up to {}: split the batch", batch, kMostRows); });

  const Align align = wants.aligned_rows ? Align::vector_rows : Align::element;
  const auto check = [&](const Tensor& tensor, TensorWants tensor_wants, bool wanted, const char* reader) {
    tensor_wants.align = align;
    tensor_wants.may_be_unaligned = true;
    if (check_given(tensor_wants.name, is_given(tensor), wanted, reader, report))
      check_tensor(tensor, tensor_wants, report);
  };
  const auto of_tokens = [&](const Tensor& tensor, const char* name_, bool written) {
    TensorWants tensor_wants{
        .name = name_, .dtype = wants.input, .rank = 3, .shape = {batch, wants.tokens, channels}, .strided = 2};
    if (is_flat(wants, tensor)) tensor_wants.rank = 2, tensor_wants.shape = {batch, channels}, tensor_wants.strided = 1;
    tensor_wants.rows_apart = written;
    check(tensor, tensor_wants, true, kNeeded);
  };
  const auto window = [&](std::int64_t entries) {
    return conv.channels_last ? std::pair(entries, channels) : std::pair(channels, entries);
  };
  const auto [outer, inner] = window(length);
  check(args.conv_state,
        {.name = "conv_state",
         .dtype = wants.state,
         .rank = 3,
         .shape = {kAny, outer, inner},
         .rows_apart = true,
         .rows = {"slot", ""}},
        true, kNeeded);
  of_tokens(args.x, "x", false);
  check(args.w, {.name = "w", .dtype = wants.weight, .rank = 2, .shape = {channels, conv.width}, .strided = 0}, true,
        kNeeded);
  check(args.bias, {"bias", wants.weight, 1, {channels}}, conv.has_bias, "the description has a bias");
  of_tokens(args.out, "out", true);

  const bool indexed = is_given(args.state_batch_indices);
  if (indexed) {
    check_indices_shape("state_batch_indices", args.state_batch_indices, batch, report);
  } else if (is_given(args.conv_state) && args.conv_state.rank == 3 && args.conv_state.shape[0] < batch) {
    report([&] {
      return fmt::format(
          "conv_state: {} slots for {} rows; without state_batch_indices row b uses slot b, so give indices or {} "
          "slots",
          args.conv_state.shape[0], batch, batch);
    });
  }
  const bool slots = conv.keep == ConvKeep::slots, snapshots = conv.keep == ConvKeep::snapshots;
  if (check_given("output_state_indices", is_given(args.output_state_indices), slots, "the description keeps slots",
                  report))
    check_targets(wants, args.output_state_indices, batch, report);
  const auto [outer_kept, inner_kept] = window(wants.conv_snapshot_len);
  check(args.intermediate_states,
        {.name = "intermediate_states",
         .dtype = wants.state,
         .rank = 4,
         .shape = {kAny, kAny, outer_kept, inner_kept},
         .rows_apart = true,
         .strided = 2,
         .rows = {"slot", "step"}},
        snapshots, "the description keeps snapshots");
  if (snapshots && args.intermediate_states.rank == 4 && args.intermediate_states.shape[1] < wants.tokens)
    report([&] {
      return fmt::format("intermediate_states: got {} steps; wants {} or more, a token each",
                         args.intermediate_states.shape[1], wants.tokens);
    });
  if (is_given(args.intermediate_state_indices))
    check_counts("intermediate_state_indices", args.intermediate_state_indices, batch, snapshots, kNeeded, report);
  check_counts("cache_seqlens", args.cache_seqlens, batch, conv.store == ConvStore::circular,
               "a circular state's next entry is its count modulo state_len", report);
  check_counts("num_accepted_tokens", args.num_accepted_tokens, batch, conv.has_accepted,
               "the description has accepted counts", report);

  const Tensor* first = nullptr;
  const char* first_name = nullptr;
  for (const auto& [name_, tensor] : {std::pair("state_batch_indices", &args.state_batch_indices),
                                      {"output_state_indices", &args.output_state_indices},
                                      {"intermediate_state_indices", &args.intermediate_state_indices},
                                      {"cache_seqlens", &args.cache_seqlens},
                                      {"num_accepted_tokens", &args.num_accepted_tokens}}) {
    if (tensor->data == nullptr) continue;
    if (first == nullptr) first = tensor, first_name = name_;
    if (tensor->dtype != first->dtype)
      report([&, name_ = name_, tensor = tensor] {
        return fmt::format("{}: got dtype {}; wants {}, as {}", name_, name(tensor->dtype), name(first->dtype),
                           first_name);
      });
  }
  check_pdl(args.pdl, report);
}

std::vector<std::string> find_problems(const Wants& wants, const Conv1dArgs& args) {
  std::vector<std::string> found;
  check_launch(wants, args, [&](auto&& sentence) { found.push_back(sentence()); });
  return found;
}

// Checked mode: what only the device's memory tells. Waits for all work on the stream.
void check_memory(const Driver& driver, const Wants& wants, const Conv1dArgs& args, std::int64_t batch,
                  CUstream stream) {
  wait_to_check(driver, stream);
  const std::vector<std::string> wrong = memory_problems(driver, wants, args, batch);
  if (!wrong.empty()) fail(ErrorKind::invalid, "{}", lines_of(wrong));
}

[[noreturn, gnu::cold, gnu::noinline]] void refuse(const Wants& wants, const Conv1dArgs& args) {
  fail(ErrorKind::invalid, "{}", lines_of(find_problems(wants, args)));
}

}  // namespace

std::vector<std::string> memory_problems(const Driver& driver, const Wants& wants, const Conv1dArgs& args,
                                         std::int64_t batch) {
  const std::int64_t slots = args.conv_state.shape[0];
  std::vector<std::string> wrong;
  const std::vector<std::int64_t> source =
      read_slots(driver, "state_batch_indices", args.state_batch_indices, batch, slots, args.pad_slot_id, wrong);
  const auto writes = [&](const char* name_, Writers& writers, std::int64_t slot, std::size_t row) {
    if (is_pad(slot, args.pad_slot_id)) return;
    const auto [first, is_first] = writers.emplace(slot, row);
    if (!is_first) wrong.push_back(same_slot_twice(name_, first->second, row, slot));
  };
  const auto each_live = [&](const auto& visit) {
    for (std::size_t row = 0; row < source.size(); ++row)
      if (!is_pad(source[row], args.pad_slot_id) && source[row] < slots) visit(row);
  };

  Writers written;
  if (wants.conv.keep == ConvKeep::slots) {
    for (std::int64_t t = 0; t < wants.tokens; ++t) {
      Tensor column = args.output_state_indices;
      if (column.rank == 2) {
        column.data = static_cast<const std::byte*>(column.data) + t * column.stride[1] * size_bytes(column.dtype);
        column.shape[1] = column.stride[1] = 1;
      }
      const std::vector<std::int64_t> target =
          read_slots(driver, "output_state_indices", column, batch, slots, args.pad_slot_id, wrong);
      each_live([&](std::size_t row) { writes("output_state_indices", written, target[row], row); });
    }
    each_live([&](std::size_t row) {
      const auto found = written.find(source[row]);
      if (found != written.end() && found->second != row)
        wrong.push_back(fmt::format("row {} reads slot {}, which row {} of the same launch writes", row, source[row],
                                    found->second));
    });
  } else {
    each_live([&](std::size_t row) { writes("state_batch_indices", written, source[row], row); });
  }
  if (wants.conv.keep == ConvKeep::snapshots && is_given(args.intermediate_state_indices)) {
    Writers snapshots;
    const std::vector<std::int64_t> target =
        read_slots(driver, "intermediate_state_indices", args.intermediate_state_indices, batch,
                   args.intermediate_states.shape[0], args.pad_slot_id, wrong);
    each_live([&](std::size_t row) { writes("intermediate_state_indices", snapshots, target[row], row); });
  }
  const auto check_values = [&](const char* name_, const Tensor& counts, std::int64_t least, std::int64_t most) {
    if (!is_given(counts)) return;
    const std::vector<std::int64_t> values = read_integers(driver, counts, batch);
    each_live([&](std::size_t row) {
      if (values[row] < least || values[row] > most)
        wrong.push_back(most == kAnyCount
                            ? fmt::format("{}[{}] is {}; wants {} or more", name_, row, values[row], least)
                            : fmt::format("{}[{}] is {}; wants {} to {}", name_, row, values[row], least, most));
    });
  };
  check_values("num_accepted_tokens", args.num_accepted_tokens, 0, wants.tokens);
  check_values("cache_seqlens", args.cache_seqlens, 0, kAnyCount);
  return wrong;
}

bool conv1d_fits(const Wants& wants, const Conv1dArgs& args) {
  bool fits = true;
  check_launch(wants, args, [&](auto&&) { fits = false; });
  return fits;
}

device_args::Conv1dArgs to_device(const Conv1dArgs& args, Pdl pdl) {
  const auto token = [](const Tensor& tensor) { return tensor.rank == 3 ? stride_of(tensor, 1) : 0; };
  bool wide = false;
  for (const Tensor* indices : {&args.state_batch_indices, &args.output_state_indices, &args.intermediate_state_indices,
                                &args.cache_seqlens, &args.num_accepted_tokens})
    wide = wide || (indices->data != nullptr && indices->dtype == DType::i64);
  device_args::Conv1dArgs device{};
  device.conv_state = const_cast<void*>(args.conv_state.data);
  device.slots = args.conv_state.shape[0];
  device.state_stride = stride_of(args.conv_state, 0);
  device.x = args.x.data;
  device.x_stride = stride_of(args.x, 0);
  device.x_token_stride = token(args.x);
  device.w = args.w.data;
  device.bias = args.bias.data;
  device.out = const_cast<void*>(args.out.data);
  device.out_stride = stride_of(args.out, 0);
  device.out_token_stride = token(args.out);
  device.state_batch_indices = args.state_batch_indices.data;
  device.index_stride = stride_of(args.state_batch_indices, 0);
  device.output_state_indices = args.output_state_indices.data;
  device.output_index_stride = stride_of(args.output_state_indices, 0);
  device.output_index_token_stride = args.output_state_indices.rank == 2 ? stride_of(args.output_state_indices, 1) : 0;
  device.intermediate_states = const_cast<void*>(args.intermediate_states.data);
  device.snapshot_slots = args.intermediate_states.shape[0];
  device.snapshot_stride = stride_of(args.intermediate_states, 0);
  device.snapshot_token_stride = stride_of(args.intermediate_states, 1);
  device.intermediate_state_indices = args.intermediate_state_indices.data;
  device.snapshot_index_stride = stride_of(args.intermediate_state_indices, 0);
  device.cache_seqlens = args.cache_seqlens.data;
  device.seqlen_stride = stride_of(args.cache_seqlens, 0);
  device.num_accepted_tokens = args.num_accepted_tokens.data;
  device.accepted_stride = stride_of(args.num_accepted_tokens, 0);
  device.pad_slot_id = args.pad_slot_id;
  device.wide_indices = wide ? 1 : 0;
  device.channels = static_cast<int>(args.x.shape[args.x.rank == 3 ? 2 : 1]);
  device.pdl = device_pdl(pdl);
  return device;
}

void Kernel::launch(const Conv1dArgs& args, void* stream) const {
  if (state_ == nullptr) [[unlikely]]
    State::refuse_empty();
  const State& state = *state_;
  bool fits = true;
  check_launch(state.wants, args, [&](auto&&) { fits = false; });
  if (!fits) [[unlikely]]
    refuse(state.wants, args);
  const std::int64_t batch = args.x.shape[0];
  if (batch == 0) return;
  const auto cu_stream = static_cast<CUstream>(stream);
  if (args.checked) [[unlikely]]
    check_memory(state.module.driver(), state.wants, args, batch, cu_stream);
  const Pdl pdl = state.has_pdl ? args.pdl : Pdl::off;
  device_args::Conv1dArgs device = to_device(args, pdl);
  state.launch(&device, batch, pdl, cu_stream);
}

std::vector<std::string> Kernel::problems(const Description& description, const Conv1dArgs& args) {
  return find_problems(Wants(description), args);
}

}  // namespace ssmjit
