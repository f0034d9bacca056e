#include <algorithm>
#include <chrono>
#include <ctime>
#include <memory>
#include <set>

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <ssmjit/source.h>
#include <ssmjit/tune.h>

#include "autotune/compile_pool.h"
#include "autotune/layers.h"
#include "autotune/timer.h"
#include "autotune/update_case.h"
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
constexpr const char* kPolicy =
    "graph of layers, states past 4 x L2, median of 21 replays in 7 interleaved visits, each behind an untimed one; "
    "slower than the best by 15% after 2 replays, by 3% after 6: dropped";
constexpr int kSamples = 64;

std::string now() { return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr))); }

// Spot checks at the timed size: the double recurrence at sampled (row, head) pairs of layer 0, taken from its seeded
// contents once, compared with what a kernel leaves.
class SpotCheck {
 public:
  SpotCheck(const Description& description, const Layers& layers, const Stream& stream, std::uint64_t seed)
      : description_(description), layers_(layers), stream_(stream) {
    layers_.refill(0);
    stream_.synchronize();
    std::uint64_t v = seed;
    const UpdateArgs args = layers_.args(0, Pdl::off);
    for (int i = 0; i < kSamples; ++i) {
      v = v * 6364136223846793005ull + 1442695040888963407ull;
      Pair pair;
      pair.row = static_cast<std::int64_t>((v >> 33) % static_cast<std::uint64_t>(layers_.batch()));
      v = v * 6364136223846793005ull + 1442695040888963407ull;
      pair.head = static_cast<int>((v >> 33) % static_cast<std::uint64_t>(description.nheads));
      pair.slots = row_slots(description, args, pair.row, read_device_memory);
      pair.want = update_reference(description, args, pair.row, pair.head, pair.slots, read_device_memory);
      pairs_.push_back(std::move(pair));
    }
  }

  // Empty, or what was wrong; `outcome` says of which kind.
  std::string run(const Kernel& kernel, Outcome& outcome) const {
    const Description& d = description_;
    const UpdateArgs args = layers_.args(0, Pdl::off);
    std::uint64_t first = 0;
    for (int launch = 0; launch < 2; ++launch) {
      layers_.refill(0);
      kernel.launch(args, stream_.handle());
      const std::uint64_t h = layers_.hash(0);
      if (launch > 0 && h != first) {
        outcome = Outcome::nondeterministic;
        return fmt::format("batch {}: two launches gave different bits", layers_.batch());
      }
      first = h;
    }
    NearnessMeter y(d.input_dtype, d.dstate), state(d.state_dtype, d.dstate);
    for (const Pair& pair : pairs_) {
      const auto got = [&](const Tensor& t, std::int64_t offset, int count) { return values(t, offset, count); };
      y.add_row(pair.want.y.data(),
                got(args.out, pair.row * args.out.stride[0] + std::int64_t{pair.head} * d.head_dim, d.head_dim),
                pair.want.y_terms.data());
      const std::vector<double> s =
          got(args.state, pair.slots.target * args.state.stride[0] + std::int64_t{pair.head} * d.head_dim * d.dstate,
              d.head_dim * d.dstate);
      for (int p = 0; p < d.head_dim; ++p)
        state.add_row(pair.want.state.data() + std::int64_t{p} * d.dstate,
                      {s.begin() + std::int64_t{p} * d.dstate, s.begin() + std::int64_t{p + 1} * d.dstate});
    }
    outcome = Outcome::wrong;
    std::string wrong = judge(y.result(), d.input_dtype, d.dstate, "out");
    if (wrong.empty()) wrong = judge(state.result(), d.state_dtype, d.dstate, "state");
    if (wrong.empty()) {
      outcome = Outcome::ok;
      return {};
    }
    return fmt::format("batch {}: {}", layers_.batch(), wrong);
  }

 private:
  struct Pair {
    std::int64_t row = 0;
    int head = 0;
    RowSlots slots;
    HeadResult want;
  };
  static std::vector<double> values(const Tensor& t, std::int64_t offset, int count) {
    return stored_values(t, offset, count, read_device_memory);
  }

  const Description& description_;
  const Layers& layers_;
  const Stream& stream_;
  std::vector<Pair> pairs_;
};

