#include "jit/seeds.h"

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

std::optional<Cubin> Seed::find(const std::string& source_key, const Arch& arch) const {
  if (!is_bundle_)
    std::call_once(read_, [this] {
      try {
        names_ = files_.names_by_source();
      } catch (const Error& error) {
        warn(error.what());
      }
    });
  const auto found = names_.find(source_key);
  return found == names_.end() ? std::nullopt : files_.find_source(found->second, source_key, arch);
}

}  // namespace ssmjit
