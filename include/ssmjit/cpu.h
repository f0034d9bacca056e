// Kernels checked without a GPU: the emitted source compiled in this process and run with CUDA threads as fibers. In
// the library ssmjit::autotune; nothing here is needed to load and launch a kernel.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <ssmjit/plan.h>

namespace ssmjit {

// Why this build has no CPU executor; empty when it has one.
std::string cpu_executor_missing();

// In which order blocks, and the threads that may run, take their turn.
enum class CpuSchedule { forward, reverse, random };
const char* name(CpuSchedule schedule);
// Fails: ErrorKind::invalid, with those that there are.
CpuSchedule parse_cpu_schedule(std::string_view text);

// How verify() runs kernels on the CPU. Each case is run once under each schedule, all of which must leave the same
// bits.
struct CpuVerify {
  Arch arch;  // what the kernels are emitted for
  std::vector<CpuSchedule> schedules = {CpuSchedule::forward, CpuSchedule::reverse, CpuSchedule::random};
  bool races = true;         // races, missing waits, reads of what nobody wrote
  bool bounds = true;        // accesses outside the tensors
  double timeout_s = 20;     // that a launch may take, then it is `endless`; none with debug
  bool debug = false;        // unoptimised, one kernel at a time, for gdb; the source is written to debug_folder
  std::string debug_folder;  // empty: a folder of its own below the temporary one
};

}  // namespace ssmjit
