// Layers and their chains on the CPU executor: one form against another, step behind step, and what must be survived.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/cpu.h>
#include <ssmjit/kernel.h>
#include <ssmjit/plan.h>
#include <ssmjit/source.h>

#include "autotune/cpu_verify.h"
#include "autotune/host_numbers.h"
#include "autotune/layer_case.h"
#include "jit/cpu/executor.h"
#include "jit/kernel_args.h"
#include "jit/layer_chain.h"

namespace ssmjit {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;

#define NEEDS_EXECUTOR() \
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing

// Two groups of two heads, a norm of each.
Description in_place(const Sizes& sizes = {.nheads = 4, .head_dim = 32, .dstate = 64, .ngroups = 2}) {
  const int group = sizes.nheads / sizes.ngroups * sizes.head_dim;
  return mamba2(sizes)
      .state(DType::bf16)
      .with_conv({.activation_expr = silu(dsl::x)})
      .with_norm({.group_size = group, .gate_expr = silu(dsl::z)});
}
Description with_ring(int tokens = 3, const Sizes& sizes = {.nheads = 4, .head_dim = 32, .dstate = 64, .ngroups = 2}) {
  return in_place(sizes).tokens(tokens).store(Ring{.window = 8});
}

Plan chain_of_parts(const Description& d) {
  std::vector<Plan> parts;
  for (const Description& part : layer_parts(d)) {
    parts.push_back(default_plan(part, Arch{}, 64));
    parts.back().early_state = true;
  }
  return chain_of(PlanForm::chain_pdl, d, parts);
}

// A case's memory, and steps over it by a plan.
class Steps {
 public:
  Steps(const Description& d, const CaseLayout& layout, const Plan& plan, std::uint64_t seed = 1)
      : case_(d, layout, seed), plan_(plan), source_(emit(d, plan, Arch{})), parts_(plan_parts(plan, d)) {
    for (const KernelCase::Block& block : case_.blocks()) memory_.push_back(block.before);
    for (std::size_t i = 0; i < memory_.size(); ++i) buffers_.push_back(cpu_buffer(case_.blocks()[i], memory_[i]));
    std::vector<std::byte*> base;
    for (std::vector<std::byte>& block : memory_) base.push_back(block.data());
    args_ = case_.args(base);
    program_.emplace(CpuProgram::compile(source_));
  }

  LayerArgs& args() { return args_; }
  const LayerArgs& args() const { return args_; }
  const LayerCase& test() const { return case_; }
  std::vector<std::vector<std::byte>>& memory() { return memory_; }
  const std::vector<std::string>& findings() const { return findings_; }
  // Behind the steps before it, whose launches may still run where this one's depend on them.
  Steps& step(Pdl pdl) {
    const auto batch = static_cast<int>(args_.x.shape[0]);
    args_.pdl = pdl;
    std::size_t part = 0;
    const auto run_device = [&](const auto& device) {
      CpuLaunch launch = cpu_launch(launch_shape(parts_[part].plan, parts_[part].description, batch), device, buffers_);
      launch.entry = source_.entries[part].name;
      if (!launch.dependent) in_flight_.clear();  // an ordinary launch starts when all before it have ended
      launch.in_flight = in_flight_;
      launch.record_stores = true;
      launch.timeout_s = 60;
      CpuReport report = program_->run(launch);
      for (const CpuFinding& f : report.findings) findings_.push_back(f.text());
      in_flight_.push_back(std::move(report.stores));
      for (std::size_t i = 0; i < buffers_.size(); ++i) buffers_[i].initialised = true;
      ++part;
    };
    const auto run = [&](const auto& given, Pdl how) {
      with_device_args(parts_[part].description, given, how, run_device);
    };
    if (plan_.form == PlanForm::fused) {
      run(args_, pdl);
      return *this;
    }
    const ChainArgs chain = chain_args(case_.description(), plan_.form, args_);
    const auto one = [&](const auto& given) {
      if (given) run(*given, given->pdl);
    };
    one(chain.conv1d);
    one(chain.update);
    one(chain.ring);
    one(chain.norm);
    return *this;
  }
  // Without the scratch, which is nobody's.
  std::vector<std::vector<std::byte>> result() const {
    std::vector<std::vector<std::byte>> all = memory_;
    for (std::size_t i = 0; i < all.size(); ++i)
      if (case_.blocks()[i].name == "scratch") all[i].clear();
    return all;
  }
  double out(std::int64_t row, int t, std::int64_t channel) const {
    return stored_value(args_.out, layer_token_at(case_.description(), args_.out, row, t) + channel, read_host);
  }

