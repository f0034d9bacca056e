// One test of a kernel: its memory, laid out as an engine might, and what it must hold after a launch. UpdateCase,
// TokensCase, RingCase, Conv1dCase, NormCase, LayerCase and ReplayCase are the tests of the ops.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <variant>
#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/kernel.h>

#include "autotune/nearness.h"
#include "autotune/reference/conv1d_reference.h"
#include "autotune/reference/ring_reference.h"

namespace ssmjit {

struct CaseLayout {
  int batch = 1;
  DType index_dtype = DType::i32;
  bool indexed = false;         // slots by index, shuffled; else row b uses slot b
  bool padded_state = false;    // gaps between slots
  bool packed_rows = false;     // x, B, C (and z) are slices of one row a token, as a projection leaves them
  bool pads = false;            // some rows are pads: negative, pad_slot_id, past the pool
  bool in_place = false;        // of a norm: its output lies over x
  bool far_magnitudes = false;  // of a norm: inputs from where eps is all that counts to some hundreds
  bool strong_decay = false;    // magnitudes of trained models at their ends: states die, or hardly decay
  std::string name() const;
};

// What one launch is given.
using CaseArgs = std::variant<UpdateArgs, RingArgs, Conv1dArgs, NormArgs, LayerArgs, ReplayArgs>;

// Elements that were written beside the output against what they are copies of: how many are not, of how many.
struct WindowMeter {
  void add(bool exact) { ++count, wrong += exact ? 0 : 1; }
  std::int64_t count = 0, wrong = 0;
};

struct CaseResult {
  std::vector<std::string> failures;  // sentences; empty: passed
  Nearness y;
  Nearness state;
};

class KernelCase {
 public:
  virtual ~KernelCase() = default;

  // All memory of the case, bytes before a launch. Every block has its tensor between two canaries.
  struct Block {
    std::string name;
    std::vector<std::byte> before;
    std::size_t tensor_offset = 0;
    bool may_change = false;
    bool output = false;    // written, never read
    bool produced = false;  // what the launch in front may still be writing
  };
  const std::vector<Block>& blocks() const { return blocks_; }
  const Description& description() const { return description_; }
  const CaseLayout& layout() const { return layout_; }
  // The arguments with block i at base[i]: host or device addresses.
  virtual CaseArgs launch_args(const std::vector<std::byte*>& base) const = 0;
  // Judges what the blocks hold after a launch (same order and sizes).
  CaseResult check(const std::vector<std::vector<std::byte>>& after) const;

 protected:
  KernelCase(const Description& description, const CaseLayout& layout, std::uint64_t seed);
  KernelCase(KernelCase&&) = default;  // a copy would point into the original's blocks

  // Compares elements that need not be exact and writes what must be there into the blocks at `want`, which hold what
  // was there before the launch; of the elements that it compared, what is at `got`.
  virtual void judge(const std::vector<std::byte*>& want, const std::vector<std::byte*>& got,
                     CaseResult& result) const = 0;
  void failed(CaseResult& result, const std::string& sentence) const;

  // ---- making the memory; a tensor points into blocks() until it is moved ----
  enum class Use { constant, produced, updated, output, overwritten };  // overwritten: produced, and the output too
  std::size_t add(std::string name, std::int64_t bytes, Use use);
  std::byte* at(std::size_t block) { return blocks_[block].before.data() + blocks_[block].tensor_offset; }
  // Rows of x, B, C and z, `rows` of each: tensors of their own, or slices of one packed row.
  struct Rows {
    std::byte* first = nullptr;  // null: the description has no such tensor
    std::int64_t stride = 0;     // elements
  };
  struct InputRows {
    Rows x, B, C, z;
  };
  InputRows add_input_rows(std::int64_t rows);
  // A, and D and dt_bias where the description has them.
  struct Weights {
    Tensor A, D, dt_bias;
  };
  struct Range {
    double low, high;
  };
  Weights add_weights(Range A, Range dt_bias);
  // A tensor of pool_slots(), contiguous in its `inner` dimensions, with gaps between slots where the layout has them;
  // all of it NaN.
  Tensor add_pool(std::string name, DType dtype, const std::vector<std::int64_t>& inner);
  std::int64_t pool_slots() const;
  // The slots in the order in which rows take them: shuffled where slots go by index, without the null slot where there
  // are pads.
  std::vector<std::int64_t> slot_order();
  // Makes rows pads of every kind: negative, the null slot, past the pool.
  void mark_pads(std::vector<std::int64_t>& slots) const;
  static constexpr std::int64_t kNullSlot = 1;
  std::int64_t pad_slot_id() const { return layout_.indexed && layout_.pads ? kNullSlot : -1; }
  Tensor add_indices(std::string name, const std::vector<std::int64_t>& values, DType dtype);

