// Memory of ring steps on the host, whose values do not depend on how they are laid out: by seed and by logical place.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <initializer_list>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <ssmjit/description.h>
#include <ssmjit/kernel.h>

#include "autotune/cpu_verify.h"
#include "autotune/host_numbers.h"

namespace ssmjit {

class RingMemory {
 public:
  // Dense: request b has token_count tokens. Varlen: so too, by cu_seqlens. Strided: gaps between slots, requests and
  // tokens. Slots are as many as requests, in reverse; rings are empty, their rows NaN.
  RingMemory(const Description& d, int batch, bool is_strided = false) : d_(d), batch_(batch), strided_(is_strided) {
    const std::int64_t H = d.nheads, P = d.head_dim, N = d.dstate, G = d.ngroups, L = d.ring_length();
    const std::int64_t gap = is_strided ? 16 : 0;
    args.state = add("state", d.state_dtype, {batch, H, P, N}, {gap});
    if (d.has_state_scale()) args.state_scale = add("state_scale", DType::f32, {batch, H, P}, {gap});
    args.x_ring = add("x_ring", d.input_dtype, {batch, H, L, P}, {gap});
    args.B_ring = add("B_ring", d.input_dtype, {batch, G, L, N}, {gap});
    args.dt_ring = add("dt_ring", DType::f32, {batch, H, L}, {gap});
    args.ring_start = add("ring_start", DType::i32, {batch});
    args.ring_count = add("ring_count", DType::i32, {batch});
    args.x = add_tokens("x", d.input_dtype, {H, P});
    args.B = add_tokens("B", d.input_dtype, {G, N});
    args.C = add_tokens("C", d.input_dtype, {G, N});
    if (d.has_z()) args.z = add_tokens("z", d.input_dtype, {H, P});
    args.dt = add_tokens("dt", d.dt_dtype, {H});
    args.out = add_tokens("out", d.input_dtype, {H, P});
    args.A = add("A", DType::f32, {H});
    if (d.has_D()) args.D = add("D", d.weight_dtype, {H});
    if (d.has_dt_bias()) args.dt_bias = add("dt_bias", d.weight_dtype, {H});
    args.state_batch_indices = add("state_batch_indices", DType::i32, {batch});
    if (d.is_varlen) args.cu_seqlens = add("cu_seqlens", DType::i32, {batch + 1});
    if (std::holds_alternative<Stochastic>(d.rounding_kind)) args.rand_seed = add("rand_seed", DType::i64, {1});
    for (int b = 0; b < batch; ++b) {
      put_int(args.state_batch_indices, b, batch - 1 - b);
      set_cursor(b, {0, 0});
    }
    for (int b = 0; d.is_varlen && b <= batch; ++b) put_int(args.cu_seqlens, b, b * d.token_count);
  }

  RingArgs args;

  // Every element of a tensor, in the order of its logical place.
  void fill(const Tensor& t, const std::function<double()>& value) {
    for_each(t, [&](std::int64_t at) { encode(t.dtype, bytes(t), at, value()); });
  }
  std::vector<double> values(const Tensor& t) const {
    std::vector<double> v;
    for_each(t, [&](std::int64_t at) { v.push_back(decode(t.dtype, bytes(t), at)); });
    return v;
  }
  // The same as bits, equal for equal values, NaN too.
  std::vector<std::byte> bits(const Tensor& t) const {
    std::vector<std::byte> v;
    for_each(t, [&](std::int64_t at) {
      const std::byte* first = bytes(t) + at * size_bytes(t.dtype);
      v.insert(v.end(), first, first + size_bytes(t.dtype));
    });
    return v;
  }
  void set_cursor(int slot, RingCursor cursor) {
    put_int(args.ring_start, slot, cursor.start);
    put_int(args.ring_count, slot, cursor.count);
  }
  // cu_seqlens.
  void set_lengths(const std::vector<int>& lengths) {
    for (std::size_t i = 0; i < lengths.size(); ++i) put_int(args.cu_seqlens, static_cast<std::int64_t>(i), lengths[i]);
  }
  // What is slot 0 here is slot `first` for the kernel, whose pools begin that far in front of the memory that there
  // is: products of a slot and its stride past 2^32 are reached with a few slots.
  void number_slots_from(std::int64_t first) {
    first_slot_ = first;
    for (int b = 0; b < batch_; ++b) put_int(args.state_batch_indices, b, static_cast<int>(first) + batch_ - 1 - b);
  }
  void set_seed(std::int64_t seed) { std::memcpy(bytes(args.rand_seed), &seed, sizeof seed); }
  std::vector<CpuBuffer> buffers() {
    std::vector<CpuBuffer> all;
    for (auto& [name, memory] : memory_)
      all.push_back(
          {.name = name, .data = memory.data(), .bytes = memory.size(), .writable = true, .before_wait = true});
    return all;
  }
  // The arguments with the memory of buffers()[i] at base[i].
  RingArgs args_at(const std::vector<std::byte*>& base) const {
    RingArgs moved = args;
    for (Tensor* t : {&moved.state, &moved.state_scale, &moved.x_ring, &moved.B_ring, &moved.dt_ring, &moved.ring_start,
                      &moved.ring_count, &moved.x, &moved.dt, &moved.A, &moved.B, &moved.C, &moved.D, &moved.dt_bias,
                      &moved.z, &moved.out, &moved.state_batch_indices, &moved.cu_seqlens, &moved.rand_seed})
      for (std::size_t i = 0; i < memory_.size(); ++i)
        if (t->data != nullptr && t->data == memory_[i].second.data()) {
          t->data = base[i];
          break;
        }
    for (Tensor* t : {&moved.state, &moved.state_scale, &moved.x_ring, &moved.B_ring, &moved.dt_ring, &moved.ring_start,
                      &moved.ring_count}) {
      if (t->data == nullptr) continue;
      const auto in_front = static_cast<std::uintptr_t>(first_slot_ * t->stride[0] * size_bytes(t->dtype));
      t->data = reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(t->data) - in_front);
      t->shape[0] += first_slot_;
    }
    return moved;
  }
  // As a kernel on the host is given them: `args`, unless slots are numbered otherwise.
  RingArgs args_here() {
    std::vector<std::byte*> base;
    for (auto& [name, memory] : memory_) base.push_back(memory.data());
    return args_at(base);
  }
  // A step of the kernel; a finding's text, or nothing.
  std::string run(const CpuProgram& program, const Plan& plan, Pdl pdl = Pdl::off) {
    const device_args::RingArgs device = to_device(args_here(), pdl);
    const CpuReport report = program.run(cpu_launch(launch_shape(plan, d_, batch_), device, buffers()));
    return report.clean() ? "" : report.findings.front().text();
  }
  static std::byte* bytes(const Tensor& t) { return static_cast<std::byte*>(const_cast<void*>(t.data)); }

