// The GPU at hand. The driver (libcuda) is found by dlopen, so that all else works without one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ssmjit/plan.h>

namespace ssmjit {

struct DeviceFacts {
  int ordinal = 0;
  std::string name;    // "NVIDIA H200"
  std::string key;     // "h200": how tables call it
  std::string driver;  // the CUDA version it supports, "13.0"
  int major = 0;
  int minor = 0;
  int sms = 0;
  int smem_per_sm_bytes = 0;
  int smem_per_block_bytes = 0;  // with opt-in
  int registers_per_sm = 0;
  std::int64_t l2_bytes = 0;
  std::int64_t memory_bytes = 0;
  Arch arch() const { return Arch::of_device(major, minor); }
};

// Empty without a driver or a GPU; `why` then says which, and the way out.
std::vector<DeviceFacts> devices(std::string* why = nullptr);
// Fails: ErrorKind::missing without it.
DeviceFacts device(int ordinal);
// Where a load goes: the device of the current context, else device 0, whose primary context is then this thread's.
// Fails: ErrorKind::missing without a driver or a GPU.
DeviceFacts current_device();

// "NVIDIA H200" -> "h200", "NVIDIA H100 80GB HBM3" -> "h100", "NVIDIA GeForce RTX 4090" -> "rtx-4090".
std::string device_key(std::string_view device_name);

}  // namespace ssmjit
