// verify() without a GPU: kernels on the CPU executor.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include <ssmjit/tune.h>

#include "autotune/kernel_case.h"
#include "jit/cpu/executor.h"
#include "jit/kernel_args.h"

namespace ssmjit {

// A block of a case as the executor is told of it: what lies between the canaries of `memory`. The output must not be
// read before it is written, and what the launch in front may still be writing not before the wait for it.
CpuBuffer cpu_buffer(const KernelCase::Block& block, std::vector<std::byte>& memory);
// A launch of a kernel over such buffers; `args`, a struct of device_args, must outlive it.
template <class Args>
CpuLaunch cpu_launch(const LaunchShape& shape, const Args& args, std::vector<CpuBuffer> buffers) {
  CpuLaunch launch;
  launch.grid_x = shape.grid_x;
  launch.grid_y = shape.grid_y;
  launch.block_threads = shape.block_threads;
  launch.smem_bytes = shape.smem_bytes;
  launch.cluster = shape.cluster;
  launch.args = &args;
  launch.args_bytes = sizeof args;
  launch.buffers = std::move(buffers);
  if constexpr (requires { args.ring; })
    launch.dependent = args.ring.pdl != 0;
  else if constexpr (requires { args.update; })
    launch.dependent = args.update.pdl != 0;
  else
    launch.dependent = args.pdl != 0;
  return launch;
}

// As verify(), plans spread over the cores. Fails: ErrorKind::missing where the build has no executor.
std::vector<Verdict> verify_on_cpu(const Description& description, const std::vector<Plan>& plans,
                                   const VerifyOptions& options);

}  // namespace ssmjit
