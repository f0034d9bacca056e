// ssmjit 0.1.0: conv of 6144 channels, width 4, state_len 3, bias, activation silu(x), input bf16, weights bf16, state bf16
//
// description: {"schema":1,"op":"conv1d","tokens":1,"input":"bf16","weights":"bf16","state":"bf16","conv":{"channels":6144,"width":4,"state_len":0,"bias":true,"activation":"silu(x)","channels_last":false,"store":"shift","keep":"last","accepted":false},"pad_output":"zeros","aligned_rows":true}
// plan: block_m=512,warps=4,lanes_per_row=32,heads_per_block=1,stages=1,state_path=direct,streaming=true,early_state=false,min_blocks_per_sm=1
//   block_m: channels a block takes
//   warps: warps a block; each lane takes block_m / (32 * warps) neighbouring channels
//   lanes_per_row: lanes that share a row of channels: those of a warp
//   heads_per_block: requests a block takes
//   stages: requests whose state and tokens are on their way at once
//   state_path: how the state travels: straight into registers
//   streaming: whether state loads bypass the L1 and state stores leave the L2 first
//   early_state: whether a dependent launch asks for indices, weights and state before it waits for the launch in front
//   min_blocks_per_sm: blocks of an SM that the compiler leaves registers for; 0: its own choice, which keeps registers down
//
// A call moves, for each request: 49152 bytes read, 36864 of them written back, 12288 written elsewhere.
// Launch for channels = 6144: grid (12, batch), block 128, dynamic shared memory 0 bytes; entry ssmjit_conv1d_542e7805.
// Rebuild: nvcc -std=c++17 -arch=sm_90a -cubin FILE.cu

// ---- conv1d_args.cuh ----

// What a launch of the conv1d kernels is given, by value, in one struct (also read by the host, so plain C++).
// Strides count elements; channels lie side by side. Pointers that the description has no use for are null.

struct Conv1dArgs {
  // What the first load needs stands first: a kernel fetches its arguments line by line, and waits for each.
  const void* state_batch_indices;  // [batch], null: row b uses slot b
  long long index_stride;
  int wide_indices;        // 1: all of the index arrays are int64, 0: int32
  int pdl;                 // 0: no wait; 1: wait, then read; 2: a kernel with kEarlyState reads indices, weights and
                           // state, waits, then reads x; any other does as for 1
  const void* w;           // [channels, width]
  long long slots;         // a slot index outside [0, slots) makes its row a pad row
  long long pad_slot_id;   // a row with this index, or a negative one, is a pad row
  void* conv_state;        // [slots, channels, state_len] or, channels last, [slots, state_len, channels]; updated
  long long state_stride;  // between slots
  const void* x;           // [batch, tokens, channels]
  long long x_stride, x_token_stride;
  const void* bias;  // [channels]
  void* out;         // [batch, tokens, channels]
  long long out_stride, out_token_stride;
  int channels;
  const void* cache_seqlens;  // [batch], where the next token goes, modulo state_len (ConvStore::circular)
  long long seqlen_stride;
  const void* num_accepted_tokens;  // [batch], of the step before
  long long accepted_stride;
  const void* output_state_indices;  // [batch, tokens], where the window after each token goes (ConvKeep::slots)
  long long output_index_stride, output_index_token_stride;
  void* intermediate_states;  // [snapshot_slots, steps, one slot's window], the window after each token; written
  long long snapshot_slots, snapshot_stride, snapshot_token_stride;
  const void* intermediate_state_indices;  // [batch], null: as state_batch_indices
  long long snapshot_index_stride;
};

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

// ---- conv1d.cuh ----

