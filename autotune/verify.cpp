#include "autotune/verify.h"

#include <algorithm>
#include <cstring>
#include <random>

#include <fmt/format.h>

#include <ssmjit/error.h>

#include "autotune/cpu_verify.h"
#include "autotune/gpu_verify.h"

namespace ssmjit {
namespace {

constexpr std::uint64_t kPrime = 0x9e3779b97f4a7c15ull;

std::uint64_t mixed(std::uint64_t sum, std::uint64_t with) {
  sum = (sum ^ with) * kPrime;
  return sum ^ (sum >> 32);
}

}  // namespace

std::vector<std::uint64_t> Target::hash(const std::vector<std::byte*>& addresses) {
  std::vector<std::uint64_t> hashes;
  std::vector<std::byte> contents;
  for (const std::byte* address : addresses) {
    read(address, contents);
    contents.resize((contents.size() + 7) / 8 * 8);
    std::uint64_t hash = contents.size();
    for (std::size_t at = 0; at < contents.size(); at += 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, contents.data() + at, 8);
      hash = mixed(hash, word);
    }
    hashes.push_back(hash);
  }
  return hashes;
}

std::optional<CaseResult> RightRuns::find(const KernelCase& test, std::uint64_t hash) const {
  const std::lock_guard lock(mutex_);
  const auto found = results_.find({&test, hash});
  return found == results_.end() ? std::nullopt : std::optional(found->second);
}

void RightRuns::keep(const KernelCase& test, std::uint64_t hash, const CaseResult& result) {
  const std::lock_guard lock(mutex_);
  results_.insert_or_assign({&test, hash}, result);
}

std::vector<CaseRun> run_cases(Target& target, const KernelCases& cases, Verdict& verdict, const RightRuns* known) {
  std::vector<CaseRun> runs;
  try {
    for (const auto& test : cases) {
      const KernelCase& c = *test;
      target.release_all();
      std::vector<std::byte*> base;
      for (const KernelCase::Block& block : c.blocks()) base.push_back(target.allocate(block));
      const CaseArgs args = c.launch_args(base);
      CaseRun run{.test = &c, .after = {}, .right = {}};
      std::vector<std::uint64_t> first;
      for (int launch = 0; launch < target.launches() && verdict.outcome == Outcome::ok; ++launch) {
        if (launch > 0)
          for (std::size_t i = 0; i < base.size(); ++i)
            if (c.blocks()[i].may_change) target.restore(base[i], c.blocks()[i]);
        for (const std::string& fault : target.launch(c, args)) {
          verdict.outcome = Outcome::faulty;
          verdict.failures.push_back(fmt::format("{}: {}", c.layout().name(), fault));
        }
        const std::vector<std::uint64_t> hashes = target.hash(base);
        if (launch == 0) {
          first = hashes;
          for (const std::uint64_t hash : hashes) run.hash = mixed(run.hash, hash);
          if (known != nullptr) run.right = known->find(c, run.hash);
          if (run.right) continue;
          run.after.resize(base.size());
          for (std::size_t i = 0; i < base.size(); ++i) target.read(base[i], run.after[i]);
          continue;
        }
        for (std::size_t i = 0; i < base.size(); ++i) {
          if (hashes[i] == first[i] || verdict.outcome == Outcome::faulty) continue;
          verdict.outcome = Outcome::nondeterministic;
          verdict.failures.push_back(fmt::format("{}: {}: launch {} gave other bits than the first", c.layout().name(),
                                                 c.blocks()[i].name, launch + 1));
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

void judge_runs(const std::vector<CaseRun>& runs, Verdict& verdict, RightRuns* known) {
  for (const CaseRun& run : runs) {
    const CaseResult result = run.right ? *run.right : run.test->check(run.after);
    verdict.y_error = std::max(verdict.y_error, result.y.frobenius);
    verdict.state_error = std::max(verdict.state_error, result.state.frobenius);
    verdict.worst_ulp = std::max({verdict.worst_ulp, result.y.worst_ulp, result.state.worst_ulp});
    if (!result.failures.empty() && verdict.outcome == Outcome::ok) verdict.outcome = Outcome::wrong;
    verdict.failures.insert(verdict.failures.end(), result.failures.begin(), result.failures.end());
    if (known != nullptr && !run.right && result.failures.empty()) known->keep(*run.test, run.hash, result);
  }
}

std::vector<Verdict> verify(const Description& description, const std::vector<Plan>& plans,
                            const VerifyOptions& options) {
  description.validate();
  if (options.on == VerifyOn::cpu) return verify_on_cpu(description, plans, options);
  return GpuVerifier(description, options).run(plans);
}

std::vector<Plan> sample_plans(const std::vector<Plan>& all, std::size_t count, std::uint64_t seed) {
  if (count == 0 || count >= all.size()) return all;
  std::vector<Plan> chosen;
  std::mt19937_64 random(seed);
  std::sample(all.begin(), all.end(), std::back_inserter(chosen), count, random);
  return chosen;
}

}  // namespace ssmjit
