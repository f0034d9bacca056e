// What is known of GPUs that need not be at hand.
#pragma once

#include <string_view>
#include <vector>

#include <ssmjit/device.h>
#include <ssmjit/plan.h>

namespace ssmjit {

struct GpuFacts {
  std::string_view key;  // device key
  Arch arch;
  int sms = 0;
  double memory_gb_s = 0;  // peak, 10^9 bytes a second
  int boost_mhz = 0;       // 0, with sms and memory_gb_s: the arch alone is known
};

// In a fixed order.
const std::vector<GpuFacts>& known_gpus();
// The whole of what a prediction needs. Fails: ErrorKind::invalid, with the keys that there are.
GpuFacts gpu_facts(std::string_view device_key);
// Of the GPU at hand: what the driver says; memory and clock as in the list, or those of the nearest known GPU of its
// arch by multiprocessors, so that plans can be ordered on any.
GpuFacts gpu_facts(const DeviceFacts& device);

// What one multiprocessor holds at once.
struct SmLimits {
  int threads = 0;
  int blocks = 0;
  int smem_bytes = 0;
  int registers = 65536;
};
SmLimits sm_limits(const Arch& arch);

}  // namespace ssmjit
