#pragma once
// What a launch of the gated norm is given, by value, in one struct (also read by the host, so plain C++). Strides
// count elements. Pointers that the description has no use for are null.

struct NormArgs {
  const void* x;  // [batch, tokens, channels]
  long long x_stride;
  long long x_token_stride;
  const void* z;  // [batch, tokens, channels], gate
  long long z_stride;
  long long z_token_stride;
  const void* weight;  // [channels]
  const void* bias;    // [channels]
  void* out;           // [batch, tokens, channels]; may be x or z
  long long out_stride;
  long long out_token_stride;
  int channels;
  int pdl;  // 0: no wait; 1: wait, then read; 2: a kernel with kEarlyState reads weight and bias, waits, then reads the
            // rest; any other does as for 1
};
