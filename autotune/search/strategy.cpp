#include "autotune/search/strategy.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <utility>

#include "autotune/search/cost_model.h"
#include "codegen/fail.h"

namespace ssmjit {
namespace {

// Batches with their levels: 0 the ends, 1 the middle, 2 the middles of the halves.
std::vector<std::pair<int, int>> levels(std::vector<int> batches) {
  std::sort(batches.begin(), batches.end());
  batches.erase(std::unique(batches.begin(), batches.end()), batches.end());
  std::vector<std::pair<int, int>> order;
  if (batches.empty()) return order;
  order.emplace_back(batches.front(), 0);
  if (batches.size() > 1) order.emplace_back(batches.back(), 0);
  std::vector<std::pair<std::size_t, std::size_t>> gaps = {{0, batches.size() - 1}};
  for (int level = 1; !gaps.empty(); ++level) {
    std::vector<std::pair<std::size_t, std::size_t>> next;
    for (const auto& [low, high] : gaps) {
      if (high - low < 2) continue;
      const std::size_t middle = (low + high) / 2;
      order.emplace_back(batches[middle], level);
      next.emplace_back(low, middle);
      next.emplace_back(middle, high);
    }
    gaps = std::move(next);
  }
  return order;
}

// The level of each batch. One between others is a level above the two beside it, of what was there before it.
std::map<int, int> all_levels(const SearchBatches& batches) {
  std::map<int, int> level_of;
  for (const auto& [batch, level] : levels(batches.asked)) level_of[batch] = level;
  for (const int batch : batches.between) {
    int level = 0;
    const auto above = level_of.lower_bound(batch);
    if (above != level_of.end()) level = above->second + 1;
    if (above != level_of.begin()) level = std::max(level, std::prev(above)->second + 1);
    level_of.emplace(batch, level);
  }
  return level_of;
}

double least_of(const std::map<std::size_t, double>& times) {
  double least = std::numeric_limits<double>::infinity();
  for (const auto& [plan, us] : times) least = std::min(least, us);
  return least;
}

class Exhaustive : public Strategy {
 public:
  std::vector<std::size_t> ask(int, const std::vector<std::size_t>& open) override { return open; }
};

// Whether two plans differ in one tunable; those of a first launch, which there is or is not, are one.
bool are_kin(const Plan& a, const Plan& b) {
  const auto differ = [&](auto Plan::*tunable) { return a.*tunable != b.*tunable ? 1 : 0; };
  return differ(&Plan::block_m) + differ(&Plan::warps) + differ(&Plan::lanes_per_row) + differ(&Plan::heads_per_block) +
             differ(&Plan::stages) + differ(&Plan::state_path) + differ(&Plan::streaming) + differ(&Plan::early_state) +
             differ(&Plan::min_blocks_per_sm) + differ(&Plan::ring_rows) +
             std::max(differ(&Plan::precompute_warps), differ(&Plan::precompute_heads)) ==
         1;
}

// Every plan at the least, the middle and the greatest batch; then at the middles of what lies between those plans that
// are nearest to the best at the next batch on either side: half of them, a quarter, an eighth, ... After those the kin
// of the fastest there, until none is left: a plan whose blocks fill the GPU at this batch alone is slow at both
// neighbours, but is one tunable away from another that is not. A batch between those of the sweep was added because
// its neighbours say little of it: there it is half of all plans, however near they are.
constexpr int kWholeLevels = 1;     // up to which every plan is asked for
constexpr std::size_t kLeast = 24;  // plans asked for at a batch, where there are as many

std::size_t asked_for_at(int level, bool between, std::size_t suited) {
  if (level <= kWholeLevels) return suited;
  return std::min(suited, std::max(kLeast, suited >> (between ? 1 : level - kWholeLevels)));
}

class Halving : public Strategy {
 public:
  // `suited`: of the plans, how many may be asked for.
  Halving(const std::vector<Plan>& plans, std::size_t suited, const SearchBatches& batches)
      : plans_(plans),
        suited_(suited),
        levels_(all_levels(batches)),
        between_(batches.between.begin(), batches.between.end()) {}

