// What tensors of a launch hold, read as doubles from any memory space.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include <ssmjit/kernel.h>

namespace ssmjit {

// Copies `bytes` at an address of the arguments' memory space to host memory.
using Reader = std::function<void(const void* from, void* to, std::size_t bytes)>;
// The space is host memory.
void read_host(const void* from, void* to, std::size_t bytes);

// Elements [offset, offset + count) of a tensor's memory, as doubles.
std::vector<double> stored_values(const Tensor& tensor, std::int64_t offset, int count, const Reader& read);
double stored_value(const Tensor& tensor, std::int64_t offset, const Reader& read);
// Entry `row` of an int32 or int64 array with a stride.
std::int64_t stored_index(const Tensor& indices, std::int64_t row, const Reader& read);

}  // namespace ssmjit
