// A layer's launch as those of its parts.
#pragma once

#include <optional>

#include <ssmjit/kernel.h>

namespace ssmjit {

// The arguments of the parts that the layer has, with the Pdl that each is launched with.
struct ChainArgs {
  std::optional<Conv1dArgs> conv1d;
  std::optional<UpdateArgs> update;
  std::optional<RingArgs> ring;
  std::optional<NormArgs> norm;
};
// Of arguments that were found right.
ChainArgs chain_args(const Description& description, PlanForm form, const LayerArgs& args);

}  // namespace ssmjit
