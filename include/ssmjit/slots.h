// Output slots: a verify step of several tokens writes the state after each token to a slot of its own (store=slots, of
// a convolution conv.keep=slots), so that keeping some of the tokens is to read another slot in the next step. What an
// engine keeps on the host for that, as pure functions, and the copies that are left: of whole slots, of all layers'
// states and windows in one launch.
//
//   const OutputPool pool{.working = 256, .requests = 65, .tokens = 6};  // each pool of states has pool.total() slots
//   std::vector<std::int32_t> current(65, kWorkingSlot);
//   step:     input[b] = input_slot(pool, request[b], current[r]);       // state_batch_indices
//             output_row(pool, request[b], row);                         // row b of dst_state_batch_indices
//   then:     current[r] = accepted_slot(pool, request[b], accepted);
//   prefill:  current[r] = kWorkingSlot;
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <ssmjit/cubin.h>
#include <ssmjit/kernel.h>
#include <ssmjit/source.h>

namespace ssmjit {

// How a pool's slots are divided. Slots 0 to working - 1 are the scheduler's: one for each running request, shared
// prefixes, checkpoints. Behind them each request has a slot for every token of a step but the first, whose state goes
// to the request's working slot.
struct OutputPool {
  std::int64_t working = 0;
  std::int64_t requests = 0;  // rows of the engine's table of requests, one that pads use included
  int tokens = 1;             // T of a verify step

  std::int64_t drafts_each() const { return tokens > 1 ? tokens - 1 : 0; }
  std::int64_t draft_base() const { return working; }
  std::int64_t total() const { return working + requests * drafts_each(); }
  // Fails: ErrorKind::invalid for sizes below 1 and for more slots than an int32 counts.
  void validate() const;
};

// A row of a step's batch. A pad has -1 in either of the first two.
struct SlotRequest {
  std::int64_t request = -1;  // its row of the engine's table
  std::int64_t working = -1;  // its working slot
  std::int64_t shared = -1;   // only in the step that a request starts with from a slot that others read too (copy on
                              // write): that slot, which it does not write; else -1
};

// Where a request's state is: a slot, or this, its working slot.
inline constexpr std::int32_t kWorkingSlot = -1;

// All fail with ErrorKind::invalid for a request or a slot outside the pool, and for a `current` that is neither the
// request's working slot nor one of its own draft slots.

// Where the state after token `token` goes; -1 for a pad.
std::int32_t output_slot(const OutputPool& pool, const SlotRequest& request, int token);
// The same of all tokens, row.size() of them, pool.tokens at most.
void output_row(const OutputPool& pool, const SlotRequest& request, std::span<std::int32_t> row);
// The slot that the step reads; -1 for a pad. A shared slot is read in place of the working slot, never of a draft
// slot.
std::int32_t input_slot(const OutputPool& pool, const SlotRequest& request, std::int32_t current);
// `current` after a step of which `accepted` tokens are kept, the one that is always right among them (clamped to 1 to
// pool.tokens). Nothing is copied. -1 for a pad.
std::int32_t accepted_slot(const OutputPool& pool, const SlotRequest& request, int accepted);

// Of one slot to another; none where `from` is -1.
struct SlotCopy {
  std::int32_t from = -1;
  std::int32_t to = -1;
  bool operator==(const SlotCopy&) const = default;
};
// The copy that a request asks for whose working slot is about to be saved or moved by a scheduler, which knows of no
// other: from its current slot. Only for requests that are retracted, once, in the order of the steps' stream; a copy
// that an idle turn makes again takes what is in the draft slots by then. Afterwards its `current` is kWorkingSlot.
SlotCopy retract_copy(const OutputPool& pool, const SlotRequest& request, std::int32_t current);
// The copy of the state at the first page boundary that a step passed, to `checkpoint`: `length` tokens were in the
// state before it, `accepted` of the step's are kept, a page has `page` tokens. None where the step passed no boundary,
// for a pad, and for a checkpoint of -1. Fails: as above, and for a page below 1.
SlotCopy checkpoint_copy(const OutputPool& pool, const SlotRequest& request, std::int64_t length, int accepted,
                         std::int64_t page, std::int64_t checkpoint);

// ---- copies on the device ----

inline constexpr int kSlotPieceWords = 4;
// What a launch copies of a slot, piece by piece, [pieces, kSlotPieceWords], for device memory; good as long as the
// pools stay where they are. A pool: a layer's states, factors of states, windows, [slots, ...], any dtype, all but
// dimension 0 contiguous, bytes of a slot, its stride and the base multiples of 16. Fails: ErrorKind::invalid for pools
// that are not so or differ in slots, by number.
std::vector<std::int64_t> slot_copy_table(const std::vector<Tensor>& pools);

struct SlotCopiesArgs {
  std::size_t size = sizeof(SlotCopiesArgs);
  Tensor pieces;                  // [pieces, kSlotPieceWords], int64, as slot_copy_table() has it
  Tensor src_slots;               // [any], int32 or int64
  Tensor dst_slots;               // as many; a pair with a pad is passed over, so that lists may be of a fixed length
  std::int64_t pad_slot_id = -1;  // this index, and every negative one, is a pad
  bool checked = false;  // look at the slots before the launch (copies them and synchronises; refused under capture)
};

// The kernel of such copies, loaded; for any pools. The caller's errors that can't be seen without `checked`: two pairs
// that write one slot, a pair that reads what another writes.
class SlotCopies {
 public:
  // As Kernel::load().
  static SlotCopies load(const CompileOptions& options = {}, void* stream = nullptr);
  // A given cubin of emit_slot_copies(). Fails: as Kernel::load() does.
  static SlotCopies load(const Source& source, const Cubin& cubin);

  // As Kernel::launch(): asynchronous, safe under capture and from many threads, without an allocation; an ordinary
  // launch. Without pools or pairs nothing is launched; a launch takes up to 65535 pairs. Fails: ErrorKind::invalid for
  // a tensor that does not fit, naming it; in checked mode also for slots past the pools and those errors;
  // ErrorKind::machine when the driver refuses.
  void launch(const SlotCopiesArgs& args, void* stream) const;

  // Fails: ErrorKind::invalid for SlotCopies that were never loaded; so does launch().
  const Cubin& cubin() const;

  // The checks of a launch alone: one sentence a wrong tensor; empty when all is well. Needs no GPU.
  static std::vector<std::string> problems(const SlotCopiesArgs& args);

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

}  // namespace ssmjit
