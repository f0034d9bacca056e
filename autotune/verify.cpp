#include "autotune/verify.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <future>
#include <random>
#include <thread>
#include <utility>
#include <variant>

#include <fmt/format.h>

#include <ssmjit/source.h>

#include "autotune/compile_pool.h"
#include "autotune/cpu_verify.h"
#include "codegen/fail.h"
#include "jit/gpu.h"

namespace ssmjit {
namespace {

// Device memory that may be gone after a candidate has run: more than the driver keeps of what was released.
constexpr std::int64_t kMayBeGone = std::int64_t{8} << 20;

// The GPU of the current context.
class GpuTarget : public Target {
 public:
  void use(const Kernel* kernel) { kernel_ = kernel; }
  std::byte* allocate(const KernelCase::Block& block) override {
    buffers_.emplace_back(block.before.size());
    buffers_.back().upload(block.before.data(), block.before.size());
    return buffers_.back().data();
  }
  void write(std::byte* address, const std::vector<std::byte>& contents) override {
    of(address).upload(contents.data(), contents.size());
  }
  void read(const std::byte* address, std::vector<std::byte>& contents) override {
    contents.resize(of(address).size());
    of(address).download(contents.data(), contents.size());
  }
  void release_all() override { buffers_.clear(); }
  int launches() const override { return 5; }
  std::vector<std::string> launch(const KernelCase&, const CaseArgs& args) override {
    std::visit(
        [&](auto launched) {
          launched.pdl = kernel_->plan().early_state ? Pdl::early_state : Pdl::off;
          kernel_->launch(launched, stream_.handle());
        },
        args);
    stream_.synchronize();
    return {};
  }

