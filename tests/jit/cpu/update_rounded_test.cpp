// Updates whose state is stored by chance, or in units of a factor a row, on the CPU executor: right by the double
// reference, the same bits whatever the plan, unbiased, and what that is good for over many steps.
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/description.h>
#include <ssmjit/plan.h>
#include <ssmjit/source.h>
#include <ssmjit/tune.h>

#include "autotune/cpu_verify.h"
#include "autotune/host_numbers.h"
#include "autotune/reference/stored_state.h"
#include "autotune/update_case.h"

namespace ssmjit {
namespace {

using testing::IsEmpty;

const Arch kArch = Arch::parse("sm_90a");
constexpr DType kStates[] = {DType::bf16, DType::f16, DType::i8, DType::f8, DType::i16};

struct Case {
  std::string name;
  Description description;
  std::string plan;  // changes of the default one
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

std::vector<Case> cases() {
  const Description small = mamba2({.nheads = 8, .head_dim = 32, .dstate = 64, .ngroups = 2});
  std::vector<Case> all;
  for (DType state : kStates) {
    const Description d = Description(small).state(state);
    if (d.has_state_scale()) all.push_back({std::string(name(state)) + "_nearest", d, ""});
    all.push_back({std::string(name(state)) + "_stochastic", Description(d).rounding(Stochastic{}), "stages=2"});
  }
  // Rows of an odd number of vectors at any address, several vectors a lane, gates, destinations, early loads.
  const Description odd = mamba2({.nheads = 6, .head_dim = 40, .dstate = 96, .ngroups = 2}).unaligned_rows();
  all.push_back({"bf16_ragged", Description(odd).state(DType::bf16).rounding(Stochastic{.philox_rounds = 5}), ""});
  all.push_back({"int8_ragged",
                 Description(odd).state(DType::i8).rounding(Stochastic{}).input(DType::f32).destination_slots(),
                 "lanes_per_row=8,block_m=8,warps=1"});
  all.push_back({"int16_as_if_zero_gate_early",
                 Description(small)
                     .state(DType::i16)
                     .input(DType::f16)
                     .gate(silu(dsl::z))
                     .destination_slots()
                     .pad_output(PadOutput::as_if_zero_state),
                 "early_state=true"});
  all.push_back({"fp8_untouched_early",
                 Description(small).state(DType::f8).rounding(Stochastic{}).pad_output(PadOutput::untouched),
                 "early_state=true,block_m=16,warps=1"});
  return all;
}

class CpuUpdateRounded : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Plans, CpuUpdateRounded, testing::ValuesIn(cases()),
                         [](const auto& param) { return param.param.name; });

TEST_P(CpuUpdateRounded, IsRightAndWithoutAFindingUnderEverySchedule) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Description& d = GetParam().description;
  VerifyOptions options;
  options.on = VerifyOn::cpu;
  const Verdict verdict = verify(d, {Plan::parse(GetParam().plan, default_plan(d, kArch, d.nheads))}, options).front();
  EXPECT_EQ(verdict.outcome, Outcome::ok);
  EXPECT_THAT(verdict.failures, IsEmpty());
}

// Blocks of a case after a launch, by name.
using Memory = std::map<std::string, std::vector<std::byte>>;
Memory run(const UpdateCase& test, const Plan& plan, std::int64_t seed = 0) {
  const Description& d = test.description();
  std::vector<std::vector<std::byte>> memory;
  std::vector<std::byte*> base;
  std::vector<CpuBuffer> buffers;
  for (const KernelCase::Block& block : test.blocks()) memory.push_back(block.before);
  for (std::size_t i = 0; i < memory.size(); ++i) {
    base.push_back(memory[i].data());
    buffers.push_back(cpu_buffer(test.blocks()[i], memory[i]));
  }
  const UpdateArgs args = test.args(base);
  if (seed != 0) std::memcpy(const_cast<void*>(args.rand_seed.data), &seed, sizeof seed);
  const CpuProgram program = CpuProgram::compile(emit(d, plan, kArch), {.checks = false});
  const device_args::UpdateRoundedArgs device = rounded_to_device(args, Pdl::off);
  const CpuReport report = program.run(cpu_launch(launch_shape(plan, d, test.layout().batch), device, buffers));
  for (const CpuFinding& f : report.findings) ADD_FAILURE() << f.text();
  Memory after;
  for (std::size_t i = 0; i < memory.size(); ++i) after[test.blocks()[i].name] = memory[i];
  return after;
}

TEST(CpuUpdateRounding, StatesAndFactorsHaveTheSameBitsWhateverThePlan) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  for (DType state : kStates) {
    const Description d =
        mamba2({.nheads = 4, .head_dim = 32, .dstate = 64, .ngroups = 1}).state(state).rounding(Stochastic{});
    const UpdateCase test(d, {.batch = 3, .indexed = true, .padded_state = true}, 7);
    std::vector<Plan> plans = sample_plans(plan_space(d, kArch), 2, 11);
    ASSERT_EQ(plans.size(), 2u);
    const Memory first = run(test, default_plan(d, kArch, 12));
    for (const Plan& plan : plans) {
      const Memory other = run(test, plan);
      EXPECT_TRUE(first.at("state") == other.at("state")) << name(state) << ": " << plan.text();
      if (d.has_state_scale()) {
        EXPECT_TRUE(first.at("state_scale") == other.at("state_scale")) << name(state) << ": " << plan.text();
      }
    }
  }
}

