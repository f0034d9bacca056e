#include <array>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include <ssmjit/description.h>
#include <ssmjit/error.h>

namespace ssmjit {
namespace {

std::string file_text(const std::filesystem::path& path) {
  std::ostringstream out;
  out << std::ifstream(path).rdbuf();
  return out.str();
}

const std::filesystem::path kModels = std::filesystem::path(SSMJIT_SOURCE_DIR) / "examples" / "models";

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

// --- SPEC files.

struct Shape {
  int nheads, head_dim, dstate, ngroups;
};

const std::map<std::string, Shape> kShipped = {
    {"nemotron3-super", {128, 64, 128, 8}},
    {"nemotron3-super-tp4", {32, 64, 128, 2}},
    {"nemotron3-super-tp8", {16, 64, 128, 1}},
    {"nemotron3-super-tp8-verify", {16, 64, 128, 1}},
    {"nemotron3-nano", {64, 64, 128, 8}},
    {"nemotron-nano-9b-v2", {128, 80, 128, 8}},
    {"mamba2-2.7b", {80, 64, 128, 1}},
    {"bamba-9b", {128, 64, 128, 1}},
    {"codestral-mamba-7b", {128, 64, 128, 8}},
};

TEST(Models, EveryShippedFileIsValidAndHasTheModelsSizes) {
  for (const auto& [name, shape] : kShipped) {
    const Model model = Model::from_json(file_text(kModels / (name + ".json")));
    EXPECT_EQ(model.model, name);
    EXPECT_FALSE(model.source.empty());
    const bool verify = name.ends_with("-verify");  // of several tokens, its states in bf16
    const Description& update = model.kernel(verify ? "snapshots" : "update");
    update.validate();
    EXPECT_EQ(update.nheads, shape.nheads) << name;
    EXPECT_EQ(update.head_dim, shape.head_dim) << name;
    EXPECT_EQ(update.dstate, shape.dstate) << name;
    EXPECT_EQ(update.ngroups, shape.ngroups) << name;
    EXPECT_EQ(update.input_dtype, DType::bf16);
    EXPECT_EQ(update.state_dtype, verify ? DType::bf16 : DType::f32);
    EXPECT_TRUE(update.gate_expr.empty());
  }
}

TEST(Models, ShippedFilesAreAsTheLibraryWritesThem) {
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kModels)) {
    if (entry.path().extension() != ".json") continue;
    ++files;
    EXPECT_TRUE(kShipped.count(entry.path().stem().string())) << entry.path();
    const std::string text = file_text(entry.path());
    EXPECT_EQ(Model::from_json(text).json() + "\n", text) << entry.path();
  }
  EXPECT_EQ(files, kShipped.size());
}

TEST(Models, TheMeasuredCellsAreExactlyWhatWasMeasured) {
  for (const char* name : {"nemotron3-super", "nemotron3-super-tp4", "nemotron3-super-tp8", "nemotron3-nano"}) {
    const Shape shape = kShipped.at(name);
    EXPECT_EQ(Model::from_json(file_text(kModels / (std::string(name) + ".json"))).kernel("update"),
              mamba2({shape.nheads, shape.head_dim, shape.dstate, shape.ngroups}))
        << name;
  }
}

TEST(Models, ABareDescriptionIsTheKernelUpdateOfAnUnnamedModel) {
  const Description step = mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1});
  const Model model = Model::from_json(step.json());
  EXPECT_EQ(model.model, "");
  ASSERT_EQ(model.kernels.size(), 1u);
  EXPECT_EQ(model.kernel("update"), step);
}

TEST(Models, KernelsKeepTheFilesOrderAndReadBack) {
  Model model;
  model.model = "two";
  model.source = "a test, \"quoted\" \xff";
  const Description step = mamba2({.nheads = 16, .head_dim = 64, .dstate = 128, .ngroups = 1});
  model.kernels = {{"update", step}, {"draft", Description(step).state(DType::bf16)}};
  const Model back = Model::from_json(model.json());
  EXPECT_EQ(back.kernels, model.kernels);
  EXPECT_EQ(back.model, "two");
}

TEST(Models, AMissingKernelIsRefusedWithTheNamesThatThereAre) {
  const Model model = Model::from_json(file_text(kModels / "mamba2-2.7b.json"));
  EXPECT_EQ(refusal([&] { model.kernel("ring"); }),
            "\"mamba2-2.7b\" has no kernel \"ring\"; it has conv1d, update, norm, layer");
}

