// The CUDA driver, libcuda.so.1, opened when first asked for.
//
// Everything that needs no GPU works without it. SSMJIT_LIBCUDA names a file to open in its place.
#pragma once

#include <string>

#include <cuda.h>

namespace ssmjit {

// The calls that are looked up: the name here, and the exported symbol, whose type cuda.h gives.
#define SSMJIT_DRIVER_CALLS(X)                                \
  X(init, cuInit)                                             \
  X(driver_version, cuDriverGetVersion)                       \
  X(error_name, cuGetErrorName)                               \
  X(error_string, cuGetErrorString)                           \
  X(device_count, cuDeviceGetCount)                           \
  X(device_get, cuDeviceGet)                                  \
  X(device_name, cuDeviceGetName)                             \
  X(device_attribute, cuDeviceGetAttribute)                   \
  X(device_total_memory, cuDeviceTotalMem_v2)                 \
  X(primary_context_retain, cuDevicePrimaryCtxRetain)         \
  X(context_current, cuCtxGetCurrent)                         \
  X(context_set_current, cuCtxSetCurrent)                     \
  X(context_push, cuCtxPushCurrent_v2)                        \
  X(context_pop, cuCtxPopCurrent_v2)                          \
  X(context_device, cuCtxGetDevice)                           \
  X(context_synchronize, cuCtxSynchronize)                    \
  X(module_load, cuModuleLoadData)                            \
  X(module_unload, cuModuleUnload)                            \
  X(module_function, cuModuleGetFunction)                     \
  X(function_attribute, cuFuncGetAttribute)                   \
  X(function_set_attribute, cuFuncSetAttribute)               \
  X(launch, cuLaunchKernelEx)                                 \
  X(clusters_at_once, cuOccupancyMaxActiveClusters)           \
  X(stream_create, cuStreamCreate)                            \
  X(stream_destroy, cuStreamDestroy_v2)                       \
  X(stream_synchronize, cuStreamSynchronize)                  \
  X(stream_is_capturing, cuStreamIsCapturing)                 \
  X(stream_begin_capture, cuStreamBeginCapture_v2)            \
  X(stream_end_capture, cuStreamEndCapture)                   \
  X(exchange_capture_mode, cuThreadExchangeStreamCaptureMode) \
  X(graph_instantiate, cuGraphInstantiateWithFlags)           \
  X(graph_launch, cuGraphLaunch)                              \
  X(graph_destroy, cuGraphDestroy)                            \
  X(graph_exec_destroy, cuGraphExecDestroy)                   \
  X(event_create, cuEventCreate)                              \
  X(event_destroy, cuEventDestroy_v2)                         \
  X(event_record, cuEventRecord)                              \
  X(event_synchronize, cuEventSynchronize)                    \
  X(event_elapsed, cuEventElapsedTime)                        \
  X(memory_info, cuMemGetInfo_v2)                             \
  X(memory_alloc, cuMemAlloc_v2)                              \
  X(memory_free, cuMemFree_v2)                                \
  X(memory_set_8, cuMemsetD8Async)                            \
  X(memory_set_32, cuMemsetD32Async)                          \
  X(copy_to_device, cuMemcpyHtoD_v2)                          \
  X(copy_to_host, cuMemcpyDtoH_v2)                            \
  X(copy_to_device_async, cuMemcpyHtoDAsync_v2)               \
  X(copy_to_host_async, cuMemcpyDtoHAsync_v2)                 \
  X(copy_on_device_async, cuMemcpyDtoDAsync_v2)

struct Driver {
#define SSMJIT_DRIVER_MEMBER(member, symbol) decltype(&::symbol) member = nullptr;
  SSMJIT_DRIVER_CALLS(SSMJIT_DRIVER_MEMBER)
#undef SSMJIT_DRIVER_MEMBER

  std::string path;  // what was opened
  int version = 0;   // the CUDA version it supports, 13000 for 13.0

  std::string version_text() const;

  // Fails: ErrorKind::machine with the call, the error's name and its text.
  void check(CUresult result, const char* call) const {
    if (result != CUDA_SUCCESS) [[unlikely]]
      raise(result, call, {});
  }
  // The same, with `context` at the end of the sentence.
  [[noreturn]] void raise(CUresult result, const char* call, const std::string& context) const;
};

// The driver, not yet initialised (cuInit), or null with the reason and the way out in `why`. Never throws for a driver
// that is not there. Thread-safe; a driver stays open for the life of the process.
const Driver* find_driver(std::string* why = nullptr);

// The driver after cuInit. Fails: ErrorKind::missing without a driver or a GPU, ErrorKind::machine when cuInit fails.
const Driver& driver();

}  // namespace ssmjit
