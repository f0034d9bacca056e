#pragma once
// What a launch that copies slots of pools is given, by value, in one struct (also read by the host, so plain C++).

// Bytes of a slot that a block copies.
constexpr int kSlotPieceBytes = 16384;

// A piece of a slot: a row of the table that `pieces` below points to, four words of 64 bits.
struct SlotPiece {
  char* first;       // of slot 0, 16-byte aligned
  long long stride;  // between slots, bytes, a multiple of 16
  long long bytes;   // up to kSlotPieceBytes, a multiple of 16
  long long slots;   // an index outside [0, slots) is a pad
};

struct SlotCopiesArgs {
  const SlotPiece* pieces;
  const void* src_slots;  // [requests]
  const void* dst_slots;  // [requests]
  long long pad_slot_id;  // this index, and every negative one, is a pad
  int wide_src;           // 1: indices are int64, 0: int32
  int wide_dst;
};
