// Tables from files and folders.
#pragma once

#include <string>
#include <vector>

#include <ssmjit/table.h>

namespace ssmjit {

// Puts what stands in files and folders over `table`, the first winning. Unreadable files are warned about and passed
// over.
void merge_tables(Table& table, const std::vector<std::string>& paths);
// The entries of an environment variable that lists paths with ':' between.
std::vector<std::string> paths_in(const char* variable);

}  // namespace ssmjit
