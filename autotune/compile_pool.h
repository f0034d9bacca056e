// Compiles many plans of one description on all cores, in order, ahead of who takes the results.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <ssmjit/cubin.h>
#include <ssmjit/description.h>
#include <ssmjit/plan.h>
#include <ssmjit/source.h>

namespace ssmjit {

class CompilePool {
 public:
  struct Result {
    Source source;
    Cubin cubin;
    std::string error;  // not empty: the compile failed, and why
  };
  // `text`, when not empty, takes the place of what emit() gives. threads 0: as many as there are cores; 1: get()
  // compiles, and nothing is compiled ahead.
  CompilePool(const Description& description, const std::vector<Plan>& plans, const Arch& arch,
              const CompileOptions& options, const std::string& text = {}, int threads = 0);
  CompilePool(const CompilePool&) = delete;
  CompilePool& operator=(const CompilePool&) = delete;
  ~CompilePool();

  // Waits for it. From one thread.
  const Result& get(std::size_t i);
  // Whether some are still compiled, or will be, by others than who calls get().
  bool busy();

 private:
  void work();
  void compile_at(std::size_t i);

  Description description_;
  std::vector<Plan> plans_;
  Arch arch_;
  CompileOptions options_;
  std::string text_;
  std::vector<Result> results_;
  std::vector<char> done_;
  std::atomic<std::size_t> next_{0};
  std::mutex mutex_;
  std::condition_variable ready_;
  std::vector<std::thread> threads_;
};

}  // namespace ssmjit
