// The ring's double reference: against the update's, token after token, and its two forms against each other.
#include "autotune/reference/ring_reference.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "autotune/host_numbers.h"
#include "autotune/reference/update_reference.h"
#include "autotune/ring_case.h"

namespace ssmjit {
namespace {

Description step(int tokens = 3, int window = 6) {
  return mamba2({.nheads = 4, .head_dim = 16, .dstate = 64, .ngroups = 2})
      .tokens(tokens)
      .state(DType::bf16)
      .store(Ring{.window = window});
}

// A case's memory before a launch, on the host.
class Memory {
 public:
  explicit Memory(const RingCase& c) {
    for (const KernelCase::Block& block : c.blocks()) blocks_.push_back(block.before);
    std::vector<std::byte*> base;
    for (std::vector<std::byte>& block : blocks_) base.push_back(block.data());
    args = c.args(base);
  }
  RingArgs args;

 private:
  std::vector<std::vector<std::byte>> blocks_;
};

std::vector<Description> kinds() {
  return {step(),
          step(1, 1),
          step(5, 9).state(DType::f32).gate(silu(dsl::z)),
          step(3, 4).state(DType::f16).input(DType::f16),
          step().state(DType::i8),
          step().state(DType::f8).gate(silu(dsl::z)),
          step(4, 9).varlen()};
}

// Calls `look` with every head of a request that is computed.
template <class Look>
void for_each_head(const RingCase& c, const Look& look) {
  for (std::size_t b = 0; b < c.requests().size(); ++b)
    if (c.requests()[b].live && c.requests()[b].tokens > 0)
      for (int h = 0; h < c.description().nheads; ++h) look(static_cast<std::int64_t>(b), c.requests()[b], h);
}

TEST(RingReference, TheSumsOfProductsAreTheRecurrenceWhereNoOperandIsRounded) {
  for (const Description& d : kinds()) {
    const RingCase c(d, {.batch = 7, .indexed = true, .packed_rows = true}, 3);
    Memory memory(c);
    for_each_head(c, [&](std::int64_t b, const RingRequest& of, int h) {
      const RingHead head = ring_reference(d, memory.args, b, of, h, {DType::f32, DType::f32}, read_host);
      ASSERT_EQ(head.y.size(), static_cast<std::size_t>(of.tokens * d.head_dim));
      for (std::size_t i = 0; i < head.y.size(); ++i)
        ASSERT_NEAR(head.y[i], head.y_operands[i], 1e-4) << d.summary() << ", request " << b;
    });
  }
}

TEST(RingReference, RoundedOperandsMoveAnOutputByLittleButDoMoveIt) {
  const Description d = step();
  const RingCase c(d, {.batch = 7, .indexed = true}, 3);
  Memory memory(c);
  double error = 0, norm = 0;
  for_each_head(c, [&](std::int64_t b, const RingRequest& of, int h) {
    const RingHead head = ring_reference(d, memory.args, b, of, h, ring_operands(d), read_host);
    for (std::size_t i = 0; i < head.y.size(); ++i) {
      error += std::pow(head.y[i] - head.y_operands[i], 2);
      norm += head.y[i] * head.y[i];
    }
  });
  EXPECT_LT(std::sqrt(error / norm), 2e-3);
  EXPECT_GT(std::sqrt(error / norm), 1e-4);
}

// The update in place, one row of the ring or token after the other, on a state of doubles: its reference takes the
// state from memory, so it is stored as fp32 in between.
TEST(RingReference, AStepWithoutFlushIsTheUpdateRowAfterRow) {
  const Description d = step(3, 9).state(DType::f32);
  const Description update = mamba2({.nheads = 1, .head_dim = d.head_dim, .dstate = d.dstate, .ngroups = 1})
                                 .delta(Expr(dsl::dt))
                                 .state(DType::f32);
  const RingCase c(d, {.batch = 7, .indexed = true}, 5);
  Memory memory(c);
  int seen = 0;
  for_each_head(c, [&](std::int64_t b, const RingRequest& of, int h) {
    const RingHead want = ring_reference(d, memory.args, b, of, h, ring_operands(d), read_host);
    const std::int64_t P = d.head_dim, N = d.dstate, g = h / d.heads_per_group();
    std::vector<float> state;
    for (double v : stored_values(memory.args.state, of.slot * memory.args.state.stride[0] + h * P * N,
                                  d.head_dim * d.dstate, read_host))
      state.push_back(static_cast<float>(v));
    const auto bytes = [&](const Tensor& t, std::int64_t at) {
      return static_cast<const std::byte*>(t.data) + at * size_bytes(t.dtype);
    };
    const std::vector<float> nothing(static_cast<std::size_t>(N), 0.0f);
    for (int j = 0; j < of.count + of.tokens; ++j) {
      const bool old = j < of.count;
      const int t = j - of.count;
      const RingArgs& a = memory.args;
      float delta = old ? static_cast<float>(stored_value(a.dt_ring, ring_offset(a.dt_ring, of, h, j), read_host))
                        : static_cast<float>(want.delta[static_cast<std::size_t>(t)]);
      UpdateArgs one;
      one.state = contiguous(state.data(), DType::f32, {1, 1, P, N});
      one.dt = contiguous(&delta, DType::f32, {1, 1});
      one.A = contiguous(bytes(a.A, h), DType::f32, {1});
      one.D = contiguous(bytes(a.D, h), d.weight_dtype, {1});
      one.x = contiguous(old ? bytes(a.x_ring, ring_offset(a.x_ring, of, h, j))
                             : bytes(a.x, token_offset(d, a.x, 2, b, of, t) + h * P),
                         d.input_dtype, {1, 1, P});
      one.B = contiguous(old ? bytes(a.B_ring, ring_offset(a.B_ring, of, g, j))
                             : bytes(a.B, token_offset(d, a.B, 2, b, of, t) + g * N),
                         d.input_dtype, {1, 1, N});
      one.C = old ? contiguous(nothing.data(), d.input_dtype, {1, 1, N})
                  : contiguous(bytes(a.C, token_offset(d, a.C, 2, b, of, t) + g * N), d.input_dtype, {1, 1, N});
      const HeadResult got = update_reference(update, one, 0, 0, {.live = true, .store = true}, read_host);
      for (std::size_t i = 0; i < state.size(); ++i) state[i] = static_cast<float>(got.state[i]);
      if (old) continue;
      for (std::size_t p = 0; p < got.y.size(); ++p)
        ASSERT_NEAR(want.y[static_cast<std::size_t>(t) * got.y.size() + p], got.y[p], 1e-4) << "request " << b;
      ++seen;
    }
  });
  EXPECT_GT(seen, 0);
}

TEST(RingReference, AFlushStoresToNearestAndGivesOutputsOfTheStored) {
  for (DType dtype : {DType::bf16, DType::f16, DType::i8, DType::f8}) {
    const Description d = step().state(dtype);
    const RingCase c(d, {.batch = 7, .indexed = true}, 3);
    Memory memory(c);
    int flushes = 0;
    for_each_head(c, [&](std::int64_t b, const RingRequest& of, int h) {
      const RingHead head = ring_reference(d, memory.args, b, of, h, ring_operands(d), read_host);
      if (!of.flush) {
        EXPECT_EQ(head.state, head.stored);
        EXPECT_TRUE(head.scale.empty());
        return;
      }
      ++flushes;
      EXPECT_EQ(head.scale.empty(), !d.has_state_scale());
      for (std::size_t i = 0; i < head.state.size(); ++i) {
        const double scale = head.scale.empty() ? 1.0 : head.scale[i / static_cast<std::size_t>(d.dstate)];
        EXPECT_NEAR(head.stored[i], rounded(dtype, head.state[i] / scale) * scale, 1e-9);
      }
    });
    EXPECT_GT(flushes, 0) << name(dtype);
  }
}

TEST(RingReference, CursorsOutOfRangeAreClampedAndPadsAreNotLive) {
  const Description d = step();
  const RingCase c(d, {.batch = 7, .indexed = true, .pads = true}, 1);
  std::set<int> counts;
  for (std::size_t b = 0; b < c.requests().size(); ++b) {
    const RingRequest& r = c.requests()[b];
    EXPECT_EQ(r.live, b % 2 == 0) << b;
    if (!r.live) continue;
    EXPECT_GE(r.start, 0);
    EXPECT_LT(r.start, d.ring_length());
    EXPECT_GE(r.count, 0);
    EXPECT_LE(r.count, d.ring_window());
    EXPECT_EQ(r.flush, r.count + 3 > 6);
  }
}

TEST(RingReference, StandardCasesFlushDoNotFlushWrapAndHaveEveryKindOfCount) {
  const Description d = step();
  std::set<int> counts;
  int flushes = 0, steps = 0, wraps = 0;
  for (const CaseLayout& layout : standard_layouts(d, 1)) {
    const RingCase c(d, layout, 1);
    for (const RingRequest& r : c.requests()) {
      if (!r.live) continue;
      ++steps;
      flushes += r.flush;
      wraps += r.start + r.count > d.ring_length();
      counts.insert(r.count);
    }
  }
  EXPECT_GT(flushes, 1);
  EXPECT_GT(steps - flushes, 1);
  EXPECT_GT(wraps, 1);
  for (int count : {0, 3, 4, 6}) EXPECT_TRUE(counts.contains(count)) << count;
}

TEST(RingReference, VarlenRequestsHaveFromNoneToAllTokensAndShareNoRow) {
  const Description d = step(4, 9).varlen();
  const RingCase c(d, {.batch = 17, .indexed = true}, 1);
  std::set<int> lengths;
  std::int64_t next = 0;
  for (const RingRequest& r : c.requests()) {
    lengths.insert(r.tokens);
    if (r.tokens == 0) continue;
    EXPECT_GE(r.first_packed, next);
    next = r.first_packed + r.tokens;
  }
  EXPECT_TRUE(lengths.contains(0));
  EXPECT_TRUE(lengths.contains(4));
  EXPECT_GT(lengths.size(), 3u);
}

TEST(RingReference, RoundingByChanceGivesANeighbourUnbiasedAndLeavesWhatTheFormatHolds) {
  for (DType dtype : {DType::bf16, DType::f16, DType::i8, DType::f8}) {
    const Description d = step().state(dtype).rounding(Stochastic{});
    for (double value : {1.0 + 0.3 / 128, -2.7, 100.4, 3e-3}) {
      const double unit = ulp(dtype, value);
      double sum = 0;
      constexpr int kCount = 16 * 64;
      for (int p = 0; p < 16; ++p)
        for (int n = 0; n < 64; ++n) {
          const double got = stored_stochastically(d, value, 77, 5, 1, p, n);
          EXPECT_EQ(got, rounded(dtype, got));
          EXPECT_LT(std::abs(got - value), unit);
          sum += got - value;
        }
      EXPECT_LT(std::abs(sum / kCount), 0.06 * unit) << name(dtype) << " " << value;
    }
    for (double value : {0.0, 1.0, -2.0, 96.0})
      EXPECT_EQ(stored_stochastically(d, value, 77, 5, 1, 2, 3), value) << name(dtype);
  }
}

}  // namespace
}  // namespace ssmjit
