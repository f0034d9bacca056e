#include "codegen/log.h"

#include <memory>
#include <mutex>
#include <utility>

#include <ssmjit/log.h>

namespace ssmjit {
namespace {

struct Sink {
  // Recursive, so that a callback may itself call the library, or set_log.
  std::recursive_mutex mutex;
  std::shared_ptr<const LogCallback> callback;
};

// Never destroyed: destructors of other statics may still warn.
Sink& sink() {
  static Sink* const only = new Sink;
  return *only;
}

void say(LogLevel level, std::string_view sentence) {
  std::lock_guard lock(sink().mutex);
  const std::shared_ptr<const LogCallback> callback = sink().callback;
  if (callback == nullptr) return;
  try {
    (*callback)(level, sentence);
  } catch (...) {  // a log that fails must not turn a warning into an error
  }
}

}  // namespace

void set_log(LogCallback callback) {
  std::shared_ptr<const LogCallback> next;
  if (callback) next = std::make_shared<const LogCallback>(std::move(callback));
  std::lock_guard lock(sink().mutex);
  sink().callback = std::move(next);
}

void warn(std::string_view sentence) { say(LogLevel::warning, sentence); }
void info(std::string_view sentence) { say(LogLevel::info, sentence); }

}  // namespace ssmjit