TEST(CpuUpdateRounding, FollowsFromTheSeedAndTheDestinationAlone) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Description d = mamba2({.nheads = 4, .head_dim = 32, .dstate = 64, .ngroups = 1})
                            .state(DType::bf16)
                            .rounding(Stochastic{})
                            .destination_slots();
  const UpdateCase test(d, {.batch = 4, .indexed = true}, 7);
  const Plan plan = default_plan(d, kArch, 16);
  const Memory first = run(test, plan, 41), again = run(test, plan, 41), other = run(test, plan, 42);
  EXPECT_TRUE(first.at("state") == again.at("state"));
  EXPECT_FALSE(first.at("state") == other.at("state")) << "the host changes the seed from step to step";
  // y comes from the state before it is rounded.
  EXPECT_TRUE(first.at("out") == other.at("out"));
}

// Contract, section 6: over the elements that are not stored exactly, what is stored is right on average, and some of
// them are not what rounding to nearest gives.
TEST(CpuUpdateRounding, IsUnbiasedInEveryStoredDtype) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  for (DType state : kStates) {
    const Description d =
        mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1}).state(state).rounding(Stochastic{});
    const UpdateCase test(d, {.batch = 1}, 13);  // 2^17 elements
    Memory after = run(test, default_plan(d, kArch, 16));
    Memory before;
    std::vector<std::byte*> base, base_after;
    for (const KernelCase::Block& block : test.blocks()) before[block.name] = block.before;
    for (const KernelCase::Block& block : test.blocks()) {
      base.push_back(before[block.name].data());
      base_after.push_back(after[block.name].data());
    }
    const UpdateArgs old = test.args(base), now = test.args(base_after);
    double sum = 0, squares = 0, rounded_sum = 0;
    std::int64_t count = 0, unlike = 0;
    const RowSlots slots = row_slots(d, old, 0, read_host);
    for (int h = 0; h < d.nheads; ++h) {
      const HeadResult want = update_reference(d, old, 0, h, slots, read_host);
      const std::int64_t at = std::int64_t{h} * d.head_dim * d.dstate;
      const std::vector<double> stored = stored_values(now.state, at, d.head_dim * d.dstate, read_host);
      for (int i = 0; i < d.head_dim * d.dstate; ++i) {
        const auto j = static_cast<std::size_t>(i);
        const double exact = want.state[j] / (want.scale.empty() ? 1.0 : want.scale[j / 128]);
        const double nearest = rounded(state, exact), unit = ulp(state, exact);
        if (std::abs(nearest - exact) < 1e-3 * unit) continue;  // as it is, but for the kernel's fp32
        const double error = (stored[j] - exact) / unit;
        ASSERT_LT(std::abs(error), 2.0) << name(state);
        sum += error;
        squares += error * error;
        rounded_sum += (nearest - exact) / unit;
        unlike += nearest != stored[j] ? 1 : 0;
        ++count;
      }
    }
    const auto n = static_cast<double>(count);
    ASSERT_GT(count, 1000) << name(state);
    // Bits of a value below the random ones are cut off.
    const double cut = state == DType::f16 ? 0x1p-13 : 0x1p-16;
    EXPECT_LT(std::abs(sum / n), 4 * std::sqrt(squares) / n + cut) << name(state) << "; nearest: " << rounded_sum / n;
    EXPECT_GT(static_cast<double>(unlike) / n, 0.15) << name(state);
    EXPECT_LT(static_cast<double>(unlike) / n, 0.4) << name(state);
  }
}

// ---- thousands of steps ----

// One head of [8, 64], delta 1, x 1: column 0 stays at 100 and gives a row its factor; the other columns move by three
// tenths of the gap between stored numbers a step at first, less what decays.
struct Slow {
  DType state;
  double lost;   // 1 - decay
  double first;  // of the other columns
};
void PrintTo(const Slow& s, std::ostream* out) { *out << name(s.state); }
constexpr int kRows = 8, kColumns = 64, kSteps = 2000;

