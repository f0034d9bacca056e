#include <ssmjit/session.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>
#include <type_traits>
#include <utility>

#include <ssmjit/error.h>
#include <ssmjit/source.h>

#include "codegen/fail.h"
#include "codegen/plan_text.h"
#include "heuristics/plan_ranges.h"
#include "heuristics/table_files.h"
#include "jit/compile.h"
#include "jit/launch_checks.h"
#include "jit/module.h"
#include "jit/parallel.h"
#include "jit/seeds.h"

namespace ssmjit {
namespace {

constexpr PdlMode kModes[] = {PdlMode::off, PdlMode::chain};
constexpr std::size_t index_of(PdlMode mode) { return mode == PdlMode::off ? 0 : 1; }
constexpr std::size_t index_of(Pdl pdl) { return pdl == Pdl::off ? 0 : 1; }

// Tables as a Session has them; shared with what it prepared.
struct Tables {
  Table all;
  std::vector<std::unique_ptr<const Seed>> seeds;  // for their digests
  Table of_bundles;                                // what answers for a kernel that a bundle holds

  const Table& table_for(const Description& description) const {
    const std::string digest = description.kernel_digest();
    for (const auto& seed : seeds)
      if (seed->holds(digest)) return of_bundles;
    return all;
  }
};

std::string list_of(const std::vector<std::string>& texts) {
  std::string list;
  for (const std::string& text : texts) list += "\n  " + text;
  return list;
}

}  // namespace

struct Prepared::State {
  Description description;
  DeviceFacts device;
  PrepareOptions options;
  bool is_varlen = false;
  std::int64_t max_batch = 0;
  std::int64_t tokens = 1;
  std::shared_ptr<const Tables> tables;
  std::vector<Kernel> kernels;
  // By mode and batch, 0 to max_batch: which kernel. Of a mode that was not prepared: none.
  std::vector<std::uint16_t> kernel_of[2];

  // Of arguments that no one has looked at: 0 where that can't be told, which any kernel then refuses, or has no rows.
  template <class Args>
  std::int64_t batch_of(const Args& args) const {
    if (args.size != sizeof(Args)) return 0;
    if constexpr (std::is_same_v<Args, NormArgs>) {
      if (args.x.rank == 2) return tokens == 1 ? args.x.shape[0] : (args.x.shape[0] + tokens - 1) / tokens;
    } else if constexpr (std::is_same_v<Args, UpdateArgs> || std::is_same_v<Args, RingArgs>) {
      if (is_varlen) return args.cu_seqlens.rank == 1 ? args.cu_seqlens.shape[0] - 1 : 0;
    }
    return args.x.rank >= 1 ? args.x.shape[0] : 0;
  }

  template <class Args>
  const Kernel& kernel_for(const Args& args) const {
    const std::int64_t batch = std::max<std::int64_t>(batch_of(args), 0);
    const std::vector<std::uint16_t>& chosen = kernel_of[index_of(args.size == sizeof(Args) ? args.pdl : Pdl::off)];
    if (static_cast<std::size_t>(batch) >= chosen.size()) [[unlikely]]
      return refuse(args, batch);
    return kernels[chosen[static_cast<std::size_t>(batch)]];
  }

  // The kernel that says what is wrong with the arguments themselves; else says what was not prepared.
  template <class Args>
  [[gnu::cold, gnu::noinline]] const Kernel& refuse(const Args& args, std::int64_t batch) const {
    if (!Kernel::problems(description, args).empty()) return kernels.front();
    if (batch > max_batch)
      fail(ErrorKind::invalid,
           "batch: got {} rows; {} was prepared for 1 to {}: call Session::prepare() with max_batch = {} or more, "
           "before "
           "a capture begins, or split the batch",
           batch, description.summary(), max_batch, batch);
    fail(ErrorKind::invalid,
         "pdl: got {}; {} was prepared for {} only: call Session::prepare() with {} = true, before a capture begins",
         name(args.pdl), description.summary(), options.off ? "off" : "wait_first and early_state",
         options.off ? "chain" : "off");
  }

