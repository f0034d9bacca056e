#include <algorithm>
#include <cstring>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/kernel.h>

#include "jit/kernel_args.h"
#include "tests/jit/allocation_count.h"
#include "tests/jit/launch_test.h"

namespace ssmjit {

namespace {

using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::int64_t kSlots = 12, kBatch = 3, kTokens = 6, kLength = 22, kHeads = 4, kHeadDim = 64, kDstate = 128,
                       kGroups = 2, kTotal = 11;

Description plain() {
  return mamba2({.nheads = kHeads, .head_dim = kHeadDim, .dstate = kDstate, .ngroups = kGroups})
      .tokens(kTokens)
      .state(DType::bf16)
      .store(Ring{.window = 16});
}
// Everything that a ring may have.
Description full_description() { return plain().state(DType::i8).gate(silu(dsl::z)).rounding(Stochastic{}); }
Description varlen_description() { return full_description().varlen(); }

RingArgs full_args() {
  RingArgs args;
  args.state = contiguous(address(0x1000000), DType::i8, {kSlots, kHeads, kHeadDim, kDstate});
  args.state_scale = contiguous(address(0x1100000), DType::f32, {kSlots, kHeads, kHeadDim});
  args.x_ring = contiguous(address(0x1200000), DType::bf16, {kSlots, kHeads, kLength, kHeadDim});
  args.B_ring = contiguous(address(0x1300000), DType::bf16, {kSlots, kGroups, kLength, kDstate});
  args.dt_ring = contiguous(address(0x1400000), DType::f32, {kSlots, kHeads, kLength});
  args.ring_start = contiguous(address(0x1500000), DType::i32, {kSlots});
  args.ring_count = contiguous(address(0x1600000), DType::i32, {kSlots});
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

// The tensors of a step's tokens.
constexpr Tensor RingArgs::*kOfTokens[] = {&RingArgs::x, &RingArgs::dt, &RingArgs::B,
                                           &RingArgs::C, &RingArgs::z,  &RingArgs::out};

// [total, ...], or [1, total, ...].
RingArgs varlen_args(bool leading_one = false) {
  RingArgs args = full_args();
  for (Tensor RingArgs::*member : kOfTokens) {
    Tensor& tensor = args.*member;
    if (leading_one) {
      tensor.shape[0] = 1;
      tensor.shape[1] = kTotal;
      continue;
    }
    --tensor.rank;
    for (std::size_t i = 0; i < 3; ++i) {
      tensor.shape[i] = tensor.shape[i + 1];
      tensor.stride[i] = tensor.stride[i + 1];
    }
    tensor.shape[0] = kTotal;
  }
  args.cu_seqlens = contiguous(address(0xc000000), DType::i32, {kBatch + 1});
  return args;
}

std::vector<std::string> problems(const RingArgs& args, const Description& description = full_description()) {
  return Kernel::problems(description, args);
}

struct Named {
  const char* name;
  Tensor RingArgs::*tensor;
};
constexpr Named kTensors[] = {{"state", &RingArgs::state},
                              {"state_scale", &RingArgs::state_scale},
                              {"x_ring", &RingArgs::x_ring},
                              {"B_ring", &RingArgs::B_ring},
                              {"dt_ring", &RingArgs::dt_ring},
                              {"ring_start", &RingArgs::ring_start},
                              {"ring_count", &RingArgs::ring_count},
                              {"x", &RingArgs::x},
                              {"dt", &RingArgs::dt},
                              {"A", &RingArgs::A},
                              {"B", &RingArgs::B},
                              {"C", &RingArgs::C},
                              {"D", &RingArgs::D},
                              {"dt_bias", &RingArgs::dt_bias},
                              {"z", &RingArgs::z},
                              {"out", &RingArgs::out},
                              {"rand_seed", &RingArgs::rand_seed}};

// The same with A, dt, D and dt_bias as peers take them.
RingArgs expanded(RingArgs args) {
  args.A = strided(args.A.data, DType::f32, {kHeads, kHeadDim, kDstate}, {1, 0, 0});
  for (Tensor* tensor : {&args.dt, &args.D, &args.dt_bias}) {
    const auto behind = static_cast<std::size_t>(tensor->rank++);
    tensor->shape[behind] = kHeadDim;
    tensor->stride[behind] = 0;
  }
  return args;
}

TEST(RingProblems, OneValueAHeadMayBeAnExpandedViewAndReachesTheKernelAsThePlainOne) {
  const auto same = [](const RingArgs& plain) {
    const device_args::RingArgs a = to_device(plain, Pdl::off), b = to_device(expanded(plain), Pdl::off);
    return std::memcmp(&a, &b, sizeof a) == 0;
  };
  EXPECT_THAT(problems(expanded(full_args())), IsEmpty());
  EXPECT_TRUE(same(full_args()));
  for (const bool leading_one : {false, true}) {
    EXPECT_THAT(problems(expanded(varlen_args(leading_one)), varlen_description()), IsEmpty());
    EXPECT_TRUE(same(varlen_args(leading_one)));
  }
}

TEST(RingProblems, AValueForEachElementIsRefusedByName) {
  RingArgs args = expanded(full_args());
  args.A.stride[2] = 1;
  args.dt.stride[3] = 1;
  args.D.stride[1] = 1;
  args.dt_bias.shape[1] = 7;
  EXPECT_THAT(problems(args),
              ElementsAre(HasSubstr("dt: got 4 dimensions; wants 3, [3, 6, 4], or with head_dim of stride 0"),
                          HasSubstr("A: got 3 dimensions; wants 1, [4], or [nheads, head_dim, dstate]"),
                          HasSubstr("D: got 2 dimensions; wants 1, [4], or with head_dim"),
                          HasSubstr("dt_bias: got 2 dimensions; wants 1, [4], or with head_dim")));
}

TEST(RingProblems, GoodArgumentsHaveNone) {
  EXPECT_THAT(problems(full_args()), IsEmpty());
  EXPECT_THAT(problems(varlen_args(), varlen_description()), IsEmpty());
  EXPECT_THAT(problems(varlen_args(true), varlen_description()), IsEmpty());
  RingArgs args = full_args();
  args.state_batch_indices = contiguous(address(0xd000000), DType::i64, {kBatch, 1});
  EXPECT_THAT(problems(args), IsEmpty());
  args.rand_seed = contiguous(address(0xb000000), DType::i64, {kSlots});
  EXPECT_THAT(problems(args), IsEmpty()) << "a seed a slot";
  EXPECT_EQ(to_device(args, Pdl::off).rand_seed_stride, 1);
  args.rand_seed.shape[0] = kSlots - 1;
  EXPECT_THAT(problems(args), ElementsAre("rand_seed: got shape [" + std::to_string(kSlots - 1) + "]; wants [" +
                                          std::to_string(kSlots) + "] or [1]"));
}

TEST(RingProblems, AreAllNamedInOneGo) {
  std::vector<testing::Matcher<std::string>> wanted;
  for (const Named& named : kTensors) wanted.push_back(HasSubstr(std::string(named.name) + ": not given"));
  EXPECT_THAT(problems(RingArgs{}), testing::ElementsAreArray(wanted));
}

TEST(RingProblems, ArgumentsOfAnotherVersionAreRefusedUnread) {
  RingArgs args;
  args.size = 8;
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("args: size is 8; wants")));
}

TEST(RingProblems, ArgumentsOfAnotherOpAreRefused) {
  const Description update = mamba2({.nheads = kHeads, .head_dim = kHeadDim, .dstate = kDstate, .ngroups = kGroups});
  EXPECT_THAT(Kernel::problems(update, full_args()),
              ElementsAre("args: got RingArgs for a kernel that updates in place; wants UpdateArgs"));
  EXPECT_THAT(Kernel::problems(plain(), UpdateArgs{}),
              ElementsAre("args: got UpdateArgs for a ring kernel; wants RingArgs"));
}

TEST(Faults, Row15_AWrongDtypeOfAnyTensorOfARingIsNamed) {
  for (const Named& named : kTensors) {
    RingArgs args = full_args();
    (args.*named.tensor).dtype = DType::f16;
    EXPECT_THAT(problems(args), ElementsAre(HasSubstr(std::string(named.name) + ": got dtype fp16; wants ")));
  }
}

TEST(RingProblems, AWrongRankOfAnyTensorIsNamed) {
  for (const Named& named : kTensors) {
    RingArgs args = full_args();
    Tensor& tensor = args.*named.tensor;
    tensor.rank = tensor.rank == 4 ? 3 : tensor.rank + 1;
    EXPECT_THAT(problems(args),
                Contains(AllOf(HasSubstr(std::string(named.name) + ": got "), HasSubstr(" dimensions; wants "))));
  }
}

TEST(RingProblems, AWrongExtentOfAnyTensorIsNamed) {
  for (const Named& named : kTensors) {
    const int rank = (full_args().*named.tensor).rank;
    for (int i = named.tensor == &RingArgs::state || named.tensor == &RingArgs::x ? 1 : 0; i < rank; ++i) {
      RingArgs args = full_args();
      (args.*named.tensor).shape[static_cast<std::size_t>(i)] += 1;
      EXPECT_THAT(problems(args), ElementsAre(HasSubstr(std::string(named.name) + ": got shape [")))
          << named.name << " " << i;
    }
  }
}

TEST(RingProblems, InnerDimensionsMustBeContiguous) {
  for (const Named& named : kTensors) {
    const bool of_tokens = std::find(std::begin(kOfTokens), std::end(kOfTokens), named.tensor) != std::end(kOfTokens);
    const int rank = (full_args().*named.tensor).rank;
    if (named.tensor == &RingArgs::rand_seed) continue;  // one element
    for (int i = rank == 1 ? 0 : of_tokens ? 2 : 1; i < rank; ++i) {
      RingArgs args = full_args();
      (args.*named.tensor).stride[static_cast<std::size_t>(i)] += 8;
      EXPECT_THAT(problems(args), ElementsAre(HasSubstr("must be contiguous"))) << named.name << " " << i;
    }
  }
}

TEST(RingProblems, TensorsMustBeGivenAsTheDescriptionHasThem) {
  RingArgs args = full_args();
  args.state.dtype = DType::bf16;
  args.cu_seqlens = contiguous(address(0xc000000), DType::i32, {kBatch + 1});
  EXPECT_THAT(
      problems(args, plain().no_skip().delta(softplus(dsl::dt))),
      ElementsAre(HasSubstr("state_scale: given, but"), HasSubstr("D: given, but"), HasSubstr("dt_bias: given, but"),
                  HasSubstr("z: given, but"), HasSubstr("cu_seqlens: given, but"), HasSubstr("rand_seed: given, but")));
  args = varlen_args();
  args.cu_seqlens = {};
  EXPECT_THAT(problems(args, varlen_description()), ElementsAre("cu_seqlens: not given; the description has varlen"));
  args.cu_seqlens = contiguous(address(0xc000000), DType::i32, {0});
  EXPECT_THAT(problems(args, varlen_description()), Contains("cu_seqlens: shape [0]; wants [batch + 1]"));
}

TEST(Faults, Row2_PaddedPagesOfStateAndRingsAreTakenAndMisalignedOnesRefused) {
  RingArgs args = full_args();
  for (Tensor RingArgs::*pool :
       {&RingArgs::state, &RingArgs::state_scale, &RingArgs::x_ring, &RingArgs::B_ring, &RingArgs::dt_ring})
    (args.*pool).stride[0] = 3 * (args.*pool).stride[0] + 64;
  EXPECT_THAT(problems(args), IsEmpty());
  for (Tensor RingArgs::*pool : {&RingArgs::state, &RingArgs::x_ring, &RingArgs::B_ring}) {
    args = full_args();
    (args.*pool).data = address(0x1000008);
    EXPECT_THAT(problems(args), ElementsAre(HasSubstr("base address 0x1000008 is not a multiple of 16 bytes")));
    args = full_args();
    (args.*pool).stride[0] += 4;
    EXPECT_THAT(problems(args), ElementsAre(AllOf(HasSubstr(": slot stride "), HasSubstr("; pad the slots"))));
    args = full_args();
    (args.*pool).stride[0] -= 16;
    EXPECT_THAT(problems(args), ElementsAre(HasSubstr("so that slots do not overlap")));
  }
  // Scales are read in vectors too.
  args = full_args();
  args.state_scale.data = address(0x1100004);
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("base address 0x1100004 is not a multiple of 16 bytes")));
  args = full_args();
  args.state_scale.stride[0] += 3;
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("state_scale: slot stride 259 elements")));
}

