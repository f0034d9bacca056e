#include "autotune/spot_check.h"

#include <algorithm>
#include <limits>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include <fmt/format.h>

#include "autotune/conv1d_case.h"
#include "autotune/host_numbers.h"
#include "autotune/nearness.h"
#include "autotune/norm_case.h"
#include "autotune/reference/layer_reference.h"
#include "autotune/reference/norm_reference.h"
#include "autotune/reference/replay_reference.h"
#include "autotune/reference/ring_reference.h"
#include "autotune/reference/stored_state.h"
#include "autotune/reference/update_reference.h"
#include "autotune/replay_case.h"
#include "autotune/ring_case.h"
#include "autotune/tokens_case.h"
#include "codegen/rounded.h"
#include "codegen/update_form.h"
#include "jit/gpu.h"

namespace ssmjit {
namespace {

constexpr int kSamples = 64;

std::string wrong_delta(int request, int head, int t, double got, double want) {
  return fmt::format("dt_ring: request {}, head {}: the delta of token {} is {}; wants {}", request, head, t, got,
                     want);
}

// A request and a head of it, at random.
class Sampler {
 public:
  Sampler(std::uint64_t seed, int batch, int nheads) : v_(seed), batch_(batch), nheads_(nheads) {}
  std::pair<std::int64_t, int> next() {
    const std::uint64_t request = draw() % static_cast<std::uint64_t>(batch_);
    return {static_cast<std::int64_t>(request), static_cast<int>(draw() % static_cast<std::uint64_t>(nheads_))};
  }

 private:
  std::uint64_t draw() {
    v_ = v_ * 6364136223846793005ull + 1442695040888963407ull;
    return v_ >> 33;
  }
  std::uint64_t v_;
  int batch_, nheads_;
};

std::vector<double> values(const Tensor& t, std::int64_t offset, int count) {
  return stored_values(t, offset, count, read_device_memory);
}

class UpdateSpotCheck : public SpotCheck {
 public:
  UpdateSpotCheck(const Description& description, const Layers& layers, const Stream& stream, std::uint64_t seed)
      : SpotCheck(layers, stream, 2), description_(description), args_(std::get<UpdateArgs>(layers.args(0, Pdl::off))) {
    Sampler sampler(seed, layers.batch(), description.nheads);
    for (int i = 0; i < kSamples; ++i) {
      Pair pair;
      std::tie(pair.row, pair.head) = sampler.next();
      pair.slots = row_slots(description, args_, pair.row, read_device_memory);
      pair.want = update_reference(description, args_, pair.row, pair.head, pair.slots, read_device_memory);
      pairs_.push_back(std::move(pair));
    }
  }

 private:
  struct Pair {
    std::int64_t row = 0;
    int head = 0;
    RowSlots slots;
    HeadResult want;
  };

  std::string judge_layer() const override {
    const Description& d = description_;
    NearnessMeter y(d.input_dtype, d.dstate), state(d.state_dtype, d.dstate);
    StateMeter rounded(d);
    for (const Pair& pair : pairs_) {
      if (is_state_rounded(d))
        rounded.add_head({pair.want.state, pair.want.state_slack, pair.want.scale}, args_.state, args_.state_scale,
                         pair.slots.target, pair.head,
                         seed_of_slot(args_.rand_seed, pair.slots.target, read_device_memory), read_device_memory);
      y.add_row(pair.want.y.data(),
                values(args_.out, pair.row * args_.out.stride[0] + std::int64_t{pair.head} * d.head_dim, d.head_dim),
                pair.want.y_terms.data());
      if (is_state_rounded(d)) continue;
      const std::vector<double> s = values(
          args_.state, pair.slots.target * args_.state.stride[0] + std::int64_t{pair.head} * d.head_dim * d.dstate,
          d.head_dim * d.dstate);
      for (int p = 0; p < d.head_dim; ++p)
        state.add_row(pair.want.state.data() + std::int64_t{p} * d.dstate,
                      {s.begin() + std::int64_t{p} * d.dstate, s.begin() + std::int64_t{p + 1} * d.dstate});
    }
    const std::string wrong = judge(y.result(), d.input_dtype, d.dstate, "out");
    if (!wrong.empty()) return wrong;
    return is_state_rounded(d) ? rounded.failure() : judge(state.result(), d.state_dtype, d.dstate, "state");
  }

