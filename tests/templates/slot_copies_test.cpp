// The kernel that copies slots as an emitted file.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/cubin.h>
#include <ssmjit/error.h>
#include <ssmjit/source.h>

namespace ssmjit {
namespace {

TEST(EmitSlotCopies, IsOneFileThatStandsAlone) {
  const Source source = emit_slot_copies(Arch{});
  EXPECT_THAT(source.text, testing::Not(testing::HasSubstr("#include")));
  ASSERT_EQ(source.entries.size(), 1u);
  EXPECT_THAT(source.text,
              testing::HasSubstr(source.entries[0].name + "(const __grid_constant__ SlotCopiesArgs args)"));
}

TEST(Compile, NvrtcTakesTheKernelThatCopiesSlotsForEveryArch) {
  try {
    nvrtc_version();
  } catch (const Error& e) {
    GTEST_SKIP() << e.what();
  }
  for (const Arch& arch : Arch::known())
    EXPECT_EQ(compile(emit_slot_copies(arch), {.use_cache = false}).spill_bytes, 0) << arch.text();
}

}  // namespace
}  // namespace ssmjit
