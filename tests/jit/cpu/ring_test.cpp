// Emitted ring kernels on the CPU executor, step after step: drift, and launches that must give the same bits.
#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/description.h>
#include <ssmjit/kernel.h>
#include <ssmjit/plan.h>
#include <ssmjit/source.h>
#include <ssmjit/tune.h>

#include "autotune/cpu_verify.h"
#include "autotune/host_numbers.h"
#include "autotune/nearness.h"
#include "autotune/reference/ring_reference.h"
#include "tests/jit/cpu/ring_flush.h"
#include "tests/jit/cpu/ring_memory.h"
#include "tests/jit/cpu/ring_steps.h"

namespace ssmjit {
namespace {

const Arch kArch = Arch::parse("sm_90a");
// Of the plans of a flush by chance; all when SSMJIT_TEST_ALL is set.
const std::size_t kPlansOfAFlush = std::getenv("SSMJIT_TEST_ALL") != nullptr ? 0 : 4;

CpuProgram compiled(const Description& d, const Plan& plan) {
  CpuCompileOptions options;
  options.checks = false;
  return CpuProgram::compile(emit(d, plan, kArch), options);
}

// Each program is compiled once: with checks of races and bounds, which take their time, or without.
RingStepper on_the_executor(bool checked = false) {
  const auto programs = std::make_shared<std::map<std::string, CpuProgram>>();
  return [programs, checked](const Description& d, const Plan& plan, RingMemory& m, Pdl pdl) {
    const std::string key = d.json() + plan.text();
    auto found = programs->find(key);
    if (found == programs->end())
      found = programs->emplace(key, checked ? CpuProgram::compile(emit(d, plan, kArch)) : compiled(d, plan)).first;
    ASSERT_EQ(m.run(found->second, plan, pdl), "");
  };
}

// ---- drift ----

class RingDrift : public testing::TestWithParam<Drift> {};

TEST_P(RingDrift, Of2000StepsIsAtMostATenthMoreThanThatOfADoubleRecurrenceRoundedAtTheSamePoints) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  expect_little_drift(GetParam(), kArch, on_the_executor());
}

INSTANTIATE_TEST_SUITE_P(Every, RingDrift, testing::ValuesIn(kDrifts),
                         [](const auto& info) { return info.param.name; });

// fp16 ends at 65504, but neither factors above 1 nor small ones leave it.
TEST(RingOfFp16Inputs, AFlushKeepsTheDigitsOfLargeInputsAndOfSmallDeltas) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Description d = mamba2({.nheads = 2, .head_dim = 16, .dstate = 64, .ngroups = 1})
                            .state(DType::f32)
                            .input(DType::f16)
                            .store(Ring{.window = 3});
  const Plan plan = default_plan(d, kArch, 2);
  const CpuProgram program = compiled(d, plan);
  for (const auto& [x, delta] : {std::pair(65504.0, 8.0), {1.0, 1e-5}}) {
    RingMemory m(d, 1);
    Values values(4);
    values.weights(m);
    values.inputs(m);
    m.fill(m.args.A, [] { return -0.05; });
    m.fill(m.args.state, [] { return 0.0; });
    m.fill(m.args.x_ring, [&, x = x] { return values.uniform(0.5, 1) * x; });
    m.fill(m.args.B_ring, [&] { return values.uniform(0.5, 1); });
    m.fill(m.args.dt_ring, [&, delta = delta] { return values.uniform(0.5, 1) * delta; });
    m.set_cursor(0, {1, 3});
    const RingRequest of = ring_request(d, m.args, 0, read_host);
    std::vector<double> want;
    for (int h = 0; h < d.nheads; ++h) {
      const RingHead head = ring_reference(d, m.args, 0, of, h, ring_operands(d), read_host);
      want.insert(want.end(), head.state.begin(), head.state.end());
    }
    ASSERT_EQ(m.run(program, plan), "");
    const std::vector<double> got = m.values(m.args.state);
    for (std::size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], 0x1p-20 * want[i]) << delta;
  }
}

// Weights of x past 65504 are operands all the same: infinity times a zero in x would be NaN.
TEST(RingOfFp16Inputs, WeightsPastTheLargestNumberMakeNoNanOfAZero) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Description d = mamba2({.nheads = 2, .head_dim = 16, .dstate = 64, .ngroups = 1})
                            .state(DType::f32)
                            .input(DType::f16)
                            .store(Ring{.window = 3});
  const Plan plan = default_plan(d, kArch, 2);
  RingMemory m(d, 1);
  Values values(5);
  values.weights(m);
  values.inputs(m);
  m.fill(m.args.state, [] { return 0.0; });
  m.fill(m.args.x, [] { return 0.0; });
  for (const Tensor* t : {&m.args.B, &m.args.C}) m.fill(*t, [] { return 64.0; });
  m.fill(m.args.dt, [] { return 2.0; });
  m.fill(m.args.dt_bias, [] { return 0.0; });
  ASSERT_EQ(m.run(compiled(d, plan), plan), "");
  for (double y : m.values(m.args.out)) ASSERT_EQ(y, 0);
}

