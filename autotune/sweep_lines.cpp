#include "autotune/sweep_lines.h"

#include <algorithm>
#include <ctime>

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <ssmjit/cubin.h>
#include <ssmjit/source.h>

#include "codegen/fail.h"

namespace ssmjit {

namespace {

// How steps are timed, as journals name it.
std::string timing_policy(const TuneOptions& options) {
  const std::string common = "graph of layers, states past 4 x L2, ";
  if (options.rounds > 0)
    return common +
           fmt::format("median of {} replays in interleaved visits of {}, each behind an untimed one; none dropped",
                       (options.rounds + kReplays - 1) / kReplays * kReplays, kReplays);
  return common +
         "median of 15 to 30 replays in interleaved visits of 3, each behind an untimed one; slower than the best by "
         "15% after 2 replays, or with 95% confidence after 9 or more: dropped";
}

// The key but for the kernel.
std::string cell_of(const Measurement& line) {
  Measurement m;
  m.batch = line.batch;
  m.nheads = line.nheads;
  m.phase = line.phase;
  m.steps_per_flush = line.steps_per_flush;
  m.pdl = line.pdl;
  m.device = line.device;
  m.driver = line.driver;
  m.policy = line.policy;
  return line.kernel_digest + m.key();
}

}  // namespace

std::vector<Phase> phases_of(const Description& description, const TuneOptions& options) {
  if (description.ring_window() == 0) return {Phase::no_flush};
  if (options.phases.empty() || options.phases.size() > 2 ||
      (options.phases.size() == 2 && options.phases[0] == options.phases[1]))
    fail(ErrorKind::invalid, "phases: got {} of them; wants no_flush, flush or both", options.phases.size());
  return options.phases;
}

double steps_between_flushes(const Description& description, const TuneOptions& options) {
  if (description.ring_window() == 0 || phases_of(description, options).size() != 2) return 0;
  return steps_per_flush(
      description.ring_window(), description.token_count,
      options.accepted.chance.empty() ? Acceptance::usual(description.token_count) : options.accepted);
}

SweepLines::SweepLines(const Description& description, const TuneOptions& options, const DeviceFacts& gpu) {
  description.validate();
  const Arch arch = gpu.arch();
  plans_ = options.plans.empty() ? plan_space(description, arch) : options.plans;
  for (const Plan& plan : plans_) {
    check_plan(plan, description, arch);
    digests_.push_back(emit(description, plan, arch).digest);
    if (plan.form == PlanForm::fused) (plan.early_state ? has_early_ : has_other_) = true;
  }
  blank_.op = description.op();
  blank_.ring_layer = blank_.op == Op::layer && description.ring_window() != 0;
  blank_.kernel_digest = description.kernel_digest();
  blank_.cost_digest = description.cost_digest();
  blank_.kernel = description.summary();
  blank_.nheads = static_cast<int>(work_items(description, 1));
  blank_.device = gpu.key;
  blank_.device_name = gpu.name;
  blank_.driver = gpu.driver;
  blank_.nvrtc = nvrtc_version();
  blank_.policy = timing_policy(options);
  if (description.op() == Op::norm || description.op() == Op::conv1d)
    blank_.policy += "; where they are a thousand small layers, the L2 is displaced before each replay";
  if (description.ring_window() == 0) return;
  const std::vector<Phase> phases = phases_of(description, options);
  blank_.policy +=
      fmt::format("; the L2 is displaced before each replay; {} rows in use without flush, {} with",
                  timed_ring_count(description, Phase::no_flush), timed_ring_count(description, Phase::flush));
  blank_.phase = phases.size() == 2 ? "weighted" : name(phases.front());
  blank_.steps_per_flush = steps_between_flushes(description, options);
}

bool SweepLines::suits(std::size_t plan, PdlMode mode) const {
  const bool chain = mode == PdlMode::chain;
  if (plans_[plan].form != PlanForm::fused) return true;  // its own fields are not those of its first launch
  return plans_[plan].early_state == chain || !(chain ? has_early_ : has_other_);
}

Measurement SweepLines::line(std::size_t plan) const {
  Measurement m = blank_;
  m.plan = plans_[plan];
  m.source_digest = digests_[plan];
  m.measured = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
  return m;
}

Measurement SweepLines::verified(std::size_t plan) const {
  Measurement m = line(plan);
  m.phase = "verify";
  m.steps_per_flush = 0;
  return m;
}

Measurement SweepLines::timed(std::size_t plan, int batch, PdlMode mode) const {
  Measurement m = line(plan);
  m.batch = batch;
  m.pdl = mode;
  return m;
}

KnownLines::KnownLines(const std::vector<Measurement>& journal) {
  for (const Measurement& line : journal) add(line);
}

void KnownLines::add(const Measurement& line) {
  if (line.outcome == Outcome::memory_failed) return;  // there may be room now
  (line.phase == "verify" && line.outcome == Outcome::ok ? right_ : keys_).insert(line.key());
  if (unsound(line.outcome)) never_.insert(line.candidate());
  if (line.outcome == Outcome::dropped) dropped_.insert(line.key());
  if (line.phase != "verify" && line.outcome == Outcome::ok && !line.tie) won_[cell_of(line)].insert(line.candidate());
  if (line.phase != "verify" && (line.outcome == Outcome::ok || unsound(line.outcome)))
    ahead_[cell_of(line)].insert(line.candidate());
}

bool KnownLines::has(const Measurement& timed) const {
  const std::string key = timed.key();
  if (!keys_.contains(key)) return false;
  if (!dropped_.contains(key)) return true;
  const auto ahead = ahead_.find(cell_of(timed));
  return ahead == ahead_.end() || std::any_of(ahead->second.begin(), ahead->second.end(),
                                              [&](const std::string& kernel) { return !never_.contains(kernel); });
}

bool KnownLines::has_winner(const Measurement& timed) const {
  const auto won = won_.find(cell_of(timed));
  return won != won_.end() && std::any_of(won->second.begin(), won->second.end(),
                                          [&](const std::string& kernel) { return !never_.contains(kernel); });
}

bool KnownLines::had_winner(const Measurement& timed) const { return won_.contains(cell_of(timed)); }

}  // namespace ssmjit
