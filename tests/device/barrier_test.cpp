// Barriers within a block: what was written before is read after.
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "tests/device/test_kernel.h"

namespace ssmjit {
namespace {

const TestKernel kBarrier("barrier", {"device/barrier.cuh"}, R"(
// Each round every thread passes its word to the thread before it.
KERNEL(ring_of_threads) {
  __shared__ u32 word[256];
  const int i = thread_index(), n = block_threads();
  u32 v = at<u32>(args, 0)[i];
  for (int round = 0; round < 8; ++round) {
    word[i] = v;
    sync_block();
    v = word[(i + 1) % n] + 1;
    sync_block();
  }
  at<u32>(args, 1)[i] = v;
}
// Warps 0 and 1 make, warps 2 and 3 take, through two slots, each with a barrier for full and one for free. Warp 4
// takes
// no part.
KERNEL(makers_and_takers) {
  __shared__ u32 slot[2][64];
  const int i = thread_index() % 64, role = thread_index() / 64, rounds = static_cast<int>(args.number[0]);
  if (role == 0) {
    for (int round = 0; round < rounds; ++round) {
      const int s = round % 2;
      if (round >= 2) sync_named(3 + s, 128);
      slot[s][i] = at<u32>(args, 0)[64 * round + i];
      arrive_named(1 + s, 128);
    }
  } else if (role == 1) {
    for (int round = 0; round < rounds; ++round) {
      const int s = round % 2;
      sync_named(1 + s, 128);
      at<u32>(args, 1)[64 * round + i] = slot[s][63 - i];
      if (round + 2 < rounds) arrive_named(3 + s, 128);
    }
  }
}
)");

class BlockBarrier : public OnBoth {};
ON_CPU_AND_GPU(BlockBarrier);

TEST_P(BlockBarrier, AThreadReadsWhatItsNeighbourWroteBeforeIt) {
  NEEDS(kBarrier);
  for (int threads : {32, 96, 256}) {
    std::vector<std::uint32_t> in(static_cast<std::size_t>(threads)), out(in.size());
    for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<std::uint32_t>(i * i);
    kBarrier.run(GetParam(), "ring_of_threads", {.threads = threads}, {in, out});
    for (std::size_t i = 0; i < in.size(); ++i) ASSERT_EQ(out[i], in[(i + 8) % in.size()] + 8);
  }
}

TEST_P(BlockBarrier, NamedBarriersPassSlotsFromSomeWarpsToOthers) {
  NEEDS(kBarrier);
  constexpr std::size_t kRounds = 9;
  std::vector<std::uint32_t> in(64 * kRounds), out(in.size());
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<std::uint32_t>(7 * i + 1);
  kBarrier.run(GetParam(), "makers_and_takers", {.threads = 160}, {in, out}, {kRounds});
  for (std::size_t i = 0; i < in.size(); ++i) ASSERT_EQ(out[i], in[i / 64 * 64 + 63 - i % 64]) << i;
}

}  // namespace
}  // namespace ssmjit
