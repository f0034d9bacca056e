#include "autotune/cpu_verify.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <variant>

#include <ssmjit/source.h>

#include "autotune/verify.h"
#include "codegen/banner.h"
#include "codegen/digest.h"
#include "codegen/fail.h"
#include "jit/cpu/executor.h"
#include "jit/kernel_args.h"
#include "jit/layer_chain.h"

namespace ssmjit {
namespace {

// Its pad rows and odd batches need no wave to overflow: blocks take their turns in every order anyway.
constexpr int kMultiprocessors = 1;
constexpr double kForever_s = 1e9;  // while somebody looks at it in gdb

// The CPU executor, one kernel, one schedule after the other.
class CpuTarget : public Target {
 public:
  CpuTarget(const CpuProgram& program, const Source& source, const Description& description, const Plan& plan,
            const CpuVerify& how)
      : program_(program),
        entries_(source.entries),
        description_(description),
        plan_(plan),
        parts_(plan_parts(plan, description)),
        how_(how) {}

  std::byte* allocate(const KernelCase::Block& block) override {
    memory_.push_back(std::make_unique<std::vector<std::byte>>(block.before));
    buffers_.push_back(cpu_buffer(block, *memory_.back()));
    return memory_.back()->data();
  }
  void restore(std::byte* address, const KernelCase::Block& block) override {
    std::copy(block.before.begin(), block.before.end(), address);
  }
  void read(const std::byte* address, std::vector<std::byte>& contents) override {
    const auto found =
        std::find_if(memory_.begin(), memory_.end(), [&](const auto& m) { return m->data() == address; });
    if (found == memory_.end()) fail(ErrorKind::internal, "verify: an address that was not allocated");
    contents = **found;
  }
  void release_all() override {
    memory_.clear();
    buffers_.clear();
    launched_ = 0;
  }
  int launches() const override { return static_cast<int>(how_.schedules.size()); }
  std::vector<std::string> launch(const KernelCase& test, const CaseArgs& args) override {
    // The second launch of any plan waits before it reads anything; the others of a plan that asks for the state early
    // are launched so. What is done before the wait is then checked.
    const bool waits_first = launched_ == 1 && how_.arch.has_pdl();
    const Pdl pdl = waits_first ? Pdl::wait_first : parts_.front().plan.early_state ? Pdl::early_state : Pdl::off;
    const int batch = test.layout().batch;
    std::vector<CpuBuffer> buffers = buffers_;
    if (waits_first)
      for (CpuBuffer& buffer : buffers) buffer.before_wait = false;
    std::vector<std::string> faults;
    if (const auto* replay = std::get_if<ReplayArgs>(&args); replay != nullptr && parts_.size() > 1) {
      faults = run_replay(*replay, pdl, batch, buffers);
    } else if (const auto* layer = std::get_if<LayerArgs>(&args); layer != nullptr && plan_.form != PlanForm::fused) {
      LayerArgs with_pdl = *layer;
      with_pdl.pdl = pdl;
      faults = run_chain(chain_args(description_, plan_.form, with_pdl), batch, buffers);
    } else {
      std::visit(
          [&](const auto& given) {
            with_device_args(description_, given, pdl,
                             [&](const auto& device) { run(0, batch, device, buffers, faults); });
          },
          args);
    }
    ++launched_;
    return faults;
  }

 private:
  // Each launch is run to its end before the next. A dependent one may start before those in front of it have written
  // anything, since the one before it may have started so too: until it waits, what they write is poison and not to be
  // read. What else it reads by then is the same whenever it runs, so this run stands for every overlap.
  std::vector<std::string> run_chain(const ChainArgs& chain, int batch, std::vector<CpuBuffer> buffers) {
    std::vector<std::string> faults;
    std::vector<CpuStores> in_flight;
    std::size_t part = 0;
    const auto one = [&](const auto& given) {
      if (!given) return;
      with_device_args(parts_[part].description, *given, given->pdl,
                       [&](const auto& device) { run(part, batch, device, buffers, faults, &in_flight); });
      ++part;
      for (CpuBuffer& buffer : buffers)
        if (buffer.name == "scratch") buffer.initialised = true;
    };
    one(chain.conv1d);
    one(chain.update);
    one(chain.ring);
    one(chain.norm);
    return faults;
  }

  // Likewise, the second as dependent as the launch's mode lets it be.
  std::vector<std::string> run_replay(const ReplayArgs& given, Pdl pdl, int batch, std::vector<CpuBuffer> buffers) {
    std::vector<std::string> faults;
    std::vector<CpuStores> in_flight;
    for (std::size_t part = 0; part < parts_.size(); ++part) {
      const Pdl own = part == 0 ? pdl : how_.arch.has_pdl() ? pdl_behind_precompute(plan_, given, pdl) : Pdl::off;
      run(part, batch, to_device(given, own), buffers, faults, &in_flight);
      for (CpuBuffer& buffer : buffers)
        if (buffer.name == "scratch") buffer.initialised = true;
    }
    return faults;
  }

