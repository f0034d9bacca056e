// Forms of verifying drafts held against each other, on a device that is the host.
#include <ssmjit/speculative.h>

#include <dlfcn.h>

#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/error.h>
#include <ssmjit/plan.h>
#include <ssmjit/source.h>

#include "tests/autotune/sweep/driver/host_world.h"
#include "tests/heuristics/scoped_environment.h"

namespace ssmjit {
namespace {

using testing::Each;
using testing::HasSubstr;
using testing::SizeIs;

constexpr int kBatch = 9;

Description base() { return mamba2({.nheads = 2, .head_dim = 16, .dstate = 64, .ngroups = 1}).state(DType::bf16); }
constexpr std::int64_t kState = 2 * 16 * 64 * 2;

TEST(Drafts, AreKeptUpToTheFirstThatIsRefused) {
  EXPECT_EQ(Acceptance::of_drafts(0, 6).text(), "1");
  EXPECT_EQ(Acceptance::of_drafts(1, 6).text(), "6");
  EXPECT_EQ(Acceptance::of_drafts(0.5, 3).chance, (std::vector<double>{0.5, 0.25, 0.25}));
  EXPECT_NEAR(Acceptance::of_drafts(0.8, 6).mean(), 1 + 0.8 + 0.64 + 0.512 + 0.4096 + 0.32768, 1e-12);
  EXPECT_EQ(Acceptance::of_drafts(0.3, 1).text(), "1");
  for (double chance : {-0.1, 1.1, std::nan("")}) EXPECT_THROW(Acceptance::of_drafts(chance, 6), Error);
  EXPECT_THROW(Acceptance::of_drafts(0.5, 17), Error);
}

TEST(DraftForms, KeepWhatTheContractSaysBesideTheState) {
  const Description d = mamba2({.nheads = 16, .head_dim = 64, .dstate = 128}).state(DType::bf16);
  const auto bytes = [&](DraftForm form) { return draft_slot_bytes(draft_step(d, form, 6)); };
  const std::int64_t state = 16 * 64 * 128 * 2;
  EXPECT_EQ(bytes(DraftForm::snapshots), 7 * state);  // 1.57 MB beside the state
  EXPECT_EQ(bytes(DraftForm::slots), 6 * state);
  EXPECT_EQ(bytes(DraftForm::replay), state + 16896);  // 16.9 KB
  EXPECT_EQ(bytes(DraftForm::ring), ring_slot_bytes(Description(d).tokens(6).store(Ring{.window = 16})));
  EXPECT_EQ(draft_slot_bytes(draft_step(Description(d).state(DType::i8), DraftForm::slots, 2)),
            2 * (16 * 64 * 128 + 4 * 16 * 64));
  EXPECT_THROW(draft_slot_bytes(d), Error) << "no step of drafts";
}

TEST(DraftForms, AreOfWhatHasAState) {
  EXPECT_EQ(draft_step(draft_step(base(), DraftForm::ring, 6), DraftForm::slots, 4), base().tokens(4).store(Slots{}));
  EXPECT_EQ(draft_step(base().tokens(3).destination_slots(), DraftForm::snapshots, 6),
            base().tokens(6).store(Snapshots{}));
  EXPECT_EQ(draft_step(base(), DraftForm::ring, 6, 12).ring_window(), 12);
  EXPECT_THROW(draft_step(conv1d({.channels = 64}), DraftForm::slots, 6), Error);
}

SpeculativeStep step(DraftForm form, int batch, double us) {
  SpeculativeStep s;
  s.form = form;
  s.base = s.kernel = "a step";
  s.batch = batch;
  s.tokens = 6;
  s.accepted = "4";
  s.kept = 4;
  s.us = s.kernel_us = us;
  s.plan = default_plan(base(), Arch{9, 0, 'a'}, 4);
  return s;
}

TEST(SpeculativeLines, AreReadBackAndBadOnesCounted) {
  SpeculativeStep s = step(DraftForm::snapshots, 8, 12.5);
  s.draft_chance = 0.8;
  s.kernel_us = 9;
  s.copies_us = 3.25;
  s.floor_us = 11;
  s.share = 0.88;
  s.us_per_token = 3.125;
  s.slot_bytes = 7 * kState;
  s.moved_bytes = 123456;
  s.copied_bytes = 2 * kState;
  s.why = Why::nearest;
  s.policy = "median";
  s.device = "h200";
  SpeculativeStep failed = step(DraftForm::replay, 8, 0);
  failed.outcome = Outcome::spills;
  failed.reason = "8 bytes";
  int skipped = 0;
  const std::vector<SpeculativeStep> read =
      parse_speculative(s.json() + "\n\n{\"schema\": 2}\n{}\nno JSON\n" + failed.json() + "\n" + s.json(), &skipped);
  EXPECT_EQ(skipped, 3);
  ASSERT_THAT(read, SizeIs(2)) << "the last line is torn";
  EXPECT_EQ(read[0].json(), s.json());
  EXPECT_EQ(read[0].copied_bytes, 2 * kState);
  EXPECT_EQ(read[0].plan, s.plan);
  EXPECT_EQ(read[1].outcome, Outcome::spills);
  EXPECT_EQ(read[1].reason, "8 bytes");
  std::string other = s.json();
  other.replace(other.find("snapshots"), 9, "telegraph");
  try {
    SpeculativeStep::from_json(other);
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("form: got \"telegraph\""));
  }
}

TEST(SpeculativeLines, TheFastestFormIsOneOfTheSameSizeThatWasTimed) {
  std::vector<SpeculativeStep> all = {step(DraftForm::snapshots, 1, 5), step(DraftForm::slots, 1, 4),
                                      step(DraftForm::replay, 1, 2), step(DraftForm::ring, 8, 3),
                                      step(DraftForm::ring, 1, 1)};
  all[2].outcome = Outcome::wrong;
  all[4].accepted = "6";
  EXPECT_EQ(fastest_form(all, all[0]), &all[1]);
  EXPECT_EQ(fastest_form(all, all[3]), &all[3]);
  EXPECT_EQ(fastest_form(all, step(DraftForm::ring, 64, 1)), nullptr);
}

class Speculative : public testing::Test {
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
    ASSERT_NE(kernels, nullptr);
    kernels({argument_bytes, launch});
    world = &world_;
    options_.batches = {kBatch};
    options_.tokens = {3};
    options_.ring_window = 6;
  }
  void TearDown() override { world = nullptr; }

