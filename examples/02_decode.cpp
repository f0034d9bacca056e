// Decodes with a toy Mamba-2 model of random weights: Session for its layers, four small kernels for the rest, one CUDA
// graph a step, no Python. Decodes once by plain launches and once by replays of the graph; the tokens must be equal.
//   example_decode [layers [steps]]. Exit 3: no GPU, or no NVRTC, here.
// The driver is opened by name, so that the program builds where there is no CUDA.
#include <dlfcn.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include <ssmjit/ssmjit.h>

using namespace ssmjit;

// ---- what the model has beside its Mamba layers: bf16 weights, an fp32 residual stream ----
constexpr const char* kToyKernels = R"(
__device__ float wide(unsigned short v) { return __int_as_float((int)v << 16); }
__device__ unsigned short narrow(float v) {
  const unsigned bits = (unsigned)__float_as_int(v);
  return (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
__device__ float sum_of_warp(float v) {
  for (int lane = 16; lane > 0; lane /= 2) v += __shfl_xor_sync(0xffffffffu, v, lane);
  return v;
}
// residual[row] = table[token[row]]
extern "C" __global__ void embed(const unsigned short* table, const int* token, float* residual, int width) {
  for (int i = threadIdx.x; i < width; i += blockDim.x)
    residual[blockIdx.x * width + i] = wide(table[(long long)token[blockIdx.x] * width + i]);
}
// out[row] = residual[row] / rms, one warp a row
extern "C" __global__ void normalise(const float* residual, unsigned short* out, int width) {
  const float* from = residual + blockIdx.x * width;
  float sum = 0;
  for (int i = threadIdx.x; i < width; i += 32) sum += from[i] * from[i];
  const float scale = rsqrtf(sum_of_warp(sum) / width + 1e-5f);
  for (int i = threadIdx.x; i < width; i += 32) out[blockIdx.x * width + i] = narrow(from[i] * scale);
}
// out[row, r] = weight[r] . in[row], a warp each: to bf16, or added to fp32
extern "C" __global__ void multiply(const unsigned short* weight, const unsigned short* in, unsigned short* out,
                                    float* add_to, int rows, int width) {
  const int r = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (r >= rows) return;
  float sum = 0;
  for (int i = lane; i < width; i += 32)
    sum += wide(weight[(long long)r * width + i]) * wide(in[blockIdx.y * width + i]);
  sum = sum_of_warp(sum);
  if (lane != 0) return;
  if (add_to) add_to[blockIdx.y * rows + r] += sum;
  else out[blockIdx.y * rows + r] = narrow(sum);
}
// The likeliest token of each row, the first of equals; noted down at its step, which then moves on.
extern "C" __global__ void pick(const unsigned short* logits, int vocabulary, int* token, int* history, int* step) {
  for (int row = 0; row < (int)blockDim.x; ++row) {
    if ((int)threadIdx.x != row) continue;
    int best = 0;
    for (int v = 1; v < vocabulary; ++v)
      if (wide(logits[row * vocabulary + v]) > wide(logits[row * vocabulary + best])) best = v;
    token[row] = history[*step * (int)blockDim.x + row] = best;
  }
  __syncthreads();
  if (threadIdx.x == 0) ++*step;
}
)";

template <class... Args>
void driver(const char* call, Args... args) {
  static void* const library = dlopen("libcuda.so.1", RTLD_NOW);
  const auto function = library ? reinterpret_cast<int (*)(Args...)>(dlsym(library, call)) : nullptr;
  const int result = function != nullptr ? function(args...) : -1;
  if (result != 0) throw Error(ErrorKind::machine, std::string(call) + " failed: " + std::to_string(result));
}

// Device memory, kept for the life of the program.
void* device_bytes(std::size_t bytes) {
  std::uint64_t address = 0;
  driver("cuMemAlloc_v2", &address, bytes);
  driver("cuMemsetD8_v2", address, static_cast<unsigned char>(0), bytes);
  return reinterpret_cast<void*>(address);
}
template <class T>
void* on_device(const std::vector<T>& values) {
  void* to = device_bytes(values.size() * sizeof(T));
  driver("cuMemcpyHtoD_v2", reinterpret_cast<std::uint64_t>(to), static_cast<const void*>(values.data()),
         values.size() * sizeof(T));
  return to;
}

struct Random {
  std::mt19937 engine{1};
  float operator()(float low, float high) { return std::uniform_real_distribution<float>(low, high)(engine); }
  void* bf16(std::size_t count, float most) {
    std::vector<std::uint16_t> values(count);
    for (std::uint16_t& v : values)
      v = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>((*this)(-most, most)) >> 16);
    return on_device(values);
  }
  void* f32(std::size_t count, float low, float high) {
    std::vector<float> values(count);
    for (float& v : values) v = (*this)(low, high);
    return on_device(values);
  }
};

