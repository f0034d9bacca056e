// The executable as a user meets it: exit codes, messages, files. No GPU is ever visible to it here.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <ssmjit/cpu.h>
#include <ssmjit/cubin.h>
#include <ssmjit/error.h>
#include <ssmjit/measurement.h>
#include <ssmjit/source.h>
#include <ssmjit/speculative.h>
#include <ssmjit/table.h>

namespace ssmjit {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::StartsWith;

enum Exit { kOk = 0, kFellShort = 1, kWrongUse = 2, kMissing = 3 };

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

struct Ran {
  int exit = -1;
  std::string out, err;
  std::vector<std::string> lines() const {
    std::vector<std::string> all;
    std::istringstream in(out);
    for (std::string line; std::getline(in, line);) all.push_back(line);
    return all;
  }
  std::vector<Json> json() const {
    std::vector<Json> all;
    for (const std::string& line : lines()) {
      all.push_back(Json::parse(line, nullptr, false));
      EXPECT_TRUE(all.back().is_object()) << line;
    }
    return all;
  }
};

class Cli : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "ssmjit-cli-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }

  // `arguments` as a shell reads them, in the test's own folder.
  Ran ssmjit(const std::string& arguments) const { return shell("'" SSMJIT_CLI_PATH "' " + arguments); }
  Ran shell(const std::string& line) const {
    const std::string command = "cd '" + folder_.string() + "' && HOME='" + folder_.string() + "' TMPDIR='" +
                                folder_.string() + "' SSMJIT_CACHE_DIR='" + (folder_ / "cache").string() +
                                "' CUDA_VISIBLE_DEVICES= SSMJIT_TABLES= XDG_DATA_HOME= " + line + " > .out 2> .err";
    const int status = std::system(command.c_str());
    Ran ran;
    ran.exit = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    ran.out = read(folder_ / ".out");
    ran.err = read(folder_ / ".err");
    return ran;
  }
  void write(const std::string& name, const std::string& text) const { std::ofstream(folder_ / name) << text; }
  static bool has_nvrtc(std::string& why) {
    try {
      nvrtc_version();
      return true;
    } catch (const Error& e) {
      why = e.what();
      return false;
    }
  }

  fs::path folder_;
};

const std::string kWholeModel = "nemotron3-super-tp8";
const std::string kModel = kWholeModel + ":update";

// ---- use ----

TEST_F(Cli, HelpAndVersionAreNoFailure) {
  EXPECT_EQ(ssmjit("--help").exit, kOk);
  EXPECT_THAT(ssmjit("--help").out, AllOf(HasSubstr("describe"), HasSubstr("doctor"), HasSubstr("tune")));
  EXPECT_EQ(ssmjit("--version").exit, kOk);
  for (const char* verb : {"describe", "emit", "compile", "verify", "bench", "tune", "table", "report", "doctor"})
    EXPECT_EQ(ssmjit(std::string(verb) + " --help").exit, kOk) << verb;
}

TEST_F(Cli, WrongUseExitsTwoAndSaysWhereHelpIs) {
  for (const char* wrong : {"", "frobnicate", "describe --frobnicate", "emit", "table", "table frobnicate",
                            "compile nemotron3-super-tp8 -j -1"}) {
    const Ran ran = ssmjit(wrong);
    EXPECT_EQ(ran.exit, kWrongUse) << wrong;
    EXPECT_THAT(ran.err, HasSubstr("--help")) << wrong;
    EXPECT_THAT(ran.out, IsEmpty()) << wrong;
  }
}

TEST_F(Cli, AnUnknownSpecNamesTheShippedModels) {
  const Ran ran = ssmjit("describe no-such-model");
  EXPECT_EQ(ran.exit, kWrongUse);
  for (const std::string& name : shipped_models()) EXPECT_THAT(ran.err, HasSubstr(name));
}

TEST_F(Cli, AnUnknownKernelNamesThoseOfTheModel) {
  const Ran ran = ssmjit("describe " + kWholeModel + ":frobnicate");
  EXPECT_EQ(ran.exit, kWrongUse);
  EXPECT_THAT(ran.err, HasSubstr("update"));
}

TEST_F(Cli, ThreeWrongFieldsGiveThreeSentences) {
  Json d = Json::parse(load_model(kModel).kernels.front().second.json());
  d["head_dim"] = 60;
  d["dstate"] = 0;
  d["ngroups"] = 5;
  write("bad.json", d.dump());
  const Ran ran = ssmjit("describe bad.json");
  EXPECT_EQ(ran.exit, kWrongUse);
  EXPECT_THAT(ran.err, AllOf(HasSubstr("head_dim: got 60"), HasSubstr("dstate: got 0"), HasSubstr("ngroups: got 5")));
  EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 3);
}

TEST_F(Cli, AFileThatIsNoJsonIsNamed) {
  write("bad.json", "{");
  const Ran ran = ssmjit("describe bad.json");
  EXPECT_EQ(ran.exit, kWrongUse);
  EXPECT_THAT(ran.err, HasSubstr("JSON"));
}

// ---- describe ----

TEST_F(Cli, DescribePrintsTheDescriptionItsJsonAndBytes) {
  const Ran ran = ssmjit("describe " + kModel + " --batches 1,8");
  EXPECT_EQ(ran.exit, kOk) << ran.err;
  const Description d = load_model(kModel).kernels.front().second;
  EXPECT_THAT(ran.out, AllOf(HasSubstr(d.summary()), HasSubstr(d.json()), HasSubstr(d.kernel_digest()),
                             HasSubstr(std::to_string(bytes_moved(d, 8).read))));
}

TEST_F(Cli, DescribeJsonIsASpecAgain) {
  const Ran first = ssmjit("describe " + kModel + " --json --set 'state=bf16,gate=silu(z)'");
  ASSERT_EQ(first.exit, kOk) << first.err;
  ASSERT_EQ(first.json().size(), 1u);
  EXPECT_EQ(first.json()[0].at("state"), "bf16");
  write("spec.json", first.out);
  EXPECT_EQ(ssmjit("describe spec.json --json").out, first.out);
}

TEST_F(Cli, DescribeReadsAHuggingFaceConfig) {
  write("config.json",
        R"({"model_type": "mamba2", "num_heads": 80, "head_dim": 64, "state_size": 128, "n_groups": 1,
            "hidden_size": 2560, "expand": 2})");
  const Ran whole = ssmjit("describe --from-hf config.json --json");
  ASSERT_EQ(whole.exit, kOk) << whole.err;
  ASSERT_EQ(whole.json().size(), 1u);
  EXPECT_EQ(whole.json()[0].at("kernels").at("update").at("nheads"), 80);
  write("spec.json", whole.out);
  const std::vector<Json> kernels = ssmjit("describe spec.json --json").json();
  ASSERT_EQ(kernels.size(), 6u) << "a SPEC of conv1d, update, ring, norm, layer and ring_layer";
  const Ran half = ssmjit("describe --from-hf config.json:update --tp 2 --set dt=fp32 --json");
  ASSERT_EQ(half.exit, kOk) << half.err;
  EXPECT_EQ(half.json()[0].at("nheads"), 40);
  EXPECT_EQ(half.json()[0].at("dt"), "fp32");
  const Ran one = ssmjit("describe --from-hf config.json --set store=ring:16");
  EXPECT_EQ(one.exit, kWrongUse);
  EXPECT_THAT(one.err, AllOf(HasSubstr("conv1d: "), HasSubstr("name one as config.json:update or config.json:ring")));
  EXPECT_THAT(ssmjit("describe --from-hf config.json:norm --tp 2").err, HasSubstr("has no kernel \"norm\""));
  EXPECT_EQ(ssmjit("describe --from-hf config.json --tp 3").exit, kWrongUse);
  EXPECT_EQ(ssmjit("describe --from-hf config.json " + kModel).exit, kWrongUse) << "both";
  EXPECT_EQ(ssmjit("describe --from-hf nowhere.json").exit, kWrongUse);
  EXPECT_EQ(ssmjit("describe").exit, kWrongUse) << "neither";
}

