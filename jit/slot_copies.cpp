// The launch that copies whole slots of many pools.
#include <ssmjit/slots.h>

#include <map>

#include "jit/kernel_args.h"
#include "jit/launch_checks.h"
#include "jit/module.h"

namespace ssmjit {

struct SlotCopies::State {
  State(const Source& source, const Cubin& c) : cubin(c), module(source, c) {}

  Cubin cubin;
  Module module;
};

namespace {

constexpr std::int64_t kMostPieces = std::numeric_limits<int>::max();  // CUDA's limit of a grid's x
constexpr const char* kNeeded = "every launch needs it";
constexpr int kSlotsWord = 3;  // of a piece
static_assert(sizeof(device_args::SlotPiece) == kSlotPieceWords * sizeof(std::int64_t));

template <class State>
const State& loaded(const std::shared_ptr<const State>& state) {
  if (state == nullptr) [[unlikely]]
    fail(ErrorKind::invalid, "empty SlotCopies can't be launched; make them with SlotCopies::load()");
  return *state;
}

template <class Report>
void check_launch(const SlotCopiesArgs& args, Report&& report) {
  if (!check_version(args, report)) return;
  if (check_given("pieces", is_given(args.pieces), true, kNeeded, report)) {
    check_tensor(args.pieces, {.name = "pieces", .dtype = DType::i64, .rank = 2, .shape = {kAny, kSlotPieceWords}},
                 report);
    if (args.pieces.rank == 2 && args.pieces.shape[0] > 1 && args.pieces.stride[0] != kSlotPieceWords)
      report([&] {
        return fmt::format("pieces: row stride {} elements; wants {}, as slot_copy_table() has them",
                           args.pieces.stride[0], kSlotPieceWords);
      });
    if (args.pieces.rank == 2 && args.pieces.shape[0] > kMostPieces)
      report([&] { return fmt::format("pieces: got {}; a launch takes up to {}", args.pieces.shape[0], kMostPieces); });
  }
  const std::int64_t count = args.src_slots.rank == 1 && args.src_slots.shape[0] >= 0 ? args.src_slots.shape[0] : kAny;
  const auto check_slots = [&](const char* name_, const Tensor& slots) {
    if (!check_given(name_, is_given(slots), true, kNeeded, report)) return;
    if (slots.dtype != DType::i32 && slots.dtype != DType::i64)
      report([&] { return fmt::format("{}: got dtype {}; wants int32 or int64", name_, name(slots.dtype)); });
    else
      check_tensor(slots, {.name = name_, .dtype = slots.dtype, .rank = 1, .shape = {count}}, report);
  };
  check_slots("src_slots", args.src_slots);
  check_slots("dst_slots", args.dst_slots);
  if (count > kMostRows)
    report([&] {
      return fmt::format("src_slots: got {} pairs; a launch takes up to {}: split the list", count, kMostRows);
    });
}

void check_memory(const Driver& driver, const SlotCopiesArgs& args, CUstream stream) {
  wait_to_check(driver, stream);
  Tensor sizes =
      contiguous(static_cast<const std::int64_t*>(args.pieces.data) + kSlotsWord, DType::i64, {args.pieces.shape[0]});
  sizes.stride[0] = kSlotPieceWords;
  const std::int64_t slots = read_integers(driver, sizes, 1)[0], count = args.src_slots.shape[0];
  std::vector<std::string> wrong;
  const auto from = read_slots(driver, "src_slots", args.src_slots, count, slots, args.pad_slot_id, wrong);
  const auto to = read_slots(driver, "dst_slots", args.dst_slots, count, slots, args.pad_slot_id, wrong);
  std::map<std::int64_t, std::size_t> writer;  // slot -> pair
  const auto served = [&](std::size_t i) {
    return !is_pad(from[i], args.pad_slot_id) && !is_pad(to[i], args.pad_slot_id) && from[i] != to[i];
  };
  for (std::size_t i = 0; i < from.size(); ++i) {
    if (!served(i)) continue;
    const auto [first, is_first] = writer.emplace(to[i], i);
    if (!is_first) wrong.push_back(same_slot_twice("dst_slots", first->second, i, to[i]));
  }
  for (std::size_t i = 0; i < from.size(); ++i) {
    if (!served(i)) continue;
    if (const auto found = writer.find(from[i]); found != writer.end())
      wrong.push_back(
          fmt::format("pair {} reads slot {}, which pair {} of the same launch writes", i, from[i], found->second));
  }
  if (!wrong.empty()) fail(ErrorKind::invalid, "{}", lines_of(wrong));
}

}  // namespace

std::vector<std::int64_t> slot_copy_table(const std::vector<Tensor>& pools) {
  constexpr std::int64_t kPiece = device_args::kSlotPieceBytes;
  std::vector<std::string> wrong;
  const auto report = [&](auto&& sentence) { wrong.push_back(sentence()); };
  std::vector<std::int64_t> table;
  for (std::size_t i = 0; i < pools.size(); ++i) {
    const Tensor& pool = pools[i];
    const std::string label = fmt::format("pools[{}]", i);
    if (!is_given(pool) || pool.rank < 2) {
      wrong.push_back(fmt::format("{}: got {}; wants slots and what they hold", label,
                                  is_given(pool) ? fmt::format("{} dimensions", pool.rank) : std::string("nothing")));
      continue;
    }
    TensorWants wants{.name = label.c_str(),
                      .dtype = pool.dtype,
                      .rank = pool.rank,
                      .shape = pool.shape,
                      .align = Align::vector_rows,
                      .rows_apart = true,
                      .rows = {"slot", ""}};
    wants.shape[0] = pools[0].shape[0];
    const std::size_t before = wrong.size();
    check_tensor(pool, wants, report);
    std::int64_t bytes = size_bytes(pool.dtype);
    for (int k = 1; k < pool.rank; ++k) bytes *= pool.shape[static_cast<std::size_t>(k)];
    if (wrong.size() == before && bytes % kVectorBytes != 0)
      wrong.push_back(
          fmt::format("{}: got {} bytes in a slot; wants a multiple of {}: pad its rows", label, bytes, kVectorBytes));
    if (wrong.size() != before) continue;
    for (std::int64_t at = 0; at < bytes; at += kPiece)
      for (const std::int64_t word :
           {static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(pool.data)) + at,
            stride_of(pool, 0) * size_bytes(pool.dtype), std::min(kPiece, bytes - at), pool.shape[0]})
        table.push_back(word);
  }
  if (!wrong.empty()) fail(ErrorKind::invalid, "{}", lines_of(wrong));
  return table;
}

