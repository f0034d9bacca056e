// The kernel templates as the build found them in templates/.
#pragma once

#include <string_view>

#include "codegen/embedded_files.h"

namespace ssmjit {

// templates/**/*.cuh and templates/*.json; names are below templates/: "update.cuh", "device/warp.cuh".
const EmbeddedFiles& embedded_templates();

// The content of one of them. Fails: ErrorKind::internal for a name that there is not.
std::string_view template_file(std::string_view name);

}  // namespace ssmjit