  template <class Args>
  void run(std::size_t part, int batch, const Args& args, const std::vector<CpuBuffer>& buffers,
           std::vector<std::string>& faults, std::vector<CpuStores>* in_flight = nullptr) {
    CpuLaunch launch = cpu_launch(launch_shape(parts_[part], batch), args, buffers);
    launch.entry = entries_[part].name;
    if (in_flight != nullptr) {
      launch.in_flight = *in_flight;
      launch.record_stores = true;
    }
    launch.schedule = how_.schedules[launched_];
    launch.races = how_.races;
    launch.bounds = how_.bounds;
    launch.timeout_s = how_.debug ? kForever_s : how_.timeout_s;
    CpuReport report = program_.run(launch);
    if (in_flight != nullptr) in_flight->push_back(std::move(report.stores));
    for (const CpuFinding& finding : report.findings)
      faults.push_back(fmt::format("{} schedule: {}", name(launch.schedule), finding.text()));
    if (report.not_shown > 0) faults.push_back(fmt::format("and {} more", report.not_shown));
  }

  const CpuProgram& program_;
  std::vector<Entry> entries_;
  const Description& description_;
  Plan plan_;
  std::vector<PlanPart> parts_;
  const CpuVerify& how_;
  std::size_t launched_ = 0;
  std::vector<std::unique_ptr<std::vector<std::byte>>> memory_;
  std::vector<CpuBuffer> buffers_;
};

}  // namespace

CpuBuffer cpu_buffer(const KernelCase::Block& block, std::vector<std::byte>& memory) {
  const std::size_t canary = block.tensor_offset;
  return {.name = block.name,
          .data = memory.data() + canary,
          .bytes = memory.size() - 2 * canary,
          .writable = block.may_change,
          .initialised = !block.output,
          .before_wait = !block.produced};
}

std::vector<Verdict> verify_on_cpu(const Description& description, const std::vector<Plan>& plans,
                                   const VerifyOptions& options) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) fail(ErrorKind::missing, "{}", missing);
  const CpuVerify& how = options.cpu;
  if (how.schedules.empty()) fail(ErrorKind::invalid, "verify: no schedule; name one of forward, reverse, random");
  if (!(how.timeout_s > 0) || how.timeout_s > kForever_s)
    fail(ErrorKind::invalid, "verify: a time-out of {} s; wants more than 0, at most {:.0f}", how.timeout_s,
         kForever_s);
  for (const Plan& plan : plans) check_plan(plan, description, how.arch);

  // Three groups, no power of two, or a few channels stand for all, but for a source that is not ours.
  const Description few = options.source.empty() ? few_groups(description, 3) : description;
  const KernelCases cases = standard_cases(few, kMultiprocessors, options.seed);

  std::vector<Verdict> verdicts(plans.size());
  const auto verify_one = [&](std::size_t i) {
    Verdict& v = verdicts[i];
    v.plan = plans[i];
    try {
      Source source = emit(description, plans[i], how.arch);
      CpuCompileOptions compile;
      compile.checks = how.races || how.bounds;
      compile.debug = how.debug;
      compile.debug_folder = how.debug_folder;
      if (!options.source.empty()) {
        source.text = options.source;
        source.digest = digest16(without_banner(source.text));
        compile.file = options.source_name;
      }
      const CpuProgram program = CpuProgram::compile(source, compile);
      CpuTarget target(program, source, few, plans[i], how);
      judge_runs(run_cases(target, cases, v), v);
    } catch (const Error& e) {
      v.outcome = e.kind() == ErrorKind::invalid ? Outcome::not_compiled : Outcome::launch_failed;
      v.failures.emplace_back(e.what());
    }
  };

  // Workers take plan after plan; this thread waits and tells how far they are.
  std::mutex mutex;
  std::condition_variable changed;
  std::size_t next = 0, done = 0;
  std::exception_ptr broken;
  const auto work = [&] {
    std::unique_lock lock(mutex);
    while (next < plans.size() && broken == nullptr) {
      const std::size_t i = next++;
      lock.unlock();
      std::exception_ptr failure;
      try {
        verify_one(i);
      } catch (...) {
        failure = std::current_exception();
      }
      lock.lock();
      if (failure != nullptr && broken == nullptr) broken = failure;
      ++done;
      changed.notify_all();
    }
  };
  const std::size_t cores = how.debug ? 1 : std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::jthread> workers;
  for (std::size_t i = 0; i < std::min(cores, plans.size()); ++i) workers.emplace_back(work);
  const auto start = std::chrono::steady_clock::now();
  std::unique_lock lock(mutex);
  for (std::size_t seen = 0; seen < plans.size() && broken == nullptr;) {
    changed.wait(lock, [&] { return done > seen || broken != nullptr; });
    seen = done;
    if (!options.progress) continue;
    const double t = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const auto so_far = static_cast<std::int64_t>(seen), total = static_cast<std::int64_t>(plans.size());
    options.progress(
        {"verify on the CPU", so_far, total, t, t / static_cast<double>(so_far) * static_cast<double>(total - so_far)});
  }
  lock.unlock();
  workers.clear();
  if (broken != nullptr) std::rethrow_exception(broken);
  return verdicts;
}

}  // namespace ssmjit
