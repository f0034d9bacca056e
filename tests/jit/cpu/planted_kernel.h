// A small kernel written by hand, run on the CPU executor: source, launch and buffers in one place.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "jit/cpu/executor.h"

namespace ssmjit {

// The number of the first line of `text` that holds `mark`; 0: none does.
int line_of(const std::string& text, const std::string& mark);

// A kernel `k(const float* in, float* out)` around this body, with both buffers of `elements` fp32.
class PlantedKernel {
 public:
  explicit PlantedKernel(std::string body, int elements = 64);

  // The whole source is `text` instead, its kernel being k.
  PlantedKernel& source(std::string text);

  CpuReport run(CpuSchedule schedule = CpuSchedule::forward);
  // The findings of all three schedules, one after the other.
  std::vector<CpuFinding> run_all();
  int line(const std::string& mark) const { return line_of(text, mark); }

  CpuLaunch launch;  // entry, sizes and buffers are filled in; a test changes what it is about
  CpuCompileOptions options;
  Arch arch;
  std::string text;
  std::vector<float> in, out;

 private:
  std::vector<std::byte> args_;
};

}  // namespace ssmjit
