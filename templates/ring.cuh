#pragma once
#include "device/async_copy.cuh"
#include "device/barrier.cuh"
#include "device/basic.cuh"
#include "device/convert.cuh"
#include "device/memory.cuh"
#include "device/mma.cuh"
#include "device/shuffle.cuh"
#include "index.cuh"
#include "launch.cuh"
#include "maths.cuh"
#include "ring_args.cuh"
#include "rounding.cuh"
// A decode step of up to kTokens tokens that leaves the state where it is. What past steps brought (x, B, delta) is
// kept in a ring; the state is brought up to date and written only by the step for which the ring has no room (flush
// iff count + tokens > window). With s the running sum of A * delta over the ring's rows, oldest first, and the new
// ones:
//
//   y[t, p] = exp(s[t]) * sum over n of h[p, n] * C[t, n] + sum over rows j up to t of W[t, j] * x[j, p]
//   W[t, j] = (sum over n of C[t, n] * B[j, n]) * exp(s[t] - s[j]) * delta[j]
//   y += Cfg::skip(D, x[t, p]);  y *= Cfg::gate(z[t, p])
//
// In a flush, with s' the sum up to the last old row, what is stored is
//
//   h'[p, n] = exp(s') * h[p, n] + sum over old rows j of exp(s' - s[j]) * delta[j] * x[j, p] * B[j, n]
//
// and y is that of h' as stored (to nearest) and an empty ring.
//
// What costs is the state. A warp takes block_m / warps rows of head_dim for heads_per_block heads of one request, one
// after the other, and needs the other warps of its block for C . B alone. All products run on the tensor cores, tokens
// on the side of 16, head_dim or rows on the side of 8, so that results are operands of the next product in the same
// lanes: C . B becomes the weights W without leaving registers. The state goes from memory straight into operands: a
// lane's 16-byte vectors are the fragments of a contraction in another order of dstate, and C and B are loaded in the
// same order.
//
// ring_rows: which rows of the ring are read.
//   all   every row where it lies, beside the new ones: no address waits for the cursors, which only mask
//   live  row j is the j-th oldest; rows out of use are not read
// Rows out of use never reach a result, whatever they hold; another block of the same launch may be appending to them.

enum class RingRows { all, live };

template <class A, class B>
constexpr bool is_same = false;
template <class A>
constexpr bool is_same<A, A> = true;

template <bool kFirst, class A, class B>
struct Either {
  using Type = A;
};
template <class A, class B>
struct Either<false, A, B> {
  using Type = B;
};

// Sizes that follow from Cfg. A tile is 8 rows, of the ring or of head_dim.
template <class Cfg>
struct RingShape {
  using State = typename Cfg::State;
  using Input = typename Cfg::Input;
  static constexpr bool kAll = Cfg::kRingRows == RingRows::all;
  static constexpr int kOld = kAll ? Cfg::kRing : Cfg::kWindow;
  static constexpr int kOldTiles = (kOld + 7) / 8;
  static constexpr int kNewTiles = (Cfg::kTokens + 7) / 8;
  static constexpr int kRowTiles = kOldTiles + kNewTiles;
  static constexpr int kFirstNew = 8 * kOldTiles;  // rows: the old ones, then new row t at kFirstNew + t
  static constexpr int kLaneRows = (8 * kRowTiles + 31) / 32;
  static constexpr int kWarpRows = Cfg::kBlockM / Cfg::kWarps;
  static constexpr int kTiles = kWarpRows / 8;
  static constexpr int kBlocks = Cfg::kHeadDim / Cfg::kBlockM;
  static constexpr int kHeadSize = Cfg::kHeadDim * Cfg::kDstate;

  // A lane holds kSpan neighbouring columns of each chunk of 4 * kSpan, as kVectors vectors.
  static constexpr int kPerVector = 16 / static_cast<int>(sizeof(State));
  static constexpr int kSpan = kPerVector > 8 ? kPerVector : 8;
  static constexpr int kVectors = kSpan / kPerVector;
  static constexpr int kChunks = Cfg::kDstate / (4 * kSpan);
  static constexpr int kSteps = kSpan / 4;  // products over a chunk

  static constexpr bool kScaled = sizeof(State) == 1;
  // Products with the state: in bf16 where fp16 could overflow.
  using Operand = typename Either<is_same<State, Input> || kScaled, Input, bf16>::Type;
  static constexpr int kXBuffers = Cfg::kHeadsPerBlock > 1 ? 2 : 1;
  // Rows of x in shared memory lie so that eight of them meet no bank twice.
  static constexpr int kXRow = kWarpRows + (kWarpRows > 8 ? 8 : 0);

  static_assert(Cfg::kDstate % (4 * kSpan) == 0 && Cfg::kHeadDim % Cfg::kBlockM == 0 && kWarpRows % 8 == 0);
  static_assert(kRowTiles <= 8 && Cfg::kHeadsPerBlock <= 32);
};

template <class Cfg>
struct RingShared {
  using S = RingShape<Cfg>;
  using Input = typename Cfg::Input;
  struct Warp {
    alignas(16) Input x[S::kXBuffers][8 * S::kRowTiles][S::kXRow];  // of the warp's rows of head_dim
    alignas(16) float row[8 * S::kRowTiles][2];                     // s (in powers of two) and delta of a head's rows
  };
  Warp warp[Cfg::kWarps];
  alignas(16) Input B[8 * S::kOldTiles][Cfg::kDstate + 8];  // for a flush: old rows, dstate in the fragments' order
  alignas(16) float CB[Cfg::kWarps > 1 ? 8 * S::kNewTiles : 1][(8 * S::kRowTiles + 31) / 32 * 32 + 8];
};

