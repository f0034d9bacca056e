#pragma once
#include "basic.cuh"
// CPU bodies of device/warp.cuh: one exchange for each collective.

template <int kRows, int kLanes>
struct RowSums {
  static constexpr bool kHalve = kLanes > 1 && kRows % 2 == 0;
  static constexpr bool kLast = kLanes == 1;
  using Next = RowSums<kHalve ? kRows / 2 : kRows, kLast ? 1 : kLanes / 2>;

  static SSMJIT_DEVICE constexpr int owned() {
    if constexpr (kLast)
      return kRows;
    else
      return Next::owned();
  }
  static SSMJIT_DEVICE int first_row(int lane) {
    if constexpr (kLast)
      return 0;
    else if constexpr (kHalve)
      return ((lane & (kLanes / 2)) != 0 ? kRows / 2 : 0) + Next::first_row(lane);
    else
      return Next::first_row(lane);
  }
  static SSMJIT_DEVICE bool owner(int lane) {
    if constexpr (kLast)
      return true;
    else if constexpr (kHalve)
      return Next::owner(lane);
    else
      return (lane & (kLanes / 2)) == 0 && Next::owner(lane);
  }
  // The lanes' partial sums are added in the butterfly's order, so the totals have the GPU's bits.
  static SSMJIT_DEVICE void sum(float* v, int lane) {
    if constexpr (!kLast) {
      struct Partial {
        float row[kRows];
      };
      Partial mine;
      for (int r = 0; r < kRows; ++r) mine.row[r] = v[r];
      const int first_lane = lane_index() & ~(kLanes - 1);
      const Partial* all = ssmjit_cpu_all_lanes(0xffffffffu, kSsmjitCpuSum, mine) + first_lane;
      const int first = first_row(lane);
      for (int r = 0; r < owned(); ++r) {
        float sums[kLanes / 2];
        for (int i = 0; i < kLanes / 2; ++i) sums[i] = all[i].row[first + r] + all[i + kLanes / 2].row[first + r];
        for (int step = kLanes / 4; step > 0; step /= 2)
          for (int i = 0; i < step; ++i) sums[i] += sums[i + step];
        v[r] = sums[0];
      }
    }
  }
};
