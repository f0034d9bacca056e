#include <memory>

#include <fmt/format.h>

#include "cli/verb.h"

namespace ssmjit::cli {
namespace {

struct Options {
  SpecOption spec;
  std::string arch = "sm_90a";
  std::string devices;
  std::string tables;
  std::string folder;
  std::string pdl = "off,chain";
  int max_batch = 256;
  int threads = 0;
  bool json = false;
};

int run(const Options& o) {
  std::vector<BundleItem> items;
  for (const SpecOption::Kernel& kernel : o.spec.kernels()) items.push_back({kernel.label, kernel.description});
  BundleOptions options{.max_batch = o.max_batch, .off = false, .chain = false, .threads = o.threads};
  for (const std::string& arch : split(o.arch, ',')) options.archs.push_back(Arch::parse(arch));
  if (!o.devices.empty()) options.devices = split(o.devices, ',');
  for (const std::string& mode : split(o.pdl, ','))
    (parse_pdl_mode(mode) == PdlMode::off ? options.off : options.chain) = true;
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  const ProgressCallback progress = progress_line();
  const Session session({.tables = o.tables.empty() ? std::vector<std::string>{} : split(o.tables, ',')});
  options.compile.cache_dir = session.cache_dir();
  const std::vector<BundleFile> files =
      write_bundle(o.folder, items, session.table(), options, [&](int done, int total) {
        const double t = elapsed();
        if (total > 16) progress({"bundle", done, total, t, t / done * (total - done)});
      });
  std::uint64_t bytes = 0;
  for (const BundleFile& file : files) {
    bytes += file.bytes;
    if (o.json)
      print_json(Json{{"file", file.name},
                      {"label", file.label},
                      {"arch", file.arch},
                      {"plan", file.plan},
                      {"nvrtc", file.nvrtc},
                      {"registers", file.registers},
                      {"spill_bytes", file.spill_bytes},
                      {"bytes", file.bytes}});
    else
      print(fmt::format("{} {} {}  {} registers, {} spilled, {} bytes", file.label, file.arch,
                        file.plan.empty() ? "(no plan)" : file.plan, file.registers, file.spill_bytes, file.bytes));
  }
  if (o.json)
    print_json(Json{{"bundle", o.folder}, {"kernels", files.size()}, {"bytes", bytes}, {"seconds", elapsed()}});
  else
    print(fmt::format("bundled {} kernels, {:.1f} MiB, in {:.1f} s into {}", files.size(),
                      static_cast<double>(bytes) / (1 << 20), elapsed(), o.folder));
  return kOk;
}

}  // namespace

Verb bundle_verb(CLI::App& root) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("bundle", "a folder from which models load without NVRTC");
  o->spec.add(*app, /*several=*/true);
  app->add_option("--arch", o->arch, "architectures, with commas between");
  app->add_option("--device", o->devices,
                  "device keys whose plans go in (h200,h100); without it all that the tables have of these archs, and "
                  "what a GPU is given that they do not have");
  app->add_option("--max-batch", o->max_batch, "rows of the largest launch")->check(CLI::Range(1, 65535));
  app->add_option("--pdl", o->pdl, "off, chain, or both with a comma between");
  app->add_option("--table", o->tables, "table files or folders, with commas between, over all others");
  app->add_option("-o,--output", o->folder, "the folder")->required();
  app->add_option("-j,--threads", o->threads, "compiles at once; all cores without it")->check(CLI::NonNegativeNumber);
  app->add_flag("--json", o->json, "one JSON object a line");
  return {app, [o] { return run(*o); }};
}

}  // namespace ssmjit::cli
