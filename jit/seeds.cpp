#include "jit/seeds.h"

#include <sys/stat.h>

#include <chrono>

#include <ssmjit/error.h>

#include "codegen/log.h"
#include "jit/manifest.h"

namespace ssmjit {

Seed::Seed(const std::string& folder) : files_(folder), is_bundle_(!folder.empty() && has_manifest(folder)) {
  if (!is_bundle_) return;
  const Manifest manifest = read_manifest(folder);
  for (const ManifestFile& file : manifest.files) names_.emplace(file.source, file.facts.name);
  digests_.insert(manifest.kernel_digests.begin(), manifest.kernel_digests.end());
  table_ = read_bundle_table(folder);
}

bool Seed::list_anew() const {
  struct stat facts {};
  if (folder().empty() || stat(folder().c_str(), &facts) != 0) return false;
  const Written written{facts.st_mtim.tv_sec, facts.st_mtim.tv_nsec};
  if (listed_ == written) return false;
  // A file system's clock moves in steps of milliseconds: what was written just now may be followed by more at its
  // time.
  const auto age = std::chrono::system_clock::now().time_since_epoch() - std::chrono::seconds(written.first) -
                   std::chrono::nanoseconds(written.second);
  listed_ = age > std::chrono::milliseconds(100) ? written : Written{-1, 0};
  try {
    names_ = files_.names_by_source();
  } catch (const Error& error) {
    warn(error.what());
  }
  return true;
}

std::optional<Cubin> Seed::find(const std::string& source_key, const Arch& arch) const {
  std::string name;
  {
    const std::lock_guard lock(mutex_);
    auto found = names_.find(source_key);
    if (found == names_.end() && !is_bundle_ && list_anew()) found = names_.find(source_key);
    if (found == names_.end()) return std::nullopt;
    name = found->second;
  }
  return files_.find_source(name, source_key, arch);
}

}  // namespace ssmjit
