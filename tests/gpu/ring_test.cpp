// Ring kernels on a GPU. Skips aloud without one.
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/device.h>
#include <ssmjit/kernel.h>
#include <ssmjit/source.h>
#include <ssmjit/tune.h>

#include "autotune/ring_case.h"
#include "jit/gpu.h"
#include "tests/gpu/device_case.h"
#include "tests/gpu/needs_gpu.h"
#include "tests/gpu/slow_producer.h"
#include "tests/jit/cpu/ring_flush.h"
#include "tests/jit/cpu/ring_memory.h"
#include "tests/jit/cpu/ring_steps.h"

namespace ssmjit {
namespace {

using testing::IsEmpty;

Arch arch() { return device(0).arch(); }

// 16 heads, as the shipped models' rings at TP 8.
Description step(int tokens = 6, int window = 16) {
  return mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 2})
      .tokens(tokens)
      .state(DType::bf16)
      .store(Ring{.window = window});
}

Kernel load(const Description& d) { return Kernel::load(d, default_plan(d, arch(), std::int64_t{8} * d.nheads)); }

using DeviceCase = ssmjit::DeviceCase<RingCase>;

void run(const Kernel& kernel, const RingArgs& args) {
  Stream stream;
  kernel.launch(args, stream.handle());
  stream.synchronize();
}

void expect_all_ok(const Description& d, std::size_t plans, std::uint64_t seed) {
  VerifyOptions options;
  options.seed = seed;
  for (const Verdict& v : verify(d, sample_plans(plan_space(d, arch()), plans, seed), options))
    EXPECT_EQ(v.outcome, Outcome::ok) << d.summary() << "\n" << v.plan.text() << testing::PrintToString(v.failures);
}

// ---- values ----

TEST(GpuRing, SampledPlansComputeASpreadOfDescriptions) {
  NEEDS_GPU();
  for (DType state : {DType::f32, DType::bf16, DType::f16, DType::i8, DType::f8}) {
    expect_all_ok(step().state(state), 6, 1);
    expect_all_ok(step(1, 16).state(state).gate(silu(dsl::z)), 6, 2);
    expect_all_ok(step(4, 11).state(state).input(DType::f16).varlen().pad_output(PadOutput::untouched), 6, 3);
    if (state != DType::f32) expect_all_ok(step(3, 8).state(state).rounding(Stochastic{}).no_skip(), 6, 4);
  }
}

TEST(GpuRing, SizesFarFromASquareAreComputedWithEveryState) {
  NEEDS_GPU();
  const std::tuple<int, int, DType> sizes[] = {{80, 192, DType::i8},  {256, 64, DType::f8},    {8, 256, DType::i8},
                                               {40, 128, DType::f8},  {128, 160, DType::bf16}, {88, 32, DType::f16},
                                               {256, 256, DType::f32}};
  for (const auto& [head_dim, dstate, state] : sizes)
    expect_all_ok(mamba2({.nheads = 6, .head_dim = head_dim, .dstate = dstate, .ngroups = 2})
                      .tokens(3)
                      .state(state)
                      .store(Ring{.window = 9}),
                  3, 7);
}

TEST(GpuRing, AllHeadsOfAGroupOf16AreComputedByOneBlock) {
  NEEDS_GPU();
  Description d = step();
  d.ngroups = 1;
  std::vector<Plan> plans;
  for (const char* changes : {"block_m=64,warps=4,heads_per_block=16,stages=4,state_path=bulk,ring_rows=live",
                              "block_m=16,warps=1,heads_per_block=16,stages=1,state_path=bulk,ring_rows=live"})
    plans.push_back(Plan::parse(changes, default_plan(d, arch(), 128)));
  for (const Verdict& v : verify(d, plans, {}))
    EXPECT_EQ(v.outcome, Outcome::ok) << v.plan.text() << testing::PrintToString(v.failures);
}

