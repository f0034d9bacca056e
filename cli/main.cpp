// ssmjit: describe, emit, compile, verify, bench, tune, table, report, bundle, cache, doctor.
#include <cstdio>
#include <exception>
#include <vector>

#include <fmt/format.h>

#include "cli/verb.h"

namespace {

int exit_code(ssmjit::ErrorKind kind) {
  switch (kind) {
    case ssmjit::ErrorKind::invalid:
      return ssmjit::cli::kWrongUse;
    case ssmjit::ErrorKind::missing:
      return ssmjit::cli::kMissing;
    default:
      return ssmjit::cli::kFellShort;
  }
}

}  // namespace

int main(int argc, char** argv) {
  using namespace ssmjit::cli;
  CLI::App app{"Decode kernels for state-space models: from a description to a tuned launch."};
  app.name("ssmjit");
  app.set_version_flag("--version", SSMJIT_VERSION);
  app.require_subcommand(1);
  app.failure_message(CLI::FailureMessage::help);
  std::vector<Verb> verbs;
  for (const auto& verb : {describe_verb, emit_verb, compile_verb, verify_verb, bench_verb, tune_verb, table_verb,
                           report_verb, bundle_verb, cache_verb, doctor_verb, worker_verb})
    verbs.push_back(verb(app));
  ssmjit::set_log([](ssmjit::LogLevel level, std::string_view text) {
    if (level == ssmjit::LogLevel::warning) say(fmt::format("warning: {}", text));
  });
  try {
    app.parse(argc, argv);
    for (const Verb& verb : verbs)
      if (verb.app->parsed()) {
        const int exit = verb.run();
        if (std::fflush(stdout) == 0) return exit;
        say("ssmjit: the output can't be written");
        return kFellShort;
      }
    return kWrongUse;
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);  // --help, --version
    say(fmt::format("ssmjit: {}\nTry: ssmjit --help, or ssmjit VERB --help", e.what()));
    return kWrongUse;
  } catch (const ssmjit::Error& e) {
    say(fmt::format("ssmjit: {}", e.what()));
    return exit_code(e.kind());
  } catch (const std::exception& e) {
    say(fmt::format("ssmjit: internal error, please report it: {}", e.what()));
    return kFellShort;
  }
}
