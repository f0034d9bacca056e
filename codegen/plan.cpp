#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <ssmjit/plan.h>

#include "codegen/chain_scratch.h"
#include "codegen/constraint.h"
#include "codegen/embedded_templates.h"
#include "codegen/fail.h"
#include "codegen/plan_smem.h"
#include "codegen/rounded.h"
#include "codegen/update_form.h"

namespace ssmjit {
namespace {

using Json = nlohmann::ordered_json;

// The fields of a plan by name, as whole numbers: one place for text, JSON and constraints.
struct Field {
  const char* name;
  std::int64_t (*get)(const Plan&);
  void (*set)(Plan&, std::int64_t);
  bool flag = false;
  // Of a field whose values have names: how many, numbered from 0, and the name of each.
  std::int64_t named_values = 0;
  const char* (*value_name)(std::int64_t) = nullptr;
};
constexpr Field kFields[] = {
    {"block_m", [](const Plan& p) -> std::int64_t { return p.block_m; },
     [](Plan& p, std::int64_t v) { p.block_m = static_cast<int>(v); }},
    {"warps", [](const Plan& p) -> std::int64_t { return p.warps; },
     [](Plan& p, std::int64_t v) { p.warps = static_cast<int>(v); }},
    {"lanes_per_row", [](const Plan& p) -> std::int64_t { return p.lanes_per_row; },
     [](Plan& p, std::int64_t v) { p.lanes_per_row = static_cast<int>(v); }},
    {"heads_per_block", [](const Plan& p) -> std::int64_t { return p.heads_per_block; },
     [](Plan& p, std::int64_t v) { p.heads_per_block = static_cast<int>(v); }},
    {"stages", [](const Plan& p) -> std::int64_t { return p.stages; },
     [](Plan& p, std::int64_t v) { p.stages = static_cast<int>(v); }},
    {"state_path", [](const Plan& p) -> std::int64_t { return static_cast<std::int64_t>(p.state_path); },
     [](Plan& p, std::int64_t v) { p.state_path = static_cast<StatePath>(v); }, false, 3,
     [](std::int64_t v) { return name(static_cast<StatePath>(v)); }},
    {"streaming", [](const Plan& p) -> std::int64_t { return p.streaming ? 1 : 0; },
     [](Plan& p, std::int64_t v) { p.streaming = v != 0; }, true},
    {"early_state", [](const Plan& p) -> std::int64_t { return p.early_state ? 1 : 0; },
     [](Plan& p, std::int64_t v) { p.early_state = v != 0; }, true},
    {"min_blocks_per_sm", [](const Plan& p) -> std::int64_t { return p.min_blocks_per_sm; },
     [](Plan& p, std::int64_t v) { p.min_blocks_per_sm = static_cast<int>(v); }},
    {"ring_rows", [](const Plan& p) -> std::int64_t { return static_cast<std::int64_t>(p.ring_rows); },
     [](Plan& p, std::int64_t v) { p.ring_rows = static_cast<RingRows>(v); }, false, 2,
     [](std::int64_t v) { return name(static_cast<RingRows>(v)); }},
    {"cluster", [](const Plan& p) -> std::int64_t { return p.cluster; },
     [](Plan& p, std::int64_t v) { p.cluster = static_cast<int>(v); }},
    {"form", [](const Plan& p) -> std::int64_t { return static_cast<std::int64_t>(p.form); },
     [](Plan& p, std::int64_t v) { p.form = static_cast<PlanForm>(v); }, false, 3,
     [](std::int64_t v) { return name(static_cast<PlanForm>(v)); }},
    {"precompute_warps", [](const Plan& p) -> std::int64_t { return p.precompute_warps; },
     [](Plan& p, std::int64_t v) { p.precompute_warps = static_cast<int>(v); }},
    {"precompute_heads", [](const Plan& p) -> std::int64_t { return p.precompute_heads; },
     [](Plan& p, std::int64_t v) { p.precompute_heads = static_cast<int>(v); }},
};
// The plans of a chain's parts beside its update.
struct NestedField {
  const char* name;
  std::string Plan::*text;
};
constexpr NestedField kNested[] = {{"conv1d", &Plan::conv1d}, {"norm", &Plan::norm}};
const NestedField* find_nested(std::string_view name) {
  for (const NestedField& f : kNested)
    if (name == f.name) return &f;
  return nullptr;
}

// Those behind are of some ops only, and left out of a text where they are as by default.
constexpr std::size_t kCommonFields = 9;
bool is_left_out(const Field& field, const Plan& plan) {
  return &field >= kFields + kCommonFields && field.get(plan) == field.get(Plan{});
}

const Field* find_field(std::string_view name) {
  for (const Field& f : kFields)
    if (name == f.name) return &f;
  return nullptr;
}

bool is_value_name(std::string_view text) {
  for (const Field& f : kFields)
    for (std::int64_t i = 0; i < f.named_values; ++i)
      if (text == f.value_name(i)) return true;
  return false;
}

std::string field_names() {
  std::string all;
  for (const Field& f : kFields) all += fmt::format("{}{}", all.empty() ? "" : ", ", f.name);
  for (const NestedField& f : kNested) all += fmt::format(", {}", f.name);
  return all;
}

std::string value_text(const Field& field, std::int64_t value) {
  if (field.named_values > 0) return field.value_name(value);
  if (field.flag) return value != 0 ? "true" : "false";
  return std::to_string(value);
}

std::int64_t parse_value(const Field& field, std::string_view text) {
  if (field.named_values > 0) {
    std::string names;
    for (std::int64_t i = 0; i < field.named_values; ++i) {
      if (text == field.value_name(i)) return i;
      names += fmt::format("{}{}", i == 0 ? "" : i + 1 == field.named_values ? " or " : ", ", field.value_name(i));
    }
    fail(ErrorKind::invalid, "plan: {}: got {}; wants {}", field.name, in_quotes(text), names);
  }
  if (field.flag) {
    if (text == "true" || text == "1") return 1;
    if (text == "false" || text == "0") return 0;
    fail(ErrorKind::invalid, "plan: {}: got {}; wants true or false", field.name, in_quotes(text));
  }
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    fail(ErrorKind::invalid, "plan: {}: got {}; wants a whole number", field.name, in_quotes(text));
  return value;
}

// The JSON file in templates/, read once, of an op, or of a layer with a ring: the tunables, and the conditions over
// them and the description's sizes.
struct Space {
  std::vector<Tunable> tunables;
  std::vector<const Field*> fields;               // by tunable, in kFields' order
  std::vector<std::vector<std::int64_t>> values;  // by tunable
  std::vector<std::string> names;                 // of all values that a condition may read
  std::vector<Constraint> derived;
  struct Rule {
    Constraint require;
    std::string because;
  };
  std::vector<Rule> rules;

