// Layers with a ring by hand, as check.cu: ring_slots.cuh's table of layers has the kernel's name.
#include "ring_layer.cuh"

// A layer with a ring: two blocks of one head each a norm group; and int8 states by chance, heads side by side, every
// row of the ring, windows of accepted tokens with channels last, the norm before the gate.
struct RingLayerOfHeads {
  using State = bf16;
  using Input = bf16;
  using Dt = float;
  using Weight = float;
  static constexpr int kHeadDim = 64;
  static constexpr int kDstate = 128;
  static constexpr int kHeadsPerGroup = 2;
  static constexpr int kTokens = 6;
  static constexpr int kWindow = 16;
  static constexpr int kRing = 22;
  static constexpr bool kReplay = false;
  static constexpr bool kPrecomputed = false;
  static constexpr bool kHasDtBias = true;
  static constexpr bool kHasD = true;
  static constexpr bool kHasSkip = true;
  static constexpr bool kHasGate = false;
  static constexpr bool kVarlen = false;
  static constexpr int kPhiloxRounds = 0;
  static constexpr PadOutput kPadOutput = PadOutput::zeros;
  static constexpr bool kStreaming = true;
  static constexpr bool kEarlyState = false;
  static constexpr RingRows kRingRows = RingRows::live;
  static constexpr int kBlockM = 64;
  static constexpr int kWarps = 8;
  static constexpr int kHeadsPerBlock = 1;
  static constexpr int kStages = 1;
  static constexpr StatePath kStatePath = StatePath::direct;
  static constexpr bool kHasConv = true;
  static constexpr int kConvWidth = 4;
  static constexpr int kConvState = 3;
  static constexpr bool kConvChannelsLast = false;
  static constexpr bool kConvBias = true;
  static constexpr bool kConvAccepted = false;
  static constexpr bool kConvCircular = false;
  static constexpr bool kConvSnapshots = false;
  static constexpr int kConvSnapshot = 3;
  static constexpr bool kHasNorm = true;
  static constexpr int kNormRows = 128;
  static constexpr bool kHasNormGate = true;
  static constexpr bool kNormBeforeGate = false;
  static constexpr bool kNormBias = false;
  static constexpr int kCluster = 2;
  static SSMJIT_DEVICE float delta(float dt, float dt_bias) { return fn_softplus(dt + dt_bias); }
  static SSMJIT_DEVICE float skip(float D, float x) { return D * x; }
  static SSMJIT_DEVICE float gate(float) { return 0.0f; }
  static SSMJIT_DEVICE float activation(float x) { return fn_silu(x); }
  static SSMJIT_DEVICE float norm_gate(float z) { return fn_silu(z); }
  static SSMJIT_DEVICE float norm_eps() { return 1e-5f; }
};
struct RingLayerOfBytes : RingLayerOfHeads {
  using State = i8;
  static constexpr int kPhiloxRounds = 10;
  static constexpr int kBlockM = 128;
  static constexpr RingRows kRingRows = RingRows::all;
  static constexpr int kConvState = 9;
  static constexpr bool kConvChannelsLast = true;
  static constexpr bool kConvAccepted = true;
  static constexpr bool kNormBeforeGate = true;
  static constexpr bool kNormBias = true;
  static constexpr int kCluster = 1;
};
extern "C" __global__ void __launch_bounds__(256, 1) check_ring_layer(const __grid_constant__ RingLayerArgs args) {
  ring_layer<RingLayerOfHeads>(args);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    check_ring_layer_of_bytes(const __grid_constant__ RingLayerArgs args) {
  ring_layer<RingLayerOfBytes>(args);
}
