#include "jit/cubin_cache.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <iterator>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/error.h>

#include "jit/compile.h"
#include "tests/heuristics/scoped_environment.h"
#include "tests/jit/scratch_folder.h"

namespace ssmjit {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr const char* kNvrtc = "13.0";

Source make_source(const std::string& text = "extern \"C\" __global__ void k() {}") {
  Source source;
  source.text = text;
  source.arch = Arch{9, 0, 'a'};
  source.entries = {{"k", 32, 0}};
  return source;
}

Cubin make_cubin(char fill = 'c') {
  Cubin cubin;
  cubin.image.assign(5000, fill);
  cubin.arch = Arch{9, 0, 'a'};
  cubin.log = "ptxas info: all well";
  cubin.registers = 40;
  cubin.spill_bytes = 8;
  cubin.smem_bytes = 512;
  cubin.compile_ms = 61;
  return cubin;
}

std::string make_key(const Source& source = make_source()) { return cubin_key(source, {"-O3"}, kNvrtc); }

std::string read_all(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_all(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

// Runs `action` in a process of its own; true if it returned true.
bool in_child(const std::function<bool()>& action) {
  const pid_t child = fork();
  if (child == 0) _exit(action() ? 0 : 1);
  int status = 0;
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

class CubinCacheTest : public testing::Test {
 protected:
  ScratchFolder scratch_;
  CubinCache cache_{scratch_ / "deep/er/cache"};
  std::string key_ = make_key();
  Arch arch_{9, 0, 'a'};

  std::string kept_file() {
    EXPECT_TRUE(cache_.keep(key_, make_cubin(), kNvrtc));
    return cache_.file_of(key_, arch_);
  }
  // A miss, with one warning that says `why`.
  void expect_miss(const std::string& why) {
    Warnings warnings;
    EXPECT_FALSE(cache_.find(key_, arch_).has_value());
    ASSERT_THAT(warnings.lines, SizeIs(1));
    EXPECT_THAT(warnings.lines[0], HasSubstr(why));
    EXPECT_THAT(warnings.lines[0], HasSubstr(cache_.file_of(key_, arch_)));
    EXPECT_EQ(warnings.lines[0].find('\n'), std::string::npos);
  }
};

TEST_F(CubinCacheTest, WhatWasKeptIsFoundAgain) {
  Warnings warnings;
  EXPECT_FALSE(cache_.find(key_, arch_).has_value());
  kept_file();
  const auto found = cache_.find(key_, arch_);
  ASSERT_TRUE(found.has_value());
  const Cubin kept = make_cubin();
  EXPECT_EQ(found->image, kept.image);
  EXPECT_EQ(found->log, kept.log);
  EXPECT_EQ(found->registers, 40);
  EXPECT_EQ(found->spill_bytes, 8);
  EXPECT_EQ(found->smem_bytes, 512);
  EXPECT_EQ(found->compile_ms, 0);
  EXPECT_TRUE(found->from_cache);
  EXPECT_EQ(found->arch, kept.arch);
  EXPECT_THAT(warnings.lines, IsEmpty());
}

TEST_F(CubinCacheTest, TheKeyIsOfAllThatShapesTheCode) {
  const Source source = make_source();
  Source other_text = source, other_arch = source;
  other_text.text += " ";
  other_arch.arch = Arch{8, 0, 0};
  EXPECT_EQ(key_.size(), 32u);
  EXPECT_EQ(key_, make_key(source));
  EXPECT_NE(key_, make_key(other_text));
  EXPECT_NE(key_, make_key(other_arch));
  EXPECT_NE(key_, cubin_key(source, {"-O3"}, "12.9"));
  EXPECT_NE(key_, cubin_key(source, {"-O", "3"}, kNvrtc));
  EXPECT_NE(cubin_key(source, {"ab", "c"}, kNvrtc), cubin_key(source, {"a", "bc"}, kNvrtc));
}

TEST_F(CubinCacheTest, OnlyTheOwnerMayReadOrWrite) {
  const std::string file = kept_file();
  struct stat facts {};
  ASSERT_EQ(stat(file.c_str(), &facts), 0);
  EXPECT_EQ(facts.st_mode & 0777u, 0600u);
  ASSERT_EQ(stat(cache_.folder().c_str(), &facts), 0);
  EXPECT_EQ(facts.st_mode & 0777u, 0700u);
}

TEST_F(CubinCacheTest, FaultRow21_AFileTruncatedAnywhereIsAMiss) {
  const std::string file = kept_file();
  const std::string whole = read_all(file);
  for (const std::size_t size :
       {std::size_t{1}, std::size_t{63}, std::size_t{64}, std::size_t{100}, whole.size() - 1}) {
    write_all(file, whole.substr(0, size));
    expect_miss("truncated");
  }
  write_all(file, whole + "x");
  expect_miss("too long");
}

TEST_F(CubinCacheTest, FaultRow21_AnEmptyFileIsAMiss) {
  write_all(kept_file(), "");
  expect_miss("it is empty");
}

TEST_F(CubinCacheTest, FaultRow21_AForeignFileIsAMiss) {
  write_all(kept_file(), std::string(9000, 'z'));
  expect_miss("not a cache file");
}

TEST_F(CubinCacheTest, FaultRow21_AFileOfAnotherFormatIsAMiss) {
  const std::string file = kept_file();
  std::string bytes = read_all(file);
  bytes[8] = 9;
  write_all(file, bytes);
  expect_miss("its format is 9");
}

TEST_F(CubinCacheTest, FaultRow21_ABitFlippedAnywhereIsAMiss) {
  const std::string file = kept_file();
  const std::string whole = read_all(file);
  for (std::size_t at = 0; at < whole.size(); at += at < 300 ? 1 : 97) {
    std::string bytes = whole;
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << (at % 8)));
    write_all(file, bytes);
    Warnings warnings;
    EXPECT_FALSE(cache_.find(key_, arch_).has_value()) << "byte " << at;
    EXPECT_THAT(warnings.lines, SizeIs(1)) << "byte " << at;
  }
}

TEST_F(CubinCacheTest, FaultRow21_TheFileOfAnotherKernelOrArchIsAMiss) {
  const std::string file = kept_file();
  const std::string other_key = make_key(make_source("another"));
  fs::copy_file(file, cache_.file_of(other_key, arch_));
  key_ = other_key;
  expect_miss("another kernel");
  arch_ = Arch{8, 0, 0};
  key_ = make_key();
  fs::copy_file(file, cache_.file_of(key_, arch_));
  expect_miss("it is for sm_90a, not sm_80");
}

TEST_F(CubinCacheTest, FaultRow21_ABadFileIsReplaced) {
  write_all(kept_file(), "rubbish");
  expect_miss("truncated");
  kept_file();
  EXPECT_TRUE(cache_.find(key_, arch_).has_value());
}

TEST_F(CubinCacheTest, FaultRow21_NeitherLinksNorPipesNorFoldersAreRead) {
  const std::string file = kept_file();
  fs::rename(file, scratch_ / "elsewhere");
  fs::create_symlink(scratch_ / "elsewhere", file);
  expect_miss("it is a link");
  fs::remove(file);
  ASSERT_EQ(mkfifo(file.c_str(), 0600), 0);
  expect_miss("not a plain file");
  fs::remove(file);
  fs::create_directory(file);
  expect_miss("not a plain file");
}

TEST_F(CubinCacheTest, FaultRow21_WritingReplacesALinkAndNotWhatItPointsTo) {
  const std::string file = kept_file();
  const std::string victim = scratch_ / "victim";
  write_all(victim, "precious");
  fs::remove(file);
  fs::create_symlink(victim, file);
  kept_file();
  EXPECT_EQ(read_all(victim), "precious");
  EXPECT_TRUE(fs::is_regular_file(fs::symlink_status(file)));
}

TEST_F(CubinCacheTest, FaultRow21_AWriterKilledMidWriteLeavesNoEntry) {
  fs::create_directories(cache_.folder());
  // Killed by the kernel when its file grows past the limit, which is in the middle of the write.
  const pid_t child = fork();
  if (child == 0) {
    const rlimit limit{2048, 2048};
    setrlimit(RLIMIT_FSIZE, &limit);
    const rlimit no_core{0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    signal(SIGXFSZ, SIG_DFL);
    cache_.keep(key_, make_cubin(), kNvrtc);
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status)) << "the writer was not killed";

  Warnings warnings;
  EXPECT_FALSE(cache_.find(key_, arch_).has_value());
  EXPECT_THAT(warnings.lines, IsEmpty());
  const std::vector<CacheFile> files = list_cache(cache_.folder());
  ASSERT_THAT(files, SizeIs(1));
  EXPECT_THAT(files[0].problem, HasSubstr("killed"));
  kept_file();
  EXPECT_TRUE(cache_.find(key_, arch_).has_value());
  EXPECT_EQ(clear_cache(cache_.folder()), 2);
}

TEST_F(CubinCacheTest, FaultRow21_SixteenWritersAndReadersOfOneKeySeeWholeFilesOnly) {
  std::vector<pid_t> children;
  for (int i = 0; i < 16; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      bool well = true;
      for (int round = 0; round < 5; ++round) {
        const Cubin mine = make_cubin(static_cast<char>('a' + i));
        well = cache_.keep(key_, mine, kNvrtc) && well;
        const auto found = cache_.find(key_, arch_);
        well = well && found.has_value() && found->image.size() == mine.image.size() &&
               std::equal(found->image.begin() + 1, found->image.end(), found->image.begin());
      }
      _exit(well ? 0 : 1);
    }
    children.push_back(child);
  }
  for (const pid_t child : children) {
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  EXPECT_THAT(list_cache(cache_.folder()), SizeIs(1));
}

// A process that has the turn of a kernel, until it is told to end.
class OwnerOfTurn {
 public:
  OwnerOfTurn(const CubinCache& cache, const std::string& key, const Arch& arch) {
    int pipe_of[2];
    EXPECT_EQ(pipe(pipe_of), 0);
    child_ = fork();
    if (child_ == 0) {
      const CompileTurn turn(cache, key, arch);
      if (write(pipe_of[1], "x", 1) != 1) _exit(1);
      pause();
    }
    char ready = 0;
    EXPECT_EQ(read(pipe_of[0], &ready, 1), 1);
    close(pipe_of[0]);
    close(pipe_of[1]);
  }
  ~OwnerOfTurn() { end(); }
  void end() {
    if (child_ <= 0) return;
    kill(child_, SIGKILL);
    waitpid(child_, nullptr, 0);
    child_ = 0;
  }
  pid_t process() const { return child_; }

 private:
  pid_t child_ = 0;
};

TEST_F(CubinCacheTest, FaultRow21_ATurnThatIsHeldTooLongIsGivenUpNamingItsOwner) {
  const OwnerOfTurn owner(cache_, key_, arch_);
  Warnings warnings;
  { const CompileTurn turn(cache_, key_, arch_, 0.05); }
  ASSERT_THAT(warnings.lines, SizeIs(1));
  EXPECT_THAT(warnings.lines[0], HasSubstr("process " + std::to_string(owner.process()) + " of "));
  EXPECT_THAT(warnings.lines[0], HasSubstr("the kernel is compiled here too"));
  const CompileTurn other(cache_, make_key(make_source("another")), arch_, 0.05);
  EXPECT_THAT(warnings.lines, SizeIs(1)) << "another kernel is another turn";
}

TEST_F(CubinCacheTest, FaultRow21_ATurnGoesWithItsOwnerHoweverThatEnds) {
  OwnerOfTurn owner(cache_, key_, arch_);
  owner.end();
  Warnings warnings;
  { const CompileTurn turn(cache_, key_, arch_, 0.05); }
  EXPECT_THAT(warnings.lines, IsEmpty());
  EXPECT_THAT(list_cache(cache_.folder()), IsEmpty()) << "and leaves no file";
}

TEST_F(CubinCacheTest, FaultRow22_WithoutAFolderToWriteToThereIsNoTurnToWaitFor) {
  Warnings warnings;
  const CompileTurn nowhere(CubinCache(""), key_, arch_), nobody(CubinCache("/dev/null/cache"), key_, arch_);
  EXPECT_THAT(warnings.lines, IsEmpty());
}

TEST_F(CubinCacheTest, AKernelIsFoundByItsSourceWithoutTheCompilersVersion) {
  const Source source = make_source();
  const std::string of_source = source_key(source, {"-O3"});
  ASSERT_TRUE(cache_.keep(cubin_key(source, {"-O3"}, "12.9"), make_cubin('a'), "12.9", of_source));
  ASSERT_TRUE(cache_.keep(cubin_key(source, {"-O3"}, "12.10"), make_cubin('b'), "12.10", of_source));
  const std::map<std::string, std::string> names = cache_.names_by_source();
  ASSERT_THAT(names, SizeIs(1)) << "12.10 is newer than 12.9";
  const auto found = cache_.find_source(names.at(of_source), of_source, arch_);
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->image[0], 'b') << "the newest compiler's";
  EXPECT_NE(of_source, source_key(source, {"-O2"}));
  EXPECT_NE(of_source, source_key(make_source("another"), {"-O3"}));
  Warnings warnings;
  EXPECT_FALSE(cache_.find_source(names.at(of_source), source_key(source, {"-O2"}), arch_).has_value());
  ASSERT_THAT(warnings.lines, SizeIs(1));
  EXPECT_THAT(warnings.lines[0], HasSubstr("another kernel"));
}

TEST_F(CubinCacheTest, FaultRow22_AFolderThatCannotBeMadeGivesOneWarningAndNoError) {
  const CubinCache cache("/dev/null/cache");
  Warnings warnings;
  EXPECT_FALSE(cache.keep(key_, make_cubin(), kNvrtc));
  EXPECT_FALSE(cache.keep(key_, make_cubin(), kNvrtc));
  EXPECT_FALSE(cache.find(key_, arch_).has_value());
  ASSERT_THAT(warnings.lines, SizeIs(1));
  EXPECT_THAT(warnings.lines[0], HasSubstr("/dev/null/cache"));
  EXPECT_THAT(warnings.lines[0], HasSubstr("SSMJIT_CACHE_DIR"));
}

TEST_F(CubinCacheTest, FaultRow22_AReadOnlyFolderIsReadAndGivesOneWarning) {
  kept_file();
  const std::string other = make_key(make_source("another"));
  fs::permissions(scratch_.path(), fs::perms::owner_all | fs::perms::others_exec);
  for (fs::path part = cache_.folder(); part != scratch_.path(); part = part.parent_path())
    fs::permissions(part, fs::perms::owner_all | fs::perms::others_exec | fs::perms::others_read);
  fs::permissions(cache_.folder(),
                  fs::perms::owner_read | fs::perms::owner_exec | fs::perms::others_read | fs::perms::others_exec);
  fs::permissions(cache_.file_of(key_, arch_), fs::perms::owner_read | fs::perms::others_read);
  EXPECT_TRUE(in_child([&] {
    if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0)) return false;  // nothing is read-only for root
    Warnings warnings;
    return cache_.find(key_, arch_).has_value() && !cache_.keep(other, make_cubin(), kNvrtc) &&
           !cache_.keep(other, make_cubin(), kNvrtc) && warnings.lines.size() == 1;
  }));
  fs::permissions(cache_.folder(), fs::perms::owner_all);
}

