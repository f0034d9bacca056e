// The measured tables that the library ships: heuristics/tables/<gpu>/*.json, named "h200/update.json".
#pragma once

#include "codegen/embedded_files.h"

namespace ssmjit {

const EmbeddedFiles& embedded_tables();

}  // namespace ssmjit
