// Rounding to every storage format, to nearest and stochastically, against arithmetic in double.
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <ssmjit/device.h>

#include "autotune/reference/philox.h"
#include "tests/device/test_kernel.h"

namespace ssmjit {
namespace {

const TestKernel kRounding("rounding", {"rounding.cuh"}, R"(
// Packed words of neighbouring elements; number 0: how many elements. buffer 0: elements; 1: words.
template <class T>
__device__ void nearest(const Args& args) {
  constexpr int kN = kPerWord<T>;
  const int words = static_cast<int>(args.number[0]) / kN;
  for (int w = thread_index(); w < words; w += block_threads()) {
    float v[kN];
    for (int i = 0; i < kN; ++i) v[i] = at<float>(args, 0)[kN * w + i];
    at<u32>(args, 1)[w] = pack_word(v, T{});
  }
}
KERNEL(nearest_bf16) { nearest<bf16>(args); }
KERNEL(nearest_fp16) { nearest<f16>(args); }
KERNEL(nearest_e4m3) { nearest<e4m3>(args); }
KERNEL(nearest_e5m2) { nearest<e5m2>(args); }
KERNEL(nearest_int8) { nearest<i8>(args); }
KERNEL(nearest_int16) { nearest<i16>(args); }
// The software of fp8 also where hardware does it.
KERNEL(software_fp8) {
  for (int i = thread_index(); i < static_cast<int>(args.number[0]); i += block_threads()) {
    const float v = at<float>(args, 0)[i];
    at<u32>(args, 1)[i] = nearest_e4m3(v) | nearest_e5m2(v) << 8;
  }
}
// buffer 0: words; 1: elements; number 0: words.
template <class T>
__device__ void widening(const Args& args) {
  constexpr int kN = kPerWord<T>;
  for (int w = thread_index(); w < static_cast<int>(args.number[0]); w += block_threads()) {
    float v[kN];
    unpack_word(at<u32>(args, 0)[w], v, T{});
    for (int i = 0; i < kN; ++i) at<float>(args, 1)[kN * w + i] = v[i];
  }
}
KERNEL(widen_bf16) { widening<bf16>(args); }
KERNEL(widen_fp16) { widening<f16>(args); }
KERNEL(widen_e4m3) { widening<e4m3>(args); }
KERNEL(widen_e5m2) { widening<e5m2>(args); }
KERNEL(widen_int8) { widening<i8>(args); }
KERNEL(widen_int16) { widening<i16>(args); }
)");

const TestKernel kStochastic("stochastic", {"rounding.cuh"}, R"(
// number 0: how many elements, a multiple of 8; 1: the seed; 2: the token. buffer 0: elements; 1: words.
template <class T>
__device__ void eights(const Args& args) {
  constexpr int kWords = 8 / kPerWord<T>;
  for (int e = 8 * thread_index(); e < static_cast<int>(args.number[0]); e += 8 * block_threads()) {
    float v[8];
    for (int i = 0; i < 8; ++i) v[i] = at<float>(args, 0)[e + i];
    u32 word[kWords];
    round_stochastic(v, state_draw<10>(args.number[1], e, static_cast<u32>(args.number[2])), word, T{}, probe_of(v));
    for (int w = 0; w < kWords; ++w) at<u32>(args, 1)[e / kPerWord<T> + w] = word[w];
  }
}
KERNEL(stochastic_to_bf16) { eights<bf16>(args); }
KERNEL(stochastic_to_fp16) { eights<f16>(args); }
KERNEL(stochastic_to_e4m3) { eights<e4m3>(args); }
KERNEL(stochastic_to_int8) { eights<i8>(args); }
KERNEL(stochastic_to_int16) { eights<i16>(args); }
// The software of all formats, an element and its random bits at a time. buffer 2: random bits; 1: five words an
// element.
KERNEL(software) {
  for (int i = thread_index(); i < static_cast<int>(args.number[0]); i += block_threads()) {
    const float v = at<float>(args, 0)[i];
    const u32 random = at<u32>(args, 2)[i];
    u32* out = at<u32>(args, 1) + 5 * i;
    out[0] = stochastic_bf16(v, random);
    out[1] = stochastic_f16(v, random);
    out[2] = stochastic_e4m3(v, random);
    out[3] = static_cast<u32>(stochastic_int<127>(v, random));
    out[4] = static_cast<u32>(stochastic_int<32767>(v, random));
  }
}
// The hardware's words beside the software's for the same random bits; number 0: elements; buffer 0: elements;
// 1: hardware, 3 words a pair (e4m3: one pair and its mirror); 2: random bits, one word a pair; 3: software.
KERNEL(hardware_and_software) {
  for (int i = thread_index(); i < static_cast<int>(args.number[0]) / 2; i += block_threads()) {
    const float a = at<float>(args, 0)[2 * i], b = at<float>(args, 0)[2 * i + 1];
    const float four[4] = {a, b, b, a};
    const u32 bits = at<u32>(args, 2)[i];
    u32* hard = at<u32>(args, 1) + 3 * i;
    u32* soft = at<u32>(args, 3) + 3 * i;
    hard[0] = stochastic_pack_bf16(a, b, bits);
    hard[1] = stochastic_pack_f16(a, b, bits);
    hard[2] = stochastic_pack_e4m3(four, bits);
    soft[0] = stochastic_bf16(a, bits) | stochastic_bf16(b, bits >> 16) << 16;
    soft[1] = stochastic_f16(a, bits) | stochastic_f16(b, bits >> 16) << 16;
    soft[2] = stochastic_e4m3(a, bits) | stochastic_e4m3(b, reverse_bits(bits) >> 16) << 8 |
              stochastic_e4m3(b, bits >> 16) << 16 | stochastic_e4m3(a, reverse_bits(bits)) << 24;
  }
}
)");

// A storage format by its numbers, and what its contract says of the ends.
struct Format {
  std::string name;
  int bits;
  bool integer;
  int mantissa;       // bits kept
  int least;          // exponent of the smallest normal number
  double largest;     // finite
  bool saturates;     // past the largest; infinity otherwise
  int random;         // bits of a stochastic rounding
  std::uint32_t nan;  // pattern
};
const Format kBf16{"bf16", 16, false, 7, -126, 0x1.fep127, false, 16, 0x7fff};
const Format kFp16{"fp16", 16, false, 10, -14, 65504, false, 13, 0x7fff};
const Format kE4m3{"e4m3", 8, false, 3, -6, 448, true, 16, 0x7f};
const Format kE5m2{"e5m2", 8, false, 2, -14, 57344, true, 0, 0x7f};
const Format kInt8{"int8", 8, true, 0, 0, 127, true, 16, 0};
const Format kInt16{"int16", 16, true, 0, 0, 32767, true, 16, 0};
const Format kFormats[] = {kBf16, kFp16, kE4m3, kE5m2, kInt8, kInt16};

// The gap between the format's numbers at |v|.
double gap(const Format& f, double v) {
  if (f.integer) return 1;
  const int exponent = v == 0 ? f.least : std::max(std::ilogb(v), f.least);
  return std::ldexp(1.0, exponent - f.mantissa);
}

// The pattern of a number that the format holds, or of one past its largest.
std::uint32_t pattern(const Format& f, double v) {
  if (f.integer) return static_cast<std::uint32_t>(static_cast<std::int32_t>(v)) & ((1u << f.bits) - 1);
  const std::uint32_t sign = std::signbit(v) ? 1u << (f.bits - 1) : 0;
  const double size = std::fabs(v);
  const std::uint32_t fields = (1u << (f.bits - 1)) - 1;
  if (std::isinf(v)) return sign | (fields >> f.mantissa << f.mantissa);
  const int exponent = size == 0 ? f.least : std::max(std::ilogb(size), f.least);
  const auto fraction = static_cast<std::uint32_t>(std::ldexp(size, f.mantissa - exponent));  // with the hidden bit
  return sign | ((static_cast<std::uint32_t>(exponent - f.least) << f.mantissa) + fraction);
}

double at_the_ends(const Format& f, double v) {
  if (std::fabs(v) <= f.largest) return v;
  return std::copysign(f.saturates ? f.largest : INFINITY, v);
}

std::uint32_t host_nearest(const Format& f, float v) {
  if (std::isnan(v)) return f.nan;
  if (std::isinf(v)) return pattern(f, at_the_ends(f, v));
  const double unit = gap(f, v);
  return pattern(f, at_the_ends(f, std::nearbyint(v / unit) * unit));  // the quotient and the product are exact
}

std::uint32_t host_stochastic(const Format& f, float v, std::uint32_t random) {
  if (std::isnan(v)) return f.nan;
  if (std::isinf(v)) return pattern(f, at_the_ends(f, v));
  const double range = std::ldexp(1.0, f.random);
  const double r = static_cast<double>(random & ((1u << f.random) - 1)) / range;
  const double unit = gap(f, v), steps = v / unit;
  if (f.integer) {
    if (std::fabs(v) > f.largest) return pattern(f, at_the_ends(f, v));
    return pattern(f, at_the_ends(f, std::floor(std::floor(steps * range) / range + r)));
  }
  const double size = std::fabs(steps), cut = std::floor(size * range) / range;
  return pattern(f, at_the_ends(f, std::copysign(std::floor(cut + r) * unit, v)));
}

// What a pattern stands for.
double value(const Format& f, std::uint32_t bits) {
  if (f.integer) return f.bits == 8 ? static_cast<std::int8_t>(bits) : static_cast<std::int16_t>(bits);
  const std::uint32_t fields = bits & ((1u << (f.bits - 1)) - 1);
  const std::uint32_t exponent = fields >> f.mantissa, fraction = fields & ((1u << f.mantissa) - 1);
  const std::uint32_t top = ((1u << (f.bits - 1)) - 1) >> f.mantissa;
  double size;
  if (f.name == "e4m3" ? fields == 0x7f : exponent == top && fraction != 0)
    return std::numeric_limits<double>::quiet_NaN();
  if (f.name != "e4m3" && exponent == top)
    size = INFINITY;
  else if (exponent == 0)
    size = std::ldexp(fraction, f.least - f.mantissa);
  else
    size = std::ldexp((1u << f.mantissa) + fraction, f.least + static_cast<int>(exponent) - 1 - f.mantissa);
  return (bits >> (f.bits - 1) & 1) != 0 ? -size : size;
}

// fp32 numbers at which conversions go wrong, and random ones of every size; a multiple of 8 of them.
std::vector<float> trying_numbers(const Format& f, unsigned seed) {
  std::vector<float> v;
  const auto both = [&](double x) {
    for (const double s : {x, -x}) {
      const auto near = static_cast<float>(s);
      for (const float y : {near, std::nextafter(near, 0.0f), std::nextafter(near, 2 * near)}) v.push_back(y);
    }
  };
  for (double x :
       {0.0,     1e-45,   1e-38, 1.0,   65504.0, 65519.0, 65520.0, 65535.0, 65536.0, 448.0,        464.0, 480.0,
        57344.0, 61440.0, 127.0, 127.5, 128.0,   32767.0, 32767.5, 32768.0, 1e6,     2147483648.0, 1e20})
    both(x);
  both(std::numeric_limits<float>::max());
  both(std::numeric_limits<float>::min());
  both(f.largest);
  both(f.largest + gap(f, f.largest) / 2);
  for (const float x : {INFINITY, -INFINITY, NAN, -NAN, std::bit_cast<float>(0x7f800001u),
                        std::bit_cast<float>(0xffffffffu), 0.0f, -0.0f})
    v.push_back(x);
  std::mt19937 random(seed);
  // Numbers of the format and halves, quarters and three quarters of the way to the next.
  for (int i = 0; i < 600; ++i) {
    const double x = value(f, random() & ((1u << f.bits) - 1));
    if (!std::isfinite(x)) continue;
    for (double part : {0.0, 0.25, 0.5, 0.75}) both(x + part * gap(f, x));
  }
  for (int i = 0; i < 4000; ++i) v.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(random())));
  std::normal_distribution<float> normal;
  for (int i = 0; i < 4000; ++i)
    v.push_back(
        static_cast<float>(normal(random) * std::fmin(f.largest, std::exp2(static_cast<int>(random() % 40) - 30))));
  while (v.size() % 8 != 0) v.push_back(1);
  return v;
}

