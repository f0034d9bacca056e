#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include <ssmjit/measurement.h>

#include "autotune/cells.h"
#include "autotune/plan_between.h"
#include "codegen/fail.h"

namespace ssmjit {
namespace {

// What a plan loses at a size, or over several: what is minimised in this order, once there are as few plans as can be.
struct Loss {
  double regret = 0;  // over the best, but none within the noise
  double phase = 0;   // of a ring: how far its worse phase is behind the best of that phase
  double us = 0;      // over the best, noise or not
  auto operator<=>(const Loss&) const = default;
  Loss operator+(const Loss& o) const { return {regret + o.regret, phase + o.phase, us + o.us}; }
};
using Losses = std::map<std::string, Loss>;  // by plan text, of the plans within the bound

// Each one's median lies within what the other one took.
bool tie(const Measurement& a, const Measurement& b) {
  return a.us <= b.us_max && b.us <= a.us_max && a.us >= b.us_min && b.us >= a.us_min;
}

Losses losses_of(const Cell& cell, double max_regret) {
  const Measurement* best = nullptr;
  std::map<Phase, double> best_of_phase;
  for (const auto& [plan, m] : cell) {
    if (m.outcome != Outcome::ok || m.us <= 0) continue;
    if (best == nullptr || m.us < best->us) best = &m;
    for (const PhaseMeasurement& p : m.phases) {
      const auto [at, added] = best_of_phase.emplace(p.phase, p.us);
      if (!added) at->second = std::min(at->second, p.us);
    }
  }
  Losses losses;
  if (best == nullptr) return losses;
  for (const auto& [plan, m] : cell) {
    if (m.outcome != Outcome::ok || m.us <= 0) continue;
    Loss loss{.us = m.us / best->us - 1};
    if (loss.us > max_regret) continue;
    loss.regret = tie(m, *best) ? 0 : loss.us;
    for (const PhaseMeasurement& p : m.phases)
      if (best_of_phase[p.phase] > 0) loss.phase = std::max(loss.phase, p.us / best_of_phase[p.phase] - 1);
    losses.emplace(plan, loss);
  }
  return losses;
}

// Neighbouring sizes that share a plan.
struct Run {
  std::size_t begin = 0, end = 0;
  std::string plan;
  Loss loss;
};

// The plan of a run that loses least, if one is within the bound at all of its sizes.
std::optional<Run> best_run(const std::vector<Losses>& sizes, std::size_t begin, std::size_t end,
                            const std::function<bool(const std::string&)>& allowed) {
  std::optional<Run> best;
  for (const auto& [plan, first] : sizes[begin]) {
    if (!allowed(plan)) continue;
    Loss loss = first;
    std::size_t i = begin + 1;
    for (; i < end; ++i) {
      const auto at = sizes[i].find(plan);
      if (at == sizes[i].end()) break;
      loss = loss + at->second;
    }
    if (i == end && (!best || loss < best->loss)) best = Run{begin, end, plan, loss};
  }
  return best;
}

// As few runs as cover all sizes, and of those the ones that lose least.
std::vector<Run> cover(const std::vector<Losses>& sizes) {
  struct Prefix {
    std::size_t runs = 0;
    Loss loss;
    Run last;
  };
  std::vector<Prefix> prefix(sizes.size() + 1);
  for (std::size_t end = 1; end <= sizes.size(); ++end) {
    bool first = true;
    for (std::size_t begin = 0; begin < end; ++begin) {
      const std::optional<Run> run = best_run(sizes, begin, end, [](const std::string&) { return true; });
      if (!run) continue;
      Prefix longer{prefix[begin].runs + 1, prefix[begin].loss + run->loss, *run};
      if (first || std::tie(longer.runs, longer.loss) < std::tie(prefix[end].runs, prefix[end].loss))
        prefix[end] = std::move(longer);
      first = false;
    }
  }
  std::vector<Run> runs;
  for (std::size_t end = sizes.size(); end > 0; end = runs.back().begin) runs.push_back(prefix[end].last);
  std::reverse(runs.begin(), runs.end());
  // A run whose sizes another run's plan serves too needs none of its own.
  for (Run& run : runs) {
    const std::optional<Run> shared = best_run(sizes, run.begin, run.end, [&](const std::string& plan) {
      return std::any_of(runs.begin(), runs.end(), [&](const Run& r) { return &r != &run && r.plan == plan; });
    });
    if (shared) run = *shared;
  }
  return runs;
}

TableRow row_of(const Measurement& m) {
  TableRow row;
  row.op = m.op;
  row.device = m.device;
  row.kernel_digest = m.kernel_digest;
  row.cost_digest = m.cost_digest;
  row.pdl = m.pdl;
  row.total_heads = m.total_heads();
  row.plan = m.plan;
  row.fits_heads = fits_heads(m);
  row.us = m.us;
  // A floor above the time was not measured well.
  const auto floor_of = [](const auto& of) { return of.floor_us <= of.us ? of.floor_us : 0; };
  row.floor_us = floor_of(m);
  if (m.has_ring()) {
    row.steps_per_flush = m.steps_per_flush;
    for (const PhaseMeasurement& p : m.phases)
      (p.phase == Phase::flush ? row.flush : row.no_flush) = PhaseTime{p.us, floor_of(p)};
  }
  row.kernel = m.kernel;
  row.source_digest = m.source_digest;
  row.driver = m.driver;
  row.nvrtc = m.nvrtc;
  row.measured = m.measured;
  return row;
}

}  // namespace

Table fit_table(const std::vector<Measurement>& measurements, const FitOptions& options) {
  if (!(options.max_regret >= 0) || !std::isfinite(options.max_regret))
    fail(ErrorKind::invalid, "max regret: got {}; wants a fraction from 0 up, 0.01 for a hundredth",
         options.max_regret);
  Table table;
  for (const auto& [kernel, sizes] : cells_of(measurements)) {
    std::vector<Losses> losses;
    std::vector<const Cell*> cells;
    for (const auto& [total_heads, cell] : sizes) {
      Losses of_cell = losses_of(cell, options.max_regret);
      if (of_cell.empty()) continue;
      losses.push_back(std::move(of_cell));
      cells.push_back(&cell);
    }
    const std::size_t first = table.rows.size();
    for (const Run& run : cover(losses))
      for (std::size_t i = run.begin; i < run.end; ++i) table.rows.push_back(row_of(cells[i]->at(run.plan)));
    for (std::size_t i = first; i + 1 < table.rows.size(); ++i)
      table.rows[i].between = plan_between(table.rows[i], table.rows[i + 1], sizes, options.max_regret);
  }
  table.sort();
  return table;
}

}  // namespace ssmjit
