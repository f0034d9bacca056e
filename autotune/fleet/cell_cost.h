// About how long a cell takes, for the order in which several measurers take them.
#pragma once

#include <cstddef>

#include <ssmjit/description.h>

namespace ssmjit {

// Seconds on an H200 to time `plans` plans at a batch: what their graphs, replays and the floor's take.
double cell_cost(const Description& description, int batch, std::size_t plans);

}  // namespace ssmjit