std::uint32_t element(const Format& f, const std::vector<std::uint32_t>& words, std::size_t i) {
  const std::size_t per_word = 32 / static_cast<std::size_t>(f.bits);
  return words[i / per_word] >> (static_cast<std::size_t>(f.bits) * (i % per_word)) & ((1u << f.bits) - 1);
}

class Rounding : public OnBoth {};
ON_CPU_AND_GPU(Rounding);

TEST_P(Rounding, ToNearestIsThatOfDoubleArithmetic) {
  NEEDS(kRounding);
  for (const Format& f : kFormats) {
    std::vector<float> in = trying_numbers(f, 14);
    std::vector<std::uint32_t> out(in.size() * static_cast<std::size_t>(f.bits) / 32);
    kRounding.run(GetParam(), "nearest_" + f.name, {.threads = 128}, {in, out}, {in.size()});
    for (std::size_t i = 0; i < in.size(); ++i)
      ASSERT_EQ(element(f, out, i), host_nearest(f, in[i])) << f.name << " of " << in[i];
  }
}

TEST_P(Rounding, Fp8InSoftwareIsThatOfDoubleArithmetic) {
  NEEDS(kRounding);
  for (const Format& f : {kE4m3, kE5m2}) {
    std::vector<float> in = trying_numbers(f, 15);
    std::vector<std::uint32_t> out(in.size());
    kRounding.run(GetParam(), "software_fp8", {.threads = 128}, {in, out}, {in.size()});
    for (std::size_t i = 0; i < in.size(); ++i)
      ASSERT_EQ(out[i], host_nearest(kE4m3, in[i]) | host_nearest(kE5m2, in[i]) << 8) << in[i];
  }
}

