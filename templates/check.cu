// The templates by hand, for nvcc alone: nvcc -std=c++17 -arch=sm_90a -c templates/check.cu
// A Config here is what codegen/source.cpp writes from a description and a plan.
#include "bench.cuh"
#include "conv1d.cuh"
#include "device/async_copy.cuh"
#include "device/barrier.cuh"
#include "device/cluster.cuh"
#include "device/mma.cuh"
#include "device/shuffle.cuh"
#include "layer.cuh"
#include "layer_tokens.cuh"
#include "materialise.cuh"
#include "norm.cuh"
#include "prepare_A.cuh"
#include "replay.cuh"
#include "ring.cuh"
#include "rounding.cuh"
#include "slot_copies.cuh"
#include "update.cuh"
#include "update_rounded.cuh"
#include "update_tokens.cuh"

// Mamba-2's usual maths, without a gate.
struct Maths {
  using Dt = float;
  using Weight = float;
  static constexpr bool kHasDtBias = true;
  static constexpr bool kHasD = true;
  static constexpr bool kHasSkip = true;
  static constexpr bool kHasGate = false;
  static constexpr bool kDestination = false;
  static constexpr bool kAlignedRows = true;
  static constexpr bool kStreaming = true;
  static constexpr bool kEarlyState = false;
  static constexpr bool kReplay = false;
  static constexpr bool kPrecomputed = false;
  static constexpr PadOutput kPadOutput = PadOutput::zeros;
  static SSMJIT_DEVICE float delta(float dt, float dt_bias) { return fn_softplus(dt + dt_bias); }
  static SSMJIT_DEVICE float decay(float A, float, float delta) { return fn_exp(A * delta); }
  static SSMJIT_DEVICE float skip(float D, float x) { return D * x; }
  static SSMJIT_DEVICE float gate(float) { return 1.0f; }
};

// fp32 state, one head a block, straight into registers.
struct Direct : Maths {
  using State = float;
  using Input = bf16;
  static constexpr int kHeadDim = 64;
  static constexpr int kDstate = 128;
  static constexpr int kHeadsPerGroup = 16;
  static constexpr int kBlockM = 8;
  static constexpr int kWarps = 2;
  static constexpr int kLanesPerRow = 16;
  static constexpr int kHeadsPerBlock = 1;
  static constexpr int kStages = 1;
  static constexpr StatePath kStatePath = StatePath::direct;
};

// bf16 state, four heads a block through cp.async, gated, rows at any address, to destination slots.
struct CpAsync : Maths {
  using State = bf16;
  using Input = bf16;
  static constexpr bool kHasGate = true;
  static constexpr bool kDestination = true;
  static constexpr bool kAlignedRows = false;
  static constexpr PadOutput kPadOutput = PadOutput::untouched;
  static constexpr int kHeadDim = 64;
  static constexpr int kDstate = 128;
  static constexpr int kHeadsPerGroup = 4;
  static constexpr int kBlockM = 32;
  static constexpr int kWarps = 4;
  static constexpr int kLanesPerRow = 16;
  static constexpr int kHeadsPerBlock = 4;
  static constexpr int kStages = 4;
  static constexpr bool kEarlyState = true;
  static constexpr StatePath kStatePath = StatePath::cp_async;
  static SSMJIT_DEVICE float gate(float z) { return fn_silu(z); }
};

// fp16 state and inputs, two heads a block by bulk copies, rows of 12 vectors over 4 lanes (dstate 96).
struct Bulk : Maths {
  using State = f16;
  using Input = f16;
  static constexpr PadOutput kPadOutput = PadOutput::as_if_zero_state;
  static constexpr int kHeadDim = 80;
  static constexpr int kDstate = 96;
  static constexpr int kHeadsPerGroup = 14;
  static constexpr int kBlockM = 16;
  static constexpr int kWarps = 2;
  static constexpr int kLanesPerRow = 4;
  static constexpr int kHeadsPerBlock = 2;
  static constexpr int kStages = 2;
  static constexpr StatePath kStatePath = StatePath::bulk;
};

