// How often a ring flushes.
#include <random>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/error.h>
#include <ssmjit/tune.h>

namespace ssmjit {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Description step(int tokens, int window) {
  return mamba2({.nheads = 4, .head_dim = 64, .dstate = 128, .ngroups = 1})
      .tokens(tokens)
      .store(Ring{.window = window});
}

std::string refusal(const std::string& text) {
  try {
    Acceptance::parse(text);
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::invalid);
    return e.what();
  }
  return "";
}

TEST(Acceptance, IsANumberOrADistribution) {
  EXPECT_THAT(Acceptance::parse("3").chance, ElementsAre(0, 0, 1));
  EXPECT_THAT(Acceptance::parse("1:0.25,3:0.75").chance, ElementsAre(0.25, 0, 0.75));
  EXPECT_EQ(Acceptance::parse("1:0.25,3:0.75").mean(), 2.5);
  EXPECT_EQ(Acceptance::parse("3:0.75,1:0.25").text(), "1:0.25,3:0.75");
  EXPECT_EQ(Acceptance::parse("3").text(), "3");
  EXPECT_EQ(Acceptance::usual(1).text(), "1");
  EXPECT_EQ(Acceptance::usual(6).text(), "3");
}

TEST(Acceptance, RefusesWhatIsNone) {
  for (const char* bad : {"", "0", "17", "2.5", "x", "1:", "1:x", "1:0.5", "1:0.5,2:0.6", "1:-1,2:2", "1:0.5,1:0.5",
                          "1:0.5,2", "0:1", "1:1,", ":1", "1:nan"})
    EXPECT_THAT(refusal(bad), HasSubstr("accepted: got")) << bad;
}

TEST(Acceptance, DrawsEachCountAsOftenAsItsChance) {
  const Acceptance accepted = Acceptance::parse("1:0.2,2:0.3,4:0.5");
  std::mt19937_64 random(3);
  std::uniform_real_distribution<double> uniform;
  std::vector<int> seen(5);
  for (int i = 0; i < 20000; ++i) ++seen.at(static_cast<std::size_t>(accepted.draw(uniform(random))));
  EXPECT_EQ(seen[3], 0);
  EXPECT_NEAR(seen[1], 4000, 300);
  EXPECT_NEAR(seen[2], 6000, 300);
  EXPECT_NEAR(seen[4], 10000, 300);
  EXPECT_EQ(Acceptance::parse("1:0.5,2:0.5,3:0").draw(1.0), 2);
}

TEST(StepsPerFlush, ASingleTokenFlushesOnceAWindow) {
  for (int window : {1, 2, 7, 16, 32}) EXPECT_EQ(steps_per_flush(window, 1, Acceptance::usual(1)), window);
}

TEST(StepsPerFlush, ConstantLengthsGiveTheCycleOfTheCursor) {
  EXPECT_EQ(steps_per_flush(16, 6, Acceptance::constant(3)), 4) << "3, 6, 9, 12";
  EXPECT_EQ(steps_per_flush(16, 6, Acceptance::constant(6)), 2) << "6, 12";
  EXPECT_EQ(steps_per_flush(16, 6, Acceptance::constant(1)), 11);
  EXPECT_EQ(steps_per_flush(6, 6, Acceptance::constant(3)), 1) << "every step";
}

TEST(StepsPerFlush, IsWhatCursorsThatAdvanceByChanceDo) {
  std::mt19937_64 random(5);
  std::uniform_real_distribution<double> uniform;
  for (const char* text : {"3", "1:0.2,2:0.3,3:0.5", "1:0.5,6:0.5", "2:0.1,5:0.9"}) {
    const Acceptance accepted = Acceptance::parse(text);
    for (int window : {6, 9, 16, 32}) {
      const Description d = step(6, window);
      RingCursor cursor;
      int flushes = 0;
      constexpr int kSteps = 40000;
      for (int i = 0; i < kSteps; ++i) {
        flushes += ring_flushes(d, cursor, 6) ? 1 : 0;
        cursor = advance_ring(d, cursor, 6, accepted.draw(uniform(random)));
      }
      EXPECT_NEAR(double{kSteps} / flushes, steps_per_flush(window, 6, accepted), 0.05) << text << ", " << window;
    }
  }
}

TEST(StepsPerFlush, RefusesWhatDoesNotFit) {
  EXPECT_THROW(steps_per_flush(16, 6, Acceptance::constant(7)), Error);
  EXPECT_THROW(steps_per_flush(5, 6, Acceptance::constant(3)), Error);
  EXPECT_THROW(steps_per_flush(16, 0, Acceptance::constant(1)), Error);
  EXPECT_THROW(steps_per_flush(16, 6, Acceptance{}), Error);
}

TEST(TimedCounts, AreThoseOfThePeersScript) {
  EXPECT_EQ(timed_ring_count(step(6, 16), Phase::no_flush), 4);
  EXPECT_EQ(timed_ring_count(step(6, 16), Phase::flush), 12);
  EXPECT_EQ(timed_ring_count(step(1, 16), Phase::no_flush), 7);
  EXPECT_EQ(timed_ring_count(step(1, 16), Phase::flush), 16);
}

TEST(TimedCounts, AreOfTheirPhaseForEveryRing) {
  for (int tokens = 1; tokens <= 16; ++tokens) {
    for (int window = tokens; window <= 32; ++window) {
      const Description d = step(tokens, window);
      EXPECT_TRUE(ring_flushes(d, {0, timed_ring_count(d, Phase::flush)}, tokens)) << tokens << " of " << window;
      const int count = timed_ring_count(d, Phase::no_flush);
      EXPECT_FALSE(ring_flushes(d, {0, count}, tokens)) << tokens << " of " << window;
    }
  }
}

}  // namespace
}  // namespace ssmjit
