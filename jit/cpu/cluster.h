// The threads of one cluster (one block, mostly), each a fiber, all on one core; one cluster after another. What the
// runtime functions of templates/device/cpu/runtime.cuh do is done here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "jit/cpu/clock.h"
#include "jit/cpu/fiber.h"
#include "jit/cpu/run.h"
#include "jit/cpu/shadow.h"

namespace ssmjit::cpu {

constexpr std::size_t kPage = 65536;       // of any machine, at most: the guard below each stack
inline constexpr std::byte kPoison{0xff};  // NaN in every dtype

// SsmjitCpuThread of runtime.cuh.
struct ThreadView {
  std::uint32_t thread, block_threads;
  std::uint32_t block_x, block_y, grid_x, grid_y;
  std::uint32_t cluster_rank, cluster_size;
};

class Cluster {
 public:
  explicit Cluster(Run& run);
  ~Cluster();
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;

  // Runs clusters of the launch until none is left.
  void work();

  // ---- for the compiled code: the cluster and thread that run on this core now ----
  static Cluster& current();
  const ThreadView* view() const { return &running_->view; }
  std::byte* shared() const { return shared_ + running_->block * shared_stride_; }
  void at(std::uint32_t site) { running_->site = site; }
  void tick(std::uint32_t site);
  void fault(std::uint32_t kind, std::uint32_t site);  // 0: none, 1: a division by zero, 2: a trap
  void access(std::uintptr_t address, std::size_t bytes, std::uint32_t site);
  // An access `offset` bytes into a variable of the thread's own that is not within it.
  [[noreturn]] void outside(std::uint64_t offset, std::uint64_t bytes, std::uint32_t variable, std::uint32_t site);
  [[noreturn]] void wild_call(std::uintptr_t address, std::uint32_t site);

  const std::byte* exchange(std::uint32_t mask, std::uint32_t operation, const void* mine, std::uint32_t bytes);
  void grid_wait();
  void block_barrier();
  void named_barrier(std::uint32_t id, std::uint32_t threads, bool wait);
  void cluster_arrive();
  void cluster_wait();
  std::byte* map_shared(const std::byte* address, std::uint32_t rank);
  void mbarrier_init(std::uintptr_t barrier, std::uint32_t arrivals);
  void mbarrier_arrive(std::uintptr_t barrier, std::uint32_t count);
  void mbarrier_expect(std::uintptr_t barrier, std::uint32_t bytes);
  bool mbarrier_test(std::uintptr_t barrier, std::uint32_t parity);
  void mbarrier_wait(std::uintptr_t barrier, std::uint32_t parity);
  void copy(std::uint32_t queue, std::byte* to, const std::byte* from, std::uint32_t bytes, std::uint32_t read,
            std::uint32_t alignment);
  void copy_commit(std::uint32_t queue);
  void copy_wait(std::uint32_t queue, std::uint32_t pending);
  void copy_wait_read(std::uint32_t queue, std::uint32_t pending);
  void copy_to_barrier(std::byte* to, const std::byte* from, std::uint32_t bytes, std::uintptr_t barrier);
  void store_to_barrier(std::byte* to, std::uint32_t value, std::uintptr_t barrier);
  void check_copy(bool to_shared, const std::byte* to, const std::byte* from, std::uint32_t bytes, std::uint32_t read);
  void matrix_row(std::uintptr_t row);
  void load_maybe_appended(std::byte* to, const std::byte* from, std::uint32_t bytes);

 private:
  enum class Wait { none, exchange, block_barrier, named_barrier, cluster, mbarrier, grid, ended };

  struct Copy {
    std::byte* to;
    const std::byte* from;
    std::uint32_t bytes, read, site, thread, clock;  // thread, clock: of the one that started it
    std::vector<std::byte> taken{};                  // what was read, where that ended before the copy does
  };
  // Copies in groups: group i ends where the next begins; those past the last end are not committed.
  struct Queue {
    std::vector<Copy> copies;
    std::vector<std::size_t> ends;
  };
  struct Thread {
    ThreadView view{};
    Fiber fiber;
    std::uint32_t index = 0, block = 0, warp = 0, lane = 0;
    std::uint32_t site = 0;  // where it entered the runtime last
    std::uint32_t clock = 1;
    std::uint32_t ticks = 0;
    std::uint32_t cluster_phase = 0;  // how often it has come to the cluster's barrier
    bool waited = false;              // for the launches that this one depends on
    Wait wait = Wait::none;
    Knowledge* known = nullptr;
    Queue queues[2];
  };
  struct Meeting {
    std::uint32_t mask = 0, arrived = 0, operation = 0, bytes = 0, phase = 0, site = 0, first = 0;
    std::byte* slots = nullptr;
  };
  // Lanes on their way to a barrier of the block, which counts whole warps.
  struct Approach {
    std::uint32_t arrived = 0, barrier = 0, threads = 0, site = 0, first = 0;
    bool wait = true;
  };
  struct Warp {
    std::uint32_t first = 0, lanes = 0;  // its threads; the mask of lanes that exist
    Approach approach;
    std::vector<Meeting> meetings;  // the first: of the full mask
  };
  struct Gate {
    std::uint32_t arrived = 0, threads = 0;
    std::vector<std::uint32_t> waiting;
    Knowledge* gathered = nullptr;
    std::uint64_t merged = 0;  // the version of the last one that went in
  };
  struct Block {
    std::uint32_t alive = 0;  // threads
    Gate barriers[16];        // 0: sync_block's
  };
  struct Mbarrier {
    std::uint32_t arrivals = 0, pending = 0, phase = 0;
    std::int64_t expected = 0, brought = 0;
    std::uint32_t thread = 0, clock = 0;  // who initialised it, and when
    std::vector<Copy> copies;
    std::vector<std::pair<std::uint32_t, std::uint32_t>> waiting;  // thread, parity
    Gate gate;                                                     // of the phase under way
    Knowledge* done = nullptr;                                     // of the last phase
  };
  enum class Touch { read, write, update, copy_source, copy_start, copy_end };
  // Where an address points.
  struct Place {
    const Buffer* buffer = nullptr;  // global
    bool shared = false;
    bool own = false;       // the thread's stack, exchange slots, the launch's arguments
    bool constant = false;  // the module's
    bool known() const { return buffer != nullptr || shared || own || constant; }
  };

