// The kernels of a ring's slots on the CPU executor, races and bounds checked, against the double reference.
#include <cstring>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/ring.h>
#include <ssmjit/source.h>

#include "autotune/cpu_verify.h"
#include "autotune/ring_case.h"
#include "codegen/slots_source.h"
#include "jit/kernel_args.h"
#include "tests/jit/cpu/slot_pools.h"

namespace ssmjit {
namespace {

using testing::IsEmpty;

const Arch kArch = Arch::parse("sm_90a");
constexpr CpuSchedule kSchedules[] = {CpuSchedule::forward, CpuSchedule::reverse, CpuSchedule::random};

// dt_bias and D are none of a slot's business.
Description ring(const Sizes& sizes, const Ring& store, DType state = DType::bf16, DType input = DType::bf16) {
  return mamba2(sizes).delta(softplus(dsl::dt)).no_skip().state(state).input(input).store(store);
}
Description small(DType state = DType::bf16) {
  return ring({.nheads = 2, .head_dim = 16, .dstate = 64, .ngroups = 1}, {.window = 5}, state);
}

// Integers in memory that a launch reads.
template <class Int>
struct Integers {
  std::vector<Int> values;
  Tensor tensor() const {
    return contiguous(values.data(), sizeof(Int) == 8 ? DType::i64 : DType::i32,
                      {static_cast<std::int64_t>(values.size())});
  }
  Tensor tensor(std::int64_t rows) const {
    const auto count = static_cast<std::int64_t>(values.size());
    return contiguous(values.data(), sizeof(Int) == 8 ? DType::i64 : DType::i32, {rows, count / rows});
  }
};

class Launcher {
 public:
  explicit Launcher(const Description& d) : d_(d), source_(emit_ring_slots(d, kArch)) {
    program_.emplace(CpuProgram::compile(source_));
  }

  // Findings. `pools` are read and written; of the rest the launch only reads.
  std::string run(SlotPools& pools, const MaterialiseArgs& args, CpuSchedule schedule = CpuSchedule::forward) {
    const std::vector<std::string> wrong = RingSlots::problems(d_, args);
    if (!wrong.empty()) return wrong.front();
    const Tensor& requests = args.active_request_indices.rank == 1 ? args.active_request_indices : args.prefix_length;
    std::vector<CpuBuffer> buffers = of_pools(pools, false);
    for (const auto& [name, tensor] : {std::pair("layers", &args.layers),
                                       {"src_slots", &args.src_slots},
                                       {"dst_slots", &args.dst_slots},
                                       {"starts", &args.ring_start},
                                       {"counts", &args.ring_count},
                                       {"prefix_length", &args.prefix_length},
                                       {"active_request_indices", &args.active_request_indices},
                                       {"rand_seed", &args.rand_seed}})
      add_read(buffers, name, *tensor);
    return run(kMaterialiseEntry, args.layers.shape[0] * materialise_blocks(d_), requests.shape[0], to_device(d_, args),
               buffers, schedule);
  }
  std::string run(SlotPools& pools, const ResetSlotsArgs& args) {
    std::vector<CpuBuffer> buffers = of_pools(pools, true);
    add_read(buffers, "layers", args.layers);
    add_read(buffers, "slots", args.slots);
    return run(kResetEntry, args.layers.shape[0] * d_.nheads, args.slots.shape[0], to_device(d_, args), buffers,
               CpuSchedule::random);
  }
  std::string run(SlotPools& pools, const CopySlotsArgs& args) {
    std::vector<CpuBuffer> buffers = of_pools(pools, true);
    add_read(buffers, "layers", args.layers);
    add_read(buffers, "src_slots", args.src_slots);
    add_read(buffers, "dst_slots", args.dst_slots);
    return run(kCopyEntry, args.layers.shape[0] * d_.nheads, args.src_slots.shape[0], to_device(d_, args), buffers,
               CpuSchedule::random);
  }

