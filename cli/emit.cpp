#include <memory>

#include <fmt/format.h>

#include "cli/verb.h"
#include "codegen/plan_text.h"

namespace ssmjit::cli {
namespace {

struct Options {
  SpecOption spec;
  std::string plan;
  std::string arch = "sm_90a";
  std::string out;
  int batch = 8;
  bool json = false;
};

int run(const Options& o) {
  const SpecOption::Kernel kernel = o.spec.one();
  const Arch arch = Arch::parse(o.arch);
  const Plan base = default_plan(kernel.description, arch, work_items(kernel.description, o.batch));
  const Plan plan = parse_plan(o.plan, base, kernel.description, arch, work_items(kernel.description, o.batch));
  const Source source = emit(kernel.description, plan, arch);
  if (!o.out.empty()) write_text(o.out, source.text);
  if (o.json) {
    print_json(Json{{"kernel", kernel.label},
                    {"arch", arch.text()},
                    {"plan", Json::parse(plan.json())},
                    {"digest", source.digest},
                    {"entry", source.entries.front().name},
                    {"file", o.out}});
  } else if (o.out.empty()) {
    fmt::print("{}", source.text);
  } else {
    say(fmt::format("{}: {} for {}, {}", o.out, kernel.label, arch.text(), plan.text()));
  }
  return kOk;
}

}  // namespace

Verb emit_verb(CLI::App& root) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("emit", "one self-contained .cu");
  o->spec.add(*app);
  app->add_option("--plan", o->plan, "tunables to change: block_m=16,warps=2");
  app->add_option("--arch", o->arch, "architecture to emit for");
  app->add_option("--batch", o->batch, "batch that the default plan is for")->check(CLI::PositiveNumber);
  app->add_option("-o,--output", o->out, "file to write; stdout without it");
  app->add_flag("--json", o->json, "one JSON object about what was emitted");
  return {app, [o] { return run(*o); }};
}

}  // namespace ssmjit::cli
