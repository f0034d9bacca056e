// What of a sweep is still to be timed, cell by cell: the journal's lines on one side, a strategy's wishes on the
// other.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <ssmjit/tune.h>

#include "autotune/search/strategy.h"
#include "autotune/sweep_lines.h"

namespace ssmjit {

class CellSearch {
 public:
  // Takes the times of options.known. All it is given outlives it.
  CellSearch(const Description& description, const SweepLines& lines, const TuneOptions& options,
             const KnownLines& known, const DeviceFacts& gpu);

  // The plans that may be timed there and have no line yet.
  std::vector<std::size_t> open(int batch, PdlMode mode) const;
  // Which of `open` to time next; empty: the cell is done. Times of other cells count once these have had a winner.
  std::vector<std::size_t> ask(int batch, PdlMode mode, const std::vector<std::size_t>& open);
  // A line of this sweep that has a time. What a strategy makes of it is the same now and from a journal.
  void tell(const Measurement& line);
  // A time that is no line yet.
  void tell(int batch, PdlMode mode, std::size_t plan, double us);

 private:
  bool is_chain(std::size_t plan) const { return lines_.plans()[plan].form != PlanForm::fused; }
  const SweepLines& lines_;
  const KnownLines& known_;
  bool ends_with_winner_ = false;           // a cell with a winner is done, whatever else could be asked
  std::map<PdlMode, std::set<int>> timed_;  // batches that there are times of
  std::map<PdlMode, std::unique_ptr<Strategy>> strategies_;
  std::map<std::string, std::size_t> plans_;  // by text
};

}  // namespace ssmjit
