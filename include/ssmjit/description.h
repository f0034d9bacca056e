// What to compute: the maths, the sizes, the dtypes, where the state goes. Nothing about how.
//
//   Description step = mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1})
//                          .state(DType::bf16)
//                          .gate(silu(dsl::z));
//   step.validate();          // throws, naming every wrong field in one go
//
// The recurrence of one head, h [head_dim, dstate] (Dao & Gu 2024, Mamba-2; "selective_state_update"):
//   h[p, n] <- decay * h[p, n] + delta * x[p] * B[n];   y[p] = sum_n h[p, n] * C[n] + skip;   y[p] *= gate
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <ssmjit/expression.h>

namespace ssmjit {

enum class DType { f32, bf16, f16, i8, f8, i16, i32, i64 };
const char* name(DType dtype);  // "fp32", "bf16", "fp16", "int8", "fp8" (e4m3), "int16", "int32", "int64"
int size_bytes(DType dtype);
// Fails: ErrorKind::invalid, with the names that are known.
DType parse_dtype(std::string_view text);

enum class Family { mamba2 };
const char* name(Family family);

// How a state is rounded to its dtype where it is stored.
struct Nearest {
  bool operator==(const Nearest&) const = default;
};
// Up or down by chance, the nearer the likelier, so that errors of many steps cancel. Random bits: Philox-4x32 with
// `philox_rounds` rounds (1 to 32), keyed by the launch's rand_seed, which the caller changes every step; counted by
// the element's place, ((slot * nheads + h) * head_dim + p) * dstate + n, never by tiles or launch shape.
struct Stochastic {
  int philox_rounds = 10;
  bool operator==(const Stochastic&) const = default;
};
using Rounding = std::variant<Nearest, Stochastic>;

// Where the new state goes. InPlace: the one after the last token over the one that was read, or to the slot that
// dst_state_batch_indices names.
struct InPlace {
  bool operator==(const InPlace&) const = default;
};
// As InPlace, and the state after every token into a buffer of its own (intermediate_states): a caller that keeps n of
// the tokens copies the n-th from there. A launch may leave the state itself as it was (disable_state_update).
struct Snapshots {
  bool operator==(const Snapshots&) const = default;
};
// The state after every token to the slot that dst_state_batch_indices [batch, tokens] names, nothing in place: keeping
// n of the tokens is to read the n-th of these slots in the next step.
struct Slots {
  bool operator==(const Slots&) const = default;
};
// Two steps back ("replay", TensorRT-LLM): the state before the last step, and that step's x, B, delta and sums of A *
// delta. A step first brings the state up to the tokens of the last one that were accepted, writes it, and computes its
// own outputs from there without a state of their own.
struct Replay {
  bool operator==(const Replay&) const = default;
};
// Nowhere, until a ring of the last steps' x, B and delta is full: a step writes the state iff the rows in use and its
// own tokens together are more than `window` (1 to 32, at least the tokens of a step). `length`: rows of the ring, at
// least window + tokens; 0: exactly that.
struct Ring {
  int window = 16;
  int length = 0;
  bool operator==(const Ring&) const = default;
};
using Store = std::variant<InPlace, Ring, Snapshots, Slots, Replay>;

// Where a conv window's newest entries go. shift: to its end, all others one place towards the front a token. circular:
// to entry cache_seqlens % state_len, the others stay.
enum class ConvStore { shift, circular };
const char* name(ConvStore store);
// Which windows a step of many tokens keeps. last: the one after its last token, in place. snapshots: that, and the one
// after every token in a buffer of its own. slots: the one after every token in the slot that output_state_indices
// names, instead of in place.
enum class ConvKeep { last, snapshots, slots };
const char* name(ConvKeep keep);

// A causal convolution of each channel over its own past ("causal_conv1d_update"): conv_state holds a channel's last
// inputs, v is that history and then the step's x;
//   y_t[c] = activation(bias[c] + sum_k w[c, k] * v[c, t - width + 1 + k])
struct Conv {
  int channels = 0;   // in a layer 0: nheads * head_dim + 2 * ngroups * dstate, in the order x, B, C
  int width = 4;      // taps, 2 to 4
  int state_len = 0;  // entries of a channel's window, width - 1 to 64; 0: width - 1. `width` of them (as
                      // Megatron has it) leave entry 0 dead
  bool has_bias = true;
  Expr activation_expr{};      // over x, the sum: silu(x), or empty
  bool channels_last = false;  // conv_state in memory as [slots, state_len, channels], not [slots, channels, state_len]
  ConvStore store = ConvStore::shift;
  ConvKeep keep = ConvKeep::last;
  bool has_accepted = false;  // whether launches give num_accepted_tokens: the history is then read from entry n - 1 on
  bool operator==(const Conv&) const = default;
};

// The RMS norm of each group of group_size channels, u the input: y = u / sqrt(mean(u^2) + eps) * w (+ bias).
struct Norm {
  int channels = 0;    // in a layer 0: nheads * head_dim
  int group_size = 0;  // divides channels; 0: all of them
  double eps = 1e-5;
  Expr gate_expr{};          // over z: silu(z), or empty
  bool before_gate = false;  // norm_before_gate: the gate multiplies the result; else the input
  bool has_bias = false;
  bool operator==(const Norm&) const = default;
};

// What kind of kernel a description asks for: each has its templates, its plans and its arguments. layer: conv1d, then
// update or ring, then norm, as one. update: any number of tokens, in place, with snapshots or to slots.
enum class Op { update, ring, conv1d, norm, layer, replay };
inline constexpr Op kOps[] = {Op::update, Op::ring, Op::conv1d, Op::norm, Op::layer, Op::replay};
const char* name(Op op);

// What the output row of a pad request holds (a row whose slot index is negative, pad_slot_id, or past the pool).
enum class PadOutput { zeros, untouched, as_if_zero_state };
const char* name(PadOutput pad_output);

struct Sizes {
  int nheads = 0;
  int head_dim = 0;
  int dstate = 0;
  int ngroups = 1;
};

// Bytes that one call moves at least, by what the cold-state floor is made of.
struct Bytes {
  std::int64_t read = 0;          // cold: the state, and the inputs x, B, C, dt, z of this call
  std::int64_t written_back = 0;  // cold: the part of `read` that is written in place
  std::int64_t written_new = 0;   // cold: written elsewhere (outputs, destination slots)
  std::int64_t warm = 0;          // A, D, dt_bias, indices: the same at every step, so they stay in the L2
  std::int64_t total() const { return read + written_back + written_new; }
  bool operator==(const Bytes&) const = default;
};

struct Description {
  // Sizes. head_dim: a multiple of 8, 8 to 256. dstate: a multiple of 8, 16 to 256. ngroups divides nheads; head h
  // reads B and C of group h / (nheads / ngroups).
  Family family = Family::mamba2;
  int nheads = 0;
  int head_dim = 0;
  int dstate = 0;
  int ngroups = 1;
  int token_count = 1;  // T, tokens a step

