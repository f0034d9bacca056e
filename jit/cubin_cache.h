// Compiled kernels on disk, by content.
//
// One file a kernel: a header with magic, format version, key, sizes and checksum, then the facts as JSON, then the
// cubin. Written to a temporary file in the same folder, synced, renamed: a reader sees a whole file or none. A file
// that is truncated, foreign, damaged or of another key is a miss with one warning, never an error.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <ssmjit/cubin.h>

namespace ssmjit {

// 32 hex digits over all that shapes the machine code and nothing of where anything is installed.
std::string cubin_key(const Source& source, const std::vector<std::string>& options, const std::string& nvrtc_version);

// The same without the compiler's version: what a reader without a compiler knows of a kernel.
std::string source_key(const Source& source, const std::vector<std::string>& options);

class CubinCache {
 public:
  // An empty folder: nothing is found and nothing is kept. Touches no disk yet.
  explicit CubinCache(std::string folder) : folder_(std::move(folder)) {}

  // A file that is there but not sound is a warning, unless `quiet`.
  std::optional<Cubin> find(const std::string& key, const Arch& arch, bool quiet = false) const;
  // Makes the folder where it is missing. False, with one warning a folder and process, where it can't be written.
  // `source`: source_key(), by which find_source() finds it.
  bool keep(const std::string& key, const Cubin& cubin, const std::string& nvrtc_version,
            const std::string& source = {}) const;
  // A file of this folder, if it is the kernel of that source_key(); else nothing, with a warning.
  std::optional<Cubin> find_source(const std::string& file, const std::string& source, const Arch& arch) const;
  // The names of the folder's sound files by source_key(); reads all of them. Of several compilers' the newest's.
  std::map<std::string, std::string> names_by_source() const;

  const std::string& folder() const { return folder_; }
  std::string file_of(const std::string& key, const Arch& arch) const;

 private:
  std::string folder_;
};

// The right to compile a kernel into a folder, so that of many processes on one folder one compiles and the others take
// what it kept: whoever has it looks once more. Held until destroyed or the process ends, however it ends.
class CompileTurn {
 public:
  // Waits until no other process has it: for `timeout_s`, then with one warning no longer. Where the folder can't be
  // written, or its file system has no locks, it is not waited for.
  CompileTurn(const CubinCache& cache, const std::string& key, const Arch& arch, double timeout_s = 60);
  CompileTurn(const CompileTurn&) = delete;
  CompileTurn& operator=(const CompileTurn&) = delete;
  ~CompileTurn();

 private:
  std::string file_;
  int descriptor_ = -1;
};

// One file of a cache folder, as `cache list` and `cache verify` show it.
struct CacheFile {
  std::string name;
  std::uint64_t bytes = 0;
  std::string arch;  // empty unless the file is sound
  std::string nvrtc_version;
  std::string source;  // source_key()
  int registers = 0;
  int spill_bytes = 0;
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
