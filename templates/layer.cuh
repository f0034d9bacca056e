#pragma once
#include "device/barrier.cuh"
#include "device/basic.cuh"
#include "device/cluster.cuh"
#include "device/convert.cuh"
#include "device/memory.cuh"
#include "device/scalar.cuh"
#include "device/shuffle.cuh"
#include "device/warp.cuh"
#include "fast_silu.cuh"
#include "index.cuh"
#include "launch.cuh"
#include "layer_args.cuh"
#include "maths.cuh"
// One decode step of a whole state-space layer, one token a request: the convolution over x, B and C, the update of the
// state, the gate, and the norm over groups of channels, in one launch.
//
//   v[c] = round(Cfg::activation(bias[c] + sum over k of w[c, k] * window[c, k]))   window: the last kConvWidth inputs
//   h'[p, n] = decay * h[p, n] + (delta * x[p]) * B[n]                              with x, B, C of v
//   y[p] = sum over n of h'[p, n] * C[n];  y[p] += Cfg::skip(D, x[p]);  y[p] *= Cfg::gate(z[p]);  y = round(y)
//   u = y * Cfg::norm_gate(z);  out = u / sqrt(mean of u * u over the norm's group + eps) * norm_weight + norm_bias
//
// or, where kNormBeforeGate, out = (y / sqrt(mean of y * y ...) * norm_weight + norm_bias) * Cfg::norm_gate(z). What a
// chain of kernels would pass on in the input's dtype is rounded to it here, so that both agree up to the norm's sums.
//
// A cluster of kCluster blocks takes the channels of x that share a norm (those of one group's B and C, where there is
// no norm; several groups', where the norm's are larger), kNormRows of them, of one request; a block kBlockM of its
// channels at once, a warp block_m / warps neighbouring ones of one head, as in update.cuh.
//
// - Convolution: first, a word of channels (1 or 2) a thread. A block has those of its own rows, and all of its group's
//   B and C, which its cluster's blocks repeat. The window of B and C is written by the group's first block alone, after
//   all blocks of the cluster have read it; nothing is read after it was written. In two stages a block has its share of
//   B and C, window and all, and sends it to all blocks of its cluster, where it counts into an mbarrier.
// - Nothing waits for a value but for the slot's index until all loads are under way.
// - Norm: each warp sends its sum of squares to all blocks of the cluster, where it counts into an mbarrier; all sums
//   are then added in the same order everywhere.
//
// state_path: how the state comes to the lane that uses it
//   direct  straight into registers, the next rows' during these rows' arithmetic
//   bulk    all rows of the block into shared memory, a bulk copy for each kBlockM rows (sm_90)

// Sizes that follow from Cfg.
template <class Cfg>
struct LayerShape {
  using Input = typename Cfg::Input;
  static constexpr int kVecElements = 16 / static_cast<int>(sizeof(typename Cfg::State));
  static constexpr int kRowVectors = Cfg::kDstate / kVecElements;
  static constexpr int kLanes = Cfg::kLanesPerRow;
  static constexpr int kVectors = (kRowVectors + kLanes - 1) / kLanes;  // a lane and row; the last may be past the end
  static constexpr bool kRagged = kRowVectors % kLanes != 0;
  static constexpr int kGroupRows = Cfg::kHeadsPerGroup * Cfg::kHeadDim;  // that share B and C
  static constexpr int kBlockRows = Cfg::kNormRows / Cfg::kCluster;
  static constexpr int kPasses = kBlockRows / Cfg::kBlockM;
  static constexpr int kRowsPerWarp = Cfg::kBlockM / Cfg::kWarps;
  static constexpr int kRows = kRowsPerWarp / (32 / kLanes);  // a lane and pass
  static constexpr int kRowBytes = Cfg::kDstate * static_cast<int>(sizeof(typename Cfg::State));
  using Sums = RowSums<kRows, kLanes>;
  static constexpr int kOwned = Sums::owned();

