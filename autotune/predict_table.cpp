#include <ssmjit/measurement.h>
#include <ssmjit/tune.h>

#include "heuristics/predict.h"

namespace ssmjit {

Table predict_table(const Description& description, std::string_view device_key, const std::vector<int>& batches,
                    const std::vector<PdlMode>& modes, const Acceptance& accepted) {
  description.validate();
  const GpuFacts gpu = gpu_facts(device_key);
  Measurement blank;
  blank.op = description.op();
  blank.kernel_digest = description.kernel_digest();
  blank.cost_digest = description.cost_digest();
  blank.kernel = description.summary();
  blank.nheads = description.nheads;
  blank.device = device_key;
  const bool ring = description.op() == Op::ring;
  if (ring) {
    blank.phase = "weighted";
    blank.steps_per_flush =
        steps_per_flush(description.ring_window(), description.token_count,
                        accepted.chance.empty() ? Acceptance::usual(description.token_count) : accepted);
  }
  std::vector<Measurement> guesses;
  for (const Plan& plan : plan_space(description, gpu.arch)) {
    for (PdlMode mode : modes) {
      if (plan.early_state != (mode == PdlMode::chain && gpu.arch.has_pdl())) continue;
      for (int batch : batches) {
        Measurement m = blank;
        m.plan = plan;
        m.pdl = mode;
        m.batch = batch;
        if (ring) {
          for (Phase phase : {Phase::no_flush, Phase::flush}) {
            const int count = timed_ring_count(description, phase);
            m.phases.push_back({.phase = phase,
                                .ring_count = count,
                                .us = predict_us(description, plan, gpu, batch, mode, phase, count)});
          }
          m.weigh();
        } else {
          m.us = predict_us(description, plan, gpu, batch, mode);
        }
        guesses.push_back(std::move(m));
      }
    }
  }
  Table table = fit_table(guesses, {.max_regret = 0.01});
  for (TableRow& row : table.rows) row.predicted = true;
  return table;
}

}  // namespace ssmjit
