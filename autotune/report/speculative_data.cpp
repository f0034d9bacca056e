#include "autotune/report/speculative_data.h"

#include <cmath>
#include <map>
#include <string>
#include <tuple>
#include <utility>

#include "autotune/cells.h"

namespace ssmjit {
namespace {

using Json = nlohmann::ordered_json;
using Forms = std::map<DraftForm, const SpeculativeStep*>;
using Batches = std::map<int, Forms>;
// By what a request keeps on average, then by how the acceptance was given.
using Acceptances = std::map<std::tuple<double, std::string, double>, Batches>;

Json form_json(const SpeculativeStep& s) {
  if (s.outcome != Outcome::ok) return {{"form", name(s.form)}, {"outcome", name(s.outcome)}, {"reason", s.reason}};
  Json json{{"form", name(s.form)},
            {"us", tidy_us(s.us)},
            {"kernel_us", tidy_us(s.kernel_us)},
            {"copies_us", tidy_us(s.copies_us)},
            {"floor_us", tidy_us(s.floor_us)},
            {"share", std::round(s.share * 1e4) / 1e4},
            {"us_per_token", tidy_us(s.us_per_token)},
            {"slot_bytes", s.slot_bytes},
            {"moved_bytes", s.moved_bytes + s.copied_bytes},
            {"plan", s.plan.text()},
            {"why", name(s.why)}};
  if (s.steps_per_flush > 0) json["steps_per_flush"] = s.steps_per_flush;
  return json;
}

Json batches_json(const Batches& batches) {
  Json list = Json::array();
  for (const auto& [batch, forms] : batches) {
    Json cell{{"batch", batch}, {"forms", Json::array()}};
    const SpeculativeStep* fastest = nullptr;
    for (const auto& [form, step] : forms) {
      cell["forms"].push_back(form_json(*step));
      if (step->outcome == Outcome::ok && (fastest == nullptr || step->us < fastest->us)) fastest = step;
    }
    if (fastest != nullptr) cell["fastest"] = name(fastest->form);
    list.push_back(std::move(cell));
  }
  return list;
}

// Bytes of a slot do not depend on the batch.
Json slots_json(const Acceptances& acceptances) {
  std::map<DraftForm, std::int64_t> bytes;
  for (const auto& [accepted, batches] : acceptances)
    for (const auto& [batch, forms] : batches)
      for (const auto& [form, step] : forms)
        if (step->outcome == Outcome::ok) bytes[form] = step->slot_bytes;
  Json list = Json::array();
  for (const auto& [form, of] : bytes) list.push_back({{"form", name(form)}, {"bytes", of}});
  return list;
}

}  // namespace

Json speculative_data(const std::vector<SpeculativeStep>& steps) {
  std::map<std::tuple<std::string, std::string, int, PdlMode>, std::map<int, Acceptances>> groups;
  for (const SpeculativeStep& s : steps)
    groups[{s.device, s.base, s.nheads, s.pdl}][s.tokens][{s.kept, s.accepted, s.draft_chance}][s.batch][s.form] = &s;
  Json list = Json::array();
  for (const auto& [key, tokens] : groups) {
    const auto& [device, base, nheads, pdl] = key;
    Json group{{"device", device}, {"kernel", base}, {"nheads", nheads}, {"pdl", name(pdl)}};
    group["tokens"] = Json::array();
    for (const auto& [count, acceptances] : tokens) {
      Json of{{"tokens", count}, {"slots", slots_json(acceptances)}, {"acceptances", Json::array()}};
      for (const auto& [accepted, batches] : acceptances) {
        const auto& [kept, text, chance] = accepted;
        Json one{{"accepted", text}, {"kept", kept}};
        if (chance >= 0) one["draft_chance"] = chance;
        one["cells"] = batches_json(batches);
        of["acceptances"].push_back(std::move(one));
      }
      group["tokens"].push_back(std::move(of));
    }
    list.push_back(std::move(group));
  }
  return list;
}

}  // namespace ssmjit
