// Decodes one layer's state by speculation: each step verifies a few drafts with a ring, of which a request keeps some
// and drops the rest, in one captured graph. What is kept must come out as if every token had been decoded alone.
//   example_speculative [tokens a request]. Exit 3: no GPU, or no NVRTC, here.
// The driver is opened by name, so that the program builds where there is no CUDA.
#include <dlfcn.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include <ssmjit/ssmjit.h>

using namespace ssmjit;

template <class... Args>
void driver(const char* call, Args... args) {
  static void* const library = dlopen("libcuda.so.1", RTLD_NOW);
  const auto function = library ? reinterpret_cast<int (*)(Args...)>(dlsym(library, call)) : nullptr;
  const int result = function != nullptr ? function(args...) : -1;
  if (result != 0) throw Error(ErrorKind::machine, std::string(call) + " failed: " + std::to_string(result));
}
void* device_zeros(std::size_t bytes) {
  std::uint64_t address = 0;
  driver("cuMemAlloc_v2", &address, bytes);
  driver("cuMemsetD8_v2", address, static_cast<unsigned char>(0), bytes);
  return reinterpret_cast<void*>(address);
}
template <class T>
void to_device(const Tensor& to, const std::vector<T>& values) {
  driver("cuMemcpyHtoD_v2", reinterpret_cast<std::uint64_t>(to.data), static_cast<const void*>(values.data()),
         values.size() * sizeof(T));
}
template <class T>
void to_host(std::vector<T>& values, const Tensor& from) {
  driver("cuMemcpyDtoH_v2", static_cast<void*>(values.data()), reinterpret_cast<std::uint64_t>(from.data),
         values.size() * sizeof(T));
}
Tensor zeros(DType dtype, std::initializer_list<std::int64_t> shape) {
  std::size_t bytes = static_cast<std::size_t>(size_bytes(dtype));
  for (const std::int64_t extent : shape) bytes *= static_cast<std::size_t>(extent);
  return contiguous(device_zeros(bytes), dtype, shape);
}

constexpr std::int64_t kRequests = 3, kHeads = 16, kHeadDim = 64, kState = 128;
constexpr int kDrafts = 4;  // tokens a step
constexpr std::size_t kInner = kHeads * kHeadDim;

// What a layer's projections would give for one token, x, B and C in bf16.
struct Token {
  std::vector<std::uint16_t> x = std::vector<std::uint16_t>(kInner), B = std::vector<std::uint16_t>(kState), C = B;
  std::vector<float> dt = std::vector<float>(kHeads);
  explicit Token(std::mt19937& engine) {
    std::uniform_real_distribution<float> some(-1, 1), step(-3, 1);
    for (auto* values : {&x, &B, &C})
      for (std::uint16_t& v : *values) v = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(some(engine)) >> 16);
    for (float& v : dt) v = step(engine);
  }
};
// The tokens of a step, one after the other: those of request 0 first.
struct Step {
  std::vector<std::uint16_t> x, B, C;
  std::vector<float> dt;
  void add(const Token& token) {
    x.insert(x.end(), token.x.begin(), token.x.end());
    B.insert(B.end(), token.B.begin(), token.B.end());
    C.insert(C.end(), token.C.begin(), token.C.end());
    dt.insert(dt.end(), token.dt.begin(), token.dt.end());
  }
  void send(const auto& args) const {
    to_device(args.x, x), to_device(args.B, B), to_device(args.C, C), to_device(args.dt, dt);
  }
};
float wide(std::uint16_t bf16) { return std::bit_cast<float>(std::uint32_t{bf16} << 16); }