// A row of zeros has no largest magnitude to scale by.
TEST(RingOfZeros, AreStoredWithAScaleOfOneAndGiveFiniteOutputs) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  for (const DType state : {DType::i8, DType::f8})
    for (const bool by_chance : {false, true}) {
      Description d = mamba2({.nheads = 2, .head_dim = 16, .dstate = 64, .ngroups = 1}).tokens(3).state(state);
      d.store(Ring{.window = 3});
      if (by_chance) d.rounding(Stochastic{});
      const Plan plan = default_plan(d, kArch, 2);
      RingMemory m(d, 1);
      Values values(8);
      values.weights(m);
      values.inputs(m);
      m.fill(m.args.state, [] { return 0.0; });
      m.fill(m.args.state_scale, [] { return 0.25; });
      m.fill(m.args.x_ring, [] { return 0.0; });
      m.fill(m.args.B_ring, [&] { return values.normal(); });
      m.fill(m.args.dt_ring, [&] { return values.small_delta(); });
      m.set_cursor(0, {1, 3});
      if (by_chance) m.set_seed(5);
      ASSERT_EQ(m.run(compiled(d, plan), plan), "");
      for (const double s : m.values(m.args.state)) ASSERT_EQ(s, 0) << name(state);
      for (const double s : m.values(m.args.state_scale)) ASSERT_EQ(s, 1) << name(state);
      for (const double y : m.values(m.args.out)) ASSERT_TRUE(std::isfinite(y)) << name(state);
    }
}

// ---- sizes ----

void expect_right(const Description& d, const std::vector<Plan>& plans) {
  VerifyOptions options;
  options.on = VerifyOn::cpu;
  for (const Verdict& v : verify(d, plans, options))
    EXPECT_EQ(v.outcome, Outcome::ok) << d.summary() << ", " << v.plan.text() << testing::PrintToString(v.failures);
}

TEST(RingSizes, FarFromASquareAreRightWithAnEightBitState) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  for (const auto& [head_dim, dstate, state] : {std::tuple(8, 256, DType::i8), {40, 128, DType::f8}}) {
    const Description d = mamba2({.nheads = 2, .head_dim = head_dim, .dstate = dstate, .ngroups = 1})
                              .tokens(3)
                              .state(state)
                              .store(Ring{.window = 9});
    expect_right(d, sample_plans(plan_space(d, kArch), 1, 7));
  }
}

TEST(RingSizes, AllHeadsOfAGroupOf16AreRightInOneBlock) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Description d = mamba2({.nheads = 32, .head_dim = 16, .dstate = 32, .ngroups = 2})
                            .tokens(6)
                            .state(DType::bf16)
                            .store(Ring{.window = 16});
  expect_right(d, {Plan::parse("block_m=16,warps=1,heads_per_block=16,stages=4,state_path=bulk,ring_rows=live",
                               default_plan(d, kArch, 32))});
}

// ---- a window of one ----

TEST(RingOfOneRow, IsTheUpdateInPlaceAStepLater) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const UpdateStepper update = [](const Description& d, const Plan& plan, const UpdateArgs& args,
                                  const std::vector<CpuBuffer>& buffers) {
    static std::map<std::string, CpuProgram> programs;
    auto found = programs.find(d.json());
    if (found == programs.end()) found = programs.emplace(d.json(), compiled(d, plan)).first;
    const device_args::UpdateArgs device = to_device(args, Pdl::off);
    const auto batch = static_cast<int>(args.x.shape[0]);
    ASSERT_TRUE(found->second.run(cpu_launch(launch_shape(plan, d, batch), device, buffers)).clean());
  };
  for (const auto& [state, input] : kOneRowDtypes) {
    SCOPED_TRACE(testing::Message() << name(state) << " of " << name(input));
    expect_the_update_a_step_later(state, input, 1.0, kArch, on_the_executor(), update);
  }
}

// ---- rounding by chance ----

class RingByChance : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(States, RingByChance, testing::Values(DType::bf16, DType::f16, DType::i8, DType::f8),
                         [](const auto& info) { return std::string(name(info.param)); });

Description by_chance(DType state) {
  return mamba2({.nheads = 4, .head_dim = 64, .dstate = 64, .ngroups = 2})
      .tokens(3)
      .state(state)
      .rounding(Stochastic{})
      .store(Ring{.window = 8});
}

TEST_P(RingByChance, IsUnbiasedFollowsTheSeedAndLeavesOutputsAsToNearest) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  expect_fair_flushes(by_chance(GetParam()), kArch, 4, on_the_executor());
}

TEST_P(RingByChance, GivesTheSameBitsForEveryPlan) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  expect_same_flushes(by_chance(GetParam()), kArch, 2, kPlansOfAFlush, on_the_executor());
}

// ---- the same bits ----

TEST(RingBits, AreTheSameForVarlenAndDenseForStridedAndContiguousAndUnderEveryPdl) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  expect_same_bits(several(), kArch, on_the_executor());
}

TEST(RingBits, OfAnEightBitStateByChanceAreTheSameToo) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  Description d = several(DType::i8).rounding(Stochastic{});
  d.dstate = 64;
  expect_same_bits(d, kArch, on_the_executor());
}

// ---- rows of the list of faults ----

TEST(Faults, Row1_RingSlotsPast2To32ElementsOfEveryPoolAreSteppedAsTheFirst) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  expect_same_bits_of_far_slots(kArch, on_the_executor(true));  // out of bounds is a finding
}

TEST(Faults, Row1_TheRandomBitsOfARingTakePlacesPast2To32) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  expect_random_bits_of_far_places(kArch, on_the_executor());
}

TEST(Faults, Row8_LengthsOfARingThatAreNoneReadAndWriteNothingOutsideTheTokens) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  expect_lengths_that_are_none_stay_inside_the_tokens(kArch, on_the_executor(true));  // out of bounds is a finding
}

}  // namespace
}  // namespace ssmjit
