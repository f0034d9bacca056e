#include "autotune/cells.h"

#include <cmath>
#include <set>

namespace ssmjit {
namespace {

void tidy(Measurement& m) {
  for (double* us : {&m.us, &m.us_min, &m.us_max, &m.floor_us}) *us = tidy_us(*us);
  m.waves = std::round(m.waves * 1e4) / 1e4;
}

}  // namespace

bool has_time(const Measurement& m) { return (m.outcome == Outcome::ok || m.outcome == Outcome::dropped) && m.us > 0; }

const Measurement* fastest(const Cell& cell) {
  const Measurement* best = nullptr;
  for (const auto& [plan, m] : cell)
    if (m.outcome == Outcome::ok && m.us > 0 && (best == nullptr || m.us < best->us)) best = &m;
  return best;
}

bool counts_more(const Measurement& a, const Measurement& b) {
  const auto rank = [](const Measurement& m) {
    return std::tuple(unsound(m.outcome), m.outcome != Outcome::memory_failed, std::string_view(m.measured), m.outcome);
  };
  return rank(a) != rank(b) ? rank(a) < rank(b) : a.json() < b.json();
}

std::int64_t fits_heads(const Measurement& m) {
  constexpr double kRounded = 0.5e-4;  // by so much a journal's waves may be off
  if (!(m.waves > kRounded)) return 0;
  // The least whole number within what rounding leaves open, or the one below that.
  const double full = m.batch * std::ceil(m.waves), least = full / (m.waves + kRounded);
  const double requests = std::ceil(least) <= full / (m.waves - kRounded) ? std::ceil(least) : std::floor(least);
  return std::max<std::int64_t>(static_cast<std::int64_t>(std::min(requests, 1e9)), m.batch) * m.nheads;
}

double tidy_us(double us) { return std::round(us * 1e3) / 1e3; }

Cells cells_of(const std::vector<Measurement>& measurements) {
  // Verdicts on a plan whatever its size.
  std::map<std::tuple<std::string, std::string, std::string>, const Measurement*> verdicts;
  Cells cells;
  std::map<RowKernel, const Measurement*> newest;
  std::set<std::string> never;
  for (const Measurement& m : measurements)
    if (unsound(m.outcome)) never.insert(m.candidate());
  for (const Measurement& m : measurements) {
    if (m.phase == "verify") {
      const Measurement*& verdict = verdicts[{m.device, m.kernel_digest, m.plan.text()}];
      if (verdict == nullptr || counts_more(*verdict, m)) verdict = &m;
      continue;
    }
    if (m.has_ring() && m.phase != "weighted" && m.phases.size() != 2) continue;  // a phase alone is no step
    if (!never.empty() && never.contains(m.candidate())) continue;
    const RowKernel kernel{m.device, m.kernel_digest, m.pdl};
    const auto [at, added] = cells[kernel][m.total_heads()].emplace(m.plan.text(), m);
    if (!added && counts_more(at->second, m)) at->second = m;
    const Measurement*& of_kernel = newest[kernel];
    if (m.has_ring() && m.phases.size() == 2 &&
        (of_kernel == nullptr ||
         std::tuple(of_kernel->measured, of_kernel->steps_per_flush) < std::tuple(m.measured, m.steps_per_flush)))
      of_kernel = &m;
  }

  for (auto& [kernel, sizes] : cells) {
    const Measurement* of_kernel = newest[kernel];
    for (auto& [total_heads, cell] : sizes) {
      for (auto it = cell.begin(); it != cell.end();) {
        Measurement& m = it->second;
        const std::tuple key(m.device, m.kernel_digest, it->first);
        const auto verdict = verdicts.find(key);
        const bool failed =
            verdict != verdicts.end() && verdict->second->outcome != Outcome::ok &&
            (m.measured <= verdict->second->measured || m.source_digest == verdict->second->source_digest);
        if (failed) {
          it = cell.erase(it);
          continue;
        }
        if (of_kernel != nullptr && m.phases.size() == 2) {
          m.steps_per_flush = of_kernel->steps_per_flush;
          for (PhaseMeasurement& p : m.phases)
            for (double* us : {&p.us, &p.us_min, &p.us_max, &p.floor_us}) *us = tidy_us(*us);
          m.weigh();
        }
        tidy(m);
        ++it;
      }
    }
  }
  return cells;
}

}  // namespace ssmjit
