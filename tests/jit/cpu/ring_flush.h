// What stochastic rounding of a ring's flush must keep to, wherever the steps are run (contract: docs/ARCHITECTURE.md).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include <gtest/gtest.h>

#include <ssmjit/description.h>
#include <ssmjit/plan.h>
#include <ssmjit/tune.h>

#include "tests/jit/cpu/ring_memory.h"

namespace ssmjit {

struct Flushed {
  std::vector<double> values;  // of the state, scaled
  std::vector<std::byte> state, scale, out;
};

// A step with full rings, hence a flush for every request. States before it are the same for every dtype: integers up
// to 15 in units of 1/8, which each holds exactly.
inline Flushed flush_once(const Description& d, const Plan& plan, int batch, std::int64_t seed,
                          const RingStepper& step) {
  RingMemory m(d, batch);
  Values values(11);
  values.weights(m);
  values.inputs(m);
  const double unit = 0.125;
  m.fill(m.args.state, [&] { return (values.below(31) - 15) * (d.has_state_scale() ? 1.0 : unit); });
  if (d.has_state_scale()) m.fill(m.args.state_scale, [&] { return unit; });
  for (const Tensor* t : {&m.args.x_ring, &m.args.B_ring}) m.fill(*t, [&] { return values.normal(); });
  m.fill(m.args.dt_ring, [&] { return values.small_delta(); });
  for (int slot = 0; slot < batch; ++slot) m.set_cursor(slot, {0, d.ring_window()});
  if (m.args.rand_seed.data != nullptr) m.set_seed(seed);
  step(d, plan, m, Pdl::off);
  Flushed f{.values = m.values(m.args.state), .state = m.bits(m.args.state), .scale = {}, .out = m.bits(m.args.out)};
  if (d.has_state_scale()) {
    f.scale = m.bits(m.args.state_scale);
    const std::vector<double> scale = m.values(m.args.state_scale);
    for (std::size_t i = 0; i < f.values.size(); ++i) f.values[i] *= scale[i / static_cast<std::size_t>(d.dstate)];
  }
  return f;
}

inline double share_of_different(const Flushed& a, const Flushed& b) {
  std::size_t different = 0;
  for (std::size_t i = 0; i < a.values.size(); ++i) different += a.values[i] != b.values[i];
  return static_cast<double>(different) / static_cast<double>(a.values.size());
}

// `d` rounds stochastically. Its errors, measured from a flush of an fp32 state, have no mean; a seed gives the same
// bits again and another one others, also where only its upper half differs; outputs and scales are those of rounding
// to nearest.
inline void expect_fair_flushes(const Description& d, const Arch& arch, int batch, const RingStepper& step) {
  const auto flush = [&](const Description& of, std::int64_t seed) {
    return flush_once(of, default_plan(of, arch, std::int64_t{batch} * of.nheads), batch, seed, step);
  };
  const Description nearest_rounding = Description(d).rounding(Nearest{});
  const Flushed exact = flush(Description(nearest_rounding).state(DType::f32), 0), nearest = flush(nearest_rounding, 0),
                chance = flush(d, 7);
  ASSERT_FALSE(testing::Test::HasFailure());

  double sum = 0, squares = 0, nearest_sum = 0, count = 0;
  for (std::size_t i = 0; i < exact.values.size(); ++i) {
    const double of_nearest = nearest.values[i] - exact.values[i], error = chance.values[i] - exact.values[i];
    if (of_nearest == 0) continue;
    ++count;
    sum += error;
    squares += error * error;
    nearest_sum += of_nearest;
  }
  ASSERT_GT(count, 1000);
  const double mean = sum / count, standard_error = std::sqrt((squares / count - mean * mean) / count);
  testing::Test::RecordProperty("mean_in_standard_errors", std::to_string(mean / standard_error));
  EXPECT_LT(std::abs(mean), 4 * standard_error);
  if (d.state_dtype == DType::f16) {
    EXPECT_TRUE(std::abs(mean) < std::abs(nearest_sum / count) || std::abs(mean) < 1e-5) << mean;
  }
  // Of errors spread evenly a quarter.
  EXPECT_NEAR(share_of_different(chance, nearest), 0.25, 0.03);
  EXPECT_EQ(chance.out, nearest.out);
  EXPECT_EQ(chance.scale, nearest.scale);

  EXPECT_EQ(flush(d, 7).state, chance.state);
  // Two throws: neither, or both, go the way of nearest, or else they differ.
  EXPECT_GT(share_of_different(flush(d, 8), chance), 0.2);
  EXPECT_GT(share_of_different(flush(d, 7 + (std::int64_t{1} << 32)), chance), 0.2);
}

// The same bits of states and scales from `count` plans of the space (0: from all): random bits know nothing of tiles,
// and with the oldest row in front every plan sums the rows in one order.
inline void expect_same_flushes(const Description& d, const Arch& arch, int batch, std::size_t count,
                                const RingStepper& step) {
  const Flushed want = flush_once(d, default_plan(d, arch, std::int64_t{batch} * d.nheads), batch, 7, step);
  for (const Plan& plan : sample_plans(plan_space(d, arch), count, 3)) {
    const Flushed got = flush_once(d, plan, batch, 7, step);
    EXPECT_EQ(got.state, want.state) << plan.text() << ": " << share_of_different(got, want)
                                     << " of the elements differ";
    EXPECT_EQ(got.scale, want.scale) << plan.text();
  }
}

}  // namespace ssmjit
