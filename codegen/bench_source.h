// The kernels that measuring needs (templates/bench.cuh) as one source.
#pragma once

#include <ssmjit/source.h>

namespace ssmjit {

Source bench_source(const Arch& arch);

}  // namespace ssmjit
