#include <algorithm>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/error.h>
#include <ssmjit/source.h>

#include "codegen/plan_smem.h"

namespace ssmjit {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

Description model(DType state = DType::f32) {
  return mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1}).state(state);
}

std::vector<Description> descriptions() {
  return {model(), model(DType::bf16).gate(silu(dsl::z)).destination_slots(),
          model(DType::f16).no_skip().delta(softplus(dsl::dt)).unaligned_rows(),
          model().delta(clamp(softplus(dsl::dt + dsl::dt_bias), 0.001, 0.1)).pad_output(PadOutput::untouched),
          mamba2({.nheads = 28, .head_dim = 80, .dstate = 96, .ngroups = 2}).dt(DType::bf16).weights(DType::bf16)};
}

Description ring_model(DType state = DType::bf16) { return model(state).tokens(6).store(Ring{.window = 16}); }

Description replay_model(DType state = DType::bf16) { return model(state).tokens(6).store(Replay{}); }
std::vector<Description> replays() {
  return {replay_model(), replay_model(DType::f32).tokens(1).gate(silu(dsl::z)),
          replay_model(DType::f16).tokens(16).rounding(Stochastic{.philox_rounds = 7}).no_skip()};
}

std::vector<Description> rings() {
  return {ring_model(),
          ring_model(DType::f32).tokens(1).gate(silu(dsl::z)),
          ring_model(DType::f16).rounding(Stochastic{.philox_rounds = 7}).no_skip().delta(softplus(dsl::dt)),
          ring_model(DType::i8).pad_output(PadOutput::untouched),
          ring_model(DType::f8).rounding(Stochastic{}).varlen(),
          mamba2({.nheads = 28, .head_dim = 80, .dstate = 96, .ngroups = 2})
              .store(Ring{.window = 32, .length = 64})
              .tokens(16)
              .input(DType::f16)};
}

std::vector<Description> of_tokens() {
  return {model(DType::bf16).tokens(6).store(Snapshots{}),
          model().tokens(16).store(Slots{}).gate(silu(dsl::z)).accepted_counts(),
          model(DType::f16).tokens(4).store(Snapshots{}).tree().rounding(Stochastic{}),
          model(DType::i8).tokens(64).store(Slots{}).varlen().rounding(Stochastic{.philox_rounds = 7}),
          mamba2({.nheads = 28, .head_dim = 80, .dstate = 96, .ngroups = 2}).tokens(2).unaligned_rows(),
          model(DType::i16).store(Slots{}).pad_output(PadOutput::as_if_zero_state)};
}

std::vector<Description> all_descriptions() {
  std::vector<Description> all = descriptions();
  for (const Description& d : of_tokens()) all.push_back(d);
  for (const Description& ring : rings()) all.push_back(ring);
  for (const Description& replay : replays()) all.push_back(replay);
  return all;
}

// A few plans of each state path, over the space.
std::vector<Plan> some_plans(const Description& d, const Arch& arch) {
  const std::vector<Plan> all = plan_space(d, arch);
  std::vector<Plan> some = {default_plan(d, arch, 128)};
  for (std::size_t i = 0; i < all.size(); i += 1 + all.size() / 7) some.push_back(all[i]);
  return some;
}

bool contains(const std::vector<Plan>& all, const Plan& plan) {
  return std::find(all.begin(), all.end(), plan) != all.end();
}

// Lines of code with the line comments cut off, and whether each stands in a section that the CPU replaces.
struct Line {
  std::string text;
  bool device = false;
};
std::vector<Line> code_of(const std::string& source) {
  std::vector<Line> lines;
  std::istringstream in(source);
  int depth = 0, device_depth = 0;
  for (std::string text; std::getline(in, text);) {
    text = text.substr(0, text.find("//"));
    if (text.starts_with("#if")) {
      ++depth;
      if (text.starts_with("#ifndef SSMJIT_CPU")) device_depth = depth;
    }
    lines.push_back({text, device_depth > 0});
    if (text.starts_with("#endif")) {
      if (depth == device_depth) device_depth = 0;
      --depth;
    }
  }
  EXPECT_EQ(depth, 0) << "#if without #endif";
  return lines;
}

