// Update kernels of several tokens on a GPU. Skips aloud without one.
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/device.h>
#include <ssmjit/error.h>
#include <ssmjit/kernel.h>
#include <ssmjit/source.h>
#include <ssmjit/tune.h>

#include "autotune/tokens_case.h"
#include "jit/gpu.h"
#include "tests/gpu/device_case.h"
#include "tests/gpu/needs_gpu.h"
#include "tests/gpu/slow_producer.h"

namespace ssmjit {
namespace {

using testing::IsEmpty;

Arch arch() { return device(0).arch(); }

// 16 heads, as the shipped models' at TP 8.
Description of(int tokens, int heads = 16) {
  return mamba2({.nheads = heads, .head_dim = 64, .dstate = 128, .ngroups = 2}).tokens(tokens).state(DType::bf16);
}

Kernel load(const Description& d) { return Kernel::load(d, default_plan(d, arch(), std::int64_t{8} * d.nheads)); }

using DeviceCase = ssmjit::DeviceCase<TokensCase>;

void run(const Kernel& kernel, const UpdateArgs& args) {
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

TEST(GpuTokens, SampledPlansComputeASpreadOfDescriptions) {
  NEEDS_GPU();
  for (const DType state : {DType::f32, DType::bf16, DType::f16, DType::i8, DType::f8, DType::i16}) {
    expect_all_ok(of(6).state(state).store(Snapshots{}), 5, 1);
    expect_all_ok(of(6).state(state).store(Slots{}).accepted_counts().gate(silu(dsl::z)), 5, 2);
    expect_all_ok(of(4).state(state).store(Snapshots{}).tree().varlen().pad_output(PadOutput::untouched), 5, 3);
    if (state != DType::f32) expect_all_ok(of(3).state(state).store(Slots{}).rounding(Stochastic{}), 5, 4);
  }
}

TEST(GpuTokens, OneTokenAndManyAreComputed) {
  NEEDS_GPU();
  for (const int tokens : {1, 2, 16, 17, 40}) {
    expect_all_ok(of(tokens).store(Slots{}), 3, 5);
    expect_all_ok(of(tokens).varlen().destination_slots(), 3, 6);
  }
}

TEST(GpuTokens, FiveLaunchesOfALargeBatchGiveTheSameBits) {
  NEEDS_GPU();
  for (const Store& store : {Store(Snapshots{}), Store(Slots{})}) {
    const Description d = of(6).store(store).rounding(Stochastic{});
    const Kernel kernel = load(d);
    DeviceCase c(d, {.batch = 33, .indexed = true});
    run(kernel, c.args());
    const auto first = c.result();
    for (int i = 1; i < 5; ++i) {
      c.reset();
      run(kernel, c.args());
      ASSERT_EQ(c.result(), first) << "launch " << i + 1;
    }
  }
}

// ---- programmatic dependent launch ----

class DependentTokens : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(On, DependentTokens, testing::Bool(),
                         [](const auto& info) { return info.param ? "AGraph" : "AStream"; });

TEST_P(DependentTokens, BehindASlowProducerEveryModeGivesTheBitsOfOff) {
  NEEDS_GPU();
  const SlowProducer slow;
  // Few heads, and plans: each state after a token is compared with one in double, each plan compiled, for seconds.
  for (const Description& d : {of(6, 4).store(Slots{}).accepted_counts(), of(18, 4).store(Snapshots{}).varlen()}) {
    DeviceCase c(d, {.batch = 5, .indexed = true, .pads = true});
    for (const Plan& plan : sample_plans(plan_space(d, arch()), 3, 3)) {
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

// ---- rows of the list of faults ----

TEST(Faults, Row01_SlotsOfTokensPast2To31ElementsGiveTheRightResult) {
  NEEDS_GPU();
  if (free_device_bytes() < (std::int64_t{12} << 30)) GTEST_SKIP() << "less than 12 GiB of device memory are free";
  const Description d =
      mamba2({.nheads = 2, .head_dim = 64, .dstate = 128, .ngroups = 1}).tokens(3).state(DType::bf16).store(Slots{});
  // 4 slots a row: with a stride of 2^27 elements slot 16 starts at element 2^31.
  constexpr std::int64_t kBatch = 5, kSlots = 4 * kBatch, kStride = std::int64_t{1} << 27;
  DeviceCase c(d, {.batch = kBatch});
  Tensor& state = c.change().state;
  const auto slot_bytes = static_cast<std::size_t>(state.stride[0] * 2);
  const DeviceBuffer far(static_cast<std::size_t>((kSlots - 1) * kStride * 2) + slot_bytes);
  std::vector<std::byte> slot(slot_bytes);
  for (std::int64_t i = 0; i < kSlots; ++i) {
    read_device_memory(static_cast<const std::byte*>(state.data) + static_cast<std::size_t>(i) * slot_bytes,
                       slot.data(), slot_bytes);
    far.upload(slot.data(), slot_bytes, static_cast<std::size_t>(i * kStride * 2));
  }
  state.data = far.data();
  state.stride[0] = kStride;
  run(load(d), c.args());
  auto after = c.result();
  // Back to where the case looks.
  std::vector<std::byte*> host;
  for (auto& block : after) host.push_back(block.data());
  const UpdateArgs image = c.test().args(host);
  for (std::int64_t i = 0; i < kSlots; ++i)
    far.download(
        static_cast<std::byte*>(const_cast<void*>(image.state.data)) + static_cast<std::size_t>(i) * slot_bytes,
        slot_bytes, static_cast<std::size_t>(i * kStride * 2));
  EXPECT_THAT(c.test().check(after).failures, IsEmpty());
}

TEST(Faults, Row03And04And06_PadsAndCountsOutOfRangeOfTokensAreWhatTheyAreSaidToBe) {
  NEEDS_GPU();
  for (const PadOutput pad : {PadOutput::zeros, PadOutput::untouched, PadOutput::as_if_zero_state}) {
    const Description d = of(3).store(Slots{}).accepted_counts().pad_output(pad);
    const Kernel kernel = load(d);
    for (const DType index : {DType::i32, DType::i64}) {
      DeviceCase c(d, {.batch = 9, .index_dtype = index, .indexed = true, .padded_state = true, .pads = true});
      run(kernel, c.args());
      EXPECT_THAT(c.test().check(c.result()).failures, IsEmpty());
    }
  }
}

TEST(Faults, Row05_OneSlotForTwoTokensIsFoundInCheckedMode) {
  NEEDS_GPU();
  const Description d = of(2).store(Slots{});
  const Kernel kernel = load(d);
  DeviceCase c(d, {.batch = 2, .indexed = true});
  const std::vector<std::int32_t> same = {3, 3, 4, 5};
  DeviceBuffer indices(same.size() * 4);
  indices.upload(same.data(), indices.size());
  c.change().dst_state_batch_indices = contiguous(indices.data(), DType::i32, {2, 2});
  c.change().checked = true;
  try {
    run(kernel, c.args());
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::invalid);
    EXPECT_THAT(e.what(), testing::HasSubstr("are both slot 3"));
  }
}

TEST(Faults, Row13_StatesOfTokensThatDieAndThatHardlyDecayAreRight) {
  NEEDS_GPU();
  for (const DType input : {DType::bf16, DType::f16}) {
    const Description d = of(6).store(Snapshots{}).input(input).gate(silu(dsl::z));
    const Kernel kernel = load(d);
    for (std::uint64_t seed = 1; seed <= 4; ++seed) {
      DeviceCase c(d, {.batch = 6, .strong_decay = true}, seed);
      run(kernel, c.args());
      EXPECT_THAT(c.test().check(c.result()).failures, IsEmpty());
    }
  }
}

TEST(Faults, Row19_BatchesOfTokensFromNoneTo1024AreRightInEveryElement) {
  NEEDS_GPU();
  const Description d =
      mamba2({.nheads = 4, .head_dim = 16, .dstate = 64, .ngroups = 2}).tokens(3).state(DType::bf16).store(Snapshots{});
  const Kernel kernel = load(d);
  for (const int batch : {1, 2, 31, 257, 1024}) {
    DeviceCase c(d, {.batch = batch, .indexed = true}, static_cast<std::uint64_t>(batch));
    run(kernel, c.args());
    EXPECT_THAT(c.test().check(c.result()).failures, IsEmpty());
  }
  DeviceCase c(d, {.batch = 2, .indexed = true});
  const auto before = c.result();
  UpdateArgs none = c.args();
  for (Tensor* t : {&none.x, &none.dt, &none.B, &none.C, &none.out, &none.state_batch_indices}) t->shape[0] = 0;
  run(kernel, none);
  EXPECT_EQ(c.result(), before);
}

}  // namespace
}  // namespace ssmjit