  Description description_;
  UpdateArgs args_;
  std::vector<Pair> pairs_;
};

class TokensSpotCheck : public SpotCheck {
 public:
  TokensSpotCheck(const Description& description, const Layers& layers, const Stream& stream, std::uint64_t seed)
      : SpotCheck(layers, stream, 2), description_(description), args_(std::get<UpdateArgs>(layers.args(0, Pdl::off))) {
    Sampler sampler(seed, layers.batch(), description.nheads);
    for (int i = 0; i < kSamples; ++i) {
      Pair pair;
      std::tie(pair.request, pair.head) = sampler.next();
      pair.of = tokens_request(description, args_, pair.request, read_device_memory);
      if (!description.has_tree) pair.want = reference(pair);
      pairs_.push_back(std::move(pair));
    }
  }

 private:
  struct Pair {
    std::int64_t request = 0;
    int head = 0;
    TokensRequest of;
    TokensHead want;  // of a tree none: it needs what was stored
  };

  TokensHead reference(const Pair& pair) const {
    return tokens_reference(description_, args_, pair.request, pair.of, pair.head, read_device_memory);
  }

  std::string judge_layer() const override {
    TokensMeter meter(description_);
    for (const Pair& pair : pairs_)
      meter.add_head(description_.has_tree ? reference(pair) : pair.want, pair.request, pair.of, pair.head, args_,
                     tokens_seed(args_, pair.of, read_device_memory), read_device_memory);
    const std::vector<std::string> wrong = meter.failures();
    return wrong.empty() ? std::string() : wrong.front();
  }

  Description description_;
  UpdateArgs args_;
  std::vector<Pair> pairs_;
};

// What a step's convolution writes of a request beside its output, on all channels.
class WindowCheck {
 public:
  WindowCheck(const Description& description, const LayerArgs& args, std::int64_t row)
      : conv_(layer_parts(description).front()), args_(layer_conv1d_args(description, args)), row_(row) {
    const ConvRequest request = conv_request(conv_, args_, row, read_device_memory);
    HeldMemory before(read_device_memory);
    const std::int64_t channels = conv_.conv_channels();
    for (int t = 0; t < conv_.token_count; ++t) before.hold(args_.x, conv_token_at(args_.x, row, t, 0), channels);
    if (request.live) hold_slot(before, args_.conv_state, request.slot);
    const Reader read = before.reader();
    for (int c = 0; c < channels; ++c)
      for (const ConvWrite& write : conv_writes(conv_, args_, c, request))
        writes_.emplace_back(write, write.from_token
                                        ? stored_value(args_.x, conv_token_at(args_.x, row, write.from, c), read)
                                        : stored_value(args_.conv_state,
                                                       conv_state_at(conv_, args_, request.slot, c, write.from), read));
    slot_ = request.slot;
    snapshot_ = request.snapshot;
  }

  std::string judge() const {
    if (writes_.empty()) return {};
    HeldMemory after(read_device_memory);
    hold_slot(after, args_.conv_state, slot_);
    if (snapshot_ >= 0) hold_slot(after, args_.intermediate_states, snapshot_);
    const Reader read = after.reader();
    for (const auto& [write, value] : writes_) {
      const double got = stored_value(write.snapshot ? args_.intermediate_states : args_.conv_state, write.at, read);
      if (got != value)
        return fmt::format("{}: row {}, element {}: got {}; wants a copy of {}",
                           write.snapshot ? "intermediate_states" : "conv_state", row_, write.at, got, value);
    }
    return {};
  }