TEST(Emit, SourceStandsAloneWithAnEntryForEachLaunch) {
  for (const Description& d : all_descriptions()) {
    for (const Plan& plan : some_plans(d, Arch{})) {
      const Source source = emit(d, plan, Arch{});
      EXPECT_THAT(source.text, Not(HasSubstr("#include")));
      EXPECT_THAT(source.text, Not(HasSubstr("#pragma once")));
      const std::size_t launches = plan.precompute_warps > 0 ? 2 : 1;
      ASSERT_EQ(source.entries.size(), launches);
      std::size_t entries = 0;
      for (const Line& line : code_of(source.text)) entries += line.text.find("extern \"C\"") != std::string::npos;
      EXPECT_EQ(entries, launches);
      const char* const args = d.op() != Op::update                                      ? "RingArgs"
                               : source.text.find("update_tokens<") != std::string::npos ? "UpdateTokensArgs"
                                                                                         : "UpdateArgs";
      const std::vector<PlanPart> parts = plan_parts(plan, d);
      for (std::size_t i = 0; i < launches; ++i) {
        EXPECT_THAT(source.text, HasSubstr(source.entries[i].name + "(const __grid_constant__ " + args + " args)"));
        const LaunchShape shape = launch_shape(parts[i], 1);
        EXPECT_EQ(source.entries[i].block_threads, shape.block_threads);
        EXPECT_EQ(source.entries[i].smem_bytes, shape.smem_bytes);
      }
    }
  }
}

TEST(Emit, BannerReadsBackToTheSameDescriptionAndPlan) {
  for (const Description& d : all_descriptions()) {
    for (const Plan& plan : some_plans(d, Arch{})) {
      const Banner banner = read_banner(emit(d, plan, Arch{}).text);
      EXPECT_EQ(banner.description, d);
      EXPECT_EQ(banner.plan, plan);
    }
  }
}

TEST(Emit, BannerSaysHowToRebuildAndWhatACallMoves) {
  const Description d = model();
  const Source source = emit(d, default_plan(d, Arch{}, 16), Arch{});
  const std::string banner = source.text.substr(0, source.text.find("\n\n"));
  EXPECT_THAT(banner, HasSubstr("nvcc -std=c++17 -arch=sm_90a -cubin"));
  EXPECT_THAT(banner, HasSubstr(std::to_string(bytes_moved(d, 1).read) + " bytes read"));
  for (const Tunable& t : tunables(Op::update)) EXPECT_THAT(banner, HasSubstr("//   " + t.name + ": " + t.meaning));
}

TEST(Emit, ATextWithoutBannerIsRefused) {
  for (const char* text : {"", "__global__ void k() {}", "// description: {\"schema\": 1}\n", "// plan: warps=2\n"}) {
    try {
      read_banner(text);
      ADD_FAILURE() << text;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::invalid);
    }
  }
}

TEST(Emit, IntrinsicsStandInTheDeviceSectionsOnly) {
  // Of what begins with two underscores, the sections that the CPU compiles too may use the language's own words.
  const std::set<std::string> language = {"__global__", "__launch_bounds__", "__grid_constant__", "__shared__",
                                          "__align__"};
  const std::regex reserved("\\b__\\w+");
  const std::regex machine(
      "\\b(asm|threadIdx|blockIdx|blockDim|gridDim|warpSize|atomic\\w+|expf|logf|log1pf|tanhf|sqrtf|fabsf|fminf|fmaxf|"
      "fmaf|SSMJIT_CPU|__CUDA_ARCH__)\\b");
  for (const Description& d : descriptions()) {
    for (const Plan& plan : some_plans(d, Arch{})) {
      std::size_t in_device = 0, outside = 0;
      for (const Line& line : code_of(emit(d, plan, Arch{}).text)) {
        if (line.device) {
          in_device += std::regex_search(line.text, machine);
          continue;
        }
        ++outside;
        EXPECT_FALSE(std::regex_search(line.text, machine)) << line.text;
        for (std::sregex_iterator it(line.text.begin(), line.text.end(), reserved), end; it != end; ++it)
          EXPECT_TRUE(language.contains(it->str())) << line.text;
      }
      EXPECT_GT(in_device, 20u) << "the device sections were not found";
      EXPECT_GT(outside, 100u);
    }
  }
}

