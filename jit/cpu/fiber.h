// Stacks and switches between them. Nothing here knows of CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ssmjit::cpu {

// Pages of this process, given back at the end; untouched ones cost nothing.
class Pages {
 public:
  explicit Pages(std::size_t bytes);
  ~Pages();
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  std::byte* data() const { return data_; }
  std::size_t size() const { return bytes_; }
  // Touching the first page below `offset` from now on is a fault.
  void guard(std::size_t offset);

 private:
  std::byte* data_;
  std::size_t bytes_;
};

// One flow of control: a stack and where it stands. The one that a thread of the machine came with has no stack of
// ours.
class Fiber {
 public:
  // Starts at `run` on the next switch; it must never return. What it was doing before is forgotten.
  void prepare(std::byte* stack, std::size_t bytes, void (*run)());
  // Goes on in `to`; returns when somebody switches back.
  static void change(Fiber& from, Fiber& to);

 private:
  friend struct Arrival;
  void* context_ = nullptr;
  void (*run_)() = nullptr;
  void* fake_stack_ = nullptr;  // the address sanitizer's
  const void* bottom_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace ssmjit::cpu
