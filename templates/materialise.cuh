#pragma once
#include "device/barrier.cuh"
#include "device/basic.cuh"
#include "device/convert.cuh"
#include "device/math.cuh"
#include "device/memory.cuh"
#include "device/shuffle.cuh"
#include "ring_slots.cuh"
#include "rounding.cuh"
// The state after the oldest `prefix` rows of a slot's ring, to another slot or in place, for all layers in one launch.
// With s the running sum of A * delta over these rows, oldest first, and s' the last one,
//
//   h'[p, n] = exp(s') * h[p, n] + sum over rows j of exp(s' - s[j]) * delta[j] * x[j, p] * B[j, n]
//
// as a flush of the ring step stores it (up to the last digits: sums are in fp32 throughout), with fresh scales of an
// 8-bit state, and by chance with the random bits of the destination. A prefix of no rows is a copy, byte by byte. Rows
// behind the prefix are not read.
//
// A block has block_m rows of head_dim of one head, layer and request. x (times its factor) and B of the prefix are in
// shared memory; the state passes once through registers, in pieces of 32 elements a thread: a vector each of 2, 4 or 8
// neighbouring rows, the next piece on its way while one is summed.

template <class Cfg>
struct MaterialiseShared {
  alignas(16) float x[Cfg::kWindow][Cfg::kBlockM];  // times exp(s' - s) * delta
  alignas(16) typename Cfg::Input B[Cfg::kWindow][Cfg::kDstate];
};

// What a thread has of the state at once.
template <class Cfg>
struct StatePiece {
  using S = SlotShape<Cfg>;
  using State = typename Cfg::State;
  static constexpr int kRows = 32 / S::kSpan;
  // Threads that share rows: as many as a row has vectors; of an 8-bit state, whose rows they search for the largest, a
  // power of two.
  static constexpr int kLanes = !S::kScaled || (S::kVectors & (S::kVectors - 1)) == 0 ? S::kVectors
                                : S::kVectors < 8                                     ? 8
                                                                                      : 16;
  static constexpr int kCount = Cfg::kBlockM / kRows * kLanes;  // pieces of a block
  static_assert(Cfg::kBlockM % kRows == 0 && (!S::kScaled || S::kVectors <= 16));

  Vec16 raw[kRows];
  float scale[S::kScaled ? kRows : 1];
  int row;     // of the block, the first of kRows
  int vector;  // of the rows
  bool there;

  // Piece `at` of the block; one that there is not stands where the last one does and is not read. `state` and
  // `scales`: of the block's rows.
  SSMJIT_DEVICE void load(int at, const State* state, const float* scales) {
    const int last = at < kCount ? at : kCount - 1;
    row = last / kLanes * kRows;
    vector = last % kLanes;
    there = at < kCount && vector < S::kVectors;
    if (vector >= S::kVectors) vector = S::kVectors - 1;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      raw[r] = Vec16{};
      if (there) raw[r] = load_global<true>(state + ((row + r) * Cfg::kDstate + vector * S::kSpan));
      if constexpr (S::kScaled) scale[r] = there ? scales[row + r] : 0.0f;
    }
  }
  // v += x . B of row j.
  SSMJIT_DEVICE void add_row(float (&v)[kRows][S::kSpan], const MaterialiseShared<Cfg>& shared, int j) const {
    float x[kRows], B[S::kSpan];
    if constexpr (kRows % 4 == 0) {
#pragma unroll
      for (int r = 0; r < kRows; r += 4) {
        const Vec16 four = load_shared(&shared.x[j][row + r]);
#pragma unroll
        for (int i = 0; i < 4; ++i) x[r + i] = bits_float(four.word[i]);
      }
    } else {
#pragma unroll
      for (int r = 0; r < kRows; ++r) x[r] = shared.x[j][row + r];
    }
    u32 words[S::kSpan / 2];
    if constexpr (S::kSpan % 8 == 0) {
#pragma unroll
      for (int w = 0; w < S::kSpan / 2; w += 4) {
        const Vec16 four = load_shared(&shared.B[j][vector * S::kSpan + 2 * w]);
#pragma unroll
        for (int i = 0; i < 4; ++i) words[w + i] = four.word[i];
      }
    } else {
#pragma unroll
      for (int w = 0; w < S::kSpan / 2; ++w)
        words[w] = *reinterpret_cast<const u32*>(&shared.B[j][vector * S::kSpan + 2 * w]);
    }
#pragma unroll
    for (int w = 0; w < S::kSpan / 2; ++w) {
      float pair[2];
      unpack_word(words[w], pair, typename Cfg::Input{});
      B[2 * w] = pair[0];
      B[2 * w + 1] = pair[1];
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int n = 0; n < S::kSpan; ++n) v[r][n] = fma_f32(x[r], B[n], v[r][n]);
  }
  // The elements of row r, each times `factor`.
  SSMJIT_DEVICE void widen_row(int r, float factor, float (&v)[S::kSpan]) const {
    constexpr int kPer = kPerWord<State>;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      float part[kPer];
      unpack_word(raw[r].word[w], part, State{});
#pragma unroll
      for (int e = 0; e < kPer; ++e) v[w * kPer + e] = part[e] * factor;
    }
  }
};