int main(int argc, char** argv) try {
  const int length = argc > 1 ? std::atoi(argv[1]) : 200;
  const Description one = mamba2({.nheads = kHeads, .head_dim = kHeadDim, .dstate = kState, .ngroups = 1});
  const Description ring = Description(one).tokens(kDrafts).store(Ring{.window = 16});
  const Session session;
  const std::vector<Prepared> steps = session.prepare_all({one, ring}, {.max_batch = kRequests});

  std::mt19937 engine{1};
  std::vector<std::vector<Token>> tokens(kRequests);  // what each request's text is
  for (auto& text : tokens)
    for (int i = 0; i < length; ++i) text.emplace_back(engine);
  const Tensor A = zeros(DType::f32, {kHeads}), D = zeros(DType::f32, {kHeads}), dt_bias = zeros(DType::f32, {kHeads});
  std::vector<float> decays(kHeads), skips(kHeads, 1);
  for (std::size_t h = 0; h < decays.size(); ++h) decays[h] = -0.05f * static_cast<float>(h + 1);
  to_device(A, decays), to_device(D, skips);

  // ---- every token alone ----
  UpdateArgs alone;
  alone.state = zeros(DType::f32, {kRequests, kHeads, kHeadDim, kState});
  alone.x = zeros(DType::bf16, {kRequests, kHeads, kHeadDim});
  alone.out = zeros(DType::bf16, {kRequests, kHeads, kHeadDim});
  alone.B = zeros(DType::bf16, {kRequests, 1, kState});
  alone.C = zeros(DType::bf16, {kRequests, 1, kState});
  alone.dt = zeros(DType::f32, {kRequests, kHeads});
  alone.A = A, alone.D = D, alone.dt_bias = dt_bias;
  std::vector<std::vector<std::uint16_t>> wanted;  // by token: all requests' outputs
  for (int i = 0; i < length; ++i) {
    Step step;
    for (const auto& text : tokens) step.add(text[static_cast<std::size_t>(i)]);
    step.send(alone);
    steps[0].launch(alone, nullptr);
    to_host(wanted.emplace_back(kRequests * kInner), alone.out);
  }

  // ---- drafts, in one graph ----
  const std::int64_t rows = ring.ring_length();
  RingArgs drafts;
  drafts.state = zeros(DType::f32, {kRequests, kHeads, kHeadDim, kState});
  drafts.x_ring = zeros(DType::bf16, {kRequests, kHeads, rows, kHeadDim});
  drafts.B_ring = zeros(DType::bf16, {kRequests, 1, rows, kState});
  drafts.dt_ring = zeros(DType::f32, {kRequests, kHeads, rows});
  drafts.ring_start = zeros(DType::i32, {kRequests});
  drafts.ring_count = zeros(DType::i32, {kRequests});
  drafts.x = zeros(DType::bf16, {kRequests, kDrafts, kHeads, kHeadDim});
  drafts.out = zeros(DType::bf16, {kRequests, kDrafts, kHeads, kHeadDim});
  drafts.B = zeros(DType::bf16, {kRequests, kDrafts, 1, kState});
  drafts.C = zeros(DType::bf16, {kRequests, kDrafts, 1, kState});
  drafts.dt = zeros(DType::f32, {kRequests, kDrafts, kHeads});
  drafts.A = A, drafts.D = D, drafts.dt_bias = dt_bias;
  void *stream = nullptr, *graph = nullptr, *executable = nullptr;
  driver("cuStreamCreate", &stream, 1u);
  driver("cuStreamBeginCapture_v2", stream, 0);
  steps[1].launch(drafts, stream);
  driver("cuStreamEndCapture", stream, &graph);
  driver("cuGraphInstantiateWithFlags", &executable, graph, 0ull);

  std::vector<RingCursor> cursors(kRequests);
  std::vector<int> done(kRequests, 0);  // tokens that are kept for good
  std::vector<std::uint16_t> out(kRequests * kDrafts * kInner);
  double error = 0, norm = 0;
  int step_count = 0, flushes = 0, kept = 0;
  std::uniform_int_distribution<int> luck(1, kDrafts);
  for (bool any = true; any; ++step_count) {
    Step step;
    std::vector<int> accepted(kRequests);
    std::vector<std::int32_t> start, count;
    for (std::size_t r = 0; r < kRequests; ++r) {
      // As many of the drafts are right as will be accepted: the others are of another text.
      accepted[r] = std::min(luck(engine), length - done[r]);
      for (int t = 0; t < kDrafts; ++t)
        step.add(t < accepted[r] ? tokens[r][static_cast<std::size_t>(done[r] + t)] : Token(engine));
      start.push_back(cursors[r].start);
      count.push_back(cursors[r].count);
    }
    step.send(drafts);
    to_device(drafts.ring_start, start), to_device(drafts.ring_count, count);
    driver("cuCtxSynchronize");  // the copies: another stream than theirs
    driver("cuGraphLaunch", executable, stream);
    driver("cuStreamSynchronize", stream);
    to_host(out, drafts.out);
    any = false;
    for (std::size_t r = 0; r < kRequests; ++r) {
      for (int t = 0; t < accepted[r]; ++t)
        for (std::size_t i = 0; i < kInner; ++i) {
          const float want = wide(wanted[static_cast<std::size_t>(done[r] + t)][r * kInner + i]);
          const float got = wide(out[(r * kDrafts + static_cast<std::size_t>(t)) * kInner + i]);
          error += (got - want) * (got - want);
          norm += want * want;
        }
      flushes += ring_flushes(ring, cursors[r], kDrafts);
      cursors[r] = advance_ring(ring, cursors[r], kDrafts, accepted[r]);
      done[r] += accepted[r];
      kept += accepted[r];
      any = any || done[r] < length;
    }
  }
  const double relative = std::sqrt(error / norm);
  std::printf(
      "%d tokens of %d requests in %d steps of %d drafts, %d flushes: off by %.2g of what single tokens give; wants "
      "0.01 or less\n",
      kept, static_cast<int>(kRequests), step_count, kDrafts, flushes, relative);
  return kept == kRequests * length && relative <= 0.01 ? 0 : 1;  // NaN is neither
} catch (const Error& error) {
  std::fprintf(stderr, "%s: %s\n", name(error.kind()), error.what());
  return error.kind() == ErrorKind::missing ? 3 : 1;
}
