#include "jit/module.h"

#include <fmt/format.h>

#include <ssmjit/error.h>

#include "codegen/fail.h"
#include "jit/launch_checks.h"

namespace ssmjit {

namespace {

constexpr int kPortableCluster = 8;          // likewise

// The current context, or device 0's primary one, which then becomes current for this thread (as the CUDA runtime
// does).
CUcontext context_to_load_in(const Driver& driver) {
  CUcontext context = nullptr;
  driver.check(driver.context_current(&context), "cuCtxGetCurrent");
  if (context != nullptr) return context;
  CUdevice device_0 = 0;
  driver.check(driver.device_get(&device_0, 0), "cuDeviceGet");
  // Kept for the life of the process: memory that the caller allocates in it must outlive any kernel.
  driver.check(driver.primary_context_retain(&context, device_0), "cuDevicePrimaryCtxRetain");
  driver.check(driver.context_set_current(context), "cuCtxSetCurrent");
  return context;
}

DeviceFacts facts_of_current_context(const Driver& driver) {
  CUdevice current = 0;
  driver.check(driver.context_device(&current), "cuCtxGetDevice");
  return device(current);
}

// Allows this thread what a capture elsewhere would forbid, without breaking that capture.
class RelaxedCapture {
 public:
  explicit RelaxedCapture(const Driver& driver) : driver_(driver) {
    driver_.check(driver_.exchange_capture_mode(&mode_), "cuThreadExchangeStreamCaptureMode");
  }
  ~RelaxedCapture() { driver_.exchange_capture_mode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  const Driver& driver_;
  CUstreamCaptureMode mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;
};

}  // namespace

DeviceFacts current_device() {
  const Driver& the_driver = driver();
  context_to_load_in(the_driver);
  return facts_of_current_context(the_driver);
}

LoadPlace place_to_load(CUstream stream) {
  const Driver& the_driver = driver();
  LoadPlace place;
  place.context = context_to_load_in(the_driver);
  place.captured = is_captured(the_driver, stream);
  place.device = facts_of_current_context(the_driver);
  return place;
}

Arch arch_to_load_for(CUstream stream) {
  const LoadPlace place = place_to_load(stream);
  if (place.captured)
    fail(ErrorKind::invalid,
         "kernel: a load (compile, module load) was asked for while the stream is being captured; load every kernel "
         "before the capture begins");
  return place.device.arch();
}

Module::Module(const Source& source, const Cubin& cubin)
    : driver_(ssmjit::driver()), context_(context_to_load_in(driver_)) {
  const RelaxedCapture relaxed(driver_);
  const auto check = [&](CUresult result, const char* call) {
    if (result == CUDA_SUCCESS) return;
    if (module_ != nullptr) driver_.module_unload(module_);
    const DeviceFacts facts = facts_of_current_context(driver_);
    driver_.raise(
        result, call,
        fmt::format("the cubin of {} is for {}, the device is {} ({}), its driver supports CUDA {}",
                    source.entries.front().name, cubin.arch.text(), facts.name, facts.arch().text(), facts.driver));
  };
  check(driver_.module_load(&module_, cubin.image.data()), "cuModuleLoadData");
  for (const Entry& entry : source.entries) {
    Function& function = functions_.emplace_back();
    function.block_threads = static_cast<unsigned>(entry.block_threads);
    function.smem_bytes = static_cast<unsigned>(entry.smem_bytes);
    check(driver_.module_function(&function.handle, module_, entry.name.c_str()), "cuModuleGetFunction");
    if (entry.smem_bytes > 0)  // however small: with what is static, which no compiler need have told, it may be much
      check(driver_.function_set_attribute(function.handle, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                           entry.smem_bytes),
            "cuFuncSetAttribute");
    if (entry.cluster > kPortableCluster)
      check(driver_.function_set_attribute(function.handle, CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1),
            "cuFuncSetAttribute");
  }
}

Module::~Module() {
  // Failures are of no interest: the context may be gone, at exit the driver too.
  if (driver_.context_push(context_) != CUDA_SUCCESS) return;
  CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;  // no harm to a capture of another thread
  driver_.exchange_capture_mode(&mode);
  driver_.module_unload(module_);
  driver_.exchange_capture_mode(&mode);
  CUcontext popped = nullptr;
  driver_.context_pop(&popped);
}

void Module::launch(std::size_t entry, std::int64_t grid_x, std::int64_t grid_y, void* device_args, bool dependent,
                    CUstream stream) const {
  const Function& function = functions_[entry];
  CUlaunchAttribute attribute{};
  attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
  attribute.value.programmaticStreamSerializationAllowed = 1;
  CUlaunchConfig config{};
  config.gridDimX = static_cast<unsigned>(grid_x);
  config.gridDimY = static_cast<unsigned>(grid_y);
  config.gridDimZ = 1;
  config.blockDimX = function.block_threads;
  config.blockDimY = 1;
  config.blockDimZ = 1;
  config.sharedMemBytes = function.smem_bytes;
  config.hStream = stream;
  config.attrs = dependent ? &attribute : nullptr;
  config.numAttrs = dependent ? 1 : 0;
  void* parameters[] = {device_args};
  driver_.check(driver_.launch(&config, function.handle, parameters, nullptr), "cuLaunchKernelEx");
}

int Module::clusters_at_once(std::size_t entry, int cluster) const {
  const Function& function = functions_[entry];
  CUlaunchAttribute attribute{};
  attribute.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
  attribute.value.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  CUlaunchConfig config{};
  config.gridDimX = static_cast<unsigned>(cluster);
  config.gridDimY = config.gridDimZ = 1;
  config.blockDimX = function.block_threads;
  config.blockDimY = config.blockDimZ = 1;
  config.sharedMemBytes = function.smem_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  driver_.check(driver_.clusters_at_once(&clusters, function.handle, &config), "cuOccupancyMaxActiveClusters");
  return clusters;
}

}  // namespace ssmjit