// A vector of the state as it is stored. `place`: of its first element, for the random bits.
template <class Cfg>
SSMJIT_DEVICE Vec16 rounded_vector(const float (&v)[SlotShape<Cfg>::kSpan], u64 seed, u64 place) {
  if constexpr (Cfg::kPhiloxRounds == 0)
    return round_vector(v, typename Cfg::State{});
  else
    return round_vector_stochastic<Cfg::kPhiloxRounds>(v, seed, place, typename Cfg::State{});
}

// Entry `i` of the list of requests, the same for all threads of the block; -1 behind its end.
SSMJIT_DEVICE int active_request(const int* list, int i) {
  if (list == nullptr) return i;
  bool ended = false;
#pragma unroll 1
  for (int first = 0; first <= i; first += 32) {
    const int at = first + lane_index();
    if (ballot_lanes(list[at < i ? at : i] < 0) != 0) ended = true;
  }
  return ended ? -1 : list[i];
}

template <class Cfg>
SSMJIT_DEVICE void materialise(const MaterialiseArgs& args) {
  using S = SlotShape<Cfg>;
  using State = typename Cfg::State;
  using Input = typename Cfg::Input;
  using Piece = StatePiece<Cfg>;
  constexpr int kBlocks = Cfg::kHeadDim / Cfg::kBlockM;
  static_assert(Cfg::kHeadDim % Cfg::kBlockM == 0 && Cfg::kWindow <= 32 && Cfg::kThreads % 32 == 0);
  __shared__ MaterialiseShared<Cfg> shared;

  const int request = active_request(args.active_request_indices, block_y());
  if (request < 0 || request >= args.batch) return;
  const int part = block_x() % kBlocks, head_of_all = block_x() / kBlocks;
  const int index = head_of_all / args.nheads, head = head_of_all % args.nheads;
  const RingLayer layer = args.layers[index];
  const i64 from = slot_at(args.src_slots, args.wide_src, index * args.src_layer_stride + request);
  const i64 to = slot_at(args.dst_slots, args.wide_dst, index * args.dst_layer_stride + request);
  if (!is_live_slot(from, layer, args.pad_slot_id) || !is_live_slot(to, layer, args.pad_slot_id)) return;

  // Out of range they are the caller's error, but no address leaves the ring.
  const auto within = [](int v, int most) { return v < 0 ? 0 : v < most ? v : most; };
  const int start = within(args.ring_start[request], Cfg::kRing - 1);
  const int in_use = args.ring_count == nullptr ? Cfg::kWindow : within(args.ring_count[request], Cfg::kWindow);
  const int prefix = within(args.prefix_length[request], in_use);

  const i64 first_row = i64{head} * Cfg::kHeadDim + part * Cfg::kBlockM;
  State* const states = static_cast<State*>(layer.state) + first_row * Cfg::kDstate;
  const State* const old_state = in_slot(states, from, layer.state_stride, 0);
  State* const new_state = in_slot(states, to, layer.state_stride, 0);
  const float* old_scale = nullptr;
  float* new_scale = nullptr;
  if constexpr (S::kScaled) {
    old_scale = in_slot(layer.state_scale, from, layer.state_scale_stride, first_row);
    new_scale = in_slot(layer.state_scale, to, layer.state_scale_stride, first_row);
  }
  if (prefix == 0) {
    if (from == to) return;
    copy_vectors<Cfg::kBlockM * S::kVectors, Cfg::kThreads>(new_state, old_state);
    if constexpr (S::kScaled)
      for (int p = thread_index(); p < Cfg::kBlockM; p += Cfg::kThreads) new_scale[p] = old_scale[p];
    return;
  }

  const int thread = thread_index(), lane = lane_index();
  Piece piece;
  piece.load(thread, old_state, old_scale);

  // Row j of the prefix in lane j.
  const auto place_of = [&](int j) { return start + j < Cfg::kRing ? start + j : start + j - Cfg::kRing; };
  float delta = 0.0f;
  if (lane < prefix) delta = in_slot(layer.dt_ring, from, layer.dt_ring_stride, i64{head} * Cfg::kRing)[place_of(lane)];
  const float s = scan_lanes(delta * layer.A[head] * 1.442695041f);  // in powers of two
  const float all = shuffle(s, 31);
  const float factor = delta != 0.0f ? exp2_fast_f32(all - s) * delta : 0.0f;
  const float decay = exp2_fast_f32(all);

  const Input* const x_rows = in_slot(static_cast<const Input*>(layer.x_ring), from, layer.x_ring_stride,
                                      i64{head} * (Cfg::kRing * Cfg::kHeadDim) + part * Cfg::kBlockM);
  const Input* const B_rows = in_slot(static_cast<const Input*>(layer.B_ring), from, layer.B_ring_stride,
                                      i64{head / Cfg::kHeadsPerGroup} * (Cfg::kRing * Cfg::kDstate));
  constexpr int kB = Cfg::kDstate / S::kInputs, kX = Cfg::kBlockM / S::kInputs;  // vectors of a row
#pragma unroll 1
  for (int v = thread; v < prefix * kB; v += Cfg::kThreads) {
    const int j = v / kB, n = v % kB * S::kInputs;
    store_shared(&shared.B[j][n], load_global<false>(B_rows + (place_of(j) * Cfg::kDstate + n)));
  }
#pragma unroll 1
  for (int first = 0; first < prefix * kX; first += Cfg::kThreads) {
    const int v = first + thread, j = v / kX < prefix ? v / kX : prefix - 1, p = v % kX * S::kInputs;
    const float of_row = shuffle(factor, j);
    if (v >= prefix * kX) continue;
    const Vec16 x = load_global<false>(x_rows + (place_of(j) * Cfg::kHeadDim + p));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Vec16 four;
#pragma unroll
      for (int w = 0; w < 2; ++w) {
        float pair[2];
        unpack_word(x.word[2 * half + w], pair, Input{});
        four.word[2 * w] = float_bits(pair[0] * of_row);
        four.word[2 * w + 1] = float_bits(pair[1] * of_row);
      }
      store_shared(&shared.x[j][p + 4 * half], four);
    }
  }
  sync_block();

  u64 seed = 0;
  if constexpr (Cfg::kPhiloxRounds > 0) seed = static_cast<u64>(args.rand_seed[index * args.seed_stride]);
  const u64 place = ((static_cast<u64>(to) * args.nheads + head) * Cfg::kHeadDim + part * Cfg::kBlockM) * Cfg::kDstate;
