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

Description ring(int window = 16) { return usual().store(Ring{.window = window}); }

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
      ring().tokens(6),
      ring(32).store(Ring{.window = 32, .length = 48}).state(DType::f16).rounding(Stochastic{.philox_rounds = 7}),
      ring().tokens(16).state(DType::f8).varlen().gate(silu(d::z)).decay(exp(d::delta * d::A)),
      usual().tokens(6).store(Snapshots{}).tree().varlen(),
      usual().tokens(64).store(Slots{}).accepted_counts().state(DType::i8).rounding(Stochastic{}),
      usual().tokens(3).destination_slots(),
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

// --- Several tokens.

TEST(Tokens, AnUpdateOfSeveralIsStillAnUpdateAndSaysWhereItsStatesGo) {
  for (const auto& [step, where] :
       {std::pair(usual().tokens(6), "6 tokens, skip D * x, in place"),
        {usual().tokens(6).store(Snapshots{}).tree(), "snapshots after each token, tree"},
        {usual().store(Slots{}).accepted_counts(), "to a slot after each token, accepted"}}) {
    EXPECT_EQ(step.problems(), std::vector<std::string>{});
    EXPECT_EQ(step.op(), Op::update);
    EXPECT_TRUE(holds(step.summary(), where)) << step.summary();
    EXPECT_EQ(Description::from_json(step.json()), step);
  }
}

TEST(Tokens, DigestsTellEveryFormApartAndThoseOfOneTokenInPlaceStayWhatTheyWere) {
  const std::vector<Description> forms = {usual().tokens(6),
                                          usual().tokens(6).store(Snapshots{}),
                                          usual().tokens(6).store(Snapshots{}).tree(),
                                          usual().tokens(6).store(Slots{}),
                                          usual().tokens(6).varlen(),
                                          usual().store(Snapshots{}),
                                          usual().store(Slots{}),
                                          usual()};
  for (std::size_t i = 0; i < forms.size(); ++i)
    for (std::size_t j = 0; j < i; ++j) {
      EXPECT_NE(forms[i].kernel_digest(), forms[j].kernel_digest()) << forms[i].summary();
      EXPECT_NE(forms[i].cost_digest(), forms[j].cost_digest()) << forms[i].summary();
    }
  EXPECT_NE(usual().tokens(6).accepted_counts().kernel_digest(), usual().tokens(6).kernel_digest());
  EXPECT_EQ(usual().tokens(6).accepted_counts().cost_digest(), usual().tokens(6).cost_digest());
}

TEST(Tokens, BytesAreOneReadOfTheStateAndAWriteForEachToken) {
  constexpr std::int64_t kState = 16 * 64 * 128 * 2, kX = 16 * 64 * 2, kInputs = kX + 2 * 128 * 2 + 16 * 4;
  const Description step = usual().state(DType::bf16).tokens(6);
  for (const Store& store : {Store(Snapshots{}), Store(Slots{})}) {
    const Bytes bytes = bytes_moved(Description(step).store(store), 8);
    EXPECT_EQ(bytes.read, 8 * (kState + 6 * kInputs));
    EXPECT_EQ(bytes.written_back, 0);
    EXPECT_EQ(bytes.written_new, 8 * 6 * (kState + kX));
  }
  const Bytes in_place = bytes_moved(step, 8);
  EXPECT_EQ(in_place.read, 8 * (kState + 6 * kInputs));
  EXPECT_EQ(in_place.written_back, 8 * kState);
  EXPECT_EQ(in_place.written_new, 8 * 6 * kX);
}

TEST(Faults, Row7_MoreTokensThanAnUpdateTakesAreRefused) {
  EXPECT_EQ(usual().tokens(64).problems(), std::vector<std::string>{});
  EXPECT_EQ(usual().tokens(65).problems(), std::vector<std::string>{"tokens: got 65; an update takes 1 to 64 a step"});
}

// --- The ring.

TEST(Ring, ADescriptionWithARingIsAnotherOp) {
  EXPECT_EQ(usual().op(), Op::update);
  EXPECT_EQ(usual().ring_window(), 0);
  EXPECT_EQ(usual().ring_length(), 0);
  const Description step = ring().tokens(6);
  EXPECT_EQ(step.problems(), std::vector<std::string>{});
  EXPECT_EQ(step.op(), Op::ring);
  EXPECT_EQ(step.ring_window(), 16);
  EXPECT_EQ(step.ring_length(), 22);
  EXPECT_EQ(ring().store(Ring{.window = 16, .length = 40}).ring_length(), 40);
  EXPECT_EQ(step.summary(),
            "mamba2 ring, 16 heads x 64 x 128, 1 group, input bf16, dt fp32, weights fp32, state fp32, delta "
            "softplus(dt + dt_bias), decay exp(A * delta), 6 tokens, skip D * x, ring of window 16 and length 22");
}

