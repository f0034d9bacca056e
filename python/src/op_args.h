// The tensors of each op's arguments, in the order that Python passes them: that of the struct.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include <ssmjit/kernel.h>
#include <ssmjit/ring.h>
#include <ssmjit/slots.h>

namespace ssmjit::python {

template <class Args>
struct Field {
  std::string_view name;
  Tensor Args::*tensor;
  int inner = -1;  // see SSMJIT_VECTORS; -1: not asked
};

// What of a launch is no tensor, as one number.
enum LaunchFlag : std::int64_t {
  kChecked = 1,
  kDisableStateUpdate = 2,
  kNoInternalPdl = 4,
};

template <class Args>
struct OpArgs;

#define SSMJIT_FIELD(name) \
  { #name, &Self::name }
// One that `aligned_rows` is about: its base, and the strides in front of its `inner` contiguous dimensions.
#define SSMJIT_VECTORS(name, inner) \
  { #name, &Self::name, inner }

template <>
struct OpArgs<UpdateArgs> {
  using Self = UpdateArgs;
  static constexpr Field<Self> fields[] = {
      SSMJIT_FIELD(state),
      SSMJIT_FIELD(state_scale),
      SSMJIT_VECTORS(x, 2),
      SSMJIT_FIELD(dt),
      SSMJIT_FIELD(A),
      SSMJIT_VECTORS(B, 2),
      SSMJIT_VECTORS(C, 2),
      SSMJIT_FIELD(D),
      SSMJIT_FIELD(dt_bias),
      SSMJIT_VECTORS(z, 2),  // of several tokens
      SSMJIT_FIELD(out),
      SSMJIT_FIELD(state_batch_indices),
      SSMJIT_FIELD(dst_state_batch_indices),
      SSMJIT_FIELD(num_accepted_tokens),
      SSMJIT_FIELD(intermediate_states),
      SSMJIT_FIELD(intermediate_state_scales),
      SSMJIT_FIELD(intermediate_state_indices),
      SSMJIT_FIELD(retrieve_parent_token),
      SSMJIT_FIELD(cu_seqlens),
      SSMJIT_FIELD(rand_seed),
  };
  static void set_flags(UpdateArgs& args, std::int64_t flags) {
    args.checked = (flags & kChecked) != 0;
    args.disable_state_update = (flags & kDisableStateUpdate) != 0;
  }
};

template <>
struct OpArgs<RingArgs> {
  using Self = RingArgs;
  static constexpr Field<Self> fields[] = {
      SSMJIT_FIELD(state),
      SSMJIT_FIELD(state_scale),
      SSMJIT_FIELD(x_ring),
      SSMJIT_FIELD(B_ring),
      SSMJIT_FIELD(dt_ring),
      SSMJIT_FIELD(ring_start),
      SSMJIT_FIELD(ring_count),
      SSMJIT_FIELD(x),
      SSMJIT_FIELD(dt),
      SSMJIT_FIELD(A),
      SSMJIT_FIELD(B),
      SSMJIT_FIELD(C),
      SSMJIT_FIELD(D),
      SSMJIT_FIELD(dt_bias),
      SSMJIT_FIELD(z),
      SSMJIT_FIELD(out),
      SSMJIT_FIELD(state_batch_indices),
      SSMJIT_FIELD(cu_seqlens),
      SSMJIT_FIELD(rand_seed),
  };
  static void set_flags(RingArgs& args, std::int64_t flags) { args.checked = (flags & kChecked) != 0; }
};

template <>
struct OpArgs<ReplayArgs> {
  using Self = ReplayArgs;
  static constexpr Field<Self> fields[] = {
      SSMJIT_FIELD(state),
      SSMJIT_FIELD(old_x),
      SSMJIT_FIELD(old_B),
      SSMJIT_FIELD(old_dt),
      SSMJIT_FIELD(old_cumAdt),
      SSMJIT_FIELD(cache_buf_idx),
      SSMJIT_FIELD(prev_num_accepted_tokens),
      SSMJIT_VECTORS(x, 2),
      SSMJIT_FIELD(dt),
      SSMJIT_FIELD(A),
      SSMJIT_VECTORS(B, 2),
      SSMJIT_VECTORS(C, 2),
      SSMJIT_FIELD(D),
      SSMJIT_FIELD(dt_bias),
      SSMJIT_FIELD(z),
      SSMJIT_FIELD(out),
      SSMJIT_FIELD(state_batch_indices),
      SSMJIT_FIELD(rand_seed),
      SSMJIT_FIELD(scratch),
  };
  static void set_flags(ReplayArgs& args, std::int64_t flags) {
    args.checked = (flags & kChecked) != 0;
    args.internal_pdl = (flags & kNoInternalPdl) == 0;
  }
};

template <>
struct OpArgs<Conv1dArgs> {
  using Self = Conv1dArgs;
  static constexpr Field<Self> fields[] = {
      SSMJIT_VECTORS(conv_state, 2),
      SSMJIT_VECTORS(x, 1),
      SSMJIT_VECTORS(w, 2),
      SSMJIT_VECTORS(bias, 1),
      SSMJIT_VECTORS(out, 1),
      SSMJIT_FIELD(state_batch_indices),
      SSMJIT_FIELD(output_state_indices),
      SSMJIT_VECTORS(intermediate_states, 2),
      SSMJIT_FIELD(intermediate_state_indices),
      SSMJIT_FIELD(cache_seqlens),
      SSMJIT_FIELD(num_accepted_tokens),
  };
  static void set_flags(Conv1dArgs& args, std::int64_t flags) { args.checked = (flags & kChecked) != 0; }
};

template <>
struct OpArgs<NormArgs> {
  using Self = NormArgs;
  static constexpr Field<Self> fields[] = {
      SSMJIT_VECTORS(x, 1),    SSMJIT_VECTORS(z, 1),   SSMJIT_VECTORS(weight, 1),
      SSMJIT_VECTORS(bias, 1), SSMJIT_VECTORS(out, 1),
  };
  static void set_flags(NormArgs&, std::int64_t) {}
};

template <>
struct OpArgs<LayerArgs> {
  using Self = LayerArgs;
  static constexpr Field<Self> fields[] = {
      SSMJIT_FIELD(state),
      SSMJIT_FIELD(conv_state),
      SSMJIT_FIELD(x),
      SSMJIT_FIELD(B),
      SSMJIT_FIELD(C),
      SSMJIT_FIELD(dt),
      SSMJIT_FIELD(z),
      SSMJIT_FIELD(conv_weight),
      SSMJIT_FIELD(conv_bias),
      SSMJIT_FIELD(A),
      SSMJIT_FIELD(D),
      SSMJIT_FIELD(dt_bias),
      SSMJIT_FIELD(norm_weight),
      SSMJIT_FIELD(norm_bias),
      SSMJIT_FIELD(out),
      SSMJIT_FIELD(state_batch_indices),
      SSMJIT_FIELD(scratch),
      SSMJIT_FIELD(state_scale),
      SSMJIT_FIELD(x_ring),
      SSMJIT_FIELD(B_ring),
      SSMJIT_FIELD(dt_ring),
      SSMJIT_FIELD(ring_start),
      SSMJIT_FIELD(ring_count),
      SSMJIT_FIELD(rand_seed),
      SSMJIT_FIELD(output_state_indices),
      SSMJIT_FIELD(intermediate_states),
      SSMJIT_FIELD(intermediate_state_indices),
      SSMJIT_FIELD(cache_seqlens),
      SSMJIT_FIELD(num_accepted_tokens),
  };
  static void set_flags(LayerArgs& args, std::int64_t flags) { args.checked = (flags & kChecked) != 0; }
};

// Slots of a ring's pools (ring.h).
template <>
struct OpArgs<MaterialiseArgs> {
  using Self = MaterialiseArgs;
  static constexpr Field<Self> fields[] = {
      SSMJIT_FIELD(layers),
      SSMJIT_FIELD(src_slots),
      SSMJIT_FIELD(dst_slots),
      SSMJIT_FIELD(ring_start),
      SSMJIT_FIELD(ring_count),
      SSMJIT_FIELD(prefix_length),
      SSMJIT_FIELD(active_request_indices),
      SSMJIT_FIELD(rand_seed),
  };
};

template <>
struct OpArgs<ResetSlotsArgs> {
  using Self = ResetSlotsArgs;
  static constexpr Field<Self> fields[] = {
      SSMJIT_FIELD(layers),
      SSMJIT_FIELD(slots),
      SSMJIT_FIELD(ring_start),
      SSMJIT_FIELD(ring_count),
  };
};

template <>
struct OpArgs<CopySlotsArgs> {
  using Self = CopySlotsArgs;
  static constexpr Field<Self> fields[] = {
      SSMJIT_FIELD(layers),     SSMJIT_FIELD(src_slots),  SSMJIT_FIELD(dst_slots),
      SSMJIT_FIELD(ring_start), SSMJIT_FIELD(ring_count),
  };
};

template <>
struct OpArgs<SlotCopiesArgs> {
  using Self = SlotCopiesArgs;
  static constexpr Field<Self> fields[] = {
      SSMJIT_FIELD(pieces),
      SSMJIT_FIELD(src_slots),
      SSMJIT_FIELD(dst_slots),
  };
};

template <>
struct OpArgs<RingLayer> {
  using Self = RingLayer;
  static constexpr Field<Self> fields[] = {
      SSMJIT_FIELD(state),  SSMJIT_FIELD(state_scale), SSMJIT_FIELD(x_ring),
      SSMJIT_FIELD(B_ring), SSMJIT_FIELD(dt_ring),     SSMJIT_FIELD(A),
  };
};

#undef SSMJIT_FIELD
#undef SSMJIT_VECTORS

template <class Args>
inline constexpr std::size_t kFieldCount = std::size(OpArgs<Args>::fields);

}  // namespace ssmjit::python
