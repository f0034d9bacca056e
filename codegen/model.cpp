#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>

#include <fmt/core.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <ssmjit/description.h>

#include "codegen/description_json.h"
#include "codegen/fail.h"

namespace ssmjit {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kModelSchema = 1;
constexpr int kRingWindow = 16;  // as the shipped models have it; no config says one

bool is_kernel_name(std::string_view name) {
  return !name.empty() && name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") == std::string_view::npos;
}

// Python writes infinities and NaN as bare words, which JSON does not have; they become text here.
std::string with_quoted_infinities(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  bool in_string = false;
  for (std::size_t i = 0; i < text.size();) {
    if (!in_string) {
      bool replaced = false;
      for (std::string_view word : {"-Infinity", "Infinity", "NaN"}) {
        if (text.substr(i, word.size()) != word) continue;
        out.append("\"").append(word).append("\"");
        i += word.size();
        replaced = true;
        break;
      }
      if (replaced) continue;
    } else if (text[i] == '\\' && i + 1 < text.size()) {
      out += text[i++];
      out += text[i++];
      continue;
    }
    if (text[i] == '"') in_string = !in_string;
    out += text[i++];
  }
  return out;
}

// The fields of a Hugging Face config, with what was wrong with them and which were left to the class's defaults: such
// a file leaves out what equals them.
class Config {
 public:
  explicit Config(const Json& json) : json_(json) {}

  const Json* find(const char* field) const {
    const auto found = json_.find(field);
    return found == json_.end() || found->is_null() ? nullptr : &*found;
  }

  // The first of `names` that is given.
  std::optional<int> integer(std::initializer_list<const char*> names) {
    for (const char* name : names) {
      const Json* const value = find(name);
      if (value == nullptr) continue;
      if (value->is_number_integer() && *value >= 1 && *value <= std::numeric_limits<int>::max()) {
        return value->get<int>();
      }
      wrong(name, fmt::format("got {}; wants a whole number from 1", shown(*value)));
      return 1;
    }
    return {};
  }

  int integer_or(std::initializer_list<const char*> names, int fallback) {
    const std::optional<int> given = integer(names);
    if (!given) defaulted_.push_back(fmt::format("{} {}", *names.begin(), fallback));
    return given.value_or(fallback);
  }

  bool flag_or(const char* name, bool fallback) {
    const Json* const value = find(name);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) wrong(name, fmt::format("got {}; wants true or false", shown(*value)));
    return value->is_boolean() ? value->get<bool>() : fallback;
  }

  // The first of `names` that is given.
  double positive_or(std::initializer_list<const char*> names, double fallback) {
    for (const char* name : names) {
      const Json* const value = find(name);
      if (value == nullptr) continue;
      if (value->is_number() && value->get<double>() > 0) return value->get<double>();
      wrong(name, fmt::format("got {}; wants a number above 0", shown(*value)));
      return fallback;
    }
    return fallback;
  }

  // `model_dtype` stands for "auto".
  std::optional<DType> dtype(std::initializer_list<const char*> names, std::optional<DType> model_dtype) {
    for (const char* name : names) {
      const Json* const value = find(name);
      if (value == nullptr) continue;
      std::string text = value->is_string() ? value->get<std::string>() : "";
      if (text == "auto") return model_dtype;
      if (text.rfind("torch.", 0) == 0) text.erase(0, 6);
      if (text == "half") text = "fp16";
      if (text == "float") text = "fp32";
      try {
        const DType out = parse_dtype(text);
        if (out == DType::f32 || out == DType::bf16 || out == DType::f16) return out;
      } catch (const Error&) {
      }
      wrong(name, fmt::format("got {}; wants float32, bfloat16 or float16", shown(*value)));
      return DType::bf16;
    }
    return {};
  }

