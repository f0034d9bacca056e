// The journal lines of a sweep before they are measured: which there can be, and which a journal lacks.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include <ssmjit/device.h>
#include <ssmjit/tune.h>

namespace ssmjit {

// Timed replays of a visit: in a row, behind one that is not timed.
constexpr int kReplays = 3;
// What is timed of a description: an update has one phase. Fails: ErrorKind::invalid.
std::vector<Phase> phases_of(const Description& description, const TuneOptions& options);

// n of a ring that is timed in both phases, else 0. Fails: ErrorKind::invalid where the acceptance does not fit.
double steps_between_flushes(const Description& description, const TuneOptions& options);

class SweepLines {
 public:
  // Emits every plan's source for its digest. Fails: ErrorKind::invalid for an invalid description, option or plan.
  SweepLines(const Description& description, const TuneOptions& options, const DeviceFacts& gpu);

  const std::vector<Plan>& plans() const { return plans_; }
  // 0 but for a ring that is timed in both phases.
  double steps_per_flush() const { return blank_.steps_per_flush; }
  // Whether a plan is timed in `mode`: in chain those that ask for the state early, in off the others; where there are
  // none of the kind, all. A layer's chain in both.
  bool suits(std::size_t plan, PdlMode mode) const;

  // Without figures, dated now.
  Measurement verified(std::size_t plan) const;
  Measurement timed(std::size_t plan, int batch, PdlMode mode) const;

 private:
  Measurement line(std::size_t plan) const;

  std::vector<Plan> plans_;
  std::vector<std::string> digests_;  // of the sources
  bool has_early_ = false, has_other_ = false;
  Measurement blank_;
};

// What a journal says of a sweep's lines.
class KnownLines {
 public:
  explicit KnownLines(const std::vector<Measurement>& journal);
  void add(const Measurement& line);
  // A plan whose line of phase "verify" says that it may be timed.
  bool is_right(const Measurement& verified) const { return right_.contains(verified.key()); }
  // One that is not to be looked at again.
  bool is_out(const Measurement& verified) const {
    return keys_.contains(verified.key()) || never_.contains(verified.candidate());
  }
  // One that need not be timed again. What was dropped must be, where all that was faster has turned out to be unsound.
  bool has(const Measurement& timed) const;
  // Whether a plan that is sound has won the line's cell: the last line of a cell that is done.
  bool has_winner(const Measurement& timed) const;
  // The same, though the winner may have turned out to be unsound since.
  bool had_winner(const Measurement& timed) const;

 private:
  std::set<std::string> right_, keys_, never_;
  std::set<std::string> dropped_;                       // of keys_
  std::map<std::string, std::set<std::string>> ahead_;  // by cell: kernels that were timed in full, or unsound there
  std::map<std::string, std::set<std::string>> won_;    // by cell
};

}  // namespace ssmjit
