// The ring step against a double recurrence over the ring's rows and the new ones: on the CPU executor and on a GPU.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "autotune/host_numbers.h"
#include "tests/device/test_kernel.h"

namespace ssmjit {
namespace device_args {
#include "templates/ring_args.cuh"
}  // namespace device_args
namespace {

constexpr int kHeads = 8, kGroups = 2, kHeadDim = 32, kDstate = 64;

struct Variant {
  const char* entry;
  DType state;
  int tokens, window, block_m, warps, heads_per_block, stages;  // stages: of bulk copies
  bool gate;
};

// One text for all variants: buffer 0 holds every tensor, buffer 1 the arguments with offsets in place of pointers.
const TestKernel kRing("ring", {"ring.cuh"}, R"(
template <class S, int T, int W, int BM, int WARPS, int HC, int STAGES, StatePath PATH, RingRows ROWS, bool GATE>
struct Config {
  using State = S;
  using Input = bf16;
  using Dt = float;
  using Weight = float;
  static constexpr int kHeadDim = 32, kDstate = 64, kHeadsPerGroup = 4;
  static constexpr int kTokens = T, kWindow = W, kRing = W + T, kPhiloxRounds = 0;
  static constexpr int kBlockM = BM, kWarps = WARPS, kHeadsPerBlock = HC, kStages = STAGES;
  static constexpr StatePath kStatePath = PATH;
  static constexpr RingRows kRingRows = ROWS;
  static constexpr bool kHasDtBias = true, kHasD = true, kHasSkip = true, kHasGate = GATE, kVarlen = false, kReplay = false,
                        kPrecomputed = false;
  static constexpr bool kStreaming = true, kEarlyState = false;
  static constexpr PadOutput kPadOutput = PadOutput::zeros;
  static SSMJIT_DEVICE float delta(float dt, float dt_bias) { return fn_softplus(dt + dt_bias); }
  static SSMJIT_DEVICE float skip(float D, float x) { return D * x; }
  static SSMJIT_DEVICE float gate(float z) { return fn_silu(z); }
};
template <class P>
SSMJIT_DEVICE void move(P*& p, const Args& args) {
  p = reinterpret_cast<P*>(at<char>(args, 0) + reinterpret_cast<u64>(p));
}
SSMJIT_DEVICE RingArgs placed(const Args& args) {
  RingArgs a = *at<RingArgs>(args, 1);
  move(a.state, args); move(a.x_ring, args); move(a.B_ring, args); move(a.dt_ring, args);
  move(a.ring_start, args); move(a.ring_count, args); move(a.x, args); move(a.z, args); move(a.dt, args);
  move(a.B, args); move(a.C, args); move(a.A, args); move(a.D, args); move(a.dt_bias, args); move(a.out, args);
  move(a.state_batch_indices, args);
  return a;
}
KERNEL(bf16_t6_all) {
  ring_step<Config<bf16, 6, 10, 32, 2, 1, 1, StatePath::direct, RingRows::all, false>>(placed(args));
}
KERNEL(bf16_t6_live) {
  ring_step<Config<bf16, 6, 10, 16, 1, 1, 1, StatePath::direct, RingRows::live, false>>(placed(args));
}
KERNEL(bf16_t6_heads4) {
  ring_step<Config<bf16, 6, 10, 32, 4, 4, 2, StatePath::bulk, RingRows::live, true>>(placed(args));
}
KERNEL(bf16_t1_heads2) {
  ring_step<Config<bf16, 1, 16, 32, 1, 2, 2, StatePath::bulk, RingRows::live, false>>(placed(args));
}
KERNEL(bf16_t1_all) {
  ring_step<Config<bf16, 1, 16, 8, 1, 1, 1, StatePath::direct, RingRows::all, false>>(placed(args));
}
KERNEL(f32_t4_all) {
  ring_step<Config<float, 4, 8, 32, 2, 1, 1, StatePath::direct, RingRows::all, true>>(placed(args));
}
KERNEL(f32_t4_heads4) {
  ring_step<Config<float, 4, 8, 16, 1, 4, 3, StatePath::bulk, RingRows::live, false>>(placed(args));
}
KERNEL(f16_t10_all) {
  ring_step<Config<f16, 10, 11, 32, 2, 1, 1, StatePath::direct, RingRows::all, false>>(placed(args));
}
KERNEL(f16_t16_heads2) {
  ring_step<Config<f16, 16, 32, 32, 2, 2, 1, StatePath::bulk, RingRows::live, true>>(placed(args));
}
KERNEL(bf16_t2_all_w26) {
  ring_step<Config<bf16, 2, 26, 16, 2, 1, 1, StatePath::direct, RingRows::all, false>>(placed(args));
}
)");

constexpr Variant kVariants[] = {
    {"bf16_t6_all", DType::bf16, 6, 10, 32, 2, 1, 0, false},
    {"bf16_t6_live", DType::bf16, 6, 10, 16, 1, 1, 0, false},
    {"bf16_t6_heads4", DType::bf16, 6, 10, 32, 4, 4, 2, true},
    {"bf16_t1_heads2", DType::bf16, 1, 16, 32, 1, 2, 2, false},
    {"bf16_t1_all", DType::bf16, 1, 16, 8, 1, 1, 0, false},
    {"f32_t4_all", DType::f32, 4, 8, 32, 2, 1, 0, true},
    {"f32_t4_heads4", DType::f32, 4, 8, 16, 1, 4, 3, false},
    {"f16_t10_all", DType::f16, 10, 11, 32, 2, 1, 0, false},
    {"f16_t16_heads2", DType::f16, 16, 32, 32, 2, 2, 1, true},
    {"bf16_t2_all_w26", DType::bf16, 2, 26, 16, 2, 1, 0, false},
};

// All tensors of a step in one block of memory.
class RingCase {
 public:
  RingCase(const Variant& variant, int batch, std::uint64_t seed)
      : v(variant), batch_(batch), ring_(v.window + v.tokens), random_(seed) {
    const int slots = batch + 2;
    args.slots = slots;
    args.state = tensor<void*>(slots * kHeads * kHeadDim * kDstate, v.state, 0, 1);
    args.state_stride = kHeads * kHeadDim * kDstate;
    args.x_ring = tensor<void*>(slots * kHeads * ring_ * kHeadDim, DType::bf16, 0, 1);
    args.x_ring_stride = kHeads * ring_ * kHeadDim;
    args.B_ring = tensor<void*>(slots * kGroups * ring_ * kDstate, DType::bf16, 0, 1);
    args.B_ring_stride = kGroups * ring_ * kDstate;
    args.dt_ring = tensor<void*>(slots * kHeads * ring_, DType::f32, 0.1, 0.02);
    args.dt_ring_stride = kHeads * ring_;
    const int x = batch * v.tokens * kHeads * kHeadDim, b = batch * v.tokens * kGroups * kDstate;
    args.x = tensor<const void*>(x, DType::bf16, 0, 1);
    args.z = tensor<const void*>(x, DType::bf16, 0, 1);
    args.B = tensor<const void*>(b, DType::bf16, 0, 1);
    args.C = tensor<const void*>(b, DType::bf16, 0, 1);
    args.dt = tensor<const void*>(batch * v.tokens * kHeads, DType::f32, 0, 1);
    args.x_token_stride = args.z_token_stride = args.out_token_stride = kHeads * kHeadDim;
    args.B_token_stride = args.C_token_stride = kGroups * kDstate;
    args.dt_token_stride = kHeads;
    args.x_stride = args.z_stride = args.out_stride = v.tokens * args.x_token_stride;
    args.B_stride = args.C_stride = v.tokens * args.B_token_stride;
    args.dt_stride = v.tokens * kHeads;
    args.A = tensor<const void*>(kHeads, DType::f32, -1.5, 0.2);
    args.D = tensor<const void*>(kHeads, DType::f32, 0, 1);
    args.dt_bias = tensor<const void*>(kHeads, DType::f32, -2, 0.2);
    args.out = tensor<void*>(x, DType::bf16, 0, 1);
    std::vector<std::int32_t> start, count, index;
    for (int s = 0; s < slots; ++s) {
      start.push_back(static_cast<int>(random_() % static_cast<unsigned>(ring_)));
      count.push_back(s == 2   ? v.window
                      : s == 3 ? 0
                               : static_cast<int>(random_() % static_cast<unsigned>(v.window + 1)));
    }
    for (int row = 0; row < batch; ++row) index.push_back(row == 1 ? -1 : batch + 1 - row);  // row 1 is a pad
    args.ring_start = words(start);
    args.ring_count = words(count);
    args.state_batch_indices = words(index);
    args.index_stride = 1;
    args.indexed = 1;
    args.pad_slot_id = -1;
    // What is not in use must not matter, whatever it holds.
    for (int s = 0; s < slots; ++s)
      for (int j = 0; j < ring_; ++j)
        if (age(start[static_cast<std::size_t>(s)], j) >= count[static_cast<std::size_t>(s)]) poison_row(s, j);
    start_ = start, count_ = count, index_ = index;
  }

