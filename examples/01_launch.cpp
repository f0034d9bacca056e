// From a model's JSON file to a launched kernel: example_launch [FILE.json]. Exit 3: no GPU, or no NVRTC, here.
// An engine brings its own device memory; this program takes some from the driver, opened by name, so that it builds
// where there is no CUDA. State, dt and A are 0 and all other inputs 1, so that every output is the same known number.
#include <dlfcn.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <vector>

#include <ssmjit/ssmjit.h>

using namespace ssmjit;

template <class... Args>
void driver(const char* call, Args... args) {
  static void* const library = dlopen("libcuda.so.1", RTLD_NOW);
  const auto function = library ? reinterpret_cast<int (*)(Args...)>(dlsym(library, call)) : nullptr;
  if (function == nullptr || function(args...) != 0) throw Error(ErrorKind::machine, std::string(call) + " failed");
}

// A contiguous device tensor (bf16 or fp32), every element 1 or 0.
Tensor filled(bool one, DType dtype, std::initializer_list<std::int64_t> shape) {
  std::size_t count = 1;
  for (std::int64_t extent : shape) count *= static_cast<std::size_t>(extent);
  std::uint64_t address = 0;
  driver("cuMemAlloc_v2", &address, count * static_cast<std::size_t>(size_bytes(dtype)));
  if (dtype == DType::f32)
    driver("cuMemsetD32_v2", address, one ? 0x3f800000u : 0u, count);
  else
    driver("cuMemsetD16_v2", address, static_cast<unsigned short>(one ? 0x3f80 : 0), count);
  return contiguous(reinterpret_cast<const void*>(address), dtype, shape);
}

int main(int argc, char** argv) try {
  const Description d = load_model(argc > 1 ? argv[1] : "nemotron3-super-tp8").kernel("update");
  constexpr std::int64_t batch = 8;
  const DeviceFacts gpu = device(0);
  const Choice choice = lookup(load_tables(), d, gpu.key, gpu.arch(), batch);
  std::printf("%s\n%s: %s\n", d.summary().c_str(), choice.plan.text().c_str(), choice.reason.c_str());
  const Kernel kernel = Kernel::load(d, choice.plan);  // makes a context current; compiles, or reads the cache

  UpdateArgs args;
  args.state = filled(false, d.state_dtype, {batch, d.nheads, d.head_dim, d.dstate});
  args.x = filled(true, d.input_dtype, {batch, d.nheads, d.head_dim});
  args.dt = filled(false, d.dt_dtype, {batch, d.nheads});
  args.A = filled(false, DType::f32, {d.nheads});
  args.B = args.C = filled(true, d.input_dtype, {batch, d.ngroups, d.dstate});
  args.D = args.dt_bias = filled(true, d.weight_dtype, {d.nheads});
  args.out = filled(false, d.input_dtype, {batch, d.nheads, d.head_dim});
  kernel.launch(args, nullptr);

  std::vector<std::uint16_t> bits(static_cast<std::size_t>(batch * d.nheads * d.head_dim));  // bf16
  driver("cuMemcpyDtoH_v2", static_cast<void*>(bits.data()), reinterpret_cast<std::uint64_t>(args.out.data),
         bits.size() * sizeof bits[0]);
  const double want = d.dstate * std::log1p(std::exp(1.0)) + 1;
  const auto value = [](std::uint16_t y) { return std::bit_cast<float>(std::uint32_t{y} << 16); };
  const auto wrong = std::count_if(bits.begin(), bits.end(),
                                   [&](std::uint16_t y) { return !(std::abs(value(y) - want) < 0.01 * want); });
  std::printf("y = %g; wants dstate * softplus(1) + 1 = %g; %td of %zu outputs are wrong\n", value(bits.front()), want,
              wrong, bits.size());
  return wrong == 0 ? 0 : 1;
} catch (const Error& error) {
  std::fprintf(stderr, "%s: %s\n", name(error.kind()), error.what());
  return error.kind() == ErrorKind::missing ? 3 : 1;
}
