// ssmjit 0.1.0: mamba2 layer, 64 heads x 64 x 128, 8 groups, input bf16, dt fp32, weights fp32, state bf16, delta softplus(dt + dt_bias), decay exp(A * delta), 6 tokens, skip D * x, in place, conv of 6144 channels, width 4, state_len 3, bias, activation silu(x), norm of 4096 channels in groups of 512, eps 1e-05, gate silu(z) before the norm
//
// description: {"schema":1,"op":"layer","family":"mamba2","nheads":64,"head_dim":64,"dstate":128,"ngroups":8,"tokens":6,"input":"bf16","dt":"fp32","weights":"fp32","state":"bf16","delta":"softplus(dt + dt_bias)","decay":"exp(A * delta)","skip":"D * x","gate":null,"rounding":"nearest","store":{"kind":"in_place"},"destination_slots":false,"aligned_rows":true,"pad_output":"zeros","conv":{"channels":0,"width":4,"state_len":0,"bias":true,"activation":"silu(x)","channels_last":false,"store":"shift","keep":"last","accepted":false},"norm":{"channels":0,"group_size":512,"eps":1e-05,"gate":"silu(z)","before_gate":false,"bias":false}}
// plan: block_m=64,warps=8,lanes_per_row=16,heads_per_block=1,stages=2,state_path=direct,streaming=true,early_state=false,min_blocks_per_sm=1,cluster=8
//   block_m: rows of x that a block takes at once
//   warps: warps a block; each takes block_m / warps rows of one head
//   lanes_per_row: lanes that share a row of dstate in 16-byte vectors
//   stages: tokens that a turn of the loop over them takes, without a branch between them
//   streaming: whether state loads bypass the L1 and state stores leave the L2 first
//   early_state: whether a dependent launch asks for the states and weights before it waits for the launch in front
//   min_blocks_per_sm: blocks of an SM that the compiler leaves registers for
//   cluster: blocks that share the rows of a norm group
//
// A call moves, for each request: 1209856 bytes read, 1085440 of them written back, 49152 written elsewhere.
// Launch for nheads = 64: grid (64, batch), block 256, dynamic shared memory 0 bytes; entry ssmjit_layer_47bb1ff5.
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

// ---- device/cluster.cuh ----

#ifndef SSMJIT_CPU
// Clusters: neighbouring blocks of a launch that run together and reach into each other's shared memory (sm_90). Before
// sm_90 a cluster is one block.

// The block's place in its cluster, and the number of blocks in it.
SSMJIT_DEVICE int cluster_rank() {
  u32 r = 0;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
#endif
  return static_cast<int>(r);
}
SSMJIT_DEVICE int cluster_size() {
  u32 r = 1;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(r));
#endif
  return static_cast<int>(r);
}

// A barrier of all threads of the cluster, in two halves: what a thread wrote before arrive, every thread sees after
// wait. Each thread calls them in turn, whole warps at a time. A block must not exit while another may still reach into
// its shared memory.
SSMJIT_DEVICE void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
SSMJIT_DEVICE void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}

// An arrive that orders no memory but barriers initialised before barrier_init_fence, and costs no wait for the
// thread's stores: for shared memory that a peer may reach into from now on, and for what this thread has read and
// used, which others may write after their wait.
SSMJIT_DEVICE void cluster_arrive_relaxed() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}

// Where `shared`, an address in this block's shared memory, lies in that of block `rank` of the cluster.
struct ClusterAddress {
  u32 bits;
};
SSMJIT_DEVICE ClusterAddress cluster_address(const void* shared, int rank) {
  u32 r = shared_address(shared);
#if __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(r) : "r"(rank));
#endif
  return {r};
}
SSMJIT_DEVICE u32 cluster_load_b32(ClusterAddress address) {
  u32 v;
#if __CUDA_ARCH__ >= 900
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(v) : "r"(address.bits) : "memory");
#else
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address.bits) : "memory");
#endif
  return v;
}
SSMJIT_DEVICE void cluster_store_b32(ClusterAddress address, u32 v) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address.bits), "r"(v) : "memory");
#else
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address.bits), "r"(v) : "memory");
#endif
}
// 16 bytes on a 16-byte boundary.
SSMJIT_DEVICE Vec16 cluster_load(ClusterAddress address) {
  Vec16 v;
#if __CUDA_ARCH__ >= 900
  asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "r"(address.bits)
               : "memory");
#else
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "r"(address.bits)
               : "memory");
#endif
  return v;
}
SSMJIT_DEVICE void cluster_store(ClusterAddress address, const Vec16& v) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address.bits), "r"(v.word[0]), "r"(v.word[1]),
               "r"(v.word[2]), "r"(v.word[3])
               : "memory");
#else
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address.bits), "r"(v.word[0]), "r"(v.word[1]),
               "r"(v.word[2]), "r"(v.word[3])
               : "memory");
#endif
}

// An arrival at the barrier that lies at `address` (of cluster_address); what this thread wrote to the cluster before
// is seen after barrier_wait_cluster on that barrier's block (sm_90).
SSMJIT_DEVICE void barrier_arrive_cluster(ClusterAddress address) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(address.bits) : "memory");
#endif
}
SSMJIT_DEVICE void barrier_wait_cluster(Barrier* b, u32 parity) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(shared_address(b)),
      "r"(parity)
      : "memory");
#endif
}

// A store of 4 bytes to `address` that counts them into the phase of the barrier at `barrier`, which lies in the same
// block of the cluster (both of cluster_address); seen by who waits for that phase. It orders nothing else (sm_90).
SSMJIT_DEVICE void cluster_store_async_b32(ClusterAddress address, u32 v, ClusterAddress barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(address.bits),
               "r"(v), "r"(barrier.bits)
               : "memory");
#endif
}
// The same of 16 bytes on a 16-byte boundary.
SSMJIT_DEVICE void cluster_store_async(ClusterAddress address, const Vec16& v, ClusterAddress barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                   address.bits),
               "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3]), "r"(barrier.bits)
               : "memory");
#endif
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

// ---- device/warp.cuh ----

#ifndef SSMJIT_CPU
// Warp collectives. Each is one operation to its caller, so that an executor can serve it with one exchange.

// Sums over groups of kLanes neighbouring lanes (a power of two). Each lane brings kRows partial sums; afterwards the
// group's totals are spread over its lanes: a lane owns kOwned of them, in v[0..kOwned), the rows from first_row on.
// While the row count is even a step halves it (a lane sends the half it does not keep), so that 8 rows over 16 lanes
// take 8 shuffles, not 32; an odd count is summed whole and the lane with the lower index owns it.
template <int kRows, int kLanes>
struct RowSums {
  static constexpr bool kHalve = kLanes > 1 && kRows % 2 == 0;
  static constexpr bool kLast = kLanes == 1;
  using Next = RowSums<kHalve ? kRows / 2 : kRows, kLast ? 1 : kLanes / 2>;

  static SSMJIT_DEVICE constexpr int owned() {
    if constexpr (kLast)
      return kRows;
    else
      return Next::owned();
  }
  // The first row that lane `lane` of the group owns.
  static SSMJIT_DEVICE int first_row(int lane) {
    if constexpr (kLast)
      return 0;
    else if constexpr (kHalve)
      return ((lane & (kLanes / 2)) != 0 ? kRows / 2 : 0) + Next::first_row(lane);
    else
      return Next::first_row(lane);
  }
  // Whether the lane is the one of those holding the same totals that should write them.
  static SSMJIT_DEVICE bool owner(int lane) {
    if constexpr (kLast)
      return true;
    else if constexpr (kHalve)
      return Next::owner(lane);
    else
      return (lane & (kLanes / 2)) == 0 && Next::owner(lane);
  }
  static SSMJIT_DEVICE void sum(float* v, int lane) {
    if constexpr (!kLast) {
      constexpr int kStep = kLanes / 2;
      if constexpr (kHalve) {
        const bool upper = (lane & kStep) != 0;
#pragma unroll
        for (int i = 0; i < kRows / 2; ++i) {
          const float keep = upper ? v[i + kRows / 2] : v[i];
          const float send = upper ? v[i] : v[i + kRows / 2];
          v[i] = keep + __shfl_xor_sync(0xffffffffu, send, kStep);
        }
      } else {
#pragma unroll
        for (int i = 0; i < kRows; ++i) v[i] += __shfl_xor_sync(0xffffffffu, v[i], kStep);
      }
      Next::sum(v, lane);
    }
  }
};
#endif

// ---- index.cuh ----

// An entry of an int32 or int64 index array, as the words that were asked for: what waits for them is value(), so it
// can stand behind the loads that need no index. No branch. A null array gives `otherwise`; `readable` is any address
// that may be read in its place.
struct IndexEntry {
  u32 low, high;
  i64 otherwise;
  bool given, wide;

  static SSMJIT_DEVICE IndexEntry load(const void* indices, int wide, i64 at, i64 otherwise, const void* readable) {
    IndexEntry e;
    e.given = indices != nullptr;
    e.wide = wide != 0;
    e.otherwise = otherwise;
    const u32* words = static_cast<const u32*>(e.given ? indices : readable);
    const i64 first = e.given ? (e.wide ? 2 * at : at) : 0;
    e.low = load_now_b32(words + first);
    e.high = load_now_b32(words + (e.given && e.wide ? first + 1 : first));
    return e;
  }
  SSMJIT_DEVICE i64 value() const {
    const i64 narrow = static_cast<int>(low);
    return !given ? otherwise : wide ? static_cast<i64>(static_cast<u64>(high) << 32 | low) : narrow;
  }
};

// ---- launch.cuh ----

// What a kernel is compiled for and told, beside its sizes and tensors.

// How the state comes to the lane that uses it; each kernel says what it makes of these.
enum class StatePath { direct, cp_async, bulk };
// What the output row of a pad request holds.
enum class PadOutput { zeros, untouched, as_if_zero_state };
// Programmatic dependent launch: how far a kernel may come before the launch in front of it has ended.
enum : int { kPdlOff = 0, kPdlWaitFirst = 1, kPdlEarlyState = 2 };

