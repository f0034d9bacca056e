#include "jit/nvrtc.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <ssmjit/error.h>

#include "codegen/fail.h"
#include "jit/driver.h"

namespace ssmjit {
namespace {

namespace fs = std::filesystem;

using Version = std::pair<int, int>;

constexpr Version kOldest{12, 8};
constexpr int kMajors[] = {13, 12};
constexpr const char* kWayOut =
    "install a CUDA toolkit 12.8 or later, or `pip install nvidia-cuda-nvrtc` (for a driver of CUDA 12: "
    "nvidia-cuda-nvrtc-cu12) into the active virtual environment, or set SSMJIT_NVRTC to a libnvrtc.so";

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

std::string text(Version version) { return fmt::format("{}.{}", version.first, version.second); }

// "libnvrtc-builtins.so.13.0" -> 13.0; not the ".alt" variant, which belongs to libnvrtc.alt.so.
std::optional<Version> builtins_version(const std::string& file_name) {
  constexpr std::string_view kPrefix = "libnvrtc-builtins.so.";
  if (file_name.rfind(kPrefix, 0) != 0) return std::nullopt;
  const char* at = file_name.data() + kPrefix.size();
  const char* end = file_name.data() + file_name.size();
  Version version;
  auto [dot, error] = std::from_chars(at, end, version.first);
  if (error != std::errc() || dot == end || *dot != '.') return std::nullopt;
  auto [rest, minor_error] = std::from_chars(dot + 1, end, version.second);
  if (minor_error != std::errc() || (rest != end && *rest != '.')) return std::nullopt;
  return version;
}

struct Builtins {
  Version version;
  fs::path path;
};

// The builtins libraries beside a libnvrtc, newest first; where it is a link, also beside what it points to.
std::vector<Builtins> find_builtins(const fs::path& library) {
  std::vector<Builtins> found;
  std::error_code ignored;
  const fs::path real = fs::canonical(library, ignored);
  for (const fs::path& folder : {library.parent_path(), real.parent_path()}) {
    if (folder.empty()) continue;
    for (fs::directory_iterator it(folder, ignored), end; !ignored && it != end; it.increment(ignored))
      if (const auto version = builtins_version(it->path().filename().string()))
        found.push_back({*version, it->path()});
    if (!found.empty()) break;
  }
  std::sort(found.begin(), found.end(), [](const Builtins& a, const Builtins& b) { return a.version > b.version; });
  return found;
}

// "libnvrtc.so.13" and "libnvrtc.so.13.0.88" -> 13; 0 for a name that does not say.
int major_in_name(const fs::path& library) {
  const std::string name = library.filename().string();
  constexpr std::string_view kPrefix = "libnvrtc.so.";
  int major = 0;
  if (name.rfind(kPrefix, 0) == 0) std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), major);
  return major;
}

struct Candidate {
  Version version;  // by the builtins library's name
  fs::path library;
};

// What a search saw: libraries worth opening, and why the other places did not do.
struct Search {
  std::vector<Candidate> candidates;
  std::vector<std::string> seen;
  std::vector<fs::path> real_paths;

  void look_at(const fs::path& library) {
    std::error_code error;
    const fs::path real = fs::canonical(library, error);
    if (error) return;
    if (std::find(real_paths.begin(), real_paths.end(), real) != real_paths.end()) return;
    real_paths.push_back(real);
    const int major = major_in_name(library);
    for (const Builtins& builtins : find_builtins(library)) {
      if (builtins.version.first != major) continue;
      if (builtins.version < kOldest)
        seen.push_back(
            fmt::format("{} (version {}; wants {} or later)", library.string(), text(builtins.version), text(kOldest)));
      else
        candidates.push_back({builtins.version, library});
      return;
    }
    seen.push_back(fmt::format("{} (no libnvrtc-builtins.so.{}.* beside it)", library.string(), major));
  }

  void look_in(const fs::path& folder) {
    const std::size_t before = real_paths.size();
    for (const int major : kMajors) look_at(folder / fmt::format("libnvrtc.so.{}", major));
    if (real_paths.size() == before) seen.push_back(folder.string());
  }

  // The folders that a toolkit keeps its libraries in, whichever exist.
  void look_in_toolkit(const fs::path& root) {
    std::error_code ignored;
    bool any = false;
    for (const char* folder : {"lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"})
      if (fs::is_directory(root / folder, ignored)) look_in(root / folder), any = true;
    if (!any) seen.push_back(root.string());
  }

