#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <tuple>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <ssmjit/measurement.h>

#include "autotune/cells.h"
#include "codegen/fail.h"

namespace ssmjit {
namespace {

using Json = nlohmann::ordered_json;

constexpr Outcome kOutcomes[] = {Outcome::ok,      Outcome::dropped,       Outcome::not_compiled,
                                 Outcome::spills,  Outcome::wrong,         Outcome::nondeterministic,
                                 Outcome::faulty,  Outcome::launch_failed, Outcome::memory_failed,
                                 Outcome::crashed, Outcome::hung,          Outcome::leaked,
                                 Outcome::pruned};

double tidy_share(double share) { return std::round(share * 1e4) / 1e4; }

Json bytes_json(const Bytes& bytes) {
  return {{"read", bytes.read},
          {"written_back", bytes.written_back},
          {"written_new", bytes.written_new},
          {"warm", bytes.warm}};
}
Bytes read_bytes(const Json& json) {
  Bytes bytes;
  json.at("read").get_to(bytes.read);
  json.at("written_back").get_to(bytes.written_back);
  json.at("written_new").get_to(bytes.written_new);
  json.at("warm").get_to(bytes.warm);
  return bytes;
}
PhaseMeasurement read_phase(const Json& json) {
  PhaseMeasurement p;
  const auto text = json.at("phase").get<std::string>();
  if (text != name(Phase::no_flush) && text != name(Phase::flush))
    fail(ErrorKind::invalid, "journal: phases: got {}; wants no_flush or flush", in_quotes(text));
  p.phase = text == name(Phase::flush) ? Phase::flush : Phase::no_flush;
  json.at("ring_count").get_to(p.ring_count);
  json.at("us").get_to(p.us);
  json.at("us_min").get_to(p.us_min);
  json.at("us_max").get_to(p.us_max);
  json.at("floor_us").get_to(p.floor_us);
  json.at("share").get_to(p.share);
  p.bytes = read_bytes(json.at("bytes"));
  return p;
}

// One line of each key, at the place of its first: that which counts, whatever the order of journals that were put
// together.
std::vector<Measurement> latest_of_each(std::vector<Measurement> lines) {
  std::vector<Measurement> all;
  std::map<std::string, std::size_t> place;
  for (Measurement& m : lines) {
    const auto [at, added] = place.emplace(m.kernel_digest + m.key(), all.size());
    if (added) {
      all.push_back(std::move(m));
      continue;
    }
    Measurement& there = all[at->second];
    if (counts_more(there, m)) there = std::move(m);
  }
  return all;
}

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
    case Outcome::crashed:
      return "crashed";
    case Outcome::hung:
      return "hung";
    case Outcome::leaked:
      return "leaked";
    case Outcome::pruned:
      return "pruned";
  }
  return "?";
}

bool unsound(Outcome outcome) {
  switch (outcome) {
    case Outcome::wrong:
    case Outcome::nondeterministic:
    case Outcome::faulty:
    case Outcome::crashed:
    case Outcome::hung:
    case Outcome::leaked:
      return true;
    default:
      return false;
  }
}

void Measurement::weigh() {
  const auto mean = [&](double PhaseMeasurement::*of) {
    if (phases.size() < 2) return phases.empty() ? 0.0 : phases.front().*of;
    double flush = 0, no_flush = 0;
    for (const PhaseMeasurement& p : phases) (p.phase == Phase::flush ? flush : no_flush) = p.*of;
    return ((steps_per_flush - 1) * no_flush + flush) / steps_per_flush;
  };
  us = mean(&PhaseMeasurement::us);
  us_min = mean(&PhaseMeasurement::us_min);
  us_max = mean(&PhaseMeasurement::us_max);
  floor_us = mean(&PhaseMeasurement::floor_us);
  share = us > 0 ? floor_us / us : 0;
}

std::string Measurement::key() const {
  const std::string step = steps_per_flush > 0 ? fmt::format("{} {:.4f}", phase, steps_per_flush) : phase;
  return fmt::format("{}|{}|{}|{}|{}|{}|{}|{}|{}", source_digest, plan.text(), batch, nheads, step, name(pdl), device,
                     driver, policy);
}

std::string Measurement::candidate() const {
  return fmt::format("{}|{}|{}|{}", source_digest, plan.text(), device, driver);
}

