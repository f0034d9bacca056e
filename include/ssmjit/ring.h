// Slots of a ring's pools beside the step: the state after a prefix of a ring written elsewhere (prefix caching), slots
// set back to the start, slots copied. Each is one launch for all layers of a model.
//
//   std::vector<std::int64_t> table = ring_layer_table(description, layers);  // to the device, once
//   RingSlots slots = RingSlots::load(description);
//   ResetSlotsArgs args;
//   args.layers = contiguous(table_on_the_device, DType::i64, {layer_count, kRingLayerWords});
//   ...
//   slots.reset(args, stream);
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <ssmjit/cubin.h>
#include <ssmjit/description.h>
#include <ssmjit/kernel.h>

namespace ssmjit {

// What one layer keeps, as its ring steps are given it (RingArgs), and the window of the convolution in front of them.
struct RingLayer {
  Tensor state;
  Tensor state_scale;  // given iff the state is int8 or fp8
  Tensor x_ring;
  Tensor B_ring;
  Tensor dt_ring;
  Tensor A;
  Tensor conv_state;  // [slots, ...] in any dtype and order of dimensions, slots of a multiple of 16 bytes without gaps
                      // inside; optional: reset to zeros and copied beside the rest, of no interest to materialise()
};
inline constexpr int kRingLayerWords = 15;
// Addresses and slot strides of all layers, [layers, kRingLayerWords], for the device memory that every launch below
// reads; good as long as the tensors stay where they are. Fails: ErrorKind::invalid for a description without a ring,
// and for tensors that do not fit it or whose slots differ in number, naming layer and tensor.
std::vector<std::int64_t> ring_layer_table(const Description& description, const std::vector<RingLayer>& layers);

// Requests whose states are written after a prefix of their rings. Read only: rings, cursors and source slots, but a
// slot may be its own destination, its state then brought up to date in place. The cursors of a destination are the
// caller's to set: none of the ring's rows are in use then, {0, 0}; of a slot that is its own destination the first
// prefix_length rows no longer are, {(start + prefix) % length, count - prefix}.
struct MaterialiseArgs {
  std::size_t size = sizeof(MaterialiseArgs);
  Tensor layers;         // [layers, kRingLayerWords], int64, as ring_layer_table() has it
  Tensor src_slots;      // [batch] or [layers, batch], int32 or int64
  Tensor dst_slots;      // likewise; where either slot is a pad, the request is passed over (in that layer)
  Tensor ring_start;     // [batch], int32: where the request's oldest row lies
  Tensor ring_count;     // [batch], int32, optional: its rows in use, past which a prefix is cut off
  Tensor prefix_length;  // [batch], int32: rows that the state takes in, the oldest first, 0 to window; 0: stored
                         // states and scales are copied as they are
  Tensor active_request_indices;  // [any], int32, optional: the requests to serve, each at most once, up to the first
                                  // negative entry; not given: all
  Tensor rand_seed;               // [1] or [layers], int64; given iff the description rounds stochastically: as a flush
                                  // of the destination slot
  std::int64_t pad_slot_id = -1;  // this index, and every negative one, is a pad
  bool checked = false;  // look at slots, cursors and indices before the launch (copies them and synchronises; refused
                         // under capture)
};

// Slots whose states and windows become zero (scales one) and whose rings become empty, for a fresh request. Deltas of
// their rings become NaN, by which a checked ring step (RingArgs) knows rows that no step has written since.
struct ResetSlotsArgs {
  std::size_t size = sizeof(ResetSlotsArgs);
  Tensor layers;                  // as above
  Tensor slots;                   // [any], int32 or int64
  Tensor ring_start;              // [slots], int32: of all layers; written
  Tensor ring_count;              // likewise
  std::int64_t pad_slot_id = -1;  // as above
  bool checked = false;           // as above
};

// Slots that become as others are: states, scales, rings, windows and cursors, byte for byte.
struct CopySlotsArgs {
  std::size_t size = sizeof(CopySlotsArgs);
  Tensor layers;                  // as above
  Tensor src_slots;               // [any], int32 or int64
  Tensor dst_slots;               // as many; a pair with a pad is passed over
  Tensor ring_start;              // [slots], int32: of all layers; written
  Tensor ring_count;              // likewise
  std::int64_t pad_slot_id = -1;  // as above
  bool checked = false;           // as above
};

// The kernels of a ring's slots, loaded. The caller's errors that can't be seen without `checked`: two rows that write
// one slot, a destination that another row reads. Launches are ordinary ones: a ring step behind them on the stream may
// read what they wrote, but not before it waits (Pdl::early_state) unless a launch without PDL stands in between.
class RingSlots {
 public:
  // As Kernel::load().
  static RingSlots load(const Description& description, const CompileOptions& options = {}, void* stream = nullptr);
  // A given cubin of emit_ring_slots(). Fails: as Kernel::load() does.
  static RingSlots load(const Description& description, const Source& source, const Cubin& cubin);

  // As Kernel::launch(): asynchronous, safe under capture and from many threads, without an allocation. Without
  // layers or requests nothing is launched; a launch takes up to 65535 requests. Fail: ErrorKind::invalid for a tensor
  // that does not fit, naming it; in checked mode also for what the device's memory says; ErrorKind::machine when the
  // driver refuses.
  void materialise(const MaterialiseArgs& args, void* stream) const;
  void reset(const ResetSlotsArgs& args, void* stream) const;
  void copy(const CopySlotsArgs& args, void* stream) const;

  // Fail: ErrorKind::invalid for RingSlots that were never loaded; so do the launches.
  const Description& description() const;
  const Cubin& cubin() const;

  // The checks of a launch alone: one sentence a wrong tensor; empty when all is well. Needs no GPU.
  static std::vector<std::string> problems(const Description& description, const MaterialiseArgs& args);
  static std::vector<std::string> problems(const Description& description, const ResetSlotsArgs& args);
  static std::vector<std::string> problems(const Description& description, const CopySlotsArgs& args);

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

}  // namespace ssmjit
