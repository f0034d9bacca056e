// Emitted tables answer as lookup() does: the header through a C++17 compiler, the module through Python.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ssmjit/error.h>
#include <ssmjit/table.h>

#include "tests/heuristics/sample_rows.h"

namespace ssmjit {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

Description twin() { return sample_description().delta(softplus(dsl::dt)); }
Description stranger() { return sample_description().state(DType::f32); }

TableRow marked(TableRow row, bool early, bool predicted = false) {
  row.plan.early_state = early;
  row.predicted = predicted;
  return row;
}

Description one_head(Description description) {
  description.nheads = description.ngroups = 1;
  return description;
}

// The row with a plan that is legal with one head a group too.
TableRow with_plan(std::size_t i, TableRow row, const Description& description = sample_description()) {
  const std::vector<Plan> plans = plan_space(one_head(description), Arch{8, 0, 0});
  row.plan = plans.at(i * 7 % plans.size());
  return row;
}

// Sizes of one kernel on an H100, drawn by a fixed seed; many rows say what fits, some in vain: less than their own
// size, more than the next row's.
std::vector<TableRow> drawn_rows() {
  std::mt19937 random(7);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  std::vector<TableRow> rows;
  for (std::int64_t heads = 1 + below(30); rows.size() < 60; heads += 1 + below(static_cast<int>(heads))) {
    rows.push_back(sample_row(heads, 2 + 0.01 * static_cast<double>(heads) + 0.1 * below(9), rows.size(), "h100"));
    if (below(3) > 0) rows.back().fits_heads = heads - 2 + below(static_cast<int>(heads) + 4);
    if (below(2) > 0) rows.back().between = sample_plan(rows.size() + 1);
    if (heads > 1'000'000) break;
  }
  return rows;
}

// Rows of four GPUs, both modes, two kernels of one cost and one more; times that no line goes through.
Table rich_table() {
  Table table;
  for (int i = 0; i < 11; ++i)
    table.rows.push_back(sample_row(16 << i, 2.137 + 0.731 * (1 << i), static_cast<std::size_t>(i % 4)));
  for (const std::size_t row : {1u, 2u, 3u, 7u, 10u}) table.rows[row].between = sample_plan(row + 3);
  table.rows[3].fits_heads = 130;
  table.rows[4].fits_heads = 400;
  table.rows[5].fits_heads = 1024;
  for (int heads : {48, 3000, 65521})
    table.rows.push_back(marked(sample_row(heads, 1.9 + 0.01 * heads, 5, "h200", PdlMode::chain), true));
  table.rows[table.rows.size() - 2].between = sample_plan(2);
  table.rows.push_back(of_kernel(twin(), sample_row(100, 3.25, 6)));
  table.rows.push_back(of_kernel(sample_description().no_skip(), sample_row(100, 3.5, 7)));
  table.rows.push_back(sample_row(64, 5, 1, "a100"));
  table.rows.back().between = sample_plan(3);
  table.rows.push_back(sample_row(4096, 70, 2, "a100"));
  table.rows.push_back(marked(sample_row(32, 2.5, 3, "b200", PdlMode::chain), true, true));
  table.rows.push_back(marked(sample_row(1024, 12.5, 4, "b200", PdlMode::chain), true, true));
  table.rows.push_back(of_kernel(stranger(), sample_row(16, 9, 8, "b200")));
  table.rows.back().floor_us = 0;
  for (TableRow& row : drawn_rows()) table.rows.push_back(std::move(row));
  for (std::size_t i = 0; i < table.rows.size(); ++i) {
    const bool early = table.rows[i].plan.early_state;
    const bool wide = table.rows[i].cost_digest == stranger().cost_digest();
    table.rows[i] = with_plan(i, table.rows[i], wide ? stranger() : sample_description());
    table.rows[i].plan.early_state = early;
    if (table.rows[i].between) {
      table.rows[i].between = with_plan(i + 1, table.rows[i]).plan;
      table.rows[i].between->early_state = early;
    }
  }
  return table;
}

std::vector<std::int64_t> sizes() {
  std::vector<std::int64_t> all = {std::numeric_limits<std::int64_t>::max(), 4294967296, 65521, 65522, 100000};
  for (std::int64_t heads = 16; heads < 6000; heads = heads * 5 / 4 + 1) all.push_back(heads);
  for (int i = 0; i < 11; ++i)
    for (std::int64_t near : {-1, 0, 1}) all.push_back((16 << i) + near);
  for (std::int64_t heads : {1, 2, 64, 70, 71, 128, 500, 501, 1448, 1449, 3000, 3001}) all.push_back(heads);
  for (const TableRow& row : drawn_rows())
    for (const std::int64_t heads : {row.total_heads, row.fits_heads})
      for (std::int64_t near : {-1, 0, 1}) all.push_back(std::max<std::int64_t>(heads + near, 1));
  return all;
}

struct Question {
  std::string device;
  Description description;
  PdlMode mode;
  std::int64_t total_heads;
};
std::vector<Question> questions() {
  std::vector<Question> all;
  for (const char* device : {"h200", "a100", "b200", "l40s", "h100"})
    for (const Description& d : {sample_description(), twin(), stranger()})
      for (const PdlMode mode : {PdlMode::off, PdlMode::chain})
        for (const std::int64_t heads : sizes()) all.push_back({device, d, mode, heads});
  return all;
}

std::string plan_words(const Plan& p) {
  return fmt::format("{} {} {} {} {} {} {} {} {} {}", p.block_m, p.warps, p.lanes_per_row, p.heads_per_block, p.stages,
                     static_cast<int>(p.state_path), static_cast<int>(p.streaming), static_cast<int>(p.early_state),
                     p.min_blocks_per_sm, static_cast<int>(p.ring_rows));
}

class EmittedTable : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "ssmjit-emit-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    std::ofstream asked(folder_ / "questions");
    for (const Question& q : questions())
      asked << fmt::format("{} {} {} {} {}\n", q.device, q.description.kernel_digest(), name(q.mode), q.total_heads,
                           q.description.cost_digest());
  }
  void TearDown() override {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }
  void write(const char* file, const std::string& text) const { std::ofstream(folder_ / file) << text; }
  std::string read(const char* file) const {
    std::ifstream in(folder_ / file);
    std::ostringstream text;
    text << in.rdbuf();
    return text.str();
  }
  // Whether a line of shell went well in the folder; its output is in "log".
  bool shell(const std::string& line) const {
    return std::system(fmt::format("cd '{}' && ( {} ) > log 2>&1", folder_.string(), line).c_str()) == 0;
  }

  // Lines of "why expected_us floor_us plan", or "none", one a question.
  void expect_as_lookup(const std::string& answers) const {
    std::map<std::string, Table> tables;  // by description
    for (const Description& d : {sample_description(), twin(), stranger()})
      tables[d.summary()] = with_one_head(rich_table(), d);
    std::istringstream in(answers);
    int exact = 0, interpolated = 0, nearest = 0, similar = 0, predicted = 0, none = 0, fits = 0;
    for (const Question& q : questions()) {
      std::string line;
      ASSERT_TRUE(std::getline(in, line));
      const Choice want = lookup(tables.at(q.description.summary()), one_head(q.description), q.device,
                                 arch_of_device_key(q.device), q.total_heads, q.mode);
      const std::string where =
          fmt::format("{} {} {} {}", q.device, q.description.summary(), name(q.mode), q.total_heads);
      if (want.why == Why::fallback || want.why == Why::other_device) {
        ASSERT_EQ(line, "none") << where;
        ++none;
        continue;
      }
      std::istringstream words(line);
      std::string why, plan;
      double us = 0, floor_us = 0;
      words >> why >> us >> floor_us >> std::ws;
      std::getline(words, plan);
      ASSERT_EQ(why, name(want.why)) << where;
      ASSERT_EQ(plan, plan_words(want.plan)) << where << ": " << want.reason;
      fits += want.reason.find("whose clusters fit up to") != std::string::npos;
      ASSERT_NEAR(us, want.expected_us, 1e-12 * want.expected_us) << where;
      ASSERT_NEAR(floor_us, want.floor_us, 1e-12 * want.floor_us) << where;
      exact += want.why == Why::exact;
      interpolated += want.why == Why::interpolated;
      nearest += want.why == Why::nearest;
      similar += want.why == Why::similar;
      predicted += want.why == Why::predicted;
    }
    for (const int seen : {exact, interpolated, nearest, similar, predicted, none, fits}) EXPECT_GT(seen, 5);
  }

  // lookup() takes a batch: of one head a rank it is total_heads. The rows are taken to be of that kernel.
  static Table with_one_head(Table table, const Description& description) {
    const Description one = one_head(description);
    const std::string kernel = description.kernel_digest(), cost = description.cost_digest();
    for (TableRow& row : table.rows) {
      if (row.kernel_digest == kernel) row.kernel_digest = one.kernel_digest();
      if (row.cost_digest == cost) row.cost_digest = one.cost_digest();
    }
    return table;
  }

  fs::path folder_;
};

