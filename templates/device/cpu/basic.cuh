#pragma once
#include "runtime.cuh"
// CPU bodies of device/basic.cuh.

SSMJIT_DEVICE int thread_index() { return static_cast<int>(ssmjit_cpu_thread()->thread); }
SSMJIT_DEVICE int lane_index() { return static_cast<int>(ssmjit_cpu_thread()->thread & 31u); }
SSMJIT_DEVICE int block_x() { return static_cast<int>(ssmjit_cpu_thread()->block_x); }
SSMJIT_DEVICE int block_y() { return static_cast<int>(ssmjit_cpu_thread()->block_y); }
SSMJIT_DEVICE int block_threads() { return static_cast<int>(ssmjit_cpu_thread()->block_threads); }
SSMJIT_DEVICE int grid_x() { return static_cast<int>(ssmjit_cpu_thread()->grid_x); }
SSMJIT_DEVICE void sync_warp() { ssmjit_cpu_exchange(0xffffffffu, kSsmjitCpuSync, nullptr, 0); }

template <class T>
SSMJIT_DEVICE void keep(T*&) {}
SSMJIT_DEVICE void keep(int&) {}
SSMJIT_DEVICE void keep(float&) {}

// A launch stands alone here, so nothing is waited for; what is done before the wait is checked.
SSMJIT_DEVICE void grid_dependency_wait() { ssmjit_cpu_grid_wait(); }
SSMJIT_DEVICE void grid_dependency_trigger() {}