  void look_in_venv(const fs::path& root) {
    std::error_code ignored;
    bool any = false;
    std::vector<fs::path> pythons;
    for (fs::directory_iterator it(root / "lib", ignored), end; !ignored && it != end; it.increment(ignored))
      if (it->path().filename().string().rfind("python3", 0) == 0) pythons.push_back(it->path());
    std::sort(pythons.begin(), pythons.end());
    for (const fs::path& python : pythons)
      for (const char* wheel : {"nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"}) {
        const fs::path folder = python / "site-packages" / wheel;
        if (fs::is_directory(folder, ignored)) look_in(folder), any = true;
      }
    if (!any) seen.push_back((root / "lib/python3*/site-packages/nvidia").string());
  }

  // What dlopen finds by name, or what the process has open already.
  void look_on_loader_path() {
    bool any = false;
    for (const int major : kMajors) {
      void* handle = dlopen(fmt::format("libnvrtc.so.{}", major).c_str(), RTLD_LAZY | RTLD_LOCAL);
      if (handle == nullptr) continue;
      link_map* map = nullptr;
      if (dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map != nullptr && map->l_name != nullptr)
        look_at(map->l_name), any = true;
      dlclose(handle);
    }
    if (!any) seen.push_back("the loader's path");
  }
};

constexpr const char* kSearchVariables[] = {"SSMJIT_NVRTC", "CUDA_HOME",         "CUDA_PATH",
                                            "VIRTUAL_ENV",  "SSMJIT_NVRTC_VENV", "SSMJIT_LIBCUDA"};

std::unique_ptr<Nvrtc> open_best() {
  if (const std::string named = environment("SSMJIT_NVRTC"); !named.empty()) {
    std::error_code error;
    if (!fs::is_regular_file(named, error))
      fail(ErrorKind::missing, "SSMJIT_NVRTC: {} is not a file; set it to a libnvrtc.so.13 or .12, or unset it", named);
    return std::make_unique<Nvrtc>(named);
  }

  Search search;
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"})
    if (const std::string root = environment(variable); !root.empty()) search.look_in_toolkit(root);
  search.look_on_loader_path();
  search.look_in_toolkit("/usr/local/cuda");
  if (const std::string root = environment("VIRTUAL_ENV"); !root.empty()) search.look_in_venv(root);
  if (const std::string root = environment("SSMJIT_NVRTC_VENV"); !root.empty()) {
    search.look_in_venv(root);
  } else {
#ifdef SSMJIT_VENV_DIR
    search.look_in_venv(SSMJIT_VENV_DIR);
#endif
  }

  std::stable_sort(search.candidates.begin(), search.candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.version > b.version; });
  const Driver* driver = find_driver();
  for (const Candidate& candidate : search.candidates) {
    if (driver != nullptr && candidate.version.first > driver->version / 1000) {
      search.seen.push_back(fmt::format("{} (version {}; the driver loads cubins up to CUDA {} only)",
                                        candidate.library.string(), text(candidate.version), driver->version_text()));
      continue;
    }
    try {
      return std::make_unique<Nvrtc>(candidate.library.string());
    } catch (const Error& error) {
      search.seen.push_back(fmt::format("{} ({})", candidate.library.string(), error.what()));
    }
  }
  fail(ErrorKind::missing, "NVRTC, the CUDA run-time compiler, was not found: {}. Looked at: {}", kWayOut,
       fmt::join(search.seen, ", "));
}

}  // namespace

