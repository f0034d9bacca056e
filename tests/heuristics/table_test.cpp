#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/error.h>
#include <ssmjit/table.h>

#include "tests/heuristics/sample_rows.h"

namespace ssmjit {
namespace {

using testing::HasSubstr;
using testing::Not;

// What the refusal says; fails the test where there is none or it is of another kind.
std::string refusal(const std::string& json) {
  try {
    Table::from_json(json);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::invalid);
    return error.what();
  }
  ADD_FAILURE() << "accepted: " << json;
  return "";
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const auto at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from << " in " << text;
  return text.replace(at, from.size(), to);
}

TEST(Table, ReadsBackWhatItWrote) {
  Table table{{sample_row(16, 3, 0), sample_row(16, 4, 1, "h200", PdlMode::chain), sample_row(128, 5.25, 2, "b200")}};
  table.sort();
  EXPECT_EQ(Table::from_json(table.json()).rows, table.rows);
  EXPECT_EQ(Table::from_json(table.json()).json(), table.json());
  EXPECT_TRUE(Table::from_json(Table{}.json()).rows.empty());
}

TEST(Table, WritesOneRowALineInOneOrder) {
  const Table sorted{{sample_row(64, 1, 0, "b200"), sample_row(16, 1, 0), sample_row(128, 1, 0),
                      sample_row(16, 1, 0, "h200", PdlMode::chain)}};
  Table shuffled{{sorted.rows[3], sorted.rows[1], sorted.rows[0], sorted.rows[2]}};
  EXPECT_EQ(shuffled.json(), sorted.json());
  const std::string text = sorted.json();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 6);
  shuffled.sort();
  EXPECT_EQ(shuffled.rows, sorted.rows);
}

TEST(Table, NumbersOfHeadsAreSortedAsNumbers) {
  Table table{{sample_row(128, 1, 0), sample_row(16, 1, 0), sample_row(64, 1, 0)}};
  table.sort();
  EXPECT_EQ(table.rows.front().total_heads, 16);
  EXPECT_EQ(table.rows.back().total_heads, 128);
}

TEST(Table, RowsOfTheOtherWinAMerge) {
  Table table{{sample_row(16, 3, 0), sample_row(64, 4, 1)}};
  table.merge(Table{{sample_row(64, 2, 2), sample_row(16, 9, 3, "h200", PdlMode::chain)}});
  ASSERT_EQ(table.rows.size(), 3U);
  EXPECT_EQ(table.rows[0], sample_row(16, 3, 0));
  EXPECT_EQ(table.rows[1], sample_row(64, 2, 2));
  EXPECT_EQ(table.rows[2], sample_row(16, 9, 3, "h200", PdlMode::chain));
}

TEST(Table, APredictedRowSaysSoInItsLineAndAMeasuredOneNothing) {
  Table table{{sample_row(16, 3, 0), sample_row(64, 4, 1)}};
  EXPECT_THAT(table.json(), Not(HasSubstr("predicted")));
  table.rows[1].predicted = true;
  EXPECT_THAT(table.json(), HasSubstr("\"predicted\":true}\n]"));
  EXPECT_EQ(Table::from_json(table.json()).rows, table.rows);
  EXPECT_THAT(refusal(replaced(table.json(), "\"predicted\":true", "\"predicted\":1")),
              HasSubstr("rows[1].predicted: got 1, want true or false"));
}

// Rows with a plan each for the sizes between it and the next one, by number; -1: none.
Table with_between(std::vector<std::pair<std::int64_t, int>> sizes, std::size_t plan = 0) {
  Table table;
  for (const auto& [total_heads, between] : sizes) {
    table.rows.push_back(sample_row(total_heads, 3, plan++));
    if (between >= 0) table.rows.back().between = sample_plan(static_cast<std::size_t>(between));
  }
  return table;
}

TEST(Table, ThePlanOfSizesBetweenIsInARowsLineOnlyWhereThereIsOne) {
  const Table table = with_between({{16, 7}, {64, -1}});
  const std::string text = table.json();
  EXPECT_EQ(text.find("\"between\""), text.rfind("\"between\""));
  EXPECT_THAT(text, HasSubstr("\"between\":" + sample_plan(7).json()));
  EXPECT_EQ(Table::from_json(text).rows, table.rows);
  EXPECT_EQ(table.plan_count(), 3u);
  EXPECT_THAT(refusal(replaced(text, "\"between\":{", "\"between\":{\"blocks\":1,")), HasSubstr("rows[0].between: "));
  EXPECT_THAT(refusal(replaced(text, "\"between\":" + sample_plan(7).json(), "\"between\":40")),
              HasSubstr("rows[0].between: "));
}