TEST(Emit, IsAPureFunctionOfDescriptionPlanAndArch) {
  const Description d = model();
  const Plan plan = default_plan(d, Arch{}, 16);
  EXPECT_EQ(emit(d, plan, Arch{}).text, emit(d, plan, Arch{}).text);
  EXPECT_EQ(emit(d, plan, Arch{}).digest, emit(d, plan, Arch{}).digest);
  Plan other = plan;
  other.streaming = !other.streaming;
  EXPECT_NE(emit(d, other, Arch{}).digest, emit(d, plan, Arch{}).digest);
  EXPECT_NE(emit(d, other, Arch{}).entries[0].name, emit(d, plan, Arch{}).entries[0].name);
  EXPECT_NE(emit(model(DType::bf16), default_plan(model(DType::bf16), Arch{}, 16), Arch{}).digest,
            emit(d, plan, Arch{}).digest);
}

TEST(Emit, TensorParallelSizesDifferInTheBannerAlone) {
  const auto body = [](int nheads, int ngroups) {
    const Description d = mamba2({.nheads = nheads, .head_dim = 64, .dstate = 128, .ngroups = ngroups});
    const std::string text = emit(d, default_plan(model(), Arch{}, 16), Arch{}).text;
    return text.substr(text.find("\n\n"));
  };
  EXPECT_EQ(body(16, 1), body(128, 8));
}

TEST(Emit, RefusesAnInvalidDescriptionAndPlan) {
  Description bad = model();
  bad.head_dim = 60;
  EXPECT_THROW(emit(bad, default_plan(model(), Arch{}, 16), Arch{}), Error);
  EXPECT_THROW(emit(model(), Plan{}, Arch{}), Error);
}

// What stands in the Config of a ring's source, without its comments.
std::string config_of(const Description& d, const Plan& plan) {
  const std::string text = emit(d, plan, Arch{}).text;
  const std::size_t first = text.find("struct Config {");
  return text.substr(first, text.find("extern \"C\"") - first);
}

TEST(Emit, ARingsConfigHoldsItsConstants) {
  Plan plan = default_plan(ring_model(), Arch{}, 16);
  plan.ring_rows = RingRows::live;
  EXPECT_EQ(config_of(ring_model().gate(silu(dsl::z)), plan), R"(struct Config {
  using State = bf16;
  using Input = bf16;  // x, z, B, C, out
  using Dt = float;
  using Weight = float;  // D, dt_bias
  static constexpr int kHeadDim = 64;
  static constexpr int kDstate = 128;
  static constexpr int kHeadsPerGroup = 16;
  static constexpr int kTokens = 6;
  static constexpr int kWindow = 16;
  static constexpr int kRing = 22;
  static constexpr bool kReplay = false;
  static constexpr bool kPrecomputed = false;
  static constexpr bool kHasDtBias = true;
  static constexpr bool kHasD = true;
  static constexpr bool kHasSkip = true;
  static constexpr bool kHasGate = true;
  static constexpr bool kVarlen = false;
  static constexpr int kPhiloxRounds = 0;
  static constexpr PadOutput kPadOutput = PadOutput::zeros;

  static constexpr int kBlockM = 16;
  static constexpr int kWarps = 1;
  static constexpr int kHeadsPerBlock = 1;
  static constexpr int kStages = 1;
  static constexpr StatePath kStatePath = StatePath::direct;
  static constexpr bool kStreaming = true;
  static constexpr bool kEarlyState = false;
  static constexpr RingRows kRingRows = RingRows::live;

  static SSMJIT_DEVICE float delta(float dt, float dt_bias) { return fn_softplus(dt + dt_bias); }
  static SSMJIT_DEVICE float skip(float D, float x) { return D * x; }
  static SSMJIT_DEVICE float gate(float z) { return fn_silu(z); }
};

)");
  const Description other =
      ring_model(DType::f8).rounding(Stochastic{.philox_rounds = 7}).varlen().store(Ring{.window = 16, .length = 40});
  EXPECT_THAT(config_of(other, default_plan(other, Arch{}, 16)),
              AllOf(HasSubstr("State = e4m3;"), HasSubstr("kRing = 40;"), HasSubstr("kVarlen = true;"),
                    HasSubstr("kPhiloxRounds = 7;")));
  const Description narrow = ring_model(DType::i8);
  EXPECT_THAT(config_of(narrow, default_plan(narrow, Arch{}, 16)), HasSubstr("State = i8;"));
}

