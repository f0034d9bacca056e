#pragma once
#include "device/barrier.cuh"
#include "device/basic.cuh"
#include "device/cluster.cuh"
#include "device/convert.cuh"
#include "device/memory.cuh"
#include "device/scalar.cuh"
#include "device/shuffle.cuh"
#include "device/warp.cuh"
#include "index.cuh"
#include "launch.cuh"
#include "layer.cuh"
#include "layer_tokens_args.cuh"
#include "maths.cuh"
// One decode step of a whole state-space layer, kTokens tokens a request, the state in place, in one launch: layer.cuh
// token after token, with what is shared by all tokens read once and written once.
//
//   stream = the window's last kConvWidth - 1 entries, then the step's tokens       each channel
//   v[t]   = round(Cfg::activation(bias + sum over k of w[k] * stream[t + k]))
//   h[p, n] <- decay * h[p, n] + (delta * x[p]) * B[n]                               with x, B, C of v[t]
//   y[p] = sum over n of h[p, n] * C[n];  y[p] += Cfg::skip(D, x[p]);  y[p] *= Cfg::gate(z[p]);  y = round(y)
//   u = y * Cfg::norm_gate(z);  out = u / sqrt(mean of u * u over the norm's group + eps) * norm_weight + norm_bias
//
// or, where kNormBeforeGate, out = (y / sqrt(mean of y * y ...) * norm_weight + norm_bias) * Cfg::norm_gate(z). The
// state stays in fp32 from the first token to the last and is rounded where it is stored, once. What a chain of kernels
// would pass on in the input's dtype is rounded to it here.
//
// Clusters, blocks and warps share a request's channels as in layer.cuh. A block goes through three phases, a barrier
// between each two:
// - convolution: a word of channels (1 or 2) a thread, all its tokens, into shared memory. All that it needs is under
//   way at once, and behind it the states;
// - recurrence: a lane's rows, token after token; delta and decay of token t are computed by lane t. y goes to shared
//   memory, so that no lane waits for gates or norms;
// - gate and norm: a warp takes 32 words of a token's rows at once. Their sum of squares goes to all blocks of the
//   cluster, where it counts into an mbarrier; all sums are added in the same order everywhere.

// Sizes that follow from Cfg.
template <class Cfg>
struct LayerTokensShape {
  using Input = typename Cfg::Input;
  static constexpr int kTokens = Cfg::kTokens;
  static constexpr int kVecElements = 16 / static_cast<int>(sizeof(typename Cfg::State));
  static constexpr int kRowVectors = Cfg::kDstate / kVecElements;
  static constexpr int kLanes = Cfg::kLanesPerRow;
  static constexpr int kVectors = (kRowVectors + kLanes - 1) / kLanes;  // a lane and row; the last may be past the end
  static constexpr bool kRagged = kRowVectors % kLanes != 0;
  static constexpr int kGroupRows = Cfg::kHeadsPerGroup * Cfg::kHeadDim;  // that share B and C
  static constexpr int kBlockRows = Cfg::kNormRows / Cfg::kCluster;
  static constexpr int kPasses = kBlockRows / Cfg::kBlockM;
  static constexpr int kRowsPerWarp = Cfg::kBlockM / Cfg::kWarps;
  static constexpr int kRows = kRowsPerWarp / (32 / kLanes);                     // a lane and pass
  static constexpr int kTurn = Cfg::kStages < kTokens ? Cfg::kStages : kTokens;  // tokens that a turn of the loop takes
  using Sums = RowSums<kRows, kLanes>;
  static constexpr int kOwned = Sums::owned();

  // The channels that a block needs: its rows of x, then B and C of its group, a word of them an item.
  static constexpr int kPer = kPerWord<Input>;
  static constexpr int kChannels = kBlockRows + 2 * Cfg::kDstate;
  static constexpr int kItems = kChannels / kPer;
  static constexpr int kThreads = 32 * Cfg::kWarps;
  static constexpr int kRounds = (kItems + kThreads - 1) / kThreads;

