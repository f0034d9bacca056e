// Every kernel that can be chosen compiles: by NVRTC as at run time, and by nvcc from the emitted file alone.
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <regex>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/cubin.h>
#include <ssmjit/error.h>
#include <ssmjit/source.h>
#include <ssmjit/table.h>

namespace ssmjit {
namespace {

struct Candidate {
  std::string model;
  Description description;
  Arch arch;
};

// Shipped models that have a kernel of this name.
std::vector<std::string> models_with(const std::string& kernel) {
  std::vector<std::string> names;
  for (const std::string& name : shipped_models())
    for (const auto& [own, description] : load_model(name).kernels)
      if (own == kernel) names.push_back(name);
  return names;
}

// Shipped models and what --set makes of them, on every architecture.
std::vector<Candidate> candidates() {
  std::vector<Candidate> all;
  for (const std::string& name : models_with("update"))
    for (const char* set : {"state=fp32", "state=bf16", "state=fp16,gate=silu(z)", "input=fp16,dt=bf16,weights=bf16",
                            "input=fp32,state=bf16,aligned_rows=false", "destination_slots=true,pad_output=untouched",
                            "head_dim=80,dstate=96,state=fp16,pad_output=as_if_zero_state",
                            "delta=clamp(softplus(dt + dt_bias),0.001,0.1),skip=null"})
      for (const Arch& arch : Arch::known()) {
        Description d = load_model(name).kernel("update");
        d.set(set);
        EXPECT_THAT(d.problems(), testing::IsEmpty()) << name << " " << set;
        all.push_back({name + " --set " + set, d, arch});
      }
  return all;
}

// The same of a ring, which every model may have.
std::vector<Candidate> ring_candidates() {
  std::vector<Candidate> all;
  for (const std::string& name : models_with("update"))
    for (const char* set :
         {"tokens=1", "tokens=6,state=bf16", "tokens=16,state=fp16,input=fp16,rounding=stochastic",
          "tokens=4,state=int8,gate=silu(z)", "tokens=8,state=fp8,rounding=stochastic:7,varlen=true",
          "store=ring:32:64,tokens=16,state=bf16,varlen=true,rounding=stochastic,dt=bf16,weights=bf16",
          "store=ring:1,state=bf16,input=fp16,pad_output=untouched",
          "head_dim=80,dstate=96,skip=null,delta=softplus(dt)", "head_dim=256,dstate=256,tokens=16,state=bf16",
          "head_dim=8,dstate=64,state=int8"})
      for (const Arch& arch : Arch::known()) {
        Description d = load_model(name).kernel("update");
        d.set(std::string("store=ring:16,") + set);
        EXPECT_THAT(d.problems(), testing::IsEmpty()) << name << " " << set;
        all.push_back({name + " --set store=ring:16," + set, d, arch});
      }
  return all;
}

// Updates of several tokens, which every model may have.
std::vector<Candidate> token_candidates() {
  std::vector<Candidate> all;
  for (const std::string& name : models_with("update"))
    for (const char* set :
         {"tokens=6,store=snapshots,state=bf16", "tokens=6,store=slots,accepted=true,gate=silu(z)",
          "tokens=16,store=snapshots,tree=true,state=fp16,input=fp16", "tokens=2,destination_slots=true,varlen=true",
          "tokens=64,store=slots,state=bf16,rounding=stochastic,varlen=true", "tokens=3,store=slots,state=int8",
          "tokens=4,store=snapshots,state=fp8,rounding=stochastic:7,tree=true", "store=slots,state=int16,accepted=true",
          "tokens=5,store=snapshots,input=fp32,aligned_rows=false,pad_output=as_if_zero_state",
          "head_dim=80,dstate=96,tokens=3,store=slots,state=fp16,dt=bf16,weights=bf16",
          "head_dim=256,dstate=256,tokens=16,store=slots", "head_dim=8,dstate=24,tokens=2,state=bf16,skip=null"})
      for (const Arch& arch : Arch::known()) {
        Description d = load_model(name).kernel("update");
        d.set(set);
        EXPECT_THAT(d.problems(), testing::IsEmpty()) << name << " " << set;
        all.push_back({name + " --set " + set, d, arch});
      }
  return all;
}

// Replays, which every model may have.
std::vector<Candidate> replay_candidates() {
  std::vector<Candidate> all;
  for (const std::string& name : models_with("update"))
    for (const char* set :
         {"tokens=6,state=bf16", "tokens=1,gate=silu(z)", "tokens=16,state=fp16,input=fp16,rounding=stochastic",
          "tokens=9,state=bf16,dt=bf16,weights=bf16,rounding=stochastic:4,pad_output=untouched",
          "head_dim=80,dstate=96,tokens=3,skip=null", "head_dim=256,dstate=256,tokens=16,state=bf16"})
      for (const Arch& arch : Arch::known()) {
        Description d = load_model(name).kernel("update");
        d.set(std::string("store=replay,") + set);
        EXPECT_THAT(d.problems(), testing::IsEmpty()) << name << " " << set;
        all.push_back({name + " --set store=replay," + set, d, arch});
      }
  return all;
}

// Norms of the shipped models and others.
std::vector<Candidate> norm_candidates() {
  std::vector<Candidate> all;
  for (const std::string& name : models_with("norm"))
    for (const char* set : {"tokens=1", "tokens=6,input=fp16,weights=fp16", "weights=fp32,norm.before_gate=true",
                            "norm.gate=none,norm.bias=true", "input=fp32,weights=fp32", "aligned_rows=false"})
      for (const Arch& arch : Arch::known()) {
        Description d = load_model(name).kernel("norm");
        d.set(set);
        EXPECT_THAT(d.problems(), testing::IsEmpty()) << name << " " << set;
        all.push_back({name + ":norm --set " + set, d, arch});
      }
  return all;
}

bool nvrtc_is_missing(std::string& why) {
  try {
    nvrtc_version();
    return false;
  } catch (const Error& e) {
    why = e.what();
    return true;
  }
}

void compiles(const Candidate& c, const Plan& plan) {
  try {
    const Cubin cubin = compile(emit(c.description, plan, c.arch), {.use_cache = false});
    EXPECT_FALSE(cubin.image.empty());
    EXPECT_GT(cubin.registers, 0);
    EXPECT_THAT(cubin.log, testing::Not(testing::HasSubstr("warning")));
  } catch (const Error& e) {
    ADD_FAILURE() << c.model << " " << c.arch.text() << " " << plan.text() << ": " << e.what();
  }
}

// Some kernels an architecture; the whole space when SSMJIT_TEST_ALL is set.
void compiles_sampled(const std::vector<Candidate>& all, int count = 3) {
  if (std::getenv("SSMJIT_TEST_ALL") != nullptr) {
    for (const Candidate& c : all)
      for (const Plan& plan : plan_space(c.description, c.arch)) compiles(c, plan);
    return;
  }
  std::mt19937_64 random(20);
  for (const Arch& arch : Arch::known()) {
    std::vector<Candidate> here;
    for (const Candidate& c : all)
      if (c.arch == arch) here.push_back(c);
    for (int i = 0; i < count; ++i) {
      const Candidate& c = here[random() % here.size()];
      const std::vector<Plan> plans = plan_space(c.description, arch);
      compiles(c, plans[random() % plans.size()]);
    }
  }
}

TEST(Compile, NvrtcTakesEveryKernelOfTheSample) {
  std::string why;
  if (nvrtc_is_missing(why)) GTEST_SKIP() << why;
  compiles_sampled(candidates());
}

TEST(Compile, NvrtcTakesEveryRingOfTheSample) {
  std::string why;
  if (nvrtc_is_missing(why)) GTEST_SKIP() << why;
  compiles_sampled(ring_candidates());
}

TEST(Compile, NvrtcTakesEveryReplayOfTheSample) {
  std::string why;
  if (nvrtc_is_missing(why)) GTEST_SKIP() << why;
  compiles_sampled(replay_candidates(), 1);
}

TEST(Compile, NvrtcTakesEveryUpdateOfTokensOfTheSample) {
  std::string why;
  if (nvrtc_is_missing(why)) GTEST_SKIP() << why;
  compiles_sampled(token_candidates(), 1);
}

TEST(Compile, NvrtcTakesEveryNormOfTheSample) {
  std::string why;
  if (nvrtc_is_missing(why)) GTEST_SKIP() << why;
  compiles_sampled(norm_candidates());
}

TEST(Compile, DefaultPlansOfTheShippedModelsSpillNothing) {
  std::string why;
  if (nvrtc_is_missing(why)) GTEST_SKIP() << why;
  for (const std::string& name : shipped_models())
    for (const auto& [kernel, d] : load_model(name).kernels) {
      const Cubin cubin = compile(emit(d, default_plan(d, Arch{}, 1024), Arch{}), {.use_cache = false});
      EXPECT_EQ(cubin.spill_bytes, 0) << name << ":" << kernel;
      if (d.op() == Op::update && d.token_count == 1) {
        EXPECT_EQ(cubin.smem_bytes, 0) << name << ": static shared memory beside the plan's";
      }
    }
}

TEST(Compile, SizesWithFewPlansCompileToo) {
  std::string why;
  if (nvrtc_is_missing(why)) GTEST_SKIP() << why;
  for (const auto& [head_dim, dstate] : {std::pair(8, 16), {8, 24}, {64, 24}, {64, 200}}) {
    const Description d =
        mamba2({.nheads = 4, .head_dim = head_dim, .dstate = dstate, .ngroups = 2}).state(DType::bf16);
    compiles({"by hand", d, Arch{}}, default_plan(d, Arch{}, 64));
  }
}

// ---- nvcc, where there is one ----

class Nvcc : public testing::Test {
 protected:
  void SetUp() override {
    if (std::system("nvcc --version > /dev/null 2>&1") != 0) GTEST_SKIP() << "no nvcc on PATH";
    std::string pattern = (std::filesystem::temp_directory_path() / "ssmjit-nvcc-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override {
    std::error_code ignored;
    if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
  }

  // Succeeds without a word but of functions that nobody calls.
  void expect_clean(const std::string& file, const std::string& options) const {
    const std::string log = folder_ + "/log";
    const std::string command =
        "cd " + folder_ + " && nvcc -std=c++17 " + options + " -Xcompiler -Wall " + file + " > " + log + " 2>&1";
    const int status = std::system(command.c_str());
    std::ifstream in(log);
    std::ostringstream said;
    said << in.rdbuf();
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << command << "\n" << said.str();
    std::istringstream lines(said.str());
    for (std::string line; std::getline(lines, line);) {
      const bool warning = line.find("warning") != std::string::npos || line.find("error") != std::string::npos;
      const bool unused = line.find("was declared but never referenced") != std::string::npos ||
                          line.find("-Wunused-function") != std::string::npos;
      EXPECT_TRUE(!warning || unused) << options << ": " << line;
    }
  }

  std::string folder_;
};

TEST_F(Nvcc, RebuildsAnEmittedFileForEveryArchWithoutAnIncludePath) {
  for (std::size_t i = 0; i < Arch::known().size(); ++i) {
    const Arch& arch = Arch::known()[i];
    Description d = mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1});
    if (i % 2 == 1) d.state(DType::bf16).gate(silu(dsl::z)).destination_slots();
    if (i % 3 == 2) d.unaligned_rows();
    const std::vector<Plan> plans = plan_space(d, arch);
    const std::string file = folder_ + "/" + arch.text() + ".cu";
    std::ofstream(file) << emit(d, plans[(i * 131) % plans.size()], arch).text;
    expect_clean(file, "-arch=" + arch.text() + " -cubin -o " + folder_ + "/out.cubin");
  }
}

TEST_F(Nvcc, HostCompilerHasNothingToSayOfAnEmittedFile) {
  const Description d = mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1});
  std::ofstream(folder_ + "/k.cu") << emit(d, default_plan(d, Arch{}, 16), Arch{}).text;
  expect_clean(folder_ + "/k.cu", "-arch=sm_90a -c -o " + folder_ + "/k.o");
}

TEST_F(Nvcc, TakesTheTemplatesByHand) {
  for (const char* name : {"check.cu", "check_ring_layer.cu"}) {
    const std::string file = std::string(SSMJIT_SOURCE_DIR) + "/templates/" + name;
    expect_clean(file, "-arch=sm_80 -c -o " + folder_ + "/check.o");
    expect_clean(file, "-arch=sm_90a -c -o " + folder_ + "/check.o");
  }
}

}  // namespace
}  // namespace ssmjit
