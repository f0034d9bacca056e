#include <ssmjit/source.h>

#include <algorithm>
#include <set>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "codegen/banner.h"
#include "codegen/bench_source.h"
#include "codegen/digest.h"
#include "codegen/embedded_templates.h"
#include "codegen/fail.h"
#include "codegen/pieces.h"
#include "codegen/rounded.h"
#include "codegen/slots_source.h"
#include "codegen/update_form.h"

namespace ssmjit {
namespace {

constexpr std::string_view kVersion = SSMJIT_VERSION;
constexpr std::string_view kDescriptionLine = "// description: ";
constexpr std::string_view kPlanLine = "// plan: ";

const std::vector<std::string> kOptions{"-std=c++17"};

const char* cuda_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "float";
    case DType::bf16:
      return "bf16";
    case DType::f16:
      return "f16";
    case DType::i8:
      return "i8";
    case DType::f8:
      return "e4m3";
    case DType::i16:
      return "i16";
    default:
      break;
  }
  fail(ErrorKind::internal, "no device type for {}", name(dtype));
}

// The pieces in the order in which they include each other, each once, without their include lines.
class Pieces {
 public:
  explicit Pieces(std::string& out) : out_(out) {}

  void add(const std::string& file) {
    if (!seen_.insert(file).second) return;
    const std::string folder = file.find('/') != std::string::npos ? file.substr(0, file.rfind('/') + 1) : "";
    std::string body;
    for (std::string_view text = template_file(file); !text.empty();) {
      const std::size_t end = text.find('\n');
      const std::string_view line = text.substr(0, end);
      text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
      if (line == "#pragma once") continue;
      if (line.starts_with("#include \"")) {
        add(folder + std::string(line.substr(10, line.rfind('"') - 10)));
        continue;
      }
      body += line;
      body += '\n';
    }
    while (body.starts_with('\n')) body.erase(0, 1);
    // Device operations have another body where the CPU runs the source; all else is the same for both.
    const bool device = file.starts_with("device/");
    out_ += fmt::format("\n// ---- {} ----\n\n", file);
    if (device) out_ += "#ifndef SSMJIT_CPU\n";
    out_ += body;
    if (device) out_ += "#endif\n";
  }

 private:
  std::string& out_;
  std::set<std::string> seen_;
};

// The template of an op, by the names in it.
struct Template {
  const char* file;
  const char* function;
  const char* args;
};
Template template_of(const PlanPart& part) {
  const Description& d = part.description;
  if (part.is_precompute) return {"replay.cuh", "replay_precompute", "RingArgs"};
  switch (d.op()) {
    case Op::update:
      if (has_token_kernel(d)) return {"update_tokens.cuh", "update_tokens", "UpdateTokensArgs"};
      if (is_update_rounded(d)) return {"update_rounded.cuh", "update_rounded", "UpdateRoundedArgs"};
      return {"update.cuh", "update", "UpdateArgs"};
    case Op::ring:
      return {"ring.cuh", "ring_step", "RingArgs"};
    case Op::replay:
      return {"replay.cuh", "replay_step", "RingArgs"};
    case Op::conv1d:
      return {"conv1d.cuh", "conv1d", "Conv1dArgs"};
    case Op::layer:
      if (d.ring_window() != 0) return {"ring_layer.cuh", "ring_layer", "RingLayerArgs"};
      if (is_layer_of_tokens(d)) return {"layer_tokens.cuh", "layer_tokens", "LayerTokensArgs"};
      return {"layer.cuh", "layer", "LayerArgs"};
    case Op::norm:
      return {"norm.cuh", "norm", "NormArgs"};
    default:
      break;
  }
  fail(ErrorKind::internal, "no template for {}", name(d.op()));
}

// "// Launch for nheads = 64: grid (...) ..." of one kernel.
std::string launch_line(const PlanPart& part, const std::string& entry) {
  const Description& d = part.description;
  const LaunchShape shape = launch_shape(part, 1);
  const bool heads = d.nheads != 0;
  const std::string rows =
      d.op() != Op::norm || d.token_count == 1 ? "batch" : fmt::format("{} * batch", d.token_count);
  return fmt::format("// Launch for {} = {}: grid ({}, {}), block {}, dynamic shared memory {} bytes; entry {}.\n",
                     heads ? "nheads" : "channels",
                     heads    ? d.nheads
                     : d.conv ? d.conv_channels()
                              : d.norm_channels(),
                     shape.grid_x, rows, shape.block_threads, shape.smem_bytes, entry);
}

