// What the compiler makes of a source: machine code in this process, and what the runtime needs to know of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ssmjit/source.h>

namespace ssmjit::cpu {

// A place in the source that the compiled code names by its index when it reports an access or enters the runtime.
struct Site {
  int line = 0;
  std::uint32_t bytes = 0;  // of the access; 0: given by the call
  std::uint32_t alignment = 1;
  bool write = false;
  bool atomic = false;
  bool update = false;      // reads, then writes
  std::uint32_t space = 0;  // that the access names: kGlobalSpace, kSharedSpace, else any
};

// A variable of a thread's own, or a constant table of the module.
struct Variable {
  std::string name;
  std::size_t bytes = 0;
};
constexpr std::uint32_t kGlobalSpace = 1, kSharedSpace = 3;  // as SSMJIT_CPU_GLOBAL and _SHARED of memory.cuh

struct SharedVariable {
  std::string name;
  std::size_t offset = 0;
  std::size_t bytes = 0;
};

struct EntryCode {
  std::string name;
  int line = 0;
  std::size_t args_bytes = 0;
  void (*call)(const void* args) = nullptr;
};

// Variables of a program compiled for debugging that say who runs, by the names that CUDA gives them.
struct Here {
  std::uint32_t *thread = nullptr, *block = nullptr;          // threadIdx {x}, blockIdx {x, y}
  std::uint32_t *block_size = nullptr, *grid_size = nullptr;  // blockDim {x}, gridDim {x, y}
};

// The code lives as long as this object.
class Code {
 public:
  virtual ~Code() = default;
  std::string file;
  std::vector<EntryCode> entries;
  std::vector<Site> sites;
  std::vector<Variable> variables;                                // whose bounds are checked in the code itself
  std::vector<SharedVariable> shared;                             // static variables, by offset
  std::string dynamic_name;                                       // of the extern __shared__ array
  std::size_t static_bytes = 0;                                   // of shared memory; the dynamic part starts here
  std::size_t stack_bytes = 0;                                    // that a thread needs at most
  std::vector<std::pair<std::uintptr_t, std::size_t>> constants;  // variables of the module itself
  std::optional<Here> here;                                       // of debug mode
};

struct CodeOptions {
  bool checks = true;
  bool debug = false;
  int optimisation = 1;
  std::string file;
  std::string debug_folder;
};

// Fails: ErrorKind::invalid with file and line for a source that can't run here; ErrorKind::machine for LLVM's own.
std::unique_ptr<Code> build(const Source& source, const CodeOptions& options);

}  // namespace ssmjit::cpu
