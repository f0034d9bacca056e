// How the rooms say something to the user's log callback (ssmjit/log.h). Costs a lock, so never on a launch.
#pragma once

#include <string_view>

namespace ssmjit {

void warn(std::string_view sentence);
void info(std::string_view sentence);

}  // namespace ssmjit
