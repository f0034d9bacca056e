// Philox-4x32 against its published vectors, the contract's known answers and a plain host loop.
#include <array>
#include <cstdint>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "autotune/reference/philox.h"
#include "tests/device/test_kernel.h"

namespace ssmjit {
namespace {

const TestKernel kPhilox("philox", {"random.cuh"}, R"(
// buffer 0: counter (4 words) and key (2) a thread; 1: four words a thread.
template <int kRounds>
__device__ void words(const Args& args) {
  const u32* in = at<u32>(args, 0) + 6 * thread_index();
  const Draw d = philox<kRounds>({{in[0], in[1], in[2], in[3]}}, in[4] | static_cast<u64>(in[5]) << 32);
  for (int i = 0; i < 4; ++i) at<u32>(args, 1)[4 * thread_index() + i] = d.word[i];
}
KERNEL(rounds_1) { words<1>(args); }
KERNEL(rounds_4) { words<4>(args); }
KERNEL(rounds_5) { words<5>(args); }
KERNEL(rounds_7) { words<7>(args); }
KERNEL(rounds_10) { words<10>(args); }
// numbers: seed, first element, token.
KERNEL(of_state) {
  const Draw d = state_draw<10>(args.number[0], args.number[1] + 8 * thread_index(), static_cast<u32>(args.number[2]));
  for (int i = 0; i < 4; ++i) at<u32>(args, 0)[4 * thread_index() + i] = d.word[i];
}
)");

class Random : public OnBoth {};
ON_CPU_AND_GPU(Random);

using Words = std::vector<std::uint32_t>;

TEST_P(Random, PhiloxGivesThePublishedVectors) {
  NEEDS(kPhilox);
  // Random123 1.14, tests/kat_vectors: philox4x32, counter and key, 7 and 10 rounds.
  Words in{0,          0,          0,          0,          0,          0,           //
           0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff,  //
           0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0};
  Words out(12);
  kPhilox.run(GetParam(), "rounds_10", {.threads = 3}, {in, out});
  EXPECT_EQ(out, (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8,  //
                        0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd,  //
                        0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
  kPhilox.run(GetParam(), "rounds_7", {.threads = 3}, {in, out});
  EXPECT_EQ(out, (Words{0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48,  //
                        0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662,  //
                        0x4dfccaba, 0x190a87f0, 0xc47362ba, 0xb6b5242a}));
}

TEST_P(Random, PhiloxGivesTheContractsKnownAnswers) {
  NEEDS(kPhilox);
  Words ten{0, 0, 0, 0, 42, 0, 3, 5, 0, 0, 0x9abcdef0, 0x12345678}, five{7, 0, 0, 0, 42, 0}, out(8);
  kPhilox.run(GetParam(), "rounds_10", {.threads = 2}, {ten, out});
  EXPECT_EQ(out,
            (Words{0x9ceaf053, 0x77f5493b, 0x12bf50ad, 0x5742b3d7, 0x33a78f7c, 0x3cebecd4, 0x93855e01, 0xf418a3f7}));
  out.resize(4);
  kPhilox.run(GetParam(), "rounds_5", {.threads = 1}, {five, out});
  EXPECT_EQ(out, (Words{0x408f28ce, 0x7f26cc4b, 0xc603f7ae, 0xc281befe}));
}

TEST_P(Random, PhiloxAgreesWithAPlainLoopForEveryNumberOfRounds) {
  NEEDS(kPhilox);
  std::mt19937 random(13);
  for (int rounds : {1, 4, 5, 7, 10}) {
    constexpr std::size_t kThreads = 256;
    Words in(6 * kThreads), out(4 * kThreads);
    for (auto& v : in) v = random();
    kPhilox.run(GetParam(), "rounds_" + std::to_string(rounds), {.threads = kThreads}, {in, out});
    for (std::size_t i = 0; i < kThreads; ++i) {
      const std::uint32_t* w = &in[6 * i];
      const auto want = host_philox(rounds, {w[0], w[1], w[2], w[3]}, w[4] | std::uint64_t{w[5]} << 32);
      for (std::size_t j = 0; j < 4; ++j) ASSERT_EQ(out[4 * i + j], want[j]) << rounds << " rounds";
    }
  }
}

TEST_P(Random, AStateElementsDrawFollowsFromItsPlaceSeedAndTokenAlone) {
  NEEDS(kPhilox);
  // Slots past 2^32 elements count in 64 bits.
  for (std::uint64_t element : {std::uint64_t{0}, std::uint64_t{1} << 35, (std::uint64_t{1} << 35) + (7 << 20)})
    for (std::uint32_t token : {0u, 5u}) {
      const std::uint64_t seed = 0x0123456789abcdefu;
      Words out(4 * 64);
      kPhilox.run(GetParam(), "of_state", {.threads = 64}, {out}, {seed, element, token});
      for (std::size_t i = 0; i < 64; ++i) {
        const auto want = host_state_draw(10, seed, element + 8 * i, token);
        for (std::size_t j = 0; j < 4; ++j) ASSERT_EQ(out[4 * i + j], want[j]);
      }
    }
}

}  // namespace
}  // namespace ssmjit
