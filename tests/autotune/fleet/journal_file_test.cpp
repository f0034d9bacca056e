#include "autotune/fleet/journal_file.h"

#include <unistd.h>

#include <set>

#include <gmock/gmock.h>

#include <ssmjit/log.h>

#include "tests/autotune/fleet/planted.h"

namespace ssmjit {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

Measurement line(int batch) {
  Measurement m;
  m.kernel_digest = "0123456789abcdef";
  m.source_digest = "fedcba9876543210";
  m.device = "h200";
  m.batch = batch;
  m.us = 3;
  m.measured = "2026-11-21T10:00:00Z";
  return m;
}

class JournalFileTest : public InFolder {
 protected:
  std::string refusal(const std::string& path, ErrorKind kind = ErrorKind::invalid) {
    try {
      JournalFile journal(path);
      journal.append(line(1));
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), kind);
      return e.what();
    }
    return "none";
  }
};

TEST_F(JournalFileTest, KeepsWhatIsAppendedAndFindsItAgain) {
  const std::string path = at("deep/folder/j.jsonl");
  {
    JournalFile journal(path);
    EXPECT_THAT(journal.found(), IsEmpty());
    journal.append(line(1));
    journal.append(line(2));
  }
  EXPECT_THAT(JournalFile(path).found(), SizeIs(2));
  EXPECT_FALSE(std::filesystem::exists(path + ".owner"));
}

TEST_F(JournalFileTest, Row27_ATornTailIsCutOffAtEveryByte) {
  const std::string whole = line(1).json() + "\n", torn = line(2).json();
  for (std::size_t cut = 1; cut <= torn.size(); ++cut) {
    write("j.jsonl", whole + torn.substr(0, cut));
    {
      JournalFile journal(at("j.jsonl"));
      ASSERT_THAT(journal.found(), SizeIs(1)) << cut;
      journal.append(line(3));
    }
    ASSERT_EQ(read("j.jsonl"), whole + line(3).json() + "\n") << cut;
  }
}

TEST_F(JournalFileTest, ATornFirstLineIsAJournalsToo) {
  write("j.jsonl", line(1).json().substr(0, 200));
  EXPECT_THAT(JournalFile(at("j.jsonl")).found(), IsEmpty());
  EXPECT_EQ(read("j.jsonl"), "");
}

TEST_F(JournalFileTest, ASecondSweepIsRefusedAndTheOwnerNamed) {
  const JournalFile first(at("j.jsonl"));
  std::filesystem::create_symlink(at("j.jsonl"), at("link.jsonl"));
  char host[256] = {};
  gethostname(host, sizeof host - 1);
  EXPECT_THAT(refusal(at("j.jsonl")),
              AllOf(HasSubstr("belongs to another sweep"), HasSubstr("process " + std::to_string(getpid())),
                    HasSubstr(host), HasSubstr(at("j.jsonl"))));
  EXPECT_THAT(refusal(at("link.jsonl")), HasSubstr("belongs to another sweep")) << "by whatever name";
  EXPECT_THAT(refusal(at("j.jsonl")), HasSubstr("process ")) << "who was refused leaves the owner's name";
}

TEST_F(JournalFileTest, TheOwnerThatWasKilledHoldsNothing) {
  write("j.jsonl.owner", "process 1 on another\n");
  EXPECT_EQ(refusal(at("j.jsonl")), "none");
}

TEST_F(JournalFileTest, AnOwnersNameThatItDidNotWriteStays) {
  std::filesystem::create_symlink("/nowhere/owner", at("j.jsonl.owner"));
  EXPECT_EQ(refusal(at("j.jsonl")), "none");
  EXPECT_TRUE(std::filesystem::is_symlink(at("j.jsonl.owner")));
}

TEST_F(JournalFileTest, LinesOfAnotherSchemaArePassedOverWithTheirCountAndStay) {
  std::string other = line(1).json();
  other.replace(other.find("\"schema\":1"), 10, "\"schema\":2");
  write("j.jsonl", other + "\n" + line(2).json() + "\n");
  std::string said;
  set_log([&](LogLevel, std::string_view text) { said += text; });
  EXPECT_THAT(JournalFile(at("j.jsonl")).found(), SizeIs(1));
  set_log({});
  EXPECT_THAT(said, AllOf(HasSubstr("1 lines could not be read"), HasSubstr("line 1: journal: schema: got 2")));
  EXPECT_THAT(read("j.jsonl"), HasSubstr(other));
}

TEST_F(JournalFileTest, AFileOfNothingButAnotherSchemaIsRefusedUntouched) {
  std::string other = line(1).json();
  other.replace(other.find("\"schema\":1"), 10, "\"schema\":2");
  for (const std::string& text : {other + "\n", other + "\n" + other + "\n{\"schema\":2,",
                                  std::string("{\n  \"rows\": []\n}"), std::string("# a table\nof something")}) {
    write("j.jsonl", text);
    EXPECT_THAT(refusal(at("j.jsonl")), AllOf(HasSubstr(at("j.jsonl")), HasSubstr("name another file"))) << text;
    EXPECT_EQ(read("j.jsonl"), text);
    EXPECT_FALSE(std::filesystem::exists(at("j.jsonl.owner"))) << text;
  }
}

TEST_F(JournalFileTest, AFullDiskIsAnErrorThatNamesTheFile) {
  if (access("/dev/full", W_OK) != 0) GTEST_SKIP() << "no /dev/full";
  EXPECT_THAT(refusal("/dev/full", ErrorKind::machine), AllOf(HasSubstr("/dev/full"), HasSubstr("No space left")));
}

TEST_F(JournalFileTest, AFolderThatCannotBeMadeIsNamed) {
  EXPECT_THAT(refusal("/proc/nowhere/j.jsonl"), HasSubstr("/proc/nowhere/j.jsonl"));
}

}  // namespace
}  // namespace ssmjit
