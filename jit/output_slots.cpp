// What the host does with output slots between steps: pure functions.
#include <algorithm>
#include <limits>

#include <fmt/format.h>

#include <ssmjit/slots.h>

#include "codegen/fail.h"

namespace ssmjit {

namespace {

bool is_pad(const SlotRequest& r) { return r.request < 0 || r.working < 0; }

std::int64_t first_draft(const OutputPool& pool, const SlotRequest& r) {
  return pool.draft_base() + r.request * pool.drafts_each();
}

void check(const OutputPool& pool, const SlotRequest& r) {
  pool.validate();
  if (is_pad(r)) return;
  if (r.request >= pool.requests)
    fail(ErrorKind::invalid, "request: got {}; wants 0 to {}, or -1 for a pad", r.request, pool.requests - 1);
  if (r.working >= pool.working)
    fail(ErrorKind::invalid, "working slot of request {}: got {}; wants 0 to {}: slots behind are drafts", r.request,
         r.working, pool.working - 1);
  if (r.shared >= pool.working)
    fail(ErrorKind::invalid, "shared slot of request {}: got {}; wants 0 to {}, or -1 for none", r.request, r.shared,
         pool.working - 1);
}

// `current` as a slot.
std::int64_t checked_current(const OutputPool& pool, const SlotRequest& r, std::int32_t current) {
  if (current < 0 || current == r.working) return r.working;
  const std::int64_t first = first_draft(pool, r), end = first + pool.drafts_each();
  if (current < first || current >= end) {
    const std::string drafts =
        pool.drafts_each() == 0 ? std::string() : fmt::format(" or its draft slots {} to {}", first, end - 1);
    fail(ErrorKind::invalid, "current slot of request {}: got {}; wants its working slot {}{}: another's state",
         r.request, current, r.working, drafts);
  }
  return current;
}

}  // namespace

void OutputPool::validate() const {
  const auto least_one = [](const char* name, std::int64_t value) {
    if (value < 1) fail(ErrorKind::invalid, "pool of output slots: {}: got {}; wants 1 or more", name, value);
  };
  least_one("working", working);
  least_one("requests", requests);
  least_one("tokens", tokens);
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  if (working > kMost || requests > kMost / tokens || total() > kMost)
    fail(ErrorKind::invalid,
         "pool of output slots: got {} working slots and {} requests of {} tokens; wants {} slots at most in all",
         working, requests, tokens, kMost);
}

std::int32_t output_slot(const OutputPool& pool, const SlotRequest& request, int token) {
  check(pool, request);
  if (token < 0 || token >= pool.tokens)
    fail(ErrorKind::invalid, "token: got {}; wants 0 to {}", token, pool.tokens - 1);
  if (is_pad(request)) return -1;
  return static_cast<std::int32_t>(token == 0 ? request.working : first_draft(pool, request) + token - 1);
}

void output_row(const OutputPool& pool, const SlotRequest& request, std::span<std::int32_t> row) {
  if (row.size() > static_cast<std::size_t>(std::max(pool.tokens, 0)))
    fail(ErrorKind::invalid, "row of output slots: got {} entries; wants {} at most, the tokens of a step", row.size(),
         pool.tokens);
  for (std::size_t t = 0; t < row.size(); ++t) row[t] = output_slot(pool, request, static_cast<int>(t));
}

std::int32_t input_slot(const OutputPool& pool, const SlotRequest& request, std::int32_t current) {
  check(pool, request);
  if (is_pad(request)) return -1;
  const std::int64_t slot = checked_current(pool, request, current);
  return static_cast<std::int32_t>(slot == request.working && request.shared >= 0 ? request.shared : slot);
}

std::int32_t accepted_slot(const OutputPool& pool, const SlotRequest& request, int accepted) {
  pool.validate();
  return output_slot(pool, request, std::clamp(accepted, 1, pool.tokens) - 1);
}

SlotCopy retract_copy(const OutputPool& pool, const SlotRequest& request, std::int32_t current) {
  check(pool, request);
  if (is_pad(request)) return {};
  const std::int64_t from = checked_current(pool, request, current);
  if (from == request.working) return {};
  return {static_cast<std::int32_t>(from), static_cast<std::int32_t>(request.working)};
}

SlotCopy checkpoint_copy(const OutputPool& pool, const SlotRequest& request, std::int64_t length, int accepted,
                         std::int64_t page, std::int64_t checkpoint) {
  check(pool, request);
  if (page < 1) fail(ErrorKind::invalid, "page: got {} tokens; wants 1 or more", page);
  if (length < 0) fail(ErrorKind::invalid, "length of request {}: got {}; wants 0 or more", request.request, length);
  if (checkpoint >= pool.working)
    fail(ErrorKind::invalid, "checkpoint of request {}: got slot {}; wants 0 to {}, or -1 for none", request.request,
         checkpoint, pool.working - 1);
  if (is_pad(request) || checkpoint < 0) return {};
  const std::int64_t to_boundary = page - length % page;  // tokens, 1 or more
  if (to_boundary > std::clamp(accepted, 1, pool.tokens)) return {};
  const std::int32_t from = output_slot(pool, request, static_cast<int>(to_boundary) - 1);
  if (from == checkpoint) return {};
  return {from, static_cast<std::int32_t>(checkpoint)};
}

}  // namespace ssmjit
