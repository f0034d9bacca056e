#include "autotune/layers.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include <ssmjit/tune.h>

#include "codegen/bench_source.h"
#include "codegen/chain_scratch.h"
#include "codegen/fail.h"
#include "codegen/update_form.h"

namespace ssmjit {
namespace {

// The parameter structs of templates/bench.cuh.
struct PassArgs {
  void* data;
  void* elsewhere;
  void* rows;
  std::uint64_t read;
  std::uint64_t written_back;
  std::uint64_t written_new;
  std::uint64_t appended;
  std::uint32_t key;
  int dependent;
};
struct ProduceArgs {
  const void* source;
  void* target;
  std::uint64_t vectors;
};
struct FillArgs {
  void* data;
  std::uint64_t count;
  std::uint64_t seed;
  float mean;
  float deviation;
  int dtype;
};
struct HashArgs {
  const void* data;
  std::uint64_t words;
  void* result;
};

constexpr std::int64_t kWeightAlign = 512;  // as PyTorch's allocator places tensors
constexpr std::int64_t kPartAlign = 256;
constexpr std::int64_t kMostSmallLayers = 1024;  // of a norm or a convolution, some KiB each: nodes of a graph

std::int64_t round_up(std::int64_t v, std::int64_t to) { return (v + to - 1) / to * to; }

int fill_code(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return 0;
    case DType::bf16:
      return 1;
    case DType::f16:
      return 2;
    case DType::i8:
      return 3;
    case DType::f8:
      return 4;
    case DType::i16:
      return 5;
    default:
      break;
  }
  fail(ErrorKind::internal, "no fill for {}", name(dtype));
}

}  // namespace

BenchKernels::BenchKernels(const Arch& arch, int sms, const CompileOptions& options) : sms_(sms) {
  module_ = std::make_unique<RawModule>(compile(bench_source(arch), options));
  const char* names[] = {"ssmjit_pass_1",           "ssmjit_pass_4",           "ssmjit_pass_8",
                         "ssmjit_pass_1_streaming", "ssmjit_pass_4_streaming", "ssmjit_pass_8_streaming"};
  for (int i = 0; i < 6; ++i) pass_[i] = module_->entry(names[i]);
  produce_ = module_->entry("ssmjit_produce");
  fill_ = module_->entry("ssmjit_fill");
  hash_ = module_->entry("ssmjit_hash");
}

void BenchKernels::pass(const Pass& how, const Moved& moved, bool dependent, const Stream& stream) const {
  const auto vectors = [](std::int64_t bytes) { return static_cast<std::uint64_t>(bytes / 16); };
  const PassArgs args{moved.data,
                      moved.elsewhere,
                      moved.rows,
                      vectors(moved.read),
                      vectors(moved.written_back),
                      vectors(moved.written_new),
                      vectors(moved.appended),
                      0x5bd1e995u,
                      dependent ? 1 : 0};
  const int unroll = how.unroll == 1 ? 0 : how.unroll == 4 ? 1 : 2;
  launch_raw(pass_[unroll + (how.streaming ? 3 : 0)], how.grid, 1, how.threads, &args, stream.handle(), dependent);
}

void BenchKernels::produce(const std::byte* source, std::byte* target, std::int64_t bytes, const Stream& stream) const {
  const ProduceArgs args{source, target, static_cast<std::uint64_t>(bytes / 16)};
  const std::int64_t grid = std::min<std::int64_t>(2 * sms_, (bytes / 16 + 127) / 128);
  launch_raw(produce_, grid, 1, 128, &args, stream.handle(), false);
}

void BenchKernels::fill(DType dtype, std::byte* data, std::int64_t count, std::uint64_t seed, double mean,
                        double deviation, const Stream& stream) const {
  const FillArgs args{data,
                      static_cast<std::uint64_t>(count),
                      seed,
                      static_cast<float>(mean),
                      static_cast<float>(deviation),
                      fill_code(dtype)};
  launch_raw(fill_, std::clamp<std::int64_t>((count + 255) / 256, 1, 16 * sms_), 1, 256, &args, stream.handle(), false);
}

void BenchKernels::hash(const std::byte* data, std::int64_t bytes, std::byte* result, const Stream& stream) const {
  const HashArgs args{data, static_cast<std::uint64_t>(bytes / 4), result};
  launch_raw(hash_, std::clamp<std::int64_t>((bytes / 4 + 255) / 256, 1, 16 * sms_), 1, 256, &args, stream.handle(),
             false);
}

void launch_case(const Kernel& kernel, const CaseArgs& args, const Stream& stream) {
  std::visit([&](const auto& launched) { kernel.launch(launched, stream.handle()); }, args);
}