TEST(Emit, ARingsSourceIsOfItsOwnTemplateAndSaysWhatAFlushMoves) {
  const Source source = emit(ring_model(), default_plan(ring_model(), Arch{}, 16), Arch{});
  EXPECT_THAT(source.entries[0].name, testing::StartsWith("ssmjit_ring_"));
  EXPECT_THAT(source.text, AllOf(HasSubstr("// ---- ring.cuh ----"), HasSubstr("  ring_step<Config>(args);\n"),
                                 Not(HasSubstr("// ---- update.cuh ----"))));
  const std::string banner = source.text.substr(0, source.text.find("\n\n"));
  const Bytes flush = bytes_moved(ring_model(), 1, Phase::flush);
  EXPECT_THAT(banner, HasSubstr("With a flush: " + std::to_string(flush.read) + " bytes read, " +
                                std::to_string(flush.written_back) + " of them written back"));
  for (const Tunable& t : tunables(Op::ring)) EXPECT_THAT(banner, HasSubstr("//   " + t.name + ": " + t.meaning));
  EXPECT_EQ(bytes_moved(ring_model(), 1).written_back, 0);
}

TEST(Emit, ConfigsOfTokensHoldTheirConstantsAndComeFromTheirOwnTemplate) {
  for (const Description& d : of_tokens()) {
    const Source source = emit(d, default_plan(d, Arch{}, 16), Arch{});
    EXPECT_THAT(source.entries[0].name, testing::StartsWith("ssmjit_update_"));
    EXPECT_THAT(source.text,
                AllOf(HasSubstr("// ---- update_tokens.cuh ----"), Not(HasSubstr("// ---- update.cuh ----"))));
    const std::string config = config_of(d, default_plan(d, Arch{}, 16));
    const auto says = [&](const char* field, bool value) {
      EXPECT_THAT(config, HasSubstr(std::string(field) + " = " + (value ? "true;" : "false;")));
    };
    EXPECT_THAT(config, HasSubstr("kTokens = " + std::to_string(d.token_count) + ";"));
    says("kAccepted", d.has_accepted);
    says("kTree", d.has_tree);
    says("kVarlen", d.is_varlen);
    const char* const store = std::holds_alternative<Slots>(d.store_kind)       ? "StateStore::slots;"
                              : std::holds_alternative<Snapshots>(d.store_kind) ? "StateStore::snapshots;"
                                                                                : "StateStore::in_place;";
    EXPECT_THAT(config, HasSubstr(std::string("kStore = ") + store));
  }
}

TEST(Emit, AReplayIsTheStepOfARingOfTheLastTokens) {
  const Source source = emit(replay_model(), default_plan(replay_model(), Arch{}, 16), Arch{});
  EXPECT_THAT(source.entries[0].name, testing::StartsWith("ssmjit_replay_"));
  EXPECT_THAT(source.text,
              AllOf(HasSubstr("// ---- ring.cuh ----"), HasSubstr("// ---- replay.cuh ----"),
                    HasSubstr("kTokens = 6;\n  static constexpr int kWindow = 6;\n  static constexpr int kRing = 6;\n"
                              "  static constexpr bool kReplay = true;\n"),
                    HasSubstr("  replay_step<Config>(args);\n"), Not(HasSubstr("// ---- update.cuh ----"))));
  const std::string banner = source.text.substr(0, source.text.find("\n\n"));
  EXPECT_THAT(banner, Not(HasSubstr("With a flush")));
  for (const Tunable& t : tunables(Op::replay)) EXPECT_THAT(banner, HasSubstr("//   " + t.name + ": " + t.meaning));
}

// ---- the plan space ----

