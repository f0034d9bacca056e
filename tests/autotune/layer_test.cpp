// Fused layers on the CPU executor: right plans of every kind of layer pass without a finding, each wrong kernel is
// rejected.
#include <ostream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/cpu.h>
#include <ssmjit/error.h>
#include <ssmjit/source.h>
#include <ssmjit/tune.h>

#include "autotune/kernel_case.h"

namespace ssmjit {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;

#define NEEDS_EXECUTOR() \
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing

constexpr const char* kDirect =
    "block_m=16,warps=2,lanes_per_row=8,state_path=direct,streaming=true,early_state=false,min_blocks_per_sm=1";
constexpr const char* kBulk =
    "block_m=16,warps=2,lanes_per_row=8,state_path=bulk,streaming=true,early_state=false,min_blocks_per_sm=1";

Plan plan(const std::string& changes, const char* base = kDirect) {
  return Plan::parse(std::string(base) + "," + changes, Plan{});
}

Conv usual_conv() { return {.activation_expr = silu(dsl::x)}; }
Norm usual_norm(int group_size) { return {.group_size = group_size, .gate_expr = silu(dsl::z)}; }

// Two groups of two heads, a norm of each group's 64 channels.
Description small() {
  return mamba2({.nheads = 4, .head_dim = 32, .dstate = 64, .ngroups = 2})
      .state(DType::bf16)
      .with_conv(usual_conv())
      .with_norm(usual_norm(64));
}

Verdict verdict_of(const Description& d, const Plan& p, const std::string& source = {}) {
  VerifyOptions options;
  options.on = VerifyOn::cpu;
  options.source = source;
  options.source_name = "mine.cu";
  return verify(d, {p}, options).front();
}

struct Variant {
  std::string name;
  Description description;
  std::string plan;
  const char* base = kDirect;
};

void PrintTo(const Variant& v, std::ostream* out) { *out << v.name; }

std::vector<Variant> variants() {
  std::vector<Variant> all;
  const auto add = [&](std::string name, Description d, std::string p, const char* base = kDirect) {
    all.push_back({std::move(name), std::move(d), std::move(p), base});
  };
  add("ClusterOf4", small(), "cluster=4");
  add("ClusterOf2", small(), "cluster=2");
  add("OneBlockAGroup", small(), "cluster=1,block_m=32");
  add("BulkInFourParts", small(), "cluster=1", kBulk);
  add("BulkClusterOf2", small(), "cluster=2", kBulk);
  add("EarlyState", small(), "cluster=4,early_state=true");
  add("EarlyStateBulk", small(), "cluster=2,early_state=true", kBulk);
  add("Shares", small(), "cluster=4,stages=2");
  add("SharesOfTwoBulkEarly", small(), "cluster=2,stages=2,early_state=true,block_m=32", kBulk);
  add("SharesConvAlone", mamba2({.nheads = 4, .head_dim = 32, .dstate = 64, .ngroups = 2}).with_conv(usual_conv()),
      "cluster=4,lanes_per_row=16,stages=2");
  add("SharesOfChannelsLast", small().with_conv({.state_len = 5, .channels_last = true}), "cluster=4,stages=2");
  add("SharesPadsAsIfZeroState", small().pad_output(PadOutput::as_if_zero_state), "cluster=4,stages=2");
  for (const char* const stages : {"1", "2"})
    add(std::string("ClusterOf16Stages") + stages,
        mamba2({.nheads = 8, .head_dim = 64, .dstate = 64, .ngroups = 1})
            .state(DType::bf16)
            .with_conv(usual_conv())
            .with_norm(usual_norm(512)),
        std::string("cluster=16,block_m=32,warps=4,stages=") + stages);
  add("StateOfFp32", small().state(DType::f32), "cluster=2,lanes_per_row=16");
  add("StateAndInputOfFp16", small().state(DType::f16).input(DType::f16), "cluster=4");
  add("AllOfFp32", small().state(DType::f32).input(DType::f32), "cluster=4,lanes_per_row=16,warps=4,block_m=16");
  add("GateInTheUpdate", small().gate(silu(dsl::z)).with_norm({.group_size = 64}), "cluster=4");
  add("NormBeforeGate", small().with_norm({.group_size = 64, .gate_expr = silu(dsl::z), .before_gate = true}),
      "cluster=4");
  add("NormBeforeGateInParts",
      small().with_norm({.group_size = 64, .gate_expr = silu(dsl::z), .before_gate = true, .has_bias = true}),
      "cluster=2", kBulk);
  add("NormWithBias", small().with_norm({.group_size = 64, .gate_expr = silu(dsl::z), .has_bias = true}), "cluster=4");
  add("NormOfBothGroups", small().with_norm(usual_norm(128)), "cluster=4,block_m=32");
  add("ConvAlone", mamba2({.nheads = 4, .head_dim = 32, .dstate = 64, .ngroups = 2}).with_conv(usual_conv()),
      "cluster=4,lanes_per_row=16");
  add("NormAlone", mamba2({.nheads = 4, .head_dim = 32, .dstate = 64, .ngroups = 2}).with_norm(usual_norm(64)),
      "cluster=2,lanes_per_row=16");
  add("Width2", small().with_conv({.width = 2, .activation_expr = silu(dsl::x)}), "cluster=4");
  add("Width3NoBias", small().with_conv({.width = 3, .has_bias = false}), "cluster=4");
  add("DeadEntryOfWindows", small().with_conv({.state_len = 4, .activation_expr = silu(dsl::x)}), "cluster=4");
  add("LongWindows", small().with_conv({.state_len = 7, .activation_expr = silu(dsl::x)}), "cluster=4");
  add("ChannelsLast", small().with_conv({.activation_expr = silu(dsl::x), .channels_last = true}), "cluster=4");
  add("ChannelsLastLong", small().with_conv({.state_len = 5, .channels_last = true}), "cluster=2", kBulk);
  add("PadsUntouched", small().pad_output(PadOutput::untouched), "cluster=4");
  add("PadsAsIfZeroState", small().pad_output(PadOutput::as_if_zero_state), "cluster=4");
  add("PadsAsIfZeroStateBulk", small().pad_output(PadOutput::as_if_zero_state), "cluster=2", kBulk);
  add("HeadDim80",
      mamba2({.nheads = 6, .head_dim = 80, .dstate = 64, .ngroups = 3})
          .state(DType::bf16)
          .with_conv(usual_conv())
          .with_norm(usual_norm(160)),
      "cluster=2,block_m=80,warps=5");
  add("Dstate96",
      mamba2({.nheads = 4, .head_dim = 32, .dstate = 96, .ngroups = 2})
          .state(DType::bf16)
          .with_conv(usual_conv())
          .with_norm(usual_norm(64)),
      "cluster=2,lanes_per_row=4,block_m=16");
  return all;
}

class RightLayer : public testing::TestWithParam<Variant> {};

TEST_P(RightLayer, PassesOnTheCpu) {
  NEEDS_EXECUTOR();
  const Variant& v = GetParam();
  const Verdict verdict = verdict_of(v.description, plan(v.plan, v.base));
  EXPECT_EQ(verdict.outcome, Outcome::ok) << v.description.summary();
  EXPECT_THAT(verdict.failures, IsEmpty());
  EXPECT_GT(verdict.y_error, 0) << "nothing was compared";
  EXPECT_GT(verdict.state_error, 0);
}
INSTANTIATE_TEST_SUITE_P(OfEveryKind, RightLayer, testing::ValuesIn(variants()),
                         [](const auto& info) { return info.param.name; });

// An emitted layer with one place of its text changed.
struct Mutant {
  std::string name, right, wrong;
  std::string plan = "cluster=4";
  const char* base = kDirect;
  bool fault = false;  // found by how it runs, not by what it gives
};

void PrintTo(const Mutant& m, std::ostream* out) { *out << m.name; }

std::vector<Mutant> mutants() {
  return {
      {"StaleWindow", "k + 1 < kState ? element_bits<Input>(window, at(c, k + 1))",
       "k + 1 < kState ? element_bits<Input>(window, at(c, k))"},
      {"TapsInTheOtherOrder", "c * Cfg::kConvWidth + k)", "c * Cfg::kConvWidth + Cfg::kConvWidth - 1 - k)"},
      {"NoConvBias", "sum = element_value<Input>(bias, c);", "sum = 0.0f;"},
      {"NoActivation", "v[c] = Cfg::activation(sum);", "v[c] = sum;"},
      {"BForC", "widen_shared(columns + Cfg::kDstate + at, C[v]);", "widen_shared(columns + at, C[v]);"},
      {"WindowsOfBAndCNeverWritten", "if (!S::kShares && at.first % S::kGroupRows == 0) store_windows(false);", ""},
      {"WindowsOfBAndCOfOneGroupOnly", "if (!S::kShares && at.first % S::kGroupRows == 0) store_windows(false);",
       "if (at.first == 0) store_windows(false);"},
      {"WindowsOfBAndCWrittenByAll", "if (!S::kShares && at.first % S::kGroupRows == 0) store_windows(false);",
       "store_windows(false);", "cluster=4", kDirect, true},
      {"WindowsOfBAndCWrittenEarly", "  store_windows(true);\n",
       "  store_windows(true);\n  if (at.first % S::kGroupRows == 0) store_windows(false);\n", "cluster=4", kDirect,
       true},
      {"NoSkip", "v += Cfg::skip(in.D, widen(x_rows[own_row + i]));", ";"},
      {"NoNormGate", "y_own[i] *= in.norm_gate[i];", ";"},
      {"MeanOfTheBlockAlone", "static_cast<float>(Cfg::kNormRows)", "static_cast<float>(S::kBlockRows)"},
      {"NoEps", "+ Cfg::norm_eps()", "+ 10.0f * Cfg::norm_eps() + 0.1f"},
      {"NoNormWeight", "v = v * scale * widen(norm.weight[i]);", "v = v * scale;"},
      {"OneSumShort", "step >= kCopies; step /= 2) squares +=", "step > kCopies; step /= 2) squares +="},
      {"SumsNotWaitedFor", "barrier_wait(&shared.sums, 0);", ";", "cluster=4", kDirect, true},
      {"SumsOfOneBlockTwice", "[cluster_rank() * Cfg::kWarps + warp]", "[0 * Cfg::kWarps + warp]", "cluster=4", kDirect,
       true},
      {"NoBarrierBehindTheConvolution", "  sync_block();\n  store_windows(true);", "  store_windows(true);",
       "cluster=4", kDirect, true},
      {"NoWaitForThePeers", "if constexpr (kSends) cluster_wait();", "", "cluster=4", kDirect, true},
      {"StateNotWaitedFor", "if (live) barrier_wait(&shared.state[pass], 0);", "", "cluster=2", kBulk, true},
      {"TheSameRowsTwice", "unsigned char* stage = stages + pass * Cfg::kBlockM * S::kRowBytes;",
       "unsigned char* stage = stages;", "cluster=2", kBulk},
      {"SharesNotWaitedFor", "    barrier_wait(&shared.columns, 0);\n", "", "cluster=4,stages=2", kDirect, true},
      {"TheFirstShareOnly", "return S::kShares && i >= S::kRowWords ? i + cluster_rank() * S::kShareWords : i;",
       "return i;", "cluster=4,stages=2", kDirect, true},
      {"WindowsOfSharesNeverWritten", "store_windows(false);  // while the others' shares come", "",
       "cluster=4,stages=2"},
      {"InputsBeforeTheWait", "    grid_dependency_wait();\n    load_inputs();",
       "    load_inputs();\n    grid_dependency_wait();", "cluster=4,early_state=true", kDirect, true},
  };
}

class WrongLayer : public testing::TestWithParam<Mutant> {};

TEST_P(WrongLayer, IsRejected) {
  NEEDS_EXECUTOR();
  const Mutant& m = GetParam();
  const Plan p = plan(m.plan, m.base);
  std::string source = emit(small(), p, Arch{}).text;
  const std::size_t at = source.find(m.right);
  ASSERT_NE(at, std::string::npos) << m.right;
  source.replace(at, m.right.size(), m.wrong);
  const Verdict verdict = verdict_of(small(), p, source);
  EXPECT_EQ(verdict.outcome, m.fault ? Outcome::faulty : Outcome::wrong) << testing::PrintToString(verdict.failures);
}
INSTANTIATE_TEST_SUITE_P(ByOnePlace, WrongLayer, testing::ValuesIn(mutants()),
                         [](const auto& info) { return info.param.name; });

// ---- several tokens ----

constexpr const char* kTokens =
    "block_m=16,warps=2,lanes_per_row=8,stages=2,streaming=true,early_state=false,min_blocks_per_sm=1";

Description small_tokens(int tokens = 3) { return small().tokens(tokens); }

std::vector<Variant> token_variants() {
  std::vector<Variant> all;
  const auto add = [&](std::string name, Description d, std::string p) {
    all.push_back({std::move(name), std::move(d), std::move(p), kTokens});
  };
  const auto with = [](Conv conv) { return small_tokens().with_conv(std::move(conv)); };
  const Description bare = mamba2({.nheads = 4, .head_dim = 32, .dstate = 64, .ngroups = 2}).tokens(4);
  add("TwoTokens", small_tokens(2), "cluster=4");
  add("ThreeTokens", small_tokens(), "cluster=4");
  add("EightTokens", small_tokens(8), "cluster=4");
  add("EightTokensInOneTurn", small_tokens(8), "cluster=4,stages=8");
  add("ClusterOf2InParts", small_tokens(5), "cluster=2");
  add("OneBlockAGroup", small_tokens(6), "cluster=1,block_m=32");
  add("EarlyState", small_tokens(), "cluster=2,early_state=true");
  add("EarlyStateOneBlock", small_tokens(4), "cluster=1,block_m=32,early_state=true");
  add("StateOfFp32", small_tokens(4).state(DType::f32), "cluster=4,lanes_per_row=16");
  add("StateAndInputOfFp16", small_tokens(4).state(DType::f16).input(DType::f16), "cluster=4");
  add("AllOfFp32", small_tokens(3).state(DType::f32).input(DType::f32),
      "cluster=2,lanes_per_row=16,block_m=32,warps=4");
  add("GateInTheUpdate", small_tokens().gate(silu(dsl::z)).with_norm({.group_size = 64}), "cluster=4");
  add("NormBeforeGate", small_tokens().with_norm({.group_size = 64, .gate_expr = silu(dsl::z), .before_gate = true}),
      "cluster=4");
  add("NormWithBias", small_tokens().with_norm({.group_size = 64, .gate_expr = silu(dsl::z), .has_bias = true}),
      "cluster=2,early_state=true");
  add("NormOfBothGroups", small_tokens().with_norm(usual_norm(128)), "cluster=4,block_m=32");
  add("ConvAlone", Description(bare).with_conv(usual_conv()), "cluster=4,lanes_per_row=16");
  add("NormAlone", Description(bare).with_norm(usual_norm(64)), "cluster=2,lanes_per_row=16");
  add("Width2", with({.width = 2, .activation_expr = silu(dsl::x)}), "cluster=4");
  add("Width3NoBias", with({.width = 3, .has_bias = false}), "cluster=4");
  add("WindowsOfMoreThanTheTokens", with({.state_len = 7, .activation_expr = silu(dsl::x)}), "cluster=4");
  add("WindowsOfFewerThanTheTokens", small_tokens(8).with_conv({.state_len = 4}), "cluster=4");
  add("ChannelsLast", with({.activation_expr = silu(dsl::x), .channels_last = true}), "cluster=4");
  add("ChannelsLastLong", with({.state_len = 5, .channels_last = true}), "cluster=1,block_m=32");
  add("PadsUntouched", small_tokens().pad_output(PadOutput::untouched), "cluster=4");
  add("PadsAsIfZeroState", small_tokens().pad_output(PadOutput::as_if_zero_state), "cluster=4");
  add("HeadDim80",
      mamba2({.nheads = 6, .head_dim = 80, .dstate = 64, .ngroups = 3})
          .tokens(4)
          .state(DType::bf16)
          .with_conv(usual_conv())
          .with_norm(usual_norm(160)),
      "cluster=2,block_m=80,warps=5");
  add("Dstate96",
      mamba2({.nheads = 4, .head_dim = 32, .dstate = 96, .ngroups = 2})
          .tokens(4)
          .state(DType::bf16)
          .with_conv(usual_conv())
          .with_norm(usual_norm(64)),
      "cluster=2,lanes_per_row=4,block_m=16");
  return all;
}

class RightTokensLayer : public testing::TestWithParam<Variant> {};

TEST_P(RightTokensLayer, PassesOnTheCpu) {
  NEEDS_EXECUTOR();
  const Verdict verdict = verdict_of(GetParam().description, plan(GetParam().plan, GetParam().base));
  EXPECT_EQ(verdict.outcome, Outcome::ok) << testing::PrintToString(verdict.failures);
  EXPECT_GT(verdict.y_error, 0) << "nothing was compared";
  EXPECT_GT(verdict.state_error, 0);
}
INSTANTIATE_TEST_SUITE_P(OfEveryKind, RightTokensLayer, testing::ValuesIn(token_variants()),
                         [](const auto& info) { return info.param.name; });

// Of layer_tokens.cuh.
std::vector<Mutant> token_mutants() {
  const char* const early = "cluster=4,early_state=true";
  return {
      {"WindowOfTheStepBefore", "element_bits<Input>(token + (t < 0 ? 0 : t), c)",
       "element_bits<Input>(token + (t < 1 ? 0 : t - 1), c)", "cluster=4", kTokens},
      {"TapsOneTokenLate", "const int from = t - Cfg::kConvWidth + 1 + k;", "const int from = t - Cfg::kConvWidth + k;",
       "cluster=4", kTokens},
      {"DeltaOfTheFirstToken", "const float delta = shuffle(of_delta, t)", "const float delta = shuffle(of_delta, 0)",
       "cluster=4", kTokens},
      {"DecayOfTheTokenBefore", "decay = shuffle(of_decay, t);", "decay = shuffle(of_decay, t > 0 ? t - 1 : 0);",
       "cluster=4", kTokens},
      {"ChannelsOfTheFirstToken", "const Input* const columns = shared.channels[t] +",
       "const Input* const columns = shared.channels[0] +", "cluster=4", kTokens},
      {"HalfTheStateStored", "for (int e = 0; e < kPer; ++e) part[e] = h[r][v][w * kPer + e];",
       "for (int e = 0; e < kPer; ++e) part[e] = 0.5f * h[r][v][w * kPer + e];", "cluster=4", kTokens},
      {"GateOfTheFirstToken", "part.token * args.z_token_stride", "0 * args.z_token_stride", "cluster=4", kTokens},
      {"NoSkip", "v += Cfg::skip(D, widen(x_rows[own_row + i]));", ";", "cluster=4", kTokens},
      {"NormOfAllTokensTogether", "sum += shared.sum[part.token][lane_index() + 32 * i];",
       "sum += shared.sum[0][lane_index() + 32 * i];", "cluster=4", kTokens},
      {"WindowsOfBAndCNeverWritten", "if (at.first % S::kGroupRows == 0) store_windows(false);", "", "cluster=4",
       kTokens},
      {"NoBarrierBehindTheConvolution", "  sync_block();\n  store_windows(true);", "  store_windows(true);",
       "cluster=4", kTokens, true},
      {"NoBarrierBehindTheRecurrence", "  sync_block();\n\n  float u[", "  float u[", "cluster=4", kTokens, true},
      {"SumsNotWaitedFor", "      barrier_wait(&shared.sums, 0);\n    else if", "      ;\n    else if", "cluster=4",
       kTokens, true},
      {"NoWaitForThePeers", "if constexpr (kExchange) cluster_wait();", "", "cluster=4", kTokens, true},
      {"WindowsOfBAndCWrittenEarly", "  store_windows(true);\n", "  store_windows(true);\n  store_windows(false);\n",
       "cluster=4", kTokens, true},
      {"TokensBeforeTheWait",
       "    grid_dependency_wait();\n  }\n  at.for_items(item, [&](typename Step::Item& one, int i) { "
       "at.load_tokens(one, i); });",
       "  }\n  at.for_items(item, [&](typename Step::Item& one, int i) { at.load_tokens(one, i); });\n  if constexpr "
       "(Cfg::kEarlyState) grid_dependency_wait();",
       early, kTokens, true},
  };
}

class WrongTokensLayer : public testing::TestWithParam<Mutant> {};

TEST_P(WrongTokensLayer, IsRejected) {
  NEEDS_EXECUTOR();
  const Mutant& m = GetParam();
  const Plan p = plan(m.plan, m.base);
  std::string source = emit(small_tokens(), p, Arch{}).text;
  const std::size_t at = source.find(m.right, source.find("// ---- layer_tokens.cuh ----"));
  ASSERT_NE(at, std::string::npos) << m.right;
  source.replace(at, m.right.size(), m.wrong);
  const Verdict verdict = verdict_of(small_tokens(), p, source);
  EXPECT_EQ(verdict.outcome, m.fault ? Outcome::faulty : Outcome::wrong) << testing::PrintToString(verdict.failures);
}
INSTANTIATE_TEST_SUITE_P(ByOnePlace, WrongTokensLayer, testing::ValuesIn(token_mutants()),
                         [](const auto& info) { return info.param.name; });

// ---- chains ----

struct ChainVariant {
  std::string name;
  Description description;
};
void PrintTo(const ChainVariant& v, std::ostream* out) { *out << v.name; }

Description small_ring() { return small().tokens(3).store(Ring{.window = 6}); }

std::vector<ChainVariant> chain_variants() {
  const Sizes sizes{.nheads = 4, .head_dim = 32, .dstate = 64, .ngroups = 2};
  return {
      {"AllParts", small()},
      {"AllPartsWithARing", small_ring()},
      {"SeveralTokens", small_tokens()},
      {"EightTokensGateInTheUpdate", small_tokens(8).gate(silu(dsl::z)).with_norm({.group_size = 64})},
      {"SeveralTokensConvAlone", mamba2(sizes).tokens(4).with_conv(usual_conv()).pad_output(PadOutput::untouched)},
      {"SeveralTokensNormAlone", mamba2(sizes).tokens(4).with_norm(usual_norm(64))},
      {"StateOfFp32", small().state(DType::f32)},
      {"AllOfFp16", small().state(DType::f16).input(DType::f16)},
      {"GateInTheUpdate", small().gate(silu(dsl::z)).with_norm({.group_size = 64})},
      {"NormBeforeGate", small().with_norm({.group_size = 64, .gate_expr = silu(dsl::z), .before_gate = true})},
      {"NormOfHalfAGroup", small().with_norm(usual_norm(32))},
      {"ConvAlone", mamba2(sizes).with_conv(usual_conv())},
      {"ConvAlonePadsUntouched", mamba2(sizes).with_conv(usual_conv()).pad_output(PadOutput::untouched)},
      {"NormAlone", mamba2(sizes).with_norm(usual_norm(64))},
      {"Width2", small().with_conv({.width = 2, .activation_expr = silu(dsl::x)})},
      {"DeadEntryOfWindows", small().with_conv({.state_len = 4, .activation_expr = silu(dsl::x)})},
      {"ChannelsLast", small().with_conv({.activation_expr = silu(dsl::x), .channels_last = true})},
  };
}

class RightChain : public testing::TestWithParam<ChainVariant> {};

TEST_P(RightChain, PassesOnTheCpuWithAndWithoutPdl) {
  NEEDS_EXECUTOR();
  const Description& d = GetParam().description;
  for (const PlanForm form : {PlanForm::chain, PlanForm::chain_pdl}) {
    const Verdict verdict = verdict_of(d, default_chain(form, d, Arch{}, 64));
    EXPECT_EQ(verdict.outcome, Outcome::ok) << name(form) << " " << testing::PrintToString(verdict.failures);
    EXPECT_GT(verdict.y_error, 0) << "nothing was compared";
    EXPECT_GT(verdict.state_error, 0);
  }
}
INSTANTIATE_TEST_SUITE_P(OfEveryKind, RightChain, testing::ValuesIn(chain_variants()),
                         [](const auto& info) { return info.param.name; });

// Layers with a ring.
std::vector<ChainVariant> ring_chain_variants() {
  const auto with = [](Conv conv) { return small_ring().with_conv(std::move(conv)); };
  const Description bare = mamba2({.nheads = 4, .head_dim = 32, .dstate = 64, .ngroups = 2})
                               .state(DType::bf16)
                               .tokens(3)
                               .store(Ring{.window = 6});
  return {
      {"OneToken", small_ring().tokens(1)},
      {"AsManyTokensAsTheWindow", small_ring().tokens(6)},
      {"SixteenTokens", small_ring().tokens(16).store(Ring{.window = 16})},
      {"StateOfFp32", small_ring().state(DType::f32)},
      {"AllOfFp16", small_ring().state(DType::f16).input(DType::f16)},
      {"StateOfInt8ByChance", small_ring().state(DType::i8).rounding(Stochastic{})},
      {"GateInTheRing", small_ring().gate(silu(dsl::z)).with_norm({.group_size = 64})},
      {"NormBeforeGate", small_ring().with_norm({.group_size = 64, .gate_expr = silu(dsl::z), .before_gate = true})},
      {"NormOfHalfAGroup", small_ring().with_norm(usual_norm(32))},
      {"NormOfBothGroups", small_ring().with_norm(usual_norm(128))},
      {"ConvAlone", Description(bare).with_conv(usual_conv())},
      {"ConvAlonePadsUntouched", Description(bare).with_conv(usual_conv()).pad_output(PadOutput::untouched)},
      {"NormAlone", Description(bare).with_norm(usual_norm(64))},
      {"Width2", with({.width = 2, .activation_expr = silu(dsl::x)})},
      {"ChannelsLast", with({.activation_expr = silu(dsl::x), .channels_last = true})},
      {"LongWindows", with({.state_len = 7})},
      {"CircularWindows", with({.state_len = 5, .store = ConvStore::circular})},
      {"Snapshots", with({.keep = ConvKeep::snapshots})},
      {"SlotsByToken", with({.keep = ConvKeep::slots})},
      {"AcceptedCounts", with({.state_len = 5, .has_accepted = true})},
  };
}

class RightRingChain : public testing::TestWithParam<ChainVariant> {};

TEST_P(RightRingChain, PassesOnTheCpu) {
  NEEDS_EXECUTOR();
  const Description& d = GetParam().description;
  const Verdict verdict = verdict_of(d, default_chain(PlanForm::chain_pdl, d, Arch{}, 64));
  EXPECT_EQ(verdict.outcome, Outcome::ok) << testing::PrintToString(verdict.failures);
  EXPECT_GT(verdict.y_error, 0) << "nothing was compared";
  EXPECT_GT(verdict.state_error, 0);
}
INSTANTIATE_TEST_SUITE_P(OfEveryKind, RightRingChain, testing::ValuesIn(ring_chain_variants()),
                         [](const auto& info) { return info.param.name; });

// As one kernel.
constexpr const char* kRing = "lanes_per_row=4,ring_rows=live,block_m=32,warps=4,cluster=2";

std::vector<Variant> ring_variants() {
  std::vector<Variant> all;
  const auto add = [&](std::string name, Description d, std::string changes) {
    all.push_back({std::move(name), std::move(d), std::move(changes), kRing});
  };
  const auto with = [](Conv conv) { return small_ring().with_conv(std::move(conv)); };
  const Description bare = mamba2({.nheads = 4, .head_dim = 32, .dstate = 64, .ngroups = 2})
                               .state(DType::bf16)
                               .tokens(3)
                               .store(Ring{.window = 6});
  add("ABlockAHead", small_ring(), "cluster=2");
  add("AllRows", small_ring(), "ring_rows=all");
  add("HalfAHeadABlock", small_ring(), "block_m=16,warps=2,cluster=4");
  add("HeadsSideBySide", small_ring(), "block_m=64,warps=4,cluster=1");
  add("HeadsSideBySideAllRows", small_ring(), "block_m=64,warps=8,cluster=1,ring_rows=all");
  add("EarlyState", small_ring(), "early_state=true");
  add("EarlyStateAllRows", small_ring(), "early_state=true,ring_rows=all,block_m=16,warps=2,cluster=4");
  add("OneToken", small_ring().tokens(1), "ring_rows=all");
  add("AsManyTokensAsTheWindow", small_ring().tokens(6), "");
  add("EightTokens", small_ring().tokens(8).store(Ring{.window = 8}), "");
  add("SixteenTokens", small_ring().tokens(16).store(Ring{.window = 16}), "");
  add("StateOfFp32", small_ring().state(DType::f32), "");
  add("AllOfFp16", small_ring().state(DType::f16).input(DType::f16), "");
  add("StateOfInt8ByChance", small_ring().state(DType::i8).rounding(Stochastic{}), "");
  add("GateInTheRing", small_ring().gate(silu(dsl::z)).with_norm({.group_size = 64}), "");
  add("GateInTheRingEarly", small_ring().gate(silu(dsl::z)).with_norm({.group_size = 64}), "early_state=true");
  add("NormBeforeGate", small_ring().with_norm({.group_size = 64, .gate_expr = silu(dsl::z), .before_gate = true}), "");
  add("NormWithBias", small_ring().with_norm({.group_size = 64, .gate_expr = silu(dsl::z), .has_bias = true}), "");
  add("NormOfBothGroups", small_ring().with_norm(usual_norm(128)), "cluster=4");
  add("ConvAlone", Description(bare).with_conv(usual_conv()), "");
  add("ConvAlonePadsUntouched", Description(bare).with_conv(usual_conv()).pad_output(PadOutput::untouched), "");
  add("NormAlone", Description(bare).with_norm(usual_norm(64)), "");
  add("Width2", with({.width = 2, .activation_expr = silu(dsl::x)}), "");
  add("Width3NoBias", with({.width = 3, .has_bias = false, .activation_expr = silu(dsl::x)}), "");
  add("ChannelsLast", with({.activation_expr = silu(dsl::x), .channels_last = true}), "");
  add("LongWindows", with({.state_len = 7}), "");
  const auto of = [](int head_dim, int dstate) {
    return mamba2({.nheads = 4, .head_dim = head_dim, .dstate = dstate, .ngroups = 2})
        .state(DType::bf16)
        .tokens(3)
        .store(Ring{.window = 6})
        .with_conv(usual_conv())
        .with_norm(usual_norm(2 * head_dim));
  };
  add("HeadDim80", of(80, 64), "block_m=80,warps=5");
  add("HeadDim80SideBySide", of(80, 64), "block_m=160,warps=10,cluster=1");
  add("Dstate96", of(32, 96), "");
  add("Dstate128SideBySide", of(32, 128), "block_m=64,warps=4,cluster=1");
  add("SixteenTokensSideBySide", small_ring().tokens(16).store(Ring{.window = 16}), "block_m=64,warps=4,cluster=1");
  add("Int8ByChanceSideBySide", small_ring().state(DType::i8).rounding(Stochastic{}), "block_m=64,warps=4,cluster=1");
  const Conv accepted{.state_len = 5, .activation_expr = silu(dsl::x), .has_accepted = true};
  const Conv snapshots{.activation_expr = silu(dsl::x), .keep = ConvKeep::snapshots};
  const Conv circular{.state_len = 5, .activation_expr = silu(dsl::x), .store = ConvStore::circular};
  const auto last = [](Conv conv) { return conv.channels_last = true, conv; };
  add("AcceptedCounts", with(accepted), "");
  add("AcceptedCountsChannelsLast", with(last(accepted)), "");
  add("AcceptedCountsOfLongWindowsEarly", with({.state_len = 12, .has_accepted = true}), "early_state=true");
  add("AcceptedCountsOfEightTokensSideBySide",
      small_ring().tokens(8).store(Ring{.window = 8}).with_conv({.width = 3, .state_len = 9, .has_accepted = true}),
      "block_m=64,warps=4,cluster=1");
  add("AcceptedCountsConvAlone", Description(bare).with_conv(accepted), "");
  add("Snapshots", with(snapshots), "");
  add("SnapshotsChannelsLastEarly", with(last(snapshots)), "early_state=true");
  add("SnapshotsOfWindowsWithADeadEntry", with({.state_len = 4, .keep = ConvKeep::snapshots}), "");
  add("SnapshotsAndAcceptedCounts", with({.state_len = 5, .keep = ConvKeep::snapshots, .has_accepted = true}), "");
  add("CircularWindows", with(circular), "");
  add("CircularWindowsChannelsLast", with(last(circular)), "ring_rows=all");
  add("CircularWindowsOfFewerThanTheTokens",
      small_ring().tokens(6).with_conv({.state_len = 4, .store = ConvStore::circular}), "early_state=true");
  add("LongWindowsOneToken", with({.state_len = 8, .channels_last = true}).tokens(1), "");
  return all;
}

class RightRingLayer : public testing::TestWithParam<Variant> {};

TEST_P(RightRingLayer, PassesOnTheCpu) {
  NEEDS_EXECUTOR();
  const Verdict verdict = verdict_of(GetParam().description, plan(GetParam().plan, GetParam().base));
  EXPECT_EQ(verdict.outcome, Outcome::ok) << testing::PrintToString(verdict.failures);
  EXPECT_GT(verdict.y_error, 0) << "nothing was compared";
  EXPECT_GT(verdict.state_error, 0);
}
INSTANTIATE_TEST_SUITE_P(OfEveryKind, RightRingLayer, testing::ValuesIn(ring_variants()),
                         [](const auto& info) { return info.param.name; });

// Of ring_layer.cuh.
std::vector<Mutant> ring_mutants() {
  return {
      {"NoActivation", "            sum[1] = Cfg::activation(sum[1]);\n", "", "", kRing, false},
      {"WindowOfTheStepBefore", "return i >= kHeld ? token[(i - kHeld) * row]",
       "return i >= kHeld ? token[(i > kHeld ? i - kHeld - 1 : 0) * row]", "", kRing, false},
      {"NoGate", "u[e] *= gate[n][p][e];", ";", "", kRing, false},
      {"NormOfOneBlock", "sum[n] += shared.sum[r + step.q][token];", "sum[n] += shared.sum[0][token];", "", kRing,
       false},
      {"RowsOfXBehindTheLastTokenNotSet", "t < L::kRowTokens - Cfg::kTokens; ++t) to[t * row] = 0;",
       "t < 0; ++t) to[t * row] = 0;", "", kRing, true},
      {"SumsNotWaitedFor", "      barrier_wait(&shared.sums, 0);\n", "", "", kRing, true},
      {"CopiesNotWaitedFor", "    barrier_wait(&shared.inputs, 0);\n    for_words", "    for_words", "", kRing, true},
      {"WindowsWrittenWhileOthersRead", "    store_windows(true);\n  }",
       "    store_windows(true);\n    if (first % L::kGroupRows == 0) store_windows(false);\n  }", "", kRing, true},
      {"StepBeforeTheChannelsAreThere", "    sync_block();\n    store_windows(true);", "    store_windows(true);", "",
       kRing, true},
      {"TokensBeforeTheWait", "copy<!Cfg::kEarlyState, true>(step);", "copy<true, true>(step);", "early_state=true",
       kRing, true},
  };
}

class WrongRingLayer : public testing::TestWithParam<Mutant> {};

TEST_P(WrongRingLayer, IsRejected) {
  NEEDS_EXECUTOR();
  const Mutant& m = GetParam();
  const Plan p = plan(m.plan, m.base);
  std::string source = emit(small_ring(), p, Arch{}).text;
  const std::size_t at = source.find(m.right);
  ASSERT_NE(at, std::string::npos) << m.right;
  source.replace(at, m.right.size(), m.wrong);
  const Verdict verdict = verdict_of(small_ring(), p, source);
  EXPECT_EQ(verdict.outcome, m.fault ? Outcome::faulty : Outcome::wrong) << testing::PrintToString(verdict.failures);
}
INSTANTIATE_TEST_SUITE_P(ByOnePlace, WrongRingLayer, testing::ValuesIn(ring_mutants()),
                         [](const auto& info) { return info.param.name; });

// Of windows that are read from anywhere, or kept after every token.
struct WindowMutant {
  std::string name, right, wrong;
  Conv conv;
};
void PrintTo(const WindowMutant& m, std::ostream* out) { *out << m.name; }

std::vector<WindowMutant> window_mutants() {
  const Conv accepted{.state_len = 5, .has_accepted = true};
  const Conv snapshots{.keep = ConvKeep::snapshots};
  const Conv circular{.state_len = 5, .store = ConvStore::circular};
  return {
      {"HistoryOneEntryLate", "(given < Cfg::kTokens ? given : Cfg::kTokens) - 1;",
       "(given < Cfg::kTokens ? given : Cfg::kTokens);", accepted},
      {"CountsPastTheTokensNotClamped", "static_cast<int>(given < Cfg::kTokens ? given : Cfg::kTokens) - 1;",
       "static_cast<int>(given) - 1;", accepted},
      {"AllOfAcceptedWindowsWritten",
       "static constexpr int kKept = Cfg::kConvAccepted ? L::kHistory + Cfg::kTokens - 1",
       "static constexpr int kKept = Cfg::kConvAccepted ? L::kHistory", accepted},
      {"SnapshotsOneTokenLate", "Window::kHeld + t + 1, token, kRow);",
       "Window::kHeld + t + (t + 1 < Cfg::kTokens ? 2 : 1), token, kRow);", snapshots},
      {"SnapshotsInTheSlotThatIsRead", "index = value_of(snapshot_words, args.wide_snapshot_indices);", ";", snapshots},
      {"SnapshotsOfPads", "const bool usable = index >= 0 && index < args.snapshot_slots",
       "const bool usable = index < args.snapshot_slots", snapshots},
      {"CircularHistoryNotWrapped", "at = at < kState ? at : at - kState;", ";", circular},
      {"CircularTokensFromTheFront", "const int at = (place + t) % kState;", "const int at = t % kState;", circular},
  };
}

class WrongRingWindow : public testing::TestWithParam<WindowMutant> {};

TEST_P(WrongRingWindow, IsRejected) {
  NEEDS_EXECUTOR();
  const WindowMutant& m = GetParam();
  const Plan p = plan("", kRing);
  const Description d = small_ring().with_conv(m.conv);
  std::string source = emit(d, p, Arch{}).text;
  const std::size_t at = source.find(m.right);
  ASSERT_NE(at, std::string::npos) << m.right;
  source.replace(at, m.right.size(), m.wrong);
  const Verdict verdict = verdict_of(d, p, source);
  // A place past its window may lie in nobody's memory.
  EXPECT_THAT(verdict.outcome, testing::AnyOf(Outcome::wrong, Outcome::faulty))
      << testing::PrintToString(verdict.failures);
}
INSTANTIATE_TEST_SUITE_P(ByOnePlace, WrongRingWindow, testing::ValuesIn(window_mutants()),
                         [](const auto& info) { return info.param.name; });

struct ChainMutant {
  std::string name, right, wrong;
  std::string early{};  // of one that reads before its wait: the launch that does
  bool ring = false;
};
void PrintTo(const ChainMutant& m, std::ostream* out) { *out << m.name; }

// Of conv1d.cuh, update.cuh or ring.cuh, and norm.cuh, in the order of the file: a text that stands in all is changed
// in the first.
std::vector<ChainMutant> chain_mutants() {
  return {
      {"NoActivation", "y[c] = Cfg::activation(sum);", "y[c] = sum;"},
      {"NoNormWeight", "y[e] = u[v][e] * scale * w[e];", "y[e] = u[v][e] * scale;"},
      {"NoNormGate", "if constexpr (!Cfg::kBeforeGate) u[v][e] *= gate[v][e];", ""},
      {"ChannelsReadBeforeTheirConvolution",
       "    locate();\n    request_state();\n    grid_dependency_wait();\n  }\n  Columns<Cfg> B, C;\n  HeadInputs<Cfg> "
       "in;\n  at.load_columns(B, args.B, args.B_stride);",
       "    locate();\n    request_state();\n  }\n  Columns<Cfg> B, C;\n  HeadInputs<Cfg> in;\n  at.load_columns(B, "
       "args.B, args.B_stride);\n  grid_dependency_wait();",
       "update"},
      {"OutputReadBeforeTheUpdate", "    load_weights();\n    grid_dependency_wait();\n  }\n  const Input* x_row",
       "    load_weights();\n  }\n  const Input* x_row", "norm"},
      {"ConvolutionNeverWaits", "    step.load_weights();\n    grid_dependency_wait();", "    step.load_weights();",
       "conv1d"},
      {"TokensBeforeTheWait", "    grid_dependency_wait();\n    step.load_tokens();",
       "    step.load_tokens();\n    grid_dependency_wait();", "conv1d", true},
      {"ChannelsReadByTheRingBeforeTheirConvolution",
       "    grid_dependency_wait();\n    if constexpr (kIsLayer) around.copy_tokens(step);\n    load_inputs();",
       "    load_inputs();\n    grid_dependency_wait();", "ring", true},
      {"OutputReadBeforeTheRing", "    load_weights();\n    grid_dependency_wait();\n  }\n  const Input* x_row",
       "    load_weights();\n  }\n  const Input* x_row", "norm", true},
      {"NormNeverWaits",
       "    if (!Cfg::kEarlyState || args.pdl == kPdlWaitFirst) grid_dependency_wait();\n  }\n"
       "  if constexpr (Cfg::kEarlyState) {\n    load_weights();\n    grid_dependency_wait();",
       "  }\n  if constexpr (Cfg::kEarlyState) {\n    load_weights();", "norm", true},
  };
}

class WrongChain : public testing::TestWithParam<ChainMutant> {};

TEST_P(WrongChain, IsRejected) {
  NEEDS_EXECUTOR();
  const ChainMutant& m = GetParam();
  const Description d = m.ring ? small_ring() : small();
  std::vector<Plan> parts;
  for (const Description& part : layer_parts(d)) {
    parts.push_back(default_plan(part, Arch{}, 64));
    parts.back().early_state = true;
  }
  const Plan p = chain_of(PlanForm::chain_pdl, d, parts);
  std::string source = emit(d, p, Arch{}).text;
  const std::size_t at = source.find(m.right);
  ASSERT_NE(at, std::string::npos) << m.right;
  source.replace(at, m.right.size(), m.wrong);
  const Verdict verdict = verdict_of(d, p, source);
  const bool fault = !m.early.empty();
  EXPECT_EQ(verdict.outcome, fault ? Outcome::faulty : Outcome::wrong) << testing::PrintToString(verdict.failures);
  if (!fault) return;
  // The finding names the launch, and behind the first also the one whose stores it does not wait for.
  const auto before_the_wait =
      AllOf(HasSubstr("before the wait: in kernel ssmjit_layer_" + m.early + "_"), HasSubstr("grid_dependency_wait"));
  EXPECT_THAT(verdict.failures, Contains(before_the_wait));
  if (m.early != "conv1d") {
    EXPECT_THAT(verdict.failures,
                Contains(AllOf(before_the_wait, HasSubstr(", which ssmjit_layer_"), HasSubstr("may still write"))));
  }
}
INSTANTIATE_TEST_SUITE_P(ByOnePlace, WrongChain, testing::ValuesIn(chain_mutants()),
                         [](const auto& info) { return info.param.name; });

// A chain is its parts: kernels of the same lines as those of the parts alone.
TEST(Chain, HasTheKernelsOfItsParts) {
  const Description d = small();
  const Plan p = default_chain(PlanForm::chain, d, Arch{}, 64);
  const std::string chain = emit(d, p, Arch{}).text;
  for (const PlanPart& part : plan_parts(p, d)) {
    const std::string alone = emit(part.description, part.plan, Arch{}).text;
    const std::size_t from = alone.find("struct Config {\n") + 16;
    EXPECT_THAT(chain, HasSubstr(alone.substr(from, alone.find("};\n", from) - from))) << alone;
  }
}

TEST(LayerPlans, AreChainsAloneForWhatNoOneKernelComputes) {
  const Description two_norms = small().with_norm(usual_norm(32));
  const Description slots = small_ring().with_conv({.keep = ConvKeep::slots});
  Conv kept = usual_conv();
  kept.keep = ConvKeep::snapshots;
  for (const Description& d : {two_norms, slots, small().with_conv(kept)}) {
    const std::vector<Plan> plans = plan_space(d, Arch{});
    ASSERT_EQ(plans.size(), 2u) << d.summary();
    EXPECT_EQ(plans[0].form, PlanForm::chain);
    EXPECT_EQ(plans[1].form, PlanForm::chain_pdl);
    for (const std::int64_t heads : {64, 8192})  // each part's by the size
      EXPECT_EQ(default_plan(d, Arch{}, heads), default_chain(PlanForm::chain_pdl, d, Arch{}, heads));
    EXPECT_EQ(plan_space(d, Arch::parse("sm_80")).size(), 1u);
  }
  EXPECT_EQ(default_plan(small(), Arch{}, 64).form, PlanForm::fused);
}

TEST(LayerPlans, AreNoneWhereNeitherOneKernelNorAChainComputesTheLayer) {
  const Description d = small().with_norm(usual_norm(32)).pad_output(PadOutput::untouched);
  EXPECT_THAT(plan_space(d, Arch{}), IsEmpty());
  try {
    default_plan(d, Arch{}, 64);
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::invalid);
    EXPECT_THAT(e.what(), HasSubstr("one by one"));
  }
}

