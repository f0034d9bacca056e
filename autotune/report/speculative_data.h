// What the report's page draws of forms of verifying drafts, as JSON.
#pragma once

#include <vector>

#include <nlohmann/json.hpp>

#include <ssmjit/speculative.h>

namespace ssmjit {

// By device, step and PDL mode, then by tokens of a step, acceptance and batch. Of several lines of one form at one
// place the last counts. autotune/report/page.js is its reader.
nlohmann::ordered_json speculative_data(const std::vector<SpeculativeStep>& steps);

}  // namespace ssmjit
