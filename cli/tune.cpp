#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <future>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include <fmt/format.h>

#include "autotune/fleet/fleet.h"
#include "autotune/fleet/journal_file.h"
#include "autotune/fleet/worker_process.h"
#include "cli/live_table.h"
#include "cli/verb.h"
#include "codegen/fail.h"
#include "heuristics/row_lookup.h"

namespace ssmjit::cli {
namespace {

// What a table may lose at a size that is left out of it, unless the user names sizes or a bound.
constexpr double kBetween = 0.05;

struct Options {
  SpecOption spec;
  std::string batches = "1,2,4,8,16,32,64,128,256,512,1024";
  bool own_batches = false;  // `batches` are the user's
  std::optional<double> between;
  int between_sizes = BetweenRules{}.most_sizes;
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
  std::optional<int> device;
  std::string gpus;
  std::string shard;
  std::string replay;
  double watchdog_s = Watchdog{}.device_s;
  bool in_process = false;
  bool json = false;
};

// Ordinals of the GPUs to measure on.
std::vector<int> gpus_of(const Options& o) {
  std::vector<int> all;
  if (o.gpus.empty() && (o.device || o.shard != "auto")) return {o.device.value_or(0)};
  if (o.gpus.empty() || o.gpus == "all") {
    std::string why;
    for (const DeviceFacts& gpu : devices(&why)) all.push_back(gpu.ordinal);
    if (all.empty()) fail(ErrorKind::missing, "{}", why);
    // Of the processes that a launcher started on this host each has a GPU.
    if (o.gpus.empty()) return {all[static_cast<std::size_t>(local_rank()) % all.size()]};
    return all;
  }
  for (const std::string& part : split(o.gpus, ',')) {
    const bool number = !part.empty() && part.size() < 4 && std::all_of(part.begin(), part.end(), isdigit);
    if (!number || std::find(all.begin(), all.end(), std::stoi(part)) != all.end())
      fail(ErrorKind::invalid, "--gpus: got {}; wants all, or numbers from 0 with commas between, none twice",
           in_quotes(o.gpus));
    all.push_back(std::stoi(part));
  }
  return all;
}

// Who measures, and what tables call the kind of GPU.
struct Crew {
  std::vector<std::unique_ptr<Measurer>> members;
  std::string device_key;
};
Crew crew_of(const Options& o, WorkerProcess::Start when) {
  Crew crew;
  if (!o.replay.empty()) {
    auto recorded = std::make_unique<Recorded>(o.replay, parse_journal(read_text(o.replay)));
    crew.device_key = recorded->device_key();
    crew.members.push_back(std::move(recorded));
    return crew;
  }
  const std::vector<int> ordinals = gpus_of(o);
  if (o.in_process && ordinals.size() > 1)
    fail(ErrorKind::invalid, "--in-process: got {} GPUs; wants one", ordinals.size());
  // Drivers take a second to wake up: those of all workers at once, with that of this process.
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  std::vector<std::future<std::unique_ptr<Measurer>>> members;
  for (const int ordinal : ordinals)
    members.push_back(std::async(std::launch::async, [&, ordinal]() -> std::unique_ptr<Measurer> {
      if (o.in_process) return std::make_unique<InProcess>(ordinal);
      return std::make_unique<WorkerProcess>(
          ordinal, std::vector<std::string>{self, "worker", "--device", std::to_string(ordinal)},
          Watchdog{.device_s = o.watchdog_s}, when);
    }));
  for (auto& member : members) crew.members.push_back(member.get());
  for (const auto& member : crew.members) {
    if (!crew.device_key.empty() && member->device_key() != crew.device_key)
      fail(ErrorKind::invalid, "--gpus: got a {} beside a {}; wants one kind: tune each kind in a run of its own",
           member->device_key(), crew.device_key);
    crew.device_key = member->device_key();
  }
  return crew;
}

// "few bytes in flight 512, spills 36": of lines that have no time.
std::string counted(const std::map<std::string, int>& left_out) {
  std::string text;
  for (const auto& [reason, count] : left_out) text += fmt::format("{}{} {}", text.empty() ? "" : ", ", reason, count);
  return text;
}

volatile std::sig_atomic_t interrupted_by = 0;

// While it lives, SIGINT and SIGTERM are noted; a second one does what it did before.
class Interrupts {
 public:
  Interrupts() {
    interrupted_by = 0;
    for (std::size_t i = 0; i < std::size(kSignals); ++i) {
      sigaction(kSignals[i], nullptr, &before_[i]);
      if ((before_[i].sa_flags & SA_SIGINFO) == 0 && before_[i].sa_handler == SIG_IGN) continue;
      struct sigaction note {};
      note.sa_handler = [](int signal) { interrupted_by = signal; };
      note.sa_flags = static_cast<int>(SA_RESETHAND);
      sigemptyset(&note.sa_mask);
      sigaction(kSignals[i], &note, nullptr);
    }
  }
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;
  ~Interrupts() {
    for (std::size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &before_[i], nullptr);
  }

