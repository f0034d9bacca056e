#include <cstdlib>
#include <memory>

#include <fmt/format.h>

#include "cli/verb.h"

namespace ssmjit::cli {
namespace {

int run(bool json) {
  Json report;
  int exit = kOk;
  std::string text;
  const auto add = [&](const std::string& what, const std::string& finding, bool well) {
    report[what] = finding;
    text += fmt::format("{} {:12} {}\n", well ? "ok  " : "lack", what, finding);
  };

  try {
    add("nvrtc", fmt::format("{} at {}", nvrtc_version(), nvrtc_path()), true);
  } catch (const Error& e) {
    add("nvrtc", e.what(), false);
    exit = kMissing;
  }
  std::string why;
  const std::vector<DeviceFacts> gpus = devices(&why);
  if (gpus.empty()) {
    add("gpu", why, false);
    exit = kMissing;
  }
  Arch arch;
  std::string key = "h200", driver;
  for (const DeviceFacts& g : gpus) {
    try {
      arch = g.arch();
      key = g.key;
      driver = g.driver;
    } catch (const Error& e) {
      add(fmt::format("gpu {}", g.ordinal), fmt::format("{}: {}", g.name, e.what()), false);
      exit = kMissing;
      continue;
    }
    add(fmt::format("gpu {}", g.ordinal),
        fmt::format("{} ({}), compute capability {}.{}, {} SMs, {} MiB L2, driver for CUDA {}, compiles for {}", g.name,
                    g.key, g.major, g.minor, g.sms, g.l2_bytes >> 20, g.driver, g.arch().text()),
        true);
  }
  const std::string executor = cpu_executor_missing();
  add("cpu executor", executor.empty() ? "built in: verify runs kernels on the CPU where there is no GPU" : executor,
      executor.empty());
  const std::string cache = default_cache_dir();
  add("cache", cache.empty() ? "memory only: HOME, XDG_CACHE_HOME and SSMJIT_CACHE_DIR are unset" : cache,
      !cache.empty());
  if (const char* seeds = std::getenv("SSMJIT_SEEDS"); seeds != nullptr && *seeds != '\0') {
    try {
      Session();  // reads them
      add("seeds", seeds, true);
    } catch (const Error& e) {
      add("seeds", e.what(), false);
      exit = kFellShort;
    }
  }
  const std::string user = user_table_dir();
  add("user tables", user.empty() ? "none: HOME and XDG_DATA_HOME are unset" : user, !user.empty());

  std::string archs;
  for (const Arch& a : Arch::known())
    archs +=
        fmt::format("{}{}{}", archs.empty() ? "" : ", ", a.text(), a.verified() ? "" : " (unverified on hardware)");
  add("targets", archs, true);

  const Table table = load_tables();
  for (const std::string& name : shipped_models()) {
    const Model model = load_model(name);
    for (const auto& [kernel, description] : model.kernels) {
      const Choice c = lookup(table, description, key, arch, 8);
      const char* text = is_of_another_text(table, description, key, arch, c.plan)
                             ? "; measured with an older text of the kernel"
                             : "";
      add(fmt::format("{}:{}", name, kernel),
          fmt::format("on {} at batch 8: {}{}{}", key, c.reason, text,
                      under_another_driver(table, description, key, c.plan, driver)),
          c.why != Why::fallback);
    }
  }
  if (json)
    print_json(report);
  else
    fmt::print("{}", text);
  return exit;
}

}  // namespace

Verb doctor_verb(CLI::App& root) {
  const auto json = std::make_shared<bool>(false);
  CLI::App* app = root.add_subcommand("doctor", "what this machine has and lacks, and which table wins for each model");
  app->add_flag("--json", *json, "one JSON object");
  return {app, [json] { return run(*json); }};
}

}  // namespace ssmjit::cli
