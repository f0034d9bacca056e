#pragma once
#include "device/barrier.cuh"
#include "device/basic.cuh"
#include "device/convert.cuh"
#include "device/memory.cuh"
#include "device/shuffle.cuh"
#include "device/warp.cuh"
#include "index.cuh"
#include "launch.cuh"
#include "maths.cuh"
#include "random.cuh"
#include "rounding.cuh"
#include "update_tokens_args.cuh"
// One step of several tokens of a state-space layer, of one request after the other token by token:
//
//   delta = Cfg::delta(dt, dt_bias)            a head and token
//   h[p, n] <- decay * h[p, n] + (delta * x[p]) * B[n]
//   y[p] = sum over n of h[p, n] * C[n]        from the fp32 h, not from what is stored
//   y[p] += Cfg::skip(D, x[p]);  y[p] *= Cfg::gate(z[p])
//
// h stays in fp32 registers from the first token to the last and is rounded only where it is stored: after every token
// (snapshots, slots), after the last one (in place), or both. What costs are these stores: a state is read once and
// written up to once a token. A block takes block_m rows of head_dim of one head and request; a warp takes block_m /
// warps neighbouring rows, lanes_per_row lanes share a row of dstate in 16-byte vectors. x, B, C and z of all tokens
// (of up to 16 at once) come into shared memory by one round of copies, under way while the slot's index is; delta and
// decay of token t are computed by lane t.
//
// A lane reads all of its elements before it writes any, and no other lane touches them, so that the slot that is read
// may be one of those that are written.

enum class StateStore { in_place, snapshots, slots };

// Sizes that follow from Cfg. Cfg is a struct of constants: kHeadDim, kDstate, kHeadsPerGroup, kTokens, the types
// State, Input, Dt, Weight, kPadOutput, kStore, kDestination, kAccepted, kTree, kVarlen, kPhiloxRounds, the plan's
// fields, and the functions delta, decay, skip, gate.
template <class Cfg>
struct TokensShape {
  static constexpr int kVecElements = 16 / static_cast<int>(sizeof(typename Cfg::State));
  static constexpr int kRowVectors = Cfg::kDstate / kVecElements;
  static constexpr int kLanes = Cfg::kLanesPerRow;
  static constexpr int kVectors = (kRowVectors + kLanes - 1) / kLanes;  // a lane and row; the last may be past the end
  static constexpr bool kRagged = kRowVectors % kLanes != 0;
  static constexpr int kRowsPerWarp = Cfg::kBlockM / Cfg::kWarps;
  static constexpr int kRows = kRowsPerWarp / (32 / kLanes);  // a lane
  static constexpr int kTiles = Cfg::kHeadDim / Cfg::kBlockM;
  static constexpr i64 kHeadSize = Cfg::kHeadDim * Cfg::kDstate;
  static constexpr bool kScaled = is_scaled(typename Cfg::State{});
  static constexpr bool kEveryToken = Cfg::kStore != StateStore::in_place;
  static constexpr int kChunk = Cfg::kTokens < 16 ? Cfg::kTokens : 16;  // tokens whose inputs are in shared memory
  static constexpr int kTurn = Cfg::kStages < kChunk ? Cfg::kStages : kChunk;  // tokens that a turn of the loop takes
  using Sums = RowSums<kRows, kLanes>;
  static constexpr int kOwned = Sums::owned();
};

// kCount neighbouring elements of shared memory as they lie there, widened where they are used. The address is a
// multiple of the largest power of two (up to 16 bytes) that divides their size.
template <class T, int kCount>
struct Staged {
  static constexpr int kBytes = kCount * static_cast<int>(sizeof(T));
  static constexpr bool kWords = kBytes % 4 == 0;
  static constexpr int kPer = kPerWord<T>;
  T element[kWords ? 1 : kCount];
  u32 word[kWords ? kBytes / 4 : 1];

