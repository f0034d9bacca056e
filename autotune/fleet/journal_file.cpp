#include "autotune/fleet/journal_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include <fmt/format.h>

#include <ssmjit/error.h>

#include "codegen/fail.h"
#include "codegen/log.h"

namespace ssmjit {
namespace {

std::string first_line_of(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// Why the first line that can't be read can't be, with its number.
std::string first_problem(std::string_view text) {
  for (int number = 1; !text.empty(); ++number) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    try {
      Measurement::from_json(line);
    } catch (const Error& e) {
      return fmt::format("line {}: {}", number, e.what());
    }
  }
  return {};
}

}  // namespace

JournalFile::JournalFile(const std::string& path) : path_(path) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  std::error_code error;
  if (!folder.empty()) std::filesystem::create_directories(folder, error);
  // Closed in the processes that measure: the lock ends with this one.
  file_ = open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (file_ < 0) fail(ErrorKind::invalid, "journal: {} can't be written: {}", path, std::strerror(errno));
  try {
    lock();
    mend();
  } catch (...) {
    release();
    throw;
  }
}

JournalFile::~JournalFile() { release(); }

void JournalFile::release() {
  if (owner_written_) unlink(owner_path().c_str());
  close(file_);
}

void JournalFile::lock() {
  if (flock(file_, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) {
      warn(fmt::format("journal: {} can't be locked ({}); see that no other sweep writes to it", path_,
                       std::strerror(errno)));
      return;
    }
    const std::string owner = first_line_of(owner_path());
    fail(ErrorKind::invalid,
         "journal: {} belongs to another sweep ({}); wait for it, end it, or name another file with --journal", path_,
         owner.empty() ? "which has not said its name" : owner);
  }
  char host[256] = {};
  gethostname(host, sizeof host - 1);
  std::ofstream owner(owner_path());
  owner_written_ = owner.is_open();
  owner << fmt::format("process {} on {}\n", getpid(), host);
}

void JournalFile::mend() {
  struct stat facts {};
  if (fstat(file_, &facts) != 0 || !S_ISREG(facts.st_mode)) return;
  std::string text(static_cast<std::size_t>(facts.st_size), '\0');
  std::size_t got = 0;
  while (got < text.size()) {
    const ssize_t n = pread(file_, text.data() + got, text.size() - got, static_cast<off_t>(got));
    if (n <= 0) fail(ErrorKind::invalid, "journal: {} can't be read: {}", path_, std::strerror(errno));
    got += static_cast<std::size_t>(n);
  }
  const std::size_t whole = text.rfind('\n') + 1;  // 0 where there is no line
  int skipped = 0;
  found_ = parse_journal(text, &skipped);
  if (found_.empty() && text.find_first_not_of(" \t\r\n") != std::string::npos) {
    // A torn first line is a journal's; anything else is a file that must not be touched.
    const std::string problem = first_problem(std::string_view(text).substr(0, whole));
    if (!problem.empty() || !text.starts_with("{\"schema\":"))
      fail(ErrorKind::invalid, "journal: {} is none that this ssmjit can go on with ({}); name another file", path_,
           problem.empty() ? "no line of a measurement" : problem);
  }
  if (skipped > 0)
    warn(fmt::format("{}: {} lines could not be read and were passed over ({})", path_, skipped,
                     first_problem(std::string_view(text).substr(0, whole))));
  if (whole != text.size() && ftruncate(file_, static_cast<off_t>(whole)) != 0)
    fail(ErrorKind::invalid, "journal: the torn end of {} can't be cut off: {}", path_, std::strerror(errno));
}

void JournalFile::append(const Measurement& line) {
  const std::string text = line.json() + '\n';
  struct stat before {};
  fstat(file_, &before);
  ssize_t written = 0;
  do written = write(file_, text.data(), text.size());
  while (written < 0 && errno == EINTR);
  if (written == static_cast<ssize_t>(text.size())) return;
  const int why = written < 0 ? errno : ENOSPC;
  const bool whole = written <= 0 || ftruncate(file_, before.st_size) == 0;
  fail(ErrorKind::machine, "journal: {} can't be written any more: {}; {} what was measured before is in it", path_,
       std::strerror(why), whole ? "make room and start again:" : "the last line is torn; start again:");
}

}  // namespace ssmjit
