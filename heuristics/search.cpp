#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <iterator>

#include <ssmjit/error.h>
#include <ssmjit/table.h>

#include "codegen/fail.h"
#include "codegen/log.h"
#include "heuristics/embedded_tables.h"
#include "heuristics/files.h"
#include "heuristics/table_files.h"

namespace ssmjit {
namespace {

namespace fs = std::filesystem;

// A variable that is set to nothing counts as not set.
std::string environment(const char* variable) {
  const char* value = std::getenv(variable);
  return value == nullptr ? "" : value;
}

// Merges what stands in `path`, a file or a folder. Rows of the first of two files with the same key win.
void merge_from(Table& table, const fs::path& path) {
  std::vector<fs::path> files;
  std::error_code error;
  if (fs::is_directory(path, error)) {
    fs::recursive_directory_iterator entry(path, fs::directory_options::skip_permission_denied, error);
    for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
      std::error_code unreadable;
      if (entry->path().extension() == ".json" && entry->is_regular_file(unreadable)) files.push_back(entry->path());
    }
    if (error) warn(fmt::format("tables: cannot list {}: {}", path.string(), error.message()));
    std::sort(files.begin(), files.end(), std::greater<>());
  } else {
    files.push_back(path);
  }
  for (const fs::path& file : files) {
    const std::optional<std::string> text = read_file(file);
    if (!text) {
      warn(fmt::format("tables: passed over {}, which cannot be read", file.string()));
      continue;
    }
    try {
      table.merge(Table::from_json(*text));
    } catch (const Error& bad) {
      warn(fmt::format("tables: passed over {}: {}", file.string(), bad.what()));
    }
  }
}

}  // namespace

const Table& shipped_tables() {
  static const Table tables = [] {
    Table all;
    for (const auto& [file, content] : embedded_tables()) {
      try {
        all.merge(Table::from_json(content));
      } catch (const Error& error) {
        fail(ErrorKind::internal, "shipped table {}: {}", file, error.what());
      }
    }
    return all;
  }();
  return tables;
}

std::string user_table_dir() {
  if (const std::string data = environment("XDG_DATA_HOME"); !data.empty()) {
    return (fs::path(data) / "ssmjit/tables").string();
  }
  if (const std::string home = environment("HOME"); !home.empty()) {
    return (fs::path(home) / ".local/share/ssmjit/tables").string();
  }
  return "";
}

Table load_tables() {
  Table table = shipped_tables();
  const std::string user = user_table_dir();
  std::error_code error;
  if (!user.empty() && fs::exists(user, error)) merge_from(table, user);

  merge_tables(table, paths_in("SSMJIT_TABLES"));
  return table;
}

void merge_tables(Table& table, const std::vector<std::string>& paths) {
  std::for_each(paths.rbegin(), paths.rend(), [&](const std::string& path) { merge_from(table, path); });
}

std::vector<std::string> paths_in(const char* variable) {
  std::vector<std::string> paths;
  const std::string list = environment(variable);
  for (std::size_t begin = 0; begin <= list.size();) {
    const std::size_t end = std::min(list.find(':', begin), list.size());
    if (end > begin) paths.push_back(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return paths;
}

FloorModel floor_model(std::string_view device_key) {
  // A line through the floors of the shipped tables, PDL off: 0.5 MB in 1.73 us, 4.3 GB in 1006 us.
  if (device_key == "h200") return {.launch_us = 1.57, .bytes_per_us = 4.24e6};
  return {};
}

double floor_us(const FloorModel& model, const Bytes& bytes) {
  return model.bytes_per_us > 0 ? model.launch_us + static_cast<double>(bytes.total()) / model.bytes_per_us : 0;
}

}  // namespace ssmjit
