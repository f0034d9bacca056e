// The C interface beside the C++ one: the same launches, the same sentences. libssmjit_c.so holds a second copy of the
// library; that this program has both is part of the test.
#include <ssmjit/ssmjit_c.h>

#include <cstring>
#include <filesystem>
#include <thread>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/bundle.h>
#include <ssmjit/slots.h>

#include "heuristics/plan_ranges.h"
#include "jit/kernel_args.h"
#include "tests/jit/session/seeded.h"

namespace ssmjit {
namespace {

using testing::HasSubstr;

constexpr std::int64_t kBatch = 3, kSlots = 12;

// The tensor as both interfaces have it.
template <class TensorType>
TensorType tensor(std::uintptr_t where, DType dtype, std::initializer_list<std::int64_t> shape) {
  const Tensor from = contiguous(address(where), dtype, shape);
  TensorType to{};
  to.data = from.data;
  to.dtype = static_cast<decltype(to.dtype)>(dtype);
  to.rank = from.rank;
  for (std::size_t i = 0; i < from.shape.size(); ++i) to.shape[i] = from.shape[i], to.stride[i] = from.stride[i];
  return to;
}
template <class TensorType>
void set_dtype(TensorType& to, DType dtype) {
  to.dtype = static_cast<decltype(to.dtype)>(dtype);
}

// Arguments that fit, in either interface: their fields have the same names.
template <class Args>
void fill_update(Args& a) {
  using T = decltype(a.x);
  a.state = tensor<T>(0x1000000, DType::bf16, {kSlots, 16, 64, 128});
  a.x = a.out = tensor<T>(0x2000000, DType::bf16, {kBatch, 16, 64});
  a.B = a.C = tensor<T>(0x3000000, DType::bf16, {kBatch, 1, 128});
  a.dt = tensor<T>(0x4000000, DType::f32, {kBatch, 16});
  a.A = a.D = a.dt_bias = tensor<T>(0x5000000, DType::f32, {16});
}
template <class Args>
void fill_ring(Args& a) {
  using T = decltype(a.x);
  a.state = tensor<T>(0x1000000, DType::bf16, {kSlots, 16, 64, 128});
  a.x_ring = tensor<T>(0x2000000, DType::bf16, {kSlots, 16, 20, 64});
  a.B_ring = tensor<T>(0x3000000, DType::bf16, {kSlots, 1, 20, 128});
  a.dt_ring = tensor<T>(0x4000000, DType::f32, {kSlots, 16, 20});
  a.ring_start = a.ring_count = tensor<T>(0x5000000, DType::i32, {kSlots});
  a.x = a.out = tensor<T>(0x6000000, DType::bf16, {kBatch, 4, 16, 64});
  a.dt = tensor<T>(0x7000000, DType::f32, {kBatch, 4, 16});
  a.B = a.C = tensor<T>(0x8000000, DType::bf16, {kBatch, 4, 1, 128});
  a.A = a.D = a.dt_bias = tensor<T>(0x9000000, DType::f32, {16});
}
template <class Args>
void fill_conv1d(Args& a) {
  using T = decltype(a.x);
  a.conv_state = tensor<T>(0x1000000, DType::bf16, {kSlots, 256, 3});
  a.x = a.out = tensor<T>(0x2000000, DType::bf16, {kBatch, 256});
  a.w = tensor<T>(0x3000000, DType::bf16, {256, 4});
  a.bias = tensor<T>(0x4000000, DType::bf16, {256});
}
template <class Args>
void fill_norm(Args& a) {
  using T = decltype(a.x);
  a.x = a.z = a.out = tensor<T>(0x1000000, DType::bf16, {kBatch, 256});
  a.weight = tensor<T>(0x2000000, DType::bf16, {256});
}
template <class Args>
void fill_layer(Args& a) {
  using T = decltype(a.x);
  a.state = tensor<T>(0x1000000, DType::f32, {kSlots, 16, 64, 128});
  a.conv_state = tensor<T>(0x2000000, DType::bf16, {kSlots, 1280, 3});
  a.x = tensor<T>(0x3000000, DType::bf16, {kBatch, 1280});
  a.dt = tensor<T>(0x4000000, DType::f32, {kBatch, 16});
  a.z = a.out = tensor<T>(0x5000000, DType::bf16, {kBatch, 16, 64});
  a.conv_weight = tensor<T>(0x6000000, DType::bf16, {1280, 4});
  a.conv_bias = tensor<T>(0x6000000, DType::bf16, {1280});
  a.A = a.D = a.dt_bias = tensor<T>(0x7000000, DType::f32, {16});
  a.norm_weight = tensor<T>(0x8000000, DType::bf16, {1024});
  a.scratch = tensor<T>(0x9000000, DType::i8, {kBatch * (1280 + 1024) * 2});
}

template <class Args>
void fill_replay(Args& a) {
  using T = decltype(a.x);
  a.state = tensor<T>(0x1000000, DType::bf16, {kSlots, 16, 64, 128});
  a.old_x = tensor<T>(0x2000000, DType::bf16, {kSlots, 4, 16, 64});
  a.old_B = tensor<T>(0x3000000, DType::bf16, {kSlots, 2, 4, 1, 128});
  a.old_dt = a.old_cumAdt = tensor<T>(0x4000000, DType::f32, {kSlots, 2, 16, 4});
  a.cache_buf_idx = a.prev_num_accepted_tokens = tensor<T>(0x5000000, DType::i32, {kSlots});
  a.x = a.out = tensor<T>(0x6000000, DType::bf16, {kBatch, 4, 16, 64});
  a.dt = tensor<T>(0x7000000, DType::f32, {kBatch, 4, 16});
  a.B = a.C = tensor<T>(0x8000000, DType::bf16, {kBatch, 4, 1, 128});
  a.A = a.D = a.dt_bias = tensor<T>(0x9000000, DType::f32, {16});
}

class CInterface : public SeededTest {
 protected:
  void SetUp() override {
    SeededTest::SetUp();
    if (!IsSkipped()) open_session();
  }
  void TearDown() override { close(); }
  void close() {
    if (c_step_ != nullptr) {
      EXPECT_EQ(ssmjit_prepared_destroy(std::exchange(c_step_, nullptr)), SSMJIT_OK);
    }
    if (c_session_ != nullptr) {
      EXPECT_EQ(ssmjit_session_destroy(std::exchange(c_session_, nullptr)), SSMJIT_OK);
    }
  }
  // Of what the seed holds by now.
  void open_session() {
    close();
    SsmjitSessionOptions options = SSMJIT_SESSION_OPTIONS_INIT;
    const std::string seed = folder(), cache = scratch_ / "cache";
    const char* seeds[] = {seed.c_str()};
    options.seeds = seeds;
    options.seed_count = 1;
    options.cache_dir = cache.c_str();
    options.no_jit = 1;
    ASSERT_EQ(ssmjit_session_create(&options, &c_session_), SSMJIT_OK) << ssmjit_last_error();
  }

