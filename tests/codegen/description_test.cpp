#include <ssmjit/description.h>

#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <ssmjit/error.h>
#include <ssmjit/log.h>

#include "codegen/digest.h"
#include "codegen/log.h"

namespace ssmjit {
namespace {

namespace d = dsl;

Description usual() { return mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1}); }

template <typename Call>
std::string refusal(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::invalid);
    return error.what();
  }
  ADD_FAILURE() << "not refused";
  return "";
}

bool holds(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::vector<Description> varied() {
  return {
      usual(),
      usual().no_skip().gate(silu(d::z)).state(DType::bf16).dt(DType::bf16).weights(DType::bf16),
      usual().delta(clamp(softplus(d::dt + d::dt_bias), 0.001, 0.1)).input(DType::f16).destination_slots(),
      usual().delta(d::dt).decay(exp(d::A * d::dt)).unaligned_rows().pad_output(PadOutput::as_if_zero_state),
      mamba2({.nheads = 42, .head_dim = 80, .dstate = 96, .ngroups = 3}).pad_output(PadOutput::untouched),
  };
}

// --- The DSL.

TEST(Description, Mamba2IsValidWithItsUsualMaths) {
  const Description step = usual();
  EXPECT_EQ(step.problems(), std::vector<std::string>{});
  EXPECT_EQ(step.delta_expr.text(), "softplus(dt + dt_bias)");
  EXPECT_EQ(step.decay_expr.text(), "exp(A * delta)");
  EXPECT_EQ(step.skip_expr.text(), "D * x");
  EXPECT_TRUE(step.gate_expr.empty());
  EXPECT_TRUE(step.has_D());
  EXPECT_TRUE(step.has_dt_bias());
  EXPECT_FALSE(step.has_z());
}

TEST(Description, SummaryIsOneLine) {
  EXPECT_EQ(usual().summary(),
            "mamba2 update, 16 heads x 64 x 128, 1 group, input bf16, dt fp32, weights fp32, state fp32, delta "
            "softplus(dt + dt_bias), decay exp(A * delta), skip D * x, in place");
  for (const Description& each : varied()) EXPECT_FALSE(holds(each.summary(), "\n"));
}

// --- What is wrong with it.

TEST(Description, ThreeWrongFieldsGiveThreeSentences) {
  Description step = usual();
  step.head_dim = 60;
  step.dstate = 8;
  step.tokens(6);
  EXPECT_EQ(step.problems(), (std::vector<std::string>{
                                 "head_dim: got 60; wants a multiple of 8 from 8 to 256",
                                 "dstate: got 8; wants a multiple of 8 from 16 to 256",
                                 "tokens: got 6; only 1 token a step is available in this version",
                             }));
  const std::string sentence = refusal([&] { step.validate(); });
  for (const std::string& problem : step.problems()) EXPECT_TRUE(holds(sentence, problem));
}

TEST(Description, EveryFieldIsCheckedByName) {
  const auto only = [](const Description& step) {
    const std::vector<std::string> problems = step.problems();
    EXPECT_EQ(problems.size(), 1u) << step.summary();
    return problems.empty() ? "" : problems[0];
  };
  EXPECT_EQ(only(usual().input(DType::i32)), "input: got int32; wants fp32, bf16 or fp16");
  EXPECT_EQ(only(usual().dt(DType::f16)), "dt: got fp16; wants fp32 or bf16");
  EXPECT_EQ(only(usual().weights(DType::f16)), "weights: got fp16; wants fp32 or bf16");
  EXPECT_EQ(only(usual().state(DType::i64)), "state: got int64; wants fp32, bf16 or fp16");
  EXPECT_EQ(only(usual().delta(Expr())), "delta: got nothing; wants an expression over dt, dt_bias");
  EXPECT_EQ(only(usual().decay(Expr())), "decay: got nothing; wants an expression over A, dt, delta");
  EXPECT_EQ(only(usual().delta(d::dt * d::x)),
            "delta: got \"dt * x\", which reads x; wants an expression over dt, dt_bias only");
  EXPECT_TRUE(holds(only(usual().decay(exp(d::A * d::dt_bias))), "decay: "));
  EXPECT_TRUE(holds(only(usual().skip(d::D * d::z)), "skip: "));
  EXPECT_TRUE(holds(only(usual().gate(silu(d::z) * d::x)), "gate: "));
  EXPECT_EQ(only(usual().gate(2.0)), "gate: got \"2\"; wants an expression that reads z, or none");
  EXPECT_TRUE(holds(only(mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 3})),
                    "ngroups: got 3; wants a divisor of nheads (16)"));
}

