#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/verb.h"
#include "codegen/fail.h"
#include "heuristics/row_lookup.h"

namespace ssmjit::cli {
namespace {

struct Options {
  SpecOption spec;
  std::vector<std::string> files;
  std::string device = "h200";
  std::string batches = "1,8,64,256";
  std::string pdl = "off";
  std::string table;
  std::string out;
  std::vector<std::string> journals;
  std::string format;
  std::string accepted;
  std::string predicted_batches = "1,2,4,8,16,32,64,128,256,512,1024";
  double max_regret = -1;  // not given
  bool json = false;
};

std::vector<Measurement> read_journals(const std::vector<std::string>& files) {
  std::string text;
  for (const std::string& file : files) {
    text += read_text(file);
    if (!text.empty() && text.back() != '\n') text += '\n';
  }
  int skipped = 0;
  std::vector<Measurement> measurements = parse_journal(text, &skipped);
  if (skipped > 0) say(fmt::format("warning: {} lines could not be read and were passed over", skipped));
  return measurements;
}

void show(const Table& table, bool json) {
  if (json) {
    for (const TableRow& r : table.rows) {
      Json line{{"op", name(r.op)},
                {"device", r.device},
                {"kernel_digest", r.kernel_digest},
                {"kernel", r.kernel},
                {"pdl", name(r.pdl)},
                {"total_heads", r.total_heads},
                {"plan", Json::parse(r.plan.json())},
                {"us", r.us},
                {"floor_us", r.floor_us}};
      if (r.has_ring()) {
        const auto phase = [](const PhaseTime& time) { return Json{{"us", time.us}, {"floor_us", time.floor_us}}; };
        line["steps_per_flush"] = r.steps_per_flush;
        line[name(Phase::no_flush)] = phase(r.no_flush);
        line[name(Phase::flush)] = phase(r.flush);
      }
      if (r.fits_heads > 0) line["fits_heads"] = r.fits_heads;
      if (r.between) line["between"] = Json::parse(r.between->json());
      if (r.predicted) line["predicted"] = true;
      print_json(line);
    }
    return;
  }
  std::string last;
  for (const TableRow& r : table.rows) {
    const std::string group = fmt::format("{} {} {} ({})", r.device, r.kernel_digest, name(r.pdl), r.kernel);
    if (group != last) print(group);
    last = group;
    const std::string phases =
        r.has_ring() ? fmt::format("  no_flush {:9.2f}  flush {:9.2f}", r.no_flush.us, r.flush.us) : "";
    const std::string floor =
        r.predicted ? "predicted"
                    : fmt::format("floor {:9.2f}  share {:.3f}", r.floor_us, r.us > 0 ? r.floor_us / r.us : 0);
    print(fmt::format("  {:6} {}  {:9.2f} us  {}{}  {}", r.total_heads, work_unit(r.op), r.us, floor, phases,
                      r.plan.text()));
    const TableRow* const next = &r == &table.rows.back() ? nullptr : &r + 1;
    const bool is_below = next != nullptr && next->device == r.device && next->kernel_digest == r.kernel_digest &&
                          next->pdl == r.pdl && next->total_heads > r.fits_heads;
    if (is_below && r.fits_heads > r.total_heads)
      print(fmt::format("         above: the same up to {} heads, where its clusters fit", r.fits_heads));
    if (r.between) print(fmt::format("         above: {}", r.between->text()));
  }
}

int run_show(const Options& o) {
  Table table;
  for (const std::string& file : o.files) table.merge(Table::from_json(read_text(file)));
  if (o.files.empty()) table = load_tables();
  show(table, o.json);
  return table.rows.empty() ? kFellShort : kOk;
}

int run_lookup(const Options& o) {
  const Table table = o.table.empty() ? load_tables() : Table::from_json(read_text(o.table));
  const Arch arch = arch_of_device_key(o.device);
  const PdlMode mode = parse_pdl_mode(o.pdl);
  std::string driver;  // of such a device, where there is one
  for (const DeviceFacts& here : devices())
    if (here.key == o.device) driver = here.driver;
  for (const SpecOption::Kernel& kernel : o.spec.kernels()) {
    for (int batch : parse_batches(o.batches)) {
      Choice c = lookup(table, kernel.description, o.device, arch, batch, mode);
      const bool changed = is_of_another_text(table, kernel.description, o.device, arch, c.plan);
      if (changed) c.reason += "; measured with an older text of the kernel";
      c.reason += under_another_driver(table, kernel.description, o.device, c.plan, driver);
      if (o.json)
        print_json(Json{{"kernel", kernel.label},
                        {"batch", batch},
                        {"total_heads", work_items(kernel.description, batch)},
                        {"plan", Json::parse(c.plan.json())},
                        {"why", name(c.why)},
                        {"predicted", c.why == Why::predicted},
                        {"older_text", changed},
                        {"reason", c.reason},
                        {"expected_us", c.expected_us},
                        {"floor_us", c.floor_us}});
      else
        print(fmt::format("{} batch {:4}  {}  {}  {}", kernel.label, batch,
                          c.expected_us > 0 ? fmt::format("{:8.2f} us", c.expected_us) : "   not measured",
                          c.plan.text(), c.reason));
    }
  }
  return kOk;
}

int run_fit(const Options& o) {
  const std::vector<Measurement> measurements = read_journals(o.files);
  FitOptions options;
  if (o.max_regret >= 0) options.max_regret = o.max_regret;
  const Table table = fit_table(measurements, options);
  if (table.rows.empty()) {
    say(fmt::format("no row from {} measurements: {} is as it was; a row wants a plan that was timed in full",
                    measurements.size(), o.out));
    return kFellShort;
  }
  write_text(o.out, table.json());
  say(fmt::format("{}: {} rows from {} measurements, {} plans within {:.2f}% of the best of each size", o.out,
                  table.rows.size(), measurements.size(), table.plan_count(), options.max_regret * 100));
  return kOk;
}

Json answer_json(const CellCheck::Answer& a) {
  Json json{{"plan", Json::parse(a.choice.plan.json())}, {"why", name(a.choice.why)}};
  if (a.us > 0) json["us"] = a.us, json["regret"] = a.regret;
  if (!a.remark.empty()) json["remark"] = a.remark;
  return json;
}

std::string answer_text(const CellCheck::Answer& a) {
  const std::string remark = a.remark.empty() ? "" : fmt::format(", {}", a.remark);
  if (a.us <= 0) return fmt::format("{:>7}  ({}{})", "?", name(a.choice.why), remark);
  return fmt::format("{:6.2f}%  ({}{})", a.regret * 100, name(a.choice.why), remark);
}

int run_check(const Options& o) {
  std::vector<std::string> journals = o.journals;
  if (journals.empty()) {
    // Where tune puts it.
    const std::string beside = std::filesystem::path(o.table).replace_extension(".jsonl").string();
    if (!std::filesystem::exists(beside))
      fail(ErrorKind::invalid, "table check: {} is not there; name the journals to check against with --journal",
           beside);
    say(fmt::format("checking against {}", beside));
    journals = {beside};
  }
  const Table table = Table::from_json(read_text(o.table));
  const TableCheck check = check_table(table, read_journals(journals));

  std::map<std::string, int> whys;
  std::string last;
  for (const CellCheck& c : check.cells) {
    if (c.answer) ++whys[name(c.answer->choice.why)];
    if (o.json) {
      Json line{{"device", c.device},  {"kernel_digest", c.kernel_digest}, {"kernel", c.kernel},
                {"pdl", name(c.pdl)},  {"total_heads", c.total_heads},     {"best_plan", Json::parse(c.best.json())},
                {"best_us", c.best_us}};
      line["answer"] = c.answer ? answer_json(*c.answer) : Json();
      line["left_out"] = c.left_out ? answer_json(*c.left_out) : Json();
      print_json(line);
      continue;
    }
    const std::string group = fmt::format("{} {} {} ({})", c.device, c.kernel_digest, name(c.pdl), c.kernel);
    if (group != last) print(group);
    last = group;
    print(fmt::format("  {:6} heads  best {:9.2f} us  regret {}{}", c.total_heads, c.best_us,
                      c.answer ? answer_text(*c.answer) : "      ?  (no row answers)",
                      c.left_out ? "  without this row " + answer_text(*c.left_out) : ""));
  }
  // A bound holds only where every size has a regret.
  const bool whole = check.compared > 0 && check.not_timed == 0 && check.unanswered == 0;
  const bool within = o.max_regret < 0 || (whole && check.worst_regret <= o.max_regret);
  if (o.json) {
    print_json(Json{{"cells", check.cells.size()},
                    {"compared", check.compared},
                    {"not_timed", check.not_timed},
                    {"unanswered", check.unanswered},
                    {"compared_loo", check.compared_loo},
                    {"not_timed_loo", check.not_timed_loo},
                    {"plans", table.plan_count()},
                    {"median_regret", check.median_regret},
                    {"worst_regret", check.worst_regret},
                    {"median_loo_regret", check.median_loo_regret},
                    {"worst_loo_regret", check.worst_loo_regret}});
  } else {
    std::string answers;
    for (const auto& [why, count] : whys) answers += fmt::format("{}{} {}", answers.empty() ? "" : ", ", count, why);
    print(fmt::format("{} sizes measured; answers: {}; {} rows of {} plans", check.cells.size(),
                      answers.empty() ? "none" : answers, table.rows.size(), table.plan_count()));
    if (whys.contains(name(Why::other_device))) {
      std::set<std::string> of, on;
      for (const TableRow& row : table.rows) of.insert(row.device);
      for (const CellCheck& c : check.cells)
        if (c.answer && c.answer->choice.why == Why::other_device) on.insert(c.device);
      for (const std::string& device : on) of.erase(device);
      print(fmt::format("rows of {} answer on {}", fmt::join(of, ", "), fmt::join(on, ", ")));
    }
    print(fmt::format("regret of {}: median {:.2f}%, worst {:.2f}%", check.compared, check.median_regret * 100,
                      check.worst_regret * 100));
    if (check.compared_loo > 0)
      print(fmt::format("each size's row left out, regret of {}: median {:.2f}%, worst {:.2f}%", check.compared_loo,
                        check.median_loo_regret * 100, check.worst_loo_regret * 100));
    if (check.not_timed + check.not_timed_loo + check.unanswered > 0)
      print(fmt::format(
          "without a regret: {} whose plan has no time there ({} more with the row left out), {} that no row "
          "answers",
          check.not_timed, check.not_timed_loo, check.unanswered));
  }
  if (!within)
    say(fmt::format("fell short: {}", whole ? fmt::format("the worst regret is {:.2f}%, the bound {:.2f}%",
                                                          check.worst_regret * 100, o.max_regret * 100)
                                            : "not every size that was measured has a regret"));
  return check.compared == 0 || !within ? kFellShort : kOk;
}

int run_emit(const Options& o) {
  const TableFormat format = parse_table_format(o.format);
  Table table;
  for (const std::string& file : o.files) table.merge(Table::from_json(read_text(file)));
  write_text(o.out, emit_table(table, format));
  say(fmt::format("{}: {} rows, {} plans", o.out, table.rows.size(), table.plan_count()));
  return table.rows.empty() ? kFellShort : kOk;
}

int run_predict(const Options& o) {
  std::vector<PdlMode> modes;
  for (const std::string& mode : split(o.pdl, ',')) modes.push_back(parse_pdl_mode(mode));
  const Acceptance accepted = o.accepted.empty() ? Acceptance{} : Acceptance::parse(o.accepted);
  Table table;
  for (const SpecOption::Kernel& kernel : o.spec.kernels())
    table.merge(predict_table(kernel.description, o.device, parse_batches(o.predicted_batches), modes, accepted));
  if (o.out.empty()) {
    show(table, o.json);
  } else {
    write_text(o.out, table.json());
    say(fmt::format("{}: {} rows, {} plans, all predicted: `ssmjit tune` on the GPU itself measures", o.out,
                    table.rows.size(), table.plan_count()));
  }
  return table.rows.empty() ? kFellShort : kOk;
}

int run_merge(const Options& o) {
  Table table;
  for (const std::string& file : o.files) table.merge(Table::from_json(read_text(file)));
  table.sort();
  write_text(o.out, table.json());
  say(fmt::format("{}: {} rows", o.out, table.rows.size()));
  return table.rows.empty() ? kFellShort : kOk;
}

}  // namespace

Verb table_verb(CLI::App& root) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("table", "tables and journals; needs no GPU");
  app->require_subcommand(1);
  CLI::App* show = app->add_subcommand("show", "the rows of tables; of those in force without a file");
  show->add_option("TABLE", o->files, "table files");
  show->add_flag("--json", o->json, "one JSON object a line");
  CLI::App* look = app->add_subcommand("lookup", "which plan at which batch, why, and how long a step takes");
  o->spec.add(*look);
  look->add_option("--device", o->device, "device key, as tables name it");
  look->add_option("--batches", o->batches, "batch sizes");
  look->add_option("--pdl", o->pdl, "off or chain");
  look->add_option("--table", o->table, "this table only");
  look->add_flag("--json", o->json, "one JSON object a line");
  CLI::App* fit = app->add_subcommand("fit", "a table from journals, with few plans");
  fit->add_option("JOURNAL", o->files, "journal files")->required();
  fit->add_option("--max-regret", o->max_regret,
                  "what a row's plan may cost more than the best of its size, as a fraction; 0.001 without it")
      ->check(CLI::NonNegativeNumber);
  fit->add_option("-o,--output", o->out, "table to write")->required();
  CLI::App* merge = app->add_subcommand("merge", "one table from several; the later file wins");
  merge->add_option("TABLE", o->files, "table files")->required();
  merge->add_option("-o,--output", o->out, "table to write")->required();
  CLI::App* check = app->add_subcommand("check", "what a table's answers cost against the best that journals hold");
  check->add_option("TABLE", o->table, "table file")->required();
  check->add_option("--journal", o->journals, "journals to check against; without it the one beside the table");
  check->add_option("--max-regret", o->max_regret, "exit 1 if a size costs more than the best by this fraction")
      ->check(CLI::NonNegativeNumber);
  check->add_flag("--json", o->json, "one JSON object a line, the last with the regrets of all");
  CLI::App* emit = app->add_subcommand("emit", "a table as a file that an engine builds in");
  emit->add_option("TABLE", o->files, "table files")->required();
  emit->add_option("--as", o->format, "json, cpp (a header with a constexpr lookup) or python (a dict and a lookup)")
      ->required();
  emit->add_option("-o,--output", o->out, "file to write")->required();
  CLI::App* predict =
      app->add_subcommand("predict", "rows for a GPU that is not here, from a model of it; not measured");
  o->spec.add(*predict);
  predict->add_option("--device", o->device, "device key, as tables name it")->required();
  predict->add_option("--batches", o->predicted_batches, "batch sizes");
  predict->add_option("--pdl", o->pdl, "off, chain, or both: off,chain");
  predict->add_option("--accepted", o->accepted, "of a ring: tokens that a step keeps, as tune takes it");
  predict->add_option("-o,--output", o->out, "table to write; without it the rows are shown");
  predict->add_flag("--json", o->json, "one JSON object a line");
  return {app, [=] {
            if (show->parsed()) return run_show(*o);
            if (look->parsed()) return run_lookup(*o);
            if (check->parsed()) return run_check(*o);
            if (emit->parsed()) return run_emit(*o);
            if (predict->parsed()) return run_predict(*o);
            return fit->parsed() ? run_fit(*o) : run_merge(*o);
          }};
}

}  // namespace ssmjit::cli