  // The same kernel in both.
  void prepare(const Description& description, const Plan& plan) {
    seed(description, plan);
    open_session();
    step_ = Session({.seeds = {folder()}, .cache_dir = scratch_ / "cache", .no_jit = true})
                .prepare(description, {.max_batch = 8, .force = plan});
    const std::string text = plan.text(), json = description.json();
    SsmjitPrepareOptions options = SSMJIT_PREPARE_OPTIONS_INIT;
    options.max_batch = 8;
    options.force = text.c_str();
    ASSERT_EQ(ssmjit_prepare(c_session_, json.c_str(), &options, &c_step_), SSMJIT_OK) << ssmjit_last_error();
  }
  void prepare(const Description& description) {
    prepare(description, default_plan(description, kSm90, work_items(description, kBatch)));
  }

  static ssmjit_status launch(const ssmjit_prepared* s, const SsmjitUpdateArgs& a) {
    return ssmjit_launch_update(s, &a, nullptr);
  }
  static ssmjit_status launch(const ssmjit_prepared* s, const SsmjitRingArgs& a) {
    return ssmjit_launch_ring(s, &a, nullptr);
  }
  static ssmjit_status launch(const ssmjit_prepared* s, const SsmjitConv1dArgs& a) {
    return ssmjit_launch_conv1d(s, &a, nullptr);
  }
  static ssmjit_status launch(const ssmjit_prepared* s, const SsmjitNormArgs& a) {
    return ssmjit_launch_norm(s, &a, nullptr);
  }
  static ssmjit_status launch(const ssmjit_prepared* s, const SsmjitReplayArgs& a) {
    return ssmjit_launch_replay(s, &a, nullptr);
  }
  static ssmjit_status launch(const ssmjit_prepared* s, const SsmjitLayerArgs& a) {
    return ssmjit_launch_layer(s, &a, nullptr);
  }

  // Both launch the same, with the same arguments on the device.
  template <class Args, class CArgs>
  void expect_same_launch(const Args& args, const CArgs& c_args) {
    std::size_t bytes = 0;
    with_device_args(step_.description(), args, args.pdl, [&](const auto& device) { bytes = sizeof device; });
    stub_->argument_bytes = static_cast<int>(bytes);
    step_.launch(args, nullptr);
    StubLaunch wanted = stub_->last;
    stub_->last = {};
    const int before = stub_->launches;
    EXPECT_EQ(launch(c_step_, c_args), SSMJIT_OK) << ssmjit_last_error();
    EXPECT_GT(stub_->launches, before);
    EXPECT_EQ(std::memcmp(wanted.arguments, stub_->last.arguments, bytes), 0);
    EXPECT_EQ(std::memcmp(wanted.grid, stub_->last.grid, sizeof wanted.grid), 0);
    EXPECT_EQ(std::memcmp(wanted.block, stub_->last.block, sizeof wanted.block), 0);
    EXPECT_EQ(wanted.pdl, stub_->last.pdl);
  }
  // Both refuse with one sentence; returned.
  template <class Args, class CArgs>
  std::string refusal(const Args& args, const CArgs& c_args) {
    const int before = stub_->launches;
    const Error error = error_of([&] { step_.launch(args, nullptr); });
    EXPECT_EQ(launch(c_step_, c_args), error.kind() == ErrorKind::invalid ? SSMJIT_INVALID : SSMJIT_MACHINE);
    EXPECT_STREQ(ssmjit_last_error(), error.what());
    EXPECT_EQ(stub_->launches, before);
    return error.what();
  }
  // Of arguments that fit but for `change`.
  std::string update_refusal(const auto& change) {
    UpdateArgs args;
    SsmjitUpdateArgs c_args = SSMJIT_UPDATE_ARGS_INIT;
    fill_update(args), fill_update(c_args);
    change(args), change(c_args);
    return refusal(args, c_args);
  }
  std::string ring_refusal(const auto& change) {
    RingArgs args;
    SsmjitRingArgs c_args = SSMJIT_RING_ARGS_INIT;
    fill_ring(args), fill_ring(c_args);
    change(args), change(c_args);
    return refusal(args, c_args);
  }

  Prepared step_;
  ssmjit_session* c_session_ = nullptr;
  ssmjit_prepared* c_step_ = nullptr;
};

Description replay_description() { return sample_description().tokens(4).store(Replay{}); }
Description ring_description() { return sample_description().tokens(4).store(Ring{.window = 16}); }

TEST_F(CInterface, EveryOpLaunchesAsInCpp) {
  const auto both = [&](const Description& description, auto args, auto c_args, const auto& fill) {
    prepare(description);
    fill(args), fill(c_args);
    expect_same_launch(args, c_args);
    args.pdl = Pdl::early_state;
    c_args.pdl = SSMJIT_PDL_EARLY_STATE;
    expect_same_launch(args, c_args);
  };
  both(sample_description(), UpdateArgs{}, SsmjitUpdateArgs SSMJIT_UPDATE_ARGS_INIT, [](auto& a) { fill_update(a); });
  both(ring_description(), RingArgs{}, SsmjitRingArgs SSMJIT_RING_ARGS_INIT, [](auto& a) {
    fill_ring(a);
    a.pad_slot_id = 5;
  });
  both(replay_description(), ReplayArgs{}, SsmjitReplayArgs SSMJIT_REPLAY_ARGS_INIT, [](auto& a) { fill_replay(a); });
  both(conv1d({.channels = 256, .activation_expr = silu(dsl::x)}), Conv1dArgs{},
       SsmjitConv1dArgs SSMJIT_CONV1D_ARGS_INIT, [](auto& a) { fill_conv1d(a); });
  both(gated_norm({.channels = 256, .gate_expr = silu(dsl::z)}), NormArgs{}, SsmjitNormArgs SSMJIT_NORM_ARGS_INIT,
       [](auto& a) { fill_norm(a); });
  both(mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1})
           .with_conv({})
           .with_norm({.gate_expr = silu(dsl::z)}),
       LayerArgs{}, SsmjitLayerArgs SSMJIT_LAYER_ARGS_INIT, [](auto& a) { fill_layer(a); });
}

TEST_F(CInterface, DefaultsOfTheMacrosAreThoseOfCpp) {
  const SsmjitUpdateArgs update = SSMJIT_UPDATE_ARGS_INIT;
  EXPECT_EQ(update.pad_slot_id, UpdateArgs{}.pad_slot_id);
  const SsmjitReplayArgs replay = SSMJIT_REPLAY_ARGS_INIT;
  EXPECT_EQ(replay.internal_pdl != 0, ReplayArgs{}.internal_pdl);
  const SsmjitPrepareOptions prepare = SSMJIT_PREPARE_OPTIONS_INIT;
  EXPECT_EQ(prepare.max_batch, PrepareOptions{}.max_batch);
  EXPECT_EQ(prepare.off != 0, PrepareOptions{}.off);
  EXPECT_EQ(prepare.chain != 0, PrepareOptions{}.chain);
  const SsmjitBundleOptions bundle = SSMJIT_BUNDLE_OPTIONS_INIT;
  EXPECT_EQ(bundle.max_batch, BundleOptions{}.max_batch);
}