  // Of the last phase: the words of a token's rows, 32 of them a part, the parts of all tokens in turn over the warps.
  static constexpr int kRowWords = kBlockRows / kPer;
  static constexpr int kParts = (kRowWords + 31) / 32;
  static constexpr int kTurns = (kTokens * kParts + Cfg::kWarps - 1) / Cfg::kWarps;
  static constexpr int kSums = Cfg::kCluster * kParts;  // that a token's norm adds
  static_assert(Cfg::kNormRows % kGroupRows == 0 && kGroupRows % kBlockRows == 0 && kTokens <= 32);
  static_assert(kBlockRows % Cfg::kBlockM == 0 && Cfg::kHeadDim % kRowsPerWarp == 0 && kRows > 0);
};

template <class Cfg>
struct LayerTokensShared {
  using S = LayerTokensShape<Cfg>;
  alignas(16) typename Cfg::Input channels[Cfg::kTokens][S::kChannels];  // x, B, C as the recurrence takes them
  alignas(16) float y[Cfg::kTokens][S::kBlockRows];                      // before the gate
  float sum[Cfg::kTokens][S::kSums];                                     // of squares, a part each: [cluster][parts]
  Barrier sums;                                                          // that they have come
};

// The tokens of a word of neighbouring channels, and what their convolution needs besides.
template <class Cfg, bool kConv>
struct TokensItem {
  using S = LayerTokensShape<Cfg>;
  using Input = typename Cfg::Input;
  static constexpr int kPer = S::kPer;
  static constexpr int kState = Cfg::kConvState;

  int channel;  // its first
  u32 token[Cfg::kTokens];
  u32 window[kState];  // channels first: [kPer][kState] elements; last: [kState][kPer]
  u32 weight[Cfg::kConvWidth];
  u32 bias[1];

  SSMJIT_DEVICE static int at(int channel, int k) {
    return Cfg::kConvChannelsLast ? k * kPer + channel : channel * kState + k;
  }
  SSMJIT_DEVICE void load_weights(const LayerTokensArgs& args) {
    load_now<Cfg::kConvWidth>(static_cast<const Input*>(args.conv_weight) + static_cast<i64>(channel) * Cfg::kConvWidth,
                              weight);
    if constexpr (Cfg::kConvBias) bias[0] = load_now_b32(static_cast<const Input*>(args.conv_bias) + channel);
  }
  SSMJIT_DEVICE void load_window(const Input* slot, int channels, bool live) {
#pragma unroll
    for (int k = 0; k < kState; ++k) window[k] = 0;
    if (!live) return;
    if constexpr (Cfg::kConvChannelsLast) {
#pragma unroll
      for (int k = 0; k < kState; ++k) window[k] = load_now_b32(slot + static_cast<i64>(k) * channels + channel);
    } else {
      load_now<kState>(slot + static_cast<i64>(channel) * kState, window);
    }
  }
  // The last kState entries of window and tokens.
  SSMJIT_DEVICE void store_window(Input* slot, int channels) const {
    u32 next[kState];
    const auto entry = [&](int c, int k) {
      const int t = Cfg::kTokens - kState + k;
      return t < 0 ? element_bits<Input>(window, at(c, t < 0 ? kState + t : 0))
                   : element_bits<Input>(token + (t < 0 ? 0 : t), c);
    };
#pragma unroll
    for (int w = 0; w < kState; ++w) {
      const auto element = [&](int i) {
        return Cfg::kConvChannelsLast ? entry(i % kPer, i / kPer) : entry(i / kState, i % kState);
      };
      if constexpr (kPer == 1)
        next[w] = element(w);
      else
        next[w] = element(2 * w) | element(2 * w + 1) << 16;
    }
    u32* const p = reinterpret_cast<u32*>(slot);
#pragma unroll
    for (int w = 0; w < kState; ++w)
      p[Cfg::kConvChannelsLast ? (static_cast<i64>(w) * channels + channel) / kPer
                               : static_cast<i64>(channel / kPer) * kState + w] = next[w];
  }
  // v[t] of both channels.
  SSMJIT_DEVICE u32 result(int t) const {
    float v[kPer];
#pragma unroll
    for (int c = 0; c < kPer; ++c) {
      float sum = 0.0f;
      if constexpr (Cfg::kConvBias) sum = element_value<Input>(bias, c);
#pragma unroll
      for (int k = 0; k < Cfg::kConvWidth; ++k) {
        const int from = t - Cfg::kConvWidth + 1 + k;  // the token; below 0 an entry of the window
        const float in = from < 0 ? element_value<Input>(window, at(c, from < 0 ? kState + from : 0))
                                  : element_value<Input>(token + (from < 0 ? 0 : from), c);
        sum = fma_f32(element_value<Input>(weight, c * Cfg::kConvWidth + k), in, sum);
      }
      v[c] = Cfg::activation(sum);
    }
    return pack_word(v, Input{});
  }
};
// Without a convolution x, B and C are taken as they are.
template <class Cfg>
struct TokensItem<Cfg, false> {
  u32 token[Cfg::kTokens];
  SSMJIT_DEVICE u32 result(int t) const { return token[t]; }
};