// ---- device/approx.cuh ----

#ifndef SSMJIT_CPU
// Approximations of the special function unit, where a result is rounded to 16 bits next or is read once a row.

// 1 / v, to 1 ulp.
SSMJIT_DEVICE float reciprocal_fast_f32(float v) {
  float r;
  asm("rcp.approx.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
// 1 / sqrt(v), to 3 ulp.
SSMJIT_DEVICE float rsqrt_fast_f32(float v) {
  float r;
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
#endif

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

// ---- fast_silu.cuh ----

// silu where the result is rounded to 16 bits: within 2^-20 of its size, at a third of the instructions.
SSMJIT_DEVICE float silu_of_16_bits(float v) { return v * reciprocal_fast_f32(1.0f + exp2_fast_f32(-1.44269504f * v)); }

// ---- layer_args.cuh ----

// What a launch of the fused layer is given, by value, in one struct (also read by the host, so plain C++). A kernel
// fetches its arguments by lines of 64 bytes (the first has 48 of them) and waits for each: they fill four lines, of
// which each has one that is asked for while the slot index is on its way. Strides count elements; a row is one
// request. Pointers that the description has no use for are null. Channels of the convolution stand in the order x, B,
// C: nheads * head_dim, then twice ngroups * dstate.

struct LayerArgs {
  const void* state_batch_indices;  // [batch], null: row b uses slot b
  long long index_stride;
  long long pad_slot_id;  // a row with this index, or a negative one, is a pad row
  int nheads;
  int wide_indices;  // 1: indices are int64, 0: int32
  int pdl;           // 0: no wait; 1: wait, then read; 2: a kernel with kEarlyState reads the index, the states and the
                     // weights, waits, then reads the rest; any other does as for 1
  const void* A;     // [nheads] fp32, negative

  long long slots;   // a slot index outside [0, slots) makes its row a pad row
  void* conv_state;  // [slots, channels, kConvState], or [slots, kConvState, channels] where channels come last;
                     // inner two contiguous, slots 16-byte aligned; updated
  long long conv_state_stride;
  void* state;             // [slots, nheads, head_dim, dstate], inner three contiguous, 16-byte aligned rows; updated
  long long state_stride;  // between slots
  const void* x;           // [batch, nheads, head_dim], before the convolution where there is one; B and C as well
  long long x_stride;
  const void* conv_weight;  // [channels, kConvWidth], 16-byte aligned

  const void* conv_bias;  // [channels], 16-byte aligned
  const void* dt;         // [batch, nheads]
  long long dt_stride;
  const void* dt_bias;  // [nheads]
  const void* D;        // [nheads]
  const void* z;        // [batch, nheads, head_dim], gate
  long long z_stride;
  const void* norm_weight;  // [nheads, head_dim]

  void* out;  // [batch, nheads, head_dim]
  long long out_stride;
  const void* norm_bias;  // [nheads, head_dim]
  const void* B;          // [batch, ngroups, dstate]
  long long B_stride;
  const void* C;  // [batch, ngroups, dstate]
  long long C_stride;
};

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

// ---- layer.cuh ----

// One decode step of a whole state-space layer, one token a request: the convolution over x, B and C, the update of the
// state, the gate, and the norm over groups of channels, in one launch.
//
//   v[c] = round(Cfg::activation(bias[c] + sum over k of w[c, k] * window[c, k]))   window: the last kConvWidth inputs
//   h'[p, n] = decay * h[p, n] + (delta * x[p]) * B[n]                              with x, B, C of v
//   y[p] = sum over n of h'[p, n] * C[n];  y[p] += Cfg::skip(D, x[p]);  y[p] *= Cfg::gate(z[p]);  y = round(y)
//   u = y * Cfg::norm_gate(z);  out = u / sqrt(mean of u * u over the norm's group + eps) * norm_weight + norm_bias
//
// or, where kNormBeforeGate, out = (y / sqrt(mean of y * y ...) * norm_weight + norm_bias) * Cfg::norm_gate(z). What a
// chain of kernels would pass on in the input's dtype is rounded to it here, so that both agree up to the norm's sums.
//
// A cluster of kCluster blocks takes the channels of x that share a norm (those of one group's B and C, where there is
// no norm; several groups', where the norm's are larger), kNormRows of them, of one request; a block kBlockM of its
// channels at once, a warp block_m / warps neighbouring ones of one head, as in update.cuh.
//
// - Convolution: first, a word of channels (1 or 2) a thread. A block has those of its own rows, and all of its group's
//   B and C, which its cluster's blocks repeat. The window of B and C is written by the group's first block alone, after
//   all blocks of the cluster have read it; nothing is read after it was written. In two stages a block has its share of
//   B and C, window and all, and sends it to all blocks of its cluster, where it counts into an mbarrier.
// - Nothing waits for a value but for the slot's index until all loads are under way.
// - Norm: each warp sends its sum of squares to all blocks of the cluster, where it counts into an mbarrier; all sums
//   are then added in the same order everywhere.
//
// state_path: how the state comes to the lane that uses it
//   direct  straight into registers, the next rows' during these rows' arithmetic
//   bulk    all rows of the block into shared memory, a bulk copy for each kBlockM rows (sm_90)

// Sizes that follow from Cfg.
template <class Cfg>
struct LayerShape {
  using Input = typename Cfg::Input;
  static constexpr int kVecElements = 16 / static_cast<int>(sizeof(typename Cfg::State));
  static constexpr int kRowVectors = Cfg::kDstate / kVecElements;
  static constexpr int kLanes = Cfg::kLanesPerRow;
  static constexpr int kVectors = (kRowVectors + kLanes - 1) / kLanes;  // a lane and row; the last may be past the end
  static constexpr bool kRagged = kRowVectors % kLanes != 0;
  static constexpr int kGroupRows = Cfg::kHeadsPerGroup * Cfg::kHeadDim;  // that share B and C
  static constexpr int kBlockRows = Cfg::kNormRows / Cfg::kCluster;
  static constexpr int kPasses = kBlockRows / Cfg::kBlockM;
  static constexpr int kRowsPerWarp = Cfg::kBlockM / Cfg::kWarps;
  static constexpr int kRows = kRowsPerWarp / (32 / kLanes);  // a lane and pass
  static constexpr int kRowBytes = Cfg::kDstate * static_cast<int>(sizeof(typename Cfg::State));
  using Sums = RowSums<kRows, kLanes>;
  static constexpr int kOwned = Sums::owned();

  // The channels that a block needs: its rows of x, then B and C of its group, a word of them an item.
  static constexpr int kPer = kPerWord<Input>;
  static constexpr int kChannels = kBlockRows + 2 * Cfg::kDstate;
  static constexpr bool kShares = Cfg::kStages == 2 && Cfg::kHasConv;
  static constexpr int kRowWords = kBlockRows / kPer;
  static constexpr int kShareWords = 2 * Cfg::kDstate / kPer / (kShares ? Cfg::kCluster : 1);  // of B and C
  static constexpr int kItems = kRowWords + kShareWords;
  static constexpr int kThreads = 32 * Cfg::kWarps;
  static constexpr int kRounds = (kItems + kThreads - 1) / kThreads;

  static constexpr int kSums = Cfg::kCluster * Cfg::kWarps;  // that a norm adds
  static_assert(Cfg::kNormRows % kGroupRows == 0 && kGroupRows % kBlockRows == 0);
  static_assert(kBlockRows % Cfg::kBlockM == 0 && Cfg::kHeadDim % kRowsPerWarp == 0 && kRows > 0);
  static_assert(!kShares || (Cfg::kNormRows == kGroupRows && 2 * Cfg::kDstate / kPer % Cfg::kCluster == 0));
};

template <class Cfg>
struct LayerShared {
  using S = LayerShape<Cfg>;
  alignas(16) typename Cfg::Input channels[S::kChannels];      // x, B, C as the recurrence takes them
  alignas(16) float held[S::kPasses > 1 ? S::kBlockRows : 4];  // what the norm scales, until it knows the sums
  float sum[S::kSums];                                         // of squares, a warp each: [cluster][warps]
  Barrier sums;                                                // that they have come
  Barrier columns;                                             // that B and C have, of shares
  Barrier state[S::kPasses];                                   // that the state of a pass has come
};

// kCount neighbouring elements of shared memory as fp32; the address is a multiple of their size, up to 16 bytes.
template <class T, int kCount>
SSMJIT_DEVICE void widen_shared(const T* p, float (&v)[kCount]) {
  constexpr int kPer = kPerWord<T>;
  constexpr int kBytes = kCount * static_cast<int>(sizeof(T));
  struct alignas(8) Pair {
    u32 word[2];
  };
  const auto unpack = [&](u32 word, int first) {
    float part[kPer];
    unpack_word(word, part, T{});
#pragma unroll
    for (int e = 0; e < kPer; ++e) v[first + e] = part[e];
  };
  if constexpr (kBytes % 16 == 0) {
#pragma unroll
    for (int i = 0; i < kBytes / 16; ++i) {
      const Vec16 words = load_shared(reinterpret_cast<const unsigned char*>(p) + 16 * i);
#pragma unroll
      for (int w = 0; w < 4; ++w) unpack(words.word[w], (4 * i + w) * kPer);
    }
  } else if constexpr (kBytes % 8 == 0) {
#pragma unroll
    for (int i = 0; i < kBytes / 8; ++i) {
      const Pair words = reinterpret_cast<const Pair*>(p)[i];
#pragma unroll
      for (int w = 0; w < 2; ++w) unpack(words.word[w], (2 * i + w) * kPer);
    }
  } else if constexpr (kBytes % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kBytes / 4; ++i) unpack(reinterpret_cast<const u32*>(p)[i], i * kPer);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = widen(p[i]);
  }
}

// Element i of packed words, its bits alone.
template <class T>
SSMJIT_DEVICE u32 element_bits(const u32* word, int i) {
  if constexpr (kPerWord<T> == 1)
    return word[i];
  else
    return (i % 2 != 0 ? word[i / 2] >> 16 : word[i / 2] & 0xffffu);
}
template <class T>
SSMJIT_DEVICE float element_value(const u32* word, int i) {
  float v[kPerWord<T>];
  unpack_word(word[i / kPerWord<T>], v, T{});
  return v[i % kPerWord<T>];
}

// The convolution of a word of neighbouring channels.
template <class Cfg>
struct ConvItem {
  using S = LayerShape<Cfg>;
  using Input = typename Cfg::Input;
  static constexpr int kPer = S::kPer;
  static constexpr int kState = Cfg::kConvState;

  int channel;  // its first
  u32 input[1];
  u32 window[kState];  // channels first: [kPer][kState] elements; last: [kState][kPer]
  u32 weight[Cfg::kConvWidth];
  u32 bias[1];

  SSMJIT_DEVICE static int at(int channel, int k) {
    return Cfg::kConvChannelsLast ? k * kPer + channel : channel * kState + k;
  }
  SSMJIT_DEVICE void load_weights(const LayerArgs& args) {
    load_now<Cfg::kConvWidth>(static_cast<const Input*>(args.conv_weight) + static_cast<i64>(channel) * Cfg::kConvWidth,
                              weight);
    if constexpr (Cfg::kConvBias) bias[0] = load_now_b32(static_cast<const Input*>(args.conv_bias) + channel);
  }
  SSMJIT_DEVICE void load_window(const void* slot, int channels, bool live) {
    const Input* p = static_cast<const Input*>(slot);
#pragma unroll
    for (int k = 0; k < kState; ++k) window[k] = 0;
    if (!live) return;
    if constexpr (Cfg::kConvChannelsLast) {
#pragma unroll
      for (int k = 0; k < kState; ++k) window[k] = load_now_b32(p + static_cast<i64>(k) * channels + channel);
    } else {
      load_now<kState>(p + static_cast<i64>(channel) * kState, window);
    }
  }
  // The inputs a step on: each channel's first is dropped, the new one appended.
  SSMJIT_DEVICE void store_window(void* slot, int channels) const {
    u32 next[kState];
    const auto shifted = [&](int c, int k) {
      return k + 1 < kState ? element_bits<Input>(window, at(c, k + 1)) : element_bits<Input>(input, c);
    };
#pragma unroll
    for (int w = 0; w < kState; ++w) {
      const auto element = [&](int i) {
        return Cfg::kConvChannelsLast ? shifted(i % kPer, i / kPer) : shifted(i / kState, i % kState);
      };
      if constexpr (kPer == 1)
        next[w] = element(w);
      else
        next[w] = element(2 * w) | element(2 * w + 1) << 16;
    }
    u32* p = static_cast<u32*>(slot);
#pragma unroll
    for (int w = 0; w < kState; ++w)
      p[Cfg::kConvChannelsLast ? (static_cast<i64>(w) * channels + channel) / kPer
                               : static_cast<i64>(channel / kPer) * kState + w] = next[w];
  }
  SSMJIT_DEVICE u32 result() const {
    float v[kPer];
#pragma unroll
    for (int c = 0; c < kPer; ++c) {
      float sum = 0.0f;
      if constexpr (Cfg::kConvBias) sum = element_value<Input>(bias, c);
#pragma unroll
      for (int k = 0; k < Cfg::kConvWidth; ++k) {
        const float in = k + 1 < Cfg::kConvWidth ? element_value<Input>(window, at(c, kState - Cfg::kConvWidth + 1 + k))
                                                 : element_value<Input>(input, c);
        sum = fma_f32(element_value<Input>(weight, c * Cfg::kConvWidth + k), in, sum);
      }
      v[c] = Cfg::activation(sum);
    }
    return pack_word(v, Input{});
  }
};
// Without a convolution x, B and C are taken as they are.
template <class Cfg>
struct NoConvItem {
  u32 input[1];
};
template <class Cfg, bool kConv>
struct ItemOf {
  using Type = ConvItem<Cfg>;
};
template <class Cfg>
struct ItemOf<Cfg, false> {
  using Type = NoConvItem<Cfg>;
};

// A head's scalars, and the lane's inputs of the rows whose output it writes.
template <class Cfg>
struct LayerInputs {
  using S = LayerShape<Cfg>;
  typename Cfg::Dt dt;
  typename Cfg::Weight dt_bias, D;
  float A;
  typename Cfg::Input z[S::kOwned];
};

// What of them needs neither state nor convolution, worked out while those are on their way.
template <class Cfg>
struct LayerScalars {
  using S = LayerShape<Cfg>;
  float delta, decay, D;
  float gate[S::kOwned], norm_gate[S::kOwned];

  SSMJIT_DEVICE explicit LayerScalars(const LayerInputs<Cfg>& in) {
    float dt_bias = 0.0f;
    D = 0.0f;
    if constexpr (Cfg::kHasDtBias) dt_bias = widen(in.dt_bias);
    if constexpr (Cfg::kHasD) D = widen(in.D);
    delta = Cfg::delta(widen(in.dt), dt_bias);
    decay = Cfg::decay(in.A, widen(in.dt), delta);
    keep(delta);
    keep(decay);
#pragma unroll
    for (int i = 0; i < S::kOwned; ++i) {
      if constexpr (Cfg::kHasGate) {
        gate[i] = Cfg::gate(widen(in.z[i]));
        keep(gate[i]);
      }
      if constexpr (Cfg::kHasNormGate) {
        norm_gate[i] = Cfg::norm_gate(widen(in.z[i]));
        keep(norm_gate[i]);
      }
    }
  }
};

// A lane's weights of the norm, of the rows whose output it writes.
template <class Cfg>
struct NormWeights {
  using S = LayerShape<Cfg>;
  typename Cfg::Input weight[S::kOwned], bias[S::kOwned];
};

template <class Cfg>
struct LayerTile {
  using S = LayerShape<Cfg>;
  Vec16 raw[S::kRows][S::kVectors];
};

template <class Cfg>
struct LayerStep {
  using S = LayerShape<Cfg>;
  using State = typename Cfg::State;
  using Input = typename Cfg::Input;
  using Item = typename ItemOf<Cfg, Cfg::kHasConv>::Type;

  const LayerArgs& args;
  LayerShared<Cfg>& shared;
  int row;       // request
  int first;     // the block's first channel of x
  int lane_row;  // the lane's first row within the kBlockM of a pass
  int column;    // the lane's place among the lanes of a row
  int own_row;   // the first row whose output the lane writes, as lane_row
  bool owner;    // whether it writes them

  static constexpr bool kUsesZ = Cfg::kHasGate || Cfg::kHasNormGate;

  static SSMJIT_DEVICE int element(int r, int v, int lane_row, int column) {
    return (lane_row + r) * Cfg::kDstate + (v * S::kLanes + column) * S::kVecElements;
  }
  static SSMJIT_DEVICE bool inside(int v, int column) {
    return !S::kRagged || v + 1 < S::kVectors || v * S::kLanes + column < S::kRowVectors;
  }
  SSMJIT_DEVICE int group() const { return first / S::kGroupRows; }
  SSMJIT_DEVICE int head(int pass) const { return (first + pass * Cfg::kBlockM + lane_row) / Cfg::kHeadDim; }

  // ---- the convolution's channels ----

  // Where item i of the block stands among the words of its channels.
  SSMJIT_DEVICE static int place(int i) {
    return S::kShares && i >= S::kRowWords ? i + cluster_rank() * S::kShareWords : i;
  }
  // Its first channel, among all x, B and C of the request.
  SSMJIT_DEVICE int channel(int i) const {
    const int groups = args.nheads / Cfg::kHeadsPerGroup;
    const int c = place(i) * S::kPer, in_group = c - S::kBlockRows;
    const int B = groups * S::kGroupRows + group() * Cfg::kDstate + in_group;
    return in_group < 0 ? first + c : in_group < Cfg::kDstate ? B : B + (groups - 1) * Cfg::kDstate;
  }
  SSMJIT_DEVICE int channels() const { return args.nheads / Cfg::kHeadsPerGroup * (S::kGroupRows + 2 * Cfg::kDstate); }
  SSMJIT_DEVICE void load_input(Item& item, int i) const {
    const Input* x = static_cast<const Input*>(args.x) + row * args.x_stride;
    if constexpr (Cfg::kHasConv) {
      item.input[0] = load_now_b32(x + item.channel);
    } else {
      const int c = i * S::kPer, in_group = c - S::kBlockRows, of_group = group() * Cfg::kDstate;
      const Input* B = static_cast<const Input*>(args.B) + row * args.B_stride;
      const Input* C = static_cast<const Input*>(args.C) + row * args.C_stride;
      item.input[0] = load_now_b32(in_group < 0              ? x + first + c
                                   : in_group < Cfg::kDstate ? B + of_group + in_group
                                                             : C + of_group + in_group - Cfg::kDstate);
    }
  }
  static SSMJIT_DEVICE bool exists(int i) { return S::kItems % S::kThreads == 0 || i < S::kItems; }

  // ---- the recurrence's inputs ----

  SSMJIT_DEVICE void load_scalars(LayerInputs<Cfg>& in, int pass) const {
    const int h = head(pass);
    load_now(static_cast<const float*>(args.A) + h, in.A);
    if constexpr (Cfg::kHasDtBias) load_now(static_cast<const typename Cfg::Weight*>(args.dt_bias) + h, in.dt_bias);
    if constexpr (Cfg::kHasD) load_now(static_cast<const typename Cfg::Weight*>(args.D) + h, in.D);
  }
  SSMJIT_DEVICE void load_z(Input (&z)[S::kOwned], int pass) const {
    const Input* p = static_cast<const Input*>(args.z) + row * args.z_stride + first + pass * Cfg::kBlockM + own_row;
#pragma unroll
    for (int i = 0; i < S::kOwned; ++i) load_now(p + i, z[i]);
  }
  SSMJIT_DEVICE void load_inputs(LayerInputs<Cfg>& in, int pass) const {
    load_now(static_cast<const typename Cfg::Dt*>(args.dt) + row * args.dt_stride + head(pass), in.dt);
    if constexpr (kUsesZ) load_z(in.z, pass);
  }
  SSMJIT_DEVICE void load_norm(NormWeights<Cfg>& norm, int pass) const {
    const int at = first + pass * Cfg::kBlockM + own_row;
    using T = typename Cfg::Input;
    if constexpr (Cfg::kHasNorm) {
#pragma unroll
      for (int i = 0; i < S::kOwned; ++i) load_now(static_cast<const T*>(args.norm_weight) + at + i, norm.weight[i]);
      if constexpr (Cfg::kNormBias) {
#pragma unroll
        for (int i = 0; i < S::kOwned; ++i) load_now(static_cast<const T*>(args.norm_bias) + at + i, norm.bias[i]);
      }
    }
  }
  SSMJIT_DEVICE void load_state(LayerTile<Cfg>& tile, const State* from, bool live) const {
#pragma unroll
    for (int r = 0; r < S::kRows; ++r)
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v)
        tile.raw[r][v] =
            live && inside(v, column) ? load_global<Cfg::kStreaming>(from + element(r, v, lane_row, column)) : Vec16{};
  }

  // ---- a pass ----

  // The recurrence on the lane's vectors, the new state to memory; y of the rows that the lane owns, rounded as a
  // kernel of its own would pass it on.
  SSMJIT_DEVICE void step(LayerTile<Cfg>& tile, const LayerScalars<Cfg>& in, State* to, bool live, int pass,
                          float (&y_own)[S::kOwned]) const {
    constexpr int kPer = kPerWord<State>;
    const Input* x_rows = shared.channels + pass * Cfg::kBlockM;
    const Input* columns = shared.channels + S::kBlockRows;
    float x[S::kRows], B[S::kVectors][S::kVecElements], C[S::kVectors][S::kVecElements];
    widen_shared(x_rows + lane_row, x);
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v) {
      const int at = inside(v, column) ? (v * S::kLanes + column) * S::kVecElements : 0;
      widen_shared(columns + at, B[v]);
      widen_shared(columns + Cfg::kDstate + at, C[v]);
    }
    float y[S::kRows];
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      const float u = in.delta * x[r];
      y[r] = 0.0f;
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v) {
        if (!inside(v, column)) continue;
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          float s[kPer];
          unpack_word(tile.raw[r][v].word[w], s, State{});
#pragma unroll
          for (int e = 0; e < kPer; ++e) {
            s[e] = fma_f32(s[e], in.decay, u * B[v][w * kPer + e]);
            y[r] = fma_f32(s[e], C[v][w * kPer + e], y[r]);
          }
          tile.raw[r][v].word[w] = pack_word(s, State{});
        }
        if (live) store_global<Cfg::kStreaming>(to + element(r, v, lane_row, column), tile.raw[r][v]);
      }
    }
    S::Sums::sum(y, column);
