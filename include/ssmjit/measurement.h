// What a plan costs, or why it has no cost: one line of a tuning journal.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/plan.h>
#include <ssmjit/table.h>

namespace ssmjit {

// How far a candidate came. Only `ok` was timed in full and checked at that size, and can win; `dropped` was slower
// than the best from its first replays on, and has the time of those. `faulty`: the CPU executor saw a race or the
// like.
enum class Outcome { ok, dropped, not_compiled, spills, wrong, nondeterministic, faulty, launch_failed, memory_failed };
const char* name(Outcome outcome);

struct Measurement {
  // What was measured. The key of a journal line: source digest, shape, phase, PDL mode, GPU, driver, policy.
  std::string kernel_digest;
  std::string cost_digest;
  std::string kernel;  // the description in one line
  std::string source_digest;
  Plan plan;
  int batch = 0;
  int nheads = 0;
  std::string phase = "step";  // an in-place update has one; "verify" where a plan failed before it was timed
  PdlMode pdl = PdlMode::off;
  std::string device;  // device key
  std::string device_name;
  std::string driver;
  std::string nvrtc;
  std::string policy;  // how it was timed: layers, rounds, statistic

  Outcome outcome = Outcome::ok;
  std::string reason;  // in words, when not ok
  double us = 0;       // a step: median over rounds
  double us_min = 0;
  double us_max = 0;
  double floor_us = 0;  // the memory floor of these bytes in the same run
  double share = 0;     // floor_us / us
  int layers = 0;
  Bytes bytes;
  int registers = 0;
  int smem_bytes = 0;
  std::string measured;  // UTC date and time

  std::int64_t total_heads() const { return std::int64_t{batch} * nheads; }
  // A stable text of the key.
  std::string key() const;
  // One line of JSON: {"schema": 1, "op": "update", "store": "in_place", ...}.
  std::string json() const;
  // Fails: ErrorKind::invalid, naming the field.
  static Measurement from_json(std::string_view line);
};

// Everything in a journal's text that is whole: a torn last line is dropped, a bad line is skipped; `skipped` counts
// the latter. Of lines with one key the last counts.
std::vector<Measurement> parse_journal(std::string_view text, int* skipped = nullptr);

// The best plan of every (device, digest, mode, total_heads) that was measured.
Table fit_table(const std::vector<Measurement>& measurements);

}  // namespace ssmjit
