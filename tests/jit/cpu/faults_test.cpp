// Each planted fault is found by its own name, at its own line, thread and buffer; and what is right has no finding.
#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "jit/cpu/shadow.h"
#include "planted_kernel.h"

namespace ssmjit {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

std::string all_texts(const std::vector<CpuFinding>& findings) {
  std::string s;
  for (const CpuFinding& f : findings) s += f.text() + "\n";
  return s;
}

// The first finding of this kind under any schedule.
CpuFinding find(PlantedKernel& kernel, CpuFault fault) {
  const std::vector<CpuFinding> findings = kernel.run_all();
  for (const CpuFinding& f : findings)
    if (f.fault == fault) return f;
  ADD_FAILURE() << "no finding is \"" << name(fault) << "\" among:\n" << all_texts(findings);
  return {};
}

// Which of the two lines of a race is reported depends on who came first; the sentence names both.
void expect_between(const PlantedKernel& k, const CpuFinding& f, const std::string& one, const std::string& other) {
  const int lines[] = {k.line(one), k.line(other)};
  ASSERT_TRUE(f.line == lines[0] || f.line == lines[1]) << f.text();
  EXPECT_THAT(f.text(), HasSubstr("(line " + std::to_string(f.line == lines[0] ? lines[1] : lines[0]) + ")"));
}

void expect_clean(PlantedKernel& kernel) {
  const std::vector<CpuFinding> findings = kernel.run_all();
  EXPECT_TRUE(findings.empty()) << all_texts(findings);
}

class CpuFaults : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string missing = cpu_executor_missing(); !missing.empty()) GTEST_SKIP() << missing;
  }
};

// ---- copies ----

constexpr const char* kCopy = R"(  extern __shared__ __align__(16) float tile[];
  copy_async(tile + 4 * t, in + 4 * t);
  copy_async_commit();
)";

TEST_F(CpuFaults, ACopyThatIsNotWaitedForIsFoundWhereItsBytesAreRead) {
  PlantedKernel k(std::string(kCopy) + "  out[t] = tile[4 * t];  // here\n", 128);
  k.launch.smem_bytes = 512;
  const CpuFinding f = find(k, CpuFault::unwaited_copy);
  EXPECT_EQ(f.line, k.line("// here"));
  EXPECT_EQ(f.buffer, "tile");
  EXPECT_EQ(f.offset, 16 * f.thread);
  EXPECT_THAT(f.text(), HasSubstr("kernel.cu:" + std::to_string(f.line)));
}

TEST_F(CpuFaults, TheBytesOfAnUnwaitedCopyAreNanWithoutChecksToo) {
  PlantedKernel k(std::string(kCopy) + "  out[t] = tile[4 * t];\n", 128);
  k.launch.smem_bytes = 512;
  k.options.checks = false;
  EXPECT_TRUE(k.run().clean());
  EXPECT_TRUE(std::isnan(k.out[5]));
}

TEST_F(CpuFaults, AWaitForAnEarlierGroupDoesNotCoverTheLatest) {
  PlantedKernel k(std::string(kCopy) + R"(  copy_async_wait<1>();
  out[t] = tile[4 * t];  // here
)",
                  128);
  k.launch.smem_bytes = 512;
  EXPECT_EQ(find(k, CpuFault::unwaited_copy).line, k.line("// here"));
}

TEST_F(CpuFaults, ACopyThatIsWaitedForIsClean) {
  PlantedKernel k(std::string(kCopy) + "  copy_async_wait<0>();\n  out[t] = tile[4 * t];\n", 128);
  k.launch.smem_bytes = 512;
  expect_clean(k);
  EXPECT_EQ(k.out[5], 20);
}

TEST_F(CpuFaults, AnotherThreadsCopyNeedsABarrierBehindTheWait) {
  PlantedKernel k(std::string(kCopy) + "  copy_async_wait<0>();\n  out[t] = tile[4 * (t ^ 1)];  // here\n", 128);
  k.launch.smem_bytes = 512;
  const CpuFinding f = find(k, CpuFault::race);
  expect_between(k, f, "// here", "copy_async(tile");
  EXPECT_EQ(f.buffer, "tile");
}

constexpr const char* kStore = R"(  __shared__ __align__(16) float tile[128];
  for (int i = 0; i < 4; ++i) tile[4 * t + i] = in[4 * t + i];
  ssmjit_cpu_copy(1, out + 4 * t, tile + 4 * t, 16, 16, 16);
  ssmjit_cpu_copy_commit(1);
)";

TEST_F(CpuFaults, ACopyOutOfSharedMemoryNeedsItsSourceUntilItIsWaitedFor) {
  PlantedKernel wrong(std::string(kStore) + "  tile[4 * t] = 1.0f;  // here\n  ssmjit_cpu_copy_wait(1, 0);\n", 128);
  const CpuFinding f = find(wrong, CpuFault::unwaited_copy);
  EXPECT_EQ(f.line, wrong.line("// here"));
  EXPECT_THAT(f.text(), HasSubstr("still to read"));
  PlantedKernel right(std::string(kStore) + "  ssmjit_cpu_copy_wait(1, 0);\n  tile[4 * t] = 1.0f;\n", 128);
  expect_clean(right);
  EXPECT_EQ(right.out, right.in);
}

TEST_F(CpuFaults, AWaitForTheReadingOfABulkStoreFreesItsSourceAndNotItsTarget) {
  PlantedKernel right(std::string(kStore) + "  bulk_store_wait_read<0>();\n  tile[4 * t] = -1.0f;\n", 128);
  expect_clean(right);
  EXPECT_EQ(right.out, right.in);
  PlantedKernel wrong(std::string(kStore) + "  bulk_store_wait_read<0>();\n  out[4 * t] += 1.0f;  // here\n", 128);
  const CpuFinding f = find(wrong, CpuFault::unwaited_copy);
  EXPECT_EQ(f.line, wrong.line("// here"));
  EXPECT_EQ(f.buffer, "out");
  EXPECT_EQ(f.offset, 16 * f.thread);
  EXPECT_THAT(f.text(), HasSubstr("still to bring"));
  PlantedKernel waited(
      std::string(kStore) + "  bulk_store_wait_read<0>();\n  bulk_store_wait<0>();\n  out[4 * t] += 1.0f;\n", 128);
  expect_clean(waited);
  EXPECT_EQ(waited.out[8], 9);
}

TEST_F(CpuFaults, AThreadThatReturnsBeforeItsBulkStoresHaveReadIsFound) {
  PlantedKernel k(kStore, 128);
  const CpuFinding f = find(k, CpuFault::unwaited_copy);
  EXPECT_EQ(f.line, k.line("ssmjit_cpu_copy(1"));
  EXPECT_EQ(f.buffer, "tile");
  EXPECT_EQ(f.offset, 16 * f.thread);
  EXPECT_THAT(f.text(), HasSubstr("returns while its copy is still to read 16 bytes"));
  PlantedKernel newest(std::string(kStore) + "  bulk_store_wait_read<1>();\n", 128);
  EXPECT_EQ(find(newest, CpuFault::unwaited_copy).line, newest.line("ssmjit_cpu_copy(1"));
}

