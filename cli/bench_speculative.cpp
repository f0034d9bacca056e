#include "cli/bench_speculative.h"

#include <algorithm>
#include <charconv>
#include <iterator>

#include <fmt/format.h>

#include <ssmjit/speculative.h>

#include "codegen/fail.h"

namespace ssmjit::cli {
namespace {

std::vector<DraftForm> parse_forms(std::string_view text) {
  std::vector<DraftForm> forms;
  for (const std::string& item : split(text, ',')) {
    const auto* form =
        std::find_if(std::begin(kDraftForms), std::end(kDraftForms), [&](DraftForm f) { return item == name(f); });
    if (form == std::end(kDraftForms))
      fail(ErrorKind::invalid, "--forms: got {}; wants snapshots, slots, replay, ring", in_quotes(item));
    forms.push_back(*form);
  }
  return forms;
}

std::vector<double> parse_chances(std::string_view text) {
  std::vector<double> chances;
  for (const std::string& item : split(text, ',')) {
    double chance = 0;
    const auto [end, error] = std::from_chars(item.data(), item.data() + item.size(), chance);
    if (error != std::errc() || end != item.data() + item.size())
      fail(ErrorKind::invalid, "--acceptance: got {}; wants chances of a draft from 0 to 1 with commas between",
           in_quotes(item));
    chances.push_back(chance);
  }
  return chances;
}

// "0.8 (3.36 of 6)"
std::string acceptance_text(const SpeculativeStep& s) {
  const std::string given = s.draft_chance >= 0 ? fmt::format("{:g}", s.draft_chance) : s.accepted;
  return fmt::format("{} ({:.2f} of {})", given, s.kept, s.tokens);
}

void print_head(const SpeculativeBench& bench, const SpeculativeStep& s) {
  print(fmt::format("{}, driver CUDA {}, NVRTC {}", s.device_name, s.driver, s.nvrtc));
  print(fmt::format("{}: steps that verify drafts, PDL {}; us: of a layer, cold, medians, kernel and copies together",
                    bench.label, bench.pdl));
  print(
      "acceptance: the chance of a draft, and the tokens that a request keeps; floor: passes over the same bytes in "
      "the same run; us/token: us over the tokens kept");
  print("KiB: of a request in a layer, its state and what the form keeps beside it; MB: moved by a layer's step");
  print(
      "snapshots: the accepted states of all layers are copied in one launch at the end of the step; ring: the mean "
      "of its phases at that acceptance");
  print(
      "not in us: the host's bookkeeping (slots, cursors, counts: index work, once a step for all layers), windows "
      "of a convolution");
  print(fmt::format("{:>5}  {:>2}  {:<16} {:<9} {:>9} {:>9} {:>8} {:>9}  {:<5} {:>9} {:>10} {:>9}  plan", "batch", "T",
                    "acceptance", "form", "us", "kernel", "copies", "floor", "share", "us/token", "KiB", "MB"));
}

void print_row(const SpeculativeStep& s) {
  const std::string head =
      fmt::format("{:>5}  {:>2}  {:<16} {:<9}", s.batch, s.tokens, acceptance_text(s), name(s.form));
  if (s.outcome != Outcome::ok) {
    print(fmt::format("{}  {}: {}", head, s.outcome == Outcome::pruned ? "left out" : name(s.outcome), s.reason));
    return;
  }
  print(fmt::format("{} {:>9.2f} {:>9.2f} {:>8.2f} {:>9.2f}  {:.3f} {:>9.2f} {:>10.1f} {:>9.2f}  {} ({})", head, s.us,
                    s.kernel_us, s.copies_us, s.floor_us, s.share, s.us_per_token,
                    static_cast<double>(s.slot_bytes) / 1024, static_cast<double>(s.moved_bytes + s.copied_bytes) / 1e6,
                    s.plan.text(), name(s.why)));
}

// "fastest, acceptance 0.8 (3.36 of 6), PDL off: batch 1 ring 4.02 us, 8 ring 4.61 us", a line for each acceptance.
void print_fastest(const std::vector<SpeculativeStep>& all) {
  std::vector<std::string> heads, lines;
  for (const SpeculativeStep& s : all) {
    if (fastest_form(all, s) != &s) continue;
    const std::string head = fmt::format("fastest, acceptance {}, PDL {}: batch ", acceptance_text(s), name(s.pdl));
    const std::string batch = fmt::format("{} {} {:.2f} us", s.batch, name(s.form), s.us);
    const auto at = std::find(heads.begin(), heads.end(), head);
    if (at != heads.end()) {
      lines[static_cast<std::size_t>(at - heads.begin())] += ", " + batch;
      continue;
    }
    heads.push_back(head);
    lines.push_back(head + batch);
  }
  for (const std::string& line : lines) print(line);
}

}  // namespace

int bench_speculative(const SpeculativeBench& bench) {
  SpeculativeOptions options;
  options.device = bench.device;
  options.batches = parse_batches(bench.batches);
  options.tokens = parse_batches(bench.tokens, "--tokens");
  if (!bench.forms.empty()) options.forms = parse_forms(bench.forms);
  if (!bench.acceptance.empty()) options.draft_chances = parse_chances(bench.acceptance);
  if (!bench.accepted.empty()) options.accepted = Acceptance::parse(bench.accepted);
  options.ring_window = bench.window;
  options.table = load_tables();
  bool headed = bench.json;
  options.on_step = [&](const SpeculativeStep& s) {
    if (!headed) print_head(bench, s);
    headed = true;
    if (bench.json)
      print_json(Json::parse(s.json()));
    else
      print_row(s);
    if (s.outcome == Outcome::ok && s.share > 1.01)
      say(fmt::format("batch {}, {}: {:.2f} us is under the floor of {:.2f} us: the floor is wrong", s.batch,
                      name(s.form), s.us, s.floor_us));
  };
  std::vector<SpeculativeStep> all;
  for (const std::string& mode : split(bench.pdl, ',')) {
    options.mode = parse_pdl_mode(mode);
    for (SpeculativeStep& s : compare_speculative(bench.base, options)) all.push_back(std::move(s));
  }
  if (!bench.json) print_fastest(all);
  const auto failed = [](const SpeculativeStep& s) {
    return s.outcome == Outcome::ok ? s.share > 1.01 : s.outcome != Outcome::pruned;
  };
  const bool measured = std::any_of(all.begin(), all.end(), [](const auto& s) { return s.outcome == Outcome::ok; });
  return measured && std::none_of(all.begin(), all.end(), failed) ? kOk : kFellShort;
}

}  // namespace ssmjit::cli
