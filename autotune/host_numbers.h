// Storage dtypes on the host, to and from double: the references' own conversions, independent of the device's.
#pragma once

#include <cstddef>
#include <cstdint>

#include <ssmjit/description.h>

namespace ssmjit {

// Element `index` of an array of `dtype` (any but int32 and int64) at `data`.
double decode(DType dtype, const std::byte* data, std::int64_t index);
// Rounds to nearest even; infinity on overflow, but int8 stays within -127 to 127, int16 within -32767 to 32767 and fp8
// within -448 to 448.
void encode(DType dtype, std::byte* data, std::int64_t index, double value);
// What `value` becomes when it is stored.
double rounded(DType dtype, double value);
// The largest finite value of `dtype`.
double largest_stored(DType dtype);
// The gap between neighbouring values of `dtype` at |magnitude|.
double ulp(DType dtype, double magnitude);

}  // namespace ssmjit