  // One form, whose kernel costs `cost`; a copy of slots costs 10 times the layers.
  std::vector<SpeculativeStep> run(DraftForm form, Cost cost, const Description& of = base()) {
    const Description d = draft_step(of, form, 3, 6);
    const Arch arch{9, 0, 'a'};
    world_.description = d;
    options_.forms = {form};
    const Plan plan = lookup(options_.table, d, "h200", arch, kBatch, options_.mode).plan;
    for (const Entry& entry : emit(d, plan, arch).entries) world_.cost[entry.name] = cost;
    return compare_speculative(of, options_);
  }

  ScopedEnvironment driver_{"SSMJIT_LIBCUDA", SSMJIT_HOST_LIBCUDA};
  World world_;
  SpeculativeOptions options_;
};

TEST_F(Speculative, SnapshotsAreCopiedToTheirSlotsInOneLaunchAndTheirStepHasBoth) {
  std::map<int, int> copied;  // launches by the token that request 0 keeps
  world_.copied = [&](int from, int to, std::int64_t bytes) {
    const int token = from - kBatch - to * 3;
    EXPECT_TRUE(token >= 0 && token < 3) << from << " to " << to;
    EXPECT_EQ(bytes % kState, 0);
    EXPECT_GT(bytes, kState) << "of all layers";
    if (to == 0) ++copied[token];
  };
  options_.draft_chances = {0, 1};
  world_.cost["ssmjit_slot_copies"] = {40, 0};
  const std::vector<SpeculativeStep> all = run(DraftForm::snapshots, {4, 0});
  ASSERT_THAT(all, SizeIs(2));
  for (const SpeculativeStep& s : all) {
    ASSERT_EQ(s.outcome, Outcome::ok) << s.reason;
    EXPECT_NEAR(s.kernel_us, 4, 1e-3);
    EXPECT_NEAR(s.copies_us, 40.0 / s.layers, 1e-3);
    EXPECT_NEAR(s.us, s.kernel_us + s.copies_us, 1e-3);
    // A pass takes a microsecond there: one a layer, and one for the copies of all.
    EXPECT_NEAR(s.floor_us, 1 + 1.0 / s.layers, 1e-3);
    EXPECT_NEAR(s.share, s.floor_us / s.us, 1e-6);
    EXPECT_EQ(s.slot_bytes, 4 * kState);
    EXPECT_EQ(s.copied_bytes, 2 * kBatch * kState);
    EXPECT_EQ(s.moved_bytes, bytes_moved(world_.description, kBatch).total());
  }
  EXPECT_EQ(all[0].kept, 1);
  EXPECT_EQ(all[1].kept, 3);
  EXPECT_NEAR(all[1].us_per_token, all[1].us / 3, 1e-6);
  EXPECT_THAT(copied, testing::UnorderedElementsAre(testing::Key(0), testing::Key(2)));
  EXPECT_EQ(copied[0], copied[2]);
}

