// Emitted conv1d kernels on the CPU executor: right by the double reference in every form, and step after step the same
// bits whichever way the windows are kept.
#include <algorithm>
#include <cmath>
#include <cstring>
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
#include "jit/cpu/executor.h"
#include "jit/kernel_args.h"

namespace ssmjit {
namespace {

#define NEEDS_EXECUTOR() \
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing

const Arch kArch = Arch::parse("sm_90a");
constexpr std::int64_t kChannels = 72, kRequests = 3;

Description of(Conv conv) {
  conv.channels = static_cast<int>(kChannels);
  if (conv.activation_expr.empty()) conv.activation_expr = silu(dsl::x);
  return conv1d(conv);
}

// ---- every form, by the double reference ----

struct Form {
  std::string name;
  Description description;
};
void PrintTo(const Form& f, std::ostream* out) { *out << f.name; }

std::vector<Form> forms() {
  Description plain = of({});
  plain.conv->activation_expr = Expr();
  Description odd = of({.width = 3, .state_len = 5}).tokens(2).unaligned_rows();
  odd.conv->channels = 77;
  Description odd_last = of({.channels_last = true}).tokens(2).unaligned_rows();
  odd_last.conv->channels = 41;
  return {
      {"width_2", of({.width = 2})},
      {"width_3_of_3_tokens", of({.width = 3}).tokens(3)},
      {"no_bias", of({.has_bias = false}).tokens(2)},
      {"no_activation", plain},
      {"dead_entry", of({.state_len = 4})},
      {"dead_entry_of_2_tokens_channels_last", of({.state_len = 4, .channels_last = true}).tokens(2)},
      {"longer_state", of({.state_len = 9}).tokens(2)},
      {"longer_state_channels_last", of({.state_len = 9, .channels_last = true}).tokens(6)},
      {"16_tokens", of({}).tokens(16)},
      {"circular", of({.store = ConvStore::circular})},
      {"circular_channels_last_of_6_tokens",
       of({.state_len = 5, .channels_last = true, .store = ConvStore::circular}).tokens(6)},
      {"circular_longer_than_the_tokens", of({.width = 3, .state_len = 12, .store = ConvStore::circular}).tokens(2)},
      {"snapshots", of({.keep = ConvKeep::snapshots}).tokens(3)},
      {"snapshots_of_4_channels_last",
       of({.state_len = 4, .channels_last = true, .keep = ConvKeep::snapshots}).tokens(2)},
      {"snapshots_of_a_longer_state", of({.state_len = 7, .keep = ConvKeep::snapshots}).tokens(2)},
      {"slots", of({.keep = ConvKeep::slots}).tokens(3)},
      {"slots_of_one_token", of({.state_len = 4, .keep = ConvKeep::slots})},
      {"slots_channels_last", of({.state_len = 5, .channels_last = true, .keep = ConvKeep::slots}).tokens(4)},
      {"accepted", of({.state_len = 8, .has_accepted = true}).tokens(6)},
      {"accepted_channels_last", of({.state_len = 8, .channels_last = true, .has_accepted = true}).tokens(6)},
      {"accepted_in_a_longer_state", of({.width = 2, .state_len = 9, .has_accepted = true}).tokens(4)},
      {"accepted_with_snapshots",
       of({.state_len = 6, .channels_last = true, .keep = ConvKeep::snapshots, .has_accepted = true}).tokens(3)},
      {"fp32", of({}).input(DType::f32).state(DType::f32).weights(DType::f32).tokens(2)},
      {"fp16", of({}).input(DType::f16).state(DType::f16).weights(DType::f16).tokens(2)},
      {"state_fp32_of_bf16_tokens", of({.state_len = 4}).state(DType::f32).tokens(2)},
      {"state_bf16_of_fp32_tokens", of({}).input(DType::f32).tokens(3)},
      {"unaligned", odd},
      {"unaligned_channels_last", odd_last},
      {"pads_untouched", of({}).tokens(2).pad_output(PadOutput::untouched)},
  };
}

class CpuConv1d : public testing::TestWithParam<Form> {};

TEST_P(CpuConv1d, IsRightAndWithoutAFindingUnderEverySchedule) {
  NEEDS_EXECUTOR();
  const Description& d = GetParam().description;
  VerifyOptions options;
  options.on = VerifyOn::cpu;
  const std::vector<Plan> plans = sample_plans(plan_space(d, options.cpu.arch), 2, 7);
  ASSERT_FALSE(plans.empty());
  for (const Verdict& v : verify(d, plans, options))
    EXPECT_EQ(v.outcome, Outcome::ok) << v.plan.text() << ": " << testing::PrintToString(v.failures);
}

INSTANTIATE_TEST_SUITE_P(Forms, CpuConv1d, testing::ValuesIn(forms()),
                         [](const auto& param) { return param.param.name; });

// ---- step after step ----

// The memory of requests that each have a slot (or slots) of their own, and launches over it.
class Windows {
 public:
  Windows(const Description& d, std::int64_t slots) : d_(d) {
    const std::int64_t L = d.conv_state_len(), W = d.conv->width;
    args_.conv_state = d.conv->channels_last ? tensor(d.state_dtype, {slots, L, kChannels})
                                             : tensor(d.state_dtype, {slots, kChannels, L});
    args_.w = tensor(d.weight_dtype, {kChannels, W});
    args_.bias = tensor(d.weight_dtype, {kChannels});
    args_.out = tensor(d.input_dtype, {kRequests, d.token_count, kChannels});
    std::mt19937_64 random(3);
    std::normal_distribution<double> normal;
    for (const Tensor* t : {&args_.w, &args_.bias})
      for (std::int64_t i = 0; i < t->shape[0] * (t->rank == 2 ? t->shape[1] : 1); ++i)
        encode(t->dtype, bytes(*t), i, 0.5 * normal(random));
    const Plan plan = default_plan(d, kArch, 1);
    CpuCompileOptions options;
    options.checks = false;
    program_.emplace(CpuProgram::compile(emit(d, plan, kArch), options));
    shape_ = launch_shape(plan, d, static_cast<int>(kRequests));
  }

