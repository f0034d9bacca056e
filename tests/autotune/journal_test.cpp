#include <algorithm>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <ssmjit/error.h>
#include <ssmjit/measurement.h>
#include <ssmjit/tune.h>

namespace ssmjit {
namespace {

using testing::HasSubstr;
using testing::SizeIs;

Description step() { return mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1}); }

std::vector<Plan> plans() {
  static const std::vector<Plan> all = plan_space(step(), Arch{});
  return all;
}

Measurement measurement(int batch = 8, double us = 5, std::size_t plan = 0) {
  Measurement m;
  m.kernel_digest = step().kernel_digest();
  m.cost_digest = step().cost_digest();
  m.kernel = step().summary();
  m.plan = plans().at(plan);
  m.source_digest = "00000000000000" + std::to_string(10 + plan);
  m.batch = batch;
  m.nheads = 16;
  m.device = "h200";
  m.device_name = "NVIDIA H200";
  m.driver = "13.0";
  m.nvrtc = "13.0";
  m.policy = "cold layers, median of rounds";
  m.us = us;
  m.us_min = us - 0.125;
  m.us_max = us + 0.25;
  m.floor_us = 2.5;
  m.share = 0.5;
  m.layers = 37;
  m.bytes = bytes_moved(step(), batch);
  m.registers = 64;
  m.smem_bytes = 4096;
  m.measured = "2026-08-01T10:00:00Z";
  return m;
}

std::string lines(const std::vector<Measurement>& all) {
  std::string text;
  for (const Measurement& m : all) text += m.json() + "\n";
  return text;
}

