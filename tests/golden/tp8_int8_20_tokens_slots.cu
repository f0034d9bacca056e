// ssmjit 0.1.0: mamba2 update, 16 heads x 64 x 128, 1 group, input bf16, dt fp32, weights fp32, state int8, delta softplus(dt + dt_bias), decay exp(A * delta), 20 tokens, skip D * x, gate silu(z), to a slot after each token, stochastic rounding with 10 Philox rounds, varlen, accepted counts
//
// description: {"schema":1,"op":"update","family":"mamba2","nheads":16,"head_dim":64,"dstate":128,"ngroups":1,"tokens":20,"input":"bf16","dt":"fp32","weights":"fp32","state":"int8","delta":"softplus(dt + dt_bias)","decay":"exp(A * delta)","skip":"D * x","gate":"silu(z)","rounding":{"kind":"stochastic","philox_rounds":10},"store":{"kind":"slots"},"destination_slots":false,"aligned_rows":true,"pad_output":"zeros","varlen":true,"accepted":true}
// plan: block_m=16,warps=4,lanes_per_row=8,heads_per_block=1,stages=2,state_path=direct,streaming=true,early_state=false,min_blocks_per_sm=1
//   block_m: rows of head_dim a block takes
//   warps: warps a block; each takes block_m / warps rows
//   lanes_per_row: lanes that share a row of dstate in 16-byte vectors
//   stages: tokens that a turn of the loop over them takes, without a branch between them
//   streaming: whether state loads bypass the L1 and state stores leave the L2 first
//   early_state: whether a dependent launch asks for the state before it waits for the launch in front
//   min_blocks_per_sm: blocks of an SM that the compiler leaves registers for; 0: its own choice, which keeps registers down
//
// A call moves, for each request: 228608 bytes read, 0 of them written back, 2744320 written elsewhere.
// Launch for nheads = 16: grid (64, batch), block 128, dynamic shared memory 0 bytes; entry ssmjit_update_a0ca1b88.
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

// ---- random.cuh ----

// Random bits for stochastic rounding: Philox-4x32 (Salmon et al., SC 2011), a function of seed and counter, so that a
// value's bits depend on neither launch shape nor tiling.

// 128 random bits.
struct Draw {
  u32 word[4];
};

// The keys of all rounds, for many draws of one seed.
template <int kRounds>
struct RoundKeys {
  static_assert(kRounds >= 1);
  u32 low[kRounds], high[kRounds];

  SSMJIT_DEVICE explicit RoundKeys(u64 seed) {
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      low[i] = static_cast<u32>(seed) + static_cast<u32>(i) * 0x9E3779B9u;
      high[i] = static_cast<u32>(seed >> 32) + static_cast<u32>(i) * 0xBB67AE85u;
    }
  }
  // They are worked out by here, once.
  SSMJIT_DEVICE void keep_all() {
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      int bits[2] = {static_cast<int>(low[i]), static_cast<int>(high[i])};
      keep(bits[0]);
      keep(bits[1]);
      low[i] = static_cast<u32>(bits[0]);
      high[i] = static_cast<u32>(bits[1]);
    }
  }
};

// kRounds rounds of the generator over `counter`.
template <int kRounds>
SSMJIT_DEVICE Draw philox(const Draw& counter, const RoundKeys<kRounds>& key) {
  u32 c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const u64 p0 = u64{0xD2511F53u} * c0, p1 = u64{0xCD9E8D57u} * c2;
    c0 = static_cast<u32>(p1 >> 32) ^ c1 ^ key.low[i];
    c1 = static_cast<u32>(p1);
    c2 = static_cast<u32>(p0 >> 32) ^ c3 ^ key.high[i];
    c3 = static_cast<u32>(p0);
  }
  return {{c0, c1, c2, c3}};
}
template <int kRounds>
SSMJIT_DEVICE Draw philox(const Draw& counter, u64 seed) {
  return philox<kRounds>(counter, RoundKeys<kRounds>(seed));
}

// The bits of eight neighbouring state elements, draw `number` of a state. `token`: which of several stored states, 0
// where a launch stores one. Element i has half-word i (round_stochastic says which formats share bits instead).
template <int kRounds>
SSMJIT_DEVICE Draw numbered_draw(const RoundKeys<kRounds>& key, u64 number, u32 token) {
  return philox<kRounds>({{static_cast<u32>(number), static_cast<u32>(number >> 32), token, 0}}, key);
}
// The same by the first element's place, a multiple of 8, counted in logical sizes, ((slot * nheads + head) * head_dim
// + p) * dstate + n.
template <int kRounds>
SSMJIT_DEVICE Draw state_draw(u64 seed, u64 element, u32 token) {
  return numbered_draw<kRounds>(RoundKeys<kRounds>(seed), element / 8, token);
}

// ---- device/fp8.cuh ----

#ifndef SSMJIT_CPU
// Conversions of fp8 in hardware (sm_89 and later). Elsewhere they give 0 and kFp8InHardware is false.

#if __CUDA_ARCH__ >= 890
constexpr bool kFp8InHardware = true;
#else
constexpr bool kFp8InHardware = false;
#endif

