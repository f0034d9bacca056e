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

#include "autotune/fleet/cell_cost.h"
#include "autotune/search/strategy.h"
#include "codegen/log.h"

namespace ssmjit {
namespace {

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
    // A measurer verifies its share in one go, since what a verification sets up costs as much as a hundred plans. Of n
    // shares each has every n-th plan: neighbours in the plan space cost alike, so the shares end together.
    std::size_t shares = 0;
    std::size_t next_share = 0, shares_at_work = 0, plans_done = 0;
    std::vector<State> states;      // of work.cells
    std::vector<double> path_cost;  // of work.cells: about the seconds of each and of the longest row that waits for it
    double cells_since = -1;        // seconds from the start

    bool verified() const { return next_share == shares && shares_at_work == 0; }
    std::size_t count(State state) const {
      return static_cast<std::size_t>(std::count(states.begin(), states.end(), state));
    }
    Search search() const { return kernel->options.rounds > 0 ? Search::exhaustive : kernel->options.search; }
    // Which of work.cells are to be done before one, as its search goes by them. Those come before it, so that some
    // cell always may start.
    std::vector<std::size_t> waits_for(const Cell& cell) const {
      const std::vector<int> by = goes_by(search(), {batches, between}, cell.batch);
      std::vector<std::size_t> found;
      for (std::size_t i = 0; i < work.cells.size(); ++i)
        if (work.cells[i].mode == cell.mode && std::find(by.begin(), by.end(), work.cells[i].batch) != by.end())
          found.push_back(i);
      return found;
    }
    bool may_start(const Cell& cell) const {
      const std::vector<std::size_t> before = waits_for(cell);
      return std::all_of(before.begin(), before.end(), [&](std::size_t i) { return states[i] == State::done; });
    }
    void weigh_paths() {
      path_cost.clear();
      for (const Cell& cell : work.cells)
        path_cost.push_back(cell_cost(kernel->description, cell.batch,
                                      plans_asked(search(), {batches, between}, cell.batch, work.plans.size())));
      const std::vector<double> alone = path_cost;
      // Cells come behind those that they wait for.
      for (std::size_t i = work.cells.size(); i-- > 0;)
        for (const std::size_t before : waits_for(work.cells[i]))
          path_cost[before] = std::max(path_cost[before], alone[before] + path_cost[i]);
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
    part.shares = std::min(measurers_.size(), part.work.to_verify.size());
    part.next_share = part.plans_done = 0;
    part.states.assign(part.work.cells.size(), State::open);
    part.weigh_paths();
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
      if (part.next_share == part.shares) continue;
      Job job = blank(part);
      job.options.plans.clear();
      for (std::size_t i = part.next_share; i < part.work.to_verify.size(); i += part.shares)
        job.options.plans.push_back(part.work.to_verify[i]);
      job.options.verify_only = true;
      job.options.batches.clear();
      job.stage = "verify";
      ++part.next_share;
      ++part.shares_at_work;
      return job;
    }
    return std::nullopt;
  }
  std::optional<Job> measurement() {
    if (budget_s_ > 0 && elapsed() > budget_s_) return std::nullopt;
    Part* of = nullptr;
    std::size_t at = 0;
    for (Part& part : parts_) {
      if (!part.verified()) continue;
      for (std::size_t i = 0; i < part.states.size(); ++i) {
        if (part.states[i] != State::open || (of != nullptr && part.path_cost[i] <= of->path_cost[at]) ||
            !part.may_start(part.work.cells[i]))
          continue;
        of = &part;
        at = i;
        if (measurers_.size() == 1) break;
      }
      // One alone takes kernel after kernel. Of several none is to be without work while the others are at the end of a
      // row of cells that wait for each other, so the longest row goes first.
      if (of != nullptr && measurers_.size() == 1) break;
    }
    if (of == nullptr) return std::nullopt;
    const Cell cell = of->work.cells[at];
    of->states[at] = State::at_work;
    if (of->cells_since < 0) of->cells_since = elapsed();
    Job job = blank(*of);
    job.cell = at;
    job.options.plans = of->work.plans;
    job.options.batches = {cell.batch};
    job.options.modes = {cell.mode};
    job.stage = fmt::format("batch {} {}", cell.batch, name(cell.mode));
    return job;
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
      return part.count(State::open) > 0 && (part.shares_at_work > 0 || part.count(State::at_work) > 0);
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
          --part.shares_at_work;
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
