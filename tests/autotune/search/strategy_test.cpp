// Strategies and pruning against what sweeps of whole spaces measured.
#include <algorithm>
#include <cmath>
#include <iostream>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/error.h>

#include "autotune/search/strategy.h"
#include "tests/autotune/search/recorded.h"

namespace ssmjit {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class OnRecorded : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Journals, OnRecorded, testing::ValuesIn(recorded_names()), [](const auto& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST_P(OnRecorded, PruningKeepsWhateverIsWithinOnePercentOfTheBestOfAnyBatch) {
  const RecordedSpace r = recorded(GetParam());
  int pruned = 0, all = 0;
  for (std::size_t i = 0; i < r.plans.size(); ++i) {
    for (const auto& [batch, us] : r.us[i]) {
      ++all;
      for (const Compiled& compiled : {Compiled{}, r.compiled[i]}) {
        const std::string why = why_pruned(r.plans[i], r.description, batch, h200(), r.floors.at(batch), compiled);
        if (why.empty()) continue;
        EXPECT_GT(us, 1.05 * r.best.at(batch)) << batch << " " << r.plans[i].text() << ": " << why;
        pruned += compiled.registers > 0 ? 1 : 0;
      }
    }
  }
  std::cout << r.name << ": pruned " << pruned << " of " << all << "\n";
  // Plans of an update have enough in flight, all of them: its constraints see to that.
  EXPECT_EQ(pruned > 0, r.description.op() == Op::ring);
}

struct Outcomes {
  double timed = 0;     // share of plans and batches
  double compiled = 0;  // share of plans
  double worst = 0, median = 0;
};

Outcomes search_recorded(const RecordedSpace& r, Search search) {
  const std::unique_ptr<Strategy> strategy =
      make_strategy(search, r.description, r.plans, r.plans.size(), {r.batches}, h200());
  std::set<std::size_t> compiled;
  std::vector<double> regrets;
  std::size_t timed = 0, all = 0;
  for (int batch : search_order(search, r.batches)) {
    std::vector<std::size_t> open;
    for (std::size_t i = 0; i < r.plans.size(); ++i)
      if (r.us[i].contains(batch)) open.push_back(i);
    all += open.size();
    // As a sweep does: asked before the floor is known, so the first answer has plans that are pruned then.
    std::vector<std::size_t> asked = strategy->ask(batch, open);
    const auto pruned = [&](std::size_t plan) {
      return !why_pruned(r.plans[plan], r.description, batch, h200(), r.floors.at(batch)).empty();
    };
    std::erase_if(open, pruned);
    std::erase_if(asked, pruned);
    if (asked.empty()) asked = strategy->ask(batch, open);
    double best = std::numeric_limits<double>::infinity();
    for (; !asked.empty(); asked = strategy->ask(batch, open)) {
      for (std::size_t plan : asked) {
        EXPECT_EQ(std::erase(open, plan), 1u) << "asked for one that is not open";
        compiled.insert(plan);
        if (!why_pruned(r.plans[plan], r.description, batch, h200(), r.floors.at(batch), r.compiled[plan]).empty())
          continue;
        ++timed;
        const double us = r.us[plan].at(batch);
        best = std::min(best, us);
        strategy->tell(batch, plan, us);
      }
    }
    strategy->finish(batch);
    regrets.push_back(std::max(0.0, best / r.best.at(batch) - 1));
  }
  std::sort(regrets.begin(), regrets.end());
  return {static_cast<double>(timed) / static_cast<double>(all),
          static_cast<double>(compiled.size()) / static_cast<double>(r.plans.size()), regrets.back(),
          regrets[regrets.size() / 2]};
}

void say(const RecordedSpace& r, Search search, const Outcomes& o) {
  std::cout << r.name << " " << name(search) << ": timed " << o.timed << ", compiled " << o.compiled
            << ", worst regret " << o.worst << ", median " << o.median << "\n";
}

TEST_P(OnRecorded, HalvingTimesHalfAndLosesNothing) {
  const RecordedSpace r = recorded(GetParam());
  const Outcomes o = search_recorded(r, Search::halving);
  say(r, Search::halving, o);
  EXPECT_LE(o.timed, 0.52);
  EXPECT_LE(o.worst, 0.002);
  EXPECT_EQ(o.median, 0);
}

TEST_P(OnRecorded, TheModelTimesAThirdAndLosesLittle) {
  const RecordedSpace r = recorded(GetParam());
  const Outcomes o = search_recorded(r, Search::model);
  say(r, Search::model, o);
  EXPECT_LE(o.timed, 0.45);
  EXPECT_LE(o.worst, 0.03);
  EXPECT_LE(o.median, 0.001);
}

TEST_P(OnRecorded, ExhaustiveTimesAllButThePrunedAndLosesNothing) {
  const Outcomes o = search_recorded(recorded(GetParam()), Search::exhaustive);
  EXPECT_GE(o.timed, 0.7);
  EXPECT_EQ(o.worst, 0);
}

TEST(Search, GoesFromTheEndsToTheMiddles) {
  EXPECT_THAT(search_order(Search::halving, {1, 2, 4, 8, 16}), ElementsAre(1, 16, 4, 2, 8));
  EXPECT_THAT(search_order(Search::model, {8, 2}), ElementsAre(2, 8));
  EXPECT_THAT(search_order(Search::halving, {7}), ElementsAre(7));
  EXPECT_THAT(search_order(Search::exhaustive, {8, 1, 4}), ElementsAre(8, 1, 4));
  EXPECT_THAT(search_order(Search::halving, {}), IsEmpty());
}

TEST(Search, AsksForNothingThatIsNotOpen) {
  const RecordedSpace r = recorded("ring-6-tokens-off");
  for (Search search : {Search::exhaustive, Search::halving, Search::model}) {
    const auto strategy = make_strategy(search, r.description, r.plans, r.plans.size(), {{1, 8}}, h200());
    EXPECT_THAT(strategy->ask(1, {}), IsEmpty()) << name(search);
    for (std::size_t plan : strategy->ask(1, {3, 5})) EXPECT_THAT(plan, testing::AnyOf(3, 5)) << name(search);
  }
}

TEST(Search, EndsWhereNothingThatIsAskedForCanBeTimed) {
  const RecordedSpace r = recorded("ring-6-tokens-off");
  for (Search search : {Search::exhaustive, Search::halving, Search::model}) {
    const auto strategy = make_strategy(search, r.description, r.plans, r.plans.size(), {r.batches}, h200());
    std::vector<std::size_t> open;
    for (std::size_t i = 0; i < r.plans.size(); ++i) open.push_back(i);
    int asks = 0;
    for (std::vector<std::size_t> asked; !(asked = strategy->ask(8, open)).empty() && asks < 1000; ++asks)
      for (std::size_t plan : asked) std::erase(open, plan);
    EXPECT_THAT(open, IsEmpty()) << name(search) << ": one that is left may be fast";
  }
}

TEST(Search, TheTimesOfAJournalAreAsGoodAsItsOwn) {
  // Told of all lower levels by a journal, halving asks for the same as after its own times.
  const RecordedSpace r = recorded("ring-1-token-off");
  std::vector<std::size_t> all;
  for (std::size_t i = 0; i < r.plans.size(); ++i) all.push_back(i);
  const auto first = make_strategy(Search::halving, r.description, r.plans, r.plans.size(), {r.batches}, h200());
  const auto second = make_strategy(Search::halving, r.description, r.plans, r.plans.size(), {r.batches}, h200());
  for (int batch : {1, 32, 1024}) {
    first->ask(batch, all);
    for (std::size_t i : all) {
      first->tell(batch, i, r.us[i].at(batch));
      second->tell(batch, i, r.us[i].at(batch));
    }
    first->finish(batch);
    second->finish(batch);
  }
  EXPECT_EQ(first->ask(8, all), second->ask(8, all));
  EXPECT_THAT(first->ask(8, all).size(), testing::Lt(all.size()));
}

TEST(Search, ABatchThatIsNotDoneSaysNothingOfAnother) {
  const RecordedSpace r = recorded("ring-1-token-off");
  std::vector<std::size_t> all;
  for (std::size_t i = 0; i < r.plans.size(); ++i) all.push_back(i);
  const auto strategy = make_strategy(Search::halving, r.description, r.plans, r.plans.size(), {r.batches}, h200());
  for (int batch : {1, 32}) strategy->tell(batch, 0, 9);
  EXPECT_EQ(strategy->ask(8, all), all) << "the slow ones of it are told first";
  for (int batch : {1, 32}) strategy->finish(batch);
  EXPECT_THAT(strategy->ask(8, all), ElementsAre(0));
}

TEST(Search, HalvingAsksForTheKinOfTheFastestUntilTheirBatchIsDone) {
  const RecordedSpace r = recorded("ring-6-fp32-off");
  std::vector<std::size_t> open;
  for (std::size_t i = 0; i < r.plans.size(); ++i) open.push_back(i);
  const auto strategy = make_strategy(Search::halving, r.description, r.plans, r.plans.size(), {r.batches}, h200());
  for (int batch : {1, 32, 1024, 128}) {
    for (std::size_t i : open) strategy->tell(batch, i, r.us[i].at(batch));
    strategy->finish(batch);
  }
  const std::vector<std::size_t> first = strategy->ask(64, open);
  for (std::size_t plan : first) {
    strategy->tell(64, plan, r.us[plan].at(64));
    std::erase(open, plan);
  }
  const Plan best =
      Plan::parse("block_m=64,warps=4,lanes_per_row=4,heads_per_block=4,state_path=bulk,ring_rows=live", {});
  const auto is_best = [&](std::size_t plan) { return r.plans[plan] == best; };
  EXPECT_TRUE(std::none_of(first.begin(), first.end(), is_best)) << "it is 12% behind at both neighbours";
  const std::vector<std::size_t> kin = strategy->ask(64, open);
  EXPECT_TRUE(std::any_of(kin.begin(), kin.end(), is_best));
  EXPECT_LT(kin.size(), 20u);
  strategy->finish(64);
  EXPECT_THAT(strategy->ask(64, open), IsEmpty()) << "a cell that is done has other times than when it was searched";
}

TEST(Search, HalvingGoesByTheNearestBatchOfALowerLevelOnEitherSide) {
  const std::vector<int> batches = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024};
  for (int batch : {1, 32, 1024}) EXPECT_THAT(goes_by(Search::halving, {batches}, batch), IsEmpty()) << batch;
  EXPECT_THAT(goes_by(Search::halving, {batches}, 4), ElementsAre(1, 32));
  EXPECT_THAT(goes_by(Search::halving, {batches}, 2), ElementsAre(1, 4));
  EXPECT_THAT(goes_by(Search::halving, {batches}, 16), ElementsAre(8, 32));
  EXPECT_THAT(goes_by(Search::halving, {batches}, 3), IsEmpty()) << "none of the sweep's";
  EXPECT_THAT(goes_by(Search::exhaustive, {batches}, 4), IsEmpty());
}

TEST(Search, NamesOfStrategiesAreReadBack) {
  for (Search search : {Search::exhaustive, Search::halving, Search::model})
    EXPECT_EQ(parse_search(name(search)), search);
  EXPECT_THROW(parse_search("fast"), Error);
}

// ---- pruning ----

Description step() { return mamba2({.nheads = 64, .head_dim = 64, .dstate = 128, .ngroups = 8}).state(DType::bf16); }

TEST(Pruning, SaysWhatAPlanHasAndWhatTheFloorWants) {
  const Plan small = Plan::parse("block_m=8,warps=1,lanes_per_row=16", Plan{});
  // 4 blocks of 2 KiB an SM by registers.
  const std::string why =
      why_pruned(small, step(), 1024, h200(), {.us = 250, .bytes_read = 1 << 30}, {.registers = 255});
  EXPECT_THAT(why, HasSubstr("few bytes in flight: 16384 an SM; the floor's rate wants 36768"));
  EXPECT_THAT(why_pruned(small, step(), 1024, h200(), {.us = 250, .bytes_read = 1 << 30}), IsEmpty())
      << "32 blocks where nothing is known of its registers";
}

TEST(Pruning, HalfOfALittleStateInFlightWillDo) {
  const Plan all_at_once = Plan::parse("block_m=64,warps=8,lanes_per_row=16", Plan{});
  EXPECT_THAT(why_pruned(all_at_once, step(), 1, h200(), {.us = 0.1, .bytes_read = 1 << 20}), IsEmpty());
}

TEST(Pruning, WithoutAFloorOnlyAPlanThatFitsNoSmIsPruned) {
  const Plan plan = Plan::parse("block_m=64,warps=8,lanes_per_row=16", Plan{});
  EXPECT_THAT(why_pruned(plan, step(), 1, h200(), {}), IsEmpty());
  EXPECT_THAT(why_pruned(plan, step(), 1, h200(), {}, {.registers = 64, .smem_bytes = 240000}),
              HasSubstr("no block fits: 256 threads of 64 registers and 240000 bytes"));
}

TEST(Pruning, BlocksOfAnSmAreLimitedByThreadsRegistersAndSharedMemory) {
  const Plan warp = Plan::parse("block_m=8,warps=1,lanes_per_row=16", Plan{});
  const Plan block = Plan::parse("block_m=64,warps=8,lanes_per_row=16", Plan{});
  EXPECT_EQ(blocks_per_sm(warp, step(), h200(), {}), 32);
  EXPECT_EQ(blocks_per_sm(block, step(), h200(), {}), 8);
  EXPECT_EQ(blocks_per_sm(block, step(), h200(), {.registers = 61}), 4) << "64 registers of 256 threads";
  EXPECT_EQ(blocks_per_sm(block, step(), h200(), {.smem_bytes = 100000}), 2);
  DeviceFacts small = h200();
  small.major = 8;
  small.minor = 6;
  EXPECT_EQ(blocks_per_sm(warp, step(), small, {}), 16);
  EXPECT_EQ(blocks_per_sm(block, step(), small, {}), 6);
}

}  // namespace
}  // namespace ssmjit