TEST(Ring, JsonHoldsTheRingAndLeavesTheRestAsItWas) {
  const std::string text = ring().tokens(6).state(DType::bf16).rounding(Stochastic{}).varlen().json();
  for (const char* part :
       {R"("op":"ring")", R"("store":{"kind":"ring","window":16})",
        R"("rounding":{"kind":"stochastic","philox_rounds":10})", R"("pad_output":"zeros","varlen":true})"})
    EXPECT_TRUE(holds(text, part)) << part << "\n" << text;
  EXPECT_TRUE(holds(ring().store(Ring{.window = 16, .length = 24}).json(), R"("window":16,"length":24})"));
}

TEST(Ring, SetHasShortForms) {
  Description step = usual();
  step.set("store=ring:8:40,tokens=6,state=int8,rounding=stochastic,varlen=true");
  EXPECT_EQ(step,
            usual().store(Ring{.window = 8, .length = 40}).tokens(6).state(DType::i8).rounding(Stochastic{}).varlen());
  step.set("store=ring,rounding=stochastic:5,state=fp16,op=ring");
  EXPECT_EQ(step.store_kind, Store(Ring{}));
  EXPECT_EQ(step.rounding_kind, Rounding(Stochastic{.philox_rounds = 5}));
  step.set("store=in_place,rounding=nearest,varlen=false,tokens=1,state=fp32");
  EXPECT_EQ(step, usual());
  EXPECT_TRUE(holds(refusal([&] { step.set("op=ring"); }), "op: got \"ring\", but the store makes it update"));
}

TEST(Ring, TheLimitsThemselvesAreAllowed) {
  for (const Description& step :
       {ring(1), ring(32), ring(16).tokens(16), ring(32).store(Ring{.window = 32, .length = 64}).tokens(16),
        mamba2({.nheads = 2, .head_dim = 8, .dstate = 32, .ngroups = 1}).store(Ring{}),
        mamba2({.nheads = 2, .head_dim = 256, .dstate = 256, .ngroups = 2}).store(Ring{}).state(DType::f8),
        ring().state(DType::f16).rounding(Stochastic{.philox_rounds = 32}), ring().pad_output(PadOutput::untouched)})
    EXPECT_EQ(step.problems(), std::vector<std::string>{}) << step.summary();
}

TEST(Faults, Row9_ARingTooSmallForItsWindowAndTokensIsRefused) {
  EXPECT_EQ(ring().tokens(6).store(Ring{.window = 16, .length = 21}).problems(),
            std::vector<std::string>{"store: got a ring of length 21; wants 22 (window and tokens together) to 64"});
  EXPECT_EQ(ring(6).tokens(6).problems(), std::vector<std::string>{});
  EXPECT_EQ(ring(5).tokens(6).problems(),
            std::vector<std::string>{"store: got a ring of window 5; wants 6 to 32, at least the tokens of a step"});
  // A window that is no power of two is as good as one that is.
  EXPECT_EQ(ring(13).tokens(3).problems(), std::vector<std::string>{});
}

TEST(Faults, Row7_MoreTokensThanARingTakesAreRefused) {
  for (int tokens : {0, -1, 17, 27, 55}) {
    const std::vector<std::string> problems = ring(32).tokens(tokens).problems();
    ASSERT_EQ(problems.size(), 1u) << tokens;
    EXPECT_TRUE(holds(problems[0], "tokens: got " + std::to_string(tokens) + "; a ring takes 1 to 16 a step"));
  }
}

TEST(Faults, Row19_NegativeSizesInARing) {
  for (int bad : {-1, std::numeric_limits<int>::min(), std::numeric_limits<int>::max()}) {
    const Description step = usual().tokens(bad).store(Ring{.window = bad, .length = bad});
    EXPECT_GE(step.problems().size(), 2u);
    EXPECT_EQ(step.kernel_digest().size(), 16u);
    EXPECT_FALSE(step.summary().empty());
  }
}

// --- What is wrong with it.

TEST(Description, ThreeWrongFieldsGiveThreeSentences) {
  Description step = usual();
  step.head_dim = 60;
  step.dstate = 8;
  step.tokens(65);
  EXPECT_EQ(step.problems(), (std::vector<std::string>{
                                 "head_dim: got 60; wants a multiple of 8 from 8 to 256",
                                 "dstate: got 8; wants a multiple of 8 from 16 to 256",
                                 "tokens: got 65; an update takes 1 to 64 a step",
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
  EXPECT_EQ(only(usual().state(DType::i64)), "state: got int64; wants fp32, bf16, fp16, int8, fp8 or int16");
  EXPECT_EQ(only(usual().state(DType::bf16).rounding(Stochastic{.philox_rounds = 0})),
            "rounding: got 0 Philox rounds; wants 1 to 32");
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
        R"json({"schema": 2, "op": "scan", "nheads": "16", "head_dim": 64.5, "colour": 1, "state": "fp4",
            "delta": "sofplus(dt)", "store": "replay:16", "rounding": "upwards", "gate": 3})json");
  });
  for (const char* part : {"schema: got 2", "op: got \"scan\"", "nheads: got \"16\"", "head_dim: got 64.5",
                           "dstate: missing", "unknown field \"colour\"", "state: unknown dtype \"fp4\"",
                           "delta: unknown name \"sofplus\" at column 1 of \"sofplus(dt)\"; known functions are",
                           "store: got \"replay:16\"; wants replay alone",
                           "rounding: got \"upwards\"; wants nearest or stochastic", "gate: got 3"}) {
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
      refusal([&] { step.set("nheads=64,colour=red,tokens=many,dstate=99999999999,state,store=ring:16:"); });
  for (const char* part : {"unknown field \"colour\"", "tokens: got \"many\"", "dstate: got 99999999999",
                           "got \"state\"; wants FIELD=VALUE", "store: got \"ring:16:\""}) {
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
      ring(),
      ring(17),
      ring().tokens(6),
      ring().store(Ring{.window = 16, .length = 32}),
      ring().state(DType::i8),
      ring().state(DType::f8),
      ring().state(DType::bf16),
      ring().state(DType::bf16).rounding(Stochastic{}),
      ring().state(DType::bf16).rounding(Stochastic{.philox_rounds = 5}),
      ring().varlen(),
  };
  for (std::size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(all[i].kernel_digest().size(), 16u);
    for (std::size_t j = 0; j < i; ++j) EXPECT_NE(all[i].kernel_digest(), all[j].kernel_digest()) << i << " " << j;
  }
}

