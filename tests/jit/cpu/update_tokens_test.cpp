// Emitted update kernels of several tokens on the CPU executor: right by the double reference in every form, the same
// bits whichever way the states are kept, and wrong kernels found.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/description.h>
#include <ssmjit/kernel.h>
#include <ssmjit/plan.h>
#include <ssmjit/source.h>
#include <ssmjit/tune.h>

#include "autotune/cpu_verify.h"
#include "autotune/host_numbers.h"
#include "autotune/tokens_case.h"
#include "jit/cpu/executor.h"
#include "jit/kernel_args.h"

namespace ssmjit {
namespace {

#define NEEDS_EXECUTOR() \
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing

const Arch kArch = Arch::parse("sm_90a");

Description small(DType state = DType::bf16) {
  return mamba2({.nheads = 4, .head_dim = 16, .dstate = 64, .ngroups = 2}).state(state);
}

// ---- every form, by the double reference ----

struct Form {
  std::string name;
  Description description;
};
void PrintTo(const Form& f, std::ostream* out) { *out << f.name; }

std::vector<Form> forms() {
  const Description odd = mamba2({.nheads = 6, .head_dim = 40, .dstate = 96, .ngroups = 2}).state(DType::f16);
  return {
      {"in_place", small(DType::f32).tokens(3).gate(silu(dsl::z))},
      {"in_place_to_destinations", small().tokens(2).destination_slots()},
      {"snapshots", small().tokens(6).store(Snapshots{})},
      {"snapshots_of_one_token", small().store(Snapshots{}).gate(silu(dsl::z))},
      {"slots", small().tokens(6).store(Slots{})},
      {"slots_of_one_token_after_accepted_ones", small().store(Slots{}).accepted_counts()},
      {"slots_after_accepted_tokens", small(DType::f32).tokens(4).store(Slots{}).accepted_counts()},
      {"packed_requests", small().tokens(5).store(Snapshots{}).varlen().pad_output(PadOutput::untouched)},
      {"packed_requests_of_one_token", small().varlen().accepted_counts()},
      {"tree", small().tokens(6).store(Snapshots{}).tree()},
      {"packed_tree", small(DType::f8).tokens(4).store(Snapshots{}).tree().varlen()},
      {"20_tokens", small().tokens(20).store(Slots{}).varlen().pad_output(PadOutput::as_if_zero_state)},
      {"fp32_inputs_unaligned", small().tokens(3).input(DType::f32).store(Slots{}).unaligned_rows()},
      {"odd_sizes", Description(odd).tokens(3).store(Snapshots{}).unaligned_rows().gate(silu(dsl::z))},
      {"int8", small(DType::i8).tokens(3).store(Slots{})},
      {"int16", small(DType::i16).tokens(3).store(Snapshots{}).tree()},
      {"int16_by_chance", small(DType::i16).tokens(3).store(Slots{}).rounding(Stochastic{})},
      {"int8_by_chance", small(DType::i8).tokens(3).store(Snapshots{}).rounding(Stochastic{})},
      {"fp8_by_chance_in_place", small(DType::f8).tokens(3).rounding(Stochastic{.philox_rounds = 7})},
      {"bf16_by_chance", small().tokens(3).store(Slots{}).rounding(Stochastic{})},
      {"fp16_by_chance_in_a_tree",
       small(DType::f16).tokens(4).store(Snapshots{}).tree().rounding(Stochastic{}).input(DType::f16)},
  };
}

class CpuTokens : public testing::TestWithParam<Form> {};

TEST_P(CpuTokens, AreRightAndWithoutAFindingUnderEverySchedule) {
  NEEDS_EXECUTOR();
  const Description& d = GetParam().description;
  VerifyOptions options;
  options.on = VerifyOn::cpu;
  // Another plan for each form.
  const std::vector<Plan> plans = sample_plans(plan_space(d, options.cpu.arch), 1, GetParam().name.size());
  ASSERT_FALSE(plans.empty());
  for (const Verdict& v : verify(d, plans, options))
    EXPECT_EQ(v.outcome, Outcome::ok) << v.plan.text() << ": " << testing::PrintToString(v.failures);
}

INSTANTIATE_TEST_SUITE_P(Forms, CpuTokens, testing::ValuesIn(forms()),
                         [](const auto& param) { return param.param.name; });

// ---- step after step ----

constexpr std::int64_t kRequests = 3;

// What is told of element i at a position of a request; the same in every test, exact in bf16.
double told(const char* what, std::int64_t request, std::int64_t position, std::int64_t i) {
  std::mt19937 random(static_cast<unsigned>(7919 * request + 104729 * (position + 10) + 31 * i + what[0]));
  return static_cast<double>(random() % 256) / 64 - 2;
}

// The memory of requests, and steps over it.
class Steps {
 public:
  // `checks`: whether accesses out of bounds and races are found.
  Steps(const Description& d, std::int64_t slots, const std::string& plan = "", bool checks = false) : d_(d) {
    args_.state = tensor(d.state_dtype, {slots, d.nheads, d.head_dim, d.dstate});
    if (d.has_state_scale()) args_.state_scale = tensor(DType::f32, {slots, d.nheads, d.head_dim});
    args_.A = tensor(DType::f32, {d.nheads});
    args_.D = tensor(d.weight_dtype, {d.nheads});
    args_.dt_bias = tensor(d.weight_dtype, {d.nheads});
    for (std::int64_t h = 0; h < d.nheads; ++h) {
      encode(DType::f32, bytes(args_.A), h, -0.5 - 0.125 * static_cast<double>(h));
      encode(d.weight_dtype, bytes(args_.D), h, told("D", 0, 0, h));
      encode(d.weight_dtype, bytes(args_.dt_bias), h, -1);
    }
    const Plan chosen = Plan::parse(plan, default_plan(d, kArch, 16));
    CpuCompileOptions options;
    options.checks = checks;
    program_.emplace(CpuProgram::compile(emit(d, chosen, kArch), options));
    shape_ = launch_shape(chosen, d, static_cast<int>(kRequests));
  }

