// Runs tests/reject/*.json: inputs that must fail, with the kind and parts of the sentence.
//
//   {"reader": "description", "input": {...} or "text": "...", "kind": "invalid", "contains": ["...", ...]}
//
// reader: description (read, then validated; the default), model, hf (with "tp"), expression, set (onto a valid
// description), dtype.
#include <cctype>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <ssmjit/description.h>
#include <ssmjit/error.h>

namespace ssmjit {
namespace {

using Json = nlohmann::json;

std::vector<std::filesystem::path> reject_files() {
  std::vector<std::filesystem::path> out;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(SSMJIT_SOURCE_DIR) / "tests" / "reject")) {
    if (entry.path().extension() == ".json") out.push_back(entry.path());
  }
  return out;
}

void read(const std::string& reader, const std::string& text, int tp) {
  if (reader == "description") {
    Description::from_json(text).validate();
  } else if (reader == "model") {
    for (const auto& [name, description] : Model::from_json(text).kernels) description.validate();
  } else if (reader == "hf") {
    from_hf(text, tp);
  } else if (reader == "expression") {
    Expr::parse(text);
  } else if (reader == "set") {
    Description description = mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1});
    description.set(text);
    description.validate();
  } else if (reader == "dtype") {
    parse_dtype(text);
  } else {
    FAIL() << "no reader " << reader;
  }
}

class Reject : public testing::TestWithParam<std::filesystem::path> {};

TEST_P(Reject, FailsAsTheFileSays) {
  std::ifstream file(GetParam());
  const Json test = Json::parse(file);
  const std::string text = test.contains("input") ? test["input"].dump() : test.at("text").get<std::string>();
  try {
    read(test.value("reader", "description"), text, test.value("tp", 1));
    FAIL() << "not refused";
  } catch (const Error& error) {
    EXPECT_EQ(name(error.kind()), test.at("kind").get<std::string>());
    const std::string sentence = error.what();
    for (const Json& part : test.at("contains")) {
      EXPECT_NE(sentence.find(part.get<std::string>()), std::string::npos) << part << " is not in:\n" << sentence;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Files, Reject, testing::ValuesIn(reject_files()), [](const auto& info) {
  std::string out = info.param.stem().string();
  for (char& c : out) c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
  return out;
});

}  // namespace
}  // namespace ssmjit