  static const Space& of(const Description& d) {
    static const Space ring_layer("ring_layer.json"), update_tokens("update_tokens.json"),
        update_rounded("update_rounded.json"), layer_tokens("layer_tokens.json");
    if (has_token_kernel(d)) return update_tokens;
    if (is_update_rounded(d)) return update_rounded;
    if (is_layer_of_tokens(d)) return layer_tokens;
    return d.op() == Op::layer && d.ring_window() != 0 ? ring_layer : of(d.op());
  }
  static const Space& of(Op op) {
    static const Space update("update.json"), ring("ring.json"), conv1d("conv1d.json"), norm("norm.json"),
        layer("layer.json"), replay("replay.json");
    switch (op) {
      case Op::ring:
        return ring;
      case Op::conv1d:
        return conv1d;
      case Op::norm:
        return norm;
      case Op::layer:
        return layer;
      case Op::replay:
        return replay;
      default:
        return update;
    }
  }
  bool has(const Field& field) const { return std::find(fields.begin(), fields.end(), &field) != fields.end(); }

  // The values of `names`: plan fields, facts, constants, derived.
  std::vector<std::int64_t> facts(const Description& d, const Arch& arch) const {
    std::vector<std::int64_t> v(names.size());
    const std::size_t base = std::size(kFields);
    const int state_bytes = size_bytes(d.state_dtype);
    v[base] = d.head_dim;
    v[base + 1] = d.dstate;
    v[base + 2] = d.heads_per_group();
    v[base + 3] = state_bytes;
    v[base + 4] = d.dstate * state_bytes / 16;
    v[base + 5] = arch.has_bulk_copy() ? 1 : 0;
    v[base + 6] = arch.has_pdl() ? 1 : 0;
    v[base + 7] = arch.max_smem_bytes();
    v[base + 8] = d.token_count;
    v[base + 9] = d.ring_window();
    v[base + 10] = d.ring_length();
    v[base + 11] = d.has_z() ? 1 : 0;
    const int vector_elements = d.aligned_rows ? 16 / size_bytes(d.input_dtype) : 1;
    v[base + 12] = vector_elements;
    v[base + 13] = d.norm_group_size() / vector_elements;
    v[base + 14] = d.norm_group_size() == 0 ? 0 : d.norm_channels() / d.norm_group_size();
    v[base + 15] = d.aligned_rows ? 1 : 0;
    v[base + 16] = size_bytes(d.input_dtype);
    v[base + 17] = std::int64_t{d.heads_per_group()} * d.head_dim;
    v[base + 18] = d.norm ? d.norm_group_size() : v[base + 17];
    v[base + 19] = arch.max_cluster();
    v[base + 25] = arch.major == 9 || arch.major == 10 ? 16 : arch.max_cluster();
    v[base + 20] = d.conv && (d.conv->store != ConvStore::shift || d.conv->keep != ConvKeep::last) ? 0 : 1;
    v[base + 21] = d.conv_state_len();
    v[base + 22] = d.has_destination ? 1 : 0;
    v[base + 23] = d.conv && d.conv->has_accepted ? 1 : 0;
    v[base + 24] = d.is_varlen ? 1 : 0;
    v[base + 26] = std::holds_alternative<Stochastic>(d.rounding_kind) ? 1 : 0;
    v[base + 27] = d.conv && d.conv->keep == ConvKeep::slots ? 1 : 0;
    v[base + 28] = d.conv && d.conv->store == ConvStore::circular ? 1 : 0;
    std::size_t at = base + 29;
    for (const Field& f : kFields)
      for (std::int64_t i = 0; i < f.named_values; ++i) v[at++] = i;
    return v;
  }
  // The value of one of `names`, a derived one too.
  std::int64_t value(std::string_view name, const std::vector<std::int64_t>& v) const {
    return v[static_cast<std::size_t>(std::find(names.begin(), names.end(), name) - names.begin())];
  }
  void put(std::vector<std::int64_t>& v, const Plan& plan) const {
    for (std::size_t i = 0; i < std::size(kFields); ++i) v[i] = kFields[i].get(plan);
    for (std::size_t i = 0; i < derived.size(); ++i) v[names.size() - derived.size() + i] = derived[i].evaluate(v);
  }

