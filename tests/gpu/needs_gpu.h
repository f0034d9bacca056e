// Tests that only a GPU can run skip aloud without one.
#pragma once

#include <string>

#include <gtest/gtest.h>

#include <ssmjit/cubin.h>
#include <ssmjit/device.h>
#include <ssmjit/error.h>

#include "jit/gpu.h"

namespace ssmjit {

// Why no kernel can be compiled and run here; empty when it can. Makes device 0 current.
inline std::string gpu_lacking() {
  std::string why;
  if (devices(&why).empty()) return why;
  try {
    nvrtc_version();
    use_device(0);
  } catch (const Error& e) {
    return e.what();
  }
  return {};
}

#define NEEDS_GPU() \
  if (const std::string why = gpu_lacking(); !why.empty()) GTEST_SKIP() << why

}  // namespace ssmjit
