// One test of an update kernel: its memory, laid out as an engine might, what it must hold after a launch, and how near
// a result comes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/kernel.h>

#include "autotune/reference/update_reference.h"

namespace ssmjit {

struct CaseLayout {
  int batch = 1;
  DType index_dtype = DType::i32;
  bool indexed = false;       // slots by index, shuffled; else row b uses slot b
  bool padded_state = false;  // gaps between slots
  bool packed_rows = false;   // x, B, C (and z) are slices of one row a request, as a projection leaves them
  bool pads = false;          // some rows are pads: negative, pad_slot_id, past the pool
  bool strong_decay = false;  // magnitudes of trained models at their ends: states die, or hardly decay
  std::string name() const;
};

// How near one tensor came.
struct Nearness {
  double frobenius = 0;  // |got - want| / |want| over all elements
  double worst_ulp = 0;  // in units of the stored dtype at max(|want|, row rms)
  double past_two = 0;   // share of elements past 2 units
};

struct CaseResult {
  std::vector<std::string> failures;  // sentences; empty: passed
  Nearness y;
  Nearness state;
};

class UpdateCase {
 public:
  UpdateCase(const Description& description, const CaseLayout& layout, std::uint64_t seed);
  UpdateCase(UpdateCase&&) = default;  // a copy would point into the original's blocks

  // All memory of the case, bytes before a launch. Every block has its tensor between two canaries.
  struct Block {
    std::string name;
    std::vector<std::byte> before;
    std::size_t tensor_offset = 0;
    bool may_change = false;
  };
  const std::vector<Block>& blocks() const { return blocks_; }
  // The arguments with block i at base[i]: host or device addresses.
  UpdateArgs args(const std::vector<std::byte*>& base) const;
  const CaseLayout& layout() const { return layout_; }

  // Judges what the blocks hold after a launch (same order and sizes).
  CaseResult check(const std::vector<std::vector<std::byte>>& after) const;

 private:
  std::size_t add(std::string name, std::size_t bytes, bool may_change);
  void compute_expectation();

  Description description_;
  CaseLayout layout_;
  std::vector<Block> blocks_;
  UpdateArgs host_;  // pointers into blocks_
  std::vector<RowSlots> rows_;
  std::vector<std::vector<HeadResult>> expected_;  // [row][head]
};

// The layouts that every candidate is verified with: odd small batches and one past a wave of `sms` multiprocessors.
std::vector<CaseLayout> standard_layouts(const Description& description, int sms);

// The limits that Nearness is held to (docs/ARCHITECTURE.md, "Verification"): empty, or what was passed.
std::string judge(const Nearness& n, DType dtype, int dstate, const char* what);

// Relative error of stored values against double ones, row by row of `row_length`.
class NearnessMeter {
 public:
  NearnessMeter(DType dtype, int dstate) : dtype_(dtype), dstate_(dstate) {}
  // `terms`: what each element was summed from, as HeadResult::y_terms; null: no sum.
  void add_row(const double* want, const std::vector<double>& got, const double* terms = nullptr);
  Nearness result() const;

 private:
  DType dtype_;
  int dstate_;
  double error2_ = 0, norm2_ = 0, worst_ = 0;
  std::int64_t count_ = 0, past_two_ = 0;
};

}  // namespace ssmjit