  void check(std::int64_t batch) const {
    if (batch < 1 || batch > max_batch)
      fail(ErrorKind::invalid, "batch: got {}; {} was prepared for 1 to {}", batch, description.summary(), max_batch);
  }
};

namespace {

template <class State>
const State& loaded(const std::shared_ptr<const State>& state) {
  if (state == nullptr) [[unlikely]]
    fail(ErrorKind::invalid, "an empty Prepared can't be used; make one with Session::prepare()");
  return *state;
}

}  // namespace

Prepared::Prepared(std::shared_ptr<const State> state) : state_(std::move(state)) {}

void Prepared::launch(const UpdateArgs& args, void* stream) const {
  loaded(state_).kernel_for(args).launch(args, stream);
}
void Prepared::launch(const RingArgs& args, void* stream) const {
  loaded(state_).kernel_for(args).launch(args, stream);
}
void Prepared::launch(const Conv1dArgs& args, void* stream) const {
  loaded(state_).kernel_for(args).launch(args, stream);
}
void Prepared::launch(const LayerArgs& args, void* stream) const {
  loaded(state_).kernel_for(args).launch(args, stream);
}
void Prepared::launch(const NormArgs& args, void* stream) const {
  loaded(state_).kernel_for(args).launch(args, stream);
}
void Prepared::launch(const ReplayArgs& args, void* stream) const {
  loaded(state_).kernel_for(args).launch(args, stream);
}

Choice Prepared::choose(std::int64_t batch, PdlMode mode) const {
  const State& s = loaded(state_);
  s.check(batch);
  const std::vector<std::uint16_t>& chosen = s.kernel_of[index_of(mode)];
  if (chosen.empty())
    fail(ErrorKind::invalid, "pdl: got mode {}; {} was prepared for mode {} only", name(mode), s.description.summary(),
         name(s.options.off ? PdlMode::off : PdlMode::chain));
  const Plan& plan = s.kernels[chosen[static_cast<std::size_t>(batch)]].plan();
  if (s.options.force) return {plan, Why::fallback, "forced", 0, 0};
  const Arch arch = s.device.arch();
  const PdlMode asked = arch.has_pdl() ? mode : PdlMode::off;
  Choice choice = lookup(s.tables->table_for(s.description), s.description, s.device.key, arch, batch, asked);
  choice.plan = plan;
  return choice;
}

std::int64_t Prepared::scratch_bytes(std::int64_t batch) const {
  const State& s = loaded(state_);
  if (batch == 0) batch = s.max_batch;
  s.check(batch);
  // A plan wants the more the larger the batch: the largest batch of each decides.
  std::vector<std::int64_t> largest(s.kernels.size());
  for (const std::vector<std::uint16_t>& chosen : s.kernel_of)
    for (std::int64_t b = 1; b <= batch && !chosen.empty(); ++b)
      largest[chosen[static_cast<std::size_t>(b)]] = std::max(largest[chosen[static_cast<std::size_t>(b)]], b);
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < largest.size(); ++i)
    if (largest[i] > 0)
      bytes = std::max(bytes, ssmjit::scratch_bytes(s.kernels[i].plan(), s.description, static_cast<int>(largest[i])));
  return bytes;
}

const Description& Prepared::description() const { return loaded(state_).description; }
const DeviceFacts& Prepared::device() const { return loaded(state_).device; }
int Prepared::max_batch() const { return static_cast<int>(loaded(state_).max_batch); }

