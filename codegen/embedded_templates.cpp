#include "codegen/embedded_templates.h"

#include <string>

#include <ssmjit/error.h>

namespace ssmjit {

std::string_view template_file(std::string_view name) {
  for (const auto& [file, content] : embedded_templates()) {
    if (file == name) return content;
  }
  throw Error(ErrorKind::internal, "no template \"" + std::string(name) + "\" is embedded in this build");
}

}  // namespace ssmjit
