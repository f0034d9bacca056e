// What a verification runs on: memory and a launch. A GPU is one; a test's host implementation is another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "autotune/kernel_case.h"

namespace ssmjit {

class Target {
 public:
  virtual ~Target() = default;
  // Memory that holds what the block holds before a launch, at an address of the target.
  virtual std::byte* allocate(const KernelCase::Block& block) = 0;
  // What the block holds before a launch, once more.
  virtual void restore(std::byte* address, const KernelCase::Block& block) = 0;
  virtual void read(const std::byte* address, std::vector<std::byte>& contents) = 0;
  // 64 bits of what is at each address now; memory of equal bits has equal hashes. Without an override by read().
  virtual std::vector<std::uint64_t> hash(const std::vector<std::byte*>& addresses);
  // Ends the use of what was allocated.
  virtual void release_all() = 0;
  // How often a case is launched; every launch must leave the same bits.
  virtual int launches() const = 0;
  // Runs the kernel under test to its end over a case's memory. What the run itself shows to be wrong, in sentences.
  virtual std::vector<std::string> launch(const KernelCase& test, const CaseArgs& args) = 0;
};

}  // namespace ssmjit
