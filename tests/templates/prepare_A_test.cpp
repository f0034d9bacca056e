// The kernels that prepare A as an emitted file.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/cubin.h>
#include <ssmjit/error.h>
#include <ssmjit/source.h>

namespace ssmjit {
namespace {

TEST(EmitPrepareA, IsOneFileThatStandsAloneWithAnEntryForEachDtype) {
  const Source source = emit_prepare_A(Arch{});
  EXPECT_THAT(source.text, testing::Not(testing::HasSubstr("#include")));
  ASSERT_EQ(source.entries.size(), 3u);
  for (const Entry& entry : source.entries)
    EXPECT_THAT(source.text, testing::HasSubstr(entry.name + "(const __grid_constant__ PrepareAArgs args)"));
}

TEST(Compile, NvrtcTakesTheKernelsThatPrepareAForEveryArch) {
  try {
    nvrtc_version();
  } catch (const Error& e) {
    GTEST_SKIP() << e.what();
  }
  for (const Arch& arch : Arch::known())
    EXPECT_EQ(compile(emit_prepare_A(arch), {.use_cache = false}).spill_bytes, 0) << arch.text();
}

}  // namespace
}  // namespace ssmjit