  std::vector<std::size_t> ask(int batch, const std::vector<std::size_t>& open) override {
    const auto level = levels_.find(batch);
    if (level == levels_.end() || level->second <= kWholeLevels) return open;
    std::vector<std::size_t> asked = near_the_best_beside(batch, level->second, open);
    // The times of a finished batch are no more those that its kin were chosen by.
    return asked.empty() && !finished(batch) ? kin_of_the_fastest(batch, open) : asked;
  }

 private:
  static constexpr std::size_t kFastest = 3;  // whose kin are asked for

  std::vector<std::size_t> near_the_best_beside(int batch, int level, const std::vector<std::size_t>& open) const {
    // How far each is behind the best at the neighbours, the smaller of the two.
    std::map<std::size_t, double> behind;
    for (const Times* of : neighbours(batch, level)) {
      const double least = least_of(*of);
      for (const auto& [plan, us] : *of) {
        const auto [at, added] = behind.emplace(plan, us / least);
        if (!added) at->second = std::min(at->second, us / least);
      }
    }
    if (behind.empty()) return open;
    std::vector<std::pair<double, std::size_t>> order;
    for (const auto& [plan, ratio] : behind) order.emplace_back(ratio, plan);
    std::sort(order.begin(), order.end());
    order.resize(std::min(order.size(), asked_for_at(level, between_.contains(batch), suited_)));
    std::vector<std::size_t> asked;
    for (std::size_t plan : open)
      if (std::any_of(order.begin(), order.end(), [&](const auto& o) { return o.second == plan; }))
        asked.push_back(plan);
    return asked;
  }

  std::vector<std::size_t> kin_of_the_fastest(int batch, const std::vector<std::size_t>& open) const {
    std::vector<std::pair<double, std::size_t>> order;
    const std::map<int, const Times*> times = times_at(batch);
    if (const auto here = times.find(batch); here != times.end())
      for (const auto& [plan, us] : *here->second) order.emplace_back(us, plan);
    std::sort(order.begin(), order.end());
    order.resize(std::min(order.size(), kFastest));
    std::vector<std::size_t> asked;
    for (std::size_t plan : open)
      if (std::any_of(order.begin(), order.end(),
                      [&](const auto& o) { return are_kin(plans_[o.second], plans_[plan]); }))
        asked.push_back(plan);
    return asked;
  }

  // The nearest batches of lower levels on either side that have times: the same whatever else was measured by now.
  std::vector<const Times*> neighbours(int batch, int level) const {
    const Times *below = nullptr, *above = nullptr;
    for (const auto& [other, of] : times_at(batch)) {
      const auto at = levels_.find(other);
      if (at == levels_.end() || at->second >= level) continue;
      if (other < batch) below = of;
      if (other > batch && above == nullptr) above = of;
    }
    std::vector<const Times*> found;
    for (const Times* of : {below, above})
      if (of != nullptr) found.push_back(of);
    return found;
  }

  std::vector<Plan> plans_;
  std::size_t suited_;
  std::map<int, int> levels_;
  std::set<int> between_;
};

// A few plans first: the best of the nearest batches, or a spread of all. Then those that the model of all times so far
// says are fastest, until the fastest that is left would win nothing, were it 1.5 deviations of the model's errors off.
class ByModel : public Strategy {
 public:
  ByModel(const Description& description, const std::vector<Plan>& plans, const DeviceFacts& gpu)
      : description_(description), plans_(plans), gpu_(gpu) {}

