#include <cstring>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/kernel.h>
#include <ssmjit/source.h>

#include "jit/kernel_args.h"
#include "tests/jit/allocation_count.h"
#include "tests/jit/launch_test.h"

namespace ssmjit {

namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::int64_t kBatch = 3, kHeads = 64, kHeadDim = 64, kDstate = 128, kGroups = 8, kSlots = 40;
constexpr std::int64_t kInner = kHeads * kHeadDim, kChannels = kInner + 2 * kGroups * kDstate;
constexpr std::int64_t kRow = kInner + kChannels + kHeads;  // z, x, B, C and dt as one projection leaves them

Description full_description() {
  return mamba2({.nheads = 64, .head_dim = 64, .dstate = 128, .ngroups = 8})
      .state(DType::bf16)
      .with_conv({.activation_expr = silu(dsl::x)})
      .with_norm({.group_size = 512, .gate_expr = silu(dsl::z), .has_bias = true});
}

LayerArgs full_args() {
  LayerArgs args;
  args.state = contiguous(address(0x1000000), DType::bf16, {kSlots, kHeads, kHeadDim, kDstate});
  args.conv_state = strided(address(0x2000000), DType::bf16, {kSlots, kChannels, 3}, {4 * kChannels, 3, 1});
  args.z = strided(address(0x3000000), DType::bf16, {kBatch, kHeads, kHeadDim}, {kRow, kHeadDim, 1});
  args.x = strided(address(0x3000000 + 2 * kInner), DType::bf16, {kBatch, kChannels}, {kRow, 1});
  args.dt = contiguous(address(0x4000000), DType::f32, {kBatch, kHeads});
  args.conv_weight = contiguous(address(0x5000000), DType::bf16, {kChannels, 4});
  args.conv_bias = contiguous(address(0x6000000), DType::bf16, {kChannels});
  args.A = contiguous(address(0x7000000), DType::f32, {kHeads});
  args.D = contiguous(address(0x7001000), DType::f32, {kHeads});
  args.dt_bias = contiguous(address(0x7002000), DType::f32, {kHeads});
  args.norm_weight = contiguous(address(0x7003000), DType::bf16, {kInner});
  args.norm_bias = contiguous(address(0x7006000), DType::bf16, {kInner});
  args.out = contiguous(address(0x8000000), DType::bf16, {kBatch, kHeads, kHeadDim});
  args.state_batch_indices = contiguous(address(0x9000000), DType::i64, {kBatch});
  return args;
}

std::vector<std::string> problems(const LayerArgs& args, const Description& description = full_description()) {
  return Kernel::problems(description, args);
}

struct Named {
  const char* name;
  Tensor LayerArgs::*tensor;
};
constexpr Named kTensors[] = {{"state", &LayerArgs::state},
                              {"conv_state", &LayerArgs::conv_state},
                              {"x", &LayerArgs::x},
                              {"dt", &LayerArgs::dt},
                              {"z", &LayerArgs::z},
                              {"conv_weight", &LayerArgs::conv_weight},
                              {"conv_bias", &LayerArgs::conv_bias},
                              {"A", &LayerArgs::A},
                              {"D", &LayerArgs::D},
                              {"dt_bias", &LayerArgs::dt_bias},
                              {"norm_weight", &LayerArgs::norm_weight},
                              {"norm_bias", &LayerArgs::norm_bias},
                              {"out", &LayerArgs::out}};

TEST(LayerProblems, GoodArgumentsHaveNone) { EXPECT_THAT(problems(full_args()), IsEmpty()); }

TEST(LayerProblems, EveryTensorThatIsNotGivenIsNamedInOneGo) {
  const std::vector<std::string> found = problems({});
  EXPECT_EQ(found.size(), std::size(kTensors));
  for (const Named& named : kTensors)
    EXPECT_THAT(found, testing::Contains(HasSubstr(std::string(named.name) + ": not given")));
}

TEST(LayerProblems, ArgumentsOfAnotherOpOrVersionAreRefused) {
  LayerArgs args;
  args.size = 8;
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("args: size is 8; wants")));
  const Description update = mamba2({.nheads = 4, .head_dim = 64, .dstate = 128, .ngroups = 2});
  EXPECT_THAT(problems(full_args(), update),
              ElementsAre("args: got LayerArgs for a kernel that updates in place; wants UpdateArgs"));
  EXPECT_THAT(Kernel::problems(full_description(), UpdateArgs()),
              ElementsAre("args: got UpdateArgs for a kernel of a fused layer; wants LayerArgs"));
}

TEST(Faults, Row15_AWrongDtypeOfAnyTensorOfALayerIsNamed) {
  for (const Named& named : kTensors) {
    LayerArgs args = full_args();
    (args.*named.tensor).dtype = DType::f16;
    EXPECT_THAT(problems(args), ElementsAre(HasSubstr(std::string(named.name) + ": got dtype fp16; wants ")));
  }
}

