// What a consumer does first: describe a step, open a session, look up a plan, read its source.
#include <cstdio>

#include <ssmjit/ssmjit.h>

int main() {
  using namespace ssmjit;
  const Description step = mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1}).state(DType::bf16);
  step.validate();
  const Arch arch = Arch::parse("sm_90a");
  const Choice choice = Session().choose(step, 8, PdlMode::off, "h200", arch);
  const Source source = emit(step, choice.plan, arch);
  std::printf("%s: %s, %zu bytes of CUDA C++\n", step.summary().c_str(), name(choice.why), source.text.size());
  try {
    mamba2({.nheads = 0, .head_dim = 64, .dstate = 128, .ngroups = 1}).validate();
  } catch (const Error& error) {
    return error.kind() == ErrorKind::invalid && !source.text.empty() ? 0 : 1;
  }
  return 1;
}
