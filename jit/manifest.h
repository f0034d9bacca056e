// What a bundle says it holds: bundle.json.
#pragma once

#include <string>
#include <vector>

#include <ssmjit/bundle.h>

namespace ssmjit {

struct ManifestFile {
  BundleFile facts;
  std::string source;  // source_key()
};
struct Manifest {
  std::vector<std::string> kernel_digests;  // of the descriptions that it was made for
  std::vector<ManifestFile> files;
};

bool has_manifest(const std::string& folder);
// Fail: ErrorKind::invalid, naming file and reason.
Manifest read_manifest(const std::string& folder);
Table read_bundle_table(const std::string& folder);
// Whole or not at all. Fails: ErrorKind::machine.
void write_manifest(const std::string& folder, const Manifest& manifest);
void write_bundle_table(const std::string& folder, const Table& table);

}  // namespace ssmjit
