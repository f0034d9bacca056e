// What a sweep and the process that measures for it say to each other: lines of JSON.
//
// To the worker: journal lines that it is to know, and jobs, {"job": {...}}. From it: what it does next,
// {"doing": ..., "line": ...}; journal lines; {"progress": ...}; {"log": ..., "text": ...}; and at the end of a job
// {"done": true} or {"error": ..., "text": ...}.
#pragma once

#include <string>
#include <string_view>
#include <variant>

#include <ssmjit/error.h>
#include <ssmjit/log.h>
#include <ssmjit/tune.h>

namespace ssmjit::wire {

struct Job {
  Description description;
  TuneOptions options;  // but for what is known, and for its callbacks
};
struct Done {};
struct Failed {
  ErrorKind kind = ErrorKind::internal;
  std::string text;
};
struct Log {
  LogLevel level = LogLevel::info;
  std::string text;
};
struct AtWork {
  std::string stage;
  bool has_plan = false;
  Measurement line;        // as Doing::line
  bool compiling = false;  // as Doing::compiling
};
using FromWorker = std::variant<AtWork, Measurement, Progress, Log, Failed, Done>;
using ToWorker = std::variant<Job, Measurement>;

// Without the end of the line. Journal lines are Measurement::json().
std::string text(const Job& job);
std::string text(const Doing& doing);
std::string text(const Progress& progress);
std::string text(const Log& log);
std::string text(const Failed& failed);
std::string text(const Done& done);

// Fail: ErrorKind::internal for a line that is none of these.
ToWorker read_to_worker(std::string_view line);
FromWorker read_from_worker(std::string_view line);

}  // namespace ssmjit::wire