// The direct path with a head ahead, bf16 weights and dt, neither skip nor bias, cached loads.
struct HeadAhead : Maths {
  using State = bf16;
  using Input = float;
  using Dt = bf16;
  using Weight = bf16;
  static constexpr bool kHasDtBias = false;
  static constexpr bool kHasD = false;
  static constexpr bool kHasSkip = false;
  static constexpr bool kStreaming = false;
  static constexpr int kHeadDim = 64;
  static constexpr int kDstate = 64;
  static constexpr int kHeadsPerGroup = 8;
  static constexpr int kBlockM = 16;
  static constexpr int kWarps = 1;
  static constexpr int kLanesPerRow = 8;
  static constexpr int kHeadsPerBlock = 2;
  static constexpr int kStages = 2;
  static constexpr StatePath kStatePath = StatePath::direct;
  static SSMJIT_DEVICE float delta(float dt, float) { return fn_clamp(fn_relu(dt), 0.001f, 0.1f); }
  static SSMJIT_DEVICE float skip(float, float) { return 0.0f; }
};

#define SSMJIT_CHECK(Config)                                        \
  extern "C" __global__ void __launch_bounds__(32 * Config::kWarps) \
      check_##Config(const __grid_constant__ UpdateArgs args) {     \
    update<Config>(args);                                           \
  }
SSMJIT_CHECK(Direct)
SSMJIT_CHECK(CpAsync)
SSMJIT_CHECK(Bulk)
SSMJIT_CHECK(HeadAhead)

// Stored by chance, the bits drawn ahead; and in units of a factor a row, drawn where they are used.
struct ByChance : Direct {
  using State = bf16;
  static constexpr int kBlockM = 16;
  static constexpr int kWarps = 1;
  static constexpr int kStages = 2;
  static constexpr int kPhiloxRounds = 10;
};
struct Bytes : Bulk {
  using State = e4m3;
  static constexpr int kPhiloxRounds = 7;
  static constexpr int kHeadsPerBlock = 1;
  static constexpr int kStages = 1;
  static constexpr StatePath kStatePath = StatePath::direct;
};
struct Shorts : HeadAhead {
  using State = i16;
  static constexpr int kPhiloxRounds = 0;
  static constexpr int kHeadsPerBlock = 1;
  static constexpr int kStages = 1;
};
#define SSMJIT_CHECK_ROUNDED(Config)                                   \
  extern "C" __global__ void __launch_bounds__(32 * Config::kWarps)    \
      check_##Config(const __grid_constant__ UpdateRoundedArgs args) { \
    update_rounded<Config>(args);                                      \
  }
SSMJIT_CHECK_ROUNDED(ByChance)
SSMJIT_CHECK_ROUNDED(Bytes)
SSMJIT_CHECK_ROUNDED(Shorts)

// Six tokens with snapshots; a packed request's 20 to slots of bytes, by chance, after accepted ones; and a tree.
struct TokensToSnapshots : Direct {
  using State = bf16;
  static constexpr int kTokens = 6;
  static constexpr StateStore kStore = StateStore::snapshots;
  static constexpr bool kAccepted = false;
  static constexpr bool kTree = false;
  static constexpr bool kVarlen = false;
  static constexpr int kPhiloxRounds = 0;
  static constexpr int kBlockM = 32;
  static constexpr int kStages = 2;
};
struct TokensToSlots : TokensToSnapshots {
  using State = i8;
  static constexpr int kTokens = 20;
  static constexpr StateStore kStore = StateStore::slots;
  static constexpr bool kHasGate = true;
  static constexpr bool kAccepted = true;
  static constexpr bool kVarlen = true;
  static constexpr bool kAlignedRows = false;
  static constexpr int kPhiloxRounds = 10;
  static constexpr int kLanesPerRow = 8;
  static SSMJIT_DEVICE float gate(float z) { return fn_silu(z); }
};
struct TokensOfATree : TokensToSnapshots {
  using State = float;
  static constexpr bool kTree = true;
  static constexpr bool kEarlyState = true;
  static constexpr int kStages = 16;
};
#define SSMJIT_CHECK_TOKENS(Config)                                   \
  extern "C" __global__ void __launch_bounds__(32 * Config::kWarps)   \
      check_##Config(const __grid_constant__ UpdateTokensArgs args) { \
    update_tokens<Config>(args);                                      \
  }
SSMJIT_CHECK_TOKENS(TokensToSnapshots)
SSMJIT_CHECK_TOKENS(TokensToSlots)
SSMJIT_CHECK_TOKENS(TokensOfATree)

