#include "cli/live_table.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <iterator>

#include <fmt/format.h>

namespace ssmjit::cli {
namespace {

constexpr double kRedraw_s = 0.1;
constexpr int kCell = 8;  // columns of a batch

// Without what would move the cursor or take other than one column.
std::string printable(std::string_view text) {
  std::string clean;
  for (const char c : text) clean += c >= ' ' && c <= '~' ? c : '?';
  return clean;
}
// At most `width` columns.
std::string cut(std::string text, int width) {
  const auto room = static_cast<std::size_t>(std::max(width, 0));
  if (text.size() <= room) return text;
  text.resize(room);
  if (room > 4) text.replace(room - 2, 2, "..");
  return text;
}
std::string column(const std::string& text, int width) { return fmt::format("{:<{}}", cut(text, width), width); }

std::string duration(double seconds) {
  const auto s = static_cast<std::int64_t>(seconds + 0.5);
  if (s < 60) return fmt::format("{}s", s);
  if (s < 3600) return fmt::format("{}m{:02}s", s / 60, s % 60);
  return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
}

std::string us_text(double us) { return fmt::format("{:.{}f}", us, us < 100 ? 2 : us < 1000 ? 1 : 0); }

std::string failures(const LiveKernel& kernel) {
  std::string text;
  for (const auto& [outcome, count] : kernel.failed)
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", count, name(outcome));
  return text;
}

// Of `batches` from `first` on, `count` of them: the times and shares of a mode.
std::pair<std::string, std::string> cells(const LiveKernel& kernel, PdlMode mode, const std::vector<int>& batches,
                                          std::size_t first, std::size_t count) {
  std::string us, share;
  for (std::size_t i = first; i < std::min(batches.size(), first + count); ++i) {
    const auto best = kernel.best.find({mode, batches[i]});
    const bool known = best != kernel.best.end();
    us += fmt::format("{:>{}}", known ? us_text(best->second.us) : "-", kCell);
    share += fmt::format("{:>{}}", known ? fmt::format("{:.0f}%", 100 * best->second.share) : "", kCell);
  }
  return {us, share};
}
std::string batch_cells(const std::vector<int>& batches, std::size_t first, std::size_t count) {
  std::string text;
  for (std::size_t i = first; i < std::min(batches.size(), first + count); ++i)
    text += fmt::format("{:>{}}", batches[i], kCell);
  return text;
}

struct Widths {
  int label = 0, stage = 0, done = 0, left = 0, mode = 0;
  int head() const { return label + stage + done + left + 3; }
};

std::string head(const LiveKernel& kernel, const Widths& w) {
  const std::string done = kernel.total > 0 ? fmt::format("{}/{}", kernel.done, kernel.total) : "";
  const std::string left = kernel.remaining_s > 0 ? duration(kernel.remaining_s) : "";
  return fmt::format("{} {} {:>{}} {:>{}}", column(printable(kernel.label), w.label),
                     column(printable(kernel.stage), w.stage), cut(done, w.done), w.done, cut(left, w.left), w.left);
}

}  // namespace

void advance(LiveState& state, std::size_t kernel, const Progress& progress) {
  LiveKernel& of = state.kernels.at(kernel);
  of.stage = progress.stage;
  of.done = progress.done;
  of.total = progress.total;
  of.remaining_s = progress.remaining_s;
  state.at = kernel;
  state.at_work = of.label + "  " + progress.stage;
}

void advance(LiveState& state, std::size_t kernel, const Measurement& m) {
  LiveKernel& of = state.kernels.at(kernel);
  if (m.outcome == Outcome::ok && m.batch > 0 && m.us > 0) {
    LiveKernel::Best& best = of.best[{m.pdl, m.batch}];
    if (best.us == 0 || m.us < best.us) best = {m.us, m.share};
  } else if (m.outcome != Outcome::ok && m.outcome != Outcome::dropped) {
    ++of.failed[m.outcome];
  }
  state.at = kernel;
  const std::string cell = m.batch > 0 ? fmt::format("batch {} {}", m.batch, name(m.pdl)) : m.phase;
  const std::string result = m.us > 0 ? fmt::format("{} us", us_text(m.us)) : name(m.outcome);
  state.at_work = fmt::format("{}  {}  {}  {}", of.label, cell, result, m.plan.text());
}

std::vector<std::string> live_lines(const LiveState& state, int width, int height) {
  const int room = std::max(width - 1, 1);  // a full line would wrap on some terminals
  Widths w{.stage = 14, .done = 9, .left = 7, .mode = state.modes.size() > 1 ? 6 : 0};
  for (const LiveKernel& kernel : state.kernels)
    w.label = std::clamp(static_cast<int>(kernel.label.size()), std::max(w.label, 6), 40);
  const std::size_t count = state.batches.size();
  const bool beside = w.head() + w.mode + kCell * static_cast<int>(count) <= room;
  if (!beside) w.label = std::max(std::min(w.label, room - (w.head() - w.label)), 6);

  const auto mode_name = [&](PdlMode mode) { return w.mode > 0 ? column(name(mode), w.mode) : std::string(); };
  // All of a kernel, or its first line only.
  const auto block = [&](const LiveKernel& kernel, bool whole) {
    std::vector<std::string> lines;
    const std::string failed = failures(kernel).empty() ? "" : "  failed: " + failures(kernel);
    if (beside) {
      std::string left = head(kernel, w);
      std::string below = column(failed, w.head());
      for (PdlMode mode : state.modes) {
        const auto [us, share] = cells(kernel, mode, state.batches, 0, count);
        lines.push_back(left + mode_name(mode) + us);
        if (!whole) break;
        lines.push_back(below + mode_name(mode).replace(0, std::string::npos, static_cast<std::size_t>(w.mode), ' ') +
                        share);
        left = below = std::string(static_cast<std::size_t>(w.head()), ' ');
      }
      return lines;
    }
    lines.push_back(head(kernel, w));
    if (!failed.empty()) lines.push_back(failed);
    if (!whole) return lines;
    const int indent = 8 + w.mode;
    const auto fit = static_cast<std::size_t>(std::max((room - indent) / kCell, 1));
    for (std::size_t first = 0; first < count && !kernel.best.empty(); first += fit) {
      lines.push_back(column("  batch", indent) + batch_cells(state.batches, first, fit));
      for (PdlMode mode : state.modes) {
        const auto [us, share] = cells(kernel, mode, state.batches, first, fit);
        lines.push_back(column("  us", 8) + mode_name(mode) + us);
        lines.push_back(column("  share", indent) + share);
      }
    }
    return lines;
  };

  std::vector<std::string> lines;
  // Which kernels are shown whole: all, the one at work, none.
  for (int level = 0; level < 3; ++level) {
    lines = {fmt::format("{}  {}", printable(state.title), duration(state.elapsed_s))};
    Widths titles = w;
    const LiveKernel heading{.label = "kernel", .stage = "stage"};
    std::string columns = head(heading, titles);
    columns.replace(columns.size() - static_cast<std::size_t>(w.left + 1 + w.done), std::string::npos,
                    fmt::format("{:>{}} {:>{}}", "done", w.done, "left", w.left));
    if (beside) columns += column("", w.mode) + batch_cells(state.batches, 0, count);
    lines.push_back(columns);
    for (std::size_t k = 0; k < state.kernels.size(); ++k) {
      const std::vector<std::string> of = block(state.kernels[k], level == 0 || (level == 1 && k == state.at));
      lines.insert(lines.end(), of.begin(), of.end());
    }
    lines.push_back(printable(state.at_work));
    if (static_cast<int>(lines.size()) < height) break;
  }
  if (const auto most = static_cast<std::size_t>(std::max(height - 1, 1)); lines.size() > most) {
    // The kernel at work is in the last lines of those that stay, or they are the first.
    const std::string last = lines.back();
    const std::size_t shown = most - 1;
    const std::size_t first = std::min(state.at + 3 > shown ? state.at + 3 - shown : 0, lines.size() - 1 - shown);
    lines = {lines.begin() + static_cast<std::ptrdiff_t>(first),
             lines.begin() + static_cast<std::ptrdiff_t>(first + shown)};
    lines.push_back(last);
  }
  for (std::string& line : lines) line = cut(std::move(line), room);
  return lines;
}

// ---- the terminal ----

namespace {

struct Size {
  int width = 80, height = 24;
};
Size size_of(int fd) {
  Size size;
  winsize window{};
  if (ioctl(fd, TIOCGWINSZ, &window) == 0 && window.ws_col > 0) {
    size.width = window.ws_col;
    if (window.ws_row > 0) size.height = window.ws_row;
    return size;
  }
  const auto variable = [](const char* name, int& value) {
    const char* text = std::getenv(name);
    if (text != nullptr && std::atoi(text) > 0) value = std::atoi(text);
  };
  variable("COLUMNS", size.width);
  variable("LINES", size.height);
  return size;
}

void write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = write(fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return;  // a terminal that is gone: the sweep goes on
    text.remove_prefix(static_cast<std::size_t>(written));
  }
}

// A signal that ends the process in the middle of a frame: cursor and colours as they were, the prompt on a line of its
// own, then what the signal did before.
constexpr int kSignals[] = {SIGINT, SIGTERM};
volatile sig_atomic_t drawn_on = -1;
struct sigaction before[std::size(kSignals)];

void leave(int signal) {
  static constexpr char kSane[] = "\033[0m\033[?25h\r\n";
  if (drawn_on >= 0) [[maybe_unused]]
    const ssize_t written = write(drawn_on, kSane, sizeof kSane - 1);
  for (std::size_t i = 0; i < std::size(kSignals); ++i)
    if (kSignals[i] == signal) sigaction(signal, &before[i], nullptr);
  raise(signal);
}

}  // namespace