// 16-bit columns of one row in the lane's order: words 2 w and 2 w + 1 of a chunk are product w's.
template <class Cfg>
struct RingColumns {
  using S = RingShape<Cfg>;
  u32 word[S::kChunks][S::kSpan / 2];

  SSMJIT_DEVICE void load(const typename Cfg::Input* row, int q) {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c)
#pragma unroll
      for (int v = 0; v < S::kSpan / 8; ++v) {
        const Vec16 got = load_maybe_appended<false>(row + (4 * c + q) * S::kSpan + 8 * v);
#pragma unroll
        for (int i = 0; i < 4; ++i) word[c][4 * v + i] = got.word[i];
      }
  }
  SSMJIT_DEVICE void store(typename Cfg::Input* row, int q) const {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c)
#pragma unroll
      for (int v = 0; v < S::kSpan / 8; ++v)
        store_global<false>(row + (4 * c + q) * S::kSpan + 8 * v,
                            Vec16{{word[c][4 * v], word[c][4 * v + 1], word[c][4 * v + 2], word[c][4 * v + 3]}});
  }
};

// The lane's share of the state of the warp's rows of one head: in tile i row 8 i + g, whose decoded values are what is
// stored times scale.
template <class Cfg>
struct RingState {
  using S = RingShape<Cfg>;
  using State = typename Cfg::State;
  using Operand = typename S::Operand;
  Vec16 raw[S::kTiles][S::kChunks][S::kVectors];

  static SSMJIT_DEVICE int element(int i, int c, int v, int g, int q) {
    return (8 * i + g) * Cfg::kDstate + (4 * c + q) * S::kSpan + v * S::kPerVector;
  }
  SSMJIT_DEVICE void load(const State* first, int g, int q) {
#pragma unroll
    for (int i = 0; i < S::kTiles; ++i)
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c)
#pragma unroll
        for (int v = 0; v < S::kVectors; ++v)
          raw[i][c][v] = load_global<Cfg::kStreaming>(first + element(i, c, v, g, q));
  }
  // Columns 2 w and 2 w + 1 of the lane's span.
  SSMJIT_DEVICE void pair(int i, int c, int w, float (&v)[2]) const {
    if constexpr (sizeof(State) == 4) {
      v[0] = bits_float(raw[i][c][w / 2].word[2 * (w % 2)]);
      v[1] = bits_float(raw[i][c][w / 2].word[2 * (w % 2) + 1]);
    } else if constexpr (sizeof(State) == 2) {
      unpack_word(raw[i][c][0].word[w], v, State{});
    } else {
      unpack_half_word(raw[i][c][0].word[w / 2], w % 2, v, State{});
    }
  }
  SSMJIT_DEVICE u32 operand(int i, int c, int w) const {
    if constexpr (is_same<State, Operand>) {
      return raw[i][c][0].word[w];
    } else {
      float v[2];
      pair(i, c, w, v);
      return pack_word(v, Operand{});
    }
  }
};

// What the cursors of a slot say of the rows.
template <class Cfg>
struct RingCursors {
  using S = RingShape<Cfg>;
  int start, count, tokens;
  bool flush;

  SSMJIT_DEVICE static int wrapped(int at) { return at < Cfg::kRing ? at : at - Cfg::kRing; }
  // Where old row j lies in the ring; of one that is not in use or is not there, where another lies.
  SSMJIT_DEVICE int place_of_old(int j) const {
    if constexpr (S::kAll) return j < Cfg::kRing ? j : Cfg::kRing - 1;
    return wrapped(start + (j < count ? j : count > 0 ? count - 1 : 0));
  }
  SSMJIT_DEVICE bool old_in_use(int j) const {
    if constexpr (S::kAll)
      return j < Cfg::kRing && (j < start ? j + Cfg::kRing : j) - start < count;
    else
      return j < count;
  }
  SSMJIT_DEVICE bool in_use(int j) const { return j < S::kFirstNew ? old_in_use(j) : j - S::kFirstNew < tokens; }
  // Where new row t is kept.
  SSMJIT_DEVICE int place_of_new(int t) const { return wrapped(wrapped(start + count) + t); }
};

template <class Cfg>
struct RingStep {
  using S = RingShape<Cfg>;
  using State = typename Cfg::State;
  using Input = typename Cfg::Input;
  using Operand = typename S::Operand;
  using Cursors = RingCursors<Cfg>;

  const RingArgs& args;
  RingShared<Cfg>& shared;
  int row;    // request
  int head;   // the block's first
  int first;  // the warp's first row of head_dim
  int warp, lane, g, q;
  i64 first_token;  // of the request, in rows of the packed inputs; 0 without cu_seqlens
  int tokens;

  SSMJIT_DEVICE int group() const { return head / Cfg::kHeadsPerGroup; }
  SSMJIT_DEVICE typename RingShared<Cfg>::Warp& mine() const { return shared.warp[warp]; }

  // ---- addresses; a row that there is not is read as another, and what it gives is dropped: a load under a condition
  // would make the loads behind it wait ----

