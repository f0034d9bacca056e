#include <ssmjit/speculative.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <random>
#include <tuple>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <ssmjit/slots.h>

#include "autotune/cells.h"
#include "autotune/layers.h"
#include "autotune/timer.h"
#include "codegen/fail.h"
#include "jit/gpu.h"

namespace ssmjit {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kMostTokens = 16;
constexpr int kRounds = 15;  // timed replays of a kernel, as of the graphs below
constexpr int kVisits = 5, kVisitReplays = 3;
static_assert(kVisits * kVisitReplays == kRounds);
constexpr Why kWhys[] = {Why::exact,     Why::interpolated, Why::nearest, Why::similar,
                         Why::predicted, Why::other_device, Why::fallback};
constexpr int kOutcomeCount = static_cast<int>(Outcome::pruned) + 1;

double rounded(double value) { return std::round(value * 1e4) / 1e4; }

// An acceptance as it was asked for.
struct Kept {
  Acceptance accepted;
  double draft_chance = -1;
};

std::vector<Kept> acceptances(const SpeculativeOptions& options, int tokens) {
  if (!options.accepted.chance.empty()) return {{options.accepted, -1}};
  std::vector<Kept> all;
  for (double chance : options.draft_chances) all.push_back({Acceptance::of_drafts(chance, tokens), chance});
  return all;
}

void check(const Description& base, const SpeculativeOptions& options) {
  std::vector<std::string> wrong;
  const auto some = [&](const char* what, bool none) {
    if (none) wrong.push_back(fmt::format("{}: got none; wants at least one", what));
  };
  some("batches", options.batches.empty());
  some("tokens", options.tokens.empty());
  some("forms", options.forms.empty());
  some("acceptances", options.draft_chances.empty() && options.accepted.chance.empty());
  for (int batch : options.batches)
    if (batch < 1) wrong.push_back(fmt::format("batches: got {}; wants 1 or more", batch));
  for (int tokens : options.tokens) {
    if (tokens < 2 || tokens > kMostTokens)
      wrong.push_back(fmt::format("tokens: got {}; wants 2 to {}, a draft or more", tokens, kMostTokens));
    else if (options.accepted.chance.size() > static_cast<std::size_t>(tokens))
      wrong.push_back(
          fmt::format("accepted: got {} tokens at most; a step has {}", options.accepted.chance.size(), tokens));
  }
  for (double chance : options.draft_chances)
    if (!(chance >= 0 && chance <= 1))
      wrong.push_back(fmt::format("acceptance: got {}; wants the chance of a draft, 0 to 1", chance));
  if (!wrong.empty()) fail(ErrorKind::invalid, "{}", fmt::join(wrong, "\n"));
  draft_step(base, DraftForm::snapshots, 2);  // refuses what has no state
}

// What all forms compute: sizes, dtypes, maths, rounding.
std::string base_text(const Description& base) {
  const std::string store = ", in place";
  std::string text = draft_step(base, DraftForm::slots, 1).store(InPlace{}).summary();
  if (const std::size_t at = text.find(store); at != std::string::npos) text.erase(at, store.size());
  return text;
}

// A step's times at one acceptance, us a layer.
struct Times {
  double us = 0, kernel_us = 0, copies_us = 0;
};

// Medians of graphs that take turns, in visits behind a replay that is not timed.
std::vector<double> medians(const std::vector<std::pair<const StepTimer*, const Graph*>>& graphs) {
  std::vector<std::vector<double>> samples(graphs.size());
  for (int visit = 0; visit < kVisits; ++visit)
    for (std::size_t i = 0; i < graphs.size(); ++i) {
      const std::vector<double> of = graphs[i].first->replays_us(*graphs[i].second, kVisitReplays);
      samples[i].insert(samples[i].end(), of.begin(), of.end());
    }
  std::vector<double> result;
  for (std::vector<double>& of : samples) result.push_back(median(std::move(of)));
  return result;
}

// A form at one size on the device, for what a sweep does not time.
class FormTimer {
 public:
  FormTimer(const Description& step, const Plan& plan, int batch, const SpeculativeOptions& options,
            const DeviceFacts& gpu)
      : step_(step),
        batch_(batch),
        seed_(options.seed),
        stream_(measuring_stream()),
        kernel_(Kernel::load(step, plan, options.compile)),
        kernels_(gpu.arch(), gpu.sms, options.compile),
        layers_(step, batch, gpu, kernels_, stream_, options.seed),
        timer_(layers_, stream_, options.mode) {}