std::string banner(const Description& d, const Plan& plan, const Arch& arch, const std::vector<PlanPart>& parts,
                   const std::vector<std::string>& entries) {
  const Bytes bytes = bytes_moved(d, 1);
  std::string s = fmt::format("// ssmjit {}: {}\n", kVersion, d.summary());
  s += "//\n";
  s += fmt::format("{}{}\n", kDescriptionLine, d.json());
  s += fmt::format("{}{}\n", kPlanLine, plan.text());
  for (const PlanPart& part : parts) {
    if (part.is_precompute) continue;
    if (parts.size() > 1 && d.op() == Op::layer)
      s += fmt::format("// {}: {}\n", name(part.description.op()), part.plan.text());
    for (const Tunable& t : tunables(part.description)) s += fmt::format("//   {}: {}\n", t.name, t.meaning);
  }
  s += "//\n";
  s += fmt::format("// A call moves, for each request: {} bytes read, {} of them written back, {} written elsewhere.\n",
                   bytes.read, bytes.written_back, bytes.written_new);
  if (d.ring_window() != 0) {
    const Bytes flush = bytes_moved(d, 1, Phase::flush);
    s += fmt::format("// With a flush: {} bytes read, {} of them written back, {} written elsewhere.\n", flush.read,
                     flush.written_back, flush.written_new);
  }
  for (std::size_t i = 0; i < parts.size(); ++i) s += launch_line(parts[i], entries[i]);
  s += fmt::format("// Rebuild: nvcc -std=c++17 -arch={} -cubin FILE.cu\n", arch.text());
  return s;
}

// A line of Config each.
std::string constant(const char* field, int value) {
  return fmt::format("  static constexpr int {} = {};\n", field, value);
}
std::string flag(const char* field, bool value) {
  return fmt::format("  static constexpr bool {} = {};\n", field, value);
}
std::string choice(const char* type, const char* field, const char* value) {
  return fmt::format("  static constexpr {} {} = {}::{};\n", type, field, type, value);
}
std::string function(const char* what, const char* parameters, const Expr& e) {
  return fmt::format("  static SSMJIT_DEVICE float {}({}) {{ return {}; }}\n", what, parameters,
                     e.empty() ? "0.0f" : e.cuda());
}

// fast: the expression is silu, of what is rounded to 16 bits next.
std::string maybe_fast(const char* what, const char* parameter, const Expr& e, bool fast) {
  if (!fast) return function(what, fmt::format("float {}", parameter).c_str(), e);
  return fmt::format("  static SSMJIT_DEVICE float {0}(float {1}) {{ return silu_of_16_bits({1}); }}\n", what,
                     parameter);
}

// A convolution's, the same alone and in a layer, so that both round alike.
std::string activation(const Description& d) {
  const Expr x(Leaf::x), &given = d.conv->activation_expr;
  return maybe_fast("activation", "x", given.empty() ? x : given, given == silu(x) && size_bytes(d.input_dtype) == 2);
}

std::string conv1d_fields(const Description& d, const Plan& plan) {
  const Conv& conv = *d.conv;
  std::string s;
  s += fmt::format("  using Input = {};  // x, out\n", cuda_type(d.input_dtype));
  s += fmt::format("  using State = {};  // the windows\n", cuda_type(d.state_dtype));
  s += fmt::format("  using Weight = {};  // w, bias\n", cuda_type(d.weight_dtype));
  s += constant("kTokens", d.token_count);
  s += constant("kWidth", conv.width);
  s += constant("kStateLen", d.conv_state_len());
  s += constant("kSnapshotLen", d.conv_snapshot_len());
  s += flag("kHasBias", conv.has_bias);
  s += flag("kChannelsLast", conv.channels_last);
  s += choice("ConvStore", "kStore", name(conv.store));
  s += choice("ConvKeep", "kKeep", name(conv.keep));
  s += flag("kAccepted", conv.has_accepted);
  s += flag("kAlignedRows", d.aligned_rows);
  s += choice("PadOutput", "kPadOutput", name(d.pad_output_kind));
  s += "\n";
  s += constant("kBlockM", plan.block_m);
  s += constant("kWarps", plan.warps);
  s += flag("kStreaming", plan.streaming);
  s += flag("kEarlyState", plan.early_state);
  s += "\n";
  s += activation(d);
  return s;
}