// One decode step of a causal convolution by channel ("causal_conv1d_update"), one or more tokens a request:
//
//   stream = the entries of the state, the newest last, then the step's tokens
//   out[t] = activation(bias + sum over k < width of w[k] * stream[token t - width + 1 + k])     each channel
//   state  = the last state_len entries of stream
//
// With accepted counts the state's first width - 1 + tokens - 1 entries are used, the history is the width - 1 from
// entry accepted - 1 on, and what follows it is no part of the stream. A circular state has its next token at
// cache_seqlens % state_len and the newest before that.
//
// All of it is memory: a lane reads its channels' entries and tokens once, in vectors, has the stream in registers, as
// it is stored, and takes products, the new state and whatever else is written of it from there. It reads all of its
// channels before it writes any, and no other lane touches them: a slot may be read and written by one row.

enum class ConvStore { shift, circular };
enum class ConvKeep { last, snapshots, slots };

struct alignas(8) Vec8 {
  u32 word[2];
};

SSMJIT_DEVICE u32 bits_of(float v) { return float_bits(v); }
SSMJIT_DEVICE u32 bits_of(bf16 v) { return v.bits; }
SSMJIT_DEVICE u32 bits_of(f16 v) { return v.bits; }

// kCount neighbouring elements as they lie in memory: words where the address is a multiple of the largest power of two
// (up to 16 bytes) that divides their size.
template <class T, int kCount, bool kAligned>
struct Elements {
  static constexpr int kBytes = kCount * static_cast<int>(sizeof(T));
  static constexpr bool kWords = kAligned && kBytes % 4 == 0;
  static constexpr bool kHalves = sizeof(T) == 2;
  static constexpr int kUnits = kWords ? kBytes / 4 : kCount;
  u32 unit[kUnits];  // words, or the bits of an element each

  template <bool kStreaming>
  SSMJIT_DEVICE void load(const T* p) {
    if constexpr (kWords && kUnits % 4 == 0) {
#pragma unroll
      for (int i = 0; i < kUnits; i += 4) {
        const Vec16 v = load_global<kStreaming>(reinterpret_cast<const u32*>(p) + i);
#pragma unroll
        for (int j = 0; j < 4; ++j) unit[i + j] = v.word[j];
      }
    } else if constexpr (kWords) {
      load_now<kUnits>(p, unit);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) load_element(p, i);
    }
  }
  SSMJIT_DEVICE void load_element(const T* p, int i) {
    if constexpr (kHalves)
      unit[i] = load_now_b16(p + i);
    else
      unit[i] = load_now_b32(p + i);
  }
  template <bool kStreaming>
  SSMJIT_DEVICE void store(T* p) const {
    if constexpr (kWords && kUnits % 4 == 0) {
#pragma unroll
      for (int i = 0; i < kUnits; i += 4)
        store_global<kStreaming>(reinterpret_cast<u32*>(p) + i,
                                 Vec16{{unit[i], unit[i + 1], unit[i + 2], unit[i + 3]}});
    } else if constexpr (kWords && kUnits % 2 == 0) {
#pragma unroll
      for (int i = 0; i < kUnits; i += 2) reinterpret_cast<Vec8*>(p)[i / 2] = Vec8{{unit[i], unit[i + 1]}};
    } else if constexpr (kWords) {
#pragma unroll
      for (int i = 0; i < kUnits; ++i) reinterpret_cast<u32*>(p)[i] = unit[i];
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) p[i] = element(i);
    }
  }
  SSMJIT_DEVICE void zero() {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) unit[i] = 0;
  }
  // The element's bits, in the low ones.
  SSMJIT_DEVICE u32 bits(int i) const {
    if constexpr (!kWords || !kHalves)
      return unit[i];
    else
      return i % 2 == 0 ? unit[i / 2] & 0xffffu : unit[i / 2] >> 16;
  }
  // Elements are set in order, from 0 on.
  SSMJIT_DEVICE void set_bits(int i, u32 v) {
    if constexpr (!kWords || !kHalves)
      unit[i] = v;
    else
      unit[i / 2] = i % 2 == 0 ? v : unit[i / 2] | v << 16;
  }
  static SSMJIT_DEVICE T from_bits(u32 bits) {
    if constexpr (kHalves)
      return T{static_cast<u16>(bits)};
    else
      return bits_float(bits);
  }
  SSMJIT_DEVICE T element(int i) const { return from_bits(bits(i)); }
  SSMJIT_DEVICE void narrow_from(const float (&v)[kCount]) {
    if constexpr (kWords) {
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        float part[kPerWord<T>];
#pragma unroll
        for (int e = 0; e < kPerWord<T>; ++e) part[e] = v[i * kPerWord<T> + e];
        unit[i] = pack_word(part, T{});
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        T one;
        narrow(v[i], one);
        unit[i] = bits_of(one);
      }
    }
  }
};