  // Snapshots: with the states of `kept` tokens copied at the end. Counts are drawn for each request.
  std::vector<Times> with_copies(const std::vector<Kept>& kept, const CompileOptions& compile, double& floor_us) const {
    const SlotCopies copies = SlotCopies::load(compile);
    const StepTimer alone(layers_, stream_, PdlMode::off);
    std::vector<Tensor> pools;
    for (int layer = 0; layer < layers_.count(); ++layer)
      for (const Tensor& pool : layers_.slot_pools(layer)) pools.push_back(pool);
    const std::vector<std::int64_t> table = slot_copy_table(pools);
    const DeviceBuffer pieces(8 * table.size());
    pieces.upload(table.data(), pieces.size());
    const std::size_t slot_bytes = (4 * static_cast<std::size_t>(batch_) + 255) / 256 * 256;
    const DeviceBuffer slots(2 * slot_bytes);
    SlotCopiesArgs args;
    args.pieces = contiguous(pieces.data(), DType::i64,
                             {static_cast<std::int64_t>(table.size()) / kSlotPieceWords, kSlotPieceWords});
    args.src_slots = contiguous(slots.data(), DType::i32, {batch_});
    args.dst_slots = contiguous(slots.data() + slot_bytes, DType::i32, {batch_});
    const auto copy = [&] { copies.launch(args, stream_.handle()); };

    const std::int64_t state = draft_slot_bytes(step_) / (1 + step_.token_count);
    floor_us = alone.copy_floor_us(layers_.count() * batch_ * state);
    layers_.refill_all();
    const Graph kernels_alone = timer_.record(kernel_), copies_alone(stream_, copy),
                together = timer_.record(kernel_, copy);
    std::vector<Times> times;
    for (const Kept& of : kept) {
      const std::vector<int> counts = draw(of.accepted);
      std::vector<std::int32_t> from, to;
      for (int b = 0; b < batch_; ++b) {
        from.push_back(batch_ + b * step_.token_count + counts[static_cast<std::size_t>(b)] - 1);
        to.push_back(b);
      }
      stream_.synchronize();
      slots.upload(from.data(), 4 * from.size());
      slots.upload(to.data(), 4 * to.size(), slot_bytes);
      const std::vector<double> us =
          medians({{&timer_, &together}, {&timer_, &kernels_alone}, {&alone, &copies_alone}});
      times.push_back({us[0], us[1], us[2]});
    }
    return times;
  }

  // A replay: its work grows with what was kept of the step before.
  std::vector<Times> by_kept(const std::vector<Kept>& kept) const {
    const Graph graph = timer_.record(kernel_);
    std::vector<Times> times;
    for (const Kept& of : kept) {
      const std::vector<int> counts = draw(of.accepted);
      std::vector<RingCursor> cursors;
      for (std::size_t b = 0; b < counts.size(); ++b)
        cursors.push_back({.start = static_cast<int>(b % 2), .count = counts[b]});
      const std::vector<std::byte> packed = layers_.pack_cursors(cursors);
      const DeviceBuffer on_device(packed.size());
      on_device.upload(packed.data(), packed.size());
      layers_.take_cursors(on_device.data());
      const double us = medians({{&timer_, &graph}})[0];
      times.push_back({us, us, 0});
    }
    return times;
  }

 private:
  std::vector<int> draw(const Acceptance& accepted) const {
    std::mt19937_64 random(seed_);
    std::uniform_real_distribution<double> uniform;
    std::vector<int> counts;
    for (int b = 0; b < batch_; ++b) counts.push_back(accepted.draw(uniform(random)));
    return counts;
  }

  const Description& step_;
  int batch_;
  std::uint64_t seed_;
  const Stream& stream_;
  Kernel kernel_;
  BenchKernels kernels_;
  Layers layers_;
  StepTimer timer_;
};

}  // namespace

