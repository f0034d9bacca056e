#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <tuple>

#include <nlohmann/json.hpp>

#include <ssmjit/error.h>
#include <ssmjit/table.h>

#include "codegen/fail.h"

namespace ssmjit {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kSchema = 1;

// What a table's head calls the store of an op; windows are in the kernels' digests.
const char* store_of(const TableRow& row) { return row.has_ring() ? "ring" : "in_place"; }

auto key_of(const TableRow& row) { return std::tie(row.device, row.kernel_digest, row.pdl, row.total_heads); }

// Names what is wrong with the fields of one object, and goes on.
class Fields {
 public:
  Fields(const Json& object, std::string where, std::vector<std::string>& problems)
      : object_(object), where_(std::move(where)), problems_(problems) {}

  void problem(std::string_view field, std::string_view sentence) {
    problems_.push_back(fmt::format("{}{}: {}", where_, field, sentence));
  }

  // The field, or null with a problem where it is needed.
  const Json* find(const char* field, bool needed) {
    known_.insert(field);
    const auto it = object_.find(field);
    if (it != object_.end()) return &*it;
    if (needed) problem(field, "missing");
    return nullptr;
  }

  std::string text(const char* field, bool needed) {
    const Json* value = find(field, needed);
    if (value == nullptr) return {};
    if (!value->is_string()) return wrong(field, *value, "a string"), std::string();
    auto text = value->get<std::string>();
    if (needed && text.empty()) problem(field, "empty");
    return text;
  }

  double number(const char* field, bool needed, double least, const char* wants) {
    const Json* value = find(field, needed);
    if (value == nullptr) return 0;
    if (!value->is_number() || !std::isfinite(value->get<double>()) || value->get<double>() < least) {
      return wrong(field, *value, wants), 0;
    }
    return value->get<double>();
  }

  // 0 where it is left out.
  std::int64_t count(const char* field, bool needed, std::int64_t least = 1) {
    const Json* value = find(field, needed);
    if (value == nullptr) return 0;
    const bool fits = value->is_number_unsigned() &&
                      value->get<std::uint64_t>() <= std::uint64_t{std::numeric_limits<std::int64_t>::max()};
    if (!fits || value->get<std::int64_t>() < least)
      return wrong(field, *value, fmt::format("a whole number from {} up", least).c_str()), 0;
    return value->get<std::int64_t>();
  }

  // False where it is left out.
  bool flag(const char* field) {
    const Json* value = find(field, false);
    if (value == nullptr) return false;
    if (!value->is_boolean()) return wrong(field, *value, "true or false"), false;
    return value->get<bool>();
  }

  void constant(const char* field, const Json& wanted) {
    const Json* value = find(field, true);
    if (value != nullptr && *value != wanted) wrong(field, *value, wanted.dump().c_str());
  }

  void wrong(std::string_view field, const Json& got, const char* wants) {
    std::string text = got.dump(-1, ' ', true, Json::error_handler_t::replace);
    if (text.size() > 60) text = text.substr(0, 60) + "...";
    problem(field, fmt::format("got {}, want {}", text, wants));
  }

  void refuse_unknown() {
    for (const auto& [field, value] : object_.items()) {
      if (!known_.contains(field)) problem(in_quotes(field), "unknown field");
    }
  }

