// Which of several candidates is the fastest, from rounds in which each is timed once: who is slower with confidence
// drops out.
#pragma once

#include <cstddef>
#include <vector>

namespace ssmjit {

struct RaceRules {
  int least_rounds = 3;        // before anyone drops out
  int rounds_of_a_figure = 5;  // of those that stay, at least
  int most_rounds = 10;
  // The chance that the fastest drops out, at most, all rounds and rivals taken together, where the logarithms of times
  // scatter normally about a candidate's own and a round's common part.
  double error = 0.05;
  // Ends where whoever stays is within this of the fastest, with the same confidence.
  double indifference = 0.005;
  bool drops = true;  // false: everyone stays for most_rounds
};

class Race {
 public:
  // Fails: ErrorKind::internal without a candidate.
  Race(std::size_t candidates, const RaceRules& rules);

  bool running(std::size_t candidate) const { return running_[candidate]; }
  // What a running candidate took in this round, us.
  void add(std::size_t candidate, double us);
  // Takes the next round, once every running candidate has been added to this one; who drops out.
  std::vector<std::size_t> end_round();
  bool over() const { return over_; }
  // The one with the least mean of those that run.
  std::size_t best() const;
  // Not the best, but not told from it either.
  bool tied(std::size_t candidate) const;

 private:
  // By how much of the best's time a candidate must be slower to be told from it: the standard error of the mean
  // difference times the quantile of Student's t.
  double margin(std::size_t candidate) const;
  double mean(std::size_t candidate) const;

  RaceRules rules_;
  std::vector<std::vector<double>> logs_;  // by candidate and round
  std::vector<bool> running_;
  int rounds_ = 0;
  bool over_ = false;
  double scatter_ = 0;  // pooled variance of a time, and its degrees of freedom
  double freedom_ = 0;
};

// The value that Student's t with `freedom` degrees of freedom is above with chance `above` (less than a half).
double t_quantile(double above, double freedom);

}  // namespace ssmjit
