// A measurer whose kernels run in a process of their own, so that one that traps, hangs or breaks the device costs a
// journal line.
#pragma once

#include <sys/types.h>

#include <set>
#include <string>
#include <vector>

#include "autotune/fleet/measurer.h"

namespace ssmjit {

// How long a worker may say nothing, seconds.
struct Watchdog {
  double device_s = 60;  // while a kernel runs
  double host_s = 600;   // while it starts, compiles or compares
  double end_s = 30;     // until it has ended, once it was killed or closed its answers
};

class WorkerProcess : public Measurer {
 public:
  // `command`: the executable and its arguments, which speaks as work() does. It starts with the first job, or at once,
  // for its driver to wake up meanwhile. Fails: ErrorKind::missing without the GPU.
  enum class Start { with_job, now };
  WorkerProcess(int device, std::vector<std::string> command, const Watchdog& watchdog = {},
                Start when = Start::with_job);
  ~WorkerProcess() override;

  std::string name() const override;
  std::string device_key() const override { return gpu_.key; }
  OpenWork open_work(const Description& description, const TuneOptions& options,
                     const std::vector<Cell>& cells) const override {
    return open_work_on(gpu_, description, options, cells);
  }
  const DeviceFacts& gpu() const { return gpu_; }
  // A worker that dies or hangs over a plan makes the plan's line crashed or hung, and another goes on with the rest.
  // After one that crashed while several plans were compiled, the next compiles one at a time, until the plan that ends
  // it too has its line.
  // Fails: ErrorKind::machine when kDeathsAtMost workers in a row die over no plan, or kPlansAtMost over plans without
  // one that was right in between; what an invalid job fails with.
  void run(const Description& description, const TuneOptions& options) override;
  void dismiss() override;

  static constexpr int kDeathsAtMost = 3;
  static constexpr int kPlansAtMost = 32;

 private:
  struct End;  // of a job, or of the worker
  void start();
  void end_process();
  // Hands the job over and reads what comes until it ends.
  End follow(const Description& description, const TuneOptions& options, const std::vector<Measurement>& known);
  // Sends what there is to send and reads from the worker's two pipes for up to `seconds`; false when both have ended.
  bool exchange(double seconds);
  // Waits for its end for up to Watchdog::end_s; false when it lives on.
  bool ended(int& status);
  // How it ended, in words; waits for it, and ends one that only closed its pipes.
  std::string fate();

  DeviceFacts gpu_;
  std::vector<std::string> command_;
  Watchdog watchdog_;
  pid_t process_ = -1;
  int to_ = -1, from_ = -1, errors_ = -1;
  std::string to_send_;
  std::size_t sent_ = 0;        // of those bytes
  std::string heard_;           // of the worker's lines, what is not read yet
  std::string last_words_;      // the end of its stderr
  std::set<std::string> told_;  // keys of the lines it knows
  int deaths_ = 0, lost_plans_ = 0;
};

}  // namespace ssmjit