TEST(Faults, Row1_PoolsPastTwoToThe31ElementsAreTaken) {
  RingArgs args = full_args();
  for (const Named& named : kTensors)
    if ((args.*named.tensor).shape[0] == kSlots) (args.*named.tensor).shape[0] = std::int64_t{1} << 40;
  EXPECT_THAT(problems(args), IsEmpty());
}

TEST(Faults, Row1_AStrideThatTheKernelCannotCountIsRefused) {
  RingArgs args = full_args();
  args.state.stride[0] = std::int64_t{1} << 31;
  args.x.stride[0] = std::int64_t{1} << 40;
  EXPECT_THAT(problems(args), ElementsAre("state: slot stride 2147483648 elements; wants 2147483647 at most",
                                          "x: row stride 1099511627776 elements; wants 2147483647 at most"));
}

TEST(Faults, Row16_RequestsAndTokensMayBeStrided) {
  RingArgs args = full_args();
  for (Tensor RingArgs::*member : kOfTokens) {
    (args.*member).stride[1] = 1064;
    (args.*member).stride[0] = 1064 * 8;
  }
  EXPECT_THAT(problems(args), IsEmpty());
  // Tokens outermost in memory.
  for (Tensor RingArgs::*member : kOfTokens) {
    (args.*member).stride[0] = 1064;
    (args.*member).stride[1] = 1064 * kBatch;
  }
  EXPECT_THAT(problems(args), IsEmpty());
  args.x.stride[1] += 4;
  EXPECT_THAT(problems(args), ElementsAre("x: token stride 3196 elements (6392 bytes) is not a multiple of 16 bytes; "
                                          "pad the tokens"));
}

