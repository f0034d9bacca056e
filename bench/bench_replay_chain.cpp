// us a layer of a speculative step as TensorRT-LLM runs it: the convolution, and behind it the replay of what it wrote,
// by batch, without and with programmatic dependent launch. A JSON line each.
//   bench_replay_chain [BATCHES [SETTINGS [REPLAY_PLAN]]]     1,8,64,256 state=bf16 early_state=true
// Of nemotron3-super-tp8, 6 tokens. Layers have windows, states, buffers and inputs of their own, cold as `ssmjit
// bench` has them. In mode chain a stand-in writes the convolution's input in each layer and signals at its start; the
// time of the stand-ins' own chain is taken off. Plans: what the tables choose.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include <fmt/format.h>

#include <ssmjit/device.h>
#include <ssmjit/error.h>
#include <ssmjit/kernel.h>
#include <ssmjit/table.h>

#include "autotune/layers.h"
#include "autotune/timer.h"
#include "jit/gpu.h"

namespace ssmjit {
namespace {

constexpr int kTokens = 6, kReplays = 11;
constexpr std::uint64_t kSeed = 1;

// The median, a layer.
double us_of(const Stream& stream, const Layers& layers, int count, const std::function<void(int)>& step) {
  const Graph graph(stream, [&] {
    for (int layer = 0; layer < count; ++layer) step(layer);
  });
  const Stopwatch watch(2 * kReplays);
  graph.launch(stream);
  for (int i = 0; i < kReplays; ++i) {
    layers.displace_l2();
    watch.mark(2 * i, stream);
    graph.launch(stream);
    watch.mark(2 * i + 1, stream);
  }
  std::vector<double> samples;
  for (int i = 0; i < kReplays; ++i) samples.push_back(watch.lap_us(2 * i) / count);
  return median(samples);
}

void run(const std::string& batches, const std::string& settings, const std::string& plan_text) {
  const auto turn = measuring_turn();
  const DeviceFacts gpu = device(0);
  const Model model = load_model("nemotron3-super-tp8");
  Description replay = model.kernel("ring");
  replay.tokens(kTokens).state(DType::bf16).store(Replay{});
  replay.set(settings);
  Description conv = model.kernel("conv1d");
  conv.tokens(replay.token_count);
  conv.conv->has_accepted = true;
  conv.conv->state_len = conv.conv->width - 1 + conv.token_count - 1;
  conv.validate();
  replay.validate();
  const Table tables = load_tables();
  const Stream& stream = measuring_stream();
  const BenchKernels kernels(gpu.arch(), gpu.sms, {});
  std::istringstream list(batches);
  for (std::string text; std::getline(list, text, ',');) {
    const int batch = std::stoi(text);
    const Layers replays(replay, batch, gpu, kernels, stream, kSeed), convs(conv, batch, gpu, kernels, stream, kSeed);
    const int count = std::max(replays.count(), 16);
    for (const PdlMode mode : {PdlMode::off, PdlMode::chain}) {
      const bool chain = mode == PdlMode::chain;
      const Pdl pdl = chain ? Pdl::early_state : Pdl::off;
      const auto load = [&](const Description& d, const std::string& changes) {
        return Kernel::load(d, Plan::parse(changes, lookup(tables, d, gpu.key, gpu.arch(), batch, mode).plan));
      };
      const Kernel conv_kernel = load(conv, ""), replay_kernel = load(replay, plan_text);
      const auto produce = [&](int layer) {
        if (chain) convs.produce(layer % convs.count());
      };
      const auto convolve = [&](int layer) {
        launch_case(conv_kernel, convs.args(layer % convs.count(), pdl), stream);
      };
      const auto step = [&](int layer) {
        auto args = std::get<ReplayArgs>(replays.args(layer % replays.count(), pdl));
        const Tensor out = std::get<Conv1dArgs>(convs.args(0, pdl)).out;
        // x, B and C where the convolution leaves them, one behind the other.
        std::int64_t first = 0;
        for (Tensor* t : {&args.x, &args.B, &args.C}) {
          t->data = static_cast<const std::byte*>(out.data) + first * size_bytes(out.dtype);
          t->stride[0] = out.stride[0];
          t->stride[1] = out.stride[1];
          first += t->shape[2] * t->shape[3];
        }
        launch_case(replay_kernel, args, stream);
      };
      const double producers = chain ? us_of(stream, replays, count, produce) : 0;
      const auto measured = [&](const std::function<void(int)>& what) {
        return us_of(stream, replays, count,
                     [&](int layer) {
                       produce(layer);
                       what(layer);
                     }) -
               producers;
      };
      const double both = measured([&](int layer) {
        convolve(layer);
        step(layer);
      });
      fmt::print(
          "{{\"gpu\": \"{}\", \"batch\": {}, \"pdl\": \"{}\", \"us\": {:.3f}, \"conv1d_us\": {:.3f}, "
          "\"replay_us\": {:.3f}, \"layers\": {}, \"conv1d\": \"{}\", \"replay\": \"{}\", \"state\": \"{}\"}}\n",
          gpu.name, batch, name(mode), both, measured(convolve), measured(step), count, conv_kernel.plan().text(),
          replay_kernel.plan().text(), name(replay.state_dtype));
      std::fflush(stdout);
    }
  }
}

}  // namespace
}  // namespace ssmjit

int main(int argc, char** argv) {
  try {
    ssmjit::use_device(0);
    ssmjit::run(argc > 1 ? argv[1] : "1,8,64,256", argc > 2 ? argv[2] : "state=bf16", argc > 3 ? argv[3] : "");
  } catch (const ssmjit::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
