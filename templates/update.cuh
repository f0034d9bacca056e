#pragma once
#include "device/basic.cuh"
#include "device/convert.cuh"
#include "device/memory.cuh"
#include "device/warp.cuh"
#include "index.cuh"
#include "launch.cuh"
#include "maths.cuh"
#include "update_args.cuh"
// One decode step of a state-space layer, one token a request, the state updated in place (or written to another slot):
//
//   delta = Cfg::delta(dt, dt_bias)            a head
//   h'[p, n] = decay * h[p, n] + (delta * x[p]) * B[n]
//   y[p] = sum over n of h'[p, n] * C[n]       from the fp32 h', not from what is stored
//   y[p] += Cfg::skip(D, x[p]);  y[p] *= Cfg::gate(z[p])
//
// What costs is the state: [head_dim, dstate] a head is read and written once, the rest is small. A block takes block_m
// rows of head_dim for heads_per_block heads of one request; a warp takes block_m / warps neighbouring rows and needs
// no other warp. Within a warp, lanes_per_row lanes share a row in 16-byte vectors (so a load instruction covers whole
// lines), and each lane has kRows neighbouring rows, all of whose vectors are asked for before the first is used.
//
// state_path: how the state travels from memory to registers (it always leaves by vector stores):
//   direct    straight into registers; with several heads a block the next one's loads are in flight during this one's
//             arithmetic
//   cp_async  into shared memory by cp.async, a stage for each head of the block; a lane waits for its own vectors only
//   bulk      the same by one bulk copy a warp and head (sm_90), on a barrier of the warp's own

// Sizes that follow from Cfg. Cfg is a struct of constants: kHeadDim, kDstate, kHeadsPerGroup, the types State, Input,
// Dt, Weight, kPadOutput, kDestination, the plan's fields, and the functions delta, decay, skip, gate.
template <class Cfg>
struct UpdateShape {
  static constexpr int kVecElements = 16 / static_cast<int>(sizeof(typename Cfg::State));
  static constexpr int kRowVectors = Cfg::kDstate / kVecElements;
  static constexpr int kLanes = Cfg::kLanesPerRow;
  static constexpr int kVectors = (kRowVectors + kLanes - 1) / kLanes;  // a lane and row; the last may be past the end
  static constexpr bool kRagged = kRowVectors % kLanes != 0;
  static constexpr int kRowsPerWarp = Cfg::kBlockM / Cfg::kWarps;
  static constexpr int kRows = kRowsPerWarp / (32 / kLanes);  // a lane
  static constexpr int kTiles = Cfg::kHeadDim / Cfg::kBlockM;
  static constexpr int kHeadSize = Cfg::kHeadDim * Cfg::kDstate;
  static constexpr int kWarpBytes = kRowsPerWarp * Cfg::kDstate * static_cast<int>(sizeof(typename Cfg::State));
  using Sums = RowSums<kRows, kLanes>;
  static constexpr int kOwned = Sums::owned();
};

// kCount neighbouring elements as they lie in memory, widened where they are used: a load must not make the next one
// wait. kAligned: the address is a multiple of the largest power of two (up to 16 bytes) that divides their size.
template <class T, int kCount, bool kAligned>
struct Packed {
  static constexpr int kBytes = kCount * static_cast<int>(sizeof(T));
  static constexpr bool kWords = kAligned && kBytes % 4 == 0;
  static constexpr int kPer = kPerWord<T>;
  T element[kWords ? 1 : kCount];
  u32 word[kWords ? kBytes / 4 : 1];

  SSMJIT_DEVICE void load(const T* p) {
    if constexpr (kWords)
      load_now<kBytes / 4>(p, word);
    else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) load_now(p + i, element[i]);
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

// A lane's share of the state of one head.
template <class Cfg>
struct StateTile {
  using S = UpdateShape<Cfg>;
  Vec16 raw[S::kRows][S::kVectors];
};

// A head's scalars and the lane's inputs.
template <class Cfg>
struct HeadInputs {
  using S = UpdateShape<Cfg>;
  using Input = typename Cfg::Input;
  typename Cfg::Dt dt;
  typename Cfg::Weight dt_bias, D;
  float A;
  Packed<Input, S::kRows, Cfg::kAlignedRows> x;  // of the rows whose state the lane holds
  Input x_own[S::kOwned], z_own[S::kOwned];      // of the rows whose output it writes
};

// B or C at the lane's columns.
template <class Cfg>
struct Columns {
  using S = UpdateShape<Cfg>;
  Packed<typename Cfg::Input, S::kVecElements, Cfg::kAlignedRows> vector[S::kVectors];
};

template <class Cfg>
struct UpdateStep {
  using S = UpdateShape<Cfg>;
  using State = typename Cfg::State;
  using Input = typename Cfg::Input;

