// `ssmjit tune` as a user meets it: killed, resumed, shared, out of disk.
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <random>
#include <set>
#include <thread>

#include <gmock/gmock.h>

#include <ssmjit/measurement.h>

#include "autotune/sweep_lines.h"
#include "tests/autotune/fleet/planted.h"

extern char** environ;

namespace ssmjit {
namespace {

using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

const std::string kRecorded = std::string(SSMJIT_SOURCE_DIR) + "/tests/vectors/journals/fleet-super-ring-h200.jsonl";
const std::string kReplay = "nemotron3-super-tp8:ring --set state=bf16 --replay '" + kRecorded + "'";

struct Ran {
  int exit = -1;
  std::string out, err;
};

class Tune : public PlantedSweep {
 protected:
  void SetUp() override {
    PlantedSweep::SetUp();
    if (IsSkipped()) return;
    write("update.json", update().json());
    plant(plan_space(update(), Arch{}), {{3}, {2}, {4}}, 100);
  }
  // `line` as a shell reads it, in the test's folder; $SSMJIT is the executable.
  Ran shell(const std::string& line) const {
    const std::string command =
        "cd '" + folder_.string() + "' && SSMJIT='" SSMJIT_CLI_PATH "' && { " + line + " ; } > .out 2> .err";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read(".out"), read(".err")};
  }
  // Every whole line by key, with how often it is there.
  std::map<std::string, int> keys(const std::string& journal) const {
    std::map<std::string, int> seen;
    std::istringstream text(read(journal));
    for (std::string line; std::getline(text, line);) {
      if (text.eof()) break;  // torn
      ++seen[Measurement::from_json(line).key()];
    }
    return seen;
  }
};

const std::string kSweep = "tune update.json --sample 5 --batches 9,10,11,12,13,14 --journal j.jsonl -o t.json";

TEST_F(Tune, Row27_KilledAtAnyMomentAndResumedLosesNothingAndDoesNothingTwice) {
  // Once to the end, for the kernels to be compiled and what there is to measure.
  ASSERT_EQ(shell("$SSMJIT " + kSweep).exit, 0) << read(".err");
  const std::map<std::string, int> whole = keys("j.jsonl");
  std::filesystem::remove(at("j.jsonl"));
  std::mt19937 random(7);
  std::map<std::string, int> before;
  int kills = 0;
  for (int turn = 0; turn < 60; ++turn) {
    pid_t process = -1;
    const std::string line =
        "cd '" + folder_.string() + "' && exec '" SSMJIT_CLI_PATH "' " + kSweep + " > .out 2> .err";
    std::string shell_path = "/bin/sh", dash_c = "-c", text = line;
    char* const arguments[] = {shell_path.data(), dash_c.data(), text.data(), nullptr};
    ASSERT_EQ(posix_spawn(&process, "/bin/sh", nullptr, nullptr, arguments, environ), 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(50 + random() % 250));
    kill(process, SIGKILL);
    int status = 0;
    ASSERT_EQ(waitpid(process, &status, 0), process);
    const std::map<std::string, int> after = keys("j.jsonl");
    for (const auto& [key, times] : before) ASSERT_TRUE(after.contains(key)) << "lost: " << key;
    for (const auto& [key, times] : after) ASSERT_EQ(times, 1) << "twice: " << key;
    before = after;
    if (!WIFSIGNALED(status)) {
      EXPECT_EQ(WEXITSTATUS(status), 0) << read(".err");
      break;
    }
    ++kills;
  }
  EXPECT_GT(kills, 2);
  ASSERT_EQ(shell("$SSMJIT " + kSweep).exit, 0) << read(".err");
  const std::map<std::string, int> resumed = keys("j.jsonl");
  EXPECT_EQ(resumed.size(), whole.size());
  for (const auto& [key, times] : resumed) {
    EXPECT_EQ(times, 1) << key;
    EXPECT_TRUE(whole.contains(key)) << key;
  }
}

TEST_F(Tune, Row27_InterruptedSaysHowToGoOnLeavesNoWorkerAndChargesNoPlan) {
  ASSERT_EQ(shell("$SSMJIT " + kSweep).exit, 0) << read(".err");
  const std::map<std::string, int> whole = keys("j.jsonl");
  for (const auto& [signal, exit] : {std::pair(SIGINT, 130), std::pair(SIGTERM, 143)}) {
    std::filesystem::remove(at("j.jsonl"));
    pid_t process = -1;
    // The shell that is left behind has the process group that a terminal's Ctrl-C goes to.
    const std::string line =
        "cd '" + folder_.string() + "' && exec '" SSMJIT_CLI_PATH "' " + kSweep + " > .out 2> .err";
    std::string shell_path = "/bin/sh", dash_c = "-c", text = line;
    char* const arguments[] = {shell_path.data(), dash_c.data(), text.data(), nullptr};
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
    ASSERT_EQ(posix_spawn(&process, "/bin/sh", nullptr, &attributes, arguments, environ), 0);
    posix_spawnattr_destroy(&attributes);
    for (int i = 0; i < 3000 && keys("j.jsonl").size() < 7; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::ifstream children("/proc/" + std::to_string(process) + "/task/" + std::to_string(process) + "/children");
    std::vector<pid_t> workers;
    for (pid_t worker = 0; children >> worker;) workers.push_back(worker);
    kill(-process, signal);
    int status = 0;
    ASSERT_EQ(waitpid(process, &status, 0), process);
    ASSERT_TRUE(WIFEXITED(status)) << "ended by signal " << WTERMSIG(status);
    EXPECT_EQ(WEXITSTATUS(status), exit) << read(".err");
    const std::map<std::string, int> kept = keys("j.jsonl");
    EXPECT_LT(kept.size(), whole.size());
    EXPECT_THAT(read(".err"), HasSubstr("interrupted; " + std::to_string(kept.size()) +
                                        " measurements are in j.jsonl, and the same command goes on from there"));
    EXPECT_EQ(read("j.jsonl").back(), '\n');
    EXPECT_THAT(read("j.jsonl"), Not(HasSubstr("crashed")));
    for (const pid_t worker : workers) EXPECT_EQ(kill(worker, 0), -1) << "it lives on";
    ASSERT_EQ(shell("$SSMJIT " + kSweep).exit, 0);
    const std::map<std::string, int> resumed = keys("j.jsonl");
    EXPECT_EQ(resumed, whole) << "each line once, and those that an undisturbed sweep has";
  }
}

TEST_F(Tune, AWorkerDiesWithTheSweepThatStartedIt) {
  plant(plan_space(update(), Arch{}), {{1, "hang"}});
  const Ran ran = shell("$SSMJIT " + kSweep + " & sleep 1.5; cat /proc/$!/task/*/children; kill -9 $!; sleep 0.5");
  ASSERT_FALSE(ran.out.empty());
  std::ifstream file("/proc/" + std::to_string(std::stoi(ran.out)) + "/stat");
  std::string stat;
  std::getline(file, stat);
  EXPECT_THAT(stat, AnyOf(IsEmpty(), HasSubstr(") Z "))) << "it lives on";
}

TEST_F(Tune, ASecondSweepOnOneJournalIsRefusedAndTheFirstGoesOn) {
  const Ran ran = shell("$SSMJIT " + kSweep + " 2>first & first=$!; sleep 0.4; $SSMJIT " + kSweep +
                        "; second=$?; wait $first; "
                        "echo \"exits $? $second, first $first\"");
  EXPECT_THAT(ran.out, HasSubstr("exits 0 2"));
  const std::string owner = ran.out.substr(ran.out.rfind(' ') + 1);
  EXPECT_THAT(ran.err, AllOf(HasSubstr("belongs to another sweep"),
                             HasSubstr("process " + owner.substr(0, owner.find('\n')) + " on ")));
}

TEST_F(Tune, AFullDiskNamesTheFileAndWhatWasMeasuredStays) {
  // A file may grow to 8 blocks of 512 bytes: a few lines, the last of them not whole.
  const Ran full = shell("(trap '' XFSZ; ulimit -f 8; exec $SSMJIT " + kSweep + ")");
  EXPECT_EQ(full.exit, 1) << full.err;
  EXPECT_THAT(full.err, AllOf(HasSubstr("j.jsonl can't be written any more"), HasSubstr("what was measured before")));
  const std::map<std::string, int> kept = keys("j.jsonl");
  EXPECT_GE(kept.size(), 2u);
  EXPECT_EQ(read("j.jsonl").back(), '\n');
  ASSERT_EQ(shell("$SSMJIT " + kSweep).exit, 0);
  for (const auto& [key, times] : keys("j.jsonl")) EXPECT_EQ(times, 1) << key;
}

TEST_F(Tune, ResumesAFinishedJournalOfManyPlansInUnder5SecondsWithoutAWorker) {
  // 500 plans at 11 batches, as if they had been measured.
  const Description d = load_model("nemotron3-super-tp8:update").kernels.front().second;
  std::vector<Plan> all;
  for (const Plan& plan : plan_space(d, Arch{}))
    if (!plan.early_state) all.push_back(plan);
  TuneOptions options;
  options.plans = all;
  const SweepLines lines(d, options, device(0));
  std::string text;
  for (std::size_t i = 0; i < lines.plans().size(); ++i) {
    text += lines.verified(i).json() + "\n";
    for (const int batch : options.batches) {
      Measurement m = lines.timed(i, batch, PdlMode::off);
      m.us = 3 + static_cast<double>(i) / 100;
      text += m.json() + "\n";
    }
  }
  EXPECT_GE(all.size(), 400u);
  write("j.jsonl", text);
  const ScopedEnvironment no_kernels("SSMJIT_PLANTED", std::nullopt);  // a worker's launches would fail
  const auto start = std::chrono::steady_clock::now();
  const Ran ran = shell("$SSMJIT tune nemotron3-super-tp8:update --journal j.jsonl -o t.json");
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  EXPECT_EQ(ran.exit, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("measured 0, slower 0, failed 0; 11 rows"));
  EXPECT_LT(seconds, 5);
  RecordProperty("seconds", std::to_string(seconds));
  EXPECT_EQ(read("j.jsonl"), text);
}

TEST_F(Tune, Row26_APlanThatHangsCostsItsLineAndTheTableIsWritten) {
  std::vector<Plan> all = plan_space(update(), Arch{});
  plant(all, {{3}});
  const std::vector<Plan> sampled = sample_plans(all, 4, 1);
  plant(sampled, {{3}, {1, "hang"}, {1, "crash"}, {2}});
  const Ran ran =
      shell("$SSMJIT tune update.json --sample 4 --pdl off,chain --batches 9 --watchdog 1 --journal j.jsonl -o t.json");
  EXPECT_EQ(ran.exit, 0) << ran.err;
  EXPECT_THAT(read("j.jsonl"), AllOf(HasSubstr("\"outcome\":\"hung\""), HasSubstr("\"outcome\":\"crashed\"")));
}

// ---- without a GPU: answers from a journal ----

class Replay : public Tune {
 protected:
  void SetUp() override {
    Tune::SetUp();
    environment_.clear();
  }
};

TEST_F(Replay, AnswersFromAJournalWithoutAGpuAndGivesItsTable) {
  const Ran ran = shell("CUDA_VISIBLE_DEVICES= $SSMJIT tune " + kReplay + " --journal j.jsonl -o t.json");
  ASSERT_EQ(ran.exit, 0) << ran.err;
  ASSERT_EQ(shell("$SSMJIT table fit '" + kRecorded + "' -o whole.json").exit, 0);
  EXPECT_EQ(read("t.json"), read("whole.json"));
  const std::string once = read("j.jsonl");
  ASSERT_EQ(shell("$SSMJIT tune " + kReplay + " --journal j.jsonl -o t.json").exit, 0);
  EXPECT_EQ(read("j.jsonl"), once) << "nothing twice";
}

TEST_F(Replay, AJournalThatIsNoneOrOfSeveralGpusIsRefused) {
  write("empty.jsonl", "");
  EXPECT_THAT(shell("$SSMJIT tune nemotron3-nano --replay empty.jsonl -o t.json").err, HasSubstr("empty.jsonl"));
  std::string two = read(kRecorded);
  std::ifstream recorded(kRecorded);
  std::string line;
  std::getline(recorded, line);
  Measurement m = Measurement::from_json(line);
  m.device = "h100";
  write("two.jsonl", line + "\n" + m.json() + "\n");
  const Ran ran = shell("$SSMJIT tune nemotron3-nano --replay two.jsonl -o t.json");
  EXPECT_EQ(ran.exit, 2);
  EXPECT_THAT(ran.err, AllOf(HasSubstr("h200"), HasSubstr("h100")));
}

TEST_F(Replay, Row29_ShardsInAnyOrderGiveTheTableOfTheWholeByteForByte) {
  ASSERT_EQ(shell("$SSMJIT table fit '" + kRecorded + "' -o whole.json").exit, 0);
  std::set<std::string> cells;
  for (int i = 0; i < 3; ++i) {
    const std::string shard = std::to_string(i) + "/3";
    const Ran ran = shell("$SSMJIT tune " + kReplay + " --shard " + shard + " --journal s.jsonl -o t.json");
    ASSERT_EQ(ran.exit, 0) << ran.err;
    EXPECT_FALSE(std::filesystem::exists(at("t.json"))) << "a shard has no table";
  }
  for (const char* order : {"0 1 2", "2 0 1", "1 2 0"}) {
    std::string files;
    std::istringstream numbers(order);
    for (std::string n; numbers >> n;) files += " s.jsonl.shard-" + n + "-of-3";
    ASSERT_EQ(shell("$SSMJIT table fit" + files + " -o t.json").exit, 0);
    EXPECT_EQ(read("t.json"), read("whole.json")) << order;
    ASSERT_EQ(shell("cat" + files + " > all.jsonl && $SSMJIT table fit all.jsonl -o t.json").exit, 0);
    EXPECT_EQ(read("t.json"), read("whole.json")) << order;
  }
}

TEST_F(Replay, FourRanksOfMpirunShareASweep) {
  if (std::system("command -v mpirun > /dev/null 2>&1") != 0)
    GTEST_SKIP() << "mpirun is missing: apt-get install openmpi-bin";
  ASSERT_EQ(shell("$SSMJIT table fit '" + kRecorded + "' -o whole.json").exit, 0);
  const Ran ran = shell(
      "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_plm_rsh_agent=/bin/false; "
      "mpirun --oversubscribe -n 4 $SSMJIT tune " +
      kReplay + " --shard auto --journal m.jsonl -o t.json");
  ASSERT_EQ(ran.exit, 0) << ran.err;
  for (const char* rank : {"0", "1", "2", "3"})
    EXPECT_THAT(read("m.jsonl.shard-" + std::string(rank) + "-of-4"), HasSubstr("\"outcome\":\"ok\"")) << rank;
  ASSERT_EQ(shell("$SSMJIT table fit $(ls -r m.jsonl.shard-*-of-4) -o t.json").exit, 0);
  EXPECT_EQ(read("t.json"), read("whole.json"));
}

TEST_F(Replay, WhatGpusShardsAndJournalsWantIsSaid) {
  const std::vector<std::pair<std::string, std::string>> wrong = {{"--gpus 0,0", "--gpus"},
                                                                  {"--gpus one", "--gpus"},
                                                                  {"--gpus 0 --device 0", "--gpus"},
                                                                  {"--shard 3/3", "--shard"},
                                                                  {"--watchdog 0", "--watchdog"}};
  for (const auto& [options, what] : wrong) {
    const Ran ran = shell("$SSMJIT tune nemotron3-nano -o t.json " + options);
    EXPECT_EQ(ran.exit, 2) << options << ran.err;
    EXPECT_THAT(ran.err, HasSubstr(what));
  }
}

TEST_F(Tune, Row25_AGpuThatIsNotThereIsMissing) {
  for (const char* options : {"--device 3", "--gpus 0,3"}) {
    const Ran ran = shell("$SSMJIT tune update.json -o t.json " + std::string(options));
    EXPECT_EQ(ran.exit, 3) << ran.err;
    EXPECT_THAT(ran.err, HasSubstr("GPU 3 is not there: 1 visible"));
  }
  const Ran shard =
      shell("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 $SSMJIT tune update.json -o t.json --shard auto --device 3");
  EXPECT_THAT(shard.err, HasSubstr("GPU 3 is not there: 1 visible")) << "the GPU that is named, not the rank's";
  const ScopedEnvironment none("SSMJIT_HOST_GPUS", "0");
  for (const char* options : {"--gpus all", "--device 0"})
    EXPECT_EQ(shell("$SSMJIT tune update.json -o t.json " + std::string(options)).exit, 3);
}

TEST_F(Tune, BenchShowsAPlanOnceAndNotItsVerification) {
  const Ran ran = shell("$SSMJIT bench update.json --batches 9 --json");
  EXPECT_EQ(ran.exit, 0) << ran.err;
  EXPECT_EQ(std::count(ran.out.begin(), ran.out.end(), '\n'), 1) << ran.out;
  EXPECT_THAT(ran.out, HasSubstr("\"phase\":\"step\""));
}

TEST_F(Tune, OnAllGpusGivesOneJournalAndATable) {
  const ScopedEnvironment gpus("SSMJIT_HOST_GPUS", "2");
  const Ran ran = shell("$SSMJIT " + kSweep + " --gpus all");
  ASSERT_EQ(ran.exit, 0) << ran.err;
  for (const auto& [key, times] : keys("j.jsonl")) EXPECT_EQ(times, 1) << key;
  EXPECT_EQ(Table::from_json(read("t.json")).rows.size(), 6u);
}

}  // namespace
}  // namespace ssmjit
