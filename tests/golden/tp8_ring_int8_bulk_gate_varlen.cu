// ssmjit 0.1.0: mamba2 ring, 16 heads x 64 x 128, 1 group, input bf16, dt fp32, weights fp32, state int8, delta softplus(dt + dt_bias), decay exp(A * delta), 6 tokens, skip D * x, gate silu(z), ring of window 16 and length 22, stochastic rounding with 10 Philox rounds, varlen
//
// description: {"schema":1,"op":"ring","family":"mamba2","nheads":16,"head_dim":64,"dstate":128,"ngroups":1,"tokens":6,"input":"bf16","dt":"fp32","weights":"fp32","state":"int8","delta":"softplus(dt + dt_bias)","decay":"exp(A * delta)","skip":"D * x","gate":"silu(z)","rounding":{"kind":"stochastic","philox_rounds":10},"store":{"kind":"ring","window":16},"destination_slots":false,"aligned_rows":true,"pad_output":"zeros","varlen":true}
// plan: block_m=32,warps=2,lanes_per_row=4,heads_per_block=4,stages=2,state_path=bulk,streaming=true,early_state=false,min_blocks_per_sm=1,ring_rows=live
//   block_m: rows of head_dim a block takes
//   warps: warps a block; each takes block_m / warps rows
//   lanes_per_row: lanes that share a row of dstate in 16-byte vectors: as the tensor cores want their operands
//   heads_per_block: heads of one group a block takes, one after the other; C . B is computed once for all
//   stages: heads whose state is on its way or in use at once
//   state_path: how the state comes and goes: straight into registers, or by bulk copies through shared memory, which a flush goes back by
//   streaming: whether the state is taken as used once: direct loads bypass the L1 and direct stores leave the L2 first; bulk loads leave the L2 first
//   early_state: whether a dependent launch asks for state, rings and cursors before it waits for the launch in front
//   min_blocks_per_sm: blocks of an SM that the compiler leaves registers for; 0: its own choice, which keeps registers down
//   ring_rows: which rows of the ring are asked for: all where they lie, before the cursors are known, or those in use
//
// A call moves, for each request: 186880 bytes read, 0 of them written back, 26496 written elsewhere.
// With a flush: 201088 bytes read, 135168 of them written back, 26496 written elsewhere.
// Launch for nheads = 16: grid (8, batch), block 64, dynamic shared memory 8192 bytes; entry ssmjit_ring_da0ad158.
// Rebuild: nvcc -std=c++17 -arch=sm_90a -cubin FILE.cu

// ---- device/basic.cuh ----

#ifndef SSMJIT_CPU
// Where a thread stands, barriers, and programmatic dependent launch.
// One wrapper per hardware operation, named after what it does; nothing outside templates/device names an intrinsic.

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

#define SSMJIT_DEVICE __device__ __forceinline__

SSMJIT_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
SSMJIT_DEVICE int lane_index() { return static_cast<int>(threadIdx.x & 31u); }
SSMJIT_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
SSMJIT_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
SSMJIT_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
SSMJIT_DEVICE int grid_x() { return static_cast<int>(gridDim.x); }
SSMJIT_DEVICE void sync_warp() { __syncwarp(); }

// The compiler keeps the value from here on and does not work it out again where it is used (addresses in a loop).
template <class T>
SSMJIT_DEVICE void keep(T*& v) {
  asm volatile("" : "+l"(v));
}
SSMJIT_DEVICE void keep(int& v) { asm volatile("" : "+r"(v)); }
SSMJIT_DEVICE void keep(float& v) { asm volatile("" : "+f"(v)); }

// Programmatic dependent launch (PTX griddepcontrol, sm_90 and later; nothing before).
// wait: returns when the launches this one depends on have finished and their writes are visible.
// trigger: lets the dependent launch start; it still waits for this one's end before it reads our results.
SSMJIT_DEVICE void grid_dependency_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
SSMJIT_DEVICE void grid_dependency_trigger() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
#endif

// ---- device/convert.cuh ----

#ifndef SSMJIT_CPU
// Storage types and their conversions to and from fp32. Widening is exact; narrowing rounds to nearest even and
// gives infinity on overflow (IEEE 754).

struct bf16 {
  u16 bits;
};
struct f16 {
  u16 bits;
};

SSMJIT_DEVICE float widen(float v) { return v; }
SSMJIT_DEVICE float widen(bf16 v) { return __uint_as_float(static_cast<u32>(v.bits) << 16); }
SSMJIT_DEVICE float widen(f16 v) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v.bits));
  return r;
}

SSMJIT_DEVICE void narrow(float v, float& out) { out = v; }
SSMJIT_DEVICE void narrow(float v, bf16& out) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(v)); }
SSMJIT_DEVICE void narrow(float v, f16& out) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(v)); }

// The 32-bit words of packed storage: kPerWord<T> elements a word, the lower address in the lower bits.
template <class T>
constexpr int kPerWord = 4 / static_cast<int>(sizeof(T));

SSMJIT_DEVICE void unpack_word(u32 word, float (&v)[1], float) { v[0] = __uint_as_float(word); }
SSMJIT_DEVICE void unpack_word(u32 word, float (&v)[2], bf16) {
  v[0] = __uint_as_float(word << 16);
  v[1] = __uint_as_float(word & 0xffff0000u);
}
SSMJIT_DEVICE void unpack_word(u32 word, float (&v)[2], f16) {
  asm("{.reg .b16 lo, hi; mov.b32 {lo, hi}, %2; cvt.f32.f16 %0, lo; cvt.f32.f16 %1, hi;}"
      : "=f"(v[0]), "=f"(v[1])
      : "r"(word));
}
SSMJIT_DEVICE u32 pack_word(const float (&v)[1], float) { return __float_as_uint(v[0]); }
SSMJIT_DEVICE u32 pack_word(const float (&v)[2], bf16) {
  u32 word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(v[1]), "f"(v[0]));
  return word;
}
SSMJIT_DEVICE u32 pack_word(const float (&v)[2], f16) {
  u32 word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(v[1]), "f"(v[0]));
  return word;
}
#endif

// ---- device/memory.cuh ----

#ifndef SSMJIT_CPU
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
#endif

// ---- device/async_copy.cuh ----

#ifndef SSMJIT_CPU
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
#endif

// ---- device/barrier.cuh ----

#ifndef SSMJIT_CPU
// Barriers within a block. Each also orders memory: what a thread wrote before it arrived, the threads that waited see.

// All threads of the block.
SSMJIT_DEVICE void sync_block() { __syncthreads(); }

// Named barrier 1 to 15 (0 is sync_block's): complete when `threads` threads, a multiple of 32, have come to it, by
// either call, whole warps at a time. arrive does not wait; a barrier is used again only after a sync_named on it.
SSMJIT_DEVICE void sync_named(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
SSMJIT_DEVICE void arrive_named(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
#endif

// ---- device/mma.cuh ----

#ifndef SSMJIT_CPU
// Matrix products of a warp on the tensor cores, and the exchange of their operands with shared memory.
//
// d += a * b, fp32 sums: A is 16 x k, B is k x 8, D is 16 x 8. With g = lane / 4 and t = lane % 4 a lane holds
//   of D: d[0], d[1] = D[g][2t], D[g][2t+1]; d[2], d[3] the same of row g + 8;
//   of A, two 16-bit elements a word: a[0] = A[g][2t, 2t+1], a[1] the same of row g + 8; k = 16: a[2], a[3] as a[0],
//   a[1]
//     8 columns on;
//   of B, two 16-bit elements a word: b[0] = B[2t, 2t+1][g]; k = 16: b[1] the same 8 rows down.
// The lower index is in the lower half of a word. Products are exact; their sum's order and rounding are the
// hardware's.

SSMJIT_DEVICE void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], bf16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
SSMJIT_DEVICE void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], f16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
SSMJIT_DEVICE void mma_m16n8k8(float (&d)[4], const u32 (&a)[2], const u32 (&b)[1], bf16) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}
SSMJIT_DEVICE void mma_m16n8k8(float (&d)[4], const u32 (&a)[2], const u32 (&b)[1], f16) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

// TF32: fp32 with 10 bits of mantissa, in fp32's place. Rounds to nearest, ties away from zero.
SSMJIT_DEVICE u32 narrow_tf32(float v) {
  u32 r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(v));
  return r;
}
// One TF32 element a word: a[0] = A[g][t], a[1] = A[g + 8][t], a[2], a[3] the same 4 columns on; b[0] = B[t][g], b[1]
// the same 4 rows down. The 13 low bits of an operand are to be zero, as narrow_tf32 leaves them.
SSMJIT_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// kMatrices (1, 2 or 4) matrices of 8 x 8 16-bit elements from shared memory (ldmatrix): lane 8 m + i brings the
// address of row i of matrix m, 16 bytes on a 16-byte boundary; addresses of lanes past 8 kMatrices are not looked at.
// Afterwards word[m] holds elements 2t and 2t + 1 of row g of matrix m: A's and D's order. Transposed: of column g, B's
// order from rows of k.
template <int kMatrices>
SSMJIT_DEVICE void load_matrix(u32 (&word)[kMatrices], const void* row) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  if constexpr (kMatrices == 1)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(word[0])
                 : "r"(shared_address(row))
                 : "memory");
  else if constexpr (kMatrices == 2)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(word[0]), "=r"(word[1])
                 : "r"(shared_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                 : "r"(shared_address(row))
                 : "memory");
}
template <int kMatrices>
SSMJIT_DEVICE void load_matrix_transposed(u32 (&word)[kMatrices], const void* row) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  if constexpr (kMatrices == 1)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(word[0])
                 : "r"(shared_address(row))
                 : "memory");
  else if constexpr (kMatrices == 2)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(word[0]), "=r"(word[1])
                 : "r"(shared_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The other way (stmatrix, sm_90): words as load_matrix leaves them, to the rows whose addresses the lanes bring.
// Before sm_90 they do nothing, and no plan uses them.
template <int kMatrices>
SSMJIT_DEVICE void store_matrix(void* row, const u32 (&word)[kMatrices]) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
#if __CUDA_ARCH__ >= 900
  if constexpr (kMatrices == 1)
    asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(shared_address(row)), "r"(word[0])
                 : "memory");
  else if constexpr (kMatrices == 2)
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(shared_address(row)), "r"(word[0]),
                 "r"(word[1])
                 : "memory");
  else
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
                 "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3])
                 : "memory");
#endif
}
template <int kMatrices>
SSMJIT_DEVICE void store_matrix_transposed(void* row, const u32 (&word)[kMatrices]) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
#if __CUDA_ARCH__ >= 900
  if constexpr (kMatrices == 1)
    asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(shared_address(row)), "r"(word[0])
                 : "memory");
  else if constexpr (kMatrices == 2)
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(shared_address(row)),
                 "r"(word[0]), "r"(word[1])
                 : "memory");
  else
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
                 "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3])
                 : "memory");
#endif
}
#endif

// ---- device/shuffle.cuh ----

#ifndef SSMJIT_CPU
// Exchanges between the lanes of a warp. All 32 lanes take part, in groups of kLanes neighbours (a power of two) that
// know nothing of each other; lanes are counted from the group's first. Values are of 4 bytes.

// What lane `lane` of the group brought; only the low bits of `lane` count.
template <int kLanes = 32, class T>
SSMJIT_DEVICE T shuffle(T v, int lane) {
  return __shfl_sync(0xffffffffu, v, lane, kLanes);
}
// What the lane whose index differs by exclusive or with `mask` brought; mask < kLanes.
template <int kLanes = 32, class T>
SSMJIT_DEVICE T shuffle_xor(T v, int mask) {
  return __shfl_xor_sync(0xffffffffu, v, mask, kLanes);
}
// What the lane `delta` below (up) or above (down) brought; the lane's own where the group has no such lane.
template <int kLanes = 32, class T>
SSMJIT_DEVICE T shuffle_up(T v, int delta) {
  return __shfl_up_sync(0xffffffffu, v, static_cast<unsigned>(delta), kLanes);
}
template <int kLanes = 32, class T>
SSMJIT_DEVICE T shuffle_down(T v, int delta) {
  return __shfl_down_sync(0xffffffffu, v, static_cast<unsigned>(delta), kLanes);
}
// Bit i: what lane i said.
SSMJIT_DEVICE u32 ballot_lanes(bool v) { return __ballot_sync(0xffffffffu, v); }

// The group's sum, the same bits in every lane: halves are added, then halves of halves (i and i + kLanes / 2 first).
template <int kLanes = 32, class T>
SSMJIT_DEVICE T sum_lanes(T v) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) v += shuffle_xor<kLanes>(v, step);
  return v;
}
// The group's largest. A NaN counts only where all are NaN; +0 is above -0.
template <int kLanes = 32>
SSMJIT_DEVICE float max_lanes(float v) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) v = fmaxf(v, shuffle_xor<kLanes>(v, step));
  return v;
}
// The sum over the group's lanes up to this one: to each lane is added what stands 1, then 2, 4, ... lanes below.
template <int kLanes = 32, class T>
SSMJIT_DEVICE T scan_lanes(T v) {
  const int lane = lane_index() & (kLanes - 1);
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    const T below = shuffle_up<kLanes>(v, step);
    if (lane >= step) v += below;
  }
  return v;
}
#endif

// ---- launch.cuh ----

// What a kernel is compiled for and told, beside its sizes and tensors.

// How the state comes to the lane that uses it; each kernel says what it makes of these.
enum class StatePath { direct, cp_async, bulk };
// What the output row of a pad request holds.
enum class PadOutput { zeros, untouched, as_if_zero_state };
// Programmatic dependent launch: how far a kernel may come before the launch in front of it has ended.
enum : int { kPdlOff = 0, kPdlWaitFirst = 1, kPdlEarlyState = 2 };

// ---- device/math.cuh ----

#ifndef SSMJIT_CPU
// Scalar fp32 functions, at the accuracy of the CUDA maths library (exp and log1p: 2 ulp at most). They run once a head
// or once an output element, never once a state element, so the fast approximations would save nothing.

SSMJIT_DEVICE float exp_f32(float v) { return expf(v); }
SSMJIT_DEVICE float log_f32(float v) { return logf(v); }
SSMJIT_DEVICE float log1p_f32(float v) { return log1pf(v); }
SSMJIT_DEVICE float tanh_f32(float v) { return tanhf(v); }
SSMJIT_DEVICE float sqrt_f32(float v) { return sqrtf(v); }
SSMJIT_DEVICE float abs_f32(float v) { return fabsf(v); }
SSMJIT_DEVICE float min_f32(float a, float b) { return fminf(a, b); }
SSMJIT_DEVICE float max_f32(float a, float b) { return fmaxf(a, b); }
SSMJIT_DEVICE float fma_f32(float a, float b, float c) { return fmaf(a, b, c); }
// 2 to the power v, to 2 ulp of the result's fp32 (ex2.approx); results below 2^-126 may be zero.
SSMJIT_DEVICE float exp2_fast_f32(float v) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
#endif

// ---- maths.cuh ----

// The functions that a description's expressions are made of, in fp32.

SSMJIT_DEVICE float fn_exp(float v) { return exp_f32(v); }
SSMJIT_DEVICE float fn_log(float v) { return log_f32(v); }
SSMJIT_DEVICE float fn_tanh(float v) { return tanh_f32(v); }
SSMJIT_DEVICE float fn_sqrt(float v) { return sqrt_f32(v); }
SSMJIT_DEVICE float fn_abs(float v) { return abs_f32(v); }
SSMJIT_DEVICE float fn_min(float a, float b) { return min_f32(a, b); }
SSMJIT_DEVICE float fn_max(float a, float b) { return max_f32(a, b); }
SSMJIT_DEVICE float fn_clamp(float v, float low, float high) { return min_f32(max_f32(v, low), high); }
SSMJIT_DEVICE float fn_relu(float v) { return max_f32(v, 0.0f); }
// log(1 + exp(v)); v itself above 20, where they agree to fp32
SSMJIT_DEVICE float fn_softplus(float v) { return v <= 20.0f ? log1p_f32(exp_f32(v)) : v; }
SSMJIT_DEVICE float fn_sigmoid(float v) { return 1.0f / (1.0f + exp_f32(-v)); }
SSMJIT_DEVICE float fn_silu(float v) { return v * fn_sigmoid(v); }

