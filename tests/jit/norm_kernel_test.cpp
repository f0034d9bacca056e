#include <cstring>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/kernel.h>

#include "jit/kernel_args.h"
#include "tests/jit/allocation_count.h"
#include "tests/jit/launch_test.h"

namespace ssmjit {

namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::int64_t kBatch = 3, kTokens = 6, kChannels = 4096, kRow = 2 * kChannels + 512;

Description full_description() {
  return gated_norm({.channels = kChannels, .group_size = 512, .gate_expr = silu(dsl::z), .has_bias = true})
      .tokens(kTokens)
      .weights(DType::f32);
}

// x and z as slices of one packed row, as a projection leaves them.
NormArgs full_args() {
  NormArgs args;
  args.x = strided(address(0x2002000), DType::bf16, {kBatch, kTokens, kChannels}, {kTokens * kRow + 64, kRow, 1});
  args.z = strided(address(0x2000000), DType::bf16, {kBatch, kTokens, kChannels}, {kTokens * kRow + 64, kRow, 1});
  args.weight = contiguous(address(0x3000000), DType::f32, {kChannels});
  args.bias = contiguous(address(0x4000000), DType::f32, {kChannels});
  args.out = contiguous(address(0x5000000), DType::bf16, {kBatch * kTokens, kChannels});
  return args;
}

std::vector<std::string> problems(const NormArgs& args, const Description& description = full_description()) {
  return Kernel::problems(description, args);
}

struct Named {
  const char* name;
  Tensor NormArgs::*tensor;
};
constexpr Named kTensors[] = {{"x", &NormArgs::x},
                              {"z", &NormArgs::z},
                              {"weight", &NormArgs::weight},
                              {"bias", &NormArgs::bias},
                              {"out", &NormArgs::out}};

TEST(NormProblems, GoodArgumentsHaveNone) {
  EXPECT_THAT(problems(full_args()), IsEmpty());
  NormArgs args = full_args();
  args.out = args.x;
  EXPECT_THAT(problems(args), IsEmpty()) << "in place";
}

TEST(NormProblems, AreAllNamedInOneGo) {
  EXPECT_THAT(problems({}),
              ElementsAre(HasSubstr("x: not given"), HasSubstr("z: not given"), HasSubstr("weight: not given"),
                          HasSubstr("bias: not given"), HasSubstr("out: not given")));
}

TEST(NormProblems, ArgumentsOfAnotherOpOrVersionAreRefused) {
  NormArgs args;
  args.size = 8;
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("args: size is 8; wants")));
  const Description update = mamba2({.nheads = 4, .head_dim = 64, .dstate = 128, .ngroups = 2});
  EXPECT_THAT(problems(full_args(), update),
              ElementsAre("args: got NormArgs for a kernel that updates in place; wants UpdateArgs"));
  EXPECT_THAT(Kernel::problems(full_description(), UpdateArgs()),
              ElementsAre("args: got UpdateArgs for a norm kernel; wants NormArgs"));
  EXPECT_THAT(Kernel::problems(full_description(), RingArgs()),
              ElementsAre("args: got RingArgs for a norm kernel; wants NormArgs"));
}

TEST(Faults, Row1_RowsOfANormPastTwoToThe31ElementsAreTaken) {
  NormArgs args = full_args();
  args.x.stride[0] = std::int64_t{1} << 34;
  EXPECT_THAT(problems(args), IsEmpty());
  EXPECT_EQ(to_device(full_description(), args, Pdl::off).x_stride, std::int64_t{1} << 34);
}

TEST(Faults, Row2_PaddedRowsOfANormAreTakenAndMisalignedOnesRefused) {
  NormArgs args = full_args();
  args.x.stride[1] += 64;
  args.x.stride[0] += 64 * kTokens;
  EXPECT_THAT(problems(args), IsEmpty());
  args.x.stride[1] += 4;
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("x: token stride")));
  args = full_args();
  args.z.data = address(0x2000008);
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("z: base address 0x2000008 is not a multiple of 16 bytes")));
}

TEST(Faults, Row15_AWrongDtypeOfAnyTensorOfANormIsNamed) {
  for (const Named& named : kTensors) {
    NormArgs args = full_args();
    (args.*named.tensor).dtype = DType::f16;
    EXPECT_THAT(problems(args), ElementsAre(HasSubstr(std::string(named.name) + ": got dtype fp16; wants ")));
  }
}

TEST(NormProblems, AWrongExtentOfAnyTensorIsNamed) {
  for (const Named& named : kTensors) {
    NormArgs args = full_args();
    Tensor& tensor = args.*named.tensor;
    tensor.shape[static_cast<std::size_t>(tensor.rank) - 1] /= 2;
    EXPECT_THAT(problems(args), ElementsAre(HasSubstr(std::string(named.name) + ": got shape [")));
  }
}

TEST(Faults, Row7_MoreTokensThanTheNormWasMadeForAreRefused) {
  NormArgs args = full_args();
  for (Tensor NormArgs::*tensor : {&NormArgs::x, &NormArgs::z}) (args.*tensor).shape[1] = 7;
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("x: got shape [3, 7, 4096]; wants [3, 6, 4096]"),
                                          HasSubstr("z: got shape [3, 7, 4096]; wants [3, 6, 4096]")));
}