 private:
  static void hold_slot(HeldMemory& memory, const Tensor& pool, std::int64_t slot) {
    memory.hold(pool, slot * pool.stride[0], pool.stride[0]);
  }

  Description conv_;
  Conv1dArgs args_;
  std::int64_t row_ = 0, slot_ = 0, snapshot_ = -1;
  std::vector<std::pair<ConvWrite, double>> writes_;  // and what each must hold
};

class LayerSpotCheck : public SpotCheck {
 public:
  LayerSpotCheck(const Description& description, const Layers& layers, const Stream& stream, std::uint64_t seed)
      : SpotCheck(layers, stream, 2),
        description_(description),
        args_(std::get<LayerArgs>(layers.args(0, Pdl::off))),
        heads_(layer_group_heads(description)) {
    Sampler sampler(seed, layers.batch(), description.nheads);
    for (int i = 0; i < std::max(1, kSamples / heads_); ++i) {
      Sample sample;
      std::tie(sample.row, sample.group) = sampler.next();
      sample.group /= heads_;
      sample.slots = row_slots(args_, sample.row, read_device_memory);
      sample.want = layer_reference(description, args_, sample.row, sample.group, sample.slots, read_device_memory);
      if (description.conv) windows_.emplace_back(description, args_, sample.row);
      samples_.push_back(std::move(sample));
    }
  }

 private:
  struct Sample {
    std::int64_t row = 0;
    int group = 0;
    RowSlots slots;
    LayerGroup want;
  };

  std::string judge_layer() const override {
    const Description& d = description_;
    const std::int64_t P = d.head_dim, N = d.dstate;
    NearnessMeter y(d.input_dtype, d.dstate), state(d.state_dtype, d.dstate);
    for (const Sample& sample : samples_) {
      for (int i = 0; i < heads_; ++i) {
        const std::int64_t head = std::int64_t{sample.group} * heads_ + i;
        for (int t = 0; t < d.token_count; ++t) {
          const std::int64_t first = (std::int64_t{t} * heads_ + i) * P;
          y.add_row(sample.want.out.data() + first,
                    values(args_.out, layer_token_at(d, args_.out, sample.row, t) + head * P, d.head_dim),
                    sample.want.terms.data() + first);
        }
        const std::vector<double>& want = sample.want.heads[static_cast<std::size_t>(i)].state;
        const std::vector<double>& slack = sample.want.heads[static_cast<std::size_t>(i)].state_slack;
        const std::vector<double> got =
            values(args_.state, sample.slots.target * args_.state.stride[0] + head * P * N, static_cast<int>(P * N));
        for (std::int64_t p = 0; p < P; ++p)
          if (!sample.want.unsure[static_cast<std::size_t>(i * P + p)])
            state.add_row(want.data() + p * N, {got.begin() + p * N, got.begin() + (p + 1) * N}, nullptr,
                          slack.data() + p * N);
      }
    }
    for (const WindowCheck& windows : windows_)
      if (std::string wrong = windows.judge(); !wrong.empty()) return wrong;
    const std::string wrong = judge(y.result(), d.input_dtype, d.dstate, "out");
    return wrong.empty() ? judge(state.result(), d.state_dtype, d.dstate, "state") : wrong;
  }

  Description description_;
  LayerArgs args_;
  int heads_;
  std::vector<Sample> samples_;
  std::vector<WindowCheck> windows_;
};

class RingLayerSpotCheck : public SpotCheck {
 public:
  RingLayerSpotCheck(const Description& description, const Layers& layers, const Stream& stream, std::uint64_t seed)
      : SpotCheck(layers, stream, 5),
        description_(description),
        args_(std::get<LayerArgs>(layers.args(0, Pdl::off))),
        ring_(layer_ring_args(description, args_)),
        heads_(layer_group_heads(description)) {
    if (args_.rand_seed.data != nullptr)
      rounding_seed_ = static_cast<std::uint64_t>(stored_index(args_.rand_seed, 0, read_device_memory));
    Sampler sampler(seed, layers.batch(), description.nheads);
    for (int i = 0; i < std::max(1, kSamples / heads_); ++i) {
      Sample sample;
      std::tie(sample.request, sample.group) = sampler.next();
      sample.group /= heads_;
      sample.of = ring_request(description, ring_, sample.request, read_device_memory);
      sample.want =
          ring_layer_reference(description, args_, sample.request, sample.group, sample.of, read_device_memory);
      if (!sample.of.flush) sample.state = state_of(sample);
      if (description.conv) windows_.emplace_back(description, args_, sample.request);
      samples_.push_back(std::move(sample));
    }
  }

