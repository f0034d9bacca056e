#include "autotune/host_numbers.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include <gtest/gtest.h>

namespace ssmjit {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double of_bits(DType dtype, std::uint16_t bits) {
  std::byte raw[2];
  std::memcpy(raw, &bits, 2);
  return decode(dtype, raw, 0);
}

std::uint16_t to_bits(DType dtype, double value) {
  std::byte raw[2];
  encode(dtype, raw, 0, value);
  std::uint16_t bits;
  std::memcpy(&bits, raw, 2);
  return bits;
}

class Sixteen : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Dtypes, Sixteen, testing::Values(DType::bf16, DType::f16),
                         [](const auto& info) { return name(info.param); });

TEST_P(Sixteen, EveryBitPatternRoundTrips) {
  for (int i = 0; i < 65536; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    const double value = of_bits(GetParam(), bits);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(of_bits(GetParam(), to_bits(GetParam(), value))));
      continue;
    }
    ASSERT_EQ(to_bits(GetParam(), value), bits) << value;
    ASSERT_EQ(rounded(GetParam(), value), value);
  }
}

TEST_P(Sixteen, ValuesGrowWithTheirBits) {
  const std::uint16_t infinity = GetParam() == DType::bf16 ? 0x7f80 : 0x7c00;
  for (std::uint16_t bits = 0; bits < infinity; ++bits)
    ASSERT_LT(of_bits(GetParam(), bits), of_bits(GetParam(), static_cast<std::uint16_t>(bits + 1)));
  EXPECT_EQ(of_bits(GetParam(), infinity), kInfinity);
}

TEST_P(Sixteen, TiesGoToTheEvenNeighbourAndAllElseToTheNearest) {
  const std::uint16_t largest = GetParam() == DType::bf16 ? 0x7f7f : 0x7bff;
  for (std::uint16_t bits = 0; bits < largest; ++bits) {
    const double low = of_bits(GetParam(), bits), high = of_bits(GetParam(), static_cast<std::uint16_t>(bits + 1));
    const double middle = (low + high) / 2;
    const auto even = static_cast<std::uint16_t>(bits + (bits & 1));
    ASSERT_EQ(to_bits(GetParam(), middle), even) << middle;
    ASSERT_EQ(to_bits(GetParam(), std::nextafter(middle, low)), bits);
    ASSERT_EQ(to_bits(GetParam(), std::nextafter(middle, high)), bits + 1);
    ASSERT_EQ(to_bits(GetParam(), -middle), even | 0x8000);
  }
}

TEST_P(Sixteen, OverflowIsInfinityFromHalfwayPastTheLargestOn) {
  const bool bfloat = GetParam() == DType::bf16;
  const std::uint16_t largest = bfloat ? 0x7f7f : 0x7bff;
  const double value = of_bits(GetParam(), largest);
  const double half_gap = (value - of_bits(GetParam(), static_cast<std::uint16_t>(largest - 1))) / 2;
  EXPECT_EQ(rounded(GetParam(), std::nextafter(value + half_gap, 0)), value);
  EXPECT_EQ(rounded(GetParam(), value + half_gap), kInfinity);
  EXPECT_EQ(rounded(GetParam(), -value - half_gap), -kInfinity);
  EXPECT_EQ(rounded(GetParam(), 1e300), kInfinity);
  EXPECT_EQ(to_bits(GetParam(), kInfinity), largest + 1);
  EXPECT_EQ(to_bits(GetParam(), -kInfinity), (largest + 1) | 0x8000);
}

TEST_P(Sixteen, SubnormalsKeepTheGapOfTheSmallestNormal) {
  const double smallest = of_bits(GetParam(), 1);
  EXPECT_EQ(smallest, GetParam() == DType::bf16 ? 0x1p-133 : 0x1p-24);
  EXPECT_EQ(ulp(GetParam(), 0), smallest);
  EXPECT_EQ(ulp(GetParam(), smallest), smallest);
  EXPECT_EQ(rounded(GetParam(), smallest * 0.5), 0) << "a tie, and 0 is even";
  EXPECT_EQ(rounded(GetParam(), smallest * 0.75), smallest);
  EXPECT_EQ(rounded(GetParam(), smallest * 1.5), 2 * smallest);
  EXPECT_TRUE(std::signbit(rounded(GetParam(), -smallest / 4))) << "the sign stays";
}