TEST(Description, ConstantsThatAreNoFp32NumbersAreRefused) {
  for (double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
                     -std::numeric_limits<double>::infinity(), 1e300, 1e-300}) {
    const std::vector<std::string> problems = usual().delta(min(softplus(d::dt), bad)).problems();
    ASSERT_EQ(problems.size(), 1u) << bad;
    EXPECT_TRUE(holds(problems[0], "delta: got the constant")) << problems[0];
  }
}

TEST(Description, TheLimitsThemselvesAreAllowed) {
  EXPECT_EQ(mamba2({.nheads = 65536, .head_dim = 256, .dstate = 256, .ngroups = 65536}).problems().size(), 0u);
  EXPECT_EQ(mamba2({.nheads = 1, .head_dim = 8, .dstate = 16, .ngroups = 1}).problems().size(), 0u);
  EXPECT_EQ(mamba2({.nheads = 65537, .head_dim = 264, .dstate = 264, .ngroups = 1}).problems().size(), 3u);
}

// --- JSON.

TEST(Description, JsonReadsBackToAnEqualDescription) {
  for (const Description& each : varied()) {
    EXPECT_EQ(Description::from_json(each.json()), each) << each.json();
    EXPECT_EQ(Description::from_json(each.json(2)), each);
  }
}

TEST(Description, JsonIsOneStableLine) {
  EXPECT_EQ(usual().json(),
            R"json({"schema":1,"op":"update","family":"mamba2","nheads":16,"head_dim":64,"dstate":128,"ngroups":1,)json"
            R"json("tokens":1,"input":"bf16","dt":"fp32","weights":"fp32","state":"fp32",)json"
            R"json("delta":"softplus(dt + dt_bias)","decay":"exp(A * delta)","skip":"D * x","gate":null,)json"
            R"json("rounding":"nearest","store":{"kind":"in_place"},"destination_slots":false,"aligned_rows":true,)json"
            R"json("pad_output":"zeros"})json");
}

TEST(Description, MissingFieldsTakeMamba2sDefaultsAndStoreMayBeText) {
  EXPECT_EQ(Description::from_json(R"({"nheads": 16, "head_dim": 64, "dstate": 128, "store": "in_place"})"), usual());
}

TEST(Description, AllWrongFieldsOfAFileAreNamedAtOnce) {
  const std::string sentence = refusal([] {
    Description::from_json(
        R"json({"schema": 2, "op": "ring", "nheads": "16", "head_dim": 64.5, "colour": 1, "state": "fp8",
            "delta": "sofplus(dt)", "store": "ring:16", "rounding": "stochastic", "gate": 3})json");
  });
  for (const char* part : {"schema: got 2", "op: got \"ring\"", "nheads: got \"16\"", "head_dim: got 64.5",
                           "dstate: missing", "unknown field \"colour\"", "state: unknown dtype \"fp8\"",
                           "delta: unknown name \"sofplus\" at column 1 of \"sofplus(dt)\"; known functions are",
                           "store: got \"ring:16\"; not available in this version; in_place is",
                           "rounding: got \"stochastic\"; not available in this version; nearest is", "gate: got 3"}) {
    EXPECT_TRUE(holds(sentence, part)) << part << "\n" << sentence;
  }
}

TEST(Description, TextThatIsNoJsonIsRefusedWithoutAForeignException) {
  for (const char* text : {"", "{", "[]", "null", "{\"nheads\":}", "\xff\xfe", "{\"nheads\": 1e999}"}) {
    refusal([&] { Description::from_json(text); });
  }
  refusal([] { Description::from_json(std::string(100000, '[')); });
  refusal([] { Description::from_json(std::string(100000, '[') + std::string(100000, ']')); });
}

// --- set.