LiveTable::LiveTable(LiveState state, int fd) : state_(std::move(state)), fd_(fd) {
  drawn_on = fd;
  for (std::size_t i = 0; i < std::size(kSignals); ++i) {
    sigaction(kSignals[i], nullptr, &before[i]);
    if ((before[i].sa_flags & SA_SIGINFO) == 0 && before[i].sa_handler == SIG_IGN) continue;
    struct sigaction ours {};
    ours.sa_handler = leave;
    sigemptyset(&ours.sa_mask);
    sigaction(kSignals[i], &ours, nullptr);
  }
  draw(true);
}

LiveTable::~LiveTable() {
  const std::lock_guard lock(mutex_);
  state_.at_work.clear();
  draw(true);
  write_all(fd_, "\r\n");
  for (std::size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &before[i], nullptr);
  drawn_on = -1;
}

void LiveTable::progress(std::size_t kernel, const Progress& progress) {
  const std::lock_guard lock(mutex_);
  advance(state_, kernel, progress);
  draw(false);
}

void LiveTable::measured(std::size_t kernel, const Measurement& measurement) {
  const std::lock_guard lock(mutex_);
  advance(state_, kernel, measurement);
  draw(false);
}

void LiveTable::note(std::string_view line) {
  const std::lock_guard lock(mutex_);
  draw(true, line);
}