  SSMJIT_DEVICE void load(const T* p) {
    if constexpr (kBytes % 16 == 0) {
#pragma unroll
      for (int i = 0; i < kBytes / 4; i += 4) {
        const Vec16 v = load_shared(reinterpret_cast<const u32*>(p) + i);
#pragma unroll
        for (int j = 0; j < 4; ++j) word[i + j] = v.word[j];
      }
    } else if constexpr (kBytes % 8 == 0) {
#pragma unroll
      for (int i = 0; i < kBytes / 4; i += 2) {
        const u64 v = reinterpret_cast<const u64*>(p)[i / 2];
        word[i] = static_cast<u32>(v);
        word[i + 1] = static_cast<u32>(v >> 32);
      }
    } else if constexpr (kWords) {
#pragma unroll
      for (int i = 0; i < kBytes / 4; ++i) word[i] = reinterpret_cast<const u32*>(p)[i];
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) element[i] = p[i];
    }
  }
  SSMJIT_DEVICE void zero() {
    if constexpr (kWords) {
#pragma unroll
      for (int i = 0; i < kBytes / 4; ++i) word[i] = 0;
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) element[i] = T{};
    }
  }
  SSMJIT_DEVICE void widen_to(float (&v)[kCount]) const {
    if constexpr (kWords) {
#pragma unroll
      for (int w = 0; w < kBytes / 4; ++w) {
        float part[kPer];
        unpack_word(word[w], part, T{});
#pragma unroll
        for (int e = 0; e < kPer; ++e) v[w * kPer + e] = part[e];
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) v[i] = widen(element[i]);
    }
  }
};

// The inputs of up to kChunk tokens: of the request's group, and of the block's rows.
template <class Cfg>
struct TokenStage {
  using Input = typename Cfg::Input;
  static constexpr int kChunk = TokensShape<Cfg>::kChunk;
  alignas(16) Input B[kChunk][Cfg::kDstate];
  alignas(16) Input C[kChunk][Cfg::kDstate];
  alignas(16) Input x[kChunk][Cfg::kBlockM];
  alignas(16) Input z[Cfg::kHasGate ? kChunk : 1][Cfg::kBlockM];
};

// The state of a lane, in fp32.
template <class Cfg>
struct LaneState {
  using S = TokensShape<Cfg>;
  float v[S::kRows][S::kVectors][S::kVecElements];
};

// What a lane needs of one token, as it lies in shared memory.
template <class Cfg>
struct LaneToken {
  using S = TokensShape<Cfg>;
  using Input = typename Cfg::Input;
  Staged<Input, S::kVecElements> B[S::kVectors], C[S::kVectors];
  Staged<Input, S::kRows> x;  // of the rows whose state the lane holds
};

// An index of each lane, read by all of the warp.
SSMJIT_DEVICE i64 shuffle_index(i64 v, int lane) {
  const u32 low = shuffle(static_cast<u32>(v), lane), high = shuffle(static_cast<u32>(static_cast<u64>(v) >> 32), lane);
  return static_cast<i64>(static_cast<u64>(high) << 32 | low);
}

template <class Cfg>
struct TokensStep {
  using S = TokensShape<Cfg>;
  using State = typename Cfg::State;
  using Input = typename Cfg::Input;

  const UpdateTokensArgs& args;
  int row;  // request
  int head;
  int first_row;  // the block's, of head_dim
  int lane_row;   // the lane's first row of head_dim
  int column;     // the lane's place among the lanes of a row
  int own_row;    // the first row whose output the lane writes
  bool owner;     // whether it writes them

  // The lane's vector v of row r within a head's [head_dim, dstate], in elements.
  SSMJIT_DEVICE int element(int r, int v) const {
    return (lane_row + r) * Cfg::kDstate + (v * S::kLanes + column) * S::kVecElements;
  }
  SSMJIT_DEVICE bool inside(int v) const {
    return !S::kRagged || v + 1 < S::kVectors || v * S::kLanes + column < S::kRowVectors;
  }
  SSMJIT_DEVICE bool usable(i64 slot, i64 slots) const { return slot >= 0 && slot < slots && slot != args.pad_slot_id; }
  SSMJIT_DEVICE IndexEntry index(const void* indices, i64 at, i64 otherwise) const {
    return IndexEntry::load(indices, args.wide_indices, at, otherwise, args.A);
  }
  // Of the block's head in a slot of a pool of states, elements; in one of scales.
  SSMJIT_DEVICE i64 state_at(i64 slot) const { return slot * args.state_stride + head * S::kHeadSize; }
  SSMJIT_DEVICE i64 scale_at(i64 slot) const { return slot * args.state_scale_stride + head * Cfg::kHeadDim; }
  SSMJIT_DEVICE i64 snapshot_at(i64 slot, int step) const {
    return ((slot * args.snapshot_steps + step) * args.nheads + head) * S::kHeadSize;
  }
  SSMJIT_DEVICE i64 snapshot_scale_at(i64 slot, int step) const {
    return ((slot * args.snapshot_steps + step) * args.nheads + head) * Cfg::kHeadDim;
  }

