// SPDX-License-Identifier: Apache-2.0
// Adapters that peft wrote (tools/golden/make_lora_golden.py), adapters of our own, and broken
// ones.
#include "model/peft_adapter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "model/safetensors.h"
#include "model/training_pass.h"
#include "tests/support/files.h"
#include "tests/support/lora_weights.h"
#include "tests/support/model_rows.h"
#include "tests/support/tolerances.h"

namespace gradus::model {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

const std::vector<std::string> kGolden = {"qwen2_all", "qwen3_rslora"};

std::string golden(const std::string& name) { return "tests/golden/lora/" + name; }
json expected_of(const std::string& name) {
  return json::parse(std::ifstream(golden(name) + "/expected.json"));
}

std::unique_ptr<Transformer> load(const std::string& dir) {
  auto loaded = Transformer::load(dir);
  GRADUS_CHECK(loaded.ok(), loaded.status().message());
  return std::move(*loaded);
}

std::unique_ptr<LoraAdapter> open_on(const std::string& dir, const Transformer& transformer) {
  auto adapter = open_adapter(dir, "base", transformer.config(), transformer.parameters());
  GRADUS_CHECK(adapter.ok(), adapter.status().message());
  return std::move(*adapter);
}

// Log-probs and gradients of the factors against transformers, peft and torch in float64.
TEST(PeftAdapter, ComputesWhatPeftComputes) {
  for (const std::string& name : kGolden) {
    const json expected = expected_of(name);
    const auto transformer = load(expected["base"]);
    transformer->set_adapter(open_on(golden(name), *transformer));
    const data::PackGroup group{expected["prompt"].get<std::vector<int32_t>>(),
                                expected["responses"].get<std::vector<std::vector<int32_t>>>()};
    const data::Pack pack = data::make_pack({&group, 1});
    TrainingPass pass(*transformer, false);
    pass.forward(pack, 1.0f, true);
    std::vector<float> slopes;
    for (size_t i = 0; i < pack.targets.size(); ++i) {
      EXPECT_NEAR(pass.logprobs()[i], expected["logprobs"][i].get<double>(), testing::kLogits);
      slopes.push_back(0.5f + 0.1f * static_cast<float>(i));
    }
    Gradients gradients(*transformer->adapter());
    gradients.clear();
    pass.backward(slopes, std::vector<float>(slopes.size()), gradients);
    gradients.finish(transformer->layout(), transformer->config().hidden_size);
    const auto& places = transformer->adapter()->layout().places;
    EXPECT_EQ(places.size(), expected["gradients"].size());
    for (const ParameterPlace& place : places) {
      const auto grad =
          testing::matrix_at(gradients.buffer.data(), place.offset, place.rows, place.columns);
      double sum = 0, wave = 0, squares = 0;
      for (size_t i = 0; i < grad.size(); ++i) {
        sum += grad[i];
        wave += grad[i] * std::cos(static_cast<double>(i));
        squares += double{grad[i]} * grad[i];
      }
      const json& reference = expected["gradients"][place.hf_name];
      ASSERT_EQ(reference.size(), 3u) << place.hf_name;
      const double norm = reference[2].get<double>();
      const double tolerance = testing::kGradientOfNorm * norm;
      EXPECT_GT(norm, 0);
      EXPECT_NEAR(std::sqrt(squares), norm, tolerance) << name << " " << place.hf_name;
      EXPECT_NEAR(wave, reference[1].get<double>(), tolerance) << name << " " << place.hf_name;
      EXPECT_NEAR(sum, reference[0].get<double>(), tolerance) << name << " " << place.hf_name;
    }
  }
}

TEST(PeftAdapter, ReadsRankScalingAndTargets) {
  const LoraConfig all = load_lora_config(golden("qwen2_all")).value();
  EXPECT_EQ(all.rank, 4);
  EXPECT_EQ(all.alpha, 6);
  EXPECT_FALSE(all.rslora);
  EXPECT_EQ(all.targets, lora_target_names());
  const LoraConfig some = load_lora_config(golden("qwen3_rslora")).value();
  EXPECT_EQ(some.scale(), 3 / std::sqrt(5.0));
  EXPECT_EQ(some.targets, (std::vector<std::string>{"q_proj", "v_proj", "down_proj"}));
}

// What peft wrote is written again with the same names, shapes and bytes, and what we wrote is read
// back bit for bit.
TEST(PeftAdapter, IsWrittenAsPeftWritesIt) {
  for (const std::string& name : kGolden) {
    const auto transformer = load(expected_of(name)["base"]);
    const auto adapter = open_on(golden(name), *transformer);
    const test::TemporaryFolder folder;
    const std::string dir = folder.path() + "/adapter";
    ASSERT_TRUE(write_adapter(dir, "some/base", *adapter, adapter->values()).ok());
    const auto ours = SafetensorsReader::open(dir + "/adapter_model.safetensors").value();
    const auto theirs =
        SafetensorsReader::open(golden(name) + "/adapter_model.safetensors").value();
    ASSERT_EQ(ours.tensors().size(), theirs.tensors().size());
    for (size_t i = 0; i < ours.tensors().size(); ++i) {
      const SafetensorsTensor &a = ours.tensors()[i], &b = theirs.tensors()[i];
      EXPECT_EQ(a.name, b.name) << "in the same order";
      EXPECT_EQ(a.shape, b.shape) << a.name;
      EXPECT_TRUE(std::ranges::equal(a.bytes, b.bytes)) << a.name;
    }
    const json config = json::parse(test::read_file(dir + "/adapter_config.json"));
    const json original = json::parse(test::read_file(golden(name) + "/adapter_config.json"));
    for (const char* key : {"peft_type", "task_type", "r", "lora_alpha", "use_rslora", "bias",
                            "fan_in_fan_out", "use_dora", "modules_to_save", "inference_mode"}) {
      EXPECT_EQ(config[key], original[key]) << key;
    }
    EXPECT_EQ(config["base_model_name_or_path"], "some/base");
    EXPECT_EQ(base_model_of(dir), "some/base");
    const auto again = open_on(dir, *transformer);
    EXPECT_EQ(std::memcmp(again->values(), adapter->values(),
                          static_cast<size_t>(adapter->layout().size) * sizeof(float)),
              0);
  }
}

// A copy of a golden adapter with one thing changed.
class BrokenAdapter : public ::testing::Test {
 protected:
  void SetUp() override { fs::copy(golden("qwen2_all"), dir_); }