std::string recorded(const std::string& name) {
  std::ifstream file(std::string(SSMJIT_SOURCE_DIR) + "/tests/journals/" + name, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  EXPECT_FALSE(text.str().empty()) << name;
  return text.str();
}

TEST(Measurement, RoundTripsThroughItsJsonLine) {
  Measurement m = measurement();
  m.pdl = PdlMode::chain;
  EXPECT_EQ(Measurement::from_json(m.json()).json(), m.json());
  EXPECT_EQ(Measurement::from_json(m.json()).key(), m.key());
  EXPECT_THAT(m.json(), testing::Not(HasSubstr("\n")));
  EXPECT_EQ(nlohmann::json::parse(m.json()).at("schema"), 1);
}

Description ring_step() { return step().tokens(6).state(DType::bf16).store(Ring{.window = 16}); }

// A ring's plan, timed in both phases.
Measurement ring_measurement(double no_flush_us, double flush_us, std::size_t plan = 0, double steps = 4) {
  Measurement m = measurement();
  m.op = Op::ring;
  m.kernel_digest = ring_step().kernel_digest();
  m.cost_digest = ring_step().cost_digest();
  m.kernel = ring_step().summary();
  m.plan = plan_space(ring_step(), Arch{}).at(plan);
  m.source_digest = "ring" + std::to_string(plan);
  m.phase = "weighted";
  m.steps_per_flush = steps;
  m.bytes = {};
  const auto phase = [](Phase which, double us) {
    const int count = timed_ring_count(ring_step(), which);
    return PhaseMeasurement{.phase = which,
                            .ring_count = count,
                            .us = us,
                            .us_min = us - 0.5,
                            .us_max = us + 0.5,
                            .floor_us = us / 2,
                            .share = 0.5,
                            .bytes = bytes_moved(ring_step(), 8, which, count)};
  };
  m.phases = {phase(Phase::no_flush, no_flush_us), phase(Phase::flush, flush_us)};
  m.weigh();
  return m;
}

TEST(Faults, Row30_ARingsStepIsTheMeanOverItsPhases) {
  const Measurement m = ring_measurement(4, 8);
  EXPECT_EQ(m.us, 5);
  EXPECT_EQ(m.us_min, 4.5);
  EXPECT_EQ(m.us_max, 5.5);
  EXPECT_EQ(m.floor_us, 2.5);
  EXPECT_EQ(m.share, 0.5);
  EXPECT_EQ(ring_measurement(4, 8, 0, 1).us, 8) << "every step flushes";
  Measurement alone = m;
  alone.phases.pop_back();
  alone.weigh();
  EXPECT_EQ(alone.us, 4);
}

TEST(Measurement, ARingsLineSaysSoAndRoundTrips) {
  const Measurement m = ring_measurement(4.125, 8.25);
  const auto json = nlohmann::json::parse(m.json());
  EXPECT_EQ(json.at("op"), "ring");
  EXPECT_EQ(json.at("store"), "ring");
  EXPECT_EQ(json.at("phases").at(0).at("ring_count"), 4);
  EXPECT_EQ(json.at("phases").at(1).at("ring_count"), 12);
  EXPECT_EQ(json.at("phases").at(1).at("us"), 8.25);
  EXPECT_FALSE(json.contains("bytes"));
  const Measurement back = Measurement::from_json(m.json());
  EXPECT_EQ(back.json(), m.json());
  EXPECT_EQ(back.key(), m.key());
  EXPECT_EQ(back.phases.at(1).bytes, m.phases.at(1).bytes);
}

TEST(Measurement, ARingsKeyIsAlsoOfTheStepsBetweenFlushes) {
  EXPECT_NE(ring_measurement(4, 8, 0, 4).key(), ring_measurement(4, 8, 0, 3.5).key());
  EXPECT_EQ(ring_measurement(4, 8, 0, 4).key(), ring_measurement(5, 9, 0, 4).key());
}

TEST(Measurement, EveryMissingFieldOfARingIsNamed) {
  const auto whole = nlohmann::ordered_json::parse(ring_measurement(4, 8).json());
  for (const char* field : {"phases", "steps_per_flush"}) {
    auto without = whole;
    without.erase(field);
    EXPECT_THROW(Measurement::from_json(without.dump()), Error) << field;
  }
  auto other = whole;
  other["op"] = "conv1d";
  EXPECT_THROW(Measurement::from_json(other.dump()), Error);
  other = whole;
  other["phases"][0]["phase"] = "drain";
  EXPECT_THROW(Measurement::from_json(other.dump()), Error);
}

TEST(Measurement, EveryOutcomeRoundTripsWithItsReason) {
  for (Outcome o : {Outcome::ok, Outcome::dropped, Outcome::not_compiled, Outcome::spills, Outcome::wrong,
                    Outcome::nondeterministic, Outcome::faulty, Outcome::launch_failed, Outcome::memory_failed,
                    Outcome::crashed, Outcome::hung, Outcome::leaked, Outcome::pruned}) {
    Measurement m = measurement();
    m.outcome = o;
    m.reason = o == Outcome::ok ? "" : "ptxas: \"no\"\nand a second line";
    const Measurement back = Measurement::from_json(m.json());
    EXPECT_EQ(back.outcome, o);
    EXPECT_EQ(back.reason, m.reason);
  }
}

TEST(Measurement, ATieRoundTripsAndIsWrittenOnlyWhereThereIsOne) {
  Measurement m = measurement();
  EXPECT_THAT(m.json(), testing::Not(HasSubstr("tie")));
  m.tie = true;
  EXPECT_TRUE(Measurement::from_json(m.json()).tie);
  EXPECT_EQ(m.key(), measurement().key());
}

TEST(Measurement, KeyIsOfSourceShapePhaseModeDeviceDriverAndPolicyAndOfNoResult) {
  const std::string key = measurement().key();
  std::vector<Measurement> others(9, measurement());
  others[0].source_digest = "other";
  others[1].plan = plans().at(1);
  others[2].batch = 9;
  others[3].nheads = 8;
  others[4].phase = "verify";
  others[5].pdl = PdlMode::chain;
  others[6].device = "h100";
  others[7].driver = "12.8";
  others[8].policy = "warm";
  for (const Measurement& m : others) EXPECT_NE(m.key(), key);
  Measurement same = measurement(8, 7);
  same.outcome = Outcome::wrong;
  same.measured = "2026-08-02";
  EXPECT_EQ(same.key(), key);
}

TEST(Measurement, EveryMissingFieldIsNamed) {
  const auto whole = nlohmann::ordered_json::parse(measurement().json());
  for (const auto& [field, value] : whole.items()) {
    if (field == "op" || field == "store") continue;
    auto without = whole;
    without.erase(field);
    try {
      Measurement::from_json(without.dump());
      ADD_FAILURE() << field << " may be left out";
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::invalid);
      EXPECT_THAT(e.what(), HasSubstr(field));
    }
  }
}

