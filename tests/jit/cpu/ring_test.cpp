// Emitted ring kernels on the CPU executor, step after step: drift, and launches that must give the same bits.
#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/description.h>
#include <ssmjit/kernel.h>
#include <ssmjit/plan.h>
#include <ssmjit/source.h>
#include <ssmjit/tune.h>

#include "autotune/cpu_verify.h"
#include "autotune/host_numbers.h"
#include "autotune/nearness.h"
#include "autotune/reference/ring_reference.h"
#include "tests/jit/cpu/ring_flush.h"
#include "tests/jit/cpu/ring_memory.h"

namespace ssmjit {
namespace {

const Arch kArch = Arch::parse("sm_90a");
// Of the plans of a flush by chance; all when SSMJIT_TEST_ALL is set.
const std::size_t kPlansOfAFlush = std::getenv("SSMJIT_TEST_ALL") != nullptr ? 0 : 4;

CpuProgram compiled(const Description& d, const Plan& plan) {
  CpuCompileOptions options;
  options.checks = false;
  return CpuProgram::compile(emit(d, plan, kArch), options);
}

void copy_tensor(const RingMemory& from, const Tensor& source, RingMemory& to, const Tensor& target) {
  const std::vector<double> values = from.values(source);
  std::size_t i = 0;
  to.fill(target, [&] { return values[i++]; });
}

// ---- drift ----

struct Drift {
  const char* name;
  DType state;
  Rounding rounding;
  DType input = DType::bf16;
};
void PrintTo(const Drift& d, std::ostream* out) { *out << d.name; }

// What the double reference leaves where the kernel would: the state rounded at the same points, by the same bits.
void step_reference(const Description& d, RingMemory& m, std::vector<std::vector<RingHead>>& heads, std::int64_t seed) {
  heads.clear();
  const std::int64_t P = d.head_dim, N = d.dstate;
  for (std::int64_t b = 0; b < m.args.x.shape[0]; ++b) {
    const RingRequest of = ring_request(d, m.args, b, read_host);
    heads.emplace_back();
    for (int h = 0; h < d.nheads; ++h)
      heads.back().push_back(ring_reference(d, m.args, b, of, h, ring_operands(d), read_host));
    const auto put = [](const Tensor& t, std::int64_t at, double v) { encode(t.dtype, RingMemory::bytes(t), at, v); };
    for (int h = 0; h < d.nheads; ++h) {
      const RingHead& head = heads.back()[static_cast<std::size_t>(h)];
      for (int t = 0; t < of.tokens; ++t) {
        const std::int64_t x = token_offset(d, m.args.x, 2, b, of, t) + h * P;
        const std::int64_t B = token_offset(d, m.args.B, 2, b, of, t) + h / d.heads_per_group() * N;
        const std::int64_t x_at = ring_offset(m.args.x_ring, of, h, of.count + t);
        const std::int64_t B_at = ring_offset(m.args.B_ring, of, h / d.heads_per_group(), of.count + t);
        for (int p = 0; p < P; ++p)
          put(m.args.x_ring, x_at + p, decode(d.input_dtype, RingMemory::bytes(m.args.x), x + p));
        for (int n = 0; n < N; ++n)
          put(m.args.B_ring, B_at + n, decode(d.input_dtype, RingMemory::bytes(m.args.B), B + n));
        put(m.args.dt_ring, ring_offset(m.args.dt_ring, of, h, of.count + t), head.delta[static_cast<std::size_t>(t)]);
      }
      if (!of.flush) continue;
      for (int p = 0; p < P; ++p) {
        const double scale = head.scale.empty() ? 1.0 : head.scale[static_cast<std::size_t>(p)];
        if (!head.scale.empty()) put(m.args.state_scale, of.slot * m.args.state_scale.stride[0] + h * P + p, scale);
        for (int n = 0; n < N; ++n) {
          const double units = head.state[static_cast<std::size_t>(p * N + n)] / scale;
          put(m.args.state, of.slot * m.args.state.stride[0] + (h * P + p) * N + n,
              std::holds_alternative<Stochastic>(d.rounding_kind)
                  ? stored_stochastically(d, units, static_cast<std::uint64_t>(seed), of.slot, h, p, n)
                  : units);
        }
      }
    }
  }
}

class RingDrift : public testing::TestWithParam<Drift> {};

TEST_P(RingDrift, Of2000StepsIsAtMostATenthMoreThanThatOfADoubleRecurrenceRoundedAtTheSamePoints) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  constexpr int kSteps = 2000, kTokens = 3;
  const Description d = mamba2({.nheads = 2, .head_dim = 16, .dstate = 64, .ngroups = 1})
                            .tokens(kTokens)
                            .state(GetParam().state)
                            .input(GetParam().input)
                            .rounding(GetParam().rounding)
                            .store(Ring{.window = 8});
  const Plan plan = default_plan(d, kArch, 2);
  const CpuProgram program = compiled(d, plan);
  RingMemory kernel(d, 1), reference(d, 1);
  Values values(1);
  values.weights(kernel);
  for (const auto& tensor : {&RingArgs::A, &RingArgs::D, &RingArgs::dt_bias})
    copy_tensor(kernel, kernel.args.*tensor, reference, reference.args.*tensor);
  for (RingMemory* m : {&kernel, &reference}) {
    m->fill(m->args.state, [] { return 0.0; });
    if (d.has_state_scale()) m->fill(m->args.state_scale, [] { return 1.0; });
  }
  // The exact state of each head, with only accepted tokens.
  const std::size_t P = 16, N = 64;
  std::vector<std::vector<double>> exact(2, std::vector<double>(P * N, 0.0));
  double kernel_error = 0, reference_error = 0, norm = 0, kernel_state_error = 0, reference_state_error = 0,
         state_norm = 0;
  RingCursor cursor;
  std::vector<std::vector<RingHead>> heads;
  int flushes = 0;
  for (int step = 0; step < kSteps; ++step) {
    values.inputs(kernel);
    for (const auto& tensor : {&RingArgs::x, &RingArgs::B, &RingArgs::C, &RingArgs::dt})
      copy_tensor(kernel, kernel.args.*tensor, reference, reference.args.*tensor);
    for (RingMemory* m : {&kernel, &reference}) {
      m->set_cursor(0, cursor);
      if (kernel.args.rand_seed.data != nullptr) m->set_seed(step);
    }
    ASSERT_EQ(kernel.run(program, plan), "");
    step_reference(d, reference, heads, step);
    const std::vector<double> y = kernel.values(kernel.args.out), x = kernel.values(kernel.args.x),
                              B = kernel.values(kernel.args.B), C = kernel.values(kernel.args.C),
                              A = kernel.values(kernel.args.A), D = kernel.values(kernel.args.D);
    // A flush leaves the state of what was accepted before this step.
    const auto add_states = [&](RingMemory& m, double& error) {
      std::vector<double> state = m.values(m.args.state);
      const std::vector<double> scale = d.has_state_scale() ? m.values(m.args.state_scale) : std::vector(2 * P, 1.0);
      for (std::size_t i = 0; i < state.size(); ++i)
        error += std::pow(state[i] * scale[i / N] - exact[i / (P * N)][i % (P * N)], 2);
    };
    if (ring_flushes(d, cursor, kTokens)) {
      add_states(kernel, kernel_state_error);
      add_states(reference, reference_state_error);
      for (const std::vector<double>& state : exact)
        for (double v : state) state_norm += v * v;
    }
    const int accepted = 1 + values.below(kTokens);
    for (std::size_t h = 0; h < 2; ++h) {
      const RingHead& head = heads[0][h];
      std::vector<double> state = exact[h];
      for (std::size_t t = 0; t < kTokens; ++t) {
        const double decay = std::exp(A[h] * head.delta[t]);
        for (std::size_t p = 0; p < P; ++p) {
          const double own = x[(t * 2 + h) * P + p];
          double want = D[h] * own;
          for (std::size_t n = 0; n < N; ++n) {
            double& s = state[p * N + n];
            s = s * decay + head.delta[t] * own * B[t * N + n];
            want += s * C[t * N + n];
          }
          const double rounded_reference = rounded(d.input_dtype, head.y_operands[t * P + p]);
          kernel_error += std::pow(y[(t * 2 + h) * P + p] - want, 2);
          reference_error += std::pow(rounded_reference - want, 2);
          norm += want * want;
        }
        if (static_cast<int>(t) + 1 == accepted) exact[h] = state;
      }
    }
    flushes += ring_flushes(d, cursor, kTokens);
    cursor = advance_ring(d, cursor, kTokens, accepted);
  }
  EXPECT_GT(flushes, kSteps / 8);
  constexpr double arithmetic = 0x1p-23;  // an fp32 state has no room above the kernel's own
  const auto expect_near = [&](const char* what, double of_kernel, double of_reference) {
    RecordProperty(what, fmt::format("{:.3e}, of the reference {:.3e}", of_kernel, of_reference));
    EXPECT_LE(of_kernel, 1.1 * of_reference + arithmetic) << what;
    EXPECT_GT(of_kernel, 0) << what;
  };
  expect_near("outputs", std::sqrt(kernel_error / norm), std::sqrt(reference_error / norm));
  const double of_state = std::sqrt(kernel_state_error / state_norm);
  expect_near("states", of_state, std::sqrt(reference_state_error / state_norm));
}

INSTANTIATE_TEST_SUITE_P(Every, RingDrift,
                         testing::Values(Drift{"fp32", DType::f32, Nearest{}}, Drift{"bf16", DType::bf16, Nearest{}},
                                         Drift{"fp16", DType::f16, Nearest{}}, Drift{"int8", DType::i8, Nearest{}},
                                         Drift{"fp8", DType::f8, Nearest{}},
                                         Drift{"bf16_by_chance", DType::bf16, Stochastic{}},
                                         Drift{"fp16_by_chance", DType::f16, Stochastic{}},
                                         Drift{"fp16_with_fp16_inputs", DType::f16, Nearest{}, DType::f16},
                                         Drift{"bf16_with_fp16_inputs", DType::bf16, Nearest{}, DType::f16},
                                         Drift{"fp32_with_fp16_inputs", DType::f32, Nearest{}, DType::f16}),
                         [](const auto& info) { return info.param.name; });

// fp16 ends at 65504, but neither factors above 1 nor small ones leave it.
TEST(RingOfFp16Inputs, AFlushKeepsTheDigitsOfLargeInputsAndOfSmallDeltas) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Description d = mamba2({.nheads = 2, .head_dim = 16, .dstate = 64, .ngroups = 1})
                            .state(DType::f32)
                            .input(DType::f16)
                            .store(Ring{.window = 3});
  const Plan plan = default_plan(d, kArch, 2);
  const CpuProgram program = compiled(d, plan);
  for (const auto& [x, delta] : {std::pair(65504.0, 8.0), {1.0, 1e-5}}) {
    RingMemory m(d, 1);
    Values values(4);
    values.weights(m);
    values.inputs(m);
    m.fill(m.args.A, [] { return -0.05; });
    m.fill(m.args.state, [] { return 0.0; });
    m.fill(m.args.x_ring, [&, x = x] { return values.uniform(0.5, 1) * x; });
    m.fill(m.args.B_ring, [&] { return values.uniform(0.5, 1); });
    m.fill(m.args.dt_ring, [&, delta = delta] { return values.uniform(0.5, 1) * delta; });
    m.set_cursor(0, {1, 3});
    const RingRequest of = ring_request(d, m.args, 0, read_host);
    std::vector<double> want;
    for (int h = 0; h < d.nheads; ++h) {
      const RingHead head = ring_reference(d, m.args, 0, of, h, ring_operands(d), read_host);
      want.insert(want.end(), head.state.begin(), head.state.end());
    }
    ASSERT_EQ(m.run(program, plan), "");
    const std::vector<double> got = m.values(m.args.state);
    for (std::size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], 0x1p-20 * want[i]) << delta;
  }
}

