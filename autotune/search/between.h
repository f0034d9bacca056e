// Sizes between those that a sweep was asked for: where a plan's blocks fill the GPU once at one size and one and a bit
// times at the next, neither size's plan is right for what lies between.
#pragma once

#include <string_view>
#include <vector>

#include <ssmjit/measurement.h>

namespace ssmjit {

struct BetweenRules {
  // What the table may lose at a size whose own row is left out, as a fraction; 0: no sizes are added.
  double most_loss = 0;
  int most_sizes = 12;  // of a kernel and mode
};

// Of a kernel, mode and GPU the batches to measure next, the most needed first: where the table of `batches` loses more
// than `most_loss` at one of them without its row, or can't say what it loses, those half way to its neighbours on
// either side. Lines of other batches do not count, so that a resumed sweep comes to the same.
std::vector<int> batches_between(const Description& description, std::string_view device, PdlMode mode,
                                 const std::vector<int>& batches, const std::vector<Measurement>& lines,
                                 double most_loss);

// In the logarithm, as near as a multiple of a large power of two comes to it: 24 of 16 and 32. 0: none is between.
int half_way(int low, int high);

}  // namespace ssmjit
