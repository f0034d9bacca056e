// The one place where the library's errors are made.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include <fmt/core.h>

#include <ssmjit/error.h>

namespace ssmjit {

template <typename... Args>
[[noreturn]] void fail(ErrorKind kind, fmt::format_string<Args...> sentence, Args&&... args) {
  throw Error(kind, fmt::format(sentence, std::forward<Args>(args)...));
}

// Text of a user in double quotes, fit for a one-line sentence: cut after 120 bytes, printable ASCII only.
std::string in_quotes(std::string_view text);

}  // namespace ssmjit
