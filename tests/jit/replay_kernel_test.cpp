#include <cstring>
#include <limits>
#include <string>
#include <tuple>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/kernel.h>

#include "jit/kernel_args.h"
#include "tests/jit/allocation_count.h"
#include "tests/jit/launch_test.h"

namespace ssmjit {

namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr std::int64_t kSlots = 12, kBatch = 3, kTokens = 6, kHeads = 4, kHeadDim = 64, kDstate = 128, kGroups = 2;

// Everything that a replay may have.
Description full_description() {
  return mamba2({.nheads = kHeads, .head_dim = kHeadDim, .dstate = kDstate, .ngroups = kGroups})
      .tokens(kTokens)
      .state(DType::f16)
      .gate(silu(dsl::z))
      .rounding(Stochastic{})
      .store(Replay{});
}

ReplayArgs full_args() {
  ReplayArgs args;
  args.state = contiguous(address(0x1000000), DType::f16, {kSlots, kHeads, kHeadDim, kDstate});
  args.old_x = contiguous(address(0x1200000), DType::bf16, {kSlots, kTokens, kHeads, kHeadDim});
  args.old_B = contiguous(address(0x1300000), DType::bf16, {kSlots, 2, kTokens, kGroups, kDstate});
  args.old_dt = contiguous(address(0x1400000), DType::f32, {kSlots, 2, kHeads, kTokens});
  args.old_cumAdt = contiguous(address(0x1500000), DType::f32, {kSlots, 2, kHeads, kTokens});
  args.cache_buf_idx = contiguous(address(0x1600000), DType::i32, {kSlots});
  args.prev_num_accepted_tokens = contiguous(address(0x1700000), DType::i32, {kSlots});
  args.x = contiguous(address(0x2000000), DType::bf16, {kBatch, kTokens, kHeads, kHeadDim});
  args.dt = contiguous(address(0x3000000), DType::f32, {kBatch, kTokens, kHeads});
  args.A = contiguous(address(0x4000000), DType::f32, {kHeads});
  args.B = contiguous(address(0x5000000), DType::bf16, {kBatch, kTokens, kGroups, kDstate});
  args.C = contiguous(address(0x6000000), DType::bf16, {kBatch, kTokens, kGroups, kDstate});
  args.D = contiguous(address(0x7000000), DType::f32, {kHeads});
  args.dt_bias = contiguous(address(0x8000000), DType::f32, {kHeads});
  args.z = contiguous(address(0x9000000), DType::bf16, {kBatch, kTokens, kHeads, kHeadDim});
  args.out = contiguous(address(0xa000000), DType::bf16, {kBatch, kTokens, kHeads, kHeadDim});
  args.rand_seed = contiguous(address(0xb000000), DType::i64, {1});
  return args;
}

std::vector<std::string> problems(const ReplayArgs& args) { return Kernel::problems(full_description(), args); }

struct Named {
  const char* name;
  Tensor ReplayArgs::*tensor;
};
constexpr Named kTensors[] = {{"state", &ReplayArgs::state},
                              {"old_x", &ReplayArgs::old_x},
                              {"old_B", &ReplayArgs::old_B},
                              {"old_dt", &ReplayArgs::old_dt},
                              {"old_cumAdt", &ReplayArgs::old_cumAdt},
                              {"cache_buf_idx", &ReplayArgs::cache_buf_idx},
                              {"prev_num_accepted_tokens", &ReplayArgs::prev_num_accepted_tokens},
                              {"x", &ReplayArgs::x},
                              {"dt", &ReplayArgs::dt},
                              {"A", &ReplayArgs::A},
                              {"B", &ReplayArgs::B},
                              {"C", &ReplayArgs::C},
                              {"D", &ReplayArgs::D},
                              {"dt_bias", &ReplayArgs::dt_bias},
                              {"z", &ReplayArgs::z},
                              {"out", &ReplayArgs::out},
                              {"rand_seed", &ReplayArgs::rand_seed}};
constexpr Tensor ReplayArgs::*kPools[] = {&ReplayArgs::state, &ReplayArgs::old_x, &ReplayArgs::old_B,
                                          &ReplayArgs::old_dt, &ReplayArgs::old_cumAdt};

TEST(ReplayProblems, GoodArgumentsHaveNone) {
  EXPECT_THAT(problems(full_args()), IsEmpty());
  ReplayArgs args = full_args();
  args.rand_seed = contiguous(address(0xb000000), DType::i64, {kSlots});
  EXPECT_THAT(problems(args), IsEmpty()) << "a seed a slot";
  args.rand_seed.shape[0] = kSlots - 1;
  EXPECT_THAT(problems(args), ElementsAre("rand_seed: got shape [" + std::to_string(kSlots - 1) + "]; wants [" +
                                          std::to_string(kSlots) + "] or [1]"));
  args.rand_seed.shape[0] = kSlots;
  args.state_batch_indices = strided(address(0xd000000), DType::i64, {kBatch, 1}, {2, 1});
  EXPECT_THAT(problems(args), IsEmpty());
}

TEST(ReplayProblems, OneValueAHeadMayBeAnExpandedViewAndReachesTheKernelAsThePlainOne) {
  ReplayArgs args = full_args();
  args.A = strided(args.A.data, DType::f32, {kHeads, kHeadDim, kDstate}, {1, 0, 0});
  for (Tensor* tensor : {&args.dt, &args.D, &args.dt_bias}) {
    const auto behind = static_cast<std::size_t>(tensor->rank++);
    tensor->shape[behind] = kHeadDim;
    tensor->stride[behind] = 0;
  }
  EXPECT_THAT(problems(args), IsEmpty());
  const device_args::RingArgs a = to_device(args, Pdl::off), b = to_device(full_args(), Pdl::off);
  EXPECT_EQ(std::memcmp(&a, &b, sizeof a), 0);
}

TEST(Faults, Row15_AWrongDtypeOfAnyTensorOfAReplayIsNamed) {
  for (const Named& named : kTensors) {
    ReplayArgs args = full_args();
    (args.*named.tensor).dtype = DType::i8;
    EXPECT_THAT(problems(args), Contains(HasSubstr(std::string(named.name) + ": got dtype int8"))) << named.name;
  }
}

TEST(ReplayProblems, AWrongRankOrExtentOfAnyTensorIsNamed) {
  for (const Named& named : kTensors) {
    ReplayArgs args = full_args();
    ++(args.*named.tensor).rank;
    (args.*named.tensor).shape[static_cast<std::size_t>((args.*named.tensor).rank) % kMostDimensions] = 3;
    EXPECT_THAT(problems(args), Contains(HasSubstr(std::string(named.name) + ": got"))) << named.name;
    args = full_args();
    Tensor& tensor = args.*named.tensor;
    ++tensor.shape[static_cast<std::size_t>(tensor.rank) - 1];
    EXPECT_THAT(problems(args), Contains(HasSubstr(std::string(named.name) + ": got shape"))) << named.name;
  }
}

TEST(ReplayProblems, TensorsMustBeGivenAsTheDescriptionHasThem) {
  for (const Named& named : kTensors) {
    ReplayArgs args = full_args();
    args.*named.tensor = Tensor{};
    EXPECT_THAT(problems(args), Contains(HasSubstr(std::string(named.name) + ": not given"))) << named.name;
  }
  const Description plain = mamba2({.nheads = kHeads, .head_dim = kHeadDim, .dstate = kDstate, .ngroups = kGroups})
                                .tokens(kTokens)
                                .state(DType::f16)
                                .store(Replay{});
  EXPECT_THAT(Kernel::problems(plain, full_args()),
              ElementsAre(HasSubstr("z: given, but"), HasSubstr("rand_seed: given, but")));
  ReplayArgs args = full_args();
  args.scratch = contiguous(address(0xe000000), DType::i8, {1024});
  EXPECT_THAT(problems(args), IsEmpty()) << "a plan of one launch leaves scratch alone";
}

TEST(ReplayProblems, ArgumentsOfAnotherVersionOrOpAreRefused) {
  ReplayArgs args = full_args();
  args.size = 8;
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("args: size is 8")));
  EXPECT_THAT(Kernel::problems(full_description(), RingArgs{}),
              ElementsAre("args: got RingArgs for a replay kernel; wants ReplayArgs"));
  EXPECT_THAT(Kernel::problems(full_description().store(Ring{}), full_args()),
              ElementsAre("args: got ReplayArgs for a ring kernel; wants RingArgs"));
}

