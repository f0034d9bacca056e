#include <memory>

#include <fmt/format.h>

#include "cli/verb.h"

namespace ssmjit::cli {
namespace {

struct Options {
  SpecOption spec;
  std::string batches = "1,4,16,64,256,1024";
  std::string plan;
  std::string pdl = "off";
  int device = 0;
  bool json = false;
};

int run(const Options& o) {
  const DeviceFacts gpu = device(o.device);
  const std::vector<int> batches = parse_batches(o.batches);
  const Table table = load_tables();
  int measured = 0, failed = 0;
  if (!o.json) {
    print(fmt::format("{}, driver CUDA {}, NVRTC {}", gpu.name, gpu.driver, nvrtc_version()));
    print("us: a step, cold state, median; floor: a pass over the same bytes in the same run; share: floor / us");
  }
  for (const SpecOption::Kernel& kernel : o.spec.kernels()) {
    for (const std::string& mode_text : split(o.pdl, ',')) {
      const PdlMode mode = parse_pdl_mode(mode_text);
      for (int batch : batches) {
        const Choice choice = lookup(table, kernel.description, gpu.key, gpu.arch(), batch, mode);
        TuneOptions options;
        options.device = o.device;
        options.batches = {batch};
        options.modes = {mode};
        options.plans = {Plan::parse(o.plan, choice.plan)};
        for (const Measurement& m : sweep(kernel.description, options)) {
          const bool ok = m.outcome == Outcome::ok;
          ++(ok ? measured : failed);
          // Nothing is faster than the floor by more than the noise: then the floor was not measured well.
          if (m.share > 1.01) {
            ++failed;
            say(fmt::format("batch {}: {:.2f} us is under the floor of {:.2f} us: the floor is wrong", batch, m.us,
                            m.floor_us));
          }
          if (o.json) {
            Json line = Json::parse(m.json());
            line["why"] = o.plan.empty() ? name(choice.why) : "given";
            print_json(line);
          } else if (ok) {
            print(fmt::format("{} {} batch {:4}  {:8.2f} us  floor {:8.2f}  share {:.3f}  {} ({})", kernel.label,
                              name(mode), batch, m.us, m.floor_us, m.share, m.plan.text(),
                              o.plan.empty() ? name(choice.why) : "given"));
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
  app->add_option("--batches", o->batches, "batch sizes");
  app->add_option("--plan", o->plan, "tunables to change from the chosen plan's");
  app->add_option("--pdl", o->pdl, "off, chain, or both: off,chain");
  app->add_option("--device", o->device, "GPU ordinal");
  app->add_flag("--json", o->json, "one JSON object a line");
  return {app, [o] { return run(*o); }};
}

}  // namespace ssmjit::cli
