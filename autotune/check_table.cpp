#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <ssmjit/measurement.h>

#include "autotune/cells.h"
#include "autotune/plan_between.h"
#include "heuristics/row_lookup.h"

namespace ssmjit {
namespace {

CellCheck::Answer compare(Choice choice, const Cell& cell, double best_us) {
  CellCheck::Answer answer;
  answer.choice = std::move(choice);
  const auto found = cell.find(answer.choice.plan.text());
  if (found == cell.end()) {
    answer.remark = "its plan was not timed";
    return answer;
  }
  const Measurement& m = found->second;
  if (!has_time(m)) {
    answer.remark = fmt::format("its plan has no time: {}", name(m.outcome));
    return answer;
  }
  answer.us = m.us;
  answer.regret = m.us / best_us - 1;
  if (m.outcome == Outcome::dropped) answer.remark = "few replays";
  return answer;
}

// 0 for none.
double median_of(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace

TableCheck check_table(const Table& table, const std::vector<Measurement>& measurements) {
  TableCheck check;
  std::vector<double> regrets, left_out;
  for (const auto& [kernel, sizes] : cells_of(measurements)) {
    for (const auto& [total_heads, cell] : sizes) {
      const Measurement* best = fastest(cell);
      if (best == nullptr) continue;
      CellCheck c;
      std::tie(c.device, c.kernel_digest, c.pdl) = kernel;
      c.kernel = best->kernel;
      c.total_heads = total_heads;
      c.best = best->plan;
      c.best_us = best->us;

      // Journals of a GPU without dependent launches have no mode but off.
      const RowQuestion question{c.device,    c.kernel_digest, best->cost_digest,
                                 total_heads, c.pdl,           best->plan.early_state == (c.pdl == PdlMode::chain)};
      const auto ask = [&](const Table& of) -> std::optional<CellCheck::Answer> {
        std::optional<Choice> choice = look_up_rows(of, question, [](const Plan&) { return true; });
        if (!choice) return std::nullopt;
        return compare(*std::move(choice), cell, c.best_us);
      };
      c.answer = ask(table);
      if (!c.answer)
        ++check.unanswered;
      else if (c.answer->us > 0)
        regrets.push_back(c.answer->regret);
      else
        ++check.not_timed;

      const auto same = [&](const TableRow& row) {
        return row.device == c.device && row.kernel_digest == c.kernel_digest && row.pdl == c.pdl;
      };
      Table without;
      bool had_row = false, has_others = false;
      for (const TableRow& row : table.rows) {
        if (same(row) && row.total_heads == total_heads) {
          had_row = true;
          continue;
        }
        has_others = has_others || same(row);
        without.rows.push_back(row);
      }
      if (had_row && has_others) {
        // Between the rows beside it stands what a fit without this size would put there.
        TableRow* below = nullptr;
        const TableRow* above = nullptr;
        for (TableRow& row : without.rows) {
          if (!same(row) || row.predicted) continue;
          if (row.total_heads < total_heads) {
            if (below == nullptr || row.total_heads > below->total_heads) below = &row;
          } else if (above == nullptr || row.total_heads < above->total_heads) {
            above = &row;
          }
        }
        if (below != nullptr && above != nullptr) {
          auto others = sizes;
          others.erase(total_heads);
          below->between = plan_between(*below, *above, others);
        }
        c.left_out = ask(without);
        if (c.left_out->us > 0)
          left_out.push_back(c.left_out->regret);
        else
          ++check.not_timed_loo;
      }
      check.cells.push_back(std::move(c));
    }
  }
  check.compared = static_cast<int>(regrets.size());
  check.compared_loo = static_cast<int>(left_out.size());
  check.median_regret = median_of(regrets);
  check.median_loo_regret = median_of(left_out);
  for (double r : regrets) check.worst_regret = std::max(check.worst_regret, r);
  for (double r : left_out) check.worst_loo_regret = std::max(check.worst_loo_regret, r);
  return check;
}

}  // namespace ssmjit
