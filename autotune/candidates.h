// Plans on their way to being timed: compiled, verified in small and loaded when they are first asked for.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

#include <ssmjit/kernel.h>
#include <ssmjit/tune.h>

#include "autotune/gpu_verify.h"
#include "autotune/sweep_lines.h"

namespace ssmjit {

class Candidates {
 public:
  struct Ready {
    Kernel kernel;
    int registers = 0;
    int smem_bytes = 0;
    int clusters_at_once = 0;  // of a plan of clusters, on this GPU
  };

  // `record` takes the lines of verification; `known` hears of those that are right. All that is given outlives it.
  Candidates(const Description& description, const SweepLines& lines, const TuneOptions& options,
             const DeviceFacts& gpu, KnownLines& known, std::function<void(const Measurement&)> record);
  ~Candidates();

  // Those that nothing is known of: whether they are right, and whether they spill.
  void verify(const std::vector<std::size_t>& plans);
  // Verifies them and loads those that are right; once each.
  void prepare(const std::vector<std::size_t>& plans);
  // Null: not prepared, or not to be timed.
  const Ready* ready(std::size_t plan) const { return ready_[plan].get(); }
  void give_up(std::size_t plan) { ready_[plan] = nullptr; }

 private:
  void doing(const char* stage, const Measurement* line) const;
  void settle(std::size_t plan, const Verdict& verdict);

  Description description_;
  const SweepLines& lines_;
  const TuneOptions& options_;
  Arch arch_;
  KnownLines& known_;
  std::function<void(const Measurement&)> record_;
  std::vector<std::unique_ptr<Ready>> ready_;  // by plan
  std::vector<bool> prepared_;
  std::unique_ptr<GpuVerifier> verifier_;
  std::vector<std::size_t> verifying_;  // the plans of the verifier's run
};

}  // namespace ssmjit
