// The memory that a step is timed on: as many layers as it takes for the state to be cold, each with its own state,
// rings and inputs, as a model's decode step visits them. The output is one buffer, as an engine reuses its
// activations.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/device.h>
#include <ssmjit/kernel.h>
#include <ssmjit/table.h>

#include "autotune/kernel_case.h"
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
  // `written_new` bytes at elsewhere and `appended` bytes at rows.
  struct Moved {
    std::byte* data = nullptr;
    std::byte* elsewhere = nullptr;
    std::byte* rows = nullptr;
    std::int64_t read = 0, written_back = 0, written_new = 0, appended = 0;
  };
  void pass(const Pass& how, const Moved& moved, bool dependent, const Stream& stream) const;
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

void launch_case(const Kernel& kernel, const CaseArgs& args, const Stream& stream);

class Layers {
 public:
  // Fails: ErrorKind::machine when the device has no room for states and rings of twice the L2 in all (a figure would
  // not be cold). A ring is in phase no_flush at first.
  Layers(const Description& description, int batch, const DeviceFacts& gpu, const BenchKernels& kernels,
         const Stream& stream, std::uint64_t seed);

  int count() const { return count_; }
  int sms() const { return kernels_.sms(); }
  int batch() const { return batch_; }
  // What is cold of all layers together, bytes: states and rings, of a norm its inputs. At least 4 x the L2, where
  // memory allows and kMostSmallLayers are not reached, of a norm or a convolution alone.
  std::int64_t cold_bytes_in_all() const { return cold_bytes_ * count_; }
  // Whether parts of them may stay in the L2 from one replay to the next: then other memory is to be read before each.
  bool wants_displacing() const { return displacing_.size() > 0; }
  void displace_l2() const;
  // Of a step in the phase that was entered.
  const Bytes& bytes() const { return bytes_; }

  // With a ring only. Cursors are in device memory, so what was captured goes by them too; launches leave them as they
  // are. All slots as the phase is timed.
  void enter(Phase phase);
  // The cursors of slots 0 to batch - 1 as device memory holds them; and from such memory, in the stream's order.
  std::vector<std::byte> pack_cursors(const std::vector<RingCursor>& of_slots) const;
  void take_cursors(const std::byte* packed) const;

  CaseArgs args(int layer, Pdl pdl) const;
  // Puts layer `layer` (or all) back to its seeded contents.
  void refill(int layer) const;
  void refill_all() const;
  void poison_inputs() const;
  void produce(int layer) const;
  void pass(int layer, const BenchKernels::Pass& how, bool dependent) const;
  // Of an update that stores the state after every token: the pools of a layer with all slots, states and factors.
  // Request b reads slot b; its token t writes slot batch + b * tokens + t, of snapshots step t of row b.
  std::vector<Tensor> slot_pools(int layer) const;
  // Reads `bytes` (a multiple of 16) of all layers' memory and writes as many elsewhere in it, in one launch.
  void copy_pass(std::int64_t bytes, const BenchKernels::Pass& how) const;
  // Of the layer's memory and the output; of all layers' and the output.
  std::uint64_t hash(int layer) const;
  std::uint64_t hash_all() const;

 private:
  std::byte* at(int layer) const { return memory_.data() + static_cast<std::int64_t>(layer) * layer_bytes_; }
  std::byte* source(int layer) const { return sources_.data() + static_cast<std::int64_t>(layer) * input_bytes_; }
  std::uint64_t seed_of(int layer) const { return seed_ + 16 * static_cast<std::uint64_t>(layer + 1); }
  std::uint64_t read_hash() const;
  std::int64_t all_slots() const { return std::int64_t{batch_} * (1 + description_.token_count); }
  template <class Args>
  Args common_args(int layer, Pdl pdl, const std::vector<std::int64_t>& of_rows) const;
  UpdateArgs update_args(int layer, Pdl pdl) const;
  UpdateArgs token_args(int layer, Pdl pdl) const;
  NormArgs norm_args(int layer, Pdl pdl) const;
  RingArgs ring_args(int layer, Pdl pdl) const;
  ReplayArgs replay_args(int layer, Pdl pdl) const;
  void fill_old_sums();
  template <class Args>
  void add_rounding(int layer, Args& args) const;
  template <class Args>
  void add_ring(int layer, Args& args) const;
  template <class Args>
  void add_conv_extras(int layer, Args& args) const;
  Conv1dArgs conv1d_args(int layer, Pdl pdl) const;
  void fill_conv1d_weights(std::uint64_t seed);
  LayerArgs layer_args(int layer, Pdl pdl) const;

  Description description_;
  int batch_ = 0;
  int count_ = 0;
  std::uint64_t seed_;
  const BenchKernels& kernels_;
  const Stream& stream_;
  Bytes bytes_;
  // Where a tensor lies in a layer, and its bytes without what pads it.
  struct Part {
    std::int64_t at = 0, bytes = 0;
  };
  Part state_, windows_, scale_, x_, B_, C_, z_, dt_, x_ring_, B_ring_, dt_ring_;  // a replay's old_x, old_B, old_dt
  Part sum_ring_;                                                                  // and its old_cumAdt
  Part kept_;  // of a convolution: what it writes beside its windows and its output; of a layer its snapshots
  std::int64_t input_bytes_ = 0, layer_bytes_ = 0, cold_bytes_ = 0;
  // Of each of: slots, destination slots (of each token, where it has one) or parents, cu_seqlens (a convolution's
  // counts), the seed; and of starts and counts.
  std::int64_t index_bytes_ = 0;
  DeviceBuffer memory_, sources_, out_, scratch_, weights_, indices_, cursors_, hash_, displacing_;
  DeviceBuffer old_sums_;  // what a replay's deltas and sums are before a step, the same in every layer
};

}  // namespace ssmjit
