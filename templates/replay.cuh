#pragma once
#include "ring.cuh"
// A decode step of kTokens tokens two steps back: the state in memory is that before the last step. What that step
// brought (x, B, delta and sums s of A * delta from its first token on) is kept; a step first brings the state up to
// the `count` tokens of it that were accepted, writes it, and computes its outputs from there without storing a state
// of their own:
//
//   h'[p, n] = exp(s[count - 1]) * h[p, n] + sum over j < count of exp(s[count - 1] - s[j]) * delta[j] * x[j, p] * B[j,
//   n] y[t, p]  = exp(s[t]) * sum over n of h'[p, n] * C[t, n] + sum over new tokens j up to t of W[t, j] * x[j, p]
//   W[t, j]  = (sum over n of C[t, n] * B[j, n]) * exp(s[t] - s[j]) * delta[j]
//   y += Cfg::skip(D, x[t, p]);  y *= Cfg::gate(z[t, p])
//
// That is the step of a ring (ring.cuh) whose rows are the last step's and which flushes every time, with three
// differences. Rows are replaced, not appended: those of B, delta and s in the one of two buffers that no block reads;
// x, where it was, by the warp that has read it. Sums are kept beside the deltas. And y is that of h' before it is
// rounded to be stored.
//
// ring_rows: all: both buffers are read while it is not yet known which counts; live: that one.
// Asked for early (kEarlyState), a state in registers is brought up to date before the wait for the launch in front, and
// written after it: nothing of that needs the step's own tokens.

// Grid: x = nheads / heads_per_block * (head_dim / block_m), y = batch. Block: 32 * warps threads.
template <class Cfg>
SSMJIT_DEVICE void replay_step(const RingArgs& args) {
  static_assert(Cfg::kReplay && !Cfg::kVarlen);
  ring_step<Cfg>(args);
}