 private:
  struct Sample {
    std::int64_t request = 0;
    int group = 0;
    RingRequest of;
    RingLayerGroup want;
    std::vector<double> state;  // without flush: what must stay
  };

  std::vector<double> state_of(const Sample& sample) const {
    const int size = heads_ * description_.head_dim * description_.dstate;
    return values(args_.state, sample.of.slot * args_.state.stride[0] + std::int64_t{sample.group} * size, size);
  }

  // Rows of x, B and deltas of token `t` that the rings hold; empty, or what is wrong with them.
  std::string judge_rings(const Sample& sample, int t) const {
    const Description& d = description_;
    const int age = sample.of.count + t;
    const auto differs = [&](const Tensor& ring, std::int64_t head, const LayerChannels& want, std::int64_t at,
                             int width) {
      const std::vector<double> got = values(ring, ring_offset(ring, sample.of, head, age), width);
      for (int i = 0; i < width; ++i) {
        const auto j = static_cast<std::size_t>(at + i);
        if (!want.unsure[j] && got[static_cast<std::size_t>(i)] != want.value[j]) return true;
      }
      return false;
    };
    for (int i = 0; i < heads_; ++i) {
      const int head = sample.group * heads_ + i;
      if (differs(args_.x_ring, head, sample.want.x, std::int64_t{t * heads_ + i} * d.head_dim, d.head_dim))
        return fmt::format("x_ring: request {}, head {}: token {} is not what was convolved", sample.request, head, t);
      const double want = sample.want.heads[static_cast<std::size_t>(i)].delta[static_cast<std::size_t>(t)];
      const double got =
          stored_value(args_.dt_ring, ring_offset(args_.dt_ring, sample.of, head, age), read_device_memory);
      if (!judge_delta(delta_error(got, want)).empty()) return wrong_delta(sample.request, head, t, got, want);
    }
    const int first = sample.group * heads_ / d.heads_per_group();
    const int groups = static_cast<int>(sample.want.B.value.size()) / d.token_count / d.dstate;
    for (int g = 0; g < groups; ++g)
      if (differs(args_.B_ring, first + g, sample.want.B, std::int64_t{t * groups + g} * d.dstate, d.dstate))
        return fmt::format("B_ring: request {}, group {}: token {} is not what was convolved", sample.request,
                           first + g, t);
    return {};
  }