TEST(Description, SetTakesTheJsonNamesAndKeepsCommasInParentheses) {
  Description step = usual();
  step.set("state=bf16, nheads=64,gate=silu(z),store=in_place,delta=clamp(softplus(dt), 0.001, 0.1),skip=none");
  EXPECT_EQ(step.state_dtype, DType::bf16);
  EXPECT_EQ(step.nheads, 64);
  EXPECT_EQ(step.gate_expr.text(), "silu(z)");
  EXPECT_EQ(step.delta_expr.text(), "clamp(softplus(dt), 0.001, 0.1)");
  EXPECT_TRUE(step.skip_expr.empty());
  step.set("gate=none,aligned_rows=false,destination_slots=true,pad_output=untouched,dt=float32,weights=bfloat16");
  EXPECT_TRUE(step.gate_expr.empty());
  EXPECT_FALSE(step.aligned_rows);
  EXPECT_TRUE(step.has_destination);
  EXPECT_EQ(step.pad_output_kind, PadOutput::untouched);
  EXPECT_EQ(step.weight_dtype, DType::bf16);
  step.set("");
}

TEST(Description, SetNamesAllThatIsWrongAndChangesNothingThen) {
  Description step = usual();
  const std::string sentence =
      refusal([&] { step.set("nheads=64,colour=red,tokens=many,dstate=99999999999,state,store=ring:16"); });
  for (const char* part : {"unknown field \"colour\"", "tokens: got \"many\"", "dstate: got 99999999999",
                           "got \"state\"; wants FIELD=VALUE", "store: got \"ring:16\""}) {
    EXPECT_TRUE(holds(sentence, part)) << part << "\n" << sentence;
  }
  EXPECT_EQ(step, usual());
}

// --- The digest.

TEST(Description, TensorParallelSizesShareAKernel) {
  const auto digest = [](int nheads, int ngroups) {
    return mamba2({.nheads = nheads, .head_dim = 64, .dstate = 128, .ngroups = ngroups}).kernel_digest();
  };
  EXPECT_EQ(digest(128, 8), digest(16, 1));
  EXPECT_NE(digest(128, 8), digest(64, 8));
}

TEST(Description, EverythingAtCompileTimeChangesTheDigest) {
  const std::vector<Description> all = {
      usual(),
      mamba2({.nheads = 16, .head_dim = 80, .dstate = 128, .ngroups = 1}),
      mamba2({.nheads = 16, .head_dim = 64, .dstate = 96, .ngroups = 1}),
      usual().input(DType::f16),
      usual().dt(DType::bf16),
      usual().weights(DType::bf16),
      usual().state(DType::bf16),
      usual().delta(softplus(d::dt)),
      usual().decay(exp(d::A * d::dt)),
      usual().no_skip(),
      usual().gate(silu(d::z)),
      usual().destination_slots(),
      usual().unaligned_rows(),
      usual().pad_output(PadOutput::untouched),
      usual().tokens(2),
  };
  for (std::size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(all[i].kernel_digest().size(), 16u);
    for (std::size_t j = 0; j < i; ++j) EXPECT_NE(all[i].kernel_digest(), all[j].kernel_digest()) << i << " " << j;
  }
}

TEST(Digest, IsXxh3AndHasSixteenDigits) {
  EXPECT_EQ(digest16(""), "2d06800538d394c2");
  EXPECT_EQ(digest16("a").size(), 16u);
  EXPECT_NE(digest16("a"), digest16("b"));
}

// --- Bytes.

TEST(Description, BytesOfAnInPlaceStep) {
  const Bytes bytes = bytes_moved(usual(), 3);
  const std::int64_t state = 3 * 16 * 64 * 128 * 4;
  EXPECT_EQ(bytes.written_back, state);
  EXPECT_EQ(bytes.read, state + 3 * (16 * 64 * 2 + 2 * 128 * 2 + 16 * 4));
  EXPECT_EQ(bytes.written_new, 3 * 16 * 64 * 2);
  EXPECT_EQ(bytes.warm, 16 * 4 * 3 + 3 * 8);
  EXPECT_EQ(bytes.total(), bytes.read + bytes.written_back + bytes.written_new);
}

