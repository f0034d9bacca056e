// What RingSlots make of their arguments: refusals, launches on the stub driver, checked mode.
#include <ssmjit/ring.h>

#include <algorithm>
#include <cstring>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/source.h>

#include "jit/kernel_args.h"
#include "tests/jit/allocation_count.h"
#include "tests/jit/launch_test.h"

namespace ssmjit {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::int64_t kSlots = 12, kLayers = 3, kBatch = 4, kHeads = 4, kHeadDim = 64, kDstate = 128, kGroups = 2,
                       kLength = 22, kChannels = kHeads * kHeadDim + 2 * kGroups * kDstate;

Description plain() {
  return mamba2({.nheads = kHeads, .head_dim = kHeadDim, .dstate = kDstate, .ngroups = kGroups})
      .tokens(6)
      .state(DType::i8)
      .rounding(Stochastic{})
      .store(Ring{.window = 16});
}
Description in_place() {
  return mamba2({.nheads = kHeads, .head_dim = kHeadDim, .dstate = kDstate, .ngroups = kGroups});
}

RingLayer layer_at(std::uintptr_t at) {
  RingLayer layer;
  layer.state = contiguous(address(at), DType::i8, {kSlots, kHeads, kHeadDim, kDstate});
  layer.state_scale = contiguous(address(at + 0x100000), DType::f32, {kSlots, kHeads, kHeadDim});
  layer.x_ring = contiguous(address(at + 0x200000), DType::bf16, {kSlots, kHeads, kLength, kHeadDim});
  layer.B_ring = contiguous(address(at + 0x300000), DType::bf16, {kSlots, kGroups, kLength, kDstate});
  layer.dt_ring = contiguous(address(at + 0x400000), DType::f32, {kSlots, kHeads, kLength});
  layer.A = contiguous(address(at + 0x500000), DType::f32, {kHeads});
  layer.conv_state = contiguous(address(at + 0x600000), DType::bf16, {kSlots, kChannels, 3});
  return layer;
}
struct NamedOfLayer {
  const char* name;
  Tensor RingLayer::*tensor;
};
constexpr NamedOfLayer kOfLayer[] = {{"state", &RingLayer::state},     {"state_scale", &RingLayer::state_scale},
                                     {"x_ring", &RingLayer::x_ring},   {"B_ring", &RingLayer::B_ring},
                                     {"dt_ring", &RingLayer::dt_ring}, {"A", &RingLayer::A}};

// ---- the table ----

TEST(RingLayerTable, HasAddressesStridesAndSlotsOfEachLayer) {
  std::vector<RingLayer> layers = {layer_at(0x1000000), layer_at(0x2000000)};
  layers[1].x_ring.stride[0] += 64;
  const std::vector<std::int64_t> table = ring_layer_table(plain(), layers);
  ASSERT_EQ(table.size(), 2u * kRingLayerWords);
  EXPECT_THAT(std::vector<std::int64_t>(table.begin() + kRingLayerWords, table.end()),
              ElementsAre(0x2000000, 0x2100000, 0x2200000, 0x2300000, 0x2400000, 0x2500000, kHeads * kHeadDim * kDstate,
                          kHeads * kHeadDim, kHeads * kLength * kHeadDim + 64, kGroups * kLength * kDstate,
                          kHeads * kLength, 0x2600000, kChannels * 3 / 8, kChannels * 3 / 8, kSlots));
  layers[1].conv_state = Tensor{};
  const std::vector<std::int64_t> without = ring_layer_table(plain(), layers);
  EXPECT_THAT(std::vector<std::int64_t>(without.end() - 4, without.end()), ElementsAre(0, 0, 0, kSlots));
  EXPECT_THAT(ring_layer_table(plain(), {}), IsEmpty());
}

TEST(RingLayerTable, NamesLayerAndTensorOfAllThatDoesNotFit) {
  std::vector<RingLayer> layers = {layer_at(0x1000000), {}, layer_at(0x2000000), layer_at(0x3000000)};
  layers[2].state.dtype = DType::bf16;
  layers[2].B_ring.data = address(0x2300008);
  layers[3].dt_ring.stride[0] -= 1;
  std::vector<testing::Matcher<std::string>> wanted;
  for (const NamedOfLayer& named : kOfLayer)
    wanted.push_back(HasSubstr("layers[1]: " + std::string(named.name) + ": not given"));
  wanted.push_back(HasSubstr("layers[2]: state: got dtype bf16; wants int8"));
  wanted.push_back(HasSubstr("layers[2]: B_ring: base address 0x2300008 is not a multiple of 16 bytes"));
  wanted.push_back(HasSubstr("layers[3]: dt_ring: slot stride 87 elements; wants 88 or more"));
  const Error error = error_of([&] { ring_layer_table(plain(), layers); });
  EXPECT_EQ(error.kind(), ErrorKind::invalid);
  for (const auto& matcher : wanted) EXPECT_THAT(error.what(), matcher);
  layers = {layer_at(0x1000000), layer_at(0x2000000)};
  for (Tensor RingLayer::*pool : {&RingLayer::state, &RingLayer::state_scale, &RingLayer::x_ring, &RingLayer::B_ring,
                                  &RingLayer::dt_ring, &RingLayer::conv_state})
    (layers[1].*pool).shape[0] = 13;
  EXPECT_STREQ(error_of([&] { ring_layer_table(plain(), layers); }).what(),
               "layers[1]: state: got 13 slots; wants 12, as layers[0] has");
  EXPECT_THAT(error_of([&] { ring_layer_table(in_place(), layers); }).what(), HasSubstr("wants a ring"));
}

TEST(RingLayerTable, NamesWindowsThatDoNotFit) {
  const auto refusal = [](const Tensor& windows) {
    std::vector<RingLayer> layers = {layer_at(0x1000000)};
    layers[0].conv_state = windows;
    return std::string(error_of([&] { ring_layer_table(plain(), layers); }).what());
  };
  const Tensor right = layer_at(0x1000000).conv_state;
  Tensor wrong = right;
  wrong.shape[0] = 13;
  EXPECT_THAT(refusal(wrong), testing::AllOf(HasSubstr("layers[0]: conv_state"), HasSubstr("13")));
  wrong = right;
  wrong.data = address(0x1600008);
  EXPECT_THAT(refusal(wrong), HasSubstr("conv_state: base address 0x1600008 is not a multiple of 16 bytes"));
  EXPECT_THAT(refusal(contiguous(right.data, DType::bf16, {kSlots, 4, 3})),
              HasSubstr("conv_state: got 24 bytes in a slot; wants a multiple of 16"));
  EXPECT_THAT(refusal(contiguous(right.data, DType::bf16, {kSlots})),
              HasSubstr("conv_state: got 1 dimensions; wants slots and what they hold"));
}

// ---- what launches are given ----

MaterialiseArgs materialise_args() {
  MaterialiseArgs args;
  args.layers = contiguous(address(0x1000), DType::i64, {kLayers, kRingLayerWords});
  args.src_slots = contiguous(address(0x2000), DType::i64, {kBatch});
  args.dst_slots = contiguous(address(0x3000), DType::i32, {kLayers, kBatch});
  args.ring_start = contiguous(address(0x4000), DType::i32, {kBatch});
  args.ring_count = contiguous(address(0x5000), DType::i32, {kBatch});
  args.prefix_length = contiguous(address(0x6000), DType::i32, {kBatch});
  args.active_request_indices = contiguous(address(0x7000), DType::i32, {7});
  args.rand_seed = contiguous(address(0x8000), DType::i64, {kLayers});
  return args;
}
ResetSlotsArgs reset_args() {
  ResetSlotsArgs args;
  args.layers = contiguous(address(0x1000), DType::i64, {kLayers, kRingLayerWords});
  args.slots = contiguous(address(0x2000), DType::i64, {kBatch});
  args.ring_start = contiguous(address(0x4000), DType::i32, {kSlots});
  args.ring_count = contiguous(address(0x5000), DType::i32, {kSlots});
  return args;
}
CopySlotsArgs copy_args() {
  CopySlotsArgs args;
  args.layers = contiguous(address(0x1000), DType::i64, {kLayers, kRingLayerWords});
  args.src_slots = contiguous(address(0x2000), DType::i64, {kBatch});
  args.dst_slots = contiguous(address(0x3000), DType::i32, {kBatch});
  args.ring_start = contiguous(address(0x4000), DType::i32, {kSlots});
  args.ring_count = contiguous(address(0x5000), DType::i32, {kSlots});
  return args;
}

template <class Args>
struct Named {
  const char* name;
  Tensor Args::*tensor;
  bool is_optional = false;
};
constexpr Named<MaterialiseArgs> kOfMaterialise[] = {
    {"layers", &MaterialiseArgs::layers},
    {"src_slots", &MaterialiseArgs::src_slots},
    {"dst_slots", &MaterialiseArgs::dst_slots},
    {"ring_start", &MaterialiseArgs::ring_start},
    {"ring_count", &MaterialiseArgs::ring_count, true},
    {"prefix_length", &MaterialiseArgs::prefix_length},
    {"active_request_indices", &MaterialiseArgs::active_request_indices, true},
    {"rand_seed", &MaterialiseArgs::rand_seed}};
constexpr Named<ResetSlotsArgs> kOfReset[] = {{"layers", &ResetSlotsArgs::layers},
                                              {"slots", &ResetSlotsArgs::slots},
                                              {"ring_start", &ResetSlotsArgs::ring_start},
                                              {"ring_count", &ResetSlotsArgs::ring_count}};
constexpr Named<CopySlotsArgs> kOfCopy[] = {{"layers", &CopySlotsArgs::layers},
                                            {"src_slots", &CopySlotsArgs::src_slots},
                                            {"dst_slots", &CopySlotsArgs::dst_slots},
                                            {"ring_start", &CopySlotsArgs::ring_start},
                                            {"ring_count", &CopySlotsArgs::ring_count}};

template <class Args, std::size_t kCount>
void expect_misfits_are_named(const Args& good, const Named<Args> (&tensors)[kCount]) {
  EXPECT_THAT(RingSlots::problems(plain(), good), IsEmpty());
  std::vector<testing::Matcher<std::string>> wanted;
  for (const auto& named : tensors)
    if (!named.is_optional) wanted.push_back(HasSubstr(std::string(named.name) + ": not given"));
  EXPECT_THAT(RingSlots::problems(plain(), Args{}), ElementsAreArray(wanted));
  for (const auto& named : tensors) {
    SCOPED_TRACE(named.name);
    Args args = good;
    (args.*named.tensor).dtype = DType::f16;
    EXPECT_THAT(RingSlots::problems(plain(), args),
                ElementsAre(HasSubstr(std::string(named.name) + ": got dtype fp16; wants ")));
    args = good;
    (args.*named.tensor).rank = 3;
    EXPECT_THAT(RingSlots::problems(plain(), args),
                testing::Contains(testing::AllOf(HasSubstr(named.name), HasSubstr(" dimensions; wants "))));
    args = good;
    (args.*named.tensor).data = address(0x1002);
    EXPECT_THAT(RingSlots::problems(plain(), args),
                ElementsAre(HasSubstr(std::string(named.name) + ": base address 0x1002 is not a multiple of ")));
  }
  Args args = good;
  args.size = 8;
  EXPECT_THAT(RingSlots::problems(plain(), args), ElementsAre(HasSubstr("args: size is 8; wants")));
  EXPECT_THAT(RingSlots::problems(in_place(), good), ElementsAre(HasSubstr("updates in place")));
  args = good;
  args.layers.shape[0] = std::int64_t{1} << 40;
  EXPECT_THAT(RingSlots::problems(plain(), args),
              testing::Contains("layers: got 1099511627776; a launch takes up to 67108863"));
  args = good;
  args.layers.stride[0] = 16;
  EXPECT_THAT(RingSlots::problems(plain(), args), ElementsAre(HasSubstr("layers: row stride 16 elements; wants 15")));
}

TEST(Faults, Row15_TensorsThatDoNotFitALaunchOfSlotsAreNamed) {
  expect_misfits_are_named(materialise_args(), kOfMaterialise);
  expect_misfits_are_named(reset_args(), kOfReset);
  expect_misfits_are_named(copy_args(), kOfCopy);
}

TEST(RingSlotsProblems, SlotsAreOneRowOrARowALayer) {
  MaterialiseArgs args = materialise_args();
  args.src_slots = contiguous(address(0x2000), DType::i32, {kLayers + 1, kBatch});
  args.dst_slots = contiguous(address(0x2000), DType::i32, {kBatch + 1});
  args.rand_seed.shape[0] = 2;
  args.ring_count.shape[0] = 5;
  EXPECT_THAT(RingSlots::problems(plain(), args),
              ElementsAre("src_slots: got shape [4, 4]; wants [3, 4]", "dst_slots: got shape [5]; wants [4]",
                          "ring_count: got shape [5]; wants [4]", "rand_seed: got shape [2]; wants [3]"));
  args = materialise_args();
  args.dst_slots.stride[0] = 3 * kBatch;
  args.rand_seed.shape[0] = 1;
  args.ring_count = {};
  args.active_request_indices = {};
  EXPECT_THAT(RingSlots::problems(plain(), args), IsEmpty());
  EXPECT_THAT(RingSlots::problems(plain().rounding(Nearest{}), args), ElementsAre(HasSubstr("rand_seed: given, but")));
  args.prefix_length.shape[0] = 65536;
  EXPECT_THAT(RingSlots::problems(plain(), args),
              testing::Contains(HasSubstr("prefix_length: got 65536 requests; a launch takes up to 65535")));
}

// ---- launches on the stub driver ----

class RingSlotsLaunch : public testing::Test {
 protected:
  void SetUp() override {
    if (!stub_.ready()) GTEST_SKIP() << "the stub driver was not built (SSMJIT_STUB_LIBCUDA)";
    layers_ = {layer_at(0x1000000), layer_at(0x2000000), layer_at(0x3000000)};
    table_ = ring_layer_table(plain(), layers_);
  }
  RingSlots load() const {
    Source source = emit_ring_slots(plain(), arch_);
    Cubin cubin;
    cubin.image.assign(16, 'c');
    cubin.arch = arch_;
    return RingSlots::load(plain(), source, cubin);
  }
  template <class DeviceArgs>
  DeviceArgs launched() const {
    DeviceArgs args{};
    std::memcpy(&args, stub_->last.arguments, sizeof args);
    return args;
  }
  // Checked launches, with what the stub reads in place of the device.
  Tensor layers() const { return contiguous(table_.data(), DType::i64, {kLayers, kRingLayerWords}); }
  template <class Args>
  std::string refusal(Args args, void (RingSlots::*launch)(const Args&, void*) const) {
    const RingSlots slots = load();
    args.layers = layers();
    args.checked = true;
    const int before = stub_->launches;
    try {
      (slots.*launch)(args, nullptr);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::invalid);
      EXPECT_EQ(stub_->launches, before);
      return error.what();
    }
    EXPECT_EQ(stub_->launches, before + 1);
    return {};
  }
  std::string materialise() {
    MaterialiseArgs args = materialise_args();
    args.src_slots = contiguous(src_.data(), DType::i64, {kBatch});
    args.dst_slots = contiguous(dst_.data(), DType::i64, {kBatch});
    args.ring_start = contiguous(start_.data(), DType::i32, {kBatch});
    args.ring_count = contiguous(count_.data(), DType::i32, {kBatch});
    args.prefix_length = contiguous(prefix_.data(), DType::i32, {kBatch});
    args.active_request_indices = {};
    if (!active_.empty())
      args.active_request_indices = contiguous(active_.data(), DType::i32, {static_cast<std::int64_t>(active_.size())});
    return refusal(args, &RingSlots::materialise);
  }
  std::string copy() {
    CopySlotsArgs args = copy_args();
    args.src_slots = contiguous(src_.data(), DType::i64, {kBatch});
    args.dst_slots = contiguous(dst_.data(), DType::i64, {kBatch});
    return refusal(args, &RingSlots::copy);
  }
  std::string reset() {
    ResetSlotsArgs args = reset_args();
    args.slots = contiguous(src_.data(), DType::i64, {kBatch});
    return refusal(args, &RingSlots::reset);
  }

