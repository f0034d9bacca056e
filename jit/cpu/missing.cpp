// The executor of a build without LLVM: says so.
#include "codegen/fail.h"
#include "jit/cpu/executor.h"

namespace ssmjit {

struct CpuProgram::Impl {};

std::string cpu_executor_missing() {
  return "this build of ssmjit has no CPU executor (SSMJIT_CPU_EXECUTOR=OFF, the default with SSMJIT_STATIC_DEPS=ON); "
         "run make deps and configure with -DSSMJIT_CPU_EXECUTOR=ON, or use a GPU";
}

CpuProgram CpuProgram::compile(const Source&, const CpuCompileOptions&) {
  fail(ErrorKind::missing, "{}", cpu_executor_missing());
}
CpuReport CpuProgram::run(const CpuLaunch&) const { fail(ErrorKind::missing, "{}", cpu_executor_missing()); }
const Arch& CpuProgram::arch() const { fail(ErrorKind::missing, "{}", cpu_executor_missing()); }

}  // namespace ssmjit
