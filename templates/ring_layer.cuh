#pragma once
#include "device/approx.cuh"
#include "device/barrier.cuh"
#include "device/basic.cuh"
#include "device/cluster.cuh"
#include "device/convert.cuh"
#include "device/memory.cuh"
#include "device/scalar.cuh"
#include "device/shuffle.cuh"
#include "fast_silu.cuh"
#include "launch.cuh"
#include "maths.cuh"
#include "ring.cuh"
#include "ring_layer_args.cuh"
// One decode step of a whole state-space layer with a ring, kTokens tokens a request, in one launch: the convolution
// over x, B and C, the ring's step (ring.cuh), the gate, and the norm over groups of channels.
//
//   stream = the window's last kConvWidth - 1 entries, then the step's tokens       each channel
//   v[t]   = round(Cfg::activation(bias + sum over k of w[k] * stream[t + k]))
//   y      = round(ring step of x, B and C of v)
//   u      = y * Cfg::norm_gate(z)
//   out    = u / sqrt(mean of u * u over a token's channels of a norm group + eps) * norm_weight + norm_bias
//
// or, where kNormBeforeGate, out = (y / sqrt(mean of y * y ...) * norm_weight + norm_bias) * Cfg::norm_gate(z). What a
// chain of kernels would pass on in the input's dtype is rounded to it here.
//
// A cluster of kCluster blocks takes the kNormRows channels of x that share a norm (those of one group's B and C, where
// there is no norm), of one request; a block kBlockM of them: rows of one head, or whole heads side by side.
//
// - Convolution: first, a word of two channels and kPartTokens of the tokens a thread, from registers to shared memory.
//   A block has the channels of its own rows of x, and all of its group's B and C, which its cluster's blocks repeat.
//   The window of B and C is written by the group's first block alone, after all blocks of the cluster have read it.
// - Nothing waits for a value but for the slot's index until all loads are under way.
// - Norm: each block sends its sums of squares, one a token, to all blocks of the cluster, where they count into an
//   mbarrier; all are then added in the same order everywhere. y stays in registers.

// Sizes that follow from Cfg.
template <class Cfg>
struct RingLayerShape {
  using R = RingShape<Cfg>;
  static constexpr int kThreads = 32 * Cfg::kWarps;
  static constexpr int kGroupRows = Cfg::kHeadsPerGroup * Cfg::kHeadDim;  // that share B and C
  static constexpr int kHistory = Cfg::kHasConv ? Cfg::kConvWidth - 1 : 0;

  // The channels that a block needs: its rows of x, then B and C of its group; an item is a word of two of them and a
  // part of the tokens, of which the special functions of a thread are the more the longer it is.
  static constexpr int kWords = (Cfg::kBlockM + 2 * Cfg::kDstate) / 2;
  static constexpr bool kHalved = Cfg::kTokens % 2 == 0 && Cfg::kTokens / 2 >= kHistory && Cfg::kHasConv &&
                                  Cfg::kTokens >= Cfg::kConvState && Cfg::kConvState <= kHistory + Cfg::kTokens / 2;
  static constexpr int kParts = kHalved && Cfg::kTokens >= 4 ? 2 : 1;
  static constexpr int kPartTokens = Cfg::kTokens / kParts;
  static constexpr int kItems = kWords * kParts;
  static constexpr int kRounds = (kItems + kThreads - 1) / kThreads;

  static constexpr int kRowTokens = 8 * R::kNewTiles;  // rows of x for tokens; those past the last one are zeros
  // A row of B or C lies so that the lanes of a quarter warp, four on each of two rows, meet no bank twice.
  static constexpr int kColumnRow = Cfg::kDstate + (96 - Cfg::kDstate % 64) % 64;
  static constexpr int kQuads = (Cfg::kTokens + 3) / 4;  // of the sums of tokens, that go to another block at once
  static constexpr int kSentBytes = 16 * kQuads * Cfg::kCluster;

  static_assert(sizeof(typename Cfg::Input) == 2 && !Cfg::kVarlen && Cfg::kHeadsPerBlock == 1 && R::kDirect);
  static_assert(Cfg::kNormRows % kGroupRows == 0 && kGroupRows % Cfg::kBlockM == 0);
  static_assert(Cfg::kNormRows == Cfg::kCluster * Cfg::kBlockM);
};