Nvrtc::Nvrtc(const std::string& path) : path_(path) {
  // libnvrtc looks its builtins library up by bare name and may have no RUNPATH (13 has none), so the name must be open
  // by then. A file name that tells no version is asked for it below.
  const std::vector<Builtins> builtins = find_builtins(path);
  const auto open_builtins = [&](auto&& fits) {
    for (const Builtins& candidate : builtins) {
      if (!fits(candidate.version)) continue;
      if (dlopen(candidate.path.c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr) return true;
      const char* reason = dlerror();
      fail(ErrorKind::missing, "{} can't be opened: {}; {}", candidate.path.string(), reason, kWayOut);
    }
    return false;
  };
  const int named_major = major_in_name(path);
  bool open = named_major != 0 && open_builtins([&](Version version) { return version.first == named_major; });

  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    fail(ErrorKind::missing, "{} can't be opened: {}; {}", path, reason, kWayOut);
  }
  const char* absent = nullptr;
  const auto look_up = [&](auto& member, const char* symbol) {
    member = reinterpret_cast<std::decay_t<decltype(member)>>(dlsym(handle, symbol));
    if (member == nullptr && absent == nullptr) absent = symbol;
  };
  look_up(version_call_, "nvrtcVersion");
  look_up(error_string_, "nvrtcGetErrorString");
  look_up(create_, "nvrtcCreateProgram");
  look_up(destroy_, "nvrtcDestroyProgram");
  look_up(compile_, "nvrtcCompileProgram");
  look_up(log_size_, "nvrtcGetProgramLogSize");
  look_up(log_, "nvrtcGetProgramLog");
  look_up(cubin_size_, "nvrtcGetCUBINSize");
  look_up(cubin_, "nvrtcGetCUBIN");
  if (version_call_ != nullptr) version_call_(&major_, &minor_);
  const Version got{major_, minor_};
  const bool known_major = std::find(std::begin(kMajors), std::end(kMajors), major_) != std::end(kMajors);
  if (absent != nullptr || got < kOldest || !known_major) {
    dlclose(handle);
    if (version_call_ == nullptr)
      fail(ErrorKind::missing, "{} is not NVRTC: it has no nvrtcVersion; {}", path, kWayOut);
    fail(ErrorKind::missing, "{} is NVRTC {}; wants 13, or 12 from {} on; {}", path, text(got), text(kOldest), kWayOut);
  }
  open = open_builtins([&](Version version) { return version == got; }) || open;
  if (!open)
    fail(ErrorKind::missing, "{} needs libnvrtc-builtins.so.{}, which is not beside it; install the whole package: {}",
         path, text(got), kWayOut);
}

const Nvrtc& Nvrtc::get() {
  std::string surroundings;
  for (const char* variable : kSearchVariables) surroundings += environment(variable) + '\0';

  static std::mutex mutex;
  static auto& opened = *new std::map<std::string, std::unique_ptr<Nvrtc>>;
  const std::lock_guard lock(mutex);
  auto found = opened.find(surroundings);
  if (found == opened.end()) found = opened.emplace(surroundings, open_best()).first;
  return *found->second;
}

Nvrtc::Result Nvrtc::compile(const std::string& text, const std::string& name,
                             const std::vector<std::string>& options) const {
  Result result;
  const auto note = [&](nvrtcResult status) {
    if (result.status == NVRTC_SUCCESS && status != NVRTC_SUCCESS) {
      result.status = status;
      result.status_text = error_string_(status);
    }
    return status == NVRTC_SUCCESS;
  };
  nvrtcProgram program = nullptr;
  if (!note(create_(&program, text.c_str(), name.c_str(), 0, nullptr, nullptr))) return result;
  const auto destroy = [this](nvrtcProgram p) { destroy_(&p); };
  const std::unique_ptr<std::remove_pointer_t<nvrtcProgram>, decltype(destroy)> owner(program, destroy);

  std::vector<const char*> arguments;
  arguments.reserve(options.size());
  for (const std::string& option : options) arguments.push_back(option.c_str());
  note(compile_(program, static_cast<int>(arguments.size()), arguments.data()));

  std::size_t size = 0;  // with the closing zero
  if (log_size_(program, &size) == NVRTC_SUCCESS && size > 1) {
    result.log.resize(size);
    if (log_(program, result.log.data()) != NVRTC_SUCCESS) result.log.clear();
    result.log.resize(std::min(result.log.size(), result.log.find('\0')));
  }
  if (result.status == NVRTC_SUCCESS && note(cubin_size_(program, &size))) {
    result.image.resize(size);
    if (!note(cubin_(program, result.image.data()))) result.image.clear();
  }
  return result;
}

namespace {

// The number that ends right before `at`.
int number_before(std::string_view line, std::size_t at) {
  std::size_t start = at;
  while (start > 0 && line[start - 1] >= '0' && line[start - 1] <= '9') --start;
  int value = 0;
  std::from_chars(line.data() + start, line.data() + at, value);
  return value;
}

}  // namespace

Resources read_resources(const std::string& log) {
  Resources most;
  std::string_view rest = log;
  while (!rest.empty()) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    const auto number = [&](std::string_view unit) {
      const std::size_t at = line.find(unit);
      return at == std::string_view::npos ? 0 : number_before(line, at);
    };
    if (line.find("spill stores") != std::string_view::npos)
      most.spill_bytes = std::max(most.spill_bytes, number(" bytes spill stores") + number(" bytes spill loads"));
    if (line.find("Used ") != std::string_view::npos && line.find(" registers") != std::string_view::npos) {
      most.found = true;
      most.registers = std::max(most.registers, number(" registers"));
      most.smem_bytes = std::max(most.smem_bytes, number(" bytes smem"));
    }
  }
  return most;
}

}  // namespace ssmjit
