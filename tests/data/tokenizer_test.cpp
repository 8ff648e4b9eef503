// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "common/strings.h"

namespace gradus::data {
namespace {

using Json = nlohmann::json;

// A byte-level-free tokenizer over a, b, c with merges (a b) -> ab, (ab c) -> abc, (b c) -> bc.
Json small_tokenizer() {
  return Json::parse(R"({
    "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
    "post_processor": null,
    "decoder": {"type": "Fuse"},
    "model": {"type": "BPE", "unk_token": "?",
              "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "bc": 5, "?": 6},
              "merges": ["a b", "ab c", ["b", "c"]]}})");
}

std::unique_ptr<Tokenizer> make(const Json& json) {
  auto tokenizer = Tokenizer::from_json(json.dump(), "small.json");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  return tokenizer.ok() ? std::move(*tokenizer) : nullptr;
}

std::string error_of(const Json& json) {
  const auto tokenizer = Tokenizer::from_json(json.dump(), "small.json");
  return tokenizer.ok() ? "" : tokenizer.status().message();
}

std::vector<int32_t> encode(const Tokenizer& tokenizer, std::string_view text) {
  auto ids = tokenizer.encode(text);
  EXPECT_TRUE(ids.ok()) << ids.status().message();
  return ids.ok() ? *ids : std::vector<int32_t>{};
}

TEST(Tokenizer, MergesLowestRankFirst) {
  const auto tokenizer = make(small_tokenizer());
  // "abc": a b -> ab (rank 0), ab c -> abc (rank 1). "bc": rank 2 alone. "aabcb": a, then abc, then
  // b.
  EXPECT_EQ(encode(*tokenizer, "abc"), (std::vector<int32_t>{4}));
  EXPECT_EQ(encode(*tokenizer, "bc"), (std::vector<int32_t>{5}));
  EXPECT_EQ(encode(*tokenizer, "aabcb"), (std::vector<int32_t>{0, 4, 1}));
  // x is unknown: one unknown token each, since fuse_unk is off.
  EXPECT_EQ(encode(*tokenizer, "axxbc"), (std::vector<int32_t>{0, 6, 6, 5}));
  EXPECT_EQ(encode(*tokenizer, ""), std::vector<int32_t>{});
}

TEST(Tokenizer, FusesUnknownCharactersWhenAsked) {
  Json json = small_tokenizer();
  json["model"]["fuse_unk"] = true;
  EXPECT_EQ(encode(*make(json), "axxbc"), (std::vector<int32_t>{0, 6, 5}));
  json["model"].erase(
      "unk_token");  // without one, unknown characters are dropped and their neighbours meet
  EXPECT_EQ(encode(*make(json), "axxbc"), (std::vector<int32_t>{4}));
}

// The definition of BPE, word for word: while some neighbours can merge, merge the pair of lowest
// rank, leftmost.
std::vector<std::string> naive_bpe(const std::string& text,
                                   const std::vector<std::pair<std::string, std::string>>& merges) {
  std::vector<std::string> symbols;
  for (char c : text) symbols.emplace_back(1, c);
  while (true) {
    size_t best_rank = merges.size(), best = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (merges[rank] == std::pair(symbols[i], symbols[i + 1])) {
          best_rank = rank;
          best = i;
        }
      }
    }
    if (best_rank == merges.size()) return symbols;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
}

TEST(Tokenizer, AgreesWithTheDefinitionOnShortAndLongPretokens) {
  const std::vector<std::pair<std::string, std::string>> merges = {
      {"a", "a"}, {"b", "c"},   {"aa", "b"}, {"a", "b"}, {"ab", "ab"},
      {"c", "c"}, {"aa", "aa"}, {"bc", "a"}, {"ab", "c"}};
  Json json = small_tokenizer();
  json["model"]["vocab"] = {{"a", 0}, {"b", 1}, {"c", 2}, {"?", 3}};
  json["model"]["merges"] = Json::array();
  for (const auto& [left, right] : merges) {
    json["model"]["merges"].push_back({left, right});
    json["model"]["vocab"][left + right] = json["model"]["vocab"].size();
  }
  const auto tokenizer = make(json);
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    // Lengths on both sides of where the search through all pairs gives way to the heap.
    std::string text(1 + random() % 120, 'a');
    for (char& c : text) c = static_cast<char>('a' + random() % 3);
    std::vector<int32_t> expected;
    for (const std::string& token : naive_bpe(text, merges))
      expected.push_back(*tokenizer->token_to_id(token));
    ASSERT_EQ(encode(*tokenizer, text), expected) << text;
    ASSERT_EQ(encode(*tokenizer, text), expected) << "from the cache: " << text;
  }
}

