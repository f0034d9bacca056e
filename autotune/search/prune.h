// Plans that can't win at a batch by what they have in flight: left out before they are compiled, and once more when
// their registers are known.
#pragma once

#include <cstdint>
#include <string>

#include <ssmjit/description.h>
#include <ssmjit/device.h>
#include <ssmjit/plan.h>

namespace ssmjit {

// What the compiler made of a plan; nothing yet: zeros, and then they limit nothing.
struct Compiled {
  int registers = 0;   // a thread
  int smem_bytes = 0;  // a block, static and dynamic
};

// Blocks that an SM holds at once by threads, shared memory and registers; 0: not even one.
int blocks_per_sm(const Plan& plan, const Description& description, const DeviceFacts& gpu, const Compiled& compiled);
// Bytes of state that a block has asked for at once.
std::int64_t block_bytes_in_flight(const Plan& plan, const Description& description);
// Bytes of state that a step has asked for at once, mean over the SMs of the GPU.
double bytes_in_flight_per_sm(const Plan& plan, const Description& description, int batch, const DeviceFacts& gpu,
                              const Compiled& compiled);

// The memory floor of a step, measured at this batch.
struct FloorRate {
  double us = 0;
  std::int64_t bytes_read = 0;
};
// Empty, or why the plan can't win at this batch: a word for counting, a colon, the numbers. A memory that answers
// after a time gives no more than what is asked for in that time, so a plan that has less in flight than the floor's
// rate wants is slower than the floor by as much. Where the whole state is little, half of it in flight will do.
std::string why_pruned(const Plan& plan, const Description& description, int batch, const DeviceFacts& gpu,
                       const FloorRate& floor, const Compiled& compiled = {});

}  // namespace ssmjit
