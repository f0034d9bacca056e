#pragma once
#include "device/basic.cuh"
#include "device/convert.cuh"
#include "device/math.cuh"
#include "device/memory.cuh"
#include "device/shuffle.cuh"
#include "device/warp.cuh"
#include "random.cuh"
#include "rounding.cuh"
#include "update.cuh"
#include "update_rounded_args.cuh"
// update.cuh of a state that is more than rounded to nearest: stored by chance, or in units of a factor for each row of
// dstate (int8, fp8, int16), or both. What is computed is the same, from the stored values times their factors; y comes
// from the fp32 state as there. A row's new factor follows from its largest element. The random bits of an element are
// those of its place in the slot that it goes to, so that neither plan nor launch shape shows in them.
//
// One head a block, straight into registers. Lanes that share a row search it for its largest together.
// stages: when the random bits are drawn
//   1   row by row, where they are used
//   2   those of all rows while the state is on its way; they wait in registers

// How the rows of a lane are stored.
template <class Cfg>
struct RowStorage {
  using S = UpdateShape<Cfg>;
  static constexpr bool kScaled = is_scaled(typename Cfg::State{});
  static constexpr bool kByChance = Cfg::kPhiloxRounds > 0;
  using Keys = RoundKeys<kByChance ? Cfg::kPhiloxRounds : 1>;
  static constexpr int kDraws = S::kVecElements >= 8 ? S::kVecElements / 8 : 1;  // of a vector
  Packed<float, kScaled ? S::kRows : 1, true> scale;
  Draw draw[kByChance ? S::kRows : 1][S::kVectors * kDraws];

  // Row r's draws; `first`: the number of that of the lane's first elements.
  SSMJIT_DEVICE void draw_row(int r, const Keys& keys, u64 first) {
    // A lane's first row is a multiple of kRows: of a power of two of elements, its draws have one upper word.
    constexpr int kSpan = S::kRows * Cfg::kDstate;
    constexpr bool kOneUpper = (kSpan & (kSpan - 1)) == 0 && !S::kRagged;
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v)
#pragma unroll
      for (int d = 0; d < kDraws; ++d) {
        const u32 behind = static_cast<u32>((r * Cfg::kDstate + v * S::kLanes * S::kVecElements) / 8 + d);
        const u64 number =
            kOneUpper ? (first & ~u64{0xffffffffu}) | (static_cast<u32>(first) + behind) : first + behind;
        draw[r][v * kDraws + d] = numbered_draw<Cfg::kPhiloxRounds>(keys, number, 0);
      }
  }
  // They are drawn by here.
  SSMJIT_DEVICE void keep_draws() {
#pragma unroll
    for (int r = 0; r < S::kRows; ++r)
#pragma unroll
      for (int d = 0; d < S::kVectors * kDraws; ++d)
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          int bits = static_cast<int>(draw[r][d].word[w]);
          keep(bits);
          draw[r][d].word[w] = static_cast<u32>(bits);
        }
  }
};

template <class Cfg>
struct RoundedStep {
  using S = UpdateShape<Cfg>;
  using State = typename Cfg::State;
  using Input = typename Cfg::Input;
  using Storage = RowStorage<Cfg>;
  static constexpr bool kAhead = Storage::kByChance && Cfg::kStages == 2;

  const UpdateStep<Cfg>& at;

  // A row of the lane: in units of its new factor, whose inverse is `scale`, then to memory. `probe`: finite only where
  // the row is.
  SSMJIT_DEVICE void store_row(float (&s)[S::kVectors][S::kVecElements], float probe, const Storage& storage, int r,
                               State* to, float& scale, bool store) const {
    if constexpr (Storage::kScaled) {
      float largest = 0.0f;
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v)
#pragma unroll
        for (int e = 0; e < S::kVecElements; ++e) largest = max_f32(largest, abs_f32(s[v][e]));
      const float encode = encode_of_row(max_lanes<S::kLanes>(largest), State{});
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v)
#pragma unroll
        for (int e = 0; e < S::kVecElements; ++e) s[v][e] *= encode;
      scale = 1.0f / encode;
    }
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v) {
      Vec16 rounded;
      if constexpr (Storage::kByChance)
        rounded = round_vector_by(s[v], &storage.draw[r][v * Storage::kDraws], State{}, probe);
      else
        rounded = round_vector(s[v], State{});
      if (store && at.inside(v, at.column))
        store_global<Cfg::kStreaming>(to + at.element(r, v, at.lane_row, at.column), rounded);
    }
  }

  SSMJIT_DEVICE static void store_scale(float* to, const float (&scale)[S::kRows]) {
    constexpr int kAtOnce = S::kRows % 4 == 0 ? 4 : 1;
#pragma unroll
    for (int r = 0; r < S::kRows; r += kAtOnce) {
      if constexpr (kAtOnce == 4)
        store_global<false>(to + r, Vec16{{float_bits(scale[r]), float_bits(scale[r + 1]), float_bits(scale[r + 2]),
                                           float_bits(scale[r + 3])}});
      else
        to[r] = scale[r];
    }
  }

  // `keys` and `first_draw`: of draws that are made here.
  SSMJIT_DEVICE void step(const StateTile<Cfg>& tile, const HeadInputs<Cfg>& in, const Columns<Cfg>& columns_B,
                          const Columns<Cfg>& columns_C, Storage& storage, const typename Storage::Keys& keys,
                          u64 first_draw, State* to, float* to_scale, bool store) const {
    constexpr int kPer = kPerWord<State>;
    float dt_bias = 0.0f, D = 0.0f;
    if constexpr (Cfg::kHasDtBias) dt_bias = widen(in.dt_bias);
    if constexpr (Cfg::kHasD) D = widen(in.D);
    const float delta = Cfg::delta(widen(in.dt), dt_bias);
    const float decay = Cfg::decay(in.A, widen(in.dt), delta);
    float x[S::kRows];
    in.x.widen_to(x);
    float scale[Storage::kScaled ? S::kRows : 1];
    storage.scale.widen_to(scale);
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
      float& own_scale = scale[Storage::kScaled ? r : 0];
      const float kept = Storage::kScaled ? decay * own_scale : decay;
      if constexpr (Storage::kByChance && !kAhead) storage.draw_row(r, keys, first_draw);
      float s[S::kVectors][S::kVecElements];
      y[r] = 0.0f;
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v)
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          float part[kPer];
          unpack_word(tile.raw[r][v].word[w], part, State{});
