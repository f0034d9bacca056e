// Device memory, streams, captured graphs and raw kernels, as the tuner needs them: each releases what it holds, each
// failure is an Error with the driver's words. All work on the device that was current when they were made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <ssmjit/cubin.h>
#include <ssmjit/device.h>
#include <ssmjit/source.h>

namespace ssmjit {

struct Driver;

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
  // Fills this buffer with what `other` holds from `offset` on.
  void copy_from(const DeviceBuffer& other, std::size_t offset, void* stream) const;

 private:
  std::uintptr_t address_ = 0;
  std::size_t bytes_ = 0;
};

// Fails: ErrorKind::invalid while a stream of this process that waits for the legacy stream is being captured: waiting
// and taking memory would end its capture. (Others the driver does not tell of.)
void refuse_during_capture(const char* what);

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

// The stream of the current device that all measuring and verifying is done on, kept for the life of the process: once
// kernels of a second stream have run in a process, every launch in it costs more from then on (0.18 us on an H200,
// driver 580), and a figure must not depend on what ran before it. For the holder of measuring_turn().
const Stream& measuring_stream();
// One verification or sweep at a time in a process: held for as long as measuring_stream() is used. Waits for its turn;
// a thread that has it may take it again.
std::unique_lock<std::recursive_mutex> measuring_turn();

// What `record` put on the stream, as one executable graph.
class Graph {
 public:
  Graph(const Stream& stream, const std::function<void()>& record);
  Graph(Graph&& other) noexcept;
  Graph& operator=(Graph&& other) noexcept;
  ~Graph();
  void launch(const Stream& stream) const;

 private:
  const Driver* driver_ = nullptr;
  void* executable_ = nullptr;
};

// Time on the device between the points of a stream that it marks.
class Stopwatch {
 public:
  // For up to `marks` points.
  explicit Stopwatch(int marks);
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  ~Stopwatch();
  // Point `i`: the work that is on the stream by now.
  void mark(int i, const Stream& stream) const;
  // From point i to point i + 1, microseconds. Waits for the latter.
  double lap_us(int i) const;

 private:
  void destroy_events();

  const Driver& driver_;
  std::vector<void*> events_;
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
// How many clusters of `cluster` blocks of a source's first entry the device holds at once. Fails: ErrorKind::machine
// when the driver refuses.
int clusters_at_once(const Source& source, const Cubin& cubin, int cluster);

// `dependent`: programmatic stream serialization; `cluster`: blocks of a cluster, along x. Both sm_90 and later.
// `smem_bytes`: dynamic shared memory, up to 48 KiB.
void launch_raw(void* entry, std::int64_t grid_x, std::int64_t grid_y, int threads, const void* parameters,
                void* stream, bool dependent, int cluster = 1, int smem_bytes = 0);

}  // namespace ssmjit
