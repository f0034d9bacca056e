// The GPU and the CPU executor, given one source and one memory, leave the same results there: what is found on the CPU
// holds on the GPU.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <iostream>
#include <memory>
#include <ostream>
#include <string>
#include <variant>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/cpu.h>
#include <ssmjit/cubin.h>
#include <ssmjit/description.h>
#include <ssmjit/device.h>
#include <ssmjit/kernel.h>
#include <ssmjit/plan.h>
#include <ssmjit/source.h>
#include <ssmjit/tune.h>

#include "autotune/conv1d_case.h"
#include "autotune/cpu_verify.h"
#include "autotune/layer_case.h"
#include "autotune/norm_case.h"
#include "autotune/reference/norm_reference.h"
#include "autotune/reference/ring_reference.h"
#include "autotune/reference/update_reference.h"
#include "autotune/ring_case.h"
#include "autotune/update_case.h"
#include "jit/gpu.h"
#include "jit/layer_chain.h"
#include "tests/gpu/needs_gpu.h"

namespace ssmjit {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;

// What a case's blocks hold.
using Memory = std::vector<std::vector<std::byte>>;

Memory before(const KernelCase& c) {
  Memory memory;
  for (const KernelCase::Block& block : c.blocks()) memory.push_back(block.before);
  return memory;
}

std::vector<std::byte*> bases(Memory& memory) {
  std::vector<std::byte*> base;
  for (std::vector<std::byte>& block : memory) base.push_back(block.data());
  return base;
}

// Of a chain's first launch; the others go by its form.
Pdl pdl_of(const Plan& plan) { return plan.form == PlanForm::fused && plan.early_state ? Pdl::early_state : Pdl::off; }

Memory after_gpu(const Kernel& kernel, const KernelCase& c) {
  std::vector<DeviceBuffer> buffers;
  std::vector<std::byte*> base;
  for (const KernelCase::Block& block : c.blocks()) {
    buffers.emplace_back(block.before.size());
    buffers.back().upload(block.before.data(), block.before.size());
    base.push_back(buffers.back().data());
  }
  const Stream& stream = measuring_stream();
  CaseArgs all = c.launch_args(base);
  std::visit(
      [&](auto& args) {
        args.pdl = pdl_of(kernel.plan());
        kernel.launch(args, stream.handle());
      },
      all);
  stream.synchronize();
  Memory memory = before(c);
  for (std::size_t i = 0; i < memory.size(); ++i) buffers[i].download(memory[i].data(), memory[i].size());
  return memory;
}

// A finding of the executor is a failure of the test.
Memory after_cpu(const CpuProgram& program, const Source& source, const Description& d, const Plan& plan,
                 const KernelCase& c, CpuSchedule schedule) {
  Memory memory = before(c);
  std::vector<CpuBuffer> buffers;
  for (std::size_t i = 0; i < memory.size(); ++i) buffers.push_back(cpu_buffer(c.blocks()[i], memory[i]));
  const std::vector<PlanPart> parts = plan_parts(plan, d);
  std::size_t part = 0;
  const auto run = [&](const auto& given, Pdl pdl) {
    const PlanPart& of = parts[part];
    with_device_args(of.description, given, pdl, [&](const auto& args) {
      CpuLaunch launch = cpu_launch(launch_shape(of, c.layout().batch), args, buffers);
      launch.entry = source.entries[part].name;
      launch.schedule = schedule;
      launch.timeout_s = 60;
      for (const CpuFinding& finding : program.run(launch).findings)
        ADD_FAILURE() << c.layout().name() << ": CPU: " << finding.text();
    });
    ++part;
  };
  const CaseArgs args = c.launch_args(bases(memory));
  const auto* layer = std::get_if<LayerArgs>(&args);
  if (layer == nullptr || plan.form == PlanForm::fused) {
    std::visit([&](const auto& given) { run(given, pdl_of(plan)); }, args);
    return memory;
  }
  const ChainArgs chain = chain_args(d, plan.form, *layer);
  const auto one = [&](const auto& given) {
    if (!given) return;
    run(*given, given->pdl);
    for (CpuBuffer& buffer : buffers)
      if (buffer.name == "scratch") buffer.initialised = true;
  };
  one(chain.conv1d);
  one(chain.update);
  one(chain.ring);
  one(chain.norm);
  return memory;
}

// How far `got` is from `want`, both left by a launch of one case.
struct Difference {
  Nearness out, state;
  std::vector<std::string> failures;  // sentences; empty: they agree
};

// Rows of a tensor that were compared, made the same in both.
struct Comparison {
  Comparison(DType dtype, const Description& d, const char* tensor)
      : meter(dtype, d.dstate), dtype(dtype), dstate(d.dstate), what(tensor) {}