  std::string judge_layer() const override {
    const Description& d = description_;
    const int P = d.head_dim, row = heads_ * P;
    NearnessMeter recurrence(d.input_dtype, d.dstate), operands(d.input_dtype, d.dstate);
    FlushMeter flushed(d, rounding_seed_);
    for (const Sample& sample : samples_) {
      std::vector<bool> unsure(static_cast<std::size_t>(row), false);  // from the first token on whose x is
      for (int t = 0; t < d.token_count; ++t) {
        const std::vector<double> of_token =
            values(args_.out, layer_token_at(d, args_.out, sample.request, t) + std::int64_t{sample.group} * row, row);
        const std::ptrdiff_t first = std::ptrdiff_t{t} * row;
        std::vector<double> slack(sample.want.out_slack.begin() + first, sample.want.out_slack.begin() + first + row);
        for (std::size_t i = 0; i < unsure.size(); ++i) {
          unsure[i] = unsure[i] || sample.want.x.unsure[static_cast<std::size_t>(first) + i];
          if (unsure[i]) slack[i] = std::numeric_limits<double>::infinity();
        }
        for (int i = 0; i < heads_; ++i) {
          const std::vector<double> y(of_token.begin() + i * P, of_token.begin() + (i + 1) * P);
          recurrence.add_row(sample.want.out.data() + first + i * P, y);
          operands.add_row(sample.want.out_operands.data() + first + i * P, y, nullptr, slack.data() + i * P);
        }
        if (std::string wrong = judge_rings(sample, t); !wrong.empty()) return wrong;
      }
      for (int i = 0; sample.of.flush && i < heads_; ++i)
        flushed.add_head(sample.want.heads[static_cast<std::size_t>(i)], sample.of, sample.group * heads_ + i, ring_,
                         read_device_memory);
      if (!sample.of.flush && state_of(sample) != sample.state)
        return fmt::format("state: request {}, group {}: changed without a flush", sample.request, sample.group);
    }
    for (const WindowCheck& windows : windows_)
      if (std::string wrong = windows.judge(); !wrong.empty()) return wrong;
    Nearness y = operands.result();
    y.frobenius = recurrence.result().frobenius;
    const std::string wrong = judge(y, d.input_dtype, d.dstate, "out");
    return wrong.empty() ? flushed.failure() : wrong;
  }

  Description description_;
  LayerArgs args_;
  RingArgs ring_;
  int heads_;
  std::uint64_t rounding_seed_ = 0;
  std::vector<Sample> samples_;
  std::vector<WindowCheck> windows_;
};

class RingSpotCheck : public SpotCheck {
 public:
  RingSpotCheck(const Description& description, const Layers& layers, const Stream& stream, std::uint64_t seed)
      : SpotCheck(layers, stream, 5), description_(description), args_(std::get<RingArgs>(layers.args(0, Pdl::off))) {
    if (args_.rand_seed.data != nullptr)
      rounding_seed_ = static_cast<std::uint64_t>(stored_index(args_.rand_seed, 0, read_device_memory));
    Sampler sampler(seed, layers.batch(), description.nheads);
    for (int i = 0; i < kSamples; ++i) {
      Pair pair;
      std::tie(pair.request, pair.head) = sampler.next();
      pair.of = ring_request(description, args_, pair.request, read_device_memory);
      pair.want = ring_reference(description, args_, pair.request, pair.of, pair.head, ring_operands(description),
                                 read_device_memory);
      if (!pair.of.flush) pair.state = state_of(pair);
      pairs_.push_back(std::move(pair));
    }
  }

 private:
  struct Pair {
    std::int64_t request = 0;
    int head = 0;
    RingRequest of;
    RingHead want;
    std::vector<double> state;  // without flush: what must stay
  };

  std::vector<double> state_of(const Pair& pair) const {
    const int size = description_.head_dim * description_.dstate;
    return values(args_.state, pair.of.slot * args_.state.stride[0] + std::int64_t{pair.head} * size, size);
  }

