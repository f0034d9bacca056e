#include <ssmjit/kernel.h>

#include <cstring>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/error.h>
#include <ssmjit/source.h>

#include "jit/driver.h"
#include "jit/kernel_args.h"
#include "tests/jit/allocation_count.h"
#include "tests/jit/launch_test.h"

namespace ssmjit {

namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::int64_t kSlots = 12, kBatch = 3, kHeads = 4, kHeadDim = 64, kDstate = 128, kGroups = 2;

Description full_description() {
  return mamba2({.nheads = kHeads, .head_dim = kHeadDim, .dstate = kDstate, .ngroups = kGroups})
      .state(DType::bf16)
      .gate(silu(dsl::z))
      .destination_slots();
}

UpdateArgs full_args() {
  UpdateArgs args;
  args.state = contiguous(address(0x1000000), DType::bf16, {kSlots, kHeads, kHeadDim, kDstate});
  args.x = contiguous(address(0x2000000), DType::bf16, {kBatch, kHeads, kHeadDim});
  args.dt = contiguous(address(0x3000000), DType::f32, {kBatch, kHeads});
  args.A = contiguous(address(0x4000000), DType::f32, {kHeads});
  args.B = contiguous(address(0x5000000), DType::bf16, {kBatch, kGroups, kDstate});
  args.C = contiguous(address(0x6000000), DType::bf16, {kBatch, kGroups, kDstate});
  args.D = contiguous(address(0x7000000), DType::f32, {kHeads});
  args.dt_bias = contiguous(address(0x8000000), DType::f32, {kHeads});
  args.z = contiguous(address(0x9000000), DType::bf16, {kBatch, kHeads, kHeadDim});
  args.out = contiguous(address(0xa000000), DType::bf16, {kBatch, kHeads, kHeadDim});
  return args;
}

std::vector<std::string> problems(const UpdateArgs& args, const Description& description = full_description()) {
  return Kernel::problems(description, args);
}

TEST(Tensors, ContiguousStridesFollowFromTheShape) {
  const Tensor tensor = contiguous(address(16), DType::f32, {5, 4, 3, 2});
  EXPECT_EQ(tensor.rank, 4);
  EXPECT_THAT(tensor.stride, ElementsAre(24, 6, 2, 1, 0));
  EXPECT_EQ(error_of([] { contiguous(nullptr, DType::f32, {1, 1, 1, 1, 1, 1}); }).kind(), ErrorKind::invalid);
  EXPECT_EQ(error_of([] { strided(nullptr, DType::f32, {1, 1}, {1}); }).kind(), ErrorKind::invalid);
}

TEST(KernelProblems, GoodArgumentsHaveNone) {
  EXPECT_THAT(problems(full_args()), IsEmpty());
  UpdateArgs args = full_args();
  args.state_batch_indices = contiguous(address(0xb000000), DType::i64, {kBatch, 1});
  args.dst_state_batch_indices = contiguous(address(0xc000000), DType::i64, {kBatch});
  EXPECT_THAT(problems(args), IsEmpty());
}

TEST(KernelProblems, AreAllNamedInOneGo) {
  UpdateArgs args;
  EXPECT_THAT(problems(args),
              ElementsAre(HasSubstr("state: not given"), HasSubstr("x: not given"), HasSubstr("dt: not given"),
                          HasSubstr("A: not given"), HasSubstr("B: not given"), HasSubstr("C: not given"),
                          HasSubstr("D: not given"), HasSubstr("dt_bias: not given"), HasSubstr("z: not given"),
                          HasSubstr("out: not given")));
}

TEST(KernelProblems, ArgumentsOfAnotherVersionAreRefusedUnread) {
  UpdateArgs args;
  args.size = 8;
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("args: size is 8; wants")));
}

