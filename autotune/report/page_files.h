// The report's page as the build found it in autotune/report/.
#pragma once

#include "codegen/embedded_files.h"

namespace ssmjit {

// page.html, page.css and page.js.
const EmbeddedFiles& report_page_files();

}  // namespace ssmjit
