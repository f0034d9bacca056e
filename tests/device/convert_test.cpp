// Conversions, loads and row sums of the update kernel's device operations.
#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "autotune/host_numbers.h"
#include "tests/device/test_kernel.h"

namespace ssmjit {
namespace {

const TestKernel kConvert("convert", {"device/convert.cuh", "device/math.cuh"}, R"(
// One element at a time; number 0: how many. buffer 0: fp32; 1: bf16 and fp16 of each.
KERNEL(narrowing) {
  for (int i = thread_index(); i < static_cast<int>(args.number[0]); i += block_threads()) {
    bf16 b;
    f16 h;
    narrow(at<float>(args, 0)[i], b);
    narrow(at<float>(args, 0)[i], h);
    at<u16>(args, 1)[2 * i] = b.bits;
    at<u16>(args, 1)[2 * i + 1] = h.bits;
  }
}
// buffer 0: 2^16 patterns; 1: as bf16 and as fp16.
KERNEL(widening) {
  for (int i = thread_index(); i < 65536; i += block_threads()) {
    at<float>(args, 1)[2 * i] = widen(bf16{at<u16>(args, 0)[i]});
    at<float>(args, 1)[2 * i + 1] = widen(f16{at<u16>(args, 0)[i]});
  }
}
// buffer 0: pairs; 1: smaller, larger, square root of the first's size, first * first + second.
KERNEL(exact_maths) {
  const int i = thread_index();
  const float a = at<float>(args, 0)[2 * i], b = at<float>(args, 0)[2 * i + 1];
  float* out = at<float>(args, 1) + 4 * i;
  out[0] = min_f32(a, b);
  out[1] = max_f32(a, b);
  out[2] = sqrt_f32(abs_f32(a));
  out[3] = fma_f32(a, a, b);
}
// buffer 0: numbers; 1: exp, log of the size, log1p of the size, tanh.
KERNEL(maths) {
  const int i = thread_index();
  const float v = at<float>(args, 0)[i];
  float* out = at<float>(args, 1) + 4 * i;
  out[0] = exp_f32(v);
  out[1] = log_f32(abs_f32(v));
  out[2] = log1p_f32(abs_f32(v));
  out[3] = tanh_f32(v);
}
)");

const TestKernel kLoads("loads", {"device/memory.cuh"}, R"(
// buffer 0: 16 words a thread; 1: the same, each four by another operation.
KERNEL(copy) {
  const int i = thread_index();
  const u32* in = at<u32>(args, 0) + 16 * i;
  u32* out = at<u32>(args, 1) + 16 * i;
  store_global<true>(out, load_global<true>(in));
  store_global<false>(out + 4, load_global<false>(in + 4));
  u32 two[2];
  load_now(in + 8, two);
  out[8] = two[0], out[9] = two[1];
  u32 one[1];
  load_now(in + 10, one);
  out[10] = one[0];
  float v;
  load_now(reinterpret_cast<const float*>(in + 11), v);
  reinterpret_cast<float*>(out)[11] = v;
  const bf16* half = reinterpret_cast<const bf16*>(in + 12);
  bf16 b[8];
  for (int j = 0; j < 8; ++j) load_now(half + j, b[j]);
  for (int j = 0; j < 8; ++j) reinterpret_cast<bf16*>(out + 12)[j] = b[j];
}
// buffer 0: a number a thread; 1: their sum.
KERNEL(total) { add_global(at<u64>(args, 1), at<u64>(args, 0)[block_threads() * block_x() + thread_index()]); }
)");

const TestKernel kRowSums("row_sums", {"device/warp.cuh"}, R"(
// buffer 0: kRows numbers a thread; 1: a total for each row and group, by the lanes that own them.
template <int kRows, int kLanes>
__device__ void sums(const Args& args) {
  using Sums = RowSums<kRows, kLanes>;
  float v[kRows];
  for (int r = 0; r < kRows; ++r) v[r] = at<float>(args, 0)[kRows * thread_index() + r];
  const int lane = lane_index() % kLanes, group = thread_index() / kLanes;
  Sums::sum(v, lane);
  if (Sums::owner(lane))
    for (int i = 0; i < Sums::owned(); ++i) at<float>(args, 1)[kRows * group + Sums::first_row(lane) + i] += v[i];
}
KERNEL(rows_8_lanes_16) { sums<8, 16>(args); }
KERNEL(rows_4_lanes_32) { sums<4, 32>(args); }
KERNEL(rows_3_lanes_8) { sums<3, 8>(args); }
KERNEL(rows_1_lanes_1) { sums<1, 1>(args); }
)");

class Convert : public OnBoth {};
ON_CPU_AND_GPU(Convert);

std::vector<float> floats(std::size_t count, unsigned seed) {
  std::vector<float> v{0.0f,   -0.0f,        INFINITY, -INFINITY, NAN,     -NAN,   65504,   65519.996f, 65520, -65536,
                       1e-45f, 1.17549e-38f, 5.96e-8f, 2.98e-8f,  6.1e-5f, 3e38f,  3.4e38f, 1,          -1,    0.5f,
                       1.5f,   2049,         2051,     257,       259,     1e-30f, 87,      -87,        -104,  89};
  std::mt19937 random(seed);
  while (v.size() < count / 2) v.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(random())));
  std::normal_distribution<float> normal;
  while (v.size() < count) v.push_back(normal(random) * std::exp2(static_cast<float>(random() % 50) - 30));
  return v;
}

