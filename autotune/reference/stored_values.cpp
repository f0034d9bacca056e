#include "autotune/reference/stored_values.h"

#include <cstring>

#include "autotune/host_numbers.h"

namespace ssmjit {

void read_host(const void* from, void* to, std::size_t bytes) { std::memcpy(to, from, bytes); }

std::vector<double> stored_values(const Tensor& tensor, std::int64_t offset, int count, const Reader& read) {
  const auto size = static_cast<std::size_t>(size_bytes(tensor.dtype));
  std::vector<std::byte> raw(size * static_cast<std::size_t>(count));
  read(static_cast<const std::byte*>(tensor.data) + offset * static_cast<std::int64_t>(size), raw.data(), raw.size());
  std::vector<double> values(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) values[static_cast<std::size_t>(i)] = decode(tensor.dtype, raw.data(), i);
  return values;
}

double stored_value(const Tensor& tensor, std::int64_t offset, const Reader& read) {
  return stored_values(tensor, offset, 1, read)[0];
}

std::int64_t stored_index(const Tensor& indices, std::int64_t row, const Reader& read) {
  const std::byte* at =
      static_cast<const std::byte*>(indices.data) + row * indices.stride[0] * size_bytes(indices.dtype);
  if (indices.dtype == DType::i64) {
    std::int64_t v = 0;
    read(at, &v, sizeof v);
    return v;
  }
  std::int32_t v = 0;
  read(at, &v, sizeof v);
  return v;
}

}  // namespace ssmjit
