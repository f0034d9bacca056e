#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "autotune/fleet/worker.h"
#include "cli/verb.h"

namespace ssmjit::cli {
namespace {

int run() {
  // Whoever asked for measurements may be killed while a kernel hangs here.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  // What a kernel or a library prints must not come between the answers.
  const int answers = dup(STDOUT_FILENO);
  dup2(STDERR_FILENO, STDOUT_FILENO);
  work(STDIN_FILENO, answers);
  return kOk;
}

}  // namespace

Verb worker_verb(CLI::App& root) {
  CLI::App* app = root.add_subcommand("worker", "measures for `tune`: jobs on stdin, answers on stdout");
  app->group("");  // in no help: not for people
  return {app, run};
}

}  // namespace ssmjit::cli
