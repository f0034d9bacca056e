// Timing on captured graphs: microseconds a layer, cold, median of rounds.
#pragma once

#include <functional>
#include <vector>

#include <ssmjit/kernel.h>
#include <ssmjit/table.h>

#include "autotune/layers.h"
#include "jit/gpu.h"

namespace ssmjit {

// Of no samples: 0.
double median(std::vector<double> samples);
double least(const std::vector<double>& samples);

// A step of every layer as one graph, behind the layer's producer in mode chain.
class StepTimer {
 public:
  StepTimer(const Layers& layers, const Stream& stream, PdlMode mode);

  Graph record(const Kernel& kernel) const;
  // With what `behind` puts on the stream after the last layer.
  Graph record(const Kernel& kernel, const std::function<void()>& behind) const;
  // `count` (up to 16) replays in a row behind one that is not timed, us a layer each; in mode chain without the
  // producers' part. The stream never runs dry in between, so that no host time is in a figure.
  std::vector<double> replays_us(const Graph& graph, int count) const;

  // The mean over `replays`, behind one that is not timed; what prepare(i) puts on the stream before replay i is not
  // timed either.
  double mean_us(const Graph& graph, int replays, const std::function<void(int)>& prepare) const;

  // The memory floor of the same bytes in the same mode: the fastest of the passes, median of rounds.
  // Leaves the layers' contents undefined: refill_all() afterwards.
  double floor_us() const;
  // What produced the floor: "256 threads, 1 vector a thread, one pass".
  const std::string& floor_pass() const { return floor_pass_; }
  // Of one launch after the last layer that reads `bytes` and writes as many (Layers::copy_pass()), us a layer; as
  // above.
  double copy_floor_us(std::int64_t bytes) const;

 private:
  Graph record_each(const std::function<void(int)>& step) const;
  // The fastest of the passes over `vectors` of 16 bytes, as `record` puts them into a graph, median of rounds.
  struct Fastest {
    BenchKernels::Pass pass{};
    double us = 0;
  };
  Fastest fastest_pass(std::int64_t vectors, const std::function<Graph(const BenchKernels::Pass&)>& record) const;

  const Layers& layers_;
  const Stream& stream_;
  PdlMode mode_;
  Stopwatch watch_;
  double producers_us_ = 0;  // a layer
  mutable std::string floor_pass_;
};

}  // namespace ssmjit
