#include "autotune/reference/ring_reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "autotune/host_numbers.h"

namespace ssmjit {
namespace {

// A row of the recurrence, old or new.
struct Row {
  std::vector<double> x, B;
  double delta = 0;
};

std::size_t at(int i) { return static_cast<std::size_t>(i); }

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t n = 0; n < a.size(); ++n) sum += a[n] * b[n];
  return sum;
}

// Relative error of an element of a flush of `count` rows, against its terms' magnitudes. An operand is kept in three
// parts of the input's dtype for fp32 states, in two for others, and what is left of it is lost; a product of a part
// with 16 places of rows cuts each of its terms, and the sum so far, where fp32 ends; a row's factor is an exponential
// and three products in fp32.
double flush_error(const Description& d, int count) {
  const int parts = d.state_dtype == DType::f32 ? 3 : 2, digits = d.input_dtype == DType::f16 ? 11 : 8;
  const int products = (d.ring_length() + 15) / 16;
  return std::ldexp(1.0, -parts * digits) + parts * (count + products) * 0x1p-23 + 0x1p-21;
}
constexpr double kSmallest = 0x1p-126;  // below it fp32 may flush to zero
// Of the largest factor of a row: fp16's parts of an operand, of which that factor is brought to 1, never keep half of
// its smallest.
constexpr double kLastOfHalf = 0x1p-24;
// Of an exponential, by the magnitudes that its exponent is summed from: several roundings of fp32 each.
constexpr double kSums = 0x1p-21;

// A weight of x as an operand: of fp16 the largest number at most, since infinity would make NaN of a zero in x.
double finite_operand(DType dtype, double v) {
  return rounded(dtype, dtype == DType::f16 ? std::clamp(v, -65504.0, 65504.0) : v);
}

}  // namespace

RingRequest ring_request(const Description& d, const RingArgs& args, std::int64_t request, const Reader& read) {
  RingRequest r;
  r.tokens = d.token_count;
  if (d.is_varlen) {
    const std::int64_t total = args.x.shape[at(args.x.rank - 3)];
    r.first_packed = std::clamp<std::int64_t>(stored_index(args.cu_seqlens, request, read), 0, total);
    const std::int64_t end = std::min(stored_index(args.cu_seqlens, request + 1, read), total);
    r.tokens = static_cast<int>(std::clamp<std::int64_t>(end - r.first_packed, 0, d.token_count));
  }
  r.slot = args.state_batch_indices.data != nullptr ? stored_index(args.state_batch_indices, request, read) : request;
  r.live = r.slot >= 0 && r.slot < args.state.shape[0] && r.slot != args.pad_slot_id;
  if (!r.live) return r;
  const auto cursor = [&](const Tensor& t, int limit) {
    return static_cast<int>(std::clamp<std::int64_t>(stored_index(t, r.slot, read), 0, limit));
  };
  r.start = cursor(args.ring_start, static_cast<int>(args.x_ring.shape[2]) - 1);
  r.count = cursor(args.ring_count, d.ring_window());
  r.flush = r.tokens > 0 && r.count + r.tokens > d.ring_window();
  return r;
}

std::int64_t token_offset(const Description& d, const Tensor& tensor, int inner, std::int64_t request,
                          const RingRequest& of, int t) {
  const std::int64_t token_stride = tensor.stride[at(tensor.rank - inner - 1)];
  if (d.is_varlen) return (of.first_packed + t) * token_stride;
  return request * tensor.stride[0] + t * token_stride;
}

std::int64_t ring_offset(const Tensor& ring, const RingRequest& of, std::int64_t head, int age) {
  const std::int64_t place = (of.start + age) % ring.shape[2];
  return of.slot * ring.stride[0] + head * ring.stride[1] + place * ring.stride[2];
}

RingOperands ring_operands(const Description& d) {
  const bool wide_state = d.state_dtype == DType::bf16 || d.state_dtype == DType::f32;
  return {.state = d.input_dtype == DType::f16 && wide_state ? DType::bf16 : d.input_dtype, .input = d.input_dtype};
}