const char* name(DraftForm form) {
  switch (form) {
    case DraftForm::snapshots:
      return "snapshots";
    case DraftForm::slots:
      return "slots";
    case DraftForm::replay:
      return "replay";
    case DraftForm::ring:
      return "ring";
  }
  return "?";
}

Description draft_step(const Description& base, DraftForm form, int tokens, int ring_window) {
  if (base.op() != Op::update && base.op() != Op::ring && base.op() != Op::replay)
    fail(ErrorKind::invalid, "description: got a {}; drafts are verified by an update: name one as SPEC:update",
         name(base.op()));
  Description d = base;
  d.tokens(tokens).destination_slots(false).accepted_counts(false).tree(false).varlen(false);
  switch (form) {
    case DraftForm::snapshots:
      return d.store(Snapshots{});
    case DraftForm::slots:
      return d.store(Slots{});
    case DraftForm::replay:
      return d.store(Replay{});
    case DraftForm::ring:
      break;
  }
  return d.store(Ring{.window = ring_window});
}

std::int64_t draft_slot_bytes(const Description& step) {
  const Description& d = step;
  d.validate();
  if (d.op() == Op::ring) return ring_slot_bytes(d);
  const std::int64_t T = d.token_count, rows = std::int64_t{d.nheads} * d.head_dim, H = d.nheads;
  const std::int64_t state = rows * d.dstate * size_bytes(d.state_dtype) +
                             (d.has_state_scale() ? rows * size_bytes(DType::f32) : std::int64_t{0});
  if (std::holds_alternative<Snapshots>(d.store_kind)) return (1 + T) * state;
  if (std::holds_alternative<Slots>(d.store_kind)) return T * state;
  if (d.op() != Op::replay)
    fail(ErrorKind::invalid, "description: got {}; wants snapshots, slots, a replay or a ring", d.summary());
  const std::int64_t x = T * rows * size_bytes(d.input_dtype);
  const std::int64_t B = 2 * T * d.ngroups * d.dstate * size_bytes(d.input_dtype);
  return state + x + B + 2 * 2 * H * T * size_bytes(DType::f32);  // deltas and sums, two buffers of each
}

