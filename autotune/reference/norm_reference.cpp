#include "autotune/reference/norm_reference.h"

#include <cmath>

namespace ssmjit {

std::int64_t norm_offset(const Description& d, const Tensor& tensor, std::int64_t request, int token, int group) {
  const std::int64_t row = tensor.rank == 2 ? (request * d.token_count + token) * tensor.stride[0]
                                            : request * tensor.stride[0] + std::int64_t{token} * tensor.stride[1];
  return row + std::int64_t{group} * d.norm_group_size();
}

std::vector<double> norm_reference(const Description& d, const NormArgs& args, std::int64_t request, int token,
                                   int group, const Reader& read) {
  const int size = d.norm_group_size();
  const auto of_row = [&](const Tensor& tensor) {
    return stored_values(tensor, norm_offset(d, tensor, request, token, group), size, read);
  };
  const auto of_channels = [&](const Tensor& tensor) {
    return stored_values(tensor, std::int64_t{group} * size, size, read);
  };
  const std::vector<double> x = of_row(args.x), weight = of_channels(args.weight);
  std::vector<double> gate(x.size(), 1.0), bias(x.size(), 0.0);
  if (!d.norm->gate_expr.empty()) {
    gate = of_row(args.z);
    for (double& g : gate) {
      LeafValues leaf{};
      leaf[static_cast<std::size_t>(Leaf::z)] = g;
      g = d.norm->gate_expr.evaluate(leaf);
    }
  }
  if (d.norm->has_bias) bias = of_channels(args.bias);

  double squares = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double u = d.norm->before_gate ? x[i] : x[i] * gate[i];
    squares += u * u;
  }
  const double r = 1 / std::sqrt(squares / size + d.norm->eps);
  std::vector<double> y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i)
    y[i] = d.norm->before_gate ? (x[i] * r * weight[i] + bias[i]) * gate[i] : x[i] * gate[i] * r * weight[i] + bias[i];
  return y;
}

}  // namespace ssmjit
