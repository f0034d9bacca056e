// The table that tune redraws on a terminal: as text at several sizes, and once under a pseudo-terminal.
#include "cli/live_table.h"

#include <pty.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ssmjit::cli {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::SizeIs;

// Measured on an H200: a ring and an update, two modes, batches 1, 8, 64, 512.
const std::vector<Measurement>& recorded() {
  static const std::vector<Measurement> all = [] {
    std::ifstream file(SSMJIT_SOURCE_DIR "/tests/vectors/journals/report-h200.jsonl", std::ios::binary);
    return parse_journal(std::string{std::istreambuf_iterator<char>(file), {}});
  }();
  return all;
}
std::size_t kernel_of(const Measurement& m) { return m.op == Op::ring ? 1 : 0; }

LiveState fresh(const std::vector<PdlMode>& modes = {PdlMode::off}) {
  LiveState state{.title = "tune on NVIDIA H200", .modes = modes, .batches = {1, 8, 64, 512}};
  state.kernels = {{.label = "nemotron3-nano-30b-tp1:update"}, {.label = "nemotron3-super-tp8:ring"}};
  return state;
}
// The whole journal told, the sweep at its last kernel.
LiveState told(const std::vector<PdlMode>& modes = {PdlMode::off}) {
  LiveState state = fresh(modes);
  for (const std::size_t kernel : {0, 1}) {
    advance(state, kernel, Progress{"verify", 12, 264, 3, 60});
    for (const Measurement& m : recorded())
      if (kernel_of(m) == kernel) advance(state, kernel, m);
    advance(state, kernel, Progress{"batch 512 off", kernel == 0 ? 4 : 3, 4, 70, kernel == 0 ? 0.0 : 83});
  }
  state.elapsed_s = 3671;
  return state;
}
std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  return text;
}
const LiveKernel::Best& best(const LiveState& state, std::size_t kernel, PdlMode mode, int batch) {
  return state.kernels[kernel].best.at({mode, batch});
}

TEST(LiveTable, KnowsTheBestOfEachCellAndWhatHasNoTime) {
  const LiveState state = told();
  std::map<std::tuple<std::size_t, PdlMode, int>, double> least;
  for (const Measurement& m : recorded()) {
    if (m.outcome != Outcome::ok) continue;
    const auto [at, added] = least.emplace(std::tuple(kernel_of(m), m.pdl, m.batch), m.us);
    if (!added) at->second = std::min(at->second, m.us);
  }
  EXPECT_EQ(least.size(), 16u);
  for (const auto& [cell, us] : least)
    EXPECT_EQ(best(state, std::get<0>(cell), std::get<1>(cell), std::get<2>(cell)).us, us);
  EXPECT_EQ(state.kernels[1].left_out.at(Outcome::spills), 3);
  EXPECT_FALSE(state.kernels[1].left_out.contains(Outcome::dropped)) << "slower has a time";
}

TEST(LiveTable, ShowsASizeBetweenThoseThatWereAskedForInItsPlace) {
  LiveState state = fresh();
  Measurement m = recorded().front();
  m.outcome = Outcome::ok;
  m.us = 7.25;
  for (const int batch : {24, 24, 700}) {
    m.batch = batch;
    advance(state, 0, m);
  }
  EXPECT_THAT(state.batches, testing::ElementsAre(1, 8, 24, 64, 512, 700));
  EXPECT_THAT(joined(live_lines(state, 200, 30)), HasSubstr("7.25"));
}

TEST(LiveTable, NeverWrapsNorScrollsAtAnySize) {
  for (const LiveState& state : {fresh(), told(), told({PdlMode::off, PdlMode::chain})})
    for (int width = 1; width < 220; ++width)
      for (int height : {1, 2, 3, 5, 10, 24, 60}) {
        const std::vector<std::string> lines = live_lines(state, width, height);
        EXPECT_LT(lines.size(), static_cast<std::size_t>(std::max(height, 2))) << width << " x " << height;
        for (const std::string& line : lines) {
          EXPECT_LT(line.size(), static_cast<std::size_t>(std::max(width, 2))) << width << " x " << height;
          for (const char c : line) EXPECT_TRUE(c >= ' ' && c <= '~');
        }
      }
}

