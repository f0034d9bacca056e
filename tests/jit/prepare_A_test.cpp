// What PrepareA makes of its arguments: refusals, launches on the stub driver.
#include <ssmjit/prepare.h>

#include <cstring>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/source.h>

#include "jit/kernel_args.h"
#include "tests/jit/launch_test.h"

namespace ssmjit {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::int64_t kHeads = 300;

Tensor A_log(DType dtype = DType::bf16) { return contiguous(address(0x1000000), dtype, {kHeads}); }
Tensor A() { return contiguous(address(0x2000000), DType::f32, {kHeads}); }

TEST(PrepareAProblems, AnyFloatingDtypeOfALogIsTaken) {
  for (DType dtype : {DType::f32, DType::bf16, DType::f16})
    EXPECT_THAT(PrepareA::problems(A_log(dtype), A()), IsEmpty()) << name(dtype);
  EXPECT_THAT(PrepareA::problems(A_log(DType::i32), A()),
              ElementsAre(HasSubstr("A_log: got dtype int32; wants fp32, bf16 or fp16")));
}

TEST(PrepareAProblems, NameEachTensorThatDoesNotFit) {
  EXPECT_THAT(PrepareA::problems({}, {}),
              ElementsAre(HasSubstr("A_log: not given; every launch needs it"), HasSubstr("A: not given")));
  Tensor half = A();
  half.shape[0] = kHeads / 2;
  EXPECT_THAT(PrepareA::problems(A_log(), half), ElementsAre(HasSubstr("A: got shape [150]; wants [300]")));
  Tensor narrow = A();
  narrow.dtype = DType::bf16;
  EXPECT_THAT(PrepareA::problems(A_log(), narrow), ElementsAre(HasSubstr("A: got dtype bf16; wants fp32")));
  Tensor sparse = A_log();
  sparse.stride[0] = 2;
  EXPECT_THAT(PrepareA::problems(sparse, A()), ElementsAre(HasSubstr("A_log: dimension 0 has stride 2; wants 1")));
}

TEST(PrepareAProblems, AInPlaceOfALogIsRefusedSinceARefreshNeedsIt) {
  EXPECT_THAT(PrepareA::problems(A_log(DType::f32), A_log(DType::f32)), ElementsAre(HasSubstr("A: is A_log itself")));
}

class PrepareALaunch : public StubLaunchTest<device_args::PrepareAArgs> {
 protected:
  PrepareA load_prepare() {
    Cubin cubin;
    cubin.image.assign(16, 'c');
    cubin.arch = arch_;
    return PrepareA::load(emit_prepare_A(arch_), cubin);
  }
};

TEST_F(PrepareALaunch, HasAThreadForEachHeadAndWritesWhereItIsToldEachTime) {
  const PrepareA prepare = load_prepare();
  for (int refresh = 0; refresh < 2; ++refresh) {
    prepare.launch(A_log(), A(), nullptr);
    EXPECT_EQ(launched().A_log, A_log().data);
    EXPECT_EQ(launched().A, A().data);
    EXPECT_EQ(launched().count, kHeads);
    EXPECT_EQ(stub_->last.grid[0], 3u);
    EXPECT_EQ(stub_->last.block[0], 128u);
  }
  EXPECT_EQ(stub_->launches, 2);
}

TEST_F(PrepareALaunch, OfNoHeadsIsNone) {
  Tensor none = A_log(), out = A();
  none.shape[0] = out.shape[0] = 0;
  load_prepare().launch(none, out, nullptr);
  EXPECT_EQ(stub_->launches, 0);
}

TEST_F(PrepareALaunch, OfAMisfitIsRefusedBeforeAnyGpuWork) {
  const PrepareA prepare = load_prepare();
  const Error error = error_of([&] { prepare.launch(A_log(DType::i64), A(), nullptr); });
  EXPECT_EQ(error.kind(), ErrorKind::invalid);
  EXPECT_EQ(stub_->launches, 0);
  EXPECT_EQ(error_of([] { PrepareA().launch(A_log(), A(), nullptr); }).kind(), ErrorKind::invalid);
  EXPECT_EQ(error_of([] { PrepareA().cubin(); }).kind(), ErrorKind::invalid);
  EXPECT_THAT(error_of([&] { PrepareA::load(Source(), Cubin()); }).what(), HasSubstr("has 0 entries"));
}

}  // namespace
}  // namespace ssmjit
