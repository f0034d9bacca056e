// The kernels of a device that is the host: the double reference, and times that the test says.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/kernel.h>

#include "tests/autotune/sweep/driver/host_libcuda.h"

namespace ssmjit {

struct Cost {
  double no_flush = 0, flush = 0;
};

// What is launched, and how long its plans take; by the names of their entries.
struct World {
  Description description;
  std::map<std::string, Cost> cost;
  // What a launch does wrong once it is done, if anything.
  std::function<void(const RingArgs& args, std::int64_t batch)> spoil;
  // A request's slots in a launch that copies slots, and the bytes that it has copied of each.
  std::function<void(int from, int to, std::int64_t bytes)> copied;
  std::vector<int> batches;           // of the launches of the kernel
  std::vector<std::uint64_t> passed;  // bytes that the floor's passes moved
};
extern World* world;

template <class Args>
Args read_argument(const void* argument) {
  Args args;
  std::memcpy(&args, argument, sizeof args);
  return args;
}
inline std::byte* bytes_of(const Tensor& t) { return static_cast<std::byte*>(const_cast<void*>(t.data)); }

// As HostKernels wants them; they run what `world` says.
std::size_t argument_bytes(const char* name);
double launch(const char* name, const CUlaunchConfig& config, const void* argument);

}  // namespace ssmjit