Layers::Layers(const Description& description, int batch, const DeviceFacts& gpu, const BenchKernels& kernels,
               const Stream& stream, std::uint64_t seed)
    : description_(description), batch_(batch), seed_(seed), kernels_(kernels), stream_(stream) {
  const Description& d = description_;
  if (d.op() == Op::layer && d.conv && d.conv->keep == ConvKeep::slots)
    fail(ErrorKind::invalid,
         "timing: got a layer whose convolution keeps slots, which would have states for all of them; time its parts "
         "(layer_parts())");
  const std::int64_t B = batch, H = d.nheads, P = d.head_dim, N = d.dstate, G = d.ngroups;
  const std::int64_t rows = B * d.token_count, in = size_bytes(d.input_dtype);
  const bool ring = d.ring_window() != 0, layer = d.op() == Op::layer, replay = d.op() == Op::replay;
  const std::int64_t ring_rows = ring ? B * d.ring_length() : replay ? rows : 0;
  const std::int64_t buffers = replay ? 2 : 1;  // of B and deltas
  // In this order, so that what a step reads of all is one stretch: state, inputs, and as much of a ring as is in use.
  const auto place = [&](std::int64_t bytes) {
    const Part part{layer_bytes_, bytes};
    layer_bytes_ += round_up(bytes, kPartAlign);
    return part;
  };
  const bool conv = d.op() == Op::conv1d;
  // States of all tokens: slots behind those that are read, snapshots among them, so that one pool has both.
  const bool by_token = conv ? d.conv->keep == ConvKeep::slots : d.stores_every_token();
  const std::int64_t channels = conv ? d.conv_channels() : d.op() == Op::norm ? d.norm_channels() : H * P;
  const std::int64_t window = conv ? channels * d.conv_state_len() : H * P * N;
  const bool gated = d.has_z() || (d.norm && !d.norm->gate_expr.empty());
  state_ = place(B * window * size_bytes(d.state_dtype) * (by_token ? 1 + d.token_count : d.has_destination ? 2 : 1));
  windows_ = place(layer ? B * d.conv_channels() * d.conv_state_len() * in : 0);
  const std::int64_t scales = d.has_state_scale() ? B * H * P * size_bytes(DType::f32) : 0;
  scale_ = place(scales * (by_token ? 1 + d.token_count : d.has_destination ? 2 : 1));
  const std::int64_t inputs = layer_bytes_;
  x_ = place(rows * channels * in);
  B_ = place(rows * G * N * in);
  C_ = place(rows * G * N * in);
  z_ = place(gated ? rows * channels * in : 0);
  dt_ = place(rows * H * size_bytes(d.dt_dtype));
  input_bytes_ = layer_bytes_ - inputs;
  x_ring_ = place(ring_rows * H * P * in);
  B_ring_ = place(buffers * ring_rows * G * N * in);
  dt_ring_ = place(buffers * ring_rows * H * size_bytes(DType::f32));
  sum_ring_ = place(replay ? dt_ring_.bytes : 0);
  if (conv) kept_ = place(by_token ? 0 : bytes_moved(d, batch).written_new - x_.bytes);
  if (layer && d.conv && d.conv->keep == ConvKeep::snapshots)
    kept_ = place(rows * d.conv_channels() * d.conv_snapshot_len() * in);
  cold_bytes_ =
      state_.bytes + windows_.bytes + scale_.bytes + x_ring_.bytes + B_ring_.bytes + dt_ring_.bytes + sum_ring_.bytes;
  if (d.op() == Op::norm) cold_bytes_ = x_.bytes + z_.bytes;
  // What is read of them alone: what is only written may leave the L2 first.
  if (!conv && by_token) cold_bytes_ /= 1 + d.token_count;

  const std::int64_t cold = 4 * gpu.l2_bytes;
  count_ = static_cast<int>(std::max<std::int64_t>(8, cold / cold_bytes_ + 1));
  const bool small = (d.op() == Op::norm || conv) && count_ > kMostSmallLayers;
  if (small) count_ = kMostSmallLayers;
  // A plan that lets state lines leave the L2 first keeps rings and inputs there from one replay to the next.
  if (small || ring || replay)
    displacing_ = DeviceBuffer(static_cast<std::size_t>(round_up(2 * gpu.l2_bytes, kPartAlign)));
  const std::int64_t room = free_device_bytes() * 9 / 10;
  if (count_ * (layer_bytes_ + input_bytes_) > room) count_ = static_cast<int>(room / (layer_bytes_ + input_bytes_));
  if (count_ < 2 || (!small && cold_bytes_in_all() < 2 * gpu.l2_bytes))
    fail(ErrorKind::machine,
         "timing: {} layers of {} bytes of {} fit the device's free memory; a cold figure wants {} bytes in all "
         "(twice the L2) and two layers",
         count_, cold_bytes_,
         ring                 ? "state and rings"
         : replay             ? "state and buffers"
         : d.op() == Op::norm ? "inputs"
                              : "state",
         2 * gpu.l2_bytes);

  memory_ = DeviceBuffer(static_cast<std::size_t>(layer_bytes_ * count_));
  sources_ = DeviceBuffer(static_cast<std::size_t>(input_bytes_ * count_));
  out_ = DeviceBuffer(static_cast<std::size_t>(round_up(x_.bytes, kPartAlign)));
  if (layer) scratch_ = DeviceBuffer(static_cast<std::size_t>(chain_scratch(d, batch).bytes));
  if (replay) scratch_ = DeviceBuffer(static_cast<std::size_t>(replay_scratch_bytes(d, batch)));
  const std::int64_t weights_of = d.op() == Op::norm ? channels : H;  // entries of each of up to three
  const std::int64_t taps = d.conv ? d.conv->width + 1 : 0;
  const std::int64_t conv_bytes = round_up(taps * d.conv_channels() * (conv ? 4 : in), kWeightAlign);
  const std::int64_t norm_bytes = layer ? 2 * d.norm_channels() * in : 0;
  const std::int64_t head_bytes = conv ? 0 : 3 * round_up(4 * weights_of, kWeightAlign);
  weights_ = DeviceBuffer(static_cast<std::size_t>(head_bytes + conv_bytes + norm_bytes));
  index_bytes_ = round_up(4 * (std::max(by_token ? rows : B, std::int64_t{d.token_count}) + 1), kPartAlign);
  indices_ = DeviceBuffer(static_cast<std::size_t>(4 * index_bytes_));
  if (ring || replay) cursors_ = DeviceBuffer(static_cast<std::size_t>(2 * index_bytes_));
  hash_ = DeviceBuffer(8);

  std::vector<std::int32_t> numbers(static_cast<std::size_t>(B));
  const auto upload = [&](int which) {
    indices_.upload(numbers.data(), 4 * numbers.size(), static_cast<std::size_t>(which * index_bytes_));
  };
  std::iota(numbers.begin(), numbers.end(), 0);
  upload(0);
  if (by_token) numbers.resize(static_cast<std::size_t>(rows));
  std::iota(numbers.begin(), numbers.end(), static_cast<std::int32_t>(B));
  upload(1);
  if (d.has_tree) {
    // Each token follows the one before it.
    std::vector<std::int32_t> parents(static_cast<std::size_t>(d.token_count));
    std::iota(parents.begin(), parents.end(), -1);
    indices_.upload(parents.data(), 4 * parents.size(), static_cast<std::size_t>(index_bytes_));
  }
  numbers.resize(static_cast<std::size_t>(B + 1));
  for (std::size_t b = 0; b < numbers.size(); ++b)
    numbers[b] = static_cast<std::int32_t>(b) * static_cast<std::int32_t>(d.token_count);
  upload(2);
  indices_.upload(&seed, sizeof seed, static_cast<std::size_t>(3 * index_bytes_));
  if (conv) fill_conv1d_weights(seed);
  if (d.conv) {
    // Half of a step's tokens were accepted, as many came before it.
    const std::vector<std::int32_t> counts(static_cast<std::size_t>(B), (d.token_count + 1) / 2);
    indices_.upload(counts.data(), 4 * counts.size(), static_cast<std::size_t>(2 * index_bytes_));
  }
  std::byte* weights = weights_.data();
  const std::int64_t step = round_up(4 * weights_of, kWeightAlign);
  kernels_.fill(DType::f32, weights, weights_of, seed + 1, -1.5, 0.2, stream_);
  kernels_.fill(d.weight_dtype, weights + step, weights_of, seed + 2, 0, 1, stream_);
  kernels_.fill(d.weight_dtype, weights + 2 * step, weights_of, seed + 3, -3.5, 0.2, stream_);
  if (conv_bytes > 0)
    kernels_.fill(d.input_dtype, weights + 3 * step, taps * d.conv_channels(), seed + 4, 0, 0.5, stream_);
  if (norm_bytes > 0)
    kernels_.fill(d.input_dtype, weights + 3 * step + conv_bytes, norm_bytes / in, seed + 5, 1, 0.3, stream_);
  for (int layer = 0; layer < count_; ++layer) {
    std::byte* p = source(layer);
    const std::int64_t dt_at = dt_.at - x_.at;
    kernels_.fill(d.input_dtype, p, dt_at / in, seed_of(layer) + 1, 0, 1, stream_);
    kernels_.fill(d.dt_dtype, p + dt_at, (input_bytes_ - dt_at) / size_bytes(d.dt_dtype), seed_of(layer) + 2, 0, 1,
                  stream_);
  }
  if (replay) fill_old_sums();
  refill_all();
  stream_.synchronize();
  if (ring)
    enter(Phase::no_flush);
  else
    bytes_ = bytes_moved(d, batch_);
}

