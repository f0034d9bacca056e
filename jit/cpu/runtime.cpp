#include "jit/cpu/runtime.h"

#include <cmath>
#include <cstdint>
#include <cstring>

#include "jit/cpu/cluster.h"

namespace ssmjit::cpu {
namespace {

using u32 = std::uint32_t;

std::byte* bytes_at(void* p) { return static_cast<std::byte*>(p); }
const std::byte* bytes_at(const void* p) { return static_cast<const std::byte*>(p); }
std::uintptr_t number(const void* p) { return reinterpret_cast<std::uintptr_t>(p); }

const void* thread() { return Cluster::current().view(); }
void* shared() { return Cluster::current().shared(); }
void at(u32 site) { Cluster::current().at(site); }
void tick(u32 site) { Cluster::current().tick(site); }
void fault(u32 kind, u32 site) { Cluster::current().fault(kind, site); }
void access(const void* p, u32 bytes, u32 site) { Cluster::current().access(number(p), bytes, site); }
void outside(std::uint64_t offset, std::uint64_t bytes, u32 variable, u32 site) {
  Cluster::current().outside(offset, bytes, variable, site);
}
void wild_call(const void* p, u32 site) { Cluster::current().wild_call(number(p), site); }
void access_range(const void* p, std::uint64_t bytes, u32 site) { Cluster::current().access(number(p), bytes, site); }

const void* exchange(u32 mask, u32 operation, const void* mine, u32 bytes) {
  return Cluster::current().exchange(mask, operation, mine, bytes);
}
void grid_wait() { Cluster::current().grid_wait(); }
void block_barrier() { Cluster::current().block_barrier(); }
void named_barrier(u32 id, u32 threads) { Cluster::current().named_barrier(id, threads, true); }
void named_barrier_arrive(u32 id, u32 threads) { Cluster::current().named_barrier(id, threads, false); }
void cluster_arrive() { Cluster::current().cluster_arrive(); }
void cluster_wait() { Cluster::current().cluster_wait(); }
void* map_shared(const void* p, u32 rank) { return Cluster::current().map_shared(bytes_at(p), rank); }
void mbarrier_init(void* b, u32 arrivals) { Cluster::current().mbarrier_init(number(b), arrivals); }
void mbarrier_arrive(void* b, u32 count) { Cluster::current().mbarrier_arrive(number(b), count); }
void mbarrier_expect(void* b, u32 bytes) { Cluster::current().mbarrier_expect(number(b), bytes); }
u32 mbarrier_test(void* b, u32 parity) { return Cluster::current().mbarrier_test(number(b), parity) ? 1 : 0; }
void mbarrier_wait(void* b, u32 parity) { Cluster::current().mbarrier_wait(number(b), parity); }
void copy(u32 queue, void* to, const void* from, u32 bytes, u32 read, u32 alignment) {
  Cluster::current().check_copy(queue == 0, bytes_at(to), bytes_at(from), bytes, read);
  Cluster::current().copy(queue, bytes_at(to), bytes_at(from), bytes, read, alignment);
}
void copy_commit(u32 queue) { Cluster::current().copy_commit(queue); }
void copy_wait(u32 queue, u32 pending) { Cluster::current().copy_wait(queue, pending); }
void copy_wait_read(u32 queue, u32 pending) { Cluster::current().copy_wait_read(queue, pending); }
void copy_to_barrier(void* to, const void* from, u32 bytes, void* barrier) {
  Cluster::current().check_copy(true, bytes_at(to), bytes_at(from), bytes, bytes);
  Cluster::current().copy_to_barrier(bytes_at(to), bytes_at(from), bytes, number(barrier));
}
void store_to_barrier(void* to, u32 value, void* barrier) {
  Cluster::current().store_to_barrier(bytes_at(to), value, number(barrier));
}
void matrix_row(const void* row) { Cluster::current().matrix_row(number(row)); }
void load_maybe_appended(void* to, const void* from, u32 bytes) {
  Cluster::current().load_maybe_appended(bytes_at(to), bytes_at(from), bytes);
}

template <class R, class... A>
void* address(R (*function)(A...)) {
  return reinterpret_cast<void*>(function);
}
using Float1 = float (*)(float);
using Float3 = float (*)(float, float, float);

}  // namespace

std::span<const RuntimeFunction> runtime_functions() {
  static const RuntimeFunction functions[] = {
      {"ssmjit_cpu_thread", address(thread), false},
      {"ssmjit_cpu_shared", address(shared), false},
      {"ssmjit_cpu_at", address(at), false},
      {"ssmjit_cpu_tick", address(tick), false},
      {"ssmjit_cpu_fault", address(fault), false},
      {"ssmjit_cpu_access", address(access), false},
      {"ssmjit_cpu_access_range", address(access_range), false},
      {"ssmjit_cpu_outside", address(outside), false},
      {"ssmjit_cpu_wild_call", address(wild_call), false},
      {"ssmjit_cpu_exchange", address(exchange), true},
      {"ssmjit_cpu_grid_wait", address(grid_wait), false},
      {"ssmjit_cpu_block_barrier", address(block_barrier), true},
      {"ssmjit_cpu_named_barrier", address(named_barrier), true},
      {"ssmjit_cpu_named_barrier_arrive", address(named_barrier_arrive), true},
      {"ssmjit_cpu_cluster_arrive", address(cluster_arrive), true},
      {"ssmjit_cpu_cluster_wait", address(cluster_wait), true},
      {"ssmjit_cpu_map_shared", address(map_shared), true},
      {"ssmjit_cpu_mbarrier_init", address(mbarrier_init), true},
      {"ssmjit_cpu_mbarrier_arrive", address(mbarrier_arrive), true},
      {"ssmjit_cpu_mbarrier_expect", address(mbarrier_expect), true},
      {"ssmjit_cpu_mbarrier_test", address(mbarrier_test), true},
      {"ssmjit_cpu_mbarrier_wait", address(mbarrier_wait), true},
      {"ssmjit_cpu_copy", address(copy), true},
      {"ssmjit_cpu_copy_commit", address(copy_commit), true},
      {"ssmjit_cpu_copy_wait", address(copy_wait), true},
      {"ssmjit_cpu_copy_wait_read", address(copy_wait_read), true},
      {"ssmjit_cpu_copy_to_barrier", address(copy_to_barrier), true},
      {"ssmjit_cpu_store_to_barrier", address(store_to_barrier), true},
      {"ssmjit_cpu_matrix_row", address(matrix_row), true},
      {"ssmjit_cpu_load_maybe_appended", address(load_maybe_appended), true},
      {"expf", address(static_cast<Float1>(std::exp)), false},
      {"logf", address(static_cast<Float1>(std::log)), false},
      {"log1pf", address(static_cast<Float1>(std::log1p)), false},
      {"tanhf", address(static_cast<Float1>(std::tanh)), false},
      {"sqrtf", address(static_cast<Float1>(std::sqrt)), false},
      {"fmaf", address(static_cast<Float3>(std::fma)), false},
      {"fminf", address(static_cast<float (*)(float, float)>(std::fmin)), false},
      {"fmaxf", address(static_cast<float (*)(float, float)>(std::fmax)), false},
      {"memcpy", reinterpret_cast<void*>(static_cast<void* (*)(void*, const void*, std::size_t)>(std::memcpy)), false},
      {"memmove", reinterpret_cast<void*>(static_cast<void* (*)(void*, const void*, std::size_t)>(std::memmove)),
       false},
      {"memset", reinterpret_cast<void*>(static_cast<void* (*)(void*, int, std::size_t)>(std::memset)), false},
  };
  return functions;
}

}  // namespace ssmjit::cpu