TEST(NormProblems, RowsMustBeAlignedUnlessTheKernelTakesAny) {
  NormArgs args = full_args();
  args.x.data = address(0x2002002);
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("x: base address 0x2002002 is not a multiple of 16 bytes; move the "
                                                    "base, or describe the kernel with unaligned_rows()")));
  EXPECT_THAT(problems(args, full_description().unaligned_rows()), IsEmpty());
  args = full_args();
  args.z.stride[1] += 1;
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("z: token stride")));
}

TEST(NormProblems, RowsOfTheOutputMustNotOverlapAndThoseOfAnInputMay) {
  NormArgs args = full_args();
  args.out.stride[0] = kChannels - 8;
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("out: row stride 4088 elements; wants 4096 or more")));
  args = full_args();
  args.x.stride[0] = args.x.stride[1] = 0;
  EXPECT_THAT(problems(args), IsEmpty());
}

TEST(NormProblems, AnOutputOverAnInputMustHaveItsStrides) {
  for (Tensor NormArgs::*input : {&NormArgs::x, &NormArgs::z}) {
    NormArgs args = full_args();
    args.out = args.*input;
    args.out.stride[0] += 64;
    EXPECT_THAT(problems(args), ElementsAre(HasSubstr("with other strides; wants the same, or memory of its own")));
  }
}

TEST(NormProblems, TensorsMustBeGivenAsTheDescriptionReadsThem) {
  const Description plain = gated_norm({.channels = kChannels, .group_size = 512}).tokens(kTokens).weights(DType::f32);
  EXPECT_THAT(problems(full_args(), plain), ElementsAre(HasSubstr("z: given, but"), HasSubstr("bias: given, but")));
}

TEST(Faults, Row19_MoreRowsThanALaunchTakesAreRefused) {
  NormArgs args = full_args();
  for (const Named& named : {kTensors[0], kTensors[1]}) (args.*named.tensor).shape[0] = 11000;
  args.out.shape[0] = 66000;
  EXPECT_THAT(problems(args), ElementsAre(HasSubstr("x: got 66000 rows; a launch takes up to 65535: split the batch")));
}

using NormLaunch = StubLaunchTest<device_args::NormArgs>;

TEST_F(NormLaunch, HasABlockForEachGroupOrSeveralOfEachTokenAndTheStridesOfTheTensors) {
  const Kernel kernel = load(full_description());
  kernel.launch(full_args(), nullptr);
  EXPECT_EQ(stub_->last.grid[0], static_cast<unsigned>((8 + plan_.heads_per_block - 1) / plan_.heads_per_block));
  EXPECT_EQ(stub_->last.grid[1], static_cast<unsigned>(kBatch * kTokens));
  EXPECT_EQ(stub_->last.block[0], 32u * static_cast<unsigned>(plan_.warps));
  const device_args::NormArgs got = launched();
  EXPECT_EQ(got.x_stride, kTokens * kRow + 64);
  EXPECT_EQ(got.x_token_stride, kRow);
  EXPECT_EQ(got.out_stride, kTokens * kChannels);
  EXPECT_EQ(got.out_token_stride, kChannels);
  EXPECT_EQ(got.channels, kChannels);
  EXPECT_EQ(got.weight, full_args().weight.data);
}

TEST_F(NormLaunch, OfRowsWithoutRequestsIsTheSameAsWithThem) {
  const Kernel kernel = load(full_description());
  NormArgs args = full_args();
  for (Tensor NormArgs::*tensor : {&NormArgs::x, &NormArgs::z}) {
    const Tensor& t = args.*tensor;
    args.*tensor = contiguous(t.data, t.dtype, {kBatch, kTokens, kChannels});
  }
  kernel.launch(args, nullptr);
  const device_args::NormArgs three = launched();
  for (Tensor NormArgs::*tensor : {&NormArgs::x, &NormArgs::z}) {
    const Tensor& t = args.*tensor;
    args.*tensor = contiguous(t.data, t.dtype, {kBatch * kTokens, kChannels});
  }
  kernel.launch(args, nullptr);
  const device_args::NormArgs two = launched();
  EXPECT_EQ(std::memcmp(&two, &three, sizeof two), 0);
}

TEST_F(NormLaunch, FaultRow19_OfAnEmptyBatchIsNone) {
  NormArgs args = full_args();
  for (const Named& named : {kTensors[0], kTensors[1], kTensors[4]}) (args.*named.tensor).shape[0] = 0;
  load(full_description()).launch(args, nullptr);
  EXPECT_EQ(stub_->launches, 0);
}

TEST_F(NormLaunch, AllocatesNothingAndRefusesBeforeAnyGpuWork) {
  const Kernel kernel = load(full_description());
  const NormArgs args = full_args();
  const long before = allocation_count();
  kernel.launch(args, nullptr);
  EXPECT_EQ(allocation_count(), before);
  EXPECT_EQ(stub_->launches, 1);
  EXPECT_EQ(error_of([&] { kernel.launch(NormArgs(), nullptr); }).kind(), ErrorKind::invalid);
  EXPECT_EQ(stub_->launches, 1);
}

TEST_F(NormLaunch, SaysHowItDependsOnTheLaunchInFront) {
  const Kernel kernel = load(full_description());
  NormArgs args = full_args();
  for (Pdl pdl : {Pdl::off, Pdl::wait_first, Pdl::early_state}) {
    args.pdl = pdl;
    kernel.launch(args, nullptr);
    EXPECT_EQ(launched().pdl, device_pdl(pdl));
  }
}

}  // namespace

}  // namespace ssmjit
