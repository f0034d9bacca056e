// What the host costs: a compile, a cache hit, a model load, the host's part of a launch.
//
// No GPU is needed. Launches go to the stub driver of tests/jit, whose own cost is the "bare call" that launch() is
// compared with; where there is a GPU, gpu_launch compares both on it.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <ssmjit/ssmjit.h>

#include "jit/compile.h"
#include "jit/cubin_cache.h"
#include "jit/driver.h"
#include "jit/kernel_args.h"
#include "tests/jit/stub_driver.h"

namespace ssmjit {
namespace {

Description description() {
  return mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1}).state(DType::bf16).gate(silu(dsl::z));
}

const Arch kArch{9, 0, 'a'};

std::string scratch_folder() {
  return (std::filesystem::temp_directory_path() / ("ssmjit-bench-" + std::to_string(getpid()))).string();
}

void emit_source(benchmark::State& state) {
  const Description step = description();
  const Plan plan = default_plan(step, kArch, 256);
  for (auto _ : state) benchmark::DoNotOptimize(emit(step, plan, kArch));
}
BENCHMARK(emit_source)->Unit(benchmark::kMicrosecond);

// One core, nothing cached; argument: compute capability.
void compile_cold(benchmark::State& state) {
  const Description step = description();
  const auto number = static_cast<int>(state.range(0));
  for (const Arch& arch : Arch::known()) {
    if (arch.number() != number) continue;
    const Source source = emit(step, default_plan(step, arch, 256), arch);
    try {
      compile(source, {.use_cache = false});
      for (auto _ : state) benchmark::DoNotOptimize(compile(source, {.use_cache = false}));
      state.SetLabel(arch.text() + ", NVRTC " + nvrtc_version());
    } catch (const Error& error) {
      state.SkipWithError(error.what());
    }
  }
}
BENCHMARK(compile_cold)->Arg(80)->Arg(90)->Arg(100)->Arg(120)->Unit(benchmark::kMillisecond);

void cache_hit(benchmark::State& state, bool on_disk) {
  const Description step = description();
  const Source source = emit(step, default_plan(step, kArch, 256), kArch);
  const CompileOptions options{.cache_dir = scratch_folder()};
  try {
    compile(source, options);
    for (auto _ : state) {
      if (on_disk) forget_compiled();
      benchmark::DoNotOptimize(compile(source, options));
    }
  } catch (const Error& error) {
    state.SkipWithError(error.what());
  }
  std::filesystem::remove_all(options.cache_dir);
}
BENCHMARK_CAPTURE(cache_hit, disk, true)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(cache_hit, memory, false)->Unit(benchmark::kMicrosecond);

// A kernel on the stub, and arguments that fit it; nothing reads the addresses.
struct StubKernel {
  explicit StubKernel(const Description& step = description()) {
    if (!stub.ready()) return;
    stub->record = 0;
    const Plan plan = default_plan(step, kArch, 256);
    const LaunchShape shape = launch_shape(plan, step, 1);
    Source source;
    source.arch = kArch;
    source.entries = {{"kernel", shape.block_threads, shape.smem_bytes}};
    Cubin cubin;
    cubin.arch = kArch;
    cubin.image.assign(16, 0);
    kernel = Kernel::load(step, plan, source, cubin);
    const void* data = reinterpret_cast<const void*>(std::uintptr_t{1} << 24);
    args.state = contiguous(data, DType::bf16, {512, 16, 64, 128});
    args.x = args.z = args.out = contiguous(data, DType::bf16, {64, 16, 64});
    args.B = args.C = contiguous(data, DType::bf16, {64, 1, 128});
    args.dt = contiguous(data, DType::f32, {64, 16});
    args.A = args.D = args.dt_bias = contiguous(data, DType::f32, {16});
    args.state_batch_indices = contiguous(data, DType::i32, {64});
    args.pdl = Pdl::wait_first;

    ring.state = args.state;
    ring.x_ring = contiguous(data, DType::bf16, {512, 16, 22, 64});
    ring.B_ring = contiguous(data, DType::bf16, {512, 1, 22, 128});
    ring.dt_ring = contiguous(data, DType::f32, {512, 16, 22});
    ring.ring_start = ring.ring_count = contiguous(data, DType::i32, {512});
    ring.x = ring.z = ring.out = contiguous(data, DType::bf16, {64, 6, 16, 64});
    ring.B = ring.C = contiguous(data, DType::bf16, {64, 6, 1, 128});
    ring.dt = contiguous(data, DType::f32, {64, 6, 16});
    ring.A = ring.D = ring.dt_bias = args.A;
    ring.state_batch_indices = args.state_batch_indices;
    ring.pdl = Pdl::wait_first;
  }

  StubDriver stub;
  Kernel kernel;
  UpdateArgs args;
  RingArgs ring;
};

constexpr const char* kNoStub = "the stub driver was not built (SSMJIT_STUB_LIBCUDA)";

