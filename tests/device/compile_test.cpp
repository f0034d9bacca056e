// Every test kernel compiles with NVRTC for every family of architectures.
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/cubin.h>
#include <ssmjit/error.h>

#include "tests/device/test_kernel.h"

namespace ssmjit {
namespace {

TEST(DeviceOperations, CompileForEveryArchitectureWithoutAWarningOrASpill) {
  try {
    nvrtc_version();
  } catch (const Error& e) {
    GTEST_SKIP() << e.what();
  }
  EXPECT_FALSE(TestKernel::all().empty());
  for (const TestKernel* kernel : TestKernel::all())
    for (const char* arch : {"sm_80", "sm_90a", "sm_100a", "sm_103a", "sm_120a"}) {
      try {
        const Cubin cubin = compile(kernel->source(Arch::parse(arch)), {.use_cache = false});
        EXPECT_FALSE(cubin.image.empty());
        EXPECT_THAT(cubin.log, testing::Not(testing::HasSubstr("warning"))) << kernel->name() << " " << arch;
        EXPECT_EQ(cubin.spill_bytes, 0) << kernel->name() << " " << arch;
      } catch (const Error& e) {
        ADD_FAILURE() << kernel->name() << " " << arch << ": " << e.what();
      }
    }
}

}  // namespace
}  // namespace ssmjit