TEST(PlanSpace, OfTokensIsSmallAndHoldsTheirInputsInSharedMemory) {
  for (const Description& d : of_tokens()) {
    const std::vector<Plan> all = plan_space(d, Arch{});
    EXPECT_LE(all.size(), 400u) << d.summary();
    for (const Plan& plan : all) {
      ASSERT_EQ(plan.heads_per_block, 1);
      ASSERT_EQ(plan.state_path, StatePath::direct);
      ASSERT_EQ(launch_shape(plan, d, 1).smem_bytes, 0) << "all of it is static";
    }
  }
  for (const int head_dim : {8, 40, 64, 80, 128, 256})
    for (int dstate = 16; dstate <= 256; dstate += 8)
      for (const DType state : {DType::f32, DType::bf16, DType::i8}) {
        if (state == DType::i8 && dstate % 64 != 0) continue;
        const Description d = mamba2({.nheads = 2, .head_dim = head_dim, .dstate = dstate, .ngroups = 1})
                                  .state(state)
                                  .tokens(16)
                                  .input(DType::f32)
                                  .store(Slots{});
        EXPECT_THAT(plan_space(d, Arch{}), Not(IsEmpty())) << d.summary();
      }
}

TEST(PlanSpace, OfARoundedUpdateIsSmallNeverEmptyAndOfOneHeadABlock) {
  for (const int head_dim : {8, 40, 64, 80, 128, 256})
    for (int dstate = 16; dstate <= 256; dstate += 8)
      for (const DType state : {DType::bf16, DType::f16, DType::i8, DType::f8, DType::i16}) {
        if (size_bytes(state) == 1 && dstate % 16 != 0) continue;
        const Description d = mamba2({.nheads = 2, .head_dim = head_dim, .dstate = dstate, .ngroups = 1})
                                  .state(state)
                                  .rounding(Stochastic{});
        const std::vector<Plan> all = plan_space(d, Arch{});
        ASSERT_THAT(all, Not(IsEmpty())) << d.summary();
        ASSERT_LE(all.size(), 800u) << d.summary();
        for (const Plan& plan : all) {
          ASSERT_EQ(plan.heads_per_block, 1);
          ASSERT_EQ(launch_shape(plan, d, 1).smem_bytes, 0);
          ASSERT_EQ(plan_smem_bytes(plan, d, Arch{}), 0);
        }
        // Nearest draws no bits, so there is nothing to draw ahead.
        for (const Plan& plan : plan_space(Description(d).state(DType::i16).rounding(Nearest{}), Arch{}))
          ASSERT_EQ(plan.stages, 1);
      }
}

TEST(PlanSpace, HoldsLegalPlansOnlyAndEachOnce) {
  for (const Description& d : all_descriptions()) {
    for (const Arch& arch : Arch::known()) {
      const std::vector<Plan> all = plan_space(d, arch);
      ASSERT_THAT(all, Not(IsEmpty())) << d.summary() << " on " << arch.text();
      std::set<std::string> texts;
      for (const Plan& plan : all) {
        ASSERT_THAT(plan_problems(plan, d, arch), IsEmpty()) << plan.text();
        ASSERT_TRUE(texts.insert(plan.text()).second) << plan.text();
        ASSERT_LE(launch_shape(plan, d, 1).smem_bytes, arch.max_smem_bytes());
        ASSERT_LE(launch_shape(plan, d, 1).block_threads, 1024);
        if (!arch.has_bulk_copy()) {
          ASSERT_NE(plan.state_path, StatePath::bulk);
        }
      }
    }
  }
}

TEST(PlanSpace, OfARingIsSmallAndItsWarpsTakeWholeProducts) {
  for (const Description& d : rings()) {
    const std::vector<Plan> all = plan_space(d, Arch{});
    EXPECT_LE(all.size(), 400u) << d.summary();
    for (const Plan& plan : all) {
      const int warp_rows = plan.block_m / plan.warps;
      ASSERT_TRUE(warp_rows == 8 || warp_rows == 16 || warp_rows == 32 || warp_rows == 64) << plan.text();
      ASSERT_EQ(plan.lanes_per_row, 4);
      ASSERT_EQ(
          launch_shape(plan, d, 1).smem_bytes,
          plan.state_path == StatePath::direct ? 0 : plan.block_m * d.dstate * size_bytes(d.state_dtype) * plan.stages);
      ASSERT_EQ(scratch_bytes(plan, d, 64), 0);
      if (d.ring_length() + d.token_count > 48) {
        ASSERT_EQ(plan.ring_rows, RingRows::live);
      }
    }
  }
}

