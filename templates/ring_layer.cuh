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
// - What needs no slot (tokens, gates, weights) comes by bulk copies, few instructions each, all under way while the
//   slot's index is.
// - Convolution: a word of two channels a thread. A block has the channels of its own rows of x, and all of its group's
//   B and C, which its cluster's blocks repeat. The window of B and C is written by the group's first block alone,
//   after all blocks of the cluster have read it. Meanwhile the first warp of a head sums its rows of the ring.
// - Windows may be read from any entry on: with accepted counts the history is the kConvWidth - 1 entries from entry
//   accepted - 1, and all that is kept goes to the front; of a circular window it ends before entry cache_seqlens %
//   kConvState, where the tokens go. Snapshots are the window after every token.
// - Norm: each block sends its sums of squares, one a token, to all blocks of the cluster, where they count into an
//   mbarrier; all are then added in the same order everywhere. y stays in registers.

// Sizes that follow from Cfg.
template <class Cfg>
struct RingLayerShape {
  using R = RingShape<Cfg>;
  static constexpr int kTokens = Cfg::kTokens;
  static constexpr int kThreads = 32 * Cfg::kWarps;
  static constexpr int kGroupRows = Cfg::kHeadsPerGroup * Cfg::kHeadDim;  // that share B and C
  static constexpr int kHistory = Cfg::kConvWidth - 1;

  // The channels that a block needs: its rows of x, then B and C of its group; a word of two of them an item.
  static constexpr int kChannels = Cfg::kBlockM + 2 * Cfg::kDstate;
  static constexpr int kWords = kChannels / 2;
  static constexpr int kRounds = (kWords + kThreads - 1) / kThreads;
  // Tokens of a turn of the convolution's loop, side by side: the largest divisor up to 8.
  static constexpr SSMJIT_DEVICE int turn(int most) { return kTokens % most == 0 ? most : turn(most - 1); }
  static constexpr int kTurn = turn(8 < kTokens ? 8 : kTokens);

  static constexpr int kRowTokens = 8 * R::kNewTiles;  // rows of x for tokens; those past the last one are zeros
  // A row of B or C lies so that the lanes of a quarter warp, four on each of two rows, meet no bank twice.
  static constexpr int kColumnRow = Cfg::kDstate + (96 - Cfg::kDstate % 64) % 64;
  static constexpr int kQuads = (kTokens + 3) / 4;  // of the sums of tokens, that go to another block at once
  static constexpr int kSentBytes = 16 * kQuads * Cfg::kCluster;

  // What comes by bulk copies: pieces of each token (x, B, C, z), then those of weights; and their bytes together.
  static constexpr int kTokenPieces = Cfg::kHasNormGate ? 4 : 3;
  static constexpr int kConvPieces = Cfg::kHasConv ? (Cfg::kConvBias ? 6 : 3) : 0;
  static constexpr int kNormPieces = Cfg::kHasNorm ? (Cfg::kNormBias ? 2 : 1) : 0;
  static constexpr int kCopiedBytes =
      2 * (kTokens * (kChannels + (Cfg::kHasNormGate ? Cfg::kBlockM : 0)) +
           (Cfg::kHasConv ? kChannels * (Cfg::kConvWidth + (Cfg::kConvBias ? 1 : 0)) : 0) + kNormPieces * Cfg::kBlockM);

  static_assert(sizeof(typename Cfg::Input) == 2 && !Cfg::kVarlen && Cfg::kHeadsPerBlock == 1 && R::kDirect);
  static_assert(Cfg::kNormRows % kGroupRows == 0 && kGroupRows % Cfg::kBlockM == 0);
  static_assert(Cfg::kNormRows == Cfg::kCluster * Cfg::kBlockM);
  static_assert(kTokens * kTokenPieces + kConvPieces + kNormPieces <= kThreads);

  // The warps that issue them, a copy a lane: those without words to convolve, whose windows the others ask for
  // meanwhile; all where those are too few.
  static constexpr int kIdleWarps = Cfg::kWarps - (kWords + 31) / 32;
  static constexpr int kCopyWarps =
      32 * kIdleWarps >= kTokens * kTokenPieces + kConvPieces + kNormPieces ? kIdleWarps : Cfg::kWarps;
};