// Weights of x past 65504 are operands all the same: infinity times a zero in x would be NaN.
TEST(RingOfFp16Inputs, WeightsPastTheLargestNumberMakeNoNanOfAZero) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Description d = mamba2({.nheads = 2, .head_dim = 16, .dstate = 64, .ngroups = 1})
                            .state(DType::f32)
                            .input(DType::f16)
                            .store(Ring{.window = 3});
  const Plan plan = default_plan(d, kArch, 2);
  RingMemory m(d, 1);
  Values values(5);
  values.weights(m);
  values.inputs(m);
  m.fill(m.args.state, [] { return 0.0; });
  m.fill(m.args.x, [] { return 0.0; });
  for (const Tensor* t : {&m.args.B, &m.args.C}) m.fill(*t, [] { return 64.0; });
  m.fill(m.args.dt, [] { return 2.0; });
  m.fill(m.args.dt_bias, [] { return 0.0; });
  ASSERT_EQ(m.run(compiled(d, plan), plan), "");
  for (double y : m.values(m.args.out)) ASSERT_EQ(y, 0);
}

// A row of zeros has no largest magnitude to scale by.
TEST(RingOfZeros, AreStoredWithAScaleOfOneAndGiveFiniteOutputs) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  for (const DType state : {DType::i8, DType::f8})
    for (const bool by_chance : {false, true}) {
      Description d = mamba2({.nheads = 2, .head_dim = 16, .dstate = 64, .ngroups = 1}).tokens(3).state(state);
      d.store(Ring{.window = 3});
      if (by_chance) d.rounding(Stochastic{});
      const Plan plan = default_plan(d, kArch, 2);
      RingMemory m(d, 1);
      Values values(8);
      values.weights(m);
      values.inputs(m);
      m.fill(m.args.state, [] { return 0.0; });
      m.fill(m.args.state_scale, [] { return 0.25; });
      m.fill(m.args.x_ring, [] { return 0.0; });
      m.fill(m.args.B_ring, [&] { return values.normal(); });
      m.fill(m.args.dt_ring, [&] { return values.small_delta(); });
      m.set_cursor(0, {1, 3});
      if (by_chance) m.set_seed(5);
      ASSERT_EQ(m.run(compiled(d, plan), plan), "");
      for (const double s : m.values(m.args.state)) ASSERT_EQ(s, 0) << name(state);
      for (const double s : m.values(m.args.state_scale)) ASSERT_EQ(s, 1) << name(state);
      for (const double y : m.values(m.args.out)) ASSERT_TRUE(std::isfinite(y)) << name(state);
    }
}