 private:
  static std::vector<CpuBuffer> of_pools(SlotPools& pools, bool all_written) {
    std::vector<CpuBuffer> buffers;
    for (SlotPools::Block& block : pools.blocks())
      if (!block.bytes.empty())
        buffers.push_back({.name = block.name,
                           .data = block.bytes.data(),
                           .bytes = block.bytes.size(),
                           .writable = all_written || block.is_state});
    return buffers;
  }
  static void add_read(std::vector<CpuBuffer>& buffers, const char* name, const Tensor& t) {
    if (t.data == nullptr) return;
    std::int64_t elements = 1;
    for (int i = 0; i < t.rank; ++i) elements *= t.shape[static_cast<std::size_t>(i)];
    buffers.push_back({.name = name,
                       .data = SlotPools::bytes_of(t),
                       .bytes = static_cast<std::size_t>(elements * size_bytes(t.dtype))});
  }
  template <class Args>
  std::string run(std::size_t entry, std::int64_t grid_x, std::int64_t grid_y, const Args& args,
                  std::vector<CpuBuffer> buffers, CpuSchedule schedule) {
    CpuLaunch launch;
    launch.entry = source_.entries[entry].name;
    launch.grid_x = grid_x;
    launch.grid_y = grid_y;
    launch.block_threads = source_.entries[entry].block_threads;
    launch.args = &args;
    launch.args_bytes = sizeof args;
    launch.buffers = std::move(buffers);
    launch.schedule = schedule;
    const CpuReport report = program_->run(launch);
    return report.clean() ? "" : report.findings.front().text();
  }