// What a layer has beside its update.
std::string layer_fields(const Description& d, const Plan& plan) {
  const bool conv = d.conv.has_value(), norm = d.norm.has_value(), short_input = size_bytes(d.input_dtype) == 2;
  std::string s = flag("kHasConv", conv);
  if (conv || d.ring_window() != 0) {
    s += constant("kConvWidth", conv ? d.conv->width : 1);
    s += constant("kConvState", d.conv_state_len());
    s += flag("kConvChannelsLast", conv && d.conv->channels_last);
    s += flag("kConvBias", conv && d.conv->has_bias);
  }
  if (d.ring_window() != 0) {
    s += flag("kConvAccepted", conv && d.conv->has_accepted);
    s += flag("kConvCircular", conv && d.conv->store == ConvStore::circular);
    s += flag("kConvSnapshots", conv && d.conv->keep == ConvKeep::snapshots);
    s += constant("kConvSnapshot", d.conv_snapshot_len());
  }
  if (conv) s += activation(d);
  s += flag("kHasNorm", norm);
  s += constant("kNormRows", norm ? d.norm_group_size() : d.heads_per_group() * d.head_dim);
  s += flag("kHasNormGate", norm && !d.norm->gate_expr.empty());
  s += flag("kNormBeforeGate", norm && d.norm->before_gate);
  s += flag("kNormBias", norm && d.norm->has_bias);
  s += maybe_fast("norm_gate", "z", norm ? d.norm->gate_expr : Expr(),
                  norm && d.norm->gate_expr == silu(dsl::z) && short_input);
  s += function("norm_eps", "", norm ? Expr(d.norm->eps) : Expr());
  s += constant("kCluster", plan.cluster);
  return s;
}

std::string norm_fields(const Description& d, const Plan& plan) {
  const Norm& norm = *d.norm;
  std::string s;
  s += fmt::format("  using Input = {};  // x, z, out\n", cuda_type(d.input_dtype));
  s += fmt::format("  using Weight = {};  // weight, bias\n", cuda_type(d.weight_dtype));
  s += constant("kTokens", d.token_count);
  s += constant("kGroupSize", d.norm_group_size());
  s += fmt::format("  static constexpr float kEps = {};\n", Expr(norm.eps).cuda());
  s += flag("kHasGate", !norm.gate_expr.empty());
  s += flag("kFastSilu", norm.gate_expr == silu(Expr(Leaf::z)) && size_bytes(d.input_dtype) == 2);
  s += flag("kBeforeGate", norm.before_gate);
  s += flag("kHasBias", norm.has_bias);
  s += flag("kAlignedRows", d.aligned_rows);
  s += "\n";
  s += constant("kWarps", plan.warps);
  s += constant("kGroupsPerBlock", plan.heads_per_block);
  s += flag("kStreaming", plan.streaming);
  s += flag("kEarlyState", plan.early_state);
  s += "\n";
  s += function("gate", "float z", norm.gate_expr);
  return s;
}

// As templates/update_tokens.cuh numbers them.
const char* store_name(const Description& d) {
  if (std::holds_alternative<Snapshots>(d.store_kind)) return "snapshots";
  return std::holds_alternative<Slots>(d.store_kind) ? "slots" : "in_place";
}