 private:
  static constexpr int kSignals[] = {SIGINT, SIGTERM};
  struct sigaction before_[std::size(kSignals)];
};

// "batch 24 off, batch 48 off".
std::string text_of(const std::vector<Cell>& cells) {
  std::string text;
  for (const Cell& cell : cells)
    text += fmt::format("{}batch {} {}", text.empty() ? "" : ", ", cell.batch, name(cell.mode));
  return text;
}

// The table that is redrawn on a terminal while a sweep runs, with what the journal holds already; none elsewhere, nor
// where JSON goes to the same terminal. What is said meanwhile stands above it.
std::shared_ptr<LiveTable> live_table(const Options& o, const Crew& crew, const std::vector<int>& batches,
                                      const std::vector<PdlMode>& modes, const std::vector<SpecOption::Kernel>& kernels,
                                      const std::vector<Measurement>& known) {
  if (!can_draw_live() || (o.json && isatty(STDOUT_FILENO) != 0)) return nullptr;
  LiveState state{.title = "tune on " + crew.device_key, .modes = modes, .batches = batches};
  for (std::size_t k = 0; k < kernels.size(); ++k) {
    state.kernels.push_back({.label = kernels[k].label});
    const Description& d = kernels[k].description;
    for (const Measurement& m : known)
      if (m.device == crew.device_key && m.kernel_digest == d.kernel_digest() && m.nheads == work_items(d, 1))
        advance(state, k, m);
  }
  state.at = 0;
  state.at_work.clear();
  std::shared_ptr<LiveTable> live(new LiveTable(std::move(state), STDERR_FILENO), [](LiveTable* table) {
    say_through({});
    delete table;
  });
  say_through([table = live.get()](std::string_view line) { table->note(line); });
  return live;
}

int run(const Options& o) {
  const Search search = parse_search(o.strategy);
  const Acceptance accepted = o.accepted.empty() ? Acceptance{} : Acceptance::parse(o.accepted);
  FleetOptions fleet;
  if (!o.shard.empty()) fleet.shard = Shard::parse(o.shard);
  fleet.budget_s = o.budget_s;
  fleet.between = {.most_loss = o.between.value_or(o.own_batches ? 0 : kBetween), .most_sizes = o.between_sizes};
  const std::vector<int> batches = parse_batches(o.batches);
  std::vector<PdlMode> modes;
  for (const std::string& mode : split(o.pdl, ',')) modes.push_back(parse_pdl_mode(mode));
  const std::vector<SpecOption::Kernel> kernels = o.spec.kernels();
  for (const SpecOption::Kernel& kernel : kernels) {
    const Description& d = kernel.description;
    if (d.ring_window() != 0 && !accepted.chance.empty()) steps_per_flush(d.ring_window(), d.token_count, accepted);
  }
  const std::string folder = user_table_dir(), label = kernels.front().label;
  if (o.out.empty() && folder.empty())
    fail(ErrorKind::invalid, "tune: no folder for tables (HOME is unset); name a file with -o");
  const std::string model = std::filesystem::path(label.substr(0, label.find(':'))).stem().string();
  const auto journal_of = [&](const std::string& table) {
    return fleet.shard.journal(!o.journal.empty() ? o.journal
                                                  : std::filesystem::path(table).replace_extension(".jsonl").string());
  };
  // Where no journal is there yet, whatever the GPU is called, there is work for sure.
  std::error_code ignored;
  const bool named = !o.journal.empty() || !o.out.empty();
  bool fresh = !named || !std::filesystem::exists(journal_of(o.out), ignored);
  if (!named)
    for (std::filesystem::directory_iterator it(folder, ignored), end; !ignored && it != end; it.increment(ignored))
      fresh = fresh && !std::filesystem::exists(journal_of(fmt::format("{}/{}.json", it->path().string(), model)));
  const Crew crew = crew_of(o, fresh ? WorkerProcess::Start::now : WorkerProcess::Start::with_job);
  const std::string out = !o.out.empty() ? o.out : fmt::format("{}/{}/{}.json", folder, crew.device_key, model);
  const std::string journal = journal_of(out);
  JournalFile file(journal);
  std::vector<Measurement> all = file.found();
  if (!all.empty()) say(fmt::format("{}: {} measurements are there already", journal, all.size()));

  const Interrupts interrupts;
  int measured = 0, slower = 0, failed = 0;
  std::shared_ptr<LiveTable> live = live_table(o, crew, batches, modes, kernels, all);
  std::map<std::string, int> left_out, failures;  // by reason, by outcome
  std::vector<KernelSweep> sweeps;
  for (std::size_t k = 0; k < kernels.size(); ++k) {
    const SpecOption::Kernel& kernel = kernels[k];
    TuneOptions options;
    options.batches = batches;
    options.modes = modes;
    options.accepted = accepted;
    options.search = search;
    options.rounds = o.exhaustive ? o.rounds : 0;
    options.seed = o.seed;
    options.known = all;
    if (o.sample > 0)
      options.plans =
          sample_plans(plan_space(kernel.description, arch_of_device_key(crew.device_key)), o.sample, o.seed);
    options.progress = live ? [&, k](const Progress& p) { live->progress(k, p); } : progress_line();
    options.on_measurement = [&, k](const Measurement& m) {
      file.append(m);
      all.push_back(m);
      if (m.outcome == Outcome::pruned)
        ++left_out[m.reason.substr(0, m.reason.find(':'))];
      else if (m.outcome == Outcome::dropped)
        ++slower;
      else if (m.outcome != Outcome::ok)
        ++failed, ++failures[name(m.outcome)];
      else if (m.phase != "verify")
        ++measured;
      if (live) live->measured(k, m);
      if (o.json) print_json(Json::parse(m.json()));
    };
    sweeps.push_back({kernel.description, std::move(options)});
  }
  std::vector<Measurer*> members;
  for (const auto& member : crew.members) members.push_back(member.get());
  fleet.interrupted = [] { return interrupted_by != 0; };
  std::vector<std::vector<Cell>> between(kernels.size());
  try {
    // Layers last: their chains have the plans that were best for the parts.
    for (const bool layers : {false, true}) {
      std::vector<std::size_t> chosen;
      std::vector<KernelSweep> now;
      for (std::size_t k = 0; k < kernels.size(); ++k) {
        const Description& d = kernels[k].description;
        if ((d.op() == Op::layer) != layers) continue;
        TuneOptions& options = sweeps[k].options;
        options.known = all;
        if (layers && options.plans.empty()) {
          Table known = fit_table(all);
          known.merge(load_tables());
          options.plans = layer_plans(known, d, crew.device_key, arch_of_device_key(crew.device_key), batches);
        }
        chosen.push_back(k);
        now.push_back(sweeps[k]);
      }
      if (now.empty()) continue;
      const std::vector<std::vector<Cell>> found = sweep_on(members, now, fleet);
      for (std::size_t i = 0; i < found.size(); ++i) between[chosen[i]] = found[i];
    }
  } catch (const Error&) {
    if (interrupted_by == 0) throw;
  }
  for (const auto& member : crew.members) member->dismiss();
  live.reset();
  if (interrupted_by != 0) {
    say(fmt::format("ssmjit: interrupted; {} measurements are in {}, and the same command goes on from there",
                    all.size(), journal));
    return 128 + interrupted_by;
  }
  for (std::size_t k = 0; k < kernels.size(); ++k)
    if (!between[k].empty())
      say(fmt::format("{}: with {}, where a size left out would lose more than {:.3g}%", kernels[k].label,
                      text_of(between[k]), fleet.between.most_loss * 100));

  if (fleet.shard.count > 1) {
    if (o.json)
      print_json(Json{{"measured", measured}, {"slower", slower}, {"failed", failed}, {"journal", journal}});
    else
      print(fmt::format(
          "measured {}, slower {}, failed {} as shard {} of {}; every measurement in {}; the table: ssmjit table fit "
          "JOURNALS of all shards -o {}{}",
          measured, slower, failed, fleet.shard.index, fleet.shard.count, journal, out,
          fleet.between.most_loss > 0 ? "; sizes between: tune without --shard on those journals put together" : ""));
    return measured == 0 && failed > 0 ? kFellShort : kOk;
  }
  const Table table = fit_table(all);
  if (!table.rows.empty())
    write_text(out, table.json());
  else
    say(fmt::format("no row: {} is as it was; a row wants a plan that was timed in full", out));
  if (o.json) {
    print_json(Json{{"measured", measured},
                    {"slower", slower},
                    {"failed", failed},
                    {"failures", failures},
                    {"pruned", left_out},
                    {"rows", table.rows.size()},
                    {"table", out},
                    {"journal", journal}});
  } else {
    std::string last;
    for (const TableRow& row : table.rows) {
      const std::string kernel = fmt::format("{} {} ({})", row.kernel_digest, name(row.pdl), row.kernel);
      if (kernel != last) print(kernel);
      last = kernel;
      print(fmt::format("  {:6} {}  {:8.2f} us  share {:.3f}  {}", row.total_heads, work_unit(row.op), row.us,
                        row.us > 0 ? row.floor_us / row.us : 0, row.plan.text()));
    }
    if (!left_out.empty()) print("pruned: " + counted(left_out));
    if (!failures.empty()) print("failed: " + counted(failures));
    print(fmt::format("measured {}, slower {}, failed {}; {} rows in {}, every measurement in {}", measured, slower,
                      failed, table.rows.size(), out, journal));
  }
  return table.rows.empty() || (measured == 0 && failed > 0) ? kFellShort : kOk;
}

}  // namespace

Verb tune_verb(CLI::App& root) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("tune", "verifies and times every plan on the GPU at hand and writes a table");
  o->spec.add(*app, true);
  CLI::Option* batches = app->add_option("--batches", o->batches, "batch sizes");
  app->add_option("--between", o->between,
                  "batches between those are measured too, until the table loses no more than this fraction with any "
                  "size left out; 0: none; without it 0.05, or 0 with --batches")
      ->check(CLI::NonNegativeNumber);
  app->add_option("--between-sizes", o->between_sizes, "of a kernel and PDL mode, at most")->check(CLI::Range(0, 1000));
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
  CLI::Option* device = app->add_option("--device", o->device, "GPU ordinal");
  CLI::Option* gpus = app->add_option("--gpus", o->gpus, "all, or ordinals, 0,1: a process for each, one journal");
  app->add_option("--shard", o->shard,
                  "0/4: of the batches, modes and kernels every fourth, into a journal of its own; auto: by the place "
                  "that Slurm, MPI or torchrun gives, on a GPU by the place on this host unless one is named");
  CLI::Option* replay = app->add_option("--replay", o->replay, "a journal that answers in place of a GPU");
  app->add_option("--watchdog", o->watchdog_s, "seconds after which a kernel that says nothing has hung")
      ->check(CLI::PositiveNumber);
  app->add_flag("--in-process", o->in_process, "measure in this process, which a faulty kernel may take along");
  device->excludes(gpus);
  replay->excludes(gpus)->excludes(device);
  app->add_option("-o,--output", o->out, "the table; the user's folder without it");
  app->add_flag("--json", o->json, "one JSON object a line");
  return {app, [o, batches] {
            o->own_batches = batches->count() > 0;
            return run(*o);
          }};
}

}  // namespace ssmjit::cli