  template <class T>
  SSMJIT_DEVICE const T* token(const void* base, i64 stride, i64 token_stride, int t, int at) const {
    const int last = tokens - 1;
    return static_cast<const T*>(base) + row * stride + (first_token + (t < last ? t : last)) * token_stride + at;
  }
  SSMJIT_DEVICE const Input* C_row(int t) const {
    return token<Input>(args.C, args.C_stride, args.C_token_stride, t, group() * Cfg::kDstate);
  }
  SSMJIT_DEVICE const Input* new_B_row(int t) const {
    return token<Input>(args.B, args.B_stride, args.B_token_stride, t, group() * Cfg::kDstate);
  }
  SSMJIT_DEVICE Input* ring_B_row(i64 slot, int place) const {
    return static_cast<Input*>(args.B_ring) + slot * args.B_ring_stride +
           static_cast<i64>(group() * Cfg::kRing + place) * Cfg::kDstate;
  }
  SSMJIT_DEVICE Input* ring_x_row(i64 slot, int h, int place) const {
    return static_cast<Input*>(args.x_ring) + slot * args.x_ring_stride +
           (static_cast<i64>(h) * Cfg::kRing + place) * Cfg::kHeadDim + first;
  }
  SSMJIT_DEVICE float* ring_delta(i64 slot, int h, int place) const {
    return static_cast<float*>(args.dt_ring) + slot * args.dt_ring_stride + static_cast<i64>(h) * Cfg::kRing + place;
  }

  // ---- what a head brings, beside its state ----

  static constexpr int kRowVectors = S::kTiles;  // of a row of x
  static constexpr int kOldLoads = (8 * S::kOldTiles * kRowVectors + 31) / 32;
  static constexpr int kNewLoads = (8 * S::kNewTiles * kRowVectors + 31) / 32;

  struct HeadInputs {
    float old_delta[S::kLaneRows];  // of rows lane, lane + 32
    typename Cfg::Dt dt[S::kLaneRows];
    u32 z[S::kNewTiles][S::kTiles];              // tokens g, g + 8; columns 8 i + 2 q and the next
    Vec16 x[S::kAll ? kOldLoads : 1];            // old rows, on their way to shared memory
    float scale[S::kScaled ? S::kTiles : 1][2];  // of rows of head_dim 8 i + 2 q and the next
  };