  // [low, high]; an end may be infinite, in any of the ways in which transformers has written that.
  std::array<double, 2> limits(const char* name) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    std::array<double, 2> out = {0.0, kInfinity};
    const Json* const value = find(name);
    if (value == nullptr) return out;
    bool ok = value->is_array() && value->size() == 2;
    for (std::size_t i = 0; ok && i < 2; ++i) {
      const Json* end = &(*value)[i];
      if (end->is_object() && end->contains("__float__")) end = &(*end)["__float__"];
      if (end->is_number()) {
        out[i] = end->get<double>();
      } else if (*end == "Infinity" || *end == "inf") {
        out[i] = kInfinity;
      } else if (*end == "-Infinity" || *end == "-inf") {
        out[i] = -kInfinity;
      } else {
        ok = false;
      }
    }
    if (!ok || out[0] > out[1] || out[1] <= 0) {
      wrong(name, fmt::format("got {}; wants [low, high] with low <= high and high above 0",
                              ok ? fmt::format("[{}, {}]", out[0], out[1]) : shown(*value)));
      return {0.0, kInfinity};
    }
    return out;
  }

  void wrong(std::string_view field, std::string_view what) { problems_.push_back(fmt::format("{}: {}", field, what)); }
  const std::vector<std::string>& problems() const { return problems_; }
  const std::vector<std::string>& defaulted() const { return defaulted_; }

 private:
  const Json& json_;
  std::vector<std::string> problems_;
  std::vector<std::string> defaulted_;
};

// The whole model's, before it is split over ranks.
struct HfSizes {
  Sizes sizes;
  Expr delta;
  std::string delta_note;
  int conv_width = 4;
  bool conv_bias = true;
  double norm_eps = 1e-5;
  bool has_norm = true;  // else z gates the update's output
  std::string norm_note;
};

// What is around the update: the fields' names differ by model, the defaults do not.
void read_around(Config& config, const char* width, const char* bias, const char* activation,
                 std::initializer_list<const char*> eps, HfSizes& out) {
  out.conv_width = config.integer({width}).value_or(4);
  out.conv_bias = config.flag_or(bias, true);
  out.norm_eps = config.positive_or(eps, 1e-5);
  const Json* const given = config.find(activation);
  if (given != nullptr && *given != "silu" && *given != "swish")
    config.wrong(activation, fmt::format("got {}; wants silu, of the convolution and of the gate", shown(*given)));
}

// As mamba_ssm and vLLM compute it, whatever transformers' class does.
void note_norm_groups(HfSizes& out) {
  if (out.sizes.ngroups > 1)
    out.norm_note +=
        "; the norm is of each group's channels, as mamba_ssm and vLLM have it; transformers takes all as one group";
}

Expr usual_delta() { return mamba2({}).delta_expr; }

void apply_limits(std::array<double, 2> limits, HfSizes& out) {
  const auto [low, high] = limits;
  out.delta = usual_delta();
  const bool has_low = std::isfinite(low) && low > 0;
  const bool has_high = std::isfinite(high);
  if (has_high) {
    out.delta = std::isfinite(low) ? clamp(out.delta, low, high) : min(out.delta, high);
  } else if (has_low) {
    out.delta = max(out.delta, low);
  }
  if (has_high || has_low) {
    out.delta_note =
        "; delta is clamped to time_step_limit, as at prefill; selective_state_update as transformers calls it at "
        "decode leaves that clamp out (for its values, set delta=softplus(dt + dt_bias))";
  }
}

