#pragma once
#include "basic.cuh"
#include "convert.cuh"
// Global and shared memory: 16-byte vectors, asynchronous copies (cp.async), bulk copies with mbarrier (sm_90).

struct alignas(16) Vec16 {
  u32 word[4];
};

// Global loads and stores of 16 bytes, the address 16-byte aligned. kStreaming: the bytes are used once, so they bypass
// the L1 on the way in and are the first to leave the L2 on the way out.
template <bool kStreaming>
SSMJIT_DEVICE Vec16 load_global(const void* address) {
  Vec16 v;
  if constexpr (kStreaming)
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "l"(address));
  else
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "l"(address));
  return v;
}
template <bool kStreaming>
SSMJIT_DEVICE void store_global(void* address, const Vec16& v) {
  if constexpr (kStreaming)
    asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(v.word[0]), "r"(v.word[1]),
                 "r"(v.word[2]), "r"(v.word[3])
                 : "memory");
  else
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(v.word[0]), "r"(v.word[1]),
                 "r"(v.word[2]), "r"(v.word[3])
                 : "memory");
}

// load_global<true> of a part of a 128-byte line whose rest is asked for next: the L2 fetches the line at once.
SSMJIT_DEVICE Vec16 load_global_of_line(const void* address) {
  Vec16 v;
  asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(address));
  return v;
}

// load_global of bytes that another thread of the same launch may be writing (a row that is appended while all rows are
// read): the value counts only where nobody was, and the caller masks it elsewhere.
template <bool kStreaming>
SSMJIT_DEVICE Vec16 load_maybe_appended(const void* address) {
  return load_global<kStreaming>(address);
}

// Ordinary cached loads that are asked for where they stand: the compiler moves neither these nor the loads above past
// each other, so that none waits behind arithmetic on another's result.
SSMJIT_DEVICE u32 load_now_b32(const void* address) {
  u32 v;
  asm volatile("ld.global.b32 %0, [%1];" : "=r"(v) : "l"(address));
  return v;
}
SSMJIT_DEVICE u16 load_now_b16(const void* address) {
  u16 v;
  asm volatile("ld.global.b16 %0, [%1];" : "=h"(v) : "l"(address));
  return v;
}
SSMJIT_DEVICE void load_now(const float* address, float& v) { v = __uint_as_float(load_now_b32(address)); }
// As load_maybe_appended, of one fp32 element.
SSMJIT_DEVICE float load_maybe_appended_f32(const void* address) { return __uint_as_float(load_now_b32(address)); }
SSMJIT_DEVICE void load_now(const bf16* address, bf16& v) { v.bits = load_now_b16(address); }
SSMJIT_DEVICE void load_now(const f16* address, f16& v) { v.bits = load_now_b16(address); }
// kWords neighbouring words, as wide as the count allows (4, 2 or 1 words; the address is aligned to that width).
template <int kWords>
SSMJIT_DEVICE void load_now(const void* address, u32 (&word)[kWords]) {
  const u32* p = static_cast<const u32*>(address);
  if constexpr (kWords % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      const Vec16 v = load_global<false>(p + i);
#pragma unroll
      for (int j = 0; j < 4; ++j) word[i + j] = v.word[j];
    }
  } else if constexpr (kWords % 2 == 0) {
#pragma unroll
    for (int i = 0; i < kWords; i += 2)
      asm volatile("ld.global.v2.b32 {%0, %1}, [%2];" : "=r"(word[i]), "=r"(word[i + 1]) : "l"(p + i));
  } else {
#pragma unroll
    for (int i = 0; i < kWords; ++i) word[i] = load_now_b32(p + i);
  }
}

// As load_maybe_appended, of neighbouring words.
template <int kWords>
SSMJIT_DEVICE void load_maybe_appended(const void* address, u32 (&word)[kWords]) {
  load_now<kWords>(address, word);
}

// *address += value, atomically.
SSMJIT_DEVICE void add_global(u64* address, u64 value) { atomicAdd(address, value); }

// The address of shared memory as the PTX instructions want it.
SSMJIT_DEVICE u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

SSMJIT_DEVICE Vec16 load_shared(const void* address) { return *static_cast<const Vec16*>(address); }
SSMJIT_DEVICE void store_shared(void* address, const Vec16& v) { *static_cast<Vec16*>(address) = v; }

// cp.async: 16 bytes from global to shared memory; each thread waits for its own groups.
SSMJIT_DEVICE void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
SSMJIT_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
SSMJIT_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// mbarrier and bulk copies (sm_90). A phase completes when all arrivals and all announced bytes are in; wait takes the
// parity of the phase it waits for. Before sm_90 they do nothing, and no plan uses them.
struct alignas(8) Barrier {
  u64 state;
};
SSMJIT_DEVICE void barrier_init(Barrier* b, u32 arrivals) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals) : "memory");
#endif
}
// Makes initialised barriers visible to the copy engine.
SSMJIT_DEVICE void barrier_init_fence() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
SSMJIT_DEVICE void barrier_arrive_expect(Barrier* b, u32 bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes)
               : "memory");
#endif
}
SSMJIT_DEVICE void barrier_wait(Barrier* b, u32 parity) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(shared_address(b)),
      "r"(parity)
      : "memory");
#endif
}
// One contiguous copy by the copy engine; both addresses and the size are multiples of 16 bytes. kStreaming: the bytes
// are used once, so they are the first to leave the L2.
template <bool kStreaming = false>
SSMJIT_DEVICE void bulk_load(void* shared, const void* global, u32 bytes, Barrier* b) {
#if __CUDA_ARCH__ >= 900
  if constexpr (kStreaming) {
    asm volatile(
        "{\n.reg .b64 policy;\n"
        "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], "
        "policy;\n"
        "}" ::"r"(shared_address(shared)),
        "l"(global), "r"(bytes), "r"(shared_address(b))
        : "memory");
    return;
  }
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(bytes), "r"(shared_address(b))
               : "memory");
#endif
}
