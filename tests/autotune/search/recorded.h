// What sweeps of whole plan spaces measured, from tests/vectors/journals.
#pragma once

#include <fstream>
#include <limits>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <ssmjit/description.h>
#include <ssmjit/device.h>
#include <ssmjit/plan.h>

#include "autotune/search/prune.h"

namespace ssmjit {

struct RecordedSpace {
  std::string name;
  Description description;
  std::vector<int> batches;
  std::map<int, FloorRate> floors;
  std::vector<Plan> plans;
  std::vector<Compiled> compiled;
  std::vector<std::map<int, double>> us;  // by plan and batch
  std::map<int, double> best;             // of those timed in full
};

inline DeviceFacts h200() {
  DeviceFacts gpu;
  gpu.name = "NVIDIA H200";
  gpu.key = "h200";
  gpu.major = 9;
  gpu.sms = 132;
  gpu.smem_per_sm_bytes = 233472;
  gpu.smem_per_block_bytes = 232448;
  gpu.registers_per_sm = 65536;
  return gpu;
}

inline RecordedSpace recorded(const std::string& name) {
  RecordedSpace r;
  r.name = name;
  const bool ring = name.starts_with("ring");
  r.description = mamba2({.nheads = 64, .head_dim = 64, .dstate = 128, .ngroups = 8}).state(DType::bf16);
  if (name.starts_with("ring-6"))
    r.description = mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1}).state(DType::bf16).tokens(6);
  if (ring) r.description = r.description.store(Ring{.window = 16});
  if (name.find("fp32") != std::string::npos) r.description = r.description.state(DType::f32);

  std::ifstream file(std::string(SSMJIT_SOURCE_DIR) + "/tests/vectors/journals/search-" + name + ".json");
  const auto json = nlohmann::json::parse(file);
  r.batches = json["batches"].get<std::vector<int>>();
  for (std::size_t b = 0; b < r.batches.size(); ++b)
    r.floors[r.batches[b]] = {json["floor_us"][b].get<double>(), json["floor_bytes_read"][b].get<std::int64_t>()};
  for (const auto& row : json["plans"]) {
    r.plans.push_back(Plan::parse(row["plan"].get<std::string>(), Plan{}));
    r.compiled.push_back({row["registers"].get<int>(), row["smem_bytes"].get<int>()});
    r.us.emplace_back();
    for (std::size_t b = 0; b < r.batches.size(); ++b) {
      if (row["us"][b].is_null()) continue;
      const double us = row["us"][b].get<double>();
      r.us.back()[r.batches[b]] = us;
      if (row["ok"][b].get<int>() == 0) continue;
      const auto [at, added] = r.best.emplace(r.batches[b], us);
      if (!added) at->second = std::min(at->second, us);
    }
  }
  return r;
}

inline std::vector<std::string> recorded_names() {
  return {"ring-6-tokens-off", "ring-6-tokens-chain", "ring-1-token-off", "ring-1-token-chain",
          "ring-6-fp32-off",   "update-bf16-off",     "update-fp32-off"};
}

}  // namespace ssmjit
