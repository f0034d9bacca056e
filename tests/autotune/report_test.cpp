// The report's page, by the JSON that its script draws.
#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <ssmjit/error.h>
#include <ssmjit/report.h>

namespace ssmjit {
namespace {

using Json = nlohmann::json;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

const std::string kOpen = R"(<script type="application/json" id="data">)", kClose = "</script>";

std::string data_text(const std::string& page) {
  const std::size_t from = page.find(kOpen) + kOpen.size();
  return page.substr(from, page.find(kClose, from) - from);
}
Json data_of(const std::vector<Measurement>& measurements, const ReportOptions& options = {}) {
  const Json data = Json::parse(data_text(report_html(measurements, options)), nullptr, false);
  EXPECT_FALSE(data.is_discarded());
  return data;
}
// The page around its data.
std::string frame_of(const std::string& page) {
  const std::string data = data_text(page);
  std::string frame = page;
  return frame.erase(page.find(kOpen) + kOpen.size(), data.size());
}

// Measured on an H200: a ring and an update, two modes, batches 1, 8, 64, 512.
const std::vector<Measurement>& recorded() {
  static const std::vector<Measurement> all = [] {
    std::ifstream file(SSMJIT_SOURCE_DIR "/tests/vectors/journals/report-h200.jsonl", std::ios::binary);
    return parse_journal(std::string{std::istreambuf_iterator<char>(file), {}});
  }();
  EXPECT_GT(all.size(), 200u);
  return all;
}

bool timed(const Measurement& m) { return m.outcome == Outcome::ok || m.outcome == Outcome::dropped; }

TEST(Report, HoldsEveryMeasurementOfTheJournal) {
  std::multiset<std::string> wanted, found;
  int failed = 0;
  const auto line = [](const std::string& digest, const std::string& pdl, int batch, const std::string& plan,
                       const std::string& source, bool full, double us) {
    return digest + pdl + std::to_string(batch) + plan + source + (full ? "full" : "") + std::to_string(us);
  };
  for (const Measurement& m : recorded()) {
    if (timed(m))
      wanted.insert(
          line(m.kernel_digest, name(m.pdl), m.batch, m.plan.text(), m.source_digest, m.outcome == Outcome::ok, m.us));
    else
      ++failed;
  }
  const Json data = data_of(recorded());
  EXPECT_EQ(data["measurements"], recorded().size());
  ASSERT_THAT(data["kernels"], SizeIs(2));
  for (const Json& kernel : data["kernels"]) {
    for (const Json& mode : kernel["modes"])
      for (const Json& cell : mode["cells"])
        for (const Json& c : cell["candidates"]) {
          const Json& plan = kernel["plans"].at(c[0].get<std::size_t>());
          found.insert(line(kernel["kernel_digest"], mode["pdl"], cell["batch"], plan[0], plan[1], c[1] == 1, c[2]));
        }
    for (const Json& failure : kernel["failures"]) failed -= failure["count"].get<int>();
  }
  EXPECT_EQ(found, wanted);
  EXPECT_EQ(failed, 0) << "failures that the page does not count";
}

TEST(Report, TheBestOfACellIsTheFastestPlanThatWasTimedInFull) {
  std::map<std::tuple<std::string, std::string, int>, const Measurement*> fastest;
  for (const Measurement& m : recorded()) {
    const Measurement*& of = fastest[{m.kernel_digest, name(m.pdl), m.batch}];
    if (m.outcome == Outcome::ok && (of == nullptr || m.us < of->us)) of = &m;
  }
  const Json data = data_of(recorded());
  int cells = 0;
  for (const Json& kernel : data["kernels"])
    for (const Json& mode : kernel["modes"])
      for (const Json& cell : mode["cells"]) {
        ++cells;
        const Measurement* m = fastest[{kernel["kernel_digest"], mode["pdl"], cell["batch"]}];
        ASSERT_NE(m, nullptr);
        const Json& best = cell["best"];
        EXPECT_EQ(kernel["plans"].at(best["plan"].get<std::size_t>())[0], m->plan.text());
        EXPECT_DOUBLE_EQ(best["us"], m->us);
        EXPECT_DOUBLE_EQ(best["floor_us"], m->floor_us);
        EXPECT_DOUBLE_EQ(best["share"], m->share);
        EXPECT_EQ(cell["total_heads"], m->total_heads());
        EXPECT_EQ(cell.contains("phases"), m->op == Op::ring);
        for (std::size_t p = 0; p < m->phases.size(); ++p) {
          EXPECT_EQ(cell["phases"][p]["phase"], name(m->phases[p].phase));
          EXPECT_DOUBLE_EQ(cell["phases"][p]["us"], m->phases[p].us);
          EXPECT_DOUBLE_EQ(cell["phases"][p]["floor_us"], m->phases[p].floor_us);
        }
      }
  EXPECT_EQ(cells, 16);
}

TEST(Report, WithoutATableItsOwnIsHeldAgainstTheCells) {
  const Json data = data_of(recorded());
  EXPECT_EQ(data["table"]["fitted"], true);
  EXPECT_EQ(data["table"]["rows"], 16);
  for (const Json& kernel : data["kernels"])
    for (const Json& mode : kernel["modes"])
      for (const Json& cell : mode["cells"]) {
        EXPECT_EQ(cell["table"]["why"], "exact");
        EXPECT_LE(cell["table"]["regret"].get<double>(), 0.01);
        EXPECT_NE(cell["left_out"]["why"], "exact");
      }
}

TEST(Report, ATunablesEffectIsTheBestPlanWithEachOfItsValues) {
  const Json data = data_of(recorded());
  int seen = 0;
  for (const Json& kernel : data["kernels"])
    for (const Json& mode : kernel["modes"])
      for (const Json& effect : mode["effects"]) {
        for (std::size_t c = 0; c < mode["cells"].size(); ++c) {
          const Json& cell = mode["cells"][c];
          std::map<std::string, double> best;
          for (const Json& candidate : cell["candidates"]) {
            const std::string plan =
                "," + kernel["plans"].at(candidate[0].get<std::size_t>())[0].get<std::string>() + ",";
            const std::string field = "," + effect["tunable"].get<std::string>() + "=";
            const std::size_t at = plan.find(field);
            if (at == std::string::npos) continue;
            const std::size_t from = at + field.size();
            const std::string value = plan.substr(from, plan.find(',', from) - from);
            if (!best.contains(value)) best[value] = candidate[2];
            best[value] = std::min(best[value], candidate[2].get<double>());
          }
          for (const Json& value : effect["values"]) {
            const auto found = best.find(value["value"]);
            if (found == best.end()) continue;  // ring_rows=all is not in a plan's text
            ++seen;
            EXPECT_EQ(value["best"][c][1], found->second) << effect["tunable"] << " " << value["value"];
            EXPECT_NEAR(value["best"][c][2].get<double>(),
                        std::max(0.0, found->second / cell["best"]["us"].get<double>() - 1), 1e-3);
          }
        }
      }
  EXPECT_GT(seen, 100);
}

// A small sweep: three plans at two batches.
Measurement line(std::size_t plan, int batch, double us) {
  static const Description d = mamba2({.nheads = 16, .head_dim = 64, .dstate = 128});
  static const std::vector<Plan> plans = plan_space(d, Arch{});
  Measurement m;
  m.kernel_digest = d.kernel_digest();
  m.cost_digest = d.cost_digest();
  m.kernel = d.summary();
  m.plan = plans.at(plan);
  m.source_digest = "source" + std::to_string(plan);
  m.batch = batch;
  m.nheads = 16;
  m.device = "h200";
  m.device_name = "NVIDIA H200";
  m.us = m.us_min = m.us_max = us;
  m.floor_us = 1;
  m.share = 1 / us;
  m.measured = "2026-01-02T03:04:05Z";
  return m;
}
std::vector<Measurement> small() {
  return {line(0, 1, 2), line(1, 1, 2.5), line(2, 1, 4), line(0, 8, 8), line(1, 8, 6), line(2, 8, 6.3)};
}

TEST(Report, ATunablesNumbersAreInTheirOrderWhateverPlansHaveThem) {
  std::vector<Measurement> lines = small();
  for (const auto& [plan, block_m] : {std::pair(0, 4), std::pair(1, 256), std::pair(2, 12)})
    for (std::size_t i = 0; i < lines.size(); ++i)
      if (i % 3 == static_cast<std::size_t>(plan)) lines[i].plan.block_m = block_m;
  std::vector<std::string> order;
  const Json effects = data_of(lines)["kernels"][0]["modes"][0]["effects"];
  for (const Json& effect : effects)
    if (effect["tunable"] == "block_m")
      for (const Json& value : effect["values"]) order.push_back(value["value"]);
  EXPECT_EQ(order, (std::vector<std::string>{"4", "12", "256"}));
}

TEST(Report, RegretIsWhatTheTablesPlanLosesInTheCell) {
  ReportOptions options{.table_name = "mine.json"};
  options.table = fit_table({line(0, 1, 2), line(2, 8, 6.3)});
  const Json data = data_of(small(), options);
  EXPECT_EQ(data["table"], (Json{{"name", "mine.json"}, {"rows", 2}, {"fitted", false}}));
  const Json cells = data["kernels"][0]["modes"][0]["cells"];
  EXPECT_EQ(cells[0]["table"]["regret"], 0);
  EXPECT_NEAR(cells[1]["table"]["regret"].get<double>(), 0.05, 1e-4) << "6.3 against 6";
  EXPECT_NEAR(cells[0]["left_out"]["regret"].get<double>(), 1, 1e-4) << "the plan of batch 8 at batch 1: 4 against 2";
  EXPECT_EQ(cells[0]["left_out"]["why"], "nearest");
  EXPECT_NEAR(cells[1]["left_out"]["regret"].get<double>(), 8.0 / 6 - 1, 1e-4);
}

TEST(Report, AnAnswerThatIsNotARowOfTheCellSaysSo) {
  ReportOptions options;
  options.table = fit_table({line(0, 1, 2), line(2, 64, 30)});
  EXPECT_EQ(data_of(small(), options)["kernels"][0]["modes"][0]["cells"][1]["table"]["why"], "interpolated");
  EXPECT_THAT(data_of(small(), options)["other_rows"], SizeIs(1)) << "batch 64";
  for (TableRow& row : options.table.rows) row.device = "h100";
  EXPECT_EQ(data_of(small(), options)["kernels"][0]["modes"][0]["cells"][0]["table"]["why"], "other_device");
  for (TableRow& row : options.table.rows) row.device = "h200", row.kernel_digest = "other";
  EXPECT_EQ(data_of(small(), options)["kernels"][0]["modes"][0]["cells"][0]["table"]["why"], "similar");
  for (TableRow& row : options.table.rows) row.cost_digest = "other";
  const Json none = data_of(small(), options)["kernels"][0]["modes"][0]["cells"][0]["table"];
  EXPECT_EQ(none, (Json{{"why", "default"}}));
}

TEST(Report, PredictedRowsAreMarked) {
  ReportOptions options;
  options.table = fit_table({line(0, 1, 2), line(2, 64, 30)});
  for (TableRow& row : options.table.rows) row.predicted = true;
  const Json data = data_of(small(), options);
  EXPECT_EQ(data["kernels"][0]["modes"][0]["cells"][0]["table"]["why"], "predicted");
  ASSERT_THAT(data["other_rows"], SizeIs(1));
  EXPECT_EQ(data["other_rows"][0]["predicted"], true);
}

TEST(Report, APlanThatIsWrongAtOneSizeIsTheBestOfNone) {
  std::vector<Measurement> all = small();
  Measurement wrong = line(0, 64, 0);
  wrong.outcome = Outcome::wrong;
  all.push_back(wrong);
  const Json kernel = data_of(all)["kernels"][0];
  const Json cell = kernel["modes"][0]["cells"][0];
  EXPECT_EQ(kernel["plans"].at(cell["best"]["plan"].get<std::size_t>())[0], line(1, 1, 0).plan.text());
  EXPECT_EQ(cell["table"]["regret"], 0);
}

TEST(Report, APlanOfTheTableThatWasNotTimedHasNoRegret) {
  ReportOptions options;
  options.table = fit_table({line(5, 1, 2)});
  const Json answer = data_of(small(), options)["kernels"][0]["modes"][0]["cells"][0]["table"];
  EXPECT_EQ(answer["why"], "exact");
  EXPECT_FALSE(answer.contains("regret"));
}

TEST(Report, FailuresAreCountedByReasonWithoutTheirNumbers) {
  std::vector<Measurement> all = small();
  for (const char* reason : {"112 bytes of registers spill", "8 bytes of registers spill", "relative error 3.2e-1"}) {
    Measurement m = line(3, 0, 0);
    m.phase = "verify";
    m.outcome = std::string(reason).find("spill") == std::string::npos ? Outcome::wrong : Outcome::spills;
    m.reason = reason;
    all.push_back(m);
  }
  const Json failures = data_of(all)["kernels"][0]["failures"];
  ASSERT_THAT(failures, SizeIs(2));
  EXPECT_EQ(failures[0]["count"], 2);
  EXPECT_EQ(failures[0]["outcome"], "spills");
  EXPECT_EQ(failures[0]["reason"], "# bytes of registers spill");
  EXPECT_EQ(failures[0]["example"], "112 bytes of registers spill");
  EXPECT_EQ(failures[1]["reason"], "relative error #");
}

TEST(Report, ASweepThatDidNotGetFarIsShownAsFarAsItGot) {
  Measurement dropped = line(0, 1, 2), unheard = line(1, 8, 1e308);
  dropped.outcome = Outcome::dropped;
  unheard.us *= 10;  // infinite
  Measurement failed = line(2, 0, 0);
  failed.outcome = Outcome::not_compiled;
  const Json data = data_of({dropped, unheard, failed});
  ASSERT_THAT(data["kernels"][0]["modes"][0]["cells"], SizeIs(1));
  EXPECT_FALSE(data["kernels"][0]["modes"][0]["cells"][0].contains("best"));
  EXPECT_THAT(data_of({failed})["kernels"][0]["modes"], IsEmpty());
  Measurement verified = line(3, 0, 0);
  verified.phase = "verify";
  EXPECT_EQ(data_of({dropped, verified})["kernels"][0]["outcomes"], (Json{{"dropped", 1}, {"verified", 1}}));
}

TEST(Report, TextOfAJournalCannotLeaveItsPlace) {
  const std::string hostile =
      "</script><script>alert(1)</script><!--<img src=x onerror=alert(1)>@page.js@ ]]> \xff\x01 \"'\\";
  std::vector<Measurement> all = small();
  ReportOptions options{.table_name = hostile};
  options.journals = {{hostile, 3}};
  options.table = fit_table(all);
  for (Measurement& m : all) {
    for (std::string* text : {&m.kernel_digest, &m.cost_digest, &m.kernel, &m.source_digest, &m.device, &m.device_name,
                              &m.driver, &m.nvrtc, &m.policy, &m.reason, &m.measured, &m.phase})
      *text = hostile;
  }
  all.push_back(all.front());
  all.back().outcome = Outcome::wrong;
  const std::string page = report_html(all, options);
  EXPECT_THAT(data_text(page), Not(HasSubstr("<")));
  EXPECT_EQ(frame_of(page), frame_of(report_html(small())));
  const Json data = Json::parse(data_text(page), nullptr, false);
  ASSERT_TRUE(data.is_object());
  EXPECT_THAT(data["kernels"][0]["kernel"].get<std::string>(), HasSubstr("</script><script>alert(1)"));
  EXPECT_EQ(data["journals"][0]["skipped"], 3);
}

TEST(Report, AsksForNothingFromElsewhere) {
  const std::string frame = frame_of(report_html(small()));
  EXPECT_THAT(frame, HasSubstr("default-src 'none'"));
  for (const char* way :
       {"src=\"", "@import", "url(", "fetch(", "XMLHttpRequest", "import(", "innerHTML", "href=\"http"})
    EXPECT_THAT(frame, Not(HasSubstr(way)));
}

TEST(Report, FiveThousandMeasurementsStayBelowThreeMegabytes) {
  const std::string page = report_html(recorded());
  const double each = static_cast<double>(data_text(page).size()) / static_cast<double>(recorded().size());
  EXPECT_LT(static_cast<double>(frame_of(page).size()) + 5000 * each, 3e6);
  EXPECT_EQ(page, report_html(recorded()));
}

SpeculativeStep draft_step_of(DraftForm form, int batch, double us) {
  SpeculativeStep s;
  s.form = form;
  s.base = s.kernel = "16 heads x 64 x 128";
  s.batch = batch;
  s.tokens = 6;
  s.accepted = "1:0.5,2:0.5";
  s.draft_chance = 0.5;
  s.kept = 1.5;
  s.us = s.kernel_us = us;
  s.slot_bytes = form == DraftForm::ring ? 1000 : 7000;
  s.device = "h200";
  s.device_name = "NVIDIA H200";
  s.measured = "2026-01-02T03:04:05Z";
  return s;
}

TEST(Report, FormsOfVerifyingDraftsAreDrawnByTokensAcceptanceAndBatch) {
  ReportOptions options{.speculative_files = {{"forms.jsonl", 2}}};
  options.speculative = {draft_step_of(DraftForm::ring, 8, 9), draft_step_of(DraftForm::slots, 1, 3),
                         draft_step_of(DraftForm::ring, 1, 2), draft_step_of(DraftForm::replay, 1, 1),
                         draft_step_of(DraftForm::ring, 8, 7)};
  options.speculative[3].outcome = Outcome::spills;
  options.speculative[3].reason = "8 bytes <b>";
  options.speculative.push_back(draft_step_of(DraftForm::ring, 1, 4));
  options.speculative.back().tokens = 4;
  const Json data = data_of({}, options);
  EXPECT_EQ(data["measurements"], 0);
  EXPECT_EQ(data["journals"], Json::parse(R"([{"name": "forms.jsonl", "skipped": 2}])"));
  ASSERT_THAT(data["speculative"], SizeIs(1));
  const Json tokens = data["speculative"][0]["tokens"];
  ASSERT_THAT(tokens, SizeIs(2));
  EXPECT_EQ(tokens[0]["tokens"], 4);
  EXPECT_EQ(tokens[1]["slots"], Json::parse(R"([{"form": "slots", "bytes": 7000}, {"form": "ring", "bytes": 1000}])"));
  ASSERT_THAT(tokens[1]["acceptances"], SizeIs(1));
  const Json cells = tokens[1]["acceptances"][0]["cells"];
  ASSERT_THAT(cells, SizeIs(2));
  EXPECT_EQ(cells[0]["fastest"], "ring") << "a replay that spills is no answer";
  ASSERT_THAT(cells[0]["forms"], SizeIs(3));
  EXPECT_EQ(cells[0]["forms"][1]["reason"], "8 bytes <b>");
  EXPECT_EQ(cells[1]["forms"][0]["us"], 7) << "the last line counts";
  ASSERT_THAT(data["provenance"], SizeIs(1));
  EXPECT_EQ(data["provenance"][0]["measurements"], 5);
  EXPECT_THAT(data_text(report_html({}, options)), Not(HasSubstr("<")));
  EXPECT_EQ(data_of(small(), options)["speculative"], data["speculative"]);
  EXPECT_THAT(data_of(small())["speculative"], IsEmpty());
}

TEST(Report, WithoutAMeasurementIsRefused) {
  try {
    report_html({}, {.journals = {{"empty.jsonl", 0}}});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::invalid);
    EXPECT_THAT(error.what(), HasSubstr("\"empty.jsonl\""));
  }
}

}  // namespace
}  // namespace ssmjit