// ---- sizes ----

void expect_right(const Description& d, const std::vector<Plan>& plans) {
  VerifyOptions options;
  options.on = VerifyOn::cpu;
  for (const Verdict& v : verify(d, plans, options))
    EXPECT_EQ(v.outcome, Outcome::ok) << d.summary() << ", " << v.plan.text() << testing::PrintToString(v.failures);
}

TEST(RingSizes, FarFromASquareAreRightWithAnEightBitState) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  for (const auto& [head_dim, dstate, state] : {std::tuple(8, 256, DType::i8), {40, 128, DType::f8}}) {
    const Description d = mamba2({.nheads = 2, .head_dim = head_dim, .dstate = dstate, .ngroups = 1})
                              .tokens(3)
                              .state(state)
                              .store(Ring{.window = 9});
    expect_right(d, sample_plans(plan_space(d, kArch), 1, 7));
  }
}

TEST(RingSizes, AllHeadsOfAGroupOf16AreRightInOneBlock) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Description d = mamba2({.nheads = 32, .head_dim = 16, .dstate = 32, .ngroups = 2})
                            .tokens(6)
                            .state(DType::bf16)
                            .store(Ring{.window = 16});
  expect_right(d, {Plan::parse("block_m=16,warps=1,heads_per_block=16,stages=4,state_path=bulk,ring_rows=live",
                               default_plan(d, kArch, 32))});
}