  UpdateArgs& args() { return args_; }
  // The state of a slot before the first step: the same numbers for a request wherever it is.
  void begin(std::int64_t slot, std::int64_t request) {
    const std::int64_t size = args_.state.stride[0];
    for (std::int64_t i = 0; i < size; ++i)
      encode(d_.state_dtype, bytes(args_.state), slot * size + i, told("s", request, 0, i));
  }
  std::vector<double> state(std::int64_t slot) const { return values(args_.state, slot * args_.state.stride[0]); }
  std::vector<double> snapshot(std::int64_t slot, std::int64_t step) const {
    const std::int64_t size = args_.state.stride[0];
    return values(args_.intermediate_states, (slot * args_.intermediate_states.shape[1] + step) * size);
  }
  void add_snapshots(std::int64_t slots) {
    args_.intermediate_states = tensor(d_.state_dtype, {slots, d_.token_count, d_.nheads, d_.head_dim, d_.dstate});
  }
  std::vector<double> out(std::int64_t request, int t) const {
    const std::int64_t row = std::int64_t{d_.nheads} * d_.head_dim;
    std::vector<double> y;
    for (std::int64_t i = 0; i < row; ++i)
      y.push_back(decode(d_.input_dtype, bytes(args_.out), (first_[static_cast<std::size_t>(request)] + t) * row + i));
    return y;
  }
  Tensor indices(const std::vector<std::int64_t>& values, std::initializer_list<std::int64_t> shape,
                 DType dtype = DType::i64) {
    const Tensor t = tensor(dtype, shape);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto narrow = static_cast<std::int32_t>(values[i]);
      if (dtype == DType::i64)
        std::memcpy(bytes(t) + 8 * i, &values[i], 8);
      else
        std::memcpy(bytes(t) + 4 * i, &narrow, 4);
    }
    return t;
  }

