#include <ssmjit/error.h>

#include "codegen/fail.h"

namespace ssmjit {

const char* name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::invalid:
      return "invalid";
    case ErrorKind::missing:
      return "missing";
    case ErrorKind::machine:
      return "machine";
    case ErrorKind::internal:
      return "internal";
  }
  return "unknown";
}

std::string in_quotes(std::string_view text) {
  constexpr std::size_t kLongest = 120;
  std::string out = "\"";
  for (char c : text.substr(0, kLongest)) out += c >= 0x20 && c < 0x7f ? c : '?';
  out += text.size() > kLongest ? "...\"" : "\"";
  return out;
}

}  // namespace ssmjit
