#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include <gtest/gtest.h>

#include <ssmjit/error.h>

#include "codegen/embedded_templates.h"
#include "heuristics/embedded_models.h"
#include "heuristics/embedded_tables.h"

namespace ssmjit {
namespace {

namespace fs = std::filesystem;

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void expect_equal_to_the_files(const EmbeddedFiles& files, const fs::path& root) {
  for (const auto& [name, content] : files) {
    EXPECT_EQ(content, read(root / name)) << name;
  }
}

TEST(Embedded, FilesAreHeldByteForByte) {
  const fs::path source = SSMJIT_SOURCE_DIR;
  EXPECT_FALSE(embedded_templates().empty());
  expect_equal_to_the_files(embedded_templates(), source / "templates");
  expect_equal_to_the_files(embedded_models(), source / "examples/models");
  expect_equal_to_the_files(embedded_tables(), source / "heuristics/tables");
}

TEST(Embedded, ATemplateIsFoundByItsNameBelowTheFolder) {
  EXPECT_EQ(template_file("device/basic.cuh"), read(fs::path(SSMJIT_SOURCE_DIR) / "templates/device/basic.cuh"));
}

TEST(Embedded, ATemplateThatThereIsNotIsOurBug) {
  try {
    template_file("none.cuh");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::internal);
    EXPECT_NE(std::string(error.what()).find("none.cuh"), std::string::npos);
  }
}

}  // namespace
}  // namespace ssmjit
