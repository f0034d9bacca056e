// What only a GPU can show. Skips aloud without one.
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/device.h>
#include <ssmjit/error.h>
#include <ssmjit/kernel.h>
#include <ssmjit/source.h>
#include <ssmjit/tune.h>

#include "autotune/host_numbers.h"
#include "autotune/reference/update_reference.h"
#include "autotune/update_case.h"
#include "jit/gpu.h"
#include "tests/gpu/needs_gpu.h"
#include "tests/gpu/slow_producer.h"

namespace ssmjit {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;

Arch arch() { return device(0).arch(); }

Description step(int nheads = 16, int ngroups = 1) {
  return mamba2({.nheads = nheads, .head_dim = 64, .dstate = 128, .ngroups = ngroups});
}

Kernel load(const Description& d) { return Kernel::load(d, default_plan(d, arch(), 8 * d.nheads)); }

void read_device(const void* from, void* to, std::size_t bytes) { read_device_memory(from, to, bytes); }

// Device memory of one step, seeded: row b uses slot slots - 1 - b, by index.
class Step {
 public:
  Step(const Description& d, int batch, int slots, std::int64_t slot_stride = 0, DType index = DType::i32)
      : d_(d), batch_(batch), index_(index) {
    const std::int64_t H = d.nheads, P = d.head_dim, N = d.dstate, G = d.ngroups;
    const std::int64_t slot = H * P * N, stride = slot_stride == 0 ? slot : slot_stride;
    const auto wide = static_cast<std::size_t>(size_bytes(d.state_dtype));
    state_ = DeviceBuffer(static_cast<std::size_t>((slots - 1) * stride + slot) * wide);
    args_.state = strided(state_.data(), d.state_dtype, {slots, H, P, N}, {stride, P * N, N, 1});
    args_.x = fresh(x_, d.input_dtype, {batch, H, P});
    args_.B = fresh(B_, d.input_dtype, {batch, G, N});
    args_.C = fresh(C_, d.input_dtype, {batch, G, N});
    if (d.has_z()) args_.z = fresh(z_, d.input_dtype, {batch, H, P});
    args_.dt = fresh(dt_, d.dt_dtype, {batch, H});
    args_.A = fresh(A_, DType::f32, {H}, -1.5, 0.25);
    args_.D = fresh(D_, d.weight_dtype, {H});
    args_.dt_bias = fresh(bias_, d.weight_dtype, {H}, -3.5, 0.25);
    out_ = DeviceBuffer(static_cast<std::size_t>(batch * H * P * size_bytes(d.input_dtype)));
    args_.out = contiguous(out_.data(), d.input_dtype, {batch, H, P});
    std::vector<std::int64_t> slots_of_rows;
    for (int b = 0; b < batch; ++b) slots_of_rows.push_back(slots - 1 - b);
    set_indices(slots_of_rows);
    reset();
  }

  const UpdateArgs& args(Pdl pdl = Pdl::off) {
    args_.pdl = pdl;
    return args_;
  }
  UpdateArgs& change() { return args_; }
  int batch() const { return batch_; }

  void set_indices(const std::vector<std::int64_t>& slots) {
    slots_ = slots;
    const auto wide = static_cast<std::size_t>(size_bytes(index_));
    std::vector<std::byte> raw(slots.size() * wide);
    for (std::size_t i = 0; i < slots.size(); ++i) {
      const auto narrow = static_cast<std::int32_t>(slots[i]);
      std::memcpy(raw.data() + i * wide, index_ == DType::i64 ? static_cast<const void*>(&slots[i]) : &narrow, wide);
    }
    indices_ = DeviceBuffer(raw.size());
    indices_.upload(raw.data(), raw.size());
    args_.state_batch_indices = contiguous(indices_.data(), index_, {static_cast<std::int64_t>(slots.size())});
  }

  // NaN in outputs and in all slots; seeded states in the rows' own.
  void reset() {
    Stream stream;
    state_.fill(0xff, stream.handle());
    out_.fill(0xff, stream.handle());
    stream.synchronize();
    for (std::int64_t slot : slots_)
      if (slot >= 0 && slot < args_.state.shape[0]) upload_slot(slot);
  }
  void poison_inputs() {
    Stream stream;
    for (const DeviceBuffer* b : {&x_, &B_, &C_, &dt_}) b->fill(0xff, stream.handle());
    stream.synchronize();
  }

