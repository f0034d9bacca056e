// A loaded kernel: what an engine keeps and launches.
//
//   Kernel kernel = Kernel::load(description, plan);
//   UpdateArgs args;
//   args.state = contiguous(state_ptr, DType::f32, {slots, nheads, head_dim, dstate});
//   ...
//   kernel.launch(args, stream);
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include <ssmjit/cubin.h>
#include <ssmjit/description.h>
#include <ssmjit/plan.h>

namespace ssmjit {

// Device memory of the caller's: pointer, dtype, shape and strides in elements. data == nullptr: not given.
inline constexpr int kMostDimensions = 5;
struct Tensor {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int rank = 0;
  std::array<std::int64_t, kMostDimensions> shape{};
  std::array<std::int64_t, kMostDimensions> stride{};
};
Tensor contiguous(const void* data, DType dtype, std::initializer_list<std::int64_t> shape);
Tensor strided(const void* data, DType dtype, std::initializer_list<std::int64_t> shape,
               std::initializer_list<std::int64_t> stride);

// Programmatic dependent launch. off: an ordinary launch. wait_first: may start before the launch in front of it has
// ended, and waits for it before it reads anything. early_state: a kernel whose plan has early_state reads indices,
// counts, cursors, states and weights before that wait, which is the caller's promise that no kernel in flight writes
// them; any other kernel does as for wait_first. Both are `off` before sm_90.
enum class Pdl { off, wait_first, early_state };
const char* name(Pdl pdl);

// Tensors of one update step. Rows (dimension 0 of all but the weights, dimension 1 too where there are tokens) may be
// strided; inner dimensions are contiguous. A, dt, D and dt_bias have one value a head; they may also be views that
// peers expand: A as [nheads, head_dim, dstate], the others with head_dim behind nheads, those dimensions of stride 0.
// A description of one token has no dimension of tokens; one of several has [batch, tokens, ...] as written here, one
// with varlen [total, ...] or [1, total, ...], request b's tokens from cu_seqlens[b] to cu_seqlens[b + 1].
// A request's source slot may be one of its own destinations: all of it is read before any of them is written. The
// caller's errors that can't be seen here: two rows with the same live slot (a race), a moved or freed pointer.
struct UpdateArgs {
  std::size_t size = sizeof(UpdateArgs);
  Tensor state;        // [slots, nheads, head_dim, dstate], state dtype; base and slot stride multiples of 16 bytes;
                       // updated
  Tensor state_scale;  // [slots, nheads, head_dim], fp32; given iff the state is int8, fp8 or int16; a row's value is
                       // stored * scale; slots may be strided; updated
  Tensor x;            // [batch, tokens, nheads, head_dim], input dtype
  Tensor dt;           // [batch, tokens, nheads], dt dtype
  Tensor A;            // [nheads], fp32, negative
  Tensor B;            // [batch, tokens, ngroups, dstate], input dtype
  Tensor C;            // [batch, tokens, ngroups, dstate], input dtype
  Tensor D;            // [nheads], weight dtype; given iff the description's skip reads D
  Tensor dt_bias;      // [nheads], weight dtype; given iff the description's delta reads dt_bias
  Tensor z;            // [batch, tokens, nheads, head_dim], input dtype; given iff the description has a gate
  Tensor out;          // [batch, tokens, nheads, head_dim], input dtype; written
  Tensor state_batch_indices;  // [batch] or [batch, 1], int32 or int64; not given: row b uses slot b. With accepted
                               // counts [batch, tokens or more], row b starts from column num_accepted_tokens[b] - 1
  Tensor dst_state_batch_indices;  // [batch], same dtype; optional, needs a description with destination slots; of
                                   // Slots [batch, tokens] and needed: the state after each token goes there; a pad's
                                   // is not stored
  Tensor num_accepted_tokens;      // [batch], same dtype; given iff the description has accepted counts; clamped to 1
                                   // to tokens, whatever columns state_batch_indices has
  Tensor intermediate_states;  // [snapshot slots, steps, nheads, head_dim, dstate], state dtype, contiguous, iff the
                               // store is Snapshots: the state after token t goes to step t; steps: at least the
                               // tokens; written
  Tensor intermediate_state_scales;   // [snapshot slots, steps, nheads, head_dim], fp32, contiguous; with state_scale
  Tensor intermediate_state_indices;  // [batch], same dtype; not given: the slot that is read
  Tensor retrieve_parent_token;       // [batch, tokens], same dtype; iff the description has a tree: the token that a
                                      // token follows; one outside 0 to tokens - 1 follows the token before it
  Tensor cu_seqlens;  // [batch + 1], int32, from 0, never decreasing; given iff the description has varlen
  Tensor rand_seed;   // [1] or [slots], int64; given iff the description rounds stochastically
  bool disable_state_update = false;  // of Snapshots: the state that was read stays as it is
  std::int64_t pad_slot_id = -1;      // this index, and every negative one, marks a pad row
  Pdl pdl = Pdl::off;
  bool checked = false;  // look at the indices before the launch (copies them and synchronises; refused under capture)
};

// Tensors of one replay step. x, z, out, dt, B and C have a dimension of tokens, of one too; A, D and dt_bias as those
// of UpdateArgs. The host owns cache_buf_idx and prev_num_accepted_tokens, moved once a model step (advance_replay()).
struct ReplayArgs {
  std::size_t size = sizeof(ReplayArgs);
  Tensor state;          // [slots, nheads, head_dim, dstate], state dtype; slots may be strided; updated
  Tensor old_x;          // [slots, tokens, nheads, head_dim], input dtype: x of the last step; read, then overwritten
  Tensor old_B;          // [slots, 2, tokens, ngroups, dstate], input dtype: B of the last step in one of two buffers
  Tensor old_dt;         // [slots, 2, nheads, tokens], fp32: delta, not dt; likewise
  Tensor old_cumAdt;     // [slots, 2, nheads, tokens], fp32: sums of A * delta up to and with each token; likewise
  Tensor cache_buf_idx;  // [slots], int32: the buffer, 0 or 1, that holds the last step; this step writes the other
  Tensor prev_num_accepted_tokens;  // [slots], int32: tokens of the last step that were kept, 0 to tokens
  Tensor x;
  Tensor dt;
  Tensor A;  // [nheads], fp32, negative
  Tensor B;
  Tensor C;
  Tensor D;                    // [nheads], weight dtype; given iff the description's skip reads D
  Tensor dt_bias;              // [nheads], weight dtype; given iff the description's delta reads dt_bias
  Tensor z;                    // given iff the description has a gate
  Tensor out;                  // written
  Tensor state_batch_indices;  // [batch] or [batch, 1], int32 or int64; not given: row b uses slot b
  Tensor rand_seed;            // [1] or [slots], int64; given iff the description rounds stochastically
  Tensor scratch;              // [scratch_bytes()] or more, int8, base a multiple of 256 bytes; a plan of two launches
                               // wants it, others leave it alone; nothing in it outlives the second launch
  std::int64_t pad_slot_id = -1;  // this index, and every negative one, marks a pad row
  Pdl pdl = Pdl::off;             // of the first launch on what is in front of it; early_state: all but the step's own
                                  // x, z, dt, B and C is read before the wait
  bool internal_pdl = true;       // of a plan of two launches: whether the second may start before the first has ended
  bool checked = false;  // look at indices, buffers and counts before the launch (copies them and synchronises; refused
                         // under capture)
};

// Tensors of one ring step. x, z, out: [batch, tokens, nheads, head_dim]; dt: [batch, tokens, nheads]; B, C: [batch,
// tokens, ngroups, dstate]; requests and tokens may be strided, inner dimensions are contiguous, rows 16-byte aligned.
// A, dt, D and dt_bias may be expanded views as those of UpdateArgs.
// A description with varlen: [total, ...] or [1, total, ...] instead of [batch, tokens, ...], request b's tokens from
// cu_seqlens[b] to cu_seqlens[b + 1].
// The host owns the cursors and moves them once a model step, after all layers (advance_ring() below). A slot that
// changes hands is reset or copied with its rings and cursors (ring.h): a launch sees no stale ring.
struct RingArgs {
  std::size_t size = sizeof(RingArgs);
  Tensor state;        // [slots, nheads, head_dim, dstate], state dtype; slots may be strided; written by a flush
  Tensor state_scale;  // [slots, nheads, head_dim], fp32; given iff the state is int8 or fp8; a row's value is stored *
                       // scale; base and slot stride multiples of 16 bytes, as those of state and rings of x and B;
                       // written by a flush
  Tensor x_ring;       // [slots, nheads, length, head_dim], input dtype; the step's rows are added
  Tensor B_ring;       // [slots, ngroups, length, dstate], input dtype; likewise
  Tensor dt_ring;      // [slots, nheads, length], fp32: delta, not dt; likewise
  Tensor ring_start;   // [slots], int32: where a slot's oldest row lies, from 0 to length - 1
  Tensor ring_count;   // [slots], int32: rows in use, 0 to window (FlashInfer's prev_num_accepted_tokens)
  Tensor x;
  Tensor dt;
  Tensor A;  // [nheads], fp32, negative
  Tensor B;
  Tensor C;
  Tensor D;                       // [nheads], weight dtype; given iff the description's skip reads D
  Tensor dt_bias;                 // [nheads], weight dtype; given iff the description's delta reads dt_bias
  Tensor z;                       // given iff the description has a gate
  Tensor out;                     // written
  Tensor state_batch_indices;     // [batch] or [batch, 1], int32 or int64; not given: row b uses slot b
  Tensor cu_seqlens;              // [batch + 1], int32, from 0, never decreasing; given iff the description has varlen
  Tensor rand_seed;               // [1] or [slots], int64; given iff the description rounds stochastically
  std::int64_t pad_slot_id = -1;  // this index, and every negative one, marks a pad row
  Pdl pdl = Pdl::off;             // early_state: indices, cu_seqlens, cursors, state, rings, A, D and dt_bias are read
                                  // before the wait
  bool checked = false;  // look at indices, cursors, cu_seqlens, rows of dt_ring in use that none wrote since a reset
                         // before the launch (copies them and synchronises; refused under capture)
};

// Tensors of one step of a convolution (causal_conv1d_update). Requests and tokens of x and out may be strided, so x
// may be a slice of a projection's rows, in any order of requests and tokens; channels lie side by side. Slots may be
// strided; inner dimensions are contiguous. With aligned_rows, bases and strides of all but indices are multiples of 16
// bytes. Index tensors are all int32 or all int64. out may be x. A slot that a request reads may be one of its own
// output slots, not one of another's.
struct Conv1dArgs {
  std::size_t size = sizeof(Conv1dArgs);
  Tensor conv_state;  // [slots, channels, state_len]; channels_last: [slots, state_len, channels]; state dtype; updated
  Tensor x;           // [batch, tokens, channels], or [batch, channels] of one token; input dtype
  Tensor w;           // [channels, width], weight dtype
  Tensor bias;        // [channels], weight dtype; given iff the description has a bias
  Tensor out;         // as x; written
  Tensor state_batch_indices;         // [batch] or [batch, 1]; not given: row b uses slot b
  Tensor output_state_indices;        // [batch, tokens], iff keep is slots: where the window after each token goes; a
                                      // pad's is not stored
  Tensor intermediate_states;         // [snapshot slots, steps, channels, length] (channels_last: length before
                                      // channels), state dtype, iff keep is snapshots: the window after token t goes to
                                      // step t; length: conv_snapshot_len(), steps: at least the tokens; written
  Tensor intermediate_state_indices;  // [batch], only if keep is snapshots; not given: the state's slot
  Tensor cache_seqlens;               // [batch], iff circular: tokens before this step; the next goes to entry
                                      // cache_seqlens % state_len
  Tensor num_accepted_tokens;         // [batch], iff has_accepted: of the step before; clamped to 1 to tokens
  std::int64_t pad_slot_id = -1;      // this index, and every negative one, marks a pad row
  Pdl pdl = Pdl::off;                 // early_state: indices, counts, weights and conv_state are read before the wait
  bool checked = false;  // look at the indices before the launch (copies them and synchronises; refused under capture)
};

// Tensors of one layer step, as one kernel or as a chain (Plan::form). Rows may be strided, inner dimensions are
// contiguous; A, dt, D and dt_bias also as the views that UpdateArgs takes. What the description has no use for is not
// given. Of several tokens, or with a ring, x, B, C, dt, z and out have a dimension of tokens behind that of the batch.
struct LayerArgs {
  std::size_t size = sizeof(LayerArgs);
  Tensor state;       // [slots, nheads, head_dim, dstate], state dtype; base and slot stride multiples of 16 bytes, as
                      // those of conv_state; updated
  Tensor conv_state;  // [slots, channels, state_len], or [slots, state_len, channels] with channels_last, input dtype;
                      // given iff there is a convolution; updated
  Tensor x;           // with a convolution [batch, channels], x, B and C before it; else [batch, nheads, head_dim];
                      // input dtype, rows 16-byte aligned
  Tensor B;           // [batch, ngroups, dstate], input dtype, rows 16-byte aligned; given iff there is no convolution
  Tensor C;           // as B
  Tensor dt;          // [batch, nheads], dt dtype
  Tensor z;  // [batch, nheads, head_dim], input dtype; given iff there is a gate, of the update or of the norm;
             // a chain's norm reads that of pad rows too: their output is zeros where it is finite
  Tensor conv_weight;          // [channels, width], input dtype, 16-byte aligned; given iff there is a convolution
  Tensor conv_bias;            // [channels], input dtype, 16-byte aligned; given iff the convolution has a bias
  Tensor A;                    // [nheads], fp32, negative
  Tensor D;                    // [nheads], weight dtype; given iff the description's skip reads D
  Tensor dt_bias;              // [nheads], weight dtype; given iff the description's delta reads dt_bias
  Tensor norm_weight;          // [nheads * head_dim], input dtype; given iff there is a norm
  Tensor norm_bias;            // [nheads * head_dim], input dtype; given iff the norm has a bias
  Tensor out;                  // [batch, nheads, head_dim], input dtype; written
  Tensor state_batch_indices;  // [batch] or [batch, 1], int32 or int64; not given: row b uses slot b
  Tensor scratch;              // [scratch_bytes()] or more, int8, base a multiple of 256 bytes; given iff the plan is
                               // a chain; nothing in it outlives the launch
  // Of a layer with a ring, as RingArgs has them.
  Tensor state_scale;
  Tensor x_ring;
  Tensor B_ring;
  Tensor dt_ring;
  Tensor ring_start;
  Tensor ring_count;
  Tensor rand_seed;
  // Of a convolution that keeps more than its last window, as Conv1dArgs has them. Their dtype is state_batch_indices'.
  Tensor output_state_indices;
  Tensor intermediate_states;
  Tensor intermediate_state_indices;
  Tensor cache_seqlens;
  Tensor num_accepted_tokens;
  std::int64_t pad_slot_id = -1;  // this index, and every negative one, marks a pad row
  Pdl pdl = Pdl::off;             // early_state: indices, counts, lengths, cursors, both states, rings and all weights
                                  // are read before the wait. Of a chain the first launch's: the caller's promise is
                                  // then about all launches in flight, this layer's step before too
  bool checked = false;  // look at indices, cursors and counts before the launch (copies them and synchronises; refused
                         // under capture)
};

// Tensors of one gated norm. x, z, out: [batch, tokens, channels], requests and tokens strided as they come, or [batch
// * tokens, channels], rows strided; channels are contiguous; 16-byte aligned unless the description has unaligned
// rows.
struct NormArgs {
  std::size_t size = sizeof(NormArgs);
  Tensor x;            // input dtype
  Tensor z;            // input dtype; given iff the description has a gate
  Tensor weight;       // [channels], weight dtype
  Tensor bias;         // [channels], weight dtype; given iff the description has a bias
  Tensor out;          // input dtype; written; may be x or z itself
  Pdl pdl = Pdl::off;  // early_state: weight and bias are read before the wait
};

// A slot's cursors, as the host keeps them.
struct RingCursor {
  int start = 0;
  int count = 0;
  bool operator==(const RingCursor&) const = default;
};
// Whether a step of `tokens` (0: a request that has none) with this cursor writes the state. Fails: ErrorKind::invalid
// as advance_ring() does.
bool ring_flushes(const Description& description, RingCursor cursor, int tokens);
// The cursor after a step of `tokens` of which the first `accepted` are kept; once a model step, not once a layer.
// Fails: ErrorKind::invalid for a cursor or counts out of range, naming them, and for a description without a ring.
RingCursor advance_ring(const Description& description, RingCursor cursor, int tokens, int accepted);
// What a slot's replay buffers hold, as the host keeps it: the buffer of the last step, and how much of it was kept.
struct ReplayCursor {
  int buffer = 0;
  int accepted = 0;
  bool operator==(const ReplayCursor&) const = default;
};
// The cursor after a step of which the first `accepted` tokens are kept; once a model step, not once a layer. A fresh
// slot has {0, 0}. Fails: ErrorKind::invalid as advance_ring() does.
ReplayCursor advance_replay(const Description& description, ReplayCursor cursor, int accepted);
// Device memory of one slot of one layer: state, scales and rings, bytes; cursors (8 bytes a slot, shared by all
// layers) apart. Fails: ErrorKind::invalid for an invalid description.
std::int64_t ring_slot_bytes(const Description& description);

class Kernel {
 public:
  // Compiles (or takes from the cache) and loads on the device of the current context, the primary context of device 0
  // where none is current (which then is current for the calling thread). Fails: ErrorKind::invalid for a bad
  // description or plan, ErrorKind::missing without NVRTC, driver or GPU, ErrorKind::machine when compiler or driver
  // refuse. Slow (a compile, a disk, a module load), so it belongs before a capture: with `stream`, the CUstream that
  // the kernel is for, or without one for the default stream, ErrorKind::invalid while that is being captured. A
  // capture of another stream goes on unharmed.
  static Kernel load(const Description& description, const Plan& plan, const CompileOptions& options = {},
                     void* stream = nullptr);
  // A given cubin of this description and plan. Fails: ErrorKind::invalid when source and plan differ in block or
  // shared memory, ErrorKind::machine when the driver refuses the cubin.
  static Kernel load(const Description& description, const Plan& plan, const Source& source, const Cubin& cubin);