// A ring of 22 rows, 6 tokens a step, two heads a block.
struct RingOfTwoHeads : Maths {
  using State = bf16;
  using Input = bf16;
  static constexpr int kHeadDim = 64;
  static constexpr int kDstate = 128;
  static constexpr int kHeadsPerGroup = 16;
  static constexpr int kTokens = 6;
  static constexpr int kWindow = 16;
  static constexpr int kRing = 22;
  static constexpr bool kVarlen = false;
  static constexpr int kPhiloxRounds = 0;
  static constexpr int kBlockM = 64;
  static constexpr int kWarps = 4;
  static constexpr int kHeadsPerBlock = 2;
  static constexpr int kStages = 2;
  static constexpr StatePath kStatePath = StatePath::bulk;
  static constexpr RingRows kRingRows = RingRows::live;
};
// int8 state with its scales, rounded by chance, every row of the ring.
struct RingOfBytes : RingOfTwoHeads {
  using State = i8;
  static constexpr int kPhiloxRounds = 10;
  static constexpr int kBlockM = 16;
  static constexpr int kWarps = 1;
  static constexpr int kHeadsPerBlock = 1;
  static constexpr int kStages = 1;
  static constexpr StatePath kStatePath = StatePath::direct;
  static constexpr RingRows kRingRows = RingRows::all;
};
// 12 tokens of packed requests, gated, fp32 state and fp16 inputs, asked for before the wait.
struct RingOf12Tokens : RingOfTwoHeads {
  using State = float;
  using Input = f16;
  static constexpr bool kHasGate = true;
  static constexpr bool kVarlen = true;
  static constexpr bool kEarlyState = true;
  static constexpr int kTokens = 12;
  static constexpr int kRing = 28;
  static constexpr int kHeadsPerBlock = 1;
  static constexpr int kBlockM = 16;
  static constexpr int kWarps = 2;
  static constexpr int kStages = 1;
  static constexpr StatePath kStatePath = StatePath::direct;
  static SSMJIT_DEVICE float gate(float z) { return fn_silu(z); }
};
// Two steps back, 6 tokens, two heads a block; and fp16 states of 12 tokens rounded by chance, both buffers at once.
struct ReplayOfTwoHeads : RingOfTwoHeads {
  static constexpr bool kReplay = true;
  static constexpr int kWindow = 6;
  static constexpr int kRing = 6;
};
struct ReplayOf12Tokens : RingOf12Tokens {
  using State = f16;
  using Input = bf16;
  static constexpr bool kReplay = true;
  static constexpr bool kVarlen = false;
  static constexpr int kPhiloxRounds = 10;
  static constexpr int kWindow = 12;
  static constexpr int kRing = 12;
  static constexpr RingRows kRingRows = RingRows::all;
};
struct ReplayByTwoLaunches : ReplayOfTwoHeads {
  static constexpr bool kPrecomputed = true;
  static constexpr int kPrecomputeWarps = 2;
  static constexpr int kPrecomputeHeads = 4;
};
extern "C" __global__ void __launch_bounds__(64) check_replay_precompute(const __grid_constant__ RingArgs args) {
  replay_precompute<ReplayByTwoLaunches>(args);
}
extern "C" __global__ void __launch_bounds__(128, 1) check_replay_by_two(const __grid_constant__ RingArgs args) {
  replay_step<ReplayByTwoLaunches>(args);
}
extern "C" __global__ void __launch_bounds__(128, 1) check_replay(const __grid_constant__ RingArgs args) {
  replay_step<ReplayOfTwoHeads>(args);
}
extern "C" __global__ void __launch_bounds__(64, 1) check_replay_of_12_tokens(const __grid_constant__ RingArgs args) {
  replay_step<ReplayOf12Tokens>(args);
}
extern "C" __global__ void __launch_bounds__(128, 1) check_ring(const __grid_constant__ RingArgs args) {
  ring_step<RingOfTwoHeads>(args);
}
extern "C" __global__ void __launch_bounds__(32, 1) check_ring_of_bytes(const __grid_constant__ RingArgs args) {
  ring_step<RingOfBytes>(args);
}
extern "C" __global__ void __launch_bounds__(64, 1) check_ring_of_12_tokens(const __grid_constant__ RingArgs args) {
  ring_step<RingOf12Tokens>(args);
}