TEST(Faults, Row2_PaddedPagesOfAReplaysPoolsAreTakenAndMisalignedOnesRefused) {
  for (Tensor ReplayArgs::*pool : kPools) {
    ReplayArgs args = full_args();
    (args.*pool).stride[0] += 64;
    EXPECT_THAT(problems(args), IsEmpty());
    (args.*pool).stride[0] -= 65;
    EXPECT_THAT(problems(args), SizeIs(1)) << "slots that overlap";
  }
  for (Tensor ReplayArgs::*pool : {&ReplayArgs::state, &ReplayArgs::old_x, &ReplayArgs::old_B}) {
    ReplayArgs args = full_args();
    (args.*pool).stride[0] += 4;
    EXPECT_THAT(problems(args), ElementsAre(HasSubstr("is not a multiple of 16 bytes")));
    args = full_args();
    (args.*pool).data = static_cast<const char*>((args.*pool).data) + 8;
    EXPECT_THAT(problems(args), ElementsAre(HasSubstr("is not a multiple of 16 bytes; move the base")));
  }
}

TEST(Faults, Row1_PoolsOfAReplayPastTwoToThe31ElementsAreTaken) {
  ReplayArgs args = full_args();
  for (Tensor ReplayArgs::*pool : kPools) (args.*pool).stride[0] = std::numeric_limits<int>::max() / 64 * 64;
  EXPECT_THAT(problems(args), IsEmpty());
  args.state.stride[0] = std::int64_t{1} << 31;
  EXPECT_THAT(problems(args),
              ElementsAre(HasSubstr("state: slot stride 2147483648 elements; wants 2147483647 at most")));
}

