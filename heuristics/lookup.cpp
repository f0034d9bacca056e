#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <functional>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>

#include <ssmjit/table.h>

#include "codegen/fail.h"
#include "heuristics/plan_ranges.h"
#include "heuristics/row_lookup.h"

namespace ssmjit {
namespace {

using Rows = std::vector<const TableRow*>;  // by total_heads

double log_distance(std::int64_t a, std::int64_t b) {
  return std::abs(std::log(static_cast<double>(std::max<std::int64_t>(a, 1))) -
                  std::log(static_cast<double>(std::max<std::int64_t>(b, 1))));
}

// The straight line through two points in log-log space; 0 where one is not known.
double interpolate(double low, double high, double weight) {
  return low > 0 && high > 0 ? std::exp((1 - weight) * std::log(low) + weight * std::log(high)) : 0;
}

// a * b as two words, the high one first.
std::pair<std::uint64_t, std::uint64_t> product(std::uint64_t a, std::uint64_t b) {
  constexpr std::uint64_t kLow = 0xffffffff;
  const std::uint64_t low = (a & kLow) * (b & kLow), middle = (a >> 32) * (b & kLow) + (low >> 32);
  const std::uint64_t carry = (a & kLow) * (b >> 32) + (middle & kLow);
  return {(a >> 32) * (b >> 32) + (middle >> 32) + (carry >> 32), (carry << 32) | (low & kLow)};
}

// Whether a size is nearer to `low` than to `high` by ratio: total_heads / low < high / total_heads, exactly. Half way
// counts as high: in journals of an H200 the larger size's plan loses less there at worst.
bool nearer_to_low(std::int64_t low, std::int64_t total_heads, std::int64_t high) {
  const auto word = [](std::int64_t heads) { return static_cast<std::uint64_t>(std::max<std::int64_t>(heads, 1)); };
  return product(word(total_heads), word(total_heads)) < product(word(low), word(high));
}

// The row that is nearest to a size, by ratio.
const TableRow& nearest(const Rows& rows, std::int64_t total_heads) {
  const auto above = std::lower_bound(rows.begin(), rows.end(), total_heads,
                                      [](const TableRow* row, std::int64_t value) { return row->total_heads < value; });
  if (above == rows.end()) return *rows.back();
  if (above == rows.begin() || (*above)->total_heads == total_heads) return **above;
  const TableRow &low = **std::prev(above), &high = **above;
  return nearer_to_low(low.total_heads, total_heads, high.total_heads) ? low : high;
}

// Whether the smaller of the rows beside a size has clusters that fit the GPU there as they do at its own size, but no
// longer at the larger one.
bool still_fits(const TableRow& low, std::int64_t total_heads, const TableRow& high) {
  return total_heads <= low.fits_heads && low.fits_heads < high.total_heads;
}

// The plan of a size: of its row, between rows, or of the nearest.
const Plan& plan_from(const Rows& rows, std::int64_t total_heads) {
  const auto above = std::lower_bound(rows.begin(), rows.end(), total_heads,
                                      [](const TableRow* row, std::int64_t value) { return row->total_heads < value; });
  if (above != rows.end() && above != rows.begin() && (*above)->total_heads != total_heads) {
    const TableRow& low = **std::prev(above);
    if (still_fits(low, total_heads, **above)) return low.plan;
    if (low.between) return *low.between;
  }
  return nearest(rows, total_heads).plan;
}

Choice from_rows(const Rows& rows, std::int64_t total_heads) {
  const auto above = std::lower_bound(rows.begin(), rows.end(), total_heads,
                                      [](const TableRow* row, std::int64_t value) { return row->total_heads < value; });
  if (above != rows.end() && (*above)->total_heads == total_heads) {
    const TableRow& row = **above;
    return {row.plan, Why::exact,
            fmt::format("{} at {} {} on {}", row.predicted ? "predicted" : "measured", total_heads, work_unit(row.op),
                        row.device),
            row.us, row.floor_us};
  }
  const TableRow& near = nearest(rows, total_heads);
  if (above != rows.end() && above != rows.begin()) {
    const TableRow &low = **std::prev(above), &high = **above;
    const double weight = log_distance(total_heads, low.total_heads) / log_distance(high.total_heads, low.total_heads);
    const std::string whose =
        still_fits(low, total_heads, high)
            ? fmt::format("that of {}, whose clusters fit up to {}", low.total_heads, low.fits_heads)
        : low.between ? "the one for sizes between them"
                      : fmt::format("that of {}", near.total_heads);
    return {plan_from(rows, total_heads), Why::interpolated,
            fmt::format("{} {} lie between the rows of {} and {} on {}; the plan is {}", total_heads, work_unit(low.op),
                        low.total_heads, high.total_heads, low.device, whose),
            interpolate(low.us, high.us, weight), interpolate(low.floor_us, high.floor_us, weight)};
  }
  // Below the first row its time is an upper bound. Above the last one a step is bound by memory: time grows with size.
  const bool beyond = total_heads > near.total_heads;
  const double scale =
      beyond ? static_cast<double>(total_heads) / static_cast<double>(std::max<std::int64_t>(near.total_heads, 1)) : 1;
  return {near.plan, Why::nearest,
          fmt::format("{} {} lie {} every row on {}; the nearest is {}{}", total_heads, work_unit(near.op),
                      beyond ? "above" : "below", near.device, near.total_heads,
                      beyond ? ", its time scaled by the size" : ""),
          near.us * scale, near.floor_us * scale};
}

// Whether a launch in `mode` wants a kernel that asks for the state early. A row of this mode keeps the plan that was
// measured; one of the other mode is taken in this one's kind.
bool wants_early_state(const TableRow& row, const Plan& plan, PdlMode mode, bool has_pdl) {
  if (plan.form != PlanForm::fused) return plan.early_state;  // of a launch behind the first, whatever the mode
  return has_pdl && (row.pdl == mode ? plan.early_state : mode == PdlMode::chain);
}

// The row with its plans as a launch in `mode` takes them; one between that is not legal is forgotten.
TableRow for_mode(TableRow row, PdlMode mode, bool has_pdl, const std::function<bool(const Plan&)>& legal) {
  row.plan.early_state = wants_early_state(row, row.plan, mode, has_pdl);
  if (!row.between) return row;
  row.between->early_state = wants_early_state(row, *row.between, mode, has_pdl);
  if (!legal(*row.between)) row.between.reset();
  return row;
}

// The rows that answer a question at any size, and how far they are from it.
struct Answering {
  std::deque<TableRow> candidates;  // what `rows` points to
  Rows rows;                        // empty: none answers
  bool other_device = false, other_kernel = false, other_mode = false;
  int passed_over = 0;
};

Answering answering_rows(const Table& table, const RowQuestion& question,
                         const std::function<bool(const Plan&)>& legal) {
  // Rows by how far they are from the question, the nearest first: measured here before predicted here before measured
  // on another GPU, this kernel before one of the same cost, this mode before the other. What was predicted for another
  // GPU answers nothing.
  constexpr std::size_t kPredicted = 4, kOtherDevice = 8;
  std::array<Rows, 12> classes;
  Answering answering;
  for (const TableRow& row : table.rows) {
    const bool same_kernel = row.kernel_digest == question.kernel_digest, here = row.device == question.device;
    if (!same_kernel && row.cost_digest != question.cost_digest) continue;
    if (row.predicted && !here) continue;
    TableRow candidate = for_mode(row, question.mode, question.has_pdl, legal);
    if (!legal(candidate.plan)) {
      ++answering.passed_over;
      continue;
    }
    classes[(here ? row.predicted * kPredicted : kOtherDevice) + !same_kernel * 2U + (row.pdl != question.mode)]
        .push_back(&answering.candidates.emplace_back(std::move(candidate)));
  }
  const auto found = std::find_if(classes.begin(), classes.end(), [](const Rows& rows) { return !rows.empty(); });
  if (found == classes.end()) return answering;

  const auto distance = static_cast<std::size_t>(found - classes.begin());
  answering.other_device = distance >= kOtherDevice;
  answering.other_kernel = distance & 2;
  answering.other_mode = distance & 1;
  Rows& rows = answering.rows = std::move(*found);
  // The order of the table's rows must not matter: every rank has to come to the same plan.
  std::sort(rows.begin(), rows.end(), [](const TableRow* a, const TableRow* b) {
    return std::tie(a->total_heads, a->device, a->kernel_digest) <
           std::tie(b->total_heads, b->device, b->kernel_digest);
  });
  rows.erase(std::unique(rows.begin(), rows.end(),
                         [](const TableRow* a, const TableRow* b) { return a->total_heads == b->total_heads; }),
             rows.end());
  return answering;
}

}  // namespace

const char* work_unit(Op op) {
  switch (op) {
    case Op::conv1d:
      return "blocks of 64 channels";
    case Op::norm:
      return "groups";
    default:
      return "heads";
  }
}

std::optional<Choice> look_up_rows(const Table& table, const RowQuestion& question,
                                   const std::function<bool(const Plan&)>& legal, int* illegal) {
  const std::int64_t total_heads = question.total_heads;
  const Answering answering = answering_rows(table, question, legal);
  if (illegal != nullptr) *illegal = answering.passed_over;
  const Rows& rows = answering.rows;
  if (rows.empty()) return std::nullopt;
  const TableRow& near = nearest(rows, total_heads);
  Choice choice;
  if (answering.other_device) {
    const Choice there = from_rows(rows, total_heads);
    choice = {there.plan, Why::other_device,
              fmt::format("no row of this kernel on {}; {}", question.device.empty() ? "this device" : question.device,
                          there.reason),
              0, 0};
  } else {
    choice = from_rows(rows, total_heads);
    if (answering.other_mode) choice.why = Why::nearest;
    if (answering.other_kernel) choice.why = Why::similar;
    if (near.predicted) choice.why = Why::predicted;
  }
  const char* how = near.predicted ? "predicted" : "measured";
  if (answering.other_kernel) choice.reason += fmt::format("; {} with a kernel of the same cost, {}", how, near.kernel);
  if (answering.other_mode) {
    choice.reason +=
        fmt::format("; {} with PDL mode {}, as there is no row for {}", how, name(near.pdl), name(question.mode));
  }
  if (near.predicted) choice.reason += "; predicted from facts of the GPU, not measured";
  return choice;
}

namespace {

Plan fallback_plan(const Description& description, const Arch& arch, std::int64_t total_heads, PdlMode mode) {
  Plan plan = default_plan(description, arch, total_heads);
  if (plan.form == PlanForm::fused) plan.early_state = mode == PdlMode::chain && arch.has_pdl();
  return plan;
}

}  // namespace

Choice lookup(const Table& table, const Description& description, std::string_view device_key, const Arch& arch,
              std::int64_t batch, PdlMode mode) {
  const std::int64_t total_heads = work_items(description, std::max<std::int64_t>(batch, 1));
  const std::string kernel = description.kernel_digest();
  const std::string cost = description.cost_digest();
  int illegal = 0;
  const std::optional<Choice> found = look_up_rows(
      table, {device_key, kernel, cost, total_heads, mode, arch.has_pdl()},
      [&](const Plan& plan) { return plan_problems(plan, description, arch).empty(); }, &illegal);
  Choice choice;
  if (found) {
    choice = *found;
  } else {
    choice = {
        fallback_plan(description, arch, total_heads, mode), Why::fallback,
        fmt::format("no row of this kernel ({}) or of one of its cost ({}); the plan is the default one", kernel, cost),
        0, 0};
  }
  if (illegal > 0) {
    choice.reason += fmt::format("; passed over {} with a plan that is not legal on {}",
                                 illegal == 1 ? "a row" : fmt::format("{} rows", illegal), arch.text());
  }
  return choice;
}

std::vector<PlanRange> plan_ranges(const Table& table, const Description& description, std::string_view device_key,
                                   const Arch& arch, int max_batch, PdlMode mode) {
  const std::string kernel = description.kernel_digest(), cost = description.cost_digest();
  const auto total_heads = [&](int batch) { return work_items(description, batch); };
  const Answering answering =
      answering_rows(table, {device_key, kernel, cost, 1, mode, arch.has_pdl()},
                     [&](const Plan& plan) { return plan_problems(plan, description, arch).empty(); });
  std::vector<PlanRange> ranges;
  const auto add = [&](int batch, const Plan& plan) {
    if (ranges.empty() || !(ranges.back().plan == plan)) ranges.push_back({batch, plan});
  };
  if (!answering.rows.empty()) {
    const Plan* last = nullptr;
    for (int batch = 1; batch <= max_batch; ++batch) {
      const Plan& plan = plan_from(answering.rows, total_heads(batch));
      if (&plan != last) add(batch, *(last = &plan));
    }
    return ranges;
  }
  // The default plan takes a walk over the space. It changes at a few sizes and never back, so what is chosen at both
  // ends of a span is chosen within it.
  const auto fallback = [&](int batch) { return fallback_plan(description, arch, total_heads(batch), mode); };
  const std::function<void(int, const Plan&, int, const Plan&)> between = [&](int low, const Plan& at_low, int high,
                                                                              const Plan& at_high) {
    if (at_low == at_high) return;
    if (high - low == 1) return add(high, at_high);
    const int middle = low + (high - low) / 2;
    const Plan at_middle = fallback(middle);
    between(low, at_low, middle, at_middle);
    between(middle, at_middle, high, at_high);
  };
  const Plan first = fallback(1);
  add(1, first);
  if (max_batch > 1) between(1, first, max_batch, fallback(max_batch));
  return ranges;
}

Plan lookup_chain(const Table& table, PlanForm form, const Description& description, std::string_view device_key,
                  const Arch& arch, std::int64_t batch, PdlMode mode) {
  std::vector<Plan> parts;
  for (const Description& part : layer_parts(description)) {
    parts.push_back(lookup(table, part, device_key, arch, batch, mode).plan);
    mode = form == PlanForm::chain_pdl ? PdlMode::chain : PdlMode::off;
  }
  return chain_of(form, description, parts);
}

std::vector<Plan> layer_plans(const Table& table, const Description& description, std::string_view device_key,
                              const Arch& arch, const std::vector<int>& batches) {
  std::vector<Plan> plans = plan_space(description, arch);
  std::vector<Plan> chains;
  for (const Plan& plan : plans) {
    if (plan.form == PlanForm::fused) continue;
    for (int batch : batches) {
      Plan chain = lookup_chain(table, plan.form, description, device_key, arch, batch);
      const bool is_new = std::find(chains.begin(), chains.end(), chain) == chains.end();
      if (is_new && plan_problems(chain, description, arch).empty()) chains.push_back(std::move(chain));
    }
  }
  std::erase_if(plans, [](const Plan& plan) { return plan.form != PlanForm::fused; });
  plans.insert(plans.end(), chains.begin(), chains.end());
  return plans;
}

}  // namespace ssmjit