HfSizes read_mamba2(Config& config) {
  HfSizes out;
  const std::optional<int> hidden = config.integer({"hidden_size", "d_model"});
  const std::int64_t inner = std::int64_t{hidden.value_or(4096)} * config.integer({"expand"}).value_or(2);
  std::optional<int> heads = config.integer({"num_heads", "nheads"});
  const int head_dim = config.integer_or({"head_dim", "headdim"}, 64);
  if (!heads && hidden) {
    if (inner % head_dim != 0 || inner / head_dim > std::numeric_limits<int>::max()) {
      config.wrong("num_heads", fmt::format("missing, and expand * hidden_size ({}) is no multiple of head_dim ({})",
                                            inner, head_dim));
    } else {
      heads = static_cast<int>(inner / head_dim);
    }
  }
  if (!heads) heads = config.integer_or({"num_heads", "nheads"}, 128);
  if (hidden && std::int64_t{*heads} * head_dim != inner) {
    config.wrong("num_heads",
                 fmt::format("got {}; wants expand * hidden_size / head_dim ({} / {})", *heads, inner, head_dim));
  }
  out.sizes = {.nheads = *heads,
               .head_dim = head_dim,
               .dstate = config.integer_or({"state_size", "d_state"}, 128),
               .ngroups = config.integer_or({"n_groups", "ngroups"}, 8)};
  apply_limits(config.limits("time_step_limit"), out);
  read_around(config, "conv_kernel", "use_conv_bias", "hidden_act", {"layer_norm_epsilon"}, out);
  out.has_norm = config.flag_or("rms_norm", true);
  note_norm_groups(out);
  if (config.flag_or("norm_before_gate", false))
    out.norm_note +=
        "; the gate is applied before the norm, as transformers, vLLM and mamba_ssm do, none of which reads the "
        "config's norm_before_gate (for a model that norms first: norm.before_gate=true)";
  return out;
}

HfSizes read_nemotron_h(Config& config) {
  HfSizes out;
  out.sizes = {.nheads = config.integer_or({"mamba_num_heads"}, 128),
               .head_dim = config.integer_or({"mamba_head_dim"}, 64),
               .dstate = config.integer_or({"ssm_state_size"}, 128),
               .ngroups = config.integer_or({"mamba_n_groups", "n_groups"}, 8)};
  // The model does not read time_step_limit at all, and bounds delta below by time_step_min at prefill only.
  out.delta = usual_delta();
  out.delta_note = "; delta is not clamped: transformers does that at prefill only (time_step_min)";
  read_around(config, "conv_kernel", "use_conv_bias", "mamba_hidden_act", {"layer_norm_epsilon", "norm_eps"}, out);
  return out;
}

HfSizes read_bamba(Config& config) {
  HfSizes out;
  const int heads = config.integer_or({"mamba_n_heads"}, 128);
  const std::int64_t inner =
      std::int64_t{config.integer({"hidden_size"}).value_or(4096)} * config.integer({"mamba_expand"}).value_or(2);
  const Json* const given = config.find("mamba_d_head");
  int head_dim = 1;
  if (given == nullptr || *given == "auto") {
    if (inner % heads != 0 || inner / heads > std::numeric_limits<int>::max()) {
      config.wrong("mamba_d_head", fmt::format("\"auto\", and mamba_expand * hidden_size ({}) is no multiple of "
                                               "mamba_n_heads ({})",
                                               inner, heads));
    } else {
      head_dim = static_cast<int>(inner / heads);
    }
  } else {
    head_dim = config.integer_or({"mamba_d_head"}, 64);
    if (std::int64_t{head_dim} * heads != inner && config.problems().empty()) {
      config.wrong("mamba_d_head", fmt::format("got {}; wants mamba_expand * hidden_size / mamba_n_heads ({} / {})",
                                               head_dim, inner, heads));
    }
  }
  out.sizes = {.nheads = heads,
               .head_dim = head_dim,
               .dstate = config.integer_or({"mamba_d_state"}, 256),
               .ngroups = config.integer_or({"mamba_n_groups"}, 1)};
  apply_limits(config.limits("time_step_limit"), out);
  read_around(config, "mamba_d_conv", "mamba_conv_bias", "hidden_act", {"rms_norm_eps"}, out);
  note_norm_groups(out);
  return out;
}

