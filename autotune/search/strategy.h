// Which plans to time next. A strategy is asked at one batch after the other and told what each plan took in its first
// replays; what it does not ask for is not compiled, verified or timed.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <vector>

#include <ssmjit/description.h>
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

 protected:
  using Times = std::map<std::size_t, double>;  // us by plan
  const std::map<int, Times>& times() const { return times_; }

 private:
  std::map<int, Times> times_;
};

// `plans` are all that there are, of which `suited` may be asked for; `batches` all that will be visited. One mode.
std::unique_ptr<Strategy> make_strategy(Search search, const Description& description, const std::vector<Plan>& plans,
                                        std::size_t suited, const std::vector<int>& batches, int sms);

}  // namespace ssmjit
