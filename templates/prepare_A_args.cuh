#pragma once
// What a launch that prepares A is given, by value, in one struct (also read by the host, so plain C++).

struct PrepareAArgs {
  const void* A_log;  // [count]
  float* A;           // [count]
  int count;
};
