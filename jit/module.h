// A cubin loaded in a context, its entries ready to launch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <cuda.h>

#include <ssmjit/cubin.h>
#include <ssmjit/device.h>
#include <ssmjit/plan.h>
#include <ssmjit/source.h>

#include "jit/driver.h"

namespace ssmjit {

// The architecture of the device that a kernel for `stream` is loaded on: of the current context, or of device 0's
// primary one, which then becomes current for this thread (as the CUDA runtime does). Fails: ErrorKind::invalid while
// the stream is being captured, as a load then has no place; as driver() does.
Arch arch_to_load_for(CUstream stream);

// Where a kernel for `stream` is loaded: the context of the same words, its device, and whether a capture forbids it.
struct LoadPlace {
  CUcontext context = nullptr;
  DeviceFacts device;
  bool captured = false;
};
LoadPlace place_to_load(CUstream stream);

class Module {
 public:
  // In the context that arch_to_load_for() has. Fails: ErrorKind::machine when the driver refuses the cubin.
  Module(const Source& source, const Cubin& cubin);
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;
  ~Module();

  // Entry `entry` of the source with one parameter struct. `dependent`: with programmatic stream serialization.
  // Allocates nothing. Fails: ErrorKind::machine when the driver refuses.
  void launch(std::size_t entry, std::int64_t grid_x, std::int64_t grid_y, void* device_args, bool dependent,
              CUstream stream) const;

  // How many clusters of `cluster` blocks of entry `entry` the device holds at once. Fails: ErrorKind::machine when the
  // driver refuses.
  int clusters_at_once(std::size_t entry, int cluster) const;

  const Driver& driver() const { return driver_; }

 private:
  struct Function {
    CUfunction handle = nullptr;
    unsigned block_threads = 0;
    unsigned smem_bytes = 0;  // dynamic
  };

  const Driver& driver_;
  CUcontext context_ = nullptr;
  CUmodule module_ = nullptr;
  std::vector<Function> functions_;
};

}  // namespace ssmjit
