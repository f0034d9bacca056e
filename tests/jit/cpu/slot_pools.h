// Pools of a ring's slots of several layers, as an engine keeps them, in blocks of host memory that a test may also
// have elsewhere.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/kernel.h>
#include <ssmjit/ring.h>

#include "autotune/host_numbers.h"

namespace ssmjit {

class SlotPools {
 public:
  struct Block {
    std::string name;
    bool is_state = false;  // states and scales
    std::vector<std::byte> bytes;
  };

  // Slots with gaps between them. States, scales, windows and weights have values, rings and cursors none: all NaN, and
  // -1.
  SlotPools(const Description& d, int layers, std::int64_t slots, std::uint64_t seed = 1)
      : d_(d), layers_(layers), slots_(slots), random_(seed) {
    for (int i = 0; i < layers; ++i) {
      for (int k = 0; k < kTensors; ++k) {
        const Tensor t = tensor(k, nullptr);
        const auto bytes = static_cast<std::size_t>(t.rank == 0 ? 0 : t.shape[0] * t.stride[0] * size_bytes(t.dtype));
        blocks_.push_back({std::string(kNames[k]) + " of layer " + std::to_string(i), k < 2,
                           std::vector<std::byte>(bytes, std::byte{0xff})});
      }
      const RingLayer layer = layers_at(base())[static_cast<std::size_t>(i)];
      for (std::int64_t h = 0; h < d.nheads; ++h) put(layer.A, h, -std::exp(uniform(-2, 2)));
      for (std::int64_t slot = 0; slot < slots; ++slot) {
        const std::int64_t rows = std::int64_t{d.nheads} * d.head_dim;
        for (std::int64_t n = 0; n < rows * d.dstate; ++n)
          put(layer.state, slot * layer.state.stride[0] + n, d.has_state_scale() ? 30 * normal() : normal());
        for (std::int64_t n = 0; d.has_state_scale() && n < rows; ++n)
          put(layer.state_scale, slot * layer.state_scale.stride[0] + n, uniform(0.02, 0.04));
        const std::int64_t window = layer.conv_state.shape[1] * layer.conv_state.shape[2];
        for (std::int64_t n = 0; n < window; ++n)
          put(layer.conv_state, slot * layer.conv_state.stride[0] + n, static_cast<double>((7 * n + slot) % 31 - 15));
      }
    }
    for (const char* name : {"ring_start", "ring_count"})
      blocks_.push_back({name, false, std::vector<std::byte>(static_cast<std::size_t>(4 * slots), std::byte{0xff})});
  }

  const std::vector<Block>& blocks() const { return blocks_; }
  std::vector<Block>& blocks() { return blocks_; }
  // Where the blocks are.
  std::vector<std::byte*> base() {
    std::vector<std::byte*> all;
    for (Block& block : blocks_) all.push_back(block.bytes.data());
    return all;
  }
  std::vector<RingLayer> layers_at(const std::vector<std::byte*>& base) const {
    std::vector<RingLayer> all;
    for (int i = 0; i < layers_; ++i) {
      const auto at = [&](int k) { return tensor(k, base[static_cast<std::size_t>(i * kTensors + k)]); };
      all.push_back({at(0), at(1), at(2), at(3), at(4), at(5), at(6)});
    }
    return all;
  }
  Tensor ring_start(const std::vector<std::byte*>& base) const {
    return contiguous(base[base.size() - 2], DType::i32, {slots_});
  }
  Tensor ring_count(const std::vector<std::byte*>& base) const {
    return contiguous(base[base.size() - 1], DType::i32, {slots_});
  }

