// The kernels of a ring's slots on a GPU. Skips aloud without one.
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/device.h>
#include <ssmjit/ring.h>

#include "autotune/ring_case.h"
#include "jit/gpu.h"
#include "tests/gpu/needs_gpu.h"
#include "tests/jit/cpu/slot_pools.h"

namespace ssmjit {
namespace {

Description ring(DType state, DType input = DType::bf16, int window = 16) {
  return mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 2})
      .delta(softplus(dsl::dt))
      .no_skip()
      .state(state)
      .input(input)
      .store(Ring{.window = window});
}

// Pools on the device.
class DevicePools {
 public:
  DevicePools(const Description& d, const SlotPools& pools) : pools_(pools) {
    for (const SlotPools::Block& block : pools_.blocks()) {
      buffers_.emplace_back(std::max<std::size_t>(16, block.bytes.size()));
      base_.push_back(buffers_.back().data());
    }
    reset();
    const std::vector<RingLayer> layers = pools_.layers_at(base_);
    table_ = upload(ring_layer_table(d, layers));
    layers_ = contiguous(table_.data(), DType::i64, {static_cast<std::int64_t>(layers.size()), kRingLayerWords});
  }
  void reset() {
    for (std::size_t i = 0; i < buffers_.size(); ++i)
      buffers_[i].upload(pools_.blocks()[i].bytes.data(), pools_.blocks()[i].bytes.size());
  }
  std::vector<std::vector<std::byte>> bytes() const {
    std::vector<std::vector<std::byte>> all;
    for (std::size_t i = 0; i < buffers_.size(); ++i) {
      all.emplace_back(pools_.blocks()[i].bytes.size());
      buffers_[i].download(all.back().data(), all.back().size());
    }
    return all;
  }
  template <class T>
  static DeviceBuffer upload(const std::vector<T>& values) {
    DeviceBuffer buffer(std::max<std::size_t>(16, values.size() * sizeof(T)));
    buffer.upload(values.data(), values.size() * sizeof(T));
    return buffer;
  }
  const Tensor& layers() const { return layers_; }
  Tensor ring_start() const { return pools_.ring_start(base_); }
  Tensor ring_count() const { return pools_.ring_count(base_); }

 private:
  SlotPools pools_;
  std::vector<DeviceBuffer> buffers_;
  std::vector<std::byte*> base_;
  DeviceBuffer table_;
  Tensor layers_;
};

struct Request {
  std::int32_t src = 0, dst = 0, start = 0, prefix = 0;
};

// A launch that materialises, on the device.
class DeviceRequests {
 public:
  explicit DeviceRequests(const std::vector<Request>& requests) : count_(static_cast<std::int64_t>(requests.size())) {
    std::vector<std::int32_t> column[4];
    for (const Request& r : requests) {
      const std::int32_t fields[] = {r.src, r.dst, r.start, r.prefix};
      for (std::size_t k = 0; k < 4; ++k) column[k].push_back(fields[k]);
    }
    for (const std::vector<std::int32_t>& values : column) columns_.push_back(DevicePools::upload(values));
    seed_ = DevicePools::upload(std::vector<std::int64_t>{kSeed});
  }
  MaterialiseArgs args(const Description& d, const DevicePools& pools) const {
    const auto column = [&](std::size_t k) { return contiguous(columns_[k].data(), DType::i32, {count_}); };
    MaterialiseArgs args;
    args.layers = pools.layers();
    args.src_slots = column(0);
    args.dst_slots = column(1);
    args.ring_start = column(2);
    args.prefix_length = column(3);
    if (std::holds_alternative<Stochastic>(d.rounding_kind)) args.rand_seed = contiguous(seed_.data(), DType::i64, {1});
    return args;
  }
  static constexpr std::int64_t kSeed = -123456789;

 private:
  std::int64_t count_;
  std::vector<DeviceBuffer> columns_;
  DeviceBuffer seed_;
};

// Prefixes from none to all rows of rings that wrap, pads, and a slot in place.
std::vector<Request> all_kinds(const Description& d, SlotPools& pools) {
  const int W = d.ring_window(), L = d.ring_length();
  std::vector<Request> requests = {{-1, 40, 0, W}, {20, -3, 0, W}, {20, 99, 0, W}, {0, 0, L - 1, W}, {1, 21, 3 % L, 0}};
  for (std::int32_t i = 2; i < 19; ++i) requests.push_back({i, i + 20, i * 5 % L, i * W / 18});
  for (const Request& r : requests)
    if (r.src >= 0 && r.src < 19) pools.fill_ring(r.src, r.start, r.prefix);
  return requests;
}