// Two elements, the first in the low byte, rounded to nearest even; past the largest and infinities give the largest,
// NaN gives 0x7f.
SSMJIT_DEVICE u32 fp8_pack_e4m3(float low, float high) {
  u16 r = 0;
#if __CUDA_ARCH__ >= 890
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(high), "f"(low));
#endif
  return r;
}
SSMJIT_DEVICE u32 fp8_pack_e5m2(float low, float high) {
  u16 r = 0;
#if __CUDA_ARCH__ >= 890
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(r) : "f"(high), "f"(low));
#endif
  return r;
}
// Two e4m3 elements to two fp16, exactly; the first in the low half.
SSMJIT_DEVICE u32 fp8_unpack_e4m3(u32 pair) {
  u32 r = 0;
#if __CUDA_ARCH__ >= 890
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"(static_cast<u16>(pair)));
#endif
  return r;
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

// ---- device/stochastic.cuh ----

#ifndef SSMJIT_CPU
// Stochastic rounding in hardware (PTX cvt.rs): sm_100a and sm_103a only. Elsewhere the operations give 0 and
// kStochasticInHardware is false. The random bits are added below the kept bits of the mantissa; the carry rounds up.

#if defined(__CUDA_ARCH_FEAT_SM100_ALL) || defined(__CUDA_ARCH_FEAT_SM103_ALL)
constexpr bool kStochasticInHardware = true;
#else
constexpr bool kStochasticInHardware = false;
#endif

// Two elements, the first in the low half. fp16 takes bits 0 to 12 for the first and 16 to 28 for the second, bf16 the
// halves of `bits`.
SSMJIT_DEVICE u32 stochastic_pack_f16(float low, float high, u32 bits) {
  u32 r = 0;
#if defined(__CUDA_ARCH_FEAT_SM100_ALL) || defined(__CUDA_ARCH_FEAT_SM103_ALL)
  asm("cvt.rs.f16x2.f32 %0, %1, %2, %3;" : "=r"(r) : "f"(high), "f"(low), "r"(bits));
#endif
  return r;
}
SSMJIT_DEVICE u32 stochastic_pack_bf16(float low, float high, u32 bits) {
  u32 r = 0;
#if defined(__CUDA_ARCH_FEAT_SM100_ALL) || defined(__CUDA_ARCH_FEAT_SM103_ALL)
  asm("cvt.rs.bf16x2.f32 %0, %1, %2, %3;" : "=r"(r) : "f"(high), "f"(low), "r"(bits));
#endif
  return r;
}
// Four elements, the first in the lowest byte; saturates at 448. Elements 0 and 1 share the low 16 bits, 2 and 3 the
// high ones, the odd ones reading them in reverse.
SSMJIT_DEVICE u32 stochastic_pack_e4m3(const float (&v)[4], u32 bits) {
  u32 r = 0;
#if defined(__CUDA_ARCH_FEAT_SM100_ALL) || defined(__CUDA_ARCH_FEAT_SM103_ALL)
  asm("cvt.rs.satfinite.e4m3x4.f32 %0, {%1, %2, %3, %4}, %5;"
      : "=r"(r)
      : "f"(v[3]), "f"(v[2]), "f"(v[1]), "f"(v[0]), "r"(bits));
#endif
  return r;
}
// The integer below a value from 0 up to 2^23 (anything of others), by an addition, which costs a quarter of a
// conversion.
SSMJIT_DEVICE unsigned floor_below_2_23(float v) { return __float_as_uint(__fadd_rz(v, 0x1p23f)) - 0x4b000000u; }
// v plus the low or the high half of a word, in one instruction of the multipliers' pipe.
SSMJIT_DEVICE u32 add_low_half(u32 v, u32 halves) {
  u32 r;
  asm("dp2a.lo.u32.u32 %0, %1, %2, %3;" : "=r"(r) : "r"(halves), "r"(0x0001), "r"(v));
  return r;
}
SSMJIT_DEVICE u32 add_high_half(u32 v, u32 halves) {
  u32 r;
  asm("dp2a.lo.u32.u32 %0, %1, %2, %3;" : "=r"(r) : "r"(halves), "r"(0x0100), "r"(v));
  return r;
}
// a + b towards zero.
SSMJIT_DEVICE float add_towards_zero(float a, float b) { return __fadd_rz(a, b); }
// Whether all of eight fp16 are of 2^-14 to less than 65504 in size.
SSMJIT_DEVICE bool are_amid_f16(const u32 (&word)[4]) {
  u32 least, most;
  asm("{.reg .b32 a, b, c, d, u, v;"
      "abs.f16x2 a, %2; abs.f16x2 b, %3; abs.f16x2 c, %4; abs.f16x2 d, %5;"
      "min.f16x2 u, a, b; min.f16x2 v, c, d; min.f16x2 %0, u, v;"
      "max.NaN.f16x2 u, a, b; max.NaN.f16x2 v, c, d; max.NaN.f16x2 %1, u, v;}"
      : "=r"(least), "=r"(most)
      : "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3]));
  // The signs of halves after these sums: set where the least is 0x0400 or more, the most 0x7bff or more.
  return ((~(least + 0x7c007c00u) | (most + 0x04010401u)) & 0x80008000u) == 0;
}
// Two fp32 cut to fp16 towards zero, the first in the low half; on any GPU. Past the largest finite it stays.
SSMJIT_DEVICE u32 pack_cut_f16(float low, float high) {
  u32 r;
  asm("cvt.rz.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
// The upper halves of two words, the first's in the low half.
SSMJIT_DEVICE u32 upper_halves(u32 low, u32 high) { return __byte_perm(low, high, 0x7632); }
#endif

// ---- rounding.cuh ----

// Narrow storage beside fp16 and bf16 (fp8, int8, int16), and stochastic rounding to all of them. Where hardware has a
// conversion it is used; the software beside it gives the same bits.

struct e4m3 {
  unsigned char bits;
};
struct e5m2 {
  unsigned char bits;
};
using i8 = signed char;
using i16 = short;

// ---- one element, in software ----

// fp8 with kMantissa mantissa bits, exponent bias kBias and largest finite pattern kLargest, to nearest even. Past the
// largest and infinities give the largest, NaN gives 0x7f.
template <int kMantissa, int kBias, u32 kLargest>
SSMJIT_DEVICE u32 nearest_fp8(float v) {
  constexpr int kDropped = 23 - kMantissa;
  constexpr u32 kSmallestNormal = static_cast<u32>(128 - kBias) << 23;
  constexpr u32 kRebias = static_cast<u32>(127 - kBias) << 23;
  // A number whose last place is the last place of fp8's subnormals: adding it rounds.
  constexpr u32 kSubnormalRounder = static_cast<u32>(127 + 1 - kBias - kMantissa + 23) << 23;
  const u32 bits = float_bits(v), magnitude = bits & 0x7fffffffu, sign = (bits >> 24) & 0x80u;
  if (magnitude > 0x7f800000u) return 0x7fu;
  u32 r;
  if (magnitude >= kSmallestNormal)
    r = (magnitude - kRebias + ((1u << (kDropped - 1)) - 1u) + ((magnitude >> kDropped) & 1u)) >> kDropped;
  else
    r = float_bits(bits_float(magnitude) + bits_float(kSubnormalRounder)) - kSubnormalRounder;
  return sign | (r < kLargest ? r : kLargest);
}
SSMJIT_DEVICE u32 nearest_e4m3(float v) { return nearest_fp8<3, 7, 0x7e>(v); }
SSMJIT_DEVICE u32 nearest_e5m2(float v) { return nearest_fp8<2, 15, 0x7b>(v); }

// Magnitudes, each from so many random bits added below the last kept bit; a carry rounds up, so a value that the
// format holds never changes. Bits of the value below the random ones are cut off. NaN gives 0x7fff (fp16, bf16) or
// 0x7f (e4m3). fp16: 13 random bits; 2^16 and more is infinity, as is what rounds up to it.
SSMJIT_DEVICE u32 stochastic_f16(float v, u32 random) {
  const u32 bits = float_bits(v), magnitude = bits & 0x7fffffffu, sign = (bits >> 16) & 0x8000u;
  // Below 2^-14 in units of 2^-37, 2^-13 of the last place. Selected, not branched to: one of a warp's lanes often has
  // such an element.
  const u32 subnormal = floor_below_2_23(bits_float(magnitude) * 0x1p37f);
  const u32 units = magnitude >= 0x38800000u ? magnitude - 0x38000000u : subnormal;
  const u32 finite = (units + (random & 0x1fffu)) >> 13;
  return magnitude > 0x7f800000u ? 0x7fffu : sign | (magnitude < 0x47800000u ? finite : 0x7c00u);
}
// bf16: 16 random bits; what rounds up past the largest is infinity.
SSMJIT_DEVICE u32 stochastic_bf16(float v, u32 random) {
  const u32 bits = float_bits(v);
  return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (bits + (random & 0xffffu)) >> 16;
}
// e4m3: 16 random bits; saturates at 448, infinities too.
SSMJIT_DEVICE u32 stochastic_e4m3(float v, u32 random) {
  const u32 bits = float_bits(v), magnitude = bits & 0x7fffffffu, sign = (bits >> 24) & 0x80u;
  random &= 0xffffu;
  if (magnitude > 0x7f800000u) return 0x7fu;
  u32 r;
  if (magnitude >= 0x3c800000u)  // 2^-6
    r = (magnitude - 0x3c000000u + (random << 4)) >> 20;
  else  // in units of 2^-25, 2^-16 of the last place
    r = (static_cast<u32>(floor_to_int(bits_float(magnitude) * 0x1p25f)) + random) >> 16;
  return sign | (r < 0x7eu ? r : 0x7eu);
}

// Integers are clamped to -kLargest..kLargest; NaN gives 0. The caller has divided by the scale.
template <int kLargest>
SSMJIT_DEVICE int nearest_int(float v) {
  const int r = round_to_int(v);
  return r < -kLargest ? -kLargest : r > kLargest ? kLargest : r;
}
// floor(v + random / 2^16), exactly, in the upper half of the word: what v drops below 2^-16 never adds up to a carry.
template <int kLargest>
SSMJIT_DEVICE int stochastic_units(float v, u32 random) {
  constexpr int kBound = kLargest * 65536;
  const int r = floor_to_int(v * 65536.0f);
  return (r < -kBound ? -kBound : r > kBound ? kBound : r) + static_cast<int>(random & 0xffffu);
}
template <int kLargest>
SSMJIT_DEVICE int stochastic_int(float v, u32 random) {
  return stochastic_units<kLargest>(v, random) >> 16;
}

// ---- words of packed storage, to nearest even; exactly back ----

SSMJIT_DEVICE u32 pack_word(const float (&v)[4], e4m3) {
  if constexpr (kFp8InHardware)
    return fp8_pack_e4m3(v[0], v[1]) | fp8_pack_e4m3(v[2], v[3]) << 16;
  else
    return nearest_e4m3(v[0]) | nearest_e4m3(v[1]) << 8 | nearest_e4m3(v[2]) << 16 | nearest_e4m3(v[3]) << 24;
}
SSMJIT_DEVICE u32 pack_word(const float (&v)[4], e5m2) {
  if constexpr (kFp8InHardware)
    return fp8_pack_e5m2(v[0], v[1]) | fp8_pack_e5m2(v[2], v[3]) << 16;
  else
    return nearest_e5m2(v[0]) | nearest_e5m2(v[1]) << 8 | nearest_e5m2(v[2]) << 16 | nearest_e5m2(v[3]) << 24;
}
SSMJIT_DEVICE u32 pack_bytes(int b0, int b1, int b2, int b3) {
  return (static_cast<u32>(b0) & 0xffu) | (static_cast<u32>(b1) & 0xffu) << 8 | (static_cast<u32>(b2) & 0xffu) << 16 |
         static_cast<u32>(b3) << 24;
}
SSMJIT_DEVICE u32 pack_word(const float (&v)[4], i8) {
  return pack_bytes(nearest_int<127>(v[0]), nearest_int<127>(v[1]), nearest_int<127>(v[2]), nearest_int<127>(v[3]));
}
SSMJIT_DEVICE u32 pack_word(const float (&v)[2], i16) {
  return (static_cast<u32>(nearest_int<32767>(v[0])) & 0xffffu) | static_cast<u32>(nearest_int<32767>(v[1])) << 16;
}

SSMJIT_DEVICE void unpack_word(u32 word, float (&v)[4], e4m3) {
  if constexpr (kFp8InHardware) {
    float low[2], high[2];
    unpack_word(fp8_unpack_e4m3(word & 0xffffu), low, f16{});
    unpack_word(fp8_unpack_e4m3(word >> 16), high, f16{});
    v[0] = low[0], v[1] = low[1], v[2] = high[0], v[3] = high[1];
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 byte = word >> (8 * i), magnitude = byte & 0x7fu, sign = (byte & 0x80u) << 24;
      // The pattern as an fp32 of the same fraction, whose exponent the product sets right, subnormals too.
      const float exact = bits_float(magnitude << 20) * 0x1p120f;
      v[i] = magnitude == 0x7fu ? bits_float(0x7fffffffu) : bits_float(float_bits(exact) | sign);
    }
  }
}
// The upper half of an fp16 is an e5m2.
SSMJIT_DEVICE void unpack_word(u32 word, float (&v)[4], e5m2) {
  float even[2], odd[2];
  unpack_word((word & 0x00ff00ffu) << 8, even, f16{});
  unpack_word(word & 0xff00ff00u, odd, f16{});
  v[0] = even[0], v[1] = odd[0], v[2] = even[1], v[3] = odd[1];
}
SSMJIT_DEVICE void unpack_word(u32 word, float (&v)[4], i8) {
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = static_cast<float>(static_cast<i8>(word >> (8 * i)));
}
// Elements 2 half and 2 half + 1 of the four.
SSMJIT_DEVICE void unpack_half_word(u32 word, int half, float (&v)[2], i8) {
  // v + 128 as the last byte of 2^23 + v + 128: no conversion, which is slow.
  const u32 biased = (word ^ 0x80808080u) >> (16 * half);
  v[0] = bits_float(0x4b000000u | (biased & 0xffu)) - 8388736.0f;
  v[1] = bits_float(0x4b000000u | (biased >> 8 & 0xffu)) - 8388736.0f;
}
SSMJIT_DEVICE void unpack_half_word(u32 word, int half, float (&v)[2], e4m3) {
  if constexpr (kFp8InHardware) {
    unpack_word(fp8_unpack_e4m3(word >> (16 * half) & 0xffffu), v, f16{});
  } else {
    float four[4];
    unpack_word(word, four, e4m3{});
    v[0] = half == 0 ? four[0] : four[2];
    v[1] = half == 0 ? four[1] : four[3];
  }
}
SSMJIT_DEVICE void unpack_word(u32 word, float (&v)[2], i16) {
  v[0] = static_cast<float>(static_cast<i16>(word));
  v[1] = static_cast<float>(static_cast<i16>(word >> 16));
}

// ---- eight neighbouring elements of one draw, stochastically ----

// fp16, bf16, int8 and int16: element i takes half-word i of the draw (fp16 its low 13 bits).
SSMJIT_DEVICE u32 random_half(const Draw& draw, int i) { return draw.word[i / 2] >> (16 * (i & 1)); }

// `probe` of the functions below: any number that is finite only where all elements are, as this one.
SSMJIT_DEVICE float probe_of(const float (&v)[8]) {
  float sum = abs_f32(v[0]);
#pragma unroll
  for (int i = 1; i < 8; ++i) sum += abs_f32(v[i]);
  return sum;
}
// Adding the bits and cutting is all that is to do where that gives what fp16 holds as a normal number below its
// largest; subnormals are done again in units of their last place, anything beyond one by one.
SSMJIT_DEVICE void round_stochastic(const float (&v)[8], const Draw& draw, u32 (&word)[4], f16, float) {
  if constexpr (kStochasticInHardware) {
#pragma unroll
    for (int i = 0; i < 4; ++i) word[i] = stochastic_pack_f16(v[2 * i], v[2 * i + 1], draw.word[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 random = draw.word[i] & 0x1fff1fffu;
      word[i] = pack_cut_f16(bits_float(add_low_half(float_bits(v[2 * i]), random)),
                             bits_float(add_high_half(float_bits(v[2 * i + 1]), random)));
    }
    if (are_amid_f16(word)) return;
    if (probe_of(v) < 65504.0f) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // The random bits as 2^-37 beside 2^-14: the sum is in these units, as fp16 in the subnormals' beside 2^-14.
        const u32 random = draw.word[i] & 0x1fff1fffu;
        const u32 small =
            pack_cut_f16(add_towards_zero(abs_f32(v[2 * i]), bits_float(add_low_half(0x38800000u, random))),
                         add_towards_zero(abs_f32(v[2 * i + 1]), bits_float(add_high_half(0x38800000u, random))));
        // All ones where the half has an exponent: it is above the subnormals before any bits or after them.
        const u32 normal = ((((word[i] & 0x7c007c00u) + 0x7c007c00u) >> 15) & 0x00010001u) * 0xffffu;
        word[i] = (word[i] & (normal | 0x80008000u)) | ((small - 0x04000400u) & ~normal);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        word[i] = stochastic_f16(v[2 * i], random_half(draw, 2 * i)) |
                  stochastic_f16(v[2 * i + 1], random_half(draw, 2 * i + 1)) << 16;
    }
  }
}
SSMJIT_DEVICE void round_stochastic(const float (&v)[8], const Draw& draw, u32 (&word)[4], bf16, float probe) {
  if constexpr (kStochasticInHardware) {
#pragma unroll
    for (int i = 0; i < 4; ++i) word[i] = stochastic_pack_bf16(v[2 * i], v[2 * i + 1], draw.word[i]);
  } else if (abs_f32(probe) <= 0x1.fffffep127f) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      word[i] = upper_halves(add_low_half(float_bits(v[2 * i]), draw.word[i]),
                             add_high_half(float_bits(v[2 * i + 1]), draw.word[i]));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      word[i] = stochastic_bf16(v[2 * i], random_half(draw, 2 * i)) |
                stochastic_bf16(v[2 * i + 1], random_half(draw, 2 * i + 1)) << 16;
  }
}
// e4m3 takes word i of the draw for elements 4i to 4i + 3, as the hardware does: the low 16 bits for the first, in
// reverse for the second, the high 16 likewise for the other two.
SSMJIT_DEVICE void round_stochastic(const float (&v)[8], const Draw& draw, u32 (&word)[2], e4m3, float) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const u32 bits = draw.word[i];
    const float four[4] = {v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]};
    if constexpr (kStochasticInHardware)
      word[i] = stochastic_pack_e4m3(four, bits);
    else
      word[i] = stochastic_e4m3(four[0], bits) | stochastic_e4m3(four[1], reverse_bits(bits) >> 16) << 8 |
                stochastic_e4m3(four[2], bits >> 16) << 16 | stochastic_e4m3(four[3], reverse_bits(bits)) << 24;
  }
}
SSMJIT_DEVICE void round_stochastic(const float (&v)[8], const Draw& draw, u32 (&word)[2], i8, float) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    int q[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) q[j] = stochastic_int<127>(v[4 * i + j], random_half(draw, 4 * i + j));
    word[i] = pack_bytes(q[0], q[1], q[2], q[3]);
  }
}
SSMJIT_DEVICE void round_stochastic(const float (&v)[8], const Draw& draw, u32 (&word)[4], i16, float) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    word[i] = upper_halves(static_cast<u32>(stochastic_units<32767>(v[2 * i], random_half(draw, 2 * i))),
                           static_cast<u32>(stochastic_units<32767>(v[2 * i + 1], random_half(draw, 2 * i + 1))));
}

