// What a step under test waits for: a kernel that takes its time to write the inputs.
#pragma once

#include <memory>

#include <ssmjit/cubin.h>
#include <ssmjit/device.h>
#include <ssmjit/source.h>

#include "jit/gpu.h"

namespace ssmjit {

// A producer of inputs that signals at once, dawdles, and then copies.
class SlowProducer {
 public:
  SlowProducer() {
    Source source;
    source.arch = device(0).arch();
    source.text = R"(
struct Args { const uint4* from; uint4* to; unsigned long long vectors; long long cycles; int waits; };
extern "C" __global__ void slow_copy(const __grid_constant__ Args args) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  if (args.waits) asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  const long long start = clock64();
  while (clock64() - start < args.cycles) {}
  for (unsigned long long i = threadIdx.x; i < args.vectors; i += blockDim.x) args.to[i] = args.from[i];
}
)";
    source.digest = "slow_copy";
    source.options = {"-std=c++17"};
    source.entries = {{"slow_copy", 256, 0}};
    module_ = std::make_unique<RawModule>(compile(source));
    entry_ = module_->entry("slow_copy");
  }
  // `dependent`: launched with programmatic dependent launch, waits for what is in front of it before it copies.
  void operator()(const DeviceBuffer& from, const DeviceBuffer& to, const Stream& stream, bool dependent) const {
    struct {
      const void* from;
      void* to;
      unsigned long long vectors;
      long long cycles;
      int waits;
    } args{from.data(), to.data(), to.size() / 16, 300000, dependent ? 1 : 0};
    launch_raw(entry_, 1, 1, 256, &args, stream.handle(), dependent);
  }

 private:
  std::unique_ptr<RawModule> module_;
  void* entry_ = nullptr;
};

}  // namespace ssmjit
