// The kernels that prepare A on the CPU executor.
#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include <ssmjit/cubin.h>
#include <ssmjit/error.h>
#include <ssmjit/prepare.h>
#include <ssmjit/source.h>

#include "autotune/host_numbers.h"
#include "jit/cpu/executor.h"
#include "jit/kernel_args.h"

namespace ssmjit {
namespace {

constexpr DType kDtypes[] = {DType::f32, DType::bf16, DType::f16};

TEST(CpuPrepareA, IsMinusExpOfWhatIsStoredInEveryDtypeAndARefreshTakesNewValues) {
  if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Source source = emit_prepare_A(Arch{});
  const CpuProgram program = CpuProgram::compile(source);
  constexpr std::int64_t kHeads = 130;  // a block and a bit
  for (std::size_t i = 0; i < std::size(kDtypes); ++i) {
    const DType dtype = kDtypes[i];
    std::vector<std::byte> A_log(static_cast<std::size_t>(kHeads * size_bytes(dtype)));
    std::vector<float> A(kHeads + 1);
    for (double first : {-7.0, 0.5}) {
      for (std::int64_t h = 0; h < kHeads; ++h) encode(dtype, A_log.data(), h, first + 0.05 * static_cast<double>(h));
      std::fill(A.begin(), A.end(), 1.0f);
      const device_args::PrepareAArgs args =
          prepare_to_device(contiguous(A_log.data(), dtype, {kHeads}), contiguous(A.data(), DType::f32, {kHeads}));
      CpuLaunch launch;
      launch.entry = source.entries[i].name;
      launch.grid_x = 2;
      launch.block_threads = source.entries[i].block_threads;
      launch.args = &args;
      launch.args_bytes = sizeof args;
      launch.buffers = {{.name = "A_log", .data = A_log.data(), .bytes = A_log.size()},
                        {.name = "A",
                         .data = reinterpret_cast<std::byte*>(A.data()),
                         .bytes = kHeads * sizeof(float),
                         .writable = true,
                         .initialised = false}};
      for (const CpuFinding& f : program.run(launch).findings) ADD_FAILURE() << name(dtype) << ": " << f.text();
      for (std::int64_t h = 0; h < kHeads; ++h) {
        const double want = -std::exp(decode(dtype, A_log.data(), h));
        EXPECT_NEAR(A[static_cast<std::size_t>(h)], want, 3e-7 * -want) << name(dtype) << " " << h;
      }
      EXPECT_EQ(A.back(), 1.0f);
    }
  }
}

}  // namespace
}  // namespace ssmjit