// ---- a vector of neighbouring state elements ----

// Whether the rows of a state of T have a scale, and the largest number that T holds.
SSMJIT_DEVICE constexpr bool is_scaled(i8) { return true; }
SSMJIT_DEVICE constexpr bool is_scaled(e4m3) { return true; }
SSMJIT_DEVICE constexpr bool is_scaled(i16) { return true; }
template <class T>
SSMJIT_DEVICE constexpr bool is_scaled(T) {
  return false;
}
SSMJIT_DEVICE constexpr float largest_of(i8) { return 127.0f; }
SSMJIT_DEVICE constexpr float largest_of(e4m3) { return 448.0f; }
SSMJIT_DEVICE constexpr float largest_of(i16) { return 32767.0f; }

// What a row is multiplied by before it is rounded, from the size of its largest element; the inverse is its scale.
// A row of nothing, or of so little that fp32 has no such factor, is stored as zeros with a scale of 1.
template <class T>
SSMJIT_DEVICE float encode_of_row(float largest, T) {
  return largest >= 0x1p-110f ? largest_of(T{}) / largest : 1.0f;
}

// To nearest even.
template <int kCount, class T>
SSMJIT_DEVICE Vec16 round_vector(const float (&v)[kCount], T) {
  static_assert(kCount == 4 * kPerWord<T>);
  Vec16 rounded;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    float part[kPerWord<T>];
#pragma unroll
    for (int e = 0; e < kPerWord<T>; ++e) part[e] = v[w * kPerWord<T> + e];
    rounded.word[w] = pack_word(part, T{});
  }
  return rounded;
}
// By chance, from a draw for each eight elements. `probe`: of all of them.
template <int kCount, class T>
SSMJIT_DEVICE Vec16 round_vector_by(const float (&v)[kCount], const Draw* draw, T, float probe) {
  static_assert(kCount == 4 * kPerWord<T> && kCount % 8 == 0);
  constexpr int kWords = 8 / kPerWord<T>;  // of a draw
  Vec16 rounded;
#pragma unroll
  for (int d = 0; d < kCount / 8; ++d) {
    float eight[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) eight[e] = v[8 * d + e];
    u32 word[kWords];
    round_stochastic(eight, draw[d], word, T{}, probe);
#pragma unroll
    for (int w = 0; w < kWords; ++w) rounded.word[d * kWords + w] = word[w];
  }
  return rounded;
}
template <int kCount, class T>
SSMJIT_DEVICE Vec16 round_vector_by(const float (&v)[kCount], const Draw* draw, T) {
  float probe = abs_f32(v[0]);
#pragma unroll
  for (int e = 1; e < kCount; ++e) probe += abs_f32(v[e]);
  return round_vector_by(v, draw, T{}, probe);
}
// The same; `place`: of the first element, a multiple of 8, as state_draw counts it.
template <int kRounds, int kCount, class T>
SSMJIT_DEVICE Vec16 round_vector_stochastic(const float (&v)[kCount], u64 seed, u64 place, T) {
  Draw draw[kCount / 8];
#pragma unroll
  for (int d = 0; d < kCount / 8; ++d) draw[d] = state_draw<kRounds>(seed, place + 8 * d, 0);
  return round_vector_by(v, draw, T{});
}

