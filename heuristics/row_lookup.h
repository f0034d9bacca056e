// Looking a size up among rows, by what names a kernel: what lookup() does once the description is read.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>

#include <ssmjit/table.h>

namespace ssmjit {

struct RowQuestion {
  std::string_view device;
  std::string_view kernel_digest;
  std::string_view cost_digest;
  std::int64_t total_heads = 1;
  PdlMode mode = PdlMode::off;
  bool has_pdl = true;  // whether the GPU has dependent launches
};

// What TableRow::total_heads counts (work_items()): "heads", "groups", "blocks of 64 channels".
const char* work_unit(Op op);

// Nothing where no row answers. A row whose plan is not `legal` is passed over and counted in `illegal`.
std::optional<Choice> look_up_rows(const Table& table, const RowQuestion& question,
                                   const std::function<bool(const Plan&)>& legal, int* illegal = nullptr);

}  // namespace ssmjit
