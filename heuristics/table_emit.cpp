#include <algorithm>
#include <string>

#include <fmt/format.h>

#include <ssmjit/error.h>
#include <ssmjit/table.h>

#include "codegen/fail.h"
#include "heuristics/gpus.h"

namespace ssmjit {
namespace {

// Fit for a literal of C++ and of Python: what is not plain is left out.
std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text)
    if (c >= ' ' && c <= '~' && c != '"' && c != '\\') out += c;
  return out + "\"";
}

// Whether kernels on the device may ask for the state early: of a device that is not listed, whether its rows do.
bool has_pdl(const Table& table, std::string_view device) {
  for (const GpuFacts& gpu : known_gpus())
    if (gpu.key == device) return gpu.arch.has_pdl();
  return std::any_of(table.rows.begin(), table.rows.end(),
                     [&](const TableRow& row) { return row.device == device && row.plan.early_state; });
}

// The shortest decimal that reads back as the same double, with a point.
std::string number(double value) {
  std::string text = fmt::format("{}", value);
  return text.find_first_of(".en") == std::string::npos ? text + ".0" : text;
}

constexpr const char* kCppHead =
    R"(// Which plan at which size, as `ssmjit table emit` wrote it: do not edit. C++17, nothing else needed.
//
//   constexpr ssmjit_table::Choice c = ssmjit_table::lookup("h200", "127e4317074641da", ssmjit_table::Pdl::off, 128);
//   static_assert(c.why == ssmjit_table::Why::exact);
//
// total_heads is batch x nheads of this rank; of a convolution batch x channels / 64, rounded up, of a norm batch x
// tokens x groups. The answer is that of ssmjit::lookup() from rows of the same GPU; where there is none, `none`:
// ssmjit::lookup() then knows the rows of other GPUs and the default plan.
#pragma once

#include <cstdint>
#include <string_view>

namespace ssmjit_table {

enum class Pdl { off, chain };
// similar: measured with a kernel of the same cost. predicted: not measured, but computed from facts of the GPU.
enum class Why { exact, interpolated, nearest, similar, predicted, none };
enum class StatePath { direct, cp_async, bulk };
enum class RingRows { all, live };
enum class PlanForm { fused, chain, chain_pdl };

struct Plan {
  int block_m = 0;
  int warps = 0;
  int lanes_per_row = 0;
  int heads_per_block = 0;
  int stages = 0;
  StatePath state_path = StatePath::direct;
  bool streaming = false;
  bool early_state = false;
  int min_blocks_per_sm = 0;
  RingRows ring_rows = RingRows::all;
  int cluster = 1;
  PlanForm form = PlanForm::fused;
  const char* conv1d = "";  // of a chain: the plans of the parts beside its update, as ssmjit::Plan::text() has them
  const char* norm = "";
  int precompute_warps = 0;  // of a replay of two launches
  int precompute_heads = 0;
};

struct Row {
  std::string_view device, kernel_digest, cost_digest;
  Pdl pdl = Pdl::off;
  std::int64_t total_heads = 0;
  Plan plan;
  Plan between;         // of sizes between this one and the next row's; of warps 0: the plan of the nearer by ratio
  std::int64_t fits_heads = 0;  // up to there, where the next row lies above, `plan` and not `between`
  double us = 0;        // a step; of a ring the mean over its phases
  double floor_us = 0;  // the memory floor of the same bytes; 0: not known
  bool predicted = false;
  bool device_has_pdl = false;
};

struct Choice {
  Plan plan;
  Why why = Why::none;
  double expected_us = 0;
  double floor_us = 0;
};

)";

