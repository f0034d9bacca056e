#include "autotune/norm_case.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "autotune/reference/norm_reference.h"

namespace ssmjit {

// Half a unit is the rounding's own; a product of what was rounded before is up to a whole one off.
constexpr double kRoundedOnce = 0.75;

std::string judge_norm(const Nearness& n, DType dtype) {
  if (std::string wrong = judge(n, dtype, 1, "out"); !wrong.empty()) return wrong;
  if (size_bytes(dtype) == 2 && n.worst_ulp > kRoundedOnce)
    return fmt::format("out: an element is {:.2f} units off; one that is rounded once {} at most", n.worst_ulp,
                       kRoundedOnce);
  return {};
}

NormCase::NormCase(const Description& description, const CaseLayout& layout, std::uint64_t seed)
    : KernelCase(description, layout, seed) {
  const Description& d = description;
  const std::int64_t batch = layout.batch, T = d.token_count, N = d.norm_channels();
  const std::int64_t bytes = size_bytes(d.input_dtype);
  const bool gated = !d.norm->gate_expr.empty();

  // Packed: x and z are slices of one row, z first, with a gap of 16 bytes behind a request's tokens; an unaligned
  // description gets rows of an odd count of elements. Else rows follow each other, [batch * tokens, channels].
  const std::int64_t pad = d.aligned_rows ? 16 / bytes : 1;
  const std::int64_t row = layout.packed_rows ? (gated ? 2 * N : N) + pad : N;
  const std::int64_t request = layout.packed_rows ? T * row + pad : T * row;
  const auto tensor_at = [&](std::byte* first) {
    return layout.packed_rows ? strided(first, d.input_dtype, {batch, T, N}, {request, row, 1})
                              : strided(first, d.input_dtype, {batch * T, N}, {row, 1});
  };
  const Use of_x = layout.in_place ? Use::overwritten : Use::produced;
  if (layout.packed_rows) {
    std::byte* first = at(add(gated ? "z, x" : "x", batch * request * bytes, of_x));
    host_.x = tensor_at(gated ? first + N * bytes : first);
    if (gated) host_.z = tensor_at(first);
  } else {
    host_.x = tensor_at(at(add("x", batch * T * N * bytes, of_x)));
    if (gated) host_.z = tensor_at(at(add("z", batch * T * N * bytes, Use::produced)));
  }
  const auto weight = [&](const char* name) {
    return contiguous(at(add(name, N * size_bytes(d.weight_dtype), Use::constant)), d.weight_dtype, {N});
  };
  host_.weight = weight("weight");
  if (d.norm->has_bias) host_.bias = weight("bias");
  if (layout.in_place) {
    host_.out = host_.x;
  } else {
    const std::int64_t stride = layout.packed_rows ? N + pad : N;
    host_.out = strided(at(add("out", batch * T * stride * bytes, Use::output)), d.input_dtype, {batch, T, N},
                        {T * stride, stride, 1});
  }

  for (std::int64_t i = 0; i < N; ++i) {
    put(host_.weight, i, 1 + 0.2 * normal());
    if (d.norm->has_bias) put(host_.bias, i, 0.3 * normal());
  }
  const int groups = d.norm_channels() / d.norm_group_size(), size = d.norm_group_size();
  for (std::int64_t b = 0; b < batch; ++b)
    for (int t = 0; t < d.token_count; ++t)
      for (int g = 0; g < groups; ++g) {
        // Far: from where eps is all that counts to some hundreds.
        const double scale = layout.far_magnitudes ? std::exp(uniform({-7, 5})) : 1.0;
        for (int i = 0; i < size; ++i) {
          put(host_.x, norm_offset(d, host_.x, b, t, g) + i, scale * normal());
          if (gated) put(host_.z, norm_offset(d, host_.z, b, t, g) + i, (layout.far_magnitudes ? 8 : 1) * normal());
        }
      }
  for (std::int64_t b = 0; b < batch; ++b)
    for (int t = 0; t < d.token_count; ++t)
      for (int g = 0; g < groups; ++g) expected_.push_back(norm_reference(d, host_, b, t, g, read_host));
}

NormArgs NormCase::args(const std::vector<std::byte*>& base) const {
  NormArgs args = host_;
  for (Tensor* t : {&args.x, &args.z, &args.weight, &args.bias, &args.out}) move(*t, base);
  return args;
}

void NormCase::judge(const std::vector<std::byte*>& want_base, const std::vector<std::byte*>& got_base,
                     CaseResult& result) const {
  const Description& d = description();
  const NormArgs want = args(want_base), got = args(got_base);
  const int size = d.norm_group_size();
  NearnessMeter meter(d.input_dtype, 1);
  auto expected = expected_.begin();
  for (std::int64_t b = 0; b < layout().batch; ++b)
    for (int t = 0; t < d.token_count; ++t)
      for (int g = 0; g < d.norm_channels() / d.norm_group_size(); ++g) {
        const std::int64_t offset = norm_offset(d, got.out, b, t, g);
        meter.add_row((expected++)->data(), stored_values(got.out, offset, size, read_host));
        take(want.out, got.out, offset, size);
      }
  result.y = meter.result();
  if (const std::string s = judge_norm(result.y, d.input_dtype); !s.empty()) failed(result, s);
}

}  // namespace ssmjit