  // From the ring. Rows in use alone go by cp.async; all rows go through registers, where they are masked.
  SSMJIT_DEVICE void load_old(HeadInputs& in, i64 slot, int h, int buffer, const Cursors& at) const {
#pragma unroll
    for (int k = 0; k < S::kLaneRows; ++k)
      in.old_delta[k] = load_maybe_appended_f32(ring_delta(slot, h, at.place_of_old(lane + 32 * k)));
#pragma unroll
    for (int k = 0; k < kOldLoads; ++k) {
      const int e = lane + 32 * k, j = e / kRowVectors, v = e % kRowVectors;
      if constexpr (S::kAll)
        in.x[k] = load_maybe_appended<false>(ring_x_row(slot, h, at.place_of_old(j)) + 8 * v);
      else if (8 * S::kOldTiles * kRowVectors % 32 == 0 || j < 8 * S::kOldTiles)
        copy_async_zero_fill<16>(&mine().x[buffer][j][8 * v], ring_x_row(slot, h, at.place_of_old(j)) + 8 * v,
                                 at.old_in_use(j) ? 16u : 0u);
    }
    if constexpr (S::kScaled) {
#pragma unroll
      for (int i = 0; i < S::kTiles; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          load_now(args.state_scale + slot * args.state_scale_stride + static_cast<i64>(h) * Cfg::kHeadDim + first +
                       8 * i + 2 * q + e,
                   in.scale[i][e]);
    }
  }
  // From this step's inputs.
  SSMJIT_DEVICE void load_new(HeadInputs& in, int h, int buffer) const {
#pragma unroll
    for (int k = 0; k < S::kLaneRows; ++k) {
      const int t = lane + 32 * k - S::kFirstNew;
      load_now(token<typename Cfg::Dt>(args.dt, args.dt_stride, args.dt_token_stride, t < 0 ? 0 : t, h), in.dt[k]);
    }
#pragma unroll
    for (int k = 0; k < kNewLoads; ++k) {
      const int e = lane + 32 * k, t = e / kRowVectors, v = e % kRowVectors;
      if (8 * S::kNewTiles * kRowVectors % 32 == 0 || t < 8 * S::kNewTiles)
        copy_async_zero_fill<16>(
            &mine().x[buffer][S::kFirstNew + t][8 * v],
            token<Input>(args.x, args.x_stride, args.x_token_stride, t, h * Cfg::kHeadDim + first + 8 * v),
            t < tokens ? 16u : 0u);
    }
    if constexpr (Cfg::kHasGate) {
#pragma unroll
      for (int n = 0; n < S::kNewTiles; ++n)
#pragma unroll
        for (int i = 0; i < S::kTiles; ++i)
          in.z[n][i] = load_now_b32(token<Input>(args.z, args.z_stride, args.z_token_stride, g + 8 * n,
                                                 h * Cfg::kHeadDim + first + 8 * i + 2 * q));
    }
  }
  SSMJIT_DEVICE void store_masked_x(const HeadInputs& in, int buffer, const Cursors& at) const {
#pragma unroll
    for (int k = 0; k < kOldLoads; ++k) {
      const int e = lane + 32 * k, j = e / kRowVectors, v = e % kRowVectors;
      if (8 * S::kOldTiles * kRowVectors % 32 == 0 || j < 8 * S::kOldTiles)
        store_shared(&mine().x[buffer][j][8 * v], at.old_in_use(j) ? in.x[k] : Vec16{});
    }
  }

  // ---- C . B and the weights ----

  // d[i]: tokens g (and g + 8) by rows 2 q and 2 q + 1 of tile i.
  template <int kCount>
  SSMJIT_DEVICE static void contract(float (&d)[kCount][4], const RingColumns<Cfg> (&C)[S::kNewTiles],
                                     const RingColumns<Cfg> (&rows)[kCount]) {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c)
#pragma unroll
      for (int m = 0; m < S::kSteps; ++m)
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const u32 a[4] = {C[0].word[c][2 * m], upper(C).word[c][2 * m], C[0].word[c][2 * m + 1],
                            upper(C).word[c][2 * m + 1]};
          const u32 b[2] = {rows[i].word[c][2 * m], rows[i].word[c][2 * m + 1]};
          mma_m16n8k16(d[i], a, b, Input{});
        }
  }
  // Tokens 8 and on; the rows that these would fill are not looked at where there are none.
  SSMJIT_DEVICE static const RingColumns<Cfg>& upper(const RingColumns<Cfg> (&C)[S::kNewTiles]) {
    return C[S::kNewTiles - 1];
  }

  // The sums and deltas of a head's rows, to the warp's shared memory; the sum over the old rows.
  SSMJIT_DEVICE float sum_rows(const float (&delta)[S::kLaneRows], float A, const Cursors& at) const {
    float s[S::kLaneRows];
    float below = 0.0f;
#pragma unroll
    for (int k = 0; k < S::kLaneRows; ++k) {
      // In powers of two, so that a factor is one instruction.
      s[k] = below + scan_lanes(delta[k] * A * 1.442695041f);
      below = shuffle(s[k], 31);
    }
    const float all_old = shuffle(s[(S::kFirstNew - 1) / 32], S::kFirstNew - 1);
    if constexpr (S::kAll) {
      // From the order in which rows lie to that of age: rows before `start` come after the others.
      float before = 0.0f;
#pragma unroll
      for (int k = 0; k < S::kLaneRows; ++k) {
        const float here = shuffle(s[k], at.start - 1);
        if (at.start > 32 * k && at.start <= 32 * k + 32) before = here;
      }
#pragma unroll
      for (int k = 0; k < S::kLaneRows; ++k) {
        const int j = lane + 32 * k;
        if (j < S::kFirstNew) s[k] += (j < at.start ? all_old : 0.0f) - before;
      }
    }
#pragma unroll
    for (int k = 0; k < S::kLaneRows; ++k) {
      const int j = lane + 32 * k;
      if (8 * S::kRowTiles % 32 == 0 || j < 8 * S::kRowTiles) {
        mine().row[j][0] = s[k];
        mine().row[j][1] = delta[k];
      }
    }
    return all_old;
  }
  struct RowPair {
    float s[2], delta[2];
  };
  SSMJIT_DEVICE RowPair row_pair(int tile) const {
    const Vec16 v = load_shared(mine().row[8 * tile + 2 * q]);
    return {{bits_float(v.word[0]), bits_float(v.word[2])}, {bits_float(v.word[1]), bits_float(v.word[3])}};
  }

  // ---- a flush ----

  // x times exp(s' - s) * delta as operands, in parts, so that the product keeps the digits that an operand has not.
  static constexpr int kParts = sizeof(State) == 4 ? 3 : 2;
  SSMJIT_DEVICE void split_x(u32 (&part)[kParts], u32 x, const float (&factor)[2]) const {
    float v[2];
    unpack_word(x, v, Input{});
    v[0] *= factor[0];
    v[1] *= factor[1];
#pragma unroll
    for (int k = 0; k < kParts; ++k) {
      part[k] = pack_word(v, Input{});
      float taken[2];
      unpack_word(part[k], taken, Input{});
      v[0] -= taken[0];
      v[1] -= taken[1];
    }
  }

  // h' to memory, and as stored into `state` (and `scale`). x[j][i]: the rows of tile j by the columns of tile i.
  SSMJIT_DEVICE void flush(RingState<Cfg>& state, float (&scale)[S::kScaled ? S::kTiles : 1][2],
                           const u32 (&x)[S::kRowTiles][S::kTiles], float all_old, i64 slot, int h) const {
    float factor[S::kOldTiles][2];
#pragma unroll
    for (int j = 0; j < S::kOldTiles; ++j) {
      const RowPair r = row_pair(j);
#pragma unroll
      for (int e = 0; e < 2; ++e)
        // Rows out of use have delta 0, and sums that may lie past s'.
        factor[j][e] = r.delta[e] != 0.0f ? exp2_fast_f32(all_old - r.s[e]) * r.delta[e] : 0.0f;
    }
    const float decay = exp2_fast_f32(all_old);
    State* const stored = static_cast<State*>(args.state) + slot * args.state_stride +
                          static_cast<i64>(h) * S::kHeadSize + static_cast<i64>(first) * Cfg::kDstate;
    const u64 place = ((static_cast<u64>(slot) * args.nheads + h) * Cfg::kHeadDim + first) * Cfg::kDstate;
    u64 seed = 0;
    if constexpr (Cfg::kPhiloxRounds > 0) seed = static_cast<u64>(*args.rand_seed);

#pragma unroll
    for (int i = 0; i < S::kTiles; i += 2) {
      constexpr int kPair = S::kTiles > 1 ? 2 : 1;  // tiles at once: the product's rows g and g + 8
      u32 a[S::kOldTiles][2][kParts];
#pragma unroll
      for (int j = 0; j < S::kOldTiles; ++j)
#pragma unroll
        for (int r = 0; r < 2; ++r) split_x(a[j][r], r < kPair ? x[j][(i + r) % S::kTiles] : 0u, factor[j]);
      float old_scale[2] = {1.0f, 1.0f};
      float v[2][S::kScaled ? S::kChunks : 1][S::kSpan];
      if constexpr (S::kScaled) {
#pragma unroll
        for (int r = 0; r < kPair; ++r) old_scale[r] = scale_of_row(scale[i + r]);
      }
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) {
        float(&v0)[S::kSpan] = v[0][S::kScaled ? c : 0];
        float(&v1)[S::kSpan] = v[1][S::kScaled ? c : 0];
#pragma unroll
        for (int w = 0; w < S::kSpan / 2; ++w) {
          float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
          const int column = 4 * c * S::kSpan + 8 * w;
#pragma unroll
          for (int j = 0; j + 1 < S::kOldTiles; j += 2) {
            u32 b[2];
            load_matrix_transposed(b, &shared.B[8 * j + lane % 16][column]);
#pragma unroll
            for (int k = 0; k < kParts; ++k)
              mma_m16n8k16(sum, {a[j][0][k], a[j][1][k], a[j + 1][0][k], a[j + 1][1][k]}, b, Input{});
          }
          if constexpr (S::kOldTiles % 2 == 1) {
            constexpr int j = S::kOldTiles - 1;
            u32 b[1];
            load_matrix_transposed(b, &shared.B[8 * j + lane % 8][column]);
#pragma unroll
            for (int k = 0; k < kParts; ++k) mma_m16n8k8(sum, {a[j][0][k], a[j][1][k]}, b, Input{});
          }
          float h0[2], h1[2] = {0.0f, 0.0f};
          state.pair(i, c, w, h0);
          if constexpr (kPair == 2) state.pair(i + 1, c, w, h1);
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            v0[2 * w + e] = fma_f32(h0[e] * old_scale[0], decay, sum[e]);
            v1[2 * w + e] = fma_f32(h1[e] * old_scale[1], decay, sum[2 + e]);
          }
        }
        if constexpr (!S::kScaled) {
#pragma unroll
          for (int r = 0; r < kPair; ++r) put(state, stored, place, seed, i + r, c, r == 0 ? v0 : v1);
        }
      }
      if constexpr (S::kScaled) {
#pragma unroll
        for (int r = 0; r < kPair; ++r) {
          float largest = 0.0f;
#pragma unroll
          for (int c = 0; c < S::kChunks; ++c)
#pragma unroll
            for (int e = 0; e < S::kSpan; ++e) largest = max_f32(largest, abs_f32(v[r][c][e]));
          largest = max_lanes<4>(largest);
          constexpr float kLargest = is_same<State, i8> ? 127.0f : 448.0f;
          const float encode = largest > 0.0f ? kLargest / largest : 1.0f;
          const float decoded = 1.0f / encode;
          if (q == 0)
            args.state_scale[slot * args.state_scale_stride + static_cast<i64>(h) * Cfg::kHeadDim + first +
                             8 * (i + r) + g] = decoded;
#pragma unroll
          for (int e = 0; e < 2; ++e) scale[i + r][e] = shuffle(decoded, 4 * (2 * q + e));
#pragma unroll
          for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
            for (int e = 0; e < S::kSpan; ++e) v[r][c][e] *= encode;
            put(state, stored, place, seed, i + r, c, v[r][c]);
          }
        }
      }
    }
  }
  // Of row g of a tile, from the lanes' columns 2 q and 2 q + 1.
  SSMJIT_DEVICE float scale_of_row(const float (&scale)[2]) const {
    const float even = shuffle<4>(scale[0], g / 2), odd = shuffle<4>(scale[1], g / 2);
    return g % 2 == 0 ? even : odd;
  }
  // The lane's columns of a chunk and row: rounded to nearest into `state`, to nearest or by chance to memory.
  SSMJIT_DEVICE void put(RingState<Cfg>& state, State* stored, u64 place, u64 seed, int i, int c,
                         const float (&v)[S::kSpan]) const {
    constexpr int kPer = kPerWord<State>;
#pragma unroll
    for (int k = 0; k < S::kVectors; ++k)
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        float part[kPer];
#pragma unroll
        for (int e = 0; e < kPer; ++e) part[e] = v[k * S::kPerVector + w * kPer + e];
        state.raw[i][c][k].word[w] = pack_word(part, State{});
      }
    const int at = RingState<Cfg>::element(i, c, 0, g, q);
    if constexpr (Cfg::kPhiloxRounds > 0) {
      Vec16 chance;
      constexpr int kWords = 8 / kPer;  // of a draw
#pragma unroll
      for (int d = 0; d < S::kSpan / 8; ++d) {
        float eight[8];
#pragma unroll
        for (int e = 0; e < 8; ++e) eight[e] = v[8 * d + e];
        u32 word[kWords];
        round_stochastic(eight, state_draw<Cfg::kPhiloxRounds>(seed, place + at + 8 * d, 0), word, State{});
#pragma unroll
        for (int w = 0; w < kWords; ++w) chance.word[d * kWords + w] = word[w];
      }
      store_global<Cfg::kStreaming>(stored + at, chance);
    } else {
#pragma unroll
      for (int k = 0; k < S::kVectors; ++k)
        store_global<Cfg::kStreaming>(stored + at + k * S::kPerVector, state.raw[i][c][k]);
    }
  }

  // ---- outputs ----

  SSMJIT_DEVICE static u32 as_operand(u32 word) {
    if constexpr (is_same<Input, Operand>) {
      return word;
    } else {
      float v[2];
      unpack_word(word, v, Input{});
      return pack_word(v, Operand{});
    }
  }
  SSMJIT_DEVICE Input* out_row(int t, int h) const {
    return static_cast<Input*>(args.out) + row * args.out_stride + (first_token + t) * args.out_token_stride +
           static_cast<i64>(h) * Cfg::kHeadDim + first;
  }
  SSMJIT_DEVICE void write_zeros() const {
    constexpr int kVectors = S::kTiles;
    for (int i = 0; i < Cfg::kHeadsPerBlock; ++i)
      for (int e = lane; e < tokens * kVectors; e += 32)
        store_global<false>(out_row(e / kVectors, head + i) + 8 * (e % kVectors), Vec16{});
  }
};

