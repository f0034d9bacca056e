// Device memory, streams, captured graphs and raw kernels, as the tuner needs them: each releases what it holds, each
// failure is an Error with the driver's words. All work on the device that was current when they were made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <ssmjit/cubin.h>
#include <ssmjit/device.h>

namespace ssmjit {

// Makes device `ordinal`'s primary context current on this thread and keeps it for the process.
// Fails: ErrorKind::missing without driver or device.
void use_device(int ordinal);

class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  // Fails: ErrorKind::machine when the device has no `bytes` left, with what is free.
  explicit DeviceBuffer(std::size_t bytes);
  DeviceBuffer(DeviceBuffer&& other) noexcept;
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
  ~DeviceBuffer();

  std::byte* data() const { return reinterpret_cast<std::byte*>(address_); }
  std::size_t size() const { return bytes_; }
  void upload(const void* from, std::size_t bytes, std::size_t offset = 0) const;
  void download(void* to, std::size_t bytes, std::size_t offset = 0) const;
  void fill(unsigned char value, void* stream) const;
  void copy_from(const DeviceBuffer& other, void* stream) const;

 private:
  std::uintptr_t address_ = 0;
  std::size_t bytes_ = 0;
};

// Waits for the device. Fails: ErrorKind::machine when an earlier launch broke the context.
void check_device();

std::int64_t free_device_bytes();
// From any device address.
void read_device_memory(const void* from, void* to, std::size_t bytes);

class Stream {
 public:
  Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream();
  void* handle() const { return stream_; }
  void synchronize() const;

 private:
  void* stream_ = nullptr;
};

// What `record` put on the stream, as one executable graph.
class Graph {
 public:
  Graph(const Stream& stream, const std::function<void()>& record);
  Graph(Graph&& other) noexcept;
  Graph& operator=(Graph&& other) noexcept;
  ~Graph();
  void launch(const Stream& stream) const;

 private:
  void* executable_ = nullptr;
};

// Time on the device between two points of a stream.
class Stopwatch {
 public:
  Stopwatch();
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  ~Stopwatch();
  void start(const Stream& stream) const;
  void stop(const Stream& stream) const;
  // Waits for stop(). Microseconds.
  double elapsed_us() const;

 private:
  void* begin_ = nullptr;
  void* end_ = nullptr;
};

// The kernels of one cubin, launched with one parameter struct.
class RawModule {
 public:
  explicit RawModule(const Cubin& cubin);
  RawModule(const RawModule&) = delete;
  RawModule& operator=(const RawModule&) = delete;
  ~RawModule();
  void* entry(const std::string& name) const;

 private:
  void* module_ = nullptr;
};
// `dependent`: programmatic stream serialization; `cluster`: blocks of a cluster, along x. Both sm_90 and later.
void launch_raw(void* entry, std::int64_t grid_x, std::int64_t grid_y, int threads, const void* parameters,
                void* stream, bool dependent, int cluster = 1);

}  // namespace ssmjit