TEST(PlanSpace, TheFieldOfARingIsWrittenWhereItIsNotAsByDefaultAndOfNoUseToAnUpdate) {
  Plan plan = default_plan(ring_model(), Arch{}, 16);
  plan.ring_rows = RingRows::all;
  EXPECT_THAT(plan.text(), Not(HasSubstr("ring_rows")));
  plan.ring_rows = RingRows::live;
  EXPECT_THAT(plan.text(), HasSubstr(",ring_rows=live"));
  EXPECT_THAT(plan.json(), HasSubstr("\"ring_rows\":\"live\""));
  EXPECT_THAT(plan_problems(plan, ring_model(), Arch{}), IsEmpty());
  Plan update = default_plan(model(), Arch{}, 16);
  update.ring_rows = RingRows::live;
  EXPECT_THAT(plan_problems(update, model(), Arch{}),
              ElementsAre("plan ring_rows: got live; update kernels have no such tunable, leave it out"));
  try {
    Plan::parse("ring_rows=some", plan);
    ADD_FAILURE() << "accepted";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "plan: ring_rows: got \"some\"; wants all or live");
  }
  EXPECT_EQ(tunables(Op::ring).back().name, "ring_rows");
  EXPECT_EQ(tunables(Op::update).back().name, "min_blocks_per_sm");
}

TEST(PlanSpace, ProblemsOfARingsPlanNameTheConditionAndItsNumbers) {
  Plan plan = default_plan(ring_model(), Arch{}, 16);
  plan.stages = 2;
  EXPECT_THAT(plan_problems(plan, ring_model(), Arch{}),
              ElementsAre(AllOf(HasSubstr("stages=2"), HasSubstr("heads_per_block=1"),
                                HasSubstr("the direct path has one head's state in registers"))));
  plan.state_path = StatePath::cp_async;
  EXPECT_THAT(plan_problems(plan, ring_model(), Arch{}), testing::Contains(HasSubstr("state_path=cp_async")));
  plan.state_path = StatePath::bulk;
  plan.heads_per_block = 4;
  plan.ring_rows = RingRows::live;
  EXPECT_THAT(plan_problems(plan, ring_model(), Arch{}), IsEmpty());
  EXPECT_THAT(plan_problems(plan, ring_model(), Arch::parse("sm_80")), ElementsAre(HasSubstr("has_bulk_copy=0")));
  plan = default_plan(ring_model(), Arch{}, 16);
  plan.ring_rows = RingRows::all;
  EXPECT_THAT(plan_problems(plan, ring_model().store(Ring{.window = 32, .length = 64}), Arch{}),
              ElementsAre(AllOf(HasSubstr("ring_rows=all"), HasSubstr("ring_and_new_rows=70"))));
}

TEST(PlanSpace, MoreThan32HeadsABlockOfARingOrAReplayAreRefusedWithTheirNumber) {
  for (Description d : {ring_model(), replay_model()}) {
    d.nheads = 80;
    Plan plan = Plan::parse("state_path=bulk,ring_rows=live,block_m=16,warps=1,stages=1", default_plan(d, Arch{}, 80));
    plan.heads_per_block = 20;
    EXPECT_THAT(plan_problems(plan, d, Arch{}), IsEmpty());
    plan.heads_per_block = 40;
    EXPECT_THAT(plan_problems(plan, d, Arch{}),
                ElementsAre(AllOf(HasSubstr("heads_per_block=40"), HasSubstr("heads_per_block <= 32"))));
  }
}

