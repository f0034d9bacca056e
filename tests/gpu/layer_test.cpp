// Layers, their chains, convolutions and norms on a GPU. Skips aloud without one.
#include <algorithm>
#include <ostream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/device.h>
#include <ssmjit/kernel.h>
#include <ssmjit/source.h>
#include <ssmjit/tune.h>

#include "autotune/conv1d_case.h"
#include "autotune/layer_case.h"
#include "autotune/norm_case.h"
#include "jit/gpu.h"
#include "tests/gpu/device_case.h"
#include "tests/gpu/needs_gpu.h"
#include "tests/gpu/slow_producer.h"

namespace ssmjit {
namespace {

using testing::IsEmpty;
using Memory = std::vector<std::vector<std::byte>>;

Arch arch() { return device(0).arch(); }

// 16 heads of two groups, a norm of each; as a rank of the shipped models has them.
Description in_place() {
  return mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 2})
      .state(DType::bf16)
      .with_conv({.activation_expr = silu(dsl::x)})
      .with_norm({.group_size = 512, .gate_expr = silu(dsl::z)});
}
Description with_ring(int tokens = 6) { return in_place().tokens(tokens).store(Ring{.window = 16}); }
Description convolution(int tokens) {
  return conv1d({.channels = 1280, .activation_expr = silu(dsl::x)}).tokens(tokens);
}
Description norm() { return gated_norm({.channels = 2048, .group_size = 512, .gate_expr = silu(dsl::z)}).tokens(3); }

// Descriptions of layers with their names.
struct Layer {
  std::string name;
  Description description;
};
void PrintTo(const Layer& l, std::ostream* out) { *out << l.name; }

std::vector<Layer> layers() {
  Conv last{.activation_expr = silu(dsl::x), .channels_last = true};
  Conv accepted{.state_len = 8, .activation_expr = silu(dsl::x), .has_accepted = true};
  Conv snapshots{.activation_expr = silu(dsl::x), .keep = ConvKeep::snapshots};
  Conv circular{.state_len = 6, .activation_expr = silu(dsl::x), .store = ConvStore::circular};
  const Sizes sizes{.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 2};
  return {
      {"InPlace", in_place()},
      {"InPlaceFp32State", in_place().state(DType::f32)},
      {"InPlaceChannelsLast", in_place().with_conv(last)},
      {"InPlaceGateInTheUpdate", in_place().gate(silu(dsl::z)).with_norm({.group_size = 512})},
      {"InPlaceConvAlone", mamba2(sizes).with_conv({.activation_expr = silu(dsl::x)})},
      {"InPlaceNormAlone", mamba2(sizes).with_norm({.group_size = 512, .gate_expr = silu(dsl::z)})},
      {"InPlaceOfTokens", in_place().tokens(6)},
      {"InPlaceOfTokensFp32State", in_place().tokens(8).state(DType::f32)},
      {"InPlaceOfTokensNormAlone", mamba2(sizes).tokens(3).with_norm({.group_size = 512, .gate_expr = silu(dsl::z)})},
      {"Ring", with_ring()},
      {"RingOfOneToken", with_ring(1).state(DType::f32)},
      {"RingInt8ByChance", with_ring(4).state(DType::i8).rounding(Stochastic{})},
      {"RingAcceptedCounts", with_ring().with_conv(accepted)},
      {"RingCircularWindows", with_ring(4).with_conv(circular)},
      {"RingSnapshots", with_ring(3).with_conv(snapshots)}};
}

constexpr CaseLayout kLayout{.batch = 5, .indexed = true, .padded_state = true, .pads = true};

// Of a layer's forms one plan each; fused where there is such a plan.
std::vector<Plan> forms_of(const Description& d) {
  std::vector<Plan> plans;
  std::vector<Plan> fused;
  for (const Plan& plan : plan_space(d, arch()))
    if (plan.form == PlanForm::fused) fused.push_back(plan);
  for (Plan& plan : sample_plans(fused, 2, 3)) plans.push_back(std::move(plan));
  plans.push_back(default_chain(PlanForm::chain, d, arch(), std::int64_t{5} * d.nheads));
  if (arch().has_pdl()) plans.push_back(default_chain(PlanForm::chain_pdl, d, arch(), std::int64_t{5} * d.nheads));
  return plans;
}

