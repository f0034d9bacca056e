#include <memory>

#include <fmt/format.h>

#include "cli/verb.h"
#include "codegen/fail.h"

namespace ssmjit::cli {
namespace {

struct Options {
  SpecOption spec;
  std::string on;
  std::string plan;
  bool all = false;
  std::size_t sample = 0;
  std::uint64_t seed = 1;
  std::string source;
  int device = 0;
  bool json = false;
};

int run(const Options& o) {
  if (o.on == "cpu")
    fail(ErrorKind::missing, "verify: --on cpu: this build has no CPU executor; verify on a machine with a GPU");
  std::string why;
  const std::vector<DeviceFacts> gpus = devices(&why);
  const Arch arch = gpus.empty() ? Arch{} : device(o.device).arch();
  int verified = 0, failed = 0, skipped = 0;
  for (const SpecOption::Kernel& kernel : o.spec.kernels()) {
    const Description& d = kernel.description;
    VerifyOptions options;
    options.device = o.device;
    options.seed = o.seed;
    options.progress = progress_line();
    std::vector<Plan> plans;
    if (!o.source.empty()) {
      options.source = read_text(o.source);
      const Banner banner = read_banner(options.source);
      if (banner.description.kernel_digest() != d.kernel_digest())
        fail(ErrorKind::invalid, "{}: its banner describes {}; SPEC is {}", o.source, banner.description.summary(),
             d.summary());
      plans = {banner.plan};
    } else if (o.all || o.sample > 0) {
      plans = sample_plans(plan_space(d, arch), o.sample, o.seed);
    } else {
      plans = {Plan::parse(o.plan, default_plan(d, arch, 8 * d.nheads))};
      check_plan(plans.front(), d, arch);
    }
    if (gpus.empty()) {
      skipped += static_cast<int>(plans.size());
      continue;
    }
    for (const Verdict& v : verify(d, plans, options)) {
      const bool ok = v.outcome == Outcome::ok;
      ++(ok ? verified : failed);
      if (o.json) {
        print_json(Json{{"kernel", kernel.label},
                        {"plan", Json::parse(v.plan.json())},
                        {"outcome", name(v.outcome)},
                        {"failures", v.failures},
                        {"y_error", v.y_error},
                        {"state_error", v.state_error},
                        {"worst_ulp", v.worst_ulp}});
      } else {
        print(fmt::format("{} {}  {}: y {:.1e}, state {:.1e}, worst {:.2f} units", kernel.label, v.plan.text(),
                          name(v.outcome), v.y_error, v.state_error, v.worst_ulp));
        for (const std::string& sentence : v.failures) print("  " + sentence);
      }
    }
  }
  if (skipped > 0) say(fmt::format("skipped: {}", why));
  const std::string_view where = gpus.empty() ? "no gpu" : "gpu";
  if (o.json)
    print_json(Json{{"verified", verified}, {"failed", failed}, {"skipped", skipped}, {"on", where}});
  else
    print(fmt::format("verified {}, failed {}, skipped {} ({})", verified, failed, skipped, where));
  if (failed > 0) return kFellShort;
  return verified > 0 ? kOk : kMissing;
}

}  // namespace

Verb verify_verb(CLI::App& root) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("verify", "checks kernels against the double reference");
  o->spec.add(*app);
  app->add_option("--on", o->on, "where to run them")->check(CLI::IsMember({"gpu", "cpu"}));
  app->add_option("--plan", o->plan, "tunables to change from the default plan's");
  app->add_flag("--all", o->all, "every legal plan");
  app->add_option("--sample", o->sample, "that many of the legal plans, by --seed");
  app->add_option("--seed", o->seed, "of the sample and the inputs");
  app->add_option("--source", o->source, "a kernel of your own: an emitted file, edited; the plan is its banner's");
  app->add_option("--device", o->device, "GPU ordinal");
  app->add_flag("--json", o->json, "one JSON object a line");
  return {app, [o] { return run(*o); }};
}

}  // namespace ssmjit::cli
