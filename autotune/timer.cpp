#include "autotune/timer.h"

#include <algorithm>

#include <fmt/format.h>

namespace ssmjit {

double median(std::vector<double> samples) {
  if (samples.empty()) return 0;
  const auto middle = samples.begin() + static_cast<std::ptrdiff_t>(samples.size() / 2);
  std::nth_element(samples.begin(), middle, samples.end());
  return *middle;
}

StepTimer::StepTimer(const Layers& layers, const Stream& stream, PdlMode mode)
    : layers_(layers), stream_(stream), mode_(mode) {
  if (mode_ != PdlMode::chain) return;
  const Graph producers(stream_, [&] {
    for (int layer = 0; layer < layers_.count(); ++layer) layers_.produce(layer);
  });
  std::vector<double> samples;
  for (int round = 0; round < 11; ++round) samples.push_back(replay_us(producers));
  producers_us_ = median(samples);
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
  const Pdl pdl = mode_ == PdlMode::chain ? Pdl::early_state : Pdl::off;
  return record_each([&](int layer) { kernel.launch(layers_.args(layer, pdl), stream_.handle()); });
}

double StepTimer::replay_us(const Graph& graph) const {
  watch_.start(stream_);
  graph.launch(stream_);
  watch_.stop(stream_);
  return watch_.elapsed_us() / layers_.count() - producers_us_;
}

double StepTimer::floor_us() const {
  struct Candidate {
    BenchKernels::Pass pass;
    double us = 0;
  };
  const std::int64_t vectors = layers_.bytes().read / 16;
  std::vector<Candidate> candidates;
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
  const auto record = [&](const BenchKernels::Pass& pass) {
    return record_each([&](int layer) { layers_.pass(layer, pass, mode_ == PdlMode::chain); });
  };
  for (Candidate& c : candidates) {
    const Graph graph = record(c.pass);
    replay_us(graph);
    c.us = std::min(replay_us(graph), replay_us(graph));
  }
  std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) { return a.us < b.us; });
  double best = 0;
  for (std::size_t i = 0; i < std::min<std::size_t>(4, candidates.size()); ++i) {
    const Graph graph = record(candidates[i].pass);
    replay_us(graph);
    std::vector<double> samples;
    for (int round = 0; round < 9; ++round) samples.push_back(replay_us(graph));
    const double us = median(samples);
    if (best == 0 || us < best) {
      best = us;
      const BenchKernels::Pass& p = candidates[i].pass;
      floor_pass_ = fmt::format("{} threads, {} vectors a thread, {} blocks{}", p.threads, p.unroll, p.grid,
                                p.streaming ? ", streaming stores" : "");
    }
  }
  return best;
}

}  // namespace ssmjit
