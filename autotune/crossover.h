// Between two sizes that were measured: where the plan of the smaller gives way to that of the larger.
#pragma once

#include <cstdint>
#include <map>

#include <ssmjit/table.h>

#include "autotune/cells.h"

namespace ssmjit {

// TableRow::until of `low`, whose next row is `high`: what each plan loses where the other one is at home, linear in
// the logarithm of the size, says where both lose the same. A plan without a time at the other size is taken to lose
// 100% there. 0 where nothing tells the two apart: one plan, or no loss.
std::int64_t crossover(const TableRow& low, const TableRow& high, const std::map<std::int64_t, Cell>& sizes);

}  // namespace ssmjit
