#pragma once
#include "ring.cuh"
// A decode step of kTokens tokens two steps back: the state in memory is that before the last step. What that step
// brought (x, B, delta and sums s of A * delta from its first token on) is kept; a step first brings the state up to
// the `count` tokens of it that were accepted, writes it, and computes its outputs from there without storing a state
// of their own. With a = s[count - 1]:
//
//   h'[p, n] = exp(a) * h[p, n] + sum over j < count of exp(a - s[j]) * delta[j] * x[j, p] * B[j, n]
//
//   y[t, p] = exp(s[t]) * sum over n of h'[p, n] * C[t, n] + sum over new tokens j up to t of W[t, j] * x[j, p]
//   W[t, j] = (sum over n of C[t, n] * B[j, n]) * exp(s[t] - s[j]) * delta[j]
//   y += Cfg::skip(D, x[t, p]);  y *= Cfg::gate(z[t, p])
//
// That is the step of a ring (ring.cuh) whose rows are the last step's and which flushes every time, with three
// differences. Rows are replaced, not appended: those of B, delta and s in the one of two buffers that no block reads;
// x, where it was, by the warp that has read it. Sums are kept beside the deltas. And y is that of h' before it is
// rounded to be stored.
//
// By two launches (kPrecomputed): the first computes W and exp(s[t]) of each head, for the second to find in `weights`,
// and keeps B, delta and s; the second does the rest. The second asks for the state and brings it up to date while the
// first runs: only x, C and `weights` are behind its wait. Both give the bits of the one launch.
//
// ring_rows: all: both buffers are read while it is not yet known which counts; live: that one.
// Asked for early (kEarlyState), a state in registers is brought up to date before the wait for the launch in front,
// and written after it: nothing of that needs the step's own tokens.

// Grid: x = nheads / heads_per_block * (head_dim / block_m), y = batch. Block: 32 * warps threads.
template <class Cfg>
SSMJIT_DEVICE void replay_step(const RingArgs& args) {
  static_assert(Cfg::kReplay && !Cfg::kVarlen);
  ring_step<Cfg>(args);
}

// The first of two launches. A warp takes heads of one group, whose C . B it computes once; lane t has token t.
// Grid: x = nheads / precompute_heads, y = batch. Block: 32 * precompute_warps threads.
template <class Cfg>
SSMJIT_DEVICE void replay_precompute(const RingArgs& args) {
  using S = RingShape<Cfg>;
  using Step = RingStep<Cfg>;
  using Weights = RingWeights<Cfg>;
  using Dt = typename Cfg::Dt;
  using Weight = typename Cfg::Weight;
  static_assert(S::kPrecomputed && Cfg::kPrecomputeHeads % Cfg::kPrecomputeWarps == 0);
  constexpr int kHeads = Cfg::kPrecomputeHeads / Cfg::kPrecomputeWarps;
  __shared__ RingShared<Cfg> shared;  // a step's, which has the addresses; nothing is put there
  grid_dependency_trigger();
  if (args.pdl != kPdlOff && (!Cfg::kEarlyState || args.pdl == kPdlWaitFirst)) grid_dependency_wait();

  const int lane = lane_index(), row = block_y(), block_head = block_x() * Cfg::kPrecomputeHeads;
  const int head = block_head + thread_index() / 32 * kHeads;  // the warp's first
  const Step step{args, shared, row, head, 0, 0, lane, lane / 4, lane % 4, 0, Cfg::kTokens};
  const int g = step.g, q = step.q;
  const int* const entry = args.state_batch_indices + Step::wide(row, args.index_stride);
  const int index_low = static_cast<int>(load_now_b32(entry)),
            index_high = static_cast<int>(load_now_b32(entry + args.wide_indices));
  float A[kHeads];
  Weight dt_bias[kHeads];
#pragma unroll
  for (int k = 0; k < kHeads; ++k) {
    load_now(static_cast<const float*>(args.A) + head + k, A[k]);
    if constexpr (Cfg::kHasDtBias) load_now(static_cast<const Weight*>(args.dt_bias) + head + k, dt_bias[k]);
  }
  const i64 named = named_slot(args, row, index_low, index_high);
  const bool live = named >= 0 && named < args.slots && named != args.pad_slot_id;
  const int slot = live ? static_cast<int>(named) : 0;
  const int buffer = static_cast<int>(load_now_b32(args.ring_start + slot)) > 0 ? 1 : 0;  // that holds the last step
  if constexpr (Cfg::kEarlyState) grid_dependency_wait();

  Dt dt[kHeads];
  const Dt* const first_dt =
      step.token(static_cast<const Dt*>(args.dt), args.dt_stride, args.dt_token_stride, step.last(lane), head);
#pragma unroll
  for (int k = 0; k < kHeads; ++k) load_now(first_dt + k, dt[k]);
  RingColumns<Cfg> C_rows[S::kNewTiles], B[S::kNewTiles];
#pragma unroll
  for (int n = 0; n < S::kNewTiles; ++n) {
    C_rows[n].load(step.C_row(8 * n + g));
    B[n].load(step.new_B_row(8 * n + g));
  }
  if (!live) return;

  RingTokens<Cfg, typename Cfg::Input> C;
  C.set(C_rows, static_cast<u32>(args.wide_indices) >> 31);
  RingSums<Cfg> CB[S::kNewTiles];
#pragma unroll
  for (int j = 0; j < S::kNewTiles; ++j) CB[j].clear();
#pragma unroll
  for (int i = 0; i < Cfg::kDstate / 16; ++i)
#pragma unroll
    for (int j = 0; j < S::kNewTiles; ++j) C.contract(CB[j], i, B[j].word[2 * i], B[j].word[2 * i + 1]);
  if (head % Cfg::kHeadsPerGroup == 0) {  // once a group
#pragma unroll
    for (int j = 0; j < S::kNewTiles; ++j)
      if (8 * j + g < Cfg::kTokens) B[j].store(step.ring_B_row(slot, 8 * j + g, 1 - buffer));
  }

#pragma unroll
  for (int k = 0; k < kHeads; ++k) {
    float bias = 0.0f;
    if constexpr (Cfg::kHasDtBias) bias = widen(dt_bias[k]);
    const float delta = lane < Cfg::kTokens ? Cfg::delta(widen(dt[k]), bias) : 0.0f;
    const float sum = scan_lanes(delta * A[k]);
    if (lane < Cfg::kTokens) {
      step.ring_delta(slot, head + k, 1 - buffer)[lane] = delta;
      step.ring_sum(slot, head + k, 1 - buffer)[lane] = sum;
    }
    const float s = sum * 1.442695041f;
    Weights weights;
#pragma unroll
    for (int n = 0; n < S::kNewTiles; ++n) {
      const int t = g + 8 * n;
      const float s_token = shuffle(s, t);
      weights.decay[n] = exp2_fast_f32(s_token);
#pragma unroll
      for (int j = 0; j < S::kNewTiles; ++j) {
        float w[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int of = 8 * j + 2 * q + e;
          w[e] = weight_of<Cfg>(CB[j].get(n, e), s_token, shuffle(s, of), shuffle(delta, of),
                                of <= t && of < Cfg::kTokens);
        }
        weights.W[j][n] = pack_word(w, typename Cfg::Input{});
      }
    }
    weights.store(Weights::record(args, row, head + k), lane);
  }
}
