// Folders include downwards only: cli -> autotune -> jit -> heuristics -> codegen -> include.
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace {

namespace fs = std::filesystem;

const fs::path kRoot = SSMJIT_SOURCE_DIR;

// What each folder may name in an #include "..." (its own folder is always allowed). The public headers are
// <ssmjit/...> and open to all but the templates.
const std::map<std::string, std::set<std::string>> kMayInclude = {
    {"include", {}},
    {"codegen", {}},
    {"heuristics", {"codegen"}},
    {"jit", {"heuristics", "codegen", "templates"}},
    {"autotune", {"jit", "heuristics", "codegen"}},
    {"cli", {"autotune", "jit", "heuristics", "codegen"}},
    {"templates", {}},
    {"python", {}},
};
// Of the templates the host may read the arguments, which are plain C++.
const std::set<std::string> kTemplatesForTheHost = {
    "templates/update_args.cuh",      "templates/ring_args.cuh",          "templates/ring_slots_args.cuh",
    "templates/prepare_A_args.cuh",   "templates/norm_args.cuh",          "templates/conv1d_args.cuh",
    "templates/layer_args.cuh",       "templates/ring_layer_args.cuh",    "templates/update_rounded_args.cuh",
    "templates/slot_copies_args.cuh", "templates/update_tokens_args.cuh", "templates/layer_tokens_args.cuh"};

struct Include {
  fs::path file;
  int line;
  bool quoted;
  std::string name;
  std::string where() const { return fs::relative(file, kRoot).string() + ":" + std::to_string(line); }
};

std::vector<fs::path> files_of(const std::string& folder) {
  std::vector<fs::path> files;
  if (!fs::exists(kRoot / folder)) return files;
  for (const auto& entry : fs::recursive_directory_iterator(kRoot / folder)) {
    const std::string extension = entry.path().extension().string();
    if (entry.is_regular_file() &&
        (extension == ".h" || extension == ".cpp" || extension == ".cuh" || extension == ".cu")) {
      files.push_back(entry.path());
    }
  }
  return files;
}

std::vector<Include> includes_of(const std::string& folder) {
  static const std::regex kInclude(R"re(^\s*#\s*include\s*([<"])([^>"]+)[>"])re");
  std::vector<Include> includes;
  for (const fs::path& path : files_of(folder)) {
    std::ifstream file(path);
    std::string text;
    for (int line = 1; std::getline(file, text); ++line) {
      std::smatch match;
      if (std::regex_search(text, match, kInclude)) includes.push_back({path, line, match[1] == "\"", match[2]});
    }
  }
  return includes;
}

// "codegen" of "codegen/log.h", or of "log.h" in a file below codegen/.
std::string folder_of(const Include& include) {
  const std::string first = fs::path(include.name).begin()->string();
  if (kMayInclude.count(first)) return first;
  return fs::relative(include.file, kRoot).begin()->string();
}

TEST(Layering, FoldersIncludeDownwardsOnly) {
  int seen = 0;
  for (const auto& [folder, allowed] : kMayInclude) {
    for (const Include& include : includes_of(folder)) {
      ++seen;
      if (!include.quoted) continue;
      const std::string to = folder_of(include);
      EXPECT_TRUE(to == folder || allowed.count(to))
          << include.where() << ": " << folder << " must not include \"" << include.name << "\"";
      if (folder != "templates" && to == "templates") {
        EXPECT_TRUE(kTemplatesForTheHost.count(include.name)) << include.where() << ": " << include.name;
      }
    }
  }
  EXPECT_GT(seen, 50) << "the sources were not found under " << kRoot;
}

TEST(Layering, ThePublicHeadersIncludeEachOtherAndTheStandardLibraryOnly) {
  for (const Include& include : includes_of("include")) {
    EXPECT_FALSE(include.quoted) << include.where();
    const bool own = include.name.rfind("ssmjit/", 0) == 0;
    const bool of_c = include.name == "stddef.h" || include.name == "stdint.h" || include.name == "string.h";
    const bool standard = include.file.filename() == "ssmjit_c.h"  // which C reads too
                              ? of_c
                              : include.name.find_first_of("/.") == std::string::npos;
    EXPECT_TRUE(own || standard) << include.where() << ": <" << include.name << ">";
    if (own) {
      EXPECT_TRUE(fs::exists(kRoot / "include" / include.name)) << include.where();
    }
  }
}