constexpr const char* kCppTail = R"(
namespace detail {

// Natural logarithm of a number above 0, within a unit or two in the last place.
constexpr double ln(double x) {
  int twos = 0;
  for (; x >= 1.4142135623730951; x /= 2) ++twos;
  for (; x < 0.7071067811865476; x *= 2) --twos;
  const double t = (x - 1) / (x + 1);
  double power = t, sum = 0;
  for (int i = 1; i < 46; i += 2, power *= t * t) sum += power / i;
  return 2 * sum + twos * 0.6931471805599453;
}

constexpr double exp(double x) {
  int twos = 0;
  for (; x > 0.34657359027997264; x -= 0.6931471805599453) ++twos;
  for (; x < -0.34657359027997264; x += 0.6931471805599453) --twos;
  double term = 1, sum = 1;
  for (int i = 1; i < 20; ++i) sum += term *= x / i;
  for (; twos > 0; --twos) sum *= 2;
  for (; twos < 0; ++twos) sum /= 2;
  return sum;
}

// The straight line through two points in log-log space; 0 where one is not known.
constexpr double interpolate(double low, double high, double weight) {
  return low > 0 && high > 0 ? exp((1 - weight) * ln(low) + weight * ln(high)) : 0;
}

// n / low < high / n, exactly.
constexpr bool nearer_to_low(std::uint64_t low, std::uint64_t n, std::uint64_t high) {
  std::uint64_t words[2][2] = {};
  const std::uint64_t factors[2][2] = {{n, n}, {low, high}};
  for (int i = 0; i < 2; ++i) {
    const std::uint64_t a = factors[i][0], b = factors[i][1], mask = 0xffffffff;
    const std::uint64_t bottom = (a & mask) * (b & mask), middle = (a >> 32) * (b & mask) + (bottom >> 32);
    const std::uint64_t carry = (a & mask) * (b >> 32) + (middle & mask);
    words[i][0] = (a >> 32) * (b >> 32) + (middle >> 32) + (carry >> 32);
    words[i][1] = (carry << 32) | (bottom & mask);
  }
  return words[0][0] != words[1][0] ? words[0][0] < words[1][0] : words[0][1] < words[1][1];
}

// How far a row is from a question, 0 the nearest; 8: it does not answer.
constexpr int distance(const Row& row, std::string_view device, std::string_view kernel, std::string_view cost,
                       Pdl pdl) {
  const bool same_kernel = row.kernel_digest == kernel;
  if (row.device != device || (!same_kernel && (cost.empty() || row.cost_digest != cost))) return 8;
  return (row.predicted ? 4 : 0) + (same_kernel ? 0 : 2) + (row.pdl == pdl ? 0 : 1);
}

}  // namespace detail

// `cost_digest`: Description::cost_digest(), so that rows of a kernel of the same cost answer where there is none of
// this one; empty: they do not.
constexpr Choice lookup(std::string_view device, std::string_view kernel_digest, Pdl pdl, std::int64_t total_heads,
                        std::string_view cost_digest = {}) {
  if (total_heads < 1) total_heads = 1;
  int least = 8;
  for (int i = 0; i < kRowCount; ++i) {
    const int d = detail::distance(kRows[i], device, kernel_digest, cost_digest, pdl);
    if (d < least) least = d;
  }
  Choice choice;
  if (least == 8) return choice;
  const Row *low = nullptr, *high = nullptr;  // the nearest rows from total_heads down and up
  for (int i = 0; i < kRowCount; ++i) {
    const Row& row = kRows[i];
    if (detail::distance(row, device, kernel_digest, cost_digest, pdl) != least) continue;
    if (row.total_heads <= total_heads && (low == nullptr || row.total_heads > low->total_heads)) low = &row;
    if (row.total_heads >= total_heads && (high == nullptr || row.total_heads < high->total_heads)) high = &row;
  }
  const Row* near = low == nullptr ? high : low;
  bool between = false;
  if (low != nullptr && high != nullptr && low->total_heads != high->total_heads) {
    const bool fits = total_heads <= low->fits_heads && low->fits_heads < high->total_heads;
    near = fits || detail::nearer_to_low(static_cast<std::uint64_t>(low->total_heads),
                                         static_cast<std::uint64_t>(total_heads),
                                         static_cast<std::uint64_t>(high->total_heads))
               ? low
               : high;
    between = !fits && low->between.warps > 0;
    const double from = detail::ln(static_cast<double>(low->total_heads));
    const double to = detail::ln(static_cast<double>(high->total_heads));
    const double weight = (detail::ln(static_cast<double>(total_heads)) - from) / (to - from);
    choice.why = Why::interpolated;
    choice.expected_us = detail::interpolate(low->us, high->us, weight);
    choice.floor_us = detail::interpolate(low->floor_us, high->floor_us, weight);
  } else {
    // Above the last row a step is bound by memory: time grows with size.
    const double scale = total_heads > near->total_heads
                             ? static_cast<double>(total_heads) / static_cast<double>(near->total_heads)
                             : 1;
    choice.why = total_heads == near->total_heads ? Why::exact : Why::nearest;
    choice.expected_us = near->us * scale;
    choice.floor_us = near->floor_us * scale;
  }
  choice.plan = between ? low->between : near->plan;
  // A row of the other mode is taken in this one's kind.
  if (near->pdl != pdl && choice.plan.form == PlanForm::fused)
    choice.plan.early_state = near->device_has_pdl && pdl == Pdl::chain;
  if ((least & 1) != 0) choice.why = Why::nearest;
  if ((least & 2) != 0) choice.why = Why::similar;
  if ((least & 4) != 0) choice.why = Why::predicted;
  return choice;
}

}  // namespace ssmjit_table
)";