// Sizes of the model; one rank has all of it.
constexpr std::int64_t kBatch = 4, kWidth = 512, kVocabulary = 1000;
constexpr std::int64_t kHeads = 16, kHeadDim = 64, kState = 128, kInner = kHeads * kHeadDim;
constexpr std::int64_t kChannels = kInner + 2 * kState;           // x, B, C
constexpr std::int64_t kProjected = kInner + kChannels + kHeads;  // z, those, dt

struct Toy {
  Toy(const Cubin& cubin) {
    void* module = nullptr;
    driver("cuModuleLoadData", &module, static_cast<const void*>(cubin.image.data()));
    for (const auto& [to, name] :
         {std::pair{&embed, "embed"}, {&normalise, "normalise"}, {&multiply, "multiply"}, {&pick, "pick"}})
      driver("cuModuleGetFunction", to, module, name);
  }
  void *embed = nullptr, *normalise = nullptr, *multiply = nullptr, *pick = nullptr;
};

template <class... Args>
void launch(void* function, std::int64_t grid_x, std::int64_t grid_y, int threads, void* stream, Args... args) {
  void* parameters[] = {&args...};
  driver("cuLaunchKernel", function, static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y), 1u,
         static_cast<unsigned>(threads), 1u, 1u, 0u, stream, static_cast<void**>(parameters),
         static_cast<void**>(nullptr));
}

struct Layer {
  void *in, *out;  // the projections' weights
  LayerArgs args;
};