// Of a replay: deltas, the sums of A times them, and cursors: either buffer, all tokens accepted.
void Layers::fill_old_sums() {
  const Description& d = description_;
  const std::int64_t H = d.nheads, T = d.token_count;
  stream_.synchronize();
  std::vector<float> A(static_cast<std::size_t>(H));
  weights_.download(A.data(), 4 * A.size());
  const std::int64_t bytes = layer_bytes_ - dt_ring_.at;
  std::vector<float> floats(static_cast<std::size_t>(bytes / 4), 0.0f);
  float* const deltas = floats.data();
  float* const sums = floats.data() + (sum_ring_.at - dt_ring_.at) / 4;
  for (std::int64_t row = 0; row < std::int64_t{2} * batch_ * H; ++row) {
    float sum = 0;
    for (std::int64_t at = row * T; at < (row + 1) * T; ++at) {
      deltas[at] = 0.03f + 0.001f * static_cast<float>(at * 7 % 40);
      sums[at] = sum += A[static_cast<std::size_t>(row % H)] * deltas[at];
    }
  }
  old_sums_ = DeviceBuffer(static_cast<std::size_t>(bytes));
  old_sums_.upload(floats.data(), static_cast<std::size_t>(bytes));
  std::vector<RingCursor> cursors(static_cast<std::size_t>(batch_));
  for (std::size_t slot = 0; slot < cursors.size(); ++slot)
    cursors[slot] = {.start = static_cast<int>(slot % 2), .count = static_cast<int>(T)};
  const std::vector<std::byte> packed = pack_cursors(cursors);
  cursors_.upload(packed.data(), packed.size());
}