class SlowDrift {
 public:
  SlowDrift(const Slow& slow, bool by_chance) : slow_(slow) {
    description_ = mamba2({.nheads = 1, .head_dim = kRows, .dstate = kColumns, .ngroups = 1})
                       .state(slow.state)
                       .input(DType::f32)
                       .delta(dsl::dt)
                       .skip(Expr());
    if (by_chance) description_.rounding(Stochastic{});
    const Description& d = description_;
    decay_ = static_cast<double>(std::exp(std::log(static_cast<float>(1 - slow.lost))));
    const double unit = d.has_state_scale() ? kPeak / largest_stored(slow.state) : 1.0;
    first_ = rounded(slow.state, slow.first / unit) * unit;
    gain_ = static_cast<float>(0.3 * ulp(slow.state, first_ / unit) * unit);
    A_ = {static_cast<float>(std::log(decay_))};
    B_.assign(kColumns, static_cast<float>(gain_));
    B_[0] = static_cast<float>(kPeak * (1 - decay_));
    C_.assign(kColumns, 1.0f / (kColumns - 1));
    C_[0] = 0;
    state_.resize(kRows * kColumns * static_cast<std::size_t>(size_bytes(slow.state)));
    scale_.assign(kRows, static_cast<float>(unit));
    for (int i = 0; i < kRows * kColumns; ++i)
      encode(slow.state, state_.data(), i, (i % kColumns == 0 ? kPeak : first_) / unit);
  }

  // What the other columns should hold after so many steps.
  double exact(int steps) const {
    const double kept = std::pow(decay_, steps);
    return first_ * kept + gain_ * (1 - kept) / (1 - decay_);
  }
  // The mean of what they hold.
  double mean() const {
    double sum = 0;
    for (int i = 0; i < kRows * kColumns; ++i)
      if (i % kColumns != 0) sum += value(i);
    return sum / (kRows * (kColumns - 1));
  }
  double y() const {
    double sum = 0;
    for (float v : out_) sum += v;
    return sum / kRows;
  }

  UpdateArgs args() {
    UpdateArgs a;
    a.state = contiguous(state_.data(), slow_.state, {1, 1, kRows, kColumns});
    if (description_.has_state_scale()) a.state_scale = contiguous(scale_.data(), DType::f32, {1, 1, kRows});
    a.x = contiguous(x_.data(), DType::f32, {1, 1, kRows});
    a.dt = contiguous(&dt_, DType::f32, {1, 1});
    a.A = contiguous(A_.data(), DType::f32, {1});
    a.B = contiguous(B_.data(), DType::f32, {1, 1, kColumns});
    a.C = contiguous(C_.data(), DType::f32, {1, 1, kColumns});
    a.out = contiguous(out_.data(), DType::f32, {1, 1, kRows});
    if (std::holds_alternative<Stochastic>(description_.rounding_kind))
      a.rand_seed = contiguous(&seed_, DType::i64, {1});
    return a;
  }
  // A step by the kernel.
  void step(const CpuProgram& program, const Plan& plan, std::int64_t seed) {
    seed_ = seed;
    const auto bytes = [](auto& v) { return reinterpret_cast<std::byte*>(v.data()); };
    std::vector<CpuBuffer> buffers = {
        {.name = "state", .data = state_.data(), .bytes = state_.size(), .writable = true},
        {.name = "state_scale", .data = bytes(scale_), .bytes = 4 * scale_.size(), .writable = true},
        {.name = "out", .data = bytes(out_), .bytes = 4 * out_.size(), .writable = true}};
    if (std::holds_alternative<Stochastic>(description_.rounding_kind) || description_.has_state_scale()) {
      const device_args::UpdateRoundedArgs device = rounded_to_device(args(), Pdl::off);
      program.run(cpu_launch(launch_shape(plan, description_, 1), device, buffers));
    } else {
      const device_args::UpdateArgs device = to_device(args(), Pdl::off);
      program.run(cpu_launch(launch_shape(plan, description_, 1), device, buffers));
    }
  }
  // The same by the double reference, rounded where the kernel rounds.
  void step_reference(std::int64_t seed) {
    seed_ = seed;
    const Description& d = description_;
    const UpdateArgs a = args();
    const HeadResult head = update_reference(d, a, 0, 0, {.live = true, .store = true}, read_host);
    for (int p = 0; p < kRows; ++p) {
      const auto pp = static_cast<std::size_t>(p);
      const double scale = head.scale.empty() ? 1.0 : head.scale[pp];
      scale_[pp] = static_cast<float>(scale);
      out_[pp] = static_cast<float>(head.y[pp]);
      for (int n = 0; n < kColumns; ++n) {
        const double units = head.state[pp * kColumns + static_cast<std::size_t>(n)] / scale;
        encode(d.state_dtype, state_.data(), p * kColumns + n,
               std::holds_alternative<Stochastic>(d.rounding_kind)
                   ? stored_stochastically(d, units, static_cast<std::uint64_t>(seed), 0, 0, p, n)
                   : units);
      }
    }
  }
  double value(int i) const {
    const double unit = description_.has_state_scale() ? scale_[static_cast<std::size_t>(i / kColumns)] : 1.0;
    return decode(slow_.state, state_.data(), i) * unit;
  }
  // Nothing comes in any more.
  void silence() { B_.assign(kColumns, 0.0f); }
  const Description& description() const { return description_; }