TEST_P(Rounding, WideningEveryPatternIsExact) {
  NEEDS(kRounding);
  for (const Format& f : kFormats) {
    const std::size_t patterns = std::size_t{1} << f.bits, per_word = 32 / static_cast<std::size_t>(f.bits);
    std::vector<std::uint32_t> in(patterns / per_word);
    std::vector<float> out(patterns);
    for (std::size_t i = 0; i < patterns; ++i)
      in[i / per_word] |= static_cast<std::uint32_t>(i) << (static_cast<std::size_t>(f.bits) * (i % per_word));
    kRounding.run(GetParam(), "widen_" + f.name, {.threads = 128}, {in, out}, {in.size()});
    for (std::size_t i = 0; i < patterns; ++i) {
      const double want = value(f, static_cast<std::uint32_t>(i));
      if (std::isnan(want)) {
        ASSERT_TRUE(std::isnan(out[i])) << f.name << " pattern " << i;
      } else {
        ASSERT_EQ(out[i], want) << f.name << " pattern " << i;
        ASSERT_EQ(std::signbit(out[i]), std::signbit(want)) << f.name << " pattern " << i;
      }
    }
  }
}

class StochasticRounding : public OnBoth {};
ON_CPU_AND_GPU(StochasticRounding);

const Format kStochasticFormats[] = {kBf16, kFp16, kE4m3, kInt8, kInt16};