TEST(LayerProblems, AWrongExtentOfAnyTensorIsNamed) {
  for (const Named& named : kTensors) {
    LayerArgs args = full_args();
    Tensor& tensor = args.*named.tensor;
    tensor.shape[static_cast<std::size_t>(tensor.rank) - 1] += 8;
    EXPECT_THAT(problems(args), testing::Contains(HasSubstr(std::string(named.name) + ": got shape ["))) << named.name;
  }
}

TEST(Faults, Row2_MisalignedPoolsAndStridesOfALayerAreRefused) {
  LayerArgs args = full_args();
  args.conv_state.data = address(0x2000004);
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("conv_state: base address 0x2000004 is not a multiple of 16")));
  args = full_args();
  args.conv_state.stride[0] += 2;
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("conv_state: slot stride")));
  args = full_args();
  args.state.stride[0] += 1;
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("state: slot stride")));
}

TEST(LayerProblems, SlotsOfWindowsAreThoseOfTheStates) {
  LayerArgs args = full_args();
  args.conv_state.shape[0] = kSlots - 1;
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("conv_state: got shape [39, 6144, 3]; wants [40, 6144, 3]")));
}

TEST(LayerProblems, ChannelsMayComeLast) {
  Conv conv{.activation_expr = silu(dsl::x), .channels_last = true};
  LayerArgs args = full_args();
  EXPECT_THAT(problems(args, full_description().with_conv(conv)), ElementsAre(HasSubstr("conv_state: got shape")));
  args.conv_state = contiguous(address(0x2000000), DType::bf16, {kSlots, 3, kChannels});
  EXPECT_THAT(problems(args, full_description().with_conv(conv)), IsEmpty());
}

TEST(LayerProblems, TensorsMustBeGivenAsTheDescriptionReadsThem) {
  Description norm_alone = full_description();
  norm_alone.conv.reset();
  LayerArgs args = full_args();
  EXPECT_THAT(problems(args, norm_alone),
              ElementsAre(HasSubstr("conv_state: given, but"), HasSubstr("x: got 2 dimensions; wants 3"),
                          HasSubstr("B: not given"), HasSubstr("C: not given"), HasSubstr("conv_weight: given, but"),
                          HasSubstr("conv_bias: given, but")));
}

TEST(Faults, Row19_MoreRowsThanALayerLaunchTakesAreRefused) {
  LayerArgs args = full_args();
  args.x.shape[0] = args.z.shape[0] = args.dt.shape[0] = args.out.shape[0] = args.state_batch_indices.shape[0] = 65536;
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("x: got 65536 rows; a launch takes up to 65535: split the batch")));
}

// The same with a ring, of six tokens.
constexpr std::int64_t kTokens = 6, kLength = 22;
Description ring_description() { return full_description().tokens(kTokens).store(Ring{.window = 16}); }

LayerArgs tokens_args() {
  LayerArgs args = full_args();
  args.z = strided(address(0x3000000), DType::bf16, {kBatch, kTokens, kHeads, kHeadDim},
                   {kTokens * kRow, kRow, kHeadDim, 1});
  args.x =
      strided(address(0x3000000 + 2 * kInner), DType::bf16, {kBatch, kTokens, kChannels}, {kTokens * kRow, kRow, 1});
  args.dt = contiguous(address(0x4000000), DType::f32, {kBatch, kTokens, kHeads});
  args.out = contiguous(address(0x8000000), DType::bf16, {kBatch, kTokens, kHeads, kHeadDim});
  return args;
}
LayerArgs ring_args() {
  LayerArgs args = tokens_args();
  args.x_ring = contiguous(address(0xa000000), DType::bf16, {kSlots, kHeads, kLength, kHeadDim});
  args.B_ring = contiguous(address(0xb000000), DType::bf16, {kSlots, kGroups, kLength, kDstate});
  args.dt_ring = contiguous(address(0xc000000), DType::f32, {kSlots, kHeads, kLength});
  args.ring_start = contiguous(address(0xd000000), DType::i32, {kSlots});
  args.ring_count = contiguous(address(0xd001000), DType::i32, {kSlots});
  return args;
}

TEST(LayerProblems, OfARingAreNoneOfGoodArguments) {
  EXPECT_THAT(problems(ring_args(), ring_description()), IsEmpty());
}

TEST(Faults, Row2_AMisalignedNormWeightAndAFarStrideOfIndicesOfALayerWithARingAreRefused) {
  LayerArgs args = ring_args();
  args.norm_weight.data = address(0x7003002);
  EXPECT_THAT(problems(args, ring_description()),
              ElementsAre(HasSubstr("norm_weight: base address 0x7003002 is not a multiple of 16")));
  args = ring_args();
  args.state_batch_indices = strided(address(0x9000000), DType::i64, {kBatch}, {std::int64_t{1} << 31});
  EXPECT_THAT(problems(args, ring_description()), ElementsAre(HasSubstr("state_batch_indices: stride 2147483648")));
}

