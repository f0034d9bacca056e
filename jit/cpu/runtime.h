// The functions of templates/device/cpu/runtime.cuh, and those of the C library that compiled kernels call.
#pragma once

#include <span>
#include <string_view>

namespace ssmjit::cpu {

struct RuntimeFunction {
  std::string_view name;
  void* address;
  bool marks_place;  // the compiler tells the runtime the line before each call
};
std::span<const RuntimeFunction> runtime_functions();

}  // namespace ssmjit::cpu
