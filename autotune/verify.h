// The verifier behind verify(): a kernel on any target against cases.
#pragma once

#include <vector>

#include <ssmjit/tune.h>

#include "autotune/kernel_case.h"
#include "autotune/target.h"

namespace ssmjit {

// What a kernel left of a case's blocks after the first of its launches.
struct CaseRun {
  const KernelCase* test = nullptr;
  std::vector<std::vector<std::byte>> after;
};

// Runs what `target` launches on every case, as often as the target asks for. Launches that give different bits are
// nondeterministic, what a run shows to be wrong is faulty, an Error from the target is launch_failed: each ends the
// runs and stands in the verdict.
std::vector<CaseRun> run_cases(Target& target, const KernelCases& cases, Verdict& verdict);
// Judges the runs and fills the verdict's errors, and its outcome and failures where they are wrong.
void judge_runs(const std::vector<CaseRun>& runs, Verdict& verdict);

}  // namespace ssmjit