using RingLayerLaunch = StubLaunchTest<device_args::RingLayerArgs>;

TEST_F(RingLayerLaunch, IsOneClusterForEachNormGroupOfEachRow) {
  const Kernel kernel = load(ring_description());
  ASSERT_EQ(plan_.form, PlanForm::fused);
  kernel.launch(ring_args(), nullptr);
  EXPECT_EQ(stub_->last.grid[0], static_cast<unsigned>(8 * plan_.cluster));
  EXPECT_EQ(stub_->last.grid[1], static_cast<unsigned>(kBatch));
  EXPECT_EQ(stub_->last.block[0], static_cast<unsigned>(32 * plan_.warps));
}

TEST_F(RingLayerLaunch, PassesWhatTheTensorsSay) {
  const Kernel kernel = load(ring_description());
  const LayerArgs args = ring_args();
  kernel.launch(args, nullptr);
  const device_args::RingLayerArgs got = launched();
  EXPECT_EQ(got.ring.state, args.state.data);
  EXPECT_EQ(got.ring.slots, kSlots);
  EXPECT_EQ(got.ring.x, args.x.data);
  EXPECT_EQ(got.ring.x_stride, kTokens * kRow);
  EXPECT_EQ(got.ring.x_token_stride, kRow);
  EXPECT_EQ(got.ring.z_token_stride, kRow);
  EXPECT_EQ(got.ring.dt_stride, kTokens * kHeads);
  EXPECT_EQ(got.ring.dt_token_stride, kHeads);
  EXPECT_EQ(got.ring.out_token_stride, kInner);
  EXPECT_EQ(got.ring.x_ring, args.x_ring.data);
  EXPECT_EQ(got.ring.B_ring_stride, kGroups * kLength * kDstate);
  EXPECT_EQ(got.ring.ring_count, args.ring_count.data);
  EXPECT_EQ(got.ring.index_stride, 2);
  EXPECT_EQ(got.ring.wide_indices, 1);
  EXPECT_EQ(got.ring.nheads, kHeads);
  EXPECT_EQ(got.ring.pdl, 0);
  EXPECT_EQ(got.conv_state, args.conv_state.data);
  EXPECT_EQ(got.conv_state_stride, 4 * kChannels);
  EXPECT_EQ(got.channels, kChannels);
  EXPECT_EQ(got.conv_weight, args.conv_weight.data);
  EXPECT_EQ(got.conv_bias, args.conv_bias.data);
  EXPECT_EQ(got.norm_weight, args.norm_weight.data);
  EXPECT_EQ(got.norm_bias, args.norm_bias.data);
}

TEST_F(RingLayerLaunch, AllocatesNothing) {
  const Kernel kernel = load(ring_description());
  const LayerArgs args = ring_args();
  kernel.launch(args, nullptr);
  const long before = allocation_count();
  kernel.launch(args, nullptr);
  EXPECT_EQ(allocation_count(), before);
}

// Windows that are read from where the launch says, and kept after every token.
Description extras_description(Conv conv) {
  conv.activation_expr = silu(dsl::x);
  return ring_description().with_conv(conv);
}
LayerArgs extras_args(std::int64_t length) {
  LayerArgs args = ring_args();
  args.conv_state = contiguous(address(0x2000000), DType::bf16, {kSlots, kChannels, length});
  return args;
}

TEST_F(RingLayerLaunch, PassesAcceptedCountsOn) {
  const Description d = extras_description({.state_len = 8, .has_accepted = true});
  const Kernel kernel = load(d);
  ASSERT_EQ(plan_.form, PlanForm::fused);
  LayerArgs args = extras_args(8);
  args.num_accepted_tokens = strided(address(0xe000000), DType::i64, {kBatch}, {3});
  kernel.launch(args, nullptr);
  EXPECT_EQ(launched().window_places, args.num_accepted_tokens.data);
  EXPECT_EQ(launched().window_place_stride, 6) << "in words of 32 bits";
  EXPECT_EQ(launched().wide_window_places, 1);
  EXPECT_EQ(launched().intermediate_states, nullptr);
}

TEST_F(RingLayerLaunch, PassesLengthsOfCircularWindowsOn) {
  const Kernel kernel = load(extras_description({.state_len = 5, .store = ConvStore::circular}));
  ASSERT_EQ(plan_.form, PlanForm::fused);
  LayerArgs args = extras_args(5);
  args.state_batch_indices = contiguous(address(0x9000000), DType::i32, {kBatch});
  args.cache_seqlens = contiguous(address(0xe000000), DType::i32, {kBatch});
  kernel.launch(args, nullptr);
  EXPECT_EQ(launched().window_places, args.cache_seqlens.data);
  EXPECT_EQ(launched().window_place_stride, 1);
  EXPECT_EQ(launched().wide_window_places, 0);
}

