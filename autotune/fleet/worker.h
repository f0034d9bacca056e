// The process that measures: the inside of `ssmjit worker`.
#pragma once

#include <optional>

namespace ssmjit {

// Takes jobs from `in` and answers on `out` (wire.h) until `in` ends or a job fails with ErrorKind::machine, which may
// have broken the device for this process. The driver and NVRTC are opened before the first job comes
// where its `device` is known; what is wrong with them is the job's to say. Takes over set_log(). Fails:
// ErrorKind::machine when `out` is closed.
void work(int in, int out, std::optional<int> device = {});

}  // namespace ssmjit
