// ssmjit 0.1.0: mamba2 update, 16 heads x 64 x 128, 1 group, input bf16, dt fp32, weights fp32, state fp32, delta softplus(dt + dt_bias), decay exp(A * delta), skip D * x, in place
//
// description: {"schema":1,"op":"update","family":"mamba2","nheads":16,"head_dim":64,"dstate":128,"ngroups":1,"tokens":1,"input":"bf16","dt":"fp32","weights":"fp32","state":"fp32","delta":"softplus(dt + dt_bias)","decay":"exp(A * delta)","skip":"D * x","gate":null,"rounding":"nearest","store":{"kind":"in_place"},"destination_slots":false,"aligned_rows":true,"pad_output":"zeros"}
// plan: block_m=8,warps=2,lanes_per_row=16,heads_per_block=1,stages=1,state_path=direct,streaming=true,early_state=false,min_blocks_per_sm=1
//   block_m: rows of head_dim a block takes
//   warps: warps a block; each takes block_m / warps rows
//   lanes_per_row: lanes that share a row of dstate in 16-byte vectors
//   heads_per_block: heads of one group a block takes, one after the other
//   stages: heads whose state is on its way or in use at once
//   state_path: how the state is read: straight into registers, or by cp.async or bulk copies through shared memory
//   streaming: whether state loads bypass the L1 and state stores leave the L2 first
//   early_state: whether a dependent launch asks for the state before it waits for the launch in front
//   min_blocks_per_sm: blocks of an SM that the compiler leaves registers for; 0: its own choice, which keeps registers down
//
// A call moves, for each request: 526912 bytes read, 524288 of them written back, 2048 written elsewhere.
// Launch for nheads = 16: grid (128, batch), block 64, dynamic shared memory 0 bytes; entry ssmjit_update_9ffd7345.
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

// ---- this kernel ----

struct Config {
  using State = float;
  using Input = bf16;  // x, z, B, C, out
  using Dt = float;
  using Weight = float;  // D, dt_bias
  static constexpr int kHeadDim = 64;
  static constexpr int kDstate = 128;
  static constexpr int kHeadsPerGroup = 16;
  static constexpr bool kHasDtBias = true;
  static constexpr bool kHasD = true;
  static constexpr bool kHasSkip = true;
  static constexpr bool kHasGate = false;
  static constexpr bool kDestination = false;
  static constexpr bool kAlignedRows = true;
  static constexpr PadOutput kPadOutput = PadOutput::zeros;

  static constexpr int kBlockM = 8;
  static constexpr int kWarps = 2;
  static constexpr int kLanesPerRow = 16;
  static constexpr int kHeadsPerBlock = 1;
  static constexpr int kStages = 1;
  static constexpr StatePath kStatePath = StatePath::direct;
  static constexpr bool kStreaming = true;
  static constexpr bool kEarlyState = false;

  static SSMJIT_DEVICE float delta(float dt, float dt_bias) { return fn_softplus(dt + dt_bias); }
  static SSMJIT_DEVICE float decay(float A, float dt, float delta) { return fn_exp(A * delta); }
  static SSMJIT_DEVICE float skip(float D, float x) { return D * x; }
  static SSMJIT_DEVICE float gate(float z) { return 0.0f; }
};

extern "C" __global__ void __launch_bounds__(64, 1) ssmjit_update_9ffd7345(const __grid_constant__ UpdateArgs args) {
  update<Config>(args);
}
