// The GPU and the CPU executor, given one source and one memory, leave the same results there: what is found on the CPU
// holds on the GPU.
#include <algorithm>
#include <cstring>
#include <iostream>
#include <ostream>
#include <string>
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

#include "autotune/cpu_verify.h"
#include "autotune/reference/update_reference.h"
#include "autotune/update_case.h"
#include "jit/gpu.h"
#include "tests/gpu/needs_gpu.h"

namespace ssmjit {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;

// What a case's blocks hold.
using Memory = std::vector<std::vector<std::byte>>;

Memory before(const UpdateCase& c) {
  Memory memory;
  for (const UpdateCase::Block& block : c.blocks()) memory.push_back(block.before);
  return memory;
}

UpdateArgs args_in(const UpdateCase& c, Memory& memory) {
  std::vector<std::byte*> base;
  for (std::vector<std::byte>& block : memory) base.push_back(block.data());
  return c.args(base);
}

Pdl pdl_of(const Plan& plan) { return plan.early_state ? Pdl::early_state : Pdl::off; }

Memory after_gpu(const Kernel& kernel, const UpdateCase& c) {
  std::vector<DeviceBuffer> buffers;
  std::vector<std::byte*> base;
  for (const UpdateCase::Block& block : c.blocks()) {
    buffers.emplace_back(block.before.size());
    buffers.back().upload(block.before.data(), block.before.size());
    base.push_back(buffers.back().data());
  }
  UpdateArgs args = c.args(base);
  args.pdl = pdl_of(kernel.plan());
  const Stream& stream = measuring_stream();
  kernel.launch(args, stream.handle());
  stream.synchronize();
  Memory memory = before(c);
  for (std::size_t i = 0; i < memory.size(); ++i) buffers[i].download(memory[i].data(), memory[i].size());
  return memory;
}

// A finding of the executor is a failure of the test.
Memory after_cpu(const CpuProgram& program, const Description& d, const Plan& plan, const UpdateCase& c,
                 CpuSchedule schedule) {
  Memory memory = before(c);
  const device_args::UpdateArgs args = to_device(args_in(c, memory), pdl_of(plan));
  std::vector<CpuBuffer> buffers;
  for (std::size_t i = 0; i < memory.size(); ++i) buffers.push_back(cpu_buffer(c.blocks()[i], memory[i]));
  CpuLaunch launch = cpu_launch(launch_shape(plan, d, c.layout().batch), args, std::move(buffers));
  launch.schedule = schedule;
  launch.timeout_s = 60;
  for (const CpuFinding& finding : program.run(launch).findings)
    ADD_FAILURE() << c.layout().name() << ": CPU: " << finding.text();
  return memory;
}

// How far `got` is from `want`, both left by a launch of `c`.
struct Difference {
  Nearness out, state;
  std::vector<std::string> failures;  // sentences; empty: they agree
};

Difference difference(const Description& d, const UpdateCase& c, Memory want, const Memory& got_memory) {
  Difference result;
  const auto failed = [&](const std::string& sentence) {
    result.failures.push_back(fmt::format("{}: {}", c.layout().name(), sentence));
  };
  Memory start = before(c), got = got_memory;
  const UpdateArgs args = args_in(c, start), want_args = args_in(c, want), got_args = args_in(c, got);
  NearnessMeter out(d.input_dtype, d.dstate), state(d.state_dtype, d.dstate);
  // Adds a row to the meter and makes it the same in both.
  const auto add_row = [](NearnessMeter& meter, const Tensor& w, const Tensor& g, std::int64_t at, int count,
                          const double* terms) {
    meter.add_row(stored_values(w, at, count, read_host).data(), stored_values(g, at, count, read_host), terms);
    const auto size = static_cast<std::size_t>(size_bytes(w.dtype));
    std::memcpy(static_cast<std::byte*>(const_cast<void*>(g.data)) + static_cast<std::size_t>(at) * size,
                static_cast<const std::byte*>(w.data) + static_cast<std::size_t>(at) * size,
                static_cast<std::size_t>(count) * size);
  };
  for (std::int64_t b = 0; b < c.layout().batch; ++b) {
    const RowSlots row = row_slots(d, args, b, read_host);
    for (int h = 0; h < d.nheads; ++h) {
      if (row.live || d.pad_output_kind == PadOutput::as_if_zero_state) {
        const std::vector<double> terms = update_reference(d, args, b, h, row, read_host).y_terms;
        add_row(out, want_args.out, got_args.out, b * args.out.stride[0] + std::int64_t{h} * d.head_dim, d.head_dim,
                terms.data());
      }
      if (!row.store) continue;
      for (int p = 0; p < d.head_dim; ++p)
        add_row(state, want_args.state, got_args.state,
                row.target * args.state.stride[0] + (std::int64_t{h} * d.head_dim + p) * d.dstate, d.dstate, nullptr);
    }
  }
  result.out = out.result();
  result.state = state.result();
  if (const std::string s = judge(result.out, d.input_dtype, d.dstate, "out"); !s.empty()) failed(s);
  if (const std::string s = judge(result.state, d.state_dtype, d.dstate, "state"); !s.empty()) failed(s);
  // All that is left: pad outputs, other slots, gaps, inputs and canaries.
  for (std::size_t i = 0; i < want.size(); ++i) {
    const auto at = std::mismatch(want[i].begin(), want[i].end(), got[i].begin()).first - want[i].begin();
    if (at != static_cast<std::ptrdiff_t>(want[i].size()))
      failed(fmt::format("{}: byte {} of the block, which must be the same, differs", c.blocks()[i].name, at));
  }
  return result;
}

void keep_worst(Nearness& worst, const Nearness& n) {
  worst.frobenius = std::max(worst.frobenius, n.frobenius);
  worst.worst_ulp = std::max(worst.worst_ulp, n.worst_ulp);
  worst.past_two = std::max(worst.past_two, n.past_two);
}

struct Case {
  std::string name;
  Description description;
  StatePath path;
  bool early_state;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

std::vector<Case> cases() {
  const auto step = [](DType state, DType input = DType::bf16) {
    return mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1}).state(state).input(input);
  };
  const auto grouped = [](DType state, DType input = DType::bf16) {
    return mamba2({.nheads = 12, .head_dim = 32, .dstate = 64, .ngroups = 3}).state(state).input(input);
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
  };
}