  void add_row(const Tensor& want, const Tensor& got, std::int64_t at, int count, const double* terms = nullptr,
               const double* slack = nullptr) {
    meter.add_row(stored_values(want, at, count, read_host).data(), stored_values(got, at, count, read_host), terms,
                  slack);
    const auto size = static_cast<std::size_t>(size_bytes(want.dtype));
    std::memcpy(static_cast<std::byte*>(const_cast<void*>(got.data)) + static_cast<std::size_t>(at) * size,
                static_cast<const std::byte*>(want.data) + static_cast<std::size_t>(at) * size,
                static_cast<std::size_t>(count) * size);
  }
  // Empty, or what was passed.
  std::string failure() const { return judge(meter.result(), dtype, dstate, what); }

  NearnessMeter meter;
  DType dtype;
  int dstate;
  const char* what;
};

// What the comparisons (of out, of the state and of others) and all that is left say: pad outputs, other slots, gaps,
// inputs and canaries must be the same bytes.
Difference summed_up(const KernelCase& c, const std::vector<const Comparison*>& comparisons, const Memory& want,
                     const Memory& got) {
  Difference result;
  result.out = comparisons[0]->meter.result();
  result.state = comparisons[1]->meter.result();
  const auto failed = [&](const std::string& sentence) {
    result.failures.push_back(fmt::format("{}: {}", c.layout().name(), sentence));
  };
  for (const Comparison* comparison : comparisons)
    if (const std::string s = comparison->failure(); !s.empty()) failed(s);
  for (std::size_t i = 0; i < want.size(); ++i) {
    const auto at = std::mismatch(want[i].begin(), want[i].end(), got[i].begin()).first - want[i].begin();
    if (at != static_cast<std::ptrdiff_t>(want[i].size()))
      failed(fmt::format("{}: byte {} of the block, which must be the same, differs", c.blocks()[i].name, at));
  }
  return result;
}

Difference update_difference(const UpdateCase& c, Memory want, Memory got) {
  const Description& d = c.description();
  Memory start = before(c);
  const UpdateArgs args = c.args(bases(start)), want_args = c.args(bases(want)), got_args = c.args(bases(got));
  Comparison out(d.input_dtype, d, "out"), state(d.state_dtype, d, "state");
  for (std::int64_t b = 0; b < c.layout().batch; ++b) {
    const RowSlots row = row_slots(d, args, b, read_host);
    for (int h = 0; h < d.nheads; ++h) {
      if (row.live || d.pad_output_kind == PadOutput::as_if_zero_state) {
        const std::vector<double> terms = update_reference(d, args, b, h, row, read_host).y_terms;
        out.add_row(want_args.out, got_args.out, b * args.out.stride[0] + std::int64_t{h} * d.head_dim, d.head_dim,
                    terms.data());
      }
      if (!row.store) continue;
      for (int p = 0; p < d.head_dim; ++p)
        state.add_row(want_args.state, got_args.state,
                      row.target * args.state.stride[0] + (std::int64_t{h} * d.head_dim + p) * d.dstate, d.dstate);
    }
  }
  return summed_up(c, {&out, &state}, want, got);
}

// Outputs may differ where an element of a flushed state lies so near to halfway that each side stored another value.
Difference ring_difference(const RingCase& c, Memory want, Memory got) {
  const Description& d = c.description();
  Memory start = before(c);
  const RingArgs args = c.args(bases(start)), want_args = c.args(bases(want)), got_args = c.args(bases(got));
  Comparison out(d.input_dtype, d, "out"), state(d.state_dtype, d, "state"), scale(DType::f32, d, "state_scale"),
      delta(DType::f32, d, "dt_ring");
  for (std::int64_t b = 0; b < c.layout().batch; ++b) {
    const RingRequest& request = c.requests()[static_cast<std::size_t>(b)];
    if (!request.live || request.tokens == 0) continue;
    for (int h = 0; h < d.nheads; ++h) {
      const RingHead head = ring_reference(d, args, b, request, h, ring_operands(d), read_host);
      for (int t = 0; t < request.tokens; ++t) {
        out.add_row(want_args.out, got_args.out,
                    token_offset(d, args.out, 2, b, request, t) + std::int64_t{h} * d.head_dim, d.head_dim, nullptr,
                    head.y_slack.data() + std::ptrdiff_t{t} * d.head_dim);
        delta.add_row(want_args.dt_ring, got_args.dt_ring, ring_offset(args.dt_ring, request, h, request.count + t), 1);
      }
      if (!request.flush) continue;
      if (d.has_state_scale()) {
        // A row's largest element, which each side may have summed in another order.
        std::vector<double> slack;
        for (int p = 0; p < d.head_dim; ++p) {
          const auto row = head.state_slack.begin() + std::ptrdiff_t{p} * d.dstate;
          const double largest = d.state_dtype == DType::i8 ? 127.0 : 448.0;
          slack.push_back(2 * *std::max_element(row, row + d.dstate) / largest);
        }
        scale.add_row(want_args.state_scale, got_args.state_scale,
                      request.slot * args.state_scale.stride[0] + std::int64_t{h} * d.head_dim, d.head_dim, nullptr,
                      slack.data());
      }
      for (int p = 0; p < d.head_dim; ++p)
        state.add_row(want_args.state, got_args.state,
                      request.slot * args.state.stride[0] + (std::int64_t{h} * d.head_dim + p) * d.dstate, d.dstate);
    }
  }
  return summed_up(c, {&out, &state, &scale, &delta}, want, got);
}

// Windows are copies.
Difference conv1d_difference(const Conv1dCase& c, Memory want, Memory got) {
  const Description& d = c.description();
  Memory start = before(c);
  const Conv1dArgs args = c.args(bases(start)), want_args = c.args(bases(want)), got_args = c.args(bases(got));
  Comparison out(d.input_dtype, d, "out"), state(d.state_dtype, d, "state");
  out.dstate = kConvTerms;
  for (std::int64_t b = 0; b < c.layout().batch; ++b) {
    const ConvRequest request = conv_request(d, args, b, read_host);
    if (!request.live) continue;
    std::vector<ConvChannel> channels;
    for (int channel = 0; channel < d.conv_channels(); ++channel)
      channels.push_back(conv1d_reference(d, args, b, channel, request, read_host));
    for (int t = 0; t < d.token_count; ++t) {
      std::vector<double> terms;
      for (const ConvChannel& channel : channels) terms.push_back(channel.y_terms[static_cast<std::size_t>(t)]);
      out.add_row(want_args.out, got_args.out, conv_token_at(args.out, b, t, 0), d.conv_channels(), terms.data());
    }
  }
  return summed_up(c, {&out, &state}, want, got);
}

Difference norm_difference(const NormCase& c, Memory want, Memory got) {
  const Description& d = c.description();
  const NormArgs want_args = c.args(bases(want)), got_args = c.args(bases(got));
  Comparison out(d.input_dtype, d, "out"), state(d.state_dtype, d, "state");
  out.dstate = 1;
  for (std::int64_t b = 0; b < c.layout().batch; ++b)
    for (int t = 0; t < d.token_count; ++t)
      for (int g = 0; g < d.norm_channels() / d.norm_group_size(); ++g)
        out.add_row(want_args.out, got_args.out, norm_offset(d, want_args.out, b, t, g), d.norm_group_size());
  return summed_up(c, {&out, &state}, want, got);
}

// What a chain passes on in its scratch is nobody's. x, B and C are the same on both sides, as no sum of the case's
// lies near to halfway between two values, so the rows that rings are given must be the same bytes.
Difference layer_difference(const LayerCase& c, Memory want, Memory got) {
  const Description& d = c.description();
  for (std::size_t i = 0; i < want.size(); ++i)
    if (c.blocks()[i].name == "scratch") got[i] = want[i];
  Memory start = before(c);
  const LayerArgs args = c.args(bases(start)), want_args = c.args(bases(want)), got_args = c.args(bases(got));
  Comparison out(d.input_dtype, d, "out"), state(d.state_dtype, d, "state"), delta(DType::f32, d, "dt_ring");
  const int heads = layer_group_heads(d);
  const std::int64_t P = d.head_dim;
  for (std::int64_t b = 0; b < c.layout().batch; ++b) {
    const bool ring = d.ring_window() != 0;
    const RingRequest request = ring ? ring_request(d, layer_ring_args(d, args), b, read_host) : RingRequest{};
    const RowSlots row = ring ? RowSlots{} : row_slots(args, b, read_host);
    if (!(ring ? request.live : row.live)) continue;
    const std::int64_t slot = ring ? request.slot : row.target;
    for (int g = 0; g < d.nheads / heads; ++g) {
      std::vector<double> terms, slack;
      if (ring)
        slack = ring_layer_reference(d, args, b, g, request, read_host).out_slack;
      else
        terms = layer_reference(d, args, b, g, row, read_host).terms;
      for (int i = 0; i < heads; ++i) {
        const std::int64_t head = std::int64_t{g} * heads + i;
        for (int t = 0; t < d.token_count; ++t) {
          const std::ptrdiff_t first = (std::ptrdiff_t{t} * heads + i) * P;
          out.add_row(want_args.out, got_args.out, layer_token_at(d, args.out, b, t) + head * P, d.head_dim,
                      ring ? nullptr : terms.data() + first, ring ? slack.data() + first : nullptr);
          if (ring)
            delta.add_row(want_args.dt_ring, got_args.dt_ring,
                          ring_offset(args.dt_ring, request, head, request.count + t), 1);
        }
        for (std::int64_t p = 0; (!ring || request.flush) && p < P; ++p)
          state.add_row(want_args.state, got_args.state, slot * args.state.stride[0] + (head * P + p) * d.dstate,
                        d.dstate);
      }
    }
  }
  return summed_up(c, {&out, &state, &delta}, want, got);
}

Difference difference(const KernelCase& c, const Memory& want, const Memory& got) {
  switch (c.description().op()) {
    case Op::ring:
      return ring_difference(static_cast<const RingCase&>(c), want, got);
    case Op::conv1d:
      return conv1d_difference(static_cast<const Conv1dCase&>(c), want, got);
    case Op::norm:
      return norm_difference(static_cast<const NormCase&>(c), want, got);
    case Op::layer:
      return layer_difference(static_cast<const LayerCase&>(c), want, got);
    case Op::update:
      break;
  }
  return update_difference(static_cast<const UpdateCase&>(c), want, got);
}

void keep_worst(Nearness& worst, const Nearness& n) {
  worst.frobenius = std::max(worst.frobenius, n.frobenius);
  worst.worst_ulp = std::max(worst.worst_ulp, n.worst_ulp);
  worst.past_two = std::max(worst.past_two, n.past_two);
}

struct Case {
  std::string name;
  Description description;
  StatePath path = StatePath::direct;
  bool early_state = false;
  PlanForm form = PlanForm::fused;  // of a chain nothing else is asked for
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

std::vector<Case> cases() {
  const auto step = [](DType state, DType input = DType::bf16) {
    return mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1}).state(state).input(input);
  };
  const auto grouped = [](DType state, DType input = DType::bf16) {
    return mamba2({.nheads = 12, .head_dim = 32, .dstate = 64, .ngroups = 3}).state(state).input(input);
  };
  const auto ring = [](DType state, DType input = DType::bf16) {
    return mamba2({.nheads = 8, .head_dim = 32, .dstate = 64, .ngroups = 2})
        .state(state)
        .input(input)
        .tokens(5)
        .store(Ring{.window = 16});
  };
  const auto conv = [](Conv of) {
    of.channels = 640;
    return conv1d(std::move(of));
  };
  const auto norm = [](Norm of) { return gated_norm(std::move(of)); };
  const auto layer = [](Description of) {
    const int group = of.heads_per_group() * of.head_dim;
    return of.with_conv({.activation_expr = silu(dsl::x)}).with_norm({.group_size = group, .gate_expr = silu(dsl::z)});
  };
  const Description ragged = mamba2({.nheads = 6, .head_dim = 40, .dstate = 96, .ngroups = 2});
  const auto direct = StatePath::direct, cp_async = StatePath::cp_async, bulk = StatePath::bulk;
  return {
      {"DirectFp32", step(DType::f32), direct, false},
      {"DirectFp32AllEarly", grouped(DType::f32, DType::f32), direct, true},
      {"DirectBf16DestinationEarly", grouped(DType::bf16).destination_slots(), direct, true},
      {"DirectFp16Gate", step(DType::f16, DType::f16).gate(silu(dsl::z)), direct, false},
      {"DirectBf16Unaligned", Description(ragged).state(DType::bf16).unaligned_rows(), direct, false},
      {"DirectFp32UnalignedGateEarly",
       Description(ragged).state(DType::f32).unaligned_rows().gate(silu(dsl::z)).destination_slots(), direct, true},
      {"CpAsyncFp32Destination", grouped(DType::f32).destination_slots(), cp_async, false},
      {"CpAsyncBf16Early", step(DType::bf16), cp_async, true},
      {"CpAsyncFp16GateEarly", grouped(DType::f16).gate(silu(dsl::z)), cp_async, true},
      {"BulkFp32GateEarly", step(DType::f32).gate(silu(dsl::z)), bulk, true},
      {"BulkBf16PadsAsIfZero", step(DType::bf16).pad_output(PadOutput::as_if_zero_state), bulk, false},
      {"BulkFp16DestinationUnalignedEarly", grouped(DType::f16, DType::f16).destination_slots().unaligned_rows(), bulk,
       true},
      {"RingDirectFp32", ring(DType::f32), direct, false},
      {"RingDirectBf16GateEarly", ring(DType::bf16).gate(silu(dsl::z)), direct, true},
      {"RingDirectFp16VarlenAllEarly", ring(DType::f16, DType::f16).varlen(), direct, true},
      {"RingDirectInt8ByChance", ring(DType::i8).rounding(Stochastic{}), direct, false},
      {"RingOfOneTokenDirectFp8", ring(DType::f8).tokens(1), direct, true},
      {"RingBulkFp32GateEarly", ring(DType::f32).gate(silu(dsl::z)), bulk, true},
      {"RingBulkBf16ByChance", ring(DType::bf16).rounding(Stochastic{}), bulk, false},
      {"RingBulkFp16Varlen", ring(DType::f16).varlen().pad_output(PadOutput::untouched), bulk, true},
      {"RingBulkInt8Fp16Inputs", ring(DType::i8, DType::f16), bulk, false},
      {"RingOf12TokensBulkFp8ByChance", ring(DType::f8).tokens(12).rounding(Stochastic{}), bulk, true},
      {"Conv1dEarly", conv({.activation_expr = silu(dsl::x)}), direct, true},
      {"Conv1dSnapshotsOf4Tokens", conv({.width = 3, .channels_last = true, .keep = ConvKeep::snapshots}).tokens(4)},
      {"Conv1dAcceptedFp16Early",
       conv({.state_len = 6, .activation_expr = silu(dsl::x), .has_accepted = true}).input(DType::f16).tokens(3),
       direct, true},
      {"Conv1dCircularFp32State", conv({.state_len = 5, .store = ConvStore::circular}).state(DType::f32)},
      {"Norm", norm({.channels = 2048, .group_size = 512, .gate_expr = silu(dsl::z)})},
      {"NormBeforeGateWithBiasFp16Early",
       norm({.channels = 1280, .group_size = 320, .gate_expr = silu(dsl::z), .before_gate = true, .has_bias = true})
           .input(DType::f16)
           .tokens(3),
       direct, true},
      {"NormFp32", norm({.channels = 1024, .group_size = 256}).input(DType::f32).weights(DType::f32)},
      {"LayerDirectEarly", layer(grouped(DType::bf16)), direct, true},
      {"LayerDirectFp32State", layer(step(DType::f32))},
      {"LayerBulkEarly", layer(step(DType::bf16)), bulk, true},
      {"LayerBulkFp16", layer(grouped(DType::f16, DType::f16)), bulk, false},
      {"LayerChain", layer(step(DType::bf16)), direct, false, PlanForm::chain},
      {"LayerChainWithPdl", layer(grouped(DType::f32)), direct, false, PlanForm::chain_pdl},
      {"LayerOfTokensEarly", layer(step(DType::bf16)).tokens(4), direct, true},
      {"LayerOfTokensFp32State", layer(step(DType::f32)).tokens(6)},
      {"LayerOfTokensChain", layer(step(DType::bf16)).tokens(4), direct, false, PlanForm::chain},
      {"RingLayerEarly", layer(ring(DType::bf16)), direct, true},
      {"RingLayerFp32State", layer(ring(DType::f32))},
      {"RingLayerAcceptedCounts",
       layer(ring(DType::bf16)).with_conv({.state_len = 7, .activation_expr = silu(dsl::x), .has_accepted = true})},
      {"RingLayerSnapshotsEarly",
       layer(ring(DType::bf16)).with_conv({.activation_expr = silu(dsl::x), .keep = ConvKeep::snapshots}), direct,
       true},
      {"RingLayerCircularWindows",
       layer(ring(DType::bf16))
           .with_conv({.state_len = 5, .activation_expr = silu(dsl::x), .store = ConvStore::circular})},
      {"RingLayerChain", layer(ring(DType::bf16)), direct, false, PlanForm::chain},
      {"RingLayerChainWithPdl", layer(ring(DType::f32)), direct, false, PlanForm::chain_pdl},
  };
}

