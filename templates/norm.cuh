#pragma once
#include "device/barrier.cuh"
#include "device/basic.cuh"
#include "device/convert.cuh"
#include "device/memory.cuh"
#include "device/shuffle.cuh"
#include "fast_silu.cuh"
#include "launch.cuh"
#include "maths.cuh"
#include "norm_args.cuh"
// RMSNorm over groups of channels, with a gate:
//
//   gate first:    u = x * Cfg::gate(z);   y = u / sqrt(mean of u * u + eps) * weight + bias
//   before_gate:   y = (x / sqrt(mean of x * x + eps) * weight + bias) * Cfg::gate(z)
//
// the mean over the group, all in fp32, one rounding at the end. Everything is read once, by the lane that writes the
// output of the same channels (so out may be x or z), and waits for nothing but the launch in front: a group's lanes
// ask for all of x and z, and for weight and bias, before they use the first. A group has warps / groups_per_block
// warps, a block groups_per_block neighbouring groups of one row.

// Sizes that follow from Cfg. Cfg is a struct of constants: kTokens, kGroupSize, the types Input and Weight, kEps,
// flags, the plan's fields, and the function gate.
template <class Cfg>
struct NormShape {
  using Input = typename Cfg::Input;
  static constexpr int kGroupWarps = Cfg::kWarps / Cfg::kGroupsPerBlock;
  static constexpr int kLanes = 32 * kGroupWarps;
  // Elements that are read at once: a 16-byte vector, or one where rows may lie anywhere.
  static constexpr int kWidth = Cfg::kAlignedRows ? 16 / static_cast<int>(sizeof(Input)) : 1;
  static constexpr int kGroupVectors = Cfg::kGroupSize / kWidth;
  static constexpr int kVectors = (kGroupVectors + kLanes - 1) / kLanes;  // a lane; the last may be past the end
  static constexpr bool kRagged = kGroupVectors % kLanes != 0;
  static_assert(Cfg::kGroupSize % kWidth == 0 && Cfg::kWarps % Cfg::kGroupsPerBlock == 0);
};

// kWidth neighbouring elements as they lie in memory, widened where they are used: a load must not make the next wait.
template <class T, int kWidth>
struct NormSpan {
  static constexpr int kWords = kWidth * static_cast<int>(sizeof(T)) / 4;
  static constexpr int kPer = kPerWord<T>;
  static constexpr bool kOne = kWidth == 1;
  T element;
  u32 word[kOne ? 1 : kWords];

  // kStreaming: past the L1, where it is a vector of 16 bytes.
  template <bool kStreaming>
  SSMJIT_DEVICE void load(const T* p) {
    if constexpr (kOne) {
      load_now(p, element);
    } else if constexpr (kStreaming && kWords == 4) {
      const Vec16 v = load_global<true>(p);
#pragma unroll
      for (int i = 0; i < 4; ++i) word[i] = v.word[i];
    } else {
      load_now<kWords>(p, word);
    }
  }
  SSMJIT_DEVICE void zero() {
    element = T{};
#pragma unroll
    for (u32& w : word) w = 0;
  }
  SSMJIT_DEVICE void widen_to(float (&v)[kWidth]) const {
    if constexpr (kOne) {
      v[0] = widen(element);
    } else {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        float part[kPer];
        unpack_word(word[w], part, T{});
#pragma unroll
        for (int e = 0; e < kPer; ++e) v[w * kPer + e] = part[e];
      }
    }
  }
};

// Rounds to T, once, and stores.
template <class T, int kWidth>
SSMJIT_DEVICE void store_norm(const float (&v)[kWidth], T* p) {
  if constexpr (kWidth == 1) {
    narrow(v[0], *p);
  } else {
    constexpr int kPer = kPerWord<T>;
    Vec16 out;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      float part[kPer];
#pragma unroll
      for (int e = 0; e < kPer; ++e) part[e] = v[w * kPer + e];
      out.word[w] = pack_word(part, T{});
    }
    store_global<false>(p, out);
  }
}

template <class Cfg>
SSMJIT_DEVICE float norm_gate(float z) {
  if constexpr (Cfg::kFastSilu)
    return silu_of_16_bits(z);
  else
    return Cfg::gate(z);
}

