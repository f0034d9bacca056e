#include <random>
#include <vector>

#include <ssmjit/tune.h>

#include "autotune/layers.h"
#include "autotune/timer.h"
#include "codegen/fail.h"
#include "jit/gpu.h"

namespace ssmjit {

SteadyState steady_state(const Description& description, const Plan& plan, int batch, const SteadyOptions& options) {
  const Description& d = description;
  d.validate();
  if (d.ring_window() == 0)
    fail(ErrorKind::invalid, "description: got a store in place, which has no cursors; wants a ring (store=ring:16)");
  if (options.steps < 1) fail(ErrorKind::invalid, "steps: got {}; wants 1 or more", options.steps);
  const Acceptance accepted = options.accepted.chance.empty() ? Acceptance::usual(d.token_count) : options.accepted;
  steps_per_flush(d.ring_window(), d.token_count, accepted);  // refuses an acceptance that does not fit

  const auto turn = measuring_turn();
  use_device(options.device);
  const DeviceFacts gpu = device(options.device);
  check_plan(plan, d, gpu.arch());
  const Kernel kernel = Kernel::load(d, plan, options.compile);
  const BenchKernels kernels(gpu.arch(), gpu.sms, options.compile);
  const Stream& stream = measuring_stream();
  const Layers layers(d, batch, gpu, kernels, stream, options.seed);
  const StepTimer timer(layers, stream, options.mode);

  std::mt19937_64 random(options.seed);
  std::uniform_real_distribution<double> uniform;
  std::vector<RingCursor> cursors(static_cast<std::size_t>(batch));
  for (RingCursor& cursor : cursors)
    cursor.count = static_cast<int>(uniform(random) * static_cast<double>(d.ring_window() + 1));
  const auto advance = [&] {
    for (RingCursor& cursor : cursors) cursor = advance_ring(d, cursor, d.token_count, accepted.draw(uniform(random)));
  };
  for (int step = 0; step < 2 * d.ring_window(); ++step) advance();

  SteadyState result{.layers = layers.count(), .steps = options.steps};
  std::vector<std::byte> schedule;
  std::int64_t flushes = 0;
  for (int step = 0; step < options.steps; ++step) {
    for (const RingCursor& cursor : cursors) flushes += ring_flushes(d, cursor, d.token_count) ? 1 : 0;
    const std::vector<std::byte> packed = layers.pack_cursors(cursors);
    schedule.insert(schedule.end(), packed.begin(), packed.end());
    advance();
  }
  result.flushed = static_cast<double>(flushes) / static_cast<double>(std::int64_t{options.steps} * batch);
  const DeviceBuffer steps(schedule.size());
  steps.upload(schedule.data(), schedule.size());
  const std::size_t step_bytes = schedule.size() / static_cast<std::size_t>(options.steps);

  const Graph graph = timer.record(kernel);
  result.us = timer.mean_us(graph, options.steps, [&](int step) {
    layers.take_cursors(steps.data() + static_cast<std::size_t>(step) * step_bytes);
  });
  return result;
}

}  // namespace ssmjit