// Grid: x = nheads / heads_per_block * (head_dim / block_m), y = batch. Block: 32 * warps threads.
template <class Cfg>
SSMJIT_DEVICE void ring_step(const RingArgs& args) {
  using S = RingShape<Cfg>;
  using Step = RingStep<Cfg>;
  using State = typename Cfg::State;
  using Input = typename Cfg::Input;
  using Weight = typename Cfg::Weight;
  __shared__ RingShared<Cfg> shared;
  const int lane = lane_index(), warp = thread_index() / 32;
  const int head = block_x() / S::kBlocks * Cfg::kHeadsPerBlock;
  if (args.pdl != kPdlOff) {
    grid_dependency_trigger();
    if (!Cfg::kEarlyState || args.pdl == kPdlWaitFirst) grid_dependency_wait();
  }
  const int row = block_y();
  const IndexEntry entry =
      IndexEntry::load(args.state_batch_indices, args.wide_indices, row * args.index_stride, row, args.A);
  i64 first_token = 0;
  int tokens = Cfg::kTokens;
  if constexpr (Cfg::kVarlen) {
    const int begin = static_cast<int>(load_now_b32(args.cu_seqlens + row));
    const int length = static_cast<int>(load_now_b32(args.cu_seqlens + row + 1)) - begin;
    first_token = begin;
    tokens = length < Cfg::kTokens ? length : Cfg::kTokens;
  }
  const Step step{args,  shared, row,      head,     block_x() % S::kBlocks * Cfg::kBlockM + warp * S::kWarpRows,
                  warp,  lane,   lane / 4, lane % 4, first_token,
                  tokens};
  const int g = step.g, q = step.q;
  if (Cfg::kVarlen && tokens <= 0) {  // no tokens: nothing is written
    if constexpr (Cfg::kEarlyState) grid_dependency_wait();
    return;
  }

  // Lane i has what head i of the block has one of.
  float A;
  Weight D, dt_bias;
  const int lane_head = head + (lane < Cfg::kHeadsPerBlock ? lane : Cfg::kHeadsPerBlock - 1);
  load_now(static_cast<const float*>(args.A) + lane_head, A);
  if constexpr (Cfg::kHasD) load_now(static_cast<const Weight*>(args.D) + lane_head, D);
  if constexpr (Cfg::kHasDtBias) load_now(static_cast<const Weight*>(args.dt_bias) + lane_head, dt_bias);

  // Warp w contracts tiles w, w + warps, ... with C: of the old rows, then of the new ones.
  constexpr int kOldMine = (S::kOldTiles + Cfg::kWarps - 1) / Cfg::kWarps;
  constexpr int kNewMine = (S::kNewTiles + Cfg::kWarps - 1) / Cfg::kWarps;
  const int new_warp =
      (warp + Cfg::kWarps - S::kOldTiles % Cfg::kWarps) % Cfg::kWarps;  // it goes on where old tiles end
  typename Step::HeadInputs in;
  RingColumns<Cfg> C[S::kNewTiles], old_B[kOldMine], new_B[kNewMine];
  const auto load_inputs = [&] {
#pragma unroll
    for (int n = 0; n < S::kNewTiles; ++n) C[n].load(step.C_row(8 * n + g), q);
#pragma unroll
    for (int k = 0; k < kNewMine; ++k) new_B[k].load(step.new_B_row(8 * (new_warp + k * Cfg::kWarps) + g), q);
    step.load_new(in, head, 0);
  };
  // What needs no slot is asked for while the slot is on its way.
  if constexpr (!Cfg::kEarlyState) load_inputs();
  const i64 slot = entry.value();
  if (slot < 0 || slot >= args.slots || slot == args.pad_slot_id) {
    if constexpr (Cfg::kEarlyState) grid_dependency_wait();
    copy_async_wait<0>();
    if constexpr (Cfg::kPadOutput == PadOutput::zeros) step.write_zeros();
    return;
  }

  RingState<Cfg> state;
  const State* const head_state = static_cast<const State*>(args.state) + slot * args.state_stride +
                                  static_cast<i64>(head) * S::kHeadSize + static_cast<i64>(step.first) * Cfg::kDstate;
  const int start_word = static_cast<int>(load_now_b32(args.ring_start + slot));
  const int count_word = static_cast<int>(load_now_b32(args.ring_count + slot));
  if constexpr (!S::kAll) state.load(head_state, g, q);
  // Out of range they are the caller's error, but no address leaves the ring.
  const int start = start_word < 0 ? 0 : start_word < Cfg::kRing ? start_word : Cfg::kRing - 1;
  const int count = count_word < 0 ? 0 : count_word < Cfg::kWindow ? count_word : Cfg::kWindow;
  const RingCursors<Cfg> at{start, count, tokens, count + tokens > Cfg::kWindow};
#pragma unroll
  for (int k = 0; k < kOldMine; ++k) {
    const int j = 8 * (warp + k * Cfg::kWarps) + g;
    old_B[k].load(step.ring_B_row(slot, at.place_of_old(j)), q);
  }
  step.load_old(in, slot, head, 0, at);
  if constexpr (S::kAll) state.load(head_state, g, q);
  if constexpr (Cfg::kEarlyState) {
    grid_dependency_wait();
    load_inputs();
  }
  copy_async_commit();

  // C . B of every row; the new rows into the ring, once a group; the old ones where a flush finds them.
  float CB[S::kRowTiles][4] = {};
  {
    float old_CB[kOldMine][4] = {}, new_CB[kNewMine][4] = {};
    Step::contract(new_CB, C, new_B);
    Step::contract(old_CB, C, old_B);
    const bool keeps_B = head % Cfg::kHeadsPerGroup == 0 && block_x() % S::kBlocks == 0;
#pragma unroll
    for (int k = 0; k < kNewMine; ++k) {
      const int tile = new_warp + k * Cfg::kWarps, t = 8 * tile + g;
      if (keeps_B && tile < S::kNewTiles && t < tokens) new_B[k].store(step.ring_B_row(slot, at.place_of_new(t)), q);
    }
    if (at.flush) {
#pragma unroll
      for (int k = 0; k < kOldMine; ++k) {
        const int tile = warp + k * Cfg::kWarps, j = 8 * tile + g;
        if (tile >= S::kOldTiles) continue;
        const bool used = at.old_in_use(j);
#pragma unroll
        for (int c = 0; c < S::kChunks; ++c)
#pragma unroll
          for (int w = 0; w < S::kSpan / 2; ++w)
            *reinterpret_cast<u32*>(&shared.B[j][4 * c * S::kSpan + 8 * w + 2 * q]) = used ? old_B[k].word[c][w] : 0u;
      }
    }
    if constexpr (Cfg::kWarps == 1) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
#pragma unroll
        for (int k = 0; k < S::kOldTiles; ++k) CB[k][e] = old_CB[k][e];
#pragma unroll
        for (int k = 0; k < S::kNewTiles; ++k) CB[S::kOldTiles + k][e] = new_CB[k][e];
      }
      sync_warp();
    } else {
      const auto share = [&](int tile, const float(&d)[4]) {
#pragma unroll
        for (int e = 0; e < 2 * S::kNewTiles; ++e) shared.CB[g + 8 * (e / 2)][8 * tile + 2 * q + e % 2] = d[e];
      };
#pragma unroll
      for (int k = 0; k < kOldMine; ++k)
        if (warp + k * Cfg::kWarps < S::kOldTiles) share(warp + k * Cfg::kWarps, old_CB[k]);
#pragma unroll
      for (int k = 0; k < kNewMine; ++k)
        if (new_warp + k * Cfg::kWarps < S::kNewTiles) share(S::kOldTiles + new_warp + k * Cfg::kWarps, new_CB[k]);
      sync_block();
#pragma unroll
      for (int i = 0; i < S::kRowTiles; ++i)
#pragma unroll
        for (int e = 0; e < 2 * S::kNewTiles; ++e) CB[i][e] = shared.CB[g + 8 * (e / 2)][8 * i + 2 * q + e % 2];
    }
  }
  // Bit 4 i + e: whether row e % 2 of the lane's pair in tile i weighs for its token.
  u32 weighs = 0;