template <class Cfg>
struct RingLayerShared : RingShared<Cfg> {
  using L = RingLayerShape<Cfg>;
  alignas(16) typename Cfg::Input columns[2][Cfg::kTokens][L::kColumnRow];  // B, C as the step takes them
  float squares[Cfg::kWarps][L::kRowTokens];                                // a warp's sums, of each token
  alignas(16) float sum[Cfg::kCluster][4 * L::kQuads];                      // a block's
  Barrier sums;                                                             // that they have come
};

// The convolution of two neighbouring channels, a word, over a part of the tokens.
template <class Cfg>
struct RingConvItem {
  using L = RingLayerShape<Cfg>;
  using Input = typename Cfg::Input;
  static constexpr int kHistory = L::kHistory, kState = Cfg::kConvState;

  int channel;  // the first
  int part;
  u32 entry[kHistory + L::kPartTokens];  // of the stream, from kHistory before the part's first token on; a word each
  u32 window[kState];  // of the first part, as it lies: channels first [2][kState] elements, last [kState][2]
  u32 weight[Cfg::kConvWidth], bias;

  SSMJIT_DEVICE void load_weights(const RingLayerArgs& args) {
    load_now<Cfg::kConvWidth>(static_cast<const Input*>(args.conv_weight) + static_cast<i64>(channel) * Cfg::kConvWidth,
                              weight);
    if constexpr (Cfg::kConvBias) bias = load_now_b32(static_cast<const Input*>(args.conv_bias) + channel);
  }
  SSMJIT_DEVICE void load_window(const Input* slot, int channels) {
    if (L::kParts > 1 && part != 0) return;
    if constexpr (Cfg::kConvChannelsLast) {
#pragma unroll
      for (int k = 0; k < kState; ++k) window[k] = load_now_b32(slot + static_cast<i64>(k) * channels + channel);
    } else {
      load_now<kState>(slot + static_cast<i64>(channel) * kState, window);
    }
  }
  // `x`: the request's first token.
  SSMJIT_DEVICE void load_tokens(const Input* x, int token_stride) {
    const Input* own = x + channel + part * L::kPartTokens * token_stride;
    if (L::kParts > 1 && part != 0) {
#pragma unroll
      for (int k = 0; k < kHistory; ++k) entry[k] = load_now_b32(own + (k - kHistory) * token_stride);
    }
#pragma unroll
    for (int t = 0; t < L::kPartTokens; ++t) entry[kHistory + t] = load_now_b32(own + t * token_stride);
  }
  // The window's entry k as a word.
  SSMJIT_DEVICE u32 window_entry(int k) const {
    if constexpr (Cfg::kConvChannelsLast) return window[k];
    const auto bits = [&](int e) { return e % 2 != 0 ? window[e / 2] >> 16 : window[e / 2] & 0xffffu; };
    return bits(k) | bits(kState + k) << 16;
  }
  SSMJIT_DEVICE void take_window() {
    if (L::kParts > 1 && part != 0) return;
#pragma unroll
    for (int k = 0; k < kHistory; ++k) entry[k] = window_entry(kState - kHistory + k);
  }
  SSMJIT_DEVICE u32 result(int t) const {
    float sum[2] = {0.0f, 0.0f};
    if constexpr (Cfg::kConvBias) unpack_word(bias, sum, Input{});
#pragma unroll
    for (int k = 0; k < Cfg::kConvWidth; ++k) {
      float in[2];
      unpack_word(entry[t + k], in, Input{});
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int e = c * Cfg::kConvWidth + k;
        float w[2];
        unpack_word(weight[e / 2], w, Input{});
        sum[c] = fma_f32(w[e % 2], in[c], sum[c]);
      }
    }
    sum[0] = Cfg::activation(sum[0]);
    sum[1] = Cfg::activation(sum[1]);
    return pack_word(sum, Input{});
  }
  // The last kState entries of window and tokens, by who has the last part.
  SSMJIT_DEVICE void store_window(Input* slot, int channels) const {
    if (L::kParts > 1 && part + 1 != L::kParts) return;
    constexpr int kFirst = kHistory + L::kPartTokens - kState;  // entry of the new window's first
    u32 next[kState];
#pragma unroll
    for (int j = 0; j < kState; ++j)
      next[j] = kFirst + j >= 0 ? entry[kFirst + j < 0 ? 0 : kFirst + j]
                                : window_entry(kFirst + j >= 0 ? 0 : Cfg::kTokens + j);
    u32* const to = reinterpret_cast<u32*>(slot);
    if constexpr (Cfg::kConvChannelsLast) {
#pragma unroll
      for (int j = 0; j < kState; ++j) to[(static_cast<i64>(j) * channels + channel) / 2] = next[j];
    } else {
      const auto bits = [&](int e) { return e < kState ? next[e] & 0xffffu : next[e - kState] >> 16; };
#pragma unroll
      for (int w = 0; w < kState; ++w)
        to[static_cast<i64>(channel / 2) * kState + w] = bits(2 * w) | bits(2 * w + 1) << 16;
    }
  }
};
// Without a convolution x, B and C are taken as they are.
template <class Cfg>
struct RingPlainItem {
  u32 entry[Cfg::kTokens];
};
template <class Cfg, bool kConv>
struct RingItemOf {
  using Type = RingConvItem<Cfg>;
};
template <class Cfg>
struct RingItemOf<Cfg, false> {
  using Type = RingPlainItem<Cfg>;
};