TEST(LiveTable, IsARowAKernelWhereThereIsRoom) {
  const LiveState state = told();
  const std::string us =
      fmt::format("{:8.2f}{:8.2f}", best(state, 1, PdlMode::off, 1).us, best(state, 1, PdlMode::off, 8).us);
  const std::string share = fmt::format("{:7.0f}%{:7.0f}%", 100 * best(state, 1, PdlMode::off, 1).share,
                                        100 * best(state, 1, PdlMode::off, 8).share);
  const std::vector<std::string> lines = live_lines(state, 120, 24);
  ASSERT_THAT(lines, SizeIs(7)) << joined(lines);
  EXPECT_EQ(lines[0], "tune on NVIDIA H200  1h01m");
  EXPECT_THAT(lines[1], AllOf(HasSubstr("kernel"), HasSubstr("stage"), HasSubstr("done"), HasSubstr("left"),
                              HasSubstr("       1       8      64     512")));
  EXPECT_THAT(lines[4], AllOf(HasSubstr("nemotron3-super-tp8:ring"), HasSubstr("batch 512 off"), HasSubstr("3/4"),
                              HasSubstr("1m23s"), HasSubstr(us)));
  EXPECT_THAT(lines[5], AllOf(HasSubstr("left out: 3 spills"), HasSubstr(share)));
  EXPECT_EQ(lines[4].size(), lines[1].size()) << "columns stand below their headings";
  EXPECT_EQ(lines[5].size(), lines[1].size());
}

TEST(LiveTable, PutsTheTimesBelowTheKernelWhereThereIsNoRoomBesideIt) {
  const std::vector<std::string> lines = live_lines(told(), 60, 40);
  EXPECT_THAT(lines, Contains("  batch        1       8      64     512")) << joined(lines);
  EXPECT_THAT(lines, Contains(testing::StartsWith("  share  "))) << joined(lines);
  EXPECT_THAT(lines, Contains("  left out: 3 spills"));
  // 512 goes to a second line of batches.
  EXPECT_THAT(live_lines(told(), 34, 60), Contains("  batch      512"));
}

TEST(LiveTable, OfSeveralModesEachHasItsTimes) {
  for (const int width : {60, 140}) {
    const std::string text = joined(live_lines(told({PdlMode::off, PdlMode::chain}), width, 40));
    for (const PdlMode mode : {PdlMode::off, PdlMode::chain})
      EXPECT_THAT(text, HasSubstr(fmt::format("{:8.2f}", best(told(), 1, mode, 512).us))) << text;
    EXPECT_THAT(text, AllOf(HasSubstr("chain "), HasSubstr("off "))) << text;
  }
}

TEST(LiveTable, KeepsTheKernelAtWorkWhereTheTerminalIsLow) {
  const LiveState state = told();
  const std::vector<std::string> lines = live_lines(state, 60, 10);
  EXPECT_THAT(lines, Contains(HasSubstr("nemotron3-super-tp8:ring"))) << joined(lines);
  EXPECT_THAT(lines, Contains(HasSubstr(fmt::format("{:.2f}", best(state, 1, PdlMode::off, 8).us)))) << joined(lines);
  LiveState many = told();
  for (int i = 0; i < 60; ++i) many.kernels.push_back({.label = "kernel" + std::to_string(i)});
  advance(many, 40, Progress{"verify", 1, 2, 0, 0});
  EXPECT_THAT(live_lines(many, 80, 12), Contains(HasSubstr("kernel38"))) << joined(live_lines(many, 80, 12));
  EXPECT_THAT(live_lines(many, 80, 12).back(), HasSubstr("kernel38  verify"));
}

TEST(LiveTable, NamesTheCellAtWork) {
  LiveState state = fresh();
  Measurement m = recorded().back();
  m.batch = 64;
  m.us = 9.019;
  m.pdl = PdlMode::chain;
  m.outcome = Outcome::dropped;
  advance(state, 1, m);
  EXPECT_EQ(live_lines(state, 200, 24).back(), "nemotron3-super-tp8:ring  batch 64 chain  9.02 us  " + m.plan.text());
}

TEST(LiveTable, ALabelCannotSendTheTerminalCommands) {
  LiveState state = fresh();
  state.kernels[0].label = "\033[2Jgone\r\n\xc3\xa4";
  advance(state, 0, Progress{"\033[31mverify", 1, 2, 0, 0});
  EXPECT_THAT(joined(live_lines(state, 120, 24)), AllOf(HasSubstr("?[2Jgone????"), Not(HasSubstr("\033"))));
}

// ---- under a pseudo-terminal ----

// A terminal of so many columns and rows that knows what the table writes.
class Screen {
 public:
  Screen(int width, int height) : rows_(static_cast<std::size_t>(height)), width_(static_cast<std::size_t>(width)) {}
  void write(const std::string& text) {
    for (std::size_t i = 0; i < text.size(); ++i) {
      if (text[i] == '\r') {
        x_ = 0;
      } else if (text[i] == '\n') {
        down();
      } else if (text[i] == '\033') {
        const std::size_t end = text.find_first_of("AJKmhl", i);
        command(text.substr(i + 2, end - i - 2), text[end]);
        i = end;
      } else {
        if (x_ >= width_) {
          wrapped = true;
          x_ = 0;
          down();
        }
        std::string& row = rows_[y_];
        if (row.size() <= x_) row.resize(x_ + 1, ' ');
        row[x_++] = text[i];
      }
    }
  }
  std::string text() const { return joined(rows_); }
  const std::vector<std::string>& rows() const { return rows_; }