struct Named {
  const char* name;
  Tensor UpdateArgs::*tensor;
};
constexpr Named kTensors[] = {
    {"state", &UpdateArgs::state}, {"x", &UpdateArgs::x},    {"dt", &UpdateArgs::dt}, {"A", &UpdateArgs::A},
    {"B", &UpdateArgs::B},         {"C", &UpdateArgs::C},    {"D", &UpdateArgs::D},   {"dt_bias", &UpdateArgs::dt_bias},
    {"z", &UpdateArgs::z},         {"out", &UpdateArgs::out}};

TEST(Faults, Row15_AWrongDtypeOfAnyTensorIsNamed) {
  for (const Named& named : kTensors) {
    UpdateArgs args = full_args();
    (args.*named.tensor).dtype = DType::f16;
    EXPECT_THAT(problems(args), ElementsAre(HasSubstr(std::string(named.name) + ": got dtype fp16; wants ")));
  }
}

TEST(KernelProblems, AWrongRankOfAnyTensorIsNamed) {
  for (const Named& named : kTensors) {
    UpdateArgs args = full_args();
    Tensor& tensor = args.*named.tensor;
    tensor.rank = tensor.rank == 4 ? 3 : tensor.rank + 1;
    EXPECT_THAT(problems(args), testing::Contains(HasSubstr(std::string(named.name) + ": got ")));
    EXPECT_THAT(problems(args), testing::Contains(HasSubstr(" dimensions; wants ")));
  }
}

// A, dt, D and dt_bias as peers take them.
UpdateArgs expanded_args() {
  UpdateArgs args = full_args();
  args.A = strided(args.A.data, DType::f32, {kHeads, kHeadDim, kDstate}, {1, 0, 0});
  args.dt = strided(args.dt.data, DType::f32, {kBatch, kHeads, kHeadDim}, {kHeads, 1, 0});
  args.D = strided(args.D.data, DType::f32, {kHeads, kHeadDim}, {1, 0});
  args.dt_bias = strided(args.dt_bias.data, DType::f32, {kHeads, kHeadDim}, {1, 0});
  return args;
}

TEST(KernelProblems, OneValueAHeadMayBeAnExpandedViewAndReachesTheKernelAsThePlainOne) {
  EXPECT_THAT(problems(expanded_args()), IsEmpty());
  const device_args::UpdateArgs plain = to_device(full_args(), Pdl::off),
                                expanded = to_device(expanded_args(), Pdl::off);
  EXPECT_EQ(std::memcmp(&plain, &expanded, sizeof plain), 0);
}

TEST(KernelProblems, AValueForEachElementIsRefusedByName) {
  struct Misfit {
    Tensor UpdateArgs::*tensor;
    std::size_t dimension;
    const char* sentence;
  };
  for (const Misfit& m :
       {Misfit{&UpdateArgs::A, 1,
               "A: got 3 dimensions; wants 1, [4], or [nheads, head_dim, dstate] of "
               "strides [1, 0, 0]"},
        Misfit{&UpdateArgs::dt, 2, "dt: got 3 dimensions; wants 2, [3, 4], or with head_dim of stride 0"},
        Misfit{&UpdateArgs::D, 1, "D: got 2 dimensions; wants 1, [4], or with head_dim of stride 0"},
        Misfit{&UpdateArgs::dt_bias, 1, "dt_bias: got 2 dimensions; wants 1, [4], or with head_dim"}}) {
    UpdateArgs args = expanded_args();
    (args.*m.tensor).stride[m.dimension] = 1;
    EXPECT_THAT(problems(args), ElementsAre(HasSubstr(m.sentence)));
    args = expanded_args();
    (args.*m.tensor).shape[m.dimension] += 1;
    EXPECT_THAT(problems(args), ElementsAre(HasSubstr(m.sentence)));
  }
  UpdateArgs args = expanded_args();
  args.A.stride[0] = kHeadDim * kDstate;
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("A: dimension 0 has stride 8192; wants 1")));
}

