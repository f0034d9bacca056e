// Between Python and the library: DLPack tensors in, errors out.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include <tvm/ffi/tvm_ffi.h>

#include <ssmjit/error.h>
#include <ssmjit/kernel.h>

namespace ssmjit::python {

namespace ffi = tvm::ffi;

// Fails as the library does; across the boundary it is the exception of ssmjit/errors.py with this sentence.
[[noreturn]] void fail(ErrorKind kind, const std::string& sentence);

// Calls `action`; an ssmjit::Error becomes an exception of Python's.
template <class Action>
auto translated(Action&& action) -> decltype(action()) {
  try {
    return std::forward<Action>(action)();
  } catch (const Error& error) {
    throw ffi::Error(std::string("ssmjit.") + name(error.kind()), error.what(), "");
  }
}

// A tensor argument: null for None. Fails: ErrorKind::invalid for anything else, naming it.
const DLTensor* dltensor_of(const ffi::AnyView& argument, std::string_view name);

// Whether ssmjit::Tensor can hold it: a dtype that DType has, few enough dimensions.
bool is_readable(const DLTensor& tensor);
// Does not look at the device. Fails: ErrorKind::invalid for what is_readable() denies, naming the tensor.
Tensor tensor_of(const DLTensor& tensor, std::string_view name);
// Fails: ErrorKind::invalid, naming the tensor, unless it lies in the memory of GPU `ordinal`.
void check_device(const DLTensor& tensor, std::string_view name, int ordinal);

// "cpu", "cuda:1".
std::string device_text(const DLDevice& device);
// "fp32", or what it is where no DType is it ("float64").
std::string dtype_text(const DLDataType& dtype);

}  // namespace ssmjit::python
