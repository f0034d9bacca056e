// A journal that a sweep appends to.
#pragma once

#include <string>
#include <vector>

#include <ssmjit/measurement.h>

namespace ssmjit {

class JournalFile {
 public:
  // Opens or makes it, with its folder, and holds its lock until the end of this object or of the process. What was
  // torn at its end is cut off; lines that can't be read stay, with a warning that counts them.
  // Fails: ErrorKind::invalid when another sweep holds it, naming that process and host; when it can't be written; when
  // none of its lines is one of a journal, or of this schema.
  explicit JournalFile(const std::string& path);
  JournalFile(const JournalFile&) = delete;
  JournalFile& operator=(const JournalFile&) = delete;
  ~JournalFile();

  // What it held when it was opened.
  const std::vector<Measurement>& found() const { return found_; }
  // A line, whole or not at all. Fails: ErrorKind::machine, naming the file; what was appended before stays.
  void append(const Measurement& line);

 private:
  void lock();
  void mend();
  void release();
  // Beside the journal: who holds its lock.
  std::string owner_path() const { return path_ + ".owner"; }

  std::string path_;
  int file_ = -1;
  bool owner_written_ = false;
  std::vector<Measurement> found_;
};

}  // namespace ssmjit
