#include <ssmjit/description.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>

#include <fmt/core.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "codegen/digest.h"
#include "codegen/fail.h"
#include "codegen/parts.h"
#include "codegen/rounded.h"
#include "codegen/update_form.h"

namespace ssmjit {
namespace {

constexpr int kMaxHeads = 65536;
constexpr int kMaxHeadDim = 256;
constexpr int kMinDstate = 16;
constexpr int kMaxDstate = 256;
constexpr int kSizeStep = 8;
constexpr int kRingDstateStep = 32;        // a ring kernel contracts 32 columns at a time,
constexpr int kRingNarrowDstateStep = 64;  // of 8-bit states 64
constexpr int kBytesDstateStep = 16;       // an update has 16 columns of 8-bit states in a vector
constexpr int kMostRingTokens = 16;
constexpr int kMostTokens = 64;      // of an update
constexpr int kMostLayerTokens = 8;  // of a layer with its state in place
constexpr int kMostWindow = 32;
constexpr int kMostRingLength = 64;
constexpr int kMostPhiloxRounds = 32;
constexpr int kConvTile = 64;  // channels that count as one head

// Whether the sums of A * delta of a ring or a replay give this decay.
bool rebuilds_decay(const Expr& decay) {
  const Expr A(Leaf::A), delta(Leaf::delta);
  return decay == exp(A * delta) || decay == exp(delta * A);
}

std::string store_text(const Description& d) {
  if (std::holds_alternative<Snapshots>(d.store_kind)) return "snapshots";
  if (std::holds_alternative<Slots>(d.store_kind)) return "slots";
  if (std::holds_alternative<Replay>(d.store_kind)) return "replay";
  return d.ring_window() != 0 ? fmt::format("ring:{}:{}", d.ring_window(), d.ring_length()) : "in_place";
}

void check_stochastic(const Description& d, std::vector<std::string>& out) {
  const auto* stochastic = std::get_if<Stochastic>(&d.rounding_kind);
  if (stochastic == nullptr) return;
  if (stochastic->philox_rounds < 1 || stochastic->philox_rounds > kMostPhiloxRounds) {
    out.push_back(
        fmt::format("rounding: got {} Philox rounds; wants 1 to {}", stochastic->philox_rounds, kMostPhiloxRounds));
  }
  if (d.state_dtype == DType::f32) {
    out.emplace_back("rounding: got stochastic with a state of fp32, which is not rounded; wants nearest");
  }
}

// What holds for an update of one token, and for that of a layer.
void check_update(const Description& d, std::vector<std::string>& out) {
  if (d.token_count < 1 || d.token_count > kMostLayerTokens) {
    out.push_back(fmt::format(
        "tokens: got {}; a layer with its state in place takes 1 to {} a step: more want a ring (store=ring:16)",
        d.token_count, kMostLayerTokens));
  }
  check_dtype("input", d.input_dtype, {DType::f32, DType::bf16, DType::f16}, out);
  check_dtype("state", d.state_dtype, {DType::f32, DType::bf16, DType::f16, DType::i8, DType::f8, DType::i16}, out);
  if (size_bytes(d.state_dtype) == 1 && d.dstate % kBytesDstateStep != 0) {
    out.push_back(fmt::format("dstate: got {}; an update with a state of {} wants a multiple of {}", d.dstate,
                              name(d.state_dtype), kBytesDstateStep));
  }
  check_stochastic(d, out);
  if (is_state_rounded(d) && (d.conv || d.norm)) {
    out.push_back(
        fmt::format("{}; a layer with its state in place wants fp32, bf16 or fp16, rounded to nearest: others want an "
                    "update alone or a ring (store=ring:16)",
                    d.has_state_scale() ? fmt::format("state: got {}", name(d.state_dtype))
                                        : std::string("rounding: got stochastic")));
  }
  if (d.is_varlen) out.emplace_back("varlen: got true; a layer with its state in place wants false");
  if (d.stores_every_token())
    out.push_back(fmt::format("store: got {}; the update of a layer wants in_place", store_text(d)));
  if (d.has_accepted) out.emplace_back("accepted: got true; the update of a layer has no accepted counts; wants false");
  if (d.has_tree)
    out.emplace_back("tree: got true; the update of a layer takes one token after the other; wants false");
}

// Those of an update of several tokens, or with snapshots, slots, accepted counts or varlen.
void check_tokens(const Description& d, std::vector<std::string>& out) {
  if (d.token_count < 1 || d.token_count > kMostTokens)
    out.push_back(fmt::format("tokens: got {}; an update takes 1 to {} a step", d.token_count, kMostTokens));
  check_dtype("input", d.input_dtype, {DType::f32, DType::bf16, DType::f16}, out);
  check_dtype("state", d.state_dtype, {DType::f32, DType::bf16, DType::f16, DType::i8, DType::f8, DType::i16}, out);
  if (size_bytes(d.state_dtype) == 1 && d.dstate % kBytesDstateStep != 0) {
    out.push_back(fmt::format("dstate: got {}; an update of tokens with a state of {} wants a multiple of {}", d.dstate,
                              name(d.state_dtype), kBytesDstateStep));
  }
  check_stochastic(d, out);
  if (d.has_destination && d.stores_every_token()) {
    out.push_back(fmt::format("destination_slots: got true; with a store of {} wants false: {}", store_text(d),
                              std::holds_alternative<Slots>(d.store_kind)
                                  ? "its launches name a slot for each token"
                                  : "snapshots go to a buffer of their own, the last state in place"));
  }
  if (d.has_tree && !std::holds_alternative<Snapshots>(d.store_kind)) {
    out.push_back(fmt::format("tree: got true with a store of {}; wants store=snapshots, which its tokens go back to",
                              store_text(d)));
  }
}

// What holds for a ring step and a replay alike, `store` being "a ring" or "a replay".
void check_rows(const Description& d, const char* store, std::vector<std::string>& out) {
  check_dtype("input", d.input_dtype, {DType::bf16, DType::f16}, out);
  const int step = d.has_state_scale() ? kRingNarrowDstateStep : kRingDstateStep;
  if (d.dstate >= kMinDstate && d.dstate <= kMaxDstate && d.dstate % kSizeStep == 0 && d.dstate % step != 0) {
    out.push_back(fmt::format("dstate: got {}; {} with a state of {} wants a multiple of {}", d.dstate, store,
                              name(d.state_dtype), step));
  }
  if (!d.decay_expr.empty() && !rebuilds_decay(d.decay_expr)) {
    out.push_back(fmt::format(
        "decay: got {}; {} wants exp(A * delta): it keeps delta and rebuilds the decay from sums of A * delta",
        in_quotes(d.decay_expr.text()), store));
  }
  check_stochastic(d, out);
  if (d.has_destination)
    out.push_back(fmt::format("destination_slots: got true; {} writes the slot it reads; wants false", store));
  if (!d.aligned_rows)
    out.push_back(fmt::format("aligned_rows: got false; {} wants rows of 16 bytes; wants true", store));
  if (d.pad_output_kind == PadOutput::as_if_zero_state)
    out.push_back(fmt::format("pad_output: got as_if_zero_state; {} wants zeros or untouched", store));
}

// Those of a replay.
void check_replay(const Description& d, std::vector<std::string>& out) {
  if (d.token_count < 1 || d.token_count > kMostRingTokens)
    out.push_back(fmt::format("tokens: got {}; a replay takes 1 to {} a step", d.token_count, kMostRingTokens));
  if (d.has_state_scale()) {
    out.push_back(
        fmt::format("state: got {}; wants fp32, bf16 or fp16: a replay writes its state every step, 8-bit states want "
                    "a ring (store=ring:16)",
                    name(d.state_dtype)));
  } else {
    check_dtype("state", d.state_dtype, {DType::f32, DType::bf16, DType::f16}, out);
  }
  check_rows(d, "a replay", out);
  if (d.is_varlen) out.emplace_back("varlen: got true; a replay takes as many tokens of each request; wants false");
  if (d.has_accepted)
    out.emplace_back("accepted: got true; a replay has its own counts, prev_num_accepted_tokens; wants false");
  if (d.has_tree) out.emplace_back("tree: got true; a replay's tokens follow one another; wants false");
  if (d.conv || d.norm)
    out.emplace_back(
        "store: got replay in a layer; wants in_place or ring:16, or launch conv1d, replay and norm one by one");
}

// Those of a ring step.
void check_ring(const Description& d, const Ring& ring, std::vector<std::string>& out) {
  const bool tokens_ok = d.token_count >= 1 && d.token_count <= kMostRingTokens;
  const int tokens = tokens_ok ? d.token_count : 1;
  if (!tokens_ok)
    out.push_back(fmt::format("tokens: got {}; a ring takes 1 to {} a step", d.token_count, kMostRingTokens));
  const bool window_ok = ring.window >= tokens && ring.window <= kMostWindow;
  if (!window_ok) {
    out.push_back(fmt::format("store: got a ring of window {}; wants {} to {}{}", ring.window, tokens, kMostWindow,
                              tokens > 1 ? ", at least the tokens of a step" : ""));
  }
  if (ring.length != 0 && window_ok && (ring.length < ring.window + tokens || ring.length > kMostRingLength)) {
    out.push_back(fmt::format("store: got a ring of length {}; wants {} (window and tokens together) to {}",
                              ring.length, ring.window + tokens, kMostRingLength));
  } else if (ring.length != 0 && (ring.length < 1 || ring.length > kMostRingLength)) {
    out.push_back(fmt::format("store: got a ring of length {}; wants 1 to {}", ring.length, kMostRingLength));
  }
  check_dtype("state", d.state_dtype, {DType::f32, DType::bf16, DType::f16, DType::i8, DType::f8}, out);
  check_rows(d, "a ring", out);
}

std::string rounding_text(const Rounding& rounding) {
  const auto* stochastic = std::get_if<Stochastic>(&rounding);
  return stochastic == nullptr ? "nearest" : fmt::format("stochastic:{}", stochastic->philox_rounds);
}

std::int64_t times(std::int64_t a, std::int64_t b) {
  std::int64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) {
    fail(ErrorKind::invalid, "batch: got {}; its bytes don't fit 64 bits", b);
  }
  return product;
}

}  // namespace

