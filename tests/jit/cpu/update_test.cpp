// Emitted update kernels on the CPU executor: right by the double reference, and without a finding under any schedule.
#include <ctime>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/description.h>
#include <ssmjit/plan.h>
#include <ssmjit/source.h>
#include <ssmjit/tune.h>

#include "autotune/cpu_verify.h"
#include "autotune/update_case.h"

namespace ssmjit {
namespace {

struct Case {
  std::string name;
  Description description;
  std::string plan;  // changes of the default one
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

Description tp8() { return mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1}); }

std::vector<Case> cases() {
  const Description small = mamba2({.nheads = 8, .head_dim = 32, .dstate = 64, .ngroups = 2});
  const auto with = [](Description d, DType state, DType input) { return d.state(state).input(input); };
  const std::string ring = "block_m=16,warps=2,lanes_per_row=8,heads_per_block=2,stages=2,";
  return {
      {"direct_fp32", with(small, DType::f32, DType::bf16), "block_m=8,warps=1,lanes_per_row=8"},
      {"direct_bf16_ahead", with(small, DType::bf16, DType::bf16), ring + "state_path=direct"},
      {"direct_fp16", with(small, DType::f16, DType::f16), "block_m=16,warps=2,lanes_per_row=8"},
      {"cp_async_bf16", with(small, DType::bf16, DType::bf16), ring + "state_path=cp_async"},
      {"cp_async_fp32", with(small, DType::f32, DType::f32), ring + "state_path=cp_async"},
      {"cp_async_fp16", with(small, DType::f16, DType::f16), ring + "state_path=cp_async"},
      {"bulk_bf16", with(small, DType::bf16, DType::bf16), ring + "state_path=bulk"},
      {"bulk_fp32_gate", with(small, DType::f32, DType::bf16).gate(silu(dsl::z)), ring + "state_path=bulk"},
      {"bulk_fp16_destination", with(small, DType::f16, DType::bf16).destination_slots(true), ring + "state_path=bulk"},
      {"direct_unaligned_ragged",
       mamba2({.nheads = 6, .head_dim = 40, .dstate = 96, .ngroups = 2}).state(DType::bf16).unaligned_rows(), ""},
  };
}

// The case's blocks in the executor's memory, and a launch over them.
class Launched {
 public:
  explicit Launched(const UpdateCase& c, Pdl pdl = Pdl::off) : case_(c) {
    for (const UpdateCase::Block& block : c.blocks()) memory_.push_back(block.before);
    std::vector<std::byte*> base;
    for (std::vector<std::byte>& m : memory_) base.push_back(m.data());
    args_ = to_device(c.args(base), pdl);
  }
  CpuReport run(const CpuProgram& program, const LaunchShape& shape, CpuSchedule schedule) {
    std::vector<CpuBuffer> buffers;
    for (std::size_t i = 0; i < memory_.size(); ++i) {
      memory_[i] = case_.blocks()[i].before;
      buffers.push_back(cpu_buffer(case_.blocks()[i], memory_[i]));
    }
    CpuLaunch launch = cpu_launch(shape, args_, std::move(buffers));
    launch.schedule = schedule;
    return program.run(launch);
  }
  CaseResult check() const { return case_.check(memory_); }