// ---- ring_args.cuh ----

// What a launch of the ring kernels is given, by value, in one struct (also read by the host, so plain C++). A kernel
// fetches its arguments by lines of 64 bytes (the first has 48 of them) and waits for each: the common ones fill four
// lines, and each line has one that is asked for while the slot index is on its way. Strides count elements, fewer than
// 2^31 of them; their products with indices are of 64 bits. A row is one request. Pointers that the description has no
// use for are null.

struct RingArgs {
  const int* state_batch_indices;  // [batch], as 32-bit words: row b's is word b * index_stride; a readable address,
                                   // and index_stride 0, where there are none
  int index_stride;                // words
  int wide_indices;                // 1: indices are int64, whose upper word follows; 0: int32
  int indexed;                     // 0: row b uses slot b
  int pdl;  // 0: no wait; 1: wait, then read; 2: a kernel with kEarlyState reads index, cu_seqlens, cursors, state,
            // rings, A, D and dt_bias, waits, then reads the rest; any other does as for 1
  long long slots;        // a slot index outside [0, slots) makes its row a pad row
  long long pad_slot_id;  // a row with this index, or a negative one, is a pad row
  const int* ring_start;  // [slots]: where the oldest row is

  const int* ring_count;  // [slots]: how many rows are in use, up to the window
  const void* A;          // [nheads] fp32, negative
  const void* D;          // [nheads]
  const void* dt_bias;    // [nheads]
  const void* B;          // [batch, tokens, ngroups, dstate]
  int B_stride;
  int B_token_stride;
  void* state;       // [slots, nheads, head_dim, dstate], inner three contiguous, 16-byte aligned rows
  int state_stride;  // between slots
  int nheads;

  const void* dt;  // [batch, tokens, nheads]
  int dt_stride;
  int dt_token_stride;
  void* B_ring;   // [slots, ngroups, ring, dstate]
  void* x_ring;   // [slots, nheads, ring, head_dim]
  void* dt_ring;  // [slots, nheads, ring] fp32: delta, not dt
  int B_ring_stride;
  int x_ring_stride;
  int dt_ring_stride;
  int rand_seed_stride;        // 0: one for all slots; 1: one each
  const long long* rand_seed;  // null: nothing is rounded by chance

  const void* C;  // [batch, tokens, ngroups, dstate]
  int C_stride;
  int C_token_stride;
  const void* x;  // [batch, tokens, nheads, head_dim]
  int x_stride;
  int x_token_stride;
  void* out;  // [batch, tokens, nheads, head_dim]
  int out_stride;
  int out_token_stride;
  const void* z;  // [batch, tokens, nheads, head_dim], gate
  int z_stride;
  int z_token_stride;

  const int* cu_seqlens;  // [batch + 1]: request b has tokens cu_seqlens[b] on, and row strides are 0; null: it has all
  float* state_scale;     // [slots, nheads, head_dim], inner two contiguous; null: the state has none
  int state_scale_stride;
  int total_tokens;  // with cu_seqlens: of all requests
  // Of a replay. Its other rows lie so: x_ring [slots, tokens, nheads, head_dim], B_ring [slots, 2, tokens, ngroups,
  // dstate], dt_ring [slots, 2, nheads, tokens]; ring_start is the buffer that holds the last step, ring_count its
  // accepted tokens.
  int sum_ring_stride;
  float* sum_ring;         // [slots, 2, nheads, tokens]: sums of A * delta up to and with each token
  unsigned char* weights;  // [batch, nheads] records (RingWeights) from a replay's first launch to its second
};

// ---- device/fp8.cuh ----

#ifndef SSMJIT_CPU
// Conversions of fp8 in hardware (sm_89 and later). Elsewhere they give 0 and kFp8InHardware is false.

#if __CUDA_ARCH__ >= 890
constexpr bool kFp8InHardware = true;
#else
constexpr bool kFp8InHardware = false;
#endif

// Two elements, the first in the low byte, rounded to nearest even; past the largest and infinities give the largest,
// NaN gives 0x7f.
SSMJIT_DEVICE u32 fp8_pack_e4m3(float low, float high) {
  u16 r = 0;
#if __CUDA_ARCH__ >= 890
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(high), "f"(low));
#endif
  return r;
}
SSMJIT_DEVICE u32 fp8_pack_e5m2(float low, float high) {
  u16 r = 0;
#if __CUDA_ARCH__ >= 890
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(r) : "f"(high), "f"(low));
#endif
  return r;
}
// Two e4m3 elements to two fp16, exactly; the first in the low half.
SSMJIT_DEVICE u32 fp8_unpack_e4m3(u32 pair) {
  u32 r = 0;
#if __CUDA_ARCH__ >= 890
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"(static_cast<u16>(pair)));
#endif
  return r;
}
#endif

// ---- device/scalar.cuh ----

#ifndef SSMJIT_CPU
// Bit patterns of fp32, and fp32 to integer. The conversions saturate; NaN gives 0.

SSMJIT_DEVICE u32 float_bits(float v) { return __float_as_uint(v); }
SSMJIT_DEVICE float bits_float(u32 bits) { return __uint_as_float(bits); }
// Bit i becomes bit 31 - i.
SSMJIT_DEVICE u32 reverse_bits(u32 bits) { return __brev(bits); }
// To the nearest integer, ties to even.
SSMJIT_DEVICE int round_to_int(float v) { return __float2int_rn(v); }
// To the integer below.
SSMJIT_DEVICE int floor_to_int(float v) { return __float2int_rd(v); }
#endif

// ---- device/stochastic.cuh ----

#ifndef SSMJIT_CPU
// Stochastic rounding in hardware (PTX cvt.rs): sm_100a and sm_103a only. Elsewhere the operations give 0 and
// kStochasticInHardware is false. The random bits are added below the kept bits of the mantissa; the carry rounds up.

#if defined(__CUDA_ARCH_FEAT_SM100_ALL) || defined(__CUDA_ARCH_FEAT_SM103_ALL)
constexpr bool kStochasticInHardware = true;
#else
constexpr bool kStochasticInHardware = false;
#endif

// Two elements, the first in the low half. fp16 takes bits 0 to 12 for the first and 16 to 28 for the second, bf16 the
// halves of `bits`.
SSMJIT_DEVICE u32 stochastic_pack_f16(float low, float high, u32 bits) {
  u32 r = 0;
#if defined(__CUDA_ARCH_FEAT_SM100_ALL) || defined(__CUDA_ARCH_FEAT_SM103_ALL)
  asm("cvt.rs.f16x2.f32 %0, %1, %2, %3;" : "=r"(r) : "f"(high), "f"(low), "r"(bits));
#endif
  return r;
}
SSMJIT_DEVICE u32 stochastic_pack_bf16(float low, float high, u32 bits) {
  u32 r = 0;
#if defined(__CUDA_ARCH_FEAT_SM100_ALL) || defined(__CUDA_ARCH_FEAT_SM103_ALL)
  asm("cvt.rs.bf16x2.f32 %0, %1, %2, %3;" : "=r"(r) : "f"(high), "f"(low), "r"(bits));
#endif
  return r;
}
// Four elements, the first in the lowest byte; saturates at 448. Elements 0 and 1 share the low 16 bits, 2 and 3 the
// high ones, the odd ones reading them in reverse.
SSMJIT_DEVICE u32 stochastic_pack_e4m3(const float (&v)[4], u32 bits) {
  u32 r = 0;
#if defined(__CUDA_ARCH_FEAT_SM100_ALL) || defined(__CUDA_ARCH_FEAT_SM103_ALL)
  asm("cvt.rs.satfinite.e4m3x4.f32 %0, {%1, %2, %3, %4}, %5;"
      : "=r"(r)
      : "f"(v[3]), "f"(v[2]), "f"(v[1]), "f"(v[0]), "r"(bits));
#endif
  return r;
}
// The integer below a value from 0 up to 2^23 (anything of others), by an addition, which costs a quarter of a
// conversion.
SSMJIT_DEVICE unsigned floor_below_2_23(float v) { return __float_as_uint(__fadd_rz(v, 0x1p23f)) - 0x4b000000u; }
// v plus the low or the high half of a word, in one instruction of the multipliers' pipe.
SSMJIT_DEVICE u32 add_low_half(u32 v, u32 halves) {
  u32 r;
  asm("dp2a.lo.u32.u32 %0, %1, %2, %3;" : "=r"(r) : "r"(halves), "r"(0x0001), "r"(v));
  return r;
}
SSMJIT_DEVICE u32 add_high_half(u32 v, u32 halves) {
  u32 r;
  asm("dp2a.lo.u32.u32 %0, %1, %2, %3;" : "=r"(r) : "r"(halves), "r"(0x0100), "r"(v));
  return r;
}
// a + b towards zero.
SSMJIT_DEVICE float add_towards_zero(float a, float b) { return __fadd_rz(a, b); }
// Whether all of eight fp16 are of 2^-14 to less than 65504 in size.
SSMJIT_DEVICE bool are_amid_f16(const u32 (&word)[4]) {
  u32 least, most;
  asm("{.reg .b32 a, b, c, d, u, v;"
      "abs.f16x2 a, %2; abs.f16x2 b, %3; abs.f16x2 c, %4; abs.f16x2 d, %5;"
      "min.f16x2 u, a, b; min.f16x2 v, c, d; min.f16x2 %0, u, v;"
      "max.NaN.f16x2 u, a, b; max.NaN.f16x2 v, c, d; max.NaN.f16x2 %1, u, v;}"
      : "=r"(least), "=r"(most)
      : "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3]));
  // The signs of halves after these sums: set where the least is 0x0400 or more, the most 0x7bff or more.
  return ((~(least + 0x7c007c00u) | (most + 0x04010401u)) & 0x80008000u) == 0;
}
// Two fp32 cut to fp16 towards zero, the first in the low half; on any GPU. Past the largest finite it stays.
SSMJIT_DEVICE u32 pack_cut_f16(float low, float high) {
  u32 r;
  asm("cvt.rz.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
// The upper halves of two words, the first's in the low half.
SSMJIT_DEVICE u32 upper_halves(u32 low, u32 high) { return __byte_perm(low, high, 0x7632); }
#endif

// ---- random.cuh ----

// Random bits for stochastic rounding: Philox-4x32 (Salmon et al., SC 2011), a function of seed and counter, so that a
// value's bits depend on neither launch shape nor tiling.

// 128 random bits.
struct Draw {
  u32 word[4];
};

// The keys of all rounds, for many draws of one seed.
template <int kRounds>
struct RoundKeys {
  static_assert(kRounds >= 1);
  u32 low[kRounds], high[kRounds];

  SSMJIT_DEVICE explicit RoundKeys(u64 seed) {
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      low[i] = static_cast<u32>(seed) + static_cast<u32>(i) * 0x9E3779B9u;
      high[i] = static_cast<u32>(seed >> 32) + static_cast<u32>(i) * 0xBB67AE85u;
    }
  }
  // They are worked out by here, once.
  SSMJIT_DEVICE void keep_all() {
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      int bits[2] = {static_cast<int>(low[i]), static_cast<int>(high[i])};
      keep(bits[0]);
      keep(bits[1]);
      low[i] = static_cast<u32>(bits[0]);
      high[i] = static_cast<u32>(bits[1]);
    }
  }
};

// kRounds rounds of the generator over `counter`.
template <int kRounds>
SSMJIT_DEVICE Draw philox(const Draw& counter, const RoundKeys<kRounds>& key) {
  u32 c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const u64 p0 = u64{0xD2511F53u} * c0, p1 = u64{0xCD9E8D57u} * c2;
    c0 = static_cast<u32>(p1 >> 32) ^ c1 ^ key.low[i];
    c1 = static_cast<u32>(p1);
    c2 = static_cast<u32>(p0 >> 32) ^ c3 ^ key.high[i];
    c3 = static_cast<u32>(p0);
  }
  return {{c0, c1, c2, c3}};
}
template <int kRounds>
SSMJIT_DEVICE Draw philox(const Draw& counter, u64 seed) {
  return philox<kRounds>(counter, RoundKeys<kRounds>(seed));
}

// The bits of eight neighbouring state elements, draw `number` of a state. `token`: which of several stored states, 0
// where a launch stores one. Element i has half-word i (round_stochastic says which formats share bits instead).
template <int kRounds>
SSMJIT_DEVICE Draw numbered_draw(const RoundKeys<kRounds>& key, u64 number, u32 token) {
  return philox<kRounds>({{static_cast<u32>(number), static_cast<u32>(number >> 32), token, 0}}, key);
}
// The same by the first element's place, a multiple of 8, counted in logical sizes, ((slot * nheads + head) * head_dim
// + p) * dstate + n.
template <int kRounds>
SSMJIT_DEVICE Draw state_draw(u64 seed, u64 element, u32 token) {
  return numbered_draw<kRounds>(RoundKeys<kRounds>(seed), element / 8, token);
}

// ---- rounding.cuh ----

// Narrow storage beside fp16 and bf16 (fp8, int8, int16), and stochastic rounding to all of them. Where hardware has a
// conversion it is used; the software beside it gives the same bits.

struct e4m3 {
  unsigned char bits;
};
struct e5m2 {
  unsigned char bits;
};
using i8 = signed char;
using i16 = short;

// ---- one element, in software ----

// fp8 with kMantissa mantissa bits, exponent bias kBias and largest finite pattern kLargest, to nearest even. Past the
// largest and infinities give the largest, NaN gives 0x7f.
template <int kMantissa, int kBias, u32 kLargest>
SSMJIT_DEVICE u32 nearest_fp8(float v) {
  constexpr int kDropped = 23 - kMantissa;
  constexpr u32 kSmallestNormal = static_cast<u32>(128 - kBias) << 23;
  constexpr u32 kRebias = static_cast<u32>(127 - kBias) << 23;
  // A number whose last place is the last place of fp8's subnormals: adding it rounds.
  constexpr u32 kSubnormalRounder = static_cast<u32>(127 + 1 - kBias - kMantissa + 23) << 23;
  const u32 bits = float_bits(v), magnitude = bits & 0x7fffffffu, sign = (bits >> 24) & 0x80u;
  if (magnitude > 0x7f800000u) return 0x7fu;
  u32 r;
  if (magnitude >= kSmallestNormal)
    r = (magnitude - kRebias + ((1u << (kDropped - 1)) - 1u) + ((magnitude >> kDropped) & 1u)) >> kDropped;
  else
    r = float_bits(bits_float(magnitude) + bits_float(kSubnormalRounder)) - kSubnormalRounder;
  return sign | (r < kLargest ? r : kLargest);
}
SSMJIT_DEVICE u32 nearest_e4m3(float v) { return nearest_fp8<3, 7, 0x7e>(v); }
SSMJIT_DEVICE u32 nearest_e5m2(float v) { return nearest_fp8<2, 15, 0x7b>(v); }

