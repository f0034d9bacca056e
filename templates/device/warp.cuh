#pragma once
#include "basic.cuh"
// Warp collectives. Each is one operation to its caller, so that an executor can serve it with one exchange.

// Sums over groups of kLanes neighbouring lanes (a power of two). Each lane brings kRows partial sums; afterwards the
// group's totals are spread over its lanes: a lane owns kOwned of them, in v[0..kOwned), the rows from first_row on.
// While the row count is even a step halves it (a lane sends the half it does not keep), so that 8 rows over 16 lanes
// take 8 shuffles, not 32; an odd count is summed whole and the lane with the lower index owns it.
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
  // The first row that lane `lane` of the group owns.
  static SSMJIT_DEVICE int first_row(int lane) {
    if constexpr (kLast)
      return 0;
    else if constexpr (kHalve)
      return ((lane & (kLanes / 2)) != 0 ? kRows / 2 : 0) + Next::first_row(lane);
    else
      return Next::first_row(lane);
  }
  // Whether the lane is the one of those holding the same totals that should write them.
  static SSMJIT_DEVICE bool owner(int lane) {
    if constexpr (kLast)
      return true;
    else if constexpr (kHalve)
      return Next::owner(lane);
    else
      return (lane & (kLanes / 2)) == 0 && Next::owner(lane);
  }
  static SSMJIT_DEVICE void sum(float* v, int lane) {
    if constexpr (!kLast) {
      constexpr int kStep = kLanes / 2;
      if constexpr (kHalve) {
        const bool upper = (lane & kStep) != 0;
#pragma unroll
        for (int i = 0; i < kRows / 2; ++i) {
          const float keep = upper ? v[i + kRows / 2] : v[i];
          const float send = upper ? v[i] : v[i + kRows / 2];
          v[i] = keep + __shfl_xor_sync(0xffffffffu, send, kStep);
        }
      } else {
#pragma unroll
        for (int i = 0; i < kRows; ++i) v[i] += __shfl_xor_sync(0xffffffffu, v[i], kStep);
      }
      Next::sum(v, lane);
    }
  }
};