std::vector<PreparedKernel> Prepared::kernels() const {
  const State& s = loaded(state_);
  std::vector<PreparedKernel> kernels;
  for (const Kernel& kernel : s.kernels) {
    const Cubin& cubin = kernel.cubin();
    kernels.push_back({.plan = kernel.plan(),
                       .arch = cubin.arch,
                       .registers = cubin.registers,
                       .spill_bytes = cubin.spill_bytes,
                       .compile_ms = cubin.compile_ms,
                       .from_cache = cubin.from_cache});
  }
  for (const PdlMode mode : kModes) {
    const std::vector<std::uint16_t>& chosen = s.kernel_of[index_of(mode)];
    for (std::size_t batch = 1; batch < chosen.size(); ++batch)
      ++(mode == PdlMode::off ? kernels[chosen[batch]].batches_off : kernels[chosen[batch]].batches_chain);
  }
  return kernels;
}

struct Session::State {
  SessionOptions options;
  std::shared_ptr<const Tables> tables;
  std::unique_ptr<const Seed> cache;  // for want of a compiler
  CompilePlaces places;
  // What was prepared: context, device, description and options.
  using Key = std::tuple<void*, int, std::string>;
  std::mutex mutex;
  std::map<Key, Prepared> prepared;

  // What launches of a description can choose, in `plans`, and by which batch; their kernels are yet to be loaded.
  std::shared_ptr<Prepared::State> choose_kernels(const Description& description, const PrepareOptions& prepare,
                                                  const DeviceFacts& device, std::vector<Plan>& plans) const {
    const auto state = std::make_shared<Prepared::State>();
    state->description = description;
    state->device = device;
    state->options = prepare;
    state->options.stream = nullptr;
    state->is_varlen = description.is_varlen;
    state->max_batch = prepare.max_batch;
    state->tokens = std::max(description.token_count, 1);
    state->tables = tables;
    const Arch arch = device.arch();
    if (prepare.force) check_plan(*prepare.force, description, arch);
    for (const PdlMode mode : kModes) {
      if (mode == PdlMode::off ? !prepare.off : !prepare.chain) continue;
      std::vector<std::uint16_t>& chosen = state->kernel_of[index_of(mode)];
      const PdlMode asked = arch.has_pdl() ? mode : PdlMode::off;
      const std::vector<PlanRange> ranges = prepare.force ? std::vector<PlanRange>{{1, *prepare.force}}
                                                          : plan_ranges(tables->table_for(description), description,
                                                                        device.key, arch, prepare.max_batch, asked);
      for (std::size_t i = 0; i < ranges.size(); ++i) {
        auto plan = std::find(plans.begin(), plans.end(), ranges[i].plan);
        if (plan == plans.end()) plan = plans.insert(plan, ranges[i].plan);
        const int end = i + 1 < ranges.size() ? ranges[i + 1].first_batch : prepare.max_batch + 1;
        chosen.resize(static_cast<std::size_t>(end), static_cast<std::uint16_t>(plan - plans.begin()));
      }
    }
    return state;
  }

  // The cubins of all sources, or an error with those that there is no way to. `what` they are, one each.
  std::vector<Cubin> cubins_of(const std::vector<Source>& sources, const std::vector<std::string>& what,
                               const std::string& of_what) const {
    // What is there already is read faster than threads are made.
    std::vector<Compiled> found;
    std::vector<std::size_t> to_compile;
    std::vector<std::string> lacking;
    std::string reason;
    for (std::size_t i = 0; i < sources.size(); ++i) {
      const Compiled& compiled = found.emplace_back(find_compiled(sources[i], places));
      if (compiled.cubin) continue;
      if (compiled.may_compile) {
        to_compile.push_back(i);
        continue;
      }
      lacking.push_back(what[i]);
      if (reason.empty()) reason = compiled.why_not;
    }
    // A long text takes longest; one that begins last would keep all others waiting.
    std::stable_sort(to_compile.begin(), to_compile.end(),
                     [&](std::size_t a, std::size_t b) { return sources[a].text.size() > sources[b].text.size(); });
    for_each_parallel(to_compile.size(), options.threads, [&](std::size_t i) {
      found[to_compile[i]].cubin = compile(sources[to_compile[i]], {.cache_dir = places.cache_dir});
    });
    if (!lacking.empty()) {
      std::string seeds;
      for (const Seed* seed : places.seeds) seeds += (seeds.empty() ? "" : ", ") + seed->folder();
      fail(ErrorKind::missing,
           "prepare: {} of {} kernels of {} for {} are not compiled yet, and {}. They are in no seed ({}) and not in "
           "the "
           "cache ({}); bundle them (`ssmjit bundle SPEC --arch {} -o DIR`) and name the folder as a seed, or prepare "
           "where there is NVRTC:{}",
           lacking.size(), sources.size(), of_what, sources.front().arch.text(),
           reason.empty() ? std::string("no_jit is set") : "there is no compiler: " + reason,
           seeds.empty() ? "none is named" : seeds, places.cache_dir.empty() ? "in memory only" : places.cache_dir,
           sources.front().arch.text(), list_of(lacking));
    }
    std::vector<Cubin> cubins;
    for (Compiled& compiled : found) cubins.push_back(*std::move(compiled.cubin));
    return cubins;
  }