  // Dtypes. input: x, z, B, C and out (fp32, bf16, fp16). dt: fp32 or bf16. weight: D and dt_bias, fp32 or bf16 (A is
  // always fp32). state: fp32, bf16, fp16, and, with a factor for each row of dstate, int8, fp8 and int16.
  DType input_dtype = DType::bf16;
  DType dt_dtype = DType::f32;
  DType weight_dtype = DType::f32;
  DType state_dtype = DType::f32;

  // Maths. delta over dt and dt_bias; decay over A, dt and delta; skip over D and x, added to y, or empty;
  // gate over z, multiplied onto y after skip, or empty.
  Expr delta_expr;
  Expr decay_expr;
  Expr skip_expr;
  Expr gate_expr;

  Rounding rounding_kind = Nearest{};
  Store store_kind = InPlace{};
  bool has_destination = false;  // whether launches may give dst_state_batch_indices
  // Whether launches give num_accepted_tokens: a request then starts from the slot of its last accepted token, column
  // n - 1 of state_batch_indices [batch, tokens or more].
  bool has_accepted = false;
  // Whether launches give retrieve_parent_token, the tokens of a step forming a tree; with Snapshots only.
  bool has_tree = false;
  // Whether requests have up to token_count tokens each, packed one behind the other, with cu_seqlens at launch.
  bool is_varlen = false;
  // Whether rows of x, B and C are 16-byte aligned (bases and row strides), so that they are read as vectors; false:
  // any element alignment, a few percent slower at small batch.
  bool aligned_rows = true;
  PadOutput pad_output_kind = PadOutput::zeros;

