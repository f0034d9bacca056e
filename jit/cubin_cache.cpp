#include "jit/cubin_cache.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string_view>
#include <thread>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <ssmjit/error.h>

#include "codegen/banner.h"
#include "codegen/fail.h"
#include "codegen/log.h"

namespace ssmjit {
namespace {

using nlohmann::json;

constexpr char kMagic[8] = {'s', 's', 'm', 'j', 'i', 't', 'C', 'B'};
constexpr std::uint32_t kFormat = 1;
constexpr const char* kSuffix = ".ssmjit";
constexpr const char* kTemporarySuffix = ".tmp";
constexpr const char* kLockSuffix = ".lock";
constexpr std::size_t kKeyDigits = 32;
constexpr std::uint64_t kLargestFile = std::uint64_t{256} << 20;
constexpr std::time_t kStaleSeconds = 3600;  // a writer needs milliseconds
constexpr std::chrono::milliseconds kLockPoll{3};

struct Header {
  char magic[8];
  std::uint32_t format;
  std::uint32_t facts_bytes;
  std::uint64_t image_bytes;
  char key[kKeyDigits];
  std::uint64_t checksum;  // of all before it, the facts and the image
};
static_assert(sizeof(Header) == 64, "the header is written as it lies in memory");
constexpr std::size_t kSummed = offsetof(Header, checksum);

class File {
 public:
  explicit File(int descriptor) : descriptor_(descriptor) {}
  ~File() { close(); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int get() const { return descriptor_; }
  bool is_open() const { return descriptor_ >= 0; }
  bool close() {
    const int descriptor = std::exchange(descriptor_, -1);
    return descriptor < 0 || ::close(descriptor) == 0;
  }

 private:
  int descriptor_;
};

std::string error_text(int code) { return std::strerror(code); }

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

bool is_entry_name(std::string_view name) { return name.rfind("sm_", 0) == 0 && ends_with(name, kSuffix); }
bool is_temporary_name(std::string_view name) {
  return name.rfind(".sm_", 0) == 0 && (ends_with(name, kTemporarySuffix) || ends_with(name, kLockSuffix)) &&
         name.find(kSuffix) != name.npos;
}

std::uint64_t checksum(const char* summed_header, std::string_view payload) {
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  XXH3_64bits_update(&state, summed_header, kSummed);
  XXH3_64bits_update(&state, payload.data(), payload.size());
  return XXH3_64bits_digest(&state);
}

struct StoredCubin {
  Cubin cubin;
  std::string key;
  std::string nvrtc_version;
  std::string source;
};

// What is wrong with the content of a file, or nothing and the entry.
std::string parse_file(std::string_view content, StoredCubin& entry) {
  if (content.empty()) return "it is empty";
  Header header;
  if (content.size() < sizeof header) return "it is truncated";
  std::memcpy(&header, content.data(), sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) return "it is not a cache file";
  if (header.format != kFormat) return fmt::format("its format is {}, not {}", header.format, kFormat);
  const std::string_view payload = content.substr(sizeof header);
  if (header.image_bytes > kLargestFile || payload.size() != header.facts_bytes + header.image_bytes)
    return fmt::format("it is truncated or too long: {} bytes behind the header, {} expected", payload.size(),
                       header.facts_bytes + header.image_bytes);
  if (checksum(content.data(), payload) != header.checksum) return "its checksum does not match";
  const json facts = json::parse(payload.substr(0, header.facts_bytes), nullptr, /*allow_exceptions=*/false);
  try {
    entry.key.assign(header.key, sizeof header.key);
    entry.nvrtc_version = facts.at("nvrtc").get<std::string>();
    entry.source = facts.value("source", std::string());
    Cubin& cubin = entry.cubin;
    cubin.arch = {facts.at("major").get<int>(), facts.at("minor").get<int>(),
                  static_cast<char>(facts.at("suffix").get<int>())};
    cubin.registers = facts.at("registers").get<int>();
    cubin.spill_bytes = facts.at("spill_bytes").get<int>();
    cubin.smem_bytes = facts.at("smem_bytes").get<int>();
    cubin.log = facts.at("log").get<std::string>();
  } catch (const json::exception& error) {
    return fmt::format("its facts can't be read ({})", error.what());
  }
  const std::string_view image = payload.substr(header.facts_bytes);
  if (image.empty()) return "it holds no cubin";
  entry.cubin.image.assign(image.begin(), image.end());
  entry.cubin.from_cache = true;
  return {};
}

// What is wrong with a file, or nothing and its content; `absent` where there is none.
std::string read_file(int folder, const std::string& name, std::string& content, bool& absent) {
  absent = false;
  // Not through a link, and without waiting for the other end of a pipe.
  const File file(openat(folder, name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!file.is_open()) {
    absent = errno == ENOENT;
    return errno == ELOOP ? "it is a link" : error_text(errno);
  }
  struct stat facts {
  }, folder_facts{};
  if (fstat(file.get(), &facts) != 0 || fstat(folder, &folder_facts) != 0) return error_text(errno);
  if (!S_ISREG(facts.st_mode)) return "it is not a plain file";
  if (facts.st_uid != geteuid() && facts.st_uid != 0 && facts.st_uid != folder_facts.st_uid)
    return "it belongs to another user than the folder";
  if (static_cast<std::uint64_t>(facts.st_size) > kLargestFile) return "it is too long";
  content.resize(static_cast<std::size_t>(facts.st_size));
  std::size_t at = 0;
  while (at < content.size()) {
    const ssize_t got = ::read(file.get(), content.data() + at, content.size() - at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return error_text(errno);
    if (got == 0) break;
    at += static_cast<std::size_t>(got);
  }
  content.resize(at);
  return {};
}

int open_folder(const std::string& folder) { return open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }

bool make_folders(const std::string& folder) {
  for (std::size_t at = 1; at <= folder.size(); ++at) {
    if (at < folder.size() && folder[at] != '/') continue;
    const std::string part = folder.substr(0, at);
    if (mkdir(part.c_str(), 0700) == 0 || errno == EEXIST) continue;
    // A parent that may not be made may still be there (EROFS, EACCES): the last part decides.
    struct stat facts {};
    const int code = errno;
    if (stat(part.c_str(), &facts) != 0 || !S_ISDIR(facts.st_mode)) {
      errno = code;
      return false;
    }
  }
  return true;
}

bool write_all(int descriptor, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t wrote = ::write(descriptor, bytes.data(), bytes.size());
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(wrote));
  }
  return true;
}

// Whether this process has yet to say something about `folder`; true once.
bool first_time(const std::string& folder) {
  static std::mutex mutex;
  static auto& told = *new std::set<std::string>;
  const std::lock_guard lock(mutex);
  return told.insert(folder).second;
}

// All names of an open folder.
std::vector<std::string> names_in(int folder) {
  std::vector<std::string> names;
  const int copy = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* listing = copy < 0 ? nullptr : fdopendir(copy);
  if (listing == nullptr) {
    if (copy >= 0) ::close(copy);
    return names;
  }
  while (const dirent* item = readdir(listing)) names.emplace_back(item->d_name);
  closedir(listing);
  std::sort(names.begin(), names.end());
  return names;
}

void remove_stale(int folder) {
  for (const std::string& name : names_in(folder)) {
    struct stat facts {};
    if (is_temporary_name(name) && fstatat(folder, name.c_str(), &facts, AT_SYMLINK_NOFOLLOW) == 0 &&
        facts.st_mtime + kStaleSeconds < std::time(nullptr))
      unlinkat(folder, name.c_str(), 0);
  }
}

std::string file_name(const std::string& key, const Arch& arch) { return arch.text() + "-" + key + kSuffix; }

std::string key_of(const Source& source, const std::vector<std::string>& options, const std::string* nvrtc_version) {
  XXH3_state_t state;
  XXH3_128bits_reset(&state);
  const auto add = [&](std::string_view text) {
    const std::uint64_t size = text.size();  // so that no two lists of texts read the same
    XXH3_128bits_update(&state, &size, sizeof size);
    XXH3_128bits_update(&state, text.data(), text.size());
  };
  add(fmt::format("ssmjit cubin {}", kFormat));
  add(source.arch.text());
  if (nvrtc_version != nullptr) add(*nvrtc_version);
  for (const std::string& option : options) add(option);
  add(without_banner(source.text));
  const XXH128_hash_t hash = XXH3_128bits_digest(&state);
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace

std::string cubin_key(const Source& source, const std::vector<std::string>& options, const std::string& nvrtc_version) {
  return key_of(source, options, &nvrtc_version);
}

std::string source_key(const Source& source, const std::vector<std::string>& options) {
  return key_of(source, options, nullptr);
}

std::string CubinCache::file_of(const std::string& key, const Arch& arch) const {
  return folder_ + "/" + file_name(key, arch);
}

namespace {

// "12.9" is older than "12.10".
bool is_older(std::string_view a, std::string_view b) {
  const auto numbers = [](std::string_view version) {
    std::pair<int, int> found{0, 0};
    const auto [dot, error] = std::from_chars(version.data(), version.data() + version.size(), found.first);
    if (error == std::errc() && dot != version.data() + version.size())
      std::from_chars(dot + 1, version.data() + version.size(), found.second);
    return found;
  };
  return numbers(a) < numbers(b);
}

// A file of a folder, if it is for `arch` and `belongs`; else nothing, with a warning unless it is absent.
std::optional<Cubin> find_in(const std::string& folder_name, const std::string& name, const Arch& arch,
                             const std::function<bool(const StoredCubin&)>& belongs, const char* consequence,
                             bool quiet = false) {
  if (folder_name.empty()) return std::nullopt;
  const File folder(open_folder(folder_name));
  if (!folder.is_open()) return std::nullopt;
  std::string content;
  bool absent = false;
  std::string problem = read_file(folder.get(), name, content, absent);
  if (absent) return std::nullopt;
  StoredCubin entry;
  if (problem.empty()) problem = parse_file(content, entry);
  if (problem.empty() && !belongs(entry)) problem = "it belongs to another kernel";
  if (problem.empty() && !(entry.cubin.arch == arch))
    problem = fmt::format("it is for {}, not {}", entry.cubin.arch.text(), arch.text());
  if (problem.empty()) return std::move(entry.cubin);
  if (!quiet) warn(fmt::format("cubin cache: {}/{} is passed over: {}; {}", folder_name, name, problem, consequence));
  return std::nullopt;
}

}  // namespace

std::optional<Cubin> CubinCache::find(const std::string& key, const Arch& arch, bool quiet) const {
  return find_in(
      folder_, file_name(key, arch), arch, [&](const StoredCubin& entry) { return entry.key == key; },
      "the kernel is compiled again", quiet);
}

std::optional<Cubin> CubinCache::find_source(const std::string& file, const std::string& source,
                                             const Arch& arch) const {
  return find_in(
      folder_, file, arch, [&](const StoredCubin& entry) { return entry.source == source; },
      "the kernel is looked for elsewhere");
}

std::map<std::string, std::string> CubinCache::names_by_source() const {
  std::map<std::string, std::string> names;
  std::map<std::string, std::string> versions;
  if (folder_.empty()) return names;
  for (const CacheFile& file : list_cache(folder_)) {
    if (!file.problem.empty() || file.source.empty()) continue;
    const auto [version, is_first] = versions.emplace(file.source, file.nvrtc_version);
    if (is_first || is_older(version->second, file.nvrtc_version)) {
      version->second = file.nvrtc_version;
      names[file.source] = file.name;
    }
  }
  return names;
}

CompileTurn::CompileTurn(const CubinCache& cache, const std::string& key, const Arch& arch, double timeout_s) {
  if (cache.folder().empty() || !make_folders(cache.folder())) return;
  file_ = fmt::format("{}/.{}{}", cache.folder(), file_name(key, arch), kLockSuffix);
  const int descriptor = open(file_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (descriptor < 0) return;
  const auto start = std::chrono::steady_clock::now();
  while (flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    const bool taken = errno == EWOULDBLOCK || errno == EINTR;
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
    if (!taken || passed.count() > timeout_s) {
      if (taken) {
        char owner[128] = {};
        if (pread(descriptor, owner, sizeof owner - 1, 0) <= 0) owner[0] = '\0';
        warn(fmt::format("cubin cache: {} has been held for {:.0f} s by {}; the kernel is compiled here too", file_,
                         passed.count(), owner[0] != '\0' ? owner : "another process"));
      }
      ::close(descriptor);
      return;
    }
    std::this_thread::sleep_for(kLockPoll);
  }
  descriptor_ = descriptor;
  char host[64] = {};
  gethostname(host, sizeof host - 1);
  const std::string owner = fmt::format("process {} of {}", getpid(), host);
  // For people who look; a disk too full for it does no harm.
  if (ftruncate(descriptor, 0) != 0 || pwrite(descriptor, owner.data(), owner.size(), 0) < 0) return;
}

CompileTurn::~CompileTurn() {
  if (descriptor_ < 0) return;
  // Before the lock goes, so that whoever waits for it has the only file of this name, or finds the kernel.
  unlink(file_.c_str());
  ::close(descriptor_);
}

bool CubinCache::keep(const std::string& key, const Cubin& cubin, const std::string& nvrtc_version,
                      const std::string& source) const {
  const auto give_up = [&](const std::string& reason) {
    if (first_time(folder_))
      warn(
          fmt::format("cubin cache: {} ({}); compiled kernels stay in memory for this process. Set SSMJIT_CACHE_DIR to "
                      "a folder that can be written",
                      folder_.empty() ? std::string("no folder") : folder_, reason));
    return false;
  };
  if (folder_.empty()) return give_up("SSMJIT_CACHE_DIR, XDG_CACHE_HOME and HOME are not set");
  if (!make_folders(folder_)) return give_up(error_text(errno));
  const File folder(open_folder(folder_));
  if (!folder.is_open()) return give_up(error_text(errno));

  const std::string facts = json{
      {"arch", cubin.arch.text()},
      {"major", cubin.arch.major},
      {"minor", cubin.arch.minor},
      {"suffix", static_cast<int>(cubin.arch.suffix)},
      {"nvrtc", nvrtc_version},
      {"registers", cubin.registers},
      {"spill_bytes", cubin.spill_bytes},
      {"smem_bytes", cubin.smem_bytes},
      {"compile_ms", cubin.compile_ms},
      {"log", cubin.log},
      {"source", source}}.dump(-1, ' ', false, json::error_handler_t::replace);
  std::string content(sizeof(Header), '\0');
  content += facts;
  content.append(cubin.image.begin(), cubin.image.end());
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.format = kFormat;
  header.facts_bytes = static_cast<std::uint32_t>(facts.size());
  header.image_bytes = cubin.image.size();
  std::memcpy(header.key, key.data(), std::min(key.size(), sizeof header.key));
  std::memcpy(content.data(), &header, sizeof header);
  header.checksum = checksum(content.data(), std::string_view(content).substr(sizeof header));
  std::memcpy(content.data(), &header, sizeof header);

  static std::atomic<unsigned> counter{0};
  const unsigned number = counter++;
  const bool first_write = number == 0;
  const std::string name = file_name(key, cubin.arch);
  const std::string temporary =
      fmt::format(".{}.{}.{}.{}{}", name, getpid(), std::time(nullptr), number, kTemporarySuffix);
  File file(openat(folder.get(), temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file.is_open()) return give_up(error_text(errno));
  const bool whole = write_all(file.get(), content) && fsync(file.get()) == 0 && file.close() &&
                     renameat(folder.get(), temporary.c_str(), folder.get(), name.c_str()) == 0;
  if (!whole) {
    const int code = errno;
    unlinkat(folder.get(), temporary.c_str(), 0);
    return give_up(error_text(code));
  }
  fsync(folder.get());  // the name too; without it a crash costs one compile
  if (first_write) remove_stale(folder.get());
  return true;
}

std::vector<CacheFile> list_cache(const std::string& folder_name) {
  std::vector<CacheFile> files;
  const File folder(open_folder(folder_name));
  if (!folder.is_open()) {
    if (errno == ENOENT) return files;
    fail(ErrorKind::machine, "cache folder {}: {}", folder_name, error_text(errno));
  }
  for (const std::string& name : names_in(folder.get())) {
    const bool temporary = is_temporary_name(name);
    if (!temporary && !is_entry_name(name)) continue;
    CacheFile& file = files.emplace_back();
    file.name = name;
    struct stat facts {};
    if (fstatat(folder.get(), name.c_str(), &facts, AT_SYMLINK_NOFOLLOW) == 0) {
      file.bytes = static_cast<std::uint64_t>(facts.st_size);
      file.modified = facts.st_mtime;
    }
    if (temporary) {
      file.problem = "a writer is at work or was killed; `cache clear` removes it";
      continue;
    }
    std::string content;
    bool absent = false;
    StoredCubin entry;
    file.problem = read_file(folder.get(), name, content, absent);
    if (file.problem.empty()) file.problem = parse_file(content, entry);
    if (!file.problem.empty()) continue;
    file.arch = entry.cubin.arch.text();
    file.nvrtc_version = entry.nvrtc_version;
    file.registers = entry.cubin.registers;
    file.spill_bytes = entry.cubin.spill_bytes;
    file.source = entry.source;
    if (name != file_name(entry.key, entry.cubin.arch)) file.problem = "its name is not that of its content";
  }
  return files;
}

int clear_cache(const std::string& folder_name) {
  const File folder(open_folder(folder_name));
  if (!folder.is_open()) {
    if (errno == ENOENT) return 0;
    fail(ErrorKind::machine, "cache folder {}: {}", folder_name, error_text(errno));
  }
  int removed = 0;
  for (const std::string& name : names_in(folder.get())) {
    if (!is_entry_name(name) && !is_temporary_name(name)) continue;
    if (unlinkat(folder.get(), name.c_str(), 0) == 0)
      ++removed;
    else if (errno != ENOENT)
      fail(ErrorKind::machine, "cache file {}/{} can't be removed: {}", folder_name, name, error_text(errno));
  }
  return removed;
}

void remove_stale_files(const std::string& folder_name) {
  const File folder(open_folder(folder_name));
  if (folder.is_open()) remove_stale(folder.get());
}

}  // namespace ssmjit