TEST(Measurement, RefusesAnotherSchemaAndWhatIsNoLine) {
  auto json = nlohmann::ordered_json::parse(measurement().json());
  json["schema"] = 2;
  EXPECT_THROW(Measurement::from_json(json.dump()), Error);
  for (const char* bad : {"", "{", "[]", "null", "3", "{}"}) EXPECT_THROW(Measurement::from_json(bad), Error) << bad;
}

TEST(Faults, Row27_ATornLastLineIsDroppedAndNothingElse) {
  const std::string text = lines({measurement(1), measurement(2), measurement(3)});
  const std::size_t last = text.rfind('\n', text.size() - 2) + 1;
  for (std::size_t cut = last; cut < text.size(); ++cut) {
    int skipped = -1;
    EXPECT_THAT(parse_journal(text.substr(0, cut), &skipped), SizeIs(2)) << "cut at " << cut;
    EXPECT_EQ(skipped, 0);
  }
  EXPECT_THAT(parse_journal(text), SizeIs(3));
}

TEST(Journal, BadLinesAreSkippedAndCounted) {
  std::string text = lines({measurement(1)});
  text += "not json\n\n{\"schema\": 1}\n" + std::string(1, '\0') + "\n";
  text += lines({measurement(2)});
  int skipped = 0;
  const std::vector<Measurement> all = parse_journal(text, &skipped);
  ASSERT_THAT(all, SizeIs(2));
  EXPECT_EQ(all[1].batch, 2);
  EXPECT_EQ(skipped, 3);
}

TEST(Journal, LinesEndedTheWindowsWayAreRead) {
  EXPECT_THAT(parse_journal(measurement().json() + "\r\n\r\n"), SizeIs(1));
}

TEST(Journal, OfLinesWithOneKeyTheLatestCountsInAnyOrder) {
  Measurement failed = measurement(1, 4), full = measurement(3, 0), later = measurement(2, 4);
  failed.outcome = Outcome::wrong;
  failed.reason = "wrong";
  full.outcome = Outcome::memory_failed;
  full.measured = later.measured = "2026-08-02T10:00:00Z";
  std::vector<Measurement> written = {measurement(1, 9), failed,         later, measurement(2, 6),
                                      measurement(2, 5), measurement(3), full};
  std::mt19937 random(1);
  for (int turn = 0; turn < 20; ++turn) {
    std::shuffle(written.begin(), written.end(), random);
    std::vector<Measurement> all = parse_journal(lines(written));
    ASSERT_THAT(all, SizeIs(3));
    std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.batch < b.batch; });
    EXPECT_EQ(all[0].outcome, Outcome::wrong) << "what was seen to be wrong stays so";
    EXPECT_EQ(all[1].us, 4);
    EXPECT_EQ(all[2].outcome, Outcome::ok) << "there was room at another time";
  }
}

TEST(Faults, Row26_APlanThatIsUnsoundAtOneSizeWinsAtNone) {
  for (Outcome o :
       {Outcome::wrong, Outcome::nondeterministic, Outcome::faulty, Outcome::crashed, Outcome::hung, Outcome::leaked}) {
    Measurement bad = measurement(64, 0, 1);
    bad.outcome = o;
    const Table table = fit_table({measurement(8, 5, 0), measurement(8, 4, 1), bad});
    ASSERT_THAT(table.rows, SizeIs(1));
    EXPECT_EQ(table.rows[0].plan, plans()[0]) << name(o);
  }
  Measurement full = measurement(64, 0, 1);
  full.outcome = Outcome::launch_failed;
  EXPECT_EQ(fit_table({measurement(8, 5, 0), measurement(8, 4, 1), full}).rows[0].plan, plans()[1]);
  Measurement bad = measurement(8, 0, 1), later = measurement(8, 4, 1);
  bad.outcome = Outcome::nondeterministic;
  later.policy = "by another policy";
  later.measured = "2027-01-01T00:00:00Z";
  EXPECT_EQ(fit_table({measurement(8, 5, 0), bad, later}).rows[0].plan, plans()[0]) << "what was seen once stays so";
}