  // Tokens from `position[b]` on of each request; of varlen `tokens[b]` of them, else all.
  void step(const std::vector<std::int64_t>& position, std::vector<std::int64_t> tokens = {}) {
    if (tokens.empty()) tokens.assign(kRequests, d_.token_count);
    first_ = {0};
    for (const std::int64_t count : tokens) first_.push_back(first_.back() + count);
    const std::int64_t total = first_.back();
    const auto of_tokens = [&](std::initializer_list<std::int64_t> inner, DType dtype) {
      std::vector<std::int64_t> shape;
      if (d_.is_varlen)
        shape = {total};
      else if (d_.token_count == 1)
        shape = {kRequests};
      else
        shape = {kRequests, d_.token_count};
      shape.insert(shape.end(), inner);
      return tensor(dtype, shape);
    };
    const std::int64_t H = d_.nheads, P = d_.head_dim, N = d_.dstate, G = d_.ngroups;
    args_.x = of_tokens({H, P}, d_.input_dtype);
    args_.B = of_tokens({G, N}, d_.input_dtype);
    args_.C = of_tokens({G, N}, d_.input_dtype);
    args_.dt = of_tokens({H}, d_.dt_dtype);
    args_.out = of_tokens({H, P}, d_.input_dtype);
    if (d_.is_varlen) args_.cu_seqlens = indices(first_, {kRequests + 1}, DType::i32);
    for (std::int64_t b = 0; b < kRequests; ++b)
      for (std::int64_t t = 0; t < tokens[static_cast<std::size_t>(b)]; ++t) {
        const std::int64_t row = first_[static_cast<std::size_t>(b)] + t;
        const std::int64_t at = position[static_cast<std::size_t>(b)] + t;
        const auto fill = [&](const Tensor& to, const char* what, std::int64_t width) {
          for (std::int64_t i = 0; i < width; ++i) encode(to.dtype, bytes(to), row * width + i, told(what, b, at, i));
        };
        fill(args_.x, "x", H * P);
        fill(args_.B, "B", G * N);
        fill(args_.C, "C", G * N);
        fill(args_.dt, "t", H);
      }
    launch();
  }
  void launch() {
    ASSERT_THAT(Kernel::problems(d_, args_), testing::IsEmpty());
    std::vector<CpuBuffer> buffers;
    for (std::vector<std::byte>& m : memory_)
      buffers.push_back({.name = "", .data = m.data(), .bytes = m.size(), .writable = true});
    with_device_args(d_, args_, Pdl::off, [&](const auto& device) {
      const CpuReport report = program_->run(cpu_launch(shape_, device, std::move(buffers)));
      for (const CpuFinding& f : report.findings) ADD_FAILURE() << f.text();
    });
  }

  Tensor tensor(DType dtype, const std::vector<std::int64_t>& shape) {
    std::int64_t count = 1;
    for (std::int64_t extent : shape) count *= extent;
    memory_.emplace_back(static_cast<std::size_t>(count * size_bytes(dtype)) + 16, std::byte{0xff});
    std::byte* const data = memory_.back().data();
    Tensor t;
    t.data = data + (16 - reinterpret_cast<std::uintptr_t>(data) % 16) % 16;
    t.dtype = dtype;
    t.rank = static_cast<int>(shape.size());
    for (std::size_t i = shape.size(); i-- > 0;) {
      t.shape[i] = shape[i];
      t.stride[i] = i + 1 == shape.size() ? 1 : t.stride[i + 1] * t.shape[i + 1];
    }
    return t;
  }
  static std::byte* bytes(const Tensor& t) { return static_cast<std::byte*>(const_cast<void*>(t.data)); }

 private:
  std::vector<double> values(const Tensor& t, std::int64_t at) const {
    std::vector<double> v;
    for (std::int64_t i = 0; i < args_.state.stride[0]; ++i) v.push_back(decode(t.dtype, bytes(t), at + i));
    return v;
  }

