// The launch of a gated norm.
#include "jit/kernel_args.h"
#include "jit/kernel_state.h"
#include "jit/launch_checks.h"

namespace ssmjit {

namespace {

// Requests of a tensor of this step: [batch, tokens, channels], or [batch * tokens, channels].
std::int64_t batch_of(const Wants& wants, const Tensor& tensor) {
  if ((tensor.rank != 2 && tensor.rank != 3) || tensor.shape[0] < 0) return kAny;
  if (tensor.rank == 3 || wants.tokens == 1) return tensor.shape[0];
  return tensor.shape[0] / wants.tokens;
}

template <class Report>
void check_launch(const Wants& wants, const NormArgs& args, Report&& report) {
  if (wants.op != Op::norm) {
    report([&] { return wrong_args("NormArgs", wants.op); });
    return;
  }
  if (!check_version(args, report)) return;  // nothing behind it can be trusted
  const std::int64_t batch = batch_of(wants, args.x);
  if (batch > kMostRows || batch * wants.tokens > kMostRows)
    report([&] {
      return fmt::format("x: got {} rows; a launch takes up to {}: split the batch", batch * wants.tokens, kMostRows);
    });
  constexpr const char* kNeeded = "every norm needs it";
  constexpr const char* kRead = "the description's maths reads it";
  const Align align = wants.aligned_rows ? Align::vector_rows : Align::element;
  const auto row = [&](const Tensor& tensor, const char* name, bool wanted, const char* reader, bool written = false) {
    if (!check_given(name, is_given(tensor), wanted, reader, report)) return;
    TensorWants tensor_wants{.name = name,
                             .dtype = wants.input,
                             .rank = 3,
                             .shape = {batch, wants.tokens, wants.norm_channels},
                             .align = align,
                             .rows_apart = written,
                             .strided = 2,
                             .may_be_unaligned = true};
    if (tensor.rank == 2) {
      tensor_wants.rank = 2;
      tensor_wants.shape = {batch == kAny ? kAny : batch * wants.tokens, wants.norm_channels};
      tensor_wants.strided = 1;
    }
    check_tensor(tensor, tensor_wants, report);
  };
  const auto weight = [&](const Tensor& tensor, const char* name, bool wanted, const char* reader) {
    if (check_given(name, is_given(tensor), wanted, reader, report))
      check_tensor(tensor,
                   {.name = name,
                    .dtype = wants.weight,
                    .rank = 1,
                    .shape = {wants.norm_channels},
                    .align = align,
                    .may_be_unaligned = true},
                   report);
  };
  row(args.x, "x", true, kNeeded);
  row(args.z, "z", wants.has_norm_gate, kRead);
  weight(args.weight, "weight", true, kNeeded);
  weight(args.bias, "bias", wants.has_norm_bias, kRead);
  row(args.out, "out", true, kNeeded, true);
  check_pdl(args.pdl, report);
}

// Strides of a tensor of this step in elements, between requests and between tokens.
struct RowStrides {
  std::int64_t request, token;
};
RowStrides strides_of(const Tensor& tensor, std::int64_t tokens) {
  if (tensor.rank == 3) return {stride_of(tensor, 0), stride_of(tensor, 1)};
  return {tokens * stride_of(tensor, 0), stride_of(tensor, 0)};
}

// Where the output lies over an input, each element must lie over its own.
template <class Report>
void check_in_place(const Wants& wants, const NormArgs& args, Report&& report) {
  const RowStrides out = strides_of(args.out, wants.tokens);
  const auto check = [&](const Tensor& tensor, const char* name) {
    const RowStrides in = strides_of(tensor, wants.tokens);
    if (tensor.data != args.out.data || (in.request == out.request && in.token == out.token)) return;
    report([&] { return fmt::format("out: is {} with other strides; wants the same, or memory of its own", name); });
  };
  if (wants.op != Op::norm || args.out.data == nullptr) return;
  check(args.x, "x");
  check(args.z, "z");
}

template <class Report>
void check_all(const Wants& wants, const NormArgs& args, Report&& report) {
  bool fits = true;
  check_launch(wants, args, [&](auto&& sentence) {
    fits = false;
    report(sentence);
  });
  if (fits) check_in_place(wants, args, report);
}

std::vector<std::string> find_problems(const Wants& wants, const NormArgs& args) {
  std::vector<std::string> found;
  check_all(wants, args, [&](auto&& sentence) { found.push_back(sentence()); });
  return found;
}

[[noreturn, gnu::cold, gnu::noinline]] void refuse(const Wants& wants, const NormArgs& args) {
  fail(ErrorKind::invalid, "{}", lines_of(find_problems(wants, args)));
}

}  // namespace

device_args::NormArgs to_device(const Description& description, const NormArgs& args, Pdl pdl) {
  const std::int64_t tokens = description.token_count;
  device_args::NormArgs device{};
  const auto strides = [&](const Tensor& tensor, long long& request, long long& token) {
    if (tensor.data == nullptr) return;
    const RowStrides s = strides_of(tensor, tokens);
    request = s.request;
    token = s.token;
  };
  device.x = args.x.data;
  strides(args.x, device.x_stride, device.x_token_stride);
  device.z = args.z.data;
  strides(args.z, device.z_stride, device.z_token_stride);
  device.weight = args.weight.data;
  device.bias = args.bias.data;
  device.out = const_cast<void*>(args.out.data);
  strides(args.out, device.out_stride, device.out_token_stride);
  device.channels = description.norm_channels();
  device.pdl = device_pdl(pdl);
  return device;
}

void Kernel::launch(const NormArgs& args, void* stream) const {
  if (state_ == nullptr) [[unlikely]]
    State::refuse_empty();
  const State& state = *state_;
  bool fits = true;
  check_all(state.wants, args, [&](auto&&) { fits = false; });
  if (!fits) [[unlikely]]
    refuse(state.wants, args);
  const std::int64_t batch = batch_of(state.wants, args.x);
  if (batch == 0) return;
  const Pdl pdl = state.has_pdl ? args.pdl : Pdl::off;
  device_args::NormArgs device = to_device(state.description, args, pdl);
  state.launch(&device, batch, pdl, static_cast<CUstream>(stream));
}

std::vector<std::string> Kernel::problems(const Description& description, const NormArgs& args) {
  return find_problems(Wants(description), args);
}

}  // namespace ssmjit
