// The launches that move whole slots of a ring.
#include <ssmjit/ring.h>

#include <array>
#include <cstddef>
#include <map>
#include <optional>

#include <ssmjit/source.h>

#include "codegen/slots_source.h"
#include "jit/kernel_args.h"
#include "jit/launch_checks.h"
#include "jit/module.h"

namespace ssmjit {

struct RingSlots::State {
  State(const Description& d, const Source& source, const Cubin& c)
      : description(d), cubin(c), wants(d), blocks(materialise_blocks(d)), module(source, c) {}

  Description description;
  Cubin cubin;
  Wants wants;
  std::int64_t blocks;  // of a layer that is materialised
  Module module;
};

namespace {

constexpr std::int64_t kMostBlocks = std::numeric_limits<int>::max();  // CUDA's limit of a grid's x
constexpr const char* kNeeded = "every launch needs it";

template <class State>
const State& loaded(const std::shared_ptr<const State>& state) {
  if (state == nullptr) [[unlikely]]
    fail(ErrorKind::invalid,
         "empty RingSlots can't be launched and describe nothing; make them with RingSlots::load()");
  return *state;
}

void check_is_ring(const Description& description) {
  description.validate();
  if (description.op() != Op::ring)
    fail(ErrorKind::invalid, "description: got {}; wants a ring (store=ring:16)",
         description.ring_window() == 0
             ? "a store in place, which has no ring"
             : "a layer; take its ring's part (layer_parts()), with its convolution's window as "
               "RingLayer's conv_state");
}

// ---- what a launch is given ----

// A table of no layers has no layers, and one that can't be read none that count.
std::int64_t layers_of(const Tensor& layers) {
  return layers.rank == 2 && layers.shape[0] >= 0 ? layers.shape[0] : kAny;
}
std::int64_t length_of(const Tensor& tensor) {
  return tensor.rank == 1 && tensor.shape[0] >= 0 ? tensor.shape[0] : kAny;
}

template <class Report>
void check_layers(const Wants& wants, const Tensor& layers, Report& report) {
  if (!check_given("layers", is_given(layers), true, kNeeded, report)) return;
  check_tensor(layers, {.name = "layers", .dtype = DType::i64, .rank = 2, .shape = {kAny, kRingLayerWords}}, report);
  if (layers.rank == 2 && layers.shape[0] > 1 && layers.stride[0] != kRingLayerWords)
    report([&] {
      return fmt::format("layers: row stride {} elements; wants {}, as ring_layer_table() has them", layers.stride[0],
                         kRingLayerWords);
    });
  // Of blocks that take eight rows each; most take more.
  const std::int64_t most = kMostBlocks / (wants.nheads * wants.head_dim / 8);
  if (layers_of(layers) > most)
    report([&] { return fmt::format("layers: got {}; a launch takes up to {}", layers.shape[0], most); });
}

// [count], or for each layer [layers, count].
template <class Report>
void check_slots(const char* name_, const Tensor& slots, std::int64_t layers, std::int64_t count, bool by_layer,
                 Report& report) {
  if (!check_given(name_, is_given(slots), true, kNeeded, report)) return;
  if (slots.dtype != DType::i32 && slots.dtype != DType::i64) {
    report([&] { return fmt::format("{}: got dtype {}; wants int32 or int64", name_, name(slots.dtype)); });
    return;
  }
  TensorWants wants{.name = name_, .dtype = slots.dtype, .rank = 1, .shape = {count}};
  if (by_layer && slots.rank == 2) {
    wants.rank = 2;
    wants.shape = {layers, count};
    wants.rows = {"layer", ""};
  }
  check_tensor(slots, wants, report);
}

template <class Report>
void check_requests(const char* name, std::int64_t count, Report& report) {
  if (count > kMostRows)
    report([&] {
      return fmt::format("{}: got {} requests; a launch takes up to {}: split the batch", name, count, kMostRows);
    });
}

// Whether the description has a ring and what stands behind `size` can be read.
template <class Args, class Report>
bool can_be_read(const Wants& wants, const Args& args, Report& report) {
  if (wants.op != Op::ring) {
    report([] { return std::string("args: got those of a ring for a kernel that updates in place, which has none"); });
    return false;
  }
  return check_version(args, report);
}

template <class Report>
void check_launch(const Wants& wants, const MaterialiseArgs& args, Report&& report) {
  if (!can_be_read(wants, args, report)) return;
  const auto check = [&](const Tensor& tensor, const TensorWants& tensor_wants, bool wanted, const char* reader) {
    if (check_given(tensor_wants.name, is_given(tensor), wanted, reader, report))
      check_tensor(tensor, tensor_wants, report);
  };
  const std::int64_t layers = layers_of(args.layers), batch = length_of(args.prefix_length);
  check_layers(wants, args.layers, report);
  check_slots("src_slots", args.src_slots, layers, batch, true, report);
  check_slots("dst_slots", args.dst_slots, layers, batch, true, report);
  check(args.ring_start, {"ring_start", DType::i32, 1, {batch}}, true, kNeeded);
  if (is_given(args.ring_count)) check_tensor(args.ring_count, {"ring_count", DType::i32, 1, {batch}}, report);
  check(args.prefix_length, {"prefix_length", DType::i32, 1, {kAny}}, true, kNeeded);
  if (is_given(args.active_request_indices)) {
    check_tensor(args.active_request_indices, {"active_request_indices", DType::i32, 1, {kAny}}, report);
    check_requests("active_request_indices", length_of(args.active_request_indices), report);
  } else {
    check_requests("prefix_length", batch, report);
  }
  const bool one_seed = args.rand_seed.rank == 1 && args.rand_seed.shape[0] == 1;
  check(args.rand_seed, {"rand_seed", DType::i64, 1, {one_seed ? 1 : layers}}, wants.is_stochastic,
        "the description rounds stochastically");
}

// Of slots that are written with their cursors.
template <class Args, class Report>
void check_pool_cursors(const Args& args, Report& report) {
  if (check_given("ring_start", is_given(args.ring_start), true, kNeeded, report))
    check_tensor(args.ring_start, {"ring_start", DType::i32, 1, {kAny}}, report);
  if (check_given("ring_count", is_given(args.ring_count), true, kNeeded, report))
    check_tensor(args.ring_count, {"ring_count", DType::i32, 1, {length_of(args.ring_start)}}, report);
}

template <class Report>
void check_launch(const Wants& wants, const ResetSlotsArgs& args, Report&& report) {
  if (!can_be_read(wants, args, report)) return;
  check_layers(wants, args.layers, report);
  check_slots("slots", args.slots, kAny, kAny, false, report);
  check_requests("slots", length_of(args.slots), report);
  check_pool_cursors(args, report);
}

template <class Report>
void check_launch(const Wants& wants, const CopySlotsArgs& args, Report&& report) {
  if (!can_be_read(wants, args, report)) return;
  check_layers(wants, args.layers, report);
  check_slots("src_slots", args.src_slots, kAny, kAny, false, report);
  check_slots("dst_slots", args.dst_slots, kAny, length_of(args.src_slots), false, report);
  check_requests("src_slots", length_of(args.src_slots), report);
  check_pool_cursors(args, report);
}

template <class Args>
std::vector<std::string> find_problems(const Wants& wants, const Args& args) {
  std::vector<std::string> found;
  check_launch(wants, args, [&](auto&& sentence) { found.push_back(sentence()); });
  return found;
}

template <class Args>
void refuse_misfits(const Wants& wants, const Args& args) {
  bool fits = true;
  check_launch(wants, args, [&](auto&&) { fits = false; });
  if (!fits) [[unlikely]]
    fail(ErrorKind::invalid, "{}", lines_of(find_problems(wants, args)));
}

// ---- checked mode: what only the device's memory tells ----

// The number of slots of each layer's pools.
std::vector<std::int64_t> read_pool_sizes(const Driver& driver, const Tensor& layers) {
  Tensor last =
      contiguous(static_cast<const std::int64_t*>(layers.data) + kRingLayerWords - 1, DType::i64, {layers.shape[0]});
  last.stride[0] = kRingLayerWords;
  return read_integers(driver, last, layers.shape[0]);
}

// One layer's slots, [count] whether they are the same for all layers or not.
Tensor of_layer(const Tensor& slots, std::size_t layer) {
  if (slots.rank == 1) return slots;
  const std::int64_t skipped = static_cast<std::int64_t>(layer) * stride_of(slots, 0) * size_bytes(slots.dtype);
  return contiguous(static_cast<const std::byte*>(slots.data) + skipped, slots.dtype, {slots.shape[1]});
}
// "src_slots", or "src_slots[3]" of layer 3.
std::string name_of_layer(const char* name, const Tensor& slots, std::size_t layer) {
  return slots.rank == 1 ? std::string(name) : fmt::format("{}[{}]", name, layer);
}

// Rows of a move from slot to slot: those that write one slot, and those that read what another writes. `served`: the
// rows that count.
void check_moves(const std::string& written_by, const std::vector<std::int64_t>& from,
                 const std::vector<std::int64_t>& to, const std::vector<std::size_t>& served, bool may_be_in_place,
                 std::vector<std::string>& wrong) {
  std::map<std::int64_t, std::size_t> writer;  // slot -> row
  for (const std::size_t row : served) {
    const auto [first, is_first] = writer.emplace(to[row], row);
    if (!is_first) wrong.push_back(same_slot_twice(written_by.c_str(), first->second, row, to[row]));
  }
  for (const std::size_t row : served) {
    const auto found = writer.find(from[row]);
    if (found == writer.end()) continue;
    if (found->second != row)
      wrong.push_back(fmt::format("request {} reads slot {}, which request {} of the same launch writes", row,
                                  from[row], found->second));
    else if (!may_be_in_place)
      wrong.push_back(fmt::format("request {} copies slot {} onto itself; leave it out", row, from[row]));
  }
}

// The requests that are served, by number.
std::vector<std::size_t> read_active(const Driver& driver, const Tensor& list, std::int64_t batch,
                                     std::vector<std::string>& wrong) {
  std::vector<std::size_t> active;
  if (!is_given(list)) {
    for (std::int64_t i = 0; i < batch; ++i) active.push_back(static_cast<std::size_t>(i));
    return active;
  }
  const std::vector<std::int64_t> entries = read_integers(driver, list, list.shape[0]);
  std::map<std::int64_t, std::size_t> first_of;  // request -> entry
  for (std::size_t i = 0; i < entries.size() && entries[i] >= 0; ++i) {
    const auto [first, is_first] = first_of.emplace(entries[i], i);
    if (entries[i] >= batch)
      wrong.push_back(fmt::format("active_request_indices[{}] is {}; there are {} requests", i, entries[i], batch));
    else if (!is_first)
      wrong.push_back(fmt::format("active_request_indices[{}] and [{}] are both request {}; wants each at most once",
                                  first->second, i, entries[i]));
    else
      active.push_back(static_cast<std::size_t>(entries[i]));
  }
  return active;
}

void refuse(const std::vector<std::string>& wrong) {
  if (!wrong.empty()) fail(ErrorKind::invalid, "{}", lines_of(wrong));
}

void check_memory(const Driver& driver, const Wants& wants, const MaterialiseArgs& args, CUstream stream) {
  wait_to_check(driver, stream);
  const std::int64_t batch = args.prefix_length.shape[0];
  std::vector<std::string> wrong;
  const std::vector<std::size_t> active = read_active(driver, args.active_request_indices, batch, wrong);
  const std::vector<std::int64_t> pools = read_pool_sizes(driver, args.layers);
  std::vector<bool> is_live(static_cast<std::size_t>(batch), false);
  // Layers that share their slots and have pools of one size are all as the first.
  const bool shared = args.src_slots.rank == 1 && args.dst_slots.rank == 1;
  for (std::size_t layer = 0; layer < pools.size(); ++layer) {
    if (shared && layer > 0 && pools[layer] == pools[0]) continue;
    const auto slots_of = [&](const char* name, const Tensor& slots) {
      const std::string named = name_of_layer(name, slots, layer);
      return read_slots(driver, named.c_str(), of_layer(slots, layer), batch, pools[layer], args.pad_slot_id, wrong);
    };
    const std::vector<std::int64_t> from = slots_of("src_slots", args.src_slots);
    const std::vector<std::int64_t> to = slots_of("dst_slots", args.dst_slots);
    std::vector<std::size_t> served;
    for (const std::size_t row : active) {
      if (is_pad(from[row], args.pad_slot_id) || is_pad(to[row], args.pad_slot_id)) continue;
      served.push_back(row);
      is_live[row] = true;
    }
    check_moves(name_of_layer("dst_slots", args.dst_slots, layer), from, to, served, true, wrong);
  }
  const std::vector<std::int64_t> start = read_integers(driver, args.ring_start, batch);
  const std::vector<std::int64_t> prefix = read_integers(driver, args.prefix_length, batch);
  std::optional<std::vector<std::int64_t>> count;
  if (is_given(args.ring_count)) count = read_integers(driver, args.ring_count, batch);
  for (const std::size_t row : active) {
    if (!is_live[row]) continue;
    const auto check = [&](const char* name, std::int64_t value, std::int64_t most, const char* what) {
      if (value < 0 || value > most)
        wrong.push_back(fmt::format("{}[{}] is {}; wants 0 to {}{}", name, row, value, most, what));
      return value >= 0 && value <= most;
    };
    check("ring_start", start[row], wants.length - 1, "");
    if (count.has_value() && check("ring_count", (*count)[row], wants.window, ""))
      check("prefix_length", prefix[row], (*count)[row], ", the request's ring_count");
    else
      check("prefix_length", prefix[row], wants.window, "");
  }
  refuse(wrong);
}

// Pools and cursors have one size.
std::int64_t checked_pool_size(const Driver& driver, const Tensor& layers, const Tensor& ring_start,
                               std::vector<std::string>& wrong) {
  const std::vector<std::int64_t> pools = read_pool_sizes(driver, layers);
  for (std::size_t layer = 0; layer < pools.size(); ++layer)
    if (pools[layer] != ring_start.shape[0])
      wrong.push_back(
          fmt::format("ring_start: got {} slots; layers[{}] has {}", ring_start.shape[0], layer, pools[layer]));
  return ring_start.shape[0];
}

void check_memory(const Driver& driver, const Wants&, const ResetSlotsArgs& args, CUstream stream) {
  wait_to_check(driver, stream);
  std::vector<std::string> wrong;
  const std::int64_t size = checked_pool_size(driver, args.layers, args.ring_start, wrong);
  const std::vector<std::int64_t> slots =
      read_slots(driver, "slots", args.slots, args.slots.shape[0], size, args.pad_slot_id, wrong);
  std::map<std::int64_t, std::size_t> writer;  // slot -> row
  for (std::size_t row = 0; row < slots.size(); ++row) {
    if (is_pad(slots[row], args.pad_slot_id)) continue;
    const auto [first, is_first] = writer.emplace(slots[row], row);
    if (!is_first) wrong.push_back(same_slot_twice("slots", first->second, row, slots[row]));
  }
  refuse(wrong);
}

void check_memory(const Driver& driver, const Wants&, const CopySlotsArgs& args, CUstream stream) {
  wait_to_check(driver, stream);
  std::vector<std::string> wrong;
  const std::int64_t size = checked_pool_size(driver, args.layers, args.ring_start, wrong);
  const std::int64_t count = args.src_slots.shape[0];
  const auto from = read_slots(driver, "src_slots", args.src_slots, count, size, args.pad_slot_id, wrong);
  const auto to = read_slots(driver, "dst_slots", args.dst_slots, count, size, args.pad_slot_id, wrong);
  std::vector<std::size_t> served;
  for (std::size_t row = 0; row < from.size(); ++row)
    if (!is_pad(from[row], args.pad_slot_id) && !is_pad(to[row], args.pad_slot_id)) served.push_back(row);
  check_moves("dst_slots", from, to, served, false, wrong);
  refuse(wrong);
}

// Of the table: where a convolution's windows lie, the stride of their slots and a slot's size, both in vectors.
template <class Report>
std::array<std::int64_t, 3> window_words(const Tensor& windows, std::int64_t slots, Report& report) {
  if (!is_given(windows)) return {};
  if (windows.rank < 2) {
    report([&] { return fmt::format("conv_state: got {} dimensions; wants slots and what they hold", windows.rank); });
    return {};
  }
  TensorWants wants{.name = "conv_state",
                    .dtype = windows.dtype,
                    .rank = windows.rank,
                    .shape = windows.shape,
                    .align = Align::vector_rows,
                    .rows_apart = true,
                    .rows = {"slot", ""}};
  wants.shape[0] = slots;
  check_tensor(windows, wants, report);
  std::int64_t bytes = size_bytes(windows.dtype);
  for (int i = 1; i < windows.rank; ++i) bytes *= windows.shape[static_cast<std::size_t>(i)];
  if (bytes % kVectorBytes != 0)
    report(
        [&] { return fmt::format("conv_state: got {} bytes in a slot; wants a multiple of {}", bytes, kVectorBytes); });
  return {static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(windows.data)),
          stride_of(windows, 0) * size_bytes(windows.dtype) / kVectorBytes, bytes / kVectorBytes};
}

int is_wide(const Tensor& indices) { return indices.dtype == DType::i64 ? 1 : 0; }
const device_args::RingLayer* table(const Tensor& layers) {
  return static_cast<const device_args::RingLayer*>(layers.data);
}
int* written(const Tensor& cursors) { return static_cast<int*>(const_cast<void*>(cursors.data)); }

}  // namespace