  void set(const std::string& key, const json& value) const {
    json config = json::parse(test::read_file(dir_ + "/adapter_config.json"));
    config[key] = value;
    test::write_file(dir_ + "/adapter_config.json", config.dump());
  }
  // Rewrites the tensors by `change` of each name and shape.
  void rewrite(const std::function<bool(std::string&, std::vector<int64_t>&)>& change,
               float value = 0.5f) const {
    std::vector<SafetensorsSpec> specs;
    {
      const auto tensors = SafetensorsReader::open(file()).value();
      for (const SafetensorsTensor& tensor : tensors.tensors()) {
        SafetensorsSpec spec{tensor.name, "F32", tensor.shape};
        if (change(spec.name, spec.shape)) specs.push_back(std::move(spec));
      }
    }
    auto writer = SafetensorsWriter::create(file(), specs).value();
    for (const SafetensorsSpec& spec : specs) {
      int64_t count = 1;
      for (const int64_t extent : spec.shape) count *= extent;
      ASSERT_TRUE(writer.append_f32(std::vector<float>(static_cast<size_t>(count), value)).ok());
    }
    ASSERT_TRUE(writer.finish().ok());
  }
  std::string message(const std::string& base = "qwen2") const {
    const auto transformer = load(testing::tiny_model_dir(base));
    return open_adapter(dir_, "base", transformer->config(), transformer->parameters())
        .status()
        .message();
  }
  std::string file() const { return dir_ + "/adapter_model.safetensors"; }

