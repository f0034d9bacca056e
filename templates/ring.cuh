#pragma once
#include "device/barrier.cuh"
#include "device/basic.cuh"
#include "device/convert.cuh"
#include "device/memory.cuh"
#include "device/mma.cuh"
#include "device/shuffle.cuh"
#include "index.cuh"
#include "maths.cuh"
#include "ring_args.cuh"
// A decode step of kTokens tokens that leaves the state where it is. What past steps brought (x, B, delta) is kept in a
// ring; the state is brought up to date and written only by the step for which the ring has no room (flush iff
// count + tokens > window). With s the running sum of A * delta over the ring's rows, oldest first, and the new ones:
//
//   y[t, p] = exp(s[t]) * sum over n of h[p, n] * C[t, n] + sum over rows j up to t of W[t, j] * x[j, p]
//   W[t, j] = (sum over n of C[t, n] * B[j, n]) * exp(s[t] - s[j]) * delta[j]
//   y += Cfg::skip(D, x[t, p]);  y *= Cfg::gate(z[t, p])
//
// In a flush, with s' the sum up to the last old row, what is stored is
//
//   h'[p, n] = exp(s') * h[p, n] + sum over old rows j of exp(s' - s[j]) * delta[j] * x[j, p] * B[j, n]
//
// and y is that of h' as stored and an empty ring.
//
// The products run on the tensor cores, head_dim on the side of 16 and tokens on the side of 8, so that few tokens
// waste no rows. A warp takes 16 rows of head_dim. The state goes from memory straight into operands: a lane's 16-byte
// vectors are the fragments of a contraction in another order of dstate, and the operand across (C, B) is loaded in the
// same order.
//
// No address waits for the cursors: all ring rows are read where they lie, beside the new ones, and rows that are not
// in use are masked before any arithmetic; the order of rows in a sum does not matter. Rows out of use may be appended
// to by another block of the same launch.

enum class RingPad { zeros, untouched };

template <class A, class B>
constexpr bool is_same = false;
template <class A>
constexpr bool is_same<A, A> = true;

template <class Cfg>
struct RingShape {
  static constexpr int kRows = Cfg::kRing + Cfg::kTokens;  // the ring's, then the new ones
  static constexpr int kRowTiles = (kRows + 15) / 16;
  static constexpr int kTokenTiles = (Cfg::kTokens + 7) / 8;
  static constexpr int kChunks = Cfg::kDstate / 32;
  static constexpr int kBlockM = 16 * Cfg::kWarps;
  static constexpr int kTiles = Cfg::kHeadDim / kBlockM;
  static constexpr int kStateVectors = static_cast<int>(sizeof(typename Cfg::State)) / 2;  // of a chunk and row
  static constexpr int kHeadSize = Cfg::kHeadDim * Cfg::kDstate;
  static_assert(kRows <= 32, "a lane holds the delta of one row");
  static_assert(Cfg::kDstate % 32 == 0 && Cfg::kHeadDim % kBlockM == 0);
};

// Rows of 16-bit elements in shared memory, padded so that eight rows of a matrix load meet no bank twice.
constexpr int kXRow = 16 + 8;

template <class Cfg>
struct RingShared {
  using S = RingShape<Cfg>;
  using Input = typename Cfg::Input;
  alignas(16) Input
      x[Cfg::kWarps][2][S::kRowTiles * 16][kXRow];  // of the warp's rows of head_dim, this head's and the next one's
  alignas(16) Input W[Cfg::kHeadsPerBlock][S::kTokenTiles * 8][S::kRowTiles * 16 + 8];
  float CB[S::kTokenTiles * 8][S::kRowTiles * 16 + 4];  // C . B, before the heads' factors
  float token_decay[Cfg::kHeadsPerBlock][S::kTokenTiles * 8];
  float row_factor[Cfg::kHeadsPerBlock][S::kRowTiles * 16];  // of an old row in a flush
  float state_decay[Cfg::kHeadsPerBlock];                    // of the state in a flush
  float D[Cfg::kHeadsPerBlock];
  alignas(16) Input B[S::kRowTiles * 16][Cfg::kDstate + 8];  // old rows for a flush, dstate in the fragments' order
};

