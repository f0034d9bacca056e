#include "autotune/cells.h"

#include <cmath>
#include <set>

namespace ssmjit {
namespace {

// Later lines count for more; of those of one second a failure, then whichever, but always the same.
auto age(const Measurement& m) {
  return std::tuple(m.measured, m.outcome, m.us, m.source_digest, m.driver, m.nvrtc, m.policy, m.kernel, m.floor_us,
                    m.batch);
}

void tidy(Measurement& m) {
  for (double* us : {&m.us, &m.us_min, &m.us_max, &m.floor_us}) *us = tidy_us(*us);
}

}  // namespace

bool has_time(const Measurement& m) { return (m.outcome == Outcome::ok || m.outcome == Outcome::dropped) && m.us > 0; }

const Measurement* fastest(const Cell& cell) {
  const Measurement* best = nullptr;
  for (const auto& [plan, m] : cell)
    if (m.outcome == Outcome::ok && m.us > 0 && (best == nullptr || m.us < best->us)) best = &m;
  return best;
}

double tidy_us(double us) { return std::round(us * 1e3) / 1e3; }

Cells cells_of(const std::vector<Measurement>& measurements) {
  // Verdicts on a plan whatever its size.
  std::map<std::tuple<std::string, std::string, std::string>, const Measurement*> verdicts;
  Cells cells;
  std::map<RowKernel, const Measurement*> newest;
  std::set<std::string> never;
  for (const Measurement& m : measurements) {
    if (unsound(m.outcome)) never.insert(m.candidate());
    if (m.phase == "verify") {
      const Measurement*& verdict = verdicts[{m.device, m.kernel_digest, m.plan.text()}];
      if (verdict == nullptr || age(*verdict) < age(m)) verdict = &m;
      continue;
    }
    if (m.op == Op::ring && m.phase != "weighted" && m.phases.size() != 2) continue;  // a phase alone is no step
    const RowKernel kernel{m.device, m.kernel_digest, m.pdl};
    const auto [at, added] = cells[kernel][m.total_heads()].emplace(m.plan.text(), m);
    if (!added && age(at->second) < age(m)) at->second = m;
    const Measurement*& of_kernel = newest[kernel];
    if (m.op == Op::ring && m.phases.size() == 2 &&
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
        if (failed || never.contains(m.candidate())) {
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
