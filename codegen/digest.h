#pragma once

#include <string>
#include <string_view>

namespace ssmjit {

// 16 hex digits of XXH3 (64 bits): the same on every machine, for keys of content, not for secrets.
std::string digest16(std::string_view content);

}  // namespace ssmjit