template <class Args>
void run(const Kernel& kernel, const Args& args) {
  Stream stream;
  kernel.launch(args, stream.handle());
  stream.synchronize();
}

// Without the scratch, which is nobody's.
Memory but_scratch(const KernelCase& c, Memory memory) {
  for (std::size_t i = 0; i < memory.size(); ++i)
    if (c.blocks()[i].name == "scratch") memory[i].clear();
  return memory;
}

class GpuLayer : public testing::TestWithParam<Layer> {};
INSTANTIATE_TEST_SUITE_P(OfEveryKind, GpuLayer, testing::ValuesIn(layers()),
                         [](const auto& info) { return info.param.name; });

TEST_P(GpuLayer, IsRightInEveryForm) {
  NEEDS_GPU();
  const Description& d = GetParam().description;
  for (const Verdict& v : verify(d, forms_of(d), {}))
    EXPECT_EQ(v.outcome, Outcome::ok) << v.plan.text() << testing::PrintToString(v.failures);
}

// ---- a chain is its parts ----

// Tensors of [batch, tokens, channels] as those of a part want them: tokens are a dimension where there is a ring or
// several of them.
Tensor heads_of(const void* data, const Description& d, std::int64_t batch, std::int64_t row, std::int64_t outer,
                std::int64_t inner) {
  if (d.ring_window() == 0 && d.token_count == 1)
    return strided(data, d.input_dtype, {batch, outer, inner}, {row, inner, 1});
  return strided(data, d.input_dtype, {batch, d.token_count, outer, inner}, {d.token_count * row, row, inner, 1});
}
Tensor channels_of(const Tensor& t, const Description& d) {
  const std::int64_t token = t.rank == 4 ? t.stride[1] : std::int64_t{d.nheads} * d.head_dim;
  return strided(t.data, t.dtype, {t.shape[0], d.token_count, std::int64_t{d.nheads} * d.head_dim},
                 {t.stride[0], token, 1});
}

// The parts launched one by one, what they pass on in buffers of their own.
void run_parts(const Description& d, const Plan& plan, const LayerArgs& args) {
  const std::int64_t batch = args.x.shape[0], T = d.token_count, H = d.nheads, P = d.head_dim, N = d.dstate;
  const std::int64_t inner = H * P, channels = inner + 2 * d.ngroups * N, element = size_bytes(d.input_dtype);
  const DeviceBuffer convolved(static_cast<std::size_t>(batch * T * channels * element));
  const DeviceBuffer y(static_cast<std::size_t>(batch * T * inner * element));
  std::vector<PlanPart> parts = plan_parts(plan, d);
  auto part = parts.begin();
  Tensor x = args.x, B = args.B, C = args.C;
  if (d.conv) {
    Conv1dArgs a = layer_conv1d_args(d, args);
    a.out = contiguous(convolved.data(), d.input_dtype, {batch, T, channels});
    run(Kernel::load(part->description, part->plan), a);
    ++part;
    x = heads_of(convolved.data(), d, batch, channels, H, P);
    B = heads_of(convolved.data() + inner * element, d, batch, channels, d.ngroups, N);
    C = heads_of(convolved.data() + (inner + d.ngroups * N) * element, d, batch, channels, d.ngroups, N);
  }
  const Tensor out = d.norm ? heads_of(y.data(), d, batch, inner, H, P) : args.out;
  const auto of_tokens = [&](auto& a) {
    a.x = x;
    a.B = B;
    a.C = C;
    a.out = out;
  };
  if (d.ring_window() != 0) {
    RingArgs a = layer_ring_args(d, args);
    of_tokens(a);
    run(Kernel::load(part->description, part->plan), a);
  } else {
    UpdateArgs a;
    a.state = args.state;
    a.dt = args.dt;
    a.A = args.A;
    a.D = args.D;
    a.dt_bias = args.dt_bias;
    if (d.has_z()) a.z = args.z;
    a.state_batch_indices = args.state_batch_indices;
    a.pad_slot_id = args.pad_slot_id;
    of_tokens(a);
    run(Kernel::load(part->description, part->plan), a);
  }
  ++part;
  if (!d.norm) return;
  NormArgs a;
  a.x = channels_of(out, d);
  if (!d.norm->gate_expr.empty()) a.z = channels_of(args.z, d);
  a.weight = args.norm_weight;
  a.bias = args.norm_bias;
  a.out = channels_of(args.out, d);
  run(Kernel::load(part->description, part->plan), a);
}

