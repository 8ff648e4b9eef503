// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "model/checkpoint.h"
#include "tests/support/command.h"
#include "tests/support/files.h"
#include "tests/support/gguf_file.h"

namespace gradus::cli {
namespace {

using test::CommandOutcome;
using test::GgufFile;
using test::read_file;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

// A llama of one layer and width 32, so that rows are whole blocks, with a vocabulary of four
// tokens.
GgufFile small_gguf() {
  GgufFile file;
  file.text("general.architecture", "llama");
  file.u32("llama.embedding_length", 32).u32("llama.feed_forward_length", 32);
  file.u32("llama.block_count", 1).u32("llama.context_length", 64);
  file.u32("llama.attention.head_count", 2).u32("llama.attention.head_count_kv", 1);
  file.f32("llama.attention.layer_norm_rms_epsilon", 1e-5f).f32("llama.rope.freq_base", 10000.0f);
  file.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "smollm");
  file.texts("tokenizer.ggml.tokens", {"<|end|>", "a", "b", "ab"});
  file.i32s("tokenizer.ggml.token_type", {3, 1, 1, 1}).texts("tokenizer.ggml.merges", {"a b"});
  file.u32("tokenizer.ggml.bos_token_id", 0).u32("tokenizer.ggml.eos_token_id", 0);
  file.text("tokenizer.chat_template", "{{ messages[0]['content'] }}");
  const auto add = [&](const char* name, const std::vector<int64_t>& shape) {
    std::vector<float> values(static_cast<size_t>(shape[0] * (shape.size() == 2 ? shape[1] : 1)));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 100) / 64;
    file.f32_tensor(name, shape, values);
  };
  add("token_embd.weight", {4, 32});
  for (const char* name :
       {"blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"}) {
    add(name, {32});
  }
  for (const char* name :
       {"blk.0.attn_q.weight", "blk.0.attn_output.weight", "blk.0.ffn_gate.weight",
        "blk.0.ffn_up.weight", "blk.0.ffn_down.weight"}) {
    add(name, {32, 32});
  }
  add("blk.0.attn_k.weight", {16, 32});
  add("blk.0.attn_v.weight", {16, 32});
  return file;
}

class ConvertCommand : public ::testing::Test {
 protected:
  void SetUp() override { test::write_file(path("x.gguf"), small_gguf().bytes()); }
  std::string path(const std::string& name) const { return folder_.path() + "/" + name; }
  CommandOutcome convert(const std::string& options = "", const std::string& before = "") const {
    return test::run_command(before + GRADUS_BINARY + " convert " + path("x.gguf") + " " +
                             path("out") + " " + options + " 2>&1");
  }
  std::vector<std::string> names_in(const std::string& dir) const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(dir)) {
      names.push_back(entry.path().filename().string());
    }
    return names;
  }
  test::TemporaryFolder folder_;
};

TEST_F(ConvertCommand, WritesAWholeDirectoryAndSaysSo) {
  const CommandOutcome outcome = convert();
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  const auto summary = nlohmann::json::parse(outcome.output);
  EXPECT_EQ(summary["out"], path("out"));
  EXPECT_EQ(summary["family"], "llama");
  EXPECT_EQ(summary["parameters"], 4 * 32 + 3 * 32 + 5 * 32 * 32 + 2 * 16 * 32);
  EXPECT_THAT(
      names_in(path("out")),
      UnorderedElementsAre("config.json", "generation_config.json", "model.safetensors",
                           "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"));
  const auto reader = model::CheckpointReader::open(path("out"));
  ASSERT_TRUE(reader.ok()) << reader.status().message();
  EXPECT_EQ(reader->config().eos_ids, std::vector<int32_t>{0});
  float norm[32];
  ASSERT_TRUE(reader->read_f32("model.norm.weight", std::vector<int64_t>{32}, norm).ok());
  EXPECT_EQ(norm[3], 3.0f / 64);
  const auto tokenizer = nlohmann::json::parse(read_file(path("out/tokenizer.json")));
  EXPECT_EQ(tokenizer["model"]["vocab"]["ab"], 3);
  const auto tokenizer_config = nlohmann::json::parse(read_file(path("out/tokenizer_config.json")));
  EXPECT_EQ(tokenizer_config["chat_template"], "{{ messages[0]['content'] }}");
  const auto special = nlohmann::json::parse(read_file(path("out/special_tokens_map.json")));
  EXPECT_EQ(special["eos_token"], "<|end|>");
}