device_args::SlotCopiesArgs to_device(const SlotCopiesArgs& args) {
  return {.pieces = static_cast<const device_args::SlotPiece*>(args.pieces.data),
          .src_slots = args.src_slots.data,
          .dst_slots = args.dst_slots.data,
          .pad_slot_id = args.pad_slot_id,
          .wide_src = args.src_slots.dtype == DType::i64 ? 1 : 0,
          .wide_dst = args.dst_slots.dtype == DType::i64 ? 1 : 0};
}

SlotCopies SlotCopies::load(const CompileOptions& options, void* stream) {
  const Source source = emit_slot_copies(arch_to_load_for(static_cast<CUstream>(stream)));
  return load(source, compile(source, options));
}

SlotCopies SlotCopies::load(const Source& source, const Cubin& cubin) {
  if (source.entries.size() != 1)
    fail(ErrorKind::invalid, "source: has {} entries; emit_slot_copies() writes 1", source.entries.size());
  SlotCopies copies;
  copies.state_ = std::make_shared<const State>(source, cubin);
  return copies;
}

void SlotCopies::launch(const SlotCopiesArgs& args, void* stream) const {
  const State& state = loaded(state_);
  bool fits = true;
  check_launch(args, [&](auto&&) { fits = false; });
  if (!fits) [[unlikely]]
    fail(ErrorKind::invalid, "{}", lines_of(problems(args)));
  const std::int64_t pieces = args.pieces.shape[0], count = args.src_slots.shape[0];
  if (pieces == 0 || count == 0) return;
  const auto cu_stream = static_cast<CUstream>(stream);
  if (args.checked) [[unlikely]]
    check_memory(state.module.driver(), args, cu_stream);
  device_args::SlotCopiesArgs device = to_device(args);
  state.module.launch(0, pieces, count, &device, false, cu_stream);
}

const Cubin& SlotCopies::cubin() const { return loaded(state_).cubin; }

std::vector<std::string> SlotCopies::problems(const SlotCopiesArgs& args) {
  std::vector<std::string> found;
  check_launch(args, [&](auto&& sentence) { found.push_back(sentence()); });
  return found;
}

}  // namespace ssmjit