TEST_P(Convert, NarrowingIsToNearestEvenAndNanIs7fff) {
  NEEDS(kConvert);
  std::vector<float> in = floats(20000, 24);
  std::vector<std::uint16_t> out(2 * in.size());
  kConvert.run(GetParam(), "narrowing", {.threads = 128}, {in, out}, {in.size()});
  for (std::size_t i = 0; i < in.size(); ++i)
    for (const auto& [at, dtype] : {std::pair(2 * i, DType::bf16), {2 * i + 1, DType::f16}}) {
      std::uint16_t want = 0x7fff;
      if (!std::isnan(in[i])) encode(dtype, reinterpret_cast<std::byte*>(&want), 0, in[i]);
      ASSERT_EQ(out[at], want) << name(dtype) << " of " << in[i];
    }
}

TEST_P(Convert, WideningEveryPatternIsExact) {
  NEEDS(kConvert);
  std::vector<std::uint16_t> in(65536);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<std::uint16_t>(i);
  std::vector<float> out(2 * in.size());
  kConvert.run(GetParam(), "widening", {.threads = 256}, {in, out});
  for (std::size_t i = 0; i < in.size(); ++i)
    for (const auto& [at, dtype] : {std::pair(2 * i, DType::bf16), {2 * i + 1, DType::f16}}) {
      const double want = decode(dtype, reinterpret_cast<const std::byte*>(in.data()), static_cast<std::int64_t>(i));
      if (std::isnan(want)) {
        ASSERT_TRUE(std::isnan(out[at])) << name(dtype) << " pattern " << i;
      } else {
        ASSERT_EQ(out[at], want) << name(dtype) << " pattern " << i;
        ASSERT_EQ(std::signbit(out[at]), std::signbit(want)) << name(dtype) << " pattern " << i;
      }
    }
}

// The other where one is NaN, signalling or not (the C library's fmin differs there).
float smaller(float a, float b) { return std::isnan(a) ? b : std::isnan(b) || a < b ? a : b; }
float larger(float a, float b) { return std::isnan(a) ? b : std::isnan(b) || a > b ? a : b; }
bool same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

TEST_P(Convert, ScalarMathsIsAsItsHeaderSays) {
  NEEDS(kConvert);
  std::vector<float> in = floats(1024, 25), out(4 * 512);
  kConvert.run(GetParam(), "exact_maths", {.threads = 512}, {in, out});
  for (std::size_t i = 0; i < 512; ++i) {
    const float a = in[2 * i], b = in[2 * i + 1];
    ASSERT_TRUE(same(out[4 * i], smaller(a, b))) << a << ", " << b;
    ASSERT_TRUE(same(out[4 * i + 1], larger(a, b))) << a << ", " << b;
    ASSERT_TRUE(same(out[4 * i + 2], std::sqrt(std::fabs(a)))) << a;
    ASSERT_TRUE(same(out[4 * i + 3], std::fma(a, a, b))) << a << ", " << b;
  }
  in.resize(512);
  kConvert.run(GetParam(), "maths", {.threads = 512}, {in, out});
  const auto near = [](float got, double want) {
    if (std::isnan(want)) return std::isnan(got);
    if (std::fabs(want) > 3.402823466e38) return std::isinf(got) && std::signbit(got) == std::signbit(want);
    return std::fabs(got - want) <= 4 * ulp(DType::f32, want);
  };
  for (std::size_t i = 0; i < in.size(); ++i) {
    const double v = in[i], size = std::fabs(v);
    ASSERT_TRUE(near(out[4 * i], std::exp(v))) << v << ": " << out[4 * i];
    ASSERT_TRUE(near(out[4 * i + 1], std::log(size))) << v << ": " << out[4 * i + 1];
    ASSERT_TRUE(near(out[4 * i + 2], std::log1p(size))) << v << ": " << out[4 * i + 2];
    ASSERT_TRUE(near(out[4 * i + 3], std::tanh(v))) << v << ": " << out[4 * i + 3];
  }
}

class Memory : public OnBoth {};
ON_CPU_AND_GPU(Memory);

TEST_P(Memory, LoadsAndStoresOfEveryWidthMoveTheBytesAsTheyAre) {
  NEEDS(kLoads);
  std::mt19937 random(26);
  std::vector<std::uint32_t> in(16 * 64), out(in.size());
  for (auto& v : in) v = static_cast<std::uint32_t>(random());
  kLoads.run(GetParam(), "copy", {.threads = 64}, {in, out});
  EXPECT_EQ(out, in);
}

TEST_P(Memory, AtomicSumsLoseNothing) {
  NEEDS(kLoads);
  std::vector<std::uint64_t> in(4 * 128), sum{1};
  std::uint64_t want = 1;
  for (std::size_t i = 0; i < in.size(); ++i) want += in[i] = (std::uint64_t{i} << 33) + i;
  kLoads.run(GetParam(), "total", {.threads = 128, .blocks = 4}, {in, sum});
  EXPECT_EQ(sum[0], want);
}

TEST_P(Memory, RowSumsReachTheirOwnersOnce) {
  NEEDS(kRowSums);
  std::mt19937 random(27);
  struct Case {
    const char* entry;
    std::size_t rows, lanes;
  };
  for (const Case& c : {Case{"rows_8_lanes_16", 8, 16}, Case{"rows_4_lanes_32", 4, 32}, Case{"rows_3_lanes_8", 3, 8},
                        Case{"rows_1_lanes_1", 1, 1}}) {
    constexpr std::size_t kThreads = 64;
    std::vector<float> in(kThreads * c.rows), out(kThreads / c.lanes * c.rows), want(out.size());
    for (std::size_t i = 0; i < in.size(); ++i) {
      in[i] = static_cast<float>(static_cast<int>(random() % 2001) - 1000);  // sums are exact
      want[i / c.rows / c.lanes * c.rows + i % c.rows] += in[i];
    }
    kRowSums.run(GetParam(), c.entry, {.threads = kThreads}, {in, out});
    EXPECT_EQ(out, want) << c.entry;
  }
}

}  // namespace
}  // namespace ssmjit
