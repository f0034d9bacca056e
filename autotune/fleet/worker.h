// The process that measures: the inside of `ssmjit worker`.
#pragma once

namespace ssmjit {

// Takes jobs from `in` and answers on `out` (wire.h) until `in` ends or a job fails with ErrorKind::machine, which may
// have broken the device for this process. Takes over set_log(). Fails: ErrorKind::machine when `out` is closed.
void work(int in, int out);

}  // namespace ssmjit
