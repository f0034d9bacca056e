// What of compile() the other parts of the jit and its tests use.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <ssmjit/cubin.h>
#include <ssmjit/source.h>

namespace ssmjit {

// The options that a source is compiled with, all of them.
std::vector<std::string> compiler_options(const Source& source);

// Where a kernel may come from.
class Seed;
struct CompilePlaces {
  std::vector<const Seed*> seeds;  // the first first
  std::string cache_dir;           // read and written; empty: memory only
  const Seed* cache = nullptr;     // the same folder, for want of a compiler
  bool no_jit = false;             // never compile
};
struct Compiled {
  std::optional<Cubin> cubin;
  bool may_compile = false;  // where there is none, compile() would make it
  std::string why_not;       // else, what was said of the missing NVRTC; empty with no_jit
};
// A kernel that is there already: in a seed, in memory, in the cache. Thread-safe.
Compiled find_compiled(const Source& source, const CompilePlaces& places);

// Drops what compile() keeps in memory. The files of a cache folder stay.
void forget_compiled();

}  // namespace ssmjit