  // The channels that a block needs: its rows of x, then B and C of its group, a word of them an item.
  static constexpr int kPer = kPerWord<Input>;
  static constexpr int kChannels = kBlockRows + 2 * Cfg::kDstate;
  static constexpr bool kShares = Cfg::kStages == 2 && Cfg::kHasConv;
  static constexpr int kRowWords = kBlockRows / kPer;
  static constexpr int kShareWords = 2 * Cfg::kDstate / kPer / (kShares ? Cfg::kCluster : 1);  // of B and C
  static constexpr int kItems = kRowWords + kShareWords;
  static constexpr int kThreads = 32 * Cfg::kWarps;
  static constexpr int kRounds = (kItems + kThreads - 1) / kThreads;

  static constexpr int kSums = Cfg::kCluster * Cfg::kWarps;  // that a norm adds
  static_assert(Cfg::kNormRows % kGroupRows == 0 && kGroupRows % kBlockRows == 0);
  static_assert(kBlockRows % Cfg::kBlockM == 0 && Cfg::kHeadDim % kRowsPerWarp == 0 && kRows > 0);
  static_assert(!kShares || (Cfg::kNormRows == kGroupRows && 2 * Cfg::kDstate / kPer % Cfg::kCluster == 0));
};

template <class Cfg>
struct LayerShared {
  using S = LayerShape<Cfg>;
  alignas(16) typename Cfg::Input channels[S::kChannels];      // x, B, C as the recurrence takes them
  alignas(16) float held[S::kPasses > 1 ? S::kBlockRows : 4];  // what the norm scales, until it knows the sums
  float sum[S::kSums];                                         // of squares, a warp each: [cluster][warps]
  Barrier sums;                                                // that they have come
  Barrier columns;                                             // that B and C have, of shares
  Barrier state[S::kPasses];                                   // that the state of a pass has come
};

// kCount neighbouring elements of shared memory as fp32; the address is a multiple of their size, up to 16 bytes.
template <class T, int kCount>
SSMJIT_DEVICE void widen_shared(const T* p, float (&v)[kCount]) {
  constexpr int kPer = kPerWord<T>;
  constexpr int kBytes = kCount * static_cast<int>(sizeof(T));
  struct alignas(8) Pair {
    u32 word[2];
  };
  const auto unpack = [&](u32 word, int first) {
    float part[kPer];
    unpack_word(word, part, T{});
#pragma unroll
    for (int e = 0; e < kPer; ++e) v[first + e] = part[e];
  };
  if constexpr (kBytes % 16 == 0) {
#pragma unroll
    for (int i = 0; i < kBytes / 16; ++i) {
      const Vec16 words = load_shared(reinterpret_cast<const unsigned char*>(p) + 16 * i);
#pragma unroll
      for (int w = 0; w < 4; ++w) unpack(words.word[w], (4 * i + w) * kPer);
    }
  } else if constexpr (kBytes % 8 == 0) {
#pragma unroll
    for (int i = 0; i < kBytes / 8; ++i) {
      const Pair words = reinterpret_cast<const Pair*>(p)[i];
#pragma unroll
      for (int w = 0; w < 2; ++w) unpack(words.word[w], (2 * i + w) * kPer);
    }
  } else if constexpr (kBytes % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kBytes / 4; ++i) unpack(reinterpret_cast<const u32*>(p)[i], i * kPer);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = widen(p[i]);
  }
}

// Element i of packed words, its bits alone.
template <class T>
SSMJIT_DEVICE u32 element_bits(const u32* word, int i) {
  if constexpr (kPerWord<T> == 1)
    return word[i];
  else
    return (i % 2 != 0 ? word[i / 2] >> 16 : word[i / 2] & 0xffffu);
}
template <class T>
SSMJIT_DEVICE float element_value(const u32* word, int i) {
  float v[kPerWord<T>];
  unpack_word(word[i / kPerWord<T>], v, T{});
  return v[i % kPerWord<T>];
}

// The convolution of a word of neighbouring channels.
template <class Cfg>
struct ConvItem {
  using S = LayerShape<Cfg>;
  using Input = typename Cfg::Input;
  static constexpr int kPer = S::kPer;
  static constexpr int kState = Cfg::kConvState;

  int channel;  // its first
  u32 input[1];
  u32 window[kState];  // channels first: [kPer][kState] elements; last: [kState][kPer]
  u32 weight[Cfg::kConvWidth];
  u32 bias[1];