// The lane's state: rows g and g + 8 of the warp's 16, in each chunk of 32 columns the 8 from 8 q on.
template <class Cfg>
struct RingState {
  using S = RingShape<Cfg>;
  using State = typename Cfg::State;
  Vec16 row[2][S::kChunks][S::kStateVectors];

  SSMJIT_DEVICE void load(const State* first, int g, int q) {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c)
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int v = 0; v < S::kStateVectors; ++v)
          row[r][c][v] = load_global<Cfg::kStreaming>(first + (g + 8 * r) * Cfg::kDstate + c * 32 + q * 8 +
                                                      v * (8 / S::kStateVectors));
  }
  // Columns 2 w and 2 w + 1 of the eight.
  SSMJIT_DEVICE void pair(int r, int c, int w, float (&v)[2]) const {
    if constexpr (S::kStateVectors == 1) {
      unpack_word(row[r][c][0].word[w], v, State{});
    } else {
      float one[1];
      unpack_word(row[r][c][w / 2].word[2 * (w % 2)], one, float{});
      v[0] = one[0];
      unpack_word(row[r][c][w / 2].word[2 * (w % 2) + 1], one, float{});
      v[1] = one[0];
    }
  }
  SSMJIT_DEVICE void set_pair(int r, int c, int w, const float (&v)[2]) {
    if constexpr (S::kStateVectors == 1) {
      row[r][c][0].word[w] = pack_word(v, State{});
    } else {
      const float low[1] = {v[0]}, high[1] = {v[1]};
      row[r][c][w / 2].word[2 * (w % 2)] = pack_word(low, float{});
      row[r][c][w / 2].word[2 * (w % 2) + 1] = pack_word(high, float{});
    }
  }
  // The same as an operand word.
  template <class Operand>
  SSMJIT_DEVICE u32 operand(int r, int c, int w, Operand type) const {
    if constexpr (is_same<State, Operand>) {
      return row[r][c][0].word[w];
    } else {
      float v[2];
      pair(r, c, w, v);
      return pack_word(v, type);
    }
  }
  SSMJIT_DEVICE void store(State* first, int g, int q) const {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c)
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int v = 0; v < S::kStateVectors; ++v)
          store_global<Cfg::kStreaming>(
              first + (g + 8 * r) * Cfg::kDstate + c * 32 + q * 8 + v * (8 / S::kStateVectors), row[r][c][v]);
  }
};

// What a warp does of a step.
template <class Cfg>
struct RingStep {
  using S = RingShape<Cfg>;
  using State = typename Cfg::State;
  using Input = typename Cfg::Input;
  // Products with the state are in bf16 where fp16 could overflow.
  using Operand = typename Cfg::StateOperand;

  const RingArgs& args;
  RingShared<Cfg>& shared;
  int row;    // request
  int group;  // of the block's heads
  int head;   // the block's first
  int first;  // the block's first row of head_dim
  int warp, lane, g, q;

  SSMJIT_DEVICE int head_row() const { return first + warp * 16; }

  // ---- rows of B, C and x ----
  // A row that there is not (past the last token, past the last row) is read as another: a load under a condition would
  // make the loads behind it wait, and what such rows give is dropped later.