TEST_F(Cli, SetNamesAnUnknownField) {
  const Ran ran = ssmjit("describe " + kModel + " --set frobs=3");
  EXPECT_EQ(ran.exit, kWrongUse);
  EXPECT_THAT(ran.err, HasSubstr("frobs"));
}

TEST_F(Cli, BatchesThatAreNoNumbersAreRefused) {
  for (const char* bad : {"0", "-1", "1,x", "1,,2", "65536", "\"\""})
    EXPECT_EQ(ssmjit("describe " + kModel + " --batches " + bad).exit, kWrongUse) << bad;
}

TEST_F(Cli, DescribeListsAllKernelsOfAModelAndBothPhasesOfARing) {
  const Ran ran = ssmjit("describe " + kWholeModel + " --batches 8");
  EXPECT_EQ(ran.exit, kOk) << ran.err;
  const Description ring = load_model(kWholeModel).kernel("ring");
  EXPECT_THAT(ran.out,
              AllOf(HasSubstr(kWholeModel + ":update: mamba2 update"), HasSubstr(kWholeModel + ":ring: mamba2 ring"),
                    HasSubstr(std::to_string(bytes_moved(ring, 8).read)), HasSubstr("without flush"),
                    HasSubstr(std::to_string(bytes_moved(ring, 8, Phase::flush).read)), HasSubstr("with flush")));
  EXPECT_EQ(ssmjit("describe " + kModel + " --set store=ring:16,tokens=4,state=int8").exit, kOk);
}

TEST_F(Cli, AFieldThatOneKernelOfAModelCannotHaveIsNamedWithTheKernel) {
  const Ran ran = ssmjit("describe " + kWholeModel + " --set destination_slots=true");
  EXPECT_EQ(ran.exit, kWrongUse);
  EXPECT_THAT(ran.err, AllOf(HasSubstr(kWholeModel + ":conv1d: destination_slots: got true; without heads"),
                             HasSubstr("kernels; name one as " + kWholeModel + ":update")));
  const Ran tokens = ssmjit("describe " + kWholeModel + " --set tokens=6,conv.width=9");
  EXPECT_THAT(tokens.err, HasSubstr("none of them takes that"));
  EXPECT_EQ(ssmjit("describe " + kModel + " --set destination_slots=true").exit, kOk);
}

// ---- emit ----

TEST_F(Cli, EmitTakesTheUpdateOfAModelAndSaysSoAndTheRingByName) {
  const Ran whole = ssmjit("emit " + kWholeModel + " -o k.cu");
  EXPECT_EQ(whole.exit, kOk);
  EXPECT_THAT(whole.err, HasSubstr("kernels; taking " + kModel));
  const Ran ring = ssmjit("emit " + kWholeModel + ":ring --set state=bf16 --plan ring_rows=live");
  ASSERT_EQ(ring.exit, kOk) << ring.err;
  const Banner banner = read_banner(ring.out);
  EXPECT_EQ(banner.description, Description(load_model(kWholeModel).kernel("ring")).state(DType::bf16));
  EXPECT_EQ(banner.plan.ring_rows, RingRows::live);
  EXPECT_EQ(ssmjit("emit " + kModel + " --plan ring_rows=live").exit, kWrongUse);
}

TEST_F(Cli, EmitPrintsTheSourceOrWritesIt) {
  const Ran out = ssmjit("emit " + kModel);
  ASSERT_EQ(out.exit, kOk) << out.err;
  EXPECT_EQ(read_banner(out.out).description, load_model(kModel).kernels.front().second);
  const Ran file = ssmjit("emit " + kModel + " -o sub/k.cu");
  EXPECT_EQ(file.exit, kOk);
  EXPECT_THAT(file.out, IsEmpty());
  EXPECT_EQ(read(folder_ / "sub" / "k.cu"), out.out);
  const Ran json = ssmjit("emit " + kModel + " -o k.cu --json --plan warps=1");
  ASSERT_EQ(json.json().size(), 1u);
  EXPECT_EQ(json.json()[0].at("plan").at("warps"), 1);
}

TEST_F(Cli, EmitRefusesABadPlanWithItsReasons) {
  const Ran illegal = ssmjit("emit " + kModel + " --plan block_m=40 -o k.cu");
  EXPECT_EQ(illegal.exit, kWrongUse);
  EXPECT_THAT(illegal.err, HasSubstr("head_dim=64, block_m=40"));
  EXPECT_FALSE(fs::exists(folder_ / "k.cu"));
  EXPECT_EQ(ssmjit("emit " + kModel + " --plan frobs=2").exit, kWrongUse);
  EXPECT_EQ(ssmjit("emit " + kModel + " --plan warps=x").exit, kWrongUse);
  EXPECT_EQ(ssmjit("emit " + kModel + " --arch sm_80 --plan state_path=bulk,heads_per_block=2,stages=2").exit,
            kWrongUse);
}

TEST_F(Cli, EmitToAPlaceThatCannotBeWrittenSaysSo) {
  write("file", "");
  const Ran ran = ssmjit("emit " + kModel + " -o file/k.cu");
  EXPECT_NE(ran.exit, kOk);
  EXPECT_THAT(ran.err, HasSubstr("file/k.cu"));
}

// ---- compile ----

TEST_F(Cli, CompilePrintsALineAKernelAndTheSum) {
  std::string why;
  if (!has_nvrtc(why)) GTEST_SKIP() << why;
  const Ran ran = ssmjit("compile " + kModel + " --sample 2 --arch sm_80,sm_90a");
  EXPECT_EQ(ran.exit, kOk) << ran.err;
  ASSERT_EQ(ran.lines().size(), 5u) << ran.out;
  EXPECT_THAT(ran.lines().back(), AllOf(StartsWith("compiled 4, failed 0 in "), EndsWith(" s")));
  for (int i = 0; i < 4; ++i) EXPECT_THAT(ran.lines()[static_cast<std::size_t>(i)], HasSubstr("registers"));

  const Ran again = ssmjit("compile " + kModel + " --sample 2 --arch sm_80,sm_90a --json");
  const std::vector<Json> json = again.json();
  ASSERT_EQ(json.size(), 5u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(json[static_cast<std::size_t>(i)].at("ok"), true);
    EXPECT_EQ(json[static_cast<std::size_t>(i)].at("cached"), true) << "the second run reads the cache";
  }
  EXPECT_EQ(json.back().at("compiled"), 4);
  EXPECT_TRUE(fs::exists(folder_ / "cache"));
}

TEST_F(Cli, CompileRefusesABadArchAndPlan) {
  std::string why;
  if (!has_nvrtc(why)) GTEST_SKIP() << why;
  const Ran arch = ssmjit("compile " + kModel + " --arch sm_12");
  EXPECT_EQ(arch.exit, kWrongUse);
  EXPECT_THAT(arch.err, AllOf(HasSubstr("sm_12"), HasSubstr("sm_90a")));
  EXPECT_EQ(ssmjit("compile " + kModel + " --plan block_m=40").exit, kWrongUse);
}

TEST_F(Cli, CompileWithoutNvrtcExitsThreeWithOneSentence) {
  setenv("SSMJIT_NVRTC", "/nowhere/libnvrtc.so", 1);
  const Ran ran = ssmjit("compile " + kModel);
  unsetenv("SSMJIT_NVRTC");
  EXPECT_EQ(ran.exit, kMissing);
  EXPECT_THAT(ran.err, HasSubstr("/nowhere/libnvrtc.so"));
}

TEST_F(Cli, CompilesWithTheNvrtcOfTheReleaseBefore) {
  // Where `make deps` puts the wheel.
  const fs::path library = fs::path(SSMJIT_SOURCE_DIR) / ".venv/nvrtc-12.9/nvidia/cuda_nvrtc/lib/libnvrtc.so.12";
  if (!fs::exists(library)) GTEST_SKIP() << "NVRTC 12.9 is not at .venv/nvrtc-12.9: run make deps";
  setenv("SSMJIT_NVRTC", library.c_str(), 1);
  const Ran doctor = ssmjit("doctor");
  const Ran compiled = ssmjit("compile " + kModel + " --arch sm_80,sm_90a,sm_100a --no-cache --sample 2");
  unsetenv("SSMJIT_NVRTC");
  EXPECT_THAT(doctor.out, HasSubstr("12.9 at "));
  EXPECT_EQ(compiled.exit, kOk) << compiled.out;
  EXPECT_THAT(compiled.lines().back(), StartsWith("compiled 6, failed 0"));
}

