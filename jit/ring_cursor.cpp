// What the host does with a ring between steps: pure functions of its cursors.
#include <string>
#include <vector>

#include <fmt/format.h>

#include <ssmjit/kernel.h>

#include "codegen/fail.h"

namespace ssmjit {

namespace {

// Fails: ErrorKind::invalid for a step that the description's ring can't have.
void check_step(const Description& description, RingCursor cursor, int tokens) {
  if (description.ring_window() == 0)
    fail(ErrorKind::invalid, "description: got a store in place, which has no cursors; wants a ring (store=ring:16)");
  std::string wrong;
  const auto check = [&](const char* name, int value, int least, int most) {
    if (value >= least && value <= most) return;
    wrong += fmt::format("{}{}: got {}; wants {} to {}", wrong.empty() ? "" : "\n", name, value, least, most);
  };
  check("cursor start", cursor.start, 0, description.ring_length() - 1);
  check("cursor count", cursor.count, 0, description.ring_window());
  check("tokens", tokens, 0, description.token_count);
  if (!wrong.empty()) fail(ErrorKind::invalid, "{}", wrong);
}

}  // namespace

bool ring_flushes(const Description& description, RingCursor cursor, int tokens) {
  check_step(description, cursor, tokens);
  return tokens > 0 && cursor.count + tokens > description.ring_window();
}

RingCursor advance_ring(const Description& description, RingCursor cursor, int tokens, int accepted) {
  const bool flushes = ring_flushes(description, cursor, tokens);
  if (accepted < 0 || accepted > tokens)
    fail(ErrorKind::invalid, "accepted: got {}; wants 0 to {}, the tokens of the step", accepted, tokens);
  if (!flushes) return {cursor.start, cursor.count + accepted};
  return {(cursor.start + cursor.count) % description.ring_length(), accepted};
}

std::int64_t ring_slot_bytes(const Description& description) {
  const Description& d = description;
  d.validate();
  if (d.ring_window() == 0)
    fail(ErrorKind::invalid, "description: got a store in place, which has no ring; wants a ring (store=ring:16)");
  const std::int64_t rows = std::int64_t{d.nheads} * d.head_dim;
  const std::int64_t state = rows * d.dstate * size_bytes(d.state_dtype);
  const std::int64_t scale = d.has_state_scale() ? rows * size_bytes(DType::f32) : 0;
  const std::int64_t x_and_B = (rows + std::int64_t{d.ngroups} * d.dstate) * size_bytes(d.input_dtype);
  const std::int64_t delta = std::int64_t{d.nheads} * size_bytes(DType::f32);
  return state + scale + d.ring_length() * (x_and_B + delta);
}

}  // namespace ssmjit
