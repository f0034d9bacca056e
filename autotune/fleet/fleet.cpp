#include "autotune/fleet/fleet.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include <fmt/format.h>

#include <ssmjit/error.h>

#include "autotune/search/strategy.h"
#include "codegen/log.h"

namespace ssmjit {
namespace {

// Chunks of plans that a measurer verifies in one go, so that none is left with much when the others are done. One
// alone takes all plans at once: it compiles ahead of what it verifies.
constexpr std::size_t kChunksEach = 4;

constexpr std::chrono::milliseconds kGlance{100};  // between looks at whether to stop

class Dispatch {
 public:
  Dispatch(const std::vector<Measurer*>& measurers, const std::vector<KernelSweep>& kernels,
           const FleetOptions& options)
      : measurers_(measurers),
        budget_s_(options.budget_s),
        between_(options.shard.count == 1 ? options.between : BetweenRules{}),
        interrupted_(options.interrupted) {
    std::size_t place = 0;
    for (const KernelSweep& kernel : kernels) {
      Part& part = parts_.emplace_back();
      part.kernel = &kernel;
      for (const int batch : kernel.options.batches)
        for (const PdlMode mode : kernel.options.modes)
          if (options.shard.takes(place++)) part.cells.push_back({batch, mode});
      for (const Cell& cell : part.cells) part.batches.push_back(cell.batch);
      part.batches = search_order(kernel.options.search, std::move(part.batches));
      const auto turn = [&](const Cell& cell) {
        return std::find(part.batches.begin(), part.batches.end(), cell.batch) - part.batches.begin();
      };
      std::stable_sort(part.cells.begin(), part.cells.end(),
                       [&](const Cell& a, const Cell& b) { return turn(a) < turn(b); });
      part.known = kernel.options.known;
      open(part, part.cells);
    }
  }

  void run() {
    do {
      run_once();
      for (const Part& part : parts_)
        if (const std::size_t left = part.count(State::open); left > 0)
          warn(fmt::format("tune: the budget of {:.0f} s is spent; {} of {} cells are left out of {}", budget_s_, left,
                           part.work.cells.size(), part.kernel->description.summary()));
    } while (reopen() || add_between());
  }
  std::vector<std::vector<Cell>> added() const {
    std::vector<std::vector<Cell>> all;
    for (const Part& part : parts_) all.push_back(part.added);
    return all;
  }

 private:
  void run_once() {
    std::vector<std::thread> threads;
    running_ = measurers_.size();
    for (Measurer* measurer : measurers_) threads.emplace_back([this, measurer] { serve(*measurer); });
    std::exception_ptr error;
    try {
      tell();
    } catch (...) {
      error = std::current_exception();
      stop();
    }
    for (std::thread& thread : threads) thread.join();
    if (error) std::rethrow_exception(error);
    if (error_) std::rethrow_exception(error_);
  }

  enum class State { open, at_work, done };
  struct Part {
    const KernelSweep* kernel = nullptr;
    std::vector<Cell> cells;
    std::vector<int> batches;  // of those but the added ones, in the order of the search
    std::vector<int> between;  // of the added ones, in the order in which they came
    std::vector<Cell> added;   // those of `cells` that are between others
    OpenWork work;             // of `cells`, or of those that were added last
    std::vector<Measurement> known;
    std::size_t chunk = 0;
    std::size_t next_plan = 0, chunks_at_work = 0, plans_done = 0;
    std::vector<State> states;  // of work.cells
    double cells_since = -1;    // seconds from the start