#pragma unroll
    for (int i = 0; i < S::kOwned; ++i) {
      float v = y[i];
      if constexpr (Cfg::kHasSkip) v += Cfg::skip(in.D, widen(x_rows[own_row + i]));
      if constexpr (Cfg::kHasGate) v *= in.gate[i];
      Input rounded;
      narrow(v, rounded);
      y_own[i] = widen(rounded);
      if constexpr (Cfg::kHasNormGate && !Cfg::kNormBeforeGate) y_own[i] *= in.norm_gate[i];
    }
  }

  SSMJIT_DEVICE Input* output(int pass) const {
    return static_cast<Input*>(args.out) + row * args.out_stride + first + pass * Cfg::kBlockM + own_row;
  }
  SSMJIT_DEVICE void write(const float (&u)[S::kOwned], const NormWeights<Cfg>& norm, const float (&gate)[S::kOwned],
                           float scale, int pass) const {
    if (!owner) return;
    Input* out = output(pass);
#pragma unroll
    for (int i = 0; i < S::kOwned; ++i) {
      float v = u[i];
      if constexpr (Cfg::kHasNorm) {
        v = v * scale * widen(norm.weight[i]);
        if constexpr (Cfg::kNormBias) v += widen(norm.bias[i]);
        if constexpr (Cfg::kHasNormGate && Cfg::kNormBeforeGate) v *= gate[i];
      }
      narrow(v, out[i]);
    }
  }
  SSMJIT_DEVICE void write_zeros() const {
    if (!owner) return;
    for (int pass = 0; pass < S::kPasses; ++pass) {
      Input* out = output(pass);
#pragma unroll
      for (int i = 0; i < S::kOwned; ++i) narrow(0.0f, out[i]);
    }
  }
};

