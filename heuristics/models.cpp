#include <algorithm>
#include <filesystem>
#include <optional>

#include <fmt/format.h>

#include <ssmjit/error.h>
#include <ssmjit/table.h>

#include "codegen/fail.h"
#include "heuristics/embedded_models.h"
#include "heuristics/files.h"

namespace ssmjit {
namespace {

constexpr std::string_view kSuffix = ".json";

std::string_view stem(std::string_view file) {
  return file.ends_with(kSuffix) ? file.substr(0, file.size() - kSuffix.size()) : file;
}

Model parse(std::string_view name, std::string_view text) {
  try {
    return Model::from_json(text);
  } catch (const Error& error) {
    fail(error.kind(), "{}: {}", name, error.what());
  }
}

// The model that `name` alone stands for, if any. A file wins over a shipped model of the same name.
std::optional<Model> find(std::string_view name) {
  std::error_code error;
  const std::filesystem::path path(name);
  if (!name.empty() && std::filesystem::exists(path, error) && !std::filesystem::is_directory(path, error)) {
    const std::optional<std::string> text = read_file(path);
    if (!text) fail(ErrorKind::machine, "{}: the file cannot be read", name);
    return parse(name, *text);
  }
  for (const auto& [file, content] : embedded_models()) {
    if (stem(file) == name) return parse(name, content);
  }
  return std::nullopt;
}

}  // namespace

std::vector<std::string> shipped_models() {
  std::vector<std::string> names;
  for (const auto& [file, content] : embedded_models()) names.emplace_back(stem(file));
  return names;
}

Model load_model(std::string_view spec) {
  if (std::optional<Model> whole = find(spec)) return *std::move(whole);
  const std::size_t colon = spec.rfind(':');
  if (colon != std::string_view::npos) {
    const std::string_view kernel = spec.substr(colon + 1);
    if (std::optional<Model> model = find(spec.substr(0, colon))) {
      model->kernels = {{std::string(kernel), model->kernel(kernel)}};
      return *std::move(model);
    }
  }
  const std::vector<std::string> names = shipped_models();
  fail(ErrorKind::invalid, "SPEC: got {}, which is neither a file nor a shipped model ({})", in_quotes(spec),
       names.empty() ? "none is shipped" : fmt::format("{}", fmt::join(names, ", ")));
}

}  // namespace ssmjit