// ---- verify ----

TEST_F(Cli, VerifyWithNeitherAGpuNorACpuExecutorSkipsAloud) {
  if (cpu_executor_missing().empty()) GTEST_SKIP() << "this build has the CPU executor";
  const Ran one = ssmjit("verify " + kModel);
  EXPECT_EQ(one.exit, kMissing);
  ASSERT_FALSE(one.lines().empty());
  EXPECT_EQ(one.lines().back(), "verified 0, failed 0, skipped 1 (no gpu)");
  EXPECT_THAT(one.err, HasSubstr("skipped: "));
  EXPECT_EQ(ssmjit("verify " + kModel + " --sample 5").lines().back(), "verified 0, failed 0, skipped 5 (no gpu)");
  const Json last = ssmjit("verify " + kModel + " --json").json().back();
  EXPECT_EQ(last.at("skipped"), 1);
  EXPECT_EQ(last.at("on"), "no gpu");
  const Ran cpu = ssmjit("verify " + kModel + " --on cpu");
  EXPECT_EQ(cpu.exit, kMissing);
  EXPECT_THAT(cpu.err, HasSubstr("CPU"));
}

TEST_F(Cli, VerifyOnAGpuThatIsNotThereSkipsAloud) {
  const Ran ran = ssmjit("verify " + kModel + " --on gpu --sample 2");
  EXPECT_EQ(ran.exit, kMissing);
  ASSERT_FALSE(ran.lines().empty());
  EXPECT_EQ(ran.lines().back(), "verified 0, failed 0, skipped 2 (no gpu)");
  EXPECT_THAT(ran.err, HasSubstr("skipped: "));
}

TEST_F(Cli, VerifyRefusesABadPlanAndAnotherKernelsSourceBeforeItRunsAnything) {
  EXPECT_EQ(ssmjit("verify " + kModel + " --plan block_m=40").exit, kWrongUse);
  ASSERT_EQ(ssmjit("emit " + kModel + " -o k.cu").exit, kOk);
  const Ran other = ssmjit("verify " + kModel + " --set state=bf16 --source k.cu");
  EXPECT_EQ(other.exit, kWrongUse);
  EXPECT_THAT(other.err, HasSubstr("its banner describes"));
  EXPECT_THAT(other.out, IsEmpty());
}

TEST_F(Cli, VerifyRefusesWrongOptionsAndNamesTheRightOnes) {
  const Ran schedule = ssmjit("verify " + kModel + " --on cpu --schedule forward,sideways");
  EXPECT_EQ(schedule.exit, kWrongUse);
  EXPECT_THAT(schedule.err, AllOf(HasSubstr("\"sideways\""), HasSubstr("forward, reverse or random")));
  EXPECT_EQ(ssmjit("verify " + kModel + " --on cpu --schedule ''").exit, kWrongUse);
  const Ran check = ssmjit("verify " + kModel + " --on cpu --check values");
  EXPECT_EQ(check.exit, kWrongUse);
  EXPECT_THAT(check.err, AllOf(HasSubstr("--check"), HasSubstr("\"values\""), HasSubstr("races, bounds")));
  EXPECT_EQ(ssmjit("verify " + kModel + " --on moon").exit, kWrongUse);
  const Ran gpu = ssmjit("verify " + kModel + " --debug --on gpu");
  EXPECT_EQ(gpu.exit, kWrongUse);
  EXPECT_THAT(gpu.err, AllOf(HasSubstr("--debug"), HasSubstr("--on gpu")));
  EXPECT_EQ(ssmjit("verify " + kModel + " --debug --sample 2").exit, kWrongUse);
  EXPECT_EQ(ssmjit("verify " + kModel + " --debug --all").exit, kWrongUse);
}

class CliVerifyCpu : public Cli {
 protected:
  void SetUp() override {
    Cli::SetUp();
    if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  }

  // The model's kernel with `what`, which it holds once, replaced, as mine.cu; gives the line.
  int edit(const std::string& what, const std::string& replacement) const {
    EXPECT_EQ(ssmjit("emit " + kModel + " -o k.cu").exit, kOk);
    std::string text = read(folder_ / "k.cu");
    const std::size_t at = text.find(what);
    EXPECT_NE(at, std::string::npos) << what;
    EXPECT_EQ(text.find(what, at + 1), std::string::npos) << what << " stands there twice";
    if (at == std::string::npos) return 0;
    write("mine.cu", text.replace(at, what.size(), replacement));
    return 1 + static_cast<int>(std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n'));
  }
  // Verifies mine.cu, which must fail and say so in the last line.
  Ran verify_edited(const std::string& options = {}) const {
    const Ran ran = ssmjit("verify " + kModel + " --on cpu --source mine.cu " + options);
    EXPECT_EQ(ran.exit, kFellShort) << ran.err;
    EXPECT_THAT(ran.out, EndsWith("\nverified 0, failed 1, skipped 0 (cpu)\n"));
    return ran;
  }
  static std::string place(int line) { return "mine.cu:" + std::to_string(line) + ": "; }
};

TEST_F(CliVerifyCpu, WithoutAGpuItIsTheCpuAndTheLastLineSaysSo) {
  for (const char* on : {"", " --on cpu"}) {
    const Ran ran = ssmjit("verify " + kModel + on);
    EXPECT_EQ(ran.exit, kOk) << ran.out << ran.err;
    ASSERT_EQ(ran.lines().size(), 2u) << ran.out;
    EXPECT_THAT(ran.lines()[0], AllOf(StartsWith(kModel + " block_m="), HasSubstr("  ok: ")));
    EXPECT_EQ(ran.lines().back(), "verified 1, failed 0, skipped 0 (cpu)");
  }
}

TEST_F(CliVerifyCpu, ARingIsVerifiedTooWithWhateverIsSet) {
  const Ran ran = ssmjit(
      "verify nemotron3-nano:ring --on cpu --set head_dim=16,dstate=64,tokens=3,state=int8,rounding=stochastic,"
      "varlen=true");
  EXPECT_EQ(ran.exit, kOk) << ran.out << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("nemotron3-nano:ring block_m="));
  EXPECT_EQ(ran.lines().back(), "verified 1, failed 0, skipped 0 (cpu)");
}

TEST_F(CliVerifyCpu, JsonEndsWithTheSum) {
  const Ran ran = ssmjit("verify " + kModel + " --on cpu --schedule reverse --json");
  EXPECT_EQ(ran.exit, kOk) << ran.err;
  const std::vector<Json> json = ran.json();
  ASSERT_EQ(json.size(), 2u);
  EXPECT_EQ(json[0].at("outcome"), "ok");
  EXPECT_EQ(json[1], (Json{{"verified", 1}, {"failed", 0}, {"skipped", 0}, {"on", "cpu"}}));
}

TEST_F(CliVerifyCpu, ASampleIsVerifiedWithTheChecksThatAreAskedFor) {
  const Ran ran = ssmjit("verify " + kModel + " --on cpu --sample 3 --check races,bounds");
  EXPECT_EQ(ran.exit, kOk) << ran.out;
  ASSERT_EQ(ran.lines().size(), 4u);
  EXPECT_EQ(ran.lines().back(), "verified 3, failed 0, skipped 0 (cpu)");
}

TEST_F(CliVerifyCpu, AnEmittedFileVerifiesAgain) {
  edit("const float u = delta * x[r];", "const float u = x[r] * delta;");
  const Ran ran = ssmjit("verify " + kModel + " --on cpu --source mine.cu");
  EXPECT_EQ(ran.exit, kOk) << ran.out;
}

TEST_F(CliVerifyCpu, WrongMathsOfAnEditedFileAreWrong) {
  edit("const float u = delta * x[r];", "const float u = 1.1f * delta * x[r];");
  EXPECT_THAT(verify_edited().out, AllOf(HasSubstr("  wrong: "), HasSubstr("state: relative error")));
}

