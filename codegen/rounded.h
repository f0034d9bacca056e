// Which updates of one token have a state that is more than rounded to nearest (templates/update_rounded.cuh).
#pragma once

#include <variant>

#include <ssmjit/description.h>

namespace ssmjit {

// Whether a state is stored by chance, or in units of a factor for each row.
inline bool is_state_rounded(const Description& d) {
  return d.has_state_scale() || std::holds_alternative<Stochastic>(d.rounding_kind);
}
inline bool is_update_rounded(const Description& d) {
  return d.op() == Op::update && d.token_count == 1 && !d.stores_every_token() && !d.has_accepted && !d.is_varlen &&
         is_state_rounded(d);
}

}  // namespace ssmjit