  Description d_;
  Source source_;
  std::optional<CpuProgram> program_;
};

// One request of a launch that materialises.
struct Request {
  std::int64_t src = 0, dst = 0;
  int start = 0, count = 0, prefix = 0;  // as the launch is told
  bool is_served = true;
};

std::vector<std::vector<std::byte>> bytes_of(const SlotPools& pools) {
  std::vector<std::vector<std::byte>> all;
  for (const SlotPools::Block& block : pools.blocks()) all.push_back(block.bytes);
  return all;
}

// Materialises and judges every byte: states of destinations by the reference, all others by what was there before.
// `seeds`: of a stochastic description, of each layer. `exact_exponents`: no sums of A * delta so large that fp32
// rounds off what their exponentials need.
void expect_materialised(const Description& d, SlotPools& pools, const std::vector<Request>& requests,
                         const std::vector<std::int64_t>& seeds = {},
                         const std::vector<CpuSchedule>& schedules = {CpuSchedule::forward},
                         bool exact_exponents = true) {
  Launcher launcher(d);
  const std::vector<std::vector<std::byte>> before = bytes_of(pools);
  std::vector<std::vector<std::byte>> first;
  for (const CpuSchedule schedule : schedules) {
    for (std::size_t i = 0; i < before.size(); ++i)
      std::copy(before[i].begin(), before[i].end(), pools.blocks()[i].bytes.begin());
    const std::vector<std::int64_t> table = ring_layer_table(d, pools.layers_at(pools.base()));
    const auto layers = static_cast<std::int64_t>(table.size()) / kRingLayerWords;
    Integers<std::int64_t> src, dst;
    Integers<std::int32_t> start, count, prefix;
    for (const Request& r : requests) {
      src.values.push_back(r.src);
      dst.values.push_back(r.dst);
      start.values.push_back(r.start);
      count.values.push_back(r.count);
      prefix.values.push_back(r.prefix);
    }
    MaterialiseArgs args;
    args.layers = contiguous(table.data(), DType::i64, {layers, kRingLayerWords});
    args.src_slots = src.tensor();
    args.dst_slots = dst.tensor();
    args.ring_start = start.tensor();
    args.ring_count = count.tensor();
    args.prefix_length = prefix.tensor();
    const Integers<std::int64_t> seed{seeds};
    if (!seeds.empty()) args.rand_seed = seed.tensor();
    ASSERT_EQ(launcher.run(pools, args, schedule), "");
    if (first.empty()) first = bytes_of(pools);
    ASSERT_EQ(bytes_of(pools), first) << "another schedule gives other bits";
  }

  // The states before the launch, and what must be there now.
  std::vector<std::vector<std::byte>> old = before, want = before;
  const auto at = [](std::vector<std::vector<std::byte>>& memory) {
    std::vector<std::byte*> base;
    for (std::vector<std::byte>& block : memory) base.push_back(block.data());
    return base;
  };
  const std::vector<RingLayer> was = pools.layers_at(at(old)), is = pools.layers_at(pools.base()),
                               wanted = pools.layers_at(at(want));
  for (std::size_t i = 0; i < is.size(); ++i) {
    FlushMeter meter(d, seeds.empty() ? 0 : static_cast<std::uint64_t>(seeds[seeds.size() > 1 ? i : 0]));
    bool any = false;
    for (const Request& r : requests) {
      if (!r.is_served) continue;
      RingRequest of{.live = true, .slot = r.src, .start = std::clamp(r.start, 0, d.ring_length() - 1)};
      of.count = std::clamp(r.prefix, 0, std::clamp(r.count, 0, d.ring_window()));
      of.flush = true;
      for (const auto& member : {&RingLayer::state, &RingLayer::state_scale}) {
        const Tensor& got = is[i].*member;
        if (got.data == nullptr) continue;
        const Tensor& source = of.count == 0 ? was[i].*member : got;
        std::memcpy(SlotPools::slot_bytes(wanted[i].*member, r.dst),
                    SlotPools::slot_bytes(source, of.count == 0 ? r.src : r.dst), SlotPools::slot_size(got));
      }
      if (of.count == 0) continue;
      any = true;
      for (int h = 0; h < d.nheads; ++h) {
        const RingHead head = ring_reference(d, SlotPools::step_args(was[i]), 0, of, h, ring_operands(d), read_host);
        RingRequest there = of;
        there.slot = r.dst;
        // The random bits are of the destination, which the meter has from `there`.
        meter.add_head(head, there, h, SlotPools::step_args(is[i]), read_host);
      }
    }
    EXPECT_EQ(meter.failure(), "") << "layer " << i;
    if (any && exact_exponents && d.state_dtype == DType::f32) {
      EXPECT_LE(meter.result().frobenius, 1e-6);
    }
  }
  for (std::size_t i = 0; i < want.size(); ++i)
    EXPECT_TRUE(want[i] == pools.blocks()[i].bytes) << pools.blocks()[i].name << " holds bytes that it must not";
}

// Requests of every kind: prefixes of no row, one row, some and all rows; a ring that wraps; a slot brought up to date
// in place; pads; a cursor and a prefix out of range. Rows behind a prefix stay NaN.
struct Kinds {
  SlotPools pools;
  std::vector<Request> requests;
  Kinds(const Description& d, int layers, std::uint64_t seed) : pools(d, layers, 14, seed) {
    const int W = d.ring_window(), L = d.ring_length();
    requests = {{.src = 9, .dst = 3, .start = 2 % L, .count = W, .prefix = 0},
                {.src = 1, .dst = 12, .start = L - 1, .count = W, .prefix = (W + 1) / 2},
                {.src = 6, .dst = 0, .start = L / 2, .count = W, .prefix = W},
                {.src = 2, .dst = 2, .start = 0, .count = W, .prefix = W},
                {.src = -1, .dst = 5, .start = 0, .count = W, .prefix = W, .is_served = false},
                {.src = 5, .dst = -7, .start = 0, .count = W, .prefix = W, .is_served = false},
                {.src = 4, .dst = 14, .start = 0, .count = W, .prefix = 1, .is_served = false},
                {.src = 10, .dst = 11, .start = L + 5, .count = W + 4, .prefix = W + 3},
                {.src = 13, .dst = 8, .start = -4, .count = 1, .prefix = W},
                {.src = 9, .dst = 7, .start = 0, .count = 3, .prefix = -2}};
    for (const Request& r : requests)
      if (r.is_served)
        pools.fill_ring(r.src, std::clamp(r.start, 0, L - 1), std::clamp(r.prefix, 0, std::clamp(r.count, 0, W)));
  }
};

#define NEEDS_EXECUTOR() \
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing

class MaterialisedStates : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Of, MaterialisedStates,
                         testing::Values(DType::f32, DType::bf16, DType::f16, DType::i8, DType::f8),
                         [](const auto& info) { return name(info.param); });

TEST_P(MaterialisedStates, AreThoseOfTheReferenceInEveryKindOfRequestAndNothingElseIsWritten) {
  NEEDS_EXECUTOR();
  for (const DType input : {DType::bf16, DType::f16}) {
    const Description d =
        ring({.nheads = 4, .head_dim = 16, .dstate = 64, .ngroups = 2}, {.window = 7, .length = 12}, GetParam(), input);
    Kinds kinds(d, 3, 5);
    expect_materialised(d, kinds.pools, kinds.requests, {}, {std::begin(kSchedules), std::end(kSchedules)});
  }
}

TEST_P(MaterialisedStates, AreRightForEverySizeThatARingMayHave) {
  NEEDS_EXECUTOR();
  const int widest = GetParam() == DType::i8 || GetParam() == DType::f8 ? 192 : 160;
  const std::tuple<int, int, int> sizes[] = {{8, 64, 1}, {80, 128, 3}, {88, widest, 2}, {64, 256, 32}, {256, 64, 16}};
  for (const auto& [head_dim, dstate, window] : sizes) {
    SCOPED_TRACE(testing::Message() << head_dim << " x " << dstate << ", window " << window);
    const Description d =
        ring({.nheads = 2, .head_dim = head_dim, .dstate = dstate, .ngroups = 1}, {.window = window}, GetParam());
    Kinds kinds(d, 1, 6);
    kinds.requests.resize(4);
    expect_materialised(d, kinds.pools, kinds.requests);
  }
}

TEST_P(MaterialisedStates, RoundedByChanceTakeTheBitsOfTheDestinationAndTheSeedOfTheLayer) {
  NEEDS_EXECUTOR();
  if (GetParam() == DType::f32) GTEST_SKIP() << "fp32 states are not rounded";
  for (const std::vector<std::int64_t>& seeds : {std::vector<std::int64_t>{-77}, {3, 1ll << 40, -1}}) {
    const Description d = small(GetParam()).rounding(Stochastic{.philox_rounds = 7});
    Kinds kinds(d, 3, 7);
    expect_materialised(d, kinds.pools, kinds.requests, seeds);
  }
}

TEST_P(MaterialisedStates, FaultRow13_ThatDieOrHardlyDecayAreRight) {
  NEEDS_EXECUTOR();
  const Description d = small(GetParam());
  SlotPools pools(d, 2, 6, 8);
  const std::vector<Request> requests = {{.src = 0, .dst = 1, .start = 0, .count = 5, .prefix = 5},
                                         {.src = 2, .dst = 3, .start = 4, .count = 5, .prefix = 4},
                                         {.src = 4, .dst = 5, .start = 5, .count = 5, .prefix = 3}};
  pools.fill_ring(0, 0, 5, 60, 100);
  pools.fill_ring(2, 4, 4, -25, -20);
  pools.fill_ring(4, 5, 3, -25, 60);
  expect_materialised(d, pools, requests, {}, {CpuSchedule::forward}, false);
}

// What a materialised prefix of all rows and a flush of the ring step make of one ring.
TEST_P(MaterialisedStates, AfterAllRowsAreWhatAFlushStores) {
  NEEDS_EXECUTOR();
  for (const bool by_chance : {false, true}) {
    if (by_chance && GetParam() == DType::f32) continue;
    Description d = small(GetParam());
    if (by_chance) d.rounding(Stochastic{});
    // Slot 1 flushes; slot 0 takes its state after the same rows and, in place, the bits of slot 1 too.
    SlotPools pools(d, 1, 2, 9);
    pools.fill_ring(1, 6 - 4, 5);
    pools.set_cursor(1, {2, 5});
    pools.set_cursor(0, {0, 0});
    SlotPools flushed = pools;

    const Plan plan = default_plan(d, kArch, 2);
    const CpuProgram program = CpuProgram::compile(emit(d, plan, kArch));
    std::vector<std::byte> inputs(4096), out(4096);
    RingArgs step = SlotPools::step_args(flushed.layers_at(flushed.base())[0]);
    step.x = contiguous(inputs.data(), DType::bf16, {1, 1, 2, 16});
    step.B = contiguous(inputs.data(), DType::bf16, {1, 1, 1, 64});
    step.C = step.B;
    step.dt = contiguous(inputs.data(), DType::f32, {1, 1, 2});
    step.out = contiguous(out.data(), DType::bf16, {1, 1, 2, 16});
    step.ring_start = flushed.ring_start(flushed.base());
    step.ring_count = flushed.ring_count(flushed.base());
    const std::int32_t slot = 1;
    step.state_batch_indices = contiguous(&slot, DType::i32, {1});
    const std::int64_t seed = 123456789;
    if (by_chance) step.rand_seed = contiguous(&seed, DType::i64, {1});
    std::vector<CpuBuffer> buffers = {
        {.name = "inputs", .data = inputs.data(), .bytes = inputs.size()},
        {.name = "out", .data = out.data(), .bytes = out.size(), .writable = true},
        {.name = "slot", .data = reinterpret_cast<std::byte*>(const_cast<std::int32_t*>(&slot)), .bytes = 4},
        {.name = "seed", .data = reinterpret_cast<std::byte*>(const_cast<std::int64_t*>(&seed)), .bytes = 8}};
    for (SlotPools::Block& block : flushed.blocks())
      if (!block.bytes.empty())
        buffers.push_back(
            {.name = block.name, .data = block.bytes.data(), .bytes = block.bytes.size(), .writable = true});
    const device_args::RingArgs device = to_device(step, Pdl::off);
    const CpuReport report = program.run(cpu_launch(launch_shape(plan, d, 1), device, buffers));
    ASSERT_TRUE(report.clean()) << report.findings.front().text();

    const auto seeds = by_chance ? std::vector<std::int64_t>{seed} : std::vector<std::int64_t>{};
    expect_materialised(d, pools, {{.src = 1, .dst = 1, .start = 2, .count = 5, .prefix = 5}}, seeds);
    const RingLayer want = flushed.layers_at(flushed.base())[0], got = pools.layers_at(pools.base())[0];
    std::size_t differ = 0, count = 0;
    for (int row = 0; row < 2 * 16; ++row) {
      const double want_scale =
          d.has_state_scale() ? stored_value(want.state_scale, want.state_scale.stride[0] + row, read_host) : 1.0;
      const double got_scale =
          d.has_state_scale() ? stored_value(got.state_scale, got.state_scale.stride[0] + row, read_host) : 1.0;
      EXPECT_NEAR(got_scale, want_scale, want_scale * 1e-4);
      for (int n = 0; n < 64; ++n, ++count) {
        const std::int64_t at = want.state.stride[0] + row * 64 + n;
        const double a = stored_value(want.state, at, read_host), b = stored_value(got.state, at, read_host);
        differ += a != b;
        // A unit apart where the value lies by half a unit; and by what a flush's products lack.
        const double products = d.has_state_scale() ? 0.0 : std::abs(a) * 1e-4 + 1e-5;
        const double unit = d.state_dtype == DType::f32 ? 0.0 : ulp(d.state_dtype, std::abs(a));
        EXPECT_LE(std::abs(a - b), unit + products) << row << ", " << n;
      }
    }
    if (d.state_dtype != DType::f32) {
      EXPECT_LE(differ, count / 50) << "of " << count;
    }
  }
}

TEST(Materialise, OfLayersWithSlotsOfTheirOwnTakesEachLayersAndNarrowIndicesToo) {
  NEEDS_EXECUTOR();
  const Description d = small();
  SlotPools pools(d, 2, 8, 11), other(d, 2, 8, 11);
  for (SlotPools* p : {&pools, &other})
    for (int slot : {0, 1, 2, 3}) p->fill_ring(slot, 1, 3);
  Launcher launcher(d);
  const Integers<std::int32_t> src{{0, 1, 2, -1}}, dst{{4, 5, 6, 7}}, start{{1, 1}}, prefix{{3, 2}};
  const auto run = [&](SlotPools& p, std::vector<std::int64_t> table, const Integers<std::int32_t>& from,
                       const Integers<std::int32_t>& to, std::int64_t layers) {
    MaterialiseArgs args;
    args.layers = contiguous(table.data(), DType::i64, {layers, kRingLayerWords});
    args.src_slots = from.tensor(layers);
    args.dst_slots = to.tensor(layers);
    args.ring_start = start.tensor();
    args.prefix_length = prefix.tensor();
    EXPECT_EQ(launcher.run(p, args), "");
  };
  const std::vector<std::int64_t> table = ring_layer_table(d, pools.layers_at(pools.base()));
  run(pools, table, src, dst, 2);
  // The same, a layer at a time.
  const std::vector<std::int64_t> one = ring_layer_table(d, other.layers_at(other.base()));
  run(other, {one.begin(), one.begin() + kRingLayerWords}, {{0, 1}}, {{4, 5}}, 1);
  run(other, {one.begin() + kRingLayerWords, one.end()}, {{2, -1}}, {{6, 7}}, 1);
  EXPECT_EQ(bytes_of(pools), bytes_of(other));
  EXPECT_NE(bytes_of(pools), bytes_of(SlotPools(d, 2, 8, 11)));
}

TEST(Materialise, ServesTheListedRequestsUpToItsFirstNegativeEntry) {
  NEEDS_EXECUTOR();
  const Description d = small();
  constexpr int kBatch = 50;
  const auto states_after = [&](const std::vector<std::int32_t>& list) {
    SlotPools pools(d, 1, 2 * kBatch, 12);
    for (int slot = 0; slot < kBatch; ++slot) pools.fill_ring(slot, 0, 2);
    const std::vector<std::int64_t> table = ring_layer_table(d, pools.layers_at(pools.base()));
    Integers<std::int32_t> src, dst, start, prefix, active{list};
    for (int i = 0; i < kBatch; ++i) {
      src.values.push_back(i);
      dst.values.push_back(kBatch + i);
      start.values.push_back(0);
      prefix.values.push_back(2);
    }
    MaterialiseArgs args;
    args.layers = contiguous(table.data(), DType::i64, {1, kRingLayerWords});
    args.src_slots = src.tensor();
    args.dst_slots = dst.tensor();
    args.ring_start = start.tensor();
    args.prefix_length = prefix.tensor();
    args.active_request_indices = active.tensor();
    Launcher launcher(d);
    EXPECT_EQ(launcher.run(pools, args, CpuSchedule::random), "");
    const RingLayer layer = pools.layers_at(pools.base())[0];
    SlotPools untouched(d, 1, 2 * kBatch, 12);
    const RingLayer before = untouched.layers_at(untouched.base())[0];
    std::vector<int> served;
    for (int i = 0; i < kBatch; ++i)
      if (std::memcmp(SlotPools::slot_bytes(layer.state, kBatch + i), SlotPools::slot_bytes(before.state, kBatch + i),
                      SlotPools::slot_size(layer.state)) != 0)
        served.push_back(i);
    return served;
  };
  EXPECT_THAT(states_after({7, 3, -1, 5, 4}), testing::ElementsAre(3, 7));
  EXPECT_THAT(states_after({-1, 5}), IsEmpty());
  EXPECT_THAT(states_after({11, kBatch, 2}), testing::ElementsAre(2, 11)) << "one past the batch is passed over";
  std::vector<std::int32_t> many(kBatch);
  for (int i = 0; i < kBatch; ++i) many[static_cast<std::size_t>(i)] = kBatch - 1 - i;
  many[40] = -1;
  EXPECT_EQ(states_after(many).size(), 40u);
}

TEST(Materialise, CutsAPrefixOffAtTheWindowWithoutCounts) {
  NEEDS_EXECUTOR();
  const Description d = small();
  SlotPools all(d, 1, 2, 13), window(d, 1, 2, 13);
  Launcher launcher(d);
  for (SlotPools* pools : {&all, &window}) {
    pools->fill_ring(0, 3, 5);
    const std::vector<std::int64_t> table = ring_layer_table(d, pools->layers_at(pools->base()));
    const Integers<std::int32_t> src{{0}}, dst{{1}}, start{{3}}, prefix{{pools == &all ? 1000 : 5}};
    MaterialiseArgs args;
    args.layers = contiguous(table.data(), DType::i64, {1, kRingLayerWords});
    args.src_slots = src.tensor();
    args.dst_slots = dst.tensor();
    args.ring_start = start.tensor();
    args.prefix_length = prefix.tensor();
    ASSERT_EQ(launcher.run(*pools, args), "");
  }
  EXPECT_EQ(bytes_of(all), bytes_of(window));
}

// ---- reset and copy ----

TEST(Faults, Row10_ResetSlotsHaveNoStateNoWindowAndAnEmptyRingAndNoOtherByteChanges) {
  NEEDS_EXECUTOR();
  for (const DType state : {DType::f32, DType::bf16, DType::i8}) {
    const Description d = small(state);
    SlotPools pools(d, 2, 6, 14);
    for (int slot = 0; slot < 6; ++slot) pools.set_cursor(slot, {slot, 3});
    SlotPools want = pools;
    const std::vector<std::int64_t> table = ring_layer_table(d, pools.layers_at(pools.base()));
    const Integers<std::int64_t> slots{{4, -1, 1, 6, 2}};
    ResetSlotsArgs args;
    args.layers = contiguous(table.data(), DType::i64, {2, kRingLayerWords});
    args.slots = slots.tensor();
    args.ring_start = pools.ring_start(pools.base());
    args.ring_count = pools.ring_count(pools.base());
    args.pad_slot_id = 2;
    EXPECT_THAT(RingSlots::problems(d, args), IsEmpty());
    Launcher launcher(d);
    ASSERT_EQ(launcher.run(pools, args), "");
    for (const RingLayer& layer : want.layers_at(want.base()))
      for (int slot : {4, 1}) {
        for (const Tensor* t : {&layer.state, &layer.conv_state})
          std::memset(SlotPools::slot_bytes(*t, slot), 0, SlotPools::slot_size(*t));
        for (int i = 0; d.has_state_scale() && i < 2 * 16; ++i)
          encode(DType::f32, SlotPools::slot_bytes(layer.state_scale, slot), i, 1.0);
        std::memset(SlotPools::slot_bytes(layer.dt_ring, slot), 0xff, SlotPools::slot_size(layer.dt_ring));
      }
    want.set_cursor(4, {});
    want.set_cursor(1, {});
    EXPECT_EQ(bytes_of(pools), bytes_of(want)) << name(state);
  }
}

TEST(Faults, Row10_CopiedSlotsAreTheirSourcesInStateScalesRingsWindowsAndCursors) {
  NEEDS_EXECUTOR();
  for (const DType state : {DType::f32, DType::f16, DType::f8}) {
    const Description d =
        ring({.nheads = 4, .head_dim = 24, .dstate = 64, .ngroups = 2}, {.window = 3, .length = 7}, state);
    SlotPools pools(d, 2, 7, 15);
    for (int slot = 0; slot < 7; ++slot) {
      pools.fill_ring(slot, slot, 2);
      pools.set_cursor(slot, {slot, 2});
    }
    SlotPools want = pools;
    const std::vector<std::int64_t> table = ring_layer_table(d, pools.layers_at(pools.base()));
    const Integers<std::int32_t> src{{3, 0, -1, 5, 7, 6}}, dst{{1, 2, 4, -3, 4, 6}};
    CopySlotsArgs args;
    args.layers = contiguous(table.data(), DType::i64, {2, kRingLayerWords});
    args.src_slots = src.tensor();
    args.dst_slots = dst.tensor();
    args.ring_start = pools.ring_start(pools.base());
    args.ring_count = pools.ring_count(pools.base());
    EXPECT_THAT(RingSlots::problems(d, args), IsEmpty());
    Launcher launcher(d);
    ASSERT_EQ(launcher.run(pools, args), "");
    for (const RingLayer& layer : want.layers_at(want.base()))
      for (const Tensor* t :
           {&layer.state, &layer.state_scale, &layer.x_ring, &layer.B_ring, &layer.dt_ring, &layer.conv_state}) {
        if (t->data == nullptr) continue;
        std::memcpy(SlotPools::slot_bytes(*t, 1), SlotPools::slot_bytes(*t, 3), SlotPools::slot_size(*t));
        std::memcpy(SlotPools::slot_bytes(*t, 2), SlotPools::slot_bytes(*t, 0), SlotPools::slot_size(*t));
      }
    want.set_cursor(1, {3, 2});
    want.set_cursor(2, {0, 2});
    EXPECT_EQ(bytes_of(pools), bytes_of(want)) << name(state);
  }
}

}  // namespace
}  // namespace ssmjit
