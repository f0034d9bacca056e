// Matrix products and the exchange of their operands with shared memory, against plain loops.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "autotune/host_numbers.h"
#include "tests/device/test_kernel.h"

namespace ssmjit {
namespace {

const TestKernel kMma("mma", {"device/mma.cuh"}, R"(
// buffer 0: A, row by row; 1: B, row by row; 2: D, row by row.
__device__ u32 pair(const u16* p, int step) { return p[0] | static_cast<u32>(p[step]) << 16; }
template <class T, int kDepth>
__device__ void product(const Args& args) {
  const int g = lane_index() / 4, t = lane_index() % 4;
  const u16* A = at<u16>(args, 0) + kDepth * g + 2 * t;
  const u16* B = at<u16>(args, 1) + 8 * 2 * t + g;
  float* D = at<float>(args, 2) + 8 * g + 2 * t;
  float d[4] = {D[0], D[1], D[64], D[65]};
  if constexpr (kDepth == 16) {
    const u32 a[4] = {pair(A, 1), pair(A + 8 * kDepth, 1), pair(A + 8, 1), pair(A + 8 * kDepth + 8, 1)};
    const u32 b[2] = {pair(B, 8), pair(B + 64, 8)};
    mma_m16n8k16(d, a, b, T{});
  } else {
    const u32 a[2] = {pair(A, 1), pair(A + 8 * kDepth, 1)};
    const u32 b[1] = {pair(B, 8)};
    mma_m16n8k8(d, a, b, T{});
  }
  D[0] = d[0], D[1] = d[1], D[64] = d[2], D[65] = d[3];
}
KERNEL(bf16_k16) { product<bf16, 16>(args); }
KERNEL(f16_k16) { product<f16, 16>(args); }
KERNEL(bf16_k8) { product<bf16, 8>(args); }
KERNEL(f16_k8) { product<f16, 8>(args); }
KERNEL(tf32_k8) {
  const int g = lane_index() / 4, t = lane_index() % 4;
  const float* A = at<float>(args, 0) + 8 * g + t;
  const float* B = at<float>(args, 1) + 8 * t + g;
  float* D = at<float>(args, 2) + 8 * g + 2 * t;
  float d[4] = {D[0], D[1], D[64], D[65]};
  const u32 a[4] = {narrow_tf32(A[0]), narrow_tf32(A[64]), narrow_tf32(A[4]), narrow_tf32(A[68])};
  const u32 b[2] = {narrow_tf32(B[0]), narrow_tf32(B[32])};
  mma_m16n8k8_tf32(d, a, b);
  D[0] = d[0], D[1] = d[1], D[64] = d[2], D[65] = d[3];
}
KERNEL(to_tf32) { at<u32>(args, 1)[thread_index()] = narrow_tf32(at<float>(args, 0)[thread_index()]); }
)");

struct Product {
  const char* entry;
  int depth;
  DType dtype;  // f32 stands for TF32
};
const Product kProducts[] = {{"bf16_k16", 16, DType::bf16},
                             {"f16_k16", 16, DType::f16},
                             {"bf16_k8", 8, DType::bf16},
                             {"f16_k8", 8, DType::f16},
                             {"tf32_k8", 8, DType::f32}};

// A matrix as the kernel reads it, and its values.
struct Operand {
  Operand(DType dtype, const std::vector<double>& from)
      : stored(from.size() * static_cast<std::size_t>(size_bytes(dtype))), values(from.size()) {
    for (std::size_t i = 0; i < from.size(); ++i) {
      encode(dtype, stored.data(), static_cast<std::int64_t>(i), from[i]);
      values[i] = decode(dtype, stored.data(), static_cast<std::int64_t>(i));
    }
  }
  std::vector<std::byte> stored;
  std::vector<double> values;
};

// fp32 to TF32: 10 bits of mantissa, nearest, ties away.
double to_tf32(double v) {
  const int exponent = std::ilogb(v);
  return v == 0 ? 0 : std::ldexp(std::round(std::ldexp(v, 10 - exponent)), exponent - 10);
}

class Mma : public OnBoth {
 protected:
  // The kernel's D, the exact one, and the sum of magnitudes in `scale`.
  void multiply(const Product& p, const std::vector<double>& A, const std::vector<double>& B, std::vector<float>& D,
                std::vector<double>& want, std::vector<double>& scale) {
    Operand a(p.dtype, A), b(p.dtype, B);
    if (p.dtype == DType::f32)
      for (Operand* o : {&a, &b})
        for (double& v : o->values) v = to_tf32(v);
    const auto depth = static_cast<std::size_t>(p.depth);
    want.assign(128, 0);
    scale.assign(128, 0);
    for (std::size_t m = 0; m < 16; ++m)
      for (std::size_t n = 0; n < 8; ++n) {
        double sum = D[8 * m + n], magnitude = std::fabs(sum);
        for (std::size_t k = 0; k < depth; ++k) {
          sum += a.values[depth * m + k] * b.values[8 * k + n];
          magnitude += std::fabs(a.values[depth * m + k] * b.values[8 * k + n]);
        }
        want[8 * m + n] = sum;
        scale[8 * m + n] = magnitude;
      }
    kMma.run(GetParam(), p.entry, {}, {a.stored, b.stored, D});
  }
};
ON_CPU_AND_GPU(Mma);

TEST_P(Mma, IsExactOnSmallIntegers) {
  NEEDS(kMma);
  std::mt19937 random(4);
  std::uniform_int_distribution<int> small(-15, 15);
  for (const Product& p : kProducts) {
    std::vector<double> A(static_cast<std::size_t>(16 * p.depth)), B(static_cast<std::size_t>(8 * p.depth)), want,
        scale;
    std::vector<float> D(128);
    for (double& v : A) v = small(random);
    for (double& v : B) v = small(random);
    for (float& v : D) v = static_cast<float>(100 * small(random));
    multiply(p, A, B, D, want, scale);
    for (std::size_t i = 0; i < D.size(); ++i) ASSERT_EQ(D[i], want[i]) << p.entry << " element " << i;
  }
}

TEST_P(Mma, SumsRandomProductsToFp32) {
  NEEDS(kMma);
  std::mt19937 random(5);
  std::normal_distribution<double> normal;
  for (const Product& p : kProducts)
    for (double size : {1.0, 1e-4, 100.0}) {
      std::vector<double> A(static_cast<std::size_t>(16 * p.depth)), B(static_cast<std::size_t>(8 * p.depth)), want,
          scale;
      std::vector<float> D(128);
      for (double& v : A) v = size * normal(random);
      for (double& v : B) v = normal(random);
      for (float& v : D) v = static_cast<float>(normal(random));
      multiply(p, A, B, D, want, scale);
      for (std::size_t i = 0; i < D.size(); ++i)
        ASSERT_NEAR(D[i], want[i], 2e-6 * scale[i]) << p.entry << " element " << i;
    }
}

TEST_P(Mma, InfinityAndNanReachTheirRowAndColumnOnly) {
  NEEDS(kMma);
  for (const Product& p : kProducts) {
    std::vector<double> A(static_cast<std::size_t>(16 * p.depth), 1), B(static_cast<std::size_t>(8 * p.depth), 2), want,
        scale;
    std::vector<float> D(128, 3);
    A[static_cast<std::size_t>(p.depth * 11 + 2)] = INFINITY;
    B[8 * 5 + 6] = NAN;
    multiply(p, A, B, D, want, scale);
    for (std::size_t i = 0; i < D.size(); ++i) {
      if (i % 8 == 6) {
        ASSERT_TRUE(std::isnan(D[i])) << p.entry << " element " << i;
      } else {
        ASSERT_EQ(D[i], i / 8 == 11 ? INFINITY : static_cast<float>(3 + 2 * p.depth)) << p.entry << " element " << i;
      }
    }
  }
}

TEST_P(Mma, Tf32RoundsToNearestTiesAwayAndKeepsWhatItHolds) {
  NEEDS(kMma);
  std::mt19937 random(6);
  std::vector<float> in(1024);
  std::vector<std::uint32_t> out(in.size());
  for (std::size_t i = 0; i < in.size(); ++i)
    in[i] = std::bit_cast<float>(static_cast<std::uint32_t>((random() & 0x807fffffu) | (1 + random() % 254) << 23));
  in[0] = 1 + 0x1p-11f, in[1] = -1 - 0x1p-11f, in[2] = 1 + 0x1p-10f, in[3] = 0, in[4] = INFINITY, in[5] = -INFINITY;
  in[6] = 1 + 3 * 0x1p-11f, in[7] = std::nextafter(1 + 0x1p-11f, 0.0f);
  kMma.run(GetParam(), "to_tf32", {.threads = 1024}, {in, out});
  for (std::size_t i = 0; i < in.size(); ++i) {
    const double want = std::isinf(in[i]) ? in[i] : to_tf32(in[i]);
    // Past the largest: infinity.
    ASSERT_EQ(std::bit_cast<float>(out[i]), static_cast<float>(want)) << in[i];
  }
}

const TestKernel kMatrix("matrix", {"device/mma.cuh"}, R"(
// buffer 0: 40 rows of 8 16-bit elements; 1: row of each lane's address; 2: the lanes' words.
template <int kMatrices, bool kTransposed>
__device__ void load(const Args& args) {
  __shared__ __align__(16) u16 rows[40][24];  // rows lie apart
  for (int i = thread_index(); i < 320; i += 32) rows[i / 8][8 + i % 8] = at<u16>(args, 0)[i];
  sync_warp();
  u32 word[kMatrices];
  const void* row = &rows[at<u32>(args, 1)[lane_index()]][8];
  if constexpr (kTransposed)
    load_matrix_transposed<kMatrices>(word, row);
  else
    load_matrix<kMatrices>(word, row);
  for (int m = 0; m < kMatrices; ++m) at<u32>(args, 2)[32 * m + lane_index()] = word[m];
}
KERNEL(load_1) { load<1, false>(args); }
KERNEL(load_2) { load<2, false>(args); }
KERNEL(load_4) { load<4, false>(args); }
KERNEL(load_1_transposed) { load<1, true>(args); }
KERNEL(load_2_transposed) { load<2, true>(args); }
KERNEL(load_4_transposed) { load<4, true>(args); }
)");

class Matrix : public OnBoth {};
ON_CPU_AND_GPU(Matrix);

// Which row each lane names: all different, in no order.
std::vector<std::uint32_t> shuffled_rows(std::mt19937& random) {
  std::vector<std::uint32_t> row(40);
  std::iota(row.begin(), row.end(), 0u);
  std::shuffle(row.begin(), row.end(), random);
  row.resize(32);
  return row;
}

TEST_P(Matrix, LoadsGiveEachLaneItsElements) {
  NEEDS(kMatrix);
  std::mt19937 random(7);
  for (int matrices : {1, 2, 4})
    for (bool transposed : {false, true}) {
      std::vector<std::uint16_t> rows(320);
      for (auto& v : rows) v = static_cast<std::uint16_t>(random());
      std::vector<std::uint32_t> row = shuffled_rows(random), word(static_cast<std::size_t>(32 * matrices));
      kMatrix.run(GetParam(), "load_" + std::to_string(matrices) + (transposed ? "_transposed" : ""), {},
                  {rows, row, word});
      for (std::size_t m = 0; m < static_cast<std::size_t>(matrices); ++m)
        for (std::size_t lane = 0; lane < 32; ++lane)
          for (std::size_t half = 0; half < 2; ++half) {
            const std::size_t g = lane / 4, e = 2 * (lane % 4) + half;
            const std::uint16_t want = transposed ? rows[8 * row[8 * m + e] + g] : rows[8 * row[8 * m + g] + e];
            ASSERT_EQ(static_cast<std::uint16_t>(word[32 * m + lane] >> (16 * half)), want)
                << matrices << (transposed ? " transposed" : "") << ", matrix " << m << " lane " << lane;
          }
    }
}

const TestKernel kStoreMatrix("store_matrix", {"device/mma.cuh"}, R"(
// buffer 0: the lanes' words; 1: row of each lane's address; 2: 40 rows of 8 elements, taken into shared memory and
// back.
template <int kMatrices, bool kTransposed>
__device__ void store(const Args& args) {
  __shared__ __align__(16) u16 rows[40][24];
  for (int i = thread_index(); i < 320; i += 32) rows[i / 8][8 + i % 8] = at<u16>(args, 2)[i];
  sync_warp();
  u32 word[kMatrices];
  for (int m = 0; m < kMatrices; ++m) word[m] = at<u32>(args, 0)[32 * m + lane_index()];
  void* row = &rows[at<u32>(args, 1)[lane_index()]][8];
  if constexpr (kTransposed)
    store_matrix_transposed<kMatrices>(row, word);
  else
    store_matrix<kMatrices>(row, word);
  sync_warp();
  for (int i = thread_index(); i < 320; i += 32) at<u16>(args, 2)[i] = rows[i / 8][8 + i % 8];
}
KERNEL(store_1) { store<1, false>(args); }
KERNEL(store_2) { store<2, false>(args); }
KERNEL(store_4) { store<4, false>(args); }
KERNEL(store_1_transposed) { store<1, true>(args); }
KERNEL(store_2_transposed) { store<2, true>(args); }
KERNEL(store_4_transposed) { store<4, true>(args); }
)",
                              90);

TEST_P(Matrix, StoresPutEachLanesElementsBackAndTouchNothingElse) {
  NEEDS(kStoreMatrix);
  std::mt19937 random(8);
  for (int matrices : {1, 2, 4})
    for (bool transposed : {false, true}) {
      std::vector<std::uint16_t> rows(320);
      for (auto& v : rows) v = static_cast<std::uint16_t>(random());
      std::vector<std::uint32_t> row = shuffled_rows(random), word(static_cast<std::size_t>(32 * matrices));
      for (auto& v : word) v = random();
      std::vector<std::uint16_t> want = rows;
      for (std::size_t m = 0; m < static_cast<std::size_t>(matrices); ++m)
        for (std::size_t lane = 0; lane < 32; ++lane)
          for (std::size_t half = 0; half < 2; ++half) {
            const std::size_t g = lane / 4, e = 2 * (lane % 4) + half;
            want[transposed ? 8 * row[8 * m + e] + g : 8 * row[8 * m + g] + e] =
                static_cast<std::uint16_t>(word[32 * m + lane] >> (16 * half));
          }
      kStoreMatrix.run(GetParam(), "store_" + std::to_string(matrices) + (transposed ? "_transposed" : ""), {},
                       {word, row, rows});
      ASSERT_EQ(rows, want) << matrices << (transposed ? " transposed" : "");
    }
}

}  // namespace
}  // namespace ssmjit