TEST(Models, AllThatIsWrongInAFileIsNamedWithItsKernel) {
  const std::string sentence = refusal([] {
    Model::from_json(R"({"schema": 7, "model": 3, "note": "", "kernels": {"update": {"nheads": 16}, "B:C": {}}})");
  });
  for (const char* part :
       {"schema: got 7", "model: got 3", "unknown field \"note\"", "kernels.update: head_dim: missing",
        "kernels.update: dstate: missing", "got the name \"B:C\""}) {
    EXPECT_TRUE(holds(sentence, part)) << part << "\n" << sentence;
  }
}

// --- Hugging Face configs.

constexpr const char* kNemotron =
    R"({"model_type": "nemotron_h", "mamba_num_heads": 128, "mamba_head_dim": 64, "ssm_state_size": 128, "n_groups": 8,
        "time_step_limit": [0.0, Infinity], "time_step_min": 0.001, "time_step_max": 0.1, "torch_dtype": "bfloat16",
        "mamba_ssm_cache_dtype": "float32", "head_dim": 128, "hidden_size": 8192})";

TEST(FromHf, NemotronHHasItsOwnNamesForTheSsmAndItsHeadDimIsAttentions) {
  const Description update = from_hf(kNemotron).kernel("update");
  EXPECT_EQ(update,
            mamba2({.nheads = 128, .head_dim = 64, .dstate = 128, .ngroups = 8}).dt(DType::bf16).weights(DType::bf16));
}

TEST(Models, RingsTakeTheTokensThatTheirStepsHave) {
  for (const auto& [model, tokens] : {std::pair("nemotron3-super", 6),
                                      {"nemotron3-super-tp4", 6},
                                      {"nemotron3-super-tp8", 6},
                                      {"nemotron3-nano", 1}}) {
    const Description ring = Model::from_json(file_text(kModels / (std::string(model) + ".json"))).kernel("ring");
    EXPECT_EQ(ring.token_count, tokens) << model;
    EXPECT_EQ(ring.ring_window(), 16) << model;
  }
}

// What `shipped` holds in fp32 for the peers' benchmarks, and how many tokens its ring takes, no config says.
void expect_kernels(const std::string& config, int tp, const std::string& shipped, bool fp32_sides) {
  const Model model = from_hf(config, tp), want = Model::from_json(file_text(kModels / (shipped + ".json")));
  for (auto [name, kernel] : want.kernels) {
    Description got = model.kernel(name);
    if (fp32_sides && got.nheads > 0) got.dt(DType::f32).weights(DType::f32);
    if (name == "ring" || name == "ring_layer") got.tokens(kernel.token_count);
    EXPECT_EQ(got.json(), kernel.json()) << shipped << " " << name;
  }
  for (const auto& [name, kernel] : model.kernels) kernel.validate();
}

TEST(FromHf, GivesTheKernelsOfTheShippedModels) {
  const std::string super =
      R"({"model_type": "nemotron_h", "mamba_num_heads": 128, "mamba_head_dim": 64, "ssm_state_size": 128,
          "n_groups": 8, "conv_kernel": 4, "use_conv_bias": true, "mamba_hidden_act": "silu",
          "layer_norm_epsilon": 1e-05, "dtype": "bfloat16", "mamba_ssm_cache_dtype": "float32"})";
  for (const auto& [tp, name] :
       {std::pair(1, "nemotron3-super"), {4, "nemotron3-super-tp4"}, {8, "nemotron3-super-tp8"}})
    expect_kernels(super, tp, name, true);
  expect_kernels(
      R"({"model_type": "nemotron_h", "mamba_num_heads": 64, "mamba_head_dim": 64, "ssm_state_size": 128,
          "n_groups": 8, "conv_kernel": 4, "hidden_size": 2688, "torch_dtype": "bfloat16"})",
      1, "nemotron3-nano", true);
  expect_kernels(R"({"model_type": "nemotron_h", "mamba_num_heads": 128, "mamba_head_dim": 80})", 1,
                 "nemotron-nano-9b-v2", false);
  expect_kernels(R"({"model_type": "bamba", "mamba_d_state": 128, "mamba_d_conv": 4, "rms_norm_eps": 1e-05})", 1,
                 "bamba-9b", false);
  expect_kernels(R"({"model_type": "mamba2", "num_heads": 80, "n_groups": 1, "hidden_size": 2560})", 1, "mamba2-2.7b",
                 false);
  expect_kernels(R"({"model_type": "mamba2", "norm_before_gate": true, "rms_norm": true})", 1, "codestral-mamba-7b",
                 false);
}

