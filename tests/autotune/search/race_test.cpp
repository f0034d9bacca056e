#include <cmath>
#include <random>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "autotune/search/race.h"

namespace ssmjit {
namespace {

// Times with normal scatter about each candidate's own and a round's common part, as an H200 has at small batches.
struct Course {
  std::vector<double> us;
  double scatter = 0.005;
  double drift = 0.01;
};

struct Finish {
  std::vector<bool> running, tied;
  std::size_t best = 0;
  int rounds = 0;
  int timed = 0;
};

Finish run(const Course& course, unsigned seed, const RaceRules& rules = {}) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  Race race(course.us.size(), rules);
  Finish finish;
  while (!race.over()) {
    const double common = course.drift * normal(random);
    for (std::size_t i = 0; i < course.us.size(); ++i) {
      if (!race.running(i)) continue;
      race.add(i, course.us[i] * std::exp(common + course.scatter * normal(random)));
      ++finish.timed;
    }
    race.end_round();
    ++finish.rounds;
  }
  for (std::size_t i = 0; i < course.us.size(); ++i) {
    finish.running.push_back(race.running(i));
    finish.tied.push_back(race.tied(i));
  }
  finish.best = race.best();
  return finish;
}

TEST(Race, TheFastestDropsOutNoMoreOftenThanSaid) {
  // 23 rivals that are as fast to a tenth of a percent: the worst there is.
  Course course{.us = {10}};
  for (int i = 0; i < 23; ++i) course.us.push_back(10.01);
  int lost = 0;
  constexpr int kRaces = 1000;
  for (unsigned seed = 0; seed < kRaces; ++seed) lost += run(course, seed).running[0] ? 0 : 1;
  EXPECT_LE(lost, kRaces * 0.05);
}

TEST(Race, DropsWhatIsClearlySlowerAtTheFirstRoundThatMay) {
  Course course{.us = {10, 10.5, 11, 10.4, 12, 10.6, 10.8, 10.5}};
  const Finish finish = run(course, 1);
  EXPECT_EQ(finish.best, 0u);
  EXPECT_THAT(finish.running, testing::ElementsAre(true, false, false, false, false, false, false, false));
  EXPECT_EQ(finish.rounds, RaceRules{}.rounds_of_a_figure);
  EXPECT_LE(finish.timed, 8 * 3 + 2);
}

TEST(Race, WhatIsWithinTheNoiseIsATie) {
  Course course{.us = {10, 10.01, 10.005, 11, 11, 11, 11, 11}};
  const Finish finish = run(course, 2);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(finish.running[i]) << i;
    EXPECT_EQ(finish.tied[i], i != finish.best) << i;
  }
  EXPECT_FALSE(finish.running[3]);
  EXPECT_FALSE(finish.tied[3]);
}

TEST(Race, EndsEarlyWhereTheTieIsCloserThanAnyoneCares) {
  Course course{.us = {500, 500.1, 500.2, 500.05}, .scatter = 0.0005, .drift = 0.01};
  EXPECT_EQ(run(course, 3).rounds, RaceRules{}.rounds_of_a_figure);
  course.scatter = 0.01;
  EXPECT_EQ(run(course, 3).rounds, RaceRules{}.most_rounds);
}

TEST(Race, ACommonDriftDropsNobody) {
  Course course{.us = std::vector<double>(12, 10.0), .scatter = 0.001, .drift = 0.2};
  const Finish finish = run(course, 4);
  EXPECT_THAT(finish.running, testing::Each(true));
}

TEST(Race, OneThatScattersMoreThanTheOthersIsJudgedByItsOwn) {
  // Alternates by 10%: its mean of three rounds may be 3% off.
  Race race(6, {});
  const double wild[] = {10.0, 11.0, 10.0};
  for (double us : wild) {
    race.add(0, us);
    for (std::size_t i = 1; i < 6; ++i) race.add(i, 10.0 + 0.001 * static_cast<double>(i));
    race.end_round();
  }
  EXPECT_TRUE(race.running(0));
}

TEST(Race, WithoutDropsEveryoneStaysToTheEnd) {
  const Finish finish = run({.us = {10, 20, 30}}, 5, {.most_rounds = 7, .drops = false});
  EXPECT_EQ(finish.rounds, 7);
  EXPECT_THAT(finish.running, testing::Each(true));
  EXPECT_THAT(finish.tied, testing::Each(false));
}

TEST(Race, OfOneIsOverOnceItHasAFigure) {
  const Finish finish = run({.us = {10}}, 6);
  EXPECT_EQ(finish.rounds, RaceRules{}.rounds_of_a_figure);
  EXPECT_EQ(finish.best, 0u);
}

TEST(Race, StudentsTIsThatOfTheTables) {
  EXPECT_NEAR(t_quantile(0.05, 1e9), 1.6449, 1e-3);
  EXPECT_NEAR(t_quantile(0.025, 10), 2.228, 5e-3);
  EXPECT_NEAR(t_quantile(0.001, 30), 3.385, 5e-3);
  EXPECT_NEAR(t_quantile(0.0005, 6), 5.959, 0.1);
}

}  // namespace
}  // namespace ssmjit
