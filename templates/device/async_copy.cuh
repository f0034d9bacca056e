#pragma once
#include "basic.cuh"
#include "memory.cuh"
// More of the asynchronous copies: short and zero-filled cp.async, stores by the copy engine, and the mbarrier
// operations beside those of memory.cuh. What is marked sm_90 does nothing before it, and no plan uses it there.

// cp.async of kBytes (4, 8 or 16, both addresses multiples of it), of which the first `from_global` are read and the
// rest of the destination is filled with zeros; with from_global = 0 the global address is not read. Part of the
// thread's current group, as copy_async.
template <int kBytes>
SSMJIT_DEVICE void copy_async_zero_fill(void* shared, const void* global, u32 from_global) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(from_global)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global),
                 "n"(kBytes), "r"(from_global)
                 : "memory");
}
template <int kBytes>
SSMJIT_DEVICE void copy_async_short(void* shared, const void* global) {
  static_assert(kBytes == 4 || kBytes == 8);
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(shared)), "l"(global), "n"(kBytes)
               : "memory");
}

// One contiguous copy from shared to global memory by the copy engine (sm_90); both addresses and the size are
// multiples of 16 bytes. It reads what ordinary stores wrote only after bulk_store_fence by the storing threads and a
// barrier.
SSMJIT_DEVICE void bulk_store_fence() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
SSMJIT_DEVICE void bulk_store(void* global, const void* shared, u32 bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global), "r"(shared_address(shared)),
               "r"(bytes)
               : "memory");
#endif
}
// The thread's bulk stores so far become one group.
SSMJIT_DEVICE void bulk_store_commit() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}
// Until all but the newest kPending groups of this thread have been read from shared memory, which may then be written.
template <int kPending>
SSMJIT_DEVICE void bulk_store_wait_read() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
#endif
}
// Until all but the newest kPending groups of this thread are written.
template <int kPending>
SSMJIT_DEVICE void bulk_store_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// One of the arrivals that the barrier's phase waits for (sm_90).
SSMJIT_DEVICE void barrier_arrive(Barrier* b) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
#endif
}
// Announces bytes that the current phase waits for, without an arrival (sm_90).
SSMJIT_DEVICE void barrier_expect(Barrier* b, u32 bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(bytes)
               : "memory");
#endif
}
// Whether the phase of this parity has completed; does not wait (sm_90).
SSMJIT_DEVICE bool barrier_test(Barrier* b, u32 parity) {
  u32 done = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(shared_address(b)), "r"(parity)
      : "memory");
#endif
  return done != 0;
}
