// Several measurers beside one: what they come to is the same.
#include "autotune/fleet/fleet.h"

#include <algorithm>
#include <chrono>
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
#include "tests/autotune/search/recorded.h"

namespace ssmjit {
namespace {

// Searches as sweep() does, among times that were recorded; slow at some batches.
class Searching : public Measurer {
 public:
  Searching(const RecordedSpace& space, std::map<int, int> delays) : space_(space), delays_us_(std::move(delays)) {}
  std::string name() const override { return "record " + space_.name; }
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
        const auto us = space_.us[plan].find(batch);
        if (us == space_.us[plan].end()) continue;
        search.tell(batch, mode, plan, us->second);
        order.emplace_back(us->second, plan);
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
  const RecordedSpace& space_;
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
          space, measurers == 1 ? std::map<int, int>{} : std::map<int, int>{{1, 1000}, {4, 2000}, {32, 500}}));
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

}  // namespace
}  // namespace ssmjit