TEST(Faults, Row16_RequestsAndTokensOfAReplayMayBeStrided) {
  ReplayArgs args = full_args();
  for (Tensor ReplayArgs::*tensor : {&ReplayArgs::x, &ReplayArgs::B, &ReplayArgs::C, &ReplayArgs::z, &ReplayArgs::out})
    (args.*tensor).stride[1] = 2048, (args.*tensor).stride[0] = 16384;
  EXPECT_THAT(problems(args), IsEmpty());
  args.B.stride[2] = 256;
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("B: dimension 2 has stride 256; wants 128")));
}

TEST(Faults, Row7_OtherThanTheReplaysTokensAreRefusedByShape) {
  ReplayArgs args = full_args();
  args.x.shape[1] = 7;
  EXPECT_THAT(problems(args), ElementsAre("x: got shape [3, 7, 4, 64]; wants [3, 6, 4, 64]"));
  args = full_args();
  args.old_B.shape[2] = 5;
  EXPECT_THAT(problems(args), ElementsAre("old_B: got shape [12, 2, 5, 2, 128]; wants [12, 2, 6, 2, 128]"));
}

TEST(ReplayProblems, WithoutIndicesEveryRequestNeedsItsSlot) {
  ReplayArgs args = full_args();
  for (const Named& named : kTensors)
    if ((args.*named.tensor).shape[0] == kSlots) (args.*named.tensor).shape[0] = 2;
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("state: 2 slots for 3 rows")));
}

// Launches, on the stub driver.
class ReplayLaunch : public StubLaunchTest<device_args::RingArgs> {};