TEST(Tokenizer, EncodesAPretokenOfMegabytes) {
  // A merge loop that is quadratic would take hours here.
  const auto tokenizer = make(small_tokenizer());
  std::string text;
  for (int i = 0; i < 700000; ++i) text += "abc";
  EXPECT_EQ(encode(*tokenizer, text), std::vector<int32_t>(700000, 4));
}

TEST(Tokenizer, FindsAddedTokensWithTheirFlags) {
  Json json = small_tokenizer();
  const auto token = [](int id, const char* content, const char* flag) {
    Json result = {{"id", id}, {"content", content}, {"special", true}, {"normalized", false}};
    if (*flag != 0) result[flag] = true;
    return result;
  };
  json["model"]["vocab"][" "] = 7;
  json["added_tokens"] = {token(8, "<l>", "lstrip"), token(9, "<r>", "rstrip"),
                          token(10, "<w>", "single_word"), token(11, "<l><r>x", "")};
  const auto tokenizer = make(json);
  EXPECT_EQ(encode(*tokenizer, "a  <l> b"), (std::vector<int32_t>{0, 8, 7, 1}));
  EXPECT_EQ(encode(*tokenizer, "a <r>  b"), (std::vector<int32_t>{0, 7, 9, 1}));
  EXPECT_EQ(encode(*tokenizer, "<w> a"), (std::vector<int32_t>{10, 7, 0}));
  EXPECT_EQ(encode(*tokenizer, "a<w>"), (std::vector<int32_t>{0, 6, 6, 6}));  // touches a word
  EXPECT_EQ(encode(*tokenizer, "<l><r>x"), (std::vector<int32_t>{11}));       // the longest wins
  EXPECT_EQ(encode(*tokenizer, "<l><r>"), (std::vector<int32_t>{8, 9}));
  EXPECT_TRUE(tokenizer->is_special(8));
  EXPECT_FALSE(tokenizer->is_special(0));
  EXPECT_FALSE(tokenizer->is_special(-1));
  EXPECT_EQ(tokenizer->vocab_size(), 12);
  EXPECT_EQ(tokenizer->max_id(), 11);
  EXPECT_EQ(tokenizer->id_to_token(11), "<l><r>x");
  EXPECT_EQ(tokenizer->token_to_id("<r>"), 9);
  EXPECT_EQ(*tokenizer->decode(std::vector<int32_t>{0, 8, 4}), "a<l>abc");
  EXPECT_EQ(*tokenizer->decode(std::vector<int32_t>{0, 8, 4}, true), "aabc");
}

TEST(Tokenizer, NamesTheByteOfInvalidUtf8) {
  const auto tokenizer = make(small_tokenizer());
  EXPECT_EQ(tokenizer->encode("ab\xFF").status().message(),
            "text to encode: invalid UTF-8 at byte 2; expected valid UTF-8");
  EXPECT_EQ(tokenizer->encode("\xED\xA0\x80").status().message(),
            "text to encode: invalid UTF-8 at byte 0; expected valid UTF-8");
}

TEST(Tokenizer, NamesAnUnknownId) {
  const auto tokenizer = make(small_tokenizer());
  const char* expected =
      "token id 7 is not in the vocabulary; expected an id of one of its 7 tokens, at most 6";
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{0, 7}).status().message(),
            std::string("ids[1]: ") + expected);
  StreamingDecoder decoder(*tokenizer);
  EXPECT_EQ(decoder.append(7).status().message(), expected);
  EXPECT_FALSE(decoder.append(-1).ok());
  EXPECT_EQ(*decoder.append(4), "abc");  // the bad ids changed nothing
}

