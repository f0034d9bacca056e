#include "cli/verb.h"

#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "codegen/fail.h"

namespace ssmjit::cli {

namespace {
std::mutex say_mutex;
std::function<void(std::string_view)> say_sink;
}  // namespace

void SpecOption::add(CLI::App& app, bool several) {
  CLI::Option* option =
      app.add_option("SPEC", specs, "a model's JSON file, or a shipped model's name; NAME:KERNEL picks a kernel");
  option->required();
  if (!several) option->expected(1);
  app.add_option("--set", sets, "change fields: state=bf16,nheads=64,gate=silu(z)")
      ->take_all()
      ->allow_extra_args(false);
}

std::vector<SpecOption::Kernel> SpecOption::kernels() const {
  std::vector<Kernel> all;
  for (const std::string& spec : specs) {
    Model model = load_model(spec);
    if (model.model.empty()) model.model = spec.substr(0, spec.find(':'));
    change(model, spec);
    for (const auto& [name, description] : model.kernels) all.push_back({model.model + ":" + name, description});
  }
  return all;
}

void SpecOption::change(Model& model, std::string_view spec) const {
  const auto changed = [&](Description description) {
    for (const std::string& set : sets) description.set(set);
    description.validate();
    return description;
  };
  const auto given = model.kernels;
  for (auto& [name, description] : model.kernels) {
    try {
      description = changed(description);
    } catch (const Error& error) {
      if (given.size() == 1) throw;
      std::vector<std::string> takers;
      for (const auto& [other, as_given] : given) {
        try {
          changed(as_given);
          takers.push_back(fmt::format("{}:{}", spec, other));
        } catch (const Error&) {
        }
      }
      fail(error.kind(), "{}:{}: {}\n{} has {} kernels; {}", model.model, name, error.what(), spec, given.size(),
           takers.empty() ? "none of them takes that" : fmt::format("name one as {}", fmt::join(takers, " or ")));
    }
  }
}

SpecOption::Kernel SpecOption::one() const {
  std::vector<Kernel> all = kernels();
  if (all.size() == 1) return all.front();
  for (const Kernel& kernel : all) {
    if (!kernel.label.ends_with(":update")) continue;
    say(fmt::format("{} has {} kernels; taking {}", specs.front(), all.size(), kernel.label));
    return kernel;
  }
  fail(ErrorKind::invalid, "{}: has {} kernels and none is called update; name one as {}:KERNEL", specs.front(),
       all.size(), specs.front());
}

bool is_of_another_text(const Table& table, const Description& description, std::string_view device, const Arch& arch,
                        const Plan& plan) {
  const std::string kernel = description.kernel_digest();
  std::set<std::string> measured;
  for (const TableRow& row : table.rows)
    if (row.device == device && row.kernel_digest == kernel && row.plan == plan && !row.source_digest.empty())
      measured.insert(row.source_digest);
  return !measured.empty() && !measured.contains(emit(description, plan, arch).digest);
}

std::string under_another_driver(const Table& table, const Description& description, std::string_view device,
                                 const Plan& plan, std::string_view driver) {
  const std::string kernel = description.kernel_digest();
  std::set<std::string> measured;
  for (const TableRow& row : table.rows)
    if (row.device == device && row.kernel_digest == kernel && row.plan == plan && !row.driver.empty())
      measured.insert(row.driver);
  if (driver.empty() || measured.empty() || measured.contains(std::string(driver))) return "";
  return fmt::format("; measured under a driver for CUDA {}, this one is for {}", fmt::join(measured, " or "), driver);
}

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  while (true) {
    const std::size_t end = text.find(separator);
    parts.emplace_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

std::vector<int> parse_batches(std::string_view text, std::string_view option) {
  std::vector<int> batches;
  for (const std::string& part : split(text, ',')) {
    int value = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), value);
    if (error != std::errc() || end != part.data() + part.size() || value < 1 || value > 65535)
      fail(ErrorKind::invalid, "{}: got {}; wants numbers from 1 to 65535 with commas between", option,
           in_quotes(text));
    batches.push_back(value);
  }
  return batches;
}

void print(std::string_view line) { fmt::print("{}\n", line); }
void print_json(const Json& object) { fmt::print("{}\n", object.dump(-1, ' ', false, Json::error_handler_t::replace)); }
void say(std::string_view line) {
  const std::lock_guard lock(say_mutex);
  if (say_sink)
    say_sink(line);
  else
    fmt::print(stderr, "{}\n", line);
}
void say_through(std::function<void(std::string_view)> sink) {
  const std::lock_guard lock(say_mutex);
  say_sink = std::move(sink);
}

ProgressCallback progress_line() {
  struct State {
    double last = -10;
    bool terminal = isatty(2) != 0;
  };
  const auto state = std::make_shared<State>();
  return [state](const Progress& p) {
    const bool end = p.done == p.total;
    if (!end && p.elapsed_s - state->last < (state->terminal ? 0.2 : 5.0)) return;
    state->last = p.elapsed_s;
    std::string line = fmt::format("{} of {}  {}  {:.1f} s", p.done, p.total, p.stage, p.elapsed_s);
    if (p.remaining_s > 0) line += fmt::format(", about {:.0f} s left", p.remaining_s);
    if (state->terminal)
      fmt::print(stderr, "\r\033[K{}{}", line, end ? "\n" : "");
    else
      fmt::print(stderr, "{}\n", line);
    std::fflush(stderr);
  };
}

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf())) {
    if (file && std::filesystem::is_regular_file(path) && std::filesystem::file_size(path) == 0) return {};
    fail(ErrorKind::invalid, "{}: can't be read", path);
  }
  return text.str();
}

void write_text(const std::string& path, std::string_view text) {
  std::error_code error;
  const std::filesystem::path target(path);
  if (target.has_parent_path()) std::filesystem::create_directories(target.parent_path(), error);
  const std::string temporary = fmt::format("{}.{}.tmp", path, getpid());
  std::ofstream file(temporary, std::ios::binary);
  file << text;
  file.close();
  if (!file) {
    std::filesystem::remove(temporary, error);
    fail(ErrorKind::invalid, "{}: can't be written", path);
  }
  std::filesystem::rename(temporary, target, error);
  if (error) fail(ErrorKind::invalid, "{}: can't be written: {}", path, error.message());
}

}  // namespace ssmjit::cli