TEST_F(ReplayLaunch, GivesTheDeviceWhatTheCallerGave) {
  const Kernel kernel = load(full_description());
  ReplayArgs args = full_args();
  args.rand_seed = contiguous(address(0xb000000), DType::i64, {kSlots});
  args.state_batch_indices = strided(address(0xd000000), DType::i64, {kBatch, 1}, {2, 1});
  args.pad_slot_id = 7;
  args.pdl = Pdl::early_state;
  kernel.launch(args, nullptr);
  ASSERT_EQ(stub_->launches, 1);
  const LaunchShape shape = launch_shape(plan_, full_description(), kBatch);
  EXPECT_EQ(stub_->last.grid[0], shape.grid_x);
  EXPECT_EQ(stub_->last.grid[1], shape.grid_y);
  EXPECT_EQ(stub_->last.pdl, 1);
  const device_args::RingArgs device = launched();
  EXPECT_EQ(device.state, args.state.data);
  EXPECT_EQ(device.slots, kSlots);
  EXPECT_EQ(device.x_ring, args.old_x.data);
  EXPECT_EQ(device.x_ring_stride, kTokens * kHeads * kHeadDim);
  EXPECT_EQ(device.B_ring, args.old_B.data);
  EXPECT_EQ(device.B_ring_stride, 2 * kTokens * kGroups * kDstate);
  EXPECT_EQ(device.dt_ring, args.old_dt.data);
  EXPECT_EQ(device.dt_ring_stride, 2 * kHeads * kTokens);
  EXPECT_EQ(device.sum_ring, args.old_cumAdt.data);
  EXPECT_EQ(device.sum_ring_stride, 2 * kHeads * kTokens);
  EXPECT_EQ(device.ring_start, args.cache_buf_idx.data);
  EXPECT_EQ(device.ring_count, args.prev_num_accepted_tokens.data);
  EXPECT_EQ(device.x, args.x.data);
  EXPECT_EQ(device.x_token_stride, kHeads * kHeadDim);
  EXPECT_EQ(device.dt_token_stride, kHeads);
  EXPECT_EQ(device.C_stride, kTokens * kGroups * kDstate);
  EXPECT_EQ(device.out, args.out.data);
  EXPECT_EQ(device.index_stride, 4);  // words
  EXPECT_EQ(device.wide_indices, 1);
  EXPECT_EQ(device.pad_slot_id, 7);
  EXPECT_EQ(device.rand_seed, args.rand_seed.data);
  EXPECT_EQ(device.rand_seed_stride, 1);
  EXPECT_EQ(device.nheads, kHeads);
  EXPECT_EQ(device.pdl, 2);
  kernel.launch(full_args(), nullptr);
  EXPECT_EQ(launched().rand_seed_stride, 0) << "one seed for all";
}

// ---- two launches ----

class TwoReplayLaunches : public ReplayLaunch {
 protected:
  Kernel load_two(const std::string& changes = "") {
    const Description d = full_description();
    plan_ = Plan::parse("precompute_warps=2,precompute_heads=2" + changes, default_plan(d, arch_, 3 * kHeads));
    Source source;
    source.text = "never compiled";
    source.arch = arch_;
    for (const PlanPart& part : plan_parts(plan_, d)) {
      const LaunchShape shape = launch_shape(part, 1);
      source.entries.push_back({part.is_precompute ? "first" : "second", shape.block_threads, shape.smem_bytes});
    }
    Cubin cubin;
    cubin.image.assign(16, 'c');
    cubin.arch = arch_;
    return Kernel::load(d, plan_, source, cubin);
  }
  ReplayArgs with_scratch() const {
    ReplayArgs args = full_args();
    args.scratch = contiguous(address(0xe000000), DType::i8, {scratch_bytes(plan_, full_description(), kBatch)});
    return args;
  }
};

TEST_F(TwoReplayLaunches, TheSecondDependsOnTheFirstAndIsAsEarlyAsWhatIsInFrontOfBothLetsItBe) {
  for (const auto& [changes, pdl, internal, behind] : {std::tuple("", Pdl::off, true, 2),
                                                       {"", Pdl::wait_first, true, 1},
                                                       {"", Pdl::early_state, true, 1},
                                                       {",early_state=true", Pdl::early_state, true, 2},
                                                       {",early_state=true", Pdl::wait_first, true, 1},
                                                       {"", Pdl::off, false, 0},
                                                       {",early_state=true", Pdl::early_state, false, 0}}) {
    const Kernel kernel = load_two(changes);
    ReplayArgs args = with_scratch();
    args.pdl = pdl;
    args.internal_pdl = internal;
    stub_->launches = 0;
    kernel.launch(args, nullptr);
    ASSERT_EQ(stub_->launches, 2);
    EXPECT_EQ(launched().pdl, behind) << changes << " " << name(pdl) << " " << internal;
    EXPECT_EQ(stub_->last.pdl, behind != 0 ? 1 : 0);
    EXPECT_EQ(launched().weights, args.scratch.data);
    EXPECT_EQ(stub_->last.grid[0], launch_shape(plan_, full_description(), kBatch).grid_x);
  }
}

