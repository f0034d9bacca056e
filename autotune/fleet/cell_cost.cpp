#include "autotune/fleet/cell_cost.h"

#include <algorithm>
#include <vector>

namespace ssmjit {
namespace {

// Fitted to the journal of a sweep of an H200 (22 cells of an update and a ring, 33 s).
constexpr double kPhaseS = 0.5;    // memory of the layers, the race, the checks
constexpr double kPlanS = 1.2e-3;  // a plan's module and graph
constexpr int kPlanReplays = 3;
constexpr int kFloorReplays = 300;    // of a phase
constexpr double kLaunchUs = 1.4;     // of a layer
constexpr double kBytesUs = 3.5e6;    // bytes read or written in a microsecond
constexpr double kColdBytes = 200e6;  // least of all layers: four times the L2
constexpr double kMostLayers = 1024;  // of kernels without a state of their own
constexpr double kFewestLayers = 8;

}  // namespace

double cell_cost(const Description& description, int batch, std::size_t plans) {
  std::vector<Phase> phases{Phase::no_flush};
  if (description.ring_window() != 0) phases.push_back(Phase::flush);
  double replay_s = 0;  // one of each phase
  for (const Phase phase : phases) {
    const Bytes bytes = bytes_moved(description, batch, phase);
    const double layers =
        std::clamp(kColdBytes / std::max(1.0, static_cast<double>(bytes.read)), kFewestLayers, kMostLayers);
    replay_s += 1e-6 * layers * (kLaunchUs + static_cast<double>(bytes.total()) / kBytesUs);
  }
  return kPhaseS * static_cast<double>(phases.size()) +
         static_cast<double>(plans) * (kPlanS + kPlanReplays * replay_s) + kFloorReplays * replay_s;
}

}  // namespace ssmjit
