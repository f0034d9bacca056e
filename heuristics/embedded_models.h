// The models that the library ships: examples/models/*.json, named "nemotron3-super-tp8.json".
#pragma once

#include "codegen/embedded_files.h"

namespace ssmjit {

const EmbeddedFiles& embedded_models();

}  // namespace ssmjit
