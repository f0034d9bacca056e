// Folders of compiled kernels that are read by what they were compiled from, without a compiler: bundles, and caches.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include <ssmjit/cubin.h>
#include <ssmjit/table.h>

#include "jit/cubin_cache.h"

namespace ssmjit {

class Seed {
 public:
  // Of a bundle the manifest and the table are read at once, and once; of a cache nothing yet: its files are listed
  // when a kernel is not among those of the last list and the folder was written to since. Fails: ErrorKind::invalid
  // for a bundle whose manifest or table can't be read or is of another schema.
  explicit Seed(const std::string& folder);

  // By source_key(). A file that is not sound is a miss with one warning. Thread-safe.
  std::optional<Cubin> find(const std::string& source_key, const Arch& arch) const;

  const std::string& folder() const { return files_.folder(); }
  bool is_bundle() const { return is_bundle_; }
  // Of a bundle: its table, and the descriptions' kernel digests that it was made for. Else empty.
  const Table& table() const { return table_; }
  bool holds(const std::string& kernel_digest) const { return digests_.count(kernel_digest) != 0; }

 private:
  CubinCache files_;
  bool is_bundle_ = false;
  Table table_;
  std::set<std::string> digests_;
  using Written = std::pair<std::int64_t, std::int64_t>;  // seconds and nanoseconds since 1970

  // Of a cache. Whether there was anything to list.
  bool list_anew() const;

  mutable std::mutex mutex_;                          // of what follows
  mutable std::map<std::string, std::string> names_;  // by source_key()
  mutable Written listed_{-1, 0};
};

}  // namespace ssmjit