TEST_F(CpuFaults, TheEndOfOneCopyIsNotTheEndOfAnotherFromTheSameSource) {
  const std::string body = R"(  __shared__ __align__(16) float tile[128];
  for (int i = 0; i < 4; ++i) tile[4 * t + i] = in[4 * t + i];
  ssmjit_cpu_copy(1, out + 4 * t, tile + 4 * t, 16, 16, 16);
  ssmjit_cpu_copy_commit(1);
  ssmjit_cpu_copy(1, out + 128 + 4 * t, tile + 4 * t, 16, 16, 16);
  ssmjit_cpu_copy_commit(1);
  ssmjit_cpu_copy_wait(1, PENDING);
  tile[4 * t] = 1.0f;  // here
  ssmjit_cpu_copy_wait(1, 0);
)";
  const auto with = [&](const char* pending) {
    std::string s = body;
    return s.replace(s.find("PENDING"), 7, pending);
  };
  PlantedKernel wrong(with("1"), 256);
  const CpuFinding f = find(wrong, CpuFault::unwaited_copy);
  EXPECT_EQ(f.line, wrong.line("// here"));
  EXPECT_EQ(f.buffer, "tile");
  EXPECT_THAT(f.text(), HasSubstr("still to read"));
  PlantedKernel right(with("0"), 256);
  expect_clean(right);
}

TEST_F(CpuFaults, ACopyOfFewerBytesThanItsTargetFillsWithZeros) {
  PlantedKernel k(R"(  __shared__ __align__(16) float tile[128];
  ssmjit_cpu_copy(0, tile + 4 * t, in + 4 * t, 16, 4, 4);
  ssmjit_cpu_copy_commit(0);
  ssmjit_cpu_copy_wait(0, 0);
  for (int i = 0; i < 4; ++i) out[4 * t + i] = tile[4 * t + i];
)",
                  128);
  expect_clean(k);
  EXPECT_EQ(k.out[40], 40);
  EXPECT_EQ(k.out[41], 0);
}

constexpr const char* kBulk = R"(  extern __shared__ __align__(128) unsigned char memory[];
  float* tile = reinterpret_cast<float*>(memory);
  Barrier* full = reinterpret_cast<Barrier*>(memory + 256);
  if (t == 0) barrier_init(full, 1);
  barrier_init_fence();
  sync_warp();
  if (t == 0) {
    barrier_arrive_expect(full, 256);
    bulk_load(tile, in, 256, full);
  }
)";

TEST_F(CpuFaults, ABulkCopyIsThereOnceItsBarrierIsWaitedFor) {
  PlantedKernel k(std::string(kBulk) + "  barrier_wait(full, 0);\n  out[t] = tile[t];\n");
  k.launch.smem_bytes = 264;
  expect_clean(k);
  EXPECT_EQ(k.out[31], 31);
}

TEST_F(CpuFaults, ABulkCopyThatIsNotWaitedForIsFound) {
  PlantedKernel k(std::string(kBulk) + "  out[t] = tile[t];  // here\n");
  k.launch.smem_bytes = 264;
  const CpuFinding f = find(k, CpuFault::unwaited_copy);
  EXPECT_EQ(f.line, k.line("// here"));
  EXPECT_EQ(f.buffer, "memory");
}

TEST_F(CpuFaults, AnMbarrierUsedBeforeEveryoneKnowsOfItIsFound) {
  PlantedKernel k(R"(  extern __shared__ __align__(128) unsigned char memory[];
  Barrier* full = reinterpret_cast<Barrier*>(memory);
  if (t == 0) barrier_init(full, 32);
  barrier_arrive_expect(full, 0);  // here
  barrier_wait(full, 0);
  out[t] = 0.0f;
)");
  k.launch.smem_bytes = 8;
  CpuReport report = k.run(CpuSchedule::forward);
  ASSERT_FALSE(report.clean());
  EXPECT_EQ(report.findings[0].fault, CpuFault::race) << report.findings[0].text();
  EXPECT_EQ(report.findings[0].line, k.line("// here"));
  report = k.run(CpuSchedule::reverse);
  ASSERT_FALSE(report.clean());
  EXPECT_EQ(report.findings[0].fault, CpuFault::misuse) << report.findings[0].text();
  EXPECT_THAT(report.findings[0].text(), HasSubstr("was not initialised"));
}

// ---- order ----

TEST_F(CpuFaults, AMissingBlockBarrierIsARace) {
  PlantedKernel k(R"(  __shared__ float tile[64];
  tile[t] = in[t];  // writes
  out[t] = tile[63 - t];  // reads
)");
  k.launch.block_threads = 64;
  const CpuFinding f = find(k, CpuFault::race);
  expect_between(k, f, "// reads", "// writes");
  EXPECT_EQ(f.buffer, "tile");
}

TEST_F(CpuFaults, ABarrierBetweenMakesItClean) {
  PlantedKernel k(R"(  __shared__ float tile[64];
  tile[t] = in[t];
  ssmjit_cpu_block_barrier();
  out[t] = tile[63 - t];
)");
  k.launch.block_threads = 64;
  expect_clean(k);
  EXPECT_EQ(k.out[1], 62);
}

TEST_F(CpuFaults, AWriteBehindManyReadersNeedsABarrierToo) {
  PlantedKernel k(R"(  __shared__ float tile[1];
  if (t == 0) tile[0] = in[0];
  ssmjit_cpu_block_barrier();
  out[t] = tile[0];
  if (t == 0) tile[0] = 1.0f;  // here
)");
  k.launch.block_threads = 64;
  EXPECT_EQ(find(k, CpuFault::race).buffer, "tile");
}

TEST_F(CpuFaults, AMissingWarpBarrierIsARaceWithinTheWarp) {
  PlantedKernel k(R"(  __shared__ float tile[32];
  tile[t] = in[t];
  out[t] = tile[t ^ 1];  // here
)");
  const CpuFinding f = find(k, CpuFault::race);
  EXPECT_EQ(f.buffer, "tile");
  expect_between(k, f, "tile[t] = in[t]", "// here");
}

TEST_F(CpuFaults, AWarpBarrierOrdersTheWarpButNotTheBlock) {
  const std::string body = R"(  __shared__ float tile[64];
  tile[t] = in[t];
  sync_warp();
  out[t] = tile[t ^ DISTANCE];  // here
)";
  const auto with = [&](const char* distance) {
    std::string s = body;
    return s.replace(s.find("DISTANCE"), 8, distance);
  };
  PlantedKernel within(with("1"));
  within.launch.block_threads = 64;
  expect_clean(within);
  PlantedKernel across(with("32"));
  across.launch.block_threads = 64;
  expect_between(across, find(across, CpuFault::race), "tile[t] = in[t]", "// here");
}