// ---- faults.md through C: the sentence of C++, or the same launch ----
//
// Rows 11 to 14 and 16 to 18 are about what a kernel computes: C launches the same kernels with the same bytes of
// arguments (EveryOpLaunchesAsInCpp), which tests/jit/cpu and tests/gpu run. Row 22 is in cubin_cache_test.cpp and
// nvrtc_test.cpp, below Session, and in client.c (a cache that can't be made).

TEST_F(CInterface, Rows1To3And16_LargeStridesPadsAndSlicesReachTheKernelAsInCpp) {
  prepare(sample_description());
  UpdateArgs args;
  SsmjitUpdateArgs c_args = SSMJIT_UPDATE_ARGS_INIT;
  const auto change = [](auto& a) {
    fill_update(a);
    a.state.shape[0] = 1 << 20;
    a.state.stride[0] = (std::int64_t{1} << 31) + 64;  // times a slot past 2^51
    a.x.stride[0] = a.B.stride[0] = a.C.stride[0] = 4096;
    a.dt.stride[0] = 48;
    a.state_batch_indices = tensor<decltype(a.x)>(0xa000000, DType::i64, {kBatch});
    a.pad_slot_id = 7;
  };
  change(args), change(c_args);
  expect_same_launch(args, c_args);
}

TEST_F(CInterface, Rows6And8To10_CheckedModeNamesCursorsLengthsAndStaleRings) {
  prepare(ring_description().varlen());
  std::vector<std::int32_t> start(kSlots, 3), count(kSlots, 16);
  std::vector<std::int64_t> slots = {11, 0, 5};
  std::vector<std::int32_t> lengths = {0, 4, 6, 9};
  std::vector<float> deltas(static_cast<std::size_t>(kSlots * 16 * 20), 0.5f);
  const auto sentence = [&] {
    return ring_refusal([&](auto& a) {
      using T = decltype(a.x);
      const std::int64_t total = 9;
      a.checked = true;
      a.x = a.out = tensor<T>(0x6000000, DType::bf16, {total, 16, 64});
      a.dt = tensor<T>(0x7000000, DType::f32, {total, 16});
      a.B = a.C = tensor<T>(0x8000000, DType::bf16, {total, 1, 128});
      a.ring_start.data = start.data();
      a.ring_count.data = count.data();
      a.dt_ring.data = deltas.data();
      a.cu_seqlens = tensor<T>(0, DType::i32, {kBatch + 1});
      a.cu_seqlens.data = lengths.data();
      a.state_batch_indices = tensor<T>(0, DType::i64, {kBatch});
      a.state_batch_indices.data = slots.data();
    });
  };
  count[0] = 17, start[5] = 20;
  EXPECT_EQ(sentence(), "ring_count[0] is 17, of row 1; wants 0 to 16\nring_start[5] is 20, of row 2; wants 0 to 19");
  count[0] = 16, start[5] = 3;
  lengths = {0, 6, 4, 9};
  EXPECT_THAT(sentence(), HasSubstr("cu_seqlens[2] is 4, below the 6 in front of it"));
  lengths = {0, 4, 6, 9};
  std::memset(&deltas[11 * 16 * 20], 0xff, 16 * 20 * sizeof(float));  // as a reset leaves slot 11
  EXPECT_THAT(sentence(), HasSubstr("ring_count[11] is 16, of row 0, but row 0 in use was not written"));
}

TEST_F(CInterface, Row18_CopiesWhoseSlotsMeetAreNamedInCheckedMode) {
  keep_fake(folder(), emit_slot_copies(kSm90));
  open_session();
  const SlotCopies of_cpp =
      Session({.seeds = {folder()}, .cache_dir = scratch_ / "cache", .no_jit = true}).slot_copies();
  ssmjit_slot_copies* copies = nullptr;
  ASSERT_EQ(ssmjit_slot_copies_create(c_session_, nullptr, &copies), SSMJIT_OK) << ssmjit_last_error();
  const std::vector<std::int64_t> words = slot_copy_table({contiguous(address(0x1000000), DType::f32, {kSlots, 64})});
  const std::int32_t from[] = {1, 2}, to[] = {2, 4};
  SlotCopiesArgs args;
  SsmjitSlotCopiesArgs c_args = SSMJIT_SLOT_COPIES_ARGS_INIT;
  const auto fill = [&](auto& a) {
    using T = decltype(a.pieces);
    a.pieces = tensor<T>(0, DType::i64, {static_cast<std::int64_t>(words.size()) / kSlotPieceWords, kSlotPieceWords});
    a.pieces.data = words.data();
    a.src_slots = a.dst_slots = tensor<T>(0, DType::i32, {2});
    a.src_slots.data = from, a.dst_slots.data = to;
    a.checked = true;
  };
  fill(args), fill(c_args);
  const Error error = error_of([&] { of_cpp.launch(args, nullptr); });
  EXPECT_THAT(error.what(), HasSubstr("slot 2"));
  EXPECT_EQ(ssmjit_slot_copies_launch(copies, &c_args, nullptr), SSMJIT_INVALID);
  EXPECT_STREQ(ssmjit_last_error(), error.what());
  EXPECT_EQ(ssmjit_slot_copies_destroy(copies), SSMJIT_OK);
}

TEST_F(CInterface, Row21_ABrokenFileOfASeedIsAMiss) {
  const Plan plan = default_plan(sample_description(), kSm90, work_items(sample_description(), 8));
  seed(sample_description(), plan);
  for (const auto& file : std::filesystem::directory_iterator(folder())) std::filesystem::resize_file(file.path(), 40);
  open_session();
  const std::string text = plan.text();
  SsmjitPrepareOptions options = SSMJIT_PREPARE_OPTIONS_INIT;
  options.max_batch = 8;
  options.force = text.c_str();
  ssmjit_prepared* step = nullptr;
  EXPECT_EQ(ssmjit_prepare(c_session_, sample_description().json().c_str(), &options, &step), SSMJIT_MISSING);
  EXPECT_THAT(ssmjit_last_error(), HasSubstr("1 of 1 kernels"));
  EXPECT_EQ(step, nullptr);
}

TEST_F(CInterface, Row2_MisalignedAndOverlappingPoolsAreRefused) {
  prepare(sample_description());
  EXPECT_THAT(update_refusal([](auto& a) { a.state.data = address(0x1000008); }), HasSubstr("state: base address"));
  EXPECT_THAT(update_refusal([](auto& a) { a.state.stride[0] += 4; }), HasSubstr("pad the slots"));
  EXPECT_THAT(update_refusal([](auto& a) { a.out.stride[0] = 8; }), HasSubstr("out: row stride"));
}