const char* name(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "fp32";
    case DType::bf16:
      return "bf16";
    case DType::f16:
      return "fp16";
    case DType::i8:
      return "int8";
    case DType::f8:
      return "fp8";
    case DType::i16:
      return "int16";
    case DType::i32:
      return "int32";
    case DType::i64:
      return "int64";
  }
  return "unknown";
}

int size_bytes(DType dtype) {
  switch (dtype) {
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::f16:
    case DType::i16:
      return 2;
    case DType::i8:
    case DType::f8:
      return 1;
    case DType::i64:
      return 8;
  }
  return 0;
}

DType parse_dtype(std::string_view text) {
  if (text == "fp32" || text == "f32" || text == "float32") return DType::f32;
  if (text == "bf16" || text == "bfloat16") return DType::bf16;
  if (text == "fp16" || text == "f16" || text == "float16") return DType::f16;
  if (text == "int8" || text == "i8") return DType::i8;
  if (text == "fp8" || text == "f8" || text == "fp8_e4m3" || text == "float8_e4m3fn") return DType::f8;
  if (text == "int16" || text == "i16") return DType::i16;
  if (text == "int32" || text == "i32") return DType::i32;
  if (text == "int64" || text == "i64") return DType::i64;
  fail(ErrorKind::invalid, "unknown dtype {}; known are fp32, bf16, fp16, int8, fp8, int16, int32, int64",
       in_quotes(text));
}