// What ring_step() meets around it.
template <class Cfg>
struct RingLayer {
  static constexpr bool kIsLayer = true;
  using Args = RingLayerArgs;
  using Shared = RingLayerShared<Cfg>;
  using L = RingLayerShape<Cfg>;
  using R = RingShape<Cfg>;
  using Step = RingStep<Cfg>;
  using Input = typename Cfg::Input;
  using Item = typename RingItemOf<Cfg, Cfg::kHasConv>::Type;
  static constexpr bool kClustered = Cfg::kCluster > 1;
  static constexpr bool kExchange = kClustered && Cfg::kHasNorm;

  const RingLayerArgs& args;
  Shared& shared;
  int thread, first;  // the block's first channel of x
  Input* windows;
  Item item[L::kRounds];
  u32 z[Cfg::kHasNormGate ? R::kNewTiles : 1][R::kTiles];  // of the lane's outputs, as held; words
  u32 weight[R::kTiles], bias[R::kTiles];
  float held[R::kNewTiles][R::kTiles][2];  // what the norm scales: tokens g + 8 n by columns 2 q and 2 q + 1 of a tile
  float squares[R::kNewTiles];

  SSMJIT_DEVICE RingLayer(const RingLayerArgs& given_args, Shared& given_shared)
      : args(given_args), shared(given_shared) {}

  SSMJIT_DEVICE int groups() const { return args.ring.nheads / Cfg::kHeadsPerGroup; }
  SSMJIT_DEVICE int channels() const { return groups() * (L::kGroupRows + 2 * Cfg::kDstate); }
  // Items go to the last warps first: the first ones sum the ring's rows, too.
  SSMJIT_DEVICE int item_of(int i) const { return L::kThreads * (i + 1) - 32 - thread / 32 * 32 + thread % 32; }
  SSMJIT_DEVICE static bool exists(int id) { return L::kItems % L::kThreads == 0 || id < L::kItems; }
  SSMJIT_DEVICE static int word_of(int id) { return L::kParts == 1 || id < L::kWords ? id : id - L::kWords; }
  // The channel of the block's word, among all x, B and C of the request.
  SSMJIT_DEVICE int channel(int word) const {
    const int c = 2 * word, in_group = c - Cfg::kBlockM;
    const int B = groups() * L::kGroupRows + first / L::kGroupRows * Cfg::kDstate + in_group;
    return in_group < 0 ? first + c : in_group < Cfg::kDstate ? B : B + (groups() - 1) * Cfg::kDstate;
  }
  template <class Visit>
  SSMJIT_DEVICE void for_items(const Visit& visit) {
#pragma unroll
    for (int i = 0; i < L::kRounds; ++i)
      if (exists(item_of(i))) visit(item[i], item_of(i));
  }