TEST(FromHf, TheConfigSaysWhatIsAroundTheUpdate) {
  const Model model =
      from_hf(R"({"model_type": "bamba", "mamba_d_conv": 3, "mamba_conv_bias": false, "rms_norm_eps": 1e-06})");
  EXPECT_EQ(model.kernel("conv1d").conv->width, 3);
  EXPECT_EQ(model.kernel("conv1d").conv->state_len, 2);
  EXPECT_FALSE(model.kernel("conv1d").conv->has_bias);
  EXPECT_EQ(model.kernel("layer").conv->width, 3);
  EXPECT_EQ(model.kernel("norm").norm->eps, 1e-6);
  EXPECT_EQ(model.kernel("layer").norm->eps, 1e-6);
  for (const char* bad :
       {R"({"model_type": "bamba", "hidden_act": "gelu"})", R"({"model_type": "mamba2", "hidden_act": "relu"})",
        R"({"model_type": "nemotron_h", "mamba_hidden_act": "relu2"})"})
    EXPECT_TRUE(holds(refusal([&] { from_hf(bad); }), "wants silu, of the convolution and of the gate")) << bad;
  EXPECT_TRUE(holds(refusal([] { from_hf(R"({"model_type": "bamba", "mamba_conv_bias": 1, "rms_norm_eps": 0})"); }),
                    "mamba_conv_bias: got 1; wants true or false\nrms_norm_eps: got 0"));
}

std::string names(const Model& model) {
  std::string text;
  for (const auto& [name, kernel] : model.kernels) text += name + " ";
  return text;
}

TEST(FromHf, WhatCannotBeDescribedIsLeftOutAndTheSourceSaysWhy) {
  EXPECT_EQ(names(from_hf(kNemotron, 8)), "conv1d update ring norm layer ring_layer ");
  const Model spanning = from_hf(kNemotron, 16);
  EXPECT_EQ(names(spanning), "conv1d update ring ");
  EXPECT_TRUE(holds(spanning.source, "no norm and no layers: a rank has part of a group of the norm"));
  const Model fp32 = from_hf(R"({"model_type": "mamba2", "dtype": "float32"})");
  EXPECT_EQ(names(fp32), "conv1d update norm layer ");
  EXPECT_TRUE(holds(fp32.source, "; no ring: ")) << fp32.source;
  const Model wide = from_hf(R"({"model_type": "mamba2", "conv_kernel": 8})");
  EXPECT_EQ(names(wide), "update ring norm ");
  EXPECT_TRUE(holds(wide.source, "; no conv1d: conv.width: got 8")) << wide.source;
  const Model gated = from_hf(R"({"model_type": "mamba2", "rms_norm": false})");
  EXPECT_EQ(names(gated), "conv1d update ring layer ring_layer ");
  EXPECT_EQ(gated.kernel("update").gate_expr.text(), "silu(z)");
  EXPECT_TRUE(holds(gated.source, "no norm (rms_norm false)"));
  EXPECT_TRUE(holds(from_hf(R"({"model_type": "mamba2", "norm_before_gate": true})").source,
                    "none of which reads the config's norm_before_gate"));
}

TEST(FromHf, HeadsAndGroupsAreSplitOverRanks) {
  for (const auto& [tp, nheads, ngroups] : {std::array{1, 128, 8}, {4, 32, 2}, {8, 16, 1}, {16, 8, 1}, {64, 2, 1}}) {
    const Description update = from_hf(kNemotron, tp).kernel("update");
    EXPECT_EQ(update.nheads, nheads);
    EXPECT_EQ(update.ngroups, ngroups);
  }
  EXPECT_TRUE(holds(refusal([] { from_hf(kNemotron, 3); }), "tp: got 3; wants a divisor of the number of heads (128)"));
  EXPECT_TRUE(holds(refusal([] { from_hf(kNemotron, 0); }), "tp: got 0"));
  const std::string six_groups = R"({"model_type": "nemotron_h", "mamba_num_heads": 48, "n_groups": 6})";
  EXPECT_TRUE(holds(refusal([&] { from_hf(six_groups, 4); }), "the number of groups (6)"));
}

TEST(FromHf, TheSourceSaysWhatWasAssumed) {
  const Model model = from_hf(R"({"model_type": "nemotron_h", "mamba_num_heads": 64})", 2);
  EXPECT_EQ(model.model, "nemotron_h-tp2");
  for (const char* part : {"one rank of 2", "mamba_head_dim 64", "ssm_state_size 128", "state fp32",
                           "the gated RMSNorm after it applies z", "not clamped"}) {
    EXPECT_TRUE(holds(model.source, part)) << model.source;
  }
  EXPECT_FALSE(holds(model.source, "mamba_num_heads"));
}

