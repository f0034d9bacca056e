#include "autotune/compile_pool.h"

#include <algorithm>

#include "codegen/banner.h"
#include "codegen/digest.h"

namespace ssmjit {

CompilePool::CompilePool(const Description& description, const std::vector<Plan>& plans, const Arch& arch,
                         const CompileOptions& options, const std::string& text, int threads)
    : description_(description),
      plans_(plans),
      arch_(arch),
      options_(options),
      text_(text),
      results_(plans.size()),
      done_(plans.size(), 0) {
  std::size_t count =
      threads > 0 ? static_cast<std::size_t>(threads) : std::max(1u, std::thread::hardware_concurrency());
  count = threads == 1 ? 0 : std::min(count, plans.size());
  for (std::size_t i = 0; i < count; ++i) threads_.emplace_back([this] { work(); });
}

CompilePool::~CompilePool() {
  next_ = plans_.size();
  for (std::thread& t : threads_) t.join();
}

void CompilePool::work() {
  while (true) {
    const std::size_t i = next_++;
    if (i >= plans_.size()) return;
    compile_at(i);
  }
}

void CompilePool::compile_at(std::size_t i) {
  Result result;
  try {
    result.source = emit(description_, plans_[i], arch_);
    if (!text_.empty()) {
      result.source.text = text_;
      result.source.digest = digest16(without_banner(text_));
    }
    result.cubin = compile(result.source, options_);
  } catch (const std::exception& e) {
    result.error = e.what();
  }
  const std::lock_guard lock(mutex_);
  results_[i] = std::move(result);
  done_[i] = 1;
  ready_.notify_all();
}

bool CompilePool::busy() {
  const std::lock_guard lock(mutex_);
  return !threads_.empty() && std::find(done_.begin(), done_.end(), 0) != done_.end();
}

const CompilePool::Result& CompilePool::get(std::size_t i) {
  if (threads_.empty() && done_[i] == 0) compile_at(i);
  std::unique_lock lock(mutex_);
  ready_.wait(lock, [&] { return done_[i] != 0; });
  return results_[i];
}

}  // namespace ssmjit
