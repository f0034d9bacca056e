#include "autotune/kernel_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <future>
#include <numeric>

#include <fmt/format.h>

#include "autotune/conv1d_case.h"
#include "autotune/host_numbers.h"
#include "autotune/layer_case.h"
#include "autotune/norm_case.h"
#include "autotune/replay_case.h"
#include "autotune/ring_case.h"
#include "autotune/tokens_case.h"
#include "autotune/update_case.h"
#include "codegen/fail.h"
#include "codegen/update_form.h"

namespace ssmjit {
namespace {

constexpr std::size_t kCanary = 256;
constexpr std::byte kPoison{0xff};     // NaN in every floating dtype, -1 as an index
constexpr int kFewChannels = 432;      // of a convolution, for each of few groups; 3 are more than a block's
constexpr std::int64_t kSlotGap = 72;  // elements, at least

std::int64_t round_up(std::int64_t v, std::int64_t to) { return (v + to - 1) / to * to; }

}  // namespace

std::string CaseLayout::name() const {
  std::string s = fmt::format("batch {}", batch);
  if (indexed) s += fmt::format(", {} slots shuffled", ssmjit::name(index_dtype));
  if (padded_state) s += ", padded slots";
  if (packed_rows) s += ", packed rows";
  if (pads) s += ", pads";
  if (in_place) s += ", in place";
  if (far_magnitudes) s += ", far magnitudes";
  if (strong_decay) s += ", strong decay";
  return s;
}

std::vector<CaseLayout> standard_layouts(const Description& description, int sms) {
  if (description.op() == Op::norm)
    return {{.batch = 1, .far_magnitudes = true}, {.batch = 3, .packed_rows = true}, {.batch = 2, .in_place = true}};
  const int wave = std::clamp(static_cast<int>(sms / work_items(description, 1)) + 1, 2, 17);
  std::vector<CaseLayout> layouts(4);
  layouts[0] = {.batch = 1, .strong_decay = true};
  layouts[1] = {.batch = 3, .index_dtype = DType::i32, .indexed = true, .padded_state = true, .pads = true};
  layouts[2] = {.batch = 7, .index_dtype = DType::i64, .indexed = true, .packed_rows = true, .pads = true};
  layouts[3] = {.batch = wave, .index_dtype = DType::i32, .indexed = true};
  return layouts;
}

Description few_groups(const Description& description, int groups) {
  Description few = description;
  // A layer's norm wants its groups whole.
  const int group_rows = description.heads_per_group() * description.head_dim;
  const int together =
      description.op() == Op::layer && description.norm ? std::max(1, description.norm_group_size() / group_rows) : 1;
  few.ngroups = std::min(groups, description.ngroups / together) * together;
  few.nheads = few.ngroups * description.heads_per_group();
  if (few.op() == Op::layer) {
    if (few.conv) few.conv->channels = 0;
    if (few.norm) few.norm->channels = 0, few.norm->group_size = description.norm_group_size();
  }
  if (few.op() == Op::norm) {
    const int size = description.norm_group_size();
    few.norm->group_size = size;
    few.norm->channels = std::min(groups, description.norm_channels() / size) * size;
  }
  if (few.op() == Op::conv1d) few.conv->channels = std::min(groups * kFewChannels, description.conv_channels());
  return few;
}

std::unique_ptr<KernelCase> make_case(const Description& description, const CaseLayout& layout, std::uint64_t seed) {
  if (description.op() == Op::layer) return std::make_unique<LayerCase>(description, layout, seed);
  if (description.op() == Op::ring) return std::make_unique<RingCase>(description, layout, seed);
  if (description.op() == Op::replay) return std::make_unique<ReplayCase>(description, layout, seed);
  if (description.op() == Op::conv1d) return std::make_unique<Conv1dCase>(description, layout, seed);
  if (description.op() == Op::norm) return std::make_unique<NormCase>(description, layout, seed);
  if (has_token_kernel(description)) return std::make_unique<TokensCase>(description, layout, seed);
  return std::make_unique<UpdateCase>(description, layout, seed);
}

KernelCases standard_cases(const Description& description, int sms, std::uint64_t seed) {
  // Each takes its references in double: a thread each.
  std::vector<std::future<std::unique_ptr<KernelCase>>> making;
  for (const CaseLayout& layout : standard_layouts(description, sms))
    making.push_back(std::async(std::launch::async, make_case, description, layout, seed + making.size()));
  KernelCases cases;
  for (auto& made : making) cases.push_back(made.get());
  return cases;
}

KernelCase::KernelCase(const Description& description, const CaseLayout& layout, std::uint64_t seed)
    : random_(seed), description_(description), layout_(layout) {}

std::size_t KernelCase::add(std::string name, std::int64_t bytes, Use use) {
  Block block;
  block.name = std::move(name);
  block.tensor_offset = kCanary;
  block.before.assign(static_cast<std::size_t>(bytes) + 2 * kCanary, kPoison);
  block.may_change = use == Use::updated || use == Use::output || use == Use::overwritten;
  block.output = use == Use::output;
  block.produced = use == Use::produced || use == Use::output || use == Use::overwritten;
  blocks_.push_back(std::move(block));
  return blocks_.size() - 1;
}

KernelCase::InputRows KernelCase::add_input_rows(std::int64_t rows) {
  const Description& d = description_;
  const std::int64_t inner = std::int64_t{d.nheads} * d.head_dim, state = std::int64_t{d.ngroups} * d.dstate;
  const std::int64_t bytes = size_bytes(d.input_dtype);
  InputRows input;
  // z first: x is then no slice that begins its row.
  struct Slice {
    const char* name;
    Rows* rows;
    std::int64_t width;
  } slices[] = {
      {"z", &input.z, d.has_z() ? inner : 0}, {"x", &input.x, inner}, {"B", &input.B, state}, {"C", &input.C, state}};
  std::int64_t sum = 0;
  for (const Slice& slice : slices) sum += slice.width;
  // An aligned description gets rows of a multiple of 16 bytes, another one rows of an odd count of elements.
  const std::int64_t packed = d.aligned_rows ? round_up(sum + d.nheads, 16) : (sum + d.nheads) | 1;
  const std::size_t block = layout_.packed_rows ? add("x, B, C, z", rows * packed * bytes, Use::produced) : 0;
  std::int64_t offset = 0;
  for (const Slice& slice : slices) {
    if (slice.width == 0) continue;
    if (layout_.packed_rows) {
      *slice.rows = {at(block) + offset * bytes, packed};
    } else {
      const std::int64_t stride = d.aligned_rows ? slice.width : slice.width + 1;
      *slice.rows = {at(add(slice.name, rows * stride * bytes, Use::produced)), stride};
    }
    offset += slice.width;
  }
  return input;
}

KernelCase::Weights KernelCase::add_weights(Range A, Range dt_bias) {
  const Description& d = description_;
  Weights weights;
  weights.A = contiguous(at(add("A", std::int64_t{d.nheads} * 4, Use::constant)), DType::f32, {d.nheads});
  const auto weight = [&](const char* name) {
    return contiguous(at(add(name, std::int64_t{d.nheads} * size_bytes(d.weight_dtype), Use::constant)), d.weight_dtype,
                      {d.nheads});
  };
  if (d.has_D()) weights.D = weight("D");
  if (d.has_dt_bias()) weights.dt_bias = weight("dt_bias");
  for (std::int64_t h = 0; h < d.nheads; ++h) {
    put(weights.A, h, layout_.strong_decay ? -std::exp(uniform({-7, 5})) : uniform(A));
    if (d.has_dt_bias()) put(weights.dt_bias, h, exact_in_sums(uniform(dt_bias)));
    if (d.has_D()) put(weights.D, h, normal());
  }
  return weights;
}

Tensor KernelCase::add_pool(std::string name, DType dtype, const std::vector<std::int64_t>& inner) {
  Tensor pool;
  pool.dtype = dtype;
  pool.rank = static_cast<int>(inner.size()) + 1;
  std::int64_t stride = 1;
  for (std::size_t i = inner.size(); i-- > 0;) {
    pool.shape[i + 1] = inner[i];
    pool.stride[i + 1] = stride;
    stride *= inner[i];
  }
  pool.shape[0] = pool_slots();
  pool.stride[0] = round_up(stride + (layout_.padded_state ? kSlotGap : 0), 16);
  pool.data = at(add(std::move(name), pool_slots() * pool.stride[0] * size_bytes(dtype), Use::updated));
  return pool;
}

std::int64_t KernelCase::pool_slots() const {
  const bool by_token = description_.conv
                            ? description_.conv->keep == ConvKeep::slots
                            : std::holds_alternative<Slots>(description_.store_kind) || description_.has_accepted;
  const int others = by_token ? description_.token_count : layout_.indexed ? 1 : 0;  // beside the one that a row reads
  return std::int64_t{layout_.batch} * (1 + others) + (layout_.indexed ? 3 : 0);
}

std::vector<std::int64_t> KernelCase::slot_order() {
  std::vector<std::int64_t> order(static_cast<std::size_t>(pool_slots()));
  std::iota(order.begin(), order.end(), 0);
  if (!layout_.indexed) return order;
  if (layout_.pads) order.erase(order.begin() + kNullSlot);
  std::shuffle(order.begin(), order.end(), random_);
  return order;
}

void KernelCase::mark_pads(std::vector<std::int64_t>& slots) const {
  if (!layout_.indexed || !layout_.pads) return;
  // Of 64 bits one whose lower word names a live slot.
  const std::int64_t negative = layout_.index_dtype == DType::i64 ? kNullSlot + 1 - (std::int64_t{1} << 32) : -1;
  const std::int64_t kinds[] = {negative, kNullSlot, pool_slots(), -7};
  int kind = 0;
  for (std::size_t b = 1; b < slots.size(); b += 2) slots[b] = kinds[kind++ % 4];
}

Tensor KernelCase::add_indices(std::string name, const std::vector<std::int64_t>& values, DType dtype) {
  const auto count = static_cast<std::int64_t>(values.size());
  std::byte* data = at(add(std::move(name), count * size_bytes(dtype), Use::constant));
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t wide = values[static_cast<std::size_t>(i)];
    const auto narrow = static_cast<std::int32_t>(wide);
    if (dtype == DType::i64)
      std::memcpy(data + i * 8, &wide, 8);
    else
      std::memcpy(data + i * 4, &narrow, 4);
  }
  return contiguous(data, dtype, {count});
}