// One of the case's plans on `arch`, by a fixed seed.
std::vector<Plan> sampled_plan(const Case& c, const Arch& arch) {
  std::vector<Plan> of_case;
  for (const Plan& plan : plan_space(c.description, arch))
    if (plan.form == c.form &&
        (c.form != PlanForm::fused || (plan.state_path == c.path && plan.early_state == c.early_state)))
      of_case.push_back(plan);
  return sample_plans(of_case, 1, 5);
}

class Agreement : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Plans, Agreement, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

TEST_P(Agreement, TheGpuAndTheCpuLeaveTheSameResults) {
  NEEDS_GPU();
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Description& d = GetParam().description;
  const DeviceFacts gpu = device(0);
  if (GetParam().path == StatePath::bulk && !gpu.arch().has_bulk_copy())
    GTEST_SKIP() << "no bulk copies before sm_90; the device is " << gpu.arch().text();
  const std::vector<Plan> plans = sampled_plan(GetParam(), gpu.arch());
  ASSERT_EQ(plans.size(), 1u);
  const Plan& plan = plans[0];
  const Source source = emit(d, plan, gpu.arch());
  const Kernel kernel = Kernel::load(d, plan, source, compile(source));
  const CpuProgram program = CpuProgram::compile(source);
  Nearness out, state;
  std::uint64_t seed = 1;
  for (const CaseLayout& layout : standard_layouts(d, gpu.sms)) {
    const std::unique_ptr<KernelCase> c = make_case(d, layout, seed++);
    const Memory on_gpu = after_gpu(kernel, *c);
    const Memory on_cpu = after_cpu(program, source, d, plan, *c, CpuSchedule::forward);
    EXPECT_THAT(c->check(on_gpu).failures, IsEmpty()) << "GPU: " << plan.text();
    EXPECT_THAT(c->check(on_cpu).failures, IsEmpty()) << "CPU: " << plan.text();
    const Difference found = difference(*c, on_gpu, on_cpu);
    EXPECT_THAT(found.failures, IsEmpty()) << plan.text();
    keep_worst(out, found.out);
    keep_worst(state, found.state);
  }
  RecordProperty("out_units", fmt::format("{:.3f}", out.worst_ulp));
  RecordProperty("state_units", fmt::format("{:.3f}", state.worst_ulp));
  std::cout << fmt::format("GPU and CPU: out {:.2f} units, relative {:.1e}; state {:.2f} units, relative {:.1e}: {}\n",
                           out.worst_ulp, out.frobenius, state.worst_ulp, state.frobenius, plan.text());
}