TEST_P(Sixteen, SignsOfZeroAndNanStay) {
  EXPECT_EQ(to_bits(GetParam(), 0.0), 0);
  EXPECT_EQ(to_bits(GetParam(), -0.0), 0x8000);
  EXPECT_TRUE(std::isnan(rounded(GetParam(), std::numeric_limits<double>::quiet_NaN())));
  EXPECT_TRUE(std::isnan(of_bits(GetParam(), to_bits(GetParam(), std::numeric_limits<double>::quiet_NaN()))));
}

TEST(HostNumbers, KnownValuesHaveTheirBits) {
  EXPECT_EQ(to_bits(DType::bf16, 1.0), 0x3f80);
  EXPECT_EQ(to_bits(DType::bf16, -2.5), 0xc020);
  EXPECT_EQ(to_bits(DType::f16, 1.0), 0x3c00);
  EXPECT_EQ(to_bits(DType::f16, 65504.0), 0x7bff);
  EXPECT_EQ(to_bits(DType::f16, 65519.0), 0x7bff);
  EXPECT_EQ(to_bits(DType::f16, 65520.0), 0x7c00);
  EXPECT_EQ(to_bits(DType::f16, 0x1p-14), 0x0400);
  EXPECT_EQ(to_bits(DType::f16, 1.0 / 3), 0x3555);
}

TEST(HostNumbers, Fp32IsTheMachinesOwn) {
  std::mt19937_64 random(7);
  for (int i = 0; i < 200000; ++i) {
    const double value = std::bit_cast<double>((random() & 0x800fffffffffffffull) | (0x370 + random() % 0x100) << 52);
    ASSERT_EQ(rounded(DType::f32, value), static_cast<double>(static_cast<float>(value))) << value;
  }
  std::byte raw[8];
  encode(DType::f32, raw, 1, 0.1);
  EXPECT_EQ(decode(DType::f32, raw, 1), static_cast<double>(0.1f));
}

TEST(HostNumbers, UlpIsTheGapAboveAMagnitude) {
  EXPECT_EQ(ulp(DType::f32, 1.0), 0x1p-23);
  EXPECT_EQ(ulp(DType::f32, 0.999), 0x1p-24);
  EXPECT_EQ(ulp(DType::bf16, 1.0), 0x1p-7);
  EXPECT_EQ(ulp(DType::bf16, -3.0), 0x1p-6);
  EXPECT_EQ(ulp(DType::f16, 1.0), 0x1p-10);
}

TEST(HostNumbers, EveryFp8BitPatternRoundTripsAndPastTheLargestIs448) {
  for (int bits = 0; bits < 256; ++bits) {
    const std::byte one{static_cast<unsigned char>(bits)};
    const double v = decode(DType::f8, &one, 0);
    if ((bits & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(v));
      continue;
    }
    std::byte again{};
    encode(DType::f8, &again, 0, v);
    EXPECT_EQ(again, one) << v;
    EXPECT_EQ(rounded(DType::f8, v), v);
  }
  EXPECT_EQ(rounded(DType::f8, 1e9), 448);
  EXPECT_EQ(rounded(DType::f8, -std::numeric_limits<double>::infinity()), -448);
  EXPECT_EQ(rounded(DType::f8, 17.0), 16) << "a tie goes to even";
  EXPECT_EQ(rounded(DType::f8, 0x1p-10), 0) << "half of the smallest";
  EXPECT_EQ(ulp(DType::f8, 17.0), 2);
}

TEST(HostNumbers, Int8IsSymmetric) {
  std::byte one{};
  encode(DType::i8, &one, 0, -1e6);
  EXPECT_EQ(decode(DType::i8, &one, 0), -127);
  encode(DType::i8, &one, 0, 2.5);
  EXPECT_EQ(decode(DType::i8, &one, 0), 2);
  EXPECT_EQ(ulp(DType::i8, 90.0), 1);
}

}  // namespace
}  // namespace ssmjit
