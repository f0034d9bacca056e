// How to compute it: the tunables of a kernel, and which of their combinations a GPU architecture allows.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <ssmjit/description.h>

namespace ssmjit {

// A compilation target, by the compiler's name.
struct Arch {
  int major = 9;
  int minor = 0;
  char suffix = 'a';  // 'a' for the architecture-specific instruction set, 0 without

  std::string text() const;  // "sm_90a"
  int number() const { return major * 10 + minor; }
  // Dynamic and static shared memory that one block may have, bytes (CUDA C++ Programming Guide, compute capabilities).
  int max_smem_bytes() const;
  bool has_bulk_copy() const { return major >= 9; }
  bool has_pdl() const { return major >= 9; }
  // Blocks that a cluster may have; 1 before sm_90.
  int max_cluster() const { return major >= 9 ? 8 : 1; }
  // Whether cubins for it have run in this project's tests; others compile and are `unverified on hardware`.
  bool verified() const { return major == 9 && minor == 0; }
  bool operator==(const Arch&) const = default;

  // "sm_90a", "90a" or "sm_120". Fails: ErrorKind::invalid, with those that are known.
  static Arch parse(std::string_view text);
  // The target for a device of this compute capability.
  static Arch of_device(int major, int minor);
  // Those the project compiles for: sm_80, 86, 89, 90a, 100a, 103a, 120a, 121a.
  static const std::vector<Arch>& known();
};

enum class StatePath { direct, cp_async, bulk };
const char* name(StatePath path);

// Which rows of a ring a kernel asks for: every row where it lies, before it knows which are in use, or those alone.
enum class RingRows { all, live };
const char* name(RingRows rows);

// How a layer is launched. fused: as one kernel. chain: its parts (layer_parts()) one behind the other in the stream.
// chain_pdl: the same, each part but the first as a programmatic dependent launch, which asks for its state and weights
// before the part in front has ended, and for what that part writes afterwards.
enum class PlanForm { fused, chain, chain_pdl };
const char* name(PlanForm form);

// The tunables of the kernels; an op's JSON file in templates/ declares each that it has, with its values and
// constraints.
struct Plan {
  int block_m = 0;          // rows of head_dim a block takes
  int warps = 0;            // warps a block
  int lanes_per_row = 0;    // lanes that share a row of dstate
  int heads_per_block = 1;  // heads a block takes one after the other
  int stages = 1;           // heads whose state is on its way or in use at once
  StatePath state_path = StatePath::direct;
  bool streaming = true;               // loads bypass the L1, stores leave the L2 first
  bool early_state = false;            // Pdl::early_state asks for the state before it waits; else it is as wait_first
  int min_blocks_per_sm = 1;           // blocks of an SM that the compiler leaves registers for; 0: its own choice
  RingRows ring_rows = RingRows::all;  // rings, and layers with one, only
  int cluster = 1;                     // layer kernels only: blocks that share the rows of a norm group
  // Replays only: of a first launch that computes what the new tokens weigh by, warps and heads a block; 0 and 0: one
  // launch does all.
  int precompute_warps = 0;
  int precompute_heads = 0;
  // Layers only. Of a chain, the fields above are those of its update or ring, and these are text() of the plans of its
  // convolution and its norm; empty: there is none.
  PlanForm form = PlanForm::fused;
  std::string conv1d{};
  std::string norm{};

  // "block_m=32,warps=4,...": every field, in the order above; those of some ops only where they are not as here. The
  // plans of a chain's parts stand in braces: "conv1d={block_m=512,...}".
  std::string text() const;
  std::string json() const;
  // Reads text(); fields left out keep `base`'s. Fails: ErrorKind::invalid, naming the field.
  static Plan parse(std::string_view text, const Plan& base);
  static Plan from_json(std::string_view text);
  bool operator==(const Plan&) const = default;
};

// Why `plan` can't compute `description` on `arch`, one sentence a reason, with the numbers; empty when it can.
std::vector<std::string> plan_problems(const Plan& plan, const Description& description, const Arch& arch);
// Fails: ErrorKind::invalid with all of plan_problems().
void check_plan(const Plan& plan, const Description& description, const Arch& arch);

// All legal plans, in a fixed order. Of a layer: those of one kernel, none where no one kernel computes it (windows
// kept for each token, accepted counts, a norm group of parts of heads' groups, or so large that no cluster takes it
// beside a ring); then one chain of each form with the parts' default plans, as far as the arch has it. Fails:
// ErrorKind::invalid for an invalid description.
std::vector<Plan> plan_space(const Description& description, const Arch& arch);
// A plan that is legal and decent everywhere: what is used where no table has an answer. Fails: ErrorKind::invalid
// where plan_space() has none.
Plan default_plan(const Description& description, const Arch& arch, std::int64_t total_heads);

// The plan of a chain of these plans, those of layer_parts() in their order; of chain_pdl, the plans of all but the
// first get early_state. Fails: ErrorKind::invalid for another number of them, and for a description that is no layer.
Plan chain_of(PlanForm form, const Description& description, const std::vector<Plan>& parts);

// chain_of() the parts' default plans for work of that many heads (work_items()). Fails: as chain_of().
Plan default_chain(PlanForm form, const Description& description, const Arch& arch, std::int64_t total_heads);

// One launch of a plan: a part of a chain, or one of a replay's two; else the plan itself.
struct PlanPart {
  Description description;
  Plan plan;
  bool is_precompute = false;  // the first of a replay's two
};
// In launch order. Fails: ErrorKind::invalid for a part's plan that is no plan.
std::vector<PlanPart> plan_parts(const Plan& plan, const Description& description);

// Launch shape of the plan's only launch; of a chain, of its update or ring; of a replay's two, of the second.
struct LaunchShape {
  std::int64_t grid_x = 0;
  std::int64_t grid_y = 0;
  int block_threads = 0;
  int smem_bytes = 0;  // dynamic
  int cluster = 1;     // blocks along x that run together
  bool operator==(const LaunchShape&) const = default;
};
LaunchShape launch_shape(const Plan& plan, const Description& description, int batch);
LaunchShape launch_shape(const PlanPart& part, int batch);

// Device memory that the caller keeps for a plan's launches, bytes; a pure function, 0 for all but chains, whose parts
// pass on x, B and C, and y, in it, and replays of two launches, which pass on the tokens' weights. It must not move
// while a captured graph uses it; launches in one stream may share it.
std::int64_t scratch_bytes(const Plan& plan, const Description& description, int batch);

// The tunables of an op as its JSON file in templates/ declares them, for docs and for `describe`.
struct Tunable {
  std::string name;
  std::string meaning;  // with its unit
  std::vector<std::string> values;
};
const std::vector<Tunable>& tunables(Op op);
// The same of a description's kernel: those of a layer with a ring are not those of one in place.
const std::vector<Tunable>& tunables(const Description& description);

}  // namespace ssmjit