std::vector<SpeculativeStep> compare_speculative(const Description& base, const SpeculativeOptions& options) {
  check(base, options);
  const auto turn = measuring_turn();
  const DeviceFacts gpu = device(options.device);
  const std::string what = base_text(base);
  std::vector<SpeculativeStep> all;
  std::vector<Measurement> verified;  // plans are verified once, at whatever batch they are timed
  for (int tokens : options.tokens) {
    const std::vector<Kept> kept = acceptances(options, tokens);
    for (int batch : options.batches) {
      for (DraftForm form : options.forms) {
        const Description d = draft_step(base, form, tokens, options.ring_window);
        SpeculativeStep blank;
        blank.form = form;
        blank.base = what;
        blank.kernel = d.summary();
        blank.nheads = d.nheads;
        blank.batch = batch;
        blank.tokens = tokens;
        blank.pdl = options.mode;
        blank.device = gpu.key;
        blank.device_name = gpu.name;
        blank.driver = gpu.driver;
        blank.nvrtc = nvrtc_version();
        const auto tell = [&](const Kept& of, SpeculativeStep step) {
          step.accepted = of.accepted.text();
          step.draft_chance = of.draft_chance;
          step.kept = of.accepted.mean();
          step.share = step.us > 0 ? step.floor_us / step.us : 0;
          step.us_per_token = step.us / step.kept;
          all.push_back(std::move(step));
          if (options.on_step) options.on_step(all.back());
        };
        const auto tell_failure = [&](Outcome outcome, const std::string& reason) {
          for (const Kept& of : kept) {
            SpeculativeStep step = blank;
            step.outcome = outcome;
            step.reason = reason;
            tell(of, step);
          }
        };
        if (const std::vector<std::string> problems = d.problems(); !problems.empty()) {
          tell_failure(Outcome::pruned, problems.front());
          continue;
        }
        blank.kernel_digest = d.kernel_digest();
        blank.slot_bytes = draft_slot_bytes(d);
        const Choice choice = lookup(options.table, d, gpu.key, gpu.arch(), batch, options.mode);
        blank.plan = choice.plan;
        blank.why = choice.why;
        TuneOptions tune;
        tune.device = options.device;
        tune.batches = {batch};
        tune.modes = {options.mode};
        tune.plans = {choice.plan};
        tune.rounds = kRounds;
        tune.seed = options.seed;
        tune.compile = options.compile;
        tune.known = verified;
        Measurement m;
        m.outcome = Outcome::launch_failed;
        for (const Measurement& line : sweep(d, tune)) {
          if (line.phase == "verify" && line.outcome == Outcome::ok)
            verified.push_back(line);
          else
            m = line;
        }
        blank.policy = m.policy;
        blank.measured = m.measured;
        if (m.outcome != Outcome::ok) {
          tell_failure(m.outcome, m.reason);
          continue;
        }
        blank.layers = m.layers;
        blank.us = blank.kernel_us = m.us;
        blank.floor_us = m.floor_us;
        blank.moved_bytes = m.bytes.total();
        std::vector<Times> times;
        try {
          double copies_floor_us = 0;
          if (form == DraftForm::snapshots || form == DraftForm::replay) {
            const FormTimer timer(d, choice.plan, batch, options, gpu);
            times = form == DraftForm::replay ? timer.by_kept(kept)
                                              : timer.with_copies(kept, options.compile, copies_floor_us);
          }
          if (form == DraftForm::snapshots) {
            blank.floor_us += copies_floor_us;
            blank.copied_bytes = 2 * batch * (blank.slot_bytes / (1 + tokens));
            blank.policy += "; kernels, copies and both in turn, the floor with that of one launch that copies as much";
          } else if (form == DraftForm::replay) {
            blank.policy += "; counts drawn for each request";
          }
        } catch (const Error& e) {
          check_device();
          tell_failure(Outcome::launch_failed, e.what());
          continue;
        }
        for (std::size_t i = 0; i < kept.size(); ++i) {
          SpeculativeStep step = blank;
          if (!times.empty()) {
            step.us = times[i].us;
            step.kernel_us = times[i].kernel_us;
            step.copies_us = times[i].copies_us;
          }
          if (form == DraftForm::ring) {
            m.steps_per_flush = steps_per_flush(d.ring_window(), tokens, kept[i].accepted);
            m.weigh();
            step.steps_per_flush = m.steps_per_flush;
            step.us = step.kernel_us = m.us;
            step.floor_us = m.floor_us;
            double moved = 0;
            for (const PhaseMeasurement& p : m.phases)
              moved += static_cast<double>(p.bytes.total()) * (p.phase == Phase::flush ? 1 : m.steps_per_flush - 1) /
                       m.steps_per_flush;
            step.moved_bytes = std::llround(moved);
          }
          tell(kept[i], std::move(step));
        }
      }
    }
  }
  return all;
}

const SpeculativeStep* fastest_form(const std::vector<SpeculativeStep>& steps, const SpeculativeStep& like) {
  const auto key = [](const SpeculativeStep& s) {
    return std::tie(s.base, s.nheads, s.device, s.pdl, s.batch, s.tokens, s.accepted);
  };
  const SpeculativeStep* best = nullptr;
  for (const SpeculativeStep& step : steps)
    if (step.outcome == Outcome::ok && step.us > 0 && key(step) == key(like) && (best == nullptr || step.us < best->us))
      best = &step;
  return best;
}

