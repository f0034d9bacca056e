// Several measurers beside one: what they come to is the same.
#include "autotune/fleet/fleet.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <gmock/gmock.h>

#include <ssmjit/cubin.h>
#include <ssmjit/error.h>

#include "autotune/search/cell_search.h"
#include "autotune/search/prune.h"
#include "autotune/sweep_lines.h"
#include "heuristics/predict.h"
#include "tests/autotune/search/recorded.h"

namespace ssmjit {
namespace {

// us of a plan at a batch; 0: none.
using TimeOf = std::function<double(std::size_t plan, int batch)>;

// Searches as sweep() does, among times that are known; slow at some batches.
class Searching : public Measurer {
 public:
  Searching(TimeOf time_of, std::map<int, int> delays) : time_of_(std::move(time_of)), delays_us_(std::move(delays)) {}
  std::string name() const override { return "a record"; }
  std::string device_key() const override { return h200().key; }
  OpenWork open_work(const Description& description, const TuneOptions& options,
                     const std::vector<Cell>& cells) const override {
    return open_work_on(h200(), description, options, cells);
  }
  void run(const Description& description, const TuneOptions& options) override {
    const SweepLines lines(description, options, h200());
    if (options.verify_only) {
      for (std::size_t i = 0; i < lines.plans().size(); ++i) options.on_measurement(lines.verified(i));
      return;
    }
    const KnownLines known(options.known);
    CellSearch search(description, lines, options, known, h200());
    const int batch = options.batches.front();
    const PdlMode mode = options.modes.front();
    std::vector<std::size_t> open = search.open(batch, mode);
    std::vector<std::pair<double, std::size_t>> order;
    for (std::vector<std::size_t> asked; !(asked = search.ask(batch, mode, open)).empty();) {
      for (const std::size_t plan : asked) {
        std::erase(open, plan);
        const double us = time_of_(plan, batch);
        if (!(us > 0)) continue;
        search.tell(batch, mode, plan, us);
        order.emplace_back(us, plan);
      }
    }
    // The slow ones first, the winner last.
    std::sort(order.rbegin(), order.rend());
    for (const auto& [us, plan] : order) {
      if (const auto delay = delays_us_.find(batch); delay != delays_us_.end())
        std::this_thread::sleep_for(std::chrono::microseconds(delay->second));
      if (stopped()) return;
      Measurement line = lines.timed(plan, batch, mode);
      line.us = us;
      if (us < 1.15 * order.back().first) {  // it went into the race
        line.us_min = us * 0.999;
        line.us_max = us * 1.001;
      }
      line.outcome = plan == order.back().second ? Outcome::ok : Outcome::dropped;
      options.on_measurement(line);
    }
  }

 private:
  TimeOf time_of_;
  std::map<int, int> delays_us_;  // a line, by batch
};

class SeveralMeasurers : public testing::Test {
 protected:
  void SetUp() override {
    try {
      nvrtc_version();  // lines name it
    } catch (const Error& e) {
      GTEST_SKIP() << e.what();
    }
  }
  // Outcome and us of each line by its key, and how often it came.
  using Came = std::map<std::string, std::tuple<std::string, double, int>>;
  static Came sweep_with(const RecordedSpace& space, Search search, std::size_t measurers) {
    std::vector<std::unique_ptr<Measurer>> crew;
    std::vector<Measurer*> members;
    for (std::size_t i = 0; i < measurers; ++i) {
      crew.push_back(std::make_unique<Searching>(
          [&](std::size_t plan, int batch) {
            const auto us = space.us[plan].find(batch);
            return us == space.us[plan].end() ? 0 : us->second;
          },
          measurers == 1 ? std::map<int, int>{} : std::map<int, int>{{1, 1000}, {4, 2000}, {32, 500}}));
      members.push_back(crew.back().get());
    }
    Came came;
    TuneOptions options;
    options.plans = space.plans;
    options.batches = space.batches;
    options.search = search;
    options.on_measurement = [&](const Measurement& m) {
      auto& [outcome, us, times] = came[m.key()];
      outcome = name(m.outcome);
      us = m.us;
      ++times;
    };
    sweep_on(members, {{space.description, options}});
    return came;
  }
};

TEST_F(SeveralMeasurers, OfWhomSomeAreSlowTimeAndFindWhatOneDoes) {
  for (const char* journal : {"ring-6-tokens-off", "ring-1-token-chain"}) {
    const RecordedSpace space = recorded(journal);
    for (const Search search : {Search::halving, Search::exhaustive}) {
      const Came one = sweep_with(space, search, 1);
      EXPECT_GT(one.size(), space.plans.size() * 4) << journal << ": plans are verified, then timed";
      for (const std::size_t measurers : {2, 4, 12})
        EXPECT_EQ(sweep_with(space, search, measurers), one) << journal << " " << name(search) << " " << measurers;
    }
  }
}

// ---- sizes between ----

// A GPU whose fullest SM says how long a step takes: its blocks wait for memory wave by wave, and share its bandwidth.
struct InWaves {
  explicit InWaves(DType state)
      : description(mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1})
                        .state(state)
                        .tokens(6)
                        .store(Ring{.window = 16})) {
    for (const Plan& plan : plan_space(description, h200().arch()))
      if (!plan.early_state) plans.push_back(plan);
  }
  double us(std::size_t i, int batch) const {
    const Plan& plan = plans[i];
    const LaunchShape shape = launch_shape(plan, description, batch);
    const auto blocks = static_cast<double>(shape.grid_x) * static_cast<double>(shape.grid_y);
    const double of_sm = std::ceil(blocks / h200().sms);
    const double waves = std::ceil(
        of_sm / blocks_per_sm(plan, description, h200(), {.registers = estimate_registers(description, plan)}));
    const auto bytes = static_cast<double>(bytes_moved(description, batch, Phase::no_flush).total());
    return 2 + 8 * waves + of_sm * bytes / blocks / 33e3 + 0.1 * plan.heads_per_block + 1e-4 * static_cast<double>(i);
  }
  Description description;
  std::vector<Plan> plans;
};