  const UpdateArgs& args;
  int row;       // request
  int head;      // the block's first head
  int lane_row;  // the lane's first row of head_dim
  int column;    // the lane's place among the lanes of a row
  int own_row;   // the first row whose output the lane writes
  bool owner;    // whether it writes them

  // The lane's vector v of row r within a head's [head_dim, dstate], in elements.
  static SSMJIT_DEVICE int element(int r, int v, int lane_row, int column) {
    return (lane_row + r) * Cfg::kDstate + (v * S::kLanes + column) * S::kVecElements;
  }
  static SSMJIT_DEVICE bool inside(int v, int column) {
    return !S::kRagged || v + 1 < S::kVectors || v * S::kLanes + column < S::kRowVectors;
  }

  SSMJIT_DEVICE void load_state(StateTile<Cfg>& tile, const State* head_state, bool live) const {
#pragma unroll
    for (int r = 0; r < S::kRows; ++r)
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v)
        tile.raw[r][v] = live && inside(v, column)
                             ? load_global<Cfg::kStreaming>(head_state + element(r, v, lane_row, column))
                             : Vec16{};
  }

  SSMJIT_DEVICE void load_inputs(HeadInputs<Cfg>& in, int h) const {
    const i64 at = static_cast<i64>(h) * Cfg::kHeadDim;
    const Input* x = static_cast<const Input*>(args.x) + row * args.x_stride + at;
    load_now(static_cast<const typename Cfg::Dt*>(args.dt) + row * args.dt_stride + h, in.dt);
    in.x.load(x + lane_row);
    load_now(static_cast<const float*>(args.A) + h, in.A);
    if constexpr (Cfg::kHasDtBias) load_now(static_cast<const typename Cfg::Weight*>(args.dt_bias) + h, in.dt_bias);
    if constexpr (Cfg::kHasD) load_now(static_cast<const typename Cfg::Weight*>(args.D) + h, in.D);
    if constexpr (Cfg::kHasSkip) {
#pragma unroll
      for (int i = 0; i < S::kOwned; ++i) load_now(x + own_row + i, in.x_own[i]);
    }
    if constexpr (Cfg::kHasGate) {
      const Input* z = static_cast<const Input*>(args.z) + row * args.z_stride + at;
#pragma unroll
      for (int i = 0; i < S::kOwned; ++i) load_now(z + own_row + i, in.z_own[i]);
    }
  }

  SSMJIT_DEVICE void load_columns(Columns<Cfg>& columns, const void* base, i64 stride) const {
    const Input* p =
        static_cast<const Input*>(base) + row * stride + static_cast<i64>(head / Cfg::kHeadsPerGroup) * Cfg::kDstate;
#pragma unroll
    for (int i = 0; i < S::kVectors; ++i) {
      if (inside(i, column))
        columns.vector[i].load(p + (i * S::kLanes + column) * S::kVecElements);
      else
        columns.vector[i].zero();
    }
  }

