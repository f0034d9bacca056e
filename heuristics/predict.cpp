#include "heuristics/predict.h"

#include <algorithm>
#include <cmath>

#include "codegen/plan_smem.h"

namespace ssmjit {
namespace {

// Fitted to the journals of nemotron3-nano and nemotron3-super-tp8 on an H200 (update kernels, PDL off and chain) and
// of their rings: least squares of log time, plans near the best of their size weighing more.
struct Constants {
  double launch_us;    // what every step pays
  double chain_us;     // on top behind a producer
  double block_us;     // from a block's start to its end, beside what it moves
  double async_us;     // on top with copies through shared memory
  double flush_us;     // on top in a flush
  double all_rows_us;  // on top where all rows of a ring are read
  double head_us;      // each further head of a block that has one head on its way at a time
  double byte_us;      // of state, a thread
  double element_us;   // issue: 32000 elements of state, on one multiprocessor
  double warp_us;      // issue: a warp, on one multiprocessor
  double sm_bytes_per_us;
  double cached;  // share by which loads through the L1 move their bytes slower
  double power;   // terms add up as their p-norm: 1 is a sum, infinity the largest
};
constexpr Constants kUpdate{.launch_us = 1.90619,
                            .chain_us = -0.23313,
                            .block_us = 0.24825,
                            .async_us = -0.07403,
                            .flush_us = 0,
                            .all_rows_us = 0,
                            .head_us = 0.86924,
                            .byte_us = 0.0017654,
                            .element_us = 0.60658,
                            .warp_us = 0.0093379,
                            .sm_bytes_per_us = 175078,
                            .cached = 0.01291,
                            .power = 1.60037};
constexpr Constants kRing{.launch_us = 2.11535,
                          .chain_us = -0.07948,
                          .block_us = 0.27899,
                          .async_us = -0.06591,
                          .flush_us = 0.83559,
                          .all_rows_us = 0.45546,
                          .head_us = 0.87357,
                          .byte_us = 0.0019312,
                          .element_us = 0,
                          .warp_us = 0.16990,
                          .sm_bytes_per_us = 81755,
                          .cached = 0.10581,
                          .power = 1.79826};

// What of a peak bandwidth a pass reaches, and the clock that the constants are of: an H200's.
constexpr double kReached = 4.45 / 4.8;
constexpr double kMhz = 1980;
constexpr double kMostRegisters = 255;

// Of layers, by what an H200 took: the norm's sums on their way through a cluster; what a chain's next launch adds to
// the sum of its parts' times, each of which pays for a launch of its own, without and with dependent launches.
constexpr double kExchangeUs = 0.7;
constexpr double kNextUs = -0.36, kDependentUs = -0.66;

// Whether its kernel is a ring's: a replay is one that flushes every step.
bool is_ring_kernel(const Description& d) { return d.ring_window() != 0 || d.op() == Op::replay; }

// Least squares over the same journals: what the compiler gave.
double registers_of(const Description& d, const Plan& p) {
  const double lane_vectors = static_cast<double>(d.dstate) * size_bytes(d.state_dtype) / 16 / p.lanes_per_row;
  const double vectors = lane_vectors * p.block_m * p.lanes_per_row / (32.0 * p.warps);
  const double columns = lane_vectors * 16 / size_bytes(d.state_dtype);
  const double direct = p.state_path == StatePath::direct ? 1 : 0;
  const double waiting = direct * 4 * vectors * std::min(p.stages, 2);
  if (is_ring_kernel(d))
    return 0.09 + 5.622 * vectors + 0.517 * waiting + 2.898 * columns + 38.07 * p.min_blocks_per_sm + 19.9 * direct;
  return 19.75 + 5.194 * vectors + 1.255 * waiting + 2.254 * columns + 30.76 * p.min_blocks_per_sm - 31.45 * direct;
}

}  // namespace

int estimate_registers(const Description& description, const Plan& plan) {
  return static_cast<int>(std::clamp(registers_of(description, plan), 40.0, kMostRegisters));
}

double predict_us(const Description& description, const Plan& plan, const GpuFacts& gpu, int batch, PdlMode mode,
                  Phase phase, int ring_count, int registers) {
  if (plan.form != PlanForm::fused) {
    const double between_us = plan.form == PlanForm::chain_pdl ? kDependentUs : kNextUs;
    double us = -between_us;
    for (const PlanPart& part : plan_parts(plan, description)) {
      us += between_us + predict_us(part.description, part.plan, gpu, batch, mode, phase, ring_count);
      mode = PdlMode::off;
    }
    return us;
  }
  if (description.nheads == 0) {  // without a recurrence: a launch and its bytes, whatever the plan
    const auto moved = static_cast<double>(bytes_moved(description, std::max(batch, 1)).total());
    return kUpdate.launch_us + moved / (gpu.memory_gb_s * 1e3 * kReached);
  }
  const bool ring = is_ring_kernel(description);
  const Constants& c = ring ? kRing : kUpdate;
  const SmLimits sm = sm_limits(gpu.arch);
  const double slower = kMhz / gpu.boost_mhz;  // instructions, against the clock of the constants

  // Blocks of one multiprocessor, in all and at once.
  const LaunchShape shape = launch_shape(plan, description, std::max(batch, 1));
  const double blocks = static_cast<double>(shape.grid_x) * static_cast<double>(shape.grid_y);
  const double sm_blocks = blocks / gpu.sms;
  const bool layer = description.op() == Op::layer;  // whose plans say how many there are
  const double wanted_registers =
      registers > 0 ? registers
      : layer       ? std::min(kMostRegisters, static_cast<double>(sm.registers) /
                                                   (std::max(plan.min_blocks_per_sm, 1) * shape.block_threads))
                    : registers_of(description, plan);
  const int granted = (static_cast<int>(std::clamp(wanted_registers, 40.0, kMostRegisters)) + 7) / 8 * 8;
  const std::int64_t smem = plan_smem_bytes(plan, description, gpu.arch) + 1024;  // a KiB is the system's
  const auto resident = static_cast<double>(std::max<std::int64_t>(
      1, std::min<std::int64_t>({sm.threads / shape.block_threads, sm.blocks, sm.smem_bytes / smem,
                                 sm.registers / (granted * shape.block_threads)})));
  const double rounds = sm_blocks / resident;
  const double waves = rounds <= 1 ? 1 : (rounds + std::ceil(rounds)) / 2;

  // One block, alone.
  const double state_bytes =
      static_cast<double>(plan.block_m) * description.dstate * size_bytes(description.state_dtype);
  const double head_us = c.byte_us * slower * state_bytes / shape.block_threads;
  const double on_their_way = std::min(plan.stages, plan.heads_per_block);
  double block_us = c.block_us + head_us;
  if (plan.state_path != StatePath::direct) block_us += c.async_us;
  if (phase == Phase::flush || description.op() == Op::replay) block_us += c.flush_us * slower;
  if (ring && plan.ring_rows == RingRows::all) block_us += c.all_rows_us * slower;
  block_us += (plan.heads_per_block - 1) * (c.head_us + head_us) / std::sqrt(on_their_way);

  // What bounds a step: memory, one multiprocessor's share of it, waves of blocks, instructions.
  const auto bytes = static_cast<double>(bytes_moved(description, std::max(batch, 1), phase, ring_count).total());
  const double heads = static_cast<double>(std::max(batch, 1)) * description.nheads;
  const int turns = description.op() == Op::update ? description.token_count : 1;  // over the state, in registers
  const double elements = turns * heads * description.head_dim * description.dstate / 32e3 / gpu.sms;
  const double memory = bytes / (gpu.memory_gb_s * 1e3 * kReached) * (plan.streaming ? 1 : 1 + c.cached);
  const double one_sm = std::ceil(sm_blocks) * bytes / blocks / c.sm_bytes_per_us * slower;
  const double latency = waves * block_us;
  const double issue = (elements * c.element_us + sm_blocks * plan.warps * c.warp_us) * slower;
  double sum = 0;
  for (const double term : {memory, one_sm, latency, issue}) sum += std::pow(term, c.power);
  double us = c.launch_us + std::pow(sum, 1 / c.power);
  if (mode == PdlMode::chain && gpu.arch.has_pdl()) us += c.chain_us;
  if (layer) us += kExchangeUs * slower;
  if (plan.precompute_warps > 0) us += c.launch_us;
  return us * std::max(1.0, wanted_registers / kMostRegisters);  // the rest would spill
}

}  // namespace ssmjit
