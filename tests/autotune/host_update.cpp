#include "host_update.h"

#include <cmath>
#include <cstring>
#include <limits>

#include <ssmjit/error.h>

namespace ssmjit {
namespace {

float from_bits(std::uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}

std::uint32_t to_bits(float v) {
  std::uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}

// fp16 by way of fp32's own rounding: a fraction of 13 bits less, at an offset where fp32's last bit is fp16's.
float half_to_float(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
  const std::uint32_t magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u) return from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  const float v = from_bits(magnitude << 13) * 0x1p112f;
  return from_bits(sign | to_bits(v));
}

std::uint16_t float_to_half(float v) {
  const auto sign = static_cast<std::uint16_t>(to_bits(v) >> 16 & 0x8000u);
  const float magnitude = std::fabs(v);
  if (std::isnan(v)) return 0x7fff;
  if (magnitude >= 65520.0f) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x1p-14f) return static_cast<std::uint16_t>(sign | std::lrintf(magnitude * 0x1p24f));
  const std::uint32_t bits = to_bits(magnitude);
  const std::uint32_t even = bits + 0xfffu + (bits >> 13 & 1u);
  return static_cast<std::uint16_t>(sign | ((even >> 13) - (112u << 10)));
}

float load(const Tensor& t, std::int64_t at) {
  const auto* base = static_cast<const std::byte*>(t.data);
  if (t.dtype == DType::f32) {
    float v;
    std::memcpy(&v, base + 4 * at, 4);
    return v;
  }
  std::uint16_t bits;
  std::memcpy(&bits, base + 2 * at, 2);
  return t.dtype == DType::bf16 ? from_bits(static_cast<std::uint32_t>(bits) << 16) : half_to_float(bits);
}

void store(const Tensor& t, std::int64_t at, float v) {
  auto* base = static_cast<std::byte*>(const_cast<void*>(t.data));
  if (t.dtype == DType::f32) {
    std::memcpy(base + 4 * at, &v, 4);
    return;
  }
  std::uint16_t bits;
  if (t.dtype == DType::bf16) {
    const std::uint32_t wide = to_bits(v);
    bits = static_cast<std::uint16_t>(std::isnan(v) ? 0x7fffu : (wide + 0x7fffu + (wide >> 16 & 1u)) >> 16);
  } else {
    bits = float_to_half(v);
  }
  std::memcpy(base + 2 * at, &bits, 2);
}

float stored(DType dtype, float v) {
  float room = 0;
  const Tensor t = contiguous(&room, dtype, {1});
  store(t, 0, v);
  return load(t, 0);
}

std::int64_t index_of(const Tensor& t, std::int64_t row, bool narrow) {
  const auto* base = static_cast<const std::byte*>(t.data);
  if (t.dtype == DType::i64 && !narrow) {
    std::int64_t v;
    std::memcpy(&v, base + 8 * row * t.stride[0], 8);
    return v;
  }
  std::int32_t v;
  std::memcpy(&v, base + 4 * row * t.stride[0], 4);
  return v;
}

}  // namespace

std::byte* HostTarget::allocate(const KernelCase::Block& block) {
  memory_.push_back(std::make_unique<std::vector<std::byte>>(block.before));
  return memory_.back()->data();
}

void HostTarget::restore(std::byte* address, const KernelCase::Block& block) {
  std::memcpy(address, block.before.data(), block.before.size());
}

void HostTarget::read(const std::byte* address, std::vector<std::byte>& contents) {
  for (const auto& block : memory_)
    if (block->data() == address) contents = *block;
}

std::vector<std::string> HostTarget::launch(const KernelCase&, const CaseArgs& given) {
  const auto& args = std::get<UpdateArgs>(given);
  if (is(Mutation::never_launched)) throw Error(ErrorKind::machine, "cuLaunchKernelEx: an illegal address");
  const std::int64_t batch = args.x.shape[0];
  for (std::int64_t row = 0; row < batch; ++row) step(args, row);
  const std::int64_t end = (batch - 1) * args.out.stride[0] + description_.nheads * description_.head_dim;
  if (is(Mutation::past_the_end))
    store(args.out, end + args.out.stride[0] - args.out.stride[1] * args.out.shape[1], 1.0f);
  if (is(Mutation::one_nan)) store(args.out, 3, std::numeric_limits<float>::quiet_NaN());
  if (is(Mutation::differs_from_third_on) && ++launches_ >= 3) {
    auto* first = static_cast<std::byte*>(const_cast<void*>(args.out.data));
    *first ^= std::byte{1};
  }
  return {};
}