#pragma unroll
          for (int e = 0; e < kPer; ++e) {
            float& now = s[v][w * kPer + e];
            now = fma_f32(part[e], kept, u * B[v][w * kPer + e]);
            y[r] = fma_f32(now, C[v][w * kPer + e], y[r]);
          }
        }
      // As y: a number that is none makes it none.
      store_row(s, y[r], storage, r, to, own_scale, store);
    }
    if constexpr (Storage::kScaled) {
      sync_warp();  // all lanes of a row have read its old factor
      if (store && at.column == 0) store_scale(to_scale + at.lane_row, scale);
    }
    S::Sums::sum(y, at.column);
    if (!at.owner) return;
    Input* out =
        static_cast<Input*>(at.args.out) + at.row * at.args.out_stride + static_cast<i64>(at.head) * Cfg::kHeadDim;
#pragma unroll
    for (int i = 0; i < S::kOwned; ++i) {
      float v = y[i];
      if constexpr (Cfg::kHasSkip) v += Cfg::skip(D, widen(in.x_own[i]));
      if constexpr (Cfg::kHasGate) v *= Cfg::gate(widen(in.z_own[i]));
      narrow(v, out[at.own_row + i]);
    }
  }
};

// Grid: x = nheads * (head_dim / block_m), y = batch. Block: 32 * warps threads.
template <class Cfg>
SSMJIT_DEVICE void update_rounded(const UpdateRoundedArgs& rounded_args) {
  using S = UpdateShape<Cfg>;
  using State = typename Cfg::State;
  using Storage = RowStorage<Cfg>;
  static_assert(Cfg::kStatePath == StatePath::direct && Cfg::kHeadsPerBlock == 1);
  static_assert(!Storage::kByChance || S::kVecElements % 8 == 0);
  const UpdateArgs& args = rounded_args.update;
  const int lane = lane_index();
  const int column = lane % S::kLanes;
  const int lane_row =
      (block_x() % S::kTiles) * Cfg::kBlockM + thread_index() / 32 * S::kRowsPerWarp + (lane / S::kLanes) * S::kRows;
  const UpdateStep<Cfg> at{args,
                           block_y(),
                           block_x() / S::kTiles,
                           lane_row,
                           column,
                           lane_row + S::Sums::first_row(column),
                           S::Sums::owner(column)};
  const RoundedStep<Cfg> step{at};

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
  bool live, store;
  i64 source, target;
  const auto locate = [&] {
    source = source_entry.value();
    target = target_entry.value();
    live = source >= 0 && source < args.slots && source != args.pad_slot_id;
    store = live && target >= 0 && target < args.slots && target != args.pad_slot_id;
    if (!live) source = 0;
    if (!store) target = 0;
  };
  const i64 first_row = static_cast<i64>(at.head) * Cfg::kHeadDim;
  StateTile<Cfg> tile;
  Storage storage;
  const auto request_state = [&] {
    if constexpr (Storage::kScaled) {
      storage.scale.zero();
      if (live)
        storage.scale.load(rounded_args.state_scale + source * rounded_args.state_scale_stride + first_row + lane_row);
    }
    at.load_state(tile, static_cast<const State*>(args.state) + source * args.state_stride + first_row * Cfg::kDstate,
                  live);
  };

  // In the order of update.cuh.
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
  u64 seed = 0, first_draw = 0;
  if constexpr (Storage::kByChance) {
    u32 words[2];
    load_now<2>(rounded_args.rand_seed + target * rounded_args.seed_stride, words);
    seed = static_cast<u64>(words[1]) << 32 | words[0];
    const u64 row =
        (static_cast<u64>(target) * static_cast<u64>(rounded_args.nheads) + static_cast<u64>(at.head)) * Cfg::kHeadDim +
        static_cast<u64>(lane_row);
    first_draw = (row * Cfg::kDstate + static_cast<u64>(column * S::kVecElements)) / 8;
  }
  typename Storage::Keys keys(seed);
  if constexpr (Storage::kByChance) keys.keep_all();
  if constexpr (!Cfg::kEarlyState) request_state();
  if constexpr (RoundedStep<Cfg>::kAhead) {
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) storage.draw_row(r, keys, first_draw);
    storage.keep_draws();
  }
  float* to_scale = nullptr;
  if constexpr (Storage::kScaled)
    to_scale = rounded_args.state_scale + target * rounded_args.state_scale_stride + first_row;
  step.step(tile, in, B, C, storage, keys, first_draw,
            static_cast<State*>(args.state) + target * args.state_stride + first_row * Cfg::kDstate, to_scale, store);
}