void Layers::enter(Phase phase) {
  const int count = timed_ring_count(description_, phase);
  bytes_ = bytes_moved(description_, batch_, phase, count);
  const std::vector<std::byte> cursors =
      pack_cursors(std::vector<RingCursor>(static_cast<std::size_t>(batch_), RingCursor{.start = 0, .count = count}));
  stream_.synchronize();
  cursors_.upload(cursors.data(), cursors.size());
}

std::vector<std::byte> Layers::pack_cursors(const std::vector<RingCursor>& of_slots) const {
  std::vector<std::byte> packed(cursors_.size());
  for (std::size_t slot = 0; slot < of_slots.size(); ++slot) {
    std::memcpy(packed.data() + 4 * slot, &of_slots[slot].start, 4);
    std::memcpy(packed.data() + static_cast<std::size_t>(index_bytes_) + 4 * slot, &of_slots[slot].count, 4);
  }
  return packed;
}

void Layers::take_cursors(const std::byte* packed) const {
  kernels_.produce(packed, cursors_.data(), static_cast<std::int64_t>(cursors_.size()), stream_);
}

CaseArgs Layers::args(int layer, Pdl pdl) const {
  if (description_.op() == Op::layer) return layer_args(layer, pdl);
  if (description_.op() == Op::ring) return ring_args(layer, pdl);
  if (description_.op() == Op::replay) return replay_args(layer, pdl);
  if (description_.op() == Op::conv1d) return conv1d_args(layer, pdl);
  if (description_.op() == Op::norm) return norm_args(layer, pdl);
  return update_args(layer, pdl);
}

