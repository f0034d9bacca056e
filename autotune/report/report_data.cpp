#include "autotune/report/report_data.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "autotune/report/speculative_data.h"

namespace ssmjit {
namespace {

using Json = nlohmann::ordered_json;
using Lines = std::vector<const Measurement*>;

constexpr double kNear = 1.01;  // a plan within this of the best is as good

double rounded(double value, double step) { return std::round(value / step) * step; }
double us_of(double us) { return rounded(us, 1e-3); }
double fraction_of(double fraction) { return rounded(fraction, 1e-4); }
double least_loss(double us, double best) { return fraction_of(std::max(0.0, us / best - 1)); }

bool timed(const Measurement& m) {
  return (m.outcome == Outcome::ok || m.outcome == Outcome::dropped) && m.batch > 0 && m.us > 0 && std::isfinite(m.us);
}
bool failed(const Measurement& m) { return m.outcome != Outcome::ok && m.outcome != Outcome::dropped; }

// A reason with # for each number: what reasons of one kind share.
std::string kind_of(const std::string& reason) {
  std::string kind;
  const auto digit = [&](std::size_t i) { return i < reason.size() && reason[i] >= '0' && reason[i] <= '9'; };
  for (std::size_t i = 0; i < reason.size();) {
    if (!digit(i)) {
      kind += reason[i++];
      continue;
    }
    kind += '#';
    while (digit(i)) ++i;
    if (digit(i + 1) && reason[i] == '.')
      for (++i; digit(i);) ++i;
    if (i < reason.size() && reason[i] == 'e') {
      const std::size_t exponent = i + 1 + (i + 1 < reason.size() && (reason[i + 1] == '-' || reason[i + 1] == '+'));
      if (digit(exponent))
        for (i = exponent; digit(i);) ++i;
    }
  }
  return kind;
}

// A plan's value of a tunable as text; empty where it has none.
std::string value_of(const Json& plan, const std::string& tunable) {
  if (!plan.contains(tunable))
    return tunable == "ring_rows" ? name(Plan{}.ring_rows) : tunable.starts_with("precompute_") ? "0" : "";
  const Json& value = plan.at(tunable);
  return value.is_string() ? value.get<std::string>() : value.dump();
}

// Plans of a kernel by number; a plan whose source changed between sweeps has a number for each.
class Plans {
 public:
  std::size_t number(const Measurement& m) {
    const auto [at, added] = numbers_.emplace(std::pair(m.plan.text(), m.source_digest), all_.size());
    if (added) {
      all_.push_back(&m);
      fields_.push_back(Json::parse(m.plan.json()));
    } else if (all_[at->second]->registers == 0) {
      all_[at->second] = &m;
    }
    return at->second;
  }
  const Json& fields(std::size_t number) const { return fields_[number]; }
  Json json() const {
    Json list = Json::array();
    for (const Measurement* m : all_) list.push_back({m->plan.text(), m->source_digest, m->registers, m->smem_bytes});
    return list;
  }

