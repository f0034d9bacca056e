#pragma once
#include "device/basic.cuh"
#include "device/memory.cuh"
#include "index.cuh"
#include "slot_copies_args.cuh"
// Whole slots of many pools (states, their factors, windows of all layers) copied byte for byte in one launch. A block
// copies a piece of one pool's slot for one request; a request with a pad is passed over. Grid: x = pieces of a slot in
// all pools, y = requests.
template <int kThreads>
SSMJIT_DEVICE void slot_copies(const SlotCopiesArgs& args) {
  constexpr int kEach = kSlotPieceBytes / 16 / kThreads;  // vectors of a thread, asked for before the first is written
  static_assert(kEach * kThreads * 16 == kSlotPieceBytes);
  const SlotPiece piece = args.pieces[block_x()];
  const i64 from = IndexEntry::load(args.src_slots, args.wide_src, block_y(), 0, args.src_slots).value();
  const i64 to = IndexEntry::load(args.dst_slots, args.wide_dst, block_y(), 0, args.dst_slots).value();
  const auto is_live = [&](i64 slot) { return slot >= 0 && slot < piece.slots && slot != args.pad_slot_id; };
  if (!is_live(from) || !is_live(to) || from == to) return;
  const int vectors = static_cast<int>(piece.bytes / 16);
  const Vec16* source = reinterpret_cast<const Vec16*>(piece.first + from * piece.stride) + thread_index();
  Vec16* target = reinterpret_cast<Vec16*>(piece.first + to * piece.stride) + thread_index();
  Vec16 v[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    if (thread_index() + i * kThreads < vectors) v[i] = load_global<true>(source + i * kThreads);
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    if (thread_index() + i * kThreads < vectors) store_global<true>(target + i * kThreads, v[i]);
}