  // The lane's 8 columns from 32 c + 8 q on, of one row.
  SSMJIT_DEVICE void load_columns(Vec16 (&v)[S::kChunks], const Input* p) const {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) v[c] = load_maybe_appended<false>(p + c * 32 + q * 8);
  }
  SSMJIT_DEVICE const Input* token(const void* base, i64 stride, i64 token_stride, int t, i64 at) const {
    const int last = t < Cfg::kTokens ? t : Cfg::kTokens - 1;
    return static_cast<const Input*>(base) + row * stride + (last < 0 ? 0 : last) * token_stride + at;
  }
  SSMJIT_DEVICE const Input* C_row(int t) const {
    return token(args.C, args.C_stride, args.C_token_stride, t, static_cast<i64>(group) * Cfg::kDstate);
  }
  SSMJIT_DEVICE const Input* B_row(i64 slot, int j) const {
    return j < Cfg::kRing ? static_cast<const Input*>(args.B_ring) + slot * args.B_ring_stride +
                                (static_cast<i64>(group) * Cfg::kRing + j) * Cfg::kDstate
                          : token(args.B, args.B_stride, args.B_token_stride, j - Cfg::kRing,
                                  static_cast<i64>(group) * Cfg::kDstate);
  }
  // A lane holds half of each row of the warp's 16 columns of x: rows 16 i + lane / 2.
  SSMJIT_DEVICE void load_x(Vec16 (&v)[S::kRowTiles], i64 slot, int h) const {
    const int column = head_row() + lane % 2 * 8;
#pragma unroll
    for (int i = 0; i < S::kRowTiles; ++i) {
      const int j = 16 * i + lane / 2;
      const Input* p = j < Cfg::kRing ? static_cast<const Input*>(args.x_ring) + slot * args.x_ring_stride +
                                            (static_cast<i64>(h) * Cfg::kRing + j) * Cfg::kHeadDim + column
                                      : token(args.x, args.x_stride, args.x_token_stride, j - Cfg::kRing,
                                              static_cast<i64>(h) * Cfg::kHeadDim + column);
      v[i] = load_maybe_appended<false>(p);
    }
  }

  // ---- what the cursors say of a row: rows [0, kRing) are the ring's as they lie, then come the new ones ----

  struct Cursors {
    int start, count;
    bool flush;
    // How many rows are older; meaningless for a row that is not in use.
    SSMJIT_DEVICE int age(int j) const {
      const int from_start = j - start;
      return j >= Cfg::kRing ? count + j - Cfg::kRing : from_start < 0 ? from_start + Cfg::kRing : from_start;
    }
    SSMJIT_DEVICE bool in_use(int j) const { return j < S::kRows && (j >= Cfg::kRing || age(j) < count); }
    // The row that is the a-th in age.
    SSMJIT_DEVICE int row_of(int a) const {
      const int at = start + a;
      return a >= count ? Cfg::kRing + a - count : at < Cfg::kRing ? at : at - Cfg::kRing;
    }
    // Where new row t is kept.
    SSMJIT_DEVICE int place(int t) const {
      const int at = start + count + t;
      return at < Cfg::kRing ? at : at - Cfg::kRing;
    }
  };

  // C . B of a tile of rows, for every token: rows on the side of 16.
  SSMJIT_DEVICE void contract(float (&sum)[S::kTokenTiles][4], const Vec16 (&rows)[2][S::kChunks],
                              const Vec16 (&C)[S::kTokenTiles][S::kChunks]) const {
#pragma unroll
    for (int n = 0; n < S::kTokenTiles; ++n) {
      float part[2][4] = {};
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c)
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const u32 a[4] = {rows[0][c].word[2 * m], rows[1][c].word[2 * m], rows[0][c].word[2 * m + 1],
                            rows[1][c].word[2 * m + 1]};
          const u32 b[2] = {C[n][c].word[2 * m], C[n][c].word[2 * m + 1]};
          mma_m16n8k16(part[m], a, b, Input{});
        }