TEST(GpuRing, TheSmallestAndTheLargestWindowsAreComputed) {
  NEEDS_GPU();
  for (const auto& [tokens, window] : {std::pair(1, 1), {2, 2}, {16, 16}, {16, 32}, {1, 32}, {9, 31}})
    expect_all_ok(step(tokens, window), 4, 5);
  expect_all_ok(step(6, 16).store(Ring{.window = 16, .length = 40}), 4, 6);
}

TEST(GpuRing, BatchesFrom1To1024AreRightInEveryElement) {
  NEEDS_GPU();
  const Description d = mamba2({.nheads = 4, .head_dim = 32, .dstate = 64, .ngroups = 2})
                            .tokens(3)
                            .state(DType::bf16)
                            .store(Ring{.window = 8});
  const Kernel kernels[] = {
      load(d),
      Kernel::load(d, Plan::parse("state_path=bulk,ring_rows=live,heads_per_block=2,stages=1,block_m=16,warps=1",
                                  default_plan(d, arch(), 8)))};
  for (int batch : {1, 2, 31, 100, 257, 1024}) {
    DeviceCase c(d, {.batch = batch, .indexed = true}, static_cast<std::uint64_t>(batch));
    for (const Kernel& kernel : kernels) {
      c.reset();
      run(kernel, c.args());
      EXPECT_THAT(c.test().check(c.result()).failures, IsEmpty()) << kernel.plan().text();
    }
  }
}

TEST(GpuRing, FiveLaunchesOfALargeBatchGiveTheSameBits) {
  NEEDS_GPU();
  for (DType state : {DType::bf16, DType::i8}) {
    const Description d = step().state(state).rounding(Stochastic{});
    const Kernel kernel = load(d);
    DeviceCase c(d, {.batch = 65, .indexed = true});
    run(kernel, c.args());
    const auto first = c.result();
    for (int i = 1; i < 5; ++i) {
      c.reset();
      run(kernel, c.args());
      ASSERT_EQ(c.result(), first) << "launch " << i + 1;
    }
  }
}

// ---- many steps, and steps that must give the same bits ----

// Memory of a test's on the device, for one launch.
class Mirror {
 public:
  void upload(const std::vector<CpuBuffer>& host) {
    for (std::size_t i = 0; i < host.size(); ++i) {
      if (i == buffers_.size()) buffers_.emplace_back();
      if (buffers_[i].size() < host[i].bytes) buffers_[i] = DeviceBuffer(host[i].bytes);
      buffers_[i].upload(host[i].data, host[i].bytes);
    }
  }
  void download(const std::vector<CpuBuffer>& host) const {
    for (std::size_t i = 0; i < host.size(); ++i) buffers_[i].download(host[i].data, host[i].bytes);
  }
  std::vector<std::byte*> base() const {
    std::vector<std::byte*> all;
    for (const DeviceBuffer& buffer : buffers_) all.push_back(buffer.data());
    return all;
  }

 private:
  std::vector<DeviceBuffer> buffers_;
};

// Each kernel is loaded once.
class Kernels {
 public:
  const Kernel& of(const Description& d, const Plan& plan) {
    const std::string key = d.json() + plan.text();
    const auto found = loaded_.find(key);
    return found != loaded_.end() ? found->second : loaded_.emplace(key, Kernel::load(d, plan)).first->second;
  }

 private:
  std::map<std::string, Kernel> loaded_;
};

RingStepper on_the_gpu() {
  const auto kernels = std::make_shared<Kernels>();
  const auto memory = std::make_shared<Mirror>();
  return [=](const Description& d, const Plan& plan, RingMemory& m, Pdl pdl) {
    const Kernel& kernel = kernels->of(d, plan);
    memory->upload(m.buffers());
    RingArgs args = m.args_at(memory->base());
    args.pdl = pdl;
    run(kernel, args);
    memory->download(m.buffers());
  };
}

