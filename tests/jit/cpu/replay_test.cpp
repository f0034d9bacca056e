// Many replay steps one behind the other on the CPU executor, the host's bookkeeping between them, against the
// recurrence over the tokens that were kept.
#include <cmath>
#include <cstring>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/cpu.h>
#include <ssmjit/source.h>

#include "autotune/cpu_verify.h"
#include "autotune/host_numbers.h"
#include "autotune/replay_case.h"
#include "jit/kernel_args.h"

namespace ssmjit {
namespace {

using testing::IsEmpty;

constexpr int kHeads = 4, kGroups = 2, kHeadDim = 16, kDstate = 64, kTokens = 6, kSlots = 5, kBatch = 3;
constexpr Arch kArch{9, 0, 'a'};

Description step_of(DType state) {
  return mamba2({.nheads = kHeads, .head_dim = kHeadDim, .dstate = kDstate, .ngroups = kGroups})
      .tokens(kTokens)
      .state(state)
      .store(Replay{});
}

// One or two launches, one behind the other.
void run_parts(const CpuProgram& program, const std::vector<Entry>& entries, const std::vector<PlanPart>& parts,
               int batch, const device_args::RingArgs& device, std::vector<CpuBuffer> buffers) {
  ASSERT_EQ(entries.size(), parts.size());
  for (std::size_t i = 0; i < parts.size(); ++i) {
    CpuLaunch launch = cpu_launch(launch_shape(parts[i], batch), device, buffers);
    launch.entry = entries[i].name;
    for (const CpuFinding& finding : program.run(launch).findings) ADD_FAILURE() << finding.text();
    for (CpuBuffer& buffer : buffers)
      if (buffer.name == "scratch") buffer.initialised = true;
  }
}

// The memory of a step, tensor by tensor.
class Replays {
 public:
  Replays(const Description& description, const std::string& plan_text) : description_(description) {
    const Description& d = description_;
    plan_ = Plan::parse(plan_text, default_plan(d, kArch, kBatch * kHeads));
    const Source source = emit(d, plan_, kArch);
    entries_ = source.entries;
    program_.emplace(CpuProgram::compile(source));
    args_.scratch = tensor(DType::i8, {4096});
    args_.state = tensor(d.state_dtype, {kSlots, kHeads, kHeadDim, kDstate});
    args_.old_x = tensor(DType::bf16, {kSlots, kTokens, kHeads, kHeadDim});
    args_.old_B = tensor(DType::bf16, {kSlots, 2, kTokens, kGroups, kDstate});
    args_.old_dt = tensor(DType::f32, {kSlots, 2, kHeads, kTokens});
    args_.old_cumAdt = tensor(DType::f32, {kSlots, 2, kHeads, kTokens});
    args_.cache_buf_idx = tensor(DType::i32, {kSlots});
    args_.prev_num_accepted_tokens = tensor(DType::i32, {kSlots});
    args_.x = tensor(DType::bf16, {kBatch, kTokens, kHeads, kHeadDim});
    args_.B = tensor(DType::bf16, {kBatch, kTokens, kGroups, kDstate});
    args_.C = tensor(DType::bf16, {kBatch, kTokens, kGroups, kDstate});
    args_.dt = tensor(DType::f32, {kBatch, kTokens, kHeads});
    args_.out = tensor(DType::bf16, {kBatch, kTokens, kHeads, kHeadDim});
    args_.A = tensor(DType::f32, {kHeads});
    args_.D = tensor(DType::f32, {kHeads});
    args_.dt_bias = tensor(DType::f32, {kHeads});
    args_.state_batch_indices = tensor(DType::i32, {kBatch});
    for (const Tensor* t : {&args_.A, &args_.D, &args_.dt_bias}) fill(*t, t == &args_.D ? 0 : -1.0, 0.3);
    fill(args_.state, 0, 1);
    for (int slot = 0; slot < kSlots; ++slot)
      set(args_.cache_buf_idx, slot, slot % 2), set(args_.prev_num_accepted_tokens, slot, 0);
    h_ = stored_values(args_.state, 0, kSlots * kHeads * kHeadDim * kDstate, read_host);
  }