  std::string judge_layer() const override {
    const Description& d = description_;
    NearnessMeter recurrence(d.input_dtype, d.dstate), operands(d.input_dtype, d.dstate);
    FlushMeter flushed(d, rounding_seed_);
    for (const Pair& pair : pairs_) {
      for (int t = 0; t < pair.of.tokens; ++t) {
        const auto row_of = [&](const Tensor& tensor) {
          return values(tensor,
                        token_offset(d, tensor, 2, pair.request, pair.of, t) + std::int64_t{pair.head} * d.head_dim,
                        d.head_dim);
        };
        const std::ptrdiff_t first = std::ptrdiff_t{t} * d.head_dim;
        const std::vector<double> y = row_of(args_.out);
        recurrence.add_row(pair.want.y.data() + first, y);
        operands.add_row(pair.want.y_operands.data() + first, y, nullptr, pair.want.y_slack.data() + first);

        const int age = pair.of.count + t;
        if (values(args_.x_ring, ring_offset(args_.x_ring, pair.of, pair.head, age), d.head_dim) != row_of(args_.x))
          return fmt::format("x_ring: request {}, head {}: token {} is not what was added", pair.request, pair.head, t);
        const int group = pair.head / d.heads_per_group();
        const std::int64_t B_at =
            token_offset(d, args_.B, 2, pair.request, pair.of, t) + std::int64_t{group} * d.dstate;
        if (values(args_.B_ring, ring_offset(args_.B_ring, pair.of, group, age), d.dstate) !=
            values(args_.B, B_at, d.dstate))
          return fmt::format("B_ring: request {}, group {}: token {} is not what was added", pair.request, group, t);
        const double want = pair.want.delta[static_cast<std::size_t>(t)];
        const double got =
            stored_value(args_.dt_ring, ring_offset(args_.dt_ring, pair.of, pair.head, age), read_device_memory);
        if (!judge_delta(delta_error(got, want)).empty()) return wrong_delta(pair.request, pair.head, t, got, want);
      }
      if (pair.of.flush)
        flushed.add_head(pair.want, pair.of, pair.head, args_, read_device_memory);
      else if (state_of(pair) != pair.state)
        return fmt::format("state: request {}, head {}: changed without a flush", pair.request, pair.head);
    }
    Nearness y = operands.result();
    y.frobenius = recurrence.result().frobenius;
    const std::string wrong = judge(y, d.input_dtype, d.dstate, "out");
    return wrong.empty() ? flushed.failure() : wrong;
  }

  Description description_;
  RingArgs args_;
  std::uint64_t rounding_seed_ = 0;
  std::vector<Pair> pairs_;
};

class ReplaySpotCheck : public SpotCheck {
 public:
  ReplaySpotCheck(const Description& description, const Layers& layers, const Stream& stream, std::uint64_t seed)
      : SpotCheck(layers, stream, 5), description_(description), args_(std::get<ReplayArgs>(layers.args(0, Pdl::off))) {
    if (args_.rand_seed.data != nullptr)
      rounding_seed_ = static_cast<std::uint64_t>(stored_index(args_.rand_seed, 0, read_device_memory));
    Sampler sampler(seed, layers.batch(), description.nheads);
    for (int i = 0; i < kSamples; ++i) {
      Pair pair;
      std::tie(pair.request, pair.head) = sampler.next();
      pair.of = replay_request(description, args_, pair.request, read_device_memory);
      pair.want = replay_reference(description, args_, pair.request, pair.of, pair.head, read_device_memory);
      pairs_.push_back(std::move(pair));
    }
  }

 private:
  struct Pair {
    std::int64_t request = 0;
    int head = 0;
    ReplayRequest of;
    RingHead want;
  };

  // What the step keeps of token `t`; empty, or what is wrong with it. `sum`: of A * delta before it; then with it.
  std::string judge_kept(const Pair& pair, int t, double& sum) const {
    const Description& d = description_;
    const int P = d.head_dim, N = d.dstate, other = 1 - pair.of.buffer, group = pair.head / d.heads_per_group();
    const std::int64_t slot = pair.of.rows.slot;
    const auto of_token = [&](const Tensor& tensor, int part, int width) {
      return values(tensor, token_offset(d, tensor, 2, pair.request, pair.of.rows, t) + std::int64_t{part} * width,
                    width);
    };
    if (values(args_.old_x, old_x_at(args_, slot, t, pair.head), P) != of_token(args_.x, pair.head, P))
      return fmt::format("old_x: request {}, head {}: token {} is not what was given", pair.request, pair.head, t);
    if (values(args_.old_B, old_B_at(args_, slot, other, t, group), N) != of_token(args_.B, group, N))
      return fmt::format("old_B: request {}, group {}: token {} is not what was given", pair.request, group, t);
    const double delta = pair.want.delta[static_cast<std::size_t>(t)];
    sum += stored_value(args_.A, pair.head, read_device_memory) * delta;
    const auto kept = [&](const Tensor& tensor) {
      return stored_value(tensor, old_sum_at(tensor, slot, other, pair.head, t), read_device_memory);
    };
    const std::string wrong = judge_delta(delta_error(kept(args_.old_dt), delta), "old_dt");
    return wrong.empty() ? judge_sum(delta_error(kept(args_.old_cumAdt), sum)) : wrong;
  }