TEST(Faults, Row2_OutputsThatOverlapAreRefused) {
  RingArgs args = full_args();
  args.out.stride[1] = 0;
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("out: token stride 0 elements; wants 256 or more")));
  args = full_args();
  args.out.stride[0] -= 256;
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("out: row stride 1280 elements; wants 1536 or more")));
}

TEST(Faults, Row7_OtherThanTheKernelsTokensAreRefusedByShape) {
  for (const std::int64_t tokens : {5, 7, 17}) {
    RingArgs args = full_args();
    for (Tensor RingArgs::*member : kOfTokens) (args.*member).shape[1] = tokens;
    EXPECT_THAT(problems(args),
                Contains("x: got shape [3, " + std::to_string(tokens) + ", 4, 64]; wants [3, 6, 4, 64]"));
  }
}

TEST(Faults, Row9_ARingOfAnotherLengthIsRefused) {
  RingArgs args = full_args();
  args.dt_ring = contiguous(address(0x1400000), DType::f32, {kSlots, kHeads, kLength - 1});
  EXPECT_THAT(problems(args), ElementsAre("dt_ring: got shape [12, 4, 21]; wants [12, 4, 22], or a description of "
                                          "that length (store=ring:WINDOW:LENGTH)"));
  args = full_args();
  args.dt_ring = contiguous(address(0x1400000), DType::f32, {kSlots, kHeads - 1, kLength});
  EXPECT_THAT(problems(args), ElementsAre("dt_ring: got shape [12, 3, 22]; wants [12, 4, 22]"));
}