// The scalars of the head that a warp's rows are of; dt of token t in lane t.
template <class Cfg>
struct TokensHead {
  typename Cfg::Dt dt;
  typename Cfg::Weight dt_bias, D;
  float A;
};

template <class Cfg>
struct TokensTile {
  using S = LayerTokensShape<Cfg>;
  Vec16 raw[S::kRows][S::kVectors];
};

template <class Cfg>
struct LayerTokensStep {
  using S = LayerTokensShape<Cfg>;
  using State = typename Cfg::State;
  using Input = typename Cfg::Input;
  using Item = TokensItem<Cfg, Cfg::kHasConv>;

  const LayerTokensArgs& args;
  LayerTokensShared<Cfg>& shared;
  int row;       // request
  int first;     // the block's first channel of x
  int warp;      // of the block
  int lane_row;  // the lane's first row within the kBlockM of a pass
  int column;    // the lane's place among the lanes of a row
  int own_row;   // the first row whose y the lane knows, as lane_row
  bool owner;    // whether it passes them on

  static constexpr bool kUsesZ = Cfg::kHasGate || Cfg::kHasNormGate;

  SSMJIT_DEVICE int element(int r, int v) const {
    return (lane_row + r) * Cfg::kDstate + (v * S::kLanes + column) * S::kVecElements;
  }
  SSMJIT_DEVICE bool inside(int v) const {
    return !S::kRagged || v + 1 < S::kVectors || v * S::kLanes + column < S::kRowVectors;
  }
  SSMJIT_DEVICE int group() const { return first / S::kGroupRows; }
  SSMJIT_DEVICE int groups() const { return args.nheads / Cfg::kHeadsPerGroup; }

  // ---- the convolution's channels ----

  SSMJIT_DEVICE static bool exists(int i) { return S::kItems % S::kThreads == 0 || i < S::kItems; }
  template <class Visit>
  SSMJIT_DEVICE void for_items(Item (&item)[S::kRounds], const Visit& visit) const {
#pragma unroll
    for (int i = 0; i < S::kRounds; ++i) {
      const int id = thread_index() + i * S::kThreads;
      if (exists(id)) visit(item[i], id);
    }
  }
  // The first channel of item i of the block, among all x, B and C of the request.
  SSMJIT_DEVICE int channel(int i) const {
    const int c = i * S::kPer, in_group = c - S::kBlockRows;
    const int B = groups() * S::kGroupRows + group() * Cfg::kDstate + in_group;
    return in_group < 0 ? first + c : in_group < Cfg::kDstate ? B : B + (groups() - 1) * Cfg::kDstate;
  }
  SSMJIT_DEVICE int channels() const { return groups() * (S::kGroupRows + 2 * Cfg::kDstate); }
  SSMJIT_DEVICE void load_tokens(Item& item, int i) const {
    const void* base = args.x;
    i64 stride = args.x_stride, token_stride = args.x_token_stride;
    int at = 0;
    if constexpr (Cfg::kHasConv) {
      at = item.channel;
    } else {
      const int c = i * S::kPer, in_group = c - S::kBlockRows, of_group = group() * Cfg::kDstate;
      at = in_group < 0 ? first + c : of_group + in_group % Cfg::kDstate;
      if (in_group >= Cfg::kDstate) {
        base = args.C;
        stride = args.C_stride;
        token_stride = args.C_token_stride;
      } else if (in_group >= 0) {
        base = args.B;
        stride = args.B_stride;
        token_stride = args.B_token_stride;
      }
    }
    const Input* const from = static_cast<const Input*>(base) + row * stride + at;
#pragma unroll
    for (int t = 0; t < Cfg::kTokens; ++t) item.token[t] = load_now_b32(from + t * token_stride);
  }

