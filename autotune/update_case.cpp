#include "autotune/update_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include <fmt/format.h>

#include "autotune/host_numbers.h"

namespace ssmjit {
namespace {

constexpr std::size_t kCanary = 256;
constexpr std::byte kPoison{0xff};  // NaN in every dtype, -1 as an index

std::int64_t round_up(std::int64_t v, std::int64_t to) { return (v + to - 1) / to * to; }

// Few enough bits that fp32 adds two of them without rounding: exp() of a rounded sum of -15 is off by 8 units in fp32.
double exact_in_sums(double v) { return std::round(v * 4096) / 4096; }

}  // namespace

std::string CaseLayout::name() const {
  std::string s = fmt::format("batch {}", batch);
  if (indexed) s += fmt::format(", {} slots shuffled", ssmjit::name(index_dtype));
  if (padded_state) s += ", padded slots";
  if (packed_rows) s += ", packed rows";
  if (pads) s += ", pads";
  if (strong_decay) s += ", strong decay";
  return s;
}

std::vector<CaseLayout> standard_layouts(const Description& description, int sms) {
  const int wave = std::clamp(sms / std::max(1, description.nheads) + 1, 2, 17);
  std::vector<CaseLayout> layouts(4);
  layouts[0] = {.batch = 1, .strong_decay = true};
  layouts[1] = {.batch = 3, .index_dtype = DType::i32, .indexed = true, .padded_state = true, .pads = true};
  layouts[2] = {.batch = 7, .index_dtype = DType::i64, .indexed = true, .packed_rows = true, .pads = true};
  layouts[3] = {.batch = wave, .index_dtype = DType::i32, .indexed = true};
  return layouts;
}

std::size_t UpdateCase::add(std::string name, std::size_t bytes, bool may_change) {
  Block block;
  block.name = std::move(name);
  block.tensor_offset = kCanary;
  block.before.assign(bytes + 2 * kCanary, kPoison);
  block.may_change = may_change;
  blocks_.push_back(std::move(block));
  return blocks_.size() - 1;
}

UpdateCase::UpdateCase(const Description& description, const CaseLayout& layout, std::uint64_t seed)
    : description_(description), layout_(layout) {
  const Description& d = description_;
  const std::int64_t batch = layout.batch;
  const std::int64_t H = d.nheads, P = d.head_dim, N = d.dstate, G = d.ngroups;
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  const auto uniform = [&](double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(random);
  };
  const auto in = static_cast<std::size_t>(size_bytes(d.input_dtype));

  // Slots: more than rows, so that some are never touched.
  const std::int64_t slots = layout.indexed ? 2 * batch + 3 : batch;
  const std::int64_t slot = round_up(H * P * N + (layout.padded_state ? 72 : 0), 16);
  const std::size_t state_block =
      add("state", static_cast<std::size_t>(slots * slot) * static_cast<std::size_t>(size_bytes(d.state_dtype)), true);

  // Rows of the inputs: each tensor its own, or slices of one packed row.
  struct Slice {
    std::size_t block;
    std::int64_t offset, stride;  // elements
  };
  const std::int64_t widths[] = {H * P, G * N, G * N, d.has_z() ? H * P : 0};
  const char* names[] = {"x", "B", "C", "z"};
  Slice slices[4];
  if (layout.packed_rows) {
    // An aligned description gets rows of a multiple of 16 bytes, another one rows of an odd count of elements.
    const std::int64_t sum = widths[0] + widths[1] + widths[2] + widths[3];
    const std::int64_t stride = d.aligned_rows ? round_up(sum + H, 16) : (sum + H) | 1;
    const std::size_t block = add("x, B, C, z", static_cast<std::size_t>(batch * stride) * in, false);
    std::int64_t offset = 0;
    for (int i : {3, 0, 1, 2}) {
      slices[i] = {block, offset, stride};
      offset += widths[i];
    }
  } else {
    for (int i = 0; i < 4; ++i) {
      const std::int64_t stride = d.aligned_rows ? widths[i] : widths[i] + 1;
      slices[i] = {widths[i] != 0 ? add(names[i], static_cast<std::size_t>(batch * stride) * in, false) : 0, 0, stride};
    }
  }
  const std::size_t dt_block = add("dt", static_cast<std::size_t>(batch * (H + 1)) * 4, false);
  const std::size_t A_block = add("A", static_cast<std::size_t>(H) * 4, false);
  const std::size_t bias_block = add("dt_bias", static_cast<std::size_t>(H) * 4, false);
  const std::size_t D_block = add("D", static_cast<std::size_t>(H) * 4, false);
  const std::int64_t out_stride = H * P + (layout.packed_rows ? 8 : 0);
  const std::size_t out_block = add("out", static_cast<std::size_t>(batch * out_stride) * in, true);
  const auto index_bytes = static_cast<std::size_t>(size_bytes(layout.index_dtype));
  const std::size_t index_block = add("state_batch_indices", static_cast<std::size_t>(batch) * index_bytes, false);
  const std::size_t dst_block = add("dst_state_batch_indices", static_cast<std::size_t>(batch) * index_bytes, false);

  const auto at = [&](std::size_t block) { return blocks_[block].before.data() + kCanary; };
  host_ = UpdateArgs{};
  const auto rows_of = [&](int i, std::int64_t count, std::int64_t width) {
    const Slice& s = slices[i];
    return strided(at(s.block) + static_cast<std::size_t>(s.offset) * in, d.input_dtype, {batch, count, width},
                   {s.stride, width, 1});
  };
  host_.state = strided(at(state_block), d.state_dtype, {slots, H, P, N}, {slot, P * N, N, 1});
  host_.x = rows_of(0, H, P);
  host_.B = rows_of(1, G, N);
  host_.C = rows_of(2, G, N);
  if (d.has_z()) host_.z = rows_of(3, H, P);
  host_.dt = strided(at(dt_block), d.dt_dtype, {batch, H}, {layout.packed_rows ? H + 1 : H, 1});
  host_.A = contiguous(at(A_block), DType::f32, {H});
  if (d.has_dt_bias()) host_.dt_bias = contiguous(at(bias_block), d.weight_dtype, {H});
  if (d.has_D()) host_.D = contiguous(at(D_block), d.weight_dtype, {H});
  host_.out = strided(at(out_block), d.input_dtype, {batch, H, P}, {out_stride, P, 1});

  // Weights and inputs.
  const auto put = [&](const Tensor& t, std::int64_t i, double v) {
    encode(t.dtype, static_cast<std::byte*>(const_cast<void*>(t.data)), i, v);
  };
  for (std::int64_t h = 0; h < H; ++h) {
    put(host_.A, h, layout.strong_decay ? -std::exp(uniform(-7, 5)) : uniform(-2, -1));
    if (d.has_dt_bias()) put(host_.dt_bias, h, exact_in_sums(uniform(-4, -3)));
    if (d.has_D()) put(host_.D, h, normal(random));
  }
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t h = 0; h < H; ++h)
      put(host_.dt, b * host_.dt.stride[0] + h, exact_in_sums(layout.strong_decay ? uniform(-12, 24) : normal(random)));
    for (const Tensor* t : {&host_.x, &host_.B, &host_.C, &host_.z}) {
      if (t->data == nullptr) continue;
      for (std::int64_t i = 0; i < t->shape[1] * t->shape[2]; ++i) put(*t, b * t->stride[0] + i, normal(random));
    }
  }

  // Which slot each row uses: a shuffle of the slots; slot 1 is the pool's reserved null slot where there are pads.
  std::vector<std::int64_t> order(static_cast<std::size_t>(slots));
  std::iota(order.begin(), order.end(), 0);
  std::vector<std::int64_t> source(static_cast<std::size_t>(batch)), target(static_cast<std::size_t>(batch));
  if (layout.indexed) {
    if (layout.pads) {
      host_.pad_slot_id = 1;
      order.erase(order.begin() + 1);
    }
    std::shuffle(order.begin(), order.end(), random);
  }
  for (std::int64_t b = 0; b < batch; ++b) {
    const auto bb = static_cast<std::size_t>(b);
    source[bb] = order[bb];
    // A new state goes to a slot that nobody reads; every third row keeps its own.
    target[bb] = layout.indexed && b % 3 != 0 ? order[static_cast<std::size_t>(batch + b)] : source[bb];
  }
  if (layout.indexed && layout.pads) {
    const std::int64_t kinds[] = {-1, host_.pad_slot_id, slots, -7};
    int kind = 0;
    for (std::int64_t b = 1; b < batch; b += 2) source[static_cast<std::size_t>(b)] = kinds[kind++ % 4];
    if (batch > 4) target[4] = -1;  // computed, not stored
  }
  const auto put_index = [&](std::size_t block, std::int64_t b, std::int64_t v) {
    const auto narrow = static_cast<std::int32_t>(v);
    if (layout.index_dtype == DType::i64)
      std::memcpy(at(block) + b * 8, &v, 8);
    else
      std::memcpy(at(block) + b * 4, &narrow, 4);
  };
  if (layout.indexed) {
    for (std::int64_t b = 0; b < batch; ++b) {
      put_index(index_block, b, source[static_cast<std::size_t>(b)]);
      put_index(dst_block, b, target[static_cast<std::size_t>(b)]);
    }
    host_.state_batch_indices = contiguous(at(index_block), layout.index_dtype, {batch});
    if (d.has_destination) host_.dst_state_batch_indices = contiguous(at(dst_block), layout.index_dtype, {batch});
  }

  // States of live slots; every other byte of the pool stays NaN and must stay untouched.
  for (std::int64_t b = 0; b < batch; ++b) {
    rows_.push_back(row_slots(d, host_, b, read_host));
    if (!rows_.back().live) continue;
    const double scale = layout.strong_decay ? 30.0 : 1.0;
    for (std::int64_t i = 0; i < H * P * N; ++i)
      put(host_.state, rows_.back().source * slot + i, scale * normal(random));
  }
  compute_expectation();
}