  StubDriver stub_;
  Arch arch_{9, 0, 'a'};
  std::vector<RingLayer> layers_;
  std::vector<std::int64_t> table_;
  std::vector<std::int64_t> src_ = {0, 1, 2, -1}, dst_ = {11, 10, 9, 11};
  std::vector<std::int32_t> start_ = {0, 21, 3, 99}, count_ = {16, 0, 5, 99}, prefix_ = {16, 0, 4, 99}, active_;
};

TEST_F(RingSlotsLaunch, AreOneLaunchForAllLayersWithTheArguments) {
  const RingSlots slots = load();
  stub_->argument_bytes = sizeof(device_args::MaterialiseArgs);
  int stream = 0;
  slots.materialise(materialise_args(), &stream);
  EXPECT_THAT(stub_->last.grid, ElementsAre(kLayers * kHeads, 7u, 1u));
  EXPECT_THAT(stub_->last.block, ElementsAre(128u, 1u, 1u));
  EXPECT_EQ(stub_->last.stream, &stream);
  EXPECT_EQ(stub_->last.pdl, 0);
  const auto m = launched<device_args::MaterialiseArgs>();
  EXPECT_EQ(m.layers, address(0x1000));
  EXPECT_EQ(m.src_slots, address(0x2000));
  EXPECT_EQ(m.src_layer_stride, 0);
  EXPECT_EQ(m.dst_layer_stride, kBatch);
  EXPECT_EQ(m.wide_src, 1);
  EXPECT_EQ(m.wide_dst, 0);
  EXPECT_EQ(m.seed_stride, 1);
  EXPECT_EQ(m.batch, kBatch);
  EXPECT_EQ(m.nheads, kHeads);
  EXPECT_EQ(m.pad_slot_id, -1);

  stub_->argument_bytes = sizeof(device_args::ResetSlotsArgs);
  slots.reset(reset_args(), &stream);
  EXPECT_THAT(stub_->last.grid, ElementsAre(kLayers * kHeads, kBatch, 1u));
  EXPECT_EQ(launched<device_args::ResetSlotsArgs>().ring_count, address(0x5000));
  stub_->argument_bytes = sizeof(device_args::CopySlotsArgs);
  slots.copy(copy_args(), &stream);
  EXPECT_EQ(launched<device_args::CopySlotsArgs>().dst_slots, address(0x3000));
  EXPECT_EQ(stub_->launches, 3);
}

