#include "autotune/search/cost_model.h"

#include <algorithm>
#include <cmath>

#include "autotune/search/prune.h"

namespace ssmjit {
namespace {

constexpr double kMostTarget = 1;      // a plan that is e times slower is as good as one that is ten times slower
constexpr double kRidge = 0.05;        // of a row, on coefficients of scaled features
constexpr double kLeastSpread = 1e-6;  // of a feature that is the same in all rows

double octaves(double v) { return std::log2(v); }

}  // namespace

double CostModel::target(double ratio) { return std::min(std::log(ratio), kMostTarget); }

// The tunables and all products of two; and how blocks and bytes fit the SMs.
std::vector<double> CostModel::features(const Plan& plan, int batch) const {
  const LaunchShape shape = launch_shape(plan, description_, batch);
  const double blocks = static_cast<double>(shape.grid_x * shape.grid_y) / gpu_.sms;  // an SM, mean
  const double tunables[] = {octaves(plan.block_m),
                             octaves(plan.warps),
                             octaves(plan.lanes_per_row),
                             octaves(plan.heads_per_block),
                             octaves(plan.stages),
                             plan.state_path == StatePath::cp_async ? 1.0 : 0.0,
                             plan.state_path == StatePath::bulk ? 1.0 : 0.0,
                             plan.streaming ? 1.0 : 0.0,
                             static_cast<double>(plan.min_blocks_per_sm),
                             plan.ring_rows == RingRows::live ? 1.0 : 0.0,
                             plan.precompute_warps > 0 ? 1.0 : 0.0,
                             octaves(blocks)};
  constexpr std::size_t kTunables = std::size(tunables);
  const double in_flight = octaves(std::max(1.0, bytes_in_flight_per_sm(plan, description_, batch, gpu_, {})));
  std::vector<double> all = {1.0,
                             std::max(0.0, -octaves(blocks)),
                             std::max(0.0, octaves(blocks)),
                             std::ceil(blocks) / blocks,
                             in_flight,
                             std::max(0.0, 15 - in_flight),  // 32 KiB an SM: enough on the GPUs there are
                             octaves(static_cast<double>(block_bytes_in_flight(plan, description_)))};
  for (std::size_t i = 0; i < kTunables; ++i) {
    all.push_back(tunables[i]);
    for (std::size_t j = i; j < kTunables; ++j) all.push_back(tunables[i] * tunables[j]);
  }
  return all;
}

void CostModel::add(const Plan& plan, int batch, double ratio, double weight) {
  rows_.push_back({features(plan, batch), target(ratio), weight});
}

void CostModel::fit() {
  if (rows_.empty()) return;
  const std::size_t n = rows_.front().features.size();
  mean_.assign(n, 0);
  deviation_.assign(n, 0);
  double weights = 0;
  for (const Row& row : rows_) {
    weights += row.weight;
    for (std::size_t i = 0; i < n; ++i) mean_[i] += row.weight * row.features[i];
  }
  for (double& v : mean_) v /= weights;
  for (const Row& row : rows_)
    for (std::size_t i = 0; i < n; ++i)
      deviation_[i] += row.weight * (row.features[i] - mean_[i]) * (row.features[i] - mean_[i]);
  for (double& v : deviation_) v = std::sqrt(v / weights) + kLeastSpread;
  mean_[0] = 0;  // the constant
  deviation_[0] = 1;

  // Normal equations, lower triangle, and their Cholesky factor in its place.
  std::vector<double> matrix(n * n, 0), right(n, 0), scaled(n);
  for (const Row& row : rows_) {
    for (std::size_t i = 0; i < n; ++i) scaled[i] = (row.features[i] - mean_[i]) / deviation_[i];
    for (std::size_t i = 0; i < n; ++i) {
      const double weighted = row.weight * scaled[i];
      right[i] += weighted * row.target;
      for (std::size_t j = 0; j <= i; ++j) matrix[i * n + j] += weighted * scaled[j];
    }
  }
  for (std::size_t i = 0; i < n; ++i) matrix[i * n + i] += kRidge * static_cast<double>(rows_.size());
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j <= i; ++j) {
      double v = matrix[i * n + j];
      for (std::size_t k = 0; k < j; ++k) v -= matrix[i * n + k] * matrix[j * n + k];
      matrix[i * n + j] = i == j ? std::sqrt(v) : v / matrix[j * n + j];
    }
  }
  coefficients_ = right;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t k = 0; k < i; ++k) coefficients_[i] -= matrix[i * n + k] * coefficients_[k];
    coefficients_[i] /= matrix[i * n + i];
  }
  for (std::size_t i = n; i-- > 0;) {
    for (std::size_t k = i + 1; k < n; ++k) coefficients_[i] -= matrix[k * n + i] * coefficients_[k];
    coefficients_[i] /= matrix[i * n + i];
  }
}

double CostModel::log_ratio(const Plan& plan, int batch) const {
  if (coefficients_.empty()) return 0;
  const std::vector<double> of = features(plan, batch);
  double sum = 0;
  for (std::size_t i = 0; i < of.size(); ++i) sum += (of[i] - mean_[i]) / deviation_[i] * coefficients_[i];
  return sum;
}

}  // namespace ssmjit
