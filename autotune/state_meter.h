// How near states that are stored by chance, or in units of a factor for each row, come to double ones.
#pragma once

#include <cstdint>
#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/kernel.h>

#include "autotune/nearness.h"
#include "autotune/reference/stored_values.h"

namespace ssmjit {

// One head's state before it is rounded, [head_dim, dstate]; by how much a right kernel may be off in each element; and
// the factor of each row, of a dtype that has them.
struct StateWant {
  const std::vector<double>& state;
  const std::vector<double>& slack;
  const std::vector<double>& scale;
};

class StateMeter {
 public:
  explicit StateMeter(const Description& description) : description_(description) {}
  // `head` as it lies in `slot` of state and state_scale; `seed`: of that slot; `token`: as stored_stochastically().
  void add_head(const StateWant& want, const Tensor& state, const Tensor& state_scale, std::int64_t slot, int head,
                std::uint64_t seed, const Reader& read, std::uint32_t token = 0);
  Nearness result() const;
  // Empty, or what was passed: an element may be off by half a unit of the dtype; by chance it is the value that its
  // random bits give. Both give way to the slack.
  std::string failure() const;

 private:
  Description description_;
  double error2_ = 0, norm2_ = 0, worst_ = 0;
  std::int64_t count_ = 0, past_two_ = 0, not_by_chance_ = 0;
  double worst_scale_ = 0;
};

}  // namespace ssmjit