// ---- update_tokens_args.cuh ----

// What a launch of the update kernels of several tokens is given, by value, in one struct (also read by the host, so
// plain C++). Strides count elements. Pointers that the description has no use for are null. Index arrays are all int64
// or all int32, but cu_seqlens, which is int32.

struct UpdateTokensArgs {
  // What the first loads need stands first: a kernel fetches its arguments line by line, and waits for each.
  const void* state_batch_indices;  // [batch], null: row b uses slot b; with accepted counts [batch, columns]
  long long index_stride;
  long long index_column_stride;
  int wide_indices;                 // 1: indices are int64, 0: int32
  int pdl;                          // 0: no wait; 1: wait, then read; 2: a kernel with kEarlyState reads indices and
                                    // the state, waits, then reads the rest; any other does as for 1
  const void* A;                    // [nheads] fp32, negative
  const void* num_accepted_tokens;  // [batch], of the step before
  long long accepted_stride;
  const int* cu_seqlens;   // [batch + 1], varlen: where a request's tokens begin and end
  int total;               // varlen: tokens of all requests
  int index_columns;       // of state_batch_indices; at least one a token
  long long slots;         // a slot index outside [0, slots) makes its row a pad row
  long long pad_slot_id;   // a row with this index, or a negative one, is a pad row
  void* state;             // [slots, nheads, head_dim, dstate], inner three contiguous, 16-byte aligned rows; updated
  long long state_stride;  // between slots
  float* state_scale;      // [slots, nheads, head_dim], inner two contiguous
  long long state_scale_stride;
  const void* B;  // [batch, tokens, ngroups, dstate]; varlen, as all of these: [total, ...], request strides 0
  long long B_stride, B_token_stride;
  const void* C;  // [batch, tokens, ngroups, dstate]
  long long C_stride, C_token_stride;
  const void* x;  // [batch, tokens, nheads, head_dim]
  long long x_stride, x_token_stride;
  const void* z;  // [batch, tokens, nheads, head_dim], gate
  long long z_stride, z_token_stride;
  const void* dt;  // [batch, tokens, nheads]
  long long dt_stride, dt_token_stride;
  const void* dt_bias;  // [nheads]
  const void* D;        // [nheads]
  void* out;            // [batch, tokens, nheads, head_dim]
  long long out_stride, out_token_stride;
  const void* dst_state_batch_indices;  // [batch, tokens] of slots by token; else [batch] or null: where it was read
  long long dst_index_stride, dst_index_token_stride;
  void* intermediate_states;  // [snapshot_slots, steps, nheads, head_dim, dstate], the state after each token; written
  float* intermediate_state_scales;
  long long snapshot_slots;
  int snapshot_steps;
  int nheads;
  const void* intermediate_state_indices;  // [batch], null: the slot that is read
  long long snapshot_index_stride;
  const void* retrieve_parent_token;  // [batch, tokens], a tree's
  long long parent_stride, parent_token_stride;
  const long long* rand_seed;  // rounding by chance: one, or one a slot of the state
  long long seed_stride;
  int disable_state_update;  // 1: of snapshots, the state that was read stays as it was
};