UpdateStepper updates_on_the_gpu() {
  const auto kernels = std::make_shared<Kernels>();
  const auto memory = std::make_shared<Mirror>();
  return [=](const Description& d, const Plan& plan, const UpdateArgs& args, const std::vector<CpuBuffer>& buffers) {
    const Kernel& kernel = kernels->of(d, plan);
    memory->upload(buffers);
    const std::vector<std::byte*> base = memory->base();
    UpdateArgs there = args;
    for (Tensor* t : {&there.state, &there.x, &there.dt, &there.A, &there.B, &there.C, &there.D, &there.dt_bias,
                      &there.out, &there.state_batch_indices})
      for (std::size_t i = 0; i < buffers.size(); ++i)
        if (t->data == buffers[i].data) {
          t->data = base[i];
          break;
        }
    Stream stream;
    kernel.launch(there, stream.handle());
    stream.synchronize();
    memory->download(buffers);
  };
}

class GpuRingDrift : public testing::TestWithParam<Drift> {};
INSTANTIATE_TEST_SUITE_P(Every, GpuRingDrift, testing::ValuesIn(kDrifts),
                         [](const auto& info) { return info.param.name; });

TEST_P(GpuRingDrift, Of2000StepsIsAtMostATenthMoreThanThatOfADoubleRecurrenceRoundedAtTheSamePoints) {
  NEEDS_GPU();
  expect_little_drift(GetParam(), arch(), on_the_gpu());
}

TEST(GpuRingOfOneRow, IsTheUpdateInPlaceAStepLater) {
  NEEDS_GPU();
  for (const auto& [state, input] : kOneRowDtypes) {
    SCOPED_TRACE(testing::Message() << name(state) << " of " << name(input));
    // Exponentials of the device are less exact than the host's.
    expect_the_update_a_step_later(state, input, 2.0, arch(), on_the_gpu(), updates_on_the_gpu());
  }
}

TEST(GpuRingBits, AreTheSameForVarlenAndDenseForStridedAndContiguousAndUnderEveryPdl) {
  NEEDS_GPU();
  expect_same_bits(several(), arch(), on_the_gpu());
  Description in_int8 = several(DType::i8).rounding(Stochastic{});
  in_int8.dstate = 64;
  expect_same_bits(in_int8, arch(), on_the_gpu());
}

// ---- rounding by chance ----

class GpuRingByChance : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(States, GpuRingByChance, testing::Values(DType::bf16, DType::f16, DType::i8, DType::f8),
                         [](const auto& info) { return std::string(name(info.param)); });

TEST_P(GpuRingByChance, IsUnbiasedOver2MillionElements) {
  NEEDS_GPU();
  expect_fair_flushes(step().state(GetParam()).rounding(Stochastic{}), arch(), 16, on_the_gpu());
}
// Each plan is compiled, for seconds: 6 in 4 dtypes.
TEST_P(GpuRingByChance, GivesTheSameBitsForSampledPlans) {
  NEEDS_GPU();
  expect_same_flushes(step().state(GetParam()).rounding(Stochastic{}), arch(), 3, 6, on_the_gpu());
}

// ---- programmatic dependent launch ----

class DependentRing : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(On, DependentRing, testing::Bool(),
                         [](const auto& info) { return info.param ? "AGraph" : "AStream"; });

TEST_P(DependentRing, BehindASlowProducerEveryModeGivesTheBitsOfOff) {
  NEEDS_GPU();
  const SlowProducer slow;
  for (DType state : {DType::f32, DType::bf16}) {
    const Description d = step().state(state);
    DeviceCase c(d, {.batch = 5, .indexed = true});
    for (const Plan& plan : sample_plans(plan_space(d, arch()), 6, 3)) {
      const Kernel kernel = Kernel::load(d, plan);
      const auto chain = [&](Pdl pdl) {
        return c.after(
            [&](const Stream& stream) {
              c.produce(slow, stream, false);
              kernel.launch(c.args(pdl), stream.handle());
            },
            GetParam());
      };
      const auto off = chain(Pdl::off);
      EXPECT_THAT(c.test().check(off).failures, IsEmpty()) << plan.text();
      EXPECT_EQ(chain(Pdl::wait_first), off) << plan.text();
      EXPECT_EQ(chain(Pdl::early_state), off) << plan.text();
    }
  }
}