    bool verified() const { return next_plan == work.to_verify.size() && chunks_at_work == 0; }
    std::size_t count(State state) const {
      return static_cast<std::size_t>(std::count(states.begin(), states.end(), state));
    }
    // Whether all that the search goes by at a cell are done. Those come before it, so that some cell always may start.
    bool may_start(const Cell& cell) const {
      const TuneOptions& options = kernel->options;
      if (options.rounds > 0) return true;
      const std::vector<int> by = goes_by(options.search, {batches, between}, cell.batch);
      for (std::size_t i = 0; i < states.size(); ++i)
        if (states[i] != State::done && work.cells[i].mode == cell.mode &&
            std::find(by.begin(), by.end(), work.cells[i].batch) != by.end())
          return false;
      return true;
    }
  };
  void open(Part& part, const std::vector<Cell>& cells) const {
    TuneOptions options = part.kernel->options;
    options.known = part.known;
    options.search_batches = part.batches;
    options.between = part.between;
    const Measurer& any = *measurers_.front();
    part.work = any.open_work(part.kernel->description, options, cells);
    // What the model asks for in the middle of a cell is verified there, by several at once where several ask.
    if (options.search == Search::model && options.rounds == 0 && measurers_.size() > 1) {
      options.search = Search::exhaustive;
      part.work.to_verify = any.open_work(part.kernel->description, options, part.work.cells).to_verify;
    }
    const std::size_t plans = part.work.to_verify.size();
    part.chunk = measurers_.size() == 1 ? plans : (plans - 1) / (measurers_.size() * kChunksEach) + 1;
    part.next_plan = part.plans_done = 0;
    part.states.assign(part.work.cells.size(), State::open);
  }
  // A cell's winner may have turned out to be unsound in another: what it beat is then to be timed again. Whether there
  // is any such cell.
  bool reopen() {
    if (!unsound_seen_ || (budget_s_ > 0 && elapsed() > budget_s_)) return false;
    unsound_seen_ = false;
    bool again = false;
    for (Part& part : parts_) {
      if (part.count(State::done) == 0) continue;
      open(part, part.cells);
      again = again || !part.work.cells.empty();
    }
    return again;
  }
  // Cells between others, where a kernel's table wants them and all its cells are done. Whether there are any. A round
  // goes by what the rounds before it have measured, whoever measured it and in whatever order.
  bool add_between() {
    if (!(between_.most_loss > 0) || (budget_s_ > 0 && elapsed() > budget_s_)) return false;
    bool more = false;
    for (Part& part : parts_) {
      if (part.count(State::open) > 0) continue;
      std::vector<Cell> fresh;
      for (const PdlMode mode : part.kernel->options.modes) {
        std::vector<int> batches;
        for (const Cell& cell : part.cells)
          if (cell.mode == mode) batches.push_back(cell.batch);
        auto left = between_.most_sizes -
                    std::count_if(part.added.begin(), part.added.end(), [&](const Cell& c) { return c.mode == mode; });
        for (const int batch : batches_between(part.kernel->description, measurers_.front()->device_key(), mode,
                                               batches, part.known, between_.most_loss))
          if (left-- > 0) fresh.push_back({batch, mode});
      }
      for (const Cell& cell : fresh) {
        part.cells.push_back(cell);
        part.added.push_back(cell);
        if (std::find(part.between.begin(), part.between.end(), cell.batch) == part.between.end() &&
            std::find(part.batches.begin(), part.batches.end(), cell.batch) == part.batches.end())
          part.between.push_back(cell.batch);
      }
      open(part, fresh);
      more = more || !fresh.empty();
    }
    return more;
  }

  struct Job {
    Part* part = nullptr;
    TuneOptions options;
    std::string stage;
    std::size_t cell = 0;  // of part->work.cells, where it is one
  };

  double elapsed() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

  // Everything below but serve() and tell() is under the mutex.

  std::optional<Job> verification() {
    for (Part& part : parts_) {
      const std::vector<Plan>& plans = part.work.to_verify;
      if (part.next_plan == plans.size()) continue;
      Job job = blank(part);
      const std::size_t end = std::min(plans.size(), part.next_plan + part.chunk);
      job.options.plans = {plans.begin() + static_cast<std::ptrdiff_t>(part.next_plan),
                           plans.begin() + static_cast<std::ptrdiff_t>(end)};
      job.options.verify_only = true;
      job.options.batches.clear();
      job.stage = "verify";
      part.next_plan = end;
      ++part.chunks_at_work;
      return job;
    }
    return std::nullopt;
  }
  std::optional<Job> measurement() {
    if (budget_s_ > 0 && elapsed() > budget_s_) return std::nullopt;
    for (Part& part : parts_) {
      if (!part.verified()) continue;
      std::size_t at = 0;
      while (at < part.states.size() && !(part.states[at] == State::open && part.may_start(part.work.cells[at]))) ++at;
      if (at == part.states.size()) continue;
      const Cell cell = part.work.cells[at];
      part.states[at] = State::at_work;
      if (part.cells_since < 0) part.cells_since = elapsed();
      Job job = blank(part);
      job.cell = at;
      job.options.plans = part.work.plans;
      job.options.batches = {cell.batch};
      job.options.modes = {cell.mode};
      job.stage = fmt::format("batch {} {}", cell.batch, name(cell.mode));
      return job;
    }
    return std::nullopt;
  }
  Job blank(Part& part) const {
    Job job;
    job.part = &part;
    job.options = part.kernel->options;
    job.options.known = part.known;
    job.options.search_batches = part.batches;
    job.options.between = part.between;
    job.options.budget_s = 0;
    job.options.progress = nullptr;
    return job;
  }
  void report(const Part& part, const std::string& stage) {
    const auto& callback = part.kernel->options.progress;
    if (!callback) return;
    const bool verify = stage == "verify";
    Progress p{stage, static_cast<std::int64_t>(verify ? part.plans_done : part.count(State::done)),
               static_cast<std::int64_t>(verify ? part.work.to_verify.size() : part.work.cells.size()), elapsed(), 0};
    const double since = verify ? 0 : part.cells_since;
    if (p.done > 0)
      p.remaining_s = (p.elapsed_s - since) / static_cast<double>(p.done) * static_cast<double>(p.total - p.done);
    post([&callback, p] { callback(p); });
  }
  void post(std::function<void()> event) {
    events_.push_back(std::move(event));
    news_.notify_all();
  }
  // A kernel has cells left, and at work is what they wait for.
  bool more_may_come() const {
    return std::any_of(parts_.begin(), parts_.end(), [](const Part& part) {
      return part.count(State::open) > 0 && (part.chunks_at_work > 0 || part.count(State::at_work) > 0);
    });
  }