  SSMJIT_DEVICE static int at(int channel, int k) {
    return Cfg::kConvChannelsLast ? k * kPer + channel : channel * kState + k;
  }
  SSMJIT_DEVICE void load_weights(const LayerArgs& args) {
    load_now<Cfg::kConvWidth>(static_cast<const Input*>(args.conv_weight) + static_cast<i64>(channel) * Cfg::kConvWidth,
                              weight);
    if constexpr (Cfg::kConvBias) bias[0] = load_now_b32(static_cast<const Input*>(args.conv_bias) + channel);
  }
  SSMJIT_DEVICE void load_window(const void* slot, int channels, bool live) {
    const Input* p = static_cast<const Input*>(slot);
#pragma unroll
    for (int k = 0; k < kState; ++k) window[k] = 0;
    if (!live) return;
    if constexpr (Cfg::kConvChannelsLast) {
#pragma unroll
      for (int k = 0; k < kState; ++k) window[k] = load_now_b32(p + static_cast<i64>(k) * channels + channel);
    } else {
      load_now<kState>(p + static_cast<i64>(channel) * kState, window);
    }
  }
  // The inputs a step on: each channel's first is dropped, the new one appended.
  SSMJIT_DEVICE void store_window(void* slot, int channels) const {
    u32 next[kState];
    const auto shifted = [&](int c, int k) {
      return k + 1 < kState ? element_bits<Input>(window, at(c, k + 1)) : element_bits<Input>(input, c);
    };
#pragma unroll
    for (int w = 0; w < kState; ++w) {
      const auto element = [&](int i) {
        return Cfg::kConvChannelsLast ? shifted(i % kPer, i / kPer) : shifted(i / kState, i % kState);
      };
      if constexpr (kPer == 1)
        next[w] = element(w);
      else
        next[w] = element(2 * w) | element(2 * w + 1) << 16;
    }
    u32* p = static_cast<u32*>(slot);
#pragma unroll
    for (int w = 0; w < kState; ++w)
      p[Cfg::kConvChannelsLast ? (static_cast<i64>(w) * channels + channel) / kPer
                               : static_cast<i64>(channel / kPer) * kState + w] = next[w];
  }
  SSMJIT_DEVICE u32 result() const {
    float v[kPer];
#pragma unroll
    for (int c = 0; c < kPer; ++c) {
      float sum = 0.0f;
      if constexpr (Cfg::kConvBias) sum = element_value<Input>(bias, c);
#pragma unroll
      for (int k = 0; k < Cfg::kConvWidth; ++k) {
        const float in = k + 1 < Cfg::kConvWidth ? element_value<Input>(window, at(c, kState - Cfg::kConvWidth + 1 + k))
                                                 : element_value<Input>(input, c);
        sum = fma_f32(element_value<Input>(weight, c * Cfg::kConvWidth + k), in, sum);
      }
      v[c] = Cfg::activation(sum);
    }
    return pack_word(v, Input{});
  }
};
// Without a convolution x, B and C are taken as they are.
template <class Cfg>
struct NoConvItem {
  u32 input[1];
};
template <class Cfg, bool kConv>
struct ItemOf {
  using Type = ConvItem<Cfg>;
};
template <class Cfg>
struct ItemOf<Cfg, false> {
  using Type = NoConvItem<Cfg>;
};

// A head's scalars, and the lane's inputs of the rows whose output it writes.
template <class Cfg>
struct LayerInputs {
  using S = LayerShape<Cfg>;
  typename Cfg::Dt dt;
  typename Cfg::Weight dt_bias, D;
  float A;
  typename Cfg::Input z[S::kOwned];
};

// What of them needs neither state nor convolution, worked out while those are on their way.
template <class Cfg>
struct LayerScalars {
  using S = LayerShape<Cfg>;
  float delta, decay, D;
  float gate[S::kOwned], norm_gate[S::kOwned];

  SSMJIT_DEVICE explicit LayerScalars(const LayerInputs<Cfg>& in) {
    float dt_bias = 0.0f;
    D = 0.0f;
    if constexpr (Cfg::kHasDtBias) dt_bias = widen(in.dt_bias);
    if constexpr (Cfg::kHasD) D = widen(in.D);
    delta = Cfg::delta(widen(in.dt), dt_bias);
    decay = Cfg::decay(in.A, widen(in.dt), delta);
    keep(delta);
    keep(decay);
#pragma unroll
    for (int i = 0; i < S::kOwned; ++i) {
      if constexpr (Cfg::kHasGate) {
        gate[i] = Cfg::gate(widen(in.z[i]));
        keep(gate[i]);
      }
      if constexpr (Cfg::kHasNormGate) {
        norm_gate[i] = Cfg::norm_gate(widen(in.z[i]));
        keep(norm_gate[i]);
      }
    }
  }
};

