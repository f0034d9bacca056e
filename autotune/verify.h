// The verifier behind verify(): a kernel on any target against cases.
#pragma once

#include <vector>

#include <ssmjit/tune.h>

#include "autotune/target.h"
#include "autotune/update_case.h"

namespace ssmjit {

// Runs what `target` launches on every case and fills the verdict's outcome, failures and errors. An Error from the
// target becomes the outcome launch_failed. Launches that give different bits are nondeterministic.
void verify_on(Target& target, const std::vector<UpdateCase>& cases, Verdict& verdict);

}  // namespace ssmjit