  std::vector<std::byte> slot_bytes(std::int64_t slot) const {
    const auto wide = static_cast<std::size_t>(size_bytes(d_.state_dtype));
    std::vector<std::byte> raw(static_cast<std::size_t>(d_.nheads * d_.head_dim * d_.dstate) * wide);
    state_.download(raw.data(), raw.size(), static_cast<std::size_t>(slot * args_.state.stride[0]) * wide);
    return raw;
  }
  std::vector<std::byte> out_bytes() const {
    std::vector<std::byte> raw(out_.size());
    out_.download(raw.data(), raw.size());
    return raw;
  }
  // Outputs and the slots of the rows.
  std::vector<std::byte> result() const {
    std::vector<std::byte> all = out_bytes();
    for (std::int64_t slot : slots_) {
      if (slot < 0 || slot >= args_.state.shape[0]) continue;
      const std::vector<std::byte> raw = slot_bytes(slot);
      all.insert(all.end(), raw.begin(), raw.end());
    }
    return all;
  }

  // What row `row` must be, from memory as it now is: call it before the launch.
  HeadResult expect(int row, int head) const {
    return update_reference(d_, args_, row, head, row_slots(d_, args_, row, read_device), read_device);
  }
  // Whether row and head are what was expected: empty, or why not.
  std::string judge_head(int row, int head, const HeadResult& want) const {
    NearnessMeter y(d_.input_dtype, d_.dstate), state(d_.state_dtype, d_.dstate);
    const int P = d_.head_dim, N = d_.dstate;
    y.add_row(want.y.data(), stored_values(args_.out, (std::int64_t{row} * d_.nheads + head) * P, P, read_device),
              want.y_terms.data());
    for (int p = 0; p < P; ++p)
      state.add_row(want.state.data() + std::int64_t{p} * N,
                    stored_values(args_.state,
                                  slots_[static_cast<std::size_t>(row)] * args_.state.stride[0] +
                                      (std::int64_t{head} * P + p) * N,
                                  N, read_device));
    std::string said = judge(y.result(), d_.input_dtype, N, "out");
    return said.empty() ? judge(state.result(), d_.state_dtype, N, "state") : said;
  }

  // The inputs that a producer makes, and a copy to make them from.
  std::vector<const DeviceBuffer*> inputs() const { return {&x_, &B_, &C_, &dt_}; }

 private:
  Tensor fresh(DeviceBuffer& buffer, DType dtype, std::initializer_list<std::int64_t> shape, double mean = 0,
               double deviation = 1) {
    std::int64_t count = 1;
    for (std::int64_t n : shape) count *= n;
    std::normal_distribution<double> normal(mean, deviation);
    // Whole 16-byte vectors, so that a producer can copy them.
    std::vector<std::byte> raw(static_cast<std::size_t>((count * size_bytes(dtype) + 15) / 16 * 16));
    for (std::int64_t i = 0; i < count; ++i) encode(dtype, raw.data(), i, normal(random_));
    buffer = DeviceBuffer(raw.size());
    buffer.upload(raw.data(), raw.size());
    return contiguous(buffer.data(), dtype, shape);
  }
  void upload_slot(std::int64_t slot) const {
    std::mt19937_64 random(static_cast<std::uint64_t>(slot) + 100);
    std::normal_distribution<double> normal;
    const std::int64_t count = std::int64_t{d_.nheads} * d_.head_dim * d_.dstate;
    const auto wide = static_cast<std::size_t>(size_bytes(d_.state_dtype));
    std::vector<std::byte> raw(static_cast<std::size_t>(count) * wide);
    for (std::int64_t i = 0; i < count; ++i) encode(d_.state_dtype, raw.data(), i, normal(random));
    state_.upload(raw.data(), raw.size(), static_cast<std::size_t>(slot * args_.state.stride[0]) * wide);
  }