// What the ops' arguments have in common; x, B, C, z and out with the dimensions that come before heads or groups.
template <class Args>
Args Layers::common_args(int layer, Pdl pdl, const std::vector<std::int64_t>& of_rows) const {
  const Description& d = description_;
  const std::int64_t B = batch_, H = d.nheads, P = d.head_dim, N = d.dstate, G = d.ngroups;
  const auto tensor = [&](const void* data, DType dtype, std::initializer_list<std::int64_t> inner) {
    Tensor t;
    t.data = data;
    t.dtype = dtype;
    for (std::int64_t size : of_rows) t.shape[static_cast<std::size_t>(t.rank++)] = size;
    for (std::int64_t size : inner) t.shape[static_cast<std::size_t>(t.rank++)] = size;
    std::int64_t stride = 1;
    for (int i = t.rank - 1; i >= 0; --i) {
      t.stride[static_cast<std::size_t>(i)] = stride;
      stride *= t.shape[static_cast<std::size_t>(i)];
    }
    return t;
  };
  const std::byte* p = at(layer);
  Args a;
  const std::int64_t slots = std::holds_alternative<Slots>(d.store_kind) ? all_slots() : d.has_destination ? 2 * B : B;
  a.state = contiguous(p + state_.at, d.state_dtype, {slots, H, P, N});
  a.x = tensor(p + x_.at, d.input_dtype, {H, P});
  a.B = tensor(p + B_.at, d.input_dtype, {G, N});
  a.C = tensor(p + C_.at, d.input_dtype, {G, N});
  if (d.has_z()) a.z = tensor(p + z_.at, d.input_dtype, {H, P});
  a.dt = tensor(p + dt_.at, d.dt_dtype, {H});
  a.out = tensor(out_.data(), d.input_dtype, {H, P});
  const std::int64_t step = round_up(4 * H, kWeightAlign);
  a.A = contiguous(weights_.data(), DType::f32, {H});
  if (d.has_D()) a.D = contiguous(weights_.data() + step, d.weight_dtype, {H});
  if (d.has_dt_bias()) a.dt_bias = contiguous(weights_.data() + 2 * step, d.weight_dtype, {H});
  a.state_batch_indices = contiguous(indices_.data(), DType::i32, {B});
  a.pdl = pdl;
  return a;
}

// Of several tokens, or with snapshots, slots, accepted counts or varlen.
UpdateArgs Layers::token_args(int layer, Pdl pdl) const {
  const Description& d = description_;
  const std::int64_t B = batch_, T = d.token_count, H = d.nheads, P = d.head_dim, N = d.dstate;
  auto a = common_args<UpdateArgs>(layer, pdl,
                                   d.is_varlen ? std::vector{B * T}
                                   : T == 1    ? std::vector{B}
                                               : std::vector{B, T});
  const std::byte* p = at(layer);
  if (d.has_state_scale()) a.state_scale = contiguous(p + scale_.at, DType::f32, {a.state.shape[0], H, P});
  if (d.has_accepted) {
    // Every column is the row's slot, so that any count will do.
    a.state_batch_indices = strided(indices_.data(), DType::i32, {B, T}, {1, 0});
    a.num_accepted_tokens = contiguous(indices_.data(), DType::i32, {B});
  }
  const std::byte* const targets = indices_.data() + index_bytes_;
  if (std::holds_alternative<Slots>(d.store_kind))
    a.dst_state_batch_indices = contiguous(targets, DType::i32, {B, T});
  else if (d.has_destination)
    a.dst_state_batch_indices = contiguous(targets, DType::i32, {B});
  if (std::holds_alternative<Snapshots>(d.store_kind)) {
    a.intermediate_states = contiguous(p + state_.at + state_.bytes / (1 + T), d.state_dtype, {B, T, H, P, N});
    if (d.has_state_scale())
      a.intermediate_state_scales = contiguous(p + scale_.at + scale_.bytes / (1 + T), DType::f32, {B, T, H, P});
    a.disable_state_update = true;  // as an engine does, which knows later how many of the tokens it keeps
  }
  if (d.has_tree) a.retrieve_parent_token = strided(targets, DType::i32, {B, T}, {0, 1});
  if (d.is_varlen) a.cu_seqlens = contiguous(indices_.data() + 2 * index_bytes_, DType::i32, {B + 1});
  if (std::holds_alternative<Stochastic>(d.rounding_kind))
    a.rand_seed = contiguous(indices_.data() + 3 * index_bytes_, DType::i64, {1});
  return a;
}

UpdateArgs Layers::update_args(int layer, Pdl pdl) const {
  if (has_token_kernel(description_)) return token_args(layer, pdl);
  auto a = common_args<UpdateArgs>(layer, pdl, {batch_});
  if (description_.has_destination)
    a.dst_state_batch_indices = contiguous(indices_.data() + index_bytes_, DType::i32, {batch_});
  add_rounding(layer, a);
  return a;
}

// Scales and the seed.
template <class Args>
void Layers::add_rounding(int layer, Args& a) const {
  const Description& d = description_;
  if (d.has_state_scale())
    a.state_scale = contiguous(at(layer) + scale_.at, DType::f32, {a.state.shape[0], d.nheads, d.head_dim});
  if (std::holds_alternative<Stochastic>(d.rounding_kind))
    a.rand_seed = contiguous(indices_.data() + 3 * index_bytes_, DType::i64, {1});
}