template <class Cfg>
struct RingLayerShared : RingShared<Cfg> {
  using L = RingLayerShape<Cfg>;
  using Input = typename Cfg::Input;
  alignas(16) Input token[Cfg::kTokens][L::kChannels];  // x, B, C before the convolution
  alignas(16) Input z[Cfg::kHasNormGate ? Cfg::kTokens : 1][Cfg::kHasNormGate ? Cfg::kBlockM : 8];
  alignas(16) Input conv_weight[Cfg::kHasConv ? L::kChannels : 1][Cfg::kHasConv ? Cfg::kConvWidth : 8];
  alignas(16) Input conv_bias[Cfg::kHasConv ? L::kChannels : 8];
  alignas(16) Input norm[2][Cfg::kBlockM];                    // weight and bias
  alignas(16) Input columns[2][Cfg::kTokens][L::kColumnRow];  // B, C as the step takes them
  float squares[Cfg::kWarps][L::kRowTokens];                  // a warp's sums, of each token
  alignas(16) float sum[Cfg::kCluster][4 * L::kQuads];        // a block's
  Barrier inputs, sums;                                       // that they have come
};

// The window of two neighbouring channels, a word; `channel` is the first of them.
template <class Cfg>
struct RingWindow {
  using L = RingLayerShape<Cfg>;
  using Input = typename Cfg::Input;
  static constexpr int kState = Cfg::kHasConv ? Cfg::kConvState : 1;
  static constexpr bool kAnywhere = Cfg::kConvAccepted || Cfg::kConvCircular;
  static constexpr int kHeld = kAnywhere ? L::kHistory : kState;  // entries of the stream before the tokens
  // Entries that a shift writes.
  static constexpr int kKept = Cfg::kConvAccepted ? L::kHistory + Cfg::kTokens - 1 : kState;
  u32 word[kHeld];  // kAnywhere: an entry of both channels each. Else as it lies: channels first [2][kState] elements,
                    // last [kState][2]

