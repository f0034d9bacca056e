#include "planted_kernel.h"

#include <algorithm>
#include <limits>

namespace ssmjit {

int line_of(const std::string& text, const std::string& mark) {
  const std::size_t at = text.find(mark);
  if (at == std::string::npos) return 0;
  return 1 + static_cast<int>(std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n'));
}

PlantedKernel::PlantedKernel(std::string body, int elements)
    : in(static_cast<std::size_t>(elements)),
      out(static_cast<std::size_t>(elements), std::numeric_limits<float>::quiet_NaN()) {
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
  text =
      "extern \"C\" __global__ void k(const float* in, float* out) {\n  const int t = thread_index();\n" + body + "}\n";
  launch.buffers = {{"in", reinterpret_cast<std::byte*>(in.data()), in.size() * sizeof(float), false, true},
                    {"out", reinterpret_cast<std::byte*>(out.data()), out.size() * sizeof(float), true, false}};
  launch.timeout_s = 20;
  const float* pointers[2] = {in.data(), out.data()};
  args_.resize(sizeof(pointers));
  std::memcpy(args_.data(), pointers, sizeof(pointers));
  launch.args = args_.data();
  launch.args_bytes = args_.size();
}

PlantedKernel& PlantedKernel::source(std::string whole) {
  text = std::move(whole);
  return *this;
}

CpuReport PlantedKernel::run(CpuSchedule schedule) {
  Source source;
  source.text = text;
  source.arch = arch;
  source.entries = {{"k", launch.block_threads, launch.smem_bytes}};
  launch.schedule = schedule;
  return CpuProgram::compile(source, options).run(launch);
}

std::vector<CpuFinding> PlantedKernel::run_all() {
  std::vector<CpuFinding> all;
  for (CpuSchedule schedule : {CpuSchedule::forward, CpuSchedule::reverse, CpuSchedule::random}) {
    const CpuReport report = run(schedule);
    all.insert(all.end(), report.findings.begin(), report.findings.end());
  }
  return all;
}

}  // namespace ssmjit
