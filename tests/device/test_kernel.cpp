#include "tests/device/test_kernel.h"

#include <algorithm>
#include <map>
#include <memory>
#include <regex>
#include <stdexcept>
#include <utility>

#include <ssmjit/cubin.h>
#include <ssmjit/device.h>

#include "codegen/pieces.h"
#include "jit/cpu/executor.h"
#include "jit/gpu.h"
#include "tests/gpu/needs_gpu.h"

namespace ssmjit {
namespace {

constexpr std::size_t kBuffers = 6;
constexpr std::size_t kNumbers = 4;

// As the text below has it.
struct Args {
  void* buffer[kBuffers];
  std::uint64_t number[kNumbers];
};
constexpr const char* kPrologue = R"(
struct Args {
  void* buffer[6];
  unsigned long long number[4];
};
template <class T>
__device__ __forceinline__ T* at(const Args& args, int i) {
  return static_cast<T*>(args.buffer[i]);
}
#define KERNEL(name) extern "C" __global__ void name(const __grid_constant__ Args args)
)";

std::vector<const TestKernel*>& kernels() {
  static auto& the_kernels = *new std::vector<const TestKernel*>;
  return the_kernels;
}

Args filled(const std::vector<std::uint64_t>& numbers) {
  Args args{};
  if (numbers.size() > kNumbers) throw std::invalid_argument("more numbers than Args has");
  for (std::size_t i = 0; i < numbers.size(); ++i) args.number[i] = numbers[i];
  return args;
}

}  // namespace

std::string name_of(const testing::TestParamInfo<Where>& info) { return info.param == Where::cpu ? "Cpu" : "Gpu"; }

TestKernel::TestKernel(std::string name, std::vector<std::string> pieces, std::string text, int sm)
    : name_(std::move(name)), text_(template_pieces(pieces) + kPrologue + std::move(text)), sm_(sm) {
  kernels().push_back(this);
}

const std::vector<const TestKernel*>& TestKernel::all() { return kernels(); }

Source TestKernel::source(const Arch& arch) const {
  Source source;
  source.text = text_;
  source.digest = name_;
  source.arch = arch;
  source.options = {"-std=c++17"};
  static const std::regex kEntry(R"(\nKERNEL\((\w+)\))");
  for (std::sregex_iterator match(text_.begin(), text_.end(), kEntry), end; match != end; ++match)
    source.entries.push_back({.name = (*match)[1], .block_threads = 0, .smem_bytes = 0});
  return source;
}

std::string TestKernel::lacking(Where where) const {
  if (where == Where::cpu) return cpu_executor_missing();
  if (const std::string why = gpu_lacking(); !why.empty()) return why;
  const Arch arch = device(0).arch();
  if (arch.number() < sm_) return "wants sm_" + std::to_string(sm_) + "; the device is " + arch.text();
  return {};
}

void TestKernel::run(Where where, const std::string& entry, const Shape& shape, std::vector<HostBuffer> buffers,
                     std::vector<std::uint64_t> numbers) const {
  if (buffers.size() > kBuffers) throw std::invalid_argument("more buffers than Args has");
  if (where == Where::cpu)
    run_on_cpu(entry, shape, buffers, numbers);
  else
    run_on_gpu(entry, shape, buffers, numbers);
}

void TestKernel::run_on_gpu(const std::string& entry, const Shape& shape, const std::vector<HostBuffer>& buffers,
                            const std::vector<std::uint64_t>& numbers) const {
  use_device(0);
  static auto& modules = *new std::map<const TestKernel*, std::unique_ptr<RawModule>>;
  std::unique_ptr<RawModule>& module = modules[this];
  if (module == nullptr) module = std::make_unique<RawModule>(compile(source(device(0).arch()), {.use_cache = false}));
  Args args = filled(numbers);
  std::vector<DeviceBuffer> memory;
  for (const HostBuffer& b : buffers) {
    memory.emplace_back(b.bytes);
    memory.back().upload(b.data, b.bytes);
    args.buffer[memory.size() - 1] = memory.back().data();
  }
  const Stream stream;
  launch_raw(module->entry(entry), shape.blocks, shape.rows, shape.threads, &args, stream.handle(), false,
             shape.cluster, shape.smem_bytes);
  stream.synchronize();
  for (std::size_t i = 0; i < buffers.size(); ++i) memory[i].download(buffers[i].data, buffers[i].bytes);
}

// With all checks, under every schedule: the results must be the same.
void TestKernel::run_on_cpu(const std::string& entry, const Shape& shape, const std::vector<HostBuffer>& buffers,
                            const std::vector<std::uint64_t>& numbers) const {
  static auto& programs = *new std::map<const TestKernel*, CpuProgram>;
  auto program = programs.find(this);
  if (program == programs.end()) {
    CpuCompileOptions options;
    options.file = name_ + ".cu";
    program = programs.emplace(this, CpuProgram::compile(source(Arch{}), options)).first;
  }
  std::vector<std::vector<std::byte>> first;
  for (const CpuSchedule schedule : {CpuSchedule::forward, CpuSchedule::reverse, CpuSchedule::random}) {
    Args args = filled(numbers);
    std::vector<std::vector<std::byte>> memory;
    CpuLaunch launch;
    launch.entry = entry;
    launch.grid_x = shape.blocks;
    launch.grid_y = shape.rows;
    launch.block_threads = shape.threads;
    launch.cluster = shape.cluster;
    launch.smem_bytes = shape.smem_bytes;
    launch.args = &args;
    launch.args_bytes = sizeof(args);
    launch.schedule = schedule;
    memory.reserve(buffers.size());
    for (const HostBuffer& b : buffers) {
      memory.emplace_back(b.data, b.data + b.bytes);
      args.buffer[memory.size() - 1] = memory.back().data();
      CpuBuffer buffer;
      buffer.name = "buffer " + std::to_string(memory.size() - 1);
      buffer.data = memory.back().data();
      buffer.bytes = b.bytes;
      buffer.writable = true;
      launch.buffers.push_back(buffer);
    }
    const CpuReport report = program->second.run(launch);
    for (const CpuFinding& finding : report.findings) ADD_FAILURE() << ssmjit::name(schedule) << ": " << finding.text();
    if (first.empty())
      first = std::move(memory);
    else
      EXPECT_EQ(memory, first) << name_ << " " << entry << ", schedule " << ssmjit::name(schedule);
  }
  for (std::size_t i = 0; i < buffers.size(); ++i) std::copy(first[i].begin(), first[i].end(), buffers[i].data);
}

}  // namespace ssmjit
