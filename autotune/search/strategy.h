// Which plans to time next. A strategy is asked at one batch after the other and told what each plan took in its first
// replays; what it does not ask for is not compiled, verified or timed.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/device.h>
#include <ssmjit/plan.h>
#include <ssmjit/tune.h>

namespace ssmjit {

class Strategy {
 public:
  virtual ~Strategy() = default;
  // Which of `open` to time next at `batch`, as places in the plans; empty: the rest is left out. `open` holds those
  // that were not asked for yet, and may lack some that can't be timed.
  virtual std::vector<std::size_t> ask(int batch, const std::vector<std::size_t>& open) = 0;
  // What a plan took at a batch, us; the times of a journal are told the same way.
  void tell(int batch, std::size_t plan, double us) { times_[batch][plan] = us; }
  // A batch that is done: what it showed counts at others too. Before, its fastest plans may have no time yet.
  void finish(int batch) { finished_.insert(batch); }

 protected:
  using Times = std::map<std::size_t, double>;  // us by plan
  // Of the batches that are done, and of `batch` itself.
  std::map<int, const Times*> times_at(int batch) const {
    std::map<int, const Times*> found;
    for (const auto& [other, of] : times_)
      if (other == batch || finished_.contains(other)) found[other] = &of;
    return found;
  }
  bool finished(int batch) const { return finished_.contains(batch); }

 private:
  std::map<int, Times> times_;
  std::set<int> finished_;
};

// All batches of a sweep: as TuneOptions has them.
struct SearchBatches {
  std::vector<int> asked = {};
  std::vector<int> between = {};
};

// The batches whose times say what is asked for at `batch`: to be done before it.
std::vector<int> goes_by(Search search, const SearchBatches& batches, int batch);
// About how many of `suited` plans are asked for at `batch`.
std::size_t plans_asked(Search search, const SearchBatches& batches, int batch, std::size_t suited);

// `plans` are all that there are, of which `suited` may be asked for. One mode.
std::unique_ptr<Strategy> make_strategy(Search search, const Description& description, const std::vector<Plan>& plans,
                                        std::size_t suited, const SearchBatches& batches, const DeviceFacts& gpu);

}  // namespace ssmjit
