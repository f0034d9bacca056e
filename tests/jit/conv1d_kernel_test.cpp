// Launches of a convolution's step: what is refused and what is passed on, on the stub driver.
#include <string>
#include <vector>

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
using testing::SizeIs;

constexpr std::int64_t kSlots = 12, kBatch = 3, kTokens = 6, kChannels = 640;

Description of(Conv conv) {
  conv.channels = static_cast<int>(kChannels);
  conv.activation_expr = silu(dsl::x);
  return conv1d(conv).tokens(static_cast<int>(kTokens));
}
Description plain() { return of({}); }
Description slots() { return of({.keep = ConvKeep::slots}); }
Description snapshots() { return of({.channels_last = true, .keep = ConvKeep::snapshots}); }
Description accepted() { return of({.state_len = 8, .has_accepted = true}); }
Description circular() { return of({.state_len = 8, .store = ConvStore::circular}); }

Conv1dArgs args_of(const Description& d) {
  const std::int64_t L = d.conv_state_len(), K = d.conv_snapshot_len();
  const bool last = d.conv->channels_last;
  Conv1dArgs args;
  args.conv_state = contiguous(address(0x1000000), DType::bf16, {kSlots, last ? L : kChannels, last ? kChannels : L});
  args.x = contiguous(address(0x2000000), DType::bf16, {kBatch, kTokens, kChannels});
  args.w = contiguous(address(0x3000000), DType::bf16, {kChannels, 4});
  args.bias = contiguous(address(0x4000000), DType::bf16, {kChannels});
  args.out = contiguous(address(0x5000000), DType::bf16, {kBatch, kTokens, kChannels});
  args.state_batch_indices = contiguous(address(0x6000000), DType::i64, {kBatch});
  const auto indices = [&](std::uintptr_t at) { return contiguous(address(at), DType::i64, {kBatch}); };
  if (d.conv->keep == ConvKeep::slots)
    args.output_state_indices = contiguous(address(0x7000000), DType::i64, {kBatch, kTokens});
  if (d.conv->keep == ConvKeep::snapshots) {
    args.intermediate_states =
        contiguous(address(0x8000000), DType::bf16, {kSlots, kTokens + 1, last ? K : kChannels, last ? kChannels : K});
    args.intermediate_state_indices = indices(0x9000000);
  }
  if (d.conv->store == ConvStore::circular) args.cache_seqlens = indices(0xa000000);
  if (d.conv->has_accepted) args.num_accepted_tokens = indices(0xb000000);
  return args;
}

std::vector<std::string> problems(const Conv1dArgs& args, const Description& d) { return Kernel::problems(d, args); }

TEST(Conv1dProblems, AreNoneOfArgumentsThatFit) {
  for (const Description& d : {plain(), slots(), snapshots(), accepted(), circular()}) {
    Conv1dArgs args = args_of(d);
    EXPECT_THAT(problems(args, d), IsEmpty()) << d.summary();
    args.x = strided(args.x.data, DType::bf16, {kBatch, kTokens, kChannels}, {2048, 3 * 2048, 1});
    EXPECT_THAT(problems(args, d), IsEmpty()) << "tokens before requests, slices of rows";
  }
  Conv1dArgs one = args_of(plain());
  one.x = contiguous(one.x.data, DType::bf16, {kBatch, kChannels});
  one.out = contiguous(one.out.data, DType::bf16, {kBatch, kChannels});
  EXPECT_THAT(problems(one, plain().tokens(1)), IsEmpty()) << "one token without a dimension";
}

TEST(Conv1dProblems, ATensorThatIsMissingOrTooManyIsNamed) {
  struct Named {
    const char* name;
    Tensor Conv1dArgs::*tensor;
    Description description;
  };
  for (const Named& n : {Named{"conv_state", &Conv1dArgs::conv_state, plain()},
                         {"x", &Conv1dArgs::x, plain()},
                         {"w", &Conv1dArgs::w, plain()},
                         {"bias", &Conv1dArgs::bias, plain()},
                         {"out", &Conv1dArgs::out, plain()},
                         {"output_state_indices", &Conv1dArgs::output_state_indices, slots()},
                         {"intermediate_states", &Conv1dArgs::intermediate_states, snapshots()},
                         {"cache_seqlens", &Conv1dArgs::cache_seqlens, circular()},
                         {"num_accepted_tokens", &Conv1dArgs::num_accepted_tokens, accepted()}}) {
    Conv1dArgs args = args_of(n.description);
    const Tensor given = args.*n.tensor;
    args.*n.tensor = Tensor{};
    EXPECT_THAT(problems(args, n.description), Contains(HasSubstr(std::string(n.name) + ": not given"))) << n.name;
    if (n.description.conv == plain().conv) continue;
    args = args_of(plain());
    args.*n.tensor = given;
    EXPECT_THAT(problems(args, plain()), Contains(HasSubstr(std::string(n.name) + ": given"))) << n.name;
  }
}

