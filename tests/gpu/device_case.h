// A case's memory on the device, and what its inputs are produced from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include <ssmjit/kernel.h>

#include "autotune/kernel_case.h"
#include "jit/gpu.h"
#include "tests/gpu/slow_producer.h"

namespace ssmjit {

template <class Case>
class DeviceCase {
 public:
  using Args = decltype(std::declval<const Case&>().args({}));
  // What the case's blocks hold, canaries too.
  using Memory = std::vector<std::vector<std::byte>>;

  DeviceCase(const Description& d, const CaseLayout& layout, std::uint64_t seed = 1) : case_(d, layout, seed) {
    std::vector<std::byte*> base;
    for (const KernelCase::Block& block : case_.blocks()) {
      buffers_.emplace_back(block.before.size());
      base.push_back(buffers_.back().data());
      const bool input = block.produced && !block.output;
      sources_.emplace_back(input ? block.before.size() : 0);
      if (input) sources_.back().upload(block.before.data(), block.before.size());
    }
    args_ = case_.args(base);
    reset();
  }

  const Args& args(Pdl pdl = Pdl::off) {
    args_.pdl = pdl;
    return args_;
  }
  Args& change() { return args_; }
  const Case& test() const { return case_; }
  void reset() {
    for (std::size_t i = 0; i < buffers_.size(); ++i)
      buffers_[i].upload(case_.blocks()[i].before.data(), buffers_[i].size());
  }
  // A value at an address of the case's.
  template <class T>
  void write(const void* there, const T& value) const {
    for (const DeviceBuffer& buffer : buffers_)
      if (const auto at = static_cast<const std::byte*>(there) - buffer.data();
          at >= 0 && at < static_cast<std::ptrdiff_t>(buffer.size()))
        buffer.upload(&value, sizeof value, static_cast<std::size_t>(at));
  }
  void poison_inputs() {
    Stream stream;
    for (std::size_t i = 0; i < buffers_.size(); ++i)
      if (sources_[i].size() > 0) buffers_[i].fill(0xff, stream.handle());
    stream.synchronize();
  }
  void produce(const SlowProducer& slow, const Stream& stream, bool dependent) const {
    for (std::size_t i = 0; i < buffers_.size(); ++i) {
      if (sources_[i].size() == 0) continue;
      slow(sources_[i], buffers_[i], stream, dependent);
      dependent = true;
    }
  }
  Memory result() const {
    Memory all;
    for (const DeviceBuffer& buffer : buffers_) {
      all.emplace_back(buffer.size());
      buffer.download(all.back().data(), buffer.size());
    }
    return all;
  }
  // `record` put on a stream, on fresh memory with poisoned inputs; directly or as a graph.
  Memory after(const std::function<void(const Stream&)>& record, bool graph) {
    reset();
    poison_inputs();
    Stream stream;
    if (graph)
      Graph(stream, [&] { record(stream); }).launch(stream);
    else
      record(stream);
    stream.synchronize();
    return result();
  }

 private:
  Case case_;
  Args args_;
  std::vector<DeviceBuffer> buffers_, sources_;
};

}  // namespace ssmjit
