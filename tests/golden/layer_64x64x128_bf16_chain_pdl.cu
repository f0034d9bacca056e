// ssmjit 0.1.0: mamba2 layer, 64 heads x 64 x 128, 8 groups, input bf16, dt fp32, weights fp32, state bf16, delta softplus(dt + dt_bias), decay exp(A * delta), skip D * x, in place, conv of 6144 channels, width 4, state_len 3, bias, activation silu(x), norm of 4096 channels in groups of 512, eps 1e-05, gate silu(z) before the norm
//
// description: {"schema":1,"op":"layer","family":"mamba2","nheads":64,"head_dim":64,"dstate":128,"ngroups":8,"tokens":1,"input":"bf16","dt":"fp32","weights":"fp32","state":"bf16","delta":"softplus(dt + dt_bias)","decay":"exp(A * delta)","skip":"D * x","gate":null,"rounding":"nearest","store":{"kind":"in_place"},"destination_slots":false,"aligned_rows":true,"pad_output":"zeros","conv":{"channels":0,"width":4,"state_len":0,"bias":true,"activation":"silu(x)","channels_last":false,"store":"shift","keep":"last","accepted":false},"norm":{"channels":0,"group_size":512,"eps":1e-05,"gate":"silu(z)","before_gate":false,"bias":false}}
// plan: block_m=16,warps=2,lanes_per_row=16,heads_per_block=1,stages=1,state_path=direct,streaming=true,early_state=true,min_blocks_per_sm=1,form=chain_pdl,conv1d={block_m=512,warps=4,lanes_per_row=32,heads_per_block=1,stages=1,state_path=direct,streaming=true,early_state=false,min_blocks_per_sm=1},norm={block_m=1,warps=2,lanes_per_row=32,heads_per_block=1,stages=1,state_path=direct,streaming=true,early_state=true,min_blocks_per_sm=1}
// conv1d: block_m=512,warps=4,lanes_per_row=32,heads_per_block=1,stages=1,state_path=direct,streaming=true,early_state=false,min_blocks_per_sm=1
//   block_m: channels a block takes
//   warps: warps a block; each lane takes block_m / (32 * warps) neighbouring channels
//   lanes_per_row: lanes that share a row of channels: those of a warp
//   heads_per_block: requests a block takes
//   stages: requests whose state and tokens are on their way at once
//   state_path: how the state travels: straight into registers
//   streaming: whether state loads bypass the L1 and state stores leave the L2 first
//   early_state: whether a dependent launch asks for indices, weights and state before it waits for the launch in front
//   min_blocks_per_sm: blocks of an SM that the compiler leaves registers for; 0: its own choice, which keeps registers down
// update: block_m=16,warps=2,lanes_per_row=16,heads_per_block=1,stages=1,state_path=direct,streaming=true,early_state=true,min_blocks_per_sm=1
//   block_m: rows of head_dim a block takes
//   warps: warps a block; each takes block_m / warps rows
//   lanes_per_row: lanes that share a row of dstate in 16-byte vectors
//   heads_per_block: heads of one group a block takes, one after the other
//   stages: heads whose state is on its way or in use at once
//   state_path: how the state is read: straight into registers, or by cp.async or bulk copies through shared memory
//   streaming: whether state loads bypass the L1 and state stores leave the L2 first
//   early_state: whether a dependent launch asks for the state before it waits for the launch in front
//   min_blocks_per_sm: blocks of an SM that the compiler leaves registers for; 0: its own choice, which keeps registers down
// norm: block_m=1,warps=2,lanes_per_row=32,heads_per_block=1,stages=1,state_path=direct,streaming=true,early_state=true,min_blocks_per_sm=1
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
// A call moves, for each request: 1106176 bytes read, 1085440 of them written back, 8192 written elsewhere.
// Launch for channels = 6144: grid (12, batch), block 128, dynamic shared memory 0 bytes; entry ssmjit_layer_conv1d_36d1be83.
// Launch for nheads = 64: grid (256, batch), block 64, dynamic shared memory 0 bytes; entry ssmjit_layer_update_36d1be83.
// Launch for channels = 4096: grid (8, batch), block 64, dynamic shared memory 0 bytes; entry ssmjit_layer_norm_36d1be83.
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