// ---- a window of one ----

TEST(RingOfOneRow, IsTheUpdateInPlaceAStepLater) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    SCOPED_TRACE(name(dtype));
    const Description ring =
        mamba2({.nheads = 2, .head_dim = 32, .dstate = 64, .ngroups = 1}).state(dtype).store(Ring{.window = 1});
    const Description in_place = Description(ring).store(InPlace{});
    const Plan ring_plan = default_plan(ring, kArch, 2), plan = default_plan(in_place, kArch, 2);
    const CpuProgram ring_program = compiled(ring, ring_plan), program = compiled(in_place, plan);
    RingMemory m(ring, 2);
    Values values(3);
    values.weights(m);
    m.fill(m.args.state, [&] { return values.normal(); });
    // The update has its own state and output; a request has slot 1 - b in both.
    std::vector<std::byte> state(m.bits(m.args.state)), out(m.bits(m.args.out).size());
    UpdateArgs update;
    update.state = contiguous(state.data(), dtype, {2, 2, 32, 64});
    update.out = contiguous(out.data(), DType::bf16, {2, 2, 32});
    update.x = contiguous(m.args.x.data, DType::bf16, {2, 2, 32});
    update.B = contiguous(m.args.B.data, DType::bf16, {2, 1, 64});
    update.C = contiguous(m.args.C.data, DType::bf16, {2, 1, 64});
    update.dt = contiguous(m.args.dt.data, DType::f32, {2, 2});
    update.A = m.args.A, update.D = m.args.D, update.dt_bias = m.args.dt_bias;
    update.state_batch_indices = m.args.state_batch_indices;
    NearnessMeter outputs(DType::bf16, 64), states(dtype, 64);
    RingCursor cursor;
    for (int step = 0; step < 40; ++step) {
      values.inputs(m);
      for (int slot = 0; slot < 2; ++slot) m.set_cursor(slot, cursor);
      ASSERT_EQ(m.run(ring_program, ring_plan), "");
      // What the update made of the same state a step ago; it goes on from the ring's, so that nothing adds up.
      const std::vector<double> updated = stored_values(update.state, 0, 2 * 2 * 32 * 64, read_host);
      const std::vector<double> stored = m.values(m.args.state);
      for (std::size_t i = 0; i < updated.size(); i += 64)
        states.add_row(&updated[i], std::vector<double>(&stored[i], &stored[i] + 64));
      state = m.bits(m.args.state);
      update.state.data = state.data();
      const device_args::UpdateArgs device = to_device(update, Pdl::off);
      std::vector<CpuBuffer> buffers = m.buffers();
      buffers.push_back({.name = "in place", .data = state.data(), .bytes = state.size(), .writable = true});
      buffers.push_back({.name = "its out", .data = out.data(), .bytes = out.size(), .writable = true});
      ASSERT_TRUE(program.run(cpu_launch(launch_shape(plan, in_place, 2), device, buffers)).clean());
      outputs.add_row(stored_values(update.out, 0, 2 * 2 * 32, read_host).data(), m.values(m.args.out));
      EXPECT_EQ(ring_flushes(ring, cursor, 1), step > 0);
      cursor = advance_ring(ring, cursor, 1, 1);
    }
    EXPECT_EQ(judge(outputs.result(), DType::bf16, 64, "out"), "");
    EXPECT_LE(states.result().worst_ulp, 1.0);
  }
}