const char* name(Family family) {
  switch (family) {
    case Family::mamba2:
      return "mamba2";
  }
  return "unknown";
}

const char* name(Op op) {
  switch (op) {
    case Op::update:
      return "update";
    case Op::ring:
      return "ring";
    case Op::conv1d:
      return "conv1d";
    case Op::norm:
      return "norm";
    case Op::layer:
      return "layer";
    case Op::replay:
      return "replay";
  }
  return "unknown";
}

const char* name(ConvStore store) {
  switch (store) {
    case ConvStore::shift:
      return "shift";
    case ConvStore::circular:
      return "circular";
  }
  return "unknown";
}

const char* name(ConvKeep keep) {
  switch (keep) {
    case ConvKeep::last:
      return "last";
    case ConvKeep::snapshots:
      return "snapshots";
    case ConvKeep::slots:
      return "slots";
  }
  return "unknown";
}

const char* name(Phase phase) {
  switch (phase) {
    case Phase::no_flush:
      return "no_flush";
    case Phase::flush:
      return "flush";
  }
  return "unknown";
}

const char* name(PadOutput pad_output) {
  switch (pad_output) {
    case PadOutput::zeros:
      return "zeros";
    case PadOutput::untouched:
      return "untouched";
    case PadOutput::as_if_zero_state:
      return "as_if_zero_state";
  }
  return "unknown";
}

