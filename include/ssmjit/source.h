// One kernel as CUDA C++ text: a self-contained file without a single #include.
#pragma once

#include <string>
#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/plan.h>

namespace ssmjit {

// One extern "C" kernel of a source, in launch order.
struct Entry {
  std::string name;
  int block_threads = 0;
  int smem_bytes = 0;  // dynamic
  int cluster = 1;     // blocks along x that run together
};

struct Source {
  std::string text;
  std::string digest;  // 16 hex digits of the text behind the banner
  Arch arch;
  std::vector<std::string> options;  // for the compiler, beside the architecture
  std::vector<Entry> entries;
};

// Of a chain one file with an entry a part. Fails: ErrorKind::invalid when the description or the plan is not legal.
Source emit(const Description& description, const Plan& plan, const Arch& arch);

// The kernels that move whole slots of a ring's pools (ring.h): materialise, reset, copy, in this order. Fails:
// ErrorKind::invalid for an invalid description, and for one without a ring.
Source emit_ring_slots(const Description& description, const Arch& arch);

// The kernels that prepare A (prepare.h), of A_log in fp32, bf16 and fp16, in this order.
Source emit_prepare_A(const Arch& arch);

// The kernel that copies slots of any pools (slots.h).
Source emit_slot_copies(const Arch& arch);

// What the banner of an emitted file says it is. Fails: ErrorKind::invalid when there is no banner.
struct Banner {
  Description description;
  Plan plan;
};
Banner read_banner(std::string_view source_text);

}  // namespace ssmjit