TEST_F(RingLayerLaunch, PassesSnapshotsOn) {
  const Kernel kernel = load(extras_description({.keep = ConvKeep::snapshots}));
  ASSERT_EQ(plan_.form, PlanForm::fused);
  LayerArgs args = extras_args(3);
  args.intermediate_states = contiguous(address(0xf000000), DType::bf16, {7, kTokens + 1, kChannels, 3});
  kernel.launch(args, nullptr);
  EXPECT_EQ(launched().intermediate_states, args.intermediate_states.data);
  EXPECT_EQ(launched().snapshot_slots, 7);
  EXPECT_EQ(launched().snapshot_stride, (kTokens + 1) * kChannels * 3);
  EXPECT_EQ(launched().snapshot_token_stride, kChannels * 3);
  EXPECT_EQ(launched().intermediate_state_indices, nullptr);
  args.intermediate_state_indices = contiguous(address(0xe000000), DType::i64, {kBatch});
  kernel.launch(args, nullptr);
  EXPECT_EQ(launched().intermediate_state_indices, args.intermediate_state_indices.data);
  EXPECT_EQ(launched().snapshot_index_stride, 2);
  EXPECT_EQ(launched().wide_snapshot_indices, 1);
}

TEST_F(RingLayerLaunch, RefusesCountsAndSnapshotsThatAreMissingOrTooSmallByName) {
  const auto message = [&](const Conv& conv, const LayerArgs& args) -> std::string {
    try {
      load(extras_description(conv)).launch(args, nullptr);
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::invalid);
      return e.what();
    }
    return "no error";
  };
  EXPECT_THAT(message({.state_len = 8, .has_accepted = true}, extras_args(8)),
              HasSubstr("convolution: num_accepted_tokens: not given"));
  EXPECT_THAT(message({.state_len = 5, .store = ConvStore::circular}, extras_args(5)),
              HasSubstr("convolution: cache_seqlens: not given"));
  EXPECT_THAT(message({.keep = ConvKeep::snapshots}, extras_args(3)),
              HasSubstr("convolution: intermediate_states: not given"));
  LayerArgs args = extras_args(3);
  args.intermediate_states = contiguous(address(0xf000000), DType::bf16, {7, kTokens - 1, kChannels, 3});
  EXPECT_THAT(message({.keep = ConvKeep::snapshots}, args), HasSubstr("intermediate_states: got 5 steps; wants 6"));
}

TEST_F(RingLayerLaunch, OfAcceptedCountsAllocatesNothing) {
  const Kernel kernel = load(extras_description({.state_len = 8, .has_accepted = true}));
  LayerArgs args = extras_args(8);
  args.num_accepted_tokens = contiguous(address(0xe000000), DType::i64, {kBatch});
  kernel.launch(args, nullptr);
  const long before = allocation_count();
  kernel.launch(args, nullptr);
  EXPECT_EQ(allocation_count(), before);
}

// Several tokens in place.
Description tokens_description() { return full_description().tokens(kTokens); }

TEST(LayerProblems, OfSeveralTokensInPlaceAreNoneOfGoodArguments) {
  EXPECT_THAT(problems(tokens_args(), tokens_description()), IsEmpty());
}

TEST(Faults, Row7_OtherThanTheTokensOfALayerInPlaceAreRefusedByShape) {
  EXPECT_THAT(problems(tokens_args(), full_description().tokens(5)),
              testing::Contains(HasSubstr("x: got shape [3, 6, 6144]; wants [3, 5, 6144]")));
  EXPECT_THAT(problems(full_args(), tokens_description()),
              testing::Contains(HasSubstr("x: got 2 dimensions; wants 3")));
  LayerArgs args = tokens_args();
  args.x_ring = ring_args().x_ring;
  args.z.stride[1] += 1;
  EXPECT_THAT(problems(args, tokens_description()), ElementsAre(HasSubstr("z: ")));
}

using TokensLayerLaunch = StubLaunchTest<device_args::LayerTokensArgs>;

TEST_F(TokensLayerLaunch, IsOneClusterForEachNormGroupOfEachRow) {
  const Kernel kernel = load(tokens_description());
  ASSERT_EQ(plan_.form, PlanForm::fused);
  EXPECT_GT(plan_.cluster, 1);
  kernel.launch(tokens_args(), nullptr);
  EXPECT_EQ(stub_->last.grid[0], static_cast<unsigned>(8 * plan_.cluster));
  EXPECT_EQ(stub_->last.grid[1], static_cast<unsigned>(kBatch));
  EXPECT_EQ(stub_->last.block[0], static_cast<unsigned>(32 * plan_.warps));
}

