#include "autotune/candidates.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "autotune/compile_pool.h"
#include "jit/gpu.h"

namespace ssmjit {

namespace {

// 0: the plan has none.
int clusters_held(const Plan& plan, const CompilePool::Result& compiled) {
  if (plan.form != PlanForm::fused || plan.cluster <= 1) return 0;
  return clusters_at_once(compiled.source, compiled.cubin, plan.cluster);
}

}  // namespace

Candidates::Candidates(const Description& description, const SweepLines& lines, const TuneOptions& options,
                       const DeviceFacts& gpu, KnownLines& known, std::function<void(const Measurement&)> record)
    : description_(description),
      lines_(lines),
      options_(options),
      arch_(gpu.arch()),
      known_(known),
      record_(std::move(record)),
      ready_(lines.plans().size()),
      prepared_(lines.plans().size()) {}

Candidates::~Candidates() = default;

void Candidates::doing(const char* stage, const Measurement* line) const {
  if (options_.on_doing) options_.on_doing({stage, line, verifier_ != nullptr && verifier_->compiling()});
}

void Candidates::settle(std::size_t plan, const Verdict& verdict) {
  Measurement line = lines_.verified(plan);
  line.registers = verdict.registers;
  line.outcome = verdict.outcome;
  if (line.outcome == Outcome::ok && verdict.spill_bytes > 0) {
    line.outcome = Outcome::spills;
    line.reason = fmt::format("{} bytes of registers spill", verdict.spill_bytes);
  } else if (line.outcome != Outcome::ok) {
    line.reason = verdict.failures.empty() ? "" : verdict.failures.front();
  }
  known_.add(line);
  record_(line);
}

void Candidates::verify(const std::vector<std::size_t>& plans) {
  verifying_.clear();
  std::vector<Plan> unverified;
  for (std::size_t plan : plans) {
    const Measurement line = lines_.verified(plan);
    if (known_.is_out(line) || known_.is_right(line)) continue;
    verifying_.push_back(plan);
    unverified.push_back(lines_.plans()[plan]);
  }
  if (unverified.empty()) return;
  if (verifier_ == nullptr) {
    VerifyOptions options;
    options.device = options_.device;
    options.seed = options_.seed;
    options.compile = options_.compile;
    options.compile_threads = options_.compile_threads;
    options.progress = options_.progress;
    options.on_step = [this](const char* stage, std::size_t i) {
      // A pool of several compiles any of the plans then: none is to pay for another's.
      const bool compiling = stage == std::string_view("compile") && options_.compile_threads != 1;
      const Measurement line = lines_.verified(verifying_[i]);
      doing(stage, compiling ? nullptr : &line);
      // After a fault that kills the context every later launch fails: not a word about the plans that come after.
      if (stage == std::string_view("verified")) check_device();
    };
    options.on_verdict = [this](std::size_t i, const Verdict& verdict) { settle(verifying_[i], verdict); };
    // Two groups stand for all, so that a wrong one shows.
    verifier_ = std::make_unique<GpuVerifier>(few_groups(description_, 2), options);
  }
  verifier_->run(unverified);
}

void Candidates::prepare(const std::vector<std::size_t>& plans) {
  std::vector<std::size_t> fresh;
  for (std::size_t plan : plans)
    if (!prepared_[plan]) fresh.push_back(plan);
  verify(fresh);
  std::vector<std::size_t> right;
  std::vector<Plan> right_plans;
  for (std::size_t plan : fresh) {
    prepared_[plan] = true;
    const Measurement line = lines_.verified(plan);
    if (known_.is_out(line) || !known_.is_right(line)) continue;
    right.push_back(plan);
    right_plans.push_back(lines_.plans()[plan]);
  }
  CompilePool pool(description_, right_plans, arch_, options_.compile, {}, options_.compile_threads);
  for (std::size_t i = 0; i < right.size(); ++i) {
    const Measurement line = lines_.verified(right[i]);
    doing("compile", options_.compile_threads == 1 ? &line : nullptr);
    const CompilePool::Result& compiled = pool.get(i);
    if (options_.on_doing) options_.on_doing({"load", &line, pool.busy()});
    ready_[right[i]] = std::make_unique<Ready>(
        Ready{Kernel::load(description_, right_plans[i], compiled.source, compiled.cubin), compiled.cubin.registers,
              launch_shape(right_plans[i], description_, 1).smem_bytes + compiled.cubin.smem_bytes,
              clusters_held(right_plans[i], compiled)});
  }
}

}  // namespace ssmjit