// Of a row that is computed and stored: the sign of the largest of its first elements.
void flip_an_output_and_a_state(const KernelCase& c, Memory& memory) {
  const auto flip = [](const Tensor& t, std::int64_t at) {
    const std::vector<double> values = stored_values(t, at, 16, read_host);
    const auto less = [](double a, double b) { return std::abs(a) < std::abs(b); };
    at += std::max_element(values.begin(), values.end(), less) - values.begin();
    static_cast<std::byte*>(const_cast<void*>(t.data))[(at + 1) * size_bytes(t.dtype) - 1] ^= std::byte{0x80};
  };
  const Description& d = c.description();
  std::int64_t row = 0;
  Memory start = before(c);
  if (d.op() == Op::norm) return flip(static_cast<const NormCase&>(c).args(bases(memory)).out, 0);
  if (d.op() == Op::conv1d) {
    const auto& conv = static_cast<const Conv1dCase&>(c);
    const Conv1dArgs of_start = conv.args(bases(start));
    while (!conv_request(d, of_start, row, read_host).live) ++row;
    return flip(conv.args(bases(memory)).out, conv_token_at(of_start.out, row, 0, 0));
  }
  if (d.op() == Op::layer) {
    const auto& layer = static_cast<const LayerCase&>(c);
    const LayerArgs of_start = layer.args(bases(start)), args = layer.args(bases(memory));
    const auto request = [&] { return ring_request(d, layer_ring_args(d, of_start), row, read_host); };
    const bool ring = d.ring_window() != 0;
    while (!(ring ? request().flush : row_slots(of_start, row, read_host).store)) ++row;
    flip(args.out, layer_token_at(d, args.out, row, 0));
    return flip(args.state,
                (ring ? request().slot : row_slots(of_start, row, read_host).target) * args.state.stride[0]);
  }
  if (d.op() == Op::ring) {
    const auto& ring = static_cast<const RingCase&>(c);
    const auto request = [&] { return ring.requests()[static_cast<std::size_t>(row)]; };
    while (!request().flush) ++row;
    const RingArgs args = ring.args(bases(memory));
    flip(args.out, token_offset(d, args.out, 2, row, request(), 0));
    flip(args.state, request().slot * args.state.stride[0]);
    return;
  }
  const auto& update = static_cast<const UpdateCase&>(c);
  const UpdateArgs of_start = update.args(bases(start)), args = update.args(bases(memory));
  while (!row_slots(d, of_start, row, read_host).store) ++row;
  flip(args.out, row * args.out.stride[0]);
  flip(args.state, row_slots(d, of_start, row, read_host).target * args.state.stride[0]);
}

