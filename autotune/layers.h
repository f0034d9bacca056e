// The memory that a step is timed on: as many layers as it takes for the state to be cold, each with its own state and
// inputs, as a model's decode step visits them. The output is one buffer, as an engine reuses its activations.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/device.h>
#include <ssmjit/kernel.h>
#include <ssmjit/table.h>

#include "jit/gpu.h"

namespace ssmjit {

// templates/bench.cuh, compiled and loaded.
class BenchKernels {
 public:
  BenchKernels(const Arch& arch, int sms, const CompileOptions& options);

  struct Pass {
    int unroll;  // 1, 4, 8
    bool streaming;
    int threads;
    std::int64_t grid;
  };
  // One pass of the memory floor: `read` bytes at data, the first `written_back` of them written in place, then
  // `written_new` bytes at elsewhere.
  void pass(const Pass& how, std::byte* data, std::byte* elsewhere, std::int64_t read, std::int64_t written_back,
            std::int64_t written_new, bool dependent, const Stream& stream) const;
  void produce(const std::byte* source, std::byte* target, std::int64_t bytes, const Stream& stream) const;
  // About normal values.
  void fill(DType dtype, std::byte* data, std::int64_t count, std::uint64_t seed, double mean, double deviation,
            const Stream& stream) const;
  // Adds the hash of `bytes` (a multiple of 4) to *result, eight bytes of device memory.
  void hash(const std::byte* data, std::int64_t bytes, std::byte* result, const Stream& stream) const;
  int sms() const { return sms_; }

 private:
  void* pass_[6];
  void* produce_;
  void* fill_;
  void* hash_;
  int sms_;
  std::unique_ptr<RawModule> module_;
};

class Layers {
 public:
  // Fails: ErrorKind::machine when the device has no room for states of twice the L2 in all (a figure would not be
  // cold).
  Layers(const Description& description, int batch, const DeviceFacts& gpu, const BenchKernels& kernels,
         const Stream& stream, std::uint64_t seed);

  int count() const { return count_; }
  int sms() const { return kernels_.sms(); }
  int batch() const { return batch_; }
  // Cold state of all layers together, bytes: at least 4 x the L2, where memory allows.
  std::int64_t state_bytes_in_all() const { return state_bytes_ * count_; }
  const Bytes& bytes() const { return bytes_; }

  UpdateArgs args(int layer, Pdl pdl) const;
  // Puts layer `layer` (or all) back to its seeded contents.
  void refill(int layer) const;
  void refill_all() const;
  void poison_inputs() const;
  void produce(int layer) const;
  void pass(int layer, const BenchKernels::Pass& how, bool dependent) const;
  // Of the layer's memory and the output; of all layers' and the output.
  std::uint64_t hash(int layer) const;
  std::uint64_t hash_all() const;

 private:
  std::byte* at(int layer) const { return memory_.data() + static_cast<std::int64_t>(layer) * layer_bytes_; }
  std::byte* source(int layer) const { return sources_.data() + static_cast<std::int64_t>(layer) * input_bytes_; }
  std::uint64_t read_hash() const;

  Description description_;
  int batch_ = 0;
  int count_ = 0;
  std::uint64_t seed_;
  const BenchKernels& kernels_;
  const Stream& stream_;
  Bytes bytes_;
  // A layer is [state | x | B | C | z | dt], each part a multiple of 256 bytes.
  std::int64_t state_bytes_ = 0, x_bytes_ = 0, group_bytes_ = 0, z_bytes_ = 0, dt_bytes_ = 0, input_bytes_ = 0,
               layer_bytes_ = 0;
  DeviceBuffer memory_, sources_, out_, weights_, indices_, hash_;
};

}  // namespace ssmjit