static_assert(sizeof(device_args::RingLayer) == kRingLayerWords * sizeof(std::int64_t));
static_assert(offsetof(device_args::RingLayer, slots) == (kRingLayerWords - 1) * sizeof(std::int64_t));

std::vector<std::int64_t> ring_layer_table(const Description& description, const std::vector<RingLayer>& layers) {
  check_is_ring(description);
  const Wants wants(description);
  std::vector<std::string> wrong;
  std::vector<std::int64_t> words;
  const std::int64_t slots = layers.empty() || layers[0].state.rank != 4 ? kAny : layers[0].state.shape[0];
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const RingLayer& layer = layers[i];
    const auto report = [&](auto&& sentence) { wrong.push_back(fmt::format("layers[{}]: {}", i, sentence())); };
    const auto check = [&](const Tensor& tensor, const TensorWants& tensor_wants, bool wanted, const char* reader) {
      if (check_given(tensor_wants.name, is_given(tensor), wanted, reader, report))
        check_tensor(tensor, tensor_wants, report);
    };
    check_ring_pools(wants, layer, check);
    check(layer.A, {"A", DType::f32, 1, {wants.nheads}}, true, kRingNeeds);
    if (layer.state.rank == 4 && slots != kAny && layer.state.shape[0] != slots)
      wrong.push_back(
          fmt::format("layers[{}]: state: got {} slots; wants {}, as layers[0] has", i, layer.state.shape[0], slots));
    for (const Tensor* tensor :
         {&layer.state, &layer.state_scale, &layer.x_ring, &layer.B_ring, &layer.dt_ring, &layer.A})
      words.push_back(static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(tensor->data)));
    for (const Tensor* tensor : {&layer.state, &layer.state_scale, &layer.x_ring, &layer.B_ring, &layer.dt_ring})
      words.push_back(stride_of(*tensor, 0));
    for (const std::int64_t word : window_words(layer.conv_state, layer.state.shape[0], report)) words.push_back(word);
    words.push_back(layer.state.shape[0]);
  }
  refuse(wrong);
  return words;
}