  // ---- before the step: loads, in the order of their need ----

  SSMJIT_DEVICE void start(const Step&) {
    thread = thread_index();
    first = block_x() * Cfg::kBlockM;
    if constexpr (kExchange) {
      if (thread == 0) {
        barrier_init(&shared.sums, 1);
        barrier_init_fence();
        barrier_arrive_expect(&shared.sums, L::kSentBytes);
      }
      cluster_arrive_relaxed();  // peers may send from their wait on
    }
    if constexpr (Cfg::kHasConv) {
#pragma unroll
      for (int i = 0; i < L::kRounds; ++i) {
        const int id = item_of(i);
        item[i].channel = channel(word_of(id));
        item[i].part = L::kParts > 1 && id >= L::kWords ? 1 : 0;
      }
    }
  }
  SSMJIT_DEVICE void load_windows(int slot) {
    if constexpr (Cfg::kHasConv) {
      windows = static_cast<Input*>(args.conv_state) + slot * args.conv_state_stride;
      for_items([&](Item& one, int) { one.load_window(windows, channels()); });
      sync_warp();  // the convolution, which waits for these, does not wait for what is asked for behind them
    }
  }
  SSMJIT_DEVICE void load_weights() {
    if constexpr (Cfg::kHasConv) for_items([&](Item& one, int) { one.load_weights(args); });
  }
  SSMJIT_DEVICE void load_tokens(const Step& step) {
    const RingArgs& ring = args.ring;
    if constexpr (Cfg::kHasConv) {
      const Input* x = static_cast<const Input*>(ring.x) + Step::wide(step.row, ring.x_stride);
      for_items([&](Item& one, int) { one.load_tokens(x, ring.x_token_stride); });
    } else {
      for_items([&](Item& one, int id) {
        const int c = 2 * id, in_group = c - Cfg::kBlockM, of_group = first / L::kGroupRows * Cfg::kDstate;
#pragma unroll
        for (int t = 0; t < Cfg::kTokens; ++t) {
          const Input* from =
              in_group < 0
                  ? step.token(static_cast<const Input*>(ring.x), ring.x_stride, ring.x_token_stride, t, first + c)
              : in_group < Cfg::kDstate ? step.token(static_cast<const Input*>(ring.B), ring.B_stride,
                                                     ring.B_token_stride, t, of_group + in_group)
                                        : step.token(static_cast<const Input*>(ring.C), ring.C_stride,
                                                     ring.C_token_stride, t, of_group + in_group - Cfg::kDstate);
          one.entry[t] = load_now_b32(from);
        }
      });
    }
  }
  // The first of the lane's channels in tile p.
  SSMJIT_DEVICE static int own_channel(const Step& step, int p) {
    return step.head * Cfg::kHeadDim + step.first + 8 * p + 2 * step.q;
  }
  SSMJIT_DEVICE void load_z(const Step& step) {
    if constexpr (Cfg::kHasNormGate) {
#pragma unroll
      for (int n = 0; n < R::kNewTiles; ++n)
#pragma unroll
        for (int p = 0; p < R::kTiles; ++p)
          z[n][p] = load_now_b32(step.token(static_cast<const Input*>(args.ring.z), args.ring.z_stride,
                                            args.ring.z_token_stride, step.last(step.g + 8 * n), own_channel(step, p)));
    }
  }
  SSMJIT_DEVICE void load_norm(const Step& step) {
    if constexpr (Cfg::kHasNorm) {
#pragma unroll
      for (int p = 0; p < R::kTiles; ++p) {
        weight[p] = load_now_b32(static_cast<const Input*>(args.norm_weight) + own_channel(step, p));
        if constexpr (Cfg::kNormBias)
          bias[p] = load_now_b32(static_cast<const Input*>(args.norm_bias) + own_channel(step, p));
      }
    }
    // No load may move down past here, behind arithmetic that waits for another.
    sync_warp();
  }

  // ---- the convolution ----

