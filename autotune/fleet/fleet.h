// A sweep of several kernels on several GPUs: one queue of jobs, the next to whoever is free.
#pragma once

#include <functional>
#include <vector>

#include "autotune/fleet/measurer.h"
#include "autotune/fleet/shard.h"
#include "autotune/search/between.h"

namespace ssmjit {

struct KernelSweep {
  Description description;
  TuneOptions options;  // batches and modes: all of the sweep's; known: what the journal has; budget_s: not read
};

struct FleetOptions {
  Shard shard;          // of the cells of all kernels together, in their order
  double budget_s = 0;  // stop starting cells after this; 0: none
  // Batches beside those of a kernel, once all its cells are done, until its table keeps the rule. None are added to a
  // shard, which has not all cells of a table, nor once the budget is spent.
  BetweenRules between;
  // Asked every tenth of a second, from this thread. Once true the measurers are stopped, what they have measured is
  // told, and sweep_on throws.
  std::function<bool()> interrupted = {};
};

// Plans are verified first: those that a kernel's search asks for at first, on several measurers with Search::model all
// that it may ask for. The kernel's cells are measured after them, each after those that its search goes by. Each
// kernel's callbacks are called from this thread; progress counts the plans that are verified first (stage "verify"),
// then its cells ("batch 8 off"). An error of a measurer or of a callback stops all and is thrown here; what was
// measured until then has been told. Returns the cells between that were added, by kernel, those among them that the
// journal had.
std::vector<std::vector<Cell>> sweep_on(const std::vector<Measurer*>& measurers,
                                        const std::vector<KernelSweep>& kernels, const FleetOptions& options = {});

}  // namespace ssmjit