TEST_P(GpuLayer, AsAChainLeavesTheBitsOfItsPartsLaunchedOneByOne) {
  NEEDS_GPU();
  const Description& d = GetParam().description;
  for (const CaseLayout& layout :
       {kLayout, CaseLayout{.batch = 7, .index_dtype = DType::i64, .indexed = true, .packed_rows = true}}) {
    DeviceCase<LayerCase> c(d, layout);
    const Plan plan = default_chain(PlanForm::chain, d, arch(), std::int64_t{5} * d.nheads);
    run(Kernel::load(d, plan), c.args());
    const Memory chain = c.result();
    EXPECT_THAT(c.test().check(chain).failures, IsEmpty());
    c.reset();
    run_parts(d, plan, c.args());
    EXPECT_EQ(but_scratch(c.test(), chain), but_scratch(c.test(), c.result())) << layout.name();
  }
}

// How far the outputs of one launch are from those of another of the same case, in units of the output's dtype; `same`:
// of the rest, whether windows, rings and all else but states, deltas, scratch and outputs have the same bytes.
struct Apart {
  Nearness out, state;
  bool same = true;
};
Apart apart(const LayerCase& c, Memory want, Memory got) {
  const Description& d = c.description();
  Apart result;
  NearnessMeter out(d.input_dtype, d.dstate), state(d.state_dtype, d.dstate);
  std::vector<std::byte*> want_base, got_base;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const std::string& name = c.blocks()[i].name;
    if (name != "out" && name != "state" && name != "state_scale" && name != "dt_ring" && name != "scratch")
      result.same = result.same && want[i] == got[i];
    want_base.push_back(want[i].data());
    got_base.push_back(got[i].data());
  }
  const LayerArgs a = c.args(want_base), b = c.args(got_base);
  const auto compare = [&](NearnessMeter& meter, const Tensor& x, const Tensor& y, std::int64_t at, int count) {
    const std::vector<double> first = stored_values(x, at, count, read_host);
    // What no launch writes is NaN in both.
    if (!std::any_of(first.begin(), first.end(), [](double v) { return v != v; }))
      meter.add_row(first.data(), stored_values(y, at, count, read_host));
  };
  for (std::int64_t row = 0; row < a.out.shape[0]; ++row)
    for (int t = 0; t < d.token_count; ++t)
      for (int h = 0; h < d.nheads; ++h)
        compare(out, a.out, b.out, layer_token_at(d, a.out, row, t) + std::int64_t{h} * d.head_dim, d.head_dim);
  for (std::int64_t slot = 0; slot < a.state.shape[0]; ++slot)
    for (int i = 0; i < d.nheads * d.head_dim; ++i)
      compare(state, a.state, b.state, slot * a.state.stride[0] + std::int64_t{i} * d.dstate, d.dstate);
  result.out = out.result();
  result.state = state.result();
  return result;
}

