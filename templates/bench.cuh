#pragma once
#include "device/basic.cuh"
#include "device/convert.cuh"
#include "device/memory.cuh"
#include "rounding.cuh"
// The kernels that measuring needs: the memory floor, a producer of a layer's inputs, random contents, a hash.

// The memory floor: every vector of [0, read) is read; the first written_back of them are written in place; then
// [0, written_new) of `elsewhere` and [0, appended) of `rows` are written. kUnroll vectors a thread are asked for
// before the first is used.
struct PassArgs {
  void* data;
  void* elsewhere;
  void* rows;
  u64 read;  // in 16-byte vectors, like the next three
  u64 written_back;
  u64 written_new;
  u64 appended;
  u32 key;
  int dependent;  // 1: launched with programmatic dependent launch
};
template <bool kStreaming>
SSMJIT_DEVICE void write_elsewhere(const PassArgs& args) {
  for (u64 i = static_cast<u64>(block_x()) * block_threads() + thread_index(); i < args.written_new + args.appended;
       i += static_cast<u64>(grid_x()) * block_threads()) {
    Vec16* to = i < args.written_new ? static_cast<Vec16*>(args.elsewhere) + i
                                     : static_cast<Vec16*>(args.rows) + (i - args.written_new);
    store_global<kStreaming>(to, Vec16{{args.key, args.key, args.key, args.key}});
  }
}
template <int kUnroll, bool kStreaming>
SSMJIT_DEVICE void memory_pass(const PassArgs& args) {
  // As a step does it: what is read may overtake the launch in front, what is written elsewhere may not.
  if (args.dependent != 0)
    grid_dependency_trigger();
  else
    write_elsewhere<kStreaming>(args);
  Vec16* data = static_cast<Vec16*>(args.data);
  const u64 block = static_cast<u64>(block_threads()) * kUnroll;
  u32 seen = 0;
  for (u64 base = static_cast<u64>(block_x()) * block + thread_index(); base < args.read;
       base += static_cast<u64>(grid_x()) * block) {
    Vec16 v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const u64 i = base + u * static_cast<u64>(block_threads());
      v[u] = i < args.read ? load_global<false>(data + i) : Vec16{};
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const u64 i = base + u * static_cast<u64>(block_threads());
      if (i < args.written_back) {
#pragma unroll
        for (int w = 0; w < 4; ++w) v[u].word[w] ^= args.key;
        store_global<kStreaming>(data + i, v[u]);
      } else {
        seen ^= v[u].word[0] ^ v[u].word[1] ^ v[u].word[2] ^ v[u].word[3];
      }
    }
  }
  if (args.dependent != 0) {
    grid_dependency_wait();
    write_elsewhere<kStreaming>(args);
  }
  // Keeps the reads that nothing else uses.
  if (seen == 0x9e3779b9u + args.key) static_cast<u32*>(args.elsewhere)[0] = seen;
}

// The stand-in for what runs before the step in a layer: writes the layer's x, B, C and dt, and signals at its start,
// so that a dependent launch may overlap it.
struct ProduceArgs {
  const void* source;
  void* target;
  u64 vectors;
};
SSMJIT_DEVICE void produce(const ProduceArgs& args) {
  grid_dependency_trigger();
  for (u64 i = static_cast<u64>(block_x()) * block_threads() + thread_index(); i < args.vectors;
       i += static_cast<u64>(grid_x()) * block_threads())
    store_global<false>(static_cast<Vec16*>(args.target) + i,
                        load_global<false>(static_cast<const Vec16*>(args.source) + i));
}

// A well-mixed word for (seed, index): the finalizer of SplitMix64 (Steele, Lea, Flood 2014).
SSMJIT_DEVICE u32 mixed(u64 seed, u64 index) {
  u64 v = index * 0x9e3779b97f4a7c15ull + seed;
  v = (v ^ (v >> 30)) * 0xbf58476d1ce4e5b9ull;
  v = (v ^ (v >> 27)) * 0x94d049bb133111ebull;
  return static_cast<u32>((v ^ (v >> 31)) >> 16);
}

SSMJIT_DEVICE unsigned char narrow_to_byte(float v, bool integer) {
  const float word[4] = {v, 0.0f, 0.0f, 0.0f};
  return static_cast<unsigned char>(integer ? pack_word(word, i8{}) : pack_word(word, e4m3{}));
}

// `count` elements, about normal: the sum of four uniform draws, scaled to `mean` and `deviation`.
struct FillArgs {
  void* data;
  u64 count;
  u64 seed;
  float mean;
  float deviation;
  int dtype;  // 0 fp32, 1 bf16, 2 fp16, 3 int8, 4 e4m3, 5 int16
};
SSMJIT_DEVICE void fill(const FillArgs& args) {
  for (u64 i = static_cast<u64>(block_x()) * block_threads() + thread_index(); i < args.count;
       i += static_cast<u64>(grid_x()) * block_threads()) {
    const u32 a = mixed(args.seed, 2 * i), b = mixed(args.seed, 2 * i + 1);
    const float sum = static_cast<float>(a & 0xffffu) + static_cast<float>(a >> 16) + static_cast<float>(b & 0xffffu) +
                      static_cast<float>(b >> 16);
    const float v = args.mean + args.deviation * (sum * (1.0f / 65536.0f) - 2.0f) * 1.7320508f;
    if (args.dtype == 0)
      static_cast<float*>(args.data)[i] = v;
    else if (args.dtype == 1)
      narrow(v, static_cast<bf16*>(args.data)[i]);
    else if (args.dtype == 2)
      narrow(v, static_cast<f16*>(args.data)[i]);
    else if (args.dtype == 5)
      static_cast<i16*>(args.data)[i] = static_cast<i16>(nearest_int<32767>(v));
    else
      static_cast<unsigned char*>(args.data)[i] = narrow_to_byte(v, args.dtype == 3);
  }
}

// Adds a position-dependent hash of `words` 32-bit words to *result; the order of blocks does not matter.
struct HashArgs {
  const void* data;
  u64 words;
  void* result;  // u64
};
SSMJIT_DEVICE void hash(const HashArgs& args) {
  u64 sum = 0;
  for (u64 i = static_cast<u64>(block_x()) * block_threads() + thread_index(); i < args.words;
       i += static_cast<u64>(grid_x()) * block_threads())
    sum += static_cast<u64>(mixed(static_cast<const u32*>(args.data)[i] + 0x51ed270b11ull, i)) << (i % 32);
  add_global(static_cast<u64*>(args.result), sum);
}

#define SSMJIT_PASS(name, unroll, streaming) \
  extern "C" __global__ void name(const __grid_constant__ PassArgs args) { memory_pass<unroll, streaming>(args); }
SSMJIT_PASS(ssmjit_pass_1, 1, false)
SSMJIT_PASS(ssmjit_pass_4, 4, false)
SSMJIT_PASS(ssmjit_pass_8, 8, false)
SSMJIT_PASS(ssmjit_pass_1_streaming, 1, true)
SSMJIT_PASS(ssmjit_pass_4_streaming, 4, true)
SSMJIT_PASS(ssmjit_pass_8_streaming, 8, true)
extern "C" __global__ void ssmjit_produce(const __grid_constant__ ProduceArgs args) { produce(args); }
extern "C" __global__ void ssmjit_fill(const __grid_constant__ FillArgs args) { fill(args); }
extern "C" __global__ void ssmjit_hash(const __grid_constant__ HashArgs args) { hash(args); }
