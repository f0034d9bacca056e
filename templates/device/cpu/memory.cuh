#pragma once
#include "basic.cuh"
#include "convert.cuh"
// CPU bodies of device/memory.cuh: loads and stores as they are, copies through the runtime.

// As wide as the GPU's access, so that it is checked once and for the alignment of the whole.
typedef u32 SsmjitCpuWord4 __attribute__((vector_size(16), may_alias));
typedef u32 SsmjitCpuWord2 __attribute__((vector_size(8), may_alias));
typedef u32 SsmjitCpuWord __attribute__((may_alias));
typedef u16 SsmjitCpuHalf __attribute__((may_alias));

// What an operation may be used on; the check of an access finds the number (kGlobalSpace of jit/cpu) in its pointer's
// type. To the machine all addresses are alike.
#define SSMJIT_CPU_GLOBAL __attribute__((address_space(1)))
#define SSMJIT_CPU_SHARED __attribute__((address_space(3)))
template <class T>
SSMJIT_DEVICE T ssmjit_cpu_global_load(const void* address) {
  return *(const SSMJIT_CPU_GLOBAL T*)address;
}

struct alignas(16) Vec16 {
  u32 word[4];
};

SSMJIT_DEVICE Vec16 ssmjit_cpu_load16(const void* address) {
  const SsmjitCpuWord4 v = *static_cast<const SsmjitCpuWord4*>(address);  // a value: else it is read in halves
  return __builtin_bit_cast(Vec16, v);
}
template <bool kStreaming>
SSMJIT_DEVICE Vec16 load_global(const void* address) {
  return __builtin_bit_cast(Vec16, ssmjit_cpu_global_load<SsmjitCpuWord4>(address));
}
template <bool kStreaming>
SSMJIT_DEVICE void store_global(void* address, const Vec16& v) {
  *(SSMJIT_CPU_GLOBAL SsmjitCpuWord4*)address = __builtin_bit_cast(SsmjitCpuWord4, v);
}
SSMJIT_DEVICE Vec16 load_global_of_line(const void* address) { return load_global<true>(address); }
template <bool kStreaming>
SSMJIT_DEVICE Vec16 load_maybe_appended(const void* address) {
  Vec16 v;
  ssmjit_cpu_load_maybe_appended(&v, address, sizeof(v));
  return v;
}

SSMJIT_DEVICE float load_maybe_appended_f32(const void* address) {
  float v;
  ssmjit_cpu_load_maybe_appended(&v, address, sizeof(v));
  return v;
}

template <int kWords>
SSMJIT_DEVICE void load_maybe_appended(const void* address, u32 (&word)[kWords]) {
  constexpr int kAtOnce = kWords % 4 == 0 ? 4 : kWords;
#pragma unroll
  for (int i = 0; i < kWords; i += kAtOnce)
    ssmjit_cpu_load_maybe_appended(word + i, static_cast<const u32*>(address) + i, 4 * kAtOnce);
}

SSMJIT_DEVICE u32 load_now_b32(const void* address) { return ssmjit_cpu_global_load<SsmjitCpuWord>(address); }
SSMJIT_DEVICE u16 load_now_b16(const void* address) { return ssmjit_cpu_global_load<SsmjitCpuHalf>(address); }
SSMJIT_DEVICE void load_now(const float* address, float& v) { v = __builtin_bit_cast(float, load_now_b32(address)); }
SSMJIT_DEVICE void load_now(const bf16* address, bf16& v) { v.bits = load_now_b16(address); }
SSMJIT_DEVICE void load_now(const f16* address, f16& v) { v.bits = load_now_b16(address); }
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
    for (int i = 0; i < kWords; i += 2) {
      const SsmjitCpuWord2 v = ssmjit_cpu_global_load<SsmjitCpuWord2>(p + i);
      word[i] = v[0];
      word[i + 1] = v[1];
    }
  } else {
#pragma unroll
    for (int i = 0; i < kWords; ++i) word[i] = load_now_b32(p + i);
  }
}

SSMJIT_DEVICE void add_global(u64* address, u64 value) { __atomic_fetch_add(address, value, __ATOMIC_RELAXED); }

SSMJIT_DEVICE Vec16 load_shared(const void* address) {
  const SsmjitCpuWord4 v = *(const SSMJIT_CPU_SHARED SsmjitCpuWord4*)address;
  return __builtin_bit_cast(Vec16, v);
}
SSMJIT_DEVICE void store_shared(void* address, const Vec16& v) {
  *(SSMJIT_CPU_SHARED SsmjitCpuWord4*)address = __builtin_bit_cast(SsmjitCpuWord4, v);
}

SSMJIT_DEVICE void copy_async(void* shared, const void* global) { ssmjit_cpu_copy(0, shared, global, 16, 16, 16); }
SSMJIT_DEVICE void copy_async_commit() { ssmjit_cpu_copy_commit(0); }
template <int kPending>
SSMJIT_DEVICE void copy_async_wait() {
  ssmjit_cpu_copy_wait(0, kPending);
}

struct alignas(8) Barrier {
  u64 state;
};
SSMJIT_DEVICE void barrier_init(Barrier* b, u32 arrivals) { ssmjit_cpu_mbarrier_init(b, arrivals); }
SSMJIT_DEVICE void barrier_init_fence() {}
SSMJIT_DEVICE void barrier_arrive_expect(Barrier* b, u32 bytes) {
  ssmjit_cpu_mbarrier_expect(b, bytes);
  ssmjit_cpu_mbarrier_arrive(b, 1);
}
SSMJIT_DEVICE void barrier_wait(Barrier* b, u32 parity) { ssmjit_cpu_mbarrier_wait(b, parity); }
template <bool kStreaming = false>
SSMJIT_DEVICE void bulk_load(void* shared, const void* global, u32 bytes, Barrier* b) {
  ssmjit_cpu_copy_to_barrier(shared, global, bytes, b);
}