  // A step of requests in these slots with new inputs, of which `accepted` tokens are then kept. Worst error of the
  // outputs, against their root mean square.
  double step(const std::vector<int>& slots, const std::vector<int>& accepted) {
    for (const Tensor* t : {&args_.x, &args_.B, &args_.C, &args_.dt}) fill(*t, 0, 1);
    for (int b = 0; b < kBatch; ++b) set(args_.state_batch_indices, b, slots[static_cast<std::size_t>(b)]);
    const device_args::RingArgs device = to_device(args_, Pdl::off);
    run_parts(*program_, entries_, plan_parts(plan_, description_), kBatch, device, buffers_);
    double error2 = 0, norm2 = 0;
    for (int b = 0; b < kBatch; ++b) {
      const int slot = slots[static_cast<std::size_t>(b)], kept = accepted[static_cast<std::size_t>(b)];
      for (int h = 0; h < kHeads; ++h) compare(b, slot, h, kept, error2, norm2);
      // What the host does once a model step.
      set(args_.prev_num_accepted_tokens, slot, kept);
      set(args_.cache_buf_idx, slot, 1 - static_cast<int>(stored_index(args_.cache_buf_idx, slot, read_host)));
    }
    return std::sqrt(error2 / norm2);
  }
  std::mt19937_64& random() { return random_; }

 private:
  Tensor tensor(DType dtype, std::initializer_list<std::int64_t> shape) {
    std::int64_t count = 1;
    for (std::int64_t extent : shape) count *= extent;
    memory_.push_back(std::vector<std::byte>(static_cast<std::size_t>(count * size_bytes(dtype)), std::byte{0xff}));
    buffers_.push_back({.name = std::to_string(memory_.size()),
                        .data = memory_.back().data(),
                        .bytes = memory_.back().size(),
                        .writable = true});
    return contiguous(memory_.back().data(), dtype, shape);
  }
  static std::byte* bytes_of(const Tensor& t) { return static_cast<std::byte*>(const_cast<void*>(t.data)); }
  void fill(const Tensor& t, double mean, double deviation) {
    std::normal_distribution<double> normal(mean, deviation);
    std::int64_t count = 1;
    for (int i = 0; i < t.rank; ++i) count *= t.shape[static_cast<std::size_t>(i)];
    for (std::int64_t i = 0; i < count; ++i) {
      const double v = normal(random_);
      encode(t.dtype, bytes_of(t), i, &t == &args_.A ? -std::abs(v) : v);
    }
  }
  static void set(const Tensor& t, std::int64_t i, std::int32_t v) { std::memcpy(bytes_of(t) + 4 * i, &v, 4); }

  // Outputs of all tokens of a head; the first `kept` then stay in the recurrence.
  void compare(int b, int slot, int h, int kept, double& error2, double& norm2) {
    const auto get = [](const Tensor& t, std::int64_t i) { return stored_value(t, i, read_host); };
    const int group = h / (kHeads / kGroups);
    double* const state = h_.data() + (slot * kHeads + h) * kHeadDim * kDstate;
    std::vector<double> now(state, state + kHeadDim * kDstate);
    for (int t = 0; t < kTokens; ++t) {
      const int row = b * kTokens + t;
      const double delta = std::log1p(std::exp(get(args_.dt, row * kHeads + h) + get(args_.dt_bias, h)));
      const double decay = std::exp(get(args_.A, h) * delta);
      for (int p = 0; p < kHeadDim; ++p) {
        const double x = get(args_.x, (row * kHeads + h) * kHeadDim + p);
        double y = get(args_.D, h) * x;
        for (int n = 0; n < kDstate; ++n) {
          double& s = now[static_cast<std::size_t>(p * kDstate + n)];
          s = s * decay + delta * x * get(args_.B, (row * kGroups + group) * kDstate + n);
          y += s * get(args_.C, (row * kGroups + group) * kDstate + n);
        }
        const double got = get(args_.out, (row * kHeads + h) * kHeadDim + p);
        error2 += (got - y) * (got - y);
        norm2 += y * y;
      }
      if (t + 1 == kept) std::copy(now.begin(), now.end(), state);
    }
  }

