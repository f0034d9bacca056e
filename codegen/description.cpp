#include <ssmjit/description.h>

#include <cmath>
#include <initializer_list>
#include <limits>

#include <fmt/core.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "codegen/digest.h"
#include "codegen/expression_node.h"
#include "codegen/fail.h"

namespace ssmjit {
namespace {

constexpr int kMaxHeads = 65536;
constexpr int kMaxHeadDim = 256;
constexpr int kMinDstate = 16;
constexpr int kMaxDstate = 256;
constexpr int kSizeStep = 8;

bool is_one_of(DType dtype, std::initializer_list<DType> allowed) {
  for (DType each : allowed) {
    if (dtype == each) return true;
  }
  return false;
}

bool fits_fp32(double value) {
  if (value == 0) return true;
  const double size = std::fabs(value);
  return size <= std::numeric_limits<float>::max() && size >= std::numeric_limits<float>::min();
}

void check_expression(const char* field, const Expr& expr, std::initializer_list<Leaf> allowed,
                      std::vector<std::string>& out) {
  std::vector<const char*> names;
  for (Leaf leaf : allowed) names.push_back(name(leaf));
  std::vector<const char*> strangers;
  for (int i = 0; i < kLeafCount; ++i) {
    bool known = false;
    for (Leaf leaf : allowed) known |= static_cast<int>(leaf) == i;
    if (!known && expr.uses(static_cast<Leaf>(i))) strangers.push_back(name(static_cast<Leaf>(i)));
  }
  if (!strangers.empty()) {
    out.push_back(fmt::format("{}: got {}, which reads {}; wants an expression over {} only", field,
                              in_quotes(expr.text()), fmt::join(strangers, ", "), fmt::join(names, ", ")));
  }
  for (double value : constants_of(expr)) {
    if (fits_fp32(value)) continue;
    out.push_back(fmt::format("{}: got the constant {}; wants finite numbers that fit fp32", field, value));
    return;
  }
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
      return 2;
    case DType::i64:
      return 8;
  }
  return 0;
}

DType parse_dtype(std::string_view text) {
  if (text == "fp32" || text == "f32" || text == "float32") return DType::f32;
  if (text == "bf16" || text == "bfloat16") return DType::bf16;
  if (text == "fp16" || text == "f16" || text == "float16") return DType::f16;
  if (text == "int32" || text == "i32") return DType::i32;
  if (text == "int64" || text == "i64") return DType::i64;
  fail(ErrorKind::invalid, "unknown dtype {}; known are fp32, bf16, fp16, int32, int64", in_quotes(text));
}

const char* name(Family family) {
  switch (family) {
    case Family::mamba2:
      return "mamba2";
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

bool Description::has_z() const { return gate_expr.uses(Leaf::z); }
bool Description::has_D() const { return skip_expr.uses(Leaf::D); }
bool Description::has_dt_bias() const { return delta_expr.uses(Leaf::dt_bias); }

std::vector<std::string> Description::problems() const {
  std::vector<std::string> out;
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
  if (token_count != 1) {
    out.push_back(fmt::format("tokens: got {}; only 1 token a step is available in this version", token_count));
  }
  if (!is_one_of(input_dtype, {DType::f32, DType::bf16, DType::f16})) {
    out.push_back(fmt::format("input: got {}; wants fp32, bf16 or fp16", name(input_dtype)));
  }
  if (!is_one_of(dt_dtype, {DType::f32, DType::bf16})) {
    out.push_back(fmt::format("dt: got {}; wants fp32 or bf16", name(dt_dtype)));
  }
  if (!is_one_of(weight_dtype, {DType::f32, DType::bf16})) {
    out.push_back(fmt::format("weights: got {}; wants fp32 or bf16", name(weight_dtype)));
  }
  if (!is_one_of(state_dtype, {DType::f32, DType::bf16, DType::f16})) {
    out.push_back(fmt::format("state: got {}; wants fp32, bf16 or fp16", name(state_dtype)));
  }
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
  return out;
}

void Description::validate() const {
  const std::vector<std::string> wrong = problems();
  if (!wrong.empty()) fail(ErrorKind::invalid, "{}", fmt::join(wrong, "\n"));
}

std::string Description::summary() const {
  std::string out = fmt::format(
      "{} update, {} heads x {} x {}, {} group{}, input {}, dt {}, weights {}, state {}, delta {}, decay {}",
      name(family), nheads, head_dim, dstate, ngroups, ngroups == 1 ? "" : "s", name(input_dtype), name(dt_dtype),
      name(weight_dtype), name(state_dtype), delta_expr.text(), decay_expr.text());
  if (token_count != 1) out += fmt::format(", {} tokens", token_count);
  if (!skip_expr.empty()) out += ", skip " + skip_expr.text();
  if (!gate_expr.empty()) out += ", gate " + gate_expr.text();
  out += has_destination ? ", in place or to destination slots" : ", in place";
  if (!aligned_rows) out += ", unaligned rows";
  if (pad_output_kind != PadOutput::zeros) out += fmt::format(", pad output {}", name(pad_output_kind));
  return out;
}

std::string Description::kernel_digest() const {
  const nlohmann::ordered_json shape = {
      {"op", "update"},
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
      {"decay", decay_expr.text()},
      {"skip", skip_expr.text()},
      {"gate", gate_expr.text()},
      {"rounding", "nearest"},
      {"store", "in_place"},
      {"destination_slots", has_destination},
      {"aligned_rows", aligned_rows},
      {"pad_output", name(pad_output_kind)},
  };
  return digest16(shape.dump());
}

std::string Description::cost_digest() const {
  const nlohmann::ordered_json shape = {
      {"op", "update"},
      {"family", name(family)},
      {"heads_per_group", heads_per_group()},
      {"head_dim", head_dim},
      {"dstate", dstate},
      {"tokens", token_count},
      {"input", name(input_dtype)},
      {"state", name(state_dtype)},
      {"gate", !gate_expr.empty()},
      {"store", "in_place"},
      {"destination_slots", has_destination},
  };
  return digest16(shape.dump());
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

Bytes bytes_moved(const Description& description, int batch) {
  const Description& d = description;
  if (batch < 0) fail(ErrorKind::invalid, "batch: got {}; wants 0 or more", batch);
  d.validate();
  Bytes out;
  if (batch == 0) return out;  // nothing is launched

  const std::int64_t rows = std::int64_t{d.nheads} * d.head_dim;
  const std::int64_t input_bytes = size_bytes(d.input_dtype);
  const std::int64_t state = rows * d.dstate * size_bytes(d.state_dtype);
  const std::int64_t x = rows * input_bytes;                                // z and out are as large
  const std::int64_t B = std::int64_t{d.ngroups} * d.dstate * input_bytes;  // C too
  const std::int64_t dt = std::int64_t{d.nheads} * size_bytes(d.dt_dtype);
  out.read = times(state + x + 2 * B + dt + (d.has_z() ? x : 0), batch);
  out.written_back = d.has_destination ? 0 : times(state, batch);
  out.written_new = times(d.has_destination ? x + state : x, batch);

  const std::int64_t weight_tensors = (d.has_D() ? 1 : 0) + (d.has_dt_bias() ? 1 : 0);
  out.warm = std::int64_t{d.nheads} * (size_bytes(DType::f32) + weight_tensors * size_bytes(d.weight_dtype));
  out.warm += std::int64_t{batch} * size_bytes(DType::i64) * (d.has_destination ? 2 : 1);
  return out;
}

}  // namespace ssmjit
