// Replay kernels on a GPU. Skips aloud without one.
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/device.h>
#include <ssmjit/kernel.h>
#include <ssmjit/source.h>
#include <ssmjit/tune.h>

#include "autotune/conv1d_case.h"
#include "autotune/replay_case.h"
#include "jit/gpu.h"
#include "tests/gpu/device_case.h"
#include "tests/gpu/needs_gpu.h"
#include "tests/gpu/slow_producer.h"

namespace ssmjit {
namespace {

using testing::IsEmpty;

Arch arch() { return device(0).arch(); }

constexpr int kHeads = 16, kGroups = 2, kHeadDim = 64, kDstate = 128;

Description step(int tokens = 6) {
  return mamba2({.nheads = kHeads, .head_dim = kHeadDim, .dstate = kDstate, .ngroups = kGroups})
      .tokens(tokens)
      .state(DType::bf16)
      .store(Replay{});
}

Kernel load(const Description& d) { return Kernel::load(d, default_plan(d, arch(), std::int64_t{8} * d.nheads)); }

using DeviceCase = ssmjit::DeviceCase<ReplayCase>;

void run(const Kernel& kernel, const ReplayArgs& args) {
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

TEST(GpuReplay, SampledPlansComputeASpreadOfDescriptions) {
  NEEDS_GPU();
  for (DType state : {DType::f32, DType::bf16, DType::f16}) {
    expect_all_ok(step().state(state), 8, 1);
    expect_all_ok(step(1).state(state).gate(silu(dsl::z)), 6, 2);
    expect_all_ok(step(16).state(state).input(DType::f16).pad_output(PadOutput::untouched), 6, 3);
    if (state != DType::f32) expect_all_ok(step(9).state(state).rounding(Stochastic{}).no_skip(), 6, 4);
  }
}

TEST(GpuReplay, BatchesFrom1To1024AreRightInEveryElement) {
  NEEDS_GPU();
  const Description d =
      mamba2({.nheads = 4, .head_dim = 32, .dstate = 64, .ngroups = 2}).tokens(3).state(DType::bf16).store(Replay{});
  const Kernel kernel = load(d);
  for (int batch : {1, 2, 31, 100, 257, 1024}) {
    DeviceCase c(d, {.batch = batch, .indexed = true}, static_cast<std::uint64_t>(batch));
    run(kernel, c.args());
    EXPECT_THAT(c.test().check(c.result()).failures, IsEmpty());
  }
}

TEST(GpuReplay, FiveLaunchesOfALargeBatchGiveTheSameBitsWhateverThePlan) {
  NEEDS_GPU();
  const Description d = step().state(DType::f16).rounding(Stochastic{});
  DeviceCase c(d, {.batch = 65, .indexed = true});
  for (const Plan& plan : sample_plans(plan_space(d, arch()), 3, 7)) {
    const Kernel kernel = Kernel::load(d, plan);
    c.reset();
    run(kernel, c.args());
    const auto first = c.result();
    EXPECT_THAT(c.test().check(first).failures, IsEmpty()) << plan.text();
    for (int i = 1; i < 5; ++i) {
      c.reset();
      run(kernel, c.args());
      ASSERT_EQ(c.result(), first) << plan.text() << ", launch " << i + 1;
    }
  }
}

// ---- programmatic dependent launch ----

class DependentReplay : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(On, DependentReplay, testing::Bool(),
                         [](const auto& info) { return info.param ? "AGraph" : "AStream"; });

TEST_P(DependentReplay, BehindASlowProducerEveryModeGivesTheBitsOfOff) {
  NEEDS_GPU();
  const SlowProducer slow;
  for (DType state : {DType::f32, DType::bf16, DType::f16}) {
    const Description d = step().state(state);
    DeviceCase c(d, {.batch = 5, .indexed = true});
    for (const Plan& plan : sample_plans(plan_space(d, arch()), 8, 3)) {
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

// Of two launches, however the second depends on the first.
TEST_P(DependentReplay, BehindASlowProducerTwoLaunchesGiveTheBitsOfOneWhateverDependsOnWhat) {
  NEEDS_GPU();
  const SlowProducer slow;
  for (DType state : {DType::f32, DType::bf16, DType::f16}) {
    const Description d = step().state(state);
    DeviceCase c(d, {.batch = 5, .indexed = true, .pads = true});
    const auto after = [&](const std::string& changes, Pdl pdl, bool internal) {
      const Kernel kernel = Kernel::load(d, Plan::parse(changes, default_plan(d, arch(), std::int64_t{5} * d.nheads)));
      auto blocks = c.after(
          [&](const Stream& stream) {
            c.produce(slow, stream, false);
            ReplayArgs args = c.args(pdl);
            args.internal_pdl = internal;
            kernel.launch(args, stream.handle());
          },
          GetParam());
      for (std::size_t i = 0; i < blocks.size(); ++i)
        if (c.test().blocks()[i].name == "scratch") blocks[i].clear();
      return blocks;
    };
    const auto one = after("", Pdl::off, true);
    for (const char* first : {"precompute_warps=2,precompute_heads=2", "precompute_warps=1,precompute_heads=8",
                              "precompute_warps=4,precompute_heads=4,early_state=true"})
      for (const Pdl pdl : {Pdl::off, Pdl::wait_first, Pdl::early_state})
        for (const bool internal : {false, true})
          EXPECT_EQ(after(first, pdl, internal), one) << name(state) << " " << first << " " << name(pdl) << internal;
  }
}

// A slow producer, the convolution, the replay of what it writes: each may start before the one in front has ended.
TEST_P(DependentReplay, BehindAConvolutionThatWaitsForASlowProducerGivesTheBitsOfOff) {
  NEEDS_GPU();
  const SlowProducer slow;
  constexpr int kChannels = kHeads * kHeadDim + 2 * kGroups * kDstate, kBatch = 5, kTokens = 6;
  const Description conv =
      conv1d({.channels = kChannels, .activation_expr = silu(dsl::x), .channels_last = true}).tokens(kTokens);
  const Description d = step(kTokens);
  ssmjit::DeviceCase<Conv1dCase> front(conv, {.batch = kBatch});
  DeviceCase c(d, {.batch = kBatch, .indexed = true});
  // x, B and C where the convolution leaves them.
  const Tensor& out = front.change().out;
  const auto slice = [&](std::int64_t first, std::int64_t heads, std::int64_t width) {
    return strided(static_cast<const std::byte*>(out.data) + 2 * first, DType::bf16, {kBatch, kTokens, heads, width},
                   {out.stride[0], out.stride[1], width, 1});
  };
  c.change().x = slice(0, kHeads, kHeadDim);
  c.change().B = slice(kHeads * kHeadDim, kGroups, kDstate);
  c.change().C = slice(kHeads * kHeadDim + kGroups * kDstate, kGroups, kDstate);
  const Kernel convolution = load(conv);
  std::vector<Plan> plans = sample_plans(plan_space(d, arch()), 6, 5);
  for (const char* two :
       {"precompute_warps=2,precompute_heads=2", "precompute_warps=1,precompute_heads=4,early_state=true"})
    plans.push_back(Plan::parse(two, default_plan(d, arch(), std::int64_t{kBatch} * kHeads)));
  for (const Plan& plan : plans) {
    const Kernel kernel = Kernel::load(d, plan);
    const auto chain = [&](Pdl of_conv, Pdl pdl) {
      c.reset();
      const auto windows = front.after(
          [&](const Stream& stream) {
            front.produce(slow, stream, false);
            convolution.launch(front.args(of_conv), stream.handle());
            kernel.launch(c.args(pdl), stream.handle());
          },
          GetParam());
      return std::pair(windows, c.result());
    };
    const auto off = chain(Pdl::off, Pdl::off);
    EXPECT_EQ(chain(Pdl::wait_first, Pdl::wait_first), off) << plan.text();
    EXPECT_EQ(chain(Pdl::wait_first, Pdl::early_state), off) << plan.text();
  }
}

TEST_P(DependentReplay, AnAllPadBatchInsideAChainHidesNoProducer) {
  NEEDS_GPU();
  const SlowProducer slow;
  const std::vector<std::int32_t> pads = {-1, -1, -2, 1000, -7};
  DeviceBuffer indices(pads.size() * 4);
  indices.upload(pads.data(), indices.size());
  const Description d = step();
  for (const char* changes :
       {"early_state=false", "early_state=true", "early_state=true,precompute_warps=2,precompute_heads=2"}) {
    const Kernel kernel = Kernel::load(d, Plan::parse(changes, default_plan(d, arch(), 8 * kHeads)));
    DeviceCase c(d, {.batch = 5, .indexed = true}), all_pads(d, {.batch = 5, .indexed = true}, 2);
    all_pads.change().state_batch_indices = contiguous(indices.data(), DType::i32, {5});
    const auto chain = [&](Pdl how) {
      return c.after(
          [&](const Stream& stream) {
            c.produce(slow, stream, false);
            kernel.launch(all_pads.args(how), stream.handle());
            kernel.launch(c.args(how), stream.handle());
          },
          GetParam());
    };
    for (Pdl pdl : {Pdl::wait_first, Pdl::early_state}) EXPECT_EQ(chain(pdl), chain(Pdl::off)) << name(pdl);
  }
}

// ---- rows of the list of faults ----

TEST(Faults, Row02And03And04_PaddedPoolsAndPadRowsOfAReplayAreComputedOrPads) {
  NEEDS_GPU();
  for (PadOutput pad : {PadOutput::zeros, PadOutput::untouched}) {
    const Description d = step(3).pad_output(pad);
    const Kernel kernel = load(d);
    for (DType index : {DType::i32, DType::i64}) {
      DeviceCase c(d, {.batch = 9, .index_dtype = index, .indexed = true, .padded_state = true, .pads = true});
      run(kernel, c.args());
      EXPECT_THAT(c.test().check(c.result()).failures, IsEmpty());
    }
  }
}

TEST(Faults, Row06_BuffersAndCountsOfAReplayAreClampedAndNamedInCheckedMode) {
  NEEDS_GPU();
  const Description d = step(3);
  const Kernel kernel = load(d);
  DeviceCase c(d, {.batch = 7, .indexed = true});  // a cursor of every kind, two of them out of range
  run(kernel, c.args());
  EXPECT_THAT(c.test().check(c.result()).failures, IsEmpty());
  c.change().checked = true;
  c.reset();
  try {
    run(kernel, c.args());
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::invalid);
    EXPECT_THAT(e.what(), testing::HasSubstr("prev_num_accepted_tokens["));
  }
}

TEST(Faults, Row13_StatesOfAReplayThatDieAndThatHardlyDecayAreRight) {
  NEEDS_GPU();
  for (DType input : {DType::bf16, DType::f16}) {
    const Description d = step(6).input(input).gate(silu(dsl::z));
    const Kernel kernel = load(d);
    for (std::uint64_t seed = 1; seed <= 4; ++seed) {
      DeviceCase c(d, {.batch = 6, .strong_decay = true}, seed);
      run(kernel, c.args());
      EXPECT_THAT(c.test().check(c.result()).failures, IsEmpty());
    }
  }
}

}  // namespace
}  // namespace ssmjit
