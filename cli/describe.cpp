#include <filesystem>
#include <memory>
#include <string>

#include <fmt/format.h>

#include "cli/verb.h"
#include "codegen/fail.h"

namespace ssmjit::cli {
namespace {

struct Options {
  SpecOption spec;
  std::string from_hf;
  int tp = 1;
  bool json = false;
  std::string batches = "1,8,64,256";
  std::string arch = "sm_90a";
};

int run(const Options& o) {
  std::vector<SpecOption::Kernel> kernels;
  std::string source;
  if (!o.from_hf.empty()) {
    if (!o.spec.specs.empty()) fail(ErrorKind::invalid, "describe: wants SPEC or --from-hf, not both");
    // FILE:KERNEL, unless a file has that name.
    const std::size_t colon = std::filesystem::exists(o.from_hf) ? std::string::npos : o.from_hf.rfind(':');
    Model model = from_hf(read_text(o.from_hf.substr(0, colon)), o.tp);
    if (colon != std::string::npos) {
      const std::string name = o.from_hf.substr(colon + 1);
      model.kernels = {{name, model.kernel(name)}};
    }
    source = model.source;
    o.spec.change(model, o.from_hf);
    for (const auto& [name, description] : model.kernels) kernels.push_back({model.model + ":" + name, description});
    if (o.json && colon == std::string::npos) {
      print(model.json(-1));
      return kOk;
    }
  } else {
    if (o.spec.specs.empty()) fail(ErrorKind::invalid, "describe: wants SPEC or --from-hf FILE");
    kernels = o.spec.kernels();
    source = load_model(o.spec.specs.front()).source;
  }
  const Arch arch = Arch::parse(o.arch);
  const std::vector<int> batches = parse_batches(o.batches);
  for (const SpecOption::Kernel& kernel : kernels) {
    const Description& d = kernel.description;
    if (o.json) {
      print(d.json());
      continue;
    }
    print(fmt::format("{}: {}", kernel.label, d.summary()));
    if (!source.empty()) print(fmt::format("  sizes from: {}", source));
    print(fmt::format("  json: {}", d.json()));
    print(
        fmt::format("  kernel digest {}, {} plans on {}", d.kernel_digest(), plan_space(d, arch).size(), arch.text()));
    const FloorModel h200 = floor_model("h200");
    print("  batch   bytes read   written back   written new   floor on an H200, us");
    const bool phases = d.ring_window() != 0;
    for (Phase phase : {Phase::no_flush, Phase::flush}) {
      if (phase == Phase::flush && !phases) break;
      for (int batch : batches) {
        const Bytes b = bytes_moved(d, batch, phase);
        print(fmt::format("  {:5} {:12} {:14} {:13}   {:.2f}{}", batch, b.read, b.written_back, b.written_new,
                          floor_us(h200, b),
                          phase == Phase::flush ? "  with flush"
                          : phases              ? "  without flush"
                                                : ""));
      }
    }
    print("  The floor is a line through measured passes over the same bytes, cold, in a graph; bench measures it.");
  }
  return kOk;
}

}  // namespace

Verb describe_verb(CLI::App& root) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("describe", "the normalised description, its JSON, bytes per step, the floor");
  o->spec.add(*app);
  app->get_option("SPEC")->required(false);
  app->add_option("--from-hf", o->from_hf,
                  "a Hugging Face config.json (mamba2, nemotron_h, bamba), or FILE:KERNEL, in place of SPEC");
  app->add_option("--tp", o->tp, "tensor-parallel ranks to split it over");
  app->add_option("--batches", o->batches, "batch sizes to list");
  app->add_option("--arch", o->arch, "architecture whose plans are counted");
  app->add_flag("--json", o->json, "the bare description, a line a kernel; of a config the model");
  return {app, [o] { return run(*o); }};
}

}  // namespace ssmjit::cli