// Each form rounds x, B, C and y, and then its output, once: where y is rounded to another neighbour, by a sum in
// another order, its unit is up to two of the output's.
TEST_P(GpuLayer, AsOneKernelIsAChainWithinThreeUnitsOfTheOutput) {
  NEEDS_GPU();
  const Description& d = GetParam().description;
  std::vector<Plan> fused;
  for (const Plan& plan : plan_space(d, arch()))
    if (plan.form == PlanForm::fused) fused.push_back(plan);
  if (fused.empty()) GTEST_SKIP() << "no one kernel computes this layer: " << d.summary();
  // fp32 is not rounded where it is stored: its unit is what sums in another order may be off the exact one, each.
  const double most_state_units = d.state_dtype == DType::f32 ? 2 : 1;
  DeviceCase<LayerCase> c(d, {.batch = 7, .indexed = true});
  run(Kernel::load(d, default_chain(PlanForm::chain, d, arch(), std::int64_t{7} * d.nheads)), c.args());
  const Memory chain = c.result();
  for (const Plan& plan : sample_plans(fused, 4, 5)) {
    c.reset();
    run(Kernel::load(d, plan), c.args());
    const Apart found = apart(c.test(), chain, c.result());
    EXPECT_TRUE(found.same) << plan.text();
    EXPECT_LE(found.out.worst_ulp, 3) << plan.text();
    EXPECT_LE(found.out.past_two, 1e-3) << plan.text();
    EXPECT_LE(found.out.frobenius, 1e-3) << plan.text();
    EXPECT_LE(found.state.worst_ulp, most_state_units) << plan.text();
  }
}

// ---- programmatic dependent launch ----

