// What a kernel really does to the process that runs it, on a GPU: a line of the journal each, and the sweep goes on.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/source.h>
#include <ssmjit/tune.h>

#include "autotune/fleet/fleet.h"
#include "autotune/fleet/worker_process.h"
#include "tests/autotune/fleet/planted_nvrtc.h"
#include "tests/gpu/needs_gpu.h"
#include "tests/heuristics/scoped_environment.h"

#ifdef SSMJIT_PLANTED_NVRTC

namespace ssmjit {
namespace {

using testing::HasSubstr;
using testing::SizeIs;

// Where a test binary that was carried to another machine finds what it starts.
std::string where(const char* variable, const char* built) {
  const char* named = std::getenv(variable);
  return named != nullptr ? named : built;
}

// The first four plans of an update that are not for dependent launches, swept at batch 8 by a worker; the lines of
// each.
class SweptByAWorker : public testing::Test {
 protected:
  void SetUp() override {
    NEEDS_GPU();
    for (const Plan& plan : plan_space(update_, device(0).arch()))
      if (!plan.early_state && plans_.size() < 4) plans_.push_back(plan);
    folder_ = (std::filesystem::temp_directory_path() / "ssmjit-faults-XXXXXX").string();
    ASSERT_NE(mkdtemp(folder_.data()), nullptr);
  }
  void TearDown() override {
    std::error_code ignored;
    if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
  }
  std::string entry(std::size_t i) const { return emit(update_, plans_[i], device(0).arch()).entries.front().name; }
  std::map<std::size_t, std::vector<Measurement>> swept() const {
    const ScopedEnvironment cache("SSMJIT_CACHE_DIR", folder_);
    WorkerProcess worker(0, {where("SSMJIT_TEST_CLI", SSMJIT_CLI_PATH), "worker"}, {.device_s = 5});
    std::map<std::size_t, std::vector<Measurement>> lines;
    TuneOptions options;
    options.plans = plans_;
    options.batches = {8};
    options.rounds = 3;  // none is pruned
    options.on_measurement = [&](const Measurement& m) {
      lines[static_cast<std::size_t>(std::find(plans_.begin(), plans_.end(), m.plan) - plans_.begin())].push_back(m);
    };
    sweep_on({&worker}, {{update_, options}});
    return lines;
  }
  static void expect_timed(const std::vector<Measurement>& lines) {
    ASSERT_THAT(lines, SizeIs(2)) << "verified and timed";
    EXPECT_GT(lines[1].us, 0) << name(lines[1].outcome) << ": " << lines[1].reason;
  }

  const Description update_ = mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1}).state(DType::bf16);
  std::vector<Plan> plans_;
  std::string folder_;
};

TEST_F(SweptByAWorker, Row26_MemoryThatEveryRunOfAKernelTakesOnAGpuCostsItALineAndWhatTheFirstTakesDoesNot) {
  const ScopedEnvironment leaking("SSMJIT_LIBCUDA", where("SSMJIT_TEST_LEAKING_LIBCUDA", SSMJIT_LEAKING_LIBCUDA));
  // 20 launches verify a plan: of 1 MiB they take 20 MiB, of 128 KiB 2.5, which is less than is noticed.
  const ScopedEnvironment leaks("SSMJIT_PLANTED_LEAKS",
                                entry(1) + "=1048576 " + entry(2) + "=67108864:once " + entry(3) + "=131072");
  const auto lines = swept();
  ASSERT_THAT(lines.at(1), SizeIs(1));
  EXPECT_EQ(lines.at(1)[0].outcome, Outcome::leaked) << lines.at(1)[0].reason;
  EXPECT_THAT(lines.at(1)[0].reason, HasSubstr("bytes of device memory are gone after it ran, twice in a row"));
  for (const std::size_t right : {0u, 2u, 3u}) expect_timed(lines.at(right));
}

TEST_F(SweptByAWorker, Row26_KernelsThatSpinOrWriteAstrayOnAGpuCostALineEachAndTheSweepGoesOn) {
  const PlantedNvrtc nvrtc(where("SSMJIT_TEST_PLANTED_NVRTC", SSMJIT_PLANTED_NVRTC), folder_ + "/nvrtc",
                           entry(1) + "=spin " + entry(2) + "=stray");
  const auto lines = swept();
  ASSERT_THAT(lines.at(1), SizeIs(1));
  EXPECT_EQ(lines.at(1)[0].outcome, Outcome::hung);
  EXPECT_THAT(lines.at(1)[0].reason, HasSubstr("no sign of life for 5.0 s"));
  ASSERT_THAT(lines.at(2), SizeIs(1));
  EXPECT_EQ(lines.at(2)[0].outcome, Outcome::crashed);
  EXPECT_THAT(lines.at(2)[0].reason, HasSubstr("illegal"));
  for (const std::size_t right : {0u, 3u}) expect_timed(lines.at(right));
}

}  // namespace
}  // namespace ssmjit

#endif
