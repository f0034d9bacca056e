// bench --speculative: forms of verifying drafts, held against each other.
#pragma once

#include <string>

#include "cli/verb.h"

namespace ssmjit::cli {

struct SpeculativeBench {
  Description base;
  std::string label;
  std::string batches, tokens, forms, acceptance, accepted, pdl;
  int window = 16;
  int device = 0;
  bool json = false;
};

int bench_speculative(const SpeculativeBench& bench);

}  // namespace ssmjit::cli