class DependentLayer : public testing::TestWithParam<std::tuple<Layer, bool>> {
 protected:
  const Description& description() const { return std::get<0>(GetParam()).description; }
  static bool graph() { return std::get<1>(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(OfEveryKind, DependentLayer, testing::Combine(testing::ValuesIn(layers()), testing::Bool()),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + (std::get<1>(info.param) ? "InAGraph" : "OnAStream");
                         });

// The bits of every mode behind a slow producer, and whether they are right.
template <class Case>
void expect_bits_of_off(DeviceCase<Case>& c, const std::vector<Plan>& plans, bool graph) {
  const SlowProducer slow;
  for (const Plan& plan : plans) {
    const Kernel kernel = Kernel::load(c.test().description(), plan);
    const auto behind = [&](Pdl pdl) {
      return c.after(
          [&](const Stream& stream) {
            c.produce(slow, stream, false);
            kernel.launch(c.args(pdl), stream.handle());
          },
          graph);
    };
    const Memory off = behind(Pdl::off);
    EXPECT_THAT(c.test().check(off).failures, IsEmpty()) << plan.text();
    EXPECT_EQ(behind(Pdl::wait_first), off) << plan.text();
    EXPECT_EQ(behind(Pdl::early_state), off) << plan.text();
  }
}

TEST_P(DependentLayer, BehindASlowProducerEveryModeOfEveryFormGivesTheBitsOfOff) {
  NEEDS_GPU();
  DeviceCase<LayerCase> c(description(), kLayout);
  expect_bits_of_off(c, forms_of(description()), graph());
}

TEST_P(DependentLayer, TheTwoFormsOfAChainGiveTheSameBits) {
  NEEDS_GPU();
  if (!arch().has_pdl()) GTEST_SKIP() << "no dependent launch on " << arch().text();
  const SlowProducer slow;
  const Description& d = description();
  DeviceCase<LayerCase> c(d, kLayout);
  const auto behind = [&](PlanForm form, Pdl pdl) {
    const Kernel kernel = Kernel::load(d, default_chain(form, d, arch(), std::int64_t{5} * d.nheads));
    return c.after(
        [&](const Stream& stream) {
          c.produce(slow, stream, false);
          kernel.launch(c.args(pdl), stream.handle());
        },
        graph());
  };
  const Memory plain = behind(PlanForm::chain, Pdl::off);
  for (const Pdl pdl : {Pdl::off, Pdl::wait_first, Pdl::early_state})
    EXPECT_EQ(behind(PlanForm::chain_pdl, pdl), plain) << name(pdl);
}

TEST_P(DependentLayer, TheSameLayerSteppedTwiceInARowGivesTheBitsOfOff) {
  NEEDS_GPU();
  const SlowProducer slow;
  const Description& d = description();
  DeviceCase<LayerCase> c(d, kLayout);
  for (const Plan& plan : forms_of(d)) {
    const Kernel kernel = Kernel::load(d, plan);
    const auto twice = [&](Pdl pdl, bool produced_between, bool dependent) {
      return c.after(
          [&](const Stream& stream) {
            c.produce(slow, stream, false);
            kernel.launch(c.args(pdl), stream.handle());
            if (produced_between) c.produce(slow, stream, dependent);
            kernel.launch(c.args(pdl), stream.handle());
          },
          graph());
    };
    const Memory off = twice(Pdl::off, false, false);
    EXPECT_EQ(twice(Pdl::wait_first, false, false), off) << plan.text();
    EXPECT_EQ(twice(Pdl::wait_first, true, true), off) << plan.text();
    // The producer in between is an ordinary launch: the first step has ended, which early_state has as its condition.
    EXPECT_EQ(twice(Pdl::early_state, true, false), off) << plan.text();
  }
}

TEST_P(DependentLayer, AnAllPadBatchInsideAChainHidesNoProducer) {
  NEEDS_GPU();
  const SlowProducer slow;
  const Description& d = description();
  const std::vector<std::int32_t> pads = {-1, -1, -2, 1000, -7};
  const DeviceBuffer indices(pads.size() * 4);
  indices.upload(pads.data(), indices.size());
  DeviceCase<LayerCase> c(d, {.batch = 5, .indexed = true}), all_pads(d, {.batch = 5, .indexed = true}, 2);
  all_pads.change().state_batch_indices = contiguous(indices.data(), DType::i32, {5});
  all_pads.change().scratch = c.args().scratch;  // one for the layers of a stream
  for (const Plan& plan : forms_of(d)) {
    const Kernel kernel = Kernel::load(d, plan);
    const auto chain = [&](Pdl pdl) {
      return c.after(
          [&](const Stream& stream) {
            c.produce(slow, stream, false);
            kernel.launch(all_pads.args(pdl), stream.handle());
            kernel.launch(c.args(pdl), stream.handle());
          },
          graph());
    };
    const Memory off = chain(Pdl::off);
    EXPECT_EQ(chain(Pdl::wait_first), off) << plan.text();
    EXPECT_EQ(chain(Pdl::early_state), off) << plan.text();
  }
}

class DependentPart : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(On, DependentPart, testing::Bool(),
                         [](const auto& info) { return info.param ? "AGraph" : "AStream"; });

TEST_P(DependentPart, AConvolutionBehindASlowProducerGivesTheBitsOfOffInEveryMode) {
  NEEDS_GPU();
  for (const Description& d :
       {convolution(1), convolution(6), convolution(4).with_conv({.channels = 1280, .keep = ConvKeep::slots}),
        convolution(3).with_conv({.channels = 1280, .state_len = 5, .has_accepted = true})}) {
    DeviceCase<Conv1dCase> c(d, kLayout);
    expect_bits_of_off(c, sample_plans(plan_space(d, arch()), 4, 3), GetParam());
  }
}

TEST_P(DependentPart, ANormBehindASlowProducerGivesTheBitsOfOffInEveryMode) {
  NEEDS_GPU();
  const Description d = norm();
  for (const CaseLayout& layout : {CaseLayout{.batch = 5}, CaseLayout{.batch = 4, .packed_rows = true}}) {
    DeviceCase<NormCase> c(d, layout);
    expect_bits_of_off(c, sample_plans(plan_space(d, arch()), 4, 3), GetParam());
  }
}

// ---- rows of the list of faults ----

// Two-byte elements moved to where their slots lie `stride` elements apart.
class Spread {
 public:
  Spread(Tensor& t, std::int64_t stride)
      : slots_(t.shape[0]),
        stride_(stride),
        far_(static_cast<std::size_t>(((slots_ - 1) * stride + t.stride[0]) * 2)),
        slot_(static_cast<std::size_t>(t.stride[0] * 2)) {
    for (std::int64_t i = 0; i < slots_; ++i) {
      read_device_memory(static_cast<const std::byte*>(t.data) + i * t.stride[0] * 2, slot_.data(), slot_.size());
      far_.upload(slot_.data(), slot_.size(), static_cast<std::size_t>(i * stride_ * 2));
    }
    t.data = far_.data();
    t.stride[0] = stride;
  }
  // Back to where `to`, on the host, has them.
  void gather(const Tensor& to) const {
    for (std::int64_t i = 0; i < slots_; ++i)
      far_.download(static_cast<std::byte*>(const_cast<void*>(to.data)) + static_cast<std::size_t>(i) * slot_.size(),
                    slot_.size(), static_cast<std::size_t>(i * stride_ * 2));
  }

 private:
  std::int64_t slots_, stride_;
  DeviceBuffer far_;
  std::vector<std::byte> slot_;
};

// 17 slots, the stride 2^27 elements: slot 16 starts at element 2^31.
constexpr int kFarSlots = 17;
constexpr std::int64_t kFar = std::int64_t{1} << 27;

std::vector<std::byte*> bases(Memory& memory) {
  std::vector<std::byte*> base;
  for (std::vector<std::byte>& block : memory) base.push_back(block.data());
  return base;
}

TEST(Faults, Row01_AWindowPast2To31ElementsGivesTheRightResult) {
  NEEDS_GPU();
  if (free_device_bytes() < (std::int64_t{7} << 30)) GTEST_SKIP() << "less than 7 GiB of device memory are free";
  for (const Description& d : {convolution(1), convolution(6)}) {
    DeviceCase<Conv1dCase> c(d, {.batch = kFarSlots});
    const Spread windows(c.change().conv_state, kFar);
    run(Kernel::load(d, default_plan(d, arch(), 64)), c.args());
    Memory after = c.result();
    windows.gather(c.test().args(bases(after)).conv_state);
    EXPECT_THAT(c.test().check(after).failures, IsEmpty());
  }
}

TEST(Faults, Row01_SlotsOfALayerPast2To31ElementsGiveTheRightResultInEveryForm) {
  NEEDS_GPU();
  if (free_device_bytes() < (std::int64_t{16} << 30)) GTEST_SKIP() << "less than 16 GiB of device memory are free";
  for (const Description& d : {in_place(), with_ring(3)})
    for (const Plan& plan : forms_of(d)) {
      DeviceCase<LayerCase> c(d, {.batch = kFarSlots});
      const Spread windows(c.change().conv_state, kFar), states(c.change().state, kFar);
      run(Kernel::load(d, plan), c.args());
      Memory after = c.result();
      const LayerArgs image = c.test().args(bases(after));
      windows.gather(image.conv_state);
      states.gather(image.state);
      EXPECT_THAT(c.test().check(after).failures, IsEmpty()) << plan.text();
    }
}

TEST(Faults, Row19_BatchesFrom1To1024OfALayerAreRightInEveryElement) {
  NEEDS_GPU();
  const Sizes sizes{.nheads = 4, .head_dim = 32, .dstate = 64, .ngroups = 2};
  const Description small = mamba2(sizes)
                                .state(DType::bf16)
                                .with_conv({.activation_expr = silu(dsl::x)})
                                .with_norm({.group_size = 64, .gate_expr = silu(dsl::z)});
  for (const Description& d : {small, Description(small).tokens(2).store(Ring{.window = 4})})
    for (const Plan& plan : forms_of(d)) {
      const Kernel kernel = Kernel::load(d, plan);
      for (const int batch : {1, 2, 31, 100, 257, 1024}) {
        DeviceCase<LayerCase> c(d, {.batch = batch, .indexed = true}, static_cast<std::uint64_t>(batch));
        run(kernel, c.args());
        EXPECT_THAT(c.test().check(c.result()).failures, IsEmpty()) << batch << " " << plan.text();
      }
    }
}

TEST(Faults, Row19_AnEmptyBatchOfALayerLaunchesNothing) {
  NEEDS_GPU();
  for (const Description& d : {in_place(), with_ring()})
    for (const Plan& plan : forms_of(d)) {
      const Kernel kernel = Kernel::load(d, plan);
      DeviceCase<LayerCase> c(d, {.batch = 2, .indexed = true});
      const Memory before = c.result();
      LayerArgs none = c.args();
      for (Tensor* t : {&none.x, &none.dt, &none.z, &none.out, &none.state_batch_indices}) t->shape[0] = 0;
      run(kernel, none);
      EXPECT_EQ(c.result(), before) << plan.text();
    }
}

}  // namespace
}  // namespace ssmjit
