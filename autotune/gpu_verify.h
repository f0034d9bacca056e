// Verification on a GPU: cases, their references and their memory are made once and serve many plans.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include <ssmjit/tune.h>

#include "autotune/compile_pool.h"
#include "autotune/kernel_case.h"
#include "autotune/verify.h"

namespace ssmjit {

class GpuVerifier {
 public:
  // Holds the measuring turn while it lives. Fails: ErrorKind::missing without a GPU or NVRTC.
  GpuVerifier(const Description& description, const VerifyOptions& options);
  ~GpuVerifier();

  // As verify(): the plans are compiled on all cores while the GPU runs those before them and other threads judge what
  // came of them.
  std::vector<Verdict> run(const std::vector<Plan>& plans);
  // Whether it compiles other plans meanwhile, for who is called back.
  bool compiling() const { return pool_ != nullptr && pool_->busy(); }

 private:
  class Memory;
  // Also for what is left of the device's memory.
  std::vector<CaseRun> run_watching_memory(const Kernel& kernel, Verdict& verdict);

  Description description_;
  VerifyOptions options_;
  std::unique_lock<std::recursive_mutex> turn_;
  DeviceFacts gpu_;
  KernelCases cases_;
  RightRuns right_;
  std::unique_ptr<Memory> memory_;
  std::unique_ptr<CompilePool> pool_;  // of run()
};

}  // namespace ssmjit
