// What a plan would cost on a GPU, from facts of the GPU alone: to order plans where nothing was measured.
#pragma once

#include <ssmjit/description.h>
#include <ssmjit/plan.h>
#include <ssmjit/table.h>

#include "heuristics/gpus.h"

namespace ssmjit {

// One step, cold state, microseconds. The plan is legal for the description on gpu.arch. `ring_count`: rows in use of
// every request, as bytes_moved() takes it. `registers`: a thread's, where the compiler has said; 0: estimated. A model
// of a dozen constants fitted to an H200: docs/PERFORMANCE.md, "Predicted plans", says how far it can be trusted.
double predict_us(const Description& description, const Plan& plan, const GpuFacts& gpu, int batch,
                  PdlMode mode = PdlMode::off, Phase phase = Phase::no_flush, int ring_count = -1, int registers = 0);

// Registers that a thread would have: off by 16 in the mean, of up to 255.
int estimate_registers(const Description& description, const Plan& plan);

}  // namespace ssmjit
