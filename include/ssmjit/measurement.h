// What a plan costs, or why it has no cost: one line of a tuning journal.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/plan.h>
#include <ssmjit/table.h>

namespace ssmjit {

// How far a candidate came. Only `ok` was timed in full and checked at that size, and can win; `dropped` was slower
// than the best from its first replays on, and has the time of those. `faulty`: the CPU executor saw a race or the
// like. `crashed`, `hung`: the process that measured it died, or gave no sign of life for too long. `leaked`: device
// memory was gone after it ran. `pruned`: left out, since it can't win by what it has in flight.
enum class Outcome {
  ok,
  dropped,
  not_compiled,
  spills,
  wrong,
  nondeterministic,
  faulty,
  launch_failed,
  memory_failed,
  crashed,
  hung,
  leaked,
  pruned
};
const char* name(Outcome outcome);
// Whether it speaks against the plan at any size: it is not measured any more, and wins nowhere.
bool unsound(Outcome outcome);

// One phase of a ring step.
struct PhaseMeasurement {
  Phase phase = Phase::no_flush;
  int ring_count = 0;  // rows in use, in every request
  double us = 0;       // median over rounds
  double us_min = 0;
  double us_max = 0;
  double floor_us = 0;  // the memory floor of these bytes in the same run
  double share = 0;     // floor_us / us
  Bytes bytes{};
};

struct Measurement {
  Op op = Op::update;
  bool ring_layer = false;  // of Op::layer: whether its state is in a ring
  // What was measured. The key of a journal line: source digest, shape, phase, PDL mode, GPU, driver, policy.
  std::string kernel_digest;
  std::string cost_digest;
  std::string kernel;  // the description in one line
  std::string source_digest;
  Plan plan;
  int batch = 0;
  int nheads = 0;
  // "step": an in-place update has one. "weighted": both of a ring or its layer, or "no_flush" or "flush" where one was
  // measured alone. "verify", of no batch: whether the plan may be timed at all.
  std::string phase = "step";
  double steps_per_flush = 0;  // n of a weighted ring step
  PdlMode pdl = PdlMode::off;
  std::string device;  // device key
  std::string device_name;
  std::string driver;
  std::string nvrtc;
  std::string policy;  // how it was timed: layers, rounds, statistic

  Outcome outcome = Outcome::ok;
  std::string reason;  // in words, when not ok
  bool tie = false;    // ok, and not told from the cell's winner by its times
  // A step: median over rounds. Weighted: ((n - 1) * no_flush + flush) / n of this and of the four below.
  double us = 0;
  double us_min = 0;
  double us_max = 0;
  double floor_us = 0;  // the memory floor of these bytes in the same run
  double share = 0;     // floor_us / us
  int layers = 0;
  Bytes bytes;                           // without a ring
  std::vector<PhaseMeasurement> phases;  // with one
  int registers = 0;
  int smem_bytes = 0;
  // Of a plan of clusters: the launch's clusters by those that the GPU holds at once, which its multiprocessors' number
  // does not tell. 0: not known.
  double waves = 0;
  std::string measured;  // UTC date and time

  bool has_ring() const { return op == Op::ring || ring_layer; }
  std::int64_t total_heads() const { return std::int64_t{batch} * nheads; }
  // A stable text of the key.
  std::string key() const;
  // That of the kernel alone: source digest, plan, GPU, driver.
  std::string candidate() const;
  // us, floor_us and share from the phases: of one its own, of two by steps_per_flush.
  void weigh();
  // One line of JSON: {"schema": 1, "op": "update", "store": "in_place", ...}.
  std::string json() const;
  // Fails: ErrorKind::invalid, naming the field.
  static Measurement from_json(std::string_view line);
};

// Everything in a journal's text that is whole: a torn last line is dropped, a line that is bad or of another schema is
// skipped; `skipped` counts the latter. Of lines with one key the latest counts, by its date.
std::vector<Measurement> parse_journal(std::string_view text, int* skipped = nullptr);

struct FitOptions {
  // What a row's plan may cost more than the best of its size, as a fraction, so that neighbouring sizes share plans.
  double max_regret = 0.001;
};
// A row for every (device, digest, mode, total_heads) that was timed in full, with as few plans as the bound allows; of
// a ring by its weighted step. The order of the measurements does not matter. Fails: ErrorKind::invalid for a bound
// that is no number from 0 up.
Table fit_table(const std::vector<Measurement>& measurements, const FitOptions& options = {});

// How a table's answer did at one size that was measured.
struct CellCheck {
  std::string device, kernel_digest, kernel;
  PdlMode pdl = PdlMode::off;
  std::int64_t total_heads = 0;
  // An answer against the best plan that was timed in full at this size.
  struct Answer {
    Choice choice;
    double us = 0;      // of its plan, in the journals; 0 where it was not timed
    double regret = 0;  // us over the best, less 1
    // Why there is no regret, or "few replays" where the plan was dropped early; empty where all is well.
    std::string remark;
  };
  Plan best;
  double best_us = 0;
  std::optional<Answer> answer;    // none: no row answers
  std::optional<Answer> left_out;  // with the row of this size left out; none where its kernel has no other row
};
struct TableCheck {
  std::vector<CellCheck> cells;  // sorted as a table's rows
  double worst_regret = 0, median_regret = 0;
  double worst_loo_regret = 0, median_loo_regret = 0;
  int compared = 0, compared_loo = 0;  // answers with a regret
  int not_timed = 0;                   // answers whose plan has no time at that size
  int not_timed_loo = 0;
  int unanswered = 0;
};
// Asks the table for every size that the journals timed, on their device, and compares. Whether a plan is legal is not
// asked: one that is not has no time.
TableCheck check_table(const Table& table, const std::vector<Measurement>& measurements);

}  // namespace ssmjit