// Grid: x = groups / groups_per_block, rounded up, y = batch * tokens. Block: 32 * warps threads.
template <class Cfg>
SSMJIT_DEVICE void norm(const NormArgs& args) {
  using S = NormShape<Cfg>;
  using Input = typename Cfg::Input;
  using Weight = typename Cfg::Weight;
  const int place = thread_index() / S::kLanes;  // of the group in the block
  const int lane = thread_index() % S::kLanes;
  const int group = block_x() * Cfg::kGroupsPerBlock + place;
  const bool live = Cfg::kGroupsPerBlock == 1 || group * Cfg::kGroupSize < args.channels;
  const int request = block_y() / Cfg::kTokens, token = block_y() % Cfg::kTokens;
  // Of the lane's first vector.
  const i64 channel = static_cast<i64>(group) * Cfg::kGroupSize + lane * S::kWidth;
  const auto at = [&](i64 stride, i64 token_stride) { return request * stride + token * token_stride + channel; };
  const auto has = [&](int v) {
    return live && (!S::kRagged || v + 1 < S::kVectors || v * S::kLanes + lane < S::kGroupVectors);
  };
  const auto element = [](int v) { return v * S::kLanes * S::kWidth; };

  NormSpan<Input, S::kWidth> x[S::kVectors], z[S::kVectors];
  NormSpan<Weight, S::kWidth> weight[S::kVectors], bias[S::kVectors];
  const auto load_weights = [&] {
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v) {
      weight[v].zero();
      if constexpr (Cfg::kHasBias) bias[v].zero();
      if (!has(v)) continue;
      weight[v].template load<false>(static_cast<const Weight*>(args.weight) + channel + element(v));
      if constexpr (Cfg::kHasBias)
        bias[v].template load<false>(static_cast<const Weight*>(args.bias) + channel + element(v));
    }
  };

  if (args.pdl != kPdlOff) {
    grid_dependency_trigger();
    if (!Cfg::kEarlyState || args.pdl == kPdlWaitFirst) grid_dependency_wait();
  }
  if constexpr (Cfg::kEarlyState) {
    load_weights();
    grid_dependency_wait();
  }
  const Input* x_row = static_cast<const Input*>(args.x) + at(args.x_stride, args.x_token_stride);
#pragma unroll
  for (int v = 0; v < S::kVectors; ++v) {
    x[v].zero();
    if (has(v)) x[v].template load<Cfg::kStreaming>(x_row + element(v));
  }
  if constexpr (Cfg::kHasGate) {
    const Input* z_row = static_cast<const Input*>(args.z) + at(args.z_stride, args.z_token_stride);
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v) {
      z[v].zero();
      if (has(v)) z[v].template load<Cfg::kStreaming>(z_row + element(v));
    }
  }
  if constexpr (!Cfg::kEarlyState) load_weights();

  // What the mean is of; a lane's squares in four sums, so that none waits for all others.
  float u[S::kVectors][S::kWidth], gate[S::kVectors][S::kWidth];
  float squares[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
  for (int v = 0; v < S::kVectors; ++v) {
    x[v].widen_to(u[v]);
    if constexpr (Cfg::kHasGate) z[v].widen_to(gate[v]);
#pragma unroll
    for (int e = 0; e < S::kWidth; ++e) {
      if constexpr (Cfg::kHasGate) {
        gate[v][e] = norm_gate<Cfg>(gate[v][e]);
        if constexpr (!Cfg::kBeforeGate) u[v][e] *= gate[v][e];
      }
      const int part = (v * S::kWidth + e) % 4;
      squares[part] = fma_f32(u[v][e], u[v][e], squares[part]);
    }
  }
  float sum = sum_lanes((squares[0] + squares[1]) + (squares[2] + squares[3]));
  if constexpr (S::kGroupWarps > 1) {
    __shared__ __align__(16) float of_warps[Cfg::kGroupsPerBlock][S::kGroupWarps];
    if (lane % 32 == 0) of_warps[place][lane / 32] = sum;
    sync_block();
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int w = 0; w < S::kGroupWarps; ++w) sums[w % 4] += of_warps[place][w];
    sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  const float scale = rsqrt_fast_f32(sum * (1.0f / static_cast<float>(Cfg::kGroupSize)) + Cfg::kEps);

  Input* out_row = static_cast<Input*>(args.out) + at(args.out_stride, args.out_token_stride);
#pragma unroll
  for (int v = 0; v < S::kVectors; ++v) {
    float w[S::kWidth], y[S::kWidth];
    [[maybe_unused]] float b[S::kWidth];
    weight[v].widen_to(w);
    if constexpr (Cfg::kHasBias) bias[v].widen_to(b);
#pragma unroll
    for (int e = 0; e < S::kWidth; ++e) {
      y[e] = u[v][e] * scale * w[e];
      if constexpr (Cfg::kHasBias) y[e] += b[e];
      if constexpr (Cfg::kHasGate && Cfg::kBeforeGate) y[e] *= gate[v][e];
    }
    if (has(v)) store_norm(y, out_row + element(v));
  }
}
