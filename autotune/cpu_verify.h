// verify() without a GPU: kernels on the CPU executor.
#pragma once

#include <vector>

#include <ssmjit/tune.h>

namespace ssmjit {

// As verify(), plans spread over the cores. Fails: ErrorKind::missing where the build has no executor.
std::vector<Verdict> verify_on_cpu(const Description& description, const std::vector<Plan>& plans,
                                   const VerifyOptions& options);

}  // namespace ssmjit