  // Tokens chunk to chunk + count of the request, whose first is token `first` of the tensors' row.
  SSMJIT_DEVICE void stage_tokens(TokenStage<Cfg>& stage, i64 first, int chunk, int count) const {
    constexpr int kPer = Cfg::kAlignedRows ? 16 / static_cast<int>(sizeof(Input)) : 1;  // elements a copy
    constexpr int kColumns = Cfg::kDstate / kPer, kOfRows = Cfg::kBlockM / kPer;
    constexpr int kCopies = 2 * kColumns + kOfRows * (Cfg::kHasGate ? 2 : 1);  // a token
    const i64 group = static_cast<i64>(head / Cfg::kHeadsPerGroup) * Cfg::kDstate;
    const i64 rows = static_cast<i64>(head) * Cfg::kHeadDim + first_row;
    const auto tokens_of = [&](const void* base, i64 stride, i64 token_stride, i64 inner) {
      return static_cast<const Input*>(base) + row * stride + (first + chunk) * token_stride + inner;
    };
    const Input* const B = tokens_of(args.B, args.B_stride, args.B_token_stride, group);
    const Input* const C = tokens_of(args.C, args.C_stride, args.C_token_stride, group);
    const Input* const x = tokens_of(args.x, args.x_stride, args.x_token_stride, rows);
    const Input* const z = tokens_of(args.z, args.z_stride, args.z_token_stride, rows);
    for (int i = thread_index(); i < count * kCopies; i += 32 * Cfg::kWarps) {
      const int t = i / kCopies, u = i % kCopies;
      const Input* from;
      Input* to;
      if (u < kColumns) {
        from = B + t * args.B_token_stride + u * kPer;
        to = stage.B[t] + u * kPer;
      } else if (u < 2 * kColumns) {
        from = C + t * args.C_token_stride + (u - kColumns) * kPer;
        to = stage.C[t] + (u - kColumns) * kPer;
      } else if (!Cfg::kHasGate || u < 2 * kColumns + kOfRows) {
        from = x + t * args.x_token_stride + (u - 2 * kColumns) * kPer;
        to = stage.x[t] + (u - 2 * kColumns) * kPer;
      } else {
        from = z + t * args.z_token_stride + (u - 2 * kColumns - kOfRows) * kPer;
        to = stage.z[Cfg::kHasGate ? t : 0] + (u - 2 * kColumns - kOfRows) * kPer;
      }
      if constexpr (Cfg::kAlignedRows) {
        copy_async(to, from);
      } else {
        Input one;
        load_now(from, one);
        *to = one;
      }
    }
    copy_async_commit();
  }