 private:
  explicit Space(const std::string& file) {
    const Json json = Json::parse(template_file(file));
    for (const Field& f : kFields) names.emplace_back(f.name);
    for (const char* fact : {"head_dim",
                             "dstate",
                             "heads_per_group",
                             "state_bytes",
                             "row_vectors",
                             "has_bulk_copy",
                             "has_pdl",
                             "max_smem_bytes",
                             "tokens",
                             "ring_window",
                             "ring_length",
                             "has_gate",
                             "vector_elements",
                             "group_vectors",
                             "groups",
                             "aligned_rows",
                             "input_bytes",
                             "group_rows",
                             "norm_rows",
                             "max_cluster",
                             "conv_shifts_in_place",
                             "conv_state_len",
                             "has_destination_slots",
                             "has_accepted_tokens",
                             "has_varlen",
                             "max_large_cluster",
                             "is_stochastic",
                             "conv_keeps_slots",
                             "conv_is_circular"})
      names.emplace_back(fact);
    for (const Field& f : kFields)
      for (std::int64_t i = 0; i < f.named_values; ++i) names.emplace_back(f.value_name(i));
    for (const auto& t : json.at("tunables")) {
      Tunable tunable{t.at("name"), t.at("meaning"), {}};
      const Field* field = find_field(tunable.name);
      if (field == nullptr || (!fields.empty() && field <= fields.back()))
        fail(ErrorKind::internal, "{}: tunable {} is no field of a plan, or not in their order", file, tunable.name);
      fields.push_back(field);
      std::vector<std::int64_t> numbers;
      for (const auto& value : t.at("values")) {
        const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
        tunable.values.push_back(text);
        numbers.push_back(parse_value(*field, text));
      }
      tunables.push_back(std::move(tunable));
      values.push_back(std::move(numbers));
    }
    for (const auto& d : json.at("derived")) {  // each may read those before it
      derived.emplace_back(d.at("value").get<std::string>(), names);
      names.emplace_back(d.at("name").get<std::string>());
    }
    for (const auto& c : json.at("constraints"))
      rules.push_back({Constraint(c.at("require").get<std::string>(), names), c.at("because").get<std::string>()});
  }
};

// Heads of all requests from which on a layer with a ring is a chain where no table has an answer: an H200 was faster
// so, by 12 to 32%, and by one kernel below.
constexpr std::int64_t kFusedRingHeads = 256;

// For which work_items() a chain's parts have their default plans, where no size is named.
constexpr std::int64_t kChainItems = 1024;

double octaves(int a, double b) { return std::abs(std::log2(a / b)); }
constexpr double kFar = 64;  // more octaves than there can be

// How far a plan is from the one that is wanted where no table has an answer. One head a block, straight into
// registers, some 4 KiB of state a block: within a few percent of the best at most sizes on the GPU it was measured on.
// Many heads fill the GPU with single warps; few are spread over two.
std::function<double(const Plan&)> update_distance(const Description& description, std::int64_t total_heads) {
  const double rows = 4096.0 / (static_cast<double>(description.dstate) * size_bytes(description.state_dtype));
  const int warps = total_heads >= 1024 ? 1 : 2;
  return [=](const Plan& p) {
    const bool simple = p.state_path == StatePath::direct && p.heads_per_block == 1 && p.stages == 1;
    return octaves(p.block_m, rows) + octaves(p.lanes_per_row, 16) + octaves(p.warps, warps) + (simple ? 0 : kFar);
  };
}

// The same for an update of several tokens: what costs is stores, of which any number is under way, so blocks are those
// of a state of 8 KiB whose lanes have all their elements in registers.
std::function<double(const Plan&)> tokens_distance(const Description& description, std::int64_t total_heads) {
  const double bytes = total_heads >= 1024 ? 8192.0 : 2048.0;
  const double rows = bytes / (static_cast<double>(description.dstate) * size_bytes(description.state_dtype));
  const int warps = total_heads >= 1024 ? 2 : 4;
  return [=](const Plan& p) {
    return octaves(p.block_m, rows) + octaves(p.lanes_per_row, 16) + octaves(p.warps, warps) + octaves(p.stages, 2);
  };
}

// The same for a ring, by what was best at such sizes on an H200: few heads spread over many blocks, straight into
// registers; many heads several a block, so that C . B is shared and the next head's state is on its way.
std::function<double(const Plan&)> ring_distance(const Description& description, std::int64_t total_heads) {
  Plan wanted{.block_m = 16, .warps = 1, .heads_per_block = 1, .stages = 1, .state_path = StatePath::direct};
  if (total_heads > 2048)
    wanted = {.block_m = 64,
              .warps = description.state_dtype == DType::f32 ? 4 : 2,
              .heads_per_block = 8,
              .stages = 2,
              .state_path = StatePath::bulk};
  else if (total_heads > 256)
    wanted = {.block_m = 32, .warps = 2, .heads_per_block = 4, .stages = 2, .state_path = StatePath::bulk};
  return [=](const Plan& p) {
    return octaves(p.block_m, wanted.block_m) + octaves(p.warps, wanted.warps) +
           octaves(p.heads_per_block, wanted.heads_per_block) + octaves(p.stages, wanted.stages) +
           (p.state_path == wanted.state_path ? 0 : kFar) + (p.ring_rows == RingRows::live ? 0 : kFar);
  };
}

// The same for a convolution: the best at most sizes on an H200 had 4 channels a lane.
std::function<double(const Plan&)> conv1d_distance() {
  return [](const Plan& p) { return octaves(p.block_m, 512) + octaves(p.warps, 4); };
}

// The same for a layer, by what was best where it was measured: clusters whose blocks take some 16 KiB of state at once
// by bulk copies, 4 KiB a warp, with registers for 32 warps of an SM. Straight into registers it takes more of them.
std::function<double(const Plan&)> layer_distance(const Description& description) {
  const double row_bytes = static_cast<double>(description.dstate) * size_bytes(description.state_dtype);
  const double rows = 16384.0 / row_bytes;
  const double group = description.norm ? description.norm_group_size()
                                        : static_cast<double>(description.heads_per_group()) * description.head_dim;
  const int stages = description.token_count > 1 ? 2 : 1;
  return [=](const Plan& p) {
    const double block_rows = group / p.cluster;
    const bool bulk = p.state_path == StatePath::bulk;
    return 4 * octaves(p.block_m, block_rows) + octaves(p.cluster, std::max(1.0, group / rows)) +
           octaves(p.warps, bulk ? std::max(1.0, p.block_m * row_bytes / 4096) : 8) + octaves(p.lanes_per_row, 16) +
           octaves(p.stages, stages) + (bulk ? 0 : 0.5) +
           0.25 * octaves(p.min_blocks_per_sm, bulk ? 32.0 / p.warps : 1);
  };
}

// The same for a layer with a ring: blocks of one head's rows, eight warps, and clusters that run anywhere.
std::function<double(const Plan&)> ring_layer_distance(const Description& description) {
  return [=](const Plan& p) {
    return octaves(p.block_m, description.head_dim) + octaves(p.warps, 8) + (p.cluster <= 8 ? 0 : 4) +
           (p.ring_rows == RingRows::live ? 0 : 0.5);
  };
}

// The same for a norm, by what was best where it was measured: a group by as many warps as have a vector a lane, up to
// 20, a group a block, and no lanes without a vector.
std::function<double(const Plan&)> norm_distance(const Description& description) {
  const double width = description.aligned_rows ? 16.0 / size_bytes(description.input_dtype) : 1.0;
  const double warps = description.norm_group_size() / (32 * width);  // of full lanes
  return [=](const Plan& p) {
    const int group_warps = p.warps / p.heads_per_block;
    const double idle = std::ceil(warps / group_warps) * group_warps / warps - 1;
    return octaves(group_warps, std::clamp(warps, 1.0, 20.0)) + octaves(p.heads_per_block, 1) + 2 * std::min(idle, 1.0);
  };
}

}  // namespace

std::string Plan::text() const {
  std::string text;
  for (const Field& f : kFields)
    if (!is_left_out(f, *this))
      text += fmt::format("{}{}={}", text.empty() ? "" : ",", f.name, value_text(f, f.get(*this)));
  for (const NestedField& f : kNested)
    if (const std::string& part = this->*f.text; !part.empty()) text += fmt::format(",{}={{{}}}", f.name, part);
  return text;
}

std::string Plan::json() const {
  Json json;
  for (const Field& f : kFields) {
    if (is_left_out(f, *this)) continue;
    if (f.named_values > 0)
      json[f.name] = value_text(f, f.get(*this));
    else if (f.flag)
      json[f.name] = f.get(*this) != 0;
    else
      json[f.name] = f.get(*this);
  }
  for (const NestedField& f : kNested)
    if (const std::string& part = this->*f.text; !part.empty()) json[f.name] = Json::parse(parse(part, Plan{}).json());
  return json.dump();
}

Plan Plan::parse(std::string_view text, const Plan& base) {
  Plan plan = base;
  std::size_t at = 0;
  while (at < text.size()) {
    std::size_t end = at;
    for (int depth = 0; end < text.size() && (depth > 0 || text[end] != ','); ++end)
      depth += text[end] == '{' ? 1 : text[end] == '}' ? -1 : 0;
    const std::string_view item = text.substr(at, end - at);
    at = end + 1;
    const std::size_t equals = item.find('=');
    if (const NestedField* nested = equals == std::string_view::npos ? nullptr : find_nested(item.substr(0, equals))) {
      const std::string_view part = item.substr(equals + 1);
      if (part.size() < 2 || part.front() != '{' || part.back() != '}')
        fail(ErrorKind::invalid, "plan: {}: got {}; wants a plan in braces", nested->name, in_quotes(part));
      plan.*nested->text = parse(part.substr(1, part.size() - 2), Plan{}).text();
      continue;
    }
    const Field* field = equals == std::string_view::npos ? nullptr : find_field(item.substr(0, equals));
    if (field == nullptr)
      fail(ErrorKind::invalid, "plan: got {}; wants FIELD=VALUE with a field of: {}", in_quotes(item), field_names());
    field->set(plan, parse_value(*field, item.substr(equals + 1)));
  }
  return plan;
}

Plan Plan::from_json(std::string_view text) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) fail(ErrorKind::invalid, "plan: got {}; wants a JSON object", in_quotes(text));
  Plan plan;
  for (const auto& [key, value] : json.items()) {
    if (const NestedField* nested = find_nested(key)) {
      plan.*nested->text = from_json(value.dump()).text();
      continue;
    }
    const Field* field = find_field(key);
    if (field == nullptr)
      fail(ErrorKind::invalid, "plan: unknown field {}; known are: {}", in_quotes(key), field_names());
    field->set(plan, parse_value(*field, value.is_string() ? value.get<std::string>() : value.dump()));
  }
  return plan;
}