void expect_right(const Description& d, SlotPools& before, const std::vector<Request>& requests,
                  std::vector<std::vector<std::byte>> after) {
  SlotPools want = before;
  std::vector<std::byte*> base;
  for (std::vector<std::byte>& block : after) base.push_back(block.data());
  const std::vector<RingLayer> was = before.layers_at(before.base()), is = before.layers_at(base),
                               wanted = want.layers_at(want.base());
  FlushMeter meter(d, static_cast<std::uint64_t>(DeviceRequests::kSeed));
  for (std::size_t i = 0; i < is.size(); ++i)
    for (const Request& r : requests) {
      if (r.src < 0 || r.dst < 0 || r.dst >= is[i].state.shape[0]) continue;
      for (const auto& member : {&RingLayer::state, &RingLayer::state_scale}) {
        if ((is[i].*member).data == nullptr) continue;
        const RingLayer& source = r.prefix == 0 ? was[i] : is[i];
        std::memcpy(SlotPools::slot_bytes(wanted[i].*member, r.dst),
                    SlotPools::slot_bytes(source.*member, r.prefix == 0 ? r.src : r.dst),
                    SlotPools::slot_size(is[i].*member));
      }
      if (r.prefix == 0) continue;
      RingRequest of{.live = true, .slot = r.src, .start = r.start, .count = r.prefix};
      of.flush = true;
      RingRequest there = of;
      there.slot = r.dst;
      for (int h = 0; h < d.nheads; ++h)
        meter.add_head(ring_reference(d, SlotPools::step_args(was[i]), 0, of, h, ring_operands(d), read_host), there, h,
                       SlotPools::step_args(is[i]), read_host);
    }
  EXPECT_EQ(meter.failure(), "") << d.summary();
  for (std::size_t i = 0; i < after.size(); ++i)
    EXPECT_TRUE(after[i] == want.blocks()[i].bytes) << want.blocks()[i].name << " holds bytes that it must not";
}

TEST(GpuRingSlots, MaterialisedStatesAreThoseOfTheReferenceOnAStreamAndInAGraph) {
  NEEDS_GPU();
  std::vector<Description> all;
  for (DType state : {DType::f32, DType::bf16, DType::f16, DType::i8, DType::f8}) {
    all.push_back(ring(state));
    all.push_back(ring(state, DType::f16, 32));
    if (state != DType::f32) all.push_back(ring(state, DType::bf16, 7).rounding(Stochastic{}));
    Description odd = mamba2({.nheads = 6, .head_dim = 80, .dstate = 192, .ngroups = 2});
    all.push_back(odd.delta(softplus(dsl::dt)).no_skip().state(state).store(Ring{.window = 3, .length = 9}));
  }
  for (const Description& d : all) {
    const RingSlots slots = RingSlots::load(d);
    SlotPools pools(d, 2, 41);
    const std::vector<Request> requests = all_kinds(d, pools);
    DevicePools device(d, pools);
    const DeviceRequests on_device(requests);
    Stream stream;
    slots.materialise(on_device.args(d, device), stream.handle());
    stream.synchronize();
    const auto after = device.bytes();
    expect_right(d, pools, requests, after);
    device.reset();
    Graph(stream, [&] { slots.materialise(on_device.args(d, device), stream.handle()); }).launch(stream);
    stream.synchronize();
    EXPECT_TRUE(device.bytes() == after) << "a graph gives other bits";
  }
}