TEST(PlanSpace, TheDefaultOfARingGoesFromSingleHeadsToSeveralABlock) {
  const auto is = [](const Plan& plan, StatePath path, int block_m, int warps, int heads) {
    EXPECT_EQ(plan.state_path, path) << plan.text();
    EXPECT_EQ(plan.block_m, block_m) << plan.text();
    EXPECT_EQ(plan.warps, warps) << plan.text();
    EXPECT_EQ(plan.heads_per_block, heads) << plan.text();
    EXPECT_EQ(plan.ring_rows, RingRows::live) << plan.text();
  };
  const Description half = ring_model().state(DType::bf16), single = ring_model().state(DType::f32);
  is(default_plan(half, Arch{}, 256), StatePath::direct, 16, 1, 1);
  is(default_plan(half, Arch{}, 257), StatePath::bulk, 32, 2, 4);
  is(default_plan(half, Arch{}, 2049), StatePath::bulk, 64, 2, 8);
  is(default_plan(single, Arch{}, 2049), StatePath::bulk, 64, 4, 8);
  EXPECT_EQ(default_plan(half, Arch::parse("sm_80"), 4096).state_path, StatePath::direct);
}

TEST(PlanSpace, OrderIsFixed) { EXPECT_EQ(plan_space(model(), Arch{}), plan_space(model(), Arch{})); }

TEST(PlanSpace, GridCoversEveryRowOfEveryHeadOnce) {
  for (const Description& d : all_descriptions()) {
    for (const Plan& plan : plan_space(d, Arch{})) {
      const LaunchShape shape = launch_shape(plan, d, 5);
      ASSERT_EQ(shape.grid_x * plan.block_m * plan.heads_per_block, std::int64_t{d.nheads} * d.head_dim);
      ASSERT_EQ(shape.grid_y, 5);
    }
  }
}

TEST(PlanSpace, PlansRoundTripThroughTextAndJson) {
  for (const Description& d : {model(DType::bf16), ring_model()})
    for (const Plan& plan : plan_space(d, Arch{})) {
      ASSERT_EQ(Plan::parse(plan.text(), Plan{}), plan);
      ASSERT_EQ(Plan::from_json(plan.json()), plan);
    }
}

Description sized(int head_dim, int dstate, int ratio, DType state) {
  return mamba2({.nheads = ratio, .head_dim = head_dim, .dstate = dstate, .ngroups = 1}).state(state);
}

// Every size; the ratio and the architecture take turns, all of them when SSMJIT_TEST_ALL is set.
TEST(PlanSpace, DefaultPlanIsLegalForEverySizeThatADescriptionMayHave) {
  const int ratios[] = {1, 2, 3, 7, 14, 16};
  const DType states[] = {DType::f32, DType::bf16, DType::f16};
  const bool all = std::getenv("SSMJIT_TEST_ALL") != nullptr;
  std::size_t turn = 0;
  for (int head_dim = 8; head_dim <= 256; head_dim += 8) {
    for (int dstate = 16; dstate <= 256; dstate += 8) {
      for (std::size_t r = 0; r < (all ? 6 : 1); ++r) {
        for (std::size_t s = 0; s < (all ? 3 : 1); ++s) {
          ++turn;
          const Arch& arch = Arch::known()[turn % Arch::known().size()];
          // Plans know the state by its width, so fp32 and one of the 16-bit ones stand for all three.
          const DType state = all ? states[s] : states[turn % 2 == 0 ? 0 : 1 + turn / 2 % 2];
          const Description d = sized(head_dim, dstate, ratios[all ? r : turn % 6], state);
          ASSERT_THAT(d.problems(), IsEmpty());
          const Plan plan = default_plan(d, arch, turn % 3 == 0 ? 16 : 4096);
          ASSERT_THAT(plan_problems(plan, d, arch), IsEmpty()) << d.summary();
        }
      }
    }
  }
}

TEST(PlanSpace, ARingHasADefaultPlanForEverySizeThatItMayHave) {
  std::size_t turn = 0;
  for (int head_dim = 8; head_dim <= 256; head_dim += 8)
    for (int dstate = 32; dstate <= 256; dstate += 32)
      for (DType state : {DType::f32, DType::f16, DType::i8}) {
        const Arch& arch = Arch::known()[++turn % Arch::known().size()];
        const Description d = sized(head_dim, dstate, 7, state).store(Ring{.window = 16}).tokens(1 + turn % 16);
        if (state == DType::i8 && dstate % 64 != 0) continue;
        ASSERT_THAT(d.problems(), IsEmpty());
        const Plan plan = default_plan(d, arch, 64);
        ASSERT_THAT(plan_problems(plan, d, arch), IsEmpty()) << d.summary();
        ASSERT_LE(plan.block_m, 16);
      }
}