  // `first`: of kAnywhere, the entry that the held ones begin with.
  SSMJIT_DEVICE void load(const Input* slot, int channel, int channels, int first) {
    if constexpr (kAnywhere) {
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        int at = first + k;
        if constexpr (Cfg::kConvCircular) at = at < kState ? at : at - kState;
        if constexpr (Cfg::kConvChannelsLast) {
          word[k] = load_now_b32(slot + (at * channels + channel));
        } else {
          const u32 low = load_now_b16(slot + (channel * kState + at)),
                    high = load_now_b16(slot + ((channel + 1) * kState + at));
          word[k] = low | high << 16;
        }
      }
    } else if constexpr (Cfg::kConvChannelsLast) {
#pragma unroll
      for (int k = 0; k < kState; ++k) word[k] = load_now_b32(slot + (k * channels + channel));
    } else {
      load_now<kState>(slot + channel * kState, word);
    }
  }
  // Held entry k of both channels.
  SSMJIT_DEVICE u32 entry(int k) const {
    if constexpr (kAnywhere || Cfg::kConvChannelsLast) return word[k];
    const auto bits = [&](int e) { return e % 2 != 0 ? word[e / 2] >> 16 : word[e / 2] & 0xffffu; };
    return bits(k) | bits(kState + k) << 16;
  }
  // Entry i of held ones and tokens; `token`: the channels' first, `row` words from one to the next.
  SSMJIT_DEVICE u32 stream(int i, const u32* token, int row) const {
    return i >= kHeld ? token[(i - kHeld) * row] : entry(i >= kHeld ? 0 : i);
  }
  // The kLength entries of the stream that end before entry `end`, to a window of kStride entries a channel.
  template <int kLength, int kStride>
  SSMJIT_DEVICE void store(Input* window, int channel, int channels, int end, const u32* token, int row) const {
    u32 next[kLength];
#pragma unroll
    for (int j = 0; j < kLength; ++j) next[j] = stream(end - kLength + j, token, row);
    u32* const to = reinterpret_cast<u32*>(window);
    if constexpr (Cfg::kConvChannelsLast) {
#pragma unroll
      for (int j = 0; j < kLength; ++j) to[(j * channels + channel) / 2] = next[j];
    } else if constexpr (kLength == kStride) {
      const auto bits = [&](int e) { return e < kLength ? next[e] & 0xffffu : next[e - kLength] >> 16; };
#pragma unroll
      for (int w = 0; w < kLength; ++w) to[channel / 2 * kLength + w] = bits(2 * w) | bits(2 * w + 1) << 16;
    } else {
#pragma unroll
      for (int j = 0; j < kLength; ++j) put_both(window, channel, kStride, j, next[j]);
    }
  }
  // Circular: the newest kState tokens, from entry `place` on.
  SSMJIT_DEVICE void store_tokens(Input* window, int channel, int channels, int place, const u32* token,
                                  int row) const {
#pragma unroll
    for (int t = 0; t < Cfg::kTokens; ++t) {
      if (t < Cfg::kTokens - kState) continue;
      const int at = (place + t) % kState;
      if constexpr (Cfg::kConvChannelsLast)
        reinterpret_cast<u32*>(window)[(at * channels + channel) / 2] = token[t * row];
      else
        put_both(window, channel, kState, at, token[t * row]);
    }
  }
  // Entry `at` of both channels, which lie `stride` elements apart.
  SSMJIT_DEVICE static void put_both(Input* window, int channel, int stride, int at, u32 v) {
    window[channel * stride + at] = Input{static_cast<u16>(v & 0xffffu)};
    window[(channel + 1) * stride + at] = Input{static_cast<u16>(v >> 16)};
  }
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
  static constexpr bool kClustered = Cfg::kCluster > 1;
  static constexpr bool kExchange = kClustered && Cfg::kHasNorm;

  static constexpr int kRow = L::kChannels / 2;  // words of a token before the convolution

  using Window = RingWindow<Cfg>;

  const RingLayerArgs& args;
  Shared& shared;
  int thread, first;  // the block's first channel of x
  Input* windows;
  [[maybe_unused]] Input* snapshots;                       // null: none are written
  [[maybe_unused]] u32 place_words[2], snapshot_words[2];  // of int64, low first; else twice the same
  [[maybe_unused]] int window_place;                       // circular: where the first token goes
  RingWindow<Cfg> window[L::kRounds];
  float gate[R::kNewTiles][R::kTiles][2];  // of the norm; of the lane's outputs, as held
  float held[R::kNewTiles][R::kTiles][2];  // what the norm scales: tokens g + 8 n by columns 2 q and 2 q + 1 of a tile
  float squares[R::kNewTiles];

  SSMJIT_DEVICE RingLayer(const RingLayerArgs& given_args, Shared& given_shared)
      : args(given_args), shared(given_shared) {}

  SSMJIT_DEVICE int channels() const { return args.channels; }
  SSMJIT_DEVICE int groups() const { return channels() / (L::kGroupRows + 2 * Cfg::kDstate); }
  // Words go to the last warps first: the first ones sum the ring's rows.
  SSMJIT_DEVICE int word_of(int round) const { return L::kThreads * (round + 1) - 32 - thread / 32 * 32 + thread % 32; }
  SSMJIT_DEVICE static bool exists(int word) { return L::kWords % L::kThreads == 0 || word < L::kWords; }
  // The channels of x, B or C (0 to 2): the first among all of the request, and of the block; how many.
  struct Piece {
    int channel, at, count;
  };
  SSMJIT_DEVICE Piece piece(int i) const {
    const int of_group = first / L::kGroupRows * Cfg::kDstate, B = groups() * L::kGroupRows;
    if (i == 0) return {first, 0, Cfg::kBlockM};
    if (i == 1) return {B + of_group, Cfg::kBlockM, Cfg::kDstate};
    return {B + groups() * Cfg::kDstate + of_group, Cfg::kBlockM + Cfg::kDstate, Cfg::kDstate};
  }
  SSMJIT_DEVICE int channel(int word) const {
    const Piece p = piece(2 * word < Cfg::kBlockM ? 0 : 2 * word < Cfg::kBlockM + Cfg::kDstate ? 1 : 2);
    return p.channel + 2 * word - p.at;
  }
  template <class Visit>
  SSMJIT_DEVICE void for_words(const Visit& visit) {
#pragma unroll
    for (int i = 0; i < L::kRounds; ++i)
      if (exists(word_of(i))) visit(window[i], word_of(i));
  }

  // ---- before the step: loads ----

  SSMJIT_DEVICE void start(const Step& step) {
    thread = thread_index();
    first = block_x() * Cfg::kBlockM;
    if (thread == 0) {
      barrier_init(&shared.inputs, 1);
      if constexpr (kExchange) barrier_init(&shared.sums, 1);
      barrier_init_fence();
      barrier_arrive_expect(&shared.inputs, L::kCopiedBytes);
      if constexpr (kExchange) barrier_arrive_expect(&shared.sums, L::kSentBytes);
    }
    // Lines of the arguments are fetched now, together, and not where they are used.
    const void* lines[] = {args.ring.state, args.ring.dt, args.ring.x, args.conv_weight, args.norm_weight};
#pragma unroll
    for (const void*& line : lines) keep(line);
    load_places(step);
    sync_block();
    if constexpr (kExchange) cluster_arrive_relaxed();  // peers may send from their wait on
    copy<!Cfg::kEarlyState, true>(step);
  }
  // Counts and indices of the request, under way beside its slot's.
  SSMJIT_DEVICE void load_places(const Step& step) {
    if constexpr (Window::kAnywhere) {
      const int* const at = args.window_places + step.row * args.window_place_stride;
      place_words[0] = load_now_b32(at);
      place_words[1] = load_now_b32(at + args.wide_window_places);
    }
    if constexpr (Cfg::kConvSnapshots) {
      const bool given = args.intermediate_state_indices != nullptr;
      const int* const at = given ? args.intermediate_state_indices + step.row * args.snapshot_index_stride
                                  : static_cast<const int*>(args.ring.A);  // any address that may be read
      snapshot_words[0] = load_now_b32(at);
      snapshot_words[1] = load_now_b32(at + (given ? args.wide_snapshot_indices : 0));
    }
  }
  SSMJIT_DEVICE static i64 value_of(const u32 (&word)[2], int wide) {
    return wide != 0 ? static_cast<i64>(static_cast<u64>(word[1]) << 32 | word[0])
                     : static_cast<i64>(static_cast<int>(word[0]));
  }
  // The first entry of the window that is held.
  SSMJIT_DEVICE int place_window() {
    if constexpr (!Window::kAnywhere) return 0;
    const i64 given = value_of(place_words, args.wide_window_places);
    if constexpr (Cfg::kConvAccepted)
      return given < 1 ? 0 : static_cast<int>(given < Cfg::kTokens ? given : Cfg::kTokens) - 1;
    const i64 next = given % Window::kState;
    window_place = static_cast<int>(next < 0 ? next + Window::kState : next);
    const int from = window_place - L::kHistory;
    return from < 0 ? from + Window::kState : from;
  }
  SSMJIT_DEVICE void place_snapshots(int slot) {
    i64 index = slot;
    if (args.intermediate_state_indices != nullptr) index = value_of(snapshot_words, args.wide_snapshot_indices);
    const bool usable = index >= 0 && index < args.snapshot_slots && index != args.ring.pad_slot_id;
    snapshots = usable ? static_cast<Input*>(args.intermediate_states) + index * args.snapshot_stride : nullptr;
  }
  // One copy a lane: of x, B, C and z of a token, then of weights.
  template <bool kTokens, bool kWeights>
  SSMJIT_DEVICE void copy(const Step& step) {
    constexpr int kOfTokens = kTokens ? Cfg::kTokens * L::kTokenPieces : 0;
    constexpr int kOfWeights = kWeights ? L::kConvPieces + L::kNormPieces : 0;
    const int i = step.lane * L::kCopyWarps + step.warp;
    if (step.warp >= L::kCopyWarps || i >= kOfTokens + kOfWeights) return;
    const RingArgs& ring = args.ring;
    const bool of_token = i < kOfTokens;
    const int t = of_token ? i / L::kTokenPieces : 0, which = of_token ? i % L::kTokenPieces : i - kOfTokens;
    const Piece p = piece(of_token || which < L::kConvPieces ? which % 3 : 0);
    const void* base = ring.x;
    Input* to = shared.token[t];
    int stride = ring.x_stride, token_stride = ring.x_token_stride, channel = p.channel, width = 1;
    if (!Cfg::kHasConv && of_token && (which == 1 || which == 2)) {
      base = which == 1 ? ring.B : ring.C;
      stride = which == 1 ? ring.B_stride : ring.C_stride;
      token_stride = which == 1 ? ring.B_token_stride : ring.C_token_stride;
      channel = first / L::kGroupRows * Cfg::kDstate;
    }
    if (Cfg::kHasNormGate && of_token && which == 3) {
      base = ring.z;
      to = shared.z[Cfg::kHasNormGate ? t : 0];
      stride = ring.z_stride;
      token_stride = ring.z_token_stride;
    }
    if (!of_token) {
      stride = token_stride = 0;
      const bool weight = which < 3;
      if (which < L::kConvPieces) {
        base = weight ? args.conv_weight : args.conv_bias;
        to = weight ? shared.conv_weight[0] : shared.conv_bias;
        width = weight ? Cfg::kConvWidth : 1;
      } else {
        const int norm = which - L::kConvPieces;
        base = norm == 0 ? args.norm_weight : args.norm_bias;
        to = shared.norm[norm];
      }
    }
    bulk_load(to + p.at * width, step.token(static_cast<const Input*>(base), stride, token_stride, t, channel * width),
              static_cast<u32>(2 * p.count * width), &shared.inputs);
  }
  SSMJIT_DEVICE void copy_tokens(const Step& step) { copy<true, false>(step); }
  // Of a pad row: no copy may come to a block that has ended.
  SSMJIT_DEVICE void leave(const Step& step) {
    if constexpr (Cfg::kEarlyState) copy_tokens(step);
    barrier_wait(&shared.inputs, 0);
  }
  SSMJIT_DEVICE void load_windows(int slot) {
    if constexpr (Cfg::kHasConv) {
      windows = static_cast<Input*>(args.conv_state) + Step::wide(slot, args.conv_state_stride);
      const int from = place_window();
      for_words([&](RingWindow<Cfg>& one, int word) { one.load(windows, channel(word), channels(), from); });
      if constexpr (Cfg::kConvSnapshots) place_snapshots(slot);
      sync_warp();  // the convolution, which waits for these, does not wait for what is asked for behind them
    }
  }

  // ---- the convolution ----

  // Where token 0 of the block's word goes, and how many words from there to the next one.
  SSMJIT_DEVICE u32* place(int word, int& row) {
    const int c = 2 * word, in_group = c - Cfg::kBlockM;
    if (in_group < 0) {
      row = R::kXRow / 2;
      return reinterpret_cast<u32*>(&shared.warp[c / R::kWarpRows].x[0][R::kFirstNew][c % R::kWarpRows]);
    }
    row = L::kColumnRow / 2;
    const int which = in_group < Cfg::kDstate ? 0 : 1;
    return reinterpret_cast<u32*>(&shared.columns[which][0][in_group - which * Cfg::kDstate]);
  }
  SSMJIT_DEVICE const u32* tokens_of(int word) const { return reinterpret_cast<const u32*>(shared.token[0]) + word; }
  SSMJIT_DEVICE void convolve(const Step& step) {
    barrier_wait(&shared.inputs, 0);
    for_words([&](const RingWindow<Cfg>& one, int word) {
      int row;
      u32* to = place(word, row);
      const u32* token = tokens_of(word);
      u32 weight[Cfg::kConvWidth], entry[L::kHistory + L::kTurn];  // of the stream
      float bias[2] = {0.0f, 0.0f};
      if constexpr (Cfg::kHasConv) {
        const u32* w = reinterpret_cast<const u32*>(shared.conv_weight[0]) + word * Cfg::kConvWidth;
        if constexpr (Cfg::kConvWidth == 4) {
          const Vec16 v = load_shared(w);
#pragma unroll
          for (int k = 0; k < 4; ++k) weight[k] = v.word[k];
        } else {
#pragma unroll
          for (int k = 0; k < Cfg::kConvWidth; ++k) weight[k] = w[k];
        }
        if constexpr (Cfg::kConvBias) unpack_word(reinterpret_cast<const u32*>(shared.conv_bias)[word], bias, Input{});
#pragma unroll
        for (int k = 0; k < L::kHistory; ++k) entry[k] = one.entry(Window::kHeld - L::kHistory + k);
      }
#pragma unroll 1
      for (int t = 0; t < Cfg::kTokens; t += L::kTurn) {
#pragma unroll
        for (int i = 0; i < L::kTurn; ++i) entry[L::kHistory + i] = token[i * kRow];
#pragma unroll
        for (int i = 0; i < L::kTurn; ++i) {
          if constexpr (!Cfg::kHasConv) {
            to[i * row] = entry[i];
          } else {
            float sum[2] = {bias[0], bias[1]};
#pragma unroll
            for (int k = 0; k < Cfg::kConvWidth; ++k) {
              float in[2];
              unpack_word(entry[i + k], in, Input{});
#pragma unroll
              for (int c = 0; c < 2; ++c) {
                float w[2];
                unpack_word(weight[(c * Cfg::kConvWidth + k) / 2], w, Input{});
                sum[c] = fma_f32(w[(c * Cfg::kConvWidth + k) % 2], in[c], sum[c]);
              }
            }
            sum[0] = Cfg::activation(sum[0]);
            sum[1] = Cfg::activation(sum[1]);
            to[i * row] = pack_word(sum, Input{});
          }
        }
#pragma unroll
        for (int k = 0; k < L::kHistory; ++k) entry[k] = entry[k + L::kTurn];
        token += L::kTurn * kRow;
        to += L::kTurn * row;
      }
      if (L::kRowTokens > Cfg::kTokens && 2 * word < Cfg::kBlockM) {
#pragma unroll
        for (int t = 0; t < L::kRowTokens - Cfg::kTokens; ++t) to[t * row] = 0;
      }
    });
    if constexpr (Cfg::kHasNormGate) {
#pragma unroll
      for (int n = 0; n < R::kNewTiles; ++n)
#pragma unroll
        for (int p = 0; p < R::kTiles; ++p) {
          float z[2];
          unpack_word(*reinterpret_cast<const u32*>(&shared.z[step.last(step.g + 8 * n)][own_column(step, p)]), z,
                      Input{});
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            gate[n][p][e] = Cfg::norm_gate(z[e]);
            keep(gate[n][p][e]);
          }
        }
    }
  }
  // The first of the lane's channels in tile p, among the block's.
  SSMJIT_DEVICE static int own_column(const Step& step, int p) { return step.warp * R::kWarpRows + 8 * p + 2 * step.q; }
  // All of the block's x, B and C are there.
  SSMJIT_DEVICE void ready() {
    if constexpr (kClustered && !kExchange) cluster_arrive_relaxed();  // this block has read the windows
    if constexpr (kExchange) cluster_wait();
    sync_block();
    store_windows(true);
  }
  SSMJIT_DEVICE void store_windows(bool of_x) {
    if constexpr (Cfg::kHasConv)
      for_words([&](const RingWindow<Cfg>& one, int word) {
        if ((2 * word < Cfg::kBlockM) != of_x) return;
        const int c = channel(word);
        const u32* const token = tokens_of(word);
        if constexpr (Cfg::kConvCircular)
          one.store_tokens(windows, c, channels(), window_place, token, kRow);
        else
          one.template store<Window::kKept, Window::kState>(windows, c, channels(), Window::kHeld + Cfg::kTokens, token,
                                                            kRow);
        if constexpr (Cfg::kConvSnapshots) {
          constexpr int kLength = Cfg::kConvSnapshot;
          if (snapshots == nullptr) return;
#pragma unroll
          for (int t = 0; t < Cfg::kTokens; ++t)
            one.template store<kLength, kLength>(snapshots + t * args.snapshot_token_stride, c, channels(),
                                                 Window::kHeld + t + 1, token, kRow);
        }
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
#pragma unroll
      for (int e = 0; e < 2; ++e) u[e] *= gate[n][p][e];
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
          float w[2], b[2] = {0.0f, 0.0f};
          unpack_word(*reinterpret_cast<const u32*>(&shared.norm[0][own_column(step, p)]), w, Input{});
          if constexpr (Cfg::kNormBias)
            unpack_word(*reinterpret_cast<const u32*>(&shared.norm[1][own_column(step, p)]), b, Input{});
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            v[e] = v[e] * scale[n] * w[e];
            if constexpr (Cfg::kNormBias) v[e] += b[e];
            if constexpr (Cfg::kHasNormGate && Cfg::kNormBeforeGate) v[e] *= gate[n][p][e];
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
