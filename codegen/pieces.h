// Templates as they stand in an emitted file, for kernels that are not emitted from a description.
#pragma once

#include <string>
#include <vector>

namespace ssmjit {

// `files` ("device/mma.cuh", "random.cuh") and what they include, each once, without include lines.
std::string template_pieces(const std::vector<std::string>& files);

}  // namespace ssmjit