  void run_cluster(std::uint32_t number);
  void hide_in_flight();
  void show_in_flight();
  void thread_main();
  static void enter();
  void suspend(Wait why);
  void go_on();
  void show(const ThreadView& view) const;
  void wake(std::uint32_t thread);
  void wake_all(std::vector<std::uint32_t>& threads);
  [[noreturn]] void give_up();
  void stuck();
  static const char* waiting(const Thread& t);
  std::string where(const Thread& t) const;
  std::uint64_t random();

  void barrier(std::uint32_t id, std::uint32_t threads, bool wait);
  void gate_arrive(Gate& gate, Thread& t);
  void gate_open(Gate& gate);
  void gate_reset(Gate& gate);
  void know(Thread& t, Knowledge* more);
  void know_each_other(const Warp& w, std::uint32_t lanes);

  Mbarrier& mbarrier(std::uintptr_t address, const char* operation);
  bool complete(Mbarrier& b);
  void finish(const Copy& c, std::uint32_t thread, std::uint32_t clock);
  void source_is_free(const Copy& c, std::uint32_t thread, std::uint32_t clock);

  bool own(std::size_t at, std::size_t bytes) const;
  Place place(std::uintptr_t address, std::size_t bytes, std::uint32_t site);
  bool in_bounds(const Place& where, std::uintptr_t address, std::size_t bytes, bool write, const char* verb,
                 std::uint32_t site);
  void require_waited(const Place& where, std::uintptr_t address, std::size_t bytes, bool write, const char* verb,
                      std::uint32_t site);
  void require_space(const Place& where, std::uintptr_t address, std::size_t bytes, bool shared, const char* verb,
                     std::uint32_t site);
  Copy start(std::byte* to, const std::byte* from, std::uint32_t bytes, std::uint32_t read);
  void touch(const Place& where, std::uintptr_t address, std::size_t bytes, Touch kind, bool atomic, std::uint32_t site,
             std::uint32_t thread, std::uint32_t clock);
  void check(Cell& cell, std::uintptr_t address, std::size_t bytes, Touch kind, bool atomic, std::uint32_t site,
             std::uint32_t thread, std::uint32_t clock);
  Shadow* shadow_of(const Place& where);
  std::unique_lock<std::mutex> lock_for(const Place& where);
  bool ordered(std::uint64_t stamp) const;
  std::string who(std::uint64_t stamp, std::uint32_t site) const;
  CpuFinding finding(CpuFault fault, int line, const Thread& t, std::string what) const;
  void add(CpuFinding f, std::uint32_t site, const Thread& t);
  void report(CpuFault fault, std::uint32_t site, std::string what);
  void report(CpuFault fault, std::uint32_t site, std::uintptr_t address, const Thread& t, std::string what);
  int line(std::uint32_t site) const { return site < run_.code.sites.size() ? run_.code.sites[site].line : 0; }

  Run& run_;
  std::vector<const Buffer*> last_buffer_;        // that each site went to
  std::uint32_t block_threads_, blocks_, count_;  // count_: threads of the cluster
  std::size_t stack_bytes_, slots_bytes_, shared_bytes_, shared_stride_;
  Pages pages_;  // exchange slots, then stacks, then the launch's arguments
  std::byte* args_;
  std::vector<std::byte> shared_memory_;
  std::byte* shared_ = nullptr;
  Shadow shared_shadow_;
  Clocks clocks_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<Block> block_state_;
  Gate cluster_gate_;
  std::uint32_t cluster_phase_ = 0;  // how often all threads of the cluster have met
  Knowledge* cluster_done_ = nullptr;
  std::unordered_map<std::uintptr_t, Mbarrier> mbarriers_;
  std::vector<std::uint32_t> ready_;
  std::size_t ready_head_ = 0;
  std::uint32_t alive_ = 0, number_ = 0, engine_clock_ = 0;
  std::uint64_t random_ = 1;
  bool gave_up_ = false;
  std::vector<std::uint32_t> at_grid_wait_;  // threads
  std::vector<std::byte> hidden_;  // what the bytes in flight hold once they are written, while they are poison
  Thread* running_ = nullptr;
  Fiber home_;
};

}  // namespace ssmjit::cpu