#pragma unroll
      for (int k = 0; k < 4; ++k) sum[n][k] = part[0][k] + part[1][k];
    }
  }

  // The factors of head i of the block, by one warp; CB stands in shared memory. `delta`: lane j has row j's.
  SSMJIT_DEVICE void weigh(int i, float delta, float A, const Cursors& at) const {
    // Sums run in the order of age.
    const int aged = at.row_of(lane);
    const float delta_aged = shuffle(delta, aged < S::kRows ? aged : 0);
    // In powers of two, so that a factor is one instruction.
    const float s_aged = scan_lanes(lane < at.count + Cfg::kTokens ? delta_aged * A * 1.442695041f : 0.0f);
    const float all_old = shuffle(s_aged, at.count > 0 ? at.count - 1 : 0);
    const float old = at.count > 0 ? all_old : 0.0f;
    const float base = at.flush ? old : 0.0f;
    const bool in_use = at.in_use(lane);
    const float s = shuffle(s_aged, in_use ? at.age(lane) : 0);
    const bool weighs = in_use && (lane >= Cfg::kRing || !at.flush);
#pragma unroll
    for (int t = 0; t < S::kTokenTiles * 8; ++t) {
      float w = 0.0f;
      if (t < Cfg::kTokens) {
        const float s_t = shuffle(s_aged, at.count + t);
        if (weighs && (lane < Cfg::kRing || lane - Cfg::kRing <= t))
          w = shared.CB[t][lane < S::kRowTiles * 16 ? lane : 0] * exp2_fast_f32(s_t - s) * delta;
        if (lane == 0) shared.token_decay[i][t] = exp2_fast_f32(s_t - base);
      }
      if (lane < S::kRowTiles * 16) narrow(w, shared.W[i][t][lane]);
    }
    if (at.flush) {
      if (lane < S::kRowTiles * 16)
        shared.row_factor[i][lane] = in_use && lane < Cfg::kRing ? exp2_fast_f32(old - s) * delta : 0.0f;
      if (lane == 0) shared.state_decay[i] = exp2_fast_f32(old);
    }
  }

  // h' of the warp's rows: the state's decay, and x by B over the old rows. x times its factor goes in two parts, so
  // that the product keeps more digits than an operand has.
  SSMJIT_DEVICE void flush_state(RingState<Cfg>& state, int i, int buffer) const {
    constexpr int kOldTiles = (Cfg::kRing + 15) / 16;
    u32 high[kOldTiles][4], low[kOldTiles][4];
#pragma unroll
    for (int m = 0; m < kOldTiles; ++m) {
      u32 x[4];
      load_matrix_transposed(x, &shared.x[warp][buffer][16 * m + lane % 8 + (lane / 16) * 8][(lane / 8) % 2 * 8]);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int j = 16 * m + 2 * q + 8 * (k / 2);
        float v[2], part[2], rest[2];
        unpack_word(x[k], v, Input{});
        v[0] *= shared.row_factor[i][j];
        v[1] *= shared.row_factor[i][j + 1];
        high[m][k] = pack_word(v, Input{});
        unpack_word(high[m][k], part, Input{});
        rest[0] = v[0] - part[0];
        rest[1] = v[1] - part[1];
        low[m][k] = pack_word(rest, Input{});
      }
    }
    const float decay = shared.state_decay[i];
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c)
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int m = 0; m < kOldTiles; ++m) {
          u32 b[2];
          load_matrix_transposed(b, &shared.B[16 * m + lane % 16][c * 32 + w * 8]);
          mma_m16n8k16(sum, high[m], b, Input{});
          mma_m16n8k16(sum, low[m], b, Input{});
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float v[2];
          state.pair(r, c, w, v);
          v[0] = fma_f32(v[0], decay, sum[2 * r]);
          v[1] = fma_f32(v[1], decay, sum[2 * r + 1]);
          state.set_pair(r, c, w, v);
        }
      }
  }

  // y of head h, from the state and the weights.
  SSMJIT_DEVICE void put_out(const RingState<Cfg>& state, const Vec16 (&C)[S::kTokenTiles][S::kChunks], int i,
                             int buffer) const {
    const int h = head + i;
    const float D = Cfg::kHasD ? shared.D[i] : 0.0f;
    u32 x[S::kRowTiles][4];
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m)
      load_matrix_transposed(x[m], &shared.x[warp][buffer][16 * m + lane % 8 + (lane / 16) * 8][(lane / 8) % 2 * 8]);