// Plans that wait before they read anything, and that ask for the state early.
constexpr const char* kWaits[] = {
    "early_state=false", "early_state=true", "early_state=true,ring_rows=all",
    "early_state=true,state_path=bulk,ring_rows=live,heads_per_block=4,stages=2,block_m=32,warps=2"};

TEST_P(DependentRing, TheSameLayerSteppedTwiceInARowGivesTheBitsOfOff) {
  NEEDS_GPU();
  const SlowProducer slow;
  const Description d = step();
  DeviceCase c(d, {.batch = 5, .indexed = true});
  for (const char* changes : kWaits) {
    SCOPED_TRACE(changes);
    const Kernel kernel = Kernel::load(d, Plan::parse(changes, default_plan(d, arch(), 128)));
    const auto twice = [&](Pdl pdl, bool produced_between, bool dependent) {
      return c.after(
          [&](const Stream& stream) {
            c.produce(slow, stream, false);
            kernel.launch(c.args(pdl), stream.handle());
            if (produced_between) c.produce(slow, stream, dependent);
            kernel.launch(c.args(pdl), stream.handle());
          },
          GetParam());
    };
    const auto off = twice(Pdl::off, false, false);
    EXPECT_EQ(twice(Pdl::off, true, false), off);
    EXPECT_EQ(twice(Pdl::wait_first, false, false), off);
    EXPECT_EQ(twice(Pdl::wait_first, true, true), off);
    // The producer in between is an ordinary launch: the first step has ended, which early_state has as its condition.
    EXPECT_EQ(twice(Pdl::early_state, true, false), off);
  }
}

TEST_P(DependentRing, AnAllPadBatchInsideAChainHidesNoProducer) {
  NEEDS_GPU();
  const SlowProducer slow;
  const std::vector<std::int32_t> pads = {-1, -1, -2, 1000, -7};
  DeviceBuffer indices(pads.size() * 4);
  indices.upload(pads.data(), indices.size());
  for (PadOutput pad : {PadOutput::zeros, PadOutput::untouched}) {
    const Description d = step().pad_output(pad);
    DeviceCase c(d, {.batch = 5, .indexed = true}), all_pads(d, {.batch = 5, .indexed = true}, 2);
    all_pads.change().state_batch_indices = contiguous(indices.data(), DType::i32, {5});
    for (const char* changes : kWaits) {
      const Kernel kernel = Kernel::load(d, Plan::parse(changes, default_plan(d, arch(), 128)));
      const auto chain = [&](Pdl how) {
        return c.after(
            [&](const Stream& stream) {
              c.produce(slow, stream, false);
              kernel.launch(all_pads.args(how), stream.handle());
              kernel.launch(c.args(how), stream.handle());
            },
            GetParam());
      };
      const auto off = chain(Pdl::off);
      for (Pdl pdl : {Pdl::wait_first, Pdl::early_state})
        EXPECT_EQ(chain(pdl), off) << name(pad) << ", " << name(pdl) << ", " << changes;
    }
  }
}

// ---- rows of the list of faults ----