class SizesBetween : public SeveralMeasurers {
 protected:
  struct Swept {
    std::vector<Measurement> lines;  // those that were known, and the new ones
    std::vector<int> added;
    std::map<std::string, double> us;  // by key
  };
  static Swept sweep(const InWaves& gpu, const FleetOptions& fleet, std::size_t measurers = 1,
                     std::vector<Measurement> known = {}) {
    std::vector<std::unique_ptr<Measurer>> crew;
    std::vector<Measurer*> members;
    for (std::size_t i = 0; i < measurers; ++i) {
      crew.push_back(std::make_unique<Searching>([&](std::size_t plan, int batch) { return gpu.us(plan, batch); },
                                                 std::map<int, int>{{1, 100}, {24, 200}}));
      members.push_back(crew.back().get());
    }
    Swept swept;
    TuneOptions options;
    options.plans = gpu.plans;
    options.known = swept.lines = std::move(known);
    options.on_measurement = [&](const Measurement& m) { swept.lines.push_back(m); };
    const std::vector<std::vector<Cell>> added = sweep_on(members, {{gpu.description, options}}, fleet);
    for (const Cell& cell : added.at(0)) swept.added.push_back(cell.batch);
    for (const Measurement& m : swept.lines) EXPECT_TRUE(swept.us.emplace(m.key(), m.us).second) << m.json();
    return swept;
  }
  static FleetOptions within(double most_loss) {
    FleetOptions options;
    options.between.most_loss = most_loss;
    return options;
  }
};

TEST_F(SizesBetween, AreAddedUntilTheTableLosesLittleWithAnySizeLeftOut) {
  const InWaves gpu(DType::bf16);
  const Swept before = sweep(gpu, {}), after = sweep(gpu, within(0.05));
  EXPECT_THAT(before.added, testing::IsEmpty()) << "none but where it is asked for";
  EXPECT_GT(check_table(fit_table(before.lines), before.lines).worst_loo_regret, 0.05);
  const TableCheck check = check_table(fit_table(after.lines), after.lines);
  EXPECT_LE(check.worst_loo_regret, 0.05);
  EXPECT_EQ(check.not_timed_loo, 0);
  EXPECT_LE(check.worst_regret, 0.001);
  EXPECT_LE(after.added.size(), 2u);
  EXPECT_EQ(check.compared, 11 + static_cast<int>(after.added.size()));
}

TEST_F(SizesBetween, AreNotAddedWhereThePlanBetweenLosesLittleAnyway) {
  EXPECT_THAT(sweep(InWaves(DType::f32), within(0.05)).added, testing::IsEmpty());
}

TEST_F(SizesBetween, AreTheSameWhoeverMeasuresAndWhereverAJournalBreaksOff) {
  const InWaves gpu(DType::bf16);
  FleetOptions options = within(0.01);
  options.between.most_sizes = 5;
  const Swept one = sweep(gpu, options), three = sweep(gpu, options, 3);
  ASSERT_EQ(one.added.size(), 5u);
  EXPECT_EQ(three.added, one.added);
  EXPECT_EQ(three.us, one.us);
  const auto all = static_cast<std::ptrdiff_t>(one.lines.size());
  for (const std::ptrdiff_t kept : {all / 2, all - 100, all - 1, all}) {
    const Swept resumed = sweep(gpu, options, 1, {one.lines.begin(), one.lines.begin() + kept});
    EXPECT_EQ(resumed.added, one.added) << kept;
    EXPECT_EQ(resumed.us, one.us) << kept;
  }
}

TEST_F(SizesBetween, AreNoneOfAShard) {
  FleetOptions options = within(0.01);
  options.shard = {0, 2};
  EXPECT_THAT(sweep(InWaves(DType::bf16), options).added, testing::IsEmpty());
}

}  // namespace
}  // namespace ssmjit