// Grid: x = nheads * head_dim / block rows, in clusters of kCluster; y = batch. Block: 32 * warps threads.
template <class Cfg>
SSMJIT_DEVICE void layer(const LayerArgs& args) {
  using S = LayerShape<Cfg>;
  using State = typename Cfg::State;
  using Step = LayerStep<Cfg>;
  constexpr bool kClustered = Cfg::kCluster > 1;
  constexpr bool kExchange = kClustered && Cfg::kHasNorm;
  constexpr bool kSends = kExchange || S::kShares;
  constexpr bool kBulk = Cfg::kStatePath == StatePath::bulk;
  __shared__ LayerShared<Cfg> shared;
  extern __shared__ __align__(128) unsigned char stages[];  // bulk: the state of the block's rows

  const int thread = thread_index();
  const int warp = thread / 32;
  const int column = lane_index() % S::kLanes;
  const int lane_row = warp * S::kRowsPerWarp + lane_index() / S::kLanes * S::kRows;
  const Step at{args,
                shared,
                block_y(),
                block_x() * S::kBlockRows,
                lane_row,
                column,
                lane_row + S::Sums::first_row(column),
                S::Sums::owner(column)};

  if (args.pdl != kPdlOff) {
    grid_dependency_trigger();
    if (!Cfg::kEarlyState || args.pdl == kPdlWaitFirst) grid_dependency_wait();
  }
  const IndexEntry slot =
      IndexEntry::load(args.state_batch_indices, args.wide_indices, at.row * args.index_stride, at.row, args.A);
  if (thread == 0) {
    if constexpr (kExchange) barrier_init(&shared.sums, 1);
    if constexpr (kBulk) {
#pragma unroll
      for (int pass = 0; pass < S::kPasses; ++pass) barrier_init(&shared.state[pass], 1);
    }
    if constexpr (S::kShares) barrier_init(&shared.columns, 1);
    if constexpr (kBulk || kSends) barrier_init_fence();
    if constexpr (kExchange) barrier_arrive_expect(&shared.sums, 4 * S::kSums);
    if constexpr (S::kShares)
      barrier_arrive_expect(&shared.columns, 2 * Cfg::kDstate * static_cast<int>(sizeof(typename Cfg::Input)));
  }
  if constexpr (kSends) cluster_arrive_relaxed();  // peers may send from their wait on

  typename Step::Item item[S::kRounds];
  if constexpr (Cfg::kHasConv) {
#pragma unroll
    for (int i = 0; i < S::kRounds; ++i) item[i].channel = at.channel(thread + i * S::kThreads);
  }

  // Lines of the arguments are fetched now, together, and not where they are used.
  const void* lines[] = {args.conv_state, args.dt, args.out};
#pragma unroll
  for (const void*& line : lines) keep(line);

  // The index alone is waited for before all is asked for: a wait for it would be one for loads beside it, too.
  const i64 index = slot.value();
  const bool live = index >= 0 && index < args.slots && index != args.pad_slot_id;
  if constexpr (Cfg::kPadOutput != PadOutput::as_if_zero_state) {
    if (!live) {
      if constexpr (Cfg::kEarlyState) grid_dependency_wait();
      if constexpr (Cfg::kPadOutput == PadOutput::zeros) at.write_zeros();
      return;
    }
  }
  State* state = static_cast<State*>(args.state) +
                 (live ? index * args.state_stride + static_cast<i64>(at.first) * Cfg::kDstate : 0);
  typename Cfg::Input* windows = nullptr;
  if constexpr (Cfg::kHasConv) {
    windows = static_cast<typename Cfg::Input*>(args.conv_state) + (live ? index * args.conv_state_stride : 0);
#pragma unroll
    for (int i = 0; i < S::kRounds; ++i)
      if (Step::exists(thread + i * S::kThreads)) item[i].load_window(windows, at.channels(), live);
  }
  sync_warp();  // nor these, which the convolution waits for, behind the others
  LayerTile<Cfg> tile;
  const auto load_state = [&] {
    if constexpr (kBulk) {
      if (thread == 0 && live) {
#pragma unroll
        for (int pass = 0; pass < S::kPasses; ++pass) {
          barrier_arrive_expect(&shared.state[pass], Cfg::kBlockM * S::kRowBytes);
          bulk_load(stages + pass * Cfg::kBlockM * S::kRowBytes, state + pass * Cfg::kBlockM * Cfg::kDstate,
                    Cfg::kBlockM * S::kRowBytes, &shared.state[pass]);
        }
      }
    } else {
      at.load_state(tile, state, live);
    }
  };
  if constexpr (kBulk || Cfg::kEarlyState) load_state();
  LayerInputs<Cfg> in;
  NormWeights<Cfg> norm;
  const auto load_inputs = [&] {
#pragma unroll
    for (int i = 0; i < S::kRounds; ++i)
      if (Step::exists(thread + i * S::kThreads)) at.load_input(item[i], thread + i * S::kThreads);
    at.load_inputs(in, 0);
  };
  if constexpr (Cfg::kHasConv) {
#pragma unroll
    for (int i = 0; i < S::kRounds; ++i)
      if (Step::exists(thread + i * S::kThreads)) item[i].load_weights(args);
  }
  at.load_scalars(in, 0);
  if constexpr (Cfg::kEarlyState) {
    if constexpr (S::kPasses == 1) at.load_norm(norm, 0);
    grid_dependency_wait();
    load_inputs();
  } else {
    load_inputs();
    if constexpr (!kBulk) load_state();
    if constexpr (S::kPasses == 1) at.load_norm(norm, 0);
  }

  // No load may move down past here, behind arithmetic that waits for another.
  sync_warp();
  if constexpr (kSends) cluster_wait();
  LayerScalars<Cfg> scalars(in);

  const auto store_windows = [&](bool of_x) {
    if constexpr (Cfg::kHasConv) {
#pragma unroll
      for (int i = 0; i < S::kRounds; ++i) {
        const int id = thread + i * S::kThreads;
        if (Step::exists(id) && live && (id * S::kPer < S::kBlockRows) == of_x)
          item[i].store_window(windows, at.channels());
      }
    }
  };
  // The convolution.
#pragma unroll
  for (int i = 0; i < S::kRounds; ++i) {
    const int id = thread + i * S::kThreads;
    if (!Step::exists(id)) continue;
    u32 v;
    if constexpr (Cfg::kHasConv)
      v = item[i].result();
    else
      v = item[i].input[0];
    u32* const to = reinterpret_cast<u32*>(shared.channels) + Step::place(id);
    if (S::kShares && id >= S::kRowWords) {
#pragma unroll 1
      for (int peer = 0; peer < Cfg::kCluster; ++peer)
        cluster_store_async_b32(cluster_address(to, peer), v, cluster_address(&shared.columns, peer));
    } else {
      *to = v;
    }
  }
  if constexpr (kClustered && !kSends) cluster_arrive_relaxed();  // this block has read the windows
  sync_block();
  store_windows(true);
  if constexpr (S::kShares) {
    store_windows(false);  // while the others' shares come
    barrier_wait(&shared.columns, 0);
  }

  // The recurrence. A lane's sum of squares is of the rows whose output it knows.
  float u[S::kOwned];
  float squares = 0.0f;
  const auto take = [&](int pass) {
    if constexpr (kBulk) {
      if (live) barrier_wait(&shared.state[pass], 0);
      const unsigned char* stage = stages + pass * Cfg::kBlockM * S::kRowBytes;
#pragma unroll
      for (int r = 0; r < S::kRows; ++r)
#pragma unroll
        for (int v = 0; v < S::kVectors; ++v)
          tile.raw[r][v] =
              live && Step::inside(v, column)
                  ? load_shared(stage + Step::element(r, v, lane_row, column) * static_cast<int>(sizeof(State)))
                  : Vec16{};
    }
    at.step(tile, scalars, state + pass * Cfg::kBlockM * Cfg::kDstate, live, pass, u);
#pragma unroll
    for (int i = 0; i < S::kOwned; ++i) {
      squares = fma_f32(u[i], u[i], squares);
      if constexpr (S::kPasses > 1)
        if (at.owner) shared.held[pass * Cfg::kBlockM + at.own_row + i] = u[i];
    }
  };
  if constexpr (S::kPasses == 1) {
    take(0);
  } else {
    [[maybe_unused]] LayerTile<Cfg> ahead;
    LayerInputs<Cfg> in_ahead;
#pragma unroll 1
    for (int pass = 0; pass < S::kPasses; ++pass) {
      const bool more = pass + 1 < S::kPasses;
      if (more) {
        at.load_scalars(in_ahead, pass + 1);
        at.load_inputs(in_ahead, pass + 1);
        if constexpr (!kBulk) at.load_state(ahead, state + (pass + 1) * Cfg::kBlockM * Cfg::kDstate, live);
      }
      take(pass);
      if (more) scalars = LayerScalars<Cfg>(in_ahead);
      if constexpr (!kBulk) tile = ahead;
    }
  }

  // The sum over the norm's channels. kCopies neighbouring lanes know the same rows.
  if constexpr (Cfg::kHasNorm) {
    constexpr int kCopies = S::kLanes * S::kOwned / S::kRows;
#pragma unroll
    for (int step = 16; step >= kCopies; step /= 2) squares += shuffle_xor(squares, step);
    if constexpr (kExchange) {
      if (lane_index() < Cfg::kCluster)
        cluster_store_async_b32(cluster_address(&shared.sum[cluster_rank() * Cfg::kWarps + warp], lane_index()),
                                float_bits(squares), cluster_address(&shared.sums, lane_index()));
    } else {
      if (lane_index() == 0) shared.sum[warp] = squares;
    }
  } else if constexpr (kClustered && !kSends) {
    cluster_wait();
  }
  float scale = 1.0f;
  if constexpr (Cfg::kHasNorm) {
    if constexpr (kExchange)
      barrier_wait(&shared.sums, 0);
    else
      sync_block();
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < (S::kSums + 31) / 32; ++i)
      if (lane_index() + 32 * i < S::kSums) sum += shared.sum[lane_index() + 32 * i];
    sum = sum_lanes(sum);
    scale = rsqrt_fast_f32(sum * (1.0f / static_cast<float>(Cfg::kNormRows)) + Cfg::norm_eps());
  }
  if constexpr (S::kPasses == 1) {
    at.write(u, norm, scalars.norm_gate, scale, 0);
  } else {
#pragma unroll 1
    for (int pass = 0; pass < S::kPasses; ++pass) {
      at.load_norm(norm, pass);
      [[maybe_unused]] typename Cfg::Input z[S::kOwned];
      float gate[S::kOwned];
      if constexpr (Cfg::kHasNormGate && Cfg::kNormBeforeGate) at.load_z(z, pass);
#pragma unroll
      for (int i = 0; i < S::kOwned; ++i) {
        if constexpr (Cfg::kHasNormGate && Cfg::kNormBeforeGate) gate[i] = Cfg::norm_gate(widen(z[i]));
        u[i] = at.owner ? shared.held[pass * Cfg::kBlockM + at.own_row + i] : 0.0f;
      }
      at.write(u, norm, gate, scale, pass);
    }
  }
  // All sums have come, so every block of the cluster has read its group's windows.
  if (!S::kShares && at.first % S::kGroupRows == 0) store_windows(false);
}