TEST_F(CInterface, Rows4And5_CheckedModeNamesWrongAndRepeatedSlots) {
  prepare(sample_description());
  const std::int64_t past[] = {0, 12, 3}, twice[] = {4, 7, 4};
  for (const std::int64_t* indices : {past, twice})
    EXPECT_THAT(update_refusal([&](auto& a) {
                  a.checked = true;
                  a.state_batch_indices = tensor<decltype(a.x)>(0, DType::i64, {kBatch});
                  a.state_batch_indices.data = indices;
                }),
                HasSubstr("state_batch_indices["));
}

TEST_F(CInterface, Rows7To9_RingsWithTooManyTokensOrTooFewRowsAreRefused) {
  prepare(ring_description());
  EXPECT_THAT(ring_refusal([](auto& a) { a.x.shape[1] = 6; }), HasSubstr("x: got shape [3, 6, 16, 64]"));
  EXPECT_THAT(ring_refusal([](auto& a) { a.x_ring.shape[2] = 19; }), HasSubstr("x_ring: got shape"));
  EXPECT_THAT(ring_refusal([](auto& a) { a.cu_seqlens = tensor<decltype(a.x)>(0x100, DType::i32, {kBatch + 1}); }),
              HasSubstr("cu_seqlens: given"));
}

TEST_F(CInterface, Row15_MixedDtypesAndMissingTensorsAreNamedTogether) {
  prepare(sample_description());
  EXPECT_EQ(update_refusal([](auto& a) {
              set_dtype(a.x, DType::f16);
              a.dt = {};
            }),
            "x: got dtype fp16; wants bf16\ndt: not given; every update needs it");
  update_refusal([](auto& a) { a.z = a.x; });
  update_refusal([](auto& a) { a.rand_seed = a.A, a.x.rank = 2; });
}

TEST_F(CInterface, Row17_ScratchTooSmallIsRefused) {
  const Description layer = mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1})
                                .with_conv({})
                                .with_norm({.gate_expr = silu(dsl::z)});
  prepare(layer, default_chain(PlanForm::chain, layer, kSm90, 64));
  LayerArgs args;
  SsmjitLayerArgs c_args = SSMJIT_LAYER_ARGS_INIT;
  fill_layer(args), fill_layer(c_args);
  args.scratch.shape[0] = c_args.scratch.shape[0] = 100;
  EXPECT_THAT(refusal(args, c_args), HasSubstr("a chain of 3 rows wants int8"));
  std::int64_t bytes = 0;
  EXPECT_EQ(ssmjit_scratch_bytes(c_step_, 0, &bytes), SSMJIT_OK);
  EXPECT_EQ(bytes, step_.scratch_bytes());
  EXPECT_GT(bytes, 0);
  EXPECT_EQ(ssmjit_scratch_bytes(c_step_, 9, &bytes), SSMJIT_INVALID);
}

TEST_F(CInterface, Row19_AnEmptyBatchLaunchesNothingAndTooLargeAOneIsRefused) {
  prepare(sample_description());
  SsmjitUpdateArgs empty = SSMJIT_UPDATE_ARGS_INIT;
  fill_update(empty);
  for (SsmjitTensor* t : {&empty.x, &empty.out, &empty.B, &empty.C, &empty.dt}) t->shape[0] = 0;
  EXPECT_EQ(ssmjit_launch_update(c_step_, &empty, nullptr), SSMJIT_OK);
  EXPECT_EQ(stub_->launches, 0);
  EXPECT_THAT(update_refusal([](auto& a) {
                for (auto* t : {&a.x, &a.out, &a.B, &a.C, &a.dt}) t->shape[0] = 9;
              }),
              HasSubstr("prepared for 1 to 8"));
}

TEST_F(CInterface, Rows19And24_WrongDescriptionsAndPlansAreRefused) {
  ssmjit_prepared* step = nullptr;
  Description bad = sample_description();
  bad.nheads = 0;
  bad.dstate = -8;
  const std::string wanted = error_of([&] { bad.validate(); }).what();
  EXPECT_EQ(ssmjit_prepare(c_session_, bad.json().c_str(), nullptr, &step), SSMJIT_INVALID);
  EXPECT_EQ(ssmjit_last_error(), wanted);
  EXPECT_EQ(step, nullptr);
  SsmjitPrepareOptions options = SSMJIT_PREPARE_OPTIONS_INIT;
  options.force = "block_m=3";
  EXPECT_EQ(ssmjit_prepare(c_session_, sample_description().json().c_str(), &options, &step), SSMJIT_INVALID);
  EXPECT_THAT(ssmjit_last_error(), HasSubstr("block_m"));
  options.force = nullptr;
  options.max_batch = 0;
  EXPECT_EQ(ssmjit_prepare(c_session_, sample_description().json().c_str(), &options, &step), SSMJIT_INVALID);
  EXPECT_STREQ(ssmjit_last_error(), "prepare: got max_batch 0; wants 1 to 65535");
}

TEST_F(CInterface, AForcedTextIsThePlanOfCpp) {
  const Description layer = mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1})
                                .with_conv({})
                                .with_norm({.gate_expr = silu(dsl::z)});
  const Session session({.seeds = {folder()}, .cache_dir = scratch_ / "cache", .no_jit = true});
  const auto both = [&](const Description& description, const char* text, const Plan& wanted) {
    EXPECT_EQ(session.plan_of(text, description, 8), wanted);
    seed(description, wanted);
    open_session();
    SsmjitPrepareOptions options = SSMJIT_PREPARE_OPTIONS_INIT;
    options.max_batch = 8;
    options.force = text;
    ASSERT_EQ(ssmjit_prepare(c_session_, description.json().c_str(), &options, &c_step_), SSMJIT_OK)
        << ssmjit_last_error();
    char plan[1024];
    ASSERT_EQ(ssmjit_choose(c_step_, 1, 0, nullptr, plan, sizeof plan, nullptr), SSMJIT_OK);
    EXPECT_EQ(wanted.text(), plan);
  };
  Plan plan = default_plan(sample_description(), kSm90, work_items(sample_description(), 8));
  plan.streaming = !plan.streaming;
  both(sample_description(), plan.streaming ? "streaming=true" : "streaming=false", plan);
  both(layer, "form=chain", default_chain(PlanForm::chain, layer, kSm90, work_items(layer, 8)));
  const Error error = error_of([&] { session.plan_of("warps=3", sample_description(), 0); });
  EXPECT_STREQ(error.what(), "prepare: got max_batch 0; wants 1 to 65535");
}