  // Without heads (nheads 0): a convolution or a norm alone, of token_count tokens a request, with input_dtype (x, z,
  // out), weight_dtype (w and bias, fp32, bf16 or fp16), state_dtype (conv_state), aligned_rows and pad_output_kind.
  // With heads: the parts of a layer around its update or ring; conv_state and the weights of both have input_dtype.
  std::optional<Conv> conv;
  std::optional<Norm> norm;

  // The same, one call a field, so that a description reads as one sentence.
  Description& tokens(int T) { return token_count = T, *this; }
  Description& input(DType d) { return input_dtype = d, *this; }
  Description& dt(DType d) { return dt_dtype = d, *this; }
  Description& weights(DType d) { return weight_dtype = d, *this; }
  Description& state(DType d) { return state_dtype = d, *this; }
  Description& delta(Expr e) { return delta_expr = std::move(e), *this; }
  Description& decay(Expr e) { return decay_expr = std::move(e), *this; }
  Description& skip(Expr e) { return skip_expr = std::move(e), *this; }
  Description& no_skip() { return skip_expr = Expr(), *this; }
  Description& gate(Expr e) { return gate_expr = std::move(e), *this; }
  Description& no_gate() { return gate_expr = Expr(), *this; }
  Description& rounding(Rounding r) { return rounding_kind = r, *this; }
  Description& store(Store s) { return store_kind = s, *this; }
  Description& destination_slots(bool on = true) { return has_destination = on, *this; }
  Description& accepted_counts(bool on = true) { return has_accepted = on, *this; }
  Description& tree(bool on = true) { return has_tree = on, *this; }
  Description& varlen(bool on = true) { return is_varlen = on, *this; }
  Description& unaligned_rows() { return aligned_rows = false, *this; }
  Description& pad_output(PadOutput p) { return pad_output_kind = p, *this; }
  Description& with_conv(Conv c) { return conv = std::move(c), *this; }
  Description& with_norm(Norm n) { return norm = std::move(n), *this; }

  Op op() const;
  // Of the conv and the norm, if there are any, with what a 0 stands for; else 0.
  int conv_channels() const;
  int conv_state_len() const;
  int conv_snapshot_len() const;  // entries of a snapshot: width where the state has so many, else width - 1
  int norm_channels() const;
  int norm_group_size() const;
  // Of the ring: its window and length, or 0 for another store.
  int ring_window() const;
  int ring_length() const;
  // Whether the state has a factor for each row of dstate (8-bit dtypes).
  bool has_state_scale() const {
    return state_dtype == DType::i8 || state_dtype == DType::f8 || state_dtype == DType::i16;
  }
  // Whether the state after every token is stored: Snapshots or Slots.
  bool stores_every_token() const {
    return std::holds_alternative<Snapshots>(store_kind) || std::holds_alternative<Slots>(store_kind);
  }

  // Whether the maths reads the tensor at all.
  bool has_z() const;
  bool has_D() const;
  bool has_dt_bias() const;
  int heads_per_group() const { return ngroups > 0 ? nheads / ngroups : 0; }

