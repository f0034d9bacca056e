#include "codegen/parts.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include <fmt/core.h>
#include <fmt/ranges.h>

#include "codegen/expression_node.h"
#include "codegen/fail.h"

namespace ssmjit {
namespace {

constexpr int kSizeStep = 8;
constexpr int kMostConvTokens = 64;
constexpr int kMostWidth = 4;
constexpr int kMostConvState = 64;
constexpr int kMostChannels = 1 << 20;
constexpr int kMostGroupBytes = 1 << 16;  // of one row, in the registers of a block

bool is_one_of(DType dtype, std::initializer_list<DType> allowed) {
  for (DType each : allowed) {
    if (dtype == each) return true;
  }
  return false;
}

// "fp32, bf16 or fp16".
std::string listed(std::initializer_list<DType> dtypes) {
  std::string text;
  std::size_t i = 0;
  for (DType each : dtypes)
    text += fmt::format("{}{}", i == 0 ? "" : i + 1 == dtypes.size() ? " or " : ", ", name(each)), ++i;
  return text;
}

bool fits_fp32(double value) {
  if (value == 0) return true;
  const double size = std::fabs(value);
  return size <= std::numeric_limits<float>::max() && size >= std::numeric_limits<float>::min();
}

// Those of a convolution. In a layer, channels and dtypes are those of the layer.
void check_conv(const Description& d, const Conv& conv, std::vector<std::string>& out) {
  if (conv.channels < 0 || conv.channels > kMostChannels) {
    out.push_back(fmt::format("conv.channels: got {}; wants 1 to {}", conv.channels, kMostChannels));
  } else if (d.nheads != 0 && conv.channels != 0) {
    const std::int64_t wanted = std::int64_t{d.nheads} * d.head_dim + 2 * std::int64_t{d.ngroups} * d.dstate;
    if (conv.channels != wanted) {
      out.push_back(fmt::format("conv.channels: got {}; a layer wants nheads * head_dim + 2 * ngroups * dstate ({})",
                                conv.channels, wanted));
    }
  } else if (d.nheads == 0 && conv.channels == 0) {
    out.push_back(fmt::format("conv.channels: got 0; wants 1 to {}", kMostChannels));
  } else if (d.nheads == 0 && d.aligned_rows && conv.channels % kSizeStep != 0) {
    out.push_back(fmt::format("conv.channels: got {}; aligned rows want a multiple of {} (else aligned_rows=false)",
                              conv.channels, kSizeStep));
  }
  const bool width_ok = conv.width >= 2 && conv.width <= kMostWidth;
  if (!width_ok) out.push_back(fmt::format("conv.width: got {}; wants 2 to {}", conv.width, kMostWidth));
  if (width_ok && conv.state_len != 0 && (conv.state_len < conv.width - 1 || conv.state_len > kMostConvState)) {
    out.push_back(fmt::format("conv.state_len: got {}; wants {} (width - 1) to {}", conv.state_len, conv.width - 1,
                              kMostConvState));
  }
  check_expression("conv.activation", conv.activation_expr, {Leaf::x}, out);
  if (conv.has_accepted && width_ok && d.conv_state_len() < conv.width - 1 + d.token_count - 1) {
    out.push_back(
        fmt::format("conv.state_len: got {}; with accepted, which reads from any of {} tokens on, wants at least {}",
                    d.conv_state_len(), d.token_count, conv.width - 1 + d.token_count - 1));
  }
  if (conv.has_accepted && conv.keep == ConvKeep::slots) {
    out.emplace_back("conv.accepted: got true with keep=slots, where the input slot says it; wants false");
  }
  if (conv.store == ConvStore::circular && (conv.keep != ConvKeep::last || conv.has_accepted)) {
    out.emplace_back("conv.store: got circular; with snapshots, slots or accepted wants shift");
  }
}

void check_norm(const Description& d, const Norm& norm, std::vector<std::string>& out) {
  if (norm.channels < 0 || norm.channels > kMostChannels) {
    out.push_back(fmt::format("norm.channels: got {}; wants 1 to {}", norm.channels, kMostChannels));
  } else if (d.nheads == 0 && norm.channels == 0) {
    out.push_back(fmt::format("norm.channels: got 0; wants 1 to {}", kMostChannels));
  } else if (d.nheads != 0 && norm.channels != 0 && norm.channels != std::int64_t{d.nheads} * d.head_dim) {
    out.push_back(fmt::format("norm.channels: got {}; a layer wants nheads * head_dim ({})", norm.channels,
                              std::int64_t{d.nheads} * d.head_dim));
  } else if (norm.group_size < 0 || (norm.group_size != 0 && d.norm_channels() % norm.group_size != 0)) {
    out.push_back(fmt::format("norm.group_size: got {}; wants a divisor of the channels ({})", norm.group_size,
                              d.norm_channels()));
  } else if (d.nheads == 0 && d.aligned_rows && d.norm_group_size() % kSizeStep != 0) {
    out.push_back(fmt::format("norm.group_size: got {}; aligned rows want a multiple of {} (else aligned_rows=false)",
                              d.norm_group_size(), kSizeStep));
  }
  if (d.nheads == 0 && std::int64_t{d.norm_group_size()} * size_bytes(d.input_dtype) > kMostGroupBytes) {
    out.push_back(fmt::format("norm.group_size: got {}; wants {} at most ({} bytes of {})", d.norm_group_size(),
                              kMostGroupBytes / size_bytes(d.input_dtype), kMostGroupBytes, name(d.input_dtype)));
  }
  if (!(norm.eps >= 0) || !fits_fp32(norm.eps))
    out.push_back(fmt::format("norm.eps: got {}; wants 0 or a positive number that fits fp32", norm.eps));
  check_expression("norm.gate", norm.gate_expr, {Leaf::z}, out);
  if (!norm.gate_expr.empty() && !norm.gate_expr.uses(Leaf::z)) {
    out.push_back(
        fmt::format("norm.gate: got {}; wants an expression that reads z, or none", in_quotes(norm.gate_expr.text())));
  }
  if (norm.before_gate && norm.gate_expr.empty())
    out.emplace_back("norm.before_gate: got true; without a gate wants false");
}

}  // namespace

void check_dtype(const char* field, DType dtype, std::initializer_list<DType> allowed, std::vector<std::string>& out) {
  if (!is_one_of(dtype, allowed))
    out.push_back(fmt::format("{}: got {}; wants {}", field, name(dtype), listed(allowed)));
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

void check_parts(const Description& d, std::vector<std::string>& out) {
  if (d.conv) check_conv(d, *d.conv, out);
  if (d.norm) check_norm(d, *d.norm, out);
}

void check_alone(const Description& d, std::vector<std::string>& out) {
  if (d.conv && d.norm) out.emplace_back("nheads: got 0; conv and norm together are a layer, which wants heads");
  if (d.token_count < 1 || d.token_count > kMostConvTokens)
    out.push_back(fmt::format("tokens: got {}; wants 1 to {}", d.token_count, kMostConvTokens));
  check_dtype("input", d.input_dtype, {DType::f32, DType::bf16, DType::f16}, out);
  check_dtype("weights", d.weight_dtype, {DType::f32, DType::bf16, DType::f16}, out);
  if (d.conv) check_dtype("state", d.state_dtype, {DType::f32, DType::bf16, DType::f16}, out);
  if (d.head_dim != 0) out.push_back(fmt::format("head_dim: got {}; without heads wants 0", d.head_dim));
  if (d.dstate != 0) out.push_back(fmt::format("dstate: got {}; without heads wants 0", d.dstate));
  for (const auto& [field, given] : {std::pair("delta", !d.delta_expr.empty()),
                                     {"decay", !d.decay_expr.empty()},
                                     {"skip", !d.skip_expr.empty()},
                                     {"gate", !d.gate_expr.empty()}}) {
    if (given) out.push_back(fmt::format("{}: got an expression; without heads wants none", field));
  }
  if (!std::holds_alternative<InPlace>(d.store_kind))
    out.emplace_back("store: got a ring; without heads wants in_place");
  if (!std::holds_alternative<Nearest>(d.rounding_kind))
    out.emplace_back("rounding: got stochastic; without heads wants nearest");
  if (d.has_destination) out.emplace_back("destination_slots: got true; without heads wants false");
  if (d.is_varlen) out.emplace_back("varlen: got true; without heads wants false");
  if (d.pad_output_kind == PadOutput::as_if_zero_state)
    out.emplace_back("pad_output: got as_if_zero_state; without heads wants zeros or untouched");
}

nlohmann::ordered_json conv_shape(const Description& d) {
  const Conv& c = *d.conv;
  return {{"width", c.width},
          {"state_len", d.conv_state_len()},
          {"bias", c.has_bias},
          {"activation", c.activation_expr.text()},
          {"channels_last", c.channels_last},
          {"store", name(c.store)},
          {"keep", name(c.keep)},
          {"accepted", c.has_accepted}};
}

nlohmann::ordered_json norm_shape(const Description& d) {
  const Norm& n = *d.norm;
  return {{"group_size", d.norm_group_size()},
          {"eps", n.eps},
          {"gate", n.gate_expr.text()},
          {"before_gate", n.before_gate},
          {"bias", n.has_bias}};
}

nlohmann::ordered_json alone_shape(const Description& d) {
  nlohmann::ordered_json shape = {{"op", name(d.op())},
                                  {"tokens", d.token_count},
                                  {"input", name(d.input_dtype)},
                                  {"weights", name(d.weight_dtype)}};
  if (d.conv) {
    shape["state"] = name(d.state_dtype);
    shape["conv"] = conv_shape(d);
    shape["pad_output"] = name(d.pad_output_kind);
  }
  if (d.norm) shape["norm"] = norm_shape(d);
  shape["aligned_rows"] = d.aligned_rows;
  return shape;
}

std::string parts_text(const Description& d) {
  std::string text;
  if (d.conv) {
    text += fmt::format("conv of {} channels, width {}, state_len {}{}{}", d.conv_channels(), d.conv->width,
                        d.conv_state_len(), d.conv->has_bias ? ", bias" : "",
                        d.conv->channels_last ? ", channels last" : "");
    if (!d.conv->activation_expr.empty()) text += fmt::format(", activation {}", d.conv->activation_expr.text());
    if (d.conv->store != ConvStore::shift) text += fmt::format(", {}", name(d.conv->store));
    if (d.conv->keep != ConvKeep::last) text += fmt::format(", {}", name(d.conv->keep));
    if (d.conv->has_accepted) text += ", accepted counts";
  }
  if (d.norm) {
    text += fmt::format("{}norm of {} channels in groups of {}, eps {}{}", d.conv ? ", " : "", d.norm_channels(),
                        d.norm_group_size(), d.norm->eps, d.norm->has_bias ? ", bias" : "");
    if (!d.norm->gate_expr.empty())
      text += fmt::format(", gate {} {} the norm", d.norm->gate_expr.text(), d.norm->before_gate ? "after" : "before");
  }
  return text;
}

// Of a convolution's windows, a request: what is read, what of it is written back, what is written elsewhere.
Bytes conv_state_bytes(const Description& d, DType dtype) {
  const Conv& conv = *d.conv;
  const std::int64_t entry = std::int64_t{d.conv_channels()} * size_bytes(dtype);
  const std::int64_t length = d.conv_state_len(), tokens = d.token_count;
  Bytes out;
  // A shift moves the entries that stay; without one only the taps are read.
  const bool shifts = conv.store == ConvStore::shift;
  out.read = entry * std::max<std::int64_t>(conv.width - 1, shifts ? length - tokens : 0);
  if (conv.keep == ConvKeep::slots) {
    out.written_new = entry * length * tokens;
    return out;
  }
  const std::int64_t written = entry * (shifts ? length : std::min(length, tokens));
  out.written_back = std::min(out.read, written);
  out.written_new = written - out.written_back;
  if (conv.keep == ConvKeep::snapshots) out.written_new += entry * d.conv_snapshot_len() * tokens;
  return out;
}

// Of a convolution or a norm alone, a request.
Bytes alone_bytes(const Description& d) {
  const std::int64_t channels = d.conv ? d.conv_channels() : d.norm_channels();
  const std::int64_t row = channels * d.token_count * size_bytes(d.input_dtype);
  Bytes out;
  if (d.conv) out = conv_state_bytes(d, d.state_dtype);
  out.read += row * (d.norm && !d.norm->gate_expr.empty() ? 2 : 1);
  out.written_new += row;
  return out;
}

}  // namespace ssmjit