  // Where token 0 of the block's word goes.
  SSMJIT_DEVICE u32* place(int word, int& row) {
    const int c = 2 * word, in_group = c - Cfg::kBlockM;
    if (in_group < 0) {
      row = R::kXRow / 2;
      return reinterpret_cast<u32*>(&shared.warp[c / R::kWarpRows].x[0][R::kFirstNew][c % R::kWarpRows]);
    }
    row = L::kColumnRow / 2;
    return reinterpret_cast<u32*>(&shared.columns[in_group < Cfg::kDstate ? 0 : 1][0]
                                                 [in_group < Cfg::kDstate ? in_group : in_group - Cfg::kDstate]);
  }
  SSMJIT_DEVICE void convolve(const Step&) {
    for_items([&](Item& one, int id) {
      const int word = word_of(id);
      int row;
      u32* const to = place(word, row);
      if constexpr (Cfg::kHasConv) {
        one.take_window();
#pragma unroll
        for (int t = 0; t < L::kPartTokens; ++t) to[(one.part * L::kPartTokens + t) * row] = one.result(t);
      } else {
#pragma unroll
        for (int t = 0; t < Cfg::kTokens; ++t) to[t * row] = one.entry[t];
      }
      if (L::kRowTokens > Cfg::kTokens && id < Cfg::kBlockM / 2) {
#pragma unroll
        for (int t = Cfg::kTokens; t < L::kRowTokens; ++t) to[t * row] = 0;
      }
    });
  }
  // All of the block's x, B and C are there.
  SSMJIT_DEVICE void ready() {
    if constexpr (kClustered && !kExchange) cluster_arrive_relaxed();  // this block has read the windows
    if constexpr (kExchange) cluster_wait();
    sync_block();
    store_windows(true);
  }
  SSMJIT_DEVICE void store_windows(bool of_x) {
    if constexpr (Cfg::kHasConv)
      for_items([&](const Item& one, int id) {
        if ((word_of(id) < Cfg::kBlockM / 2) == of_x) one.store_window(windows, channels());
      });
  }
  SSMJIT_DEVICE const Input* column(const Step& step, int which, int t) const {
    return &shared.columns[which][step.last(t)][step.q * R::kSpan];
  }
  SSMJIT_DEVICE const Input* B_row(const Step& step, int t) const { return column(step, 0, t); }
  SSMJIT_DEVICE const Input* C_row(const Step& step, int t) const { return column(step, 1, t); }

  // ---- gate and norm ----

  // y of token g + 8 n, columns 2 q and 2 q + 1 of tile p, as a kernel of its own would pass it on.
  SSMJIT_DEVICE void take(int n, int p, u32 word) {
    float(&u)[2] = held[n][p];
    unpack_word(word, u, Input{});
    if constexpr (Cfg::kHasNormGate && !Cfg::kNormBeforeGate) {
      float gate[2];
      unpack_word(z[n][p], gate, Input{});
#pragma unroll
      for (int e = 0; e < 2; ++e) u[e] *= Cfg::norm_gate(gate[e]);
    }
    if (p == 0) squares[n] = 0.0f;
#pragma unroll
    for (int e = 0; e < 2; ++e) squares[n] = fma_f32(u[e], u[e], squares[n]);
  }