// A lane's weights of the norm, of the rows whose output it writes.
template <class Cfg>
struct NormWeights {
  using S = LayerShape<Cfg>;
  typename Cfg::Input weight[S::kOwned], bias[S::kOwned];
};

template <class Cfg>
struct LayerTile {
  using S = LayerShape<Cfg>;
  Vec16 raw[S::kRows][S::kVectors];
};

template <class Cfg>
struct LayerStep {
  using S = LayerShape<Cfg>;
  using State = typename Cfg::State;
  using Input = typename Cfg::Input;
  using Item = typename ItemOf<Cfg, Cfg::kHasConv>::Type;

  const LayerArgs& args;
  LayerShared<Cfg>& shared;
  int row;       // request
  int first;     // the block's first channel of x
  int lane_row;  // the lane's first row within the kBlockM of a pass
  int column;    // the lane's place among the lanes of a row
  int own_row;   // the first row whose output the lane writes, as lane_row
  bool owner;    // whether it writes them

  static constexpr bool kUsesZ = Cfg::kHasGate || Cfg::kHasNormGate;

  static SSMJIT_DEVICE int element(int r, int v, int lane_row, int column) {
    return (lane_row + r) * Cfg::kDstate + (v * S::kLanes + column) * S::kVecElements;
  }
  static SSMJIT_DEVICE bool inside(int v, int column) {
    return !S::kRagged || v + 1 < S::kVectors || v * S::kLanes + column < S::kRowVectors;
  }
  SSMJIT_DEVICE int group() const { return first / S::kGroupRows; }
  SSMJIT_DEVICE int head(int pass) const { return (first + pass * Cfg::kBlockM + lane_row) / Cfg::kHeadDim; }

  // ---- the convolution's channels ----

  // Where item i of the block stands among the words of its channels.
  SSMJIT_DEVICE static int place(int i) {
    return S::kShares && i >= S::kRowWords ? i + cluster_rank() * S::kShareWords : i;
  }
  // Its first channel, among all x, B and C of the request.
  SSMJIT_DEVICE int channel(int i) const {
    const int groups = args.nheads / Cfg::kHeadsPerGroup;
    const int c = place(i) * S::kPer, in_group = c - S::kBlockRows;
    const int B = groups * S::kGroupRows + group() * Cfg::kDstate + in_group;
    return in_group < 0 ? first + c : in_group < Cfg::kDstate ? B : B + (groups - 1) * Cfg::kDstate;
  }
  SSMJIT_DEVICE int channels() const { return args.nheads / Cfg::kHeadsPerGroup * (S::kGroupRows + 2 * Cfg::kDstate); }
  SSMJIT_DEVICE void load_input(Item& item, int i) const {
    const Input* x = static_cast<const Input*>(args.x) + row * args.x_stride;
    if constexpr (Cfg::kHasConv) {
      item.input[0] = load_now_b32(x + item.channel);
    } else {
      const int c = i * S::kPer, in_group = c - S::kBlockRows, of_group = group() * Cfg::kDstate;
      const Input* B = static_cast<const Input*>(args.B) + row * args.B_stride;
      const Input* C = static_cast<const Input*>(args.C) + row * args.C_stride;
      item.input[0] = load_now_b32(in_group < 0              ? x + first + c
                                   : in_group < Cfg::kDstate ? B + of_group + in_group
                                                             : C + of_group + in_group - Cfg::kDstate);
    }
  }
  static SSMJIT_DEVICE bool exists(int i) { return S::kItems % S::kThreads == 0 || i < S::kItems; }

  // ---- the recurrence's inputs ----