TEST_F(CliVerifyCpu, ALoadOutOfBoundsIsNamedByLineBufferAndOffset) {
  // A holds a float for each of 16 heads.
  const int line = edit("(args.A) + h, in.A);", "(args.A) + h + 16, in.A);");
  EXPECT_THAT(verify_edited().out,
              AllOf(HasSubstr("  faulty: "),
                    HasSubstr("forward schedule: " + place(line) + "out of bounds: in kernel ssmjit_update_"),
                    HasSubstr("thread 0 of block (0, 0) reads 4 bytes outside every buffer, at byte 64 of A")));
  const Ran reverse = verify_edited("--schedule reverse");
  EXPECT_THAT(reverse.out, AllOf(HasSubstr("reverse schedule: " + place(line)), HasSubstr("block (127, 0)")));
}

TEST_F(CliVerifyCpu, ARaceNamesBothThreads) {
  const int line = edit("narrow(v, out[own_row + i]);", "narrow(v, out[own_row / 2 * 2 + i]);");
  EXPECT_THAT(verify_edited().out, AllOf(HasSubstr(place(line) + "race: "), HasSubstr("of out"),
                                         HasSubstr("(line " + std::to_string(line) + ") writes too")));
  EXPECT_THAT(verify_edited("--check bounds").out, Not(HasSubstr("race: ")));
}

TEST_F(CliVerifyCpu, ATextThatDoesNotCompileIsNamedByItsLine) {
  const int line = edit("const float u = delta * x[r];", "const float u = nonsense * x[r];");
  EXPECT_THAT(verify_edited().out,
              AllOf(HasSubstr("  not_compiled: "), HasSubstr(place(line)), HasSubstr("'nonsense'")));
}

TEST_F(CliVerifyCpu, InlineAssemblyIsNamedByItsLineAndTheProcessLives) {
  const int line = edit("const float u = delta * x[r];", "asm(\"\"); const float u = delta * x[r];");
  EXPECT_THAT(verify_edited().out, HasSubstr(place(line) + "inline assembly"));
}

TEST_F(CliVerifyCpu, AnEndlessLoopEndsByTheTimeOut) {
  const int line = edit("const float u = delta * x[r];", "while (delta == delta) {} const float u = delta * x[r];");
  EXPECT_THAT(verify_edited("--timeout 0.5").out,
              AllOf(HasSubstr(place(line) + "endless: "), HasSubstr("after 0.5 s")));
  for (const char* wrong : {"0", "-1", "nan", "soon"})
    EXPECT_EQ(ssmjit("verify " + kModel + " --on cpu --timeout " + wrong).exit, kWrongUse) << wrong;
}

TEST_F(CliVerifyCpu, DebugLeavesTheSourceWhereItSays) {
  edit("const float u = delta * x[r];", "const float u = x[r] * delta;");
  for (const auto& [option, name, original] :
       {std::array{"", "kernel.cu", "k.cu"}, std::array{" --source mine.cu", "mine.cu", "mine.cu"}}) {
    const Ran ran = ssmjit("verify " + kModel + " --debug" + option);
    EXPECT_EQ(ran.exit, kOk) << ran.out << ran.err;
    const std::string path = (folder_ / ("ssmjit-debug-" + std::to_string(getuid())) / name).string();
    EXPECT_THAT(ran.err, HasSubstr("for gdb: break " + std::string(name) + ":LINE; the source is " + path + "\n"));
    EXPECT_EQ(read(path), read(folder_ / original));
  }
}

TEST_F(CliVerifyCpu, DebugFindsTheSameAtTheSameLine) {
  const int line = edit("(args.A) + h, in.A);", "(args.A) + h + 16, in.A);");
  EXPECT_THAT(verify_edited("--debug").out, AllOf(HasSubstr(place(line) + "out of bounds"), HasSubstr("byte 64 of A")));
}

TEST_F(CliVerifyCpu, DebugInAFolderThatCannotBeWrittenSaysWhichVariableToSet) {
  write("ssmjit-debug-" + std::to_string(getuid()), "");
  const Ran ran = ssmjit("verify " + kModel + " --debug");
  EXPECT_EQ(ran.exit, kFellShort);
  EXPECT_THAT(ran.out, HasSubstr("set TMPDIR"));
}

TEST_F(CliVerifyCpu, GdbStopsInOneThreadOfOneBlockAndSteps) {
  if (std::system("gdb --version > /dev/null 2>&1") != 0) GTEST_SKIP() << "gdb is not installed";
  const int line = edit("S::Sums::sum(y, column);", "S::Sums::sum(y, column);");
  const std::string at = "mine.cu:" + std::to_string(line);
  write("commands",
        "set breakpoint pending on\nset language c++\n"
        "break " +
            at +
            " if threadIdx.x == 37 && blockIdx.x == 5 && column == 5\nrun\n"
            "print threadIdx\nprint blockIdx\nprint gridDim\nprint Config::kDstate\ninfo locals\n"
            "next\nprint threadIdx.x + 1000\nbacktrace 2\nup\nprint warp + 2000\n"
            "break ssmjit::cpu::Findings::add\ninfo breakpoints\nkill\n");
  const Ran ran = shell("timeout 120 gdb -nx -batch -x commands --args '" SSMJIT_CLI_PATH "' verify " + kModel +
                        " --debug --source mine.cu");
  if (ran.err.find("ptrace") != std::string::npos) GTEST_SKIP() << "gdb may not trace here: " << ran.err;
  EXPECT_THAT(ran.out, AllOf(HasSubstr("UpdateStep<Config>::step"), HasSubstr(at), HasSubstr("= {x = 37}"),
                             HasSubstr("= {x = 5, y = 0}"), HasSubstr("= {x = 128, y = 1}"), HasSubstr("= 128\n"),
                             HasSubstr("\ndelta = ")))
      << ran.err;
  EXPECT_THAT(ran.out, AllOf(HasSubstr("= 1037\n"), HasSubstr("#1 "), HasSubstr("update<Config>"),
                             HasSubstr("= 2001\n"), HasSubstr("ssmjit::cpu::Findings::add(")))
      << "the same thread behind the shuffles; " << ran.err;
}

// ---- what needs a GPU ----

TEST_F(Cli, BenchAndTuneWithoutAGpuExitThreeWithASentence) {
  for (const std::string verb : {"bench ", "tune "}) {
    const Ran ran = ssmjit(verb + kModel);
    EXPECT_EQ(ran.exit, kMissing) << verb;
    EXPECT_THAT(ran.err, StartsWith("ssmjit: ")) << verb;
    EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
    EXPECT_THAT(ran.out, IsEmpty());
  }
}

TEST_F(Cli, BenchAndTuneRefuseAnAcceptanceThatDoesNotFitAndRingOptionsWithoutARing) {
  for (const std::string& arguments :
       {"bench " + kWholeModel + ":ring --accepted 7", "tune " + kWholeModel + ":ring --accepted 1:0.5,2:0.6",
        "bench " + kModel + " --steady", "bench " + kModel + " --phase flush",
        "bench " + kWholeModel + ":ring --phase drain", "bench " + kWholeModel + ":ring --steady --phase flush",
        "bench " + kWholeModel + ":ring --steady --steps 0"}) {
    const Ran ran = ssmjit(arguments);
    EXPECT_EQ(ran.exit, kWrongUse) << arguments << ": " << ran.err;
    EXPECT_THAT(ran.out, IsEmpty());
  }
  EXPECT_THAT(ssmjit("bench " + kWholeModel + ":ring --accepted 7").err, HasSubstr("accepted: got 7 tokens at most"));
  EXPECT_THAT(ssmjit("bench " + kModel + " --steady").err, HasSubstr("has no ring; name one as SPEC:ring"));
}

