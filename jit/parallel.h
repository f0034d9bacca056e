// Work on all cores while a model loads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace ssmjit {

// Calls work(i) for every i below `count`, on up to `threads` threads at once (0: as many as there are cores), this one
// among them. The first exception, by i, is thrown again when all are done.
template <class Work>
void for_each_parallel(std::size_t count, int threads, const Work& work) {
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::exception_ptr first;
  std::size_t first_at = count;
  const auto run = [&] {
    for (std::size_t i = next++; i < count; i = next++) {
      try {
        work(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (i < first_at) first_at = i, first = std::current_exception();
      }
    }
  };
  const std::size_t cores = std::max(1U, std::thread::hardware_concurrency());
  const std::size_t most = std::min(count, threads > 0 ? static_cast<std::size_t>(threads) : cores);
  std::vector<std::thread> others;
  try {
    for (std::size_t i = 1; i < most; ++i) others.emplace_back(run);
  } catch (const std::system_error&) {  // no more threads are to be had: those there are do it all
  }
  run();
  for (std::thread& thread : others) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace ssmjit