TEST(Tokenizer, NamesWhatItDoesNotServe) {
  const auto with = [](const char* part, const char* value) {
    Json json = small_tokenizer();
    json[Json::json_pointer(part)] = Json::parse(value);
    return error_of(json);
  };
  EXPECT_EQ(
      with("/normalizer",
           R"({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]})"),
      "small.json: normalizer.normalizers[1]: unsupported type 'Lowercase'; served here: NFC, "
      "Prepend, Replace, BertNormalizer, Sequence");
  EXPECT_EQ(with("/pre_tokenizer", R"({"type": "Whitespace"})"),
            "small.json: pre_tokenizer: unsupported type 'Whitespace'; served here: Split, Digits, "
            "ByteLevel, Metaspace, BertPreTokenizer, Sequence");
  EXPECT_EQ(with("/decoder", R"({"type": "CTC"})"),
            "small.json: decoder: unsupported type 'CTC'; served here: ByteLevel, ByteFallback, "
            "Replace, Fuse, Strip, Metaspace, WordPiece, Sequence");
  EXPECT_EQ(with("/model/type", R"("Unigram")"),
            "small.json: model: unsupported type \"Unigram\"; served here: BPE, WordPiece");
  EXPECT_EQ(with("/model/end_of_word_suffix", R"("</w>")"),
            "small.json: model: unsupported end_of_word_suffix '</w>'; expected null");
  EXPECT_EQ(with("/model/dropout", "0.1"),
            "small.json: model: unsupported dropout 0.1; expected null: encoding is deterministic");
  EXPECT_EQ(with("/pre_tokenizer",
                 R"({"type": "Split", "pattern": {"Regex": "a("}, "behavior": "Isolated"})"),
            "small.json: pre_tokenizer: the regular expression 'a(' cannot be read: missing "
            "closing parenthesis at "
            "byte 2");
  EXPECT_EQ(with("/pre_tokenizer",
                 R"({"type": "Split", "pattern": {"Regex": "[a-c&&b]"}, "behavior": "Isolated"})"),
            "small.json: pre_tokenizer: unsupported '&&' in the regular expression '[a-c&&b]'");
  EXPECT_EQ(
      with("/pre_tokenizer", R"({"type": "Split", "pattern": {"String": "a"}, "behavior": "Odd"})"),
      "small.json: pre_tokenizer: unsupported behavior 'Odd'; expected Removed, Isolated, "
      "MergedWithPrevious, "
      "MergedWithNext or Contiguous");
  EXPECT_EQ(with("/pre_tokenizer", R"({"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": true},
                {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first"}]})"),
            "small.json: pre_tokenizer.pretokenizers[1]: unsupported prepend_scheme 'first' behind "
            "another "
            "pre-tokenizer");
  EXPECT_EQ(with("/pre_tokenizer", R"({"type": "Digits"})"),
            "small.json: pre_tokenizer: 'individual_digits' is missing; expected true or false");
}

TEST(Tokenizer, TakesTheLongestPiecesOfAWord) {
  Json json = small_tokenizer();
  json["pre_tokenizer"] = {{"type", "BertPreTokenizer"}};
  json["model"] = {{"type", "WordPiece"},
                   {"max_input_chars_per_word", 8},
                   {"vocab",
                    {{"[UNK]", 0},
                     {"un", 1},
                     {"una", 2},
                     {"##able", 3},
                     {"##ffable", 4},
                     {"##f", 5},
                     {"##b", 6},
                     {"!", 7}}}};
  json["added_tokens"] = Json::array();
  const auto tokenizer = make(json);
  EXPECT_EQ(encode(*tokenizer, "unaffable un!unf"), (std::vector<int32_t>{0, 1, 7, 1, 5}));
  json["model"]["max_input_chars_per_word"] = 9;
  const auto longer = make(json);
  EXPECT_EQ(encode(*longer, "unaffable"), (std::vector<int32_t>{2, 4}));
  EXPECT_EQ(encode(*longer, "unable"), (std::vector<int32_t>{0})) << "una takes what able needs";
  json["model"]["unk_token"] = "<unk>";
  EXPECT_EQ(error_of(json), "small.json: model: the unk_token '<unk>' is not in the vocabulary");
}

TEST(Tokenizer, NamesInconsistentFiles) {
  Json json = small_tokenizer();
  json["model"]["merges"][1] = "ab d";
  EXPECT_EQ(error_of(json),
            "small.json: model: merge 1 ('ab' 'd') needs the token 'd'; expected every part and "
            "result of a merge in "
            "model.vocab");
  json["model"]["merges"][1] = "abc";
  EXPECT_EQ(
      error_of(json),
      "small.json: model.merges: entry 1 ('abc') is not two parts with one space between them");
  json = small_tokenizer();
  json["model"]["unk_token"] = "!";
  EXPECT_EQ(error_of(json), "small.json: model: unk_token '!' is not in model.vocab");
  json = small_tokenizer();
  json["model"]["vocab"]["a"] = "zero";
  EXPECT_EQ(error_of(json), "small.json: model.vocab: the id of token 'a' is not a number >= 0");
  json = small_tokenizer();
  json["added_tokens"] = {{{"id", 9}, {"content", "<x>"}}};
  EXPECT_EQ(error_of(json),
            "small.json: added_tokens[0]: id 9 of '<x>' does not fit the vocabulary; expected 7");
  EXPECT_EQ(error_of(Json::array()), "small.json: not a JSON object");
  EXPECT_EQ(error_of(Json::object()),
            "small.json: model: missing; expected an object with vocab and merges");
  const auto truncated = Tokenizer::from_json("{\"model\": {", "small.json");
  EXPECT_TRUE(truncated.status().message().starts_with("small.json: not valid JSON: "))
      << truncated.status().message();
  EXPECT_EQ(Tokenizer::load("/no/such/folder").status().message(),
            "/no/such/folder/tokenizer.json: cannot open; expected a model directory with a "
            "tokenizer.json (gradus "
            "convert makes one from a GGUF file)");
}

TEST(Tokenizer, DecodesNormalisedTokensFromTheirNormalisedContent) {
  // What PyPI tokenizers 0.23.3 does: id 7 is found where the text has "x", and comes back as "aa".
  Json json = small_tokenizer();
  json["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", "x"}}}, {"content", "aa"}};
  json["added_tokens"] = {{{"id", 7}, {"content", "x"}, {"special", true}, {"normalized", true}}};
  const auto tokenizer = make(json);
  EXPECT_EQ(encode(*tokenizer, "bx"), (std::vector<int32_t>{1, 7}));
  EXPECT_EQ(*tokenizer->decode(std::vector<int32_t>{1, 7}), "baa");
  EXPECT_EQ(*tokenizer->decode(std::vector<int32_t>{1, 7}, true), "baa");  // "aa" is not special
  EXPECT_EQ(tokenizer->id_to_token(7), "x");
  json["normalizer"]["content"] = "";
  EXPECT_EQ(error_of(json),
            "small.json: added_tokens: 'x' (id 7) is empty once normalised; expected a text that "
            "can be found");
}