  std::vector<std::size_t> ask(int batch, const std::vector<std::size_t>& open) override {
    if (open.empty()) return {};
    Errors& errors = errors_[batch];
    const std::map<int, const Times*> times = times_at(batch);
    const bool started = times.contains(batch);
    if (!started && !seeded_.contains(batch)) {
      seeded_[batch] = true;
      if (std::vector<std::size_t> first = seeds(batch, open); !first.empty()) return first;
    }
    if (!started) return spread(open);

    const Times& here = *times.at(batch);
    const double best = least_of(here);
    // What came of the last predictions.
    for (const auto& [plan, predicted] : errors.coming)
      if (const auto us = here.find(plan); us != here.end()) errors.seen.push_back(predicted - std::log(us->second));
    errors.coming.clear();

    CostModel model(description_, gpu_);
    for (const auto& [other, of] : times) {
      const double octaves = std::abs(std::log2(static_cast<double>(other) / batch));
      const double weight = other == batch ? 1.0 : 0.5 * std::pow(0.6, octaves);
      if (weight < 0.02) continue;
      const double least = least_of(*of);
      for (const auto& [plan, us] : *of) model.add(plans_[plan], other, us / least, weight);
    }
    model.fit();
    std::vector<std::pair<double, std::size_t>> order;  // logarithm of the ratio to the best
    for (std::size_t plan : open) order.emplace_back(predicted(model, batch, plan), plan);
    std::sort(order.begin(), order.end());
    if (!errors.seen.empty()) {
      double squares = 0, fitted = 0;
      const std::size_t last = std::min(errors.seen.size(), 2 * kChunk);
      for (std::size_t i = errors.seen.size() - last; i < errors.seen.size(); ++i)
        squares += errors.seen[i] * errors.seen[i] / static_cast<double>(last);
      double count = 0;
      for (const auto& [plan, us] : here) {
        const double ratio = std::log(us / best);
        if (ratio > kNear) continue;
        const double off = predicted(model, batch, plan) - ratio;
        fitted += off * off;
        ++count;
      }
      const double deviation = std::sqrt(std::max(squares, count > 0 ? fitted / count : 0.0));
      if (order.front().first - kDeviations * deviation > -kGain) return {};
    }
    std::vector<std::size_t> asked;
    for (std::size_t i = 0; i < std::min(kChunk, order.size()); ++i) {
      asked.push_back(order[i].second);
      errors.coming.emplace_back(order[i].second, order[i].first + std::log(best));
    }
    return asked;
  }

 private:
  static constexpr std::size_t kSpread = 24, kChunk = 12, kOfNeighbour = 6;
  static constexpr double kNear = 0.25;       // plans whose errors count, in the logarithm of the ratio to the best
  static constexpr double kGain = 0.005;      // a gain that is worth looking for
  static constexpr double kDeviations = 1.5;  // of the model's errors
  // How much of what the model misses at a neighbour it is taken to miss here, and what is left of that an octave.
  static constexpr double kCarried = 0.8, kOctave = 0.8;

  struct Errors {
    std::vector<std::pair<std::size_t, double>> coming;  // plan and the logarithm of its predicted us
    std::vector<double> seen;                            // in the logarithm
  };

  std::vector<std::size_t> spread(const std::vector<std::size_t>& open) const {
    std::vector<std::size_t> some;
    const std::size_t step = std::max<std::size_t>(1, open.size() / kSpread);
    for (std::size_t i = 0; i < open.size(); i += step) some.push_back(open[i]);
    return some;
  }

  // The two batches that are nearest, in octaves, and have times.
  std::vector<std::pair<int, const Times*>> nearest(int batch) const {
    std::vector<std::pair<double, int>> order;
    const std::map<int, const Times*> times = times_at(batch);
    for (const auto& [other, of] : times)
      if (other != batch) order.emplace_back(std::abs(std::log2(static_cast<double>(other) / batch)), other);
    std::sort(order.begin(), order.end());
    std::vector<std::pair<int, const Times*>> nearest;
    for (std::size_t i = 0; i < std::min<std::size_t>(2, order.size()); ++i)
      nearest.emplace_back(order[i].second, times.at(order[i].second));
    return nearest;
  }