// One rank's part. Heads are split; groups too, or replicated where there are fewer of them than ranks.
Sizes split(const Sizes& all, int tp, std::vector<std::string>& problems) {
  Sizes out = all;
  if (all.nheads % tp != 0) {
    problems.push_back(fmt::format("tp: got {}; wants a divisor of the number of heads ({})", tp, all.nheads));
  } else {
    out.nheads = all.nheads / tp;
  }
  if (all.ngroups % tp == 0) {
    out.ngroups = all.ngroups / tp;
  } else if (tp % all.ngroups == 0) {
    out.ngroups = 1;
  } else {
    problems.push_back(
        fmt::format("tp: got {}; wants a divisor or a multiple of the number of groups ({})", tp, all.ngroups));
  }
  return out;
}

[[noreturn]] void fail_all(const std::vector<std::string>& problems) {
  fail(ErrorKind::invalid, "{}", fmt::join(problems, "\n"));
}

}  // namespace

Model Model::from_json(std::string_view text) {
  const Json json = parse_json(text, "model");
  Model out;
  if (!json.is_object()) fail(ErrorKind::invalid, "model: got {}; wants an object", shown(json));
  if (!json.contains("kernels")) {
    out.kernels.emplace_back("update", description_from_json_value(json));
    return out;
  }

  std::vector<std::string> problems;
  for (const auto& [key, value] : json.items()) {
    if (key == "schema") {
      if (!value.is_number_integer() || value != kModelSchema) {
        problems.push_back(fmt::format("schema: got {}; this version reads schema {}", shown(value), kModelSchema));
      }
    } else if (key == "model" || key == "source") {
      if (value.is_string()) {
        (key == "model" ? out.model : out.source) = value.get<std::string>();
      } else {
        problems.push_back(fmt::format("{}: got {}; wants text", key, shown(value)));
      }
    } else if (key == "kernels") {
      if (!value.is_object() || value.empty()) {
        problems.push_back("kernels: wants an object with a description for each kernel, such as \"update\"");
        continue;
      }
      for (const auto& [kernel, description] : value.items()) {
        if (!is_kernel_name(kernel)) {
          problems.push_back(fmt::format("kernels: got the name {}; wants a-z, 0-9 and _", in_quotes(kernel)));
          continue;
        }
        std::vector<std::string> wrong;
        out.kernels.emplace_back(kernel, read_description(description, wrong));
        for (const std::string& sentence : wrong) problems.push_back(fmt::format("kernels.{}: {}", kernel, sentence));
      }
    } else {
      problems.push_back(fmt::format("unknown field {}; known are schema, model, source, kernels", in_quotes(key)));
    }
  }
  if (!problems.empty()) fail_all(problems);
  return out;
}

std::string Model::json(int indent) const {
  Json out = {{"schema", kModelSchema}, {"model", model}, {"source", source}, {"kernels", Json::object()}};
  for (const auto& [kernel, description] : kernels) out["kernels"][kernel] = to_json_value(description);
  // A name that is no UTF-8 must not make the file unwritable.
  return out.dump(indent, ' ', false, Json::error_handler_t::replace);
}

const Description& Model::kernel(std::string_view name) const {
  std::vector<std::string_view> names;
  for (const auto& [kernel, description] : kernels) {
    if (kernel == name) return description;
    names.push_back(kernel);
  }
  fail(ErrorKind::invalid, "{} has no kernel {}; it has {}", model.empty() ? "the description" : in_quotes(model),
       in_quotes(name), names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", ")));
}

