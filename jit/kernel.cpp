#include <ssmjit/kernel.h>

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include <ssmjit/error.h>

#include "codegen/fail.h"
#include "jit/kernel_args.h"
#include "jit/kernel_state.h"
#include "jit/launch_checks.h"

namespace ssmjit {

namespace {

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
  const Arch arch = arch_to_load_for(static_cast<CUstream>(stream));
  const Source source = emit(description, plan, arch);
  return load(description, plan, source, compile(source, options));
}

Kernel Kernel::load(const Description& description, const Plan& plan, const Source& source, const Cubin& cubin) {
  description.validate();
  const std::vector<PlanPart> parts = plan_parts(plan, description);
  if (source.entries.size() != parts.size())
    fail(ErrorKind::invalid, "source: has {} entries; a kernel of this plan has {}", source.entries.size(),
         parts.size());
  check_plan(plan, description, cubin.arch);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Entry& entry = source.entries[i];
    const LaunchShape row = launch_shape(parts[i], 1);
    if (entry.block_threads != row.block_threads || entry.smem_bytes != row.smem_bytes)
      fail(ErrorKind::invalid,
           "source: {} wants {} threads and {} bytes of shared memory, the plan {} and {}; give the source of this "
           "plan",
           entry.name, entry.block_threads, entry.smem_bytes, row.block_threads, row.smem_bytes);
  }
  Kernel kernel;
  kernel.state_ = std::make_shared<const State>(description, plan, source, cubin);
  return kernel;
}

void Kernel::State::refuse_empty() {
  fail(ErrorKind::invalid, "an empty Kernel can't be launched; make one with Kernel::load()");
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
