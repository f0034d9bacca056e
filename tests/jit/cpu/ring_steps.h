// What steps of rings must keep to wherever they are run: how far states and outputs drift, the bits that do not depend
// on how memory lies, the update that a window of one is.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <ssmjit/description.h>
#include <ssmjit/kernel.h>
#include <ssmjit/plan.h>

#include "autotune/cpu_verify.h"
#include "autotune/host_numbers.h"
#include "autotune/nearness.h"
#include "autotune/reference/ring_reference.h"
#include "autotune/ring_case.h"
#include "tests/jit/cpu/ring_memory.h"

namespace ssmjit {

inline Plan changed_plan(const Description& d, const Arch& arch, const char* changes) {
  const Plan plan = default_plan(d, arch, std::int64_t{2} * d.nheads);
  return *changes == '\0' ? plan : Plan::parse(changes, plan);
}

inline void copy_tensor(const RingMemory& from, const Tensor& source, RingMemory& to, const Tensor& target) {
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
  const char* changes = "";  // of the default plan
};
inline void PrintTo(const Drift& d, std::ostream* out) { *out << d.name; }

// What the double reference leaves where the kernel would: the state rounded at the same points, by the same bits.
inline void step_reference(const Description& d, RingMemory& m, std::vector<std::vector<RingHead>>& heads,
                           std::int64_t seed) {
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

constexpr const char* kBulkOfTwoHeads = "state_path=bulk,ring_rows=live,heads_per_block=2,stages=2,block_m=16,warps=1";
inline const Drift kDrifts[] = {
    {"fp32", DType::f32, Nearest{}},
    {"bf16", DType::bf16, Nearest{}},
    {"fp16", DType::f16, Nearest{}},
    {"int8", DType::i8, Nearest{}},
    {"fp8", DType::f8, Nearest{}},
    {"bf16_by_chance", DType::bf16, Stochastic{}},
    {"fp16_by_chance", DType::f16, Stochastic{}},
    {"int8_by_chance", DType::i8, Stochastic{}},
    {"fp8_by_chance", DType::f8, Stochastic{}},
    {"bf16_in_bulk", DType::bf16, Nearest{}, DType::bf16, kBulkOfTwoHeads},
    {"fp16_with_fp16_inputs", DType::f16, Nearest{}, DType::f16},
    {"bf16_with_fp16_inputs", DType::bf16, Nearest{}, DType::f16},
    {"fp32_with_fp16_inputs", DType::f32, Nearest{}, DType::f16},
};

// 2,000 steps of three tokens, of which one to three are accepted, are at most a tenth further from the exact
// recurrence than a double recurrence that rounds the state at the same points.
inline void expect_little_drift(const Drift& drift, const Arch& arch, const RingStepper& take_step) {
  constexpr int kSteps = 2000, kTokens = 3;
  const Description d = mamba2({.nheads = 2, .head_dim = 16, .dstate = 64, .ngroups = 1})
                            .tokens(kTokens)
                            .state(drift.state)
                            .input(drift.input)
                            .rounding(drift.rounding)
                            .store(Ring{.window = 8});
  const Plan plan = changed_plan(d, arch, drift.changes);
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
    take_step(d, plan, kernel, Pdl::off);
    ASSERT_FALSE(testing::Test::HasFailure());
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
    testing::Test::RecordProperty(what, fmt::format("{:.3e}, of the reference {:.3e}", of_kernel, of_reference));
    EXPECT_LE(of_kernel, 1.1 * of_reference + arithmetic) << what;
    EXPECT_GT(of_kernel, 0) << what;
  };
  expect_near("outputs", std::sqrt(kernel_error / norm), std::sqrt(reference_error / norm));
  const double of_state = std::sqrt(kernel_state_error / state_norm);
  expect_near("states", of_state, std::sqrt(reference_state_error / state_norm));
}

// ---- a window of one ----

// One launch of an update whose tensors lie in the buffers.
using UpdateStepper = std::function<void(const Description& d, const Plan& plan, const UpdateArgs& args,
                                         const std::vector<CpuBuffer>& buffers)>;

// Of state and inputs, where products of the ring are in the inputs' dtype.
constexpr std::pair<DType, DType> kOneRowDtypes[] = {
    {DType::f32, DType::bf16}, {DType::bf16, DType::bf16}, {DType::f16, DType::bf16}, {DType::f16, DType::f16}};
// A ring of one row steps as the update in place does, a step later; states come within `most_units`.
inline void expect_the_update_a_step_later(DType dtype, DType input, double most_units, const Arch& arch,
                                           const RingStepper& take_step, const UpdateStepper& update_step) {
  const Description ring = mamba2({.nheads = 2, .head_dim = 32, .dstate = 64, .ngroups = 1})
                               .state(dtype)
                               .input(input)
                               .store(Ring{.window = 1});
  const Description in_place = Description(ring).store(InPlace{});
  const Plan ring_plan = default_plan(ring, arch, 2), plan = default_plan(in_place, arch, 2);
  RingMemory m(ring, 2);
  Values values(3);
  values.weights(m);
  m.fill(m.args.state, [&] { return values.normal(); });
  // The update has its own state and output; a request has slot 1 - b in both.
  std::vector<std::byte> state(m.bits(m.args.state)), out(m.bits(m.args.out).size());
  UpdateArgs update;
  update.state = contiguous(state.data(), dtype, {2, 2, 32, 64});
  update.out = contiguous(out.data(), input, {2, 2, 32});
  update.x = contiguous(m.args.x.data, input, {2, 2, 32});
  update.B = contiguous(m.args.B.data, input, {2, 1, 64});
  update.C = contiguous(m.args.C.data, input, {2, 1, 64});
  update.dt = contiguous(m.args.dt.data, DType::f32, {2, 2});
  update.A = m.args.A, update.D = m.args.D, update.dt_bias = m.args.dt_bias;
  update.state_batch_indices = m.args.state_batch_indices;
  NearnessMeter outputs(input, 64), states(dtype, 64);
  RingCursor cursor;
  for (int step = 0; step < 40; ++step) {
    values.inputs(m);
    for (int slot = 0; slot < 2; ++slot) m.set_cursor(slot, cursor);
    take_step(ring, ring_plan, m, Pdl::off);
    // What the update made of the same state a step ago; it goes on from the ring's, so that nothing adds up.
    const std::vector<double> updated = stored_values(update.state, 0, 2 * 2 * 32 * 64, read_host);
    const std::vector<double> stored = m.values(m.args.state);
    for (std::size_t i = 0; i < updated.size(); i += 64)
      states.add_row(&updated[i], std::vector<double>(&stored[i], &stored[i] + 64));
    state = m.bits(m.args.state);
    update.state.data = state.data();
    std::vector<CpuBuffer> buffers = m.buffers();
    buffers.push_back({.name = "in place", .data = state.data(), .bytes = state.size(), .writable = true});
    buffers.push_back({.name = "its out", .data = out.data(), .bytes = out.size(), .writable = true});
    update_step(in_place, plan, update, buffers);
    ASSERT_FALSE(testing::Test::HasFailure());
    outputs.add_row(stored_values(update.out, 0, 2 * 2 * 32, read_host).data(), m.values(m.args.out));
    EXPECT_EQ(ring_flushes(ring, cursor, 1), step > 0);
    cursor = advance_ring(ring, cursor, 1, 1);
  }
  EXPECT_EQ(judge(outputs.result(), input, 64, "out"), "");
  EXPECT_LE(states.result().worst_ulp, most_units);
}

// ---- the same bits ----

inline Description several(DType state = DType::bf16) {
  return mamba2({.nheads = 4, .head_dim = 16, .dstate = 32, .ngroups = 2})
      .tokens(3)
      .state(state)
      .gate(silu(dsl::z))
      .store(Ring{.window = 6});
}

// Four steps of five requests whose cursors differ: the outputs of each, and what is left of states and rings.
inline std::vector<std::vector<std::byte>> bits_of_steps(const Description& d, const Plan& plan, bool is_strided,
                                                         Pdl pdl, const RingStepper& take_step,
                                                         std::int64_t first_slot = 0) {
  RingMemory m(d, 5, is_strided);
  m.number_slots_from(first_slot);
  Values values(9);
  values.weights(m);
  m.fill(m.args.state, [&] { return (d.has_state_scale() ? 30 : 1) * values.normal(); });
  if (d.has_state_scale()) m.fill(m.args.state_scale, [&] { return values.uniform(0.02, 0.04); });
  if (m.args.rand_seed.data != nullptr) m.set_seed(-12345);
  std::vector<RingCursor> cursors;
  for (int slot = 0; slot < 5; ++slot) cursors.push_back({slot % 4 * 2, 0});
  std::vector<std::vector<std::byte>> bits;
  for (int step = 0; step < 4; ++step) {
    values.inputs(m);
    for (int slot = 0; slot < 5; ++slot) m.set_cursor(slot, cursors[static_cast<std::size_t>(slot)]);
    take_step(d, plan, m, pdl);
    bits.push_back(m.bits(m.args.out));
    for (int slot = 0; slot < 5; ++slot) {
      RingCursor& cursor = cursors[static_cast<std::size_t>(slot)];
      cursor = advance_ring(d, cursor, 3, 1 + (slot + step) % 3);
    }
  }
  for (const Tensor* t : {&m.args.state, &m.args.state_scale, &m.args.x_ring, &m.args.B_ring, &m.args.dt_ring})
    if (t->data != nullptr) bits.push_back(m.bits(*t));
  return bits;
}

// Varlen or dense, strided or contiguous, and under every Pdl.
inline void expect_same_bits(const Description& d, const Arch& arch, const RingStepper& take_step) {
  for (const char* changes : {"ring_rows=all", "ring_rows=live", kBulkOfTwoHeads}) {
    SCOPED_TRACE(changes);
    Plan plan = changed_plan(d, arch, changes);
    const auto bits = [&](const Description& of, bool is_strided, Pdl pdl) {
      return bits_of_steps(of, plan, is_strided, pdl, take_step);
    };
    const auto want = bits(d, false, Pdl::off);
    EXPECT_EQ(bits(d, true, Pdl::off), want) << "strided";
    EXPECT_EQ(bits(Description(d).varlen(), false, Pdl::off), want) << "varlen";
    EXPECT_EQ(bits(Description(d).varlen(), true, Pdl::off), want) << "varlen, strided";
    EXPECT_EQ(bits(d, false, Pdl::wait_first), want);
    plan.early_state = true;
    for (Pdl pdl : {Pdl::off, Pdl::wait_first, Pdl::early_state})
      EXPECT_EQ(bits(d, false, pdl), want) << "early plan, " << name(pdl);
  }
}

// ---- slots far from the first ----

// Slots from 2^27 on, past 2^32 elements in every pool, are stepped as the first ones are.
inline void expect_same_bits_of_far_slots(const Arch& arch, const RingStepper& take_step) {
  Description d = several(DType::i8);
  d.dstate = 64;
  for (const char* changes : {"ring_rows=all", "ring_rows=live", kBulkOfTwoHeads}) {
    SCOPED_TRACE(changes);
    const Plan plan = changed_plan(d, arch, changes);
    EXPECT_EQ(bits_of_steps(d, plan, false, Pdl::off, take_step, std::int64_t{1} << 27),
              bits_of_steps(d, plan, false, Pdl::off, take_step));
  }
}

// The place of an element whose slot is 2^32 elements past the first goes into its random bits as a number of 64 bits:
// the same flush leaves other bits than in slot 0, those that the reference takes.
inline void expect_random_bits_of_far_places(const Arch& arch, const RingStepper& take_step) {
  const Description d = mamba2({.nheads = 64, .head_dim = 64, .dstate = 128, .ngroups = 1})
                            .state(DType::i8)
                            .rounding(Stochastic{})
                            .store(Ring{.window = 1});
  constexpr std::int64_t kSlot = 8192;
  ASSERT_EQ(kSlot * d.nheads * d.head_dim * d.dstate, std::int64_t{1} << 32);
  std::vector<std::vector<double>> states;
  for (const std::int64_t slot : {std::int64_t{0}, kSlot}) {
    RingMemory m(d, 1);
    Values values(12);
    values.weights(m);
    values.inputs(m);
    m.fill(m.args.state, [&] { return 30 * values.normal(); });
    m.fill(m.args.state_scale, [&] { return values.uniform(0.02, 0.04); });
    for (const Tensor* t : {&m.args.x_ring, &m.args.B_ring}) m.fill(*t, [&] { return values.normal(); });
    m.fill(m.args.dt_ring, [&] { return values.small_delta(); });
    m.set_cursor(0, {0, 1});
    m.set_seed(3);
    m.number_slots_from(slot);
    const RingArgs before = m.args_here();
    const RingRequest of = ring_request(d, before, 0, read_host);
    ASSERT_EQ(of.slot, slot);
    std::vector<RingHead> want;
    const int some_heads[] = {0, d.nheads - 1};
    for (const int h : some_heads) want.push_back(ring_reference(d, before, 0, of, h, ring_operands(d), read_host));
    take_step(d, changed_plan(d, arch, ""), m, Pdl::off);
    FlushMeter meter(d, 3);
    for (std::size_t i = 0; i < want.size(); ++i) meter.add_head(want[i], of, some_heads[i], m.args_here(), read_host);
    EXPECT_EQ(meter.failure(), "") << "slot " << slot;
    states.push_back(m.values(m.args.state));
  }
  std::size_t different = 0;
  for (std::size_t i = 0; i < states[0].size(); ++i) different += states[0][i] != states[1][i];
  EXPECT_GT(different, states[0].size() / 10);
}

// ---- lengths ----

// Whether each row of the outputs of five requests is written, by lengths that may be none.
inline std::vector<bool> rows_written(const std::vector<int>& lengths, const Arch& arch, const char* changes,
                                      const RingStepper& take_step) {
  const Description d = several().varlen();
  RingMemory m(d, 5);
  Values values(6);
  values.weights(m);
  values.inputs(m);
  m.fill(m.args.state, [&] { return values.normal(); });
  m.set_lengths(lengths);
  take_step(d, changed_plan(d, arch, changes), m, Pdl::off);
  const std::vector<std::byte> bits = m.bits(m.args.out);
  const auto row = static_cast<std::size_t>(d.nheads * d.head_dim * size_bytes(d.input_dtype));
  std::vector<bool> written;
  for (std::size_t i = 0; i < bits.size(); i += row)
    written.push_back(
        std::any_of(&bits[i], &bits[i] + row, [](std::byte b) { return b != std::byte{0xff}; }));  // as it was: NaN
  return written;
}

inline void expect_lengths_that_are_none_stay_inside_the_tokens(const Arch& arch, const RingStepper& take_step) {
  const auto rows = [](std::initializer_list<std::size_t> those) {
    std::vector<bool> all(15, false);
    for (const std::size_t i : those) all[i] = true;
    return all;
  };
  constexpr int kLeast = std::numeric_limits<int>::min();
  for (const char* changes : {"ring_rows=all", "ring_rows=live"}) {
    SCOPED_TRACE(changes);
    const auto written = [&](const std::vector<int>& lengths) {
      return rows_written(lengths, arch, changes, take_step);
    };
    // From past the end, down, below 0, past the end again, down to a row, past the end.
    EXPECT_EQ(written({1 << 30, 1 << 29, -5, 1 << 28, 3, 40}), rows({0, 1, 2, 3, 4, 5}));
    EXPECT_EQ(written({0, 9, 9, 12, 15, 15}), rows({0, 1, 2, 9, 10, 11, 12, 13, 14}));
    EXPECT_EQ(written({0, 1, 0, 0, 0, kLeast}), rows({0}));
  }
}

}  // namespace ssmjit
