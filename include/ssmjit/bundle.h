// A folder from which a model loads with no compiler at hand: cubins, the table that chooses among them, a manifest.
//
//   bundle.json    the manifest: what each file is, and what it was made by
//   table.json     rows of the kernels that the bundle holds
//   sm_90a-*.ssmjit    a kernel each, as in a cache folder
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <ssmjit/cubin.h>
#include <ssmjit/description.h>
#include <ssmjit/plan.h>
#include <ssmjit/table.h>

namespace ssmjit {

// A kernel of a model, and how messages call it ("nemotron3-super-tp8:update").
struct BundleItem {
  std::string label;
  Description description;
};

struct BundleOptions {
  std::vector<Arch> archs{};  // at least one
  // Device keys ("h200") whose plans go in; empty: all that the table has of these archs, and what a GPU that the table
  // does not know would be given.
  std::vector<std::string> devices{};
  int max_batch = 256;  // as PrepareOptions
  bool off = true;
  bool chain = true;
  CompileOptions compile{};
  int threads = 0;  // 0: as many as there are cores
};

// A file of a bundle.
struct BundleFile {
  std::string label;  // of the description it was made for first; "prepare_A", "slot_copies" and "NAME slots" for those
                      // beside steps
  std::string name;   // of the file
  std::string plan;   // text(); empty for those beside steps
  std::string arch;
  std::string nvrtc;  // the compiler's version
  std::uint64_t bytes = 0;
  int registers = 0;
  int spill_bytes = 0;
  std::string problem{};  // empty: sound
};

// Called with what is done and how much there is to do, from the calling thread.
using BundleProgress = std::function<void(int done, int total)>;

// Compiles all that a Session can choose from `table` for these kernels and writes the folder, which is made where it
// is missing; one that holds a bundle gets the new manifest and loses the files that this does not name. Fails:
// ErrorKind::invalid for an invalid description, no item, no arch, a device of another arch, a folder that holds
// something else; ErrorKind::missing without NVRTC; ErrorKind::machine for a kernel that does not compile, and where
// the folder can't be written.
std::vector<BundleFile> write_bundle(const std::string& folder, const std::vector<BundleItem>& items,
                                     const Table& table, const BundleOptions& options,
                                     const BundleProgress& progress = {});

// Whether the folder has a manifest.
bool is_bundle(const std::string& folder);
// Every file of the manifest, looked at as a load does. Fails: ErrorKind::invalid for a manifest or table that is
// missing, can't be read or is of another schema.
std::vector<BundleFile> read_bundle(const std::string& folder);

}  // namespace ssmjit