TEST(Journal, EmptyTextHoldsNothing) {
  int skipped = 3;
  EXPECT_THAT(parse_journal("", &skipped), SizeIs(0));
  EXPECT_EQ(skipped, 0);
}

TEST(Fit, TheLeastTimeWins) {
  const Table table = fit_table({measurement(8, 5.5, 0), measurement(8, 5.25, 1), measurement(8, 5.75, 2)});
  ASSERT_THAT(table.rows, SizeIs(1));
  EXPECT_EQ(table.rows[0].plan, plans()[1]);
  EXPECT_EQ(table.rows[0].us, 5.25);
  EXPECT_EQ(table.rows[0].total_heads, 128);
  EXPECT_EQ(table.rows[0].source_digest, measurement(8, 1, 1).source_digest);
}

TEST(Faults, Row26_AFailedCandidateNeverWins) {
  std::vector<Measurement> all = {measurement(8, 6, 0)};
  for (Outcome o :
       {Outcome::not_compiled, Outcome::spills, Outcome::wrong, Outcome::nondeterministic, Outcome::launch_failed,
        Outcome::memory_failed, Outcome::crashed, Outcome::hung, Outcome::leaked, Outcome::pruned}) {
    all.push_back(measurement(8, 0.5, all.size()));
    all.back().outcome = o;
    all.push_back(measurement(64, 0.5, all.size()));
    all.back().outcome = o;
  }
  const Table table = fit_table(all);
  ASSERT_THAT(table.rows, SizeIs(1)) << "a batch with failures alone has no row";
  EXPECT_EQ(table.rows[0].plan, plans()[0]);
}

TEST(Fit, OfARingTheLeastWeightedStepWinsAndKeepsItsPhases) {
  const Table table = fit_table({ring_measurement(4, 20, 0), ring_measurement(5, 8, 1), measurement()});
  ASSERT_THAT(table.rows, SizeIs(2));
  const TableRow& row = table.rows[table.rows[0].op == Op::ring ? 0 : 1];
  EXPECT_EQ(row.op, Op::ring);
  EXPECT_EQ(row.plan, ring_measurement(5, 8, 1).plan);
  EXPECT_EQ(row.us, 5.75);
  EXPECT_EQ(row.floor_us, 2.875);
  EXPECT_EQ(row.steps_per_flush, 4);
  EXPECT_EQ(row.no_flush, (PhaseTime{5, 2.5}));
  EXPECT_EQ(row.flush, (PhaseTime{8, 4}));
  EXPECT_EQ(Table::from_json(table.json()).rows, table.rows) << "rows of both ops in one file";
}

TEST(Fit, APhaseAloneIsNoRow) {
  Measurement alone = ring_measurement(1, 2);
  alone.phases.pop_back();
  alone.phase = "no_flush";
  alone.weigh();
  EXPECT_THAT(fit_table({alone}).rows, SizeIs(0));
}

TEST(Fit, APlanThatWasDroppedEarlyNeverWins) {
  Measurement quick = measurement(8, 1, 1);
  quick.outcome = Outcome::dropped;
  const Table table = fit_table({quick, measurement(8, 5, 0)});
  ASSERT_THAT(table.rows, SizeIs(1));
  EXPECT_EQ(table.rows[0].us, 5);
  EXPECT_THAT(fit_table({quick}).rows, SizeIs(0));
}

