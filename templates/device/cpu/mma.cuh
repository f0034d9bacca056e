#pragma once
#include "basic.cuh"
#include "convert.cuh"
#include "memory.cuh"
// CPU bodies of device/mma.cuh: a product is a sum in fp32 in the order of k, so its last bits are not the GPU's.

template <int kA, int kB>
struct SsmjitCpuOperands {
  u32 a[kA], b[kB];
};
// d += A * B, where element e (0 to kPerWord - 1) of a word stands for the column or row of A and B that the fragments
// of the instruction give it: columns kPerWord t + e, and past the first 4 kPerWord of them in the next registers.
template <int kPerWord, int kA, int kB, class Widen>
SSMJIT_DEVICE void ssmjit_cpu_mma(float (&d)[4], const u32 (&a)[kA], const u32 (&b)[kB], u32 operation,
                                  Widen widen_element) {
  static_assert(kA == 2 * kB);
  SsmjitCpuOperands<kA, kB> mine;
  for (int i = 0; i < kA; ++i) mine.a[i] = a[i];
  for (int i = 0; i < kB; ++i) mine.b[i] = b[i];
  const SsmjitCpuOperands<kA, kB>* all = ssmjit_cpu_all_lanes(0xffffffffu, operation, mine);
  const int g = lane_index() / 4, t = lane_index() % 4;
  float sum[4] = {0, 0, 0, 0};
  for (int part = 0; part < kB; ++part)
    for (int quarter = 0; quarter < 4; ++quarter)
      for (int e = 0; e < kPerWord; ++e) {
        const SsmjitCpuOperands<kA, kB>& row = all[4 * g + quarter];
        const float upper = widen_element(row.a[2 * part], e), lower = widen_element(row.a[2 * part + 1], e);
        for (int c = 0; c < 2; ++c) {
          const float column = widen_element(all[4 * (2 * t + c) + quarter].b[part], e);
          sum[c] += upper * column;
          sum[2 + c] += lower * column;
        }
      }
  for (int i = 0; i < 4; ++i) d[i] += sum[i];
}
struct SsmjitCpuWidenBf16 {
  SSMJIT_DEVICE float operator()(u32 word, int e) const { return widen(bf16{static_cast<u16>(word >> (16 * e))}); }
};
struct SsmjitCpuWidenF16 {
  SSMJIT_DEVICE float operator()(u32 word, int e) const { return widen(f16{static_cast<u16>(word >> (16 * e))}); }
};
struct SsmjitCpuWidenTf32 {
  SSMJIT_DEVICE float operator()(u32 word, int) const { return __builtin_bit_cast(float, word & 0xffffe000u); }
};

SSMJIT_DEVICE void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], bf16) {
  ssmjit_cpu_mma<2>(d, a, b, kSsmjitCpuMatrix, SsmjitCpuWidenBf16{});
}
SSMJIT_DEVICE void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], f16) {
  ssmjit_cpu_mma<2>(d, a, b, kSsmjitCpuMatrix, SsmjitCpuWidenF16{});
}
SSMJIT_DEVICE void mma_m16n8k8(float (&d)[4], const u32 (&a)[2], const u32 (&b)[1], bf16) {
  ssmjit_cpu_mma<2>(d, a, b, kSsmjitCpuMatrix, SsmjitCpuWidenBf16{});
}
SSMJIT_DEVICE void mma_m16n8k8(float (&d)[4], const u32 (&a)[2], const u32 (&b)[1], f16) {
  ssmjit_cpu_mma<2>(d, a, b, kSsmjitCpuMatrix, SsmjitCpuWidenF16{});
}

SSMJIT_DEVICE u32 narrow_tf32(float v) {
  const u32 bits = __builtin_bit_cast(u32, v);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffffffu;
  return (bits + 0x1000u) & 0xffffe000u;
}
SSMJIT_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  ssmjit_cpu_mma<1>(d, a, b, kSsmjitCpuMatrix, SsmjitCpuWidenTf32{});
}

// The lanes bring their rows' addresses (8 a matrix; those of further lanes do not count); the words are read and
// written by plain, checked accesses.
template <int kMatrices, class T>
SSMJIT_DEVICE T* const* ssmjit_cpu_matrix_rows(u32 operation, T* row) {
  if (lane_index() < 8 * kMatrices) ssmjit_cpu_matrix_row(row);
  return ssmjit_cpu_all_lanes(0xffffffffu, operation, row);
}
template <int kMatrices>
SSMJIT_DEVICE void load_matrix(u32 (&word)[kMatrices], const void* row) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  const void* const* rows = ssmjit_cpu_matrix_rows<kMatrices>(kSsmjitCpuLoadMatrix, row);
  for (int m = 0; m < kMatrices; ++m)
    word[m] = static_cast<const SsmjitCpuWord*>(rows[8 * m + lane_index() / 4])[lane_index() % 4];
}
template <int kMatrices>
SSMJIT_DEVICE void load_matrix_transposed(u32 (&word)[kMatrices], const void* row) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  const void* const* rows = ssmjit_cpu_matrix_rows<kMatrices>(kSsmjitCpuLoadMatrix, row);
  const int g = lane_index() / 4, t = lane_index() % 4;
  for (int m = 0; m < kMatrices; ++m) {
    const u32 low = static_cast<const SsmjitCpuHalf*>(rows[8 * m + 2 * t])[g];
    word[m] = low | static_cast<u32>(static_cast<const SsmjitCpuHalf*>(rows[8 * m + 2 * t + 1])[g]) << 16;
  }
}
template <int kMatrices>
SSMJIT_DEVICE void store_matrix(void* row, const u32 (&word)[kMatrices]) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  void* const* rows = ssmjit_cpu_matrix_rows<kMatrices>(kSsmjitCpuStoreMatrix, row);
  for (int m = 0; m < kMatrices; ++m)
    static_cast<SsmjitCpuWord*>(rows[8 * m + lane_index() / 4])[lane_index() % 4] = word[m];
}
template <int kMatrices>
SSMJIT_DEVICE void store_matrix_transposed(void* row, const u32 (&word)[kMatrices]) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  void* const* rows = ssmjit_cpu_matrix_rows<kMatrices>(kSsmjitCpuStoreMatrix, row);
  const int g = lane_index() / 4, t = lane_index() % 4;
  for (int m = 0; m < kMatrices; ++m) {
    static_cast<SsmjitCpuHalf*>(rows[8 * m + 2 * t])[g] = static_cast<u16>(word[m]);
    static_cast<SsmjitCpuHalf*>(rows[8 * m + 2 * t + 1])[g] = static_cast<u16>(word[m] >> 16);
  }
}