template <class T, class U>
constexpr bool kSameType = false;
template <class T>
constexpr bool kSameType<T, T> = true;

// Cfg is a struct of constants: the types Input, State, Weight, kTokens, kWidth, kStateLen, kSnapshotLen, kHasBias,
// kChannelsLast, kStore, kKeep, kAccepted, kAlignedRows, kPadOutput, the plan's fields, and the function activation.
template <class Cfg>
struct ConvShape {
  static constexpr int kChannels = Cfg::kBlockM / (32 * Cfg::kWarps);  // a lane, side by side
  // Whether the entries that are read are the newest width - 1, from a place that the run knows, or all from the first.
  static constexpr bool kAnywhere = Cfg::kAccepted || Cfg::kStore == ConvStore::circular;
  static constexpr bool kWhole = !Cfg::kChannelsLast && !kAnywhere;  // the lane's share of a slot is read as it lies
  static constexpr int kOld = kAnywhere ? Cfg::kWidth - 1 : Cfg::kStateLen;  // entries of the stream before the tokens
  // Those of the stream before kFirst are neither products' nor in a window that is written.
  static constexpr int kUnused = kOld - (Cfg::kWidth - 1);
  static constexpr int kDropped = Cfg::kKeep == ConvKeep::last ? Cfg::kTokens : 1;
  static constexpr int kFirst = kUnused < kDropped ? kUnused : kDropped;
  // Entries of a slot that a shift writes.
  static constexpr int kKept = Cfg::kAccepted ? Cfg::kWidth - 1 + Cfg::kTokens - 1 : Cfg::kStateLen;
  static_assert(Cfg::kStateLen >= Cfg::kWidth - 1 && Cfg::kStateLen >= kKept);
  static_assert(Cfg::kAlignedRows || kChannels == 1);
};

template <class Cfg>
struct ConvStep {
  using S = ConvShape<Cfg>;
  using Input = typename Cfg::Input;
  using State = typename Cfg::State;
  using Weight = typename Cfg::Weight;
  using Entry = Elements<State, S::kChannels, Cfg::kAlignedRows>;
  template <int kLength>
  using Window = Elements<State, S::kChannels * kLength, Cfg::kAlignedRows>;

  const Conv1dArgs& args;
  int request;
  int channel;  // the lane's first
  bool inside;  // whether there is such a channel

  // As they lie in memory.
  IndexEntry slot_entry, snapshot_entry, accepted_entry, seqlen_entry;
  IndexEntry target_entry[Cfg::kKeep == ConvKeep::slots ? Cfg::kTokens : 1];
  Elements<Weight, S::kChannels * Cfg::kWidth, Cfg::kAlignedRows> w;
  Elements<Weight, S::kChannels, Cfg::kAlignedRows> bias;
  Elements<Input, S::kChannels, Cfg::kAlignedRows> x[Cfg::kTokens];
  Window<S::kWhole ? Cfg::kStateLen : 1> window;
  Entry entry[S::kWhole ? 1 : S::kOld];

  i64 slot;
  bool live;
  int place;  // circular: where the first token goes

