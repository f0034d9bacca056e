// The kernels of a ring's slots as emitted files.
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/cubin.h>
#include <ssmjit/error.h>
#include <ssmjit/source.h>

namespace ssmjit {
namespace {

using testing::HasSubstr;
using testing::Not;

Description ring(const Sizes& sizes, DType state, const Ring& store = {}) {
  return mamba2(sizes).state(state).store(store);
}
const Sizes kTp8 = {.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1};

TEST(EmitRingSlots, IsOneFileThatStandsAloneWithThreeEntries) {
  const Description d = ring(kTp8, DType::bf16);
  const Source source = emit_ring_slots(d, Arch{});
  EXPECT_THAT(source.text, Not(HasSubstr("#include")));
  EXPECT_THAT(source.text, Not(HasSubstr("#pragma once")));
  EXPECT_THAT(source.text, HasSubstr("// description: " + d.json()));
  ASSERT_EQ(source.entries.size(), 3u);
  const char* args[] = {"MaterialiseArgs", "ResetSlotsArgs", "CopySlotsArgs"};
  for (std::size_t i = 0; i < 3; ++i)
    EXPECT_THAT(source.text, HasSubstr(source.entries[i].name + "(const __grid_constant__ " + args[i] + " args)"));
}

TEST(EmitRingSlots, DependsOnWhatSlotsAreMadeOfAlone) {
  const auto digest = [](const Description& d) { return emit_ring_slots(d, Arch{}).digest; };
  const Description d = ring(kTp8, DType::bf16);
  EXPECT_EQ(digest(d), digest(Description(d).gate(silu(dsl::z)).no_skip()));
  EXPECT_EQ(digest(d), digest(ring({.nheads = 128, .head_dim = 64, .dstate = 128, .ngroups = 8}, DType::bf16)));
  EXPECT_NE(digest(d), digest(ring(kTp8, DType::f32)));
  EXPECT_NE(digest(d), digest(ring(kTp8, DType::bf16, {.window = 16, .length = 40})));
  EXPECT_NE(digest(d), digest(Description(d).rounding(Stochastic{})));
}

TEST(EmitRingSlots, RefusesADescriptionWithoutARing) {
  for (const Description& d : {mamba2(kTp8), ring(kTp8, DType::bf16).tokens(40)}) {
    try {
      emit_ring_slots(d, Arch{});
      ADD_FAILURE() << d.summary();
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::invalid);
    }
  }
}

TEST(Compile, NvrtcTakesTheKernelsOfSlotsForEveryArchWithoutASpill) {
  try {
    nvrtc_version();
  } catch (const Error& e) {
    GTEST_SKIP() << e.what();
  }
  std::vector<Description> all;
  for (DType state : {DType::f32, DType::bf16, DType::f16, DType::i8, DType::f8}) {
    all.push_back(ring(kTp8, state));
    all.push_back(ring({.nheads = 4, .head_dim = 256, .dstate = 256, .ngroups = 2}, state, {.window = 32}));
    if (state != DType::f32) all.back().rounding(Stochastic{});
    all.push_back(ring({.nheads = 6, .head_dim = 80, .dstate = 192, .ngroups = 2}, state).input(DType::f16));
  }
  std::size_t next = 0;
  for (const Description& d : all) {
    const Arch& arch = Arch::known()[next++ % Arch::known().size()];
    const Cubin cubin = compile(emit_ring_slots(d, arch), {.use_cache = false});
    EXPECT_EQ(cubin.spill_bytes, 0) << d.summary() << ", " << arch.text();
    EXPECT_LE(cubin.smem_bytes, 48 * 1024);
    RecordProperty(d.summary(), cubin.registers);
  }
}

}  // namespace
}  // namespace ssmjit