TEST(KernelProblems, AWrongExtentOfAnyTensorIsNamed) {
  for (const Named& named : kTensors) {
    const int rank = (full_args().*named.tensor).rank;
    for (int i = named.tensor == &UpdateArgs::state || named.tensor == &UpdateArgs::x ? 1 : 0; i < rank; ++i) {
      UpdateArgs args = full_args();
      (args.*named.tensor).shape[static_cast<std::size_t>(i)] += 1;
      EXPECT_THAT(problems(args), ElementsAre(HasSubstr(std::string(named.name) + ": got shape [")))
          << named.name << " " << i;
    }
  }
}

TEST(KernelProblems, InnerDimensionsMustBeContiguous) {
  for (const Named& named : kTensors) {
    const int rank = (full_args().*named.tensor).rank;
    for (int i = rank == 1 ? 0 : 1; i < rank; ++i) {
      UpdateArgs args = full_args();
      (args.*named.tensor).stride[static_cast<std::size_t>(i)] += 8;
      EXPECT_THAT(problems(args), ElementsAre(HasSubstr("must be contiguous"))) << named.name << " " << i;
    }
  }
}

TEST(KernelProblems, TensorsMustBeGivenAsTheDescriptionReadsThem) {
  const Description plain = mamba2({.nheads = kHeads, .head_dim = kHeadDim, .dstate = kDstate, .ngroups = kGroups})
                                .state(DType::bf16)
                                .no_skip()
                                .delta(softplus(dsl::dt));
  EXPECT_THAT(problems(full_args(), plain),
              ElementsAre(HasSubstr("D: given, but"), HasSubstr("dt_bias: given, but"), HasSubstr("z: given, but")));
}

TEST(Faults, Row2_APaddedPageViewOfTheStateIsTaken) {
  UpdateArgs args = full_args();
  args.state.stride[0] = 2 * kHeads * kHeadDim * kDstate + 64;
  EXPECT_THAT(problems(args), IsEmpty());
}

TEST(Faults, Row2_AMisalignedStateIsRefused) {
  UpdateArgs args = full_args();
  args.state.data = address(0x1000008);
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("state: base address 0x1000008 is not a multiple of 16 bytes")));
  args = full_args();
  args.state.stride[0] += 4;
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("is not a multiple of 16 bytes; pad the slots")));
}

TEST(Faults, Row2_OverlappingSlotsOrOutputsAreRefused) {
  UpdateArgs args = full_args();
  args.state.stride[0] -= 8;
  args.out.stride[0] = 0;
  EXPECT_THAT(problems(args),
              ElementsAre(HasSubstr("state: slot stride"), HasSubstr("out: row stride 0 elements; wants 256 or more")));
}

TEST(Faults, Row16_StridedSlicesOfOneProjectionAreTaken) {
  UpdateArgs args = full_args();
  for (Tensor UpdateArgs::*tensor : {&UpdateArgs::x, &UpdateArgs::z, &UpdateArgs::B, &UpdateArgs::C})
    (args.*tensor).stride[0] = 1064;
  args.dt.stride[0] = 1061;
  EXPECT_THAT(problems(args), IsEmpty());
}

TEST(Faults, Row16_AStrideOffTheVectorIsRefusedWithTheWayOutAndTakenThen) {
  for (Tensor UpdateArgs::*tensor : {&UpdateArgs::x, &UpdateArgs::B, &UpdateArgs::C}) {
    UpdateArgs args = full_args();
    (args.*tensor).stride[0] = 2062;
    EXPECT_THAT(problems(args), ElementsAre(HasSubstr(": row stride 2062 elements (4124 bytes) is not a multiple of 16 "
                                                      "bytes; pad the rows, or describe the kernel with "
                                                      "unaligned_rows()")));
    EXPECT_THAT(problems(args, full_description().unaligned_rows()), IsEmpty());
    args = full_args();
    (args.*tensor).data = address(0x2000002);
    EXPECT_THAT(problems(args), ElementsAre(HasSubstr("unaligned_rows()")));
    EXPECT_THAT(problems(args, full_description().unaligned_rows()), IsEmpty());
  }
}

