// Emitted norm kernels on the CPU executor: right by the double reference, and without a finding under any schedule.
#include <cmath>
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
#include "autotune/reference/norm_reference.h"

namespace ssmjit {
namespace {

struct Case {
  std::string name;
  Description description;
  std::vector<std::string> plans;  // changes of the default one
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

Description of(int channels, int group_size) {
  return gated_norm({.channels = channels, .group_size = group_size, .gate_expr = silu(dsl::z)});
}

std::vector<Case> cases() {
  Description last = of(1536, 512);
  last.norm->before_gate = true;
  last.norm->has_bias = true;
  Description plain = of(2048, 1024).weights(DType::f32).tokens(3);
  plain.norm->gate_expr = Expr();
  Description other_gate = of(512, 128).input(DType::f16).weights(DType::f16);
  other_gate.norm->gate_expr = sigmoid(dsl::z);
  return {
      {"nano", of(4096, 512), {"warps=1", "warps=2", "warps=4,heads_per_block=4", "warps=4,heads_per_block=2"}},
      {"super", of(2048, 1024), {"warps=1", "warps=4,streaming=false", "warps=4,early_state=true"}},
      {"nemotron_9b", of(3840, 1280), {"warps=2", "warps=4", "warps=5", "warps=10,heads_per_block=2"}},
      {"one_group_of_5120", of(5120, 0), {"warps=4", "warps=8", "warps=20,early_state=true"}},
      {"one_group_of_16384", of(16384, 0), {"warps=16", "warps=32"}},
      {"gate_last_with_bias", last, {"warps=1", "warps=2,early_state=true", "warps=4,heads_per_block=2"}},
      {"without_gate_3_tokens", plain, {"warps=1", "warps=4,heads_per_block=2"}},
      {"sigmoid_in_fp16", other_gate, {"warps=1", "warps=4,heads_per_block=4"}},
      {"fp32", of(1024, 512).input(DType::f32).weights(DType::f32), {"warps=1,heads_per_block=1", "warps=4"}},
      {"fp32_weights_of_bf16", of(768, 256).weights(DType::f32), {"warps=1", "warps=2,heads_per_block=2"}},
      {"bf16_weights_of_fp32", of(768, 256).input(DType::f32), {"warps=1", "warps=2"}},
      {"odd_group_anywhere",
       of(303, 101).unaligned_rows().tokens(2),
       {"warps=1", "warps=2,early_state=true", "warps=4"}},
      {"small_groups", of(80, 8), {"warps=1", "warps=8,heads_per_block=8"}},
  };
}

class CpuNorm : public testing::TestWithParam<Case> {};

TEST_P(CpuNorm, IsRightAndWithoutAFindingUnderEverySchedule) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Case& c = GetParam();
  VerifyOptions options;
  options.on = VerifyOn::cpu;
  std::vector<Plan> plans;
  for (const std::string& changes : c.plans)
    plans.push_back(Plan::parse("heads_per_block=1," + changes, default_plan(c.description, options.cpu.arch, 8)));
  for (const Verdict& v : verify(c.description, plans, options))
    EXPECT_EQ(v.outcome, Outcome::ok) << v.plan.text() << ": " << testing::PrintToString(v.failures);
}

INSTANTIATE_TEST_SUITE_P(Plans, CpuNorm, testing::ValuesIn(cases()),
                         [](const auto& param) { return param.param.name; });

// Rows of one group in fp16 on the CPU; what they hold afterwards.
std::vector<double> norm_of(const std::vector<double>& x, const std::vector<double>& z, double weight, int rows = 1) {
  const auto all = static_cast<std::int64_t>(x.size()), n = all / rows;
  const Description d = of(static_cast<int>(n), 0).input(DType::f16).weights(DType::f32);
  const Arch arch;
  const Plan plan = default_plan(d, arch, 1);
  std::vector<std::byte> of_x(x.size() * 2), of_z(x.size() * 2), of_out(x.size() * 2), of_weight(x.size() * 4);
  for (std::int64_t i = 0; i < all; ++i) {
    encode(DType::f16, of_x.data(), i, x[static_cast<std::size_t>(i)]);
    encode(DType::f16, of_z.data(), i, z[static_cast<std::size_t>(i)]);
    encode(DType::f32, of_weight.data(), i, weight);
  }
  NormArgs args;
  args.x = contiguous(of_x.data(), DType::f16, {rows, n});
  args.z = contiguous(of_z.data(), DType::f16, {rows, n});
  args.weight = contiguous(of_weight.data(), DType::f32, {n});
  args.out = contiguous(of_out.data(), DType::f16, {rows, n});
  EXPECT_THAT(Kernel::problems(d, args), testing::IsEmpty());
  const device_args::NormArgs device = to_device(d, args, Pdl::off);
  const CpuReport report = CpuProgram::compile(emit(d, plan, arch))
                               .run(cpu_launch(launch_shape(plan, d, rows), device,
                                               {{.name = "x", .data = of_x.data(), .bytes = of_x.size()},
                                                {.name = "z", .data = of_z.data(), .bytes = of_z.size()},
                                                {.name = "weight", .data = of_weight.data(), .bytes = of_weight.size()},
                                                {.name = "out",
                                                 .data = of_out.data(),
                                                 .bytes = of_out.size(),
                                                 .writable = true,
                                                 .initialised = false}}));
  for (const CpuFinding& f : report.findings) ADD_FAILURE() << f.text();
  return stored_values(args.out, 0, static_cast<int>(all), read_host);
}

TEST(CpuNormFaults, Row11_NanInADummyRowReachesNoOtherRow) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  std::vector<double> x(3 * 128, 0.5), z(3 * 128, 1.0);
  const std::vector<double> clean = norm_of(x, z, 1, 3);
  for (std::size_t i = 128; i < 256; ++i) x[i] = z[i] = i % 2 == 0 ? NAN : INFINITY;
  const std::vector<double> dirty = norm_of(x, z, 1, 3);
  for (std::size_t i = 0; i < x.size(); ++i)
    if (i / 128 != 1) {
      EXPECT_EQ(dirty[i], clean[i]) << i;
    }
}

TEST(CpuNormFaults, Row14_AnOutputBeyondTheLargestFp16IsInfinityNeverNaN) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  std::vector<double> x(256, 0.001), z(256, 4.0);
  x[3] = 30;
  x[4] = -30;
  const std::vector<double> y = norm_of(x, z, 60000);
  EXPECT_EQ(y[3], INFINITY);
  EXPECT_EQ(y[4], -INFINITY);
  EXPECT_NEAR(y[5], 60000 * 0.001 / 30 * std::sqrt(128), 0.05);
}

TEST(CpuNormFaults, Row13_ExtremesOfTheInputsGiveNoNaN) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  std::vector<double> x(256), z(256);
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = i % 3 == 0 ? 65504 : i % 3 == 1 ? -6e-8 : 0;
    z[i] = i % 4 == 0 ? 65504 : i % 4 == 1 ? -65504 : i % 4 == 2 ? -90 : 88;
  }
  for (double v : norm_of(x, z, 1)) EXPECT_TRUE(std::isfinite(v)) << v;
  for (double v : norm_of(std::vector<double>(256, 0.0), z, 1)) EXPECT_EQ(v, 0);
}

}  // namespace
}  // namespace ssmjit
