// What the launches of a source of emit_ring_slots() need to know beside its entries.
#pragma once

#include <cstddef>
#include <cstdint>

#include <ssmjit/description.h>

namespace ssmjit {

// The entries of the source, in order.
enum SlotsEntry : std::size_t { kMaterialiseEntry, kResetEntry, kCopyEntry, kSlotsEntries };

// Blocks of one layer along x of a launch that materialises; of one that resets or copies, nheads.
std::int64_t materialise_blocks(const Description& description);

}  // namespace ssmjit
