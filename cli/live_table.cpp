#include "cli/live_table.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <iterator>
#include <span>

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

std::string left_out(const LiveKernel& kernel) {
  std::string text;
  for (const auto& [outcome, count] : kernel.left_out)
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", count, name(outcome));
  return text;
}

// How wide the columns are; those of a batch are kCell.
struct Layout {
  int room = 0;  // columns of a line
  int label = 0, stage = 14, done = 9, left = 7, mode = 0;
  bool beside = false;  // times stand beside the kernel, not below it

  int head() const { return label + stage + done + left + 3; }
};

Layout layout_of(const LiveState& state, int width) {
  Layout layout{.room = std::max(width - 1, 1)};  // a full line would wrap on some terminals
  if (state.modes.size() > 1) layout.mode = 6;
  for (const LiveKernel& kernel : state.kernels)
    layout.label = std::clamp(static_cast<int>(kernel.label.size()), std::max(layout.label, 6), 40);
  layout.beside = layout.head() + layout.mode + kCell * static_cast<int>(state.batches.size()) <= layout.room;
  if (!layout.beside) layout.label = std::max(layout.label - std::max(layout.head() - layout.room, 0), 6);
  return layout;
}

std::string head(const Layout& w, const std::string& label, const std::string& stage, const std::string& done,
                 const std::string& left) {
  return fmt::format("{} {} {:>{}} {:>{}}", column(printable(label), w.label), column(printable(stage), w.stage),
                     cut(done, w.done), w.done, cut(left, w.left), w.left);
}
std::string head(const Layout& w, const LiveKernel& kernel) {
  return head(w, kernel.label, kernel.stage, kernel.total > 0 ? fmt::format("{}/{}", kernel.done, kernel.total) : "",
              kernel.remaining_s > 0 ? duration(kernel.remaining_s) : "");
}

// A line of cells for some of the batches.
using Batches = std::span<const int>;
std::string batch_cells(Batches batches) {
  std::string text;
  for (const int batch : batches) text += fmt::format("{:>{}}", batch, kCell);
  return text;
}
std::string us_cells(const LiveKernel& kernel, PdlMode mode, Batches batches) {
  std::string text;
  for (const int batch : batches) {
    const auto best = kernel.best.find({mode, batch});
    text += fmt::format("{:>{}}", best == kernel.best.end() ? "-" : us_text(best->second.us), kCell);
  }
  return text;
}
std::string share_cells(const LiveKernel& kernel, PdlMode mode, Batches batches) {
  std::string text;
  for (const int batch : batches) {
    const auto best = kernel.best.find({mode, batch});
    const bool known = best != kernel.best.end() && best->second.share > 0;
    text += fmt::format("{:>{}}", known ? fmt::format("{:.0f}%", 100 * best->second.share) : "", kCell);
  }
  return text;
}

// A kernel's lines: all of them, or the first only.
std::vector<std::string> kernel_lines(const LiveState& state, const Layout& w, const LiveKernel& kernel, bool whole) {
  const auto mode_name = [&](PdlMode mode) { return column(w.mode > 0 ? name(mode) : "", w.mode); };
  const std::string out = left_out(kernel);
  const std::string out_line = out.empty() ? "" : "  left out: " + out;
  std::vector<std::string> lines;
  if (w.beside) {
    std::string left = head(w, kernel), below = column(out_line, w.head());
    for (const PdlMode mode : state.modes) {
      lines.push_back(left + mode_name(mode) + us_cells(kernel, mode, state.batches));
      if (!whole) break;
      lines.push_back(below + column("", w.mode) + share_cells(kernel, mode, state.batches));
      left = below = column("", w.head());
    }
    return lines;
  }
  lines.push_back(head(w, kernel));
  if (!whole) return lines;
  if (!out.empty()) lines.push_back(out_line);
  constexpr int kName = 8;
  const auto fit = static_cast<std::size_t>(std::max((w.room - kName - w.mode) / kCell, 1));
  for (Batches rest = state.batches; !rest.empty() && !kernel.best.empty();) {
    const Batches some = rest.first(std::min(fit, rest.size()));
    rest = rest.subspan(some.size());
    lines.push_back(column("  batch", kName + w.mode) + batch_cells(some));
    for (const PdlMode mode : state.modes) {
      lines.push_back(column("  us", kName) + mode_name(mode) + us_cells(kernel, mode, some));
      lines.push_back(column("  share", kName + w.mode) + share_cells(kernel, mode, some));
    }
  }
  return lines;
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
    // A size between those that were asked for.
    auto& batches = state.batches;
    if (std::find(batches.begin(), batches.end(), m.batch) == batches.end())
      batches.insert(std::find_if(batches.begin(), batches.end(), [&](int b) { return b > m.batch; }), m.batch);
  } else if (m.outcome != Outcome::ok && m.outcome != Outcome::dropped) {
    ++of.left_out[m.outcome];
  }
  state.at = kernel;
  const std::string cell = m.batch > 0 ? fmt::format("batch {} {}", m.batch, name(m.pdl)) : m.phase;
  const std::string result = m.us > 0 ? fmt::format("{} us", us_text(m.us)) : name(m.outcome);
  state.at_work = fmt::format("{}  {}  {}  {}", of.label, cell, result, m.plan.text());
}

std::vector<std::string> live_lines(const LiveState& state, int width, int height) {
  const Layout w = layout_of(state, width);
  const std::vector<std::string> titles = {
      fmt::format("{}  {}", printable(state.title), duration(state.elapsed_s)),
      head(w, "kernel", "stage", "done", "left") +
          (w.beside ? column("", w.mode) + batch_cells(state.batches) : std::string())};
  const auto most = static_cast<std::size_t>(std::max(height - 1, 1));
  std::vector<std::string> lines;
  // Which kernels are shown whole: all, the one at work, none.
  for (int level = 0; level < 3; ++level) {
    lines = titles;
    for (std::size_t k = 0; k < state.kernels.size(); ++k) {
      const bool whole = level == 0 || (level == 1 && k == state.at);
      for (std::string& line : kernel_lines(state, w, state.kernels[k], whole)) lines.push_back(std::move(line));
    }
    lines.push_back(printable(state.at_work));
    if (lines.size() <= most) break;
  }
  if (lines.size() > most) {
    // A kernel a line now: as many as there is room for, the one at work the last of them or sooner.
    const std::size_t above = lines.size() - most;
    const std::size_t first =
        std::min(above, state.at + titles.size() + 2 > most ? state.at + titles.size() + 2 - most : 0);
    lines.erase(lines.begin() + static_cast<std::ptrdiff_t>(first + most - 1), lines.end() - 1);
    lines.erase(lines.begin(), lines.begin() + static_cast<std::ptrdiff_t>(first));
  }
  for (std::string& line : lines) line = cut(std::move(line), w.room);
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
