// A sweep of an update whose kernels run on the host, in processes of their own, and go wrong as a test says.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <ssmjit/cubin.h>
#include <ssmjit/error.h>
#include <ssmjit/source.h>
#include <ssmjit/tune.h>

#include "tests/heuristics/scoped_environment.h"

namespace ssmjit {

// A folder of the test's own.
class InFolder : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "ssmjit-fleet-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  std::string at(const std::string& name) const { return (folder_ / name).string(); }
  std::string read(const std::string& name) const {
    std::ifstream file(at(name), std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
  }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(at(name), std::ios::binary) << text;
  }

  std::filesystem::path folder_;
};

struct PlantedKernel {
  double us = 3;
  std::string fault = {};
  int batch = 0;  // 0: at all
};

class PlantedSweep : public InFolder {
 protected:
  void SetUp() override {
    InFolder::SetUp();
    try {
      nvrtc_version();
    } catch (const Error& e) {
      GTEST_SKIP() << e.what();
    }
    // Shared by the tests, so that each kernel is compiled once.
    cache_ = (std::filesystem::temp_directory_path() / "ssmjit-fleet-cache").string();
    environment_.push_back(std::make_unique<ScopedEnvironment>("SSMJIT_LIBCUDA", SSMJIT_PLANTED_LIBCUDA));
    environment_.push_back(std::make_unique<ScopedEnvironment>("SSMJIT_PLANTED", at("planted.json")));
    environment_.push_back(std::make_unique<ScopedEnvironment>("SSMJIT_CACHE_DIR", cache_));
  }

  static Description update() {
    return mamba2({.nheads = 4, .head_dim = 16, .dstate = 64, .ngroups = 1}).state(DType::bf16);
  }
  // The first plans of the space that are not for dependent launches.
  static std::vector<Plan> plans(std::size_t count) {
    std::vector<Plan> some;
    for (const Plan& plan : plan_space(update(), Arch{})) {
      if (some.size() == count) break;
      if (!plan.early_state) some.push_back(plan);
    }
    return some;
  }
  // What the kernels of `of` cost and do wrong, in their order.
  void plant(const std::vector<Plan>& of, const std::vector<PlantedKernel>& kernels, unsigned pause_us = 0) const {
    nlohmann::json json{{"description", nlohmann::json::parse(update().json())},
                        {"pause_us", pause_us},
                        {"kernels", nlohmann::json::array()}};
    for (std::size_t i = 0; i < of.size(); ++i) {
      nlohmann::json kernel{{"entry", emit(update(), of[i], Arch{}).entries.front().name},
                            {"us", kernels[i % kernels.size()].us}};
      kernel["fault"] = kernels[i % kernels.size()].fault;
      kernel["batch"] = kernels[i % kernels.size()].batch;
      json["kernels"].push_back(kernel);
    }
    write("planted.json", json.dump());
  }

  std::string cache_;
  std::vector<std::unique_ptr<ScopedEnvironment>> environment_;
};

}  // namespace ssmjit