TEST_F(CpuFaults, AShuffleAVoteAndASumOrderNoMemory) {
  const char* const collectives[] = {
      "float q = shuffle_xor(in[t], 1)",
      "float q = ballot_lanes(in[t] > 3.0f)",
      "float q = sum_lanes(in[t])",
      "float q = max_lanes(in[t])",
      "float q = scan_lanes(in[t])",
      "float q = in[t]; RowSums<1, 32>::sum(&q, t)",
      "float d[4] = {}; u32 a[4] = {}, b[2] = {}; mma_m16n8k16(d, a, b, bf16{}); float q = d[0]",
  };
  for (const char* collective : collectives) {
    SCOPED_TRACE(collective);
    const std::string start =
        "  __shared__ float tile[32];\n  tile[t] = in[t];  // writes\n  " + std::string(collective);
    const std::string end = "  out[t] = q + tile[t ^ 1];  // reads\n";
    PlantedKernel wrong(start + ";\n" + end);
    const CpuFinding f = find(wrong, CpuFault::race);
    expect_between(wrong, f, "// reads", "// writes");
    EXPECT_EQ(f.buffer, "tile");
    PlantedKernel right(start + ";\n  sync_warp();\n" + end);
    expect_clean(right);
  }
}

TEST_F(CpuFaults, ASecondArrivalBringsWhatItsThreadLearntSinceTheFirst) {
  PlantedKernel k(R"(  __shared__ float tile[1];
  __shared__ Barrier bar;
  if (t == 0) barrier_init(&bar, 2);
  ssmjit_cpu_block_barrier();
  sync_warp();
  if (t < 32) {
    if (t == 0) barrier_arrive(&bar);
    if (t == 5) tile[0] = in[5];  // writes
    SYNC;
    if (t == 0) barrier_arrive(&bar);
    out[t] = 0.0f;
  } else {
    barrier_wait(&bar, 0);
    out[t] = tile[0];  // reads
  }
)");
  k.launch.block_threads = 64;
  const std::string text = k.text;
  const std::size_t at = text.find("SYNC");
  k.text = std::string(text).replace(at, 4, "sync_warp()");
  expect_clean(k);
  EXPECT_EQ(k.out[40], 5);
  k.text = std::string(text).replace(at, 4, "");
  k.out.assign(k.out.size(), 0.0f);
  expect_between(k, find(k, CpuFault::race), "// reads", "// writes");
}

TEST_F(CpuFaults, ANamedBarrierOrdersThoseThatMeetThere) {
  const std::string body = R"(  __shared__ float tile[96];
  tile[t] = in[t];
  if (t < 64) ssmjit_cpu_named_barrier(1, 64);
  if (t < 64) out[t] = tile[WHOSE];  // here
)";
  const auto with = [&](const char* whose) {
    std::string s = body;
    return s.replace(s.find("WHOSE"), 5, whose);
  };
  PlantedKernel met(with("63 - t"), 96);
  met.launch.block_threads = 96;
  expect_clean(met);
  PlantedKernel stranger(with("64 + t / 2"), 96);
  stranger.launch.block_threads = 96;
  EXPECT_EQ(find(stranger, CpuFault::race).buffer, "tile");
}

TEST_F(CpuFaults, TwoBlocksThatWriteTheSameBytesAreARace) {
  PlantedKernel k("  out[t] = in[t] + static_cast<float>(block_x());  // here\n");
  k.launch.grid_x = 3;
  const CpuFinding f = find(k, CpuFault::race);
  EXPECT_EQ(f.line, k.line("// here"));
  EXPECT_EQ(f.buffer, "out");
  EXPECT_EQ(f.offset, 4 * f.thread);
  EXPECT_THAT(f.text(), HasSubstr("of block ("));
}

TEST_F(CpuFaults, ABlockThatReadsWhatAnotherWritesIsARace) {
  PlantedKernel k(R"(  if (block_x() == 0) out[t] = in[t];
  if (block_x() == 1) out[32 + t] = out[t];
)");
  k.launch.grid_x = 2;
  EXPECT_EQ(find(k, CpuFault::race).buffer, "out");
}

TEST_F(CpuFaults, AtomicAdditionsAreNoRace) {
  PlantedKernel k("  add_global(reinterpret_cast<u64*>(out), 1);\n", 2);
  k.launch.grid_x = 4;
  k.launch.buffers[1].initialised = true;
  k.out.assign(2, 0.0f);
  EXPECT_TRUE(k.run().clean());
  std::uint64_t sum;
  std::memcpy(&sum, k.out.data(), 8);
  EXPECT_EQ(sum, 128u);
}

TEST_F(CpuFaults, HalvesOfAWordMayBelongToTwoThreads) {
  PlantedKernel k("  reinterpret_cast<u16*>(out)[t] = static_cast<u16>(t);\n");
  expect_clean(k);
}

TEST_F(CpuFaults, ALoadThatMayMeetAnAppendIsPoisonAndNoRace) {
  PlantedKernel k(R"(  if (block_x() == 0 && t == 0) store_global<false>(out, Vec16{{1, 2, 3, 4}});
  if (block_x() == 1 && t == 0) store_global<false>(out + 4, load_maybe_appended<true>(out));
)");
  k.launch.grid_x = 2;
  k.launch.buffers[1].initialised = true;
  k.out.assign(k.out.size(), 7.0f);
  CpuReport report = k.run(CpuSchedule::forward);
  EXPECT_TRUE(report.clean()) << all_texts(report.findings);
  EXPECT_TRUE(std::isnan(k.out[4]));
  k.out.assign(k.out.size(), 7.0f);
  report = k.run(CpuSchedule::reverse);
  EXPECT_TRUE(report.clean()) << all_texts(report.findings);
  EXPECT_EQ(k.out[4], 7.0f);
}

// ---- meetings ----

TEST_F(CpuFaults, ADivergentShuffleIsFound) {
  PlantedKernel k(R"(  float v = in[t];
  if (t < 16) v = *ssmjit_cpu_all_lanes(0xffffffffu, kSsmjitCpuShuffle, v);  // here
  out[t] = v;
)");
  const CpuFinding f = find(k, CpuFault::divergent);
  EXPECT_EQ(f.line, k.line("// here"));
  EXPECT_LT(f.thread, 16);
  EXPECT_THAT(f.text(), HasSubstr("thread 16 has ended"));
}

TEST_F(CpuFaults, LanesThatComeToDifferentOperationsAreFound) {
  PlantedKernel k(R"(  float v = in[t];
  if (t < 16)
    v = *ssmjit_cpu_all_lanes(0xffffffffu, kSsmjitCpuShuffle, v);  // one
  else
    sync_warp();  // other
  out[t] = v;
)");
  const CpuFinding f = find(k, CpuFault::divergent);
  EXPECT_TRUE(f.line == k.line("// one") || f.line == k.line("// other")) << f.text();
}