  Description d_;
  int batch_;
  DType index_;
  std::mt19937_64 random_{9};
  UpdateArgs args_;
  std::vector<std::int64_t> slots_;
  DeviceBuffer state_, x_, B_, C_, z_, dt_, A_, D_, bias_, out_, indices_;
};

void run(const Kernel& kernel, const UpdateArgs& args) {
  Stream stream;
  kernel.launch(args, stream.handle());
  stream.synchronize();
}

void expect_all_ok(const Description& d, std::size_t plans, std::uint64_t seed) {
  VerifyOptions options;
  options.seed = seed;
  for (const Verdict& v : verify(d, sample_plans(plan_space(d, arch()), plans, seed), options)) {
    EXPECT_EQ(name(v.outcome), std::string("ok")) << d.summary() << "\n" << v.plan.text();
    EXPECT_THAT(v.failures, IsEmpty()) << d.summary() << "\n" << v.plan.text();
  }
}

std::string message_of(const std::function<void()>& what, ErrorKind kind = ErrorKind::invalid) {
  try {
    what();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), kind) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

// ---- values ----

TEST(Gpu, SampledPlansComputeASpreadOfDescriptions) {
  NEEDS_GPU();
  for (DType state : {DType::f32, DType::bf16, DType::f16}) {
    expect_all_ok(step().state(state), 8, 1);
    expect_all_ok(step(16, 4).state(state).gate(silu(dsl::z)).destination_slots(), 8, 2);
    expect_all_ok(step().state(state).input(DType::f16).unaligned_rows().pad_output(PadOutput::untouched), 8, 3);
    expect_all_ok(step().state(state).input(DType::f32).no_skip().pad_output(PadOutput::as_if_zero_state), 8, 4);
  }
}

TEST(Gpu, SizesWithFewPlansAreComputedByAllOfThem) {
  NEEDS_GPU();
  for (DType state : {DType::f32, DType::bf16})
    for (const auto& [head_dim, dstate] : {std::pair(8, 16), {8, 24}, {24, 40}, {64, 16}, {64, 24}, {64, 200}})
      expect_all_ok(mamba2({.nheads = 4, .head_dim = head_dim, .dstate = dstate, .ngroups = 2}).state(state), 6, 5);
}

TEST(Gpu, FiveLaunchesOfALargeBatchGiveTheSameBits) {
  NEEDS_GPU();
  for (DType state : {DType::f32, DType::bf16}) {
    const Description d = step().state(state);
    const Kernel kernel = load(d);
    Step s(d, 257, 300);
    run(kernel, s.args());
    const std::vector<std::byte> first = s.result();
    for (int i = 1; i < 5; ++i) {
      s.reset();
      run(kernel, s.args());
      ASSERT_EQ(s.result(), first) << "launch " << i + 1;
    }
  }
}

TEST(Gpu, ABatchOf1024RowsIsRightInEveryRowLookedAt) {
  NEEDS_GPU();
  const Description d = step().state(DType::bf16);
  const Kernel kernel = load(d);
  Step s(d, 1024, 1100);
  std::mt19937_64 random(4);
  std::vector<std::tuple<int, int, HeadResult>> wanted;
  for (int i = 0; i < 64; ++i) {
    const int row = i < 2 ? i * 1023 : static_cast<int>(random() % 1024), head = static_cast<int>(random() % 16);
    wanted.emplace_back(row, head, s.expect(row, head));
  }
  run(kernel, s.args());
  for (const auto& [row, head, want] : wanted) EXPECT_EQ(s.judge_head(row, head, want), "") << row << ", " << head;
}

// ---- programmatic dependent launch ----

// A step with what its inputs are produced from.
class ProducedStep {
 public:
  ProducedStep(const Description& d, int batch) : step(d, batch, batch + 3) {
    Stream stream;
    for (const DeviceBuffer* input : step.inputs()) {
      sources_.emplace_back(input->size());
      sources_.back().copy_from(*input, 0, stream.handle());
    }
    stream.synchronize();
  }
  void produce(const SlowProducer& slow, const Stream& stream, bool dependent) const {
    const std::vector<const DeviceBuffer*> inputs = step.inputs();
    for (std::size_t i = 0; i < inputs.size(); ++i) slow(sources_[i], *inputs[i], stream, dependent || i > 0);
  }
  // `record` put on a stream, on fresh memory with poisoned inputs; directly or as a graph.
  std::vector<std::byte> after(const std::function<void(const Stream&)>& record, bool graph) {
    step.reset();
    step.poison_inputs();
    Stream stream;
    if (graph)
      Graph(stream, [&] { record(stream); }).launch(stream);
    else
      record(stream);
    stream.synchronize();
    return step.result();
  }

