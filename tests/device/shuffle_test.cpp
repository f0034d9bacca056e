// Exchanges between lanes, against what the lanes brought.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "tests/device/test_kernel.h"

namespace ssmjit {
namespace {

const TestKernel kShuffle("shuffle", {"device/shuffle.cuh"}, R"(
// buffer 0: a word a thread; 1: results, `blockDim` words for each operation; number 0: a lane, mask or distance.
template <int kLanes>
__device__ void exchange(const Args& args, u32 v, u32* out) {
  const int by = static_cast<int>(args.number[0]), n = block_threads(), i = thread_index();
  out[i] = shuffle<kLanes>(v, by);
  out[n + i] = shuffle_xor<kLanes>(v, by);
  out[2 * n + i] = shuffle_up<kLanes>(v, by);
  out[3 * n + i] = shuffle_down<kLanes>(v, by);
  out[4 * n + i] = shuffle<kLanes>(v, lane_index() * 3 + by);
}
KERNEL(exchange_32) { exchange<32>(args, at<u32>(args, 0)[thread_index()], at<u32>(args, 1)); }
KERNEL(exchange_8) { exchange<8>(args, at<u32>(args, 0)[thread_index()], at<u32>(args, 1)); }
KERNEL(exchange_2) { exchange<2>(args, at<u32>(args, 0)[thread_index()], at<u32>(args, 1)); }
// buffer 0: a float a thread; 1: sums, largest, sums so far of groups of 32, 16, 8, 4, 2, 1; 2: the same of integers.
template <int kLanes>
__device__ void reduce(const Args& args, int row) {
  const int n = block_threads(), i = thread_index();
  const float v = at<float>(args, 0)[i];
  float* out = at<float>(args, 1) + 3 * n * row + i;
  out[0] = sum_lanes<kLanes>(v);
  out[n] = max_lanes<kLanes>(v);
  out[2 * n] = scan_lanes<kLanes>(v);
  const int w = static_cast<int>(v);
  int* whole = at<int>(args, 2) + 2 * n * row + i;
  whole[0] = sum_lanes<kLanes>(w);
  whole[n] = scan_lanes<kLanes>(w);
}
KERNEL(reductions) {
  reduce<32>(args, 0);
  reduce<16>(args, 1);
  reduce<8>(args, 2);
  reduce<4>(args, 3);
  reduce<2>(args, 4);
  reduce<1>(args, 5);
}
KERNEL(votes) { at<u32>(args, 1)[thread_index()] = ballot_lanes((at<u32>(args, 0)[thread_index()] & 1u) != 0); }
)");

constexpr int kThreads = 96;

class Shuffle : public OnBoth {};
ON_CPU_AND_GPU(Shuffle);

TEST_P(Shuffle, MovesWordsWithinGroupsOfLanes) {
  NEEDS(kShuffle);
  std::mt19937 random(1);
  std::vector<std::uint32_t> in(kThreads);
  for (auto& v : in) v = random();
  for (const auto& [entry, lanes] : {std::pair("exchange_32", 32), {"exchange_8", 8}, {"exchange_2", 2}}) {
    for (int by : {0, 1, 3, 7, 16, 31}) {
      if (by >= lanes) continue;
      std::vector<std::uint32_t> out(5 * kThreads);
      kShuffle.run(GetParam(), entry, {.threads = kThreads}, {in, out}, {static_cast<std::uint64_t>(by)});
      for (int i = 0; i < kThreads; ++i) {
        const int first = i / lanes * lanes, lane = i - first;
        const auto word = [&](int operation) { return out[static_cast<std::size_t>(operation * kThreads + i)]; };
        const auto of = [&](int l) { return in[static_cast<std::size_t>(first + l)]; };
        ASSERT_EQ(word(0), of(by)) << entry << " thread " << i;
        ASSERT_EQ(word(1), of(lane ^ by)) << entry << " thread " << i;
        ASSERT_EQ(word(2), of(lane >= by ? lane - by : lane)) << entry << " thread " << i << " by " << by;
        ASSERT_EQ(word(3), of(lane + by < lanes ? lane + by : lane)) << entry << " thread " << i << " by " << by;
        ASSERT_EQ(word(4), of((i % 32 * 3 + by) % lanes)) << entry << " thread " << i;
      }
    }
  }
}

// The order of addition that the header promises.
std::vector<float> butterfly(std::vector<float> v, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) {
    std::vector<float> next = v;
    for (std::size_t i = 0; i < v.size(); ++i) next[i] = v[i] + v[i ^ static_cast<std::size_t>(step)];
    v = next;
  }
  return v;
}
std::vector<float> steps_up(std::vector<float> v, int lanes) {
  for (int step = 1; step < lanes; step *= 2) {
    std::vector<float> next = v;
    for (std::size_t i = 0; i < v.size(); ++i)
      if (static_cast<int>(i) % lanes >= step) next[i] = v[i] + v[i - static_cast<std::size_t>(step)];
    v = next;
  }
  return v;
}

TEST_P(Shuffle, ReducesAndScansInOneOrderToTheSameBits) {
  NEEDS(kShuffle);
  std::mt19937 random(2);
  std::vector<float> in(kThreads), out(18 * kThreads);
  std::vector<int> whole(12 * kThreads);
  for (float& v : in) v = 1000 * std::normal_distribution<float>()(random);
  kShuffle.run(GetParam(), "reductions", {.threads = kThreads}, {in, out, whole});
  int row = 0;
  for (int lanes : {32, 16, 8, 4, 2, 1}) {
    const std::vector<float> sums = butterfly(in, lanes), scans = steps_up(in, lanes);
    for (int i = 0; i < kThreads; ++i) {
      const auto at = [&](int operation) {
        return out[static_cast<std::size_t>((3 * row + operation) * kThreads + i)];
      };
      const auto first = in.begin() + i / lanes * lanes;
      ASSERT_EQ(at(0), sums[static_cast<std::size_t>(i)]) << lanes << " lanes, thread " << i;
      ASSERT_EQ(at(1), *std::max_element(first, first + lanes)) << lanes << " lanes, thread " << i;
      ASSERT_EQ(at(2), scans[static_cast<std::size_t>(i)]) << lanes << " lanes, thread " << i;
      int sum = 0, so_far = 0;
      for (int l = 0; l < lanes; ++l) {
        sum += static_cast<int>(first[l]);
        if (l <= i % lanes) so_far += static_cast<int>(first[l]);
      }
      ASSERT_EQ(whole[static_cast<std::size_t>(2 * row * kThreads + i)], sum);
      ASSERT_EQ(whole[static_cast<std::size_t>((2 * row + 1) * kThreads + i)], so_far);
    }
    ++row;
  }
}

TEST_P(Shuffle, TheLargestPassesOverNanAndPutsPlusZeroAboveMinusZero) {
  NEEDS(kShuffle);
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  std::vector<float> in(32, nan), out(18 * 32);
  std::vector<int> whole(12 * 32);
  in[5] = -3, in[9] = -inf, in[16] = -0.0f, in[17] = 0.0f, in[18] = 0.0f, in[19] = -0.0f, in[20] = inf, in[21] = 1;
  kShuffle.run(GetParam(), "reductions", {}, {in, out, whole});
  const auto largest = [&](int row, int i) { return out[static_cast<std::size_t>((3 * row + 1) * 32 + i)]; };
  for (int i = 0; i < 32; ++i) {
    EXPECT_EQ(largest(0, i), inf);
    EXPECT_EQ(largest(1, i), i < 16 ? -3 : inf);
    EXPECT_EQ(std::isnan(largest(2, i)), i >= 24);
  }
  for (int i = 16; i < 20; ++i) EXPECT_EQ(std::bit_cast<std::uint32_t>(largest(4, i)), 0u) << i;
}

TEST_P(Shuffle, BallotGivesEveryLaneTheBitsOfAll) {
  NEEDS(kShuffle);
  std::mt19937 random(3);
  std::vector<std::uint32_t> in(kThreads), out(kThreads);
  for (auto& v : in) v = random();
  kShuffle.run(GetParam(), "votes", {.threads = kThreads}, {in, out});
  for (std::size_t i = 0; i < kThreads; ++i) {
    std::uint32_t want = 0;
    for (std::size_t l = 0; l < 32; ++l) want |= (in[i / 32 * 32 + l] & 1u) << l;
    ASSERT_EQ(out[i], want);
  }
}

}  // namespace
}  // namespace ssmjit