TEST(StreamingDecoder, HoldsBackHalfCodePoints) {
  // U+20AC is E2 82 AC: three tokens in the byte-level alphabet, of which only the last completes
  // it.
  Json json = small_tokenizer();
  json["decoder"] = {{"type", "ByteLevel"}};
  json["model"]["vocab"] = {{"\u00e2", 0}, {"\u0124", 1}, {"\u00ac", 2}, {"x", 3}, {"?", 4}};
  json["model"]["merges"] = Json::array();
  const auto tokenizer = make(json);
  StreamingDecoder decoder(*tokenizer);
  EXPECT_EQ(*decoder.append(0), "");
  EXPECT_EQ(*decoder.append(1), "");
  EXPECT_EQ(*decoder.append(2), "\u20ac");
  EXPECT_EQ(*decoder.append(0), "");
  EXPECT_EQ(*decoder.append(3), "\ufffdx");  // E2 alone is no code point
  EXPECT_EQ(*decoder.append(0), "");
  EXPECT_EQ(decoder.finish(), "\ufffd");
  EXPECT_EQ(*decoder.append(3), "x");  // as new
}

class TokenizerFamily : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    std::ifstream file(std::string("tests/golden/tokenizer/") + GetParam() + ".json");
    ASSERT_TRUE(file) << GetParam();
    fixture_ = Json::parse(file);
    tokenizer_ = make(fixture_["tokenizer"]);
    ASSERT_NE(tokenizer_, nullptr);
    ASSERT_GT(fixture_["encode"].size(), 100u);
  }
  Json fixture_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_P(TokenizerFamily, EncodesLikeTokenizers) {
  for (const Json& row : fixture_["encode"]) {
    ASSERT_EQ(Json(encode(*tokenizer_, row["text"].get<std::string>())), row["ids"])
        << row["text"].dump();
  }
}

TEST_P(TokenizerFamily, DecodesLikeTokenizers) {
  for (const Json& row : fixture_["decode"]) {
    const auto ids = row["ids"].get<std::vector<int32_t>>();
    ASSERT_EQ(*tokenizer_->decode(ids), row["text"].get<std::string>()) << row["ids"].dump();
    ASSERT_EQ(*tokenizer_->decode(ids, true), row["text_skipped"].get<std::string>())
        << row["ids"].dump();
  }
}

TEST_P(TokenizerFamily, StreamsWhatItDecodes) {
  for (const Json& row : fixture_["decode"]) {
    StreamingDecoder decoder(*tokenizer_);
    std::string text;
    for (const Json& id : row["ids"]) {
      const auto part = decoder.append(id.get<int32_t>());
      ASSERT_TRUE(part.ok());
      ASSERT_EQ(first_invalid_utf8(*part), std::nullopt) << row["ids"].dump();
      text += *part;
    }
    text += decoder.finish();
    ASSERT_EQ(text, row["text"].get<std::string>()) << row["ids"].dump();
  }
}

TEST_P(TokenizerFamily, EncodesTheSameFromManyThreads) {
  std::vector<std::string> failures(4);
  std::vector<std::thread> threads;
  for (std::string& failure : failures) {
    threads.emplace_back([this, &failure] {
      for (const Json& row : fixture_["encode"]) {
        const auto ids = tokenizer_->encode(row["text"].get_ref<const std::string&>());
        if (!ids.ok() || Json(*ids) != row["ids"]) failure = row["text"].dump();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& failure : failures) EXPECT_EQ(failure, "");
}

INSTANTIATE_TEST_SUITE_P(Golden, TokenizerFamily,
                         testing::Values("gpt2", "gpt2_prefix", "smollm", "llama3", "qwen2",
                                         "qwen35", "other_pattern", "llama2", "llama2_few_bytes",
                                         "llama2_metaspace", "metaspace_split", "gemma", "bert",
                                         "bert_cased"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace gradus::data