  Description description_;
  Plan plan_;
  std::optional<CpuProgram> program_;
  std::vector<Entry> entries_;
  std::vector<std::vector<std::byte>> memory_;
  std::vector<CpuBuffer> buffers_;
  ReplayArgs args_;
  std::vector<double> h_;  // [slots, heads, head_dim, dstate]: after all tokens that were kept
  std::mt19937_64 random_{7};
};

constexpr const char* kPlans[] = {"ring_rows=all", "ring_rows=live,early_state=true",
                                  "state_path=bulk,ring_rows=live,heads_per_block=2,stages=2,block_m=16,warps=1",
                                  "ring_rows=live,precompute_warps=2,precompute_heads=2"};

// Whatever is accepted, none to all, step after step, in slots that requests take in turns.
TEST(ReplaySteps, FollowTheRecurrenceOverTheTokensThatWereKept) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  for (const char* plan : kPlans) {
    Replays replays(step_of(DType::f32), plan);
    for (int step = 0; step < 9; ++step) {
      std::vector<int> slots, accepted;
      for (int b = 0; b < kBatch; ++b) {
        slots.push_back((2 * b + step) % kSlots);
        accepted.push_back(step < 7 ? (step + b) % (kTokens + 1)
                                    : static_cast<int>(replays.random()() % (kTokens + 1)));
      }
      EXPECT_LT(replays.step(slots, accepted), 5e-3) << plan << ", step " << step;
    }
  }
}

// A 16-bit state is rounded once a step, so that errors do not grow past what the decay forgets.
TEST(ReplaySteps, StateOf16BitsStaysNearTheRecurrence) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  Replays replays(step_of(DType::bf16), "ring_rows=all");
  for (int step = 0; step < 20; ++step) EXPECT_LT(replays.step({0, 2, 4}, {6, step % 7, 3}), 1e-2) << step;
}

// ---- rows of the list of faults ----

// Compiled once.
const CpuProgram& program_of(const Description& description, const Plan& plan) {
  static std::map<std::string, CpuProgram> all;
  const Source source = emit(description, plan, kArch);
  auto found = all.find(source.digest);
  if (found == all.end()) found = all.emplace(source.digest, CpuProgram::compile(source)).first;
  return found->second;
}

// A case's memory after one launch of the default plan.
class OneLaunch {
 public:
  OneLaunch(const Description& description, const CaseLayout& layout, const std::string& plan = "ring_rows=all")
      : case_(description, layout, 3),
        plan_(Plan::parse(plan, default_plan(description, kArch, 8))),
        entries_(emit(description, plan_, kArch).entries),
        program_(program_of(description, plan_)) {
    for (const KernelCase::Block& block : case_.blocks()) memory_.push_back(block.before);
    std::vector<std::byte*> base;
    for (std::vector<std::byte>& block : memory_) base.push_back(block.data());
    args = case_.args(base);
  }
  // What the blocks then hold.
  const std::vector<std::vector<std::byte>>& run() {
    std::vector<CpuBuffer> buffers;
    for (std::size_t i = 0; i < memory_.size(); ++i) buffers.push_back(cpu_buffer(case_.blocks()[i], memory_[i]));
    const device_args::RingArgs device = to_device(args, Pdl::off);
    run_parts(program_, entries_, plan_parts(plan_, case_.description()), case_.layout().batch, device, buffers);
    return memory_;
  }
  std::vector<std::string> failures() { return case_.check(run()).failures; }
  // What a launch leaves, but for what two pass on.
  std::vector<std::vector<std::byte>> left() {
    run();
    for (std::size_t i = 0; i < memory_.size(); ++i)
      if (case_.blocks()[i].name == "scratch") memory_[i].clear();
    return memory_;
  }
  void set(const Tensor& t, double v) {
    std::int64_t count = 1;
    for (int i = 0; i < t.rank; ++i) count *= t.shape[static_cast<std::size_t>(i)];
    for (std::int64_t i = 0; i < count; ++i) encode(t.dtype, static_cast<std::byte*>(const_cast<void*>(t.data)), i, v);
  }

  ReplayArgs args;

 private:
  ReplayCase case_;
  Plan plan_;
  std::vector<Entry> entries_;
  const CpuProgram& program_;
  std::vector<std::vector<std::byte>> memory_;
};

TEST(ReplayByTwoLaunches, LeavesTheBitsOfOneLaunch) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  constexpr const char* kFirst[] = {",precompute_warps=1,precompute_heads=2", ",precompute_warps=2,precompute_heads=2",
                                    ",precompute_warps=1,precompute_heads=1"};
  int which = 0;
  for (const Description& d : {step_of(DType::bf16), step_of(DType::f32).tokens(13), step_of(DType::f16).tokens(1),
                               step_of(DType::f16).rounding(Stochastic{}).gate(silu(dsl::z))})
    for (const char* plan : kPlans) {
      if (std::string(plan).find("precompute") != std::string::npos || plan == std::string("ring_rows=all")) continue;
      const CaseLayout layout{.batch = 7, .indexed = true, .pads = true};
      EXPECT_EQ(OneLaunch(d, layout, plan + std::string(kFirst[which++ % 3])).left(), OneLaunch(d, layout, plan).left())
          << d.summary() << " " << plan;
    }
}