TEST_F(TokensLayerLaunch, PassesWhatTheTensorsSay) {
  const Kernel kernel = load(tokens_description());
  const LayerArgs args = tokens_args();
  kernel.launch(args, nullptr);
  const device_args::LayerTokensArgs got = launched();
  EXPECT_EQ(got.state, args.state.data);
  EXPECT_EQ(got.slots, kSlots);
  EXPECT_EQ(got.state_stride, kInner * kDstate);
  EXPECT_EQ(got.conv_state, args.conv_state.data);
  EXPECT_EQ(got.conv_state_stride, 4 * kChannels);
  EXPECT_EQ(got.x, args.x.data);
  EXPECT_EQ(got.x_stride, kTokens * kRow);
  EXPECT_EQ(got.x_token_stride, kRow);
  EXPECT_EQ(got.z, args.z.data);
  EXPECT_EQ(got.z_token_stride, kRow);
  EXPECT_EQ(got.dt, args.dt.data);
  EXPECT_EQ(got.dt_stride, kTokens * kHeads);
  EXPECT_EQ(got.dt_token_stride, kHeads);
  EXPECT_EQ(got.out, args.out.data);
  EXPECT_EQ(got.out_stride, kTokens * kInner);
  EXPECT_EQ(got.out_token_stride, kInner);
  EXPECT_EQ(got.B, nullptr);
  EXPECT_EQ(got.conv_weight, args.conv_weight.data);
  EXPECT_EQ(got.conv_bias, args.conv_bias.data);
  EXPECT_EQ(got.A, args.A.data);
  EXPECT_EQ(got.D, args.D.data);
  EXPECT_EQ(got.dt_bias, args.dt_bias.data);
  EXPECT_EQ(got.norm_weight, args.norm_weight.data);
  EXPECT_EQ(got.norm_bias, args.norm_bias.data);
  EXPECT_EQ(got.state_batch_indices, args.state_batch_indices.data);
  EXPECT_EQ(got.index_stride, 1);
  EXPECT_EQ(got.wide_indices, 1);
  EXPECT_EQ(got.nheads, kHeads);
  EXPECT_EQ(got.pad_slot_id, -1);
  EXPECT_EQ(got.pdl, 0);
}

TEST_F(TokensLayerLaunch, AllocatesNothing) {
  const Kernel kernel = load(tokens_description());
  const LayerArgs args = tokens_args();
  kernel.launch(args, nullptr);
  const long before = allocation_count();
  kernel.launch(args, nullptr);
  EXPECT_EQ(allocation_count(), before);
}

using LayerLaunch = StubLaunchTest<device_args::LayerArgs>;

TEST_F(LayerLaunch, HasAClusterForEachNormGroupOfEachRow) {
  const Kernel kernel = load(full_description());
  EXPECT_GT(plan_.cluster, 1);
  kernel.launch(full_args(), nullptr);
  EXPECT_EQ(stub_->last.grid[0], static_cast<unsigned>(8 * plan_.cluster));
  EXPECT_EQ(stub_->last.grid[1], static_cast<unsigned>(kBatch));
  EXPECT_EQ(stub_->last.block[0], static_cast<unsigned>(32 * plan_.warps));
}

TEST_F(LayerLaunch, PassesWhatTheTensorsSay) {
  const Kernel kernel = load(full_description());
  const LayerArgs args = full_args();
  kernel.launch(args, nullptr);
  const device_args::LayerArgs got = launched();
  EXPECT_EQ(got.state, args.state.data);
  EXPECT_EQ(got.slots, kSlots);
  EXPECT_EQ(got.state_stride, kInner * kDstate);
  EXPECT_EQ(got.conv_state, args.conv_state.data);
  EXPECT_EQ(got.conv_state_stride, 4 * kChannels);
  EXPECT_EQ(got.x, args.x.data);
  EXPECT_EQ(got.x_stride, kRow);
  EXPECT_EQ(got.z, args.z.data);
  EXPECT_EQ(got.z_stride, kRow);
  EXPECT_EQ(got.dt_stride, kHeads);
  EXPECT_EQ(got.conv_weight, args.conv_weight.data);
  EXPECT_EQ(got.conv_bias, args.conv_bias.data);
  EXPECT_EQ(got.norm_weight, args.norm_weight.data);
  EXPECT_EQ(got.norm_bias, args.norm_bias.data);
  EXPECT_EQ(got.nheads, kHeads);
  EXPECT_EQ(got.wide_indices, 1);
  EXPECT_EQ(got.pad_slot_id, -1);
  EXPECT_EQ(got.pdl, 0);
}

TEST_F(LayerLaunch, OfAnEmptyBatchLaunchesNothing) {
  const Kernel kernel = load(full_description());
  LayerArgs args = full_args();
  args.x.shape[0] = args.z.shape[0] = args.dt.shape[0] = args.out.shape[0] = args.state_batch_indices.shape[0] = 0;
  const auto before = stub_->launches;
  kernel.launch(args, nullptr);
  EXPECT_EQ(stub_->launches, before);
}

TEST_F(LayerLaunch, AllocatesNothing) {
  const Kernel kernel = load(full_description());
  const LayerArgs args = full_args();
  kernel.launch(args, nullptr);
  const long before = allocation_count();
  kernel.launch(args, nullptr);
  EXPECT_EQ(allocation_count(), before);
}

