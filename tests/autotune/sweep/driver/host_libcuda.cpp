// A driver whose device is the host: memory is malloc's, a launch runs a function of the test's, at once, and time is
// what those functions say. Graphs hold the launches that were captured. For SSMJIT_LIBCUDA.
#include "host_libcuda.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#undef cuEventElapsedTime  // the library looks up this name, whatever the header makes of it

namespace {

struct Launch {
  std::string name;
  CUlaunchConfig config;
  std::vector<unsigned char> argument;
};
struct HostGraph {
  std::vector<Launch> launches;
};
struct HostEvent {
  double us = 0;
};

HostKernels kernels;
HostGraph* capturing = nullptr;
double now_us = 0;
std::map<CUdeviceptr, std::size_t> memory;
CUresult broken = CUDA_SUCCESS;
std::size_t all_memory = std::size_t{1} << 30;
int context, module, stream;
std::map<std::string, std::string> functions;  // by name; addresses of the entries are the handles

void run(const Launch& launch) { now_us += kernels.launch(launch.name.c_str(), launch.config, launch.argument.data()); }

}  // namespace

extern "C" {

void host_kernels(const HostKernels& with) { kernels = with; }
void host_break(CUresult with) { broken = with; }
void host_memory(std::size_t bytes) { all_memory = bytes; }
std::size_t host_bytes_in_use() {
  std::size_t sum = 0;
  for (const auto& [address, bytes] : memory) sum += bytes;
  return sum;
}
void host_allocations(void (*visit)(unsigned char* data, std::size_t bytes, void* with), void* with) {
  for (const auto& [address, bytes] : memory) visit(reinterpret_cast<unsigned char*>(address), bytes, with);
}

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* version) { return *version = 13000, CUDA_SUCCESS; }
CUresult cuGetErrorName(CUresult, const char** text) { return *text = "an error", CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult, const char** text) { return *text = "of the host's driver", CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int* count) {
  const char* gpus = std::getenv("SSMJIT_HOST_GPUS");
  return *count = gpus != nullptr ? std::atoi(gpus) : 1, CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice* device, int ordinal) { return *device = ordinal, CUDA_SUCCESS; }
