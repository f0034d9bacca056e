// From source to machine code: NVRTC at run time, with a cache on disk.
//
// NVRTC is found by dlopen. SSMJIT_NVRTC (a file) is taken as it is. Else an installed toolkit (CUDA_HOME, CUDA_PATH,
// the loader's path, /usr/local/cuda) and the PyPI wheel in the environments VIRTUAL_ENV and the one `make deps` made
// (or SSMJIT_NVRTC_VENV) are looked at, and of major version 13, or 12 from 12.8 on, the newest is taken, the first of
// equals; where a driver is present, the newest that it can load.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ssmjit/source.h>

namespace ssmjit {

struct Cubin {
  std::vector<char> image;
  Arch arch;
  std::string log;        // the compiler's, kept also on success
  int registers = 0;      // a thread, the most of all entries
  int spill_bytes = 0;    // a thread, stores and loads to local memory
  int smem_bytes = 0;     // static, a block
  double compile_ms = 0;  // 0 when it came from the cache
  bool from_cache = false;
};

struct CompileOptions {
  bool use_cache = true;
  std::string cache_dir = {};  // empty: default_cache_dir()
};

// Thread-safe. Fails: ErrorKind::missing without NVRTC or its builtins library, with where it looked;
// ErrorKind::machine with the compiler's whole log when it refuses the source.
Cubin compile(const Source& source, const CompileOptions& options = {});

// "13.0", from the library that compile() uses. Fails: ErrorKind::missing.
std::string nvrtc_version();
std::string nvrtc_path();

// SSMJIT_CACHE_DIR, else XDG_CACHE_HOME/ssmjit, else HOME/.cache/ssmjit, else empty: memory only.
std::string default_cache_dir();

}  // namespace ssmjit