// ---- chains ----

constexpr std::int64_t kScratch = kBatch * (kChannels + kInner) * 2;

Description chain_description() { return full_description().with_norm({.group_size = 512, .gate_expr = silu(dsl::z)}); }
LayerArgs chain_args() {
  LayerArgs args = full_args();
  args.norm_bias = Tensor{};
  args.scratch = contiguous(address(0xA000000), DType::i8, {kScratch});
  return args;
}

class ChainLaunch : public StubLaunchTest<device_args::NormArgs> {
 protected:
  Kernel load_chain(PlanForm form, const Description& description = chain_description()) {
    plan_ = default_chain(form, description, arch_, 3 * description.nheads);
    Cubin cubin;
    cubin.image.assign(16, 'c');
    cubin.arch = arch_;
    return Kernel::load(description, plan_, emit(description, plan_, arch_), cubin);
  }
};

TEST_F(ChainLaunch, IsOneLaunchAPart) {
  const Kernel kernel = load_chain(PlanForm::chain);
  kernel.launch(chain_args(), nullptr);
  EXPECT_EQ(stub_->launches, 3);
  EXPECT_EQ(stub_->last.pdl, 0);
  const device_args::NormArgs got = launched();
  EXPECT_EQ(got.x, address(0xA000000 + kBatch * kChannels * 2));
  EXPECT_EQ(got.x_stride, kInner);
  EXPECT_EQ(got.z_stride, kRow);
  EXPECT_EQ(got.out, chain_args().out.data);
  EXPECT_EQ(got.channels, kInner);
  EXPECT_EQ(got.pdl, 0);
}

TEST_F(ChainLaunch, OfSeveralTokensInPlaceIsOneLaunchAPart) {
  const Description d = chain_description().tokens(kTokens);
  const Kernel kernel = load_chain(PlanForm::chain_pdl, d);
  LayerArgs args = tokens_args();
  args.norm_bias = Tensor{};
  args.scratch = contiguous(address(0xA000000), DType::i8, {kTokens * kScratch});
  kernel.launch(args, nullptr);
  EXPECT_EQ(stub_->launches, 3);
  args.scratch.shape[0] -= 1;
  EXPECT_THAT([&] { kernel.launch(args, nullptr); },
              testing::ThrowsMessage<Error>(HasSubstr("scratch: got int8 of shape")));
}

TEST_F(ChainLaunch, OfFormChainPdlDependsInsideWhateverIsInFrontOfIt) {
  const Kernel kernel = load_chain(PlanForm::chain_pdl);
  LayerArgs args = chain_args();
  kernel.launch(args, nullptr);
  EXPECT_EQ(stub_->last.pdl, 1);
  EXPECT_EQ(launched().pdl, kDevicePdlEarlyState);
  // Who asks the first to wait before it reads anything asks all of them: they start before that wait is over.
  args.pdl = Pdl::wait_first;
  kernel.launch(args, nullptr);
  EXPECT_EQ(stub_->last.pdl, 1);
  EXPECT_EQ(launched().pdl, kDevicePdlWaitFirst);
}

TEST_F(ChainLaunch, OfFormChainDependsOnNothingInsideWhateverIsInFrontOfIt) {
  const Kernel kernel = load_chain(PlanForm::chain);
  LayerArgs args = chain_args();
  args.pdl = Pdl::early_state;
  kernel.launch(args, nullptr);
  EXPECT_EQ(stub_->last.pdl, 0);
}

TEST_F(ChainLaunch, AllocatesNothing) {
  const Kernel kernel = load_chain(PlanForm::chain_pdl);
  const LayerArgs args = chain_args();
  kernel.launch(args, nullptr);
  const long before = allocation_count();
  kernel.launch(args, nullptr);
  EXPECT_EQ(allocation_count(), before);
}

TEST_F(ChainLaunch, Row17_RefusesScratchThatIsMissingSmallOrMisalignedByNameAndNumbers) {
  const Kernel kernel = load_chain(PlanForm::chain);
  const auto refusal = [&](auto&& change) {
    LayerArgs args = chain_args();
    change(args.scratch);
    return std::string(error_of([&] { kernel.launch(args, nullptr); }).what());
  };
  EXPECT_THAT(refusal([](Tensor& t) { t = Tensor{}; }), HasSubstr("scratch: not given; a chain of 3 rows wants 61440"));
  EXPECT_THAT(refusal([](Tensor& t) { t.shape[0] -= 1; }),
              HasSubstr("scratch: got int8 of shape [61439]; a chain of 3 rows wants int8 of shape [61440] or more"));
  EXPECT_THAT(refusal([](Tensor& t) { t.data = address(0xA000080); }), HasSubstr("not a multiple of 256 bytes"));
  EXPECT_EQ(stub_->launches, 0);
}

