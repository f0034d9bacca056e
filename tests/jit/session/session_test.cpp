#include <ssmjit/session.h>

#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/error.h>

#include "heuristics/plan_ranges.h"
#include "tests/jit/allocation_count.h"
#include "tests/jit/session/seeded.h"

namespace ssmjit {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::SizeIs;

constexpr int kMostRows = 24;

// Rows at batches 1, 4 and 16, with a plan between the last two, and one behind a producer.
std::vector<TableRow> sample_rows() {
  std::vector<TableRow> rows = {sample_row(16, 2, 0), sample_row(64, 3, 1), sample_row(256, 5, 2),
                                sample_row(16, 2, 3, "h200", PdlMode::chain)};
  rows[1].between = sample_plan(4);
  rows[3].plan.early_state = true;
  for (TableRow& row : rows) row = of_kernel(unshipped_description(), row);
  return rows;
}

class SessionTest : public SeededTest {
 protected:
  Session session() { return Session(options(sample_rows(), unshipped_description())); }
  Prepared prepared(const PrepareOptions& prepare = {.max_batch = kMostRows}) {
    return session().prepare(unshipped_description(), prepare);
  }
  std::string refusal(const Prepared& step, const auto& args) {
    const int before = stub_->launches;
    const Error error = error_of([&] { step.launch(args, nullptr); });
    EXPECT_EQ(error.kind(), ErrorKind::invalid);
    EXPECT_EQ(stub_->launches, before);
    return error.what();
  }
  void expect_launch_of(const Plan& plan, int batch) {
    const LaunchShape shape = launch_shape(plan, unshipped_description(), batch);
    EXPECT_EQ(stub_->last.block[0], static_cast<unsigned>(shape.block_threads)) << batch;
    EXPECT_EQ(stub_->last.grid[0], static_cast<unsigned>(shape.grid_x)) << batch;
    EXPECT_EQ(stub_->last.grid[1], static_cast<unsigned>(shape.grid_y)) << batch;
    EXPECT_EQ(stub_->last.smem_bytes, static_cast<unsigned>(shape.smem_bytes)) << batch;
  }
};

TEST_F(SessionTest, EveryBatchLaunchesThePlanThatTheTablesChoose) {
  const Session all = session();
  const Prepared step = all.prepare(unshipped_description(), {.max_batch = kMostRows});
  for (int batch = 1; batch <= kMostRows; ++batch) {
    for (const PdlMode mode : {PdlMode::off, PdlMode::chain}) {
      const Choice wanted = lookup(all.table(), unshipped_description(), "h200", kSm90, batch, mode);
      UpdateArgs args = sample_args(batch);
      args.pdl = mode == PdlMode::off ? Pdl::off : Pdl::early_state;
      step.launch(args, nullptr);
      expect_launch_of(wanted.plan, batch);
      EXPECT_EQ(stub_->last.pdl, mode == PdlMode::off ? 0 : 1);
      const Choice choice = step.choose(batch, mode);
      EXPECT_EQ(choice.plan, wanted.plan);
      EXPECT_EQ(choice.why, wanted.why);
      EXPECT_EQ(choice.reason, wanted.reason);
      EXPECT_EQ(choice.expected_us, wanted.expected_us);
    }
  }
  EXPECT_EQ(step.choose(5).plan, sample_plan(4)) << "the plan between two rows";
  EXPECT_EQ(step.choose(1, PdlMode::chain).plan.early_state, true);
}

TEST_F(SessionTest, RangesOfBatchesAreWhatLookupSaysOneByOne) {
  for (const char* device : {"h200", "b200"})  // with rows, and without
    for (const PdlMode mode : {PdlMode::off, PdlMode::chain}) {
      Table table{sample_rows()};
      table.rows[1].fits_heads = 96;
      const std::vector<PlanRange> ranges = plan_ranges(table, unshipped_description(), device, kSm90, 80, mode);
      ASSERT_FALSE(ranges.empty());
      EXPECT_EQ(ranges.front().first_batch, 1);
      std::size_t at = 0;
      for (int batch = 1; batch <= 80; ++batch) {
        if (at + 1 < ranges.size() && ranges[at + 1].first_batch == batch) ++at;
        EXPECT_EQ(ranges[at].plan, lookup(table, unshipped_description(), device, kSm90, batch, mode).plan) << batch;
      }
      EXPECT_EQ(at + 1, ranges.size());
    }
}

TEST_F(SessionTest, EachKernelIsLoadedOnceAndSaysWhereItIsUsed) {
  const Prepared step = prepared();
  const std::vector<PreparedKernel> kernels = step.kernels();
  EXPECT_EQ(stub_->modules_loaded, static_cast<int>(kernels.size()));
  int off = 0, chain = 0;
  for (const PreparedKernel& kernel : kernels) {
    EXPECT_TRUE(kernel.from_cache);
    EXPECT_EQ(kernel.registers, 40);
    EXPECT_GT(kernel.batches_off + kernel.batches_chain, 0);
    off += kernel.batches_off;
    chain += kernel.batches_chain;
  }
  EXPECT_EQ(off, kMostRows);
  EXPECT_EQ(chain, kMostRows);
  EXPECT_EQ(step.max_batch(), kMostRows);
  EXPECT_EQ(step.description(), unshipped_description());
  EXPECT_EQ(step.device().key, "h200");
}

TEST_F(SessionTest, TheSameAgainIsTheSameHandleAndLoadsNothing) {
  const Session all = session();
  all.prepare(unshipped_description(), {.max_batch = kMostRows});
  const int loaded = stub_->modules_loaded;
  all.prepare(unshipped_description(), {.max_batch = kMostRows});
  EXPECT_EQ(stub_->modules_loaded, loaded);
  all.prepare(unshipped_description(), {.max_batch = 4});
  EXPECT_GT(stub_->modules_loaded, loaded);
}

TEST_F(SessionTest, SeveralAtOnceAreTheHandlesOfOneByOneInTheirOrder) {
  SessionOptions with = options(sample_rows(), unshipped_description());
  const Description ring = sample_description().tokens(4).store(Ring{.window = 16}).varlen();
  for (const PdlMode mode : {PdlMode::off, PdlMode::chain})
    for (const PlanRange& range : plan_ranges(shipped_tables(), ring, "h200", kSm90, kMostRows, mode))
      seed(ring, range.plan);
  const Session all(with);
  const std::vector<Prepared> steps = all.prepare_all({ring, unshipped_description(), ring}, {.max_batch = kMostRows});
  ASSERT_THAT(steps, SizeIs(3));
  EXPECT_EQ(steps[0].description(), ring);
  EXPECT_EQ(steps[1].description(), unshipped_description());
  EXPECT_EQ(steps[2].description(), ring);
  EXPECT_EQ(stub_->modules_loaded, static_cast<int>(steps[0].kernels().size() + steps[1].kernels().size()));
  for (int batch = 1; batch <= kMostRows; ++batch)
    EXPECT_EQ(steps[1].choose(batch).plan, lookup(all.table(), unshipped_description(), "h200", kSm90, batch).plan);
  steps[1].launch(sample_args(5), nullptr);
  expect_launch_of(sample_plan(4), 5);
  const int loaded = stub_->modules_loaded;
  stub_->capturing = 1;  // all are there
  all.prepare_all({unshipped_description(), ring}, {.max_batch = kMostRows});
  EXPECT_EQ(stub_->modules_loaded, loaded);
  EXPECT_THAT(all.prepare_all({}), SizeIs(0));
}

TEST_F(SessionTest, SeveralAtOnceNameTheKernelsThatAllOfThemLack) {
  const Description other = sample_description().tokens(4).store(Ring{.window = 16});
  const Session all = session();
  const Error error = error_of([&] {
    all.prepare_all({unshipped_description(), other, sample_description()}, {.max_batch = 4});
  });
  EXPECT_EQ(error.kind(), ErrorKind::missing);
  EXPECT_THAT(error.what(), HasSubstr("kernels of 3 descriptions for sm_90a"));
  EXPECT_THAT(error.what(), HasSubstr(other.summary() + ": block_m="));
  EXPECT_THAT(error.what(), HasSubstr(sample_description().summary() + ": block_m="));
  EXPECT_THAT(error.what(), Not(HasSubstr(unshipped_description().summary() + ": ")));
  EXPECT_EQ(stub_->modules_loaded, 0);
  stub_->capturing = 1;
  EXPECT_THAT(error_of([&] {
                all.prepare_all({other, sample_description()});
              }).what(),
              HasSubstr("prepare: " + other.summary() + " at batches of up to 256"));
}

TEST_F(SessionTest, Row21_AKernelThatAnotherProcessWroteSinceIsFoundInACache) {
  const Session all({.cache_dir = folder(), .no_jit = true});
  const Plan plan = sample_plan(9), other = sample_plan(8);
  EXPECT_EQ(error_of([&] { all.prepare(unshipped_description(), {.force = plan}); }).kind(), ErrorKind::missing);
  seed(unshipped_description(), plan);
  all.prepare(unshipped_description(), {.force = plan}).launch(sample_args(3), nullptr);
  EXPECT_EQ(error_of([&] { all.prepare(unshipped_description(), {.force = other}); }).kind(), ErrorKind::missing);
  seed(unshipped_description(), other);
  all.prepare(unshipped_description(), {.force = other}).launch(sample_args(3), nullptr);
  EXPECT_EQ(stub_->launches, 2);
}

TEST_F(SessionTest, EachDeviceOfAProcessHasAHandleOfItsOwn) {
  const Session all = session();
  stub_->devices = 2;
  stub_->context_is_current = 1;
  const Prepared first = all.prepare(unshipped_description(), {.max_batch = 4});
  const int of_one = stub_->modules_loaded;
  stub_->device = 1;
  const Prepared second = all.prepare(unshipped_description(), {.max_batch = 4});
  EXPECT_EQ(stub_->modules_loaded, 2 * of_one);
  EXPECT_EQ(first.device().ordinal, 0);
  EXPECT_EQ(second.device().ordinal, 1);
  stub_->device = 0;
  EXPECT_EQ(all.prepare(unshipped_description(), {.max_batch = 4}).device().ordinal, 0);
  EXPECT_EQ(stub_->modules_loaded, 2 * of_one);
}

TEST_F(SessionTest, AHandleOutlivesItsSession) {
  const Prepared step = prepared();
  step.launch(sample_args(3), nullptr);
  EXPECT_EQ(stub_->launches, 1);
  EXPECT_EQ(step.choose(3).why, Why::interpolated);
}

TEST_F(SessionTest, ALaunchAllocatesNothing) {
  const Prepared step = prepared();
  UpdateArgs args = sample_args(7);
  step.launch(args, nullptr);
  const long before = allocation_count();
  for (int batch = 1; batch <= kMostRows; ++batch) {
    args.x.shape[0] = args.out.shape[0] = args.B.shape[0] = args.C.shape[0] = args.dt.shape[0] = batch;
    step.launch(args, nullptr);
  }
  EXPECT_EQ(allocation_count(), before);
}

TEST_F(SessionTest, ThreadsPrepareAndLaunchAtOnce) {
  const Session all = session();
  stub_->record = 0;
  stub_->threads = 1;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&, i] {
      const Prepared step = all.prepare(unshipped_description(), {.max_batch = kMostRows});
      for (int batch = 1; batch <= kMostRows; ++batch) step.launch(sample_args(batch), reinterpret_cast<void*>(i + 1));
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(stub_->launches, 4 * kMostRows) << "each thread's reached the driver";
}

TEST_F(SessionTest, Row20_AnUnpreparedBatchIsRefusedSayingWhatToPrepare) {
  const Prepared step = prepared();
  const std::string sentence = refusal(step, sample_args(kMostRows + 1));
  EXPECT_THAT(sentence, HasSubstr("batch: got 25 rows"));
  EXPECT_THAT(sentence, HasSubstr("prepared for 1 to 24: call Session::prepare() with max_batch = 25 or more"));
  EXPECT_EQ(error_of([&] { step.choose(0); }).kind(), ErrorKind::invalid);
  EXPECT_EQ(error_of([&] { step.scratch_bytes(25); }).kind(), ErrorKind::invalid);
}

TEST_F(SessionTest, Row20_AnUnpreparedModeIsRefusedSayingWhatToPrepare) {
  UpdateArgs args = sample_args(3);
  args.pdl = Pdl::wait_first;
  const Prepared off = prepared({.max_batch = 4, .chain = false});
  EXPECT_THAT(refusal(off, args), HasSubstr("pdl: got wait_first"));
  EXPECT_THAT(refusal(off, args), HasSubstr("chain = true"));
  EXPECT_EQ(error_of([&] { off.choose(3, PdlMode::chain); }).kind(), ErrorKind::invalid);
  const Prepared chain = prepared({.max_batch = 4, .off = false});
  EXPECT_THAT(refusal(chain, sample_args(3)), HasSubstr("with off = true"));
  chain.launch(args, nullptr);
}

TEST_F(SessionTest, Row20_PreparingUnderCaptureIsRefusedUnlessItIsPreparedAlready) {
  const Session all = session();
  stub_->capturing = 1;
  const Error error = error_of([&] { all.prepare(unshipped_description(), {.max_batch = 8}); });
  EXPECT_EQ(error.kind(), ErrorKind::invalid);
  EXPECT_THAT(error.what(), HasSubstr(unshipped_description().summary()));
  EXPECT_THAT(error.what(), HasSubstr("batches of up to 8"));
  EXPECT_THAT(error.what(), HasSubstr("before the capture begins"));
  stub_->capturing = 0;
  all.prepare(unshipped_description(), {.max_batch = 8});
  stub_->capturing = 1;
  all.prepare(unshipped_description(), {.max_batch = 8}).launch(sample_args(8), nullptr);
  EXPECT_EQ(stub_->launches, 1);
}

TEST_F(SessionTest, WrongArgumentsAreRefusedWithTheKernelsOwnSentence) {
  const Prepared step = prepared();
  const auto change = [&](auto&& how) {
    UpdateArgs args = sample_args(3);
    how(args);
    std::string wanted;
    for (const std::string& line : Kernel::problems(unshipped_description(), args))
      wanted += (wanted.empty() ? "" : "\n") + line;
    EXPECT_FALSE(wanted.empty());
    EXPECT_EQ(refusal(step, args), wanted);
  };
  change([](UpdateArgs& a) { a.size = 8; });
  change([](UpdateArgs& a) { a.x.rank = 0; });
  change([](UpdateArgs& a) { a.x = {}; });
  change([](UpdateArgs& a) { a.x.shape[0] = -1; });
  change([](UpdateArgs& a) { a.x.shape[0] = 1 << 20; });
  change([](UpdateArgs& a) { a.x.shape[0] = kMostRows + 1; });
  change([](UpdateArgs& a) { a.state.dtype = DType::f32; });
  change([](UpdateArgs& a) { a.pdl = static_cast<Pdl>(7); });
  change([](UpdateArgs& a) { a.rand_seed = contiguous(address(16), DType::i64, {1}), a.dt.stride[1] = 3; });
  EXPECT_THAT(refusal(step, RingArgs{}), HasSubstr("got RingArgs for a kernel that updates in place"));
}

TEST_F(SessionTest, Row19_AnEmptyBatchLaunchesNothing) {
  prepared().launch(sample_args(0), nullptr);
  EXPECT_EQ(stub_->launches, 0);
}

TEST_F(SessionTest, AnEmptyHandleIsRefused) {
  const Prepared step;
  EXPECT_THAT(refusal(step, sample_args(1)), HasSubstr("Session::prepare()"));
  EXPECT_EQ(error_of([&] { step.choose(1); }).kind(), ErrorKind::invalid);
  EXPECT_EQ(error_of([&] { step.kernels(); }).kind(), ErrorKind::invalid);
}

TEST_F(SessionTest, AForcedPlanOverridesTheTables) {
  SessionOptions with = options(sample_rows(), unshipped_description());
  seed(unshipped_description(), sample_plan(9));
  const Prepared step =
      Session(with).prepare(unshipped_description(), {.max_batch = kMostRows, .force = sample_plan(9)});
  EXPECT_THAT(step.kernels(), SizeIs(1));
  for (const int batch : {1, 5, 24}) {
    step.launch(sample_args(batch), nullptr);
    expect_launch_of(sample_plan(9), batch);
  }
  EXPECT_EQ(step.choose(4).reason, "forced");
}

TEST_F(SessionTest, WrongOptionsAreRefused) {
  const Session all = session();
  const auto kind = [&](const PrepareOptions& prepare) {
    return error_of([&] { all.prepare(unshipped_description(), prepare); }).kind();
  };
  EXPECT_EQ(kind({.max_batch = 0}), ErrorKind::invalid);
  EXPECT_EQ(kind({.max_batch = 65536}), ErrorKind::invalid);
  EXPECT_EQ(kind({.off = false, .chain = false}), ErrorKind::invalid);
  EXPECT_EQ(kind({.force = Plan{}}), ErrorKind::invalid);
  EXPECT_THAT(error_of([&] {
                all.prepare_all({unshipped_description(), sample_description()}, {.force = Plan{}});
              }).what(),
              HasSubstr("force is the plan of one kernel; got 2 descriptions"));
  EXPECT_EQ(error_of([&] { all.prepare(Description{}); }).kind(), ErrorKind::invalid);
  EXPECT_EQ(error_of([] { Session({.threads = -1}); }).kind(), ErrorKind::invalid);
}

TEST_F(SessionTest, Row24_BeforeSm90EveryModeLaunchesThePlansOfModeOff) {
  stub_->major = 8;
  stub_->name = "NVIDIA A100";
  const Arch sm_80{8, 0, 0};
  SessionOptions with = options({}, unshipped_description());
  const std::vector<PlanRange> ranges = plan_ranges(Table{}, unshipped_description(), "a100", sm_80, 8, PdlMode::off);
  for (const PlanRange& range : ranges) keep_fake(folder(), emit(unshipped_description(), range.plan, sm_80));
  const Prepared step = Session(with).prepare(unshipped_description(), {.max_batch = 8});
  EXPECT_THAT(step.kernels(), SizeIs(ranges.size()));
  UpdateArgs args = sample_args(3);
  args.pdl = Pdl::early_state;
  step.launch(args, nullptr);
  EXPECT_EQ(stub_->last.attributes, 0);
  EXPECT_EQ(step.choose(3, PdlMode::chain).plan, step.choose(3).plan);
}

TEST_F(SessionTest, Row25_WithoutADriverPreparingSaysSo) {
  const Session all = session();
  const ScopedEnvironment none("SSMJIT_LIBCUDA", "/nonexistent/libcuda.so");
  EXPECT_EQ(error_of([&] { all.prepare(unshipped_description()); }).kind(), ErrorKind::missing);
  EXPECT_EQ(all.choose(unshipped_description(), 4, PdlMode::off, "h200", kSm90).plan, sample_plan(1));
}

TEST_F(SessionTest, TheDriversRefusalPasses) {
  const Session all = session();
  stub_->fail_call = "cuModuleLoadData";
  stub_->fail_code = 2;
  EXPECT_EQ(error_of([&] { all.prepare(unshipped_description(), {.max_batch = 4}); }).kind(), ErrorKind::machine);
  stub_->fail_call = nullptr;
  all.prepare(unshipped_description(), {.max_batch = 4}).launch(sample_args(4), nullptr);
}

// ---- ops whose batch is not x's first extent, or whose plans differ in more than a kernel ----

TEST_F(SessionTest, ANormWithoutADimensionOfTokensCountsItsRequests) {
  const Description norm = gated_norm({.channels = 1024, .gate_expr = silu(dsl::z)}).tokens(4);
  SessionOptions with = options({}, norm);
  for (const PdlMode mode : {PdlMode::off, PdlMode::chain})
    for (const PlanRange& range : plan_ranges(shipped_tables(), norm, "h200", kSm90, 8, mode)) seed(norm, range.plan);
  const Prepared step = Session(with).prepare(norm, {.max_batch = 8});
  NormArgs args;
  args.x = args.z = args.out = contiguous(address(0x1000000), DType::bf16, {32, 1024});
  args.weight = contiguous(address(0x2000000), DType::bf16, {1024});
  step.launch(args, nullptr);
  EXPECT_EQ(stub_->launches, 1);
  args.x.shape[0] = args.z.shape[0] = args.out.shape[0] = 36;
  EXPECT_THAT(refusal(step, args), HasSubstr("batch: got 9 rows"));
}

TEST_F(SessionTest, PackedRequestsAreCountedByTheirOffsets) {
  const Description ring = sample_description().tokens(4).store(Ring{.window = 16}).varlen();
  SessionOptions with = options({}, ring);
  for (const PdlMode mode : {PdlMode::off, PdlMode::chain})
    for (const PlanRange& range : plan_ranges(shipped_tables(), ring, "h200", kSm90, 2, mode)) seed(ring, range.plan);
  const Prepared step = Session(with).prepare(ring, {.max_batch = 2});
  RingArgs args;
  const std::int64_t total = 7;
  args.state = contiguous(address(0x1000000), DType::bf16, {32, 16, 64, 128});
  args.x_ring = contiguous(address(0x2000000), DType::bf16, {32, 16, 20, 64});
  args.B_ring = contiguous(address(0x3000000), DType::bf16, {32, 1, 20, 128});
  args.dt_ring = contiguous(address(0x4000000), DType::f32, {32, 16, 20});
  args.ring_start = args.ring_count = contiguous(address(0x5000000), DType::i32, {32});
  args.x = args.out = contiguous(address(0x6000000), DType::bf16, {total, 16, 64});
  args.dt = contiguous(address(0x7000000), DType::f32, {total, 16});
  args.B = args.C = contiguous(address(0x8000000), DType::bf16, {total, 1, 128});
  args.A = args.D = args.dt_bias = contiguous(address(0x9000000), DType::f32, {16});
  args.cu_seqlens = contiguous(address(0xa000000), DType::i32, {3});
  step.launch(args, nullptr);
  EXPECT_EQ(stub_->launches, 1) << "seven tokens of two requests";
  args.cu_seqlens.shape[0] = 4;
  EXPECT_THAT(refusal(step, args), HasSubstr("batch: got 3 rows"));
}

class LayerSession : public SessionTest {
 protected:
  Description layer_ = mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1})
                           .dt(DType::bf16)
                           .with_conv({})
                           .with_norm({.gate_expr = silu(dsl::z)});
  Plan fused_ = default_plan(layer_, kSm90, 16);
  Plan chain_ = default_chain(PlanForm::chain, layer_, kSm90, 16 * 16);

  Prepared prepared() {
    TableRow small = of_kernel(layer_, sample_row(16, 2, 0)), large = of_kernel(layer_, sample_row(256, 5, 0));
    small.op = large.op = Op::layer;
    small.plan = small.between.emplace(fused_);
    large.plan = chain_;
    const std::vector<TableRow> rows{small, large};
    return Session(options(rows, layer_)).prepare(layer_, {.max_batch = 24, .chain = false});
  }
  LayerArgs args(std::int64_t batch, std::int64_t scratch) {
    LayerArgs a;
    a.state = contiguous(address(0x1000000), DType::f32, {64, 16, 64, 128});
    a.conv_state = contiguous(address(0x2000000), DType::bf16, {64, 1280, 3});
    a.x = contiguous(address(0x3000000), DType::bf16, {batch, 1280});
    a.dt = contiguous(address(0x4000000), DType::bf16, {batch, 16});
    a.z = a.out = contiguous(address(0x5000000), DType::bf16, {batch, 16, 64});
    a.conv_weight = contiguous(address(0x6000000), DType::bf16, {1280, 4});
    a.conv_bias = contiguous(address(0x6000000), DType::bf16, {1280});
    a.A = a.D = a.dt_bias = contiguous(address(0x7000000), DType::f32, {16});
    a.norm_weight = contiguous(address(0x8000000), DType::bf16, {1024});
    a.scratch = contiguous(address(0x9000000), DType::i8, {scratch});
    return a;
  }
};

TEST_F(LayerSession, ScratchIsThatOfTheBatchesWhosePlanWantsSome) {
  const Prepared step = prepared();
  EXPECT_EQ(step.scratch_bytes(8), 0) << "one kernel";
  EXPECT_EQ(step.scratch_bytes(16), scratch_bytes(chain_, layer_, 16));
  EXPECT_EQ(step.scratch_bytes(), scratch_bytes(chain_, layer_, 24));
}

TEST_F(LayerSession, OneScratchServesChainsAndFusedLayers) {
  const Prepared step = prepared();
  step.launch(args(8, step.scratch_bytes()), nullptr);
  EXPECT_EQ(stub_->launches, 1);
  step.launch(args(16, step.scratch_bytes()), nullptr);
  EXPECT_EQ(stub_->launches, 4);
}

TEST_F(LayerSession, Row17_ScratchTooSmallForTheBatchIsRefusedWithTheNumbers) {
  const Prepared step = prepared();
  EXPECT_THAT(refusal(step, args(24, step.scratch_bytes(16))), HasSubstr("a chain of 24 rows wants int8 of shape ["));
}

}  // namespace
}  // namespace ssmjit
