// Where measurements come from: this process, a process of its own, or a journal.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include <ssmjit/tune.h>

namespace ssmjit {

// A batch and mode of a description.
struct Cell {
  int batch = 0;
  PdlMode mode = PdlMode::off;
};

// What of a sweep its journal lacks.
struct OpenWork {
  std::vector<Plan> plans;      // all that the sweep is about
  std::vector<Plan> to_verify;  // of those, what nothing is known of
  std::vector<Cell> cells;      // of the sweep's, in their order, those that lack a line
};

class Measurer {
 public:
  virtual ~Measurer() = default;

  // "GPU 0 (NVIDIA H200)", "journal a.jsonl".
  virtual std::string name() const = 0;
  // The kind of GPU that its lines are of.
  virtual std::string device_key() const = 0;
  // Does not touch the device. `options.known`: the journal. Only what suits one of `cells` is to be verified.
  virtual OpenWork open_work(const Description& description, const TuneOptions& options,
                             const std::vector<Cell>& cells) const = 0;
  // A job, which is a sweep of a few plans or of one cell; its lines go to options.on_measurement as they come, and
  // its callbacks are called from this thread. As sweep(), but for kernels that break what they run on.
  virtual void run(const Description& description, const TuneOptions& options) = 0;
  // From another thread: run() is to throw soon. Once and for all.
  void stop() { stopped_ = true; }
  // No more jobs come: what it holds may end, and need not be waited for yet.
  virtual void dismiss() {}

 protected:
  bool stopped() const { return stopped_; }

 private:
  std::atomic<bool> stopped_ = false;
};

// What a GPU's sweep lacks.
OpenWork open_work_on(const DeviceFacts& gpu, const Description& description, const TuneOptions& options,
                      const std::vector<Cell>& cells);

// sweep() in this process. A kernel that hangs or breaks the device ends it all.
class InProcess : public Measurer {
 public:
  // Fails: ErrorKind::missing without the GPU.
  explicit InProcess(int device);
  std::string name() const override;
  std::string device_key() const override { return gpu_.key; }
  OpenWork open_work(const Description& description, const TuneOptions& options,
                     const std::vector<Cell>& cells) const override {
    return open_work_on(gpu_, description, options, cells);
  }
  void run(const Description& description, const TuneOptions& options) override;

 private:
  DeviceFacts gpu_;
};

// What a journal holds, as if it were measured now: for tests, and to see a sweep without a GPU. Lines go by
// description and plan, whatever the source that was measured then; lines of other cells are left out.
class Recorded : public Measurer {
 public:
  // Fails: ErrorKind::invalid for a journal of several GPUs, or of none.
  Recorded(std::string name, const std::vector<Measurement>& journal);
  std::string device_key() const override { return lines_.front().device; }
  std::string name() const override { return "journal " + name_; }
  OpenWork open_work(const Description& description, const TuneOptions& options,
                     const std::vector<Cell>& cells) const override;
  void run(const Description& description, const TuneOptions& options) override;

 private:
  // Of the journal, what the job asks for and does not know.
  std::vector<const Measurement*> answers(const Description& description, const TuneOptions& options) const;

  std::string name_;
  std::vector<Measurement> lines_;
};

}  // namespace ssmjit