TEST_F(Cli, BenchSpeculativeRefusesWhatDoesNotFitBeforeItAsksForAGpu) {
  const std::pair<const char*, const char*> wrong[] = {
      {" --speculative --tokens 1", "tokens: got 1; wants 2 to 16"},
      {" --speculative --acceptance 0.5,2", "acceptance: got 2"},
      {" --speculative --acceptance half", "--acceptance: got \"half\""},
      {" --speculative --acceptance 1 --accepted 2", "wants one of them"},
      {" --speculative --accepted 7", "accepted: got 7 tokens at most; a step has 6"},
      {" --speculative --forms ring,telegraph", "--forms: got \"telegraph\""},
      {" --speculative --steady", "leave out --steady"},
      {" --speculative --plan block_m=8", "leave out --plan"},
      {" --speculative --window 33", "--window"},
      {" --acceptance 1", "--speculative"}};
  for (const auto& [arguments, says] : wrong) {
    const Ran ran = ssmjit("bench " + kModel + arguments);
    EXPECT_EQ(ran.exit, kWrongUse) << arguments << ": " << ran.err;
    EXPECT_THAT(ran.err, HasSubstr(says)) << arguments;
    EXPECT_THAT(ran.out, IsEmpty()) << arguments;
  }
  EXPECT_THAT(ssmjit("bench " + kWholeModel + ":conv1d --speculative").err, HasSubstr("SPEC:update"));
  const Ran ran = ssmjit("bench " + kWholeModel + " --speculative --set state=bf16");
  EXPECT_EQ(ran.exit, kMissing) << ran.err;
  EXPECT_THAT(ran.out, IsEmpty());
}

TEST_F(Cli, TuneRefusesAStrategyThatThereIsNotAndRoundsOfNothing) {
  const Ran ran = ssmjit("tune " + kModel + " --strategy fast");
  EXPECT_EQ(ran.exit, kWrongUse);
  EXPECT_THAT(ran.err, HasSubstr("wants exhaustive, halving or model"));
  EXPECT_EQ(ssmjit("tune " + kModel + " --rounds 30").exit, kWrongUse) << "without --exhaustive";
  EXPECT_EQ(ssmjit("tune " + kModel + " --exhaustive --rounds 0").exit, kWrongUse);
}

// ---- tables ----

class CliTables : public Cli {
 protected:
  void SetUp() override {
    Cli::SetUp();
    journal_ = std::string(SSMJIT_SOURCE_DIR) + "/tests/journals/update.jsonl";
    fit_ = ssmjit("table fit '" + journal_ + "' -o t.json");
  }
  std::string journal_;
  Ran fit_;
};

TEST_F(CliTables, FitWritesATableThatShowPrints) {
  ASSERT_EQ(fit_.exit, kOk) << fit_.err;
  EXPECT_THAT(fit_.err, HasSubstr("rows from"));
  const Table table = Table::from_json(read(folder_ / "t.json"));
  ASSERT_FALSE(table.rows.empty());
  const Ran shown = ssmjit("table show t.json");
  EXPECT_EQ(shown.exit, kOk);
  EXPECT_THAT(shown.out, HasSubstr(table.rows.front().plan.text()));
  EXPECT_EQ(ssmjit("table show t.json --json").json().size(), table.rows.size());
}

TEST_F(CliTables, FitOfShardsIsByteEqualToFitOfTheWhole) {
  std::istringstream text(read(journal_));
  std::string shard[2];
  int i = 0;
  for (std::string line; std::getline(text, line);) shard[i++ % 2] += line + "\n";
  write("a.jsonl", shard[0]);
  write("b.jsonl", shard[1]);
  ASSERT_EQ(ssmjit("table fit b.jsonl a.jsonl -o s.json").exit, kOk);
  EXPECT_EQ(read(folder_ / "s.json"), read(folder_ / "t.json"));
}

TEST_F(CliTables, FitSkipsWhatItCannotReadAndSaysHowMuch) {
  write("bad.jsonl", "nonsense\n" + read(journal_) + "{\"torn\": ");
  const Ran ran = ssmjit("table fit bad.jsonl -o s.json");
  EXPECT_EQ(ran.exit, kOk);
  EXPECT_THAT(ran.err, HasSubstr("2 lines could not be read"));
  EXPECT_EQ(read(folder_ / "s.json"), read(folder_ / "t.json"));
}

TEST_F(CliTables, FitOfNothingFallsShort) {
  write("empty.jsonl", "");
  EXPECT_EQ(ssmjit("table fit empty.jsonl -o s.json").exit, kFellShort);
  EXPECT_EQ(ssmjit("table fit nowhere.jsonl -o s.json").exit, kWrongUse);
}

TEST_F(CliTables, Row28_LookupSaysThatARowIsOfAnotherTextOfTheKernel) {
  const Description d = load_model(kWholeModel).kernel("update");
  TableRow row;
  row.device = "h200";
  row.kernel_digest = d.kernel_digest();
  row.cost_digest = d.cost_digest();
  row.total_heads = 128;
  row.us = 3;
  row.plan = default_plan(d, Arch{}, 128);
  const auto lookup = [&](const std::string& digest) {
    row.source_digest = digest;
    write("row.json", Table{{row}}.json());
    return ssmjit("table lookup " + kModel + " --table row.json --batches 8 --json").json().at(0);
  };
  const Json now = lookup(emit(d, row.plan, Arch{}).digest), before = lookup("0123456789abcdef"), unknown = lookup("");
  EXPECT_EQ(now.at("older_text"), false);
  EXPECT_EQ(unknown.at("older_text"), false);
  EXPECT_EQ(before.at("older_text"), true);
  EXPECT_THAT(before.at("reason").get<std::string>(), HasSubstr("measured with an older text of the kernel"));
  EXPECT_EQ(before.at("why"), "exact");
}

TEST_F(CliTables, MergeOfATableWithItselfIsTheTable) {
  const Ran ran = ssmjit("table merge t.json t.json -o m.json");
  ASSERT_EQ(ran.exit, kOk) << ran.err;
  EXPECT_EQ(read(folder_ / "m.json"), read(folder_ / "t.json"));
}

TEST_F(CliTables, LookupSaysWhyForEveryBatch) {
  const Table table = Table::from_json(read(folder_ / "t.json"));
  const Ran ran =
      ssmjit("table lookup " + kModel + " --set state=bf16 --table t.json --device h200 --batches 1,8 --json");
  ASSERT_EQ(ran.exit, kOk) << ran.err;
  const std::vector<Json> json = ran.json();
  ASSERT_EQ(json.size(), 2u);
  EXPECT_EQ(json[0].at("total_heads"), 16);
  for (const Json& line : json) EXPECT_FALSE(line.at("reason").get<std::string>().empty());
  EXPECT_EQ(ssmjit("table lookup " + kModel + " --table t.json").exit, kOk);
  EXPECT_EQ(ssmjit("table lookup " + kModel + " --device moon").exit, kWrongUse);
  EXPECT_EQ(ssmjit("table lookup " + kModel + " --table nowhere.json").exit, kWrongUse);
  EXPECT_EQ(ssmjit("table lookup " + kModel + " --pdl sometimes").exit, kWrongUse);
}

TEST_F(CliTables, RingsAreFittedShownLookedUpAndMergedBesideUpdates) {
  Description ring = load_model(kWholeModel + ":ring").kernel("ring");
  const Plan plan = default_plan(ring, Arch{9, 0, 'a'}, 4096);
  std::string lines;
  for (int batch : {8, 64}) {
    Measurement m;
    m.op = Op::ring;
    m.kernel_digest = ring.kernel_digest();
    m.cost_digest = ring.cost_digest();
    m.kernel = ring.summary();
    m.plan = plan;
    m.batch = batch;
    m.nheads = ring.nheads;
    m.device = "h200";
    m.phase = "weighted";
    m.steps_per_flush = 4;
    m.phases = {{.phase = Phase::no_flush, .us = 4, .floor_us = 2}, {.phase = Phase::flush, .us = 8, .floor_us = 3}};
    m.weigh();
    lines += m.json() + "\n";
  }
  write("ring.jsonl", lines);
  ASSERT_EQ(ssmjit("table fit ring.jsonl -o r.json").exit, kOk);
  const Ran shown = ssmjit("table show r.json");
  EXPECT_THAT(shown.out, AllOf(HasSubstr("5.00 us"), HasSubstr("no_flush"), HasSubstr("flush      8.00")));
  const std::vector<Json> rows = ssmjit("table show r.json --json").json();
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].at("op"), "ring");
  EXPECT_EQ(rows[0].at("flush").at("us"), 8);

  ASSERT_EQ(ssmjit("table merge t.json r.json -o m.json").exit, kOk);
  EXPECT_EQ(Table::from_json(read(folder_ / "m.json")).rows.size(),
            Table::from_json(read(folder_ / "t.json")).rows.size() + 2);
  const std::vector<Json> found =
      ssmjit("table lookup " + kWholeModel + ":ring --table m.json --batches 8,16 --json").json();
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].at("why"), "exact");
  EXPECT_EQ(found[0].at("expected_us"), 5);
  EXPECT_EQ(found[0].at("plan"), Json::parse(plan.json()));
  EXPECT_EQ(found[1].at("why"), "interpolated");
  EXPECT_EQ(ssmjit("table lookup " + kModel + " --table r.json --batches 8 --json").json().at(0).at("why"), "default")
      << "a ring's row is none for an update";
}

