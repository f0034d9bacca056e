#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/error.h>
#include <ssmjit/table.h>

#include "tests/heuristics/sample_rows.h"

namespace ssmjit {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

std::string refusal(const std::string& spec) {
  try {
    load_model(spec);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::invalid);
    return error.what();
  }
  ADD_FAILURE() << "accepted: " << spec;
  return "";
}

class ModelFile : public testing::Test {
 protected:
  void SetUp() override {
    Model model;
    model.model = "sample";
    model.kernels = {{"update", sample_description()}, {"wide", sample_description().state(DType::f32)}};
    write(model.json());
  }
  void TearDown() override { fs::remove(path_); }
  void write(const std::string& text) { std::ofstream(path_) << text; }

  std::string path_ = (fs::temp_directory_path() / ("ssmjit_model_" + std::to_string(getpid()) + ".json")).string();
};

TEST_F(ModelFile, IsLoadedWhole) {
  const Model model = load_model(path_);
  EXPECT_EQ(model.model, "sample");
  EXPECT_EQ(model.kernels.size(), 2U);
}

TEST_F(ModelFile, OneKernelIsPickedByName) {
  const Model model = load_model(path_ + ":wide");
  ASSERT_EQ(model.kernels.size(), 1U);
  EXPECT_EQ(model.kernels[0].first, "wide");
  EXPECT_EQ(model.kernels[0].second, sample_description().state(DType::f32));
  EXPECT_EQ(model.model, "sample");
}

TEST_F(ModelFile, AKernelThatThereIsNotIsRefusedWithThoseThatThereAre) {
  const std::string text = refusal(path_ + ":ring");
  EXPECT_THAT(text, HasSubstr("update"));
  EXPECT_THAT(text, HasSubstr("wide"));
  refusal(path_ + ":");
}

TEST_F(ModelFile, ABareDescriptionIsTheKernelUpdate) {
  write(sample_description().json());
  EXPECT_EQ(load_model(path_ + ":update").kernels[0].second, sample_description());
}

TEST_F(ModelFile, ABadFileIsRefusedByItsName) {
  write("{");
  EXPECT_THAT(refusal(path_), HasSubstr(path_));
  EXPECT_THAT(refusal(path_ + ":update"), HasSubstr(path_));
}

TEST(Models, AnUnknownNameIsRefusedWithThoseThatThereAre) {
  const std::string text = refusal("no-such-model");
  EXPECT_THAT(text, HasSubstr("no-such-model"));
  for (const std::string& name : shipped_models()) EXPECT_THAT(text, HasSubstr(name));
  refusal("");
  refusal(":");
  refusal(fs::temp_directory_path().string());
}

TEST(Models, EveryShippedOneIsValid) {
  for (const std::string& name : shipped_models()) {
    const Model model = load_model(name);
    EXPECT_FALSE(model.kernels.empty()) << name;
    EXPECT_FALSE(model.source.empty()) << name;
    for (const auto& [kernel, description] : model.kernels) {
      EXPECT_TRUE(description.problems().empty()) << name << ":" << kernel << ": " << description.problems().front();
      EXPECT_EQ(load_model(name + ":" + kernel).kernels.size(), 1U);
    }
  }
}

}  // namespace
}  // namespace ssmjit
