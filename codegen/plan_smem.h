// The shared memory of a plan before it is compiled.
#pragma once

#include <cstdint>

#include <ssmjit/description.h>
#include <ssmjit/plan.h>

namespace ssmjit {

// Static and dynamic, bytes a block, as the constraints of the plan's op count it; of a plan that is legal.
std::int64_t plan_smem_bytes(const Plan& plan, const Description& description, const Arch& arch);

}  // namespace ssmjit