// ---- rounding by chance ----

RingStepper on_the_executor() {
  // A program each is compiled once.
  const auto programs = std::make_shared<std::map<std::string, CpuProgram>>();
  return [programs](const Description& d, const Plan& plan, RingMemory& m) {
    const std::string digest = emit(d, plan, kArch).digest;
    auto found = programs->find(digest);
    if (found == programs->end()) found = programs->emplace(digest, compiled(d, plan)).first;
    ASSERT_EQ(m.run(found->second, plan), "");
  };
}

class RingByChance : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(States, RingByChance, testing::Values(DType::bf16, DType::f16, DType::i8, DType::f8),
                         [](const auto& info) { return std::string(name(info.param)); });

Description by_chance(DType state) {
  return mamba2({.nheads = 4, .head_dim = 64, .dstate = 64, .ngroups = 2})
      .tokens(3)
      .state(state)
      .rounding(Stochastic{})
      .store(Ring{.window = 8});
}

TEST_P(RingByChance, IsUnbiasedFollowsTheSeedAndLeavesOutputsAsToNearest) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  expect_fair_flushes(by_chance(GetParam()), kArch, 4, on_the_executor());
}

TEST_P(RingByChance, GivesTheSameBitsForEveryPlan) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  expect_same_flushes(by_chance(GetParam()), kArch, 2, kPlansOfAFlush, on_the_executor());
}

// ---- the same bits ----

Description several() {
  return mamba2({.nheads = 4, .head_dim = 16, .dstate = 32, .ngroups = 2})
      .tokens(3)
      .state(DType::bf16)
      .gate(silu(dsl::z))
      .store(Ring{.window = 6});
}