// ---- with a ring, and what only the device's memory tells ----

Description chain_ring_description(Conv conv = {.activation_expr = silu(dsl::x)}) {
  return chain_description().tokens(kTokens).store(Ring{.window = 16}).with_conv(std::move(conv));
}
LayerArgs chain_ring_args() {
  LayerArgs args = chain_args();
  const std::int64_t T = kTokens;
  args.z = strided(address(0x3000000), DType::bf16, {kBatch, T, kHeads, kHeadDim}, {T * kRow, kRow, kHeadDim, 1});
  args.x = strided(address(0x3000000 + 2 * kInner), DType::bf16, {kBatch, T, kChannels}, {T * kRow, kRow, 1});
  args.dt = contiguous(address(0x4000000), DType::f32, {kBatch, T, kHeads});
  args.out = contiguous(address(0x8000000), DType::bf16, {kBatch, T, kHeads, kHeadDim});
  args.x_ring = contiguous(address(0x10000000), DType::bf16, {kSlots, kHeads, kLength, kHeadDim});
  args.B_ring = contiguous(address(0x20000000), DType::bf16, {kSlots, kGroups, kLength, kDstate});
  args.dt_ring = contiguous(address(0x30000000), DType::f32, {kSlots, kHeads, kLength});
  args.ring_start = contiguous(address(0x31000000), DType::i32, {kSlots});
  args.ring_count = contiguous(address(0x32000000), DType::i32, {kSlots});
  args.scratch.shape[0] = T * kScratch;
  return args;
}

TEST(LayerProblems, GoodArgumentsOfALayerWithARingHaveNone) {
  EXPECT_THAT(problems(chain_ring_args(), chain_ring_description()), IsEmpty());
}

TEST(Faults, Row1_PoolsOfALayerPastTwoToThe31ElementsAreTaken) {
  LayerArgs args = full_args();
  args.state.stride[0] = std::int64_t{1} << 33;
  args.conv_state.stride[0] = std::int64_t{1} << 34;
  EXPECT_THAT(problems(args), IsEmpty());
  const device_args::LayerArgs device = to_device(args, Pdl::off);
  EXPECT_EQ(device.state_stride, std::int64_t{1} << 33);
  EXPECT_EQ(device.conv_state_stride, std::int64_t{1} << 34);
  // A ring's kernel counts strides in 32 bits.
  args = chain_ring_args();
  args.x_ring.stride[0] = (std::int64_t{1} << 31) - 16;
  EXPECT_THAT(problems(args, chain_ring_description()), IsEmpty());
  args.x_ring.stride[0] = std::int64_t{1} << 31;
  EXPECT_THAT(problems(args, chain_ring_description()), ElementsAre(HasSubstr("x_ring: slot stride 2147483648")));
}

TEST(Faults, Row7_OtherThanTheTokensOfALayerAreRefusedByShape) {
  LayerArgs args = chain_ring_args();
  args.x.shape[1] = kTokens + 1;
  EXPECT_THAT(problems(args, chain_ring_description()),
              ElementsAre(HasSubstr("x: got shape [3, 7, 6144]; wants [3, 6, 6144]")));
  args = chain_ring_args();
  for (Tensor* t : {&args.x, &args.z, &args.dt, &args.out}) t->shape[1] = 1;
  EXPECT_THAT(problems(args, chain_ring_description()), testing::SizeIs(4));
}

TEST(Faults, Row15_AWrongDtypeOfAnyRingOfALayerIsNamed) {
  for (const Named& named : {Named{"x_ring", &LayerArgs::x_ring},
                             {"B_ring", &LayerArgs::B_ring},
                             {"dt_ring", &LayerArgs::dt_ring},
                             {"ring_start", &LayerArgs::ring_start},
                             {"ring_count", &LayerArgs::ring_count}}) {
    LayerArgs args = chain_ring_args();
    (args.*named.tensor).dtype = DType::f16;
    EXPECT_THAT(problems(args, chain_ring_description()),
                ElementsAre(HasSubstr(std::string(named.name) + ": got dtype fp16; wants ")));
  }
  LayerArgs args = chain_ring_args();
  args.state_scale = contiguous(address(0x33000000), DType::f32, {kSlots, kHeads, kHeadDim});
  EXPECT_THAT(problems(args, chain_ring_description()), ElementsAre(HasSubstr("state_scale: given, but")));
}

TEST_F(ChainLaunch, FaultRow19_OfAnEmptyBatchLaunchesNothingAndOfTheGridsLimitEveryPart) {
  for (const std::int64_t batch : {0, 1, 1024, 65535}) {
    const Kernel kernel = load_chain(PlanForm::chain_pdl, chain_ring_description());
    LayerArgs args = chain_ring_args();
    for (Tensor* t : {&args.x, &args.z, &args.dt, &args.out, &args.state_batch_indices}) t->shape[0] = batch;
    args.scratch.shape[0] = scratch_bytes(plan_, chain_ring_description(), static_cast<int>(batch));
    const auto before = stub_->launches;
    kernel.launch(args, nullptr);
    EXPECT_EQ(stub_->launches - before, batch == 0 ? 0 : 3);
    if (batch > 0) {
      EXPECT_EQ(stub_->last.grid[1], static_cast<unsigned>(batch * kTokens)) << "the norm has a row a token";
    }
  }
}