TEST_F(CInterface, AModelsKernelsArePreparedAtOnce) {
  const Description update = sample_description(), ring = ring_description();
  const Plan of_update = default_plan(update, kSm90, work_items(update, 4));
  for (const Description* description : {&update, &ring})
    for (const PdlMode mode : {PdlMode::off, PdlMode::chain})
      for (const PlanRange& range : plan_ranges(shipped_tables(), *description, "h200", kSm90, 4, mode))
        seed(*description, range.plan);
  open_session();
  const std::string jsons[] = {update.json(), ring.json()};
  const char* texts[] = {jsons[0].c_str(), jsons[1].c_str()};
  SsmjitPrepareOptions options = SSMJIT_PREPARE_OPTIONS_INIT;
  options.max_batch = 4;
  ssmjit_prepared* steps[2] = {};
  ASSERT_EQ(ssmjit_prepare_all(c_session_, texts, 2, &options, steps), SSMJIT_OK) << ssmjit_last_error();
  SsmjitUpdateArgs update_args = SSMJIT_UPDATE_ARGS_INIT;
  SsmjitRingArgs ring_args = SSMJIT_RING_ARGS_INIT;
  fill_update(update_args), fill_ring(ring_args);
  EXPECT_EQ(ssmjit_launch_update(steps[0], &update_args, nullptr), SSMJIT_OK) << ssmjit_last_error();
  EXPECT_EQ(ssmjit_launch_ring(steps[1], &ring_args, nullptr), SSMJIT_OK) << ssmjit_last_error();
  EXPECT_EQ(stub_->launches, 2);
  for (ssmjit_prepared* step : steps) EXPECT_EQ(ssmjit_prepared_destroy(step), SSMJIT_OK);

  const std::string plan = of_update.text();
  options.force = plan.c_str();
  EXPECT_EQ(ssmjit_prepare_all(c_session_, texts, 2, &options, steps), SSMJIT_INVALID);
  EXPECT_STREQ(ssmjit_last_error(), "prepare: force is the plan of one kernel; got 2 descriptions: prepare it alone");
  EXPECT_EQ(steps[0], nullptr);
  EXPECT_EQ(steps[1], nullptr);
  options.force = nullptr;
  texts[1] = nullptr;
  EXPECT_EQ(ssmjit_prepare_all(c_session_, texts, 2, &options, steps), SSMJIT_INVALID);
  EXPECT_STREQ(ssmjit_last_error(), "description_jsons: got a null pointer");
  EXPECT_EQ(ssmjit_prepare_all(c_session_, texts, 2, &options, nullptr), SSMJIT_INVALID);
  EXPECT_EQ(ssmjit_prepare_all(c_session_, nullptr, 2, &options, steps), SSMJIT_INVALID);
  EXPECT_EQ(ssmjit_prepare_all(c_session_, nullptr, 0, &options, nullptr), SSMJIT_OK);
}

TEST_F(CInterface, Row20_UnderCapturePreparingAndCheckingAreRefused) {
  prepare(sample_description());
  stub_->capturing = 1;
  ssmjit_prepared* step = nullptr;
  EXPECT_EQ(ssmjit_prepare(c_session_, ring_description().json().c_str(), nullptr, &step), SSMJIT_INVALID);
  EXPECT_THAT(ssmjit_last_error(), HasSubstr("before the capture begins"));
  EXPECT_THAT(update_refusal([](auto& a) { a.checked = true; }), HasSubstr("the stream is being captured"));
}

TEST_F(CInterface, Row23_WhatIsNotCompiledIsListed) {
  ssmjit_prepared* step = nullptr;
  EXPECT_EQ(ssmjit_prepare(c_session_, sample_description().json().c_str(), nullptr, &step), SSMJIT_MISSING);
  EXPECT_THAT(ssmjit_last_error(), HasSubstr("no_jit is set"));
  EXPECT_THAT(ssmjit_last_error(), HasSubstr("block_m="));
}

TEST_F(CInterface, Row25_WithoutADriverPreparingSaysSo) {
  const ScopedEnvironment none("SSMJIT_LIBCUDA", "/nonexistent/libcuda.so");
  ssmjit_prepared* step = nullptr;
  EXPECT_EQ(ssmjit_prepare(c_session_, sample_description().json().c_str(), nullptr, &step), SSMJIT_MISSING);
  EXPECT_THAT(ssmjit_last_error(), HasSubstr("/nonexistent/libcuda.so"));
}

TEST_F(CInterface, TheDriversRefusalIsAnErrorOfTheMachine) {
  prepare(sample_description());
  stub_->fail_call = "cuLaunchKernelEx";
  stub_->fail_code = 1;
  SsmjitUpdateArgs args = SSMJIT_UPDATE_ARGS_INIT;
  fill_update(args);
  EXPECT_EQ(ssmjit_launch_update(c_step_, &args, nullptr), SSMJIT_MACHINE);
  EXPECT_STREQ(ssmjit_last_error(), "cuLaunchKernelEx failed: CUDA_ERROR_INVALID_VALUE (1): invalid argument");
}

// ---- what only C can get wrong ----

TEST_F(CInterface, NullPointersAreRefused) {
  prepare(sample_description());
  const SsmjitUpdateArgs args = SSMJIT_UPDATE_ARGS_INIT;
  const auto expect_invalid = [](ssmjit_status status, const char* part) {
    EXPECT_EQ(status, SSMJIT_INVALID);
    EXPECT_THAT(ssmjit_last_error(), HasSubstr(part));
  };
  expect_invalid(ssmjit_launch_update(nullptr, &args, nullptr),
                 "step: got a null handle; make one with ssmjit_prepare");
  expect_invalid(ssmjit_launch_update(c_step_, nullptr, nullptr), "args: got a null pointer");
  expect_invalid(ssmjit_launch_norm(c_step_, nullptr, nullptr), "args: got a null pointer");
  expect_invalid(ssmjit_session_create(nullptr, nullptr), "session: got a null pointer");
  expect_invalid(ssmjit_prepare(c_session_, nullptr, nullptr, &c_step_), "description_json: got a null pointer");
  ASSERT_EQ(c_step_, nullptr) << "no handle where there is no step";
  expect_invalid(ssmjit_prepare(nullptr, "{}", nullptr, &c_step_), "session: got a null handle");
  expect_invalid(ssmjit_prepared_destroy(nullptr), "step: got a null handle");
  expect_invalid(ssmjit_describe(nullptr, nullptr, nullptr, 0, nullptr), "spec: got a null pointer");
  expect_invalid(ssmjit_choose(nullptr, 1, 0, nullptr, nullptr, 0, nullptr), "step: got a null handle");
  const char* texts[] = {nullptr};
  SsmjitSessionOptions options = SSMJIT_SESSION_OPTIONS_INIT;
  options.seeds = texts;
  options.seed_count = 1;
  ssmjit_session* session = nullptr;
  expect_invalid(ssmjit_session_create(&options, &session), "seeds: got a null pointer");
  options.seeds = nullptr;
  expect_invalid(ssmjit_session_create(&options, &session), "seeds: got a null pointer");
}

