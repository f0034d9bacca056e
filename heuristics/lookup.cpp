#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <limits>
#include <tuple>

#include <ssmjit/table.h>

#include "codegen/fail.h"

namespace ssmjit {
namespace {

using Rows = std::vector<const TableRow*>;  // by total_heads

// batch * nheads, from 1 up to what fits, so that every size has a logarithm.
std::int64_t clamped_total_heads(std::int64_t batch, int nheads) {
  const std::int64_t heads = std::max(nheads, 1);
  if (batch <= 0) return heads;
  return batch > std::numeric_limits<std::int64_t>::max() / heads ? std::numeric_limits<std::int64_t>::max()
                                                                  : batch * heads;
}

double log_distance(std::int64_t a, std::int64_t b) {
  return std::abs(std::log(static_cast<double>(std::max<std::int64_t>(a, 1))) -
                  std::log(static_cast<double>(std::max<std::int64_t>(b, 1))));
}

// The straight line through two points in log-log space; 0 where one is not known.
double interpolate(double low, double high, double weight) {
  return low > 0 && high > 0 ? std::exp((1 - weight) * std::log(low) + weight * std::log(high)) : 0;
}

const TableRow& nearest(const Rows& rows, std::int64_t total_heads) {
  return **std::min_element(rows.begin(), rows.end(), [&](const TableRow* a, const TableRow* b) {
    return log_distance(a->total_heads, total_heads) < log_distance(b->total_heads, total_heads);
  });
}

Choice from_rows(const Rows& rows, std::int64_t total_heads) {
  const auto above = std::lower_bound(rows.begin(), rows.end(), total_heads,
                                      [](const TableRow* row, std::int64_t value) { return row->total_heads < value; });
  if (above != rows.end() && (*above)->total_heads == total_heads) {
    const TableRow& row = **above;
    return {row.plan, Why::exact, fmt::format("measured at {} heads on {}", total_heads, row.device), row.us,
            row.floor_us};
  }
  const TableRow& near = nearest(rows, total_heads);
  if (above != rows.end() && above != rows.begin()) {
    const TableRow &low = **std::prev(above), &high = **above;
    const double weight = log_distance(total_heads, low.total_heads) / log_distance(high.total_heads, low.total_heads);
    return {near.plan, Why::interpolated,
            fmt::format("{} heads lie between the rows of {} and {} on {}; the plan is that of {}", total_heads,
                        low.total_heads, high.total_heads, near.device, near.total_heads),
            interpolate(low.us, high.us, weight), interpolate(low.floor_us, high.floor_us, weight)};
  }
  // Below the first row its time is an upper bound. Above the last one a step is bound by memory: time grows with size.
  const bool beyond = total_heads > near.total_heads;
  const double scale =
      beyond ? static_cast<double>(total_heads) / static_cast<double>(std::max<std::int64_t>(near.total_heads, 1)) : 1;
  return {near.plan, Why::nearest,
          fmt::format("{} heads lie {} every row on {}; the nearest is {}{}", total_heads, beyond ? "above" : "below",
                      near.device, near.total_heads, beyond ? ", its time scaled by the size" : ""),
          near.us * scale, near.floor_us * scale};
}

// Whether a launch in `mode` on `arch` wants a kernel that asks for the state early. A row of this mode keeps the plan
// that was measured; one of the other mode is taken in this one's kind.
bool wants_early_state(const TableRow& row, PdlMode mode, const Arch& arch) {
  return arch.has_pdl() && (row.pdl == mode ? row.plan.early_state : mode == PdlMode::chain);
}

}  // namespace

Choice lookup(const Table& table, const Description& description, std::string_view device_key, const Arch& arch,
              std::int64_t batch, PdlMode mode) {
  const std::int64_t total_heads = clamped_total_heads(batch, description.nheads);
  const std::string kernel = description.kernel_digest();
  const std::string cost = description.cost_digest();

  // Rows by how far they are from the question, the nearest first: this GPU before another, this kernel before one of
  // the same cost, this mode before the other.
  std::array<Rows, 8> classes;
  std::deque<TableRow> changed;
  int illegal = 0;
  for (const TableRow& row : table.rows) {
    const bool same_kernel = row.kernel_digest == kernel;
    if (!same_kernel && row.cost_digest != cost) continue;
    const TableRow* candidate = &row;
    if (const bool early = wants_early_state(row, mode, arch); early != row.plan.early_state) {
      changed.push_back(row);
      changed.back().plan.early_state = early;
      candidate = &changed.back();
    }
    if (!plan_problems(candidate->plan, description, arch).empty()) {
      ++illegal;
      continue;
    }
    classes[(row.device != device_key) * 4 + !same_kernel * 2 + (row.pdl != mode)].push_back(candidate);
  }
  const auto found = std::find_if(classes.begin(), classes.end(), [](const Rows& rows) { return !rows.empty(); });

  Choice choice;
  if (found == classes.end()) {
    choice = {default_plan(description, arch, total_heads), Why::fallback,
              fmt::format("no row of this kernel ({}) or of one of its cost ({})", kernel, cost), 0, 0};
    choice.plan.early_state = mode == PdlMode::chain && arch.has_pdl();
  } else {
    const auto distance = found - classes.begin();
    const bool other_device = distance & 4, other_kernel = distance & 2, other_mode = distance & 1;
    Rows& rows = *found;
    // The order of the table's rows must not matter: every rank has to come to the same plan.
    std::sort(rows.begin(), rows.end(), [](const TableRow* a, const TableRow* b) {
      return std::tie(a->total_heads, a->device, a->kernel_digest) <
             std::tie(b->total_heads, b->device, b->kernel_digest);
    });
    rows.erase(std::unique(rows.begin(), rows.end(),
                           [](const TableRow* a, const TableRow* b) { return a->total_heads == b->total_heads; }),
               rows.end());
    const TableRow& near = nearest(rows, total_heads);
    if (other_device) {
      choice = {
          near.plan, Why::other_device,
          fmt::format("no row of this kernel on {}; the plan is that of {} heads on {}, for {} heads here",
                      device_key.empty() ? "this device" : device_key, near.total_heads, near.device, total_heads),
          0, 0};
    } else {
      choice = from_rows(rows, total_heads);
      if (other_mode) choice.why = Why::nearest;
      if (other_kernel) choice.why = Why::similar;
    }
    if (other_kernel) choice.reason += fmt::format("; measured with a kernel of the same cost, {}", near.kernel);
    if (other_mode) {
      choice.reason +=
          fmt::format("; measured with PDL mode {}, as there is no row for {}", name(near.pdl), name(mode));
    }
  }
  if (illegal > 0) {
    choice.reason += fmt::format("; passed over {} with a plan that is not legal on {}",
                                 illegal == 1 ? "a row" : fmt::format("{} rows", illegal), arch.text());
  }
  return choice;
}

}  // namespace ssmjit
