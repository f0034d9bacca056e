// What an engine holds: it names its kernels once, at model load, and from then on launches the best one at any batch.
//
//   Session session;                                             // tables, cache, bundles; no GPU needed yet
//   Prepared step = session.prepare(description, {.max_batch = 256, .stream = stream});
//   ...
//   step.launch(args, stream);                                   // any batch of up to 256; in captured graphs too
//
// A Session serves any number of descriptions, devices and threads; a Prepared belongs to the device whose context was
// current when it was prepared. Two copies of the library in one process share nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/device.h>
#include <ssmjit/kernel.h>
#include <ssmjit/plan.h>
#include <ssmjit/prepare.h>
#include <ssmjit/ring.h>
#include <ssmjit/slots.h>
#include <ssmjit/table.h>

namespace ssmjit {

struct SessionOptions {
  // Table files or folders; the first wins, and all of them over SSMJIT_TABLES, the user's folder and the shipped ones.
  // One that can't be read is passed over with a warning.
  std::vector<std::string> tables{};
  // Folders of compiled kernels that are read and never written, the first first, before the cache: bundles (bundle.h)
  // and caches of other machines. Behind them come those of SSMJIT_SEEDS (':' between). For a kernel that a bundle
  // holds, the bundle's own table answers in place of all but `tables`, so that what is chosen is what it holds.
  std::vector<std::string> seeds{};
  std::string cache_dir{};  // the cache that is read and written; empty: default_cache_dir()
  // Never compile: prepare() fails with the list of what neither seeds nor cache hold. NVRTC is not even looked for, so
  // of caches only what this version wrote is found.
  bool no_jit = false;
  int threads = 0;  // compiles at once; 0: as many as there are cores
};

struct PrepareOptions {
  int max_batch = 256;  // rows of the largest launch, 1 to 65535
  // Which launches there will be: with Pdl::off; with Pdl::wait_first or early_state, for which tables have other rows.
  // At least one.
  bool off = true;
  bool chain = true;
  // This plan at every batch and in every mode, whatever the tables say: for debugging.
  std::optional<Plan> force{};
  void* stream = nullptr;  // the CUstream that the launches are for: no capture of it may be on, as in Kernel::load()
};

// A kernel that a Prepared holds.
struct PreparedKernel {
  Plan plan;
  Arch arch;
  int registers = 0;
  int spill_bytes = 0;
  double compile_ms = 0;    // 0: it was not compiled now
  bool from_cache = false;  // from a seed, the cache on disk, or an earlier compile of this process
  // Batches that launch it, of mode off and of mode chain, counted.
  int batches_off = 0;
  int batches_chain = 0;
};

// All kernels of one description that the tables can choose at batches of 1 to max_batch, loaded on one device. Cheap
// to copy; copies share the kernels, which live as long as one of them or the Session does. The last of these must
// outlive every launch and every graph that captured one.
class Prepared {
 public:
  // As Kernel::launch() of the plan for the batch of `args` and the mode of args.pdl: asynchronous, safe under capture
  // and from many threads; picking the kernel is one read of a table. Allocates nothing, takes no lock, compiles,
  // hashes and reads nothing. `scratch`, where scratch_bytes() is not 0, is given to every launch; a plan that has no
  // use for it ignores it. Fails: as Kernel::launch(), with the same sentences; ErrorKind::invalid for a batch above
  // max_batch or a mode that was not prepared, saying what to prepare.
  void launch(const UpdateArgs& args, void* stream) const;
  void launch(const RingArgs& args, void* stream) const;
  void launch(const Conv1dArgs& args, void* stream) const;
  void launch(const LayerArgs& args, void* stream) const;
  void launch(const NormArgs& args, void* stream) const;
  void launch(const ReplayArgs& args, void* stream) const;

