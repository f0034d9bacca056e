// The verifier is tested: a right implementation passes on every kind of description, and each wrong one is rejected
// for its own reason.
#include "autotune/verify.h"

#include <limits>
#include <map>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "autotune/update_case.h"
#include "host_update.h"

namespace ssmjit {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr int kMultiprocessors = 40;  // of a GPU that is not there: how many rows are one past a wave

Verdict judge_target(Target& target, const Description& description, std::uint64_t seed = 1) {
  const KernelCases cases = standard_cases(description, kMultiprocessors, seed);
  Verdict verdict;
  judge_runs(run_cases(target, cases, verdict), verdict);
  return verdict;
}

Verdict judge_host(const Description& description, Mutation mutation, std::uint64_t seed = 1) {
  HostTarget target(description, mutation);
  return judge_target(target, description, seed);
}

Description small(int nheads = 6, int ngroups = 2) {
  return mamba2({.nheads = nheads, .head_dim = 16, .dstate = 32, .ngroups = ngroups});
}

// ---- what is right passes ----

struct Variant {
  std::string name;
  Description description;
};

std::vector<Variant> every_combination() {
  std::vector<Variant> all;
  for (DType state : {DType::f32, DType::bf16, DType::f16})
    for (DType input : {DType::f32, DType::bf16, DType::f16})
      for (bool gate : {false, true})
        for (bool destination : {false, true})
          for (PadOutput pad : {PadOutput::zeros, PadOutput::untouched, PadOutput::as_if_zero_state})
            for (bool aligned : {false, true}) {
              Description d = small().state(state).input(input).pad_output(pad).destination_slots(destination);
              if (gate) d.gate(silu(dsl::z));
              if (!aligned) d.unaligned_rows();
              const std::string name = std::string("state_") + ssmjit::name(state) + "_input_" + ssmjit::name(input) +
                                       (gate ? "_gate" : "") + (destination ? "_destination" : "") + "_pad_" +
                                       ssmjit::name(pad) + (aligned ? "" : "_unaligned");
              all.push_back({name, d});
            }
  return all;
}

std::vector<Variant> every_shape() {
  const DType dtypes[] = {DType::f32, DType::bf16, DType::f16};
  std::vector<Variant> all;
  std::size_t i = 0;
  for (int head_dim : {64, 80})
    for (int dstate : {16, 96, 128})
      for (int ngroups : {1, 2})
        for (int ratio : {3, 14}) {
          Description d =
              mamba2({.nheads = ngroups * ratio, .head_dim = head_dim, .dstate = dstate, .ngroups = ngroups});
          d.state(dtypes[i % 3]).input(dtypes[i / 3 % 3]).dt(i % 2 == 0 ? DType::f32 : DType::bf16);
          d.weights(i % 4 < 2 ? DType::f32 : DType::bf16).destination_slots(i % 5 == 0);
          if (i % 2 == 1) d.gate(silu(dsl::z)).unaligned_rows();
          ++i;
          all.push_back({std::to_string(ngroups * ratio) + "_heads_" + std::to_string(head_dim) + "_x_" +
                             std::to_string(dstate) + "_" + std::to_string(ngroups) + "_groups",
                         d});
        }
  return all;
}

class RightUpdatePasses : public testing::TestWithParam<Variant> {};

TEST_P(RightUpdatePasses, WithinTheLimits) {
  const Verdict verdict = judge_host(GetParam().description, Mutation::none);
  EXPECT_EQ(verdict.outcome, Outcome::ok) << GetParam().description.summary();
  EXPECT_THAT(verdict.failures, IsEmpty());
  EXPECT_GT(verdict.y_error, 0) << "nothing was compared";
  EXPECT_GT(verdict.state_error, 0);
}

const auto name_of = [](const auto& info) { return info.param.name; };
INSTANTIATE_TEST_SUITE_P(OnEveryCombination, RightUpdatePasses, testing::ValuesIn(every_combination()), name_of);
INSTANTIATE_TEST_SUITE_P(OnEveryShape, RightUpdatePasses, testing::ValuesIn(every_shape()), name_of);

TEST(Verifier, PassesARightUpdateWithoutSkipAndBias) {
  const Description d = small().no_skip().delta(softplus(dsl::dt));
  EXPECT_THAT(judge_host(d, Mutation::none).failures, IsEmpty());
}

TEST(Verifier, GivesTheSameVerdictForTheSameSeed) {
  const Verdict a = judge_host(small(), Mutation::none, 5), b = judge_host(small(), Mutation::none, 5);
  EXPECT_EQ(a.y_error, b.y_error);
  EXPECT_EQ(a.state_error, b.state_error);
  EXPECT_NE(a.y_error, judge_host(small(), Mutation::none, 6).y_error);
}

TEST(Verifier, CasesCoverPadsStridesBothIndexWidthsAndOddBatches) {
  const std::vector<CaseLayout> layouts = standard_layouts(small(), kMultiprocessors);
  std::map<std::string, int> seen;
  for (const CaseLayout& l : layouts) {
    seen["batch " + std::to_string(l.batch)]++;
    seen["pads"] += l.pads;
    seen["padded slots"] += l.padded_state;
    seen["packed rows"] += l.packed_rows;
    seen["strong decay"] += l.strong_decay;
    seen["identity slots"] += !l.indexed;
    seen[name(l.index_dtype)] += l.indexed;
  }
  for (const char* wanted : {"batch 1", "batch 3", "batch 7", "pads", "padded slots", "packed rows", "strong decay",
                             "identity slots", "int32", "int64"})
    EXPECT_GE(seen[wanted], 1) << wanted;
  EXPECT_GE(layouts.back().batch * small().nheads, kMultiprocessors) << "no case is as large as a wave";
}

// ---- what is wrong is rejected ----

struct Wrong {
  std::string name;
  Mutation mutation;
  Description description;
  std::string reason;  // part of a sentence of the verdict
  Outcome outcome = Outcome::wrong;
};

Description gated() { return small().gate(silu(dsl::z)); }
Description moved() { return small().destination_slots(); }
Description one_group() { return small(6, 1); }

const char* const kOut = ": out: ";
const char* const kState = ": state: ";
const char* const kMustStay = "memory that must stay as it was";
const char* const kOutside = "memory outside the tensor";

std::vector<Wrong> every_mutation() {
  const DType b16 = DType::bf16, f16 = DType::f16, f32 = DType::f32;
  return {
      {"WrongGroup", Mutation::wrong_group, small(), kState},
      {"WrongGroupWithBf16State", Mutation::wrong_group, small().state(b16), kState},
      {"FirstGroupForAllHeads", Mutation::group_zero, small(), kOut},
      {"NoDecay", Mutation::no_decay, small(), kState},
      {"NoDecayWithFp16State", Mutation::no_decay, small().state(f16), kState},
      {"DecayByTheDeltaOfThePreviousHead", Mutation::decay_of_previous_head, one_group(), kState},
      {"MissedSkip", Mutation::missed_skip, small(), kOut},
      {"MissedGate", Mutation::missed_gate, gated(), kOut},
      {"MissedDtBias", Mutation::missed_dt_bias, small(), kState},
      {"MissedSoftplus", Mutation::missed_softplus, small(), kState},
      {"CAsOfRowZero", Mutation::stale_C, small(), kOut},
      {"StateOfTheNeighbourRow", Mutation::neighbour_slot, small(), kState},
      {"OutputFromTheRoundedBf16StateWithFp32Output", Mutation::y_from_rounded_state, small().state(b16).input(f32),
       kOut},
      {"OutputFromTheRoundedBf16StateWithFp16Output", Mutation::y_from_rounded_state, small().state(b16).input(f16),
       kOut},
      {"OutputFromTheRoundedFp16StateWithFp32Output", Mutation::y_from_rounded_state, small().state(f16).input(f32),
       kOut},
      {"PadRowWrittenWhereItMustBeZeros", Mutation::pad_row_written, small(), kMustStay},
      {"PadRowWrittenWhereItMustStay", Mutation::pad_row_written, small().pad_output(PadOutput::untouched), kMustStay},
      {"StateOfThePadSlotWritten", Mutation::pad_state_written, small(), "state: " + std::string(kMustStay)},
      {"StateOfThePadSlotWrittenBesideARightOutput", Mutation::pad_state_written,
       small().pad_output(PadOutput::as_if_zero_state), "state: " + std::string(kMustStay)},
      {"OneElementPastTheOutput", Mutation::past_the_end, small(), "out: " + std::string(kOutside)},
      {"DestinationIgnored", Mutation::destination_ignored, moved(), kState},
      {"SourceWrittenBesideTheDestination", Mutation::destination_and_source, moved(),
       "state: " + std::string(kMustStay)},
      {"Int64IndicesReadAsInt32", Mutation::narrow_indices, small(), "int64 slots shuffled"},
      {"LastColumnDropped", Mutation::last_column_dropped, small(), kOut},
      {"LastColumnNotStored", Mutation::last_column_not_stored, small(), kState},
      {"OtherBitsFromTheThirdLaunchOn", Mutation::differs_from_third_on, small(),
       "out: launch 3 gave other bits than the first", Outcome::nondeterministic},
      {"RowStrideIgnored", Mutation::row_stride_ignored, small(), "packed rows"},
      {"SlotStrideIgnored", Mutation::slot_stride_ignored, small(), "padded slots"},
      {"NegativeZeroInAPadRow", Mutation::negative_zero, small(), "out: " + std::string(kMustStay)},
      {"OneNan", Mutation::one_nan, small(), kOut},
      {"StateOfOneHeadNotStored", Mutation::head_not_stored, small(), kState},
      {"StateOfOneHeadNotStoredAtTheDestination", Mutation::head_not_stored, moved(), kState},
      {"LaunchThatThrows", Mutation::never_launched, small(), "an illegal address", Outcome::launch_failed},
  };
}

class VerifierRejects : public testing::TestWithParam<Wrong> {};

TEST_P(VerifierRejects, WithItsReason) {
  const Wrong& wrong = GetParam();
  ASSERT_EQ(judge_host(wrong.description, Mutation::none).outcome, Outcome::ok) << "the right one must pass";
  const Verdict verdict = judge_host(wrong.description, wrong.mutation);
  EXPECT_EQ(verdict.outcome, wrong.outcome);
  EXPECT_THAT(verdict.failures, testing::Contains(HasSubstr(wrong.reason)));
}

INSTANTIATE_TEST_SUITE_P(Update, VerifierRejects, testing::ValuesIn(every_mutation()), name_of);

TEST(Verifier, RejectsEveryMutationWithBf16InputsAndStateToo) {
  for (const Wrong& wrong : every_mutation()) {
    if (wrong.mutation == Mutation::y_from_rounded_state) continue;
    Description d = wrong.description;
    d.state(DType::bf16).input(DType::bf16).dt(DType::bf16).weights(DType::bf16);
    EXPECT_EQ(judge_host(d, wrong.mutation).outcome, wrong.outcome) << wrong.name;
  }
}

// A bf16 output has no more bits than the state: rounding the state first moves y by a third of a unit, unless what it
// is summed from cancels, as it does where the old state has died. Outputs of more bits show it everywhere.
TEST(Verifier, SeesThatABf16OutputCameFromTheRoundedBf16StateOnlyWhereItsTermsCancel) {
  const Description d = small().state(DType::bf16).input(DType::bf16);
  const auto outcome = [&](const CaseLayout& layout) {
    KernelCases cases;
    cases.push_back(make_case(d, layout, 1));
    HostTarget target(d, Mutation::y_from_rounded_state);
    Verdict verdict;
    judge_runs(run_cases(target, cases, verdict), verdict);
    return verdict.outcome;
  };
  EXPECT_EQ(outcome({.batch = 1, .strong_decay = true}), Outcome::wrong);
  EXPECT_EQ(outcome({.batch = 3}), Outcome::ok);
}

TEST(Verifier, StopsAtTheFirstCaseThatGivesOtherBits) {
  HostTarget target(small(), Mutation::differs_from_third_on);
  KernelCases cases;
  cases.push_back(make_case(small(), {.batch = 1}, 1));
  cases.push_back(make_case(small(), {.batch = 3}, 2));
  Verdict verdict;
  EXPECT_EQ(run_cases(target, cases, verdict).size(), 1u);
  EXPECT_EQ(verdict.outcome, Outcome::nondeterministic);
}

TEST(Verifier, KeepsTheReasonNondeterministicWhenValuesAreWrongToo) {
  HostTarget target(small(), Mutation::differs_from_third_on);
  KernelCases cases;
  cases.push_back(make_case(small(), {.batch = 1}, 1));
  Verdict verdict;
  std::vector<CaseRun> runs = run_cases(target, cases, verdict);
  ASSERT_EQ(runs.size(), 1u);
  runs.front().after.front().front() ^= std::byte{1};  // a canary
  judge_runs(runs, verdict);
  EXPECT_EQ(verdict.outcome, Outcome::nondeterministic);
  EXPECT_THAT(verdict.failures, testing::SizeIs(2));
}

TEST(Verifier, BitsThatWereFoundRightAreNeitherReadNorJudgedAgain) {
  const KernelCases cases = standard_cases(small(), kMultiprocessors, 1);
  RightRuns known;
  Verdict first, second;
  HostTarget target(small(), Mutation::none), same(small(), Mutation::none);
  judge_runs(run_cases(target, cases, first, &known), first, &known);
  ASSERT_EQ(first.outcome, Outcome::ok);
  const std::vector<CaseRun> runs = run_cases(same, cases, second, &known);
  ASSERT_EQ(runs.size(), cases.size());
  for (const CaseRun& run : runs) {
    EXPECT_TRUE(run.right.has_value());
    EXPECT_THAT(run.after, IsEmpty());
  }
  judge_runs(runs, second);
  EXPECT_EQ(second.outcome, Outcome::ok);
  EXPECT_EQ(second.y_error, first.y_error);
  EXPECT_EQ(second.state_error, first.state_error);
}

TEST(Verifier, WhatWasFoundRightExcusesNoOtherKernel) {
  const KernelCases cases = standard_cases(small(), kMultiprocessors, 1);
  RightRuns known;
  Verdict right;
  HostTarget target(small(), Mutation::none);
  judge_runs(run_cases(target, cases, right, &known), right, &known);
  for (Mutation mutation : {Mutation::wrong_group, Mutation::past_the_end, Mutation::one_nan, Mutation::head_not_stored,
                            Mutation::pad_state_written, Mutation::negative_zero, Mutation::differs_from_third_on}) {
    for (int turn = 0; turn < 2; ++turn) {
      HostTarget mutant(small(), mutation);
      Verdict verdict;
      judge_runs(run_cases(mutant, cases, verdict, &known), verdict, &known);
      EXPECT_EQ(verdict.outcome,
                mutation == Mutation::differs_from_third_on ? Outcome::nondeterministic : Outcome::wrong)
          << static_cast<int>(mutation) << ", turn " << turn;
    }
  }
}

TEST(Verifier, SaysWhichTensorChangedWhere) {
  const Verdict verdict = judge_host(small(), Mutation::past_the_end);
  const std::int64_t bytes = 1 * 6 * 16 * 2;
  EXPECT_THAT(verdict.failures, testing::Contains(HasSubstr("out: memory outside the tensor at byte " +
                                                            std::to_string(bytes) + " of " + std::to_string(bytes))));
}

TEST(Verifier, NoticesEveryByteThatMayNotChange) {
  KernelCases cases;
  cases.push_back(make_case(small(), {.batch = 3, .indexed = true, .padded_state = true, .pads = true}, 3));
  HostTarget target(small(), Mutation::none);
  Verdict verdict;
  const std::vector<CaseRun> runs = run_cases(target, cases, verdict);
  ASSERT_EQ(verdict.outcome, Outcome::ok);
  ASSERT_THAT(cases[0]->check(runs[0].after).failures, IsEmpty());
  for (std::size_t block = 0; block < cases[0]->blocks().size(); ++block) {
    const KernelCase::Block& b = cases[0]->blocks()[block];
    for (std::size_t at :
         {std::size_t{0}, b.tensor_offset - 1, b.before.size() - b.tensor_offset, b.before.size() - 1}) {
      auto after = runs[0].after;
      after[block][at] ^= std::byte{0x10};
      EXPECT_THAT(cases[0]->check(after).failures, ElementsAre(HasSubstr(b.name + ": " + kOutside)))
          << "byte " << at << " of " << b.name;
    }
    if (b.may_change) continue;
    auto after = runs[0].after;
    after[block][b.tensor_offset] ^= std::byte{0x10};
    EXPECT_THAT(cases[0]->check(after).failures, ElementsAre(HasSubstr(b.name + ": " + kMustStay)));
  }
}

TEST(Verifier, RefusesBlocksOfAnotherSize) {
  const UpdateCase one(small(), {.batch = 1}, 3);
  std::vector<std::vector<std::byte>> after;
  for (const KernelCase::Block& b : one.blocks()) after.push_back(b.before);
  after[0].pop_back();
  EXPECT_THAT(one.check(after).failures, ElementsAre(HasSubstr("state: got")));
}

TEST(Verifier, RejectsAKernelThatWritesNothing) {
  class Idle : public HostTarget {
   public:
    Idle() : HostTarget(small(), Mutation::none) {}
    std::vector<std::string> launch(const KernelCase&, const CaseArgs&) override { return {}; }
  } idle;
  const Verdict verdict = judge_target(idle, small());
  EXPECT_EQ(verdict.outcome, Outcome::wrong);
  EXPECT_THAT(verdict.failures, testing::Contains(HasSubstr(kOut)));
}

// ---- the limits ----

TEST(Limits, AreOfTheErrorNormTheWorstElementAndTheShareBeyondTwoUnits) {
  const auto verdict = [](Nearness n, DType dtype = DType::bf16) { return judge(n, dtype, 128, "y"); };
  EXPECT_THAT(verdict({.frobenius = 4.9e-3, .worst_ulp = 3.9, .past_two = 0.9e-3}), IsEmpty());
  EXPECT_THAT(verdict({.frobenius = 5.1e-3}), HasSubstr("relative error 5.10e-03; limit 5.00e-03"));
  EXPECT_THAT(verdict({.worst_ulp = 4.1}), HasSubstr("an element is 4.1 units off; limit 4"));
  EXPECT_THAT(verdict({.past_two = 1.1e-3}), HasSubstr("0.11% of elements"));
  EXPECT_THAT(verdict({.frobenius = 2.2e-5}, DType::f32), IsEmpty());
  EXPECT_THAT(verdict({.frobenius = 2.3e-5}, DType::f32), Not(IsEmpty()));
  EXPECT_THAT(verdict({.frobenius = std::numeric_limits<double>::quiet_NaN()}), Not(IsEmpty()));
}

TEST(Limits, CountUnitsAtTheLargerOfElementAndRow) {
  NearnessMeter meter(DType::bf16, 128);
  const double want[] = {1.0, 1.0, 1.0, 0.0};
  meter.add_row(want, {1.0, 1.0, 1.0 + 3 * 0x1p-8, 0.0});  // rms 0.87, so its own magnitude counts: unit 2^-7
  const Nearness n = meter.result();
  EXPECT_DOUBLE_EQ(n.worst_ulp, 1.5);
  EXPECT_EQ(n.past_two, 0);
  NearnessMeter small_element(DType::bf16, 128);
  small_element.add_row(want, {1.0, 1.0, 1.0, 3 * 0x1p-8});  // 0 in a row of rms 0.87: unit 2^-8
  EXPECT_DOUBLE_EQ(small_element.result().worst_ulp, 3);
  EXPECT_DOUBLE_EQ(small_element.result().past_two, 0.25);
}

TEST(Faults, Row14_Fp16OutputPastTheLargestIsInfinityAndFiniteInputsGiveNoNan) {
  const double inf = std::numeric_limits<double>::infinity();
  const double want[] = {1e5, -1e5, 65519.0, 2.0};
  const auto worst = [&](std::vector<double> got) {
    NearnessMeter meter(DType::f16, 16);
    meter.add_row(want, got);
    return meter.result().worst_ulp;
  };
  EXPECT_LT(worst({inf, -inf, 65504.0, 2.0}), 4);
  EXPECT_LT(worst({inf, -inf, inf, 2.0}), 4) << "within a rounding of the largest";
  EXPECT_EQ(worst({65504.0, -inf, 65504.0, 2.0}), inf) << "saturated";
  EXPECT_EQ(worst({inf, inf, 65504.0, 2.0}), inf) << "the other sign";
  EXPECT_EQ(worst({inf, -inf, 65504.0, std::numeric_limits<double>::quiet_NaN()}), inf);
}

}  // namespace
}  // namespace ssmjit