// A chain whose step reads its inputs before their producer has written them gives other outputs than the same steps
// launched one by one: the inputs are NaN until they are produced.
bool waits_for_producer(const Layers& layers, const Kernel& kernel, const Graph& graph, const Stream& stream) {
  layers.refill_all();
  for (int layer = 0; layer < layers.count(); ++layer) kernel.launch(layers.args(layer, Pdl::off), stream.handle());
  const std::uint64_t alone = layers.hash_all();
  layers.refill_all();
  layers.poison_inputs();
  graph.launch(stream);
  return layers.hash_all() == alone;
}

// Whether plan i is timed in `mode`: in chain those that ask for the state early, in off the others; where there are
// none of the kind, all.
bool suits(const std::vector<Plan>& plans, std::size_t i, PdlMode mode) {
  const auto of_its_kind = [&](const Plan& plan) { return plan.early_state == (mode == PdlMode::chain); };
  return of_its_kind(plans[i]) || std::none_of(plans.begin(), plans.end(), of_its_kind);
}

struct Candidate {
  std::size_t plan = 0;
  Graph graph;
  std::vector<double> samples;
};

}  // namespace

std::vector<Measurement> sweep(const Description& description, const TuneOptions& options) {
  description.validate();
  const auto turn = measuring_turn();
  use_device(options.device);
  const DeviceFacts gpu = device(options.device);
  const Arch arch = gpu.arch();
  const std::vector<Plan> plans = options.plans.empty() ? plan_space(description, arch) : options.plans;
  for (const Plan& plan : plans) check_plan(plan, description, arch);

  std::set<std::string> known;
  for (const Measurement& m : options.known)
    if (m.outcome != Outcome::memory_failed) known.insert(m.key());  // there may be room now

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

  Measurement blank;
  blank.kernel_digest = description.kernel_digest();
  blank.cost_digest = description.cost_digest();
  blank.kernel = description.summary();
  blank.nheads = description.nheads;
  blank.device = gpu.key;
  blank.device_name = gpu.name;
  blank.driver = gpu.driver;
  blank.nvrtc = nvrtc_version();
  blank.policy = kPolicy;

  const auto line_of = [&](std::size_t plan, const std::string& source_digest, int batch, PdlMode mode) {
    Measurement m = blank;
    m.plan = plans[plan];
    m.source_digest = source_digest;
    m.batch = batch;
    m.pdl = mode;
    m.measured = now();
    return m;
  };
  const auto failed_line = [&](std::size_t plan, const std::string& source_digest) {
    Measurement m = line_of(plan, source_digest, 0, PdlMode::off);
    m.phase = "verify";
    return m;
  };

  // What is still to be measured: of a resumed journal, nothing twice.
  std::vector<std::string> digests;
  std::vector<std::size_t> wanted;
  std::vector<Plan> wanted_plans;
  for (std::size_t i = 0; i < plans.size(); ++i) {
    digests.push_back(emit(description, plans[i], arch).digest);
    if (known.contains(failed_line(i, digests[i]).key())) continue;
    bool open = false;
    for (int batch : options.batches)
      for (PdlMode mode : options.modes)
        open = open || (suits(plans, i, mode) && !known.contains(line_of(i, digests[i], batch, mode).key()));
    if (!open) continue;
    wanted.push_back(i);
    wanted_plans.push_back(plans[i]);
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
  {
    VerifyOptions verify_options;
    verify_options.device = options.device;
    verify_options.seed = options.seed;
    verify_options.compile = options.compile;
    verify_options.progress = options.progress;
    // A kernel does not know nheads, so a few heads stand for all: two groups, so that a wrong one shows.
    Description few = description;
    few.ngroups = std::min(2, description.ngroups);
    few.nheads = few.ngroups * description.heads_per_group();
    const std::vector<Verdict> verdicts = verify(few, wanted_plans, verify_options);
    // After a fault that kills the context every later launch fails: not a word about the plans that came after.
    check_device();
    CompilePool pool(description, wanted_plans, arch, options.compile);
    for (std::size_t w = 0; w < wanted.size(); ++w) {
      const std::size_t i = wanted[w];
      const Verdict& verdict = verdicts[w];
      const CompilePool::Result& compiled = pool.get(w);
      Measurement failed = failed_line(i, digests[i]);
      failed.registers = verdict.registers;
      failed.outcome = verdict.outcome;
      if (failed.outcome == Outcome::ok && verdict.spill_bytes > 0) {
        failed.outcome = Outcome::spills;
        failed.reason = fmt::format("{} bytes of registers spill", verdict.spill_bytes);
      } else if (failed.outcome != Outcome::ok) {
        failed.reason = verdict.failures.empty() ? "" : verdict.failures.front();
      }
      if (failed.outcome != Outcome::ok) {
        record(failed);
        continue;
      }
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
        Measurement m = line_of(plan, digests[plan], batch, mode);
        m.registers = ready[plan]->registers;
        m.smem_bytes = ready[plan]->smem_bytes;
        m.floor_us = cell.floor_us;
        m.layers = cell.layers;
        m.bytes = cell.bytes;
        return m;
      };
      std::vector<std::size_t> open;
      for (std::size_t i = 0; i < plans.size(); ++i)
        if (ready[i] != nullptr && suits(plans, i, mode) && !known.contains(line(i).key())) open.push_back(i);
      ++cells_done;
      if (open.empty()) continue;

      const auto fail_line = [&](std::size_t plan, Outcome outcome, const std::string& reason) {
        Measurement m = line(plan);
        m.outcome = outcome;
        m.reason = reason;
        record(m);
      };
      std::unique_ptr<Layers> layers;
      try {
        layers = std::make_unique<Layers>(description, batch, gpu, kernels, stream, options.seed);
      } catch (const Error& e) {
        fail_line(open.front(), Outcome::memory_failed, e.what());
        warn(fmt::format("tune: batch {}: {}", batch, e.what()));
        continue;
      }
      const StepTimer timer(*layers, stream, mode);
      cell.floor_us = timer.floor_us();
      cell.layers = layers->count();
      cell.bytes = layers->bytes();
      layers->refill_all();
      const SpotCheck spot(description, *layers, stream, options.seed + 7);

      // First replays of all, then rounds over those near the best.
      std::vector<Candidate> candidates;
      std::vector<std::pair<double, std::size_t>> order;
      for (std::size_t i : open) {
        try {
          const Graph graph = timer.record(ready[i]->kernel);
          order.emplace_back(least(timer.replays_us(graph, 2)), i);
        } catch (const Error& e) {
          fail_line(i, Outcome::launch_failed, e.what());
        }
      }
      std::sort(order.begin(), order.end());
      const auto finish = [&](std::size_t plan, Outcome outcome, const std::vector<double>& samples) {
        Measurement m = line(plan);
        m.outcome = outcome;
        m.us = median(samples);
        m.us_min = least(samples);
        m.us_max = *std::max_element(samples.begin(), samples.end());
        m.share = m.us > 0 ? m.floor_us / m.us : 0;
        if (m.outcome == Outcome::ok && m.share > 1.01)
          warn(fmt::format(
              "batch {} ({}): {:.2f} us is under the floor of {:.2f} us, so the floor was not measured well", batch,
              name(mode), m.us, m.floor_us));
        record(m);
      };
      for (const auto& [us, plan] : order) {
        if (candidates.size() < kKept && us <= order.front().first * kWide) {
          try {
            Outcome outcome = Outcome::ok;
            std::string wrong = spot.run(ready[plan]->kernel, outcome);
            Graph graph = timer.record(ready[plan]->kernel);
            if (wrong.empty() && mode == PdlMode::chain &&
                !waits_for_producer(*layers, ready[plan]->kernel, graph, stream)) {
              outcome = Outcome::wrong;
              wrong = fmt::format("batch {}: behind a producer the outputs differ from the same steps alone", batch);
            }
            if (wrong.empty())
              candidates.push_back({plan, std::move(graph), {}});
            else
              fail_line(plan, outcome, wrong);
          } catch (const Error& e) {
            fail_line(plan, Outcome::launch_failed, e.what());
          }
        } else {
          finish(plan, Outcome::dropped, {us});
        }
      }
      for (int visit = 0; visit < kVisits && !candidates.empty(); ++visit) {
        for (Candidate& c : candidates) {
          const std::vector<double> samples = timer.replays_us(c.graph, kReplays);
          c.samples.insert(c.samples.end(), samples.begin(), samples.end());
        }
        if (visit + 1 != kFirstVisits) continue;
        double best = median(candidates.front().samples);
        for (const Candidate& c : candidates) best = std::min(best, median(c.samples));
        for (std::size_t i = 0; i < candidates.size();) {
          if (median(candidates[i].samples) > best * kClose) {
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