device_args::MaterialiseArgs to_device(const Description& description, const MaterialiseArgs& args) {
  const auto layer_stride = [](const Tensor& slots) { return slots.rank == 2 ? stride_of(slots, 0) : 0; };
  device_args::MaterialiseArgs device{};
  device.layers = table(args.layers);
  device.src_slots = args.src_slots.data;
  device.src_layer_stride = layer_stride(args.src_slots);
  device.dst_slots = args.dst_slots.data;
  device.dst_layer_stride = layer_stride(args.dst_slots);
  device.ring_start = static_cast<const int*>(args.ring_start.data);
  device.ring_count = static_cast<const int*>(args.ring_count.data);
  device.prefix_length = static_cast<const int*>(args.prefix_length.data);
  device.active_request_indices = static_cast<const int*>(args.active_request_indices.data);
  device.rand_seed = static_cast<const long long*>(args.rand_seed.data);
  device.seed_stride = args.rand_seed.shape[0] > 1 ? 1 : 0;
  device.pad_slot_id = args.pad_slot_id;
  device.batch = static_cast<int>(args.prefix_length.shape[0]);
  device.nheads = description.nheads;
  device.wide_src = is_wide(args.src_slots);
  device.wide_dst = is_wide(args.dst_slots);
  return device;
}