TEST(Faults, Row16_OtherTensorsNeedTheirElementsAligned) {
  for (Tensor UpdateArgs::*tensor :
       {&UpdateArgs::z, &UpdateArgs::out, &UpdateArgs::dt, &UpdateArgs::A, &UpdateArgs::D, &UpdateArgs::dt_bias}) {
    UpdateArgs args = full_args();
    const auto bytes = static_cast<std::uintptr_t>(size_bytes((args.*tensor).dtype));
    (args.*tensor).data = address(0x2000000 + bytes);
    EXPECT_THAT(problems(args), IsEmpty());
    (args.*tensor).data = address(0x2000000 + bytes / 2);
    EXPECT_THAT(problems(args), ElementsAre(HasSubstr("is not a multiple of")));
  }
}

TEST(KernelProblems, TheStrideOfASingleRowSaysNothing) {
  UpdateArgs args = full_args();
  for (const Named& named : kTensors) {
    Tensor& tensor = args.*named.tensor;
    if (tensor.rank < 2) continue;
    tensor.shape[0] = 1;
    tensor.stride[0] = 1;
  }
  EXPECT_THAT(problems(args), IsEmpty());
}

TEST(Faults, Row15_IndexTensorsAreInt32OrInt64AndBothTheSame) {
  UpdateArgs args = full_args();
  args.state_batch_indices = contiguous(address(0xb000000), DType::f32, {kBatch});
  EXPECT_THAT(problems(args), ElementsAre("state_batch_indices: got dtype fp32; wants int32 or int64"));
  args.state_batch_indices = contiguous(address(0xb000000), DType::i32, {kBatch});
  args.dst_state_batch_indices = contiguous(address(0xc000000), DType::i64, {kBatch});
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("got dtype int64; wants int32, as state_batch_indices")));
  args.dst_state_batch_indices = contiguous(address(0xc000000), DType::i32, {kBatch + 1});
  EXPECT_THAT(problems(args), ElementsAre("dst_state_batch_indices: got shape [4]; wants [3] or [3, 1]"));
}

TEST(KernelProblems, ADestinationNeedsADescriptionWithOne) {
  UpdateArgs args = full_args();
  args.dst_state_batch_indices = contiguous(address(0xc000000), DType::i32, {kBatch});
  EXPECT_THAT(problems(args, full_description().destination_slots(false)),
              ElementsAre(HasSubstr("destination_slots()")));
}

TEST(KernelProblems, WithoutIndicesEveryRowNeedsItsSlot) {
  UpdateArgs args = full_args();
  args.state = contiguous(address(0x1000000), DType::bf16, {2, kHeads, kHeadDim, kDstate});
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("state: 2 slots for 3 rows")));
}

// A state in units of a factor a row, rounded by chance.
Description rounded_description() { return full_description().state(DType::i8).rounding(Stochastic{}); }
UpdateArgs rounded_args() {
  UpdateArgs args = full_args();
  args.state.dtype = DType::i8;
  args.state_scale = contiguous(address(0xd000000), DType::f32, {kSlots, kHeads, kHeadDim});
  args.rand_seed = contiguous(address(0xe000000), DType::i64, {1});
  return args;
}

TEST(KernelProblems, ScalesAndSeedsFitAStateThatHasThem) {
  EXPECT_THAT(problems(rounded_args(), rounded_description()), IsEmpty());
  UpdateArgs args = rounded_args();
  args.rand_seed.shape[0] = kSlots;
  args.state_scale.stride[0] += 4;
  EXPECT_THAT(problems(args, rounded_description()), IsEmpty()) << "a seed a slot, gaps between scales";
  args.rand_seed.shape[0] = kSlots - 1;
  args.state_scale.stride[0] += 1;
  EXPECT_THAT(problems(args, rounded_description()),
              ElementsAre(HasSubstr("state_scale: slot stride 261 elements (1044 bytes) is not a multiple of 16 bytes"),
                          HasSubstr("rand_seed: got shape [11]; wants [12]")));
  args = rounded_args();
  args.rand_seed.dtype = DType::i32;
  args.state_scale.shape[0] = kSlots - 1;
  EXPECT_THAT(problems(args, rounded_description()),
              ElementsAre(HasSubstr("state_scale: got shape [11, 4, 64]; wants [12, 4, 64]"),
                          HasSubstr("rand_seed: got dtype int32; wants int64")));
}

