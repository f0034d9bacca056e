// Several measurers beside one: what they come to is the same.
#include "autotune/fleet/fleet.h"

#include <algorithm>
#include <chrono>
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
#include "autotune/sweep_lines.h"
#include "autotune/search/prune.h"
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

// A GPU whose blocks come in waves, each as long as a block takes and none shorter than memory takes for its bytes.
struct InWaves {
  explicit InWaves(const Description& d) : description(d) {
    for (const Plan& plan : plan_space(d, h200().arch()))
      if (!plan.early_state) plans.push_back(plan);
  }
  double us(std::size_t plan, int batch) const {
    const LaunchShape shape = launch_shape(plans[plan], description, batch);
    const double at_once = 132.0 * blocks_per_sm(plans[plan], description, h200(), {estimate_registers(description, plans[plan]), 0});
    const auto blocks = static_cast<double>(shape.grid_x) * static_cast<double>(shape.grid_y);
    const auto bytes = static_cast<double>(bytes_moved(description, batch, Phase::no_flush).total());
    const double block_us = 0.8 + bytes / blocks / (4.4e6 / at_once);
    return 2 + std::ceil(blocks / at_once) * block_us * (1 + 0.0001 * static_cast<double>(plan));
  }
  Description description;
  std::vector<Plan> plans;
};

TEST_F(SeveralMeasurers, XX) {
  const std::vector<std::pair<const char*, Description>> all = {
      {"6 bf16", mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1})
                     .state(DType::bf16)
                     .tokens(6)
                     .store(Ring{.window = 16})},
      {"6 fp32", mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1})
                     .state(DType::f32)
                     .tokens(6)
                     .store(Ring{.window = 16})},
      {"1 bf16", mamba2({.nheads = 64, .head_dim = 64, .dstate = 128, .ngroups = 8})
                     .state(DType::bf16)
                     .store(Ring{.window = 16})},
      {"u bf16", mamba2({.nheads = 64, .head_dim = 64, .dstate = 128, .ngroups = 8}).state(DType::bf16)},
      {"u fp32", mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1}).state(DType::f32)}};
  for (const auto& [name, d] : all)
    for (const double bound : {0.0, 0.05, 0.03})
      for (const Search search : {Search::halving, Search::exhaustive}) {
        const InWaves model(d);
        Searching one([&](std::size_t plan, int batch) { return model.us(plan, batch); }, {});
        std::vector<Measurement> lines;
        TuneOptions options;
        options.plans = model.plans;
        options.search = search;
        options.on_measurement = [&](const Measurement& m) { lines.push_back(m); };
        const auto added = sweep_on({&one}, {{d, options}}, {.between = {.most_loss = bound}});
        const TableCheck check = check_table(fit_table(lines), lines);
        std::string text;
        for (const Cell& c : added[0]) text += " " + std::to_string(c.batch);
        std::printf("%s %s bound %.2f: left out worst %.4f median %.4f not timed %d, rows %zu, added %zu:%s\n", name,
                    ssmjit::name(search), bound, check.worst_loo_regret, check.median_loo_regret, check.not_timed_loo,
                    check.cells.size(), added[0].size(), text.c_str());
      }
}

}  // namespace
}  // namespace ssmjit