std::string fields(const Description& d, const Plan& plan) {
  if (d.op() == Op::conv1d) return conv1d_fields(d, plan);
  if (d.op() == Op::norm) return norm_fields(d, plan);
  // A replay is a ring kernel with the last step's tokens as its rows.
  const bool replay = d.op() == Op::replay, ring = d.ring_window() != 0 || replay, layer = d.op() == Op::layer,
             tokens = has_token_kernel(d);
  const auto* stochastic = std::get_if<Stochastic>(&d.rounding_kind);
  std::string s;
  s += fmt::format("  using State = {};\n", cuda_type(d.state_dtype));
  s += fmt::format("  using Input = {};  // x, z, B, C, out{}\n", cuda_type(d.input_dtype),
                   layer ? "; windows and weights of the convolution, weights of the norm" : "");
  s += fmt::format("  using Dt = {};\n", cuda_type(d.dt_dtype));
  s += fmt::format("  using Weight = {};  // D, dt_bias\n", cuda_type(d.weight_dtype));
  s += constant("kHeadDim", d.head_dim);
  s += constant("kDstate", d.dstate);
  s += constant("kHeadsPerGroup", d.heads_per_group());
  if (ring) {
    s += constant("kTokens", d.token_count);
    s += constant("kWindow", replay ? d.token_count : d.ring_window());
    s += constant("kRing", replay ? d.token_count : d.ring_length());
    s += flag("kReplay", replay);
    s += flag("kPrecomputed", plan.precompute_warps > 0);
  }
  if (tokens) {
    s += constant("kTokens", d.token_count);
    s += choice("StateStore", "kStore", store_name(d));
    s += flag("kAccepted", d.has_accepted);
    s += flag("kTree", d.has_tree);
    s += flag("kVarlen", d.is_varlen);
    s += constant("kPhiloxRounds", stochastic == nullptr ? 0 : stochastic->philox_rounds);
  }
  s += flag("kHasDtBias", d.has_dt_bias());
  s += flag("kHasD", d.has_D());
  s += flag("kHasSkip", !d.skip_expr.empty());
  s += flag("kHasGate", !d.gate_expr.empty());
  if (ring) s += flag("kVarlen", d.is_varlen);
  if (ring || is_update_rounded(d)) {
    s += constant("kPhiloxRounds", stochastic == nullptr ? 0 : stochastic->philox_rounds);
  }
  if (is_layer_of_tokens(d)) s += constant("kTokens", d.token_count);
  if (!ring && !layer) {
    s += flag("kDestination", d.has_destination);
    s += flag("kAlignedRows", d.aligned_rows);
  }
  s += choice("PadOutput", "kPadOutput", name(d.pad_output_kind));
  s += "\n";
  s += constant("kBlockM", plan.block_m);
  s += constant("kWarps", plan.warps);
  if (!ring) s += constant("kLanesPerRow", plan.lanes_per_row);
  if (ring || !layer) s += constant("kHeadsPerBlock", plan.heads_per_block);
  s += constant("kStages", plan.stages);
  s += choice("StatePath", "kStatePath", name(plan.state_path));
  s += flag("kStreaming", plan.streaming);
  s += flag("kEarlyState", plan.early_state);
  if (ring) s += choice("RingRows", "kRingRows", name(plan.ring_rows));
  if (plan.precompute_warps > 0) {
    s += constant("kPrecomputeWarps", plan.precompute_warps);
    s += constant("kPrecomputeHeads", plan.precompute_heads);
  }
  s += "\n";
  s += function("delta", "float dt, float dt_bias", d.delta_expr);
  if (!ring) s += function("decay", "float A, float dt, float delta", d.decay_expr);
  s += function("skip", "float D, float x", d.skip_expr);
  s += function("gate", "float z", d.gate_expr);
  if (layer) s += "\n" + layer_fields(d, plan);
  return s;
}

}  // namespace

