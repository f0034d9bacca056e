#pragma once
// What the CPU bodies of the device operations may call: the runtime of jit/cpu, which runs each CUDA thread as a
// fiber. The files of this folder stand before an emitted source where SSMJIT_CPU is defined; an operation of
// templates/device/ then has its body here. All of them are read, whatever the source includes.
//
// - Nothing runs at the same time within a cluster: a thread keeps its core until it meets others or waits.
// - Barriers order memory: what a thread wrote before a barrier (the warp's included) or a completed copy is ordered
//   before what those that were there do after it. An exchange of any other kind orders nothing, as shuffles and votes
//   order nothing in CUDA. Other accesses of the same bytes are reported as races.
// - Plain loads and stores of a body are checked as the kernel's own, at the line that called the operation. What a
//   runtime function reads or writes (copies) is checked there. Memory it hands out (exchange) needs no check.
// - Addresses are plain pointers, shared memory's too, a peer's included.

#define __global__ __attribute__((device))
#define __device__ __attribute__((device))
#define __host__ __attribute__((host))
#define __shared__ __attribute__((shared, annotate("ssmjit_shared")))
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __restrict__ __restrict

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

#define SSMJIT_DEVICE __device__ __forceinline__

// Where a thread stands; the grid has two dimensions, a block one, a cluster neighbours along x.
struct SsmjitCpuThread {
  u32 thread, block_threads;
  u32 block_x, block_y, grid_x, grid_y;
  u32 cluster_rank, cluster_size;
};

extern "C" {
// The same for all of a thread's life, so the compiler may keep it.
__device__ __attribute__((const)) const SsmjitCpuThread* ssmjit_cpu_thread();

// The lanes of `mask` meet, each with `bytes` (at most 512) at `mine`; returns all lanes' bytes, lane i's at i * bytes,
// until the lane's exchange after the next one. `operation`: lanes that bring different ones are reported as divergent;
// kSsmjitCpuSync is the warp barrier, the only one that orders memory.
__device__ const void* ssmjit_cpu_exchange(u32 mask, u32 operation, const void* mine, u32 bytes);

// The launches that this one depends on have ended.
__device__ void ssmjit_cpu_grid_wait();

// All threads of the block meet, those that have returned too: then it never ends. All lanes of a warp come to it by
// the same call.
__device__ __attribute__((convergent)) void ssmjit_cpu_block_barrier();
// `threads` threads of the block, in whole warps, meet at barrier `id` (1 to 15); `arrive` counts the caller's warp in
// and goes on. All lanes of a warp come to it by the same call.
__device__ __attribute__((convergent)) void ssmjit_cpu_named_barrier(u32 id, u32 threads);
__device__ __attribute__((convergent)) void ssmjit_cpu_named_barrier_arrive(u32 id, u32 threads);
// All threads of the cluster meet, in two halves.
__device__ void ssmjit_cpu_cluster_arrive();
__device__ void ssmjit_cpu_cluster_wait();
// The address, in the shared memory of the cluster's block `rank`, of what lies at `shared` in the caller's.
__device__ void* ssmjit_cpu_map_shared(const void* shared, u32 rank);

// mbarrier: 8 bytes of shared memory, anyone's in the cluster. A phase is over when `arrivals` have come and the bytes
// that copies brought equal those expected.
__device__ void ssmjit_cpu_mbarrier_init(void* barrier, u32 arrivals);
__device__ void ssmjit_cpu_mbarrier_arrive(void* barrier, u32 count);
__device__ void ssmjit_cpu_mbarrier_expect(void* barrier, u32 bytes);  // more bytes in this phase; no arrival
__device__ u32 ssmjit_cpu_mbarrier_test(void* barrier, u32 parity);    // whether the phase of this parity is over
__device__ void ssmjit_cpu_mbarrier_wait(void* barrier, u32 parity);   // returns when it is

// Asynchronous copies of a thread's own, in groups. The bytes move at the wait and not before: until then nobody may
// read or write `to`, which holds poison. `read` bytes come from `from`, the rest up to `bytes` becomes zero. Queue 0:
// cp.async, from global to shared memory; queue 1: bulk copies by groups, from shared to global memory.
__device__ void ssmjit_cpu_copy(u32 queue, void* to, const void* from, u32 bytes, u32 read, u32 alignment);
__device__ void ssmjit_cpu_copy_commit(u32 queue);
__device__ void ssmjit_cpu_copy_wait(u32 queue, u32 pending);  // until at most `pending` groups are under way
// Until at most `pending` groups are still to read; the others' sources may be written, their targets not yet touched.
__device__ void ssmjit_cpu_copy_wait_read(u32 queue, u32 pending);
// An asynchronous copy from global to shared memory that counts its bytes into the phase of an mbarrier (addresses and
// size: multiples of 16). The bytes move when that phase ends.
__device__ void ssmjit_cpu_copy_to_barrier(void* to, const void* from, u32 bytes, void* barrier);

// A store of 4 bytes to shared memory of the cluster that counts them into the phase of an mbarrier of the same block.
// They move when that phase ends.
__device__ void ssmjit_cpu_store_to_barrier(void* to, u32 value, void* barrier);

// Checks an address that a matrix load or store is given: 16 bytes of shared memory, aligned to 16.
__device__ void ssmjit_cpu_matrix_row(const void* row);

// Reads bytes that another thread of the launch may be writing: they come as poison (0xff) where that has happened, or
// where nobody ever wrote. Never a race.
__device__ void ssmjit_cpu_load_maybe_appended(void* to, const void* from, u32 bytes);

__device__ float expf(float);
__device__ float logf(float);
__device__ float log1pf(float);
__device__ float tanhf(float);
}

// All lanes of the warp meet, each with a value; lane i's is [i] of the result.
template <class T>
SSMJIT_DEVICE const T* ssmjit_cpu_all_lanes(u32 mask, u32 operation, const T& mine) {
  return static_cast<const T*>(ssmjit_cpu_exchange(mask, operation, &mine, sizeof(T)));
}
// Operations of one warp; lanes may meet only at the same.
enum : u32 {
  kSsmjitCpuSync = 1,
  kSsmjitCpuShuffle,
  kSsmjitCpuSum,
  kSsmjitCpuLargest,
  kSsmjitCpuScan,
  kSsmjitCpuVote,
  kSsmjitCpuMatrix,
  kSsmjitCpuLoadMatrix,
  kSsmjitCpuStoreMatrix
};
