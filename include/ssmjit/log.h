// Warnings, for who wants them. The library prints nothing; without a callback they are dropped.
#pragma once

#include <functional>
#include <string_view>

namespace ssmjit {

enum class LogLevel { info, warning };

using LogCallback = std::function<void(LogLevel, std::string_view)>;

// Takes the place of the callback before it; an empty one silences. May be called from any thread; the callback runs on
// the thread that has something to say, one call at a time. Never called from a launch.
void set_log(LogCallback callback);

}  // namespace ssmjit