  // `stream` is a CUstream, or null for the default one. Asynchronous, safe under capture and from many threads;
  // allocates nothing, takes no lock. An empty batch launches nothing; a batch has up to 65535 rows. The context that
  // the kernel was loaded in must be current. The Kernel must outlive the launch and every graph that captured it.
  // Fails: ErrorKind::invalid for a tensor that does not fit the description, naming it, before any GPU work; in
  // checked mode also for a slot index past the pool or two rows that write one slot, naming the rows;
  // ErrorKind::machine when the driver refuses, with its code.
  void launch(const UpdateArgs& args, void* stream) const;
  void launch(const RingArgs& args, void* stream) const;
  void launch(const Conv1dArgs& args, void* stream) const;
  void launch(const LayerArgs& args, void* stream) const;
  void launch(const NormArgs& args, void* stream) const;
  void launch(const ReplayArgs& args, void* stream) const;

  // Fail: ErrorKind::invalid for a Kernel that was never loaded; so does launch().
  const Description& description() const;
  const Plan& plan() const;
  const Cubin& cubin() const;

  // The checks of launch() alone, but those of a replay's scratch and of a fused ring layer's counts, circular windows
  // and snapshots: one sentence a wrong tensor; empty when all is well. Needs no GPU.
  static std::vector<std::string> problems(const Description& description, const UpdateArgs& args);
  static std::vector<std::string> problems(const Description& description, const RingArgs& args);
  static std::vector<std::string> problems(const Description& description, const Conv1dArgs& args);
  static std::vector<std::string> problems(const Description& description, const LayerArgs& args);
  static std::vector<std::string> problems(const Description& description, const NormArgs& args);
  static std::vector<std::string> problems(const Description& description, const ReplayArgs& args);

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

}  // namespace ssmjit
