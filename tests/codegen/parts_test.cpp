// Descriptions of a convolution, a norm, a layer.
#include <ssmjit/description.h>

#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/error.h>
#include <ssmjit/plan.h>

namespace ssmjit {
namespace {

namespace d = dsl;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

Description nano() { return mamba2({.nheads = 64, .head_dim = 64, .dstate = 128, .ngroups = 8}).state(DType::bf16); }
Description conv() { return conv1d({.channels = 6144, .activation_expr = silu(d::x)}); }
Description norm() { return gated_norm({.channels = 4096, .group_size = 512, .gate_expr = silu(d::z)}); }
Description layer() {
  return nano().with_conv({.activation_expr = silu(d::x)}).with_norm({.group_size = 512, .gate_expr = silu(d::z)});
}

std::vector<Description> varied() {
  return {
      conv(),
      conv1d({.channels = 100, .width = 2, .has_bias = false, .channels_last = true}).unaligned_rows().tokens(3),
      conv1d({.channels = 1280, .state_len = 9, .has_accepted = true}).tokens(6).pad_output(PadOutput::untouched),
      conv1d({.channels = 1280, .state_len = 4, .keep = ConvKeep::snapshots}).tokens(6).state(DType::f32),
      conv1d({.channels = 1280, .keep = ConvKeep::slots}).tokens(6).weights(DType::f32),
      conv1d({.channels = 1280, .state_len = 8, .store = ConvStore::circular}).input(DType::f16),
      norm(),
      gated_norm({.channels = 8192, .eps = 1e-6, .has_bias = true}).input(DType::f32),
      gated_norm({.channels = 5120, .gate_expr = silu(d::z), .before_gate = true}).tokens(6),
      layer(),
      nano().with_conv({}).gate(silu(d::z)).with_norm({.group_size = 512}),
      nano().store(Ring{}).with_conv({.state_len = 4}),
      nano().with_norm({}),
  };
}

TEST(Parts, OfADescriptionMakeItsOp) {
  EXPECT_EQ(conv().op(), Op::conv1d);
  EXPECT_EQ(norm().op(), Op::norm);
  EXPECT_EQ(layer().op(), Op::layer);
  EXPECT_EQ(nano().op(), Op::update);
  EXPECT_EQ(nano().store(Ring{}).with_conv({}).op(), Op::layer);
}

TEST(Parts, AreValidAndRoundTripThroughJson) {
  for (const Description& description : varied()) {
    EXPECT_EQ(description.problems(), std::vector<std::string>{}) << description.json();
    EXPECT_EQ(Description::from_json(description.json()), description) << description.json();
    EXPECT_NE(description.summary(), "");
  }
}

TEST(Parts, OfALayerTakeItsSizes) {
  EXPECT_EQ(layer().conv_channels(), 6144);
  EXPECT_EQ(layer().norm_channels(), 4096);
  EXPECT_EQ(layer().norm_group_size(), 512);
  EXPECT_EQ(layer().conv_state_len(), 3);
  EXPECT_EQ(nano().conv_channels(), 0);
  EXPECT_EQ(nano().with_norm({}).norm_group_size(), 4096);
}

TEST(Parts, EachFieldOfAKernelChangesItsDigest) {
  const std::vector<Description> all = varied();
  for (std::size_t i = 0; i < all.size(); ++i)
    for (std::size_t j = 0; j < i; ++j) EXPECT_NE(all[i].kernel_digest(), all[j].kernel_digest()) << i << " " << j;
}

TEST(Parts, ChannelsAreNoPartOfADigestAlone) {
  Description wide = conv(), many = norm();
  wide.conv->channels *= 2;
  many.norm->channels *= 2;
  EXPECT_EQ(wide.kernel_digest(), conv().kernel_digest());
  EXPECT_EQ(many.kernel_digest(), norm().kernel_digest());
  EXPECT_EQ(many.cost_digest(), norm().cost_digest());
}

TEST(Parts, CountWhatTablesAreKeyedBy) {
  EXPECT_EQ(work_items(conv(), 3), 3 * 96);
  EXPECT_EQ(work_items(norm().tokens(2), 3), 3 * 2 * 8);
  EXPECT_EQ(work_items(layer(), 3), 3 * 64);
  EXPECT_EQ(work_items(layer(), 0), 1);
}

TEST(Parts, AreSetByName) {
  Description changed = conv();
  changed.set("conv.width=3,conv.activation=none,tokens=2,conv.keep=slots");
  EXPECT_EQ(changed.conv->width, 3);
  EXPECT_TRUE(changed.conv->activation_expr.empty());
  EXPECT_EQ(changed.conv->keep, ConvKeep::slots);
  EXPECT_EQ(changed.token_count, 2);
  Description gated = nano();
  gated.set("norm.group_size=512,norm.gate=silu(z),norm.eps=1e-6");
  EXPECT_EQ(gated.norm->gate_expr, silu(d::z));
  EXPECT_EQ(gated.op(), Op::layer);
}

TEST(Parts, MoveTheBytesThatTheyMust) {
  // 6144 channels of bf16: x and three entries read, three entries and y written.
  const Bytes c = bytes_moved(conv(), 2);
  EXPECT_EQ(c.read, 2 * 6144 * (1 + 3) * 2);
  EXPECT_EQ(c.written_back, 2 * 6144 * 3 * 2);
  EXPECT_EQ(c.written_new, 2 * 6144 * 2);
  // A window of 4 has a dead entry: written, never read.
  Description dead = conv();
  dead.conv->state_len = 4;
  EXPECT_EQ(bytes_moved(dead, 1).read, c.read / 2);
  EXPECT_EQ(bytes_moved(dead, 1).written_new, 2 * 6144 * 2);
  Description slots = conv().tokens(6);
  slots.conv->keep = ConvKeep::slots;
  EXPECT_EQ(bytes_moved(slots, 1).written_back, 0);
  EXPECT_EQ(bytes_moved(slots, 1).written_new, 6144 * 6 * (3 + 1) * 2);
  const Bytes n = bytes_moved(norm(), 2);
  EXPECT_EQ(n.read, 2 * 2 * 4096 * 2);
  EXPECT_EQ(n.written_new, 2 * 4096 * 2);
  // A layer reads x, B and C once, as its convolution's input, and writes one output.
  const Bytes all = bytes_moved(layer(), 1), update = bytes_moved(nano(), 1);
  EXPECT_EQ(all.read - update.read, 6144 * 3 * 2 + 4096 * 2);
  EXPECT_EQ(all.written_new, update.written_new);
  EXPECT_EQ(all.written_back - update.written_back, 6144 * 3 * 2);
}

TEST(LayerParts, AreItsConvolutionUpdateAndNormInLaunchOrder) {
  const std::vector<Description> parts = layer_parts(layer().dt(DType::bf16));
  ASSERT_EQ(parts.size(), 3u);
  EXPECT_EQ(parts[0], conv());
  EXPECT_EQ(parts[1], nano().dt(DType::bf16));
  EXPECT_EQ(parts[2], norm());
}

TEST(LayerParts, TakeTokensAndDtypesOfTheLayer) {
  const Description ring = nano().store(Ring{.window = 16}).tokens(6).input(DType::f16);
  const Conv window{.state_len = 9, .has_accepted = true};
  const std::vector<Description> parts = layer_parts(Description(ring).with_conv(window).with_norm({}));
  ASSERT_EQ(parts.size(), 3u);
  EXPECT_EQ(parts[1], ring);
  for (const std::size_t alone : {0, 2}) {
    EXPECT_EQ(parts[alone].token_count, 6);
    EXPECT_EQ(parts[alone].input_dtype, DType::f16);
    EXPECT_EQ(parts[alone].weight_dtype, DType::f16);
  }
  EXPECT_EQ(parts[0].state_dtype, DType::f16);
  EXPECT_EQ(parts[0].conv->state_len, 9);
  EXPECT_EQ(parts[2].norm_group_size(), 4096);
}

TEST(LayerParts, AreValidWhereTheLayerIs) {
  for (const Description& each : varied()) {
    const std::vector<Description> parts = layer_parts(each);
    EXPECT_EQ(parts.empty(), each.op() != Op::layer) << each.summary();
    for (const Description& part : parts) {
      EXPECT_TRUE(part.problems().empty()) << part.problems().front();
      EXPECT_NE(part.op(), Op::layer);
    }
  }
}

// ---- rows of the list of faults ----

TEST(Faults, Row8_SequencesOfTheirOwnLengthsAreRefusedWhereNoKernelTakesThem) {
  EXPECT_THAT(conv().varlen().problems(), ElementsAre("varlen: got true; without heads wants false"));
  EXPECT_THAT(norm().varlen().problems(), ElementsAre("varlen: got true; without heads wants false"));
  const Description ring = layer().tokens(4).store(Ring{.window = 16}).varlen();
  EXPECT_THAT(plan_space(ring, Arch{}), IsEmpty());
  Plan chain = default_chain(PlanForm::chain, layer().tokens(4).store(Ring{.window = 16}), Arch{}, 64);
  EXPECT_THAT(plan_problems(chain, ring, Arch{}),
              Contains(HasSubstr("convolution and norm take as many tokens of each request, not varlen")));
}

TEST(Faults, Row16_OddHeadRatiosAndSizesOfALayerAreValid) {
  for (const Sizes& sizes : {Sizes{.nheads = 6, .head_dim = 80, .dstate = 96, .ngroups = 2},
                             Sizes{.nheads = 14, .head_dim = 64, .dstate = 96, .ngroups = 1}})
    for (const int width : {2, 3, 4}) {
      const Description d = mamba2(sizes)
                                .with_conv({.width = width})
                                .with_norm({.group_size = sizes.nheads / sizes.ngroups * sizes.head_dim});
      EXPECT_THAT(d.problems(), IsEmpty());
      EXPECT_THAT(Description(d).tokens(6).store(Ring{.window = 16}).problems(), IsEmpty());
    }
}

TEST(Faults, Row19_NegativeSizesOfPartsAreNamedAndAnEmptyBatchMovesNothing) {
  for (const int bad : {-1, -2147483647 - 1}) {
    EXPECT_FALSE(conv1d({.channels = bad}).problems().empty());
    EXPECT_FALSE(conv1d({.channels = 64, .width = bad}).problems().empty());
    EXPECT_FALSE(conv1d({.channels = 64, .state_len = bad}).problems().empty());
    EXPECT_FALSE(gated_norm({.channels = bad}).problems().empty());
    EXPECT_FALSE(gated_norm({.channels = 64, .group_size = bad}).problems().empty());
    EXPECT_FALSE(conv().tokens(bad).problems().empty());
    EXPECT_FALSE(norm().tokens(bad).problems().empty());
    Description sizes = layer();
    sizes.nheads = sizes.dstate = bad;
    EXPECT_GE(sizes.problems().size(), 2u);
    EXPECT_EQ(sizes.kernel_digest().size(), 16u);
  }
  EXPECT_FALSE(conv1d({}).problems().empty()) << "no channels";
  EXPECT_FALSE(gated_norm({}).problems().empty());
  for (const Description& d : {conv(), norm(), layer(), layer().tokens(4).store(Ring{.window = 16})}) {
    EXPECT_EQ(bytes_moved(d, 0), Bytes{});
    EXPECT_EQ(bytes_moved(d, 1024).read, 1024 * bytes_moved(d, 1).read);
    EXPECT_THROW(bytes_moved(d, -1), Error);
  }
}

}  // namespace
}  // namespace ssmjit