std::string Measurement::json() const {
  Json json;
  json["schema"] = 1;
  json["op"] = name(op);
  json["store"] = has_ring() ? "ring" : "in_place";
  json["kernel_digest"] = kernel_digest;
  json["cost_digest"] = cost_digest;
  json["kernel"] = kernel;
  json["source_digest"] = source_digest;
  json["plan"] = Json::parse(plan.json());
  json["batch"] = batch;
  json["nheads"] = nheads;
  json["phase"] = phase;
  if (has_ring()) json["steps_per_flush"] = steps_per_flush;
  json["pdl"] = name(pdl);
  json["device"] = device;
  json["device_name"] = device_name;
  json["driver"] = driver;
  json["nvrtc"] = nvrtc;
  json["policy"] = policy;
  json["outcome"] = name(outcome);
  if (!reason.empty()) json["reason"] = reason;
  if (tie) json["tie"] = true;
  json["us"] = tidy_us(us);
  json["us_min"] = tidy_us(us_min);
  json["us_max"] = tidy_us(us_max);
  json["floor_us"] = tidy_us(floor_us);
  json["share"] = tidy_share(share);
  json["layers"] = layers;
  if (has_ring()) {
    json["phases"] = Json::array();
    for (const PhaseMeasurement& p : phases)
      json["phases"].push_back({{"phase", name(p.phase)},
                                {"ring_count", p.ring_count},
                                {"us", tidy_us(p.us)},
                                {"us_min", tidy_us(p.us_min)},
                                {"us_max", tidy_us(p.us_max)},
                                {"floor_us", tidy_us(p.floor_us)},
                                {"share", tidy_share(p.share)},
                                {"bytes", bytes_json(p.bytes)}});
  } else {
    json["bytes"] = bytes_json(bytes);
  }
  json["registers"] = registers;
  json["smem_bytes"] = smem_bytes;
  if (waves > 0) json["waves"] = std::round(waves * 1e4) / 1e4;
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
    std::string text = name(m.op);
    if (json.contains("op")) get("op", text);
    const auto* op = std::find_if(std::begin(kOps), std::end(kOps), [&](Op o) { return text == name(o); });
    if (op == std::end(kOps))
      fail(ErrorKind::invalid, "journal: op: got {}; wants update, ring, conv1d, norm or layer", in_quotes(text));
    m.op = *op;
    if (m.op == Op::layer) {
      get("store", text);
      m.ring_layer = text == "ring";
    }
    get("kernel_digest", m.kernel_digest);
    get("cost_digest", m.cost_digest);
    get("kernel", m.kernel);
    get("source_digest", m.source_digest);
    field = "plan";
    m.plan = Plan::from_json(json.at("plan").dump());
    get("batch", m.batch);
    get("nheads", m.nheads);
    get("phase", m.phase);
    if (m.has_ring()) get("steps_per_flush", m.steps_per_flush);
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
    if (json.contains("tie")) get("tie", m.tie);
    get("us", m.us);
    get("us_min", m.us_min);
    get("us_max", m.us_max);
    get("floor_us", m.floor_us);
    get("share", m.share);
    get("layers", m.layers);
    if (m.has_ring()) {
      field = "phases";
      for (const Json& p : json.at("phases")) m.phases.push_back(read_phase(p));
    } else {
      field = "bytes";
      m.bytes = read_bytes(json.at("bytes"));
    }
    get("registers", m.registers);
    get("smem_bytes", m.smem_bytes);
    if (json.contains("waves")) get("waves", m.waves);
    get("measured", m.measured);
  } catch (const Json::exception&) {
    fail(ErrorKind::invalid, "journal: {}: missing or of the wrong type in {}", field, in_quotes(line));
  }
  return m;
}

std::vector<Measurement> parse_journal(std::string_view text, int* skipped) {
  std::vector<Measurement> all;
  int bad = 0;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    if (end == std::string_view::npos) break;  // a torn last line
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end + 1);
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    try {
      all.push_back(Measurement::from_json(line));
    } catch (const Error&) {
      ++bad;
    }
  }
  if (skipped != nullptr) *skipped = bad;
  return latest_of_each(std::move(all));
}

}  // namespace ssmjit