  SSMJIT_DEVICE void load_scalars(LayerInputs<Cfg>& in, int pass) const {
    const int h = head(pass);
    load_now(static_cast<const float*>(args.A) + h, in.A);
    if constexpr (Cfg::kHasDtBias) load_now(static_cast<const typename Cfg::Weight*>(args.dt_bias) + h, in.dt_bias);
    if constexpr (Cfg::kHasD) load_now(static_cast<const typename Cfg::Weight*>(args.D) + h, in.D);
  }
  SSMJIT_DEVICE void load_z(Input (&z)[S::kOwned], int pass) const {
    const Input* p = static_cast<const Input*>(args.z) + row * args.z_stride + first + pass * Cfg::kBlockM + own_row;
#pragma unroll
    for (int i = 0; i < S::kOwned; ++i) load_now(p + i, z[i]);
  }
  SSMJIT_DEVICE void load_inputs(LayerInputs<Cfg>& in, int pass) const {
    load_now(static_cast<const typename Cfg::Dt*>(args.dt) + row * args.dt_stride + head(pass), in.dt);
    if constexpr (kUsesZ) load_z(in.z, pass);
  }
  SSMJIT_DEVICE void load_norm(NormWeights<Cfg>& norm, int pass) const {
    const int at = first + pass * Cfg::kBlockM + own_row;
    using T = typename Cfg::Input;
    if constexpr (Cfg::kHasNorm) {
#pragma unroll
      for (int i = 0; i < S::kOwned; ++i) load_now(static_cast<const T*>(args.norm_weight) + at + i, norm.weight[i]);
      if constexpr (Cfg::kNormBias) {
#pragma unroll
        for (int i = 0; i < S::kOwned; ++i) load_now(static_cast<const T*>(args.norm_bias) + at + i, norm.bias[i]);
      }
    }
  }
  SSMJIT_DEVICE void load_state(LayerTile<Cfg>& tile, const State* from, bool live) const {
#pragma unroll
    for (int r = 0; r < S::kRows; ++r)
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v)
        tile.raw[r][v] =
            live && inside(v, column) ? load_global<Cfg::kStreaming>(from + element(r, v, lane_row, column)) : Vec16{};
  }

  // ---- a pass ----

  // The recurrence on the lane's vectors, the new state to memory; y of the rows that the lane owns, rounded as a
  // kernel of its own would pass it on.
  SSMJIT_DEVICE void step(LayerTile<Cfg>& tile, const LayerScalars<Cfg>& in, State* to, bool live, int pass,
                          float (&y_own)[S::kOwned]) const {
    constexpr int kPer = kPerWord<State>;
    const Input* x_rows = shared.channels + pass * Cfg::kBlockM;
    const Input* columns = shared.channels + S::kBlockRows;
    float x[S::kRows], B[S::kVectors][S::kVecElements], C[S::kVectors][S::kVecElements];
    widen_shared(x_rows + lane_row, x);
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v) {
      const int at = inside(v, column) ? (v * S::kLanes + column) * S::kVecElements : 0;
      widen_shared(columns + at, B[v]);
      widen_shared(columns + Cfg::kDstate + at, C[v]);
    }
    float y[S::kRows];
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      const float u = in.delta * x[r];
      y[r] = 0.0f;
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v) {
        if (!inside(v, column)) continue;
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          float s[kPer];
          unpack_word(tile.raw[r][v].word[w], s, State{});
#pragma unroll
          for (int e = 0; e < kPer; ++e) {
            s[e] = fma_f32(s[e], in.decay, u * B[v][w * kPer + e]);
            y[r] = fma_f32(s[e], C[v][w * kPer + e], y[r]);
          }
          tile.raw[r][v].word[w] = pack_word(s, State{});
        }
        if (live) store_global<Cfg::kStreaming>(to + element(r, v, lane_row, column), tile.raw[r][v]);
      }
    }
    S::Sums::sum(y, column);
