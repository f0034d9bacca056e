#include "autotune/search/cell_search.h"

#include "autotune/cells.h"

namespace ssmjit {

CellSearch::CellSearch(const Description& description, const SweepLines& lines, const TuneOptions& options,
                       const KnownLines& known, const DeviceFacts& gpu)
    : lines_(lines), known_(known) {
  const Search search = options.rounds > 0 ? Search::exhaustive : options.search;
  ends_with_winner_ = search == Search::model;
  const SearchBatches batches{options.search_batches.empty() ? options.batches : options.search_batches,
                              options.between};
  for (PdlMode mode : options.modes) {
    std::size_t suited = 0;
    for (std::size_t i = 0; i < lines.plans().size(); ++i) suited += lines.suits(i, mode) ? 1 : 0;
    strategies_[mode] = make_strategy(search, description, lines.plans(), suited, batches, gpu);
  }
  for (std::size_t i = 0; i < lines.plans().size(); ++i) plans_[lines.plans()[i].text()] = i;
  for (const Measurement& line : options.known) tell(line);
}

std::vector<std::size_t> CellSearch::open(int batch, PdlMode mode) const {
  std::vector<std::size_t> open;
  for (std::size_t i = 0; i < lines_.plans().size(); ++i)
    if (lines_.suits(i, mode) && !known_.is_out(lines_.verified(i)) && !known_.has(lines_.timed(i, batch, mode)))
      open.push_back(i);
  return open;
}

std::vector<std::size_t> CellSearch::ask(int batch, PdlMode mode, const std::vector<std::size_t>& open) {
  if (open.empty()) return {};
  if (ends_with_winner_ && known_.has_winner(lines_.timed(open.front(), batch, mode))) return {};
  // A layer's chains are few, and no fused plan says anything of their time.
  std::vector<std::size_t> chains;
  for (std::size_t plan : open)
    if (is_chain(plan)) chains.push_back(plan);
  if (!chains.empty()) return chains;
  Strategy& strategy = *strategies_.at(mode);
  for (const int other : timed_[mode])
    if (known_.had_winner(lines_.timed(open.front(), other, mode))) strategy.finish(other);
  return strategy.ask(batch, open);
}

void CellSearch::tell(const Measurement& line) {
  if (!(line.us > 0)) return;
  const auto plan = plans_.find(line.plan.text());
  if (plan == plans_.end() || !strategies_.contains(line.pdl)) return;
  if (lines_.timed(plan->second, line.batch, line.pdl).key() != line.key()) return;
  tell(line.batch, line.pdl, plan->second, tidy_us(line.us));  // as journals have it
}

void CellSearch::tell(int batch, PdlMode mode, std::size_t plan, double us) {
  timed_[mode].insert(batch);
  if (!is_chain(plan)) strategies_.at(mode)->tell(batch, plan, us);
}

}  // namespace ssmjit
