/* A driver without a GPU: device memory is host memory, a launch is noted down. Stands in for libcuda.so.1 through
 * SSMJIT_LIBCUDA, so that launches, their attributes and the mapping of errors are tested on any machine. */
#include <cuda.h>
#include <stdlib.h>
#include <string.h>

#include "stub_libcuda.h"

static StubState state;
static int contexts[8], module, function; /* a context a device */
static CUcontext current;

StubState* stub_state(void) { return &state; }

void stub_reset(void) {
  memset(&state, 0, sizeof state);
  const char* version = getenv("STUB_DRIVER_VERSION");
  state.driver_version = version != NULL ? atoi(version) : 13000;
  state.devices = 1;
  state.major = 9;
  state.name = "NVIDIA H200";
  state.record = 1;
  current = NULL;
}

__attribute__((constructor)) static void start(void) { stub_reset(); }

#define STUB_RETURN(call) \
  return state.fail_call != NULL && strcmp(state.fail_call, #call) == 0 ? (CUresult)state.fail_code : CUDA_SUCCESS

CUresult cuInit(unsigned flags) {
  (void)flags;
  STUB_RETURN(cuInit);
}
CUresult cuDriverGetVersion(int* version) {
  *version = state.driver_version;
  return CUDA_SUCCESS;
}
CUresult cuGetErrorName(CUresult code, const char** text) {
  *text = code == CUDA_ERROR_INVALID_VALUE       ? "CUDA_ERROR_INVALID_VALUE"
          : code == CUDA_ERROR_NO_BINARY_FOR_GPU ? "CUDA_ERROR_NO_BINARY_FOR_GPU"
          : code == CUDA_ERROR_OUT_OF_MEMORY     ? "CUDA_ERROR_OUT_OF_MEMORY"
                                                 : NULL;
  return *text != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuGetErrorString(CUresult code, const char** text) {
  *text = code == CUDA_ERROR_INVALID_VALUE       ? "invalid argument"
          : code == CUDA_ERROR_NO_BINARY_FOR_GPU ? "no kernel image is available for execution on the device"
          : code == CUDA_ERROR_OUT_OF_MEMORY     ? "out of memory"
                                                 : NULL;
  return *text != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuDeviceGetCount(int* count) {
  *count = state.devices;
  STUB_RETURN(cuDeviceGetCount);
}
CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  *device = ordinal;
  return ordinal < state.devices ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
CUresult cuDeviceGetName(char* name, int size, CUdevice device) {
  (void)device;
  strncpy(name, state.name, (size_t)size);
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice device) {
  (void)device;
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      *value = state.major;
      break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      *value = state.minor;
      break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      *value = 132;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      *value = 233472;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      *value = 232448;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR:
      *value = 65536;
      break;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE:
      *value = 62914560;
      break;
    default:
      *value = 0;
  }
  return CUDA_SUCCESS;
}
CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
  (void)device;
  *bytes = (size_t)141 << 30;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice device) {
  *out = (CUcontext)&contexts[device];
  STUB_RETURN(cuDevicePrimaryCtxRetain);
}
CUresult cuCtxGetCurrent(CUcontext* out) {
  *out = state.context_is_current ? (CUcontext)&contexts[state.device] : current;
  return CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext which) {
  current = which;
  return CUDA_SUCCESS;
}
CUresult cuCtxPushCurrent_v2(CUcontext which) {
  (void)which;
  return CUDA_SUCCESS;
}
CUresult cuCtxPopCurrent_v2(CUcontext* out) {
  *out = (CUcontext)&contexts[state.device];
  return CUDA_SUCCESS;
}
CUresult cuCtxGetDevice(CUdevice* device) {
  *device = state.device;
  return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule* out, const void* image) {
  (void)image;
  state.capture_mode_at_load = state.capture_mode;
  *out = NULL;
  if (state.fail_call == NULL || strcmp(state.fail_call, "cuModuleLoadData") != 0) {
    *out = (CUmodule)&module;
    ++state.modules_loaded;
  }
  STUB_RETURN(cuModuleLoadData);
}
CUresult cuModuleUnload(CUmodule which) {
  (void)which;
  ++state.modules_unloaded;
  return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction* out, CUmodule which, const char* name) {
  (void)which;
  (void)name;
  *out = (CUfunction)&function;
  STUB_RETURN(cuModuleGetFunction);
}
CUresult cuFuncSetAttribute(CUfunction which, CUfunction_attribute attribute, int value) {
  (void)which;
  if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) state.dynamic_smem_asked = value;
  STUB_RETURN(cuFuncSetAttribute);
}

