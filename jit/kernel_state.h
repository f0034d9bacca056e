// What a loaded kernel holds, for the launches of each op.
#pragma once

#include <cstdint>
#include <utility>

#include <cuda.h>

#include <ssmjit/kernel.h>

#include "jit/driver.h"
#include "jit/launch_checks.h"

namespace ssmjit {

struct Kernel::State {
  State(const Description& d, const Plan& p, Cubin c) : description(d), plan(p), cubin(std::move(c)), wants(d) {}
  ~State();
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
  const Driver* driver = nullptr;
  CUcontext context = nullptr;
  CUmodule module = nullptr;
  CUfunction function = nullptr;
};

}  // namespace ssmjit