Op Description::op() const {
  if (nheads == 0 && conv) return Op::conv1d;
  if (nheads == 0 && norm) return Op::norm;
  if (conv || norm) return Op::layer;
  if (std::holds_alternative<Ring>(store_kind)) return Op::ring;
  return std::holds_alternative<Replay>(store_kind) ? Op::replay : Op::update;
}

int Description::conv_channels() const {
  if (!conv) return 0;
  return conv->channels != 0 ? conv->channels : nheads * head_dim + 2 * ngroups * dstate;
}
int Description::conv_state_len() const {
  if (!conv) return 0;
  return conv->state_len != 0 ? conv->state_len : conv->width - 1;
}
int Description::conv_snapshot_len() const {
  if (!conv) return 0;
  return conv_state_len() == conv->width ? conv->width : conv->width - 1;
}
int Description::norm_channels() const {
  if (!norm) return 0;
  return norm->channels != 0 ? norm->channels : nheads * head_dim;
}
int Description::norm_group_size() const {
  if (!norm) return 0;
  return norm->group_size != 0 ? norm->group_size : norm_channels();
}

int Description::ring_window() const {
  const auto* ring = std::get_if<Ring>(&store_kind);
  return ring == nullptr ? 0 : ring->window;
}
int Description::ring_length() const {
  const auto* ring = std::get_if<Ring>(&store_kind);
  if (ring == nullptr) return 0;
  // In 64 bits: an invalid description may hold any numbers.
  return ring->length != 0 ? ring->length : static_cast<int>(std::int64_t{ring->window} + token_count);
}

bool Description::has_z() const { return gate_expr.uses(Leaf::z); }
bool Description::has_D() const { return skip_expr.uses(Leaf::D); }
bool Description::has_dt_bias() const { return delta_expr.uses(Leaf::dt_bias); }

std::vector<std::string> Description::problems() const {
  std::vector<std::string> out;
  if (nheads == 0 && (conv || norm)) {
    check_alone(*this, out);
    check_parts(*this, out);
    return out;
  }
  const bool heads_ok = nheads >= 1 && nheads <= kMaxHeads;
  if (!heads_ok) out.push_back(fmt::format("nheads: got {}; wants 1 to {}", nheads, kMaxHeads));
  if (head_dim < kSizeStep || head_dim > kMaxHeadDim || head_dim % kSizeStep != 0) {
    out.push_back(fmt::format("head_dim: got {}; wants a multiple of {} from {} to {}", head_dim, kSizeStep, kSizeStep,
                              kMaxHeadDim));
  }
  if (dstate < kMinDstate || dstate > kMaxDstate || dstate % kSizeStep != 0) {
    out.push_back(
        fmt::format("dstate: got {}; wants a multiple of {} from {} to {}", dstate, kSizeStep, kMinDstate, kMaxDstate));
  }
  if (ngroups < 1) {
    out.push_back(fmt::format("ngroups: got {}; wants 1 or more", ngroups));
  } else if (heads_ok && nheads % ngroups != 0) {
    out.push_back(fmt::format("ngroups: got {}; wants a divisor of nheads ({})", ngroups, nheads));
  }
  if (const auto* ring = std::get_if<Ring>(&store_kind))
    check_ring(*this, *ring, out);
  else if (std::holds_alternative<Replay>(store_kind))
    check_replay(*this, out);
  else if (has_token_kernel(*this))
    check_tokens(*this, out);
  else
    check_update(*this, out);
  check_dtype("dt", dt_dtype, {DType::f32, DType::bf16}, out);
  check_dtype("weights", weight_dtype, {DType::f32, DType::bf16}, out);
  if (delta_expr.empty()) {
    out.push_back("delta: got nothing; wants an expression over dt, dt_bias");
  } else {
    check_expression("delta", delta_expr, {Leaf::dt, Leaf::dt_bias}, out);
  }
  if (decay_expr.empty()) {
    out.push_back("decay: got nothing; wants an expression over A, dt, delta");
  } else {
    check_expression("decay", decay_expr, {Leaf::A, Leaf::dt, Leaf::delta}, out);
  }
  check_expression("skip", skip_expr, {Leaf::D, Leaf::x}, out);
  check_expression("gate", gate_expr, {Leaf::z}, out);
  if (!gate_expr.empty() && !has_z()) {
    out.push_back(fmt::format("gate: got {}; wants an expression that reads z, or none", in_quotes(gate_expr.text())));
  }
  if ((conv || norm) && out.empty()) {
    check_parts(*this, out);
    if (norm && has_z() && !norm->gate_expr.empty())
      out.emplace_back("norm.gate: got a gate, as gate did; a layer wants it in one of the two places");
    if (!aligned_rows) out.emplace_back("aligned_rows: got false; a layer wants rows of 16 bytes; wants true");
  }
  return out;
}