TEST_F(CliTables, FitTakesABoundAndSaysHowManyPlansAreLeft) {
  EXPECT_THAT(fit_.err, HasSubstr("plans within 0.10% of the best of each size"));
  const Ran wide = ssmjit("table fit '" + journal_ + "' --max-regret 0.1 -o w.json");
  ASSERT_EQ(wide.exit, kOk) << wide.err;
  const Table few = Table::from_json(read(folder_ / "w.json")), all = Table::from_json(read(folder_ / "t.json"));
  EXPECT_EQ(few.rows.size(), all.rows.size());
  EXPECT_LE(few.plan_count(), all.plan_count());
  EXPECT_EQ(ssmjit("table fit '" + journal_ + "' --max-regret -1 -o w.json").exit, kWrongUse);
  EXPECT_EQ(ssmjit("table fit '" + journal_ + "' --max-regret much -o w.json").exit, kWrongUse);
}

TEST_F(CliTables, CheckPrintsRegretAndItsLastObjectHoldsIt) {
  const std::string journal = " --journal '" + journal_ + "'";
  const Ran ran = ssmjit("table check t.json" + journal + " --max-regret 0.005");
  EXPECT_EQ(ran.exit, kOk) << ran.out << ran.err;
  EXPECT_THAT(ran.out, AllOf(HasSubstr("(exact)"), HasSubstr("regret of"), HasSubstr("worst")));
  const std::vector<Json> json = ssmjit("table check t.json --json" + journal).json();
  const std::size_t rows = Table::from_json(read(folder_ / "t.json")).rows.size();
  ASSERT_EQ(json.size(), rows + 1);
  EXPECT_EQ(json.front().at("answer").at("why"), "exact");
  EXPECT_LE(json.back().at("worst_regret").get<double>(), 0.005);
  EXPECT_TRUE(json.back().at("median_loo_regret").is_number());
  EXPECT_TRUE(json.back().at("worst_loo_regret").is_number());
  EXPECT_EQ(json.back().at("compared"), rows);
  EXPECT_EQ(json.back().at("not_timed"), 0);
}

TEST_F(CliTables, CheckFallsShortOfItsBoundAndWithoutATime) {
  std::istringstream text(read(journal_));
  std::string slower;  // the same plans, each size's best 10% faster than what the table has
  Table table = Table::from_json(read(folder_ / "t.json"));
  for (std::string line; std::getline(text, line);) {
    Measurement m = Measurement::from_json(line);
    const bool chosen = std::any_of(table.rows.begin(), table.rows.end(), [&](const TableRow& row) {
      return row.total_heads == m.total_heads() && row.plan == m.plan && row.pdl == m.pdl;
    });
    if (chosen) m.us *= 1.5;
    slower += m.json() + "\n";
  }
  write("s.jsonl", slower);
  EXPECT_EQ(ssmjit("table check t.json --journal s.jsonl").exit, kOk) << "no bound was given";
  const Ran over = ssmjit("table check t.json --journal s.jsonl --max-regret 0.01");
  EXPECT_EQ(over.exit, kFellShort);
  EXPECT_THAT(over.err, HasSubstr("fell short: the worst regret is"));

  for (TableRow& row : table.rows) row.plan.block_m = 24;
  write("u.json", table.json());
  const Ran untimed = ssmjit("table check u.json --journal '" + journal_ + "' --max-regret 0.01");
  EXPECT_EQ(untimed.exit, kFellShort);
  EXPECT_THAT(untimed.out, AllOf(HasSubstr("its plan was not timed"), HasSubstr("whose plan has no time there")));
}

TEST_F(CliTables, CheckShowsWhatAnotherGpusTableCostsOnThisOne) {
  // The same journal as if an H100 had measured it, where the best plan of each row here is half as fast.
  const Table here = Table::from_json(read(folder_ / "t.json"));
  std::istringstream text(read(journal_));
  std::string there;
  for (std::string line; std::getline(text, line);) {
    Measurement m = Measurement::from_json(line);
    m.device = "h100";
    m.device_name = "NVIDIA H100 80GB HBM3";
    for (const TableRow& row : here.rows)
      if (row.total_heads == m.total_heads() && row.plan == m.plan) {
        m.us *= 2;
        for (PhaseMeasurement& p : m.phases) p.us *= 2;
      }
    there += m.json() + "\n";
  }
  write("h100.jsonl", there);
  ASSERT_EQ(ssmjit("table fit h100.jsonl -o h100.json").exit, kOk);
  const std::string on_here = "table check h100.json --journal '" + journal_ + "'";
  const Ran ran = ssmjit(on_here);
  EXPECT_EQ(ran.exit, kOk) << ran.err;
  EXPECT_THAT(ran.out, AllOf(HasSubstr("(other_device)"), HasSubstr("rows of h100 answer on h200"),
                             testing::Not(HasSubstr("(exact)"))));
  const std::vector<Json> json = ssmjit(on_here + " --json").json();
  EXPECT_EQ(json.back().at("compared"), here.rows.size());
  EXPECT_GT(json.back().at("worst_regret").get<double>(), 0);
  EXPECT_EQ(json.back().at("compared_loo"), 0) << "no row of this GPU to leave out";
  for (std::size_t i = 0; i + 1 < json.size(); ++i) {
    EXPECT_EQ(json[i].at("device"), "h200");
    EXPECT_EQ(json[i].at("answer").at("why"), "other_device");
  }
  EXPECT_EQ(ssmjit(on_here + " --max-regret 0").exit, kFellShort);
  // With rows of this GPU beside them, its own answer.
  ASSERT_EQ(ssmjit("table merge h100.json t.json -o both.json").exit, kOk);
  EXPECT_THAT(ssmjit("table check both.json --journal '" + journal_ + "'").out,
              AllOf(HasSubstr("(exact)"), testing::Not(HasSubstr("other_device"))));
}

TEST_F(CliTables, CheckReadsTheJournalBesideTheTableAndSaysWhereItLooked) {
  const Ran without = ssmjit("table check t.json");
  EXPECT_EQ(without.exit, kWrongUse);
  EXPECT_THAT(without.err, AllOf(HasSubstr("t.jsonl is not there"), HasSubstr("--journal")));
  write("t.jsonl", read(journal_));
  EXPECT_EQ(ssmjit("table check t.json").exit, kOk);
}

TEST_F(CliTables, EmitWritesWhatAnEngineBuildsIn) {
  ASSERT_EQ(ssmjit("table emit t.json --as cpp -o t.h").exit, kOk);
  EXPECT_THAT(read(folder_ / "t.h"), HasSubstr("constexpr Choice lookup("));
  ASSERT_EQ(ssmjit("table emit t.json --as python -o t.py").exit, kOk);
  EXPECT_THAT(read(folder_ / "t.py"), HasSubstr("def lookup("));
  ASSERT_EQ(ssmjit("table emit t.json --as json -o u.json").exit, kOk);
  EXPECT_EQ(read(folder_ / "u.json"), read(folder_ / "t.json"));
  EXPECT_EQ(ssmjit("table emit t.json --as rust -o t.rs").exit, kWrongUse);
}