// ---- device/warp.cuh ----

#ifndef SSMJIT_CPU
// Warp collectives. Each is one operation to its caller, so that an executor can serve it with one exchange.

// Sums over groups of kLanes neighbouring lanes (a power of two). Each lane brings kRows partial sums; afterwards the
// group's totals are spread over its lanes: a lane owns kOwned of them, in v[0..kOwned), the rows from first_row on.
// While the row count is even a step halves it (a lane sends the half it does not keep), so that 8 rows over 16 lanes
// take 8 shuffles, not 32; an odd count is summed whole and the lane with the lower index owns it.
template <int kRows, int kLanes>
struct RowSums {
  static constexpr bool kHalve = kLanes > 1 && kRows % 2 == 0;
  static constexpr bool kLast = kLanes == 1;
  using Next = RowSums<kHalve ? kRows / 2 : kRows, kLast ? 1 : kLanes / 2>;

  static SSMJIT_DEVICE constexpr int owned() {
    if constexpr (kLast)
      return kRows;
    else
      return Next::owned();
  }
  // The first row that lane `lane` of the group owns.
  static SSMJIT_DEVICE int first_row(int lane) {
    if constexpr (kLast)
      return 0;
    else if constexpr (kHalve)
      return ((lane & (kLanes / 2)) != 0 ? kRows / 2 : 0) + Next::first_row(lane);
    else
      return Next::first_row(lane);
  }
  // Whether the lane is the one of those holding the same totals that should write them.
  static SSMJIT_DEVICE bool owner(int lane) {
    if constexpr (kLast)
      return true;
    else if constexpr (kHalve)
      return Next::owner(lane);
    else
      return (lane & (kLanes / 2)) == 0 && Next::owner(lane);
  }
  static SSMJIT_DEVICE void sum(float* v, int lane) {
    if constexpr (!kLast) {
      constexpr int kStep = kLanes / 2;
      if constexpr (kHalve) {
        const bool upper = (lane & kStep) != 0;
#pragma unroll
        for (int i = 0; i < kRows / 2; ++i) {
          const float keep = upper ? v[i + kRows / 2] : v[i];
          const float send = upper ? v[i] : v[i + kRows / 2];
          v[i] = keep + __shfl_xor_sync(0xffffffffu, send, kStep);
        }
      } else {
#pragma unroll
        for (int i = 0; i < kRows; ++i) v[i] += __shfl_xor_sync(0xffffffffu, v[i], kStep);
      }
      Next::sum(v, lane);
    }
  }
};
#endif

// ---- update_args.cuh ----

// What a launch of the update kernels is given, by value, in one struct (also read by the host, so plain C++).
// Strides count elements; a row is one request. Pointers that the description has no use for are null.

struct UpdateArgs {
  // What the first load needs stands first: a kernel fetches its arguments line by line, and waits for each.
  const void* state_batch_indices;  // [batch], null: row b uses slot b
  long long index_stride;
  int wide_indices;       // 1: indices are int64, 0: int32
  int pdl;                // 0: no wait; 1: wait, then read; 2: a kernel with kEarlyState reads the index and the state,
                          // waits, then reads the rest; any other does as for 1
  const void* A;          // [nheads] fp32, negative
  long long slots;        // a slot index outside [0, slots) makes its row a pad row
  long long pad_slot_id;  // a row with this index, or a negative one, is a pad row
  void* state;            // [slots, nheads, head_dim, dstate], inner three contiguous, 16-byte aligned rows; updated
  long long state_stride;  // between slots
  const void* x;           // [batch, nheads, head_dim]
  long long x_stride;
  const void* dt;  // [batch, nheads]
  long long dt_stride;
  const void* B;  // [batch, ngroups, dstate]
  long long B_stride;
  const void* C;  // [batch, ngroups, dstate]
  long long C_stride;
  const void* dt_bias;  // [nheads]
  const void* D;        // [nheads]
  const void* z;        // [batch, nheads, head_dim], gate
  long long z_stride;
  void* out;  // [batch, nheads, head_dim]
  long long out_stride;
  const void* dst_state_batch_indices;  // [batch], where the new state goes; null: where it was read
  long long dst_index_stride;
};

