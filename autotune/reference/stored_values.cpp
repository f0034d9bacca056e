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

void HeldMemory::hold(const Tensor& tensor, std::int64_t offset, std::int64_t count) {
  const std::int64_t size = size_bytes(tensor.dtype);
  Stretch stretch{static_cast<const std::byte*>(tensor.data) + offset * size,
                  std::vector<std::byte>(static_cast<std::size_t>(count * size))};
  read_(stretch.at, stretch.bytes.data(), stretch.bytes.size());
  stretches_.push_back(std::move(stretch));
}

void HeldMemory::hold_host(const void* data, std::size_t bytes) {
  const auto* at = static_cast<const std::byte*>(data);
  stretches_.push_back({at, std::vector<std::byte>(at, at + bytes)});
}

Reader HeldMemory::reader() const {
  return [this](const void* from, void* to, std::size_t bytes) {
    const auto* at = static_cast<const std::byte*>(from);
    for (const Stretch& s : stretches_) {
      if (at < s.at || at + bytes > s.at + s.bytes.size()) continue;
      std::memcpy(to, s.bytes.data() + (at - s.at), bytes);
      return;
    }
    read_(from, to, bytes);
  };
}

}  // namespace ssmjit