#pragma unroll
    for (int i = 0; i < S::kOwned; ++i) {
      float v = y[i];
      if constexpr (Cfg::kHasSkip) v += Cfg::skip(in.D, widen(x_rows[own_row + i]));
      if constexpr (Cfg::kHasGate) v *= in.gate[i];
      Input rounded;
      narrow(v, rounded);
      y_own[i] = widen(rounded);
      if constexpr (Cfg::kHasNormGate && !Cfg::kNormBeforeGate) y_own[i] *= in.norm_gate[i];
    }
  }

  SSMJIT_DEVICE Input* output(int pass) const {
    return static_cast<Input*>(args.out) + row * args.out_stride + first + pass * Cfg::kBlockM + own_row;
  }
  SSMJIT_DEVICE void write(const float (&u)[S::kOwned], const NormWeights<Cfg>& norm, const float (&gate)[S::kOwned],
                           float scale, int pass) const {
    if (!owner) return;
    Input* out = output(pass);
#pragma unroll
    for (int i = 0; i < S::kOwned; ++i) {
      float v = u[i];
      if constexpr (Cfg::kHasNorm) {
        v = v * scale * widen(norm.weight[i]);
        if constexpr (Cfg::kNormBias) v += widen(norm.bias[i]);
        if constexpr (Cfg::kHasNormGate && Cfg::kNormBeforeGate) v *= gate[i];
      }
      narrow(v, out[i]);
    }
  }
  SSMJIT_DEVICE void write_zeros() const {
    if (!owner) return;
    for (int pass = 0; pass < S::kPasses; ++pass) {
      Input* out = output(pass);
#pragma unroll
      for (int i = 0; i < S::kOwned; ++i) narrow(0.0f, out[i]);
    }
  }
};