  test::TemporaryFolder folder_;
  std::string dir_ = folder_.path() + "/adapter";
};

TEST_F(BrokenAdapter, AnOptionThatIsNotSupportedIsNamedWithItsValue) {
  const std::string remedy =
      "; merge the adapter with peft (merge_and_unload) and load the merged model";
  const std::vector<std::tuple<std::string, json, std::string>> cases = {
      {"peft_type", "IA3", "'peft_type' is \"IA3\"; only \"LORA\" is supported"},
      {"bias", "all", "'bias' is \"all\"; only \"none\" is supported"},
      {"use_dora", true, "'use_dora' is true; only the option's absence is supported"},
      {"modules_to_save",
       {"lm_head"},
       "'modules_to_save' is [\"lm_head\"]; only the option's absence is supported"},
      {"rank_pattern",
       {{"q_proj", 8}},
       "'rank_pattern' is {\"q_proj\":8}; only the option's absence is supported"},
      {"layers_to_transform",
       {0},
       "'layers_to_transform' is [0]; only the option's absence is supported"},
      {"fan_in_fan_out", true, "'fan_in_fan_out' is true; only the option's absence is supported"},
      {"use_new_idea", 3, "'use_new_idea' is 3; only the option's absence is supported"},
      {"init_lora_weights", "pissa_niter_16",
       "'init_lora_weights' is \"pissa_niter_16\"; only a start that keeps the base is "
       "supported"}};
  const json original = json::parse(test::read_file(dir_ + "/adapter_config.json"));
  for (const auto& [key, value, text] : cases) {
    set(key, value);
    EXPECT_EQ(message(), dir_ + "/adapter_config.json: " + text + remedy);
    test::write_file(dir_ + "/adapter_config.json", original.dump());
  }
  EXPECT_EQ(message(), "");
  set("r", 0);
  EXPECT_EQ(message(), dir_ + "/adapter_config.json: 'r' must be an integer of at least 1, got 0");
  set("r", 4);
  set("lora_alpha", "much");
  EXPECT_EQ(message(),
            dir_ + "/adapter_config.json: 'lora_alpha' must be greater than 0, got \"much\"");
}

TEST_F(BrokenAdapter, AnotherBaseIsAnErrorByShapeOrByHash) {
  EXPECT_THAT(message("llama3_rope"), HasSubstr(file() + ": "));
  EXPECT_THAT(message("llama3_rope"),
              HasSubstr("[4, 48] where the base base with rank 4 implies [4, 64]"));
  // Of the same shape with other weights: known to adapters that Gradus wrote.
  const auto transformer = load(testing::tiny_model_dir("qwen2"));
  const auto adapter = open_on(dir_, *transformer);
  ASSERT_TRUE(write_adapter(dir_, "models/right", *adapter, adapter->values()).ok());
  EXPECT_EQ(message(), "");
  transformer->parameters()[transformer->layout().layers[1].down] += 1;
  const auto other =
      open_adapter(dir_, "models/wrong", transformer->config(), transformer->parameters());
  EXPECT_THAT(other.status().message(),
              HasSubstr(file() + ": the adapter was trained on other weights than those of "
                                 "models/wrong (hash "));
  EXPECT_THAT(other.status().message(),
              HasSubstr("); give the base it was trained on: 'models/right'"));
}

TEST_F(BrokenAdapter, TensorsThatDoNotFitAreNamed) {
  set("r", 5);
  EXPECT_THAT(message(), HasSubstr("[4, 48] where the base base with rank 5 implies [5, 48]"));
  set("r", 4);
  rewrite([](std::string& name, std::vector<int64_t>&) {
    return name != "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight";
  });
  EXPECT_THAT(message(), HasSubstr("1 tensor missing"));
  EXPECT_THAT(message(), HasSubstr("layers.1.mlp.up_proj.lora_B.weight' [96, 4]"));
  rewrite([](std::string& name, std::vector<int64_t>&) {
    if (name.find("layers.0.self_attn.q_proj.lora_A") != std::string::npos) {
      name = "base_model.model.lm_head.lora_A.weight";
    }
    return true;
  });
  EXPECT_EQ(message(), file() +
                           ": tensor 'base_model.model.lm_head.lora_A.weight' adapts 'lm_head', "
                           "which is not supported; supported: q_proj, k_proj, v_proj, o_proj, "
                           "gate_proj, up_proj, down_proj");
  rewrite([](std::string& name, std::vector<int64_t>&) {
    if (name.find("lm_head") != std::string::npos) name = "lm_head.bias";
    return true;
  });
  EXPECT_EQ(message(), file() +
                           ": tensor 'lm_head.bias' is no factor of LoRA; expected "
                           "base_model.model.<module>.lora_A.weight or .lora_B.weight");
}

TEST_F(BrokenAdapter, ValuesThatAreNotFiniteAreCounted) {
  rewrite([](std::string&, std::vector<int64_t>&) { return true; }, std::nanf(""));
  EXPECT_THAT(message(), HasSubstr("of 192 values are NaN or infinite; the weights are broken"));
}

TEST_F(BrokenAdapter, MissingFilesAreNamed) {
  fs::remove(file());
  EXPECT_EQ(message(), file() + ": not found; it holds the adapter's values");
  test::write_file(dir_ + "/adapter_model.bin", "x");
  EXPECT_EQ(message(), file() +
                           ": not found; adapter_model.bin is not read: save it anew with "
                           "safe_serialization=True");
  fs::remove(dir_ + "/adapter_config.json");
  EXPECT_THAT(message(), HasSubstr(dir_ + "/adapter_config.json"));
}

TEST(PeftAdapter, AnAdapterGivenAsAModelIsSentToItsPlace) {
  EXPECT_TRUE(check_holds_model(testing::tiny_model_dir("qwen2")).ok());
  EXPECT_EQ(check_holds_model(golden("qwen2_all")).message(),
            "tests/golden/lora/qwen2_all: holds an adapter, not a model; give it as --adapter or "
            "model.adapter, and its base ('tests/golden/tiny_models/qwen2') as the model");
}

}  // namespace
}  // namespace gradus::model
