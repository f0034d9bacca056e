#include "jit/manifest.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>

#include <nlohmann/json.hpp>

#include <ssmjit/error.h>

#include "codegen/fail.h"
#include "heuristics/files.h"

namespace ssmjit {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr int kSchema = 1;
constexpr const char* kManifest = "bundle.json";
constexpr const char* kTable = "table.json";

std::string path_of(const std::string& folder, const char* name) { return (fs::path(folder) / name).string(); }

std::string text_of(const std::string& folder, const char* name) {
  const std::string path = path_of(folder, name);
  std::optional<std::string> text = read_file(path);
  if (!text) fail(ErrorKind::invalid, "bundle: {} can't be read; make the bundle anew with `ssmjit bundle`", path);
  return *std::move(text);
}

void write_whole(const std::string& folder, const char* name, const std::string& text) {
  const std::string path = path_of(folder, name), temporary = fmt::format("{}.{}.tmp", path, getpid());
  std::ofstream file(temporary, std::ios::binary);
  file << text;
  file.close();
  std::error_code error;
  if (file) {
    fs::rename(temporary, path, error);
    if (!error) return;
  }
  const std::string reason = error ? error.message() : std::strerror(errno);
  fs::remove(temporary, error);
  fail(ErrorKind::machine, "bundle: {} can't be written: {}", path, reason);
}

}  // namespace

bool has_manifest(const std::string& folder) {
  std::error_code error;
  return fs::is_regular_file(path_of(folder, kManifest), error);
}

Manifest read_manifest(const std::string& folder) {
  const std::string path = path_of(folder, kManifest);
  Manifest manifest;
  try {
    const Json json = Json::parse(text_of(folder, kManifest));
    const int schema = json.at("schema").get<int>();
    if (schema != kSchema)
      fail(ErrorKind::invalid, "bundle: {} is of schema {}; wants {}: make the bundle anew with this version", path,
           schema, kSchema);
    json.at("kernels").get_to(manifest.kernel_digests);
    for (const Json& item : json.at("files")) {
      ManifestFile& file = manifest.files.emplace_back();
      item.at("source").get_to(file.source);
      item.at("name").get_to(file.facts.name);
      item.at("label").get_to(file.facts.label);
      item.at("plan").get_to(file.facts.plan);
      item.at("arch").get_to(file.facts.arch);
      item.at("nvrtc").get_to(file.facts.nvrtc);
      item.at("bytes").get_to(file.facts.bytes);
      item.at("registers").get_to(file.facts.registers);
      item.at("spill_bytes").get_to(file.facts.spill_bytes);
      if (fs::path(file.facts.name).filename() != file.facts.name)
        fail(ErrorKind::invalid, "bundle: {} names the file {}; wants one in the bundle's own folder", path,
             in_quotes(file.facts.name));
    }
  } catch (const Json::exception& error) {
    fail(ErrorKind::invalid, "bundle: {} can't be read ({}); make the bundle anew with `ssmjit bundle`", path,
         error.what());
  }
  return manifest;
}

Table read_bundle_table(const std::string& folder) {
  try {
    return Table::from_json(text_of(folder, kTable));
  } catch (const Error& error) {
    fail(error.kind(), "bundle: {}: {}", path_of(folder, kTable), error.what());
  }
}

void write_manifest(const std::string& folder, const Manifest& manifest) {
  std::string text = fmt::format("{{\"schema\": {}, \"ssmjit\": \"{}\", \"kernels\": {},\n\"files\": [\n", kSchema,
                                 SSMJIT_VERSION, Json(manifest.kernel_digests).dump());
  for (std::size_t i = 0; i < manifest.files.size(); ++i) {
    const ManifestFile& file = manifest.files[i];
    text += Json{{"name", file.facts.name},
                 {"label", file.facts.label},
                 {"arch", file.facts.arch},
                 {"plan", file.facts.plan},
                 {"source", file.source},
                 {"nvrtc", file.facts.nvrtc},
                 {"bytes", file.facts.bytes},
                 {"registers", file.facts.registers},
                 {"spill_bytes", file.facts.spill_bytes}}
                .dump(-1, ' ', false, Json::error_handler_t::replace) +
            (i + 1 < manifest.files.size() ? ",\n" : "\n");
  }
  write_whole(folder, kManifest, text + "]}\n");
}

void write_bundle_table(const std::string& folder, const Table& table) { write_whole(folder, kTable, table.json()); }

}  // namespace ssmjit