  SSMJIT_DEVICE void load_token(LaneToken<Cfg>& token, const TokenStage<Cfg>& stage, int t) const {
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v) {
      if (inside(v)) {
        token.B[v].load(stage.B[t] + (v * S::kLanes + column) * S::kVecElements);
        token.C[v].load(stage.C[t] + (v * S::kLanes + column) * S::kVecElements);
      } else {
        token.B[v].zero();
        token.C[v].zero();
      }
    }
    token.x.load(stage.x[t] + (lane_row - first_row));
  }

  // All vectors are asked for before the first is used.
  struct Loaded {
    Vec16 raw[S::kRows][S::kVectors];
    float scale[S::kScaled ? S::kRows : 1];
  };
  SSMJIT_DEVICE void request_state(Loaded& loaded, const State* from, const float* scales, bool live) const {
#pragma unroll
    for (int r = 0; r < S::kRows; ++r)
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v)
        loaded.raw[r][v] = live && inside(v) ? load_global<Cfg::kStreaming>(from + element(r, v)) : Vec16{};
    if constexpr (S::kScaled) {
#pragma unroll
      for (int r = 0; r < S::kRows; ++r) {
        loaded.scale[r] = 0.0f;
        if (live) load_now(scales + lane_row + r, loaded.scale[r]);
      }
    }
  }
  SSMJIT_DEVICE void widen_state(LaneState<Cfg>& state, const Loaded& loaded) const {
    constexpr int kPer = kPerWord<State>;
#pragma unroll
    for (int r = 0; r < S::kRows; ++r)
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v)
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          float part[kPer];
          unpack_word(loaded.raw[r][v].word[w], part, State{});
#pragma unroll
          for (int e = 0; e < kPer; ++e) {
            float s = part[e];
            if constexpr (S::kScaled) s *= loaded.scale[r];
            state.v[r][v][w * kPer + e] = s;
          }
        }
  }

  // What is stored of a vector; `place`: of its first element, as state_draw counts it.
  SSMJIT_DEVICE Vec16 rounded(const float (&v)[S::kVecElements], u64 seed, u64 place, u32 token) const {
    if constexpr (Cfg::kPhiloxRounds == 0) {
      return round_vector(v, State{});
    } else {
      Draw draw[S::kVecElements / 8];
#pragma unroll
      for (int d = 0; d < S::kVecElements / 8; ++d)
        draw[d] = state_draw<Cfg::kPhiloxRounds>(seed, place + 8 * d, token);
      return round_vector_by(v, draw, State{});
    }
  }
  // The lane's part of the head to a slot, after token `token` of those that the launch stores (random bits: contract).
  // All lanes of the warp come here.
  SSMJIT_DEVICE void store_state(const LaneState<Cfg>& state, State* to, float* scales, i64 slot, u64 seed,
                                 u32 token) const {
    const u64 place = (static_cast<u64>(slot) * static_cast<u64>(args.nheads) + static_cast<u64>(head)) * S::kHeadSize;
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      float encode = 1.0f;
      if constexpr (S::kScaled) {
        float largest = 0.0f;
#pragma unroll
        for (int v = 0; v < S::kVectors; ++v)
#pragma unroll
          for (int e = 0; e < S::kVecElements; ++e)
            if (inside(v)) largest = max_f32(largest, abs_f32(state.v[r][v][e]));
        largest = max_lanes<S::kLanes>(largest);
        encode = encode_of_row(largest, State{});
        if (column == 0) scales[lane_row + r] = 1.0f / encode;
      }
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v) {
        float scaled[S::kVecElements];
#pragma unroll
        for (int e = 0; e < S::kVecElements; ++e) scaled[e] = S::kScaled ? state.v[r][v][e] * encode : state.v[r][v][e];
        const int at = element(r, v);
        if (inside(v))
          store_global<Cfg::kStreaming>(to + at, rounded(scaled, seed, place + static_cast<u64>(at), token));
      }
    }
  }

  // One token: the recurrence on the lane's elements, and its sums over dstate.
  SSMJIT_DEVICE void advance(LaneState<Cfg>& state, const LaneToken<Cfg>& token, float delta, float decay,
                             float (&y)[S::kRows]) const {
    float x[S::kRows];
    token.x.widen_to(x);
    float B[S::kVectors][S::kVecElements], C[S::kVectors][S::kVecElements];
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v) {
      token.B[v].widen_to(B[v]);
      token.C[v].widen_to(C[v]);
    }
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      const float u = delta * x[r];
      y[r] = 0.0f;
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v)
#pragma unroll
        for (int e = 0; e < S::kVecElements; ++e) {
          state.v[r][v][e] = fma_f32(state.v[r][v][e], decay, u * B[v][e]);
          y[r] = fma_f32(state.v[r][v][e], C[v][e], y[r]);
        }
    }
    S::Sums::sum(y, column);
  }

  SSMJIT_DEVICE Input* output(i64 token) const {
    return static_cast<Input*>(args.out) + row * args.out_stride + token * args.out_token_stride +
           static_cast<i64>(head) * Cfg::kHeadDim + own_row;
  }
  SSMJIT_DEVICE void write_outputs(const float (&y)[S::kRows], float D, const TokenStage<Cfg>& stage, int t,
                                   i64 token) const {
    if (!owner) return;
    Input* const out = output(token);
    const int own = own_row - first_row;
#pragma unroll
    for (int i = 0; i < S::kOwned; ++i) {
      float v = y[i];
      if constexpr (Cfg::kHasSkip) v += Cfg::skip(D, widen(stage.x[t][own + i]));
      if constexpr (Cfg::kHasGate) v *= Cfg::gate(widen(stage.z[t][own + i]));
      narrow(v, out[i]);
    }
  }
  SSMJIT_DEVICE void write_zeros(i64 first, int tokens) const {
    if (!owner) return;
    for (int t = 0; t < tokens; ++t) {
      Input* const out = output(first + t);
#pragma unroll
      for (int i = 0; i < S::kOwned; ++i) narrow(0.0f, out[i]);
    }
  }
};

