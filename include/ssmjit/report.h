// Seeing what a sweep found: one HTML file from journals. In the library ssmjit::autotune; no GPU is needed.
#pragma once

#include <string>
#include <vector>

#include <ssmjit/measurement.h>
#include <ssmjit/speculative.h>
#include <ssmjit/table.h>

namespace ssmjit {

// What a report says of itself and is measured against.
struct ReportOptions {
  struct Journal {
    std::string name;
    int skipped = 0;  // lines that could not be read
  };
  std::vector<Journal> journals{};
  // The table whose choices are compared with the best of each cell; without rows, what fit_table gives.
  Table table{};
  std::string table_name{};
  // Forms of verifying drafts, drawn beside the journals' kernels or alone, and the files that they came from.
  std::vector<SpeculativeStep> speculative{};
  std::vector<Journal> speculative_files{};
};

// One HTML page that asks for nothing from elsewhere: latency, share of the floor, regret, the effect of each tunable,
// failures and provenance, by kernel and PDL mode. The same measurements in the same order give the same bytes.
// Fails: ErrorKind::invalid where there is neither a measurement nor a form.
std::string report_html(const std::vector<Measurement>& measurements, const ReportOptions& options = {});

}  // namespace ssmjit