TEST(Faults, Row17_ARingHasNoScratch) {
  const Description d = plain();
  for (const Arch& arch : Arch::known())
    for (const Plan& plan : plan_space(d, arch)) ASSERT_EQ(scratch_bytes(plan, d, 1024), 0) << plan.text();
}

RingArgs with_batch(std::int64_t batch) {
  RingArgs args = full_args();
  for (Tensor RingArgs::*member : kOfTokens) (args.*member).shape[0] = batch;
  args.state_batch_indices = contiguous(address(0xd000000), DType::i32, {batch});
  return args;
}

TEST(Faults, Row19_RingBatchesFromNoneToTheGridsLimitAreTaken) {
  for (const std::int64_t batch : {0, 1, 1024, 65535}) EXPECT_THAT(problems(with_batch(batch)), IsEmpty()) << batch;
  EXPECT_THAT(problems(with_batch(65536)), ElementsAre(HasSubstr("x: got 65536 requests; a launch takes up to 65535")));
  EXPECT_THAT(problems(with_batch(-1)), testing::Not(IsEmpty()));
  RingArgs args = with_batch(0);
  for (Tensor RingArgs::*member : kOfTokens) (args.*member).data = nullptr;
  args.state_batch_indices.data = nullptr;
  EXPECT_THAT(problems(args), IsEmpty());
}