TEST_F(CliTables, PredictMarksWhatItSaysEverywhere) {
  const Ran ran = ssmjit("table predict " + kWholeModel + " --device b200 --pdl off,chain --batches 1,64 -o p.json");
  ASSERT_EQ(ran.exit, kOk) << ran.err;
  EXPECT_THAT(ran.err, HasSubstr("all predicted"));
  const Table table = Table::from_json(read(folder_ / "p.json"));
  EXPECT_EQ(table.rows.size(), 4 * load_model(kWholeModel).kernels.size()) << "two modes, two batches";
  EXPECT_THAT(ssmjit("table show p.json").out, HasSubstr("us  predicted"));
  for (const Json& row : ssmjit("table show p.json --json").json()) EXPECT_EQ(row.at("predicted"), true);
  const std::string lookup = "table lookup " + kModel + " --device b200 --table p.json --batches 64";
  EXPECT_THAT(ssmjit(lookup).out, HasSubstr("predicted"));
  EXPECT_EQ(ssmjit(lookup + " --json").json().at(0).at("why"), "predicted");
  ASSERT_EQ(ssmjit("table emit p.json --as cpp -o p.h").exit, kOk);
  EXPECT_THAT(read(folder_ / "p.h"), HasSubstr(", true, true}"));
  const Ran moon = ssmjit("table predict " + kModel + " --device moon");
  EXPECT_EQ(moon.exit, kWrongUse);
  EXPECT_THAT(moon.err, HasSubstr("facts to predict from are known of"));
}

TEST_F(CliTables, AFileThatIsNoTableIsRefused) {
  write("bad.json", "[1, 2");
  EXPECT_EQ(ssmjit("table show bad.json").exit, kWrongUse);
  EXPECT_EQ(ssmjit("table merge bad.json -o m.json").exit, kWrongUse);
}

// ---- report ----

// ---- what is shipped ----

class ShippedTable : public Cli {
 protected:
  // The journal, unpacked.
  std::string journal(const std::string& name, const std::string& gpu = "h200") const {
    const std::string to = (folder_ / (gpu + "-" + name + ".jsonl")).string();
    const std::string packed = SSMJIT_SOURCE_DIR "/heuristics/tables/" + gpu + "/journals/" + name + ".jsonl.gz";
    EXPECT_EQ(shell("cp '" + packed + "' " + to + ".gz && gzip -df " + to + ".gz").exit, 0);
    return to;
  }
  Json check(const std::string& table, const std::string& name, const std::string& gpu = "h200") const {
    const Ran ran = ssmjit("table check '" + table + "' --json --journal " + journal(name, gpu));
    EXPECT_EQ(ran.exit, kOk) << ran.err;
    return ran.json().back();
  }
  static std::string shipped(const std::string& model, const std::string& gpu = "h200") {
    return SSMJIT_SOURCE_DIR "/heuristics/tables/" + gpu + "/" + model + ".json";
  }
};

TEST_F(ShippedTable, OfSuperIsTheBestOfItsOwnSweepsWithinTheBoundOfTheFit) {
  const Json kernels = check(shipped("nemotron3-super"), "nemotron3-super-tp8");
  const std::string own = journal("nemotron3-super-tp8");
  EXPECT_EQ(kernels["compared"], 69);  // six kernels
  EXPECT_EQ(kernels["not_timed"], 0);
  EXPECT_LE(kernels["worst_regret"], 0.001);
  EXPECT_LE(kernels["median_loo_regret"], 0.01);
  // Without other sweeps' rows.
  ASSERT_EQ(ssmjit("table fit " + own + " -o own.json").exit, kOk);
  const Ran sweep = ssmjit("table check own.json --json --journal " + own);
  EXPECT_EQ(sweep.exit, kOk) << sweep.err;
  EXPECT_LE(sweep.json().back()["worst_loo_regret"], 0.05);
  const Ran shown = ssmjit("table show own.json");
  EXPECT_THAT(shown.out, HasSubstr(" heads, where its clusters fit\n"));
  const std::vector<Json> rows = ssmjit("table show own.json --json").json();
  EXPECT_GT(std::count_if(rows.begin(), rows.end(), [](const Json& row) { return row.contains("fits_heads"); }), 5);
  EXPECT_TRUE(std::any_of(rows.begin(), rows.end(), [](const Json& row) { return row.contains("between"); }));
  // Rings behind a producer, and of bf16, are of another sweep.
  write("both.jsonl", read(journal("nemotron3-super-tp8")) + read(journal("nemotron3-rings")));
  const Ran ran = ssmjit("table check '" + shipped("nemotron3-super") + "' --json --journal both.jsonl");
  EXPECT_EQ(ran.exit, kOk) << ran.err;
  const Json all = ran.json().back();
  EXPECT_EQ(all["compared"], 104);
  EXPECT_EQ(all["not_timed"], 0);
  EXPECT_LE(all["worst_regret"], 0.001);
  const std::string rings = journal("nemotron3-rings");
  ASSERT_EQ(ssmjit("table fit " + rings + " -o rings.json").exit, kOk);
  EXPECT_LE(ssmjit("table check rings.json --json --journal " + rings).json().back()["worst_loo_regret"], 0.151);
}

TEST_F(ShippedTable, OfWhatVerifiesDraftsIsTheBestOfItsSweep) {
  const Json said = check(shipped("nemotron3-super"), "nemotron3-super-tp8-verify");
  EXPECT_EQ(said["compared"], 42);  // snapshots, slots, replay
  EXPECT_EQ(said["not_timed"], 0);
  EXPECT_LE(said["worst_regret"], 0.001);
  // A size at an end has rows on one side alone once it is left out.
  int between = 0;
  for (const Json& cell : ssmjit("table check '" + shipped("nemotron3-super") + "' --json --journal " +
                                 journal("nemotron3-super-tp8-verify"))
                              .json()) {
    if (!cell.contains("left_out") || cell["left_out"]["why"] != "interpolated") continue;
    ++between;
    EXPECT_LE(cell["left_out"]["regret"], 0.05) << cell;
  }
  EXPECT_GE(between, 20);
}

TEST_F(ShippedTable, OfUpdateConvolutionAndNormIsWithinOnePercentOfTheBestOfAnExhaustiveSweepApart) {
  const std::string first = journal("nemotron3-super-tp8");
  ASSERT_EQ(ssmjit("table fit " + first + " -o fitted.json").exit, kOk);
  // Measurements of another text of a kernel say nothing of this one's.
  const auto text_of = [](const std::string& line) { return Json::parse(line)["source_digest"].get<std::string>(); };
  std::set<std::string> texts;
  std::istringstream own(read(first)), apart(read(journal("nemotron3-super-tp8-exhaustive")));
  for (std::string line; std::getline(own, line);) texts.insert(text_of(line));
  std::string of_these;
  for (std::string line; std::getline(apart, line);)
    if (texts.count(text_of(line)) != 0) of_these += line + "\n";
  write("apart.jsonl", of_these);
  const Ran ran = ssmjit("table check fitted.json --json --journal apart.jsonl");
  EXPECT_EQ(ran.exit, kOk) << ran.err;
  const Json said = ran.json().back();
  EXPECT_EQ(said["compared"], 12);  // update, convolution, norm
  EXPECT_LE(said["worst_regret"], 0.01);
  EXPECT_LE(said["median_loo_regret"], 0.01);
}

TEST_F(ShippedTable, OfOneSweepIsWithinTwoPercentOfTheBestOfAnother) {
  const std::string first = journal("nemotron3-super-tp8-one-gpu"), second = journal("nemotron3-super-tp8-two-gpus");
  for (const auto& [from, judge] : {std::pair(first, second), std::pair(second, first)}) {
    ASSERT_EQ(ssmjit("table fit " + from + " -o fitted.json").exit, kOk);
    EXPECT_EQ(ssmjit("table check fitted.json --max-regret 0.02 --journal " + judge).exit, kOk) << from;
  }
}

TEST_F(ShippedTable, OfTheH100IsTheBestOfItsSweepAndShowsWhatItCostsOnAnH200) {
  const Json there = check(shipped("nemotron3-super", "h100"), "nemotron3-super-tp8", "h100");
  EXPECT_EQ(there["compared"], 66);
  EXPECT_EQ(there["not_timed"], 0);
  EXPECT_LE(there["worst_regret"], 0.001);
  EXPECT_LE(there["worst_loo_regret"], 0.05);
  const Json here = check(shipped("nemotron3-super", "h100"), "nemotron3-super-tp8-exhaustive");
  EXPECT_EQ(here["compared"], 20);
  EXPECT_GT(here["worst_regret"], 0.01);
  EXPECT_LE(here["worst_regret"], 0.1);
  const Json back = check(shipped("nemotron3-super"), "nemotron3-super-tp8", "h100");
  EXPECT_GE(back["compared"], 50);
  EXPECT_GT(back["worst_regret"], 0.01);
  EXPECT_LE(back["worst_regret"], 0.06);
}

