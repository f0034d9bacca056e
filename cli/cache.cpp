#include <ctime>
#include <memory>

#include <fmt/chrono.h>
#include <fmt/format.h>

#include "cli/verb.h"
#include "codegen/fail.h"
#include "jit/cubin_cache.h"

namespace ssmjit::cli {
namespace {

struct Options {
  std::string folder;
  bool json = false;
};

std::string folder_of(const Options& o) {
  const std::string folder = o.folder.empty() ? default_cache_dir() : o.folder;
  if (folder.empty())
    fail(ErrorKind::invalid,
         "cache: there is none: HOME, XDG_CACHE_HOME and SSMJIT_CACHE_DIR are unset; name a folder");
  return folder;
}

// A file as both verbs show it.
struct Line {
  std::string name, arch, nvrtc, what, problem;
  std::uint64_t bytes = 0;
  int registers = 0;
};

std::vector<Line> lines_of(const std::string& folder) {
  std::vector<Line> lines;
  if (is_bundle(folder)) {
    for (const BundleFile& f : read_bundle(folder))
      lines.push_back(
          {f.name, f.arch, f.nvrtc, f.label + (f.plan.empty() ? "" : " " + f.plan), f.problem, f.bytes, f.registers});
  } else {
    for (const CacheFile& f : list_cache(folder))
      lines.push_back({f.name, f.arch, f.nvrtc_version,
                       fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(static_cast<std::time_t>(f.modified))),
                       f.problem, f.bytes, f.registers});
  }
  return lines;
}

// list: every file; verify: the bad ones, and 1 where there are any.
int show(const Options& o, bool only_bad) {
  const std::string folder = folder_of(o);
  std::size_t bad = 0;
  std::uint64_t bytes = 0;
  const std::vector<Line> lines = lines_of(folder);
  for (const Line& line : lines) {
    bad += !line.problem.empty();
    bytes += line.bytes;
    if (only_bad && line.problem.empty()) continue;
    if (o.json)
      print_json(Json{{"file", line.name},
                      {"arch", line.arch},
                      {"nvrtc", line.nvrtc},
                      {"registers", line.registers},
                      {"bytes", line.bytes},
                      {"problem", line.problem}});
    else if (line.problem.empty())
      print(fmt::format("{}  {}, NVRTC {}, {} registers, {} bytes  {}", line.name, line.arch, line.nvrtc,
                        line.registers, line.bytes, line.what));
    else
      print(fmt::format("{}  bad: {}", line.name, line.problem));
  }
  const std::size_t sound = lines.size() - bad;
  if (o.json)
    print_json(Json{{"folder", folder}, {"sound", sound}, {"bad", bad}, {"bytes", bytes}});
  else
    print(fmt::format("{}: {} sound, {} bad, {:.1f} MiB", folder, sound, bad, static_cast<double>(bytes) / (1 << 20)));
  return only_bad && bad > 0 ? kFellShort : kOk;
}

int clear(const Options& o) {
  const std::string folder = folder_of(o);
  if (is_bundle(folder))
    fail(ErrorKind::invalid, "cache clear: {} is a bundle, not a cache; remove the folder itself if it is to go",
         folder);
  const int removed = clear_cache(folder);
  if (o.json)
    print_json(Json{{"folder", folder}, {"removed", removed}});
  else
    print(fmt::format("{}: removed {} files", folder, removed));
  return kOk;
}

}  // namespace

Verb cache_verb(CLI::App& root) {
  CLI::App* app = root.add_subcommand("cache", "the cache of compiled kernels, or a bundle");
  app->require_subcommand(1);
  const auto o = std::make_shared<Options>();
  const auto add = [&](const char* name, const char* what) {
    CLI::App* verb = app->add_subcommand(name, what);
    verb->add_option("DIR", o->folder, "a cache folder or a bundle; the cache in use without it");
    verb->add_flag("--json", o->json, "one JSON object a line");
    return verb;
  };
  CLI::App* list = add("list", "every file: architecture, compiler, registers, size");
  CLI::App* verify = add("verify", "checks every file and names the bad ones; exit code 1 if there are any");
  CLI::App* clear_it = add("clear", "removes the cache's own files");
  return {app, [=] {
            if (list->parsed()) return show(*o, false);
            return verify->parsed() ? show(*o, true) : clear_it->parsed() ? clear(*o) : int{kWrongUse};
          }};
}

}  // namespace ssmjit::cli