  Step step;

 private:
  std::vector<DeviceBuffer> sources_;
};

class DependentLaunch : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(On, DependentLaunch, testing::Bool(),
                         [](const auto& info) { return info.param ? "AGraph" : "AStream"; });

TEST_P(DependentLaunch, BehindASlowProducerEveryModeGivesTheBitsOfOff) {
  NEEDS_GPU();
  const SlowProducer slow;
  for (DType state : {DType::f32, DType::bf16}) {
    const Description d = step().state(state);
    ProducedStep s(d, 5);
    for (const Plan& plan : sample_plans(plan_space(d, arch()), 6, 3)) {
      const Kernel kernel = Kernel::load(d, plan);
      const auto chain = [&](Pdl pdl) {
        return s.after(
            [&](const Stream& stream) {
              s.produce(slow, stream, false);
              kernel.launch(s.step.args(pdl), stream.handle());
            },
            GetParam());
      };
      const std::vector<std::byte> off = chain(Pdl::off);
      EXPECT_EQ(chain(Pdl::wait_first), off) << plan.text();
      EXPECT_EQ(chain(Pdl::early_state), off) << plan.text();
    }
  }
}

TEST_P(DependentLaunch, TheSameLayerSteppedTwiceInARowGivesTheBitsOfOff) {
  NEEDS_GPU();
  const SlowProducer slow;
  const Description d = step().state(DType::bf16);
  ProducedStep s(d, 5);
  const Kernel kernel = load(d);
  const auto twice = [&](Pdl pdl, bool produced_between, bool dependent) {
    return s.after(
        [&](const Stream& stream) {
          s.produce(slow, stream, false);
          kernel.launch(s.step.args(pdl), stream.handle());
          if (produced_between) s.produce(slow, stream, dependent);
          kernel.launch(s.step.args(pdl), stream.handle());
        },
        GetParam());
  };
  const std::vector<std::byte> off = twice(Pdl::off, false, false);
  EXPECT_EQ(twice(Pdl::off, true, false), off);
  EXPECT_EQ(twice(Pdl::wait_first, false, false), off);
  EXPECT_EQ(twice(Pdl::wait_first, true, true), off);
  // The producer in between is an ordinary launch: the first step has ended, which early_state has as its condition.
  EXPECT_EQ(twice(Pdl::early_state, true, false), off);
}

TEST_P(DependentLaunch, AnAllPadBatchInsideAChainHidesNoProducer) {
  NEEDS_GPU();
  const SlowProducer slow;
  for (PadOutput pad : {PadOutput::zeros, PadOutput::untouched, PadOutput::as_if_zero_state}) {
    const Description d = step().pad_output(pad);
    const Kernel kernel = load(d);
    ProducedStep s(d, 5);
    Step pads(d, 5, 8);
    pads.set_indices({-1, -1, -2, 8, 1000});
    for (Pdl pdl : {Pdl::wait_first, Pdl::early_state}) {
      const auto chain = [&](Pdl how) {
        return s.after(
            [&](const Stream& stream) {
              s.produce(slow, stream, false);
              kernel.launch(pads.args(how), stream.handle());
              kernel.launch(s.step.args(how), stream.handle());
            },
            GetParam());
      };
      EXPECT_EQ(chain(pdl), chain(Pdl::off)) << name(pad) << ", " << name(pdl);
    }
  }
}

// ---- rows of the list of faults ----

TEST(Faults, Row01_ASlotPast2To31ElementsGivesTheRightResult) {
  NEEDS_GPU();
  if (free_device_bytes() < (std::int64_t{8} << 30)) GTEST_SKIP() << "less than 8 GiB of device memory are free";
  const Description d = step(2).state(DType::bf16);
  for (DType index : {DType::i32, DType::i64}) {
    // Slots 15 and 16, the stride 2^27 elements: slot 16 starts at element 2^31.
    Step s(d, 2, 17, std::int64_t{1} << 27, index);
    const HeadResult want[] = {s.expect(0, 1), s.expect(1, 0)};
    const std::vector<std::byte> others[] = {s.slot_bytes(0), s.slot_bytes(1)};
    run(load(d), s.args());
    EXPECT_EQ(s.judge_head(0, 1, want[0]), "") << "slot 16";
    EXPECT_EQ(s.judge_head(1, 0, want[1]), "") << "slot 15";
    EXPECT_EQ(s.slot_bytes(0), others[0]);
    EXPECT_EQ(s.slot_bytes(1), others[1]);
  }
}

TEST(Faults, Row03_ARowWithANegativeIndexGivesItsPadOutputAndTouchesNoState) {
  NEEDS_GPU();
  for (PadOutput pad : {PadOutput::zeros, PadOutput::untouched, PadOutput::as_if_zero_state})
    for (bool destination : {false, true})
      expect_all_ok(step(6, 2).state(DType::bf16).pad_output(pad).destination_slots(destination), 6, 7);
}

TEST(Faults, Row04_AnIndexPastThePoolIsAPadOnTheDeviceAndRefusedInCheckedMode) {
  NEEDS_GPU();
  const Description d = step();
  const Kernel kernel = load(d);
  Step s(d, 3, 8);
  s.set_indices({2, 8, 5});
  s.reset();
  const HeadResult want = s.expect(2, 3);
  run(kernel, s.args());
  EXPECT_EQ(s.judge_head(2, 3, want), "");
  const std::vector<double> pad = stored_values(s.args().out, 16 * 64, 16 * 64, read_device);
  EXPECT_THAT(pad, testing::Each(0.0));
  s.change().checked = true;
  s.reset();
  const std::vector<std::byte> before = s.result();
  EXPECT_THAT(message_of([&] { run(kernel, s.args()); }), HasSubstr("state_batch_indices[1] is 8; the state has 8"));
  EXPECT_EQ(s.result(), before) << "refused before any work";
}

TEST(Faults, Row05_OneLiveSlotTwiceInABatchIsFoundInCheckedMode) {
  NEEDS_GPU();
  const Description d = step();
  const Kernel kernel = load(d);
  Step s(d, 4, 8);
  s.change().checked = true;
  s.set_indices({2, -1, 5, 2});
  EXPECT_THAT(message_of([&] { run(kernel, s.args()); }), AllOf(HasSubstr("0"), HasSubstr("3"), HasSubstr("2")));
  s.set_indices({2, -1, 5, -1});
  EXPECT_NO_THROW(run(kernel, s.args())) << "pads may share a slot";
}

TEST(Faults, Row11_NanInUnusedSlotsAndPadRowsReachesNoLiveRow) {
  NEEDS_GPU();
  const Description d = step().state(DType::bf16);
  const Kernel kernel = load(d);
  Step s(d, 4, 9);  // every slot but the rows' is NaN
  s.set_indices({8, -1, 6, 9});
  s.reset();
  // The inputs of row 1, a pad, are NaN.
  std::vector<std::byte> poison(16 * 64 * 2, std::byte{0xff});
  s.inputs()[0]->upload(poison.data(), poison.size(), poison.size());
  const HeadResult want = s.expect(2, 7);
  run(kernel, s.args());
  EXPECT_EQ(s.judge_head(2, 7, want), "");
  EXPECT_THAT(stored_values(s.args().out, 16 * 64, 16 * 64, read_device), testing::Each(0.0));
}

TEST(Faults, Row13_StatesThatDieAndStatesThatHardlyDecayAreRight) {
  NEEDS_GPU();
  for (DType input : {DType::bf16, DType::f16, DType::f32}) {
    const Description d = step().input(input).gate(silu(dsl::z));
    for (std::uint64_t seed = 1; seed <= 4; ++seed) expect_all_ok(d, 2, seed);
  }
}

TEST(Faults, Row14_Fp16OutputPastTheLargestIsInfinityAndNeverNan) {
  NEEDS_GPU();
  const Description d = step().input(DType::f16);
  const Kernel kernel = load(d);
  Step s(d, 2, 4);
  // D * x of some 1e5 on top of what is there.
  std::vector<std::byte> D(16 * 4), x(static_cast<std::size_t>(16 * 64 * 2));
  for (int h = 0; h < 16; ++h) encode(DType::f32, D.data(), h, h % 2 == 0 ? 1000.0 : -1000.0);
  for (int i = 0; i < 16 * 64; ++i) encode(DType::f16, x.data(), i, i % 3 == 0 ? 0.0 : 100.0);
  DeviceBuffer D_device(D.size());
  D_device.upload(D.data(), D.size());
  s.change().D.data = D_device.data();
  s.inputs()[0]->upload(x.data(), x.size());
  const HeadResult even = s.expect(0, 0), odd = s.expect(0, 1);
  run(kernel, s.args());
  EXPECT_EQ(s.judge_head(0, 0, even), "");
  EXPECT_EQ(s.judge_head(0, 1, odd), "");
  const std::vector<double> out = stored_values(s.args().out, 0, 2 * 64, read_device);
  for (std::size_t i = 0; i < out.size(); ++i) {
    EXPECT_FALSE(std::isnan(out[i]));
    if (i % 3 != 0) {
      EXPECT_EQ(out[i], (i < 64 ? 1 : -1) * std::numeric_limits<double>::infinity());
    }
  }
}

TEST(Faults, Row15_MixedDtypesAreComputedOrRefusedByName) {
  NEEDS_GPU();
  expect_all_ok(step().dt(DType::bf16).weights(DType::f32).state(DType::f16), 4, 8);
  expect_all_ok(step().dt(DType::f32).weights(DType::bf16).input(DType::f16).state(DType::bf16), 4, 9);
  const Description d = step();
  const Kernel kernel = load(d);
  Step s(d, 2, 4);
  s.change().x.dtype = DType::f16;
  EXPECT_THAT(message_of([&] { run(kernel, s.args()); }), HasSubstr("x: got dtype fp16; wants bf16"));
}

TEST(Faults, Row16_SlicesOfAPackedProjectionOddRatiosAndOddSizesAreComputed) {
  NEEDS_GPU();
  expect_all_ok(mamba2({.nheads = 28, .head_dim = 80, .dstate = 96, .ngroups = 2}).unaligned_rows(), 8, 10);
  expect_all_ok(mamba2({.nheads = 9, .head_dim = 80, .dstate = 96, .ngroups = 3}).state(DType::f16), 8, 11);
  expect_all_ok(mamba2({.nheads = 14, .head_dim = 64, .dstate = 128, .ngroups = 1}).gate(silu(dsl::z)), 8, 12);
}

TEST(Faults, Row19_AnEmptyBatchLaunchesNothing) {
  NEEDS_GPU();
  const Description d = step();
  const Kernel kernel = load(d);
  Step s(d, 2, 4);
  const std::vector<std::byte> before = s.result();
  UpdateArgs none = s.args();
  for (Tensor* t : {&none.x, &none.B, &none.C, &none.dt, &none.out, &none.state_batch_indices}) t->shape[0] = 0;
  EXPECT_NO_THROW(run(kernel, none));
  EXPECT_EQ(s.result(), before);
}

TEST(Faults, Row20_ACheckedLaunchIsRefusedUnderCaptureAndTheCaptureGoesOn) {
  NEEDS_GPU();
  const Description d = step();
  const Kernel kernel = load(d);
  Step s(d, 2, 4);
  run(kernel, s.args());
  const std::vector<std::byte> want = s.result();
  s.reset();
  Stream stream;
  UpdateArgs checked = s.args();
  checked.checked = true;
  const Graph graph(stream, [&] {
    EXPECT_THAT(message_of([&] { kernel.launch(checked, stream.handle()); }), HasSubstr("captured"));
    kernel.launch(s.args(), stream.handle());
  });
  graph.launch(stream);
  stream.synchronize();
  EXPECT_EQ(s.result(), want);
}

}  // namespace
}  // namespace ssmjit