  bool wrapped = false, cursor_shown = true, dim = false;

 private:
  void down() {
    if (++y_ < rows_.size()) return;
    rows_.erase(rows_.begin());
    rows_.emplace_back();
    --y_;
  }
  void command(const std::string& argument, char letter) {
    if (letter == 'A') y_ -= std::min(y_, static_cast<std::size_t>(std::stoi(argument)));
    if (letter == 'K' || letter == 'J') rows_[y_].resize(std::min(rows_[y_].size(), x_));
    if (letter == 'J') std::fill(rows_.begin() + static_cast<std::ptrdiff_t>(y_) + 1, rows_.end(), "");
    if (letter == 'm') dim = argument == "2";
    if (argument == "?25") cursor_shown = letter == 'h';
  }
  std::vector<std::string> rows_;
  std::size_t width_, x_ = 0, y_ = 0;
};

class LiveTerminal : public testing::Test {
 protected:
  // What a child on a terminal of 100 x 24 writes; `at_end` runs in the parent once `until` was written.
  std::string watch(void (*child)(), const std::string& until = {}, void (*then)(int terminal, pid_t child) = nullptr) {
    winsize size{.ws_row = 24, .ws_col = 100, .ws_xpixel = 0, .ws_ypixel = 0};
    int terminal = -1;
    const pid_t pid = forkpty(&terminal, nullptr, nullptr, &size);
    if (pid == 0) {
      child();
      _exit(0);
    }
    EXPECT_GT(pid, 0);
    std::string text;
    char buffer[4096];
    bool done = until.empty();
    for (ssize_t got; (got = read(terminal, buffer, sizeof buffer)) > 0;) {  // EIO once the child is gone
      text.append(buffer, static_cast<std::size_t>(got));
      if (done || text.find(until) == std::string::npos) continue;
      done = true;
      then(terminal, pid);
    }
    EXPECT_TRUE(done) << text;
    waitpid(pid, &status_, 0);
    close(terminal);
    return text;
  }
  int status_ = 0;
};

void tell_the_journal(LiveTable& table) {
  for (const std::size_t kernel : {0, 1}) {
    for (const Measurement& m : recorded())
      if (kernel_of(m) == kernel) table.measured(kernel, m);
    table.progress(kernel, Progress{"batch 512 off", 4, 4, 1, 0});
  }
}

TEST_F(LiveTerminal, IsRedrawnInPlaceAndLeavesItsLastFrame) {
  const std::string text = watch([] {
    LiveTable table(fresh(), STDERR_FILENO);
    tell_the_journal(table);
    table.note("warning: the floor was not measured well");
  });
  Screen screen(100, 24);
  screen.write(text);
  EXPECT_FALSE(screen.wrapped);
  EXPECT_TRUE(screen.cursor_shown);
  EXPECT_FALSE(screen.dim);
  EXPECT_EQ(screen.rows()[0], "warning: the floor was not measured well") << screen.text();
  EXPECT_THAT(screen.rows()[1], testing::StartsWith("tune on NVIDIA H200"));
  const std::string shown = screen.text();
  EXPECT_EQ(shown.find("tune on"), shown.rfind("tune on")) << "one table:\n" << shown;
  EXPECT_THAT(shown, AllOf(HasSubstr("4/4"), HasSubstr("left out: 3 spills"),
                           HasSubstr(fmt::format("{:.2f}", best(told(), 1, PdlMode::off, 64).us))));
}

TEST_F(LiveTerminal, FollowsTheTerminalsWidth) {
  const std::string text = watch([] {
    LiveTable table(fresh(), STDERR_FILENO);
    winsize narrow{.ws_row = 24, .ws_col = 50, .ws_xpixel = 0, .ws_ypixel = 0};
    ioctl(STDERR_FILENO, TIOCSWINSZ, &narrow);
    table.note("now narrow");
    tell_the_journal(table);
  });
  Screen screen(50, 24);
  screen.write(text.substr(text.find("now narrow")));
  EXPECT_FALSE(screen.wrapped) << screen.text();
}

TEST_F(LiveTerminal, AnInterruptLeavesItSane) {
  const std::string text = watch(
      [] {
        LiveTable table(fresh(), STDERR_FILENO);
        for (;;) {
          tell_the_journal(table);
          usleep(1000);
        }
      },
      "batch 512 off", [](int terminal, pid_t) { EXPECT_EQ(write(terminal, "\x03", 1), 1); });
  EXPECT_TRUE(WIFSIGNALED(status_));
  EXPECT_EQ(WTERMSIG(status_), SIGINT);
  EXPECT_THAT(text, EndsWith("\033[0m\033[?25h\r\r\n"));
}

}  // namespace
}  // namespace ssmjit::cli
