#include "autotune/report/table_answer.h"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace ssmjit {

std::optional<TableAnswer> table_answer(const Table& table, const Measurement& line, bool left_out) {
  const auto log_of = [](std::int64_t heads) {
    return std::log(static_cast<double>(std::max<std::int64_t>(heads, 1)));
  };
  const double size = log_of(line.total_heads());
  const auto rank = [&](const TableRow& row) {
    return std::tuple(row.device != line.device, row.kernel_digest != line.kernel_digest, row.pdl != line.pdl,
                      std::abs(log_of(row.total_heads) - size), row.total_heads, row.device, row.kernel_digest);
  };
  const TableRow* best = nullptr;
  bool below = false, above = false;  // rows of the best one's kind on either side
  for (const TableRow& row : table.rows) {
    if (row.op != line.op || (row.kernel_digest != line.kernel_digest && row.cost_digest != line.cost_digest)) continue;
    if (left_out && row.total_heads == line.total_heads()) continue;
    if (best == nullptr || rank(row) < rank(*best)) best = &row;
  }
  if (best == nullptr) return std::nullopt;
  const auto kind = [&](const TableRow& row) { return std::tuple(row.device, row.kernel_digest, row.pdl); };
  for (const TableRow& row : table.rows) {
    if (kind(row) != kind(*best) || (left_out && row.total_heads == line.total_heads())) continue;
    (row.total_heads < line.total_heads() ? below : above) = true;
  }
  TableAnswer answer{best->plan, Why::exact, best->total_heads};
  if (best->total_heads != line.total_heads()) answer.why = below && above ? Why::interpolated : Why::nearest;
  if (best->pdl != line.pdl) {
    answer.why = Why::nearest;
    answer.plan.early_state = line.pdl == PdlMode::chain;
  }
  if (best->kernel_digest != line.kernel_digest) answer.why = Why::similar;
  if (best->device != line.device) answer.why = Why::other_device;
  return answer;
}

}  // namespace ssmjit