 private:
  static constexpr double kPeak = 100;
  Slow slow_;
  Description description_;
  double decay_ = 0, first_ = 0, gain_ = 0;
  std::vector<float> A_, B_, C_, x_ = std::vector<float>(kRows, 1.0f), out_ = std::vector<float>(kRows);
  float dt_ = 1;
  std::int64_t seed_ = 0;
  std::vector<std::byte> state_;
  std::vector<float> scale_;
};

class RoundingDrift : public testing::TestWithParam<Slow> {};
INSTANTIATE_TEST_SUITE_P(States, RoundingDrift,
                         testing::Values(Slow{DType::bf16, 1.0 / 2000, 1}, Slow{DType::f16, 1.0 / 2000, 1},
                                         Slow{DType::i8, 1.0 / 200, 0}, Slow{DType::f8, 1.0 / 200, 1},
                                         Slow{DType::i16, 1.0 / 2000, 0}),
                         [](const auto& param) { return std::string(name(param.param.state)); });

TEST_P(RoundingDrift, Of2000StepsIsWhatNearestLosesAndChanceKeeps) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  for (bool by_chance : {false, true}) {
    SlowDrift drift(GetParam(), by_chance);
    const Plan plan = default_plan(drift.description(), kArch, 1);
    const CpuProgram program = CpuProgram::compile(emit(drift.description(), plan, kArch), {.checks = false});
    const double start = drift.mean(), exact = drift.exact(kSteps);
    for (int step = 0; step < kSteps; ++step) drift.step(program, plan, step);
    if (by_chance) {
      EXPECT_NEAR(drift.mean(), exact, 0.03 * exact);
      EXPECT_NEAR(drift.y(), exact, 0.03 * exact);
    } else {
      EXPECT_NEAR(drift.mean(), start, 1e-3 * exact) << "no step is large enough to be seen";
      EXPECT_GT(std::abs(drift.y() - exact), 0.3 * exact);
    }
  }
}

TEST_P(RoundingDrift, OfTheKernelIsThatOfTheDoubleReferenceStepByStep) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  SlowDrift kernel(GetParam(), true), reference(GetParam(), true);
  const Plan plan = default_plan(kernel.description(), kArch, 1);
  const CpuProgram program = CpuProgram::compile(emit(kernel.description(), plan, kArch), {.checks = false});
  int unlike = 0;
  for (int step = 0; step < 40; ++step) {
    kernel.step(program, plan, step);
    reference.step_reference(step);
    for (int i = 0; i < kRows * kColumns; ++i)
      unlike += std::abs(kernel.value(i) - reference.value(i)) > 1e-4 * std::abs(reference.value(i)) ? 1 : 0;
  }
  // An element in thousands lies so near to the next one that fp32 takes the other side; it stays apart for a while.
  EXPECT_LT(unlike, 40 * kRows * kColumns / 100);
}

// A row that decays to nothing is stored as zeros: a factor that fp32 does not have would make NaN of them.
TEST(CpuUpdateRounding, FaultRow13_ARowThatDecaysToNothingLeavesZeros) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  for (DType state : {DType::i8, DType::f8, DType::i16}) {
    SlowDrift drift({state, 0.9, 1}, true);
    const Plan plan = default_plan(drift.description(), kArch, 1);
    const CpuProgram program = CpuProgram::compile(emit(drift.description(), plan, kArch), {.checks = false});
    drift.silence();
    for (int step = 0; step < 60; ++step) {
      drift.step(program, plan, step);
      for (int i = 0; i < kRows * kColumns; ++i) ASSERT_TRUE(std::isfinite(drift.value(i))) << name(state);
    }
    for (int i = 0; i < kRows * kColumns; ++i) ASSERT_EQ(drift.value(i), 0.0) << name(state);
  }
}

}  // namespace
}  // namespace ssmjit