// ---- update.cuh ----

// One decode step of a state-space layer, one token a request, the state updated in place (or written to another slot):
//
//   delta = Cfg::delta(dt, dt_bias)            a head
//   h'[p, n] = decay * h[p, n] + (delta * x[p]) * B[n]
//   y[p] = sum over n of h'[p, n] * C[n]       from the fp32 h', not from what is stored
//   y[p] += Cfg::skip(D, x[p]);  y[p] *= Cfg::gate(z[p])
//
// What costs is the state: [head_dim, dstate] a head is read and written once, the rest is small. A block takes block_m
// rows of head_dim for heads_per_block heads of one request; a warp takes block_m / warps neighbouring rows and needs
// no other warp. Within a warp, lanes_per_row lanes share a row in 16-byte vectors (so a load instruction covers whole
// lines), and each lane has kRows neighbouring rows, all of whose vectors are asked for before the first is used.
//
// state_path: how the state travels from memory to registers (it always leaves by vector stores):
//   direct    straight into registers; with several heads a block the next one's loads are in flight during this one's
//             arithmetic
//   cp_async  into shared memory by cp.async, a stage for each head of the block; a lane waits for its own vectors only
//   bulk      the same by one bulk copy a warp and head (sm_90), on a barrier of the warp's own

// Sizes that follow from Cfg. Cfg is a struct of constants: kHeadDim, kDstate, kHeadsPerGroup, the types State, Input,
// Dt, Weight, kPadOutput, kDestination, the plan's fields, and the functions delta, decay, skip, gate.
template <class Cfg>
struct UpdateShape {
  static constexpr int kVecElements = 16 / static_cast<int>(sizeof(typename Cfg::State));
  static constexpr int kRowVectors = Cfg::kDstate / kVecElements;
  static constexpr int kLanes = Cfg::kLanesPerRow;
  static constexpr int kVectors = (kRowVectors + kLanes - 1) / kLanes;  // a lane and row; the last may be past the end
  static constexpr bool kRagged = kRowVectors % kLanes != 0;
  static constexpr int kRowsPerWarp = Cfg::kBlockM / Cfg::kWarps;
  static constexpr int kRows = kRowsPerWarp / (32 / kLanes);  // a lane
  static constexpr int kTiles = Cfg::kHeadDim / Cfg::kBlockM;
  static constexpr int kHeadSize = Cfg::kHeadDim * Cfg::kDstate;
  static constexpr int kWarpBytes = kRowsPerWarp * Cfg::kDstate * static_cast<int>(sizeof(typename Cfg::State));
  using Sums = RowSums<kRows, kLanes>;
  static constexpr int kOwned = Sums::owned();
};

// kCount neighbouring elements as they lie in memory, widened where they are used: a load must not make the next one
// wait. kAligned: the address is a multiple of the largest power of two (up to 16 bytes) that divides their size.
template <class T, int kCount, bool kAligned>
struct Packed {
  static constexpr int kBytes = kCount * static_cast<int>(sizeof(T));
  static constexpr bool kWords = kAligned && kBytes % 4 == 0;
  static constexpr int kPer = kPerWord<T>;
  T element[kWords ? 1 : kCount];
  u32 word[kWords ? kBytes / 4 : 1];

  SSMJIT_DEVICE void load(const T* p) {
    if constexpr (kWords)
      load_now<kBytes / 4>(p, word);
    else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) load_now(p + i, element[i]);
    }
  }
  SSMJIT_DEVICE void zero() {
    if constexpr (kWords) {
#pragma unroll
      for (int i = 0; i < kBytes / 4; ++i) word[i] = 0;
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) element[i] = T{};
    }
  }
  SSMJIT_DEVICE void widen_to(float (&v)[kCount]) const {
    if constexpr (kWords) {
#pragma unroll
      for (int w = 0; w < kBytes / 4; ++w) {
        float part[kPer];
        unpack_word(word[w], part, T{});
#pragma unroll
        for (int e = 0; e < kPer; ++e) v[w * kPer + e] = part[e];
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) v[i] = widen(element[i]);
    }
  }
};