  std::string judge_layer() const override {
    const Description& d = description_;
    NearnessMeter recurrence(d.input_dtype, d.dstate), operands(d.input_dtype, d.dstate);
    FlushMeter states(d, rounding_seed_);
    for (const Pair& pair : pairs_) {
      double sum = 0;
      for (int t = 0; t < d.token_count; ++t) {
        const std::ptrdiff_t first = std::ptrdiff_t{t} * d.head_dim;
        const std::vector<double> y =
            values(args_.out,
                   token_offset(d, args_.out, 2, pair.request, pair.of.rows, t) + std::int64_t{pair.head} * d.head_dim,
                   d.head_dim);
        recurrence.add_row(pair.want.y.data() + first, y);
        operands.add_row(pair.want.y_operands.data() + first, y, nullptr, pair.want.y_slack.data() + first);
        if (std::string wrong = judge_kept(pair, t, sum); !wrong.empty()) return wrong;
      }
      states.add_head(pair.want, pair.of.rows, pair.head, replay_as_ring(args_, pair.of), read_device_memory);
    }
    Nearness y = operands.result();
    y.frobenius = recurrence.result().frobenius;
    const std::string wrong = judge(y, d.input_dtype, d.dstate, "out");
    return wrong.empty() ? states.failure() : wrong;
  }

  Description description_;
  ReplayArgs args_;
  std::uint64_t rounding_seed_ = 0;
  std::vector<Pair> pairs_;
};

class Conv1dSpotCheck : public SpotCheck {
 public:
  Conv1dSpotCheck(const Description& description, const Layers& layers, const Stream& stream, std::uint64_t seed)
      : SpotCheck(layers, stream, 2), description_(description), args_(std::get<Conv1dArgs>(layers.args(0, Pdl::off))) {
    Sampler sampler(seed, layers.batch(), description.conv_channels());
    for (int i = 0; i < kSamples; ++i) {
      Pair pair;
      std::tie(pair.row, pair.channel) = sampler.next();
      const ConvRequest request = conv_request(description, args_, pair.row, read_device_memory);
      pair.want = conv1d_reference(description, args_, pair.row, pair.channel, request, read_device_memory);
      for (const ConvWrite& write : conv_writes(description, args_, pair.channel, request)) {
        const std::int64_t from = write.from_token
                                      ? conv_token_at(args_.x, pair.row, write.from, pair.channel)
                                      : conv_state_at(description, args_, request.slot, pair.channel, write.from);
        const double value = stored_value(write.from_token ? args_.x : args_.conv_state, from, read_device_memory);
        pair.writes.emplace_back(write, rounded(description.state_dtype, value));
      }
      pairs_.push_back(std::move(pair));
    }
  }

 private:
  struct Pair {
    std::int64_t row = 0;
    int channel = 0;
    ConvChannel want;
    std::vector<std::pair<ConvWrite, double>> writes;  // and what each must hold
  };

  std::string judge_layer() const override {
    const Description& d = description_;
    NearnessMeter y(d.input_dtype, kConvTerms);
    for (const Pair& pair : pairs_) {
      std::vector<double> got;
      for (int t = 0; t < d.token_count; ++t)
        got.push_back(stored_value(args_.out, conv_token_at(args_.out, pair.row, t, pair.channel), read_device_memory));
      y.add_row(pair.want.y.data(), got, pair.want.y_terms.data());
      for (const auto& [write, value] : pair.writes) {
        const Tensor& tensor = write.snapshot ? args_.intermediate_states : args_.conv_state;
        if (stored_value(tensor, write.at, read_device_memory) != value)
          return fmt::format("{}: row {}, channel {}: element {} is no copy of what it should be",
                             write.snapshot ? "intermediate_states" : "conv_state", pair.row, pair.channel, write.at);
      }
    }
    return judge(y.result(), d.input_dtype, kConvTerms, "out");
  }