TEST(Table, UpToHowManyHeadsAPlanFitsIsInARowsLineWhereItIsKnownAndNeverBelowItsOwnSize) {
  Table table{{sample_row(16, 3, 0), sample_row(64, 4, 1)}};
  EXPECT_THAT(table.json(), Not(HasSubstr("fits_heads")));
  table.rows[1].fits_heads = 112;
  const std::string text = table.json();
  EXPECT_THAT(text, HasSubstr("\"fits_heads\":112,"));
  EXPECT_EQ(Table::from_json(text).rows, table.rows);
  for (const char* bad : {"63", "0", "-112", "64.5", "\"112\"", "null"})
    EXPECT_THAT(refusal(replaced(text, "\"fits_heads\":112", std::string("\"fits_heads\":") + bad)),
                HasSubstr(std::string("rows[1].fits_heads: got ") + bad + ", want a whole number from 64 up"));
  EXPECT_EQ(Table::from_json(replaced(text, "\"fits_heads\":112", "\"fits_heads\":64")).rows[1].fits_heads, 64);

  Table merged{{sample_row(16, 3, 0), sample_row(64, 9, 2)}};
  merged.merge(Table{{table.rows[1]}});
  EXPECT_EQ(merged.rows, table.rows) << "of the row alone, whatever stands beside it";
}

TEST(Table, AMergeForgetsThePlanBetweenTwoRowsOfWhichOneIsOfTheOtherTable) {
  Table table = with_between({{16, 10}, {64, 11}, {256, 12}, {1024, -1}});
  table.merge(with_between({{256, 13}, {512, 14}}, 5));
  ASSERT_EQ(table.rows.size(), 5u);
  const int want[] = {10, -1, 13, -1, -1};  // at 16, 64, 256, 512, 1024
  for (std::size_t i = 0; i < 5; ++i)
    EXPECT_EQ(table.rows[i].between,
              want[i] < 0 ? std::nullopt : std::optional(sample_plan(static_cast<std::size_t>(want[i]))))
        << table.rows[i].total_heads;
}

TEST(Table, AMergeWithPredictedRowsOrAnotherModesForgetsNothing) {
  Table predicted = with_between({{32, -1}, {128, -1}});
  for (TableRow& row : predicted.rows) row.predicted = true;
  Table chain = with_between({{32, 9}, {2048, -1}});
  for (TableRow& row : chain.rows) row.pdl = PdlMode::chain;
  for (Table& other : std::vector<Table>{predicted, chain}) {
    Table table = with_between({{16, 10}, {64, 11}, {256, -1}});
    table.merge(other);
    for (const TableRow& row : table.rows) {
      if (row.total_heads == 16 || row.total_heads == 64) {
        EXPECT_TRUE(row.between) << row.total_heads;
      }
    }
    other.merge(with_between({{16, 10}, {64, 11}, {256, -1}}));
    EXPECT_EQ(other.rows, table.rows);
  }
}

TEST(Table, NoPredictedRowWinsAMergeOverAMeasuredOne) {
  Table predicted{{sample_row(16, 3, 0)}};
  predicted.rows[0].predicted = true;
  const Table measured{{sample_row(16, 4, 1)}};
  for (const auto& [first, second] : {std::pair(predicted, measured), std::pair(measured, predicted)}) {
    Table merged = first;
    merged.merge(second);
    EXPECT_EQ(merged.rows, measured.rows);
  }
}

TEST(Table, CountsThePlansThatAnEngineHasToCompile) {
  Table table{{sample_row(16, 3, 0), sample_row(64, 4, 0), sample_row(256, 9, 1)}};
  EXPECT_EQ(table.plan_count(), 2u);
  table.rows.push_back(sample_row(16, 3, 0, "h200", PdlMode::chain));
  EXPECT_EQ(table.plan_count(), 2u) << "one kernel serves both modes where the plan is the same";
  table.rows[1].kernel_digest = "another";
  EXPECT_EQ(table.plan_count(), 3u);
}