TEST(PlanSpace, DefaultPlanIsInTheSpaceForEveryRatioDtypeAndArch) {
  for (int ratio : {1, 2, 3, 7, 14, 16})
    for (DType state : {DType::f32, DType::bf16, DType::f16})
      for (const Arch& arch : Arch::known())
        for (int head_dim : {64, 80}) {
          const Description d = sized(head_dim, 128, ratio, state);
          ASSERT_TRUE(contains(plan_space(d, arch), default_plan(d, arch, 64))) << d.summary() << " on " << arch.text();
        }
}

TEST(PlanSpace, ProblemsNameTheConditionAndItsNumbers) {
  Plan plan = default_plan(model(), Arch{}, 16);
  plan.block_m = 40;
  EXPECT_THAT(plan_problems(plan, model(), Arch{}),
              testing::Contains(AllOf(HasSubstr("head_dim % block_m"), HasSubstr("head_dim=64"),
                                      HasSubstr("block_m=40"), HasSubstr("blocks tile the rows of a head"))));
  plan = {};
  EXPECT_THAT(plan_problems(plan, model(), Arch{}), testing::Contains(HasSubstr("block_m: got 0; wants 1 or more")));
  plan = default_plan(model(), Arch{}, 16);
  plan.lanes_per_row = 12;
  EXPECT_THAT(plan_problems(plan, model(), Arch{}),
              testing::ElementsAre(HasSubstr("lanes_per_row: got 12; wants a power of two")));
}

// ---- rows of the list of faults ----

TEST(Faults, Row24_ABulkPlanOnSm80IsNotInTheSpaceAndRefusedWithTheNumbers) {
  const Description d = model(DType::bf16);
  const Arch sm80 = Arch::parse("sm_80");
  const std::vector<Plan> on_90 = plan_space(d, Arch{}), on_80 = plan_space(d, sm80);
  const auto bulk =
      std::find_if(on_90.begin(), on_90.end(), [](const Plan& p) { return p.state_path == StatePath::bulk; });
  ASSERT_NE(bulk, on_90.end());
  EXPECT_FALSE(contains(on_80, *bulk));
  try {
    emit(d, *bulk, sm80);
    FAIL() << "emitted";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::invalid);
    EXPECT_THAT(e.what(), AllOf(HasSubstr("sm_80"), HasSubstr("has_bulk_copy=0"), HasSubstr("state_path=bulk"),
                                HasSubstr("bulk copies came with sm_90")));
  }
  EXPECT_TRUE(std::none_of(on_80.begin(), on_80.end(), [](const Plan& p) { return p.early_state; }));
  Plan early = default_plan(d, Arch{}, 64);
  early.early_state = true;
  EXPECT_TRUE(contains(on_90, early));
  EXPECT_THAT(plan_problems(early, d, sm80), ElementsAre(HasSubstr("dependent launches came with sm_90")));
}

TEST(Faults, Row24_APlanThatTakesMoreSharedMemoryThanABlockHasIsRefusedWithTheNumbers) {
  const Description d = mamba2({.nheads = 16, .head_dim = 256, .dstate = 256, .ngroups = 1});
  Plan plan{.block_m = 32,
            .warps = 4,
            .lanes_per_row = 32,
            .heads_per_block = 4,
            .stages = 4,
            .state_path = StatePath::cp_async};
  const std::int64_t bytes = 32 * 256 * 4 * 4;
  ASSERT_EQ(launch_shape(plan, d, 1).smem_bytes, bytes);
  const Arch sm90 = Arch::parse("sm_90a"), sm120 = Arch::parse("sm_120a");
  EXPECT_THAT(plan_problems(plan, d, sm90), Not(testing::Contains(HasSubstr("max_smem_bytes"))));
  EXPECT_THAT(plan_problems(plan, d, sm120),
              testing::Contains(AllOf(HasSubstr("smem_bytes=" + std::to_string(bytes)),
                                      HasSubstr("max_smem_bytes=" + std::to_string(99 * 1024)), HasSubstr("sm_120a"))));
}

}  // namespace
}  // namespace ssmjit
