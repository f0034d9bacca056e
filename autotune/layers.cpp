#include "autotune/layers.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "codegen/bench_source.h"
#include "codegen/fail.h"

namespace ssmjit {
namespace {

// The parameter structs of templates/bench.cuh.
struct PassArgs {
  void* data;
  void* elsewhere;
  std::uint64_t read;
  std::uint64_t written_back;
  std::uint64_t written_new;
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

std::int64_t round_up(std::int64_t v, std::int64_t to) { return (v + to - 1) / to * to; }

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

void BenchKernels::pass(const Pass& how, std::byte* data, std::byte* elsewhere, std::int64_t read,
                        std::int64_t written_back, std::int64_t written_new, bool dependent,
                        const Stream& stream) const {
  const PassArgs args{data,
                      elsewhere,
                      static_cast<std::uint64_t>(read / 16),
                      static_cast<std::uint64_t>(written_back / 16),
                      static_cast<std::uint64_t>(written_new / 16),
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
                      dtype == DType::f32    ? 0
                      : dtype == DType::bf16 ? 1
                                             : 2};
  launch_raw(fill_, std::clamp<std::int64_t>((count + 255) / 256, 1, 16 * sms_), 1, 256, &args, stream.handle(), false);
}

void BenchKernels::hash(const std::byte* data, std::int64_t bytes, std::byte* result, const Stream& stream) const {
  const HashArgs args{data, static_cast<std::uint64_t>(bytes / 4), result};
  launch_raw(hash_, std::clamp<std::int64_t>((bytes / 4 + 255) / 256, 1, 16 * sms_), 1, 256, &args, stream.handle(),
             false);
}

Layers::Layers(const Description& description, int batch, const DeviceFacts& gpu, const BenchKernels& kernels,
               const Stream& stream, std::uint64_t seed)
    : description_(description),
      batch_(batch),
      seed_(seed),
      kernels_(kernels),
      stream_(stream),
      bytes_(bytes_moved(description, batch)) {
  const Description& d = description_;
  const std::int64_t B = batch, H = d.nheads, P = d.head_dim, N = d.dstate, G = d.ngroups;
  const std::int64_t in = size_bytes(d.input_dtype);
  state_bytes_ = B * H * P * N * size_bytes(d.state_dtype) * (d.has_destination ? 2 : 1);
  x_bytes_ = round_up(B * H * P * in, 256);
  group_bytes_ = round_up(B * G * N * in, 256);
  z_bytes_ = d.has_z() ? x_bytes_ : 0;
  dt_bytes_ = round_up(B * H * size_bytes(d.dt_dtype), 256);
  input_bytes_ = x_bytes_ + 2 * group_bytes_ + z_bytes_ + dt_bytes_;
  layer_bytes_ = round_up(state_bytes_, 256) + input_bytes_;

  const std::int64_t cold = 4 * gpu.l2_bytes;
  count_ = static_cast<int>(std::max<std::int64_t>(8, cold / state_bytes_ + 1));
  const std::int64_t room = free_device_bytes() * 9 / 10;
  if (count_ * (layer_bytes_ + input_bytes_) > room) count_ = static_cast<int>(room / (layer_bytes_ + input_bytes_));
  if (count_ < 2 || state_bytes_in_all() < 2 * gpu.l2_bytes)
    fail(ErrorKind::machine,
         "timing: {} layers of {} bytes of state fit the device's free memory; a cold figure wants {} bytes in all "
         "(twice the L2) and two layers",
         count_, state_bytes_, 2 * gpu.l2_bytes);

  memory_ = DeviceBuffer(static_cast<std::size_t>(layer_bytes_ * count_));
  sources_ = DeviceBuffer(static_cast<std::size_t>(input_bytes_ * count_));
  out_ = DeviceBuffer(static_cast<std::size_t>(x_bytes_));
  weights_ = DeviceBuffer(static_cast<std::size_t>(3 * round_up(4 * H, kWeightAlign)));
  indices_ = DeviceBuffer(static_cast<std::size_t>(2 * round_up(4 * B, 256)));
  hash_ = DeviceBuffer(8);

  std::vector<std::int32_t> slots(static_cast<std::size_t>(B));
  std::iota(slots.begin(), slots.end(), 0);
  indices_.upload(slots.data(), 4 * slots.size());
  std::iota(slots.begin(), slots.end(), static_cast<std::int32_t>(B));
  indices_.upload(slots.data(), 4 * slots.size(), static_cast<std::size_t>(round_up(4 * B, 256)));
  std::byte* weights = weights_.data();
  const std::int64_t step = round_up(4 * H, kWeightAlign);
  kernels_.fill(DType::f32, weights, H, seed + 1, -1.5, 0.2, stream_);
  kernels_.fill(d.weight_dtype, weights + step, H, seed + 2, 0, 1, stream_);
  kernels_.fill(d.weight_dtype, weights + 2 * step, H, seed + 3, -3.5, 0.2, stream_);
  for (int layer = 0; layer < count_; ++layer) {
    const std::uint64_t s = seed_ + 16 * static_cast<std::uint64_t>(layer + 1);
    std::byte* p = source(layer);
    kernels_.fill(d.input_dtype, p, (x_bytes_ + 2 * group_bytes_ + z_bytes_) / in, s + 1, 0, 1, stream_);
    kernels_.fill(d.dt_dtype, p + input_bytes_ - dt_bytes_, dt_bytes_ / size_bytes(d.dt_dtype), s + 2, 0, 1, stream_);
  }
  refill_all();
  stream_.synchronize();
}

UpdateArgs Layers::args(int layer, Pdl pdl) const {
  const Description& d = description_;
  const std::int64_t B = batch_, H = d.nheads, P = d.head_dim, N = d.dstate, G = d.ngroups;
  std::byte* p = at(layer);
  UpdateArgs a;
  a.state = contiguous(p, d.state_dtype, {d.has_destination ? 2 * B : B, H, P, N});
  p += round_up(state_bytes_, 256);
  a.x = contiguous(p, d.input_dtype, {B, H, P});
  p += x_bytes_;
  a.B = contiguous(p, d.input_dtype, {B, G, N});
  p += group_bytes_;
  a.C = contiguous(p, d.input_dtype, {B, G, N});
  p += group_bytes_;
  if (d.has_z()) a.z = contiguous(p, d.input_dtype, {B, H, P});
  p += z_bytes_;
  a.dt = contiguous(p, d.dt_dtype, {B, H});
  a.out = contiguous(out_.data(), d.input_dtype, {B, H, P});
  const std::int64_t step = round_up(4 * H, kWeightAlign);
  a.A = contiguous(weights_.data(), DType::f32, {H});
  if (d.has_D()) a.D = contiguous(weights_.data() + step, d.weight_dtype, {H});
  if (d.has_dt_bias()) a.dt_bias = contiguous(weights_.data() + 2 * step, d.weight_dtype, {H});
  a.state_batch_indices = contiguous(indices_.data(), DType::i32, {B});
  if (d.has_destination)
    a.dst_state_batch_indices = contiguous(indices_.data() + round_up(4 * B, 256), DType::i32, {B});
  a.pdl = pdl;
  return a;
}

void Layers::refill(int layer) const {
  const Description& d = description_;
  const std::uint64_t s = seed_ + 16 * static_cast<std::uint64_t>(layer + 1);
  kernels_.fill(d.state_dtype, at(layer), state_bytes_ / size_bytes(d.state_dtype), s, 0, 1, stream_);
  produce(layer);
}

void Layers::refill_all() const {
  for (int layer = 0; layer < count_; ++layer) refill(layer);
}

void Layers::poison_inputs() const {
  const std::vector<std::byte> nan(static_cast<std::size_t>(input_bytes_), std::byte{0xff});
  stream_.synchronize();
  for (int layer = 0; layer < count_; ++layer)
    memory_.upload(nan.data(), nan.size(),
                   static_cast<std::size_t>(layer * layer_bytes_ + round_up(state_bytes_, 256)));
}

void Layers::produce(int layer) const {
  kernels_.produce(source(layer), at(layer) + round_up(state_bytes_, 256), input_bytes_, stream_);
}

void Layers::pass(int layer, const BenchKernels::Pass& how, bool dependent) const {
  // The parts are padded to 256 bytes; the floor moves the bytes that a step moves, no more.
  const std::int64_t back = bytes_.written_back / 16 * 16;
  std::byte* elsewhere = description_.has_destination ? at(layer) + state_bytes_ / 2 : out_.data();
  kernels_.pass(how, at(layer), elsewhere, bytes_.read, back, bytes_.written_new, dependent, stream_);
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