// Grid: x = nheads * (head_dim / block_m), y = batch. Block: 32 * warps threads.
template <class Cfg>
SSMJIT_DEVICE void update_tokens(const UpdateTokensArgs& args) {
  using S = TokensShape<Cfg>;
  using State = typename Cfg::State;
  static_assert(Cfg::kHeadsPerBlock == 1 && Cfg::kStatePath == StatePath::direct);
  const int warp = thread_index() / 32;
  const int lane = lane_index();
  const int column = lane % S::kLanes;
  const int first_row = (block_x() % S::kTiles) * Cfg::kBlockM;
  const int lane_row = first_row + warp * S::kRowsPerWarp + (lane / S::kLanes) * S::kRows;
  const TokensStep<Cfg> at{args,
                           block_y(),
                           block_x() / S::kTiles,
                           first_row,
                           lane_row,
                           column,
                           lane_row + S::Sums::first_row(column),
                           S::Sums::owner(column)};
  __shared__ TokenStage<Cfg> stage;

  if (args.pdl != kPdlOff) {
    grid_dependency_trigger();
    if (!Cfg::kEarlyState || args.pdl == kPdlWaitFirst) grid_dependency_wait();
  }

  // Which slot, and which tokens. What follows from an index stands behind the loads that do not need it.
  IndexEntry slot_entry, accepted_entry, target_entry, snapshot_entry;
  u32 begin = 0, end = 0;
  if constexpr (Cfg::kAccepted) {
    // A column for each token, one a lane: which one counts is under way too.
    accepted_entry = at.index(args.num_accepted_tokens, at.row * args.accepted_stride, 1);
    const int mine = lane < Cfg::kTokens ? lane : Cfg::kTokens - 1;
    slot_entry = at.index(args.state_batch_indices, at.row * args.index_stride + mine * args.index_column_stride, -1);
  } else {
    slot_entry = at.index(args.state_batch_indices, at.row * args.index_stride, at.row);
  }
  if constexpr (Cfg::kStore == StateStore::snapshots) {
    if (args.intermediate_state_indices != nullptr)
      snapshot_entry = at.index(args.intermediate_state_indices, at.row * args.snapshot_index_stride, -1);
  }
  if constexpr (Cfg::kDestination) {
    if (args.dst_state_batch_indices != nullptr)
      target_entry = at.index(args.dst_state_batch_indices, at.row * args.dst_index_stride, -1);
  }
  if constexpr (Cfg::kVarlen) {
    begin = load_now_b32(args.cu_seqlens + at.row);
    end = load_now_b32(args.cu_seqlens + at.row + 1);
  }

  i64 source = 0;
  bool live = false;
  i64 snapshot = -1;  // where states after tokens go; -1: nowhere
  const auto locate = [&] {
    source = slot_entry.value();
    if constexpr (Cfg::kAccepted) {
      const i64 accepted = accepted_entry.value();
      // No count above the tokens chooses a slot behind theirs, however many columns there are.
      const int which = accepted < 1 ? 0 : static_cast<int>(accepted < Cfg::kTokens ? accepted : Cfg::kTokens) - 1;
      source = shuffle_index(source, which & 31);
      if (which >= 32)
        source = at.index(args.state_batch_indices, at.row * args.index_stride + which * args.index_column_stride, -1)
                     .value();
    }
    live = at.usable(source, args.slots);
    if constexpr (Cfg::kStore == StateStore::snapshots) {
      snapshot = args.intermediate_state_indices != nullptr ? snapshot_entry.value() : source;
      if (!live || !at.usable(snapshot, args.snapshot_slots)) snapshot = -1;
      if constexpr (Cfg::kTree) live = snapshot >= 0;  // its tokens go back to where others were stored
    }
  };
  typename TokensStep<Cfg>::Loaded loaded;
  const auto request_state = [&] {
    at.request_state(loaded, static_cast<const State*>(args.state) + (live ? at.state_at(source) : 0),
                     args.state_scale + (S::kScaled && live ? at.scale_at(source) : 0), live);
  };
  if constexpr (Cfg::kEarlyState) {
    locate();
    request_state();
    grid_dependency_wait();
  }

  i64 first = 0;
  int tokens = Cfg::kTokens;
  if constexpr (Cfg::kVarlen) {
    // Out of order or range they are the caller's error, but no address leaves the tensors.
    const int from = static_cast<int>(begin), to = static_cast<int>(end);
    const int start = from < 0 ? 0 : from < args.total ? from : args.total;
    const int stop = to < args.total ? to : args.total;
    first = start;
    tokens = stop - start < 0 ? 0 : stop - start < Cfg::kTokens ? stop - start : Cfg::kTokens;
    if (tokens == 0) return;
  }
  const auto chunk_count = [&](int chunk) {
    const int left = tokens - chunk;
    return left < S::kChunk ? left : S::kChunk;
  };
  // Lane t: of token t of those in shared memory.
  typename Cfg::Dt dt;
  IndexEntry token_target, token_parent;
  const auto request_tokens = [&](int chunk) {
    const int count = chunk_count(chunk), mine = lane < count ? lane : count - 1;
    at.stage_tokens(stage, first, chunk, count);
    load_now(static_cast<const typename Cfg::Dt*>(args.dt) + at.row * args.dt_stride +
                 (first + chunk + mine) * args.dt_token_stride + at.head,
             dt);
    if constexpr (Cfg::kStore == StateStore::slots)
      token_target = at.index(args.dst_state_batch_indices,
                              at.row * args.dst_index_stride + (chunk + mine) * args.dst_index_token_stride, -1);
    if constexpr (Cfg::kTree)
      token_parent = at.index(args.retrieve_parent_token,
                              at.row * args.parent_stride + (chunk + mine) * args.parent_token_stride, -1);
  };
  request_tokens(0);
  float A;
  load_now(static_cast<const float*>(args.A) + at.head, A);
  typename Cfg::Weight dt_bias_stored, D_stored;
  float dt_bias = 0.0f, D = 0.0f;
  if constexpr (Cfg::kHasDtBias)
    load_now(static_cast<const typename Cfg::Weight*>(args.dt_bias) + at.head, dt_bias_stored);
  if constexpr (Cfg::kHasD) load_now(static_cast<const typename Cfg::Weight*>(args.D) + at.head, D_stored);
  if constexpr (!Cfg::kEarlyState) locate();
  if constexpr (Cfg::kPadOutput != PadOutput::as_if_zero_state) {
    if (!live) {
      copy_async_wait<0>();
      if constexpr (Cfg::kPadOutput == PadOutput::zeros) at.write_zeros(first, tokens);
      return;
    }
  }
  if constexpr (!Cfg::kEarlyState) request_state();
  u64 seed = 0;
  if constexpr (Cfg::kPhiloxRounds > 0) {
    // Of seeds by slot that of the slot that is written, where one is; else of the one that is read.
    i64 seeded = live ? source : 0;
    if constexpr (Cfg::kDestination) {
      if (live && args.dst_state_batch_indices != nullptr && at.usable(target_entry.value(), args.slots))
        seeded = target_entry.value();
    }
    u32 words[2];
    load_now<2>(args.rand_seed + seeded * args.seed_stride, words);
    seed = static_cast<u64>(words[1]) << 32 | words[0];
  }
  if constexpr (Cfg::kHasDtBias) dt_bias = widen(dt_bias_stored);
  if constexpr (Cfg::kHasD) D = widen(D_stored);

  LaneState<Cfg> state;
  at.widen_state(state, loaded);
  if constexpr (S::kScaled) sync_warp();  // all lanes have read the scales that one of them writes

#pragma unroll 1
  for (int chunk = 0; chunk < tokens; chunk += S::kChunk) {
    if (chunk > 0) {
      sync_block();  // all have read the tokens before
      request_tokens(chunk);
    }
    const float of_delta = Cfg::delta(widen(dt), dt_bias);
    const float of_decay = Cfg::decay(A, widen(dt), of_delta);
    i64 target = -1;
    int parent = -1;
    if constexpr (Cfg::kStore == StateStore::slots) {
      target = token_target.value();
      if (!live || !at.usable(target, args.slots)) target = -1;
    }
    if constexpr (Cfg::kTree) {
      const i64 wanted = token_parent.value();
      parent = wanted >= 0 && wanted < Cfg::kTokens ? static_cast<int>(wanted) : -1;
    }
    copy_async_wait<0>();
    sync_block();

    const int count = Cfg::kVarlen || Cfg::kTokens > S::kChunk ? chunk_count(chunk) : S::kChunk;
    LaneToken<Cfg> token, ahead;
    at.load_token(token, stage, 0);
#pragma unroll S::kTurn
    for (int t = 0; t < count; ++t) {
      if (t + 1 < count) at.load_token(ahead, stage, t + 1);
      const float delta = shuffle(of_delta, t), decay = shuffle(of_decay, t);
      if constexpr (Cfg::kTree) {
        // As it was rounded; a token that is not computed yet is nobody's parent.
        const int from = shuffle(parent, t);
        if (from >= 0 && from < chunk + t && snapshot >= 0) {
          if constexpr (S::kScaled) sync_warp();  // one lane wrote the scales
          at.request_state(loaded, static_cast<const State*>(args.intermediate_states) + at.snapshot_at(snapshot, from),
                           args.intermediate_state_scales + (S::kScaled ? at.snapshot_scale_at(snapshot, from) : 0),
                           true);
          at.widen_state(state, loaded);
        }
      }
      float y[S::kRows];
      at.advance(state, token, delta, decay, y);
      if constexpr (Cfg::kStore == StateStore::slots) {
        const i64 slot = shuffle_index(target, t);
        if (slot >= 0)
          at.store_state(state, static_cast<State*>(args.state) + at.state_at(slot),
                         args.state_scale + (S::kScaled ? at.scale_at(slot) : 0), slot, seed,
                         static_cast<u32>(chunk + t));
      }
      if constexpr (Cfg::kStore == StateStore::snapshots) {
        if (snapshot >= 0)
          at.store_state(state, static_cast<State*>(args.intermediate_states) + at.snapshot_at(snapshot, chunk + t),
                         args.intermediate_state_scales + (S::kScaled ? at.snapshot_scale_at(snapshot, chunk + t) : 0),
                         snapshot, seed, static_cast<u32>(chunk + t));
      }
      at.write_outputs(y, D, stage, t, first + chunk + t);
      token = ahead;
    }
  }

  if constexpr (Cfg::kStore != StateStore::slots) {
    i64 to = source;
    bool store = live;
    if constexpr (Cfg::kDestination) {
      if (args.dst_state_batch_indices != nullptr) {
        to = target_entry.value();
        store = live && at.usable(to, args.slots);
      }
    }
    if constexpr (Cfg::kStore == StateStore::snapshots) store = live && args.disable_state_update == 0;
    if (store)
      at.store_state(state, static_cast<State*>(args.state) + at.state_at(to),
                     args.state_scale + (S::kScaled ? at.scale_at(to) : 0), to, seed,
                     S::kEveryToken ? static_cast<u32>(tokens - 1) : 0);
  }
}
