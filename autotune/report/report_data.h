// What the report's page draws, as JSON.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <ssmjit/report.h>

namespace ssmjit {

// By kernel (device, digest, nheads) and, below it, by PDL mode; a cell is one batch. Times in us, shares and losses as
// fractions. autotune/report/page.js is its reader.
nlohmann::ordered_json report_data(const std::vector<Measurement>& measurements, const ReportOptions& options);

}  // namespace ssmjit