// One of the case's plans on `arch`, by a fixed seed.
std::vector<Plan> sampled_plan(const Case& c, const Arch& arch) {
  std::vector<Plan> of_case;
  for (const Plan& plan : plan_space(c.description, arch))
    if (plan.state_path == c.path && plan.early_state == c.early_state) of_case.push_back(plan);
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
    const UpdateCase c(d, layout, seed++);
    const Memory on_gpu = after_gpu(kernel, c), on_cpu = after_cpu(program, d, plan, c, CpuSchedule::forward);
    EXPECT_THAT(c.check(on_gpu).failures, IsEmpty()) << "GPU: " << plan.text();
    EXPECT_THAT(c.check(on_cpu).failures, IsEmpty()) << "CPU: " << plan.text();
    const Difference found = difference(d, c, on_gpu, on_cpu);
    EXPECT_THAT(found.failures, IsEmpty()) << plan.text();
    keep_worst(out, found.out);
    keep_worst(state, found.state);
  }
  RecordProperty("out_units", fmt::format("{:.3f}", out.worst_ulp));
  RecordProperty("state_units", fmt::format("{:.3f}", state.worst_ulp));
  std::cout << fmt::format("GPU and CPU: out {:.2f} units, relative {:.1e}; state {:.2f} units, relative {:.1e}: {}\n",
                           out.worst_ulp, out.frobenius, state.worst_ulp, state.frobenius, plan.text());
}

TEST(AgreementMeasure, EveryCaseHasItsPlanAndSeesADifferenceOfAnElementAndOfAByte) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Arch arch = Arch::parse("sm_90a");
  for (const Case& of : cases()) {
    SCOPED_TRACE(of.name);
    const Description& d = of.description;
    const std::vector<Plan> plans = sampled_plan(of, arch);
    ASSERT_EQ(plans.size(), 1u);
    const CpuProgram program = CpuProgram::compile(emit(d, plans[0], arch));
    const UpdateCase c(d, {.batch = 3, .indexed = true, .padded_state = true, .pads = true}, 1);
    const Memory want = after_cpu(program, d, plans[0], c, CpuSchedule::forward);
    const Difference none = difference(d, c, want, after_cpu(program, d, plans[0], c, CpuSchedule::random));
    EXPECT_THAT(none.failures, IsEmpty());
    EXPECT_EQ(none.out.worst_ulp, 0);
    EXPECT_EQ(none.state.worst_ulp, 0);

    Memory start = before(c), other = want;
    const UpdateArgs args = args_in(c, start), other_args = args_in(c, other);
    const auto flip = [](const Tensor& t, std::int64_t at) {
      // The topmost bit of the exponent.
      static_cast<std::byte*>(const_cast<void*>(t.data))[(at + 1) * size_bytes(t.dtype) - 1] ^= std::byte{0x40};
    };
    std::int64_t live = 0;
    while (!row_slots(d, args, live, read_host).store) ++live;
    flip(other_args.out, live * args.out.stride[0] + 3);
    flip(other_args.state, row_slots(d, args, live, read_host).target * args.state.stride[0] + 5);
    other[0].back() ^= std::byte{1};
    const std::vector<std::string> failures = difference(d, c, want, other).failures;
    EXPECT_THAT(failures, testing::SizeIs(3));
    EXPECT_THAT(failures, Contains(HasSubstr("out: ")));
    EXPECT_THAT(failures, Contains(HasSubstr("state: ")));
    EXPECT_THAT(failures, Contains(HasSubstr("must be the same")));
  }
}

}  // namespace
}  // namespace ssmjit