std::string SpeculativeStep::json() const {
  Json json;
  json["schema"] = 1;
  json["form"] = name(form);
  json["base"] = base;
  json["kernel"] = kernel;
  json["kernel_digest"] = kernel_digest;
  json["nheads"] = nheads;
  json["batch"] = batch;
  json["tokens"] = tokens;
  json["accepted"] = accepted;
  if (draft_chance >= 0) json["draft_chance"] = draft_chance;
  json["kept"] = rounded(kept);
  if (steps_per_flush > 0) json["steps_per_flush"] = rounded(steps_per_flush);
  json["pdl"] = name(pdl);
  json["outcome"] = name(outcome);
  if (!reason.empty()) json["reason"] = reason;
  if (outcome == Outcome::ok) {
    json["us"] = tidy_us(us);
    json["kernel_us"] = tidy_us(kernel_us);
    json["copies_us"] = tidy_us(copies_us);
    json["floor_us"] = tidy_us(floor_us);
    json["share"] = rounded(share);
    json["us_per_token"] = tidy_us(us_per_token);
    json["layers"] = layers;
    json["slot_bytes"] = slot_bytes;
    json["moved_bytes"] = moved_bytes;
    json["copied_bytes"] = copied_bytes;
    json["plan"] = Json::parse(plan.json());
    json["why"] = name(why);
    json["policy"] = policy;
    json["measured"] = measured;
  }
  json["device"] = device;
  json["device_name"] = device_name;
  json["driver"] = driver;
  json["nvrtc"] = nvrtc;
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

SpeculativeStep SpeculativeStep::from_json(std::string_view line) {
  const Json json = Json::parse(line, nullptr, false);
  if (!json.is_object()) fail(ErrorKind::invalid, "speculative: got {}; wants one JSON object a line", in_quotes(line));
  const char* field = "schema";
  SpeculativeStep s;
  try {
    const auto get = [&](const char* f, auto& value) {
      field = f;
      json.at(f).get_to(value);
    };
    const auto get_if_there = [&](const char* f, auto& value) {
      if (json.contains(f)) get(f, value);
    };
    // One of the values whose names a text may be.
    const auto named = [&](const char* f, const auto& values, auto& value) {
      std::string text;
      get(f, text);
      const auto found = std::find_if(std::begin(values), std::end(values), [&](auto v) { return text == name(v); });
      if (found == std::end(values)) fail(ErrorKind::invalid, "speculative: {}: got {}", f, in_quotes(text));
      value = *found;
    };
    int schema = 0;
    get("schema", schema);
    if (schema != 1) fail(ErrorKind::invalid, "speculative: schema: got {}; wants 1", schema);
    named("form", kDraftForms, s.form);
    get("base", s.base);
    get("kernel", s.kernel);
    get("kernel_digest", s.kernel_digest);
    get("nheads", s.nheads);
    get("batch", s.batch);
    get("tokens", s.tokens);
    get("accepted", s.accepted);
    get_if_there("draft_chance", s.draft_chance);
    get("kept", s.kept);
    get_if_there("steps_per_flush", s.steps_per_flush);
    std::string text;
    get("pdl", text);
    s.pdl = parse_pdl_mode(text);
    std::vector<Outcome> outcomes;
    for (int i = 0; i < kOutcomeCount; ++i) outcomes.push_back(static_cast<Outcome>(i));
    named("outcome", outcomes, s.outcome);
    get_if_there("reason", s.reason);
    if (s.outcome == Outcome::ok) {
      get("us", s.us);
      get("kernel_us", s.kernel_us);
      get("copies_us", s.copies_us);
      get("floor_us", s.floor_us);
      get("share", s.share);
      get("us_per_token", s.us_per_token);
      get("layers", s.layers);
      get("slot_bytes", s.slot_bytes);
      get("moved_bytes", s.moved_bytes);
      get("copied_bytes", s.copied_bytes);
      field = "plan";
      s.plan = Plan::from_json(json.at("plan").dump());
      named("why", kWhys, s.why);
      get("policy", s.policy);
      get("measured", s.measured);
    }
    get("device", s.device);
    get("device_name", s.device_name);
    get("driver", s.driver);
    get("nvrtc", s.nvrtc);
  } catch (const Json::exception&) {
    fail(ErrorKind::invalid, "speculative: {}: missing or of the wrong type in {}", field, in_quotes(line));
  }
  if (s.batch < 1 || s.tokens < 1)
    fail(ErrorKind::invalid, "speculative: batch, tokens: got {}, {}; wants 1 or more", s.batch, s.tokens);
  return s;
}

std::vector<SpeculativeStep> parse_speculative(std::string_view text, int* skipped) {
  std::vector<SpeculativeStep> all;
  int bad = 0;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    if (end == std::string_view::npos) break;  // a torn last line
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end + 1);
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    try {
      all.push_back(SpeculativeStep::from_json(line));
    } catch (const Error&) {
      ++bad;
    }
  }
  if (skipped != nullptr) *skipped = bad;
  return all;
}

}  // namespace ssmjit