  Cubin cubin_of(const Source& source, const std::string& what) const {
    return std::move(cubins_of({source}, {what}, what).front());
  }
};

Session::Session(const SessionOptions& options) : state_(std::make_shared<State>()) {
  if (options.threads < 0)
    fail(ErrorKind::invalid, "session: got {} threads; wants 1 or more, or 0 for all cores", options.threads);
  State& s = *state_;
  s.options = options;
  const auto tables = std::make_shared<Tables>();
  Table named;
  merge_tables(named, options.tables);
  tables->all = load_tables();
  tables->all.merge(named);
  std::vector<std::string> seeds = options.seeds;
  const std::vector<std::string> more = paths_in("SSMJIT_SEEDS");
  seeds.insert(seeds.end(), more.begin(), more.end());
  for (const std::string& folder : seeds) tables->seeds.push_back(std::make_unique<const Seed>(folder));
  for (auto seed = tables->seeds.rbegin(); seed != tables->seeds.rend(); ++seed) {
    s.places.seeds.insert(s.places.seeds.begin(), seed->get());
    tables->of_bundles.merge((*seed)->table());
  }
  tables->of_bundles.merge(named);
  s.tables = tables;
  s.places.cache_dir = options.cache_dir.empty() ? default_cache_dir() : options.cache_dir;
  s.places.no_jit = options.no_jit;
  s.cache = std::make_unique<const Seed>(s.places.cache_dir);
  s.places.cache = s.cache.get();
}

namespace {

void check_max_batch(int max_batch) {
  if (max_batch < 1 || max_batch > kMostRows)
    fail(ErrorKind::invalid, "prepare: got max_batch {}; wants 1 to {}", max_batch, kMostRows);
}

}  // namespace

Prepared Session::prepare(const Description& description, const PrepareOptions& options) const {
  return std::move(prepare_all({description}, options).front());
}

