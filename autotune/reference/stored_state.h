// How a state is stored: the factors of its rows, and its elements by chance, in double.
#pragma once

#include <cstdint>
#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/kernel.h>

#include "autotune/reference/stored_values.h"

namespace ssmjit {

// One head's state [head_dim, dstate] at element `offset` of `state`, times the factors from element `scale_offset` of
// `state_scale` on where the description has them.
std::vector<double> decoded_state(const Description& description, const Tensor& state, std::int64_t offset,
                                  const Tensor& state_scale, std::int64_t scale_offset, const Reader& read);

// The factor of each of a head's rows, value = stored * factor; empty where the description has none. `slack`: by how
// much a kernel may be off in each element; what a factor may be off by comes on top.
std::vector<double> row_scales(const Description& description, const std::vector<double>& state,
                               std::vector<double>& slack);

// `value`, in units of its factor, as it is stored by chance: element `n` of row `p` of a head in `slot`; `token`:
// which of several states that one launch stores. Magnitudes are rounded by chance, but whole numbers downwards by
// chance; contract section 6.
double stored_stochastically(const Description& description, double value, std::uint64_t seed, std::int64_t slot,
                             int head, int p, int n, std::uint32_t token = 0);

// What a launch with these seeds, [1] or [slots], rounds a state of `slot` by; 0 where there are none.
std::uint64_t seed_of_slot(const Tensor& seeds, std::int64_t slot, const Reader& read);

}  // namespace ssmjit