TEST_F(RingSlotsLaunch, FaultRow19_NothingToDoLaunchesNothing) {
  const RingSlots slots = load();
  MaterialiseArgs none = materialise_args();
  none.active_request_indices.shape[0] = 0;
  slots.materialise(none, nullptr);
  none = materialise_args();
  for (Tensor MaterialiseArgs::*t : {&MaterialiseArgs::src_slots, &MaterialiseArgs::ring_start,
                                     &MaterialiseArgs::ring_count, &MaterialiseArgs::prefix_length})
    (none.*t).shape[0] = 0;
  none.dst_slots = none.src_slots;
  slots.materialise(none, nullptr);
  ResetSlotsArgs reset = reset_args();
  reset.slots = contiguous(nullptr, DType::i64, {0});
  slots.reset(reset, nullptr);
  CopySlotsArgs copy = copy_args();
  copy.src_slots = copy.dst_slots = contiguous(nullptr, DType::i64, {0});
  slots.copy(copy, nullptr);
  EXPECT_EQ(stub_->launches, 0);
}

TEST_F(RingSlotsLaunch, AllocateNothing) {
  const RingSlots slots = load();
  const MaterialiseArgs materialise = materialise_args();
  const CopySlotsArgs copy = copy_args();
  const ResetSlotsArgs reset = reset_args();
  const long before = allocation_count();
  slots.materialise(materialise, nullptr);
  slots.copy(copy, nullptr);
  slots.reset(reset, nullptr);
  EXPECT_EQ(allocation_count(), before);
}