TEST(Faults, Row15_AScaleOrASeedThatIsMissingOrSuperfluousIsNamed) {
  UpdateArgs args = rounded_args();
  args.state_scale = args.rand_seed = Tensor{};
  EXPECT_THAT(problems(args, rounded_description()),
              ElementsAre(HasSubstr("state_scale: not given; a state of int8, fp8 or int16 has a scale"),
                          HasSubstr("rand_seed: not given; stochastic rounding wants a seed")));
  args = full_args();
  args.state_scale = rounded_args().state_scale;
  args.rand_seed = rounded_args().rand_seed;
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("state_scale: given, but the description"),
                                          HasSubstr("rand_seed: given, but the description")));
}

TEST(Faults, Row1_APoolPastTwoToThe31ElementsIsTaken) {
  UpdateArgs args = full_args();
  args.state.shape[0] = std::int64_t{1} << 40;
  args.state.stride[0] = std::int64_t{1} << 20;
  EXPECT_THAT(problems(args), IsEmpty());
}

UpdateArgs with_batch(std::int64_t batch) {
  UpdateArgs args = full_args();
  for (Tensor UpdateArgs::*tensor :
       {&UpdateArgs::x, &UpdateArgs::dt, &UpdateArgs::B, &UpdateArgs::C, &UpdateArgs::z, &UpdateArgs::out})
    (args.*tensor).shape[0] = batch;
  args.state_batch_indices = contiguous(address(0xb000000), DType::i32, {batch});
  return args;
}

TEST(Faults, Row19_BatchesFromNoneToTheGridsLimitAreTaken) {
  for (const std::int64_t batch : {0, 1, 1024, 65535}) EXPECT_THAT(problems(with_batch(batch)), IsEmpty()) << batch;
  EXPECT_THAT(problems(with_batch(65536)), ElementsAre(HasSubstr("x: got 65536 rows; a launch takes up to 65535")));
  EXPECT_THAT(problems(with_batch(-1)), testing::Not(IsEmpty()));
}

TEST(Faults, Row19_AnEmptyBatchNeedsNoPointers) {
  UpdateArgs args = with_batch(0);
  for (Tensor UpdateArgs::*tensor : {&UpdateArgs::x, &UpdateArgs::dt, &UpdateArgs::B, &UpdateArgs::C, &UpdateArgs::z,
                                     &UpdateArgs::out, &UpdateArgs::state_batch_indices})
    (args.*tensor).data = nullptr;
  EXPECT_THAT(problems(args), IsEmpty());
}

// Launches, on the stub driver.
class KernelLaunch : public StubLaunchTest<device_args::UpdateArgs> {
 protected:
  Kernel load(const Description& description = full_description()) { return StubLaunchTest::load(description); }
};