void UpdateCase::compute_expectation() {
  for (std::size_t b = 0; b < rows_.size(); ++b) {
    expected_.emplace_back();
    for (int h = 0; h < description_.nheads; ++h)
      expected_.back().push_back(
          update_reference(description_, host_, static_cast<std::int64_t>(b), h, rows_[b], read_host));
  }
}

UpdateArgs UpdateCase::args(const std::vector<std::byte*>& base) const {
  UpdateArgs args = host_;
  for (Tensor* t : {&args.state, &args.x, &args.dt, &args.A, &args.B, &args.C, &args.D, &args.dt_bias, &args.z,
                    &args.out, &args.state_batch_indices, &args.dst_state_batch_indices}) {
    if (t->data == nullptr) continue;
    const std::byte* p = static_cast<const std::byte*>(t->data);
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      const std::byte* first = blocks_[i].before.data();
      if (p >= first && p < first + blocks_[i].before.size()) {
        t->data = base[i] + (p - first);
        break;
      }
    }
  }
  return args;
}

void NearnessMeter::add_row(const double* want, const std::vector<double>& got, const double* terms) {
  double rms = 0;
  std::int64_t finite = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double w = rounded(dtype_, want[i]);
    if (!std::isfinite(w)) continue;
    rms += want[i] * want[i];
    ++finite;
  }
  if (finite > 0) rms = std::sqrt(rms / static_cast<double>(finite));
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double w = rounded(dtype_, want[i]);
    ++count_;
    if (!std::isfinite(w) || !std::isfinite(got[i])) {
      // Infinity where IEEE gives infinity; a value just past the largest finite one may fall on either side of it.
      const bool near_largest = dtype_ == DType::f16 && std::abs(std::abs(want[i]) - 65520.0) < 0.005 * 65520.0 &&
                                std::abs(got[i]) > 0.99 * 65504.0 && std::signbit(got[i]) == std::signbit(want[i]);
      if (!(w == got[i]) && !near_largest) {
        worst_ = std::numeric_limits<double>::infinity();
        error2_ = std::numeric_limits<double>::infinity();
      }
      continue;
    }
    const double error = std::abs(got[i] - want[i]);
    const double magnitude = std::max(std::abs(want[i]), rms);
    // fp32 has no room above its own arithmetic: dstate products summed in another order differ by some sqrt(dstate)
    // roundings of the products, and exp(A * delta) by |A * delta| of them, up to some 10 before the state is gone.
    const double summed = terms != nullptr ? std::max(magnitude, terms[i]) : magnitude;
    const double unit = dtype_ == DType::f32 ? std::ldexp(summed, -24) * std::sqrt(std::max(128.0, 1.0 * dstate_))
                                             : ulp(dtype_, magnitude);
    const double units = unit > 0 ? error / unit : (error > 0 ? std::numeric_limits<double>::infinity() : 0.0);
    worst_ = std::max(worst_, units);
    if (units > 2) ++past_two_;
    error2_ += error * error;
    norm2_ += want[i] * want[i];
  }
}