TEST(FromHf, Mamba2ChecksItsHeadsAgainstTheInnerSize) {
  const Description update =
      from_hf(R"({"model_type": "mamba2", "num_heads": 80, "head_dim": 64, "state_size": 128, "n_groups": 1,
                  "hidden_size": 2560, "expand": 2})")
          .kernel("update");
  EXPECT_EQ(update.nheads, 80);
  EXPECT_EQ(update.ngroups, 1);
  EXPECT_EQ(from_hf(R"({"model_type": "mamba2", "hidden_size": 2560})").kernel("update").nheads, 80);
  EXPECT_TRUE(holds(refusal([] { from_hf(R"({"model_type": "mamba2", "num_heads": 64, "hidden_size": 2560})"); }),
                    "num_heads: got 64; wants expand * hidden_size / head_dim (5120 / 64)"));
}

TEST(FromHf, AFiniteTimeStepLimitBecomesAClamp) {
  const auto delta = [](const std::string& limit) {
    return from_hf(R"({"model_type": "mamba2", "time_step_limit": )" + limit + "}").kernel("update").delta_expr.text();
  };
  EXPECT_EQ(delta("[0.001, 0.1]"), "clamp(softplus(dt + dt_bias), 0.001, 0.1)");
  EXPECT_EQ(delta("[0.001, Infinity]"), "max(softplus(dt + dt_bias), 0.001)");
  EXPECT_EQ(delta("[-Infinity, 0.1]"), "min(softplus(dt + dt_bias), 0.1)");
  EXPECT_EQ(delta("[0.0, Infinity]"), "softplus(dt + dt_bias)");
  EXPECT_EQ(delta(R"([0.0, {"__float__": "Infinity"}])"), "softplus(dt + dt_bias)");
  EXPECT_EQ(delta("null"), "softplus(dt + dt_bias)");
  for (const char* bad : {"[0.1, 0.001]", "[0.1]", "3", "[NaN, 1]", "[\"a\", 1]"}) {
    EXPECT_TRUE(holds(refusal([&] { delta(bad); }), "time_step_limit: got")) << bad;
  }
}

TEST(FromHf, InfinityInsideTextStaysText) {
  EXPECT_EQ(from_hf(R"({"model_type": "bamba", "name": "Infinity \" Infinity NaN", "x": NaN})").model, "bamba");
}

TEST(FromHf, BambaResolvesAutoHeadDim) {
  const Model model = from_hf(
      R"({"model_type": "bamba", "mamba_n_heads": 128, "mamba_d_head": "auto", "mamba_d_state": 128,
          "mamba_n_groups": 1, "hidden_size": 4096, "mamba_expand": 2, "dtype": "float16"})");
  const Description& update = model.kernel("update");
  EXPECT_EQ(update.head_dim, 64);
  EXPECT_EQ(update.dstate, 128);
  EXPECT_EQ(update.input_dtype, DType::f16);
  EXPECT_EQ(update.dt_dtype, DType::f32) << "there is no fp16 dt";
  EXPECT_EQ(from_hf(R"({"model_type": "bamba"})").kernel("update").dstate, 256);
}

TEST(FromHf, StateDtypeFollowsTheCacheDtype) {
  const auto state = [](const std::string& dtype) {
    return from_hf(R"({"model_type": "nemotron_h", "torch_dtype": "bfloat16", "mamba_ssm_cache_dtype": ")" + dtype +
                   "\"}")
        .kernel("update")
        .state_dtype;
  };
  EXPECT_EQ(state("float32"), DType::f32);
  EXPECT_EQ(state("float16"), DType::f16);
  EXPECT_EQ(state("torch.bfloat16"), DType::bf16);
  EXPECT_EQ(state("auto"), DType::bf16);
  EXPECT_TRUE(holds(refusal([&] { state("int8"); }), "mamba_ssm_cache_dtype: got \"int8\""));
}

TEST(FromHf, OtherModelsAndBadFilesAreRefusedByName) {
  EXPECT_EQ(refusal([] { from_hf(R"({"model_type": "llama"})"); }),
            "model_type: got \"llama\"; this version reads mamba2, nemotron_h and bamba");
  EXPECT_TRUE(holds(refusal([] { from_hf("{}"); }), "model_type: got nothing"));
  EXPECT_TRUE(holds(refusal([] { from_hf("{"); }), "config: not JSON"));
  EXPECT_TRUE(holds(refusal([] { from_hf("[]"); }), "config: got an array"));
  const std::string sentence = refusal([] {
    from_hf(R"({"model_type": "nemotron_h", "mamba_num_heads": -4, "n_groups": "8", "ssm_state_size": 99999999999})");
  });
  for (const char* part : {"mamba_num_heads: got -4", "n_groups: got \"8\"", "ssm_state_size: got 99999999999"}) {
    EXPECT_TRUE(holds(sentence, part)) << sentence;
  }
  EXPECT_TRUE(
      holds(refusal([] { from_hf(R"({"model_type": "nemotron_h", "mamba_head_dim": 60})"); }), "head_dim: got 60"));
}

}  // namespace
}  // namespace ssmjit
