// Files that the build puts into the library: (name, content), sorted by name.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

namespace ssmjit {

using EmbeddedFiles = std::vector<std::pair<std::string_view, std::string_view>>;

}  // namespace ssmjit