RingHead ring_reference(const Description& d, const RingArgs& args, std::int64_t request, const RingRequest& of,
                        int head, const RingOperands& operands, const Reader& read) {
  const int P = d.head_dim, N = d.dstate, group = head / d.heads_per_group();
  LeafValues leaf{};
  const auto set = [&](Leaf l, double v) { leaf[static_cast<std::size_t>(l)] = v; };
  set(Leaf::A, stored_value(args.A, head, read));
  if (d.has_dt_bias()) set(Leaf::dt_bias, stored_value(args.dt_bias, head, read));
  if (d.has_D()) set(Leaf::D, stored_value(args.D, head, read));
  const double A = leaf[static_cast<std::size_t>(Leaf::A)];

  RingHead result;
  std::vector<Row> rows;
  for (int j = 0; j < of.count; ++j)
    rows.push_back({.x = stored_values(args.x_ring, ring_offset(args.x_ring, of, head, j), P, read),
                    .B = stored_values(args.B_ring, ring_offset(args.B_ring, of, group, j), N, read),
                    .delta = stored_value(args.dt_ring, ring_offset(args.dt_ring, of, head, j), read)});
  std::vector<std::vector<double>> C, z;
  for (int t = 0; t < of.tokens; ++t) {
    const auto of_token = [&](const Tensor& tensor, int part, int width) {
      return stored_values(tensor, token_offset(d, tensor, 2, request, of, t) + std::int64_t{part} * width, width,
                           read);
    };
    set(Leaf::dt, stored_value(args.dt, token_offset(d, args.dt, 1, request, of, t) + head, read));
    result.delta.push_back(d.delta_expr.evaluate(leaf));
    rows.push_back({.x = of_token(args.x, head, P), .B = of_token(args.B, group, N), .delta = result.delta.back()});
    C.push_back(of_token(args.C, group, N));
    if (d.has_z()) z.push_back(of_token(args.z, head, P));
  }

  // The state before the step: as stored, and the factor of each row of it.
  const std::int64_t state_at = of.slot * args.state.stride[0] + std::int64_t{head} * P * N;
  std::vector<double> units = stored_values(args.state, state_at, P * N, read), scale(at(P), 1.0);
  if (d.has_state_scale())
    scale = stored_values(args.state_scale, of.slot * args.state_scale.stride[0] + std::int64_t{head} * P, P, read);
  const auto decoded = [&] {
    std::vector<double> v = units;
    for (int i = 0; i < P * N; ++i) v[at(i)] *= scale[at(i / N)];
    return v;
  };
  const std::vector<double> h = decoded();
  // Decay and what a row adds, as the recurrence has it.
  const auto advance = [&](std::vector<double>& state, const Row& row) {
    set(Leaf::delta, row.delta);
    const double decay = d.decay_expr.evaluate(leaf);
    for (int p = 0; p < P; ++p)
      for (int n = 0; n < N; ++n)
        state[at(p * N + n)] = state[at(p * N + n)] * decay + row.delta * row.x[at(p)] * row.B[at(n)];
  };
  double exponents = 0;
  for (const Row& row : rows) exponents += std::abs(A * row.delta);
  const double sums = kSums * exponents;

  result.state = h;
  std::vector<double> now = h;
  // The gap between the two values that an element may be stored as, or then be an operand as.
  std::vector<double> flips(h.size(), 0.0);
  for (int j = 0; j < of.count; ++j) advance(now, rows[at(j)]);
  if (of.flush) {
    result.state = now;
    result.state_slack = h;
    for (double& v : result.state_slack) v = std::abs(v);
    for (int j = 0; j < of.count; ++j) {
      Row row = rows[at(j)];
      row.delta = std::abs(row.delta);
      for (double& v : row.x) v = std::abs(v);
      for (double& v : row.B) v = std::abs(v);
      advance(result.state_slack, row);
    }
    const double products = flush_error(d, of.count);
    for (double& v : result.state_slack) v = (products + sums) * v + kSmallest;
    if (operands.input == DType::f16) {
      double factor = 0x1p-24;  // the largest; none below it is brought to 1
      double newer = 0;         // sum of A * delta of newer rows
      for (int j = of.count - 1; j >= 0; --j) {
        factor = std::max(factor, std::abs(rows[at(j)].delta) * std::exp(newer));
        newer += A * rows[at(j)].delta;
      }
      for (int j = 0; j < of.count; ++j)
        for (int i = 0; i < P * N; ++i)
          result.state_slack[at(i)] += kLastOfHalf * factor * std::abs(rows[at(j)].B[at(i % N)]);
    }
    result.scale = row_scales(d, now, result.state_slack);
    scale.assign(at(P), 1.0);
    if (d.has_state_scale()) scale = result.scale;
    for (int p = 0; p < P; ++p)
      for (int n = 0; n < N; ++n) {
        const std::size_t i = at(p * N + n);
        const double exact = now[i] / scale[at(p)], slack = result.state_slack[i] / scale[at(p)];
        units[i] = rounded(d.state_dtype, exact);
        const double high = rounded(d.state_dtype, exact + slack), low = rounded(d.state_dtype, exact - slack);
        flips[i] = std::max(high - low, rounded(operands.state, high) - rounded(operands.state, low)) * scale[at(p)];
        if (!operands.stored_first)
          flips[i] = rounded(operands.state, now[i] + result.state_slack[i]) -
                     rounded(operands.state, now[i] - result.state_slack[i]);
      }
    if (operands.stored_first) now = decoded();
  }
  result.stored = decoded();

  // From here on in both forms. `first`: the oldest row that the stored state does not hold.
  const int first = of.flush ? of.count : 0, count = of.count + of.tokens;
  std::vector<double> operand_state = units;
  for (int i = 0; i < P * N; ++i)
    operand_state[at(i)] = operands.stored_first ? rounded(operands.state, units[at(i)]) * scale[at(i / N)]
                                                 : rounded(operands.state, now[at(i)]);
  std::vector<double> s(at(count), 0.0);
  double sum = 0;
  for (int j = first; j < count; ++j) s[at(j)] = sum += A * rows[at(j)].delta;
  for (int t = 0; t < of.tokens; ++t) {
    const int own = of.count + t;
    advance(now, rows[at(own)]);
    std::vector<double> operand_C = C[at(t)];
    for (double& v : operand_C) v = rounded(operands.state, v);
    std::vector<double> weight(at(count), 0.0);
    for (int j = first; j <= own; ++j)
      weight[at(j)] = finite_operand(
          operands.input, dot(C[at(t)], rows[at(j)].B) * std::exp(s[at(own)] - s[at(j)]) * rows[at(j)].delta);
    const double token_decay = std::exp(s[at(own)]);
    for (int p = 0; p < P; ++p) {
      double y = 0, products = 0, terms = 0, flipped = 0;
      for (int n = 0; n < N; ++n) {
        y += now[at(p * N + n)] * C[at(t)][at(n)];
        const double product = operand_state[at(p * N + n)] * operand_C[at(n)];
        products += product;
        terms += std::abs(product);
        flipped += std::abs(flips[at(p * N + n)] * operand_C[at(n)]);
      }
      products *= token_decay;
      terms *= token_decay;
      flipped *= token_decay;
      for (int j = first; j <= own; ++j) {
        const double product = weight[at(j)] * rows[at(j)].x[at(p)];
        products += product;
        terms += std::abs(product);
      }
      double factor = 1, skip = 0;
      set(Leaf::x, rows[at(own)].x[at(p)]);
      if (!d.skip_expr.empty()) skip = d.skip_expr.evaluate(leaf);
      if (d.has_z()) {
        set(Leaf::z, z[at(t)][at(p)]);
        factor = d.gate_expr.evaluate(leaf);
      }
      result.y.push_back((y + skip) * factor);
      result.y_operands.push_back((products + skip) * factor);
      result.y_slack.push_back((sums * terms + flipped) * std::abs(factor));
    }
  }
  return result;
}

}  // namespace ssmjit