TEST_P(StochasticRounding, AddsTheRandomBitsBelowTheLastKeptOne) {
  NEEDS(kStochastic);
  std::mt19937 random(16);
  for (const Format& numbers : kStochasticFormats) {
    std::vector<float> in = trying_numbers(numbers, 17);
    std::vector<std::uint32_t> bits(in.size()), out(5 * in.size());
    for (std::size_t i = 0; i < bits.size(); ++i)
      bits[i] = i % 5 == 0 ? 0u : i % 5 == 1 ? ~0u : static_cast<std::uint32_t>(random());
    kStochastic.run(GetParam(), "software", {.threads = 128}, {in, out, bits}, {in.size()});
    for (std::size_t i = 0; i < in.size(); ++i)
      for (std::size_t j = 0; j < 5; ++j) {
        const Format& f = kStochasticFormats[j];
        ASSERT_EQ(out[5 * i + j] & ((1u << f.bits) - 1), host_stochastic(f, in[i], bits[i]))
            << f.name << " of " << in[i] << " with " << bits[i];
      }
  }
}

TEST_P(StochasticRounding, LeavesWhatTheFormatHoldsAsItIsForAnyBits) {
  NEEDS(kStochastic);
  for (std::size_t j = 0; j < 5; ++j) {
    const Format& f = kStochasticFormats[j];
    std::vector<float> in;
    std::vector<std::uint32_t> want;
    for (std::uint32_t i = 0; i < 1u << f.bits; ++i) {
      const double x = value(f, i);
      if (std::isnan(x) || (f.integer && std::fabs(x) > f.largest)) continue;
      in.push_back(static_cast<float>(x));
      want.push_back(i);
    }
    std::vector<std::uint32_t> out(5 * in.size());
    for (std::uint32_t random : {0u, 0xffffffffu, 0x55555555u}) {
      std::vector<std::uint32_t> bits(in.size(), random);
      kStochastic.run(GetParam(), "software", {.threads = 256}, {in, out, bits}, {in.size()});
      for (std::size_t i = 0; i < in.size(); ++i)
        ASSERT_EQ(out[5 * i + j] & ((1u << f.bits) - 1), want[i]) << f.name << " of " << in[i];
    }
  }
}