// ---- update_tokens.cuh ----

// One step of several tokens of a state-space layer, of one request after the other token by token:
//
//   delta = Cfg::delta(dt, dt_bias)            a head and token
//   h[p, n] <- decay * h[p, n] + (delta * x[p]) * B[n]
//   y[p] = sum over n of h[p, n] * C[n]        from the fp32 h, not from what is stored
//   y[p] += Cfg::skip(D, x[p]);  y[p] *= Cfg::gate(z[p])
//
// h stays in fp32 registers from the first token to the last and is rounded only where it is stored: after every token
// (snapshots, slots), after the last one (in place), or both. What costs are these stores: a state is read once and
// written up to once a token. A block takes block_m rows of head_dim of one head and request; a warp takes block_m /
// warps neighbouring rows, lanes_per_row lanes share a row of dstate in 16-byte vectors. x, B, C and z of all tokens
// (of up to 16 at once) come into shared memory by one round of copies, under way while the slot's index is; delta and
// decay of token t are computed by lane t.
//
// A lane reads all of its elements before it writes any, and no other lane touches them, so that the slot that is read
// may be one of those that are written.

enum class StateStore { in_place, snapshots, slots };

// Sizes that follow from Cfg. Cfg is a struct of constants: kHeadDim, kDstate, kHeadsPerGroup, kTokens, the types
// State, Input, Dt, Weight, kPadOutput, kStore, kDestination, kAccepted, kTree, kVarlen, kPhiloxRounds, the plan's
// fields, and the functions delta, decay, skip, gate.
template <class Cfg>
struct TokensShape {
  static constexpr int kVecElements = 16 / static_cast<int>(sizeof(typename Cfg::State));
  static constexpr int kRowVectors = Cfg::kDstate / kVecElements;
  static constexpr int kLanes = Cfg::kLanesPerRow;
  static constexpr int kVectors = (kRowVectors + kLanes - 1) / kLanes;  // a lane and row; the last may be past the end
  static constexpr bool kRagged = kRowVectors % kLanes != 0;
  static constexpr int kRowsPerWarp = Cfg::kBlockM / Cfg::kWarps;
  static constexpr int kRows = kRowsPerWarp / (32 / kLanes);  // a lane
  static constexpr int kTiles = Cfg::kHeadDim / Cfg::kBlockM;
  static constexpr i64 kHeadSize = Cfg::kHeadDim * Cfg::kDstate;
  static constexpr bool kScaled = is_scaled(typename Cfg::State{});
  static constexpr bool kEveryToken = Cfg::kStore != StateStore::in_place;
  static constexpr int kChunk = Cfg::kTokens < 16 ? Cfg::kTokens : 16;  // tokens whose inputs are in shared memory
  static constexpr int kTurn = Cfg::kStages < kChunk ? Cfg::kStages : kChunk;  // tokens that a turn of the loop takes
  using Sums = RowSums<kRows, kLanes>;
  static constexpr int kOwned = Sums::owned();
};

// kCount neighbouring elements of shared memory as they lie there, widened where they are used. The address is a
// multiple of the largest power of two (up to 16 bytes) that divides their size.
template <class T, int kCount>
struct Staged {
  static constexpr int kBytes = kCount * static_cast<int>(sizeof(T));
  static constexpr bool kWords = kBytes % 4 == 0;
  static constexpr int kPer = kPerWord<T>;
  T element[kWords ? 1 : kCount];
  u32 word[kWords ? kBytes / 4 : 1];

