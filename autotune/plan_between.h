// Which plan the sizes between two rows of a table take.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

#include <ssmjit/table.h>

#include "autotune/cells.h"

namespace ssmjit {

// TableRow::between of `low`, whose next row is `high`: of all plans the one whose losses at the two, squared, sum to
// the least; a row's own where the root of their mean is within `room` of the least. What fits a size exactly is often
// the worst a little above it, where a wave of blocks more begins, while a plan that does well at both does so between.
// Sizes that lookup() gives the plan of `low` since its clusters fit them are none of those between.
// A plan without a time loses 100%; one that no size has checked is none. None where a size is not in `sizes`, and
// where both rows' plan is it.
std::optional<Plan> plan_between(const TableRow& low, const TableRow& high, const std::map<std::int64_t, Cell>& sizes,
                                 double room = FitOptions{}.max_regret);

}  // namespace ssmjit