TEST_F(CubinCacheTest, FaultRow22_AFullDiskGivesAWarningAndLeavesNothingBehind) {
  fs::create_directories(cache_.folder());
  EXPECT_TRUE(in_child([&] {
    const rlimit limit{2048, 2048};
    setrlimit(RLIMIT_FSIZE, &limit);
    signal(SIGXFSZ, SIG_IGN);
    Warnings warnings;
    return !cache_.keep(key_, make_cubin(), kNvrtc) && warnings.lines.size() == 1;
  }));
  EXPECT_THAT(list_cache(cache_.folder()), IsEmpty());
}

TEST(Faults, Row22_WithoutHomeTheCacheIsInMemoryOnly) {
  const ScopedEnvironment own("SSMJIT_CACHE_DIR", std::nullopt), xdg("XDG_CACHE_HOME", std::nullopt),
      home("HOME", std::nullopt);
  EXPECT_EQ(default_cache_dir(), "");
  const CubinCache cache(default_cache_dir());
  Warnings warnings;
  EXPECT_FALSE(cache.keep(make_key(), make_cubin(), kNvrtc));
  EXPECT_FALSE(cache.find(make_key(), Arch{9, 0, 'a'}).has_value());
  ASSERT_THAT(warnings.lines, SizeIs(1));
  EXPECT_THAT(warnings.lines[0], HasSubstr("HOME"));
}