TEST(RingProblems, WithoutIndicesEveryRequestNeedsItsSlot) {
  RingArgs args = full_args();
  for (const Named& named : kTensors)
    if ((args.*named.tensor).shape[0] == kSlots) (args.*named.tensor).shape[0] = 2;
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("state: 2 slots for 3 rows")));
}

// Launches, on the stub driver.
class RingLaunch : public StubLaunchTest<device_args::RingArgs> {};

TEST_F(RingLaunch, GivesTheDeviceWhatTheCallerGave) {
  const Kernel kernel = load(full_description());
  RingArgs args = full_args();
  args.x.stride[0] = 8192;
  args.dt.stride[1] = 8;
  args.dt.stride[0] = 80;
  args.state_batch_indices = strided(address(0xd000000), DType::i64, {kBatch, 1}, {2, 1});
  args.pad_slot_id = 7;
  args.pdl = Pdl::early_state;
  kernel.launch(args, nullptr);
  ASSERT_EQ(stub_->launches, 1);
  const LaunchShape shape = launch_shape(plan_, full_description(), kBatch);
  EXPECT_EQ(stub_->last.grid[0], shape.grid_x);
  EXPECT_EQ(stub_->last.grid[1], shape.grid_y);
  EXPECT_EQ(stub_->last.block[0], static_cast<unsigned>(shape.block_threads));
  EXPECT_EQ(stub_->last.smem_bytes, 0u);
  EXPECT_EQ(stub_->last.pdl, 1);
  const device_args::RingArgs device = launched();
  EXPECT_EQ(device.state, args.state.data);
  EXPECT_EQ(device.slots, kSlots);
  EXPECT_EQ(device.state_stride, kHeads * kHeadDim * kDstate);
  EXPECT_EQ(device.state_scale, args.state_scale.data);
  EXPECT_EQ(device.state_scale_stride, kHeads * kHeadDim);
  EXPECT_EQ(device.x_ring, args.x_ring.data);
  EXPECT_EQ(device.x_ring_stride, kHeads * kLength * kHeadDim);
  EXPECT_EQ(device.B_ring, args.B_ring.data);
  EXPECT_EQ(device.B_ring_stride, kGroups * kLength * kDstate);
  EXPECT_EQ(device.dt_ring, args.dt_ring.data);
  EXPECT_EQ(device.dt_ring_stride, kHeads * kLength);
  EXPECT_EQ(device.ring_start, args.ring_start.data);
  EXPECT_EQ(device.ring_count, args.ring_count.data);
  EXPECT_EQ(device.cu_seqlens, nullptr);
  EXPECT_EQ(device.x, args.x.data);
  EXPECT_EQ(device.x_stride, 8192);
  EXPECT_EQ(device.x_token_stride, kHeads * kHeadDim);
  EXPECT_EQ(device.z, args.z.data);
  EXPECT_EQ(device.z_stride, kTokens * kHeads * kHeadDim);
  EXPECT_EQ(device.dt, args.dt.data);
  EXPECT_EQ(device.dt_stride, 80);
  EXPECT_EQ(device.dt_token_stride, 8);
  EXPECT_EQ(device.B, args.B.data);
  EXPECT_EQ(device.B_token_stride, kGroups * kDstate);
  EXPECT_EQ(device.C, args.C.data);
  EXPECT_EQ(device.C_stride, kTokens * kGroups * kDstate);
  EXPECT_EQ(device.A, args.A.data);
  EXPECT_EQ(device.D, args.D.data);
  EXPECT_EQ(device.dt_bias, args.dt_bias.data);
  EXPECT_EQ(device.out, args.out.data);
  EXPECT_EQ(device.out_token_stride, kHeads * kHeadDim);
  EXPECT_EQ(device.state_batch_indices, args.state_batch_indices.data);
  EXPECT_EQ(device.index_stride, 4);  // words
  EXPECT_EQ(device.wide_indices, 1);
  EXPECT_EQ(device.pad_slot_id, 7);
  EXPECT_EQ(device.rand_seed, args.rand_seed.data);
  EXPECT_EQ(device.rand_seed_stride, 0);
  EXPECT_EQ(device.nheads, kHeads);
  EXPECT_EQ(device.pdl, 2);
}

