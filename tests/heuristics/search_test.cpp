#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/error.h>
#include <ssmjit/log.h>
#include <ssmjit/table.h>

#include "tests/heuristics/sample_rows.h"
#include "tests/heuristics/scoped_environment.h"

namespace ssmjit {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

// A scratch folder; the user's folder and SSMJIT_TABLES point into it, and warnings are kept.
class TableSearch : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directories(user_);
    set_log([this](LogLevel, std::string_view sentence) { warnings_.emplace_back(sentence); });
  }
  void TearDown() override {
    set_log({});
    fs::remove_all(root_);
  }
  fs::path write(const fs::path& name, const std::string& text) {
    fs::create_directories((root_ / name).parent_path());
    std::ofstream(root_ / name) << text;
    return root_ / name;
  }
  // The rows of the sample description that were found, by their us.
  std::vector<double> found() {
    std::vector<double> us;
    for (const TableRow& row : load_tables().rows) {
      if (row.device == kDevice) us.push_back(row.us);
    }
    return us;
  }
  static std::string table(double us, std::int64_t total_heads = 16) {
    return Table{{sample_row(total_heads, us, 0, kDevice)}}.json();
  }

  static constexpr const char* kDevice = "made-up-gpu";
  fs::path root_ = fs::temp_directory_path() / ("ssmjit_search_" + std::to_string(getpid()));
  fs::path user_ = root_ / "data/ssmjit/tables";
  ScopedEnvironment data_{"XDG_DATA_HOME", (root_ / "data").string()};
  ScopedEnvironment tables_{"SSMJIT_TABLES", std::nullopt};
  std::vector<std::string> warnings_;
};

TEST_F(TableSearch, WithoutAnyOtherTheShippedTablesAreThere) {
  EXPECT_EQ(load_tables().rows, shipped_tables().rows);
  EXPECT_TRUE(warnings_.empty());
}

TEST_F(TableSearch, TheUsersFolderWinsOverShippedAndIsReadInDepth) {
  write("data/ssmjit/tables/h200/update.json", table(3));
  write("data/ssmjit/tables/notes.txt", "not a table");
  EXPECT_THAT(found(), ElementsAre(3));
  EXPECT_TRUE(warnings_.empty());
}

TEST_F(TableSearch, NamedFilesWinOverTheUsersFolderTheFirstOverTheLast) {
  write("data/ssmjit/tables/a.json", table(1, 16));
  write("data/ssmjit/tables/b.json", table(2, 32));
  const fs::path first = write("first.json", table(3, 16));
  write("folder/second.json", table(4, 16));
  write("folder/third.json", table(5, 64));
  const ScopedEnvironment named("SSMJIT_TABLES", first.string() + "::" + (root_ / "folder").string() + ":");
  EXPECT_THAT(found(), ElementsAre(3, 2, 5));
}

TEST_F(TableSearch, WhatCannotBeReadIsWarnedAboutAndPassedOver) {
  write("data/ssmjit/tables/good.json", table(1));
  write("data/ssmjit/tables/torn.json", table(2).substr(0, 100));
  const ScopedEnvironment named("SSMJIT_TABLES", (root_ / "nowhere.json").string());
  EXPECT_THAT(found(), ElementsAre(1));
  ASSERT_EQ(warnings_.size(), 2U);
  EXPECT_THAT(warnings_[0], HasSubstr("torn.json"));
  EXPECT_THAT(warnings_[1], HasSubstr("nowhere.json"));
}

TEST_F(TableSearch, TheUsersFolderFollowsTheEnvironment) {
  EXPECT_EQ(user_table_dir(), user_.string());
  const ScopedEnvironment data("XDG_DATA_HOME", "");
  {
    const ScopedEnvironment home("HOME", "/home/someone");
    EXPECT_EQ(user_table_dir(), "/home/someone/.local/share/ssmjit/tables");
  }
  const ScopedEnvironment home("HOME", std::nullopt);
  EXPECT_EQ(user_table_dir(), "");
  EXPECT_EQ(load_tables().rows, shipped_tables().rows);
}

TEST(Shipped, EveryRowIsForADeviceThatIsKnown) {
  for (const TableRow& row : shipped_tables().rows) {
    EXPECT_NO_THROW(arch_of_device_key(row.device)) << row.device;
    EXPECT_GT(row.us, 0);
    if (row.floor_us > 0) {
      EXPECT_LE(row.floor_us, row.us) << row.kernel << " at " << row.total_heads;
    }
  }
}

TEST(Shipped, EveryKernelOfEveryModelIsAnsweredOnAnH200FromRowsThatAreMeasuredThereOrMarkedAsPredicted) {
  for (const std::string& model : shipped_models())
    for (const auto& [name, description] : load_model(model).kernels)
      for (const int batch : {1, 8, 256}) {
        const Choice choice =
            lookup(shipped_tables(), description, "h200", arch_of_device_key("h200"), batch, PdlMode::off);
        EXPECT_NE(choice.why, Why::fallback) << model << ":" << name << ", batch " << batch;
        EXPECT_NE(choice.why, Why::other_device) << model << ":" << name << ", batch " << batch;
        EXPECT_GT(choice.expected_us, 0);
      }
}

TEST(Devices, HaveAnArch) {
  EXPECT_EQ(arch_of_device_key("h200").text(), "sm_90a");
  EXPECT_EQ(arch_of_device_key("h100").text(), "sm_90a");
  EXPECT_EQ(arch_of_device_key("b200").text(), "sm_100a");
  EXPECT_EQ(arch_of_device_key("a100").text(), "sm_80");
  try {
    arch_of_device_key("H200 ");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::invalid);
    EXPECT_THAT(error.what(), HasSubstr("h200"));
  }
}

TEST(Floor, OfTheH200IsThatOfTheShippedTablesWithinTenPercent) {
  const Model model = load_model("nemotron3-super-tp8");
  const Description& description = model.kernel("update");
  int rows = 0;
  for (const TableRow& row : shipped_tables().rows) {
    if (row.device != "h200" || row.pdl != PdlMode::off || row.kernel_digest != description.kernel_digest()) continue;
    const Bytes bytes = bytes_moved(description, static_cast<int>(row.total_heads / description.nheads));
    EXPECT_NEAR(floor_us(floor_model("h200"), bytes), row.floor_us, 0.1 * row.floor_us) << row.total_heads;
    ++rows;
  }
  EXPECT_GE(rows, 6);
}

TEST(Floor, OfAnUnknownDeviceIsUnknown) {
  EXPECT_EQ(floor_model("a-gpu").bytes_per_us, 0);
  EXPECT_EQ(floor_us(floor_model("a-gpu"), Bytes{.read = 1000}), 0);
}

}  // namespace
}  // namespace ssmjit