void KernelCase::add_conv_slots(const Description& d, Conv1dArgs& args, const std::vector<std::int64_t>& order) {
  const Conv& conv = *d.conv;
  const std::int64_t batch = layout_.batch, C = d.conv_channels(), L = d.conv_state_len(), T = d.token_count;
  if (conv.keep == ConvKeep::slots) {
    std::vector<std::int64_t> targets(order.begin() + batch, order.end());  // that no row reads
    targets.resize(static_cast<std::size_t>(batch * T));
    for (std::int64_t b = 0; b < batch; ++b) {
      // A request's own slot is one of its targets at times; some tokens' windows are dropped.
      const auto target = [&](std::int64_t t) -> std::int64_t& { return targets[static_cast<std::size_t>(b * T + t)]; };
      if (b % 2 == 0) target(b / 2 % T) = order[static_cast<std::size_t>(b)];
      const std::int64_t pads[] = {-1, kNullSlot, pool_slots()};
      if (layout_.pads && b % 2 == 0) target((b + 1) % T) = pads[b / 2 % 3];
    }
    args.output_state_indices = add_indices("output_state_indices", targets, layout_.index_dtype);
    args.output_state_indices.rank = 2;
    args.output_state_indices.shape = {batch, T};
    args.output_state_indices.stride = {T, 1};
  }
  if (conv.keep == ConvKeep::snapshots) {
    const std::int64_t K = d.conv_snapshot_len();
    const bool last = conv.channels_last, indexed = layout_.indexed;
    // Steps to spare, and slots of its own where there are indices.
    const std::int64_t steps = T + (indexed ? 1 : 0), slots = indexed ? batch + 2 : pool_slots();
    const std::int64_t slot = steps * C * K + (layout_.padded_state ? 64 : 0);
    std::byte* const data = at(add("intermediate_states", slots * slot * size_bytes(d.state_dtype), Use::updated));
    args.intermediate_states =
        strided(data, d.state_dtype, {slots, steps, last ? K : C, last ? C : K}, {slot, C * K, last ? C : K, 1});
    if (indexed) {
      std::vector<std::int64_t> to;
      for (std::int64_t b = 0; b < batch; ++b) to.push_back(layout_.pads && b % 4 == 2 ? -1 : b + 2);
      std::reverse(to.begin(), to.end());
      args.intermediate_state_indices = add_indices("intermediate_state_indices", to, layout_.index_dtype);
    }
  }
  const auto counts = [&](const char* name, auto&& of_row) {
    std::vector<std::int64_t> values;
    for (std::int64_t b = 0; b < batch; ++b) values.push_back(of_row(b));
    return add_indices(name, values, layout_.index_dtype);
  };
  if (conv.store == ConvStore::circular)
    args.cache_seqlens = counts("cache_seqlens", [&](std::int64_t b) {
      const std::int64_t kinds[] = {L - 1, 0, 7, L, 1000003, 2 * L + 1};
      return kinds[b % 6];
    });
  if (conv.has_accepted)  // out of range too
    args.num_accepted_tokens = counts("num_accepted_tokens", [&](std::int64_t b) -> std::int64_t {
      const std::int64_t kinds[] = {(T + 1) / 2, T, 0, 1, T + 3, -2};
      return kinds[b % 6];
    });
}

