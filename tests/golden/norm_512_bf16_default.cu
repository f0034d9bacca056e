// ssmjit 0.1.0: norm of 4096 channels in groups of 512, eps 1e-05, gate silu(z) before the norm, input bf16, weights bf16
//
// description: {"schema":1,"op":"norm","tokens":1,"input":"bf16","weights":"bf16","norm":{"channels":4096,"group_size":512,"eps":1e-05,"gate":"silu(z)","before_gate":false,"bias":false},"aligned_rows":true}
// plan: block_m=1,warps=2,lanes_per_row=32,heads_per_block=1,stages=1,state_path=direct,streaming=true,early_state=false,min_blocks_per_sm=1
//   block_m: rows (tokens) a block takes
//   warps: warps a block; each group gets warps / heads_per_block of them
//   lanes_per_row: lanes of a warp, all of which share one group of channels
//   heads_per_block: groups of channels a block takes, side by side
//   stages: groups on their way to a warp at once
//   state_path: how x and z are read: straight into registers
//   streaming: whether loads of x and z bypass the L1
//   early_state: whether a dependent launch asks for weight and bias before it waits for the launch in front
//   min_blocks_per_sm: blocks of an SM that the compiler leaves registers for
//
// A call moves, for each request: 16384 bytes read, 0 of them written back, 8192 written elsewhere.
// Launch for channels = 4096: grid (8, batch), block 64, dynamic shared memory 0 bytes; entry ssmjit_norm_cf416d7c.
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

// ---- launch.cuh ----

// What a kernel is compiled for and told, beside its sizes and tensors.

// How the state comes to the lane that uses it; each kernel says what it makes of these.
enum class StatePath { direct, cp_async, bulk };
// What the output row of a pad request holds.
enum class PadOutput { zeros, untouched, as_if_zero_state };
// Programmatic dependent launch: how far a kernel may come before the launch in front of it has ended.
enum : int { kPdlOff = 0, kPdlWaitFirst = 1, kPdlEarlyState = 2 };

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

// ---- norm_args.cuh ----

// What a launch of the gated norm is given, by value, in one struct (also read by the host, so plain C++). Strides
// count elements. Pointers that the description has no use for are null.

struct NormArgs {
  const void* x;  // [batch, tokens, channels]
  long long x_stride;
  long long x_token_stride;
  const void* z;  // [batch, tokens, channels], gate
  long long z_stride;
  long long z_token_stride;
  const void* weight;  // [channels]
  const void* bias;    // [channels]
  void* out;           // [batch, tokens, channels]; may be x or z
  long long out_stride;
  long long out_token_stride;
  int channels;
  int pdl;  // 0: no wait; 1: wait, then read; 2: a kernel with kEarlyState reads weight and bias, waits, then reads the
            // rest; any other does as for 1
};

// ---- norm.cuh ----

// RMSNorm over groups of channels, with a gate:
//
//   gate first:    u = x * Cfg::gate(z);   y = u / sqrt(mean of u * u + eps) * weight + bias
//   before_gate:   y = (x / sqrt(mean of x * x + eps) * weight + bias) * Cfg::gate(z)
//
// the mean over the group, all in fp32, one rounding at the end. Everything is read once, by the lane that writes the
// output of the same channels (so out may be x or z), and waits for nothing but the launch in front: a group's lanes
// ask for all of x and z, and for weight and bias, before they use the first. A group has warps / groups_per_block
// warps, a block groups_per_block neighbouring groups of one row.

// Sizes that follow from Cfg. Cfg is a struct of constants: kTokens, kGroupSize, the types Input and Weight, kEps,
// flags, the plan's fields, and the function gate.
template <class Cfg>
struct NormShape {
  using Input = typename Cfg::Input;
  static constexpr int kGroupWarps = Cfg::kWarps / Cfg::kGroupsPerBlock;
  static constexpr int kLanes = 32 * kGroupWarps;
  // Elements that are read at once: a 16-byte vector, or one where rows may lie anywhere.
  static constexpr int kWidth = Cfg::kAlignedRows ? 16 / static_cast<int>(sizeof(Input)) : 1;
  static constexpr int kGroupVectors = Cfg::kGroupSize / kWidth;
  static constexpr int kVectors = (kGroupVectors + kLanes - 1) / kLanes;  // a lane; the last may be past the end
  static constexpr bool kRagged = kGroupVectors % kLanes != 0;
  static_assert(Cfg::kGroupSize % kWidth == 0 && Cfg::kWarps % Cfg::kGroupsPerBlock == 0);
};