TEST_F(CpuFaults, ABlockBarrierThatSomeThreadsMissIsFound) {
  PlantedKernel k("  if (t < 40) ssmjit_cpu_block_barrier();  // here\n  out[t] = in[t];\n");
  k.launch.block_threads = 64;
  const CpuFinding f = find(k, CpuFault::divergent);
  EXPECT_EQ(f.line, k.line("// here"));
  EXPECT_THAT(f.text(), HasSubstr("thread 40"));
}

TEST_F(CpuFaults, HalvesOfAWarpAtTwoBlockBarriersAreDivergent) {
  PlantedKernel k(R"(  if (t % 32 < 16) {
    sync_block();  // one
    out[t] = in[t];
  } else {
    out[t] = 0.0f;
    sync_block();  // other
  }
)");
  k.launch.block_threads = 64;
  const CpuFinding f = find(k, CpuFault::divergent);
  EXPECT_THAT(f.text(), HasSubstr("comes to the block's barrier while thread"));
  expect_between(k, f, "// one", "// other");
  PlantedKernel one_line(
      "  if (t < 16) { sync_block(); out[t] = in[t]; } else { out[t] = 0.0f; sync_block(); }  // here\n");
  EXPECT_EQ(find(one_line, CpuFault::divergent).line, one_line.line("// here"));
}

TEST_F(CpuFaults, WarpsMayComeToTheBlocksBarrierAtDifferentPlaces) {
  PlantedKernel k(R"(  __shared__ float tile[64];
  tile[t] = in[t];
  if (t < 32) {
    sync_block();
    out[t] = tile[63 - t];
  } else {
    out[t] = 0.0f;
    sync_block();
  }
)");
  k.launch.block_threads = 64;
  expect_clean(k);
}

TEST_F(CpuFaults, LanesOfTwoWarpsMakeNoWholeWarpOfANamedBarrier) {
  PlantedKernel k(R"(  if (t % 32 < 16) sync_named(1, 32);  // one
  out[t] = in[t];
  sync_block();  // other
)");
  k.launch.block_threads = 64;
  const CpuFinding f = find(k, CpuFault::divergent);
  EXPECT_THAT(f.text(), HasSubstr("named barrier 1"));
  expect_between(k, f, "// one", "// other");
  PlantedKernel arrives(R"(  if (t < 32 && t % 2 == 0) arrive_named(1, 64);  // here
  if (t >= 32) sync_named(1, 64);
  out[t] = in[t];
)");
  arrives.launch.block_threads = 64;
  const CpuFinding half = find(arrives, CpuFault::divergent);
  EXPECT_EQ(half.line, arrives.line("// here"));
  EXPECT_THAT(half.text(), HasSubstr("16 lanes that do not come: thread 1 has ended"));
}

TEST_F(CpuFaults, AWarpOfFewerLanesCountsAsAWholeOneAtANamedBarrier) {
  PlantedKernel k(R"(  __shared__ float tile[48];
  tile[t] = in[t];
  sync_named(1, 64);
  out[t] = tile[47 - t];
)",
                  48);
  k.launch.block_threads = 48;
  expect_clean(k);
  EXPECT_EQ(k.out[40], 7);
}

TEST_F(CpuFaults, NamedBarrier0IsTheBlocks) {
  PlantedKernel k("  sync_named(0, 32);  // here\n  out[t] = in[t];\n");
  const CpuFinding f = find(k, CpuFault::misuse);
  EXPECT_EQ(f.line, k.line("// here"));
  EXPECT_THAT(f.text(), HasSubstr("0 is the block's"));
}

TEST_F(CpuFaults, ABlockBarrierThatAWarpMissesBecauseItReturnedIsFound) {
  PlantedKernel k("  if (t >= 32) return;\n  sync_block();  // here\n  out[t] = in[t];\n");
  k.launch.block_threads = 64;
  const CpuFinding f = find(k, CpuFault::divergent);
  EXPECT_EQ(f.line, k.line("// here"));
  EXPECT_THAT(f.text(), HasSubstr("thread 32, which has ended"));
}

TEST_F(CpuFaults, ThreadsThatWaitForEachOtherAreADeadlock) {
  PlantedKernel k(R"(  if (t < 32)
    ssmjit_cpu_named_barrier(1, 64);  // one
  else
    ssmjit_cpu_named_barrier(2, 64);  // other
  out[t] = in[t];
)");
  k.launch.block_threads = 64;
  const CpuFinding f = find(k, CpuFault::deadlock);
  EXPECT_EQ(f.line, k.line("// one"));
  EXPECT_THAT(f.text(), HasSubstr("line " + std::to_string(k.line("// other"))));
}

TEST_F(CpuFaults, APhaseThatNeverEndsIsADeadlockThatSaysWhatIsMissing) {
  PlantedKernel k(R"(  extern __shared__ __align__(128) unsigned char memory[];
  Barrier* full = reinterpret_cast<Barrier*>(memory);
  if (t == 0) {
    barrier_init(full, 1);
    barrier_arrive_expect(full, 64);
  }
  sync_warp();
  barrier_wait(full, 0);  // here
  out[t] = in[t];
)");
  k.launch.smem_bytes = 8;
  const CpuFinding f = find(k, CpuFault::deadlock);
  EXPECT_EQ(f.line, k.line("// here"));
  EXPECT_THAT(f.text(), HasSubstr("64 of 64 bytes are missing"));
}

TEST_F(CpuFaults, AnInfiniteLoopEndsAtTheTimeOut) {
  PlantedKernel k(R"(  volatile int going = 1;
  while (going) {  // here
  }
  out[t] = in[t];
)");
  k.launch.timeout_s = 0.2;
  const CpuReport report = k.run();
  ASSERT_EQ(report.findings.size(), 1u);
  EXPECT_EQ(report.findings[0].fault, CpuFault::endless);
  EXPECT_EQ(report.findings[0].line, k.line("// here"));
  EXPECT_LT(report.seconds, 5);
}

TEST_F(CpuFaults, AThreadThatSpinsLetsTheOthersGoOn) {
  PlantedKernel k(R"(  __shared__ volatile int flag[1];
  if (t == 0) flag[0] = 0;
  sync_warp();
  if (t == 31) flag[0] = 1;
  while (flag[0] == 0) {
  }
  out[t] = in[t];
)");
  expect_clean(k);
}