TEST(Layering, TheTemplatesIncludeNothingOfTheHost) {
  for (const Include& include : includes_of("templates")) {
    EXPECT_TRUE(include.quoted) << include.where() << ": <" << include.name << "> costs the compiler a header";
  }
}

TEST(Layering, OnlyJitIncludesTheCudaHeaders) {
  static const std::regex kCuda(R"(^(cuda|nvrtc|cuda_.*|driver_types|cuda/.*)(\.h)?$)");
  for (const auto& [folder, allowed] : kMayInclude) {
    if (folder == "jit") continue;
    for (const Include& include : includes_of(folder)) {
      EXPECT_FALSE(std::regex_match(include.name, kCuda)) << include.where() << ": <" << include.name << ">";
    }
  }
}

TEST(Layering, OnlyTheCpuCompilerIncludesLlvmAndOnlyTheCpuExecutorBoost) {
  static const std::regex kLlvm(R"(^(llvm|clang)/.*)"), kBoost(R"(^boost/.*)");
  int seen = 0;
  for (const auto& [folder, allowed] : kMayInclude) {
    for (const Include& include : includes_of(folder)) {
      const std::string file = fs::relative(include.file, kRoot).generic_string();
      if (std::regex_match(include.name, kLlvm)) {
        ++seen;
        EXPECT_EQ(file, "jit/cpu/compiler.cpp") << include.where() << ": <" << include.name << ">";
      }
      if (std::regex_match(include.name, kBoost)) {
        EXPECT_EQ(file.rfind("jit/cpu/", 0), 0u) << include.where() << ": <" << include.name << ">";
      }
    }
  }
  EXPECT_GT(seen, 0);
}

// `text` without comments, line breaks kept.
std::string without_comments(const std::string& text) {
  std::string code;
  enum { in_code, in_line, in_block } state = in_code;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool pair = i + 1 < text.size();
    if (state == in_code && pair && text[i] == '/' && (text[i + 1] == '/' || text[i + 1] == '*')) {
      state = text[++i] == '/' ? in_line : in_block;
    } else if (state == in_block && pair && text[i] == '*' && text[i + 1] == '/') {
      state = in_code;
      ++i;
    } else {
      if (state == in_line && text[i] == '\n') state = in_code;
      if (state == in_code || text[i] == '\n') code += text[i];
    }
  }
  return code;
}

TEST(Layering, OnlyTemplatesDeviceNamesIntrinsics) {
  static const std::regex kIntrinsic(
      R"(\b(threadIdx|blockIdx|blockDim|gridDim|asm|__shfl\w*|__sync\w*|__ld\w+|__st\w+|__cvta\w*|__float2\w*|)"
      R"(__\w+2float\w*|__expf|__logf|__fdividef|__frcp\w*|__fma\w*|__ballot\w*|__any\w*|__all\w*|__popc\w*|)"
      R"(__nanosleep|atomic[A-Z]\w*|cvt)\b)");
  int seen = 0;
  for (const fs::path& path : files_of("templates")) {
    const std::string name = fs::relative(path, kRoot).generic_string();
    if (name.rfind("templates/device/", 0) == 0) continue;
    ++seen;
    std::ifstream file(path);
    std::stringstream text;
    text << file.rdbuf();
    std::istringstream lines(without_comments(text.str()));
    std::string line;
    for (int number = 1; std::getline(lines, line); ++number) {
      std::smatch match;
      EXPECT_FALSE(std::regex_search(line, match, kIntrinsic)) << name << ":" << number << ": " << line;
    }
  }
  EXPECT_GT(seen, 0);
}

}  // namespace
