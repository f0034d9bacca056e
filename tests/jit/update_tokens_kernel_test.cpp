// Arguments of an update of several tokens: what is refused by name, and what reaches the device.
#include <cstring>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/error.h>
#include <ssmjit/kernel.h>

#include "jit/kernel_args.h"
#include "tests/jit/allocation_count.h"
#include "tests/jit/launch_test.h"

namespace ssmjit {

namespace {

using testing::AllOf;
using testing::Contains;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr std::int64_t kSlots = 40, kBatch = 3, kTokens = 6, kHeads = 4, kHeadDim = 64, kDstate = 128, kGroups = 2;

Description of_tokens() {
  return mamba2({.nheads = kHeads, .head_dim = kHeadDim, .dstate = kDstate, .ngroups = kGroups})
      .state(DType::bf16)
      .gate(silu(dsl::z))
      .tokens(kTokens);
}
Description snapshots() { return of_tokens().store(Snapshots{}); }
Description slots() { return of_tokens().store(Slots{}); }
Description tree() { return snapshots().tree(); }
Description accepted() { return slots().accepted_counts(); }
Description packed() { return of_tokens().varlen(); }
Description by_chance() { return snapshots().state(DType::i8).rounding(Stochastic{}); }

Tensor index_at(std::uintptr_t at, std::initializer_list<std::int64_t> shape) {
  return contiguous(address(at), DType::i64, shape);
}

UpdateArgs args_of(const Description& d) {
  UpdateArgs args;
  const std::int64_t T = d.token_count, total = 11;
  const auto tokens = [&](std::uintptr_t at, std::int64_t outer, std::int64_t inner) {
    if (d.is_varlen) return contiguous(address(at), DType::bf16, {total, outer, inner});
    return T == 1 ? contiguous(address(at), DType::bf16, {kBatch, outer, inner})
                  : contiguous(address(at), DType::bf16, {kBatch, T, outer, inner});
  };
  args.state = contiguous(address(0x1000000), d.state_dtype, {kSlots, kHeads, kHeadDim, kDstate});
  args.x = tokens(0x2000000, kHeads, kHeadDim);
  args.dt = d.is_varlen ? contiguous(address(0x3000000), DType::f32, {total, kHeads})
            : T == 1    ? contiguous(address(0x3000000), DType::f32, {kBatch, kHeads})
                        : contiguous(address(0x3000000), DType::f32, {kBatch, T, kHeads});
  args.A = contiguous(address(0x4000000), DType::f32, {kHeads});
  args.B = tokens(0x5000000, kGroups, kDstate);
  args.C = tokens(0x6000000, kGroups, kDstate);
  args.D = contiguous(address(0x7000000), DType::f32, {kHeads});
  args.dt_bias = contiguous(address(0x8000000), DType::f32, {kHeads});
  args.z = tokens(0x9000000, kHeads, kHeadDim);
  args.out = tokens(0xa000000, kHeads, kHeadDim);
  if (d.is_varlen) args.cu_seqlens = contiguous(address(0xb000000), DType::i32, {kBatch + 1});
  if (std::holds_alternative<Slots>(d.store_kind)) args.dst_state_batch_indices = index_at(0xc000000, {kBatch, T});
  if (d.has_accepted) {
    args.state_batch_indices = index_at(0xd000000, {kBatch, T + 1});
    args.num_accepted_tokens = index_at(0xe000000, {kBatch});
  }
  if (std::holds_alternative<Snapshots>(d.store_kind)) {
    args.intermediate_states =
        contiguous(address(0xf000000), d.state_dtype, {kSlots, T + 1, kHeads, kHeadDim, kDstate});
    if (d.has_state_scale())
      args.intermediate_state_scales = contiguous(address(0x11000000), DType::f32, {kSlots, T + 1, kHeads, kHeadDim});
  }
  if (d.has_tree) args.retrieve_parent_token = index_at(0x12000000, {kBatch, T});
  if (d.has_state_scale()) args.state_scale = contiguous(address(0x13000000), DType::f32, {kSlots, kHeads, kHeadDim});
  if (!std::holds_alternative<Nearest>(d.rounding_kind)) args.rand_seed = index_at(0x14000000, {1});
  return args;
}

std::vector<std::string> problems(const Description& d, const UpdateArgs& args) { return Kernel::problems(d, args); }

TEST(TokenArgs, GoodOnesOfEveryFormHaveNoProblem) {
  for (const Description& d : {of_tokens(), snapshots(), slots(), tree(), accepted(), packed(), by_chance(),
                               slots().tokens(1), snapshots().tokens(1), packed().tokens(1)})
    EXPECT_THAT(problems(d, args_of(d)), IsEmpty()) << d.summary();
  UpdateArgs args = args_of(packed());
  for (Tensor UpdateArgs::*t : {&UpdateArgs::x, &UpdateArgs::B, &UpdateArgs::C, &UpdateArgs::z, &UpdateArgs::out}) {
    Tensor& tensor = args.*t;
    tensor = contiguous(tensor.data, tensor.dtype, {1, tensor.shape[0], tensor.shape[1], tensor.shape[2]});
  }
  EXPECT_THAT(problems(packed(), args), IsEmpty()) << "[1, total, ...]";
  args = args_of(by_chance());
  args.rand_seed = index_at(0x14000000, {kSlots});
  EXPECT_THAT(problems(by_chance(), args), IsEmpty()) << "a seed for each slot";
  args.rand_seed.shape[0] = kSlots - 1;
  EXPECT_THAT(problems(by_chance(), args), testing::ElementsAre("rand_seed: got shape [" + std::to_string(kSlots - 1) +
                                                                "]; wants [" + std::to_string(kSlots) + "] or [1]"));
}

TEST(TokenArgs, WhatIsMissingAndWhatIsTooMuchIsNamed) {
  const UpdateArgs nothing;
  EXPECT_THAT(problems(accepted(), nothing), AllOf(Contains(HasSubstr("state: not given; every update")),
                                                   Contains(HasSubstr("num_accepted_tokens: not given; the")),
                                                   Contains(HasSubstr("dst_state_batch_indices: not given; the")),
                                                   Contains(HasSubstr("state_batch_indices: not given; accepted"))));
  EXPECT_THAT(problems(tree(), nothing), AllOf(Contains(HasSubstr("intermediate_states: not given; the")),
                                               Contains(HasSubstr("retrieve_parent_token: not given; the"))));
  EXPECT_THAT(problems(packed(), nothing), Contains(HasSubstr("cu_seqlens: not given; the description has varlen")));
  UpdateArgs all = args_of(by_chance());
  const UpdateArgs others = args_of(accepted());
  all.num_accepted_tokens = others.num_accepted_tokens;
  all.dst_state_batch_indices = others.dst_state_batch_indices;
  all.retrieve_parent_token = args_of(tree()).retrieve_parent_token;
  all.cu_seqlens = args_of(packed()).cu_seqlens;
  std::vector<std::string> found = problems(of_tokens().state(DType::i8), all);
  for (const char* name :
       {"num_accepted_tokens: given", "dst_state_batch_indices: given", "intermediate_states: given",
        "intermediate_state_scales: given", "retrieve_parent_token: given", "cu_seqlens: given", "rand_seed: given"})
    EXPECT_THAT(found, Contains(HasSubstr(name)));
}

TEST(TokenArgs, AKernelOfOneTokenRefusesWhatOnlyTheOtherTakes) {
  const Description one = of_tokens().tokens(1);
  UpdateArgs args = args_of(one);
  EXPECT_THAT(problems(one, args), IsEmpty());
  args.intermediate_states = args_of(snapshots()).intermediate_states;
  args.cu_seqlens = args_of(packed()).cu_seqlens;
  args.disable_state_update = true;
  EXPECT_THAT(problems(one, args), ElementsAre(HasSubstr("intermediate_states: given, but the description is of one"),
                                               HasSubstr("cu_seqlens: given"), HasSubstr("disable_state_update: got")));
}

TEST(TokenArgs, AnUpdateThatIsDisabledWantsItsStatesElsewhere) {
  for (const Description& d : {snapshots(), slots()}) {
    UpdateArgs args = args_of(d);
    args.disable_state_update = true;
    EXPECT_THAT(problems(d, args), IsEmpty());
  }
  UpdateArgs args = args_of(of_tokens());
  args.disable_state_update = true;
  EXPECT_THAT(problems(of_tokens(), args), ElementsAre(HasSubstr("disable_state_update: got true")));
}

TEST(TokenArgs, SnapshotsHaveAStepForEachTokenAndASlotForEachThatIsRead) {
  UpdateArgs args = args_of(snapshots());
  args.intermediate_states.shape[1] = kTokens - 1;
  args.intermediate_states.stride[0] = (kTokens - 1) * kHeads * kHeadDim * kDstate;
  EXPECT_THAT(problems(snapshots(), args), ElementsAre("intermediate_states: got 5 steps; wants 6 or more, one a "
                                                       "token"));
  args = args_of(snapshots());
  args.state_batch_indices = index_at(0xd000000, {kBatch});
  args.intermediate_states.shape[0] = kSlots - 1;
  EXPECT_THAT(problems(snapshots(), args),
              ElementsAre(HasSubstr("intermediate_states: 39 slots; without intermediate_state_indices")));
  args.intermediate_state_indices = index_at(0xd100000, {kBatch});
  EXPECT_THAT(problems(snapshots(), args), IsEmpty());
  args.intermediate_states.stride[1] += 8;
  EXPECT_THAT(problems(snapshots(), args), ElementsAre(HasSubstr("intermediate_states: dimension 1 has stride")));
}

TEST(Faults, Row2_PaddedPagesOfStatesAreTakenAndMisalignedOnesRefused) {
  for (const Description& d : {snapshots(), slots(), packed()}) {
    UpdateArgs args = args_of(d);
    args.state.stride[0] += 64;
    EXPECT_THAT(problems(d, args), IsEmpty());
    args.state.stride[0] += 4;
    EXPECT_THAT(problems(d, args), ElementsAre(HasSubstr("state: slot stride")));
    args = args_of(d);
    args.state.data = address(0x1000008);
    EXPECT_THAT(problems(d, args), ElementsAre(HasSubstr("state: base address 0x1000008 is not a multiple of 16")));
  }
  UpdateArgs args = args_of(snapshots());
  args.intermediate_states.data = address(0xf000008);
  EXPECT_THAT(problems(snapshots(), args), ElementsAre(HasSubstr("intermediate_states: base address")));
}

TEST(Faults, Row7_MoreTokensThanTheKernelWasMadeForAreRefusedByShape) {
  for (const Description& d : {snapshots(), slots()}) {
    const Description more = Description(d).tokens(kTokens + 1);
    EXPECT_THAT(problems(d, args_of(more)), Contains(HasSubstr("x: got shape [3, 7, 4, 64]; wants [3, 6, 4, 64]")));
  }
  UpdateArgs args = args_of(slots());
  args.dst_state_batch_indices = index_at(0xc000000, {kBatch, kTokens - 1});
  EXPECT_THAT(problems(slots(), args), ElementsAre("dst_state_batch_indices: got shape [3, 5]; wants [3, 6]"));
  args = args_of(accepted());
  args.state_batch_indices = index_at(0xd000000, {kBatch, kTokens - 1});
  EXPECT_THAT(problems(accepted(), args), ElementsAre("state_batch_indices: got shape [3, 5]; wants [3, 6 or more]"));
}

TEST(Faults, Row15_WrongAndMixedDtypesOfTokensAndTheirIndicesAreNamed) {
  const Description d = by_chance();
  for (const auto& [name, tensor] : {std::pair("state", &UpdateArgs::state),
                                     {"x", &UpdateArgs::x},
                                     {"dt", &UpdateArgs::dt},
                                     {"state_scale", &UpdateArgs::state_scale},
                                     {"intermediate_states", &UpdateArgs::intermediate_states},
                                     {"intermediate_state_scales", &UpdateArgs::intermediate_state_scales},
                                     {"rand_seed", &UpdateArgs::rand_seed}}) {
    UpdateArgs args = args_of(d);
    (args.*tensor).dtype = DType::f16;
    EXPECT_THAT(problems(d, args), ElementsAre(HasSubstr(std::string(name) + ": got dtype fp16; wants ")));
  }
  UpdateArgs args = args_of(by_chance());
  args.state_scale = Tensor{};
  EXPECT_THAT(problems(d, args), ElementsAre(HasSubstr("state_scale: not given")));
  args = args_of(accepted());
  args.num_accepted_tokens.dtype = DType::i32;
  EXPECT_THAT(problems(accepted(), args),
              ElementsAre("num_accepted_tokens: got dtype int32; wants int64, as state_batch_indices"));
  args = args_of(slots());
  args.dst_state_batch_indices.dtype = DType::f32;
  EXPECT_THAT(problems(slots(), args), ElementsAre("dst_state_batch_indices: got dtype fp32; wants int32 or int64"));
}

TEST(Faults, Row16_TokensMayBeSlicesOfAProjectionAndAlignedOrDescribedAsNot) {
  UpdateArgs args = args_of(slots());
  for (Tensor UpdateArgs::*t : {&UpdateArgs::x, &UpdateArgs::B, &UpdateArgs::C, &UpdateArgs::z})
    (args.*t).stride[1] = 1064, (args.*t).stride[0] = 7 * 1064;
  EXPECT_THAT(problems(slots(), args), IsEmpty());
  args.x.stride[1] = 1061;
  EXPECT_THAT(problems(slots(), args),
              ElementsAre(AllOf(HasSubstr("x: token stride 1061"), HasSubstr("unaligned_rows()"))));
  EXPECT_THAT(problems(slots().unaligned_rows(), args), IsEmpty());
}

// Launches, on the stub driver.
class TokensLaunch : public StubLaunchTest<device_args::UpdateTokensArgs> {
 protected:
  // What a checked launch of these says.
  std::string refusal(const Description& d, UpdateArgs args) {
    const Kernel kernel = load(d);
    args.checked = true;
    return error_of([&] { kernel.launch(args, nullptr); }).what();
  }
};

TEST_F(TokensLaunch, PassesOnWhatItWasGiven) {
  const Kernel kernel = load(snapshots());
  UpdateArgs args = args_of(snapshots());
  args.x = strided(args.x.data, DType::bf16, {kBatch, kTokens, kHeads, kHeadDim}, {4096, 512, kHeadDim, 1});
  args.dt = strided(args.dt.data, DType::f32, {kBatch, kTokens, kHeads, kHeadDim}, {64, 8, 1, 0});
  args.intermediate_state_indices = strided(address(0xd100000), DType::i32, {kBatch}, {2});
  args.disable_state_update = true;
  args.pad_slot_id = 7;
  kernel.launch(args, nullptr);
  const device_args::UpdateTokensArgs device = launched();
  EXPECT_EQ(device.state, args.state.data);
  EXPECT_EQ(device.slots, kSlots);
  EXPECT_EQ(device.state_stride, kHeads * kHeadDim * kDstate);
  EXPECT_EQ(device.x_stride, 4096);
  EXPECT_EQ(device.x_token_stride, 512);
  EXPECT_EQ(device.dt_stride, 64);
  EXPECT_EQ(device.dt_token_stride, 8);
  EXPECT_EQ(device.B_token_stride, kGroups * kDstate);
  EXPECT_EQ(device.out_stride, kTokens * kHeads * kHeadDim);
  EXPECT_EQ(device.intermediate_states, args.intermediate_states.data);
  EXPECT_EQ(device.snapshot_slots, kSlots);
  EXPECT_EQ(device.snapshot_steps, kTokens + 1);
  EXPECT_EQ(device.snapshot_index_stride, 2);
  EXPECT_EQ(device.wide_indices, 0);
  EXPECT_EQ(device.disable_state_update, 1);
  EXPECT_EQ(device.nheads, kHeads);
  EXPECT_EQ(device.pad_slot_id, 7);
  EXPECT_EQ(stub_->last.grid[0], kHeads * kHeadDim / plan_.block_m);
  EXPECT_EQ(stub_->last.grid[1], kBatch);
  EXPECT_EQ(stub_->last.block[0], 32u * static_cast<unsigned>(plan_.warps));
}

TEST_F(TokensLaunch, PassesOnPackedRequestsAndColumnsOfIndices) {
  load(packed()).launch(args_of(packed()), nullptr);
  device_args::UpdateTokensArgs device = launched();
  EXPECT_EQ(device.x_stride, 0);
  EXPECT_EQ(device.x_token_stride, kHeads * kHeadDim);
  EXPECT_EQ(device.dt_stride, 0);
  EXPECT_EQ(device.dt_token_stride, kHeads);
  EXPECT_EQ(device.total, 11);
  EXPECT_EQ(stub_->last.grid[1], kBatch);
  load(accepted()).launch(args_of(accepted()), nullptr);
  device = launched();
  EXPECT_EQ(device.index_stride, kTokens + 1);
  EXPECT_EQ(device.index_column_stride, 1);
  EXPECT_EQ(device.index_columns, kTokens + 1);
  EXPECT_EQ(device.dst_index_stride, kTokens);
  EXPECT_EQ(device.dst_index_token_stride, 1);
  EXPECT_EQ(device.wide_indices, 1);
  UpdateArgs args = args_of(by_chance());
  args.rand_seed = index_at(0x14000000, {kSlots});
  load(by_chance()).launch(args, nullptr);
  EXPECT_EQ(launched().seed_stride, 1);
  EXPECT_EQ(launched().state_scale_stride, kHeads * kHeadDim);
}

TEST_F(TokensLaunch, AllocatesNothing) {
  const Kernel kernel = load(accepted());
  const UpdateArgs args = args_of(accepted());
  kernel.launch(args, nullptr);
  const long before = allocation_count();
  for (int i = 0; i < 100; ++i) kernel.launch(args, nullptr);
  EXPECT_EQ(allocation_count(), before);
}

TEST_F(TokensLaunch, FaultRow1_SlotsPastTwoToThe31ElementsReachTheDeviceWhole) {
  UpdateArgs args = args_of(slots());
  args.state.shape[0] = std::int64_t{1} << 40;
  args.state.stride[0] = std::int64_t{1} << 34;
  load(slots()).launch(args, nullptr);
  EXPECT_EQ(launched().state_stride, std::int64_t{1} << 34);
  EXPECT_EQ(launched().slots, std::int64_t{1} << 40);
}

TEST_F(TokensLaunch, FaultRow4_CheckedModeNamesSlotsPastThePool) {
  const std::int64_t from[] = {0, 40, 2}, to[] = {3, 41, -1};
  UpdateArgs args = args_of(snapshots());
  args.state_batch_indices = contiguous(from, DType::i64, {kBatch});
  args.intermediate_state_indices = contiguous(to, DType::i64, {kBatch});
  EXPECT_THAT(refusal(snapshots(), args), HasSubstr("state_batch_indices[1] is 40; the state has 40 slots"));
  const std::int64_t in_range[] = {0, 1, 2};
  args.state_batch_indices = contiguous(in_range, DType::i64, {kBatch});
  EXPECT_STREQ(refusal(snapshots(), args).c_str(),
               "intermediate_state_indices[1] is 41; the buffer of snapshots has 40 slots");
}

TEST_F(TokensLaunch, FaultRow5_CheckedModeNamesTwoStatesThatGoToOneSlotOfTwoTokensToo) {
  const Description d = slots().tokens(2);
  const std::int64_t from[] = {0, 1, -1}, to[] = {10, 11, 11, 12, 10, 10};
  UpdateArgs args = args_of(d);
  args.state_batch_indices = contiguous(from, DType::i64, {kBatch});
  args.dst_state_batch_indices = contiguous(to, DType::i64, {kBatch, 2});
  EXPECT_STREQ(refusal(d, args).c_str(),
               "dst_state_batch_indices[1, 0] and [0, 1] are both slot 11; each of one launch must be another slot");
}

TEST_F(TokensLaunch, FaultRow6_CheckedModeNamesAcceptedCountsOutOfRange) {
  const Description d = slots().tokens(2).accepted_counts();
  const std::int64_t counts[] = {0, 3, -1}, to[] = {10, 11, 12, 13, 14, 15}, from[] = {0, 1, 2, 3, 4, 5};
  UpdateArgs args = args_of(d);
  args.num_accepted_tokens = contiguous(counts, DType::i64, {kBatch});
  args.state_batch_indices = contiguous(from, DType::i64, {kBatch, 2});
  args.dst_state_batch_indices = contiguous(to, DType::i64, {kBatch, 2});
  EXPECT_STREQ(refusal(d, args).c_str(),
               "num_accepted_tokens[1] is 3; wants 0 to 2\nnum_accepted_tokens[2] is -1; wants 0 to 2");
}

TEST_F(TokensLaunch, FaultRow8_CheckedModeNamesLengthsThatAreNone) {
  const std::int32_t lengths[] = {1, 8, 5, 12};
  UpdateArgs args = args_of(packed());
  args.cu_seqlens = contiguous(lengths, DType::i32, {kBatch + 1});
  EXPECT_THAT(refusal(packed(), args),
              AllOf(HasSubstr("cu_seqlens[0] is 1; wants 0"), HasSubstr("cu_seqlens[1] is 8, 7 more than"),
                    HasSubstr("cu_seqlens[2] is 5, below the 8"), HasSubstr("cu_seqlens[3] is 12; wants 11")));
}

TEST_F(TokensLaunch, FaultRow18_ARequestMayWriteTheSlotThatItReadsButNotOneOfAnother) {
  const Description d = slots().tokens(2);
  const std::int64_t from[] = {0, 1, 2}, own[] = {0, 10, 11, 1, 12, 13}, other[] = {10, 11, 2, 12, 13, 14};
  UpdateArgs args = args_of(d);
  args.state_batch_indices = contiguous(from, DType::i64, {kBatch});
  args.dst_state_batch_indices = contiguous(own, DType::i64, {kBatch, 2});
  args.checked = true;
  const Kernel kernel = load(d);
  kernel.launch(args, nullptr);
  EXPECT_EQ(stub_->launches, 1);
  args.dst_state_batch_indices = contiguous(other, DType::i64, {kBatch, 2});
  EXPECT_STREQ(refusal(d, args).c_str(), "row 2 reads slot 2, which row 1 of the same launch writes");
}

TEST_F(TokensLaunch, CheckedModeNamesParentsThatComeLaterAndATreeWithoutSnapshots) {
  const Description d = tree().tokens(3);
  const std::int64_t to[] = {3, -1, 5}, parents[] = {-1, 2, 0, 0, 0, 0, 9, 0, 1}, from[] = {0, 1, 2};
  UpdateArgs args = args_of(d);
  args.state_batch_indices = contiguous(from, DType::i64, {kBatch});
  args.intermediate_state_indices = contiguous(to, DType::i64, {kBatch});
  args.retrieve_parent_token = contiguous(parents, DType::i64, {kBatch, 3});
  EXPECT_STREQ(refusal(d, args).c_str(),
               "intermediate_state_indices[1] is -1, a pad; the tokens of a tree go back to its snapshots\n"
               "retrieve_parent_token[0, 1] is 2; wants a token before it");
}

TEST_F(TokensLaunch, FaultRow19_AnEmptyBatchLaunchesNothingAndOneOf1024IsOneLaunch) {
  const Kernel kernel = load(slots());
  for (const std::int64_t batch : {0, 1024}) {
    UpdateArgs args = args_of(slots());
    for (Tensor UpdateArgs::*t : {&UpdateArgs::x, &UpdateArgs::dt, &UpdateArgs::B, &UpdateArgs::C, &UpdateArgs::z,
                                  &UpdateArgs::out, &UpdateArgs::dst_state_batch_indices})
      (args.*t).shape[0] = batch;
    args.state_batch_indices = index_at(0xd000000, {batch});
    kernel.launch(args, nullptr);
    EXPECT_EQ(stub_->launches, batch == 0 ? 0 : 1);
  }
}

}  // namespace

}  // namespace ssmjit
