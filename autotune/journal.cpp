#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <ssmjit/measurement.h>

#include "codegen/fail.h"

namespace ssmjit {
namespace {

using Json = nlohmann::ordered_json;

constexpr Outcome kOutcomes[] = {Outcome::ok,     Outcome::dropped,       Outcome::not_compiled,
                                 Outcome::spills, Outcome::wrong,         Outcome::nondeterministic,
                                 Outcome::faulty, Outcome::launch_failed, Outcome::memory_failed};

// A rate as it is worth writing down: nanoseconds.
double tidy(double us) { return std::round(us * 1e3) / 1e3; }

}  // namespace

const char* name(Outcome outcome) {
  switch (outcome) {
    case Outcome::ok:
      return "ok";
    case Outcome::dropped:
      return "dropped";
    case Outcome::not_compiled:
      return "not_compiled";
    case Outcome::spills:
      return "spills";
    case Outcome::wrong:
      return "wrong";
    case Outcome::nondeterministic:
      return "nondeterministic";
    case Outcome::faulty:
      return "faulty";
    case Outcome::launch_failed:
      return "launch_failed";
    case Outcome::memory_failed:
      return "memory_failed";
  }
  return "?";
}

std::string Measurement::key() const {
  return fmt::format("{}|{}|{}|{}|{}|{}|{}|{}|{}", source_digest, plan.text(), batch, nheads, phase, name(pdl), device,
                     driver, policy);
}

std::string Measurement::json() const {
  Json json;
  json["schema"] = 1;
  json["op"] = "update";
  json["store"] = "in_place";
  json["kernel_digest"] = kernel_digest;
  json["cost_digest"] = cost_digest;
  json["kernel"] = kernel;
  json["source_digest"] = source_digest;
  json["plan"] = Json::parse(plan.json());
  json["batch"] = batch;
  json["nheads"] = nheads;
  json["phase"] = phase;
  json["pdl"] = name(pdl);
  json["device"] = device;
  json["device_name"] = device_name;
  json["driver"] = driver;
  json["nvrtc"] = nvrtc;
  json["policy"] = policy;
  json["outcome"] = name(outcome);
  if (!reason.empty()) json["reason"] = reason;
  json["us"] = tidy(us);
  json["us_min"] = tidy(us_min);
  json["us_max"] = tidy(us_max);
  json["floor_us"] = tidy(floor_us);
  json["share"] = std::round(share * 1e4) / 1e4;
  json["layers"] = layers;
  json["bytes"] = {{"read", bytes.read},
                   {"written_back", bytes.written_back},
                   {"written_new", bytes.written_new},
                   {"warm", bytes.warm}};
  json["registers"] = registers;
  json["smem_bytes"] = smem_bytes;
  json["measured"] = measured;
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Measurement Measurement::from_json(std::string_view line) {
  const Json json = Json::parse(line, nullptr, false);
  if (!json.is_object()) fail(ErrorKind::invalid, "journal: got {}; wants one JSON object a line", in_quotes(line));
  const char* field = "schema";
  Measurement m;
  try {
    const auto get = [&](const char* f, auto& value) {
      field = f;
      json.at(f).get_to(value);
    };
    int schema = 0;
    get("schema", schema);
    if (schema != 1) fail(ErrorKind::invalid, "journal: schema: got {}; wants 1", schema);
    get("kernel_digest", m.kernel_digest);
    get("cost_digest", m.cost_digest);
    get("kernel", m.kernel);
    get("source_digest", m.source_digest);
    field = "plan";
    m.plan = Plan::from_json(json.at("plan").dump());
    get("batch", m.batch);
    get("nheads", m.nheads);
    get("phase", m.phase);
    std::string text;
    get("pdl", text);
    m.pdl = parse_pdl_mode(text);
    get("device", m.device);
    get("device_name", m.device_name);
    get("driver", m.driver);
    get("nvrtc", m.nvrtc);
    get("policy", m.policy);
    get("outcome", text);
    const auto* outcome =
        std::find_if(std::begin(kOutcomes), std::end(kOutcomes), [&](Outcome o) { return text == name(o); });
    if (outcome == std::end(kOutcomes)) fail(ErrorKind::invalid, "journal: outcome: got {}", in_quotes(text));
    m.outcome = *outcome;
    if (json.contains("reason")) get("reason", m.reason);
    get("us", m.us);
    get("us_min", m.us_min);
    get("us_max", m.us_max);
    get("floor_us", m.floor_us);
    get("share", m.share);
    get("layers", m.layers);
    field = "bytes";
    const Json& bytes = json.at("bytes");
    bytes.at("read").get_to(m.bytes.read);
    bytes.at("written_back").get_to(m.bytes.written_back);
    bytes.at("written_new").get_to(m.bytes.written_new);
    bytes.at("warm").get_to(m.bytes.warm);
    get("registers", m.registers);
    get("smem_bytes", m.smem_bytes);
    get("measured", m.measured);
  } catch (const Json::exception&) {
    fail(ErrorKind::invalid, "journal: {}: missing or of the wrong type in {}", field, in_quotes(line));
  }
  return m;
}

std::vector<Measurement> parse_journal(std::string_view text, int* skipped) {
  std::vector<Measurement> all;
  std::map<std::string, std::size_t> place;
  int bad = 0;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    if (end == std::string_view::npos) break;  // a torn last line
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end + 1);
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    try {
      Measurement m = Measurement::from_json(line);
      const auto [at, added] = place.emplace(m.key(), all.size());
      if (added)
        all.push_back(std::move(m));
      else
        all[at->second] = std::move(m);
    } catch (const Error&) {
      ++bad;
    }
  }
  if (skipped != nullptr) *skipped = bad;
  return all;
}

Table fit_table(const std::vector<Measurement>& measurements) {
  std::map<std::string, TableRow> best;
  for (const Measurement& m : measurements) {
    if (m.outcome != Outcome::ok || m.us <= 0) continue;
    const std::string key = fmt::format("{}|{}|{}|{:012}", m.device, m.kernel_digest, name(m.pdl), m.total_heads());
    TableRow row;
    row.device = m.device;
    row.kernel_digest = m.kernel_digest;
    row.cost_digest = m.cost_digest;
    row.pdl = m.pdl;
    row.total_heads = m.total_heads();
    row.plan = m.plan;
    row.us = tidy(m.us);
    row.floor_us = m.floor_us <= m.us ? tidy(m.floor_us) : 0;  // a floor above the time was not measured well
    row.kernel = m.kernel;
    row.source_digest = m.source_digest;
    row.driver = m.driver;
    row.nvrtc = m.nvrtc;
    row.measured = m.measured;
    // Equal times go to the plan whose text comes first, then by provenance, so that the order of lines does not
    // matter.
    const auto rank = [](const TableRow& r) {
      return std::tuple(r.us, r.plan.text(), r.source_digest, r.driver, r.nvrtc, r.measured, r.kernel, r.floor_us);
    };
    const auto [at, added] = best.emplace(key, row);
    if (!added && rank(row) < rank(at->second)) at->second = std::move(row);
  }
  Table table;
  for (auto& [key, row] : best) table.rows.push_back(std::move(row));
  table.sort();
  return table;
}

}  // namespace ssmjit