TEST(Faults, Row3And4_PadRowsOfAReplayFormNoPointerAndHaveTheOutputThatIsDescribed) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  for (const PadOutput pad : {PadOutput::zeros, PadOutput::untouched})
    EXPECT_THAT(OneLaunch(step_of(DType::bf16).pad_output(pad),
                          {.batch = 9, .index_dtype = DType::i64, .indexed = true, .padded_state = true, .pads = true})
                    .failures(),
                IsEmpty());
}

TEST(Faults, Row6_BuffersAndCountsOfAReplayOutOfRangeAreThoseNextToThem) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Description d = step_of(DType::bf16);
  for (const char* plan : {"ring_rows=all", "ring_rows=live"}) {
    const auto after = [&](int buffer, int count) {
      OneLaunch launch(d, {.batch = 1}, plan);
      const std::int32_t cursors[] = {buffer, count};
      std::memcpy(const_cast<void*>(launch.args.cache_buf_idx.data), &cursors[0], 4);
      std::memcpy(const_cast<void*>(launch.args.prev_num_accepted_tokens.data), &cursors[1], 4);
      for (const Tensor* t : {&launch.args.old_B, &launch.args.old_dt, &launch.args.old_cumAdt, &launch.args.old_x})
        launch.set(*t, t == &launch.args.old_cumAdt ? -0.25 : 0.25);
      // The second buffer holds other numbers, so that one taken for the other shows.
      for (const Tensor* t : {&launch.args.old_B, &launch.args.old_dt, &launch.args.old_cumAdt})
        for (std::int64_t slot = 0; slot < t->shape[0]; ++slot)
          for (std::int64_t i = 0; i < t->stride[1]; ++i)
            encode(t->dtype, static_cast<std::byte*>(const_cast<void*>(t->data)),
                   slot * t->stride[0] + t->stride[1] + i, t == &launch.args.old_cumAdt ? -0.5 : 0.5);
      launch.run();
      const std::int64_t states = std::int64_t{kHeads} * kHeadDim * kDstate;
      std::vector<double> values = stored_values(launch.args.state, 0, static_cast<int>(states), read_host);
      const std::vector<double> out = stored_values(launch.args.out, 0, kTokens * kHeads * kHeadDim, read_host);
      values.insert(values.end(), out.begin(), out.end());
      return values;
    };
    const std::vector<double> all = after(0, kTokens), first_two = after(0, 2);
    EXPECT_EQ(after(0, 99), all);
    EXPECT_EQ(after(1, -5), after(1, 0));
    EXPECT_EQ(after(9, 2), after(1, 2));
    EXPECT_NE(after(1, 2), first_two);
    EXPECT_EQ(after(-3, 2), first_two);
    EXPECT_NE(first_two, all);
  }
}

TEST(Faults, Row11And13_NanOfTheOtherBufferReachesNoRowAndStatesThatDieOrHardlyDecayAreRight) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  for (const DType input : {DType::bf16, DType::f16})
    EXPECT_THAT(OneLaunch(step_of(DType::bf16).input(input), {.batch = 7, .strong_decay = true}).failures(), IsEmpty());
}

TEST(Faults, Row14_OutputsOfAReplayPastTheLargestFp16AreInfinityAndNeverNan) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  OneLaunch launch(step_of(DType::f32).input(DType::f16), {.batch = 2});
  for (const Tensor* t : {&launch.args.x, &launch.args.B, &launch.args.C}) launch.set(*t, 3e4);
  launch.run();
  const std::vector<double> out = stored_values(launch.args.out, 0, 2 * kTokens * kHeads * kHeadDim, read_host);
  for (const double y : out) EXPECT_TRUE(std::isinf(y)) << y;
}

TEST(Faults, Row16_SlicesOfAPackedProjectionOddRatiosAndOddSizesOfAReplayAreComputed) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Description odd =
      mamba2({.nheads = 6, .head_dim = 80, .dstate = 96, .ngroups = 2}).tokens(3).state(DType::bf16).store(Replay{});
  EXPECT_THAT(OneLaunch(odd, {.batch = 3, .indexed = true, .packed_rows = true}).failures(), IsEmpty());
}

TEST(Faults, Row18_TheSameSeedRoundsAReplayAlikeAndAnotherOneDoesNot) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const auto states = [](std::int64_t seed) {
    OneLaunch launch(step_of(DType::f16).rounding(Stochastic{}), {.batch = 1});
    std::memcpy(const_cast<void*>(launch.args.rand_seed.data), &seed, 8);
    launch.run();
    return stored_values(launch.args.state, 0, kHeads * kHeadDim * kDstate, read_host);
  };
  EXPECT_EQ(states(11), states(11));
  EXPECT_NE(states(11), states(12));
}

}  // namespace
}  // namespace ssmjit
