// Blocks of a cluster reach into each other's shared memory.
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "tests/device/test_kernel.h"

namespace ssmjit {
namespace {

const TestKernel kCluster("cluster", {"device/cluster.cuh", "device/barrier.cuh"}, R"(
// buffer 0: place and size by block.
KERNEL(places) {
  if (thread_index() == 0) {
    at<int>(args, 0)[2 * block_x()] = cluster_rank();
    at<int>(args, 0)[2 * block_x() + 1] = cluster_size();
  }
}
// Each block reads from the next one's shared memory, and writes into the one before's. buffer 0: a word a thread;
// 1: words
// read; 2: words received.
KERNEL(neighbours) {
  __shared__ u32 mine[64];
  __shared__ u32 received[64];
  const int i = thread_index(), n = cluster_size(), rank = cluster_rank(), thread = 64 * block_x() + i;
  mine[i] = at<u32>(args, 0)[thread];
  cluster_arrive();
  cluster_wait();
  at<u32>(args, 1)[thread] = cluster_load_b32(cluster_address(&mine[63 - i], (rank + 1) % n));
  cluster_store_b32(cluster_address(&received[i], (rank + n - 1) % n), at<u32>(args, 0)[thread] + 1);
  cluster_arrive();
  cluster_wait();
  at<u32>(args, 2)[thread] = received[i];
}
// The same by 16 bytes; a block's own place is among those that it reaches. buffer 0: four words a thread; 1, 2
// likewise.
KERNEL(neighbours_by_16_bytes) {
  __shared__ Vec16 mine[32];
  __shared__ Vec16 received[32];
  const int i = thread_index(), n = cluster_size(), rank = cluster_rank(), thread = 32 * block_x() + i;
  mine[i] = at<Vec16>(args, 0)[thread];
  cluster_arrive();
  cluster_wait();
  const int other = (rank + i) % n;
  at<Vec16>(args, 1)[thread] = cluster_load(cluster_address(&mine[i], other));
  cluster_store(cluster_address(&received[i], other), mine[i]);
  cluster_arrive();
  cluster_wait();
  at<Vec16>(args, 2)[thread] = received[i];
}
// Block 0 gathers a word of every thread of the cluster behind one barrier in its shared memory. buffer 0: a word a
// thread; 1: the sum by cluster.
KERNEL(gather) {
  __shared__ u32 word[8 * 32];
  __shared__ Barrier all;
  const int i = thread_index(), n = cluster_size(), rank = cluster_rank();
  if (rank == 0 && i == 0) {
    barrier_init(&all, static_cast<u32>(32 * n));
    barrier_init_fence();
  }
  cluster_arrive();
  cluster_wait();
  cluster_store_b32(cluster_address(&word[32 * rank + i], 0), at<u32>(args, 0)[32 * block_x() + i]);
  barrier_arrive_cluster(cluster_address(&all, 0));
  if (rank == 0) {
    barrier_wait_cluster(&all, 0);
    if (i == 0) {
      u32 sum = 0;
      for (int j = 0; j < 32 * n; ++j) sum += word[j];
      at<u32>(args, 1)[block_x() / n] = sum;
    }
    sync_block();
  }
  cluster_arrive();
  cluster_wait();
}
// Each thread sends a word to every block of the cluster, which counts the bytes; what it has read before, others write
// after the wait. buffer 0: a word a thread, replaced by the sum of the cluster's words.
KERNEL(send_to_all) {
  __shared__ u32 word[8 * 32];
  __shared__ Barrier all;
  const int i = thread_index(), n = cluster_size(), rank = cluster_rank();
  const u32 mine = at<u32>(args, 0)[32 * block_x() + i];
  if (i == 0) {
    barrier_init(&all, 1);
    barrier_init_fence();
    barrier_arrive_expect(&all, static_cast<u32>(4 * 32 * n));
  }
  cluster_arrive_relaxed();
  cluster_wait();
  for (int r = 0; r < n; ++r)
    cluster_store_async_b32(cluster_address(&word[32 * rank + i], r), mine, cluster_address(&all, r));
  barrier_wait(&all, 0);
  u32 sum = 0;
  for (int j = 0; j < 32 * n; ++j) sum += word[j];
  at<u32>(args, 0)[32 * (block_x() / n * n + (rank + 1) % n) + i] = sum;
}
)",
                          90);

class Cluster : public OnBoth {};
ON_CPU_AND_GPU(Cluster);

TEST_P(Cluster, ABlockKnowsItsPlace) {
  NEEDS(kCluster);
  for (int cluster : {1, 2, 4, 8}) {
    std::vector<int> out(32, -1);
    kCluster.run(GetParam(), "places", {.blocks = 16, .cluster = cluster}, {out});
    for (int b = 0; b < 16; ++b) {
      EXPECT_EQ(out[static_cast<std::size_t>(2 * b)], b % cluster);
      EXPECT_EQ(out[static_cast<std::size_t>(2 * b + 1)], cluster);
    }
  }
}

TEST_P(Cluster, BlocksReadAndWriteEachOthersSharedMemory) {
  NEEDS(kCluster);
  for (std::size_t cluster : {1u, 2u, 4u, 8u}) {
    constexpr std::size_t kBlocks = 16;
    std::vector<std::uint32_t> in(64 * kBlocks), read(in.size()), received(in.size());
    for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<std::uint32_t>(5 * i + 2);
    kCluster.run(GetParam(), "neighbours",
                 {.threads = 64, .blocks = static_cast<int>(kBlocks), .cluster = static_cast<int>(cluster)},
                 {in, read, received});
    for (std::size_t b = 0; b < kBlocks; ++b) {
      const std::size_t next = b / cluster * cluster + (b % cluster + 1) % cluster;
      for (std::size_t i = 0; i < 64; ++i) {
        ASSERT_EQ(read[64 * b + i], in[64 * next + 63 - i]) << "cluster of " << cluster << " block " << b;
        ASSERT_EQ(received[64 * b + i], in[64 * next + i] + 1) << "cluster of " << cluster << " block " << b;
      }
    }
  }
}

TEST_P(Cluster, BlocksExchange16Bytes) {
  NEEDS(kCluster);
  constexpr std::size_t kBlocks = 8, kCluster4 = 4;
  std::vector<std::uint32_t> in(4 * 32 * kBlocks), read(in.size()), received(in.size());
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<std::uint32_t>(i * i);
  kCluster.run(GetParam(), "neighbours_by_16_bytes", {.blocks = kBlocks, .cluster = kCluster4}, {in, read, received});
  for (std::size_t b = 0; b < kBlocks; ++b)
    for (std::size_t i = 0; i < 32; ++i)
      for (std::size_t w = 0; w < 4; ++w) {
        const std::size_t first = b / kCluster4 * kCluster4, rank = b % kCluster4;
        const std::size_t to = first + (rank + i) % kCluster4;
        ASSERT_EQ(read[(32 * b + i) * 4 + w], in[(32 * to + i) * 4 + w]);
        ASSERT_EQ(received[(32 * to + i) * 4 + w], in[(32 * b + i) * 4 + w]);
      }
}

TEST_P(Cluster, ABarrierInOneBlockWaitsForArrivalsOfAll) {
  NEEDS(kCluster);
  for (std::size_t cluster : {1u, 2u, 8u}) {
    constexpr std::size_t kBlocks = 16;
    std::vector<std::uint32_t> in(32 * kBlocks), sum(kBlocks / cluster);
    for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<std::uint32_t>(i + 1);
    kCluster.run(GetParam(), "gather", {.blocks = kBlocks, .cluster = static_cast<int>(cluster)}, {in, sum});
    for (std::size_t c = 0; c < sum.size(); ++c) {
      std::uint32_t want = 0;
      for (std::size_t i = 0; i < 32 * cluster; ++i) want += in[32 * cluster * c + i];
      EXPECT_EQ(sum[c], want) << "cluster of " << cluster;
    }
  }
}

TEST_P(Cluster, StoresToPeersCountAtTheirBarriers) {
  NEEDS(kCluster);
  for (std::size_t cluster : {1u, 2u, 8u}) {
    constexpr std::size_t kBlocks = 16;
    std::vector<std::uint32_t> in(32 * kBlocks);
    for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<std::uint32_t>(3 * i + 1);
    std::vector<std::uint32_t> out = in;
    kCluster.run(GetParam(), "send_to_all", {.blocks = kBlocks, .cluster = static_cast<int>(cluster)}, {out});
    for (std::size_t b = 0; b < kBlocks; ++b) {
      std::uint32_t want = 0;
      for (std::size_t i = 0; i < 32 * cluster; ++i) want += in[32 * (b / cluster * cluster) + i];
      for (std::size_t i = 0; i < 32; ++i) ASSERT_EQ(out[32 * b + i], want) << "cluster of " << cluster;
    }
  }
}

}  // namespace
}  // namespace ssmjit
