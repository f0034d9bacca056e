// The worker process: what a kernel does to it costs one journal line.
#include <elf.h>
#include <signal.h>
#include <sys/wait.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <map>
#include <set>
#include <string_view>
#include <tuple>

#include <gmock/gmock.h>

#include <ssmjit/log.h>

#include "autotune/fleet/fleet.h"
#include "autotune/fleet/worker_process.h"
#include "autotune/sweep_lines.h"
#include "tests/autotune/fleet/planted.h"
#include "tests/autotune/fleet/planted_nvrtc.h"

namespace ssmjit {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr Watchdog kWatchdog{.device_s = 4, .host_s = 120};

class Worker : public PlantedSweep {
 protected:
  // Runs the sweep on `gpus` worker processes; what is new.
  std::vector<Measurement> run(int gpus = 1, const std::vector<Measurement>& known = {}) {
    std::vector<std::unique_ptr<Measurer>> crew;
    std::vector<Measurer*> members;
    for (int gpu = 0; gpu < gpus; ++gpu) {
      crew.push_back(std::make_unique<WorkerProcess>(gpu, command_, kWatchdog));
      members.push_back(crew.back().get());
    }
    std::vector<Measurement> fresh;
    TuneOptions options;
    options.plans = plans_;
    options.batches = batches_;
    options.known = known;
    options.on_measurement = [&](const Measurement& m) { fresh.push_back(m); };
    options.search = search_;
    options.progress = [&](const Progress& p) {
      stages_.insert(p.stage);
      EXPECT_LE(p.done, p.total) << p.stage;
    };
    sweep_on(members, {{update(), options}});
    return fresh;
  }
  std::string refusal() {
    try {
      run();
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::machine);
      return e.what();
    }
    return "none";
  }

  std::vector<std::string> command_ = {SSMJIT_CLI_PATH, "worker"};
  std::vector<Plan> plans_;
  std::vector<int> batches_ = {9};  // none that verification has
  Search search_ = Search::halving;
  std::set<std::string> stages_;
};

TEST_F(Worker, MeasuresAsTheProcessItselfDoes) {
  plans_ = plans(2);
  plant(plans_, {{3}, {2}});
  std::vector<Measurement> all = run();
  ASSERT_THAT(all, SizeIs(4)) << "two are verified, two are timed";
  const Table table = fit_table(all);
  ASSERT_THAT(table.rows, SizeIs(1));
  EXPECT_EQ(table.rows[0].plan, plans_[1]);
  EXPECT_EQ(table.rows[0].us, 2);
  EXPECT_THAT(stages_, testing::ElementsAre("batch 9 off", "verify"));
  EXPECT_THAT(run(1, all), IsEmpty());
}

TEST_F(Worker, Row26_APlantedCandidateCostsOneLineWithItsReasonAndNeverWins) {
  struct Case {
    PlantedKernel kernel;
    Outcome outcome;
    std::string reason;
  };
  std::vector<Case> cases;
  for (const auto& [us, fault, batch, outcome, reason] :
       std::initializer_list<std::tuple<double, const char*, int, Outcome, const char*>>{
           {3, "", 0, Outcome::ok, ""},
           {1, "crash", 0, Outcome::crashed,
            "verify: the worker was ended by signal 6 (Aborted); its last words: a trap in"},
           {1, "hang", 0, Outcome::hung, "verify: no sign of life for 4.0 s"},
           {1, "wrong", 0, Outcome::wrong, "out"},
           {1, "nondeterministic", 0, Outcome::nondeterministic, "other bits than the first"},
           {1, "leak", 0, Outcome::leaked, "bytes of device memory are gone"},
           {1, "sticky", 0, Outcome::crashed, "verified: cuCtxSynchronize failed"},
           {1, "exit", 0, Outcome::crashed, "the worker exited with code 7"},
           {1, "crash", 9, Outcome::crashed, "time: the worker was ended by signal 6"},
           {1, "hang", 9, Outcome::hung, "time: no sign of life"},
           {1, "sticky", 9, Outcome::crashed, "cuCtxSynchronize failed"},
           {1, "wrong", 9, Outcome::wrong, "batch 9"},
           {1, "stray", 0, Outcome::faulty, "outside of its memory"},
           {2, "", 0, Outcome::ok, ""}})
    cases.push_back({{us, fault, batch}, outcome, reason});
  plans_ = plans(cases.size());
  batches_ = {9, 10};
  std::vector<PlantedKernel> kernels;
  for (const Case& c : cases) kernels.push_back(c.kernel);
  plant(plans_, kernels);
  const std::vector<Measurement> all = run();
  for (std::size_t i = 0; i < cases.size(); ++i) {
    std::vector<Measurement> bad;
    for (const Measurement& m : all)
      if (m.plan == plans_[i] && unsound(m.outcome)) bad.push_back(m);
    if (cases[i].outcome == Outcome::ok) {
      EXPECT_THAT(bad, IsEmpty()) << i;
      continue;
    }
    ASSERT_THAT(bad, SizeIs(1)) << i << " " << cases[i].kernel.fault;
    EXPECT_EQ(bad[0].outcome, cases[i].outcome) << i << " " << bad[0].reason;
    EXPECT_THAT(bad[0].reason, HasSubstr(cases[i].reason)) << i;
    EXPECT_EQ(bad[0].us, 0) << i;
    EXPECT_EQ(bad[0].batch, cases[i].kernel.batch) << i;
  }
  const Table table = fit_table(all);
  ASSERT_THAT(table.rows, SizeIs(2));
  for (const TableRow& row : table.rows) EXPECT_EQ(row.plan, plans_.back());
  std::map<std::string, int> seen;
  for (const Measurement& m : all) EXPECT_EQ(++seen[m.key()], 1) << m.json();
  EXPECT_THAT(run(1, all), IsEmpty()) << "a resume tries none of them again";
}

