// Which plan at which size: what a sweep found, small enough to ship, read without a GPU.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/plan.h>

namespace ssmjit {

// How a step was measured: alone without programmatic dependent launch, or behind a producer with it.
enum class PdlMode { off, chain };
const char* name(PdlMode mode);
PdlMode parse_pdl_mode(std::string_view text);

// A step of one phase of a ring.
struct PhaseTime {
  double us = 0;
  double floor_us = 0;  // as TableRow::floor_us
  bool operator==(const PhaseTime&) const = default;
};

struct TableRow {
  Op op = Op::update;
  std::string device;         // device key, "h200"
  std::string kernel_digest;  // Description::kernel_digest()
  std::string cost_digest;    // Description::cost_digest()
  PdlMode pdl = PdlMode::off;
  std::int64_t total_heads = 0;  // work_items(): batch * nheads; of a convolution and a norm what their work counts
  Plan plan;
  // Up to how many heads the GPU takes the plan in as many waves as total_heads; 0: not known, as of all plans without
  // clusters. Where the next row lies above, sizes up to there take `plan`.
  std::int64_t fits_heads = 0;
  // What other sizes between this row's and the next one's take. None: the plan of the row that is nearer by ratio.
  std::optional<Plan> between;
  double us = 0;        // a step, cold state; of a ring the mean of ((n - 1) * no_flush + flush) / n
  double floor_us = 0;  // the memory floor of the same bytes, same run; 0 where not measured, or not well
  // Rings and their layers only.
  double steps_per_flush = 0;  // n
  PhaseTime no_flush, flush;
  // Provenance.
  std::string kernel;         // the description in one line
  std::string source_digest;  // of the emitted source that was measured
  std::string driver;
  std::string nvrtc;
  std::string measured;  // date
  // The plan and its time come from a model of the GPU (`table predict`), not from a measurement.
  bool predicted = false;
  bool has_ring() const { return op == Op::ring || steps_per_flush > 0; }
  bool operator==(const TableRow&) const = default;
};

struct Table {
  std::vector<TableRow> rows;

  // Sorted by device, digest, mode, total_heads; one row a line, so that a change is a readable diff. The head names
  // the op and store of all rows; where they differ, each row names its op, and steps_per_flush tells a ring.
  std::string json() const;
  // Fails: ErrorKind::invalid, naming the row and field.
  static Table from_json(std::string_view text);
  // Rows of `other` win over rows with the same key; but none that is predicted over one that was measured. A row whose
  // next one came from the other table loses its `between`.
  void merge(const Table& other);
  void sort();
  // Distinct (kernel, plan): what an engine compiles so that every size is ready.
  std::size_t plan_count() const;
};

// As a file of the table: itself, a self-contained C++17 header with a constexpr lookup, a Python module with a dict
// and a lookup. Both answer from rows of the GPU that is asked for as lookup() does: the same plan, why and time; they
// do not ask whether a plan is legal.
enum class TableFormat { json, cpp, python };
// "json", "cpp", "python". Fails: ErrorKind::invalid.
TableFormat parse_table_format(std::string_view text);
std::string emit_table(const Table& table, TableFormat format);

// How good an answer is.
// similar: measured with a kernel of the same cost_digest(). predicted: from predicted rows of this GPU, where there is
// no measured one. other_device: measured on another GPU.
enum class Why { exact, interpolated, nearest, similar, predicted, other_device, fallback };
const char* name(Why why);  // "exact", "interpolated", "nearest", "similar", "predicted", "other_device", "default"

struct Choice {
  Plan plan;
  Why why = Why::fallback;
  std::string reason;      // the same in words, with the row's sizes
  double expected_us = 0;  // of a ring the mean over its phases; 0 where nothing is known
  double floor_us = 0;
};

// At worst the default plan, saying so. A row whose plan is not legal for the description on `arch` is passed over.
// Fails: ErrorKind::invalid for a layer that has neither row nor plan (plan_space() is empty); its parts have plans.
Choice lookup(const Table& table, const Description& description, std::string_view device_key, const Arch& arch,
              std::int64_t batch, PdlMode mode = PdlMode::off);

// The chain of a layer's parts with the plans that lookup() gives each of them at this batch; `mode` is the first's.
// Fails: as chain_of().
Plan lookup_chain(const Table& table, PlanForm form, const Description& description, std::string_view device_key,
                  const Arch& arch, std::int64_t batch, PdlMode mode = PdlMode::off);
// plan_space() of a layer, where such chains, for each of `batches`, stand for those of default plans.
std::vector<Plan> layer_plans(const Table& table, const Description& description, std::string_view device_key,
                              const Arch& arch, const std::vector<int>& batches);

// The tables shipped with the library, all devices in one.
const Table& shipped_tables();
// In the order that wins: SSMJIT_TABLES (files or folders, ':' between), the user's folder, the shipped ones.
// Unreadable files are warned about and passed over.
Table load_tables();
// XDG_DATA_HOME/ssmjit/tables, else HOME/.local/share/ssmjit/tables, else empty.
std::string user_table_dir();

// The target that rows of this device were measured on; sm_90a for "h200" and "h100". Fails: ErrorKind::invalid.
Arch arch_of_device_key(std::string_view device_key);

// A line through the floor as it was measured: us = launch_us + bytes / bytes_per_us. Known for h200; zeros elsewhere.
struct FloorModel {
  double launch_us = 0;
  double bytes_per_us = 0;
};
FloorModel floor_model(std::string_view device_key);
double floor_us(const FloorModel& model, const Bytes& bytes);

// The models shipped with the library, by name ("nemotron3-super-tp8").
std::vector<std::string> shipped_models();
// Reads SPEC: a file, or a shipped model's name; in both cases with ":KERNEL" to pick one kernel.
// Fails: ErrorKind::invalid with the names that there are.
Model load_model(std::string_view spec);

}  // namespace ssmjit