TEST_F(Speculative, FactorsOfAScaledStateAreCopiedInTheSameLaunch) {
  std::vector<std::int64_t> copied;
  world_.copied = [&](int, int, std::int64_t bytes) { copied.push_back(bytes); };
  options_.draft_chances = {0.5};
  const std::vector<SpeculativeStep> all = run(DraftForm::snapshots, {4, 0}, base().state(DType::i8));
  ASSERT_THAT(all, SizeIs(1));
  ASSERT_EQ(all[0].outcome, Outcome::ok) << all[0].reason;
  EXPECT_THAT(copied, Each(all[0].layers * (2 * 16 * 64 + 2 * 16 * 4)));
}

TEST_F(Speculative, SlotsCopyNothing) {
  world_.copied = [](int, int, std::int64_t) { ADD_FAILURE(); };
  const std::vector<SpeculativeStep> all = run(DraftForm::slots, {4, 0});
  ASSERT_THAT(all, SizeIs(4));
  for (const SpeculativeStep& s : all) {
    ASSERT_EQ(s.outcome, Outcome::ok) << s.reason;
    EXPECT_NEAR(s.us, 4, 1e-3);
    EXPECT_EQ(s.copies_us, 0);
    EXPECT_EQ(s.copied_bytes, 0);
  }
}

TEST_F(Speculative, ARingIsTheMeanOfItsPhasesAtTheAcceptance) {
  const std::vector<SpeculativeStep> all = run(DraftForm::ring, {2, 9});
  ASSERT_THAT(all, SizeIs(4));
  for (const SpeculativeStep& s : all) {
    ASSERT_EQ(s.outcome, Outcome::ok) << s.reason;
    const double n = steps_per_flush(6, 3, Acceptance::of_drafts(s.draft_chance, 3));
    EXPECT_NEAR(s.steps_per_flush, n, 1e-9);
    EXPECT_NEAR(s.us, ((n - 1) * 2 + 9) / n, 1e-3);
    const Description& d = world_.description;
    const auto bytes = [&](Phase phase) {
      return static_cast<double>(bytes_moved(d, kBatch, phase, timed_ring_count(d, phase)).total());
    };
    EXPECT_NEAR(static_cast<double>(s.moved_bytes), ((n - 1) * bytes(Phase::no_flush) + bytes(Phase::flush)) / n, 1);
  }
  EXPECT_LT(all[0].us, all[3].us) << "more kept, more flushes";
}

