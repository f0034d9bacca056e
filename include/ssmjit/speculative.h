// Ways of keeping states while drafts are verified, held against each other: which one an engine should take. In the
// library ssmjit::autotune.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <ssmjit/cubin.h>
#include <ssmjit/description.h>
#include <ssmjit/measurement.h>
#include <ssmjit/plan.h>
#include <ssmjit/table.h>
#include <ssmjit/tune.h>

namespace ssmjit {

// snapshots: the state stays as it was (disable_state_update), the one after every token goes to a buffer, and at the
// end of the step one launch copies what was accepted of all layers. slots, replay, ring: the stores of that name
// (description.h), after which nothing is copied.
enum class DraftForm { snapshots, slots, replay, ring };
inline constexpr DraftForm kDraftForms[] = {DraftForm::snapshots, DraftForm::slots, DraftForm::replay, DraftForm::ring};
const char* name(DraftForm form);

// The step of `tokens` that verifies drafts in that form, with maths, sizes, dtypes and rounding of `base`, an update,
// ring or replay. Not validated: not every form can be described with every dtype and size. Fails: ErrorKind::invalid
// for a base without a state.
Description draft_step(const Description& base, DraftForm form, int tokens, int ring_window = 16);
// Device memory of one request in one layer, bytes: its state, factors, and what its form keeps beside it: a snapshot
// of every token, a slot of every token but one, a replay's buffers, a ring. Cursors and indices apart. Fails:
// ErrorKind::invalid for a description that is not valid, or no such step.
std::int64_t draft_slot_bytes(const Description& step);

// One form at one size and acceptance: a line of `bench --speculative --json`.
struct SpeculativeStep {
  DraftForm form = DraftForm::snapshots;
  std::string base;  // what all forms compute, in one line
  std::string kernel;
  std::string kernel_digest;
  int nheads = 0;
  int batch = 0;
  int tokens = 0;
  std::string accepted;        // Acceptance::text()
  double draft_chance = -1;    // of one draft, where the acceptance was given so; else -1
  double kept = 0;             // tokens that a request keeps of a step, mean
  double steps_per_flush = 0;  // of a ring, with that acceptance
  PdlMode pdl = PdlMode::off;
  Plan plan;
  Why why = Why::fallback;  // that plan
  std::string device, device_name, driver, nvrtc, policy, measured;

  Outcome outcome = Outcome::ok;
  std::string reason;  // in words, when not ok
  // Microseconds of a layer, medians: the kernels and the copies of a step measured together, either alone, and their
  // floors added up. Of a ring the mean over its phases.
  double us = 0;
  double kernel_us = 0;
  double copies_us = 0;
  double floor_us = 0;
  double share = 0;         // floor_us / us
  double us_per_token = 0;  // us / kept
  int layers = 0;
  std::int64_t slot_bytes = 0;    // draft_slot_bytes()
  std::int64_t moved_bytes = 0;   // cold, of a layer: read and written by the kernels; of a ring the mean
  std::int64_t copied_bytes = 0;  // read and written by the copies

  std::string json() const;
  // Fails: ErrorKind::invalid, naming the field.
  static SpeculativeStep from_json(std::string_view line);
};
// Every line that can be read, as parse_journal() does; `skipped` counts the others.
std::vector<SpeculativeStep> parse_speculative(std::string_view text, int* skipped = nullptr);
// The fastest form of those with the same base, GPU, mode, batch, tokens and acceptance; null where none was timed.
const SpeculativeStep* fastest_form(const std::vector<SpeculativeStep>& steps, const SpeculativeStep& like);

struct SpeculativeOptions {
  int device = 0;
  std::vector<int> batches = {1, 8, 64, 256};
  std::vector<int> tokens = {6};  // of a step, 2 to 16
  std::vector<DraftForm> forms = {kDraftForms, kDraftForms + 4};
  std::vector<double> draft_chances = {0, 0.5, 0.8, 1};  // Acceptance::of_drafts()
  Acceptance accepted;                                   // if not empty, this in their place
  int ring_window = 16;
  PdlMode mode = PdlMode::off;
  Table table;  // whose plans are taken
  std::uint64_t seed = 1;
  CompileOptions compile;
  std::function<void(const SpeculativeStep&)> on_step;  // as each comes
};

// Every form at every batch, number of tokens and acceptance. Kernels are verified and checked as sweep() does, and
// timed alike: cold, in graphs of layers. What a host does once a step for all layers (slots, cursors, counts) is index
// work and in no figure; nor are the windows of a convolution. A form that can't be described, compiled or held in the
// device's memory is a line that says so. Fails: ErrorKind::invalid for a base without a state, and for options that
// are; as sweep() does.
std::vector<SpeculativeStep> compare_speculative(const Description& base, const SpeculativeOptions& options = {});

}  // namespace ssmjit