TEST_F(CpuFaults, ALoopOfGotosWithTwoWaysInEndsAtTheTimeOut) {
  PlantedKernel k(R"(  volatile int q = 0;
  if (in[t] > 3.0f) goto second;
first:
  q = q + 1;
second:
  q = q + 2;
  if (q != -2) goto first;  // here
  out[t] = in[t];
)");
  k.launch.timeout_s = 0.2;
  const CpuReport report = k.run();
  ASSERT_EQ(report.findings.size(), 1u);
  EXPECT_EQ(report.findings[0].fault, CpuFault::endless);
  EXPECT_GE(report.findings[0].line, k.line("first:"));
  EXPECT_LE(report.findings[0].line, k.line("// here"));
}

// ---- places ----

TEST_F(CpuFaults, AnIndexOutOfALocalArrayIsFound) {
  PlantedKernel write(R"(  int a[4] = {1, 2, 3, 4};
  const int far = static_cast<int>(in[t]) - 1;
  a[far * 100000] = 7;  // here
  out[t] = static_cast<float>(a[far & 3]);
)");
  const CpuReport report = write.run();
  ASSERT_EQ(report.findings.size(), 1u) << all_texts(report.findings);
  const CpuFinding& f = report.findings[0];
  EXPECT_EQ(f.fault, CpuFault::out_of_bounds);
  EXPECT_EQ(f.line, write.line("// here"));
  EXPECT_EQ(f.thread, 0);
  EXPECT_EQ(f.buffer, "a");
  EXPECT_EQ(f.offset, -400000);
  EXPECT_THAT(f.text(), HasSubstr("writes 4 bytes outside a, which has 16 bytes"));
  PlantedKernel next(R"(  float a[31];
  for (int i = 0; i < 31; ++i) a[i] = in[i + block_y()];
  out[t] = a[static_cast<int>(in[t])];  // here
)");
  const CpuFinding read = find(next, CpuFault::out_of_bounds);
  EXPECT_EQ(read.line, next.line("// here"));
  EXPECT_EQ(read.thread, 31);
  EXPECT_EQ(read.buffer, "a");
  EXPECT_EQ(read.offset, 124);
  PlantedKernel walk(R"(  float a[8];
  float* p = a;
  for (int i = 0; i <= static_cast<int>(in[8]); ++i) *p++ = in[t];  // here
  out[t] = a[static_cast<int>(in[t & 7])];
)");
  EXPECT_EQ(find(walk, CpuFault::out_of_bounds).line, walk.line("// here"));
}

TEST_F(CpuFaults, AnIndexWithinALocalArrayIsClean) {
  PlantedKernel k(R"(  float a[32];
  for (int i = 0; i < 32; ++i) a[static_cast<int>(in[i])] = in[i];
  out[t] = a[static_cast<int>(in[t])];
)");
  expect_clean(k);
  EXPECT_EQ(k.out[31], 31);
}

TEST_F(CpuFaults, AnIndexOutOfAConstantTableIsFound) {
  PlantedKernel k("");
  k.source(R"(__device__ const int table[4] = {1, 2, 3, 4};
extern "C" __global__ void k(const float* in, float* out) {
  const int t = thread_index();
  out[t] = static_cast<float>(table[static_cast<int>(in[t]) * 10000000]);  // here
}
)");
  const CpuFinding f = find(k, CpuFault::out_of_bounds);
  EXPECT_EQ(f.line, k.line("// here"));
  EXPECT_NE(f.thread, 0);
  EXPECT_EQ(f.buffer, "table");
  EXPECT_EQ(f.offset, 40000000 * static_cast<std::int64_t>(f.thread));
}

TEST_F(CpuFaults, AWriteToAConstantTableIsFound) {
  PlantedKernel k("");
  k.source(R"(__device__ const int table[4] = {1, 2, 3, 4};
extern "C" __global__ void k(const float* in, float* out) {
  const int t = thread_index();
  int* volatile p = const_cast<int*>(table);
  p[static_cast<int>(in[t]) & 3] = 5;  // here
  out[t] = static_cast<float>(p[t & 3]);
}
)");
  const CpuFinding f = find(k, CpuFault::out_of_bounds);
  EXPECT_EQ(f.line, k.line("// here"));
  EXPECT_THAT(f.text(), HasSubstr("a constant"));
}

TEST_F(CpuFaults, AnotherThreadsVariablesAreOutOfBounds) {
  PlantedKernel k(R"(  volatile int mine = t;
  const u64 theirs = reinterpret_cast<u64>(&mine) + (t < 16 ? 1 : -1) * (u64{1} << 17);
  const int v = *reinterpret_cast<const volatile int*>(theirs);  // here
  out[t] = static_cast<float>(v);
)");
  const CpuFinding f = find(k, CpuFault::out_of_bounds);
  EXPECT_EQ(f.line, k.line("// here"));
}

TEST_F(CpuFaults, ACallThroughAPointerThatIsNoFunctionIsFound) {
  PlantedKernel k(R"(  typedef void (*Function)();
  Function f = reinterpret_cast<Function>(static_cast<u64>(in[t]));
  f();  // here
  out[t] = 0.0f;
)");
  const CpuReport report = k.run();
  ASSERT_EQ(report.findings.size(), 1u) << all_texts(report.findings);
  EXPECT_EQ(report.findings[0].fault, CpuFault::misuse);
  EXPECT_EQ(report.findings[0].line, k.line("// here"));
  EXPECT_EQ(report.findings[0].thread, 0);
  EXPECT_THAT(report.findings[0].text(), HasSubstr("null pointer"));
  PlantedKernel good("");
  good.source(R"(__device__ __noinline__ float one(float v) { return v + 1.0f; }
__device__ __noinline__ float two(float v) { return v + 2.0f; }
extern "C" __global__ void k(const float* in, float* out) {
  const int t = thread_index();
  float (*f)(float) = static_cast<int>(in[t]) % 2 == 0 ? one : two;
  out[t] = f(in[t]);
}
)");
  expect_clean(good);
  EXPECT_EQ(good.out[5], 7);
  good.options.debug = true;
  good.options.debug_folder = testing::TempDir() + "/ssmjit_cpu_calls";
  expect_clean(good);
}

TEST_F(CpuFaults, AWildAddressEndsTheRunUnderEveryChoiceOfChecks) {
  for (const auto& [races, bounds] : {std::pair{true, false}, {false, true}, {false, false}}) {
    PlantedKernel k("  out[t] = *reinterpret_cast<const float*>(static_cast<u64>(in[t] + 1.0f) << 20);  // here\n");
    k.launch.races = races;
    k.launch.bounds = bounds;
    const CpuReport report = k.run();
    ASSERT_EQ(report.findings.size(), 1u) << all_texts(report.findings);
    EXPECT_EQ(report.findings[0].fault, CpuFault::out_of_bounds);
    EXPECT_EQ(report.findings[0].line, k.line("// here"));
    EXPECT_EQ(report.findings[0].thread, 0);
  }
}

