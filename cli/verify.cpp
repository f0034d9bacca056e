#include <unistd.h>

#include <filesystem>
#include <memory>
#include <optional>

#include <fmt/format.h>

#include "cli/verb.h"
#include "codegen/fail.h"
#include "codegen/plan_text.h"

namespace ssmjit::cli {
namespace {

constexpr const char* kEveryCheck = "races,bounds";

struct Options {
  SpecOption spec;
  std::string on;
  std::string plan;
  bool all = false;
  std::size_t sample = 0;
  std::uint64_t seed = 1;
  std::string source;
  std::string arch = "sm_90a";
  std::string check = kEveryCheck;
  std::optional<std::string> schedule;  // none: all, or the first of them for gdb
  double timeout_s = CpuVerify{}.timeout_s;
  bool debug = false;
  int device = 0;
  bool json = false;
};

CpuVerify cpu_options(const Options& o) {
  CpuVerify cpu;
  cpu.arch = Arch::parse(o.arch);
  cpu.races = cpu.bounds = false;
  for (const std::string& check : split(o.check, ',')) {
    if (check == "races")
      cpu.races = true;
    else if (check == "bounds")
      cpu.bounds = true;
    else if (check != "none")
      fail(ErrorKind::invalid, "--check: got {}; wants races, bounds, both with a comma between, or none",
           in_quotes(check));
  }
  if (o.debug) cpu.schedules = {CpuSchedule::forward};
  if (o.schedule) {
    cpu.schedules.clear();
    for (const std::string& schedule : split(*o.schedule, ',')) cpu.schedules.push_back(parse_cpu_schedule(schedule));
  }
  cpu.timeout_s = o.timeout_s;
  cpu.debug = o.debug;
  if (o.debug) {
    std::error_code code;
    const std::filesystem::path temporary = std::filesystem::temp_directory_path(code);
    if (code) fail(ErrorKind::machine, "--debug: the source goes below TMPDIR, which is no folder");
    cpu.debug_folder = (temporary / fmt::format("ssmjit-debug-{}", getuid())).string();
  }
  return cpu;
}

// Where there is a GPU on it, else on the CPU, unless the caller says.
enum class Where { gpu, cpu, nowhere };
const char* name(Where where) { return where == Where::gpu ? "gpu" : where == Where::cpu ? "cpu" : "no gpu"; }

int run(const Options& o) {
  std::string why;
  const bool gpu = o.on != "cpu" && !devices(&why).empty();
  const bool cpu = o.on == "cpu" || o.debug || (o.on.empty() && cpu_executor_missing().empty());
  if (o.debug && o.on == "gpu")
    fail(ErrorKind::invalid, "--debug: kernels are stepped through on the CPU, not --on gpu");
  if (o.debug && (o.all || o.sample > 1))
    fail(ErrorKind::invalid, "--debug: one plan at a time; name it by --plan or --source, not --all or --sample");
  const Where where = gpu && !o.debug ? Where::gpu : cpu ? Where::cpu : Where::nowhere;
  const Arch arch = where == Where::gpu ? device(o.device).arch() : Arch::parse(o.arch);
  if (!o.source.empty() && (o.all || o.sample > 0 || !o.plan.empty()))
    fail(ErrorKind::invalid, "--source: the plan is that of the file's banner; leave out --plan, --all and --sample");
  if (where == Where::gpu && (o.check != kEveryCheck || o.schedule))
    fail(ErrorKind::invalid, "--check and --schedule are of the CPU executor; add --on cpu");
  int verified = 0, failed = 0, skipped = 0;
  for (const SpecOption::Kernel& kernel : o.spec.kernels()) {
    const Description& d = kernel.description;
    VerifyOptions options;
    options.on = where == Where::cpu ? VerifyOn::cpu : VerifyOn::gpu;
    options.device = o.device;
    options.cpu = cpu_options(o);
    options.seed = o.seed;
    options.progress = progress_line();
    std::vector<Plan> plans;
    if (!o.source.empty()) {
      options.source = read_text(o.source);
      options.source_name = std::filesystem::path(o.source).filename().string();
      const Banner banner = read_banner(options.source);
      if (banner.description.kernel_digest() != d.kernel_digest())
        fail(ErrorKind::invalid, "{}: its banner describes {}; SPEC is {}", o.source, banner.description.summary(),
             d.summary());
      plans = {banner.plan};
    } else if (o.all || o.sample > 0) {
      plans = sample_plans(plan_space(d, arch), o.sample, o.seed);
    } else {
      plans = {parse_plan(o.plan, default_plan(d, arch, work_items(d, 8)), d, arch, work_items(d, 8))};
      check_plan(plans.front(), d, arch);
    }
    if (o.debug)
      say(fmt::format("for gdb: break {0}:LINE; the source is {1}/{0}",
                      options.source_name.empty() ? "kernel.cu" : options.source_name, options.cpu.debug_folder));
    if (where == Where::nowhere) {
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
  if (skipped > 0) say(fmt::format("skipped: {}{}", why, o.on.empty() ? "; " + cpu_executor_missing() : ""));
  if (o.json)
    print_json(Json{{"verified", verified}, {"failed", failed}, {"skipped", skipped}, {"on", name(where)}});
  else
    print(fmt::format("verified {}, failed {}, skipped {} ({})", verified, failed, skipped, name(where)));
  if (failed > 0) return kFellShort;
  return verified > 0 ? kOk : kMissing;
}

}  // namespace

Verb verify_verb(CLI::App& root) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("verify", "checks kernels against the double reference");
  o->spec.add(*app);
  app->add_option("--on", o->on, "where to run them; the GPU where there is one, else the CPU")
      ->check(CLI::IsMember({"gpu", "cpu"}));
  app->add_option("--plan", o->plan, "tunables to change from the default plan's");
  app->add_flag("--all", o->all, "every legal plan");
  app->add_option("--sample", o->sample, "that many of the legal plans, by --seed");
  app->add_option("--seed", o->seed, "of the sample and the inputs");
  app->add_option("--source", o->source, "a kernel of your own: an emitted file, edited; the plan is its banner's");
  app->add_option("--arch", o->arch, "on the CPU: what the kernels are emitted for");
  app->add_option("--check", o->check,
                  "on the CPU: races, bounds, both with a comma between, or none, which is unsafe: a wild address ends "
                  "the process");
  app->add_option("--schedule", o->schedule, "on the CPU: forward, reverse, random; several with commas between");
  app->add_option("--timeout", o->timeout_s, "on the CPU: seconds that a launch may take; with --debug it may take any")
      ->capture_default_str();
  app->add_flag("--debug", o->debug,
                "on the CPU: unoptimised and with source lines, for gdb; in schedule forward alone");
  app->add_option("--device", o->device, "GPU ordinal");
  app->add_flag("--json", o->json, "one JSON object a line");
  return {app, [o] { return run(*o); }};
}

}  // namespace ssmjit::cli