TEST(Faults, Row01_SlotsAndRequestsOfARingPast2To31ElementsGiveTheRightResult) {
  NEEDS_GPU();
  if (free_device_bytes() < (std::int64_t{24} << 30)) GTEST_SKIP() << "less than 24 GiB of device memory are free";
  const Description d = mamba2({.nheads = 2, .head_dim = 64, .dstate = 128, .ngroups = 1})
                            .tokens(3)
                            .state(DType::bf16)
                            .store(Ring{.window = 8});
  // 17 slots and as many requests, the stride 2^27 elements: number 16 starts at element 2^31.
  constexpr std::int64_t kSlots = 17, kStride = std::int64_t{1} << 27;
  DeviceCase c(d, {.batch = kSlots});
  // A tensor of two-byte elements moved to where its slots or requests lie that far apart.
  struct Spread {
    DeviceBuffer far;
    std::size_t slot_bytes;
  };
  const auto spread = [&](Tensor& t) {
    Spread s{DeviceBuffer(static_cast<std::size_t>(((kSlots - 1) * kStride + t.stride[0]) * 2)),
             static_cast<std::size_t>(t.stride[0] * 2)};
    std::vector<std::byte> slot(s.slot_bytes);
    for (std::int64_t i = 0; i < kSlots; ++i) {
      read_device_memory(static_cast<const std::byte*>(t.data) + i * t.stride[0] * 2, slot.data(), slot.size());
      s.far.upload(slot.data(), slot.size(), static_cast<std::size_t>(i * kStride * 2));
    }
    t.data = s.far.data();
    t.stride[0] = kStride;
    return s;
  };
  const Spread states = spread(c.change().state), rings = spread(c.change().x_ring), x = spread(c.change().x),
               B = spread(c.change().B), out = spread(c.change().out);
  run(load(d), c.args());
  auto after = c.result();
  // Back to where the case looks.
  std::vector<std::byte*> host;
  for (auto& block : after) host.push_back(block.data());
  const RingArgs image = c.test().args(host);
  const auto gather = [](const Spread& s, const Tensor& to) {
    for (std::int64_t i = 0; i < kSlots; ++i)
      s.far.download(static_cast<std::byte*>(const_cast<void*>(to.data)) + static_cast<std::size_t>(i) * s.slot_bytes,
                     s.slot_bytes, static_cast<std::size_t>(i * kStride * 2));
  };
  gather(states, image.state);
  gather(rings, image.x_ring);
  gather(out, image.out);
  EXPECT_THAT(c.test().check(after).failures, IsEmpty());
}

TEST(Faults, Row01_RingSlotsPast2To32ElementsOfEveryPoolAreSteppedAsTheFirst) {
  NEEDS_GPU();
  expect_same_bits_of_far_slots(arch(), on_the_gpu());
}

TEST(Faults, Row01_TheRandomBitsOfARingTakePlacesPast2To32) {
  NEEDS_GPU();
  expect_random_bits_of_far_places(arch(), on_the_gpu());
}

TEST(Faults, Row08_LengthsOfARingThatAreNoneReadAndWriteNothingOutsideTheTokens) {
  NEEDS_GPU();
  expect_lengths_that_are_none_stay_inside_the_tokens(arch(), on_the_gpu());
}

// All but the requests' own slots, rows in use and tokens is NaN in these cases, scales and cursors of other slots too.
TEST(Faults, Row11_NanInUnusedRowsOfRingsSlotsAndPadRowsReachesNoLiveRow) {
  NEEDS_GPU();
  for (const char* changes : kWaits)
    for (DType state : {DType::bf16, DType::i8}) {
      const Description d = step(3, 8).state(state).varlen();
      const Kernel kernel = Kernel::load(d, Plan::parse(changes, default_plan(d, arch(), 128)));
      DeviceCase c(d, {.batch = 9, .indexed = true, .padded_state = true, .pads = true});
      run(kernel, c.args());
      const auto after = c.result();
      EXPECT_THAT(c.test().check(after).failures, IsEmpty()) << changes;
      std::vector<std::byte*> base;
      auto copy = after;
      for (auto& block : copy) base.push_back(block.data());
      const Tensor out = c.test().args(base).out;
      for (std::size_t b = 0; b < c.test().requests().size(); ++b) {
        const RingRequest& request = c.test().requests()[b];
        for (int t = 0; t < request.tokens; ++t)
          for (int i = 0; i < d.nheads * d.head_dim; ++i)
            ASSERT_TRUE(std::isfinite(
                stored_value(out, token_offset(d, out, 2, static_cast<std::int64_t>(b), request, t) + i, read_host)))
                << changes << ", request " << b << ", token " << t;
      }
    }
}

