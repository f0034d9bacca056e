// What tensors of a launch hold, read as doubles from any memory space.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>
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

// Stretches of a memory space that are copied once, where every read would be a copy of its own.
class HeldMemory {
 public:
  explicit HeldMemory(Reader read) : read_(std::move(read)) {}
  void hold(const Tensor& tensor, std::int64_t offset, std::int64_t count);  // elements
  void hold_host(const void* data, std::size_t bytes);                       // as it is, beside the space
  // Of what is held, and of the space elsewhere; lives no longer than this.
  Reader reader() const;

 private:
  struct Stretch {
    const std::byte* at;
    std::vector<std::byte> bytes;
  };
  Reader read_;
  std::vector<Stretch> stretches_;
};

}  // namespace ssmjit