  void stop() {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    for (Measurer* measurer : measurers_) measurer->stop();
    news_.notify_all();
  }

  // A measurer's thread.
  void serve(Measurer& measurer) {
    try {
      while (std::optional<Job> job = next()) {
        Part& part = *job->part;
        job->options.on_measurement = [&](const Measurement& line) {
          const std::lock_guard lock(mutex_);
          part.known.push_back(line);
          unsound_seen_ = unsound_seen_ || (line.phase != "verify" && unsound(line.outcome));
          if (const auto& callback = part.kernel->options.on_measurement) post([&callback, line] { callback(line); });
          if (!job->options.verify_only) return;
          ++part.plans_done;
          report(part, "verify");
        };
        measurer.run(part.kernel->description, job->options);
        const std::lock_guard lock(mutex_);
        if (job->options.verify_only)
          --part.chunks_at_work;
        else
          part.states[job->cell] = State::done;
        if (!job->options.verify_only) report(part, job->stage);
        news_.notify_all();
      }
    } catch (...) {
      {
        const std::lock_guard lock(mutex_);
        if (!error_) error_ = std::current_exception();
      }
      stop();
    }
    const std::lock_guard lock(mutex_);
    --running_;
    news_.notify_all();
  }
  std::optional<Job> next() {
    std::unique_lock lock(mutex_);
    while (true) {
      if (stopping_) return std::nullopt;
      std::optional<Job> job = verification();
      if (!job) job = measurement();
      if (job && !job->options.verify_only) report(*job->part, job->stage);
      if (job || !more_may_come()) return job;
      news_.wait(lock);
    }
  }

  // The caller's thread: what there is to tell, until all measurers have ended.
  void tell() {
    std::unique_lock lock(mutex_);
    while (true) {
      news_.wait_for(lock, kGlance, [&] { return !events_.empty() || running_ == 0; });
      if (!stopping_ && interrupted_ && interrupted_()) {
        if (!error_) error_ = std::make_exception_ptr(Error(ErrorKind::machine, "tune: interrupted"));
        lock.unlock();
        stop();
        lock.lock();
      }
      if (events_.empty() && running_ == 0) return;
      if (events_.empty()) continue;
      const std::function<void()> event = std::move(events_.front());
      events_.pop_front();
      lock.unlock();
      event();
      lock.lock();
    }
  }

  const std::vector<Measurer*>& measurers_;
  double budget_s_;
  BetweenRules between_;
  std::function<bool()> interrupted_;
  std::deque<Part> parts_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::mutex mutex_;
  std::condition_variable news_;
  std::deque<std::function<void()>> events_;
  std::size_t running_ = 0;
  bool stopping_ = false;
  bool unsound_seen_ = false;  // at a size
  std::exception_ptr error_;
};

}  // namespace

std::vector<std::vector<Cell>> sweep_on(const std::vector<Measurer*>& measurers,
                                        const std::vector<KernelSweep>& kernels, const FleetOptions& options) {
  Dispatch dispatch(measurers, kernels, options);
  dispatch.run();
  return dispatch.added();
}

}  // namespace ssmjit