#pragma unroll
    for (int n = 0; n < S::kTokenTiles; ++n) {
      float part[2][4] = {};
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c)
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const u32 a[4] = {state.operand(0, c, 2 * m, Operand{}), state.operand(1, c, 2 * m, Operand{}),
                            state.operand(0, c, 2 * m + 1, Operand{}), state.operand(1, c, 2 * m + 1, Operand{})};
          const u32 b[2] = {as_operand(C[n][c].word[2 * m]), as_operand(C[n][c].word[2 * m + 1])};
          mma_m16n8k16(part[m], a, b, Operand{});
        }
      const int t0 = n * 8 + 2 * q;
      const float decay[2] = {t0 < Cfg::kTokens ? shared.token_decay[i][t0] : 0.0f,
                              t0 + 1 < Cfg::kTokens ? shared.token_decay[i][t0 + 1] : 0.0f};
      float y[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) y[k] = (part[0][k] + part[1][k]) * decay[k % 2];
#pragma unroll
      for (int m = 0; m < S::kRowTiles; ++m) {
        const u32* w = reinterpret_cast<const u32*>(&shared.W[i][n * 8 + g][16 * m + 2 * q]);
        const u32 b[2] = {w[0], w[4]};
        mma_m16n8k16(y, x[m], b, Input{});
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int t = n * 8 + 2 * q + k % 2, p = g + 8 * (k / 2);
        if (t >= Cfg::kTokens) continue;
        const i64 at = static_cast<i64>(h) * Cfg::kHeadDim + head_row() + p;
        float v = y[k];
        if constexpr (Cfg::kHasSkip) v += Cfg::skip(D, widen(shared.x[warp][buffer][Cfg::kRing + t][p]));
        if constexpr (Cfg::kHasGate) {
          Input z;
          load_now(static_cast<const Input*>(args.z) + row * args.z_stride + t * args.z_token_stride + at, z);
          v *= Cfg::gate(widen(z));
        }
        narrow(v, static_cast<Input*>(args.out)[row * args.out_stride + t * args.out_token_stride + at]);
      }
    }
  }
  SSMJIT_DEVICE static u32 as_operand(u32 word) {
    if constexpr (is_same<Input, Operand>) {
      return word;
    } else {
      float v[2];
      unpack_word(word, v, Input{});
      return pack_word(v, Operand{});
    }
  }

  SSMJIT_DEVICE void write_zeros() const {
    for (int i = 0; i < Cfg::kHeadsPerBlock; ++i)
      for (int e = lane; e < Cfg::kTokens * 16; e += 32)
        narrow(0.0f, static_cast<Input*>(args.out)[row * args.out_stride + e / 16 * args.out_token_stride +
                                                   static_cast<i64>(head + i) * Cfg::kHeadDim + head_row() + e % 16]);
  }
};

