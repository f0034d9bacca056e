#include "autotune/search/race.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "codegen/fail.h"

namespace ssmjit {
namespace {

// Below it the expansion of t is off, and a scatter from so few times is worth nothing.
constexpr double kLeastFreedom = 4;

}  // namespace

double t_quantile(double above, double freedom) {
  // The normal quantile by halving, then Cornish and Fisher's expansion in 1 / freedom.
  double low = 0, high = 10;
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (std::erfc(middle / std::sqrt(2.0)) / 2 > above ? low : high) = middle;
  }
  const double z = low, z2 = z * z, n = freedom;
  return z + z * (z2 + 1) / (4 * n) + z * (5 * z2 * z2 + 16 * z2 + 3) / (96 * n * n) +
         z * (3 * z2 * z2 * z2 + 19 * z2 * z2 + 17 * z2 - 15) / (384 * n * n * n);
}

Race::Race(std::size_t candidates, const RaceRules& rules)
    : rules_(rules), logs_(candidates), running_(candidates, true) {
  if (candidates == 0) fail(ErrorKind::internal, "race: no candidates");
}

void Race::add(std::size_t candidate, double us) {
  // A chain's step may come out at nothing or less, once its producers are taken off.
  logs_[candidate].push_back(std::log(std::max(us, 1e-3)));
}

double Race::mean(std::size_t candidate) const {
  double sum = 0;
  for (double v : logs_[candidate]) sum += v;
  return sum / static_cast<double>(logs_[candidate].size());
}

std::size_t Race::best() const {
  std::size_t best = running_.size();
  for (std::size_t i = 0; i < running_.size(); ++i)
    if (running_[i] && (best == running_.size() || mean(i) < mean(best))) best = i;
  return best;
}

double Race::margin(std::size_t candidate) const {
  const double n = rounds_;
  const std::vector<double>&of = logs_[candidate], &of_best = logs_[best()];
  double sum = 0, square = 0;
  for (int round = 0; round < rounds_; ++round) {
    const auto r = static_cast<std::size_t>(round);
    const double apart = of[r] - of_best[r];
    sum += apart;
    square += apart * apart;
  }
  // A pair that scatters more than all do counts with its own.
  const double own = rounds_ > 1 ? std::max(0.0, square - sum * sum / n) / (n - 1) : 0;
  if (freedom_ < kLeastFreedom) return std::numeric_limits<double>::infinity();
  const double chance = rules_.error / (static_cast<double>(running_.size()) * rules_.most_rounds);
  return t_quantile(chance, freedom_) * std::sqrt(std::max(own, 2 * scatter_) / n);
}

std::vector<std::size_t> Race::end_round() {
  ++rounds_;
  // What is left of each time without its candidate's mean and its round's.
  double squares = 0;
  std::size_t running = 0;
  for (int round = 0; round < rounds_; ++round) {
    double common = 0;
    running = 0;
    for (std::size_t i = 0; i < running_.size(); ++i) {
      if (!running_[i]) continue;
      common += logs_[i][static_cast<std::size_t>(round)] - mean(i);
      ++running;
    }
    common /= static_cast<double>(running);
    for (std::size_t i = 0; i < running_.size(); ++i) {
      if (!running_[i]) continue;
      const double left = logs_[i][static_cast<std::size_t>(round)] - mean(i) - common;
      squares += left * left;
    }
  }
  const double freedom = static_cast<double>(running - 1) * (rounds_ - 1);
  // With few left, what the many showed before stays the better estimate.
  if (freedom >= freedom_) {
    freedom_ = freedom;
    scatter_ = freedom > 0 ? squares / freedom : 0;
  }

  std::vector<std::size_t> dropped;
  if (rules_.drops && rounds_ >= rules_.least_rounds) {
    const std::size_t winner = best();
    for (std::size_t i = 0; i < running_.size(); ++i)
      if (running_[i] && i != winner && mean(i) - mean(winner) > margin(i)) dropped.push_back(i);
    for (std::size_t i : dropped) running_[i] = false;
  }
  if (rounds_ >= rules_.most_rounds) over_ = true;
  if (rules_.drops && rounds_ >= rules_.rounds_of_a_figure) {
    bool close = true;
    const std::size_t winner = best();
    for (std::size_t i = 0; i < running_.size(); ++i)
      if (running_[i] && i != winner) close = close && mean(i) - mean(winner) + margin(i) <= rules_.indifference;
    over_ = over_ || close;
  }
  return dropped;
}

bool Race::tied(std::size_t candidate) const {
  const std::size_t winner = best();
  return running_[candidate] && candidate != winner && mean(candidate) - mean(winner) <= margin(candidate);
}

}  // namespace ssmjit
