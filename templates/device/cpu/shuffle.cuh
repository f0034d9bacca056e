#pragma once
#include "basic.cuh"
// CPU bodies of device/shuffle.cuh: one exchange for each, sums in the order of the GPU's steps.

template <class T>
SSMJIT_DEVICE T ssmjit_cpu_from_lane(T v, int lane) {
  static_assert(sizeof(T) == 4);
  return ssmjit_cpu_all_lanes(0xffffffffu, kSsmjitCpuShuffle, v)[lane];
}
template <int kLanes>
SSMJIT_DEVICE int ssmjit_cpu_first_lane() {
  return lane_index() & ~(kLanes - 1);
}

template <int kLanes = 32, class T>
SSMJIT_DEVICE T shuffle(T v, int lane) {
  return ssmjit_cpu_from_lane(v, ssmjit_cpu_first_lane<kLanes>() + (lane & (kLanes - 1)));
}
template <int kLanes = 32, class T>
SSMJIT_DEVICE T shuffle_xor(T v, int mask) {
  return ssmjit_cpu_from_lane(v, lane_index() ^ mask);
}
template <int kLanes = 32, class T>
SSMJIT_DEVICE T shuffle_up(T v, int delta) {
  const int from = lane_index() - delta;
  return ssmjit_cpu_from_lane(v, from >= ssmjit_cpu_first_lane<kLanes>() ? from : lane_index());
}
template <int kLanes = 32, class T>
SSMJIT_DEVICE T shuffle_down(T v, int delta) {
  const int from = lane_index() + delta;
  return ssmjit_cpu_from_lane(v, from < ssmjit_cpu_first_lane<kLanes>() + kLanes ? from : lane_index());
}
SSMJIT_DEVICE u32 ballot_lanes(bool v) {
  const u32 mine = v ? 1u : 0u;
  const u32* all = ssmjit_cpu_all_lanes(0xffffffffu, kSsmjitCpuVote, mine);
  u32 bits = 0;
  for (int i = 0; i < 32; ++i) bits |= all[i] << i;
  return bits;
}

template <int kLanes = 32, class T>
SSMJIT_DEVICE T sum_lanes(T v) {
  const T* all = ssmjit_cpu_all_lanes(0xffffffffu, kSsmjitCpuSum, v) + ssmjit_cpu_first_lane<kLanes>();
  T sums[kLanes];
  for (int i = 0; i < kLanes; ++i) sums[i] = all[i];
  for (int step = kLanes / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) sums[i] += sums[i + step];
  return sums[0];
}
template <int kLanes = 32>
SSMJIT_DEVICE float max_lanes(float v) {
  const float* all = ssmjit_cpu_all_lanes(0xffffffffu, kSsmjitCpuLargest, v) + ssmjit_cpu_first_lane<kLanes>();
  float largest = all[0];
  for (int i = 1; i < kLanes; ++i) {
    const bool minus_zero = largest == 0 && (__builtin_bit_cast(u32, largest) >> 31) != 0;
    if (!(largest == largest) || all[i] > largest || (minus_zero && all[i] == 0)) largest = all[i];
  }
  return largest;
}
template <int kLanes = 32, class T>
SSMJIT_DEVICE T scan_lanes(T v) {
  const int lane = lane_index() & (kLanes - 1);
  const T* all = ssmjit_cpu_all_lanes(0xffffffffu, kSsmjitCpuScan, v) + ssmjit_cpu_first_lane<kLanes>();
  T sums[kLanes];
  for (int i = 0; i <= lane; ++i) sums[i] = all[i];
  for (int step = 1; step < kLanes; step *= 2)
    for (int i = lane; i >= step; --i) sums[i] += sums[i - step];
  return sums[lane];
}
