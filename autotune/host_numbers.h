// Storage dtypes on the host, to and from double: the references' own conversions, independent of the device's.
#pragma once

#include <cstddef>
#include <cstdint>

#include <ssmjit/description.h>

namespace ssmjit {

// Element `index` of an array of `dtype` (fp32, bf16, fp16) at `data`.
double decode(DType dtype, const std::byte* data, std::int64_t index);
// Rounds to nearest even; infinity on overflow.
void encode(DType dtype, std::byte* data, std::int64_t index, double value);
// What `value` becomes when it is stored.
double rounded(DType dtype, double value);
// The gap between neighbouring values of `dtype` at |magnitude|.
double ulp(DType dtype, double magnitude);

}  // namespace ssmjit