#pragma unroll
  for (int i = 0; i < S::kRowTiles; ++i)
#pragma unroll
    for (int e = 0; e < 2 * S::kNewTiles; ++e) {
      const int j = 8 * i + 2 * q + e % 2, t = g + 8 * (e / 2);
      const bool old = i < S::kOldTiles;
      const bool does = old ? !at.flush && at.old_in_use(j) : j - S::kFirstNew <= t && j - S::kFirstNew < tokens;
      weighs |= (does ? 1u : 0u) << (4 * i + e);
    }

#pragma unroll 1
  for (int i = 0; i < Cfg::kHeadsPerBlock; ++i) {
    const int h = head + i, buffer = i % S::kXBuffers;
    const float A_h = Cfg::kHeadsPerBlock > 1 ? shuffle(A, i) : A;
    float D_h = 0.0f, bias = 0.0f;
    if constexpr (Cfg::kHasD) D_h = Cfg::kHeadsPerBlock > 1 ? shuffle(widen(D), i) : widen(D);
    if constexpr (Cfg::kHasDtBias) bias = Cfg::kHeadsPerBlock > 1 ? shuffle(widen(dt_bias), i) : widen(dt_bias);
    float delta[S::kLaneRows];
#pragma unroll
    for (int k = 0; k < S::kLaneRows; ++k) {
      const int j = lane + 32 * k, t = j - S::kFirstNew;
      const float fresh = Cfg::delta(widen(in.dt[k]), bias);
      delta[k] = at.in_use(j) ? (t < 0 ? in.old_delta[k] : fresh) : 0.0f;
      if (step.first == 0 && t >= 0 && t < tokens) *step.ring_delta(slot, h, at.place_of_new(t)) = fresh;
    }
    const float all_old = step.sum_rows(delta, A_h, at);
    if constexpr (S::kAll) step.store_masked_x(in, buffer, at);
    const typename Step::HeadInputs now = in;
    copy_async_wait<0>();
    sync_warp();
    if (i + 1 < Cfg::kHeadsPerBlock) {
      step.load_old(in, slot, h + 1, 1 - buffer, at);
      step.load_new(in, h + 1, 1 - buffer);
      copy_async_commit();
    }
    RingState<Cfg> used = state;
    if (Cfg::kStages == 2 && i + 1 < Cfg::kHeadsPerBlock)
      state.load(head_state + static_cast<i64>(i + 1) * S::kHeadSize, g, q);

    // x as operands, rows on the side of the sum; the new rows into the ring.
    u32 x[S::kRowTiles][S::kTiles];
#pragma unroll
    for (int j = 0; j < S::kRowTiles; ++j) {
      if constexpr (S::kTiles % 4 == 0) {
#pragma unroll
        for (int p = 0; p < S::kTiles; p += 4) {
          u32 four[4];
          load_matrix_transposed(four, &step.mine().x[buffer][8 * j + lane % 8][8 * (p + lane / 8)]);
#pragma unroll
          for (int k = 0; k < 4; ++k) x[j][p + k] = four[k];
        }
      } else {
        load_matrix_transposed(x[j], &step.mine().x[buffer][8 * j + lane % 8][8 * (lane / 8 % S::kTiles)]);
      }
    }
#pragma unroll
    for (int k = 0; k < Step::kNewLoads; ++k) {
      const int e = lane + 32 * k, t = e / Step::kRowVectors, v = e % Step::kRowVectors;
      if (t < tokens)
        store_global<false>(step.ring_x_row(slot, h, at.place_of_new(t)) + 8 * v,
                            load_shared(&step.mine().x[buffer][S::kFirstNew + t][8 * v]));
    }

    // The weights, as operands.
    float s[S::kNewTiles];
#pragma unroll
    for (int n = 0; n < S::kNewTiles; ++n) s[n] = step.mine().row[S::kFirstNew + g + 8 * n][0];
    u32 W[S::kRowTiles][S::kNewTiles];
#pragma unroll
    for (int j = 0; j < S::kRowTiles; ++j) {
      const typename Step::RowPair r = step.row_pair(j);
#pragma unroll
      for (int n = 0; n < S::kNewTiles; ++n) {
        float w[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          w[e] = CB[j][2 * n + e] * (exp2_fast_f32(s[n] - r.s[e]) * r.delta[e]);
          if ((weighs >> (4 * j + 2 * n + e) & 1u) == 0) w[e] = 0.0f;
        }
        W[j][n] = pack_word(w, Input{});
      }
    }

    float scale[S::kScaled ? S::kTiles : 1][2];
    if constexpr (S::kScaled) {
#pragma unroll
      for (int p = 0; p < S::kTiles; ++p) scale[p][0] = now.scale[p][0], scale[p][1] = now.scale[p][1];
    }
    if (at.flush) step.flush(used, scale, x, all_old, slot, h);
    const float base = at.flush ? all_old : 0.0f;

    float y[S::kTiles][4] = {};
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c)
#pragma unroll
      for (int m = 0; m < S::kSteps; ++m)