  int age(int start, int j) const { return (j - start + ring_) % ring_; }
  double read(const std::vector<std::byte>& m, const void* tensor, DType dtype, std::int64_t i) const {
    return decode(dtype, m.data() + reinterpret_cast<std::uintptr_t>(tensor), i);
  }

  // The double recurrence; compares `after` with it.
  void check(const std::vector<std::byte>& after) const {
    double y_error = 0, y_norm = 0, s_error = 0, s_norm = 0;
    std::vector<std::byte> untouched = memory;  // with what may differ copied over
    const auto allow = [&](const void* tensor, DType dtype, std::int64_t first, std::int64_t count) {
      const auto at = reinterpret_cast<std::uintptr_t>(tensor) + static_cast<std::size_t>(first * size_bytes(dtype));
      std::copy_n(after.begin() + static_cast<std::ptrdiff_t>(at), count * size_bytes(dtype),
                  untouched.begin() + static_cast<std::ptrdiff_t>(at));
    };
    int flushes = 0;
    for (int row = 0; row < batch_; ++row) {
      allow(args.out, DType::bf16, row * args.out_stride, args.out_stride);
      const int slot = index_[static_cast<std::size_t>(row)];
      if (slot < 0) {
        for (std::int64_t i = 0; i < args.out_stride; ++i)
          ASSERT_EQ(read(after, args.out, DType::bf16, row * args.out_stride + i), 0) << "a pad row's output";
        continue;
      }
      const int start = start_[static_cast<std::size_t>(slot)], count = count_[static_cast<std::size_t>(slot)];
      const bool flush = count + v.tokens > v.window;
      flushes += flush ? 1 : 0;
      for (int h = 0; h < kHeads; ++h) {
        const int g = h / (kHeads / kGroups);
        if (flush) allow(args.state, v.state, slot * args.state_stride + h * kHeadDim * kDstate, kHeadDim * kDstate);
        const double A = read(memory, args.A, DType::f32, h), D = read(memory, args.D, DType::f32, h);
        std::vector<double> delta;
        std::vector<std::int64_t> x_at, B_at;  // of row j; new rows index the inputs
        for (int j = 0; j < count; ++j) {
          const int r = (start + j) % ring_;
          delta.push_back(read(memory, args.dt_ring, DType::f32, slot * args.dt_ring_stride + h * ring_ + r));
          x_at.push_back(slot * args.x_ring_stride + (std::int64_t{h} * ring_ + r) * kHeadDim);
          B_at.push_back(slot * args.B_ring_stride + (std::int64_t{g} * ring_ + r) * kDstate);
        }
        for (int t = 0; t < v.tokens; ++t) {
          const double u = read(memory, args.dt, DType::f32, row * args.dt_stride + t * args.dt_token_stride + h) +
                           read(memory, args.dt_bias, DType::f32, h);
          delta.push_back(u <= 20 ? std::log1p(std::exp(u)) : u);
          x_at.push_back(row * args.x_stride + t * args.x_token_stride + h * kHeadDim);
          B_at.push_back(row * args.B_stride + t * args.B_token_stride + g * kDstate);
          // The row's place in the ring.
          const int r = (start + count + t) % ring_;
          const std::int64_t dt_place = slot * args.dt_ring_stride + h * ring_ + r;
          EXPECT_NEAR(read(after, args.dt_ring, DType::f32, dt_place), delta.back(), 1e-5);
          allow(args.dt_ring, DType::f32, dt_place, 1);
          expect_row(after, args.x_ring, slot * args.x_ring_stride + (std::int64_t{h} * ring_ + r) * kHeadDim, args.x,
                     x_at.back(), kHeadDim);
          allow(args.x_ring, DType::bf16, slot * args.x_ring_stride + (std::int64_t{h} * ring_ + r) * kHeadDim,
                kHeadDim);
          expect_row(after, args.B_ring, slot * args.B_ring_stride + (std::int64_t{g} * ring_ + r) * kDstate, args.B,
                     B_at.back(), kDstate);
          allow(args.B_ring, DType::bf16, slot * args.B_ring_stride + (std::int64_t{g} * ring_ + r) * kDstate, kDstate);
        }
        for (int p = 0; p < kHeadDim; ++p) {
          std::vector<double> s(kDstate);
          const std::int64_t at = slot * args.state_stride + (std::int64_t{h} * kHeadDim + p) * kDstate;
          for (int n = 0; n < kDstate; ++n) s[static_cast<std::size_t>(n)] = read(memory, args.state, v.state, at + n);
          for (int j = 0; j < count + v.tokens; ++j) {
            const auto i = static_cast<std::size_t>(j);
            const bool old = j < count;
            const double x = read(memory, old ? args.x_ring : args.x, DType::bf16, x_at[i] + p);
            double y = 0;
            for (int n = 0; n < kDstate; ++n) {
              double& state = s[static_cast<std::size_t>(n)];
              state = state * std::exp(delta[i] * A) +
                      delta[i] * x * read(memory, old ? args.B_ring : args.B, DType::bf16, B_at[i] + n);
              if (flush && j == count - 1) {
                const double got = read(after, args.state, v.state, at + n);
                s_error += (got - state) * (got - state), s_norm += state * state;
                state = got;  // y is that of the stored state
              }
              if (!old)
                y += state * read(memory, args.C, DType::bf16,
                                  row * args.C_stride + (j - count) * args.C_token_stride + g * kDstate + n);
            }
            if (old) continue;
            const std::int64_t out = row * args.out_stride + (j - count) * args.out_token_stride + h * kHeadDim + p;
            y += D * x;
            if (v.gate) {
              const double z = read(memory, args.z, DType::bf16, out);
              y *= z / (1 + std::exp(-z));
            }
            const double got = read(after, args.out, DType::bf16, out);
            ASSERT_TRUE(std::isfinite(got)) << "row " << row << " head " << h << " token " << j - count;
            y_error += (got - y) * (got - y), y_norm += y * y;
          }
        }
      }
    }
    EXPECT_LT(std::sqrt(y_error / y_norm), 5e-3);
    EXPECT_GT(flushes, 0);
    EXPECT_LT(flushes, batch_ - 1) << "and some rows do not flush";
    EXPECT_LT(std::sqrt(s_error / s_norm), v.state == DType::f32 ? 1e-4 : 5e-3);
    EXPECT_TRUE(after == untouched) << "bytes that no step may change";
  }