void launch(benchmark::State& state) {
  const StubKernel on_stub;
  if (!on_stub.stub.ready()) return state.SkipWithError(kNoStub);
  for (auto _ : state) on_stub.kernel.launch(on_stub.args, nullptr);
}
BENCHMARK(launch);

// The same through a Session's handle, which picks among the kernels of batches up to 256.
void prepared_launch(benchmark::State& state) {
  const StubKernel on_stub;
  if (!on_stub.stub.ready()) return state.SkipWithError(kNoStub);
  try {
    const Prepared step = Session().prepare(description(), {.max_batch = 256});
    for (auto _ : state) step.launch(on_stub.args, nullptr);
    state.SetLabel(std::to_string(step.kernels().size()) + " kernels");
  } catch (const Error& error) {
    state.SkipWithError(error.what());
  }
}
BENCHMARK(prepared_launch);

void ring_launch(benchmark::State& state) {
  const StubKernel on_stub(description().tokens(6).store(Ring{.window = 16}));
  if (!on_stub.stub.ready()) return state.SkipWithError(kNoStub);
  for (auto _ : state) on_stub.kernel.launch(on_stub.ring, nullptr);
}
BENCHMARK(ring_launch);

void bare_launch(benchmark::State& state) {
  const StubKernel on_stub;
  if (!on_stub.stub.ready()) return state.SkipWithError(kNoStub);
  const Driver& bare = driver();
  for (auto _ : state) {
    CUlaunchConfig config{};
    config.gridDimX = config.gridDimY = config.gridDimZ = 1;
    config.blockDimX = config.blockDimY = config.blockDimZ = 1;
    benchmark::DoNotOptimize(config);
    void* parameters[] = {&config};
    benchmark::DoNotOptimize(bare.launch(&config, nullptr, parameters, nullptr));
  }
}
BENCHMARK(bare_launch);

// The same against the driver and the GPU of this machine: what the library adds to a launch of the same kernel with
// the same arguments. Few launches at a time, so that none waits for room in the queue.
enum class Through { bare_call, kernel, prepared };
void gpu_launch(benchmark::State& state, Through through) {
  constexpr int kLaunches = 64;
  constexpr std::int64_t kRows = 4;
  constexpr std::size_t kTensorBytes = std::size_t{4} << 20;
  std::string why;
  if (devices(&why).empty()) return state.SkipWithError(why.c_str());
  try {
    const Description step = description();
    const Prepared prepared = Session().prepare(step, {.max_batch = kRows});
    const Plan plan = prepared.choose(kRows, PdlMode::chain).plan;
    const Source source = emit(step, plan, prepared.device().arch());
    const Cubin cubin = compile(source);
    const Kernel kernel = Kernel::load(step, plan, source, cubin);
    const Driver& calls = driver();
    CUdeviceptr memory = 0;
    CUstream stream = nullptr;
    calls.check(calls.memory_alloc(&memory, 3 * kTensorBytes), "cuMemAlloc");
    calls.check(calls.stream_create(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
    calls.check(calls.memory_set_8(memory, 0, 3 * kTensorBytes, stream), "cuMemsetD8Async");
    const auto at = [&](std::size_t i) { return reinterpret_cast<const void*>(memory + i * kTensorBytes); };
    UpdateArgs args;
    args.state = contiguous(at(0), DType::bf16, {kRows, 16, 64, 128});
    args.x = args.z = contiguous(at(1), DType::bf16, {kRows, 16, 64});
    args.out = contiguous(at(2), DType::bf16, {kRows, 16, 64});
    args.B = args.C = contiguous(at(1), DType::bf16, {kRows, 1, 128});
    args.dt = contiguous(at(1), DType::f32, {kRows, 16});
    args.A = args.D = args.dt_bias = contiguous(at(1), DType::f32, {16});
    args.state_batch_indices = contiguous(at(1), DType::i32, {kRows});
    args.pad_slot_id = 0;  // every row: what a kernel computes is not the point
    args.pdl = Pdl::wait_first;

    CUmodule module = nullptr;
    CUfunction function = nullptr;
    calls.check(calls.module_load(&module, cubin.image.data()), "cuModuleLoadData");
    calls.check(calls.module_function(&function, module, source.entries.front().name.c_str()), "cuModuleGetFunction");
    const LaunchShape shape = launch_shape(plan, step, 1);
    if (shape.smem_bytes > 0)
      calls.check(calls.function_set_attribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                               static_cast<int>(shape.smem_bytes)),
                  "cuFuncSetAttribute");
    device_args::UpdateArgs device = to_device(args, args.pdl);
    const auto bare_call = [&] {
      CUlaunchAttribute attribute{};
      attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
      attribute.value.programmaticStreamSerializationAllowed = 1;
      CUlaunchConfig config{};
      config.gridDimX = static_cast<unsigned>(shape.grid_x);
      config.gridDimY = static_cast<unsigned>(shape.grid_y * kRows);
      config.gridDimZ = config.blockDimY = config.blockDimZ = 1;
      config.blockDimX = static_cast<unsigned>(shape.block_threads);
      config.sharedMemBytes = static_cast<unsigned>(shape.smem_bytes);
      config.hStream = stream;
      config.attrs = &attribute;
      config.numAttrs = 1;
      void* parameters[] = {&device};
      calls.check(calls.launch(&config, function, parameters, nullptr), "cuLaunchKernelEx");
    };
    for (auto _ : state) {
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < kLaunches; ++i) switch (through) {
          case Through::bare_call:
            bare_call();
            break;
          case Through::kernel:
            kernel.launch(args, stream);
            break;
          case Through::prepared:
            prepared.launch(args, stream);
            break;
        }
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      state.SetIterationTime(took.count() / kLaunches);
      calls.check(calls.stream_synchronize(stream), "cuStreamSynchronize");
    }
    calls.module_unload(module);
    calls.stream_destroy(stream);
    calls.memory_free(memory);
    state.SetLabel(prepared.device().name);
  } catch (const Error& error) {
    state.SkipWithError(error.what());
  }
}
BENCHMARK_CAPTURE(gpu_launch, bare_call, Through::bare_call)->UseManualTime()->Iterations(2000);
BENCHMARK_CAPTURE(gpu_launch, kernel, Through::kernel)->UseManualTime()->Iterations(2000);
BENCHMARK_CAPTURE(gpu_launch, prepared, Through::prepared)->UseManualTime()->Iterations(2000);