TEST_F(KernelLaunch, GivesTheDeviceWhatTheCallerGave) {
  const Kernel kernel = load();
  UpdateArgs args = full_args();
  args.x.stride[0] = 1024;
  args.state_batch_indices = strided(address(0xb000000), DType::i64, {kBatch, 1}, {2, 1});
  args.pad_slot_id = 7;
  void* const stream = &args;
  kernel.launch(args, stream);
  EXPECT_EQ(stub_->launches, 1);
  const StubLaunch& launch = stub_->last;
  const LaunchShape shape = launch_shape(plan_, full_description(), kBatch);
  EXPECT_EQ(launch.grid[0], shape.grid_x);
  EXPECT_EQ(launch.grid[1], shape.grid_y);
  EXPECT_EQ(launch.grid[2], 1u);
  EXPECT_EQ(launch.block[0], static_cast<unsigned>(shape.block_threads));
  EXPECT_EQ(launch.smem_bytes, static_cast<unsigned>(shape.smem_bytes));
  EXPECT_EQ(launch.stream, stream);
  EXPECT_EQ(launch.attributes, 0);
  const device_args::UpdateArgs device = launched();
  EXPECT_EQ(device.state, args.state.data);
  EXPECT_EQ(device.slots, kSlots);
  EXPECT_EQ(device.state_stride, kHeads * kHeadDim * kDstate);
  EXPECT_EQ(device.x, args.x.data);
  EXPECT_EQ(device.x_stride, 1024);
  EXPECT_EQ(device.z, args.z.data);
  EXPECT_EQ(device.dt, args.dt.data);
  EXPECT_EQ(device.dt_stride, kHeads);
  EXPECT_EQ(device.B, args.B.data);
  EXPECT_EQ(device.C, args.C.data);
  EXPECT_EQ(device.C_stride, kGroups * kDstate);
  EXPECT_EQ(device.A, args.A.data);
  EXPECT_EQ(device.D, args.D.data);
  EXPECT_EQ(device.dt_bias, args.dt_bias.data);
  EXPECT_EQ(device.out, args.out.data);
  EXPECT_EQ(device.state_batch_indices, args.state_batch_indices.data);
  EXPECT_EQ(device.index_stride, 2);
  EXPECT_EQ(device.dst_state_batch_indices, nullptr);
  EXPECT_EQ(device.pad_slot_id, 7);
  EXPECT_EQ(device.wide_indices, 1);
  EXPECT_EQ(device.pdl, 0);
}

class RoundedLaunch : public StubLaunchTest<device_args::UpdateRoundedArgs> {};

TEST_F(RoundedLaunch, GivesTheDeviceScalesAndSeedsBesideWhatEveryUpdateHas) {
  const Kernel kernel = load(rounded_description());
  UpdateArgs args = rounded_args();
  args.state_scale.stride[0] += 4;
  kernel.launch(args, nullptr);
  EXPECT_EQ(launched().update.state, args.state.data);
  EXPECT_EQ(launched().update.out_stride, kHeads * kHeadDim);
  EXPECT_EQ(launched().state_scale, args.state_scale.data);
  EXPECT_EQ(launched().state_scale_stride, kHeads * kHeadDim + 4);
  EXPECT_EQ(launched().rand_seed, args.rand_seed.data);
  EXPECT_EQ(launched().seed_stride, 0);
  EXPECT_EQ(launched().nheads, kHeads);
  args.rand_seed.shape[0] = kSlots;
  kernel.launch(args, nullptr);
  EXPECT_EQ(launched().seed_stride, 1);
}

TEST_F(KernelLaunch, TheGridIsThePlansForEveryBatch) {
  const Kernel kernel = load();
  for (const std::int64_t batch : {1, 2, 77, 65535}) {
    kernel.launch(with_batch(batch), nullptr);
    const LaunchShape shape = launch_shape(plan_, full_description(), static_cast<int>(batch));
    EXPECT_EQ(stub_->last.grid[0], shape.grid_x);
    EXPECT_EQ(stub_->last.grid[1], shape.grid_y);
  }
}

TEST_F(KernelLaunch, PdlIsAskedForWhereTheArchHasIt) {
  const Kernel kernel = load();
  UpdateArgs args = full_args();
  for (const auto& [pdl, on_device] : {std::pair{Pdl::wait_first, 1}, std::pair{Pdl::early_state, 2}}) {
    args.pdl = pdl;
    kernel.launch(args, nullptr);
    EXPECT_EQ(stub_->last.pdl, 1);
    EXPECT_EQ(launched().pdl, on_device);
  }
}

TEST_F(KernelLaunch, PdlIsOffBeforeSm90) {
  arch_ = Arch{8, 0, 0};
  const Kernel kernel = load();
  UpdateArgs args = full_args();
  args.pdl = Pdl::early_state;
  kernel.launch(args, nullptr);
  EXPECT_EQ(stub_->last.attributes, 0);
  EXPECT_EQ(launched().pdl, 0);
}