std::vector<Prepared> Session::prepare_all(const std::vector<Description>& descriptions,
                                           const PrepareOptions& options) const {
  for (const Description& description : descriptions) description.validate();
  check_max_batch(options.max_batch);
  if (!options.off && !options.chain)
    fail(ErrorKind::invalid, "prepare: neither PDL mode is asked for; set off, chain or both");
  if (options.force && descriptions.size() > 1)
    fail(ErrorKind::invalid, "prepare: force is the plan of one kernel; got {} descriptions: prepare it alone",
         descriptions.size());
  const LoadPlace place = place_to_load(static_cast<CUstream>(options.stream));
  std::vector<State::Key> keys;
  for (const Description& description : descriptions)
    keys.push_back({place.context, place.device.ordinal,
                    fmt::format("{} {} {} {} {}", description.json(), options.max_batch, options.off, options.chain,
                                options.force ? options.force->text() : "")});

  std::vector<std::size_t> missing;  // each once
  {
    const std::lock_guard lock(state_->mutex);
    for (std::size_t i = 0; i < keys.size(); ++i)
      if (state_->prepared.count(keys[i]) == 0 &&
          std::none_of(missing.begin(), missing.end(), [&](std::size_t other) { return keys[other] == keys[i]; }))
        missing.push_back(i);
  }
  if (place.captured && !missing.empty())
    fail(ErrorKind::invalid,
         "prepare: {} at batches of up to {} was asked for while the stream is being captured; call Session::prepare() "
         "for it before the capture begins",
         descriptions[missing.front()].summary(), options.max_batch);
  struct Pending {
    State::Key key;
    std::shared_ptr<Prepared::State> state;
    std::vector<Plan> plans;
  };
  std::vector<Pending> all_pending;
  std::vector<Source> sources;
  std::vector<std::string> what;
  for (const std::size_t i : missing) {
    const Description& description = descriptions[i];
    Pending& pending = all_pending.emplace_back();
    pending.key = keys[i];
    pending.state = state_->choose_kernels(description, options, place.device, pending.plans);
    for (const Plan& plan : pending.plans) {
      sources.push_back(emit(description, plan, place.device.arch()));
      what.push_back(missing.size() == 1 ? plan.text() : description.summary() + ": " + plan.text());
    }
  }
  const std::vector<Cubin> cubins = state_->cubins_of(
      sources, what,
      missing.size() == 1 ? descriptions[missing.front()].summary() : fmt::format("{} descriptions", missing.size()));
  std::size_t at = 0;
  for (const Pending& pending : all_pending)
    for (const Plan& plan : pending.plans) {
      pending.state->kernels.push_back(Kernel::load(pending.state->description, plan, sources[at], cubins[at]));
      ++at;
    }

  const std::lock_guard lock(state_->mutex);
  for (const Pending& pending : all_pending) state_->prepared.emplace(pending.key, Prepared(pending.state));
  std::vector<Prepared> all;
  for (const State::Key& key : keys) all.push_back(state_->prepared.at(key));
  return all;
}

Plan Session::plan_of(std::string_view text, const Description& description, int max_batch, void* stream) const {
  description.validate();
  check_max_batch(max_batch);
  const Arch arch = place_to_load(static_cast<CUstream>(stream)).device.arch();
  const std::int64_t work = work_items(description, max_batch);
  return parse_plan(text, default_plan(description, arch, work), description, arch, work);
}

PrepareA Session::prepare_A(void* stream) const {
  const Source source = emit_prepare_A(arch_to_load_for(static_cast<CUstream>(stream)));
  return PrepareA::load(source, state_->cubin_of(source, "prepare_A"));
}

RingSlots Session::ring_slots(const Description& description, void* stream) const {
  description.validate();
  const Source source = emit_ring_slots(description, arch_to_load_for(static_cast<CUstream>(stream)));
  return RingSlots::load(description, source, state_->cubin_of(source, "slots of " + description.summary()));
}

SlotCopies Session::slot_copies(void* stream) const {
  const Source source = emit_slot_copies(arch_to_load_for(static_cast<CUstream>(stream)));
  return SlotCopies::load(source, state_->cubin_of(source, "slot_copies"));
}

Choice Session::choose(const Description& description, std::int64_t batch, PdlMode mode, std::string_view device_key,
                       const Arch& arch) const {
  description.validate();
  return lookup(state_->tables->table_for(description), description, device_key, arch, batch, mode);
}

Choice Session::choose(const Description& description, std::int64_t batch, PdlMode mode) const {
  const DeviceFacts device = place_to_load(nullptr).device;
  return choose(description, batch, mode, device.key, device.arch());
}

const Table& Session::table() const { return state_->tables->all; }
const std::string& Session::cache_dir() const { return state_->places.cache_dir; }

}  // namespace ssmjit
