// Whether a kernel is right at the size it is timed at: sampled (request, head) pairs of a layer in double, and the
// same bits from every launch.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>

#include <ssmjit/kernel.h>
#include <ssmjit/measurement.h>

#include "autotune/layers.h"

namespace ssmjit {

class SpotCheck {
 public:
  // Of layer 0, from its seeded contents; of a ring in the phase that `layers` has entered, which they must be in
  // whenever a kernel is checked.
  static std::unique_ptr<SpotCheck> make(const Description& description, const Layers& layers, const Stream& stream,
                                         std::uint64_t seed);
  virtual ~SpotCheck() = default;

  // Empty, or what was wrong; `outcome` says of which kind. Leaves the layer as the kernel did.
  std::string run(const Kernel& kernel, Outcome& outcome);

 protected:
  SpotCheck(const Layers& layers, const Stream& stream, int launches)
      : layers_(layers), stream_(stream), launches_(launches) {}
  // What layer 0 holds after a launch: empty, or what is wrong with it.
  virtual std::string judge_layer() const = 0;

 private:
  const Layers& layers_;
  const Stream& stream_;
  int launches_;
  std::set<std::uint64_t> right_;  // hashes of contents that were judged and found right
};

}  // namespace ssmjit
