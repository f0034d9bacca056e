// Who last touched each byte. One cell for 16 bytes while all of them share a history, else a cell for 4 or for 1.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

namespace ssmjit::cpu {

// An access in 64 bits: the thread group (a cluster) and thread that did it, and the thread's clock then.
struct Stamp {
  static constexpr std::uint64_t kInitial = 0;    // nobody since the launch began; holds a value
  static constexpr std::uint64_t kUnwritten = 1;  // nobody since the launch began; holds none
  static constexpr std::uint64_t kSplit = 2;      // not a stamp: the cell is told apart further
  static constexpr int kMaxThreads = 1 << 15;
  static constexpr std::int64_t kMaxGroups = (1 << 22) - 1;

  static std::uint64_t make(std::uint32_t group, std::uint32_t thread, std::uint32_t clock, bool atomic, bool pending) {
    return static_cast<std::uint64_t>(group + 1) << 42 | static_cast<std::uint64_t>(thread) << 27 |
           (static_cast<std::uint64_t>(clock) & 0x1ffffff) << 2 | (atomic ? 2u : 0u) | (pending ? 1u : 0u);
  }
  static bool real(std::uint64_t s) { return s >> 42 != 0; }
  static std::uint32_t group(std::uint64_t s) { return static_cast<std::uint32_t>(s >> 42) - 1; }
  static std::uint32_t thread(std::uint64_t s) { return static_cast<std::uint32_t>(s >> 27) & 0x7fff; }
  static std::uint32_t clock(std::uint64_t s) { return static_cast<std::uint32_t>(s >> 2) & 0x1ffffff; }
  static bool atomic(std::uint64_t s) { return real(s) && (s & 2) != 0; }
  static bool pending(std::uint64_t s) { return real(s) && (s & 1) != 0; }
  // A site as a cell keeps it; 0, which is no line, for one that does not fit.
  static std::uint16_t site(std::uint32_t s) { return s > 0xffff ? std::uint16_t{0} : static_cast<std::uint16_t>(s); }
};

// The last write, and two reads since that are not ordered one after the other (or one, or none). A third is not kept.
struct Cell {
  std::uint64_t write;
  std::uint64_t read[2];
  std::uint16_t write_site;
  std::uint16_t read_site[2];
  std::uint16_t spare;
};
static_assert(sizeof(Cell) == 32);

using Cells4 = std::array<Cell, 4>;

// The cells of one range of addresses.
class Shadow {
 public:
  void cover(std::uintptr_t begin, std::size_t bytes, std::uint64_t stamp) {
    begin_ = begin / 16;
    lines_ = bytes == 0 ? 0 : (begin + bytes - 1) / 16 - begin_ + 1;
    // Zero pages are kInitial and cost nothing until they are touched.
    cells_.reset(static_cast<Cell*>(std::calloc(lines_ == 0 ? 1 : lines_, sizeof(Cell))));
    if (cells_ == nullptr) throw std::bad_alloc();
    if (stamp != Stamp::kInitial) reset(stamp);
  }
  // All of it as if untouched, with this stamp for its last write.
  void reset(std::uint64_t stamp) {
    for (std::size_t i = 0; i < lines_; ++i) cells_[i] = Cell{stamp, {0, 0}, 0, {0, 0}, 0};
    free_.clear();
    used_ = 0;
  }

  // Calls visit(cell, first, end), with the byte addresses that the cell stands for, for every cell of the bytes. Cells
  // are told apart as far as needed. `alike`: all these bytes have the same history afterwards, so cells are put
  // together.
  template <class Visit>
  void each(std::uintptr_t address, std::size_t bytes, bool alike, const Visit& visit) {
    const std::uintptr_t end = address + bytes;
    for (std::uintptr_t at = address; at < end;) {
      const std::uintptr_t line = at / 16;
      const std::uintptr_t stop = end < (line + 1) * 16 ? end : (line + 1) * 16;
      descend(cells_[line - begin_], line * 16, 16, at, stop, alike, visit);
      at = stop;
    }
  }

 private:
  struct Free {
    void operator()(Cell* p) const { std::free(p); }
  };

  template <class Visit>
  void descend(Cell& cell, std::uintptr_t base, std::size_t size, std::uintptr_t first, std::uintptr_t end, bool alike,
               const Visit& visit) {
    const bool whole = first == base && end == base + size;
    if (cell.write != Stamp::kSplit) {
      if (whole) {
        visit(cell, first, end);
        return;
      }
      Cells4* parts = take();
      parts->fill(cell);
      cell.write = Stamp::kSplit;
      cell.read[0] = reinterpret_cast<std::uintptr_t>(parts);
    }
    Cells4* parts = std::bit_cast<Cells4*>(static_cast<std::uintptr_t>(cell.read[0]));
    const std::size_t part = size / 4;
    for (std::size_t i = 0; i < 4; ++i) {
      const std::uintptr_t from = base + i * part;
      if (from + part <= first || from >= end) continue;
      descend((*parts)[i], from, part, first > from ? first : from, end < from + part ? end : from + part, alike,
              visit);
    }
    if (whole && alike) {
      cell = (*parts)[0];
      free_.push_back(parts);
    }
  }

  Cells4* take() {
    if (!free_.empty()) {
      Cells4* parts = free_.back();
      free_.pop_back();
      return parts;
    }
    constexpr std::size_t kSlab = 256;
    if (used_ == slabs_.size() * kSlab) slabs_.push_back(std::make_unique<Cells4[]>(kSlab));
    Cells4* parts = &slabs_[used_ / kSlab][used_ % kSlab];
    ++used_;
    return parts;
  }

  std::uintptr_t begin_ = 0;
  std::size_t lines_ = 0;
  std::unique_ptr<Cell[], Free> cells_;
  std::vector<std::unique_ptr<Cells4[]>> slabs_;
  std::size_t used_ = 0;
  std::vector<Cells4*> free_;
};

}  // namespace ssmjit::cpu