 private:
  std::map<std::pair<std::string, std::string>, std::size_t> numbers_;
  Lines all_;
  std::vector<Json> fields_;
};

// A batch of one PDL mode.
struct PageCell {
  Lines lines;                        // timed, the fastest first
  const Measurement* best = nullptr;  // of those that were timed in full and may win
  const CellCheck* check = nullptr;
};

// The table's answers by what they answer.
using CheckKey = std::tuple<std::string, std::string, PdlMode, std::int64_t>;
using Checks = std::map<CheckKey, CellCheck>;
Checks checks_of(const Table& table, const std::vector<Measurement>& measurements) {
  Checks checks;
  for (CellCheck& c : check_table(table, measurements).cells) {
    CheckKey key{c.device, c.kernel_digest, c.pdl, c.total_heads};
    checks.emplace(std::move(key), std::move(c));
  }
  return checks;
}

// The table's plan in a cell, its time there and what it loses; no time where the journal has none of this plan.
Json answer_json(const CellCheck::Answer& answer) {
  Json json{{"why", name(answer.choice.why)}, {"plan", answer.choice.plan.text()}, {"reason", answer.choice.reason}};
  if (answer.us > 0) {
    json["us"] = us_of(answer.us);
    json["regret"] = fraction_of(std::max(0.0, answer.regret));
  }
  if (!answer.remark.empty()) json["remark"] = answer.remark;
  return json;
}

Json cell_json(const PageCell& cell, Plans& plans) {
  const Measurement& any = *cell.lines.front();
  Json json{{"batch", any.batch}, {"total_heads", any.total_heads()}, {"layers", any.layers}};
  if (cell.best != nullptr) {
    const Measurement& best = *cell.best;
    json["best"] = {{"plan", plans.number(best)},       {"us", us_of(best.us)},
                    {"us_min", us_of(best.us_min)},     {"us_max", us_of(best.us_max)},
                    {"floor_us", us_of(best.floor_us)}, {"share", fraction_of(best.share)}};
    Json phases = Json::array();
    for (const PhaseMeasurement& p : best.phases)
      phases.push_back({{"phase", name(p.phase)},
                        {"ring_count", p.ring_count},
                        {"us", us_of(p.us)},
                        {"floor_us", us_of(p.floor_us)},
                        {"share", fraction_of(p.share)}});
    if (!phases.empty()) json["phases"] = std::move(phases);
  }
  if (cell.check != nullptr) {
    json["table"] = cell.check->answer ? answer_json(*cell.check->answer) : Json{{"why", name(Why::fallback)}};
    if (cell.check->left_out) json["left_out"] = answer_json(*cell.check->left_out);
  }
  json["near"] = std::count_if(cell.lines.begin(), cell.lines.end(), [&](const Measurement* m) {
    return cell.best != nullptr && m->outcome == Outcome::ok && m->us <= cell.best->us * kNear;
  });
  Json candidates = Json::array();
  for (const Measurement* m : cell.lines) {
    Json line{plans.number(*m), m->outcome == Outcome::ok ? 1 : 0, us_of(m->us), us_of(m->us_min), us_of(m->us_max)};
    for (const Phase phase : {Phase::no_flush, Phase::flush})
      for (const PhaseMeasurement& p : m->phases)
        if (p.phase == phase) line.push_back(us_of(p.us));
    candidates.push_back(std::move(line));
  }
  json["candidates"] = std::move(candidates);
  return json;
}

// Numbers by size, which those of a chain's parts are among; words as they came.
void order_values(std::vector<std::string>& values) {
  const auto number = [](const std::string& text) {
    int n = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
    return error == std::errc{} && end == text.data() + text.size() ? n : -1;
  };
  if (std::all_of(values.begin(), values.end(), [&](const std::string& v) { return number(v) >= 0; }))
    std::sort(values.begin(), values.end(),
              [&](const std::string& a, const std::string& b) { return number(a) < number(b); });
}

// For each value of each tunable with several: the number and time of the best plan that has it, cell by cell.
Json effects_json(const Measurement& any, const std::vector<PageCell>& cells, Plans& plans) {
  Json effects = Json::array();
  const auto& all = any.ring_layer ? tunables(mamba2({}).store(Ring{}).with_norm({})) : tunables(any.op);
  for (const Tunable& tunable : all) {
    std::vector<std::string> order = tunable.values;
    std::map<std::string, std::vector<const Measurement*>> best;
    for (std::size_t c = 0; c < cells.size(); ++c) {
      for (const Measurement* m : cells[c].lines) {
        const std::string value = value_of(plans.fields(plans.number(*m)), tunable.name);
        if (value.empty()) continue;
        if (std::find(order.begin(), order.end(), value) == order.end()) order.push_back(value);
        std::vector<const Measurement*>& of = best[value];
        of.resize(cells.size());
        if (of[c] == nullptr || m->us < of[c]->us) of[c] = m;
      }
    }
    if (best.size() < 2) continue;
    order_values(order);
    Json values = Json::array();
    for (const std::string& value : order) {
      const auto found = best.find(value);
      if (found == best.end()) continue;
      Json by_cell = Json::array();
      for (std::size_t c = 0; c < cells.size(); ++c) {
        const Measurement* m = found->second[c];
        if (m == nullptr || cells[c].best == nullptr)
          by_cell.push_back(nullptr);
        else
          by_cell.push_back({plans.number(*m), us_of(m->us), least_loss(m->us, cells[c].best->us)});
      }
      values.push_back({{"value", value}, {"best", std::move(by_cell)}});
    }
    effects.push_back({{"tunable", tunable.name}, {"meaning", tunable.meaning}, {"values", std::move(values)}});
  }
  return effects;
}

// One PDL mode of a kernel, of a ring at one acceptance.
Json mode_json(const Lines& lines, Plans& plans, const Checks& checks) {
  const Measurement& any = *lines.front();
  std::map<int, PageCell> by_batch;
  for (const Measurement* m : lines) by_batch[m->batch].lines.push_back(m);
  std::vector<PageCell> cells;
  for (auto& [batch, cell] : by_batch) {
    std::stable_sort(cell.lines.begin(), cell.lines.end(),
                     [](const Measurement* a, const Measurement* b) { return a->us < b->us; });
    // A phase measured alone has no row, so the table is not asked.
    if (!any.has_ring() || any.phase == "weighted") {
      const auto check = checks.find({any.device, any.kernel_digest, any.pdl, cell.lines.front()->total_heads()});
      if (check != checks.end()) cell.check = &check->second;
    }
    const auto best = std::find_if(cell.lines.begin(), cell.lines.end(), [&](const Measurement* m) {
      return m->outcome == Outcome::ok && (cell.check == nullptr || m->plan == cell.check->best);
    });
    if (best != cell.lines.end()) cell.best = *best;
    cells.push_back(std::move(cell));
  }
  Json json{{"pdl", name(any.pdl)}, {"phase", any.phase}};
  if (any.steps_per_flush > 0) json["steps_per_flush"] = any.steps_per_flush;
  Json of_cells = Json::array();
  for (const PageCell& cell : cells) of_cells.push_back(cell_json(cell, plans));
  json["cells"] = std::move(of_cells);
  json["effects"] = effects_json(any, cells, plans);
  return json;
}

// How many lines failed for one kind of reason, with the first of them.
Json failures_json(const Lines& lines) {
  std::map<std::pair<int, std::string>, std::pair<int, const Measurement*>> kinds;
  for (const Measurement* m : lines) {
    if (!failed(*m)) continue;
    auto& [count, example] = kinds[{static_cast<int>(m->outcome), kind_of(m->reason)}];
    ++count;
    if (example == nullptr) example = m;
  }
  Json list = Json::array();
  for (const auto& [kind, found] : kinds) {
    const auto& [count, example] = found;
    list.push_back({{"outcome", name(example->outcome)},
                    {"reason", kind.second},
                    {"count", count},
                    {"example", example->reason},
                    {"plan", example->plan.text()},
                    {"batch", example->batch},
                    {"pdl", name(example->pdl)}});
  }
  std::stable_sort(list.begin(), list.end(), [](const Json& a, const Json& b) { return a["count"] > b["count"]; });
  return list;
}

Json kernel_json(const Lines& lines, const Checks& checks) {
  const Measurement& any = *lines.front();
  Plans plans;
  std::map<std::tuple<PdlMode, std::string, double>, Lines> modes;
  std::map<std::string, int> outcomes;
  std::set<std::string> sources;
  for (const Measurement* m : lines) {
    // A plan that was found right and not yet timed.
    ++outcomes[m->outcome == Outcome::ok && !timed(*m) ? "verified" : name(m->outcome)];
    sources.insert(m->source_digest);
    if (timed(*m)) modes[{m->pdl, m->phase, m->steps_per_flush}].push_back(m);
  }
  Json json{{"op", name(any.op)},
            {"kernel", any.kernel},
            {"kernel_digest", any.kernel_digest},
            {"cost_digest", any.cost_digest},
            {"nheads", any.nheads},
            {"device", any.device},
            {"measurements", lines.size()},
            {"sources", sources.size()},
            {"outcomes", outcomes}};
  Json of_modes = Json::array();
  for (const auto& [key, of] : modes) of_modes.push_back(mode_json(of, plans, checks));
  json["modes"] = std::move(of_modes);
  json["failures"] = failures_json(lines);
  json["plans"] = plans.json();
  return json;
}

// What the measurements were made with: a row each for what differs.
Json provenance_json(const std::vector<Measurement>& measurements, const std::vector<SpeculativeStep>& speculative) {
  struct Row {
    int count = 0;
    std::string from, to;
  };
  std::map<std::tuple<std::string, std::string, std::string, std::string, std::string>, Row> rows;
  const auto add = [&](const auto& m) {
    Row& row = rows[{m.device, m.device_name, m.driver, m.nvrtc, m.policy}];
    ++row.count;
    if (row.from.empty() || m.measured < row.from) row.from = m.measured;
    row.to = std::max(row.to, m.measured);
  };
  for (const Measurement& m : measurements) add(m);
  for (const SpeculativeStep& s : speculative)
    if (s.outcome == Outcome::ok) add(s);
  Json list = Json::array();
  for (const auto& [key, row] : rows) {
    const auto& [device, device_name, driver, nvrtc, policy] = key;
    list.push_back({{"device", device},
                    {"device_name", device_name},
                    {"driver", driver},
                    {"nvrtc", nvrtc},
                    {"policy", policy},
                    {"measurements", row.count},
                    {"from", row.from},
                    {"to", row.to}});
  }
  return list;
}

// Rows of the table for sizes that the journals have no cell of.
Json other_rows_json(const Table& table, const std::vector<Measurement>& measurements) {
  const auto key = [](const auto& of, std::int64_t total_heads) {
    return std::tuple(of.device, of.op, of.kernel_digest, of.pdl, total_heads);
  };
  std::set<std::tuple<std::string, Op, std::string, PdlMode, std::int64_t>> seen;
  for (const Measurement& m : measurements)
    if (timed(m)) seen.insert(key(m, m.total_heads()));
  Json list = Json::array();
  for (const TableRow& row : table.rows) {
    if (seen.contains(key(row, row.total_heads))) continue;
    list.push_back({{"device", row.device},
                    {"predicted", row.predicted},
                    {"op", name(row.op)},
                    {"kernel", row.kernel},
                    {"kernel_digest", row.kernel_digest},
                    {"pdl", name(row.pdl)},
                    {"total_heads", row.total_heads},
                    {"us", us_of(row.us)},
                    {"floor_us", us_of(row.floor_us)},
                    {"plan", row.plan.text()},
                    {"measured", row.measured}});
  }
  return list;
}

}  // namespace

Json report_data(const std::vector<Measurement>& measurements, const ReportOptions& options) {
  const bool fitted = options.table.rows.empty();
  const Table table = fitted ? fit_table(measurements) : options.table;
  // Kernels in the order of their digests, so that the order of journals does not matter to the eye.
  std::map<std::tuple<std::string, Op, std::string, int>, Lines> kernels;
  for (const Measurement& m : measurements) kernels[{m.device, m.op, m.kernel_digest, m.nheads}].push_back(&m);

  Json journals = Json::array();
  for (const auto& files : {options.journals, options.speculative_files})
    for (const ReportOptions::Journal& j : files) journals.push_back({{"name", j.name}, {"skipped", j.skipped}});
  Json data{{"schema", 1},
            {"version", SSMJIT_VERSION},
            {"measurements", measurements.size()},
            {"journals", std::move(journals)},
            {"table", {{"name", options.table_name}, {"rows", table.rows.size()}, {"fitted", fitted}}},
            {"provenance", provenance_json(measurements, options.speculative)}};
  const Checks checks = checks_of(table, measurements);
  Json of_kernels = Json::array();
  for (const auto& [key, lines] : kernels) of_kernels.push_back(kernel_json(lines, checks));
  data["kernels"] = std::move(of_kernels);
  data["other_rows"] = other_rows_json(table, measurements);
  data["speculative"] = speculative_data(options.speculative);
  return data;
}

}  // namespace ssmjit
