// SPDX-License-Identifier: Apache-2.0
#include "data/gguf_tokenizer.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "data/tokenizer.h"

namespace gradus::data {
namespace {

using Json = nlohmann::json;

GgufTokenizerMetadata byte_level_metadata(const std::string& pre) {
  GgufTokenizerMetadata metadata{.model = "gpt2", .pre = pre};
  metadata.tokens = {"<|end|>", "1", "2", "12", "a", "e\u0301", "'", "S", "'S", "\u0120", "<tool>"};
  metadata.token_types = {3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4};
  metadata.merges = {"1 2", "' S"};
  metadata.eos_id = 0;
  metadata.chat_template = "{{ messages }}";
  return metadata;
}

std::unique_ptr<Tokenizer> make(const GgufTokenizerMetadata& metadata) {
  const auto files = make_tokenizer_files(metadata, "m.gguf");
  EXPECT_TRUE(files.ok()) << files.status().message();
  auto tokenizer = Tokenizer::from_json(files->tokenizer_json, "m.gguf");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  return std::move(*tokenizer);
}

using Ids = std::vector<int32_t>;

TEST(GgufTokenizer, GivesEachFamilyItsPreTokenizer) {
  // smollm cuts each digit off; gpt-2 keeps digits together, and knows 's but not 'S.
  EXPECT_EQ(*make(byte_level_metadata("smollm"))->encode("12a"), (Ids{1, 2, 4}));
  EXPECT_EQ(*make(byte_level_metadata("gpt-2"))->encode("12a'S"), (Ids{3, 4, 6, 7}));
  EXPECT_EQ(*make(byte_level_metadata(""))->encode("12"), (Ids{3}));
  EXPECT_EQ(*make(byte_level_metadata("llama-bpe"))->encode("12'S"), (Ids{3, 8}));
  EXPECT_EQ(*make(byte_level_metadata("qwen2"))->encode("12'S"), (Ids{1, 2, 8}));
  EXPECT_EQ(*make(byte_level_metadata("qwen35"))->encode("12"), (Ids{1, 2}));
}

TEST(GgufTokenizer, MakesControlTokensSpecialAndUserDefinedOnesNot) {
  const auto tokenizer = make(byte_level_metadata("smollm"));
  EXPECT_EQ(*tokenizer->encode("a<|end|><tool>"), (Ids{4, 0, 10}));
  EXPECT_TRUE(tokenizer->is_special(0));
  EXPECT_FALSE(tokenizer->is_special(10));
  EXPECT_EQ(*tokenizer->decode(Ids{4, 9, 0, 10}, true), "a <tool>");
}

TEST(GgufTokenizer, WritesTheConfiguration) {
  auto metadata = byte_level_metadata("smollm");
  metadata.bos_id = 10;
  metadata.add_bos = false;
  const auto files = make_tokenizer_files(metadata, "m.gguf");
  ASSERT_TRUE(files.ok());
  const Json config = Json::parse(files->tokenizer_config_json);
  EXPECT_EQ(config["eos_token"], "<|end|>");
  EXPECT_EQ(config["bos_token"], "<tool>");
  EXPECT_EQ(config["chat_template"], "{{ messages }}");
  EXPECT_EQ(config["add_bos_token"], false);
  EXPECT_FALSE(config.contains("pad_token"));
  EXPECT_EQ(Json::parse(files->tokenizer_json)["post_processor"]["type"], "ByteLevel");
}

TEST(GgufTokenizer, WritesThatABosTokenIsPutFirst) {
  auto metadata = byte_level_metadata("llama-bpe");
  metadata.bos_id = 0;
  metadata.add_bos = true;
  const auto files = make_tokenizer_files(metadata, "m.gguf");
  ASSERT_TRUE(files.ok());
  const Json processor = Json::parse(files->tokenizer_json)["post_processor"]["processors"][1];
  EXPECT_EQ(processor["single"], Json::parse(R"([{"SpecialToken": {"id": "<|end|>", "type_id": 0}},
                                                 {"Sequence": {"id": "A", "type_id": 0}}])"));
  EXPECT_EQ(processor["special_tokens"]["<|end|>"]["ids"], Json::parse("[0]"));
  EXPECT_EQ(*make(metadata)->encode("a"), (Ids{4}));  // for others: encode() adds nothing
}

GgufTokenizerMetadata llama_metadata() {
  GgufTokenizerMetadata metadata{.model = "llama"};
  metadata.tokens = {"<unk>", "<s>", "<0x0A>", "<0xC3>",  "<0xA9>",  "\u2581",
                     "a",     "b",   "ab",     "\u2581a", "\u2581ab"};
  metadata.token_types = {2, 3, 6, 6, 6, 1, 1, 1, 1, 1, 1};
  metadata.scores = {0, 0, 0, 0, 0, -10, -11, -12, -2, -1, -3};
  metadata.unk_id = 0;
  return metadata;
}

TEST(GgufTokenizer, RebuildsMergesFromScores) {
  const auto files = make_tokenizer_files(llama_metadata(), "m.gguf");
  ASSERT_TRUE(files.ok()) << files.status().message();
  // Best score of the result first: "_a" -1, "ab" -2, then "_ab" -3 both ways, the longer left part
  // first.
  EXPECT_EQ(Json::parse(files->tokenizer_json)["model"]["merges"],
            Json::parse(R"([["\u2581", "a"], ["a", "b"], ["\u2581a", "b"], ["\u2581", "ab"]])"));
  const auto tokenizer = make(llama_metadata());
  EXPECT_EQ(*tokenizer->encode("ab aab"), (Ids{10, 9, 8}));
  EXPECT_EQ(*tokenizer->encode("a\u00e9\n"), (Ids{9, 3, 4, 2}));
  EXPECT_EQ(*tokenizer->decode(Ids{10, 9, 8, 3, 4}), "ab aab\u00e9");
  auto metadata = llama_metadata();
  metadata.add_space_prefix = false;
  EXPECT_EQ(*make(metadata)->encode("ab ab"), (Ids{8, 10}));
}

TEST(GgufTokenizer, NamesWhatIsWrong) {
  const auto error = [](const GgufTokenizerMetadata& metadata) {
    return make_tokenizer_files(metadata, "m.gguf").status().message();
  };
  auto metadata = byte_level_metadata("smolm");
  EXPECT_EQ(error(metadata),
            "m.gguf: unknown pre-tokenizer 'smolm' (tokenizer.ggml.pre); served here: default, "
            "gpt-2, smollm, "
            "llama-bpe, llama-v3, llama3, qwen2, qwen35, deepseek-r1-qwen; did you mean 'smollm'?");
  metadata = byte_level_metadata("smollm");
  metadata.model = "bert";
  EXPECT_EQ(error(metadata),
            "m.gguf: unsupported tokenizer model 'bert' (tokenizer.ggml.model); served here: gpt2, "
            "llama");
  metadata = byte_level_metadata("smollm");
  metadata.token_types.pop_back();
  EXPECT_EQ(error(metadata), "m.gguf: 10 token types for 11 tokens");
  metadata = byte_level_metadata("smollm");
  metadata.pad_id = 11;
  EXPECT_EQ(error(metadata), "m.gguf: padding token id 11 is not in [0, 11)");
  metadata = byte_level_metadata("smollm");
  metadata.tokens[4] = "1";
  EXPECT_EQ(error(metadata), "m.gguf: token '1' occurs twice, as 1 and 4");
  metadata = byte_level_metadata("smollm");
  metadata.tokens[4] = "\xFF";
  EXPECT_EQ(error(metadata), "m.gguf: token 4 is not valid UTF-8 at byte 0");
  metadata = byte_level_metadata("smollm");
  metadata.merges.clear();
  EXPECT_EQ(error(metadata), "m.gguf: no merges (tokenizer.ggml.merges)");
  metadata = llama_metadata();
  metadata.scores.clear();
  EXPECT_EQ(error(metadata),
            "m.gguf: neither merges nor scores; expected tokenizer.ggml.merges or .scores");
  EXPECT_EQ(error({.model = "gpt2"}), "m.gguf: no tokens (tokenizer.ggml.tokens)");
}

}  // namespace
}  // namespace gradus::data