  // ---- the recurrence ----

  SSMJIT_DEVICE int head(int pass) const {
    return (first + pass * Cfg::kBlockM + warp * S::kRowsPerWarp) / Cfg::kHeadDim;
  }
  SSMJIT_DEVICE void load_weights(TokensHead<Cfg>& of, int pass) const {
    const int h = head(pass);
    load_now(static_cast<const float*>(args.A) + h, of.A);
    if constexpr (Cfg::kHasDtBias) load_now(static_cast<const typename Cfg::Weight*>(args.dt_bias) + h, of.dt_bias);
    if constexpr (Cfg::kHasD) load_now(static_cast<const typename Cfg::Weight*>(args.D) + h, of.D);
  }
  SSMJIT_DEVICE void load_dt(TokensHead<Cfg>& of, int pass) const {
    const int t = lane_index() < Cfg::kTokens ? lane_index() : Cfg::kTokens - 1;
    load_now(
        static_cast<const typename Cfg::Dt*>(args.dt) + row * args.dt_stride + t * args.dt_token_stride + head(pass),
        of.dt);
  }
  SSMJIT_DEVICE void load_state(TokensTile<Cfg>& tile, const State* from, bool live) const {
#pragma unroll
    for (int r = 0; r < S::kRows; ++r)
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v)
        tile.raw[r][v] = live && inside(v) ? load_global<Cfg::kStreaming>(from + element(r, v)) : Vec16{};
  }

  // All tokens on the lane's elements, the new state to memory, y of the rows that the lane owns to shared memory.
  SSMJIT_DEVICE void advance(TokensTile<Cfg>& tile, const TokensHead<Cfg>& of, State* to, bool live, int pass) const {
    constexpr int kPer = kPerWord<State>;
    float dt_bias = 0.0f, D = 0.0f;
    if constexpr (Cfg::kHasDtBias) dt_bias = widen(of.dt_bias);
    if constexpr (Cfg::kHasD) D = widen(of.D);
    const float of_delta = Cfg::delta(widen(of.dt), dt_bias);  // of the lane's token
    const float of_decay = Cfg::decay(of.A, widen(of.dt), of_delta);
    float h[S::kRows][S::kVectors][S::kVecElements];
#pragma unroll
    for (int r = 0; r < S::kRows; ++r)
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v)
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          float part[kPer];
          unpack_word(tile.raw[r][v].word[w], part, State{});
#pragma unroll
          for (int e = 0; e < kPer; ++e) h[r][v][w * kPer + e] = part[e];
        }
#pragma unroll S::kTurn
    for (int t = 0; t < Cfg::kTokens; ++t) {
      const float delta = shuffle(of_delta, t), decay = shuffle(of_decay, t);
      const Input* const x_rows = shared.channels[t] + pass * Cfg::kBlockM;
      const Input* const columns = shared.channels[t] + S::kBlockRows;
      float x[S::kRows], B[S::kVectors][S::kVecElements], C[S::kVectors][S::kVecElements];
      widen_shared(x_rows + lane_row, x);
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v) {
        const int at = inside(v) ? (v * S::kLanes + column) * S::kVecElements : 0;
        widen_shared(columns + at, B[v]);
        widen_shared(columns + Cfg::kDstate + at, C[v]);
      }
      float y[S::kRows];