TEST_F(ConvertCommand, WritesBf16OnRequest) {
  ASSERT_EQ(convert("--dtype bf16").exit_code, 0);
  EXPECT_THAT(read_file(path("out/config.json")), HasSubstr("\"torch_dtype\": \"bfloat16\""));
  const auto weights = model::SafetensorsReader::open(path("out"));
  ASSERT_TRUE(weights.ok());
  EXPECT_EQ(weights->find("model.norm.weight")->dtype, "BF16");
}

TEST_F(ConvertCommand, RefusesADirectoryWithContent) {
  std::filesystem::create_directory(path("out"));
  ASSERT_EQ(convert().exit_code, 0) << "empty";
  const std::string before = read_file(path("out/model.safetensors"));
  const CommandOutcome outcome = convert("--dtype bf16");
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_EQ(outcome.output, "gradus: error: " + path("out") +
                                ": exists already; choose another directory or remove it\n");
  EXPECT_EQ(read_file(path("out/model.safetensors")), before);
}

TEST_F(ConvertCommand, LeavesNothingBehindWhenTheFileIsBroken) {
  std::string bytes = small_gguf().bytes();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(bytes.data() + bytes.size() - 8, &nan, 4);
  test::write_file(path("x.gguf"), bytes);
  const CommandOutcome outcome = convert();
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_EQ(outcome.output,
            "gradus: error: " + path("x.gguf") +
                ": tensor 'model.layers.0.self_attn.v_proj.weight': 1 of 512 values are "
                "NaN or infinite; the weights are broken\n");
  EXPECT_THAT(names_in(folder_.path()), UnorderedElementsAre("x.gguf"));

  test::write_file(path("x.gguf"), bytes.substr(0, bytes.size() - 100));
  EXPECT_THAT(convert().output, HasSubstr("the file is truncated"));
  EXPECT_THAT(names_in(folder_.path()), UnorderedElementsAre("x.gguf"));
}

// A limit on the size of files stands for a full disk: write() fails in the same place.
TEST_F(ConvertCommand, ReportsAFullDiskAndLeavesNothingBehind) {
  const CommandOutcome outcome = convert("", "trap '' XFSZ; ulimit -f 8; ");
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.output,
              HasSubstr("/model.safetensors: cannot write after 4096 bytes: File too large; "
                        "free some space or choose another place"));
  EXPECT_THAT(names_in(folder_.path()), UnorderedElementsAre("x.gguf"));
}

// The real model, fetched by tools/fetch_model: its weights are those that transformers reads from
// the GGUF.
TEST(FetchedModel, HasTheWeightsThatTransformersReadsFromTheGguf) {
  const std::string dir = ".deps/models/smollm2-135m-instruct";
  const auto reader = model::CheckpointReader::open(dir);
  ASSERT_TRUE(reader.ok()) << reader.status().message() << "; run tools/fetch_model";
  EXPECT_EQ(model::num_parameters(reader->config()), 134515008);
  const auto golden =
      nlohmann::json::parse(read_file("tests/golden/smollm2_logits.json"))["weights"];
  EXPECT_EQ(golden.size(), 3u * 9 + 2);
  for (const model::WeightSpec& spec : model::weight_specs(reader->config())) {
    if (!golden.contains(spec.hf_name)) continue;
    int64_t count = 1;
    for (const int64_t extent : spec.shape) count *= extent;
    std::vector<float> values(static_cast<size_t>(count));
    ASSERT_TRUE(reader->read_f32(spec.hf_name, spec.shape, values.data()).ok());
    const auto& want = golden[spec.hf_name];
    for (size_t i = 0; i < 3; ++i)
      EXPECT_EQ(values[i], want["first"][i].get<float>()) << spec.hf_name;
    double sum = 0;
    for (const float value : values) sum += static_cast<double>(value) * value;
    EXPECT_NEAR(sum, want["sum_of_squares"].get<double>(), 1e-9 * sum) << spec.hf_name;
  }
}

}  // namespace
}  // namespace gradus::cli