  // The sums of all warps of the block, and of all blocks of the cluster; the lane's of tokens g + 8 n.
  SSMJIT_DEVICE void sum_squares(const Step& step, float (&sum)[R::kNewTiles]) {
#pragma unroll
    for (int n = 0; n < R::kNewTiles; ++n) {
      squares[n] = sum_lanes<4>(squares[n]);
      if (step.q == 0) shared.squares[step.warp][step.g + 8 * n] = squares[n];
      sum[n] = 0.0f;
    }
    if constexpr (!kExchange) {
      sync_block();
#pragma unroll
      for (int n = 0; n < R::kNewTiles; ++n) {
#pragma unroll
        for (int w = 0; w < Cfg::kWarps; w += 4)
          if (Cfg::kWarps % 4 == 0 || w + step.q < Cfg::kWarps) sum[n] += shared.squares[w + step.q][step.g + 8 * n];
        sum[n] = sum_lanes<4>(sum[n]);
      }
      return;
    } else {
      constexpr int kBarrier = 1, kAtOnce = 32 / L::kRowTokens;
      if (step.warp != 0) {
        arrive_named(kBarrier, L::kThreads);
      } else {
        if constexpr (Cfg::kWarps > 1)
          sync_named(kBarrier, L::kThreads);
        else
          sync_warp();
        float of_token = 0.0f;
#pragma unroll
        for (int w = 0; w < Cfg::kWarps; w += kAtOnce) {
          const int from = w + step.lane / L::kRowTokens;
          if (Cfg::kWarps % kAtOnce == 0 || from < Cfg::kWarps)
            of_token += shared.squares[from][step.lane % L::kRowTokens];
        }
#pragma unroll
        for (int lanes = L::kRowTokens; lanes < 32; lanes *= 2) of_token += shuffle_xor(of_token, lanes);
#pragma unroll
        for (int i = 0; i < (Cfg::kCluster * L::kQuads + 31) / 32; ++i) {
          const int id = step.lane + 32 * i, peer = id / L::kQuads, quad = id % L::kQuads;
          Vec16 v;
#pragma unroll
          for (int e = 0; e < 4; ++e) v.word[e] = float_bits(shuffle(of_token, 4 * quad + e));
          if (Cfg::kCluster * L::kQuads % 32 == 0 || peer < Cfg::kCluster)
            cluster_store_async(cluster_address(&shared.sum[cluster_rank()][4 * quad], peer), v,
                                cluster_address(&shared.sums, peer));
        }
      }
      barrier_wait(&shared.sums, 0);
#pragma unroll
      for (int n = 0; n < R::kNewTiles; ++n) {
        const int token = step.g + 8 * n < 4 * L::kQuads ? step.g + 8 * n : 0;
#pragma unroll
        for (int r = 0; r < Cfg::kCluster; r += 4)
          if (Cfg::kCluster % 4 == 0 || r + step.q < Cfg::kCluster) sum[n] += shared.sum[r + step.q][token];
        sum[n] = sum_lanes<4>(sum[n]);
      }
    }
  }

  // `out`: the lane's rows of the outputs, at column 2 q.
  SSMJIT_DEVICE void finish(const Step& step, Input* const (&out)[R::kNewTiles]) {
    float sum[R::kNewTiles], scale[R::kNewTiles];
    if constexpr (Cfg::kHasNorm) {
      sum_squares(step, sum);
#pragma unroll
      for (int n = 0; n < R::kNewTiles; ++n)
        scale[n] = rsqrt_fast_f32(sum[n] * (1.0f / static_cast<float>(Cfg::kNormRows)) + Cfg::norm_eps());
    }
#pragma unroll
    for (int n = 0; n < R::kNewTiles; ++n) {
      if (step.g + 8 * n >= Cfg::kTokens) continue;
#pragma unroll
      for (int p = 0; p < R::kTiles; ++p) {
        float(&v)[2] = held[n][p];
        if constexpr (Cfg::kHasNorm) {
          float w[2], b[2] = {0.0f, 0.0f}, gate[2];
          unpack_word(weight[p], w, Input{});
          if constexpr (Cfg::kNormBias) unpack_word(bias[p], b, Input{});
          if constexpr (Cfg::kHasNormGate && Cfg::kNormBeforeGate) unpack_word(z[n][p], gate, Input{});
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            v[e] = v[e] * scale[n] * w[e];
            if constexpr (Cfg::kNormBias) v[e] += b[e];
            if constexpr (Cfg::kHasNormGate && Cfg::kNormBeforeGate) v[e] *= Cfg::norm_gate(gate[e]);
          }
        }
        *reinterpret_cast<u32*>(out[n] + 8 * p) = pack_word(v, Input{});
      }
    }
    // By now every block of the cluster has read its group's windows: its sums have come, or its arrival.
    sync_warp();
    if constexpr (kClustered && !kExchange) cluster_wait();
    if (first % L::kGroupRows == 0) store_windows(false);
  }
};

// Grid: x = nheads * head_dim / block_m, in clusters of kCluster; y = batch. Block: 32 * warps threads.
template <class Cfg>
SSMJIT_DEVICE void ring_layer(const RingLayerArgs& args) {
  ring_step<Cfg, RingLayer<Cfg>>(args, args.ring);
}