TEST_F(RingSlotsLaunch, MisfitsAreRefusedBeforeAnyWork) {
  const RingSlots slots = load();
  MaterialiseArgs args = materialise_args();
  args.ring_start = {};
  args.rand_seed.dtype = DType::i32;
  const Error error = error_of([&] { slots.materialise(args, nullptr); });
  EXPECT_EQ(error.kind(), ErrorKind::invalid);
  EXPECT_STREQ(error.what(), "ring_start: not given; every launch needs it\nrand_seed: got dtype int32; wants int64");
  EXPECT_EQ(stub_->launches, 0);
  EXPECT_EQ(error_of([] { RingSlots().reset(reset_args(), nullptr); }).kind(), ErrorKind::invalid);
  EXPECT_EQ(error_of([] { RingSlots().description(); }).kind(), ErrorKind::invalid);
}

TEST_F(RingSlotsLaunch, AnotherSourceAndADescriptionWithoutARingAreRefused) {
  Cubin cubin;
  cubin.image.assign(16, 'c');
  cubin.arch = arch_;
  const Source other = emit(plain(), default_plan(plain(), arch_, 4), arch_);
  EXPECT_THAT(error_of([&] { RingSlots::load(plain(), other, cubin); }).what(), HasSubstr("source: has 1 entries"));
  EXPECT_THAT(error_of([&] { RingSlots::load(in_place()); }).what(), HasSubstr("wants a ring"));
}