TEST(Fit, AFloorAboveTheTimeIsLeftOut) {
  Measurement m = measurement(8, 5, 0);
  m.floor_us = 5.1;
  EXPECT_EQ(fit_table({m}).rows.at(0).floor_us, 0);
  m.floor_us = 5;
  EXPECT_EQ(fit_table({m}).rows.at(0).floor_us, 5);
}

TEST(Fit, DevicesModesDigestsAndSizesHaveRowsOfTheirOwn) {
  std::vector<Measurement> all(5, measurement());
  all[1].device = "h100";
  all[2].pdl = PdlMode::chain;
  all[3].kernel_digest = "0000000000000000";
  all[4].batch = 16;
  EXPECT_THAT(fit_table(all).rows, SizeIs(5));
  Measurement same_heads = measurement(16, 4);
  same_heads.nheads = 8;
  EXPECT_THAT(fit_table({measurement(), same_heads}).rows, SizeIs(1)) << "batch x nheads is what counts";
}

TEST(Fit, TiesDoNotDependOnTheOrderOfLines) {
  Measurement by_plan = measurement(8, 5, 3), by_date = measurement(), by_shape = measurement(16);
  by_date.measured = "2026-08-02T10:00:00Z";
  by_date.policy = "another";
  by_shape.nheads = 8;
  by_shape.source_digest = "another";
  Measurement below_a_nanosecond = measurement(8, 5.0004, 2), still_below = measurement(8, 5.0003, 4);
  std::vector<Measurement> all = {measurement(), by_plan, by_date, by_shape, below_a_nanosecond, still_below};
  const auto by_key = [](const Measurement& a, const Measurement& b) {
    return std::tuple(a.key(), a.us) < std::tuple(b.key(), b.us);
  };
  std::sort(all.begin(), all.end(), by_key);
  const std::string first = fit_table(all).json();
  while (std::next_permutation(all.begin(), all.end(), by_key)) ASSERT_EQ(fit_table(all).json(), first);
}

TEST(Fit, WhatTheSweepHoldsAndWhatItsJournalHoldsGiveOneTable) {
  std::vector<Measurement> all;
  std::mt19937_64 random(3);
  for (std::size_t plan = 0; plan < 20; ++plan)
    all.push_back(measurement(8, 5 + static_cast<double>(random() % 40) * 1e-4, plan));
  EXPECT_EQ(fit_table(all).json(), fit_table(parse_journal(lines(all))).json());
}

TEST(Fit, AnyOrderOfTheSameLinesGivesTheSameBytes) {
  std::vector<std::string> all;
  std::istringstream text(recorded("update.jsonl"));
  for (std::string line; std::getline(text, line);) all.push_back(line + "\n");
  ASSERT_GE(all.size(), 20u);
  const auto table = [&] {
    std::string joined;
    for (const std::string& line : all) joined += line;
    return fit_table(parse_journal(joined)).json();
  };
  const std::string first = table();
  EXPECT_THAT(Table::from_json(first).rows, SizeIs(testing::Ge(3u)));
  std::mt19937_64 random(11);
  for (int i = 0; i < 20; ++i) {
    std::shuffle(all.begin(), all.end(), random);
    ASSERT_EQ(table(), first);
  }
}

TEST(Fit, ShardsMergeByConcatenation) {
  std::istringstream text(recorded("update.jsonl"));
  std::string shard[3], whole;
  int i = 0;
  for (std::string line; std::getline(text, line);) {
    whole += line + "\n";
    shard[i++ % 3] += line + "\n";
  }
  const std::string want = fit_table(parse_journal(whole)).json();
  EXPECT_EQ(fit_table(parse_journal(shard[0] + shard[1] + shard[2])).json(), want);
  EXPECT_EQ(fit_table(parse_journal(shard[2] + shard[0] + shard[1])).json(), want);
}

TEST(Fit, IsStableUnderItsOwnTable) {
  const Table table = fit_table(parse_journal(recorded("update.jsonl")));
  EXPECT_EQ(Table::from_json(table.json()).json(), table.json());
}

}  // namespace
}  // namespace ssmjit
