// What lookup() chooses for every batch up to a largest one, without the words: for who prepares them all.
#pragma once

#include <string_view>
#include <vector>

#include <ssmjit/table.h>

namespace ssmjit {

// A plan, and the first of the batches that it is chosen for, which end before the next one's.
struct PlanRange {
  int first_batch = 1;
  Plan plan;
};

// By batch; the first is of batch 1, neighbours differ. Never empty for a valid description and a max_batch of 1 or
// more.
std::vector<PlanRange> plan_ranges(const Table& table, const Description& description, std::string_view device_key,
                                   const Arch& arch, int max_batch, PdlMode mode);

}  // namespace ssmjit