  // A request's newest inputs before the first step: value(i, c), i = 0 the oldest of width - 1.
  template <class Value>
  void begin(std::int64_t slot, int first, const Value& value) {
    const int L = d_.conv_state_len();
    for (int i = 0; i < d_.conv->width - 1; ++i)
      for (std::int64_t c = 0; c < kChannels; ++c)
        encode(d_.state_dtype, bytes(args_.conv_state), at(slot, c, (first + i) % L), value(i, c));
  }
  std::int64_t at(std::int64_t slot, std::int64_t c, int entry) const {
    const std::int64_t L = d_.conv_state_len();
    return d_.conv->channels_last ? (slot * L + entry) * kChannels + c : (slot * kChannels + c) * L + entry;
  }
  double state(std::int64_t slot, std::int64_t c, int entry) const {
    return decode(d_.state_dtype, bytes(args_.conv_state), at(slot, c, entry));
  }
  double out(std::int64_t row, int t, std::int64_t c) const {
    return decode(d_.input_dtype, bytes(args_.out), (row * d_.token_count + t) * kChannels + c);
  }
  Tensor indices(const std::vector<std::int64_t>& values, std::initializer_list<std::int64_t> shape) {
    const Tensor t = tensor(DType::i64, shape);
    std::memcpy(bytes(t), values.data(), 8 * values.size());
    return t;
  }
  // x: value(request, token, channel).
  template <class Value>
  void step(const Value& value) {
    const std::int64_t T = d_.token_count;
    if (args_.x.data == nullptr) args_.x = tensor(d_.input_dtype, {kRequests, T, kChannels});
    for (std::int64_t b = 0; b < kRequests; ++b)
      for (int t = 0; t < T; ++t)
        for (std::int64_t c = 0; c < kChannels; ++c)
          encode(d_.input_dtype, bytes(args_.x), b * args_.x.stride[0] + t * args_.x.stride[1] + c, value(b, t, c));
    ASSERT_THAT(Kernel::problems(d_, args_), testing::IsEmpty());
    std::vector<CpuBuffer> buffers;
    for (std::vector<std::byte>& m : memory_)
      buffers.push_back({.name = "", .data = m.data(), .bytes = m.size(), .writable = true});
    const CpuReport report = program_->run(cpu_launch(shape_, to_device(args_, Pdl::off), std::move(buffers)));
    for (const CpuFinding& f : report.findings) ADD_FAILURE() << f.text();
  }
  Tensor tensor(DType dtype, std::initializer_list<std::int64_t> shape) {
    std::int64_t count = 1;
    for (std::int64_t extent : shape) count *= extent;
    memory_.emplace_back(static_cast<std::size_t>(count * size_bytes(dtype)) + 16, std::byte{0xff});
    std::byte* const data = memory_.back().data();
    return contiguous(data + (16 - reinterpret_cast<std::uintptr_t>(data) % 16) % 16, dtype, shape);
  }
  static std::byte* bytes(const Tensor& t) { return static_cast<std::byte*>(const_cast<void*>(t.data)); }
  Conv1dArgs& args() { return args_; }