namespace {

// What is wrong with a chain, beside what is wrong with its parts.
std::vector<std::string> own_chain_problems(const Plan& plan, const Description& d, const Arch& arch) {
  std::vector<std::string> problems;
  const auto check = [&](const char* field, const char* part, const std::string& text, bool wanted) {
    if (wanted && text.empty())
      problems.push_back(
          fmt::format("plan {}: not given; a chain of this layer wants the plan of its {}", field, part));
    if (!wanted && !text.empty())
      problems.push_back(fmt::format("plan {}: got {}; the layer has no such part", field, in_quotes(text)));
  };
  check("conv1d", "convolution", plan.conv1d, d.conv.has_value());
  check("norm", "norm", plan.norm, d.norm.has_value());
  if (plan.form == PlanForm::chain_pdl && !arch.has_pdl())
    problems.push_back(
        fmt::format("plan form: got chain_pdl for {}; programmatic dependent launch came with sm_90, "
                    "take chain",
                    arch.text()));
  if (d.has_destination)
    problems.push_back(fmt::format("plan form: got {}; the convolution has no destination slots", name(plan.form)));
  if (d.is_varlen)
    problems.push_back(
        fmt::format("plan form: got {}; convolution and norm take as many tokens of each request, not "
                    "varlen",
                    name(plan.form)));
  // A pad row's output: the norm knows of no pads, so what it makes of zeros must be zeros.
  if (d.norm && (d.pad_output_kind != PadOutput::zeros || d.norm->has_bias || d.norm->eps == 0))
    problems.push_back(
        fmt::format("plan form: got {}; its norm writes pad rows too, so it wants pad_output=zeros, a "
                    "norm without bias and eps above 0 (else the fused kernel)",
                    name(plan.form)));
  if (d.conv && d.pad_output_kind == PadOutput::as_if_zero_state && !d.norm)
    problems.push_back(
        fmt::format("plan form: got {}; its convolution has no pad_output=as_if_zero_state, take zeros "
                    "(or the fused kernel)",
                    name(plan.form)));
  return problems;
}

std::vector<std::string> chain_problems(const Plan& plan, const Description& description, const Arch& arch) {
  std::vector<std::string> problems = own_chain_problems(plan, description, arch);
  if (!problems.empty()) return problems;
  for (const PlanPart& part : plan_parts(plan, description)) {
    for (const std::string& problem : plan_problems(part.plan, part.description, arch))
      problems.push_back(fmt::format("{}: {}", name(part.description.op()), problem));
  }
  return problems;
}

}  // namespace