void Description::validate() const {
  const std::vector<std::string> wrong = problems();
  if (!wrong.empty()) fail(ErrorKind::invalid, "{}", fmt::join(wrong, "\n"));
}

std::string Description::summary() const {
  if (op() == Op::conv1d || op() == Op::norm) {
    std::string out = fmt::format("{}, input {}, weights {}", parts_text(*this), name(input_dtype), name(weight_dtype));
    if (conv) out += fmt::format(", state {}", name(state_dtype));
    if (token_count != 1) out += fmt::format(", {} tokens", token_count);
    if (!aligned_rows) out += ", unaligned rows";
    if (pad_output_kind != PadOutput::zeros) out += fmt::format(", pad output {}", name(pad_output_kind));
    return out;
  }
  std::string out = fmt::format(
      "{} {}, {} heads x {} x {}, {} group{}, input {}, dt {}, weights {}, state {}, delta {}, decay {}", name(family),
      name(op()), nheads, head_dim, dstate, ngroups, ngroups == 1 ? "" : "s", name(input_dtype), name(dt_dtype),
      name(weight_dtype), name(state_dtype), delta_expr.text(), decay_expr.text());
  if (token_count != 1) out += fmt::format(", {} tokens", token_count);
  if (!skip_expr.empty()) out += ", skip " + skip_expr.text();
  if (!gate_expr.empty()) out += ", gate " + gate_expr.text();
  if (ring_window() != 0) {
    out += fmt::format(", ring of window {} and length {}", ring_window(), ring_length());
  } else if (stores_every_token()) {
    out += std::holds_alternative<Slots>(store_kind) ? ", to a slot after each token" : ", snapshots after each token";
  } else if (op() == Op::replay) {
    out += ", two steps back";
  } else {
    out += has_destination ? ", in place or to destination slots" : ", in place";
  }
  if (const auto* stochastic = std::get_if<Stochastic>(&rounding_kind)) {
    out += fmt::format(", stochastic rounding with {} Philox rounds", stochastic->philox_rounds);
  }
  if (is_varlen) out += ", varlen";
  if (has_accepted) out += ", accepted counts";
  if (has_tree) out += ", tree";
  if (!aligned_rows) out += ", unaligned rows";
  if (pad_output_kind != PadOutput::zeros) out += fmt::format(", pad output {}", name(pad_output_kind));
  if (op() == Op::layer) out += ", " + parts_text(*this);
  return out;
}