// Four steps of five requests whose cursors differ: the outputs of each, and what is left of states and rings.
std::vector<std::vector<std::byte>> bits_of_steps(const Description& d, const Plan& plan, bool is_strided, Pdl pdl) {
  const CpuProgram program = compiled(d, plan);
  RingMemory m(d, 5, is_strided);
  Values values(9);
  values.weights(m);
  m.fill(m.args.state, [&] { return values.normal(); });
  std::vector<RingCursor> cursors;
  for (int slot = 0; slot < 5; ++slot) cursors.push_back({slot % 4 * 2, 0});
  std::vector<std::vector<std::byte>> bits;
  for (int step = 0; step < 4; ++step) {
    values.inputs(m);
    for (int slot = 0; slot < 5; ++slot) m.set_cursor(slot, cursors[static_cast<std::size_t>(slot)]);
    EXPECT_EQ(m.run(program, plan, pdl), "");
    bits.push_back(m.bits(m.args.out));
    for (int slot = 0; slot < 5; ++slot) {
      RingCursor& cursor = cursors[static_cast<std::size_t>(slot)];
      cursor = advance_ring(d, cursor, 3, 1 + (slot + step) % 3);
    }
  }
  for (const Tensor* t : {&m.args.state, &m.args.x_ring, &m.args.B_ring, &m.args.dt_ring}) bits.push_back(m.bits(*t));
  return bits;
}

TEST(RingBits, AreTheSameForVarlenAndDenseForStridedAndContiguousAndUnderEveryPdl) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Description d = several();
  for (const char* changes : {"ring_rows=all", "ring_rows=live",
                              "state_path=bulk,ring_rows=live,heads_per_block=2,stages=2,block_m=16,warps=1"}) {
    SCOPED_TRACE(changes);
    Plan plan = Plan::parse(changes, default_plan(d, kArch, 4));
    const auto want = bits_of_steps(d, plan, false, Pdl::off);
    EXPECT_EQ(bits_of_steps(d, plan, true, Pdl::off), want) << "strided";
    EXPECT_EQ(bits_of_steps(Description(d).varlen(), plan, false, Pdl::off), want) << "varlen";
    EXPECT_EQ(bits_of_steps(Description(d).varlen(), plan, true, Pdl::off), want) << "varlen, strided";
    EXPECT_EQ(bits_of_steps(d, plan, false, Pdl::wait_first), want);
    plan.early_state = true;
    for (Pdl pdl : {Pdl::off, Pdl::wait_first, Pdl::early_state})
      EXPECT_EQ(bits_of_steps(d, plan, false, pdl), want) << "early plan, " << name(pdl);
  }
}

// ---- rows of the list of faults ----

TEST(Faults, Row8_LengthsOfARingThatAreNoneReadAndWriteNothingOutsideTheTokens) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Description d = several().varlen();
  const std::size_t row = 4 * 16 * 2;  // bytes of an output row
  for (const char* changes : {"ring_rows=all", "ring_rows=live"}) {
    const Plan plan = Plan::parse(changes, default_plan(d, kArch, 4));
    const CpuProgram program = CpuProgram::compile(emit(d, plan, kArch));  // out of bounds would be a finding
    const auto outputs = [&](const std::vector<int>& lengths) {
      RingMemory m(d, 5);
      Values values(6);
      values.weights(m);
      values.inputs(m);
      m.fill(m.args.state, [&] { return values.normal(); });
      m.set_lengths(lengths);
      EXPECT_EQ(m.run(program, plan), "") << changes;
      const std::vector<std::byte> bits = m.bits(m.args.out);
      std::vector<bool> written;
      for (std::size_t i = 0; i < bits.size(); i += row)
        written.push_back(bits[i] != std::byte{0xff} || bits[i + 1] != std::byte{0xff});
      return written;
    };
    const auto rows = [](std::initializer_list<std::size_t> those) {
      std::vector<bool> all(15, false);
      for (const std::size_t i : those) all[i] = true;
      return all;
    };
    // From past the end, down, below 0, past the end again, down to a row, past the end.
    EXPECT_EQ(outputs({1 << 30, 1 << 29, -5, 1 << 28, 3, 40}), rows({0, 1, 2, 3, 4, 5})) << changes;
    EXPECT_EQ(outputs({0, 9, 9, 12, 15, 15}), rows({0, 1, 2, 9, 10, 11, 12, 13, 14})) << changes;
    EXPECT_EQ(outputs({0, 1, 0, 0, 0, std::numeric_limits<int>::min()}), rows({0})) << changes;
  }
}

}  // namespace
}  // namespace ssmjit
