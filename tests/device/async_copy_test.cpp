// Asynchronous copies and their barriers: the bytes that arrive, and those that are left alone.
#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "tests/device/test_kernel.h"

namespace ssmjit {
namespace {

std::vector<std::uint8_t> random_bytes(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::uint8_t> bytes(count);
  for (auto& b : bytes) b = static_cast<std::uint8_t>(random());
  return bytes;
}

const TestKernel kCopyAsync("copy_async", {"device/async_copy.cuh", "device/barrier.cuh"}, R"(
// buffer 0: from; 1: to, 16 bytes a thread; number 0: how many bytes come from global memory. Every copy lies in the
// middle of a destination of 0xee.
template <int kBytes>
__device__ void zero_fill(const Args& args) {
  __shared__ __align__(16) unsigned char slot[64][16];
  const int i = thread_index();
  for (int j = 0; j < 16; ++j) slot[i][j] = 0xee;
  copy_async_zero_fill<kBytes>(&slot[i][16 - kBytes], at<unsigned char>(args, 0) + kBytes * i,
                               static_cast<u32>(args.number[0]));
  copy_async_commit();
  copy_async_wait<0>();
  for (int j = 0; j < 16; ++j) at<unsigned char>(args, 1)[16 * i + j] = slot[i][j];
}
KERNEL(zero_fill_4) { zero_fill<4>(args); }
KERNEL(zero_fill_8) { zero_fill<8>(args); }
KERNEL(zero_fill_16) { zero_fill<16>(args); }
template <int kBytes>
__device__ void whole(const Args& args) {
  __shared__ __align__(16) unsigned char slot[64 * 16];
  const int i = thread_index();
  if constexpr (kBytes == 16)
    copy_async(slot + 16 * i, at<unsigned char>(args, 0) + 16 * i);
  else
    copy_async_short<kBytes>(slot + kBytes * i, at<unsigned char>(args, 0) + kBytes * i);
  copy_async_commit();
  copy_async_wait<0>();
  sync_block();
  // Another thread's bytes: each waits for its own copies, the barrier for those of all.
  const int other = block_threads() - 1 - i;
  for (int j = 0; j < kBytes; ++j) at<unsigned char>(args, 1)[kBytes * other + j] = slot[kBytes * other + j];
}
KERNEL(whole_4) { whole<4>(args); }
KERNEL(whole_8) { whole<8>(args); }
KERNEL(whole_16) { whole<16>(args); }
// Through three slots, two groups in flight behind the one that is read.
KERNEL(pipeline) {
  __shared__ __align__(16) u32 slot[3][64][4];
  const int i = thread_index(), rounds = static_cast<int>(args.number[0]), n = block_threads();
  const u32* from = at<u32>(args, 0) + 4 * i;
  for (int round = 0; round < 2; ++round) {
    copy_async(slot[round][i], from + 4 * n * round);
    copy_async_commit();
  }
  for (int round = 0; round < rounds; ++round) {
    if (round + 2 < rounds) copy_async(slot[(round + 2) % 3][i], from + 4 * n * (round + 2));
    copy_async_commit();  // an empty group at the end
    copy_async_wait<2>();
    const u32* word = slot[round % 3][i];
    at<u32>(args, 1)[n * round + i] = word[0] ^ word[1] ^ word[2] ^ word[3];
  }
}
)");

class CopyAsync : public OnBoth {};
ON_CPU_AND_GPU(CopyAsync);

TEST_P(CopyAsync, FillsWithZerosWhatDoesNotComeFromGlobalMemory) {
  NEEDS(kCopyAsync);
  for (std::size_t bytes : {4u, 8u, 16u})
    for (std::size_t live = 0; live <= bytes; ++live) {
      std::vector<std::uint8_t> in = random_bytes(64 * bytes, 9), out(64 * 16), want(out.size(), 0xee);
      kCopyAsync.run(GetParam(), "zero_fill_" + std::to_string(bytes), {.threads = 64}, {in, out}, {live});
      for (std::size_t i = 0; i < 64; ++i)
        for (std::size_t j = 0; j < bytes; ++j) want[16 * i + 16 - bytes + j] = j < live ? in[bytes * i + j] : 0;
      ASSERT_EQ(out, want) << live << " of " << bytes << " bytes";
    }
}

TEST_P(CopyAsync, CopiesOfEachWidthAreThereAfterWaitAndBarrier) {
  NEEDS(kCopyAsync);
  for (std::size_t bytes : {4u, 8u, 16u}) {
    std::vector<std::uint8_t> in = random_bytes(64 * bytes, 10), out(in.size());
    kCopyAsync.run(GetParam(), "whole_" + std::to_string(bytes), {.threads = 64}, {in, out});
    ASSERT_EQ(out, in) << bytes << " bytes";
  }
}

TEST_P(CopyAsync, GroupsCompleteInOrder) {
  NEEDS(kCopyAsync);
  constexpr std::size_t kRounds = 7;
  std::mt19937 random(11);
  std::vector<std::uint32_t> in(64 * 4 * kRounds), out(64 * kRounds);
  for (auto& v : in) v = random();
  kCopyAsync.run(GetParam(), "pipeline", {.threads = 64}, {in, out}, {kRounds});
  for (std::size_t i = 0; i < out.size(); ++i)
    ASSERT_EQ(out[i], in[4 * i] ^ in[4 * i + 1] ^ in[4 * i + 2] ^ in[4 * i + 3]) << i;
}

const TestKernel kBulk("bulk", {"device/async_copy.cuh", "device/barrier.cuh"}, R"(
// buffer 0: from; 1: to; number 0: pieces of 1 KiB. Each comes in by the copy engine through two slots, has 1 added to
// every word, and goes out by the copy engine.
KERNEL(through_shared) {
  __shared__ __align__(128) u32 slot[2][256];
  __shared__ Barrier full[2];
  const int i = thread_index(), pieces = static_cast<int>(args.number[0]);
  if (i == 0) {
    barrier_init(&full[0], 1);
    barrier_init(&full[1], 1);
    barrier_init_fence();
  }
  sync_block();
  if (i == 0)
    for (int piece = 0; piece < 2 && piece < pieces; ++piece) {
      barrier_arrive_expect(&full[piece], 1024);
      bulk_load(slot[piece], at<u32>(args, 0) + 256 * piece, 1024, &full[piece]);
    }
  for (int piece = 0; piece < pieces; ++piece) {
    const int s = piece % 2;
    barrier_wait(&full[s], static_cast<u32>(piece / 2 & 1));
    for (int j = i; j < 256; j += block_threads()) slot[s][j] += 1;
    bulk_store_fence();
    sync_block();
    if (i == 0) {
      bulk_store(at<u32>(args, 1) + 256 * piece, slot[s], 1024);
      bulk_store_commit();
      if (piece + 2 < pieces) {
        bulk_store_wait_read<0>();
        barrier_arrive_expect(&full[s], 1024);
        bulk_load(slot[s], at<u32>(args, 0) + 256 * (piece + 2), 1024, &full[s]);
      }
    }
  }
  if (i == 0) bulk_store_wait<0>();
}
// Several copies on one barrier, announced before the one arrival.
KERNEL(one_barrier_for_three_copies) {
  __shared__ __align__(128) u32 slot[64];
  __shared__ Barrier full;
  const int i = thread_index();
  if (i == 0) {
    barrier_init(&full, 1);
    barrier_init_fence();
    barrier_expect(&full, 32);
    barrier_expect(&full, 96);
    bulk_load(slot, at<u32>(args, 0), 32, &full);
    bulk_load(slot + 8, at<u32>(args, 0) + 8, 96, &full);
    barrier_arrive_expect(&full, 128);
    bulk_load(slot + 32, at<u32>(args, 0) + 32, 128, &full);
  }
  sync_block();
  barrier_wait(&full, 0);
  at<u32>(args, 1)[i] = slot[i];
  at<u32>(args, 1)[32 + i] = slot[32 + i];
}
)",
                       90);

const TestKernel kArrivals("arrivals", {"device/async_copy.cuh", "device/barrier.cuh"}, R"(
// Warp 0 makes, warp 1 takes; 32 arrivals complete a phase. buffer 0: from; 1: to; 2: what barrier_test said.
KERNEL(make_and_take) {
  __shared__ u32 slot[2][32];
  __shared__ Barrier full[2], free[2];
  const int i = lane_index(), rounds = static_cast<int>(args.number[0]);
  if (thread_index() == 0) {
    for (int s = 0; s < 2; ++s) {
      barrier_init(&full[s], 32);
      barrier_init(&free[s], 32);
    }
    barrier_init_fence();
    at<u32>(args, 2)[0] = barrier_test(&full[0], 0);  // not yet
    at<u32>(args, 2)[1] = barrier_test(&full[0], 1);  // the phase before the first counts as complete
  }
  sync_block();
  const bool maker = thread_index() < 32;
  for (int round = 0; round < rounds; ++round) {
    const int s = round % 2;
    const u32 parity = static_cast<u32>(round / 2 & 1);
    if (maker) {
      barrier_wait(&free[s], parity ^ 1);
      slot[s][i] = at<u32>(args, 0)[32 * round + i];
      barrier_arrive(&full[s]);
    } else {
      while (!barrier_test(&full[s], parity)) {
      }
      at<u32>(args, 1)[32 * round + i] = slot[s][31 - i];
      barrier_arrive(&free[s]);
    }
  }
  sync_block();
  if (thread_index() == 0) {
    const int last = (rounds - 1) / 2;
    at<u32>(args, 2)[2] = barrier_test(&full[0], static_cast<u32>(last & 1));  // complete
    at<u32>(args, 2)[3] = barrier_test(&full[0], static_cast<u32>(last & 1) ^ 1);  // the phase after it is not
  }
}
)",
                           90);

