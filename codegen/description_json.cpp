#include "codegen/description_json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>

#include <fmt/core.h>
#include <fmt/ranges.h>

#include "codegen/fail.h"

namespace ssmjit {
namespace {

using Json = nlohmann::json;

// One field of the JSON form. `read` puts `value` into the description; it returns what was wrong with it ("got 6;
// wants ..."), or nothing.
struct Field {
  const char* name;
  std::optional<std::string> (*read)(const Json& value, Description& description);
};

using Wrong = std::optional<std::string>;

Wrong got(const Json& value, std::string_view wanted) { return fmt::format("got {}; {}", shown(value), wanted); }

Wrong read_int(const Json& value, int& out) {
  // nlohmann keeps what is above the int64 range as unsigned.
  if (!value.is_number_integer()) return got(value, "wants a whole number");
  constexpr std::int64_t kMost = std::numeric_limits<int>::max();
  const bool fits = value.is_number_unsigned()
                        ? value.get<std::uint64_t>() <= static_cast<std::uint64_t>(kMost)
                        : value.get<std::int64_t>() <= kMost && value.get<std::int64_t>() >= -kMost;
  if (!fits) return got(value, "wants a whole number that fits 32 bits");
  out = value.get<int>();
  return {};
}

Wrong read_bool(const Json& value, bool& out) {
  if (!value.is_boolean()) return got(value, "wants true or false");
  out = value.get<bool>();
  return {};
}

Wrong read_dtype(const Json& value, DType& out) {
  if (!value.is_string()) return got(value, "wants a dtype: fp32, bf16, fp16, int8, fp8, int32 or int64");
  try {
    out = parse_dtype(value.get_ref<const std::string&>());
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

// null takes the expression away.
Wrong read_expression(const Json& value, Expr& out) {
  if (value.is_null()) {
    out = Expr();
    return {};
  }
  if (!value.is_string()) return got(value, "wants an expression as text, or null");
  try {
    out = Expr::parse(value.get_ref<const std::string&>());
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

// What a step stores and how it rounds have a kind and its numbers: {"kind": "ring", "window": 16}, or as one text
// "ring:16", the numbers in the order of the names.
struct Kind {
  std::string name;
  std::vector<std::pair<std::string, int>> numbers;  // in the order given
};

// `kinds`: those that there are, each with the names of its numbers.
using Kinds = std::vector<std::pair<std::string_view, std::vector<std::string_view>>>;

Wrong read_kind(const Json& value, const Kinds& kinds, Kind& out) {
  std::string known;
  for (const auto& [name, numbers] : kinds) known += fmt::format("{}{}", known.empty() ? "" : " or ", name);
  const std::string wanted = fmt::format("wants {}", known);
  const auto find = [&](std::string_view name) -> const std::vector<std::string_view>* {
    for (const auto& [each, numbers] : kinds)
      if (each == name) return &numbers;
    return nullptr;
  };
  if (value.is_string()) {
    std::string_view text = value.get_ref<const std::string&>();
    std::size_t end = text.find(':');
    out.name = text.substr(0, end);
    const auto* names = find(out.name);
    if (names == nullptr) return got(value, wanted);
    for (std::size_t i = 0; end != std::string_view::npos; ++i) {
      text.remove_prefix(end + 1);
      end = text.find(':');
      const std::string_view part = text.substr(0, end);
      int number = 0;
      const auto [stop, error] = std::from_chars(part.data(), part.data() + part.size(), number);
      if (i >= names->size() || error != std::errc() || stop != part.data() + part.size()) {
        if (names->empty()) return got(value, fmt::format("wants {} alone", out.name));
        return got(value, fmt::format("wants {}:{} with whole numbers", out.name, fmt::join(*names, ":")));
      }
      out.numbers.emplace_back((*names)[i], number);
    }
    return {};
  }
  if (!value.is_object()) return got(value, wanted);
  const auto kind = value.find("kind");
  if (kind == value.end()) return fmt::format("got an object without \"kind\"; {}", wanted);
  if (!kind->is_string()) return got(*kind, wanted);
  out.name = kind->get_ref<const std::string&>();
  const auto* names = find(out.name);
  if (names == nullptr) return got(*kind, wanted);
  for (const auto& item : value.items()) {
    if (item.key() == "kind") continue;
    if (std::find(names->begin(), names->end(), item.key()) == names->end()) {
      return fmt::format("got an unknown field {}; {} has {}", in_quotes(item.key()), out.name,
                         names->empty() ? "none" : fmt::format("{}", fmt::join(*names, ", ")));
    }
    int number = 0;
    if (const Wrong wrong = read_int(item.value(), number)) return fmt::format("{}: {}", item.key(), *wrong);
    out.numbers.emplace_back(item.key(), number);
  }
  return {};
}

Wrong read_rounding(const Json& value, Rounding& out) {
  Kind kind;
  if (Wrong wrong = read_kind(value, {{"nearest", {}}, {"stochastic", {"philox_rounds"}}}, kind)) return wrong;
  out = Nearest{};
  if (kind.name == "nearest") return {};
  Stochastic stochastic;
  for (const auto& [name, number] : kind.numbers) stochastic.philox_rounds = number;
  out = stochastic;
  return {};
}

Wrong read_store(const Json& value, Store& out) {
  Kind kind;
  if (Wrong wrong = read_kind(
          value, {{"in_place", {}}, {"snapshots", {}}, {"slots", {}}, {"replay", {}}, {"ring", {"window", "length"}}},
          kind))
    return wrong;
  if (kind.name == "in_place")
    out = InPlace{};
  else if (kind.name == "snapshots")
    out = Snapshots{};
  else if (kind.name == "slots")
    out = Slots{};
  else if (kind.name == "replay")
    out = Replay{};
  if (kind.name != "ring") return {};
  Ring ring;
  for (const auto& [name, number] : kind.numbers) (name == "window" ? ring.window : ring.length) = number;
  out = ring;
  return {};
}

template <typename Enum>
Wrong read_name(const Json& value, std::initializer_list<Enum> all, Enum& out) {
  std::string known;
  for (Enum each : all) {
    if (value.is_string() && value.get_ref<const std::string&>() == name(each)) {
      out = each;
      return {};
    }
    known += fmt::format("{}{}", known.empty() ? "" : each == *(all.end() - 1) ? " or " : ", ", name(each));
  }
  return got(value, fmt::format("wants {}", known));
}

// One field of a part that is an object of its own.
template <typename Part>
struct PartField {
  const char* name;
  Wrong (*read)(const Json& value, Part& part);
};

constexpr PartField<Conv> kConvFields[] = {
    {"channels", [](const Json& value, Conv& c) { return read_int(value, c.channels); }},
    {"width", [](const Json& value, Conv& c) { return read_int(value, c.width); }},
    {"state_len", [](const Json& value, Conv& c) { return read_int(value, c.state_len); }},
    {"bias", [](const Json& value, Conv& c) { return read_bool(value, c.has_bias); }},
    {"activation", [](const Json& value, Conv& c) { return read_expression(value, c.activation_expr); }},
    {"channels_last", [](const Json& value, Conv& c) { return read_bool(value, c.channels_last); }},
    {"store",
     [](const Json& value, Conv& c) {
       return read_name(value, {ConvStore::shift, ConvStore::circular}, c.store);
     }},
    {"keep",
     [](const Json& value, Conv& c) {
       return read_name(value, {ConvKeep::last, ConvKeep::snapshots, ConvKeep::slots}, c.keep);
     }},
    {"accepted", [](const Json& value, Conv& c) { return read_bool(value, c.has_accepted); }},
};
constexpr PartField<Norm> kNormFields[] = {
    {"channels", [](const Json& value, Norm& n) { return read_int(value, n.channels); }},
    {"group_size", [](const Json& value, Norm& n) { return read_int(value, n.group_size); }},
    {"eps",
     [](const Json& value, Norm& n) -> Wrong {
       if (!value.is_number()) return got(value, "wants a number");
       n.eps = value.get<double>();
       return {};
     }},
    {"gate", [](const Json& value, Norm& n) { return read_expression(value, n.gate_expr); }},
    {"before_gate", [](const Json& value, Norm& n) { return read_bool(value, n.before_gate); }},
    {"bias", [](const Json& value, Norm& n) { return read_bool(value, n.has_bias); }},
};

// A part's field by name; fields of a part that is not there make one.
template <typename Part, std::size_t kCount>
Wrong read_part_field(const PartField<Part> (&fields)[kCount], std::string_view name, const Json& value,
                      std::optional<Part>& out) {
  std::string known;
  for (const PartField<Part>& field : fields) {
    if (name == field.name) {
      if (!out) out.emplace();
      const Wrong wrong = field.read(value, *out);
      return wrong ? fmt::format("{}: {}", name, *wrong) : Wrong();
    }
    known += fmt::format("{}{}", known.empty() ? "" : ", ", field.name);
  }
  return fmt::format("got an unknown field {}; known are {}", in_quotes(name), known);
}

// null takes the part away.
template <typename Part, std::size_t kCount>
Wrong read_part(const PartField<Part> (&fields)[kCount], const Json& value, std::optional<Part>& out) {
  out.reset();
  if (value.is_null()) return {};
  if (!value.is_object()) return got(value, "wants an object, or null");
  out.emplace();
  for (const auto& item : value.items()) {
    if (Wrong wrong = read_part_field(fields, item.key(), item.value(), out)) return wrong;
  }
  return {};
}

// Which op a description has follows from what it holds; a file that names it must name the same.
Wrong read_op(const Json& value) {
  std::string known;
  for (Op each : kOps) {
    if (value.is_string() && value.get_ref<const std::string&>() == name(each)) return {};
    known += fmt::format("{}{}", known.empty() ? "" : each == std::end(kOps)[-1] ? " and " : ", ", name(each));
  }
  return got(value, fmt::format("not available in this version; {} are", known));
}
Wrong check_op(const Json& value, const Description& description) {
  if (read_op(value) || value.get_ref<const std::string&>() == name(description.op())) return {};
  const auto has_store = [](std::string_view op) {
    return op == name(Op::update) || op == name(Op::ring) || op == name(Op::replay);
  };
  const std::string wanted = value.get<std::string>();
  if (has_store(name(description.op())) && has_store(wanted)) {
    return fmt::format("got {}, but the store makes it {}; leave it out, or give the store of {}", shown(value),
                       name(description.op()), wanted);
  }
  return fmt::format("got {}, but its heads, conv and norm make it {}; leave it out, or give what {} has", shown(value),
                     name(description.op()), wanted);
}

Wrong read_family(const Json& value) {
  if (value.is_string() && value.get_ref<const std::string&>() == "mamba2") return {};
  return got(value, "not available in this version; mamba2 is");
}

Wrong read_pad_output(const Json& value, PadOutput& out) {
  return read_name(value, {PadOutput::zeros, PadOutput::untouched, PadOutput::as_if_zero_state}, out);
}

Wrong read_schema(const Json& value) {
  if (value.is_number_integer() && value == kDescriptionSchema) return {};
  return got(value, fmt::format("this version reads schema {}", kDescriptionSchema));
}

// In the order that they are written.
constexpr Field kFields[] = {
    {"schema", [](const Json& value, Description&) { return read_schema(value); }},
    {"op", [](const Json& value, Description&) { return read_op(value); }},
    {"family", [](const Json& value, Description&) { return read_family(value); }},
    {"nheads", [](const Json& value, Description& d) { return read_int(value, d.nheads); }},
    {"head_dim", [](const Json& value, Description& d) { return read_int(value, d.head_dim); }},
    {"dstate", [](const Json& value, Description& d) { return read_int(value, d.dstate); }},
    {"ngroups", [](const Json& value, Description& d) { return read_int(value, d.ngroups); }},
    {"tokens", [](const Json& value, Description& d) { return read_int(value, d.token_count); }},
    {"input", [](const Json& value, Description& d) { return read_dtype(value, d.input_dtype); }},
    {"dt", [](const Json& value, Description& d) { return read_dtype(value, d.dt_dtype); }},
    {"weights", [](const Json& value, Description& d) { return read_dtype(value, d.weight_dtype); }},
    {"state", [](const Json& value, Description& d) { return read_dtype(value, d.state_dtype); }},
    {"delta", [](const Json& value, Description& d) { return read_expression(value, d.delta_expr); }},
    {"decay", [](const Json& value, Description& d) { return read_expression(value, d.decay_expr); }},
    {"skip", [](const Json& value, Description& d) { return read_expression(value, d.skip_expr); }},
    {"gate", [](const Json& value, Description& d) { return read_expression(value, d.gate_expr); }},
    {"rounding", [](const Json& value, Description& d) { return read_rounding(value, d.rounding_kind); }},
    {"store", [](const Json& value, Description& d) { return read_store(value, d.store_kind); }},
    {"destination_slots", [](const Json& value, Description& d) { return read_bool(value, d.has_destination); }},
    {"aligned_rows", [](const Json& value, Description& d) { return read_bool(value, d.aligned_rows); }},
    {"pad_output", [](const Json& value, Description& d) { return read_pad_output(value, d.pad_output_kind); }},
    {"varlen", [](const Json& value, Description& d) { return read_bool(value, d.is_varlen); }},
    {"accepted", [](const Json& value, Description& d) { return read_bool(value, d.has_accepted); }},
    {"tree", [](const Json& value, Description& d) { return read_bool(value, d.has_tree); }},
    {"conv", [](const Json& value, Description& d) { return read_part(kConvFields, value, d.conv); }},
    {"norm", [](const Json& value, Description& d) { return read_part(kNormFields, value, d.norm); }},
};

constexpr const char* kRequired[] = {"nheads", "head_dim", "dstate"};

// Whether a description in JSON is of a convolution or a norm alone.
bool is_alone(const Json& value) {
  const auto part = [&](const char* field) { return value.contains(field) && !value[field].is_null(); };
  return (part("conv") || part("norm")) && (!value.contains("nheads") || value["nheads"] == 0);
}

const Field* find_field(std::string_view name) {
  for (const Field& field : kFields) {
    if (name == field.name) return &field;
  }
  return nullptr;
}

std::string known_fields() {
  std::string list;
  for (const Field& field : kFields) list += (list.empty() ? "" : ", ") + std::string(field.name);
  return list;
}

Json expression_value(const Expr& expr) { return expr.empty() ? Json() : Json(expr.text()); }

std::string_view trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(" \t\n\r");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\n\r") - first + 1);
}

// The field that a name in set() means: the JSON names, and those of the struct's members.
std::string_view field_of_alias(std::string_view name) {
  if (name == "token_count") return "tokens";
  for (std::string_view dtype : {"input", "dt", "weight", "state"}) {
    if (name == std::string(dtype) + "_dtype") return dtype == "weight" ? "weights" : dtype;
  }
  return name;
}

// What `text` would be in JSON: a number, true or false, null for "none", else text.
Json value_of_assignment(std::string_view text) {
  if (text == "none" || text == "null") return nullptr;
  if (text == "true" || text == "on" || text == "yes") return true;
  if (text == "false" || text == "off" || text == "no") return false;
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc() && end == text.data() + text.size()) return number;
  double real = 0;
  const auto [real_end, real_error] = std::from_chars(text.data(), text.data() + text.size(), real);
  if (real_error == std::errc() && real_end == text.data() + text.size() && std::isfinite(real)) return real;
  return std::string(text);
}

bool holds_expression(std::string_view field) {
  return field == "delta" || field == "decay" || field == "skip" || field == "gate";
}

// "a=1,b=min(x, 2)" -> "a=1" and "b=min(x, 2)".
std::vector<std::string_view> split_assignments(std::string_view text) {
  std::vector<std::string_view> out;
  int depth = 0;
  std::size_t start = 0;
  for (std::size_t i = 0; i <= text.size(); ++i) {
    if (i == text.size() || (text[i] == ',' && depth == 0)) {
      out.push_back(trimmed(text.substr(start, i - start)));
      start = i + 1;
    } else if (text[i] == '(') {
      ++depth;
    } else if (text[i] == ')' && depth > 0) {
      --depth;
    }
  }
  return out;
}

}  // namespace

template <typename JsonValue>
std::string shown(const JsonValue& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  if (value.is_string()) return in_quotes(value.template get_ref<const std::string&>());
  return value.dump();
}
template std::string shown(const nlohmann::json&);
template std::string shown(const nlohmann::ordered_json&);

nlohmann::ordered_json parse_json(std::string_view text, std::string_view what) {
  constexpr int kDeepest = 64;
  int depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kDeepest) fail(ErrorKind::invalid, "{}: not JSON: nested deeper than {} levels", what, kDeepest);
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  try {
    return nlohmann::ordered_json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..." without the part for programs.
    std::string_view reason = error.what();
    if (const std::size_t end = reason.find("] "); end != std::string_view::npos) reason.remove_prefix(end + 2);
    std::string printable = in_quotes(reason);
    fail(ErrorKind::invalid, "{}: not JSON: {}", what, printable.substr(1, printable.size() - 2));
  }
}

namespace {

nlohmann::ordered_json conv_value(const Conv& c) {
  return {{"channels", c.channels},
          {"width", c.width},
          {"state_len", c.state_len},
          {"bias", c.has_bias},
          {"activation", expression_value(c.activation_expr)},
          {"channels_last", c.channels_last},
          {"store", name(c.store)},
          {"keep", name(c.keep)},
          {"accepted", c.has_accepted}};
}

nlohmann::ordered_json norm_value(const Norm& n) {
  return {{"channels", n.channels},
          {"group_size", n.group_size},
          {"eps", n.eps},
          {"gate", expression_value(n.gate_expr)},
          {"before_gate", n.before_gate},
          {"bias", n.has_bias}};
}

nlohmann::ordered_json alone_value(const Description& d) {
  nlohmann::ordered_json json = {{"schema", kDescriptionSchema},
                                 {"op", name(d.op())},
                                 {"tokens", d.token_count},
                                 {"input", name(d.input_dtype)},
                                 {"weights", name(d.weight_dtype)}};
  if (d.conv) {
    json["state"] = name(d.state_dtype);
    json["conv"] = conv_value(*d.conv);
    json["pad_output"] = name(d.pad_output_kind);
  }
  if (d.norm) json["norm"] = norm_value(*d.norm);
  json["aligned_rows"] = d.aligned_rows;
  return json;
}

}  // namespace

nlohmann::ordered_json to_json_value(const Description& d) {
  if (d.op() == Op::conv1d || d.op() == Op::norm) return alone_value(d);
  nlohmann::ordered_json rounding = "nearest", store = {{"kind", "in_place"}};
  if (const auto* stochastic = std::get_if<Stochastic>(&d.rounding_kind))
    rounding = {{"kind", "stochastic"}, {"philox_rounds", stochastic->philox_rounds}};
  if (const auto* ring = std::get_if<Ring>(&d.store_kind)) {
    store = {{"kind", "ring"}, {"window", ring->window}};
    if (ring->length != 0) store["length"] = ring->length;
  } else if (std::holds_alternative<Snapshots>(d.store_kind)) {
    store = {{"kind", "snapshots"}};
  } else if (std::holds_alternative<Slots>(d.store_kind)) {
    store = {{"kind", "slots"}};
  } else if (std::holds_alternative<Replay>(d.store_kind)) {
    store = {{"kind", "replay"}};
  }
  nlohmann::ordered_json json = {
      {"schema", kDescriptionSchema},
      {"op", name(d.op())},
      {"family", name(d.family)},
      {"nheads", d.nheads},
      {"head_dim", d.head_dim},
      {"dstate", d.dstate},
      {"ngroups", d.ngroups},
      {"tokens", d.token_count},
      {"input", name(d.input_dtype)},
      {"dt", name(d.dt_dtype)},
      {"weights", name(d.weight_dtype)},
      {"state", name(d.state_dtype)},
      {"delta", expression_value(d.delta_expr)},
      {"decay", expression_value(d.decay_expr)},
      {"skip", expression_value(d.skip_expr)},
      {"gate", expression_value(d.gate_expr)},
      {"rounding", std::move(rounding)},
      {"store", std::move(store)},
      {"destination_slots", d.has_destination},
      {"aligned_rows", d.aligned_rows},
      {"pad_output", name(d.pad_output_kind)},
  };
  if (d.is_varlen) json["varlen"] = true;
  if (d.has_accepted) json["accepted"] = true;
  if (d.has_tree) json["tree"] = true;
  if (d.conv) json["conv"] = conv_value(*d.conv);
  if (d.norm) json["norm"] = norm_value(*d.norm);
  return json;
}

Description read_description(const Json& value, std::vector<std::string>& problems) {
  const bool alone = value.is_object() && is_alone(value);
  Description out = alone ? conv1d({}) : mamba2({});
  out.conv.reset();  // the file says which parts there are
  if (!value.is_object()) {
    problems.push_back(fmt::format("description: got {}; wants an object", shown(value)));
    return out;
  }
  for (const char* field : kRequired) {
    if (!alone && !value.contains(field)) problems.push_back(fmt::format("{}: missing; wants a whole number", field));
  }
  bool store_read = true;
  for (const Field& field : kFields) {
    const auto found = value.find(field.name);
    if (found == value.end()) continue;
    const Wrong wrong = field.read(*found, out);
    if (!wrong) continue;
    store_read = store_read && std::string_view(field.name) != "store";
    problems.push_back(fmt::format("{}: {}", field.name, *wrong));
  }
  if (const auto op = value.find("op"); store_read && op != value.end()) {
    if (const Wrong wrong = check_op(*op, out)) problems.push_back(fmt::format("op: {}", *wrong));
  }
  std::vector<std::string> unknown;
  for (const auto& item : value.items()) {
    if (find_field(item.key()) == nullptr) unknown.push_back(in_quotes(item.key()));
  }
  if (!unknown.empty()) {
    problems.push_back(fmt::format("unknown field{} {}; known are {}", unknown.size() == 1 ? "" : "s",
                                   fmt::join(unknown, ", "), known_fields()));
  }
  return out;
}

Description description_from_json_value(const Json& value) {
  std::vector<std::string> problems;
  Description out = read_description(value, problems);
  if (!problems.empty()) fail(ErrorKind::invalid, "{}", fmt::join(problems, "\n"));
  return out;
}

std::string Description::json(int indent) const { return to_json_value(*this).dump(indent); }

Description Description::from_json(std::string_view text) {
  return description_from_json_value(parse_json(text, "description"));
}

void Description::set(std::string_view assignments) {
  if (trimmed(assignments).empty()) return;
  Description changed = *this;
  std::vector<std::string> problems;
  Json op;
  for (std::string_view assignment : split_assignments(assignments)) {
    const std::size_t equals = assignment.find('=');
    if (equals == std::string_view::npos) {
      problems.push_back(fmt::format("got {}; wants FIELD=VALUE", in_quotes(assignment)));
      continue;
    }
    const std::string_view name = trimmed(assignment.substr(0, equals));
    const std::string_view text = trimmed(assignment.substr(equals + 1));
    if (name.starts_with("conv.") || name.starts_with("norm.")) {
      const std::string_view of_part = name.substr(5);
      const Json value = of_part == "activation" || of_part == "gate"
                             ? (text == "none" || text == "null" ? Json() : Json(std::string(text)))
                             : value_of_assignment(text);
      const Wrong wrong = name.starts_with("conv.") ? read_part_field(kConvFields, of_part, value, changed.conv)
                                                    : read_part_field(kNormFields, of_part, value, changed.norm);
      if (wrong) problems.push_back(fmt::format("{}.{}", name.substr(0, 4), *wrong));
      continue;
    }
    const Field* const field = find_field(field_of_alias(name));
    if (field == nullptr) {
      problems.push_back(fmt::format("unknown field {}; known are {}", in_quotes(name), known_fields()));
      continue;
    }
    Json value = value_of_assignment(text);
    if (holds_expression(field->name) && !value.is_null()) value = std::string(text);  // "gate=1" is an expression
    if (std::string_view(field->name) == "op") op = value;
    if (const Wrong wrong = field->read(value, changed)) {
      problems.push_back(fmt::format("{}: {}", field->name, *wrong));
    }
  }
  if (const Wrong wrong = op.is_null() ? Wrong() : check_op(op, changed)) {
    problems.push_back(fmt::format("op: {}", *wrong));
  }
  if (!problems.empty()) fail(ErrorKind::invalid, "{}", fmt::join(problems, "\n"));
  *this = std::move(changed);
}

}  // namespace ssmjit