TEST_F(Worker, Row26_APlanThatKillsTheCompilerTwiceHasItsLineAndTheOthersGoOn) {
  plans_ = plans(6);
  plant(plans_, {{3}, {2}});
  const auto entry = [&](std::size_t plan) { return emit(update(), plans_[plan], Arch{}).entries.front().name; };
  const PlantedNvrtc nvrtc(SSMJIT_PLANTED_NVRTC, at("nvrtc"), entry(1) + "=crash " + entry(4) + "=crash");
  const ScopedEnvironment nothing_compiled("SSMJIT_CACHE_DIR", at("cache"));
  std::string said;
  set_log([&](LogLevel, std::string_view text) { said += text; });
  const std::vector<Measurement> all = run();
  set_log({});
  EXPECT_THAT(said, HasSubstr("compile: the worker was ended by signal 6"));
  for (std::size_t i = 0; i < plans_.size(); ++i) {
    int crashed = 0, timed = 0;
    for (const Measurement& m : all) {
      if (m.plan != plans_[i]) continue;
      timed += m.batch > 0 ? 1 : 0;
      if (m.outcome != Outcome::crashed) continue;
      ++crashed;
      EXPECT_EQ(m.phase, "verify");
      EXPECT_THAT(m.reason, AllOf(HasSubstr("compile: the worker was ended by signal 6"),
                                  HasSubstr("the compiler died of " + entry(i))));
    }
    const bool bad = i == 1 || i == 4;
    EXPECT_EQ(crashed, bad ? 1 : 0) << i;
    EXPECT_EQ(timed, bad ? 0 : 1) << i;
  }
  EXPECT_THAT(run(1, all), IsEmpty()) << "a resume compiles none of them again";
}

TEST_F(Worker, Row26_MemoryThatEveryRunTakesIsLeakedAndWhatTheFirstOneTakesIsNot) {
  plans_ = plans(3);
  plant(plans_, {{3}, {2}, {1}});
  const auto entry = [&](std::size_t plan) { return emit(update(), plans_[plan], Arch{}).entries.front().name; };
  device(0);  // this process has the stand-in itself
  const ScopedEnvironment real("SSMJIT_REAL_LIBCUDA", SSMJIT_PLANTED_LIBCUDA);
  const ScopedEnvironment leaking("SSMJIT_LIBCUDA", SSMJIT_LEAKING_LIBCUDA);
  // 20 launches verify a plan: of 512 KiB they take 10 MiB, of 256 KiB 5.
  const ScopedEnvironment leaks("SSMJIT_PLANTED_LEAKS",
                                entry(0) + "=67108864:once " + entry(1) + "=262144 " + entry(2) + "=524288");
  std::map<std::string, std::vector<Measurement>> of;
  for (const Measurement& m : run()) of[m.plan.text()].push_back(m);
  EXPECT_THAT(of[plans_[0].text()], SizeIs(2)) << "verified and timed";
  EXPECT_THAT(of[plans_[1].text()], SizeIs(2)) << "verified and timed";
  ASSERT_THAT(of[plans_[2].text()], SizeIs(1));
  EXPECT_EQ(of[plans_[2].text()][0].outcome, Outcome::leaked);
  EXPECT_THAT(of[plans_[2].text()][0].reason, HasSubstr("10485760 bytes of device memory are gone"));
}