TEST_F(CInterface, AHandleThatWasDestroyedOrIsOfAnotherKindIsRefused) {
  prepare(sample_description());
  SsmjitUpdateArgs args = SSMJIT_UPDATE_ARGS_INIT;
  fill_update(args);
  ssmjit_prepared* step = c_step_;
  c_step_ = nullptr;
  EXPECT_EQ(ssmjit_launch_update(reinterpret_cast<ssmjit_prepared*>(c_session_), &args, nullptr), SSMJIT_INVALID);
  EXPECT_STREQ(ssmjit_last_error(),
               "step: got a handle made by ssmjit_session_create(); wants one made by ssmjit_prepare()");
  EXPECT_EQ(ssmjit_prepared_destroy(step), SSMJIT_OK);
  EXPECT_EQ(ssmjit_launch_update(step, &args, nullptr), SSMJIT_INVALID);
  EXPECT_THAT(ssmjit_last_error(), HasSubstr("step: the handle was destroyed"));
  EXPECT_EQ(ssmjit_prepared_destroy(step), SSMJIT_INVALID) << "twice";
  EXPECT_EQ(ssmjit_choose(step, 1, 0, nullptr, nullptr, 0, nullptr), SSMJIT_INVALID);
  alignas(16) char junk[64] = "no handle at all";
  EXPECT_EQ(ssmjit_launch_update(reinterpret_cast<ssmjit_prepared*>(junk), &args, nullptr), SSMJIT_INVALID);
  EXPECT_EQ(ssmjit_launch_update(reinterpret_cast<ssmjit_prepared*>(junk + 1), &args, nullptr), SSMJIT_INVALID);
  EXPECT_THAT(ssmjit_last_error(), HasSubstr("is no handle of ssmjit"));
  EXPECT_EQ(stub_->launches, 0);
}

TEST_F(CInterface, AStepOutlivesItsSession) {
  prepare(sample_description());
  EXPECT_EQ(ssmjit_session_destroy(c_session_), SSMJIT_OK);
  c_session_ = nullptr;
  SsmjitUpdateArgs args = SSMJIT_UPDATE_ARGS_INIT;
  fill_update(args);
  EXPECT_EQ(ssmjit_launch_update(c_step_, &args, nullptr), SSMJIT_OK) << ssmjit_last_error();
  EXPECT_EQ(stub_->launches, 1);
}

TEST_F(CInterface, AStructOfAnotherSizeIsCompletedOrRefused) {
  prepare(sample_description());
  SsmjitUpdateArgs args = SSMJIT_UPDATE_ARGS_INIT;
  fill_update(args);
  // An older client's, which ends before the tensors that this kernel has no use for.
  args.rand_seed = args.cu_seqlens = args.x;
  args.size = offsetof(SsmjitUpdateArgs, num_accepted_tokens);
  EXPECT_EQ(ssmjit_launch_update(c_step_, &args, nullptr), SSMJIT_OK) << ssmjit_last_error();
  for (const std::size_t size : {std::size_t{0}, std::size_t{8}, args.size + 4, sizeof args + sizeof(SsmjitTensor)}) {
    args.size = size;
    EXPECT_EQ(ssmjit_launch_update(c_step_, &args, nullptr), SSMJIT_INVALID) << size;
    EXPECT_THAT(ssmjit_last_error(), HasSubstr("args: size is " + std::to_string(size)));
  }
  EXPECT_THAT(ssmjit_last_error(), HasSubstr("built against a newer ssmjit_c.h"));
}

TEST_F(CInterface, TensorsThatAreNoneAreRefused) {
  prepare(sample_description());
  const auto refused = [&](const auto& change, const char* sentence) {
    SsmjitUpdateArgs args = SSMJIT_UPDATE_ARGS_INIT;
    fill_update(args);
    change(args);
    EXPECT_EQ(ssmjit_launch_update(c_step_, &args, nullptr), SSMJIT_INVALID);
    EXPECT_STREQ(ssmjit_last_error(), sentence);
  };
  refused([](SsmjitUpdateArgs& a) { a.x.rank = 1000; }, "x: got 1000 dimensions; wants 0 to 5");
  refused([](SsmjitUpdateArgs& a) { a.A.rank = -1; }, "A: got -1 dimensions; wants 0 to 5");
  refused([](SsmjitUpdateArgs& a) { a.dt.dtype = 99; },
          "dt: got dtype 99; wants one of SSMJIT_F32 to SSMJIT_I64, 0 to 7");
  refused([](SsmjitUpdateArgs& a) { a.pdl = 7; }, "pdl: 7 is none of off, wait_first, early_state");
}

TEST_F(CInterface, TextThatDoesNotFitGivesItsLength) {
  std::size_t length = 0;
  char small[8] = "before";
  EXPECT_EQ(ssmjit_describe("nemotron3-super-tp8:update", "state=bf16", small, sizeof small, &length),
            SSMJIT_TOO_SMALL);
  EXPECT_STREQ(small, "before");
  std::string text(length + 1, '\0');
  ASSERT_EQ(ssmjit_describe("nemotron3-super-tp8:update", "state=bf16", text.data(), text.size(), nullptr), SSMJIT_OK);
  text.resize(length);
  Description wanted = load_model("nemotron3-super-tp8").kernel("update");
  wanted.set("state=bf16");
  EXPECT_EQ(Description::from_json(text), wanted);
  EXPECT_EQ(ssmjit_describe(text.c_str(), nullptr, text.data(), text.size(), nullptr), SSMJIT_TOO_SMALL);
  EXPECT_EQ(ssmjit_describe("nemotron3-super-tp8", nullptr, small, sizeof small, nullptr), SSMJIT_INVALID);
  EXPECT_THAT(ssmjit_last_error(), HasSubstr("name one as NAME:KERNEL"));
  EXPECT_EQ(ssmjit_describe("no-such-model", nullptr, small, sizeof small, nullptr), SSMJIT_INVALID);
}

TEST_F(CInterface, AChoiceIsThatOfCpp) {
  prepare(sample_description());
  SsmjitChoice choice = SSMJIT_CHOICE_INIT;
  char plan[512];
  ASSERT_EQ(ssmjit_choose(c_step_, 3, 1, &choice, plan, sizeof plan, nullptr), SSMJIT_OK);
  EXPECT_EQ(step_.choose(3, PdlMode::chain).plan.text(), plan);
  EXPECT_EQ(choice.why, SSMJIT_DEFAULT);
  choice.size = offsetof(SsmjitChoice, expected_us);
  choice.expected_us = -1;
  ASSERT_EQ(ssmjit_choose(c_step_, 3, 0, &choice, nullptr, 0, nullptr), SSMJIT_OK);
  EXPECT_EQ(choice.expected_us, -1) << "what an older client has no field for is not written";
}

TEST_F(CInterface, MessagesAreEachThreadsOwn) {
  EXPECT_EQ(ssmjit_session_destroy(nullptr), SSMJIT_INVALID);
  const std::string mine = ssmjit_last_error();
  std::thread([] {
    EXPECT_STREQ(ssmjit_last_error(), "");
    EXPECT_EQ(ssmjit_launch_ring(nullptr, nullptr, nullptr), SSMJIT_INVALID);
  }).join();
  EXPECT_EQ(ssmjit_last_error(), mine);
}