// A lane's share of the state of one head.
template <class Cfg>
struct StateTile {
  using S = UpdateShape<Cfg>;
  Vec16 raw[S::kRows][S::kVectors];
};

// A head's scalars and the lane's inputs.
template <class Cfg>
struct HeadInputs {
  using S = UpdateShape<Cfg>;
  using Input = typename Cfg::Input;
  typename Cfg::Dt dt;
  typename Cfg::Weight dt_bias, D;
  float A;
  Packed<Input, S::kRows, Cfg::kAlignedRows> x;  // of the rows whose state the lane holds
  Input x_own[S::kOwned], z_own[S::kOwned];      // of the rows whose output it writes
};

// B or C at the lane's columns.
template <class Cfg>
struct Columns {
  using S = UpdateShape<Cfg>;
  Packed<typename Cfg::Input, S::kVecElements, Cfg::kAlignedRows> vector[S::kVectors];
};

template <class Cfg>
struct UpdateStep {
  using S = UpdateShape<Cfg>;
  using State = typename Cfg::State;
  using Input = typename Cfg::Input;

  const UpdateArgs& args;
  int row;       // request
  int head;      // the block's first head
  int lane_row;  // the lane's first row of head_dim
  int column;    // the lane's place among the lanes of a row
  int own_row;   // the first row whose output the lane writes
  bool owner;    // whether it writes them

  // The lane's vector v of row r within a head's [head_dim, dstate], in elements.
  static SSMJIT_DEVICE int element(int r, int v, int lane_row, int column) {
    return (lane_row + r) * Cfg::kDstate + (v * S::kLanes + column) * S::kVecElements;
  }
  static SSMJIT_DEVICE bool inside(int v, int column) {
    return !S::kRagged || v + 1 < S::kVectors || v * S::kLanes + column < S::kRowVectors;
  }