TEST(Faults, Row15_WrongAndMixedDtypesOfAConvolutionAreNamed) {
  for (Tensor Conv1dArgs::*tensor :
       {&Conv1dArgs::conv_state, &Conv1dArgs::x, &Conv1dArgs::w, &Conv1dArgs::bias, &Conv1dArgs::out}) {
    Conv1dArgs args = args_of(plain());
    (args.*tensor).dtype = DType::f16;
    EXPECT_THAT(problems(args, plain()), ElementsAre(HasSubstr("got dtype fp16; wants bf16")));
  }
  Conv1dArgs args = args_of(slots());
  args.output_state_indices.dtype = DType::i32;
  EXPECT_THAT(problems(args, slots()),
              ElementsAre(AllOf(HasSubstr("output_state_indices: got dtype int32; wants int64"),
                                HasSubstr("as state_batch_indices"))));
}

TEST(Faults, Row7_OtherThanTheKernelsTokensAndTapsAreRefusedByShape) {
  Conv1dArgs args = args_of(plain());
  args.x = contiguous(args.x.data, DType::bf16, {kBatch, kTokens + 1, kChannels});
  EXPECT_THAT(problems(args, plain()), ElementsAre(HasSubstr("x: got shape [3, 7, 640]; wants [3, 6, 640]")));
  args = args_of(plain());
  args.w = contiguous(args.w.data, DType::bf16, {kChannels, 3});
  EXPECT_THAT(problems(args, plain()), ElementsAre(HasSubstr("w: got shape [640, 3]; wants [640, 4]")));
  args = args_of(slots());
  args.output_state_indices.shape[1] = 2;
  EXPECT_THAT(problems(args, slots()), ElementsAre(HasSubstr("output_state_indices: got shape [3, 2]; wants [3, 6]")));
  args = args_of(snapshots());
  args.intermediate_states.shape[1] = kTokens - 1;
  EXPECT_THAT(problems(args, snapshots()), ElementsAre(HasSubstr("intermediate_states: got 5 steps; wants 6")));
}

TEST(Faults, Row2_PaddedPagesOfWindowsAreTakenAndMisalignedOnesRefused) {
  const auto pool = [](std::int64_t stride, std::uintptr_t base = 0x1000000) {
    Conv1dArgs args = args_of(plain());
    args.conv_state = strided(address(base), DType::bf16, {kSlots, kChannels, 3}, {stride, 3, 1});
    return args;
  };
  EXPECT_THAT(problems(pool(kChannels * 3 + 64), plain()), IsEmpty());
  EXPECT_THAT(problems(pool(kChannels * 3 + 4), plain()), ElementsAre(HasSubstr("conv_state: slot stride 1924")));
  EXPECT_THAT(problems(pool(kChannels * 3 - 64), plain()), ElementsAre(HasSubstr("slots do not overlap")));
  EXPECT_THAT(problems(pool(kChannels * 3, 0x1000008), plain()), ElementsAre(HasSubstr("base address")));
  EXPECT_THAT(problems(pool(kChannels * 3 + 4, 0x1000008), plain().unaligned_rows()), IsEmpty());
}

TEST(Faults, Row1_WindowsPastTwoToThe31ElementsAreTaken) {
  Conv1dArgs args = args_of(plain());
  args.conv_state.stride[0] = std::int64_t{1} << 34;
  EXPECT_THAT(problems(args, plain()), IsEmpty());
  EXPECT_EQ(to_device(args, Pdl::off).state_stride, std::int64_t{1} << 34);
}

TEST(Conv1dProblems, ArgumentsOfAnotherOpAreRefused) {
  EXPECT_THAT(Kernel::problems(plain(), UpdateArgs{}), ElementsAre(HasSubstr("got UpdateArgs for a conv1d kernel")));
  EXPECT_THAT(Kernel::problems(plain(), RingArgs{}), ElementsAre(HasSubstr("got RingArgs for a conv1d kernel")));
  const Description update = mamba2({.nheads = 2, .head_dim = 8, .dstate = 16, .ngroups = 1});
  EXPECT_THAT(Kernel::problems(update, Conv1dArgs{}), ElementsAre(HasSubstr("wants UpdateArgs")));
}

class Conv1dLaunch : public StubLaunchTest<device_args::Conv1dArgs> {};