TEST(CacheFolder, IsTheFirstThatIsNamed) {
  const ScopedEnvironment own("SSMJIT_CACHE_DIR", "/own"), xdg("XDG_CACHE_HOME", "/xdg"), home("HOME", "/home/me");
  EXPECT_EQ(default_cache_dir(), "/own");
  const ScopedEnvironment no_own("SSMJIT_CACHE_DIR", "");
  EXPECT_EQ(default_cache_dir(), "/xdg/ssmjit");
  const ScopedEnvironment relative("XDG_CACHE_HOME", "not/absolute");
  EXPECT_EQ(default_cache_dir(), "/home/me/.cache/ssmjit");
}

TEST_F(CubinCacheTest, ListingTellsSoundFromBad) {
  kept_file();
  const std::string bad_key = make_key(make_source("another"));
  ASSERT_TRUE(cache_.keep(bad_key, make_cubin(), kNvrtc));
  const std::string bad = cache_.file_of(bad_key, arch_);
  write_all(bad, read_all(bad).substr(0, 70));
  write_all(cache_.folder() + "/notes.txt", "the user's");
  const std::vector<CacheFile> files = list_cache(cache_.folder());
  ASSERT_THAT(files, SizeIs(2));
  int sound = 0;
  for (const CacheFile& file : files) {
    if (!file.problem.empty()) continue;
    ++sound;
    EXPECT_EQ(file.arch, "sm_90a");
    EXPECT_EQ(file.nvrtc_version, kNvrtc);
    EXPECT_EQ(file.registers, 40);
    EXPECT_GT(file.bytes, 5000u);
  }
  EXPECT_EQ(sound, 1);
}