  SSMJIT_DEVICE void load_state(StateTile<Cfg>& tile, const State* head_state, bool live) const {
#pragma unroll
    for (int r = 0; r < S::kRows; ++r)
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v)
        tile.raw[r][v] = live && inside(v, column)
                             ? load_global<Cfg::kStreaming>(head_state + element(r, v, lane_row, column))
                             : Vec16{};
  }

  SSMJIT_DEVICE void load_inputs(HeadInputs<Cfg>& in, int h) const {
    const i64 at = static_cast<i64>(h) * Cfg::kHeadDim;
    const Input* x = static_cast<const Input*>(args.x) + row * args.x_stride + at;
    load_now(static_cast<const typename Cfg::Dt*>(args.dt) + row * args.dt_stride + h, in.dt);
    in.x.load(x + lane_row);
    load_now(static_cast<const float*>(args.A) + h, in.A);
    if constexpr (Cfg::kHasDtBias) load_now(static_cast<const typename Cfg::Weight*>(args.dt_bias) + h, in.dt_bias);
    if constexpr (Cfg::kHasD) load_now(static_cast<const typename Cfg::Weight*>(args.D) + h, in.D);
    if constexpr (Cfg::kHasSkip) {
#pragma unroll
      for (int i = 0; i < S::kOwned; ++i) load_now(x + own_row + i, in.x_own[i]);
    }
    if constexpr (Cfg::kHasGate) {
      const Input* z = static_cast<const Input*>(args.z) + row * args.z_stride + at;
#pragma unroll
      for (int i = 0; i < S::kOwned; ++i) load_now(z + own_row + i, in.z_own[i]);
    }
  }

  SSMJIT_DEVICE void load_columns(Columns<Cfg>& columns, const void* base, i64 stride) const {
    const Input* p =
        static_cast<const Input*>(base) + row * stride + static_cast<i64>(head / Cfg::kHeadsPerGroup) * Cfg::kDstate;
#pragma unroll
    for (int i = 0; i < S::kVectors; ++i) {
      if (inside(i, column))
        columns.vector[i].load(p + (i * S::kLanes + column) * S::kVecElements);
      else
        columns.vector[i].zero();
    }
  }

  // One head: the recurrence on the lane's vectors, the new state to memory, the sums over dstate, the output.
  SSMJIT_DEVICE void step(StateTile<Cfg>& tile, const HeadInputs<Cfg>& in, const Columns<Cfg>& columns_B,
                          const Columns<Cfg>& columns_C, State* head_target, bool store, int h) const {
    constexpr int kPer = kPerWord<State>;
    float dt_bias = 0.0f, D = 0.0f;
    if constexpr (Cfg::kHasDtBias) dt_bias = widen(in.dt_bias);
    if constexpr (Cfg::kHasD) D = widen(in.D);
    const float delta = Cfg::delta(widen(in.dt), dt_bias);
    const float decay = Cfg::decay(in.A, widen(in.dt), delta);
    float x[S::kRows];
    in.x.widen_to(x);
    float B[S::kVectors][S::kVecElements], C[S::kVectors][S::kVecElements];
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v) {
      columns_B.vector[v].widen_to(B[v]);
      columns_C.vector[v].widen_to(C[v]);
    }
    float y[S::kRows];
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      const float u = delta * x[r];
      y[r] = 0.0f;
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v) {
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          float s[kPer];
          unpack_word(tile.raw[r][v].word[w], s, State{});
#pragma unroll
          for (int e = 0; e < kPer; ++e) {
            s[e] = fma_f32(s[e], decay, u * B[v][w * kPer + e]);
            y[r] = fma_f32(s[e], C[v][w * kPer + e], y[r]);
          }
          tile.raw[r][v].word[w] = pack_word(s, State{});
        }
        if (store && inside(v, column))
          store_global<Cfg::kStreaming>(head_target + element(r, v, lane_row, column), tile.raw[r][v]);
      }
    }
    S::Sums::sum(y, column);
    if (owner) {
      Input* out = static_cast<Input*>(args.out) + row * args.out_stride + static_cast<i64>(h) * Cfg::kHeadDim;
#pragma unroll
      for (int i = 0; i < S::kOwned; ++i) {
        float v = y[i];
        if constexpr (Cfg::kHasSkip) v += Cfg::skip(D, widen(in.x_own[i]));
        if constexpr (Cfg::kHasGate) v *= Cfg::gate(widen(in.z_own[i]));
        narrow(v, out[own_row + i]);
      }
    }
  }

  SSMJIT_DEVICE void write_zeros() const {
    if (!owner) return;
    for (int i = 0; i < Cfg::kHeadsPerBlock; ++i) {
      Input* out = static_cast<Input*>(args.out) + row * args.out_stride + static_cast<i64>(head + i) * Cfg::kHeadDim;
#pragma unroll
      for (int j = 0; j < S::kOwned; ++j) narrow(0.0f, out[own_row + j]);
    }
  }
};

