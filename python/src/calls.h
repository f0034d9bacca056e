// What drop-in functions call: launches found by what their tensors look like.
#pragma once

#include <tvm/ffi/tvm_ffi.h>

namespace ssmjit::python {

// [call, put, aligned] of one op. Tensors are given as a launch takes them (op_args.h), the last of them may be left
// out; those of conv1d as causal_conv1d has them, conv_state (slots, dim, state_len), x and out (batch, dim[, seqlen]).
//   call(key, pad_slot_id, pdl, flags, tensors...) launches the kernel that was put for tensors of these dtypes and
//   inner shapes, of this alignment and device, and returns 1; returns 0 and does nothing where there is none, or one
//   for fewer rows. `key` is any number that tells what the tensors do not.
//   put(prepared, key, tensors...) makes that kernel the one to call; `prepared` as Session.prepare made it.
//   aligned(tensors...) is 1 where the description may have aligned_rows.
// Dimensions from `first_dim` on are inner ones: 1, or 2 where tokens of all requests are packed behind a leading 1.
tvm::ffi::Array<tvm::ffi::Function> calls(const tvm::ffi::String& op, int64_t first_dim);

}  // namespace ssmjit::python
