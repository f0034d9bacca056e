// What of compile() the other parts of the jit and its tests use.
#pragma once

#include <string>
#include <vector>

#include <ssmjit/source.h>

namespace ssmjit {

// The options that a source is compiled with, all of them.
std::vector<std::string> compiler_options(const Source& source);

// Drops what compile() keeps in memory. The files of a cache folder stay.
void forget_compiled();

}  // namespace ssmjit
