#include "autotune/fleet/worker_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <thread>
#include <variant>

#include <fmt/chrono.h>
#include <fmt/format.h>

#include "autotune/fleet/wire.h"
#include "codegen/fail.h"
#include "codegen/log.h"

extern char** environ;

namespace ssmjit {
namespace {

constexpr std::size_t kLastWords = 400;
constexpr double kGlance = 0.1;                // seconds between looks at stop()
constexpr std::chrono::milliseconds kReap{2};  // between looks at whether a worker has ended

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void close_if_open(int& file) {
  if (file >= 0) close(file);
  file = -1;
}

// One line of what a process said last.
std::string tidied(std::string_view text) {
  std::string line;
  for (const char c : text)
    if (c == '\n' || c == '\r' || c == '\t')
      line += line.empty() || line.back() == ' ' ? "" : " ";
    else if (static_cast<unsigned char>(c) >= 0x20)
      line += c;
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line;
}

bool on_host(const std::string& stage) { return stage.empty() || stage == "compile" || stage == "verified"; }

}  // namespace

struct WorkerProcess::End {
  enum Kind { done, failed, crashed, hung } kind = done;
  ErrorKind error = ErrorKind::machine;  // of failed
  std::string reason;                    // in words, of all but done
  std::string stage;                     // what it was at
  bool has_plan = false;
  bool compiling = false;  // other plans were compiled meanwhile
  Measurement line;        // of the plan it was at
};

WorkerProcess::WorkerProcess(int device, std::vector<std::string> command, const Watchdog& watchdog, Start when)
    : command_(std::move(command)), watchdog_(watchdog) {
  if (when == Start::now) start();
  try {
    gpu_ = ssmjit::device(device);
  } catch (...) {
    end_process();
    throw;
  }
}

WorkerProcess::~WorkerProcess() { end_process(); }

std::string WorkerProcess::name() const { return fmt::format("GPU {} ({})", gpu_.ordinal, gpu_.name); }

void WorkerProcess::start() {
  if (process_ >= 0 && to_ >= 0) return;
  end_process();  // what is left of one before
  to_send_.clear();
  sent_ = 0;
  heard_.clear();
  last_words_.clear();
  told_.clear();
  int in[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1};
  // A socket: to write to a worker that is gone is an error, and no signal.
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, in) != 0 || pipe2(out, O_CLOEXEC) != 0 ||
      pipe2(err, O_CLOEXEC) != 0) {
    const int why = errno;
    for (int* pair : {in, out, err})
      for (int i = 0; i < 2; ++i) close_if_open(pair[i]);
    fail(ErrorKind::machine, "worker: no pipes: {}", std::strerror(why));
  }
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_adddup2(&files, in[1], 0);
  posix_spawn_file_actions_adddup2(&files, out[1], 1);
  posix_spawn_file_actions_adddup2(&files, err[1], 2);
  // A process group of its own: Ctrl-C on a terminal is for the sweep, and no fault of the plan at work.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  std::vector<char*> arguments;
  for (std::string& part : command_) arguments.push_back(part.data());
  arguments.push_back(nullptr);
  const int why = posix_spawnp(&process_, arguments[0], &files, &attributes, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&files);
  posix_spawnattr_destroy(&attributes);
  close(in[1]);
  close(out[1]);
  close(err[1]);
  to_ = in[0];
  from_ = out[0];
  errors_ = err[0];
  if (why != 0) {
    process_ = -1;
    end_process();
    fail(ErrorKind::machine, "worker: {} can't be started: {}", command_.front(), std::strerror(why));
  }
}

void WorkerProcess::dismiss() {
  close_if_open(to_);
  close_if_open(from_);
  close_if_open(errors_);
  if (process_ >= 0) kill(process_, SIGKILL);
}

void WorkerProcess::end_process() {
  dismiss();
  if (process_ < 0) return;
  int status = 0;
  if (!ended(status))
    warn(fmt::format("{}: worker {} was killed and has not ended in {:.1f} s; it is left to the driver that holds it",
                     name(), process_, watchdog_.end_s));
  process_ = -1;
}

bool WorkerProcess::ended(int& status) {
  const auto start = std::chrono::steady_clock::now();
  while (true) {
    const pid_t got = waitpid(process_, &status, WNOHANG);
    if (got == process_ || (got < 0 && errno != EINTR)) return true;
    if (seconds_since(start) > watchdog_.end_s) return false;
    std::this_thread::sleep_for(kReap);
  }
}

bool WorkerProcess::exchange(double seconds) {
  const bool sending = sent_ < to_send_.size();
  pollfd files[] = {{from_, POLLIN, 0}, {errors_, POLLIN, 0}, {sending ? to_ : -1, POLLOUT, 0}};
  if (poll(files, 3, static_cast<int>(seconds * 1e3)) <= 0) return true;
  if (files[2].revents != 0) {
    const ssize_t n = ::send(to_, to_send_.data() + sent_, to_send_.size() - sent_, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) sent_ += static_cast<std::size_t>(n);
    // One that is gone needs no more, as reading will tell.
    if (sent_ == to_send_.size() || (n < 0 && errno != EAGAIN && errno != EINTR)) {
      to_send_.clear();
      sent_ = 0;
    }
  }
  char some[65536];
  const auto take = [&](int& file, const pollfd& polled, std::string& to) {
    if (polled.revents == 0) return;
    const ssize_t n = read(file, some, sizeof some);
    if (n > 0) to.append(some, static_cast<std::size_t>(n));
    if (n == 0) close_if_open(file);
  };
  take(from_, files[0], heard_);
  take(errors_, files[1], last_words_);
  if (last_words_.size() > kLastWords) last_words_.erase(0, last_words_.size() - kLastWords);
  return from_ >= 0 || errors_ >= 0;
}

