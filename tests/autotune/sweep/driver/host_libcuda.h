// What the driver of host_libcuda.cpp offers a test beside the driver's own calls. Looked up by dlsym.
#pragma once

#include <cstddef>

#include <cuda.h>

extern "C" {

struct HostKernels {
  // Bytes of the argument of the kernel of that name.
  std::size_t (*argument_bytes)(const char* name);
  // Runs it to its end and says how long it took, us.
  double (*launch)(const char* name, const CUlaunchConfig& config, const void* argument);
};
// What launches run from now on.
void host_kernels(const HostKernels& kernels);
// What launches and waits give from now on: a context that an earlier launch broke.
void host_break(CUresult with);
// Bytes of device memory that there are from now on.
void host_memory(std::size_t bytes);
// Bytes of device memory that are in use.
std::size_t host_bytes_in_use();
// Calls `visit` with every allocation of device memory.
void host_allocations(void (*visit)(unsigned char* data, std::size_t bytes, void* with), void* with);
}