// Magnitudes, each from so many random bits added below the last kept bit; a carry rounds up, so a value that the
// format holds never changes. Bits of the value below the random ones are cut off. NaN gives 0x7fff (fp16, bf16) or
// 0x7f (e4m3). fp16: 13 random bits; 2^16 and more is infinity, as is what rounds up to it.
SSMJIT_DEVICE u32 stochastic_f16(float v, u32 random) {
  const u32 bits = float_bits(v), magnitude = bits & 0x7fffffffu, sign = (bits >> 16) & 0x8000u;
  // Below 2^-14 in units of 2^-37, 2^-13 of the last place. Selected, not branched to: one of a warp's lanes often has
  // such an element.
  const u32 subnormal = floor_below_2_23(bits_float(magnitude) * 0x1p37f);
  const u32 units = magnitude >= 0x38800000u ? magnitude - 0x38000000u : subnormal;
  const u32 finite = (units + (random & 0x1fffu)) >> 13;
  return magnitude > 0x7f800000u ? 0x7fffu : sign | (magnitude < 0x47800000u ? finite : 0x7c00u);
}
// bf16: 16 random bits; what rounds up past the largest is infinity.
SSMJIT_DEVICE u32 stochastic_bf16(float v, u32 random) {
  const u32 bits = float_bits(v);
  return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (bits + (random & 0xffffu)) >> 16;
}
// e4m3: 16 random bits; saturates at 448, infinities too.
SSMJIT_DEVICE u32 stochastic_e4m3(float v, u32 random) {
  const u32 bits = float_bits(v), magnitude = bits & 0x7fffffffu, sign = (bits >> 24) & 0x80u;
  random &= 0xffffu;
  if (magnitude > 0x7f800000u) return 0x7fu;
  u32 r;
  if (magnitude >= 0x3c800000u)  // 2^-6
    r = (magnitude - 0x3c000000u + (random << 4)) >> 20;
  else  // in units of 2^-25, 2^-16 of the last place
    r = (static_cast<u32>(floor_to_int(bits_float(magnitude) * 0x1p25f)) + random) >> 16;
  return sign | (r < 0x7eu ? r : 0x7eu);
}

// Integers are clamped to -kLargest..kLargest; NaN gives 0. The caller has divided by the scale.
template <int kLargest>
SSMJIT_DEVICE int nearest_int(float v) {
  const int r = round_to_int(v);
  return r < -kLargest ? -kLargest : r > kLargest ? kLargest : r;
}
// floor(v + random / 2^16), exactly, in the upper half of the word: what v drops below 2^-16 never adds up to a carry.
template <int kLargest>
SSMJIT_DEVICE int stochastic_units(float v, u32 random) {
  constexpr int kBound = kLargest * 65536;
  const int r = floor_to_int(v * 65536.0f);
  return (r < -kBound ? -kBound : r > kBound ? kBound : r) + static_cast<int>(random & 0xffffu);
}
template <int kLargest>
SSMJIT_DEVICE int stochastic_int(float v, u32 random) {
  return stochastic_units<kLargest>(v, random) >> 16;
}

// ---- words of packed storage, to nearest even; exactly back ----

SSMJIT_DEVICE u32 pack_word(const float (&v)[4], e4m3) {
  if constexpr (kFp8InHardware)
    return fp8_pack_e4m3(v[0], v[1]) | fp8_pack_e4m3(v[2], v[3]) << 16;
  else
    return nearest_e4m3(v[0]) | nearest_e4m3(v[1]) << 8 | nearest_e4m3(v[2]) << 16 | nearest_e4m3(v[3]) << 24;
}
SSMJIT_DEVICE u32 pack_word(const float (&v)[4], e5m2) {
  if constexpr (kFp8InHardware)
    return fp8_pack_e5m2(v[0], v[1]) | fp8_pack_e5m2(v[2], v[3]) << 16;
  else
    return nearest_e5m2(v[0]) | nearest_e5m2(v[1]) << 8 | nearest_e5m2(v[2]) << 16 | nearest_e5m2(v[3]) << 24;
}
SSMJIT_DEVICE u32 pack_bytes(int b0, int b1, int b2, int b3) {
  return (static_cast<u32>(b0) & 0xffu) | (static_cast<u32>(b1) & 0xffu) << 8 | (static_cast<u32>(b2) & 0xffu) << 16 |
         static_cast<u32>(b3) << 24;
}
SSMJIT_DEVICE u32 pack_word(const float (&v)[4], i8) {
  return pack_bytes(nearest_int<127>(v[0]), nearest_int<127>(v[1]), nearest_int<127>(v[2]), nearest_int<127>(v[3]));
}
SSMJIT_DEVICE u32 pack_word(const float (&v)[2], i16) {
  return (static_cast<u32>(nearest_int<32767>(v[0])) & 0xffffu) | static_cast<u32>(nearest_int<32767>(v[1])) << 16;
}

SSMJIT_DEVICE void unpack_word(u32 word, float (&v)[4], e4m3) {
  if constexpr (kFp8InHardware) {
    float low[2], high[2];
    unpack_word(fp8_unpack_e4m3(word & 0xffffu), low, f16{});
    unpack_word(fp8_unpack_e4m3(word >> 16), high, f16{});
    v[0] = low[0], v[1] = low[1], v[2] = high[0], v[3] = high[1];
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 byte = word >> (8 * i), magnitude = byte & 0x7fu, sign = (byte & 0x80u) << 24;
      // The pattern as an fp32 of the same fraction, whose exponent the product sets right, subnormals too.
      const float exact = bits_float(magnitude << 20) * 0x1p120f;
      v[i] = magnitude == 0x7fu ? bits_float(0x7fffffffu) : bits_float(float_bits(exact) | sign);
    }
  }
}
// The upper half of an fp16 is an e5m2.
SSMJIT_DEVICE void unpack_word(u32 word, float (&v)[4], e5m2) {
  float even[2], odd[2];
  unpack_word((word & 0x00ff00ffu) << 8, even, f16{});
  unpack_word(word & 0xff00ff00u, odd, f16{});
  v[0] = even[0], v[1] = odd[0], v[2] = even[1], v[3] = odd[1];
}
SSMJIT_DEVICE void unpack_word(u32 word, float (&v)[4], i8) {
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = static_cast<float>(static_cast<i8>(word >> (8 * i)));
}
// Elements 2 half and 2 half + 1 of the four.
SSMJIT_DEVICE void unpack_half_word(u32 word, int half, float (&v)[2], i8) {
  // v + 128 as the last byte of 2^23 + v + 128: no conversion, which is slow.
  const u32 biased = (word ^ 0x80808080u) >> (16 * half);
  v[0] = bits_float(0x4b000000u | (biased & 0xffu)) - 8388736.0f;
  v[1] = bits_float(0x4b000000u | (biased >> 8 & 0xffu)) - 8388736.0f;
}
SSMJIT_DEVICE void unpack_half_word(u32 word, int half, float (&v)[2], e4m3) {
  if constexpr (kFp8InHardware) {
    unpack_word(fp8_unpack_e4m3(word >> (16 * half) & 0xffffu), v, f16{});
  } else {
    float four[4];
    unpack_word(word, four, e4m3{});
    v[0] = half == 0 ? four[0] : four[2];
    v[1] = half == 0 ? four[1] : four[3];
  }
}
SSMJIT_DEVICE void unpack_word(u32 word, float (&v)[2], i16) {
  v[0] = static_cast<float>(static_cast<i16>(word));
  v[1] = static_cast<float>(static_cast<i16>(word >> 16));
}

// ---- eight neighbouring elements of one draw, stochastically ----

// fp16, bf16, int8 and int16: element i takes half-word i of the draw (fp16 its low 13 bits).
SSMJIT_DEVICE u32 random_half(const Draw& draw, int i) { return draw.word[i / 2] >> (16 * (i & 1)); }

// `probe` of the functions below: any number that is finite only where all elements are, as this one.
SSMJIT_DEVICE float probe_of(const float (&v)[8]) {
  float sum = abs_f32(v[0]);
#pragma unroll
  for (int i = 1; i < 8; ++i) sum += abs_f32(v[i]);
  return sum;
}
// Adding the bits and cutting is all that is to do where that gives what fp16 holds as a normal number below its
// largest; subnormals are done again in units of their last place, anything beyond one by one.
SSMJIT_DEVICE void round_stochastic(const float (&v)[8], const Draw& draw, u32 (&word)[4], f16, float) {
  if constexpr (kStochasticInHardware) {
#pragma unroll
    for (int i = 0; i < 4; ++i) word[i] = stochastic_pack_f16(v[2 * i], v[2 * i + 1], draw.word[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 random = draw.word[i] & 0x1fff1fffu;
      word[i] = pack_cut_f16(bits_float(add_low_half(float_bits(v[2 * i]), random)),
                             bits_float(add_high_half(float_bits(v[2 * i + 1]), random)));
    }
    if (are_amid_f16(word)) return;
    if (probe_of(v) < 65504.0f) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // The random bits as 2^-37 beside 2^-14: the sum is in these units, as fp16 in the subnormals' beside 2^-14.
        const u32 random = draw.word[i] & 0x1fff1fffu;
        const u32 small =
            pack_cut_f16(add_towards_zero(abs_f32(v[2 * i]), bits_float(add_low_half(0x38800000u, random))),
                         add_towards_zero(abs_f32(v[2 * i + 1]), bits_float(add_high_half(0x38800000u, random))));
        // All ones where the half has an exponent: it is above the subnormals before any bits or after them.
        const u32 normal = ((((word[i] & 0x7c007c00u) + 0x7c007c00u) >> 15) & 0x00010001u) * 0xffffu;
        word[i] = (word[i] & (normal | 0x80008000u)) | ((small - 0x04000400u) & ~normal);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        word[i] = stochastic_f16(v[2 * i], random_half(draw, 2 * i)) |
                  stochastic_f16(v[2 * i + 1], random_half(draw, 2 * i + 1)) << 16;
    }
  }
}
SSMJIT_DEVICE void round_stochastic(const float (&v)[8], const Draw& draw, u32 (&word)[4], bf16, float probe) {
  if constexpr (kStochasticInHardware) {
#pragma unroll
    for (int i = 0; i < 4; ++i) word[i] = stochastic_pack_bf16(v[2 * i], v[2 * i + 1], draw.word[i]);
  } else if (abs_f32(probe) <= 0x1.fffffep127f) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      word[i] = upper_halves(add_low_half(float_bits(v[2 * i]), draw.word[i]),
                             add_high_half(float_bits(v[2 * i + 1]), draw.word[i]));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      word[i] = stochastic_bf16(v[2 * i], random_half(draw, 2 * i)) |
                stochastic_bf16(v[2 * i + 1], random_half(draw, 2 * i + 1)) << 16;
  }
}
// e4m3 takes word i of the draw for elements 4i to 4i + 3, as the hardware does: the low 16 bits for the first, in
// reverse for the second, the high 16 likewise for the other two.
SSMJIT_DEVICE void round_stochastic(const float (&v)[8], const Draw& draw, u32 (&word)[2], e4m3, float) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const u32 bits = draw.word[i];
    const float four[4] = {v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]};
    if constexpr (kStochasticInHardware)
      word[i] = stochastic_pack_e4m3(four, bits);
    else
      word[i] = stochastic_e4m3(four[0], bits) | stochastic_e4m3(four[1], reverse_bits(bits) >> 16) << 8 |
                stochastic_e4m3(four[2], bits >> 16) << 16 | stochastic_e4m3(four[3], reverse_bits(bits)) << 24;
  }
}
SSMJIT_DEVICE void round_stochastic(const float (&v)[8], const Draw& draw, u32 (&word)[2], i8, float) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    int q[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) q[j] = stochastic_int<127>(v[4 * i + j], random_half(draw, 4 * i + j));
    word[i] = pack_bytes(q[0], q[1], q[2], q[3]);
  }
}
SSMJIT_DEVICE void round_stochastic(const float (&v)[8], const Draw& draw, u32 (&word)[4], i16, float) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    word[i] = upper_halves(static_cast<u32>(stochastic_units<32767>(v[2 * i], random_half(draw, 2 * i))),
                           static_cast<u32>(stochastic_units<32767>(v[2 * i + 1], random_half(draw, 2 * i + 1))));
}

// ---- a vector of neighbouring state elements ----

// Whether the rows of a state of T have a scale, and the largest number that T holds.
SSMJIT_DEVICE constexpr bool is_scaled(i8) { return true; }
SSMJIT_DEVICE constexpr bool is_scaled(e4m3) { return true; }
SSMJIT_DEVICE constexpr bool is_scaled(i16) { return true; }
template <class T>
SSMJIT_DEVICE constexpr bool is_scaled(T) {
  return false;
}
SSMJIT_DEVICE constexpr float largest_of(i8) { return 127.0f; }
SSMJIT_DEVICE constexpr float largest_of(e4m3) { return 448.0f; }
SSMJIT_DEVICE constexpr float largest_of(i16) { return 32767.0f; }

// What a row is multiplied by before it is rounded, from the size of its largest element; the inverse is its scale.
// A row of nothing, or of so little that fp32 has no such factor, is stored as zeros with a scale of 1.
template <class T>
SSMJIT_DEVICE float encode_of_row(float largest, T) {
  return largest >= 0x1p-110f ? largest_of(T{}) / largest : 1.0f;
}

// To nearest even.
template <int kCount, class T>
SSMJIT_DEVICE Vec16 round_vector(const float (&v)[kCount], T) {
  static_assert(kCount == 4 * kPerWord<T>);
  Vec16 rounded;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    float part[kPerWord<T>];
#pragma unroll
    for (int e = 0; e < kPerWord<T>; ++e) part[e] = v[w * kPerWord<T> + e];
    rounded.word[w] = pack_word(part, T{});
  }
  return rounded;
}
// By chance, from a draw for each eight elements. `probe`: of all of them.
template <int kCount, class T>
SSMJIT_DEVICE Vec16 round_vector_by(const float (&v)[kCount], const Draw* draw, T, float probe) {
  static_assert(kCount == 4 * kPerWord<T> && kCount % 8 == 0);
  constexpr int kWords = 8 / kPerWord<T>;  // of a draw
  Vec16 rounded;
#pragma unroll
  for (int d = 0; d < kCount / 8; ++d) {
    float eight[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) eight[e] = v[8 * d + e];
    u32 word[kWords];
    round_stochastic(eight, draw[d], word, T{}, probe);
#pragma unroll
    for (int w = 0; w < kWords; ++w) rounded.word[d * kWords + w] = word[w];
  }
  return rounded;
}
template <int kCount, class T>
SSMJIT_DEVICE Vec16 round_vector_by(const float (&v)[kCount], const Draw* draw, T) {
  float probe = abs_f32(v[0]);
#pragma unroll
  for (int e = 1; e < kCount; ++e) probe += abs_f32(v[e]);
  return round_vector_by(v, draw, T{}, probe);
}
// The same; `place`: of the first element, a multiple of 8, as state_draw counts it.
template <int kRounds, int kCount, class T>
SSMJIT_DEVICE Vec16 round_vector_stochastic(const float (&v)[kCount], u64 seed, u64 place, T) {
  Draw draw[kCount / 8];
#pragma unroll
  for (int d = 0; d < kCount / 8; ++d) draw[d] = state_draw<kRounds>(seed, place + 8 * d, 0);
  return round_vector_by(v, draw, T{});
}

// ---- ring.cuh ----

// A decode step of up to kTokens tokens that leaves the state where it is. What past steps brought (x, B, delta) is
// kept in a ring; the state is brought up to date and written only by the step for which the ring has no room (flush
// iff count + tokens > window). With s the running sum of A * delta over the ring's rows, oldest first, and the new
// ones:
//
//   y[t, p] = exp(s[t]) * sum over n of h[p, n] * C[t, n] + sum over rows j up to t of W[t, j] * x[j, p]
//   W[t, j] = (sum over n of C[t, n] * B[j, n]) * exp(s[t] - s[j]) * delta[j]
//   y += Cfg::skip(D, x[t, p]);  y *= Cfg::gate(z[t, p])
//
// In a flush, with s' the sum up to the last old row, what is stored is
//
//   h'[p, n] = exp(s') * h[p, n] + sum over old rows j of exp(s' - s[j]) * delta[j] * x[j, p] * B[j, n]
//
// and y is that of h' as stored (to nearest) and an empty ring.
//
// What costs is the state. A warp takes block_m / warps rows of head_dim for heads_per_block heads of one request, one
// after the other; the warps of a block share C . B and the heads' sums, which come first. All products run on the
// tensor cores, tokens on the side of 16, head_dim or rows on the side of 8, so that results are operands of the next
// product in the same lanes: C . B becomes the weights W without leaving registers. The state goes from memory straight
// into operands: a lane's 16-byte vectors are the fragments of a contraction in another order of dstate, and C and B
// are loaded in the same order.
//
// state_path: how the state comes to the lane that uses it
//   direct    straight into registers, of one head a block
//   bulk      into shared memory by a bulk copy a warp and head (sm_90), `stages` heads ahead; a flush's goes back by
//             another
// ring_rows: which rows of the ring are read.
//   all   every row where it lies, beside the new ones: no address waits for the cursors, which only mask
//   live  row j is the j-th oldest; rows out of use are not read
// Rows out of use never reach a result, whatever they hold; another block of the same launch may be appending to them.
//
// With Cfg::kReplay (replay.cuh) the ring is the last step's tokens, and every step is a flush.

