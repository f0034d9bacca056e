#include <ssmjit/bundle.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include <ssmjit/error.h>

#include "codegen/fail.h"
#include "heuristics/plan_ranges.h"
#include "jit/compile.h"
#include "jit/cubin_cache.h"
#include "jit/manifest.h"
#include "jit/parallel.h"

namespace ssmjit {
namespace {

namespace fs = std::filesystem;

// A kernel that goes in.
struct Wanted {
  std::string label, plan;
  Source source;
};

// The keys of devices whose plans are wanted for `arch`: those named, or all that the table has of it and one that it
// does not have.
std::vector<std::string> devices_of(const Arch& arch, const Table& table, const BundleOptions& options) {
  std::set<std::string> keys;
  const auto add = [&](const std::string& key, bool named) {
    try {
      if (arch_of_device_key(key) == arch) keys.insert(key);
    } catch (const Error&) {
      if (named) throw;
    }
  };
  for (const std::string& key : options.devices) add(key, true);
  if (!options.devices.empty()) return {keys.begin(), keys.end()};
  for (const TableRow& row : table.rows) add(row.device, false);
  keys.insert("");
  return {keys.begin(), keys.end()};
}

void check(const std::vector<BundleItem>& items, const BundleOptions& options) {
  if (items.empty()) fail(ErrorKind::invalid, "bundle: no kernel was named; name a model or a description");
  if (options.archs.empty()) fail(ErrorKind::invalid, "bundle: no architecture was named; sm_90a, say");
  if (options.max_batch < 1 || options.max_batch > 65535)
    fail(ErrorKind::invalid, "bundle: got max_batch {}; wants 1 to 65535", options.max_batch);
  if (!options.off && !options.chain)
    fail(ErrorKind::invalid, "bundle: neither PDL mode is wanted; set off, chain or both");
  for (const std::string& key : options.devices) {
    const Arch arch = arch_of_device_key(key);
    if (std::find(options.archs.begin(), options.archs.end(), arch) == options.archs.end())
      fail(ErrorKind::invalid, "bundle: device {} takes {}, which is none of the architectures", key, arch.text());
  }
}

// All that a Session can choose, each source once.
std::vector<Wanted> wanted_kernels(const std::vector<BundleItem>& items, const Table& table,
                                   const BundleOptions& options) {
  std::vector<Wanted> wanted;
  std::set<std::pair<std::string, std::string>> seen;  // arch, digest
  const auto add = [&](const std::string& label, const std::string& plan, Source source) {
    if (seen.emplace(source.arch.text(), source.digest).second) wanted.push_back({label, plan, std::move(source)});
  };
  for (const Arch& arch : options.archs) {
    add("prepare_A", "", emit_prepare_A(arch));
    add("slot_copies", "", emit_slot_copies(arch));
    for (const BundleItem& item : items) {
      const Description& d = item.description;
      std::vector<Plan> plans;
      for (const std::string& device : devices_of(arch, table, options))
        for (const PdlMode mode : {PdlMode::off, PdlMode::chain}) {
          if (mode == PdlMode::off ? !options.off : !options.chain) continue;
          for (const PlanRange& range : plan_ranges(table, d, device, arch, options.max_batch, mode))
            if (std::find(plans.begin(), plans.end(), range.plan) == plans.end()) plans.push_back(range.plan);
        }
      for (const Plan& plan : plans) add(item.label, plan.text(), emit(d, plan, arch));
      if (d.op() == Op::ring) add(item.label + " slots", "", emit_ring_slots(d, arch));
      if (d.op() != Op::layer || d.ring_window() == 0) continue;
      for (const Description& part : layer_parts(d))
        if (part.op() == Op::ring) add(item.label + " slots", "", emit_ring_slots(part, arch));
    }
  }
  return wanted;
}

Table rows_of(const std::vector<BundleItem>& items, const Table& table) {
  std::set<std::string> digests, costs;
  for (const BundleItem& item : items) {
    digests.insert(item.description.kernel_digest());
    costs.insert(item.description.cost_digest());
  }
  Table rows;
  for (const TableRow& row : table.rows)
    if (digests.count(row.kernel_digest) != 0 || costs.count(row.cost_digest) != 0) rows.rows.push_back(row);
  rows.sort();
  return rows;
}

void make_folder(const std::string& folder) {
  std::error_code error;
  if (fs::exists(folder, error) && !has_manifest(folder) && (!fs::is_directory(folder, error) || !fs::is_empty(folder)))
    fail(ErrorKind::invalid, "bundle: {} is there and is no bundle; name a new or an empty folder", folder);
  fs::create_directories(folder, error);
  if (error) fail(ErrorKind::machine, "bundle: {} can't be made: {}", folder, error.message());
}

// What an earlier bundle left.
void remove_others(const std::string& folder, const Manifest& manifest) {
  std::set<std::string> named;
  for (const ManifestFile& file : manifest.files) named.insert(file.facts.name);
  for (const CacheFile& file : list_cache(folder)) {
    std::error_code ignored;
    if (named.count(file.name) == 0) fs::remove(fs::path(folder) / file.name, ignored);
  }
}

}  // namespace

std::vector<BundleFile> write_bundle(const std::string& folder, const std::vector<BundleItem>& items,
                                     const Table& table, const BundleOptions& options, const BundleProgress& progress) {
  check(items, options);
  for (const BundleItem& item : items) item.description.validate();
  const std::vector<Wanted> wanted = wanted_kernels(items, table, options);
  // The order of compiles: a long text takes longest; one that begins last would keep all others waiting.
  std::vector<std::size_t> order(wanted.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return wanted[a].source.text.size() > wanted[b].source.text.size();
  });
  const std::string version = nvrtc_version();
  make_folder(folder);
  const CubinCache files(folder);
  Manifest manifest;
  for (const BundleItem& item : items) manifest.kernel_digests.push_back(item.description.kernel_digest());
  manifest.files.resize(wanted.size());

