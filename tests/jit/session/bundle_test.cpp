// Bundles and seeds, with the machine's NVRTC where there is one.
#include <ssmjit/bundle.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/error.h>
#include <ssmjit/session.h>

#include "jit/manifest.h"
#include "tests/jit/session/seeded.h"

namespace ssmjit {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

// A norm compiles fastest, and has one plan at most batches.
Description small_description() { return gated_norm({.channels = 64}); }

class BundleTest : public SeededTest {
 protected:
  void SetUp() override {
    SeededTest::SetUp();
    try {
      nvrtc_version();
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
  }
  std::string bundle() const { return scratch_ / "bundle"; }
  std::vector<BundleFile> write(const std::vector<BundleItem>& items, const Table& table = {}, int max_batch = 8) {
    return write_bundle(bundle(), items, table,
                        {.archs = {kSm90}, .devices = {"h200"}, .max_batch = max_batch, .compile = cache()});
  }
  std::vector<BundleFile> write() { return write({{"small:norm", small_description()}}); }
  // A machine without a compiler.
  SessionOptions bare() const { return {.seeds = {bundle()}, .cache_dir = scratch_ / "none"}; }

  // Of all tests of this process: a kernel is compiled once.
  static const CompileOptions& cache() {
    static const ScratchFolder folder;
    static const CompileOptions options{.cache_dir = folder / "cache"};
    return options;
  }
};

TEST_F(BundleTest, AModelLoadsFromItWithoutNvrtc) {
  const std::vector<BundleFile> files = write();
  EXPECT_THAT(files, Not(IsEmpty()));
  const ScopedEnvironment none("SSMJIT_NVRTC", "/nonexistent/libnvrtc.so");
  for (const bool no_jit : {false, true}) {
    SessionOptions options = bare();
    options.no_jit = no_jit;
    const Session session(options);
    const Prepared step = session.prepare(small_description(), {.max_batch = 8});
    for (const PreparedKernel& kernel : step.kernels()) EXPECT_TRUE(kernel.from_cache);
    session.prepare_A();
    session.slot_copies();
    NormArgs args;
    args.x = args.out = contiguous(address(0x1000000), DType::bf16, {8, 64});
    args.weight = contiguous(address(0x2000000), DType::bf16, {64});
    step.launch(args, nullptr);
  }
  EXPECT_EQ(stub_->launches, 2);
  EXPECT_FALSE(fs::exists(scratch_ / "none")) << "nothing is written where nothing is compiled";
}

TEST_F(BundleTest, Row23_WithoutNvrtcWhatIsLackingIsListedWithTheReason) {
  write();
  const ScopedEnvironment none("SSMJIT_NVRTC", "/nonexistent/libnvrtc.so");
  const Session session(bare());
  const Description other = gated_norm({.channels = 64, .has_bias = true});
  const Error error = error_of([&] { session.prepare(other, {.max_batch = 8}); });
  EXPECT_EQ(error.kind(), ErrorKind::missing);
  EXPECT_THAT(error.what(), HasSubstr("there is no compiler: SSMJIT_NVRTC: /nonexistent/libnvrtc.so is not a file"));
  EXPECT_THAT(error.what(), HasSubstr(other.summary()));
  EXPECT_THAT(error.what(), HasSubstr(bundle()));
}

TEST_F(BundleTest, TheTableOfTheBundleAnswersForItsKernelsAndNoOther) {
  // At bundling another table was in force than here: what is chosen must be what is there.
  Table table{{of_kernel(unshipped_description(), sample_row(16, 2, 0)),
               of_kernel(unshipped_description(), sample_row(64, 3, 1))}};
  table.sort();
  write({{"mine:update", unshipped_description()}}, table);
  TableRow elsewhere = of_kernel(unshipped_description(), sample_row(32, 1, 5));
  write_file(scratch_ / "here.json", Table{{elsewhere}}.json());
  const ScopedEnvironment here("SSMJIT_TABLES", scratch_ / "here.json");
  SessionOptions options = bare();
  options.no_jit = true;
  const Session session(options);
  EXPECT_EQ(lookup(session.table(), unshipped_description(), "h200", kSm90, 2).plan, sample_plan(5));
  EXPECT_EQ(session.prepare(unshipped_description(), {.max_batch = 8, .chain = false}).choose(2).plan.block_m,
            lookup(table, unshipped_description(), "h200", kSm90, 2).plan.block_m);
  EXPECT_EQ(session.choose(sample_description(), 2, PdlMode::off, "h200", kSm90).plan,
            lookup(shipped_tables(), sample_description(), "h200", kSm90, 2).plan);
}

TEST_F(BundleTest, NoJitListsExactlyWhatIsLacking) {
  write({{"small:norm", small_description()}});
  // A table that asks for one plan that is there and one that is not.
  const Plan there = lookup({}, small_description(), "h200", kSm90, 1).plan;
  Plan lacking = there;
  for (const Plan& plan : plan_space(small_description(), kSm90))
    if (!(plan == there) && !plan.early_state) lacking = plan;
  TableRow low = of_kernel(small_description(), sample_row(1, 1, 0)), high = low;
  low.op = high.op = Op::norm;
  low.plan = there;
  high.total_heads = 8;
  high.plan = lacking;
  write_file(scratch_ / "mine.json", Table{{low, high}}.json());
  SessionOptions options = bare();
  options.no_jit = true;
  options.tables = {scratch_ / "mine.json"};
  const Error error =
      error_of([&] { Session(options).prepare(small_description(), {.max_batch = 8, .chain = false}); });
  EXPECT_EQ(error.kind(), ErrorKind::missing);
  EXPECT_THAT(error.what(), HasSubstr("1 of 2 kernels"));
  EXPECT_THAT(error.what(), HasSubstr("no_jit is set"));
  EXPECT_THAT(error.what(), AllOf(HasSubstr(lacking.text()), Not(HasSubstr(there.text()))));
}

TEST_F(BundleTest, Row21_AFileThatIsTruncatedForeignOrMissingIsNamedAndNeverLoaded) {
  const std::vector<BundleFile> files = write();
  EXPECT_TRUE(std::all_of(files.begin(), files.end(), [](const BundleFile& f) { return f.problem.empty(); }));
  for (const BundleFile& file : read_bundle(bundle())) EXPECT_EQ(file.problem, "") << file.name;
  const ScopedEnvironment none("SSMJIT_NVRTC", "/nonexistent/libnvrtc.so");
  const auto spoil = [&](const auto& how, const std::string& problem) {
    const fs::path copy = scratch_ / "copy";
    fs::remove_all(copy);
    fs::copy(bundle(), copy);
    for (const BundleFile& file : files) how(copy / file.name, copy / files.front().name);
    int bad = 0;
    for (const BundleFile& file : read_bundle(copy.string())) bad += file.problem.find(problem) != std::string::npos;
    EXPECT_GT(bad, 0) << problem;
    SessionOptions options = bare();
    options.seeds = {copy.string()};
    const Warnings warnings;
    EXPECT_EQ(error_of([&] { Session(options).prepare(small_description(), {.max_batch = 8}); }).kind(),
              ErrorKind::missing);
    EXPECT_EQ(warnings.lines.empty(), problem == "it is missing");
  };
  spoil([](const fs::path& file, const fs::path&) { fs::resize_file(file, 100); }, "truncated");
  spoil([](const fs::path& file, const fs::path&) { std::ofstream(file) << std::string(200, 'x'); },
        "not a cache file");
  spoil([](const fs::path& file, const fs::path&) { fs::remove(file); }, "it is missing");
  spoil(
      [](const fs::path& file, const fs::path& other) {
        if (file != other) fs::copy_file(other, file, fs::copy_options::overwrite_existing);
      },
      "its name is not that of its content");
}

TEST_F(BundleTest, AManifestThatCannotBeReadIsRefused) {
  write();
  const auto refused = [&](const std::string& name, const std::string& text) {
    const fs::path copy = scratch_ / "copy";
    fs::remove_all(copy);
    fs::copy(bundle(), copy);
    write_file(copy / name, text);
    const Error error = error_of([&] { Session({.seeds = {copy.string()}}); });
    EXPECT_EQ(error.kind(), ErrorKind::invalid);
    EXPECT_THAT(error.what(), HasSubstr((copy / name).string()));
    EXPECT_EQ(error_of([&] { read_bundle(copy.string()); }).kind(), ErrorKind::invalid);
  };
  refused("bundle.json", "{");
  refused("bundle.json", R"({"schema": 9, "kernels": [], "files": []})");
  refused("bundle.json", R"({"schema": 1, "kernels": []})");
  refused("table.json", "[]");
  std::ifstream manifest(bundle() + "/bundle.json");
  std::string text{std::istreambuf_iterator<char>(manifest), {}};
  text.replace(text.find("sm_90a-"), 7, "../../x");
  refused("bundle.json", text);
}

TEST_F(BundleTest, WritingAgainReplacesWhatTheFirstHeld) {
  write();
  const std::vector<BundleFile> files = write({{"other:norm", gated_norm({.channels = 128})}});
  std::size_t there = 0;
  for (const auto& entry : fs::directory_iterator(bundle())) there += entry.path().extension() == ".ssmjit";
  EXPECT_EQ(there, files.size());
  EXPECT_EQ(read_bundle(bundle()).size(), files.size());
}

TEST_F(BundleTest, ARingBringsItsSlotsAndReadersOfAnotherUserMayReadIt) {
  const Description ring = sample_description(1).tokens(1).store(Ring{.window = 2});
  Table one{{of_kernel(ring, sample_row(1, 2, 0))}};
  one.rows[0].op = Op::ring;
  one.rows[0].steps_per_flush = 2;
  one.rows[0].no_flush = one.rows[0].flush = {.us = 2, .floor_us = 1};
  one.rows[0].plan = default_plan(ring, kSm90, 1);
  write_bundle(bundle(), {{"one:ring", ring}}, one,
               {.archs = {kSm90}, .devices = {"h200"}, .max_batch = 1, .chain = false, .compile = cache()});
  const ScopedEnvironment none("SSMJIT_NVRTC", "/nonexistent/libnvrtc.so");
  const Session session(bare());
  session.ring_slots(ring);
  for (const auto& entry : fs::directory_iterator(bundle()))
    EXPECT_EQ(entry.status().permissions() & fs::perms::others_read, fs::perms::others_read) << entry.path();
}

TEST_F(BundleTest, WrongUseIsRefused) {
  const std::vector<BundleItem> items{{"small:norm", small_description()}};
  const auto kind = [&](const std::vector<BundleItem>& what, const BundleOptions& options, const std::string& where) {
    return error_of([&] { write_bundle(where, what, {}, options); }).kind();
  };
  EXPECT_EQ(kind({}, {.archs = {kSm90}}, bundle()), ErrorKind::invalid);
  EXPECT_EQ(kind(items, {}, bundle()), ErrorKind::invalid);
  EXPECT_EQ(kind(items, {.archs = {kSm90}, .max_batch = 0}, bundle()), ErrorKind::invalid);
  EXPECT_EQ(kind(items, {.archs = {kSm90}, .off = false, .chain = false}, bundle()), ErrorKind::invalid);
  EXPECT_EQ(kind(items, {.archs = {kSm90}, .devices = {"b200"}}, bundle()), ErrorKind::invalid);
  EXPECT_EQ(kind({{"bad", Description{}}}, {.archs = {kSm90}}, bundle()), ErrorKind::invalid);
  fs::create_directory(scratch_ / "mine");
  write_file(scratch_ / "mine/notes.txt", "the user's");
  EXPECT_EQ(kind(items, {.archs = {kSm90}, .devices = {"h200"}, .compile = cache()}, scratch_ / "mine"),
            ErrorKind::invalid);
  EXPECT_TRUE(fs::exists(scratch_ / "mine/notes.txt"));
  EXPECT_EQ(kind(items, {.archs = {kSm90}, .devices = {"h200"}, .compile = cache()}, "/dev/null/bundle"),
            ErrorKind::machine);
}

// ---- folders of a cache as seeds ----

TEST_F(BundleTest, ASeedFolderServesAndOnlyTheOverlayIsWritten) {
  const std::string seed = scratch_ / "seed", overlay = scratch_ / "overlay";
  Session({.cache_dir = seed}).prepare(small_description(), {.max_batch = 4});
  const auto count = [](const std::string& folder) {
    std::error_code error;
    return std::distance(fs::directory_iterator(folder, error), fs::directory_iterator{});
  };
  const auto before = count(seed);
  EXPECT_GT(before, 0);
  const Description other = gated_norm({.channels = 64, .has_bias = true});
  const Session session({.seeds = {seed}, .cache_dir = overlay});
  session.prepare(small_description(), {.max_batch = 4});
  EXPECT_FALSE(fs::exists(overlay));
  session.prepare(other, {.max_batch = 4});
  EXPECT_GT(count(overlay), 0);
  EXPECT_EQ(count(seed), before);
  // The overlay serves a session that may not compile, and one that can't.
  EXPECT_THAT(Session({.cache_dir = overlay, .no_jit = true}).prepare(other, {.max_batch = 4}).kernels(),
              Not(IsEmpty()));
  const ScopedEnvironment none("SSMJIT_NVRTC", "/nonexistent/libnvrtc.so"), listed("SSMJIT_SEEDS", "/none:" + seed);
  Session({.cache_dir = overlay}).prepare(small_description(), {.max_batch = 4});
}

}  // namespace
}  // namespace ssmjit