CUresult cuDeviceGetName(char* name, int size, CUdevice) {
  std::strncpy(name, "NVIDIA H200", static_cast<std::size_t>(size));
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      *value = 9;
      break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      *value = 4;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      *value = 232448;
      break;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE:
      *value = 32768;
      break;
    default:
      *value = 0;
  }
  return CUDA_SUCCESS;
}
CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice) { return *bytes = std::size_t{1} << 30, CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice) {
  return *out = reinterpret_cast<CUcontext>(&context), CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext* out) { return *out = reinterpret_cast<CUcontext>(&context), CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxPushCurrent_v2(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxPopCurrent_v2(CUcontext* out) { return cuCtxGetCurrent(out); }
CUresult cuCtxGetDevice(CUdevice* device) { return *device = 0, CUDA_SUCCESS; }
CUresult cuCtxSynchronize() { return broken; }

CUresult cuModuleLoadData(CUmodule* out, const void*) {
  return *out = reinterpret_cast<CUmodule>(&module), CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction* out, CUmodule, const char* name) {
  auto& entry = *functions.emplace(name, name).first;
  return *out = reinterpret_cast<CUfunction>(&entry.second), CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute, CUfunction) { return *value = 0, CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveClusters(int* clusters, CUfunction, const CUlaunchConfig* config) {
  return *clusters = 132 / static_cast<int>(config->attrs->value.clusterDim.x), CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction which, void** parameters, void**) {
  if (broken != CUDA_SUCCESS) return broken;
  Launch launch{*reinterpret_cast<const std::string*>(which), *config, {}};
  const auto* argument = static_cast<const unsigned char*>(parameters[0]);
  launch.config.attrs = nullptr;  // they end with the call
  launch.argument.assign(argument, argument + kernels.argument_bytes(launch.name.c_str()));
  if (capturing != nullptr)
    capturing->launches.push_back(std::move(launch));
  else
    run(launch);
  return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream* out, unsigned) { return *out = reinterpret_cast<CUstream>(&stream), CUDA_SUCCESS; }
CUresult cuStreamDestroy_v2(CUstream) { return CUDA_SUCCESS; }
CUresult cuStreamSynchronize(CUstream) { return broken; }
CUresult cuStreamIsCapturing(CUstream, CUstreamCaptureStatus* status) {
  *status = capturing != nullptr ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}
CUresult cuStreamBeginCapture_v2(CUstream, CUstreamCaptureMode) { return capturing = new HostGraph, CUDA_SUCCESS; }
CUresult cuStreamEndCapture(CUstream, CUgraph* graph) {
  *graph = reinterpret_cast<CUgraph>(capturing);
  capturing = nullptr;
  return CUDA_SUCCESS;
}
CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode*) { return CUDA_SUCCESS; }
CUresult cuGraphInstantiateWithFlags(CUgraphExec* out, CUgraph graph, unsigned long long) {
  *out = reinterpret_cast<CUgraphExec>(new HostGraph(*reinterpret_cast<const HostGraph*>(graph)));
  return CUDA_SUCCESS;
}
CUresult cuGraphLaunch(CUgraphExec graph, CUstream) {
  for (const Launch& launch : reinterpret_cast<const HostGraph*>(graph)->launches) run(launch);
  return broken;
}
CUresult cuGraphDestroy(CUgraph graph) { return delete reinterpret_cast<HostGraph*>(graph), CUDA_SUCCESS; }
CUresult cuGraphExecDestroy(CUgraphExec graph) { return delete reinterpret_cast<HostGraph*>(graph), CUDA_SUCCESS; }

CUresult cuEventCreate(CUevent* out, unsigned) { return *out = reinterpret_cast<CUevent>(new HostEvent), CUDA_SUCCESS; }
CUresult cuEventDestroy_v2(CUevent event) { return delete reinterpret_cast<HostEvent*>(event), CUDA_SUCCESS; }
CUresult cuEventRecord(CUevent event, CUstream) {
  return reinterpret_cast<HostEvent*>(event)->us = now_us, CUDA_SUCCESS;
}
CUresult cuEventSynchronize(CUevent) { return broken; }
CUresult cuEventElapsedTime(float* ms, CUevent begin, CUevent end) {
  *ms = static_cast<float>((reinterpret_cast<HostEvent*>(end)->us - reinterpret_cast<HostEvent*>(begin)->us) * 1e-3);
  return CUDA_SUCCESS;
}

CUresult cuMemGetInfo_v2(size_t* free, size_t* total) {
  *total = all_memory;
  *free = *total - std::min(*total, host_bytes_in_use());
  return CUDA_SUCCESS;
}
CUresult cuMemAlloc_v2(CUdeviceptr* out, size_t bytes) {
  if (host_bytes_in_use() + bytes > all_memory) return CUDA_ERROR_OUT_OF_MEMORY;
  void* p = std::aligned_alloc(512, (bytes + 511) / 512 * 512);
  std::memset(p, 0xa5, bytes);
  *out = reinterpret_cast<CUdeviceptr>(p);
  memory[*out] = bytes;
  return CUDA_SUCCESS;
}
CUresult cuMemFree_v2(CUdeviceptr address) {
  memory.erase(address);
  std::free(reinterpret_cast<void*>(address));
  return CUDA_SUCCESS;
}
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream) {
  std::memset(reinterpret_cast<void*>(to), value, bytes);
  return CUDA_SUCCESS;
}
CUresult cuMemsetD32Async(CUdeviceptr, unsigned, size_t, CUstream) { return CUDA_ERROR_NOT_SUPPORTED; }
CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
  std::memcpy(reinterpret_cast<void*>(to), from, bytes);
  return CUDA_SUCCESS;
}
CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
  std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
  return CUDA_SUCCESS;
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream) {
  return cuMemcpyHtoD_v2(to, from, bytes);
}
CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream) {
  return cuMemcpyDtoH_v2(to, from, bytes);
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream) {
  std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
  return CUDA_SUCCESS;
}
}