// ---- layer_tokens_args.cuh ----

// What a launch of the fused layer of several tokens is given, by value, in one struct (also read by the host, so plain
// C++), by lines as LayerArgs. Strides count elements. Pointers that the description has no use for are null. Channels
// of the convolution stand in the order x, B, C: nheads * head_dim, then twice ngroups * dstate.

struct LayerTokensArgs {
  const void* state_batch_indices;  // [batch], null: row b uses slot b
  long long index_stride;
  long long pad_slot_id;  // a row with this index, or a negative one, is a pad row
  int nheads;
  int wide_indices;  // 1: indices are int64, 0: int32
  int pdl;           // 0: no wait; 1: wait, then read; 2: a kernel with kEarlyState reads the index, the states and the
                     // weights, waits, then reads the rest; any other does as for 1
  const void* A;     // [nheads] fp32, negative

  long long slots;   // a slot index outside [0, slots) makes its row a pad row
  void* conv_state;  // [slots, channels, kConvState], or [slots, kConvState, channels] where channels come last;
                     // inner two contiguous, slots 16-byte aligned; updated
  long long conv_state_stride;
  const void* x;  // [batch, tokens, nheads, head_dim], before the convolution where there is one; B and C as well
  long long x_stride, x_token_stride;
  void* state;             // [slots, nheads, head_dim, dstate], inner three contiguous, 16-byte aligned rows; updated
  long long state_stride;  // between slots

  const void* conv_weight;  // [channels, kConvWidth], 16-byte aligned
  const void* conv_bias;    // [channels], 16-byte aligned
  const void* dt;           // [batch, tokens, nheads]
  long long dt_stride, dt_token_stride;
  const void* D;        // [nheads]
  const void* dt_bias;  // [nheads]
  const void* z;        // [batch, tokens, nheads, head_dim], gate; rows 16-byte aligned, those of out too

  long long z_stride, z_token_stride;
  const void* norm_weight;  // [nheads, head_dim], 16-byte aligned
  const void* norm_bias;    // [nheads, head_dim], 16-byte aligned
  void* out;                // [batch, tokens, nheads, head_dim]
  long long out_stride, out_token_stride;
  const void* B;  // [batch, tokens, ngroups, dstate]; as C, null where there is a convolution
  long long B_stride, B_token_stride;
  const void* C;
  long long C_stride, C_token_stride;
};

// ---- layer_tokens.cuh ----

// One decode step of a whole state-space layer, kTokens tokens a request, the state in place, in one launch: layer.cuh
// token after token, with what is shared by all tokens read once and written once.
//
//   stream = the window's last kConvWidth - 1 entries, then the step's tokens       each channel
//   v[t]   = round(Cfg::activation(bias + sum over k of w[k] * stream[t + k]))
//   h[p, n] <- decay * h[p, n] + (delta * x[p]) * B[n]                               with x, B, C of v[t]
//   y[p] = sum over n of h[p, n] * C[n];  y[p] += Cfg::skip(D, x[p]);  y[p] *= Cfg::gate(z[p]);  y = round(y)
//   u = y * Cfg::norm_gate(z);  out = u / sqrt(mean of u * u over the norm's group + eps) * norm_weight + norm_bias
//
// or, where kNormBeforeGate, out = (y / sqrt(mean of y * y ...) * norm_weight + norm_bias) * Cfg::norm_gate(z). The
// state stays in fp32 from the first token to the last and is rounded where it is stored, once. What a chain of kernels
// would pass on in the input's dtype is rounded to it here.
//
// Clusters, blocks and warps share a request's channels as in layer.cuh. A block goes through three phases, a barrier
// between each two:
// - convolution: a word of channels (1 or 2) a thread, all its tokens, into shared memory. All that it needs is under
//   way at once, and behind it the states;
// - recurrence: a lane's rows, token after token; delta and decay of token t are computed by lane t. y goes to shared
//   memory, so that no lane waits for gates or norms;
// - gate and norm: a warp takes 32 words of a token's rows at once. Their sum of squares goes to all blocks of the
//   cluster, where it counts into an mbarrier; all sums are added in the same order everywhere.

