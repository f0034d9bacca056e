// NVRTC with faults planted in what it compiles: the calls go to the library that SSMJIT_REAL_NVRTC names.
// SSMJIT_PLANTED_SOURCES: "ENTRY=crash ENTRY=spin ENTRY=stray": a source with that entry ends the process that compiles
// it; becomes a kernel that never ends; one that writes to address 8.
#include <dlfcn.h>
#include <nvrtc.h>

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>

namespace {

void* real() {
  static void* const library = [] {
    const char* path = std::getenv("SSMJIT_REAL_NVRTC");
    void* opened = path != nullptr ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (opened == nullptr) {
      std::fprintf(stderr, "planted: SSMJIT_REAL_NVRTC names no library\n");
      std::_Exit(9);
    }
    return opened;
  }();
  return library;
}

template <class Function>
Function* of(Function&, const char* name) {
  return reinterpret_cast<Function*>(dlsym(real(), name));
}

// The source with its fault.
std::string planted(std::string text) {
  const char* faults = std::getenv("SSMJIT_PLANTED_SOURCES");
  std::istringstream list(faults != nullptr ? faults : "");
  for (std::string word; list >> word;) {
    const std::string entry = word.substr(0, word.find('=')), fault = word.substr(word.find('=') + 1);
    const std::size_t at = text.rfind(entry + "(");
    if (at == std::string::npos) continue;
    if (fault == "crash") {
      std::fprintf(stderr, "the compiler died of %s\n", entry.c_str());
      std::abort();
    }
    const std::size_t body = text.find('{', at);
    // A loop that does nothing is left out by the assembler, even with a volatile condition; one that sleeps is not.
    if (fault == "spin") text.insert(body + 1, "\n  while (true) asm volatile(\"nanosleep.u32 1000;\");\n");
    if (fault == "stray") text.insert(body + 1, "\n  *reinterpret_cast<volatile int*>(8) = 1;\n");
  }
  return text;
}

}  // namespace

#define FORWARD(name, parameters, arguments) \
  extern "C" nvrtcResult name parameters { return of(name, #name) arguments; }

FORWARD(nvrtcVersion, (int* major, int* minor), (major, minor))
FORWARD(nvrtcDestroyProgram, (nvrtcProgram * program), (program))
FORWARD(nvrtcCompileProgram, (nvrtcProgram program, int count, const char* const* options), (program, count, options))
FORWARD(nvrtcGetProgramLogSize, (nvrtcProgram program, std::size_t* size), (program, size))
FORWARD(nvrtcGetProgramLog, (nvrtcProgram program, char* log), (program, log))
FORWARD(nvrtcGetCUBINSize, (nvrtcProgram program, std::size_t* size), (program, size))
FORWARD(nvrtcGetCUBIN, (nvrtcProgram program, char* cubin), (program, cubin))

extern "C" const char* nvrtcGetErrorString(nvrtcResult result) {
  return of(nvrtcGetErrorString, "nvrtcGetErrorString")(result);
}
extern "C" nvrtcResult nvrtcCreateProgram(nvrtcProgram* program, const char* text, const char* name, int headers,
                                          const char* const* header_texts, const char* const* header_names) {
  return of(nvrtcCreateProgram, "nvrtcCreateProgram")(program, planted(text).c_str(), name, headers, header_texts,
                                                      header_names);
}
