// How findings read.
#include <fmt/format.h>

#include "codegen/fail.h"
#include "jit/cpu/executor.h"

namespace ssmjit {

const char* name(CpuSchedule schedule) {
  static constexpr const char* kNames[] = {"forward", "reverse", "random"};
  return kNames[static_cast<int>(schedule)];
}

CpuSchedule parse_cpu_schedule(std::string_view text) {
  for (CpuSchedule schedule : {CpuSchedule::forward, CpuSchedule::reverse, CpuSchedule::random})
    if (text == name(schedule)) return schedule;
  fail(ErrorKind::invalid, "schedule: got {}; wants forward, reverse or random", in_quotes(text));
}

const char* name(CpuFault fault) {
  static constexpr const char* kNames[] = {"race",       "unwaited copy",   "uninitialised", "out of bounds",
                                           "misaligned", "before the wait", "divergent",     "deadlock",
                                           "endless",    "misuse"};
  return kNames[static_cast<int>(fault)];
}

std::string CpuFinding::text() const {
  std::string s = fmt::format("{}:{}: {}: in kernel {}, thread {} of block ({}, {}) {}", file, line, name(fault),
                              kernel, thread, block_x, block_y, what);
  if (!buffer.empty()) s += fmt::format(", at byte {} of {}", offset, buffer);
  return s;
}

}  // namespace ssmjit
