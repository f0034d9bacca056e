#include "jit/driver.h"

#include <filesystem>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/device.h>
#include <ssmjit/error.h>

#include "tests/heuristics/scoped_environment.h"
#include "tests/jit/scratch_folder.h"
#include "tests/jit/stub_driver.h"

namespace ssmjit {
namespace {

using testing::HasSubstr;

Error error_of(auto&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "nothing was thrown";
  return Error(ErrorKind::internal, "");
}

#define NEED_STUB(stub) \
  if (!stub.ready()) GTEST_SKIP() << "the stub driver was not built (SSMJIT_STUB_LIBCUDA)"

TEST(DeviceKey, IsShortAndTellsSpeedsApart) {
  EXPECT_EQ(device_key("NVIDIA H200"), "h200");
  EXPECT_EQ(device_key("NVIDIA H100 80GB HBM3"), "h100");
  EXPECT_EQ(device_key("NVIDIA GeForce RTX 4090"), "rtx-4090");
  EXPECT_EQ(device_key("NVIDIA A100-SXM4-80GB"), "a100");
  EXPECT_EQ(device_key("NVIDIA GH200 480GB"), "gh200");
  EXPECT_EQ(device_key("NVIDIA H100 PCIe"), "h100-pcie");
  EXPECT_EQ(device_key("NVIDIA RTX 6000 Ada Generation"), "rtx-6000-ada");
  EXPECT_EQ(device_key("NVIDIA H100 80GB HBM3 MIG 1g.10gb"), "h100-mig-1g.10gb");
  EXPECT_EQ(device_key(""), "unknown");
}

TEST(Faults, Row25_WithoutADriverEverythingElseWorksAndTheWayOutIsSaid) {
  const ScopedEnvironment absent("SSMJIT_LIBCUDA", "/nowhere/libcuda.so.1");
  std::string why;
  EXPECT_TRUE(devices(&why).empty());
  EXPECT_THAT(why, HasSubstr("SSMJIT_LIBCUDA: /nowhere/libcuda.so.1 can't be opened"));
  EXPECT_THAT(why, HasSubstr("unset it"));
  const Error error = error_of([] { device(0); });
  EXPECT_EQ(error.kind(), ErrorKind::missing);
  EXPECT_THAT(error.what(), HasSubstr("/nowhere/libcuda.so.1"));
}

TEST(Faults, Row25_AFileThatIsNoDriverIsNamed) {
  const ScratchFolder folder;
  const std::string path = folder / "libcuda.so.1";
  std::ofstream(path) << "not a library";
  const ScopedEnvironment named("SSMJIT_LIBCUDA", path);
  std::string why;
  EXPECT_EQ(find_driver(&why), nullptr);
  EXPECT_THAT(why, HasSubstr(path));
}

TEST(Driver, TheMachinesOwnIsFoundOrItsAbsenceExplained) {
  const ScopedEnvironment none("SSMJIT_LIBCUDA", std::nullopt);
  std::string why;
  if (!devices(&why).empty()) return;
  EXPECT_THAT(why, testing::AnyOf(HasSubstr("driver"), HasSubstr("GPU")));
}

TEST(Driver, FactsOfADeviceAreRead) {
  StubDriver stub;
  NEED_STUB(stub);
  const DeviceFacts facts = device(0);
  EXPECT_EQ(facts.name, "NVIDIA H200");
  EXPECT_EQ(facts.key, "h200");
  EXPECT_EQ(facts.driver, "13.0");
  EXPECT_EQ(facts.sms, 132);
  EXPECT_EQ(facts.arch().text(), "sm_90a");
  EXPECT_GT(facts.l2_bytes, 0);
  EXPECT_EQ(devices().size(), 1u);
}

TEST(Driver, AnOrdinalThatIsNotThereIsMissing) {
  StubDriver stub;
  NEED_STUB(stub);
  for (const int ordinal : {-1, 1}) {
    const Error error = error_of([&] { device(ordinal); });
    EXPECT_EQ(error.kind(), ErrorKind::missing);
    EXPECT_THAT(error.what(), HasSubstr("1 visible"));
  }
}

TEST(Driver, TheCurrentDeviceIsThatOfTheCurrentContextElseTheFirst) {
  StubDriver stub;
  NEED_STUB(stub);
  stub->devices = 2;
  EXPECT_EQ(current_device().ordinal, 0);
  stub->context_is_current = 1;
  stub->device = 1;
  EXPECT_EQ(current_device().ordinal, 1);
}

TEST(Driver, AFailingCallIsNamedWithItsCode) {
  StubDriver stub;
  NEED_STUB(stub);
  stub->fail_call = "cuInit";
  stub->fail_code = CUDA_ERROR_INVALID_VALUE;
  const Error error = error_of([] { driver(); });
  EXPECT_EQ(error.kind(), ErrorKind::machine);
  EXPECT_STREQ(error.what(), "cuInit failed: CUDA_ERROR_INVALID_VALUE (1): invalid argument");
}

TEST(Driver, ACodeThatTheDriverDoesNotKnowIsStillAnError) {
  StubDriver stub;
  NEED_STUB(stub);
  const Error error = error_of([] { driver().check(static_cast<CUresult>(12345), "cuSomething"); });
  EXPECT_THAT(error.what(), HasSubstr("cuSomething failed: an unknown error (12345)"));
}

TEST(Faults, Row25_ADriverThatFindsNoGpuIsMissingAGpu) {
  StubDriver stub;
  NEED_STUB(stub);
  stub->fail_call = "cuInit";
  stub->fail_code = CUDA_ERROR_NO_DEVICE;
  const Error error = error_of([] { driver(); });
  EXPECT_EQ(error.kind(), ErrorKind::missing);
  EXPECT_THAT(error.what(), HasSubstr("CUDA_VISIBLE_DEVICES"));
}

}  // namespace
}  // namespace ssmjit
