#include "autotune/search/prune.h"

#include <algorithm>

#include <fmt/format.h>

#include "codegen/plan_smem.h"
#include "heuristics/gpus.h"

namespace ssmjit {
namespace {

// After which memory answers, us, of what was asked for under load. On an H200 no plan that has less in flight than
// this comes within 11% of the best of any of the 20,900 that were measured.
constexpr double kAnswer_us = 1.13;
constexpr int kRegistersAtOnce = 8;       // registers of a thread come in eights
constexpr int kBlockOverheadSmem = 1024;  // shared memory of a block that the driver keeps

// Heads whose state a block has asked for at once.
int heads_in_flight(const Plan& plan) {
  if (plan.state_path != StatePath::direct) return plan.stages;
  return plan.heads_per_block > 1 ? 2 : 1;
}

}  // namespace

int blocks_per_sm(const Plan& plan, const Description& description, const DeviceFacts& gpu, const Compiled& compiled) {
  const int threads = 32 * plan.warps;
  const SmLimits sm = sm_limits(gpu.arch());
  int blocks = std::min(sm.blocks, sm.threads / threads);
  if (compiled.registers > 0 && gpu.registers_per_sm > 0) {
    const int registers = (compiled.registers + kRegistersAtOnce - 1) / kRegistersAtOnce * kRegistersAtOnce;
    blocks = std::min(blocks, gpu.registers_per_sm / (registers * threads));
  }
  const int smem =
      compiled.smem_bytes > 0 ? compiled.smem_bytes : static_cast<int>(plan_smem_bytes(plan, description, gpu.arch()));
  return std::min(blocks, gpu.smem_per_sm_bytes / (smem + kBlockOverheadSmem));
}

std::int64_t block_bytes_in_flight(const Plan& plan, const Description& description) {
  if (description.op() == Op::conv1d)
    return std::int64_t{plan.block_m} * (description.conv_state_len() * size_bytes(description.state_dtype) +
                                         description.token_count * size_bytes(description.input_dtype));
  return std::int64_t{plan.block_m} * description.dstate * size_bytes(description.state_dtype) * heads_in_flight(plan);
}

double bytes_in_flight_per_sm(const Plan& plan, const Description& description, int batch, const DeviceFacts& gpu,
                              const Compiled& compiled) {
  const LaunchShape shape = launch_shape(plan, description, batch);
  const std::int64_t at_once =
      std::min(shape.grid_x * shape.grid_y, std::int64_t{blocks_per_sm(plan, description, gpu, compiled)} * gpu.sms);
  return static_cast<double>(at_once * block_bytes_in_flight(plan, description)) / gpu.sms;
}

std::string why_pruned(const Plan& plan, const Description& description, int batch, const DeviceFacts& gpu,
                       const FloorRate& floor, const Compiled& compiled) {
  if (plan.form != PlanForm::fused) return {};  // each of its launches was chosen at its own
  if (blocks_per_sm(plan, description, gpu, compiled) < 1)
    return fmt::format("no block fits: {} threads of {} registers and {} bytes of shared memory", 32 * plan.warps,
                       compiled.registers, compiled.smem_bytes);
  if (floor.us <= 0) return {};
  const double state = static_cast<double>(description.nheads) * description.head_dim * description.dstate *
                       size_bytes(description.state_dtype) * batch;
  const double wanted = std::min(static_cast<double>(floor.bytes_read) / floor.us * kAnswer_us, state / 2) / gpu.sms;
  const double has = bytes_in_flight_per_sm(plan, description, batch, gpu, compiled);
  if (has >= wanted) return {};
  return fmt::format("few bytes in flight: {:.0f} an SM; the floor's rate wants {:.0f}", has, wanted);
}

}  // namespace ssmjit
