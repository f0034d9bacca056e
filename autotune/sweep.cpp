#include <algorithm>
#include <chrono>
#include <memory>
#include <tuple>

#include <fmt/format.h>

#include <ssmjit/source.h>
#include <ssmjit/tune.h>

#include "autotune/compile_pool.h"
#include "autotune/layers.h"
#include "autotune/spot_check.h"
#include "autotune/sweep_lines.h"
#include "autotune/timer.h"
#include "codegen/fail.h"
#include "codegen/log.h"
#include "jit/gpu.h"

namespace ssmjit {
namespace {

// A candidate further from the best than kWide after its first replays is not looked at again; nor, of those that are,
// one further than kClose after kFirstVisits. A visit is kReplays timed replays behind one that is not timed, since the
// first after another candidate's finds the instruction and constant caches cold.
constexpr double kWide = 1.15;
constexpr double kClose = 1.03;
constexpr std::size_t kKept = 24;
constexpr int kFirstVisits = 2;
constexpr int kVisits = 7;
constexpr int kReplays = 3;

// A chain whose step reads its inputs before their producer has written them gives other outputs than the same steps
// launched one by one: the inputs are NaN until they are produced.
bool waits_for_producer(const Layers& layers, const Kernel& kernel, const Graph& graph, const Stream& stream) {
  layers.refill_all();
  for (int layer = 0; layer < layers.count(); ++layer) launch_case(kernel, layers.args(layer, Pdl::off), stream);
  const std::uint64_t alone = layers.hash_all();
  layers.refill_all();
  layers.poison_inputs();
  graph.launch(stream);
  return layers.hash_all() == alone;
}

using Samples = std::vector<std::vector<double>>;  // us of replays, by phase

struct Candidate {
  std::size_t plan = 0;
  Graph graph;
  Samples samples;
};

}  // namespace

std::vector<Measurement> sweep(const Description& description, const TuneOptions& options) {
  description.validate();
  const auto turn = measuring_turn();
  const DeviceFacts gpu = device(options.device);
  const SweepLines lines(description, options, gpu);
  const std::vector<Plan>& plans = lines.plans();
  const Arch arch = gpu.arch();
  const bool ring = description.op() == Op::ring;
  const std::vector<Phase> phases = phases_of(description, options);

  KnownLines known(options.known);

  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  const auto total = static_cast<std::int64_t>(options.batches.size() * options.modes.size());
  std::int64_t cells_done = 0;
  const auto report = [&](const std::string& stage, std::int64_t done, std::int64_t of, double since) {
    if (!options.progress) return;
    const double t = elapsed();
    const double left = done > 0 ? (t - since) / static_cast<double>(done) * static_cast<double>(of - done) : 0;
    options.progress({stage, done, of, t, left});
  };

  const auto doing = [&](const char* stage, const Measurement* line) {
    if (options.on_doing) options.on_doing({stage, line});
  };

  // A step by the medians of its phases.
  const auto step_us = [&](const Samples& samples) {
    Measurement m;
    m.steps_per_flush = lines.steps_per_flush();
    for (std::size_t p = 0; p < phases.size(); ++p) m.phases.push_back({.phase = phases[p], .us = median(samples[p])});
    m.weigh();
    return m.us;
  };

  // What is still to be measured: of a resumed journal, nothing twice.
  std::vector<std::size_t> wanted, unverified;
  std::vector<Plan> wanted_plans, unverified_plans;
  for (std::size_t i = 0; i < plans.size(); ++i) {
    const Measurement line = lines.verified(i);
    if (known.is_out(line)) continue;
    bool open = options.verify_only && !known.is_right(line);
    for (int batch : options.batches)
      for (PdlMode mode : options.modes)
        open = open || (lines.suits(i, mode) && !known.has(lines.timed(i, batch, mode)));
    if (!open) continue;
    wanted.push_back(i);
    wanted_plans.push_back(plans[i]);
    if (known.is_right(line)) continue;
    unverified.push_back(i);
    unverified_plans.push_back(plans[i]);
  }

  // Compile, verify in small, drop what spills: once a plan, whatever the batch.
  struct Ready {
    Kernel kernel;
    int registers = 0;
    int smem_bytes = 0;
  };
  std::vector<std::unique_ptr<Ready>> ready(plans.size());
  std::vector<Measurement> results;
  const auto record = [&](const Measurement& m) {
    results.push_back(m);
    if (options.on_measurement) options.on_measurement(m);
  };
  if (wanted.empty()) return results;
  use_device(options.device);
  refuse_during_capture("tune");
  if (!unverified.empty()) {
    VerifyOptions verify_options;
    verify_options.device = options.device;
    verify_options.seed = options.seed;
    verify_options.compile = options.compile;
    verify_options.progress = options.progress;
    // A kernel does not know nheads, so a few heads stand for all: two groups, so that a wrong one shows.
    Description few = description;
    few.ngroups = std::min(2, description.ngroups);
    few.nheads = few.ngroups * description.heads_per_group();
    verify_options.on_step = [&](const char* stage, std::size_t u) {
      const Measurement line = lines.verified(unverified[u]);
      doing(stage, &line);
      // After a fault that kills the context every later launch fails: not a word about the plans that come after.
      if (stage == std::string_view("verified")) check_device();
    };
    verify_options.on_verdict = [&](std::size_t u, const Verdict& verdict) {
      Measurement line = lines.verified(unverified[u]);
      line.registers = verdict.registers;
      line.outcome = verdict.outcome;
      if (line.outcome == Outcome::ok && verdict.spill_bytes > 0) {
        line.outcome = Outcome::spills;
        line.reason = fmt::format("{} bytes of registers spill", verdict.spill_bytes);
      } else if (line.outcome != Outcome::ok) {
        line.reason = verdict.failures.empty() ? "" : verdict.failures.front();
      } else {
        known.add(line);
      }
      record(line);
    };
    verify(few, unverified_plans, verify_options);
  }
  if (options.verify_only) return results;
  {
    CompilePool pool(description, wanted_plans, arch, options.compile);
    for (std::size_t w = 0; w < wanted.size(); ++w) {
      const std::size_t i = wanted[w];
      const Measurement line = lines.verified(i);
      if (!known.is_right(line)) continue;
      doing("compile", nullptr);
      const CompilePool::Result& compiled = pool.get(w);
      doing("load", &line);
      ready[i] = std::make_unique<Ready>(
          Ready{Kernel::load(description, plans[i], compiled.source, compiled.cubin), compiled.cubin.registers,
                launch_shape(plans[i], description, 1).smem_bytes + compiled.cubin.smem_bytes});
    }
  }

  const BenchKernels kernels(arch, gpu.sms, options.compile);
  const Stream& stream = measuring_stream();
  const double timing_since = elapsed();
  for (int batch : options.batches) {
    for (PdlMode mode : options.modes) {
      if (options.budget_s > 0 && elapsed() > options.budget_s) {
        warn(fmt::format("tune: the budget of {:.0f} s is spent; batch {} ({}) is left out", options.budget_s, batch,
                         name(mode)));
        continue;
      }
      Measurement cell;  // what the lines of this batch and mode share
      const auto line = [&](std::size_t plan) {
        Measurement m = lines.timed(plan, batch, mode);
        m.registers = ready[plan]->registers;
        m.smem_bytes = ready[plan]->smem_bytes;
        m.floor_us = cell.floor_us;
        m.layers = cell.layers;
        m.bytes = cell.bytes;
        m.phases = cell.phases;
        if (ring) m.weigh();
        return m;
      };
      std::vector<std::size_t> open;
      for (std::size_t i = 0; i < plans.size(); ++i)
        if (ready[i] != nullptr && lines.suits(i, mode) && !known.has(line(i))) open.push_back(i);
      ++cells_done;
      if (open.empty()) continue;

      const auto fail_line = [&](std::size_t plan, Outcome outcome, const std::string& reason) {
        Measurement m = line(plan);
        m.outcome = outcome;
        m.reason = reason;
        record(m);
        if (unsound(outcome)) ready[plan] = nullptr;
      };
      const auto launch_failed = [&](std::size_t plan, const Error& e) {
        check_device();  // a lost context is no failure of one plan
        fail_line(plan, Outcome::launch_failed, e.what());
      };
      const auto timing = [&](const char* stage, std::size_t plan) {
        if (!options.on_doing) return;
        const Measurement at_work = line(plan);
        doing(stage, &at_work);
      };
      doing("floor", nullptr);
      std::unique_ptr<Layers> layers;
      try {
        layers = std::make_unique<Layers>(description, batch, gpu, kernels, stream, options.seed);
      } catch (const Error& e) {
        fail_line(open.front(), Outcome::memory_failed, e.what());
        warn(fmt::format("tune: batch {}: {}", batch, e.what()));
        continue;
      }
      const StepTimer timer(*layers, stream, mode);
      cell.layers = layers->count();
      const auto enter = [&](std::size_t phase) {
        if (ring) layers->enter(phases[phase]);
      };
      std::vector<std::unique_ptr<SpotCheck>> spots;
      for (std::size_t p = 0; p < phases.size(); ++p) {
        enter(p);
        const double floor_us = timer.floor_us();
        spots.push_back(SpotCheck::make(description, *layers, stream, options.seed + 7));
        if (ring) {
          cell.phases.push_back({.phase = phases[p],
                                 .ring_count = timed_ring_count(description, phases[p]),
                                 .floor_us = floor_us,
                                 .bytes = layers->bytes()});
        } else {
          cell.floor_us = floor_us;
          cell.bytes = layers->bytes();
        }
      }
      layers->refill_all();

      // First replays of all, then rounds over those near the best.
      std::vector<Candidate> candidates;
      struct First {
        double us = 0;
        std::size_t plan = 0;
        Samples samples;
      };
      std::vector<First> order;
      for (std::size_t i : open) {
        try {
          timing("time", i);
          const Graph graph = timer.record(ready[i]->kernel);
          First first{.plan = i, .samples = Samples(phases.size())};
          for (std::size_t p = 0; p < phases.size(); ++p) {
            enter(p);
            first.samples[p] = {least(timer.replays_us(graph, 2))};
          }
          first.us = step_us(first.samples);
          order.push_back(std::move(first));
        } catch (const Error& e) {
          launch_failed(i, e);
        }
      }
      std::sort(order.begin(), order.end(),
                [](const First& a, const First& b) { return std::tie(a.us, a.plan) < std::tie(b.us, b.plan); });
      const auto finish = [&](std::size_t plan, Outcome outcome, const Samples& samples) {
        Measurement m = line(plan);
        m.outcome = outcome;
        const auto fill = [](auto& to, const std::vector<double>& of) {
          to.us = median(of);
          to.us_min = least(of);
          to.us_max = *std::max_element(of.begin(), of.end());
          to.share = to.us > 0 ? to.floor_us / to.us : 0;
        };
        if (ring) {
          for (std::size_t p = 0; p < phases.size(); ++p) fill(m.phases[p], samples[p]);
          m.weigh();
        } else {
          fill(m, samples.front());
        }
        const auto check_floor = [&](const auto& of, const char* what) {
          if (of.share > 1.01)
            warn(fmt::format(
                "batch {} ({}{}): {:.2f} us is under the floor of {:.2f} us, so the floor was not measured well", batch,
                name(mode), what, of.us, of.floor_us));
        };
        if (m.outcome == Outcome::ok && !ring) check_floor(m, "");
        if (m.outcome == Outcome::ok)
          for (const PhaseMeasurement& p : m.phases) check_floor(p, p.phase == Phase::flush ? ", flush" : ", no_flush");
        record(m);
      };
      // What is wrong with a plan at this size: empty for nothing.
      const auto wrong_with = [&](const Kernel& kernel, const Graph& graph, Outcome& outcome) -> std::string {
        for (std::size_t p = 0; p < phases.size(); ++p) {
          enter(p);
          if (std::string wrong = spots[p]->run(kernel, outcome); !wrong.empty()) return wrong;
          if (mode == PdlMode::chain && !waits_for_producer(*layers, kernel, graph, stream)) {
            outcome = Outcome::wrong;
            return fmt::format("batch {}: behind a producer the outputs differ from the same steps alone", batch);
          }
        }
        return {};
      };
      double best_us = 0;  // of those that are right
      for (const First& first : order) {
        if (candidates.size() < kKept && (candidates.empty() || first.us <= best_us * kWide)) {
          try {
            timing("check", first.plan);
            Outcome outcome = Outcome::ok;
            Graph graph = timer.record(ready[first.plan]->kernel);
            const std::string wrong = wrong_with(ready[first.plan]->kernel, graph, outcome);
            if (candidates.empty()) best_us = first.us;
            if (wrong.empty())
              candidates.push_back({first.plan, std::move(graph), Samples(phases.size())});
            else
              fail_line(first.plan, outcome, wrong);
          } catch (const Error& e) {
            launch_failed(first.plan, e);
          }
        } else {
          finish(first.plan, Outcome::dropped, first.samples);
        }
      }
      for (int visit = 0; visit < kVisits && !candidates.empty(); ++visit) {
        for (std::size_t p = 0; p < phases.size(); ++p) {
          enter(p);
          for (Candidate& c : candidates) {
            timing("time", c.plan);
            const std::vector<double> samples = timer.replays_us(c.graph, kReplays);
            c.samples[p].insert(c.samples[p].end(), samples.begin(), samples.end());
          }
        }
        if (visit + 1 != kFirstVisits) continue;
        double best = step_us(candidates.front().samples);
        for (const Candidate& c : candidates) best = std::min(best, step_us(c.samples));
        for (std::size_t i = 0; i < candidates.size();) {
          if (step_us(candidates[i].samples) > best * kClose) {
            finish(candidates[i].plan, Outcome::dropped, candidates[i].samples);
            candidates.erase(candidates.begin() + static_cast<std::ptrdiff_t>(i));
          } else {
            ++i;
          }
        }
      }
      for (const Candidate& c : candidates) finish(c.plan, Outcome::ok, c.samples);
      report(fmt::format("batch {} {}", batch, name(mode)), cells_done, total, timing_since);
    }
  }
  return results;
}

}  // namespace ssmjit