  SSMJIT_DEVICE bool usable(i64 index, i64 slots) const {
    return index >= 0 && index < slots && index != args.pad_slot_id;
  }
  SSMJIT_DEVICE IndexEntry index(const void* indices, i64 at, i64 otherwise) const {
    return IndexEntry::load(indices, args.wide_indices, at, otherwise, args.w);
  }

  SSMJIT_DEVICE void load_indices() {
    slot_entry = index(args.state_batch_indices, request * args.index_stride, request);
    if constexpr (Cfg::kStore == ConvStore::circular)
      seqlen_entry = index(args.cache_seqlens, request * args.seqlen_stride, 0);
    if constexpr (Cfg::kAccepted) accepted_entry = index(args.num_accepted_tokens, request * args.accepted_stride, 1);
    if constexpr (Cfg::kKeep == ConvKeep::snapshots) {
      snapshot_entry = slot_entry;
      if (args.intermediate_state_indices != nullptr)
        snapshot_entry = index(args.intermediate_state_indices, request * args.snapshot_index_stride, request);
    }
    if constexpr (Cfg::kKeep == ConvKeep::slots) {
#pragma unroll
      for (int t = 0; t < Cfg::kTokens; ++t)
        target_entry[t] = index(args.output_state_indices,
                                request * args.output_index_stride + t * args.output_index_token_stride, -1);
    }
  }
  SSMJIT_DEVICE void load_weights() {
    w.zero();
    bias.zero();
    if (!inside) return;
    w.template load<false>(static_cast<const Weight*>(args.w) + static_cast<i64>(channel) * Cfg::kWidth);
    if constexpr (Cfg::kHasBias) bias.template load<false>(static_cast<const Weight*>(args.bias) + channel);
  }
  SSMJIT_DEVICE void load_tokens() {
    const Input* from = static_cast<const Input*>(args.x) + request * args.x_stride + channel;
#pragma unroll
    for (int t = 0; t < Cfg::kTokens; ++t) {
      if (inside)
        x[t].template load<false>(from + t * args.x_token_stride);
      else
        x[t].zero();
    }
  }

  // Waits for the slot's index.
  SSMJIT_DEVICE void find_slot() {
    slot = slot_entry.value();
    live = usable(slot, args.slots);
  }
  // Asks for the slot's entries.
  SSMJIT_DEVICE void load_state() {
    place = 0;
    int first = 0;  // entry that the first of the old ones is
    if constexpr (Cfg::kStore == ConvStore::circular) {
      const i64 next = seqlen_entry.value() % Cfg::kStateLen;
      place = static_cast<int>(next < 0 ? next + Cfg::kStateLen : next);
      first = place - S::kOld + Cfg::kStateLen;
    }
    if constexpr (Cfg::kAccepted) {
      const i64 accepted = accepted_entry.value();
      first = accepted < 1 ? 0 : static_cast<int>(accepted < Cfg::kTokens ? accepted : Cfg::kTokens) - 1;
    }
    const State* from = static_cast<const State*>(args.conv_state) + slot * args.state_stride;
    if constexpr (S::kWhole) {
      if (inside)
        window.template load<Cfg::kStreaming>(from + static_cast<i64>(channel) * Cfg::kStateLen);
      else
        window.zero();
    } else {
#pragma unroll
      for (int j = 0; j < S::kOld; ++j) {
        entry[j].zero();
        if (!inside || j < S::kFirst) continue;
        int at = first + j;
        if constexpr (Cfg::kStore == ConvStore::circular) at = at < Cfg::kStateLen ? at : at - Cfg::kStateLen;
        if constexpr (Cfg::kChannelsLast) {
          entry[j].template load<Cfg::kStreaming>(from + static_cast<i64>(at) * args.channels + channel);
        } else {
#pragma unroll
          for (int c = 0; c < S::kChannels; ++c) {
            Elements<State, 1, false> one;
            one.template load<false>(from + static_cast<i64>(channel + c) * Cfg::kStateLen + at);
            entry[j].set_bits(c, one.bits(0));
          }
        }
      }
    }
  }

