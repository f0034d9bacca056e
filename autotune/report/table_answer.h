// What a table gives for a size that was measured, from what a journal line says of its kernel.
#pragma once

#include <optional>

#include <ssmjit/measurement.h>
#include <ssmjit/table.h>

namespace ssmjit {

struct TableAnswer {
  Plan plan;
  Why why = Why::fallback;
  std::int64_t total_heads = 0;  // of the row
};

// By the order of lookup(): this GPU before another, this kernel before one of the same cost, this mode before the
// other; then the nearest size. A line has no description, so a plan's legality is not looked at. With `left_out` rows
// of the line's own size do not count. Empty where lookup() would take the default plan.
std::optional<TableAnswer> table_answer(const Table& table, const Measurement& line, bool left_out);

}  // namespace ssmjit