  SSMJIT_DEVICE void load(const T* p) {
    if constexpr (kBytes % 16 == 0) {
#pragma unroll
      for (int i = 0; i < kBytes / 4; i += 4) {
        const Vec16 v = load_shared(reinterpret_cast<const u32*>(p) + i);
#pragma unroll
        for (int j = 0; j < 4; ++j) word[i + j] = v.word[j];
      }
    } else if constexpr (kBytes % 8 == 0) {
#pragma unroll
      for (int i = 0; i < kBytes / 4; i += 2) {
        const u64 v = reinterpret_cast<const u64*>(p)[i / 2];
        word[i] = static_cast<u32>(v);
        word[i + 1] = static_cast<u32>(v >> 32);
      }
    } else if constexpr (kWords) {
#pragma unroll
      for (int i = 0; i < kBytes / 4; ++i) word[i] = reinterpret_cast<const u32*>(p)[i];
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) element[i] = p[i];
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

// The inputs of up to kChunk tokens: of the request's group, and of the block's rows.
template <class Cfg>
struct TokenStage {
  using Input = typename Cfg::Input;
  static constexpr int kChunk = TokensShape<Cfg>::kChunk;
  alignas(16) Input B[kChunk][Cfg::kDstate];
  alignas(16) Input C[kChunk][Cfg::kDstate];
  alignas(16) Input x[kChunk][Cfg::kBlockM];
  alignas(16) Input z[Cfg::kHasGate ? kChunk : 1][Cfg::kBlockM];
};

// The state of a lane, in fp32.
template <class Cfg>
struct LaneState {
  using S = TokensShape<Cfg>;
  float v[S::kRows][S::kVectors][S::kVecElements];
};

// What a lane needs of one token, as it lies in shared memory.
template <class Cfg>
struct LaneToken {
  using S = TokensShape<Cfg>;
  using Input = typename Cfg::Input;
  Staged<Input, S::kVecElements> B[S::kVectors], C[S::kVectors];
  Staged<Input, S::kRows> x;  // of the rows whose state the lane holds
};

// An index of each lane, read by all of the warp.
SSMJIT_DEVICE i64 shuffle_index(i64 v, int lane) {
  const u32 low = shuffle(static_cast<u32>(v), lane), high = shuffle(static_cast<u32>(static_cast<u64>(v) >> 32), lane);
  return static_cast<i64>(static_cast<u64>(high) << 32 | low);
}

template <class Cfg>
struct TokensStep {
  using S = TokensShape<Cfg>;
  using State = typename Cfg::State;
  using Input = typename Cfg::Input;

  const UpdateTokensArgs& args;
  int row;  // request
  int head;
  int first_row;  // the block's, of head_dim
  int lane_row;   // the lane's first row of head_dim
  int column;     // the lane's place among the lanes of a row
  int own_row;    // the first row whose output the lane writes
  bool owner;     // whether it writes them

  // The lane's vector v of row r within a head's [head_dim, dstate], in elements.
  SSMJIT_DEVICE int element(int r, int v) const {
    return (lane_row + r) * Cfg::kDstate + (v * S::kLanes + column) * S::kVecElements;
  }
  SSMJIT_DEVICE bool inside(int v) const {
    return !S::kRagged || v + 1 < S::kVectors || v * S::kLanes + column < S::kRowVectors;
  }
  SSMJIT_DEVICE bool usable(i64 slot, i64 slots) const { return slot >= 0 && slot < slots && slot != args.pad_slot_id; }
  SSMJIT_DEVICE IndexEntry index(const void* indices, i64 at, i64 otherwise) const {
    return IndexEntry::load(indices, args.wide_indices, at, otherwise, args.A);
  }
  // Of the block's head in a slot of a pool of states, elements; in one of scales.
  SSMJIT_DEVICE i64 state_at(i64 slot) const { return slot * args.state_stride + head * S::kHeadSize; }
  SSMJIT_DEVICE i64 scale_at(i64 slot) const { return slot * args.state_scale_stride + head * Cfg::kHeadDim; }
  SSMJIT_DEVICE i64 snapshot_at(i64 slot, int step) const {
    return ((slot * args.snapshot_steps + step) * args.nheads + head) * S::kHeadSize;
  }
  SSMJIT_DEVICE i64 snapshot_scale_at(i64 slot, int step) const {
    return ((slot * args.snapshot_steps + step) * args.nheads + head) * Cfg::kHeadDim;
  }

  // Tokens chunk to chunk + count of the request, whose first is token `first` of the tensors' row.
  SSMJIT_DEVICE void stage_tokens(TokenStage<Cfg>& stage, i64 first, int chunk, int count) const {
    constexpr int kPer = Cfg::kAlignedRows ? 16 / static_cast<int>(sizeof(Input)) : 1;  // elements a copy
    constexpr int kColumns = Cfg::kDstate / kPer, kOfRows = Cfg::kBlockM / kPer;
    constexpr int kCopies = 2 * kColumns + kOfRows * (Cfg::kHasGate ? 2 : 1);  // a token
    const i64 group = static_cast<i64>(head / Cfg::kHeadsPerGroup) * Cfg::kDstate;
    const i64 rows = static_cast<i64>(head) * Cfg::kHeadDim + first_row;
    const auto tokens_of = [&](const void* base, i64 stride, i64 token_stride, i64 inner) {
      return static_cast<const Input*>(base) + row * stride + (first + chunk) * token_stride + inner;
    };
    const Input* const B = tokens_of(args.B, args.B_stride, args.B_token_stride, group);
    const Input* const C = tokens_of(args.C, args.C_stride, args.C_token_stride, group);
    const Input* const x = tokens_of(args.x, args.x_stride, args.x_token_stride, rows);
    const Input* const z = tokens_of(args.z, args.z_stride, args.z_token_stride, rows);
    for (int i = thread_index(); i < count * kCopies; i += 32 * Cfg::kWarps) {
      const int t = i / kCopies, u = i % kCopies;
      const Input* from;
      Input* to;
      if (u < kColumns) {
        from = B + t * args.B_token_stride + u * kPer;
        to = stage.B[t] + u * kPer;
      } else if (u < 2 * kColumns) {
        from = C + t * args.C_token_stride + (u - kColumns) * kPer;
        to = stage.C[t] + (u - kColumns) * kPer;
      } else if (!Cfg::kHasGate || u < 2 * kColumns + kOfRows) {
        from = x + t * args.x_token_stride + (u - 2 * kColumns) * kPer;
        to = stage.x[t] + (u - 2 * kColumns) * kPer;
      } else {
        from = z + t * args.z_token_stride + (u - 2 * kColumns - kOfRows) * kPer;
        to = stage.z[Cfg::kHasGate ? t : 0] + (u - 2 * kColumns - kOfRows) * kPer;
      }
      if constexpr (Cfg::kAlignedRows) {
        copy_async(to, from);
      } else {
        Input one;
        load_now(from, one);
        *to = one;
      }
    }
    copy_async_commit();
  }

  SSMJIT_DEVICE void load_token(LaneToken<Cfg>& token, const TokenStage<Cfg>& stage, int t) const {
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v) {
      if (inside(v)) {
        token.B[v].load(stage.B[t] + (v * S::kLanes + column) * S::kVecElements);
        token.C[v].load(stage.C[t] + (v * S::kLanes + column) * S::kVecElements);
      } else {
        token.B[v].zero();
        token.C[v].zero();
      }
    }
    token.x.load(stage.x[t] + (lane_row - first_row));
  }

  // All vectors are asked for before the first is used.
  struct Loaded {
    Vec16 raw[S::kRows][S::kVectors];
    float scale[S::kScaled ? S::kRows : 1];
  };
  SSMJIT_DEVICE void request_state(Loaded& loaded, const State* from, const float* scales, bool live) const {
#pragma unroll
    for (int r = 0; r < S::kRows; ++r)
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v)
        loaded.raw[r][v] = live && inside(v) ? load_global<Cfg::kStreaming>(from + element(r, v)) : Vec16{};
    if constexpr (S::kScaled) {
#pragma unroll
      for (int r = 0; r < S::kRows; ++r) {
        loaded.scale[r] = 0.0f;
        if (live) load_now(scales + lane_row + r, loaded.scale[r]);
      }
    }
  }
  SSMJIT_DEVICE void widen_state(LaneState<Cfg>& state, const Loaded& loaded) const {
    constexpr int kPer = kPerWord<State>;
#pragma unroll
    for (int r = 0; r < S::kRows; ++r)
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v)
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          float part[kPer];
          unpack_word(loaded.raw[r][v].word[w], part, State{});
#pragma unroll
          for (int e = 0; e < kPer; ++e) {
            float s = part[e];
            if constexpr (S::kScaled) s *= loaded.scale[r];
            state.v[r][v][w * kPer + e] = s;
          }
        }
  }

  // What is stored of a vector; `place`: of its first element, as state_draw counts it.
  SSMJIT_DEVICE Vec16 rounded(const float (&v)[S::kVecElements], u64 seed, u64 place, u32 token) const {
    if constexpr (Cfg::kPhiloxRounds == 0) {
      return round_vector(v, State{});
    } else {
      Draw draw[S::kVecElements / 8];
#pragma unroll
      for (int d = 0; d < S::kVecElements / 8; ++d)
        draw[d] = state_draw<Cfg::kPhiloxRounds>(seed, place + 8 * d, token);
      return round_vector_by(v, draw, State{});
    }
  }
  // The lane's part of the head to a slot, after token `token` of those that the launch stores (random bits: contract).
  // All lanes of the warp come here.
  SSMJIT_DEVICE void store_state(const LaneState<Cfg>& state, State* to, float* scales, i64 slot, u64 seed,
                                 u32 token) const {
    const u64 place = (static_cast<u64>(slot) * static_cast<u64>(args.nheads) + static_cast<u64>(head)) * S::kHeadSize;
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      float encode = 1.0f;
      if constexpr (S::kScaled) {
        float largest = 0.0f;
#pragma unroll
        for (int v = 0; v < S::kVectors; ++v)
#pragma unroll
          for (int e = 0; e < S::kVecElements; ++e)
            if (inside(v)) largest = max_f32(largest, abs_f32(state.v[r][v][e]));
        largest = max_lanes<S::kLanes>(largest);
        encode = encode_of_row(largest, State{});
        if (column == 0) scales[lane_row + r] = 1.0f / encode;
      }
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v) {
        float scaled[S::kVecElements];
#pragma unroll
        for (int e = 0; e < S::kVecElements; ++e) scaled[e] = S::kScaled ? state.v[r][v][e] * encode : state.v[r][v][e];
        const int at = element(r, v);
        if (inside(v))
          store_global<Cfg::kStreaming>(to + at, rounded(scaled, seed, place + static_cast<u64>(at), token));
      }
    }
  }

  // One token: the recurrence on the lane's elements, and its sums over dstate.
  SSMJIT_DEVICE void advance(LaneState<Cfg>& state, const LaneToken<Cfg>& token, float delta, float decay,
                             float (&y)[S::kRows]) const {
    float x[S::kRows];
    token.x.widen_to(x);
    float B[S::kVectors][S::kVecElements], C[S::kVectors][S::kVecElements];
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v) {
      token.B[v].widen_to(B[v]);
      token.C[v].widen_to(C[v]);
    }
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      const float u = delta * x[r];
      y[r] = 0.0f;
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v)
#pragma unroll
        for (int e = 0; e < S::kVecElements; ++e) {
          state.v[r][v][e] = fma_f32(state.v[r][v][e], decay, u * B[v][e]);
          y[r] = fma_f32(state.v[r][v][e], C[v][e], y[r]);
        }
    }
    S::Sums::sum(y, column);
  }

  SSMJIT_DEVICE Input* output(i64 token) const {
    return static_cast<Input*>(args.out) + row * args.out_stride + token * args.out_token_stride +
           static_cast<i64>(head) * Cfg::kHeadDim + own_row;
  }
  SSMJIT_DEVICE void write_outputs(const float (&y)[S::kRows], float D, const TokenStage<Cfg>& stage, int t,
                                   i64 token) const {
    if (!owner) return;
    Input* const out = output(token);
    const int own = own_row - first_row;
#pragma unroll
    for (int i = 0; i < S::kOwned; ++i) {
      float v = y[i];
      if constexpr (Cfg::kHasSkip) v += Cfg::skip(D, widen(stage.x[t][own + i]));
      if constexpr (Cfg::kHasGate) v *= Cfg::gate(widen(stage.z[t][own + i]));
      narrow(v, out[i]);
    }
  }
  SSMJIT_DEVICE void write_zeros(i64 first, int tokens) const {
    if (!owner) return;
    for (int t = 0; t < tokens; ++t) {
      Input* const out = output(first + t);
#pragma unroll
      for (int i = 0; i < S::kOwned; ++i) narrow(0.0f, out[i]);
    }
  }
};