#pragma unroll
      for (int r = 0; r < S::kRows; ++r) {
        const float u = delta * x[r];
        y[r] = 0.0f;
#pragma unroll
        for (int v = 0; v < S::kVectors; ++v) {
          if (!inside(v)) continue;
#pragma unroll
          for (int e = 0; e < S::kVecElements; ++e) {
            h[r][v][e] = fma_f32(h[r][v][e], decay, u * B[v][e]);
            y[r] = fma_f32(h[r][v][e], C[v][e], y[r]);
          }
        }
      }
      S::Sums::sum(y, column);
      if (owner) {
#pragma unroll
        for (int i = 0; i < S::kOwned; ++i) {
          float v = y[i];
          if constexpr (Cfg::kHasSkip) v += Cfg::skip(D, widen(x_rows[own_row + i]));
          shared.y[t][pass * Cfg::kBlockM + own_row + i] = v;
        }
      }
    }
    if (!live) return;
#pragma unroll
    for (int r = 0; r < S::kRows; ++r)
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v) {
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          float part[kPer];
#pragma unroll
          for (int e = 0; e < kPer; ++e) part[e] = h[r][v][w * kPer + e];
          tile.raw[r][v].word[w] = pack_word(part, State{});
        }
        if (inside(v)) store_global<Cfg::kStreaming>(to + element(r, v), tile.raw[r][v]);
      }
  }

  // ---- gate and norm ----

  // The part of a token's rows that the warp takes in a turn, and the lane's word of it.
  struct Part {
    int token, part, word;  // word: among those of the block's rows
    bool any, exists;       // whether there is such a part; such a word

    SSMJIT_DEVICE int channel() const { return word * S::kPer; }
  };
  SSMJIT_DEVICE Part part_of(int turn) const {
    const int i = turn * Cfg::kWarps + warp;
    const bool any = S::kTokens * S::kParts % Cfg::kWarps == 0 || i < S::kTokens * S::kParts;
    const int word = i % S::kParts * 32 + lane_index();
    return {i / S::kParts, i % S::kParts, word, any, any && (S::kRowWords % 32 == 0 || word < S::kRowWords)};
  }
  template <class Visit>
  SSMJIT_DEVICE void for_parts(const Visit& visit) const {
#pragma unroll
    for (int turn = 0; turn < S::kTurns; ++turn) {
      const Part part = part_of(turn);
      if (part.exists) visit(turn, part);
    }
  }
  SSMJIT_DEVICE void load_norm(u32 (&weight)[S::kTurns], u32 (&bias)[S::kTurns]) const {
    if constexpr (Cfg::kHasNorm)
      for_parts([&](int turn, const Part& part) {
        weight[turn] = load_now_b32(static_cast<const Input*>(args.norm_weight) + first + part.channel());
        if constexpr (Cfg::kNormBias)
          bias[turn] = load_now_b32(static_cast<const Input*>(args.norm_bias) + first + part.channel());
      });
  }
  SSMJIT_DEVICE void load_z(u32 (&z)[S::kTurns]) const {
    if constexpr (kUsesZ)
      for_parts([&](int turn, const Part& part) {
        z[turn] = load_now_b32(static_cast<const Input*>(args.z) + row * args.z_stride +
                               part.token * args.z_token_stride + first + part.channel());
      });
  }
  SSMJIT_DEVICE u32* output(const Part& part) const {
    return reinterpret_cast<u32*>(static_cast<Input*>(args.out) + row * args.out_stride +
                                  part.token * args.out_token_stride + first + part.channel());
  }
  SSMJIT_DEVICE void write_zeros() const {
    for_parts([&](int, const Part& part) { *output(part) = 0; });
  }

  // y of the lane's words, as a kernel of its own would pass it on, times the norm's gate where that comes first; and
  // the sums of squares of the warp's parts, to all blocks of the cluster.
  SSMJIT_DEVICE void square(const u32 (&z)[S::kTurns], float (&u)[S::kTurns][S::kPer],
                            float (&gate)[S::kTurns][S::kPer]) const {
    constexpr bool kExchange = Cfg::kCluster > 1 && Cfg::kHasNorm;
#pragma unroll
    for (int turn = 0; turn < S::kTurns; ++turn) {
      const Part part = part_of(turn);
      float squares = 0.0f;
      if (part.exists) {
        float of_z[S::kPer];
        if constexpr (kUsesZ) unpack_word(z[turn], of_z, Input{});
        widen_shared(shared.y[part.token] + part.channel(), u[turn]);
        if constexpr (Cfg::kHasGate) {
#pragma unroll
          for (int e = 0; e < S::kPer; ++e) u[turn][e] *= Cfg::gate(of_z[e]);
        }
        unpack_word(pack_word(u[turn], Input{}), u[turn], Input{});
#pragma unroll
        for (int e = 0; e < S::kPer; ++e) {
          if constexpr (Cfg::kHasNormGate) gate[turn][e] = Cfg::norm_gate(of_z[e]);
          if constexpr (Cfg::kHasNormGate && !Cfg::kNormBeforeGate) u[turn][e] *= gate[turn][e];
          squares = fma_f32(u[turn][e], u[turn][e], squares);
        }
      }
      if constexpr (Cfg::kHasNorm) {
        squares = sum_lanes(squares);
        if (!part.any) continue;
        if constexpr (kExchange) {
          if (lane_index() < Cfg::kCluster)
            cluster_store_async_b32(
                cluster_address(&shared.sum[part.token][cluster_rank() * S::kParts + part.part], lane_index()),
                float_bits(squares), cluster_address(&shared.sums, lane_index()));
        } else {
          if (lane_index() == 0) shared.sum[part.token][part.part] = squares;
        }
      }
    }
    if constexpr (kExchange)
      barrier_wait(&shared.sums, 0);
    else if constexpr (Cfg::kHasNorm)
      sync_block();
  }
  SSMJIT_DEVICE void write(const float (&u)[S::kTurns][S::kPer], const float (&gate)[S::kTurns][S::kPer],
                           const u32 (&weight)[S::kTurns], const u32 (&bias)[S::kTurns]) const {
#pragma unroll
    for (int turn = 0; turn < S::kTurns; ++turn) {
      const Part part = part_of(turn);
      float scale = 1.0f;
      if constexpr (Cfg::kHasNorm) {
        float sum = 0.0f;
        if (part.any) {
#pragma unroll
          for (int i = 0; i < (S::kSums + 31) / 32; ++i)
            if (lane_index() + 32 * i < S::kSums) sum += shared.sum[part.token][lane_index() + 32 * i];
        }
        sum = sum_lanes(sum);
        scale = rsqrt_fast_f32(sum * (1.0f / static_cast<float>(Cfg::kNormRows)) + Cfg::norm_eps());
      }
      if (!part.exists) continue;
      float v[S::kPer];
      [[maybe_unused]] float w[S::kPer], b[S::kPer];
      if constexpr (Cfg::kHasNorm) unpack_word(weight[turn], w, Input{});
      if constexpr (Cfg::kHasNorm && Cfg::kNormBias) unpack_word(bias[turn], b, Input{});
#pragma unroll
      for (int e = 0; e < S::kPer; ++e) {
        v[e] = u[turn][e];
        if constexpr (Cfg::kHasNorm) {
          v[e] = v[e] * scale * w[e];
          if constexpr (Cfg::kNormBias) v[e] += b[e];
          if constexpr (Cfg::kHasNormGate && Cfg::kNormBeforeGate) v[e] *= gate[turn][e];
        }
      }
      *output(part) = pack_word(v, Input{});
    }
  }
};

