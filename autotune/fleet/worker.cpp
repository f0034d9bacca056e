#include "autotune/fleet/worker.h"

#include <unistd.h>

#include <cerrno>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>

#include <ssmjit/cubin.h>

#include "autotune/fleet/wire.h"
#include "codegen/fail.h"
#include "jit/gpu.h"

namespace ssmjit {
namespace {

// Lines out, from any thread.
class Voice {
 public:
  explicit Voice(int file) : file_(file) {}
  void say(std::string line) {
    line += '\n';
    const std::lock_guard lock(mutex_);
    std::string_view rest = line;
    while (!rest.empty()) {
      const ssize_t n = write(file_, rest.data(), rest.size());
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) fail(ErrorKind::machine, "worker: nobody listens any more");
      rest.remove_prefix(static_cast<std::size_t>(n));
    }
  }

 private:
  int file_;
  std::mutex mutex_;
};

// The next line of a file; false at its end.
class Lines {
 public:
  explicit Lines(int file) : file_(file) {}
  bool next(std::string& line) {
    while (true) {
      if (const std::size_t end = text_.find('\n', searched_); end != std::string::npos) {
        line = text_.substr(0, end);
        text_.erase(0, end + 1);
        searched_ = 0;
        return true;
      }
      searched_ = text_.size();
      char some[65536];
      const ssize_t n = read(file_, some, sizeof some);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      text_.append(some, static_cast<std::size_t>(n));
    }
  }

 private:
  int file_;
  std::string text_;
  std::size_t searched_ = 0;
};

}  // namespace

void work(int in, int out, std::optional<int> device) {
  Voice voice(out);
  if (device) {
    try {
      use_device(*device);
      nvrtc_version();
    } catch (const std::exception&) {
    }
  }
  set_log([&](LogLevel level, std::string_view text) { voice.say(wire::text(wire::Log{level, std::string(text)})); });
  Lines lines(in);
  std::vector<Measurement> known;
  for (std::string line; lines.next(line);) {
    wire::Failed failed;
    try {
      wire::ToWorker said = wire::read_to_worker(line);
      if (auto* told = std::get_if<Measurement>(&said)) {
        known.push_back(std::move(*told));
        continue;
      }
      auto& job = std::get<wire::Job>(said);
      job.options.known = known;
      job.options.on_doing = [&](const Doing& doing) { voice.say(wire::text(doing)); };
      job.options.on_measurement = [&](const Measurement& m) {
        voice.say(m.json());
        known.push_back(m);
      };
      job.options.progress = [&](const Progress& progress) { voice.say(wire::text(progress)); };
      sweep(job.description, job.options);
      voice.say(wire::text(wire::Done{}));
      continue;
    } catch (const Error& e) {
      failed = {e.kind(), e.what()};
    } catch (const std::exception& e) {
      failed = {ErrorKind::internal, e.what()};
    }
    voice.say(wire::text(failed));
    if (failed.kind == ErrorKind::machine) break;
  }
  set_log({});
}

}  // namespace ssmjit
