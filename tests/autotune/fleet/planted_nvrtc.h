// Puts driver/planted_nvrtc.cpp in the place of NVRTC.
#pragma once

#include <filesystem>
#include <string>

#include <ssmjit/cubin.h>

#include "tests/heuristics/scoped_environment.h"

namespace ssmjit {

class PlantedNvrtc {
 public:
  // `library`: the planted one. `folder`, which is made, gets a link to it and to what NVRTC wants to have beside it.
  // `faults`: "ENTRY=crash ENTRY=spin ENTRY=stray".
  PlantedNvrtc(const std::string& library, const std::string& folder, const std::string& faults)
      : real_("SSMJIT_REAL_NVRTC", nvrtc_path()),
        planted_("SSMJIT_NVRTC", linked(library, folder)),
        faults_("SSMJIT_PLANTED_SOURCES", faults) {}

 private:
  static std::string linked(const std::string& library, const std::string& folder) {
    namespace fs = std::filesystem;
    fs::create_directories(folder);
    for (const auto& entry : fs::directory_iterator(fs::canonical(nvrtc_path()).parent_path()))
      if (entry.path().filename().string().starts_with("libnvrtc-builtins"))
        fs::create_symlink(entry.path(), fs::path(folder) / entry.path().filename());
    const fs::path link = fs::path(folder) / fs::path(library).filename();
    fs::create_symlink(fs::absolute(library), link);
    return link.string();
  }
  ScopedEnvironment real_, planted_, faults_;
};

}  // namespace ssmjit