TEST_F(KernelLaunch, AllocatesNothing) {
  const Kernel kernel = load();
  UpdateArgs args = full_args();
  args.pdl = Pdl::wait_first;
  kernel.launch(args, nullptr);
  const long before = allocation_count();
  for (int i = 0; i < 100; ++i) kernel.launch(args, nullptr);
  EXPECT_EQ(allocation_count(), before);
  EXPECT_EQ(stub_->launches, 101);
}

TEST_F(KernelLaunch, AWrongTensorIsNamedAndNothingLaunched) {
  const Kernel kernel = load();
  UpdateArgs args = full_args();
  args.state.dtype = DType::f32;
  args.dt.shape[1] = 9;
  const Error error = error_of([&] { kernel.launch(args, nullptr); });
  EXPECT_EQ(error.kind(), ErrorKind::invalid);
  EXPECT_STREQ(error.what(), "state: got dtype fp32; wants bf16\ndt: got shape [3, 9]; wants [3, 4]");
  EXPECT_EQ(stub_->launches, 0);
}

TEST_F(KernelLaunch, AnEmptyKernelIsRefused) {
  const Kernel kernel;
  EXPECT_EQ(error_of([&] { kernel.launch(full_args(), nullptr); }).kind(), ErrorKind::invalid);
  EXPECT_EQ(error_of([&] { kernel.plan(); }).kind(), ErrorKind::invalid);
}

TEST_F(KernelLaunch, FaultRow19_AnEmptyBatchLaunchesNothing) {
  const Kernel kernel = load();
  UpdateArgs args = with_batch(0);
  args.checked = true;
  kernel.launch(args, nullptr);
  EXPECT_EQ(stub_->launches, 0);
}

TEST_F(KernelLaunch, TheDriversRefusalIsAnErrorOfTheMachine) {
  const Kernel kernel = load();
  stub_->fail_call = "cuLaunchKernelEx";
  stub_->fail_code = CUDA_ERROR_INVALID_VALUE;
  const Error error = error_of([&] { kernel.launch(full_args(), nullptr); });
  EXPECT_EQ(error.kind(), ErrorKind::machine);
  EXPECT_STREQ(error.what(), "cuLaunchKernelEx failed: CUDA_ERROR_INVALID_VALUE (1): invalid argument");
}

TEST_F(KernelLaunch, FaultRow23_ACubinThatTheDeviceCannotRunIsNamedWithBothArchs) {
  stub_->fail_call = "cuModuleLoadData";
  stub_->fail_code = CUDA_ERROR_NO_BINARY_FOR_GPU;
  arch_ = Arch{10, 0, 'a'};
  const Error error = error_of([&] { load(); });
  EXPECT_EQ(error.kind(), ErrorKind::machine);
  EXPECT_THAT(error.what(), HasSubstr("CUDA_ERROR_NO_BINARY_FOR_GPU (209)"));
  EXPECT_THAT(error.what(),
              HasSubstr("is for sm_100a, the device is NVIDIA H200 (sm_90a), its driver supports CUDA 13.0"));
}

TEST_F(KernelLaunch, FaultRow25_AFullGpuIsAnErrorWithTheWayOut) {
  stub_->fail_call = "cuDevicePrimaryCtxRetain";
  stub_->fail_code = CUDA_ERROR_OUT_OF_MEMORY;
  const Error error = error_of([&] { load(); });
  EXPECT_EQ(error.kind(), ErrorKind::machine);
  EXPECT_THAT(error.what(), HasSubstr("another process"));
}

TEST_F(KernelLaunch, FaultRow20_LoadingDoesNotBreakACapture) {
  load();
  EXPECT_EQ(stub_->capture_mode_at_load, CU_STREAM_CAPTURE_MODE_RELAXED);
  EXPECT_EQ(stub_->capture_mode, CU_STREAM_CAPTURE_MODE_GLOBAL);
}

TEST_F(KernelLaunch, TheModuleIsUnloadedWithTheLastKernel) {
  {
    const Kernel kernel = load();
    const Kernel copy = kernel;
    EXPECT_EQ(stub_->modules_loaded, 1);
  }
  EXPECT_EQ(stub_->modules_unloaded, 1);
}

