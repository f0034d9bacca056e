// The comment at the top of an emitted file. It names sizes that the kernel does not depend on (nheads), so what
// identifies a kernel is the text behind it.
#pragma once

#include <string_view>

namespace ssmjit {

// `source_text` from the first line on that is no `//` comment.
std::string_view without_banner(std::string_view source_text);

}  // namespace ssmjit
