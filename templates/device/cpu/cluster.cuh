#pragma once
#include "async_copy.cuh"
#include "basic.cuh"
#include "memory.cuh"
// CPU bodies of device/cluster.cuh.

SSMJIT_DEVICE int cluster_rank() { return static_cast<int>(ssmjit_cpu_thread()->cluster_rank); }
SSMJIT_DEVICE int cluster_size() { return static_cast<int>(ssmjit_cpu_thread()->cluster_size); }
SSMJIT_DEVICE void cluster_arrive() { ssmjit_cpu_cluster_arrive(); }
// Orders all that cluster_arrive does: the executor can't tell reads that were used from others.
SSMJIT_DEVICE void cluster_arrive_relaxed() { ssmjit_cpu_cluster_arrive(); }
SSMJIT_DEVICE void cluster_wait() { ssmjit_cpu_cluster_wait(); }

struct ClusterAddress {
  void* pointer;
};
SSMJIT_DEVICE ClusterAddress cluster_address(const void* shared, int rank) {
  return {ssmjit_cpu_map_shared(shared, static_cast<u32>(rank))};
}
SSMJIT_DEVICE u32 cluster_load_b32(ClusterAddress address) { return *static_cast<SsmjitCpuWord*>(address.pointer); }
SSMJIT_DEVICE void cluster_store_b32(ClusterAddress address, u32 v) {
  *static_cast<SsmjitCpuWord*>(address.pointer) = v;
}
SSMJIT_DEVICE Vec16 cluster_load(ClusterAddress address) { return ssmjit_cpu_load16(address.pointer); }
SSMJIT_DEVICE void cluster_store(ClusterAddress address, const Vec16& v) {
  *static_cast<SsmjitCpuWord4*>(address.pointer) = __builtin_bit_cast(SsmjitCpuWord4, v);
}

SSMJIT_DEVICE void barrier_arrive_cluster(ClusterAddress address) { ssmjit_cpu_mbarrier_arrive(address.pointer, 1); }
SSMJIT_DEVICE void barrier_wait_cluster(Barrier* b, u32 parity) { ssmjit_cpu_mbarrier_wait(b, parity); }

SSMJIT_DEVICE void cluster_store_async_b32(ClusterAddress address, u32 v, ClusterAddress barrier) {
  ssmjit_cpu_store_to_barrier(address.pointer, v, barrier.pointer);
}
SSMJIT_DEVICE void cluster_store_async(ClusterAddress address, const Vec16& v, ClusterAddress barrier) {
  u32* const to = static_cast<u32*>(address.pointer);
#pragma unroll
  for (int w = 0; w < 4; ++w) ssmjit_cpu_store_to_barrier(to + w, v.word[w], barrier.pointer);
}
