#include <chrono>
#include <memory>

#include <fmt/format.h>

#include "autotune/compile_pool.h"
#include "cli/verb.h"
#include "codegen/plan_text.h"

namespace ssmjit::cli {
namespace {

struct Options {
  SpecOption spec;
  std::string arch = "sm_90a";
  std::string plan;
  bool all = false;
  std::size_t sample = 0;
  std::uint64_t seed = 1;
  int threads = 0;
  bool no_cache = false;
  bool json = false;
};

int run(const Options& o) {
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  CompileOptions compile_options;
  compile_options.use_cache = !o.no_cache;
  nvrtc_version();  // without NVRTC there is one sentence, not one a kernel
  int compiled = 0, failed = 0;
  const ProgressCallback progress = progress_line();
  const std::vector<SpecOption::Kernel> kernels = o.spec.kernels();
  const std::vector<std::string> archs = split(o.arch, ',');
  for (const SpecOption::Kernel& kernel : kernels) {
    for (const std::string& text : archs) {
      const Arch arch = Arch::parse(text);
      const Description& d = kernel.description;
      std::vector<Plan> plans;
      if (o.all || o.sample > 0)
        plans = sample_plans(plan_space(d, arch), o.sample, o.seed);
      else
        plans = {parse_plan(o.plan, default_plan(d, arch, work_items(d, 8)), d, arch, work_items(d, 8))};
      if (!o.all && o.sample == 0) check_plan(plans.front(), d, arch);
      CompilePool pool(d, plans, arch, compile_options, {}, o.threads);
      for (std::size_t i = 0; i < plans.size(); ++i) {
        const CompilePool::Result& r = pool.get(i);
        const bool ok = r.error.empty();
        ++(ok ? compiled : failed);
        if (o.json) {
          Json line{
              {"kernel", kernel.label}, {"arch", arch.text()}, {"plan", Json::parse(plans[i].json())}, {"ok", ok}};
          if (ok) {
            line["ms"] = r.cubin.compile_ms;
            line["cached"] = r.cubin.from_cache;
            line["registers"] = r.cubin.registers;
            line["spill_bytes"] = r.cubin.spill_bytes;
            line["smem_bytes"] = r.cubin.smem_bytes + r.source.entries.front().smem_bytes;
            line["cubin_bytes"] = r.cubin.image.size();
          } else {
            line["error"] = r.error;
          }
          print_json(line);
        } else if (ok) {
          print(fmt::format(
              "{} {} {}  {}, {} registers, {} spilled, {} smem, {} bytes", kernel.label, arch.text(), plans[i].text(),
              r.cubin.from_cache ? "cached" : fmt::format("{:.0f} ms", r.cubin.compile_ms), r.cubin.registers,
              r.cubin.spill_bytes, r.cubin.smem_bytes + r.source.entries.front().smem_bytes, r.cubin.image.size()));
        } else {
          print(fmt::format("{} {} {}  failed: {}", kernel.label, arch.text(), plans[i].text(), r.error));
        }
        const double t = elapsed();
        const auto done = static_cast<std::int64_t>(i + 1), total = static_cast<std::int64_t>(plans.size());
        if (total > 16)
          progress({fmt::format("compile for {}", arch.text()), done, total, t,
                    t / static_cast<double>(compiled + failed) * static_cast<double>(total - done)});
      }
    }
  }
  if (o.json)
    print_json(Json{{"compiled", compiled}, {"failed", failed}, {"seconds", elapsed()}});
  else
    print(fmt::format("compiled {}, failed {} in {:.1f} s", compiled, failed, elapsed()));
  return failed == 0 && compiled > 0 ? kOk : kFellShort;
}

}  // namespace

Verb compile_verb(CLI::App& root) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("compile", "compiles kernels with NVRTC, a line each");
  o->spec.add(*app);
  app->add_option("--arch", o->arch, "architectures, with commas between");
  app->add_option("--plan", o->plan, "tunables to change from the default plan's");
  app->add_flag("--all", o->all, "every legal plan");
  app->add_option("--sample", o->sample, "that many of the legal plans, by --seed");
  app->add_option("--seed", o->seed, "of the sample");
  app->add_option("-j,--threads", o->threads, "compiles at once; all cores without it")->check(CLI::NonNegativeNumber);
  app->add_flag("--no-cache", o->no_cache, "neither reads nor writes the cubin cache");
  app->add_flag("--json", o->json, "one JSON object a line");
  return {app, [o] { return run(*o); }};
}

}  // namespace ssmjit::cli
