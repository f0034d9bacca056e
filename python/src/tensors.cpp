#include "tensors.h"

#include <optional>

namespace ssmjit::python {

namespace {

std::optional<DType> dtype_of(const DLDataType& dtype) {
  if (dtype.lanes != 1) return {};
  switch (dtype.code) {
    case kDLFloat:
      if (dtype.bits == 32) return DType::f32;
      if (dtype.bits == 16) return DType::f16;
      return {};
    case kDLBfloat:
      if (dtype.bits == 16) return DType::bf16;
      return {};
    case kDLFloat8_e4m3fn:
      return DType::f8;
    case kDLInt:
      if (dtype.bits == 8) return DType::i8;
      if (dtype.bits == 16) return DType::i16;
      if (dtype.bits == 32) return DType::i32;
      if (dtype.bits == 64) return DType::i64;
      return {};
    default:
      return {};
  }
}

std::string quoted(std::string_view name) { return std::string(name); }

}  // namespace

void fail(ErrorKind kind, const std::string& sentence) { throw Error(kind, sentence); }

const DLTensor* dltensor_of(const ffi::AnyView& argument, std::string_view name) {
  switch (argument.type_index()) {
    case ffi::TypeIndex::kTVMFFINone:
      return nullptr;
    case ffi::TypeIndex::kTVMFFIDLTensorPtr:
    case ffi::TypeIndex::kTVMFFITensor:
      return argument.cast<DLTensor*>();
    default:
      fail(ErrorKind::invalid, quoted(name) + ": got " + argument.GetTypeKey() + "; wants a tensor or None");
  }
}

bool is_readable(const DLTensor& tensor) {
  return tensor.ndim >= 0 && tensor.ndim <= kMostDimensions && dtype_of(tensor.dtype).has_value();
}

Tensor tensor_of(const DLTensor& tensor, std::string_view name) {
  const std::optional<DType> dtype = dtype_of(tensor.dtype);
  if (!dtype)
    fail(ErrorKind::invalid, quoted(name) + ": got dtype " + dtype_text(tensor.dtype) +
                                 "; kernels take fp32, bf16, fp16, int8, fp8 (e4m3), int16, int32 and int64");
  if (tensor.ndim > kMostDimensions)
    fail(ErrorKind::invalid, quoted(name) + ": got " + std::to_string(tensor.ndim) +
                                 " dimensions; a tensor has up to " + std::to_string(kMostDimensions));
  Tensor out;
  out.data = static_cast<const char*>(tensor.data) + tensor.byte_offset;
  out.dtype = *dtype;
  out.rank = tensor.ndim;
  std::int64_t dense = 1;
  for (int i = tensor.ndim - 1; i >= 0; --i) {
    const auto at = static_cast<std::size_t>(i);
    out.shape[at] = tensor.shape[i];
    out.stride[at] = tensor.strides != nullptr ? tensor.strides[i] : dense;  // null: C order
    dense *= tensor.shape[i];
  }
  return out;
}

void check_device(const DLTensor& tensor, std::string_view name, int ordinal) {
  const DLDevice& device = tensor.device;
  const bool is_gpu = device.device_type == kDLCUDA || device.device_type == kDLCUDAManaged;
  if (is_gpu && device.device_id == ordinal) return;
  if (is_gpu)
    fail(ErrorKind::invalid, quoted(name) + ": got a tensor on " + device_text(device) +
                                 "; the kernel was prepared on cuda:" + std::to_string(ordinal) +
                                 ": move the tensor there, or prepare on its device");
  fail(ErrorKind::invalid,
       quoted(name) + ": got a tensor on " + device_text(device) + "; wants one on cuda:" + std::to_string(ordinal));
}

std::string device_text(const DLDevice& device) {
  switch (device.device_type) {
    case kDLCPU:
      return "cpu";
    case kDLCUDAHost:
      return "cpu (pinned)";
    case kDLCUDA:
      return "cuda:" + std::to_string(device.device_id);
    case kDLCUDAManaged:
      return "cuda:" + std::to_string(device.device_id) + " (managed)";
    default:
      return "a device of DLPack's type " + std::to_string(static_cast<int>(device.device_type));
  }
}

std::string dtype_text(const DLDataType& dtype) {
  if (const std::optional<DType> known = dtype_of(dtype)) return name(*known);
  return std::string(ffi::DLDataTypeToString(dtype));
}

}  // namespace ssmjit::python
