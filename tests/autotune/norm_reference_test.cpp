// The double reference of the norm against values worked out by hand.
#include <cmath>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "autotune/reference/norm_reference.h"

namespace ssmjit {
namespace {

using testing::DoubleNear;
using testing::ElementsAre;

struct Memory {
  std::vector<float> x{3, 4, 0, 0, 1, 1, 1, 1}, z{0, 0, 0, 0, 2, -2, 2, -2}, weight{1, 2, 1, 1}, bias{0, 0, 5, 0};
  NormArgs args(std::int64_t rows = 2) {
    NormArgs a;
    a.x = contiguous(x.data(), DType::f32, {rows, 4});
    a.z = contiguous(z.data(), DType::f32, {rows, 4});
    a.weight = contiguous(weight.data(), DType::f32, {4});
    a.bias = contiguous(bias.data(), DType::f32, {4});
    return a;
  }
};

Description of(const Norm& norm) { return gated_norm(norm).input(DType::f32).weights(DType::f32).unaligned_rows(); }

TEST(NormReference, DividesByTheRootOfTheMeanSquareOfEachGroup) {
  Memory memory;
  const Description d = of({.channels = 4, .group_size = 2, .eps = 0});
  const double root = std::sqrt(12.5);
  EXPECT_THAT(norm_reference(d, memory.args(), 0, 0, 0, read_host),
              ElementsAre(DoubleNear(3 / root, 1e-12), DoubleNear(8 / root, 1e-12)));
}

TEST(NormReference, AddsEpsToTheMeanAndTheBiasLast) {
  Memory memory;
  const Description d = of({.channels = 4, .eps = 0.25, .has_bias = true});
  const double root = std::sqrt(25.0 / 4 + 0.25);
  EXPECT_THAT(norm_reference(d, memory.args(), 0, 0, 0, read_host),
              ElementsAre(DoubleNear(3 / root, 1e-12), DoubleNear(8 / root, 1e-12), 5, 0));
}

TEST(NormReference, GatesTheInputOrTheResult) {
  Memory memory;
  Description d = of({.channels = 4, .eps = 0, .gate_expr = silu(dsl::z)});
  const double up = 2 / (1 + std::exp(-2.0)), down = -2 / (1 + std::exp(2.0));
  const double root = std::sqrt((up * up + down * down) / 2);
  EXPECT_THAT(norm_reference(d, memory.args(), 1, 0, 0, read_host),
              ElementsAre(DoubleNear(up / root, 1e-12), DoubleNear(2 * down / root, 1e-12),
                          DoubleNear(up / root, 1e-12), DoubleNear(down / root, 1e-12)));
  d.norm->before_gate = true;
  EXPECT_THAT(
      norm_reference(d, memory.args(), 1, 0, 0, read_host),
      ElementsAre(DoubleNear(up, 1e-12), DoubleNear(2 * down, 1e-12), DoubleNear(up, 1e-12), DoubleNear(down, 1e-12)));
}

TEST(NormReference, FindsARowByRequestAndTokenInEitherShape) {
  const Description d = of({.channels = 4, .group_size = 2}).tokens(3);
  const Tensor rows = strided(nullptr, DType::f32, {6, 4}, {10, 1});
  const Tensor requests = strided(nullptr, DType::f32, {2, 3, 4}, {100, 10, 1});
  EXPECT_EQ(norm_offset(d, rows, 1, 2, 1), 5 * 10 + 2);
  EXPECT_EQ(norm_offset(d, requests, 1, 2, 1), 100 + 2 * 10 + 2);
}

}  // namespace
}  // namespace ssmjit
