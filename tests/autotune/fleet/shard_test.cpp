#include "autotune/fleet/shard.h"

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/error.h>

#include "tests/heuristics/scoped_environment.h"

namespace ssmjit {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// All the variables that launchers set, and no others than a test's.
class Launched {
 public:
  explicit Launched(const std::map<std::string, std::string>& by) {
    for (const char* name :
         {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "PMI_RANK", "PMI_SIZE",
          "MPI_LOCALRANKID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID",
          "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX"}) {
      const auto value = by.find(name);
      set_.push_back(std::make_unique<ScopedEnvironment>(
          name, value == by.end() ? std::nullopt : std::optional<std::string>(value->second)));
    }
  }

 private:
  std::vector<std::unique_ptr<ScopedEnvironment>> set_;
};

std::string automatic(const std::map<std::string, std::string>& by) {
  const Launched launched(by);
  const Shard shard = Shard::parse("auto");
  return std::to_string(shard.index) + "/" + std::to_string(shard.count);
}
std::string refusal(const std::string& text, const std::map<std::string, std::string>& by = {}) {
  const Launched launched(by);
  try {
    Shard::parse(text);
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::invalid);
    return e.what();
  }
  return "none";
}

TEST(Shard, IsReadAsTextAndNamesItsJournal) {
  const Shard shard = Shard::parse("2/7");
  EXPECT_EQ(shard.journal("a/sweep.jsonl"), "a/sweep.jsonl.shard-2-of-7");
  EXPECT_EQ(Shard::parse("0/1").journal("a.jsonl"), "a.jsonl");
  for (const char* bad : {"", "1", "/", "4/4", "-1/4", "1/0", "a/b", "1/2/3", "0x1/4"})
    EXPECT_THAT(refusal(bad), HasSubstr("--shard")) << bad;
}

TEST(Shard, TheShardsOfACountTakeEveryCellOnce) {
  for (int count = 1; count < 6; ++count)
    for (std::size_t cell = 0; cell < 30; ++cell) {
      int takers = 0;
      for (int index = 0; index < count; ++index) takers += Shard{index, count}.takes(cell) ? 1 : 0;
      EXPECT_EQ(takers, 1);
    }
}

TEST(Shard, AutoReadsWhatTheLauncherSets) {
  EXPECT_EQ(automatic({{"OMPI_COMM_WORLD_RANK", "3"}, {"OMPI_COMM_WORLD_SIZE", "4"}}), "3/4");
  EXPECT_EQ(automatic({{"PMI_RANK", "0"}, {"PMI_SIZE", "2"}}), "0/2");
  EXPECT_EQ(automatic({{"RANK", "5"}, {"WORLD_SIZE", "8"}}), "5/8");
  EXPECT_EQ(automatic({{"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "2"}}), "1/2");
  EXPECT_EQ(automatic({{"SLURM_ARRAY_TASK_ID", "2"}, {"SLURM_ARRAY_TASK_COUNT", "3"}}), "2/3");
}

TEST(Shard, RanksOfMpirunInAJobScriptAreNotTheScriptsOwn) {
  EXPECT_EQ(
      automatic(
          {{"OMPI_COMM_WORLD_RANK", "2"}, {"OMPI_COMM_WORLD_SIZE", "4"}, {"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "4"}}),
      "2/4");
}

TEST(Shard, AnArrayMayBeginAnywhereAndCountBySteps) {
  for (const auto& [task, place] : std::map<std::string, std::string>{{"5", "0/3"}, {"15", "1/3"}, {"25", "2/3"}})
    EXPECT_EQ(automatic({{"SLURM_ARRAY_TASK_ID", task},
                         {"SLURM_ARRAY_TASK_COUNT", "3"},
                         {"SLURM_ARRAY_TASK_MIN", "5"},
                         {"SLURM_ARRAY_TASK_MAX", "25"}}),
              place);
}

TEST(Shard, EachTaskOfAnArrayHasItsRanks) {
  EXPECT_EQ(automatic({{"SLURM_ARRAY_TASK_ID", "1"},
                       {"SLURM_ARRAY_TASK_COUNT", "2"},
                       {"SLURM_PROCID", "3"},
                       {"SLURM_NTASKS", "4"}}),
            "7/8");
}

TEST(Shard, AutoWithoutALauncherSaysWhichVariablesItWants) {
  EXPECT_THAT(refusal("auto"),
              AllOf(HasSubstr("SLURM_ARRAY_TASK_ID"), HasSubstr("OMPI_COMM_WORLD_RANK"), HasSubstr("--shard 0/4")));
  EXPECT_THAT(refusal("auto", {{"RANK", "five"}, {"WORLD_SIZE", "8"}}), HasSubstr("RANK: got \"five\""));
  EXPECT_THAT(refusal("auto", {{"RANK", "8"}, {"WORLD_SIZE", "8"}}), HasSubstr("8 of 8"));
}

TEST(Shard, TheGpuGoesByThePlaceOnTheHost) {
  const std::vector<std::map<std::string, std::string>> launchers = {{{"OMPI_COMM_WORLD_LOCAL_RANK", "3"}},
                                                                     {{"MPI_LOCALRANKID", "3"}},
                                                                     {{"LOCAL_RANK", "3"}},
                                                                     {{"SLURM_LOCALID", "3"}}};
  for (const auto& by : launchers) {
    const Launched launched(by);
    EXPECT_EQ(local_rank(), 3);
  }
  const Launched alone({});
  EXPECT_EQ(local_rank(), 0);
}

}  // namespace
}  // namespace ssmjit