std::string Description::kernel_digest() const {
  if (op() == Op::conv1d || op() == Op::norm) return digest16(alone_shape(*this).dump());
  const bool ring = ring_window() != 0 || op() == Op::replay;
  nlohmann::ordered_json shape = {
      {"op", name(op())},
      {"family", name(family)},
      {"heads_per_group", heads_per_group()},
      {"head_dim", head_dim},
      {"dstate", dstate},
      {"tokens", token_count},
      {"input", name(input_dtype)},
      {"dt", name(dt_dtype)},
      {"weights", name(weight_dtype)},
      {"state", name(state_dtype)},
      {"delta", delta_expr.text()},
      // One text for the ways to write it: the kernel of a ring or a replay holds no decay.
      {"decay", ring && rebuilds_decay(decay_expr) ? "exp(A * delta)" : decay_expr.text()},
      {"skip", skip_expr.text()},
      {"gate", gate_expr.text()},
      {"rounding", rounding_text(rounding_kind)},
      {"store", store_text(*this)},
      {"destination_slots", has_destination},
      {"aligned_rows", aligned_rows},
      {"pad_output", name(pad_output_kind)},
  };
  if (is_varlen) shape["varlen"] = true;
  if (has_accepted) shape["accepted"] = true;
  if (has_tree) shape["tree"] = true;
  if (conv) shape["conv"] = conv_shape(*this);
  if (norm) shape["norm"] = norm_shape(*this);
  return digest16(shape.dump());
}

std::string Description::cost_digest() const {
  if (op() == Op::conv1d || op() == Op::norm) {
    nlohmann::ordered_json shape = alone_shape(*this);
    shape.erase("weights");
    if (conv) {
      shape.erase("pad_output");
      shape["conv"]["activation"] = !conv->activation_expr.empty();
    }
    if (norm) {
      shape["norm"].erase("eps");
      shape["norm"]["gate"] = !norm->gate_expr.empty();
    }
    return digest16(shape.dump());
  }
  nlohmann::ordered_json shape = {
      {"op", name(op())},
      {"family", name(family)},
      {"heads_per_group", heads_per_group()},
      {"head_dim", head_dim},
      {"dstate", dstate},
      {"tokens", token_count},
      {"input", name(input_dtype)},
      {"state", name(state_dtype)},
      {"gate", !gate_expr.empty()},
      {"store", store_text(*this)},
      {"destination_slots", has_destination},
  };
  if (std::holds_alternative<Stochastic>(rounding_kind)) shape["rounding"] = "stochastic";
  if (is_varlen) shape["varlen"] = true;
  if (has_tree) shape["tree"] = true;
  if (conv) shape["conv"] = {{"width", conv->width}, {"state_len", conv_state_len()}};
  if (norm) shape["norm"] = {{"group_size", norm_group_size()}, {"gate", !norm->gate_expr.empty()}};
  return digest16(shape.dump());
}

Description conv1d(Conv conv) {
  Description out;
  out.weight_dtype = out.state_dtype = DType::bf16;
  return out.with_conv(std::move(conv));
}

Description gated_norm(Norm norm) {
  Description out;
  out.weight_dtype = out.state_dtype = DType::bf16;
  return out.with_norm(std::move(norm));
}

std::int64_t work_items(const Description& d, std::int64_t batch) {
  std::int64_t each = d.nheads;
  if (d.op() == Op::conv1d) each = (d.conv_channels() + kConvTile - 1) / kConvTile;
  if (d.op() == Op::norm) each = std::int64_t{d.token_count} * (d.norm_channels() / std::max(1, d.norm_group_size()));
  std::int64_t items = 0;
  if (__builtin_mul_overflow(batch, each, &items)) return std::numeric_limits<std::int64_t>::max();
  return std::max<std::int64_t>(items, 1);
}

Description mamba2(const Sizes& sizes) {
  Description out;
  out.nheads = sizes.nheads;
  out.head_dim = sizes.head_dim;
  out.dstate = sizes.dstate;
  out.ngroups = sizes.ngroups;
  out.delta_expr = softplus(Expr(Leaf::dt) + Expr(Leaf::dt_bias));
  out.decay_expr = exp(Expr(Leaf::A) * Expr(Leaf::delta));
  out.skip_expr = Expr(Leaf::D) * Expr(Leaf::x);
  return out;
}