 private:
  const UpdateCase& case_;
  std::vector<std::vector<std::byte>> memory_;
  device_args::UpdateArgs args_;
};

class CpuUpdate : public testing::TestWithParam<Case> {};

TEST_P(CpuUpdate, IsRightAndWithoutAFindingUnderEverySchedule) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Case& c = GetParam();
  const Arch arch = Arch::parse("sm_90a");
  const Plan plan = Plan::parse(c.plan, default_plan(c.description, arch, 16));
  const CpuProgram program = CpuProgram::compile(emit(c.description, plan, arch));
  std::uint64_t seed = 1;
  for (const CaseLayout& layout : standard_layouts(c.description, 2)) {
    const UpdateCase test(c.description, layout, seed++);
    Launched launched(test);
    for (CpuSchedule schedule : {CpuSchedule::forward, CpuSchedule::reverse, CpuSchedule::random}) {
      const CpuReport report = launched.run(program, launch_shape(plan, c.description, layout.batch), schedule);
      for (const CpuFinding& f : report.findings) ADD_FAILURE() << layout.name() << ": " << f.text();
      for (const std::string& f : launched.check().failures) ADD_FAILURE() << layout.name() << ": " << f;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Plans, CpuUpdate, testing::ValuesIn(cases()),
                         [](const auto& param) { return param.param.name; });

TEST(CpuUpdateDependent, AKernelThatOvertakesTheInputsProducerUsesNothingOfItBeforeTheWait) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Arch arch = Arch::parse("sm_90a");
  const Description description =
      mamba2({.nheads = 8, .head_dim = 32, .dstate = 64, .ngroups = 2}).state(DType::bf16).destination_slots(true);
  for (const char* path : {"direct", "cp_async", "bulk"}) {
    for (bool early_state : {true, false}) {
      SCOPED_TRACE(std::string(path) + (early_state ? ", early state" : ", wait first"));
      const Plan plan = Plan::parse(std::string("block_m=16,warps=2,lanes_per_row=8,heads_per_block=2,stages=2,") +
                                        "state_path=" + path + ",early_state=" + (early_state ? "true" : "false"),
                                    default_plan(description, arch, 16));
      Source source = emit(description, plan, arch);
      const UpdateCase test(description, {.batch = 3, .indexed = true, .pads = true}, 1);
      Launched launched(test, early_state ? Pdl::early_state : Pdl::wait_first);
      const CpuReport right =
          launched.run(CpuProgram::compile(source), launch_shape(plan, description, 3), CpuSchedule::random);
      for (const CpuFinding& f : right.findings) ADD_FAILURE() << f.text();
      for (const std::string& f : launched.check().failures) ADD_FAILURE() << f;

      const std::string call = "    grid_dependency_wait();";
      const std::size_t at = source.text.find(call);
      for (std::size_t i = at; i != std::string::npos; i = source.text.find(call, i))
        source.text.replace(i, call.size(), "");
      for (std::size_t i; (i = source.text.find(") grid_dependency_wait();")) != std::string::npos;)
        source.text.replace(i, 25, ") {}");
      const CpuReport wrong =
          launched.run(CpuProgram::compile(source), launch_shape(plan, description, 3), CpuSchedule::random);
      EXPECT_FALSE(wrong.clean());
      for (const CpuFinding& f : wrong.findings) EXPECT_EQ(f.fault, CpuFault::early) << f.text();
    }
  }
}

TEST(CpuUpdateSample, PlansOfTp8AreRightAndWithoutAFinding) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Arch arch = Arch::parse("sm_90a");
  std::uint64_t seed = 1;
  for (DType state : {DType::f32, DType::bf16}) {
    const Description description = tp8().state(state);
    for (const Plan& plan : sample_plans(plan_space(description, arch), 5, seed)) {
      const CpuProgram program = CpuProgram::compile(emit(description, plan, arch));
      const UpdateCase test(description, {.batch = 2, .indexed = true}, ++seed);
      Launched launched(test);
      const CpuReport report = launched.run(program, launch_shape(plan, description, 2), CpuSchedule::random);
      for (const CpuFinding& f : report.findings) ADD_FAILURE() << plan.text() << ": " << f.text();
      for (const std::string& f : launched.check().failures) ADD_FAILURE() << plan.text() << ": " << f;
    }
  }
}

TEST(CpuUpdateTime, OnePlanOfTp8CompilesAndRunsUnderThreeSchedulesInTime) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Description description = tp8();
  const Arch arch = Arch::parse("sm_90a");
  const Plan plan = default_plan(description, arch, 32);
  const UpdateCase test(description, {.batch = 2}, 1);
  Launched launched(test);
  // Time of the processor, not of the clock: others may be using the machine.
  const auto now = [] { return 1e3 * static_cast<double>(std::clock()) / CLOCKS_PER_SEC; };
  double best = 1e9;
  for (int attempt = 0; attempt < 5; ++attempt) {
    const double start = now();
    const CpuProgram program = CpuProgram::compile(emit(description, plan, arch));
    const double compiled = now();
    for (CpuSchedule schedule : {CpuSchedule::forward, CpuSchedule::reverse, CpuSchedule::random})
      EXPECT_TRUE(launched.run(program, launch_shape(plan, description, 2), schedule).clean());
    RecordProperty("compile_ms_" + std::to_string(attempt), std::to_string(compiled - start));
    RecordProperty("run_ms_" + std::to_string(attempt), std::to_string(now() - compiled));
    best = std::min(best, now() - start);
  }
#if defined(NDEBUG) && !defined(__SANITIZE_ADDRESS__)
  EXPECT_LT(best, 250);
#else
  EXPECT_LT(best, 2500) << "without optimisation or with sanitizers it takes several times as long";
#endif
}

TEST(CpuUpdateDebug, AnEmittedKernelRunsUnoptimisedToo) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Description description = mamba2({.nheads = 4, .head_dim = 32, .dstate = 64, .ngroups = 1}).state(DType::bf16);
  const Arch arch = Arch::parse("sm_90a");
  const Plan plan = default_plan(description, arch, 4);
  CpuCompileOptions options;
  options.debug = true;
  options.debug_folder = testing::TempDir() + "/ssmjit_cpu_debug_update";
  const CpuProgram program = CpuProgram::compile(emit(description, plan, arch), options);
  const UpdateCase test(description, {.batch = 1}, 1);
  Launched launched(test);
  const CpuReport report = launched.run(program, launch_shape(plan, description, 1), CpuSchedule::forward);
  for (const CpuFinding& f : report.findings) ADD_FAILURE() << f.text();
  for (const std::string& f : launched.check().failures) ADD_FAILURE() << f;
}

}  // namespace
}  // namespace ssmjit