Nearness NearnessMeter::result() const {
  Nearness n;
  n.frobenius = norm2_ > 0 ? std::sqrt(error2_ / norm2_) : std::sqrt(error2_);
  n.worst_ulp = worst_;
  n.past_two = count_ > 0 ? static_cast<double>(past_two_) / static_cast<double>(count_) : 0;
  return n;
}

std::string judge(const Nearness& n, DType dtype, int dstate, const char* what) {
  const double limit = dtype == DType::f32 ? 2e-6 * std::sqrt(static_cast<double>(dstate)) : 5e-3;
  if (!(n.frobenius <= limit)) return fmt::format("{}: relative error {:.2e}; limit {:.2e}", what, n.frobenius, limit);
  if (!(n.worst_ulp <= 4)) return fmt::format("{}: an element is {:.1f} units off; limit 4", what, n.worst_ulp);
  if (!(n.past_two <= 1e-3))
    return fmt::format("{}: {:.2f}% of elements are more than 2 units off; limit 0.1%", what, 100 * n.past_two);
  return {};
}

CaseResult UpdateCase::check(const std::vector<std::vector<std::byte>>& after) const {
  const Description& d = description_;
  CaseResult result;
  const auto failed = [&](std::string sentence) {
    result.failures.push_back(layout_.name() + ": " + std::move(sentence));
  };

  // What must be there, byte by byte; the judged elements are taken from `after`, all else from `before`.
  NearnessMeter y_meter(d.input_dtype, d.dstate), state_meter(d.state_dtype, d.dstate);
  std::vector<std::vector<std::byte>> want;
  for (const Block& block : blocks_) want.push_back(block.before);
  std::vector<std::byte*> want_base, got_base;
  std::vector<std::vector<std::byte>> got = after;
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    if (got[i].size() != want[i].size()) {
      failed(fmt::format("{}: got {} bytes; wants {}", blocks_[i].name, got[i].size(), want[i].size()));
      return result;
    }
    want_base.push_back(want[i].data());
    got_base.push_back(got[i].data());
  }
  const UpdateArgs want_args = args(want_base), got_args = args(got_base);
  const auto take = [](const Tensor& to, const Tensor& from, std::int64_t offset, std::int64_t count) {
    const auto size = static_cast<std::size_t>(size_bytes(to.dtype));
    std::memcpy(static_cast<std::byte*>(const_cast<void*>(to.data)) + static_cast<std::size_t>(offset) * size,
                static_cast<const std::byte*>(from.data) + static_cast<std::size_t>(offset) * size,
                static_cast<std::size_t>(count) * size);
  };
  const auto values = [](const Tensor& t, std::int64_t offset, int count) {
    std::vector<double> v(static_cast<std::size_t>(count));
    for (int i = 0; i < count; ++i)
      v[static_cast<std::size_t>(i)] = decode(t.dtype, static_cast<const std::byte*>(t.data), offset + i);
    return v;
  };
  for (std::size_t b = 0; b < rows_.size(); ++b) {
    const RowSlots& row = rows_[b];
    for (int h = 0; h < d.nheads; ++h) {
      const HeadResult& head = expected_[b][static_cast<std::size_t>(h)];
      const std::int64_t out_at = static_cast<std::int64_t>(b) * got_args.out.stride[0] + std::int64_t{h} * d.head_dim;
      if (row.live || d.pad_output_kind == PadOutput::as_if_zero_state) {
        y_meter.add_row(head.y.data(), values(got_args.out, out_at, d.head_dim), head.y_terms.data());
        take(want_args.out, got_args.out, out_at, d.head_dim);
      } else if (d.pad_output_kind == PadOutput::zeros) {
        for (int p = 0; p < d.head_dim; ++p)
          encode(d.input_dtype, static_cast<std::byte*>(const_cast<void*>(want_args.out.data)), out_at + p, 0.0);
      }
      if (!row.store) continue;
      const std::int64_t state_at = row.target * got_args.state.stride[0] + std::int64_t{h} * d.head_dim * d.dstate;
      for (int p = 0; p < d.head_dim; ++p)
        state_meter.add_row(head.state.data() + static_cast<std::size_t>(p) * static_cast<std::size_t>(d.dstate),
                            values(got_args.state, state_at + std::int64_t{p} * d.dstate, d.dstate));
      take(want_args.state, got_args.state, state_at, std::int64_t{d.head_dim} * d.dstate);
    }
  }
  result.y = y_meter.result();
  result.state = state_meter.result();
  if (std::string s = judge(result.y, d.input_dtype, d.dstate, "out"); !s.empty()) failed(s);
  if (std::string s = judge(result.state, d.state_dtype, d.dstate, "state"); !s.empty()) failed(s);

  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const auto wrong = std::mismatch(want[i].begin(), want[i].end(), got[i].begin());
    if (wrong.first == want[i].end()) continue;
    const auto offset = static_cast<std::int64_t>(wrong.first - want[i].begin());
    const auto size = static_cast<std::int64_t>(want[i].size());
    const bool canary =
        offset < static_cast<std::int64_t>(kCanary) || offset >= size - static_cast<std::int64_t>(kCanary);
    failed(fmt::format("{}: {} at byte {} of {} changed", blocks_[i].name,
                       canary ? "memory outside the tensor" : "memory that must stay as it was",
                       offset - static_cast<std::int64_t>(kCanary), size - 2 * static_cast<std::int64_t>(kCanary)));
  }
  return result;
}

}  // namespace ssmjit