TEST(AgreementMeasure, EveryCaseHasItsPlanAndSeesADifferenceOfAnElementAndOfAByte) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Arch arch = Arch::parse("sm_90a");
  for (const Case& of : cases()) {
    SCOPED_TRACE(of.name);
    const Description& d = of.description;
    const std::vector<Plan> plans = sampled_plan(of, arch);
    ASSERT_EQ(plans.size(), 1u);
    CpuCompileOptions unchecked;
    unchecked.checks = false;
    const Source source = emit(d, plans[0], arch);
    const CpuProgram program = CpuProgram::compile(source, unchecked);
    const std::unique_ptr<KernelCase> c =
        make_case(d, {.batch = 5, .indexed = true, .padded_state = true, .pads = true}, 1);
    const Memory want = after_cpu(program, source, d, plans[0], *c, CpuSchedule::forward);
    const Difference none = difference(*c, want, after_cpu(program, source, d, plans[0], *c, CpuSchedule::random));
    EXPECT_THAT(none.failures, IsEmpty());
    EXPECT_EQ(none.out.worst_ulp, 0);
    EXPECT_EQ(none.state.worst_ulp, 0);

    Memory other = want;
    flip_an_output_and_a_state(*c, other);
    other[0].back() ^= std::byte{1};
    const std::vector<std::string> failures = difference(*c, want, other).failures;
    const bool has_state = d.nheads != 0;
    EXPECT_THAT(failures, testing::SizeIs(has_state ? 3 : 2));
    EXPECT_THAT(failures, Contains(HasSubstr("out: ")));
    if (has_state) {
      EXPECT_THAT(failures, Contains(HasSubstr("state: ")));
    }
    EXPECT_THAT(failures, Contains(HasSubstr("must be the same")));
  }
}

}  // namespace
}  // namespace ssmjit
