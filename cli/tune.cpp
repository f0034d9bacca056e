#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>

#include <fmt/format.h>

#include "cli/verb.h"
#include "codegen/fail.h"

namespace ssmjit::cli {
namespace {

struct Options {
  SpecOption spec;
  std::string batches = "1,2,4,8,16,32,64,128,256,512,1024";
  std::string pdl = "off";
  std::string accepted;
  std::string strategy = name(Search::halving);
  bool exhaustive = false;
  int rounds = 30;
  std::string journal;
  std::string out;
  double budget_s = 0;
  std::size_t sample = 0;
  std::uint64_t seed = 1;
  int device = 0;
  bool json = false;
};

// The lines that a journal holds; a line that was torn at the end of the file is cut off, so that appending is safe.
std::vector<Measurement> open_journal(const std::string& path, std::ofstream& append) {
  std::vector<Measurement> known;
  if (std::filesystem::exists(path)) {
    const std::string text = read_text(path);
    int skipped = 0;
    known = parse_journal(text, &skipped);
    if (skipped > 0) say(fmt::format("warning: {}: {} lines could not be read and were passed over", path, skipped));
    const std::size_t whole = text.rfind('\n') == std::string::npos ? 0 : text.rfind('\n') + 1;
    if (whole != text.size()) std::filesystem::resize_file(path, whole);
  } else if (std::filesystem::path(path).has_parent_path()) {
    std::error_code error;
    std::filesystem::create_directories(std::filesystem::path(path).parent_path(), error);
  }
  append.open(path, std::ios::app | std::ios::binary);
  if (!append) fail(ErrorKind::invalid, "--journal: {} can't be written", path);
  return known;
}

// "few bytes in flight 512, spills 36": of lines that have no time.
std::string counted(const std::map<std::string, int>& left_out) {
  std::string text;
  for (const auto& [reason, count] : left_out) text += fmt::format("{}{} {}", text.empty() ? "" : ", ", reason, count);
  return text;
}

int run(const Options& o) {
  const Search search = parse_search(o.strategy);
  const Acceptance accepted = o.accepted.empty() ? Acceptance{} : Acceptance::parse(o.accepted);
  const DeviceFacts gpu = device(o.device);
  const std::vector<int> batches = parse_batches(o.batches);
  const std::vector<SpecOption::Kernel> kernels = o.spec.kernels();
  for (const SpecOption::Kernel& kernel : kernels) {
    const Description& d = kernel.description;
    if (d.op() == Op::ring && !accepted.chance.empty()) steps_per_flush(d.ring_window(), d.token_count, accepted);
  }
  std::string out = o.out;
  if (out.empty()) {
    const std::string folder = user_table_dir();
    if (folder.empty()) fail(ErrorKind::invalid, "tune: no folder for tables (HOME is unset); name a file with -o");
    std::string model = kernels.front().label.substr(0, kernels.front().label.find(':'));
    out = fmt::format("{}/{}/{}.json", folder, gpu.key, std::filesystem::path(model).stem().string());
  }
  const std::string journal =
      !o.journal.empty() ? o.journal : std::filesystem::path(out).replace_extension(".jsonl").string();
  std::ofstream append;
  std::vector<Measurement> all = open_journal(journal, append);
  if (!all.empty()) say(fmt::format("{}: {} measurements are there already", journal, all.size()));

  int measured = 0, failed = 0;
  std::map<std::string, int> left_out;  // by reason
  for (const SpecOption::Kernel& kernel : kernels) {
    TuneOptions options;
    options.device = o.device;
    options.batches = batches;
    options.modes.clear();
    for (const std::string& mode : split(o.pdl, ',')) options.modes.push_back(parse_pdl_mode(mode));
    options.accepted = accepted;
    options.search = search;
    options.rounds = o.exhaustive ? o.rounds : 0;
    options.seed = o.seed;
    options.budget_s = o.budget_s;
    options.known = all;
    options.plans = sample_plans(plan_space(kernel.description, gpu.arch()), o.sample, o.seed);
    options.progress = progress_line();
    options.on_measurement = [&](const Measurement& m) {
      append << m.json() << '\n' << std::flush;
      if (!append) fail(ErrorKind::machine, "--journal: {} can't be written any more (is the disk full?)", journal);
      if (m.outcome == Outcome::pruned)
        ++left_out[m.reason.substr(0, m.reason.find(':'))];
      else if (m.phase != "verify" || m.outcome != Outcome::ok)
        ++(m.outcome == Outcome::ok ? measured : failed);
      if (o.json) print_json(Json::parse(m.json()));
    };
    const std::vector<Measurement> fresh = sweep(kernel.description, options);
    all.insert(all.end(), fresh.begin(), fresh.end());
  }
  const Table table = fit_table(all);
  write_text(out, table.json());
  if (o.json) {
    print_json(Json{{"measured", measured},
                    {"failed", failed},
                    {"pruned", left_out},
                    {"rows", table.rows.size()},
                    {"table", out},
                    {"journal", journal}});
  } else {
    for (const TableRow& row : table.rows)
      print(fmt::format("{} {} {:6} heads  {:8.2f} us  share {:.3f}  {}", row.kernel_digest, name(row.pdl),
                        row.total_heads, row.us, row.us > 0 ? row.floor_us / row.us : 0, row.plan.text()));
    if (!left_out.empty()) print("pruned: " + counted(left_out));
    print(fmt::format("measured {}, failed {}; {} rows in {}, every measurement in {}", measured, failed,
                      table.rows.size(), out, journal));
  }
  return table.rows.empty() || (measured == 0 && failed > 0) ? kFellShort : kOk;
}

}  // namespace

Verb tune_verb(CLI::App& root) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("tune", "verifies and times every plan on the GPU at hand and writes a table");
  o->spec.add(*app, true);
  app->add_option("--batches", o->batches, "batch sizes");
  app->add_option("--pdl", o->pdl, "off, chain, or both: off,chain");
  app->add_option("--accepted", o->accepted,
                  "of a ring: tokens that a step keeps, 3 or 1:0.2,2:0.3,3:0.5 by chance; without it (tokens + 1) / 2");
  app->add_option("--strategy", o->strategy, "which plans are timed at which batch: exhaustive, halving or model");
  CLI::Option* exhaustive = app->add_flag("--exhaustive", o->exhaustive,
                                          "every plan at every batch, none pruned or dropped; for proofs of regret");
  app->add_option("--rounds", o->rounds, "timed replays of each plan with --exhaustive, at least")
      ->check(CLI::Range(1, 10000))
      ->needs(exhaustive);
  app->add_option("--journal", o->journal, "every measurement, a line each; a run goes on where it stopped");
  app->add_option("--budget", o->budget_s, "seconds after which no new cell is started");
  app->add_option("--sample", o->sample, "that many of the legal plans, by --seed");
  app->add_option("--seed", o->seed, "of the inputs and the sample");
  app->add_option("--device", o->device, "GPU ordinal");
  app->add_option("-o,--output", o->out, "the table; the user's folder without it");
  app->add_flag("--json", o->json, "one JSON object a line");
  return {app, [o] { return run(*o); }};
}

}  // namespace ssmjit::cli
