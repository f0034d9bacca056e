#include "autotune/search/between.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <utility>

namespace ssmjit {
namespace {

constexpr double kUnknown = 1;  // taken for the loss of a plan without a time

// Every batch that was measured, in order, with what the table loses there without its row.
std::vector<std::pair<int, double>> losses_left_out(const std::vector<Measurement>& lines, int nheads) {
  std::vector<std::pair<int, double>> losses;
  for (const CellCheck& cell : check_table(fit_table(lines), lines).cells) {
    double loss = 0;
    if (cell.left_out) loss = cell.left_out->us > 0 ? cell.left_out->regret : kUnknown;
    losses.emplace_back(static_cast<int>(cell.total_heads / nheads), loss);
  }
  return losses;
}

}  // namespace

int half_way(int low, int high) {
  const int apart = high - low;
  if (low < 1 || apart < 2) return 0;
  const int step = std::max(static_cast<int>(std::bit_floor(static_cast<unsigned>(std::min(apart, low)))) / 2, 1);
  const int middle = static_cast<int>(std::lround(std::sqrt(static_cast<double>(low) * high) / step)) * step;
  return std::clamp(middle, low + 1, high - 1);
}

std::vector<int> batches_between(const Description& description, std::string_view device, PdlMode mode,
                                 const std::vector<int>& batches, const std::vector<Measurement>& lines,
                                 double most_loss) {
  const std::string digest = description.kernel_digest();
  std::vector<Measurement> of_these;
  for (const Measurement& line : lines)
    if (line.device == device && line.kernel_digest == digest && line.nheads == description.nheads &&
        (line.phase == "verify" ||
         (line.pdl == mode && std::find(batches.begin(), batches.end(), line.batch) != batches.end())))
      of_these.push_back(line);

  std::vector<std::pair<double, int>> wanted;  // the loss beside it, and the batch
  const std::vector<std::pair<int, double>> losses = losses_left_out(of_these, description.nheads);
  for (std::size_t i = 0; i + 1 < losses.size(); ++i) {
    const double loss = std::max(losses[i].second, losses[i + 1].second);
    const int middle = half_way(losses[i].first, losses[i + 1].first);
    if (loss > most_loss && middle > 0 && std::find(batches.begin(), batches.end(), middle) == batches.end())
      wanted.emplace_back(-loss, middle);
  }
  std::sort(wanted.begin(), wanted.end());
  std::vector<int> next;
  for (const auto& [loss, batch] : wanted) next.push_back(batch);
  return next;
}

}  // namespace ssmjit