// Grid: x = nheads / heads_per_block * (head_dim / (16 * warps)), y = batch. Block: 32 * warps threads.
template <class Cfg>
SSMJIT_DEVICE void ring_step(const RingArgs& args) {
  using S = RingShape<Cfg>;
  using State = typename Cfg::State;
  using Input = typename Cfg::Input;
  __shared__ RingShared<Cfg> shared;
  const int lane = lane_index();
  const int head = block_x() / S::kTiles * Cfg::kHeadsPerBlock;
  const RingStep<Cfg> at{args,
                         shared,
                         block_y(),
                         head / Cfg::kHeadsPerGroup,
                         head,
                         block_x() % S::kTiles * S::kBlockM,
                         thread_index() / 32,
                         lane,
                         lane / 4,
                         lane % 4};
  if (args.pdl != 0) {
    grid_dependency_trigger();
    if (!Cfg::kEarlyState || args.pdl == 1) grid_dependency_wait();
  }
  const IndexEntry entry =
      IndexEntry::load(args.state_batch_indices, args.wide_indices, at.row * args.index_stride, at.row, args.A);
  constexpr int kMine = (Cfg::kHeadsPerBlock + Cfg::kWarps - 1) / Cfg::kWarps;  // heads whose factors a warp works out
  float A[kMine];
  typename Cfg::Weight D[kMine], dt_bias[kMine];
#pragma unroll
  for (int k = 0; k < kMine; ++k) {
    const int i = at.warp + k * Cfg::kWarps;
    const int h = head + (i < Cfg::kHeadsPerBlock ? i : 0);
    load_now(static_cast<const float*>(args.A) + h, A[k]);
    if constexpr (Cfg::kHasD) load_now(static_cast<const typename Cfg::Weight*>(args.D) + h, D[k]);
    if constexpr (Cfg::kHasDtBias) load_now(static_cast<const typename Cfg::Weight*>(args.dt_bias) + h, dt_bias[k]);
  }
  const i64 slot = entry.value();
  if (slot < 0 || slot >= args.slots || slot == args.pad_slot_id) {
    if constexpr (Cfg::kEarlyState) grid_dependency_wait();
    if constexpr (Cfg::kPad == RingPad::zeros) at.write_zeros();
    return;
  }

  State* const state_of_head = static_cast<State*>(args.state) + slot * args.state_stride +
                               static_cast<i64>(head) * S::kHeadSize + static_cast<i64>(at.head_row()) * Cfg::kDstate;
  const typename RingStep<Cfg>::Cursors cursors = [&] {
    u32 start, count;
    start = load_now_b32(args.ring_start + slot);
    count = load_now_b32(args.ring_count + slot);
    return typename RingStep<Cfg>::Cursors{static_cast<int>(start), static_cast<int>(count),
                                           static_cast<int>(count) + Cfg::kTokens > Cfg::kWindow};
  }();
  constexpr int kTilesMine = (S::kRowTiles + Cfg::kWarps - 1) / Cfg::kWarps;  // row tiles it contracts with C
  float* const dt_ring = static_cast<float*>(args.dt_ring) + slot * args.dt_ring_stride;
  RingState<Cfg> state;
  if constexpr (Cfg::kEarlyState) {
    state.load(state_of_head, at.g, at.q);
    grid_dependency_wait();
  }
  const int new_row = lane - Cfg::kRing;  // the lane's, of those whose delta it has
  const int token = new_row < 0 ? 0 : new_row < Cfg::kTokens ? new_row : Cfg::kTokens - 1;
  float old_delta[kMine];
  typename Cfg::Dt dt[kMine];
#pragma unroll
  for (int k = 0; k < kMine; ++k) {
    const int i = at.warp + k * Cfg::kWarps;
    const int h = head + (i < Cfg::kHeadsPerBlock ? i : 0);
    old_delta[k] = load_maybe_appended_f32(dt_ring + h * Cfg::kRing + (lane < Cfg::kRing ? lane : 0));
    load_now(static_cast<const typename Cfg::Dt*>(args.dt) + at.row * args.dt_stride + token * args.dt_token_stride + h,
             dt[k]);
  }
  Vec16 C[S::kTokenTiles][S::kChunks];
#pragma unroll
  for (int n = 0; n < S::kTokenTiles; ++n) at.load_columns(C[n], at.C_row(8 * n + at.g));
  Vec16 rows[kTilesMine][2][S::kChunks];
#pragma unroll
  for (int k = 0; k < kTilesMine; ++k)
#pragma unroll
    for (int r = 0; r < 2; ++r)
      at.load_columns(rows[k][r], at.B_row(slot, 16 * (at.warp + k * Cfg::kWarps) + at.g + 8 * r));
  Vec16 x[S::kRowTiles];
  at.load_x(x, slot, head);
  if constexpr (!Cfg::kEarlyState) state.load(state_of_head, at.g, at.q);

  float delta[kMine];
#pragma unroll
  for (int k = 0; k < kMine; ++k) {
    float bias = 0.0f;
    if constexpr (Cfg::kHasDtBias) bias = widen(dt_bias[k]);
    delta[k] = lane < Cfg::kRing ? old_delta[k] : Cfg::delta(widen(dt[k]), bias);
  }

  // What is new goes into the ring: B once a group, delta once a head.
  const bool first_tile = at.first == 0;
#pragma unroll
  for (int k = 0; k < kMine; ++k) {
    const int i = at.warp + k * Cfg::kWarps, t = lane - Cfg::kRing;
    if (first_tile && i < Cfg::kHeadsPerBlock && t >= 0 && t < Cfg::kTokens)
      dt_ring[(head + i) * Cfg::kRing + cursors.place(t)] = delta[k];
  }
#pragma unroll
  for (int k = 0; k < kTilesMine; ++k) {
    const int tile = at.warp + k * Cfg::kWarps;
    if (tile >= S::kRowTiles) continue;
    float sum[S::kTokenTiles][4];
    at.contract(sum, rows[k], C);
#pragma unroll
    for (int n = 0; n < S::kTokenTiles; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) shared.CB[n * 8 + 2 * at.q + e % 2][16 * tile + at.g + 8 * (e / 2)] = sum[n][e];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int j = 16 * tile + at.g + 8 * r, t = j - Cfg::kRing;
      if (t >= 0 && t < Cfg::kTokens && first_tile && head % Cfg::kHeadsPerGroup == 0) {
        Input* p = static_cast<Input*>(args.B_ring) + slot * args.B_ring_stride +
                   (static_cast<i64>(at.group) * Cfg::kRing + cursors.place(t)) * Cfg::kDstate + at.q * 8;
#pragma unroll
        for (int c = 0; c < S::kChunks; ++c) store_global<false>(p + c * 32, rows[k][r][c]);
      }
      if (cursors.flush) {
        const bool old = j < Cfg::kRing && cursors.in_use(j);
#pragma unroll
        for (int c = 0; c < S::kChunks; ++c)
#pragma unroll
          for (int w = 0; w < 4; ++w)
            *reinterpret_cast<u32*>(&shared.B[j][c * 32 + w * 8 + 2 * at.q]) = old ? rows[k][r][c].word[w] : 0u;
      }
    }
  }
  sync_block();
