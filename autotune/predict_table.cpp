#include <algorithm>
#include <vector>

#include <ssmjit/measurement.h>
#include <ssmjit/tune.h>

#include "codegen/fail.h"
#include "heuristics/predict.h"

namespace ssmjit {
namespace {

// The default plan stays unless another is predicted to be faster by more than the model is mostly off by: on an H200
// the rings' worst size then loses 8%, by the model's first choice 13%, by the default plan 20%.
constexpr double kTrusted = 1.05;

}  // namespace

Table predict_table(const Description& description, std::string_view device_key, const std::vector<int>& batches,
                    const std::vector<PdlMode>& modes, const Acceptance& accepted) {
  description.validate();
  const GpuFacts gpu = gpu_facts(device_key);
  Measurement blank;
  blank.op = description.op();
  blank.ring_layer = blank.op == Op::layer && description.ring_window() != 0;
  blank.kernel_digest = description.kernel_digest();
  blank.cost_digest = description.cost_digest();
  blank.kernel = description.summary();
  blank.nheads = static_cast<int>(work_items(description, 1));
  blank.device = device_key;
  const bool ring = description.ring_window() != 0;
  if (ring) {
    blank.phase = "weighted";
    blank.steps_per_flush =
        steps_per_flush(description.ring_window(), description.token_count,
                        accepted.chance.empty() ? Acceptance::usual(description.token_count) : accepted);
  }
  const auto guess = [&](const Plan& plan, int batch, PdlMode mode) {
    Measurement m = blank;
    m.plan = plan;
    m.pdl = mode;
    m.batch = batch;
    if (ring) {
      for (Phase phase : {Phase::no_flush, Phase::flush}) {
        const int count = timed_ring_count(description, phase);
        m.phases.push_back(
            {.phase = phase, .ring_count = count, .us = predict_us(description, plan, gpu, batch, mode, phase, count)});
      }
      m.weigh();
    } else {
      m.us = predict_us(description, plan, gpu, batch, mode);
    }
    return m;
  };
  // The model of an update does not order a layer's plans.
  const std::vector<Plan> plans =
      description.op() == Op::layer ? std::vector<Plan>() : plan_space(description, gpu.arch);
  std::vector<Measurement> guesses;
  for (PdlMode mode : modes) {
    const bool early = mode == PdlMode::chain && gpu.arch.has_pdl();
    for (int batch : batches) {
      Plan usual = default_plan(description, gpu.arch, work_items(description, batch));
      if (usual.form == PlanForm::fused) usual.early_state = early;
      const Measurement of_usual = guess(usual, batch, mode);
      std::vector<Measurement> here;
      double best_us = of_usual.us;
      for (const Plan& plan : plans) {
        if (plan.early_state != early) continue;
        here.push_back(guess(plan, batch, mode));
        best_us = std::min(best_us, here.back().us);
      }
      if (of_usual.us <= best_us * kTrusted) here = {of_usual};
      guesses.insert(guesses.end(), here.begin(), here.end());
    }
  }
  Table table = fit_table(guesses, {.max_regret = 0.01});
  for (TableRow& row : table.rows) {
    row.predicted = true;
    row.between.reset();  // plans that were left out above have no time to compare
  }
  return table;
}

}  // namespace ssmjit