int main(int argc, char** argv) try {
  const int layer_count = argc > 1 ? std::atoi(argv[1]) : 8, steps = argc > 2 ? std::atoi(argv[2]) : 64;
  // The layer as one description: convolution, update, gated norm. dt comes as the projection wrote it.
  const Description layer = mamba2({.nheads = kHeads, .head_dim = kHeadDim, .dstate = kState, .ngroups = 1})
                                .dt(DType::bf16)
                                .with_conv({.activation_expr = silu(dsl::x)})
                                .with_norm({.gate_expr = silu(dsl::z)});
  // ---- model load ----
  const Session session;
  const Prepared step = session.prepare(layer, {.max_batch = kBatch});
  const PrepareA prepare_A = session.prepare_A();
  const Choice choice = step.choose(kBatch);
  std::printf("%s\n%s: %s\n", layer.summary().c_str(), choice.plan.text().c_str(), choice.reason.c_str());
  const Toy toy(compile({.text = kToyKernels, .arch = step.device().arch(), .entries = {{.name = "embed"}}}));

  Random random;
  const std::int64_t scratch = step.scratch_bytes();
  void* const scratch_bytes = scratch > 0 ? device_bytes(static_cast<std::size_t>(scratch)) : nullptr;
  void* const projected = device_bytes(kBatch * kProjected * 2);
  void* const inner = device_bytes(kBatch * kInner * 2);
  const auto at = [](void* base, std::int64_t elements) { return static_cast<char*>(base) + 2 * elements; };
  std::vector<Layer> layers;
  std::vector<std::pair<void*, std::size_t>> states;  // to start anew
  for (int i = 0; i < layer_count; ++i) {
    Layer& l = layers.emplace_back();
    l.in = random.bf16(kProjected * kWidth, 0.08f);
    l.out = random.bf16(kWidth * kInner, 0.08f);
    LayerArgs& a = l.args;
    const std::size_t state_bytes = kBatch * kInner * kState * 4, conv_bytes = kBatch * kChannels * 3 * 2;
    a.state = contiguous(device_bytes(state_bytes), DType::f32, {kBatch, kHeads, kHeadDim, kState});
    a.conv_state = contiguous(device_bytes(conv_bytes), DType::bf16, {kBatch, kChannels, 3});
    states.push_back({const_cast<void*>(a.state.data), state_bytes});
    states.push_back({const_cast<void*>(a.conv_state.data), conv_bytes});
    // Slices of the projection's rows.
    a.z = strided(projected, DType::bf16, {kBatch, kHeads, kHeadDim}, {kProjected, kHeadDim, 1});
    a.x = strided(at(projected, kInner), DType::bf16, {kBatch, kChannels}, {kProjected, 1});
    a.dt = strided(at(projected, kInner + kChannels), DType::bf16, {kBatch, kHeads}, {kProjected, 1});
    a.conv_weight = contiguous(random.bf16(kChannels * 4, 0.5f), DType::bf16, {kChannels, 4});
    a.conv_bias = contiguous(random.bf16(kChannels, 0.1f), DType::bf16, {kChannels});
    const Tensor A_log = contiguous(random.f32(kHeads, 0, 2.7f), DType::f32, {kHeads});
    a.A = contiguous(device_bytes(kHeads * 4), DType::f32, {kHeads});
    prepare_A.launch(A_log, a.A, nullptr);
    a.D = contiguous(random.f32(kHeads, 0.5f, 1.5f), DType::f32, {kHeads});
    a.dt_bias = contiguous(random.f32(kHeads, -4, -2), DType::f32, {kHeads});
    a.norm_weight = contiguous(random.bf16(kInner, 1), DType::bf16, {kInner});
    a.out = contiguous(inner, DType::bf16, {kBatch, kHeads, kHeadDim});
    if (scratch > 0) a.scratch = contiguous(scratch_bytes, DType::i8, {scratch});
  }
  void* const table = random.bf16(kVocabulary * kWidth, 1);
  void* const head = random.bf16(kVocabulary * kWidth, 0.1f);
  void* const residual = device_bytes(kBatch * kWidth * 4);
  void* const normed = device_bytes(kBatch * kWidth * 2);
  void* const logits = device_bytes(kBatch * kVocabulary * 2);
  void* const token = device_bytes(kBatch * 4);
  void* const history = device_bytes(static_cast<std::size_t>(steps) * kBatch * 4);
  void* const step_number = device_bytes(4);

  // ---- one step, launched or captured ----
  const auto multiply = [&](void* weight, void* in, void* out, void* add_to, std::int64_t rows, std::int64_t width,
                            void* stream) {
    launch(toy.multiply, (rows + 3) / 4, kBatch, 128, stream, weight, in, out, add_to, static_cast<int>(rows),
           static_cast<int>(width));
  };
  const auto decode = [&](void* stream) {
    void* const none = nullptr;
    launch(toy.embed, kBatch, 1, 128, stream, table, token, residual, static_cast<int>(kWidth));
    for (const Layer& l : layers) {
      launch(toy.normalise, kBatch, 1, 32, stream, residual, normed, static_cast<int>(kWidth));
      multiply(l.in, normed, projected, none, kProjected, kWidth, stream);
      step.launch(l.args, stream);
      multiply(l.out, inner, none, residual, kWidth, kInner, stream);
    }
    launch(toy.normalise, kBatch, 1, 32, stream, residual, normed, static_cast<int>(kWidth));
    multiply(head, normed, logits, none, kVocabulary, kWidth, stream);
    launch(toy.pick, 1, 1, static_cast<int>(kBatch), stream, logits, static_cast<int>(kVocabulary), token, history,
           step_number);
  };
  const auto decoded = [&](const auto& one_step, void* stream) {
    for (const auto& [state, bytes] : states)
      driver("cuMemsetD8_v2", reinterpret_cast<std::uint64_t>(state), static_cast<unsigned char>(0), bytes);
    const std::vector<int> first{1, 2, 3, 4}, zero{0};
    driver("cuMemcpyHtoD_v2", reinterpret_cast<std::uint64_t>(token), static_cast<const void*>(first.data()),
           first.size() * 4);
    driver("cuMemcpyHtoD_v2", reinterpret_cast<std::uint64_t>(step_number), static_cast<const void*>(zero.data()),
           std::size_t{4});
    driver("cuCtxSynchronize");
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < steps; ++i) one_step();
    driver("cuStreamSynchronize", stream);
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - start;
    std::printf("%.1f us a step\n", took.count() / steps);
    std::vector<int> tokens(static_cast<std::size_t>(steps) * kBatch);
    driver("cuMemcpyDtoH_v2", static_cast<void*>(tokens.data()), reinterpret_cast<std::uint64_t>(history),
           tokens.size() * 4);
    return tokens;
  };

  void *stream = nullptr, *graph = nullptr, *executable = nullptr;
  driver("cuStreamCreate", &stream, 1u);
  std::printf("launched: ");
  const std::vector<int> launched = decoded([&] { decode(stream); }, stream);
  driver("cuStreamBeginCapture_v2", stream, 0);
  decode(stream);
  driver("cuStreamEndCapture", stream, &graph);
  driver("cuGraphInstantiateWithFlags", &executable, graph, 0ull);
  std::printf("replayed: ");
  const std::vector<int> replayed = decoded([&] { driver("cuGraphLaunch", executable, stream); }, stream);

  int distinct = 0;
  for (std::size_t i = kBatch; i < launched.size(); ++i) distinct += launched[i] != launched[i - kBatch];
  std::printf("%d layers, %lld rows, %d steps: tokens %s; the first row starts with", layer_count,
              static_cast<long long>(kBatch), steps, launched == replayed ? "equal" : "DIFFER");
  for (int i = 0; i < std::min(steps, 8); ++i) std::printf(" %d", launched[static_cast<std::size_t>(i * kBatch)]);
  std::printf("\n");
  return launched == replayed && (steps < 2 || distinct > 0) ? 0 : 1;
} catch (const Error& error) {
  std::fprintf(stderr, "%s: %s\n", name(error.kind()), error.what());
  return error.kind() == ErrorKind::missing ? 3 : 1;
}
