#include "jit/compile.h"

#include <chrono>
#include <cstdlib>
#include <deque>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>

#include <fmt/format.h>

#include <ssmjit/cubin.h>
#include <ssmjit/error.h>

#include "codegen/fail.h"
#include "codegen/log.h"
#include "jit/cubin_cache.h"
#include "jit/nvrtc.h"
#include "jit/seeds.h"

namespace ssmjit {
namespace {

using SharedCubin = std::shared_ptr<const Cubin>;

// Compiled kernels of this process by key, and those in the making, so that threads that ask for one kernel share one
// compile. Bounded: the oldest leave first.
class Memory {
 public:
  static constexpr std::size_t kMostBytes = std::size_t{64} << 20;

  // The kernel, or a future of it (someone makes it), or a promise (the caller makes it).
  struct Ticket {
    SharedCubin cubin;
    std::shared_future<SharedCubin> coming;
    std::shared_ptr<std::promise<SharedCubin>> mine;
  };

  SharedCubin find(const std::string& key) {
    const std::lock_guard lock(mutex_);
    const auto found = done_.find(key);
    return found == done_.end() ? nullptr : found->second;
  }

  Ticket ask(const std::string& key) {
    const std::lock_guard lock(mutex_);
    if (const auto found = done_.find(key); found != done_.end()) return {found->second, {}, nullptr};
    if (const auto found = coming_.find(key); found != coming_.end()) return {nullptr, found->second, nullptr};
    auto promise = std::make_shared<std::promise<SharedCubin>>();
    coming_.emplace(key, promise->get_future().share());
    return {nullptr, {}, std::move(promise)};
  }

  void settle(const std::string& key, SharedCubin cubin) {
    const std::lock_guard lock(mutex_);
    coming_.erase(key);
    if (cubin == nullptr) return;
    bytes_ += cubin->image.size();
    if (done_.emplace(key, std::move(cubin)).second) order_.push_back(key);
    while (bytes_ > kMostBytes && order_.size() > 1) {
      const auto oldest = done_.find(order_.front());
      bytes_ -= oldest->second->image.size();
      done_.erase(oldest);
      order_.pop_front();
    }
  }

  void clear() {
    const std::lock_guard lock(mutex_);
    done_.clear();
    order_.clear();
    bytes_ = 0;
  }

