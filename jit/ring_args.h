// The arguments of a ring step as the kernels read them.
#pragma once

namespace ssmjit::device_args {
#include "templates/ring_args.cuh"
}  // namespace ssmjit::device_args
