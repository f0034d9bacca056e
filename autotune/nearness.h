// How near stored values come to those of a double reference, and the limits that they are held to.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ssmjit/description.h>

namespace ssmjit {

// How near one tensor came.
struct Nearness {
  double frobenius = 0;  // |got - want| / |want| over all elements
  double worst_ulp = 0;  // in units of the stored dtype at max(|want|, row rms)
  double past_two = 0;   // share of elements past 2 units
};

// The limits that Nearness is held to (docs/ARCHITECTURE.md, "Verification"): empty, or what was passed.
std::string judge(const Nearness& n, DType dtype, int dstate, const char* what);

// Relative error of stored values against double ones, row by row of `row_length`.
class NearnessMeter {
 public:
  NearnessMeter(DType dtype, int dstate) : dtype_(dtype), dstate_(dstate) {}
  // `terms`: what each element was summed from, as HeadResult::y_terms; null: no sum. `slack`: by how much each element
  // may be off before units are counted; null: by nothing.
  void add_row(const double* want, const std::vector<double>& got, const double* terms = nullptr,
               const double* slack = nullptr);
  Nearness result() const;

 private:
  DType dtype_;
  int dstate_;
  double error2_ = 0, norm2_ = 0, worst_ = 0;
  std::int64_t count_ = 0, past_two_ = 0;
};

}  // namespace ssmjit
