#include <memory>
#include <optional>

#include <fmt/format.h>

#include "cli/bench_speculative.h"
#include "cli/verb.h"
#include "codegen/fail.h"

namespace ssmjit::cli {
namespace {

struct Options {
  SpecOption spec;
  std::string batches;
  std::string plan;
  std::string pdl = "off";
  std::string phase;
  std::string accepted;
  bool steady = false;
  int steps = SteadyOptions{}.steps;
  int device = 0;
  bool json = false;
  bool speculative = false;
  std::string tokens = "6";
  std::string forms;
  std::string acceptance;
  int window = 16;
};

std::vector<Phase> phases_of(const Options& o) {
  if (o.phase.empty()) return TuneOptions{}.phases;
  return {o.phase == name(Phase::flush) ? Phase::flush : Phase::no_flush};
}

std::string figures(double us, double floor_us, double share) {
  return fmt::format("{:8.2f} us  floor {:8.2f}  share {:.3f}", us, floor_us, share);
}

// "8.12 us  floor 6.30  share 0.776", and for a ring that of each phase behind it.
std::string figures(const Measurement& m) {
  std::string text = figures(m.us, m.floor_us, m.share);
  for (const PhaseMeasurement& p : m.phases)
    if (m.phases.size() > 1) text += fmt::format("  {} {}", name(p.phase), figures(p.us, p.floor_us, p.share));
  return text;
}

// How often a figure is under its floor by more than the noise: then the floor was not measured well.
int wrong_floors(const Measurement& m) {
  int wrong = 0;
  const auto check = [&](const auto& of, const char* what) {
    if (of.share <= 1.01) return;
    ++wrong;
    say(fmt::format("batch {}{}: {:.2f} us is under the floor of {:.2f} us: the floor is wrong", m.batch, what, of.us,
                    of.floor_us));
  };
  if (m.phases.empty()) check(m, "");
  for (const PhaseMeasurement& p : m.phases) check(p, p.phase == Phase::flush ? ", flush" : ", no_flush");
  return wrong;
}

int run_speculative(const Options& o) {
  if (o.steady || !o.phase.empty() || !o.plan.empty())
    fail(ErrorKind::invalid, "--speculative: it takes the tables' plans and both phases of a ring; leave out {}",
         o.steady           ? "--steady"
         : !o.phase.empty() ? "--phase"
                            : "--plan");
  if (!o.accepted.empty() && !o.acceptance.empty())
    fail(ErrorKind::invalid, "--acceptance: got --accepted too; wants one of them");
  const SpecOption::Kernel kernel = o.spec.one();
  return bench_speculative({.base = kernel.description,
                            .label = kernel.label,
                            .batches = o.batches.empty() ? "1,8,64,256" : o.batches,
                            .tokens = o.tokens,
                            .forms = o.forms,
                            .acceptance = o.acceptance,
                            .accepted = o.accepted,
                            .pdl = o.pdl,
                            .window = o.window,
                            .device = o.device,
                            .json = o.json});
}

int run(const Options& o) {
  if (o.speculative) return run_speculative(o);
  if (o.steady && !o.phase.empty())
    fail(ErrorKind::invalid, "--steady: it is compared with both phases; leave out --phase");
  const Acceptance accepted = o.accepted.empty() ? Acceptance{} : Acceptance::parse(o.accepted);
  const std::vector<SpecOption::Kernel> kernels = o.spec.kernels();
  for (const SpecOption::Kernel& kernel : kernels) {
    const Description& d = kernel.description;
    if (d.ring_window() != 0 && !accepted.chance.empty()) steps_per_flush(d.ring_window(), d.token_count, accepted);
    if (d.ring_window() == 0 && (o.steady || !o.phase.empty()))
      fail(ErrorKind::invalid, "--{}: {} has no ring; name one as SPEC:ring", o.steady ? "steady" : "phase",
           kernel.label);
  }
  const DeviceFacts gpu = device(o.device);
  const std::vector<int> batches = parse_batches(o.batches.empty() ? "1,4,16,64,256,1024" : o.batches);
  const Table table = load_tables();
  int measured = 0, failed = 0;
  if (!o.json) {
    print(fmt::format("{}, driver CUDA {}, NVRTC {}", gpu.name, gpu.driver, nvrtc_version()));
    print("us: a step, cold state, median; floor: a pass over the same bytes in the same run; share: floor / us");
    for (const SpecOption::Kernel& kernel : kernels) {
      const Description& d = kernel.description;
      if (d.ring_window() == 0 || !o.phase.empty()) continue;
      const Acceptance kept = accepted.chance.empty() ? Acceptance::usual(d.token_count) : accepted;
      print(fmt::format("{}: the mean of a flush every {:.2f} steps, which is what {} of {} tokens accepted give",
                        kernel.label, steps_per_flush(d.ring_window(), d.token_count, kept), kept.text(),
                        d.token_count));
    }
  }
  for (const SpecOption::Kernel& kernel : kernels) {
    for (const std::string& mode_text : split(o.pdl, ',')) {
      const PdlMode mode = parse_pdl_mode(mode_text);
      for (int batch : batches) {
        const Choice choice = lookup(table, kernel.description, gpu.key, gpu.arch(), batch, mode);
        TuneOptions options;
        options.device = o.device;
        options.batches = {batch};
        options.modes = {mode};
        Plan plan = Plan::parse(o.plan, choice.plan);
        if (plan.form != choice.plan.form &&
            plan.form != PlanForm::fused)  // with the plans the tables have for its parts
          plan =
              Plan::parse(o.plan, lookup_chain(table, plan.form, kernel.description, gpu.key, gpu.arch(), batch, mode));
        options.plans = {plan};
        options.phases = phases_of(o);
        options.accepted = accepted;
        for (const Measurement& m : sweep(kernel.description, options)) {
          const bool ok = m.outcome == Outcome::ok;
          if (ok && m.phase == "verify") continue;
          ++(ok ? measured : failed);
          failed += wrong_floors(m);
          std::optional<SteadyState> steady;
          if (ok && o.steady) {
            SteadyOptions running;
            running.device = o.device;
            running.steps = o.steps;
            running.mode = mode;
            running.accepted = accepted;
            steady = steady_state(kernel.description, m.plan, batch, running);
          }
          if (o.json) {
            Json line = Json::parse(m.json());
            line["why"] = o.plan.empty() ? name(choice.why) : "given";
            if (steady) line["steady"] = {{"us", steady->us}, {"flushed", steady->flushed}, {"steps", steady->steps}};
            print_json(line);
          } else if (ok) {
            print(fmt::format("{} {} batch {:4}  {}  {} ({})", kernel.label, name(mode), batch, figures(m),
                              m.plan.text(), o.plan.empty() ? name(choice.why) : "given"));
            if (steady)
              print(
                  fmt::format("{} {} batch {:4}  {:8.2f} us in the steady state, mean of {} steps, {:.1f}% of which "
                              "flush; {:+.1f}% on the phases' mean",
                              kernel.label, name(mode), batch, steady->us, steady->steps, 100 * steady->flushed,
                              100 * (steady->us / m.us - 1)));
          } else {
            print(fmt::format("{} {} batch {:4}  {}: {}", kernel.label, name(mode), batch, name(m.outcome), m.reason));
          }
        }
      }
    }
  }
  return failed == 0 && measured > 0 ? kOk : kFellShort;
}

}  // namespace

Verb bench_verb(CLI::App& root) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("bench", "us, floor and share by batch, of the plans that the tables choose");
  o->spec.add(*app);
  app->add_option("--batches", o->batches, "batch sizes; 1,4,16,64,256,1024, of --speculative 1,8,64,256");
  app->add_option("--plan", o->plan, "tunables to change from the chosen plan's");
  app->add_option("--pdl", o->pdl, "off, chain, or both: off,chain");
  app->add_option("--phase", o->phase, "of a ring: this phase alone")->check(CLI::IsMember({"no_flush", "flush"}));
  app->add_option("--accepted", o->accepted,
                  "of a ring or --speculative: tokens that a step keeps, 3 or 1:0.2,2:0.3,3:0.5 by chance; without it "
                  "(tokens + 1) / 2");
  app->add_flag("--steady", o->steady, "of a ring: also as a model runs it, its cursors moved on between steps");
  app->add_option("--steps", o->steps, "of --steady")->check(CLI::Range(1, 10000))->capture_default_str();
  CLI::Option* speculative = app->add_flag(
      "--speculative", o->speculative,
      "a step that verifies drafts in every form held against each other: in place with snapshots, output slots, "
      "replay, ring");
  app->add_option("--tokens", o->tokens, "of --speculative: tokens a step, 2 to 16")
      ->needs(speculative)
      ->capture_default_str();
  app->add_option("--acceptance", o->acceptance,
                  "of --speculative: chances of a draft, each after the one before it was taken; without it and "
                  "--accepted 0,0.5,0.8,1")
      ->needs(speculative);
  app->add_option("--forms", o->forms, "of --speculative: some of snapshots,slots,replay,ring")->needs(speculative);
  app->add_option("--window", o->window, "of --speculative: the ring's")
      ->needs(speculative)
      ->check(CLI::Range(1, 32))
      ->capture_default_str();
  app->add_option("--device", o->device, "GPU ordinal");
  app->add_flag("--json", o->json, "one JSON object a line");
  return {app, [o] { return run(*o); }};
}

}  // namespace ssmjit::cli
