// What `tune` shows on a terminal: one table, redrawn in place.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ssmjit/measurement.h>
#include <ssmjit/tune.h>

namespace ssmjit::cli {

struct LiveKernel {
  std::string label;
  std::string stage = "waiting";
  std::int64_t done = 0;
  std::int64_t total = 0;
  double remaining_s = 0;
  struct Best {
    double us = 0;
    double share = 0;
  };
  std::map<std::pair<PdlMode, int>, Best> best{};  // by mode and batch
  std::map<Outcome, int> left_out{};               // lines that have no time, by why
};

struct LiveState {
  std::string title;
  std::vector<LiveKernel> kernels{};
  std::vector<PdlMode> modes{};
  std::vector<int> batches{};
  std::size_t at = 0;     // the kernel at work
  std::string at_work{};  // the cell at work, and what came of it last
  double elapsed_s = 0;
};

void advance(LiveState& state, std::size_t kernel, const Progress& progress);
void advance(LiveState& state, std::size_t kernel, const Measurement& measurement);

// Lines of printable ASCII, each below `width` and fewer than `height` of them, so that a terminal of that size wraps
// and scrolls nothing. Times a row above shares of the floor; where there is no room beside a kernel, they stand below
// it; where there is none at all, those of the kernel at work are kept the longest.
std::vector<std::string> live_lines(const LiveState& state, int width, int height);

// Draws on the terminal `fd`. Every frame is one write that leaves the cursor shown behind the last line; SIGINT and
// SIGTERM leave it so too.
class LiveTable {
 public:
  LiveTable(LiveState state, int fd);
  ~LiveTable();
  LiveTable(const LiveTable&) = delete;
  LiveTable& operator=(const LiveTable&) = delete;

  void progress(std::size_t kernel, const Progress& progress);
  void measured(std::size_t kernel, const Measurement& measurement);
  // A line above the table; from any thread.
  void note(std::string_view line);

 private:
  void draw(bool at_once, std::string_view above = {});

  std::mutex mutex_;
  LiveState state_;
  const int fd_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  double drawn_s_ = -1;
  std::vector<std::string> frame_;
};

// Whether stderr is a terminal that can be redrawn.
bool can_draw_live();

}  // namespace ssmjit::cli