  Variant v;
  device_args::RingArgs args{};  // offsets into memory in place of pointers
  std::vector<std::byte> memory;

 private:
  void expect_row(const std::vector<std::byte>& after, const void* ring, std::int64_t place, const void* input,
                  std::int64_t from, int count) const {
    EXPECT_EQ(std::memcmp(after.data() + reinterpret_cast<std::uintptr_t>(ring) + 2 * place,
                          memory.data() + reinterpret_cast<std::uintptr_t>(input) + 2 * from,
                          2 * static_cast<std::size_t>(count)),
              0)
        << "a row that was appended";
  }
  std::size_t room(std::size_t bytes) {
    const std::size_t at = memory.size();
    memory.resize(at + (bytes + 255) / 256 * 256);
    return at;
  }
  template <class P>
  P tensor(std::int64_t count, DType dtype, double mean, double deviation) {
    const std::size_t at = room(static_cast<std::size_t>(count * size_bytes(dtype)));
    std::normal_distribution<double> normal(mean, deviation);
    for (std::int64_t i = 0; i < count; ++i) encode(dtype, memory.data() + at, i, normal(random_));
    return reinterpret_cast<P>(at);
  }
  const int* words(const std::vector<std::int32_t>& values) {
    const std::size_t at = room(4 * values.size());
    std::memcpy(memory.data() + at, values.data(), 4 * values.size());
    return reinterpret_cast<const int*>(at);
  }
  void poison_row(int slot, int j) {
    const auto fill = [&](const void* tensor, std::int64_t first, std::size_t bytes) {
      std::memset(memory.data() + reinterpret_cast<std::uintptr_t>(tensor) + first, 0xff, bytes);  // NaN
    };
    for (int h = 0; h < kHeads; ++h) {
      fill(args.x_ring, 2 * (slot * args.x_ring_stride + (std::int64_t{h} * ring_ + j) * kHeadDim), 2 * kHeadDim);
      fill(args.dt_ring, 4 * (slot * args.dt_ring_stride + h * ring_ + j), 4);
    }
    for (int g = 0; g < kGroups; ++g)
      fill(args.B_ring, 2 * (slot * args.B_ring_stride + (std::int64_t{g} * ring_ + j) * kDstate), 2 * kDstate);
  }

  int batch_, ring_;
  std::mt19937_64 random_;
  std::vector<std::int32_t> start_, count_, index_;
};

class Ring : public OnBoth {};
ON_CPU_AND_GPU(Ring);

TEST_P(Ring, AStepIsThatOfTheRecurrenceAndTouchesNothingElse) {
  NEEDS(kRing);
  constexpr int kBatch = 9;
  for (const Variant& v : kVariants) {
    SCOPED_TRACE(v.entry);
    RingCase c(v, kBatch, 7);
    std::vector<std::byte> memory = c.memory;
    std::vector<device_args::RingArgs> args{c.args};
    const Shape shape{.threads = 32 * v.warps,
                      .blocks = kHeads / v.heads_per_block * (kHeadDim / v.block_m),
                      .rows = kBatch,
                      .smem_bytes = v.stages * v.block_m * kDstate * size_bytes(v.state)};
    kRing.run(GetParam(), v.entry, shape, {HostBuffer(memory), HostBuffer(args)});
    c.check(memory);
  }
}

}  // namespace
}  // namespace ssmjit
