#include "codegen/description_json.h"

#include <algorithm>
#include <charconv>
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
        const std::string form = names->empty() ? "" : fmt::format(":{}", fmt::join(*names, ":"));
        return got(value, fmt::format("wants {}{} with whole numbers", out.name, form));
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
  if (Wrong wrong = read_kind(value, {{"in_place", {}}, {"ring", {"window", "length"}}}, kind)) return wrong;
  out = InPlace{};
  if (kind.name == "in_place") return {};
  Ring ring;
  for (const auto& [name, number] : kind.numbers) (name == "window" ? ring.window : ring.length) = number;
  out = ring;
  return {};
}

// Which op a description has follows from its store; a file that names it must name the same.
Wrong read_op(const Json& value) {
  for (Op each : {Op::update, Op::ring}) {
    if (value.is_string() && value.get_ref<const std::string&>() == name(each)) return {};
  }
  return got(value, "not available in this version; update and ring are");
}
Wrong check_op(const Json& value, const Description& description) {
  if (read_op(value) || value.get_ref<const std::string&>() == name(description.op())) return {};
  return fmt::format("got {}, but the store makes it {}; leave it out, or give the store of {}", shown(value),
                     name(description.op()), value.get_ref<const std::string&>());
}

Wrong read_family(const Json& value) {
  if (value.is_string() && value.get_ref<const std::string&>() == "mamba2") return {};
  return got(value, "not available in this version; mamba2 is");
}

Wrong read_pad_output(const Json& value, PadOutput& out) {
  for (PadOutput each : {PadOutput::zeros, PadOutput::untouched, PadOutput::as_if_zero_state}) {
    if (value.is_string() && value.get_ref<const std::string&>() == name(each)) {
      out = each;
      return {};
    }
  }
  return got(value, "wants zeros, untouched or as_if_zero_state");
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
};

constexpr const char* kRequired[] = {"nheads", "head_dim", "dstate"};

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

nlohmann::ordered_json to_json_value(const Description& d) {
  nlohmann::ordered_json rounding = "nearest", store = {{"kind", "in_place"}};
  if (const auto* stochastic = std::get_if<Stochastic>(&d.rounding_kind))
    rounding = {{"kind", "stochastic"}, {"philox_rounds", stochastic->philox_rounds}};
  if (const auto* ring = std::get_if<Ring>(&d.store_kind)) {
    store = {{"kind", "ring"}, {"window", ring->window}};
    if (ring->length != 0) store["length"] = ring->length;
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
  return json;
}

Description read_description(const Json& value, std::vector<std::string>& problems) {
  Description out = mamba2({});
  if (!value.is_object()) {
    problems.push_back(fmt::format("description: got {}; wants an object", shown(value)));
    return out;
  }
  for (const char* field : kRequired) {
    if (!value.contains(field)) problems.push_back(fmt::format("{}: missing; wants a whole number", field));
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