device_args::ResetSlotsArgs to_device(const Description& description, const ResetSlotsArgs& args) {
  device_args::ResetSlotsArgs device{};
  device.layers = table(args.layers);
  device.ring_start = written(args.ring_start);
  device.ring_count = written(args.ring_count);
  device.cursors = args.ring_start.shape[0];
  device.slots = args.slots.data;
  device.pad_slot_id = args.pad_slot_id;
  device.nheads = description.nheads;
  device.wide = is_wide(args.slots);
  return device;
}

device_args::CopySlotsArgs to_device(const Description& description, const CopySlotsArgs& args) {
  device_args::CopySlotsArgs device{};
  device.layers = table(args.layers);
  device.ring_start = written(args.ring_start);
  device.ring_count = written(args.ring_count);
  device.cursors = args.ring_start.shape[0];
  device.src_slots = args.src_slots.data;
  device.dst_slots = args.dst_slots.data;
  device.pad_slot_id = args.pad_slot_id;
  device.nheads = description.nheads;
  device.wide_src = is_wide(args.src_slots);
  device.wide_dst = is_wide(args.dst_slots);
  return device;
}

RingSlots RingSlots::load(const Description& description, const CompileOptions& options, void* stream) {
  check_is_ring(description);
  const Source source = emit_ring_slots(description, arch_to_load_for(static_cast<CUstream>(stream)));
  return load(description, source, compile(source, options));
}