std::string WorkerProcess::fate() {
  int status = 0;
  std::string words;
  if (!ended(status)) {
    words = "the worker closed its answers and went on, and was killed";
    end_process();
  } else {
    process_ = -1;
    words = WIFSIGNALED(status)
                ? fmt::format("the worker was ended by signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)))
                : fmt::format("the worker exited with code {}", WEXITSTATUS(status));
  }
  if (const std::string said = tidied(last_words_); !said.empty()) words += "; its last words: " + said;
  return words;
}

WorkerProcess::End WorkerProcess::follow(const Description& description, const TuneOptions& options,
                                         const std::vector<Measurement>& known) {
  const std::string digest = description.kernel_digest();
  for (const Measurement& line : known)
    if (line.kernel_digest == digest && line.nheads == work_items(description, 1) && line.device == gpu_.key &&
        told_.insert(line.key()).second)
      to_send_ += line.json() + '\n';
  wire::Job job{description, options};
  job.options.device = gpu_.ordinal;
  to_send_ += wire::text(job) + '\n';

  End end;
  std::string doing;  // the last line of that kind; read where it is needed
  const auto at_work = [&](End::Kind kind, std::string reason) {
    end.kind = kind;
    end.reason = std::move(reason);
    if (doing.empty()) return end;
    auto at = std::get<wire::AtWork>(wire::read_from_worker(doing));
    end.stage = at.stage;
    end.has_plan = at.has_plan;
    end.compiling = at.compiling;
    end.line = std::move(at.line);
    return end;
  };
  auto heard_at = std::chrono::steady_clock::now();
  std::string stage;
  while (true) {
    if (stopped()) fail(ErrorKind::machine, "{}: stopped", name());
    const std::size_t line_end = heard_.find('\n');
    if (line_end == std::string::npos) {
      const double limit = on_host(stage) ? watchdog_.host_s : watchdog_.device_s;
      const double left = limit - seconds_since(heard_at);
      if (left <= 0) {
        End hung = at_work(End::hung, fmt::format("no sign of life for {:.1f} s", limit));
        end_process();
        return hung;
      }
      const std::size_t heard = heard_.size(), to_send = to_send_.size() - sent_;
      if (!exchange(std::min(left, kGlance))) return at_work(End::crashed, fate());
      if (heard_.size() != heard || to_send_.size() - sent_ != to_send) heard_at = std::chrono::steady_clock::now();
      continue;
    }
    const std::string line = heard_.substr(0, line_end);
    heard_.erase(0, line_end + 1);
    if (line.starts_with(R"({"doing":)")) {
      doing = line;
      stage = line.substr(10, line.find('"', 10) - 10);
      if (options.on_doing) {
        const auto at = std::get<wire::AtWork>(wire::read_from_worker(line));
        options.on_doing({at.stage, at.has_plan ? &at.line : nullptr, at.compiling});
      }
      continue;
    }
    wire::FromWorker said = wire::read_from_worker(line);
    if (const auto* measured = std::get_if<Measurement>(&said)) {
      told_.insert(measured->key());
      deaths_ = 0;
      if (measured->outcome == Outcome::ok || measured->outcome == Outcome::dropped) lost_plans_ = 0;
      if (options.on_measurement) options.on_measurement(*measured);
    } else if (const auto* progress = std::get_if<Progress>(&said)) {
      if (options.progress) options.progress(*progress);
    } else if (const auto* log = std::get_if<wire::Log>(&said)) {
      log->level == LogLevel::warning ? warn(log->text) : info(log->text);
    } else if (const auto* failed = std::get_if<wire::Failed>(&said)) {
      at_work(End::failed, failed->text);
      end.error = failed->kind;
      if (failed->kind == ErrorKind::machine) end_process();
      return end;
    } else if (std::holds_alternative<wire::Done>(said)) {
      return end;
    }
  }
}

void WorkerProcess::run(const Description& description, const TuneOptions& options) {
  TuneOptions job = options;
  std::vector<Measurement> known = options.known;  // and what this run adds
  job.known.clear();
  job.on_measurement = [&](const Measurement& line) {
    known.push_back(line);
    if (options.on_measurement) options.on_measurement(line);
  };
  try {
    while (true) {
      start();
      End end = follow(description, job, known);
      if (end.kind == End::done) return;
      if (end.kind == End::failed && end.error != ErrorKind::machine) throw Error(end.error, end.reason);
      const std::string reason = end.stage.empty() ? end.reason : fmt::format("{}: {}", end.stage, end.reason);
      // Where several plans were compiled meanwhile, any of them may have killed the compiler.
      const bool any =
          end.kind == End::crashed && (end.compiling || end.stage == "compile") && job.compile_threads != 1;
      if (!end.has_plan || any) {
        if (++deaths_ >= kDeathsAtMost)
          fail(ErrorKind::machine,
               "{}: {} workers in a row ended before any work was done; the last: {}. See that the GPU is well "
               "(nvidia-smi) and try `ssmjit doctor`",
               name(), deaths_, reason);
        if (any) job.compile_threads = 1;
        warn(fmt::format("{}: {}; another worker goes on", name(), reason));
        continue;
      }
      Measurement line = end.line;
      line.outcome = end.kind == End::hung ? Outcome::hung : Outcome::crashed;
      line.reason = reason;
      line.measured = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
      deaths_ = 0;
      job.compile_threads = options.compile_threads;
      job.on_measurement(line);
      if (++lost_plans_ >= kPlansAtMost)
        fail(ErrorKind::machine,
             "{}: {} plans in a row took their worker with them; the last: {}. The journal names them", name(),
             lost_plans_, reason);
    }
  } catch (...) {
    end_process();
    throw;
  }
}

}  // namespace ssmjit
