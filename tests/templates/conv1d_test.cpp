// Sources and plans of convolutions: what is emitted, that there is a plan for each, and that NVRTC takes them.
#include <random>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/cubin.h>
#include <ssmjit/error.h>
#include <ssmjit/source.h>

namespace ssmjit {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

Description of(Conv conv, int tokens = 1) {
  if (conv.channels == 0) conv.channels = 6144;
  conv.activation_expr = silu(dsl::x);
  return conv1d(conv).tokens(tokens);
}

std::vector<Description> descriptions() {
  std::vector<Description> all = {
      of({}),
      of({}, 6),
      of({.width = 2}, 16),
      of({.width = 3, .state_len = 3, .has_bias = false}, 2),
      of({.state_len = 4, .channels_last = true}, 6),
      of({.state_len = 64}),
      of({.state_len = 7, .store = ConvStore::circular}, 3),
      of({.keep = ConvKeep::snapshots}, 6),
      of({.channels_last = true, .keep = ConvKeep::slots}, 6),
      of({.state_len = 8, .channels_last = true, .has_accepted = true}, 6),
      of({.state_len = 18, .has_accepted = true}, 16),
      of({}, 6).input(DType::f32).state(DType::f32).weights(DType::f32),
      of({.state_len = 4}, 2).input(DType::f16).state(DType::f16).weights(DType::f32).pad_output(PadOutput::untouched),
      of({}).state(DType::f32),
      of({.channels = 1001}, 2).unaligned_rows(),
  };
  all.push_back(of({}));
  all.back().conv->activation_expr = Expr();
  return all;
}

TEST(Conv1dSource, IsOfItsOwnTemplateWithItsConstants) {
  const Description d = of({.state_len = 4, .keep = ConvKeep::snapshots}, 2);
  const Plan plan = default_plan(d, Arch{}, 96);
  const Source source = emit(d, plan, Arch{});
  ASSERT_EQ(source.entries.size(), 1u);
  EXPECT_THAT(source.entries[0].name, testing::StartsWith("ssmjit_conv1d_"));
  EXPECT_THAT(source.text,
              AllOf(HasSubstr("// ---- conv1d.cuh ----"), HasSubstr("(const __grid_constant__ Conv1dArgs "),
                    HasSubstr("  conv1d<Config>(args);\n"), Not(HasSubstr("// ---- update.cuh ----")),
                    Not(HasSubstr("#include"))));
  EXPECT_THAT(source.text, HasSubstr(R"(struct Config {
  using Input = bf16;  // x, out
  using State = bf16;  // the windows
  using Weight = bf16;  // w, bias
  static constexpr int kTokens = 2;
  static constexpr int kWidth = 4;
  static constexpr int kStateLen = 4;
  static constexpr int kSnapshotLen = 4;
  static constexpr bool kHasBias = true;
  static constexpr bool kChannelsLast = false;
  static constexpr ConvStore kStore = ConvStore::shift;
  static constexpr ConvKeep kKeep = ConvKeep::snapshots;
  static constexpr bool kAccepted = false;
  static constexpr bool kAlignedRows = true;
  static constexpr PadOutput kPadOutput = PadOutput::zeros;
)"));
  const Banner banner = read_banner(source.text);
  EXPECT_EQ(banner.description, d);
  EXPECT_EQ(banner.plan, plan);
  EXPECT_THAT(source.text, HasSubstr("// Launch for channels = 6144: grid (12, batch), block 128"));
  for (const Tunable& t : tunables(Op::conv1d))
    EXPECT_THAT(source.text, HasSubstr("//   " + t.name + ": " + t.meaning));
}

TEST(Conv1dSource, OfOtherChannelsDiffersInTheBannerAlone) {
  const auto body = [](int channels) {
    const Description d = of({.channels = channels});
    const std::string text = emit(d, default_plan(of({}), Arch{}, 96), Arch{}).text;
    return text.substr(text.find("\n\n"));
  };
  EXPECT_EQ(body(1280), body(10240));
  EXPECT_EQ(of({.channels = 1280}).kernel_digest(), of({.channels = 10240}).kernel_digest());
}

TEST(Conv1dSource, RoundsAFastSiluTo16BitsAndKeepsAnyOtherActivationExact) {
  const auto activation = [](const Description& d) {
    const std::string text = emit(d, default_plan(d, Arch{}, 96), Arch{}).text;
    const std::size_t at = text.find("float activation(float x)");
    return text.substr(at, text.find('\n', at) - at);
  };
  EXPECT_THAT(activation(of({})), HasSubstr("silu_of_16_bits(x)"));
  EXPECT_THAT(activation(of({}).input(DType::f32)), HasSubstr("fn_silu(x)"));
  Description other = of({});
  other.conv->activation_expr = relu(dsl::x);
  EXPECT_THAT(activation(other), HasSubstr("fn_relu(x)"));
  other.conv->activation_expr = Expr();
  EXPECT_THAT(activation(other), HasSubstr("{ return x; }"));
}

TEST(Conv1dPlans, AreThereForEveryDescriptionOnEveryArchLegalAndEachOnce) {
  std::vector<Description> all = descriptions();
  for (const int tokens : {1, 16, 64})
    for (const int length : {3, 64})
      for (const DType dtype : {DType::bf16, DType::f32}) {
        all.push_back(of({.state_len = length}, tokens).input(dtype).state(dtype));
        all.push_back(of({.state_len = length, .keep = ConvKeep::slots}, tokens).input(dtype).state(dtype));
      }
  for (const Description& d : all) {
    ASSERT_THAT(d.problems(), IsEmpty()) << d.summary();
    for (const Arch& arch : Arch::known()) {
      const std::vector<Plan> plans = plan_space(d, arch);
      ASSERT_THAT(plans, Not(IsEmpty())) << d.summary() << " on " << arch.text();
      EXPECT_LE(plans.size(), 120u);
      std::set<std::string> texts;
      for (const Plan& plan : plans) {
        ASSERT_THAT(plan_problems(plan, d, arch), IsEmpty());
        ASSERT_TRUE(texts.insert(plan.text()).second);
        ASSERT_FALSE(plan.early_state && !arch.has_pdl());
      }
      ASSERT_THAT(plan_problems(default_plan(d, arch, 96), d, arch), IsEmpty());
    }
  }
}

TEST(Conv1dPlans, CoverAllChannelsAndRequests) {
  const Description d = of({.channels = 1288});
  for (const Plan& plan : plan_space(d, Arch{})) {
    const LaunchShape shape = launch_shape(plan, d, 5);
    EXPECT_GE(shape.grid_x * plan.block_m, 1288);
    EXPECT_LT((shape.grid_x - 1) * plan.block_m, 1288);
    EXPECT_EQ(shape.grid_y, 5);
  }
}

TEST(Faults, Row24_APlanWithALaneOfChannelsThatIsNoVectorIsRefusedWithTheNumbers) {
  Plan plan = default_plan(of({}), Arch{}, 96);
  plan.block_m = 384;
  EXPECT_THAT(plan_problems(plan, of({}), Arch{}), testing::Contains(HasSubstr("lane_channels=3")));
  plan = default_plan(of({}), Arch{}, 96);
  EXPECT_THAT(plan_problems(plan, of({}).unaligned_rows(), Arch{}),
              testing::Contains(HasSubstr("read element by element")));
}

TEST(Compile, NvrtcTakesConvolutionsOnEveryArch) {
  try {
    nvrtc_version();
  } catch (const Error& e) {
    GTEST_SKIP() << e.what();
  }
  std::mt19937_64 random(5);
  const std::vector<Description> all = descriptions();
  std::size_t next = 0;
  for (const Arch& arch : Arch::known())
    for (int i = 0; i < 2; ++i) {
      const Description& d = all[next++ % all.size()];
      const std::vector<Plan> plans = plan_space(d, arch);
      const Plan& plan = plans[random() % plans.size()];
      const Cubin cubin = compile(emit(d, plan, arch), {.use_cache = false});
      EXPECT_GT(cubin.registers, 0);
      if (plan.min_blocks_per_sm == 1) EXPECT_EQ(cubin.spill_bytes, 0) << d.summary() << " " << plan.text();
      EXPECT_THAT(cubin.log, Not(HasSubstr("warning"))) << d.summary();
    }
}

}  // namespace
}  // namespace ssmjit
