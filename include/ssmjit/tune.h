// Measuring: verification against the double reference, timing, the sweep. In the library ssmjit::autotune; nothing
// here is needed to load and launch a kernel.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <ssmjit/cpu.h>
#include <ssmjit/cubin.h>
#include <ssmjit/description.h>
#include <ssmjit/device.h>
#include <ssmjit/kernel.h>
#include <ssmjit/measurement.h>
#include <ssmjit/plan.h>
#include <ssmjit/table.h>

namespace ssmjit {

// How far long work has come. Called from the thread that asked for the work.
struct Progress {
  std::string stage;
  std::int64_t done = 0;
  std::int64_t total = 0;
  double elapsed_s = 0;
  double remaining_s = 0;  // an estimate; 0 while there is none
};
using ProgressCallback = std::function<void(const Progress&)>;

// Whether a plan computes its description: see docs/ARCHITECTURE.md, "Verification".
struct Verdict {
  Plan plan;
  Outcome outcome = Outcome::ok;
  std::vector<std::string> failures;  // sentences
  double y_error = 0;                 // relative (Frobenius) against the double recurrence, worst case
  double state_error = 0;
  double worst_ulp = 0;  // of both, in units of the stored dtype
  int registers = 0;
  int spill_bytes = 0;
};

enum class VerifyOn { gpu, cpu };

struct VerifyOptions {
  VerifyOn on = VerifyOn::gpu;
  int device = 0;
  CpuVerify cpu;  // with VerifyOn::cpu
  std::uint64_t seed = 1;
  CompileOptions compile;
  int compile_threads = 0;  // 0: as many as there are cores
  ProgressCallback progress;
  // Told what is done to which plan next, by its place: "compile", "verify" (the first launch), "verified" (after the
  // last). What it throws ends the verification.
  std::function<void(const char* stage, std::size_t plan)> on_step;
  // Each verdict as soon as there is one.
  std::function<void(std::size_t plan, const Verdict& verdict)> on_verdict;
  // A kernel of the caller's in place of what emit() gives: its text, with the banner's plan.
  std::string source;
  std::string source_name;  // what findings call it
};

// Each plan in odd small batches, in full: values, untouched bytes, canaries, several launches that leave the same
// bits; on the CPU also races, missing waits and accesses out of bounds, by the line of the emitted source. A plan that
// fails is a verdict, never an exception. Fails: ErrorKind::missing without a GPU or NVRTC (on the CPU: without the
// executor), ErrorKind::invalid for an invalid description or a plan that is not legal.
std::vector<Verdict> verify(const Description& description, const std::vector<Plan>& plans,
                            const VerifyOptions& options = {});

// How many of a step's tokens are kept, by chance: chance[i] is that of i + 1.
struct Acceptance {
  std::vector<double> chance;

