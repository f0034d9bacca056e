// What a verification runs on: memory and a launch. A GPU is one; a test's host implementation is another.
#pragma once

#include <cstddef>
#include <vector>

#include <ssmjit/kernel.h>

namespace ssmjit {

class Target {
 public:
  virtual ~Target() = default;
  // Memory that holds `contents`, at an address of the target.
  virtual std::byte* allocate(const std::vector<std::byte>& contents) = 0;
  virtual void write(std::byte* address, const std::vector<std::byte>& contents) = 0;
  virtual void read(const std::byte* address, std::vector<std::byte>& contents) = 0;
  virtual void release_all() = 0;
  // Runs the kernel under test to its end.
  virtual void launch(const UpdateArgs& args) = 0;
};

}  // namespace ssmjit