// kWidth neighbouring elements as they lie in memory, widened where they are used: a load must not make the next wait.
template <class T, int kWidth>
struct NormSpan {
  static constexpr int kWords = kWidth * static_cast<int>(sizeof(T)) / 4;
  static constexpr int kPer = kPerWord<T>;
  static constexpr bool kOne = kWidth == 1;
  T element;
  u32 word[kOne ? 1 : kWords];

  // kStreaming: past the L1, where it is a vector of 16 bytes.
  template <bool kStreaming>
  SSMJIT_DEVICE void load(const T* p) {
    if constexpr (kOne) {
      load_now(p, element);
    } else if constexpr (kStreaming && kWords == 4) {
      const Vec16 v = load_global<true>(p);
#pragma unroll
      for (int i = 0; i < 4; ++i) word[i] = v.word[i];
    } else {
      load_now<kWords>(p, word);
    }
  }
  SSMJIT_DEVICE void zero() {
    element = T{};
#pragma unroll
    for (u32& w : word) w = 0;
  }
  SSMJIT_DEVICE void widen_to(float (&v)[kWidth]) const {
    if constexpr (kOne) {
      v[0] = widen(element);
    } else {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        float part[kPer];
        unpack_word(word[w], part, T{});
#pragma unroll
        for (int e = 0; e < kPer; ++e) v[w * kPer + e] = part[e];
      }
    }
  }
};

// Rounds to T, once, and stores.
template <class T, int kWidth>
SSMJIT_DEVICE void store_norm(const float (&v)[kWidth], T* p) {
  if constexpr (kWidth == 1) {
    narrow(v[0], *p);
  } else {
    constexpr int kPer = kPerWord<T>;
    Vec16 out;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      float part[kPer];
#pragma unroll
      for (int e = 0; e < kPer; ++e) part[e] = v[w * kPer + e];
      out.word[w] = pack_word(part, T{});
    }
    store_global<false>(p, out);
  }
}

template <class Cfg>
SSMJIT_DEVICE float norm_gate(float z) {
  if constexpr (Cfg::kFastSilu)
    return silu_of_16_bits(z);
  else
    return Cfg::gate(z);
}

// Grid: x = groups / groups_per_block, rounded up, y = batch * tokens. Block: 32 * warps threads.
template <class Cfg>
SSMJIT_DEVICE void norm(const NormArgs& args) {
  using S = NormShape<Cfg>;
  using Input = typename Cfg::Input;
  using Weight = typename Cfg::Weight;
  const int place = thread_index() / S::kLanes;  // of the group in the block
  const int lane = thread_index() % S::kLanes;
  const int group = block_x() * Cfg::kGroupsPerBlock + place;
  const bool live = Cfg::kGroupsPerBlock == 1 || group * Cfg::kGroupSize < args.channels;
  const int request = block_y() / Cfg::kTokens, token = block_y() % Cfg::kTokens;
  // Of the lane's first vector.
  const i64 channel = static_cast<i64>(group) * Cfg::kGroupSize + lane * S::kWidth;
  const auto at = [&](i64 stride, i64 token_stride) { return request * stride + token * token_stride + channel; };
  const auto has = [&](int v) {
    return live && (!S::kRagged || v + 1 < S::kVectors || v * S::kLanes + lane < S::kGroupVectors);
  };
  const auto element = [](int v) { return v * S::kLanes * S::kWidth; };

  NormSpan<Input, S::kWidth> x[S::kVectors], z[S::kVectors];
  NormSpan<Weight, S::kWidth> weight[S::kVectors], bias[S::kVectors];
  const auto load_weights = [&] {
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v) {
      weight[v].zero();
      if constexpr (Cfg::kHasBias) bias[v].zero();
      if (!has(v)) continue;
      weight[v].template load<false>(static_cast<const Weight*>(args.weight) + channel + element(v));
      if constexpr (Cfg::kHasBias)
        bias[v].template load<false>(static_cast<const Weight*>(args.bias) + channel + element(v));
    }
  };

  if (args.pdl != kPdlOff) {
    grid_dependency_trigger();
    if (!Cfg::kEarlyState || args.pdl == kPdlWaitFirst) grid_dependency_wait();
  }
  if constexpr (Cfg::kEarlyState) {
    load_weights();
    grid_dependency_wait();
  }
  const Input* x_row = static_cast<const Input*>(args.x) + at(args.x_stride, args.x_token_stride);