// Whether a plan has what plans of layers alone have, or of replays.
bool is_of_layers(const Plan& plan) { return plan.cluster != 1 || plan.form != PlanForm::fused; }
bool is_of_replays(const Plan& plan) { return plan.precompute_warps != 0; }

std::string cpp(const Table& table) {
  const auto row_text = [&](const TableRow& r) {
    const auto plan_text = [](const Plan& p) {
      std::string own_of_op =
          is_of_layers(p) || is_of_replays(p)
              ? fmt::format(", {}, PlanForm::{}, {}, {}", p.cluster, name(p.form), quoted(p.conv1d), quoted(p.norm))
              : "";
      if (is_of_replays(p)) own_of_op += fmt::format(", {}, {}", p.precompute_warps, p.precompute_heads);
      return fmt::format("{{{}, {}, {}, {}, {}, StatePath::{}, {}, {}, {}, RingRows::{}{}}}", p.block_m, p.warps,
                         p.lanes_per_row, p.heads_per_block, p.stages, name(p.state_path), p.streaming, p.early_state,
                         p.min_blocks_per_sm, name(p.ring_rows), own_of_op);
    };
    return fmt::format("    {{{}, {}, {}, Pdl::{}, {},\n     {},\n     {}, {}, {}, {}, {}, {}}},", quoted(r.device),
                       quoted(r.kernel_digest), quoted(r.cost_digest), name(r.pdl), r.total_heads, plan_text(r.plan),
                       r.between ? plan_text(*r.between) : "{}", r.fits_heads, number(r.us), number(r.floor_us),
                       r.predicted, has_pdl(table, r.device));
  };
  std::string text = kCppHead;
  // An array has one element at least.
  text += fmt::format("inline constexpr int kRowCount = {};\ninline constexpr Row kRows[] = {{\n", table.rows.size());
  std::string kernel;
  for (const TableRow& r : table.rows) {
    if (r.kernel != kernel && !r.kernel.empty()) {
      const std::string words = quoted(r.kernel);
      text += fmt::format("    // {}\n", std::string_view(words).substr(1, words.size() - 2));
    }
    kernel = r.kernel;
    text += row_text(r) + "\n";
  }
  if (table.rows.empty()) text += "    {},\n";
  return text + "};\n" + kCppTail;
}

constexpr const char* kPythonHead = R"(# Which plan at which size, as `ssmjit table emit` wrote it: do not edit.
#
#   choice = lookup("h200", "127e4317074641da", "off", 128)
#   choice["plan"], choice["why"], choice["expected_us"], choice["floor_us"]
#
# total_heads is batch x nheads of this rank; of a convolution batch x channels / 64, rounded up, of a norm batch x
# tokens x groups. The answer is that of ssmjit::lookup() from rows of the same GPU, or None where there is none.
# TABLE: (device, kernel digest, PDL mode) -> total_heads -> row.
import math

)";

constexpr const char* kPythonTail = R"(

def lookup(device, kernel_digest, pdl, total_heads, cost_digest=""):
    """`cost_digest`: so that rows of a kernel of the same cost answer where there is none of this one."""
    total_heads = max(int(total_heads), 1)
    classes = {}  # how far rows are from the question, 0 the nearest -> total_heads -> (row, its mode)
    for (row_device, row_kernel, row_pdl), sizes in TABLE.items():  # sorted: of rows of one size the first counts
        for heads, row in sizes.items():
            same_kernel = row_kernel == kernel_digest
            if row_device != device or not (same_kernel or cost_digest and row["cost_digest"] == cost_digest):
                continue
            distance = 4 * row["predicted"] + 2 * (not same_kernel) + (row_pdl != pdl)
            classes.setdefault(distance, {}).setdefault(heads, (row, row_pdl))
    if not classes:
        return None
    distance = min(classes)
    rows = classes[distance]
    low = max((heads for heads in rows if heads <= total_heads), default=None)
    high = min((heads for heads in rows if heads >= total_heads), default=None)
    choice, between = {}, None
    if low is not None and high is not None and low != high:
        # "between": the plan of sizes between this one and the next row's; None: of the nearer. "fits_heads": up to there,
        # where the next row lies above, "plan" and not "between"
        fits = total_heads <= rows[low][0]["fits_heads"] < high
        near = low if fits or total_heads * total_heads < low * high else high
        between = None if fits else rows[low][0]["between"]
        weight = math.log(total_heads / low) / math.log(high / low)
        why = "interpolated"
        for field, of in (("expected_us", "us"), ("floor_us", "floor_us")):
            a, b = rows[low][0][of], rows[high][0][of]
            choice[field] = math.exp((1 - weight) * math.log(a) + weight * math.log(b)) if a > 0 and b > 0 else 0.0
    else:
        near = high if low is None else low
        why = "exact" if near == total_heads else "nearest"
        scale = max(total_heads / near, 1)  # above the last row a step is bound by memory: time grows with size
        choice = {"expected_us": rows[near][0]["us"] * scale, "floor_us": rows[near][0]["floor_us"] * scale}
    row, row_pdl = rows[near]
    plan = dict(between or row["plan"])
    if row_pdl != pdl and plan.get("form", "fused") == "fused":  # a row of the other mode is taken in this one's kind
        plan["early_state"] = HAS_PDL[device] and pdl == "chain"
    for bit, other in ((1, "nearest"), (2, "similar"), (4, "predicted")):
        if distance & bit:
            why = other
    return {"plan": plan, "why": why, **choice}
)";