 private:
  LayerCase case_;
  Plan plan_;
  Source source_;
  std::vector<PlanPart> parts_;
  std::vector<std::vector<std::byte>> memory_;
  std::vector<CpuBuffer> buffers_;
  LayerArgs args_;
  std::optional<CpuProgram> program_;
  std::vector<CpuStores> in_flight_;
  std::vector<std::string> findings_;
};

std::byte* bytes_of(const Tensor& t) { return static_cast<std::byte*>(const_cast<void*>(t.data)); }
void put(const Tensor& t, std::int64_t at, double value) { encode(t.dtype, bytes_of(t), at, value); }
void fill(const Tensor& t, std::int64_t at, std::int64_t count, double value) {
  for (std::int64_t i = 0; i < count; ++i) put(t, at + i, value);
}
void set_slot(const LayerArgs& args, std::int64_t row, std::int32_t slot) {
  std::memcpy(bytes_of(args.state_batch_indices) + row * 4, &slot, 4);
}

const CaseLayout kThree{.batch = 3, .indexed = true};

// ---- forms ----

TEST(CpuLayer, AsOneKernelIsAChainWithinThreeUnitsOfTheOutput) {
  NEEDS_EXECUTOR();
  for (const Description& d : {in_place(), in_place().state(DType::f32), in_place().tokens(4),
                               in_place().tokens(8).state(DType::f32), with_ring(1), with_ring(3)}) {
    const Plan fused = default_plan(d, Arch{}, 64);
    if (fused.form != PlanForm::fused) continue;  // of a ring there may be none
    Steps one(d, {.batch = 5, .indexed = true}, fused), chain(d, {.batch = 5, .indexed = true}, chain_of_parts(d));
    one.step(Pdl::off);
    chain.step(Pdl::off);
    EXPECT_THAT(one.findings(), IsEmpty());
    EXPECT_THAT(chain.findings(), IsEmpty());
    NearnessMeter out(d.input_dtype, d.dstate);
    const int width = d.nheads * d.head_dim;
    for (std::int64_t b = 0; b < 5; ++b)
      for (int t = 0; t < d.token_count; ++t) {
        const std::int64_t at = layer_token_at(d, chain.args().out, b, t);
        out.add_row(stored_values(chain.args().out, at, width, read_host).data(),
                    stored_values(one.args().out, at, width, read_host));
      }
    // Where y is rounded to another neighbour its unit is up to two of the output's.
    EXPECT_LE(out.result().worst_ulp, 3) << d.summary();
    EXPECT_LE(out.result().past_two, 1e-3) << d.summary();
    EXPECT_LE(out.result().frobenius, 1e-3) << d.summary();
    for (std::size_t i = 0; i < one.memory().size(); ++i) {
      const std::string& name = one.test().blocks()[i].name;
      if (name == "conv_state" || name == "x_ring" || name == "B_ring") {
        EXPECT_EQ(one.memory()[i], chain.memory()[i]) << name;
      }
    }
  }
}

// ---- several tokens ----

// What of a case is of one token of `from`, and all that is of none, into a case of single tokens.
void take_token(const Steps& from, int t, Steps& to) {
  const LayerArgs &of = from.args(), &one = to.args();
  const std::int64_t batch = of.x.shape[0];
  const auto rows = [&](const Tensor& source, const Tensor& target, std::int64_t width) {
    const std::int64_t bytes = size_bytes(source.dtype);
    for (std::int64_t b = 0; b < batch; ++b)
      std::memcpy(bytes_of(target) + b * target.stride[0] * bytes,
                  bytes_of(source) + layer_token_at(from.test().description(), source, b, t) * bytes,
                  static_cast<std::size_t>(width * bytes));
  };
  const Description& d = from.test().description();
  rows(of.x, one.x, d.conv_channels());
  rows(of.z, one.z, std::int64_t{d.nheads} * d.head_dim);
  rows(of.dt, one.dt, d.nheads);
}

TEST(CpuLayer, OfSeveralTokensLeavesTheBitsOfTheStateAndTheWindowsOfAsManyStepsOfOne) {
  NEEDS_EXECUTOR();
  for (const int tokens : {2, 5}) {
    const Description one = in_place().state(DType::f32), all = in_place().state(DType::f32).tokens(tokens);
    const Plan fused = default_plan(all, Arch{}, 64), fused_one = default_plan(one, Arch{}, 64);
    ASSERT_EQ(fused.form, PlanForm::fused);
    Steps together(all, kThree, fused), singly(one, kThree, fused_one);
    for (std::size_t i = 0; i < together.memory().size(); ++i) {
      const std::string& name = together.test().blocks()[i].name;
      ASSERT_EQ(name, singly.test().blocks()[i].name);
      if (together.memory()[i].size() == singly.memory()[i].size()) singly.memory()[i] = together.memory()[i];
    }
    NearnessMeter out(all.input_dtype, all.dstate);
    const int width = all.nheads * all.head_dim;
    together.step(Pdl::off);
    for (int t = 0; t < tokens; ++t) {
      take_token(together, t, singly);
      singly.step(Pdl::off);
      for (std::int64_t b = 0; b < 3; ++b)
        out.add_row(
            stored_values(singly.args().out, layer_token_at(one, singly.args().out, b, 0), width, read_host).data(),
            stored_values(together.args().out, layer_token_at(all, together.args().out, b, t), width, read_host));
    }
    EXPECT_THAT(together.findings(), IsEmpty());
    EXPECT_THAT(singly.findings(), IsEmpty());
    for (std::size_t i = 0; i < together.memory().size(); ++i) {
      const std::string& name = together.test().blocks()[i].name;
      if (name == "state" || name == "conv_state") {
        EXPECT_TRUE(together.memory()[i] == singly.memory()[i]) << name;
      }
    }
    EXPECT_LE(out.result().worst_ulp, 1) << "a norm's sums are added in another order";
  }
}

// ---- step behind step ----

TEST(CpuLayer, SteppedTwiceInARowUnderWaitFirstGivesTheBitsOfOffWithoutAFinding) {
  NEEDS_EXECUTOR();
  for (const Description& d : {in_place(), in_place().tokens(3), with_ring()}) {
    const Plan plan = chain_of_parts(d);
    Steps off(d, kThree, plan), waiting(d, kThree, plan);
    off.step(Pdl::off).step(Pdl::off);
    waiting.step(Pdl::wait_first).step(Pdl::wait_first);
    EXPECT_THAT(waiting.findings(), IsEmpty());
    EXPECT_THAT(off.findings(), IsEmpty());
    EXPECT_TRUE(waiting.result() == off.result()) << d.summary();
  }
}

TEST(CpuLayer, SteppedTwiceInARowUnderEarlyStateReadsWhatTheStepBeforeMayStillWrite) {
  NEEDS_EXECUTOR();
  // The caller's promise, broken: both steps are of one layer.
  Steps early(in_place(), kThree, chain_of_parts(in_place()));
  early.step(Pdl::early_state);
  EXPECT_THAT(early.findings(), IsEmpty());
  early.step(Pdl::early_state);
  EXPECT_THAT(early.findings(), Contains(AllOf(HasSubstr("in kernel ssmjit_layer_conv1d_"), HasSubstr("of conv_state"),
                                               HasSubstr("before grid_dependency_wait, which ssmjit_layer_conv1d_"))));
}

TEST(CpuLayer, AnAllPadBatchInsideAChainHidesNoStepBeforeIt) {
  NEEDS_EXECUTOR();
  for (const Description& d : {in_place(), in_place().tokens(3), with_ring()}) {
    const Plan plan = chain_of_parts(d);
    const auto stepped = [&](Pdl pdl) {
      Steps s(d, kThree, plan);
      s.step(pdl);
      std::vector<std::byte> slots(12);
      std::memcpy(slots.data(), bytes_of(s.args().state_batch_indices), 12);
      for (std::int64_t b = 0; b < 3; ++b) set_slot(s.args(), b, b == 2 ? 1000 : -1);
      s.step(pdl);
      for (std::int64_t b = 0; b < 3; ++b)
        for (int t = 0; t < d.token_count; ++t) EXPECT_EQ(s.out(b, t, 5), 0);
      std::memcpy(bytes_of(s.args().state_batch_indices), slots.data(), 12);
      s.step(pdl);
      EXPECT_THAT(s.findings(), IsEmpty());
      return s.result();
    };
    EXPECT_TRUE(stepped(Pdl::wait_first) == stepped(Pdl::off)) << d.summary();
  }
}

// ---- rows of the list of faults ----

std::vector<std::pair<Description, Plan>> every_form() {
  std::vector<std::pair<Description, Plan>> all;
  for (const Description& d : {in_place(), in_place().tokens(3), with_ring()}) {
    const Plan one = default_plan(d, Arch{}, 64);
    if (one.form == PlanForm::fused) all.emplace_back(d, one);
    all.emplace_back(d, chain_of_parts(d));
  }
  return all;
}

TEST(CpuLayerFaults, Row02And03And04_PaddedPoolsNegativeIndicesAndIndicesPastThePoolAreComputedOrPads) {
  NEEDS_EXECUTOR();
  for (const auto& [d, plan] : every_form())
    for (const DType index : {DType::i32, DType::i64}) {
      Steps s(d, {.batch = 9, .index_dtype = index, .indexed = true, .padded_state = true, .pads = true}, plan);
      s.step(Pdl::off);
      EXPECT_THAT(s.findings(), IsEmpty());
      EXPECT_THAT(s.test().check(s.memory()).failures, IsEmpty()) << plan.text();
    }
}

TEST(CpuLayerFaults, Row11_NanOfPadRowsUnusedSlotsAndDeadRowsReachesNoLiveRow) {
  NEEDS_EXECUTOR();
  for (const auto& [d, plan] : every_form()) {
    Steps clean(d, kThree, plan), dirty(d, kThree, plan);
    for (Steps* s : {&clean, &dirty}) set_slot(s->args(), 1, -1);
    for (int t = 0; t < d.token_count; ++t) {
      fill(dirty.args().x, layer_token_at(d, dirty.args().x, 1, t), d.conv_channels(), std::nan(""));
      fill(dirty.args().dt, layer_token_at(d, dirty.args().dt, 1, t), d.nheads,
           std::numeric_limits<double>::infinity());
    }
    clean.step(Pdl::off);
    dirty.step(Pdl::off);
    EXPECT_THAT(dirty.findings(), IsEmpty());
    for (const std::int64_t b : {0, 2})
      for (int t = 0; t < d.token_count; ++t)
        for (std::int64_t c = 0; c < d.nheads * d.head_dim; ++c) {
          ASSERT_TRUE(std::isfinite(dirty.out(b, t, c)));
          ASSERT_EQ(dirty.out(b, t, c), clean.out(b, t, c));
        }
    for (int t = 0; t < d.token_count; ++t) EXPECT_EQ(dirty.out(1, t, 7), 0) << "zeros where its z is finite";
  }
}

// What an engine resets of a slot that changes hands: the state, the window, the cursors. The rings keep their rows.
TEST(CpuLayerFaults, Row12_AFreshRequestOnAResetSlotGivesTheBitsOfOneOnAFreshPool) {
  NEEDS_EXECUTOR();
  for (const auto& [d, plan] : every_form()) {
    const auto stepped = [&](bool used) {
      Steps s(d, kThree, plan);
      const LayerArgs& a = s.args();
      const bool ring = d.ring_window() != 0;
      std::int32_t slot = 0;
      std::memcpy(&slot, bytes_of(a.state_batch_indices), 4);
      if (used) s.step(Pdl::off);
      fill(a.state, slot * a.state.stride[0], std::int64_t{d.nheads} * d.head_dim * d.dstate, 0);
      fill(a.conv_state, slot * a.conv_state.stride[0], std::int64_t{d.conv_channels()} * d.conv_state_len(), 0);
      if (ring) {
        const std::int32_t none = 0;
        std::memcpy(bytes_of(a.ring_start) + slot * 4, &none, 4);
        std::memcpy(bytes_of(a.ring_count) + slot * 4, &none, 4);
        const double was = used ? std::nan("") : 0;  // rows that another request has left
        fill(a.x_ring, slot * a.x_ring.stride[0], std::int64_t{d.nheads} * d.ring_length() * d.head_dim, was);
        fill(a.B_ring, slot * a.B_ring.stride[0], std::int64_t{d.ngroups} * d.ring_length() * d.dstate, was);
        fill(a.dt_ring, slot * a.dt_ring.stride[0], std::int64_t{d.nheads} * d.ring_length(), was);
      }
      s.step(Pdl::off);
      EXPECT_THAT(s.findings(), IsEmpty());
      std::vector<double> out;
      for (int t = 0; t < d.token_count; ++t)
        for (std::int64_t c = 0; c < d.nheads * d.head_dim; ++c) out.push_back(s.out(0, t, c));
      return out;
    };
    const std::vector<double> fresh = stepped(false);
    EXPECT_EQ(stepped(true), fresh) << plan.text();
    EXPECT_TRUE(std::all_of(fresh.begin(), fresh.end(), [](double v) { return std::isfinite(v); }));
  }
}

TEST(CpuLayerFaults, Row16_SlicesOfAPackedProjectionOddRatiosAndOddSizesAreComputed) {
  NEEDS_EXECUTOR();
  const std::vector<Description> kinds = {
      in_place({.nheads = 6, .head_dim = 32, .dstate = 96, .ngroups = 2}),
      in_place({.nheads = 14, .head_dim = 16, .dstate = 64, .ngroups = 1}),
      in_place({.nheads = 6, .head_dim = 32, .dstate = 96, .ngroups = 2}).tokens(4),
      with_ring(2, {.nheads = 6, .head_dim = 80, .dstate = 64, .ngroups = 2}),
      with_ring(3, {.nheads = 14, .head_dim = 16, .dstate = 96, .ngroups = 1}).with_conv({.width = 2}),
      with_ring(3, {.nheads = 3, .head_dim = 32, .dstate = 64, .ngroups = 1}).with_conv({.width = 3})};
  for (const Description& d : kinds) {
    Steps s(d, {.batch = 3, .index_dtype = DType::i64, .indexed = true, .packed_rows = true}, chain_of_parts(d));
    s.step(Pdl::off);
    EXPECT_THAT(s.findings(), IsEmpty());
    EXPECT_THAT(s.test().check(s.memory()).failures, IsEmpty()) << d.summary();
  }
}

TEST(CpuLayerFaults, Row18_AWindowGoesToSlotsOfWhichOneIsItsOwn) {
  NEEDS_EXECUTOR();
  for (const Description& d : {with_ring().with_conv({.keep = ConvKeep::slots}),
                               with_ring().with_conv({.channels_last = true, .keep = ConvKeep::slots})}) {
    Steps s(d, {.batch = 4, .indexed = true, .pads = true}, chain_of_parts(d));
    s.step(Pdl::off);
    EXPECT_THAT(s.findings(), IsEmpty());
    EXPECT_THAT(s.test().check(s.memory()).failures, IsEmpty());
  }
}

TEST(CpuLayerFaults, Row18_TheSameSeedRoundsAlikeAtEachReplayAndAnotherSeedDoesNot) {
  NEEDS_EXECUTOR();
  const Description d = with_ring().rounding(Stochastic{});
  const auto stepped = [&](std::int64_t seed) {
    Steps s(d, {.batch = 1}, chain_of_parts(d));
    std::memcpy(bytes_of(s.args().rand_seed), &seed, 8);
    s.step(Pdl::off);
    return stored_values(s.args().state, 0, d.nheads * d.head_dim * d.dstate, read_host);
  };
  const std::vector<double> first = stepped(7);
  EXPECT_EQ(stepped(7), first);
  EXPECT_NE(stepped(8), first) << "the request flushes";
}

}  // namespace
}  // namespace ssmjit
