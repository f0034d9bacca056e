// verify() on the CPU executor: the plans of real models are right and without a finding, planted bugs are found by
// line.
#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/cpu.h>
#include <ssmjit/error.h>
#include <ssmjit/source.h>
#include <ssmjit/table.h>
#include <ssmjit/tune.h>

namespace ssmjit {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;

#define NEEDS_EXECUTOR() \
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing

constexpr std::size_t kSample = 2;
constexpr int kRingHeads = 4;  // of a group

class ShippedModel : public testing::TestWithParam<std::string> {};

// A few plans a kernel by a fixed seed, of several tokens and of layers, whose steps are long, with few heads a group;
// every plan and head when SSMJIT_TEST_ALL is set.
TEST_P(ShippedModel, HasPlansThatAreRightOnTheCpu) {
  NEEDS_EXECUTOR();
  VerifyOptions options;
  options.on = VerifyOn::cpu;
  const bool all = std::getenv("SSMJIT_TEST_ALL") != nullptr;
  for (auto& [name, d] : load_model(GetParam()).kernels) {
    if (!all && (d.token_count > 1 || d.op() == Op::layer || d.op() == Op::ring)) {
      const int heads = std::min(d.stores_every_token() ? 1 : kRingHeads, d.heads_per_group());
      if (d.norm) d.norm->group_size = d.norm->group_size * heads / d.heads_per_group();
      d.nheads = d.ngroups * heads;
    }
    // Other tests have small layers, and updates of several tokens, of every kind.
    const std::size_t some = d.op() == Op::layer || d.stores_every_token() ? 1 : kSample;
    const std::size_t plans = all ? 0 : some;
    for (const Verdict& v : verify(d, sample_plans(plan_space(d, options.cpu.arch), plans, 20), options))
      EXPECT_EQ(v.outcome, Outcome::ok) << name << ", " << v.plan.text() << ": " << testing::PrintToString(v.failures);
  }
}

std::string as_name(const testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  for (char& c : name)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  return name;
}
INSTANTIATE_TEST_SUITE_P(Every, ShippedModel, testing::ValuesIn(shipped_models()), as_name);

// An emitted kernel with one place of its text changed.
class PlantedBug : public testing::Test {
 protected:
  static Description description() {
    return mamba2({.nheads = 8, .head_dim = 32, .dstate = 64, .ngroups = 2}).state(DType::bf16);
  }
  static Plan plan(const std::string& changes) {
    return Plan::parse(
        "block_m=16,warps=2,lanes_per_row=8,streaming=true,early_state=false,min_blocks_per_sm=1," + changes, Plan{});
  }
  // Line 1 is the banner's first.
  static int line_of(const std::string& text, const std::string& part) {
    const std::size_t at = text.find(part);
    return 1 + static_cast<int>(std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n'));
  }
  Verdict verify_with(const Plan& p, const std::string& right, const std::string& wrong) {
    VerifyOptions options;
    options.on = VerifyOn::cpu;
    options.source = emit(description(), p, options.cpu.arch).text;
    options.source_name = "mine.cu";
    const std::size_t at = options.source.find(right);
    EXPECT_NE(at, std::string::npos) << right;
    line_ = line_of(options.source, right);
    options.source.replace(at, right.size(), wrong);
    return verify(description(), {p}, options).front();
  }
  std::string place() const { return "mine.cu:" + std::to_string(line_); }

  int line_ = 0;
};

constexpr const char* kDirect = "heads_per_block=1,stages=1,state_path=direct";
constexpr const char* kCpAsync = "heads_per_block=2,stages=2,state_path=cp_async";

TEST_F(PlantedBug, NothingChangedIsRight) {
  NEEDS_EXECUTOR();
  const Verdict v =
      verify_with(plan(kCpAsync), "copy_async_wait<Cfg::kStages - 1>();", "copy_async_wait<Cfg::kStages - 1>();");
  EXPECT_EQ(v.outcome, Outcome::ok) << testing::PrintToString(v.failures);
  EXPECT_GT(v.y_error, 0);
}

TEST_F(PlantedBug, WrongMathsIsWrongAndNoFault) {
  NEEDS_EXECUTOR();
  const Verdict v = verify_with(plan(kDirect), "const float u = delta * x[r];", "const float u = x[r];");
  EXPECT_EQ(v.outcome, Outcome::wrong);
  EXPECT_THAT(v.failures, Contains(HasSubstr("state")));
}

TEST_F(PlantedBug, ACopyThatIsNotWaitedForIsNamed) {
  NEEDS_EXECUTOR();
  const Verdict v = verify_with(plan(kCpAsync), "copy_async_wait<Cfg::kStages - 1>();", ";");
  EXPECT_EQ(v.outcome, Outcome::faulty);
  EXPECT_THAT(v.failures, Contains(AllOf(HasSubstr("unwaited copy"), HasSubstr("mine.cu:"), HasSubstr("thread"))));
}

TEST_F(PlantedBug, AnEarlyPlanThatNeverWaitsForTheLaunchInFrontIsNamed) {
  NEEDS_EXECUTOR();
  Plan early = plan(kDirect);
  early.early_state = true;
  const Verdict v = verify_with(early, "    request_state();\n    grid_dependency_wait();\n", "    request_state();\n");
  EXPECT_EQ(v.outcome, Outcome::faulty);
  EXPECT_THAT(v.failures, Contains(HasSubstr("before the wait")));
}

TEST_F(PlantedBug, APlanThatDoesNotWaitFirstIsNamed) {
  NEEDS_EXECUTOR();
  const Verdict v =
      verify_with(plan(kDirect), "if (!Cfg::kEarlyState || args.pdl == kPdlWaitFirst) grid_dependency_wait();", ";");
  EXPECT_EQ(v.outcome, Outcome::faulty);
  EXPECT_THAT(v.failures, Contains(HasSubstr("before the wait")));
}

TEST_F(PlantedBug, TwoBlocksThatWriteTheSameRowsAreARaceInTheState) {
  NEEDS_EXECUTOR();
  const Verdict v = verify_with(plan(kDirect), "(block_x() % S::kTiles) * Cfg::kBlockM + warp", "warp");
  EXPECT_EQ(v.outcome, Outcome::faulty);
  EXPECT_THAT(v.failures, Contains(AllOf(HasSubstr("race"), HasSubstr("mine.cu:"), HasSubstr(" of state"))));
}

TEST_F(PlantedBug, AStoreOneHeadTooFarIsOutOfBounds) {
  NEEDS_EXECUTOR();
  const Verdict v =
      verify_with(plan(kDirect), "narrow(v, out[own_row + i]);", "narrow(v, out[own_row + i + Cfg::kHeadDim]);");
  EXPECT_EQ(v.outcome, Outcome::faulty);
  EXPECT_THAT(v.failures, Contains(AllOf(HasSubstr("out of bounds"), HasSubstr(place()))));
}

TEST_F(PlantedBug, AnOutputThatIsReadBeforeItIsWrittenIsNamed) {
  NEEDS_EXECUTOR();
  const Verdict v = verify_with(plan(kDirect), "float v = y[i];", "float v = y[i] + 0.0f * widen(out[own_row + i]);");
  EXPECT_EQ(v.outcome, Outcome::faulty);
  EXPECT_THAT(v.failures, Contains(AllOf(HasSubstr("uninitialised"), HasSubstr(place()))));
}

TEST_F(PlantedBug, WithoutTheRaceCheckOnlyValuesAreJudged) {
  NEEDS_EXECUTOR();
  VerifyOptions options;
  options.on = VerifyOn::cpu;
  options.cpu.races = false;
  options.source = emit(description(), plan(kDirect), options.cpu.arch).text;
  const std::string right = "float v = y[i];";
  options.source.replace(options.source.find(right), right.size(),
                         "float v = y[i] + 0.0f * (out[own_row + i].bits != 1);");
  const Verdict v = verify(description(), {plan(kDirect)}, options).front();
  EXPECT_EQ(v.outcome, Outcome::ok) << testing::PrintToString(v.failures);
}

TEST_F(PlantedBug, ATextThatDoesNotCompileIsAVerdictWithTheLine) {
  NEEDS_EXECUTOR();
  const Verdict v = verify_with(plan(kDirect), "const float u = delta * x[r];", "const float u = delta * nowhere;");
  EXPECT_EQ(v.outcome, Outcome::not_compiled);
  EXPECT_THAT(v.failures, Contains(AllOf(HasSubstr(place()), HasSubstr("nowhere"))));
}

TEST(CpuVerifyOptions, APlanThatIsNotLegalIsRefusedBeforeAnythingRuns) {
  NEEDS_EXECUTOR();
  VerifyOptions options;
  options.on = VerifyOn::cpu;
  const Description d = mamba2({.nheads = 8, .head_dim = 32, .dstate = 64, .ngroups = 2});
  Plan plan = default_plan(d, options.cpu.arch, 8);
  plan.block_m = 24;
  EXPECT_THROW(verify(d, {plan}, options), Error);
}

TEST(CpuVerifyOptions, NoScheduleIsRefused) {
  NEEDS_EXECUTOR();
  VerifyOptions options;
  options.on = VerifyOn::cpu;
  options.cpu.schedules.clear();
  const Description d = mamba2({.nheads = 8, .head_dim = 32, .dstate = 64, .ngroups = 2});
  try {
    verify(d, {default_plan(d, options.cpu.arch, 8)}, options);
    FAIL() << "verified";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::invalid);
    EXPECT_THAT(e.what(), HasSubstr("forward, reverse, random"));
  }
}

TEST(CpuVerifyOptions, ProgressReachesTheEndAndComesFromTheCaller) {
  NEEDS_EXECUTOR();
  VerifyOptions options;
  options.on = VerifyOn::cpu;
  std::int64_t last = 0, total = 0;
  options.progress = [&](const Progress& p) { last = p.done, total = p.total; };
  const Description d = mamba2({.nheads = 4, .head_dim = 16, .dstate = 32, .ngroups = 2});
  const std::vector<Plan> plans = sample_plans(plan_space(d, options.cpu.arch), 4, 1);
  EXPECT_EQ(verify(d, plans, options).size(), plans.size());
  EXPECT_EQ(last, static_cast<std::int64_t>(plans.size()));
  EXPECT_EQ(total, last);
}

TEST(CpuSchedules, AreReadByNameAndAWrongOneIsRefused) {
  for (CpuSchedule s : {CpuSchedule::forward, CpuSchedule::reverse, CpuSchedule::random})
    EXPECT_EQ(parse_cpu_schedule(name(s)), s);
  EXPECT_THROW(parse_cpu_schedule("backward"), Error);
}

}  // namespace
}  // namespace ssmjit