TEST_F(EmittedTable, TheHeaderAnswersAsLookupDoesInPlainCpp17) {
  write("table.h", emit_table(rich_table(), TableFormat::cpp));
  int block_m = 0;
  for (const TableRow& row : rich_table().rows)
    if (row.device == "h200" && row.total_heads == 256) block_m = row.plan.block_m;
  write("ask.cpp", fmt::format(R"(#include "table.h"
#include "table.h"
#include <fstream>
#include <iomanip>
#include <iostream>
#include <string>
using namespace ssmjit_table;
constexpr Choice kExact = lookup("h200", "{0}", Pdl::off, 256);
static_assert(kExact.why == Why::exact && kExact.plan.block_m == {1} && kExact.expected_us > 0);
static_assert(lookup("h200", "{0}", Pdl::off, 257).why == Why::interpolated);
static_assert(lookup("moon", "{0}", Pdl::off, 257).why == Why::none);
int main() {{
  const char* why[] = {{"exact", "interpolated", "nearest", "similar", "predicted", "none"}};
  std::ifstream in("questions");
  std::string device, kernel, mode, cost;
  long long heads = 0;
  std::cout << std::setprecision(17);
  while (in >> device >> kernel >> mode >> heads >> cost) {{
    const Choice c = lookup(device, kernel, mode == "off" ? Pdl::off : Pdl::chain, heads, cost);
    std::cout << why[static_cast<int>(c.why)];
    if (c.why != Why::none) {{
      const Plan& p = c.plan;
      std::cout << ' ' << c.expected_us << ' ' << c.floor_us << ' ' << p.block_m << ' ' << p.warps << ' '
                << p.lanes_per_row << ' ' << p.heads_per_block << ' ' << p.stages << ' '
                << static_cast<int>(p.state_path) << ' ' << p.streaming << ' ' << p.early_state << ' '
                << p.min_blocks_per_sm << ' ' << static_cast<int>(p.ring_rows);
    }}
    std::cout << '\n';
  }}
}}
)",
                               sample_description().kernel_digest(), block_m));
  ASSERT_TRUE(shell(SSMJIT_CXX " -std=c++17 -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror -o ask ask.cpp"))
      << read("log");
  ASSERT_TRUE(shell("./ask > answers")) << read("log");
  expect_as_lookup(read("answers"));
}