// Grid: x = nheads / heads_per_block * (head_dim / block_m), y = batch. Block: 32 * warps threads.
template <class Cfg>
SSMJIT_DEVICE void update(const UpdateArgs& args) {
  using S = UpdateShape<Cfg>;
  using State = typename Cfg::State;
  const int warp = thread_index() / 32;
  const int lane = lane_index();
  const int column = lane % S::kLanes;
  const int warp_row = (block_x() % S::kTiles) * Cfg::kBlockM + warp * S::kRowsPerWarp;
  const int lane_row = warp_row + (lane / S::kLanes) * S::kRows;
  const UpdateStep<Cfg> at{args,
                           block_y(),
                           block_x() / S::kTiles * Cfg::kHeadsPerBlock,
                           lane_row,
                           column,
                           lane_row + S::Sums::first_row(column),
                           S::Sums::owner(column)};

  if (args.pdl != kPdlOff) {
    grid_dependency_trigger();
    if (!Cfg::kEarlyState || args.pdl == kPdlWaitFirst) grid_dependency_wait();
  }

  // Which slot. A pad row forms no address from its index.
  const IndexEntry source_entry =
      IndexEntry::load(args.state_batch_indices, args.wide_indices, at.row * args.index_stride, at.row, args.A);
  IndexEntry target_entry = source_entry;
  if constexpr (Cfg::kDestination) {
    if (args.dst_state_batch_indices != nullptr)
      target_entry = IndexEntry::load(args.dst_state_batch_indices, args.wide_indices, at.row * args.dst_index_stride,
                                      at.row, args.A);
  }

  // Whether there is a state to read and to write, and where. What follows from the index stands behind the loads that
  // do not need it.
  bool live, store;
  const State* from;
  State* to;
  const auto locate = [&] {
    const i64 source = source_entry.value();
    const i64 target = target_entry.value();
    live = source >= 0 && source < args.slots && source != args.pad_slot_id;
    store = live && target >= 0 && target < args.slots && target != args.pad_slot_id;
    const i64 first = static_cast<i64>(at.head) * S::kHeadSize;
    from = static_cast<const State*>(args.state) + (live ? source * args.state_stride + first : 0);
    to = static_cast<State*>(args.state) + (store ? target * args.state_stride + first : 0);
  };

  // A stage a head in shared memory, private to the warp: [warps][stages][rows of the warp, dstate], then, for bulk
  // copies, [warps][stages] barriers.
  static_assert(Cfg::kStatePath == StatePath::direct || Cfg::kStages == Cfg::kHeadsPerBlock);
  extern __shared__ __align__(128) unsigned char stages[];
  unsigned char* mine = stages + warp * Cfg::kStages * S::kWarpBytes;
  Barrier* full = reinterpret_cast<Barrier*>(stages + Cfg::kWarps * Cfg::kStages * S::kWarpBytes) + warp * Cfg::kStages;
  const auto stage = [&](int i) { return mine + i * S::kWarpBytes; };
  const auto in_stage = [&](int i, int r, int v) {
    return stage(i) + at.element(r, v, lane_row - warp_row, column) * static_cast<int>(sizeof(State));
  };
  const auto fetch = [&](int i) {
    if constexpr (Cfg::kStatePath == StatePath::cp_async) {
      if (i < Cfg::kHeadsPerBlock && live) {
#pragma unroll
        for (int r = 0; r < S::kRows; ++r)
#pragma unroll
          for (int v = 0; v < S::kVectors; ++v)
            if (at.inside(v, column))
              copy_async(in_stage(i, r, v), from + i * S::kHeadSize + at.element(r, v, lane_row, column));
      }
      copy_async_commit();  // empty groups too, so that the count of pending ones stays the same
    } else if (i < Cfg::kHeadsPerBlock && live && lane == 0) {
      barrier_arrive_expect(full + i, S::kWarpBytes);
      bulk_load(stage(i), from + i * S::kHeadSize + warp_row * Cfg::kDstate, S::kWarpBytes, full + i);
    }
  };
  const auto wait_for_stage = [&](int i) {
    if constexpr (Cfg::kStatePath == StatePath::cp_async)
      copy_async_wait<Cfg::kStages - 1>();
    else if (live)
      barrier_wait(full + i, 0);
  };
  if constexpr (Cfg::kStatePath == StatePath::bulk) {
    if (lane < Cfg::kStages) barrier_init(full + lane, 1);
    barrier_init_fence();
    sync_warp();
  }

  StateTile<Cfg> tile;
  const auto request_state = [&] {
    if constexpr (Cfg::kStatePath == StatePath::direct) {
      at.load_state(tile, from, live);
    } else {
#pragma unroll
      for (int i = 0; i < Cfg::kStages - 1; ++i) fetch(i);
    }
  };

  // The addresses of the inputs wait for no index, so they are asked for before the state; unless the state may
  // overtake the producer of the inputs (the wait is none in a launch that depends on nothing).
  if constexpr (Cfg::kEarlyState) {
    locate();
    request_state();
    grid_dependency_wait();
  }
  Columns<Cfg> B, C;
  HeadInputs<Cfg> in;
  at.load_columns(B, args.B, args.B_stride);
  at.load_columns(C, args.C, args.C_stride);
  at.load_inputs(in, at.head);
  if constexpr (!Cfg::kEarlyState) locate();
  if constexpr (Cfg::kPadOutput != PadOutput::as_if_zero_state) {
    if (!live) {
      if constexpr (Cfg::kPadOutput == PadOutput::zeros) at.write_zeros();
      return;
    }
  }
  if constexpr (!Cfg::kEarlyState) request_state();

  if constexpr (Cfg::kHeadsPerBlock == 1) {
    at.step(tile, in, B, C, to, store, at.head);
  } else {
    [[maybe_unused]] StateTile<Cfg> ahead;
    HeadInputs<Cfg> in_ahead;
#pragma unroll 1
    for (int i = 0; i < Cfg::kHeadsPerBlock; ++i) {
      const bool more = i + 1 < Cfg::kHeadsPerBlock;
      if (more) at.load_inputs(in_ahead, at.head + i + 1);
      if constexpr (Cfg::kStatePath == StatePath::direct) {
        if (more) at.load_state(ahead, from + (i + 1) * S::kHeadSize, live);
      } else {
        fetch(i + Cfg::kStages - 1);
        wait_for_stage(i);
#pragma unroll
        for (int r = 0; r < S::kRows; ++r)
#pragma unroll
          for (int v = 0; v < S::kVectors; ++v)
            tile.raw[r][v] = live && at.inside(v, column) ? load_shared(in_stage(i, r, v)) : Vec16{};
      }
      at.step(tile, in, B, C, to + i * S::kHeadSize, store, at.head + i);
      in = in_ahead;
      if constexpr (Cfg::kStatePath == StatePath::direct) tile = ahead;
    }
  }
}

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

