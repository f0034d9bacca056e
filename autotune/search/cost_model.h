// What a plan costs beside the best at its batch, by ridge regression over features of plan and size.
#pragma once

#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/device.h>
#include <ssmjit/plan.h>

namespace ssmjit {

class CostModel {
 public:
  CostModel(const Description& description, const DeviceFacts& gpu) : description_(description), gpu_(gpu) {}

  // A plan took `ratio` times the best time at its batch (1 or more).
  void add(const Plan& plan, int batch, double ratio, double weight);
  void fit();
  // The logarithm of the ratio, as the model has it.
  double log_ratio(const Plan& plan, int batch) const;
  // What the model is fitted to: the logarithm, cut off where it does not matter any more how slow a plan is.
  static double target(double ratio);

 private:
  std::vector<double> features(const Plan& plan, int batch) const;

  Description description_;
  DeviceFacts gpu_;
  struct Row {
    std::vector<double> features;
    double target = 0;
    double weight = 0;
  };
  std::vector<Row> rows_;
  std::vector<double> mean_, deviation_, coefficients_;  // by feature; of features less mean, over deviation
};

}  // namespace ssmjit