enum class RingRows { all, live };

template <class A, class B>
constexpr bool is_same = false;
template <class A>
constexpr bool is_same<A, A> = true;

template <bool kFirst, class A, class B>
struct Either {
  using Type = A;
};
template <class A, class B>
struct Either<false, A, B> {
  using Type = B;
};

// Sizes that follow from Cfg. A tile is 8 rows, of the ring or of head_dim.
template <class Cfg>
struct RingShape {
  using State = typename Cfg::State;
  using Input = typename Cfg::Input;
  static constexpr bool kAll = Cfg::kRingRows == RingRows::all;
  static constexpr int kOld = kAll ? Cfg::kRing : Cfg::kWindow;
  static constexpr int kOldTiles = (kOld + 7) / 8;
  static constexpr int kNewTiles = (Cfg::kTokens + 7) / 8;
  static constexpr int kRowTiles = kOldTiles + kNewTiles;
  static constexpr int kFirstNew = 8 * kOldTiles;  // rows: the old ones, then new row t at kFirstNew + t
  static constexpr int kLaneRows = (8 * kRowTiles + 31) / 32;
  // Rows that may weigh for a token: all, from tile kFirstWeighed on; of a replay the new ones.
  static constexpr int kFirstWeighed = Cfg::kReplay ? kOldTiles : 0;
  static constexpr int kWeighedTiles = kRowTiles - kFirstWeighed;
  // Of a replay, buffers of B and sums that are read: both, before it is known which holds the last step, or that one.
  static constexpr int kBuffers = Cfg::kReplay && kAll ? 2 : 1;
  // Whether a launch in front computed what the new tokens weigh by, and keeps their B, deltas and sums (replay.cuh).
  static constexpr bool kPrecomputed = Cfg::kReplay && Cfg::kPrecomputed;
  static constexpr int kWarpRows = Cfg::kBlockM / Cfg::kWarps;
  static constexpr int kTiles = kWarpRows / 8;
  // Blocks of a head; or heads that a block takes side by side, each by its own warps (ring_layer.cuh alone has more
  // than one).
  static constexpr int kBlocks = Cfg::kBlockM < Cfg::kHeadDim ? Cfg::kHeadDim / Cfg::kBlockM : 1;
  static constexpr int kAside = Cfg::kBlockM > Cfg::kHeadDim ? Cfg::kBlockM / Cfg::kHeadDim : 1;
  static constexpr int kHeadWarps = Cfg::kWarps / kAside;
  static constexpr int kHeadSize = Cfg::kHeadDim * Cfg::kDstate;

  // A lane holds a vector of each row and chunk of dstate: kSpan neighbouring columns of 4 * kSpan.
  static constexpr int kSpan = 16 / static_cast<int>(sizeof(State));
  static constexpr int kChunks = Cfg::kDstate / (4 * kSpan);
  static constexpr int kSteps = kSpan / 4;         // products over a chunk
  static constexpr int kWords = Cfg::kDstate / 8;  // of 16-bit elements, that a lane holds of a row
  // A product has rows for 16 tokens. Where there are 8 at most, those from 8 on are the same tokens at the next step
  // of the contraction: one operand serves two steps, each with its own sums, of which the other half is not looked at.
  static constexpr int kHalves = kNewTiles == 1 ? 2 : 1;

  static constexpr bool kScaled = sizeof(State) == 1;
  // Products with the state: in bf16 where fp16 could overflow.
  using Operand = typename Either<is_same<State, Input> || kScaled, Input, bf16>::Type;
  static constexpr bool kDirect = Cfg::kStatePath == StatePath::direct;
  static constexpr int kWarpSize = kWarpRows * Cfg::kDstate;  // state elements of a warp and head
  // Whether a replay brings the state up to date, in registers, before it waits for the launch in front: where the new
  // state as it is stored is the operand of y, too.
  static constexpr bool kReplaysEarly = Cfg::kReplay && Cfg::kEarlyState && kDirect && Cfg::kPhiloxRounds == 0 &&
                                        (sizeof(State) == 4 || is_same<State, Operand>);
  // Rows of x in shared memory lie so that eight of them meet no bank twice.
  static constexpr int kXRow = kWarpRows + (kWarpRows > 8 ? 8 : 0);

  static_assert(Cfg::kDstate % (4 * kSpan) == 0 && Cfg::kHeadDim * kAside % Cfg::kBlockM == 0 && kWarpRows % 8 == 0);
  static_assert(kAside == 1 || (Cfg::kBlockM == kAside * Cfg::kHeadDim && Cfg::kWarps % kAside == 0));
  static_assert(kRowTiles <= 8 && Cfg::kHeadsPerBlock <= 32);
  static_assert(Cfg::kHeadsPerBlock == 1 || (!kDirect && !kAll && kAside == 1));
  static_assert(!Cfg::kReplay || (Cfg::kRing == Cfg::kTokens && Cfg::kWindow == Cfg::kTokens && kLaneRows == 1));
};

template <class Cfg>
struct RingShared {
  using S = RingShape<Cfg>;
  using Input = typename Cfg::Input;
  struct Warp {
    alignas(16) Input x[Cfg::kStages][8 * S::kRowTiles][S::kXRow];  // of the warp's rows of head_dim
    alignas(16) Input z[Cfg::kHasGate ? Cfg::kStages : 1][Cfg::kHasGate ? 8 * S::kNewTiles : 1][S::kXRow];
    alignas(16) float scale[S::kScaled ? Cfg::kStages : 1][S::kScaled ? S::kWarpRows : 4];
  };
  Warp warp[Cfg::kWarps];
  static constexpr int kHeads = Cfg::kHeadsPerBlock * S::kAside;
  alignas(16) float row[kHeads][8 * S::kRowTiles][2];       // s (in powers of two) and delta of a head's rows
  float all_old[kHeads];                                    // s of the last old row
  Barrier full[Cfg::kWarps][Cfg::kStages];                  // a stage of state has come
  alignas(16) Input B[8 * S::kOldTiles][Cfg::kDstate + 8];  // for a flush: old rows, dstate in the fragments' order
  alignas(16) float CB[Cfg::kWarps > 1 && !S::kPrecomputed ? 8 * S::kNewTiles : 1]
                      [(8 * S::kWeighedTiles + 31) / 32 * 32 + 8];
};

// 16-bit columns of one row in the lane's order: words 2 i and 2 i + 1 are those of step i of a contraction.
template <class Cfg>
struct RingColumns {
  using S = RingShape<Cfg>;
  u32 word[S::kWords];

  // `row`: from the lane's first column on.
  SSMJIT_DEVICE void load(const typename Cfg::Input* row) {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      u32 got[S::kSpan / 2];
      load_maybe_appended(row + 4 * c * S::kSpan, got);
#pragma unroll
      for (int w = 0; w < S::kSpan / 2; ++w) word[c * (S::kSpan / 2) + w] = got[w];
    }
  }
  // The same of a row in shared memory.
  SSMJIT_DEVICE void take(const typename Cfg::Input* row) {
    struct alignas(8) Pair {
      u32 word[2];
    };
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      const auto* from = row + 4 * c * S::kSpan;
      u32* to = word + c * (S::kSpan / 2);
      if constexpr (S::kSpan % 8 == 0) {
#pragma unroll
        for (int v = 0; v < S::kSpan / 8; ++v) {
          const Vec16 got = load_shared(from + 8 * v);
#pragma unroll
          for (int w = 0; w < 4; ++w) to[4 * v + w] = got.word[w];
        }
      } else {
        const Pair got = *reinterpret_cast<const Pair*>(from);
        to[0] = got.word[0];
        to[1] = got.word[1];
      }
    }
  }
  SSMJIT_DEVICE void store(typename Cfg::Input* row) const {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      const u32* w = word + c * (S::kSpan / 2);
      if constexpr (S::kSpan % 8 == 0) {
#pragma unroll
        for (int v = 0; v < S::kSpan / 2; v += 4)
          store_global<false>(row + 4 * c * S::kSpan + 2 * v, Vec16{{w[v], w[v + 1], w[v + 2], w[v + 3]}});
      } else {
#pragma unroll
        for (int v = 0; v < S::kSpan / 2; ++v) *reinterpret_cast<u32*>(row + 4 * c * S::kSpan + 2 * v) = w[v];
      }
    }
  }
};

// Sums of products: of tokens g (and g + 8) by columns 2 q and 2 q + 1 of a tile.
template <class Cfg>
struct RingSums {
  using S = RingShape<Cfg>;
  float d[S::kHalves][4];

  SSMJIT_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < S::kHalves; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) d[i][e] = 0.0f;
  }
  // Element e of token g + 8 n.
  SSMJIT_DEVICE float get(int n, int e) const {
    return S::kHalves == 2 ? d[0][e] + d[S::kHalves - 1][2 + e] : d[0][2 * n + e];
  }
  SSMJIT_DEVICE void scale(int n, int e, float factor) {
    d[0][2 * n + e] *= factor;
    if constexpr (S::kHalves == 2) d[1][2 + e] *= factor;
  }
};

template <class T>
SSMJIT_DEVICE const T& same_or(const T& same, const T&) {
  return same;
}
template <class A, class B>
SSMJIT_DEVICE const B& same_or(const A&, const B& other) {
  return other;
}

// C of the step's tokens as an operand of type T.
template <class Cfg, class T>
struct RingTokens {
  using S = RingShape<Cfg>;
  static constexpr int kSteps = Cfg::kDstate / 16;
  u32 a[kSteps / S::kHalves][4];

  // `zero` is 0, which the compiler can't know: else it keeps C as it was loaded, and puts an operand's registers
  // together anew for every product.
  SSMJIT_DEVICE void set(const RingColumns<Cfg> (&C)[S::kNewTiles], u32 zero) {
#pragma unroll
    for (int i = 0; i < kSteps / S::kHalves; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        a[i][e] = zero | converted(S::kHalves == 2 ? C[0].word[4 * i + (e % 2) * 2 + e / 2]
                                                   : C[S::kHalves == 2 ? 0 : e % 2].word[2 * i + e / 2]);
  }
  // sums += C . the columns whose words of step i are these.
  SSMJIT_DEVICE void contract(RingSums<Cfg>& sums, int i, u32 first, u32 second) const {
    mma_m16n8k16(sums.d[i % S::kHalves], a[i / S::kHalves], {first, second}, T{});
  }

 private:
  SSMJIT_DEVICE static u32 converted(u32 word) {
    if constexpr (is_same<typename Cfg::Input, T>) {
      return word;
    } else {
      float v[2];
      unpack_word(word, v, typename Cfg::Input{});
      return pack_word(v, T{});
    }
  }
};

// The lane's share of the state of the warp's rows of one head: in tile i row 8 i + g, in registers or in the warp's
// stage of shared memory, where rows lie as in memory. A flush puts the new state to memory, or to the stage.
template <class Cfg>
struct RingState {
  using S = RingShape<Cfg>;
  using State = typename Cfg::State;
  using Operand = typename S::Operand;
  Vec16 raw[S::kDirect ? S::kTiles : 1][S::kChunks];
  State* memory;  // direct: the lane's element 0
  int stage;      // bulk: where the lane's element 0 lies in shared memory

  // Stages of block_m rows each.
  static SSMJIT_DEVICE State* stages() {
    extern __shared__ __align__(128) unsigned char ring_stages[];
    return reinterpret_cast<State*>(ring_stages);
  }
  static SSMJIT_DEVICE constexpr int element(int i, int c) { return 8 * i * Cfg::kDstate + 4 * c * S::kSpan; }
  SSMJIT_DEVICE void load() {
#pragma unroll
    for (int i = 0; i < S::kTiles; ++i)
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c)
        raw[i][c] =
            Cfg::kStreaming ? load_global_of_line(memory + element(i, c)) : load_global<false>(memory + element(i, c));
  }
  SSMJIT_DEVICE Vec16 get(int i, int c) const {
    if constexpr (S::kDirect)
      return raw[i][c];
    else
      return load_shared(stages() + (stage + element(i, c)));
  }
  SSMJIT_DEVICE void store() const {
#pragma unroll
    for (int i = 0; i < S::kTiles; ++i)
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) put(i, c, raw[i][c]);
  }
  SSMJIT_DEVICE void put(int i, int c, const Vec16& v) const {
    if constexpr (S::kDirect)
      store_global<Cfg::kStreaming>(memory + element(i, c), v);
    else
      store_shared(stages() + (stage + element(i, c)), v);
  }
};

// The lane's columns of one row and chunk.
template <class Cfg>
struct RingSpan {
  using S = RingShape<Cfg>;
  using State = typename Cfg::State;
  Vec16 raw;

  // Columns 2 w and 2 w + 1.
  SSMJIT_DEVICE void pair(int w, float (&v)[2]) const {
    if constexpr (sizeof(State) == 4) {
      v[0] = bits_float(raw.word[2 * w]);
      v[1] = bits_float(raw.word[2 * w + 1]);
    } else if constexpr (sizeof(State) == 2) {
      unpack_word(raw.word[w], v, State{});
    } else {
      unpack_half_word(raw.word[w / 2], w % 2, v, State{});
    }
  }
  SSMJIT_DEVICE u32 operand(int w) const {
    if constexpr (is_same<State, typename S::Operand>) {
      return raw.word[w];
    } else {
      float v[2];
      pair(w, v);
      return pack_word(v, typename S::Operand{});
    }
  }
};

// What the cursors of a slot say of the rows.
template <class Cfg>
struct RingCursors {
  using S = RingShape<Cfg>;
  int start, count, tokens;
  bool flush;
  int buffer;  // of a replay: the one that holds the last step, 0 or 1; this step writes the other

  // Of what both buffers hold, that of the one that counts.
  template <class T>
  SSMJIT_DEVICE T of_buffer(T first, T second) const {
    return buffer != 0 ? second : first;
  }
  SSMJIT_DEVICE static int wrapped(int at) { return at < Cfg::kRing ? at : at - Cfg::kRing; }
  // Where old row j lies in the ring; of one that is not in use or is not there, where another lies.
  SSMJIT_DEVICE int place_of_old(int j) const {
    if constexpr (S::kAll) return j < Cfg::kRing ? j : Cfg::kRing - 1;
    return wrapped(start + (j < count ? j : count > 0 ? count - 1 : 0));
  }
  SSMJIT_DEVICE bool old_in_use(int j) const {
    if constexpr (S::kAll)
      return j < Cfg::kRing && (j < start ? j + Cfg::kRing : j) - start < count;
    else
      return j < count;
  }
  SSMJIT_DEVICE bool in_use(int j) const { return j < S::kFirstNew ? old_in_use(j) : j - S::kFirstNew < tokens; }
  // Where new row t is kept.
  SSMJIT_DEVICE int place_of_new(int t) const {
    if constexpr (Cfg::kReplay) return t;
    return wrapped(wrapped(start + count) + t);
  }
};

template <class Cfg>
struct RingStep {
  using S = RingShape<Cfg>;
  using State = typename Cfg::State;
  using Input = typename Cfg::Input;
  using Operand = typename S::Operand;
  using Cursors = RingCursors<Cfg>;

