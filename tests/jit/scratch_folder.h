// A folder of a test's own, gone after it; and the warnings that are said meanwhile.
#pragma once

#include <filesystem>
#include <mutex>
#include <string>
#include <vector>

#include <ssmjit/log.h>

namespace ssmjit {

class ScratchFolder {
 public:
  ScratchFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "ssmjit-test-XXXXXX").string();
    if (mkdtemp(pattern.data()) != nullptr) path_ = pattern;
  }
  ~ScratchFolder() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

class Warnings {
 public:
  Warnings() {
    set_log([this](LogLevel level, std::string_view text) {
      if (level == LogLevel::warning) lines.emplace_back(text);
    });
  }
  ~Warnings() { set_log({}); }
  Warnings(const Warnings&) = delete;
  Warnings& operator=(const Warnings&) = delete;

  std::vector<std::string> lines;
};

}  // namespace ssmjit