TEST_F(KernelLaunch, ASourceOfAnotherPlanIsRefused) {
  const Description description = full_description();
  const Plan plan = default_plan(description, arch_, 4);
  Source source;
  source.entries = {{"k", launch_shape(plan, description, 1).block_threads + 32, 0}};
  const Error error = error_of([&] { Kernel::load(description, plan, source, Cubin{}); });
  EXPECT_EQ(error.kind(), ErrorKind::invalid);
  EXPECT_THAT(error.what(), HasSubstr("give the source of this plan"));
}

// Checked mode; the stub's device memory is host memory.
class CheckedLaunch : public KernelLaunch {
 protected:
  std::string refusal(std::vector<std::int64_t> source, std::vector<std::int64_t> target = {}) {
    const Kernel kernel = load();
    UpdateArgs args = full_args();
    args.checked = true;
    const auto rows = static_cast<std::int64_t>(source.size());
    args.state_batch_indices = contiguous(source.data(), DType::i64, {rows});
    if (!target.empty()) args.dst_state_batch_indices = contiguous(target.data(), DType::i64, {rows});
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
};

TEST_F(CheckedLaunch, GoodIndicesAreLaunched) {
  EXPECT_EQ(refusal({11, 0, 5}), "");
  EXPECT_EQ(stub_->synchronised, 1);
  EXPECT_EQ(refusal({1, 2, 3}, {4, 5, 6}), "");
  EXPECT_EQ(refusal({1, 1, 3}, {4, 5, 3}), "") << "two rows may read one slot that none writes";
}

TEST_F(CheckedLaunch, FaultRow3_PadRowsMayShareTheirIndex) { EXPECT_EQ(refusal({-1, -1, -5}), ""); }

TEST_F(CheckedLaunch, FaultRow4_AnIndexPastThePoolIsNamedWithItsRow) {
  EXPECT_EQ(refusal({0, 12, 99}),
            "state_batch_indices[1] is 12; the state has 12 slots\n"
            "state_batch_indices[2] is 99; the state has 12 slots");
}

TEST_F(CheckedLaunch, FaultRow5_TheSameLiveSlotTwiceIsNamedWithBothRows) {
  EXPECT_EQ(refusal({4, 7, 4}),
            "state_batch_indices[0] and [2] are both slot 4; rows of one launch must write different slots");
  EXPECT_EQ(refusal({1, 2, 3}, {9, 8, 9}),
            "dst_state_batch_indices[0] and [2] are both slot 9; rows of one launch must write different slots");
  EXPECT_EQ(refusal({1, 2, 3}, {2, 8, 9}), "row 1 reads slot 2, which row 0 of the same launch writes");
}

TEST_F(CheckedLaunch, StridedInt32IndicesAreRead) {
  const Kernel kernel = load();
  UpdateArgs args = full_args();
  args.checked = true;
  const std::int32_t indices[] = {3, 100, 4, 100, 3, 100};
  args.state_batch_indices = strided(indices, DType::i32, {kBatch, 1}, {2, 1});
  const Error error = error_of([&] { kernel.launch(args, nullptr); });
  EXPECT_THAT(error.what(), HasSubstr("[0] and [2] are both slot 3"));
}

TEST_F(CheckedLaunch, FaultRow20_ALoadIsRefusedUnderCapture) {
  stub_->capturing = 1;
  const Description step = mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1});
  const Error error = error_of([&] { Kernel::load(step, default_plan(step, Arch{}, 16)); });
  EXPECT_EQ(error.kind(), ErrorKind::invalid);
  EXPECT_THAT(error.what(), HasSubstr("load every kernel before the capture begins"));
}

TEST_F(CheckedLaunch, FaultRow20_IsRefusedUnderCapture) {
  stub_->capturing = 1;
  EXPECT_THAT(refusal({0, 1, 2}), HasSubstr("the stream is being captured"));
  EXPECT_EQ(stub_->synchronised, 0);
}

}  // namespace
}  // namespace ssmjit