// A convolution of one token, of windows of 3 entries; of 6 tokens with the window after each to a slot; and of 4
// tokens after some that were accepted, of rows at any address.
struct Conv {
  using Input = bf16;
  using State = bf16;
  using Weight = bf16;
  static constexpr int kTokens = 1;
  static constexpr int kWidth = 4;
  static constexpr int kStateLen = 3;
  static constexpr int kSnapshotLen = 3;
  static constexpr bool kHasBias = true;
  static constexpr bool kChannelsLast = false;
  static constexpr ConvStore kStore = ConvStore::shift;
  static constexpr ConvKeep kKeep = ConvKeep::last;
  static constexpr bool kAccepted = false;
  static constexpr bool kAlignedRows = true;
  static constexpr bool kStreaming = true;
  static constexpr bool kEarlyState = false;
  static constexpr PadOutput kPadOutput = PadOutput::zeros;
  static constexpr int kBlockM = 512;
  static constexpr int kWarps = 4;
  static SSMJIT_DEVICE float activation(float x) { return silu_of_16_bits(x); }
};
struct ConvToSlots : Conv {
  static constexpr int kTokens = 6;
  static constexpr bool kChannelsLast = true;
  static constexpr ConvKeep kKeep = ConvKeep::slots;
  static constexpr bool kEarlyState = true;
};
struct ConvOfDrafts : Conv {
  using State = float;
  static constexpr int kTokens = 4;
  static constexpr int kStateLen = 6;
  static constexpr bool kAccepted = true;
  static constexpr bool kAlignedRows = false;
  static constexpr int kBlockM = 128;
  static SSMJIT_DEVICE float activation(float x) { return x; }
};
#define SSMJIT_CHECK_CONV(Config)                                   \
  extern "C" __global__ void __launch_bounds__(32 * Config::kWarps) \
      check_##Config(const __grid_constant__ Conv1dArgs args) {     \
    conv1d<Config>(args);                                           \
  }
SSMJIT_CHECK_CONV(Conv)
SSMJIT_CHECK_CONV(ConvToSlots)
SSMJIT_CHECK_CONV(ConvOfDrafts)

// Slots of pools of bytes; and of one with fp32 states, whose heads take two blocks each.
struct SlotsOfBytes : RingOfBytes {
  static constexpr int kBlockM = 64;
  static constexpr int kThreads = 128;
};
struct SlotsOfFloats : RingOfTwoHeads {
  using State = float;
  static constexpr int kHeadDim = 256;
  static constexpr int kBlockM = 128;
  static constexpr int kThreads = 128;
};
#define SSMJIT_CHECK_SLOTS(Config)                                         \
  extern "C" __global__ void __launch_bounds__(Config::kThreads)           \
      materialise_##Config(const __grid_constant__ MaterialiseArgs args) { \
    materialise<Config>(args);                                             \
  }                                                                        \
  extern "C" __global__ void __launch_bounds__(Config::kThreads)           \
      reset_##Config(const __grid_constant__ ResetSlotsArgs args) {        \
    reset_slots<Config>(args);                                             \
  }                                                                        \
  extern "C" __global__ void __launch_bounds__(Config::kThreads)           \
      copy_##Config(const __grid_constant__ CopySlotsArgs args) {          \
    copy_slots<Config>(args);                                              \
  }
SSMJIT_CHECK_SLOTS(SlotsOfBytes)
SSMJIT_CHECK_SLOTS(SlotsOfFloats)

