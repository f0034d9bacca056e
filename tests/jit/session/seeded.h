// A folder of cubins that no compiler made, and a table over them: a Session on the stub driver then loads in no time.
#pragma once

#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <ssmjit/session.h>
#include <ssmjit/source.h>

#include "jit/compile.h"
#include "jit/cubin_cache.h"
#include "tests/heuristics/sample_rows.h"
#include "tests/heuristics/scoped_environment.h"
#include "tests/jit/launch_test.h"
#include "tests/jit/scratch_folder.h"

namespace ssmjit {

inline void write_file(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

// Keeps a cubin that no compiler made as the kernel of this source.
inline void keep_fake(const std::string& folder, const Source& source) {
  Cubin cubin;
  cubin.arch = source.arch;
  cubin.image.assign(64, 'c');
  cubin.registers = 40;
  const std::vector<std::string> options = compiler_options(source);
  ASSERT_TRUE(CubinCache(folder).keep(cubin_key(source, options, "13.0"), cubin, "13.0", source_key(source, options)));
}

// sample_description() as no shipped table has it; sample_plan()s are legal for it.
inline Description unshipped_description() { return sample_description().destination_slots(); }

class SeededTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!stub_.ready()) GTEST_SKIP() << "the stub driver was not built (SSMJIT_STUB_LIBCUDA)";
    stub_->argument_bytes = 0;
  }

  std::string folder() const { return scratch_ / "seed"; }
  void seed(const Description& description, const Plan& plan) { keep_fake(folder(), emit(description, plan, kSm90)); }
  // Of a table whose rows are `rows` and whose plans are in the seed, unless they are not to be.
  SessionOptions options(const std::vector<TableRow>& rows, const Description& description, bool seeded = true) {
    Table table{rows};
    table.sort();
    write_file(scratch_ / "table.json", table.json());
    for (const TableRow& row : rows) {
      if (!seeded) break;
      seed(description, row.plan);
      if (row.between) seed(description, *row.between);
      Plan early = row.plan;
      early.early_state = true;
      seed(description, early);
    }
    return {.tables = {scratch_ / "table.json"}, .seeds = {folder()}, .cache_dir = scratch_ / "cache", .no_jit = true};
  }

  // Arguments of unshipped_description() that fit; nothing reads the addresses.
  static UpdateArgs sample_args(std::int64_t batch, std::int64_t nheads = 16) {
    UpdateArgs args;
    args.state = contiguous(address(0x1000000), DType::bf16, {512, nheads, 64, 128});
    args.x = args.out = contiguous(address(0x2000000), DType::bf16, {batch, nheads, 64});
    args.B = args.C = contiguous(address(0x3000000), DType::bf16, {batch, 1, 128});
    args.dt = contiguous(address(0x4000000), DType::f32, {batch, nheads});
    args.A = args.D = args.dt_bias = contiguous(address(0x5000000), DType::f32, {nheads});
    return args;
  }

  ScratchFolder scratch_;
  StubDriver stub_;
  // Neither the user's tables nor cache.
  ScopedEnvironment home_{"HOME", scratch_.path().string()}, data_{"XDG_DATA_HOME", std::nullopt},
      tables_{"SSMJIT_TABLES", std::nullopt}, seeds_{"SSMJIT_SEEDS", std::nullopt};
};

}  // namespace ssmjit