TEST_F(CpuFaults, AnOffByOneLoadIsOutOfBounds) {
  PlantedKernel k("  out[t] = in[t + 33];  // here\n");
  const CpuFinding f = find(k, CpuFault::out_of_bounds);
  EXPECT_EQ(f.line, k.line("// here"));
  EXPECT_EQ(f.thread, 31);
  EXPECT_EQ(f.buffer, "in");
  EXPECT_EQ(f.offset, 256);
}

TEST_F(CpuFaults, AnOffByOneStoreIsOutOfBounds) {
  PlantedKernel k("  out[t + 33] = in[t];  // here\n");
  const CpuFinding f = find(k, CpuFault::out_of_bounds);
  EXPECT_EQ(f.line, k.line("// here"));
  EXPECT_EQ(f.thread, 31);
  EXPECT_EQ(f.buffer, "out");
  EXPECT_EQ(f.offset, 256);
}

TEST_F(CpuFaults, AStoreToAnInputIsOutOfBounds) {
  PlantedKernel k("  const_cast<float*>(in)[t] = 0.0f;  // here\n  out[t] = 0.0f;\n");
  const CpuFinding f = find(k, CpuFault::out_of_bounds);
  EXPECT_EQ(f.line, k.line("// here"));
  EXPECT_EQ(f.buffer, "in");
}

TEST_F(CpuFaults, ANullPointerIsOutOfBounds) {
  PlantedKernel k(
      "  out[t] = in[t];\n  const float* none = nullptr;\n  out[t] += load_now_b32(none + t + block_y());  // here\n");
  const CpuFinding f = find(k, CpuFault::out_of_bounds);
  EXPECT_EQ(f.line, k.line("// here"));
  EXPECT_THAT(f.text(), HasSubstr("null pointer"));
}

TEST_F(CpuFaults, AnAccessPastSharedMemoryIsOutOfBounds) {
  PlantedKernel k(R"(  extern __shared__ float tile[];
  tile[t + 1] = in[t];  // here
  out[t] = 0.0f;
)");
  k.launch.smem_bytes = 128;
  const CpuFinding f = find(k, CpuFault::out_of_bounds);
  EXPECT_EQ(f.line, k.line("// here"));
  EXPECT_EQ(f.thread, 31);
  EXPECT_EQ(f.buffer, "tile");
  EXPECT_EQ(f.offset, 128);
}

TEST_F(CpuFaults, AMisalignedVectorAccessIsFound) {
  PlantedKernel k("  if (t == 3) store_global<false>(out, load_global<true>(in + t));  // here\n");
  const CpuFinding f = find(k, CpuFault::misaligned);
  EXPECT_EQ(f.line, k.line("// here"));
  EXPECT_EQ(f.thread, 3);
  EXPECT_EQ(f.buffer, "in");
  EXPECT_EQ(f.offset, 12);
}

TEST_F(CpuFaults, AnOperationOnMemoryOfTheOtherKindIsFound) {
  const struct {
    const char* statement;
    const char* buffer;
    const char* text;
  } cases[] = {
      {"store_global<false>(out + 4 * t, load_shared(in + 4 * t))", "in",
       "reads 16 bytes that are not in shared memory"},
      {"store_global<false>(out + 4 * t, load_global<true>(tile + 4 * t))", "tile", "reads 16 bytes of shared memory"},
      {"store_global<true>(tile + 4 * t, load_global<true>(in + 4 * t))", "tile", "writes 16 bytes of shared memory"},
      {"load_now(tile + t, out[t])", "tile", "reads 4 bytes of shared memory"},
      {"copy_async(out + 4 * t, in + 4 * t)", "out", "copies over 16 bytes that are not in shared memory"},
      {"copy_async(tile + 4 * t, tile + 128 + 4 * t)", "tile", "copies 16 bytes of shared memory"},
      {"copy_async_short<8>(out + 4 * t, in + 4 * t)", "out", "copies over 8 bytes that are not"},
      {"if (t == 0) bulk_store(tile, tile + 128, 512)", "tile", "copies over 512 bytes of shared memory"},
      {"if (t == 0) bulk_store(out, in, 512)", "in", "copies 512 bytes that are not in shared memory"},
      {"if (t == 0) bulk_load(out, in, 256, bar)", "out", "copies over 256 bytes that are not in shared memory"},
      {"if (t == 0) bulk_load(tile, tile + 128, 256, bar)", "tile", "copies 256 bytes of shared memory"},
      {"u32 w[1]; load_matrix<1>(w, in + 4 * t); out[t] = bits_float(w[0])", "in", "a matrix row"},
      {"u32 w[1] = {}; store_matrix<1>(out + 4 * t, w)", "out", "a matrix row"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.statement);
    PlantedKernel k(std::string(R"(  __shared__ __align__(16) float tile[256];
  __shared__ Barrier mbarrier;
  Barrier* bar = &mbarrier;
  for (int i = t; i < 256; i += 32) tile[i] = in[i % 128];
  if (t == 0) barrier_init(bar, 1);
  sync_block();
  )") + c.statement + ";  // here\n",
                    128);
    const CpuFinding f = find(k, CpuFault::misuse);
    EXPECT_EQ(f.line, k.line("// here"));
    EXPECT_EQ(f.buffer, c.buffer);
    EXPECT_THAT(f.text(), HasSubstr(c.text));
    EXPECT_THAT(f.text(), HasSubstr("by an operation on"));
  }
}

TEST_F(CpuFaults, AMatrixRowThatIsNotAlignedIsFound) {
  const std::string body = R"(  __shared__ __align__(16) float tile[256];
  for (int i = t; i < 256; i += 32) tile[i] = in[i];
  sync_block();
  u32 w[2] = {};
  const float* row = tile + 4 * t + (t < LANES ? 0 : 1);
  OPERATION;  // here
  out[t] = bits_float(w[0]);
)";
  const auto with = [&](const char* operation, const char* lanes) {
    std::string s = body;
    s.replace(s.find("OPERATION"), 9, operation);
    return s.replace(s.find("LANES"), 5, lanes);
  };
  for (const char* operation :
       {"load_matrix<2>(w, row)", "load_matrix_transposed<2>(w, row)", "store_matrix<2>(const_cast<float*>(row), w)",
        "store_matrix_transposed<2>(const_cast<float*>(row), w)"}) {
    SCOPED_TRACE(operation);
    PlantedKernel wrong(with(operation, "15"), 256);
    const CpuFinding f = find(wrong, CpuFault::misaligned);
    EXPECT_EQ(f.line, wrong.line("// here"));
    EXPECT_EQ(f.thread, 15);
    EXPECT_EQ(f.buffer, "tile");
    EXPECT_EQ(f.offset, 16 * 15 + 4);
    PlantedKernel right(with(operation, "16"), 256);  // two matrices have 16 rows
    expect_clean(right);
  }
}

