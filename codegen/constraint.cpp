#include "codegen/constraint.h"

#include <algorithm>
#include <array>
#include <cctype>

#include "codegen/fail.h"

namespace ssmjit {

class ConstraintParser {
 public:
  ConstraintParser(Constraint& out, std::string_view text, const std::vector<std::string>& names)
      : out_(out), text_(text), names_(names) {}

  void parse() {
    either();
    skip_space();
    if (at_ != text_.size()) wrong("an operator");
  }

 private:
  void either() {
    both();
    while (word("or")) both(), emit('|');
  }
  void both() {
    negation();
    while (word("and")) negation(), emit('&');
  }
  void negation() {
    if (word("not"))
      negation(), emit('!');
    else
      comparison();
  }
  void comparison() {
    sum();
    for (const auto& [text, op] : kComparisons)
      if (symbol(text)) {
        sum(), emit(op);
        return;
      }
  }
  void sum() {
    product();
    while (true) {
      if (symbol("+"))
        product(), emit('+');
      else if (symbol("-"))
        product(), emit('-');
      else
        return;
    }
  }
  void product() {
    atom();
    while (true) {
      if (symbol("*"))
        atom(), emit('*');
      else if (symbol("/"))
        atom(), emit('/');
      else if (symbol("%"))
        atom(), emit('%');
      else
        return;
    }
  }
  void atom() {
    skip_space();
    if (symbol("(")) {
      either();
      if (!symbol(")")) wrong(")");
      return;
    }
    const std::size_t start = at_;
    while (at_ < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[at_])) != 0 || text_[at_] == '_'))
      ++at_;
    const std::string token(text_.substr(start, at_ - start));
    if (token.empty()) wrong("a name or a number");
    if (std::isdigit(static_cast<unsigned char>(token[0])) != 0) {
      out_.steps_.push_back({'c', std::stoll(token)});
      return;
    }
    const auto found = std::find(names_.begin(), names_.end(), token);
    if (found == names_.end()) wrong("a known name");
    const int index = static_cast<int>(found - names_.begin());
    if (std::find(out_.uses_.begin(), out_.uses_.end(), index) == out_.uses_.end()) out_.uses_.push_back(index);
    out_.steps_.push_back({'n', index});
  }

  void emit(char op) { out_.steps_.push_back({op, 0}); }
  void skip_space() {
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
  }
  bool symbol(std::string_view s) {
    skip_space();
    if (text_.substr(at_, s.size()) != s) return false;
    at_ += s.size();
    return true;
  }
  bool word(std::string_view w) {
    skip_space();
    const std::size_t end = at_ + w.size();
    if (text_.substr(at_, w.size()) != w) return false;
    if (end < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[end])) != 0 || text_[end] == '_'))
      return false;
    at_ = end;
    return true;
  }
  [[noreturn]] void wrong(std::string_view wanted) const {
    fail(ErrorKind::internal, "constraint \"{}\": wants {} at column {}", text_, wanted, at_ + 1);
  }

  // Longer symbols first, so that "<" does not take the head of "<=".
  static constexpr std::array<std::pair<std::string_view, char>, 6> kComparisons{
      {{"<=", 'l'}, {">=", 'g'}, {"==", 'e'}, {"!=", 'u'}, {"<", '<'}, {">", '>'}}};

  Constraint& out_;
  std::string_view text_;
  const std::vector<std::string>& names_;
  std::size_t at_ = 0;
};

Constraint::Constraint(std::string_view text, const std::vector<std::string>& names) : text_(text) {
  ConstraintParser(*this, text_, names).parse();
}

std::int64_t Constraint::evaluate(const std::vector<std::int64_t>& values) const {
  std::array<std::int64_t, 32> stack{};
  std::size_t top = 0;
  for (const Step& step : steps_) {
    if (step.op == 'c' || step.op == 'n') {
      if (top == stack.size()) fail(ErrorKind::internal, "constraint \"{}\": too deep", text_);
      stack[top++] = step.op == 'c' ? step.value : values[static_cast<std::size_t>(step.value)];
      continue;
    }
    if (step.op == '!') {
      stack[top - 1] = stack[top - 1] == 0;
      continue;
    }
    const std::int64_t b = stack[--top];
    std::int64_t& a = stack[top - 1];
    switch (step.op) {
      case '+':
        a += b;
        break;
      case '-':
        a -= b;
        break;
      case '*':
        a *= b;
        break;
      case '/':
        a = b != 0 ? a / b : 0;
        break;
      case '%':
        a = b != 0 ? a % b : 0;
        break;
      case 'l':
        a = a <= b;
        break;
      case 'g':
        a = a >= b;
        break;
      case 'e':
        a = a == b;
        break;
      case 'u':
        a = a != b;
        break;
      case '<':
        a = a < b;
        break;
      case '>':
        a = a > b;
        break;
      case '&':
        a = a != 0 && b != 0;
        break;
      case '|':
        a = a != 0 || b != 0;
        break;
      default:
        fail(ErrorKind::internal, "constraint \"{}\": operator '{}'", text_, step.op);
    }
  }
  return stack[0];
}

}  // namespace ssmjit
