#include <ssmjit/kernel.h>

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include <ssmjit/device.h>
#include <ssmjit/error.h>

#include "codegen/fail.h"
#include "jit/driver.h"
#include "jit/kernel_args.h"
#include "jit/kernel_state.h"
#include "jit/launch_checks.h"

namespace ssmjit {

namespace {

constexpr int kStaticSmemLimit = 48 * 1024;  // above, a kernel must ask

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

Tensor make_tensor(const void* data, DType dtype, std::initializer_list<std::int64_t> shape) {
  Tensor tensor;
  if (shape.size() > tensor.shape.size())
    fail(ErrorKind::invalid, "a tensor has up to {} dimensions; got {}", tensor.shape.size(), shape.size());
  tensor.data = data;
  tensor.dtype = dtype;
  tensor.rank = static_cast<int>(shape.size());
  std::copy(shape.begin(), shape.end(), tensor.shape.begin());
  return tensor;
}

}  // namespace

Tensor contiguous(const void* data, DType dtype, std::initializer_list<std::int64_t> shape) {
  Tensor tensor = make_tensor(data, dtype, shape);
  std::int64_t dense = 1;
  for (int i = tensor.rank - 1; i >= 0; --i) {
    tensor.stride[static_cast<std::size_t>(i)] = dense;
    dense *= tensor.shape[static_cast<std::size_t>(i)];
  }
  return tensor;
}

Tensor strided(const void* data, DType dtype, std::initializer_list<std::int64_t> shape,
               std::initializer_list<std::int64_t> stride) {
  Tensor tensor = make_tensor(data, dtype, shape);
  if (stride.size() != shape.size())
    fail(ErrorKind::invalid, "a tensor of {} dimensions has as many strides; got {}", shape.size(), stride.size());
  std::copy(stride.begin(), stride.end(), tensor.stride.begin());
  return tensor;
}

const char* name(Pdl pdl) {
  switch (pdl) {
    case Pdl::off:
      return "off";
    case Pdl::wait_first:
      return "wait_first";
    case Pdl::early_state:
      return "early_state";
  }
  return "unknown";
}

Kernel Kernel::load(const Description& description, const Plan& plan, const CompileOptions& options, void* stream) {
  description.validate();
  const Driver& the_driver = driver();
  context_to_load_in(the_driver);
  if (is_captured(the_driver, static_cast<CUstream>(stream)))
    fail(ErrorKind::invalid,
         "kernel: a load (compile, module load) was asked for while the stream is being captured; load every kernel "
         "before the capture begins");
  const Arch arch = facts_of_current_context(the_driver).arch();
  const Source source = emit(description, plan, arch);
  return load(description, plan, source, compile(source, options));
}

Kernel Kernel::load(const Description& description, const Plan& plan, const Source& source, const Cubin& cubin) {
  description.validate();
  if (source.entries.size() != 1)
    fail(ErrorKind::invalid, "source: has {} entries; a kernel has 1", source.entries.size());
  check_plan(plan, description, cubin.arch);
  const Entry& entry = source.entries.front();
  auto state = std::make_shared<State>(description, plan, cubin);
  state->row = launch_shape(plan, description, 1);
  if (entry.block_threads != state->row.block_threads || entry.smem_bytes != state->row.smem_bytes)
    fail(ErrorKind::invalid,
         "source: {} wants {} threads and {} bytes of shared memory, the plan {} and {}; give the source of this plan",
         entry.name, entry.block_threads, entry.smem_bytes, state->row.block_threads, state->row.smem_bytes);
  state->has_pdl = cubin.arch.has_pdl();

  const Driver& the_driver = driver();
  state->driver = &the_driver;
  state->context = context_to_load_in(the_driver);
  const RelaxedCapture relaxed(the_driver);
  const auto check = [&](CUresult result, const char* call) {
    if (result == CUDA_SUCCESS) return;
    const DeviceFacts facts = facts_of_current_context(the_driver);
    the_driver.raise(result, call,
                     fmt::format("the cubin of {} is for {}, the device is {} ({}), its driver supports CUDA {}",
                                 entry.name, cubin.arch.text(), facts.name, facts.arch().text(), facts.driver));
  };
  check(the_driver.module_load(&state->module, cubin.image.data()), "cuModuleLoadData");
  check(the_driver.module_function(&state->function, state->module, entry.name.c_str()), "cuModuleGetFunction");
  if (entry.smem_bytes + cubin.smem_bytes > kStaticSmemLimit)
    check(the_driver.function_set_attribute(state->function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                            entry.smem_bytes),
          "cuFuncSetAttribute");
  Kernel kernel;
  kernel.state_ = std::move(state);
  return kernel;
}

int device_pdl(Pdl pdl) {
  switch (pdl) {
    case Pdl::off:
      return kDevicePdlOff;
    case Pdl::wait_first:
      return kDevicePdlWaitFirst;
    case Pdl::early_state:
      return kDevicePdlEarlyState;
  }
  return kDevicePdlOff;
}

void Kernel::State::refuse_empty() {
  fail(ErrorKind::invalid, "an empty Kernel can't be launched; make one with Kernel::load()");
}

Kernel::State::~State() {
  if (module == nullptr) return;
  // Failures are of no interest: the context may be gone, at exit the driver too.
  if (driver->context_push(context) != CUDA_SUCCESS) return;
  CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;  // no harm to a capture of another thread
  driver->exchange_capture_mode(&mode);
  driver->module_unload(module);
  driver->exchange_capture_mode(&mode);
  CUcontext popped = nullptr;
  driver->context_pop(&popped);
}

void Kernel::State::launch(void* device_args, std::int64_t batch, Pdl pdl, CUstream stream) const {
  CUlaunchAttribute attribute{};
  attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
  attribute.value.programmaticStreamSerializationAllowed = 1;
  CUlaunchConfig config{};
  config.gridDimX = static_cast<unsigned>(row.grid_x);
  config.gridDimY = static_cast<unsigned>(row.grid_y * batch);
  config.gridDimZ = 1;
  config.blockDimX = static_cast<unsigned>(row.block_threads);
  config.blockDimY = 1;
  config.blockDimZ = 1;
  config.sharedMemBytes = static_cast<unsigned>(row.smem_bytes);
  config.hStream = stream;
  config.attrs = pdl != Pdl::off ? &attribute : nullptr;
  config.numAttrs = pdl != Pdl::off ? 1 : 0;
  void* parameters[] = {device_args};
  driver->check(driver->launch(&config, function, parameters, nullptr), "cuLaunchKernelEx");
}

namespace {

template <class State>
const State& loaded(const std::shared_ptr<const State>& state) {
  if (state == nullptr) fail(ErrorKind::invalid, "an empty Kernel describes nothing; make one with Kernel::load()");
  return *state;
}

}  // namespace

const Description& Kernel::description() const { return loaded(state_).description; }
const Plan& Kernel::plan() const { return loaded(state_).plan; }
const Cubin& Kernel::cubin() const { return loaded(state_).cubin; }

}  // namespace ssmjit
