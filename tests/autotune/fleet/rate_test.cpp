// How much faster several GPUs are than one, by the clock of a sweep that was measured.
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>

#include <ssmjit/table.h>

#include "autotune/fleet/fleet.h"

namespace ssmjit {
namespace {

// Time that passes once everyone who could work waits for it to pass.
class Clock {
 public:
  explicit Clock(std::size_t all) : all_(all), ticking_([this] { tick(); }) {}
  ~Clock() {
    {
      const std::lock_guard lock(mutex_);
      over_ = true;
      changed_.notify_all();
    }
    ticking_.join();
  }
  void pass(double seconds) {
    std::unique_lock lock(mutex_);
    const double until = now_ + seconds;
    const auto at = waiting_.insert(until);
    changed_.notify_all();
    changed_.wait(lock, [&] { return now_ >= until; });
    waiting_.erase(at);
    last_ = std::chrono::steady_clock::now();
  }
  double now() {
    const std::lock_guard lock(mutex_);
    return now_;
  }

 private:
  // Who has found no work and who is on the way to it can't be told from each other but by what happens next.
  static constexpr std::chrono::milliseconds kIdle{100};
  void tick() {
    std::unique_lock lock(mutex_);
    while (!over_) {
      changed_.wait_for(lock, std::chrono::milliseconds(5));
      const bool started = waiting_.size() == all_ || std::chrono::steady_clock::now() - last_ > kIdle;
      if (waiting_.empty() || *waiting_.begin() <= now_ || !started) continue;
      now_ = *waiting_.begin();
      changed_.notify_all();
    }
  }

  std::size_t all_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::multiset<double> waiting_;
  double now_ = 0;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
  bool over_ = false;
  std::thread ticking_;
};

// One H200's `tune nemotron3-super-tp8:update nemotron3-super-tp8:ring --between 0` of 22 November 2026, kernels in the
// cache: seconds from the last line of a cell to that of the next, as the journal dates its lines.
struct RecordedKernel {
  const char* name;
  std::size_t plans;
  double verify_s;  // in all
  double cases_s;   // of that what every share costs: its cases, on one core
  std::map<int, double> cell_s;
};
const std::vector<RecordedKernel> kRecorded = {
    {"update",
     440,
     4,
     0.13,
     {{1, 3}, {1024, 5}, {32, 1}, {4, 1}, {128, 1}, {2, 1}, {8, 1}, {64, 1}, {256, 1}, {16, 1}, {512, 1}}},
    {"ring",
     166,
     2,
     0.28,
     {{1, 3}, {1024, 5}, {32, 1}, {4, 1}, {128, 1}, {2, 1}, {8, 1}, {64, 1}, {256, 1}, {16, 1}, {512, 2}}}};

class Costing : public Measurer {
 public:
  explicit Costing(Clock& clock) : clock_(clock) {}
  std::string name() const override { return "a record"; }
  std::string device_key() const override { return "h200"; }
  OpenWork open_work(const Description&, const TuneOptions& options, const std::vector<Cell>& cells) const override {
    return {options.plans, options.known.empty() ? options.plans : std::vector<Plan>{}, cells};
  }
  void run(const Description& description, const TuneOptions& options) override {
    const RecordedKernel& of = kRecorded[description.op() == Op::ring ? 1 : 0];
    if (options.verify_only) {
      const double share = static_cast<double>(options.plans.size()) / static_cast<double>(of.plans);
      clock_.pass(of.cases_s + share * (of.verify_s - of.cases_s));
      return;
    }
    clock_.pass(of.cell_s.at(options.batches.front()));
  }

 private:
  Clock& clock_;
};

double seconds_with(std::size_t measurers) {
  Clock clock(measurers);
  std::vector<std::unique_ptr<Measurer>> crew;
  std::vector<Measurer*> members;
  for (std::size_t i = 0; i < measurers; ++i) {
    crew.push_back(std::make_unique<Costing>(clock));
    members.push_back(crew.back().get());
  }
  const Model model = load_model("nemotron3-super-tp8");
  std::vector<KernelSweep> kernels;
  for (const RecordedKernel& of : kRecorded) {
    const Description& d = model.kernel(of.name);
    TuneOptions options;
    for (const Plan& plan : plan_space(d, Arch{}))
      if (options.plans.size() < of.plans) options.plans.push_back(plan);
    kernels.push_back({d, options});
  }
  sweep_on(members, kernels);
  return clock.now();
}

TEST(SweepRate, OfTwoGpusIsNearlyTwiceThatOfOne) {
  const double one = seconds_with(1), two = seconds_with(2);
  double work = 0;
  for (const RecordedKernel& of : kRecorded) {
    work += of.verify_s;
    for (const auto& [batch, s] : of.cell_s) work += s;
  }
  EXPECT_NEAR(one, work, 1e-6);
  EXPECT_GT(one / two, 1.93) << one << " s and " << two << " s";
}

TEST(SweepRate, OfFourGpusEndsWithTheLongestRowOfCellsThatWaitForEachOther) {
  // The ring's batches 1024, 128, 256, 512 behind its verification.
  EXPECT_LT(seconds_with(4), seconds_with(1) / 3.2);
}

}  // namespace
}  // namespace ssmjit