TEST_F(CpuFaults, AReadOfUninitialisedSharedMemoryIsFound) {
  PlantedKernel k(R"(  __shared__ float tile[64];
  tile[t] = in[t];
  sync_warp();
  out[t] = tile[t + 1];  // here
)");
  const CpuFinding f = find(k, CpuFault::uninitialised);
  EXPECT_EQ(f.line, k.line("// here"));
  EXPECT_EQ(f.thread, 31);
  EXPECT_EQ(f.buffer, "tile");
  EXPECT_EQ(f.offset, 128);
}

TEST_F(CpuFaults, AReadOfAnOutputNobodyWroteIsFound) {
  PlantedKernel k("  out[t] += in[t];  // here\n");
  const CpuFinding f = find(k, CpuFault::uninitialised);
  EXPECT_EQ(f.line, k.line("// here"));
  EXPECT_EQ(f.buffer, "out");
}

TEST(CpuStamp, ASiteThatDoesNotFitACellIsUnknown) {
  EXPECT_EQ(cpu::Stamp::site(65535), 65535);
  EXPECT_EQ(cpu::Stamp::site(65536), 0);
  EXPECT_EQ(cpu::Stamp::site(131073), 0);
}

TEST_F(CpuFaults, FindingsAreOneALineAndAreLimited) {
  std::string body;
  for (int i = 0; i < 40; ++i) body += "  out[t] += in[t];\n  sync_warp();\n  if (t == 31) out[0] = 0.0f;\n";
  PlantedKernel k(body);
  const CpuReport report = k.run();
  EXPECT_LE(report.findings.size(), 16u);
  EXPECT_GT(report.not_shown, 0);
}

TEST_F(CpuFaults, WhatWouldEndTheProcessIsAFinding) {
  PlantedKernel division("  out[t] = static_cast<float>(100 / static_cast<int>(in[t]));  // here\n");
  EXPECT_THAT(find(division, CpuFault::misuse).text(), HasSubstr("divides an integer by zero"));
  EXPECT_EQ(find(division, CpuFault::misuse).line, division.line("// here"));
  PlantedKernel trap("  if (in[t] == 5.0f) __builtin_trap();  // here\n  out[t] = 0.0f;\n");
  const CpuFinding f = find(trap, CpuFault::misuse);
  EXPECT_EQ(f.line, trap.line("// here"));
  EXPECT_EQ(f.thread, 5);
}

TEST_F(CpuFaults, TheSmallestIntegerDividedByMinusOneWraps) {
  for (const int optimisation : {0, 1, 2}) {
    for (const bool checks : {true, false}) {
      PlantedKernel k(R"(  const int a = static_cast<int>(0x80000000u + static_cast<u32>(in[t]));
  const int b = static_cast<int>(in[0]) - 1;
  const i64 c = static_cast<i64>(a) << 32;
  out[t] = a / b == (t == 0 ? a : -a) && a % b == 0 && c / b == (t == 0 ? c : -c) ? 1.0f : 0.0f;
)");
      k.options.optimisation = optimisation;
      k.options.checks = checks;
      const CpuReport report = k.run();
      EXPECT_TRUE(report.clean()) << all_texts(report.findings);
      EXPECT_EQ(k.out[0], 1);
      EXPECT_EQ(k.out[7], 1);
    }
  }
}

constexpr const char* kVectorDivision = R"(  typedef int V __attribute__((vector_size(16)));
  const int least = static_cast<int>(0x80000000u);
  const V a = {least, least, 7, t + 9};
  const V b = {static_cast<int>(in[0]) - 1, static_cast<int>(in[2]), static_cast<int>(in[t]) LANE, 3};
  const V c = a / b, d = a % b;  // here
  out[t] = c[0] == least && d[0] == 0 && c[1] == least / 2 && c[3] == t / 3 + 3 ? static_cast<float>(c[2]) : -1.0f;
)";

TEST_F(CpuFaults, VectorsAreDividedLaneByLane) {
  const auto with = [](const std::string& lane) {
    std::string s = kVectorDivision;
    return s.replace(s.find("LANE"), 4, lane);
  };
  PlantedKernel right(with("+ 1"));
  expect_clean(right);
  EXPECT_EQ(right.out[0], 7);
  EXPECT_EQ(right.out[6], 1);
  PlantedKernel wrong(with("- 5"));
  const CpuFinding f = find(wrong, CpuFault::misuse);
  EXPECT_EQ(f.line, wrong.line("// here"));
  EXPECT_EQ(f.thread, 5);
  EXPECT_THAT(f.text(), HasSubstr("divides an integer by zero"));
}

TEST_F(CpuFaults, AnAtomicOnUninitialisedMemoryIsFound) {
  const auto with = [](const char* first) {
    return std::string("  __shared__ u64 count;\n") + first +
           "  sync_warp();\n  add_global(&count, 1);  // here\n  sync_warp();\n"
           "  out[t] = static_cast<float>(count);\n";
  };
  PlantedKernel wrong(with(""));
  const CpuFinding f = find(wrong, CpuFault::uninitialised);
  EXPECT_EQ(f.line, wrong.line("// here"));
  EXPECT_EQ(f.buffer, "count");
  PlantedKernel right(with("  if (t == 0) count = 0;\n"));
  expect_clean(right);
  EXPECT_EQ(right.out[9], 32);
}

// ---- dependent launches ----

// `in` is a weight, `out` belongs to the launches before.
PlantedKernel dependent(const std::string& body) {
  PlantedKernel k(body);
  k.launch.dependent = true;
  k.launch.buffers[0].before_wait = true;
  k.launch.buffers[1].initialised = true;
  return k;
}

TEST_F(CpuFaults, AReadBeforeTheGridsWaitIsFoundUnlessTheBufferAllowsIt) {
  PlantedKernel wrong =
      dependent("  float v = in[t] + load_now_b32(out + t);  // here\n  grid_dependency_wait();\n  out[t] = v;\n");
  const CpuFinding f = find(wrong, CpuFault::early);
  EXPECT_EQ(f.line, wrong.line("// here"));
  EXPECT_EQ(f.buffer, "out");
  EXPECT_EQ(f.offset, 4 * f.thread);
  EXPECT_THAT(f.text(), HasSubstr("before the wait"));
  PlantedKernel right =
      dependent("  float v = in[t];\n  grid_dependency_wait();\n  out[t] = v + load_now_b32(out + t);\n");
  expect_clean(right);
  wrong.launch.dependent = false;
  expect_clean(wrong);
}

TEST_F(CpuFaults, ACopyBeforeTheGridsWaitIsFoundUnlessTheBufferAllowsIt) {
  const std::string body = R"(  __shared__ __align__(16) float tile[128];
  copy_async(tile + 4 * t, FROM + t / 16 * 4);  // here
  copy_async_commit();
  grid_dependency_wait();
  copy_async_wait<0>();
  out[32 + t] = tile[4 * t];
)";
  const auto with = [&](const char* from) {
    std::string s = body;
    return s.replace(s.find("FROM"), 4, from);
  };
  PlantedKernel wrong = dependent(with("out"));
  const CpuFinding f = find(wrong, CpuFault::early);
  EXPECT_EQ(f.line, wrong.line("// here"));
  EXPECT_EQ(f.buffer, "out");
  PlantedKernel right = dependent(with("in"));
  expect_clean(right);
}