 private:
  std::mutex mutex_;
  std::unordered_map<std::string, SharedCubin> done_;
  std::unordered_map<std::string, std::shared_future<SharedCubin>> coming_;
  std::deque<std::string> order_;
  std::size_t bytes_ = 0;
};

Memory& memory() {
  static auto& the_memory = *new Memory;
  return the_memory;
}

// Per folder, so that each folder that is asked for gets its file.
std::string memory_key(const CubinCache& disk, const std::string& key) { return disk.folder() + '\n' + key; }

Cubin as_cached(const Cubin& cubin) {
  Cubin copy = cubin;
  copy.from_cache = true;
  copy.compile_ms = 0;
  return copy;
}

std::string file_in_log(const Source& source) {
  return (source.entries.empty() ? std::string("kernel") : source.entries.front().name) + ".cu";
}

Cubin compile_now(const Nvrtc& nvrtc, const Source& source, const std::vector<std::string>& options) {
  const auto start = std::chrono::steady_clock::now();
  Nvrtc::Result result = nvrtc.compile(source.text, file_in_log(source), options);
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
  if (result.status != NVRTC_SUCCESS) {
    const bool options_refused = result.status == NVRTC_ERROR_INVALID_OPTION;
    fail(ErrorKind::machine, "NVRTC {} ({}) did not compile {} for {}: {}{}. Its log:\n{}", nvrtc.version(),
         nvrtc.path(), file_in_log(source), source.arch.text(), result.status_text,
         options_refused ? "; where it does not know the architecture, a newer NVRTC does" : "",
         result.log.empty() ? "(empty)" : result.log);
  }
  Cubin cubin;
  cubin.image = std::move(result.image);
  cubin.arch = source.arch;
  cubin.log = std::move(result.log);
  cubin.compile_ms = took.count();
  const Resources resources = read_resources(cubin.log);
  if (!resources.found)
    warn(fmt::format(
        "NVRTC {} did not say how many registers {} uses; its registers, spills and shared memory are shown "
        "as 0",
        nvrtc.version(), file_in_log(source)));
  cubin.registers = resources.registers;
  cubin.spill_bytes = resources.spill_bytes;
  cubin.smem_bytes = resources.smem_bytes;
  return cubin;
}

}  // namespace

std::vector<std::string> compiler_options(const Source& source) {
  std::vector<std::string> options = {"--gpu-architecture=" + source.arch.text(), "--ptxas-options=-v"};
  bool has_standard = false;
  for (const std::string& option : source.options)
    has_standard = has_standard || option.rfind("-std", 0) == 0 || option.rfind("--std", 0) == 0;
  if (!has_standard) options.emplace_back("-std=c++17");
  options.insert(options.end(), source.options.begin(), source.options.end());
  return options;
}

void forget_compiled() { memory().clear(); }

Cubin compile(const Source& source, const CompileOptions& options) {
  const Nvrtc& nvrtc = Nvrtc::get();
  const std::vector<std::string> arguments = compiler_options(source);
  if (!options.use_cache) return compile_now(nvrtc, source, arguments);

  const CubinCache disk(options.cache_dir.empty() ? default_cache_dir() : options.cache_dir);
  const std::string key = cubin_key(source, arguments, nvrtc.version());
  const std::string kept_as = memory_key(disk, key);
  Memory::Ticket ticket = memory().ask(kept_as);
  if (ticket.cubin != nullptr) return as_cached(*ticket.cubin);
  if (ticket.mine == nullptr) return as_cached(*ticket.coming.get());
  try {
    std::optional<Cubin> cubin = disk.find(key, source.arch);
    if (!cubin) {
      const CompileTurn turn(disk, key, source.arch);
      cubin = disk.find(key, source.arch, /*quiet=*/true);
      if (!cubin) {
        cubin = compile_now(nvrtc, source, arguments);
        disk.keep(key, *cubin, nvrtc.version(), source_key(source, arguments));
      }
    }
    const auto shared = std::make_shared<const Cubin>(*cubin);
    memory().settle(kept_as, shared);
    ticket.mine->set_value(shared);
    return *std::move(cubin);
  } catch (...) {
    memory().settle(kept_as, nullptr);
    ticket.mine->set_exception(std::current_exception());
    throw;
  }
}

Compiled find_compiled(const Source& source, const CompilePlaces& places) {
  const std::vector<std::string> arguments = compiler_options(source);
  const std::string of_source = source_key(source, arguments);
  for (const Seed* seed : places.seeds)
    if (std::optional<Cubin> cubin = seed->find(of_source, source.arch)) return {std::move(cubin), false, {}};
  Compiled compiled;
  if (!places.no_jit) {
    try {
      const Nvrtc& nvrtc = Nvrtc::get();
      const CubinCache disk(places.cache_dir);
      const std::string key = cubin_key(source, arguments, nvrtc.version());
      if (const SharedCubin cubin = memory().find(memory_key(disk, key))) return {as_cached(*cubin), false, {}};
      // A bad file is warned about by compile(), which looks again.
      return {disk.find(key, source.arch, /*quiet=*/true), true, {}};
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::missing) throw;
      compiled.why_not = error.what();
    }
  }
  compiled.cubin = places.cache->find(of_source, source.arch);
  return compiled;
}

std::string nvrtc_version() { return Nvrtc::get().version(); }
std::string nvrtc_path() { return Nvrtc::get().path(); }

std::string default_cache_dir() {
  const auto environment = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value != nullptr ? value : "");
  };
  if (std::string folder = environment("SSMJIT_CACHE_DIR"); !folder.empty()) return folder;
  // Both must be absolute (XDG Base Directory Specification); a relative one would scatter folders about.
  if (const std::string root = environment("XDG_CACHE_HOME"); !root.empty() && root.front() == '/')
    return root + "/ssmjit";
  if (const std::string home = environment("HOME"); !home.empty() && home.front() == '/')
    return home + "/.cache/ssmjit";
  return {};
}

}  // namespace ssmjit