  Description description_;
  Conv1dArgs args_;
  std::vector<Pair> pairs_;
};

class NormSpotCheck : public SpotCheck {
 public:
  NormSpotCheck(const Description& description, const Layers& layers, const Stream& stream, std::uint64_t seed)
      : SpotCheck(layers, stream, 2), description_(description), args_(std::get<NormArgs>(layers.args(0, Pdl::off))) {
    const int groups = description.norm_channels() / description.norm_group_size();
    Sampler sampler(seed, layers.batch() * description.token_count, groups);
    for (int i = 0; i < kSamples; ++i) {
      Group at;
      std::int64_t row = 0;
      std::tie(row, at.group) = sampler.next();
      at.request = row / description.token_count;
      at.token = static_cast<int>(row % description.token_count);
      at.want = norm_reference(description, args_, at.request, at.token, at.group, read_device_memory);
      groups_.push_back(std::move(at));
    }
  }

 private:
  struct Group {
    std::int64_t request = 0;
    int token = 0, group = 0;
    std::vector<double> want;
  };

  std::string judge_layer() const override {
    const Description& d = description_;
    NearnessMeter y(d.input_dtype, 1);
    for (const Group& at : groups_)
      y.add_row(at.want.data(),
                values(args_.out, norm_offset(d, args_.out, at.request, at.token, at.group), d.norm_group_size()));
    return judge_norm(y.result(), d.input_dtype);
  }

  Description description_;
  NormArgs args_;
  std::vector<Group> groups_;
};

}  // namespace

std::unique_ptr<SpotCheck> SpotCheck::make(const Description& description, const Layers& layers, const Stream& stream,
                                           std::uint64_t seed) {
  layers.refill(0);
  stream.synchronize();
  if (description.op() == Op::layer && description.ring_window() != 0)
    return std::make_unique<RingLayerSpotCheck>(description, layers, stream, seed);
  if (description.op() == Op::layer) return std::make_unique<LayerSpotCheck>(description, layers, stream, seed);
  if (description.op() == Op::ring) return std::make_unique<RingSpotCheck>(description, layers, stream, seed);
  if (description.op() == Op::replay) return std::make_unique<ReplaySpotCheck>(description, layers, stream, seed);
  if (description.op() == Op::conv1d) return std::make_unique<Conv1dSpotCheck>(description, layers, stream, seed);
  if (description.op() == Op::norm) return std::make_unique<NormSpotCheck>(description, layers, stream, seed);
  if (has_token_kernel(description)) return std::make_unique<TokensSpotCheck>(description, layers, stream, seed);
  return std::make_unique<UpdateSpotCheck>(description, layers, stream, seed);
}

std::string SpotCheck::run(const Kernel& kernel, Outcome& outcome) {
  std::uint64_t first = 0;
  for (int launch = 0; launch < launches_; ++launch) {
    layers_.refill(0);
    launch_case(kernel, layers_.args(0, Pdl::off), stream_);
    const std::uint64_t h = layers_.hash(0);
    if (launch > 0 && h != first) {
      outcome = Outcome::nondeterministic;
      return fmt::format("batch {}: launch {} gave other bits than the first", layers_.batch(), launch + 1);
    }
    first = h;
  }
  outcome = Outcome::ok;
  if (right_.contains(first)) return {};
  const std::string wrong = judge_layer();
  if (wrong.empty()) {
    right_.insert(first);
    return {};
  }
  outcome = Outcome::wrong;
  return fmt::format("batch {}: {}", layers_.batch(), wrong);
}

}  // namespace ssmjit
