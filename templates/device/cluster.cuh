#pragma once
#include "async_copy.cuh"
#include "basic.cuh"
#include "memory.cuh"
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