TEST_F(CubinCacheTest, ClearingRemovesTheCachesOwnFilesOnly) {
  kept_file();
  write_all(cache_.folder() + "/notes.txt", "the user's");
  EXPECT_EQ(clear_cache(cache_.folder()), 1);
  EXPECT_TRUE(fs::exists(cache_.folder() + "/notes.txt"));
  EXPECT_EQ(clear_cache(scratch_ / "absent"), 0);
  EXPECT_THAT(list_cache(scratch_ / "absent"), IsEmpty());
}

TEST_F(CubinCacheTest, AnOldTemporaryFileIsSweptAwayAndAFreshOneIsNot) {
  fs::create_directories(cache_.folder());
  const std::string stale = cache_.folder() + "/.sm_90a-" + key_ + ".ssmjit.1.1.0.tmp";
  const std::string fresh = cache_.folder() + "/.sm_90a-" + key_ + ".ssmjit.2.2.0.tmp";
  write_all(stale, "x");
  write_all(fresh, "x");
  fs::last_write_time(stale, fs::file_time_type::clock::now() - std::chrono::hours(2));
  remove_stale_files(cache_.folder());
  EXPECT_FALSE(fs::exists(stale));
  EXPECT_TRUE(fs::exists(fresh));
}

}  // namespace
}  // namespace ssmjit