#pragma unroll 1
  for (int first = 0; first < Piece::kCount; first += Cfg::kThreads) {
    Piece next;
    if constexpr (Piece::kCount > Cfg::kThreads) next.load(first + Cfg::kThreads + thread, old_state, old_scale);
    float v[Piece::kRows][S::kSpan];
#pragma unroll
    for (int r = 0; r < Piece::kRows; ++r)
      piece.widen_row(r, S::kScaled ? decay * piece.scale[S::kScaled ? r : 0] : decay, v[r]);
#pragma unroll 1
    for (int j = 0; j < prefix; ++j) piece.add_row(v, shared, j);
    if constexpr (S::kScaled) {
      // All lanes have read the old scales; the destination may be the source.
      sync_warp();
#pragma unroll
      for (int r = 0; r < Piece::kRows; ++r) {
        float largest = 0.0f;
#pragma unroll
        for (int n = 0; n < S::kSpan; ++n) largest = max_f32(largest, abs_f32(v[r][n]));
        largest = max_lanes<Piece::kLanes>(piece.there ? largest : 0.0f);
        const float encode = encode_of_row(largest, State{});
        if (piece.there && piece.vector == 0) new_scale[piece.row + r] = 1.0f / encode;
#pragma unroll
        for (int n = 0; n < S::kSpan; ++n) v[r][n] *= encode;
      }
    }
#pragma unroll
    for (int r = 0; r < Piece::kRows; ++r) {
      const int at = (piece.row + r) * Cfg::kDstate + piece.vector * S::kSpan;
      if (piece.there) store_global<true>(new_state + at, rounded_vector<Cfg>(v[r], seed, place + at));
    }
    if constexpr (Piece::kCount > Cfg::kThreads) piece = next;
  }
}
