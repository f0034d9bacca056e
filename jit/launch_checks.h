// The checks of a launch: what is compared with what, and the sentences. A launch does no division, walks no expression
// and allocates nothing while all is well.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <cuda.h>
#include <fmt/format.h>

#include <ssmjit/error.h>
#include <ssmjit/kernel.h>

#include "codegen/fail.h"
#include "codegen/update_form.h"
#include "jit/driver.h"

namespace ssmjit {

inline constexpr std::int64_t kMostRows = 65535;  // CUDA's limit of a grid's y
inline constexpr int kVectorBytes = 16;
inline constexpr std::int64_t kMostIntStride = std::numeric_limits<int>::max();
inline constexpr std::int64_t kAny = -1;  // an extent that is whatever the caller says

// What a launch is compared with: the description as plain numbers.
struct Wants {
  explicit Wants(const Description& d)
      : op(d.op()),
        nheads(d.nheads),
        head_dim(d.head_dim),
        dstate(d.dstate),
        ngroups(d.ngroups),
        tokens(d.token_count),
        window(d.ring_window()),
        length(d.ring_length()),
        norm_channels(d.norm_channels()),
        conv_channels(d.conv_channels()),
        conv_state_len(d.conv_state_len()),
        conv_snapshot_len(d.conv_snapshot_len()),
        conv(d.conv.value_or(Conv{})),
        input(d.input_dtype),
        dt(d.dt_dtype),
        weight(d.weight_dtype),
        state(d.state_dtype),
        has_z(d.has_z()),
        has_D(d.has_D()),
        has_dt_bias(d.has_dt_bias()),
        has_destination(d.has_destination),
        has_accepted(d.has_accepted),
        has_tree(d.has_tree),
        keeps_snapshots(std::holds_alternative<Snapshots>(d.store_kind)),
        keeps_slots(std::holds_alternative<Slots>(d.store_kind)),
        token_kernel(has_token_kernel(d)),
        has_state_scale(d.has_state_scale()),
        is_stochastic(std::holds_alternative<Stochastic>(d.rounding_kind)),
        is_varlen(d.is_varlen),
        aligned_rows(d.aligned_rows),
        has_norm(d.norm.has_value()),
        has_norm_gate(d.norm && !d.norm->gate_expr.empty()),
        has_norm_bias(d.norm && d.norm->has_bias) {}