TEST_F(TwoReplayLaunches, TheFirstHasABlockForItsHeadsAndBothPassOnARecordAHead) {
  load_two();
  const std::vector<PlanPart> parts = plan_parts(plan_, full_description());
  ASSERT_EQ(parts.size(), 2u);
  EXPECT_TRUE(parts[0].is_precompute);
  EXPECT_EQ(launch_shape(parts[0], kBatch), (LaunchShape{.grid_x = kHeads / 2, .grid_y = kBatch, .block_threads = 64}));
  EXPECT_EQ(launch_shape(parts[1], kBatch), launch_shape(plan_, full_description(), kBatch));
  // 6 tokens: a word a lane and 8 decays; 12 tokens: four words and 16.
  EXPECT_EQ(scratch_bytes(plan_, full_description(), 5), 5 * kHeads * (32 + 8) * 4);
  EXPECT_EQ(scratch_bytes(plan_, full_description().tokens(12), 5), 5 * kHeads * (4 * 32 + 16) * 4);
  EXPECT_EQ(scratch_bytes(default_plan(full_description(), arch_, 12), full_description(), 5), 0);
}

TEST_F(TwoReplayLaunches, FaultRow17_ScratchThatIsMissingTooSmallOrMisalignedIsRefusedBeforeEither) {
  const Kernel kernel = load_two();
  const std::int64_t bytes = scratch_bytes(plan_, full_description(), kBatch);
  const auto refusal = [&](const Tensor& scratch) {
    ReplayArgs args = full_args();
    args.scratch = scratch;
    return std::string(error_of([&] { kernel.launch(args, nullptr); }).what());
  };
  EXPECT_EQ(refusal(Tensor{}), "scratch: not given; a replay by two launches of 3 rows wants " + std::to_string(bytes) +
                                   " bytes (scratch_bytes())");
  EXPECT_EQ(refusal(contiguous(address(0xe000000), DType::i8, {bytes - 1})),
            "scratch: got int8 of shape [" + std::to_string(bytes - 1) +
                "]; a replay by two launches of 3 rows wants int8 of shape [" + std::to_string(bytes) + "] or more");
  EXPECT_THAT(refusal(contiguous(address(0xe000080), DType::i8, {bytes})), HasSubstr("is not a multiple of 256 bytes"));
  EXPECT_EQ(stub_->launches, 0);
}

TEST_F(ReplayLaunch, AllocatesNothing) {
  const Kernel kernel = load(full_description());
  const ReplayArgs args = full_args();
  kernel.launch(args, nullptr);
  const long before = allocation_count();
  for (int i = 0; i < 100; ++i) kernel.launch(args, nullptr);
  EXPECT_EQ(allocation_count(), before);
}

TEST_F(ReplayLaunch, AWrongTensorIsNamedAndNothingLaunched) {
  const Kernel kernel = load(full_description());
  ReplayArgs args = full_args();
  args.cache_buf_idx.dtype = DType::i64;
  const Error error = error_of([&] { kernel.launch(args, nullptr); });
  EXPECT_EQ(error.kind(), ErrorKind::invalid);
  EXPECT_STREQ(error.what(), "cache_buf_idx: got dtype int64; wants int32");
  EXPECT_EQ(error_of([] { Kernel().launch(full_args(), nullptr); }).kind(), ErrorKind::invalid);
  EXPECT_EQ(stub_->launches, 0);
}