std::vector<PlanPart> plan_parts(const Plan& plan, const Description& description) {
  if (description.op() == Op::replay && plan.precompute_warps > 0) {
    // The second is always a dependent launch, which replays before it waits for the first.
    Plan second = plan;
    second.early_state = true;
    return {{description, plan, true}, {description, std::move(second)}};
  }
  if (plan.form == PlanForm::fused || description.op() != Op::layer) return {{description, plan}};
  std::vector<PlanPart> parts;
  for (Description& d : layer_parts(description)) {
    Plan own;
    if (d.op() == Op::conv1d) {
      own = Plan::parse(plan.conv1d, Plan{});
    } else if (d.op() == Op::norm) {
      own = Plan::parse(plan.norm, Plan{});
    } else {
      own = plan;
      own.form = PlanForm::fused;
      own.conv1d.clear();
      own.norm.clear();
    }
    parts.push_back({std::move(d), std::move(own)});
  }
  return parts;
}

Plan chain_of(PlanForm form, const Description& description, const std::vector<Plan>& parts) {
  const std::vector<Description> descriptions = layer_parts(description);
  if (descriptions.empty() || parts.size() != descriptions.size() || form == PlanForm::fused)
    fail(ErrorKind::invalid, "chain: got {} plans of form {} for {}; wants a layer's {}, of form chain or chain_pdl",
         parts.size(), name(form), description.summary(), descriptions.size());
  Plan chain;
  std::string conv1d, norm;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    Plan part = parts[i];
    if (form == PlanForm::chain_pdl && i > 0) part.early_state = true;
    switch (descriptions[i].op()) {
      case Op::conv1d:
        conv1d = part.text();
        break;
      case Op::norm:
        norm = part.text();
        break;
      default:
        chain = std::move(part);
        break;
    }
  }
  chain.form = form;
  chain.conv1d = std::move(conv1d);
  chain.norm = std::move(norm);
  return chain;
}