  // One head: the recurrence on the lane's vectors, the new state to memory, the sums over dstate, the output.
  SSMJIT_DEVICE void step(StateTile<Cfg>& tile, const HeadInputs<Cfg>& in, const Columns<Cfg>& columns_B,
                          const Columns<Cfg>& columns_C, State* head_target, bool store, int h) const {
    constexpr int kPer = kPerWord<State>;
    float dt_bias = 0.0f, D = 0.0f;
    if constexpr (Cfg::kHasDtBias) dt_bias = widen(in.dt_bias);
    if constexpr (Cfg::kHasD) D = widen(in.D);
    const float delta = Cfg::delta(widen(in.dt), dt_bias);
    const float decay = Cfg::decay(in.A, widen(in.dt), delta);
    float x[S::kRows];
    in.x.widen_to(x);
    float B[S::kVectors][S::kVecElements], C[S::kVectors][S::kVecElements];
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v) {
      columns_B.vector[v].widen_to(B[v]);
      columns_C.vector[v].widen_to(C[v]);
    }
    float y[S::kRows];
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      const float u = delta * x[r];
      y[r] = 0.0f;
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v) {
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          float s[kPer];
          unpack_word(tile.raw[r][v].word[w], s, State{});
#pragma unroll
          for (int e = 0; e < kPer; ++e) {
            s[e] = fma_f32(s[e], decay, u * B[v][w * kPer + e]);
            y[r] = fma_f32(s[e], C[v][w * kPer + e], y[r]);
          }
          tile.raw[r][v].word[w] = pack_word(s, State{});
        }
        if (store && inside(v, column))
          store_global<Cfg::kStreaming>(head_target + element(r, v, lane_row, column), tile.raw[r][v]);
      }
    }
    S::Sums::sum(y, column);
    if (owner) {
      Input* out = static_cast<Input*>(args.out) + row * args.out_stride + static_cast<i64>(h) * Cfg::kHeadDim;
#pragma unroll
      for (int i = 0; i < S::kOwned; ++i) {
        float v = y[i];
        if constexpr (Cfg::kHasSkip) v += Cfg::skip(D, widen(in.x_own[i]));
        if constexpr (Cfg::kHasGate) v *= Cfg::gate(widen(in.z_own[i]));
        narrow(v, out[own_row + i]);
      }
    }
  }

  SSMJIT_DEVICE void write_zeros() const {
    if (!owner) return;
    for (int i = 0; i < Cfg::kHeadsPerBlock; ++i) {
      Input* out = static_cast<Input*>(args.out) + row * args.out_stride + static_cast<i64>(head + i) * Cfg::kHeadDim;
#pragma unroll
      for (int j = 0; j < S::kOwned; ++j) narrow(0.0f, out[own_row + j]);
    }
  }
};

