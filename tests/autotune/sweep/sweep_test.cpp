// The sweep on a device that is the host: kernels are the double reference, and take as long as the test says.
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/cubin.h>
#include <ssmjit/error.h>
#include <ssmjit/source.h>
#include <ssmjit/tune.h>

#include "autotune/host_numbers.h"
#include "tests/autotune/sweep/driver/host_world.h"
#include "tests/heuristics/scoped_environment.h"

namespace ssmjit {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::Field;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

// ---- the tests ----

constexpr int kBatch = 9;  // none that verification has

Description ring() {
  return mamba2({.nheads = 4, .head_dim = 16, .dstate = 64, .ngroups = 2})
      .tokens(3)
      .state(DType::bf16)
      .store(Ring{.window = 6});
}

class Sweep : public testing::Test {
 protected:
  void SetUp() override {
    try {
      nvrtc_version();
    } catch (const Error& e) {
      GTEST_SKIP() << e.what();
    }
    void* handle = dlopen(SSMJIT_HOST_LIBCUDA, RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(handle, nullptr) << dlerror();
    auto* kernels = reinterpret_cast<decltype(&host_kernels)>(dlsym(handle, "host_kernels"));
    bytes_in_use_ = reinterpret_cast<decltype(&host_bytes_in_use)>(dlsym(handle, "host_bytes_in_use"));
    memory_ = reinterpret_cast<decltype(&host_memory)>(dlsym(handle, "host_memory"));
    begin_capture_ = reinterpret_cast<decltype(&cuStreamBeginCapture)>(dlsym(handle, "cuStreamBeginCapture_v2"));
    end_capture_ = reinterpret_cast<decltype(&cuStreamEndCapture)>(dlsym(handle, "cuStreamEndCapture"));
    ASSERT_NE(kernels, nullptr);
    kernels({argument_bytes, launch});
    world = &world_;
    use(ring());
  }
  void TearDown() override { world = nullptr; }

  // Plans of the description, none for dependent launches, and what they cost.
  void use(const Description& description, const std::vector<Cost>& costs = {{2, 9}, {4, 6}}) {
    world_ = {};
    world_.description = description;
    const Arch arch{9, 0, 'a'};
    options_ = {};
    options_.batches = {kBatch};
    for (const Plan& plan : plan_space(description, arch)) {
      if (options_.plans.size() == costs.size()) break;
      // Of a layer its chain: the device that is the host runs the parts.
      if (plan.early_state || (description.op() == Op::layer && plan.form == PlanForm::fused)) continue;
      // Of a chain that of its update or ring; the other launches take no time.
      for (const Entry& entry : emit(description, plan, arch).entries)
        if (plan.form == PlanForm::fused || entry.name.find("_ring_") != std::string::npos)
          world_.cost[entry.name] = costs[options_.plans.size()];
      options_.plans.push_back(plan);
    }
    ASSERT_EQ(options_.plans.size(), costs.size());
  }
  // Without the lines that say that a plan is right.
  std::vector<Measurement> run() {
    std::vector<Measurement> all = sweep(world_.description, options_);
    std::erase_if(all, [](const Measurement& m) { return m.phase == "verify" && m.outcome == Outcome::ok; });
    return all;
  }

  ScopedEnvironment driver_{"SSMJIT_LIBCUDA", SSMJIT_HOST_LIBCUDA};
  decltype(&host_bytes_in_use) bytes_in_use_ = nullptr;
  decltype(&host_memory) memory_ = nullptr;
  decltype(&cuStreamBeginCapture) begin_capture_ = nullptr;
  decltype(&cuStreamEndCapture) end_capture_ = nullptr;
  World world_;
  TuneOptions options_;
};

TEST_F(Sweep, TimesBothPhasesOfARingAndTheLeastWeightedStepWins) {
  const std::vector<Measurement> all = run();
  ASSERT_THAT(all, SizeIs(2));
  for (const Measurement& m : all) {
    EXPECT_EQ(m.op, Op::ring);
    EXPECT_EQ(m.phase, "weighted");
    EXPECT_EQ(m.steps_per_flush, 2) << "2 of 3 tokens accepted, a window of 6";
    ASSERT_THAT(m.phases, SizeIs(2)) << m.reason;
    EXPECT_EQ(m.phases[0].ring_count, 3);
    EXPECT_EQ(m.phases[1].ring_count, 5);
    EXPECT_EQ(m.phases[1].bytes, bytes_moved(ring(), kBatch, Phase::flush, 5));
    EXPECT_NEAR(m.floor_us, 1, 1e-4);
    EXPECT_GE(m.layers, 8);
    EXPECT_EQ(Measurement::from_json(m.json()).key(), m.key());
  }
  const Table table = fit_table(all);
  ASSERT_THAT(table.rows, SizeIs(1));
  EXPECT_EQ(table.rows[0].plan, options_.plans[1]) << "4 and 6 against 2 and 9";
  EXPECT_EQ(table.rows[0].us, 5);
  EXPECT_EQ(table.rows[0].no_flush, (PhaseTime{4, 1}));
  EXPECT_EQ(table.rows[0].flush, (PhaseTime{6, 1}));
  EXPECT_EQ(bytes_in_use_(), 0u) << "nothing is kept";
}

TEST_F(Sweep, TheAcceptanceDecides) {
  options_.accepted = Acceptance::constant(1);
  const Table table = fit_table(run());
  ASSERT_THAT(table.rows, SizeIs(1));
  EXPECT_EQ(table.rows[0].plan, options_.plans[0]) << "a flush every fourth step";
  EXPECT_EQ(table.rows[0].us, 3.75);
}

TEST_F(Sweep, WhatAJournalHoldsIsNotMeasuredAgainUnlessTheAcceptanceChanges) {
  options_.known = run();
  EXPECT_THAT(run(), IsEmpty());
  options_.accepted = Acceptance::constant(1);
  EXPECT_THAT(run(), SizeIs(2));
}

TEST_F(Sweep, ProgressNamesACellWhenItStartsAndWhenItIsDone) {
  std::vector<std::string> events;
  options_.progress = [&](const Progress& p) {
    if (p.stage != "verify") events.push_back(fmt::format("{} {}/{}", p.stage, p.done, p.total));
  };
  options_.on_measurement = [&](const Measurement& m) {
    if (m.phase != "verify") events.push_back(fmt::format("line of {}", m.batch));
  };
  run();
  EXPECT_THAT(events, testing::ElementsAre("batch 9 off 0/1", "line of 9", "line of 9", "batch 9 off 1/1"));
}

TEST_F(Sweep, WhatAJournalHoldsIsNotVerifiedAgain) {
  options_.verify_only = true;
  const std::vector<Measurement> verified = sweep(world_.description, options_);
  ASSERT_THAT(verified, SizeIs(2));
  for (const Measurement& m : verified) {
    EXPECT_EQ(m.phase, "verify");
    EXPECT_EQ(m.outcome, Outcome::ok) << m.reason;
    EXPECT_GT(m.registers, 0);
  }
  EXPECT_THAT(fit_table(verified).rows, IsEmpty());
  options_.known = {verified[0]};
  EXPECT_THAT(sweep(world_.description, options_), ElementsAre(Field(&Measurement::plan, options_.plans[1])));
  options_.known = verified;
  world_.batches.clear();
  EXPECT_THAT(sweep(world_.description, options_), IsEmpty());
  EXPECT_THAT(world_.batches, IsEmpty());
  options_.verify_only = false;
  EXPECT_THAT(sweep(world_.description, options_), SizeIs(2));
  EXPECT_THAT(world_.batches, Each(kBatch)) << "of no batch that verification has";
}

TEST_F(Sweep, TheWinnerIsTheLastLineOfItsCellAndTheOthersNearItAreTies) {
  use(ring(), {{2, 9}, {2, 9}, {8, 8}});
  const std::vector<Measurement> all = run();
  ASSERT_THAT(all, SizeIs(3));
  EXPECT_EQ(all[0].outcome, Outcome::dropped) << "45% slower after its first replays";
  EXPECT_FALSE(all[0].tie);
  EXPECT_EQ(all[1].outcome, Outcome::ok);
  EXPECT_TRUE(all[1].tie);
  EXPECT_EQ(all[2].outcome, Outcome::ok);
  EXPECT_FALSE(all[2].tie);
  EXPECT_TRUE(Measurement::from_json(all[1].json()).tie);
}

TEST_F(Sweep, WithRoundsEveryPlanIsTimedToTheEnd) {
  use(ring(), {{2, 9}, {20, 90}, {4, 6}});
  options_.known = run();
  options_.rounds = 10;
  const std::vector<Measurement> all = run();
  ASSERT_THAT(all, SizeIs(3)) << "what was timed otherwise is another line";
  for (const Measurement& m : all) {
    EXPECT_EQ(m.outcome, Outcome::ok);
    EXPECT_FALSE(m.tie);
    EXPECT_THAT(m.policy, HasSubstr("median of 12 replays"));
  }
  EXPECT_EQ(all[2].plan, options_.plans[2]) << "the winner";
}

// Little enough that many plans are soon timed.
Description little() { return mamba2({.nheads = 2, .head_dim = 16, .dstate = 32, .ngroups = 1}).state(DType::bf16); }
std::vector<Cost> different_costs() {
  std::vector<Cost> costs;
  for (int i = 0; i < 26; ++i) costs.push_back({2.0 + 0.1 * (i * 7 % 26), 0});
  return costs;
}

TEST_F(Sweep, WhatTheSearchDoesNotAskForIsNotTimed) {
  use(little(), different_costs());
  options_.batches = {1, 2, 3, 4};
  std::map<int, int> lines;
  for (const Measurement& m : sweep(world_.description, options_)) ++lines[m.batch];
  EXPECT_EQ(lines[0], 26) << "verified, as they are all timed at the ends and in the middle";
  EXPECT_EQ(lines[1] + lines[2] + lines[4], 3 * 26);
  EXPECT_EQ(lines[3], 24) << "the least that halving leaves";
}

TEST_F(Sweep, WhatTheSearchNeverAsksForIsNotVerified) {
  use(little(), different_costs());
  options_.batches = {1};
  options_.search = Search::model;
  options_.known = run();  // a cell that is done
  options_.batches = {1, 2};
  std::vector<std::pair<double, std::string>> order;
  for (const Measurement& m : options_.known) order.emplace_back(m.us, m.plan.text());
  std::sort(order.begin(), order.end());
  std::size_t verified = 0, timed = 0;
  std::set<std::string> first, fastest;
  for (std::size_t i = 0; i < 6; ++i) fastest.insert(order.at(i).second);
  for (const Measurement& m : sweep(world_.description, options_)) {
    if (m.phase == "verify" && first.size() < 6) first.insert(m.plan.text());
    verified += m.phase == "verify" ? 1 : 0;
    timed += m.batch == 2 ? 1 : 0;
    EXPECT_NE(m.batch, 1);
  }
  EXPECT_GE(timed, 6u);
  EXPECT_LE(timed, 26u);
  EXPECT_EQ(verified, timed);
  EXPECT_EQ(first, fastest) << "the best of the batch next to it come first";
}

TEST_F(Sweep, AResumedSearchAsksForNothingNew) {
  for (const Search search : {Search::halving, Search::model}) {
    use(little(), different_costs());
    options_.batches = {1, 2, 3, 4};
    options_.search = search;
    for (const Measurement& m : sweep(world_.description, options_))
      options_.known.push_back(Measurement::from_json(m.json()));
    world_.batches.clear();
    EXPECT_THAT(run(), IsEmpty()) << name(search);
    EXPECT_THAT(world_.batches, IsEmpty()) << name(search);
  }
}

TEST_F(Sweep, SaysWhatItDoesNextAndToWhichPlan) {
  std::vector<std::string> stages;
  options_.plans.resize(1);
  options_.on_doing = [&](const Doing& doing) {
    if (stages.empty() || stages.back() != doing.stage) stages.push_back(doing.stage);
    ASSERT_EQ(doing.line == nullptr, doing.stage == "floor" || doing.stage == "compile") << doing.stage;
    if (doing.line != nullptr) {
      EXPECT_EQ(doing.line->plan, options_.plans[0]);
    }
  };
  const std::vector<Measurement> all = sweep(world_.description, options_);
  EXPECT_THAT(stages,
              ElementsAre("floor", "compile", "verify", "verified", "compile", "load", "time", "check", "time"));
}

TEST_F(Sweep, EndsWithWhatIsThrownWhereItSaysWhatItDoes) {
  for (const char* stage : {"compile", "verify", "verified", "load", "floor", "time", "check"}) {
    options_.on_doing = [&](const Doing& doing) {
      if (doing.stage == stage) throw Error(ErrorKind::machine, "nobody listens");
    };
    int failed = 0;
    options_.on_measurement = [&](const Measurement& m) { failed += m.outcome == Outcome::launch_failed ? 1 : 0; };
    try {
      sweep(world_.description, options_);
      ADD_FAILURE() << "nothing was thrown: " << stage;
    } catch (const Error& e) {
      EXPECT_STREQ(e.what(), "nobody listens");
    }
    EXPECT_EQ(failed, 0) << stage;
  }
}

TEST_F(Sweep, Row20_WhileAStreamIsBeingCapturedItIsRefusedAndTheCaptureGoesOn) {
  begin_capture_(nullptr, CU_STREAM_CAPTURE_MODE_GLOBAL);
  try {
    sweep(world_.description, options_);
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::invalid);
    EXPECT_THAT(e.what(), HasSubstr("end the capture first"));
  }
  CUgraph graph = nullptr;
  EXPECT_EQ(end_capture_(nullptr, &graph), CUDA_SUCCESS);
  EXPECT_NE(graph, nullptr);
}

TEST_F(Sweep, Row25_AGpuThatIsFullIsALineAndTheNextSweepTriesAgain) {
  options_.verify_only = true;
  options_.known = sweep(world_.description, options_);
  options_.verify_only = false;
  memory_(std::size_t{64} << 10);
  const std::vector<Measurement> full = run();
  memory_(std::size_t{1} << 30);
  ASSERT_THAT(full, SizeIs(1));
  EXPECT_EQ(full[0].outcome, Outcome::memory_failed);
  EXPECT_FALSE(full[0].reason.empty());
  options_.known.push_back(full[0]);
  EXPECT_THAT(run(), SizeIs(2));
}

TEST_F(Sweep, Row26_APlanThatIsUnsoundAtOneSizeIsNotMeasuredAtTheNext) {
  options_.batches = {kBatch, kBatch + 1};
  options_.plans.resize(1);
  world_.spoil = [&](const RingArgs& args, std::int64_t batch) {
    if (batch == kBatch) encode(args.out.dtype, bytes_of(args.out), 0, NAN);
  };
  for (int i = 0; i < 2; ++i) {
    const std::vector<Measurement> all = run();
    ASSERT_THAT(all, SizeIs(i == 0 ? 1 : 0));
    options_.known.insert(options_.known.end(), all.begin(), all.end());
  }
}

TEST_F(Sweep, BehindAProducerItsPartIsTakenOff) {
  options_.modes = {PdlMode::chain};
  const Table table = fit_table(run());
  ASSERT_THAT(table.rows, SizeIs(1));
  EXPECT_EQ(table.rows[0].pdl, PdlMode::chain);
  EXPECT_EQ(table.rows[0].us, 5);
}

TEST_F(Sweep, APhaseAloneIsMeasuredAndIsNoRow) {
  options_.phases = {Phase::flush};
  const std::vector<Measurement> all = run();
  ASSERT_THAT(all, SizeIs(2));
  EXPECT_EQ(all[0].phase, "flush");
  EXPECT_THAT(all[0].phases, SizeIs(1));
  EXPECT_EQ(all[0].us, all[0].phases[0].us);
  EXPECT_THAT(fit_table(all).rows, IsEmpty());
}

TEST_F(Sweep, TheFloorMovesWhatAStepMoves) {
  options_.plans.resize(1);
  run();
  const auto bytes = [&](Phase phase) {
    const Bytes b = bytes_moved(ring(), kBatch, phase, timed_ring_count(ring(), phase));
    return static_cast<double>(b.read + b.written_back + b.written_new);
  };
  ASSERT_FALSE(world_.passed.empty());
  EXPECT_NEAR(static_cast<double>(world_.passed.front()), bytes(Phase::no_flush), 64);
  EXPECT_NEAR(static_cast<double>(world_.passed.back()), bytes(Phase::flush), 64);
}

TEST_F(Sweep, EveryKindOfRingHasLayersThatItsKernelsTake) {
  const std::vector<Description> kinds = {ring().state(DType::f32).gate(silu(dsl::z)),
                                          ring().state(DType::f16).rounding(Stochastic{}),
                                          ring().state(DType::i8),
                                          ring().state(DType::f8).rounding(Stochastic{}),
                                          ring().varlen(),
                                          ring().tokens(1).input(DType::f16).no_skip()};
  for (const Description& d : kinds) {
    use(d, {{2, 9}});
    options_.batches = {2};
    options_.modes = {PdlMode::chain};
    const std::vector<Measurement> all = run();
    EXPECT_THAT(all, SizeIs(1));
    for (const Measurement& m : all) EXPECT_EQ(m.outcome, Outcome::ok) << d.summary() << ": " << m.reason;
  }
}

// A layer around that ring: two groups of two heads.
Description ring_layer() {
  return ring().with_conv({.activation_expr = silu(dsl::x)}).with_norm({.group_size = 32, .gate_expr = silu(dsl::z)});
}

TEST_F(Sweep, ALayerWithARingIsTimedInBothPhasesBehindAProducerTooAndItsRowHoldsThem) {
  use(ring_layer(), {{2, 9}});
  EXPECT_EQ(options_.plans[0].form, PlanForm::chain);
  options_.modes = {PdlMode::off, PdlMode::chain};
  const std::vector<Measurement> all = run();
  ASSERT_THAT(all, SizeIs(2));
  for (const Measurement& m : all) {
    EXPECT_EQ(m.outcome, Outcome::ok) << m.reason;
    EXPECT_EQ(m.op, Op::layer);
    EXPECT_EQ(m.phase, "weighted");
    EXPECT_EQ(m.steps_per_flush, 2);
    ASSERT_THAT(m.phases, SizeIs(2));
    EXPECT_EQ(m.phases[0].bytes, bytes_moved(ring_layer(), kBatch, Phase::no_flush, 3));
    EXPECT_EQ(m.phases[1].bytes, bytes_moved(ring_layer(), kBatch, Phase::flush, 5));
    const Measurement read = Measurement::from_json(m.json());
    EXPECT_TRUE(read.has_ring());
    EXPECT_THAT(read.phases, SizeIs(2));
    EXPECT_EQ(read.key(), m.key());
  }
  const Table table = fit_table(all);
  ASSERT_THAT(table.rows, SizeIs(2));
  for (const TableRow& row : table.rows) {
    EXPECT_EQ(row.us, 5.5);
    EXPECT_EQ(row.steps_per_flush, 2);
    EXPECT_EQ(row.no_flush.us, 2);
    EXPECT_EQ(row.flush.us, 9);
  }
  EXPECT_EQ(Table::from_json(table.json()).rows, table.rows);
  const Choice choice = lookup(table, ring_layer(), all[0].device, Arch{9, 0, 'a'}, kBatch);
  EXPECT_EQ(choice.why, Why::exact);
  EXPECT_EQ(choice.plan, options_.plans[0]);
}

TEST_F(Sweep, TheFloorOfALayerWithARingMovesWhatItsStepMoves) {
  use(ring_layer(), {{2, 9}});
  run();
  const auto bytes = [&](Phase phase) {
    return static_cast<double>(bytes_moved(ring_layer(), kBatch, phase, timed_ring_count(ring_layer(), phase)).total());
  };
  ASSERT_FALSE(world_.passed.empty());
  EXPECT_NEAR(static_cast<double>(world_.passed.front()), bytes(Phase::no_flush), 64);
  EXPECT_NEAR(static_cast<double>(world_.passed.back()), bytes(Phase::flush), 64);
}

TEST_F(Sweep, EveryKindOfLayerWithARingIsVerifiedTimedAndChecked) {
  const auto with = [](const Description& d, Conv conv) { return Description(d).with_conv(std::move(conv)); };
  const Description d = ring_layer();
  const std::vector<Description> kinds = {
      Description(d).state(DType::i8).rounding(Stochastic{}),
      Description(d).tokens(1).state(DType::f32),
      Description(d).gate(silu(dsl::z)).with_norm({.group_size = 64}),
      ring().with_norm({.group_size = 32, .gate_expr = silu(dsl::z), .before_gate = true}),
      ring().with_conv({.width = 2, .channels_last = true}),
      with(d, {.state_len = 6, .keep = ConvKeep::snapshots}),
      with(d, {.state_len = 5, .store = ConvStore::circular}),
      with(d, {.state_len = 5, .channels_last = true, .has_accepted = true})};
  for (const Description& kind : kinds) {
    use(kind, {{2, 9}});
    options_.batches = {2};
    const std::vector<Measurement> all = run();
    EXPECT_THAT(all, SizeIs(1));
    for (const Measurement& m : all) EXPECT_EQ(m.outcome, Outcome::ok) << kind.summary() << ": " << m.reason;
  }
}

TEST_F(Sweep, AWrongRingLayerWinsNothing) {
  use(ring_layer(), {{2, 9}});
  // A row of a ring at the size that is timed alone, which no output shows.
  world_.spoil = [](const RingArgs& args, std::int64_t batch) {
    for (std::int64_t slot = 0; batch == kBatch && slot < batch; ++slot)
      for (int head = 0; head < 4; ++head)
        encode(args.x_ring.dtype, bytes_of(args.x_ring),
               slot * args.x_ring.stride[0] + head * args.x_ring.stride[1] + 5 * args.x_ring.stride[2], 77);
  };
  const std::vector<Measurement> all = run();
  ASSERT_THAT(all, SizeIs(1));
  EXPECT_EQ(all[0].outcome, Outcome::wrong);
  EXPECT_THAT(all[0].reason, HasSubstr("x_ring: request"));
  EXPECT_THAT(fit_table(all).rows, IsEmpty());
}

TEST_F(Sweep, TheSteadyStateOfALayerMovesItsCursorsOn) {
  use(ring_layer(), {{2, 9}});
  SteadyOptions options;
  options.steps = 60;
  const SteadyState steady = steady_state(ring_layer(), options_.plans[0], kBatch, options);
  EXPECT_NEAR(steady.flushed, 0.5, 0.05);
  EXPECT_NEAR(steady.us, 2 + steady.flushed * (9 - 2), 0.01);
}

TEST_F(Sweep, ANormIsTimedInOnePhaseOnItsInputsAndItsRowIsKeyedByGroups) {
  const Description norm =
      gated_norm({.channels = 768, .group_size = 256, .gate_expr = silu(dsl::z), .has_bias = true}).tokens(2);
  use(norm, {{3, 0}, {2, 0}});
  const std::vector<Measurement> all = run();
  ASSERT_THAT(all, SizeIs(2));
  for (const Measurement& m : all) {
    EXPECT_EQ(m.outcome == Outcome::ok || m.outcome == Outcome::dropped, true) << m.reason;
    EXPECT_EQ(m.op, Op::norm);
    EXPECT_EQ(m.total_heads(), kBatch * 2 * 3);
    EXPECT_EQ(m.bytes, bytes_moved(norm, kBatch));
    EXPECT_EQ(Measurement::from_json(m.json()).key(), m.key());
    EXPECT_EQ(Measurement::from_json(m.json()).op, Op::norm);
  }
  const Table table = fit_table(all);
  ASSERT_THAT(table.rows, SizeIs(1));
  EXPECT_EQ(table.rows[0].plan, options_.plans[1]);
  EXPECT_EQ(table.rows[0].us, 2);
  EXPECT_EQ(Table::from_json(table.json()).rows, table.rows);
  const Choice choice = lookup(table, norm, all[0].device, Arch{9, 0, 'a'}, kBatch, PdlMode::off);
  EXPECT_EQ(choice.why, Why::exact);
  EXPECT_EQ(choice.plan, options_.plans[1]);
}

TEST_F(Sweep, OfANormWithSmallLayersThereAreAThousandAndTheirTimesAreAsCold) {
  use(gated_norm({.channels = 8}).weights(DType::f32), {{3, 0}, {2, 0}});
  options_.batches = {1};
  options_.modes = {PdlMode::off, PdlMode::chain};
  const std::vector<Measurement> all = run();
  ASSERT_THAT(all, testing::Not(IsEmpty()));
  for (const Measurement& m : all) {
    EXPECT_EQ(m.layers, 1024) << m.reason;
    EXPECT_THAT(m.policy, HasSubstr("the L2 is displaced before each replay"));
    EXPECT_THAT(m.us, testing::AnyOf(testing::DoubleNear(2, 1e-6), testing::DoubleNear(3, 1e-6)));
  }
  EXPECT_EQ(bytes_in_use_(), 0u);
}

TEST_F(Sweep, AWrongNormWinsNothing) {
  use(gated_norm({.channels = 768, .group_size = 256, .gate_expr = silu(dsl::z)}), {{3, 0}, {2, 0}});
  // Its kernels are those of another description.
  world_.description.norm->before_gate = true;
  const Description right = gated_norm({.channels = 768, .group_size = 256, .gate_expr = silu(dsl::z)});
  for (const Measurement& m : sweep(right, options_)) EXPECT_EQ(m.outcome, Outcome::wrong) << m.reason;
}

TEST_F(Sweep, AnUpdateHasOnePhase) {
  use(mamba2({.nheads = 4, .head_dim = 16, .dstate = 64, .ngroups = 1}).state(DType::bf16), {{3, 0}, {2, 0}});
  const std::vector<Measurement> all = run();
  ASSERT_THAT(all, SizeIs(2));
  const Table table = fit_table(all);
  ASSERT_THAT(table.rows, SizeIs(1)) << all[0].reason;
  EXPECT_EQ(table.rows[0].op, Op::update);
  EXPECT_EQ(table.rows[0].plan, options_.plans[1]);
  EXPECT_EQ(table.rows[0].us, 2);
  EXPECT_EQ(table.rows[0].floor_us, 1);
  for (const Measurement& m : all) {
    EXPECT_EQ(m.phase, "step");
    EXPECT_THAT(m.phases, IsEmpty());
  }
}

TEST_F(Sweep, AnUpdateThatIsRoundedByChanceOrInUnitsOfAFactorIsVerifiedTimedAndChecked) {
  const Description of = mamba2({.nheads = 4, .head_dim = 16, .dstate = 64, .ngroups = 2});
  for (const Description& d :
       {Description(of).state(DType::bf16).rounding(Stochastic{}), Description(of).state(DType::i16),
        Description(of).state(DType::i8).rounding(Stochastic{}).destination_slots()}) {
    use(d, {{2, 0}});
    const std::vector<Measurement> all = run();
    ASSERT_THAT(all, SizeIs(1)) << d.summary();
    for (const Measurement& m : all) EXPECT_EQ(m.outcome, Outcome::ok) << d.summary() << ": " << m.reason;
    const Table table = fit_table(all);
    ASSERT_THAT(table.rows, SizeIs(1));
    EXPECT_EQ(lookup(table, d, all[0].device, Arch{}, kBatch, PdlMode::off).why, Why::exact);
    // Nearest with another state is another kernel, of another cost.
    EXPECT_NE(lookup(table, Description(of).state(DType::bf16), all[0].device, Arch{}, kBatch, PdlMode::off).why,
              Why::exact);
  }
}

TEST_F(Sweep, AnUpdateOfSeveralTokensOfEveryKindIsVerifiedTimedAndChecked) {
  const Description of = mamba2({.nheads = 2, .head_dim = 16, .dstate = 64, .ngroups = 2}).state(DType::bf16).tokens(3);
  for (const Description& d :
       {Description(of).destination_slots(), Description(of).store(Slots{}).accepted_counts(),
        Description(of).store(Snapshots{}).tree(), Description(of).store(Slots{}).varlen().rounding(Stochastic{}),
        Description(of).tokens(1).store(Snapshots{}).state(DType::i8)}) {
    use(d, {{2, 0}});
    options_.modes = {PdlMode::chain};
    const std::vector<Measurement> all = run();
    for (const Measurement& m : all) {
      EXPECT_EQ(m.outcome, Outcome::ok) << d.summary() << ": " << m.reason;
      EXPECT_EQ(m.op, Op::update);
      EXPECT_EQ(m.phase, "step");
      EXPECT_EQ(m.bytes, bytes_moved(d, kBatch));
    }
    const Table table = fit_table(all);
    ASSERT_THAT(table.rows, SizeIs(1)) << d.summary();
    EXPECT_EQ(table.rows[0].total_heads, 2 * kBatch);
    EXPECT_EQ(lookup(table, d, all[0].device, Arch{}, kBatch, PdlMode::chain).why, Why::exact);
    EXPECT_EQ(Table::from_json(table.json()).json(), table.json());
    // The floor moves what a step moves.
    const Bytes bytes = bytes_moved(d, kBatch);
    for (const std::uint64_t passed : world_.passed)
      EXPECT_NEAR(static_cast<double>(passed), static_cast<double>(bytes.read + bytes.written_new), 64) << d.summary();
  }
}

TEST_F(Sweep, AReplayIsVerifiedTimedInOnePhaseAndCheckedInBothModes) {
  for (const Description& d : {ring().store(Replay{}), ring().store(Replay{}).tokens(1).gate(silu(dsl::z)),
                               ring().store(Replay{}).state(DType::f16).rounding(Stochastic{})}) {
    use(d, {{2, 0}});
    options_.modes = {PdlMode::off, PdlMode::chain};
    const std::vector<Measurement> all = run();
    for (const Measurement& m : all) {
      EXPECT_EQ(m.outcome, Outcome::ok) << d.summary() << ": " << m.reason;
      EXPECT_EQ(m.op, Op::replay);
      EXPECT_EQ(m.phase, "step");
      EXPECT_EQ(m.total_heads(), kBatch * 4);
      EXPECT_EQ(m.bytes, bytes_moved(d, kBatch));
      EXPECT_EQ(Measurement::from_json(m.json()).key(), m.key());
      EXPECT_EQ(Measurement::from_json(m.json()).op, Op::replay);
    }
    const Table table = fit_table(all);
    ASSERT_THAT(table.rows, SizeIs(2));
    for (const TableRow& row : table.rows) {
      EXPECT_EQ(row.op, Op::replay);
      EXPECT_EQ(row.plan, options_.plans[0]);
    }
    EXPECT_EQ(lookup(table, d, all[0].device, Arch{}, kBatch, PdlMode::off).why, Why::exact);
    EXPECT_EQ(Table::from_json(table.json()).json(), table.json());
  }
}

TEST_F(Sweep, AReplayThatIsWrongAtTheSizeItIsTimedAtIsFound) {
  const auto all_of = [](const Tensor& t, int slot_elements) {
    for (std::int64_t slot = 0; slot < kBatch; ++slot)
      for (std::int64_t i = 0; i < slot_elements; ++i) encode(t.dtype, bytes_of(t), slot * t.stride[0] + i, 77);
  };
  struct {
    const char* name;
    Tensor RingArgs::*tensor;  // of the struct that both kernels take
    int elements;              // of a slot
  } const spoiled[] = {{"state", &RingArgs::state, 4 * 16 * 64},
                       {"out", &RingArgs::out, 3 * 4 * 16},
                       {"old_x", &RingArgs::x_ring, 3 * 4 * 16},
                       {"old_B", &RingArgs::B_ring, 2 * 3 * 2 * 64},
                       {"old_dt", &RingArgs::dt_ring, 2 * 4 * 3}};
  for (const auto& [name, tensor, elements] : spoiled) {
    use(ring().store(Replay{}), {{2, 0}});
    world_.spoil = [&, tensor = tensor, elements = elements](const RingArgs& args, std::int64_t batch) {
      if (batch == kBatch) all_of(args.*tensor, elements);
    };
    const std::vector<Measurement> all = run();
    ASSERT_THAT(all, SizeIs(1));
    EXPECT_EQ(all[0].outcome, Outcome::wrong) << name << ": " << all[0].reason;
    EXPECT_THAT(all[0].reason, HasSubstr(name));
  }
}

TEST_F(Sweep, AConvolutionOfEveryKindIsVerifiedTimedAndCheckedInBothModes) {
  const auto of = [](Conv conv) {
    conv.channels = 64;
    return conv1d(conv).tokens(2);
  };
  for (const Description& d : {of({}), of({.state_len = 4, .channels_last = true}), of({.keep = ConvKeep::slots}),
                               of({.keep = ConvKeep::snapshots}), of({.state_len = 5, .store = ConvStore::circular}),
                               of({.state_len = 4, .channels_last = true, .has_accepted = true})}) {
    use(d, {{2, 0}});
    options_.modes = {PdlMode::off, PdlMode::chain};
    const std::vector<Measurement> all = run();
    for (const Measurement& m : all) {
      EXPECT_EQ(m.outcome, Outcome::ok) << d.summary() << ": " << m.reason;
      EXPECT_EQ(m.op, Op::conv1d);
      EXPECT_EQ(m.nheads, 1) << "64 channels count as a head";
      EXPECT_EQ(Measurement::from_json(m.json()).key(), m.key());
      EXPECT_EQ(m.bytes, bytes_moved(d, kBatch));
    }
    const Table table = fit_table(all);
    ASSERT_THAT(table.rows, SizeIs(2));
    for (const TableRow& row : table.rows) {
      EXPECT_EQ(row.op, Op::conv1d);
      EXPECT_EQ(row.total_heads, kBatch);
    }
    EXPECT_EQ(lookup(table, d, all[0].device, Arch{}, kBatch, PdlMode::off).why, Why::exact);
    EXPECT_EQ(Table::from_json(table.json()).json(), table.json());
  }
}

TEST_F(Sweep, APlanThatWritesItsInputsIsFoundInSmallAndLeavesNothingToTheNext) {
  int launches = 0;
  world_.spoil = [&](const RingArgs& args, std::int64_t batch) {
    if (batch == 3 && ++launches == 1) encode(args.x.dtype, bytes_of(args.x), 7, 77);
  };
  const std::vector<Measurement> all = run();
  ASSERT_THAT(all, SizeIs(2));
  EXPECT_EQ(all[0].outcome, Outcome::nondeterministic) << "the second launch reads what the first has written";
  EXPECT_EQ(all[0].phase, "verify");
  EXPECT_EQ(all[0].plan, options_.plans[0]);
  EXPECT_EQ(all[1].outcome, Outcome::ok) << all[1].reason;
  EXPECT_EQ(all[1].plan, options_.plans[1]);
}

struct Spoiled {
  std::string name;
  std::function<void(const RingArgs&)> how;
  Outcome outcome;
  std::string reason;
};
void PrintTo(const Spoiled& spoiled, std::ostream* out) { *out << spoiled.name; }

class SpoiledStep : public Sweep, public testing::WithParamInterface<Spoiled> {};

std::vector<Spoiled> spoiled_steps() {
  const auto at = [](const Tensor& t, std::int64_t i) { return bytes_of(t) + i * size_bytes(t.dtype); };
  return {{"Output", [=](const RingArgs& a) { encode(a.out.dtype, at(a.out, 0), 0, 1e4); }, Outcome::wrong, "out"},
          {"State", [=](const RingArgs& a) { encode(a.state.dtype, at(a.state, 5), 0, 1e4); }, Outcome::wrong, "state"},
          {"Ring",
           [=](const RingArgs& a) {
             for (int row = 3; row < 9; ++row) encode(a.x_ring.dtype, at(a.x_ring, 16 * row), 0, 77);
           },
           Outcome::wrong, "x_ring"},
          {"Delta",
           [=](const RingArgs& a) {
             for (int row = 3; row < 9; ++row) encode(a.dt_ring.dtype, at(a.dt_ring, row), 0, 77);
           },
           Outcome::wrong, "dt_ring"},
          {"Chance",
           [=](const RingArgs& a) {
             static int turn = 0;
             encode(a.out.dtype, at(a.out, 0), 0, ++turn);
           },
           Outcome::nondeterministic, "launch 2 gave other bits"}};
}

TEST_P(SpoiledStep, IsFoundAtTheSizeItIsTimedAt) {
  const auto spoil = GetParam().how;
  // Layer 0's alone, and not what verification looks at.
  world_.spoil = [&](const RingArgs& args, std::int64_t batch) {
    if (batch != kBatch) return;
    for (std::int64_t slot = 0; slot < kBatch; ++slot) {
      RingArgs of_slot = args;
      for (Tensor* t : {&of_slot.state, &of_slot.x_ring, &of_slot.dt_ring, &of_slot.out})
        t->data = bytes_of(*t) + slot * t->stride[0] * size_bytes(t->dtype);
      for (int head = 0; head < 4; ++head) {
        spoil(of_slot);
        for (Tensor* t : {&of_slot.state, &of_slot.x_ring, &of_slot.dt_ring})
          t->data = bytes_of(*t) + t->stride[1] * size_bytes(t->dtype);
        of_slot.out.data = bytes_of(of_slot.out) + 16 * size_bytes(of_slot.out.dtype);
      }
    }
  };
  const std::vector<Measurement> all = run();
  ASSERT_THAT(all, SizeIs(2));
  for (const Measurement& m : all) {
    EXPECT_EQ(m.outcome, GetParam().outcome) << m.reason;
    EXPECT_THAT(m.reason, HasSubstr(GetParam().reason));
    EXPECT_EQ(m.us, 0);
  }
  EXPECT_THAT(fit_table(all).rows, IsEmpty());
}
INSTANTIATE_TEST_SUITE_P(Of, SpoiledStep, testing::ValuesIn(spoiled_steps()),
                         [](const auto& info) { return info.param.name; });

TEST_F(Sweep, TheSteadyStateMovesItsCursorsOn) {
  for (const char* accepted : {"2", "1:0.5,3:0.5"}) {
    SteadyOptions options;
    options.accepted = Acceptance::parse(accepted);
    options.steps = 60;
    const SteadyState steady = steady_state(ring(), options_.plans[0], kBatch, options);
    EXPECT_NEAR(steady.flushed, 1 / steps_per_flush(6, 3, options.accepted), 0.05) << accepted;
    EXPECT_NEAR(steady.us, 2 + steady.flushed * (9 - 2), 0.01) << accepted;
    EXPECT_EQ(steady.steps, 60);
  }
  SteadyOptions options;
  options.accepted = Acceptance::constant(4);
  EXPECT_THROW(steady_state(ring(), options_.plans[0], kBatch, options), Error);
  EXPECT_THROW(steady_state(mamba2({.nheads = 4, .head_dim = 16, .dstate = 64}), options_.plans[0], kBatch), Error);
}

}  // namespace
}  // namespace ssmjit
