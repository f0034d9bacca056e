#include "jit/driver.h"

#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>

#include <fmt/format.h>

#include <ssmjit/error.h>

#include "codegen/fail.h"

namespace ssmjit {
namespace {

constexpr const char* kDefaultDriver = "libcuda.so.1";
constexpr int kOldestVersion = 12000;

std::string cuda_version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

std::unique_ptr<Driver> open_driver(const std::string& path, bool explicit_path, std::string& why) {
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    why = explicit_path ? fmt::format("SSMJIT_LIBCUDA: {} can't be opened ({}); unset it to use the installed driver",
                                      path, reason)
                        : fmt::format(
                              "no NVIDIA driver: {} can't be opened ({}); install the driver (in a container: "
                              "run it with the GPU passed through), or keep to what needs no GPU",
                              path, reason);
    return nullptr;
  }
  auto driver = std::make_unique<Driver>();
  driver->path = path;
  const char* absent = nullptr;
  const auto look_up = [&](auto& member, const char* symbol) {
    member = reinterpret_cast<std::decay_t<decltype(member)>>(dlsym(handle, symbol));
    if (member == nullptr && absent == nullptr) absent = symbol;
  };
#define SSMJIT_DRIVER_LOOK_UP(member, symbol) look_up(driver->member, #symbol);
  SSMJIT_DRIVER_CALLS(SSMJIT_DRIVER_LOOK_UP)
#undef SSMJIT_DRIVER_LOOK_UP
  if (driver->driver_version != nullptr) driver->driver_version(&driver->version);
  if (absent != nullptr || driver->version < kOldestVersion) {
    why = fmt::format("the driver {} supports CUDA {}{}; it must support {} or later: update the NVIDIA driver", path,
                      cuda_version_text(driver->version),
                      absent != nullptr ? fmt::format(" and lacks {}", absent) : std::string(),
                      cuda_version_text(kOldestVersion));
    dlclose(handle);
    return nullptr;
  }
  return driver;
}

}  // namespace

std::string Driver::version_text() const { return cuda_version_text(version); }

void Driver::raise(CUresult result, const char* call, const std::string& context) const {
  const char* code = nullptr;
  const char* text = nullptr;
  if (error_name(result, &code) != CUDA_SUCCESS || code == nullptr) code = "an unknown error";
  if (error_string(result, &text) != CUDA_SUCCESS || text == nullptr) text = "no text";
  std::string sentence = fmt::format("{} failed: {} ({}): {}", call, code, static_cast<int>(result), text);
  if (!context.empty()) sentence += "; " + context;
  if (result == CUDA_ERROR_OUT_OF_MEMORY)
    sentence += "; the GPU's memory is full, perhaps by another process: free some or choose another GPU";
  fail(ErrorKind::machine, "{}", sentence);
}

const Driver* find_driver(std::string* why) {
  const char* named = std::getenv("SSMJIT_LIBCUDA");
  const bool explicit_path = named != nullptr && *named != '\0';
  const std::string path = explicit_path ? named : kDefaultDriver;

  static std::mutex mutex;
  static auto& opened = *new std::map<std::string, std::unique_ptr<Driver>>;  // outlives static destructors that launch
  const std::lock_guard lock(mutex);
  auto found = opened.find(path);
  if (found == opened.end()) {
    std::string reason;
    std::unique_ptr<Driver> driver = open_driver(path, explicit_path, reason);
    if (driver == nullptr) {
      if (why != nullptr) *why = std::move(reason);
      return nullptr;
    }
    found = opened.emplace(path, std::move(driver)).first;
  }
  return found->second.get();
}

const Driver& driver() {
  std::string why;
  const Driver* found = find_driver(&why);
  if (found == nullptr) fail(ErrorKind::missing, "{}", why);
  const CUresult result = found->init(0);
  if (result == CUDA_ERROR_NO_DEVICE)
    fail(ErrorKind::missing,
         "the driver {} finds no GPU (cuInit: CUDA_ERROR_NO_DEVICE); check nvidia-smi and "
         "CUDA_VISIBLE_DEVICES",
         found->path);
  if (result == CUDA_ERROR_STUB_LIBRARY)
    fail(ErrorKind::missing,
         "{} is the toolkit's stub, not a driver; install the NVIDIA driver, or take the stub out "
         "of LD_LIBRARY_PATH",
         found->path);
  found->check(result, "cuInit");
  return *found;
}

}  // namespace ssmjit
