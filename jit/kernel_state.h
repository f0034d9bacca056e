// What a loaded kernel holds, for the launches of each op.
#pragma once

#include <cstdint>

#include <cuda.h>

#include <ssmjit/kernel.h>

#include "jit/launch_checks.h"
#include "jit/module.h"

namespace ssmjit {

struct Kernel::State {
  State(const Description& d, const Plan& p, const Source& source, const Cubin& c, const LaunchShape& of_one)
      : description(d), plan(p), cubin(c), wants(d), row(of_one), has_pdl(c.arch.has_pdl()), module(source, c) {}
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  [[noreturn]] static void refuse_empty();
  // Of arguments that were found right. Fails: ErrorKind::machine when the driver refuses.
  void launch(void* device_args, std::int64_t batch, Pdl pdl, CUstream stream) const;

  Description description;
  Plan plan;
  Cubin cubin;
  Wants wants;
  LaunchShape row;  // of a batch of one; a batch of n has n times its grid_y
  bool has_pdl = false;
  Module module;
};

}  // namespace ssmjit