CUresult cuOccupancyMaxActiveClusters(int* clusters, CUfunction which, const CUlaunchConfig* config) {
  (void)which;
  *clusters = 132 / (int)config->attrs->value.clusterDim.x;
  STUB_RETURN(cuOccupancyMaxActiveClusters);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction which, void** parameters, void** extra) {
  (void)extra;
  if (state.threads)
    __atomic_fetch_add(&state.launches, 1, __ATOMIC_RELAXED);
  else
    ++state.launches;
  if (state.record) {
    StubLaunch* launch = &state.last;
    launch->grid[0] = config->gridDimX;
    launch->grid[1] = config->gridDimY;
    launch->grid[2] = config->gridDimZ;
    launch->block[0] = config->blockDimX;
    launch->block[1] = config->blockDimY;
    launch->block[2] = config->blockDimZ;
    launch->smem_bytes = config->sharedMemBytes;
    launch->stream = config->hStream;
    launch->attributes = (int)config->numAttrs;
    launch->pdl = 0;
    for (unsigned i = 0; i < config->numAttrs; ++i)
      if (config->attrs[i].id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION)
        launch->pdl = config->attrs[i].value.programmaticStreamSerializationAllowed;
    launch->function = which;
    memcpy(launch->arguments, parameters[0], (size_t)state.argument_bytes);
  }
  STUB_RETURN(cuLaunchKernelEx);
}

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
  (void)stream;
  *status = state.capturing ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
  STUB_RETURN(cuStreamIsCapturing);
}
CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  const int before = state.capture_mode;
  state.capture_mode = (int)*mode;
  *mode = (CUstreamCaptureMode)before;
  return CUDA_SUCCESS;
}
CUresult cuStreamSynchronize(CUstream stream) {
  (void)stream;
  ++state.synchronised;
  STUB_RETURN(cuStreamSynchronize);
}
CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
  memcpy(to, (const void*)(size_t)from, bytes);
  STUB_RETURN(cuMemcpyDtoH);
}

/* The rest of what the library looks up is there, and says that the stub can't do it. */
CUresult stub_absent(void) { return CUDA_ERROR_NOT_SUPPORTED; }
#define STUB_ABSENT(call) CUresult absent_##call(void) __asm__(#call) __attribute__((alias("stub_absent")))
STUB_ABSENT(cuCtxSynchronize);
STUB_ABSENT(cuFuncGetAttribute);
STUB_ABSENT(cuStreamCreate);
STUB_ABSENT(cuStreamDestroy_v2);
STUB_ABSENT(cuStreamBeginCapture_v2);
STUB_ABSENT(cuStreamEndCapture);
STUB_ABSENT(cuGraphInstantiateWithFlags);
STUB_ABSENT(cuGraphLaunch);
STUB_ABSENT(cuGraphDestroy);
STUB_ABSENT(cuGraphExecDestroy);
STUB_ABSENT(cuEventCreate);
STUB_ABSENT(cuEventDestroy_v2);
STUB_ABSENT(cuEventRecord);
STUB_ABSENT(cuEventSynchronize);
STUB_ABSENT(cuEventElapsedTime);
STUB_ABSENT(cuMemGetInfo_v2);
STUB_ABSENT(cuMemAlloc_v2);
STUB_ABSENT(cuMemFree_v2);
STUB_ABSENT(cuMemsetD8Async);
STUB_ABSENT(cuMemsetD32Async);
STUB_ABSENT(cuMemcpyHtoD_v2);
STUB_ABSENT(cuMemcpyHtoDAsync_v2);
STUB_ABSENT(cuMemcpyDtoHAsync_v2);
STUB_ABSENT(cuMemcpyDtoDAsync_v2);