Source emit(const Description& description, const Plan& plan, const Arch& arch) {
  description.validate();
  check_plan(plan, description, arch);
  const std::string digest = digest16(description.kernel_digest() + plan.text()).substr(0, 8);
  const std::vector<PlanPart> parts = plan_parts(plan, description);
  std::vector<std::string> entries;
  for (const PlanPart& part : parts) {
    const char* op = name(part.description.op());
    entries.push_back(part.is_precompute ? fmt::format("ssmjit_{}_precompute_{}", op, digest)
                      : description.op() == Op::layer && parts.size() > 1
                          ? fmt::format("ssmjit_layer_{}_{}", op, digest)
                          : fmt::format("ssmjit_{}_{}", op, digest));
  }

  Source source;
  source.arch = arch;
  source.text = banner(description, plan, arch, parts, entries);
  Pieces pieces(source.text);
  for (const PlanPart& part : parts) pieces.add(template_of(part).file);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Template from = template_of(parts[i]);
    const std::string config = parts.size() == 1 ? "Config" : fmt::format("{}_config", from.function);
    const Plan& own = parts[i].plan;
    const LaunchShape shape = launch_shape(parts[i], 1);
    source.text +=
        fmt::format("\n// ---- {} ----\n\nstruct {} {{\n{}}};\n", parts.size() == 1 ? "this kernel" : entries[i],
                    config, fields(parts[i].description, own));
    source.text += fmt::format(
        "\nextern \"C\" __global__ void __launch_bounds__({}){} {}(const __grid_constant__ {} args) {{\n"
        "  {}<{}>(args);\n}}\n",
        own.min_blocks_per_sm == 0 || parts[i].is_precompute
            ? std::to_string(shape.block_threads)
            : fmt::format("{}, {}", shape.block_threads, own.min_blocks_per_sm),
        own.cluster > 1 ? fmt::format(" __cluster_dims__({}, 1, 1)", own.cluster) : "", entries[i], from.args,
        from.function, config);
    source.entries.push_back({entries[i], shape.block_threads, shape.smem_bytes, shape.cluster});
  }
  source.digest = digest16(without_banner(source.text));
  source.options = kOptions;
  return source;
}

namespace {

constexpr int kSlotThreads = 128;
constexpr int kSlotBlocksPerSm = 4;  // that the compiler leaves registers for

// Rows of head_dim that a block of `materialise` takes: as many as divide it, at most 128.
int slot_block_m(const Description& d) {
  int rows = 8;
  for (int m = 8; m <= std::min(128, d.head_dim); m += 8)
    if (d.head_dim % m == 0) rows = m;
  return rows;
}

std::string slots_config(const Description& d) {
  const auto* stochastic = std::get_if<Stochastic>(&d.rounding_kind);
  std::string s = "\n// ---- these kernels ----\n\nstruct Config {\n";
  s += fmt::format("  using State = {};\n", cuda_type(d.state_dtype));
  s += fmt::format("  using Input = {};  // x, B\n", cuda_type(d.input_dtype));
  s += constant("kHeadDim", d.head_dim);
  s += constant("kDstate", d.dstate);
  s += constant("kHeadsPerGroup", d.heads_per_group());
  s += constant("kWindow", d.ring_window());
  s += constant("kRing", d.ring_length());
  s += constant("kPhiloxRounds", stochastic == nullptr ? 0 : stochastic->philox_rounds);
  s += constant("kBlockM", slot_block_m(d));
  s += constant("kThreads", kSlotThreads);
  s += "};\n";
  return s;
}

}  // namespace

Source emit_ring_slots(const Description& description, const Arch& arch) {
  const Description& d = description;
  d.validate();
  if (d.op() != Op::ring)
    fail(ErrorKind::invalid, "description: got {}; wants a ring (store=ring:16)",
         d.ring_window() == 0 ? "a store in place, which has no ring"
                              : "a layer, whose slots have a convolution's window beside the ring; take its ring's "
                                "part (layer_parts()) and set or copy the window beside it");
  Source source;
  source.arch = arch;
  source.text = fmt::format("// ssmjit {}: slots of a ring's pools, materialised, reset and copied, of {}\n", kVersion,
                            d.summary());
  source.text += fmt::format("//\n{}{}\n", kDescriptionLine, d.json());
  source.text += fmt::format("// Rebuild: nvcc -std=c++17 -arch={} -cubin FILE.cu\n", arch.text());
  Pieces(source.text).add("materialise.cuh");
  const std::string own = slots_config(d);
  source.text += own;
  const std::string id = digest16(own).substr(0, 8);
  const auto entry = [&](const char* function, const char* args) {
    const std::string entry_name = fmt::format("ssmjit_{}_{}", function, id);
    source.text += fmt::format(
        "\nextern \"C\" __global__ void __launch_bounds__({}, {}) {}(const __grid_constant__ {} args) {{\n"
        "  {}<Config>(args);\n}}\n",
        kSlotThreads, kSlotBlocksPerSm, entry_name, args, function);
    source.entries.push_back({entry_name, kSlotThreads, 0});
  };
  entry("materialise", "MaterialiseArgs");
  entry("reset_slots", "ResetSlotsArgs");
  entry("copy_slots", "CopySlotsArgs");
  source.digest = digest16(without_banner(source.text));
  source.options = kOptions;
  return source;
}