Plan default_chain(PlanForm form, const Description& description, const Arch& arch, std::int64_t total_heads) {
  const auto batch = static_cast<double>(total_heads) / std::max(1, description.nheads);
  std::vector<Plan> parts;
  for (const Description& part : layer_parts(description)) {
    const auto items = static_cast<std::int64_t>(batch * static_cast<double>(work_items(part, 1)));
    parts.push_back(default_plan(part, arch, std::max<std::int64_t>(items, 1)));
  }
  return chain_of(form, description, parts);
}

std::vector<std::string> plan_problems(const Plan& plan, const Description& description, const Arch& arch) {
  if (plan.form != PlanForm::fused && description.op() == Op::layer) return chain_problems(plan, description, arch);
  const Space& space = Space::of(description);
  std::vector<std::string> problems;
  for (const char* positive : {"block_m", "warps", "lanes_per_row", "heads_per_block", "stages"}) {
    const std::int64_t value = find_field(positive)->get(plan);
    if (value < 1) problems.push_back(fmt::format("plan {}: got {}; wants 1 or more", positive, value));
  }
  const bool power_of_two = plan.lanes_per_row > 0 && (plan.lanes_per_row & (plan.lanes_per_row - 1)) == 0;
  if (plan.lanes_per_row >= 1 && (!power_of_two || plan.lanes_per_row > 32))
    problems.push_back(fmt::format("plan lanes_per_row: got {}; wants a power of two up to 32", plan.lanes_per_row));
  if (plan.min_blocks_per_sm < 0 || plan.min_blocks_per_sm > 32)
    problems.push_back(fmt::format("plan min_blocks_per_sm: got {}; wants 0 to 32", plan.min_blocks_per_sm));
  if (plan.warps > 32) problems.push_back(fmt::format("plan warps: got {}; wants 32 at most", plan.warps));
  for (const NestedField& field : kNested)
    if (!(plan.*field.text).empty())
      problems.push_back(fmt::format("plan {}: got {}; wants none but for a layer's chain (form=chain)", field.name,
                                     in_quotes(plan.*field.text)));
  if ((plan.precompute_warps == 0) != (plan.precompute_heads == 0))
    problems.push_back(fmt::format("plan precompute_warps, precompute_heads: got {} and {}; wants both or neither",
                                   plan.precompute_warps, plan.precompute_heads));
  if (plan.cluster < 1) problems.push_back(fmt::format("plan cluster: got {}; wants 1 or more", plan.cluster));
  for (const Field& field : kFields) {
    if (space.has(field) || field.get(plan) == field.get(Plan{})) continue;
    problems.push_back(fmt::format("plan {}: got {}; {} kernels have no such tunable, leave it out", field.name,
                                   value_text(field, field.get(plan)), name(description.op())));
  }
  if (!problems.empty()) return problems;

  std::vector<std::int64_t> values = space.facts(description, arch);
  space.put(values, plan);
  for (const Space::Rule& rule : space.rules) {
    if (rule.require.evaluate(values) != 0) continue;
    std::string got;
    for (int i : rule.require.uses()) {
      const std::string& n = space.names[static_cast<std::size_t>(i)];
      if (is_value_name(n)) continue;
      const Field* field = find_field(n);
      const std::int64_t value = values[static_cast<std::size_t>(i)];
      got += fmt::format("{}{}={}", got.empty() ? "" : ", ", n,
                         field != nullptr ? value_text(*field, value) : std::to_string(value));
    }
    problems.push_back(
        fmt::format("plan for {}: {} does not hold with {}: {}", arch.text(), rule.require.text(), got, rule.because));
  }
  return problems;
}