  // One sentence a wrong field, with what it got and what it wants; empty when all is well. Never throws.
  std::vector<std::string> problems() const;
  // Fails: ErrorKind::invalid with all of problems(), a line each.
  void validate() const;

  // One line.
  std::string summary() const;
  // {"schema": 1, "op": "update", ...}; from_json reads it back to an equal description.
  std::string json(int indent = -1) const;
  // Fails: ErrorKind::invalid on bad JSON, another schema or op, an unknown field, a value of the wrong type, all named
  // in one go. Does not validate().
  static Description from_json(std::string_view text);

  // 16 hex digits over all that shapes the compiled kernel and nothing that does not: not nheads itself (only
  // nheads / ngroups), batch, strides or slots, so that tensor-parallel sizes of a model share kernels and table rows.
  std::string kernel_digest() const;
  // 16 hex digits over what the cost depends on: the sizes that kernel_digest() covers, state and input dtypes, whether
  // there are a gate and destination slots; not the maths, nor the dtypes of dt and the weights. Kernels that share it
  // differ by little in time, so a table measured with one serves the others, saying so.
  std::string cost_digest() const;

  // Applies "state=bf16,nheads=64,gate=silu(z)": the JSON field names, and the short ones state, input, dt, weights,
  // tokens. Commas inside parentheses belong to the value. Fails: ErrorKind::invalid, naming the field.
  void set(std::string_view assignments);

  bool operator==(const Description&) const = default;
};

// Mamba-2 with its usual maths: delta = softplus(dt + dt_bias), decay = exp(A * delta), skip = D * x, no gate.
Description mamba2(const Sizes& sizes);

// A convolution or a norm alone; conv_state and weights in bf16, as x, until told otherwise.
Description conv1d(Conv conv);
Description gated_norm(Norm norm);

// The kernels that compute a layer together, in launch order: its convolution, if it has one, as conv1d; its update or
// ring, with x, B and C as slices of what the convolution wrote; its norm, if it has one. Empty for any other
// description.
std::vector<Description> layer_parts(const Description& description);

// What the time of a call grows with, and what tables are keyed by as total_heads: batch * nheads; of a convolution
// alone batch * (channels / 64, rounded up), of a norm alone batch * tokens * groups. At least 1.
std::int64_t work_items(const Description& description, std::int64_t batch);

// The steps of a ring: most leave the state as it is; one in some (`window` for one token a step) brings it up to date.
// Other kernels have no_flush only.
enum class Phase { no_flush, flush };
const char* name(Phase phase);

// For `batch` live requests, each with `ring_count` rows in use (-1: window - tokens without flush, window with).
// Fails: ErrorKind::invalid for a batch below 0.
Bytes bytes_moved(const Description& description, int batch, Phase phase = Phase::no_flush, int ring_count = -1);

// A model's kernels, as a SPEC file holds them: {"schema": 1, "model": ..., "source": ..., "kernels": {"update":
// {...}}}.
struct Model {
  std::string model;                                         // a name
  std::string source;                                        // where the sizes come from
  std::vector<std::pair<std::string, Description>> kernels;  // in the file's order

  // A model, or one bare description, which becomes the kernel "update" of an unnamed model.
  static Model from_json(std::string_view text);
  std::string json(int indent = 2) const;
  // Fails: ErrorKind::invalid with the names that there are.
  const Description& kernel(std::string_view name) const;
  bool operator==(const Model&) const = default;
};

// Reads a Hugging Face config.json of model_type mamba2, nemotron_h or bamba, for one rank of `tp` tensor-parallel
// ones. nheads is split over the ranks; ngroups too, or replicated where there are fewer groups than ranks and tp is a
// multiple of them. The kernels are conv1d, update, ring (one token a step, window 16), norm, layer and ring_layer, as
// far as the config allows; `source` says what is left out or assumed. Fails: ErrorKind::invalid, naming the field.
Model from_hf(std::string_view config_json, int tp = 1);

}  // namespace ssmjit
