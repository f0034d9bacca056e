#pragma once
#include "basic.cuh"
#include "memory.cuh"
// CPU bodies of device/async_copy.cuh.

template <int kBytes>
SSMJIT_DEVICE void copy_async_zero_fill(void* shared, const void* global, u32 from_global) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  ssmjit_cpu_copy(0, shared, global, kBytes, from_global, kBytes);
}
template <int kBytes>
SSMJIT_DEVICE void copy_async_short(void* shared, const void* global) {
  static_assert(kBytes == 4 || kBytes == 8);
  ssmjit_cpu_copy(0, shared, global, kBytes, kBytes, kBytes);
}

// What copies read is in memory at once here: no fence is needed, and a missing one is not seen.
SSMJIT_DEVICE void bulk_store_fence() {}
SSMJIT_DEVICE void bulk_store(void* global, const void* shared, u32 bytes) {
  ssmjit_cpu_copy(1, global, shared, bytes, bytes, 16);
}
SSMJIT_DEVICE void bulk_store_commit() { ssmjit_cpu_copy_commit(1); }
template <int kPending>
SSMJIT_DEVICE void bulk_store_wait_read() {
  ssmjit_cpu_copy_wait_read(1, kPending);
}
template <int kPending>
SSMJIT_DEVICE void bulk_store_wait() {
  ssmjit_cpu_copy_wait(1, kPending);
}

SSMJIT_DEVICE void barrier_arrive(Barrier* b) { ssmjit_cpu_mbarrier_arrive(b, 1); }
SSMJIT_DEVICE void barrier_expect(Barrier* b, u32 bytes) { ssmjit_cpu_mbarrier_expect(b, bytes); }
SSMJIT_DEVICE bool barrier_test(Barrier* b, u32 parity) { return ssmjit_cpu_mbarrier_test(b, parity) != 0; }