// Grid: x = nheads * head_dim / block rows, in clusters of kCluster; y = batch. Block: 32 * warps threads.
template <class Cfg>
SSMJIT_DEVICE void layer(const LayerArgs& args) {
  using S = LayerShape<Cfg>;
  using State = typename Cfg::State;
  using Step = LayerStep<Cfg>;
  constexpr bool kClustered = Cfg::kCluster > 1;
  constexpr bool kExchange = kClustered && Cfg::kHasNorm;
  constexpr bool kSends = kExchange || S::kShares;
  constexpr bool kBulk = Cfg::kStatePath == StatePath::bulk;
  __shared__ LayerShared<Cfg> shared;
  extern __shared__ __align__(128) unsigned char stages[];  // bulk: the state of the block's rows

  const int thread = thread_index();
  const int warp = thread / 32;
  const int column = lane_index() % S::kLanes;
  const int lane_row = warp * S::kRowsPerWarp + lane_index() / S::kLanes * S::kRows;
  const Step at{args,
                shared,
                block_y(),
                block_x() * S::kBlockRows,
                lane_row,
                column,
                lane_row + S::Sums::first_row(column),
                S::Sums::owner(column)};

  if (args.pdl != kPdlOff) {
    grid_dependency_trigger();
    if (!Cfg::kEarlyState || args.pdl == kPdlWaitFirst) grid_dependency_wait();
  }
  const IndexEntry slot =
      IndexEntry::load(args.state_batch_indices, args.wide_indices, at.row * args.index_stride, at.row, args.A);
  if (thread == 0) {
    if constexpr (kExchange) barrier_init(&shared.sums, 1);
    if constexpr (kBulk) {
#pragma unroll
      for (int pass = 0; pass < S::kPasses; ++pass) barrier_init(&shared.state[pass], 1);
    }
    if constexpr (S::kShares) barrier_init(&shared.columns, 1);
    if constexpr (kBulk || kSends) barrier_init_fence();
    if constexpr (kExchange) barrier_arrive_expect(&shared.sums, 4 * S::kSums);
    if constexpr (S::kShares)
      barrier_arrive_expect(&shared.columns, 2 * Cfg::kDstate * static_cast<int>(sizeof(typename Cfg::Input)));
  }
  if constexpr (kSends) cluster_arrive_relaxed();  // peers may send from their wait on

  typename Step::Item item[S::kRounds];
  if constexpr (Cfg::kHasConv) {
#pragma unroll
    for (int i = 0; i < S::kRounds; ++i) item[i].channel = at.channel(thread + i * S::kThreads);
  }

  // Lines of the arguments are fetched now, together, and not where they are used.
  const void* lines[] = {args.conv_state, args.dt, args.out};
#pragma unroll
  for (const void*& line : lines) keep(line);

  // The index alone is waited for before all is asked for: a wait for it would be one for loads beside it, too.
  const i64 index = slot.value();
  const bool live = index >= 0 && index < args.slots && index != args.pad_slot_id;
  if constexpr (Cfg::kPadOutput != PadOutput::as_if_zero_state) {
    if (!live) {
      if constexpr (Cfg::kEarlyState) grid_dependency_wait();
      if constexpr (Cfg::kPadOutput == PadOutput::zeros) at.write_zeros();
      return;
    }
  }
  State* state = static_cast<State*>(args.state) +
                 (live ? index * args.state_stride + static_cast<i64>(at.first) * Cfg::kDstate : 0);
  typename Cfg::Input* windows = nullptr;
  if constexpr (Cfg::kHasConv) {
    windows = static_cast<typename Cfg::Input*>(args.conv_state) + (live ? index * args.conv_state_stride : 0);
#pragma unroll
    for (int i = 0; i < S::kRounds; ++i)
      if (Step::exists(thread + i * S::kThreads)) item[i].load_window(windows, at.channels(), live);
  }
  sync_warp();  // nor these, which the convolution waits for, behind the others
  LayerTile<Cfg> tile;
  const auto load_state = [&] {
    if constexpr (kBulk) {
      if (thread == 0 && live) {
#pragma unroll
        for (int pass = 0; pass < S::kPasses; ++pass) {
          barrier_arrive_expect(&shared.state[pass], Cfg::kBlockM * S::kRowBytes);
          bulk_load(stages + pass * Cfg::kBlockM * S::kRowBytes, state + pass * Cfg::kBlockM * Cfg::kDstate,
                    Cfg::kBlockM * S::kRowBytes, &shared.state[pass]);
        }
      }
    } else {
      at.load_state(tile, state, live);
    }
  };
  if constexpr (kBulk || Cfg::kEarlyState) load_state();
  LayerInputs<Cfg> in;
  NormWeights<Cfg> norm;
  const auto load_inputs = [&] {
#pragma unroll
    for (int i = 0; i < S::kRounds; ++i)
      if (Step::exists(thread + i * S::kThreads)) at.load_input(item[i], thread + i * S::kThreads);
    at.load_inputs(in, 0);
  };
  if constexpr (Cfg::kHasConv) {
#pragma unroll
    for (int i = 0; i < S::kRounds; ++i)
      if (Step::exists(thread + i * S::kThreads)) item[i].load_weights(args);
  }
  at.load_scalars(in, 0);
  if constexpr (Cfg::kEarlyState) {
    if constexpr (S::kPasses == 1) at.load_norm(norm, 0);
    grid_dependency_wait();
    load_inputs();
  } else {
    load_inputs();
    if constexpr (!kBulk) load_state();
    if constexpr (S::kPasses == 1) at.load_norm(norm, 0);
  }

  // No load may move down past here, behind arithmetic that waits for another.
  sync_warp();
  if constexpr (kSends) cluster_wait();
  LayerScalars<Cfg> scalars(in);

  const auto store_windows = [&](bool of_x) {
    if constexpr (Cfg::kHasConv) {
#pragma unroll
      for (int i = 0; i < S::kRounds; ++i) {
        const int id = thread + i * S::kThreads;
        if (Step::exists(id) && live && (id * S::kPer < S::kBlockRows) == of_x)
          item[i].store_window(windows, at.channels());
      }
    }
  };
  // The convolution.
#pragma unroll
  for (int i = 0; i < S::kRounds; ++i) {
    const int id = thread + i * S::kThreads;
    if (!Step::exists(id)) continue;
    u32 v;
    if constexpr (Cfg::kHasConv)
      v = item[i].result();
    else
      v = item[i].input[0];
    u32* const to = reinterpret_cast<u32*>(shared.channels) + Step::place(id);
    if (S::kShares && id >= S::kRowWords) {
#pragma unroll 1
      for (int peer = 0; peer < Cfg::kCluster; ++peer)
        cluster_store_async_b32(cluster_address(to, peer), v, cluster_address(&shared.columns, peer));
    } else {
      *to = v;
    }
  }
  if constexpr (kClustered && !kSends) cluster_arrive_relaxed();  // this block has read the windows
  sync_block();
  store_windows(true);
  if constexpr (S::kShares) {
    store_windows(false);  // while the others' shares come
    barrier_wait(&shared.columns, 0);
  }

  // The recurrence. A lane's sum of squares is of the rows whose output it knows.
  float u[S::kOwned];
  float squares = 0.0f;
  const auto take = [&](int pass) {
    if constexpr (kBulk) {
      if (live) barrier_wait(&shared.state[pass], 0);
      const unsigned char* stage = stages + pass * Cfg::kBlockM * S::kRowBytes;
#pragma unroll
      for (int r = 0; r < S::kRows; ++r)
#pragma unroll
        for (int v = 0; v < S::kVectors; ++v)
          tile.raw[r][v] =
              live && Step::inside(v, column)
                  ? load_shared(stage + Step::element(r, v, lane_row, column) * static_cast<int>(sizeof(State)))
                  : Vec16{};
    }
    at.step(tile, scalars, state + pass * Cfg::kBlockM * Cfg::kDstate, live, pass, u);
#pragma unroll
    for (int i = 0; i < S::kOwned; ++i) {
      squares = fma_f32(u[i], u[i], squares);
      if constexpr (S::kPasses > 1)
        if (at.owner) shared.held[pass * Cfg::kBlockM + at.own_row + i] = u[i];
    }
  };
  if constexpr (S::kPasses == 1) {
    take(0);
  } else {
    [[maybe_unused]] LayerTile<Cfg> ahead;
    LayerInputs<Cfg> in_ahead;
#pragma unroll 1
    for (int pass = 0; pass < S::kPasses; ++pass) {
      const bool more = pass + 1 < S::kPasses;
      if (more) {
        at.load_scalars(in_ahead, pass + 1);
        at.load_inputs(in_ahead, pass + 1);
        if constexpr (!kBulk) at.load_state(ahead, state + (pass + 1) * Cfg::kBlockM * Cfg::kDstate, live);
      }
      take(pass);
      if (more) scalars = LayerScalars<Cfg>(in_ahead);
      if constexpr (!kBulk) tile = ahead;
    }
  }

  // The sum over the norm's channels. kCopies neighbouring lanes know the same rows.
  if constexpr (Cfg::kHasNorm) {
    constexpr int kCopies = S::kLanes * S::kOwned / S::kRows;
#pragma unroll
    for (int step = 16; step >= kCopies; step /= 2) squares += shuffle_xor(squares, step);
    if constexpr (kExchange) {
      if (lane_index() < Cfg::kCluster)
        cluster_store_async_b32(cluster_address(&shared.sum[cluster_rank() * Cfg::kWarps + warp], lane_index()),
                                float_bits(squares), cluster_address(&shared.sums, lane_index()));
    } else {
      if (lane_index() == 0) shared.sum[warp] = squares;
    }
  } else if constexpr (kClustered && !kSends) {
    cluster_wait();
  }
  float scale = 1.0f;
  if constexpr (Cfg::kHasNorm) {
    if constexpr (kExchange)
      barrier_wait(&shared.sums, 0);
    else
      sync_block();
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < (S::kSums + 31) / 32; ++i)
      if (lane_index() + 32 * i < S::kSums) sum += shared.sum[lane_index() + 32 * i];
    sum = sum_lanes(sum);
    scale = rsqrt_fast_f32(sum * (1.0f / static_cast<float>(Cfg::kNormRows)) + Cfg::norm_eps());
  }
  if constexpr (S::kPasses == 1) {
    at.write(u, norm, scalars.norm_gate, scale, 0);
  } else {
#pragma unroll 1
    for (int pass = 0; pass < S::kPasses; ++pass) {
      at.load_norm(norm, pass);
      [[maybe_unused]] typename Cfg::Input z[S::kOwned];
      float gate[S::kOwned];
      if constexpr (Cfg::kHasNormGate && Cfg::kNormBeforeGate) at.load_z(z, pass);
#pragma unroll
      for (int i = 0; i < S::kOwned; ++i) {
        if constexpr (Cfg::kHasNormGate && Cfg::kNormBeforeGate) gate[i] = Cfg::norm_gate(widen(z[i]));
        u[i] = at.owner ? shared.held[pass * Cfg::kBlockM + at.own_row + i] : 0.0f;
      }
      at.write(u, norm, gate, scale, pass);
    }
  }
  // All sums have come, so every block of the cluster has read its group's windows.
  if (!S::kShares && at.first % S::kGroupRows == 0) store_windows(false);
}