class Bulk : public OnBoth {};
ON_CPU_AND_GPU(Bulk);

TEST_P(Bulk, CopiesComeInAndGoOutThroughTwoSlots) {
  NEEDS(kBulk);
  for (std::size_t pieces : {1u, 2u, 7u}) {
    std::mt19937 random(12);
    std::vector<std::uint32_t> in(256 * pieces), out(in.size());
    for (auto& v : in) v = random();
    kBulk.run(GetParam(), "through_shared", {.threads = 64}, {in, out}, {pieces});
    for (std::size_t i = 0; i < in.size(); ++i) ASSERT_EQ(out[i], in[i] + 1) << pieces << " pieces, word " << i;
  }
}

TEST_P(Bulk, ABarrierWaitsForAllBytesThatWereAnnounced) {
  NEEDS(kBulk);
  std::vector<std::uint32_t> in(64), out(64);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<std::uint32_t>(3 * i + 5);
  kBulk.run(GetParam(), "one_barrier_for_three_copies", {}, {in, out});
  EXPECT_EQ(out, in);
}

TEST_P(Bulk, ArrivalsCompleteAPhaseAndTestSaysWhich) {
  NEEDS(kArrivals);
  for (std::uint64_t rounds : {1u, 3u, 8u}) {
    std::vector<std::uint32_t> in(32 * rounds), out(in.size()), said(4);
    for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<std::uint32_t>(i * i + 1);
    kArrivals.run(GetParam(), "make_and_take", {.threads = 64}, {in, out, said}, {rounds});
    for (std::size_t i = 0; i < in.size(); ++i) ASSERT_EQ(out[i], in[i / 32 * 32 + 31 - i % 32]) << i;
    EXPECT_EQ(said, (std::vector<std::uint32_t>{0, 1, 1, 0})) << rounds << " rounds";
  }
}

}  // namespace
}  // namespace ssmjit
