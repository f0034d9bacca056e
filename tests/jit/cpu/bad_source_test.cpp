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

TEST_F(CpuBadSource, AnUnrollThatTheOptimiserDoesNotDoIsTakenWithoutAWord) {
  PlantedKernel k(
      "  float v = in[t];\n"
      "#pragma unroll\n"
      "  for (int i = 0; i < static_cast<int>(in[0]); ++i) v += shuffle(v, i);\n"
      "  out[t] = v;\n");
  testing::internal::CaptureStderr();
  EXPECT_TRUE(k.run().clean());
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
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

std::string whole(const std::string& before, const std::string& body) {
  return before + "extern \"C\" __global__ void k(const float* in, float* out) {\n  const int t = thread_index();\n" +
         body + "}\n";
}

TEST_F(CpuBadSource, RecursionIsRefusedWithItsLine) {
  PlantedKernel k("");
  k.source(
      whole("__device__ __noinline__ int deep(int n) {\n  int a[64];\n  for (int i = 0; i < 64; ++i) a[i] = n + i;\n"
            "  const int r = n == 0 ? 1 : deep(n - 1);  // here\n  return a[(r ^ n) & 63] + r;\n}\n",
            "  out[t] = static_cast<float>(deep(static_cast<int>(in[t])));\n"));
  EXPECT_THAT(refusal([&] { k.run(); }), AllOf(HasSubstr(at(k, "// here")), HasSubstr("deep(int) calls itself")));
  k.source(
      whole("__device__ __noinline__ int odd(int n);\n"
            "__device__ __noinline__ int even(int n) { return n == 0 ? 1 : odd(n - 1) + n; }\n"
            "__device__ __noinline__ int odd(int n) { return n == 0 ? 0 : even(n - 1) * n; }  // here\n",
            "  out[t] = static_cast<float>(even(static_cast<int>(in[t])));\n"));
  EXPECT_THAT(refusal([&] { k.run(); }), AllOf(HasSubstr(at(k, "// here")), HasSubstr("even(int) calls itself")));
  k.source(
      whole("typedef int (*Function)(int, void*);\n"
            "__device__ __noinline__ int through(int n, void* f) {\n"
            "  return n == 0 ? 1 : reinterpret_cast<Function>(f)(n - 1, f) + n;  // here\n}\n",
            "  out[t] = static_cast<float>(through(static_cast<int>(in[t]), reinterpret_cast<void*>(through)));\n"));
  EXPECT_THAT(refusal([&] { k.run(); }), HasSubstr(at(k, "// here")));
}

TEST_F(CpuBadSource, TemplatesThatCallTheNextOneAreNoRecursion) {
  PlantedKernel k("");
  k.source(
      whole("template <int N> __device__ __noinline__ float sum(const float* p) {\n"
            "  if constexpr (N == 0) return 0.0f; else return p[N - 1] + sum<N - 1>(p);\n}\n",
            "  out[t] = sum<8>(in);\n"));
  EXPECT_TRUE(k.run().clean());
  EXPECT_EQ(k.out[4], 28);
}

TEST_F(CpuBadSource, StackOfASizeThatOnlyTheRunKnowsIsRefusedWithItsLine) {
  PlantedKernel dynamic(
      "  int* p = static_cast<int*>(__builtin_alloca(static_cast<u64>(in[t]) * 4096));  // here\n"
      "  p[t] = 1;\n  out[t] = static_cast<float>(p[t]);\n");
  EXPECT_THAT(refusal([&] { dynamic.run(); }), AllOf(HasSubstr(at(dynamic, "// here")), HasSubstr("run time")));
  PlantedKernel large(
      "  int a[3000000];  // here\n  a[static_cast<int>(in[t])] = 1;\n"
      "  out[t] = static_cast<float>(a[t]);\n");
  EXPECT_THAT(refusal([&] { large.run(); }), AllOf(HasSubstr(at(large, "// here")), HasSubstr("12000000 bytes")));
}

TEST_F(CpuBadSource, VariablesOfTheModuleThatCanChangeAreRefusedWithALine) {
  PlantedKernel global("");
  global.source(whole("__device__ int counter;\n",
                      "  counter = counter + 1;  // here\n  out[t] = static_cast<float>(counter);\n"));
  EXPECT_THAT(refusal([&] { global.run(); }), AllOf(HasSubstr(at(global, "// here")), HasSubstr("\"counter\"")));
  PlantedKernel local("  static int count = 0;\n  count += 1;  // here\n  out[t] = static_cast<float>(count);\n");
  EXPECT_THAT(refusal([&] { local.run(); }), AllOf(HasSubstr(at(local, "// here")), HasSubstr("\"count\"")));
  PlantedKernel constant("");
  constant.source(whole("__device__ const float table[2] = {3.0f, 4.0f};\n", "  out[t] = table[t & 1] + in[t];\n"));
  EXPECT_TRUE(constant.run().clean());
  EXPECT_EQ(constant.out[3], 7);
}

TEST_F(CpuBadSource, ASourceTooDeepForTheCompilerIsRefusedWithItsLine) {
  PlantedKernel minus("  out[t] =\n" + [] {
    std::string s;
    for (int i = 0; i < 200000; ++i) s += "- ";
    return s;
  }() + "in[t];\n");
  EXPECT_THAT(refusal([&] { minus.run(); }), AllOf(HasSubstr("kernel.cu:4:"), HasSubstr("20000 tokens")));
  PlantedKernel macro("");
  std::string macros = "#define M0 - -\n";
  for (int i = 1; i < 40; ++i)
    macros += "#define M" + std::to_string(i) + " M" + std::to_string(i - 1) + " M" + std::to_string(i - 1) + "\n";
  macro.source(whole(macros, "  out[t] = M39 in[t];  // here\n"));
  EXPECT_THAT(refusal([&] { macro.run(); }), AllOf(HasSubstr(at(macro, "// here")), HasSubstr("20000 tokens")));
  std::string terms = "in[0]";
  for (int i = 0; i < 3000; ++i) terms += " + in[t]";
  PlantedKernel many("  out[t] = " + terms + ";\n");
  EXPECT_TRUE(many.run().clean());
  EXPECT_EQ(many.out[1], 3000);
}

TEST_F(CpuBadSource, ADeepSourceWithinTheLimitsCompilesOnASmallThread) {
  std::string minus;
  for (int i = 0; i < 19000; ++i) minus += "- ";
  PlantedKernel k("  out[t] = " + minus + "in[t];\n");
  EXPECT_TRUE(k.run().clean());
  EXPECT_EQ(k.out[2], 2);
  std::string chain = "  if (in[t] < 0.0f) out[t] = 0.0f;\n";
  for (int i = 0; i < 5000; ++i) chain += "  else if (in[t] == " + std::to_string(i) + ".0f) out[t] = 1.0f;\n";
  PlantedKernel cases(chain);
  cases.options.optimisation = 0;
  const CpuReport report = cases.run();
  EXPECT_TRUE(report.clean()) << report.findings.at(0).text();
  EXPECT_EQ(cases.out[9], 1);
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
