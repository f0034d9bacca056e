// What a cluster's threads do to memory: is it theirs, is it ordered, was it written.
#include <algorithm>
#include <bit>
#include <cstring>

#include <fmt/format.h>

#include "jit/cpu/cluster.h"

namespace ssmjit::cpu {
// ---- findings ----

CpuFinding Cluster::finding(CpuFault fault, int line, const Thread& t, std::string what) const {
  CpuFinding f;
  f.fault = fault;
  f.kernel = run_.entry.name;
  f.file = run_.code.file;
  f.line = line;
  f.block_x = t.view.block_x;
  f.block_y = t.view.block_y;
  f.thread = static_cast<int>(t.view.thread);
  f.what = std::move(what);
  return f;
}

void Cluster::add(CpuFinding f, std::uint32_t site, const Thread& t) {
  CpuFinding whole = finding(f.fault, line(site), t, std::move(f.what));
  whole.buffer = std::move(f.buffer);
  whole.offset = f.offset;
  run_.findings.add(std::move(whole));
}

void Cluster::report(CpuFault fault, std::uint32_t site, std::string what) {
  CpuFinding f;
  f.fault = fault;
  f.what = std::move(what);
  add(std::move(f), site, *running_);
}

void Cluster::report(CpuFault fault, std::uint32_t site, std::uintptr_t address, const Thread& t, std::string what) {
  CpuFinding f;
  f.fault = fault;
  const std::uintptr_t shared = reinterpret_cast<std::uintptr_t>(shared_);
  if (address - shared < shared_stride_ * blocks_) {
    const std::size_t offset = (address - shared) % shared_stride_;
    const std::size_t block = (address - shared) / shared_stride_;
    f.buffer = "shared memory";
    f.offset = static_cast<std::int64_t>(offset);
    if (offset >= run_.code.static_bytes && !run_.code.dynamic_name.empty()) {
      f.buffer = run_.code.dynamic_name;
      f.offset = static_cast<std::int64_t>(offset - run_.code.static_bytes);
    }
    for (const SharedVariable& v : run_.code.shared)
      if (offset >= v.offset && offset < v.offset + v.bytes) {
        f.buffer = v.name;
        f.offset = static_cast<std::int64_t>(offset - v.offset);
      }
    if (block != t.block) f.buffer += fmt::format(" of the cluster's block {}", block);
  } else {
    // The buffer it is in, else the nearest one.
    const Buffer* nearest = nullptr;
    std::uint64_t distance = ~std::uint64_t{0};
    for (const Buffer& b : run_.buffers) {
      const std::uint64_t d = address < b.begin ? b.begin - address : address >= b.end ? address - b.end : 0;
      if (d < distance || (d == distance && nearest != nullptr && address >= b.begin && address < b.end)) {
        nearest = &b;
        distance = d;
      }
    }
    if (address - reinterpret_cast<std::uintptr_t>(pages_.data()) < pages_.size()) {
      f.buffer = "the threads' own variables";
    } else if (nearest != nullptr && distance < (std::uint64_t{1} << 32)) {
      f.buffer = nearest->given->name;
      f.offset = static_cast<std::int64_t>(address - nearest->begin);
    } else {
      f.buffer = address < 4096 ? "the null pointer" : "an address near no buffer";
      f.offset = address < 4096 ? static_cast<std::int64_t>(address) : 0;
    }
  }
  f.what = std::move(what);
  add(std::move(f), site, t);
}

// ---- places ----

// Whether `at` bytes into the pages lies what the running thread may touch: not another's stack.
bool Cluster::own(std::size_t at, std::size_t bytes) const {
  const std::size_t stack = at - (slots_bytes_ + running_->index * stack_bytes_);
  if (stack < stack_bytes_) return stack >= kPage && bytes <= stack_bytes_ - stack;
  if (at < slots_bytes_) return bytes <= slots_bytes_ - at;
  return at >= slots_bytes_ + count_ * stack_bytes_ && bytes <= pages_.size() - at;
}

Cluster::Place Cluster::place(std::uintptr_t address, std::size_t bytes, std::uint32_t site) {
  Place where;
  if (const std::size_t at = address - reinterpret_cast<std::uintptr_t>(pages_.data()); at < pages_.size()) {
    where.own = own(at, bytes);
    return where;
  }
  const std::size_t offset = address - reinterpret_cast<std::uintptr_t>(shared_);
  if (offset < shared_stride_ * blocks_) {
    where.shared = offset % shared_stride_ + bytes <= shared_bytes_;
    return where;
  }
  const auto inside = [&](const Buffer& b) {
    return address >= b.begin && address < b.end && bytes <= b.end - address;
  };
  // A line of the source mostly goes to one buffer.
  if (site < last_buffer_.size() && last_buffer_[site] != nullptr && inside(*last_buffer_[site])) {
    where.buffer = last_buffer_[site];
    return where;
  }
  for (const Buffer& b : run_.buffers)
    if (inside(b)) {
      if (site < last_buffer_.size()) last_buffer_[site] = &b;
      where.buffer = &b;
      return where;
    }
  for (const auto& [begin, size] : run_.code.constants)
    if (address - begin < size) where.constant = bytes <= size - (address - begin);
  return where;
}

// Says what is wrong with an access that lies in no memory of the launch, or writes what is only to be read.
bool Cluster::in_bounds(const Place& where, std::uintptr_t address, std::size_t bytes, bool write, const char* verb,
                        std::uint32_t site) {
  if (where.shared && blocks_ > 1 &&
      block_state_[(address - reinterpret_cast<std::uintptr_t>(shared_)) / shared_stride_].alive == 0) {
    report(CpuFault::misuse, site, address, *running_,
           fmt::format("{} {} bytes in shared memory of a block that has ended", verb, bytes));
    return false;
  }
  if (where.own || where.shared) return true;
  require_waited(where, address, bytes, write, verb, site);
  if (where.constant) {
    if (!write) return true;
    report(CpuFault::out_of_bounds, site, fmt::format("{} {} bytes of a constant of the source", verb, bytes));
    return false;
  }
  if (where.buffer != nullptr) {
    if (!write || where.buffer->given->writable || !run_.bounds) return true;
    report(CpuFault::out_of_bounds, site, address, *running_,
           fmt::format("{} {} bytes of a buffer that is only read", verb, bytes));
    return false;
  }
  const bool shared = address - reinterpret_cast<std::uintptr_t>(shared_) < shared_stride_ * blocks_;
  report(CpuFault::out_of_bounds, site, address, *running_,
         shared ? fmt::format("{} {} bytes past the end of shared memory, which has {} bytes a block", verb, bytes,
                              shared_bytes_)
                : fmt::format("{} {} bytes outside every buffer", verb, bytes));
  return false;
}

void Cluster::access(std::uintptr_t address, std::size_t bytes, std::uint32_t site_index) {
  const Site& site = run_.code.sites[site_index];
  const std::size_t at = address - reinterpret_cast<std::uintptr_t>(pages_.data());
  if (bytes == 0 || (at < pages_.size() && own(at, bytes))) return;
  const char* verb = site.write ? "writes" : "reads";
  if ((address & (site.alignment - 1)) != 0) {
    report(CpuFault::misaligned, site_index, address, *running_,
           fmt::format("{} {} bytes at an address that is no multiple of {}", verb, bytes, site.alignment));
    give_up();
  }
  const Place where = place(address, bytes, site_index);
  if (!in_bounds(where, address, bytes, site.write, verb, site_index)) give_up();
  if (site.space != 0) require_space(where, address, bytes, site.space == kSharedSpace, verb, site_index);
  if (run_.races)
    touch(where, address, bytes,
          site.update  ? Touch::update
          : site.write ? Touch::write
                       : Touch::read,
          site.atomic, site_index, running_->index, running_->clock);
}

void Cluster::outside(std::uint64_t offset, std::uint64_t bytes, std::uint32_t variable, std::uint32_t site) {
  const Variable& v = run_.code.variables[variable];
  CpuFinding f;
  f.fault = CpuFault::out_of_bounds;
  f.buffer = v.name;
  f.offset = static_cast<std::int64_t>(offset);
  f.what = fmt::format("{} {} bytes outside {}, which has {} bytes", run_.code.sites[site].write ? "writes" : "reads",
                       bytes, v.name.empty() ? "a variable of its own" : v.name, v.bytes);
  add(std::move(f), site, *running_);
  give_up();
}

void Cluster::wild_call(std::uintptr_t address, std::uint32_t site) {
  report(CpuFault::misuse, site,
         address == 0 ? "calls a function through a null pointer"
                      : "calls a function through a pointer that points to none of this type");
  give_up();
}

// ---- order ----

bool Cluster::ordered(std::uint64_t stamp) const {
  if (!Stamp::real(stamp)) return true;
  if (Stamp::group(stamp) != number_) return false;
  const std::uint32_t thread = Stamp::thread(stamp);
  return thread == running_->index || running_->known->of[thread] >= Stamp::clock(stamp);
}

// "thread 3 (line 12)" of whoever left the stamp.
std::string Cluster::who(std::uint64_t stamp, std::uint32_t site) const {
  std::string s;
  const std::uint32_t thread = Stamp::thread(stamp);
  if (Stamp::group(stamp) != number_ || (blocks_ > 1 && thread < count_ && threads_[thread].block != running_->block)) {
    const std::int64_t clusters_x = run_.launch.grid_x / blocks_;
    const std::uint32_t group = Stamp::group(stamp);
    const std::int64_t rank = thread < count_ ? thread / block_threads_ : 0;
    s = fmt::format("block ({}, {})", group % clusters_x * blocks_ + rank, group / clusters_x);
    s = thread < count_ ? fmt::format("thread {} of {}", thread % block_threads_, s) : "a copy of " + s;
  } else {
    s = thread < count_ ? fmt::format("thread {}", thread % block_threads_) : "an asynchronous copy";
  }
  if (line(site) > 0) s += fmt::format(" (line {})", line(site));
  return s;
}

// Null: nobody looks for races there.
Shadow* Cluster::shadow_of(const Place& where) {
  if (!run_.races) return nullptr;
  if (where.shared) return &shared_shadow_;
  return where.buffer != nullptr ? where.buffer->shadow.get() : nullptr;
}

// Cells of global memory belong to all workers.
std::unique_lock<std::mutex> Cluster::lock_for(const Place& where) {
  std::unique_lock<std::mutex> lock(run_.shadow, std::defer_lock);
  if (!where.shared && run_.launch.threads > 1) lock.lock();
  return lock;
}

void Cluster::touch(const Place& where, std::uintptr_t address, std::size_t bytes, Touch kind, bool atomic,
                    std::uint32_t site, std::uint32_t thread, std::uint32_t clock) {
  Shadow* shadow = shadow_of(where);
  if (shadow == nullptr) return;
  const auto visit = [&](Cell& cell, std::uintptr_t first, std::uintptr_t end) {
    check(cell, first, end - first, kind, atomic, site, thread, clock);
  };
  const std::unique_lock<std::mutex> lock = lock_for(where);
  shadow->each(address, bytes, kind != Touch::read && kind != Touch::copy_source, visit);
}

void Cluster::check(Cell& cell, std::uintptr_t address, std::size_t bytes, Touch kind, bool atomic, std::uint32_t site,
                    std::uint32_t thread, std::uint32_t clock) {
  const auto fault = [&](CpuFault f, std::string what) { report(f, site, address, *running_, std::move(what)); };
  const bool under_way = kind == Touch::copy_start || kind == Touch::copy_source;
  const std::uint64_t mine = Stamp::make(number_, thread, clock, atomic, under_way);
  const std::uint16_t place = Stamp::site(site);
  if (kind == Touch::read || kind == Touch::copy_source) {
    if (cell.read[0] == mine) return;
    if (cell.write == Stamp::kUnwritten) {
      fault(CpuFault::uninitialised, fmt::format("reads {} bytes that nobody wrote", bytes));
      cell.write = Stamp::kInitial;
    } else if (Stamp::pending(cell.write)) {
      fault(CpuFault::unwaited_copy, fmt::format("reads {} bytes that an asynchronous copy of {} is still to bring",
                                                 bytes, who(cell.write, cell.write_site)));
    } else if (!ordered(cell.write) && !(atomic && Stamp::atomic(cell.write))) {
      fault(CpuFault::race, fmt::format("reads {} bytes that {} writes, with no barrier between", bytes,
                                        who(cell.write, cell.write_site)));
      cell.write = Stamp::kInitial;
    }
    const auto past = [&](std::uint64_t read) { return !Stamp::pending(read) && ordered(read); };
    if (past(cell.read[0])) {
      cell.read[0] = mine;
      cell.read_site[0] = place;
      if (past(cell.read[1])) cell.read[1] = 0;
    } else {
      cell.read[1] = mine;
      cell.read_site[1] = place;
    }
    return;
  }
  if (kind != Touch::copy_end) {
    const char* verb = kind == Touch::copy_start ? "starts a copy to" : "writes";
    if (kind == Touch::update && cell.write == Stamp::kUnwritten) {
      fault(CpuFault::uninitialised, fmt::format("updates {} bytes that nobody wrote", bytes));
    } else if (Stamp::pending(cell.write)) {
      fault(CpuFault::unwaited_copy, fmt::format("{} {} bytes that an asynchronous copy of {} is still to bring", verb,
                                                 bytes, who(cell.write, cell.write_site)));
    } else if (!ordered(cell.write) && !(atomic && Stamp::atomic(cell.write))) {
      fault(CpuFault::race, fmt::format("{} {} bytes that {} writes too, with no barrier between", verb, bytes,
                                        who(cell.write, cell.write_site)));
    } else {
      for (int i = 0; i < 2; ++i) {
        if (Stamp::pending(cell.read[i])) {
          fault(CpuFault::unwaited_copy, fmt::format("{} {} bytes that an asynchronous copy of {} is still to read",
                                                     verb, bytes, who(cell.read[i], cell.read_site[i])));
          break;
        }
        if (cell.read[i] == 0 || ordered(cell.read[i]) || (atomic && Stamp::atomic(cell.read[i]))) continue;
        fault(CpuFault::race, fmt::format("{} {} bytes that {} reads, with no barrier between", verb, bytes,
                                          who(cell.read[i], cell.read_site[i])));
        break;
      }
    }
  }
  cell = Cell{mine, {0, 0}, place, {0, 0}, 0};
}

// ---- copies ----

// Checks a copy that starts; the bytes are poison until it ends. Each copy has a clock of its own, by which its end
// knows what it still had to read.
Cluster::Copy Cluster::start(std::byte* to, const std::byte* from, std::uint32_t bytes, std::uint32_t read) {
  Thread& t = *running_;
  if (run_.checked) {
    const std::uintptr_t target = reinterpret_cast<std::uintptr_t>(to), source = reinterpret_cast<std::uintptr_t>(from);
    const Place target_place = place(target, bytes, t.site);
    if (!in_bounds(target_place, target, bytes, true, "copies over", t.site)) give_up();
    if (read > 0) {
      const Place source_place = place(source, read, t.site);
      if (!in_bounds(source_place, source, read, false, "copies", t.site)) give_up();
      if (run_.races) touch(source_place, source, read, Touch::copy_source, false, t.site, t.index, t.clock);
    }
    if (run_.races) touch(target_place, target, bytes, Touch::copy_start, false, t.site, t.index, t.clock);
  }
  std::memset(to, std::to_integer<int>(kPoison), bytes);
  return {to, from, bytes, read, t.site, t.index, t.clock++};
}

void Cluster::copy(std::uint32_t queue, std::byte* to, const std::byte* from, std::uint32_t bytes, std::uint32_t read,
                   std::uint32_t alignment) {
  Thread& t = *running_;
  const std::uintptr_t target = reinterpret_cast<std::uintptr_t>(to), source = reinterpret_cast<std::uintptr_t>(from);
  if (bytes == 0) return;
  if (target % alignment != 0 || (read > 0 && source % alignment != 0)) {
    const bool which = target % alignment != 0;
    report(CpuFault::misaligned, t.site, which ? target : source, t,
           fmt::format("copies {} bytes asynchronously {} an address that is no multiple of {}", bytes,
                       which ? "to" : "from", alignment));
    give_up();
  }
  t.queues[queue % 2].copies.push_back(start(to, from, bytes, read));
}

void Cluster::copy_commit(std::uint32_t queue) {
  Queue& q = running_->queues[queue % 2];
  q.ends.push_back(q.copies.size());
}

void Cluster::copy_wait(std::uint32_t queue, std::uint32_t pending) {
  Queue& q = running_->queues[queue % 2];
  if (q.ends.size() <= pending) return;
  const std::size_t groups = q.ends.size() - pending;
  const std::size_t done = q.ends[groups - 1];
  for (std::size_t i = 0; i < done; ++i) finish(q.copies[i], running_->index, running_->clock);
  q.copies.erase(q.copies.begin(), q.copies.begin() + static_cast<std::ptrdiff_t>(done));
  q.ends.erase(q.ends.begin(), q.ends.begin() + static_cast<std::ptrdiff_t>(groups));
  for (std::size_t& end : q.ends) end -= done;
}

void Cluster::copy_to_barrier(std::byte* to, const std::byte* from, std::uint32_t bytes, std::uintptr_t barrier) {
  Thread& t = *running_;
  Mbarrier& b = mbarrier(barrier, "counts a copy at");
  complete(b);
  const std::uintptr_t target = reinterpret_cast<std::uintptr_t>(to), source = reinterpret_cast<std::uintptr_t>(from);
  if (target % 16 != 0 || source % 16 != 0 || bytes % 16 != 0) {
    report(CpuFault::misaligned, t.site, source % 16 != 0 ? source : target, t,
           fmt::format("copies {} bytes in bulk; both addresses and the size must be multiples of 16", bytes));
    give_up();
  }
  b.copies.push_back(start(to, from, bytes, bytes));
  b.brought += bytes;
  if (!b.waiting.empty()) complete(b);
}

void Cluster::store_to_barrier(std::byte* to, std::uint32_t value, std::uintptr_t barrier) {
  Thread& t = *running_;
  Mbarrier& b = mbarrier(barrier, "counts a store at");
  complete(b);
  const std::uintptr_t target = reinterpret_cast<std::uintptr_t>(to);
  const auto block_of = [&](std::uintptr_t address) {
    return (address - reinterpret_cast<std::uintptr_t>(shared_)) / shared_stride_;
  };
  if (target % sizeof(value) != 0 || !place(target, sizeof(value), t.site).shared ||
      block_of(target) != block_of(barrier)) {
    report(CpuFault::misuse, t.site, target, t,
           "stores 4 bytes that count at an mbarrier; they must lie in the shared memory of the barrier's block, at a "
           "multiple of 4");
    give_up();
  }
  // The value depends on what the thread has read so far, so what waits for it comes after those reads. The GPU
  // promises nothing of its writes, which can't be told apart here.
  if (run_.races) {
    if (b.gate.gathered == nullptr)
      b.gate.gathered = clocks_.copy(*t.known);
    else if (b.gate.merged != t.known->version)
      clocks_.merge(*b.gate.gathered, *t.known);
    b.gate.merged = t.known->version;
    b.gate.gathered->of[t.index] = t.clock++;
  }
  Copy store = start(to, nullptr, sizeof(value), 0);
  store.read = sizeof(value);
  const std::byte* bytes = reinterpret_cast<const std::byte*>(&value);
  store.taken.assign(bytes, bytes + sizeof(value));
  b.copies.push_back(std::move(store));
  b.brought += sizeof(value);
  if (!b.waiting.empty()) complete(b);
}

// The bytes move now; whoever is ordered after (thread, clock) may use them.
void Cluster::finish(const Copy& c, std::uint32_t thread, std::uint32_t clock) {
  if (c.read > 0) std::memcpy(c.to, c.taken.empty() ? c.from : c.taken.data(), c.read);
  if (c.read < c.bytes) std::memset(c.to + c.read, 0, c.bytes - c.read);
  if (!run_.races) return;
  const std::uintptr_t target = reinterpret_cast<std::uintptr_t>(c.to);
  touch(place(target, c.bytes, c.site), target, c.bytes, Touch::copy_end, false, c.site, thread, clock);
  source_is_free(c, thread, clock);
}

void Cluster::load_maybe_appended(std::byte* to, const std::byte* from, std::uint32_t bytes) {
  Thread& t = *running_;
  const std::uintptr_t source = reinterpret_cast<std::uintptr_t>(from);
  const std::uint32_t alignment = std::min<std::uint32_t>(bytes, 16);
  if (std::has_single_bit(alignment) && source % alignment != 0) {
    report(CpuFault::misaligned, t.site, source, t,
           fmt::format("reads {} bytes at an address that is no multiple of {}", bytes, alignment));
    give_up();
  }
  const Place where = place(source, bytes, t.site);
  if (run_.checked && !in_bounds(where, source, bytes, false, "reads", t.site)) give_up();
  const std::unique_lock<std::mutex> lock = lock_for(where);
  std::memcpy(to, from, bytes);
  Shadow* shadow = shadow_of(where);
  if (shadow == nullptr) return;
  shadow->each(source, bytes, false, [&](const Cell& cell, std::uintptr_t first, std::uintptr_t end) {
    if (cell.write == Stamp::kUnwritten || Stamp::pending(cell.write) || !ordered(cell.write))
      std::memset(to + (first - source), std::to_integer<int>(kPoison), end - first);
  });
}

}  // namespace ssmjit::cpu