// The sections of a cubin that hold machine code, one behind the other.
std::string machine_code(const Cubin& cubin) {
  const char* image = cubin.image.data();
  const auto at = [&](std::size_t offset, auto value) {
    std::memcpy(&value, image + offset, sizeof value);
    return value;
  };
  const auto header = at(0, Elf64_Ehdr{});
  const auto section = [&](std::size_t i) { return at(header.e_shoff + i * sizeof(Elf64_Shdr), Elf64_Shdr{}); };
  const char* names = image + section(header.e_shstrndx).sh_offset;
  std::string code;
  for (std::size_t i = 0; i < header.e_shnum; ++i) {
    const Elf64_Shdr s = section(i);
    if (std::string_view(names + s.sh_name).starts_with(".text")) code.append(image + s.sh_offset, s.sh_size);
  }
  return code;
}

// How many instructions of 16 bytes end a thread.
int exits(const std::string& code) {
  int count = 0;
  for (std::size_t at = 0; at + 16 <= code.size(); at += 16) {
    std::uint16_t opcode = 0;
    std::memcpy(&opcode, code.data() + at, sizeof opcode);
    count += (opcode & 0xfff) == 0x94d ? 1 : 0;
  }
  return count;
}

// On a GPU the faults are of the machine code, where the compiler may have left out what does nothing.
TEST_F(Worker, Row26_PlantedFaultsAreInTheMachineCode) {
  const Source source = emit(update(), plans(1).front(), Arch{});
  const std::string entry = source.entries.front().name;
  const auto code_with = [&](const std::string& fault) {
    const PlantedNvrtc nvrtc(SSMJIT_PLANTED_NVRTC, at("nvrtc-" + fault), entry + "=" + fault);
    return machine_code(compile(source, {.use_cache = false}));
  };
  const std::string right = code_with("none"), spins = code_with("spin"), strays = code_with("stray");
  EXPECT_GT(exits(right), 0);
  EXPECT_EQ(exits(spins), 0) << "it ends";
  EXPECT_GT(exits(strays), 0);
  EXPECT_NE(strays, right);
}

TEST_F(Worker, ThatDiesBeforeItHasDoneAnythingThreeTimesEndsTheSweepWithItsLastWords) {
  plans_ = plans(1);
  plant(plans_, {{3}});
  command_ = {"/bin/sh", "-c", "echo no GPU today >&2; exit 3"};
  EXPECT_THAT(refusal(), AllOf(HasSubstr("3 workers in a row"), HasSubstr("exited with code 3"),
                               HasSubstr("no GPU today"), HasSubstr("GPU 0")));
}

TEST_F(Worker, ThatReadsNothingHasHungHoweverMuchThereIsToSay) {
  plans_ = plans(1);
  plant(plans_, {{3}});
  TuneOptions options;
  options.plans = plans_;
  options.batches = batches_;
  const SweepLines lines(update(), options, device(0));
  for (int batch = 1000; batch < 3000; ++batch) options.known.push_back(lines.timed(0, batch, PdlMode::off));
  WorkerProcess worker(0, {"/bin/sleep", "600"}, {.device_s = 60, .host_s = 0.2, .end_s = 10});
  try {
    worker.run(update(), options);
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("no sign of life for 0.2 s"));
  }
}

TEST_F(Worker, ThatClosesItsAnswersAndLivesOnIsKilled) {
  plans_ = plans(1);
  plant(plans_, {{3}});
  TuneOptions options;
  options.plans = plans_;
  options.batches = batches_;
  const std::vector<std::string> command = {"/bin/sh", "-c",
                                            "echo $$ >> '" + at("pids") + "'; exec sleep 600 >&- 2>&-"};
  WorkerProcess worker(0, command, {.device_s = 60, .host_s = 60, .end_s = 0.2});
  try {
    worker.run(update(), options);
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("closed its answers and went on"));
  }
  std::istringstream pids(read("pids"));
  int count = 0;
  for (pid_t pid = 0; pids >> pid; ++count) EXPECT_EQ(kill(pid, 0), -1) << "it lives on";
  EXPECT_EQ(count, WorkerProcess::kDeathsAtMost);
}