// ---- ssmjit_layer_conv1d_36d1be83 ----

struct conv1d_config {
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

extern "C" __global__ void __launch_bounds__(128, 1) ssmjit_layer_conv1d_36d1be83(const __grid_constant__ Conv1dArgs args) {
  conv1d<conv1d_config>(args);
}

// ---- ssmjit_layer_update_36d1be83 ----

struct update_config {
  using State = bf16;
  using Input = bf16;  // x, z, B, C, out
  using Dt = float;
  using Weight = float;  // D, dt_bias
  static constexpr int kHeadDim = 64;
  static constexpr int kDstate = 128;
  static constexpr int kHeadsPerGroup = 8;
  static constexpr bool kHasDtBias = true;
  static constexpr bool kHasD = true;
  static constexpr bool kHasSkip = true;
  static constexpr bool kHasGate = false;
  static constexpr bool kDestination = false;
  static constexpr bool kAlignedRows = true;
  static constexpr PadOutput kPadOutput = PadOutput::zeros;

  static constexpr int kBlockM = 16;
  static constexpr int kWarps = 2;
  static constexpr int kLanesPerRow = 16;
  static constexpr int kHeadsPerBlock = 1;
  static constexpr int kStages = 1;
  static constexpr StatePath kStatePath = StatePath::direct;
  static constexpr bool kStreaming = true;
  static constexpr bool kEarlyState = true;

  static SSMJIT_DEVICE float delta(float dt, float dt_bias) { return fn_softplus(dt + dt_bias); }
  static SSMJIT_DEVICE float decay(float A, float dt, float delta) { return fn_exp(A * delta); }
  static SSMJIT_DEVICE float skip(float D, float x) { return D * x; }
  static SSMJIT_DEVICE float gate(float z) { return 0.0f; }
};

extern "C" __global__ void __launch_bounds__(64, 1) ssmjit_layer_update_36d1be83(const __grid_constant__ UpdateArgs args) {
  update<update_config>(args);
}

// ---- ssmjit_layer_norm_36d1be83 ----

struct norm_config {
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
  static constexpr bool kEarlyState = true;

  static SSMJIT_DEVICE float gate(float z) { return fn_silu(z); }
};

extern "C" __global__ void __launch_bounds__(64, 1) ssmjit_layer_norm_36d1be83(const __grid_constant__ NormArgs args) {
  norm<norm_config>(args);
}