Model from_hf(std::string_view config_json, int tp) {
  const Json json = parse_json(with_quoted_infinities(config_json), "config");
  if (!json.is_object()) fail(ErrorKind::invalid, "config: got {}; wants an object", shown(json));
  if (tp < 1) fail(ErrorKind::invalid, "tp: got {}; wants 1 or more", tp);

  Config config(json);
  const Json* const type_value = config.find("model_type");
  const std::string type = type_value != nullptr && type_value->is_string() ? type_value->get<std::string>() : "";
  HfSizes whole;
  if (type == "mamba2") {
    whole = read_mamba2(config);
  } else if (type == "nemotron_h") {
    whole = read_nemotron_h(config);
  } else if (type == "bamba") {
    whole = read_bamba(config);
  } else {
    fail(ErrorKind::invalid, "model_type: got {}; this version reads mamba2, nemotron_h and bamba",
         type_value == nullptr ? "nothing" : shown(*type_value));
  }

  const DType model_dtype = config.dtype({"dtype", "torch_dtype"}, DType::bf16).value_or(DType::bf16);
  const std::optional<DType> state_dtype = config.dtype({"mamba_ssm_cache_dtype"}, model_dtype);
  std::vector<std::string> problems = config.problems();
  const Sizes sizes = split(whole.sizes, tp, problems);
  if (!problems.empty()) fail_all(problems);

  // dt leaves the projection in the model's dtype and dt_bias and D are loaded in it; there is no fp16 form of them.
  const DType side_dtype = model_dtype == DType::bf16 ? DType::bf16 : DType::f32;
  Description update = mamba2(sizes)
                           .input(model_dtype)
                           .dt(side_dtype)
                           .weights(side_dtype)
                           .state(state_dtype.value_or(DType::f32))
                           .delta(whole.delta);
  if (!whole.has_norm) update.gate(silu(dsl::z));
  const std::vector<std::string> wrong = update.problems();
  if (!wrong.empty()) fail_all(wrong);

  Model out;
  out.model = tp == 1 ? type : fmt::format("{}-tp{}", type, tp);
  out.source = fmt::format("a Hugging Face config.json of model_type {}", type);
  if (tp > 1) out.source += fmt::format(", one rank of {}", tp);
  if (!config.defaulted().empty()) {
    out.source += fmt::format("; defaults of its configuration class where it is silent: {}",
                              fmt::join(config.defaulted(), ", "));
  }
  if (!state_dtype) out.source += "; state fp32, as it names no mamba_ssm_cache_dtype";
  if (model_dtype == DType::f16) out.source += "; dt, dt_bias and D to be given in fp32";
  out.source += whole.delta_note;
  if (whole.has_norm)
    out.source += "; no gate in the update: the gated RMSNorm after it applies z";
  else
    out.source += "; no norm (rms_norm false): z gates the update's output";
  out.source += whole.norm_note;

  // The kernels in launch order; one that can't be described is left out, saying why.
  const auto add = [&](const char* name, Description kernel) {
    const std::vector<std::string> why = kernel.problems();
    if (why.empty())
      out.kernels.emplace_back(name, std::move(kernel));
    else
      out.source += fmt::format("; no {}: {}", name, why.front());
  };
  const int inner = sizes.nheads * sizes.head_dim;
  const Conv conv{.width = whole.conv_width, .has_bias = whole.conv_bias, .activation_expr = silu(dsl::x)};
  Conv alone = conv;
  alone.channels = inner + 2 * sizes.ngroups * sizes.dstate;
  alone.state_len = conv.width - 1;
  add("conv1d", conv1d(std::move(alone)).input(model_dtype).weights(model_dtype).state(model_dtype));
  Description ring = update;
  ring.store(Ring{.window = kRingWindow});
  Description layer = update;
  layer.with_conv(conv);
  out.kernels.emplace_back("update", std::move(update));
  add("ring", std::move(ring));
  if (whole.has_norm && whole.sizes.ngroups % tp != 0) {
    // Its sum of squares is of several ranks.
    out.source += "; no norm and no layers: a rank has part of a group of the norm";
    return out;
  }
  if (whole.has_norm) {
    Norm norm{.group_size = inner / sizes.ngroups, .eps = whole.norm_eps, .gate_expr = silu(dsl::z)};
    layer.with_norm(norm);
    norm.channels = inner;
    add("norm", gated_norm(std::move(norm)).input(model_dtype).weights(model_dtype));
  }
  Description ring_layer = layer;
  ring_layer.store(Ring{.window = kRingWindow});
  add("layer", std::move(layer));
  add("ring_layer", std::move(ring_layer));
  return out;
}

}  // namespace ssmjit