  // Entry i of the stream, of the lane's channel c, as the state stores it.
  SSMJIT_DEVICE u32 stream(int i, int c) const {
    if (i < S::kOld) {
      if constexpr (S::kWhole)
        return window.bits(c * Cfg::kStateLen + i);
      else
        return entry[i].bits(c);
    }
    if constexpr (kSameType<Input, State>) {
      return x[i - S::kOld].bits(c);
    } else {
      State stored;
      narrow(widen(x[i - S::kOld].element(c)), stored);
      return bits_of(stored);
    }
  }

  // The kLength entries that end before entry `end` of the stream, to a slot of kStride entries a channel.
  template <int kLength, int kStride>
  SSMJIT_DEVICE void store_window(int end, State* to) const {
    if constexpr (Cfg::kChannelsLast) {
#pragma unroll
      for (int j = 0; j < kLength; ++j) {
        Entry one;
#pragma unroll
        for (int c = 0; c < S::kChannels; ++c) one.set_bits(c, stream(end - kLength + j, c));
        one.template store<Cfg::kStreaming>(to + static_cast<i64>(j) * args.channels + channel);
      }
    } else {
      Window<kLength> all;
#pragma unroll
      for (int c = 0; c < S::kChannels; ++c)
#pragma unroll
        for (int j = 0; j < kLength; ++j) all.set_bits(c * kLength + j, stream(end - kLength + j, c));
      State* const mine = to + static_cast<i64>(channel) * kStride;
      if constexpr (kLength == kStride) {
        all.template store<Cfg::kStreaming>(mine);
      } else {
#pragma unroll
        for (int e = 0; e < S::kChannels * kLength; ++e) mine[e / kLength * kStride + e % kLength] = all.element(e);
      }
    }
  }
  // Circular: the tokens, the newest state_len of them, over the oldest entries.
  SSMJIT_DEVICE void store_tokens(State* to) const {
#pragma unroll
    for (int t = 0; t < Cfg::kTokens; ++t) {
      if (t < Cfg::kTokens - Cfg::kStateLen) continue;
      const int at = (place + t) % Cfg::kStateLen;
      Entry one;
#pragma unroll
      for (int c = 0; c < S::kChannels; ++c) one.set_bits(c, stream(S::kOld + t, c));
      if constexpr (Cfg::kChannelsLast) {
        one.template store<Cfg::kStreaming>(to + static_cast<i64>(at) * args.channels + channel);
      } else {
#pragma unroll
        for (int c = 0; c < S::kChannels; ++c) to[static_cast<i64>(channel + c) * Cfg::kStateLen + at] = one.element(c);
      }
    }
  }

  // Of a live request.
  SSMJIT_DEVICE void write_state() const {
    State* const pool = static_cast<State*>(args.conv_state);
    if constexpr (Cfg::kKeep == ConvKeep::slots) {
#pragma unroll
      for (int t = 0; t < Cfg::kTokens; ++t) {
        const i64 target = target_entry[t].value();
        if (usable(target, args.slots))
          store_window<Cfg::kStateLen, Cfg::kStateLen>(S::kOld + t + 1, pool + target * args.state_stride);
      }
      return;
    }
    if constexpr (Cfg::kKeep == ConvKeep::snapshots) {
      const i64 target = snapshot_entry.value();
      if (usable(target, args.snapshot_slots)) {
        State* const to = static_cast<State*>(args.intermediate_states) + target * args.snapshot_stride;
#pragma unroll
        for (int t = 0; t < Cfg::kTokens; ++t)
          store_window<Cfg::kSnapshotLen, Cfg::kSnapshotLen>(S::kOld + t + 1, to + t * args.snapshot_token_stride);
      }
    }
    State* const to = pool + slot * args.state_stride;
    if constexpr (Cfg::kStore == ConvStore::circular)
      store_tokens(to);
    else
      store_window<S::kKept, Cfg::kStateLen>(S::kOld + Cfg::kTokens, to);
  }