// The refusal of a checked launch with these slots; empty: it is launched.
class CheckedLayer : public ChainLaunch {
 protected:
  std::string refusal(const Description& d, LayerArgs args, const std::vector<std::int64_t>& slots) {
    const Kernel kernel = load_chain(PlanForm::chain, d);
    args.checked = true;
    args.dt_ring.data = d.ring_window() != 0 ? deltas_.data() : nullptr;
    args.state_batch_indices = contiguous(slots.data(), DType::i64, {kBatch});
    const auto before = stub_->launches;
    try {
      kernel.launch(args, nullptr);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::invalid);
      EXPECT_EQ(stub_->launches, before) << "before any launch";
      return error.what();
    }
    EXPECT_EQ(stub_->launches - before, 3);
    return {};
  }

  std::vector<float> deltas_ = std::vector<float>(kSlots * kHeads * kLength, 0.5f);
};

TEST_F(CheckedLayer, FaultRow3_PadRowsMayShareTheirIndex) {
  EXPECT_EQ(refusal(chain_description(), chain_args(), {-1, -1, -7}), "");
}

TEST_F(CheckedLayer, FaultRow4_AnIndexPastThePoolIsNamedOnceWithItsRow) {
  EXPECT_EQ(refusal(chain_description(), chain_args(), {0, 40, 3}),
            "state_batch_indices[1] is 40; the state has 40 slots");
}

TEST_F(CheckedLayer, FaultRow5_TheSameLiveSlotTwiceIsNamedOnceWithBothRows) {
  EXPECT_EQ(refusal(chain_description(), chain_args(), {4, 7, 4}),
            "state_batch_indices[0] and [2] are both slot 4; rows of one launch must write different slots");
}

TEST_F(CheckedLayer, FaultRow6And09_CursorsAndAcceptedCountsOutOfRangeAreNamed) {
  std::vector<std::int32_t> start(kSlots, 0), count(kSlots, 0);
  start[5] = 22;
  count[7] = 17;
  const std::int64_t accepted[] = {1, 7, 6};
  LayerArgs args = chain_ring_args();
  args.ring_start.data = start.data();
  args.ring_count.data = count.data();
  args.conv_state = contiguous(address(0x2000000), DType::bf16, {kSlots, kChannels, 8});
  args.num_accepted_tokens = contiguous(accepted, DType::i64, {kBatch});
  const Description d = chain_ring_description({.state_len = 8, .activation_expr = silu(dsl::x), .has_accepted = true});
  EXPECT_EQ(refusal(d, args, {5, 7, 1}),
            "ring_start[5] is 22, of row 0; wants 0 to 21\n"
            "ring_count[7] is 17, of row 1; wants 0 to 16\n"
            "num_accepted_tokens[1] is 7; wants 0 to 6");
  start[5] = count[7] = 0;
  EXPECT_EQ(refusal(d, args, {5, 7, -1}), "num_accepted_tokens[1] is 7; wants 0 to 6");
}

TEST_F(CheckedLayer, FaultRow18_ARowWhoseWindowIsReadWhereAnotherWritesIsNamed) {
  const std::vector<std::int32_t> none(kSlots, 0);
  const std::int64_t to[] = {9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 3, 21, 22, 23, 24, 25, 26};
  LayerArgs args = chain_ring_args();
  args.ring_start.data = args.ring_count.data = none.data();
  args.output_state_indices = contiguous(to, DType::i64, {kBatch, kTokens});
  const Description d = chain_ring_description({.activation_expr = silu(dsl::x), .keep = ConvKeep::slots});
  EXPECT_EQ(refusal(d, args, {3, 4, 5}), "row 0 reads slot 3, which row 1 of the same launch writes");
  EXPECT_EQ(refusal(d, args, {2, 4, 5}), "");
  args.output_state_indices.shape[1] = 2;
  EXPECT_THAT(refusal(d, args, {2, 4, 5}), HasSubstr("convolution: output_state_indices: got shape [3, 2]"))
      << "shapes are looked at before what is in memory";
}

TEST_F(ChainLaunch, RefusesRowsThatItsNormCannotReadAsVectors) {
  const Kernel kernel = load_chain(PlanForm::chain);
  LayerArgs args = chain_args();
  args.z.data = address(0x3000002);
  EXPECT_THAT(error_of([&] { kernel.launch(args, nullptr); }).what(), HasSubstr("z: base address 0x3000002"));
}

}  // namespace

}  // namespace ssmjit
