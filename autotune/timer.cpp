#include "autotune/timer.h"

#include <algorithm>

#include <fmt/format.h>

#include "codegen/fail.h"

namespace ssmjit {

namespace {

constexpr int kMostReplays = 16;

}  // namespace

double least(const std::vector<double>& samples) {
  return samples.empty() ? 0 : *std::min_element(samples.begin(), samples.end());
}

double median(std::vector<double> samples) {
  if (samples.empty()) return 0;
  const auto middle = samples.begin() + static_cast<std::ptrdiff_t>(samples.size() / 2);
  std::nth_element(samples.begin(), middle, samples.end());
  return *middle;
}

StepTimer::StepTimer(const Layers& layers, const Stream& stream, PdlMode mode)
    : layers_(layers), stream_(stream), mode_(mode), watch_(2 * kMostReplays) {
  if (mode_ != PdlMode::chain) return;
  const Graph producers(stream_, [&] {
    for (int layer = 0; layer < layers_.count(); ++layer) layers_.produce(layer);
  });
  producers_us_ = median(replays_us(producers, 11));
}

Graph StepTimer::record_each(const std::function<void(int)>& step) const {
  return Graph(stream_, [&] {
    for (int layer = 0; layer < layers_.count(); ++layer) {
      if (mode_ == PdlMode::chain) layers_.produce(layer);
      step(layer);
    }
  });
}

Graph StepTimer::record(const Kernel& kernel) const {
  return record(kernel, [] {});
}

Graph StepTimer::record(const Kernel& kernel, const std::function<void()>& behind) const {
  const Pdl pdl = mode_ == PdlMode::chain ? Pdl::early_state : Pdl::off;
  return record_each([&](int layer) {
    launch_case(kernel, layers_.args(layer, pdl), stream_);
    if (layer == layers_.count() - 1) behind();
  });
}

double StepTimer::mean_us(const Graph& graph, int replays, const std::function<void(int)>& prepare) const {
  const Stopwatch watch(2 * replays);
  prepare(0);
  graph.launch(stream_);
  for (int i = 0; i < replays; ++i) {
    prepare(i);
    if (layers_.wants_displacing()) layers_.displace_l2();
    watch.mark(2 * i, stream_);
    graph.launch(stream_);
    watch.mark(2 * i + 1, stream_);
  }
  double sum = 0;
  for (int i = 0; i < replays; ++i) sum += watch.lap_us(2 * i) / layers_.count() - producers_us_;
  return sum / replays;
}

std::vector<double> StepTimer::replays_us(const Graph& graph, int count) const {
  if (count < 1 || count > kMostReplays) fail(ErrorKind::internal, "timer: {} replays", count);
  std::vector<double> samples;
  graph.launch(stream_);
  if (layers_.wants_displacing()) {
    for (int i = 0; i < count; ++i) {
      layers_.displace_l2();
      watch_.mark(2 * i, stream_);
      graph.launch(stream_);
      watch_.mark(2 * i + 1, stream_);
    }
    for (int i = 0; i < count; ++i) samples.push_back(watch_.lap_us(2 * i) / layers_.count() - producers_us_);
    return samples;
  }
  watch_.mark(0, stream_);
  for (int i = 0; i < count; ++i) {
    graph.launch(stream_);
    watch_.mark(i + 1, stream_);
  }
  for (int i = 0; i < count; ++i) samples.push_back(watch_.lap_us(i) / layers_.count() - producers_us_);
  return samples;
}

StepTimer::Fastest StepTimer::fastest_pass(std::int64_t vectors,
                                           const std::function<Graph(const BenchKernels::Pass&)>& record) const {
  std::vector<Fastest> candidates;
  for (int threads : {128, 256, 512}) {
    for (int unroll : {1, 4, 8}) {
      const std::int64_t all = std::max<std::int64_t>(1, (vectors + threads * unroll - 1) / (threads * unroll));
      std::vector<std::int64_t> grids{all};
      for (int blocks : {2, 4, 8, 16}) {
        const std::int64_t grid = std::int64_t{blocks} * layers_.sms();
        if (grid < all) grids.push_back(grid);
      }
      for (std::int64_t grid : grids)
        for (bool streaming : {false, true}) candidates.push_back({{unroll, streaming, threads, grid}});
    }
  }
  for (Fastest& c : candidates) {
    const Graph graph = record(c.pass);
    c.us = least(replays_us(graph, 2));
  }
  std::sort(candidates.begin(), candidates.end(), [](const Fastest& a, const Fastest& b) { return a.us < b.us; });
  Fastest best;
  for (std::size_t i = 0; i < std::min<std::size_t>(4, candidates.size()); ++i) {
    const Graph graph = record(candidates[i].pass);
    const double us = median(replays_us(graph, 9));
    if (i == 0 || us < best.us) best = {candidates[i].pass, us};
  }
  return best;
}

double StepTimer::floor_us() const {
  const Fastest best = fastest_pass(layers_.bytes().read / 16, [&](const BenchKernels::Pass& pass) {
    return record_each([&](int layer) { layers_.pass(layer, pass, mode_ == PdlMode::chain); });
  });
  const BenchKernels::Pass& p = best.pass;
  floor_pass_ = fmt::format("{} threads, {} vectors a thread, {} blocks{}", p.threads, p.unroll, p.grid,
                            p.streaming ? ", streaming stores" : "");
  return best.us;
}

double StepTimer::copy_floor_us(std::int64_t bytes) const {
  const auto record = [&](const BenchKernels::Pass& pass) {
    return Graph(stream_, [&] { layers_.copy_pass(bytes, pass); });
  };
  return fastest_pass(bytes / 16, record).us;
}

}  // namespace ssmjit
