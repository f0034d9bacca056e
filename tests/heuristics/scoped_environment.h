// Sets or unsets an environment variable for the length of a test.
#pragma once

#include <cstdlib>
#include <optional>
#include <string>

namespace ssmjit {

class ScopedEnvironment {
 public:
  ScopedEnvironment(const char* variable, const std::optional<std::string>& value) : variable_(variable) {
    if (const char* before = std::getenv(variable)) before_ = before;
    set(value);
  }
  ~ScopedEnvironment() { set(before_); }
  ScopedEnvironment(const ScopedEnvironment&) = delete;
  ScopedEnvironment& operator=(const ScopedEnvironment&) = delete;

 private:
  void set(const std::optional<std::string>& value) {
    value ? setenv(variable_, value->c_str(), 1) : unsetenv(variable_);
  }
  const char* variable_;
  std::optional<std::string> before_;
};

}  // namespace ssmjit
