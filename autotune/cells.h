// The measurements of journals by what they are of: what fitting and checking a table share.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include <ssmjit/measurement.h>

namespace ssmjit {

// The kernel of a table row: device, kernel digest, PDL mode.
using RowKernel = std::tuple<std::string, std::string, PdlMode>;
// Of every plan, by its text, what counts at one size.
using Cell = std::map<std::string, Measurement>;
using Cells = std::map<RowKernel, std::map<std::int64_t, Cell>>;  // by total_heads

// Which of two lines of one thing counts, in journals and tables alike: what speaks against the kernel before any
// other, a line of too little memory after any other, then the later one, of one second a failure, then whichever but
// always the same. Whether it is `b`.
bool counts_more(const Measurement& a, const Measurement& b);

// Of several lines of one plan and size one counts. Left out are phases of a ring measured alone, lines of plans that
// failed verification since, and of kernels that any line calls unsound, whenever and at whatever size. All rings
// of one kernel get the steps between flushes of its newest line, so that their weighted steps compare. Times are
// rounded as a journal holds them.
Cells cells_of(const std::vector<Measurement>& measurements);

// Whether it took a time, though of a few replays only.
bool has_time(const Measurement& m);
// Of what was timed in full; none where nothing was.
const Measurement* fastest(const Cell& cell);

// Of a plan of clusters up to how many heads it takes as many waves as at this size, in whole requests; 0: not known.
std::int64_t fits_heads(const Measurement& m);

// us as a journal writes it down: nanoseconds.
double tidy_us(double us);

}  // namespace ssmjit
