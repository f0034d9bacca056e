#pragma once
#include "basic.cuh"
// CPU bodies of device/barrier.cuh.

SSMJIT_DEVICE void sync_block() { ssmjit_cpu_block_barrier(); }
SSMJIT_DEVICE void sync_named(int barrier, int threads) {
  ssmjit_cpu_named_barrier(static_cast<u32>(barrier), static_cast<u32>(threads));
}
SSMJIT_DEVICE void arrive_named(int barrier, int threads) {
  ssmjit_cpu_named_barrier_arrive(static_cast<u32>(barrier), static_cast<u32>(threads));
}