LayerArgs Layers::layer_args(int layer, Pdl pdl) const {
  const Description& d = description_;
  const bool ring = d.ring_window() != 0, several = ring || d.token_count > 1;
  const std::int64_t B = batch_, T = d.token_count, H = d.nheads, P = d.head_dim, in = size_bytes(d.input_dtype);
  auto a = several ? common_args<LayerArgs>(layer, pdl, {B, T}) : common_args<LayerArgs>(layer, pdl, {B});
  a.scratch = contiguous(scratch_.data(), DType::i8, {static_cast<std::int64_t>(scratch_.size())});
  const std::byte* p = at(layer);
  const std::byte* weights = weights_.data() + 3 * round_up(4 * H, kWeightAlign);
  std::int64_t conv_bytes = 0;
  if (d.conv) {
    const std::int64_t channels = d.conv_channels(), length = d.conv_state_len(), taps = d.conv->width;
    a.conv_state = d.conv->channels_last ? contiguous(p + windows_.at, d.input_dtype, {B, length, channels})
                                         : contiguous(p + windows_.at, d.input_dtype, {B, channels, length});
    // x, B and C lie one behind the other for each row: the parts of the three are one stretch.
    a.x = several ? contiguous(p + x_.at, d.input_dtype, {B, T, channels})
                  : contiguous(p + x_.at, d.input_dtype, {B, channels});
    a.B = a.C = Tensor{};
    a.conv_weight = contiguous(weights, d.input_dtype, {channels, taps});
    if (d.conv->has_bias) a.conv_bias = contiguous(weights + taps * channels * in, d.input_dtype, {channels});
    add_conv_extras(layer, a);
    conv_bytes = round_up((taps + 1) * channels * in, kWeightAlign);
  }
  if (d.norm) {
    a.norm_weight = contiguous(weights + conv_bytes, d.input_dtype, {H * P});
    if (d.norm->has_bias) a.norm_bias = contiguous(weights + conv_bytes + H * P * in, d.input_dtype, {H * P});
    if (!d.norm->gate_expr.empty())
      a.z = several ? contiguous(p + z_.at, d.input_dtype, {B, T, H, P})
                    : contiguous(p + z_.at, d.input_dtype, {B, H, P});
  }
  if (ring) add_ring(layer, a);
  return a;
}

NormArgs Layers::norm_args(int layer, Pdl pdl) const {
  const Description& d = description_;
  const std::int64_t B = batch_, T = d.token_count, N = d.norm_channels(), step = round_up(4 * N, kWeightAlign);
  NormArgs a;
  a.x = contiguous(at(layer) + x_.at, d.input_dtype, {B, T, N});
  if (z_.bytes > 0) a.z = contiguous(at(layer) + z_.at, d.input_dtype, {B, T, N});
  a.weight = contiguous(weights_.data() + step, d.weight_dtype, {N});
  if (d.norm->has_bias) a.bias = contiguous(weights_.data() + 2 * step, d.weight_dtype, {N});
  a.out = contiguous(out_.data(), d.input_dtype, {B, T, N});
  a.pdl = pdl;
  return a;
}

// Scales, rings, cursors and the seed.
template <class Args>
void Layers::add_ring(int layer, Args& a) const {
  const Description& d = description_;
  const std::int64_t B = batch_, H = d.nheads, P = d.head_dim, L = d.ring_length();
  const std::byte* p = at(layer);
  add_rounding(layer, a);
  a.x_ring = contiguous(p + x_ring_.at, d.input_dtype, {B, H, L, P});
  a.B_ring = contiguous(p + B_ring_.at, d.input_dtype, {B, d.ngroups, L, d.dstate});
  a.dt_ring = contiguous(p + dt_ring_.at, DType::f32, {B, H, L});
  a.ring_start = contiguous(cursors_.data(), DType::i32, {B});
  a.ring_count = contiguous(cursors_.data() + index_bytes_, DType::i32, {B});
}

RingArgs Layers::ring_args(int layer, Pdl pdl) const {
  const Description& d = description_;
  const std::int64_t B = batch_, T = d.token_count;
  auto a = d.is_varlen ? common_args<RingArgs>(layer, pdl, {B * T}) : common_args<RingArgs>(layer, pdl, {B, T});
  add_ring(layer, a);
  if (d.is_varlen) a.cu_seqlens = contiguous(indices_.data() + 2 * index_bytes_, DType::i32, {B + 1});
  return a;
}

