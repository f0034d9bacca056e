// Sources and launches that can't run: an error with the place, and the process goes on.
#include <atomic>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/error.h>

#include "planted_kernel.h"

namespace ssmjit {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class CpuBadSource : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  }
};

template <class Action>
std::string refusal(const Action& action, ErrorKind kind = ErrorKind::invalid) {
  try {
    action();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), kind) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "nothing was refused";
  return {};
}

std::string at(const PlantedKernel& k, const std::string& mark) {
  return "kernel.cu:" + std::to_string(k.line(mark)) + ":";
}

TEST_F(CpuBadSource, ASourceThatDoesNotCompileIsRefusedWithItsLine) {
  PlantedKernel k("  out[t] = missing_name;  // here\n");
  EXPECT_THAT(refusal([&] { k.run(); }), AllOf(HasSubstr(at(k, "// here")), HasSubstr("missing_name")));
  PlantedKernel good("  out[t] = in[t];\n");
  EXPECT_TRUE(good.run().clean());
}

TEST_F(CpuBadSource, AnIntrinsicOfTheGpuIsRefusedWithItsLine) {
  PlantedKernel k("  out[t] = __shfl_sync(0xffffffffu, in[t], 0);  // here\n");
  EXPECT_THAT(refusal([&] { k.run(); }), AllOf(HasSubstr(at(k, "// here")), HasSubstr("__shfl_sync")));
}

TEST_F(CpuBadSource, InlineAssemblyIsRefusedWithItsLine) {
  PlantedKernel k("  asm volatile(\"bar.sync 0;\" ::: \"memory\");  // here\n  out[t] = in[t];\n");
  EXPECT_THAT(refusal([&] { k.run(); }), AllOf(HasSubstr(at(k, "// here")), HasSubstr("inline assembly")));
  PlantedKernel operand("  float v;\n  asm(\"mov.f32 %0, %1;\" : \"=f\"(v) : \"f\"(in[t]));  // here\n  out[t] = v;\n");
  EXPECT_THAT(refusal([&] { operand.run(); }), HasSubstr(at(operand, "// here")));
}

TEST_F(CpuBadSource, AnIncludeIsRefused) {
  PlantedKernel k("  out[t] = in[t];\n");
  k.text = "#include <cmath>\n" + k.text;
  EXPECT_THAT(refusal([&] { k.run(); }), AllOf(HasSubstr("kernel.cu:1:"), HasSubstr("cmath")));
}

TEST_F(CpuBadSource, MoreSharedMemoryThanTheArchitectureHasIsRefused) {
  PlantedKernel fixed("  __shared__ float tile[60000];\n  tile[t] = in[t];\n  out[t] = tile[t];\n");
  EXPECT_THAT(refusal([&] { fixed.run(); }),
              AllOf(HasSubstr("kernel.cu:1:"), HasSubstr("240000 bytes"), HasSubstr("232448")));
  PlantedKernel dynamic("  extern __shared__ float tile[];\n  tile[t] = in[t];\n  out[t] = tile[t];\n");
  dynamic.launch.smem_bytes = 240000;
  EXPECT_THAT(refusal([&] { dynamic.run(); }), AllOf(HasSubstr("kernel.cu:1:"), HasSubstr("240000 dynamic")));
}

TEST_F(CpuBadSource, AnUndefinedFunctionIsNamed) {
  PlantedKernel k("  out[t] = in[t];\n");
  k.source(
      "__device__ float nowhere(float);\n"
      "extern \"C\" __global__ void k(const float* in, float* out) { out[0] = nowhere(in[0]); }\n");
  EXPECT_THAT(refusal([&] { k.run(); }), HasSubstr("kernel.cu:2: nowhere(float) is called and defined nowhere"));
}

TEST_F(CpuBadSource, LaunchesThatMakeNoSenseAreRefused) {
  const auto with = [](const auto& change) {
    return refusal([&] {
      PlantedKernel k("  out[t] = in[t];\n");
      change(k.launch);
      k.run();
    });
  };
  EXPECT_THAT(with([](CpuLaunch& l) { l.entry = "other"; }), HasSubstr("\"other\""));
  EXPECT_THAT(with([](CpuLaunch& l) { l.grid_x = 0; }), HasSubstr("0 x 1"));
  EXPECT_THAT(with([](CpuLaunch& l) { l.block_threads = 1025; }), HasSubstr("1025"));
  EXPECT_THAT(with([](CpuLaunch& l) { l.args_bytes = 8; }), AllOf(HasSubstr("8 bytes"), HasSubstr("takes 16")));
  EXPECT_THAT(with([](CpuLaunch& l) { l.cluster = 2; }), HasSubstr("clusters of 2"));
}

TEST_F(CpuBadSource, ParametersOfAnySizeArePassed) {
  PlantedKernel k("");
  k.source(R"(struct Small { float a; short b; };
extern "C" __global__ void k(char c, const __grid_constant__ Small s, double d, float* out) {
  out[thread_index()] = static_cast<float>(c) + s.a + static_cast<float>(s.b) + static_cast<float>(d);
}
)");
  struct {
    char c = 1;
    struct {
      float a = 20;
      short b = 300;
    } s;
    double d = 4000;
    float* out;
  } args;
  args.out = k.out.data();
  k.launch.args = &args;
  k.launch.args_bytes = sizeof(args);
  EXPECT_TRUE(k.run().clean());
  EXPECT_EQ(k.out[31], 4321.0f);
}

TEST_F(CpuBadSource, ALargeLocalArrayFitsTheStack) {
  PlantedKernel k(R"(  volatile float local[40000];
  for (int i = 0; i < 40000; ++i) local[i] = in[t];
  out[t] = local[39999];
)");
  k.launch.timeout_s = 60;
  EXPECT_TRUE(k.run().clean());
  EXPECT_EQ(k.out[3], 3);
}

TEST_F(CpuBadSource, ProgramsCompileAndRunSideBySide) {
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i)
    threads.emplace_back([&, i] {
      for (int round = 0; round < 3; ++round) {
        PlantedKernel k("  out[t] = in[t] + " + std::to_string(i) + ".0f;\n");
        if (k.run().clean() && k.out[5] == static_cast<float>(5 + i)) ++right;
      }
    });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(right, 6);
}

TEST_F(CpuBadSource, BlocksRunOnSeveralCores) {
  for (bool races : {false, true}) {
    PlantedKernel k("  const int i = block_x() * 32 + t;\n  out[i] = in[i];\n", 32 * 64);
    k.launch.grid_x = 64;
    k.launch.threads = 3;
    k.launch.races = races;
    const CpuReport report = k.run(CpuSchedule::random);
    EXPECT_TRUE(report.clean());
    EXPECT_EQ(k.out, k.in);
  }
}

TEST_F(CpuBadSource, DebugModeRunsTheSameAndLeavesTheSourceForGdb) {
  PlantedKernel k("  out[t] = in[t] * 2.0f;\n  sync_warp();\n");
  const std::string folder = testing::TempDir() + "/ssmjit_cpu_debug";
  k.options.debug = true;
  k.options.debug_folder = folder;
  EXPECT_TRUE(k.run().clean());
  EXPECT_EQ(k.out[7], 14);
  std::FILE* file = std::fopen((folder + "/kernel.cu").c_str(), "r");
  ASSERT_NE(file, nullptr);
  std::fclose(file);
}

}  // namespace
}  // namespace ssmjit