 private:
  Description d_;
  std::vector<std::vector<std::byte>> memory_;
  Conv1dArgs args_;
  std::optional<CpuProgram> program_;
  LaunchShape shape_;
};

// What request b is told at its position i, exact in bf16, and the history before position 0; the same in every test.
double told(std::int64_t b, std::int64_t i, std::int64_t c) {
  std::mt19937 random(static_cast<unsigned>(7919 * b + 104729 * (i + 10) + c));
  return static_cast<double>(random() % 256) / 64 - 2;
}
auto history(std::int64_t b, int width) {
  return [=](int i, std::int64_t c) { return told(b, i - (width - 1), c); };
}

// Outputs of `count` positions, one token a step, shifted.
std::vector<std::vector<double>> one_by_one(int count) {
  Windows m(of({}), kRequests);
  for (std::int64_t b = 0; b < kRequests; ++b) m.begin(b, 0, history(b, 4));
  std::vector<std::vector<double>> y;
  for (int i = 0; i < count; ++i) {
    m.step([&](std::int64_t b, int, std::int64_t c) { return told(b, i, c); });
    for (std::int64_t b = 0; b < kRequests; ++b)
      for (std::int64_t c = 0; c < kChannels; ++c) {
        if (b == 0 && c == 0) y.emplace_back();
        y.back().push_back(m.out(b, 0, c));
      }
  }
  return y;
}
double at(const std::vector<std::vector<double>>& y, int i, std::int64_t b, std::int64_t c) {
  return y[static_cast<std::size_t>(i)][static_cast<std::size_t>(b * kChannels + c)];
}

TEST(Conv1dSteps, OfManyTokensGiveTheBitsOfAsManyStepsOfOne) {
  NEEDS_EXECUTOR();
  const auto want = one_by_one(6);
  for (const bool last : {false, true})
    for (const int length : {3, 4, 8}) {
      Windows m(of({.state_len = length, .channels_last = last}).tokens(6), kRequests);
      for (std::int64_t b = 0; b < kRequests; ++b) m.begin(b, length - 3, history(b, 4));
      m.step([](std::int64_t b, int t, std::int64_t c) { return told(b, t, c); });
      for (std::int64_t b = 0; b < kRequests; ++b)
        for (std::int64_t c = 0; c < kChannels; ++c) {
          for (int t = 0; t < 6; ++t) ASSERT_EQ(m.out(b, t, c), at(want, t, b, c)) << length << " " << b << " " << t;
          for (int j = 0; j < 3; ++j) ASSERT_EQ(m.state(b, c, length - 3 + j), told(b, 3 + j, c));
        }
    }
}

TEST(Conv1dSteps, ACircularStateGivesTheBitsOfAShiftedOneAndHoldsTheSameRotated) {
  NEEDS_EXECUTOR();
  const auto want = one_by_one(9);
  for (const bool last : {false, true})
    for (const int length : {3, 5}) {
      Windows m(of({.state_len = length, .channels_last = last, .store = ConvStore::circular}), kRequests);
      const std::int64_t seen = 4;  // tokens before the first step
      for (std::int64_t b = 0; b < kRequests; ++b)
        m.begin(b, static_cast<int>((seen + length - 3) % length), history(b, 4));
      m.args().cache_seqlens = m.indices({seen, seen, seen}, {kRequests});
      auto* const lengths = reinterpret_cast<std::int64_t*>(Windows::bytes(m.args().cache_seqlens));
      for (int i = 0; i < 9; ++i) {
        std::fill(lengths, lengths + kRequests, seen + i);
        m.step([&](std::int64_t b, int, std::int64_t c) { return told(b, i, c); });
        for (std::int64_t b = 0; b < kRequests; ++b)
          for (std::int64_t c = 0; c < kChannels; ++c) ASSERT_EQ(m.out(b, 0, c), at(want, i, b, c)) << i;
      }
      for (int back = 0; back < 3; ++back)
        EXPECT_EQ(m.state(1, 5, static_cast<int>((seen + 8 - back) % length)), told(1, 8 - back, 5));
    }
}

// Three verified steps of 4 tokens of which some are accepted: each step's tokens are right up to there, wrong beyond.
constexpr int kAccepted[kRequests][3] = {{1, 4, 2}, {3, 1, 4}, {4, 2, 1}};
double drafted(std::int64_t b, int step, int t, std::int64_t c) {
  int first = 0;
  for (int s = 0; s < step; ++s) first += kAccepted[b][s];
  return t < kAccepted[b][step] ? told(b, first + t, c) : 1.5;
}
void expect_accepted_are_right(const Windows& m, int step, const std::vector<std::vector<double>>& want) {
  for (std::int64_t b = 0; b < kRequests; ++b) {
    int first = 0;
    for (int s = 0; s < step; ++s) first += kAccepted[b][s];
    for (int t = 0; t < kAccepted[b][step]; ++t)
      for (std::int64_t c = 0; c < kChannels; ++c)
        ASSERT_EQ(m.out(b, t, c), at(want, first + t, b, c)) << "request " << b << ", step " << step << ", token " << t;
  }
}

TEST(Conv1dSteps, AcceptedCountsGoOnFromTheTokensThatWereKept) {
  NEEDS_EXECUTOR();
  const auto want = one_by_one(9);
  for (const bool last : {false, true}) {
    Windows m(of({.state_len = 6, .channels_last = last, .has_accepted = true}).tokens(4), kRequests);
    for (std::int64_t b = 0; b < kRequests; ++b) m.begin(b, 0, history(b, 4));
    m.args().num_accepted_tokens = m.indices({1, 1, 0}, {kRequests});
    auto* const accepted = reinterpret_cast<std::int64_t*>(Windows::bytes(m.args().num_accepted_tokens));
    for (int step = 0; step < 3; ++step) {
      m.step([&](std::int64_t b, int t, std::int64_t c) { return drafted(b, step, t, c); });
      expect_accepted_are_right(m, step, want);
      for (std::int64_t b = 0; b < kRequests; ++b) accepted[b] = kAccepted[b][step];
    }
  }
}

TEST(Conv1dSteps, SlotsAndSnapshotsGoOnFromTheTokensThatWereKeptBitForBit) {
  NEEDS_EXECUTOR();
  const auto want = one_by_one(9);
  constexpr std::int64_t kOwn = 4;  // slots of a request: where it reads is one of them
  Windows slots(of({.keep = ConvKeep::slots}).tokens(4), kRequests * kOwn);
  Windows copied(of({.keep = ConvKeep::snapshots}).tokens(4), kRequests);
  std::vector<std::int64_t> from = {0, 4, 8}, to;
  for (std::int64_t i = 0; i < kRequests * kOwn; ++i) to.push_back(i);
  for (std::int64_t b = 0; b < kRequests; ++b) {
    slots.begin(from[static_cast<std::size_t>(b)], 0, history(b, 4));
    copied.begin(b, 0, history(b, 4));
  }
  slots.args().output_state_indices = slots.indices(to, {kRequests, 4});
  copied.args().intermediate_states = copied.tensor(DType::bf16, {kRequests, 4, kChannels, 3});
  for (int step = 0; step < 3; ++step) {
    slots.args().state_batch_indices = slots.indices(from, {kRequests});
    const auto x = [&](std::int64_t b, int t, std::int64_t c) { return drafted(b, step, t, c); };
    slots.step(x);
    copied.step(x);
    expect_accepted_are_right(slots, step, want);
    expect_accepted_are_right(copied, step, want);
    for (std::int64_t b = 0; b < kRequests; ++b) {
      const int kept = kAccepted[b][step];
      from[static_cast<std::size_t>(b)] = b * kOwn + kept - 1;
      const std::int64_t window = kChannels * 3 * 2;
      std::memcpy(Windows::bytes(copied.args().conv_state) + b * window,
                  Windows::bytes(copied.args().intermediate_states) + (b * 4 + kept - 1) * window,
                  static_cast<std::size_t>(window));
    }
  }
}

TEST(Faults, Row16_TokensAsAProjectionLeavesThemGiveTheBitsOfContiguousOnes) {
  NEEDS_EXECUTOR();
  const auto value = [](std::int64_t b, int t, std::int64_t c) { return told(b, t, c); };
  Windows dense(of({}).tokens(2), kRequests), sliced(of({}).tokens(2), kRequests);
  for (Windows* m : {&dense, &sliced})
    for (std::int64_t b = 0; b < kRequests; ++b) m->begin(b, 0, history(b, 4));
  // [tokens, requests, row], of which a slice is x; and out is x.
  const std::int64_t row = kChannels + 40;
  const Tensor projected = sliced.tensor(DType::bf16, {2, kRequests, row});
  sliced.args().x =
      strided(Windows::bytes(projected) + 2 * 16, DType::bf16, {kRequests, 2, kChannels}, {row, kRequests * row, 1});
  dense.step(value);
  sliced.step(value);
  for (std::int64_t b = 0; b < kRequests; ++b)
    for (int t = 0; t < 2; ++t)
      for (std::int64_t c = 0; c < kChannels; ++c) ASSERT_EQ(sliced.out(b, t, c), dense.out(b, t, c));
  Windows in_place(of({}).tokens(2), kRequests);
  for (std::int64_t b = 0; b < kRequests; ++b) in_place.begin(b, 0, history(b, 4));
  in_place.args().x = in_place.args().out;
  in_place.step(value);
  for (std::int64_t c = 0; c < kChannels; ++c) ASSERT_EQ(in_place.out(2, 1, c), dense.out(2, 1, c));
}

// A window of zeros is no history: what an engine leaves in a slot that changes hands.
TEST(Faults, Row12_AFreshRequestOnAUsedSlotWhoseWindowWasZeroedGivesTheBitsOfOneOnAFreshSlot) {
  NEEDS_EXECUTOR();
  const auto value = [](std::int64_t b, int t, std::int64_t c) { return told(b, t, c); };
  Windows used(of({.state_len = 4}).tokens(2), kRequests), fresh(of({.state_len = 4}).tokens(2), kRequests);
  for (std::int64_t b = 0; b < kRequests; ++b) {
    used.begin(b, 1, history(b, 4));
    fresh.begin(b, 1, [](int, std::int64_t) { return 0.0; });
  }
  used.step(value);
  used.begin(1, 1, [](int, std::int64_t) { return 0.0; });  // the dead entry keeps what it had
  used.step(value);
  fresh.step(value);
  for (std::int64_t c = 0; c < kChannels; ++c) {
    for (int t = 0; t < 2; ++t) ASSERT_EQ(used.out(1, t, c), fresh.out(1, t, c));
    for (int entry = 1; entry < 4; ++entry) ASSERT_EQ(used.state(1, c, entry), fresh.state(1, c, entry));
  }
}

TEST(Faults, Row11_NanInAPadRowAndInDeadEntriesReachesNoLiveRow) {
  NEEDS_EXECUTOR();
  Windows m(of({.state_len = 4}), kRequests);
  for (std::int64_t b = 0; b < kRequests; ++b) m.begin(b, 1, history(b, 4));
  m.args().state_batch_indices = m.indices({2, -1, 0}, {kRequests});
  m.step([](std::int64_t b, int, std::int64_t c) { return b == 1 ? std::nan("") : told(b, 0, c); });
  for (std::int64_t c = 0; c < kChannels; ++c) {
    EXPECT_EQ(m.out(1, 0, c), 0.0);
    for (std::int64_t b : {0, 2}) {
      EXPECT_FALSE(std::isnan(m.out(b, 0, c)));
      EXPECT_EQ(m.state(2 - b, c, 3), told(b, 0, c));
    }
  }
}

}  // namespace
}  // namespace ssmjit