ReplayArgs Layers::replay_args(int layer, Pdl pdl) const {
  const Description& d = description_;
  const std::int64_t B = batch_, T = d.token_count, H = d.nheads;
  const std::byte* p = at(layer);
  auto a = common_args<ReplayArgs>(layer, pdl, {B, T});
  a.old_x = contiguous(p + x_ring_.at, d.input_dtype, {B, T, H, d.head_dim});
  a.old_B = contiguous(p + B_ring_.at, d.input_dtype, {B, 2, T, d.ngroups, d.dstate});
  a.old_dt = contiguous(p + dt_ring_.at, DType::f32, {B, 2, H, T});
  a.old_cumAdt = contiguous(p + sum_ring_.at, DType::f32, {B, 2, H, T});
  a.cache_buf_idx = contiguous(cursors_.data(), DType::i32, {B});
  a.prev_num_accepted_tokens = contiguous(cursors_.data() + index_bytes_, DType::i32, {B});
  a.scratch = contiguous(scratch_.data(), DType::i8, {static_cast<std::int64_t>(scratch_.size())});
  if (std::holds_alternative<Stochastic>(d.rounding_kind))
    a.rand_seed = contiguous(indices_.data() + 3 * index_bytes_, DType::i64, {1});
  return a;
}

Conv1dArgs Layers::conv1d_args(int layer, Pdl pdl) const {
  const Description& d = description_;
  const Conv& conv = *d.conv;
  const std::int64_t B = batch_, T = d.token_count, C = d.conv_channels(), L = d.conv_state_len();
  const auto windows = [&](const std::byte* p, std::int64_t slots, std::int64_t entries) {
    return conv.channels_last ? contiguous(p, d.state_dtype, {slots, entries, C})
                              : contiguous(p, d.state_dtype, {slots, C, entries});
  };
  const bool by_token = conv.keep == ConvKeep::slots;
  const std::byte* p = at(layer);
  Conv1dArgs a;
  a.conv_state = windows(p + state_.at, by_token ? B * (1 + T) : B, L);
  a.x = contiguous(p + x_.at, d.input_dtype, {B, T, C});
  a.w = contiguous(weights_.data(), d.weight_dtype, {C, conv.width});
  if (conv.has_bias)
    a.bias = contiguous(weights_.data() + C * conv.width * size_bytes(d.weight_dtype), d.weight_dtype, {C});
  a.out = contiguous(out_.data(), d.input_dtype, {B, T, C});
  a.state_batch_indices = contiguous(indices_.data(), DType::i32, {B});
  if (by_token) a.output_state_indices = contiguous(indices_.data() + index_bytes_, DType::i32, {B, T});
  add_conv_extras(layer, a);
  a.pdl = pdl;
  return a;
}

// Snapshots and counts, as the convolution alone or in a layer has them.
template <class Args>
void Layers::add_conv_extras(int layer, Args& a) const {
  const Description& d = description_;
  const Conv& conv = *d.conv;
  const std::int64_t B = batch_, T = d.token_count, C = d.conv_channels(), K = d.conv_snapshot_len();
  if (conv.keep == ConvKeep::snapshots) {
    const std::byte* p = at(layer) + kept_.at;
    const DType dtype = d.op() == Op::layer ? d.input_dtype : d.state_dtype;
    a.intermediate_states =
        conv.channels_last ? contiguous(p, dtype, {B, T, K, C}) : contiguous(p, dtype, {B, T, C, K});
  }
  const Tensor counts = contiguous(indices_.data() + 2 * index_bytes_, DType::i32, {B});
  if (conv.store == ConvStore::circular) a.cache_seqlens = counts;
  if (conv.has_accepted) a.num_accepted_tokens = counts;
}

void Layers::fill_conv1d_weights(std::uint64_t seed) {
  const Description& d = description_;
  const std::int64_t taps = std::int64_t{d.conv_channels()} * d.conv->width;
  kernels_.fill(d.weight_dtype, weights_.data(), taps + d.conv_channels(), seed + 1, 0, 0.5, stream_);
}

void Layers::refill(int layer) const {
  const Description& d = description_;
  const std::uint64_t s = seed_of(layer);
  std::byte* p = at(layer);
  const auto fill = [&](const Part& part, DType dtype, std::uint64_t seed, double mean, double deviation) {
    if (part.bytes > 0)
      kernels_.fill(dtype, p + part.at, part.bytes / size_bytes(dtype), seed, mean, deviation, stream_);
  };
  // Of states with scales, in units of these: values of about 1.
  const bool int16 = d.state_dtype == DType::i16;
  fill(state_, d.state_dtype, s, 0, int16 ? 8000 : d.has_state_scale() ? 30 : 1);
  fill(windows_, d.input_dtype, s + 7, 0, 1);
  fill(scale_, DType::f32, s + 3, int16 ? 1.2e-4 : 0.03, int16 ? 2e-5 : 0.005);
  // Deltas above 0, so that a flush again and again of the same rows leaves a state that is bounded.
  fill(x_ring_, d.input_dtype, s + 4, 0, 1);
  fill(B_ring_, d.input_dtype, s + 5, 0, 1);
  if (old_sums_.size() > 0)
    kernels_.produce(old_sums_.data(), p + dt_ring_.at, static_cast<std::int64_t>(old_sums_.size()), stream_);
  else
    fill(dt_ring_, DType::f32, s + 6, 0.05, 0.012);
  produce(layer);
}