std::vector<Description> descriptions_of(const Model& model) {
  std::vector<Description> all;
  for (const auto& [name, description] : model.kernels) all.push_back(description);
  return all;
}

// A model load: every kernel that the tables can choose, loaded on the stub; from the cache with NVRTC, from a bundle
// without. What is compiled first is not timed.
void model_load(benchmark::State& state, bool bundled) {
  const StubKernel on_stub;
  if (!on_stub.stub.ready()) return state.SkipWithError(kNoStub);
  const std::string folder = scratch_folder();
  const Model model = load_model("nemotron3-super-tp8");
  const CompileOptions cache{.cache_dir = folder + "/cache"};
  std::size_t kernels = 0;
  const auto load = [&](const SessionOptions& options) {
    const Session session(options);
    kernels = 0;
    for (const Prepared& step : session.prepare_all(descriptions_of(model))) kernels += step.kernels().size();
  };
  try {
    SessionOptions options{.cache_dir = cache.cache_dir};
    if (bundled) {
      std::vector<BundleItem> items;
      for (const auto& [name, kernel] : model.kernels) items.push_back({name, kernel});
      write_bundle(folder + "/bundle", items, load_tables(), {.archs = {kArch}, .compile = cache});
      options = {.seeds = {folder + "/bundle"}, .cache_dir = folder + "/none", .no_jit = true};
    } else {
      load(options);
    }
    for (auto _ : state) {
      forget_compiled();
      load(options);
    }
    state.SetLabel(std::to_string(kernels) + " kernels");
  } catch (const Error& error) {
    state.SkipWithError(error.what());
  }
  std::filesystem::remove_all(folder);
}
// The same with nothing compiled yet, into an empty cache; argument: threads. Then a line a kernel, the longest compile
// first, for whoever wants to know which of them a load waits for.
void model_load_cold(benchmark::State& state) {
  const StubKernel on_stub;
  if (!on_stub.stub.ready()) return state.SkipWithError(kNoStub);
  const std::string folder = scratch_folder();
  const Model model = load_model("nemotron3-super-tp8");
  std::vector<std::pair<double, std::string>> lines;
  double sum = 0;
  try {
    for (auto _ : state) {
      state.PauseTiming();
      forget_compiled();
      std::filesystem::remove_all(folder);
      lines.clear(), sum = 0;
      state.ResumeTiming();
      const Session session({.cache_dir = folder, .threads = static_cast<int>(state.range(0))});
      const std::vector<Prepared> steps = session.prepare_all(descriptions_of(model));
      for (std::size_t i = 0; i < steps.size(); ++i)
        for (const PreparedKernel& kernel : steps[i].kernels()) {
          lines.emplace_back(kernel.compile_ms, model.kernels[i].first + " " + kernel.plan.text());
          sum += kernel.compile_ms;
        }
    }
    std::sort(lines.rbegin(), lines.rend());
    for (const auto& [ms, line] : lines) std::printf("%8.1f ms  %s\n", ms, line.c_str());
    state.SetLabel(fmt::format("{} kernels, NVRTC {}", lines.size(), nvrtc_version()));
    state.counters["compiles_ms"] = sum;
    state.counters["longest_ms"] = lines.front().first;
  } catch (const Error& error) {
    state.SkipWithError(error.what());
  }
  std::filesystem::remove_all(folder);
}
BENCHMARK(model_load_cold)->Arg(1)->Arg(2)->Arg(16)->Iterations(1)->UseRealTime()->Unit(benchmark::kMillisecond);

BENCHMARK_CAPTURE(model_load, cache, false)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(model_load, bundle, true)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace ssmjit

BENCHMARK_MAIN();