  // What launch() takes for this batch and mode, how good an answer of the tables that is, and the time to expect. Not
  // for the hot path. A forced plan is Why::fallback with the reason "forced". Fails: ErrorKind::invalid for a batch
  // outside of 1 to max_batch() or a mode that was not prepared.
  Choice choose(std::int64_t batch, PdlMode mode = PdlMode::off) const;

  // Device memory that the caller gives as `scratch`, bytes: enough for every launch of up to `batch` rows (0:
  // max_batch()), in whatever mode; 0 where no plan wants any. Fails: ErrorKind::invalid for a batch out of range.
  std::int64_t scratch_bytes(std::int64_t batch = 0) const;

  const Description& description() const;
  const DeviceFacts& device() const;
  int max_batch() const;
  // Each once.
  std::vector<PreparedKernel> kernels() const;

  // All but the default constructor and assignment fail with ErrorKind::invalid for a Prepared that prepare() did not
  // make, saying so.
  Prepared() = default;

 private:
  friend class Session;
  struct State;
  explicit Prepared(std::shared_ptr<const State> state);
  std::shared_ptr<const State> state_;
};

class Session {
 public:
  // Reads tables, bundles and what the environment says of them. Needs no driver and no GPU. Fails: ErrorKind::invalid
  // for a bundle whose manifest can't be read or is of another schema, and for a negative thread count.
  explicit Session(const SessionOptions& options = {});

  // Compiles, on `threads` cores, or takes from seeds and cache, all kernels that the tables can choose, and loads them
  // on the device of the current context (device 0's primary one where none is current, which is then current for the
  // thread). The same description and options on the same device give the same handle again, at once. Slow otherwise,
  // so it belongs before a capture: ErrorKind::invalid while options.stream is being captured, saying what to prepare.
  // Fails: ErrorKind::invalid for an invalid description, options or forced plan; ErrorKind::missing without driver or
  // GPU; without NVRTC, or with no_jit, where kernels have to be compiled, naming each of them; ErrorKind::machine as
  // Kernel::load().
  Prepared prepare(const Description& description, const PrepareOptions& options = {}) const;
  // The same for all kernels of a model at once, in their order, with the same options: what has to be compiled shares
  // the cores from the first kernel to the last, where one prepare() after the other waits for the longest compile of
  // each. Fails: as prepare(), for the first that does; without a compiler the error names what all of them lack;
  // ErrorKind::invalid for a forced plan, which is of one kernel, with several descriptions.
  std::vector<Prepared> prepare_all(const std::vector<Description>& descriptions,
                                    const PrepareOptions& options = {}) const;

  // The plan that a text forces on a launch of up to `max_batch` rows (PrepareOptions::force), on the device of
  // prepare(): what it leaves out is the default plan's, not the tables', so that the same text is the same plan in C,
  // in Python and under other tables. Fails: ErrorKind::invalid for a text that is no plan, naming the field, and as
  // prepare() for the rest.
  Plan plan_of(std::string_view text, const Description& description, int max_batch = 256,
               void* stream = nullptr) const;

  // What a model needs beside its steps, from the same seeds and cache. Fail: as prepare().
  PrepareA prepare_A(void* stream = nullptr) const;
  RingSlots ring_slots(const Description& description, void* stream = nullptr) const;
  SlotCopies slot_copies(void* stream = nullptr) const;

  // The plan of a batch on a device of this key and arch, which need not be here; on the current one. Fails:
  // ErrorKind::invalid for an invalid description; the second as prepare().
  Choice choose(const Description& description, std::int64_t batch, PdlMode mode, std::string_view device_key,
                const Arch& arch) const;
  Choice choose(const Description& description, std::int64_t batch, PdlMode mode = PdlMode::off) const;

  // All tables, merged.
  const Table& table() const;
  // The cache on disk; empty: memory only.
  const std::string& cache_dir() const;

 private:
  struct State;
  std::shared_ptr<State> state_;  // shared by copies
};

}  // namespace ssmjit