TEST(LayerPlans, OfChainsAreReadBackFromTextAndJson) {
  for (const Plan& p : plan_space(small().with_norm(usual_norm(32)), Arch{})) {
    EXPECT_EQ(Plan::parse(p.text(), Plan{}), p) << p.text();
    EXPECT_EQ(Plan::from_json(p.json()), p) << p.json();
    EXPECT_EQ(read_banner(emit(small().with_norm(usual_norm(32)), p, Arch{}).text).plan, p);
  }
}

// A weight of nearly nothing leaves a channel's sum where it is, whatever its x.
TEST(LayerCases, AreMadeWhateverTheirWeights) {
  const Description d = mamba2({.nheads = 12, .head_dim = 32, .dstate = 64, .ngroups = 3})
                            .state(DType::f16)
                            .input(DType::f16)
                            .with_conv({.activation_expr = silu(dsl::x)})
                            .with_norm({.group_size = 128, .gate_expr = silu(dsl::z)});
  std::uint64_t seed = 1;
  for (const CaseLayout& layout : standard_layouts(d, 132)) EXPECT_NE(make_case(d, layout, seed++), nullptr);
}

TEST(LayerPlans, NameThePartWhosePlanIsWrong) {
  const Plan right = default_chain(PlanForm::chain, small(), Arch{}, 64);
  const auto problems = [](const Plan& p, const char* arch = "sm_90a") {
    return plan_problems(p, small(), Arch::parse(arch));
  };
  EXPECT_THAT(problems(right), IsEmpty());
  EXPECT_THAT(problems(Plan::parse("warps=7", right)), Contains(testing::StartsWith("update: plan")));
  EXPECT_THAT(problems(Plan::parse("norm={warps=0}", right)), Contains(testing::StartsWith("norm: plan")));
  Plan without = right;
  without.conv1d.clear();
  EXPECT_THAT(problems(without), Contains(HasSubstr("conv1d: not given")));
  EXPECT_THAT(problems(Plan::parse("form=chain_pdl", right), "sm_80"), Contains(HasSubstr("sm_90")));
  Plan fused = right;
  fused.form = PlanForm::fused;
  EXPECT_THAT(problems(fused), Contains(HasSubstr("wants none but for a layer's chain")));
  EXPECT_THAT(plan_problems(Plan::parse("form=chain", default_plan(layer_parts(small())[1], Arch{}, 64)),
                            layer_parts(small())[1], Arch{}),
              Contains(HasSubstr("plan form: got chain; update kernels have no such tunable")));
}

TEST(LayerPlans, OfChainsPassOnChannelsAndYInScratch) {
  const Plan fused = default_plan(small(), Arch{}, 64), chain = default_chain(PlanForm::chain, small(), Arch{}, 64);
  EXPECT_EQ(scratch_bytes(fused, small(), 8), 0);
  // x, B and C: 128 + 2 * 128 channels; y: 128; two bytes each.
  EXPECT_EQ(scratch_bytes(chain, small(), 8), 8 * (384 + 128) * 2);
  EXPECT_EQ(scratch_bytes(chain, small(), 1) % 256, 0);
}

TEST(LayerPlans, HaveNoClustersBeforeSm90) {
  const Description d = small();
  for (const Arch& arch : Arch::known())
    for (const Plan& p : plan_space(d, arch)) EXPECT_LE(p.cluster, arch.max_cluster()) << arch.text();
  EXPECT_THAT(plan_problems(plan("cluster=4"), d, Arch::parse("sm_80")),
              Contains(HasSubstr("clusters came with sm_90")));
}

}  // namespace
}  // namespace ssmjit