TEST(Description, AGateReadsZAndADestinationMovesTheStateToWrittenNew) {
  const Bytes plain = bytes_moved(usual(), 2);
  const Bytes gated = bytes_moved(usual().gate(silu(d::z)), 2);
  EXPECT_EQ(gated.read - plain.read, 2 * 16 * 64 * 2);
  const Bytes moved = bytes_moved(usual().destination_slots(), 2);
  EXPECT_EQ(moved.written_back, 0);
  EXPECT_EQ(moved.written_new, plain.written_new + plain.written_back);
  EXPECT_EQ(moved.warm - plain.warm, 2 * 8);
}

TEST(Faults, Row19_NegativeSizesInADescription) {
  for (int bad : {0, -1, std::numeric_limits<int>::min()}) {
    Description step = usual();
    step.nheads = step.head_dim = step.dstate = step.ngroups = bad;
    EXPECT_EQ(step.problems().size(), 4u);
    EXPECT_TRUE(holds(refusal([&] { step.validate(); }), "nheads: got " + std::to_string(bad)));
    refusal([&] { bytes_moved(step, 1); });
    EXPECT_EQ(step.kernel_digest().size(), 16u);
  }
}

TEST(Faults, Row19_AnEmptyBatchMovesNothingAndANegativeOneIsRefused) {
  EXPECT_EQ(bytes_moved(usual(), 0), Bytes{});
  EXPECT_GT(bytes_moved(usual(), 1).total(), 0);
  EXPECT_EQ(bytes_moved(usual(), 1024).read, 1024 * bytes_moved(usual(), 1).read);
  EXPECT_TRUE(holds(refusal([] { bytes_moved(usual(), -1); }), "batch: got -1"));
  const Description huge = mamba2({.nheads = 65536, .head_dim = 256, .dstate = 256, .ngroups = 1});
  EXPECT_TRUE(holds(refusal([&] { bytes_moved(huge, std::numeric_limits<int>::max()); }), "batch: got 2147483647"));
}

TEST(Faults, Row15_DtypesMayBeMixedWithinWhatTheKernelsHave) {
  EXPECT_EQ(usual().input(DType::f16).dt(DType::bf16).state(DType::bf16).problems().size(), 0u);
  EXPECT_EQ(usual().input(DType::f32).weights(DType::bf16).state(DType::f16).problems().size(), 0u);
}

TEST(Faults, Row16_OddHeadRatiosAndSizesAreValid) {
  EXPECT_EQ(mamba2({.nheads = 42, .head_dim = 80, .dstate = 96, .ngroups = 3}).problems().size(), 0u);
  EXPECT_EQ(mamba2({.nheads = 24, .head_dim = 80, .dstate = 96, .ngroups = 8}).problems().size(), 0u);
}

// --- Names.

TEST(DTypes, NamesReadBackAndAliasesAreKnown) {
  for (DType each : {DType::f32, DType::bf16, DType::f16, DType::i32, DType::i64}) {
    EXPECT_EQ(parse_dtype(name(each)), each);
  }
  EXPECT_EQ(parse_dtype("float32"), DType::f32);
  EXPECT_EQ(parse_dtype("bfloat16"), DType::bf16);
  EXPECT_EQ(parse_dtype("float16"), DType::f16);
  EXPECT_TRUE(holds(refusal([] { parse_dtype("fp8"); }), "unknown dtype \"fp8\"; known are fp32, bf16"));
}

TEST(Errors, KindsHaveNames) {
  EXPECT_STREQ(name(ErrorKind::invalid), "invalid");
  EXPECT_STREQ(name(ErrorKind::missing), "missing");
  EXPECT_STREQ(name(ErrorKind::machine), "machine");
  EXPECT_STREQ(name(ErrorKind::internal), "internal");
}

TEST(Log, SaysNothingWithoutACallbackAndSurvivesOneThatThrows) {
  warn("nobody hears this");
  std::vector<std::string> heard;
  set_log([&](LogLevel level, std::string_view text) {
    heard.push_back((level == LogLevel::warning ? "W " : "I ") + std::string(text));
    throw 1;
  });
  warn("a");
  info("b");
  set_log({});
  warn("c");
  EXPECT_EQ(heard, (std::vector<std::string>{"W a", "I b"}));
}

}  // namespace
}  // namespace ssmjit
