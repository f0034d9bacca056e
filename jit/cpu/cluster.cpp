#include "jit/cpu/cluster.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <numeric>

#include <fmt/format.h>

namespace ssmjit::cpu {
namespace {

constexpr std::size_t kMostLaneBytes = 512;
constexpr std::size_t kMostMasks = 33;                          // that a warp meets under
constexpr std::size_t kMeetingBytes = kMostLaneBytes * 32 * 2;  // two, so that one may be read during the next
constexpr std::size_t kWarpBytes = kMostMasks * kMeetingBytes;
constexpr std::uint32_t kWarpBarrier = 1;  // kSsmjitCpuSync of runtime.cuh

thread_local Cluster* current_cluster = nullptr;

std::size_t round_up(std::size_t value, std::size_t unit) { return (value + unit - 1) / unit * unit; }

std::string operation_name(std::uint32_t operation) {
  static const char* const names[] = {"warp operation", "warp barrier", "shuffle", "warp sum",
                                      "warp maximum",   "warp scan",    "vote",    "matrix product",
                                      "matrix load",    "matrix store"};
  return operation < std::size(names) ? names[operation] : names[0];
}

std::string barrier_name(std::uint32_t id) {
  return id == 0 ? std::string("the block's barrier") : fmt::format("named barrier {}", id);
}

}  // namespace

Cluster& Cluster::current() { return *current_cluster; }

Cluster::Cluster(Run& run)
    : run_(run),
      last_buffer_(run.code.sites.size()),
      block_threads_(static_cast<std::uint32_t>(run.launch.block_threads)),
      blocks_(static_cast<std::uint32_t>(run.launch.cluster)),
      count_(block_threads_ * blocks_),
      stack_bytes_(round_up(run.code.stack_bytes, kPage) + kPage),
      slots_bytes_(kWarpBytes * ((block_threads_ + 31) / 32) * blocks_),
      shared_bytes_(run.code.static_bytes + static_cast<std::size_t>(run.launch.smem_bytes)),
      shared_stride_(round_up(shared_bytes_ + 128, 1024)),
      pages_(slots_bytes_ + count_ * stack_bytes_ + run.launch.args_bytes),
      args_(pages_.data() + slots_bytes_ + count_ * stack_bytes_),
      shared_memory_(shared_stride_ * blocks_ + 1024),
      clocks_(count_ + 1),
      threads_(count_),
      block_state_(blocks_) {
  if (run.launch.args_bytes > 0) std::memcpy(args_, run.launch.args, run.launch.args_bytes);
  void* aligned = shared_memory_.data();
  std::size_t space = shared_memory_.size();
  shared_ = static_cast<std::byte*>(std::align(1024, shared_stride_ * blocks_, aligned, space));
  const std::uint32_t warps = (block_threads_ + 31) / 32;
  for (std::uint32_t i = 0; i < count_; ++i) {
    pages_.guard(slots_bytes_ + i * stack_bytes_);
    Thread& t = threads_[i];
    t.index = i;
    t.block = i / block_threads_;
    const std::uint32_t in_block = i % block_threads_;
    t.warp = t.block * warps + in_block / 32;
    t.lane = in_block % 32;
  }
  warps_.resize(std::size_t{warps} * blocks_);
  for (const Thread& t : threads_) {
    if (t.lane == 0) warps_[t.warp].first = t.index;
    warps_[t.warp].lanes |= 1u << t.lane;
  }
  if (run_.races)
    shared_shadow_.cover(reinterpret_cast<std::uintptr_t>(shared_), shared_stride_ * blocks_, Stamp::kUnwritten);
}

Cluster::~Cluster() = default;

void Cluster::work() {
  current_cluster = this;
  for (std::size_t i = run_.next++; i < run_.order.size(); i = run_.next++) {
    if (run_.stop) break;
    run_cluster(run_.order[i]);
    if (!run_.stop && std::chrono::steady_clock::now() > run_.deadline && i + 1 < run_.order.size()) {
      run_.stop = true;
      running_ = &threads_[0];
      report(CpuFault::endless, 0,
             fmt::format("the launch took longer than {} s; {} of {} blocks or clusters had their turn",
                         run_.launch.timeout_s, i + 1, run_.order.size()));
    }
  }
  current_cluster = nullptr;
}

std::uint64_t Cluster::random() {
  random_ ^= random_ << 13;
  random_ ^= random_ >> 7;
  random_ ^= random_ << 17;
  return random_;
}

// ---- threads taking turns ----

void Cluster::run_cluster(std::uint32_t number) {
  number_ = number;
  random_ = (run_.launch.seed + number + 1) * 0x9e3779b97f4a7c15u | 1;
  std::memset(shared_, std::to_integer<int>(kPoison), shared_stride_ * blocks_);
  if (run_.races) {
    shared_shadow_.reset(Stamp::kUnwritten);
    clocks_.forget_last();
  }
  for (Warp& w : warps_) {
    w.meetings.clear();
    w.approach = {};
  }
  for (Block& b : block_state_) {
    b.alive = block_threads_;
    for (Gate& g : b.barriers) gate_reset(g);
  }
  gate_reset(cluster_gate_);
  clocks_.release(cluster_done_);
  cluster_done_ = nullptr;
  cluster_phase_ = 0;
  for (auto& [address, b] : mbarriers_) {
    gate_reset(b.gate);
    clocks_.release(b.done);
  }
  mbarriers_.clear();
  engine_clock_ = 0;
  ready_.clear();
  ready_head_ = 0;
  alive_ = count_;
  gave_up_ = false;

  const std::int64_t clusters_x = run_.launch.grid_x / blocks_;
  Knowledge* nothing = run_.races ? clocks_.fresh() : nullptr;
  std::vector<std::uint32_t> all(count_);
  for (Thread& t : threads_) {
    t.view = {t.index % block_threads_,
              block_threads_,
              static_cast<std::uint32_t>(number % clusters_x) * blocks_ + t.block,
              static_cast<std::uint32_t>(number / clusters_x),
              static_cast<std::uint32_t>(run_.launch.grid_x),
              static_cast<std::uint32_t>(run_.launch.grid_y),
              t.block,
              blocks_};
    // Neighbours' stacks start at different offsets: at the same they would compete for the same lines of the L1.
    const std::size_t skew = std::size_t{t.index % 56} * 64;
    std::byte* stack = pages_.data() + slots_bytes_ + t.index * stack_bytes_ + kPage;
    t.fiber.prepare(stack, stack_bytes_ - kPage - skew, &Cluster::enter);
    t.site = 0;
    t.clock = 1;
    t.ticks = 0;
    t.cluster_phase = 0;
    t.waited = !run_.launch.dependent;
    t.wait = Wait::none;
    for (Queue& q : t.queues) {
      q.copies.clear();
      q.ends.clear();
    }
    if (nothing != nullptr) {
      clocks_.release(t.known);
      t.known = clocks_.hold(nothing);
    }
    all[t.index] = t.index;
  }
  clocks_.release(nothing);
  wake_all(all);
  running_ = nullptr;
  hide_in_flight();
  go_on();
  // The stores of the launches in front come as late as they can: when no thread can go on without them.
  if (!gave_up_ && !at_grid_wait_.empty()) {
    show_in_flight();
    wake_all(at_grid_wait_);
    go_on();
  }
  if (!gave_up_ && alive_ > 0) stuck();
  show_in_flight();  // of a cluster that has given up
  at_grid_wait_.clear();
}

void Cluster::grid_wait() {
  if (!running_->waited && !hidden_.empty()) {
    at_grid_wait_.push_back(running_->index);
    suspend(Wait::grid);
  }
  running_->waited = true;
}

void Cluster::hide_in_flight() {
  if (!run_.launch.dependent || run_.launch.threads > 1) return;  // other workers' blocks may be past their waits
  for (const CpuStores& stores : run_.launch.in_flight)
    for (const auto& [begin, end] : stores.ranges) {
      auto* const bytes = reinterpret_cast<std::byte*>(begin);
      hidden_.insert(hidden_.end(), bytes, bytes + (end - begin));
      std::memset(bytes, std::to_integer<int>(kPoison), end - begin);
    }
}

// In the opposite order: of bytes that several launches write, the first copy is no poison.
void Cluster::show_in_flight() {
  if (hidden_.empty()) return;
  const auto& all = run_.launch.in_flight;
  for (auto stores = all.rbegin(); stores != all.rend(); ++stores)
    for (auto range = stores->ranges.rbegin(); range != stores->ranges.rend(); ++range) {
      const std::size_t bytes = range->second - range->first;
      std::memcpy(reinterpret_cast<std::byte*>(range->first), hidden_.data() + (hidden_.size() - bytes), bytes);
      hidden_.resize(hidden_.size() - bytes);
    }
}

void Cluster::enter() {
  Cluster& cluster = current();
  cluster.run_.entry.call(cluster.args_);
  cluster.thread_main();
}

// What is left to do when a kernel's thread has returned.
void Cluster::thread_main() {
  Thread& t = *running_;
  // The launch behind this one counts on its end to be behind the end of those before.
  if (!t.waited) run_.findings.add(finding(CpuFault::early, run_.entry.line, t, "returns before grid_dependency_wait"));
  // Bulk stores come to their end all the same, but shared memory may be gone before they have read it.
  for (const Copy& c : t.queues[1].copies) {
    if (run_.races && c.taken.empty())
      report(CpuFault::unwaited_copy, c.site, reinterpret_cast<std::uintptr_t>(c.from), t,
             fmt::format("returns while its copy is still to read {} bytes of shared memory", c.read));
    finish(c, t.index, t.clock);
  }
  --alive_;
  --block_state_[t.block].alive;
  suspend(Wait::ended);
}

void Cluster::wake(std::uint32_t thread) {
  threads_[thread].wait = Wait::none;
  ready_.push_back(thread);
}

void Cluster::wake_all(std::vector<std::uint32_t>& threads) {
  if (run_.launch.schedule == CpuSchedule::reverse) std::sort(threads.begin(), threads.end(), std::greater<>());
  for (std::uint32_t t : threads) wake(t);
  threads.clear();
}

// Tells gdb who runs.
void Cluster::show(const ThreadView& view) const {
  const auto set = [](std::uint32_t& to, std::uint32_t value) {
    std::atomic_ref(to).store(value, std::memory_order_relaxed);
  };
  const Here& here = *run_.code.here;
  set(here.thread[0], view.thread);
  set(here.block[0], view.block_x);
  set(here.block[1], view.block_y);
  set(here.block_size[0], view.block_threads);
  set(here.grid_size[0], view.grid_x);
  set(here.grid_size[1], view.grid_y);
}

// The next thread that may run takes over; the first fiber of all where none may. Returns when it is the caller's turn.
void Cluster::go_on() {
  Fiber& from = running_ != nullptr ? running_->fiber : home_;
  Thread* before = running_;
  if (ready_head_ == ready_.size()) {
    running_ = nullptr;
    if (before != nullptr) Fiber::change(from, home_);
    return;
  }
  if (run_.launch.schedule == CpuSchedule::random)
    std::swap(ready_[ready_head_], ready_[ready_head_ + random() % (ready_.size() - ready_head_)]);
  Thread* next = &threads_[ready_[ready_head_++]];
  if (ready_head_ == ready_.size() || ready_head_ >= 4096) {
    ready_.erase(ready_.begin(), ready_.begin() + static_cast<std::ptrdiff_t>(ready_head_));
    ready_head_ = 0;
  }
  running_ = next;
  if (run_.code.here) show(next->view);
  if (next != before) Fiber::change(from, next->fiber);
}

void Cluster::suspend(Wait why) {
  running_->wait = why;
  go_on();
}

// Ends the cluster's run: no thread of it goes on.
void Cluster::give_up() {
  gave_up_ = true;
  ready_.clear();
  ready_head_ = 0;
  Fiber& from = running_->fiber;
  running_ = nullptr;
  Fiber::change(from, home_);
  __builtin_unreachable();
}

void Cluster::tick(std::uint32_t site) {
  constexpr std::uint32_t kTurn = 1u << 10, kLook = 1u << 14;
  const std::uint32_t ticks = ++running_->ticks;
  if (ticks % kTurn != 0) return;
  if (ticks % kLook == 0) {
    if (run_.stop) give_up();
    if (std::chrono::steady_clock::now() > run_.deadline) {
      run_.stop = true;
      report(CpuFault::endless, site, fmt::format("is still in a loop after {} s", run_.launch.timeout_s));
      give_up();
    }
  }
  // A thread that spins until another one has written must let it.
  ready_.push_back(running_->index);
  go_on();
}

void Cluster::fault(std::uint32_t kind, std::uint32_t site) {
  if (kind == 0) return;
  report(CpuFault::misuse, site, kind == 1 ? "divides an integer by zero" : "comes to a trap");
  give_up();
}

const char* Cluster::waiting(const Thread& t) {
  static const char* const names[] = {"is not waiting",
                                      "waits at a warp operation",
                                      "waits at the block's barrier",
                                      "waits at a named barrier",
                                      "waits at the cluster's barrier",
                                      "waits at an mbarrier",
                                      "waits for the launches in front",
                                      "has ended"};
  return names[static_cast<int>(t.wait)];
}

std::string Cluster::where(const Thread& t) const {
  std::string s = waiting(t);
  if (t.wait != Wait::ended && line(t.site) > 0) s += fmt::format(" at line {}", line(t.site));
  return s;
}

// Nobody may run and somebody is left: says who waits for whom.
void Cluster::stuck() {
  const auto thread_name = [&](const Thread& t) {
    return blocks_ > 1 ? fmt::format("thread {} of block ({}, {})", t.view.thread, t.view.block_x, t.view.block_y)
                       : fmt::format("thread {}", t.view.thread);
  };
  // Lanes that did not come to their warp's meeting explain all else.
  const auto alone = [&](const Warp& w, std::uint32_t first, std::uint32_t missing, const std::string& operation) {
    Thread& waiting = threads_[w.first + first];
    const Thread& other = threads_[w.first + static_cast<std::uint32_t>(std::countr_zero(missing))];
    running_ = &waiting;
    report(CpuFault::divergent, waiting.site,
           fmt::format("waits at {} for {} that do not come: {} {}", operation,
                       std::popcount(missing) == 1 ? "a lane" : fmt::format("{} lanes", std::popcount(missing)),
                       thread_name(other), where(other)));
  };
  for (const Warp& w : warps_) {
    for (const Meeting& m : w.meetings)
      if (m.arrived != 0) return alone(w, m.first, m.mask & w.lanes & ~m.arrived, "a " + operation_name(m.operation));
    if (const Approach& a = w.approach; a.arrived != 0)
      return alone(w, a.first, w.lanes & ~a.arrived, barrier_name(a.barrier));
  }
  for (Thread& t : threads_) {
    if (t.wait == Wait::ended) continue;
    running_ = &t;
    std::string what = fmt::format("{}, and nobody can go on", waiting(t));
    CpuFault fault = CpuFault::deadlock;
    if (t.wait == Wait::mbarrier) {
      for (const auto& [address, b] : mbarriers_)
        for (const auto& [thread, parity] : b.waiting)
          if (thread == t.index)
            what = fmt::format(
                "waits at an mbarrier for a phase that never ends: {} of {} arrivals and {} of {} bytes are missing",
                b.pending, b.arrivals, b.expected - b.brought, b.expected);
    } else {
      for (const Thread& other : threads_) {
        if (other.wait == t.wait && other.site == t.site) continue;
        if (t.wait != Wait::cluster && other.block != t.block) continue;
        if (t.wait == Wait::block_barrier && other.wait == Wait::block_barrier) continue;  // any place will do
        what = fmt::format("{} for {}, which {}", waiting(t), thread_name(other), where(other));
        if (other.wait == Wait::ended) fault = CpuFault::divergent;
        break;
      }
    }
    report(fault, t.site, std::move(what));
    return;
  }
}

// ---- meetings ----

void Cluster::know(Thread& t, Knowledge* more) {
  if (run_.races) t.known = clocks_.join(t.known, more);
}

void Cluster::gate_arrive(Gate& gate, Thread& t) {
  ++gate.arrived;
  if (!run_.races) return;
  if (gate.gathered == nullptr)
    gate.gathered = clocks_.copy(*t.known);
  else if (gate.merged != t.known->version)
    clocks_.merge(*gate.gathered, *t.known);
  gate.merged = t.known->version;
  gate.gathered->of[t.index] = t.clock++;
}

// Everyone that waits knows what everyone that arrived knew.
void Cluster::gate_open(Gate& gate) {
  if (run_.races) {
    for (std::uint32_t i : gate.waiting) {
      clocks_.release(threads_[i].known);
      threads_[i].known = clocks_.hold(gate.gathered);
    }
    clocks_.release(gate.gathered);
    gate.gathered = nullptr;
    gate.merged = 0;
  }
  gate.arrived = 0;
  gate.threads = 0;
  wake_all(gate.waiting);
}

void Cluster::gate_reset(Gate& gate) {
  clocks_.release(gate.gathered);
  gate.gathered = nullptr;
  gate.merged = 0;
  gate.arrived = 0;
  gate.threads = 0;
  gate.waiting.clear();
}

// These lanes know what all of them knew.
void Cluster::know_each_other(const Warp& w, std::uint32_t lanes) {
  const auto each = [&](auto&& visit) {
    for (std::uint32_t left = lanes; left != 0; left &= left - 1)
      visit(threads_[w.first + static_cast<std::uint32_t>(std::countr_zero(left))]);
  };
  Knowledge* known = threads_[w.first + static_cast<std::uint32_t>(std::countr_zero(lanes))].known;
  bool alike = true;
  each([&](const Thread& t) { alike = alike && t.known == known; });
  if (alike && known->references == static_cast<std::uint32_t>(std::popcount(lanes))) {
    each([&](Thread& t) { known->of[t.index] = t.clock++; });
    clocks_.changed(*known);
    return;
  }
  Knowledge* all = clocks_.copy(*known);
  const Knowledge* merged = known;
  each([&](Thread& t) {
    if (t.known != merged) clocks_.merge(*all, *t.known);
    merged = t.known;
    all->of[t.index] = std::max(all->of[t.index], t.clock);
    ++t.clock;
  });
  each([&](Thread& t) {
    clocks_.release(t.known);
    t.known = clocks_.hold(all);
  });
  clocks_.release(all);
}

const std::byte* Cluster::exchange(std::uint32_t mask, std::uint32_t operation, const void* mine, std::uint32_t bytes) {
  Thread& t = *running_;
  Warp& w = warps_[t.warp];
  if (w.meetings.empty()) w.meetings.reserve(kMostMasks);
  auto found = std::find_if(w.meetings.begin(), w.meetings.end(), [&](const Meeting& m) { return m.mask == mask; });
  if (found == w.meetings.end()) {
    if (bytes > kMostLaneBytes || (mask >> t.lane & 1) == 0 || w.meetings.size() == kMostMasks) {
      report(CpuFault::misuse, t.site,
             bytes > kMostLaneBytes
                 ? fmt::format("a {} of {} bytes a lane; at most {}", operation_name(operation), bytes, kMostLaneBytes)
             : (mask >> t.lane & 1) == 0
                 ? fmt::format("a {} under mask 0x{:08x}, which leaves out the lane itself", operation_name(operation),
                               mask)
                 : fmt::format("a {} under more than {} different masks", operation_name(operation), kMostMasks - 1));
      give_up();
    }
    std::byte* slots = pages_.data() + t.warp * kWarpBytes + w.meetings.size() * kMeetingBytes;
    w.meetings.push_back({.mask = mask, .slots = slots});
    found = w.meetings.end() - 1;
  }
  Meeting& m = *found;
  if (m.arrived == 0) {
    m.operation = operation;
    m.bytes = bytes;
    m.site = t.site;
    m.first = t.lane;
  } else if (m.operation != operation || m.bytes != bytes) {
    report(CpuFault::divergent, t.site,
           fmt::format("comes to a {} while thread {} of its warp waits at a {} at line {}", operation_name(operation),
                       threads_[w.first + m.first].view.thread, operation_name(m.operation), line(m.site)));
    give_up();
  }
  std::byte* slots = m.slots + m.phase % 2 * (kMeetingBytes / 2);
  if (bytes > 0) std::memcpy(slots + std::size_t{t.lane} * bytes, mine, bytes);
  m.arrived |= 1u << t.lane;
  const std::uint32_t wanted = mask & w.lanes;
  if ((m.arrived & wanted) != wanted) {
    suspend(Wait::exchange);
    return slots;
  }
  m.arrived = 0;
  ++m.phase;
  // Only the warp barrier orders memory: CUDA's shuffles, votes and matrix operations do not.
  if (run_.races && operation == kWarpBarrier) know_each_other(w, wanted);
  const bool reverse = run_.launch.schedule == CpuSchedule::reverse;
  for (std::uint32_t i = 0; i < 32; ++i) {
    const std::uint32_t lane = reverse ? 31 - i : i;
    if (lane != t.lane && (wanted >> lane & 1)) wake(w.first + lane);
  }
  // The last to come goes on at once; by turns in random order it may have to wait.
  if (run_.launch.schedule == CpuSchedule::random) {
    ready_.push_back(t.index);
    go_on();
  }
  return slots;
}

void Cluster::block_barrier() { barrier(0, block_threads_, true); }

void Cluster::named_barrier(std::uint32_t id, std::uint32_t threads, bool wait) {
  if (id == 0 || id >= std::size(block_state_[0].barriers) || threads == 0 || threads % 32 != 0 || threads > 1024) {
    report(CpuFault::misuse, running_->site,
           fmt::format(
               "comes to named barrier {} with {} threads: there are 1 to 15 (0 is the block's), and the count is a "
               "multiple of 32, up to 1024",
               id, threads));
    give_up();
  }
  barrier(id, threads, wait);
}

// The lanes of a warp come to the same place before their warp is counted; among themselves that orders nothing.
void Cluster::barrier(std::uint32_t id, std::uint32_t threads, bool wait) {
  Thread& t = *running_;
  Warp& w = warps_[t.warp];
  Approach& a = w.approach;
  if (a.arrived == 0) {
    a = {.barrier = id, .threads = threads, .site = t.site, .first = t.lane, .wait = wait};
  } else if (a.site != t.site || a.barrier != id || a.threads != threads) {
    report(CpuFault::divergent, t.site,
           fmt::format("comes to {} while thread {} of its warp is at {} elsewhere (line {})", barrier_name(id),
                       threads_[w.first + a.first].view.thread, barrier_name(a.barrier), line(a.site)));
    give_up();
  }
  a.arrived |= 1u << t.lane;
  const Wait why = id == 0 ? Wait::block_barrier : Wait::named_barrier;
  if (a.arrived != w.lanes) return suspend(why);
  a.arrived = 0;

  Gate& gate = block_state_[t.block].barriers[id];
  if (gate.arrived > 0 && gate.threads != threads) {
    report(CpuFault::misuse, t.site,
           fmt::format("comes to named barrier {} with {} threads while others wait there for {}", id, threads,
                       gate.threads));
    give_up();
  }
  gate.threads = threads;
  const std::uint32_t lanes = static_cast<std::uint32_t>(std::popcount(w.lanes));
  for (std::uint32_t i = w.first; i < w.first + lanes; ++i) {
    if (wait) gate.waiting.push_back(i);
    gate_arrive(gate, threads_[i]);
  }
  if (id != 0) gate.arrived += 32 - lanes;  // a last warp of fewer lanes counts as a whole one
  const bool open = gate.arrived >= threads;
  if (open) gate_open(gate);
  if (wait) return open ? go_on() : suspend(why);
  std::vector<std::uint32_t> warp(lanes);
  std::iota(warp.begin(), warp.end(), w.first);
  wake_all(warp);
  go_on();
}

void Cluster::cluster_arrive() {
  Thread& t = *running_;
  if (t.cluster_phase > cluster_phase_) {
    report(CpuFault::misuse, t.site, "arrives at the cluster's barrier twice without waiting");
    give_up();
  }
  ++t.cluster_phase;
  gate_arrive(cluster_gate_, t);
  if (cluster_gate_.arrived < count_) return;
  ++cluster_phase_;
  if (run_.races) {
    clocks_.release(cluster_done_);
    cluster_done_ = clocks_.hold(cluster_gate_.gathered);
    for (std::uint32_t i : cluster_gate_.waiting) know(threads_[i], cluster_done_);
    clocks_.release(cluster_gate_.gathered);
    cluster_gate_.gathered = nullptr;
    cluster_gate_.merged = 0;
  }
  cluster_gate_.arrived = 0;
  wake_all(cluster_gate_.waiting);
}

void Cluster::cluster_wait() {
  Thread& t = *running_;
  if (t.cluster_phase <= cluster_phase_) {
    if (cluster_done_ != nullptr) know(t, cluster_done_);
    return;
  }
  cluster_gate_.waiting.push_back(t.index);
  suspend(Wait::cluster);
}

std::byte* Cluster::map_shared(const std::byte* address, std::uint32_t rank) {
  const std::size_t offset = static_cast<std::size_t>(address - shared_);
  if (offset >= shared_stride_ * blocks_ || rank >= blocks_) {
    report(CpuFault::misuse, running_->site,
           rank >= blocks_ ? fmt::format("asks for shared memory of block {} of a cluster of {}", rank, blocks_)
                           : std::string("asks for the peer's place of an address that is not in shared memory"));
    give_up();
  }
  return shared_ + rank * shared_stride_ + offset % shared_stride_;
}

// ---- mbarriers ----

Cluster::Mbarrier& Cluster::mbarrier(std::uintptr_t address, const char* operation) {
  const auto found = mbarriers_.find(address);
  if (found == mbarriers_.end()) {
    report(CpuFault::misuse, running_->site, address, *running_,
           fmt::format("{} an mbarrier that was not initialised", operation));
    give_up();
  }
  Mbarrier& b = found->second;
  if (run_.races && b.thread != running_->index && running_->known->of[b.thread] < b.clock)
    report(CpuFault::race, running_->site, address, *running_,
           fmt::format("{} an mbarrier that thread {} initialises, with no barrier between", operation,
                       threads_[b.thread].view.thread));
  return b;
}

void Cluster::mbarrier_init(std::uintptr_t barrier, std::uint32_t arrivals) {
  Thread& t = *running_;
  const Place where = place(barrier, 8, t.site);
  if (!where.shared || barrier % 8 != 0 || arrivals == 0) {
    report(
        CpuFault::misuse, t.site, barrier, t,
        fmt::format(
            "initialises an mbarrier for {} arrivals; it must lie in shared memory at a multiple of 8, for 1 or more",
            arrivals));
    give_up();
  }
  if (run_.races) touch(where, barrier, 8, Touch::write, true, t.site, t.index, t.clock);
  Mbarrier& b = mbarriers_[barrier];
  gate_reset(b.gate);
  clocks_.release(b.done);
  b = Mbarrier{};
  b.arrivals = b.pending = arrivals;
  b.thread = t.index;
  b.clock = t.clock;
}

// Ends the phase under way if nothing is missing: what was to be copied is there now.
bool Cluster::complete(Mbarrier& b) {
  if (b.pending > 0 || b.brought != b.expected) return false;
  if (run_.races) {
    if (b.gate.gathered == nullptr) b.gate.gathered = clocks_.fresh();
    ++engine_clock_;
    b.gate.gathered->of[count_] = engine_clock_;
    clocks_.release(b.done);
    b.done = b.gate.gathered;
    b.gate.gathered = nullptr;
    b.gate.merged = 0;
  }
  for (const Copy& c : b.copies) finish(c, count_, engine_clock_);
  b.copies.clear();
  b.gate.arrived = 0;
  b.pending = b.arrivals;
  b.expected = b.brought = 0;
  ++b.phase;
  std::vector<std::uint32_t> over;
  std::erase_if(b.waiting, [&](const auto& w) {
    if ((b.phase & 1) == w.second) return false;
    over.push_back(w.first);
    return true;
  });
  for (std::uint32_t i : over) know(threads_[i], b.done);
  wake_all(over);
  return true;
}

void Cluster::mbarrier_arrive(std::uintptr_t barrier, std::uint32_t count) {
  Mbarrier& b = mbarrier(barrier, "arrives at");
  complete(b);
  if (count > b.pending) {
    report(CpuFault::misuse, running_->site, barrier, *running_,
           fmt::format("arrives at an mbarrier {} times with {} of {} arrivals left in the phase", count, b.pending,
                       b.arrivals));
    give_up();
  }
  gate_arrive(b.gate, *running_);
  b.pending -= count;
  if (!b.waiting.empty()) complete(b);
}

void Cluster::mbarrier_expect(std::uintptr_t barrier, std::uint32_t bytes) {
  Mbarrier& b = mbarrier(barrier, "expects bytes at");
  complete(b);
  b.expected += bytes;
}

bool Cluster::mbarrier_test(std::uintptr_t barrier, std::uint32_t parity) {
  Mbarrier& b = mbarrier(barrier, "tests");
  if ((b.phase & 1) == (parity & 1)) complete(b);
  if ((b.phase & 1) == (parity & 1)) return false;
  if (b.done != nullptr) know(*running_, b.done);
  return true;
}

void Cluster::mbarrier_wait(std::uintptr_t barrier, std::uint32_t parity) {
  if (mbarrier_test(barrier, parity)) return;
  mbarriers_.find(barrier)->second.waiting.emplace_back(running_->index, parity & 1);
  suspend(Wait::mbarrier);
}

// ---- copies whose source is read before they end ----

// The source of a copy has been read: whoever is ordered after (thread, clock) may write there.
void Cluster::source_is_free(const Copy& c, std::uint32_t thread, std::uint32_t clock) {
  if (!run_.races || c.read == 0 || !c.taken.empty()) return;
  const std::uintptr_t source = reinterpret_cast<std::uintptr_t>(c.from);
  const Place where = place(source, c.read, c.site);
  Shadow* shadow = shadow_of(where);
  if (shadow == nullptr) return;
  const std::unique_lock<std::mutex> lock = lock_for(where);
  shadow->each(source, c.read, false, [&](Cell& cell, std::uintptr_t, std::uintptr_t) {
    for (std::uint64_t& read : cell.read)
      if (read == Stamp::make(number_, c.thread, c.clock, false, true))
        read = Stamp::make(number_, thread, clock, false, false);
  });
}

void Cluster::copy_wait_read(std::uint32_t queue, std::uint32_t pending) {
  Queue& q = running_->queues[queue % 2];
  if (q.ends.size() <= pending) return;
  const std::size_t read = q.ends[q.ends.size() - pending - 1];
  for (std::size_t i = 0; i < read; ++i) {
    Copy& c = q.copies[i];
    if (!c.taken.empty()) continue;
    source_is_free(c, running_->index, running_->clock);
    c.taken.assign(c.from, c.from + c.read);
  }
}

// ---- what must have happened, and where ----

// Global memory of a dependent launch may still be in use by the launches before; but what none of them writes may be
// read.
void Cluster::require_waited(const Place& where, std::uintptr_t address, std::size_t bytes, bool write,
                             const char* verb, std::uint32_t site) {
  if (running_->waited || where.buffer == nullptr) return;
  for (const CpuStores& stores : run_.launch.in_flight) {
    const auto past = std::upper_bound(stores.ranges.begin(), stores.ranges.end(), address,
                                       [](std::uintptr_t at, const auto& range) { return at < range.second; });
    if (past == stores.ranges.end() || past->first >= address + bytes) continue;
    report(
        CpuFault::early, site, address, *running_,
        fmt::format("{} {} bytes before grid_dependency_wait, which {} may still write", verb, bytes, stores.kernel));
    return;
  }
  if (!write && where.buffer->given->before_wait) return;
  report(CpuFault::early, site, address, *running_,
         fmt::format("{} {} bytes before grid_dependency_wait", verb, bytes));
}

// Memory of no known place is for in_bounds to judge.
void Cluster::require_space(const Place& where, std::uintptr_t address, std::size_t bytes, bool shared,
                            const char* verb, std::uint32_t site) {
  if (!where.known() || where.shared == shared) return;
  report(
      CpuFault::misuse, site, address, *running_,
      fmt::format("{} {} bytes {} by an operation on {} memory", verb, bytes,
                  where.shared ? "of shared memory" : "that are not in shared memory", shared ? "shared" : "global"));
  give_up();
}

// An asynchronous copy goes between global and shared memory.
void Cluster::check_copy(bool to_shared, const std::byte* to, const std::byte* from, std::uint32_t bytes,
                         std::uint32_t read) {
  if (!run_.bounds && !run_.races) return;
  const std::uint32_t site = running_->site;
  const std::uintptr_t target = reinterpret_cast<std::uintptr_t>(to), source = reinterpret_cast<std::uintptr_t>(from);
  require_space(place(target, bytes, site), target, bytes, to_shared, "copies over", site);
  if (read > 0) require_space(place(source, read, site), source, read, !to_shared, "copies", site);
}

void Cluster::matrix_row(std::uintptr_t row) {
  if (!run_.bounds && !run_.races) return;
  constexpr std::size_t kRowBytes = 16;
  const std::uint32_t site = running_->site;
  if (row % kRowBytes != 0) {
    report(CpuFault::misaligned, site, row, *running_,
           fmt::format("names a matrix row at an address that is no multiple of {}", kRowBytes));
    give_up();
  }
  require_space(place(row, kRowBytes, site), row, kRowBytes, true, "names a matrix row of", site);
}

}  // namespace ssmjit::cpu
