#include "autotune/fleet/wire.h"

#include <nlohmann/json.hpp>

#include "codegen/fail.h"

namespace ssmjit::wire {
namespace {

using Json = nlohmann::ordered_json;

std::string dumped(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

Json parsed(std::string_view line) {
  Json json = Json::parse(line, nullptr, false);
  if (!json.is_object()) fail(ErrorKind::internal, "worker: got {}; wants a JSON object", in_quotes(line));
  return json;
}

Phase phase_of(const std::string& text) { return text == name(Phase::flush) ? Phase::flush : Phase::no_flush; }

ErrorKind error_kind_of(const std::string& text) {
  for (const ErrorKind kind : {ErrorKind::invalid, ErrorKind::missing, ErrorKind::machine})
    if (text == name(kind)) return kind;
  return ErrorKind::internal;
}

// Reads `line` by `read`; what JSON finds missing in it is our bug.
template <class Read>
auto understood(std::string_view line, const Read& read) {
  try {
    return read(parsed(line));
  } catch (const Json::exception& e) {
    fail(ErrorKind::internal, "worker: {} in {}", e.what(), in_quotes(line));
  }
}

}  // namespace

std::string text(const Job& job) {
  const TuneOptions& o = job.options;
  Json json{{"description", Json::parse(job.description.json())},
            {"device", o.device},
            {"batches", o.batches},
            {"modes", Json::array()},
            {"phases", Json::array()},
            {"accepted", o.accepted.chance},
            {"seed", o.seed},
            {"plans", Json::array()},
            {"verify_only", o.verify_only},
            {"search", name(o.search)},
            {"search_batches", o.search_batches},
            {"between", o.between},
            {"rounds", o.rounds},
            {"compile_threads", o.compile_threads},
            {"use_cache", o.compile.use_cache},
            {"cache_dir", o.compile.cache_dir}};
  for (const PdlMode mode : o.modes) json["modes"].push_back(name(mode));
  for (const Phase phase : o.phases) json["phases"].push_back(name(phase));
  for (const Plan& plan : o.plans) json["plans"].push_back(Json::parse(plan.json()));
  return dumped(Json{{"job", std::move(json)}});
}
std::string text(const Doing& doing) {
  Json json{{"doing", doing.stage}};
  if (doing.compiling) json["compiling"] = true;
  if (doing.line != nullptr) json["line"] = Json::parse(doing.line->json());
  return dumped(json);
}
std::string text(const Progress& p) {
  return dumped(Json{{"progress", p.stage},
                     {"done", p.done},
                     {"total", p.total},
                     {"elapsed_s", p.elapsed_s},
                     {"remaining_s", p.remaining_s}});
}
std::string text(const Log& log) {
  return dumped(Json{{"log", log.level == LogLevel::warning ? "warning" : "info"}, {"text", log.text}});
}
std::string text(const Failed& failed) { return dumped(Json{{"error", name(failed.kind)}, {"text", failed.text}}); }
std::string text(const Done&) { return R"({"done":true})"; }

ToWorker read_to_worker(std::string_view line) {
  return understood(line, [&](const Json& json) -> ToWorker {
    if (!json.contains("job")) return Measurement::from_json(line);
    const Json& j = json.at("job");
    Job job;
    job.description = Description::from_json(j.at("description").dump());
    TuneOptions& o = job.options;
    j.at("device").get_to(o.device);
    j.at("batches").get_to(o.batches);
    o.modes.clear();
    for (const Json& mode : j.at("modes")) o.modes.push_back(parse_pdl_mode(mode.get<std::string>()));
    o.phases.clear();
    for (const Json& phase : j.at("phases")) o.phases.push_back(phase_of(phase.get<std::string>()));
    j.at("accepted").get_to(o.accepted.chance);
    j.at("seed").get_to(o.seed);
    for (const Json& plan : j.at("plans")) o.plans.push_back(Plan::from_json(plan.dump()));
    j.at("verify_only").get_to(o.verify_only);
    o.search = parse_search(j.at("search").get<std::string>());
    j.at("search_batches").get_to(o.search_batches);
    j.at("between").get_to(o.between);
    j.at("rounds").get_to(o.rounds);
    j.at("compile_threads").get_to(o.compile_threads);
    j.at("use_cache").get_to(o.compile.use_cache);
    j.at("cache_dir").get_to(o.compile.cache_dir);
    return job;
  });
}

FromWorker read_from_worker(std::string_view line) {
  return understood(line, [&](const Json& json) -> FromWorker {
    if (json.contains("schema")) return Measurement::from_json(line);
    if (json.contains("done") && !json.contains("progress")) return Done{};
    if (json.contains("doing")) {
      AtWork at{.stage = json.at("doing").get<std::string>(),
                .has_plan = json.contains("line"),
                .line = {},
                .compiling = json.contains("compiling")};
      if (at.has_plan) at.line = Measurement::from_json(json.at("line").dump());
      return at;
    }
    if (json.contains("progress"))
      return Progress{json.at("progress").get<std::string>(), json.at("done").get<std::int64_t>(),
                      json.at("total").get<std::int64_t>(), json.at("elapsed_s").get<double>(),
                      json.at("remaining_s").get<double>()};
    const std::string said = json.at("text").get<std::string>();
    if (json.contains("log"))
      return Log{json.at("log").get<std::string>() == "warning" ? LogLevel::warning : LogLevel::info, said};
    return Failed{error_kind_of(json.at("error").get<std::string>()), said};
  });
}

}  // namespace ssmjit::wire
