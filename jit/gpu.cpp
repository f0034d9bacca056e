#include "jit/gpu.h"

#include <map>
#include <mutex>
#include <utility>

#include "codegen/fail.h"
#include "jit/driver.h"
#include "jit/module.h"

namespace ssmjit {
namespace {

CUstream as_stream(void* handle) { return static_cast<CUstream>(handle); }

}  // namespace

void use_device(int ordinal) {
  const Driver& d = driver();
  int count = 0;
  d.check(d.device_count(&count), "cuDeviceGetCount");
  if (ordinal < 0 || ordinal >= count) fail(ErrorKind::missing, "device: got {}; this machine has {}", ordinal, count);
  CUdevice device{};
  d.check(d.device_get(&device, ordinal), "cuDeviceGet");
  CUcontext context{};
  d.check(d.primary_context_retain(&context, device), "cuDevicePrimaryCtxRetain");
  d.check(d.context_set_current(context), "cuCtxSetCurrent");
}

DeviceBuffer::DeviceBuffer(std::size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  const Driver& d = driver();
  CUdeviceptr address = 0;
  const CUresult result = d.memory_alloc(&address, bytes);
  if (result == CUDA_ERROR_OUT_OF_MEMORY)
    fail(ErrorKind::machine, "device memory: {} bytes wanted, {} are free; another process may hold the rest", bytes,
         free_device_bytes());
  d.check(result, "cuMemAlloc");
  address_ = address;
}

DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept
    : address_(std::exchange(other.address_, 0)), bytes_(std::exchange(other.bytes_, 0)) {}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  std::swap(address_, other.address_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

DeviceBuffer::~DeviceBuffer() {
  if (address_ != 0) driver().memory_free(address_);
}

void DeviceBuffer::upload(const void* from, std::size_t bytes, std::size_t offset) const {
  if (bytes == 0) return;
  driver().check(driver().copy_to_device(address_ + offset, from, bytes), "cuMemcpyHtoD");
  // From pageable memory the call may return before the bytes are there, and other streams do not wait for it.
  driver().check(driver().stream_synchronize(nullptr), "cuStreamSynchronize");
}

void DeviceBuffer::download(void* to, std::size_t bytes, std::size_t offset) const {
  if (bytes == 0) return;
  driver().check(driver().copy_to_host(to, address_ + offset, bytes), "cuMemcpyDtoH");
}

void DeviceBuffer::fill(unsigned char value, void* stream) const {
  if (bytes_ == 0) return;
  driver().check(driver().memory_set_8(address_, value, bytes_, as_stream(stream)), "cuMemsetD8Async");
}

void DeviceBuffer::copy_from(const DeviceBuffer& other, std::size_t offset, void* stream) const {
  if (bytes_ == 0) return;
  driver().check(driver().copy_on_device_async(address_, other.address_ + offset, bytes_, as_stream(stream)),
                 "cuMemcpyDtoDAsync");
}

void refuse_during_capture(const char* what) {
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  const CUresult result = driver().stream_is_capturing(nullptr, &status);
  if (result == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT || status != CU_STREAM_CAPTURE_STATUS_NONE)
    fail(ErrorKind::invalid, "{}: a stream of this process is being captured; end the capture first, or do it before",
         what);
  driver().check(result, "cuStreamIsCapturing");
}

void check_device() { driver().check(driver().context_synchronize(), "cuCtxSynchronize"); }

std::int64_t free_device_bytes() {
  std::size_t free = 0, total = 0;
  driver().check(driver().memory_info(&free, &total), "cuMemGetInfo");
  return static_cast<std::int64_t>(free);
}

void read_device_memory(const void* from, void* to, std::size_t bytes) {
  driver().check(driver().copy_to_host(to, reinterpret_cast<CUdeviceptr>(from), bytes), "cuMemcpyDtoH");
}

Stream::Stream() {
  CUstream stream{};
  driver().check(driver().stream_create(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
  stream_ = stream;
}
Stream::~Stream() { driver().stream_destroy(as_stream(stream_)); }
void Stream::synchronize() const {
  driver().check(driver().stream_synchronize(as_stream(stream_)), "cuStreamSynchronize");
}

const Stream& measuring_stream() {
  static std::mutex mutex;
  static auto& streams = *new std::map<CUcontext, Stream>;  // outlives the driver's own tear-down
  const Driver& d = driver();
  CUcontext context{};
  d.check(d.context_current(&context), "cuCtxGetCurrent");
  const std::lock_guard lock(mutex);
  return streams[context];
}

std::unique_lock<std::recursive_mutex> measuring_turn() {
  static std::recursive_mutex mutex;
  return std::unique_lock(mutex);
}

Graph::Graph(const Stream& stream, const std::function<void()>& record) : driver_(&driver()) {
  const Driver& d = *driver_;
  d.check(d.stream_begin_capture(as_stream(stream.handle()), CU_STREAM_CAPTURE_MODE_THREAD_LOCAL),
          "cuStreamBeginCapture");
  CUgraph graph{};
  try {
    record();
  } catch (...) {
    d.stream_end_capture(as_stream(stream.handle()), &graph);
    if (graph != nullptr) d.graph_destroy(graph);
    throw;
  }
  d.check(d.stream_end_capture(as_stream(stream.handle()), &graph), "cuStreamEndCapture");
  CUgraphExec executable{};
  const CUresult result = d.graph_instantiate(&executable, graph, 0);
  d.graph_destroy(graph);
  d.check(result, "cuGraphInstantiate");
  executable_ = executable;
}
Graph::Graph(Graph&& other) noexcept : driver_(other.driver_), executable_(std::exchange(other.executable_, nullptr)) {}
Graph& Graph::operator=(Graph&& other) noexcept {
  std::swap(driver_, other.driver_);
  std::swap(executable_, other.executable_);
  return *this;
}
Graph::~Graph() {
  if (executable_ != nullptr) driver_->graph_exec_destroy(static_cast<CUgraphExec>(executable_));
}
void Graph::launch(const Stream& stream) const {
  driver_->check(driver_->graph_launch(static_cast<CUgraphExec>(executable_), as_stream(stream.handle())),
                 "cuGraphLaunch");
}

Stopwatch::Stopwatch(int marks) : driver_(driver()) {
  for (int i = 0; i < marks; ++i) {
    CUevent event{};
    const CUresult result = driver_.event_create(&event, CU_EVENT_DEFAULT);
    if (result != CUDA_SUCCESS) destroy_events();
    driver_.check(result, "cuEventCreate");
    events_.push_back(event);
  }
}
Stopwatch::~Stopwatch() { destroy_events(); }
void Stopwatch::destroy_events() {
  for (void* event : events_) driver_.event_destroy(static_cast<CUevent>(event));
}
void Stopwatch::mark(int i, const Stream& stream) const {
  driver_.check(
      driver_.event_record(static_cast<CUevent>(events_.at(static_cast<std::size_t>(i))), as_stream(stream.handle())),
      "cuEventRecord");
}
double Stopwatch::lap_us(int i) const {
  const auto begin = static_cast<CUevent>(events_.at(static_cast<std::size_t>(i)));
  const auto end = static_cast<CUevent>(events_.at(static_cast<std::size_t>(i) + 1));
  driver_.check(driver_.event_synchronize(end), "cuEventSynchronize");
  float ms = 0;
  driver_.check(driver_.event_elapsed(&ms, begin, end), "cuEventElapsedTime");
  return 1e3 * static_cast<double>(ms);
}

RawModule::RawModule(const Cubin& cubin) {
  CUmodule module{};
  driver().check(driver().module_load(&module, cubin.image.data()), "cuModuleLoadData");
  module_ = module;
}
RawModule::~RawModule() { driver().module_unload(static_cast<CUmodule>(module_)); }
void* RawModule::entry(const std::string& name) const {
  CUfunction function{};
  driver().check(driver().module_function(&function, static_cast<CUmodule>(module_), name.c_str()),
                 "cuModuleGetFunction");
  return function;
}

void launch_raw(void* entry, std::int64_t grid_x, std::int64_t grid_y, int threads, const void* parameters,
                void* stream, bool dependent, int cluster, int smem_bytes) {
  CUlaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (dependent) {
    attributes[count].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attributes[count++].value.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    attributes[count].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    attributes[count++].value.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  }
  CUlaunchConfig config{};
  config.gridDimX = static_cast<unsigned>(grid_x);
  config.gridDimY = static_cast<unsigned>(grid_y);
  config.gridDimZ = 1;
  config.blockDimX = static_cast<unsigned>(threads);
  config.blockDimY = config.blockDimZ = 1;
  config.sharedMemBytes = static_cast<unsigned>(smem_bytes);
  config.hStream = as_stream(stream);
  config.attrs = attributes;
  config.numAttrs = count;
  void* pointers[] = {const_cast<void*>(parameters)};
  driver().check(driver().launch(&config, static_cast<CUfunction>(entry), pointers, nullptr), "cuLaunchKernelEx");
}

int clusters_at_once(const Source& source, const Cubin& cubin, int cluster) {
  return Module(source, cubin).clusters_at_once(0, cluster);
}

}  // namespace ssmjit