TEST_F(Conv1dLaunch, PassesOnWhatItWasGiven) {
  const Kernel kernel = load(snapshots());
  Conv1dArgs args = args_of(snapshots());
  args.x = strided(args.x.data, DType::bf16, {kBatch, kTokens, kChannels}, {1024, 4096, 1});
  args.pad_slot_id = 7;
  kernel.launch(args, nullptr);
  const device_args::Conv1dArgs device = launched();
  EXPECT_EQ(device.conv_state, args.conv_state.data);
  EXPECT_EQ(device.slots, kSlots);
  EXPECT_EQ(device.state_stride, 3 * kChannels);
  EXPECT_EQ(device.x_stride, 1024);
  EXPECT_EQ(device.x_token_stride, 4096);
  EXPECT_EQ(device.out_token_stride, kChannels);
  EXPECT_EQ(device.intermediate_states, args.intermediate_states.data);
  EXPECT_EQ(device.snapshot_slots, kSlots);
  EXPECT_EQ(device.snapshot_stride, (kTokens + 1) * 3 * kChannels);
  EXPECT_EQ(device.snapshot_token_stride, 3 * kChannels);
  EXPECT_EQ(device.wide_indices, 1);
  EXPECT_EQ(device.channels, kChannels);
  EXPECT_EQ(device.pad_slot_id, 7);
  EXPECT_EQ(stub_->last.grid[0], (kChannels + plan_.block_m - 1) / plan_.block_m);
  EXPECT_EQ(stub_->last.grid[1], kBatch);
  EXPECT_EQ(stub_->last.block[0], 32u * static_cast<unsigned>(plan_.warps));
}

TEST_F(Conv1dLaunch, OfDestinationsByTokenPassesTheirStridesOn) {
  const Kernel kernel = load(slots());
  Conv1dArgs args = args_of(slots());
  args.output_state_indices = strided(args.output_state_indices.data, DType::i64, {kBatch, kTokens}, {1, kBatch});
  kernel.launch(args, nullptr);
  EXPECT_EQ(launched().output_index_stride, 1);
  EXPECT_EQ(launched().output_index_token_stride, kBatch);
}

TEST_F(Conv1dLaunch, AllocatesNothing) {
  const Kernel kernel = load(accepted());
  const Conv1dArgs args = args_of(accepted());
  kernel.launch(args, nullptr);
  const long before = allocation_count();
  kernel.launch(args, nullptr);
  EXPECT_EQ(allocation_count(), before);
}

TEST_F(Conv1dLaunch, FaultRow19_AnEmptyBatchLaunchesNothing) {
  const Kernel kernel = load(plain());
  Conv1dArgs args = args_of(plain());
  args.x.shape[0] = args.out.shape[0] = args.state_batch_indices.shape[0] = 0;
  const auto launches = stub_->launches;
  kernel.launch(args, nullptr);
  EXPECT_EQ(stub_->launches, launches);
}

TEST_F(Conv1dLaunch, FaultRow3_PadRowsMayShareTheirIndex) {
  const Kernel kernel = load(plain());
  const std::int64_t of_rows[] = {-1, -1, -7};
  Conv1dArgs args = args_of(plain());
  args.state_batch_indices = contiguous(of_rows, DType::i64, {kBatch});
  args.checked = true;
  const auto launches = stub_->launches;
  kernel.launch(args, nullptr);
  EXPECT_EQ(stub_->launches, launches + 1);
}

TEST_F(Conv1dLaunch, FaultRow4_CheckedModeNamesSlotsPastThePoolCountsOutOfRangeAndSlotsOfTwo) {
  const Kernel kernel = load(accepted());
  const std::int64_t of_rows[] = {3, 12, 3}, counts[] = {1, 1, 7};
  Conv1dArgs args = args_of(accepted());
  args.state_batch_indices = contiguous(of_rows, DType::i64, {kBatch});
  args.num_accepted_tokens = contiguous(counts, DType::i64, {kBatch});
  args.checked = true;
  const Error error = error_of([&] { kernel.launch(args, nullptr); });
  EXPECT_EQ(error.kind(), ErrorKind::invalid);
  EXPECT_THAT(error.what(), AllOf(HasSubstr("state_batch_indices[1] is 12; the state has 12 slots"),
                                  HasSubstr("state_batch_indices[0] and [2] are both slot 3"),
                                  HasSubstr("num_accepted_tokens[2] is 7; wants 0 to 6")));
}

TEST_F(Conv1dLaunch, FaultRow18_CheckedModeNamesARowThatReadsWhatAnotherWrites) {
  const Kernel kernel = load(Description(slots()).tokens(2));
  const std::int64_t from[] = {0, 2, -1}, to[] = {0, 1, 4, 0, 5, 6};
  Conv1dArgs args = args_of(slots());
  args.x = contiguous(args.x.data, DType::bf16, {kBatch, 2, kChannels});
  args.out = contiguous(args.out.data, DType::bf16, {kBatch, 2, kChannels});
  args.state_batch_indices = contiguous(from, DType::i64, {kBatch});
  args.output_state_indices = contiguous(to, DType::i64, {kBatch, 2});
  args.checked = true;
  EXPECT_THAT(error_of([&] { kernel.launch(args, nullptr); }).what(),
              HasSubstr("output_state_indices[0] and [1] are both slot 0"));
  const std::int64_t crossed[] = {2, 1, 4, 3, 5, 6};
  args.output_state_indices = contiguous(crossed, DType::i64, {kBatch, 2});
  EXPECT_THAT(error_of([&] { kernel.launch(args, nullptr); }).what(),
              HasSubstr("row 1 reads slot 2, which row 0 of the same launch writes"));
}

}  // namespace

}  // namespace ssmjit