TEST_P(StochasticRounding, EightElementsShareADrawAsTheContractSays) {
  NEEDS(kStochastic);
  constexpr std::uint64_t kSeed = 0xfedcba9876543210u, kToken = 3;
  for (const Format& f : kStochasticFormats) {
    std::vector<float> in = trying_numbers(f, 18);
    // Eights of ordinary numbers, of all that are subnormal in fp16 too, and with one among them that is not.
    std::mt19937 random_numbers(22);
    std::normal_distribution<float> normal;
    for (int i = 0; i < 1760; ++i) {
      const float size = std::ldexp(1.0f, i % 44 - 27);
      for (int j = 0; j < 8; ++j) {
        const float v = normal(random_numbers);
        in.push_back(size * (v + std::copysign(0.5f, v)));
      }
      const float special[] = {NAN,      -INFINITY, 0.0f,     -0.0f,   0x1p-15f,       0x1.fffffep-15f,
                               65503.9f, -65504.0f, 65535.9f, 0x1p17f, 0x1.fffffep127f};
      if (i % 3 == 0) in[in.size() - 1 - random_numbers() % 8] = special[random_numbers() % std::size(special)];
    }
    std::vector<std::uint32_t> out(in.size() * static_cast<std::size_t>(f.bits) / 32);
    kStochastic.run(GetParam(), "stochastic_to_" + f.name, {.threads = 128}, {in, out}, {in.size(), kSeed, kToken});
    for (std::size_t i = 0; i < in.size(); ++i) {
      const auto draw = host_state_draw(10, kSeed, i, kToken);
      std::uint32_t random = draw[i % 8 / 2] >> (16 * (i % 2));
      if (f.name == "e4m3") {
        const std::uint32_t half = draw[i % 8 / 4] >> (i % 4 >= 2 ? 16 : 0) & 0xffff;
        random = half;
        if (i % 2 == 1) {
          random = 0;
          for (int b = 0; b < 16; ++b) random |= (half >> b & 1) << (15 - b);
        }
      }
      ASSERT_EQ(element(f, out, i), host_stochastic(f, in[i], random)) << f.name << " element " << i << ", " << in[i];
    }
  }
}

