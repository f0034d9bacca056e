// Compiled kernels on disk, by content.
//
// One file a kernel: a header with magic, format version, key, sizes and checksum, then the facts as JSON, then the
// cubin. Written to a temporary file in the same folder, synced, renamed: a reader sees a whole file or none. A file
// that is truncated, foreign, damaged or of another key is a miss with one warning, never an error.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <ssmjit/cubin.h>

namespace ssmjit {

// 32 hex digits over all that shapes the machine code and nothing of where anything is installed.
std::string cubin_key(const Source& source, const std::vector<std::string>& options, const std::string& nvrtc_version);

class CubinCache {
 public:
  // An empty folder: nothing is found and nothing is kept. Touches no disk yet.
  explicit CubinCache(std::string folder) : folder_(std::move(folder)) {}

  std::optional<Cubin> find(const std::string& key, const Arch& arch) const;
  // Makes the folder where it is missing. False, with one warning a folder and process, where it can't be written.
  bool keep(const std::string& key, const Cubin& cubin, const std::string& nvrtc_version) const;

  const std::string& folder() const { return folder_; }
  std::string file_of(const std::string& key, const Arch& arch) const;

 private:
  std::string folder_;
};

// One file of a cache folder, as `cache list` and `cache verify` show it.
struct CacheFile {
  std::string name;
  std::uint64_t bytes = 0;
  std::string arch;  // empty unless the file is sound
  std::string nvrtc_version;
  int registers = 0;
  std::int64_t modified = 0;  // seconds since 1970
  std::string problem;        // empty: sound
};

// By name. An absent folder is empty. Fails: ErrorKind::machine for a folder that can't be read.
std::vector<CacheFile> list_cache(const std::string& folder);
// Removes the cache's own files, sound or not, and what killed writers left; nothing else. Returns how many.
// Fails: ErrorKind::machine, naming the file that would not go.
int clear_cache(const std::string& folder);
// Removes what killed writers left more than an hour ago. The first keep() of a process does so. Never fails.
void remove_stale_files(const std::string& folder);

}  // namespace ssmjit