TEST_F(Worker, StartsAtOnceWhereToldAndEndsOnceDismissed) {
  const std::vector<std::string> command = {"/bin/sh", "-c", "echo $$ > '" + at("pid") + "'; exec sleep 600"};
  const auto pid = [&] {
    std::istringstream text(read("pid"));
    pid_t found = 0;
    return text >> found ? found : 0;
  };
  std::optional<WorkerProcess> worker(std::in_place, 0, command, Watchdog{}, WorkerProcess::Start::now);
  const auto start = std::chrono::steady_clock::now();
  while (pid() == 0 && std::chrono::steady_clock::now() - start < std::chrono::seconds(20)) usleep(1000);
  ASSERT_NE(pid(), 0) << "no job came";
  EXPECT_EQ(kill(pid(), 0), 0);
  worker->dismiss();
  siginfo_t ended{};  // left for the destructor to take
  const auto dismissed = std::chrono::steady_clock::now();
  while (ended.si_pid == 0 && std::chrono::steady_clock::now() - dismissed < std::chrono::seconds(20)) {
    ASSERT_EQ(waitid(P_PID, static_cast<id_t>(pid()), &ended, WEXITED | WNOHANG | WNOWAIT), 0);
    usleep(1000);
  }
  EXPECT_EQ(ended.si_pid, pid()) << "it lives on";
  worker.reset();
  EXPECT_EQ(kill(pid(), 0), -1);
}

TEST_F(Worker, ThatIsNoExecutableIsNamed) {
  plans_ = plans(1);
  plant(plans_, {{3}});
  command_ = {"/nowhere/ssmjit", "worker"};
  EXPECT_THAT(refusal(), HasSubstr("/nowhere/ssmjit"));
}

TEST_F(Worker, OfEachGpuTakesJobsFromOneQueueAndNoneTwice) {
  const ScopedEnvironment gpus("SSMJIT_HOST_GPUS", "2");
  plans_ = plans(6);
  batches_ = {9, 10, 11, 12};
  plant(plans_, {{3}, {2}, {1, "crash", 10}});
  std::string said;
  set_log([&](LogLevel, std::string_view text) { said += text; });
  const std::vector<Measurement> all = run(2);
  set_log({});
  EXPECT_EQ(said, "") << "workers outlive the threads that started them";
  std::map<std::string, int> seen;
  for (const Measurement& m : all)
    if (m.outcome == Outcome::ok) {
      EXPECT_EQ(++seen[m.key()], 1) << m.json();
    }
  const Table table = fit_table(all);
  ASSERT_THAT(table.rows, SizeIs(4)) << "of the batch too whose winner crashed at another";
  for (const TableRow& row : table.rows) EXPECT_EQ(row.us, 2);
}

TEST_F(Worker, OfEachGpuVerifiesNoPlanThatAnotherDoesWhereTheModelAsksInTheMiddleOfACell) {
  const ScopedEnvironment gpus("SSMJIT_HOST_GPUS", "2");
  search_ = Search::model;
  plans_ = plans(48);  // of which it asks for a spread of 24 at first
  batches_ = {9, 10};
  plant(plans_, {{3}, {2.5}, {2}, {4}, {2.2}});
  std::map<std::string, int> seen;
  for (const Measurement& m : run(2)) EXPECT_EQ(++seen[m.key()], 1) << m.json();
}

TEST_F(Worker, CountsNoPlanThatItVerifiesInTheMiddleOfACellAsOneOfTheFirst) {
  search_ = Search::model;
  plans_ = plans(48);
  plant(plans_, {{3}, {2.5}, {2}, {4}, {2.2}});
  std::size_t verified = 0;
  for (const Measurement& m : run()) verified += m.phase == "verify" ? 1 : 0;  // run() looks at what progress says
  EXPECT_GT(verified, 24u) << "it asked for more than the spread";
}

TEST(KnownLines, WhatWasDroppedIsTimedAgainWhereAllThatBeatItTurnedOutUnsound) {
  Measurement winner, second, bad;
  winner.kernel_digest = second.kernel_digest = "k";
  winner.source_digest = "a";
  second.source_digest = "b";
  winner.batch = second.batch = 8;
  second.outcome = Outcome::dropped;
  bad = winner;
  bad.batch = 16;
  bad.outcome = Outcome::hung;
  EXPECT_TRUE(KnownLines({second}).has(second)) << "the rest of the cell is still to come";
  EXPECT_TRUE(KnownLines({second, winner}).has(second));
  EXPECT_FALSE(KnownLines({second, winner, bad}).has(second));
  Measurement third = winner;
  third.source_digest = "c";
  EXPECT_TRUE(KnownLines({second, winner, bad, third}).has(second));
}

TEST_F(Worker, StopsWhenALineCannotBeKept) {
  plans_ = plans(2);
  batches_ = {9, 10, 11, 12, 13, 14};
  plant(plans_, {{3}, {2}});
  WorkerProcess worker(0, command_, kWatchdog);
  TuneOptions options;
  options.plans = plans_;
  options.batches = batches_;
  options.on_measurement = [](const Measurement&) { throw Error(ErrorKind::machine, "the disk is full"); };
  try {
    sweep_on({&worker}, {{update(), options}});
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "the disk is full");
  }
}

}  // namespace
}  // namespace ssmjit