// Grid: x = nheads * (head_dim / block_m), y = batch. Block: 32 * warps threads.
template <class Cfg>
SSMJIT_DEVICE void update_tokens(const UpdateTokensArgs& args) {
  using S = TokensShape<Cfg>;
  using State = typename Cfg::State;
  static_assert(Cfg::kHeadsPerBlock == 1 && Cfg::kStatePath == StatePath::direct);
  const int warp = thread_index() / 32;
  const int lane = lane_index();
  const int column = lane % S::kLanes;
  const int first_row = (block_x() % S::kTiles) * Cfg::kBlockM;
  const int lane_row = first_row + warp * S::kRowsPerWarp + (lane / S::kLanes) * S::kRows;
  const TokensStep<Cfg> at{args,
                           block_y(),
                           block_x() / S::kTiles,
                           first_row,
                           lane_row,
                           column,
                           lane_row + S::Sums::first_row(column),
                           S::Sums::owner(column)};
  __shared__ TokenStage<Cfg> stage;

  if (args.pdl != kPdlOff) {
    grid_dependency_trigger();
    if (!Cfg::kEarlyState || args.pdl == kPdlWaitFirst) grid_dependency_wait();
  }

  // Which slot, and which tokens. What follows from an index stands behind the loads that do not need it.
  IndexEntry slot_entry, accepted_entry, target_entry, snapshot_entry;
  u32 begin = 0, end = 0;
  if constexpr (Cfg::kAccepted) {
    // A column for each token, one a lane: which one counts is under way too.
    accepted_entry = at.index(args.num_accepted_tokens, at.row * args.accepted_stride, 1);
    const int mine = lane < Cfg::kTokens ? lane : Cfg::kTokens - 1;
    slot_entry = at.index(args.state_batch_indices, at.row * args.index_stride + mine * args.index_column_stride, -1);
  } else {
    slot_entry = at.index(args.state_batch_indices, at.row * args.index_stride, at.row);
  }
  if constexpr (Cfg::kStore == StateStore::snapshots) {
    if (args.intermediate_state_indices != nullptr)
      snapshot_entry = at.index(args.intermediate_state_indices, at.row * args.snapshot_index_stride, -1);
  }
  if constexpr (Cfg::kDestination) {
    if (args.dst_state_batch_indices != nullptr)
      target_entry = at.index(args.dst_state_batch_indices, at.row * args.dst_index_stride, -1);
  }
  if constexpr (Cfg::kVarlen) {
    begin = load_now_b32(args.cu_seqlens + at.row);
    end = load_now_b32(args.cu_seqlens + at.row + 1);
  }

  i64 source = 0;
  bool live = false;
  i64 snapshot = -1;  // where states after tokens go; -1: nowhere
  const auto locate = [&] {
    source = slot_entry.value();
    if constexpr (Cfg::kAccepted) {
      const i64 accepted = accepted_entry.value();
      // No count above the tokens chooses a slot behind theirs, however many columns there are.
      const int which = accepted < 1 ? 0 : static_cast<int>(accepted < Cfg::kTokens ? accepted : Cfg::kTokens) - 1;
      source = shuffle_index(source, which & 31);
      if (which >= 32)
        source = at.index(args.state_batch_indices, at.row * args.index_stride + which * args.index_column_stride, -1)
                     .value();
    }
    live = at.usable(source, args.slots);
    if constexpr (Cfg::kStore == StateStore::snapshots) {
      snapshot = args.intermediate_state_indices != nullptr ? snapshot_entry.value() : source;
      if (!live || !at.usable(snapshot, args.snapshot_slots)) snapshot = -1;
      if constexpr (Cfg::kTree) live = snapshot >= 0;  // its tokens go back to where others were stored
    }
  };
  typename TokensStep<Cfg>::Loaded loaded;
  const auto request_state = [&] {
    at.request_state(loaded, static_cast<const State*>(args.state) + (live ? at.state_at(source) : 0),
                     args.state_scale + (S::kScaled && live ? at.scale_at(source) : 0), live);
  };
  if constexpr (Cfg::kEarlyState) {
    locate();
    request_state();
    grid_dependency_wait();
  }

  i64 first = 0;
  int tokens = Cfg::kTokens;
  if constexpr (Cfg::kVarlen) {
    // Out of order or range they are the caller's error, but no address leaves the tensors.
    const int from = static_cast<int>(begin), to = static_cast<int>(end);
    const int start = from < 0 ? 0 : from < args.total ? from : args.total;
    const int stop = to < args.total ? to : args.total;
    first = start;
    tokens = stop - start < 0 ? 0 : stop - start < Cfg::kTokens ? stop - start : Cfg::kTokens;
    if (tokens == 0) return;
  }
  const auto chunk_count = [&](int chunk) {
    const int left = tokens - chunk;
    return left < S::kChunk ? left : S::kChunk;
  };
  // Lane t: of token t of those in shared memory.
  typename Cfg::Dt dt;
  IndexEntry token_target, token_parent;
  const auto request_tokens = [&](int chunk) {
    const int count = chunk_count(chunk), mine = lane < count ? lane : count - 1;
    at.stage_tokens(stage, first, chunk, count);
    load_now(static_cast<const typename Cfg::Dt*>(args.dt) + at.row * args.dt_stride +
                 (first + chunk + mine) * args.dt_token_stride + at.head,
             dt);
    if constexpr (Cfg::kStore == StateStore::slots)
      token_target = at.index(args.dst_state_batch_indices,
                              at.row * args.dst_index_stride + (chunk + mine) * args.dst_index_token_stride, -1);
    if constexpr (Cfg::kTree)
      token_parent = at.index(args.retrieve_parent_token,
                              at.row * args.parent_stride + (chunk + mine) * args.parent_token_stride, -1);
  };
  request_tokens(0);
  float A;
  load_now(static_cast<const float*>(args.A) + at.head, A);
  typename Cfg::Weight dt_bias_stored, D_stored;
  float dt_bias = 0.0f, D = 0.0f;
  if constexpr (Cfg::kHasDtBias)
    load_now(static_cast<const typename Cfg::Weight*>(args.dt_bias) + at.head, dt_bias_stored);
  if constexpr (Cfg::kHasD) load_now(static_cast<const typename Cfg::Weight*>(args.D) + at.head, D_stored);
  if constexpr (!Cfg::kEarlyState) locate();
  if constexpr (Cfg::kPadOutput != PadOutput::as_if_zero_state) {
    if (!live) {
      copy_async_wait<0>();
      if constexpr (Cfg::kPadOutput == PadOutput::zeros) at.write_zeros(first, tokens);
      return;
    }
  }
  if constexpr (!Cfg::kEarlyState) request_state();
  u64 seed = 0;
  if constexpr (Cfg::kPhiloxRounds > 0) {
    // Of seeds by slot that of the slot that is written, where one is; else of the one that is read.
    i64 seeded = live ? source : 0;
    if constexpr (Cfg::kDestination) {
      if (live && args.dst_state_batch_indices != nullptr && at.usable(target_entry.value(), args.slots))
        seeded = target_entry.value();
    }
    u32 words[2];
    load_now<2>(args.rand_seed + seeded * args.seed_stride, words);
    seed = static_cast<u64>(words[1]) << 32 | words[0];
  }
  if constexpr (Cfg::kHasDtBias) dt_bias = widen(dt_bias_stored);
  if constexpr (Cfg::kHasD) D = widen(D_stored);

  LaneState<Cfg> state;
  at.widen_state(state, loaded);
  if constexpr (S::kScaled) sync_warp();  // all lanes have read the scales that one of them writes

#pragma unroll 1
  for (int chunk = 0; chunk < tokens; chunk += S::kChunk) {
    if (chunk > 0) {
      sync_block();  // all have read the tokens before
      request_tokens(chunk);
    }
    const float of_delta = Cfg::delta(widen(dt), dt_bias);
    const float of_decay = Cfg::decay(A, widen(dt), of_delta);
    i64 target = -1;
    int parent = -1;
    if constexpr (Cfg::kStore == StateStore::slots) {
      target = token_target.value();
      if (!live || !at.usable(target, args.slots)) target = -1;
    }
    if constexpr (Cfg::kTree) {
      const i64 wanted = token_parent.value();
      parent = wanted >= 0 && wanted < Cfg::kTokens ? static_cast<int>(wanted) : -1;
    }
    copy_async_wait<0>();
    sync_block();

    const int count = Cfg::kVarlen || Cfg::kTokens > S::kChunk ? chunk_count(chunk) : S::kChunk;
    LaneToken<Cfg> token, ahead;
    at.load_token(token, stage, 0);
#pragma unroll S::kTurn
    for (int t = 0; t < count; ++t) {
      if (t + 1 < count) at.load_token(ahead, stage, t + 1);
      const float delta = shuffle(of_delta, t), decay = shuffle(of_decay, t);
      if constexpr (Cfg::kTree) {
        // As it was rounded; a token that is not computed yet is nobody's parent.
        const int from = shuffle(parent, t);
        if (from >= 0 && from < chunk + t && snapshot >= 0) {
          if constexpr (S::kScaled) sync_warp();  // one lane wrote the scales
          at.request_state(loaded, static_cast<const State*>(args.intermediate_states) + at.snapshot_at(snapshot, from),
                           args.intermediate_state_scales + (S::kScaled ? at.snapshot_scale_at(snapshot, from) : 0),
                           true);
          at.widen_state(state, loaded);
        }
      }
      float y[S::kRows];
      at.advance(state, token, delta, decay, y);
      if constexpr (Cfg::kStore == StateStore::slots) {
        const i64 slot = shuffle_index(target, t);
        if (slot >= 0)
          at.store_state(state, static_cast<State*>(args.state) + at.state_at(slot),
                         args.state_scale + (S::kScaled ? at.scale_at(slot) : 0), slot, seed,
                         static_cast<u32>(chunk + t));
      }
      if constexpr (Cfg::kStore == StateStore::snapshots) {
        if (snapshot >= 0)
          at.store_state(state, static_cast<State*>(args.intermediate_states) + at.snapshot_at(snapshot, chunk + t),
                         args.intermediate_state_scales + (S::kScaled ? at.snapshot_scale_at(snapshot, chunk + t) : 0),
                         snapshot, seed, static_cast<u32>(chunk + t));
      }
      at.write_outputs(y, D, stage, t, first + chunk + t);
      token = ahead;
    }
  }

  if constexpr (Cfg::kStore != StateStore::slots) {
    i64 to = source;
    bool store = live;
    if constexpr (Cfg::kDestination) {
      if (args.dst_state_batch_indices != nullptr) {
        to = target_entry.value();
        store = live && at.usable(to, args.slots);
      }
    }
    if constexpr (Cfg::kStore == StateStore::snapshots) store = live && args.disable_state_update == 0;
    if (store)
      at.store_state(state, static_cast<State*>(args.state) + at.state_at(to),
                     args.state_scale + (S::kScaled ? at.scale_at(to) : 0), to, seed,
                     S::kEveryToken ? static_cast<u32>(tokens - 1) : 0);
  }
}

