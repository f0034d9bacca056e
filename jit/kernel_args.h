// The arguments of a launch as the kernels read them.
#pragma once

#include <type_traits>

#include <ssmjit/kernel.h>
#include <ssmjit/ring.h>
#include <ssmjit/slots.h>

#include "codegen/rounded.h"
#include "codegen/update_form.h"

namespace ssmjit {

namespace device_args {
#include "templates/conv1d_args.cuh"
#include "templates/layer_args.cuh"
#include "templates/layer_tokens_args.cuh"
#include "templates/norm_args.cuh"
#include "templates/prepare_A_args.cuh"
#include "templates/ring_args.cuh"
#include "templates/ring_layer_args.cuh"
#include "templates/ring_slots_args.cuh"
#include "templates/slot_copies_args.cuh"
#include "templates/update_args.cuh"
#include "templates/update_rounded_args.cuh"
#include "templates/update_tokens_args.cuh"
}  // namespace device_args

// How the kernels number the modes (templates/launch.cuh).
enum : int { kDevicePdlOff = 0, kDevicePdlWaitFirst = 1, kDevicePdlEarlyState = 2 };
constexpr int device_pdl(Pdl pdl) {
  return pdl == Pdl::off ? kDevicePdlOff : pdl == Pdl::wait_first ? kDevicePdlWaitFirst : kDevicePdlEarlyState;
}

// Of arguments that were found right (Kernel::problems); of a layer, one of one token in place. `pdl`: what the launch
// has, which may be less than args.pdl.
device_args::UpdateArgs to_device(const UpdateArgs& args, Pdl pdl);
// Of an update whose state is more than rounded to nearest (codegen/rounded.h).
device_args::UpdateRoundedArgs rounded_to_device(const UpdateArgs& args, Pdl pdl);
device_args::RingArgs to_device(const RingArgs& args, Pdl pdl);
device_args::RingArgs to_device(const ReplayArgs& args, Pdl pdl);  // as templates/replay.cuh reads them
// How the second of a replay's two launches depends on the first; `pdl`: of the first on what is in front of it.
Pdl pdl_behind_precompute(const Plan& plan, const ReplayArgs& args, Pdl pdl);
device_args::Conv1dArgs to_device(const Conv1dArgs& args, Pdl pdl);
device_args::LayerArgs to_device(const LayerArgs& args, Pdl pdl);
device_args::NormArgs to_device(const Description& description, const NormArgs& args, Pdl pdl);
// Of an update of several tokens (has_token_kernel()).
device_args::UpdateTokensArgs tokens_to_device(const Description& description, const UpdateArgs& args, Pdl pdl);
device_args::RingLayerArgs ring_to_device(const LayerArgs& args, Pdl pdl);
// Of a layer of several tokens in place (is_layer_of_tokens()).
device_args::LayerTokensArgs layer_tokens_to_device(const LayerArgs& args, Pdl pdl);
// Likewise of any op's but a layer's, which has three structs.
template <class Args>
requires(!std::is_same_v<Args, LayerArgs>) auto to_device(const Description&, const Args& args, Pdl pdl) {
  return to_device(args, pdl);
}
// Calls `use` with what any kernel reads, of a layer with a ring or not, of several tokens or one.
template <class Args, class Use>
void with_device_args(const Description& description, const Args& args, Pdl pdl, const Use& use) {
  if constexpr (std::is_same_v<Args, UpdateArgs>) {
    if (has_token_kernel(description)) return use(tokens_to_device(description, args, pdl));
    if (is_update_rounded(description)) return use(rounded_to_device(args, pdl));
  }
  if constexpr (!std::is_same_v<Args, LayerArgs>)
    use(to_device(description, args, pdl));
  else if (description.ring_window() != 0)
    use(ring_to_device(args, pdl));
  else if (is_layer_of_tokens(description))
    use(layer_tokens_to_device(args, pdl));
  else
    use(to_device(args, pdl));
}
// Likewise of arguments that RingSlots::problems finds right.
device_args::MaterialiseArgs to_device(const Description& description, const MaterialiseArgs& args);
device_args::ResetSlotsArgs to_device(const Description& description, const ResetSlotsArgs& args);
device_args::CopySlotsArgs to_device(const Description& description, const CopySlotsArgs& args);
// Likewise of what SlotCopies::problems finds right.
device_args::SlotCopiesArgs to_device(const SlotCopiesArgs& args);
// Likewise of what PrepareA::problems finds right.
device_args::PrepareAArgs prepare_to_device(const Tensor& A_log, const Tensor& A);

}  // namespace ssmjit
