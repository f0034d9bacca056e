#include <ssmjit/kernel.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <ssmjit/device.h>
#include <ssmjit/error.h>

#include "codegen/fail.h"
#include "jit/driver.h"
#include "jit/kernel_args.h"

namespace ssmjit {

namespace {

constexpr std::int64_t kMostRows = 65535;  // CUDA's limit of a grid's y
constexpr int kVectorBytes = 16;
constexpr int kStaticSmemLimit = 48 * 1024;  // above, a kernel must ask

// As templates/update_args.cuh numbers them.
enum : int { kDevicePdlOff = 0, kDevicePdlWaitFirst = 1, kDevicePdlEarlyState = 2 };

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

// What a launch is compared with: the description as plain numbers, so that a launch walks no expression.
struct Wants {
  explicit Wants(const Description& d)
      : nheads(d.nheads),
        head_dim(d.head_dim),
        dstate(d.dstate),
        ngroups(d.ngroups),
        input(d.input_dtype),
        dt(d.dt_dtype),
        weight(d.weight_dtype),
        state(d.state_dtype),
        has_z(d.has_z()),
        has_D(d.has_D()),
        has_dt_bias(d.has_dt_bias()),
        has_destination(d.has_destination),
        aligned_rows(d.aligned_rows) {}

  std::int64_t nheads, head_dim, dstate, ngroups;
  DType input, dt, weight, state;
  bool has_z, has_D, has_dt_bias, has_destination, aligned_rows;
};

bool is_given(const Tensor& tensor) {
  // The pointer of a tensor without elements is often null.
  return tensor.data != nullptr || (tensor.rank > 0 && tensor.shape[0] == 0);
}

constexpr std::int64_t kAny = -1;  // an extent that is whatever the caller says

enum class Align { element, vector_rows };

// As size_bytes(), without a call.
constexpr int element_bytes(DType dtype) {
  return dtype == DType::i64 ? 8 : dtype == DType::bf16 || dtype == DType::f16 ? 2 : 4;
}

// Whether `value` is a multiple of `align`, a power of two; a launch does no division.
constexpr bool is_aligned(std::uint64_t value, int align) {
  return (value & static_cast<std::uint64_t>(align - 1)) == 0;
}
bool is_aligned(const void* address, int align) { return is_aligned(reinterpret_cast<std::uintptr_t>(address), align); }
bool stride_is_aligned(std::int64_t stride, int bytes, int align) {
  return is_aligned(static_cast<std::uint64_t>(stride) * static_cast<std::uint64_t>(bytes), align);
}

struct TensorWants {
  const char* name;
  DType dtype;
  int rank;
  std::array<std::int64_t, 4> shape;
  Align align = Align::element;
  bool rows_apart = false;  // rows must not overlap: they are written
};

std::string shape_text(const std::array<std::int64_t, 4>& shape, int rank) {
  std::string text = "[";
  for (int i = 0; i < std::min(rank, 4); ++i) {
    if (i > 0) text += ", ";
    text += shape[i] == kAny ? std::string("any") : std::to_string(shape[i]);
  }
  return text + "]";
}

// The checks of a launch are written once: `report` takes something that makes the sentence. A launch passes one that
// only notes that there is something to say, so that its checks are comparisons and nothing else.
template <class Report>
bool check_given(const char* name, bool given, bool wanted, const char* reader, Report& report) {
  if (given && !wanted)
    report([&] { return fmt::format("{}: given, but the description's maths does not read it; leave it out", name); });
  if (!given && wanted) report([&] { return fmt::format("{}: not given; {}", name, reader); });
  return given && wanted;
}

template <class Report>
[[gnu::always_inline]] inline void check_tensor(const Tensor& tensor, const TensorWants& wants, Report& report) {
  if (tensor.dtype != wants.dtype)
    report(
        [&] { return fmt::format("{}: got dtype {}; wants {}", wants.name, name(tensor.dtype), name(wants.dtype)); });
  if (tensor.rank != wants.rank) {
    report([&] {
      return fmt::format("{}: got {} dimensions; wants {}, {}", wants.name, tensor.rank, wants.rank,
                         shape_text(wants.shape, wants.rank));
    });
    return;
  }
  bool fits = true;
  for (int i = 0; i < wants.rank; ++i)
    fits = fits && (wants.shape[i] == kAny ? tensor.shape[i] >= 0 : tensor.shape[i] == wants.shape[i]);
  if (!fits) {
    report([&] {
      return fmt::format("{}: got shape {}; wants {}", wants.name, shape_text(tensor.shape, tensor.rank),
                         shape_text(wants.shape, wants.rank));
    });
    return;
  }
  if (tensor.shape[0] == 0) return;

  const int bytes = element_bytes(wants.dtype);
  const int align = wants.align == Align::vector_rows ? kVectorBytes : bytes;
  if (!is_aligned(tensor.data, align))
    report([&] {
      return fmt::format("{}: base address {} is not a multiple of {} bytes{}", wants.name, fmt::ptr(tensor.data),
                         align, align > bytes ? "; move the base, or describe the kernel with unaligned_rows()" : "");
    });

  // From the innermost dimension out; the stride of a dimension of one element says nothing.
  const int first_inner = wants.rank == 1 ? 0 : 1;
  std::int64_t dense = 1;
  for (int i = wants.rank - 1; i >= first_inner; --i) {
    if (tensor.shape[i] != 1 && tensor.stride[i] != dense) {
      report([&] {
        return fmt::format("{}: dimension {} has stride {}; wants {}: all but dimension 0 must be contiguous",
                           wants.name, i, tensor.stride[i], dense);
      });
      return;
    }
    dense *= tensor.shape[i];
  }
  if (first_inner == 0 || tensor.shape[0] == 1) return;
  const std::int64_t stride = tensor.stride[0];
  if (stride < (wants.rows_apart ? dense : 0))
    report([&] {
      return fmt::format("{}: row stride {} elements; wants {} or more{}", wants.name, stride,
                         wants.rows_apart ? dense : 0, wants.rows_apart ? ", so that rows do not overlap" : "");
    });
  else if (!stride_is_aligned(stride, bytes, align))
    report([&] {
      return fmt::format(
          "{}: row stride {} elements ({} bytes) is not a multiple of {} bytes; pad the rows, or describe the kernel "
          "with unaligned_rows()",
          wants.name, stride, stride * bytes, align);
    });
}

// The state's rules are the kernel's own: whole 16-byte vectors, whatever aligned_rows says.
template <class Report>
void check_state(const Tensor& state, const Wants& wants, Report& report) {
  const TensorWants shape{"state",        wants.state,        4, {kAny, wants.nheads, wants.head_dim, wants.dstate},
                          Align::element, /*rows_apart=*/true};
  check_tensor(state, shape, report);
  if (state.dtype != wants.state || state.rank != 4) return;
  if (!is_aligned(state.data, kVectorBytes))
    report([&] {
      return fmt::format("state: base address {} is not a multiple of {} bytes; move the base", fmt::ptr(state.data),
                         kVectorBytes);
    });
  const int bytes = element_bytes(wants.state);
  if (state.shape[0] > 1 && !stride_is_aligned(state.stride[0], bytes, kVectorBytes))
    report([&] {
      return fmt::format("state: slot stride {} elements ({} bytes) is not a multiple of {} bytes; pad the slots",
                         state.stride[0], state.stride[0] * bytes, kVectorBytes);
    });
}

template <class Report>
void check_indices_shape(const char* name_, const Tensor& indices, std::int64_t batch, Report& report) {
  if (indices.dtype != DType::i32 && indices.dtype != DType::i64) {
    report([&] { return fmt::format("{}: got dtype {}; wants int32 or int64", name_, name(indices.dtype)); });
    return;
  }
  const bool column = indices.rank == 2 && indices.shape[1] == 1;
  if ((indices.rank != 1 && !column) || (batch != kAny && indices.shape[0] != batch)) {
    report([&] {
      const std::string rows = batch == kAny ? "batch" : std::to_string(batch);
      return fmt::format("{}: got shape {}; wants [{}] or [{}, 1]", name_, shape_text(indices.shape, indices.rank),
                         rows, rows);
    });
    return;
  }
  if (indices.shape[0] > 1 && indices.stride[0] < 0)
    report([&] { return fmt::format("{}: stride {}; wants 0 or more", name_, indices.stride[0]); });
  if (!is_aligned(indices.data, element_bytes(indices.dtype)))
    report([&] {
      return fmt::format("{}: base address {} is not a multiple of {} bytes", name_, fmt::ptr(indices.data),
                         size_bytes(indices.dtype));
    });
}

template <class Report>
void check_launch(const Wants& wants, const UpdateArgs& args, Report&& report) {
  if (args.size != sizeof(UpdateArgs)) {  // nothing behind it can be trusted
    report([&] {
      return fmt::format("args: size is {}; wants {}: built against another version of ssmjit", args.size,
                         sizeof(UpdateArgs));
    });
    return;
  }
  constexpr const char* kNeeded = "every update needs it";
  std::int64_t batch = kAny;
  if (args.x.rank == 3 && args.x.shape[0] >= 0) batch = args.x.shape[0];
  if (batch > kMostRows)
    report([&] { return fmt::format("x: got {} rows; a launch takes up to {}: split the batch", batch, kMostRows); });

  const Align rows = wants.aligned_rows ? Align::vector_rows : Align::element;
  const auto needed = [&](const Tensor& tensor, const TensorWants& tensor_wants) {
    if (check_given(tensor_wants.name, is_given(tensor), true, kNeeded, report))
      check_tensor(tensor, tensor_wants, report);
  };
  const auto optional = [&](const Tensor& tensor, const TensorWants& tensor_wants, bool wanted) {
    if (check_given(tensor_wants.name, is_given(tensor), wanted, "the description's maths reads it", report))
      check_tensor(tensor, tensor_wants, report);
  };
  if (check_given("state", is_given(args.state), true, kNeeded, report)) check_state(args.state, wants, report);
  needed(args.x, {"x", wants.input, 3, {batch, wants.nheads, wants.head_dim}, rows});
  needed(args.dt, {"dt", wants.dt, 2, {batch, wants.nheads}});
  needed(args.A, {"A", DType::f32, 1, {wants.nheads}});
  needed(args.B, {"B", wants.input, 3, {batch, wants.ngroups, wants.dstate}, rows});
  needed(args.C, {"C", wants.input, 3, {batch, wants.ngroups, wants.dstate}, rows});
  optional(args.D, {"D", wants.weight, 1, {wants.nheads}}, wants.has_D);
  optional(args.dt_bias, {"dt_bias", wants.weight, 1, {wants.nheads}}, wants.has_dt_bias);
  optional(args.z, {"z", wants.input, 3, {batch, wants.nheads, wants.head_dim}}, wants.has_z);
  needed(args.out, {"out", wants.input, 3, {batch, wants.nheads, wants.head_dim}, Align::element, true});

  const bool indexed = is_given(args.state_batch_indices);
  const bool redirected = is_given(args.dst_state_batch_indices);
  if (indexed)
    check_indices_shape("state_batch_indices", args.state_batch_indices, batch, report);
  else if (is_given(args.state) && args.state.rank == 4 && args.state.shape[0] < batch)
    report([&] {
      return fmt::format(
          "state: {} slots for {} rows; without state_batch_indices row b uses slot b, so give indices or "
          "{} slots",
          args.state.shape[0], batch, batch);
    });
  if (redirected && !wants.has_destination)
    report([] {
      return std::string(
          "dst_state_batch_indices: given, but the description has no destination slots; leave it out, or "
          "describe the kernel with destination_slots()");
    });
  else if (redirected)
    check_indices_shape("dst_state_batch_indices", args.dst_state_batch_indices, batch, report);
  if (indexed && redirected && args.state_batch_indices.dtype != args.dst_state_batch_indices.dtype)
    report([&] {
      return fmt::format("dst_state_batch_indices: got dtype {}; wants {}, as state_batch_indices",
                         name(args.dst_state_batch_indices.dtype), name(args.state_batch_indices.dtype));
    });
  if (args.pdl != Pdl::off && args.pdl != Pdl::wait_first && args.pdl != Pdl::early_state)
    report([&] { return fmt::format("pdl: {} is none of off, wait_first, early_state", static_cast<int>(args.pdl)); });
}

std::vector<std::string> find_problems(const Wants& wants, const UpdateArgs& args) {
  std::vector<std::string> found;
  check_launch(wants, args, [&](auto&& sentence) { found.push_back(sentence()); });
  return found;
}

// Of dimension 0, which may be anything where there is one row at most.
std::int64_t row_stride(const Tensor& tensor) { return tensor.shape[0] > 1 ? tensor.stride[0] : 0; }

std::vector<std::int64_t> read_indices(const Driver& driver, const Tensor& indices, std::int64_t batch) {
  const auto rows = static_cast<std::size_t>(batch);
  const auto width = static_cast<std::size_t>(size_bytes(indices.dtype));
  const auto stride = static_cast<std::size_t>(row_stride(indices));
  const auto address = reinterpret_cast<CUdeviceptr>(indices.data);
  std::vector<char> raw(rows * width);
  if (rows == 1 || stride == 1) {
    driver.check(driver.copy_to_host(raw.data(), address, raw.size()), "cuMemcpyDtoH");
  } else {
    for (std::size_t i = 0; i < rows; ++i)
      driver.check(driver.copy_to_host(raw.data() + i * width, address + i * stride * width, width), "cuMemcpyDtoH");
  }
  std::vector<std::int64_t> values(rows);
  for (std::size_t i = 0; i < rows; ++i) {
    if (indices.dtype == DType::i64) {
      std::memcpy(&values[i], raw.data() + i * width, sizeof(std::int64_t));
    } else {
      std::int32_t narrow = 0;
      std::memcpy(&narrow, raw.data() + i * width, sizeof narrow);
      values[i] = narrow;
    }
  }
  return values;
}

// For the default stream the driver answers IMPLICIT while a blocking stream of the context is being captured.
bool is_captured(const Driver& driver, CUstream stream) {
  CUstreamCaptureStatus capture = CU_STREAM_CAPTURE_STATUS_NONE;
  const CUresult result = driver.stream_is_capturing(stream, &capture);
  if (result == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT) return true;
  driver.check(result, "cuStreamIsCapturing");
  return capture != CU_STREAM_CAPTURE_STATUS_NONE;
}

// Checked mode: what only the device's memory tells. Waits for all work on the stream.
void check_indices(const Driver& driver, const UpdateArgs& args, std::int64_t batch, CUstream stream) {
  if (is_captured(driver, stream))
    fail(ErrorKind::invalid,
         "checked: the stream is being captured, and a checked launch must wait for it; check before the capture, or "
         "set checked = false");
  const bool indexed = is_given(args.state_batch_indices);
  const bool redirected = is_given(args.dst_state_batch_indices);
  if (!indexed && !redirected) return;  // row b, slot b: seen on the host
  driver.check(driver.stream_synchronize(stream), "cuStreamSynchronize");

  const std::int64_t slots = args.state.shape[0];
  std::vector<std::string> wrong;
  const auto is_pad = [&](std::int64_t slot) { return slot < 0 || slot == args.pad_slot_id; };
  const auto read = [&](const char* name_, const Tensor& indices) {
    std::vector<std::int64_t> values = read_indices(driver, indices, batch);
    for (std::size_t row = 0; row < values.size(); ++row)
      if (!is_pad(values[row]) && values[row] >= slots)
        wrong.push_back(fmt::format("{}[{}] is {}; the state has {} slots", name_, row, values[row], slots));
    return values;
  };
  std::vector<std::int64_t> source;
  if (indexed) {
    source = read("state_batch_indices", args.state_batch_indices);
  } else {
    source.resize(static_cast<std::size_t>(batch));
    for (std::size_t row = 0; row < source.size(); ++row) source[row] = static_cast<std::int64_t>(row);
  }
  const std::vector<std::int64_t> target =
      redirected ? read("dst_state_batch_indices", args.dst_state_batch_indices) : source;

  const char* written_by = redirected ? "dst_state_batch_indices" : "state_batch_indices";
  std::map<std::int64_t, std::size_t> writer;  // slot -> row
  for (std::size_t row = 0; row < target.size(); ++row) {
    if (is_pad(source[row]) || is_pad(target[row])) continue;
    const auto [first, is_first] = writer.emplace(target[row], row);
    if (!is_first)
      wrong.push_back(fmt::format("{}[{}] and [{}] are both slot {}; rows of one launch must write different slots",
                                  written_by, first->second, row, target[row]));
  }
  if (redirected)
    for (std::size_t row = 0; row < source.size(); ++row) {
      if (is_pad(source[row])) continue;
      const auto found = writer.find(source[row]);
      if (found != writer.end() && found->second != row)
        wrong.push_back(fmt::format("row {} reads slot {}, which row {} of the same launch writes", row, source[row],
                                    found->second));
    }
  if (wrong.empty()) return;
  std::string sentence;
  for (const std::string& line : wrong) sentence += (sentence.empty() ? "" : "\n") + line;
  fail(ErrorKind::invalid, "{}", sentence);
}

[[noreturn, gnu::cold, gnu::noinline]] void refuse(const Wants& wants, const UpdateArgs& args) {
  std::string sentence;
  for (const std::string& problem : find_problems(wants, args)) sentence += (sentence.empty() ? "" : "\n") + problem;
  fail(ErrorKind::invalid, "{}", sentence);
}

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

struct Kernel::State {
  State(const Description& d, const Plan& p, Cubin c) : description(d), plan(p), cubin(std::move(c)), wants(d) {}
  ~State() {
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
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  Description description;
  Plan plan;
  Cubin cubin;
  Wants wants;
  LaunchShape row;  // of a batch of one; a batch of n has n times its grid_y
  bool has_pdl = false;
  const ssmjit::Driver* driver = nullptr;
  CUcontext context = nullptr;
  CUmodule module = nullptr;
  CUfunction function = nullptr;
};

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
    fail(ErrorKind::invalid, "source: has {} entries; an update has 1", source.entries.size());
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

device_args::UpdateArgs to_device(const UpdateArgs& args, Pdl pdl) {
  const bool indexed = args.state_batch_indices.data != nullptr;
  const bool redirected = args.dst_state_batch_indices.data != nullptr;
  const Tensor& any_indices = indexed ? args.state_batch_indices : args.dst_state_batch_indices;
  device_args::UpdateArgs device{};
  device.state = const_cast<void*>(args.state.data);
  device.slots = args.state.shape[0];
  device.state_stride = row_stride(args.state);
  device.x = args.x.data;
  device.x_stride = row_stride(args.x);
  device.z = args.z.data;
  device.z_stride = row_stride(args.z);
  device.dt = args.dt.data;
  device.dt_stride = row_stride(args.dt);
  device.B = args.B.data;
  device.B_stride = row_stride(args.B);
  device.C = args.C.data;
  device.C_stride = row_stride(args.C);
  device.A = args.A.data;
  device.D = args.D.data;
  device.dt_bias = args.dt_bias.data;
  device.out = const_cast<void*>(args.out.data);
  device.out_stride = row_stride(args.out);
  device.state_batch_indices = args.state_batch_indices.data;
  device.index_stride = row_stride(args.state_batch_indices);
  device.dst_state_batch_indices = args.dst_state_batch_indices.data;
  device.dst_index_stride = row_stride(args.dst_state_batch_indices);
  device.pad_slot_id = args.pad_slot_id;
  device.wide_indices = (indexed || redirected) && any_indices.dtype == DType::i64 ? 1 : 0;
  device.pdl = device_pdl(pdl);
  return device;
}

void Kernel::launch(const UpdateArgs& args, void* stream) const {
  if (state_ == nullptr) [[unlikely]]
    fail(ErrorKind::invalid, "an empty Kernel can't be launched; make one with Kernel::load()");
  const State& state = *state_;
  bool fits = true;
  check_launch(state.wants, args, [&](auto&&) { fits = false; });
  if (!fits) [[unlikely]]
    refuse(state.wants, args);
  const std::int64_t batch = args.x.shape[0];
  if (batch == 0) return;
  const auto cu_stream = static_cast<CUstream>(stream);
  if (args.checked) [[unlikely]]
    check_indices(*state.driver, args, batch, cu_stream);

  const Pdl pdl = state.has_pdl ? args.pdl : Pdl::off;
  device_args::UpdateArgs device = to_device(args, pdl);

  CUlaunchAttribute attribute{};
  attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
  attribute.value.programmaticStreamSerializationAllowed = 1;
  CUlaunchConfig config{};
  config.gridDimX = static_cast<unsigned>(state.row.grid_x);
  config.gridDimY = static_cast<unsigned>(state.row.grid_y * batch);
  config.gridDimZ = 1;
  config.blockDimX = static_cast<unsigned>(state.row.block_threads);
  config.blockDimY = 1;
  config.blockDimZ = 1;
  config.sharedMemBytes = static_cast<unsigned>(state.row.smem_bytes);
  config.hStream = cu_stream;
  config.attrs = pdl != Pdl::off ? &attribute : nullptr;
  config.numAttrs = pdl != Pdl::off ? 1 : 0;
  void* parameters[] = {&device};
  state.driver->check(state.driver->launch(&config, state.function, parameters, nullptr), "cuLaunchKernelEx");
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

std::vector<std::string> Kernel::problems(const Description& description, const UpdateArgs& args) {
  return find_problems(Wants(description), args);
}

}  // namespace ssmjit
