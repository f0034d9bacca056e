// verify() without a GPU: kernels on the CPU executor.
#pragma once

#include <cstddef>
#include <vector>

#include <ssmjit/tune.h>

#include "autotune/update_case.h"
#include "jit/cpu/executor.h"
#include "jit/kernel_args.h"

namespace ssmjit {

// A block of a case as the executor is told of it: what lies between the canaries of `memory`. The output must not be
// read before it is written, and what the launch in front may still be writing not before the wait for it.
CpuBuffer cpu_buffer(const UpdateCase::Block& block, std::vector<std::byte>& memory);
// A launch of an update kernel over such buffers; `args` must outlive it.
CpuLaunch cpu_launch(const LaunchShape& shape, const device_args::UpdateArgs& args, std::vector<CpuBuffer> buffers);

// As verify(), plans spread over the cores. Fails: ErrorKind::missing where the build has no executor.
std::vector<Verdict> verify_on_cpu(const Description& description, const std::vector<Plan>& plans,
                                   const VerifyOptions& options);

}  // namespace ssmjit