// Over the elements that a format does not hold: the mean error, in gaps, against its standard error.
TEST_P(StochasticRounding, IsUnbiasedAndRoundsAThirdOfTheElementsUnlikeNearest) {
  NEEDS(kStochastic);
  constexpr std::size_t kCount = 1 << 17;
  std::mt19937 random(19);
  std::normal_distribution<double> normal;
  for (const Format& f : kStochasticFormats) {
    // Normal numbers, and for floating point also subnormal ones.
    for (double size : {f.integer ? f.largest / 8 : 1.0, f.integer ? 0.4 : std::ldexp(0.3, f.least)}) {
      std::vector<float> in(kCount);
      for (float& v : in) v = static_cast<float>(size * normal(random));
      std::vector<std::uint32_t> out(kCount * static_cast<std::size_t>(f.bits) / 32), again(out.size()),
          other(out.size());
      const std::string entry = "stochastic_to_" + f.name;
      kStochastic.run(GetParam(), entry, {.threads = 256}, {in, out}, {kCount, 20, 0});
      kStochastic.run(GetParam(), entry, {.threads = 64}, {in, again}, {kCount, 20, 0});
      kStochastic.run(GetParam(), entry, {.threads = 256}, {in, other}, {kCount, 21, 0});
      EXPECT_EQ(out, again) << f.name << ": the launch shape changed the result";
      EXPECT_NE(out, other) << f.name << ": the seed did not";
      double sum = 0, squares = 0;
      std::size_t rounded = 0, unlike = 0;
      for (std::size_t i = 0; i < kCount; ++i) {
        const double unit = gap(f, in[i]), error = (value(f, element(f, out, i)) - in[i]) / unit;
        if (std::fabs(in[i]) >= f.largest || value(f, host_nearest(f, in[i])) == in[i]) continue;
        ASSERT_LT(std::fabs(error), 1) << f.name << " of " << in[i];
        sum += error;
        squares += error * error;
        ++rounded;
        unlike += element(f, out, i) != host_nearest(f, in[i]);
      }
      ASSERT_GT(rounded, 1000u) << f.name;
      const auto n = static_cast<double>(rounded);
      // fp16's 13 bits cut off up to 2^-13 of a gap where more bits than these are dropped.
      const double cut = std::ldexp(1.0, -f.random);
      EXPECT_LT(std::fabs(sum / n), 4 * std::sqrt(squares) / n + cut) << f.name << " at " << size;
      if (!f.integer || size > 1) {
        EXPECT_NEAR(static_cast<double>(unlike) / n, 0.25, 0.1) << f.name << " at " << size;
      }
    }
  }
}

TEST_P(StochasticRounding, HardwareGivesTheSoftwaresBits) {
  NEEDS(kStochastic);
  if (GetParam() == Where::cpu) GTEST_SKIP() << "cvt.rs is the GPU's";
  if (const Arch arch = device(0).arch(); arch.text() != "sm_100a" && arch.text() != "sm_103a")
    GTEST_SKIP() << "cvt.rs is of sm_100a and sm_103a; the device is " << arch.text();
  std::mt19937 random(22);
  for (const Format& f : {kBf16, kFp16, kE4m3}) {
    std::vector<float> in = trying_numbers(f, 23);
    std::vector<std::uint32_t> bits(in.size() / 2), hardware(3 * bits.size()), software(hardware.size());
    for (auto& b : bits) b = static_cast<std::uint32_t>(random());
    kStochastic.run(GetParam(), "hardware_and_software", {.threads = 128}, {in, hardware, bits, software}, {in.size()});
    for (std::size_t i = 0; i < hardware.size(); ++i)
      ASSERT_EQ(hardware[i], software[i]) << "pair " << in[2 * (i / 3)] << ", " << in[2 * (i / 3) + 1] << ", format "
                                          << i % 3 << ", random bits " << bits[i / 3];
  }
}

}  // namespace
}  // namespace ssmjit