void KernelCase::fill_window(const Description& d, const Conv1dArgs& args, const ConvRequest& request,
                             double magnitude) {
  const Conv& conv = *d.conv;
  if (!request.live) return;
  const int length = d.conv_state_len(), history = conv.width - 1;
  const bool moves = conv.store == ConvStore::shift && !conv.has_accepted;
  const int dropped = conv.keep == ConvKeep::last ? d.token_count : 1;
  for (int j = 0; j < length; ++j) {
    const bool used = (j - request.first + length) % length < history;
    if (!used && !(moves && j >= dropped)) continue;
    for (std::int64_t c = 0; c < d.conv_channels(); ++c)
      put(args.conv_state, conv_state_at(d, args, request.slot, c, j), magnitude * normal());
  }
}

void KernelCase::judge_windows(const Description& d, const Conv1dArgs& host, const Conv1dArgs& want,
                               const Conv1dArgs& got, std::int64_t row, const ConvRequest& request, Windows& windows) {
  const std::int64_t element = size_bytes(d.state_dtype);
  for (std::int64_t c = 0; c < d.conv_channels(); ++c)
    for (const ConvWrite& write : conv_writes(d, host, c, request)) {
      const Tensor& to = write.snapshot ? want.intermediate_states : want.conv_state;
      const Tensor& is = write.snapshot ? got.intermediate_states : got.conv_state;
      std::byte* const place = bytes_of(to) + write.at * element;
      if (!write.from_token)
        std::memcpy(place, bytes_of(host.conv_state) + conv_state_at(d, host, request.slot, c, write.from) * element,
                    static_cast<std::size_t>(element));
      else if (d.state_dtype == d.input_dtype)
        std::memcpy(place, bytes_of(host.x) + conv_token_at(host.x, row, write.from, c) * element,
                    static_cast<std::size_t>(element));
      else
        put(to, write.at, stored_value(host.x, conv_token_at(host.x, row, write.from, c), read_host));
      (write.snapshot ? windows.snapshots : windows.states)
          .add(std::memcmp(place, bytes_of(is) + write.at * element, static_cast<std::size_t>(element)) == 0);
    }
}

