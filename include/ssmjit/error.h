// What went wrong, and whose doing it is.
//
// Every failure of the library is one exception type. The sentence says what was wrong, what it got, what the limit is,
// and the way out; `kind()` says who has to act. The library never prints, exits or aborts.
#pragma once

#include <stdexcept>
#include <string>

namespace ssmjit {

enum class ErrorKind {
  invalid,   // the caller's: a wrong description, plan, tensor, file or argument
  missing,   // the machine lacks something: NVRTC, a driver, a GPU, a tool
  machine,   // the machine failed: a compile, a driver call, a disk
  internal,  // ours: please report it
};

// "invalid", "missing", "machine", "internal".
const char* name(ErrorKind kind);

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& sentence) : std::runtime_error(sentence), kind_(kind) {}
  ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
};

}  // namespace ssmjit