TEST_F(RingLaunch, PackedRequestsHaveATokenStrideOnly) {
  const Kernel kernel = load(varlen_description());
  for (bool leading_one : {false, true}) {
    kernel.launch(varlen_args(leading_one), nullptr);
    EXPECT_EQ(stub_->last.grid[1], kBatch);
    const device_args::RingArgs device = launched();
    EXPECT_EQ(device.cu_seqlens, address(0xc000000));
    for (const auto stride :
         {device.x_stride, device.z_stride, device.dt_stride, device.B_stride, device.C_stride, device.out_stride})
      EXPECT_EQ(stride, 0);
    EXPECT_EQ(device.x_token_stride, kHeads * kHeadDim);
    EXPECT_EQ(device.dt_token_stride, kHeads);
    EXPECT_EQ(device.B_token_stride, kGroups * kDstate);
    EXPECT_EQ(device.out_token_stride, kHeads * kHeadDim);
  }
}

TEST_F(RingLaunch, AllocatesNothing) {
  const Kernel kernel = load(full_description());
  const RingArgs args = full_args();
  kernel.launch(args, nullptr);
  const long before = allocation_count();
  for (int i = 0; i < 100; ++i) kernel.launch(args, nullptr);
  EXPECT_EQ(allocation_count(), before);
}

TEST_F(RingLaunch, AWrongTensorOrOpIsNamedAndNothingLaunched) {
  const Kernel kernel = load(full_description());
  RingArgs args = full_args();
  args.ring_count.dtype = DType::i64;
  const Error error = error_of([&] { kernel.launch(args, nullptr); });
  EXPECT_EQ(error.kind(), ErrorKind::invalid);
  EXPECT_STREQ(error.what(), "ring_count: got dtype int64; wants int32");
  EXPECT_STREQ(error_of([&] { kernel.launch(UpdateArgs{}, nullptr); }).what(),
               "args: got UpdateArgs for a ring kernel; wants RingArgs");
  const Kernel update = load(mamba2({.nheads = 4, .head_dim = 64, .dstate = 128, .ngroups = 1}));
  EXPECT_STREQ(error_of([&] { update.launch(full_args(), nullptr); }).what(),
               "args: got RingArgs for a kernel that updates in place; wants UpdateArgs");
  EXPECT_EQ(error_of([] { Kernel().launch(full_args(), nullptr); }).kind(), ErrorKind::invalid);
  EXPECT_EQ(stub_->launches, 0);
}