void KernelCase::judge(const Windows& windows, CaseResult& result) const {
  for (const auto& [name, meter] :
       {std::pair("conv_state", windows.states), {"intermediate_states", windows.snapshots}})
    if (meter.wrong > 0)
      failed(result, fmt::format("{}: {} of {} elements that the step writes are no copies of what they should be",
                                 name, meter.wrong, meter.count));
}

template <class Args>
void KernelCase::add_step_tokens(Args& args) {
  const Description& d = description_;
  const std::int64_t H = d.nheads, P = d.head_dim, N = d.dstate, G = d.ngroups, T = d.token_count;
  const std::int64_t batch = layout_.batch, gap = layout_.packed_rows && !d.is_varlen ? 1 : 0;
  std::vector<std::int64_t> first = {0};
  // Lengths that are none, too: some above T, of which T count, and some below 0 behind those, so that no two requests
  // share a row.
  const auto length = [&](std::int64_t b) -> std::int64_t {
    if (!d.is_varlen) return T;
    if (batch == 1 || b % 8 == 3) return T + 2;
    if (b % 8 == 4) return -2;
    if (b % 8 == 1 && !layout_.pads) return 0;
    return b % 4 == 0 ? T : 1 + static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(T));
  };
  for (std::int64_t b = 0; b < batch; ++b) first.push_back(first.back() + length(b) + gap);
  if constexpr (requires { args.cu_seqlens; })
    if (d.is_varlen) args.cu_seqlens = add_indices("cu_seqlens", first, DType::i32);
  const std::int64_t rows = first.back();
  // [batch, tokens, ...], [total, ...] or [1, total, ...].
  const auto tensor = [&](std::byte* data, DType dtype, std::int64_t row_stride,
                          std::initializer_list<std::int64_t> inner) {
    Tensor t;
    t.data = data;
    t.dtype = dtype;
    const auto dimension = [&](std::int64_t shape, std::int64_t stride) {
      t.shape[static_cast<std::size_t>(t.rank)] = shape;
      t.stride[static_cast<std::size_t>(t.rank++)] = stride;
    };
    if (!d.is_varlen) dimension(batch, (T + gap) * row_stride);
    if (d.is_varlen && layout_.packed_rows) dimension(1, rows * row_stride);
    dimension(d.is_varlen ? rows : T, row_stride);
    std::int64_t stride = 1;
    for (std::int64_t i : inner) stride *= i;
    for (std::int64_t i : inner) {
      stride /= i;
      dimension(i, stride);
    }
    return t;
  };
  const InputRows input = add_input_rows(rows);
  const auto of_rows = [&](const Rows& r, std::int64_t count, std::int64_t width) {
    return r.first == nullptr ? Tensor{} : tensor(r.first, d.input_dtype, r.stride, {count, width});
  };
  args.x = of_rows(input.x, H, P);
  args.B = of_rows(input.B, G, N);
  args.C = of_rows(input.C, G, N);
  args.z = of_rows(input.z, H, P);
  const std::int64_t dt_stride = layout_.packed_rows ? H + 1 : H;
  args.dt = tensor(at(add("dt", rows * dt_stride * size_bytes(d.dt_dtype), Use::produced)), d.dt_dtype, dt_stride, {H});
  const std::int64_t out_stride = H * P + (layout_.packed_rows ? 8 : 0);
  args.out = tensor(at(add("out", rows * out_stride * size_bytes(d.input_dtype), Use::output)), d.input_dtype,
                    out_stride, {H, P});
  for (std::int64_t b = 0; b < batch; ++b) {
    const std::int64_t begin = first[static_cast<std::size_t>(b)];
    const std::int64_t end = std::min(first[static_cast<std::size_t>(b + 1)] - gap, begin + T);
    for (std::int64_t row = begin; row < end; ++row) {
      for (std::int64_t h = 0; h < H; ++h)
        put(args.dt, row * dt_stride + h, exact_in_sums(layout_.strong_decay ? uniform({-12, 8}) : normal()));
      const auto fill = [&](const Tensor& t, const Rows& r, std::int64_t width) {
        if (r.first == nullptr) return;
        for (std::int64_t i = 0; i < width; ++i) put(t, row * r.stride + i, normal());
      };
      fill(args.x, input.x, H * P);
      fill(args.B, input.B, G * N);
      fill(args.C, input.C, G * N);
      fill(args.z, input.z, H * P);
    }
  }
}
template void KernelCase::add_step_tokens(RingArgs&);
template void KernelCase::add_step_tokens(ReplayArgs&);

