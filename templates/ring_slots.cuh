#pragma once
#include "device/basic.cuh"
#include "device/memory.cuh"
#include "device/scalar.cuh"
#include "index.cuh"
#include "ring_slots_args.cuh"
// Whole slots of a ring's pools, of all layers in one launch: set back to the start, or copied. A block has one head of
// one layer, along x, and one slot, along y; the first block moves the slot's cursors.

// Entry `at` of a row of slot indices.
SSMJIT_DEVICE i64 slot_at(const void* slots, int wide, i64 at) {
  return IndexEntry::load(slots, wide, at, 0, slots).value();
}
SSMJIT_DEVICE bool is_live_slot(i64 slot, const RingLayer& layer, i64 pad_slot_id) {
  return slot >= 0 && slot < layer.slots && slot != pad_slot_id;
}

// Element `inner` of a slot.
template <class T>
SSMJIT_DEVICE T* in_slot(T* pool, i64 slot, i64 stride, i64 inner) {
  return pool + (slot * stride + inner);
}

// kVectors neighbouring vectors by the kThreads threads of the block; the two may be the same.
template <int kVectors, int kThreads>
SSMJIT_DEVICE void copy_vectors(void* to, const void* from) {
  constexpr int kAtOnce = 4;  // asked for before the first is written
#pragma unroll 1
  for (int first = thread_index(); first < kVectors; first += kAtOnce * kThreads) {
    Vec16 v[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k * kThreads < kVectors)
        v[k] = load_global<true>(static_cast<const Vec16*>(from) + (first + k * kThreads));
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k * kThreads < kVectors) store_global<true>(static_cast<Vec16*>(to) + (first + k * kThreads), v[k]);
  }
}

// The block's share of a slot's window, a vector a call: each head's block takes vectors of its own.
template <int kThreads, class Move>
SSMJIT_DEVICE void for_window(const RingLayer& layer, int head, int nheads, const Move& move) {
  if (layer.conv_state == nullptr) return;
#pragma unroll 1
  for (i64 v = i64{head} * kThreads + thread_index(); v < layer.conv_state_size; v += i64{nheads} * kThreads) move(v);
}

// Sizes that follow from Cfg.
template <class Cfg>
struct SlotShape {
  using State = typename Cfg::State;
  using Input = typename Cfg::Input;
  static constexpr bool kScaled = sizeof(State) == 1;
  static constexpr int kSpan = 16 / static_cast<int>(sizeof(State));  // columns of dstate in a vector
  static constexpr int kVectors = Cfg::kDstate / kSpan;               // of a row of the state
  static constexpr int kHeadSize = Cfg::kHeadDim * Cfg::kDstate;
  static constexpr int kInputs = 16 / static_cast<int>(sizeof(Input));  // elements of x or B in a vector
  static constexpr int kXVectors = Cfg::kRing * Cfg::kHeadDim / kInputs;
  static constexpr int kBVectors = Cfg::kRing * Cfg::kDstate / kInputs;
  static_assert(Cfg::kDstate % kSpan == 0 && Cfg::kDstate % kInputs == 0 && Cfg::kHeadDim % kInputs == 0);
};