// Shipped tables and cubin caches are keyed by them.
TEST(Description, DigestsOfUpdatesInPlaceStay) {
  EXPECT_EQ(usual().kernel_digest(), "faa5314dcd40491e");
  EXPECT_EQ(usual().cost_digest(), "5acd0e1db94d164b");
  const Description other = usual().gate(silu(d::z)).state(DType::bf16).destination_slots().unaligned_rows();
  EXPECT_EQ(other.kernel_digest(), "e349ae4f401834a5");
  EXPECT_EQ(other.cost_digest(), "f3f31eb7f1338e3d");
}

TEST(Description, WaysToWriteOneRingShareAKernel) {
  EXPECT_EQ(ring().kernel_digest(), ring().decay(exp(d::delta * d::A)).kernel_digest());
  EXPECT_EQ(ring().tokens(6).kernel_digest(), ring().tokens(6).store(Ring{.window = 16, .length = 22}).kernel_digest());
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

TEST(Description, BytesOfARingStepByPhase) {
  const Description step = ring().tokens(6).state(DType::bf16);
  const std::int64_t state = 16 * 64 * 128 * 2, x = 16 * 64 * 2, B = 128 * 2, row = x + B + 16 * 4;
  const std::int64_t inputs = 6 * (x + 2 * B + 16 * 4);
  const Bytes quiet = bytes_moved(step, 3);
  EXPECT_EQ(quiet.read, 3 * (state + 10 * row + inputs));
  EXPECT_EQ(quiet.written_back, 0);
  EXPECT_EQ(quiet.written_new, 3 * 6 * (x + row));
  EXPECT_EQ(quiet.warm, 16 * 4 * 3 + 3 * (8 + 8));
  const Bytes flush = bytes_moved(step, 3, Phase::flush);
  EXPECT_EQ(flush.read, 3 * (state + 16 * row + inputs));
  EXPECT_EQ(flush.written_back, 3 * state);
  EXPECT_EQ(flush.written_new, quiet.written_new);
  EXPECT_EQ(bytes_moved(step, 3, Phase::no_flush, 0).read, 3 * (state + inputs));
  EXPECT_EQ(bytes_moved(step, 3, Phase::flush, 11).read, 3 * (state + 11 * row + inputs));
}

TEST(Description, AnEightBitStateMovesItsScales) {
  const Description step = ring().state(DType::i8);
  const std::int64_t state = 16 * 64 * 128 + 16 * 64 * 4;
  EXPECT_EQ(bytes_moved(step, 1, Phase::flush).written_back, state);
  EXPECT_EQ(bytes_moved(step, 1, Phase::no_flush, 0).read, state + 16 * 64 * 2 + 2 * 128 * 2 + 16 * 4);
}

TEST(Description, BytesOfAPhaseThatThereIsNotAreRefused) {
  EXPECT_TRUE(holds(refusal([] { bytes_moved(usual(), 1, Phase::flush); }), "phase: got flush"));
  EXPECT_TRUE(holds(refusal([] { bytes_moved(ring(), 1, Phase::no_flush, 17); }), "ring_count: got 17; wants 0 to 16"));
  EXPECT_TRUE(holds(refusal([] { bytes_moved(ring(), 1, Phase::no_flush, -2); }), "ring_count: got -2"));
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
  for (DType each : {DType::f32, DType::bf16, DType::f16, DType::i8, DType::f8, DType::i32, DType::i64}) {
    EXPECT_EQ(parse_dtype(name(each)), each);
  }
  EXPECT_EQ(parse_dtype("float32"), DType::f32);
  EXPECT_EQ(parse_dtype("bfloat16"), DType::bf16);
  EXPECT_EQ(parse_dtype("float16"), DType::f16);
  EXPECT_TRUE(holds(refusal([] { parse_dtype("fp4"); }), "unknown dtype \"fp4\"; known are fp32, bf16"));
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