// Grid: x = nheads / heads_per_block * (head_dim / block_m), y = batch. Block: 32 * warps threads.
template <class Cfg>
SSMJIT_DEVICE void update(const UpdateArgs& args) {
  using S = UpdateShape<Cfg>;
  using State = typename Cfg::State;
  const int warp = thread_index() / 32;
  const int lane = lane_index();
  const int column = lane % S::kLanes;
  const int warp_row = (block_x() % S::kTiles) * Cfg::kBlockM + warp * S::kRowsPerWarp;
  const int lane_row = warp_row + (lane / S::kLanes) * S::kRows;
  const UpdateStep<Cfg> at{args,
                           block_y(),
                           block_x() / S::kTiles * Cfg::kHeadsPerBlock,
                           lane_row,
                           column,
                           lane_row + S::Sums::first_row(column),
                           S::Sums::owner(column)};

  if (args.pdl != kPdlOff) {
    grid_dependency_trigger();
    if (!Cfg::kEarlyState || args.pdl == kPdlWaitFirst) grid_dependency_wait();
  }

  // Which slot. A pad row forms no address from its index.
  const IndexEntry source_entry =
      IndexEntry::load(args.state_batch_indices, args.wide_indices, at.row * args.index_stride, at.row, args.A);
  IndexEntry target_entry = source_entry;
  if constexpr (Cfg::kDestination) {
    if (args.dst_state_batch_indices != nullptr)
      target_entry = IndexEntry::load(args.dst_state_batch_indices, args.wide_indices, at.row * args.dst_index_stride,
                                      at.row, args.A);
  }

  // Whether there is a state to read and to write, and where. What follows from the index stands behind the loads that
  // do not need it.
  bool live, store;
  const State* from;
  State* to;
  const auto locate = [&] {
    const i64 source = source_entry.value();
    const i64 target = target_entry.value();
    live = source >= 0 && source < args.slots && source != args.pad_slot_id;
    store = live && target >= 0 && target < args.slots && target != args.pad_slot_id;
    const i64 first = static_cast<i64>(at.head) * S::kHeadSize;
    from = static_cast<const State*>(args.state) + (live ? source * args.state_stride + first : 0);
    to = static_cast<State*>(args.state) + (store ? target * args.state_stride + first : 0);
  };

  // A stage a head in shared memory, private to the warp: [warps][stages][rows of the warp, dstate], then, for bulk
  // copies, [warps][stages] barriers.
  static_assert(Cfg::kStatePath == StatePath::direct || Cfg::kStages == Cfg::kHeadsPerBlock);
  extern __shared__ __align__(128) unsigned char stages[];
  unsigned char* mine = stages + warp * Cfg::kStages * S::kWarpBytes;
  Barrier* full = reinterpret_cast<Barrier*>(stages + Cfg::kWarps * Cfg::kStages * S::kWarpBytes) + warp * Cfg::kStages;
  const auto stage = [&](int i) { return mine + i * S::kWarpBytes; };
  const auto in_stage = [&](int i, int r, int v) {
    return stage(i) + at.element(r, v, lane_row - warp_row, column) * static_cast<int>(sizeof(State));
  };
  const auto fetch = [&](int i) {
    if constexpr (Cfg::kStatePath == StatePath::cp_async) {
      if (i < Cfg::kHeadsPerBlock && live) {
#pragma unroll
        for (int r = 0; r < S::kRows; ++r)
#pragma unroll
          for (int v = 0; v < S::kVectors; ++v)
            if (at.inside(v, column))
              copy_async(in_stage(i, r, v), from + i * S::kHeadSize + at.element(r, v, lane_row, column));
      }
      copy_async_commit();  // empty groups too, so that the count of pending ones stays the same
    } else if (i < Cfg::kHeadsPerBlock && live && lane == 0) {
      barrier_arrive_expect(full + i, S::kWarpBytes);
      bulk_load(stage(i), from + i * S::kHeadSize + warp_row * Cfg::kDstate, S::kWarpBytes, full + i);
    }
  };
  const auto wait_for_stage = [&](int i) {
    if constexpr (Cfg::kStatePath == StatePath::cp_async)
      copy_async_wait<Cfg::kStages - 1>();
    else if (live)
      barrier_wait(full + i, 0);
  };
  if constexpr (Cfg::kStatePath == StatePath::bulk) {
    if (lane < Cfg::kStages) barrier_init(full + lane, 1);
    barrier_init_fence();
    sync_warp();
  }

  StateTile<Cfg> tile;
  const auto request_state = [&] {
    if constexpr (Cfg::kStatePath == StatePath::direct) {
      at.load_state(tile, from, live);
    } else {
#pragma unroll
      for (int i = 0; i < Cfg::kStages - 1; ++i) fetch(i);
    }
  };

  // The addresses of the inputs wait for no index, so they are asked for before the state; unless the state may
  // overtake the producer of the inputs (the wait is none in a launch that depends on nothing).
  if constexpr (Cfg::kEarlyState) {
    locate();
    request_state();
    grid_dependency_wait();
  }
  Columns<Cfg> B, C;
  HeadInputs<Cfg> in;
  at.load_columns(B, args.B, args.B_stride);
  at.load_columns(C, args.C, args.C_stride);
  at.load_inputs(in, at.head);
  if constexpr (!Cfg::kEarlyState) locate();
  if constexpr (Cfg::kPadOutput != PadOutput::as_if_zero_state) {
    if (!live) {
      if constexpr (Cfg::kPadOutput == PadOutput::zeros) at.write_zeros();
      return;
    }
  }
  if constexpr (!Cfg::kEarlyState) request_state();

  if constexpr (Cfg::kHeadsPerBlock == 1) {
    at.step(tile, in, B, C, to, store, at.head);
  } else {
    [[maybe_unused]] StateTile<Cfg> ahead;
    HeadInputs<Cfg> in_ahead;
#pragma unroll 1
    for (int i = 0; i < Cfg::kHeadsPerBlock; ++i) {
      const bool more = i + 1 < Cfg::kHeadsPerBlock;
      if (more) at.load_inputs(in_ahead, at.head + i + 1);
      if constexpr (Cfg::kStatePath == StatePath::direct) {
        if (more) at.load_state(ahead, from + (i + 1) * S::kHeadSize, live);
      } else {
        fetch(i + Cfg::kStages - 1);
        wait_for_stage(i);
#pragma unroll
        for (int r = 0; r < S::kRows; ++r)
#pragma unroll
          for (int v = 0; v < S::kVectors; ++v)
            tile.raw[r][v] = live && at.inside(v, column) ? load_shared(in_stage(i, r, v)) : Vec16{};
      }
      at.step(tile, in, B, C, to + i * S::kHeadSize, store, at.head + i);
      in = in_ahead;
      if constexpr (Cfg::kStatePath == StatePath::direct) tile = ahead;
    }
  }
}