  // Gives a slot's ring values in `rows` rows from `start` on, in every layer. `dt`: what delta is the softplus of.
  void fill_ring(std::int64_t slot, int start, int rows, double least_dt = -3, double most_dt = 0.5) {
    for (const RingLayer& layer : layers_at(base()))
      for (int j = 0; j < rows; ++j) {
        const std::int64_t place = (start + j) % d_.ring_length();
        const auto row = [&](const Tensor& ring, std::int64_t head) {
          return slot * ring.stride[0] + head * ring.stride[1] + place * ring.stride[2];
        };
        for (std::int64_t h = 0; h < d_.nheads; ++h) {
          for (std::int64_t p = 0; p < d_.head_dim; ++p) put(layer.x_ring, row(layer.x_ring, h) + p, normal());
          put(layer.dt_ring, row(layer.dt_ring, h), std::log1p(std::exp(uniform(least_dt, most_dt))));
        }
        for (std::int64_t g = 0; g < d_.ngroups; ++g)
          for (std::int64_t n = 0; n < d_.dstate; ++n) put(layer.B_ring, row(layer.B_ring, g) + n, normal());
      }
  }
  void set_cursor(std::int64_t slot, RingCursor cursor) {
    std::memcpy(blocks_[blocks_.size() - 2].bytes.data() + 4 * slot, &cursor.start, 4);
    std::memcpy(blocks_[blocks_.size() - 1].bytes.data() + 4 * slot, &cursor.count, 4);
  }

  // Pools whose slot 0 here is slot `first`, and begin that far in front of the memory that there is: products of a
  // slot and its stride past 2^32 are reached with a few slots.
  static Tensor numbered_from(Tensor pool, std::int64_t first) {
    if (pool.data == nullptr) return pool;
    const auto in_front = static_cast<std::uintptr_t>(first * pool.stride[0] * size_bytes(pool.dtype));
    pool.data = reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(pool.data) - in_front);
    pool.shape[0] += first;
    return pool;
  }
  static RingLayer numbered_from(RingLayer layer, std::int64_t first) {
    for (Tensor* t :
         {&layer.state, &layer.state_scale, &layer.x_ring, &layer.B_ring, &layer.dt_ring, &layer.conv_state})
      *t = numbered_from(*t, first);
    return layer;
  }

  // A layer as a ring step sees it, for the reference.
  static RingArgs step_args(const RingLayer& layer) {
    RingArgs args;
    args.state = layer.state;
    args.state_scale = layer.state_scale;
    args.x_ring = layer.x_ring;
    args.B_ring = layer.B_ring;
    args.dt_ring = layer.dt_ring;
    args.A = layer.A;
    return args;
  }
  static std::byte* bytes_of(const Tensor& t) { return static_cast<std::byte*>(const_cast<void*>(t.data)); }
  // Where a slot's bytes begin, and how many they are without the gap.
  static std::byte* slot_bytes(const Tensor& t, std::int64_t slot) {
    return bytes_of(t) + slot * t.stride[0] * size_bytes(t.dtype);
  }
  static std::size_t slot_size(const Tensor& t) {
    std::int64_t elements = 1;
    for (int i = 1; i < t.rank; ++i) elements *= t.shape[static_cast<std::size_t>(i)];
    return static_cast<std::size_t>(elements * size_bytes(t.dtype));
  }

  double normal() { return normal_(random_); }
  double uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(random_); }

 private:
  static constexpr int kTensors = 7;
  static constexpr const char* kNames[kTensors] = {"state",   "state_scale", "x_ring",    "B_ring",
                                                   "dt_ring", "A",           "conv_state"};
  static constexpr std::int64_t kGap = 16;  // elements

  static void put(const Tensor& t, std::int64_t i, double v) { encode(t.dtype, bytes_of(t), i, v); }

  Tensor tensor(int k, const std::byte* data) const {
    const std::int64_t H = d_.nheads, P = d_.head_dim, N = d_.dstate, G = d_.ngroups, L = d_.ring_length();
    Tensor t;
    switch (k) {
      case 0:
        t = contiguous(data, d_.state_dtype, {slots_, H, P, N});
        break;
      case 1:
        if (!d_.has_state_scale()) return {};
        t = contiguous(data, DType::f32, {slots_, H, P});
        break;
      case 2:
        t = contiguous(data, d_.input_dtype, {slots_, H, L, P});
        break;
      case 3:
        t = contiguous(data, d_.input_dtype, {slots_, G, L, N});
        break;
      case 4:
        t = contiguous(data, DType::f32, {slots_, H, L});
        break;
      case 5:
        return contiguous(data, DType::f32, {H});
      default:  // of x, B and C
        t = contiguous(data, d_.input_dtype, {slots_, H * P + 2 * G * N, 3});
    }
    t.stride[0] += kGap;
    return t;
  }

  Description d_;
  int layers_;
  std::int64_t slots_;
  std::mt19937_64 random_;
  std::normal_distribution<double> normal_;
  std::vector<Block> blocks_;
};

}  // namespace ssmjit