// Sizes that follow from Cfg.
template <class Cfg>
struct LayerTokensShape {
  using Input = typename Cfg::Input;
  static constexpr int kTokens = Cfg::kTokens;
  static constexpr int kVecElements = 16 / static_cast<int>(sizeof(typename Cfg::State));
  static constexpr int kRowVectors = Cfg::kDstate / kVecElements;
  static constexpr int kLanes = Cfg::kLanesPerRow;
  static constexpr int kVectors = (kRowVectors + kLanes - 1) / kLanes;  // a lane and row; the last may be past the end
  static constexpr bool kRagged = kRowVectors % kLanes != 0;
  static constexpr int kGroupRows = Cfg::kHeadsPerGroup * Cfg::kHeadDim;  // that share B and C
  static constexpr int kBlockRows = Cfg::kNormRows / Cfg::kCluster;
  static constexpr int kPasses = kBlockRows / Cfg::kBlockM;
  static constexpr int kRowsPerWarp = Cfg::kBlockM / Cfg::kWarps;
  static constexpr int kRows = kRowsPerWarp / (32 / kLanes);                     // a lane and pass
  static constexpr int kTurn = Cfg::kStages < kTokens ? Cfg::kStages : kTokens;  // tokens that a turn of the loop takes
  using Sums = RowSums<kRows, kLanes>;
  static constexpr int kOwned = Sums::owned();

  // The channels that a block needs: its rows of x, then B and C of its group, a word of them an item.
  static constexpr int kPer = kPerWord<Input>;
  static constexpr int kChannels = kBlockRows + 2 * Cfg::kDstate;
  static constexpr int kItems = kChannels / kPer;
  static constexpr int kThreads = 32 * Cfg::kWarps;
  static constexpr int kRounds = (kItems + kThreads - 1) / kThreads;

  // Of the last phase: the words of a token's rows, 32 of them a part, the parts of all tokens in turn over the warps.
  static constexpr int kRowWords = kBlockRows / kPer;
  static constexpr int kParts = (kRowWords + 31) / 32;
  static constexpr int kTurns = (kTokens * kParts + Cfg::kWarps - 1) / Cfg::kWarps;
  static constexpr int kSums = Cfg::kCluster * kParts;  // that a token's norm adds
  static_assert(Cfg::kNormRows % kGroupRows == 0 && kGroupRows % kBlockRows == 0 && kTokens <= 32);
  static_assert(kBlockRows % Cfg::kBlockM == 0 && Cfg::kHeadDim % kRowsPerWarp == 0 && kRows > 0);
};

template <class Cfg>
struct LayerTokensShared {
  using S = LayerTokensShape<Cfg>;
  alignas(16) typename Cfg::Input channels[Cfg::kTokens][S::kChannels];  // x, B, C as the recurrence takes them
  alignas(16) float y[Cfg::kTokens][S::kBlockRows];                      // before the gate
  float sum[Cfg::kTokens][S::kSums];                                     // of squares, a part each: [cluster][parts]
  Barrier sums;                                                          // that they have come
};

// The tokens of a word of neighbouring channels, and what their convolution needs besides.
template <class Cfg, bool kConv>
struct TokensItem {
  using S = LayerTokensShape<Cfg>;
  using Input = typename Cfg::Input;
  static constexpr int kPer = S::kPer;
  static constexpr int kState = Cfg::kConvState;

  int channel;  // its first
  u32 token[Cfg::kTokens];
  u32 window[kState];  // channels first: [kPer][kState] elements; last: [kState][kPer]
  u32 weight[Cfg::kConvWidth];
  u32 bias[1];

  SSMJIT_DEVICE static int at(int channel, int k) {
    return Cfg::kConvChannelsLast ? k * kPer + channel : channel * kState + k;
  }
  SSMJIT_DEVICE void load_weights(const LayerTokensArgs& args) {
    load_now<Cfg::kConvWidth>(static_cast<const Input*>(args.conv_weight) + static_cast<i64>(channel) * Cfg::kConvWidth,
                              weight);
    if constexpr (Cfg::kConvBias) bias[0] = load_now_b32(static_cast<const Input*>(args.conv_bias) + channel);
  }
  SSMJIT_DEVICE void load_window(const Input* slot, int channels, bool live) {
#pragma unroll
    for (int k = 0; k < kState; ++k) window[k] = 0;
    if (!live) return;
    if constexpr (Cfg::kConvChannelsLast) {
#pragma unroll
      for (int k = 0; k < kState; ++k) window[k] = load_now_b32(slot + static_cast<i64>(k) * channels + channel);
    } else {
      load_now<kState>(slot + static_cast<i64>(channel) * kState, window);
    }
  }
  // The last kState entries of window and tokens.
  SSMJIT_DEVICE void store_window(Input* slot, int channels) const {
    u32 next[kState];
    const auto entry = [&](int c, int k) {
      const int t = Cfg::kTokens - kState + k;
      return t < 0 ? element_bits<Input>(window, at(c, t < 0 ? kState + t : 0))
                   : element_bits<Input>(token + (t < 0 ? 0 : t), c);
    };
#pragma unroll
    for (int w = 0; w < kState; ++w) {
      const auto element = [&](int i) {
        return Cfg::kConvChannelsLast ? entry(i % kPer, i / kPer) : entry(i / kState, i % kState);
      };
      if constexpr (kPer == 1)
        next[w] = element(w);
      else
        next[w] = element(2 * w) | element(2 * w + 1) << 16;
    }
    u32* const p = reinterpret_cast<u32*>(slot);
#pragma unroll
    for (int w = 0; w < kState; ++w)
      p[Cfg::kConvChannelsLast ? (static_cast<i64>(w) * channels + channel) / kPer
                               : static_cast<i64>(channel / kPer) * kState + w] = next[w];
  }
  // v[t] of both channels.
  SSMJIT_DEVICE u32 result(int t) const {
    float v[kPer];
#pragma unroll
    for (int c = 0; c < kPer; ++c) {
      float sum = 0.0f;
      if constexpr (Cfg::kConvBias) sum = element_value<Input>(bias, c);
#pragma unroll
      for (int k = 0; k < Cfg::kConvWidth; ++k) {
        const int from = t - Cfg::kConvWidth + 1 + k;  // the token; below 0 an entry of the window
        const float in = from < 0 ? element_value<Input>(window, at(c, from < 0 ? kState + from : 0))
                                  : element_value<Input>(token + (from < 0 ? 0 : from), c);
        sum = fma_f32(element_value<Input>(weight, c * Cfg::kConvWidth + k), in, sum);
      }
      v[c] = Cfg::activation(sum);
    }
    return pack_word(v, Input{});
  }
};
// Without a convolution x, B and C are taken as they are.
template <class Cfg>
struct TokensItem<Cfg, false> {
  u32 token[Cfg::kTokens];
  SSMJIT_DEVICE u32 result(int t) const { return token[t]; }
};

// The scalars of the head that a warp's rows are of; dt of token t in lane t.
template <class Cfg>
struct TokensHead {
  typename Cfg::Dt dt;
  typename Cfg::Weight dt_bias, D;
  float A;
};

template <class Cfg>
struct TokensTile {
  using S = LayerTokensShape<Cfg>;
  Vec16 raw[S::kRows][S::kVectors];
};

template <class Cfg>
struct LayerTokensStep {
  using S = LayerTokensShape<Cfg>;
  using State = typename Cfg::State;
  using Input = typename Cfg::Input;
  using Item = TokensItem<Cfg, Cfg::kHasConv>;

  const LayerTokensArgs& args;
  LayerTokensShared<Cfg>& shared;
  int row;       // request
  int first;     // the block's first channel of x
  int warp;      // of the block
  int lane_row;  // the lane's first row within the kBlockM of a pass
  int column;    // the lane's place among the lanes of a row
  int own_row;   // the first row whose y the lane knows, as lane_row
  bool owner;    // whether it passes them on

  static constexpr bool kUsesZ = Cfg::kHasGate || Cfg::kHasNormGate;

  SSMJIT_DEVICE int element(int r, int v) const {
    return (lane_row + r) * Cfg::kDstate + (v * S::kLanes + column) * S::kVecElements;
  }
  SSMJIT_DEVICE bool inside(int v) const {
    return !S::kRagged || v + 1 < S::kVectors || v * S::kLanes + column < S::kRowVectors;
  }
  SSMJIT_DEVICE int group() const { return first / S::kGroupRows; }
  SSMJIT_DEVICE int groups() const { return args.nheads / Cfg::kHeadsPerGroup; }

  // ---- the convolution's channels ----

  SSMJIT_DEVICE static bool exists(int i) { return S::kItems % S::kThreads == 0 || i < S::kItems; }
  template <class Visit>
  SSMJIT_DEVICE void for_items(Item (&item)[S::kRounds], const Visit& visit) const {
#pragma unroll
    for (int i = 0; i < S::kRounds; ++i) {
      const int id = thread_index() + i * S::kThreads;
      if (exists(id)) visit(item[i], id);
    }
  }
  // The first channel of item i of the block, among all x, B and C of the request.
  SSMJIT_DEVICE int channel(int i) const {
    const int c = i * S::kPer, in_group = c - S::kBlockRows;
    const int B = groups() * S::kGroupRows + group() * Cfg::kDstate + in_group;
    return in_group < 0 ? first + c : in_group < Cfg::kDstate ? B : B + (groups() - 1) * Cfg::kDstate;
  }
  SSMJIT_DEVICE int channels() const { return groups() * (S::kGroupRows + 2 * Cfg::kDstate); }
  SSMJIT_DEVICE void load_tokens(Item& item, int i) const {
    const void* base = args.x;
    i64 stride = args.x_stride, token_stride = args.x_token_stride;
    int at = 0;
    if constexpr (Cfg::kHasConv) {
      at = item.channel;
    } else {
      const int c = i * S::kPer, in_group = c - S::kBlockRows, of_group = group() * Cfg::kDstate;
      at = in_group < 0 ? first + c : of_group + in_group % Cfg::kDstate;
      if (in_group >= Cfg::kDstate) {
        base = args.C;
        stride = args.C_stride;
        token_stride = args.C_token_stride;
      } else if (in_group >= 0) {
        base = args.B;
        stride = args.B_stride;
        token_stride = args.B_token_stride;
      }
    }
    const Input* const from = static_cast<const Input*>(base) + row * stride + at;
#pragma unroll
    for (int t = 0; t < Cfg::kTokens; ++t) item.token[t] = load_now_b32(from + t * token_stride);
  }

