#pragma once
#include "device/basic.cuh"
#include "device/convert.cuh"
#include "device/math.cuh"
#include "device/memory.cuh"
#include "prepare_A_args.cuh"
// A = -exp(A_log) in fp32, a value a thread: once a model load, not in every step. Grid: x = count / threads, rounded
// up.
template <class T>
SSMJIT_DEVICE void prepare_A(const PrepareAArgs& args) {
  const int i = block_x() * block_threads() + thread_index();
  if (i >= args.count) return;
  T A_log;
  load_now(static_cast<const T*>(args.A_log) + i, A_log);
  args.A[i] = -exp_f32(widen(A_log));
}