void Layers::refill_all() const {
  for (int layer = 0; layer < count_; ++layer) refill(layer);
}

void Layers::poison_inputs() const {
  const std::vector<std::byte> nan(static_cast<std::size_t>(input_bytes_), std::byte{0xff});
  stream_.synchronize();
  for (int layer = 0; layer < count_; ++layer)
    memory_.upload(nan.data(), nan.size(), static_cast<std::size_t>(layer * layer_bytes_ + x_.at));
}

void Layers::produce(int layer) const { kernels_.produce(source(layer), at(layer) + x_.at, input_bytes_, stream_); }

void Layers::pass(int layer, const BenchKernels::Pass& how, bool dependent) const {
  // The parts are padded to 256 bytes; the floor moves the bytes that a step moves, no more.
  BenchKernels::Moved moved;
  moved.data = at(layer);
  moved.read = bytes_.read;
  moved.written_back = bytes_.written_back;
  moved.elsewhere = description_.has_destination ? at(layer) + state_.bytes / 2 : out_.data();
  moved.written_new = bytes_.written_new;
  if (description_.op() == Op::conv1d) {
    moved.written_new = x_.bytes;
    moved.appended = bytes_.written_new - x_.bytes;
    moved.rows = kept_.bytes > 0 ? at(layer) + kept_.at : at(layer) + state_.bytes / (1 + description_.token_count);
  }
  if (description_.stores_every_token()) {
    moved.written_new = x_.bytes;
    moved.appended = bytes_.written_new - x_.bytes;
    moved.rows = at(layer) + state_.bytes / (1 + description_.token_count);
  }
  if (description_.op() == Op::ring || description_.op() == Op::layer || description_.op() == Op::replay) {
    // Behind the rows in use, at the end.
    moved.written_new = x_.bytes;
    moved.appended = bytes_.written_new - x_.bytes;
    moved.rows = at(layer) + layer_bytes_ - round_up(moved.appended, 16);
  }
  kernels_.pass(how, moved, dependent, stream_);
}

std::vector<Tensor> Layers::slot_pools(int layer) const {
  const Description& d = description_;
  std::vector<Tensor> pools{
      contiguous(at(layer) + state_.at, d.state_dtype, {all_slots(), d.nheads, d.head_dim, d.dstate})};
  if (d.has_state_scale())
    pools.push_back(contiguous(at(layer) + scale_.at, DType::f32, {all_slots(), d.nheads, d.head_dim}));
  return pools;
}

void Layers::copy_pass(std::int64_t bytes, const BenchKernels::Pass& how) const {
  BenchKernels::Moved moved;
  moved.data = memory_.data();
  moved.read = moved.written_new = bytes;
  moved.elsewhere = memory_.data() + round_up(bytes, kPartAlign);
  if (round_up(bytes, kPartAlign) + bytes > static_cast<std::int64_t>(memory_.size()))
    fail(ErrorKind::internal, "layers: a copy of {} bytes in {}", bytes, memory_.size());
  kernels_.pass(how, moved, false, stream_);
}

void Layers::displace_l2() const {
  BenchKernels::Moved moved;
  moved.data = displacing_.data();
  moved.read = static_cast<std::int64_t>(displacing_.size());
  kernels_.pass({.unroll = 8, .streaming = false, .threads = 256, .grid = std::int64_t{8} * kernels_.sms()}, moved,
                false, stream_);
}

std::uint64_t Layers::read_hash() const {
  stream_.synchronize();
  std::uint64_t h = 0;
  hash_.download(&h, 8);
  return h;
}

std::uint64_t Layers::hash(int layer) const {
  hash_.fill(0, stream_.handle());
  kernels_.hash(at(layer), layer_bytes_, hash_.data(), stream_);
  kernels_.hash(out_.data(), static_cast<std::int64_t>(out_.size()), hash_.data(), stream_);
  return read_hash();
}

std::uint64_t Layers::hash_all() const {
  hash_.fill(0, stream_.handle());
  kernels_.hash(memory_.data(), static_cast<std::int64_t>(memory_.size()), hash_.data(), stream_);
  kernels_.hash(out_.data(), static_cast<std::int64_t>(out_.size()), hash_.data(), stream_);
  return read_hash();
}

}  // namespace ssmjit
