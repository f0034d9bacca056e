// Many processes on one cache folder, each a real one with the machine's NVRTC; and the verbs over caches and bundles.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <ssmjit/cubin.h>
#include <ssmjit/error.h>

#include "tests/heuristics/scoped_environment.h"
#include "tests/jit/scratch_folder.h"

namespace ssmjit {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

// A process of the executable, its stdout and stderr in files.
class Process {
 public:
  Process(const ScratchFolder& scratch, const std::string& name, const std::vector<std::string>& arguments)
      : out_(scratch / (name + ".out")), err_(scratch / (name + ".err")) {
    std::vector<char*> argv{const_cast<char*>(SSMJIT_CLI_PATH)};
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ != 0) return;
    if (std::freopen(out_.c_str(), "w", stdout) == nullptr || std::freopen(err_.c_str(), "w", stderr) == nullptr)
      _exit(99);
    execv(SSMJIT_CLI_PATH, argv.data());
    _exit(98);
  }
  // Its exit code, or 128 and the signal.
  int wait() const {
    int status = 0;
    if (waitpid(pid_, &status, 0) != pid_) return 97;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  void kill() const { ::kill(pid_, SIGKILL); }
  std::string out() const { return read(out_); }
  std::string err() const { return read(err_); }

 private:
  static std::string read(const std::string& path) {
    std::stringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
  }
  std::string out_, err_;
  pid_t pid_ = -1;
};

class FleetCache : public testing::Test {
 protected:
  void SetUp() override {
    try {
      nvrtc_version();
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
  }
  int run(const std::vector<std::string>& arguments) {
    const Process process(scratch_, "run", arguments);
    const int exit = process.wait();
    out_ = process.out();
    err_ = process.err();
    return exit;
  }
  // Three norms, three kernels that compile fast.
  static std::vector<std::string> compile() {
    return {"compile", "nemotron3-super-tp8:norm", "--json", "-j", "2", "--sample", "3", "--seed", "7"};
  }
  // How many kernels a process compiled itself, by its JSON.
  static int compiled(const std::string& out) {
    int count = 0;
    std::istringstream lines(out);
    for (std::string line; std::getline(lines, line);) {
      const auto json = nlohmann::json::parse(line, nullptr, false);
      if (json.is_object() && json.contains("cached")) count += !json["cached"].get<bool>();
    }
    return count;
  }
  std::string cache() const { return scratch_ / "cache"; }

  ScratchFolder scratch_;
  ScopedEnvironment folder_{"SSMJIT_CACHE_DIR", scratch_ / "cache"};
  std::string out_, err_;
};

TEST_F(FleetCache, Row21_SixteenColdProcessesCompileEachKernelOnce) {
  std::vector<Process> processes;
  for (int i = 0; i < 16; ++i) processes.emplace_back(scratch_, std::to_string(i), compile());
  int total = 0;
  for (const Process& process : processes) {
    EXPECT_EQ(process.wait(), 0) << process.err();
    EXPECT_EQ(process.err(), "");
    total += compiled(process.out());
  }
  EXPECT_EQ(total, 3);
  int files = 0;
  for (const auto& entry : fs::directory_iterator(cache())) {
    ++files;
    EXPECT_EQ(entry.path().extension(), ".ssmjit") << "no lock or temporary file is left";
  }
  EXPECT_EQ(files, 3);
}

TEST_F(FleetCache, Row21_AKilledOwnerOfALockHoldsNobodyUp) {
  const Process owner(scratch_, "owner", {"compile", "nemotron3-super-tp8:ring", "--all", "-j", "1"});
  // Until it holds a lock.
  const auto locked = [&] {
    std::error_code error;
    for (fs::directory_iterator it(cache(), error), end; !error && it != end; it.increment(error))
      if (it->path().extension() == ".lock") return true;
    return false;
  };
  for (int i = 0; i < 2000 && !locked(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  ASSERT_TRUE(locked());
  owner.kill();
  EXPECT_EQ(owner.wait(), 128 + SIGKILL);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(run(compile()), 0) << err_;
  EXPECT_EQ(err_, "");
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));
}

TEST_F(FleetCache, Row22_AFolderThatCannotBeWrittenCostsOneWarningAndNoKernel) {
  const ScopedEnvironment none("SSMJIT_CACHE_DIR", "/dev/null/none");
  EXPECT_EQ(run(compile()), 0);
  EXPECT_EQ(compiled(out_), 3);
  EXPECT_THAT(err_, HasSubstr("warning: cubin cache: /dev/null/none"));
  EXPECT_EQ(err_.find("warning"), err_.rfind("warning"));
}

TEST_F(FleetCache, Row22_WithoutHomeKernelsStayInMemoryWithOneWarning) {
  const ScopedEnvironment no_folder("SSMJIT_CACHE_DIR", std::nullopt), no_home("HOME", std::nullopt),
      no_xdg("XDG_CACHE_HOME", std::nullopt);
  EXPECT_EQ(run(compile()), 0);
  EXPECT_THAT(err_, HasSubstr("SSMJIT_CACHE_DIR, XDG_CACHE_HOME and HOME are not set"));
  EXPECT_EQ(err_.find("warning"), err_.rfind("warning"));
}

TEST_F(FleetCache, TheCacheIsListedVerifiedAndCleared) {
  ASSERT_EQ(run(compile()), 0) << err_;
  EXPECT_EQ(run({"cache", "list"}), 0);
  EXPECT_THAT(out_, HasSubstr("3 sound, 0 bad"));
  EXPECT_THAT(out_, HasSubstr("sm_90a, NVRTC "));
  EXPECT_EQ(run({"cache", "verify", cache()}), 0);
  for (const auto& entry : fs::directory_iterator(cache())) {
    fs::resize_file(entry.path(), 90);
    break;
  }
  EXPECT_EQ(run({"cache", "verify"}), 1);
  EXPECT_THAT(out_, HasSubstr("bad: it is truncated"));
  EXPECT_THAT(out_, HasSubstr("2 sound, 1 bad"));
  EXPECT_EQ(run({"cache", "list", "--json"}), 0);
  EXPECT_THAT(out_, HasSubstr(R"("sound":2,"bad":1)"));
  EXPECT_EQ(run({"cache", "clear"}), 0);
  EXPECT_THAT(out_, HasSubstr("removed 3 files"));
  EXPECT_EQ(run({"cache", "list"}), 0);
  EXPECT_THAT(out_, HasSubstr("0 sound, 0 bad"));
}

TEST_F(FleetCache, ABundleIsWrittenAndVerified) {
  const std::string bundle = scratch_ / "bundle";
  ASSERT_EQ(run({"bundle", "nemotron3-super-tp8:norm", "--arch", "sm_90a", "--device", "h200", "--max-batch", "8", "-o",
                 bundle}),
            0)
      << err_;
  EXPECT_THAT(out_, HasSubstr("prepare_A sm_90a"));
  EXPECT_THAT(out_, HasSubstr("nemotron3-super-tp8:norm sm_90a block_m="));
  EXPECT_THAT(out_, HasSubstr("bundled 4 kernels"));
  EXPECT_EQ(run({"cache", "verify", bundle}), 0);
  EXPECT_THAT(out_, HasSubstr("4 sound, 0 bad"));
  for (const auto& entry : fs::directory_iterator(bundle)) {
    if (entry.path().extension() != ".ssmjit") continue;
    fs::remove(entry.path());
    break;
  }
  EXPECT_EQ(run({"cache", "verify", bundle}), 1);
  EXPECT_THAT(out_, HasSubstr("bad: it is missing"));
  EXPECT_EQ(run({"cache", "clear", bundle}), 2) << "a bundle is no cache";
  EXPECT_EQ(run({"bundle", "nemotron3-super-tp8:norm"}), 2) << "without a folder";
  EXPECT_EQ(run({"bundle", "nemotron3-super-tp8:norm", "--arch", "sm_20", "-o", bundle}), 2);
  EXPECT_EQ(run({"bundle", "nemotron3-super-tp8:norm", "--arch", "sm_80", "--device", "h200", "-o", bundle}), 2);
  EXPECT_THAT(err_, HasSubstr("device h200 takes sm_90a"));
}

}  // namespace
}  // namespace ssmjit