  SSMJIT_DEVICE Input* out_row(int t) const {
    return static_cast<Input*>(args.out) + request * args.out_stride + t * args.out_token_stride + channel;
  }
  SSMJIT_DEVICE void write_output() const {
#pragma unroll
    for (int t = 0; t < Cfg::kTokens; ++t) {
      float y[S::kChannels];
#pragma unroll
      for (int c = 0; c < S::kChannels; ++c) {
        float sum = 0.0f;
        if constexpr (Cfg::kHasBias) sum = widen(bias.element(c));
#pragma unroll
        for (int k = 0; k < Cfg::kWidth; ++k)
          sum = fma_f32(widen(w.element(c * Cfg::kWidth + k)),
                        widen(Entry::from_bits(stream(S::kOld + t - Cfg::kWidth + 1 + k, c))), sum);
        y[c] = Cfg::activation(sum);
      }
      Elements<Input, S::kChannels, Cfg::kAlignedRows> row;
      row.narrow_from(y);
      row.template store<false>(out_row(t));
    }
  }
  SSMJIT_DEVICE void write_zeros() const {
    Elements<Input, S::kChannels, Cfg::kAlignedRows> row;
    row.zero();
#pragma unroll
    for (int t = 0; t < Cfg::kTokens; ++t) row.template store<false>(out_row(t));
  }
};

// Grid: x = channels / block_m, rounded up, y = batch. Block: 32 * warps threads.
template <class Cfg>
SSMJIT_DEVICE void conv1d(const Conv1dArgs& args) {
  if (args.pdl != kPdlOff) {
    grid_dependency_trigger();
    if (!Cfg::kEarlyState || args.pdl == kPdlWaitFirst) grid_dependency_wait();
  }
  const int channel = block_x() * Cfg::kBlockM + thread_index() * ConvShape<Cfg>::kChannels;
  ConvStep<Cfg> step{args, block_y(), channel, channel < args.channels};
  // The index alone is waited for before all is asked for: what is loaded in front of it makes it late. The other wait
  // is none in a launch that depends on nothing.
  step.load_indices();
  step.find_slot();
  if (!step.live) {
    if constexpr (Cfg::kEarlyState) grid_dependency_wait();
    if constexpr (Cfg::kPadOutput == PadOutput::zeros)
      if (step.inside) step.write_zeros();
    return;
  }
  step.load_state();
  if constexpr (Cfg::kEarlyState) {
    step.load_weights();
    grid_dependency_wait();
    step.load_tokens();
  } else {
    step.load_tokens();
    step.load_weights();
  }
  if (!step.inside) return;
  step.write_output();
  step.write_state();
}

// ---- this kernel ----

struct Config {
  using Input = bf16;  // x, out
  using State = bf16;  // the windows
  using Weight = bf16;  // w, bias
  static constexpr int kTokens = 1;
  static constexpr int kWidth = 4;
  static constexpr int kStateLen = 3;
  static constexpr int kSnapshotLen = 3;
  static constexpr bool kHasBias = true;
  static constexpr bool kChannelsLast = false;
  static constexpr ConvStore kStore = ConvStore::shift;
  static constexpr ConvKeep kKeep = ConvKeep::last;
  static constexpr bool kAccepted = false;
  static constexpr bool kAlignedRows = true;
  static constexpr PadOutput kPadOutput = PadOutput::zeros;

  static constexpr int kBlockM = 512;
  static constexpr int kWarps = 4;
  static constexpr bool kStreaming = true;
  static constexpr bool kEarlyState = false;

  static SSMJIT_DEVICE float activation(float x) { return silu_of_16_bits(x); }
};

extern "C" __global__ void __launch_bounds__(128, 1) ssmjit_conv1d_542e7805(const __grid_constant__ Conv1dArgs args) {
  conv1d<Config>(args);
}
