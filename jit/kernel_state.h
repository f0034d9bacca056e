// What a loaded kernel holds, for the launches of each op.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <cuda.h>

#include <ssmjit/kernel.h>

#include "jit/launch_checks.h"
#include "jit/module.h"

namespace ssmjit {

struct Kernel::State {
  State(const Description& d, const Plan& p, const Source& source, const Cubin& c)
      : description(d), plan(p), cubin(c), wants(d), has_pdl(c.arch.has_pdl()), module(source, c) {
    for (const PlanPart& part : plan_parts(p, d))
      parts.push_back({part.description, Wants(part.description), launch_shape(part, 1)});
    if (d.op() == Op::layer && d.conv &&
        (d.conv->has_accepted || d.conv->store != ConvStore::shift || d.conv->keep != ConvKeep::last))
      conv_extras.emplace(layer_parts(d).front());
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  [[noreturn]] static void refuse_empty();
  // Of arguments that were found right. `part`: of a chain. Fails: ErrorKind::machine when the driver refuses.
  void launch(void* device_args, std::int64_t batch, Pdl pdl, CUstream stream, std::size_t part = 0) const {
    const LaunchShape& row = parts[part].row;
    module.launch(part, row.grid_x, row.grid_y * batch, device_args, pdl != Pdl::off, stream);
  }

  // The same of a layer's chain. Fails: ErrorKind::invalid for what a chain wants beyond what was looked at.
  void launch_chain(const LayerArgs& args, std::int64_t batch, CUstream stream) const;

  Description description;
  Plan plan;
  Cubin cubin;
  Wants wants;
  struct Part {
    Description description;
    Wants wants;
    LaunchShape row;  // of a batch of one; a batch of n has n times its grid_y
  };
  std::vector<Part> parts;           // in launch order: one, but of a chain, and of a replay of two launches
  std::optional<Wants> conv_extras;  // of a layer's convolution with counts, circular windows, snapshots or slots
  bool has_pdl = false;
  Module module;
};

}  // namespace ssmjit
