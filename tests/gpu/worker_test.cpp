// What a kernel really does to the process that runs it, on a GPU: a line of the journal each, and the sweep goes on.
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

TEST(Faults, Row26_KernelsThatSpinOrWriteAstrayOnAGpuCostALineEachAndTheSweepGoesOn) {
  NEEDS_GPU();
  const Description d = mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1}).state(DType::bf16);
  std::vector<Plan> plans;
  for (const Plan& plan : plan_space(d, device(0).arch()))
    if (!plan.early_state && plans.size() < 4) plans.push_back(plan);
  const auto entry = [&](std::size_t i) { return emit(d, plans[i], device(0).arch()).entries.front().name; };
  std::string cache = (std::filesystem::temp_directory_path() / "ssmjit-faults-XXXXXX").string();
  ASSERT_NE(mkdtemp(cache.data()), nullptr);
  const PlantedNvrtc nvrtc(where("SSMJIT_TEST_PLANTED_NVRTC", SSMJIT_PLANTED_NVRTC), cache + "/nvrtc",
                           entry(1) + "=spin " + entry(2) + "=stray");
  const ScopedEnvironment folder("SSMJIT_CACHE_DIR", cache);

  WorkerProcess worker(0, {where("SSMJIT_TEST_CLI", SSMJIT_CLI_PATH), "worker"}, {.device_s = 5});
  std::vector<Measurement> lines;
  TuneOptions options;
  options.plans = plans;
  options.batches = {8};
  options.on_measurement = [&](const Measurement& m) { lines.push_back(m); };
  sweep_on({&worker}, {{d, options}});
  std::filesystem::remove_all(cache);

  std::map<std::string, std::vector<Measurement>> of;
  for (const Measurement& m : lines) of[m.plan.text()].push_back(m);
  const std::vector<Measurement>&spun = of[plans[1].text()], &strayed = of[plans[2].text()];
  ASSERT_THAT(spun, SizeIs(1));
  EXPECT_EQ(spun[0].outcome, Outcome::hung);
  EXPECT_THAT(spun[0].reason, HasSubstr("no sign of life for 5.0 s"));
  ASSERT_THAT(strayed, SizeIs(1));
  EXPECT_EQ(strayed[0].outcome, Outcome::crashed);
  EXPECT_THAT(strayed[0].reason, HasSubstr("illegal"));
  for (const std::size_t right : {0u, 3u}) {
    ASSERT_THAT(of[plans[right].text()], SizeIs(2)) << "verified and timed";
    EXPECT_GT(of[plans[right].text()][1].us, 0);
  }
}

}  // namespace
}  // namespace ssmjit

#endif
