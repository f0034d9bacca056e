// The launch of a layer: of one kernel, or of one after the other of a chain.
#include <algorithm>
#include <cstddef>
#include <limits>
#include <map>
#include <utility>

#include "codegen/chain_scratch.h"
#include "jit/kernel_args.h"
#include "jit/kernel_state.h"
#include "jit/launch_checks.h"
#include "jit/layer_chain.h"

namespace ssmjit {

namespace {

template <class Report>
void check_indices(const Tensor& indices, bool ring, std::int64_t batch, Report& report) {
  check_indices_shape("state_batch_indices", indices, batch, report);
  if (ring && stride_of(indices, 0) > kMostIntStride / 2)
    report([&] {
      return fmt::format("state_batch_indices: stride {} elements; wants {} at most", indices.stride[0],
                         kMostIntStride / 2);
    });
}

template <class Report>
void check_launch(const Wants& wants, const LayerArgs& args, Report&& report) {
  if (wants.op != Op::layer) {
    report([&] { return wrong_args("LayerArgs", wants.op); });
    return;
  }
  if (!check_version(args, report)) return;  // nothing behind it can be trusted
  std::int64_t batch = kAny;
  if (args.x.rank >= 1 && args.x.shape[0] >= 0) batch = args.x.shape[0];
  if (batch > kMostRows)
    report([&] { return fmt::format("x: got {} rows; a launch takes up to {}: split the batch", batch, kMostRows); });

  const bool conv = wants.conv_channels != 0;
  const std::int64_t slots = args.state.rank == 4 && args.state.shape[0] >= 0 ? args.state.shape[0] : kAny;
  const std::int64_t inner = wants.nheads * wants.head_dim;
  const auto tensor = [&](const Tensor& given, const TensorWants& tensor_wants, bool wanted = true,
                          const char* reader = "every layer needs it") {
    if (check_given(tensor_wants.name, is_given(given), wanted, reader, report))
      check_tensor(given, tensor_wants, report);
  };
  constexpr const char* kConv = "the convolution needs it";
  constexpr const char* kNorm = "the norm needs it";
  constexpr const char* kMaths = "the description's maths reads it";
  const bool ring = wants.window != 0;
  if (ring) {
    check_ring_pools(wants, args, tensor);
    tensor(args.ring_start, {"ring_start", DType::i32, 1, {slots}}, true, kRingNeeds);
    tensor(args.ring_count, {"ring_count", DType::i32, 1, {slots}}, true, kRingNeeds);
    check_seeds(args.rand_seed, slots, wants.is_stochastic, report);
  } else {
    tensor(args.state, {.name = "state",
                        .dtype = wants.state,
                        .rank = 4,
                        .shape = {slots, wants.nheads, wants.head_dim, wants.dstate},
                        .align = Align::vector_rows,
                        .rows_apart = true,
                        .rows = {"slot", ""}});
  }
  // Of each row, or of each of its tokens.
  const bool several = ring || wants.tokens > 1;
  const auto tokens = [&](const char* name, DType dtype, std::initializer_list<std::int64_t> inner,
                          Align align = Align::vector_rows, bool written = false) {
    TensorWants out{.name = name,
                    .dtype = dtype,
                    .rank = static_cast<int>(inner.size()) + 1,
                    .shape = {batch},
                    .align = align,
                    .rows_apart = written};
    std::size_t at = 1;
    if (several) {
      ++out.rank;
      out.shape[at++] = wants.tokens;
      out.strided = 2;
      if (ring) out.most_stride = kMostIntStride;
    }
    for (const std::int64_t extent : inner) out.shape[at++] = extent;
    return out;
  };
  // Kernels of several tokens, and a norm of its own behind them, read and write whole words or vectors.
  const Align of_several = several ? Align::vector_rows : Align::element;
  const std::int64_t rows = wants.conv.channels_last ? wants.conv_state_len : wants.conv_channels;
  tensor(args.conv_state,
         {.name = "conv_state",
          .dtype = wants.input,
          .rank = 3,
          .shape = {slots, rows, wants.conv.channels_last ? wants.conv_channels : wants.conv_state_len},
          .align = Align::vector_rows,
          .rows_apart = true,
          .rows = {"slot", ""},
          .most_stride = ring ? kMostIntStride : std::numeric_limits<std::int64_t>::max()},
         conv, kConv);
  if (conv)
    tensor(args.x, tokens("x", wants.input, {wants.conv_channels}));
  else
    tensor(args.x, tokens("x", wants.input, {wants.nheads, wants.head_dim}));
  constexpr const char* kUpdate = "without a convolution the update needs it";
  tensor(args.B, tokens("B", wants.input, {wants.ngroups, wants.dstate}), !conv, kUpdate);
  tensor(args.C, tokens("C", wants.input, {wants.ngroups, wants.dstate}), !conv, kUpdate);
  TensorWants dt = tokens("dt", wants.dt, {wants.nheads}, Align::element);
  dt.or_expanded = kOrExpandedHeads;
  tensor(in_front_of({wants.head_dim}, args.dt), dt);
  tensor(args.z, tokens("z", wants.input, {wants.nheads, wants.head_dim}, of_several),
         wants.has_z || wants.has_norm_gate, kMaths);
  tensor(args.conv_weight,
         {.name = "conv_weight",
          .dtype = wants.input,
          .rank = 2,
          .shape = {wants.conv_channels, wants.conv.width},
          .align = Align::vector_rows,
          .strided = 0},
         conv, kConv);
  tensor(args.conv_bias, {"conv_bias", wants.input, 1, {wants.conv_channels}, Align::vector_rows},
         conv && wants.conv.has_bias, kConv);
  tensor(in_front_of({wants.head_dim, wants.dstate}, args.A),
         {.name = "A", .dtype = DType::f32, .rank = 1, .shape = {wants.nheads}, .or_expanded = kOrExpandedA});
  const auto of_heads = [&](const Tensor& given, const char* name, bool wanted) {
    tensor(in_front_of({wants.head_dim}, given),
           {.name = name, .dtype = wants.weight, .rank = 1, .shape = {wants.nheads}, .or_expanded = kOrExpandedHeads},
           wanted, kMaths);
  };
  of_heads(args.D, "D", wants.has_D);
  of_heads(args.dt_bias, "dt_bias", wants.has_dt_bias);
  tensor(args.norm_weight, {"norm_weight", wants.input, 1, {inner}, of_several}, wants.has_norm, kNorm);
  tensor(args.norm_bias, {"norm_bias", wants.input, 1, {inner}, of_several}, wants.has_norm_bias, kNorm);
  tensor(args.out, tokens("out", wants.input, {wants.nheads, wants.head_dim}, of_several, true));

  if (is_given(args.state_batch_indices))
    check_indices(args.state_batch_indices, ring, batch, report);
  else
    check_slot_of_each_row(args.state, batch, report);
  check_pdl(args.pdl, report);
}

// What a chain wants beyond that.
template <class Report>
void check_chain(const Wants& wants, const Description& description, const LayerArgs& args, Report&& report) {
  const std::int64_t batch = args.x.shape[0];
  const std::int64_t bytes = chain_scratch(description, batch).bytes;
  if (batch > 0 && args.scratch.data == nullptr)
    report([&] { return fmt::format("scratch: not given; a chain of {} rows wants {} bytes", batch, bytes); });
  else if (batch > 0 && (args.scratch.rank != 1 || args.scratch.dtype != DType::i8 || args.scratch.shape[0] < bytes))
    report([&] {
      return fmt::format("scratch: got {} of shape {}; a chain of {} rows wants int8 of shape [{}] or more",
                         name(args.scratch.dtype), shape_text(args.scratch.shape, args.scratch.rank), batch, bytes);
    });
  else if (!is_aligned(args.scratch.data, kScratchAlign))
    report([&] {
      return fmt::format("scratch: base address {} is not a multiple of {} bytes", fmt::ptr(args.scratch.data),
                         kScratchAlign);
    });
  if (wants.window != 0 || wants.tokens > 1 || !wants.has_norm) return;
  const auto vectors = [&](const Tensor& tensor, const char* name_) {
    check_tensor(tensor,
                 {.name = name_,
                  .dtype = wants.input,
                  .rank = 3,
                  .shape = {batch, wants.nheads, wants.head_dim},
                  .align = Align::vector_rows},
                 report);
  };
  if (wants.has_norm_gate) vectors(args.z, "z");
  vectors(args.out, "out");
  check_tensor(args.norm_weight,
               {.name = "norm_weight",
                .dtype = wants.input,
                .rank = 1,
                .shape = {wants.nheads * wants.head_dim},
                .align = Align::vector_rows},
               report);
}

std::vector<std::string> find_problems(const Wants& wants, const LayerArgs& args) {
  std::vector<std::string> found;
  check_launch(wants, args, [&](auto&& sentence) { found.push_back(sentence()); });
  return found;
}

// Checked mode: what only the device's memory tells. Waits for all work on the stream.
void check_memory(const Driver& driver, const Wants& wants, const LayerArgs& args, std::int64_t batch,
                  CUstream stream) {
  wait_to_check(driver, stream);
  std::vector<std::string> wrong;
  const std::vector<std::int64_t> slots = read_slots(driver, "state_batch_indices", args.state_batch_indices, batch,
                                                     args.state.shape[0], args.pad_slot_id, wrong);
  std::map<std::int64_t, std::size_t> writer;  // slot -> row
  for (std::size_t row = 0; row < slots.size(); ++row) {
    if (is_pad(slots[row], args.pad_slot_id)) continue;
    const auto [first, is_first] = writer.emplace(slots[row], row);
    if (!is_first) wrong.push_back(same_slot_twice("state_batch_indices", first->second, row, slots[row]));
  }
  // Of the parts what the layer has not said already.
  const auto add = [&](const auto& of_part) {
    for (std::string& sentence : memory_problems(driver, wants, of_part, batch))
      if (std::find(wrong.begin(), wrong.end(), sentence) == wrong.end()) wrong.push_back(std::move(sentence));
  };
  if (wants.window != 0) {
    RingArgs ring;
    ring.state = args.state;
    ring.dt_ring = args.dt_ring;
    ring.ring_start = args.ring_start;
    ring.ring_count = args.ring_count;
    ring.state_batch_indices = args.state_batch_indices;
    ring.pad_slot_id = args.pad_slot_id;
    add(ring);
  }
  if (wants.conv_channels != 0) {
    Conv1dArgs conv;
    conv.conv_state = args.conv_state;
    conv.state_batch_indices = args.state_batch_indices;
    conv.output_state_indices = args.output_state_indices;
    conv.intermediate_states = args.intermediate_states;
    conv.intermediate_state_indices = args.intermediate_state_indices;
    conv.cache_seqlens = args.cache_seqlens;
    conv.num_accepted_tokens = args.num_accepted_tokens;
    conv.pad_slot_id = args.pad_slot_id;
    add(conv);
  }
  if (!wrong.empty()) fail(ErrorKind::invalid, "{}", lines_of(wrong));
}

[[noreturn, gnu::cold, gnu::noinline]] void refuse(const Wants& wants, const LayerArgs& args) {
  fail(ErrorKind::invalid, "{}", lines_of(find_problems(wants, args)));
}

}  // namespace

constexpr bool starts_lines(std::size_t second, std::size_t third, std::size_t fourth) {
  return second == 48 && third == 48 + 64 && fourth == 48 + 2 * 64;
}
static_assert(starts_lines(offsetof(device_args::LayerArgs, slots), offsetof(device_args::LayerArgs, conv_bias),
                           offsetof(device_args::LayerArgs, out)),
              "lines of arguments begin there");
static_assert(starts_lines(offsetof(device_args::LayerTokensArgs, slots),
                           offsetof(device_args::LayerTokensArgs, conv_weight),
                           offsetof(device_args::LayerTokensArgs, z_stride)),
              "lines of arguments begin there");

device_args::LayerArgs to_device(const LayerArgs& args, Pdl pdl) {
  const auto& state = args.state.shape;
  device_args::LayerArgs device{};
  device.state = const_cast<void*>(args.state.data);
  device.slots = state[0];
  device.state_stride = stride_of(args.state, 0);
  device.conv_state = const_cast<void*>(args.conv_state.data);
  device.conv_state_stride = stride_of(args.conv_state, 0);
  device.x = args.x.data;
  device.x_stride = stride_of(args.x, 0);
  device.B = args.B.data;
  device.B_stride = stride_of(args.B, 0);
  device.C = args.C.data;
  device.C_stride = stride_of(args.C, 0);
  device.nheads = static_cast<int>(state[1]);
  if (args.conv_weight.data != nullptr) {
    // x, B and C of a row stand one behind the other.
    const std::int64_t inner = state[1] * state[2];
    const std::int64_t bytes = element_bytes(args.x.dtype);
    device.B = static_cast<const char*>(args.x.data) + inner * bytes;
    device.C = static_cast<const char*>(args.x.data) + (inner + (args.x.shape[1] - inner) / 2) * bytes;
    device.B_stride = device.C_stride = device.x_stride;
  }
  device.z = args.z.data;
  device.z_stride = stride_of(args.z, 0);
  device.dt = args.dt.data;
  device.dt_stride = stride_of(args.dt, 0);
  device.conv_weight = args.conv_weight.data;
  device.conv_bias = args.conv_bias.data;
  device.A = args.A.data;
  device.D = args.D.data;
  device.dt_bias = args.dt_bias.data;
  device.norm_weight = args.norm_weight.data;
  device.norm_bias = args.norm_bias.data;
  device.out = const_cast<void*>(args.out.data);
  device.out_stride = stride_of(args.out, 0);
  device.state_batch_indices = args.state_batch_indices.data;
  device.index_stride = stride_of(args.state_batch_indices, 0);
  device.pad_slot_id = args.pad_slot_id;
  device.wide_indices =
      args.state_batch_indices.data != nullptr && args.state_batch_indices.dtype == DType::i64 ? 1 : 0;
  device.pdl = device_pdl(pdl);
  return device;
}

device_args::LayerTokensArgs layer_tokens_to_device(const LayerArgs& args, Pdl pdl) {
  const auto& state = args.state.shape;
  device_args::LayerTokensArgs device{};
  device.state = const_cast<void*>(args.state.data);
  device.slots = state[0];
  device.state_stride = stride_of(args.state, 0);
  device.nheads = static_cast<int>(state[1]);
  device.conv_state = const_cast<void*>(args.conv_state.data);
  device.conv_state_stride = stride_of(args.conv_state, 0);
  const auto tokens = [](const Tensor& tensor, auto& data, long long& stride, long long& token_stride) {
    data = const_cast<void*>(tensor.data);
    stride = stride_of(tensor, 0);
    token_stride = stride_of(tensor, 1);
  };
  tokens(args.x, device.x, device.x_stride, device.x_token_stride);
  tokens(args.B, device.B, device.B_stride, device.B_token_stride);
  tokens(args.C, device.C, device.C_stride, device.C_token_stride);
  tokens(args.z, device.z, device.z_stride, device.z_token_stride);
  tokens(args.dt, device.dt, device.dt_stride, device.dt_token_stride);
  tokens(args.out, device.out, device.out_stride, device.out_token_stride);
  device.conv_weight = args.conv_weight.data;
  device.conv_bias = args.conv_bias.data;
  device.A = args.A.data;
  device.D = args.D.data;
  device.dt_bias = args.dt_bias.data;
  device.norm_weight = args.norm_weight.data;
  device.norm_bias = args.norm_bias.data;
  device.state_batch_indices = args.state_batch_indices.data;
  device.index_stride = stride_of(args.state_batch_indices, 0);
  device.pad_slot_id = args.pad_slot_id;
  device.wide_indices =
      args.state_batch_indices.data != nullptr && args.state_batch_indices.dtype == DType::i64 ? 1 : 0;
  device.pdl = device_pdl(pdl);
  return device;
}

device_args::RingLayerArgs ring_to_device(const LayerArgs& args, Pdl pdl) {
  const bool conv = args.conv_weight.data != nullptr;
  RingArgs ring;
  ring.state = args.state;
  ring.state_scale = args.state_scale;
  ring.x_ring = args.x_ring;
  ring.B_ring = args.B_ring;
  ring.dt_ring = args.dt_ring;
  ring.ring_start = args.ring_start;
  ring.ring_count = args.ring_count;
  ring.x = args.x;
  ring.dt = args.dt;
  ring.A = args.A;
  if (!conv) {
    ring.B = args.B;
    ring.C = args.C;
  }
  ring.D = args.D;
  ring.dt_bias = args.dt_bias;
  ring.z = args.z;
  ring.out = args.out;
  ring.state_batch_indices = args.state_batch_indices;
  ring.rand_seed = args.rand_seed;
  ring.pad_slot_id = args.pad_slot_id;
  device_args::RingLayerArgs device{};
  device.ring = to_device(ring, pdl);
  device.conv_state = const_cast<void*>(args.conv_state.data);
  device.conv_state_stride = static_cast<int>(stride_of(args.conv_state, 0));
  device.channels = static_cast<int>(conv ? args.x.shape[2]
                                          : args.x.shape[2] * args.x.shape[3] + 2 * args.B.shape[2] * args.B.shape[3]);
  device.conv_weight = args.conv_weight.data;
  device.conv_bias = args.conv_bias.data;
  device.norm_weight = args.norm_weight.data;
  device.norm_bias = args.norm_bias.data;
  // Words of an index tensor: its first, how many from one row to the next, and whether an entry has two.
  const auto words = [](const Tensor& indices, const int*& data, long long& stride, int& wide) {
    data = static_cast<const int*>(indices.data);
    wide = indices.data != nullptr && indices.dtype == DType::i64 ? 1 : 0;
    stride = stride_of(indices, 0) * (1 + wide);
  };
  words(args.num_accepted_tokens.data != nullptr ? args.num_accepted_tokens : args.cache_seqlens, device.window_places,
        device.window_place_stride, device.wide_window_places);
  if (args.intermediate_states.data != nullptr) {
    device.intermediate_states = const_cast<void*>(args.intermediate_states.data);
    device.snapshot_slots = args.intermediate_states.shape[0];
    device.snapshot_stride = stride_of(args.intermediate_states, 0);
    device.snapshot_token_stride = stride_of(args.intermediate_states, 1);
    words(args.intermediate_state_indices, device.intermediate_state_indices, device.snapshot_index_stride,
          device.wide_snapshot_indices);
  }
  return device;
}

namespace {

// What the convolution alone would be given, for what check_launch() does not look at: counts, snapshots and their
// indices. An output of its own has a place behind nobody's.
Conv1dArgs conv_extras(const Description& description, const LayerArgs& args) {
  Conv1dArgs conv;
  conv.conv_state = args.conv_state;
  conv.x = args.x;
  conv.w = args.conv_weight;
  conv.bias = args.conv_bias;
  conv.out = contiguous(args.x.data, args.x.dtype,
                        {args.x.shape[0], description.token_count, std::int64_t{description.conv_channels()}});
  conv.state_batch_indices = args.state_batch_indices;
  conv.output_state_indices = args.output_state_indices;
  conv.intermediate_states = args.intermediate_states;
  conv.intermediate_state_indices = args.intermediate_state_indices;
  conv.cache_seqlens = args.cache_seqlens;
  conv.num_accepted_tokens = args.num_accepted_tokens;
  conv.pad_slot_id = args.pad_slot_id;
  return conv;
}

[[noreturn, gnu::cold, gnu::noinline]] void refuse_conv_extras(const Description& description, const Conv1dArgs& args) {
  std::vector<std::string> found = Kernel::problems(layer_parts(description).front(), args);
  for (std::string& sentence : found) sentence = "convolution: " + sentence;
  fail(ErrorKind::invalid, "{}", lines_of(found));
}

[[noreturn, gnu::cold, gnu::noinline]] void refuse_chain(const Wants& wants, const Description& description,
                                                         const LayerArgs& args, const std::vector<std::string>& conv) {
  std::vector<std::string> found;
  check_chain(wants, description, args, [&](auto&& sentence) { found.push_back(sentence()); });
  for (const std::string& sentence : conv) found.push_back("convolution: " + sentence);
  fail(ErrorKind::invalid, "{}", lines_of(found));
}

}  // namespace

void Kernel::State::launch_chain(const LayerArgs& args, std::int64_t batch, CUstream stream) const {
  bool fits = true;
  check_chain(wants, description, args, [&](auto&&) { fits = false; });
  if (!fits) [[unlikely]]
    refuse_chain(wants, description, args, {});
  LayerArgs with_pdl = args;
  if (!has_pdl) with_pdl.pdl = Pdl::off;
  const ChainArgs chain = chain_args(description, plan.form, with_pdl);
  // Only a convolution that keeps more than its last window has tensors that were not looked at yet.
  if (chain.conv1d && !conv1d_fits(parts.front().wants, *chain.conv1d)) [[unlikely]]
    refuse_chain(wants, description, args, Kernel::problems(parts.front().description, *chain.conv1d));
  if (args.checked) [[unlikely]]
    check_memory(module.driver(), wants, args, batch, stream);
  std::size_t part = 0;
  const auto one = [&](const auto& given) {
    if (!given) return;
    with_device_args(parts[part].description, *given, given->pdl,
                     [&](auto device) { launch(&device, batch, given->pdl, stream, part); });
    ++part;
  };
  one(chain.conv1d);
  one(chain.update);
  one(chain.ring);
  one(chain.norm);
}

void Kernel::launch(const LayerArgs& args, void* stream) const {
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
  if (state.parts.size() > 1) return state.launch_chain(args, batch, cu_stream);
  if (state.conv_extras) {
    const Conv1dArgs conv = conv_extras(state.description, args);
    if (!conv1d_fits(*state.conv_extras, conv)) [[unlikely]]
      refuse_conv_extras(state.description, conv);
  }
  if (args.checked) [[unlikely]]
    check_memory(state.module.driver(), state.wants, args, batch, cu_stream);
  const Pdl pdl = state.has_pdl ? args.pdl : Pdl::off;
  with_device_args(state.description, args, pdl, [&](auto device) { state.launch(&device, batch, pdl, cu_stream); });
}

std::vector<std::string> Kernel::problems(const Description& description, const LayerArgs& args) {
  return find_problems(Wants(description), args);
}

}  // namespace ssmjit