#pragma unroll
        for (int p = 0; p < S::kTiles; ++p)
          mma_m16n8k16(y[p],
                       {Step::as_operand(C[0].word[c][2 * m]), Step::as_operand(Step::upper(C).word[c][2 * m]),
                        Step::as_operand(C[0].word[c][2 * m + 1]), Step::as_operand(Step::upper(C).word[c][2 * m + 1])},
                       {used.operand(p, c, 2 * m), used.operand(p, c, 2 * m + 1)}, typename S::Operand{});
    if (Cfg::kStages == 1 && i + 1 < Cfg::kHeadsPerBlock)
      state.load(head_state + static_cast<i64>(i + 1) * S::kHeadSize, g, q);
#pragma unroll
    for (int n = 0; n < S::kNewTiles; ++n) {
      const float decay = exp2_fast_f32(s[n] - base);
#pragma unroll
      for (int p = 0; p < S::kTiles; ++p)
#pragma unroll
        for (int e = 0; e < 2; ++e) y[p][2 * n + e] *= S::kScaled ? decay * scale[p][e] : decay;
    }
    constexpr int kUpper = S::kNewTiles - 1;
#pragma unroll
    for (int p = 0; p < S::kTiles; ++p) {
#pragma unroll
      for (int j = 0; j + 1 < S::kRowTiles; j += 2)
        mma_m16n8k16(y[p], {W[j][0], W[j][kUpper], W[j + 1][0], W[j + 1][kUpper]}, {x[j][p], x[j + 1][p]}, Input{});
      if constexpr (S::kRowTiles % 2 == 1) {
        constexpr int j = S::kRowTiles - 1;
        mma_m16n8k8(y[p], {W[j][0], W[j][kUpper]}, {x[j][p]}, Input{});
      }
    }

#pragma unroll
    for (int n = 0; n < S::kNewTiles; ++n) {
      const int t = g + 8 * n;
      if (t >= tokens) continue;
      Input* const out = step.out_row(t, h);
#pragma unroll
      for (int p = 0; p < S::kTiles; ++p) {
        float v[2] = {y[p][2 * n], y[p][2 * n + 1]};
        if constexpr (Cfg::kHasSkip) {
          float own[2];
          unpack_word(*reinterpret_cast<const u32*>(&step.mine().x[buffer][S::kFirstNew + t][8 * p + 2 * q]), own,
                      Input{});
          v[0] += Cfg::skip(D_h, own[0]);
          v[1] += Cfg::skip(D_h, own[1]);
        }
        if constexpr (Cfg::kHasGate) {
          float z[2];
          unpack_word(now.z[n][p], z, Input{});
          v[0] *= Cfg::gate(z[0]);
          v[1] *= Cfg::gate(z[1]);
        }
        *reinterpret_cast<u32*>(out + 8 * p + 2 * q) = pack_word(v, Input{});
      }
    }
    sync_warp();
  }
}