TEST_F(CpuFaults, AWriteBeforeTheGridsWaitIsFound) {
  PlantedKernel k = dependent("  if (t == 7) out[t] = in[t];  // here\n  grid_dependency_wait();\n");
  k.launch.buffers[1].before_wait = true;  // which is about reads
  const CpuFinding f = find(k, CpuFault::early);
  EXPECT_EQ(f.line, k.line("// here"));
  EXPECT_EQ(f.thread, 7);
  EXPECT_EQ(f.buffer, "out");
}

TEST_F(CpuFaults, AThreadThatReturnsBeforeTheGridsWaitIsFound) {
  PlantedKernel k = dependent("  if (t == 9) return;\n  grid_dependency_wait();\n  out[t] = in[t];\n");
  const CpuFinding f = find(k, CpuFault::early);
  EXPECT_EQ(f.line, k.line("void k("));
  EXPECT_EQ(f.thread, 9);
  EXPECT_EQ(f.buffer, "");
  EXPECT_THAT(f.text(), HasSubstr("returns"));
}

std::pair<std::uintptr_t, std::uintptr_t> bytes_of(const std::vector<float>& v, std::size_t first, std::size_t end) {
  return {reinterpret_cast<std::uintptr_t>(v.data() + first), reinterpret_cast<std::uintptr_t>(v.data() + end)};
}

TEST_F(CpuFaults, WhatALaunchInFrontMayStillWriteIsNotReadBeforeTheWaitWhateverTheBufferAllows) {
  PlantedKernel wrong = dependent("  float v = in[t];  // here\n  grid_dependency_wait();\n  out[t] = v;\n");
  wrong.launch.in_flight = {{"elsewhere", {bytes_of(wrong.in, 40, 44)}},
                            {"producer", {bytes_of(wrong.in, 2, 3), bytes_of(wrong.in, 8, 16)}}};
  const CpuFinding f = find(wrong, CpuFault::early);
  EXPECT_EQ(f.line, wrong.line("// here"));
  EXPECT_EQ(f.buffer, "in");
  EXPECT_THAT(f.text(), HasSubstr("reads 4 bytes before grid_dependency_wait, which producer may still write"));
  EXPECT_THAT(f.thread, testing::AnyOf(2, 8, 15)) << "the first of its schedule";

  PlantedKernel right = dependent(
      "  float v = t < 2 ? in[t] : 0;\n  grid_dependency_wait();\n  out[t] = v + in[t];\n  out[32 + t] = in[t];\n");
  right.launch.in_flight = {{"producer", {bytes_of(right.in, 8, 16)}}};
  expect_clean(right);
  EXPECT_EQ(right.out[1], 2);
  EXPECT_EQ(right.out[9], 9);
}

TEST_F(CpuFaults, WhatALaunchInFrontMayStillWriteIsPoisonUntilTheWait) {
  PlantedKernel k = dependent("  float v = in[t];\n  grid_dependency_wait();\n  out[t] = v;\n  out[32 + t] = in[t];\n");
  k.options.checks = false;
  k.launch.grid_x = 2;  // each block's prologue is in front of the stores
  // Twice written: once by each of two launches.
  k.launch.in_flight = {{"first", {bytes_of(k.in, 8, 16)}}, {"second", {bytes_of(k.in, 12, 20)}}};
  k.run();
  for (std::size_t t = 0; t < 32; ++t) {
    EXPECT_EQ(std::isnan(k.out[t]), t >= 8 && t < 20) << t;
    EXPECT_EQ(k.out[32 + t], static_cast<float>(t));
    EXPECT_EQ(k.in[t], static_cast<float>(t));
  }
}

TEST_F(CpuFaults, WhatALaunchHasWrittenIsRecordedByteByByte) {
  PlantedKernel k("  if (t > 2) out[t] = in[t];\n  if (t == 5) reinterpret_cast<unsigned char*>(out + 40)[1] = 7;\n");
  k.launch.record_stores = true;
  const CpuReport report = k.run();
  const auto first = reinterpret_cast<std::uintptr_t>(k.out.data());
  EXPECT_EQ(report.stores.kernel, "k");
  EXPECT_THAT(report.stores.ranges, testing::ElementsAre(bytes_of(k.out, 3, 32), std::pair(first + 161, first + 162)));
}

// ---- clusters ----

TEST_F(CpuFaults, APeersSharedMemoryIsReadBehindTheClustersBarrier) {
  const std::string body = R"(  __shared__ float tile[32];
  tile[t] = in[32 * block_x() + t];
  BARRIER
  const float* peer = static_cast<const float*>(ssmjit_cpu_map_shared(tile, 1 - ssmjit_cpu_thread()->cluster_rank));
  out[32 * block_x() + t] = peer[t];  // here
  ssmjit_cpu_cluster_arrive();
  ssmjit_cpu_cluster_wait();
)";
  const auto with = [&](const char* barrier) {
    std::string s = body;
    return s.replace(s.find("BARRIER"), 7, barrier);
  };
  PlantedKernel right(with("ssmjit_cpu_cluster_arrive(); ssmjit_cpu_cluster_wait();"), 128);
  right.launch.grid_x = 4;
  right.launch.cluster = 2;
  expect_clean(right);
  EXPECT_EQ(right.out[0], 32);
  EXPECT_EQ(right.out[96], 64);
  PlantedKernel wrong(with(""), 128);
  wrong.launch.grid_x = 4;
  wrong.launch.cluster = 2;
  const std::vector<CpuFinding> findings = wrong.run_all();
  ASSERT_FALSE(findings.empty());
  EXPECT_THAT(findings[0].buffer, HasSubstr("tile"));
}

TEST_F(CpuFaults, APeerThatHasEndedHasNoSharedMemory) {
  PlantedKernel k(R"(  __shared__ float tile[32];
  tile[t] = in[t];
  ssmjit_cpu_cluster_arrive();
  ssmjit_cpu_cluster_wait();
  if (block_x() == 0) return;
  ssmjit_cpu_block_barrier();
  out[t] = static_cast<const float*>(ssmjit_cpu_map_shared(tile, 0))[t];  // here
)");
  k.launch.grid_x = 2;
  k.launch.cluster = 2;
  const CpuFinding f = find(k, CpuFault::misuse);
  EXPECT_EQ(f.line, k.line("// here"));
  EXPECT_THAT(f.text(), HasSubstr("a block that has ended"));
}

}  // namespace
}  // namespace ssmjit
