#include <algorithm>
#include <charconv>

#include <ssmjit/plan.h>

#include "codegen/fail.h"

namespace ssmjit {
namespace {

// CUDA C++ Programming Guide, "Technical Specifications per Compute Capability": shared memory a block may have, in
// KiB.
struct SharedMemory {
  int number;
  int block_kib;
};
constexpr SharedMemory kSharedMemory[] = {{80, 163},  {86, 99},   {89, 99},  {90, 227},
                                          {100, 227}, {103, 227}, {120, 99}, {121, 99}};

const SharedMemory& shared_memory(const Arch& arch) {
  for (const SharedMemory& s : kSharedMemory)
    if (s.number == arch.number()) return s;
  fail(ErrorKind::invalid, "arch: got {}; known are sm_80, sm_86, sm_89, sm_90a, sm_100a, sm_103a, sm_120a, sm_121a",
       arch.text());
}

}  // namespace

std::string Arch::text() const {
  std::string s = fmt::format("sm_{}", number());
  if (suffix != 0) s += suffix;
  return s;
}

int Arch::max_smem_bytes() const { return shared_memory(*this).block_kib * 1024; }

const std::vector<Arch>& Arch::known() {
  static const std::vector<Arch> all{{8, 0, 0},    {8, 6, 0},    {8, 9, 0},    {9, 0, 'a'},
                                     {10, 0, 'a'}, {10, 3, 'a'}, {12, 0, 'a'}, {12, 1, 'a'}};
  return all;
}

Arch Arch::parse(std::string_view text) {
  std::string_view rest = text;
  if (rest.starts_with("sm_")) rest.remove_prefix(3);
  Arch arch;
  arch.suffix = 0;
  if (!rest.empty() && rest.back() == 'a') {
    arch.suffix = 'a';
    rest.remove_suffix(1);
  }
  int number = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), number);
  if (error == std::errc() && end == rest.data() + rest.size()) {
    arch.major = number / 10;
    arch.minor = number % 10;
    const bool specific = arch.major >= 9;
    for (const Arch& k : known())
      if (k.number() == number && (arch.suffix == 0 || specific)) return arch;
  }
  fail(ErrorKind::invalid,
       "arch: got \"{}\"; known are sm_80, sm_86, sm_89, sm_90a, sm_100a, sm_103a, sm_120a, sm_121a", text);
}

Arch Arch::of_device(int major, int minor) {
  for (const Arch& k : known())
    if (k.major == major && k.minor == minor) return k;
  // A later member of a family runs what was compiled for an earlier one, without the architecture-specific suffix.
  for (auto k = known().rbegin(); k != known().rend(); ++k)
    if (k->major == major && k->minor < minor) return {k->major, k->minor, 0};
  fail(ErrorKind::missing, "device: compute capability {}.{} has no target here; known are 8.0 to 12.1", major, minor);
}

const char* name(StatePath path) {
  switch (path) {
    case StatePath::direct:
      return "direct";
    case StatePath::cp_async:
      return "cp_async";
    case StatePath::bulk:
      return "bulk";
  }
  return "?";
}

const char* name(PlanForm form) {
  switch (form) {
    case PlanForm::fused:
      return "fused";
    case PlanForm::chain:
      return "chain";
    case PlanForm::chain_pdl:
      return "chain_pdl";
  }
  return "?";
}

const char* name(RingRows rows) {
  switch (rows) {
    case RingRows::all:
      return "all";
    case RingRows::live:
      return "live";
  }
  return "?";
}

}  // namespace ssmjit