template <class Args>
void KernelCase::add_ring_pools(Args& args) {
  const Description& d = description_;
  const std::int64_t H = d.nheads, P = d.head_dim, N = d.dstate, L = d.ring_length();
  args.state = add_pool("state", d.state_dtype, {H, P, N});
  if (d.has_state_scale()) args.state_scale = add_pool("state_scale", DType::f32, {H, P});
  args.x_ring = add_pool("x_ring", d.input_dtype, {H, L, P});
  args.B_ring = add_pool("B_ring", d.input_dtype, {d.ngroups, L, N});
  args.dt_ring = add_pool("dt_ring", DType::f32, {H, L});
  if (!std::holds_alternative<Nearest>(d.rounding_kind)) {
    // One seed, or one a slot.
    std::vector<std::int64_t> seeds(static_cast<std::size_t>(layout_.padded_state ? pool_slots() : 1));
    for (std::int64_t& v : seeds) v = static_cast<std::int64_t>(random_() | std::uint64_t{1} << 63);
    args.rand_seed = add_indices("rand_seed", seeds, DType::i64);
  }
  // Cursors of slots that no request uses stay what they are: nothing.
  const std::vector<std::int64_t> nothing(static_cast<std::size_t>(pool_slots()), -1);
  args.ring_start = add_indices("ring_start", nothing, DType::i32);
  args.ring_count = add_indices("ring_count", nothing, DType::i32);
}
template void KernelCase::add_ring_pools(RingArgs&);
template void KernelCase::add_ring_pools(LayerArgs&);