 private:
  const DeviceBuffer& of(const std::byte* address) const {
    for (const DeviceBuffer& b : buffers_)
      if (b.data() == address) return b;
    fail(ErrorKind::internal, "verify: an address that was not allocated");
  }
  const Kernel* kernel_ = nullptr;
  const Stream& stream_ = measuring_stream();
  std::vector<DeviceBuffer> buffers_;
};

}  // namespace

std::vector<CaseRun> run_cases(Target& target, const KernelCases& cases, Verdict& verdict) {
  std::vector<CaseRun> runs;
  try {
    for (const auto& test : cases) {
      const KernelCase& c = *test;
      target.release_all();
      std::vector<std::byte*> base;
      for (const KernelCase::Block& block : c.blocks()) base.push_back(target.allocate(block));
      const CaseArgs args = c.launch_args(base);
      CaseRun run{&c, std::vector<std::vector<std::byte>>(base.size())};
      std::vector<std::byte> again;
      for (int launch = 0; launch < target.launches() && verdict.outcome == Outcome::ok; ++launch) {
        if (launch > 0)
          for (std::size_t i = 0; i < base.size(); ++i)
            if (c.blocks()[i].may_change) target.write(base[i], c.blocks()[i].before);
        for (const std::string& fault : target.launch(c, args)) {
          verdict.outcome = Outcome::faulty;
          verdict.failures.push_back(fmt::format("{}: {}", c.layout().name(), fault));
        }
        for (std::size_t i = 0; i < base.size(); ++i) {
          if (launch == 0) {
            target.read(base[i], run.after[i]);
          } else if (c.blocks()[i].may_change) {
            target.read(base[i], again);
            if (again == run.after[i] || verdict.outcome == Outcome::faulty) continue;
            verdict.outcome = Outcome::nondeterministic;
            verdict.failures.push_back(fmt::format("{}: {}: launch {} gave other bits than the first",
                                                   c.layout().name(), c.blocks()[i].name, launch + 1));
          }
        }
      }
      runs.push_back(std::move(run));
      if (verdict.outcome != Outcome::ok) break;
    }
  } catch (const Error& e) {
    verdict.outcome = Outcome::launch_failed;
    verdict.failures.emplace_back(e.what());
  }
  target.release_all();
  return runs;
}

void judge_runs(const std::vector<CaseRun>& runs, Verdict& verdict) {
  for (const CaseRun& run : runs) {
    const CaseResult result = run.test->check(run.after);
    verdict.y_error = std::max(verdict.y_error, result.y.frobenius);
    verdict.state_error = std::max(verdict.state_error, result.state.frobenius);
    verdict.worst_ulp = std::max({verdict.worst_ulp, result.y.worst_ulp, result.state.worst_ulp});
    if (!result.failures.empty() && verdict.outcome == Outcome::ok) verdict.outcome = Outcome::wrong;
    verdict.failures.insert(verdict.failures.end(), result.failures.begin(), result.failures.end());
  }
}

std::vector<Verdict> verify(const Description& description, const std::vector<Plan>& plans,
                            const VerifyOptions& options) {
  description.validate();
  if (options.on == VerifyOn::cpu) return verify_on_cpu(description, plans, options);
  nvrtc_version();  // one sentence where there is none, not one a plan
  const auto turn = measuring_turn();
  use_device(options.device);
  const DeviceFacts gpu = device(options.device);
  const KernelCases cases = standard_cases(description, gpu.sms, options.seed);

  std::vector<Verdict> verdicts(plans.size());
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  GpuTarget target;
  CompilePool pool(description, plans, gpu.arch(), options.compile, options.source);
  // The GPU runs one candidate while the cores judge those before it; what waits to be judged is held in memory.
  std::deque<std::pair<std::size_t, std::future<void>>> judging;
  const std::size_t waiting_at_most = std::max(1u, std::thread::hardware_concurrency());
  const auto step = [&](const char* stage, std::size_t i) {
    if (options.on_step) options.on_step(stage, i);
  };
  const auto settled = [&](std::size_t i) {
    if (options.on_verdict) options.on_verdict(i, verdicts[i]);
  };
  const auto judge_first = [&] {
    const std::size_t i = judging.front().first;
    judging.front().second.get();
    judging.pop_front();
    settled(i);
  };
  for (std::size_t i = 0; i < plans.size(); ++i) {
    Verdict& v = verdicts[i];
    v.plan = plans[i];
    step("compile", i);
    const CompilePool::Result& compiled = pool.get(i);
    if (!compiled.error.empty()) {
      v.outcome = Outcome::not_compiled;
      v.failures.push_back(compiled.error);
    } else {
      v.registers = compiled.cubin.registers;
      v.spill_bytes = compiled.cubin.spill_bytes;
      std::vector<CaseRun> runs;
      try {
        step("verify", i);
        const auto run = [&](Verdict& verdict) {
          const Kernel kernel = Kernel::load(description, plans[i], compiled.source, compiled.cubin);
          target.use(&kernel);
          return run_cases(target, cases, verdict);
        };
        std::int64_t free = free_device_bytes();
        runs = run(v);
        // What a first run takes for the context is taken once; what a second takes is lost.
        if (v.outcome == Outcome::ok && free - free_device_bytes() > kMayBeGone) {
          free = free_device_bytes();
          Verdict again;
          run(again);
          const std::int64_t gone = free - free_device_bytes();
          if (gone > kMayBeGone) {
            v.outcome = Outcome::leaked;
            v.failures.push_back(fmt::format("{} bytes of device memory are gone after it ran, twice in a row", gone));
          }
        }
      } catch (const Error& e) {
        v.outcome = Outcome::launch_failed;
        v.failures.emplace_back(e.what());
      }
      step("verified", i);
      if (!runs.empty() && v.outcome != Outcome::launch_failed) {
        if (judging.size() >= waiting_at_most) judge_first();
        judging.emplace_back(i, std::async(std::launch::async, [runs = std::move(runs), &v] { judge_runs(runs, v); }));
      }
    }
    if (v.outcome == Outcome::not_compiled || v.outcome == Outcome::launch_failed) settled(i);
    if (options.progress) {
      const double t = elapsed();
      const auto done = static_cast<std::int64_t>(i + 1), total = static_cast<std::int64_t>(plans.size());
      options.progress({"verify", done, total, t, t / static_cast<double>(done) * static_cast<double>(total - done)});
    }
  }
  while (!judging.empty()) judge_first();
  return verdicts;
}

std::vector<Plan> sample_plans(const std::vector<Plan>& all, std::size_t count, std::uint64_t seed) {
  if (count == 0 || count >= all.size()) return all;
  std::vector<Plan> chosen;
  std::mt19937_64 random(seed);
  std::sample(all.begin(), all.end(), std::back_inserter(chosen), count, random);
  return chosen;
}

}  // namespace ssmjit
