// What SlotCopies make of their arguments: refusals, the table, launches on the stub driver, checked mode.
#include <ssmjit/slots.h>

#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "jit/kernel_args.h"
#include "tests/jit/allocation_count.h"
#include "tests/jit/launch_test.h"

namespace ssmjit {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::int64_t kSlots = 12;

Tensor states() { return contiguous(address(0x1000000), DType::bf16, {kSlots, 4, 64, 40}); }  // 20480 bytes a slot
Tensor windows() { return contiguous(address(0x2000000), DType::bf16, {kSlots, 96, 3}); }     // 576

TEST(SlotCopyTable, HasAPieceOf16KiBAtMostForEachOfASlotsBytes) {
  Tensor apart = windows();
  apart.stride[0] = 320;
  const std::vector<std::int64_t> table = slot_copy_table({states(), apart});
  EXPECT_THAT(table, ElementsAre(0x1000000, 20480, 16384, kSlots,          //
                                 0x1004000, 20480, 20480 - 16384, kSlots,  //
                                 0x2000000, 640, 576, kSlots));
  EXPECT_THAT(slot_copy_table({}), IsEmpty());
}

TEST(SlotCopyTable, NamesEachPoolThatDoesNotFit) {
  const auto refusal = [](std::vector<Tensor> pools) {
    return std::string(error_of([&] { slot_copy_table(pools); }).what());
  };
  Tensor few = windows();
  few.shape[0] = 11;
  EXPECT_THAT(refusal({states(), few}), HasSubstr("pools[1]: got shape [11, 96, 3]; wants [12, 96, 3]"));
  Tensor shifted = states();
  shifted.data = address(0x1000008);
  Tensor tight = windows();
  tight.stride[0] = 280;
  Tensor turned = windows();
  turned.stride[1] = 1;
  EXPECT_EQ(refusal({shifted, {}, tight, turned, strided(address(0x3000000), DType::i8, {kSlots, 40}, {48, 1})}),
            "pools[0]: base address 0x1000008 is not a multiple of 16 bytes; move the base\n"
            "pools[1]: got nothing; wants slots and what they hold\n"
            "pools[2]: slot stride 280 elements; wants 288 or more, so that slots do not overlap\n"
            "pools[3]: dimension 1 has stride 1; wants 3: all but dimension 0 must be contiguous\n"
            "pools[4]: got 40 bytes in a slot; wants a multiple of 16: pad its rows");
}

class SlotCopiesLaunch : public StubLaunchTest<device_args::SlotCopiesArgs> {
 protected:
  SlotCopies load_copies() {
    Cubin cubin;
    cubin.image.assign(16, 'c');
    cubin.arch = arch_;
    return SlotCopies::load(emit_slot_copies(arch_), cubin);
  }
  SlotCopiesArgs args() {
    SlotCopiesArgs a;
    a.pieces = contiguous(table_.data(), DType::i64, {3, kSlotPieceWords});
    a.src_slots = contiguous(from_.data(), DType::i32, {4});
    a.dst_slots = contiguous(to_.data(), DType::i64, {4});
    return a;
  }
  std::vector<std::int64_t> table_ = slot_copy_table({states(), windows()});
  std::vector<std::int32_t> from_ = {3, -1, 5, 6};
  std::vector<std::int64_t> to_ = {4, 4, -1, 7};
};

TEST_F(SlotCopiesLaunch, IsOneForAllPoolsAndPairs) {
  load_copies().launch(args(), nullptr);
  EXPECT_EQ(stub_->launches, 1);
  EXPECT_EQ(stub_->last.grid[0], 3u);
  EXPECT_EQ(stub_->last.grid[1], 4u);
  EXPECT_EQ(launched().src_slots, from_.data());
  EXPECT_EQ(launched().wide_src, 0);
  EXPECT_EQ(launched().wide_dst, 1);
  EXPECT_EQ(launched().pad_slot_id, -1);
}

TEST_F(SlotCopiesLaunch, AllocatesNothing) {
  const SlotCopies copies = load_copies();
  const SlotCopiesArgs given = args();
  const std::size_t before = allocation_count();
  copies.launch(given, nullptr);
  EXPECT_EQ(allocation_count(), before);
}

TEST_F(SlotCopiesLaunch, OfNoPoolsOrNoPairsIsNone) {
  SlotCopiesArgs none = args();
  none.pieces.shape[0] = 0;
  load_copies().launch(none, nullptr);
  none = args();
  none.src_slots.shape[0] = none.dst_slots.shape[0] = 0;
  load_copies().launch(none, nullptr);
  EXPECT_EQ(stub_->launches, 0);
}

TEST_F(SlotCopiesLaunch, OfAMisfitIsRefusedByNameBeforeAnyGpuWork) {
  EXPECT_THAT(SlotCopies::problems({}), ElementsAre(HasSubstr("pieces: not given"), HasSubstr("src_slots: not given"),
                                                    HasSubstr("dst_slots: not given")));
  SlotCopiesArgs bad = args();
  bad.pieces.stride[0] = 5;
  bad.src_slots.dtype = DType::f32;
  bad.dst_slots.shape[0] = 3;
  EXPECT_THAT(SlotCopies::problems(bad),
              ElementsAre(HasSubstr("pieces: row stride 5 elements; wants 4, as slot_copy_table() has them"),
                          HasSubstr("src_slots: got dtype fp32; wants int32 or int64"),
                          HasSubstr("dst_slots: got shape [3]; wants [4]")));
  const SlotCopies copies = load_copies();
  EXPECT_EQ(error_of([&] { copies.launch(bad, nullptr); }).kind(), ErrorKind::invalid);
  EXPECT_EQ(error_of([&] { SlotCopies().launch(args(), nullptr); }).kind(), ErrorKind::invalid);
  EXPECT_EQ(error_of([] { SlotCopies().cubin(); }).kind(), ErrorKind::invalid);
  EXPECT_THAT(error_of([] { SlotCopies::load(Source(), Cubin()); }).what(), HasSubstr("has 0 entries"));
  bad = args();
  bad.size = 8;
  EXPECT_THAT(SlotCopies::problems(bad), ElementsAre(HasSubstr("args: size is 8")));
  EXPECT_EQ(stub_->launches, 0);
}

TEST_F(SlotCopiesLaunch, FaultRow18_CheckedModeNamesPairsThatGetInEachOthersWay) {
  const SlotCopies copies = load_copies();
  SlotCopiesArgs checked = args();
  checked.checked = true;
  copies.launch(checked, nullptr);
  EXPECT_EQ(stub_->launches, 1) << "good ones are launched";
  from_ = {3, 12, 5, 7};
  to_ = {4, 8, 4, 3};
  EXPECT_STREQ(error_of([&] { copies.launch(checked, nullptr); }).what(),
               "src_slots[1] is 12; the state has 12 slots\n"
               "dst_slots[0] and [2] are both slot 4; rows of one launch must write different slots\n"
               "pair 0 reads slot 3, which pair 3 of the same launch writes");
  EXPECT_EQ(stub_->launches, 1);
  stub_->capturing = 1;
  EXPECT_THAT(error_of([&] { copies.launch(checked, nullptr); }).what(), HasSubstr("is being captured"));
}

}  // namespace
}  // namespace ssmjit
