#include "heuristics/gpus.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <tuple>

#include <ssmjit/table.h>

#include "codegen/fail.h"

namespace ssmjit {
namespace {

bool is_whole(const GpuFacts& gpu) { return gpu.sms > 0 && gpu.memory_gb_s > 0 && gpu.boost_mhz > 0; }

}  // namespace

// Arch: NVIDIA's list of GPUs by compute capability; data-centre parts and the workstation parts next to them.
// Multiprocessors, bandwidth and boost clock: NVIDIA's data sheets and architecture white papers of A100 (80 GB SXM),
// A30, A10, A40, GA102, L4, L40, L40S, Ada, H100 (SXM5), H200, GH200 (96 GB) and RTX Blackwell; of B200 and GB200 what
// drivers report, but GB200's bandwidth. Where that is not known there is none.
const std::vector<GpuFacts>& known_gpus() {
  static const std::vector<GpuFacts> gpus{
      {"a100", {8, 0, 0}, 108, 2039, 1410},
      {"a800", {8, 0, 0}, 108, 2039, 1410},
      {"a30", {8, 0, 0}, 56, 933, 1440},
      {"a10", {8, 6, 0}, 72, 600, 1695},
      {"a40", {8, 6, 0}, 84, 696, 1740},
      {"rtx-3090", {8, 6, 0}, 82, 936, 1695},
      {"l4", {8, 9, 0}, 58, 300, 2040},
      {"l40", {8, 9, 0}, 142, 864, 2490},
      {"l40s", {8, 9, 0}, 142, 864, 2520},
      {"rtx-4090", {8, 9, 0}, 128, 1008, 2520},
      {"h100", {9, 0, 'a'}, 132, 3350, 1980},
      {"h200", {9, 0, 'a'}, 132, 4800, 1980},
      {"h20", {9, 0, 'a'}, 78, 4000, 1980},
      {"h800", {9, 0, 'a'}, 132, 3350, 1980},
      {"gh200", {9, 0, 'a'}, 132, 4000, 1980},
      {"b200", {10, 0, 'a'}, 148, 7672, 1965},
      {"gb200", {10, 0, 'a'}, 152, 8000, 2062},
      {"b300", {10, 3, 'a'}},
      {"gb300", {10, 3, 'a'}},
      {"rtx-5090", {12, 0, 'a'}, 170, 1792, 2407},
      {"gb10", {12, 1, 'a'}},
  };
  return gpus;
}

GpuFacts gpu_facts(std::string_view device_key) {
  std::string known;
  for (const GpuFacts& gpu : known_gpus()) {
    if (!is_whole(gpu)) continue;
    if (gpu.key == device_key) return gpu;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", gpu.key);
  }
  fail(ErrorKind::invalid, "device: got {}; facts to predict from are known of {}", in_quotes(device_key), known);
}

GpuFacts gpu_facts(const DeviceFacts& device) {
  GpuFacts facts{.key = {}, .arch = device.arch(), .sms = device.sms};
  const GpuFacts* near = nullptr;
  const auto distance = [&](const GpuFacts& gpu) {
    return std::tuple(gpu.key != device.key, std::abs(gpu.arch.number() - facts.arch.number()),
                      std::abs(gpu.sms - device.sms));
  };
  for (const GpuFacts& gpu : known_gpus())
    if (is_whole(gpu) && (near == nullptr || distance(gpu) < distance(*near))) near = &gpu;
  facts.key = near->key;
  facts.memory_gb_s = near->memory_gb_s;
  facts.boost_mhz = near->boost_mhz;
  return facts;
}

// CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
SmLimits sm_limits(const Arch& arch) {
  switch (arch.number()) {
    case 80:
      return {.threads = 2048, .blocks = 32, .smem_bytes = 164 * 1024};
    case 86:
      return {.threads = 1536, .blocks = 16, .smem_bytes = 100 * 1024};
    case 89:
    case 120:
    case 121:
      return {.threads = 1536, .blocks = 24, .smem_bytes = 100 * 1024};
    default:
      return {.threads = 2048, .blocks = 32, .smem_bytes = 228 * 1024};
  }
}

Arch arch_of_device_key(std::string_view device_key) {
  std::string known;
  for (const GpuFacts& gpu : known_gpus()) {
    if (device_key == gpu.key) return gpu.arch;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", gpu.key);
  }
  fail(ErrorKind::invalid, "device: got {}; known are {}", in_quotes(device_key), known);
}

}  // namespace ssmjit
