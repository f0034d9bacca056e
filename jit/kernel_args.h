// The arguments of a launch as the kernels read them.
#pragma once

#include <ssmjit/kernel.h>

namespace ssmjit {

namespace device_args {
#include "templates/update_args.cuh"
}  // namespace device_args

// Of arguments that were found right (Kernel::problems). `pdl`: what the launch has, which may be less than args.pdl.
device_args::UpdateArgs to_device(const UpdateArgs& args, Pdl pdl);

}  // namespace ssmjit