  std::mutex mutex;
  int done = 0;
  const std::thread::id caller = std::this_thread::get_id();
  for_each_parallel(wanted.size(), options.threads, [&](std::size_t turn) {
    const std::size_t i = order[turn];
    const Source& source = wanted[i].source;
    const std::vector<std::string> arguments = compiler_options(source);
    const Cubin cubin = compile(source, options.compile);
    const std::string key = cubin_key(source, arguments, version), source_id = source_key(source, arguments);
    if (!files.keep(key, cubin, version, source_id))
      fail(ErrorKind::machine, "bundle: {} can't be written; see that the disk has room and the folder may be written",
           files.file_of(key, source.arch));
    const fs::path path = files.file_of(key, source.arch);
    // Read by whoever runs the model.
    std::error_code ignored;
    fs::permissions(
        path, fs::perms::owner_read | fs::perms::owner_write | fs::perms::group_read | fs::perms::others_read, ignored);
    manifest.files[i] = {{.label = wanted[i].label,
                          .name = path.filename().string(),
                          .plan = wanted[i].plan,
                          .arch = source.arch.text(),
                          .nvrtc = version,
                          .bytes = cubin.image.size(),
                          .registers = cubin.registers,
                          .spill_bytes = cubin.spill_bytes},
                         source_id};
    const std::lock_guard lock(mutex);
    ++done;
    if (progress && std::this_thread::get_id() == caller) progress(done, static_cast<int>(wanted.size()));
  });
  if (progress) progress(done, done);
  write_bundle_table(folder, rows_of(items, table));
  write_manifest(folder, manifest);
  remove_others(folder, manifest);
  std::vector<BundleFile> written;
  for (const ManifestFile& file : manifest.files) written.push_back(file.facts);
  return written;
}

bool is_bundle(const std::string& folder) { return has_manifest(folder); }

std::vector<BundleFile> read_bundle(const std::string& folder) {
  const Manifest manifest = read_manifest(folder);
  read_bundle_table(folder);
  std::map<std::string, CacheFile> there;
  for (CacheFile& file : list_cache(folder)) {
    const std::string name = file.name;
    there.emplace(name, std::move(file));
  }
  std::vector<BundleFile> files;
  for (const ManifestFile& named : manifest.files) {
    BundleFile& file = files.emplace_back(named.facts);
    const auto found = there.find(file.name);
    if (found == there.end())
      file.problem = "it is missing";
    else if (!found->second.problem.empty())
      file.problem = found->second.problem;
    else if (found->second.source != named.source)
      file.problem = "it belongs to another kernel";
    else if (found->second.arch != file.arch)
      file.problem = fmt::format("it is for {}, not {}", found->second.arch, file.arch);
  }
  return files;
}

}  // namespace ssmjit