#pragma unroll
  for (int k = 0; k < kMine; ++k)
    if (at.warp + k * Cfg::kWarps < Cfg::kHeadsPerBlock) {
      at.weigh(at.warp + k * Cfg::kWarps, delta[k], A[k], cursors);
      if constexpr (Cfg::kHasD)
        if (lane == 0) shared.D[at.warp + k * Cfg::kWarps] = widen(D[k]);
    }
  sync_block();

#pragma unroll 1
  for (int i = 0; i < Cfg::kHeadsPerBlock; ++i) {
    const int buffer = i % 2, h = head + i;
    // x of this head to shared memory, rows out of use as zeros; the new ones into the ring.
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m) {
      const int j = 16 * m + lane / 2, t = j - Cfg::kRing;
      const Vec16 v = cursors.in_use(j) ? x[m] : Vec16{};
      store_shared(&shared.x[at.warp][buffer][j][lane % 2 * 8], v);
      if (t >= 0 && t < Cfg::kTokens)
        store_global<false>(static_cast<Input*>(args.x_ring) + slot * args.x_ring_stride +
                                (static_cast<i64>(h) * Cfg::kRing + cursors.place(t)) * Cfg::kHeadDim + at.head_row() +
                                lane % 2 * 8,
                            v);
    }
    sync_warp();
    RingState<Cfg> now = state;
    if (i + 1 < Cfg::kHeadsPerBlock) {
      state.load(state_of_head + static_cast<i64>(i + 1) * S::kHeadSize, at.g, at.q);
      at.load_x(x, slot, h + 1);
    }
    if (cursors.flush) {
      at.flush_state(now, i, buffer);
      now.store(state_of_head + static_cast<i64>(i) * S::kHeadSize, at.g, at.q);
    }
    at.put_out(now, C, i, buffer);
  }
}
