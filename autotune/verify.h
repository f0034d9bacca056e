// The verifier behind verify(): a kernel on any target against cases.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include <ssmjit/tune.h>

#include "autotune/kernel_case.h"
#include "autotune/target.h"

namespace ssmjit {

// Results of cases that were judged and found right, by the hash of all that a launch left: plans that sum in the same
// order leave the same bits, so most are judged by their hash alone. For many threads.
class RightRuns {
 public:
  std::optional<CaseResult> find(const KernelCase& test, std::uint64_t hash) const;
  void keep(const KernelCase& test, std::uint64_t hash, const CaseResult& result);

 private:
  mutable std::mutex mutex_;
  std::map<std::pair<const KernelCase*, std::uint64_t>, CaseResult> results_;
};

// What a kernel left of a case's blocks after the first of its launches.
struct CaseRun {
  const KernelCase* test = nullptr;
  std::vector<std::vector<std::byte>> after;  // empty where `right` says what came of the same bits
  std::uint64_t hash = 0;
  std::optional<CaseResult> right;
};

// Runs what `target` launches on every case, as often as the target asks for. Launches that give different bits are
// nondeterministic, what a run shows to be wrong is faulty, an Error from the target is launch_failed: each ends the
// runs and stands in the verdict. With `known`, bits that were found right before are not read back.
std::vector<CaseRun> run_cases(Target& target, const KernelCases& cases, Verdict& verdict,
                               const RightRuns* known = nullptr);
// Judges the runs and fills the verdict's errors, and its outcome and failures where they are wrong.
void judge_runs(const std::vector<CaseRun>& runs, Verdict& verdict, RightRuns* known = nullptr);

}  // namespace ssmjit
