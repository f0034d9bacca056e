// The gated norm in double precision, by plain loops: what kernels are judged against.
// Maths: templates/norm.cuh and include/ssmjit/description.h; nothing is rounded.
#pragma once

#include <cstdint>
#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/kernel.h>

#include "autotune/reference/stored_values.h"

namespace ssmjit {

// Where the group's first channel is in a tensor of the step, [batch, tokens, channels] or [batch * tokens, channels],
// in elements.
std::int64_t norm_offset(const Description& description, const Tensor& tensor, std::int64_t request, int token,
                         int group);
// One group of one token's row, [group size].
std::vector<double> norm_reference(const Description& description, const NormArgs& args, std::int64_t request,
                                   int token, int group, const Reader& read);

}  // namespace ssmjit