 private:
  const Json& object_;
  std::string where_;
  std::vector<std::string>& problems_;
  std::set<std::string, std::less<>> known_;
};

Op read_op(Fields& fields) {
  const Json* value = fields.find("op", true);
  if (value == nullptr) return Op::update;
  for (const Op op : kOps)
    if (*value == name(op)) return op;
  fields.wrong("op", *value, "\"update\", \"ring\", \"conv1d\", \"norm\" or \"layer\"");
  return Op::update;
}

// `op`: that of all rows of the table, which have a ring iff `ring`; or none where each row says so itself.
TableRow read_row(const Json& json, std::optional<Op> op, bool ring, std::size_t index,
                  std::vector<std::string>& problems) {
  TableRow row;
  if (!json.is_object()) {
    problems.push_back(fmt::format("rows[{}]: want an object", index));
    return row;
  }
  Fields fields(json, fmt::format("rows[{}].", index), problems);
  row.op = op ? *op : read_op(fields);
  row.device = fields.text("device", true);
  row.kernel_digest = fields.text("kernel_digest", true);
  row.cost_digest = fields.text("cost_digest", true);
  const std::string mode = fields.text("pdl", true);
  if (!mode.empty()) {
    try {
      row.pdl = parse_pdl_mode(mode);
    } catch (const Error& error) {
      fields.problem("pdl", error.what());
    }
  }
  row.total_heads = fields.count("total_heads", true);
  const auto plan = [&](const char* field, bool needed) -> std::optional<Plan> {
    const Json* json = fields.find(field, needed);
    if (json == nullptr) return std::nullopt;
    try {
      return Plan::from_json(json->dump(-1, ' ', true, Json::error_handler_t::replace));
    } catch (const Error& error) {
      fields.problem(field, error.what());
      return std::nullopt;
    }
  };
  row.plan = plan("plan", true).value_or(Plan{});
  row.between = plan("between", false);
  row.fits_heads = fields.count("fits_heads", false, std::max<std::int64_t>(row.total_heads, 1));
  row.us = fields.number("us", true, std::numeric_limits<double>::min(), "a number above 0");
  row.floor_us = fields.number("floor_us", false, 0, "a number from 0 up");
  if (!op) ring = row.op == Op::ring || (row.op == Op::layer && json.contains("steps_per_flush"));
  if (ring) {
    row.steps_per_flush = fields.number("steps_per_flush", true, 1, "a number from 1 up");
    const auto phase = [&](Phase which) {
      PhaseTime time;
      const Json* object = fields.find(name(which), true);
      if (object == nullptr) return time;
      if (!object->is_object()) return fields.wrong(name(which), *object, "an object"), time;
      Fields inner(*object, fmt::format("rows[{}].{}.", index, name(which)), problems);
      time.us = inner.number("us", true, std::numeric_limits<double>::min(), "a number above 0");
      time.floor_us = inner.number("floor_us", false, 0, "a number from 0 up");
      inner.refuse_unknown();
      return time;
    };
    row.no_flush = phase(Phase::no_flush);
    row.flush = phase(Phase::flush);
  }
  row.kernel = fields.text("kernel", false);
  row.source_digest = fields.text("source_digest", false);
  row.driver = fields.text("driver", false);
  row.nvrtc = fields.text("nvrtc", false);
  row.measured = fields.text("measured", false);
  row.predicted = fields.flag("predicted");
  fields.refuse_unknown();
  return row;
}

Json row_json(const TableRow& row, bool with_op) {
  Json json;
  if (with_op) json["op"] = name(row.op);
  json["device"] = row.device;
  json["kernel_digest"] = row.kernel_digest;
  json["cost_digest"] = row.cost_digest;
  json["pdl"] = name(row.pdl);
  json["total_heads"] = row.total_heads;
  json["plan"] = Json::parse(row.plan.json());
  if (row.fits_heads > 0) json["fits_heads"] = row.fits_heads;
  if (row.between) json["between"] = Json::parse(row.between->json());
  json["us"] = row.us;
  json["floor_us"] = row.floor_us;
  if (row.has_ring()) {
    const auto phase = [](const PhaseTime& time) { return Json{{"us", time.us}, {"floor_us", time.floor_us}}; };
    json["steps_per_flush"] = row.steps_per_flush;
    json[name(Phase::no_flush)] = phase(row.no_flush);
    json[name(Phase::flush)] = phase(row.flush);
  }
  json["kernel"] = row.kernel;
  json["source_digest"] = row.source_digest;
  json["driver"] = row.driver;
  json["nvrtc"] = row.nvrtc;
  json["measured"] = row.measured;
  if (row.predicted) json["predicted"] = true;
  return json;
}

[[noreturn]] void fail_with(const std::vector<std::string>& problems) {
  constexpr std::size_t kMost = 20;
  std::string text;
  for (std::size_t i = 0; i < std::min(problems.size(), kMost); ++i) text += "\n  " + problems[i];
  if (problems.size() > kMost) text += fmt::format("\n  and {} more", problems.size() - kMost);
  fail(ErrorKind::invalid, "table:{}", text);
}

}  // namespace

const char* name(PdlMode mode) {
  switch (mode) {
    case PdlMode::off:
      return "off";
    case PdlMode::chain:
      return "chain";
  }
  return "unknown";
}

PdlMode parse_pdl_mode(std::string_view text) {
  for (const PdlMode mode : {PdlMode::off, PdlMode::chain}) {
    if (text == name(mode)) return mode;
  }
  fail(ErrorKind::invalid, "PDL mode: got {}, want off or chain", in_quotes(text));
}

const char* name(Why why) {
  switch (why) {
    case Why::exact:
      return "exact";
    case Why::interpolated:
      return "interpolated";
    case Why::nearest:
      return "nearest";
    case Why::similar:
      return "similar";
    case Why::predicted:
      return "predicted";
    case Why::other_device:
      return "other_device";
    case Why::fallback:
      return "default";
  }
  return "unknown";
}

