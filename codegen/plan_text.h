// A plan as people write it, of which most is left out.
#pragma once

#include <cstdint>
#include <string_view>

#include <ssmjit/plan.h>

namespace ssmjit {

// Plan::parse() over `base`; a text that names a layer's chain (form=chain) where `base` is none, over default_chain()
// for work of that many heads. Fails: as Plan::parse().
Plan parse_plan(std::string_view text, const Plan& base, const Description& description, const Arch& arch,
                std::int64_t total_heads);

}  // namespace ssmjit