std::string python(const Table& table) {
  const auto flag = [](bool value) { return value ? "True" : "False"; };
  std::string text = kPythonHead, last, devices;
  text += "TABLE = {\n";
  std::string device;
  for (const TableRow& r : table.rows) {
    const std::string key = fmt::format("({}, {}, \"{}\")", quoted(r.device), quoted(r.kernel_digest), name(r.pdl));
    if (key != last) text += fmt::format("{}    {}: {{\n", last.empty() ? "" : "    },\n", key);
    last = key;
    if (r.device != device)
      devices += fmt::format("{}{}: {}", devices.empty() ? "" : ", ", quoted(r.device), flag(has_pdl(table, r.device)));
    device = r.device;
    const auto plan_text = [&](const Plan& p) {
      std::string own_of_op = is_of_layers(p)
                                  ? fmt::format(", \"cluster\": {}, \"form\": \"{}\", \"conv1d\": {}, \"norm\": {}",
                                                p.cluster, name(p.form), quoted(p.conv1d), quoted(p.norm))
                                  : "";
      if (is_of_replays(p))
        own_of_op +=
            fmt::format(", \"precompute_warps\": {}, \"precompute_heads\": {}", p.precompute_warps, p.precompute_heads);
      return fmt::format(
          "{{\"block_m\": {}, \"warps\": {}, \"lanes_per_row\": {}, \"heads_per_block\": {}, \"stages\": {}, "
          "\"state_path\": \"{}\", \"streaming\": {}, \"early_state\": {}, \"min_blocks_per_sm\": {}, "
          "\"ring_rows\": \"{}\"{}}}",
          p.block_m, p.warps, p.lanes_per_row, p.heads_per_block, p.stages, name(p.state_path), flag(p.streaming),
          flag(p.early_state), p.min_blocks_per_sm, name(p.ring_rows), own_of_op);
    };
    text += fmt::format(
        "        {}: {{\"plan\": {}, \"between\": {}, \"fits_heads\": {}, \"us\": {}, \"floor_us\": {}, "
        "\"cost_digest\": {}, "
        "\"predicted\": {}}},\n",
        r.total_heads, plan_text(r.plan), r.between ? plan_text(*r.between) : "None", r.fits_heads, number(r.us),
        number(r.floor_us), quoted(r.cost_digest), flag(r.predicted));
  }
  if (!last.empty()) text += "    },\n";
  return text +
         fmt::format("}}\n# Whether kernels on the GPU can ask for the state early.\nHAS_PDL = {{{}}}\n", devices) +
         kPythonTail;
}

}  // namespace

TableFormat parse_table_format(std::string_view text) {
  if (text == "json") return TableFormat::json;
  if (text == "cpp") return TableFormat::cpp;
  if (text == "python") return TableFormat::python;
  fail(ErrorKind::invalid, "table format: got {}; wants json, cpp or python", in_quotes(text));
}

std::string emit_table(const Table& table, TableFormat format) {
  Table sorted = table;
  sorted.sort();
  switch (format) {
    case TableFormat::json:
      break;
    case TableFormat::cpp:
      return cpp(sorted);
    case TableFormat::python:
      return python(sorted);
  }
  return sorted.json();
}

}  // namespace ssmjit