TEST(Faults, Row02And03And04_PaddedPoolsNegativeIndicesAndIndicesPastThePoolAreComputedOrPads) {
  NEEDS_GPU();
  for (PadOutput pad : {PadOutput::zeros, PadOutput::untouched}) {
    const Description d = step(3, 8).pad_output(pad);
    const Kernel kernel = load(d);
    for (DType index : {DType::i32, DType::i64}) {
      DeviceCase c(d, {.batch = 9, .index_dtype = index, .indexed = true, .padded_state = true, .pads = true});
      run(kernel, c.args());
      EXPECT_THAT(c.test().check(c.result()).failures, IsEmpty());
    }
  }
}

TEST(Faults, Row06And09_CursorsOutOfRangeAreClampedAndNamedInCheckedMode) {
  NEEDS_GPU();
  const Description d = step(3, 8);
  const Kernel kernel = load(d);
  // Seven requests have a cursor of every kind, two of them out of range.
  DeviceCase c(d, {.batch = 7, .indexed = true});
  run(kernel, c.args());
  EXPECT_THAT(c.test().check(c.result()).failures, IsEmpty());
  c.change().checked = true;
  c.reset();
  try {
    run(kernel, c.args());
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::invalid);
    EXPECT_THAT(e.what(), testing::HasSubstr("ring_"));
  }
}

TEST(Faults, Row13_RingStatesThatDieAndThatHardlyDecayAreRight) {
  NEEDS_GPU();
  for (DType input : {DType::bf16, DType::f16}) {
    const Description d = step(6, 16).input(input).gate(silu(dsl::z));
    const Kernel kernel = load(d);
    for (std::uint64_t seed = 1; seed <= 4; ++seed) {
      DeviceCase c(d, {.batch = 6, .strong_decay = true}, seed);
      run(kernel, c.args());
      EXPECT_THAT(c.test().check(c.result()).failures, IsEmpty());
    }
  }
}

TEST(Faults, Row18_ACapturedGraphOfARingTakesTheSeedThatIsThereWhenItIsReplayed) {
  NEEDS_GPU();
  const Description d = step().rounding(Stochastic{});
  const Kernel kernel = load(d);
  DeviceCase c(d, {.batch = 7, .indexed = true});
  Stream stream;
  const Graph graph(stream, [&] { kernel.launch(c.args(), stream.handle()); });
  const auto replayed = [&](bool other_seed) {
    c.reset();
    if (other_seed) {
      std::int64_t seed = 0;
      void* const there = const_cast<void*>(c.args().rand_seed.data);
      read_device_memory(there, &seed, sizeof seed);
      c.write(there, seed + 1);
    }
    graph.launch(stream);
    stream.synchronize();
    return c.result();
  };
  const auto first = replayed(false);
  EXPECT_EQ(replayed(false), first);
  const auto other = replayed(true);
  std::vector<std::byte*> base, other_base;
  auto a = first, b = other;
  for (auto& block : a) base.push_back(block.data());
  for (auto& block : b) other_base.push_back(block.data());
  const Tensor state = c.test().args(base).state, other_state = c.test().args(other_base).state;
  const auto bytes = static_cast<std::size_t>(state.shape[0] * state.stride[0] * size_bytes(state.dtype));
  EXPECT_NE(std::memcmp(state.data, other_state.data, bytes), 0) << "the seed of the capture was taken again";
  EXPECT_EQ(replayed(false), first);
}

TEST(Faults, Row19_AnEmptyBatchOfRingsLaunchesNothing) {
  NEEDS_GPU();
  const Description d = step(3, 8);
  const Kernel kernel = load(d);
  DeviceCase c(d, {.batch = 2, .indexed = true});
  const auto before = c.result();
  RingArgs none = c.args();
  for (Tensor* t : {&none.x, &none.dt, &none.B, &none.C, &none.out, &none.state_batch_indices}) t->shape[0] = 0;
  run(kernel, none);
  EXPECT_EQ(c.result(), before);
}

}  // namespace
}  // namespace ssmjit