TEST(Table, MergingItselfChangesNothing) {
  Table table{{sample_row(16, 3, 0), sample_row(64, 4, 1)}};
  const Table same = table;
  table.merge(table);
  EXPECT_EQ(table.rows, same.rows);
}

TEST(Table, RefusesWhatIsNotATable) {
  EXPECT_THAT(refusal(""), HasSubstr("not JSON"));
  EXPECT_THAT(refusal("{\"schema\": 1,"), HasSubstr("not JSON"));
  EXPECT_THAT(refusal("[]"), HasSubstr("want an object"));
  EXPECT_THAT(refusal("{}"), HasSubstr("rows: missing"));
}

TEST(Table, RefusesAnotherSchemaOrKernel) {
  const std::string good = Table{}.json();
  EXPECT_THAT(refusal(replaced(good, "\"schema\": 1", "\"schema\": 2")), HasSubstr("schema: got 2, want 1"));
  EXPECT_THAT(refusal(replaced(good, "in_place", "ring")), HasSubstr("store: got \"ring\", want \"in_place\""));
  EXPECT_THAT(refusal(replaced(good, "\"update\"", "\"conv2d\"")), HasSubstr("op: got \"conv2d\""));
}

TableRow ring_row(std::int64_t total_heads) {
  const Description ring = sample_description().tokens(6).store(Ring{.window = 16});
  TableRow row = of_kernel(ring, sample_row(total_heads, 5.75, 0));
  row.op = Op::ring;
  row.plan = plan_space(ring, kSm90).front();
  row.steps_per_flush = 4;
  row.no_flush = {5, 2.5};
  row.flush = {8, 4};
  return row;
}

TEST(Table, ATableOfRingsSaysSoInItsHead) {
  const Table table{{ring_row(16), ring_row(32)}};
  EXPECT_THAT(table.json(), HasSubstr("\"op\": \"ring\", \"store\": \"ring\", \"rows\""));
  EXPECT_EQ(Table::from_json(table.json()).rows, table.rows);
}

TEST(Table, RowsOfBothOpsNameTheirs) {
  Table table{{ring_row(16), sample_row(16, 3, 0)}};
  table.sort();
  const std::string text = table.json();
  EXPECT_THAT(text, HasSubstr("{\"schema\": 1, \"rows\""));
  EXPECT_EQ(Table::from_json(text).rows, table.rows);
  EXPECT_EQ(Table::from_json(text).json(), text);
  EXPECT_THAT(refusal(replaced(text, "\"op\":\"ring\",", "")), HasSubstr("].op: missing"));
  EXPECT_THAT(refusal(replaced(text, "\"op\":\"ring\",", "\"op\":\"conv2d\",")), HasSubstr("op: got \"conv2d\""));

  Table merged{{sample_row(16, 3, 0)}};
  merged.merge(Table{{ring_row(16)}});
  EXPECT_EQ(merged.rows, table.rows);
}

TEST(Table, OfLayersThoseWithARingHaveItsPhases) {
  const Description in_place = sample_description().with_norm({.gate_expr = silu(dsl::z)});
  TableRow layer = of_kernel(in_place, sample_row(16, 3, 0));
  layer.op = Op::layer;
  TableRow with_ring = ring_row(32);
  with_ring.op = Op::layer;
  EXPECT_TRUE(with_ring.has_ring());

  const Table rings{{with_ring}}, layers{{layer}};
  EXPECT_THAT(rings.json(), HasSubstr("\"op\": \"layer\", \"store\": \"ring\", \"rows\""));
  EXPECT_THAT(layers.json(), HasSubstr("\"op\": \"layer\", \"store\": \"in_place\", \"rows\""));
  EXPECT_EQ(Table::from_json(rings.json()).rows, rings.rows);
  EXPECT_EQ(Table::from_json(layers.json()).rows, layers.rows);
  EXPECT_THAT(refusal(replaced(rings.json(), "\"store\": \"ring\"", "\"store\": \"in_place\"")),
              HasSubstr("\"steps_per_flush\": unknown field"));
  EXPECT_THAT(refusal(replaced(layers.json(), "\"store\": \"in_place\"", "\"store\": \"ring\"")),
              HasSubstr("rows[0].steps_per_flush: missing"));

  Table both{{layer, with_ring}};
  both.sort();
  EXPECT_THAT(both.json(), HasSubstr("{\"schema\": 1, \"rows\""));
  EXPECT_EQ(Table::from_json(both.json()).rows, both.rows);
}