  std::vector<std::size_t> seeds(int batch, const std::vector<std::size_t>& open) const {
    const auto near = nearest(batch);
    if (near.empty()) return spread(open);
    std::vector<bool> chosen(plans_.size());
    for (const auto& [other, of] : near) {
      std::vector<std::pair<double, std::size_t>> order;
      for (const auto& [plan, us] : *of) order.emplace_back(us, plan);
      std::sort(order.begin(), order.end());
      for (std::size_t i = 0; i < std::min(kOfNeighbour, order.size()); ++i) chosen[order[i].second] = true;
    }
    std::vector<std::size_t> first;
    for (std::size_t plan : open)
      if (chosen[plan]) first.push_back(plan);
    return first;
  }

  // The model's word, less what it misses of the plan at the neighbours.
  double predicted(const CostModel& model, int batch, std::size_t plan) const {
    double missed = 0, weights = 0, most = 0;
    for (const auto& [other, of] : nearest(batch)) {
      const auto us = of->find(plan);
      if (us == of->end()) continue;
      const double weight = std::pow(kOctave, std::abs(std::log2(static_cast<double>(other) / batch)));
      missed += weight * (CostModel::target(us->second / least_of(*of)) - model.log_ratio(plans_[plan], other));
      weights += weight;
      most = std::max(most, weight);
    }
    return model.log_ratio(plans_[plan], batch) + (weights > 0 ? kCarried * most * missed / weights : 0);
  }

  Description description_;
  std::vector<Plan> plans_;
  DeviceFacts gpu_;
  std::map<int, Errors> errors_;
  std::map<int, bool> seeded_;
};

}  // namespace

const char* name(Search search) {
  switch (search) {
    case Search::exhaustive:
      return "exhaustive";
    case Search::halving:
      return "halving";
    case Search::model:
      return "model";
  }
  return "?";
}

Search parse_search(std::string_view text) {
  for (Search search : {Search::exhaustive, Search::halving, Search::model})
    if (text == name(search)) return search;
  fail(ErrorKind::invalid, "strategy: got {}; wants exhaustive, halving or model", in_quotes(text));
}

std::vector<int> search_order(Search search, std::vector<int> batches) {
  if (search == Search::exhaustive) return batches;
  std::vector<int> order;
  for (const auto& [batch, level] : levels(std::move(batches))) order.push_back(batch);
  return order;
}

std::vector<int> goes_by(Search search, const SearchBatches& batches, int batch) {
  if (search != Search::halving) return {};
  const std::map<int, int> level_of = all_levels(batches);
  const auto here = level_of.find(batch);
  if (here == level_of.end() || here->second <= kWholeLevels) return {};
  std::vector<int> found;
  const auto lower = [&](const auto& other) { return other.second < here->second; };
  // Between the least and the greatest batch there is one on either side.
  found.push_back(std::find_if(std::make_reverse_iterator(here), level_of.rend(), lower)->first);
  found.push_back(std::find_if(here, level_of.end(), lower)->first);
  return found;
}

std::size_t plans_asked(Search search, const SearchBatches& batches, int batch, std::size_t suited) {
  if (search == Search::model) return suited / 3;
  if (search == Search::exhaustive) return suited;
  const std::map<int, int> level_of = all_levels(batches);
  const auto here = level_of.find(batch);
  const bool between = std::find(batches.between.begin(), batches.between.end(), batch) != batches.between.end();
  return here == level_of.end() ? suited : asked_for_at(here->second, between, suited);
}

std::unique_ptr<Strategy> make_strategy(Search search, const Description& description, const std::vector<Plan>& plans,
                                        std::size_t suited, const SearchBatches& batches, const DeviceFacts& gpu) {
  if (search == Search::halving) return std::make_unique<Halving>(plans, suited, batches);
  if (search == Search::model) return std::make_unique<ByModel>(description, plans, gpu);
  return std::make_unique<Exhaustive>();
}

}  // namespace ssmjit