 private:
  // Contiguous but for gaps after the entries of the outer dimensions.
  Tensor add(const char* name, DType dtype, std::initializer_list<std::int64_t> shape,
             std::initializer_list<std::int64_t> gaps = {}) {
    Tensor t;
    t.dtype = dtype;
    t.rank = static_cast<int>(shape.size());
    std::copy(shape.begin(), shape.end(), t.shape.begin());
    std::int64_t stride = 1;
    for (std::size_t i = shape.size(); i-- > 0;) {
      if (i < gaps.size()) stride += *(gaps.begin() + static_cast<std::ptrdiff_t>(i));
      t.stride[i] = stride;
      stride *= t.shape[i];
    }
    memory_.emplace_back(name,
                         std::vector<std::byte>(static_cast<std::size_t>(stride * size_bytes(dtype)), std::byte{0xff}));
    t.data = memory_.back().second.data();
    return t;
  }
  Tensor add_tokens(const char* name, DType dtype, std::initializer_list<std::int64_t> inner) {
    const std::int64_t T = d_.token_count, gap = strided_ ? 16 : 0;
    const std::int64_t* i = inner.begin();
    if (inner.size() == 1)
      return d_.is_varlen ? add(name, dtype, {batch_ * T, i[0]}, {gap})
                          : add(name, dtype, {batch_, T, i[0]}, {gap, gap});
    return d_.is_varlen ? add(name, dtype, {batch_ * T, i[0], i[1]}, {gap})
                        : add(name, dtype, {batch_, T, i[0], i[1]}, {gap, gap});
  }
  static void put_int(const Tensor& t, std::int64_t i, int v) { std::memcpy(bytes(t) + 4 * i, &v, 4); }
  template <class Look>
  static void for_each(const Tensor& t, const Look& look) {
    std::array<std::int64_t, 4> shape{1, 1, 1, 1};
    std::copy_n(t.shape.begin(), t.rank, shape.begin());
    for (std::int64_t a = 0; a < shape[0]; ++a)
      for (std::int64_t b = 0; b < shape[1]; ++b)
        for (std::int64_t c = 0; c < shape[2]; ++c)
          for (std::int64_t e = 0; e < shape[3]; ++e)
            look(a * t.stride[0] + b * t.stride[1] + c * t.stride[2] + e * t.stride[3]);
  }

  Description d_;
  int batch_;
  bool strided_;
  std::int64_t first_slot_ = 0;
  std::deque<std::pair<std::string, std::vector<std::byte>>> memory_;
};

// Takes one step: what the kernel writes is in the memory afterwards.
using RingStepper = std::function<void(const Description& d, const Plan& plan, RingMemory& memory, Pdl pdl)>;

// Values by a seed: as trained models have them.
class Values {
 public:
  explicit Values(std::uint64_t seed) : random_(seed) {}
  double normal() { return normal_(random_); }
  double uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(random_); }
  int below(int limit) { return static_cast<int>(random_() % static_cast<std::uint64_t>(limit)); }

  double small_delta() { return std::exp(uniform(std::log(0.001), std::log(0.1))); }

  // A from -16 to -1, deltas around 0.001 to 0.1.
  void weights(RingMemory& m) {
    m.fill(m.args.A, [&] { return -std::exp(uniform(0, std::log(16.0))); });
    if (m.args.D.data != nullptr) m.fill(m.args.D, [&] { return normal(); });
    if (m.args.dt_bias.data != nullptr) m.fill(m.args.dt_bias, [&] { return std::log(std::expm1(small_delta())); });
  }
  void inputs(RingMemory& m) {
    for (const Tensor* t : {&m.args.x, &m.args.B, &m.args.C, &m.args.z})
      if (t->data != nullptr) m.fill(*t, [&] { return normal(); });
    m.fill(m.args.dt, [&] { return 0.5 * normal(); });
  }

 private:
  std::mt19937_64 random_;
  std::normal_distribution<double> normal_;
};

}  // namespace ssmjit