  const RingArgs& args;
  RingShared<Cfg>& shared;
  int row;    // request
  int head;   // the block's first; the warp's own of heads side by side
  int first;  // the warp's first row of head_dim
  int warp, lane, g, q;
  int first_token;  // of the request, in rows of the packed inputs; 0 without cu_seqlens
  int tokens;

  SSMJIT_DEVICE int group() const { return head / Cfg::kHeadsPerGroup; }
  SSMJIT_DEVICE typename RingShared<Cfg>::Warp& mine() const { return shared.warp[warp]; }

  // ---- addresses; a row that there is not is read as another, and what it gives is dropped: a load under a condition
  // would make the loads behind it wait ----

  // Both 0 and more.
  SSMJIT_DEVICE static i64 wide(int a, int b) {
    return static_cast<i64>(static_cast<u64>(static_cast<u32>(a)) * static_cast<u32>(b));
  }
  // Token t of the request, of a tensor whose rows start at column `at`.
  template <class T>
  SSMJIT_DEVICE T* token(T* base, int stride, int token_stride, int t, int at) const {
    return base + (wide(row, stride) + (wide(first_token, token_stride) + (wide(t, token_stride) + at)));
  }
  SSMJIT_DEVICE int last(int t) const { return t < tokens ? t : tokens - 1; }
  SSMJIT_DEVICE const Input* C_row(int t) const {
    return token(static_cast<const Input*>(args.C), args.C_stride, args.C_token_stride, last(t),
                 group() * Cfg::kDstate + q * S::kSpan);
  }
  SSMJIT_DEVICE const Input* new_B_row(int t) const {
    return token(static_cast<const Input*>(args.B), args.B_stride, args.B_token_stride, last(t),
                 group() * Cfg::kDstate + q * S::kSpan);
  }
  SSMJIT_DEVICE Input* ring_B_row(int slot, int place, int buffer = 0) const {
    Input* const pool = static_cast<Input*>(args.B_ring) + wide(slot, args.B_ring_stride);
    if constexpr (Cfg::kReplay) {
      const int groups = static_cast<int>(static_cast<u32>(args.nheads) / Cfg::kHeadsPerGroup);
      return pool + (((buffer * Cfg::kRing + place) * groups + group()) * Cfg::kDstate + q * S::kSpan);
    }
    return pool + ((group() * Cfg::kRing + place) * Cfg::kDstate + q * S::kSpan);
  }
  SSMJIT_DEVICE Input* ring_x_row(int slot, int place) const {
    Input* const pool = static_cast<Input*>(args.x_ring) + wide(slot, args.x_ring_stride);
    if constexpr (Cfg::kReplay) return pool + ((place * args.nheads + head) * Cfg::kHeadDim + first);
    return pool + ((head * Cfg::kRing + place) * Cfg::kHeadDim + first);
  }
  SSMJIT_DEVICE float* ring_delta(int slot, int h, int buffer = 0) const {
    float* const pool = static_cast<float*>(args.dt_ring) + wide(slot, args.dt_ring_stride);
    if constexpr (Cfg::kReplay) return pool + (buffer * args.nheads + h) * Cfg::kRing;
    return pool + h * Cfg::kRing;
  }
  // Of a replay.
  SSMJIT_DEVICE float* ring_sum(int slot, int h, int buffer) const {
    return args.sum_ring + wide(slot, args.sum_ring_stride) + (buffer * args.nheads + h) * Cfg::kRing;
  }

  // ---- C . B and the weights ----

  // The sums and deltas of the rows of head i of the block, to shared memory.
  SSMJIT_DEVICE void sum_rows(int i, const float (&delta)[S::kLaneRows], float A, const Cursors& at) const {
    float s[S::kLaneRows];
    float below = 0.0f;
#pragma unroll
    for (int k = 0; k < S::kLaneRows; ++k) {
      // In powers of two, so that a factor is one instruction.
      s[k] = below + scan_lanes(delta[k] * A * 1.442695041f);
      below = shuffle(s[k], 31);
    }
    const float all_old = shuffle(s[(S::kFirstNew - 1) / 32], S::kFirstNew - 1);
    if constexpr (S::kAll) {
      // From the order in which rows lie to that of age: rows before `start` come after the others.
      float before = 0.0f;
#pragma unroll
      for (int k = 0; k < S::kLaneRows; ++k) {
        const float here = shuffle(s[k], at.start - 1);
        if (at.start > 32 * k && at.start <= 32 * k + 32) before = here;
      }
#pragma unroll
      for (int k = 0; k < S::kLaneRows; ++k) {
        const int j = lane + 32 * k;
        if (j < S::kFirstNew) s[k] += (j < at.start ? all_old : 0.0f) - before;
      }
    }
#pragma unroll
    for (int k = 0; k < S::kLaneRows; ++k) {
      const int j = lane + 32 * k;
      if (8 * S::kRowTiles % 32 == 0 || j < 8 * S::kRowTiles) {
        shared.row[i][j][0] = s[k];
        shared.row[i][j][1] = delta[k];
      }
    }
    if (lane == 0) shared.all_old[i] = all_old;
  }
  // The same of a replay, whose old rows' sums are given.
  SSMJIT_DEVICE void take_old_sums(int i, float delta, float old_sum, const Cursors& at) const {
    const bool used = lane < at.count;
    const float sum = used ? old_sum * 1.442695041f : 0.0f;
    const float all_old = shuffle(sum, at.count > 0 ? at.count - 1 : 0);
    if (lane < S::kFirstNew) {
      shared.row[i][lane][0] = sum;
      shared.row[i][lane][1] = used ? delta : 0.0f;
    }
    if (lane == 0) shared.all_old[i] = all_old;
  }
  // Those of the new ones begin anew. Returns that of the lane's row, as it is kept.
  SSMJIT_DEVICE float sum_new_rows(int i, float delta, float A) const {
    const float sum = scan_lanes(lane < S::kFirstNew ? 0.0f : delta * A);
    if (lane >= S::kFirstNew && (8 * S::kRowTiles == 32 || lane < 8 * S::kRowTiles)) {
      shared.row[i][lane][0] = sum * 1.442695041f;
      shared.row[i][lane][1] = delta;
    }
    return sum;
  }
  struct RowPair {
    float s[2], delta[2];
  };
  SSMJIT_DEVICE RowPair row_pair(int i, int tile) const {
    const Vec16 v = load_shared(shared.row[i][8 * tile + 2 * q]);
    return {{bits_float(v.word[0]), bits_float(v.word[2])}, {bits_float(v.word[1]), bits_float(v.word[3])}};
  }

  // ---- a flush ----

  SSMJIT_DEVICE void copy_scale(int slot, int h, int stage) const {
    if (lane < S::kWarpRows / 4)
      copy_async(&mine().scale[stage][4 * lane],
                 args.state_scale + wide(slot, args.state_scale_stride) + (h * Cfg::kHeadDim + first + 4 * lane));
  }
  // x times exp(s' - s) * delta as operands, in parts, so that the product keeps the digits that an operand has not.
  static constexpr int kParts = sizeof(State) == 4 ? 3 : 2;
  SSMJIT_DEVICE void split_x(u32 (&part)[kParts], u32 x, const float (&factor)[2]) const {
    float v[2];
    unpack_word(x, v, Input{});
    v[0] *= factor[0];
    v[1] *= factor[1];
#pragma unroll
    for (int k = 0; k < kParts; ++k) {
      part[k] = pack_word(v, Input{});
      float taken[2];
      unpack_word(part[k], taken, Input{});
      v[0] -= taken[0];
      v[1] -= taken[1];
    }
  }

  // What a flush reads of a chunk: the state of rows of two tiles, and B.
  struct Piece {
    RingSpan<Cfg> h[2];
    u32 B[S::kOldTiles][S::kSpan / 2];  // rows of tile j, columns of word w
  };
  static constexpr int kPair = S::kTiles > 1 ? 2 : 1;  // tiles of a flush's product: its rows g and g + 8
  SSMJIT_DEVICE void load_piece(Piece& piece, const RingState<Cfg>& state, int i, int c) const {
    constexpr int kLast = S::kOldTiles - 1;
#pragma unroll
    for (int r = 0; r < kPair; ++r) piece.h[r].raw = state.get(i + r, c);
    if constexpr (kPair == 1) piece.h[1] = piece.h[0];
#pragma unroll
    for (int j = 0; j < S::kOldTiles; j += 2)
#pragma unroll
      for (int w = 0; w < S::kSpan / 2; w += 2) {
        u32 got[4];
        const int row_of_pair = j < kLast ? lane % 16 : lane % 8, word_of_pair = j < kLast ? lane / 16 : lane / 8 % 2;
        load_matrix_transposed(got, &shared.B[8 * j + row_of_pair][4 * c * S::kSpan + 8 * (w + word_of_pair)]);
        piece.B[j][w] = got[0];
        piece.B[j][w + 1] = got[j < kLast ? 2 : 1];
        if (j < kLast) {
          piece.B[j < kLast ? j + 1 : j][w] = got[1];
          piece.B[j < kLast ? j + 1 : j][w + 1] = got[3];
        }
      }
  }

  // h' to where h was; y += C . h' as stored to nearest, not yet scaled. x[i][j]: the columns of tile i by the rows of
  // tile j.
  SSMJIT_DEVICE void flush(RingSums<Cfg> (&y)[S::kTiles], float (&scale)[S::kScaled ? S::kTiles : 1][2],
                           RingState<Cfg>& state, const RingTokens<Cfg, Operand>& C,
                           const u32 (&x)[S::kTiles][S::kRowTiles], float all_old, int slot, int i_head) const {
    int place_of_head = i_head;
    if constexpr (S::kAside > 1) place_of_head = warp / S::kHeadWarps;
    float factor[S::kOldTiles][2];
#pragma unroll
    for (int j = 0; j < S::kOldTiles; ++j) {
      const RowPair r = row_pair(place_of_head, j);
#pragma unroll
      for (int e = 0; e < 2; ++e)
        // Rows out of use have delta 0, and sums that may lie past s'.
        factor[j][e] = r.delta[e] != 0.0f ? exp2_fast_f32(all_old - r.s[e]) * r.delta[e] : 0.0f;
    }
    // fp16 has few digits where the factors of a small delta are, and none above 65504: the products are summed with
    // factors times a power of two, of which the largest is from 1/2 to 1.
    constexpr bool kScaledFactors = is_same<Input, f16>;
    float up = 1.0f, down = 1.0f;  // the power and its inverse
    if constexpr (kScaledFactors) {
      float largest = 0.0f;
#pragma unroll
      for (int j = 0; j < S::kOldTiles; ++j)
        largest = max_f32(largest, max_f32(abs_f32(factor[j][0]), abs_f32(factor[j][1])));
      largest = min_f32(max_f32(max_lanes<4>(largest), 0x1p-24f), 0x1p24f);
      const u32 exponent = float_bits(largest) & 0x7f800000u;
      down = bits_float(exponent + 0x00800000u);
      up = bits_float(0x7e800000u - exponent);
#pragma unroll
      for (int j = 0; j < S::kOldTiles; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) factor[j][e] *= up;
    }
    const float decay = exp2_fast_f32(all_old);
    const int h = head + i_head;
    // Of the lane's element 0, for the random bits.
    const u64 place =
        ((static_cast<u64>(slot) * args.nheads + h) * Cfg::kHeadDim + first + g) * Cfg::kDstate + q * S::kSpan;
    u64 seed = 0;
    if constexpr (Cfg::kPhiloxRounds > 0) seed = static_cast<u64>(args.rand_seed[wide(slot, args.rand_seed_stride)]);

#pragma unroll
    for (int i = 0; i < S::kTiles; i += 2) {
      u32 a[S::kOldTiles][2][kParts];
#pragma unroll
      for (int j = 0; j < S::kOldTiles; ++j)
#pragma unroll
        for (int r = 0; r < 2; ++r) split_x(a[j][r], r < kPair ? x[(i + r) % S::kTiles][j] : 0u, factor[j]);
      float old_decay[2] = {decay, decay};
      if constexpr (S::kScaled) {
#pragma unroll
        for (int r = 0; r < kPair; ++r) old_decay[r] *= scale_of_row(scale[i + r]);
      }
      if constexpr (kScaledFactors) {
#pragma unroll
        for (int r = 0; r < kPair; ++r) old_decay[r] *= up;
      }
      float v[S::kScaled ? S::kChunks : 1][2][S::kSpan];
      Piece piece;
      load_piece(piece, state, i, 0);
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) {
        float(&now)[2][S::kSpan] = v[S::kScaled ? c : 0];
        Piece next;
        if (c + 1 < S::kChunks) load_piece(next, state, i, c + 1);
        constexpr int kWords = S::kSpan / 2;
        float sum[kWords][4] = {};
#pragma unroll
        for (int j = 0; j < S::kOldTiles; j += 2)
#pragma unroll
          for (int k = 0; k < kParts; ++k)
#pragma unroll
            for (int w = 0; w < kWords; ++w) {
              const int other = j + 1 < S::kOldTiles ? j + 1 : j;
              if (j + 1 < S::kOldTiles)
                mma_m16n8k16(sum[w], {a[j][0][k], a[j][1][k], a[other][0][k], a[other][1][k]},
                             {piece.B[j][w], piece.B[other][w]}, Input{});
              else
                mma_m16n8k8(sum[w], {a[j][0][k], a[j][1][k]}, {piece.B[j][w]}, Input{});
            }
#pragma unroll
        for (int w = 0; w < kWords; ++w)
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            float old[2];
            piece.h[r].pair(w, old);
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              now[r][2 * w + e] = fma_f32(old[e], old_decay[r], sum[w][2 * r + e]);
              if constexpr (kScaledFactors) now[r][2 * w + e] *= down;
            }
          }
        if constexpr (!S::kScaled) {
#pragma unroll
          for (int r = 0; r < kPair; ++r) put(y[i + r], C, state, place, seed, i + r, c, now[r]);
        }
        piece = next;
      }
      if constexpr (S::kScaled) {
#pragma unroll
        for (int r = 0; r < kPair; ++r) {
          float largest = 0.0f;
#pragma unroll
          for (int c = 0; c < S::kChunks; ++c)
#pragma unroll
            for (int e = 0; e < S::kSpan; ++e) largest = max_f32(largest, abs_f32(v[c][r][e]));
          largest = max_lanes<4>(largest);
          const float encode = encode_of_row(largest, State{});
          const float decoded = 1.0f / encode;
          if (q == 0)
            args.state_scale[wide(slot, args.state_scale_stride) + (h * Cfg::kHeadDim + first + 8 * (i + r) + g)] =
                decoded;
#pragma unroll
          for (int e = 0; e < 2; ++e) scale[i + r][e] = shuffle(decoded, 4 * (2 * q + e));
#pragma unroll
          for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
            for (int e = 0; e < S::kSpan; ++e) v[c][r][e] *= encode;
            put(y[i + r], C, state, place, seed, i + r, c, v[c][r]);
          }
        }
      }
    }
  }
  // Of row g of a tile, from the lanes' columns 2 q and 2 q + 1.
  SSMJIT_DEVICE float scale_of_row(const float (&scale)[2]) const {
    const float even = shuffle<4>(scale[0], g / 2), odd = shuffle<4>(scale[1], g / 2);
    return g % 2 == 0 ? even : odd;
  }
  // The lane's columns of a chunk and row: to where they were, rounded to nearest or by chance, and into y to nearest;
  // of a replay into y as they are, but for an operand's digits. One that replays early keeps them for both.
  SSMJIT_DEVICE void put(RingSums<Cfg>& y, const RingTokens<Cfg, Operand>& C, RingState<Cfg>& state, u64 place,
                         u64 seed, int i, int c, const float (&v)[S::kSpan]) const {
    const RingSpan<Cfg> nearest{round_vector(v, State{})};
    if constexpr (S::kReplaysEarly) {
      state.raw[i][c] = nearest.raw;
      return;
    }
    if constexpr (Cfg::kPhiloxRounds == 0) state.put(i, c, nearest.raw);
    const auto operand = [&](int w) {
      if constexpr (Cfg::kReplay && !is_same<State, Operand>) {
        const float own[2] = {v[2 * w], v[2 * w + 1]};
        return pack_word(own, Operand{});
      } else {
        return nearest.operand(w);
      }
    };
#pragma unroll
    for (int m = 0; m < S::kSteps; ++m) C.contract(y, c * S::kSteps + m, operand(2 * m), operand(2 * m + 1));
    if constexpr (Cfg::kPhiloxRounds > 0) {
      const Vec16 chance =
          round_vector_stochastic<Cfg::kPhiloxRounds>(v, seed, place + RingState<Cfg>::element(i, c), State{});
      state.put(i, c, chance);
    }
  }

  // ---- outputs ----

  SSMJIT_DEVICE Input* out_row(int t) const {
    return token(static_cast<Input*>(args.out), args.out_stride, args.out_token_stride, t,
                 head * Cfg::kHeadDim + first);
  }
  SSMJIT_DEVICE void write_zeros() const {
    for (int e = lane; e < Cfg::kHeadsPerBlock * S::kTiles * tokens; e += 32) {
      const int i = e / (S::kTiles * tokens), rest = e % (S::kTiles * tokens);
      store_global<false>(out_row(rest / S::kTiles) + (i * Cfg::kHeadDim + 8 * (rest % S::kTiles)), Vec16{});
    }
  }
};

