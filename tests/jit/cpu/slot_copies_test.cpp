// The kernel that copies slots on the CPU executor.
#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <ssmjit/slots.h>

#include "jit/cpu/executor.h"
#include "jit/kernel_args.h"

namespace ssmjit {
namespace {

TEST(CpuSlotCopies, MoveTheSlotsOfAllPoolsByteForByteAndNothingElse) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  constexpr std::int64_t kSlots = 9, kStride = 20800;
  const Source source = emit_slot_copies(Arch{});
  const CpuProgram program = CpuProgram::compile(source);
  // States of a piece and a bit with gaps, their factors, and windows.
  std::mt19937_64 random(5);
  std::vector<std::byte> states(kSlots * kStride), scales(kSlots * 640), windows(kSlots * 576);
  for (auto* pool : {&states, &scales, &windows})
    for (std::byte& b : *pool) b = static_cast<std::byte>(random());
  const std::vector<std::int64_t> table = slot_copy_table(
      {strided(states.data(), DType::i8, {kSlots, 20480}, {kStride, 1}),
       contiguous(scales.data(), DType::f32, {kSlots, 160}), contiguous(windows.data(), DType::bf16, {kSlots, 96, 3})});
  // A copy, pads of every kind (the last pair's is pad_slot_id), one onto itself.
  std::vector<std::int32_t> from = {3, -1, 5, 9, 6, 8, 0};
  std::vector<std::int64_t> to = {4, 1, -7, 1, 6, 2, 7};
  SlotCopiesArgs args;
  args.pieces = contiguous(table.data(), DType::i64,
                           {static_cast<std::int64_t>(table.size()) / kSlotPieceWords, kSlotPieceWords});
  args.src_slots = contiguous(from.data(), DType::i32, {7});
  args.dst_slots = contiguous(to.data(), DType::i64, {7});
  args.pad_slot_id = 7;

  auto want_states = states, want_scales = scales, want_windows = windows;
  for (const auto& [a, b] : {std::pair(3, 4), {8, 2}}) {
    std::memcpy(want_states.data() + b * kStride, states.data() + a * kStride, 20480);
    std::memcpy(want_scales.data() + b * 640, scales.data() + a * 640, 640);
    std::memcpy(want_windows.data() + b * 576, windows.data() + a * 576, 576);
  }
  const device_args::SlotCopiesArgs device = to_device(args);
  const auto old_states = states, old_scales = scales, old_windows = windows;
  for (CpuSchedule schedule : {CpuSchedule::forward, CpuSchedule::reverse, CpuSchedule::random}) {
    std::copy(old_states.begin(), old_states.end(), states.begin());
    std::copy(old_scales.begin(), old_scales.end(), scales.begin());
    std::copy(old_windows.begin(), old_windows.end(), windows.begin());
    CpuLaunch launch;
    launch.entry = source.entries[0].name;
    launch.grid_x = static_cast<std::int64_t>(table.size()) / kSlotPieceWords;
    launch.grid_y = 7;
    launch.block_threads = source.entries[0].block_threads;
    launch.args = &device;
    launch.args_bytes = sizeof device;
    launch.schedule = schedule;
    const auto bytes = [](auto& v) { return reinterpret_cast<std::byte*>(v.data()); };
    launch.buffers = {
        {.name = "states", .data = states.data(), .bytes = states.size(), .writable = true},
        {.name = "scales", .data = scales.data(), .bytes = scales.size(), .writable = true},
        {.name = "windows", .data = windows.data(), .bytes = windows.size(), .writable = true},
        {.name = "pieces", .data = bytes(const_cast<std::vector<std::int64_t>&>(table)), .bytes = 8 * table.size()},
        {.name = "src_slots", .data = bytes(from), .bytes = 4 * from.size()},
        {.name = "dst_slots", .data = bytes(to), .bytes = 8 * to.size()}};
    for (const CpuFinding& f : program.run(launch).findings) ADD_FAILURE() << f.text();
    EXPECT_TRUE(states == want_states);
    EXPECT_TRUE(scales == want_scales);
    EXPECT_TRUE(windows == want_windows);
  }
}

}  // namespace
}  // namespace ssmjit