Source emit_prepare_A(const Arch& arch) {
  constexpr int kThreads = 128;
  Source source;
  source.arch = arch;
  source.text = fmt::format("// ssmjit {}: A = -exp(A_log)\n// Rebuild: nvcc -std=c++17 -arch={} -cubin FILE.cu\n",
                            kVersion, arch.text());
  Pieces(source.text).add("prepare_A.cuh");
  for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const std::string entry = fmt::format("ssmjit_prepare_A_{}", name(dtype));
    source.text += fmt::format(
        "\nextern \"C\" __global__ void __launch_bounds__({}) {}(const __grid_constant__ PrepareAArgs args) {{\n"
        "  prepare_A<{}>(args);\n}}\n",
        kThreads, entry, cuda_type(dtype));
    source.entries.push_back({entry, kThreads, 0});
  }
  source.digest = digest16(without_banner(source.text));
  source.options = kOptions;
  return source;
}

Source emit_slot_copies(const Arch& arch) {
  constexpr const char* kEntry = "ssmjit_slot_copies";
  Source source;
  source.arch = arch;
  source.text =
      fmt::format("// ssmjit {}: slots of pools copied\n// Rebuild: nvcc -std=c++17 -arch={} -cubin FILE.cu\n",
                  kVersion, arch.text());
  Pieces(source.text).add("slot_copies.cuh");
  source.text += fmt::format(
      "\nextern \"C\" __global__ void __launch_bounds__({0}) {1}(const __grid_constant__ SlotCopiesArgs args) {{\n"
      "  slot_copies<{0}>(args);\n}}\n",
      kSlotThreads, kEntry);
  source.entries.push_back({kEntry, kSlotThreads, 0});
  source.digest = digest16(without_banner(source.text));
  source.options = kOptions;
  return source;
}

std::int64_t materialise_blocks(const Description& description) {
  return std::int64_t{description.nheads} * (description.head_dim / slot_block_m(description));
}

std::string template_pieces(const std::vector<std::string>& files) {
  std::string text;
  Pieces pieces(text);
  for (const std::string& file : files) pieces.add(file);
  return text;
}

std::string_view without_banner(std::string_view text) {
  while (text.starts_with("//")) {
    const std::size_t end = text.find('\n');
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  return text;
}

Source bench_source(const Arch& arch) {
  Source source;
  source.arch = arch;
  source.text = fmt::format("// ssmjit {}: kernels for measuring\n", kVersion);
  Pieces(source.text).add("bench.cuh");
  source.digest = digest16(without_banner(source.text));
  source.options = kOptions;
  return source;
}

Banner read_banner(std::string_view source_text) {
  Banner banner;
  bool description = false, plan = false;
  while (!source_text.empty() && source_text.starts_with("//")) {
    const std::size_t end = source_text.find('\n');
    const std::string_view line = source_text.substr(0, end);
    source_text.remove_prefix(end == std::string_view::npos ? source_text.size() : end + 1);
    if (line.starts_with(kDescriptionLine)) {
      banner.description = Description::from_json(line.substr(kDescriptionLine.size()));
      description = true;
    } else if (line.starts_with(kPlanLine)) {
      banner.plan = Plan::parse(line.substr(kPlanLine.size()), Plan{});
      plan = true;
    }
  }
  if (!description || !plan)
    fail(ErrorKind::invalid,
         "source: no banner with \"{}\" and \"{}\" lines at its top; only files that `ssmjit emit` wrote have one",
         kDescriptionLine, kPlanLine);
  return banner;
}

}  // namespace ssmjit