// Grid: x = nheads * head_dim / block rows, in clusters of kCluster; y = batch. Block: 32 * warps threads.
template <class Cfg>
SSMJIT_DEVICE void layer_tokens(const LayerTokensArgs& args) {
  using S = LayerTokensShape<Cfg>;
  using State = typename Cfg::State;
  using Input = typename Cfg::Input;
  using Step = LayerTokensStep<Cfg>;
  constexpr bool kClustered = Cfg::kCluster > 1;
  constexpr bool kExchange = kClustered && Cfg::kHasNorm;
  static_assert(Cfg::kStatePath == StatePath::direct);
  __shared__ LayerTokensShared<Cfg> shared;

  const int thread = thread_index();
  const int warp = thread / 32;
  const int column = lane_index() % S::kLanes;
  const int lane_row = warp * S::kRowsPerWarp + lane_index() / S::kLanes * S::kRows;
  const Step at{args,
                shared,
                block_y(),
                block_x() * S::kBlockRows,
                warp,
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
  if constexpr (kExchange) {
    if (thread == 0) {
      barrier_init(&shared.sums, 1);
      barrier_init_fence();
      barrier_arrive_expect(&shared.sums, 4 * Cfg::kTokens * S::kSums);
    }
    cluster_arrive_relaxed();  // peers may send from their wait on
  }

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
  State* const state = static_cast<State*>(args.state) +
                       (live ? index * args.state_stride + static_cast<i64>(at.first) * Cfg::kDstate : 0);
  Input* windows = nullptr;
  if constexpr (Cfg::kHasConv) {
    windows = static_cast<Input*>(args.conv_state) + (live ? index * args.conv_state_stride : 0);
    at.for_items(item, [&](typename Step::Item& one, int) { one.load_window(windows, at.channels(), live); });
  }
  sync_warp();  // the convolution, which waits for these, does not wait for what is asked for behind them
  TokensTile<Cfg> tile;
  TokensHead<Cfg> head;
  u32 z[S::kTurns], norm_weight[S::kTurns], norm_bias[S::kTurns];
  if constexpr (Cfg::kEarlyState) at.load_state(tile, state, live);
  if constexpr (Cfg::kHasConv) at.for_items(item, [&](typename Step::Item& one, int) { one.load_weights(args); });
  at.load_weights(head, 0);
  if constexpr (Cfg::kEarlyState) {
    at.load_norm(norm_weight, norm_bias);
    grid_dependency_wait();
  }
  at.for_items(item, [&](typename Step::Item& one, int i) { at.load_tokens(one, i); });
  at.load_dt(head, 0);
  if constexpr (!Cfg::kEarlyState) at.load_state(tile, state, live);
  at.load_z(z);
  if constexpr (!Cfg::kEarlyState) at.load_norm(norm_weight, norm_bias);

  // No load may move down past here, behind arithmetic that waits for another.
  sync_warp();
  if constexpr (kExchange) cluster_wait();

  const auto store_windows = [&](bool of_x) {
    if constexpr (Cfg::kHasConv)
      at.for_items(item, [&](const typename Step::Item& one, int i) {
        if (live && (i * S::kPer < S::kBlockRows) == of_x) one.store_window(windows, at.channels());
      });
  };
  at.for_items(item, [&](const typename Step::Item& one, int i) {
#pragma unroll
    for (int t = 0; t < Cfg::kTokens; ++t) reinterpret_cast<u32*>(shared.channels[t])[i] = one.result(t);
  });
  if constexpr (kClustered && !kExchange) cluster_arrive_relaxed();  // this block has read the windows
  sync_block();
  store_windows(true);

  if constexpr (S::kPasses == 1) {
    at.advance(tile, head, state, live, 0);
  } else {
    TokensTile<Cfg> ahead;
    TokensHead<Cfg> head_ahead;
#pragma unroll 1
    for (int pass = 0; pass < S::kPasses; ++pass) {
      if (pass + 1 < S::kPasses) {
        at.load_weights(head_ahead, pass + 1);
        at.load_dt(head_ahead, pass + 1);
        at.load_state(ahead, state + (pass + 1) * Cfg::kBlockM * Cfg::kDstate, live);
      }
      at.advance(tile, head, state + pass * Cfg::kBlockM * Cfg::kDstate, live, pass);
      tile = ahead;
      head = head_ahead;
    }
  }
  sync_block();

  float u[S::kTurns][S::kPer], gate[S::kTurns][S::kPer];
  at.square(z, u, gate);
  if constexpr (kClustered && !kExchange) cluster_wait();
  at.write(u, gate, norm_weight, norm_bias);
  // All sums have come, or all arrivals, so every block of the cluster has read its group's windows.
  if (at.first % S::kGroupRows == 0) store_windows(false);
}