void check_plan(const Plan& plan, const Description& description, const Arch& arch) {
  const std::vector<std::string> problems = plan_problems(plan, description, arch);
  if (problems.empty()) return;
  fail(ErrorKind::invalid, "{}", fmt::join(problems, "\n"));
}

std::vector<Plan> plan_space(const Description& description, const Arch& arch) {
  description.validate();
  const Space& space = Space::of(description);
  std::vector<std::int64_t> values = space.facts(description, arch);
  std::vector<Plan> plans;
  Plan plan;
  const std::function<void(std::size_t)> choose = [&](std::size_t i) {
    if (i == space.values.size()) {
      space.put(values, plan);
      for (const Space::Rule& rule : space.rules)
        if (rule.require.evaluate(values) == 0) return;
      plans.push_back(plan);
      return;
    }
    for (std::int64_t value : space.values[i]) {
      space.fields[i]->set(plan, value);
      choose(i + 1);
    }
  };
  choose(0);
  if (description.op() == Op::layer) {
    for (const PlanForm form : {PlanForm::chain, PlanForm::chain_pdl}) {
      Plan chain = default_chain(form, description, arch, kChainItems);
      if (plan_problems(chain, description, arch).empty()) plans.push_back(std::move(chain));
    }
  }
  return plans;
}