void HostTarget::step(const UpdateArgs& args, std::int64_t row) const {
  const Description& d = description_;
  const std::int64_t H = d.nheads, P = d.head_dim, N = d.dstate, G = d.ngroups;
  const std::int64_t slots = args.state.shape[0];
  const bool narrow = is(Mutation::narrow_indices);
  const auto slot_of = [&](std::int64_t r) {
    return args.state_batch_indices.data != nullptr ? index_of(args.state_batch_indices, r, narrow) : r;
  };
  const auto usable = [&](std::int64_t slot) { return slot >= 0 && slot < slots && slot != args.pad_slot_id; };

  std::int64_t source = slot_of(row);
  std::int64_t target = source;
  if (d.has_destination && args.dst_state_batch_indices.data != nullptr && !is(Mutation::destination_ignored))
    target = index_of(args.dst_state_batch_indices, row, narrow);
  const bool live = usable(source);
  bool writes = live && usable(target);
  const std::int64_t own = source;
  if (is(Mutation::neighbour_slot) && live && row > 0 && usable(slot_of(row - 1))) source = slot_of(row - 1);
  if (is(Mutation::pad_state_written) && !live && usable(0) && args.pad_slot_id >= 0) {
    target = args.pad_slot_id;
    writes = true;
  }

  const std::int64_t out_row = row * args.out.stride[0];
  if (!live && d.pad_output_kind != PadOutput::as_if_zero_state && !is(Mutation::pad_state_written)) {
    if (d.pad_output_kind == PadOutput::zeros)
      for (std::int64_t i = 0; i < H * P; ++i) store(args.out, out_row + i, is(Mutation::negative_zero) ? -0.0f : 0.0f);
    if (is(Mutation::pad_row_written)) store(args.out, out_row, 1.0f);
    return;
  }

  const std::int64_t slot_stride = is(Mutation::slot_stride_ignored) ? H * P * N : args.state.stride[0];
  for (std::int64_t h = 0; h < H; ++h) {
    std::int64_t g = h / (H / G);
    if (is(Mutation::wrong_group)) g = h % G;
    if (is(Mutation::group_zero)) g = 0;
    const auto delta_of = [&](std::int64_t head) {
      float v = load(args.dt, row * args.dt.stride[0] + head);
      if (args.dt_bias.data != nullptr && !is(Mutation::missed_dt_bias)) v += load(args.dt_bias, head);
      if (is(Mutation::missed_softplus)) return v;
      return v > 20.0f ? v : std::log1p(std::exp(v));
    };
    const float delta = delta_of(h);
    float decay =
        std::exp(load(args.A, h) * (is(Mutation::decay_of_previous_head) ? delta_of(h > 0 ? h - 1 : 0) : delta));
    if (is(Mutation::no_decay)) decay = 1.0f;
    const std::int64_t x_row = row * (is(Mutation::row_stride_ignored) ? H * P : args.x.stride[0]);
    const std::int64_t B_at = row * args.B.stride[0] + g * N;
    const std::int64_t C_at = (is(Mutation::stale_C) ? 0 : row) * args.C.stride[0] + g * N;
    const bool keeps = writes && !(is(Mutation::head_not_stored) && h + 1 == H);
    for (std::int64_t p = 0; p < P; ++p) {
      const float x = load(args.x, x_row + h * P + p);
      float y = 0;
      for (std::int64_t n = 0; n < N; ++n) {
        const bool last = n + 1 == N;
        if (last && is(Mutation::last_column_dropped)) continue;
        const std::int64_t at = (h * P + p) * N + n;
        float state = live ? load(args.state, source * slot_stride + at) : 0.0f;
        state = state * decay + delta * x * load(args.B, B_at + n);
        y += (is(Mutation::y_from_rounded_state) ? stored(d.state_dtype, state) : state) * load(args.C, C_at + n);
        if (!keeps || (last && is(Mutation::last_column_not_stored))) continue;
        store(args.state, target * slot_stride + at, state);
        if (is(Mutation::destination_and_source) && live) store(args.state, own * slot_stride + at, state);
      }
      if (args.D.data != nullptr && !is(Mutation::missed_skip)) y += load(args.D, h) * x;
      if (args.z.data != nullptr && !is(Mutation::missed_gate)) {
        const float z = load(args.z, row * args.z.stride[0] + h * P + p);
        y *= z / (1.0f + std::exp(-z));
      }
      if (live || d.pad_output_kind == PadOutput::as_if_zero_state) store(args.out, out_row + h * P + p, y);
    }
  }
  if (!live && d.pad_output_kind == PadOutput::zeros)
    for (std::int64_t i = 0; i < H * P; ++i) store(args.out, out_row + i, 0.0f);
}

}  // namespace ssmjit