RingSlots RingSlots::load(const Description& description, const Source& source, const Cubin& cubin) {
  check_is_ring(description);
  if (source.entries.size() != kSlotsEntries)
    fail(ErrorKind::invalid, "source: has {} entries; the kernels of slots are {}, as emit_ring_slots() writes them",
         source.entries.size(), static_cast<int>(kSlotsEntries));
  RingSlots slots;
  slots.state_ = std::make_shared<const State>(description, source, cubin);
  return slots;
}

void RingSlots::materialise(const MaterialiseArgs& args, void* stream) const {
  const State& state = loaded(state_);
  refuse_misfits(state.wants, args);
  const Tensor& requests = args.active_request_indices.rank == 1 ? args.active_request_indices : args.prefix_length;
  if (requests.shape[0] == 0 || args.prefix_length.shape[0] == 0 || args.layers.shape[0] == 0) return;
  const auto cu_stream = static_cast<CUstream>(stream);
  if (args.checked) [[unlikely]]
    check_memory(state.module.driver(), state.wants, args, cu_stream);
  device_args::MaterialiseArgs device = to_device(state.description, args);
  state.module.launch(kMaterialiseEntry, args.layers.shape[0] * state.blocks, requests.shape[0], &device, false,
                      cu_stream);
}

void RingSlots::reset(const ResetSlotsArgs& args, void* stream) const {
  const State& state = loaded(state_);
  refuse_misfits(state.wants, args);
  if (args.slots.shape[0] == 0 || args.layers.shape[0] == 0) return;
  const auto cu_stream = static_cast<CUstream>(stream);
  if (args.checked) [[unlikely]]
    check_memory(state.module.driver(), state.wants, args, cu_stream);
  device_args::ResetSlotsArgs device = to_device(state.description, args);
  state.module.launch(kResetEntry, args.layers.shape[0] * state.wants.nheads, args.slots.shape[0], &device, false,
                      cu_stream);
}

void RingSlots::copy(const CopySlotsArgs& args, void* stream) const {
  const State& state = loaded(state_);
  refuse_misfits(state.wants, args);
  if (args.src_slots.shape[0] == 0 || args.layers.shape[0] == 0) return;
  const auto cu_stream = static_cast<CUstream>(stream);
  if (args.checked) [[unlikely]]
    check_memory(state.module.driver(), state.wants, args, cu_stream);
  device_args::CopySlotsArgs device = to_device(state.description, args);
  state.module.launch(kCopyEntry, args.layers.shape[0] * state.wants.nheads, args.src_slots.shape[0], &device, false,
                      cu_stream);
}

const Description& RingSlots::description() const { return loaded(state_).description; }
const Cubin& RingSlots::cubin() const { return loaded(state_).cubin; }

std::vector<std::string> RingSlots::problems(const Description& description, const MaterialiseArgs& args) {
  return find_problems(Wants(description), args);
}
std::vector<std::string> RingSlots::problems(const Description& description, const ResetSlotsArgs& args) {
  return find_problems(Wants(description), args);
}
std::vector<std::string> RingSlots::problems(const Description& description, const CopySlotsArgs& args) {
  return find_problems(Wants(description), args);
}

}  // namespace ssmjit
