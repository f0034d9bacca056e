#pragma once

#include <filesystem>
#include <optional>
#include <string>

namespace ssmjit {

// The whole file, or nothing where it can't be read.
std::optional<std::string> read_file(const std::filesystem::path& path);

}  // namespace ssmjit
