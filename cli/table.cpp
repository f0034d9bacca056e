#include <memory>

#include <fmt/format.h>

#include "cli/verb.h"

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
  bool json = false;
};

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
      if (r.op == Op::ring) {
        const auto phase = [](const PhaseTime& time) { return Json{{"us", time.us}, {"floor_us", time.floor_us}}; };
        line["steps_per_flush"] = r.steps_per_flush;
        line[name(Phase::no_flush)] = phase(r.no_flush);
        line[name(Phase::flush)] = phase(r.flush);
      }
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
        r.op == Op::ring ? fmt::format("  no_flush {:9.2f}  flush {:9.2f}", r.no_flush.us, r.flush.us) : "";
    print(fmt::format("  {:6} heads  {:9.2f} us  floor {:9.2f}  share {:.3f}{}  {}", r.total_heads, r.us, r.floor_us,
                      r.us > 0 ? r.floor_us / r.us : 0, phases, r.plan.text()));
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
  for (const SpecOption::Kernel& kernel : o.spec.kernels()) {
    for (int batch : parse_batches(o.batches)) {
      const Choice c = lookup(table, kernel.description, o.device, arch, batch, mode);
      if (o.json)
        print_json(Json{{"kernel", kernel.label},
                        {"batch", batch},
                        {"total_heads", std::int64_t{batch} * kernel.description.nheads},
                        {"plan", Json::parse(c.plan.json())},
                        {"why", name(c.why)},
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
  std::string text;
  for (const std::string& file : o.files) {
    text += read_text(file);
    if (!text.empty() && text.back() != '\n') text += '\n';
  }
  int skipped = 0;
  const std::vector<Measurement> measurements = parse_journal(text, &skipped);
  if (skipped > 0) say(fmt::format("warning: {} lines could not be read and were passed over", skipped));
  const Table table = fit_table(measurements);
  write_text(o.out, table.json());
  say(fmt::format("{}: {} rows from {} measurements", o.out, table.rows.size(), measurements.size()));
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
  CLI::App* fit = app->add_subcommand("fit", "a table from journals");
  fit->add_option("JOURNAL", o->files, "journal files")->required();
  fit->add_option("-o,--output", o->out, "table to write")->required();
  CLI::App* merge = app->add_subcommand("merge", "one table from several; the later file wins");
  merge->add_option("TABLE", o->files, "table files")->required();
  merge->add_option("-o,--output", o->out, "table to write")->required();
  return {app, [=] {
            if (show->parsed()) return run_show(*o);
            if (look->parsed()) return run_lookup(*o);
            return fit->parsed() ? run_fit(*o) : run_merge(*o);
          }};
}

}  // namespace ssmjit::cli
