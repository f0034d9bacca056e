// A tiny kernel around one device operation: the same text on the CPU executor and on a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <ssmjit/source.h>

namespace ssmjit {

enum class Where { cpu, gpu };
// What a parameterised test is called by.
std::string name_of(const testing::TestParamInfo<Where>& info);

struct Shape {
  int threads = 32;
  int blocks = 1;
  int cluster = 1;
  int rows = 1;        // blocks along y
  int smem_bytes = 0;  // dynamic, up to 48 KiB
};

// Host memory that a kernel reads and writes.
struct HostBuffer {
  template <class T>
  HostBuffer(std::vector<T>& values)  // NOLINT: a vector stands for its bytes
      : data(reinterpret_cast<std::byte*>(values.data())), bytes(values.size() * sizeof(T)) {}
  std::byte* data;
  std::size_t bytes;
};

// Kernels of one text. An entry is `KERNEL(name) { ... }`, with args.buffer[i], a pointer into device memory for each
// buffer of run(), as `at<T>(args, i)`, and args.number[i].
class TestKernel {
 public:
  // Pieces: files of templates/. `sm`: the least that has the operations.
  TestKernel(std::string name, std::vector<std::string> pieces, std::string text, int sm = 80);
  TestKernel(const TestKernel&) = delete;
  TestKernel& operator=(const TestKernel&) = delete;

  // Every one that the program has made.
  static const std::vector<const TestKernel*>& all();

  const std::string& name() const { return name_; }
  Source source(const Arch& arch) const;
  // Why it cannot run there; empty when it can.
  std::string lacking(Where where) const;
  // Copies the buffers in, runs `entry`, copies them back. A fault of the kernel is a failure of the test.
  void run(Where where, const std::string& entry, const Shape& shape, std::vector<HostBuffer> buffers,
           std::vector<std::uint64_t> numbers = {}) const;

 private:
  void run_on_gpu(const std::string& entry, const Shape& shape, const std::vector<HostBuffer>& buffers,
                  const std::vector<std::uint64_t>& numbers) const;
  void run_on_cpu(const std::string& entry, const Shape& shape, const std::vector<HostBuffer>& buffers,
                  const std::vector<std::uint64_t>& numbers) const;

  std::string name_;
  std::string text_;
  int sm_;
};

// Tests of this fixture run on both; NEEDS(kernel) skips aloud where it cannot.
class OnBoth : public testing::TestWithParam<Where> {};
#define NEEDS(kernel) \
  if (const std::string why = (kernel).lacking(GetParam()); !why.empty()) GTEST_SKIP() << why
#define ON_CPU_AND_GPU(suite) INSTANTIATE_TEST_SUITE_P(Device, suite, testing::Values(Where::cpu, Where::gpu), name_of)

}  // namespace ssmjit