TEST_F(RingSlotsLaunch, FaultRow20_ALoadDuringACaptureIsRefused) {
  stub_->capturing = 1;
  EXPECT_THAT(error_of([&] { RingSlots::load(plain()); }).what(), HasSubstr("before the capture begins"));
}

// ---- checked mode ----

TEST_F(RingSlotsLaunch, CheckedLaunchesThatAreRightGoAhead) {
  EXPECT_EQ(materialise(), "") << "the pad's cursors are of no interest";
  dst_ = {0, 10, 9, -1};
  EXPECT_EQ(materialise(), "") << "a slot may be its own destination";
  dst_ = {11, 10, 9, 8};
  EXPECT_EQ(copy(), "");
  EXPECT_EQ(reset(), "");
  EXPECT_EQ(stub_->synchronised, 4);
}

TEST_F(RingSlotsLaunch, FaultRow4_SlotsPastThePoolAreNamed) {
  src_[1] = 12;
  dst_[2] = 99;
  EXPECT_EQ(materialise(), "src_slots[1] is 12; the state has 12 slots\ndst_slots[2] is 99; the state has 12 slots");
  EXPECT_EQ(copy(), "src_slots[1] is 12; the state has 12 slots\ndst_slots[2] is 99; the state has 12 slots");
  EXPECT_EQ(reset(), "slots[1] is 12; the state has 12 slots");
}

