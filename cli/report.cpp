#include <memory>

#include <fmt/format.h>

#include <ssmjit/report.h>

#include "cli/verb.h"
#include "codegen/fail.h"

namespace ssmjit::cli {
namespace {

struct Options {
  std::vector<std::string> journals;
  std::vector<std::string> speculative;
  std::string table;
  std::string out;
  bool json = false;
};

// Of a file the lines that are whole.
std::string whole_lines(const std::string& file) {
  std::string lines = read_text(file);
  if (!lines.empty() && lines.back() != '\n') lines.resize(lines.rfind('\n') + 1);  // npos + 1 is 0: all of it torn
  return lines;
}

void say_skipped(const std::string& file, int skipped) {
  if (skipped > 0) say(fmt::format("warning: {}: {} lines could not be read and were passed over", file, skipped));
}

int run(const Options& o) {
  if (o.journals.empty() && o.speculative.empty())
    fail(ErrorKind::invalid, "JOURNAL: got none; wants journals, --speculative FILE, or both");
  ReportOptions report;
  std::string text;
  for (const std::string& file : o.journals) {
    const std::string lines = whole_lines(file);
    int skipped = 0;
    parse_journal(lines, &skipped);
    say_skipped(file, skipped);
    report.journals.push_back({file, skipped});
    text += lines;
  }
  for (const std::string& file : o.speculative) {
    int skipped = 0;
    const std::vector<SpeculativeStep> steps = parse_speculative(whole_lines(file), &skipped);
    say_skipped(file, skipped);
    report.speculative_files.push_back({file, skipped});
    report.speculative.insert(report.speculative.end(), steps.begin(), steps.end());
  }
  if (!o.table.empty()) {
    report.table = Table::from_json(read_text(o.table));
    report.table_name = o.table;
    if (report.table.rows.empty()) fail(ErrorKind::invalid, "--table: {} has no rows; leave it out", o.table);
  }
  const std::vector<Measurement> measurements = parse_journal(text);
  const std::string page = report_html(measurements, report);
  write_text(o.out, page);
  if (o.json)
    print_json(Json{
        {"report", o.out}, {"measurements", measurements.size() + report.speculative.size()}, {"bytes", page.size()}});
  else
    print(fmt::format("{}: {} measurements, {:.1f} MB; open it in a browser", o.out,
                      measurements.size() + report.speculative.size(), static_cast<double>(page.size()) / 1e6));
  return kOk;
}

}  // namespace

Verb report_verb(CLI::App& root) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("report", "one HTML page of what journals hold; needs no GPU and no network");
  app->add_option("JOURNAL", o->journals, "journal files, as tune writes them");
  app->add_option("--speculative", o->speculative, "files of bench --speculative --json, with journals or alone");
  app->add_option("--table", o->table, "a table to hold against the best plans; without it that of these journals");
  app->add_option("-o,--output", o->out, "the HTML file to write")->required();
  app->add_flag("--json", o->json, "one JSON object a line");
  return {app, [o] { return run(*o); }};
}

}  // namespace ssmjit::cli