template <class Cfg>
SSMJIT_DEVICE void reset_slots(const ResetSlotsArgs& args) {
  using S = SlotShape<Cfg>;
  using State = typename Cfg::State;
  const RingLayer layer = args.layers[block_x() / args.nheads];
  const int head = block_x() % args.nheads;
  const i64 slot = slot_at(args.slots, args.wide, block_y());
  if (!is_live_slot(slot, layer, args.pad_slot_id) || slot >= args.cursors) return;
  State* state = in_slot(static_cast<State*>(layer.state), slot, layer.state_stride, i64{head} * S::kHeadSize);
#pragma unroll 1
  for (int v = thread_index(); v < Cfg::kHeadDim * S::kVectors; v += Cfg::kThreads)
    store_global<false>(state + v * S::kSpan, Vec16{});
  if constexpr (S::kScaled) {
    float* scale = in_slot(layer.state_scale, slot, layer.state_scale_stride, i64{head} * Cfg::kHeadDim);
    for (int p = thread_index(); p < Cfg::kHeadDim; p += Cfg::kThreads) scale[p] = 1.0f;
  }
  float* delta = in_slot(layer.dt_ring, slot, layer.dt_ring_stride, i64{head} * Cfg::kRing);
  for (int j = thread_index(); j < Cfg::kRing; j += Cfg::kThreads) delta[j] = bits_float(kNeverStepped);
  Vec16* const window = static_cast<Vec16*>(layer.conv_state) + slot * layer.conv_state_stride;
  for_window<Cfg::kThreads>(layer, head, args.nheads, [&](i64 v) { store_global<false>(window + v, Vec16{}); });
  if (block_x() == 0 && thread_index() == 0) {
    args.ring_start[slot] = 0;
    args.ring_count[slot] = 0;
  }
}

template <class Cfg>
SSMJIT_DEVICE void copy_slots(const CopySlotsArgs& args) {
  using S = SlotShape<Cfg>;
  using State = typename Cfg::State;
  using Input = typename Cfg::Input;
  const RingLayer layer = args.layers[block_x() / args.nheads];
  const int head = block_x() % args.nheads;
  const i64 from = slot_at(args.src_slots, args.wide_src, block_y());
  const i64 to = slot_at(args.dst_slots, args.wide_dst, block_y());
  if (!is_live_slot(from, layer, args.pad_slot_id) || !is_live_slot(to, layer, args.pad_slot_id) || from == to) return;
  if (from >= args.cursors || to >= args.cursors) return;

  const auto state = [&](i64 slot) {
    return in_slot(static_cast<State*>(layer.state), slot, layer.state_stride, i64{head} * S::kHeadSize);
  };
  copy_vectors<Cfg::kHeadDim * S::kVectors, Cfg::kThreads>(state(to), state(from));
  if constexpr (S::kScaled) {
    const auto scale = [&](i64 slot) {
      return in_slot(layer.state_scale, slot, layer.state_scale_stride, i64{head} * Cfg::kHeadDim);
    };
    for (int p = thread_index(); p < Cfg::kHeadDim; p += Cfg::kThreads) scale(to)[p] = scale(from)[p];
  }
  const auto x = [&](i64 slot) {
    return in_slot(static_cast<Input*>(layer.x_ring), slot, layer.x_ring_stride,
                   i64{head} * (Cfg::kRing * Cfg::kHeadDim));
  };
  copy_vectors<S::kXVectors, Cfg::kThreads>(x(to), x(from));
  if (head % Cfg::kHeadsPerGroup == 0) {
    const auto B = [&](i64 slot) {
      return in_slot(static_cast<Input*>(layer.B_ring), slot, layer.B_ring_stride,
                     i64{head / Cfg::kHeadsPerGroup} * (Cfg::kRing * Cfg::kDstate));
    };
    copy_vectors<S::kBVectors, Cfg::kThreads>(B(to), B(from));
  }
  const auto delta = [&](i64 slot) {
    return in_slot(layer.dt_ring, slot, layer.dt_ring_stride, i64{head} * Cfg::kRing);
  };
  for (int j = thread_index(); j < Cfg::kRing; j += Cfg::kThreads) delta(to)[j] = delta(from)[j];
  Vec16* const windows = static_cast<Vec16*>(layer.conv_state);
  for_window<Cfg::kThreads>(layer, head, args.nheads, [&](i64 v) {
    store_global<true>(windows + (to * layer.conv_state_stride + v),
                       load_global<true>(windows + (from * layer.conv_state_stride + v)));
  });
  if (block_x() == 0 && thread_index() == 0) {
    args.ring_start[to] = args.ring_start[from];
    args.ring_count[to] = args.ring_count[from];
  }
}