TEST_F(EmittedTable, ThePythonModuleAnswersAsLookupDoes) {
  if (!shell("python3 --version")) GTEST_SKIP() << "no python3 on this machine";
  write("table.py", emit_table(rich_table(), TableFormat::python));
  write("ask.py", R"(import table
for line in open("questions"):
    device, kernel, mode, heads, cost = line.split()
    c = table.lookup(device, kernel, mode, int(heads), cost)
    if c is None:
        print("none")
        continue
    p = c["plan"]
    print(c["why"], repr(c["expected_us"]), repr(c["floor_us"]), p["block_m"], p["warps"], p["lanes_per_row"],
          p["heads_per_block"], p["stages"], ["direct", "cp_async", "bulk"].index(p["state_path"]),
          int(p["streaming"]), int(p["early_state"]), p["min_blocks_per_sm"], ["all", "live"].index(p["ring_rows"]))
assert table.lookup("h200", "0", "off", 16) is None
assert table.lookup("h200", "0", "off", 16, "") is None
)");
  ASSERT_TRUE(shell("python3 ask.py > answers")) << read("log") << read("answers");
  expect_as_lookup(read("answers"));
}

TEST_F(EmittedTable, AnEmptyTableAnswersNothing) {
  write("table.h", emit_table({}, TableFormat::cpp));
  write("ask.cpp",
        "#include \"table.h\"\nstatic_assert(ssmjit_table::lookup(\"\", \"\", ssmjit_table::Pdl::off, 1).why "
        "== ssmjit_table::Why::none);\nint main() {}\n");
  EXPECT_TRUE(shell(SSMJIT_CXX " -std=c++17 -Wall -Wextra -Werror -o ask ask.cpp")) << read("log");
  if (!shell("python3 --version")) return;
  write("table.py", emit_table({}, TableFormat::python));
  EXPECT_TRUE(shell("python3 -c 'import table; assert table.lookup(\"h200\", \"0\", \"off\", 1) is None'"))
      << read("log");
}

