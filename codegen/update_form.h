// Which of two kernels computes an update, and which of two a layer with its state in place.
#pragma once

#include <ssmjit/description.h>

namespace ssmjit {

// Whether it is that of templates/update_tokens.cuh: of several tokens, or of one with what the other (one token, in
// place or to a destination slot) has not.
inline bool has_token_kernel(const Description& d) {
  return d.op() == Op::update &&
         (d.token_count > 1 || d.stores_every_token() || d.has_accepted || d.has_tree || d.is_varlen);
}

// Of such a layer, whether it is that of templates/layer_tokens.cuh: of several tokens.
inline bool is_layer_of_tokens(const Description& d) {
  return d.op() == Op::layer && d.ring_window() == 0 && d.token_count > 1;
}

}  // namespace ssmjit
