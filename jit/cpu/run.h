// One launch under way: what its workers share.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "jit/cpu/code.h"
#include "jit/cpu/executor.h"
#include "jit/cpu/shadow.h"

namespace ssmjit::cpu {

// The findings of a launch: one a fault and line, 16 at most. Any worker may add.
class Findings {
 public:
  static constexpr std::size_t kMost = 16;
  void add(CpuFinding finding);
  void take(CpuReport& report);

 private:
  std::mutex mutex_;
  std::vector<CpuFinding> kept_;
  std::int64_t not_shown_ = 0;
};

struct Buffer {
  const CpuBuffer* given = nullptr;
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;
  std::unique_ptr<Shadow> shadow;  // of writable ones, where races are looked for
};

struct Run {
  using Time = std::chrono::steady_clock::time_point;

  Run(const CpuLaunch& l, const Code& c, const EntryCode& e) : launch(l), code(c), entry(e) {}

  const CpuLaunch& launch;
  const Code& code;
  const EntryCode& entry;
  bool races = false;                // asked for, and compiled in
  bool bounds = false;               // likewise
  bool checked = false;              // compiled with checks: a wild address never reaches the memory
  std::vector<Buffer> buffers;       // by address
  std::vector<std::uint32_t> order;  // clusters as they take their turn
  std::atomic<std::size_t> next{0};  // in `order`
  std::atomic<bool> stop{false};     // the time is up
  Time deadline{};
  Findings findings;
  std::mutex shadow;  // held while global cells are used, where there are several workers
};

}  // namespace ssmjit::cpu
