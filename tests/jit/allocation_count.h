// How often this test program has called operator new, for claims that something allocates nothing.
#pragma once

namespace ssmjit {

long allocation_count();

}  // namespace ssmjit