// ---- this kernel ----

struct Config {
  using State = i8;
  using Input = bf16;  // x, z, B, C, out
  using Dt = float;
  using Weight = float;  // D, dt_bias
  static constexpr int kHeadDim = 64;
  static constexpr int kDstate = 128;
  static constexpr int kHeadsPerGroup = 16;
  static constexpr int kTokens = 20;
  static constexpr StateStore kStore = StateStore::slots;
  static constexpr bool kAccepted = true;
  static constexpr bool kTree = false;
  static constexpr bool kVarlen = true;
  static constexpr int kPhiloxRounds = 10;
  static constexpr bool kHasDtBias = true;
  static constexpr bool kHasD = true;
  static constexpr bool kHasSkip = true;
  static constexpr bool kHasGate = true;
  static constexpr bool kDestination = false;
  static constexpr bool kAlignedRows = true;
  static constexpr PadOutput kPadOutput = PadOutput::zeros;

  static constexpr int kBlockM = 16;
  static constexpr int kWarps = 4;
  static constexpr int kLanesPerRow = 8;
  static constexpr int kHeadsPerBlock = 1;
  static constexpr int kStages = 2;
  static constexpr StatePath kStatePath = StatePath::direct;
  static constexpr bool kStreaming = true;
  static constexpr bool kEarlyState = false;

  static SSMJIT_DEVICE float delta(float dt, float dt_bias) { return fn_softplus(dt + dt_bias); }
  static SSMJIT_DEVICE float decay(float A, float dt, float delta) { return fn_exp(A * delta); }
  static SSMJIT_DEVICE float skip(float D, float x) { return D * x; }
  static SSMJIT_DEVICE float gate(float z) { return fn_silu(z); }
};

extern "C" __global__ void __launch_bounds__(128, 1) ssmjit_update_a0ca1b88(const __grid_constant__ UpdateTokensArgs args) {
  update_tokens<Config>(args);
}
