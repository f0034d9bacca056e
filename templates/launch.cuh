#pragma once
// What a launch is told beside its tensors.

// What the output row of a pad request holds (templates/index.cuh says which requests are pads).
enum class PadOutput { zeros, untouched, as_if_zero_state };
// Programmatic dependent launch: how far a kernel may come before the launch in front of it has ended.
enum : int { kPdlOff = 0, kPdlWaitFirst = 1, kPdlEarlyState = 2 };