// What the lane moves of every head beside the state: vectors of x and z to shared memory, the new rows of x into the
// ring, y to memory. Addresses are of the block's first head; the next one's lie a constant further.
template <class Cfg>
struct RingStreams {
  using S = RingShape<Cfg>;
  using Input = typename Cfg::Input;
  using Step = RingStep<Cfg>;
  using Shared = RingShared<Cfg>;
  // A row of x has kTiles vectors; vector k of the lane is of row j0 + k * kRowStep.
  static_assert(32 % S::kTiles == 0);
  static constexpr int kRowStep = 32 / S::kTiles;
  static constexpr int kOldLoads = (8 * S::kOldTiles + kRowStep - 1) / kRowStep;
  static constexpr int kNewLoads = (8 * S::kNewTiles + kRowStep - 1) / kRowStep;
  static constexpr int kStage = 8 * S::kRowTiles * S::kXRow, kZStage = 8 * S::kNewTiles * S::kXRow;  // elements
  static constexpr int kWarp = static_cast<int>(sizeof(typename Shared::Warp) / sizeof(Input));
  static constexpr int kRingHead = (Cfg::kReplay ? 1 : Cfg::kRing) * Cfg::kHeadDim;  // from a head's row to the next's

  int j0;
  u32 old_in_use;  // bit k
  int x, z;        // the lane's places in stage 0, in elements from the first warp's
  const Input* old_x[kOldLoads];
  const Input* new_x[kNewLoads];
  const Input* new_z[Cfg::kHasGate ? kNewLoads : 1];
  Input* kept_x[kNewLoads];
  Input* out[S::kNewTiles];

  SSMJIT_DEVICE static Input* all_x(Shared& shared) { return &shared.warp[0].x[0][0][0]; }
  SSMJIT_DEVICE static Input* all_z(Shared& shared) { return &shared.warp[0].z[0][0][0]; }
  SSMJIT_DEVICE static int x_row(int warp, int j) { return warp * kWarp + j * S::kXRow; }
  SSMJIT_DEVICE static int z_row(int warp, int t) { return warp * kWarp + t * S::kXRow; }

  SSMJIT_DEVICE void place_new(const Step& step) {
    const int v = step.lane % S::kTiles * 8;
    j0 = step.lane / S::kTiles;
    x = x_row(step.warp, j0) + v;
    z = z_row(step.warp, j0) + v;
    const RingArgs& args = step.args;
    const int at = step.head * Cfg::kHeadDim + step.first + v;
#pragma unroll
    for (int k = 0; k < kNewLoads; ++k) {
      const int t = step.last(j0 + k * kRowStep);
      new_x[k] = step.token(static_cast<const Input*>(args.x), args.x_stride, args.x_token_stride, t, at);
      if constexpr (Cfg::kHasGate)
        new_z[k] = step.token(static_cast<const Input*>(args.z), args.z_stride, args.z_token_stride, t, at);
    }
#pragma unroll
    for (int n = 0; n < S::kNewTiles; ++n) out[n] = step.out_row(step.last(step.g + 8 * n)) + 2 * step.q;
  }
  SSMJIT_DEVICE void place_old(const Step& step, int slot, const RingCursors<Cfg>& at) {
    const int v = step.lane % S::kTiles * 8;
    old_in_use = 0;
#pragma unroll
    for (int k = 0; k < kOldLoads; ++k) {
      const int j = j0 + k * kRowStep;
      old_x[k] = step.ring_x_row(slot, at.place_of_old(j)) + v;
      if (at.old_in_use(j)) old_in_use |= 1u << k;
    }
#pragma unroll
    for (int k = 0; k < kNewLoads; ++k) kept_x[k] = step.ring_x_row(slot, at.place_of_new(j0 + k * kRowStep)) + v;
  }
  SSMJIT_DEVICE void keep_all() {
    keep(x);
    if constexpr (Cfg::kHasGate) keep(z);
#pragma unroll
    for (int k = 0; k < kOldLoads; ++k) keep(old_x[k]);
#pragma unroll
    for (int k = 0; k < kNewLoads; ++k) {
      keep(new_x[k]);
      if constexpr (Cfg::kHasGate) keep(new_z[k]);
      keep(kept_x[k]);
    }
#pragma unroll
    for (int n = 0; n < S::kNewTiles; ++n) keep(out[n]);
  }
  // Whether vector k lies in rows that there are, of kRows.
  template <int kRows>
  SSMJIT_DEVICE bool there(int k) const {
    return kRows % kRowStep == 0 || j0 + k * kRowStep < kRows;
  }

  // Rows in use alone go by cp.async; all rows go through registers, where they are masked.
  SSMJIT_DEVICE void copy_old(Shared& shared, int i, int stage) const {
#pragma unroll
    for (int k = 0; k < kOldLoads; ++k)
      if (there<8 * S::kOldTiles>(k))
        copy_async_zero_fill<16>(all_x(shared) + (x + stage * kStage + k * kRowStep * S::kXRow),
                                 old_x[k] + i * kRingHead, (old_in_use >> k & 1u) * 16u);
  }
  SSMJIT_DEVICE void load_old(Vec16 (&v)[kOldLoads]) const {
#pragma unroll
    for (int k = 0; k < kOldLoads; ++k) v[k] = load_maybe_appended<false>(old_x[k]);
  }
  SSMJIT_DEVICE void store_masked(Shared& shared, const Vec16 (&v)[kOldLoads]) const {
#pragma unroll
    for (int k = 0; k < kOldLoads; ++k)
      if (there<8 * S::kOldTiles>(k))
        store_shared(all_x(shared) + (x + k * kRowStep * S::kXRow), (old_in_use >> k & 1u) != 0 ? v[k] : Vec16{});
  }
  // kX: x, too; else z alone.
  template <bool kX>
  SSMJIT_DEVICE void copy_new(Shared& shared, int i, int stage, int tokens) const {
#pragma unroll
    for (int k = 0; k < kNewLoads; ++k) {
      if (!there<8 * S::kNewTiles>(k)) continue;
      const u32 bytes = j0 + k * kRowStep < tokens ? 16u : 0u;
      if constexpr (kX)
        copy_async_zero_fill<16>(all_x(shared) + (x + stage * kStage + (S::kFirstNew + k * kRowStep) * S::kXRow),
                                 new_x[k] + i * Cfg::kHeadDim, bytes);
      if constexpr (Cfg::kHasGate)
        copy_async_zero_fill<16>(all_z(shared) + (z + stage * kZStage + k * kRowStep * S::kXRow),
                                 new_z[k] + i * Cfg::kHeadDim, bytes);
    }
  }
  SSMJIT_DEVICE void append(Shared& shared, int i, int stage, int tokens) const {
#pragma unroll
    for (int k = 0; k < kNewLoads; ++k)
      if (j0 + k * kRowStep < tokens)
        store_global<false>(
            kept_x[k] + i * kRingHead,
            load_shared(all_x(shared) + (x + stage * kStage + (S::kFirstNew + k * kRowStep) * S::kXRow)));
  }
};

// sums += W . x, rows on the side of the sum. W[j][n]: tokens g + 8 n by rows 2 q and 2 q + 1 of tile j.
template <class Cfg, int kRowTiles, int kNewTiles>
SSMJIT_DEVICE void add_weighted(RingSums<Cfg>& sums, const u32 (&W)[kRowTiles][kNewTiles], const u32 (&x)[kRowTiles]) {
  using Input = typename Cfg::Input;
  constexpr int kAtOnce = kNewTiles == 1 ? 4 : 2;
  constexpr int kWhole = kRowTiles / kAtOnce * kAtOnce, kRest = kRowTiles % kAtOnce;
#pragma unroll
  for (int j = 0; j < kWhole; j += kAtOnce) {
    if constexpr (kNewTiles == 1) {
      const u32 a[4] = {W[j][0], W[j + 2 < kRowTiles ? j + 2 : 0][0], W[j + 1 < kRowTiles ? j + 1 : 0][0],
                        W[j + 3 < kRowTiles ? j + 3 : 0][0]};
      mma_m16n8k16(sums.d[0], a, {x[j], x[j + 1 < kRowTiles ? j + 1 : 0]}, Input{});
      mma_m16n8k16(sums.d[1], a, {x[j + 2 < kRowTiles ? j + 2 : 0], x[j + 3 < kRowTiles ? j + 3 : 0]}, Input{});
    } else {
      mma_m16n8k16(sums.d[0], {W[j][0], W[j][1], W[j + 1][0], W[j + 1][1]}, {x[j], x[j + 1]}, Input{});
    }
  }
  if constexpr (kNewTiles == 1 && kRest >= 2) {
    const u32 a[2] = {W[kWhole][0], W[kWhole + 1][0]};
    mma_m16n8k8(sums.d[0], a, {x[kWhole]}, Input{});
    mma_m16n8k8(sums.d[1], a, {x[kWhole + 1]}, Input{});
  }
  if constexpr (kRest % 2 == 1) {
    constexpr int j = kRowTiles - 1;
    mma_m16n8k8(sums.d[0], {W[j][0], W[j][kNewTiles - 1]}, {x[j]}, Input{});
  }
}

// Of a head, what a replay's first launch passes on to its second: the lane's weights, as add_weighted takes them, and
// the decays of tokens g + 8 n. Records of [batch, nheads].
template <class Cfg>
struct RingWeights {
  static constexpr int kTiles = RingShape<Cfg>::kNewTiles;
  static constexpr int kDecays = 32 * kTiles * kTiles, kWords = kDecays + 8 * kTiles;  // of a record
  u32 W[kTiles][kTiles];
  float decay[kTiles];

  SSMJIT_DEVICE static u32* record(const RingArgs& args, int row, int head) {
    return reinterpret_cast<u32*>(args.weights) + (static_cast<i64>(row) * args.nheads + head) * kWords;
  }
  SSMJIT_DEVICE void load(const u32* from, int lane) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
      for (int n = 0; n < kTiles; ++n) W[j][n] = load_now_b32(from + (32 * (j * kTiles + n) + lane));
#pragma unroll
    for (int n = 0; n < kTiles; ++n) decay[n] = bits_float(load_now_b32(from + (kDecays + lane / 4 + 8 * n)));
  }
  SSMJIT_DEVICE void store(u32* to, int lane) const {
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
      for (int n = 0; n < kTiles; ++n) to[32 * (j * kTiles + n) + lane] = W[j][n];
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
      if (lane % 4 == 0) to[kDecays + lane / 4 + 8 * n] = float_bits(decay[n]);
  }
};

// The weight of a row for a token: C . B times the decay from the row to the token and the row's delta.
template <class Cfg>
SSMJIT_DEVICE float weight_of(float CB, float s_token, float s_row, float delta, bool weighs) {
  float w = CB * (exp2_fast_f32(s_token - s_row) * delta);
  // An infinite weight would make NaN of a zero in x.
  if constexpr (is_same<typename Cfg::Input, f16>) w = min_f32(max_f32(w, -65504.0f), 65504.0f);
  return weighs ? w : 0.0f;
}

// The slot of a row, of the two words of its index; negative or past the end of a pad's.
SSMJIT_DEVICE i64 named_slot(const RingArgs& args, int row, int low, int high) {
  const i64 wide = static_cast<i64>(static_cast<u64>(static_cast<u32>(high)) << 32 | static_cast<u32>(low));
  return args.indexed == 0 ? row : args.wide_indices != 0 ? wide : low;
}

// What a layer (ring_layer.cuh) has around the step: it puts the new x, B and C into shared memory, and takes y. Here
// there is nothing: they come from memory, y goes there.
template <class Cfg>
struct RingAlone {
  static constexpr bool kIsLayer = false;
  using Args = RingArgs;
  using Shared = RingShared<Cfg>;
  const Args& args;
  Shared& shared;
};