  // ---- the recurrence ----

  SSMJIT_DEVICE int head(int pass) const {
    return (first + pass * Cfg::kBlockM + warp * S::kRowsPerWarp) / Cfg::kHeadDim;
  }
  SSMJIT_DEVICE void load_weights(TokensHead<Cfg>& of, int pass) const {
    const int h = head(pass);
    load_now(static_cast<const float*>(args.A) + h, of.A);
    if constexpr (Cfg::kHasDtBias) load_now(static_cast<const typename Cfg::Weight*>(args.dt_bias) + h, of.dt_bias);
    if constexpr (Cfg::kHasD) load_now(static_cast<const typename Cfg::Weight*>(args.D) + h, of.D);
  }
  SSMJIT_DEVICE void load_dt(TokensHead<Cfg>& of, int pass) const {
    const int t = lane_index() < Cfg::kTokens ? lane_index() : Cfg::kTokens - 1;
    load_now(
        static_cast<const typename Cfg::Dt*>(args.dt) + row * args.dt_stride + t * args.dt_token_stride + head(pass),
        of.dt);
  }
  SSMJIT_DEVICE void load_state(TokensTile<Cfg>& tile, const State* from, bool live) const {
#pragma unroll
    for (int r = 0; r < S::kRows; ++r)
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v)
        tile.raw[r][v] = live && inside(v) ? load_global<Cfg::kStreaming>(from + element(r, v)) : Vec16{};
  }

  // All tokens on the lane's elements, the new state to memory, y of the rows that the lane owns to shared memory.
  SSMJIT_DEVICE void advance(TokensTile<Cfg>& tile, const TokensHead<Cfg>& of, State* to, bool live, int pass) const {
    constexpr int kPer = kPerWord<State>;
    float dt_bias = 0.0f, D = 0.0f;
    if constexpr (Cfg::kHasDtBias) dt_bias = widen(of.dt_bias);
    if constexpr (Cfg::kHasD) D = widen(of.D);
    const float of_delta = Cfg::delta(widen(of.dt), dt_bias);  // of the lane's token
    const float of_decay = Cfg::decay(of.A, widen(of.dt), of_delta);
    float h[S::kRows][S::kVectors][S::kVecElements];
#pragma unroll
    for (int r = 0; r < S::kRows; ++r)
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v)
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          float part[kPer];
          unpack_word(tile.raw[r][v].word[w], part, State{});
#pragma unroll
          for (int e = 0; e < kPer; ++e) h[r][v][w * kPer + e] = part[e];
        }
#pragma unroll S::kTurn
    for (int t = 0; t < Cfg::kTokens; ++t) {
      const float delta = shuffle(of_delta, t), decay = shuffle(of_decay, t);
      const Input* const x_rows = shared.channels[t] + pass * Cfg::kBlockM;
      const Input* const columns = shared.channels[t] + S::kBlockRows;
      float x[S::kRows], B[S::kVectors][S::kVecElements], C[S::kVectors][S::kVecElements];
      widen_shared(x_rows + lane_row, x);
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v) {
        const int at = inside(v) ? (v * S::kLanes + column) * S::kVecElements : 0;
        widen_shared(columns + at, B[v]);
        widen_shared(columns + Cfg::kDstate + at, C[v]);
      }
      float y[S::kRows];
#pragma unroll
      for (int r = 0; r < S::kRows; ++r) {
        const float u = delta * x[r];
        y[r] = 0.0f;
#pragma unroll
        for (int v = 0; v < S::kVectors; ++v) {
          if (!inside(v)) continue;
#pragma unroll
          for (int e = 0; e < S::kVecElements; ++e) {
            h[r][v][e] = fma_f32(h[r][v][e], decay, u * B[v][e]);
            y[r] = fma_f32(h[r][v][e], C[v][e], y[r]);
          }
        }
      }
      S::Sums::sum(y, column);
      if (owner) {
#pragma unroll
        for (int i = 0; i < S::kOwned; ++i) {
          float v = y[i];
          if constexpr (Cfg::kHasSkip) v += Cfg::skip(D, widen(x_rows[own_row + i]));
          shared.y[t][pass * Cfg::kBlockM + own_row + i] = v;
        }
      }
    }
    if (!live) return;
#pragma unroll
    for (int r = 0; r < S::kRows; ++r)
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v) {
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          float part[kPer];
#pragma unroll
          for (int e = 0; e < kPer; ++e) part[e] = h[r][v][w * kPer + e];
          tile.raw[r][v].word[w] = pack_word(part, State{});
        }
        if (inside(v)) store_global<Cfg::kStreaming>(to + element(r, v), tile.raw[r][v]);
      }
  }

  // ---- gate and norm ----

  // The part of a token's rows that the warp takes in a turn, and the lane's word of it.
  struct Part {
    int token, part, word;  // word: among those of the block's rows
    bool any, exists;       // whether there is such a part; such a word

    SSMJIT_DEVICE int channel() const { return word * S::kPer; }
  };
  SSMJIT_DEVICE Part part_of(int turn) const {
    const int i = turn * Cfg::kWarps + warp;
    const bool any = S::kTokens * S::kParts % Cfg::kWarps == 0 || i < S::kTokens * S::kParts;
    const int word = i % S::kParts * 32 + lane_index();
    return {i / S::kParts, i % S::kParts, word, any, any && (S::kRowWords % 32 == 0 || word < S::kRowWords)};
  }
  template <class Visit>
  SSMJIT_DEVICE void for_parts(const Visit& visit) const {
#pragma unroll
    for (int turn = 0; turn < S::kTurns; ++turn) {
      const Part part = part_of(turn);
      if (part.exists) visit(turn, part);
    }
  }
  SSMJIT_DEVICE void load_norm(u32 (&weight)[S::kTurns], u32 (&bias)[S::kTurns]) const {
    if constexpr (Cfg::kHasNorm)
      for_parts([&](int turn, const Part& part) {
        weight[turn] = load_now_b32(static_cast<const Input*>(args.norm_weight) + first + part.channel());
        if constexpr (Cfg::kNormBias)
          bias[turn] = load_now_b32(static_cast<const Input*>(args.norm_bias) + first + part.channel());
      });
  }
  SSMJIT_DEVICE void load_z(u32 (&z)[S::kTurns]) const {
    if constexpr (kUsesZ)
      for_parts([&](int turn, const Part& part) {
        z[turn] = load_now_b32(static_cast<const Input*>(args.z) + row * args.z_stride +
                               part.token * args.z_token_stride + first + part.channel());
      });
  }
  SSMJIT_DEVICE u32* output(const Part& part) const {
    return reinterpret_cast<u32*>(static_cast<Input*>(args.out) + row * args.out_stride +
                                  part.token * args.out_token_stride + first + part.channel());
  }
  SSMJIT_DEVICE void write_zeros() const {
    for_parts([&](int, const Part& part) { *output(part) = 0; });
  }

  // y of the lane's words, as a kernel of its own would pass it on, times the norm's gate where that comes first; and
  // the sums of squares of the warp's parts, to all blocks of the cluster.
  SSMJIT_DEVICE void square(const u32 (&z)[S::kTurns], float (&u)[S::kTurns][S::kPer],
                            float (&gate)[S::kTurns][S::kPer]) const {
    constexpr bool kExchange = Cfg::kCluster > 1 && Cfg::kHasNorm;
#pragma unroll
    for (int turn = 0; turn < S::kTurns; ++turn) {
      const Part part = part_of(turn);
      float squares = 0.0f;
      if (part.exists) {
        float of_z[S::kPer];
        if constexpr (kUsesZ) unpack_word(z[turn], of_z, Input{});
        widen_shared(shared.y[part.token] + part.channel(), u[turn]);
        if constexpr (Cfg::kHasGate) {
#pragma unroll
          for (int e = 0; e < S::kPer; ++e) u[turn][e] *= Cfg::gate(of_z[e]);
        }
        unpack_word(pack_word(u[turn], Input{}), u[turn], Input{});
#pragma unroll
        for (int e = 0; e < S::kPer; ++e) {
          if constexpr (Cfg::kHasNormGate) gate[turn][e] = Cfg::norm_gate(of_z[e]);
          if constexpr (Cfg::kHasNormGate && !Cfg::kNormBeforeGate) u[turn][e] *= gate[turn][e];
          squares = fma_f32(u[turn][e], u[turn][e], squares);
        }
      }
      if constexpr (Cfg::kHasNorm) {
        squares = sum_lanes(squares);
        if (!part.any) continue;
        if constexpr (kExchange) {
          if (lane_index() < Cfg::kCluster)
            cluster_store_async_b32(
                cluster_address(&shared.sum[part.token][cluster_rank() * S::kParts + part.part], lane_index()),
                float_bits(squares), cluster_address(&shared.sums, lane_index()));
        } else {
          if (lane_index() == 0) shared.sum[part.token][part.part] = squares;
        }
      }
    }
    if constexpr (kExchange)
      barrier_wait(&shared.sums, 0);
    else if constexpr (Cfg::kHasNorm)
      sync_block();
  }
  SSMJIT_DEVICE void write(const float (&u)[S::kTurns][S::kPer], const float (&gate)[S::kTurns][S::kPer],
                           const u32 (&weight)[S::kTurns], const u32 (&bias)[S::kTurns]) const {
#pragma unroll
    for (int turn = 0; turn < S::kTurns; ++turn) {
      const Part part = part_of(turn);
      float scale = 1.0f;
      if constexpr (Cfg::kHasNorm) {
        float sum = 0.0f;
        if (part.any) {
#pragma unroll
          for (int i = 0; i < (S::kSums + 31) / 32; ++i)
            if (lane_index() + 32 * i < S::kSums) sum += shared.sum[part.token][lane_index() + 32 * i];
        }
        sum = sum_lanes(sum);
        scale = rsqrt_fast_f32(sum * (1.0f / static_cast<float>(Cfg::kNormRows)) + Cfg::norm_eps());
      }
      if (!part.exists) continue;
      float v[S::kPer];
      [[maybe_unused]] float w[S::kPer], b[S::kPer];
      if constexpr (Cfg::kHasNorm) unpack_word(weight[turn], w, Input{});
      if constexpr (Cfg::kHasNorm && Cfg::kNormBias) unpack_word(bias[turn], b, Input{});
#pragma unroll
      for (int e = 0; e < S::kPer; ++e) {
        v[e] = u[turn][e];
        if constexpr (Cfg::kHasNorm) {
          v[e] = v[e] * scale * w[e];
          if constexpr (Cfg::kNormBias) v[e] += b[e];
          if constexpr (Cfg::kHasNormGate && Cfg::kNormBeforeGate) v[e] *= gate[turn][e];
        }
      }
      *output(part) = pack_word(v, Input{});
    }
  }
};