TEST_F(CInterface, WarningsReachTheCallbackAndNotTheOtherCopyOfTheLibrary) {
  std::vector<std::string> lines;
  const Warnings of_cpp;
  ASSERT_EQ(ssmjit_set_log(
                [](void* user, std::int32_t level, const char* text) {
                  if (level == 1) static_cast<std::vector<std::string>*>(user)->emplace_back(text);
                },
                &lines),
            SSMJIT_OK);
  const std::string table = scratch_ / "broken.json";
  write_file(table, "{");
  const char* tables[] = {table.c_str()};
  SsmjitSessionOptions options = SSMJIT_SESSION_OPTIONS_INIT;
  options.tables = tables;
  options.table_count = 1;
  ssmjit_session* session = nullptr;
  ASSERT_EQ(ssmjit_session_create(&options, &session), SSMJIT_OK);
  EXPECT_EQ(ssmjit_set_log(nullptr, nullptr), SSMJIT_OK);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_THAT(lines[0], HasSubstr("broken.json"));
  EXPECT_TRUE(of_cpp.lines.empty());
  EXPECT_EQ(ssmjit_session_destroy(session), SSMJIT_OK);
}

TEST_F(CInterface, CursorsMoveAsInCpp) {
  const Description ring = ring_description();
  prepare(ring);
  RingCursor cursor;
  std::int32_t start = 0, count = 0;
  for (int step = 0; step < 12; ++step) {
    std::int32_t flushes = -1;
    ASSERT_EQ(ssmjit_ring_flushes(c_step_, start, count, 4, &flushes), SSMJIT_OK);
    EXPECT_EQ(flushes != 0, ring_flushes(ring, cursor, 4));
    const int accepted = 1 + step % 4;
    ASSERT_EQ(ssmjit_advance_ring(c_step_, 4, accepted, &start, &count), SSMJIT_OK);
    cursor = advance_ring(ring, cursor, 4, accepted);
    EXPECT_EQ(start, cursor.start);
    EXPECT_EQ(count, cursor.count);
  }
  EXPECT_EQ(ssmjit_advance_ring(c_step_, 4, 9, &start, &count), SSMJIT_INVALID);
  EXPECT_EQ(start, cursor.start) << "a refused move leaves the cursor";
}

TEST_F(CInterface, AReplaysCursorMovesAsInCpp) {
  prepare(replay_description());
  ReplayCursor cursor;
  std::int32_t buffer = 0, kept = 0;
  for (const int accepted : {4, 1, 3, 0, 2}) {
    ASSERT_EQ(ssmjit_advance_replay(c_step_, accepted, &buffer, &kept), SSMJIT_OK) << ssmjit_last_error();
    cursor = advance_replay(replay_description(), cursor, accepted);
    EXPECT_EQ(buffer, cursor.buffer);
    EXPECT_EQ(kept, cursor.accepted);
  }
  EXPECT_EQ(ssmjit_advance_replay(c_step_, 5, &buffer, &kept), SSMJIT_INVALID);
  EXPECT_EQ(kept, 2);
}

TEST_F(CInterface, OutputSlotsAreThoseOfCpp) {
  SsmjitOutputPool c_pool = SSMJIT_OUTPUT_POOL_INIT;
  SsmjitSlotRequest c_request = SSMJIT_SLOT_REQUEST_INIT;
  c_pool.working = 32, c_pool.requests = 9, c_pool.tokens = 4;
  c_request.request = 5, c_request.working = 7;
  const OutputPool pool{.working = 32, .requests = 9, .tokens = 4};
  const SlotRequest request{.request = 5, .working = 7};
  std::int32_t row[4], slot = 0, from = 0, to = 0;
  ASSERT_EQ(ssmjit_output_row(&c_pool, &c_request, row, 4), SSMJIT_OK) << ssmjit_last_error();
  for (int token = 0; token < 4; ++token) EXPECT_EQ(row[token], output_slot(pool, request, token));
  ASSERT_EQ(ssmjit_accepted_slot(&c_pool, &c_request, 3, &slot), SSMJIT_OK);
  EXPECT_EQ(slot, accepted_slot(pool, request, 3));
  const std::int32_t current = slot;
  ASSERT_EQ(ssmjit_input_slot(&c_pool, &c_request, current, &slot), SSMJIT_OK);
  EXPECT_EQ(slot, input_slot(pool, request, current));
  ASSERT_EQ(ssmjit_retract_copy(&c_pool, &c_request, current, &from, &to), SSMJIT_OK);
  EXPECT_EQ((SlotCopy{from, to}), retract_copy(pool, request, current));
  ASSERT_EQ(ssmjit_checkpoint_copy(&c_pool, &c_request, 126, 3, 128, 20, &from, &to), SSMJIT_OK);
  EXPECT_EQ((SlotCopy{from, to}), checkpoint_copy(pool, request, 126, 3, 128, 20));
  EXPECT_NE(from, -1);
  EXPECT_EQ(ssmjit_input_slot(&c_pool, &c_request, 1000, &slot), SSMJIT_INVALID);
  EXPECT_STREQ(ssmjit_last_error(), error_of([&] { input_slot(pool, request, 1000); }).what());
  EXPECT_EQ(ssmjit_input_slot(nullptr, &c_request, 0, &slot), SSMJIT_INVALID);
  c_request.size = 3;
  EXPECT_EQ(ssmjit_input_slot(&c_pool, &c_request, 0, &slot), SSMJIT_INVALID);
}

TEST_F(CInterface, SlotsAreCopiedAsInCpp) {
  keep_fake(folder(), emit_slot_copies(kSm90));
  open_session();
  const SsmjitTensor pools[2] = {tensor<SsmjitTensor>(0x1000000, DType::f32, {kSlots, 16, 64, 128}),
                                 tensor<SsmjitTensor>(0x2000000, DType::bf16, {kSlots, 1280, 4})};
  std::size_t length = 0;
  EXPECT_EQ(ssmjit_slot_copy_table(pools, 2, nullptr, 0, &length), SSMJIT_TOO_SMALL);
  std::vector<std::int64_t> words(length);
  ASSERT_EQ(ssmjit_slot_copy_table(pools, 2, words.data(), words.size(), nullptr), SSMJIT_OK) << ssmjit_last_error();
  EXPECT_EQ(words, slot_copy_table({contiguous(address(0x1000000), DType::f32, {kSlots, 16, 64, 128}),
                                    contiguous(address(0x2000000), DType::bf16, {kSlots, 1280, 4})}));
  ssmjit_slot_copies* copies = nullptr;
  ASSERT_EQ(ssmjit_slot_copies_create(c_session_, nullptr, &copies), SSMJIT_OK) << ssmjit_last_error();
  SsmjitSlotCopiesArgs args = SSMJIT_SLOT_COPIES_ARGS_INIT;
  args.pieces = tensor<SsmjitTensor>(0x3000000, DType::i64, {static_cast<std::int64_t>(length) / 4, 4});
  args.src_slots = args.dst_slots = tensor<SsmjitTensor>(0x4000000, DType::i32, {3});
  EXPECT_EQ(ssmjit_slot_copies_launch(copies, &args, nullptr), SSMJIT_OK) << ssmjit_last_error();
  EXPECT_EQ(stub_->launches, 1);
  args.dst_slots.shape[0] = 2;
  EXPECT_EQ(ssmjit_slot_copies_launch(copies, &args, nullptr), SSMJIT_INVALID);
  EXPECT_EQ(ssmjit_slot_copies_destroy(copies), SSMJIT_OK);
  EXPECT_EQ(ssmjit_slot_copies_launch(copies, &args, nullptr), SSMJIT_INVALID);
}