// `args`: those of the step among all of them.
template <class Cfg, class Around>
SSMJIT_DEVICE void ring_step(const typename Around::Args& all_args, const RingArgs& args) {
  constexpr bool kIsLayer = Around::kIsLayer;
  using S = RingShape<Cfg>;
  using Step = RingStep<Cfg>;
  using Streams = RingStreams<Cfg>;
  using State = typename Cfg::State;
  using Input = typename Cfg::Input;
  using Weight = typename Cfg::Weight;
  using Dt = typename Cfg::Dt;
  __shared__ typename Around::Shared shared;
  Around around{all_args, shared};
  int lane = lane_index(), warp = thread_index() / 32;
  keep(lane);
  keep(warp);
  const int block_head = block_x() / S::kBlocks * Cfg::kHeadsPerBlock * S::kAside;
  const int head = block_head + (S::kAside == 1 ? 0 : warp / S::kHeadWarps);
  if (args.pdl != kPdlOff) {
    grid_dependency_trigger();
    if (!Cfg::kEarlyState || args.pdl == kPdlWaitFirst) grid_dependency_wait();
  }
  const int row = block_y();
  const int* const entry = args.state_batch_indices + Step::wide(row, args.index_stride);
  int index_low = static_cast<int>(load_now_b32(entry)),
      index_high = static_cast<int>(load_now_b32(entry + args.wide_indices));
  keep(index_low);
  keep(index_high);
  int first_token = 0, tokens = Cfg::kTokens;
  if constexpr (Cfg::kVarlen) {
    // Out of order or of range they are the caller's error, but no address leaves the tensors.
    const int from = static_cast<int>(load_now_b32(args.cu_seqlens + row));
    const int to = static_cast<int>(load_now_b32(args.cu_seqlens + row + 1));
    first_token = from < 0 ? 0 : from < args.total_tokens ? from : args.total_tokens;
    const int end = to < args.total_tokens ? to : args.total_tokens;
    tokens = end <= first_token ? 0 : end - first_token < Cfg::kTokens ? end - first_token : Cfg::kTokens;
  }
  const Step step{args,
                  shared,
                  row,
                  head,
                  block_x() % S::kBlocks * Cfg::kBlockM + (S::kAside == 1 ? warp : warp % S::kHeadWarps) * S::kWarpRows,
                  warp,
                  lane,
                  lane / 4,
                  lane % 4,
                  first_token,
                  tokens};
  const int g = step.g, q = step.q;
  if (Cfg::kVarlen && tokens <= 0) {  // no tokens: nothing is written
    if constexpr (Cfg::kEarlyState) grid_dependency_wait();
    return;
  }

  // Lane i has what head i of the block has one of.
  float A;
  Weight D, dt_bias;
  const int lane_head = head + (lane < Cfg::kHeadsPerBlock ? lane : Cfg::kHeadsPerBlock - 1);
  const auto load_scalars = [&] {
    load_now(static_cast<const float*>(args.A) + lane_head, A);
    if constexpr (Cfg::kHasD) load_now(static_cast<const Weight*>(args.D) + lane_head, D);
    if constexpr (Cfg::kHasDtBias) load_now(static_cast<const Weight*>(args.dt_bias) + lane_head, dt_bias);
  };
  if constexpr (kIsLayer) around.start(step);
  if constexpr (!S::kDirect) {
    if (lane == 0) {
#pragma unroll
      for (int i = 0; i < Cfg::kStages; ++i) barrier_init(&shared.full[warp][i], 1);
      barrier_init_fence();
    }
    sync_warp();
  }

  // Warp w contracts tiles w, w + warps, ... with C: of the old rows, then of the new ones; and it sums the rows of
  // heads w, w + warps, ...
  constexpr int kOldMine = (S::kOldTiles + Cfg::kWarps - 1) / Cfg::kWarps;
  constexpr int kNewMine = (S::kNewTiles + Cfg::kWarps - 1) / Cfg::kWarps;
  const int new_warp =
      (warp + Cfg::kWarps - S::kOldTiles % Cfg::kWarps) % Cfg::kWarps;  // it goes on where old tiles end
  constexpr int kHeadsMine = (Cfg::kHeadsPerBlock + Cfg::kWarps - 1) / Cfg::kWarps;
  const auto head_mine = [&](int k) {
    const int i = warp + k * Cfg::kWarps;
    return Cfg::kHeadsPerBlock % Cfg::kWarps == 0 || i < Cfg::kHeadsPerBlock ? i : 0;
  };
  const auto has_head = [&](int k) {
    if constexpr (S::kAside > 1) return warp % S::kHeadWarps == 0;
    return Cfg::kHeadsPerBlock % Cfg::kWarps == 0 || warp + k * Cfg::kWarps < Cfg::kHeadsPerBlock;
  };
  // In a layer a warp leaves out a tile that there is not; alone, it has few, and all products go side by side.
  const auto has_old = [&](int k) { return !kIsLayer || warp + k * Cfg::kWarps < S::kOldTiles; };
  const auto has_new = [&](int k) { return !kIsLayer || new_warp + k * Cfg::kWarps < S::kNewTiles; };
  const auto of_head = [&](float v, int i) { return Cfg::kHeadsPerBlock > 1 ? shuffle(v, i) : v; };
  RingColumns<Cfg> C_rows[S::kNewTiles], old_B[S::kBuffers][kOldMine], new_B[kNewMine];
  Dt dt[kHeadsMine][S::kLaneRows];
  Streams streams;
  RingWeights<Cfg> weights;  // of the next head
  const auto load_inputs = [&] {
    if constexpr (S::kPrecomputed) weights.load(RingWeights<Cfg>::record(args, row, head), lane);
#pragma unroll
    for (int r = 0; !S::kPrecomputed && r < S::kLaneRows; ++r) {
      const int t = lane + 32 * r - S::kFirstNew;
      const Dt* p = step.token(static_cast<const Dt*>(args.dt), args.dt_stride, args.dt_token_stride,
                               t < 0 ? 0 : step.last(t), head);
#pragma unroll
      for (int k = 0; k < kHeadsMine; ++k) load_now(p + head_mine(k), dt[k][r]);
    }
    if constexpr (!kIsLayer) {
#pragma unroll
      for (int n = 0; n < S::kNewTiles; ++n) C_rows[n].load(step.C_row(8 * n + g));
#pragma unroll
      for (int k = 0; !S::kPrecomputed && k < kNewMine; ++k)
        new_B[k].load(step.new_B_row(8 * (new_warp + k * Cfg::kWarps) + g));
    }
  };
  streams.place_new(step);
  const i64 named = named_slot(args, row, index_low, index_high);
  if (named < 0 || named >= args.slots || named == args.pad_slot_id) {
    if constexpr (Cfg::kEarlyState) grid_dependency_wait();
    if constexpr (kIsLayer) around.leave(step);
    if constexpr (Cfg::kPadOutput == PadOutput::zeros) step.write_zeros();
    return;
  }
  const int slot = static_cast<int>(named);

  if constexpr (kIsLayer) around.load_windows(slot);
  const int start_word = static_cast<int>(load_now_b32(args.ring_start + slot));
  const int count_word = static_cast<int>(load_now_b32(args.ring_count + slot));
  State* warp_state = static_cast<State*>(args.state) + Step::wide(slot, args.state_stride) +
                      (static_cast<i64>(head) * S::kHeadSize + step.first * Cfg::kDstate);
  const int lane_element = g * Cfg::kDstate + q * S::kSpan;
  RingState<Cfg> state;
  state.memory = warp_state + lane_element;
  const auto copy_state = [&](int i, int stage) {
    if (lane != 0) return;
    constexpr u32 kBytes = S::kWarpSize * static_cast<u32>(sizeof(State));
    barrier_arrive_expect(&shared.full[warp][stage], kBytes);
    bulk_load<Cfg::kStreaming>(RingState<Cfg>::stages() + (stage * Cfg::kWarps + warp) * S::kWarpSize,
                               warp_state + i * S::kHeadSize, kBytes, &shared.full[warp][stage]);
  };
  // Stage to memory, of head i.
  const auto store_state = [&](int i, int stage) {
    bulk_store_fence();
    sync_warp();
    if (lane != 0) return;
    bulk_store(warp_state + i * S::kHeadSize, RingState<Cfg>::stages() + (stage * Cfg::kWarps + warp) * S::kWarpSize,
               S::kWarpSize * static_cast<u32>(sizeof(State)));
    bulk_store_commit();
  };
  // Loads come back in the order in which they were asked for: nothing stands in front of index and cursors, for which
  // the ring's rows wait. What needs neither is asked for while the cursors are on their way; but by blocks of one
  // head, whose state comes by bulk copies, where the compiler likes.
  constexpr bool kInputsAhead = S::kDirect || Cfg::kHeadsPerBlock > 1;
  if constexpr (!kIsLayer && !S::kAll && !kInputsAhead) sync_warp();
  load_scalars();
  if constexpr (!Cfg::kEarlyState) load_inputs();
  if constexpr (S::kDirect && !S::kAll) state.load();
  if constexpr (!kIsLayer && !S::kAll && kInputsAhead) sync_warp();
  constexpr int kAhead = Cfg::kStages < Cfg::kHeadsPerBlock ? Cfg::kStages : Cfg::kHeadsPerBlock;

  // Out of range they are the caller's error, but no address leaves the ring.
  const int start = Cfg::kReplay || start_word < 0 ? 0 : start_word < Cfg::kRing ? start_word : Cfg::kRing - 1;
  const int count = count_word < 0 ? 0 : count_word < Cfg::kWindow ? count_word : Cfg::kWindow;
  const int buffer = Cfg::kReplay && start_word > 0 ? 1 : 0;
  const RingCursors<Cfg> at{start, count, tokens, Cfg::kReplay || count + tokens > Cfg::kWindow, buffer};
  float old_delta[S::kBuffers][kHeadsMine][S::kLaneRows];
  float old_sum[S::kBuffers][Cfg::kReplay ? kHeadsMine : 1];
  float* const first_deltas = step.ring_delta(slot, head, S::kBuffers == 2 ? 0 : buffer);
#pragma unroll
  for (int i = 0; i < S::kBuffers; ++i) {
    const int from = S::kBuffers == 2 ? i : buffer;
    const float* const deltas = i == 0 ? first_deltas : step.ring_delta(slot, head, from);
#pragma unroll
    for (int r = 0; r < S::kLaneRows; ++r) {
      const int place = at.place_of_old(lane + 32 * r);
#pragma unroll
      for (int k = 0; k < kHeadsMine; ++k)
        old_delta[i][k][r] = load_maybe_appended_f32(deltas + (head_mine(k) * Cfg::kRing + place));
    }
#pragma unroll
    for (int k = 0; Cfg::kReplay && k < kHeadsMine; ++k)
      old_sum[i][k] = load_maybe_appended_f32(step.ring_sum(slot, head + head_mine(k), from) + at.place_of_old(lane));
#pragma unroll
    for (int k = 0; k < kOldMine; ++k)
      old_B[i][k].load(step.ring_B_row(slot, at.place_of_old(8 * (warp + k * Cfg::kWarps) + g), from));
  }
  streams.place_old(step, slot, at);
  Vec16 old_x[S::kAll ? Streams::kOldLoads : 1];
  if constexpr (S::kAll) streams.load_old(old_x);
  if constexpr (S::kDirect && S::kAll) state.load();
  // Behind all that the first head needs beside it, which would else wait for the state of every stage.
  const auto copy_states = [&] {
#pragma unroll
    for (int i = 0; !S::kDirect && i < kAhead; ++i) copy_state(i, i);
  };
  // A group of copies a head; past the last one groups are empty.
  const auto copy_early = [&](int i, int stage) {
    if constexpr (!S::kAll) streams.copy_old(shared, i, stage);
    if constexpr (S::kScaled) step.copy_scale(slot, head + i, stage);
  };
  // Of a replay: what the old rows weigh by, and B, to shared memory.
  const auto take_old = [&] {
#pragma unroll
    for (int k = 0; k < kHeadsMine; ++k) {
      float delta = old_delta[0][k][0], sum = old_sum[0][Cfg::kReplay ? k : 0];
      if constexpr (S::kBuffers == 2) {
        delta = at.of_buffer(delta, old_delta[1][k][0]);
        sum = at.of_buffer(sum, old_sum[1][k]);
      }
      if (has_head(k)) step.take_old_sums(head_mine(k), delta, sum, at);
    }
  };
  const auto take_old_B = [&] {
#pragma unroll
    for (int k = 0; k < kOldMine; ++k) {
      const int tile = warp + k * Cfg::kWarps, j = 8 * tile + g;
      if (S::kOldTiles % Cfg::kWarps != 0 && tile >= S::kOldTiles) continue;
      const bool used = at.old_in_use(j);
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c)
#pragma unroll
        for (int w = 0; w < S::kSpan / 2; ++w) {
          u32 word = old_B[0][k].word[c * (S::kSpan / 2) + w];
          if constexpr (S::kBuffers == 2) word = at.of_buffer(word, old_B[1][k].word[c * (S::kSpan / 2) + w]);
          *reinterpret_cast<u32*>(&shared.B[j][4 * c * S::kSpan + 8 * w + 2 * q]) = used ? word : 0u;
        }
    }
  };
  if constexpr (Cfg::kEarlyState) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) copy_early(i, i);
    copy_states();
    if constexpr (S::kReplaysEarly) {
      take_old();
      take_old_B();
      if constexpr (S::kAll) {
        streams.store_masked(shared, old_x);
      } else {
        copy_async_commit();
        copy_async_wait<0>();
      }
      if constexpr (Cfg::kWarps > 1)
        sync_block();
      else
        sync_warp();
      u32 x[S::kTiles][S::kRowTiles] = {};
      constexpr int kMatrices = S::kOldTiles * S::kTiles;
#pragma unroll
      for (int k = 0; k < (kMatrices + 3) / 4; ++k) {
        const int n = 4 * k + lane / 8 < kMatrices ? 4 * k + lane / 8 : kMatrices - 1;
        u32 got[4];
        load_matrix_transposed(got, streams.all_x(shared) + (streams.x_row(warp, 8 * (n % S::kOldTiles) + lane % 8) +
                                                             8 * (n / S::kOldTiles)));
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (4 * k + e < kMatrices) x[(4 * k + e) / S::kOldTiles][(4 * k + e) % S::kOldTiles] = got[e];
      }
      RingSums<Cfg> no_sums[S::kTiles];
      float no_scale[1][2];
      const RingTokens<Cfg, typename S::Operand> no_tokens = {};
      step.flush(no_sums, no_scale, state, no_tokens, x, shared.all_old[0], slot, 0);
    }
    grid_dependency_wait();
    if constexpr (kIsLayer) around.copy_tokens(step);
    load_inputs();
    if constexpr (S::kReplaysEarly) state.store();
  }
  // No load may move down past here, behind arithmetic that waits for another.
  if constexpr (kIsLayer) sync_warp();
#pragma unroll
  for (int i = 0; i < Cfg::kStages; ++i) {
    if (i < kAhead) {
      if constexpr (!Cfg::kEarlyState) copy_early(i, i);
      if constexpr (!kIsLayer || Cfg::kHasGate) streams.template copy_new<!kIsLayer>(shared, i, i, tokens);
    }
    copy_async_commit();
  }
  if constexpr (!Cfg::kEarlyState) copy_states();

  if constexpr (kIsLayer) around.convolve(step);
  // delta of the new rows, while the ring's are on their way; then the sums of the heads.
  float fresh[kHeadsMine][S::kLaneRows];
  float sums[Cfg::kReplay ? kHeadsMine : 1];  // of the lane's row, as a replay keeps them
  if constexpr (Cfg::kReplay && !S::kReplaysEarly) take_old();
#pragma unroll
  for (int k = 0; !S::kPrecomputed && k < kHeadsMine; ++k) {
    if (kIsLayer && !has_head(k)) continue;
    float bias = 0.0f;
    if constexpr (Cfg::kHasDtBias) bias = of_head(widen(dt_bias), head_mine(k));
#pragma unroll
    for (int r = 0; r < S::kLaneRows; ++r) fresh[k][r] = Cfg::delta(widen(dt[k][r]), bias);
  }
#pragma unroll
  for (int k = 0; !S::kPrecomputed && k < kHeadsMine; ++k) {
    if (kIsLayer && !has_head(k)) continue;
    float delta[S::kLaneRows];
#pragma unroll
    for (int r = 0; r < S::kLaneRows; ++r) {
      const int j = lane + 32 * r;
      delta[r] = at.in_use(j) ? (j < S::kFirstNew ? old_delta[0][k][r] : fresh[k][r]) : 0.0f;
    }
    const float A_mine = of_head(A, head_mine(k));
    if constexpr (Cfg::kReplay) {
      if (has_head(k)) sums[k] = step.sum_new_rows(head_mine(k), delta[0], A_mine);
    } else if constexpr (S::kAside > 1) {
      if (has_head(k)) step.sum_rows(warp / S::kHeadWarps, delta, A_mine, at);
    } else {
      if (has_head(k)) step.sum_rows(head_mine(k), delta, A_mine, at);
    }
  }
  if constexpr (kIsLayer) {
    around.ready();
#pragma unroll
    for (int n = 0; n < S::kNewTiles; ++n) C_rows[n].take(around.C_row(step, 8 * n + g));
#pragma unroll
    for (int k = 0; k < kNewMine; ++k)
      if (has_new(k)) new_B[k].take(around.B_row(step, 8 * (new_warp + k * Cfg::kWarps) + g));
  }
  // C . B of every row; with it, so that the products overlap, C . h of a state that is in registers.
  RingTokens<Cfg, Input> C;
  const u32 zero = static_cast<u32>(args.wide_indices) >> 31;
  C.set(C_rows, zero);
  RingTokens<Cfg, typename S::Operand> C_other;
  if constexpr (!is_same<Input, typename S::Operand>) C_other.set(C_rows, zero);
  const RingTokens<Cfg, typename S::Operand>& C_state = same_or(C, C_other);
  RingSums<Cfg> old_CB[kOldMine], new_CB[kNewMine], y[S::kTiles];
#pragma unroll
  for (int k = 0; !Cfg::kReplay && k < kOldMine; ++k) old_CB[k].clear();
#pragma unroll
  for (int k = 0; k < kNewMine; ++k) new_CB[k].clear();