TEST(Table, ARingsRowWithoutItsPhasesIsRefused) {
  const std::string good = Table{{ring_row(16)}}.json();
  EXPECT_THAT(refusal(replaced(good, "\"no_flush\"", "\"no_flash\"")), HasSubstr("rows[0].no_flush: missing"));
  EXPECT_THAT(refusal(replaced(good, "\"us\":8.0", "\"us\":0")), HasSubstr("rows[0].flush.us: got 0"));
  EXPECT_THAT(refusal(replaced(good, "\"steps_per_flush\":4.0", "\"steps_per_flush\":0.5")),
              HasSubstr("rows[0].steps_per_flush: got 0.5, want a number from 1 up"));
}

TEST(Table, NamesEveryWrongFieldOfEveryRowInOneGo) {
  const std::string good = Table{{sample_row(16, 3, 0), sample_row(64, 4, 1)}}.json();
  std::string bad = replaced(good, "\"total_heads\":16", "\"total_heads\":0");
  bad = replaced(bad, "\"us\":3.0", "\"us\":\"fast\"");
  bad = replaced(bad, "\"device\":\"h200\"", "\"device\":7");
  bad = replaced(bad, "\"us\":4.0", "\"uss\":4.0");
  const std::string text = refusal(bad);
  EXPECT_THAT(text, HasSubstr("rows[0].total_heads: got 0, want a whole number from 1 up"));
  EXPECT_THAT(text, HasSubstr("rows[0].us: got \"fast\""));
  EXPECT_THAT(text, HasSubstr("rows[0].device: got 7"));
  EXPECT_THAT(text, HasSubstr("rows[1].us: missing"));
  EXPECT_THAT(text, HasSubstr("rows[1].\"uss\": unknown field"));
}

TEST(Table, RefusesNumbersThatAreNoMeasurement) {
  const std::string good = Table{{sample_row(16, 3, 0)}}.json();
  for (const char* us : {"0.0", "-1.0", "null", "1e999", "[3]"}) {
    EXPECT_FALSE(refusal(replaced(good, "\"us\":3.0", std::string("\"us\":") + us)).empty()) << us;
  }
  for (const char* heads : {"-16", "16.5", "18446744073709551615", "\"16\"", "true"}) {
    EXPECT_THAT(refusal(replaced(good, "\"total_heads\":16", std::string("\"total_heads\":") + heads)),
                HasSubstr("rows[0].total_heads"));
  }
}

TEST(Table, RefusesAPlanThatItCannotRead) {
  const std::string good = Table{{sample_row(16, 3, 0)}}.json();
  EXPECT_THAT(refusal(replaced(good, "\"warps\"", "\"wraps\"")), HasSubstr("rows[0].plan"));
  EXPECT_THAT(refusal(replaced(good, "\"pdl\":\"off\"", "\"pdl\":\"on\"")), HasSubstr("rows[0].pdl"));
}

TEST(Table, RefusesTwoRowsWithOneKey) {
  EXPECT_THAT(refusal(Table{{sample_row(16, 3, 0), sample_row(16, 4, 1)}}.json()), HasSubstr("rows[1]: the same"));
}

TEST(Table, ALongListOfFaultsIsCut) {
  std::string rows = "1";
  for (int i = 0; i < 99; ++i) rows += ",1";
  const std::string text =
      refusal("{\"schema\": 1, \"op\": \"update\", \"store\": \"in_place\", \"rows\": [" + rows + "]}");
  EXPECT_THAT(text, HasSubstr("and 80 more"));
  EXPECT_THAT(text, Not(HasSubstr("rows[50]")));
}

TEST(Table, AnyBytesInProvenanceAreWritten) {
  Table table{{sample_row(16, 3, 0)}};
  table.rows[0].kernel = "quote \" newline \n bad utf-8 \xff";
  EXPECT_EQ(Table::from_json(table.json()).rows.size(), 1U);
}

TEST(Names, ReadBack) {
  EXPECT_EQ(parse_pdl_mode(name(PdlMode::off)), PdlMode::off);
  EXPECT_EQ(parse_pdl_mode(name(PdlMode::chain)), PdlMode::chain);
  EXPECT_THROW(parse_pdl_mode("CHAIN"), Error);
  EXPECT_STREQ(name(Why::fallback), "default");
}

}  // namespace
}  // namespace ssmjit