  // Always that many.
  static Acceptance constant(int tokens);
  // "3", or "1:0.2,2:0.3,3:0.5" with chances that sum to 1. Fails: ErrorKind::invalid.
  static Acceptance parse(std::string_view text);
  // Drafts taken one after the other up to the first that is refused, each by `chance`, and the token that is always
  // kept: of `tokens` 1 for a chance of 0, all for 1. Fails: ErrorKind::invalid for a chance outside 0 to 1.
  static Acceptance of_drafts(double chance, int tokens);
  // The mean of a step of `tokens`, rounded down: (tokens + 1) / 2.
  static Acceptance usual(int tokens) { return constant((tokens + 1) / 2); }
  double mean() const;
  // At random in [0, 1): which count it is.
  int draw(double random) const;
  std::string text() const;
};
// The mean number of steps from one flush to the next, the latter counted: for one token a step, the window. Fails:
// ErrorKind::invalid where the ring or the acceptance does not fit the tokens.
double steps_per_flush(int window, int tokens, const Acceptance& accepted);
// Rows in use of every request while a phase of the description's ring is timed: without flush half a window of single
// tokens, or 4 rows at most; with flush the last before it must be.
int timed_ring_count(const Description& description, Phase phase);

// Which plans of a space are timed at which batch: docs/ARCHITECTURE.md, "Searching".
enum class Search { exhaustive, halving, model };
const char* name(Search search);
// Fails: ErrorKind::invalid with those that there are.
Search parse_search(std::string_view text);
// In which order to visit the batches: as they are, or for a search that goes from a batch to its neighbours the least
// and the greatest first, then the middle of what lies between, and so on.
std::vector<int> search_order(Search search, std::vector<int> batches);

// What a sweep does next, told before it does it: the kernel at work may keep it from coming back.
struct Doing {
  std::string stage;                  // "compile", "verify", "load", "floor", "time", "check"
  const Measurement* line = nullptr;  // the journal line that it would be if it failed; null while no plan is at work
  bool compiling = false;             // other plans are compiled meanwhile
};

struct TuneOptions {
  int device = 0;
  std::vector<int> batches = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024};
  std::vector<PdlMode> modes = {PdlMode::off};
  // Rings only: what is timed; with both a plan is judged by the weighted step at `accepted` (empty: the usual one).
  std::vector<Phase> phases = {Phase::no_flush, Phase::flush};
  Acceptance accepted;
  std::uint64_t seed = 1;
  double budget_s = 0;  // stop starting cells after this; 0: none
  Search search = Search::halving;
  // All batches that are to be measured, where `batches` are some of them: halving goes by their order. Empty: those.
  std::vector<int> search_batches;
  // Batches between those, measured after them, in the order in which they were added: halving goes at each by the two
  // that were beside it then.
  std::vector<int> between;
  // Not 0: every plan at every batch gets at least that many timed replays, none is pruned or dropped. For proofs of
  // regret; `search` does not matter then.
  int rounds = 0;
  // Empty: the whole space. Those with early_state are timed in mode chain, the others in mode off; all of them in a
  // mode that none is for.
  std::vector<Plan> plans;
  bool verify_only = false;  // of every plan its line of phase "verify", and nothing timed
  CompileOptions compile;
  int compile_threads = 0;         // 0: as many as there are cores; 1: the plan that compiles is at work (Doing::line)
  std::vector<Measurement> known;  // from a journal: not verified or measured again
  std::function<void(const Measurement&)> on_measurement;  // as each comes; a journal's next line
  std::function<void(const Doing&)> on_doing;
  ProgressCallback progress;
};

// Measures the plans that the search asks for at every batch and mode: verified before it is timed, timed in
// interleaved rounds with the slow dropped early, the floor in the same run. Returns what is new. Fails:
// ErrorKind::invalid for a description, option or plan that is, and while a stream is being captured. A failed
// candidate is a line, never an exception; but a kernel that breaks the device's context ends the sweep with
// ErrorKind::machine, and one that takes the process with it or never ends does just that. `ssmjit tune` has a process
// for the GPU, and goes on with the next plan.
std::vector<Measurement> sweep(const Description& description, const TuneOptions& options = {});

struct SteadyOptions {
  int device = 0;
  int steps = 400;
  PdlMode mode = PdlMode::off;
  Acceptance accepted;  // empty: the usual one
  std::uint64_t seed = 1;
  CompileOptions compile;
};
// A ring as a model runs it: its cursors move on between steps.
struct SteadyState {
  double us = 0;       // a layer's step, mean
  double flushed = 0;  // share of the requests' steps that flushed
  int layers = 0;
  int steps = 0;
};
// Every request keeps as many of its tokens as it draws; cursors have run for a while before the first step that is
// timed, so that requests flush at different steps. Not verified: verify() or sweep() first. Fails: ErrorKind::missing
// without a GPU or NVRTC, ErrorKind::invalid for a description without a ring or a plan that is not legal.
SteadyState steady_state(const Description& description, const Plan& plan, int batch,
                         const SteadyOptions& options = {});

// Rows for a GPU that is not at hand, all marked `predicted`: at each batch and mode the default plan, or, where a
// model of the GPU sees others more than 5% ahead of it, the first of these, with as few plans as lose no more than a
// hundredth of the predicted time. Fails: ErrorKind::invalid for an invalid description, and for a device whose facts
// are not known, with those that are.
Table predict_table(const Description& description, std::string_view device_key, const std::vector<int>& batches,
                    const std::vector<PdlMode>& modes, const Acceptance& accepted = {});

// `count` of `all` by a fixed seed, in their order; all of them when count is 0 or not smaller.
std::vector<Plan> sample_plans(const std::vector<Plan>& all, std::size_t count, std::uint64_t seed);

}  // namespace ssmjit