void Table::sort() {
  std::stable_sort(rows.begin(), rows.end(),
                   [](const TableRow& a, const TableRow& b) { return key_of(a) < key_of(b); });
}

std::size_t Table::plan_count() const {
  std::set<std::pair<std::string, std::string>> plans;
  for (const TableRow& row : rows) {
    plans.emplace(row.kernel_digest, row.plan.text());
    if (row.between) plans.emplace(row.kernel_digest, row.between->text());
  }
  return plans.size();
}

void Table::merge(const Table& other) {
  struct Place {
    const TableRow* row = nullptr;
    const Table* table = nullptr;
  };
  std::map<std::tuple<std::string, std::string, PdlMode, std::int64_t>, Place> by_key;
  for (const Table* table : {static_cast<const Table*>(this), &other}) {
    for (const TableRow& row : table->rows) {
      Place& place = by_key[key_of(row)];
      if (place.row == nullptr || place.row->predicted || !row.predicted) place = {&row, table};
    }
  }
  std::vector<TableRow> merged;
  merged.reserve(by_key.size());
  const auto same_kernel = [](const TableRow& a, const TableRow& b) {
    return std::tie(a.device, a.kernel_digest, a.pdl) == std::tie(b.device, b.kernel_digest, b.pdl);
  };
  struct Last {
    const Table* table = nullptr;
    std::size_t at = 0;
  };
  std::array<Last, 2> lasts;  // of the measured rows and of the predicted ones, which never answer together
  for (const auto& [key, place] : by_key) {
    Last& last = lasts[place.row->predicted];
    if (last.table != nullptr && last.table != place.table && same_kernel(merged[last.at], *place.row))
      merged[last.at].between.reset();
    last = {place.table, merged.size()};
    merged.push_back(*place.row);
  }
  rows = std::move(merged);
}

std::string Table::json() const {
  Table sorted = *this;
  sorted.sort();
  const TableRow& first = sorted.rows.empty() ? TableRow{} : sorted.rows.front();
  const bool mixed = std::any_of(sorted.rows.begin(), sorted.rows.end(), [&](const TableRow& r) {
    return r.op != first.op || r.has_ring() != first.has_ring();
  });
  std::string text = fmt::format("{{\"schema\": {}, ", kSchema);
  if (!mixed) text += fmt::format("\"op\": \"{}\", \"store\": \"{}\", ", name(first.op), store_of(first));
  text += "\"rows\": [";
  const char* separator = "\n";
  for (const TableRow& row : sorted.rows) {
    text += separator + row_json(row, mixed).dump(-1, ' ', false, Json::error_handler_t::replace);
    separator = ",\n";
  }
  return text + "\n]}\n";
}

Table Table::from_json(std::string_view text) {
  Json json;
  try {
    json = Json::parse(text);
  } catch (const Json::exception& error) {
    fail(ErrorKind::invalid, "table: not JSON: {}", error.what());
  }
  if (!json.is_object()) fail(ErrorKind::invalid, "table: want an object with \"schema\" and \"rows\"");

  std::vector<std::string> problems;
  Fields fields(json, "", problems);
  fields.constant("schema", kSchema);
  // A head without both is that of rows which name their op each.
  std::optional<Op> op;
  bool ring = false;
  if (json.contains("op") || json.contains("store")) {
    op = read_op(fields);
    ring = *op == Op::ring || (*op == Op::layer && json.contains("store") && json["store"] == "ring");
    fields.constant("store", ring ? "ring" : "in_place");
  }
  const Json* rows = fields.find("rows", true);
  if (rows != nullptr && !rows->is_array()) fields.wrong("rows", *rows, "an array");
  fields.refuse_unknown();
  if (!problems.empty()) fail_with(problems);

  Table table;
  for (std::size_t i = 0; i < rows->size(); ++i) table.rows.push_back(read_row((*rows)[i], op, ring, i, problems));
  if (problems.empty()) {
    std::map<std::tuple<std::string, std::string, PdlMode, std::int64_t>, std::size_t> seen;
    for (std::size_t i = 0; i < table.rows.size(); ++i) {
      const auto [first, is_new] = seen.emplace(key_of(table.rows[i]), i);
      if (!is_new) {
        problems.push_back(
            fmt::format("rows[{}]: the same device, kernel_digest, pdl and total_heads as rows[{}]", i, first->second));
      }
    }
  }
  if (!problems.empty()) fail_with(problems);
  table.sort();
  return table;
}

}  // namespace ssmjit