TEST_F(ReplayLaunch, FaultRow19_AnEmptyBatchLaunchesNothingAndTheGridsLimitIsNamed) {
  const Kernel kernel = load(full_description());
  const auto with_batch = [](std::int64_t batch) {
    ReplayArgs args = full_args();
    for (Tensor* t : {&args.x, &args.dt, &args.B, &args.C, &args.z, &args.out}) t->shape[0] = batch;
    args.state_batch_indices = contiguous(address(0xd000000), DType::i32, {batch});
    return args;
  };
  kernel.launch(with_batch(0), nullptr);
  EXPECT_EQ(stub_->launches, 0);
  kernel.launch(with_batch(1024), nullptr);
  EXPECT_EQ(stub_->last.grid[1], 1024u);
  EXPECT_THAT(problems(with_batch(65536)), ElementsAre(HasSubstr("x: got 65536 requests")));
}

// Checked mode; the stub's device memory is host memory.
class CheckedReplayLaunch : public ReplayLaunch {
 protected:
  std::string refusal() {
    const Kernel kernel = load(full_description());
    ReplayArgs args = full_args();
    args.checked = true;
    args.cache_buf_idx = contiguous(buffer_.data(), DType::i32, {kSlots});
    args.prev_num_accepted_tokens = contiguous(accepted_.data(), DType::i32, {kSlots});
    args.state_batch_indices = contiguous(slots_.data(), DType::i64, {kBatch});
    const int before = stub_->launches;
    try {
      kernel.launch(args, nullptr);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::invalid);
      EXPECT_EQ(stub_->launches, before);
      return error.what();
    }
    EXPECT_EQ(stub_->launches, before + 1);
    return {};
  }

  std::vector<std::int64_t> slots_ = {11, 0, 5};
  std::vector<std::int32_t> buffer_ = std::vector<std::int32_t>(kSlots, 1),
                            accepted_ = std::vector<std::int32_t>(kSlots, 6);
};

TEST_F(CheckedReplayLaunch, GoodIndicesBuffersAndCountsAreLaunched) {
  EXPECT_EQ(refusal(), "");
  EXPECT_EQ(stub_->synchronised, 1);
}

TEST_F(CheckedReplayLaunch, FaultRow3_PadRowsMayShareTheirIndexAndHaveNoCursors) {
  buffer_.assign(kSlots, -7);
  accepted_.assign(kSlots, 99);
  slots_ = {-1, -1, -5};
  EXPECT_EQ(refusal(), "");
}

TEST_F(CheckedReplayLaunch, FaultRow4_AnIndexPastThePoolIsNamedWithItsRow) {
  slots_ = {0, 12, 99};
  EXPECT_EQ(refusal(),
            "state_batch_indices[1] is 12; the state has 12 slots\n"
            "state_batch_indices[2] is 99; the state has 12 slots");
}

TEST_F(CheckedReplayLaunch, FaultRow5_TheSameLiveSlotTwiceIsNamedWithBothRows) {
  slots_ = {4, 7, 4};
  EXPECT_EQ(refusal(), "state_batch_indices[0] and [2] are both slot 4; rows of one launch must write different slots");
}

TEST_F(CheckedReplayLaunch, FaultRow6_BuffersAndCountsOutOfRangeAreNamedWithSlotAndRow) {
  accepted_[0] = 7;
  buffer_[5] = 2;
  accepted_[5] = -1;
  buffer_[3] = accepted_[3] = 1000;  // a slot that no row uses
  EXPECT_EQ(refusal(),
            "prev_num_accepted_tokens[0] is 7, of row 1; wants 0 to 6\n"
            "cache_buf_idx[5] is 2, of row 2; wants 0 to 1\n"
            "prev_num_accepted_tokens[5] is -1, of row 2; wants 0 to 6");
}

TEST_F(CheckedReplayLaunch, FaultRow20_IsRefusedUnderCapture) {
  stub_->capturing = 1;
  EXPECT_THAT(refusal(), HasSubstr("the stream is being captured"));
  EXPECT_EQ(stub_->synchronised, 0);
}

}  // namespace
}  // namespace ssmjit