TEST_F(ShippedTable, OfRingLayersIsTheBestOfItsSweep) {
  for (const char* model : {"nemotron3-super", "nemotron3-nano"}) {
    const Json said = check(shipped(model), "nemotron3-ring-layers");
    EXPECT_EQ(said["compared"], 5) << model;
    EXPECT_LE(said["worst_regret"], 0.001) << model;
  }
}

TEST_F(ShippedTable, HoldsTheRowsThatItsJournalsGive) {
  const Table there = Table::from_json(read(shipped("nemotron3-nano")));
  ASSERT_EQ(ssmjit("table fit " + journal("nemotron3-nano-update") + " -o fitted.json").exit, kOk);
  const Table fitted = Table::from_json(read(folder_ / "fitted.json"));
  EXPECT_EQ(fitted.rows.size(), 43u);
  std::size_t same = 0;
  for (const TableRow& row : fitted.rows) same += std::count(there.rows.begin(), there.rows.end(), row);
  EXPECT_GE(same, 42u) << "all but the one in front of a row that is of an older journal";
  const Json layers = check(shipped("nemotron3-nano"), "nemotron3-nano-layers");
  EXPECT_EQ(layers["compared"], 28);  // layers of two dtypes, convolutions and norm
  EXPECT_EQ(layers["not_timed"], 3);  // plans of the layer that a later sweep had
  const Json layer = check(shipped("nemotron3-nano"), "nemotron3-nano-layer");
  EXPECT_EQ(layer["compared"], 5);
  EXPECT_LE(layer["worst_regret"], 0.001);
  EXPECT_LE(layers["worst_regret"], 0.001);
}

const std::string kJournal = SSMJIT_SOURCE_DIR "/tests/vectors/journals/report-h200.jsonl";

TEST_F(Cli, ReportWritesOnePageFromJournals) {
  ASSERT_EQ(ssmjit("table fit " + kJournal + " -o t.json").exit, kOk);
  const Ran ran = ssmjit("report " + kJournal + " --table t.json -o r.html");
  EXPECT_EQ(ran.exit, kOk) << ran.err;
  EXPECT_THAT(ran.out, AllOf(StartsWith("r.html: 260 measurements"), HasSubstr("MB")));
  const std::string page = read(folder_ / "r.html");
  EXPECT_THAT(page, AllOf(StartsWith("<!doctype html>"), HasSubstr("report-h200.jsonl"), HasSubstr("t.json"),
                          EndsWith("</html>\n")));
  const std::vector<Json> json = ssmjit("report " + kJournal + " --json -o r.html").json();
  ASSERT_EQ(json.size(), 1u);
  EXPECT_EQ(json[0].at("bytes"), fs::file_size(folder_ / "r.html"));
}

TEST_F(Cli, AReportOfJournalsInPiecesIsThatOfTheWhole) {
  const std::string all = read(kJournal);
  const std::size_t middle = all.find('\n', all.size() / 2) + 1;
  write("a.jsonl", all.substr(0, middle) + R"({"schema":1,"torn)");
  write("b.jsonl", "not a line\n" + all.substr(middle));
  const Ran ran = ssmjit("report a.jsonl b.jsonl -o r.html --json");
  EXPECT_EQ(ran.exit, kOk);
  EXPECT_EQ(ran.json().at(0).at("measurements"), 260);
  EXPECT_THAT(ran.err, HasSubstr("b.jsonl: 1 lines could not be read"));
}

TEST_F(Cli, AReportWithoutAMeasurementIsRefused) {
  write("empty.jsonl", "");
  const Ran ran = ssmjit("report empty.jsonl -o r.html");
  EXPECT_EQ(ran.exit, kWrongUse);
  EXPECT_THAT(ran.err, AllOf(HasSubstr("empty.jsonl"), HasSubstr("no measurement"), HasSubstr("tune")));
  EXPECT_FALSE(fs::exists(folder_ / "r.html"));
  EXPECT_EQ(ssmjit("report nowhere.jsonl -o r.html").exit, kWrongUse);
  EXPECT_EQ(ssmjit("report " + kJournal).exit, kWrongUse) << "no -o";
  write("none.json", R"({"schema": 1, "rows": []})");
  EXPECT_THAT(ssmjit("report " + kJournal + " --table none.json -o r.html").err, HasSubstr("none.json"));
}

TEST_F(Cli, AReportOfFormsOfVerifyingDraftsStandsAloneOrBesideJournals) {
  SpeculativeStep step;
  step.base = step.kernel = "16 heads x 64 x 128";
  step.batch = 8;
  step.tokens = 6;
  step.accepted = "4";
  step.kept = 4;
  step.us = step.kernel_us = 5;
  step.plan = default_plan(mamba2({.nheads = 16, .head_dim = 64, .dstate = 128}), Arch{}, 16);
  write("forms.jsonl", step.json() + "\nnot a line\n" + step.json());
  Ran ran = ssmjit("report --speculative forms.jsonl -o r.html --json");
  EXPECT_EQ(ran.exit, kOk) << ran.err;
  EXPECT_EQ(ran.json().at(0).at("measurements"), 1) << "the last line is torn";
  EXPECT_THAT(ran.err, HasSubstr("forms.jsonl: 1 lines could not be read"));
  EXPECT_THAT(read(folder_ / "r.html"), HasSubstr("forms.jsonl"));
  ran = ssmjit("report " + kJournal + " --speculative forms.jsonl -o r.html --json");
  EXPECT_EQ(ran.json().at(0).at("measurements"), 261);
  EXPECT_EQ(ssmjit("report -o r.html").exit, kWrongUse);
  write("empty.jsonl", "");
  ran = ssmjit("report --speculative empty.jsonl -o r.html");
  EXPECT_EQ(ran.exit, kWrongUse);
  EXPECT_THAT(ran.err, HasSubstr("empty.jsonl"));
}

// ---- doctor ----

TEST_F(Cli, DoctorSaysWhatIsThereAndWhatIsMissing) {
  const Ran ran = ssmjit("doctor");
  EXPECT_EQ(ran.exit, kMissing) << "no GPU";
  EXPECT_THAT(ran.out, AllOf(HasSubstr("nvrtc"), HasSubstr("lack gpu"), HasSubstr("sm_120a (unverified on hardware)"),
                             HasSubstr((folder_ / "cache").string())));
  for (const std::string& name : shipped_models()) EXPECT_THAT(ran.out, HasSubstr("   " + name + ":"));
  const std::vector<Json> json = ssmjit("doctor --json").json();
  ASSERT_EQ(json.size(), 1u);
  EXPECT_TRUE(json[0].contains("targets"));
}

TEST_F(Cli, Row28_RowsOfAnotherDriverAreSaidToBe) {
  setenv("SSMJIT_LIBCUDA", SSMJIT_STUB_LIBCUDA, 1);  // an H200
  setenv("STUB_DRIVER_VERSION", "12080", 1);
  const std::string spec = "table lookup nemotron3-super-tp8:norm --batches 8";
  const Ran older = ssmjit("doctor"), looked_up = ssmjit(spec), on_another = ssmjit(spec + " --device h100");
  setenv("STUB_DRIVER_VERSION", "13000", 1);
  const Ran same = ssmjit("doctor"), found = ssmjit(spec);
  unsetenv("STUB_DRIVER_VERSION");
  unsetenv("SSMJIT_LIBCUDA");
  const char* const said = "; measured under a driver for CUDA 13.0, this one is for 12.8";
  EXPECT_THAT(older.out, HasSubstr(said));
  EXPECT_THAT(looked_up.out, HasSubstr(said));
  for (const Ran& ran : {on_another, same, found})
    EXPECT_THAT(ran.out, Not(HasSubstr("measured under a driver"))) << ran.out;
}

}  // namespace
}  // namespace ssmjit
