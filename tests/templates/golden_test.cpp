// Emitted files as they are reviewed: a change of codegen or of a template shows as a diff of CUDA C++.
// SSMJIT_UPDATE_GOLDEN=1 rewrites them (make golden).
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

#include <gtest/gtest.h>

#include <ssmjit/source.h>

namespace ssmjit {
namespace {

struct Golden {
  std::string name;
  Description description;
  Plan plan;
};

std::vector<Golden> goldens() {
  const Description tp8 = mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1});
  Description bulk = tp8;
  bulk.state(DType::bf16).gate(silu(dsl::z)).destination_slots();
  const Description int16 = Description(tp8).state(DType::i16);
  Description odd = mamba2({.nheads = 28, .head_dim = 80, .dstate = 96, .ngroups = 2});
  odd.state(DType::f16).input(DType::f16).unaligned_rows();
  const Description ring = Description(tp8).tokens(6).state(DType::bf16).store(Ring{.window = 16});
  const Description ring_of_bytes =
      Description(ring).state(DType::i8).rounding(Stochastic{}).gate(silu(dsl::z)).varlen();
  const Description snapshots = Description(tp8).tokens(6).state(DType::bf16).store(Snapshots{});
  const Description slots = Description(tp8)
                                .tokens(20)
                                .state(DType::i8)
                                .store(Slots{})
                                .rounding(Stochastic{})
                                .gate(silu(dsl::z))
                                .accepted_counts()
                                .varlen();
  const Description replay = Description(ring).store(Replay{});
  Description norm = gated_norm({.channels = 4096, .group_size = 512, .gate_expr = silu(dsl::z)});
  const Description layer = mamba2({.nheads = 64, .head_dim = 64, .dstate = 128, .ngroups = 8})
                                .state(DType::bf16)
                                .with_conv({.activation_expr = silu(dsl::x)})
                                .with_norm({.group_size = 512, .gate_expr = silu(dsl::z)});
  const Description ring_layer =
      Description(ring).with_conv(*layer.conv).with_norm({.group_size = 1024, .gate_expr = silu(dsl::z)});
  const Arch arch;
  const Description conv = conv1d({.channels = 6144, .activation_expr = silu(dsl::x)});
  Conv drafts = *conv.conv;
  drafts.state_len = 8, drafts.channels_last = true, drafts.has_accepted = true;
  return {{"conv1d_default", conv, default_plan(conv, arch, 96)},
          {"conv1d_6_tokens_accepted", conv1d(drafts).tokens(6), default_plan(conv1d(drafts).tokens(6), arch, 96)},
          {"layer_64x64x128_bf16_cluster8",
           layer,
           {.block_m = 64, .warps = 8, .lanes_per_row = 16, .min_blocks_per_sm = 1, .cluster = 8}},
          {"layer_64x64x128_bf16_chain_pdl", layer, default_chain(PlanForm::chain_pdl, layer, arch, 64)},
          {"layer_64x64x128_bf16_6_tokens", Description(layer).tokens(6),
           default_plan(Description(layer).tokens(6), arch, 64)},
          {"layer_tp8_ring_default", ring_layer, default_plan(ring_layer, arch, 16)},
          {"norm_512_bf16_default", norm, default_plan(norm, arch, 8)},
          {"tp8_fp32_default", tp8, default_plan(tp8, arch, 128)},
          {"tp8_bf16_bulk_gate_destination",
           bulk,
           {.block_m = 32,
            .warps = 4,
            .lanes_per_row = 16,
            .heads_per_block = 4,
            .stages = 4,
            .state_path = StatePath::bulk}},
          {"tp8_bf16_stochastic",
           Description(tp8).state(DType::bf16).rounding(Stochastic{}),
           {.block_m = 16, .warps = 1, .lanes_per_row = 16, .stages = 2, .streaming = true}},
          {"tp8_int16_default", int16, default_plan(int16, arch, 128)},
          {"tp8_bf16_6_tokens_snapshots", snapshots, default_plan(snapshots, arch, 4096)},
          {"tp8_int8_20_tokens_slots", slots, default_plan(slots, arch, 16)},
          {"80x96_fp16_unaligned", odd, default_plan(odd, arch, 128)},
          {"tp8_ring_bf16_default", ring, default_plan(ring, arch, 16)},
          {"tp8_replay_bf16_default", replay, default_plan(replay, arch, 16)},
          {"tp8_ring_int8_bulk_gate_varlen",
           ring_of_bytes,
           {.block_m = 32,
            .warps = 2,
            .lanes_per_row = 4,
            .heads_per_block = 4,
            .stages = 2,
            .state_path = StatePath::bulk,
            .ring_rows = RingRows::live}}};
}

class GoldenFile : public testing::TestWithParam<Golden> {};
INSTANTIATE_TEST_SUITE_P(Every, GoldenFile, testing::ValuesIn(goldens()),
                         [](const auto& info) { return "Of_" + info.param.name; });

TEST_P(GoldenFile, IsWhatIsEmitted) {
  const Golden& golden = GetParam();
  const std::string path = std::string(SSMJIT_SOURCE_DIR) + "/tests/golden/" + golden.name + ".cu";
  const std::string text = emit(golden.description, golden.plan, Arch{}).text;
  if (const char* update = std::getenv("SSMJIT_UPDATE_GOLDEN"); update != nullptr && std::string(update) == "1") {
    std::ofstream(path, std::ios::binary) << text;
    GTEST_SKIP() << "rewrote " << path;
  }
  std::ifstream file(path, std::ios::binary);
  ASSERT_TRUE(file) << path << " is missing; SSMJIT_UPDATE_GOLDEN=1 writes it";
  std::istringstream emitted(text);
  std::string want, got;
  for (int line = 1;; ++line) {
    const bool more_want = static_cast<bool>(std::getline(file, want));
    const bool more_got = static_cast<bool>(std::getline(emitted, got));
    if (!more_want && !more_got) break;
    ASSERT_EQ(more_got ? got : "(end)", more_want ? want : "(end)")
        << golden.name << ".cu:" << line << "; if the change is meant: make golden, and review the diff";
  }
}

}  // namespace
}  // namespace ssmjit
