// What the verbs of the command line share: how each is entered, how it reads a SPEC, how it prints.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <ssmjit/ssmjit.h>
#include <ssmjit/tune.h>

namespace ssmjit::cli {

// The contract of every verb (docs/ARCHITECTURE.md, "The command line").
enum Exit { kOk = 0, kFellShort = 1, kWrongUse = 2, kMissing = 3 };

using Json = nlohmann::ordered_json;

// A verb adds its options to `app` and gives what to run once they are read.
struct Verb {
  CLI::App* app;
  std::function<int()> run;
};
Verb describe_verb(CLI::App& root);
Verb emit_verb(CLI::App& root);
Verb compile_verb(CLI::App& root);
Verb verify_verb(CLI::App& root);
Verb bench_verb(CLI::App& root);
Verb tune_verb(CLI::App& root);
Verb table_verb(CLI::App& root);
Verb report_verb(CLI::App& root);
Verb bundle_verb(CLI::App& root);
Verb cache_verb(CLI::App& root);
Verb doctor_verb(CLI::App& root);
Verb worker_verb(CLI::App& root);

// SPEC and --set, as every verb takes them.
struct SpecOption {
  std::vector<std::string> specs;
  std::vector<std::string> sets;
  void add(CLI::App& app, bool several = false);

  struct Kernel {
    std::string label;  // "nemotron3-super-tp8:update"
    Description description;
  };
  // Every kernel that the SPECs name, with --set applied and validated.
  std::vector<Kernel> kernels() const;
  // Applies --set to every kernel of a model and validates it. Fails: as Description::set() and validate(), for one of
  // several kernels with its name and those that take the change.
  void change(Model& model, std::string_view spec) const;
  // One kernel: the only one, or `update`, with a word on stderr that it was taken.
  Kernel one() const;
};

// Whether rows have this plan for the kernel on the device, and all of them were measured with another text of it than
// is emitted now: their times, and who is the fastest, may have changed.
bool is_of_another_text(const Table& table, const Description& description, std::string_view device, const Arch& arch,
                        const Plan& plan);
// "; measured under a driver for CUDA 13.0, this one is for 12.8" where rows have this plan for the kernel on the
// device and none of them was measured under `driver`; "" elsewhere, and where `driver` is empty: there is none.
std::string under_another_driver(const Table& table, const Description& description, std::string_view device,
                                 const Plan& plan, std::string_view driver);
// "1,8,64" as positive numbers. Fails: ErrorKind::invalid, naming `option`.
std::vector<int> parse_batches(std::string_view text, std::string_view option = "--batches");
std::vector<std::string> split(std::string_view text, char separator);

void print(std::string_view line);    // stdout
void print_json(const Json& object);  // stdout, one line
void say(std::string_view line);      // stderr
// While `sink` is not empty, what is said goes there: a table that is redrawn in place has to know.
void say_through(std::function<void(std::string_view)> sink);
// "12 of 96  compile  3.1 s, about 20 s left" on stderr: in place on a terminal, now and then elsewhere.
ProgressCallback progress_line();

// Fails: ErrorKind::invalid for one that can't be read or written, naming it.
std::string read_text(const std::string& path);
void write_text(const std::string& path, std::string_view text);  // whole or not at all

}  // namespace ssmjit::cli
