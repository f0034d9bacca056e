#include <poll.h>
#include <unistd.h>

#include <memory>
#include <optional>
#include <thread>

#include "autotune/fleet/worker.h"
#include "cli/verb.h"

namespace ssmjit::cli {
namespace {

// Ends this process when nobody can send jobs any more, at whatever it is.
void watch_jobs() {
  pollfd jobs{STDIN_FILENO, 0, 0};
  while (poll(&jobs, 1, -1) < 0) {  // of no events: until the other end is gone
  }
  _exit(kOk);
}

int run(std::optional<int> device) {
  // Whoever asked for measurements may be killed while a kernel hangs here. A signal at the parent's death would come
  // when the thread ends that started this process.
  std::thread(watch_jobs).detach();
  // What a kernel or a library prints must not come between the answers.
  const int answers = dup(STDOUT_FILENO);
  dup2(STDERR_FILENO, STDOUT_FILENO);
  work(STDIN_FILENO, answers, device);
  return kOk;
}

}  // namespace

Verb worker_verb(CLI::App& root) {
  CLI::App* app = root.add_subcommand("worker", "measures for `tune`: jobs on stdin, answers on stdout");
  app->group("");  // in no help: not for people
  const auto device = std::make_shared<std::optional<int>>();
  app->add_option("--device", *device, "the GPU of the jobs to come");
  return {app, [device] { return run(*device); }};
}

}  // namespace ssmjit::cli