  Op op;
  std::int64_t nheads, head_dim, dstate, ngroups, tokens, window, length, norm_channels;
  std::int64_t conv_channels, conv_state_len, conv_snapshot_len;
  Conv conv;  // a default one where the description has none
  DType input, dt, weight, state;
  bool has_z, has_D, has_dt_bias, has_destination;
  bool has_accepted, has_tree, keeps_snapshots, keeps_slots, token_kernel;  // of an update
  bool has_state_scale, is_stochastic, is_varlen, aligned_rows;
  bool has_norm, has_norm_gate, has_norm_bias;
};

inline bool is_given(const Tensor& tensor) {
  // The pointer of a tensor without elements is often null.
  return tensor.data != nullptr || (tensor.rank > 0 && tensor.shape[0] == 0) ||
         (tensor.rank > 1 && tensor.shape[1] == 0);
}

// Of dimension i, whose stride may be anything where it has one element at most.
inline std::int64_t stride_of(const Tensor& tensor, std::size_t i) {
  return tensor.shape[i] > 1 ? tensor.stride[i] : 0;
}

enum class Align { element, vector_rows };

// As size_bytes(), without a call or a branch.
inline constexpr std::array<std::uint8_t, 8> kElementBytes = [] {
  std::array<std::uint8_t, 8> bytes{};
  for (const auto& [dtype, size] : {std::pair(DType::f32, 4),
                                    {DType::bf16, 2},
                                    {DType::f16, 2},
                                    {DType::i8, 1},
                                    {DType::f8, 1},
                                    {DType::i16, 2},
                                    {DType::i32, 4},
                                    {DType::i64, 8}})
    bytes[static_cast<std::size_t>(dtype)] = static_cast<std::uint8_t>(size);
  return bytes;
}();
constexpr int element_bytes(DType dtype) { return kElementBytes[static_cast<std::size_t>(dtype)]; }

// Whether `value` is a multiple of `align`, a power of two.
constexpr bool is_aligned(std::uint64_t value, int align) {
  return (value & static_cast<std::uint64_t>(align - 1)) == 0;
}
inline bool is_aligned(const void* address, int align) {
  return is_aligned(reinterpret_cast<std::uintptr_t>(address), align);
}
constexpr bool stride_is_aligned(std::int64_t stride, int bytes, int align) {
  return is_aligned(static_cast<std::uint64_t>(stride) * static_cast<std::uint64_t>(bytes), align);
}

struct TensorWants {
  const char* name;
  DType dtype;
  int rank;
  std::array<std::int64_t, kMostDimensions> shape;
  Align align = Align::element;
  bool rows_apart = false;  // rows must not overlap: they are written
  int strided = 1;          // that many dimensions in front may be strided (none of a tensor of one dimension)
  std::array<const char*, 2> rows = {"row", "token"};  // what those dimensions count
  bool may_be_unaligned = false;                       // of vector_rows: a kernel of unaligned_rows() takes it
  std::int64_t most_stride = std::numeric_limits<std::int64_t>::max();
  const char* or_expanded = "";          // said behind the shape where another one will do
  std::array<std::int64_t, 2> behind{};  // in_front_of() these the tensor is meant; 0: none
};

// One value a head may come as an expanded view, as peers take it: with further dimensions, of extents `behind` and
// stride 0. What is in front of these; any other tensor as it is.
inline Tensor in_front_of(std::initializer_list<std::int64_t> behind, const Tensor& tensor) {
  const auto count = static_cast<int>(behind.size());
  if (tensor.rank <= count) return tensor;
  auto at = static_cast<std::size_t>(tensor.rank - count);
  for (const std::int64_t extent : behind) {
    if (tensor.shape[at] != extent || tensor.stride[at] != 0) return tensor;
    ++at;
  }
  Tensor front = tensor;
  front.rank -= count;
  return front;
}
// The dimensions in front, of a tensor that was found right.
inline int rank_in_front(const Tensor& tensor) {
  const auto expanded = [&](std::size_t i) { return tensor.stride[i] == 0 && tensor.shape[i] > 1; };
  int rank = tensor.rank;
  while (rank > 1 && expanded(static_cast<std::size_t>(rank) - 1)) --rank;
  return rank;
}
inline constexpr const char* kOrExpandedA = ", or [nheads, head_dim, dstate] of strides [1, 0, 0]";
inline constexpr const char* kOrExpandedHeads = ", or with head_dim of stride 0 behind it";

std::string shape_text(const std::array<std::int64_t, kMostDimensions>& shape, int rank);

// Of the lambdas that hand a tensor's wants on: what they are is then known where the tensor is compared with them.
#define SSMJIT_INLINE_LAMBDA __attribute__((always_inline))

// The checks of a launch are written once: `report` takes something that makes the sentence. A launch passes one that
// only notes that there is something to say, so that its checks are comparisons and nothing else.
template <class Report>
bool check_given(const char* name, bool given, bool wanted, const char* reader, Report& report) {
  if (given && !wanted)
    report([&] { return fmt::format("{}: given, but the description's maths does not read it; leave it out", name); });
  if (!given && wanted) report([&] { return fmt::format("{}: not given; {}", name, reader); });
  return given && wanted;
}

// Whether all is well as it nearly always is: what differs is gathered and looked at once. False is no answer: a
// dimension of one element may have any stride, rows may come in any order.
[[gnu::always_inline]] inline bool fits_at_once(const Tensor& tensor, const TensorWants& wants) {
  const auto rank = static_cast<std::size_t>(wants.rank);
  const std::size_t strided = rank == 1 ? 0 : static_cast<std::size_t>(wants.strided);
  const auto negative = [](std::int64_t v) { return static_cast<std::uint64_t>(v) >> 63; };
  const auto differ = [](std::int64_t a, std::int64_t b) { return static_cast<std::uint64_t>(a ^ b); };
  const bool vectors = wants.align == Align::vector_rows;
  const auto bytes = static_cast<std::uint64_t>(element_bytes(wants.dtype));
  const std::uint64_t low_bits = vectors ? kVectorBytes - 1 : bytes - 1;
  // dtype and rank as one number.
  static_assert(offsetof(Tensor, rank) == offsetof(Tensor, dtype) + sizeof(int) && sizeof(DType) == sizeof(int));
  std::uint64_t kind;
  std::memcpy(&kind, &tensor.dtype, sizeof kind);
  const auto dtype = static_cast<std::uint64_t>(wants.dtype);
  const std::uint64_t wanted = std::endian::native == std::endian::little ? dtype | std::uint64_t{rank} << 32
                                                                          : dtype << 32 | std::uint64_t{rank};
  std::uint64_t off = (kind ^ wanted) | (reinterpret_cast<std::uintptr_t>(tensor.data) & low_bits);
  // Another extent that may be any is left to the check below.
  off |= wants.shape[0] == kAny ? negative(tensor.shape[0]) : differ(tensor.shape[0], wants.shape[0]);
  for (std::size_t i = 1; i < rank; ++i) off |= differ(tensor.shape[i], wants.shape[i]);
  std::int64_t dense = 1;
  for (std::size_t i = rank; i-- > strided;) {
    off |= differ(tensor.stride[i], dense);
    dense *= wants.shape[i];
  }
  std::int64_t least = wants.rows_apart ? dense : 0;
  for (std::size_t i = strided; i-- > 0;) {
    const std::int64_t stride = tensor.stride[i];
    if (wants.rows_apart) off |= negative(stride - least);
    if (vectors) off |= static_cast<std::uint64_t>(stride) * bytes & low_bits;  // whole elements are what strides count
    static_assert(kMostIntStride == 0x7fffffff);                                // no bit above, nor a sign
    off |= wants.most_stride == kMostIntStride ? static_cast<std::uint64_t>(stride >> 31) : negative(stride);
    if (wants.rows_apart) least += stride * (tensor.shape[i] - 1);
  }
  return off == 0;
}

template <class Report>
[[gnu::always_inline]] inline void check_tensor(const Tensor& tensor, const TensorWants& wants, Report& report) {
  if (tensor.dtype != wants.dtype)
    report(
        [&] { return fmt::format("{}: got dtype {}; wants {}", wants.name, name(tensor.dtype), name(wants.dtype)); });
  if (tensor.rank != wants.rank) {
    report([&] {
      return fmt::format("{}: got {} dimensions; wants {}, {}{}", wants.name, tensor.rank, wants.rank,
                         shape_text(wants.shape, wants.rank), wants.or_expanded);
    });
    return;
  }
  bool fits = true, empty = false;
  for (std::size_t i = 0; i < static_cast<std::size_t>(wants.rank); ++i) {
    fits = fits && (wants.shape[i] == kAny ? tensor.shape[i] >= 0 : tensor.shape[i] == wants.shape[i]);
    empty = empty || tensor.shape[i] == 0;
  }
  if (!fits) {
    report([&] {
      return fmt::format("{}: got shape {}; wants {}", wants.name, shape_text(tensor.shape, tensor.rank),
                         shape_text(wants.shape, wants.rank));
    });
    return;
  }
  if (empty) return;

  const int bytes = element_bytes(wants.dtype);
  const int align = wants.align == Align::vector_rows ? kVectorBytes : bytes;
  if (!is_aligned(tensor.data, align))
    report([&] {
      return fmt::format(
          "{}: base address {} is not a multiple of {} bytes{}{}", wants.name, fmt::ptr(tensor.data), align,
          align > bytes ? "; move the base" : "",
          wants.may_be_unaligned && align > bytes ? ", or describe the kernel with unaligned_rows()" : "");
    });

  // From the innermost dimension out; the stride of a dimension of one element says nothing.
  const std::size_t strided = wants.rank == 1 ? 0 : static_cast<std::size_t>(wants.strided);
  std::int64_t dense = 1;
  for (std::size_t i = static_cast<std::size_t>(wants.rank); i-- > strided;) {
    if (tensor.shape[i] != 1 && tensor.stride[i] != dense) {
      report([&] {
        return fmt::format("{}: dimension {} has stride {}; wants {}: all but dimension{} must be contiguous",
                           wants.name, i, tensor.stride[i], dense, strided == 2 ? "s 0 and 1" : " 0");
      });
      return;
    }
    dense *= tensor.shape[i];
  }
  // Of rows that must not overlap, those with the larger stride are apart by all of the others.
  std::int64_t apart[2] = {dense, dense};
  if (strided == 2 && tensor.shape[0] > 1 && tensor.shape[1] > 1) {
    const std::size_t inner = tensor.stride[0] < tensor.stride[1] ? 0 : 1;
    apart[1 - inner] = dense + std::max<std::int64_t>(tensor.stride[inner], 0) * (tensor.shape[inner] - 1);
  }
  for (std::size_t i = 0; i < strided; ++i) {
    if (tensor.shape[i] == 1) continue;
    const std::int64_t stride = tensor.stride[i], least = wants.rows_apart ? apart[i] : 0;
    if (stride < least)
      report([&] {
        return fmt::format("{}: {} stride {} elements; wants {} or more{}", wants.name, wants.rows[i], stride, least,
                           wants.rows_apart ? fmt::format(", so that {}s do not overlap", wants.rows[i]) : "");
      });
    else if (stride > wants.most_stride)
      report([&] {
        return fmt::format("{}: {} stride {} elements; wants {} at most", wants.name, wants.rows[i], stride,
                           wants.most_stride);
      });
    else if (!stride_is_aligned(stride, bytes, align))
      report([&] {
        return fmt::format(
            "{}: {} stride {} elements ({} bytes) is not a multiple of {} bytes; pad the {}s{}", wants.name,
            wants.rows[i], stride, stride * bytes, align, wants.rows[i],
            wants.may_be_unaligned && align > bytes ? ", or describe the kernel with unaligned_rows()" : "");
      });
  }
}

// A tensor that is `wanted` or may not be there; where it is wanted, `reader` says why.
template <class Report>
[[gnu::always_inline]] inline void check_given_tensor(const Tensor& tensor, const TensorWants& wants, bool wanted,
                                                      const char* reader, Report& report) {
  if (wanted && tensor.data != nullptr && fits_at_once(tensor, wants)) [[likely]]
    return;
  const auto slowly = [&](const Tensor& front) SSMJIT_INLINE_LAMBDA {
    if (check_given(wants.name, is_given(front), wanted, reader, report)) check_tensor(front, wants, report);
  };
  if (wants.behind[1] != 0)
    slowly(in_front_of({wants.behind[0], wants.behind[1]}, tensor));
  else if (wants.behind[0] != 0)
    slowly(in_front_of({wants.behind[0]}, tensor));
  else
    slowly(tensor);
}

// One seed for all slots, or one a slot.
template <class Report>
void check_seeds(const Tensor& seeds, std::int64_t slots, bool wanted, Report& report) {
  if (!check_given("rand_seed", is_given(seeds), wanted, "stochastic rounding wants a seed", report)) return;
  if (seeds.dtype == DType::i64 && seeds.rank == 1 && slots != kAny && seeds.shape[0] != 1 && seeds.shape[0] != slots)
    report([&] {
      return fmt::format("rand_seed: got shape {}; wants [{}] or [1]", shape_text(seeds.shape, seeds.rank), slots);
    });
  else
    check_tensor(seeds, {.name = "rand_seed", .dtype = DType::i64, .rank = 1, .shape = {kAny}}, report);
}

template <class Report>
void check_indices_shape(const char* name_, const Tensor& indices, std::int64_t batch, Report& report) {
  if (indices.dtype != DType::i32 && indices.dtype != DType::i64) {
    report([&] { return fmt::format("{}: got dtype {}; wants int32 or int64", name_, name(indices.dtype)); });
    return;
  }
  const bool column = indices.rank == 2 && indices.shape[1] == 1;
  if ((indices.rank != 1 && !column) || (batch != kAny && indices.shape[0] != batch)) {
    report([&] {
      const std::string rows = batch == kAny ? "batch" : std::to_string(batch);
      return fmt::format("{}: got shape {}; wants [{}] or [{}, 1]", name_, shape_text(indices.shape, indices.rank),
                         rows, rows);
    });
    return;
  }
  if (indices.shape[0] > 1 && indices.stride[0] < 0)
    report([&] { return fmt::format("{}: stride {}; wants 0 or more", name_, indices.stride[0]); });
  if (!is_aligned(indices.data, element_bytes(indices.dtype)))
    report([&] {
      return fmt::format("{}: base address {} is not a multiple of {} bytes", name_, fmt::ptr(indices.data),
                         size_bytes(indices.dtype));
    });
}

// What every op's args begin and end with. Whether what stands between can be read.
template <class Args, class Report>
bool check_version(const Args& args, Report& report) {
  if (args.size == sizeof(Args)) return true;
  report([&] {
    return fmt::format("args: size is {}; wants {}: built against another version of ssmjit", args.size, sizeof(Args));
  });
  return false;
}
template <class Report>
void check_pdl(Pdl pdl, Report& report) {
  if (pdl != Pdl::off && pdl != Pdl::wait_first && pdl != Pdl::early_state)
    report([&] { return fmt::format("pdl: {} is none of off, wait_first, early_state", static_cast<int>(pdl)); });
}
// What a ring keeps from step to step, a slot apart: as RingArgs and RingLayer name it. `check` takes a tensor, what is
// wanted of it, whether it is wanted, and why.
inline constexpr const char* kRingNeeds = "every ring step needs it";
template <class Pools, class Check>
[[gnu::always_inline]] inline void check_ring_pools(const Wants& wants, const Pools& pools, const Check& check) {
  const std::int64_t slots = pools.state.rank == 4 && pools.state.shape[0] >= 0 ? pools.state.shape[0] : kAny;
  constexpr const char* kOrLength = ", or a description of that length (store=ring:WINDOW:LENGTH)";
  const auto pool = [&](const Tensor& tensor, const char* name, DType dtype, int rank,
                        const std::array<std::int64_t, kMostDimensions>& shape, Align align, bool wanted = true,
                        const char* reader = kRingNeeds, bool is_ring = false) SSMJIT_INLINE_LAMBDA {
    check(tensor,
          {.name = name,
           .dtype = dtype,
           .rank = rank,
           .shape = shape,
           .align = align,
           .rows_apart = true,
           .rows = {"slot", ""},
           .most_stride = kMostIntStride,
           .or_expanded = is_ring && tensor.rank == rank && tensor.shape[2] != wants.length ? kOrLength : ""},
          wanted, reader);
  };
  pool(pools.state, "state", wants.state, 4, {kAny, wants.nheads, wants.head_dim, wants.dstate}, Align::vector_rows);
  pool(pools.state_scale, "state_scale", DType::f32, 3, {slots, wants.nheads, wants.head_dim}, Align::vector_rows,
       wants.has_state_scale, "an 8-bit state has a scale for each row");
  pool(pools.x_ring, "x_ring", wants.input, 4, {slots, wants.nheads, wants.length, wants.head_dim}, Align::vector_rows,
       true, kRingNeeds, true);
  pool(pools.B_ring, "B_ring", wants.input, 4, {slots, wants.ngroups, wants.length, wants.dstate}, Align::vector_rows,
       true, kRingNeeds, true);
  pool(pools.dt_ring, "dt_ring", DType::f32, 3, {slots, wants.nheads, wants.length}, Align::element, true, kRingNeeds,
       true);
}
// Without indices row b uses slot b.
template <class Report>
void check_slot_of_each_row(const Tensor& state, std::int64_t batch, Report& report) {
  if (is_given(state) && state.rank == 4 && state.shape[0] < batch)
    report([&] {
      return fmt::format(
          "state: {} slots for {} rows; without state_batch_indices row b uses slot b, so give indices or {} slots",
          state.shape[0], batch, batch);
    });
}

// Of an update of several tokens (has_token_kernel()): its rows, what is wrong with its arguments, and whether nothing
// is.
std::int64_t token_batch(const Wants& wants, const UpdateArgs& args);
std::vector<std::string> token_problems(const Wants& wants, const UpdateArgs& args);
bool tokens_fit(const Wants& wants, const UpdateArgs& args);

// Whether a convolution takes them.
bool conv1d_fits(const Wants& wants, const Conv1dArgs& args);

// About the arguments of another op than the kernel's.
std::string wrong_args(const char* got, Op kernel);
// One sentence a line.
std::string lines_of(const std::vector<std::string>& sentences);

// ---- checked mode: what only the device's memory tells ----

// Whether `stream` is being captured; for the default stream, whether a blocking stream of the context is.
bool is_captured(const Driver& driver, CUstream stream);
// Waits for all work on the stream. Fails: ErrorKind::invalid while it is being captured.
void wait_to_check(const Driver& driver, CUstream stream);
// `count` entries of dimension 0 of an int32 or int64 tensor on the device.
std::vector<std::int64_t> read_integers(const Driver& driver, const Tensor& tensor, std::int64_t count);
// The slots that `indices` name (row b slot b where they are not given): sentences about those past the pool.
std::vector<std::int64_t> read_slots(const Driver& driver, const char* name, const Tensor& indices, std::int64_t batch,
                                     std::int64_t slots, std::int64_t pad_slot_id, std::vector<std::string>& wrong);
inline bool is_pad(std::int64_t slot, std::int64_t pad_slot_id) { return slot < 0 || slot == pad_slot_id; }
// What is wrong with slots, cursors and counts, a sentence each. For a caller that has waited for the stream.
std::vector<std::string> memory_problems(const Driver& driver, const Wants& wants, const RingArgs& args,
                                         std::int64_t batch);
std::vector<std::string> memory_problems(const Driver& driver, const Wants& wants, const Conv1dArgs& args,
                                         std::int64_t batch);
// Of an update of several tokens.
std::vector<std::string> token_memory_problems(const Driver& driver, const Wants& wants, const UpdateArgs& args,
                                               std::int64_t batch);
// The sentence about two rows that write one slot.
std::string same_slot_twice(const char* name, std::size_t first_row, std::size_t row, std::int64_t slot);

}  // namespace ssmjit