#pragma unroll
  for (int v = 0; v < S::kVectors; ++v) {
    x[v].zero();
    if (has(v)) x[v].template load<Cfg::kStreaming>(x_row + element(v));
  }
  if constexpr (Cfg::kHasGate) {
    const Input* z_row = static_cast<const Input*>(args.z) + at(args.z_stride, args.z_token_stride);
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v) {
      z[v].zero();
      if (has(v)) z[v].template load<Cfg::kStreaming>(z_row + element(v));
    }
  }
  if constexpr (!Cfg::kEarlyState) load_weights();

  // What the mean is of; a lane's squares in four sums, so that none waits for all others.
  float u[S::kVectors][S::kWidth], gate[S::kVectors][S::kWidth];
  float squares[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
  for (int v = 0; v < S::kVectors; ++v) {
    x[v].widen_to(u[v]);
    if constexpr (Cfg::kHasGate) z[v].widen_to(gate[v]);
#pragma unroll
    for (int e = 0; e < S::kWidth; ++e) {
      if constexpr (Cfg::kHasGate) {
        gate[v][e] = norm_gate<Cfg>(gate[v][e]);
        if constexpr (!Cfg::kBeforeGate) u[v][e] *= gate[v][e];
      }
      const int part = (v * S::kWidth + e) % 4;
      squares[part] = fma_f32(u[v][e], u[v][e], squares[part]);
    }
  }
  float sum = sum_lanes((squares[0] + squares[1]) + (squares[2] + squares[3]));
  if constexpr (S::kGroupWarps > 1) {
    __shared__ __align__(16) float of_warps[Cfg::kGroupsPerBlock][S::kGroupWarps];
    if (lane % 32 == 0) of_warps[place][lane / 32] = sum;
    sync_block();
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int w = 0; w < S::kGroupWarps; ++w) sums[w % 4] += of_warps[place][w];
    sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  const float scale = rsqrt_fast_f32(sum * (1.0f / static_cast<float>(Cfg::kGroupSize)) + Cfg::kEps);

  Input* out_row = static_cast<Input*>(args.out) + at(args.out_stride, args.out_token_stride);
#pragma unroll
  for (int v = 0; v < S::kVectors; ++v) {
    float w[S::kWidth], y[S::kWidth];
    [[maybe_unused]] float b[S::kWidth];
    weight[v].widen_to(w);
    if constexpr (Cfg::kHasBias) bias[v].widen_to(b);
#pragma unroll
    for (int e = 0; e < S::kWidth; ++e) {
      y[e] = u[v][e] * scale * w[e];
      if constexpr (Cfg::kHasBias) y[e] += b[e];
      if constexpr (Cfg::kHasGate && Cfg::kBeforeGate) y[e] *= gate[v][e];
    }
    if (has(v)) store_norm(y, out_row + element(v));
  }
}

// ---- this kernel ----

struct Config {
  using Input = bf16;  // x, z, out
  using Weight = bf16;  // weight, bias
  static constexpr int kTokens = 1;
  static constexpr int kGroupSize = 512;
  static constexpr float kEps = 1e-05f;
  static constexpr bool kHasGate = true;
  static constexpr bool kFastSilu = true;
  static constexpr bool kBeforeGate = false;
  static constexpr bool kHasBias = false;
  static constexpr bool kAlignedRows = true;

  static constexpr int kWarps = 2;
  static constexpr int kGroupsPerBlock = 1;
  static constexpr bool kStreaming = true;
  static constexpr bool kEarlyState = false;

  static SSMJIT_DEVICE float gate(float z) { return fn_silu(z); }
};

extern "C" __global__ void __launch_bounds__(64, 1) ssmjit_norm_cf416d7c(const __grid_constant__ NormArgs args) {
  norm<Config>(args);
}