TEST_F(RingSlotsLaunch, FaultRow18_ADestinationThatAnotherWritesOrReadsIsNamed) {
  src_ = {0, 1, 2, 3};
  dst_ = {5, 2, 6, 5};
  prefix_[3] = count_[3] = start_[3] = 1;
  const std::string both =
      "dst_slots[0] and [3] are both slot 5; rows of one launch must write different slots\n"
      "request 2 reads slot 2, which request 1 of the same launch writes";
  EXPECT_EQ(materialise(), both);
  EXPECT_EQ(copy(), both);
  dst_ = {5, 1, 6, 7};
  EXPECT_EQ(materialise(), "");
  EXPECT_EQ(copy(), "request 1 copies slot 1 onto itself; leave it out");
  src_ = {4, -1, 7, 4};
  EXPECT_EQ(reset(), "slots[0] and [3] are both slot 4; rows of one launch must write different slots");
}

TEST_F(RingSlotsLaunch, FaultRow9_CursorsAndPrefixesOutOfRangeAreNamed) {
  start_[0] = 22;
  count_[1] = 17;
  prefix_[2] = 6;
  prefix_[0] = -1;
  EXPECT_EQ(materialise(),
            "ring_start[0] is 22; wants 0 to 21\n"
            "prefix_length[0] is -1; wants 0 to 16, the request's ring_count\n"
            "ring_count[1] is 17; wants 0 to 16\n"
            "prefix_length[2] is 6; wants 0 to 5, the request's ring_count");
}