  // ---- of a convolution, alone or in a layer; `conv` describes it alone ----
  // Output slots, snapshots and counts, as far as it has them; rows read slots `order` from the front.
  void add_conv_slots(const Description& conv, Conv1dArgs& args, const std::vector<std::int64_t>& order);
  // The entries of a request's window that the contract says are read; all others stay NaN.
  void fill_window(const Description& conv, const Conv1dArgs& args, const ConvRequest& request, double magnitude);
  // Puts what a request's step must have written beside its output into `want`, and counts what differs in `got`.
  // `host`: the same arguments before the launch.
  struct Windows {
    WindowMeter states, snapshots;
  };
  static void judge_windows(const Description& conv, const Conv1dArgs& host, const Conv1dArgs& want,
                            const Conv1dArgs& got, std::int64_t row, const ConvRequest& request, Windows& windows);
  void judge(const Windows& windows, CaseResult& result) const;

  // ---- of a step of several tokens that may be varlen ----
  // x, B, C, z, dt and out: a request's tokens one after the other, between requests a gap where rows are packed; with
  // varlen from 0 to all tokens a request, and lengths out of range, without gaps.
  template <class Args>
  void add_step_tokens(Args& args);

  // ---- of a ring, alone or in a layer ----
  // States, scales, rings and cursors, and the seed of a stochastic rounding.
  template <class Args>
  void add_ring_pools(Args& args);
  // State and cursors of a live slot. Kinds of count: full, the most that does not flush, the least that does, none,
  // any, and out of range.
  static constexpr int kCursorKinds = 7;
  void fill_ring_slot(const RingArgs& args, std::int64_t slot, int kind);
  // The rows in use of a live request's ring; all others stay NaN.
  void fill_ring_rows(const RingArgs& args, const RingRequest& request);

  double normal() { return normal_(random_); }
  double uniform(Range range) { return std::uniform_real_distribution<double>(range.low, range.high)(random_); }
  static void put(const Tensor& t, std::int64_t i, double v);
  static std::byte* bytes_of(const Tensor& t) { return static_cast<std::byte*>(const_cast<void*>(t.data)); }
  // Few enough bits that fp32 adds two of them without rounding: exp() of a rounded sum of -15 is off by 8 units in
  // fp32.
  static double exact_in_sums(double v);
  // Copies elements from one launch's tensor to the same place of another's.
  static void take(const Tensor& to, const Tensor& from, std::int64_t offset, std::int64_t count);
  // The tensor with block i at base[i]; one that is not given stays so.
  void move(Tensor& t, const std::vector<std::byte*>& base) const;

  std::mt19937_64 random_;

 private:
  Description description_;
  CaseLayout layout_;
  std::normal_distribution<double> normal_;
  std::vector<Block> blocks_;
};

// The layouts that every candidate is verified with: odd small batches and one past a wave of `sms` multiprocessors.
std::vector<CaseLayout> standard_layouts(const Description& description, int sms);
// A description of the same kernel with fewer groups of heads or channels, `groups` at most, which stand for all: an
// emitted kernel does not know how many there are.
Description few_groups(const Description& description, int groups);

using KernelCases = std::vector<std::unique_ptr<KernelCase>>;
// A case of the description's op for each of those layouts.
std::unique_ptr<KernelCase> make_case(const Description& description, const CaseLayout& layout, std::uint64_t seed);
KernelCases standard_cases(const Description& description, int sms, std::uint64_t seed);

}  // namespace ssmjit