Bytes bytes_moved(const Description& description, int batch, Phase phase, int ring_count) {
  const Description& d = description;
  if (batch < 0) fail(ErrorKind::invalid, "batch: got {}; wants 0 or more", batch);
  d.validate();
  const bool ring = d.ring_window() != 0, flush = phase == Phase::flush, replay = d.op() == Op::replay;
  if (!ring && flush)
    fail(ErrorKind::invalid, "phase: got flush; {} has no_flush only", replay ? "a replay" : "an update in place");
  const int window = d.ring_window();
  if (ring_count < -1 || ring_count > window)
    fail(ErrorKind::invalid, "ring_count: got {}; wants 0 to {}, or -1 for what the phase has", ring_count, window);
  Bytes out;
  if (batch == 0) return out;  // nothing is launched

  if (d.op() == Op::conv1d || d.op() == Op::norm) {
    const Bytes one = alone_bytes(d);
    out.read = times(one.read, batch);
    out.written_back = times(one.written_back, batch);
    out.written_new = times(one.written_new, batch);
    const std::int64_t taps = d.conv ? d.conv->width + (d.conv->has_bias ? 1 : 0) : d.norm->has_bias ? 2 : 1;
    const std::int64_t channels = d.conv ? d.conv_channels() : d.norm_channels();
    out.warm = taps * channels * size_bytes(d.weight_dtype);
    if (d.conv) out.warm += std::int64_t{batch} * size_bytes(DType::i64);
    return out;
  }

  const std::int64_t tokens = d.token_count;
  const std::int64_t rows = std::int64_t{d.nheads} * d.head_dim;
  const std::int64_t input_bytes = size_bytes(d.input_dtype);
  const std::int64_t state =
      rows * d.dstate * size_bytes(d.state_dtype) + (d.has_state_scale() ? rows * size_bytes(DType::f32) : 0);
  const std::int64_t x = rows * input_bytes;                                // a token; z and out are as large
  const std::int64_t B = std::int64_t{d.ngroups} * d.dstate * input_bytes;  // C too
  const std::int64_t dt = std::int64_t{d.nheads} * size_bytes(d.dt_dtype);
  // What is kept of a token: x, B and delta; of a replay the sum of A * delta, too.
  std::int64_t ring_row = ring || replay ? x + B + std::int64_t{d.nheads} * size_bytes(DType::f32) : 0;
  if (replay) ring_row += std::int64_t{d.nheads} * size_bytes(DType::f32);
  const std::int64_t count = replay            ? tokens
                             : !ring           ? 0
                             : ring_count >= 0 ? ring_count
                             : flush           ? window
                                               : window - d.token_count;
  const bool every_token = d.stores_every_token();
  const bool in_place = ring ? flush : !d.has_destination && !every_token;
  out.read = times(state + count * ring_row + tokens * (x + 2 * B + dt + (d.has_z() ? x : 0)), batch);
  out.written_back = in_place ? times(state, batch) : 0;
  out.written_new = times(tokens * (x + ring_row) + (every_token         ? tokens * state
                                                     : d.has_destination ? state
                                                                         : 0),
                          batch);
  if (replay) {  // x of the last step is written over
    out.written_back += times(tokens * x, batch);
    out.written_new -= times(tokens * x, batch);
  }

  const std::int64_t weight_tensors = (d.has_D() ? 1 : 0) + (d.has_dt_bias() ? 1 : 0);
  if (d.conv) {
    const Bytes window = conv_state_bytes(d, d.input_dtype);
    out.read += times(window.read, batch);
    out.written_back += times(window.written_back, batch);
    out.written_new += times(window.written_new, batch);
  }
  if (d.norm && !d.norm->gate_expr.empty()) out.read += times(tokens * x, batch);  // z

  out.warm = std::int64_t{d.nheads} * (size_bytes(DType::f32) + weight_tensors * size_bytes(d.weight_dtype));
  const std::int64_t indices = std::holds_alternative<Slots>(d.store_kind) ? 1 + tokens : d.has_destination ? 2 : 1;
  out.warm += std::int64_t{batch} * size_bytes(DType::i64) * indices;
  if (ring || replay) out.warm += std::int64_t{batch} * 2 * size_bytes(DType::i32);  // the cursors
  if (d.is_varlen) out.warm += (std::int64_t{batch} + 1) * size_bytes(DType::i32);
  if (std::holds_alternative<Stochastic>(d.rounding_kind)) out.warm += size_bytes(DType::i64);
  if (d.conv) out.warm += std::int64_t{d.conv_channels()} * (d.conv->width + (d.conv->has_bias ? 1 : 0)) * input_bytes;
  if (d.norm) out.warm += std::int64_t{d.norm_channels()} * (d.norm->has_bias ? 2 : 1) * input_bytes;
  return out;
}

}  // namespace ssmjit
