// A driver some of whose launches lose device memory: all calls are those of the library that SSMJIT_REAL_LIBCUDA
// names, or of libcuda.so.1. SSMJIT_PLANTED_LEAKS: "ENTRY=524288 ENTRY=67108864:once": bytes that each launch of an
// entry takes and never gives back, or its first one alone.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>
#include <string>

#include "jit/driver.h"

namespace {

using Function = void (*)();

void* real() {
  static void* const library = [] {
    const char* path = std::getenv("SSMJIT_REAL_LIBCUDA");
    void* opened = dlopen(path != nullptr ? path : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (opened == nullptr) {
      std::fprintf(stderr, "leaking: %s\n", dlerror());
      std::_Exit(9);
    }
    return opened;
  }();
  return library;
}
template <class Call>
Call* of(Call&, const char* name) {
  return reinterpret_cast<Call*>(dlsym(real(), name));
}

struct Leak {
  std::size_t bytes = 0;
  bool once = false;
};
std::mutex mutex;
std::map<CUfunction, std::string> entries;

std::map<std::string, Leak>& leaks() {
  static std::map<std::string, Leak> all = [] {
    std::map<std::string, Leak> read;
    const char* text = std::getenv("SSMJIT_PLANTED_LEAKS");
    std::istringstream list(text != nullptr ? text : "");
    for (std::string word; list >> word;) {
      const std::string what = word.substr(word.find('=') + 1);
      read[word.substr(0, word.find('='))] = {std::stoull(what), what.ends_with(":once")};
    }
    return read;
  }();
  return all;
}

CUresult module_function(CUfunction* function, CUmodule module, const char* name) {
  const CUresult result = of(cuModuleGetFunction, "cuModuleGetFunction")(function, module, name);
  const std::lock_guard lock(mutex);
  entries[*function] = name;
  return result;
}
// Of a launch that runs: one that is captured must not allocate, or it ends the capture.
CUresult launch(const CUlaunchConfig* config, CUfunction function, void** parameters, void** extra) {
  CUstreamCaptureStatus capture = CU_STREAM_CAPTURE_STATUS_NONE;
  of(cuStreamIsCapturing, "cuStreamIsCapturing")(config->hStream, &capture);
  if (capture == CU_STREAM_CAPTURE_STATUS_NONE) {
    const std::lock_guard lock(mutex);
    const auto leak = leaks().find(entries[function]);
    CUdeviceptr lost = 0;
    if (leak != leaks().end()) {
      if (leak->second.bytes > 0) of(cuMemAlloc_v2, "cuMemAlloc_v2")(&lost, leak->second.bytes);
      if (leak->second.once) leak->second.bytes = 0;
    }
  }
  return of(cuLaunchKernelEx, "cuLaunchKernelEx")(config, function, parameters, extra);
}

Function call(const char* symbol) {
  if (std::strcmp(symbol, "cuModuleGetFunction") == 0) return reinterpret_cast<Function>(module_function);
  if (std::strcmp(symbol, "cuLaunchKernelEx") == 0) return reinterpret_cast<Function>(launch);
  return reinterpret_cast<Function>(dlsym(real(), symbol));
}

}  // namespace

// Each call by its name here; what dlsym says of it is what its resolver says.
#define LEAKING_CALL(member, symbol)                                                                     \
  extern "C" __attribute__((visibility("hidden"))) Function resolve_##member() { return call(#symbol); } \
  extern "C" void exported_##member() __asm__(#symbol) __attribute__((ifunc("resolve_" #member)));
SSMJIT_DRIVER_CALLS(LEAKING_CALL)