// A fused layer: one block a norm group, which any arch has.
struct Layer : Maths {
  using State = bf16;
  using Input = bf16;
  static constexpr int kHeadDim = 64;
  static constexpr int kDstate = 128;
  static constexpr int kHeadsPerGroup = 8;
  static constexpr bool kHasConv = true;
  static constexpr int kConvWidth = 4;
  static constexpr int kConvState = 3;
  static constexpr bool kConvChannelsLast = false;
  static constexpr bool kConvBias = true;
  static constexpr bool kHasNorm = true;
  static constexpr int kNormRows = 512;
  static constexpr bool kHasNormGate = true;
  static constexpr bool kNormBeforeGate = false;
  static constexpr bool kNormBias = false;
  static constexpr int kCluster = 1;
  static constexpr int kStages = 1;
  static constexpr int kBlockM = 64;
  static constexpr int kWarps = 8;
  static constexpr int kLanesPerRow = 16;
  static constexpr StatePath kStatePath = StatePath::direct;
  static SSMJIT_DEVICE float activation(float x) { return fn_silu(x); }
  static SSMJIT_DEVICE float norm_gate(float z) { return fn_silu(z); }
  static SSMJIT_DEVICE float norm_eps() { return 1e-5f; }
};
// fp16 inputs and fp32 states, windows longer than the convolution with channels last, the norm before the gate.
struct LayerOfFp16 : Layer {
  using State = float;
  using Input = f16;
  static constexpr int kConvWidth = 3;
  static constexpr int kConvState = 5;
  static constexpr bool kConvChannelsLast = true;
  static constexpr bool kNormBeforeGate = true;
  static constexpr bool kNormBias = true;
  static constexpr bool kEarlyState = true;
  static constexpr int kLanesPerRow = 32;
};
// Eight blocks a norm group (a cluster, as the launch would say), each with its share of B and C, the state by bulk
// copies.
struct LayerOfClusters : Layer {
  static constexpr int kCluster = 8;
  static constexpr int kStages = 2;
  static constexpr StatePath kStatePath = StatePath::bulk;
};
extern "C" __global__ void __launch_bounds__(256, 1) check_layer(const __grid_constant__ LayerArgs args) {
  layer<Layer>(args);
}
extern "C" __global__ void __launch_bounds__(256, 1) check_layer_of_fp16(const __grid_constant__ LayerArgs args) {
  layer<LayerOfFp16>(args);
}
extern "C" __global__ void __launch_bounds__(256, 1) check_layer_of_clusters(const __grid_constant__ LayerArgs args) {
  layer<LayerOfClusters>(args);
}
// Several tokens: one block a norm group in parts; and a cluster, windows longer than the step, the norm before the
// gate.
struct LayerOfTokens : Layer {
  static constexpr int kTokens = 6;
  static constexpr int kStages = 2;
};
struct LayerOfTokensInClusters : LayerOfFp16 {
  static constexpr int kTokens = 3;
  static constexpr int kStages = 8;
  static constexpr int kCluster = 8;
};
extern "C" __global__ void __launch_bounds__(256, 1)
    check_layer_of_tokens(const __grid_constant__ LayerTokensArgs args) {
  layer_tokens<LayerOfTokens>(args);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    check_layer_of_tokens_in_clusters(const __grid_constant__ LayerTokensArgs args) {
  layer_tokens<LayerOfTokensInClusters>(args);
}
// Groups of 512, gated first, two groups a block of one warp each; and one group of 5120, rows at any address, the gate
// last, with a bias, its weights asked for before the wait.
struct NormOfGroups {
  using Input = bf16;
  using Weight = bf16;
  static constexpr int kTokens = 1;
  static constexpr int kGroupSize = 512;
  static constexpr float kEps = 1e-05f;
  static constexpr bool kHasGate = true;
  static constexpr bool kFastSilu = true;
  static constexpr bool kBeforeGate = false;
  static constexpr bool kHasBias = false;
  static constexpr bool kAlignedRows = true;
  static constexpr int kWarps = 2;
  static constexpr int kGroupsPerBlock = 2;
  static constexpr bool kStreaming = true;
  static constexpr bool kEarlyState = false;
  static SSMJIT_DEVICE float gate(float z) { return fn_silu(z); }
};
struct NormOfRows : NormOfGroups {
  using Weight = float;
  static constexpr int kTokens = 6;
  static constexpr int kGroupSize = 5120;
  static constexpr bool kFastSilu = false;
  static constexpr bool kBeforeGate = true;
  static constexpr bool kHasBias = true;
  static constexpr bool kAlignedRows = false;
  static constexpr int kWarps = 8;
  static constexpr int kGroupsPerBlock = 1;
  static constexpr bool kEarlyState = true;
};
extern "C" __global__ void __launch_bounds__(64, 1) check_norm_of_groups(const __grid_constant__ NormArgs args) {
  norm<NormOfGroups>(args);
}
extern "C" __global__ void __launch_bounds__(256, 1) check_norm_of_rows(const __grid_constant__ NormArgs args) {
  norm<NormOfRows>(args);
}
extern "C" __global__ void check_prepare_A(const __grid_constant__ PrepareAArgs args) { prepare_A<bf16>(args); }

extern "C" __global__ void __launch_bounds__(128) check_slot_copies(const __grid_constant__ SlotCopiesArgs args) {
  slot_copies<128>(args);
}
