// Whole-number conditions over named values, as templates/*.json state them: "head_dim % block_m == 0".
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace ssmjit {

// Integers, names, + - * / % (division by zero gives 0), comparisons, `and`, `or`, `not`, parentheses.
class Constraint {
 public:
  // `names` fixes which values evaluate() takes, in that order. Fails: ErrorKind::internal (the text is ours).
  Constraint(std::string_view text, const std::vector<std::string>& names);
  std::int64_t evaluate(const std::vector<std::int64_t>& values) const;
  const std::string& text() const { return text_; }
  // Which of the names it reads.
  const std::vector<int>& uses() const { return uses_; }

 private:
  // Postfix code.
  struct Step {
    char op = 0;  // 'c' constant, 'n' name, else the operator
    std::int64_t value = 0;
  };
  friend class ConstraintParser;
  std::string text_;
  std::vector<Step> steps_;
  std::vector<int> uses_;
};

}  // namespace ssmjit