#pragma unroll
  for (int p = 0; p < S::kTiles; ++p) y[p].clear();
  if constexpr (kIsLayer) {
#pragma unroll
    for (int k = 0; k < kNewMine; ++k) {
      if (!has_new(k)) continue;
#pragma unroll
      for (int i = 0; i < Cfg::kDstate / 16; ++i)
        C.contract(new_CB[k], i, new_B[k].word[2 * i], new_B[k].word[2 * i + 1]);
    }
#pragma unroll
    for (int k = 0; k < kOldMine; ++k) {
      if (!has_old(k)) continue;
#pragma unroll
      for (int i = 0; i < Cfg::kDstate / 16; ++i)
        C.contract(old_CB[k], i, old_B[0][k].word[2 * i], old_B[0][k].word[2 * i + 1]);
    }
  }
#pragma unroll
  for (int i = 0; i < Cfg::kDstate / 16; ++i) {
#pragma unroll
    for (int k = 0; !kIsLayer && !S::kPrecomputed && k < kNewMine; ++k)
      C.contract(new_CB[k], i, new_B[k].word[2 * i], new_B[k].word[2 * i + 1]);
#pragma unroll
    for (int k = 0; !kIsLayer && !Cfg::kReplay && k < kOldMine; ++k)
      C.contract(old_CB[k], i, old_B[0][k].word[2 * i], old_B[0][k].word[2 * i + 1]);
#pragma unroll
    for (int p = 0; S::kDirect && (!Cfg::kReplay || S::kReplaysEarly) && p < S::kTiles; ++p) {
      const RingSpan<Cfg> h{state.get(p, i / S::kSteps)};
      C_state.contract(y[p], i, h.operand(i % S::kSteps * 2), h.operand(i % S::kSteps * 2 + 1));
    }
  }

  // delta of the new rows into the ring.
  if (!S::kPrecomputed && block_x() % S::kBlocks == 0) {
    float* const deltas = Cfg::kReplay ? step.ring_delta(slot, head, 1 - buffer) : first_deltas;
#pragma unroll
    for (int k = 0; k < kHeadsMine; ++k)
#pragma unroll
      for (int r = 0; r < S::kLaneRows; ++r) {
        const int t = lane + 32 * r - S::kFirstNew;
        if (!has_head(k) || t < 0 || t >= tokens) continue;
        deltas[head_mine(k) * Cfg::kRing + at.place_of_new(t)] = fresh[k][r];
        if constexpr (Cfg::kReplay) step.ring_sum(slot, head + head_mine(k), 1 - buffer)[t] = sums[k];
      }
  }
  // The new rows of B into the ring, once a group; the old ones where a flush finds them.
  float CB[S::kWeighedTiles][2 * S::kNewTiles];  // element 2 n + e: token g + 8 n, row 2 q + e of the tile
  constexpr int kFirstNewWeighed = S::kOldTiles - S::kFirstWeighed;
  {
    const bool keeps_B = block_head % Cfg::kHeadsPerGroup == 0 && block_x() % S::kBlocks == 0;
#pragma unroll
    for (int k = 0; !S::kPrecomputed && k < kNewMine; ++k) {
      const int tile = new_warp + k * Cfg::kWarps, t = 8 * tile + g;
      if (keeps_B && tile < S::kNewTiles && t < tokens)
        new_B[k].store(step.ring_B_row(slot, at.place_of_new(t), 1 - buffer));
    }
    if (!S::kReplaysEarly && at.flush) take_old_B();
    if constexpr (S::kPrecomputed) {
      if constexpr (Cfg::kWarps > 1) sync_block();
    } else if constexpr (Cfg::kWarps == 1) {
#pragma unroll
      for (int e = 0; e < 2 * S::kNewTiles; ++e) {
#pragma unroll
        for (int k = 0; !Cfg::kReplay && k < S::kOldTiles; ++k) CB[k][e] = old_CB[k].get(e / 2, e % 2);
#pragma unroll
        for (int k = 0; k < S::kNewTiles; ++k) CB[kFirstNewWeighed + k][e] = new_CB[k].get(e / 2, e % 2);
      }
    } else {
      const auto share = [&](int tile, const RingSums<Cfg>& sums) {
#pragma unroll
        for (int e = 0; e < 2 * S::kNewTiles; ++e)
          shared.CB[g + 8 * (e / 2)][8 * tile + 2 * q + e % 2] = sums.get(e / 2, e % 2);
      };
#pragma unroll
      for (int k = 0; !Cfg::kReplay && k < kOldMine; ++k)
        if (warp + k * Cfg::kWarps < S::kOldTiles) share(warp + k * Cfg::kWarps, old_CB[k]);
#pragma unroll
      for (int k = 0; k < kNewMine; ++k)
        if (new_warp + k * Cfg::kWarps < S::kNewTiles) share(kFirstNewWeighed + new_warp + k * Cfg::kWarps, new_CB[k]);
      sync_block();
#pragma unroll
      for (int i = 0; i < S::kWeighedTiles; ++i)
#pragma unroll
        for (int e = 0; e < 2 * S::kNewTiles; ++e) CB[i][e] = shared.CB[g + 8 * (e / 2)][8 * i + 2 * q + e % 2];
    }
  }
  // Bit 4 i + e: whether row e % 2 of the lane's pair in tile i weighs for its token.
  u32 weighs = 0;
#pragma unroll
  for (int i = 0; !S::kPrecomputed && i < S::kWeighedTiles; ++i)
#pragma unroll
    for (int e = 0; e < 2 * S::kNewTiles; ++e) {
      const int j = 8 * (S::kFirstWeighed + i) + 2 * q + e % 2, t = g + 8 * (e / 2);
      const bool old = S::kFirstWeighed + i < S::kOldTiles;
      const bool does = old ? !at.flush && at.old_in_use(j) : j - S::kFirstNew <= t && j - S::kFirstNew < tokens;
      weighs |= (does ? 1u : 0u) << (4 * i + e);
    }
  if constexpr (S::kAll && !S::kReplaysEarly) streams.store_masked(shared, old_x);

  if constexpr (Cfg::kHeadsPerBlock > 1) streams.keep_all();
  // The lane's places for operands of x, four matrices at once, and for its own outputs. Matrix n is of tile
  // n % kRowTiles of the rows and n / kRowTiles of the columns.
  constexpr int kMatrices = S::kRowTiles * S::kTiles, kMatrixLoads = (kMatrices + 3) / 4;
  int x_operands[kMatrixLoads];
#pragma unroll
  for (int k = 0; k < kMatrixLoads; ++k) {
    const int n = 4 * k + lane / 8 < kMatrices ? 4 * k + lane / 8 : kMatrices - 1;
    x_operands[k] = streams.x_row(warp, 8 * (n % S::kRowTiles) + lane % 8) + 8 * (n / S::kRowTiles);
    if constexpr (Cfg::kHeadsPerBlock > 1) keep(x_operands[k]);
  }
  int new_x = streams.x_row(warp, S::kFirstNew + g) + 2 * q;
  int new_z = streams.z_row(warp, g) + 2 * q;
  int lane_stage = warp * S::kWarpSize + lane_element;
  if constexpr (Cfg::kHeadsPerBlock > 1) {
    keep(new_x);
    keep(new_z);
    keep(lane_stage);
  }
  const Input* const all_x = streams.all_x(shared);
  const Input* const all_z = streams.all_z(shared);
  int stage = 0;
  u32 parity = 0;
#pragma unroll 1
  for (int i = 0; i < Cfg::kHeadsPerBlock; ++i) {
    float D_h = 0.0f;
    if constexpr (Cfg::kHasD) D_h = of_head(widen(D), i);
    const int x_stage = stage * Streams::kStage;
    int place = i;  // of what shared memory has of the head
    if constexpr (S::kAside > 1) place = warp / S::kHeadWarps;
    copy_async_wait<Cfg::kStages - 1>();
    sync_warp();

    // x as operands, rows on the side of the sum; the new rows into the ring.
    u32 x[S::kTiles][S::kRowTiles];
#pragma unroll
    for (int k = 0; k < kMatrixLoads; ++k) {
      u32 got[4];
      load_matrix_transposed(got, all_x + (x_operands[k] + x_stage));
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (4 * k + e < kMatrices) x[(4 * k + e) / S::kRowTiles][(4 * k + e) % S::kRowTiles] = got[e];
    }
    streams.append(shared, i, stage, tokens);

    // The weights, as operands.
    float s[S::kNewTiles];
    u32 W[S::kWeighedTiles][S::kNewTiles];
    if constexpr (S::kPrecomputed) {
#pragma unroll
      for (int n = 0; n < S::kNewTiles; ++n) {
        s[n] = weights.decay[n];
#pragma unroll
        for (int j = 0; j < S::kNewTiles; ++j) W[j][n] = weights.W[j][n];
      }
      if (i + 1 < Cfg::kHeadsPerBlock) weights.load(RingWeights<Cfg>::record(args, row, head + i + 1), lane);
    } else {
#pragma unroll
      for (int n = 0; n < S::kNewTiles; ++n) s[n] = shared.row[place][S::kFirstNew + g + 8 * n][0];
    }
#pragma unroll
    for (int j = 0; !S::kPrecomputed && j < S::kWeighedTiles; ++j) {
      const typename Step::RowPair r = step.row_pair(place, S::kFirstWeighed + j);
#pragma unroll
      for (int n = 0; n < S::kNewTiles; ++n) {
        float w[2];
#pragma unroll
        for (int e = 0; e < 2; ++e)
          w[e] = weight_of<Cfg>(CB[j][2 * n + e], s[n], r.s[e], r.delta[e], (weighs >> (4 * j + 2 * n + e) & 1u) != 0);
        W[j][n] = pack_word(w, Input{});
      }
    }

    float scale[S::kScaled ? S::kTiles : 1][2];
    if constexpr (S::kScaled) {
#pragma unroll
      for (int p = 0; p < S::kTiles; ++p)
#pragma unroll
        for (int e = 0; e < 2; ++e) scale[p][e] = step.mine().scale[stage][8 * p + 2 * q + e];
    }
    if constexpr (!S::kDirect) {
      state.stage = lane_stage + stage * (Cfg::kWarps * S::kWarpSize);
      barrier_wait(&shared.full[warp][stage], parity);
    }
    const float all_old = shared.all_old[place];
    if ((at.flush || !S::kDirect) && !S::kReplaysEarly) {
#pragma unroll
      for (int p = 0; p < S::kTiles; ++p) y[p].clear();
    }
    if (at.flush && !S::kReplaysEarly) {
      step.flush(y, scale, state, C_state, x, all_old, slot, i);
      if constexpr (!S::kDirect) store_state(i, stage);
    } else if constexpr (!S::kDirect) {
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) {
        RingSpan<Cfg> h[S::kTiles];
#pragma unroll
        for (int p = 0; p < S::kTiles; ++p) h[p].raw = state.get(p, c);
#pragma unroll
        for (int m = 0; m < S::kSteps; ++m)
#pragma unroll
          for (int p = 0; p < S::kTiles; ++p)
            C_state.contract(y[p], c * S::kSteps + m, h[p].operand(2 * m), h[p].operand(2 * m + 1));
      }
    }
    const float base = at.flush && !Cfg::kReplay ? all_old : 0.0f;
#pragma unroll
    for (int n = 0; n < S::kNewTiles; ++n) {
      const float decay = S::kPrecomputed ? s[n] : exp2_fast_f32(s[n] - base);
#pragma unroll
      for (int p = 0; p < S::kTiles; ++p)
#pragma unroll
        for (int e = 0; e < 2; ++e) y[p].scale(n, e, S::kScaled ? decay * scale[p][e] : decay);
    }
#pragma unroll
    for (int p = 0; p < S::kTiles; ++p) {
      u32 weighed[S::kWeighedTiles];
#pragma unroll
      for (int j = 0; j < S::kWeighedTiles; ++j) weighed[j] = x[p][S::kFirstWeighed + j];
      add_weighted<Cfg>(y[p], W, weighed);
    }

#pragma unroll
    for (int n = 0; n < S::kNewTiles; ++n) {
      if (!kIsLayer && g + 8 * n >= tokens) continue;
      Input* const out = streams.out[n] + i * Cfg::kHeadDim;
#pragma unroll
      for (int p = 0; p < S::kTiles; ++p) {
        float v[2] = {y[p].get(n, 0), y[p].get(n, 1)};
        if constexpr (Cfg::kHasSkip) {
          float own[2];
          unpack_word(*reinterpret_cast<const u32*>(all_x + (new_x + x_stage + 8 * n * S::kXRow + 8 * p)), own,
                      Input{});
          v[0] += Cfg::skip(D_h, own[0]);
          v[1] += Cfg::skip(D_h, own[1]);
        }
        if constexpr (Cfg::kHasGate) {
          float z[2];
          unpack_word(
              *reinterpret_cast<const u32*>(all_z + (new_z + stage * Streams::kZStage + 8 * n * S::kXRow + 8 * p)), z,
              Input{});
          v[0] *= Cfg::gate(z[0]);
          v[1] *= Cfg::gate(z[1]);
        }
        if constexpr (kIsLayer)
          around.take(n, p, pack_word(v, Input{}));
        else
          *reinterpret_cast<u32*>(out + 8 * p) = pack_word(v, Input{});
      }
    }
    if constexpr (Cfg::kHeadsPerBlock > 1) {
      // The stage is free for the head that comes `stages` later.
      sync_warp();
      if (i + Cfg::kStages < Cfg::kHeadsPerBlock) {
        if (!S::kDirect && at.flush && lane == 0) bulk_store_wait_read<0>();
        copy_state(i + Cfg::kStages, stage);
        copy_early(i + Cfg::kStages, stage);
        streams.template copy_new<true>(shared, i + Cfg::kStages, stage, tokens);
      }
      copy_async_commit();
      stage = stage + 1 < Cfg::kStages ? stage + 1 : 0;
      if (stage == 0) parity ^= 1u;
    }
  }
  if (!S::kDirect && at.flush && lane == 0) bulk_store_wait_read<0>();
  if constexpr (kIsLayer) around.finish(step, streams.out);
}

// Grid: x = nheads / heads_per_block * (head_dim / block_m), y = batch. Block: 32 * warps threads.
template <class Cfg>
SSMJIT_DEVICE void ring_step(const RingArgs& args) {
  ring_step<Cfg, RingAlone<Cfg>>(args, args);
}

// ---- this kernel ----

struct Config {
  using State = i8;
  using Input = bf16;  // x, z, B, C, out
  using Dt = float;
  using Weight = float;  // D, dt_bias
  static constexpr int kHeadDim = 64;
  static constexpr int kDstate = 128;
  static constexpr int kHeadsPerGroup = 16;
  static constexpr int kTokens = 6;
  static constexpr int kWindow = 16;
  static constexpr int kRing = 22;
  static constexpr bool kReplay = false;
  static constexpr bool kPrecomputed = false;
  static constexpr bool kHasDtBias = true;
  static constexpr bool kHasD = true;
  static constexpr bool kHasSkip = true;
  static constexpr bool kHasGate = true;
  static constexpr bool kVarlen = true;
  static constexpr int kPhiloxRounds = 10;
  static constexpr PadOutput kPadOutput = PadOutput::zeros;

  static constexpr int kBlockM = 32;
  static constexpr int kWarps = 2;
  static constexpr int kHeadsPerBlock = 4;
  static constexpr int kStages = 2;
  static constexpr StatePath kStatePath = StatePath::bulk;
  static constexpr bool kStreaming = true;
  static constexpr bool kEarlyState = false;
  static constexpr RingRows kRingRows = RingRows::live;

  static SSMJIT_DEVICE float delta(float dt, float dt_bias) { return fn_softplus(dt + dt_bias); }
  static SSMJIT_DEVICE float skip(float D, float x) { return D * x; }
  static SSMJIT_DEVICE float gate(float z) { return fn_silu(z); }
};

extern "C" __global__ void __launch_bounds__(64, 1) ssmjit_ring_da0ad158(const __grid_constant__ RingArgs args) {
  ring_step<Config>(args);
}
