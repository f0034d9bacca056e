#include <algorithm>
#include <chrono>
#include <memory>
#include <tuple>

#include <fmt/format.h>

#include <ssmjit/source.h>
#include <ssmjit/tune.h>

#include "autotune/candidates.h"
#include "autotune/layers.h"
#include "autotune/search/cell_search.h"
#include "autotune/search/prune.h"
#include "autotune/search/race.h"
#include "autotune/spot_check.h"
#include "autotune/sweep_lines.h"
#include "autotune/timer.h"
#include "codegen/fail.h"
#include "codegen/log.h"
#include "jit/gpu.h"

namespace ssmjit {
namespace {

// A candidate further from the best than kWide after its first replays does not go into the race, nor one behind the
// kKept fastest. A visit of the race is kReplays timed replays behind one that is not timed, since the first after
// another candidate's finds the instruction and constant caches cold.
constexpr double kWide = 1.15;
constexpr std::size_t kKept = 24;

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

struct Racer {
  std::size_t plan = 0;
  Graph graph;
  Samples samples;
};

RaceRules race_rules(const TuneOptions& options) {
  RaceRules rules;
  if (options.rounds > 0) {
    rules.drops = false;
    rules.most_rounds = (options.rounds + kReplays - 1) / kReplays;
  }
  return rules;
}

}  // namespace

std::vector<Measurement> sweep(const Description& description, const TuneOptions& options) {
  description.validate();
  const auto turn = measuring_turn();
  const DeviceFacts gpu = device(options.device);
  const SweepLines lines(description, options, gpu);
  const std::vector<Plan>& plans = lines.plans();
  const Arch arch = gpu.arch();
  const bool ring = description.ring_window() != 0;
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

  // What is still to be measured: of a resumed journal, nothing twice, and without the GPU where there is nothing.
  const std::vector<int> batches =
      search_order(options.rounds > 0 ? Search::exhaustive : options.search, options.batches);
  std::vector<std::size_t> unverified;
  for (std::size_t i = 0; options.verify_only && i < plans.size(); ++i)
    if (!known.is_out(lines.verified(i)) && !known.is_right(lines.verified(i))) unverified.push_back(i);
  const auto is_done = [&] {
    if (options.verify_only) return unverified.empty();
    CellSearch search(description, lines, options, known, gpu);
    for (int batch : batches)
      for (PdlMode mode : options.modes)
        if (!search.ask(batch, mode, search.open(batch, mode)).empty()) return false;
    return true;
  };
  std::vector<Measurement> results;
  if (is_done()) return results;

  CellSearch search(description, lines, options, known, gpu);
  const auto record = [&](const Measurement& m) {
    results.push_back(m);
    known.add(m);
    search.tell(m);
    if (options.on_measurement) options.on_measurement(m);
  };
  use_device(options.device);
  refuse_during_capture("tune");
  Candidates candidates(description, lines, options, gpu, known, record);
  if (options.verify_only) {
    candidates.verify(unverified);
    return results;
  }

  const BenchKernels kernels(arch, gpu.sms, options.compile);
  const Stream& stream = measuring_stream();
  const double timing_since = elapsed();
  for (int batch : batches) {
    for (PdlMode mode : options.modes) {
      if (options.budget_s > 0 && elapsed() > options.budget_s) {
        warn(fmt::format("tune: the budget of {:.0f} s is spent; batch {} ({}) is left out", options.budget_s, batch,
                         name(mode)));
        continue;
      }
      Measurement cell;  // what the lines of this batch and mode share
      const auto line = [&](std::size_t plan) {
        Measurement m = lines.timed(plan, batch, mode);
        if (const Candidates::Ready* ready = candidates.ready(plan); ready != nullptr) {
          m.registers = ready->registers;
          m.smem_bytes = ready->smem_bytes;
          if (ready->clusters_at_once > 0) {
            const LaunchShape shape = launch_shape(plans[plan], description, batch);
            m.waves = static_cast<double>(shape.grid_x * shape.grid_y / plans[plan].cluster) / ready->clusters_at_once;
          }
        }
        m.floor_us = cell.floor_us;
        m.layers = cell.layers;
        m.bytes = cell.bytes;
        m.phases = cell.phases;
        if (ring) m.weigh();
        return m;
      };
      std::vector<std::size_t> open = search.open(batch, mode);
      ++cells_done;
      std::vector<std::size_t> asked = search.ask(batch, mode, open);
      if (asked.empty()) continue;
      report(fmt::format("batch {} {}", batch, name(mode)), cells_done - 1, total, timing_since);

      const auto fail_line = [&](std::size_t plan, Outcome outcome, const std::string& reason) {
        Measurement m = line(plan);
        m.outcome = outcome;
        m.reason = reason;
        record(m);
        if (unsound(outcome)) candidates.give_up(plan);
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

      // Whether it was pruned: left out with a line that says why.
      const auto prune = [&](std::size_t plan, const Compiled& compiled) {
        if (options.rounds > 0) return false;
        const FloorRate floor = ring ? FloorRate{cell.phases.front().floor_us, cell.phases.front().bytes.read}
                                     : FloorRate{cell.floor_us, cell.bytes.read};
        const std::string why = why_pruned(plans[plan], description, batch, gpu, floor, compiled);
        if (!why.empty()) fail_line(plan, Outcome::pruned, why);
        return !why.empty();
      };
      std::erase_if(open, [&](std::size_t plan) { return prune(plan, {}); });
      std::erase_if(asked, [&](std::size_t plan) { return !std::binary_search(open.begin(), open.end(), plan); });
      if (asked.empty()) asked = search.ask(batch, mode, open);

      // First replays of what the search asks for, then a race of those near the best.
      struct First {
        double us = 0;
        std::size_t plan = 0;
        Samples samples;
      };
      std::vector<First> order;
      for (; !asked.empty(); asked = search.ask(batch, mode, open)) {
        candidates.prepare(asked);
        for (std::size_t i : asked) {
          std::erase(open, i);
          const Candidates::Ready* ready = candidates.ready(i);
          if (ready == nullptr || prune(i, {ready->registers, ready->smem_bytes})) continue;
          timing("time", i);
          try {
            const Graph graph = timer.record(ready->kernel);
            First first{.plan = i, .samples = Samples(phases.size())};
            for (std::size_t p = 0; p < phases.size(); ++p) {
              enter(p);
              first.samples[p] = {least(timer.replays_us(graph, 2))};
            }
            first.us = step_us(first.samples);
            search.tell(batch, mode, i, first.us);
            order.push_back(std::move(first));
          } catch (const Error& e) {
            launch_failed(i, e);
          }
        }
      }
      std::sort(order.begin(), order.end(),
                [](const First& a, const First& b) { return std::tie(a.us, a.plan) < std::tie(b.us, b.plan); });
      const auto finish = [&](std::size_t plan, Outcome outcome, const Samples& samples, bool tie = false) {
        Measurement m = line(plan);
        m.outcome = outcome;
        m.tie = tie;
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
      std::vector<Racer> racers;
      double best_us = 0;  // of those that are right
      for (const First& first : order) {
        if (options.rounds == 0 && (racers.size() == kKept || (!racers.empty() && first.us > best_us * kWide))) {
          finish(first.plan, Outcome::dropped, first.samples);
          continue;
        }
        timing("check", first.plan);
        try {
          Outcome outcome = Outcome::ok;
          const Kernel& kernel = candidates.ready(first.plan)->kernel;
          Graph graph = timer.record(kernel);
          const std::string wrong = wrong_with(kernel, graph, outcome);
          if (racers.empty()) best_us = first.us;
          if (wrong.empty())
            racers.push_back({first.plan, std::move(graph), Samples(phases.size())});
          else
            fail_line(first.plan, outcome, wrong);
        } catch (const Error& e) {
          launch_failed(first.plan, e);
        }
      }
      if (!racers.empty()) {
        Race race(racers.size(), race_rules(options));
        while (!race.over()) {
          std::vector<Samples> visit(racers.size(), Samples(phases.size()));
          for (std::size_t p = 0; p < phases.size(); ++p) {
            enter(p);
            for (std::size_t r = 0; r < racers.size(); ++r) {
              if (!race.running(r)) continue;
              timing("time", racers[r].plan);
              visit[r][p] = timer.replays_us(racers[r].graph, kReplays);
              racers[r].samples[p].insert(racers[r].samples[p].end(), visit[r][p].begin(), visit[r][p].end());
            }
          }
          for (std::size_t r = 0; r < racers.size(); ++r)
            if (race.running(r)) race.add(r, step_us(visit[r]));
          for (std::size_t r : race.end_round()) finish(racers[r].plan, Outcome::dropped, racers[r].samples);
        }
        // The winner's line is the last of its cell.
        for (std::size_t r = 0; r < racers.size(); ++r)
          if (race.running(r) && r != race.best()) finish(racers[r].plan, Outcome::ok, racers[r].samples, race.tied(r));
        finish(racers[race.best()].plan, Outcome::ok, racers[race.best()].samples);
      }
      report(fmt::format("batch {} {}", batch, name(mode)), cells_done, total, timing_since);
    }
  }
  return results;
}

}  // namespace ssmjit