void KernelCase::fill_ring_slot(const RingArgs& args, std::int64_t slot, int kind) {
  const Description& d = description_;
  const int window = d.ring_window(), length = d.ring_length(), T = d.token_count;
  const auto below = [&](int limit) { return static_cast<int>(random_() % static_cast<std::uint64_t>(limit)); };
  const int counts[kCursorKinds] = {window,     window - T, std::min(window, window - T + 1), 0, below(window + 1),
                                    window + 3, -5};
  int start = kind % 2 == 0 ? below(length) : length - 1;
  if (kind == 5) start = length + 2;
  if (kind == 6) start = -3;
  const auto put_cursor = [&](const Tensor& t, int value) { std::memcpy(bytes_of(t) + slot * 4, &value, 4); };
  put_cursor(args.ring_start, start);
  put_cursor(args.ring_count, counts[kind]);

  const std::int64_t rows = std::int64_t{d.nheads} * d.head_dim;
  double magnitude = layout_.strong_decay ? 30.0 : 1.0;
  if (d.has_state_scale()) {
    for (std::int64_t i = 0; i < rows; ++i)
      put(args.state_scale, slot * args.state_scale.stride[0] + i, magnitude * uniform({0.02, 0.04}));
    magnitude = 30.0;  // in units of the scale
  }
  for (std::int64_t i = 0; i < rows * d.dstate; ++i)
    put(args.state, slot * args.state.stride[0] + i, magnitude * normal());
}

void KernelCase::fill_ring_rows(const RingArgs& args, const RingRequest& request) {
  const Description& d = description_;
  for (int j = 0; j < request.count; ++j) {
    for (std::int64_t h = 0; h < d.nheads; ++h) {
      for (std::int64_t p = 0; p < d.head_dim; ++p)
        put(args.x_ring, ring_offset(args.x_ring, request, h, j) + p, normal());
      const double dt = layout_.strong_decay ? uniform({-12, 8}) : uniform({-3, 0.5});
      put(args.dt_ring, ring_offset(args.dt_ring, request, h, j), std::log1p(std::exp(dt)));
    }
    for (std::int64_t g = 0; g < d.ngroups; ++g)
      for (std::int64_t n = 0; n < d.dstate; ++n)
        put(args.B_ring, ring_offset(args.B_ring, request, g, j) + n, normal());
  }
}

void KernelCase::put(const Tensor& t, std::int64_t i, double v) { encode(t.dtype, bytes_of(t), i, v); }

double KernelCase::exact_in_sums(double v) { return std::round(v * 4096) / 4096; }

void KernelCase::take(const Tensor& to, const Tensor& from, std::int64_t offset, std::int64_t count) {
  const std::int64_t size = size_bytes(to.dtype);
  std::memcpy(bytes_of(to) + offset * size, bytes_of(from) + offset * size, static_cast<std::size_t>(count * size));
}

void KernelCase::move(Tensor& t, const std::vector<std::byte*>& base) const {
  if (t.data == nullptr) return;
  const std::byte* p = bytes_of(t);
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const std::byte* first = blocks_[i].before.data();
    if (p < first || p >= first + blocks_[i].before.size()) continue;
    t.data = base[i] + (p - first);
    return;
  }
}

void KernelCase::failed(CaseResult& result, const std::string& sentence) const {
  result.failures.push_back(layout_.name() + ": " + sentence);
}

CaseResult KernelCase::check(const std::vector<std::vector<std::byte>>& after) const {
  CaseResult result;
  std::vector<std::vector<std::byte>> want, got = after;
  for (const Block& block : blocks_) want.push_back(block.before);
  std::vector<std::byte*> want_base, got_base;
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    if (got[i].size() != want[i].size()) {
      failed(result, fmt::format("{}: got {} bytes; wants {}", blocks_[i].name, got[i].size(), want[i].size()));
      return result;
    }
    want_base.push_back(want[i].data());
    got_base.push_back(got[i].data());
  }
  judge(want_base, got_base, result);
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const auto wrong = std::mismatch(want[i].begin(), want[i].end(), got[i].begin());
    if (wrong.first == want[i].end()) continue;
    const auto offset = static_cast<std::int64_t>(wrong.first - want[i].begin());
    const auto size = static_cast<std::int64_t>(want[i].size());
    const bool canary =
        offset < static_cast<std::int64_t>(kCanary) || offset >= size - static_cast<std::int64_t>(kCanary);
    failed(result,
           fmt::format("{}: {} at byte {} of {} changed", blocks_[i].name,
                       canary ? "memory outside the tensor" : "memory that must stay as it was",
                       offset - static_cast<std::int64_t>(kCanary), size - 2 * static_cast<std::int64_t>(kCanary)));
  }
  return result;
}

}  // namespace ssmjit
