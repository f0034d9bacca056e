#pragma once
// What a kernel is compiled for and told, beside its sizes and tensors.

// How the state comes to the lane that uses it; each kernel says what it makes of these.
enum class StatePath { direct, cp_async, bulk };
// What the output row of a pad request holds.
enum class PadOutput { zeros, untouched, as_if_zero_state };
// Programmatic dependent launch: how far a kernel may come before the launch in front of it has ended.
enum : int { kPdlOff = 0, kPdlWaitFirst = 1, kPdlEarlyState = 2 };