TEST_F(CInterface, SlotsOfARingAreResetCopiedAndMaterialised) {
  const Description ring = ring_description();
  keep_fake(folder(), emit_ring_slots(ring, kSm90));
  open_session();
  ssmjit_ring_slots* slots = nullptr;
  ASSERT_EQ(ssmjit_ring_slots_create(c_session_, ring.json().c_str(), nullptr, &slots), SSMJIT_OK)
      << ssmjit_last_error();
  SsmjitRingArgs step = SSMJIT_RING_ARGS_INIT;
  fill_ring(step);
  RingArgs cpp_step;
  fill_ring(cpp_step);
  SsmjitRingLayer layers[2] = {SSMJIT_RING_LAYER_INIT, SSMJIT_RING_LAYER_INIT};
  for (SsmjitRingLayer& layer : layers) {
    layer.state = step.state, layer.x_ring = step.x_ring, layer.B_ring = step.B_ring;
    layer.dt_ring = step.dt_ring, layer.A = step.A;
  }
  std::int64_t words[2 * SSMJIT_RING_LAYER_WORDS] = {};
  ASSERT_EQ(ssmjit_ring_layer_table(slots, layers, 2, words), SSMJIT_OK) << ssmjit_last_error();
  RingLayer layer{.state = cpp_step.state,
                  .state_scale = {},
                  .x_ring = cpp_step.x_ring,
                  .B_ring = cpp_step.B_ring,
                  .dt_ring = cpp_step.dt_ring,
                  .A = cpp_step.A,
                  .conv_state = {}};
  const std::vector<std::int64_t> wanted = ring_layer_table(ring, {layer, layer});
  EXPECT_TRUE(std::equal(wanted.begin(), wanted.end(), words));
  SsmjitRingLayer older = layers[0];  // of a header whose tables have fewer words, for which there is no room
  older.size = offsetof(SsmjitRingLayer, conv_state);
  std::fill(words, words + 2 * SSMJIT_RING_LAYER_WORDS, 7);
  EXPECT_EQ(ssmjit_ring_layer_table(slots, &older, 1, words), SSMJIT_INVALID);
  EXPECT_THAT(ssmjit_last_error(), HasSubstr("layers[0].size: got"));
  EXPECT_TRUE(std::all_of(words, words + 2 * SSMJIT_RING_LAYER_WORDS, [](std::int64_t v) { return v == 7; }));

  SsmjitResetSlotsArgs reset = SSMJIT_RESET_SLOTS_ARGS_INIT;
  reset.layers = tensor<SsmjitTensor>(0x100000, DType::i64, {2, kRingLayerWords});
  reset.slots = tensor<SsmjitTensor>(0x200000, DType::i64, {kBatch});
  reset.ring_start = reset.ring_count = step.ring_start;
  EXPECT_EQ(ssmjit_reset(slots, &reset, nullptr), SSMJIT_OK) << ssmjit_last_error();
  SsmjitCopySlotsArgs copy = SSMJIT_COPY_SLOTS_ARGS_INIT;
  copy.layers = reset.layers;
  copy.src_slots = copy.dst_slots = reset.slots;
  copy.ring_start = copy.ring_count = step.ring_start;
  EXPECT_EQ(ssmjit_copy(slots, &copy, nullptr), SSMJIT_OK) << ssmjit_last_error();
  SsmjitMaterialiseArgs materialise = SSMJIT_MATERIALISE_ARGS_INIT;
  materialise.layers = reset.layers;
  materialise.src_slots = materialise.dst_slots = reset.slots;
  materialise.ring_start = materialise.prefix_length = tensor<SsmjitTensor>(0x300000, DType::i32, {kBatch});
  EXPECT_EQ(ssmjit_materialise(slots, &materialise, nullptr), SSMJIT_OK) << ssmjit_last_error();
  EXPECT_EQ(stub_->launches, 3);
  reset.slots.dtype = SSMJIT_F32;
  EXPECT_EQ(ssmjit_reset(slots, &reset, nullptr), SSMJIT_INVALID);
  EXPECT_THAT(ssmjit_last_error(), HasSubstr("slots: got dtype fp32"));
  EXPECT_EQ(ssmjit_ring_slots_destroy(slots), SSMJIT_OK);
}

TEST_F(CInterface, AIsPreparedFromALog) {
  keep_fake(folder(), emit_prepare_A(kSm90));
  open_session();
  ssmjit_prepare_A* prepare_A = nullptr;
  ASSERT_EQ(ssmjit_prepare_A_create(c_session_, nullptr, &prepare_A), SSMJIT_OK) << ssmjit_last_error();
  const SsmjitTensor from = tensor<SsmjitTensor>(0x1000, DType::bf16, {16}),
                     to = tensor<SsmjitTensor>(0x2000, DType::f32, {16});
  EXPECT_EQ(ssmjit_prepare_A_launch(prepare_A, &from, &to, nullptr), SSMJIT_OK) << ssmjit_last_error();
  EXPECT_EQ(ssmjit_prepare_A_launch(prepare_A, &from, &from, nullptr), SSMJIT_INVALID);
  EXPECT_EQ(ssmjit_prepare_A_launch(prepare_A, &from, nullptr, nullptr), SSMJIT_INVALID);
  EXPECT_EQ(stub_->launches, 1);
  EXPECT_EQ(ssmjit_prepare_A_destroy(prepare_A), SSMJIT_OK);
}

TEST_F(CInterface, BundlingIsRefusedAsInCpp) {
  std::size_t files = 0;
  const char* specs[] = {"nemotron3-super-tp8:norm"};
  const std::string folder = scratch_ / "bundle";
  EXPECT_EQ(ssmjit_bundle(c_session_, specs, 1, nullptr, folder.c_str(), &files), SSMJIT_INVALID);
  EXPECT_STREQ(ssmjit_last_error(), "bundle: no architecture was named; sm_90a, say");
  SsmjitBundleOptions options = SSMJIT_BUNDLE_OPTIONS_INIT;
  options.archs = "sm_90a,sm_20";
  EXPECT_EQ(ssmjit_bundle(c_session_, specs, 1, &options, folder.c_str(), &files), SSMJIT_INVALID);
  EXPECT_EQ(ssmjit_bundle(c_session_, specs, 0, &options, folder.c_str(), &files), SSMJIT_INVALID);
}

}  // namespace
}  // namespace ssmjit
