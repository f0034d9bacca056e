// What the host does with a slot's replay buffers between steps: a pure function of its cursor.
#include <string>

#include <fmt/format.h>

#include <ssmjit/kernel.h>

#include "codegen/fail.h"

namespace ssmjit {

ReplayCursor advance_replay(const Description& description, ReplayCursor cursor, int accepted) {
  if (!std::holds_alternative<Replay>(description.store_kind))
    fail(ErrorKind::invalid, "description: got another store, which has no buffers; wants a replay (store=replay)");
  std::string wrong;
  const auto check = [&](const char* name, int value, int most) {
    if (value >= 0 && value <= most) return;
    wrong += fmt::format("{}{}: got {}; wants 0 to {}", wrong.empty() ? "" : "\n", name, value, most);
  };
  check("cursor buffer", cursor.buffer, 1);
  check("cursor accepted", cursor.accepted, description.token_count);
  check("accepted", accepted, description.token_count);
  if (!wrong.empty()) fail(ErrorKind::invalid, "{}", wrong);
  return {1 - cursor.buffer, accepted};
}

}  // namespace ssmjit