void LiveTable::draw(bool at_once, std::string_view above) {
  state_.elapsed_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  if (!at_once && drawn_s_ >= 0 && state_.elapsed_s - drawn_s_ < kRedraw_s) return;
  drawn_s_ = state_.elapsed_s;
  const Size size = size_of(fd_);
  // A terminal that became narrower has wrapped the last frame's lines.
  int up = -1;
  for (const std::string& line : frame_) up += std::max(0, static_cast<int>(line.size()) - 1) / size.width + 1;
  std::string text = "\033[?25l\r";
  if (up > 0) text += fmt::format("\033[{}A", std::min(up, size.height - 1));
  if (!above.empty()) text += fmt::format("{}\033[K\r\n", above);
  frame_ = live_lines(state_, size.width, size.height);
  for (std::size_t i = 0; i < frame_.size(); ++i) {
    const bool dim = i == 1 || i + 1 == frame_.size();
    text += fmt::format("{}{}{}\033[K{}", dim ? "\033[2m" : "", frame_[i], dim ? "\033[0m" : "",
                        i + 1 < frame_.size() ? "\r\n" : "");
  }
  write_all(fd_, text + "\033[J\033[?25h");
}

bool can_draw_live() {
  const char* terminal = std::getenv("TERM");
  return isatty(STDERR_FILENO) != 0 && terminal != nullptr && *terminal != 0 && std::string_view(terminal) != "dumb";
}

}  // namespace ssmjit::cli