TEST_F(EmittedTable, TheShippedTablesCompileAndAnswer) {
  write("table.h", emit_table(shipped_tables(), TableFormat::cpp));
  std::string ask = "#include \"table.h\"\nusing namespace ssmjit_table;\n";
  for (const bool predicted : {false, true}) {
    const std::vector<TableRow>& rows = shipped_tables().rows;
    const auto row =
        std::find_if(rows.begin(), rows.end(), [&](const TableRow& r) { return r.predicted == predicted; });
    ASSERT_NE(row, rows.end());
    ask += fmt::format("static_assert(lookup(\"{}\", \"{}\", Pdl::{}, {}).why == Why::{});\n", row->device,
                       row->kernel_digest, name(row->pdl), row->total_heads, predicted ? "predicted" : "exact");
  }
  write("ask.cpp", ask + "int main() {}\n");
  EXPECT_TRUE(shell(SSMJIT_CXX " -std=c++17 -Wall -Wextra -Werror -o ask ask.cpp")) << read("log");
}

TEST(EmitTable, TheSameRowsInAnyOrderGiveTheSameBytes) {
  const Table table = rich_table();
  const Table reversed{{table.rows.rbegin(), table.rows.rend()}};
  for (const TableFormat format : {TableFormat::json, TableFormat::cpp, TableFormat::python})
    EXPECT_EQ(emit_table(table, format), emit_table(reversed, format));
  EXPECT_EQ(Table::from_json(emit_table(table, TableFormat::json)).rows.size(), table.rows.size());
}

TEST(EmitTable, TextOfATableNeverLeavesItsLiteral) {
  Table table{{sample_row(16, 2, 0)}};
  table.rows[0].device = "h200\", \"x\\";
  table.rows[0].kernel = "two\nlines */ \\";
  for (const TableFormat format : {TableFormat::cpp, TableFormat::python}) {
    EXPECT_THAT(emit_table(table, format), HasSubstr("\"h200, x\""));
    EXPECT_THAT(emit_table(table, format), Not(HasSubstr("two\nlines")));
  }
}

TEST(EmitTable, AFormatThatThereIsNotIsRefused) {
  EXPECT_EQ(parse_table_format("cpp"), TableFormat::cpp);
  EXPECT_EQ(parse_table_format("python"), TableFormat::python);
  EXPECT_EQ(parse_table_format("json"), TableFormat::json);
  EXPECT_THROW(parse_table_format("rust"), Error);
}

}  // namespace
}  // namespace ssmjit