// Checked mode; the stub's device memory is host memory.
class CheckedRingLaunch : public RingLaunch {
 protected:
  std::string refusal(const Description& description, RingArgs args) {
    const Kernel kernel = load(description);
    args.checked = true;
    args.ring_start = contiguous(start_.data(), DType::i32, {kSlots});
    args.ring_count = contiguous(count_.data(), DType::i32, {kSlots});
    deltas_.resize(static_cast<std::size_t>(kSlots * args.dt_ring.stride[0]), 0.5f);
    args.dt_ring.data = deltas_.data();
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
  std::string refusal() { return refusal(full_description(), full_args()); }
  std::string refusal(std::vector<std::int32_t> cu_seqlens) {
    RingArgs args = varlen_args();
    args.cu_seqlens = contiguous(cu_seqlens.data(), DType::i32, {kBatch + 1});
    return refusal(varlen_description(), args);
  }

  std::vector<std::int64_t> slots_ = {11, 0, 5};
  std::vector<std::int32_t> start_ = std::vector<std::int32_t>(kSlots, 21),
                            count_ = std::vector<std::int32_t>(kSlots, 16);
  std::vector<float> deltas_;
};

TEST_F(CheckedRingLaunch, GoodIndicesAndCursorsAreLaunched) {
  EXPECT_EQ(refusal(), "");
  EXPECT_EQ(stub_->synchronised, 1);
  EXPECT_EQ(refusal({0, 6, 6, 11}), "");
}

TEST_F(CheckedRingLaunch, FaultRow3_PadRowsMayShareTheirIndexAndHaveNoCursors) {
  start_.assign(kSlots, -7);
  count_.assign(kSlots, 99);
  slots_ = {-1, -1, -5};
  EXPECT_EQ(refusal(), "");
}

TEST_F(CheckedRingLaunch, FaultRow4_AnIndexPastThePoolIsNamedWithItsRow) {
  slots_ = {0, 12, 99};
  EXPECT_EQ(refusal(),
            "state_batch_indices[1] is 12; the state has 12 slots\n"
            "state_batch_indices[2] is 99; the state has 12 slots");
}

TEST_F(CheckedRingLaunch, FaultRow5_TheSameLiveSlotTwiceIsNamedWithBothRows) {
  slots_ = {4, 7, 4};
  EXPECT_EQ(refusal(), "state_batch_indices[0] and [2] are both slot 4; rows of one launch must write different slots");
}

TEST_F(CheckedRingLaunch, FaultRows6And9_CursorsOutOfRangeAreNamedWithSlotAndRow) {
  count_[0] = 17;
  start_[5] = 22;
  count_[5] = -1;
  start_[3] = count_[3] = 1000;  // a slot that no row uses
  EXPECT_EQ(refusal(),
            "ring_count[0] is 17, of row 1; wants 0 to 16\n"
            "ring_start[5] is 22, of row 2; wants 0 to 21\n"
            "ring_count[5] is -1, of row 2; wants 0 to 16");
}

TEST_F(CheckedRingLaunch, FaultRow10_RowsInUseThatNoStepWroteSinceTheResetAreNamedWithSlotAndRow) {
  const auto slot_stride = static_cast<std::size_t>(full_args().dt_ring.stride[0]);
  deltas_.assign(kSlots * slot_stride, 0.5f);
  const auto reset = [&](std::size_t slot) {
    std::memset(&deltas_[slot * slot_stride], 0xff, slot_stride * sizeof(float));
  };
  reset(5);
  reset(3);  // a slot that no row uses
  EXPECT_EQ(
      refusal(),
      "ring_count[5] is 16, of row 2, but row 0 in use was not written since the slot was reset; wants the cursor "
      "of the slot's own request, which is {0, 0} after a reset");
  count_[5] = 2;  // from row 21 on, around the end of 22
  deltas_[5 * slot_stride + 21] = 0.5f;
  EXPECT_THAT(refusal(), HasSubstr("ring_count[5] is 2, of row 2, but row 1 in use was not written"));
  deltas_[5 * slot_stride] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(refusal(), "") << "a model's own NaN is a row that was written";
  count_[5] = 0;
  reset(5);
  EXPECT_EQ(refusal(), "");
}

TEST_F(CheckedRingLaunch, FaultRow8_SequencesThatDoNotFitAreNamed) {
  EXPECT_EQ(refusal({0, 0, 6, 11}), "") << "an empty sequence is none";
  EXPECT_EQ(refusal({1, 2, 6, 11}), "cu_seqlens[0] is 1; wants 0");
  EXPECT_EQ(refusal({0, 6, 5, 11}), "cu_seqlens[2] is 5, below the 6 in front of it; wants it never to decrease");
  EXPECT_EQ(refusal({0, 2, 9, 11}),
            "cu_seqlens[2] is 9, 7 more than the entry in front of it; a request of this kernel has up to 6 tokens");
  EXPECT_EQ(refusal({0, 2, 4, 10}), "cu_seqlens[3] is 10; wants 11, the tokens of x");
  slots_ = {4, 4, 7};
  EXPECT_EQ(refusal({0, 5, 5, 11}), "") << "nor does it write the slot that it shares";
}

TEST_F(CheckedRingLaunch, FaultRow20_IsRefusedUnderCapture) {
  stub_->capturing = 1;
  EXPECT_THAT(refusal(), HasSubstr("the stream is being captured"));
  EXPECT_EQ(stub_->synchronised, 0);
}

TEST_F(CheckedRingLaunch, FaultRow19_AnEmptyBatchLaunchesNothing) {
  const Kernel kernel = load(full_description());
  RingArgs args = with_batch(0);
  args.checked = true;
  kernel.launch(args, nullptr);
  EXPECT_EQ(stub_->launches, 0);
}

// ---- cursors on the host ----

TEST(RingCursors, OneTokenAStepFlushesOnceInAWindow) {
  const Description d = plain().tokens(1);
  RingCursor cursor;
  int flushes = 0;
  for (int step = 0; step < 16 * 20; ++step) {
    const bool flushed = ring_flushes(d, cursor, 1);
    flushes += flushed;
    EXPECT_EQ(flushed, cursor.count == 16);
    cursor = advance_ring(d, cursor, 1, 1);
    if (flushed) {
      EXPECT_EQ(cursor.count, 1);
    }
  }
  EXPECT_EQ(flushes, 19);
}

TEST(RingCursors, AcceptedTokensStayAndAFlushMovesTheStart) {
  const Description d = plain();
  EXPECT_FALSE(ring_flushes(d, {3, 10}, 6));
  EXPECT_EQ(advance_ring(d, {3, 10}, 6, 2), (RingCursor{3, 12}));
  EXPECT_TRUE(ring_flushes(d, {3, 11}, 6));
  EXPECT_EQ(advance_ring(d, {3, 11}, 6, 4), (RingCursor{14, 4}));
  EXPECT_EQ(advance_ring(d, {15, 16}, 6, 0), (RingCursor{9, 0})) << "around the end";
  EXPECT_EQ(advance_ring(d, {15, 16}, 0, 0), (RingCursor{15, 16})) << "a request without tokens";
}

TEST(RingCursors, StayInRangeWhateverIsAccepted) {
  const Description d = plain().store(Ring{.window = 13, .length = 31});
  unsigned random = 1;
  RingCursor cursor;
  for (int step = 0; step < 5000; ++step) {
    random = random * 1664525u + 1013904223u;
    const int tokens = static_cast<int>(random >> 16) % 7,
              accepted = static_cast<int>(random >> 8) % 1000 % (tokens + 1);
    cursor = advance_ring(d, cursor, tokens, accepted);
    ASSERT_TRUE(cursor.start >= 0 && cursor.start < 31 && cursor.count >= 0 && cursor.count <= 13) << step;
  }
}

TEST(Faults, Row6_CursorsAndCountsOutOfRangeAreRefusedByName) {
  const auto refusal = [](RingCursor cursor, int tokens, int accepted) {
    const Error error = error_of([&] { advance_ring(plain(), cursor, tokens, accepted); });
    EXPECT_EQ(error.kind(), ErrorKind::invalid);
    return std::string(error.what());
  };
  EXPECT_EQ(refusal({22, 0}, 6, 0), "cursor start: got 22; wants 0 to 21");
  EXPECT_EQ(refusal({-1, 17}, 7, 0),
            "cursor start: got -1; wants 0 to 21\ncursor count: got 17; wants 0 to 16\ntokens: got 7; wants 0 to 6");
  EXPECT_EQ(refusal({0, 0}, 5, 6), "accepted: got 6; wants 0 to 5, the tokens of the step");
  EXPECT_EQ(refusal({0, 0}, 5, -1), "accepted: got -1; wants 0 to 5, the tokens of the step");
  EXPECT_EQ(error_of([] { ring_flushes(plain(), {0, -1}, 1); }).kind(), ErrorKind::invalid);
  const Description update = mamba2({.nheads = 4, .head_dim = 64, .dstate = 128, .ngroups = 1});
  EXPECT_THAT(error_of([&] { ring_flushes(update, {}, 1); }).what(), HasSubstr("wants a ring"));
}

TEST(RingCursors, BytesOfASlotAreItsStateScalesAndRings) {
  const std::int64_t rings = kLength * (kHeads * kHeadDim * 2 + kGroups * kDstate * 2 + kHeads * 4);
  EXPECT_EQ(ring_slot_bytes(plain()), kHeads * kHeadDim * kDstate * 2 + rings);
  EXPECT_EQ(ring_slot_bytes(plain().state(DType::f8)), kHeads * kHeadDim * (kDstate + 4) + rings);
  const Description update = mamba2({.nheads = 4, .head_dim = 64, .dstate = 128, .ngroups = 1});
  EXPECT_THAT(error_of([&] { ring_slot_bytes(update); }).what(), HasSubstr("wants a ring"));
  EXPECT_EQ(error_of([] { ring_slot_bytes(plain().tokens(99)); }).kind(), ErrorKind::invalid);
}

}  // namespace
}  // namespace ssmjit
