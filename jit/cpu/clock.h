// Who knows of what: vector clocks. A thread's own clock counts its meetings; what it knows of the others is shared
// with those it met. An access at (thread, clock) is ordered before what a thread does now when that thread knows of
// it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace ssmjit::cpu {

// What one or several threads know: the latest clock of each thread. Belongs to one Clocks.
struct Knowledge {
  std::uint32_t references = 0;
  std::uint64_t version = 0;  // of its content; no two contents of one Clocks have the same
  std::vector<std::uint32_t> of;
};

class Clocks {
 public:
  explicit Clocks(std::size_t members) : members_(members) {}

  Knowledge* fresh() {
    Knowledge* k = take();
    std::fill(k->of.begin(), k->of.end(), 0);
    return k;
  }
  Knowledge* hold(Knowledge* k) {
    ++k->references;
    return k;
  }
  void release(Knowledge* k) {
    if (k != nullptr && --k->references == 0) free_.push_back(k);
  }
  // What both know. Consumes one reference to `a`. The same question again has the same answer, so that a warp that
  // waits for one barrier keeps one knowledge.
  Knowledge* join(Knowledge* a, Knowledge* b) {
    if (a == b) return a;
    if (a == last_a_ && b == last_b_ && last_ != nullptr) {
      hold(last_);
      release(a);
      return last_;
    }
    Knowledge* both = take();
    for (std::size_t i = 0; i < members_; ++i) both->of[i] = std::max(a->of[i], b->of[i]);
    forget_last();
    // The question is held too: else its parts might be used anew for something else.
    last_a_ = hold(a);
    last_b_ = hold(b);
    last_ = hold(both);
    release(a);
    return both;
  }
  // Adds what `from` knows to `into`, which nobody else holds.
  void merge(Knowledge& into, const Knowledge& from) const {
    for (std::size_t i = 0; i < members_; ++i) into.of[i] = std::max(into.of[i], from.of[i]);
  }
  // A copy that nobody else holds.
  Knowledge* copy(const Knowledge& k) {
    Knowledge* c = take();
    c->of = k.of;
    return c;
  }
  // To be said of one whose content changes while others may remember its version.
  void changed(Knowledge& k) { k.version = ++versions_; }
  void forget_last() {
    release(last_a_);
    release(last_b_);
    release(last_);
    last_a_ = last_b_ = last_ = nullptr;
  }

 private:
  // With one reference, the caller's.
  Knowledge* take() {
    if (free_.empty()) {
      all_.push_back(std::make_unique<Knowledge>());
      all_.back()->of.resize(members_);
      free_.push_back(all_.back().get());
    }
    Knowledge* k = free_.back();
    free_.pop_back();
    k->references = 1;
    changed(*k);
    return k;
  }

  std::size_t members_;
  std::uint64_t versions_ = 0;
  std::vector<std::unique_ptr<Knowledge>> all_;
  std::vector<Knowledge*> free_;
  Knowledge* last_a_ = nullptr;
  Knowledge* last_b_ = nullptr;
  Knowledge* last_ = nullptr;
};

}  // namespace ssmjit::cpu
