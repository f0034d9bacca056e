#include "autotune/fleet/measurer.h"

#include <algorithm>
#include <cmath>
#include <set>

#include <fmt/format.h>

#include "autotune/search/cell_search.h"
#include "autotune/sweep_lines.h"
#include "codegen/fail.h"

namespace ssmjit {

OpenWork open_work_on(const DeviceFacts& gpu, const Description& description, const TuneOptions& options,
                      const std::vector<Cell>& cells) {
  const SweepLines lines(description, options, gpu);
  const KnownLines known(options.known);
  CellSearch search(description, lines, options, known, gpu);
  OpenWork work;
  work.plans = lines.plans();
  std::vector<char> asked(work.plans.size(), 0);
  for (const Cell& cell : cells) {
    const std::vector<std::size_t> first = search.ask(cell.batch, cell.mode, search.open(cell.batch, cell.mode));
    if (first.empty()) continue;
    work.cells.push_back(cell);
    for (std::size_t plan : first) asked[plan] = 1;
  }
  for (std::size_t i = 0; i < work.plans.size(); ++i)
    if (asked[i] != 0 && !known.is_right(lines.verified(i))) work.to_verify.push_back(work.plans[i]);
  return work;
}

InProcess::InProcess(int device) : gpu_(ssmjit::device(device)) {}

std::string InProcess::name() const { return fmt::format("GPU {} ({})", gpu_.ordinal, gpu_.name); }

void InProcess::run(const Description& description, const TuneOptions& options) {
  TuneOptions here = options;
  here.device = gpu_.ordinal;
  here.on_doing = [&](const Doing& doing) {
    if (stopped()) fail(ErrorKind::machine, "{}: stopped", name());
    if (options.on_doing) options.on_doing(doing);
  };
  sweep(description, here);
}

Recorded::Recorded(std::string name, const std::vector<Measurement>& journal)
    : name_(std::move(name)), lines_(journal) {
  if (lines_.empty()) fail(ErrorKind::invalid, "{}: no measurement in it", name_);
  for (const Measurement& line : lines_)
    if (line.device != lines_.front().device)
      fail(ErrorKind::invalid, "{}: measurements of {} and {}; wants those of one kind of GPU", name_,
           lines_.front().device, line.device);
}

std::vector<const Measurement*> Recorded::answers(const Description& description, const TuneOptions& options) const {
  const bool ring = description.ring_window() != 0;
  const std::vector<Phase> phases = phases_of(description, options);
  const std::string phase = !ring ? "step" : phases.size() == 2 ? "weighted" : ssmjit::name(phases.front());
  const double steps = steps_between_flushes(description, options);
  std::set<std::string> known;
  for (const Measurement& line : options.known) known.insert(line.key());
  const auto has = [](const auto& all, const auto& value) {
    return std::find(all.begin(), all.end(), value) != all.end();
  };
  const std::string digest = description.kernel_digest();
  std::vector<const Measurement*> found;
  for (const Measurement& line : lines_) {
    if (line.kernel_digest != digest || line.nheads != work_items(description, 1) || known.contains(line.key())) continue;
    if (!options.plans.empty() && !has(options.plans, line.plan)) continue;
    const bool verify = line.phase == "verify";
    if (verify != options.verify_only) continue;
    if (!verify && (line.phase != phase || !has(options.batches, line.batch) || !has(options.modes, line.pdl) ||
                    std::abs(line.steps_per_flush - steps) > 1e-3))
      continue;
    found.push_back(&line);
  }
  return found;
}

OpenWork Recorded::open_work(const Description& description, const TuneOptions& options,
                             const std::vector<Cell>& cells) const {
  OpenWork work;
  const auto add = [](std::vector<Plan>& to, const Plan& plan) {
    if (std::find(to.begin(), to.end(), plan) == to.end()) to.push_back(plan);
  };
  TuneOptions of = options;
  of.verify_only = true;
  for (const Measurement* line : answers(description, of)) {
    add(work.to_verify, line->plan);
    add(work.plans, line->plan);
  }
  of.verify_only = false;
  for (const Cell& cell : cells) {
    of.batches = {cell.batch};
    of.modes = {cell.mode};
    const std::vector<const Measurement*> there = answers(description, of);
    if (!there.empty()) work.cells.push_back(cell);
    for (const Measurement* line : there) add(work.plans, line->plan);
  }
  return work;
}

void Recorded::run(const Description& description, const TuneOptions& options) {
  for (const Measurement* line : answers(description, options)) {
    if (stopped()) fail(ErrorKind::machine, "{}: stopped", name());
    if (options.on_measurement) options.on_measurement(*line);
  }
}

}  // namespace ssmjit
