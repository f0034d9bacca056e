#include "jit/cpu/executor.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <thread>

#include <fmt/format.h>

#include "codegen/fail.h"
#include "jit/cpu/cluster.h"
#include "jit/cpu/code.h"
#include "jit/cpu/run.h"

namespace ssmjit {

std::string cpu_executor_missing() { return {}; }

struct CpuProgram::Impl {
  Arch arch;
  bool checks = false;
  std::unique_ptr<cpu::Code> code;
};

namespace cpu {

void Findings::add(CpuFinding finding) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const CpuFinding& f : kept_)
    if (f.fault == finding.fault && f.line == finding.line) return;
  if (kept_.size() < kMost)
    kept_.push_back(std::move(finding));
  else
    ++not_shown_;
}

void Findings::take(CpuReport& report) {
  report.findings = std::move(kept_);
  report.not_shown = not_shown_;
}

namespace {

void check_smem(const Code& code, const EntryCode& entry, const Arch& arch, std::int64_t dynamic, int line) {
  const std::int64_t all = static_cast<std::int64_t>(code.static_bytes) + dynamic;
  if (dynamic < 0 || all > arch.max_smem_bytes())
    fail(ErrorKind::invalid,
         "{}:{}: kernel {} needs {} bytes of shared memory ({} static, {} dynamic); a block of {} has at most {}",
         code.file, line, entry.name, all, code.static_bytes, dynamic, arch.text(), arch.max_smem_bytes());
}

// Of the buffers that have a history.
CpuStores stores_of(Run& run) {
  CpuStores stores{.kernel = run.entry.name, .ranges = {}};
  for (Buffer& buffer : run.buffers) {
    if (buffer.shadow == nullptr) continue;
    buffer.shadow->each(buffer.begin, buffer.end - buffer.begin, false,
                        [&](const Cell& cell, std::uintptr_t first, std::uintptr_t end) {
                          if (!Stamp::real(cell.write)) return;
                          if (!stores.ranges.empty() && stores.ranges.back().second == first)
                            stores.ranges.back().second = end;
                          else
                            stores.ranges.emplace_back(first, end);
                        });
  }
  return stores;
}

const EntryCode& entry_of(const Code& code, const std::string& name) {
  for (const EntryCode& e : code.entries)
    if (name.empty() || e.name == name) return e;
  fail(ErrorKind::invalid, "CPU launch: the source has no kernel {}", in_quotes(name));
}

void check_launch(const CpuLaunch& l, const EntryCode& entry) {
  constexpr std::int64_t kMostX = 2147483647, kMostY = 65535;
  if (l.grid_x < 1 || l.grid_x > kMostX || l.grid_y < 1 || l.grid_y > kMostY)
    fail(ErrorKind::invalid, "CPU launch: a grid of {} x {}; wants 1 to {} x 1 to {}", l.grid_x, l.grid_y, kMostX,
         kMostY);
  if (l.block_threads < 1 || l.block_threads > 1024)
    fail(ErrorKind::invalid, "CPU launch: {} threads a block; wants 1 to 1024", l.block_threads);
  if (l.cluster < 1 || l.cluster > 16 || l.grid_x % l.cluster != 0)
    fail(ErrorKind::invalid, "CPU launch: clusters of {} in a grid {} blocks wide; wants 1 to 16, dividing it",
         l.cluster, l.grid_x);
  if (l.grid_x / l.cluster * l.grid_y > Stamp::kMaxGroups)
    fail(ErrorKind::invalid, "CPU launch: {} blocks; at most {} run here", l.grid_x * l.grid_y, Stamp::kMaxGroups);
  if (l.args_bytes != entry.args_bytes)
    fail(ErrorKind::invalid, "CPU launch: {} bytes of arguments; kernel {} takes {}", l.args_bytes, entry.name,
         entry.args_bytes);
}

}  // namespace
}  // namespace cpu

CpuProgram CpuProgram::compile(const Source& source, const CpuCompileOptions& options) {
  auto impl = std::make_shared<Impl>();
  impl->arch = source.arch;
  impl->checks = options.checks;
  impl->code = cpu::build(source, {options.checks, options.debug, options.debug ? 0 : options.optimisation,
                                   options.file.empty() ? "kernel.cu" : options.file, options.debug_folder});
  for (const Entry& e : source.entries) {
    const cpu::EntryCode& entry = cpu::entry_of(*impl->code, e.name);
    cpu::check_smem(*impl->code, entry, source.arch, e.smem_bytes, entry.line);
  }
  return CpuProgram(std::move(impl));
}

const Arch& CpuProgram::arch() const { return impl_->arch; }

CpuReport CpuProgram::run(const CpuLaunch& launch) const {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const cpu::Code& code = *impl_->code;
  const cpu::EntryCode& entry = cpu::entry_of(code, launch.entry);
  cpu::check_launch(launch, entry);
  cpu::check_smem(code, entry, impl_->arch, launch.smem_bytes, entry.line);

  cpu::Run run(launch, code, entry);
  run.races = launch.races && impl_->checks;
  run.bounds = launch.bounds && impl_->checks;
  run.checked = impl_->checks;
  run.deadline = start + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(launch.timeout_s));
  for (const CpuBuffer& b : launch.buffers) {
    if (b.bytes == 0) continue;
    cpu::Buffer buffer;
    buffer.given = &b;
    buffer.begin = reinterpret_cast<std::uintptr_t>(b.data);
    buffer.end = buffer.begin + b.bytes;
    if (run.races && (b.writable || !b.initialised)) {
      buffer.shadow = std::make_unique<cpu::Shadow>();
      buffer.shadow->cover(buffer.begin, b.bytes, b.initialised ? cpu::Stamp::kInitial : cpu::Stamp::kUnwritten);
    }
    run.buffers.push_back(std::move(buffer));
  }
  std::sort(run.buffers.begin(), run.buffers.end(), [](const auto& a, const auto& b) { return a.begin < b.begin; });

  run.order.resize(static_cast<std::size_t>(launch.grid_x / launch.cluster * launch.grid_y));
  std::iota(run.order.begin(), run.order.end(), 0u);
  if (launch.schedule == CpuSchedule::reverse) std::reverse(run.order.begin(), run.order.end());
  if (launch.schedule == CpuSchedule::random) {
    std::mt19937_64 random(launch.seed);
    std::shuffle(run.order.begin(), run.order.end(), random);
  }

  const std::size_t workers = std::clamp<std::size_t>(launch.threads, 1, run.order.size());
  std::exception_ptr failure;
  std::mutex failing;
  const auto work = [&] {
    try {
      cpu::Cluster(run).work();
    } catch (...) {
      std::lock_guard<std::mutex> lock(failing);
      failure = std::current_exception();
      run.stop = true;
    }
  };
  std::vector<std::thread> others;
  for (std::size_t i = 1; i < workers; ++i) others.emplace_back(work);
  work();
  for (std::thread& t : others) t.join();
  if (failure) std::rethrow_exception(failure);

  CpuReport report;
  run.findings.take(report);
  if (launch.record_stores) report.stores = cpu::stores_of(run);
  report.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return report;
}

}  // namespace ssmjit