Plan default_plan(const Description& description, const Arch& arch, std::int64_t total_heads) {
  std::function<double(const Plan&)> distance;
  switch (description.op()) {
    case Op::ring:
    case Op::replay:
      distance = ring_distance(description, total_heads);
      break;
    case Op::conv1d:
      distance = conv1d_distance();
      break;
    case Op::norm:
      distance = norm_distance(description);
      break;
    case Op::layer:
      distance = description.ring_window() != 0 ? ring_layer_distance(description) : layer_distance(description);
      break;
    default:
      distance = has_token_kernel(description) ? tokens_distance(description, total_heads)
                                               : update_distance(description, total_heads);
      break;
  }
  const Plan* best = nullptr;
  double least = 0;
  const std::vector<Plan> plans = plan_space(description, arch);
  const bool fused = description.op() != Op::layer || description.ring_window() == 0 || total_heads < kFusedRingHeads ||
                     (!plans.empty() && plans.back().form == PlanForm::fused);
  const bool any_registers =
      description.op() == Op::layer && description.ring_window() == 0 && description.token_count == 1;
  for (const Plan& p : plans) {
    if (!fused || p.form != PlanForm::fused || !p.streaming || p.early_state) continue;
    if (p.min_blocks_per_sm != 1 && !any_registers) continue;
    if (p.precompute_warps != 0) continue;
    if (p.cluster > arch.max_cluster()) continue;  // not every GPU of the arch can place it
    const double d = distance(p);
    if (best == nullptr || d < least) best = &p, least = d;
  }
  if (best == nullptr && !plans.empty() && plans.back().form != PlanForm::fused) {
    const Plan chain = default_chain(plans.back().form, description, arch, total_heads);
    return plan_problems(chain, description, arch).empty() ? chain : plans.back();
  }
  if (best == nullptr && !plans.empty()) best = &plans.back();
  if (best == nullptr)
    fail(description.op() == Op::layer ? ErrorKind::invalid : ErrorKind::internal, "no plan for {} on {}{}",
         description.summary(), arch.text(),
         description.op() == Op::layer ? "; launch its conv, update and norm (layer_parts()) one by one" : "");
  return *best;
}

LaunchShape launch_shape(const Plan& plan, const Description& description, int batch) {
  LaunchShape shape;
  if (plan.form != PlanForm::fused) {
    for (const PlanPart& part : plan_parts(plan, description))
      if (part.description.nheads != 0) return launch_shape(part.plan, part.description, batch);
  }
  if (description.op() == Op::conv1d) {
    shape.grid_x = (description.conv_channels() + plan.block_m - 1) / plan.block_m;
    shape.grid_y = batch;
    shape.block_threads = 32 * plan.warps;
    return shape;
  }
  if (description.op() == Op::layer) {
    const std::int64_t channels = std::int64_t{description.nheads} * description.head_dim;
    const std::int64_t group = description.norm ? description.norm_group_size()
                                                : std::int64_t{description.heads_per_group()} * description.head_dim;
    shape.grid_x = channels / group * plan.cluster;
    shape.grid_y = batch;
    shape.block_threads = 32 * plan.warps;
    shape.cluster = plan.cluster;
    if (plan.state_path == StatePath::bulk)
      shape.smem_bytes =
          static_cast<int>(group / plan.cluster * description.dstate * size_bytes(description.state_dtype));
    return shape;
  }
  if (description.op() == Op::norm) {
    const int groups = description.norm_channels() / description.norm_group_size();
    return {.grid_x = (groups + plan.heads_per_block - 1) / plan.heads_per_block,
            .grid_y = std::int64_t{batch} * description.token_count,
            .block_threads = 32 * plan.warps};
  }
  shape.grid_x =
      static_cast<std::int64_t>(description.nheads / plan.heads_per_block) * (description.head_dim / plan.block_m);
  shape.grid_y = batch;
  shape.block_threads = 32 * plan.warps;
  if (plan.state_path != StatePath::direct)
    shape.smem_bytes = plan.block_m * description.dstate * size_bytes(description.state_dtype) * plan.stages;
  if (plan.state_path == StatePath::bulk && description.op() == Op::update)
    shape.smem_bytes += 8 * plan.warps * plan.stages;  // barriers; a ring's are in its static shared memory
  return shape;
}

LaunchShape launch_shape(const PlanPart& part, int batch) {
  if (!part.is_precompute) return launch_shape(part.plan, part.description, batch);
  return {.grid_x = part.description.nheads / part.plan.precompute_heads,
          .grid_y = batch,
          .block_threads = 32 * part.plan.precompute_warps};
}

std::int64_t plan_smem_bytes(const Plan& plan, const Description& description, const Arch& arch) {
  if (plan.form != PlanForm::fused) {
    std::int64_t most = 0;
    for (const PlanPart& part : plan_parts(plan, description))
      most = std::max(most, plan_smem_bytes(part.plan, part.description, arch));
    return most;
  }
  const Space& space = Space::of(description);
  std::vector<std::int64_t> values = space.facts(description, arch);
  space.put(values, plan);
  return space.value("smem_bytes", values);
}

std::int64_t scratch_bytes(const Plan& plan, const Description& description, int batch) {
  if (description.op() == Op::replay && plan.precompute_warps > 0) return replay_scratch_bytes(description, batch);
  if (plan.form == PlanForm::fused || description.op() != Op::layer) return 0;
  const ChainScratch scratch = chain_scratch(description, batch);
  return scratch.bytes;
}

const std::vector<Tunable>& tunables(Op op) { return Space::of(op).tunables; }
const std::vector<Tunable>& tunables(const Description& description) { return Space::of(description).tunables; }

}  // namespace ssmjit