TEST_F(RingSlotsLaunch, OnlyListedRequestsAreLookedAtAndEachMayBeListedOnce) {
  dst_[0] = dst_[1];
  prefix_[1] = 99;
  active_ = {2, 0, -1, 1};
  EXPECT_EQ(materialise(), "");
  active_ = {2, 4, 2};
  EXPECT_EQ(materialise(),
            "active_request_indices[1] is 4; there are 4 requests\n"
            "active_request_indices[0] and [2] are both request 2; wants each at most once");
}

TEST_F(RingSlotsLaunch, SlotsOfALayerAreNamedWithIt) {
  std::vector<std::int32_t> slots = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, to = {4, 5, 6, 7, 0, 1, 0, 2, 12, 1, 2, 3};
  MaterialiseArgs args = materialise_args();
  args.src_slots = contiguous(slots.data(), DType::i32, {kLayers, kBatch});
  args.dst_slots = contiguous(to.data(), DType::i32, {kLayers, kBatch});
  prefix_[3] = count_[3] = start_[3] = 1;
  args.ring_start = contiguous(start_.data(), DType::i32, {kBatch});
  args.ring_count = {};
  args.prefix_length = contiguous(prefix_.data(), DType::i32, {kBatch});
  args.active_request_indices = {};
  EXPECT_EQ(refusal(args, &RingSlots::materialise),
            "dst_slots[1][0] and [2] are both slot 0; rows of one launch must write different slots\n"
            "dst_slots[2][0] is 12; the state has 12 slots");
}

TEST_F(RingSlotsLaunch, CursorsOfAnotherNumberOfSlotsAreNamed) {
  ResetSlotsArgs args = reset_args();
  args.slots = contiguous(src_.data(), DType::i64, {kBatch});
  args.ring_start.shape[0] = args.ring_count.shape[0] = 9;
  EXPECT_EQ(refusal(args, &RingSlots::reset),
            "ring_start: got 9 slots; layers[0] has 12\nring_start: got 9 slots; layers[1] has 12\n"
            "ring_start: got 9 slots; layers[2] has 12");
}

TEST_F(RingSlotsLaunch, FaultRow20_CheckedLaunchesAreRefusedUnderCapture) {
  stub_->capturing = 1;
  const RingSlots slots = load();
  MaterialiseArgs args = materialise_args();
  args.checked = true;
  EXPECT_THAT(error_of([&] { slots.materialise(args, nullptr); }).what(), HasSubstr("the stream is being captured"));
  args.checked = false;
  slots.materialise(args, nullptr);
  EXPECT_EQ(stub_->launches, 1);
  EXPECT_EQ(stub_->synchronised, 0);
}

}  // namespace
}  // namespace ssmjit
