// The CPU executor: an emitted source compiled in this process and run with CUDA threads as fibers, so that a kernel is
// checked where there is no GPU. An oracle, not a fast path.
//
//   CpuProgram program = CpuProgram::compile(source, {.checks = true});
//   CpuReport report = program.run({.entry = ..., .grid_x = ..., .args = &args, .buffers = {...}});
//   for (const CpuFinding& f : report.findings) ... f.text()
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ssmjit/cpu.h>
#include <ssmjit/source.h>

namespace ssmjit {

// Memory that a launch may touch.
struct CpuBuffer {
  std::string name;
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  bool writable = false;
  bool initialised = true;   // false: reading a byte before the kernel wrote it is reported
  bool before_wait = false;  // may be read before grid_dependency_wait: no launch before this one writes it
};

// What a launch has written, address ranges in ascending order that neither overlap nor touch.
struct CpuStores {
  std::string kernel;
  std::vector<std::pair<std::uintptr_t, std::uintptr_t>> ranges;
};

struct CpuLaunch {
  std::string entry;  // empty: the source's first
  std::int64_t grid_x = 1;
  std::int64_t grid_y = 1;
  int block_threads = 32;
  int cluster = 1;  // neighbouring blocks along x that make a cluster
  int smem_bytes = 0;
  const void* args = nullptr;  // the kernel's parameters one after the other, each at its alignment
  std::size_t args_bytes = 0;
  std::vector<CpuBuffer> buffers;
  CpuSchedule schedule = CpuSchedule::forward;
  std::uint64_t seed = 1;
  bool dependent = false;  // the launch before may still run: nothing of it is used before grid_dependency_wait
  // Of launches in front that may still run when a dependent one starts, as their reports tell them. Until the launch
  // waits, none of these bytes is written yet: they are poison, and to read one, before_wait or not, is a finding.
  std::vector<CpuStores> in_flight;
  bool record_stores = false;  // into the report; wants races
  bool races = true;           // races, missing waits, uninitialised reads; of a program compiled with checks
  bool bounds = true;          // accesses outside the buffers; of a program compiled with checks
  double timeout_s = 10;
  int threads = 1;  // of this machine; blocks (clusters) are spread over them
};

enum class CpuFault {
  race,           // two threads, not ordered by any barrier, on the same bytes, at least one writing
  unwaited_copy,  // bytes touched between an asynchronous copy's start and the wait for it
  uninitialised,  // bytes read that nobody wrote
  out_of_bounds,
  misaligned,
  early,      // of a dependent launch: memory used, or the thread's end, before grid_dependency_wait
  divergent,  // lanes or threads that should meet do not
  deadlock,   // everyone waits
  endless,    // the time-out passed
  misuse,     // an operation against its own rules: a barrier that was not initialised, a size that is not allowed
};
const char* name(CpuFault fault);

// One fault of a kernel, at the place where it was first seen.
struct CpuFinding {
  CpuFault fault = CpuFault::misuse;
  std::string kernel;
  std::string file;
  int line = 0;  // of the emitted file; 0: not known
  std::int64_t block_x = 0;
  std::int64_t block_y = 0;
  int thread = 0;
  std::string buffer;        // or a variable in shared memory; empty: not about memory
  std::int64_t offset = 0;   // bytes into it
  std::string what;          // what happened, naming the other thread where there is one
  std::string text() const;  // one sentence
};

struct CpuReport {
  std::vector<CpuFinding> findings;  // one a fault and line, 16 at most
  std::int64_t not_shown = 0;        // found beyond those
  double seconds = 0;
  CpuStores stores;  // where the launch records them
  bool clean() const { return findings.empty(); }
};

struct CpuCompileOptions {
  bool checks = true;        // false: fast and unsafe; only deadlocks, divergence and endless loops are found
  bool debug = false;        // unoptimised, with debug information that gdb is told of, the source on disk
  int optimisation = 1;      // 0 to 2
  std::string file;          // what reports call the source; empty: "kernel.cu"
  std::string debug_folder;  // where debug mode writes the source; empty: a folder of its own below the temporary one
};

// A compiled source. Copies share the code; run() may be called from many threads.
class CpuProgram {
 public:
  // Fails: ErrorKind::missing without the executor; ErrorKind::invalid, with the line, for a source that does not
  // compile, holds inline assembly, recursion or variables of the module that can change, is nested too deep, or needs
  // more shared memory or stack than there is.
  static CpuProgram compile(const Source& source, const CpuCompileOptions& options = {});

  // Runs one launch to its end. A kernel's faults are in the report. Fails: ErrorKind::invalid for a launch that makes
  // no sense (no such entry, an empty grid, arguments of another size, more shared memory than the architecture has).
  CpuReport run(const CpuLaunch& launch) const;

  const Arch& arch() const;

 private:
  struct Impl;
  explicit CpuProgram(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

}  // namespace ssmjit