TEST_F(Speculative, AReplayGoesByWhatWasKeptOfTheStepBefore) {
  std::set<std::vector<int>> counts;  // of the launches at the timed size
  world_.spoil = [&](const RingArgs& args, std::int64_t batch) {
    if (batch != kBatch) return;
    const int* of = static_cast<const int*>(args.ring_count.data);
    counts.insert(std::vector<int>(of, of + kBatch));
  };
  options_.draft_chances = {0, 0.5, 1};
  const std::vector<SpeculativeStep> all = run(DraftForm::replay, {3, 0});
  ASSERT_THAT(all, SizeIs(3));
  for (const SpeculativeStep& s : all) {
    ASSERT_EQ(s.outcome, Outcome::ok) << s.reason;
    EXPECT_NEAR(s.us, 3, 1e-3);
  }
  EXPECT_TRUE(counts.contains(std::vector<int>(kBatch, 1)));
  EXPECT_TRUE(counts.contains(std::vector<int>(kBatch, 3)));
  EXPECT_THAT(counts, SizeIs(3)) << "and one that is drawn";
}

TEST_F(Speculative, BehindAProducerItsPartIsTakenOffAndTheCopiesHaveNone) {
  options_.mode = PdlMode::chain;
  options_.draft_chances = {1};
  world_.cost["ssmjit_slot_copies"] = {40, 0};
  const std::vector<SpeculativeStep> all = run(DraftForm::snapshots, {4, 0});
  ASSERT_EQ(all[0].outcome, Outcome::ok) << all[0].reason;
  EXPECT_NEAR(all[0].kernel_us, 4, 1e-3);
  EXPECT_NEAR(all[0].copies_us, 40.0 / all[0].layers, 1e-3);
  EXPECT_NEAR(all[0].us, 4 + 40.0 / all[0].layers, 1e-3);
}

TEST_F(Speculative, AFormThatCannotBeDescribedIsLeftOutAndAWrongOneFails) {
  options_.draft_chances = {0.8};
  std::vector<SpeculativeStep> all = run(DraftForm::slots, {4, 0}, base().state(DType::i8));
  EXPECT_EQ(all.at(0).outcome, Outcome::ok) << all[0].reason;
  options_.forms = {DraftForm::replay};
  all = compare_speculative(base().state(DType::i8), options_);
  ASSERT_THAT(all, SizeIs(1));
  EXPECT_EQ(all[0].outcome, Outcome::pruned);
  EXPECT_THAT(all[0].reason, HasSubstr("int8"));
  world_.spoil = [](const RingArgs& args, std::int64_t batch) {
    if (batch == kBatch) std::memset(bytes_of(args.out), 0x40, 4);
  };
  all = run(DraftForm::replay, {3, 0});
  EXPECT_EQ(all.at(0).outcome, Outcome::wrong);
  EXPECT_EQ(all[0].us, 0);
}

TEST_F(Speculative, WrongOptionsAreRefusedAllAtOnce) {
  options_.batches = {0};
  options_.tokens = {1, 17, 3};
  options_.draft_chances = {1.5};
  try {
    compare_speculative(base(), options_);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::invalid);
    for (const char* part : {"batches: got 0", "tokens: got 1;", "tokens: got 17", "acceptance: got 1.5"})
      EXPECT_THAT(e.what(), HasSubstr(part));
  }
  options_ = {};
  options_.accepted = Acceptance::constant(7);
  EXPECT_THROW(compare_speculative(base(), options_), Error) << "of 6 tokens";
  options_ = {};
  EXPECT_THROW(compare_speculative(conv1d({.channels = 64}), options_), Error);
}

}  // namespace
}  // namespace ssmjit
