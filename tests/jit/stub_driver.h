// The driver of stub_libcuda.c in place of the machine's, for the length of a test.
#pragma once

#include <dlfcn.h>

#include <cstdlib>
#include <string>

#include "tests/heuristics/scoped_environment.h"
#include "tests/jit/stub_libcuda.h"

namespace ssmjit {

class StubDriver {
 public:
  // Empty where the stub was not built.
  static std::string path() {
    if (const char* named = std::getenv("SSMJIT_STUB_LIBCUDA")) return named;
#ifdef SSMJIT_STUB_LIBCUDA
    return SSMJIT_STUB_LIBCUDA;
#else
    return {};
#endif
  }

  StubDriver() : environment_("SSMJIT_LIBCUDA", path()) {
    void* handle = path().empty() ? nullptr : dlopen(path().c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) return;
    auto* get_state = reinterpret_cast<decltype(&stub_state)>(dlsym(handle, "stub_state"));
    auto* reset = reinterpret_cast<decltype(&stub_reset)>(dlsym(handle, "stub_reset"));
    if (get_state == nullptr || reset == nullptr) return;
    reset();
    state_ = get_state();
  }

  bool ready() const { return state_ != nullptr; }
  StubState* operator->() const { return state_; }

 private:
  ScopedEnvironment environment_;
  StubState* state_ = nullptr;
};

}  // namespace ssmjit
