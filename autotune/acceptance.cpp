// How a ring's cursors move: pure functions of window, tokens and how many of them are kept.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include <fmt/format.h>

#include <ssmjit/tune.h>

#include "codegen/fail.h"

namespace ssmjit {

namespace {

constexpr int kMostTokens = 16;
constexpr double kSumSlack = 1e-6;  // of chances that are written in decimals

[[noreturn]] void refuse(std::string_view text, std::string_view wants) {
  fail(ErrorKind::invalid, "accepted: got {}; wants {}", in_quotes(text), wants);
}

template <class Number>
bool read_whole(std::string_view text, Number& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

int read_count(std::string_view whole, std::string_view text) {
  int tokens = 0;
  if (!read_whole(text, tokens) || tokens < 1 || tokens > kMostTokens)
    refuse(whole, fmt::format("a number of tokens from 1 to {}, or TOKENS:CHANCE with commas between", kMostTokens));
  return tokens;
}

}  // namespace

Acceptance Acceptance::constant(int tokens) {
  if (tokens < 1 || tokens > kMostTokens)
    fail(ErrorKind::invalid, "accepted: got {}; wants 1 to {} tokens", tokens, kMostTokens);
  Acceptance accepted;
  accepted.chance.assign(static_cast<std::size_t>(tokens), 0.0);
  accepted.chance.back() = 1;
  return accepted;
}

Acceptance Acceptance::parse(std::string_view text) {
  if (text.find(':') == std::string_view::npos) return constant(read_count(text, text));
  std::map<int, double> chances;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find(',', at), text.size());
    const std::string_view item = text.substr(at, end - at);
    at = end + 1;
    const std::size_t colon = item.find(':');
    const int tokens = read_count(text, item.substr(0, colon));
    double chance = 0;
    if (colon == std::string_view::npos || !read_whole(item.substr(colon + 1), chance) || !(chance >= 0 && chance <= 1))
      refuse(text, "TOKENS:CHANCE with commas between and chances from 0 to 1");
    if (!chances.emplace(tokens, chance).second) refuse(text, fmt::format("{} tokens once", tokens));
  }
  Acceptance accepted;
  double sum = 0;
  accepted.chance.assign(static_cast<std::size_t>(chances.rbegin()->first), 0.0);
  for (const auto& [tokens, chance] : chances) sum += accepted.chance[static_cast<std::size_t>(tokens - 1)] = chance;
  if (std::abs(sum - 1) > kSumSlack) refuse(text, fmt::format("chances that sum to 1, not to {:g}", sum));
  return accepted;
}

Acceptance Acceptance::of_drafts(double chance, int tokens) {
  if (!(chance >= 0 && chance <= 1))
    fail(ErrorKind::invalid, "acceptance: got {}; wants the chance of a draft, 0 to 1", chance);
  Acceptance accepted = constant(tokens);  // refuses tokens out of range
  double reached = 1;                      // the chance that so many are kept at least
  for (double& of : accepted.chance) {
    of = &of == &accepted.chance.back() ? reached : reached * (1 - chance);
    reached *= chance;
  }
  // Without what has no chance, so that the same distributions are equal.
  while (accepted.chance.back() == 0) accepted.chance.pop_back();
  return accepted;
}

double Acceptance::mean() const {
  double mean = 0;
  for (std::size_t i = 0; i < chance.size(); ++i) mean += static_cast<double>(i + 1) * chance[i];
  return mean;
}

int Acceptance::draw(double random) const {
  for (std::size_t i = 0; i < chance.size(); ++i) {
    random -= chance[i];
    if (random < 0) return static_cast<int>(i + 1);
  }
  // What rounding left over goes to the last that has a chance.
  std::size_t last = chance.size();
  while (last > 1 && chance[last - 1] == 0) --last;
  return static_cast<int>(last);
}

std::string Acceptance::text() const {
  std::string text;
  for (std::size_t i = 0; i < chance.size(); ++i) {
    if (chance[i] == 1) return std::to_string(i + 1);
    if (chance[i] > 0) text += fmt::format("{}{}:{:g}", text.empty() ? "" : ",", i + 1, chance[i]);
  }
  return text;
}

double steps_per_flush(int window, int tokens, const Acceptance& accepted) {
  if (tokens < 1 || tokens > kMostTokens || window < tokens)
    fail(ErrorKind::invalid,
         "ring: got a window of {} for {} tokens a step; wants 1 to {} tokens and no smaller window", window, tokens,
         kMostTokens);
  if (accepted.chance.empty() || accepted.chance.size() > static_cast<std::size_t>(tokens))
    fail(ErrorKind::invalid, "accepted: got {} tokens at most; wants 1 to {}, the tokens of a step",
         accepted.chance.size(), tokens);
  // steps[count]: until the next flush is done, from that many rows in use. After a flush there are as many as its step
  // has kept.
  const auto after = [&](const std::vector<double>& steps, int count) {
    double mean = 0;
    for (std::size_t i = 0; i < accepted.chance.size(); ++i)
      if (accepted.chance[i] > 0) mean += accepted.chance[i] * steps[static_cast<std::size_t>(count) + i + 1];
    return mean;
  };
  std::vector<double> steps(static_cast<std::size_t>(window + 1), 1.0);
  for (int count = window - tokens; count >= 0; --count)
    steps[static_cast<std::size_t>(count)] = 1 + after(steps, count);
  return after(steps, 0);
}

int timed_ring_count(const Description& description, Phase phase) {
  const int window = description.ring_window(), tokens = description.token_count;
  if (description.ring_window() == 0)
    fail(ErrorKind::invalid, "description: got a store in place, which has no ring; wants a ring (store=ring:16)");
  if (phase == Phase::flush) return std::min(window, window - tokens + 2);
  return tokens > 1 ? std::min(4, window - tokens) : std::max(0, window / 2 - 1);
}

}  // namespace ssmjit