// Grid: x = nheads * head_dim / block rows, in clusters of kCluster; y = batch. Block: 32 * warps threads.
template <class Cfg>
SSMJIT_DEVICE void layer_tokens(const LayerTokensArgs& args) {
  using S = LayerTokensShape<Cfg>;
  using State = typename Cfg::State;
  using Input = typename Cfg::Input;
  using Step = LayerTokensStep<Cfg>;
  constexpr bool kClustered = Cfg::kCluster > 1;
  constexpr bool kExchange = kClustered && Cfg::kHasNorm;
  static_assert(Cfg::kStatePath == StatePath::direct);
  __shared__ LayerTokensShared<Cfg> shared;

  const int thread = thread_index();
  const int warp = thread / 32;
  const int column = lane_index() % S::kLanes;
  const int lane_row = warp * S::kRowsPerWarp + lane_index() / S::kLanes * S::kRows;
  const Step at{args,
                shared,
                block_y(),
                block_x() * S::kBlockRows,
                warp,
                lane_row,
                column,
                lane_row + S::Sums::first_row(column),
                S::Sums::owner(column)};

  if (args.pdl != kPdlOff) {
    grid_dependency_trigger();
    if (!Cfg::kEarlyState || args.pdl == kPdlWaitFirst) grid_dependency_wait();
  }
  const IndexEntry slot =
      IndexEntry::load(args.state_batch_indices, args.wide_indices, at.row * args.index_stride, at.row, args.A);
  if constexpr (kExchange) {
    if (thread == 0) {
      barrier_init(&shared.sums, 1);
      barrier_init_fence();
      barrier_arrive_expect(&shared.sums, 4 * Cfg::kTokens * S::kSums);
    }
    cluster_arrive_relaxed();  // peers may send from their wait on
  }

  typename Step::Item item[S::kRounds];
  if constexpr (Cfg::kHasConv) {
#pragma unroll
    for (int i = 0; i < S::kRounds; ++i) item[i].channel = at.channel(thread + i * S::kThreads);
  }
  // Lines of the arguments are fetched now, together, and not where they are used.
  const void* lines[] = {args.conv_state, args.dt, args.out};
#pragma unroll
  for (const void*& line : lines) keep(line);

  // The index alone is waited for before all is asked for: a wait for it would be one for loads beside it, too.
  const i64 index = slot.value();
  const bool live = index >= 0 && index < args.slots && index != args.pad_slot_id;
  if constexpr (Cfg::kPadOutput != PadOutput::as_if_zero_state) {
    if (!live) {
      if constexpr (Cfg::kEarlyState) grid_dependency_wait();
      if constexpr (Cfg::kPadOutput == PadOutput::zeros) at.write_zeros();
      return;
    }
  }
  State* const state = static_cast<State*>(args.state) +
                       (live ? index * args.state_stride + static_cast<i64>(at.first) * Cfg::kDstate : 0);
  Input* windows = nullptr;
  if constexpr (Cfg::kHasConv) {
    windows = static_cast<Input*>(args.conv_state) + (live ? index * args.conv_state_stride : 0);
    at.for_items(item, [&](typename Step::Item& one, int) { one.load_window(windows, at.channels(), live); });
  }
  sync_warp();  // the convolution, which waits for these, does not wait for what is asked for behind them
  TokensTile<Cfg> tile;
  TokensHead<Cfg> head;
  u32 z[S::kTurns], norm_weight[S::kTurns], norm_bias[S::kTurns];
  if constexpr (Cfg::kEarlyState) at.load_state(tile, state, live);
  if constexpr (Cfg::kHasConv) at.for_items(item, [&](typename Step::Item& one, int) { one.load_weights(args); });
  at.load_weights(head, 0);
  if constexpr (Cfg::kEarlyState) {
    at.load_norm(norm_weight, norm_bias);
    grid_dependency_wait();
  }
  at.for_items(item, [&](typename Step::Item& one, int i) { at.load_tokens(one, i); });
  at.load_dt(head, 0);
  if constexpr (!Cfg::kEarlyState) at.load_state(tile, state, live);
  at.load_z(z);
  if constexpr (!Cfg::kEarlyState) at.load_norm(norm_weight, norm_bias);

  // No load may move down past here, behind arithmetic that waits for another.
  sync_warp();
  if constexpr (kExchange) cluster_wait();

  const auto store_windows = [&](bool of_x) {
    if constexpr (Cfg::kHasConv)
      at.for_items(item, [&](const typename Step::Item& one, int i) {
        if (live && (i * S::kPer < S::kBlockRows) == of_x) one.store_window(windows, at.channels());
      });
  };
  at.for_items(item, [&](const typename Step::Item& one, int i) {
#pragma unroll
    for (int t = 0; t < Cfg::kTokens; ++t) reinterpret_cast<u32*>(shared.channels[t])[i] = one.result(t);
  });
  if constexpr (kClustered && !kExchange) cluster_arrive_relaxed();  // this block has read the windows
  sync_block();
  store_windows(true);

  if constexpr (S::kPasses == 1) {
    at.advance(tile, head, state, live, 0);
  } else {
    TokensTile<Cfg> ahead;
    TokensHead<Cfg> head_ahead;
#pragma unroll 1
    for (int pass = 0; pass < S::kPasses; ++pass) {
      if (pass + 1 < S::kPasses) {
        at.load_weights(head_ahead, pass + 1);
        at.load_dt(head_ahead, pass + 1);
        at.load_state(ahead, state + (pass + 1) * Cfg::kBlockM * Cfg::kDstate, live);
      }
      at.advance(tile, head, state + pass * Cfg::kBlockM * Cfg::kDstate, live, pass);
      tile = ahead;
      head = head_ahead;
    }
  }
  sync_block();

  float u[S::kTurns][S::kPer], gate[S::kTurns][S::kPer];
  at.square(z, u, gate);
  if constexpr (kClustered && !kExchange) cluster_wait();
  at.write(u, gate, norm_weight, norm_bias);
  // All sums have come, or all arrivals, so every block of the cluster has read its group's windows.
  if (at.first % S::kGroupRows == 0) store_windows(false);
}

// ---- this kernel ----

struct Config {
  using State = bf16;
  using Input = bf16;  // x, z, B, C, out; windows and weights of the convolution, weights of the norm
  using Dt = float;
  using Weight = float;  // D, dt_bias
  static constexpr int kHeadDim = 64;
  static constexpr int kDstate = 128;
  static constexpr int kHeadsPerGroup = 8;
  static constexpr bool kHasDtBias = true;
  static constexpr bool kHasD = true;
  static constexpr bool kHasSkip = true;
  static constexpr bool kHasGate = false;
  static constexpr int kTokens = 6;
  static constexpr PadOutput kPadOutput = PadOutput::zeros;

  static constexpr int kBlockM = 64;
  static constexpr int kWarps = 8;
  static constexpr int kLanesPerRow = 16;
  static constexpr int kStages = 2;
  static constexpr StatePath kStatePath = StatePath::direct;
  static constexpr bool kStreaming = true;
  static constexpr bool kEarlyState = false;

  static SSMJIT_DEVICE float delta(float dt, float dt_bias) { return fn_softplus(dt + dt_bias); }
  static SSMJIT_DEVICE float decay(float A, float dt, float delta) { return fn_exp(A * delta); }
  static SSMJIT_DEVICE float skip(float D, float x) { return D * x; }
  static SSMJIT_DEVICE float gate(float z) { return 0.0f; }

  static constexpr bool kHasConv = true;
  static constexpr int kConvWidth = 4;
  static constexpr int kConvState = 3;
  static constexpr bool kConvChannelsLast = false;
  static constexpr bool kConvBias = true;
  static SSMJIT_DEVICE float activation(float x) { return silu_of_16_bits(x); }
  static constexpr bool kHasNorm = true;
  static constexpr int kNormRows = 512;
  static constexpr bool kHasNormGate = true;
  static constexpr bool kNormBeforeGate = false;
  static constexpr bool kNormBias = false;
  static SSMJIT_DEVICE float norm_gate(float z) { return silu_of_16_bits(z); }
  static SSMJIT_DEVICE float norm_eps() { return 1e-05f; }
  static constexpr int kCluster = 8;
};

extern "C" __global__ void __launch_bounds__(256, 1) __cluster_dims__(8, 1, 1) ssmjit_layer_47bb1ff5(const __grid_constant__ LayerTokensArgs args) {
  layer_tokens<Config>(args);
}
