#pragma once
#include "device/basic.cuh"
#include "device/memory.cuh"
// An entry of an int32 or int64 index array, as the words that were asked for: what waits for them is value(), so it
// can stand behind the loads that need no index. No branch. A null array gives `otherwise`; `readable` is any address
// that may be read in its place.
struct IndexEntry {
  u32 low, high;
  i64 otherwise;
  bool given, wide;

  static SSMJIT_DEVICE IndexEntry load(const void* indices, int wide, i64 at, i64 otherwise, const void* readable) {
    IndexEntry e;
    e.given = indices != nullptr;
    e.wide = wide != 0;
    e.otherwise = otherwise;
    const u32* words = static_cast<const u32*>(e.given ? indices : readable);
    const i64 first = e.given ? (e.wide ? 2 * at : at) : 0;
    e.low = load_now_b32(words + first);
    e.high = load_now_b32(words + (e.given && e.wide ? first + 1 : first));
    return e;
  }
  SSMJIT_DEVICE i64 value() const {
    const i64 narrow = static_cast<int>(low);
    return !given ? otherwise : wide ? static_cast<i64>(static_cast<u64>(high) << 32 | low) : narrow;
  }
};