  Description d_;
  std::deque<std::vector<std::byte>> memory_;
  UpdateArgs args_;
  std::optional<CpuProgram> program_;
  LaunchShape shape_;
  std::vector<std::int64_t> first_;
};

std::vector<double> as_stored(DType dtype, std::vector<double> v) {
  for (double& each : v) each = rounded(dtype, each);
  return v;
}

// Of the kernel of one token with an fp32 state, after each of `count` steps: [position][request].
struct SingleSteps {
  std::vector<std::vector<std::vector<double>>> state, out;
};
SingleSteps one_by_one(int count) {
  Steps m(small(DType::f32), kRequests);
  for (std::int64_t b = 0; b < kRequests; ++b) m.begin(b, b);
  SingleSteps all;
  for (int i = 0; i < count; ++i) {
    m.step({i, i, i});
    all.state.emplace_back();
    all.out.emplace_back();
    for (std::int64_t b = 0; b < kRequests; ++b) {
      all.state.back().push_back(m.state(b));
      all.out.back().push_back(m.out(b, 0));
    }
  }
  return all;
}
const std::vector<double>& at(const std::vector<std::vector<std::vector<double>>>& of, int position, std::int64_t b) {
  return of[static_cast<std::size_t>(position)][static_cast<std::size_t>(b)];
}

TEST(TokenSteps, SnapshotsAndSlotsHoldTheBitsOfSingleStepsWithAnFp32StateRoundedWhereItIsStored) {
  NEEDS_EXECUTOR();
  const SingleSteps want = one_by_one(6);
  for (const auto& [state, plan] : {std::pair(DType::f32, "block_m=8,warps=1,lanes_per_row=16"),
                                    {DType::bf16, "block_m=16,warps=2,lanes_per_row=8"},
                                    {DType::f16, "block_m=16,warps=1,lanes_per_row=8,stages=16"}}) {
    Steps snapshots(small(state).tokens(6).store(Snapshots{}), kRequests, plan);
    snapshots.add_snapshots(kRequests);
    Steps slots(small(state).tokens(6).store(Slots{}), 7 * kRequests, plan);
    std::vector<std::int64_t> targets;
    for (std::int64_t b = 0; b < kRequests; ++b) {
      snapshots.begin(b, b);
      slots.begin(b, b);
      for (std::int64_t t = 0; t < 6; ++t) targets.push_back(kRequests + 6 * b + t);
    }
    slots.args().dst_state_batch_indices = slots.indices(targets, {kRequests, 6});
    snapshots.step({0, 0, 0});
    slots.step({0, 0, 0});
    for (std::int64_t b = 0; b < kRequests; ++b) {
      for (int t = 0; t < 6; ++t) {
        const std::vector<double> stored = as_stored(state, at(want.state, t, b));
        ASSERT_EQ(snapshots.snapshot(b, t), stored) << name(state) << " " << plan << ": " << b << ", token " << t;
        ASSERT_EQ(slots.state(kRequests + 6 * b + t), stored) << name(state) << " " << plan;
        ASSERT_EQ(snapshots.out(b, t), slots.out(b, t));
      }
      ASSERT_EQ(snapshots.state(b), as_stored(state, at(want.state, 5, b)));
      std::vector<double> before;
      for (std::size_t i = 0; i < snapshots.state(b).size(); ++i)
        before.push_back(told("s", b, 0, static_cast<std::int64_t>(i)));
      ASSERT_EQ(slots.state(b), before) << "a slot that is only read was written";
    }
  }
}

TEST(TokenSteps, VerifyAcceptVerifyGivesTheSameBitsBySnapshotsThatAreCopiedAndBySlotsThatAreNot) {
  NEEDS_EXECUTOR();
  constexpr int T = 4;
  const std::vector<std::int64_t> accepted = {1, 4, 3};
  Steps copied(small().tokens(T).store(Snapshots{}), kRequests);
  copied.add_snapshots(kRequests);
  copied.args().disable_state_update = true;
  Steps slots(small().tokens(T).store(Slots{}).accepted_counts(), (T + 1) * kRequests);
  // A request's slots: it starts from its first, and writes all of them in every step, also the one that it reads.
  std::vector<std::int64_t> own;
  for (std::int64_t b = 0; b < kRequests; ++b) {
    copied.begin(b, b);
    slots.begin(T * b, b);
    for (std::int64_t t = 0; t < T; ++t) own.push_back(T * b + t);
  }
  slots.args().state_batch_indices = slots.args().dst_state_batch_indices = slots.indices(own, {kRequests, T});
  slots.args().num_accepted_tokens = slots.indices({1, 0, 1}, {kRequests});
  copied.step({0, 0, 0});
  slots.step({0, 0, 0});
  std::vector<std::int64_t> next;
  for (std::int64_t b = 0; b < kRequests; ++b) {
    const std::int64_t n = accepted[static_cast<std::size_t>(b)];
    const std::int64_t size = copied.args().state.stride[0] * 2;
    std::memcpy(Steps::bytes(copied.args().state) + b * size,
                Steps::bytes(copied.args().intermediate_states) + (b * T + n - 1) * size,
                static_cast<std::size_t>(size));
    next.push_back(n);
  }
  slots.args().num_accepted_tokens = slots.indices(accepted, {kRequests});
  copied.step(next);
  slots.step(next);
  for (std::int64_t b = 0; b < kRequests; ++b)
    for (int t = 0; t < T; ++t) {
      ASSERT_EQ(copied.out(b, t), slots.out(b, t)) << b << " " << t;
      ASSERT_EQ(copied.snapshot(b, t), slots.state(T * b + t)) << b << " " << t;
    }
}

TEST(TokenSteps, PackedRequestsGiveTheBitsOfDenseOnesAndAnEmptyOneWritesNothing) {
  NEEDS_EXECUTOR();
  for (const int T : {4, 19}) {
    Steps dense(small().tokens(T).store(Snapshots{}), kRequests),
        packed(small().tokens(T).store(Snapshots{}).varlen(), kRequests);
    for (Steps* m : {&dense, &packed}) {
      m->add_snapshots(kRequests);
      for (std::int64_t b = 0; b < kRequests; ++b) m->begin(b, b);
    }
    const std::vector<double> before = packed.state(1), nothing = packed.snapshot(0, 0);
    const std::vector<std::int64_t> tokens = {T - 1, 0, T};
    dense.step({0, 0, 0});
    packed.step({0, 0, 0}, tokens);
    for (std::int64_t b = 0; b < kRequests; ++b)
      for (int t = 0; t < tokens[static_cast<std::size_t>(b)]; ++t) {
        ASSERT_EQ(dense.out(b, t), packed.out(b, t)) << b << " " << t;
        ASSERT_EQ(dense.snapshot(b, t), packed.snapshot(b, t)) << b << " " << t;
      }
    EXPECT_EQ(packed.state(0), dense.snapshot(0, T - 2)) << "the last state is that after the last token";
    EXPECT_EQ(packed.state(1), before);
    EXPECT_EQ(nothing.size(), before.size());
    EXPECT_TRUE(std::isnan(packed.snapshot(1, 0)[0])) << "an empty request has no snapshot";
    EXPECT_TRUE(std::isnan(packed.snapshot(0, T - 1)[0])) << "nor has a token that is not there";
  }
}

TEST(TokenSteps, ATreeOfOneBranchIsTheSequenceAndABranchGoesOnFromItsParent) {
  NEEDS_EXECUTOR();
  constexpr int T = 4;
  Steps plain(small(DType::f32).tokens(T).store(Snapshots{}), kRequests);
  Steps tree(small(DType::f32).tokens(T).store(Snapshots{}).tree(), kRequests);
  for (Steps* m : {&plain, &tree}) {
    m->add_snapshots(kRequests);
    m->args().disable_state_update = true;
    for (std::int64_t b = 0; b < kRequests; ++b) m->begin(b, b);
  }
  // The last request's token 2 goes on from token 0, and its token 3 from token 1.
  tree.args().retrieve_parent_token = tree.indices({-1, 0, 1, 2, 7, -1, 99, 2, -1, 0, 0, 1}, {kRequests, T});
  plain.step({0, 0, 0});
  tree.step({0, 0, 0});
  for (std::int64_t b = 0; b < 2; ++b)
    for (int t = 0; t < T; ++t) {
      ASSERT_EQ(plain.out(b, t), tree.out(b, t)) << b << " " << t;
      ASSERT_EQ(plain.snapshot(b, t), tree.snapshot(b, t)) << b << " " << t;
    }
  for (const int t : {0, 1}) EXPECT_EQ(plain.snapshot(2, t), tree.snapshot(2, t));
  // Token 2 by itself, one token from what token 0 left.
  for (const auto& [token, parent] : {std::pair(2, 0), {3, 1}}) {
    Steps one(small(DType::f32), kRequests);
    for (std::int64_t b = 0; b < kRequests; ++b) one.begin(b, b);
    const std::vector<double> from = tree.snapshot(2, parent);
    for (std::size_t i = 0; i < from.size(); ++i)
      encode(DType::f32, Steps::bytes(one.args().state), 2 * one.args().state.stride[0] + static_cast<std::int64_t>(i),
             from[i]);
    one.step({0, 0, token});
    EXPECT_EQ(one.state(2), tree.snapshot(2, token)) << token;
    EXPECT_NE(plain.snapshot(2, token), tree.snapshot(2, token)) << token;
  }
}

TEST(TokenSteps, RoundingByChanceDependsOnNoPlanAndOnTheToken) {
  NEEDS_EXECUTOR();
  const Description d = small().tokens(3).store(Slots{}).rounding(Stochastic{});
  std::vector<std::vector<double>> first;
  for (const char* plan : {"block_m=8,warps=1,lanes_per_row=8", "block_m=16,warps=2,lanes_per_row=8",
                           "block_m=16,warps=1,lanes_per_row=8,stages=16"}) {
    Steps m(d, 4 * kRequests, plan);
    std::vector<std::int64_t> targets;
    for (std::int64_t b = 0; b < kRequests; ++b) {
      m.begin(b, b);
      for (std::int64_t t = 0; t < 3; ++t) targets.push_back(kRequests + 3 * b + t);
    }
    m.args().dst_state_batch_indices = m.indices(targets, {kRequests, 3});
    m.args().rand_seed = m.indices({12345}, {1});
    m.step({0, 0, 0});
    std::vector<std::vector<double>> states;
    for (std::int64_t slot = 0; slot < 4 * kRequests; ++slot) states.push_back(m.state(slot));
    if (first.empty()) first = states;
    EXPECT_EQ(states, first) << plan;
  }
}

// ---- faults ----

TEST(Faults, Row3_PadRowsOfSeveralTokensFormNoPointerAndHaveTheOutputThatIsDescribed) {
  NEEDS_EXECUTOR();
  for (const PadOutput pad : {PadOutput::zeros, PadOutput::untouched}) {
    Steps m(small().tokens(3).store(Snapshots{}).pad_output(pad), kRequests);
    m.add_snapshots(kRequests);
    for (std::int64_t b = 0; b < kRequests; ++b) m.begin(b, b);
    const std::vector<double> before = m.state(0);
    m.args().pad_slot_id = 0;
    // Far outside any pool: an address from it would fault.
    m.args().state_batch_indices = m.indices({0, std::int64_t{-1} << 40, 2}, {kRequests});
    m.step({0, 0, 0});
    EXPECT_EQ(m.state(0), before);
    for (const std::int64_t b : {0, 1})
      for (int t = 0; t < 3; ++t) {
        EXPECT_TRUE(std::isnan(m.snapshot(b, t)[0]));
        for (const double y : m.out(b, t)) ASSERT_EQ(pad == PadOutput::zeros, y == 0) << y;
      }
    EXPECT_FALSE(std::isnan(m.snapshot(2, 2)[0]));
  }
}

TEST(Faults, Row6_AcceptedCountsOutOfRangeChooseTheNearestTokensColumn) {
  NEEDS_EXECUTOR();
  constexpr int T = 3, kColumns = 5;
  std::vector<std::vector<double>> outs;
  for (const std::vector<std::int64_t>& counts :
       {std::vector<std::int64_t>{1, T, 1}, {0, T + 1000, std::int64_t{-1} << 40}, {-1, T + 1, 0}}) {
    Steps m(small().tokens(T).accepted_counts(), kColumns * kRequests);
    std::vector<std::int64_t> own;
    for (std::int64_t slot = 0; slot < kColumns * kRequests; ++slot) {
      m.begin(slot, slot);
      own.push_back(slot);
    }
    m.args().state_batch_indices = m.indices(own, {kRequests, kColumns});
    m.args().num_accepted_tokens = m.indices(counts, {kRequests});
    m.step({0, 0, 0});
    outs.push_back(m.out(0, 0));
    for (const std::int64_t b : {1, 2}) {
      const std::vector<double> y = m.out(b, T - 1);
      outs.back().insert(outs.back().end(), y.begin(), y.end());
    }
  }
  EXPECT_EQ(outs[0], outs[1]);
  EXPECT_EQ(outs[0], outs[2]);
}

TEST(Faults, Row8_LengthsThatAreNoneReadNothingOutsideTheTokens) {
  NEEDS_EXECUTOR();
  Steps m(small().tokens(3).varlen(), kRequests, "", true);
  for (std::int64_t b = 0; b < kRequests; ++b) m.begin(b, b);
  m.step({0, 0, 0}, {3, 3, 3});
  const std::vector<double> first = m.state(0), second = m.state(1), third = m.state(2);
  // From far past the end, down to a negative one, and from there to past the end: the last alone has tokens.
  m.args().cu_seqlens = m.indices({1 << 30, 1 << 29, -5, 1 << 28}, {kRequests + 1}, DType::i32);
  m.launch();  // out of bounds would be a finding
  EXPECT_EQ(m.state(0), first);
  EXPECT_EQ(m.state(1), second);
  EXPECT_NE(m.state(2), third);
}

TEST(Faults, Row11_NanInUnusedSlotsAndPadRowsReachesNoLiveRow) {
  NEEDS_EXECUTOR();
  Steps m(small().tokens(3).store(Slots{}), 6);
  m.begin(5, 0);
  m.args().state_batch_indices = m.indices({-1, 5, -1}, {kRequests});
  m.args().dst_state_batch_indices = m.indices({0, 1, 2, 3, 5, 4, 0, 1, 2}, {kRequests, 3});
  m.step({0, 0, 0});
  for (int t = 0; t < 3; ++t)
    for (const double y : m.out(1, t)) ASSERT_FALSE(std::isnan(y));
  for (const std::int64_t slot : {3, 4, 5}) ASSERT_FALSE(std::isnan(m.state(slot)[0])) << slot;
  for (const std::int64_t slot : {0, 1, 2}) ASSERT_TRUE(std::isnan(m.state(slot)[0])) << slot;
}

TEST(Faults, Row14_Fp16OutputsAndStatesPastTheLargestAreInfinityAndNeverNan) {
  NEEDS_EXECUTOR();
  const Description d = small(DType::f16).input(DType::f16).tokens(2).store(Slots{}).no_skip();
  Steps m(d, 3 * kRequests);
  for (std::int64_t b = 0; b < kRequests; ++b) m.begin(b, b);
  m.args().D = Tensor{};
  m.args().dst_state_batch_indices = m.indices({3, 4, 5, 6, 7, 8}, {kRequests, 2});
  m.step({0, 0, 0});
  for (const Tensor* t : {&m.args().x, &m.args().B, &m.args().C})
    for (std::int64_t i = 0; i < t->shape[0] * t->stride[0]; ++i) encode(t->dtype, Steps::bytes(*t), i, 300.0);
  for (std::int64_t i = 0; i < kRequests * 2 * d.nheads; ++i) encode(DType::f32, Steps::bytes(m.args().dt), i, 4.0);
  m.launch();
  for (const double y : m.out(0, 1)) ASSERT_EQ(y, std::numeric_limits<double>::infinity());
  for (const double s : m.state(4)) ASSERT_EQ(s, std::numeric_limits<double>::infinity());
}

}  // namespace
}  // namespace ssmjit