TEST(Faults, Row10_SlotsAreCopiedAndResetWithRingsWindowsAndCursors) {
  NEEDS_GPU();
  for (DType state : {DType::f32, DType::bf16, DType::i8}) {
    const Description d = ring(state);
    const RingSlots slots = RingSlots::load(d);
    SlotPools pools(d, 3, 9);
    for (int slot = 0; slot < 9; ++slot) {
      pools.fill_ring(slot, slot, 11);
      pools.set_cursor(slot, {slot, 11});
    }
    DevicePools device(d, pools);
    const DeviceBuffer src = DevicePools::upload(std::vector<std::int64_t>{8, 2, -1});
    const DeviceBuffer dst = DevicePools::upload(std::vector<std::int64_t>{1, 5, 4});
    const DeviceBuffer fresh = DevicePools::upload(std::vector<std::int32_t>{3, 8, 100});
    CopySlotsArgs copy;
    copy.layers = device.layers();
    copy.src_slots = contiguous(src.data(), DType::i64, {3});
    copy.dst_slots = contiguous(dst.data(), DType::i64, {3});
    copy.ring_start = device.ring_start();
    copy.ring_count = device.ring_count();
    copy.checked = true;
    ResetSlotsArgs reset;
    reset.layers = device.layers();
    reset.slots = contiguous(fresh.data(), DType::i32, {3});
    reset.ring_start = device.ring_start();
    reset.ring_count = device.ring_count();
    Stream stream;
    slots.copy(copy, stream.handle());
    slots.reset(reset, stream.handle());
    stream.synchronize();

    SlotPools want = pools;
    for (const RingLayer& layer : want.layers_at(want.base())) {
      for (const auto& [from, to] : {std::pair(8, 1), {2, 5}})
        for (const Tensor* t :
             {&layer.state, &layer.state_scale, &layer.x_ring, &layer.B_ring, &layer.dt_ring, &layer.conv_state})
          if (t->data != nullptr)
            std::memcpy(SlotPools::slot_bytes(*t, to), SlotPools::slot_bytes(*t, from), SlotPools::slot_size(*t));
      for (int slot : {3, 8}) {
        for (const Tensor* t : {&layer.state, &layer.conv_state})
          std::memset(SlotPools::slot_bytes(*t, slot), 0, SlotPools::slot_size(*t));
        for (int i = 0; d.has_state_scale() && i < d.nheads * d.head_dim; ++i)
          encode(DType::f32, SlotPools::slot_bytes(layer.state_scale, slot), i, 1.0);
        std::memset(SlotPools::slot_bytes(layer.dt_ring, slot), 0xff, SlotPools::slot_size(layer.dt_ring));
      }
    }
    want.set_cursor(1, {8, 11});
    want.set_cursor(5, {2, 11});
    want.set_cursor(3, {});
    want.set_cursor(8, {});
    const auto after = device.bytes();
    for (std::size_t i = 0; i < after.size(); ++i)
      EXPECT_TRUE(after[i] == want.blocks()[i].bytes) << name(state) << ": " << want.blocks()[i].name;
  }
}

TEST(Faults, Row18_AMoveOntoASlotThatAnotherReadsIsRefusedInCheckedMode) {
  NEEDS_GPU();
  const Description d = ring(DType::bf16);
  const RingSlots slots = RingSlots::load(d);
  DevicePools device(d, SlotPools(d, 1, 4));
  const auto before = device.bytes();
  const DeviceRequests on_device({{0, 1, 0, 0}, {1, 2, 0, 0}});
  MaterialiseArgs args = on_device.args(d, device);
  args.checked = true;
  Stream stream;
  try {
    slots.materialise(args, stream.handle());
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::invalid);
    EXPECT_STREQ(e.what(), "request 1 reads slot 1, which request 0 of the same launch writes");
  }
  EXPECT_TRUE(device.bytes() == before);
}

// What a prefix cache pays: printed by --gtest_output, judged by nobody.
TEST(GpuRingSlots, MaterialisingMovesBytesAtAGoodShareOfTheMemorysRate) {
  NEEDS_GPU();
  for (DType state : {DType::f32, DType::bf16, DType::i8}) {
    const Description d = ring(state);
    constexpr int kLayers = 8, kRequests = 32;
    const RingSlots slots = RingSlots::load(d);
    SlotPools pools(d, kLayers, 2 * kRequests);
    std::vector<Request> requests;
    for (std::int32_t i = 0; i < kRequests; ++i) {
      requests.push_back({i, i + kRequests, i % 17, 16});
      pools.fill_ring(i, i % 17, 16);
    }
    DevicePools device(d, pools);
    const DeviceRequests on_device(requests);
    const MaterialiseArgs args = on_device.args(d, device);
    Stream stream;
    Stopwatch watch(2);
    double best_us = 1e9;
    for (int i = 0; i < 20; ++i) {
      watch.mark(0, stream);
      for (int k = 0; k < 10; ++k) slots.materialise(args, stream.handle());
      watch.mark(1, stream);
      best_us = std::min(best_us, watch.lap_us(0) / 10);
    }
    const double bytes = 2.0 * kLayers * kRequests * 16 * 64 * 128 * size_bytes(state);
    RecordProperty(std::string(name(state)) + "_us", std::to_string(best_us));
    RecordProperty(std::string(name(state)) + "_TB_per_s", std::to_string(bytes / best_us * 1e-6));
    EXPECT_GT(bytes / best_us * 1e-6, 0.2) << name(state);
  }
}

}  // namespace
}  // namespace ssmjit
