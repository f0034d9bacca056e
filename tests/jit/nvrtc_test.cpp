#include "jit/nvrtc.h"

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/cubin.h>
#include <ssmjit/error.h>

#include "jit/compile.h"
#include "jit/cubin_cache.h"
#include "tests/heuristics/scoped_environment.h"
#include "tests/jit/scratch_folder.h"
#include "tests/jit/stub_driver.h"

namespace ssmjit {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::IsEmpty;

Source make_source(const std::string& text, Arch arch = {9, 0, 'a'}) {
  Source source;
  source.text = text;
  source.arch = arch;
  source.entries = {{"k", 128, 0}};
  return source;
}

constexpr const char* kScale =
    "extern \"C\" __global__ void k(float* p) { __shared__ float s[128]; s[threadIdx.x] = p[threadIdx.x];\n"
    "  __syncthreads(); p[threadIdx.x] = s[127 - threadIdx.x]; }\n";

// Holds more values than the registers that its bounds leave it.
std::string spilling_text() {
  return "extern \"C\" __global__ void __launch_bounds__(1024, 2) k(float* p, int n) {\n"
         "  float a[80];\n"
         "  for (int i = 0; i < 80; i++) a[i] = p[i * threadIdx.x];\n"
         "  for (int j = 0; j < n; j++) {\n"
         "#pragma unroll\n"
         "    for (int i = 0; i < 80; i++) a[i] = a[i] * a[(i * 7 + 3) % 80];\n"
         "  }\n"
         "  for (int i = 0; i < 80; i++) p[i * threadIdx.x] = a[i];\n"
         "}\n";
}

Error error_of(auto&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "nothing was thrown";
  return Error(ErrorKind::internal, "");
}

std::string why_no_nvrtc() {
  try {
    Nvrtc::get();
    return {};
  } catch (const Error& error) {
    return error.what();
  }
}

#define NEED_NVRTC \
  if (const std::string why = why_no_nvrtc(); !why.empty()) GTEST_SKIP() << why

TEST(AssemblerLog, GivesTheMostOfAllEntries) {
  const Resources resources = read_resources(
      "ptxas info    : Compiling entry function 'a' for 'sm_90a'\n"
      "ptxas         .     608 bytes stack frame, 1608 bytes spill stores, 1940 bytes spill loads\n"
      "ptxas info    : Used 32 registers, used 1 barriers, 608 bytes cumulative stack size, 512 bytes smem\n"
      "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
      "ptxas info    : Used 168 registers, 400 bytes cmem[0]\n");
  EXPECT_TRUE(resources.found);
  EXPECT_EQ(resources.registers, 168);
  EXPECT_EQ(resources.spill_bytes, 1608 + 1940);
  EXPECT_EQ(resources.smem_bytes, 512);
  EXPECT_FALSE(read_resources("nothing of the kind").found);
}

TEST(Compile, MakesACubinAndTellsItsRegistersAndSharedMemory) {
  NEED_NVRTC;
  Warnings warnings;
  const Cubin cubin = compile(make_source(kScale), {.use_cache = false});
  ASSERT_GT(cubin.image.size(), 4u);
  EXPECT_EQ(std::string(cubin.image.data(), 4),
            "\x7f"
            "ELF");
  EXPECT_EQ(cubin.smem_bytes, 512);
  EXPECT_GT(cubin.registers, 0);
  EXPECT_EQ(cubin.spill_bytes, 0);
  EXPECT_GT(cubin.compile_ms, 0);
  EXPECT_FALSE(cubin.from_cache);
  EXPECT_THAT(cubin.log, HasSubstr("ptxas info"));
  EXPECT_THAT(warnings.lines, IsEmpty());
}

TEST(Compile, TellsOfSpills) {
  NEED_NVRTC;
  const Cubin cubin = compile(make_source(spilling_text()), {.use_cache = false});
  EXPECT_EQ(cubin.registers, 32);
  EXPECT_GT(cubin.spill_bytes, 100);
}

TEST(Compile, KnowsEveryArchOfTheProject) {
  NEED_NVRTC;
  for (const Arch& arch : Arch::known()) {
    const Cubin cubin = compile(make_source(kScale, arch), {.use_cache = false});
    EXPECT_EQ(cubin.arch, arch);
    EXPECT_GT(cubin.registers, 0) << arch.text();
  }
}

TEST(Compile, TheSecondTimeComesFromTheFolder) {
  NEED_NVRTC;
  const ScratchFolder folder;
  const CompileOptions options{.cache_dir = folder / "cache"};
  const Cubin first = compile(make_source(kScale), options);
  EXPECT_FALSE(first.from_cache);
  const Cubin in_memory = compile(make_source(kScale), options);
  EXPECT_TRUE(in_memory.from_cache);
  forget_compiled();
  const Cubin on_disk = compile(make_source(kScale), options);
  EXPECT_TRUE(on_disk.from_cache);
  EXPECT_EQ(on_disk.compile_ms, 0);
  EXPECT_EQ(on_disk.image, first.image);
  EXPECT_EQ(on_disk.registers, first.registers);
  EXPECT_EQ(list_cache(folder / "cache").size(), 1u);
}

TEST(Compile, ManyThreadsThatWantOneKernelShareOneCompile) {
  NEED_NVRTC;
  const ScratchFolder folder;
  const CompileOptions options{.cache_dir = folder / "cache"};
  std::vector<std::thread> threads;
  std::atomic<int> compiled = 0, well = 0;
  for (int i = 0; i < 8; ++i)
    threads.emplace_back([&] {
      const Cubin cubin = compile(make_source(kScale), options);
      compiled += cubin.from_cache ? 0 : 1;
      well += cubin.image.empty() ? 0 : 1;
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(compiled, 1);
  EXPECT_EQ(well, 8);
}

TEST(Faults, Row22_WithoutAFolderKernelsAreKeptInMemory) {
  NEED_NVRTC;
  forget_compiled();
  const CompileOptions options{.cache_dir = "/dev/null/no-folder"};
  EXPECT_FALSE(compile(make_source(kScale), options).from_cache);
  EXPECT_TRUE(compile(make_source(kScale), options).from_cache);
}

TEST(Faults, Row21_ADamagedFileIsCompiledAgainAndReplaced) {
  NEED_NVRTC;
  const ScratchFolder folder;
  const CompileOptions options{.cache_dir = folder / "cache"};
  const Cubin first = compile(make_source(kScale), options);
  const std::string file = options.cache_dir + "/" + list_cache(options.cache_dir).at(0).name;
  fs::resize_file(file, fs::file_size(file) / 2);
  forget_compiled();
  Warnings warnings;
  const Cubin second = compile(make_source(kScale), options);
  EXPECT_FALSE(second.from_cache);
  EXPECT_EQ(second.image, first.image);
  EXPECT_EQ(warnings.lines.size(), 1u);
  EXPECT_EQ(list_cache(options.cache_dir).at(0).problem, "");
}

TEST(Faults, Row23_TheCompilersWholeLogIsInTheError) {
  NEED_NVRTC;
  const ScratchFolder folder;
  const std::string text =
      "extern \"C\" __global__ void k() { first_wrong = 1; }\n__global__ void j() { second_wrong(); }\n";
  for (int i = 0; i < 2; ++i) {  // a failure is not kept
    const Error error = error_of([&] { compile(make_source(text), {.cache_dir = folder / "cache"}); });
    EXPECT_EQ(error.kind(), ErrorKind::machine);
    EXPECT_THAT(error.what(), HasSubstr("first_wrong"));
    EXPECT_THAT(error.what(), HasSubstr("second_wrong"));
    EXPECT_THAT(error.what(), HasSubstr("k.cu(1)"));
  }
}

TEST(Faults, Row23_AnArchThatTheCompilerDoesNotKnowIsNamedWithItsVersion) {
  NEED_NVRTC;
  const Error error = error_of([] { compile(make_source(kScale, Arch{9, 9, 'a'}), {.use_cache = false}); });
  EXPECT_EQ(error.kind(), ErrorKind::machine);
  EXPECT_THAT(error.what(), HasSubstr("sm_99a"));
  EXPECT_THAT(error.what(), HasSubstr("NVRTC " + nvrtc_version()));
  EXPECT_THAT(error.what(), HasSubstr("gpu-architecture"));
  EXPECT_THAT(error.what(), HasSubstr("newer NVRTC"));
}

TEST(Faults, Row23_ANamedLibraryThatIsNotThereIsNamed) {
  const ScopedEnvironment named("SSMJIT_NVRTC", "/nowhere/libnvrtc.so.13");
  const Error error = error_of([] { nvrtc_version(); });
  EXPECT_EQ(error.kind(), ErrorKind::missing);
  EXPECT_THAT(error.what(), HasSubstr("SSMJIT_NVRTC: /nowhere/libnvrtc.so.13 is not a file"));
}

TEST(Faults, Row23_ANamedFileThatIsNoCompilerIsNamed) {
  const ScratchFolder folder;
  const std::string path = folder / "libnvrtc.so.13";
  std::ofstream(path) << "no library";
  const ScopedEnvironment named("SSMJIT_NVRTC", path);
  const Error error = error_of([] { nvrtc_path(); });
  EXPECT_EQ(error.kind(), ErrorKind::missing);
  EXPECT_THAT(error.what(), HasSubstr(path));
  EXPECT_THAT(error.what(), HasSubstr("pip install"));
}

TEST(Faults, Row23_ALibraryWithoutItsBuiltinsIsMissingThem) {
  NEED_NVRTC;
  const ScratchFolder folder;
  const std::string path = folder / fs::path(nvrtc_path()).filename().string();
  std::error_code error_code;
  fs::create_hard_link(fs::canonical(nvrtc_path()), path, error_code);
  if (error_code) fs::copy_file(fs::canonical(nvrtc_path()), path);
  const ScopedEnvironment named("SSMJIT_NVRTC", path);
  const Error error = error_of([] { nvrtc_path(); });
  EXPECT_EQ(error.kind(), ErrorKind::missing);
  EXPECT_THAT(error.what(), HasSubstr("libnvrtc-builtins.so."));
  EXPECT_THAT(error.what(), HasSubstr("not beside it"));
}

TEST(NvrtcSearch, ALibraryBesideItsBuiltinsIsTakenWhenNamed) {
  NEED_NVRTC;
  const std::string found = fs::canonical(nvrtc_path()).string();
  const std::string version = nvrtc_version();
  const ScopedEnvironment named("SSMJIT_NVRTC", found);
  EXPECT_EQ(nvrtc_path(), found);
  EXPECT_EQ(nvrtc_version(), version);
  EXPECT_GT(compile(make_source(kScale), {.use_cache = false}).registers, 0);
}

TEST(NvrtcSearch, AVirtualEnvironmentsWheelIsFoundAndTheNewestWins) {
  NEED_NVRTC;
  // A wheel of an old version: found, refused, and not in the way of a better one.
  const ScratchFolder folder;
  const fs::path lib = folder.path() / "lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib";
  fs::create_directories(lib);
  std::ofstream(lib / "libnvrtc.so.12") << "old";
  std::ofstream(lib / "libnvrtc-builtins.so.12.4") << "old";
  const std::string best = nvrtc_path();
  const ScopedEnvironment venv("VIRTUAL_ENV", folder.path().string());
  EXPECT_EQ(nvrtc_path(), best);
}

TEST(Faults, Row23_ACompilerNewerThanTheDriverIsNotTaken) {
  NEED_NVRTC;
  if (Nvrtc::get().major() < 13) GTEST_SKIP() << "needs NVRTC 13; found " << nvrtc_version();
  StubDriver stub;
  if (!stub.ready()) GTEST_SKIP() << "the stub driver was not built (SSMJIT_STUB_LIBCUDA)";
  // The driver's version is read when it is opened, so a copy of the stub that says 12.8 from its start.
  const ScratchFolder folder;
  const std::string copy = folder / "libcuda.so.1";
  fs::copy_file(StubDriver::path(), copy);
  const ScopedEnvironment driver("SSMJIT_LIBCUDA", copy), version("STUB_DRIVER_VERSION", "12080");
  try {
    EXPECT_EQ(Nvrtc::get().major(), 12);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::missing);
    EXPECT_THAT(error.what(), HasSubstr("the driver loads cubins up to CUDA 12.8 only"));
  }
}

}  // namespace
}  // namespace ssmjit
